/**
 * The etcd v3 store: leases where flanneld keeps them, so that hosts of both kinds share one network.
 *
 * `<prefix>/config` and `<prefix>/subnets/<lease key>` are flannel's, byte for byte; `Expiration` and `Owner` are two
 * more fields of a lease's value that flanneld skips. A key without an etcd lease is a reservation and stays one.
 * How the conditions of every write keep hosts apart is told in etcd/leases.ts, how an outage is lived through in
 * etcd/watch.ts, and how an endpoint is chosen in etcd/transport.ts.
 */
import { PodwireError } from '../../errors.js';
import { systemClock, throwIfAborted, type Clock } from '../clock.js';
import { LeaseFeed } from '../lease-feed.js';
import {
  DEFAULT_TTL_MS,
  type AcquireRequest,
  type Lease,
  type LeaseChange,
  type LeaseStore,
  type StoreAdmin,
  type StoreMetrics,
  type StoreNotice,
} from '../lease.js';
import type { NetworkConfig } from '../network-config.js';
import { etcdAdmin } from './etcd/admin.js';
import { toPodwireError } from './etcd/faults.js';
import { EtcdKeys } from './etcd/keys.js';
import { EtcdLeases } from './etcd/leases.js';
import { checkCredentials, parseEndpoints, safetyRemarks, TlsFiles } from './etcd/settings.js';
import { EtcdTransport } from './etcd/transport.js';
import { EtcdView } from './etcd/view.js';
import { EtcdWatch } from './etcd/watch.js';
import { Notices } from './notices.js';

export interface EtcdStoreOptions {
  /**
   * `http://host:port` or `https://host:port`, one or more of one cluster. `host:port` alone uses TLS when there is a
   * client certificate, as in flannel; `http://` never does.
   */
  readonly endpoints: readonly string[];
  /** Where flannel's tree is; default `/coreos.com/network`. */
  readonly prefix?: string;
  /** PEM file of the authorities that may sign the servers' certificates; default: the well-known ones. */
  readonly caFile?: string;
  /** PEM files of the client's certificate and key, both or neither. Read again when they have changed. */
  readonly certFile?: string;
  readonly keyFile?: string;
  readonly username?: string;
  readonly password?: string;
  /** Life of a lease whose request names none, in milliseconds; default 24 hours, flannel's constant. */
  readonly ttlMs?: number;
  /** How long one request may take, fail-over included, in milliseconds; default 5000. */
  readonly requestTimeoutMs?: number;
  /** How long a watch may be quiet before it is asked whether it still works, in milliseconds; default 5000. */
  readonly progressMs?: number;
  readonly onNotice?: (notice: StoreNotice) => void;
  /** What expiries are computed with; everything about the network runs in real time. */
  readonly clock?: Clock;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

/**
 * Opens a client of an etcd cluster (3.4 or later). Nothing is sent before the first call.
 * @throws PodwireError INVALID_ARGUMENT for options that cannot work: endpoints, prefix, certificate files.
 */
export function etcdStore(options: EtcdStoreOptions): LeaseStore {
  return new EtcdStore(options);
}

class EtcdStore implements LeaseStore {
  readonly description: string;
  readonly admin: StoreAdmin;
  readonly #transport: EtcdTransport;
  readonly #view: EtcdView;
  readonly #leases: EtcdLeases;
  readonly #watch: EtcdWatch;
  readonly #notices: Notices;
  readonly #username: string | undefined;
  readonly #closing = new AbortController();
  /** Said with the first watch, when whoever wants notices listens. */
  #remarks: readonly string[];
  #conflicts = 0;
  #watches = 0;
  #stopWatch: AbortController | undefined;
  #watching: Promise<void> = Promise.resolve();

