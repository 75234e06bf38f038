/**
 * The FIB as embedders see it: next hops of the sockets' own address family only, and every underlay address that some
 * route leads to is watched by the path MTU table, for as long as one does.
 */
import { PodwireError } from '../errors.js';
import type { Fib, NextHop, RouteTable } from '../fib/fib.js';
import type { Family } from '../net/prefix.js';
import { Address, Prefix } from '../net/prefix.js';
import type { PathMtuTable } from './pmtu.js';

export class PeerRoutes implements RouteTable {
  readonly #fib: Fib;
  readonly #family: Family;
  readonly #pathMtu: PathMtuTable;
  /** Underlay address of each route, by prefix. */
  readonly #addresses = new Map<string, string>();
  /** Routes for each underlay address. */
  readonly #uses = new Map<string, number>();

  constructor(fib: Fib, family: Family, pathMtu: PathMtuTable) {
    this.#fib = fib;
    this.#family = family;
    this.#pathMtu = pathMtu;
  }

  get size(): number {
    return this.#fib.size;
  }

  set(prefix: Prefix | string, nextHop: NextHop): void {
    this.#check(nextHop);
    this.#fib.set(prefix, nextHop);
    this.#use(Prefix.from(prefix).toString(), nextHop);
  }

  delete(prefix: Prefix | string): boolean {
    const deleted = this.#fib.delete(prefix);
    if (deleted) this.#forget(Prefix.from(prefix).toString());
    return deleted;
  }

  replace(routes: Iterable<readonly [Prefix | string, NextHop]>): void {
    const wanted = Array.from(routes, ([prefix, nextHop]) => {
      this.#check(nextHop);
      return [Prefix.from(prefix), nextHop] as const;
    });
    this.#fib.replace(wanted);
    const kept = new Set<string>();
    for (const [prefix, nextHop] of wanted) {
      const key = prefix.toString();
      kept.add(key);
      this.#use(key, nextHop);
    }
    for (const key of this.#addresses.keys()) if (!kept.has(key)) this.#forget(key);
  }

  lookup(address: Address | string): NextHop | undefined {
    return this.#fib.lookup(address);
  }

  entries(): IterableIterator<readonly [Prefix, NextHop]> {
    return this.#fib.entries();
  }

  #check(nextHop: NextHop): void {
    const address = Address.from(nextHop.address);
    if (address.family === this.#family) return;
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `next hop ${address.toString()} is IPv${address.family} but the data plane is bound to an IPv${this.#family} address: give a next hop of that family`,
    );
  }

  /** The new address is watched before the old one is let go of, so that one that stays keeps what is known of it. */
  #use(prefix: string, nextHop: NextHop): void {
    const address = Address.from(nextHop.address);
    const key = address.toString();
    const before = this.#addresses.get(prefix);
    if (before !== key) {
      this.#uses.set(key, (this.#uses.get(key) ?? 0) + 1);
      this.#addresses.set(prefix, key);
      if (before !== undefined) this.#release(before);
    }
    this.#pathMtu.watch(address, nextHop.mtu);
  }

  #forget(prefix: string): void {
    const address = this.#addresses.get(prefix);
    if (address === undefined) return;
    this.#addresses.delete(prefix);
    this.#release(address);
  }

  #release(address: string): void {
    const uses = (this.#uses.get(address) ?? 0) - 1;
    if (uses > 0) {
      this.#uses.set(address, uses);
      return;
    }
    this.#uses.delete(address);
    this.#pathMtu.unwatch(Address.parse(address));
  }
}
