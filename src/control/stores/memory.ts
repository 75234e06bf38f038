/**
 * Leases in memory: for tests, simulations and embedders on one machine. `MemoryStoreServer` is the store itself (what
 * etcd or the directory is to the others), `open()` a client on one host. Faults are injected at the server, where
 * real ones happen: calls that fail, calls that are done although the answer is lost, cut-off clients, junk values.
 */
import { PodwireError } from '../../errors.js';
import { allocate, checkRequest, collides, type Allocation } from '../allocator.js';
import { pause, systemClock, throwIfAborted, type Clock } from '../clock.js';
import { encodeLease, tryDecodeLease } from '../lease-codec.js';
import { LeaseFeed } from '../lease-feed.js';
import { tryParseLeaseKey } from '../lease-key.js';
import {
  belongsTo,
  DEFAULT_TTL_MS,
  type AcquireRequest,
  type Lease,
  type LeaseChange,
  type LeaseStore,
  type LeaseSubnets,
  type StoreAdmin,
  type StoreNotice,
} from '../lease.js';
import { parseNetworkConfig, type NetworkConfig } from '../network-config.js';
import { checkReservation } from '../reservation.js';
import { EntryTable } from './entry-table.js';
import { Notices } from './notices.js';

export type MemoryOperation = 'network' | 'list' | 'write';

/** What happens to one call: nothing, it fails before it has done anything, or it is done and its answer lost. */
export type MemoryFault = 'none' | 'fail' | 'lost-reply';

export interface MemoryStoreServerOptions {
  /** The text of the network config; absent as on a fresh store. */
  readonly config?: string;
  readonly clock?: Clock;
  /** Asked before every call. */
  readonly fault?: (operation: MemoryOperation, client: string) => MemoryFault;
  /** Time every call takes, in milliseconds of the clock; default 0. */
  readonly latencyMs?: () => number;
}

export interface MemoryStoreOptions {
  /** Names the client to `fault` and `partition`. */
  readonly name?: string;
  readonly ttlMs?: number;
  readonly random?: () => number;
  readonly onNotice?: (notice: StoreNotice) => void;
}

/** An in-memory store with clients of its own: `await using store = memoryStore({ config })`. */
export function memoryStore(options: MemoryStoreServerOptions & MemoryStoreOptions = {}): LeaseStore {
  return new MemoryStoreServer(options).open(options);
}

export class MemoryStoreServer {
  /** The network config's text; assign to change it. */
  config: string | undefined;
  readonly clock: Clock;
  readonly #options: MemoryStoreServerOptions;
  readonly #values = new Map<string, string>();
  readonly #timers = new Map<string, () => void>();
  readonly #clients = new Set<MemoryStore>();
  readonly #partitioned = new Set<string>();
  #opened = 0;

  constructor(options: MemoryStoreServerOptions = {}) {
    this.#options = options;
    this.config = options.config;
    this.clock = options.clock ?? systemClock;
  }

  /** A client, as on one more host. */
  open(options: MemoryStoreOptions = {}): LeaseStore {
    const client = new MemoryStore(this, options.name ?? `client${++this.#opened}`, options);
    this.#clients.add(client);
    return client;
  }

  /** Stored values by key. */
  entries(): ReadonlyMap<string, string> {
    return this.#values;
  }

