/**
 * What a reader can meet between any two stores of the writer. Every published store of an update is followed by
 * look-ups of all addresses that could differ: each must show its result from before or from after the update, may
 * change once, and must be able to use what it found (a row with a host whose sender address is known).
 */
import fc from 'fast-check';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Fib } from '../../../src/fib/fib.js';
import type { FibMemory } from '../../../src/fib/layout.js';
import { FIRST_NEXT_HOP, LOCAL, createFibMemory } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import type { Bits, Width } from './model.js';
import { addressText, longestMatch, prefixBits, prefixText, probes, rowText, words } from './model.js';

type Table = ReadonlyMap<Bits, number>;
interface Scene {
  readonly before: Table;
  readonly after: Table;
  readonly localBefore: readonly Bits[];
  readonly localAfter: readonly Bits[];
}

/** Tables that share many prefixes and many values. */
function scenes(width: Width): fc.Arbitrary<Scene> {
  // Shorter ones mean tens of thousands of stores; the default route has a test of its own.
  const bits = prefixBits(width).filter((text) => text.length >= 6);
  const route = fc.tuple(bits, fc.nat(3), fc.nat(3), fc.nat(3));
  return fc
    .tuple(
      fc.array(route, { minLength: 1, maxLength: 30 }),
      fc.array(bits, { maxLength: 2 }),
      fc.array(bits, { maxLength: 2 }),
    )
    .map(([routes, localBefore, localAfter]) => {
      const before = new Map<Bits, number>();
      const after = new Map<Bits, number>();
      for (const [bits, where, old, now] of routes) {
        if (where !== 1) before.set(bits, old);
        if (where !== 2) after.set(bits, where === 3 ? old : now);
      }
      return { before, after, localBefore, localAfter };
    });
}

const list = (table: Table, width: Width) =>
  [...table].map(([bits, n]) => [prefixText(bits, width), { address: `192.0.2.${n + 1}` }] as const);
const localList = (prefixes: readonly Bits[], width: Width): string[] => prefixes.map((b) => prefixText(b, width));

function result(memory: FibMemory, index: number): string {
  if (index < FIRST_NEXT_HOP) return index === LOCAL ? 'local' : 'none';
  return rowText(memory, index);
}

/** The IPv4 underlay address in a row, as a word. */
function underlay(memory: FibMemory, index: number): number {
  return new DataView(memory.buffer, memory.rowsOffset + 64 * index).getInt32(4);
}

function wanted(table: Table, local: readonly Bits[], address: Bits): string {
  const all = [...[...table].filter(([bits]) => !local.includes(bits)), ...local.map((bits) => [bits, -1] as const)];
  const n = longestMatch<number>(all, address);
  return n === undefined ? 'none' : n < 0 ? 'local' : `192.0.2.${n + 1}:8285`;
}

/**
 * Runs `update` and looks at everything after each of its stores. Returns how many stores it looked at. What is wrong
 * is kept and thrown at the end: thrown from inside the writer, it would be undone and reported as something else.
 */
function watch(memory: FibMemory, expected: Map<Bits, readonly [string, string]>, update: () => void): number {
  const reader = new FibReader(memory, 0);
  const watched = [...expected].map(([address, [before, after]]) => {
    const [a, b, c, d] = words(address);
    const find = address.length === 32 ? () => reader.lookup4(a!) : () => reader.lookup6(a!, b!, c!, d!);
    const index = find();
    return { address, before, after, find, index, shown: before };
  });
  const store = Atomics.store.bind(Atomics) as (array: Int32Array, index: number, value: number) => number;
  let stores = 0;
  let wrong: string | undefined;
  const inspect = (): void => {
    for (const one of watched) {
      const index = one.find();
      if (index >= FIRST_NEXT_HOP && reader.lookupSender4(underlay(memory, index)) !== reader.hostId[index]) {
        wrong ??= `${addressText(one.address)} led to ${rowText(memory, index)}, which was not known as a sender`;
      }
      if (index === one.index) continue;
      const { before, after, shown } = one;
      const now = result(memory, index);
      if (!(now === after && shown === before)) {
        wrong ??= `${addressText(one.address)} showed ${now} after ${shown}, on its way from ${before} to ${after}`;
      }
      one.index = index;
      one.shown = now;
    }
  };
  vi.spyOn(Atomics, 'store').mockImplementation(((array: Int32Array, index: number, value: number) => {
    store(array, index, value);
    if (array.length === memory.wordCount) {
      stores++;
      inspect();
    }
    return value;
  }) as typeof Atomics.store);
  try {
    update();
  } finally {
    vi.restoreAllMocks();
  }
  if (wrong !== undefined) throw new Error(wrong);
  for (const { address, index, after } of watched) {
    expect(result(memory, index), addressText(address)).toBe(after);
  }
  return stores;
}

afterEach(() => vi.restoreAllMocks());

describe.each([32, 128] as const)('between two stores, %i-bit addresses', { timeout: 60_000 }, (width) => {
  it('every address goes from its old result to its new one in one step', () => {
    let stores = 0;
    fc.assert(
      fc.property(scenes(width), fc.boolean(), (scene, oneByOne) => {
        const memory = createFibMemory({ maxRoutes: 1000, maxNextHops: 16, readers: 2 });
        const fib = new Fib(memory);
        fib.replace(list(scene.before, width));
        fib.setLocal(localList(scene.localBefore, width));
        const addresses = probes([...scene.before.keys(), ...scene.after.keys(), ...scene.localAfter], width);
        const between = (from: Table, to: Table, localFrom: readonly Bits[], localTo: readonly Bits[]) =>
          new Map(addresses.map((a) => [a, [wanted(from, localFrom, a), wanted(to, localTo, a)] as const] as const));

        if (oneByOne) {
          const table = new Map(scene.before);
          for (const bits of new Set([...scene.before.keys(), ...scene.after.keys()])) {
            const from = new Map(table);
            const n = scene.after.get(bits);
            if (n === undefined) table.delete(bits);
            else table.set(bits, n);
            stores += watch(memory, between(from, table, scene.localBefore, scene.localBefore), () => {
              if (n === undefined) fib.delete(prefixText(bits, width));
              else fib.set(prefixText(bits, width), { address: `192.0.2.${n + 1}` });
            });
          }
        } else {
          stores += watch(memory, between(scene.before, scene.after, scene.localBefore, scene.localBefore), () =>
            fib.replace(list(scene.after, width)),
          );
        }
        stores += watch(memory, between(scene.after, scene.after, scene.localBefore, scene.localAfter), () =>
          fib.setLocal(localList(scene.localAfter, width)),
        );
      }),
      { numRuns: 150 },
    );
    expect(stores).toBeGreaterThan(100);
  });

  it('a default route changes beneath longer routes', () => {
    const memory = createFibMemory({ maxRoutes: 1000, maxNextHops: 16, readers: 2 });
    const fib = new Fib(memory);
    const longer = ['00001010', '0000101011000000', '000010101100000010', '0000101011000000101010101'];
    const routes = new Map(longer.map((bits, i) => [bits, i] as const));
    fib.replace(list(routes, width));
    const addresses = probes(longer, width);
    let before: Table = routes;
    for (const n of [9, 8, undefined]) {
      const after = new Map(routes);
      if (n !== undefined) after.set('', n);
      const expected = addresses.map((a) => [a, [wanted(before, [], a), wanted(after, [], a)] as const] as const);
      const stores = watch(memory, new Map(expected), () => fib.replace(list(after, width)));
      expect(stores).toBeGreaterThan(65_000);
      before = after;
    }
  });
});
