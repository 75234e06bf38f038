/**
 * The writer's own copy of one trie's prefixes: a path-compressed binary tree in typed arrays, main thread only.
 *
 * It answers what the shared trie cannot: which prefixes there are, which of them covers what, how many lie beneath
 * a point and how long the longest of them is. Nodes are numbers, 0 is none. A node either carries a prefix's value
 * (>= 0) or joins exactly two children. A prefix's node number does not change until the prefix is removed, so
 * callers may key side tables with it.
 */

/** The value of a node that only joins. */
export const NO_VALUE = -1;

/** Bit `index` (0 = most significant of the first word) of a key at `keys[base..]`. */
export function bitAt(keys: Int32Array, base: number, index: number): 0 | 1 {
  return ((keys[base + (index >>> 5)]! >>> (31 - (index & 31))) & 1) as 0 | 1;
}

const FIRST_NODES = 64;

export class PrefixTree {
  /** Key words for each node: 1 for IPv4, 4 for IPv6. */
  readonly keyWords: number;
  root = 0;
  /** The value that the latest {@link insert} replaced, {@link NO_VALUE} when it added the prefix. */
  replaced = NO_VALUE;
  keys: Int32Array;
  length = new Uint8Array(FIRST_NODES);
  value = new Int32Array(FIRST_NODES);
  left = new Int32Array(FIRST_NODES);
  right = new Int32Array(FIRST_NODES);
  /** Prefixes in the node's subtree, its own included. */
  count = new Int32Array(FIRST_NODES);
  /** Length of the longest prefix in the node's subtree. */
  deepest = new Uint8Array(FIRST_NODES);
  #next = 1;
  /** First of the freed nodes, chained through `left`. */
  #freed = 0;
  /** Nodes from the root to the place of the latest {@link #descend}, that place excluded. */
  readonly #path = new Int32Array(130);
  #pathLength = 0;

  constructor(keyWords: 1 | 4) {
    this.keyWords = keyWords;
    this.keys = new Int32Array(FIRST_NODES * keyWords);
  }

  /** Number of prefixes. */
  get size(): number {
    return this.count[this.root]!;
  }

  /** The node that carries exactly this prefix, or 0. */
  find(key: Int32Array, length: number): number {
    const node = this.#descend(key, length);
    if (node === 0 || this.length[node] !== length || this.value[node] === NO_VALUE) return 0;
    return this.#shared(node, key, length) === length ? node : 0;
  }

