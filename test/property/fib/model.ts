/**
 * The slow, obvious forwarding table: a list of bit strings, scanned. Shares no code with src/fib or src/net.
 */
import fc from 'fast-check';
import type { FibMemory } from '../../../src/fib/layout.js';
import { rowsView } from '../../../src/fib/layout.js';
import type { FibReader } from '../../../src/fib/lookup.js';

/** A prefix or address as '0' and '1', most significant first. */
export type Bits = string;
export type Width = 32 | 128;

/** `text` of a full-width address. */
export function addressText(bits: Bits): string {
  const group = bits.length === 32 ? 8 : 16;
  const numbers: string[] = [];
  for (let i = 0; i < bits.length; i += group) {
    numbers.push(parseInt(bits.slice(i, i + group), 2).toString(group === 8 ? 10 : 16));
  }
  return numbers.join(group === 8 ? '.' : ':');
}

export function prefixText(bits: Bits, width: Width): string {
  return `${addressText(bits.padEnd(width, '0'))}/${bits.length}`;
}

/** Big-endian signed 32-bit words of a full-width address. */
export function words(bits: Bits): number[] {
  const result: number[] = [];
  for (let i = 0; i < bits.length; i += 32) result.push(parseInt(bits.slice(i, i + 32), 2) | 0);
  return result;
}

export function look(reader: FibReader, bits: Bits): number {
  const [a, b, c, d] = words(bits);
  return bits.length === 32 ? reader.lookup4(a!) : reader.lookup6(a!, b!, c!, d!);
}

export function lookSender(reader: FibReader, bits: Bits): number {
  const [a, b, c, d] = words(bits);
  return bits.length === 32 ? reader.lookupSender4(a!) : reader.lookupSender6(a!, b!, c!, d!);
}

/** What longest-prefix match finds in a list of prefixes. */
export function longestMatch<T>(prefixes: Iterable<readonly [Bits, T]>, address: Bits): T | undefined {
  let best: readonly [Bits, T] | undefined;
  for (const entry of prefixes) {
    if (address.startsWith(entry[0]) && (best === undefined || entry[0].length > best[0].length)) best = entry;
  }
  return best?.[1];
}

/** The IPv4 underlay address and port in a next-hop row, read as native code reads them: `a.b.c.d:port`. */
export function rowText(memory: FibMemory, index: number): string {
  const row = rowsView(memory).subarray(index * 64, index * 64 + 64);
  return `${row[4]}.${row[5]}.${row[6]}.${row[7]}:${row[2]! * 256 + row[3]!}`;
}

/** Addresses where results can differ: the ends of a prefix, just outside of it, and inside at random. */
export function probes(prefixes: Iterable<Bits>, width: Width): Bits[] {
  const found = new Set<Bits>(['0'.repeat(width), '1'.repeat(width)]);
  for (const bits of prefixes) {
    found.add(bits.padEnd(width, '0'));
    found.add(bits.padEnd(width, '1'));
    found.add(bits.padEnd(width, '0110100110010110'));
    if (bits.length > 0) {
      const flipped = bits.slice(0, -1) + (bits.endsWith('0') ? '1' : '0');
      found.add(flipped.padEnd(width, '0'));
      found.add(flipped.padEnd(width, '1'));
    }
  }
  return [...found];
}

/** Where prefixes gather: few stems, so that they nest, repeat and branch off from one another everywhere. */
function stems(width: Width): Bits[] {
  const net = width === 32 ? '00001010110000001010101010011001' : '1111110100000000'.padEnd(128, '0110100111110000');
  const lengths =
    width === 32
      ? [0, 7, 8, 12, 15, 16, 17, 20, 23, 24, 25]
      : [0, 8, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 120];
  return ['', ...lengths.map((n) => net.slice(0, n)), ...lengths.map((n) => net.slice(0, n) + '1')];
}

/** A prefix's bits: a stem and a tail, short and dense or long and sparse. */
export function prefixBits(width: Width): fc.Arbitrary<Bits> {
  const bit = fc.constantFrom('0', '1');
  const dense = fc.array(bit, { maxLength: 4 });
  const sparse = fc.array(bit, { maxLength: width === 32 ? 16 : 70 });
  return fc
    .tuple(fc.constantFrom(...stems(width)), fc.oneof(dense, sparse))
    .map(([stem, tail]) => (stem + tail.join('')).slice(0, width));
}
