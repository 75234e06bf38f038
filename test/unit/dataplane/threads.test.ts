import { afterEach, expect, test } from 'vitest';
import { automaticWorkers } from '../../../src/dataplane/options.js';
import { ThreadsAhead } from '../../../src/dataplane/threads.js';

const opened: AsyncDisposable[] = [];
afterEach(async () => {
  await Promise.all(opened.splice(0).map((one) => one[Symbol.asyncDispose]()));
});

function ahead(workers?: number | 'auto'): ThreadsAhead {
  const threads = new ThreadsAhead(workers);
  opened.push(threads);
  return threads;
}

test('one for every two processors, at most four', () => {
  expect([1, 2, 3, 4, 6, 8, 64].map(automaticWorkers)).toEqual([1, 1, 1, 2, 3, 4, 4]);
});

test('a data plane with just as many workers takes them, once', async () => {
  const threads = ahead(2);
  expect(threads.take(1)).toBeUndefined();
  const pool = threads.take(2);
  expect(pool?.threads).toHaveLength(2);
  expect(threads.take(2)).toBeUndefined();
  // What is taken is not ended with them.
  await threads[Symbol.asyncDispose]();
  expect(pool?.threads).toHaveLength(2);
  await pool?.destroy();
});

test('threads that nobody takes are ended, and cannot be taken any more', async () => {
  const threads = ahead(1);
  await threads[Symbol.asyncDispose]();
  expect(threads.take(1)).toBeUndefined();
});

test.each([0, -1, 33, 1.5, Number.NaN])('%d workers: the data plane has a line for that', (workers) => {
  expect(ahead(workers).take(workers)).toBeUndefined();
});