  /** The node of the longest prefix that contains the whole key (all its bits), or 0. */
  match(key: Int32Array): number {
    let best = 0;
    for (let node = this.root; node !== 0;) {
      const length = this.length[node]!;
      if (this.#shared(node, key, length) < length) break;
      if (this.value[node] !== NO_VALUE) best = node;
      if (length === 32 * this.keyWords) break;
      node = bitAt(key, 0, length) ? this.right[node]! : this.left[node]!;
    }
    return best;
  }

  /**
   * Adds the prefix or changes its value (>= 0). Bits of `key` after `length` must be 0. Returns its node;
   * {@link replaced} then says what its value was.
   */
  insert(key: Int32Array, length: number, value: number): number {
    this.replaced = NO_VALUE;
    const place = this.#descend(key, length);
    if (place === 0) return this.#replacePlace(0, this.#leaf(key, length, value), length);
    const shared = this.#shared(place, key, Math.min(length, this.length[place]!));
    if (this.length[place] === length && shared === length) {
      this.replaced = this.value[place]!;
      if (this.replaced === NO_VALUE) {
        this.count[place]!++;
        this.#countPath(length);
      }
      this.value[place] = value;
      return place;
    }
    const node = this.#leaf(key, length, value);
    if (shared === length) {
      this.#adopt(node, place);
      return this.#replacePlace(place, node, length);
    }
    const join = this.#leaf(key, shared, NO_VALUE);
    this.#adopt(join, place);
    this.#adopt(join, node);
    this.#replacePlace(place, join, length);
    return node;
  }

  /** Removes a node that {@link find} returned for this key; its number may be used again. */
  remove(key: Int32Array, node: number): void {
    this.#descend(key, this.length[node]!);
    this.value[node] = NO_VALUE;
    const left = this.left[node]!;
    const right = this.right[node]!;
    if (left === 0 || right === 0) {
      const child = left === 0 ? right : left;
      this.#setPlace(node, child);
      this.#release(node);
      // A join that lost one side is spliced out as well.
      if (child === 0 && this.#pathLength > 0) {
        const parent = this.#path[this.#pathLength - 1]!;
        const sibling = this.left[parent] === 0 ? this.right[parent]! : this.left[parent]!;
        if (this.value[parent] === NO_VALUE) {
          this.#pathLength--;
          this.#setPlace(parent, sibling);
          this.#release(parent);
        }
      }
    } else {
      this.#summarise(node);
    }
    for (let i = this.#pathLength - 1; i >= 0; i--) this.#summarise(this.#path[i]!);
  }

  /** Every prefix's node in address order, a covering prefix before those it covers. Change nothing meanwhile. */
  *nodes(): Generator<number, void, undefined> {
    const pending: number[] = this.root === 0 ? [] : [this.root];
    for (let node = pending.pop(); node !== undefined; node = pending.pop()) {
      if (this.right[node] !== 0) pending.push(this.right[node]!);
      if (this.left[node] !== 0) pending.push(this.left[node]!);
      if (this.value[node] !== NO_VALUE) yield node;
    }
  }

  /**
   * Follows the key down, recording the path, to the first node that is not a strictly shorter prefix of the key's
   * first `length` bits: the one that carries them, the one to branch off from or to cover, or 0 at a free place.
   */
  #descend(key: Int32Array, length: number): number {
    this.#pathLength = 0;
    let node = this.root;
    while (node !== 0) {
      const own = this.length[node]!;
      if (own >= length || this.#shared(node, key, own) < own) break;
      this.#path[this.#pathLength++] = node;
      node = bitAt(key, 0, own) ? this.right[node]! : this.left[node]!;
    }
    return node;
  }

  /** How many leading bits the node's key and `key` have in common, at most `limit`. */
  #shared(node: number, key: Int32Array, limit: number): number {
    const base = node * this.keyWords;
    for (let i = 0; i < this.keyWords && i * 32 < limit; i++) {
      const difference = this.keys[base + i]! ^ key[i]!;
      if (difference !== 0) return Math.min(limit, i * 32 + Math.clz32(difference));
    }
    return limit;
  }

  #leaf(key: Int32Array, length: number, value: number): number {
    let node = this.#freed;
    if (node !== 0) this.#freed = this.left[node]!;
    else {
      node = this.#next++;
      if (node === this.length.length) this.#grow();
    }
    const base = node * this.keyWords;
    for (let i = 0; i < this.keyWords; i++) {
      const kept = Math.max(0, Math.min(32, length - 32 * i));
      this.keys[base + i] = kept === 0 ? 0 : key[i]! & (-1 << (32 - kept));
    }
    this.length[node] = length;
    this.value[node] = value;
    this.left[node] = 0;
    this.right[node] = 0;
    this.count[node] = value === NO_VALUE ? 0 : 1;
    this.deepest[node] = value === NO_VALUE ? 0 : length;
    return node;
  }

  #release(node: number): void {
    this.left[node] = this.#freed;
    this.#freed = node;
  }

  /** Hangs `child`, which is longer, beneath `node`. */
  #adopt(node: number, child: number): void {
    if (bitAt(this.keys, child * this.keyWords, this.length[node]!)) this.right[node] = child;
    else this.left[node] = child;
    this.#summarise(node);
  }

  /** Makes what pointed to `old` (or the free place at the end of the path) point to `node`. */
  #setPlace(old: number, node: number): void {
    if (this.#pathLength === 0) {
      this.root = node;
      return;
    }
    const parent = this.#path[this.#pathLength - 1]!;
    if (old !== 0 ? this.right[parent] === old : bitAt(this.keys, node * this.keyWords, this.length[parent]!)) {
      this.right[parent] = node;
    } else {
      this.left[parent] = node;
    }
  }

  #replacePlace(old: number, node: number, length: number): number {
    this.#setPlace(old, node);
    this.#countPath(length);
    return node;
  }

  /** One more prefix of that length beneath every node of the path. */
  #countPath(length: number): void {
    for (let i = 0; i < this.#pathLength; i++) {
      const node = this.#path[i]!;
      this.count[node]!++;
      if (this.deepest[node]! < length) this.deepest[node] = length;
    }
  }

  #summarise(node: number): void {
    const left = this.left[node]!;
    const right = this.right[node]!;
    const own = this.value[node] === NO_VALUE ? 0 : 1;
    this.count[node] = own + this.count[left]! + this.count[right]!;
    this.deepest[node] = Math.max(own * this.length[node]!, this.deepest[left]!, this.deepest[right]!);
  }

  #grow(): void {
    const nodes = 2 * this.length.length;
    const grown = <T extends Int32Array | Uint8Array>(from: T, to: T): T => {
      to.set(from);
      return to;
    };
    this.keys = grown(this.keys, new Int32Array(nodes * this.keyWords));
    this.length = grown(this.length, new Uint8Array(nodes));
    this.value = grown(this.value, new Int32Array(nodes));
    this.left = grown(this.left, new Int32Array(nodes));
    this.right = grown(this.right, new Int32Array(nodes));
    this.count = grown(this.count, new Int32Array(nodes));
    this.deepest = grown(this.deepest, new Uint8Array(nodes));
  }
}
