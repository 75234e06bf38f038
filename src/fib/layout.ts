/**
 * The forwarding table's shared memory: where everything lies and what one word means.
 *
 * One SharedArrayBuffer, written by the main thread only, read by workers without locks. Byte offsets are in
 * {@link FibMemory}, a plain object of numbers that crosses to workers and to native code.
 *
 * | region     | element              | content                                                            |
 * |------------|----------------------|--------------------------------------------------------------------|
 * | control    | int32                | word 0: epoch, word 1: generation; then 64 bytes for each reader,  |
 * |            |                      | the first word of which is its epoch                               |
 * | pathMtu    | uint16 per next hop  | path MTU in bytes of outer packet                                  |
 * | hostId     | uint32 per next hop  | the host that the next hop is on, >= 1                             |
 * | rows       | 64 bytes a next hop  | what native code needs to send (below)                             |
 * | words      | int32                | four roots of 65,536 entries, then the heap of chunks and skips    |
 *
 * A next-hop row (host byte order is little endian on every platform podwire runs on):
 *
 * | offset | size | field                                                                        |
 * |--------|------|------------------------------------------------------------------------------|
 * | 0      | 28   | sockaddr_in (16 bytes used) or sockaddr_in6: family in host order, port big  |
 * |        |      | endian, address; sockaddr_in6 has flow info 0 and scope id 0                 |
 * | 28     | 2    | length of that sockaddr, 16 or 28; 0 in a row that was never used            |
 * | 30     | 2    | flags, 0                                                                     |
 * | 32     | 4    | host id                                                                      |
 * | 36     | 6    | VTEP MAC, zero when the encapsulation has none                               |
 * | 42     | 22   | header in front of inner IPv4 packets, from the encapsulation; zero without  |
 *
 * A trie entry is one int32:
 *
 * | value                      | meaning                                                                    |
 * |----------------------------|----------------------------------------------------------------------------|
 * | >= 0                       | leaf: NO_ROUTE, LOCAL, SELF or next-hop index in route tries, host id or 0 |
 * |                            | in sender tries                                                            |
 * | < 0, bits 30..27 = s, 1..8 | chunk of 2^s entries, indexed by the next s address bits                   |
 * | < 0, bits 30..27 = 0       | skip record, IPv6 only: 4 pattern words, the entry to go on with if the    |
 * |                            | first `depth` address bits are the pattern's, the leaf if not, `depth`, 0  |
 *
 * Leaves are below 2^27, and bits 26..0 of a pointer are an index into `words`. A root consumes the first 16 address
 * bits. No chunk reaches across a 32-bit border of the address, so that a reader holds one address word at a time;
 * skip records do, and compare the whole address again rather than only what is new.
 *
 * Reclamation is by epochs (quiescent states). A reader's word holds the epoch it entered in, or 0 while it holds no
 * reference to the table: before its first and after its last batch, while it waits in the kernel (native code
 * stores 0 before it blocks) and when its thread is dead (the main thread stores 0). See reclaim.ts.
 */
import { PodwireError } from '../errors.js';

/** Look-up result: no route. */
export const NO_ROUTE = 0;
/** Look-up result: inside an own lease, deliver on this host. */
export const LOCAL = 1;
/** Look-up result: an address of this host itself; nothing is delivered there and nobody may use it as a source. */
export const SELF = 2;
/** The smallest index of a real next hop. */
export const FIRST_NEXT_HOP = 3;

/** Index of the epoch word in the control region (int32). Never 0. */
export const EPOCH_WORD = 0;
/** Index of the generation word in the control region (int32, wraps). */
export const GENERATION_WORD = 1;
/** Each reader's epoch word has a cache line of its own. */
export const READER_STRIDE_BYTES = 64;

export const ROW_BYTES = 64;
export const ROW_SOCKADDR = 0;
export const ROW_SOCKADDR_LENGTH = 28;
export const ROW_FLAGS = 30;
export const ROW_HOST_ID = 32;
export const ROW_MAC = 36;
export const ROW_HEADER = 42;
export const ROW_HEADER_BYTES = 22;

export const ROOT_BITS = 16;
export const ROOT_WORDS = 1 << ROOT_BITS;
/** Word indices of the four roots and of the heap behind them. */
export const ROUTES4_ROOT = 0;
export const ROUTES6_ROOT = ROOT_WORDS;
export const SENDERS4_ROOT = 2 * ROOT_WORDS;
export const SENDERS6_ROOT = 3 * ROOT_WORDS;
export const HEAP_START = 4 * ROOT_WORDS;

export const POINTER = 0x80000000 | 0;
export const STRIDE_SHIFT = 27;
export const OFFSET_MASK = (1 << STRIDE_SHIFT) - 1;
/** The widest chunk, in address bits. */
export const MAX_STRIDE = 8;
/** A skip record is 2^3 words: the pattern and these. */
export const SKIP_ORDER = 3;
export const SKIP_NEXT = 4;
/** Must follow SKIP_NEXT: readers add 1 instead of branching. */
export const SKIP_MISS = 5;
export const SKIP_DEPTH = 6;

/** Masks of the first 0 to 128 bits, 4 words each. */
export const PREFIX_MASKS: Int32Array = Int32Array.from({ length: 129 * 4 }, (_, i) => {
  const bits = Math.max(0, Math.min(32, (i >>> 2) - 32 * (i & 3)));
  return bits === 0 ? 0 : -1 << (32 - bits);
});