  constructor(options: EtcdStoreOptions) {
    const { clock = systemClock, random = Math.random, requestTimeoutMs = 5_000 } = options;
    const keys = new EtcdKeys(options.prefix);
    const endpoints = parseEndpoints(options);
    checkCredentials(options);
    for (const name of ['requestTimeoutMs', 'progressMs', 'ttlMs'] as const) checkDuration(name, options[name]);
    this.#remarks = safetyRemarks(options, endpoints);
    const usesTls = endpoints.some(({ isTls }) => isTls);
    const tls = usesTls ? new TlsFiles(options) : undefined;
    this.description = `etcd ${endpoints.map(({ url }) => url).join(',')} ${keys.prefix}`;
    this.#username = options.username === '' ? undefined : options.username;
    this.#notices = new Notices(options.onNotice);
    this.#notices.add(({ kind }) => {
      if (kind === 'conflict') this.#conflicts++;
    });
    const password = this.#username === undefined ? undefined : options.password;
    this.#transport = new EtcdTransport({
      endpoints,
      tls,
      username: this.#username,
      password,
      requestTimeoutMs,
      random,
    });
    const { description } = this;
    const onNotice = this.#notices.emit;
    this.#view = new EtcdView({ keys, clock, onNotice, description });
    const shared = { transport: this.#transport, view: this.#view, keys, clock, random, description };
    this.#leases = new EtcdLeases({ ...shared, ttlMs: options.ttlMs ?? DEFAULT_TTL_MS });
    const { progressMs = 5_000 } = options;
    this.#watch = new EtcdWatch({ ...shared, requestTimeoutMs, progressMs, username: this.#username, onNotice });
    this.admin = etcdAdmin({
      ...shared,
      leases: this.#leases,
      call: (what, signal, run) => this.#call(what, signal, run),
    });
  }

  network(signal?: AbortSignal): Promise<NetworkConfig> {
    return this.#call('read the network config', signal, async (both) => {
      return this.#leases.parseConfig(await this.#leases.readConfig(both));
    });
  }

  acquire(request: AcquireRequest, signal?: AbortSignal): Promise<Lease> {
    return this.#call('acquire a lease', signal, (both) => this.#leases.acquire(request, both));
  }

  renew(lease: Lease, signal?: AbortSignal): Promise<Lease> {
    return this.#call('renew a lease', signal, (both) => this.#leases.renew(lease, both));
  }

  release(lease: Lease): Promise<void> {
    return this.#call('release a lease', undefined, () => this.#leases.release(lease));
  }

  async *watch(signal: AbortSignal): AsyncIterable<LeaseChange> {
    this.#check(undefined, 'watching leases');
    for (const reason of this.#remarks) this.#notices.emit({ kind: 'degraded', reason });
    this.#remarks = [];
    const feed = new LeaseFeed();
    const { table } = this.#view;
    table.attach(feed);
    if (this.#watch.hasList && this.#watches > 0) feed.start();
    if (this.#watches++ === 0) {
      this.#stopWatch = new AbortController();
      const stop = this.#stopWatch.signal;
      this.#watching = this.#watching.then(() => this.#watch.run(stop));
    }
    try {
      yield* feed.changes(AbortSignal.any([signal, this.#closing.signal]));
    } finally {
      table.detach(feed);
      if (--this.#watches === 0) this.#stopWatch?.abort();
    }
  }

  onNotice(listener: (notice: StoreNotice) => void): () => void {
    return this.#notices.add(listener);
  }

  metrics(): StoreMetrics {
    const { reconnects, resyncs, events } = this.#watch;
    return {
      ...this.#transport.counters,
      reconnects,
      resyncs,
      events,
      skippedEvents: this.#view.skipped,
      conflicts: this.#conflicts,
    };
  }

  /** Ends all watches and connections. Leases stay held until they expire. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort();
    this.#stopWatch?.abort();
    await this.#watching;
    this.#transport.close();
  }

  /** Runs a call with a signal that also ends it when the store is closed, and says its faults as PodwireErrors. */
  async #call<T>(what: string, signal: AbortSignal | undefined, run: (signal: AbortSignal) => Promise<T>): Promise<T> {
    this.#check(signal, what);
    const call = new AbortController();
    const onAbort = (): void => call.abort();
    const signals = signal ? [signal, this.#closing.signal] : [this.#closing.signal];
    for (const each of signals) each.addEventListener('abort', onAbort, { once: true });
    try {
      return await run(call.signal);
    } catch (error) {
      if (!(error instanceof PodwireError)) this.#check(signal, what);
      throw toPodwireError(error, what, { username: this.#username });
    } finally {
      for (const each of signals) each.removeEventListener('abort', onAbort);
    }
  }

  #check(signal: AbortSignal | undefined, what: string): void {
    if (this.#closing.signal.aborted) throw new PodwireError('CLOSED', `cannot ${what}: ${this.description} is closed`);
    throwIfAborted(signal, what);
  }
}

function checkDuration(name: string, ms: number | undefined): void {
  if (ms === undefined || (Number.isFinite(ms) && ms > 0)) return;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `the etcd store's ${name} is ${ms}; give a number of milliseconds above 0`,
  );
}
