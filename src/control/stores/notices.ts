/** Who hears the notices of a store. */
import type { StoreNotice } from '../lease.js';

export class Notices {
  readonly #listeners = new Set<(notice: StoreNotice) => void>();

  constructor(first?: (notice: StoreNotice) => void) {
    if (first) this.#listeners.add(first);
  }

  readonly emit = (notice: StoreNotice): void => {
    for (const listener of this.#listeners) {
      try {
        listener(notice);
      } catch (error) {
        // A listener's fault must not stop the watch: let it surface as what it is, an uncaught exception.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  };

  add(listener: (notice: StoreNotice) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
