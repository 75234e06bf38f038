/**
 * The path MTU of every next hop: how large an outer packet may be on its way there. Main thread only.
 *
 * What counts, strongest first:
 *  1. *configured*: what this host's routes and links say (`configuredMtu`), and what the user said. It is the most
 *     that is ever used; it is believed at once.
 *  2. *probed*: echo requests that must not be fragmented. Full-size probes that are lost while small ones are answered
 *     lower the path MTU to the largest size that passes; answered larger ones raise it again.
 *  3. *reported*: "fragmentation needed" and the like. Anybody can forge those: a report only makes us probe now, and
 *     names a size worth trying first.
 *
 * A peer that answers nothing at all (dead, or it filters ICMP) changes nothing. A peer that filters only large ICMP
 * looks like a path with a small MTU: give such a next hop its `mtu`, or switch probing off.
 *
 * A size is lost only after `retries` probes of it were lost *and* the small probe sent right after each was answered,
 * so that loss and outages are not taken for a smaller MTU (compare RFC 8899, packetization layer discovery).
 */
import { LRUCache } from 'lru-cache';
import { PodwireError, messageOf } from '../errors.js';
import { MTU_CEILING, MTU_FLOOR, isPlausibleMtu } from '../net/mtu.js';
import type { Address } from '../net/prefix.js';
import { silentLogger, type Logger } from './logger.js';
import { openRawSocketProber, type OpenProber, type PathMtuProber } from './pmtu-prober.js';

export interface PathMtuOptions {
  /** Time between two looks at whether the path still carries what is used. Default 60,000 ms. */
  readonly intervalMs?: number;
  /** Time between two tries to use more, and between two readings of the configured MTUs. Default 600,000 ms. */
  readonly raiseIntervalMs?: number;
  /** Longest wait for one answer; shorter for peers whose round-trip time is known. Default 1,000 ms. */
  readonly timeoutMs?: number;
  /** Probes of one size that must be lost, with a small one answered after each, before it is too big. Default 3. */
  readonly retries?: number;
  /** Share by which each interval varies at random, 0 to 1, so that peers are not probed in step. Default 0.2. */
  readonly jitter?: number;
  /** Peers that are probed at the same time. Default 16. */
  readonly concurrency?: number;
  /** A peer is probed at most this often because of reports. Default 5,000 ms. */
  readonly reportIntervalMs?: number;
  /** Results kept, for peers that leave and come back within `raiseIntervalMs`. Default 16,384. */
  readonly remembered?: number;
}

export const PATH_MTU_DEFAULTS: Required<PathMtuOptions> = {
  intervalMs: 60_000,
  raiseIntervalMs: 600_000,
  timeoutMs: 1_000,
  retries: 3,
  jitter: 0.2,
  concurrency: 16,
  reportIntervalMs: 5_000,
  remembered: 16_384,
};

/** Time, as the table sees it; tests bring their own. */
export interface PathMtuClock {
  /** Milliseconds, never going back. */
  now(): number;
  after(delayMs: number, action: () => void): { cancel(): void };
}

export interface PathMtuTableOptions {
  /** Bytes of outer packet that the underlay carries at most; the path MTU of a next hop nobody knows more about. */
  readonly underlayMtu: number;
  /** Called when the path MTU to an address changed, in bytes of outer packet; at first it is `underlayMtu`. */
  readonly onChange: (address: Address, mtu: number) => void;
  /** The MTU configured (not learnt) for the way to an address; may reject or know nothing. */
  readonly configuredMtu?: ((address: Address) => Promise<number | undefined>) | undefined;
  /** `false`: no probes, configured MTUs only. */
  readonly probe?: PathMtuOptions | false | undefined;
  readonly logger?: Logger | undefined;
  readonly clock?: PathMtuClock | undefined;
  /** Uniform in [0, 1). */
  readonly random?: (() => number) | undefined;
  readonly openProber?: OpenProber | undefined;
}

