/**
 * Next hops as readers and native code see them, and who refers to what.
 *
 * Three levels, each counted by the one before: routes refer to a definition (one distinct {@link NextHop} value),
 * definitions refer to a row (address, port, VTEP MAC: what a packet is sent with), rows refer to a host (an underlay
 * address: whose packets these are, and how large they may be). A row or host id that nothing refers to any more is
 * retired, and its number is used again only when no reader can still hold it.
 */
import { PodwireError } from '../errors.js';
import type { Address, MacAddress } from '../net/prefix.js';
import type { FibMemory } from './layout.js';
import {
  FIRST_NEXT_HOP,
  ROW_BYTES,
  ROW_HEADER,
  ROW_HEADER_BYTES,
  ROW_HOST_ID,
  ROW_MAC,
  ROW_SOCKADDR,
  ROW_SOCKADDR_LENGTH,
  hostIdView,
  pathMtuView,
  rowsView,
} from './layout.js';
import type { NextHop, ParsedNextHop, RowEncapsulation } from './next-hop.js';
import { shownNextHop } from './next-hop.js';
import type { Reclaimer } from './reclaim.js';
import { SenderTable, addressKey } from './senders.js';
import type { TrieSpace } from './trie.js';

/** A next hop in use, for status and statistics. */
export interface NextHopRow {
  readonly index: number;
  readonly address: Address;
  readonly port: number;
  readonly vtepMac: MacAddress | undefined;
  readonly hostId: number;
  /** Bytes of outer packet. */
  readonly pathMtu: number;
  /** Routes through it. */
  readonly routes: number;
}

interface Host {
  readonly address: Address;
  readonly id: number;
  readonly rows: Row[];
  pathMtu: number;
}

interface Row {
  readonly index: number;
  readonly key: string;
  readonly host: Host;
  readonly port: number;
  readonly vtepMac: MacAddress | undefined;
  routes: number;
}

/** One distinct next hop of some routes. */
export interface Definition {
  readonly parsed: ParsedNextHop;
  readonly row: Row;
  /** What `lookup` and `entries` show. */
  readonly nextHop: NextHop;
  routes: number;
  /** Whether its MTU has been given to the host. */
  settled: boolean;
}

const AF_INET = 2;
const AF_INET6 = 10;

/** Numbers first..end-1 that are handed out, retired, and handed out again once no reader can hold them. */
class NumberPool {
  readonly #end: number;
  readonly #reclaimer: Reclaimer;
  readonly #kind: number;
  readonly #freed: number[] = [];
  #next: number;

  constructor(first: number, end: number, reclaimer: Reclaimer) {
    this.#next = first;
    this.#end = end;
    this.#reclaimer = reclaimer;
    this.#kind = reclaimer.addOwner((number) => this.#freed.push(number));
  }

  /** A number that nobody holds, or -1. */
  take(): number {
    if (this.#freed.length === 0 && this.#next === this.#end) this.#reclaimer.collect();
    const freed = this.#freed.pop();
    if (freed !== undefined) return freed;
    return this.#next < this.#end ? this.#next++ : -1;
  }

  /** Back from somebody who let no reader see it. */
  putBack(number: number): void {
    this.#freed.push(number);
  }

  retire(number: number): void {
    this.#reclaimer.retire(this.#kind, number);
  }
}

export interface NextHopOptions {
  /** Path MTU of hosts about which nothing is known, in bytes. */
  readonly underlayMtu: number;
  readonly encapsulation: RowEncapsulation;
  /**
   * Called with a next hop's index before any reader can get it from a look-up, and after every reader has let go
   * of its previous meaning: the moment to clear what is counted under that index.
   */
  readonly onNextHopAdded?: ((index: number) => void) | undefined;
  /** The same for the id of a host: called before any reader can get it from a sender look-up. */
  readonly onHostAdded?: ((id: number) => void) | undefined;
}

export class NextHopTable {
  readonly #options: NextHopOptions;
  readonly #rows: Uint8Array;
  readonly #view: DataView;
  readonly #pathMtu: Uint16Array;
  readonly #hostId: Uint32Array;
  readonly #rowNumbers: NumberPool;
  readonly #hostNumbers: NumberPool;
  readonly #senders: SenderTable;
  readonly #definitions = new Map<string, Definition>();
  readonly #rowByKey = new Map<string, Row>();
  readonly #rowByIndex = new Map<number, Row>();
  readonly #hosts = new Map<string, Host>();

  constructor(memory: FibMemory, space: TrieSpace, options: NextHopOptions) {
    this.#options = options;
    this.#rows = rowsView(memory);
    this.#view = new DataView(memory.buffer, memory.rowsOffset, this.#rows.length);
    this.#pathMtu = pathMtuView(memory);
    this.#hostId = hostIdView(memory);
    this.#rowNumbers = new NumberPool(FIRST_NEXT_HOP, memory.rowCapacity, space.reclaimer);
    this.#hostNumbers = new NumberPool(1, memory.rowCapacity, space.reclaimer);
    this.#senders = new SenderTable(space);
  }

  /** Number of rows in use. */
  get size(): number {
    return this.#rowByIndex.size;
  }

  get hosts(): number {
    return this.#hosts.size;
  }

  get senders(): number {
    return this.#senders.size;
  }

  has(rowKey: string): boolean {
    return this.#rowByKey.has(rowKey);
  }

  row(index: number): NextHopRow | undefined {
    const row = this.#rowByIndex.get(index);
    return row === undefined ? undefined : describe(row);
  }

