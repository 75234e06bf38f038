/** What a lease keeper has lived through, for status and metrics. */
import type { StoreNotice } from './lease.js';
import type { RefusalReason } from './lease-refusal.js';

/** All numbers only grow. */
export interface LeaseCounts {
  /** Leases acquired, the first one included. */
  readonly acquired: number;
  /** Tries to acquire one that failed: no store, no free subnet. */
  readonly acquireFailures: number;
  readonly renewed: number;
  readonly renewFailures: number;
  /** Times that our lease was gone from the store or somebody else's. */
  readonly lost: number;
  /** Times that another subnet had to be taken. */
  readonly subnetChanges: number;
  /** Snapshots of all leases: one at the start and one after each break of the watch. */
  readonly snapshots: number;
  readonly watchFailures: number;
  readonly routesAdded: number;
  readonly routesRemoved: number;
  /** Leases of other hosts that were refused, by reason. */
  readonly refusals: Readonly<Partial<Record<RefusalReason, number>>>;
  /** What the store noticed, by kind. */
  readonly notices: Readonly<Partial<Record<StoreNotice['kind'], number>>>;
  /** The latest notice of another live agent with our identity. */
  readonly lastConflict?: string;
  /** By the wall clock: when our lease was acquired, and when it was last acquired or renewed. */
  readonly acquiredAt?: Date;
  readonly writtenAt?: Date;
}

type Writable<T> = { -readonly [Key in keyof T]: T[Key] };

/** Counts at their start, to be kept by their owner. */
export function newLeaseCounts(): Writable<Omit<LeaseCounts, 'refusals' | 'notices'>> & {
  notices: Partial<Record<StoreNotice['kind'], number>>;
} {
  return {
    acquired: 0,
    acquireFailures: 0,
    renewed: 0,
    renewFailures: 0,
    lost: 0,
    subnetChanges: 0,
    snapshots: 0,
    watchFailures: 0,
    routesAdded: 0,
    routesRemoved: 0,
    notices: {},
  };
}
