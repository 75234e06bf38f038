import { describe, expect, it } from 'vitest';
import { WordHeap } from '../../../src/fib/heap.js';

const START = 1024;

function make(blocks: number): { heap: WordHeap; words: Int32Array } {
  const words = new Int32Array(START + blocks * 256);
  return { heap: new WordHeap(words, START, words.length), words };
}

describe('WordHeap', () => {
  it('hands out aligned blocks of every size that never overlap, and merges all of them again', () => {
    const { heap, words } = make(64);
    const live: { block: number; order: number; mark: number }[] = [];
    let seed = 12345;
    const next = (below: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed >>> 8) % below;
    };
    let used = 0;
    for (let step = 1; step <= 20_000; step++) {
      if (next(2) === 0 || live.length === 0) {
        const order = 1 + next(8);
        const block = heap.allocate(order);
        if (block < 0) continue;
        expect((block - START) % (1 << order)).toBe(0);
        expect(block).toBeGreaterThanOrEqual(START);
        expect(block + (1 << order)).toBeLessThanOrEqual(words.length);
        words.fill(step, block, block + (1 << order));
        live.push({ block, order, mark: step });
        used += 1 << order;
      } else {
        const [freed] = live.splice(next(live.length), 1);
        const { block, order, mark } = freed!;
        // Somebody else's block or free list would have overwritten the mark.
        expect(words.subarray(block, block + (1 << order)).every((word) => word === mark)).toBe(true);
        heap.free(block, order);
        used -= 1 << order;
      }
      expect(heap.usedWords).toBe(used);
    }
    expect(heap.peakWords).toBeGreaterThan(0);
    for (const { block, order } of live) heap.free(block, order);
    expect([heap.usedWords, heap.extentWords]).toEqual([0, 0]);
    expect(words.subarray(0, START).every((word) => word === 0)).toBe(true);
  });

  it('is full when no block of the size is left, and usable again after one is freed', () => {
    const { heap } = make(2);
    const first = heap.allocate(8);
    expect(heap.allocate(8)).toBe(first + 256);
    expect(heap.allocate(1)).toBe(-1);
    heap.free(first, 8);
    const halves = [heap.allocate(7), heap.allocate(7)];
    expect(halves.map((block) => block - START).sort((a, b) => a - b)).toEqual([0, 128]);
    expect(heap.allocate(7)).toBe(-1);
    heap.free(halves[0]!, 7);
    expect(heap.allocate(8)).toBe(-1);
    expect(heap.allocate(6)).toBeGreaterThan(0);
  });
});
