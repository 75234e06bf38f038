import { afterEach, describe, expect, it } from 'vitest';
import { PATH_MTU_DEFAULTS, type PathMtuTableOptions } from '../../../src/dataplane/pmtu.js';
import type { PathMtuProber } from '../../../src/dataplane/pmtu-prober.js';
import { Address } from '../../../src/net/prefix.js';
import { closeWorlds, HOUR, MINUTE, PEER, PEER6, SECOND, World } from './pmtu-world.js';

afterEach(closeWorlds);

describe('configured MTUs', () => {
  it('are believed at once, are the most that is used, and are where probing starts', async () => {
    const world = new World({ configuredMtu: (address) => Promise.resolve(address === PEER ? 1400 : 9000) });
    world.network.road(PEER);
    world.network.road(PEER6);
    world.table.watch(PEER);
    world.table.watch(PEER6);
    await world.clock.run(MINUTE / 2);
    expect(world.changes).toEqual(['192.0.2.2 1400']);
    expect(world.table.get(PEER)).toMatchObject({ mtu: 1400, configured: 1400, state: 'confirmed' });
    expect(world.table.get(PEER6)).toMatchObject({ mtu: 1500, configured: 1500 });
    expect(new Set(world.network.sizes)).toEqual(new Set([1400, 1500]));
    expect(world.log.filter(({ level }) => level === 'warn')).toEqual([]);
  });

  it('are asked for all at once, so that the look-ups can be shared', () => {
    let asked = 0;
    const world = new World({ configuredMtu: () => (asked++, Promise.resolve(undefined)) });
    for (let i = 0; i < 500; i++) world.table.watch(Address.fromUint32(0xc0000200 + i));
    expect(asked).toBe(500);
  });

  it.each([8, 183, 575, 0, -1500, NaN, 1400.5])('that are absurd are ignored, counted and named: %d', async (mtu) => {
    const world = new World({ probe: false, configuredMtu: () => Promise.resolve(mtu) });
    world.table.watch(PEER);
    await world.clock.run(SECOND);
    expect(world.changes).toEqual([]);
    expect(world.table.stats().absurd).toBe(1);
    expect(world.log).toMatchObject([{ level: 'warn', fields: { peer: '192.0.2.2', mtu } }]);
  });

  it('may be larger than IP packets: the loopback says 65536', async () => {
    const world = new World({ probe: false, underlayMtu: 65_535, configuredMtu: () => Promise.resolve(65_536) });
    world.table.watch(PEER);
    await world.clock.run(SECOND);
    expect(world.table.stats().absurd).toBe(0);
    expect(world.mtu()).toBe(65_535);
  });

  it('are read again periodically and on demand, down and up', async () => {
    let configured = 1500;
    const world = new World({ configuredMtu: () => Promise.resolve(configured), probe: { jitter: 0 } });
    world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(SECOND);
    configured = 1400;
    world.table.refresh();
    await world.clock.run(SECOND);
    expect(world.changes).toEqual(['192.0.2.2 1400']);
    configured = 1450;
    await world.clock.run(PATH_MTU_DEFAULTS.raiseIntervalMs);
    expect(world.changes).toEqual(['192.0.2.2 1400', '192.0.2.2 1450']);
  });

  it('that have not changed cause no probes, and are asked for once a raise interval', async () => {
    let asked = 0;
    const world = new World({ configuredMtu: () => Promise.resolve((asked++, 1500)), probe: { jitter: 0 } });
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER);
    await world.clock.run(30 * SECOND);
    expect(asked).toBe(1);
    for (let i = 0; i < 10; i++) {
      world.table.refresh();
      expect(await world.probesDuring(SECOND)).toEqual([]);
    }
    asked = 0;
    await world.clock.run(6 * PATH_MTU_DEFAULTS.raiseIntervalMs);
    expect(asked).toBe(6);
  });

  it('that rise above what was probed are tried, not believed', async () => {
    let configured = 1450;
    const world = new World({ configuredMtu: () => Promise.resolve(configured) });
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER);
    await world.clock.run(MINUTE / 2);
    expect(world.mtu()).toBe(1400);
    configured = 1500;
    world.table.refresh();
    const sizes = await world.probesDuring(10 * SECOND);
    expect(sizes).toContain(1401);
    expect(world.changes).toEqual(['192.0.2.2 1450', '192.0.2.2 1400']);
  });

  it('stay when they cannot be read, which is said once', async () => {
    let fail = false;
    const configuredMtu = (): Promise<number> =>
      fail ? Promise.reject(new Error('ip: not found')) : Promise.resolve(1400);
    const world = new World({ probe: false, configuredMtu });
    world.table.watch(PEER);
    await world.clock.run(SECOND);
    fail = true;
    for (let i = 0; i < 3; i++) {
      world.table.refresh();
      await world.clock.run(SECOND);
    }
    expect(world.mtu()).toBe(1400);
    expect(world.log.filter(({ level }) => level === 'warn')).toMatchObject([{ fields: { reason: 'ip: not found' } }]);
  });

  it('are read again when this host itself refuses a size', async () => {
    let configured = 1500;
    const world = new World({ configuredMtu: () => Promise.resolve(configured), probe: { jitter: 0 } });
    const road = world.network.road(PEER);
    world.table.watch(PEER);
    await world.clock.run(10 * SECOND);
    road.link = 1400;
    configured = 1400;
    await world.clock.run(MINUTE);
    expect(world.mtu()).toBe(1400);
    expect(world.table.get(PEER)).toMatchObject({ configured: 1400, state: 'confirmed' });
  });
});

