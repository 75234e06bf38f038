/** The simulated network that the tests of path MTUs run in. */
import { expect } from 'vitest';
import type { Logger } from '../../../src/dataplane/logger.js';
import { PathMtuTable, type PathMtuClock, type PathMtuTableOptions } from '../../../src/dataplane/pmtu.js';
import type { PathMtuProber, ReportListener } from '../../../src/dataplane/pmtu-prober.js';
import type { ProbeOutcome } from '../../../src/dataplane/pmtu-search.js';
import { Address } from '../../../src/net/prefix.js';
import { generator } from '../../support/random.js';

export const PEER: Address = Address.parse('192.0.2.2');
export const PEER6: Address = Address.parse('2001:db8::2');
export const SECOND = 1000;
export const MINUTE: number = 60 * SECOND;
export const HOUR: number = 60 * MINUTE;

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

/** A table of path MTUs whose time, network and chance are simulated. */
export class World {
  readonly clock = new SimulatedClock();
  readonly network: SimulatedNetwork;
  readonly table: PathMtuTable;
  /** `address mtu`, in order. */
  readonly changes: string[] = [];
  readonly log: { level: string; fields: object; message: string }[] = [];

  constructor(options: Partial<PathMtuTableOptions> = {}, seed = 1) {
    const random = generator(seed);
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

/** After each test: a closed table leaves no timer behind, changes nothing any more, and no test logged an error. */
export async function closeWorlds(): Promise<void> {
  for (const world of worlds.splice(0)) {
    world.table.close();
    expect(world.clock.pending, 'timers besides those of probes under way').toBe(world.network.underWay);
    const changes = world.changes.length;
    await world.clock.run(HOUR);
    expect(world.changes.length, 'changes after close').toBe(changes);
    expect(world.clock.pending, 'timers left after close').toBe(0);
    expect(world.log.filter(({ level }) => level === 'error')).toEqual([]);
  }
}
