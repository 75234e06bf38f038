/**
 * Keeps the host as it must be: desired states in named parts, compared with the kernel's when the kernel reports a
 * change and every half minute, put right where they differ.
 *
 * Drift is what differs although nobody asked for a change: it is counted by kind and told. Whoever undoes our repairs
 * again and again is told once, and then meets them at growing distances, so that two programs never spin against each
 * other.
 */
import { messageOf } from '../errors.js';
import type { Change, ChangeKind, DesiredHost } from './desired.js';
import type { Runner } from './exec.js';
import { FightBook, type FightLimits } from './fights.js';
import type { HostEvents, Monitor, MonitorStats } from './monitor.js';
import { reconcile, type Reconciliation } from './reconcile.js';
import { ensureSwitch, readSwitch } from './system.js';

/** A kernel switch below `/proc/sys`. One that does not exist (a kernel without IPv6) is right as it is. */
export interface DesiredSwitch {
  /** `net/ipv4/ip_forward`. */
  readonly path: string;
  readonly value: string;
}

/** What one owner wants; a list that is left out is empty. */
export interface GuardedState extends DesiredHost {
  readonly switches?: readonly DesiredSwitch[];
}

export type DriftKind = ChangeKind | 'switch';

export interface GuardStats {
  /** Repairs of what nobody asked to change, since the start. */
  readonly driftRepaired: Readonly<Record<DriftKind, number>>;
  readonly lastRepair: { readonly at: Date; readonly what: string } | undefined;
  /** What cannot be put right at present, and why. */
  readonly failing: readonly string[];
  /** What somebody else keeps undoing; it is put right at growing intervals. */
  readonly fought: readonly string[];
  /** Comparisons made. */
  readonly checks: number;
  readonly monitor: MonitorStats;
}

/** What {@link HostGuard} is to the owners of parts; tests put another in its place. */
export interface Guard {
  /**
   * From now on this is what must be true for `part`, in place of what it wanted before. Resolves after the first
   * comparison with it, whatever came of that: `onPass` hears of every one that made or failed something. Calls that
   * come together share a comparison.
   */
  keep(part: string, desired: GuardedState, onPass?: (result: Reconciliation) => void): Promise<void>;
  /** Leaves everything of `part` as it is and looks at it no more. Resolves when no comparison of it is under way. */
  drop(part: string): Promise<void>;
  stats(): GuardStats;
  close(): Promise<void>;
}

export interface GuardOptions {
  readonly runner: Runner;
  readonly monitor: Monitor;
  /** One line for the operator. */
  readonly say: (level: 'info' | 'warn' | 'error', fields: Readonly<Record<string, unknown>>, message: string) => void;
  /** Milliseconds between looks without an event; default 30,000. */
  readonly periodMs?: number;
  readonly fights?: FightLimits;
  /** Root of the switches; default `/proc/sys`. */
  readonly procSys?: string;
}

interface Part {
  desired: GuardedState;
  onPass: ((result: Reconciliation) => void) | undefined;
  readonly interests: Interests;
  isDirty: boolean;
  /** The desired state that the latest comparison was made with: what differs from it later is drift. */
  settled: GuardedState | undefined;
}

/** Names that an event must hit to matter to a part. */
interface Interests {
  /** Links and addresses of these. */
  readonly devices: ReadonlySet<string>;
  /** Neighbours and FDB entries of these. */
  readonly neighbours: ReadonlySet<string>;
  /** All routes of these, and routes to `destinations` wherever they lead. */
  readonly ownDevices: ReadonlySet<string>;
  readonly destinations: ReadonlySet<string>;
  readonly forwarding: boolean;
}

const PERIOD_MS = 30_000;
const FIRST_RETRY_MS = 500;
const LONGEST_BLIND_MS = 5_000;
/** Looks that only a timer asks for are not closer than this. */
const SHORTEST_WAIT_MS = 100;
/** The guard takes at most half of its time, and no more than this between an event and the look it asks for. */
const LONGEST_GAP_MS = 500;
/** Repairs named in one line. */
const NAMED = 4;

