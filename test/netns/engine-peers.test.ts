/**
 * What is counted for each peer: its own packets and no others', its drops, and when it was last heard.
 */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { PeerStats } from '../../src/dataplane/dataplane.js';
import type { Host } from '../support/engine-lab.js';
import { EngineLab, answers } from '../support/engine-lab.js';
import { until } from '../support/process.js';
import type { Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

const needs = { root: true, tun: true, commands: ['ip', 'ping'], files: ['dist/dataplane/dataplane.js'] };

describe.skipIf(missing(needs))('counts of a peer', () => {
  let lab: EngineLab;
  let a: Host;
  let b: Host;
  let engines: readonly [Remote, Remote];

  beforeAll(async () => {
    lab = await EngineLab.create(2);
    [a, b] = lab.hosts as [Host, Host];
  });
  afterEach(async () => {
    for (const engine of engines) await engine[Symbol.asyncDispose]();
  });
  afterAll(async () => await lab[Symbol.asyncDispose]());

  async function open(): Promise<Remote> {
    engines = [await lab.remote(a.ns), await lab.remote(b.ns)];
    await lab.open(engines[0], a, { workers: 2 });
    await lab.open(engines[1], b, { workers: 2 });
    return engines[0];
  }

  const peersOf = async (engine: Remote): Promise<readonly PeerStats[]> => (await engine.stats()).peers;

  it('begin at zero for a host that gets the number of one that left', async () => {
    const engine = await open();
    expect((await peersOf(engine))[0]).not.toHaveProperty('lastHeardMs');
    expect(await answers(a.pod, '-c', '3', '-i', '0.05', b.podAddress)).toBe(3);
    const before = await until(async () => (await peersOf(engine)).find(({ rxPackets }) => rxPackets >= 3), {
      what: 'the answers to be counted',
    });
    expect(before).toMatchObject({ address: b.underlay, txPackets: 3, rxPackets: 3, txDrops: 0, rxDrops: 0 });
    expect(before.lastHeardMs).toBeLessThan(10_000);
    await engine.routes([]);
    await engine.routes([[b.subnet, '192.168.77.200']]);
    expect(await peersOf(engine)).toEqual([
      expect.objectContaining({
        address: '192.168.77.200',
        txPackets: 0,
        txBytes: 0,
        rxPackets: 0,
        rxBytes: 0,
        txDrops: 0,
        rxDrops: 0,
      }),
    ]);
    expect((await peersOf(engine))[0]).not.toHaveProperty('lastHeardMs');
  });

  it('say whose packets were dropped on the way out and on the way in', async () => {
    const engine = await open();
    // Nobody is at 192.168.77.200, and the way to 10.99.0.0/16 is closed.
    await a.ns.ip('route', 'add', 'unreachable', '10.99.0.0/16');
    try {
      await engine.routes([
        [b.subnet, b.underlay],
        ['10.244.9.0/24', '10.99.0.1'],
        ['10.244.8.0/24', { address: '192.168.77.200', mtu: 600 }],
      ]);
      await answers(a.pod, '-c', '2', '-i', '0.05', '-W', '1', '10.244.9.9');
      await answers(a.pod, '-c', '2', '-i', '0.05', '-W', '1', '-M', 'do', '-s', '1000', '10.244.8.8');
      await engines[1].call('setLocal', { local: ['10.244.77.0/24'] });
      // A's own lease is gone for B: what A sends is from nobody's subnet to somewhere else.
      await answers(a.pod, '-c', '3', '-i', '0.05', '-W', '1', b.podAddress);
      const dropsOf = async (remote: Remote): Promise<Record<string, readonly [number, number]>> =>
        Object.fromEntries(
          (await peersOf(remote)).map(({ address, txDrops, rxDrops }) => [address, [txDrops, rxDrops]]),
        );
      await engine.quiet();
      // ping itself learns the path MTU from the first answer and sends no second one that large.
      const { '192.168.77.200': tooBig, ...others } = await dropsOf(engine);
      expect(tooBig?.[0]).toBeGreaterThanOrEqual(1);
      expect(others).toEqual({ [b.underlay]: [0, 0], '10.99.0.1': [2, 0] });
      await engines[1].quiet();
      expect(await dropsOf(engines[1])).toEqual({ [a.underlay]: [0, 3] });
    } finally {
      await a.ns.ip('route', 'delete', 'unreachable', '10.99.0.0/16');
    }
  });
});
