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
 */
import { LRUCache } from 'lru-cache';
import { messageOf } from '../errors.js';
import { MTU_CEILING, MTU_FLOOR, isPlausibleMtu } from '../net/mtu.js';
import type { Address } from '../net/prefix.js';
import { silentLogger, type Logger } from './logger.js';
import { PATH_MTU_DEFAULTS, pathMtuSettings, type PathMtuOptions } from './pmtu-options.js';
import { openRawSocketProber, type OpenProber, type PathMtuProber } from './pmtu-prober.js';
import { searchDown, searchUp, testSize, type ProbedPath, type ProbeOutcome } from './pmtu-search.js';

export { PATH_MTU_DEFAULTS, type PathMtuOptions };

/** Time, as the table sees it; tests bring their own. */
export interface PathMtuClock {
  /** Milliseconds, never going back. */
  now(): number;
  after(delayMs: number, action: () => void): { cancel(): void };
}

export interface PathMtuTableOptions {
  /** Bytes of outer packet that the underlay carries at most; the path MTU of a next hop nobody knows more about. */
  readonly underlayMtu: number;
  /**
   * Called when the path MTU to an address changed, in bytes of outer packet; at first it is `underlayMtu`. Also called
   * from `watch` when that was given a value, to say what is used.
   */
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
  /** `given`: the user said it, so it is not probed. */
  readonly state: 'unprobed' | 'confirmed' | 'silent' | 'given';
}