export interface PathMtuStats {
  readonly probing: 'on' | 'off' | 'starting' | 'unavailable';
  /** Why probing is unavailable. */
  readonly reason: string | undefined;
  readonly watched: number;
  /** Watched addresses whose path MTU is below the configured one. */
  readonly reduced: number;
  /** Watched addresses that answered no probe in the last round. */
  readonly silent: number;
  readonly probes: number;
  readonly answers: number;
  readonly reports: number;
  /** Reports and configured MTUs that were ignored because no such MTU can be. */
  readonly absurd: number;
  readonly lowered: number;
  readonly raised: number;
}

export interface PathMtuState {
  readonly address: Address;
  readonly mtu: number;
  readonly configured: number;
  readonly state: 'unprobed' | 'confirmed' | 'silent';
}

/** good: carried · bad: too big · unknown: nothing can be said, so nothing changes */
type Verdict = 'good' | 'bad' | 'unknown';

interface Path {
  readonly address: Address;
  readonly floor: number;
  /** What the next hop's own configuration says, or `underlayMtu`. */
  known: number;
  /** Upper limit: the least of `known` and what the host has configured. */
  ceiling: number;
  mtu: number;
  state: PathMtuState['state'];
  /** Reported size to try first, 0 for none. */
  hint: number;
  /** Smoothed round-trip time, 0 while unknown. */
  rttMs: number;
  silentRounds: number;
  raiseAt: number;
  reportedAt: number;
  busy: boolean;
  watched: boolean;
  timer: { cancel(): void } | undefined;
}

/** The boundary of a finished search is tested again; loss that lasts through this many of them is given up on. */
const SEARCHES = 3;

const systemClock: PathMtuClock = {
  now: () => performance.now(),
  after(delayMs, action) {
    const timer = setTimeout(action, delayMs);
    timer.unref();
    return { cancel: () => clearTimeout(timer) };
  },
};

export class PathMtuTable {
  readonly #options: PathMtuTableOptions;
  readonly #settings: Required<PathMtuOptions>;
  readonly #clock: PathMtuClock;
  readonly #random: () => number;
  readonly #logger: Logger;
  readonly #paths = new Map<string, Path>();
  readonly #results: LRUCache<string, number>;
  readonly #queue: Path[] = [];
  readonly #counts = { probes: 0, answers: 0, reports: 0, absurd: 0, lowered: 0, raised: 0 };
  #busy = 0;
  #prober: PathMtuProber | undefined;
  #probing: PathMtuStats['probing'];
  #reason: string | undefined;
  #refreshTimer: { cancel(): void } | undefined;
  #refreshFailed = false;
  #closed = false;