  /** Writes any value under any key, as an operator or a broken host could. */
  put(key: string, value: string): void {
    this.#timers.get(key)?.();
    this.#timers.delete(key);
    this.#values.set(key, value);
    const endsMs = expiryOf(value);
    // The store expires leases by its own clock's durations, as etcd does: nobody's wall clock matters later.
    if (endsMs !== undefined) {
      this.#timers.set(
        key,
        this.clock.timer(() => this.delete(key), endsMs - this.clock.now(), 'background'),
      );
    }
    this.#tell(key);
  }

  delete(key: string): boolean {
    this.#timers.get(key)?.();
    this.#timers.delete(key);
    const existed = this.#values.delete(key);
    if (existed) this.#tell(key);
    return existed;
  }

  /** Cuts a client off: its calls fail and it hears of nothing. */
  partition(client: string): void {
    this.#partitioned.add(client);
    for (const each of this.#clients) if (each.name === client) each.cutOff();
  }

  /** Ends a partition: the client catches up at once. */
  heal(client: string): void {
    this.#partitioned.delete(client);
    for (const each of this.#clients) if (each.name === client) each.catchUp();
  }

  isPartitioned(client: string): boolean {
    return this.#partitioned.has(client);
  }

  /** Runs one call of a client with whatever fault is due. Internal to this file's client. */
  async call<T>(operation: MemoryOperation, client: string, run: () => T): Promise<T> {
    const latencyMs = this.#options.latencyMs?.() ?? 0;
    if (latencyMs > 0) await pause(this.clock, latencyMs);
    const fault = this.#partitioned.has(client) ? 'fail' : (this.#options.fault?.(operation, client) ?? 'none');
    if (fault === 'fail') throw unavailable(operation, 'the store does not answer');
    const result = run();
    if (fault === 'lost-reply') throw unavailable(operation, 'the answer was lost');
    return result;
  }

  forget(client: MemoryStore): void {
    this.#clients.delete(client);
  }

  #tell(key: string): void {
    for (const client of this.#clients) if (!this.#partitioned.has(client.name)) client.hear(key);
  }
}

class MemoryStore implements LeaseStore {
  readonly name: string;
  readonly description: string;
  readonly #server: MemoryStoreServer;
  readonly #table: EntryTable;
  readonly #notices: Notices;
  readonly #random: () => number;
  readonly #ttlMs: number;
  readonly #closing = new AbortController();
  #isDown = false;

  constructor(server: MemoryStoreServer, name: string, options: MemoryStoreOptions) {
    this.#server = server;
    this.name = name;
    this.description = `memory (${name})`;
    this.#random = options.random ?? Math.random;
    this.#ttlMs = options.ttlMs ?? DEFAULT_TTL_MS;
    this.#notices = new Notices(options.onNotice);
    this.#table = new EntryTable({
      clock: server.clock,
      // The server removes what has run out; until it does, a lease is there.
      skewMs: Number.POSITIVE_INFINITY,
      onNotice: this.#notices.emit,
      locate: (key) => key,
    });
  }

  async network(signal?: AbortSignal): Promise<NetworkConfig> {
    this.#check(signal, 'reading the network config');
    return this.#config(await this.#server.call('network', this.name, () => this.#server.config));
  }

  async acquire(request: AcquireRequest, signal?: AbortSignal): Promise<Lease> {
    for (;;) {
      this.#check(signal, 'acquiring a lease');
      const config = await this.network(signal);
      checkRequest(config, request);
      await this.#server.call('list', this.name, () => this.catchUp());
      const plan = allocate({ config, request, held: this.#table.held(request), random: this.#random });
      for (const lease of plan.conflicts) this.#table.conflict(lease);
      const lease = await this.#write(plan, request);
      if (lease) return lease;
    }
  }

  async renew(lease: Lease, signal?: AbortSignal): Promise<Lease> {
    this.#check(signal, 'renewing a lease');
    const name = this.#table.nameOf(lease);
    return this.#server.call('write', this.name, () => {
      const present = this.#server.entries().get(name);
      const stored = present === undefined ? undefined : tryDecodeLease(present);
      if (present === undefined || (stored && !this.#table.ourTest(name, lease)(stored))) {
        const what = stored ? `is now held by ${stored.attributes.publicIp.toString()}` : 'is gone';
        throw new PodwireError('LEASE_LOST', `lease ${name} ${what}; acquire it again`);
      }
      const ttlMs = this.#table.ttlOf(name) ?? this.#ttlMs;
      const isReservation = (stored ?? lease).expiresAt === undefined;
      const { expiresAt: _before, unconfirmed: _cached, ...rest } = lease;
      return this.#put(name, { ...rest, ...this.#expiry(isReservation ? undefined : ttlMs) }, ttlMs);
    });
  }

  async release(lease: Lease): Promise<void> {
    this.#check(undefined, 'releasing a lease');
    const name = this.#table.nameOf(lease);
    await this.#server.call('write', this.name, () => {
      const present = this.#server.entries().get(name);
      const stored = present === undefined ? undefined : tryDecodeLease(present);
      if (stored?.expiresAt && this.#table.ourTest(name, lease)(stored)) {
        this.#table.disown(name);
        this.#server.delete(name);
      }
      this.#table.disown(name);
    });
  }

  async *watch(signal: AbortSignal): AsyncIterable<LeaseChange> {
    this.#check(undefined, 'watching leases');
    const feed = new LeaseFeed();
    this.#table.attach(feed);
    if (this.#server.isPartitioned(this.name)) this.cutOff();
    else this.catchUp();
    try {
      yield* feed.changes(AbortSignal.any([signal, this.#closing.signal]));
    } finally {
      this.#table.detach(feed);
    }
  }

  readonly admin: StoreAdmin = {
    list: (signal) => {
      return this.#call('list', 'listing the leases', signal, () => this.#stored().flatMap(({ lease }) => lease ?? []));
    },
    reserve: (subnets, attributes) => {
      return this.#call('write', 'reserving a subnet', undefined, () => {
        const held = this.#stored();
        const others = held.map(({ name, lease, ...entry }) => {
          return { ...entry, path: name, attributes: lease?.attributes };
        });
        checkReservation(this.#config(this.#server.config), subnets, attributes, others);
        const name = this.#table.nameOf(subnets);
        const { expiresAt: _ends, ...lease } = held.find((each) => each.name === name)?.lease ?? {
          ...subnets,
          attributes,
        };
        this.#server.put(name, encodeLease(lease.attributes, lease));
        return lease;
      });
    },
    remove: (subnets) => {
      return this.#call('write', 'removing a lease', undefined, () => this.#server.delete(this.#table.nameOf(subnets)));
    },
    readConfig: (signal) => {
      return this.#call('network', 'reading the network config', signal, () => this.#server.config);
    },
    writeConfig: (json) => {
      return this.#call('write', 'writing the network config', undefined, () => {
        parseNetworkConfig(json);
        this.#server.config = json;
      });
    },
  };

  onNotice(listener: (notice: StoreNotice) => void): () => void {
    return this.#notices.add(listener);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    this.#server.forget(this);
  }

  /** One key has changed at the server. */
  hear(key: string): void {
    const value = this.#server.entries().get(key);
    if (value === undefined) this.#table.gone(key, this.#table.epoch);
    else this.#table.observe(key, value, this.#table.epoch);
  }

  /** Compares everything with the server, as after a break. */
  catchUp(): void {
    const { epoch } = this.#table;
    const values = this.#server.entries();
    this.#table.forgetForeign(new Set(values.keys()));
    for (const [key, value] of values) this.#table.observe(key, value, epoch);
    for (const key of this.#table.names()) if (!values.has(key)) this.#table.gone(key, epoch);
    this.#table.startFeeds();
    if (!this.#isDown) return;
    this.#isDown = false;
    this.#notices.emit({ kind: 'up', reason: `${this.description} answers again` });
  }

  cutOff(): void {
    if (this.#isDown) return;
    this.#isDown = true;
    const error = unavailable('list', 'the store does not answer');
    this.#notices.emit({ kind: 'down', reason: `${error.message}; known leases stay in force`, error });
  }

  async #write(plan: Allocation, request: AcquireRequest): Promise<Lease | undefined> {
    const ttlMs = request.ttlMs ?? this.#ttlMs;
    const isReservation = plan.own !== undefined && plan.own.expiresAt === undefined;
    const lease: Lease = {
      subnet: plan.subnets.subnet,
      ...(plan.subnets.subnet6 && { subnet6: plan.subnets.subnet6 }),
      attributes: request.attributes,
      ...this.#expiry(isReservation ? undefined : ttlMs),
      ...(request.owner !== undefined && { owner: request.owner }),
    };
    const name = this.#table.nameOf(lease);
    return this.#server.call('write', this.name, () => {
      // Others may have written since the list: one call is one transaction, so it is enough to look again.
      const present = this.#server.entries().get(name);
      const stored = present === undefined ? undefined : tryDecodeLease(present);
      if (present !== undefined && !(plan.own && (!stored || belongsTo(stored, lease)))) return undefined;
      this.catchUp();
      if (!plan.own && collides(lease, this.#table.held(request))) return undefined;
      const written = this.#put(name, lease, ttlMs);
      for (const old of plan.discard) this.#server.delete(this.#table.nameOf(old));
      return written;
    });
  }

  #put(name: string, lease: Lease, ttlMs: number): Lease {
    this.#table.claim(name, lease, ttlMs);
    this.#server.put(name, encodeLease(lease.attributes, { expiresAt: lease.expiresAt, owner: lease.owner }));
    this.#table.settle(name, lease);
    return lease;
  }

  async #call<T>(operation: MemoryOperation, what: string, signal: AbortSignal | undefined, run: () => T): Promise<T> {
    this.#check(signal, what);
    return this.#server.call(operation, this.name, run);
  }

  #config(text: string | undefined): NetworkConfig {
    if (text !== undefined) return parseNetworkConfig(text);
    throw new PodwireError('NO_CONFIG', 'the memory store has no network config: pass one as its option `config`');
  }

  /** Everything under a lease key, in byte order; without `lease` what cannot be read. */
  #stored(): (LeaseSubnets & { readonly name: string; readonly lease?: Lease })[] {
    return [...this.#server.entries()]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .flatMap(([name, value]) => {
        const subnets = tryParseLeaseKey(name);
        const stored = tryDecodeLease(value);
        return subnets ? [{ ...subnets, name, ...(stored && { lease: { ...subnets, ...stored } }) }] : [];
      });
  }

  #expiry(ttlMs: number | undefined): { expiresAt?: Date } {
    return ttlMs === undefined ? {} : { expiresAt: new Date(this.#server.clock.now() + ttlMs) };
  }

  #check(signal: AbortSignal | undefined, what: string): void {
    if (this.#closing.signal.aborted) throw new PodwireError('CLOSED', `${what}: ${this.description} is closed`);
    throwIfAborted(signal, what);
  }
}

function expiryOf(value: string): number | undefined {
  return tryDecodeLease(value)?.expiresAt?.getTime();
}

function unavailable(operation: MemoryOperation, why: string): PodwireError {
  const what = { network: 'read the network config', list: 'list leases', write: 'write a lease' }[operation];
  return new PodwireError('STORE_UNAVAILABLE', `cannot ${what} in memory: ${why}; try again`);
}
