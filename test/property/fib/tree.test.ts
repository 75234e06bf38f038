/** The writer's path-compressed tree against a map of bit strings. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NO_VALUE, PrefixTree } from '../../../src/fib/tree.js';
import type { Bits } from './model.js';
import { longestMatch, prefixBits, probes, words } from './model.js';

describe.each([32, 128] as const)('PrefixTree, %i-bit keys', { timeout: 60_000 }, (width) => {
  const key = (bits: Bits): Int32Array => Int32Array.from(words(bits.padEnd(width, '0')));
  const bitsOf = (tree: PrefixTree, node: number): Bits =>
    Array.from(tree.keys.subarray(node * tree.keyWords, (node + 1) * tree.keyWords), (word) =>
      (word >>> 0).toString(2).padStart(32, '0'),
    )
      .join('')
      .slice(0, tree.length[node]);

  /** Checks every node: its summary, that joins have two children, that children lie inside. Returns the prefixes. */
  function inspect(tree: PrefixTree, node: number, found: Map<Bits, number>): void {
    if (node === 0) return;
    const bits = bitsOf(tree, node);
    const before = found.size;
    if (tree.value[node] !== NO_VALUE) found.set(bits, tree.value[node]!);
    else expect(tree.left[node] !== 0 && tree.right[node] !== 0).toBe(true);
    for (const [child, bit] of [
      [tree.left[node]!, '0'],
      [tree.right[node]!, '1'],
    ] as const) {
      if (child !== 0) expect(bitsOf(tree, child).startsWith(bits + bit)).toBe(true);
      inspect(tree, child, found);
    }
    expect(tree.count[node]).toBe(found.size - before);
    expect(tree.deepest[node]).toBe(Math.max(...[...found.keys()].slice(before).map((b) => b.length)));
  }

  it('holds what a map holds', () => {
    const step = fc.tuple(fc.boolean(), prefixBits(width), fc.nat(9));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 120 }), (steps) => {
        const tree = new PrefixTree(width === 32 ? 1 : 4);
        const model = new Map<Bits, number>();
        const nodes = new Map<Bits, number>();
        for (const [add, bits, value] of steps) {
          if (add) {
            nodes.set(bits, tree.insert(key(bits), bits.length, value));
            expect(tree.replaced).toBe(model.get(bits) ?? NO_VALUE);
            model.set(bits, value);
          } else {
            const node = tree.find(key(bits), bits.length);
            expect(node !== 0).toBe(model.delete(bits));
            if (node !== 0) tree.remove(key(bits), node);
            nodes.delete(bits);
          }
          const found = new Map<Bits, number>();
          inspect(tree, tree.root, found);
          expect(tree.size).toBe(model.size);
          expect(found).toEqual(model);
        }
        // A node number stays as long as its prefix.
        for (const [bits, node] of nodes) expect(tree.find(key(bits), bits.length)).toBe(node);
        expect([...tree.nodes()].map((node) => bitsOf(tree, node))).toEqual([...model.keys()].sort());
        for (const address of probes(model.keys(), width)) {
          const node = tree.match(key(address));
          expect(node === 0 ? undefined : tree.value[node]).toBe(longestMatch(model, address));
        }
      }),
      { numRuns: 100 },
    );
  });
});
