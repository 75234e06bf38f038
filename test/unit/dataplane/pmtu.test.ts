import { afterEach, describe, expect, it } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import { PATH_MTU_DEFAULTS, PathMtuTable } from '../../../src/dataplane/pmtu.js';
import { Address } from '../../../src/net/prefix.js';
import { closeWorlds, HOUR, MINUTE, PEER, PEER6, SECOND, World } from './pmtu-world.js';

afterEach(closeWorlds);

describe('probing', () => {
  it('costs one probe an interval while the path carries what is used', async () => {
    const world = new World({ probe: { jitter: 0 } });
    world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * MINUTE - SECOND);
    expect(world.network.sizes).toEqual(Array(10).fill(1500));
    expect(world.changes).toEqual([]);
    expect(world.table.get(PEER)).toEqual({ address: PEER, mtu: 1500, configured: 1500, state: 'confirmed' });
  });

  it.each([
    [PEER, 576],
    [PEER, 577],
    [PEER, 1006],
    [PEER, 1280],
    [PEER, 1400],
    [PEER, 1498],
    [PEER, 1499],
    [PEER6, 1280],
    [PEER6, 1281],
    [PEER6, 1492],
  ])('finds the MTU of a smaller path and tells it once: %s %i', async (peer, mtu) => {
    const world = new World();
    world.network.road(peer, { mtu });
    world.table.watch(peer);
    await world.clock.run(30 * SECOND);
    expect(world.changes).toEqual([`${peer.toString()} ${mtu}`]);
    expect(world.table.stats()).toMatchObject({ reduced: 1, lowered: 1, raised: 0, probing: 'on' });
    expect(world.log.at(-1)).toMatchObject({ level: 'warn', fields: { mtu, before: 1500, why: 'probed' } });
    await world.clock.run(2 * HOUR);
    expect(world.changes).toHaveLength(1);
  });

  it('finds jumbo paths', async () => {
    const world = new World({ underlayMtu: 9000 });
    world.network.road(PEER, { mtu: 8951, link: 9000 });
    world.table.watch(PEER);
    await world.clock.run(MINUTE);
    expect(world.mtu()).toBe(8951);
  });

  it('changes nothing while a path carries less than every path must', async () => {
    const world = new World();
    world.network.road(PEER, { mtu: 500 });
    world.table.watch(PEER);
    await world.clock.run(HOUR);
    expect(world.changes).toEqual([]);
    expect(world.table.get(PEER)?.state).toBe('silent');
  });

  it('follows a path down within an interval and up within a raise interval', async () => {
    const world = new World({ probe: { jitter: 0 } });
    const road = world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(90 * SECOND);
    road.mtu = 1400;
    await world.clock.run(PATH_MTU_DEFAULTS.intervalMs);
    expect(world.changes).toEqual(['192.0.2.2 1400']);
    road.mtu = 1300;
    await world.clock.run(PATH_MTU_DEFAULTS.intervalMs + 10 * SECOND);
    expect(world.changes.at(-1)).toBe('192.0.2.2 1300');
    road.mtu = 1450;
    await world.clock.run(PATH_MTU_DEFAULTS.raiseIntervalMs + 2 * MINUTE);
    expect(world.changes.at(-1)).toBe('192.0.2.2 1450');
    road.mtu = 1500;
    await world.clock.run(PATH_MTU_DEFAULTS.raiseIntervalMs + 2 * MINUTE);
    expect(world.changes.at(-1)).toBe('192.0.2.2 1500');
    expect(world.changes).toHaveLength(4);
    expect(world.table.stats()).toMatchObject({ lowered: 2, raised: 2, reduced: 0 });
  });

  it('tries more than a small path carried once a raise interval, one byte more, three times', async () => {
    const world = new World({ probe: { jitter: 0 } });
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER);
    await world.clock.run(30 * SECOND);
    const sizes = await world.probesDuring(6 * PATH_MTU_DEFAULTS.raiseIntervalMs);
    expect(sizes.filter((size) => size > 1400)).toEqual(Array(6 * 3).fill(1401));
    expect(sizes.filter((size) => size === 1400)).toHaveLength(60);
  });

  it('changes nothing for peers that answer nothing, and asks them less and less', async () => {
    const world = new World({ probe: { jitter: 0 } });
    world.network.road(PEER, { answers: false });
    world.table.watch(PEER);
    const first = await world.probesDuring(10 * MINUTE);
    const later = await world.probesDuring(HOUR);
    expect(world.changes).toEqual([]);
    expect(world.table.get(PEER)?.state).toBe('silent');
    expect(world.table.stats()).toMatchObject({ silent: 1, answers: 0 });
    expect(first.length).toBeGreaterThan(6);
    expect(later.length / 6).toBeLessThan(first.length / 2);
  });

  it('changes nothing when a peer or its path dies, before or in the middle of a search', async () => {
    for (let dieAfter = 0; dieAfter < 12 * SECOND; dieAfter += 300) {
      const world = new World({}, dieAfter);
      const road = world.network.road(PEER, { mtu: 1400, rttMs: 80 });
      world.table.watch(PEER);
      await world.clock.run(dieAfter);
      const told = [...world.changes];
      road.answers = false;
      await world.clock.run(HOUR);
      expect(world.changes, `died after ${dieAfter} ms`).toEqual(told);
      expect([[], ['192.0.2.2 1400']]).toContainEqual(told);
    }
  });

  it('waits as long as slow peers take', async () => {
    const world = new World();
    const road = world.network.road(PEER, { mtu: 1400, rttMs: 900 });
    world.table.watch(PEER);
    await world.clock.run(2 * MINUTE);
    expect(world.changes).toEqual(['192.0.2.2 1400']);
    // A path that suddenly takes much longer than its timeouts is not taken for a smaller one either.
    road.rttMs = 1;
    await world.clock.run(HOUR);
    road.rttMs = 700;
    await world.clock.run(HOUR);
    expect(world.changes).toHaveLength(1);
    expect(world.table.get(PEER)?.state).toBe('confirmed');
  });

  it('is right under loss, whatever the seed', async () => {
    for (let seed = 1; seed <= 40; seed++) {
      const world = new World({}, seed);
      const mtu = 600 + ((seed * 397) % 901);
      world.network.road(PEER, { mtu, loss: 0.05 });
      world.table.watch(PEER);
      await world.clock.run(4 * HOUR);
      expect(world.mtu(), `seed ${seed}`).toBe(mtu);
      // Never more than the path carries once it was found out.
      const told = world.changes.map((change) => Number(change.split(' ')[1]));
      expect(Math.max(...told, 0), `seed ${seed}`).toBeLessThanOrEqual(mtu);
      world.table.close();
    }
  });

  it('does not take loss for a smaller path', async () => {
    for (let seed = 1; seed <= 20; seed++) {
      const world = new World({}, seed);
      world.network.road(PEER, { loss: 0.1 });
      world.table.watch(PEER);
      await world.clock.run(2 * HOUR);
      expect(world.changes, `seed ${seed}`).toEqual([]);
      world.table.close();
    }
  });
});

