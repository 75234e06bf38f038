import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { Early } from '../../../src/host/early.js';

beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }));
afterEach(() => void vi.useRealTimers());

function counting(...answers: (number | Error)[]): { readonly ask: () => Promise<number>; asked: number } {
  const counter = {
    asked: 0,
    ask: async (): Promise<number> => {
      const answer = answers[counter.asked++];
      if (typeof answer !== 'number') throw answer ?? new Error('asked too often');
      return answer;
    },
  };
  return counter;
}

test('the question is asked ahead, and its answer taken once', async () => {
  const counter = counting(1, 2, 3);
  const early = new Early(counter.ask);
  expect(counter.asked).toBe(1);
  expect(await early.take()).toBe(1);
  expect(counter.asked).toBe(1);
  expect(await early.take()).toBe(2);
  expect(await early.take()).toBe(3);
});

test('an answer that has become old is not taken', async () => {
  const counter = counting(1, 2);
  const early = new Early(counter.ask);
  vi.advanceTimersByTime(1_000);
  expect(await early.take()).toBe(2);
});

test('one that is still young is', async () => {
  const counter = counting(1);
  const early = new Early(counter.ask);
  vi.advanceTimersByTime(999);
  expect(await early.take()).toBe(1);
});

test('a question that failed is asked again, and nobody hears of it before', async () => {
  const early = new Early(counting(new Error('early'), new Error('again'), 3).ask);
  await Promise.resolve();
  await expect(early.take()).rejects.toThrow('again');
  expect(await early.take()).toBe(3);
});
