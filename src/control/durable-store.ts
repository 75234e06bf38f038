/**
 * A lease store that this host can start without: everything the store says is kept in a {@link LeaseTable} on disk,
 * and while the store itself is away at the start, the table answers in its place.
 *
 * Only a store that cannot be reached is stood in for, or one without a network config that had one before: a directory
 * that is not mounted, a store that has lost its data. What else it says counts, also "out of subnets". A lease from the table is `unconfirmed`: it is renewed at once, and renewing it acquires it anew.
 */
import { messageOf, PodwireError } from '../errors.js';
import type { Prefix } from '../net/prefix.js';
import { type Clock, pause, systemClock, untilAborted } from './clock.js';
import { leaseKey } from './lease-key.js';
import { type LeaseTable, readLeaseTable, writeLeaseTable } from './lease-table.js';
import {
  type AcquireRequest,
  belongsTo,
  type Lease,
  type LeaseChange,
  type LeaseStore,
  sameSubnets,
  type StoreNotice,
  subnetsOf,
} from './lease.js';
import { type NetworkConfig, networksOf } from './network-config.js';
import { Notices } from './stores/notices.js';

export interface DurableStoreOptions {
  /** Stays the caller's. */
  readonly store: LeaseStore;
  /** The lease table's file. */
  readonly path: string;
  /** Faults that waiting does not mend: for these the table does not stand in. */
  readonly isLasting?: (error: PodwireError) => boolean;
  /** How long a store that does not answer is waited for before the table stands in; default 2 s. */
  readonly patienceMs?: number;
  readonly clock?: Clock;
}

const PATIENCE_MS = 2_000;
/** Least time between two writes of the table; a large table is written at most a fiftieth of the time. */
const WRITE_PAUSE_MS = 1_000;
const WRITE_PAUSE_FACTOR = 50;

export class DurableStore implements LeaseStore {
  readonly #store: LeaseStore;
  readonly #path: string;
  readonly #clock: Clock;
  readonly #patienceMs: number;
  readonly #isLasting: (error: PodwireError) => boolean;
  readonly #notices = new Notices();
  /** As read at the start; what stands in. */
  readonly #table: LeaseTable | undefined;
  readonly #leases = new Map<string, Lease>();
  #config: NetworkConfig | undefined;
  #own: Lease | undefined;
  /** The acquire that the table answered and the store has not heard of. */
  #unconfirmed: AcquireRequest | undefined;
  /** The store's leases are known: the table on disk may be replaced. */
  #isComplete = false;
  #isStandingIn = false;
  #cancelWrite: (() => void) | undefined;
  #writing: Promise<void> = Promise.resolve();
  #lastFault = '';
  #restUntilMs = 0;

  private constructor(options: DurableStoreOptions, table: LeaseTable | undefined) {
    this.#store = options.store;
    this.#path = options.path;
    this.#clock = options.clock ?? systemClock;
    this.#patienceMs = options.patienceMs ?? PATIENCE_MS;
    this.#isLasting = options.isLasting ?? (() => false);
    this.#table = table;
    for (const lease of table?.leases ?? []) this.#leases.set(leaseKey(lease), lease);
    this.#config = table?.config;
    this.#own = table?.own;
  }

  /** Reads the table. One that is damaged or of another store is not used, and `warn` hears why. */
  static async open(options: DurableStoreOptions, warn: (reason: string) => void): Promise<DurableStore> {
    let table: LeaseTable | undefined;
    try {
      table = await readLeaseTable(options.path);
    } catch (error) {
      warn(messageOf(error));
    }
    if (table !== undefined && table.store !== options.store.description) {
      warn(`the lease table ${options.path} is of another store (${table.store}) and not used`);
      table = undefined;
    }
    return new DurableStore(options, table);
  }

  get description(): string {
    return this.#store.description;
  }

  /** When the table in use was saved; undefined while the store answers for itself. */
  get standingInSince(): Date | undefined {
    return this.#isStandingIn ? this.#table?.savedAt : undefined;
  }