  rows(): NextHopRow[] {
    return Array.from(this.#rowByIndex.values(), describe);
  }

  /**
   * The definition for one more route, with its row written and its senders published. Call {@link settle} once the
   * route is published, or {@link release} when it could not be.
   *
   * @throws PodwireError CAPACITY, with nothing changed.
   */
  acquire(parsed: ParsedNextHop): Definition {
    let definition = this.#definitions.get(parsed.key);
    if (definition === undefined) {
      const row = this.#rowByKey.get(parsed.rowKey) ?? this.#addRow(parsed);
      try {
        this.#claimSenders(parsed, row.host);
      } catch (error) {
        if (row.routes === 0) this.#removeRow(row);
        throw error;
      }
      definition = { parsed, row, nextHop: shownNextHop(parsed), routes: 0, settled: false };
      this.#definitions.set(parsed.key, definition);
    }
    definition.routes++;
    definition.row.routes++;
    return definition;
  }

  /** Gives the host of a new definition its path MTU. */
  settle(definition: Definition): void {
    if (definition.settled) return;
    definition.settled = true;
    if (definition.parsed.mtu !== undefined) this.#setHostMtu(definition.row.host, definition.parsed.mtu);
  }

  /** One route less; call it after readers can no longer get the row for that route. */
  release(definition: Definition): void {
    const { row, parsed } = definition;
    row.routes--;
    if (--definition.routes > 0) return;
    this.#definitions.delete(parsed.key);
    for (const sender of parsed.senders) this.#senders.release(sender, row.host.id, false);
    if (row.routes === 0) this.#removeRow(row);
  }

  /** Stores the MTU into every row with this underlay address; the number of rows. */
  setPathMtu(address: Address, mtu: number): number {
    const host = this.#hosts.get(addressKey(address));
    if (host === undefined) return 0;
    this.#setHostMtu(host, mtu);
    return host.rows.length;
  }

  #setHostMtu(host: Host, mtu: number): void {
    host.pathMtu = mtu;
    for (const row of host.rows) Atomics.store(this.#pathMtu, row.index, mtu);
  }

  #claimSenders(parsed: ParsedNextHop, host: Host): void {
    let claimed = 0;
    try {
      for (const sender of parsed.senders) {
        this.#senders.claim(sender, host.id, false);
        claimed++;
      }
    } catch (error) {
      for (const sender of parsed.senders.slice(0, claimed)) this.#senders.release(sender, host.id, false);
      throw error;
    }
  }

  #addRow(parsed: ParsedNextHop): Row {
    const index = this.#rowNumbers.take();
    if (index < 0) throw noNumber(parsed);
    let host = this.#hosts.get(addressKey(parsed.address));
    try {
      host ??= this.#addHost(parsed);
    } catch (error) {
      this.#rowNumbers.putBack(index);
      throw error;
    }
    const row: Row = { index, key: parsed.rowKey, host, port: parsed.port, vtepMac: parsed.vtepMac, routes: 0 };
    host.rows.push(row);
    this.#rowByKey.set(row.key, row);
    this.#rowByIndex.set(index, row);
    this.#write(row);
    this.#options.onNextHopAdded?.(index);
    return row;
  }

  #removeRow(row: Row): void {
    const { host } = row;
    this.#rowByKey.delete(row.key);
    this.#rowByIndex.delete(row.index);
    host.rows.splice(host.rows.indexOf(row), 1);
    this.#rowNumbers.retire(row.index);
    if (host.rows.length > 0) return;
    this.#hosts.delete(addressKey(host.address));
    this.#senders.release(host.address, host.id, true);
    this.#hostNumbers.retire(host.id);
  }

  #addHost(parsed: ParsedNextHop): Host {
    const id = this.#hostNumbers.take();
    if (id < 0) throw noNumber(parsed);
    this.#options.onHostAdded?.(id);
    try {
      this.#senders.claim(parsed.address, id, true);
    } catch (error) {
      this.#hostNumbers.putBack(id);
      throw error;
    }
    const host: Host = { address: parsed.address, id, rows: [], pathMtu: parsed.mtu ?? this.#options.underlayMtu };
    this.#hosts.set(addressKey(parsed.address), host);
    return host;
  }

  /** Fills in a row that no reader refers to; see layout.ts for the fields. */
  #write(row: Row): void {
    const view = this.#view;
    const base = row.index * ROW_BYTES;
    const { bytes, family } = row.host.address;
    this.#rows.fill(0, base, base + ROW_BYTES);
    view.setUint16(base + ROW_SOCKADDR, family === 4 ? AF_INET : AF_INET6, true);
    view.setUint16(base + ROW_SOCKADDR + 2, row.port, false);
    this.#rows.set(bytes, base + ROW_SOCKADDR + (family === 4 ? 4 : 8));
    view.setUint16(base + ROW_SOCKADDR_LENGTH, family === 4 ? 16 : 28, true);
    view.setUint32(base + ROW_HOST_ID, row.host.id, true);
    if (row.vtepMac !== undefined) this.#rows.set(row.vtepMac.bytes, base + ROW_MAC);
    this.#rows.set(this.#options.encapsulation.header(4, row.vtepMac).subarray(0, ROW_HEADER_BYTES), base + ROW_HEADER);
    this.#hostId[row.index] = row.host.id;
    this.#pathMtu[row.index] = row.host.pathMtu;
  }
}

function describe(row: Row): NextHopRow {
  const { index, host, port, vtepMac, routes } = row;
  return { index, address: host.address, port, vtepMac, hostId: host.id, pathMtu: host.pathMtu, routes };
}

function noNumber(parsed: ParsedNextHop): PodwireError {
  return new PodwireError(
    'CAPACITY',
    `no room for next hop ${parsed.address.toString()}: all rows are in use or wait for readers; open the table with a larger maxNextHops`,
  );
}
