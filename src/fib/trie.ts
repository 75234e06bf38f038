/**
 * The writing side of one shared trie: turns prefixes into chunks, skip records and leaves, in place, under readers.
 *
 * A {@link PrefixTree} says which prefixes there are; `#entry` makes one shared entry say the same. Shorter prefixes'
 * values are pushed into the leaves beneath them. The shape under an entry depends on the prefixes beneath it only:
 *
 * - none: a leaf;
 * - IPv6, and all of them behind the same few bits: a skip record, so that a lone /64 costs 32 bytes and one step, not a
 *   chain of chunks;
 * - else a chunk of 16 entries or at most 8 for each prefix beneath, no wider than the longest of them needs, and
 *   never more than 8 bits. 32 prefixes are enough for the full width, so a dense network is reached in two loads.
 *
 * With up to {@link EXACT_PREFIXES} prefixes beneath, an entry always has exactly that shape, at most a few microseconds
 * of rebuilding. With more, a chunk only ever grows, so that no sequence of updates rebuilds a large part again and again.
 *
 * What readers see: a change to the value of existing entries is one 32-bit store an entry; a change of shape is built
 * aside and published by one store. So every address goes from its old result to its new one directly, at one moment,
 * and an address whose result does not change never shows another, whatever is rebuilt around it. Replaced blocks are
 * retired, not reused, until no reader can be inside (see reclaim.ts).
 */
import { PodwireError } from '../errors.js';
import type { WordHeap } from './heap.js';
import {
  MAX_STRIDE,
  NO_ROUTE,
  OFFSET_MASK,
  POINTER,
  PREFIX_MASKS,
  ROOT_BITS,
  SKIP_DEPTH,
  SKIP_MISS,
  SKIP_NEXT,
  SKIP_ORDER,
  STRIDE_SHIFT,
} from './layout.js';
import type { Reclaimer } from './reclaim.js';
import { NO_VALUE, PrefixTree, bitAt } from './tree.js';

/** Up to this many prefixes beneath an entry its shape is kept exact; log2 of it plus 3 is the widest stride. */
const EXACT_PREFIXES = 32;
/** A chunk may have 2^4 entries for a single prefix; this bounds the chain of chunks to a lone IPv4 prefix at 4. */
const NARROWEST_STRIDE = 4;

/** What the four tries share: their words, where blocks come from, and how they go back. */
export class TrieSpace {
  readonly words: Int32Array;
  readonly heap: WordHeap;
  readonly reclaimer: Reclaimer;
  readonly #kind: number;
  #waitingWords = 0;

  constructor(words: Int32Array, heap: WordHeap, reclaimer: Reclaimer) {
    this.words = words;
    this.heap = heap;
    this.reclaimer = reclaimer;
    this.#kind = reclaimer.addOwner((pointer) => {
      this.#waitingWords -= 1 << orderOf(pointer);
      this.free(pointer);
    });
  }

  /** Words in blocks that were replaced and wait for readers. */
  get waitingWords(): number {
    return this.#waitingWords;
  }

  /** A pointer to a new block of 2^order words, marked as a chunk of that stride, or 0 when the heap is full. */
  allocate(order: number): number {
    let at = this.heap.allocate(order);
    if (at < 0) {
      this.reclaimer.collect();
      at = this.heap.allocate(order);
    }
    return at < 0 ? 0 : POINTER | (order << STRIDE_SHIFT) | at;
  }

  /** Gives back a block that no reader ever saw, or that none can see any more. */
  free(pointer: number): void {
    this.heap.free(pointer & OFFSET_MASK, orderOf(pointer));
  }

  /** Retires the block and all blocks beneath it. */
  retire(pointer: number): void {
    const words = this.words;
    const at = pointer & OFFSET_MASK;
    const stride = strideOf(pointer);
    if (stride === 0) {
      if (words[at + SKIP_NEXT]! < 0) this.retire(words[at + SKIP_NEXT]!);
    } else {
      for (let i = at, end = at + (1 << stride); i < end; i++) if (words[i]! < 0) this.retire(words[i]!);
    }
    this.#waitingWords += 1 << orderOf(pointer);
    this.reclaimer.retire(this.#kind, pointer);
  }
}

/** A chunk's stride, 0 for a skip record. */
function strideOf(pointer: number): number {
  return (pointer >>> STRIDE_SHIFT) & 15;
}

/** log2 of a block's size in words. */
function orderOf(pointer: number): number {
  return strideOf(pointer) || SKIP_ORDER;
}

/** Thrown inside a build when the heap is full; never leaves this file. */
const HEAP_FULL = Symbol('heap full');

export class SharedTrie {
  /** The prefixes and their values; read only outside this class. */
  readonly tree: PrefixTree;
  readonly #space: TrieSpace;
  readonly #words: Int32Array;
  readonly #root: number;
  /** The prefix of the update under way. */
  #key: Int32Array;
  #length = 0;
  /** Blocks of the build under way. */
  readonly #built: number[] = [];

