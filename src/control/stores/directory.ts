/**
 * The directory store: leases as files, on one machine or on a file system that hosts share.
 *
 * `PATH/config` and `PATH/subnets/<lease key>` have the names and JSON of flannel's etcd layout, so that
 * `etcdctl put /coreos.com/network/subnets/10.5.34.0-24 < 10.5.34.0-24` is all it takes to move. Expiry and owner,
 * which etcd keeps itself, are two more fields (see lease-codec.ts). A file without `Expiration` is a reservation
 * for the host with its PublicIP. How files change without locks is told in lease-files.ts.
 *
 * Expiry compares hosts' wall clocks, so these should agree to within `clockSkewMs`.
 */
import { resolve } from 'node:path';
import { PodwireError } from '../../errors.js';
import { allocate, checkRequest, collides, type Allocation } from '../allocator.js';
import { Backoff, pause, systemClock, throwIfAborted, type Clock } from '../clock.js';
import { encodeLease, tryDecodeLease } from '../lease-codec.js';
import { LeaseFeed } from '../lease-feed.js';
import {
  isExpired,
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
import { DirectoryAdmin } from './directory-admin.js';
import { DirectoryMonitor } from './directory-monitor.js';
import { EntryTable } from './entry-table.js';
import { LeaseFiles } from './lease-files.js';
import { Notices } from './notices.js';

export interface DirectoryStoreOptions {
  /** Life of a lease whose request names none, in milliseconds; default 24 hours. */
  readonly ttlMs?: number;
  /** Time between looks at the directory for what inotify does not report; default 5000. */
  readonly rescanMs?: number;
  /** A lease is treated as live for this long after its expiry, for hosts whose clocks run behind; default 5000. */
  readonly clockSkewMs?: number;
  /** After an outage nothing expires, and nothing is dropped for being absent from a new directory, for this long; default 60000. */
  readonly returnGraceMs?: number;
  /** Whether to listen for change events; default true. False for file systems whose events hang or lie. */
  readonly inotify?: boolean;
  readonly onNotice?: (notice: StoreNotice) => void;
  readonly clock?: Clock;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

/** Races are lost to somebody who got a lease, so they end; this bounds the ones that do not. */
const ACQUIRE_PATIENCE_MS = 90_000;
const QUICK_ATTEMPTS = 8;

/**
 * Opens a directory of leases. Nothing is read or created until the first call; `subnets/` is created by the first
 * acquire, `config` is the operator's.
 */
export function directoryStore(path: string, options: DirectoryStoreOptions = {}): LeaseStore {
  return new DirectoryStore(path, options);
}

class DirectoryStore implements LeaseStore {
  readonly description: string;
  readonly admin: StoreAdmin;
  readonly #files: LeaseFiles;
  readonly #table: EntryTable;
  readonly #monitor: DirectoryMonitor;
  readonly #notices: Notices;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #ttlMs: number;
  readonly #skewMs: number;
  readonly #closing = new AbortController();
  #watches = 0;
  #stopMonitor: AbortController | undefined;
  #monitoring: Promise<void> = Promise.resolve();

  constructor(path: string, options: DirectoryStoreOptions) {
    if (path === '') throw new PodwireError('INVALID_ARGUMENT', 'the directory of the store is empty; give its path');
    this.#files = new LeaseFiles(resolve(path));
    this.description = `directory ${this.#files.path}`;
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#ttlMs = options.ttlMs ?? DEFAULT_TTL_MS;
    this.#skewMs = options.clockSkewMs ?? 5000;
    this.#notices = new Notices(options.onNotice);
    const shared = {
      clock: this.#clock,
      skewMs: this.#skewMs,
      onNotice: this.#notices.emit,
    };
    this.#table = new EntryTable({ ...shared, locate: (name) => this.#files.leasePath(name) });
    this.#monitor = new DirectoryMonitor({
      ...shared,
      files: this.#files,
      table: this.#table,
      random: this.#random,
      rescanMs: options.rescanMs ?? 5000,
      inotify: options.inotify ?? true,
      returnGraceMs: options.returnGraceMs ?? 60_000,
    });
    this.admin = new DirectoryAdmin({
      files: this.#files,
      clock: this.#clock,
      skewMs: this.#skewMs,
      network: () => this.network(),
      check: (signal, what) => this.#check(signal, what),
    });
  }

  async network(signal?: AbortSignal): Promise<NetworkConfig> {
    this.#check(signal, 'reading the network config');
    const text = await this.#files.readConfig();
    if (text !== undefined) return parseNetworkConfig(text);
    const { configPath, path } = this.#files;
    throw new PodwireError(
      'NO_CONFIG',
      `no network config at ${configPath}; create it with: ` +
        `mkdir -p ${path} && echo '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}' > ${configPath}`,
    );
  }

  async acquire(request: AcquireRequest, signal?: AbortSignal): Promise<Lease> {
    const ttlMs = request.ttlMs ?? this.#ttlMs;
    // Other processes race in real time, whatever clock the leases live by.
    const backoff = new Backoff({ minMs: 10, maxMs: 1000 }, this.#random);
    const giveUpMs = systemClock.monotonic() + ACQUIRE_PATIENCE_MS;
    for (let attempt = 1; ; attempt++) {
      this.#check(signal, 'acquiring a lease');
      // Read each time, as flannel does: a network that changes while we wait is the one to ask for.
      const config = await this.network(signal);
      checkRequest(config, { ...request, ttlMs });
      const result = await this.#monitor.exclusive(() => this.#tryAcquire(config, request, ttlMs));
      if (typeof result === 'object') return result;
      if (systemClock.monotonic() >= giveUpMs) {
        throw new PodwireError(
          'STORE_UNAVAILABLE',
          `no lease from ${this.description} after ${attempt} attempts, each lost to another host; try again`,
        );
      }
      if (result === 'collided' || attempt >= QUICK_ATTEMPTS) await pause(systemClock, backoff.nextMs(), signal);
    }
  }

  async renew(lease: Lease, signal?: AbortSignal): Promise<Lease> {
    this.#check(signal, 'renewing a lease');
    return this.#monitor.exclusive(async () => {
      const name = this.#table.nameOf(lease);
      const found = await this.#files.read(name);
      const stored = found.kind === 'text' ? tryDecodeLease(found.file.text) : undefined;
      if (found.kind === 'absent' || (stored && !this.#table.ourTest(name, lease)(stored))) {
        throw this.#lost(name, stored?.attributes);
      }
      const ttlMs = this.#table.ttlOf(name) ?? this.#ttlMs;
      // An operator may have turned the lease into a reservation, or back.
      const isReservation = (stored ?? lease).expiresAt === undefined;
      const renewed = this.#lease(lease, lease, isReservation ? undefined : ttlMs);
      const text = this.#text(renewed);
      const isOurs = this.#isOurs(name, lease);
      const undo = this.#table.claim(name, renewed, ttlMs);
      try {
        // Near its end others may be taking the lease, so that it has to be taken like anybody's.
        const isOver = stored !== undefined && isExpired(stored, this.#clock.now(), -this.#skewMs);
        const done =
          isOver && found.kind === 'text'
            ? await this.#files.take(name, found.file.text, text)
            : (await this.#files.replace(name, isOurs, text)) === 'replaced';
        if (!done) throw this.#lost(name, undefined);
      } catch (error) {
        undo();
        throw error;
      }
      this.#table.observe(name, text, this.#table.epoch);
      this.#table.settle(name, renewed);
      return renewed;
    });
  }

  async release(lease: Lease): Promise<void> {
    this.#check(undefined, 'releasing a lease');
    await this.#monitor.exclusive(async () => {
      const name = this.#table.nameOf(lease);
      const found = await this.#files.read(name);
      const stored = found.kind === 'text' ? tryDecodeLease(found.file.text) : undefined;
      if (found.kind === 'text' && stored?.expiresAt && this.#table.ourTest(name, lease)(stored)) {
        if (isExpired(stored, this.#clock.now(), -this.#skewMs))
          await this.#files.take(name, found.file.text, undefined);
        else await this.#files.remove(name, this.#isOurs(name, lease));
        this.#table.disown(name);
        this.#table.gone(name, this.#table.epoch);
      }
      this.#table.disown(name);
    });
  }

  async *watch(signal: AbortSignal): AsyncIterable<LeaseChange> {
    this.#check(undefined, 'watching leases');
    const feed = new LeaseFeed();
    this.#table.attach(feed);
    if (this.#monitor.hasScanned && this.#watches > 0) feed.start();
    if (this.#watches++ === 0) {
      this.#stopMonitor = new AbortController();
      const stop = this.#stopMonitor.signal;
      this.#monitoring = this.#monitoring.then(() => this.#monitor.run(stop));
    }
    try {
      yield* feed.changes(AbortSignal.any([signal, this.#closing.signal]));
    } finally {
      this.#table.detach(feed);
      if (--this.#watches === 0) this.#stopMonitor?.abort();
    }
  }

  onNotice(listener: (notice: StoreNotice) => void): () => void {
    return this.#notices.add(listener);
  }

  /** Ends all watches. Leases stay held until they expire. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    this.#stopMonitor?.abort();
    await this.#monitoring;
  }

  /** One look and one try. `lost`: somebody else was faster; `collided`: both of us had to give way. */
  async #tryAcquire(
    config: NetworkConfig,
    request: AcquireRequest,
    ttlMs: number,
  ): Promise<Lease | 'lost' | 'collided'> {
    await this.#files.ensureSubnets();
    await this.#monitor.sweep();
    await this.#monitor.refresh();
    const plan = allocate({ config, request, held: this.#table.held(request), random: this.#random });
    for (const lease of plan.conflicts) this.#table.conflict(lease);
    const isReservation = plan.own !== undefined && plan.own.expiresAt === undefined;
    const lease = this.#lease(plan.subnets, request, isReservation ? undefined : ttlMs);
    const name = this.#table.nameOf(lease);
    const undo = this.#table.claim(name, lease, ttlMs);
    try {
      if (!(await this.#write(name, plan, lease))) {
        undo();
        return 'lost';
      }
      await this.#monitor.refresh();
      if (plan.from !== 'own' && collides(lease, this.#table.held(request))) {
        // Two names can share addresses (dual stack, changed SubnetLen). Whoever sees it gives way; both may.
        await this.#files.remove(name, this.#isOurs(name, lease));
        undo();
        this.#table.gone(name, this.#table.epoch);
        return 'collided';
      }
    } catch (error) {
      undo();
      throw error;
    }
    this.#table.settle(name, lease);
    await this.#discard(plan.discard, lease);
    return lease;
  }

  async #write(name: string, plan: Allocation, lease: Lease): Promise<boolean> {
    const text = this.#text(lease);
    if (plan.own) {
      const before = this.#table.get(name)?.text;
      if (plan.ownExpired && before !== undefined) return this.#files.take(name, before, text);
      return (await this.#files.replace(name, this.#isOurs(name, plan.own), text)) === 'replaced';
    }
    let isTaken = false;
    for (const evicted of plan.evict) {
      const theirs = this.#table.nameOf(evicted);
      const before = this.#table.get(theirs)?.text;
      isTaken ||= theirs === name;
      if (before === undefined || !(await this.#files.take(theirs, before, theirs === name ? text : undefined))) {
        return false;
      }
    }
    return isTaken || this.#files.create(name, text);
  }

  /** Leases of ours that the config no longer fits. Best done, but the new lease does not depend on it. */
  async #discard(leases: readonly Lease[], mine: Lease): Promise<void> {
    for (const lease of leases) {
      const name = this.#table.nameOf(lease);
      const removed = await this.#files.remove(name, this.#isOurs(name, mine)).catch(() => false);
      if (removed) this.#table.gone(name, this.#table.epoch);
    }
  }

  #lease(subnets: LeaseSubnets, from: Pick<AcquireRequest, 'attributes' | 'owner'>, ttlMs: number | undefined): Lease {
    return {
      subnet: subnets.subnet,
      ...(subnets.subnet6 && { subnet6: subnets.subnet6 }),
      attributes: from.attributes,
      ...(ttlMs !== undefined && { expiresAt: new Date(this.#clock.now() + ttlMs) }),
      ...(from.owner !== undefined && { owner: from.owner }),
    };
  }

  #text(lease: Lease): string {
    return encodeLease(lease.attributes, { expiresAt: lease.expiresAt, owner: lease.owner });
  }

  /** Whether a file under our name may be overwritten: it is ours, or says nothing that anybody could rely on. */
  #isOurs(name: string, lease: Lease): (text: string) => boolean {
    const isOurs = this.#table.ourTest(name, lease);
    return (text) => {
      const stored = tryDecodeLease(text);
      return stored === undefined || isOurs(stored);
    };
  }

  #lost(name: string, holder: Lease['attributes'] | undefined): PodwireError {
    const what = holder ? `is now held by ${holder.publicIp.toString()}` : 'is gone';
    return new PodwireError('LEASE_LOST', `lease ${name} in ${this.description} ${what}; acquire it again`);
  }

  #check(signal: AbortSignal | undefined, what: string): void {
    if (this.#closing.signal.aborted) throw new PodwireError('CLOSED', `${what}: ${this.description} is closed`);
    throwIfAborted(signal, what);
  }
}
