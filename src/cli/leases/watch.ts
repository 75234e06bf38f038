/** `podwire leases watch`: from what a store reports to one line for every change. */
import { sameAttributes } from '../../control/lease-codec.js';
import { leaseKey } from '../../control/lease-key.js';
import type { Lease, LeaseChange, LeaseStore } from '../../control/lease.js';

/**
 * `present`: there at the start. `added`: a new lease. `changed`: other attributes. `renewed`: another end or owner.
 * `removed`: released or ended, with its last attributes.
 */
export type WatchKind = 'present' | 'added' | 'changed' | 'renewed' | 'removed';

export interface WatchLine {
  readonly kind: WatchKind;
  readonly lease: Lease;
}

/** What is new in each change a store reports, compared with all before it. */
export class WatchDiary {
  readonly #known = new Map<string, Lease>();
  #begun = false;

  take(change: LeaseChange): WatchLine[] {
    if (change.kind === 'snapshot') return this.#snapshot(change.leases);
    if (change.kind === 'added') return this.#put(change.lease, 'added');
    return change.kind === 'removed' ? this.#remove(leaseKey(change.lease)) : [];
  }

  #snapshot(leases: readonly Lease[]): WatchLine[] {
    const present = new Set(leases.map(leaseKey));
    const gone = [...this.#known.keys()].filter((key) => !present.has(key));
    const kind = this.#begun ? 'added' : 'present';
    this.#begun = true;
    return [...gone.flatMap((key) => this.#remove(key)), ...leases.flatMap((lease) => this.#put(lease, kind))];
  }

  #put(lease: Lease, asNew: 'present' | 'added'): WatchLine[] {
    const key = leaseKey(lease);
    const before = this.#known.get(key);
    this.#known.set(key, lease);
    if (before === undefined) return [{ kind: asNew, lease }];
    if (!sameAttributes(before.attributes, lease.attributes)) return [{ kind: 'changed', lease }];
    const same = before.expiresAt?.getTime() === lease.expiresAt?.getTime() && before.owner === lease.owner;
    return same ? [] : [{ kind: 'renewed', lease }];
  }

  #remove(key: string): WatchLine[] {
    const lease = this.#known.get(key);
    this.#known.delete(key);
    return lease === undefined ? [] : [{ kind: 'removed', lease }];
  }
}

/** Follows a store until `signal` aborts. */
export async function watchLeases(
  store: LeaseStore,
  signal: AbortSignal,
  show: (line: WatchLine) => void,
): Promise<void> {
  const diary = new WatchDiary();
  for await (const change of store.watch(signal)) {
    for (const line of diary.take(change)) show(line);
    if (signal.aborted) return;
  }
}