describe('MTUs given for a next hop', () => {
  it('win over probes and are not probed', async () => {
    const world = new World();
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER, 1450);
    world.table.report(PEER, 1400);
    await world.clock.run(HOUR);
    expect(world.changes).toEqual(['192.0.2.2 1450']);
    expect(world.network.sizes).toEqual([]);
    expect(world.table.get(PEER)).toMatchObject({ mtu: 1450, state: 'given' });
  });

  it('can be changed and taken back', async () => {
    const world = new World();
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER, 1300);
    await world.clock.run(SECOND);
    world.table.watch(PEER, 1350);
    await world.clock.run(SECOND);
    world.table.watch(PEER);
    await world.clock.run(MINUTE);
    expect(world.changes).toEqual(['192.0.2.2 1300', '192.0.2.2 1350', '192.0.2.2 1500', '192.0.2.2 1400']);
  });

  it('win over what probes found, and over a limit they exceed they do not', async () => {
    const world = new World({ configuredMtu: () => Promise.resolve(1450) });
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER);
    await world.clock.run(MINUTE);
    world.table.watch(PEER, 1450);
    expect(world.changes).toEqual(['192.0.2.2 1450', '192.0.2.2 1400', '192.0.2.2 1450']);
    world.table.watch(PEER, 9000);
    await world.clock.run(SECOND);
    expect(world.mtu()).toBe(1450);
    expect(world.changes.at(-1)).toBe('192.0.2.2 1450');
  });

  it('cost no look-up when they are given again, and are said back', async () => {
    let asked = 0;
    const world = new World({ configuredMtu: () => Promise.resolve((asked++, undefined)) });
    for (let i = 0; i < 5; i++) world.table.watch(PEER, 1450);
    await world.clock.run(SECOND);
    expect(asked).toBe(1);
    expect(world.changes).toEqual(Array(5).fill('192.0.2.2 1450'));
  });

  it('that say nothing new are probed once they are taken back', async () => {
    const world = new World();
    world.network.road(PEER);
    world.table.watch(PEER, 1500);
    await world.clock.run(MINUTE);
    world.table.watch(PEER);
    expect(await world.probesDuring(SECOND)).toEqual([1500]);
  });

  it('are ignored when absurd', async () => {
    const world = new World();
    world.network.road(PEER);
    world.table.watch(PEER, 8);
    await world.clock.run(SECOND);
    // Said back to whoever gave the value, who may have taken it as it was.
    expect(world.changes).toEqual(['192.0.2.2 1500']);
    expect(world.table.get(PEER)?.state).toBe('confirmed');
    expect(world.table.stats().absurd).toBe(1);
  });
});

describe('many peers', () => {
  it('are probed a few at a time, out of step, and all of them', async () => {
    const world = new World({ probe: { concurrency: 7 } });
    const peers = Array.from({ length: 300 }, (_, i) => Address.fromUint32(0xc6336400 + i));
    for (const peer of peers) {
      world.network.road(peer, { rttMs: 20 });
      world.table.watch(peer);
    }
    await world.clock.run(40 * SECOND);
    expect(world.network.mostUnderWay).toBe(7);
    expect(world.table.stats()).toMatchObject({ watched: 300, answers: 300, silent: 0 });
    const from = world.network.sentAt.length;
    await world.clock.run(40 * SECOND);
    const second = world.network.sentAt.slice(from);
    expect(Math.max(...second) - Math.min(...second)).toBeGreaterThan(15 * SECOND);
  });

  it('share the state of nobody: one small path lowers one peer', async () => {
    const world = new World();
    const peers = Array.from({ length: 20 }, (_, i) => Address.fromUint32(0xc6336400 + i));
    for (const [i, peer] of peers.entries()) {
      world.network.road(peer, { mtu: i === 13 ? 1400 : 1500 });
      world.table.watch(peer);
    }
    await world.clock.run(MINUTE);
    expect(world.changes).toEqual(['198.51.100.13 1400']);
  });
});

