import { expect, test } from 'vitest';
import { meterStore } from '../../../src/agent/store-meter.js';
import { memoryStore } from '../../../src/control/stores/memory.js';
import { PodwireError } from '../../../src/errors.js';
import { Address } from '../../../src/net/prefix.js';

const request = { attributes: { publicIp: Address.parse('192.0.2.1'), backendType: '' } };

test('counts what is done and what fails, with the time of both, and leaves the rest as it is', async () => {
  let now = 0;
  let fail = false;
  await using real = memoryStore({
    config: '{"Network":"10.42.0.0/16"}',
    fault: () => {
      now += 250;
      return fail ? 'fail' : 'none';
    },
  });
  const { store, operations } = meterStore(real, () => now);
  expect(store.description).toBe(real.description);
  expect((await store.network()).subnetLen).toBe(24);
  expect(operations.network).toEqual({ done: 1, failed: 0, seconds: 0.25 });
  const lease = await store.acquire(request);
  expect(operations.acquire).toMatchObject({ done: 1, failed: 0 });
  expect(operations.acquire.seconds).toBeGreaterThan(0);
  fail = true;
  await expect(store.renew(lease)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
  fail = false;
  await store.renew(lease);
  expect(operations.renew).toMatchObject({ done: 1, failed: 1 });
  const changes = store.watch(AbortSignal.timeout(10_000))[Symbol.asyncIterator]();
  expect((await changes.next()).value).toMatchObject({ kind: 'snapshot' });
  await changes.return?.();
  await store.release(lease);
  expect(operations.release.done).toBe(1);
});

test('a call that was given up is no failure', async () => {
  const gone = new PodwireError('ABORTED', 'cancelled');
  await using real = memoryStore({});
  const { store, operations } = meterStore(
    new Proxy(real, {
      get: (target, name) => (name === 'acquire' ? () => Promise.reject(gone) : Reflect.get(target, name)),
    }),
  );
  await expect(store.acquire(request)).rejects.toBe(gone);
  expect(operations.acquire).toMatchObject({ done: 0, failed: 0 });
});
