/** Helpers for tests of leases: short ways to write them, and a watcher that can be waited for. */
import type { Lease, LeaseAttributes, LeaseChange, LeaseStore } from '../../src/control/lease.js';
import { leaseKey } from '../../src/control/lease-key.js';
import { Address, Prefix } from '../../src/net/prefix.js';

export function attributesOf(publicIp: string, more: Partial<LeaseAttributes> = {}): LeaseAttributes {
  return { publicIp: Address.parse(publicIp), backendType: '', ...more };
}

export function leaseOf(subnet: string, publicIp: string, more: Partial<Lease> = {}): Lease {
  return { subnet: Prefix.parse(subnet), attributes: attributesOf(publicIp), ...more };
}

/** Reads a watch in the background and keeps what it said. */
export class Watcher implements AsyncDisposable {
  readonly changes: LeaseChange[] = [];
  /** What a follower of the changes believes, by key. */
  readonly leases = new Map<string, Lease>();
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  readonly #waiting = new Set<() => void>();
  #failure: unknown;

  constructor(store: LeaseStore) {
    this.#done = this.#read(store);
  }

  get keys(): string[] {
    return [...this.leases.keys()].sort();
  }

  /** Changes as text, snapshots excluded: `added 10.1.2.0-24`. */
  get log(): string[] {
    return this.changes.flatMap((change) => {
      if (change.kind === 'snapshot') return [];
      return [`${change.kind === 'own' ? `own ${change.state}` : change.kind} ${leaseKey(change.lease)}`];
    });
  }

  /** Resolves once `condition` holds; looked at after every change. */
  async until(condition: (watcher: this) => boolean): Promise<void> {
    while (!condition(this)) {
      if (this.#failure !== undefined) throw new Error('the watch failed', { cause: this.#failure });
      await new Promise<void>((resolve) => this.#waiting.add(resolve));
    }
  }

  started(): Promise<void> {
    return this.until(() => this.changes.length > 0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }

  async #read(store: LeaseStore): Promise<void> {
    try {
      for await (const change of store.watch(this.#stop.signal)) {
        this.changes.push(change);
        if (change.kind === 'snapshot') {
          this.leases.clear();
          for (const lease of change.leases) this.leases.set(leaseKey(lease), lease);
        } else if (change.kind === 'added') {
          this.leases.set(leaseKey(change.lease), change.lease);
        } else if (change.kind === 'removed') {
          this.leases.delete(leaseKey(change.lease));
        }
        this.#wakeAll();
      }
    } catch (error) {
      this.#failure = error;
      this.#wakeAll();
    }
  }

  #wakeAll(): void {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  }
}

/** A value that tests wait on: `await until(() => list.length > 0)` for things that report by callback. */
export class Signal {
  readonly #waiting = new Set<() => void>();

  readonly fire = (): void => {
    for (const wake of this.#waiting) wake();
    this.#waiting.clear();
  };

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await new Promise<void>((resolve) => this.#waiting.add(resolve));
  }
}