  /** A trie whose root is `space.words[root..root+65536)`, all leaves 0. Keys have 1 (IPv4) or 4 (IPv6) words. */
  constructor(space: TrieSpace, root: number, keyWords: 1 | 4) {
    this.tree = new PrefixTree(keyWords);
    this.#space = space;
    this.#words = space.words;
    this.#root = root;
    this.#key = new Int32Array(keyWords);
  }

  /**
   * Adds the prefix or changes its value (>= 0) and publishes it. Returns the prefix's node in {@link tree}. Bits of
   * `key` after `length` must be 0.
   *
   * @throws PodwireError CAPACITY when the heap is full; nothing has changed then. Changing the value of a prefix
   * that is there already never throws.
   */
  set(key: Int32Array, length: number, value: number): number {
    const node = this.tree.insert(key, length, value);
    if (this.tree.replaced === value) return node;
    try {
      this.#sync(key, length);
    } catch (error) {
      this.tree.remove(key, node);
      if (error !== HEAP_FULL) throw error;
      const { heap, reclaimer, waitingWords } = this.#space;
      const reader = reclaimer.blockingReader();
      const waiting = reader === undefined ? '' : `, ${waitingWords} of them waiting for reader ${reader} to move on`;
      throw new PodwireError(
        'CAPACITY',
        `the forwarding table is full: ${heap.usedWords} of ${heap.capacityWords} words in use${waiting}; open it with a larger maxRoutes`,
      );
    }
    return node;
  }

  /** Removes the prefix and publishes that; false when it is not there. Never fails. */
  delete(key: Int32Array, length: number): boolean {
    const node = this.tree.find(key, length);
    if (node === 0) return false;
    this.tree.remove(key, node);
    this.#sync(key, length);
    return true;
  }

