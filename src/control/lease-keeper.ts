/**
 * Keeps one host's lease alive and knows everybody else's, over any store and through any fault of it.
 *
 * It never ends on its own: whatever fails is told once, tried again with growing, jittered delays, and until then
 * everything stays as it was.
 */
import { messageOf, PodwireError } from '../errors.js';
import type { Address } from '../net/prefix.js';
import { Backoff, pause, systemClock, untilAborted, type BackoffOptions, type Clock } from './clock.js';
import { DesiredRoutes, type DesiredRoute, type RefusedLease, type RouteDifference } from './desired-routes.js';
import { type LeaseCounts, newLeaseCounts } from './lease-counts.js';
import type { LeaseKeeperListener } from './lease-listener.js';
import type { RefusalReason } from './lease-refusal.js';
import {
  DEFAULT_TTL_MS,
  overlap,
  sameSubnets,
  type AcquireRequest,
  type Lease,
  type LeaseAttributes,
  type LeaseChange,
  type LeaseStore,
  type StoreNotice,
} from './lease.js';
import type { NetworkConfig } from './network-config.js';

export interface LeaseKeeperOptions {
  readonly store: LeaseStore;
  readonly attributes: LeaseAttributes;
  readonly previous?: AcquireRequest['previous'];
  readonly owner?: string;
  readonly ttlMs?: number;
  /** How long before its end a lease is renewed; default one hour, a third of the lease's life if that is less. */
  readonly renewMarginMs?: number;
  /** Underlay addresses of this host besides the attributes' own; a peer's lease that names one is refused. */
  readonly ownAddresses?: readonly Address[];
  readonly listener?: LeaseKeeperListener;
  /** Errors before the first lease that end the attempt, so that `start` rejects; default: none do. */
  readonly isFatal?: (error: PodwireError) => boolean;
  /** Delays between tries; default 500 ms doubling to 30 s. */
  readonly retry?: BackoffOptions;
  readonly clock?: Clock;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

export interface StoreState {
  readonly description: string;
  readonly ok: boolean;
  /** The latest failure, also when it is over. */
  readonly lastError?: string;
}

export class LeaseKeeper implements AsyncDisposable {
  readonly #options: LeaseKeeperOptions;
  readonly #store: LeaseStore;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #closing = new AbortController();
  #attributes: LeaseAttributes;
  #ownAddresses: readonly Address[];
  #owner: string | undefined;
  #lease: Lease | undefined;
  #config: NetworkConfig | undefined;
  #desired: DesiredRoutes | undefined;
  #lostTo: 'lost' | 'replaced' | undefined;
  #isStale = false;
  /** Our lease as the routes know it. */
  #judgedBy: Lease | undefined;
  #reacquiring: Promise<void> | undefined;
  #wake: (() => void) | undefined;
  #loops: Promise<unknown> | undefined;
  /** The parts that fail at present; the store is down while there is one. */
  readonly #failing = new Set<'watch' | 'lease'>();
  #lastError: string | undefined;
  #stopNotices: (() => void) | undefined;
  readonly #counts = newLeaseCounts();

  constructor(options: LeaseKeeperOptions) {
    this.#options = options;
    this.#store = options.store;
    this.#attributes = options.attributes;
    this.#ownAddresses = options.ownAddresses ?? [];
    this.#owner = options.owner;
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
  }

  /** The lease we hold, or go on serving while it is lost; undefined before the first. */
  get lease(): Lease | undefined {
    return this.#lease;
  }

  /** The network config of the last acquire. */
  get config(): NetworkConfig | undefined {
    return this.#config;
  }

  /** Routes to all other hosts, by prefix text. A live view; empty before the first snapshot. */
  get routes(): ReadonlyMap<string, DesiredRoute> {
    return this.#desired?.routes ?? new Map<string, DesiredRoute>();
  }

  /** Leases of all other hosts, by key, refused ones included. A live view. */
  get leases(): ReadonlyMap<string, Lease> {
    return this.#desired?.leases ?? new Map<string, Lease>();
  }

  /** Leases not followed at present, by key. A live view. */
  get refused(): ReadonlyMap<string, RefusedLease> {
    return this.#desired?.refused ?? new Map<string, RefusedLease>();
  }

  /** How often leases were refused, by reason. */
  get refusals(): Readonly<Partial<Record<RefusalReason, number>>> {
    return this.#desired?.refusals ?? {};
  }