  async network(signal?: AbortSignal): Promise<NetworkConfig> {
    const config = await this.#ask(
      (limit) => this.#store.network(limit),
      this.#isComplete ? undefined : this.#table?.config,
      signal,
    );
    this.#config = config;
    this.#changed();
    return config;
  }

  async acquire(request: AcquireRequest, signal?: AbortSignal): Promise<Lease> {
    const kept = request.isServing || this.#isComplete ? undefined : this.#keptLease(request);
    const lease = await this.#ask((limit) => this.#store.acquire(request, limit), kept, signal);
    this.#unconfirmed = lease === kept ? request : undefined;
    this.#own = lease;
    this.#changed();
    return lease;
  }

  async renew(lease: Lease, signal?: AbortSignal): Promise<Lease> {
    const request = this.#unconfirmed;
    const renewed =
      request === undefined
        ? await this.#store.renew(lease, signal)
        : await this.#confirm(lease, { ...request, attributes: lease.attributes }, signal);
    this.#own = renewed;
    this.#changed();
    return renewed;
  }

  async release(lease: Lease): Promise<void> {
    await this.#store.release(lease);
    this.#own = undefined;
    this.#changed();
  }

  async *watch(signal: AbortSignal): AsyncIterable<LeaseChange> {
    const inner = this.#store.watch(signal)[Symbol.asyncIterator]();
    try {
      let next = inner.next();
      next.catch(() => undefined);
      if (this.#table !== undefined && !this.#isComplete && !(await this.#answersSoon(next, signal))) {
        this.#standIn();
        yield { kind: 'snapshot', leases: [...this.#leases.values()] };
      }
      for (;;) {
        const step = await next;
        if (step.done) return;
        const change = this.#learn(step.value);
        if (change !== undefined) yield change;
        next = inner.next();
        next.catch(() => undefined);
      }
    } finally {
      await inner.return?.();
    }
  }

  onNotice(listener: (notice: StoreNotice) => void): () => void {
    const own = this.#notices.add(listener);
    const theirs = this.#store.onNotice?.(listener);
    return () => {
      own();
      theirs?.();
    };
  }

  /** Writes what is not yet written. The store is not closed. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#cancelWrite !== undefined) {
      this.#cancelWrite();
      this.#cancelWrite = undefined;
      this.#writing = this.#writing.then(() => this.#write());
    }
    await this.#writing;
  }

  /** Ends without writing: a start that failed leaves the table as it was. */
  async discard(): Promise<void> {
    this.#cancelWrite?.();
    this.#cancelWrite = undefined;
    await this.#writing;
  }

  /** Our lease as the table has it, in the subnet that pods live in now. */
  #keptLease(request: AcquireRequest): Lease | undefined {
    const own = this.#table?.own;
    if (own === undefined || this.#table === undefined) return undefined;
    if (!belongsTo(own, request)) return undefined;
    const ours: Lease = { ...own, attributes: request.attributes, unconfirmed: true };
    const { subnet, subnet6 } = request.previous ?? {};
    const before: Lease = {
      ...ours,
      ...(isLike(subnet, own.subnet) ? { subnet } : {}),
      ...(own.subnet6 !== undefined && isLike(subnet6, own.subnet6) ? { subnet6 } : {}),
    };
    const networks = networksOf(this.#table.config);
    return subnetsOf(before).every((prefix) => networks.some((network) => network.contains(prefix))) ? before : ours;
  }

  /** The store is asked to give us what we serve already. */
  async #confirm(lease: Lease, request: AcquireRequest, signal?: AbortSignal): Promise<Lease> {
    const { subnet, subnet6 } = lease;
    const previous = { subnet, ...(subnet6 === undefined ? {} : { subnet6 }) };
    const acquired = await this.#store.acquire({ ...request, previous, isServing: true }, signal);
    this.#unconfirmed = undefined;
    if (sameSubnets(acquired, lease)) return acquired;
    // Found again, and taken from there, by the acquire that follows.
    throw new PodwireError(
      'LEASE_LOST',
      `lease ${leaseKey(lease)} went to somebody else while the store was away; acquire it again`,
    );
  }

  /** What the store says, or `kept` when it cannot be reached in time. */
  async #ask<T>(call: (signal: AbortSignal) => Promise<T>, kept: T | undefined, signal?: AbortSignal): Promise<T> {
    // The host has waited for the first answer already.
    if (kept !== undefined && this.#isStandingIn) return kept;
    if (kept === undefined) return call(signal ?? new AbortController().signal);
    const limit = new AbortController();
    const both = signal === undefined ? limit.signal : AbortSignal.any([signal, limit.signal]);
    const cancel = this.#clock.timer(() => limit.abort(), this.#patienceMs, 'background');
    try {
      return await untilAborted(call(both), both, `asking ${this.#store.description}`);
    } catch (error) {
      if (signal?.aborted || !(error instanceof PodwireError)) throw error;
      const isAway = isAbsence(error) || (error.code === 'ABORTED' && limit.signal.aborted);
      if (!isAway || this.#isLasting(error)) throw error;
      this.#standIn(error.code === 'ABORTED' ? undefined : error);
      return kept;
    } finally {
      cancel();
    }
  }

  async #answersSoon(first: Promise<unknown>, signal: AbortSignal): Promise<boolean> {
    if (this.#isStandingIn) return false;
    const done = new AbortController();
    try {
      return await Promise.race([
        first.then(
          () => true,
          () => false,
        ),
        pause(this.#clock, this.#patienceMs, AbortSignal.any([signal, done.signal])).then(() => signal.aborted),
      ]);
    } finally {
      done.abort();
    }
  }

  #standIn(error?: PodwireError): void {
    if (this.#isStandingIn || this.#table === undefined) return;
    this.#isStandingIn = true;
    const why = error === undefined ? `${this.#store.description} does not answer` : error.message;
    this.#notices.emit({
      kind: 'degraded',
      reason: `starting without the store (${why}): forwarding by the lease table ${this.#path} of ${this.#table.savedAt.toISOString()}, ${this.#leases.size} leases`,
    });
  }

  /** Follows the table of leases; what we hold without the store's knowledge is nobody else's. */
  #learn(change: LeaseChange): LeaseChange | undefined {
    switch (change.kind) {
      case 'snapshot': {
        const leases = change.leases.filter((lease) => !this.#isOurs(lease));
        this.#leases.clear();
        for (const lease of leases) this.#leases.set(leaseKey(lease), lease);
        this.#isComplete = true;
        this.#isStandingIn = false;
        this.#changed();
        return { kind: 'snapshot', leases };
      }
      case 'added':
        if (this.#isOurs(change.lease)) return undefined;
        this.#leases.set(leaseKey(change.lease), change.lease);
        break;
      case 'removed':
        this.#leases.delete(leaseKey(change.lease));
        break;
      case 'own':
        return change;
    }
    this.#changed();
    return change;
  }

  #isOurs(lease: Lease): boolean {
    const request = this.#unconfirmed;
    return (
      request !== undefined && this.#own !== undefined && sameSubnets(lease, this.#own) && belongsTo(lease, request)
    );
  }

  #changed(): void {
    if (this.#cancelWrite !== undefined || !this.#isComplete) return;
    const restMs = this.#restUntilMs - this.#clock.monotonic();
    this.#cancelWrite = this.#clock.timer(
      () => {
        this.#cancelWrite = undefined;
        this.#writing = this.#writing.then(() => this.#write());
      },
      Math.max(WRITE_PAUSE_MS, restMs),
      'background',
    );
  }

  async #write(): Promise<void> {
    const config = this.#config;
    if (config === undefined) return;
    const startMs = this.#clock.monotonic();
    try {
      await writeLeaseTable(this.#path, {
        store: this.#store.description,
        savedAt: new Date(this.#clock.now()),
        config,
        ...(this.#own === undefined ? {} : { own: this.#own }),
        leases: [...this.#leases.values()],
      });
      this.#lastFault = '';
    } catch (error) {
      // Said once for each reason; the next change tries again.
      if (messageOf(error) !== this.#lastFault) this.#notices.emit({ kind: 'degraded', reason: messageOf(error) });
      this.#lastFault = messageOf(error);
    }
    this.#restUntilMs = startMs + (this.#clock.monotonic() - startMs) * WRITE_PAUSE_FACTOR;
  }
}

function isAbsence({ code }: PodwireError): boolean {
  return code === 'STORE_UNAVAILABLE' || code === 'NO_CONFIG';
}

/** Whether an earlier subnet can stand in the place of `own`. */
function isLike(subnet: Prefix | undefined, own: Prefix): subnet is Prefix {
  return subnet !== undefined && subnet.family === own.family && subnet.length === own.length;
}
