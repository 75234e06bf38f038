/**
 * The heap that chunks and skip records come from: a buddy allocator over the shared words, blocks of 2^1 to 2^8.
 *
 * Only the writer calls it. Blocks are aligned to their size, freed buddies merge, and whole blocks at the end go
 * back to the untouched part, so that an emptied table is as good as a new one. The free lists are threaded through
 * the free blocks themselves, which no reader can reach; everything else is private to the writer.
 */
import { MAX_STRIDE } from './layout.js';

/** Free-list words inside a free block. */
const NEXT = 0;
const PREVIOUS = 1;
const NONE = -1;

export class WordHeap {
  readonly #words: Int32Array;
  readonly #start: number;
  readonly #end: number;
  /** Everything from here to the end has never been handed out, or has come back. */
  #top: number;
  /** First free block of each order. */
  readonly #free = new Int32Array(MAX_STRIDE + 1).fill(NONE);
  /** For each pair of words: the order of the free block that starts here, else 0. */
  readonly #freeOrder: Uint8Array;
  #usedWords = 0;
  #peakWords = 0;

  /** Manages `words[start..end)`; both must be multiples of 256. */
  constructor(words: Int32Array, start: number, end: number) {
    this.#words = words;
    this.#start = start;
    this.#end = end;
    this.#top = start;
    this.#freeOrder = new Uint8Array((end - start) >>> 1);
  }

  /** Words in blocks that were allocated and not freed yet. */
  get usedWords(): number {
    return this.#usedWords;
  }

  /** Words between the start and the highest block in use: what can have been committed right now. */
  get extentWords(): number {
    return this.#top - this.#start;
  }

  /** The largest extent ever. */
  get peakWords(): number {
    return this.#peakWords;
  }

  get capacityWords(): number {
    return this.#end - this.#start;
  }

  /** Index of a block of 2^order words (1 <= order <= 8) with undefined content, or -1 when there is none. */
  allocate(order: number): number {
    let from = order;
    while (from <= MAX_STRIDE && this.#free[from] === NONE) from++;
    let block: number;
    if (from <= MAX_STRIDE) {
      block = this.#free[from]!;
      this.#unlink(block, from);
    } else {
      if (this.#top + (1 << MAX_STRIDE) > this.#end) return -1;
      from = MAX_STRIDE;
      block = this.#top;
      this.#top += 1 << MAX_STRIDE;
      if (this.extentWords > this.#peakWords) this.#peakWords = this.extentWords;
    }
    while (from > order) {
      from--;
      this.#link(block + (1 << from), from);
    }
    this.#usedWords += 1 << order;
    return block;
  }

  /** Takes back a block from {@link allocate}; no reader may be able to reach it any more. */
  free(block: number, order: number): void {
    this.#usedWords -= 1 << order;
    let at = block;
    let size = order;
    while (size < MAX_STRIDE) {
      const buddy = this.#start + ((at - this.#start) ^ (1 << size));
      if (this.#freeOrder[(buddy - this.#start) >>> 1] !== size) break;
      this.#unlink(buddy, size);
      if (buddy < at) at = buddy;
      size++;
    }
    this.#link(at, size);
    while (this.#top > this.#start) {
      const last = this.#top - (1 << MAX_STRIDE);
      if (this.#freeOrder[(last - this.#start) >>> 1] !== MAX_STRIDE) break;
      this.#unlink(last, MAX_STRIDE);
      this.#top = last;
    }
  }

  #link(block: number, order: number): void {
    const words = this.#words;
    const head = this.#free[order]!;
    words[block + NEXT] = head;
    words[block + PREVIOUS] = NONE;
    if (head !== NONE) words[head + PREVIOUS] = block;
    this.#free[order] = block;
    this.#freeOrder[(block - this.#start) >>> 1] = order;
  }

  #unlink(block: number, order: number): void {
    const words = this.#words;
    const next = words[block + NEXT]!;
    const previous = words[block + PREVIOUS]!;
    if (previous === NONE) this.#free[order] = next;
    else words[previous + NEXT] = next;
    if (next !== NONE) words[next + PREVIOUS] = previous;
    this.#freeOrder[(block - this.#start) >>> 1] = 0;
  }
}
