/**
 * Long seeded walks over a few hundred nested prefixes: enough of them beneath one entry for every kind of growth,
 * splitting and merging of chunks and skips, which short histories do not reach.
 */
import { describe, expect, it } from 'vitest';
import { Fib } from '../../../src/fib/fib.js';
import { NO_ROUTE, createFibMemory } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import type { Bits, Width } from './model.js';
import { addressText, longestMatch, look, prefixText, probes, rowText } from './model.js';

/** A seeded generator of 32-bit integers (xorshift32). */
function generator(seed: number): (below: number) => number {
  let state = seed | 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

/** Distinct prefixes around one another: each extends or follows one that was drawn before. */
function family(width: Width, amount: number, next: (below: number) => number): Bits[] {
  const found = new Set<Bits>(['0000101000000001']);
  while (found.size < amount) {
    const known = [...found];
    const parent = known[next(known.length)]!;
    const kept = parent.slice(0, parent.length - next(Math.min(parent.length, 12)));
    let tail = '';
    for (let i = next(next(4) === 0 ? 40 : 9); i >= 0; i--) tail += next(2);
    found.add((kept + tail).slice(0, width));
  }
  return [...found];
}

describe.each([32, 128] as const)('a long walk, %i-bit addresses', { timeout: 60_000 }, (width) => {
  const seed = Number(process.env['FIB_SEED'] ?? Date.now()) & 0x7fffffff;

  it(`agrees with the list scan all the way (seed ${seed})`, () => {
    const next = generator(seed);
    const prefixes = family(width, 300, next);
    const everywhere = probes(prefixes, width);
    const memory = createFibMemory({ maxRoutes: 1000, maxNextHops: 64, readers: 1 });
    const fib = new Fib(memory);
    const reader = new FibReader(memory, 0);
    const routes = new Map<Bits, number>();
    const check = (addresses: readonly Bits[]): void => {
      reader.enter();
      for (const address of addresses) {
        const wanted = longestMatch(routes, address);
        const index = look(reader, address);
        expect(index === NO_ROUTE ? undefined : rowText(memory, index), addressText(address)).toBe(
          wanted === undefined ? undefined : `192.0.2.${wanted}:8285`,
        );
      }
      reader.leave();
    };
    // The share of removals swings, so that the table fills and empties several times.
    for (let step = 0; step < 4000; step++) {
      const bits = prefixes[next(prefixes.length)]!;
      const removals = 30 + 40 * (Math.floor(step / 500) % 2);
      if (next(100) < removals) {
        expect(fib.delete(prefixText(bits, width))).toBe(routes.delete(bits));
      } else {
        const n = 1 + next(9);
        fib.set(prefixText(bits, width), { address: `192.0.2.${n}` });
        routes.set(bits, n);
      }
      check([bits.padEnd(width, '0'), bits.padEnd(width, '1'), everywhere[next(everywhere.length)]!]);
      if (step % 200 === 0) check(everywhere);
    }
    check(everywhere);
    for (const bits of routes.keys()) {
      fib.delete(prefixText(bits, width));
      routes.delete(bits);
      check([bits.padEnd(width, '0'), everywhere[next(everywhere.length)]!]);
    }
    fib.reclaim();
    expect(fib.memoryUsage()).toMatchObject({ usedWords: 0, extentWords: 0, nextHops: 0, hosts: 0, senders: 0 });
  });
});