/** Shape of the table: where each region lies in `buffer`, in bytes. Safe to post to workers. */
export interface FibMemory {
  readonly buffer: SharedArrayBuffer;
  readonly maxRoutes: number;
  readonly maxNextHops: number;
  /** How many epoch words there are: reader indices are 0..readers-1. */
  readonly readers: number;
  /** Next-hop indices are below this: more than maxNextHops, for rows that wait to be reused. */
  readonly rowCapacity: number;
  readonly controlOffset: number;
  /** Reader r's epoch word is the int32 at `readersOffset + r * 64`. */
  readonly readersOffset: number;
  readonly pathMtuOffset: number;
  readonly hostIdOffset: number;
  readonly rowsOffset: number;
  readonly wordsOffset: number;
  /** Roots and heap, in words. */
  readonly wordCount: number;
}

export interface FibLimits {
  /** Most routes at a time, own leases not counted: 1 to 500,000. */
  readonly maxRoutes: number;
  /** Most different next hops at a time: 1 to 500,000. */
  readonly maxNextHops: number;
  /** How many threads look up: 1 to 1,024. */
  readonly readers: number;
}

const MOST_ROUTES = 500_000;
const MOST_READERS = 1024;
/**
 * Heap words reserved for each route and next hop. A chunk has at most 8 entries for each prefix beneath it and a
 * path has few chunks, so this also holds what an update builds aside and what waits for readers. Address space
 * only: pages that are never touched are never committed.
 */
const WORDS_PER_ROUTE = 128;
const WORDS_PER_NEXT_HOP = 64;
const SMALLEST_HEAP_WORDS = 1 << 16;
const SPARE_ROWS = 64;

const PAGE_BYTES = 4096;

function checkedLimit(name: string, value: number, most: number): number {
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new PodwireError(
    'INVALID_ARGUMENT',
    `cannot make a forwarding table with ${name} ${String(value)}: give a whole number from 1 to ${most}`,
  );
}

/**
 * Reserves an empty table. Only the pages that get used are committed.
 *
 * @throws PodwireError INVALID_ARGUMENT for a limit out of range, CAPACITY when the address space cannot be had.
 */
export function createFibMemory(limits: FibLimits): FibMemory {
  const maxRoutes = checkedLimit('maxRoutes', limits.maxRoutes, MOST_ROUTES);
  const maxNextHops = checkedLimit('maxNextHops', limits.maxNextHops, MOST_ROUTES);
  const readers = checkedLimit('readers', limits.readers, MOST_READERS);
  // Replacing every next hop needs the old and the new rows together, and freed ones wait for readers.
  const rowCapacity = FIRST_NEXT_HOP + 2 * maxNextHops + SPARE_ROWS;
  const heapWords = Math.max(SMALLEST_HEAP_WORDS, maxRoutes * WORDS_PER_ROUTE + maxNextHops * WORDS_PER_NEXT_HOP);
  const wordCount = HEAP_START + (heapWords & -(1 << MAX_STRIDE));

  let end = 0;
  const region = (bytes: number): number => {
    const start = end;
    end = Math.ceil((start + bytes) / PAGE_BYTES) * PAGE_BYTES;
    return start;
  };
  const controlOffset = region(READER_STRIDE_BYTES * (1 + readers));
  const pathMtuOffset = region(rowCapacity * 2);
  const hostIdOffset = region(rowCapacity * 4);
  const rowsOffset = region(rowCapacity * ROW_BYTES);
  const wordsOffset = region(wordCount * 4);

  let buffer: SharedArrayBuffer;
  try {
    buffer = new SharedArrayBuffer(end);
  } catch (cause) {
    const mib = Math.ceil(end / 2 ** 20);
    throw new PodwireError(
      'CAPACITY',
      `cannot reserve ${mib} MiB of address space for ${maxRoutes} routes and ${maxNextHops} next hops: lower maxRoutes or raise the memory limit (ulimit -v)`,
      { cause },
    );
  }
  const memory: FibMemory = {
    buffer,
    maxRoutes,
    maxNextHops,
    readers,
    rowCapacity,
    controlOffset,
    readersOffset: controlOffset + READER_STRIDE_BYTES,
    pathMtuOffset,
    hostIdOffset,
    rowsOffset,
    wordsOffset,
    wordCount,
  };
  Atomics.store(controlView(memory), EPOCH_WORD, 1);
  return memory;
}

/** Epoch, generation and the readers' epoch words. */
export function controlView(memory: FibMemory): Int32Array<SharedArrayBuffer> {
  return new Int32Array(memory.buffer, memory.controlOffset, (READER_STRIDE_BYTES / 4) * (1 + memory.readers));
}

/** Index of reader `reader`'s epoch word in {@link controlView}. */
export function readerWord(reader: number): number {
  return (READER_STRIDE_BYTES / 4) * (1 + reader);
}

/** Roots and heap of the four tries. */
export function wordsView(memory: FibMemory): Int32Array<SharedArrayBuffer> {
  return new Int32Array(memory.buffer, memory.wordsOffset, memory.wordCount);
}

export function pathMtuView(memory: FibMemory): Uint16Array<SharedArrayBuffer> {
  return new Uint16Array(memory.buffer, memory.pathMtuOffset, memory.rowCapacity);
}

export function hostIdView(memory: FibMemory): Uint32Array<SharedArrayBuffer> {
  return new Uint32Array(memory.buffer, memory.hostIdOffset, memory.rowCapacity);
}

/** All next-hop rows, {@link ROW_BYTES} each; the view to register with native code. */
export function rowsView(memory: FibMemory): Uint8Array<SharedArrayBuffer> {
  return new Uint8Array(memory.buffer, memory.rowsOffset, memory.rowCapacity * ROW_BYTES);
}
