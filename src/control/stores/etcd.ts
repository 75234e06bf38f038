/** The etcd v3 store: leases where flanneld keeps them. */
import { PodwireError } from '../../errors.js';
import type { Clock } from '../clock.js';
import type { LeaseStore, StoreNotice } from '../lease.js';

export interface EtcdStoreOptions {
  /** `http://host:port` or `https://host:port`, one or more of one cluster; `host:port` uses TLS when certFile and keyFile are given. */
  readonly endpoints: readonly string[];
  /** Where flannel's tree is; default `/coreos.com/network`. */
  readonly prefix?: string;
  /** PEM file of the authorities that may sign the servers' certificates; default: the system's. */
  readonly caFile?: string;
  /** PEM files of the client's certificate and key, both or neither. Read again when they change. */
  readonly certFile?: string;
  readonly keyFile?: string;
  readonly username?: string;
  readonly password?: string;
  /** Life of a lease whose request names none, in milliseconds; default 24 hours, flannel's constant. */
  readonly ttlMs?: number;
  /** How long one request may take, fail-over included, in milliseconds; default 5000. */
  readonly requestTimeoutMs?: number;
  /** How often a quiet watch is asked whether it still works, in milliseconds; default 5000. */
  readonly progressMs?: number;
  readonly onNotice?: (notice: StoreNotice) => void;
  /** What lease expiries are computed with; network timeouts always run in real time. */
  readonly clock?: Clock;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

/**
 * Opens a client of an etcd cluster. Nothing is sent before the first call.
 * @throws PodwireError INVALID_ARGUMENT for options that cannot work: endpoint, prefix, certificate files.
 */
export function etcdStore(options: EtcdStoreOptions): LeaseStore {
  throw new PodwireError('UNSUPPORTED', `the etcd store (${options.endpoints.join(', ')}) is not available yet`);
}
