/** What a lease keeper tells its embedder. */
import type { PodwireError } from '../errors.js';
import type { DesiredRoute, RefusedLease } from './desired-routes.js';
import type { Lease, StoreNotice } from './lease.js';
import type { NetworkConfig } from './network-config.js';

/** Called as things happen, in their order, never concurrently. What a callback throws is an uncaught exception. */
export interface LeaseKeeperListener {
  /** There is no lease yet, and why; once for every new reason. */
  waiting?(error: PodwireError): void;
  /** The first lease. */
  acquired?(lease: Lease, config: NetworkConfig): void;
  renewed?(lease: Lease): void;
  /** Our lease is gone from the store, or `holder` has it. We go on serving it while we try to get it back. */
  ownLost?(lease: Lease, state: 'lost' | 'replaced', holder?: Lease): void;
  /** We have the same subnet again. */
  ownRestored?(lease: Lease): void;
  /** The old subnet could not be had: everything built on it must move. */
  ownChanged?(lease: Lease, previous: Lease, config: NetworkConfig): void;
  /** The store's leases as a whole, the first time and after a break. `added` and `removed` have been called. */
  snapshotApplied?(routes: ReadonlyMap<string, DesiredRoute>): void;
  /** A new route, or one with other attributes than `before`. */
  added?(route: DesiredRoute, before?: DesiredRoute): void;
  removed?(route: DesiredRoute): void;
  refused?(refused: RefusedLease): void;
  /** The watch, a renewal or a re-acquisition fails; all of it is tried again. `storeUp` follows when all of it works. */
  storeDown?(error: PodwireError): void;
  storeUp?(): void;
  /** What the store itself noticed: unreadable entries, duplicate identities. */
  notice?(notice: StoreNotice): void;
}