  /** @throws PodwireError INVALID_ARGUMENT for options outside their range */
  constructor(options: PathMtuTableOptions) {
    this.#options = options;
    this.#settings = checked({ ...PATH_MTU_DEFAULTS, ...(options.probe === false ? {} : options.probe) });
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#logger = options.logger ?? silentLogger;
    this.#probing = options.probe === false ? 'off' : 'starting';
    this.#results = new LRUCache({
      max: this.#settings.remembered,
      ttl: this.#settings.raiseIntervalMs,
      ttlResolution: 0,
      perf: { now: () => this.#clock.now() },
    });
  }

  /**
   * Looks after an address from now on. Watching it again only updates `mtu`.
   * @param mtu configured for this next hop, in bytes of outer packet; implausible values are ignored and counted
   */
  watch(address: Address, mtu?: number): void {
    if (this.#closed) return;
    const key = address.toString();
    const known = this.#limit(address, mtu);
    const existing = this.#paths.get(key);
    if (existing) {
      if (existing.known === known) return;
      existing.known = known;
      this.#refreshSoon([existing]);
      return;
    }
    const path: Path = {
      address,
      floor: MTU_FLOOR[address.family],
      known,
      ceiling: this.#options.underlayMtu,
      mtu: this.#options.underlayMtu,
      state: 'unprobed',
      hint: 0,
      rttMs: 0,
      silentRounds: 0,
      raiseAt: 0,
      reportedAt: -Infinity,
      busy: false,
      watched: true,
      timer: undefined,
    };
    this.#paths.set(key, path);
    if (this.#paths.size === 1 && this.#refreshTimer === undefined) this.#start();
    this.#setCeiling(path, known);
    const remembered = this.#results.get(key);
    if (remembered !== undefined && remembered < path.ceiling) this.#set(path, remembered, 'remembered');
    this.#refreshSoon([path]);
  }

  /** Stops looking after an address. `onChange` is not called for it any more. */
  unwatch(address: Address): void {
    const path = this.#paths.get(address.toString());
    if (!path) return;
    this.#paths.delete(address.toString());
    path.watched = false;
    path.timer?.cancel();
  }

  /**
   * Somebody says that packets to this address are too big: an ICMP report, or EMSGSIZE on a send. Makes a probe due,
   * nothing else.
   * @param mtu the size that would have passed, if the reporter gave one (0: it did not)
   */
  report(address: Address, mtu = 0): void {
    this.#counts.reports++;
    const path = this.#paths.get(address.toString());
    if (!path) return;
    if (mtu !== 0 && (!isPlausibleMtu(mtu, address.family) || mtu > path.ceiling)) {
      this.#counts.absurd++;
      return;
    }
    if (mtu >= path.mtu) return;
    if (mtu !== 0) path.hint = mtu;
    if (path.busy || !this.#prober) return;
    const now = this.#clock.now();
    const due = Math.max(now, path.reportedAt + this.#settings.reportIntervalMs);
    path.reportedAt = due;
    this.#schedule(path, due - now);
  }

  /** Reads the configured MTUs again: a link or route of this host changed. */
  refresh(): void {
    this.#refreshSoon([...this.#paths.values()]);
  }

  get(address: Address): PathMtuState | undefined {
    const path = this.#paths.get(address.toString());
    return path && { address: path.address, mtu: path.mtu, configured: path.ceiling, state: path.state };
  }

  stats(): PathMtuStats {
    let reduced = 0;
    let silent = 0;
    for (const path of this.#paths.values()) {
      if (path.mtu < path.ceiling) reduced++;
      if (path.state === 'silent') silent++;
    }
    return {
      probing: this.#probing,
      reason: this.#reason,
      watched: this.#paths.size,
      reduced,
      silent,
      ...this.#counts,
    };
  }

  close(): void {
    this.#closed = true;
    this.#refreshTimer?.cancel();
    for (const path of [...this.#paths.values()]) this.unwatch(path.address);
    this.#prober?.close();
    this.#prober = undefined;
  }

  // — Start, and configured MTUs

  #start(): void {
    this.#refreshTimer = this.#clock.after(this.#varied(this.#settings.raiseIntervalMs), () => {
      this.#refreshTimer = undefined;
      if (this.#closed) return;
      this.#start();
      this.refresh();
    });
    if (this.#probing !== 'starting' || this.#prober) return;
    this.#probing = 'on';
    void this.#open();
  }

  async #open(): Promise<void> {
    const open = this.#options.openProber ?? openRawSocketProber;
    try {
      const prober = await open((address, mtu) => this.report(address, mtu));
      if (this.#closed) return prober.close();
      this.#prober = prober;
      for (const path of this.#paths.values()) this.#enqueue(path);
    } catch (error) {
      this.#probing = 'unavailable';
      this.#reason = messageOf(error);
      this.#logger.info(
        { reason: this.#reason },
        'path MTU probing is not available; the MTUs configured on this host are used',
      );
    }
  }

  /** All look-ups at once: the one behind `configuredMtu` can then share its work between them. */
  #refreshSoon(paths: readonly Path[]): void {
    for (const path of paths) void this.#refreshOne(path);
  }

  async #refreshOne(path: Path): Promise<void> {
    let configured: number | undefined;
    try {
      configured = await this.#options.configuredMtu?.(path.address);
      this.#refreshFailed = false;
    } catch (error) {
      if (!this.#refreshFailed) {
        this.#refreshFailed = true;
        const reason = messageOf(error);
        this.#logger.warn({ reason }, 'the configured MTUs could not be read; the last known ones stay');
      }
      this.#enqueue(path);
      return;
    }
    if (!path.watched) return;
    this.#setCeiling(path, Math.min(path.known, this.#limit(path.address, configured)));
    this.#enqueue(path);
  }

  /** `mtu` if there can be such a thing, never more than the underlay's. */
  #limit(address: Address, mtu: number | undefined): number {
    if (mtu === undefined) return this.#options.underlayMtu;
    // A link may well claim more than an IP packet can have: the loopback has 65,536.
    if (isPlausibleMtu(Math.min(mtu, MTU_CEILING), address.family)) return Math.min(mtu, this.#options.underlayMtu);
    this.#counts.absurd++;
    return this.#options.underlayMtu;
  }

  #setCeiling(path: Path, ceiling: number): void {
    const learnt = path.mtu < path.ceiling;
    path.ceiling = ceiling;
    if (path.mtu > ceiling || !learnt) this.#set(path, ceiling, 'configured');
    else path.raiseAt = 0;
  }

  #set(path: Path, mtu: number, why: 'configured' | 'remembered' | 'probed'): void {
    if (why === 'probed') this.#results.set(path.address.toString(), mtu);
    if (mtu === path.mtu) return;
    const before = path.mtu;
    path.mtu = mtu;
    const fields = { peer: path.address.toString(), mtu, before, configured: path.ceiling, why };
    if (why === 'probed') this.#counts[mtu < before ? 'lowered' : 'raised']++;
    if (mtu < path.ceiling) this.#logger.warn(fields, 'path MTU is lower than configured');
    else this.#logger.info(fields, 'path MTU changed');
    this.#options.onChange(path.address, mtu);
  }

  // — Rounds: at most `concurrency` at a time, each path again after its interval

  #varied(delayMs: number): number {
    return delayMs * (1 + this.#settings.jitter * (2 * this.#random() - 1));
  }

  #schedule(path: Path, delayMs: number): void {
    path.timer?.cancel();
    path.timer = this.#clock.after(delayMs, () => this.#enqueue(path));
  }

  #enqueue(path: Path): void {
    path.timer?.cancel();
    path.timer = undefined;
    if (!this.#prober || path.busy || !path.watched) return;
    path.busy = true;
    this.#queue.push(path);
    this.#pump();
  }

  #pump(): void {
    while (this.#busy < this.#settings.concurrency) {
      const path = this.#queue.shift();
      if (!path) return;
      this.#busy++;
      void this.#run(path);
    }
  }

  async #run(path: Path): Promise<void> {
    try {
      await this.#round(path);
    } catch (error) {
      this.#logger.error({ peer: path.address.toString(), reason: messageOf(error) }, 'path MTU round failed');
    }
    this.#busy--;
    path.busy = false;
    path.hint = 0;
    const { intervalMs, raiseIntervalMs } = this.#settings;
    // Peers that never answer are asked less and less often.
    path.silentRounds = path.state === 'silent' ? path.silentRounds + 1 : 0;
    const delay = Math.min(intervalMs * 2 ** Math.max(0, path.silentRounds - 1), Math.max(intervalMs, raiseIntervalMs));
    if (path.watched) this.#schedule(path, this.#varied(delay));
    this.#pump();
  }

  async #round(path: Path): Promise<void> {
    const used = path.mtu;
    const verdict = await this.#test(path, used);
    const now = this.#clock.now();
    if (verdict === 'unknown') {
      if (path.watched) path.state = 'silent';
      return;
    }
    path.state = 'confirmed';
    if (verdict === 'bad') {
      path.raiseAt = now + this.#settings.raiseIntervalMs;
      if ((await this.#test(path, path.floor)) !== 'good') return;
      this.#conclude(path, await this.#search(path, path.floor, used));
      return;
    }
    this.#conclude(path, used);
    if (used >= path.ceiling || now < path.raiseAt) return;
    path.raiseAt = now + this.#settings.raiseIntervalMs;
    this.#conclude(path, await this.#raise(path, used, path.ceiling));
  }

  /** A result stands only if the path is still wanted and its limits did not move meanwhile. */
  #conclude(path: Path, mtu: number | undefined): void {
    if (mtu === undefined || !path.watched) return;
    this.#set(path, Math.min(mtu, path.ceiling), 'probed');
  }

  /** One byte more than what is used tells cheaply whether anything has changed; only then is the new limit sought. */
  async #raise(path: Path, used: number, ceiling: number): Promise<number | undefined> {
    if ((await this.#test(path, used + 1)) !== 'good') return undefined;
    if (used + 1 === ceiling) return ceiling;
    const top = await this.#test(path, ceiling);
    if (top === 'good') return ceiling;
    return top === 'bad' ? await this.#search(path, used + 1, ceiling) : undefined;
  }

  /**
   * The largest size that passes, between one that does and one that does not; undefined when the peer fell silent.
   * The smallest refused size is tested once more at the end, since loss may have refused it; if it passes after all,
   * the search goes on above it.
   */
  async #search(path: Path, good: number, bad: number): Promise<number | undefined> {
    let low = good;
    for (let searches = 0; searches < SEARCHES; searches++) {
      let high = bad;
      while (high - low > 1) {
        const size = between(low, high, path.hint);
        const verdict = await this.#test(path, size);
        if (verdict === 'unknown') return undefined;
        if (verdict === 'good') low = size;
        else high = size;
      }
      const again = await this.#test(path, high);
      if (again === 'unknown') return undefined;
      if (again === 'bad') return low;
      if (high === bad) return bad;
      low = high;
    }
    return undefined;
  }

  async #test(path: Path, size: number): Promise<Verdict> {
    const { retries } = this.#settings;
    let refused = 0;
    for (let attempt = 1; attempt <= retries * 2; attempt++) {
      const outcome = await this.#probe(path, size);
      if (outcome === 'answered') return 'good';
      if (outcome === 'failed') return 'unknown';
      if (outcome === 'too-big') return size > path.floor ? 'bad' : 'unknown';
      if (size > path.floor) {
        const small = await this.#probe(path, path.floor);
        if (small === 'answered' && ++refused === retries) return 'bad';
        if (small === 'failed' || small === 'too-big') return 'unknown';
      }
      if (refused === 0 && attempt >= retries) return 'unknown';
    }
    return 'unknown';
  }

  async #probe(path: Path, size: number): Promise<'answered' | 'lost' | 'too-big' | 'failed'> {
    const prober = this.#prober;
    if (!prober || !path.watched) return 'failed';
    const { timeoutMs } = this.#settings;
    const waitMs = path.rttMs === 0 ? timeoutMs : Math.min(timeoutMs, 100 + 8 * path.rttMs);
    const sent = this.#clock.now();
    this.#counts.probes++;
    const outcome = await prober.probe(path.address, size, waitMs);
    if (outcome === 'answered') {
      this.#counts.answers++;
      const rtt = Math.max(this.#clock.now() - sent, 0.001);
      path.rttMs = path.rttMs === 0 ? rtt : path.rttMs + (rtt - path.rttMs) / 8;
    } else if (outcome === 'lost') {
      // It may only have been late: wait longer next time.
      path.rttMs *= 2;
    }
    return outcome;
  }
}

/** A size strictly between two others: the hint, then one above it (which shows whether it is the limit), else half way. */
function between(low: number, high: number, hint: number): number {
  for (const size of [hint, hint + 1]) if (size > low && size < high && (size === hint || low === hint)) return size;
  return (low + high) >>> 1;
}

function checked(options: Required<PathMtuOptions>): Required<PathMtuOptions> {
  const ranges: Record<keyof PathMtuOptions, readonly [number, number]> = {
    intervalMs: [100, 86_400_000],
    raiseIntervalMs: [100, 86_400_000],
    timeoutMs: [10, 60_000],
    retries: [1, 10],
    jitter: [0, 1],
    concurrency: [1, 1024],
    reportIntervalMs: [0, 86_400_000],
    remembered: [1, 1_000_000],
  };
  for (const [name, [least, most]] of Object.entries(ranges) as [keyof PathMtuOptions, readonly [number, number]][]) {
    const value = options[name];
    if (typeof value !== 'number' || !(value >= least && value <= most)) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `option pathMtu.${name} is ${String(value)}: give a number from ${least} to ${most}`,
      );
    }
  }
  return options;
}
