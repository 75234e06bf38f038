/** Counts and times what the agent asks of its store, whichever store that is. */
import { PodwireError } from '../errors.js';
import type { LeaseStore } from '../index.js';

export const STORE_OPERATIONS = ['network', 'acquire', 'renew', 'release'] as const;
export type StoreOperation = (typeof STORE_OPERATIONS)[number];

export interface OperationCounts {
  readonly done: number;
  readonly failed: number;
  /** Time that all of them took; a store tries again by itself, which counts. */
  readonly seconds: number;
}

export interface MeteredStore {
  /** The same store; closing it is closing that one. */
  readonly store: LeaseStore;
  /** A live view. */
  readonly operations: Readonly<Record<StoreOperation, OperationCounts>>;
}

/** @param now milliseconds that never go back */
export function meterStore(store: LeaseStore, now: () => number = () => performance.now()): MeteredStore {
  const zero = () => ({ done: 0, failed: 0, seconds: 0 });
  const operations = { network: zero(), acquire: zero(), renew: zero(), release: zero() };
  const measured = async <T>(operation: StoreOperation, call: () => Promise<T>): Promise<T> => {
    const from = now();
    const counts = operations[operation];
    try {
      const result = await call();
      counts.done++;
      return result;
    } catch (error) {
      // Nobody waits for its end any more.
      const isOver = error instanceof PodwireError && (error.code === 'ABORTED' || error.code === 'CLOSED');
      if (!isOver) counts.failed++;
      throw error;
    } finally {
      counts.seconds += (now() - from) / 1000;
    }
  };
  const metered: Pick<LeaseStore, StoreOperation> = {
    network: (signal) => measured('network', () => store.network(signal)),
    acquire: (request, signal) => measured('acquire', () => store.acquire(request, signal)),
    renew: (lease, signal) => measured('renew', () => store.renew(lease, signal)),
    release: (lease) => measured('release', () => store.release(lease)),
  };
  return {
    operations,
    store: new Proxy(store, {
      get(target, property) {
        if (Object.hasOwn(metered, property)) return metered[property as StoreOperation];
        const value: unknown = Reflect.get(target, property, target);
        return typeof value === 'function' ? (value.bind(target) as unknown) : value;
      },
    }),
  };
}
