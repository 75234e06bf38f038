import { beforeEach, describe, expect, test } from 'vitest';
import type { Backend } from '../../../src/control/backends/backend.js';
import { ReopeningBackend } from '../../../src/control/backends/reopening.js';
import { type Clock, ManualClock, systemClock } from '../../../src/control/clock.js';
import type { Lease } from '../../../src/control/lease.js';
import type { Logger } from '../../../src/dataplane/logger.js';
import { PodwireError } from '../../../src/errors.js';
import type { SelectedInterface } from '../../../src/host/select-interface.js';
import type { Prefix } from '../../../src/net/prefix.js';
import { leaseOf } from '../../support/leases.js';
import { until } from '../../support/process.js';

const GONE = new PodwireError('DEVICE', 'the TUN device was removed');

/** A backend that writes down what happens to it. */
class FakeBackend {
  readonly events: string[] = [];
  readonly table = new Map<string, Lease>();
  readonly number: number;
  fail!: (error: Error) => void;
  readonly type = 'udp';
  readonly device = 'flannel0';
  readonly mtu: number;
  readonly attributes: { readonly mtu: number };
  readonly ownAddresses = [];
  readonly dataplane = { device: { name: 'flannel0' } };
  readonly facts = {};
  readonly stats = undefined;
  readonly closed: Promise<void>;
  refuse: string | undefined;

  constructor(number: number, mtu: number) {
    this.number = number;
    this.mtu = mtu;
    this.attributes = { mtu };
    this.closed = new Promise((_, reject) => (this.fail = reject));
    this.closed.catch(() => undefined);
  }

  async begin(lease: Lease): Promise<void> {
    this.events.push(`begin ${lease.subnet.toString()}`);
  }

  async changeSubnet(_: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    await publish();
    this.events.push(`move ${to.subnet.toString()}`);
  }

  refusal(): undefined {
    return undefined;
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    if (this.refuse === prefix.toString()) throw new PodwireError('CAPACITY', 'the table is full');
    this.table.set(prefix.toString(), lease);
  }

  removeRoute(prefix: Prefix): boolean {
    return this.table.delete(prefix.toString());
  }

  routesComplete(): void {
    this.events.push('complete');
  }

  async close(): Promise<void> {
    this.events.push('close');
  }
}

let made: FakeBackend[];
let said: string[];
let faults: string[];
/** Awaited before a backend is opened. */
let gate: () => Promise<void>;
let refuseIn: { number: number; prefix: string } | undefined;

const own = leaseOf('10.42.7.0/24', '192.0.2.7');
const peer = (n: number): Lease => leaseOf(`10.42.${n}.0/24`, `192.0.2.${n}`);
const at = (mtu: number): SelectedInterface => ({ name: 'eth0', mtu }) as SelectedInterface;

beforeEach(() => {
  made = [];
  said = [];
  faults = [];
  gate = async () => undefined;
  refuseIn = undefined;
});

const logger = Object.fromEntries(
  ['debug', 'info', 'warn', 'error'].map((level) => [
    level,
    (_: object, message: string) => void said.push(`${level}: ${message}`),
  ]),
) as unknown as Logger;

function open(clock: Clock = systemClock): Promise<ReopeningBackend> {
  return ReopeningBackend.open({
    underlay: at(1500),
    logger,
    clock,
    onRouteFault: (prefix, reason) => faults.push(`${prefix.toString()} ${reason}`),
    open: async (underlay, before) => {
      await gate();
      const backend = new FakeBackend(made.length, underlay.mtu);
      if (refuseIn?.number === backend.number) backend.refuse = refuseIn.prefix;
      if (before !== undefined) backend.events.push(`after ${before.device}`);
      made.push(backend);
      return backend as unknown as Backend;
    },
  });
}

async function started(clock?: Clock): Promise<ReopeningBackend> {
  const backend = await open(clock);
  backend.setRoute(peer(1).subnet, peer(1));
  await backend.begin(own, async () => undefined);
  backend.setRoute(peer(2).subnet, peer(2));
  backend.routesComplete();
  return backend;
}

