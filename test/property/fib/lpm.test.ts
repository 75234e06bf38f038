/** Longest-prefix match through the shared memory against a list scan, over random histories. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { PodwireError } from '../../../src/errors.js';
import type { NextHop } from '../../../src/fib/fib.js';
import { Fib } from '../../../src/fib/fib.js';
import { HEAP_START, LOCAL, NO_ROUTE, createFibMemory } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import type { Bits, Width } from './model.js';
import { addressText, longestMatch, look, prefixBits, prefixText, probes, rowText } from './model.js';

type Route = readonly [Bits, number];
type Step =
  | { readonly kind: 'set'; readonly route: Route }
  | { readonly kind: 'delete'; readonly pick: number; readonly bits: Bits }
  | { readonly kind: 'replace'; readonly keep: number; readonly routes: readonly Route[] }
  | { readonly kind: 'local'; readonly prefixes: readonly Bits[] }
  | { readonly kind: 'enter' | 'leave' };

/** The same text for the same content, in whatever order. */
const contents = (table: Iterable<unknown>): string =>
  Array.from(table, (entry) => JSON.stringify(entry))
    .sort((a, b) => (a < b ? -1 : 1))
    .join();

const hop = (n: number): NextHop => ({ address: `192.0.2.${n + 1}`, port: 8000 + n });
const hopText = (n: number): string => `192.0.2.${n + 1}:${8000 + n}`;

function steps(width: Width): fc.Arbitrary<Step[]> {
  const route = fc.tuple(prefixBits(width), fc.nat(5));
  const set = route.map((r): Step => ({ kind: 'set', route: r }));
  const remove = fc.tuple(fc.nat(), prefixBits(width)).map(([pick, bits]): Step => ({ kind: 'delete', pick, bits }));
  const replace = fc
    .tuple(fc.nat(2), fc.array(route, { maxLength: 12 }))
    .map(([keep, routes]): Step => ({ kind: 'replace', keep, routes }));
  const local = fc.array(prefixBits(width), { maxLength: 3 }).map((prefixes): Step => ({ kind: 'local', prefixes }));
  const epoch = fc.constantFrom<Step>({ kind: 'enter' }, { kind: 'leave' });
  return fc.array(
    fc.oneof(
      { weight: 12, arbitrary: set },
      { weight: 8, arbitrary: remove },
      { weight: 2, arbitrary: replace },
      { weight: 1, arbitrary: local },
      { weight: 2, arbitrary: epoch },
    ),
    { minLength: 1, maxLength: 60 },
  );
}

/**
 * Runs a history on a table and on the model and compares every address where they could differ. With
 * `heapWords` the heap is so small that updates are refused; a refused update must have changed nothing.
 */