interface Path {
  readonly address: Address;
  readonly floor: number;
  /** What the user said about this next hop. */
  given: number | undefined;
  /** Upper limit: the least of what was given, what the host has configured, and `underlayMtu`. */
  ceiling: number;
  mtu: number;
  state: PathMtuState['state'];
  /** Reported size to try first, 0 for none. */
  hint: number;
  /** Smoothed round-trip time, 0 while unknown. */
  rttMs: number;
  silentRounds: number;
  /** When more than `mtu` may be tried again. */
  raiseAt: number;
  /** When the last round that a report asked for was due. */
  reportedAt: number;
  /** Whether the configured MTU was asked for once; nothing is probed before. */
  ready: boolean;
  /** This host's own link refused a size that it is configured to take. */
  linkChanged: boolean;
  /** In the queue or in a round. */
  busy: boolean;
  watched: boolean;
  dueAt: number;
  timer: { cancel(): void } | undefined;
}

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
  /** Made with the first address: it reserves room for all it may remember. */
  #results: LRUCache<string, number> | undefined;
  readonly #queue: Path[] = [];
  readonly #counts = { probes: 0, answers: 0, reports: 0, absurd: 0, lowered: 0, raised: 0 };
  #busy = 0;
  #prober: PathMtuProber | undefined;
  #probing: PathMtuStats['probing'];
  #reason: string | undefined;
  #refreshTimer: { cancel(): void } | undefined;
  #refreshFailed = false;
  #started = false;
  #closed = false;

  /** @throws PodwireError INVALID_ARGUMENT for options outside their range */
  constructor(options: PathMtuTableOptions) {
    this.#options = options;
    this.#settings = pathMtuSettings(options.probe === false ? {} : (options.probe ?? {}));
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#logger = options.logger ?? silentLogger;
    this.#probing = options.probe === false ? 'off' : 'starting';
  }

  /**
   * Looks after an address from now on. Watching it again only updates `mtu`.
   * @param mtu given by the user for this next hop, in bytes of outer packet: it is not probed then. A value that no
   *   path can have is ignored, counted and logged.
   */
  watch(address: Address, mtu?: number): void {
    if (this.#closed) return;
    const key = address.toString();
    const given = mtu === undefined ? undefined : this.#plausible(address, mtu);
    const known = this.#paths.get(key);
    const path = known ?? this.#add(key, address);
    const before = path.mtu;
    if (known === undefined || path.given !== given) {
      path.given = given;
      path.state = given === undefined ? 'unprobed' : 'given';
      path.ready = false;
      if (given !== undefined) this.#setCeiling(path, Math.min(given, this.#options.underlayMtu));
      this.#refresh(path);
    }
    // Whoever was given a value may have taken it as it is: here is what really counts.
    if (mtu !== undefined && path.mtu === before) this.#options.onChange(address, before);
  }

  get #remembered(): LRUCache<string, number> {
    this.#results ??= new LRUCache({
      max: this.#settings.remembered,
      ttl: this.#settings.raiseIntervalMs,
      ttlResolution: 0,
      perf: { now: () => this.#clock.now() },
    });
    return this.#results;
  }

  #add(key: string, address: Address): Path {
    const { underlayMtu } = this.#options;
    const path: Path = {
      address,
      floor: MTU_FLOOR[address.family],
      given: undefined,
      ceiling: underlayMtu,
      mtu: underlayMtu,
      state: 'unprobed',
      hint: 0,
      rttMs: 0,
      silentRounds: 0,
      raiseAt: 0,
      reportedAt: -Infinity,
      ready: false,
      linkChanged: false,
      busy: false,
      watched: true,
      dueAt: Infinity,
      timer: undefined,
    };
    this.#paths.set(key, path);
    if (!this.#started) this.#start();
    const remembered = this.#remembered.get(key);
    if (remembered !== undefined && remembered < path.ceiling) this.#set(path, remembered, 'remembered');
    return path;
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
    if (path.busy || !this.#prober || path.given !== undefined) return;
    const now = this.#clock.now();
    const due = Math.max(now, path.reportedAt + this.#settings.reportIntervalMs);
    // A stream of reports must not put off a round that is due anyway.
    if (path.dueAt <= due) return;
    path.reportedAt = due;
    this.#schedule(path, due - now);
  }

  /** Reads the configured MTUs again: a link or route of this host changed. */
  refresh(): void {
    for (const path of this.#paths.values()) this.#refresh(path);
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
    for (const path of this.#paths.values()) this.unwatch(path.address);
    this.#prober?.close();
    this.#prober = undefined;
  }

  // — Start, and configured MTUs

  #start(): void {
    this.#started = true;
    if (this.#options.configuredMtu) this.#refreshLater();
    if (this.#probing === 'starting') void this.#open();
  }

  async #open(): Promise<void> {
    const open = this.#options.openProber ?? openRawSocketProber;
    try {
      const prober = await open((address, mtu) => this.report(address, mtu));
      if (this.#closed) return prober.close();
      this.#prober = prober;
      this.#probing = 'on';
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

  #refreshLater(): void {
    this.#refreshTimer = this.#clock.after(this.#varied(this.#settings.raiseIntervalMs), () => {
      this.refresh();
      this.#refreshLater();
    });
  }

  #refresh(path: Path): void {
    this.#refreshNow(path).catch((error: unknown) => {
      this.#logger.error({ peer: path.address.toString(), reason: messageOf(error) }, 'path MTU could not be set');
    });
  }

  /** The first one, and each that changes the limit, makes the path due. */
  async #refreshNow(path: Path): Promise<void> {
    const configured = await this.#readConfigured(path);
    if (!path.watched) return;
    const limits = [this.#options.underlayMtu, configured, path.given].filter((mtu) => mtu !== undefined);
    const changed = this.#setCeiling(path, Math.min(...limits));
    if (path.ready && !changed) return;
    path.ready = true;
    this.#enqueue(path);
  }

  /** Undefined where nobody knows; the last known one when it cannot be read. */
  async #readConfigured(path: Path): Promise<number | undefined> {
    try {
      const mtu = await this.#options.configuredMtu?.(path.address);
      this.#refreshFailed = false;
      // A link may well claim more than an IP packet can have: the loopback has 65,536.
      return mtu === undefined ? undefined : this.#plausible(path.address, Math.min(mtu, MTU_CEILING));
    } catch (error) {
      if (!this.#refreshFailed) {
        const reason = messageOf(error);
        this.#logger.warn({ reason }, 'the configured MTUs could not be read; the last known ones stay');
      }
      this.#refreshFailed = true;
      return path.ceiling;
    }
  }

  #plausible(address: Address, mtu: number): number | undefined {
    if (isPlausibleMtu(mtu, address.family)) return mtu;
    this.#counts.absurd++;
    this.#logger.warn({ peer: address.toString(), mtu }, 'ignored an MTU that no path can have');
    return undefined;
  }

  /** Whether the limit is another one than before. What probes found below it stays until they find something else. */
  #setCeiling(path: Path, ceiling: number): boolean {
    const changed = ceiling !== path.ceiling;
    const learnt = path.mtu < path.ceiling && path.given === undefined;
    path.ceiling = ceiling;
    if (!learnt || path.mtu > ceiling) this.#set(path, ceiling, 'configured');
    else if (changed) path.raiseAt = 0;
    return changed;
  }

  #set(path: Path, mtu: number, why: 'configured' | 'remembered' | 'probed'): void {
    if (why === 'probed') this.#remembered.set(path.address.toString(), mtu);
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
    path.dueAt = this.#clock.now() + delayMs;
    path.timer = this.#clock.after(delayMs, () => this.#enqueue(path));
  }

  #enqueue(path: Path): void {
    if (!this.#prober || !path.ready || path.busy || !path.watched || path.given !== undefined) return;
    path.timer?.cancel();
    path.dueAt = Infinity;
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
    if (path.watched) {
      this.#schedule(path, this.#varied(delay));
      if (path.linkChanged) this.#refresh(path);
    }
    path.linkChanged = false;
    this.#pump();
  }

  async #round(path: Path): Promise<void> {
    const probed = this.#probed(path);
    const used = path.mtu;
    const verdict = await testSize(probed, used);
    const now = this.#clock.now();
    if (path.given !== undefined) return;
    path.state = verdict === 'unknown' ? 'silent' : 'confirmed';
    if (verdict === 'bad') {
      path.raiseAt = now + this.#settings.raiseIntervalMs;
      this.#conclude(path, await searchDown(probed, used));
    } else if (verdict === 'good') {
      this.#conclude(path, used);
      if (used >= path.ceiling || now < path.raiseAt) return;
      path.raiseAt = now + this.#settings.raiseIntervalMs;
      this.#conclude(path, await searchUp(probed, used, path.ceiling));
    }
  }

  /** A result stands only while the path is wanted, and never above a limit that moved meanwhile. */
  #conclude(path: Path, mtu: number | undefined): void {
    if (mtu !== undefined && path.watched && path.given === undefined)
      this.#set(path, Math.min(mtu, path.ceiling), 'probed');
  }

  #probed(path: Path): ProbedPath {
    return {
      floor: path.floor,
      retries: this.#settings.retries,
      get hint() {
        return path.hint;
      },
      probe: (size) => this.#probe(path, size),
    };
  }

  async #probe(path: Path, size: number): Promise<ProbeOutcome> {
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
    } else if (outcome === 'lost' && size <= path.floor) {
      // It may only have been late: wait longer next time.
      path.rttMs *= 2;
    } else if (outcome === 'too-big') {
      path.linkChanged = true;
    }
    return outcome;
  }
}