describe('a device that is removed', () => {
  test('is followed by a new backend with the lease and every route', async () => {
    const backend = await started();
    expect(backend.removeRoute(peer(1).subnet)).toBe(true);
    made[0]!.fail(GONE);
    await until(() => backend.reopened === 1, { what: 'the new one' });
    expect(made[0]!.events).toEqual(['begin 10.42.7.0/24', 'complete', 'close']);
    expect(made[1]!.events).toEqual(['after flannel0', 'begin 10.42.7.0/24', 'complete']);
    expect([...made[1]!.table.keys()]).toEqual(['10.42.2.0/24']);
    expect(said).toEqual(['error: the data plane is lost, opening it again', 'warn: the data plane is open again']);
    made[1]!.fail(GONE);
    await until(() => backend.reopened === 2, { what: 'the third one' });
    await backend.close();
    await backend.closed;
  });

  test('changes of routes and subnet meanwhile are not lost', async () => {
    const backend = await started();
    let release: () => void = () => undefined;
    gate = () => new Promise((resolve) => (release = resolve));
    made[0]!.fail(GONE);
    await until(() => !backend.isOpen, { what: 'the gap' });
    backend.setRoute(peer(3).subnet, peer(3));
    expect(backend.removeRoute(peer(1).subnet)).toBe(true);
    expect(backend.removeRoute(peer(9).subnet)).toBe(false);
    const moving = backend.changeSubnet(own, leaseOf('10.42.8.0/24', '192.0.2.7'), async () => undefined);
    gate = async () => undefined;
    release();
    await moving;
    expect(made[1]!.events).toEqual(['after flannel0', 'begin 10.42.7.0/24', 'complete', 'move 10.42.8.0/24']);
    expect([...made[1]!.table.keys()].sort()).toEqual(['10.42.2.0/24', '10.42.3.0/24']);
    made[1]!.fail(GONE);
    await until(() => backend.reopened === 2, { what: 'the third one' });
    expect(made[2]!.events).toContain('begin 10.42.8.0/24');
    await backend.close();
  });

  test('again and again is met at growing distances', async () => {
    const clock = new ManualClock();
    const backend = await started(clock);
    const gaps: number[] = [];
    for (let life = 0; life < 9; life++) {
      const before = clock.monotonic();
      let turns = 0;
      made.at(-1)!.fail(GONE);
      await until(
        async () => {
          if (backend.reopened > life) return true;
          if (++turns > 5) await clock.advance(500);
          return undefined;
        },
        { what: 'the next one', intervalMs: 0 },
      );
      gaps.push(clock.monotonic() - before);
    }
    expect(gaps[0]).toBe(0);
    expect(gaps[3]).toBeLessThan(1_000);
    expect(gaps[8]).toBeGreaterThan(5_000);
    expect(said.find((line) => line.includes('never lasts'))).toMatch(/again in \d+ ms, because it never lasts$/);
    // One that lasts is taken at its word.
    await clock.advance(10_000);
    const before = clock.monotonic();
    made.at(-1)!.fail(GONE);
    await until(() => backend.reopened === 10, { what: 'the last one' });
    expect(clock.monotonic()).toBe(before);
    await backend.close();
  });

  test('a start that fails is told once for each reason and tried again', async () => {
    const backend = await started();
    let tries = 0;
    gate = async () => {
      if (++tries < 4) throw new PodwireError('PORT_IN_USE', 'the port is in use');
    };
    made[0]!.fail(GONE);
    await until(() => backend.reopened === 1, { what: 'the new one' });
    expect(said.filter((line) => line.includes('cannot be opened again'))).toEqual([
      'error: the data plane cannot be opened again, trying on: the port is in use',
    ]);
    await backend.close();
  });

  test('a route that the new one refuses is told, the others are set', async () => {
    const backend = await started();
    refuseIn = { number: 1, prefix: '10.42.1.0/24' };
    made[0]!.fail(GONE);
    await until(() => backend.reopened === 1, { what: 'the new one' });
    expect(faults).toEqual(['10.42.1.0/24 the table is full']);
    expect([...made[1]!.table.keys()]).toEqual(['10.42.2.0/24']);
    await backend.close();
  });
});

test('another underlay: the old one is closed first, and its properties are the new one’s', async () => {
  const backend = await started();
  await backend.moveTo(at(1400));
  expect(made[0]!.events.at(-1)).toBe('close');
  expect([backend.mtu, backend.underlay.mtu, backend.attributes]).toEqual([1400, 1400, { mtu: 1400 }]);
  // News of the old one mean nothing.
  made[0]!.fail(GONE);
  await backend.close();
  expect([made.length, backend.reopened]).toEqual([2, 1]);
});

test('a refused route is not remembered', async () => {
  refuseIn = { number: 0, prefix: '10.42.2.0/24' };
  const backend = await open();
  expect(() => backend.setRoute(peer(2).subnet, peer(2))).toThrow(/the table is full/);
  await backend.moveTo(at(1400));
  expect(made[1]!.table.size).toBe(0);
  await backend.close();
});

test('any other failure is for good', async () => {
  const backend = await started();
  made[0]!.fail(new PodwireError('WORKER', 'gone'));
  await expect(backend.closed).rejects.toMatchObject({ code: 'WORKER' });
  await backend.close();
  expect(made).toHaveLength(1);
});

test('closing while it is opened again ends the tries, and closes what they opened', async () => {
  const backend = await started();
  let release: () => void = () => undefined;
  gate = () => new Promise((resolve) => (release = resolve));
  made[0]!.fail(GONE);
  await until(() => !backend.isOpen, { what: 'the gap' });
  await until(() => made[0]!.events.includes('close'), { what: 'the end of the old one' });
  const closing = backend.close();
  release();
  await closing;
  await backend.closed;
  expect(made.map(({ events }) => events.at(-1))).toEqual(['close', 'close']);
});
