import { expect, test } from 'vitest';
import { FightBook } from '../../../src/host/fights.js';

const LIMITS = { repairs: 3, windowMs: 1_000, firstMs: 100, longestMs: 400, calmMs: 1_000 };

test('a few repairs are no fight, also again and again when they are far apart', () => {
  const book = new FightBook(LIMITS);
  for (let now = 0; now < 20_000; now += 400) {
    expect(book.mayRepair('a x', now)).toBe(true);
    expect(book.repaired('a x', now)).toBe('none');
  }
  expect(book.open).toEqual([]);
  expect(book.nextAt(20_000)).toBeUndefined();
});

test('more are one: said once, then at doubling distances up to the longest', () => {
  const book = new FightBook(LIMITS);
  const seen: [number, string][] = [];
  for (let now = 0; now < 2_500; now += 10) {
    if (!book.mayRepair('a x', now)) continue;
    const word = book.repaired('a x', now);
    if (word !== 'none') seen.push([now, word]);
  }
  expect(seen.map(([, word]) => word).filter((word) => word === 'begins')).toHaveLength(1);
  const gaps = seen.map(([at], index) => at - (seen[index - 1]?.[0] ?? at)).slice(1);
  expect(gaps.slice(0, 4)).toEqual([100, 200, 400, 400]);
  expect(book.open).toEqual(['a x']);
  expect(book.mayRepair('a y', 2_500)).toBe(true);
});

test('over after the calm, of its own part only, and not while it is wrong', () => {
  const book = new FightBook(LIMITS);
  for (const key of ['a x', 'ab x']) for (let i = 0; i < 4; i++) book.repaired(key, i);
  expect(book.open).toEqual(['a x', 'ab x']);
  expect(book.nextAt(50)).toBe(103);
  expect(book.nextAt(200)).toBe(3 + 1_000 + 100);
  expect(book.settle('a', new Set(), 1_102)).toEqual([]);
  expect(book.settle('a', new Set(['a x']), 2_000)).toEqual([]);
  expect(book.settle('a', new Set(), 2_000)).toEqual(['a x']);
  expect(book.open).toEqual(['ab x']);
  // A new quarrel begins from nothing.
  expect(book.repaired('a x', 2_001)).toBe('none');
});

test('what was repaired once is forgotten, and is no news', () => {
  const book = new FightBook(LIMITS);
  book.repaired('a x', 0);
  expect(book.settle('a', new Set(), 1_001)).toEqual([]);
  for (let i = 0; i < 3; i++) expect(book.repaired('a x', 1_002 + i)).toBe('none');
});
