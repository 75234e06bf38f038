/**
 * Who sends from which outer address: the writing side of the sender tries.
 *
 * An address is a host's because it is the host's own next-hop address, or because next hops on that host name it as
 * an extra sender. When several hosts claim one address, the host whose own address it is has it, else the one that
 * has claimed it longest; when that claim ends the next takes over in one store. Sender look-ups are host routes in
 * tries of their own, so they cost what route look-ups cost and share chunks, publication and reclamation with them.
 */
import type { Address } from '../net/prefix.js';
import { SENDERS4_ROOT, SENDERS6_ROOT } from './layout.js';
import type { TrieSpace } from './trie.js';
import { SharedTrie } from './trie.js';

interface Sender {
  /** The host whose next-hop address this is, 0 if none. */
  owner: number;
  /** Claims of each host, oldest first. */
  readonly claims: Map<number, number>;
}

/** A short text that is the same for the same address only. */
export function addressKey(address: Address): string {
  if (address.family === 4) return String(address.word(0));
  return `${address.word(0)}:${address.word(1)}:${address.word(2)}:${address.word(3)}`;
}

/** Writes the address's big-endian words into a trie key. */
export function loadKey(key: Int32Array, address: Address): Int32Array {
  for (let i = 0; i < key.length; i++) key[i] = address.word(i);
  return key;
}

function winner(sender: Sender): number {
  if (sender.owner !== 0) return sender.owner;
  for (const host of sender.claims.keys()) return host;
  return 0;
}

export class SenderTable {
  readonly #senders = new Map<string, Sender>();
  readonly #trie4: SharedTrie;
  readonly #trie6: SharedTrie;
  readonly #key4 = new Int32Array(1);
  readonly #key6 = new Int32Array(4);

  constructor(space: TrieSpace) {
    this.#trie4 = new SharedTrie(space, SENDERS4_ROOT, 1);
    this.#trie6 = new SharedTrie(space, SENDERS6_ROOT, 4);
  }

  /** Number of addresses that belong to some host. */
  get size(): number {
    return this.#senders.size;
  }

  /**
   * Counts one more claim of `host` on the address; `owns` says that it is the host's next-hop address.
   *
   * @throws PodwireError CAPACITY, with nothing changed.
   */
  claim(address: Address, host: number, owns: boolean): void {
    const key = addressKey(address);
    let sender = this.#senders.get(key);
    if (sender === undefined) {
      this.#publish(address, host);
      sender = { owner: 0, claims: new Map() };
      this.#senders.set(key, sender);
    } else if (owns) {
      this.#publish(address, host);
    }
    if (owns) sender.owner = host;
    else sender.claims.set(host, (sender.claims.get(host) ?? 0) + 1);
  }

  /** Takes back one {@link claim} with the same arguments. */
  release(address: Address, host: number, owns: boolean): void {
    const key = addressKey(address);
    const sender = this.#senders.get(key)!;
    if (owns) {
      sender.owner = 0;
    } else {
      const claims = sender.claims.get(host)! - 1;
      if (claims === 0) sender.claims.delete(host);
      else sender.claims.set(host, claims);
    }
    const next = winner(sender);
    if (next === 0) this.#senders.delete(key);
    this.#publish(address, next);
  }

  #publish(address: Address, host: number): void {
    const v4 = address.family === 4;
    const trie = v4 ? this.#trie4 : this.#trie6;
    const key = loadKey(v4 ? this.#key4 : this.#key6, address);
    if (host === 0) trie.delete(key, key.length * 32);
    else trie.set(key, key.length * 32, host);
  }
}
