/**
 * From what a store knows to what a watcher is told.
 *
 * The store keeps the feed's state up to date (`put`, `delete`, `own`); the feed works out the difference to
 * what its reader has been told whenever the reader asks. A slow reader therefore costs one entry a lease at most,
 * skips what has passed in the meantime, and can never be told a removal of something that is there.
 */
import type { Lease, LeaseChange } from './lease.js';

export class LeaseFeed {
  /** What is true now, and what the reader believes, by key. */
  readonly #current = new Map<string, Lease>();
  readonly #told = new Map<string, Lease>();
  /** Keys to compare, in the order they were touched. */
  readonly #touched = new Set<string>();
  readonly #own = new Map<string, LeaseChange & { kind: 'own' }>();
  #started = false;
  #snapshotDue = false;
  #ended = false;
  #wake: (() => void) | undefined;

  /** From now on there is something to tell: the first change is a snapshot of the state at that time. */
  start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#snapshotDue = true;
    this.#notify();
  }

  put(key: string, lease: Lease): void {
    if (this.#current.get(key) === lease) return;
    this.#current.set(key, lease);
    this.#touched.add(key);
    this.#notify();
  }

  delete(key: string): void {
    if (!this.#current.delete(key)) return;
    this.#touched.add(key);
    this.#notify();
  }

  has(key: string): boolean {
    return this.#current.has(key);
  }

  /** Something happened to our own lease under `key`; only the latest state is told. */
  own(key: string, state: 'lost' | 'replaced', lease: Lease): void {
    this.#own.set(key, { kind: 'own', state, lease });
    this.#notify();
  }

  /** What was said about our own lease and not yet told is over. */
  clearOwn(key: string): void {
    this.#own.delete(key);
  }

  end(): void {
    this.#ended = true;
    this.#notify();
  }

  /** Changes as they come, until {@link end} or `signal`. One reader only. */
  async *changes(signal: AbortSignal): AsyncGenerator<LeaseChange, void, void> {
    const onAbort = (): void => this.end();
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) this.end();
    try {
      for (;;) {
        const change = this.#next();
        if (change) yield change;
        else if (this.#ended) return;
        else await new Promise<void>((resolve) => (this.#wake = resolve));
      }
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  #next(): LeaseChange | undefined {
    if (!this.#started || this.#ended) return undefined;
    if (this.#snapshotDue) {
      this.#snapshotDue = false;
      this.#touched.clear();
      for (const [key, lease] of this.#current) this.#told.set(key, lease);
      return { kind: 'snapshot', leases: [...this.#current.values()] };
    }
    for (const [key, change] of this.#own) {
      this.#own.delete(key);
      return change;
    }
    for (const key of this.#touched) {
      this.#touched.delete(key);
      const before = this.#told.get(key);
      const now = this.#current.get(key);
      if (now && now !== before) {
        this.#told.set(key, now);
        return { kind: 'added', lease: now };
      }
      if (!now && before) {
        this.#told.delete(key);
        return { kind: 'removed', lease: before };
      }
    }
    return undefined;
  }

  #notify(): void {
    const wake = this.#wake;
    this.#wake = undefined;
    wake?.();
  }
}
