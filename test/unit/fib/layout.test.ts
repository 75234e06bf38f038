import { describe, expect, it } from 'vitest';
import type { FibMemory } from '../../../src/fib/layout.js';
import {
  PREFIX_MASKS,
  controlView,
  createFibMemory,
  hostIdView,
  pathMtuView,
  readerWord,
  rowsView,
  wordsView,
} from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';

describe('createFibMemory', () => {
  it('lays regions out without overlap, aligned, inside the buffer', () => {
    for (const limits of [
      { maxRoutes: 1, maxNextHops: 1, readers: 1 },
      { maxRoutes: 100_000, maxNextHops: 5_001, readers: 7 },
    ]) {
      const memory = createFibMemory(limits);
      const views = [controlView, pathMtuView, hostIdView, rowsView, wordsView].map((view) => view(memory));
      let end = 0;
      for (const view of views) {
        expect(view.byteOffset).toBeGreaterThanOrEqual(end);
        expect(view.byteOffset % 64).toBe(0);
        end = view.byteOffset + view.byteLength;
      }
      expect(end).toBeLessThanOrEqual(memory.buffer.byteLength);
      for (let reader = 0; reader < limits.readers; reader++) {
        expect(memory.controlOffset + 4 * readerWord(reader)).toBe(memory.readersOffset + 64 * reader);
      }
      expect(readerWord(limits.readers - 1)).toBeLessThan(controlView(memory).length);
    }
  });

  it('survives being posted to another thread', () => {
    const memory = createFibMemory({ maxRoutes: 10, maxNextHops: 10, readers: 1 });
    const copy = structuredClone<FibMemory>(memory);
    expect({ ...copy, buffer: 0 }).toEqual({ ...memory, buffer: 0 });
    wordsView(memory)[5] = 77;
    expect(new FibReader(copy, 0).lookup4(5 << 16)).toBe(77);
  });

  it('commits only what is used', () => {
    const before = process.memoryUsage().rss;
    const memory = createFibMemory({ maxRoutes: 500_000, maxNextHops: 100_000, readers: 64 });
    expect(memory.buffer.byteLength).toBeGreaterThan(200 * 2 ** 20);
    expect(process.memoryUsage().rss - before).toBeLessThan(50 * 2 ** 20);
  });

  it.each([
    [{ maxRoutes: 0 }, 'maxRoutes 0'],
    [{ maxRoutes: 1.5 }, 'maxRoutes 1.5'],
    [{ maxRoutes: 500_001 }, 'maxRoutes 500001'],
    [{ maxNextHops: -1 }, 'maxNextHops -1'],
    [{ maxNextHops: Number.NaN }, 'maxNextHops NaN'],
    [{ readers: 0 }, 'readers 0'],
    [{ readers: 1025 }, 'readers 1025'],
  ])('refuses %o in one line with the value', (wrong, text) => {
    const act = (): unknown => createFibMemory({ maxRoutes: 10, maxNextHops: 10, readers: 1, ...wrong });
    expect(act).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(act).toThrow(new RegExp(`${text.replace('.', '\\.')}: give a whole number from 1 to \\d+$`));
  });
});

describe('FibReader', () => {
  it.each([-1, 2, 0.5])('refuses reader index %d', (index) => {
    const memory = createFibMemory({ maxRoutes: 10, maxNextHops: 10, readers: 2 });
    expect(() => new FibReader(memory, index)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('readers 0 to 1') }),
    );
  });
});

describe('PREFIX_MASKS', () => {
  it('has the first n of 128 bits set at 4n', () => {
    for (let n = 0; n <= 128; n++) {
      const bits = Array.from(PREFIX_MASKS.subarray(4 * n, 4 * n + 4), (w) => (w >>> 0).toString(2).padStart(32, '0'));
      expect(bits.join('')).toBe('1'.repeat(n).padEnd(128, '0'));
    }
  });
});
