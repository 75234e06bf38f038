/**
 * Deferred reuse: what readers may still be looking at comes back only after all of them have moved on.
 *
 * The writer unlinks something from the table, then retires it here. Retired items gather in an open bag. When the
 * bag before it has been emptied, the open bag is closed and the epoch word is advanced: a reader whose word holds
 * the new epoch entered after everything in the closed bag was unlinked, and cannot have met it. So once every
 * reader's word is 0 or the current epoch, the closed bag is handed back. Two bags are enough, no epochs are ever
 * ordered, and the word may wrap (skipping 0).
 *
 * The writer never waits: a reader that stays in an old epoch keeps memory from being reused, nothing else.
 */
import type { FibMemory } from './layout.js';
import { EPOCH_WORD, controlView, readerWord } from './layout.js';

/** Hands one retired item back to its owner. */
export type Release = (item: number) => void;

const FIRST_BAG_ITEMS = 256;

/** A growing list of (kind, item) pairs. */
class Bag {
  #items = new Int32Array(2 * FIRST_BAG_ITEMS);
  #length = 0;

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  push(kind: number, item: number): void {
    if (this.#length === this.#items.length) {
      const larger = new Int32Array(2 * this.#length);
      larger.set(this.#items);
      this.#items = larger;
    }
    this.#items[this.#length++] = kind;
    this.#items[this.#length++] = item;
  }

  drain(owners: readonly Release[]): void {
    for (let i = 0; i < this.#length; i += 2) owners[this.#items[i]!]!(this.#items[i + 1]!);
    this.#length = 0;
    if (this.#items.length > 64 * FIRST_BAG_ITEMS) this.#items = new Int32Array(2 * FIRST_BAG_ITEMS);
  }
}

export class Reclaimer {
  readonly #control: Int32Array;
  readonly #readers: number;
  readonly #owners: Release[] = [];
  #open = new Bag();
  #closed = new Bag();

  constructor(memory: FibMemory) {
    this.#control = controlView(memory);
    this.#readers = memory.readers;
  }

  /** Registers who takes items back; the result is the `kind` to retire them with. */
  addOwner(release: Release): number {
    return this.#owners.push(release) - 1;
  }

  /** Queues an item that the table no longer refers to. */
  retire(kind: number, item: number): void {
    this.#open.push(kind, item);
  }

  /** Hands back what no reader can hold any more. True when nothing is left waiting. */
  collect(): boolean {
    // The second turn closes the open bag when the first one emptied the closed bag.
    for (let turn = 0; turn < 2; turn++) {
      if (this.#closed.isEmpty) {
        if (this.#open.isEmpty) return true;
        [this.#open, this.#closed] = [this.#closed, this.#open];
        this.#advance();
      }
      if (this.blockingReader() !== undefined) return false;
      this.#closed.drain(this.#owners);
    }
    return this.#open.isEmpty;
  }

  /** A reader that is still in an earlier epoch, if there is one. */
  blockingReader(): number | undefined {
    const epoch = Atomics.load(this.#control, EPOCH_WORD);
    for (let reader = 0; reader < this.#readers; reader++) {
      const entered = Atomics.load(this.#control, readerWord(reader));
      if (entered !== 0 && entered !== epoch) return reader;
    }
    return undefined;
  }

  #advance(): void {
    const next = (Atomics.load(this.#control, EPOCH_WORD) + 1) | 0;
    Atomics.store(this.#control, EPOCH_WORD, next === 0 ? 1 : next);
  }
}