  /** What has happened so far. */
  get counts(): LeaseCounts {
    return { ...this.#counts, notices: { ...this.#counts.notices }, refusals: this.refusals };
  }

  get store(): StoreState {
    const lastError = this.#lastError !== undefined && { lastError: this.#lastError };
    return { description: this.#store.description, ok: this.#failing.size === 0, ...lastError };
  }

  /**
   * Resolves with the first lease, however long that takes, and goes on in the background.
   * @throws PodwireError ABORTED when `signal` aborts first, or the error that `isFatal` picked.
   */
  async start(signal?: AbortSignal): Promise<Lease> {
    if (this.#loops || this.#closing.signal.aborted) {
      throw new PodwireError('INVALID_ARGUMENT', 'a lease keeper starts once; make a new one');
    }
    this.#loops = Promise.resolve();
    this.#stopNotices = this.#store.onNotice?.((notice) => this.#onNotice(notice));
    const both = signal ? AbortSignal.any([signal, this.#closing.signal]) : this.#closing.signal;
    try {
      const lease = await this.#acquireFirst(both);
      this.#loops = Promise.all([this.#hold(), this.#watch()]);
      return lease;
    } catch (error) {
      this.#stopNotices?.();
      throw error;
    }
  }

  /** Tells the peers something else from now on: a new underlay address, new backend data. */
  setAttributes(
    attributes: LeaseAttributes,
    more: { readonly ownAddresses?: readonly Address[]; readonly owner?: string | undefined } = {},
  ): void {
    this.#attributes = attributes;
    if (more.ownAddresses) this.#ownAddresses = more.ownAddresses;
    if (more.owner !== undefined) this.#owner = more.owner;
    this.#updateContext();
    this.#isStale = true;
    this.#wake?.();
  }

  /** This host has other underlay addresses besides the attributes' own; the store need not know. */
  setOwnAddresses(ownAddresses: readonly Address[]): void {
    this.#ownAddresses = ownAddresses;
    this.#updateContext();
  }

  /** Ends the loops at once, whatever the store is doing. The lease stays ours in the store until it expires; `release` gives it back. */
  async close(): Promise<void> {
    this.#closing.abort();
    this.#stopNotices?.();
    await this.#loops;
  }

  /** Closes and gives the lease back. @throws PodwireError when the store does not take it. */
  async release(): Promise<void> {
    await this.close();
    if (this.#lease) await this.#store.release(this.#lease);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #acquireFirst(signal: AbortSignal): Promise<Lease> {
    const { isFatal, listener, previous } = this.#options;
    const backoff = this.#backoff();
    let told: string | undefined;
    for (;;) {
      if (signal.aborted) throw new PodwireError('ABORTED', 'waiting for a lease was cancelled');
      try {
        const { lease, config } = await this.#acquire(previous, signal);
        this.#succeeded('lease');
        this.#tell(() => listener?.acquired?.(lease, config));
        this.#updateContext();
        return lease;
      } catch (error) {
        const fault = asPodwireError(error);
        if (fault.code === 'ABORTED' || fault.code === 'CLOSED' || isFatal?.(fault)) throw fault;
        this.#lastError = fault.message;
        this.#counts.acquireFailures++;
        if (fault.code === 'STORE_UNAVAILABLE') this.#failed('lease', fault);
        if (told !== fault.message) this.#tell(() => listener?.waiting?.(fault));
        told = fault.message;
        await pause(this.#clock, backoff.nextMs(), signal);
      }
    }
  }

  async #acquire(
    previous: AcquireRequest['previous'],
    signal: AbortSignal,
    isServing = false,
  ): Promise<{ lease: Lease; config: NetworkConfig }> {
    const { ttlMs } = this.#options;
    const owner = this.#owner;
    const config = await untilAborted(this.#store.network(signal), signal, 'reading the network config');
    const attributes = this.#attributes;
    const request: AcquireRequest = {
      attributes,
      isServing,
      ...(previous && { previous }),
      ...(owner !== undefined && { owner }),
      ...(ttlMs !== undefined && { ttlMs }),
    };
    const lease = await untilAborted(this.#store.acquire(request, signal), signal, 'acquiring a lease');
    this.#config = config;
    this.#lease = lease;
    this.#lostTo = undefined;
    this.#counts.acquired++;
    this.#counts.writtenAt = new Date(this.#clock.now());
    this.#counts.acquiredAt = this.#counts.writtenAt;
    this.#isStale = attributes !== this.#attributes;
    return { lease, config };
  }

  /** Renews in time, and gets the lease back when it is lost. The only writer of our lease after the start. */
  async #hold(): Promise<void> {
    const { signal } = this.#closing;
    const backoff = this.#backoff();
    let renewAtMs = this.#renewAtMs();
    while (!signal.aborted) {
      if (!this.#lostTo && !this.#isStale) {
        await this.#sleep(renewAtMs, signal);
        if (signal.aborted) return;
        if (!this.#lostTo && !this.#isStale && this.#clock.monotonic() < renewAtMs) continue;
      }
      try {
        if (this.#lostTo) {
          this.#reacquiring = this.#reacquire(signal);
          await this.#reacquiring.finally(() => (this.#reacquiring = undefined));
        } else {
          await this.#renew(signal);
        }
        this.#succeeded('lease');
        backoff.reset();
        renewAtMs = this.#renewAtMs();
      } catch (error) {
        const fault = asPodwireError(error);
        if (fault.code === 'ABORTED' || fault.code === 'CLOSED') return;
        if (fault.code === 'LEASE_LOST' && !this.#lostTo) {
          this.#lost('lost', undefined);
          continue;
        }
        if (this.#lostTo) this.#counts.acquireFailures++;
        else this.#counts.renewFailures++;
        this.#failed('lease', fault);
        // A store that is back (see #succeeded) is asked again at once.
        await this.#sleep(this.#clock.monotonic() + backoff.nextMs(), signal);
      }
    }
  }

  async #renew(signal: AbortSignal): Promise<void> {
    const attributes = this.#attributes;
    const owner = this.#owner !== undefined && { owner: this.#owner };
    const renewed = await untilAborted(
      this.#store.renew({ ...this.#lease!, attributes, ...owner }, signal),
      signal,
      'renewing a lease',
    );
    this.#lease = renewed;
    this.#isStale = attributes !== this.#attributes;
    this.#counts.renewed++;
    this.#counts.writtenAt = new Date(this.#clock.now());
    this.#tell(() => this.#options.listener?.renewed?.(renewed));
  }

  async #reacquire(signal: AbortSignal): Promise<void> {
    const before = this.#lease!;
    const { subnet, subnet6 } = before;
    const { lease, config } = await this.#acquire({ subnet, ...(subnet6 && { subnet6 }) }, signal, true);
    const { listener } = this.#options;
    if (!sameSubnets(before, lease)) this.#counts.subnetChanges++;
    this.#tell(() => {
      if (sameSubnets(before, lease)) listener?.ownRestored?.(lease);
      else listener?.ownChanged?.(lease, before, config);
    });
    this.#updateContext();
  }

  #lost(state: 'lost' | 'replaced', holder: Lease | undefined): void {
    if (this.#lostTo === state) return;
    this.#lostTo = state;
    this.#counts.lost++;
    this.#tell(() => this.#options.listener?.ownLost?.(this.#lease!, state, holder));
    this.#wake?.();
  }

  /** Follows the store's leases; a watch that breaks is begun again, and nothing is withdrawn meanwhile. */
  async #watch(): Promise<void> {
    const { signal } = this.#closing;
    const backoff = this.#backoff();
    while (!signal.aborted) {
      let fault = new PodwireError('STORE_UNAVAILABLE', `the watch of ${this.#store.description} ended; trying again`);
      try {
        for await (const change of this.#store.watch(signal)) {
          // Whoever has our old subnet shows up the moment we have another: hear of ours first.
          if (change.kind === 'added' && this.#judgedBy && overlap(change.lease, this.#judgedBy)) {
            await this.#reacquiring?.catch(() => undefined);
          }
          if (signal.aborted) return;
          this.#onChange(change);
          if (change.kind === 'snapshot') {
            backoff.reset();
            this.#succeeded('watch');
          }
        }
      } catch (error) {
        fault = asPodwireError(error);
      }
      if (signal.aborted || fault.code === 'CLOSED') return;
      this.#counts.watchFailures++;
      this.#failed('watch', fault);
      await pause(this.#clock, backoff.nextMs(), signal);
    }
  }

  #onChange(change: LeaseChange): void {
    const desired = this.#desired!;
    switch (change.kind) {
      case 'snapshot':
        this.#counts.snapshots++;
        this.#report(desired.replace(change.leases));
        this.#tell(() => this.#options.listener?.snapshotApplied?.(desired.routes));
        return;
      case 'added':
        this.#report(desired.put(change.lease));
        return;
      case 'removed':
        this.#report(desired.remove(change.lease));
        return;
      case 'own':
        // Late news of a subnet we have given up mean nothing.
        if (this.#lease && sameSubnets(change.lease, this.#lease)) {
          this.#lost(change.state, change.state === 'replaced' ? change.lease : undefined);
        }
    }
  }

  #updateContext(): void {
    const own = this.#lease;
    const config = this.#config;
    if (!own || !config) return;
    const { publicIp, publicIpv6 } = this.#attributes;
    const ownAddresses = [publicIp, ...(publicIpv6 ? [publicIpv6] : []), ...this.#ownAddresses];
    const context = { config, own, ownAddresses };
    this.#judgedBy = own;
    if (this.#desired) this.#report(this.#desired.setContext(context));
    else this.#desired = new DesiredRoutes(context);
  }

  #report(difference: RouteDifference): void {
    const { listener } = this.#options;
    this.#counts.routesAdded += difference.added.length;
    this.#counts.routesRemoved += difference.removed.length;
    for (const refused of difference.refused) this.#tell(() => listener?.refused?.(refused));
    for (const route of difference.removed) this.#tell(() => listener?.removed?.(route));
    for (const { route, before } of difference.added) this.#tell(() => listener?.added?.(route, before));
  }

  #onNotice(notice: StoreNotice): void {
    this.#counts.notices[notice.kind] = (this.#counts.notices[notice.kind] ?? 0) + 1;
    if (notice.kind === 'conflict') this.#counts.lastConflict = notice.reason;
    this.#tell(() => this.#options.listener?.notice?.(notice));
    if (notice.kind === 'down') this.#failed('watch', asPodwireError(notice.error));
    if (notice.kind === 'up') this.#succeeded('watch');
  }

  #failed(part: 'watch' | 'lease', fault: PodwireError): void {
    this.#lastError = fault.message;
    const wasOk = this.#failing.size === 0;
    this.#failing.add(part);
    if (wasOk) this.#tell(() => this.#options.listener?.storeDown?.(fault));
  }

  #succeeded(part: 'watch' | 'lease'): void {
    if (!this.#failing.delete(part)) return;
    if (part === 'watch') this.#wake?.();
    if (this.#failing.size === 0) this.#tell(() => this.#options.listener?.storeUp?.());
  }

  /** Monotonic time of the next renewal: a little before the margin, by chance, so that hosts spread out. */
  #renewAtMs(): number {
    const { expiresAt, unconfirmed } = this.#lease!;
    if (unconfirmed) return this.#clock.monotonic();
    if (!expiresAt) return Number.POSITIVE_INFINITY;
    // A wall clock set back since the lease was written must not make it look longer than any lease is.
    const longestMs = this.#options.ttlMs ?? DEFAULT_TTL_MS;
    const leftMs = Math.min(longestMs, Math.max(0, expiresAt.getTime() - this.#clock.now()));
    const marginMs = this.#options.renewMarginMs ?? Math.min(3_600_000, leftMs / 3);
    // A margin longer than the lease's life means as early as is reasonable.
    const untilMarginMs = leftMs > marginMs ? leftMs - marginMs : leftMs / 10;
    const delayMs = Math.max(100, untilMarginMs * (0.9 + this.#random() / 10));
    return this.#clock.monotonic() + delayMs;
  }

  async #sleep(untilMs: number, signal: AbortSignal): Promise<void> {
    const woken = new AbortController();
    this.#wake = () => woken.abort();
    await pause(this.#clock, untilMs - this.#clock.monotonic(), AbortSignal.any([signal, woken.signal]));
    this.#wake = undefined;
  }

  #backoff(): Backoff {
    return new Backoff(this.#options.retry ?? { minMs: 500, maxMs: 30_000 }, this.#random);
  }

  #tell(call: () => void): void {
    try {
      call();
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }
}

function asPodwireError(error: unknown): PodwireError {
  if (error instanceof PodwireError) return error;
  return new PodwireError('STORE_UNAVAILABLE', `the store failed: ${messageOf(error)}`, { cause: error });
}