  /** Brings all entries that the prefix `key/length` touches in line with the tree. */
  #sync(key: Int32Array, length: number): void {
    this.#key = key;
    this.#length = length;
    this.#range(this.#root, ROOT_BITS, 0, this.tree.root, NO_ROUTE);
  }

  /**
   * The entries `first..first + 2^bits`, which lie side by side at `depth` address bits and more, with the tree's
   * `node` for that place (0, or the topmost one that is at least `depth` long) and the `value` they inherit. Of the
   * part above the prefix only the way to it is visited.
   */
  #range(first: number, bits: number, depth: number, node: number, value: number): void {
    const tree = this.tree;
    // A prefix of its own hides the one under update from everything here.
    if (depth > this.#length && node !== 0 && tree.length[node] === depth && tree.value[node] !== NO_VALUE) return;
    if (bits === 0) {
      this.#entry(first, depth, node, value);
      return;
    }
    const onWay = depth < this.#length;
    if (node === 0 && !onWay) {
      for (let at = first, end = first + (1 << bits); at < end; at++) {
        if (this.#words[at] !== value) this.#publish(at, value);
      }
      return;
    }
    const own = this.#own(node, depth, value);
    const upper = first + (1 << (bits - 1));
    const bit = onWay ? bitAt(this.#key, 0, depth) : 0;
    if (!onWay || bit === 0) this.#range(first, bits - 1, depth + 1, this.#side(node, depth, 0), own);
    if (!onWay || bit === 1) this.#range(upper, bits - 1, depth + 1, this.#side(node, depth, 1), own);
  }

  /** One entry at `depth`: in place as far as its shape may stay, else by publishing a new one. */
  #entry(at: number, depth: number, node: number, value: number): void {
    const words = this.#words;
    const current = words[at]!;
    const own = this.#own(node, depth, value);
    const shape = this.#shape(node, depth);
    if (shape === 0) {
      if (current !== own) this.#publish(at, own);
      return;
    }
    if (current >= 0 || !this.#fits(current, node, depth)) {
      this.#publish(at, this.#buildAside(node, depth, value));
      return;
    }
    if (!this.#maySay(current, shape, depth, this.#beneath(node, depth))) {
      try {
        this.#publish(at, this.#buildAside(node, depth, value));
        return;
      } catch (error) {
        // The shape that is there is larger or slower than it should be, but right: go on with it.
        if (error !== HEAP_FULL) throw error;
      }
    }
    const block = current & OFFSET_MASK;
    const stride = strideOf(current);
    if (stride !== 0) {
      this.#range(block, stride, depth, node, value);
    } else {
      if (words[block + SKIP_MISS] !== own) Atomics.store(words, block + SKIP_MISS, own);
      this.#range(block + SKIP_NEXT, 0, words[block + SKIP_DEPTH]!, this.#only(node, depth), own);
    }
  }

  #publish(at: number, entry: number): void {
    const old = this.#words[at]!;
    Atomics.store(this.#words, at, entry);
    if (old < 0) this.#space.retire(old);
  }

  /** The value that addresses at `depth` have when nothing longer matches. */
  #own(node: number, depth: number, inherited: number): number {
    const tree = this.tree;
    if (node === 0 || tree.length[node]! > depth || tree.value[node] === NO_VALUE) return inherited;
    return tree.value[node]!;
  }

  /** The tree's node for the half of this place that continues with `bit`. */
  #side(node: number, depth: number, bit: 0 | 1): number {
    const tree = this.tree;
    if (node === 0) return 0;
    if (tree.length[node] === depth) return bit ? tree.right[node]! : tree.left[node]!;
    return bitAt(tree.keys, node * tree.keyWords, depth) === bit ? node : 0;
  }

  /** The node that all prefixes longer than `depth` lie in, or 0 when they part right here or there are none. */
  #only(node: number, depth: number): number {
    const tree = this.tree;
    if (node === 0 || tree.length[node]! > depth) return node;
    if (tree.left[node] === 0) return tree.right[node]!;
    return tree.right[node] === 0 ? tree.left[node]! : 0;
  }

  /** How many prefixes longer than `depth` lie here. */
  #beneath(node: number, depth: number): number {
    const tree = this.tree;
    const here = node !== 0 && tree.length[node] === depth && tree.value[node] !== NO_VALUE ? 1 : 0;
    return tree.count[node]! - here;
  }

  /** The best shape for an entry: 0 leaf, s > 0 chunk of 2^s entries, -n skip of n bits. */
  #shape(node: number, depth: number): number {
    const tree = this.tree;
    const beneath = this.#beneath(node, depth);
    if (beneath === 0) return 0;
    const stride = Math.min(
      Math.max(NARROWEST_STRIDE, 34 - Math.clz32(beneath)),
      beneath >= 32 ? MAX_STRIDE - (depth & 7) : MAX_STRIDE,
      tree.deepest[node]! - depth,
      32 - (depth & 31),
    );
    const only = this.#only(node, depth);
    if (only === 0 || tree.keyWords === 1) return stride;
    const bits = tree.length[only]! - depth;
    // A chunk of the size of a skip record needs no comparison.
    return bits >= stride && bits > SKIP_ORDER ? -bits : stride;
  }

  /** Whether an existing block can represent the prefixes here at all. */
  #fits(current: number, node: number, depth: number): boolean {
    if (strideOf(current) !== 0) return true;
    const { keys, length } = this.tree;
    const words = this.#words;
    const only = this.#only(node, depth);
    const block = current & OFFSET_MASK;
    const end = words[block + SKIP_DEPTH]!;
    if (only === 0 || length[only]! < end) return false;
    for (let i = 0; i < 4; i++) {
      if (((keys[4 * only + i]! ^ words[block + i]!) & PREFIX_MASKS[4 * end + i]!) !== 0) return false;
    }
    return true;
  }

  /** Whether a block that fits may stay although `shape` would be best. */
  #maySay(current: number, shape: number, depth: number, beneath: number): boolean {
    const stride = strideOf(current);
    if (beneath > EXACT_PREFIXES) return stride === 0 ? shape < 0 : stride >= shape;
    return shape === (stride === 0 ? depth - this.#words[(current & OFFSET_MASK) + SKIP_DEPTH]! : stride);
  }

  /** Builds the whole part beneath an entry. On HEAP_FULL nothing stays allocated. */
  #buildAside(node: number, depth: number, value: number): number {
    this.#built.length = 0;
    try {
      return this.#build(node, depth, value);
    } catch (error) {
      for (const pointer of this.#built) this.#space.free(pointer);
      throw error;
    }
  }

  #build(node: number, depth: number, value: number): number {
    const shape = this.#shape(node, depth);
    const own = this.#own(node, depth, value);
    if (shape === 0) return own;
    const pointer = this.#space.allocate(shape > 0 ? shape : SKIP_ORDER);
    if (pointer === 0) throw HEAP_FULL;
    this.#built.push(pointer);
    const block = pointer & OFFSET_MASK;
    if (shape > 0) {
      this.#fill(block, shape, depth, node, value);
      return pointer;
    }
    const words = this.#words;
    const only = this.#only(node, depth);
    const end = depth - shape;
    for (let i = 0; i < 4; i++) words[block + i] = this.tree.keys[4 * only + i]! & PREFIX_MASKS[4 * end + i]!;
    words[block + SKIP_DEPTH] = end;
    words[block + SKIP_MISS] = own;
    words[block + SKIP_NEXT] = this.#build(only, end, own);
    return pointer & ~(15 << STRIDE_SHIFT);
  }

  /** Writes 2^bits entries of a new chunk. */
  #fill(first: number, bits: number, depth: number, node: number, value: number): void {
    if (node === 0) {
      this.#words.fill(value, first, first + (1 << bits));
    } else if (bits === 0) {
      this.#words[first] = this.#build(node, depth, value);
    } else {
      const own = this.#own(node, depth, value);
      this.#fill(first, bits - 1, depth + 1, this.#side(node, depth, 0), own);
      this.#fill(first + (1 << (bits - 1)), bits - 1, depth + 1, this.#side(node, depth, 1), own);
    }
  }
}
