/** Measuring while the lab runs: once a second what moved, and at the end the figures of the whole run. */
import { setTimeout as sleep } from 'node:timers/promises';
import { dropsOf, growth } from '../counters.js';
import type { Lab } from './lab.js';

/** The traffic programs are asked this often, so that a stall shorter than a second is seen. */
const TICK_MS = 250;
const TICKS_PER_SAMPLE = 4;

/** One second of the overlay. */
export interface Sample {
  /** Seconds since the start of the measurement. */
  readonly second: number;
  /** Inner bits delivered to pods, all hosts together. */
  readonly bitsPerSecond: number;
  /** Inner packets (segments) delivered to pods, all hosts together. */
  readonly packetsPerSecond: number;
  /** Median and 99th percentile of this second's round trips, in microseconds. */
  readonly rttUs: { readonly p50: number; readonly p99: number } | undefined;
  /** Drops of this second, by reason, zeros left out. */
  readonly drops: Readonly<Record<string, number>>;
  /** Leases that the best informed agent knows: its own and the routed ones. */
  readonly leases: number;
}

export interface RoundTrips {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

export interface Figures {
  /** Length of the load phase. */
  readonly seconds: number;
  /** Payload of one TCP stream, mean over the load phase. */
  readonly tcpGbitPerSecond: number;
  /** The best second, as `Sample.packetsPerSecond`. */
  readonly peakPacketsPerSecond: number;
  /** Round trips between pods in microseconds, while the overlay was quiet and under the load. */
  readonly rttIdleUs: RoundTrips | null;
  readonly rttLoadUs: RoundTrips | null;
  readonly pings: { readonly sent: number; readonly lost: number };
  /** All drops of the run by reason, the provoked ones included. */
  readonly drops: Readonly<Record<string, number>>;
}

/** The value below which `share` of the sorted values lie (nearest rank); 0 for none. */
export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
}

export function roundTrips(values: readonly number[]): RoundTrips | null {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return {
    count: sorted.length,
    p50: Math.round(percentile(sorted, 0.5)),
    p99: Math.round(percentile(sorted, 0.99)),
    max: Math.round(sorted.at(-1) ?? 0),
  };
}

/**
 * Asks agents and traffic programs in the background, from `start` to `stop`. A question that fails (a host is just
 * leaving) costs that tick, nothing else: whether agents live is watched elsewhere.
 */
export class Sampler {
  readonly #lab: Lab;
  readonly #show: (sample: Sample) => void;
  readonly #idleUs: number[] = [];
  readonly #loadUs: number[] = [];
  #loop: Promise<void> | undefined;
  #stopped = false;
  #loadStartedAt: number | undefined;
  #loadMs = 0;
  #streamBytes = 0;
  #streamError: string | undefined;
  #peakPackets = 0;
  #sent = 0;
  #lost = 0;
  #quietSince: number | undefined;
  #longestStallMs = 0;

  constructor(lab: Lab, show: (sample: Sample) => void) {
    this.#lab = lab;
    this.#show = show;
  }

  start(): void {
    this.#loop = this.#run();
  }

  /** From here on traffic counts as load, and a pause of the stream as a stall. */
  loadStarts(): void {
    this.#loadStartedAt = performance.now();
    this.#quietSince = performance.now();
  }

  loadEnds(): void {
    if (this.#loadStartedAt !== undefined) this.#loadMs = performance.now() - this.#loadStartedAt;
    this.#loadStartedAt = undefined;
    this.#quietSince = undefined;
  }

  /** Of the load phase: its longest time without a byte in ms, the bytes, and the stream's error if it broke. */
  get stream(): { readonly longestStallMs: number; readonly bytes: number; readonly error: string | undefined } {
    return { longestStallMs: this.#longestStallMs, bytes: this.#streamBytes, error: this.#streamError };
  }

  get pings(): { readonly sent: number; readonly lost: number } {
    return { sent: this.#sent, lost: this.#lost };
  }

  async #run(): Promise<void> {
    const start = performance.now();
    let before: { at: number; totals: Readonly<Record<string, number>> } | undefined;
    let rttUs: number[] = [];
    for (let tick = 1; !this.#stopped; tick += 1) {
      await sleep(Math.max(0, start + tick * TICK_MS - performance.now()));
      if (this.#stopped) return;
      rttUs.push(...(await this.tick()));
      if (tick % TICKS_PER_SAMPLE !== 0) continue;
      const snapshot = await this.#lab.snapshot().catch(() => undefined);
      if (snapshot === undefined) continue;
      const at = performance.now();
      const seconds = (at - (before?.at ?? start)) / 1000;
      const grown = growth(before?.totals ?? {}, snapshot.totals);
      const round = roundTrips(rttUs);
      const packetsPerSecond = (grown['ingressPackets'] ?? 0) / seconds;
      this.#peakPackets = Math.max(this.#peakPackets, packetsPerSecond);
      this.#show({
        second: Math.round((at - start) / 1000),
        bitsPerSecond: ((grown['ingressBytes'] ?? 0) * 8) / seconds,
        packetsPerSecond,
        rttUs: round === null ? undefined : { p50: round.p50, p99: round.p99 },
        drops: dropsOf(grown),
        leases: 1 + Math.max(0, ...snapshot.hosts.map(({ status }) => status.routed.length)),
      });
      before = { at, totals: snapshot.totals };
      rttUs = [];
    }
  }

  /** Collects from the traffic programs now; the load phase calls it once more at its end. */
  async tick(): Promise<readonly number[]> {
    const ticks = await Promise.all(
      this.#lab.hosts.map(async (host) => await host.endpoint.call('tick', {}).catch(() => undefined)),
    );
    const rttUs: number[] = [];
    for (const tick of ticks) {
      if (tick === undefined) continue;
      rttUs.push(...tick.rttUs);
      this.#sent += tick.pings;
      this.#lost += tick.lost;
      if (this.#loadStartedAt === undefined) continue;
      this.#streamError ??= tick.streamError;
      this.#streamBytes += tick.streamBytes;
      if (tick.streamBytes > 0) this.#quietSince = performance.now();
    }
    if (this.#quietSince !== undefined) {
      this.#longestStallMs = Math.max(this.#longestStallMs, performance.now() - this.#quietSince);
    }
    (this.#loadStartedAt === undefined ? this.#idleUs : this.#loadUs).push(...rttUs);
    return rttUs;
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#loop;
  }

  figures(totals: Readonly<Record<string, number>>): Figures {
    const seconds = this.#loadMs / 1000;
    return {
      seconds: Number(seconds.toFixed(2)),
      tcpGbitPerSecond: seconds === 0 ? 0 : Number(((this.#streamBytes * 8) / seconds / 1e9).toFixed(3)),
      peakPacketsPerSecond: Math.round(this.#peakPackets),
      rttIdleUs: roundTrips(this.#idleUs),
      rttLoadUs: roundTrips(this.#loadUs),
      pings: this.pings,
      drops: dropsOf(totals),
    };
  }
}
