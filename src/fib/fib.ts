/**
 * The forwarding table's one writer, on the main thread. Readers are in lookup.ts, the memory in layout.ts.
 *
 * What a reader can see. A single look-up gives the result from before or from after an update, never anything else
 * and never "no route" for an address that has one before and after. Two look-ups are independent: while a call that
 * touches many prefixes runs, one address may already show its new result and another its old one. That holds for
 * {@link Fib.replace} too, however old and new routes nest: every address changes from its old result to its new one
 * in one step (new and changed routes are published from the longest prefix to the shortest, then obsolete ones are
 * withdrawn from the shortest to the longest). Senders of a next hop are known before the first route that leads to
 * it and until after the last; a path MTU is one store.
 */
import { PodwireError } from '../errors.js';
import type { Family } from '../net/prefix.js';
import { Address, Prefix } from '../net/prefix.js';
import { WordHeap } from './heap.js';
import type { FibMemory } from './layout.js';
import {
  FIRST_NEXT_HOP,
  GENERATION_WORD,
  HEAP_START,
  LOCAL,
  NO_ROUTE,
  ROUTES4_ROOT,
  ROUTES6_ROOT,
  SELF,
  controlView,
  readerWord,
  wordsView,
} from './layout.js';
import { FamilyLeaves } from './leaves.js';
import type { NextHop, ParsedNextHop, RowEncapsulation } from './next-hop.js';
import { NO_ENCAPSULATION, checkedMtu, parseNextHop } from './next-hop.js';
import type { Definition, NextHopRow } from './next-hops.js';
import { NextHopTable } from './next-hops.js';
import { Reclaimer } from './reclaim.js';
import { addressKey } from './senders.js';
import { TrieSpace } from './trie.js';

export type { NextHop } from './next-hop.js';
export type { NextHopRow } from './next-hops.js';

/** Which prefixes are reached through which next hop. */
export interface RouteTable {
  /** Number of routes. */
  readonly size: number;
  /**
   * Adds the route, or gives the prefix another next hop without a gap.
   *
   * @throws PodwireError INVALID_ADDRESS, INVALID_ARGUMENT, or CAPACITY when the table is full; nothing has changed.
   */
  set(prefix: Prefix | string, nextHop: NextHop): void;
  /** Removes the route; false when there is none for exactly this prefix. */
  delete(prefix: Prefix | string): boolean;
  /**
   * Makes the table hold exactly these routes, by publishing the differences only: a route that is in both is not
   * touched, and every address changes from its old result to its new one in one step, at its own moment. The last
   * of several routes for one prefix counts.
   *
   * @throws PodwireError INVALID_ADDRESS or INVALID_ARGUMENT before anything was published; CAPACITY when there are
   * too many routes or next hops, likewise, or when memory runs out half-way, with all of it undone again.
   */
  replace(routes: Iterable<readonly [Prefix | string, NextHop]>): void;
  /** Next hop for the address by longest-prefix match; undefined without a route and inside own leases. */
  lookup(address: Address | string): NextHop | undefined;
  /** The routes at the time of the call: IPv4 before IPv6, in address order, covering prefixes first. */
  entries(): IterableIterator<readonly [Prefix, NextHop]>;
}

export interface FibOptions {
  /** Path MTU of a next hop about which nothing is known, in bytes of outer packet. Default 1500. */
  readonly underlayMtu?: number;
  /** What is sent with the rows; by default any MAC is taken and no header is written. */
  readonly encapsulation?: RowEncapsulation;
  /**
   * Called with a next hop's index before any reader can get it from a look-up, and after every reader has let go
   * of its previous meaning: the moment to clear what is counted under that index.
   */
  readonly onNextHopAdded?: (index: number) => void;
  /** The same for the id of a host: called before any reader can get it from a sender look-up. */
  readonly onHostAdded?: (id: number) => void;
}

/** Sizes for status and tests. A word is 4 bytes. */
export interface FibMemoryUsage {
  /** Address space of the whole table; only touched pages are committed. */
  readonly reservedBytes: number;
  readonly heapWords: number;
  /** In blocks that readers can reach or that wait for readers. */
  readonly usedWords: number;
  /** In blocks that were replaced and wait for readers. */
  readonly waitingWords: number;
  /** Up to the highest block in use, now and at most. */
  readonly extentWords: number;
  readonly peakWords: number;
  readonly nextHops: number;
  readonly hosts: number;
  readonly senders: number;
}

