/**
 * Several workers: flows stay on theirs, and a worker that dies takes nobody along and comes back.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { DataplaneOptions, DataplaneStats } from '../../src/dataplane/dataplane.js';
import { STOP_EXIT, STOP_THROW } from '../../src/dataplane/worker.js';
import type { Host } from '../support/engine-lab.js';
import { EngineLab } from '../support/engine-lab.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

const WORKERS = 4;
const needs = { root: true, tun: true, commands: ['ip'], files: ['dist/dataplane/dataplane.js'] };

/** Per worker, how much a counter rose. */
function rises(before: DataplaneStats, after: DataplaneStats, counter: string): number[] {
  return after.workers.map(({ counters }, i) => counters[counter]! - before.workers[i]!.counters[counter]!);
}

describe.skipIf(missing(needs))('several workers', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let podA: Remote;
  let podB: Remote;
  let echoPort: number;
  let engines: readonly Remote[] = [];

  beforeAll(async () => {
    lab = await EngineLab.create(2);
    [a, b] = lab.hosts as [Host, Host];
    podA = await lab.remote(a.pod);
    podB = await lab.remote(b.pod);
    echoPort = await podB.udpListen(b.podAddress, 0, true);
  });
  afterEach(async () => {
    for (const engine of engines) await engine[Symbol.asyncDispose]();
    engines = [];
  });
  afterAll(async () => await lab[Symbol.asyncDispose]());

  async function open(options: Partial<DataplaneOptions> = {}): Promise<readonly [Remote, Remote]> {
    const first = await lab.remote(a.ns);
    const second = await lab.remote(b.ns);
    engines = [first, second];
    await lab.open(first, a, { workers: WORKERS, ...options });
    await lab.open(second, b, { workers: WORKERS, ...options });
    return [first, second];
  }

  const exchange = (localPort: number, count: number) =>
    podA.udpExchange({ address: b.podAddress, port: echoPort, localPort, count, size: 64, patienceMs: 3000 });
  const ports = (count: number): number[] => Array.from({ length: count }, (_, i) => 30_000 + i);

  it('a flow of requests and replies moves to another worker at most once', async () => {
    const both = await open();
    for (const port of ports(6)) {
      const moves = [0, 0];
      const last: (number | undefined)[] = [undefined, undefined];
      let before = [await both[0].stats(), await both[1].stats()] as const;
      for (let i = 0; i < 25; i++) {
        expect(await exchange(port, 1)).toMatchObject({ answered: 1 });
        // One packet in each direction; its counter may follow it by a moment.
        const after = await until(
          async () => {
            const now = [await both[0].stats(), await both[1].stats()] as const;
            const counted = [0, 1].every((side) =>
              rises(before[side]!, now[side]!, 'egressPackets').some((rise) => rise > 0),
            );
            return counted && now;
          },
          { what: 'the exchange to be counted', intervalMs: 1 },
        );
        for (const side of [0, 1] as const) {
          const worker = rises(before[side], after[side], 'egressPackets').findIndex((rise) => rise > 0);
          if (last[side] !== undefined && last[side] !== worker) moves[side]!++;
          last[side] = worker;
        }
        before = after;
      }
      expect(last.every((worker) => worker !== undefined)).toBe(true);
      expect(Math.max(...moves), `moves of the flow from port ${String(port)} on both hosts`).toBeLessThanOrEqual(1);
    }
  });

  it('flows are spread over workers', async () => {
    const both = await open();
    const before = [await both[0].stats(), await both[1].stats()] as const;
    for (const port of ports(48)) expect((await exchange(port, 2)).answered).toBe(2);
    for (const side of [0, 1] as const) {
      const after = await both[side].stats();
      for (const counter of ['egressPackets', 'ingressPackets']) {
        const used = rises(before[side], after, counter).filter((rise) => rise > 0).length;
        expect(used, `workers with ${counter} on host ${String(side + 1)}`).toBeGreaterThanOrEqual(2);
      }
    }
  });

  it('with a fixed source port a peer is one worker’s', async () => {
    const [, second] = await open({ sourcePort: 'fixed' });
    const before = await second.stats();
    for (const port of ports(24)) expect((await exchange(port, 2)).answered).toBe(2);
    const used = rises(before, await second.stats(), 'ingressPackets').filter((rise) => rise > 0);
    // Each of the sender's workers has the bound port, and all of them look alike to the receiver.
    expect(used).toHaveLength(1);
  });

  describe.each([
    ['throws', STOP_THROW],
    ['takes its thread along', STOP_EXIT],
  ] as const)('a worker that %s', (_, how) => {
    it('is started again while the others forward', async () => {
      const [first] = await open();
      const state = async () => (await first.stats()).workers[1]!;
      // Back-off doubles with each crash: crash until there is time for a look while it is down.
      for (let crash = 1; ; crash++) {
        await first.call('injectFailure', { worker: 1, how });
        await until(async () => (await state()).restarts === crash, { what: 'the crash to be noticed', intervalMs: 1 });
        const before = await first.stats();
        if (crash >= 7) {
          const answered = [];
          for (const port of ports(20)) answered.push((await exchange(port, 1)).answered);
          expect(answered).toEqual(answered.map(() => 1));
          const after = await first.stats();
          if (after.workers[1]!.state === 'restarting') {
            expect(rises(before, after, 'turns')[1]).toBe(0);
            expect(rises(before, after, 'egressPackets')[1]).toBe(0);
            break;
          }
          expect(crash, 'twenty exchanges take longer than the longest back-off').toBeLessThan(12);
        }
        await until(async () => (await state()).state === 'running', { what: 'the worker to be back' });
      }
      await until(async () => (await state()).state === 'running', {
        what: 'the worker to be back',
        timeoutMs: 20_000,
      });
      const before = await first.stats();
      for (const port of ports(40)) expect((await exchange(port, 2)).answered).toBe(2);
      const after = await first.stats();
      // It has its share again, in one direction at least.
      const share = rises(before, after, 'egressPackets')[1]! + rises(before, after, 'ingressPackets')[1]!;
      expect(share).toBeGreaterThan(0);
      expect(after.workers.map(({ restarts }) => restarts > 0)).toEqual([false, true, false, false]);
      const complaints = first.events.filter(({ event, level }) => event === 'log' && level === 'error');
      expect(complaints[0]?.text).toMatch(/^worker 1 failed and is started again in \d+ ms; the others go on$/);
      expect(await first.close()).toBeLessThan(1000);
    });

    it('does not hold up close() while it waits to be started', async () => {
      const [first] = await open({ workers: 2 });
      for (let crash = 1; crash <= 8; crash++) {
        await first.call('injectFailure', { worker: 0, how });
        const wanted = crash < 8 ? 'running' : 'restarting';
        await until(
          async () => {
            const worker = (await first.stats()).workers[0]!;
            return worker.restarts === crash && worker.state === wanted;
          },
          { what: `the worker to be ${wanted}`, intervalMs: 1 },
        );
      }
      expect(await first.close()).toBeLessThan(1000);
    });
  });
});