describe('leaving and coming back', () => {
  it('forgets nothing for a while: a returning peer starts with what was found', async () => {
    const world = new World();
    world.network.road(PEER, { mtu: 1400 });
    world.table.watch(PEER);
    await world.clock.run(30 * SECOND);
    world.table.unwatch(PEER);
    expect(world.table.get(PEER)).toBeUndefined();
    await world.clock.run(MINUTE);
    world.table.watch(PEER);
    expect(world.changes).toEqual(['192.0.2.2 1400', '192.0.2.2 1400']);
    world.table.unwatch(PEER);
    await world.clock.run(PATH_MTU_DEFAULTS.raiseIntervalMs + SECOND);
    world.table.watch(PEER);
    expect(world.mtu()).toBe(1500);
  });

  it('remembers no more than it was told to', async () => {
    const world = new World({ probe: { remembered: 3 } });
    const peers = Array.from({ length: 5 }, (_, i) => Address.fromUint32(0xc6336400 + i));
    for (const peer of peers) {
      world.network.road(peer, { mtu: 1400 });
      world.table.watch(peer);
      await world.clock.run(MINUTE / 2);
      world.table.unwatch(peer);
    }
    for (const peer of peers) world.table.watch(peer);
    expect(peers.map((peer) => world.mtu(peer))).toEqual([1500, 1500, 1400, 1400, 1400]);
  });

  it('tells nothing about a peer that left in the middle of a search', async () => {
    for (let leaveAfter = 0; leaveAfter < 6 * SECOND; leaveAfter += 250) {
      const world = new World();
      world.network.road(PEER, { mtu: 1400, rttMs: 50 });
      world.table.watch(PEER);
      await world.clock.run(leaveAfter);
      const told = world.changes.length;
      world.table.unwatch(PEER);
      await world.clock.run(20 * SECOND);
      expect(world.clock.pending).toBe(0);
      expect(world.changes.length).toBe(told);
    }
  });

  it('whatever happens in the moment an answer arrives: leaving, a given MTU, a smaller limit', async () => {
    let searched = 0;
    for (let at = 0; at <= searched; at++) {
      const scenario = async (
        act: (world: World) => void,
        options: Partial<PathMtuTableOptions> = {},
      ): Promise<World> => {
        const world = new World({ probe: { jitter: 0 }, ...options });
        world.network.road(PEER, { mtu: 1400, rttMs: 50 });
        world.network.onSettle = (probe) => {
          if (probe === at) act(world);
        };
        world.table.watch(PEER);
        await world.clock.run(30 * SECOND);
        searched = Math.max(searched, world.network.sizes.length);
        return world;
      };
      let told = -1;
      const left = await scenario((world) => {
        told = world.changes.length;
        world.table.unwatch(PEER);
      });
      expect(left.changes.length, `left at probe ${at}`).toBe(told === -1 ? 1 : told);

      const given = await scenario((world) => world.table.watch(PEER, 1450));
      expect(given.changes.at(-1), `given at probe ${at}`).toBe(at < searched ? '192.0.2.2 1450' : '192.0.2.2 1400');
      expect(given.table.get(PEER)?.state).toBe(at < searched ? 'given' : 'confirmed');

      let configured = 1500;
      const limited = await scenario(
        (world) => {
          configured = 1300;
          world.table.refresh();
        },
        { configuredMtu: () => Promise.resolve(configured) },
      );
      expect(limited.mtu(), `limited at probe ${at}`).toBe(at < searched ? 1300 : 1400);
      for (const world of [left, given, limited]) world.table.close();
    }
    expect(searched).toBeGreaterThan(20);
  });

  it('ignores addresses it does not watch, and does nothing once closed', async () => {
    const world = new World();
    world.table.unwatch(PEER);
    world.table.close();
    world.table.watch(PEER);
    world.table.report(PEER, 1400);
    world.table.refresh();
    expect(world.table.stats()).toMatchObject({ watched: 0, probes: 0 });
  });

  it('closes a prober that opens after the end', async () => {
    let opened: ((prober: PathMtuProber) => void) | undefined;
    const world = new World({ openProber: () => new Promise((resolve) => (opened = resolve)) });
    world.table.watch(PEER);
    world.table.close();
    opened!(world.network);
    await world.clock.run(0);
    expect(world.network.closed).toBe(1);
  });
});