describe('reports', () => {
  it('that are forged cost one probe and change nothing', async () => {
    const world = new World({ probe: { jitter: 0 } });
    world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    world.table.report(PEER, 600);
    expect(await world.probesDuring(10 * SECOND)).toEqual([1500]);
    expect(world.changes).toEqual([]);
    expect(world.table.stats().reports).toBe(1);
  });

  it('are forgotten after the round that they caused', async () => {
    const world = new World({ probe: { jitter: 0 } });
    const road = world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    world.table.report(PEER, 600);
    await world.clock.run(10 * SECOND);
    road.mtu = 1400;
    const sizes = await world.probesDuring(2 * MINUTE);
    expect(world.mtu()).toBe(1400);
    expect(sizes).not.toContain(600);
  });

  it('that come in a flood neither multiply nor put off probes', async () => {
    const world = new World({ probe: { jitter: 0 } });
    world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    let sent = 0;
    for (let i = 0; i < 6000; i++) {
      world.table.report(PEER, 576 + (i % 900));
      sent += (await world.probesDuring(10)).length;
    }
    expect(sent).toBeGreaterThanOrEqual(MINUTE / PATH_MTU_DEFAULTS.reportIntervalMs - 1);
    expect(sent).toBeLessThanOrEqual(MINUTE / PATH_MTU_DEFAULTS.reportIntervalMs + 2);
    expect(world.changes).toEqual([]);
  });

  it('that are true make the search immediate and short', async () => {
    const world = new World({ probe: { jitter: 0 } });
    const road = world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    road.mtu = 1400;
    world.table.report(PEER, 1400);
    const sizes = await world.probesDuring(5 * SECOND);
    expect(world.changes).toEqual(['192.0.2.2 1400']);
    expect(new Set(sizes)).toEqual(new Set([1500, 576, 1400, 1401]));
  });

  it('of a router about the probes themselves are used in the same search', async () => {
    const world = new World();
    world.network.road(PEER, { mtu: 1337, reports: 1337 });
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    expect(world.changes).toEqual(['192.0.2.2 1337']);
    expect(new Set(world.network.sizes)).toEqual(new Set([1500, 576, 1337, 1338]));
  });

  it('that lie about the size do not mislead the search', async () => {
    for (const lie of [577, 1336, 1338, 1499]) {
      const world = new World();
      world.network.road(PEER, { mtu: 1337, reports: lie });
      world.table.watch(PEER);
      await world.clock.run(30 * SECOND);
      expect(world.changes, `lie ${lie}`).toEqual(['192.0.2.2 1337']);
    }
  });

  it('without a size (a refused send, a router older than RFC 1191) make a probe due', async () => {
    const world = new World({ probe: { jitter: 0 } });
    const road = world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    road.mtu = 1400;
    world.table.report(PEER);
    await world.clock.run(20 * SECOND);
    expect(world.changes).toEqual(['192.0.2.2 1400']);
  });

  it('that are absurd, about others, or not below what is used cause nothing', async () => {
    const world = new World({ probe: { jitter: 0 } });
    world.network.road(PEER);
    world.network.road(PEER6);
    world.table.watch(PEER);
    world.table.watch(PEER6);
    await world.clock.run(10 * SECOND);
    for (const absurd of [-1, 1, 8, 68, 183, 575, 1501, 65_536, 1e9, NaN, 1400.5]) world.table.report(PEER, absurd);
    world.table.report(PEER6, 1279);
    world.table.report(PEER, 1500);
    world.table.report(Address.parse('192.0.2.77'), 1400);
    expect(await world.probesDuring(20 * SECOND)).toEqual([]);
    expect(world.table.stats()).toMatchObject({ reports: 14, absurd: 12 });
    expect(world.changes).toEqual([]);
  });
});

