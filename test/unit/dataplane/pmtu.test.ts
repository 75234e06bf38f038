import { afterEach, describe, expect, it } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import type { Logger } from '../../../src/dataplane/logger.js';
import {
  PATH_MTU_DEFAULTS,
  PathMtuTable,
  type PathMtuClock,
  type PathMtuTableOptions,
} from '../../../src/dataplane/pmtu.js';
import type { PathMtuProber, ReportListener } from '../../../src/dataplane/pmtu-prober.js';
import type { ProbeOutcome } from '../../../src/dataplane/pmtu-search.js';
import { Address } from '../../../src/net/prefix.js';

const PEER = Address.parse('192.0.2.2');
const PEER6 = Address.parse('2001:db8::2');
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** Uniform in [0, 1), repeatable (mulberry32). */
function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Time that passes only in `run`, as fast as the promises that hang on it settle. */
class SimulatedClock implements PathMtuClock {
  #now = 1;
  #timers: { at: number; action: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  after(delayMs: number, action: () => void): { cancel(): void } {
    const timer = { at: this.#now + Math.max(0, delayMs), action };
    this.#timers.push(timer);
    return { cancel: () => void (this.#timers = this.#timers.filter((other) => other !== timer)) };
  }

  get pending(): number {
    return this.#timers.length;
  }

  async run(durationMs: number): Promise<void> {
    const end = this.#now + durationMs;
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      let next: { at: number; action: () => void } | undefined;
      for (const timer of this.#timers) if (timer.at <= end && (next === undefined || timer.at < next.at)) next = timer;
      if (next === undefined) break;
      const due = next;
      this.#timers = this.#timers.filter((timer) => timer !== due);
      this.#now = Math.max(this.#now, due.at);
      due.action();
    }
    this.#now = end;
  }
}

interface Road {
  mtu: number;
  /** Largest packet this host's own link takes. */
  link: number;
  /** Answers pings at all. */
  answers: boolean;
  rttMs: number;
  /** Share of packets lost, each way. */
  loss: number;
  /** A router on the way reports what it cannot pass on, with this MTU. */
  reports: number | undefined;
}

class SimulatedNetwork implements PathMtuProber {
  readonly clock: SimulatedClock;
  readonly roads = new Map<string, Road>();
  readonly sizes: number[] = [];
  readonly sentAt: number[] = [];
  readonly #random: () => number;
  onReport: ReportListener = () => undefined;
  /** Called in the very moment that the probe with this number (from 0) is settled, before anybody hears of it. */
  onSettle: ((probe: number) => void) | undefined;
  underWay = 0;
  mostUnderWay = 0;
  closed = 0;

  constructor(clock: SimulatedClock, random: () => number) {
    this.clock = clock;
    this.#random = random;
  }

  road(address: Address, road: Partial<Road> = {}): Road {
    const made = { mtu: 1500, link: 1500, answers: true, rttMs: 1, loss: 0, reports: undefined, ...road };
    this.roads.set(address.toString(), made);
    return made;
  }

  probe(address: Address, size: number, timeoutMs: number): Promise<ProbeOutcome> {
    const road = this.roads.get(address.toString());
    if (this.closed > 0 || road === undefined) return Promise.resolve('failed');
    if (size > road.link) return Promise.resolve('too-big');
    const number = this.sizes.push(size) - 1;
    this.sentAt.push(this.clock.now());
    this.underWay++;
    this.mostUnderWay = Math.max(this.mostUnderWay, this.underWay);
    const lost = this.#random() < road.loss || this.#random() < road.loss;
    const answered = road.answers && size <= road.mtu && !lost && road.rttMs <= timeoutMs;
    if (size > road.mtu && road.reports !== undefined) this.onReport(address, road.reports);
    return new Promise((resolve) => {
      this.clock.after(answered ? road.rttMs : timeoutMs, () => {
        this.underWay--;
        resolve(answered ? 'answered' : 'lost');
        this.onSettle?.(number);
      });
    });
  }

  close(): void {
    this.closed++;
  }
}

class World {
  readonly clock = new SimulatedClock();
  readonly network: SimulatedNetwork;
  readonly table: PathMtuTable;
  /** `address mtu`, in order. */
  readonly changes: string[] = [];
  readonly log: { level: string; fields: object; message: string }[] = [];

  constructor(options: Partial<PathMtuTableOptions> = {}, seed = 1) {
    const random = seeded(seed);
    this.network = new SimulatedNetwork(this.clock, random);
    const say =
      (level: string) =>
      (fields: object, message: string): void =>
        void this.log.push({ level, fields, message });
    const logger: Logger = { debug: say('debug'), info: say('info'), warn: say('warn'), error: say('error') };
    this.table = new PathMtuTable({
      underlayMtu: 1500,
      onChange: (address, mtu) => this.changes.push(`${address.toString()} ${mtu}`),
      clock: this.clock,
      random,
      logger,
      openProber: (onReport) => {
        this.network.onReport = onReport;
        return Promise.resolve(this.network);
      },
      ...options,
    });
    worlds.push(this);
  }

  mtu(address = PEER): number | undefined {
    return this.table.get(address)?.mtu;
  }

  /** Probes sent while something runs. */
  async probesDuring(durationMs: number): Promise<number[]> {
    const before = this.network.sizes.length;
    await this.clock.run(durationMs);
    return this.network.sizes.slice(before);
  }
}

const worlds: World[] = [];

afterEach(async () => {
  for (const world of worlds.splice(0)) {
    world.table.close();
    expect(world.clock.pending, 'timers besides those of probes under way').toBe(world.network.underWay);
    const changes = world.changes.length;
    await world.clock.run(HOUR);
    expect(world.changes.length, 'changes after close').toBe(changes);
    expect(world.clock.pending, 'timers left after close').toBe(0);
    expect(world.log.filter(({ level }) => level === 'error')).toEqual([]);
  }
});

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