export class HostGuard implements Guard {
  readonly #options: GuardOptions;
  readonly #parts = new Map<string, Part>();
  readonly #fights: FightBook;
  readonly #driftRepaired: Record<DriftKind, number> = {
    link: 0,
    address: 0,
    route: 0,
    neighbour: 0,
    fdb: 0,
    switch: 0,
  };
  /** By part and key: why it cannot be put right. */
  readonly #failing = new Map<string, string>();
  readonly #unsubscribe: () => void;
  readonly #period: NodeJS.Timeout;
  #waiting: (() => void)[] = [];
  #timer: NodeJS.Timeout | undefined;
  #timerAt = Infinity;
  /** For looks that no event will ask for. */
  #later: NodeJS.Timeout | undefined;
  #running: Promise<void> | undefined;
  #notBefore = 0;
  #retryMs = FIRST_RETRY_MS;
  #checks = 0;
  #lastRepair: GuardStats['lastRepair'];
  #closed = false;

  constructor(options: GuardOptions) {
    this.#options = options;
    this.#fights = new FightBook(options.fights);
    this.#unsubscribe = options.monitor.subscribe((events) => this.#onEvents(events));
    const periodMs = options.periodMs ?? PERIOD_MS;
    this.#period = setInterval(() => this.#lookAt(() => true), periodMs).unref();
  }

  keep(name: string, desired: GuardedState, onPass?: (result: Reconciliation) => void): Promise<void> {
    if (this.#closed) return Promise.resolve();
    this.#parts.set(name, {
      desired,
      onPass,
      interests: interestsOf(desired),
      isDirty: true,
      settled: this.#parts.get(name)?.settled,
    });
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
      this.#wake(0);
    });
  }

  async drop(name: string): Promise<void> {
    this.#parts.delete(name);
    for (const key of this.#failing.keys()) if (key.startsWith(`${name} `)) this.#failing.delete(key);
    await this.#running;
  }

  stats(): GuardStats {
    return {
      driftRepaired: { ...this.#driftRepaired },
      lastRepair: this.#lastRepair,
      failing: [...new Set(this.#failing.values())],
      fought: this.#fights.open,
      checks: this.#checks,
      monitor: this.#options.monitor.stats(),
    };
  }

  /** Ends all looking; what the parts wanted stays as it is. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#unsubscribe();
    clearInterval(this.#period);
    clearTimeout(this.#timer);
    clearTimeout(this.#later);
    await this.#running;
    clearTimeout(this.#later);
    for (const resolve of this.#waiting.splice(0)) resolve();
  }

  #onEvents(events: HostEvents): void {
    this.#lookAt(({ interests }) => {
      return (
        events.everything ||
        (events.forwarding && interests.forwarding) ||
        meet(events.links, interests.devices) ||
        meet(events.addresses, interests.devices) ||
        meet(events.neighbours, interests.neighbours) ||
        meet(events.routeDevices, interests.ownDevices) ||
        meet(events.destinations, interests.destinations)
      );
    });
  }

  #lookAt(matters: (part: Part) => boolean): void {
    let any = false;
    for (const part of this.#parts.values()) {
      if (!matters(part)) continue;
      part.isDirty = true;
      any = true;
    }
    if (any) this.#wake(0);
  }

  /** Sees to it that dirty parts are compared in `delayMs` at the latest, or as soon as the pace allows. */
  #wake(delayMs: number): void {
    if (this.#closed || this.#running !== undefined) return;
    const at = Math.max(performance.now() + delayMs, this.#notBefore);
    if (at >= this.#timerAt) return;
    clearTimeout(this.#timer);
    this.#timerAt = at;
    this.#timer = setTimeout(
      () => {
        this.#timerAt = Infinity;
        this.#running = this.#run().finally(() => {
          this.#running = undefined;
          if ([...this.#parts.values()].some(({ isDirty }) => isDirty) || this.#waiting.length > 0) this.#wake(0);
          else this.#wakeLater();
        });
      },
      Math.max(0, at - performance.now()),
    );
  }

  async #run(): Promise<void> {
    const startedAt = performance.now();
    const waiting = this.#waiting;
    this.#waiting = [];
    let isReadable = true;
    for (const [name, part] of this.#parts) {
      if (!part.isDirty || this.#closed) continue;
      part.isDirty = false;
      this.#checks++;
      try {
        await this.#check(name, part);
        this.#failed(name, 'host', undefined);
      } catch (error) {
        isReadable = false;
        part.isDirty = true;
        this.#failed(name, 'host', `the host cannot be looked at: ${messageOf(error)}`);
      }
    }
    for (const resolve of waiting) resolve();
    const now = performance.now();
    this.#notBefore = now + Math.min(LONGEST_GAP_MS, now - startedAt);
    this.#retryMs =
      isReadable && this.#failing.size === 0
        ? FIRST_RETRY_MS
        : Math.min(this.#options.periodMs ?? PERIOD_MS, this.#retryMs * 2);
    if (!isReadable) this.#notBefore = now + Math.min(LONGEST_BLIND_MS, this.#retryMs);
  }

  async #check(name: string, part: Part): Promise<void> {
    const { desired } = part;
    const isDrift = part.settled === desired;
    const failedBefore = new Set(this.#failing.keys());
    const result = await reconcile(this.#options.runner, desired, {
      allow: ({ key }) => !isDrift || this.#fights.mayRepair(`${name} ${key}`, performance.now()),
    });
    const repairs = result.made.map(({ kind, key, why }) => ({ kind: kind as DriftKind, key, why }));
    for (const wanted of desired.switches ?? []) {
      const repair = await this.#setSwitch(name, wanted, isDrift);
      if (repair !== undefined) repairs.push(repair);
    }
    // Meanwhile somebody may have given up the part, or wanted something else.
    if (this.#parts.get(name) !== part) return;
    part.settled = desired;
    // What could not be made before was no drift: it is told as right again.
    const drift = isDrift ? repairs.filter(({ key }) => !failedBefore.has(`${name} ${key}`)) : [];
    if (drift.length > 0) this.#repaired(name, drift);
    this.#noteFailures(name, result);
    this.#settleFights(name, [...repairs, ...result.held, ...result.failed.map(({ change }) => change)]);
    if (result.made.length > 0 || result.failed.length > 0) part.onPass?.(result);
  }

  /** @returns what was put right. */
  async #setSwitch(
    name: string,
    { path, value }: DesiredSwitch,
    isDrift: boolean,
  ): Promise<{ kind: DriftKind; key: string; why: string } | undefined> {
    const file = `${this.#options.procSys ?? '/proc/sys'}/${path}`;
    const key = `switch ${path}`;
    const was = await readSwitch(file);
    if (was === undefined || was === value) {
      this.#failed(name, key, undefined);
      return undefined;
    }
    if (isDrift && !this.#fights.mayRepair(`${name} ${key}`, performance.now())) return undefined;
    const outcome = await ensureSwitch(file, value);
    const shown = path.replaceAll('/', '.');
    this.#failed(
      name,
      key,
      typeof outcome === 'object'
        ? `${shown} is ${was}, not ${value}, and cannot be set (${outcome.failed}): run sysctl -w ${shown}=${value}`
        : undefined,
    );
    return typeof outcome === 'object' ? undefined : { kind: 'switch', key, why: `${shown} was ${was}, not ${value}` };
  }

  #repaired(name: string, repairs: readonly { kind: DriftKind; key: string; why: string }[]): void {
    const { say } = this.#options;
    const now = performance.now();
    const told: string[] = [];
    for (const { kind, key, why } of repairs) {
      this.#driftRepaired[kind]++;
      const fight = this.#fights.repaired(`${name} ${key}`, now);
      if (fight === 'none') told.push(why);
      if (fight !== 'begins') continue;
      say(
        'error',
        { part: name },
        `somebody keeps undoing what we set (${why}): it is put right at growing intervals, up to ${this.#fights.longestMs / 1000} s; find who else manages it`,
      );
    }
    const named = repairs.slice(0, NAMED).map(({ why }) => why);
    const more = repairs.length > NAMED ? ` and ${repairs.length - NAMED} more` : '';
    this.#lastRepair = { at: new Date(), what: `${named.join('; ')}${more}` };
    if (told.length === 0) return;
    const rest = told.length > NAMED ? ` and ${told.length - NAMED} more` : '';
    say('warn', { part: name, repaired: told.length }, `put right: ${told.slice(0, NAMED).join('; ')}${rest}`);
  }

  #noteFailures(name: string, { failed }: Reconciliation): void {
    const reasons = new Map(failed.map(({ change, reason }) => [change.key, reason]));
    for (const full of this.#failing.keys()) {
      const key = full.slice(name.length + 1);
      if (full.startsWith(`${name} `) && !key.startsWith('switch ') && !reasons.has(key)) {
        this.#failed(name, key, undefined);
      }
    }
    for (const [key, reason] of reasons) this.#failed(name, key, reason);
  }

  /** Tells a failure when it is new and when it is over. */
  #failed(name: string, key: string, reason: string | undefined): void {
    const full = `${name} ${key}`;
    const before = this.#failing.get(full);
    if (before === reason) return;
    if (reason === undefined) {
      this.#failing.delete(full);
      this.#options.say('info', { part: name }, `right again: ${before ?? key}`);
    } else {
      this.#failing.set(full, reason);
      this.#options.say('error', { part: name }, `cannot be put right: ${reason}`);
    }
  }

  #settleFights(name: string, wrong: readonly Pick<Change, 'key'>[]): void {
    const keys = new Set(wrong.map(({ key }) => `${name} ${key}`));
    for (const key of this.#fights.settle(name, keys, performance.now())) {
      this.#options.say('info', { part: name }, `nobody undoes ${key.slice(name.length + 1)} any more`);
    }
  }

  /** Repairs that were held back or refused are due some time, with or without an event. */
  #wakeLater(): void {
    clearTimeout(this.#later);
    const now = performance.now();
    const retryAt = this.#failing.size > 0 ? now + this.#retryMs : Infinity;
    const at = Math.min(retryAt, this.#fights.nextAt(now) ?? Infinity);
    if (at === Infinity || this.#closed) return;
    this.#later = setTimeout(() => this.#lookAt(() => true), Math.max(SHORTEST_WAIT_MS, at - now)).unref();
  }
}

function interestsOf(desired: GuardedState): Interests {
  const { links = [], addresses = [], routes = [], neighbours = [], fdb = [], exclusive = [] } = desired;
  const names = (...lists: readonly (readonly { readonly device: string }[])[]): string[] =>
    lists.flatMap((list) => list.map(({ device }) => device));
  return {
    devices: new Set([...names(links, addresses, routes, neighbours, fdb), ...exclusive]),
    neighbours: new Set([...names(neighbours, fdb), ...exclusive]),
    ownDevices: new Set([...names(links), ...exclusive]),
    destinations: new Set(routes.map(({ destination }) => eventName(destination.toString()))),
    forwarding: (desired.switches ?? []).length > 0,
  };
}

function meet(names: ReadonlySet<string>, wanted: ReadonlySet<string>): boolean {
  for (const name of names) if (wanted.has(name)) return true;
  return false;
}

/** iproute2 prints host routes without their length. */
function eventName(destination: string): string {
  if (destination === '0.0.0.0/0' || destination === '::/0') return 'default';
  return destination.replace(/^([^:]*)\/32$|^(.*:.*)\/128$/, '$1$2');
}
