/**
 * One family's routes on the writer's side: the shared trie by {@link Prefix}, and the next hop kept for each prefix.
 *
 * A prefix's published value and its next hop can differ: an own lease hides a route for the same prefix, which
 * keeps its next hop and comes back when the lease is gone.
 */
import { Address, Prefix } from '../net/prefix.js';
import { NO_ROUTE } from './layout.js';
import type { Definition } from './next-hops.js';
import { loadKey } from './senders.js';
import type { TrieSpace } from './trie.js';
import { SharedTrie } from './trie.js';

export class FamilyLeaves {
  readonly #trie: SharedTrie;
  readonly #key: Int32Array;
  /** By tree node. */
  readonly #definitions: (Definition | undefined)[] = [];

  /** Keys have 1 (IPv4) or 4 (IPv6) words; `root` is the trie's first word. */
  constructor(space: TrieSpace, root: number, keyWords: 1 | 4) {
    this.#trie = new SharedTrie(space, root, keyWords);
    this.#key = new Int32Array(keyWords);
  }

  /** The route's next hop for exactly this prefix, hidden or not. */
  definition(prefix: Prefix): Definition | undefined {
    return this.#definitions[this.#find(prefix)];
  }

  /** What is published for exactly this prefix, NO_ROUTE when nothing is. */
  value(prefix: Prefix): number {
    const node = this.#find(prefix);
    return node === 0 ? NO_ROUTE : this.#trie.tree.value[node]!;
  }

  /** What an address looks up as, and the next hop of the prefix that decided it. */
  match(address: Address): { value: number; definition: Definition | undefined } {
    const node = this.#trie.tree.match(loadKey(this.#key, address));
    if (node === 0) return { value: NO_ROUTE, definition: undefined };
    return { value: this.#trie.tree.value[node]!, definition: this.#definitions[node] };
  }

  /**
   * Publishes a value (> 0) for the prefix.
   *
   * @throws PodwireError CAPACITY, with nothing changed; never when something is published for it already.
   */
  publish(prefix: Prefix, value: number): void {
    this.#trie.set(loadKey(this.#key, prefix.address), prefix.length, value);
  }

  /** Publishes that there is nothing for the prefix. It must not have a next hop. */
  withdraw(prefix: Prefix): void {
    this.#trie.delete(loadKey(this.#key, prefix.address), prefix.length);
  }

  /** Keeps the next hop for a prefix for which something is published. */
  keep(prefix: Prefix, definition: Definition | undefined): void {
    this.#definitions[this.#find(prefix)] = definition;
  }

  /** All prefixes with a next hop, in address order, covering ones first. Change nothing meanwhile. */
  *routes(): Generator<readonly [Prefix, Definition], void, undefined> {
    for (const node of this.#trie.tree.nodes()) {
      const definition = this.#definitions[node];
      if (definition !== undefined) yield [this.#prefix(node), definition];
    }
  }

  #find(prefix: Prefix): number {
    return this.#trie.tree.find(loadKey(this.#key, prefix.address), prefix.length);
  }

  #prefix(node: number): Prefix {
    const { keys, keyWords, length } = this.#trie.tree;
    const bytes = new Uint8Array(keyWords * 4);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < keyWords; i++) view.setInt32(4 * i, keys[node * keyWords + i]!);
    return Prefix.of(Address.fromBytes(bytes), length[node]!);
  }
}
