/** Address ranges as integers: the arithmetic behind free subnets and overlapping leases. */
import { Address, type Family, type Prefix } from '../net/prefix.js';

/** Inclusive on both ends. */
export interface Range {
  readonly first: bigint;
  readonly last: bigint;
}

export function toBigInt(address: Address): bigint {
  let value = 0n;
  for (let word = 0; word < address.bytes.length / 4; word++) value = (value << 32n) | BigInt(address.word(word));
  return value;
}

export function fromBigInt(value: bigint, family: Family): Address {
  return (family === 4 ? IPV4_ZERO : IPV6_ZERO).offset(value);
}

const IPV4_ZERO = Address.parse('0.0.0.0');
const IPV6_ZERO = Address.parse('::');

export function rangeOf(prefix: Prefix): Range {
  return { first: toBigInt(prefix.address), last: toBigInt(prefix.last) };
}

/** The same addresses as disjoint ranges in ascending order. */
export function mergeRanges(ranges: readonly Range[]): Range[] {
  const merged: Range[] = [];
  for (const range of ranges.toSorted((a, b) => (a.first < b.first ? -1 : a.first > b.first ? 1 : 0))) {
    const previous = merged.at(-1);
    if (previous === undefined || range.first > previous.last) merged.push(range);
    else if (range.last > previous.last) merged[merged.length - 1] = { first: previous.first, last: range.last };
  }
  return merged;
}

/** Prefixes of which no two overlap, each with a value. */
export class DisjointPrefixes<T> {
  readonly #sorted: Record<Family, { range: Range; prefix: Prefix; value: T }[]> = { 4: [], 6: [] };

  /** The value of a prefix that shares an address with `prefix`, if there is one. */
  overlapping(prefix: Prefix): T | undefined {
    const range = rangeOf(prefix);
    const entries = this.#sorted[prefix.family];
    // Disjoint and sorted: only the last entry that starts at or before our end can reach into us.
    const entry = entries[this.#after(entries, range.last) - 1];
    return entry !== undefined && entry.range.last >= range.first ? entry.value : undefined;
  }

  /** `prefix` must not overlap any that is present. */
  add(prefix: Prefix, value: T): void {
    const range = rangeOf(prefix);
    const entries = this.#sorted[prefix.family];
    entries.splice(this.#after(entries, range.first), 0, { range, prefix, value });
  }

  delete(prefix: Prefix): boolean {
    const entries = this.#sorted[prefix.family];
    const at = this.#after(entries, toBigInt(prefix.address)) - 1;
    if (!entries[at]?.prefix.equals(prefix)) return false;
    entries.splice(at, 1);
    return true;
  }

  /** Index of the first entry that starts behind `position`. */
  #after(entries: readonly { range: Range }[], position: bigint): number {
    let low = 0;
    let high = entries.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (entries[middle]!.range.first <= position) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