/** Something of this host: an own lease (LOCAL) or an own address (SELF). */
interface Own {
  readonly prefix: Prefix;
  readonly value: typeof LOCAL | typeof SELF;
}

/** A published change, as far as needed to finish or to undo it. */
interface Change {
  readonly prefix: Prefix;
  readonly before: Definition | undefined;
  readonly after: Definition;
}

export class Fib implements RouteTable {
  readonly memory: FibMemory;
  readonly #control: Int32Array;
  readonly #reclaimer: Reclaimer;
  readonly #heap: WordHeap;
  readonly #space: TrieSpace;
  readonly #nextHops: NextHopTable;
  readonly #encapsulation: RowEncapsulation;
  readonly #leaves4: FamilyLeaves;
  readonly #leaves6: FamilyLeaves;
  #own = new Map<string, Own>();
  #size = 0;

  /** Takes charge of empty memory from `createFibMemory`; there must be one writer for it, ever. */
  constructor(memory: FibMemory, options: FibOptions = {}) {
    this.memory = memory;
    this.#control = controlView(memory);
    this.#reclaimer = new Reclaimer(memory);
    const words = wordsView(memory);
    this.#heap = new WordHeap(words, HEAP_START, memory.wordCount);
    this.#space = new TrieSpace(words, this.#heap, this.#reclaimer);
    this.#encapsulation = options.encapsulation ?? NO_ENCAPSULATION;
    this.#nextHops = new NextHopTable(memory, this.#space, {
      underlayMtu: checkedMtu(options.underlayMtu ?? 1500),
      encapsulation: this.#encapsulation,
      onNextHopAdded: options.onNextHopAdded,
      onHostAdded: options.onHostAdded,
    });
    this.#leaves4 = new FamilyLeaves(this.#space, ROUTES4_ROOT, 1);
    this.#leaves6 = new FamilyLeaves(this.#space, ROUTES6_ROOT, 4);
  }

  get size(): number {
    return this.#size;
  }

  /** Counts calls that published something, wrapping at 2^32 (signed). */
  get generation(): number {
    return Atomics.load(this.#control, GENERATION_WORD);
  }

  set(prefix: Prefix | string, nextHop: NextHop): void {
    const where = Prefix.from(prefix);
    const parsed = parseNextHop(nextHop, this.#encapsulation);
    const leaves = this.#leaves(where.family);
    const before = leaves.definition(leaves.find(where));
    if (before?.parsed.key === parsed.key) return;
    if (before === undefined) this.#checkRoutes(this.#size + 1);
    const freed = before?.row.routes === 1 ? 1 : 0;
    if (!this.#nextHops.has(parsed.rowKey)) this.#checkNextHops(this.#nextHops.size + 1 - freed);
    this.#finish(this.#put(where, parsed));
    this.#published();
  }

  delete(prefix: Prefix | string): boolean {
    if (!this.#drop(Prefix.from(prefix))) return false;
    this.#published();
    return true;
  }

  replace(routes: Iterable<readonly [Prefix | string, NextHop]>): void {
    const wanted = new Map<string, readonly [Prefix, ParsedNextHop]>();
    const rowKeys = new Set<string>();
    for (const [prefix, nextHop] of routes) {
      const where = Prefix.from(prefix);
      wanted.set(`${addressKey(where.address)}/${where.length}`, [where, parseNextHop(nextHop, this.#encapsulation)]);
    }
    for (const [, parsed] of wanted.values()) rowKeys.add(parsed.rowKey);
    this.#checkRoutes(wanted.size);
    this.#checkNextHops(rowKeys.size);

    const kept = { 4: new Set<number>(), 6: new Set<number>() };
    const changed = [...wanted.values()].filter(([prefix, parsed]) => {
      const leaves = this.#leaves(prefix.family);
      const slot = leaves.find(prefix);
      kept[prefix.family].add(slot);
      return leaves.definition(slot)?.parsed.key !== parsed.key;
    });
    const obsolete: Prefix[] = [];
    for (const [leaves, slots] of [[this.#leaves4, kept[4]] as const, [this.#leaves6, kept[6]] as const]) {
      for (const slot of leaves.routes()) if (!slots.has(slot)) obsolete.push(leaves.prefix(slot));
    }
    if (changed.length === 0 && obsolete.length === 0) return;
    obsolete.sort((a, b) => a.length - b.length);
    changed.sort(([a], [b]) => b.length - a.length);

    // Next hops of changed routes are released at the end, so that undoing needs no memory and cannot fail.
    const done: Change[] = [];
    try {
      for (const [prefix, parsed] of changed) done.push(this.#put(prefix, parsed));
    } catch (error) {
      for (const change of done.reverse()) this.#undo(change);
      if (done.length > 0) this.#published();
      throw error;
    }
    for (const change of done) this.#finish(change);
    for (const prefix of obsolete) this.#drop(prefix);
    this.#published();
  }

  lookup(address: Address | string): NextHop | undefined {
    const where = Address.from(address);
    const { value, definition } = this.#leaves(where.family).match(where);
    return value < FIRST_NEXT_HOP ? undefined : definition?.nextHop;
  }

  entries(): IterableIterator<readonly [Prefix, NextHop]> {
    const entries: (readonly [Prefix, NextHop])[] = [];
    for (const leaves of [this.#leaves4, this.#leaves6]) {
      for (const slot of leaves.routes()) entries.push([leaves.prefix(slot), leaves.definition(slot)!.nextHop]);
    }
    return entries.values();
  }

  /**
   * What belongs to this host. Addresses inside the own leases look up as LOCAL, own addresses outside of them as
   * SELF; both before any route for the same prefix, which then waits beneath. Publishes the differences to the
   * call before, with the guarantees of {@link replace}.
   *
   * @throws PodwireError INVALID_ADDRESS or CAPACITY; nothing has changed then.
   */
  setLocal(leases: Iterable<Prefix | string>, ownAddresses: Iterable<Address | string> = []): void {
    const wanted = new Map<string, Own>();
    for (const lease of leases) {
      const prefix = Prefix.from(lease);
      wanted.set(prefix.toString(), { prefix, value: LOCAL });
    }
    const prefixes = Array.from(wanted.values(), (own) => own.prefix);
    for (const value of ownAddresses) {
      const address = Address.from(value);
      if (prefixes.some((prefix) => prefix.contains(address))) continue;
      const prefix = Prefix.of(address, address.bytes.length * 8);
      wanted.set(prefix.toString(), { prefix, value: SELF });
    }

    const before = this.#own;
    const changed = [...wanted].filter(([text, own]) => before.get(text)?.value !== own.value).map(([, own]) => own);
    const obsolete = [...before].filter(([text]) => !wanted.has(text)).map(([, own]) => own.prefix);
    if (changed.length === 0 && obsolete.length === 0) return;
    changed.sort((a, b) => b.prefix.length - a.prefix.length);
    obsolete.sort((a, b) => a.length - b.length);
    const done: Prefix[] = [];
    try {
      for (const { prefix, value } of changed) {
        this.#leaves(prefix.family).publish(prefix, value);
        done.push(prefix);
      }
    } catch (error) {
      for (const prefix of done.reverse()) this.#restore(prefix, before.get(prefix.toString())?.value);
      if (done.length > 0) this.#published();
      throw error;
    }
    for (const prefix of obsolete) this.#restore(prefix, undefined);
    this.#own = wanted;
    this.#reclaimer.collect();
    this.#published();
  }

  /** Whether the address looks up as LOCAL. */
  isLocal(address: Address | string): boolean {
    const where = Address.from(address);
    return this.#leaves(where.family).match(where).value === LOCAL;
  }

  /**
   * Sets the path MTU (bytes of outer packet) of all next hops with this underlay address. Returns how many there
   * are; 0 means that no route leads there and nothing is remembered.
   *
   * @throws PodwireError INVALID_ARGUMENT unless 68 <= mtu <= 65535, INVALID_ADDRESS.
   */
  setPathMtu(address: Address | string, mtu: number): number {
    const rows = this.#nextHops.setPathMtu(Address.from(address), checkedMtu(mtu));
    if (rows > 0) this.#published();
    return rows;
  }

  /** The next hop with this index (as look-ups return it), or undefined when no route uses it. */
  nextHopRow(index: number): NextHopRow | undefined {
    return this.#nextHops.row(index);
  }

  /** All next hops in use. */
  nextHopRows(): NextHopRow[] {
    return this.#nextHops.rows();
  }

  /** Declares a reader quiescent whose thread is dead and cannot do it itself. */
  clearReader(reader: number): void {
    Atomics.store(this.#control, readerWord(reader), 0);
  }

  /**
   * Takes back memory that readers have let go of. Every update does so; this is for a table that is not updated any
   * more. True when nothing is left waiting.
   */
  reclaim(): boolean {
    return this.#reclaimer.collect();
  }

  memoryUsage(): FibMemoryUsage {
    return {
      reservedBytes: this.memory.buffer.byteLength,
      heapWords: this.#heap.capacityWords,
      usedWords: this.#heap.usedWords,
      waitingWords: this.#space.waitingWords,
      extentWords: this.#heap.extentWords,
      peakWords: this.#heap.peakWords,
      nextHops: this.#nextHops.size,
      hosts: this.#nextHops.hosts,
      senders: this.#nextHops.senders,
    };
  }

  #leaves(family: Family): FamilyLeaves {
    return family === 4 ? this.#leaves4 : this.#leaves6;
  }

  #checkRoutes(routes: number): void {
    const { maxRoutes } = this.memory;
    if (routes <= maxRoutes) return;
    throw new PodwireError(
      'CAPACITY',
      `${routes} routes do not fit into a table of ${maxRoutes}: open it with a larger maxRoutes`,
    );
  }

  #checkNextHops(nextHops: number): void {
    const { maxNextHops } = this.memory;
    if (nextHops <= maxNextHops) return;
    throw new PodwireError(
      'CAPACITY',
      `${nextHops} next hops do not fit into a table of ${maxNextHops}: open it with a larger maxNextHops`,
    );
  }

  /** Publishes the own value for the prefix, else the route that was hidden, else nothing. */
  #restore(prefix: Prefix, own: Own['value'] | undefined): void {
    const leaves = this.#leaves(prefix.family);
    const value = own ?? leaves.definition(leaves.find(prefix))?.row.index;
    if (value === undefined) leaves.withdraw(prefix);
    else leaves.publish(prefix, value);
  }

  /** Publishes the route, but keeps hold of the next hop that it had before. */
  #put(prefix: Prefix, parsed: ParsedNextHop): Change {
    const leaves = this.#leaves(prefix.family);
    let slot = leaves.find(prefix);
    const before = leaves.definition(slot);
    const after = this.#nextHops.acquire(parsed);
    if (!isOwn(leaves.value(slot))) {
      try {
        slot = leaves.publish(prefix, after.row.index);
      } catch (error) {
        this.#nextHops.release(after);
        throw error;
      }
    }
    leaves.keep(slot, after);
    if (before === undefined) this.#size++;
    return { prefix, before, after };
  }

  #finish(change: Change): void {
    this.#nextHops.settle(change.after);
    if (change.before !== undefined) this.#nextHops.release(change.before);
    this.#reclaimer.collect();
  }

  #undo({ prefix, before, after }: Change): void {
    if (before === undefined) {
      this.#drop(prefix);
      return;
    }
    const leaves = this.#leaves(prefix.family);
    const slot = leaves.find(prefix);
    if (!isOwn(leaves.value(slot))) leaves.publish(prefix, before.row.index);
    leaves.keep(slot, before);
    this.#nextHops.release(after);
  }

  #drop(prefix: Prefix): boolean {
    const leaves = this.#leaves(prefix.family);
    const slot = leaves.find(prefix);
    const definition = leaves.definition(slot);
    if (definition === undefined) return false;
    leaves.keep(slot, undefined);
    if (!isOwn(leaves.value(slot))) leaves.withdraw(prefix);
    this.#size--;
    this.#nextHops.release(definition);
    this.#reclaimer.collect();
    return true;
  }

  /** Ends every call that changed something. */
  #published(): void {
    Atomics.add(this.#control, GENERATION_WORD, 1);
  }
}

function isOwn(value: number): boolean {
  return value !== NO_ROUTE && value < FIRST_NEXT_HOP;
}
