/**
 * The reading side of the forwarding table: one {@link FibReader} per worker thread.
 *
 * Nothing here locks, allocates or fails. A look-up reads a root entry and follows pointers until it meets a leaf
 * (see layout.ts for the words). Reads are plain loads of aligned 32-bit words, which cannot tear; the writer
 * publishes a pointer only after what it points to, and each load depends on the one before, so that a reader never
 * sees a half-built chunk, also on processors with weak ordering.
 */
import { PodwireError } from '../errors.js';
import type { FibMemory } from './layout.js';
import {
  EPOCH_WORD,
  GENERATION_WORD,
  OFFSET_MASK,
  PREFIX_MASKS,
  ROUTES4_ROOT,
  ROUTES6_ROOT,
  SENDERS4_ROOT,
  SENDERS6_ROOT,
  SKIP_DEPTH,
  SKIP_NEXT,
  STRIDE_SHIFT,
  controlView,
  hostIdView,
  pathMtuView,
  readerWord,
  wordsView,
} from './layout.js';

/** The leaf for an IPv4 address (any 32-bit pattern) in the trie whose root starts at word `root`. */
function walk4(words: Int32Array, root: number, address: number): number {
  let entry = words[root + (address >>> 16)]!;
  if (entry >= 0) return entry;
  let stride = (entry >>> STRIDE_SHIFT) & 15;
  let rest = address << 16;
  let at = (entry & OFFSET_MASK) + ((rest >>> (32 - stride)) & 0xff);
  entry = words[at]!;
  // The second step is taken even from a leaf, which then reads itself again: whether it is one is as good as random
  // in a table of mixed lengths, and a branch on it would cost more than the step. Should the writer put a pointer
  // there in between, the walk goes on from it correctly: a leaf's stride bits are 0, so no bits were used up.
  const leaf = ~(entry >> 31);
  rest <<= stride;
  stride = (entry >>> STRIDE_SHIFT) & 15;
  at = (at & leaf) | (((entry & OFFSET_MASK) + ((rest >>> (32 - stride)) & 0xff)) & ~leaf);
  entry = words[at]!;
  while (entry < 0) {
    rest <<= stride;
    stride = (entry >>> STRIDE_SHIFT) & 15;
    entry = words[(entry & OFFSET_MASK) + ((rest >>> (32 - stride)) & 0xff)]!;
  }
  return entry;
}

/** The leaf for an IPv6 address given as four big-endian words in the trie whose root starts at word `root`. */
function walk6(words: Int32Array, root: number, a: number, b: number, c: number, d: number): number {
  let entry = words[root + (a >>> 16)]!;
  if (entry >= 0) return entry;
  // `rest`: the unread bits of the current address word, at the top; `depth`: how many bits were read in all. They are
  // brought up to date only for entries that go on, because choosing the word is a branch that is hard to predict.
  let rest = a << 16;
  let depth = 16;
  for (;;) {
    const at = entry & OFFSET_MASK;
    const stride = (entry >>> STRIDE_SHIFT) & 15;
    if (stride !== 0) {
      entry = words[at + ((rest >>> (32 - stride)) & 0xff)]!;
      if (entry >= 0) return entry;
      rest <<= stride;
      depth += stride;
      if ((depth & 31) === 0) rest = depth === 32 ? b : depth === 64 ? c : d;
    } else {
      depth = words[at + SKIP_DEPTH]! & 0xff;
      const mask = depth << 2;
      const difference =
        ((a ^ words[at]!) & PREFIX_MASKS[mask]!) |
        ((b ^ words[at + 1]!) & PREFIX_MASKS[mask + 1]!) |
        ((c ^ words[at + 2]!) & PREFIX_MASKS[mask + 2]!) |
        ((d ^ words[at + 3]!) & PREFIX_MASKS[mask + 3]!);
      entry = words[at + SKIP_NEXT + ((difference | (0 - difference)) >>> 31)]!;
      if (entry >= 0) return entry;
      rest = (depth < 64 ? (depth < 32 ? a : b) : depth < 96 ? c : d) << (depth & 31);
    }
  }
}

/**
 * One thread's view of the table.
 *
 * Call {@link enter} before a batch of look-ups and again after every wait; indices from look-ups, and the rows,
 * `pathMtu` and `hostId` entries that they name, stay valid until the next {@link enter}, {@link leave} or wait in
 * native code, whichever comes first. A reader that neither enters again nor leaves keeps the writer from reusing
 * memory, so never wait in between. The same index must not be used by two threads at a time.
 *
 * Addresses are 32-bit words in network order meaning, signed or unsigned. Signed ones (`DataView.getInt32`) spare
 * V8 a heap number above 2^31.
 */
export class FibReader {
  /** Path MTU by next-hop index, in bytes of outer packet. */
  readonly pathMtu: Uint16Array;
  /** Host id by next-hop index; 0 for {@link NO_ROUTE} and {@link LOCAL}. */
  readonly hostId: Uint32Array;
  readonly #control: Int32Array;
  readonly #slot: number;
  readonly #words: Int32Array;

  /** @throws PodwireError INVALID_ARGUMENT unless 0 <= readerIndex < memory.readers. */
  constructor(memory: FibMemory, readerIndex: number) {
    if (!Number.isInteger(readerIndex) || readerIndex < 0 || readerIndex >= memory.readers) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `no forwarding table reader ${readerIndex}: the table was made for readers 0 to ${memory.readers - 1}`,
      );
    }
    this.pathMtu = pathMtuView(memory);
    this.hostId = hostIdView(memory);
    this.#control = controlView(memory);
    this.#slot = readerWord(readerIndex);
    this.#words = wordsView(memory);
  }

  /**
   * Starts (or renews) the use of the table: whatever was looked up before may now be reused.
   *
   * The epoch is read again after it was stored. Without that second load a processor with weak ordering could run
   * look-ups before the store is visible, and the writer could take the reader for absent.
   */
  enter(): void {
    const control = this.#control;
    let epoch: number;
    do {
      epoch = Atomics.load(control, EPOCH_WORD);
      Atomics.store(control, this.#slot, epoch);
    } while (Atomics.load(control, EPOCH_WORD) !== epoch);
  }

  /** Ends the use of the table; look up nothing until the next {@link enter}. */
  leave(): void {
    Atomics.store(this.#control, this.#slot, 0);
  }

  /** Longest-prefix match: {@link NO_ROUTE}, {@link LOCAL} or a next-hop index. */
  lookup4(address: number): number {
    return walk4(this.#words, ROUTES4_ROOT, address);
  }

  /** Longest-prefix match of the address with big-endian words a, b, c, d. */
  lookup6(a: number, b: number, c: number, d: number): number {
    return walk6(this.#words, ROUTES6_ROOT, a, b, c, d);
  }

  /** Host id of the host that sends from this outer IPv4 address, 0 when none does. */
  lookupSender4(address: number): number {
    return walk4(this.#words, SENDERS4_ROOT, address);
  }

  /** Host id of the host that sends from this outer IPv6 address, 0 when none does. */
  lookupSender6(a: number, b: number, c: number, d: number): number {
    return walk6(this.#words, SENDERS6_ROOT, a, b, c, d);
  }

  /** Counts published updates, wrapping at 2^32 (signed); equal values mean that nothing was changed in between. */
  get generation(): number {
    return Atomics.load(this.#control, GENERATION_WORD);
  }
}