function run(width: Width, history: readonly Step[], heapWords?: number): void {
  const whole = createFibMemory({ maxRoutes: 1000, maxNextHops: 64, readers: 2 });
  const memory = heapWords === undefined ? whole : { ...whole, wordCount: HEAP_START + heapWords };
  const fib = new Fib(memory);
  const reader = new FibReader(memory, 0);
  const sleeper = new FibReader(memory, 1);
  let routes = new Map<Bits, number>();
  let local = new Set<Bits>();
  const seen = new Set<Bits>();

  const attempt = (action: () => void): boolean => {
    try {
      action();
      return true;
    } catch (error) {
      expect(heapWords).toBeDefined();
      expect((error as PodwireError).code).toBe('CAPACITY');
      return false;
    }
  };

  for (const step of history) {
    const before = fib.generation;
    const entries = contents(routes);
    let changes = true;
    let refused = false;
    if (step.kind === 'set') {
      const [bits, n] = step.route;
      seen.add(bits);
      changes = routes.get(bits) !== n;
      if (attempt(() => fib.set(prefixText(bits, width), hop(n)))) routes.set(bits, n);
      else refused = true;
    } else if (step.kind === 'delete') {
      const bits = routes.size > 0 && step.pick % 4 > 0 ? [...routes.keys()][step.pick % routes.size]! : step.bits;
      changes = routes.delete(bits);
      expect(fib.delete(prefixText(bits, width))).toBe(changes);
    } else if (step.kind === 'replace') {
      const wanted = new Map([...routes].filter((_, i) => i % 3 < step.keep));
      for (const [bits, n] of step.routes) wanted.set(bits, n);
      for (const bits of wanted.keys()) seen.add(bits);
      const list = [...wanted].map(([bits, n]) => [prefixText(bits, width), hop(n)] as const);
      changes = contents(wanted) !== entries;
      if (attempt(() => fib.replace(list))) routes = wanted;
      else refused = true;
    } else if (step.kind === 'local') {
      const wanted = new Set(step.prefixes);
      for (const bits of wanted) seen.add(bits);
      changes = contents(wanted) !== contents(local);
      if (attempt(() => fib.setLocal([...wanted].map((bits) => prefixText(bits, width))))) local = wanted;
      else refused = true;
    } else {
      sleeper[step.kind]();
      changes = false;
    }
    // A refused replace may have published and undone something.
    if (!refused) expect(fib.generation - before).toBe(changes ? 1 : 0);
    expect(fib.size).toBe(routes.size);

    const all = [...routes, ...[...local].map((bits) => [bits, 'local'] as const)] as (readonly [
      Bits,
      number | 'local',
    ])[];
    reader.enter();
    for (const address of probes(seen, width)) {
      const wanted = longestMatch(
        all.filter(([bits, n]) => n === 'local' || !local.has(bits)),
        address,
      );
      const index = look(reader, address);
      const found = index === NO_ROUTE ? undefined : index === LOCAL ? 'local' : rowText(memory, index);
      expect(found, `${addressText(address)} after ${JSON.stringify(step)}`).toBe(
        typeof wanted === 'number' ? hopText(wanted) : wanted,
      );
      const told = fib.lookup(addressText(address));
      expect(told && `${told.address.toString()}:${told.port}`).toBe(
        typeof wanted === 'number' ? hopText(wanted) : undefined,
      );
    }
    reader.leave();
  }

  const entries = [...fib.entries()].map(([prefix, next]) => `${prefix.toString()} ${next.port}`).sort();
  const wanted = new Fib(createFibMemory({ maxRoutes: 1000, maxNextHops: 64, readers: 1 }));
  for (const [bits, n] of routes) wanted.set(prefixText(bits, width), hop(n));
  expect(entries).toEqual([...wanted.entries()].map(([prefix, next]) => `${prefix.toString()} ${next.port}`).sort());
  expect(entries.length).toBe(routes.size);

  sleeper.leave();
  fib.reclaim();
  // Few routes have one best shape, whatever came before. (Memory shortage may leave a larger one behind.)
  wanted.setLocal([...local].map((bits) => prefixText(bits, width)));
  if (routes.size + local.size <= 32 && heapWords === undefined) {
    expect(fib.memoryUsage().usedWords).toBe(wanted.memoryUsage().usedWords);
  }
  fib.replace([]);
  fib.setLocal([]);
  fib.reclaim();
  expect(fib.memoryUsage()).toMatchObject({ usedWords: 0, waitingWords: 0, extentWords: 0, nextHops: 0, senders: 0 });
}

describe.each([32, 128] as const)('longest-prefix match, %i-bit addresses', { timeout: 60_000 }, (width) => {
  it('finds what a list scan finds after every update, and gives all memory back', () => {
    fc.assert(
      fc.property(steps(width), (history) => run(width, history)),
      { numRuns: 150 },
    );
  });

  it('refuses updates without effect when memory is short, and never fails to remove', () => {
    fc.assert(
      fc.property(steps(width), fc.constantFrom(256, 512, 1024), (history, heapWords) =>
        run(width, history, heapWords),
      ),
      { numRuns: 100 },
    );
  });
});
