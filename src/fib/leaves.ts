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

  /** Where exactly this prefix is kept, 0 when nothing is published for it; valid until it is withdrawn. */
  find(prefix: Prefix): number {
    return this.#trie.tree.find(loadKey(this.#key, prefix.address), prefix.length);
  }

  /** The next hop of the route there, hidden or not. */
  definition(slot: number): Definition | undefined {
    return this.#definitions[slot];
  }

  /** What is published there, NO_ROUTE for slot 0. */
  value(slot: number): number {
    return slot === 0 ? NO_ROUTE : this.#trie.tree.value[slot]!;
  }

  /** What an address looks up as, and the next hop of the prefix that decided it. */
  match(address: Address): { value: number; definition: Definition | undefined } {
    const slot = this.#trie.tree.match(loadKey(this.#key, address));
    return { value: this.value(slot), definition: this.#definitions[slot] };
  }

  /**
   * Publishes a value (> 0) for the prefix and returns its slot.
   *
   * @throws PodwireError CAPACITY, with nothing changed; never when something is published for it already.
   */
  publish(prefix: Prefix, value: number): number {
    return this.#trie.set(loadKey(this.#key, prefix.address), prefix.length, value);
  }

  /** Publishes that there is nothing for the prefix. It must not have a next hop. */
  withdraw(prefix: Prefix): void {
    this.#trie.delete(loadKey(this.#key, prefix.address), prefix.length);
  }

  /** Keeps the next hop of the route there. */
  keep(slot: number, definition: Definition | undefined): void {
    this.#definitions[slot] = definition;
  }

  /** The slots of all routes, in address order, covering ones first. Change nothing meanwhile. */
  *routes(): Generator<number, void, undefined> {
    for (const slot of this.#trie.tree.nodes()) if (this.#definitions[slot] !== undefined) yield slot;
  }

  /** The prefix that is kept there. */
  prefix(slot: number): Prefix {
    const { keys, keyWords, length } = this.#trie.tree;
    const bytes = new Uint8Array(keyWords * 4);
    const view = new DataView(bytes.buffer);
    for (let i = 0; i < keyWords; i++) view.setInt32(4 * i, keys[slot * keyWords + i]!);
    return Prefix.of(Address.fromBytes(bytes), length[slot]!);
  }
}