describe('without a prober', () => {
  it('says so once and goes by configured MTUs', async () => {
    const world = new World({
      openProber: () => Promise.reject(new PodwireError('PERMISSION', 'a raw ICMP socket was refused')),
      configuredMtu: () => Promise.resolve(1400),
    });
    world.table.watch(PEER);
    world.table.watch(PEER6);
    expect(world.table.stats().probing).toBe('starting');
    await world.clock.run(HOUR);
    world.table.report(PEER, 1300);
    await world.clock.run(HOUR);
    expect(world.changes).toEqual(['192.0.2.2 1400', '2001:db8::2 1400']);
    expect(world.table.stats()).toMatchObject({
      probing: 'unavailable',
      reason: 'a raw ICMP socket was refused',
      probes: 0,
    });
    const told = world.log.filter(({ message }) => message.includes('not available'));
    expect(told).toMatchObject([{ level: 'info', fields: { reason: 'a raw ICMP socket was refused' } }]);
  });

  it('does not even try when it is switched off', async () => {
    const world = new World({ probe: false, openProber: () => Promise.reject(new Error('must not be asked')) });
    world.table.watch(PEER);
    await world.clock.run(HOUR);
    expect(world.table.stats()).toMatchObject({ probing: 'off', reason: undefined });
    expect(world.log).toEqual([]);
  });
});

describe('options', () => {
  it.each([
    ['intervalMs', 99],
    ['intervalMs', Infinity],
    ['raiseIntervalMs', -1],
    ['timeoutMs', 0],
    ['timeoutMs', 100.5],
    ['retries', 0],
    ['retries', NaN],
    ['jitter', 1.1],
    ['concurrency', 0],
    ['remembered', 0],
    ['reportIntervalMs', '5' as unknown as number],
  ])('%s: %s is refused by name and value', (name, value) => {
    const make = (): PathMtuTable =>
      new PathMtuTable({ underlayMtu: 1500, onChange: () => undefined, probe: { [name]: value } });
    expect(make).toThrow(PodwireError);
    expect(make).toThrow(`option pathMtu.${name} is ${String(value)}: give a `);
  });

  it.each([
    [0, 48],
    [0.999999, 72],
  ])('vary the interval by the jitter: random %d gives %i s', async (random, seconds) => {
    const world = new World({ random: () => random });
    world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(2 * MINUTE);
    expect(Math.round((world.network.sentAt[1]! - world.network.sentAt[0]!) / SECOND)).toBe(seconds);
  });
});
