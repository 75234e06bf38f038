/** The part of the lease store contract that is about watching: what others do, and what nobody can read. */
import { describe, expect, it } from 'vitest';
import { decodeLease } from '../../../src/control/lease-codec.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import { attributesOf } from '../../support/leases.js';
import { SLACK_MS, SMALL_CONFIG, TTL_MS, type StoreBed } from './harness.js';

export function watchContract(bed: StoreBed): void {
  describe('watch', () => {
    it('starts with a snapshot of the others, and never reports our own lease', async () => {
      await bed.harness.put('10.42.5.0-24', bed.value('192.0.2.5', TTL_MS));
      const store = bed.open();
      const mine = await bed.acquire(store, '192.0.2.1');
      const watcher = await bed.watch(store);
      expect(watcher.changes[0]?.kind).toBe('snapshot');
      expect(watcher.keys).toEqual(['10.42.5.0-24']);
      await store.renew(mine);
      await bed.barrier(watcher);
      expect(watcher.log).toEqual(['added 10.42.0.0-24', 'removed 10.42.0.0-24']);
    });

    it('does not report a lease that is acquired while watching', async () => {
      const store = bed.open();
      const watcher = await bed.watch(store);
      await bed.acquire(store, '192.0.2.1');
      await bed.barrier(watcher);
      expect(watcher.log).toEqual(['added 10.42.0.0-24', 'removed 10.42.0.0-24']);
    });

    it('reports joining, changing and leaving of others', async () => {
      const watcher = await bed.watch(bed.open());
      const other = bed.open();
      const lease = await bed.acquire(other, '192.0.2.2');
      const key = leaseKey(lease);
      await watcher.until(() => watcher.leases.has(key));
      await other.renew({ ...lease, attributes: attributesOf('192.0.2.22') });
      await watcher.until(() => watcher.leases.get(key)?.attributes.publicIp.toString() === '192.0.2.22');
      await other.release({ ...lease, attributes: attributesOf('192.0.2.22') });
      await watcher.until(() => !watcher.leases.has(key));
      expect(watcher.log).toEqual([`added ${key}`, `added ${key}`, `removed ${key}`]);
    });

    it('reports expiry, once, with the last attributes', async () => {
      await bed.harness.put('10.42.5.0-24', bed.value('192.0.2.5', TTL_MS));
      const watcher = await bed.watch(bed.open());
      await bed.harness.advance(TTL_MS + SLACK_MS);
      await watcher.until(() => watcher.leases.size === 0);
      const last = watcher.changes.at(-1);
      expect(last).toMatchObject({ kind: 'removed' });
      expect(last?.kind === 'removed' && last.lease.attributes.publicIp.toString()).toBe('192.0.2.5');
    });

    it('keeps a lease that is renewed in time', async () => {
      const other = bed.open();
      const lease = await bed.acquire(other, '192.0.2.2');
      const watcher = await bed.watch(bed.open());
      await bed.harness.advance(TTL_MS * 0.9);
      const renewed = await other.renew(lease);
      await watcher.until(
        () => watcher.leases.get(leaseKey(lease))?.expiresAt?.getTime() === renewed.expiresAt!.getTime(),
      );
      await bed.harness.advance(TTL_MS * 0.9);
      await bed.barrier(watcher);
      expect(watcher.log).not.toContain(`removed ${leaseKey(lease)}`);
    });

    it('tells that our own lease is gone', async () => {
      const store = bed.open();
      const lease = await bed.acquire(store, '192.0.2.1');
      const watcher = await bed.watch(store);
      await bed.harness.remove(leaseKey(lease));
      await watcher.until(() => watcher.log.includes(`own lost ${leaseKey(lease)}`));
      const again = await bed.acquire(store, '192.0.2.1', { previous: { subnet: lease.subnet } });
      expect(again.subnet.equals(lease.subnet)).toBe(true);
      await bed.barrier(watcher);
      expect(watcher.log.filter((line) => line.startsWith('own'))).toHaveLength(1);
    });

    it('tells who has our lease, and shows it once we have another', async () => {
      const store = bed.open();
      const lease = await bed.acquire(store, '192.0.2.1', { owner: 'node-a' });
      const key = leaseKey(lease);
      const watcher = await bed.watch(store);
      await bed.harness.put(key, bed.value('192.0.2.66', TTL_MS, 'thief'));
      await watcher.until(() => watcher.log.includes(`own replaced ${key}`));
      const change = watcher.changes.at(-1);
      expect(change?.kind === 'own' && change.lease.attributes.publicIp.toString()).toBe('192.0.2.66');
      const other = await bed.acquire(store, '192.0.2.1', { owner: 'node-a', previous: { subnet: lease.subnet } });
      expect(other.subnet.overlaps(lease.subnet)).toBe(false);
      await watcher.until(() => watcher.leases.has(key));
    });

    it('serves two watchers of one client alike', async () => {
      const store = bed.open();
      const [first, second] = [await bed.watch(store), await bed.watch(store)];
      await bed.harness.put('10.42.5.0-24', bed.value('192.0.2.5'));
      await first.until(() => first.leases.size === 1);
      await second.until(() => second.leases.size === 1);
    });

    it('ends when told to', async () => {
      const stop = new AbortController();
      const iterator = bed.open().watch(stop.signal)[Symbol.asyncIterator]();
      expect((await iterator.next()).value).toMatchObject({ kind: 'snapshot' });
      const next = iterator.next();
      stop.abort();
      expect((await next).done).toBe(true);
    });
  });

  describe('junk', () => {
    const JUNK_KEYS = ['junk', '10.42.5.0-24.bak', '10.42.5.0', '10.42.5.0-33', '10.42.5.7-24', '.hidden', 'a&b'];
    const JUNK_VALUES = ['', '{', '[]', 'null', '"x"', '{"PublicIP":5}', '{"PublicIP":"1.2.3"}', '{"PublicIP":"::1"}'];

    it('under any key is reported once and changes nothing', async () => {
      await bed.harness.put('10.42.5.0-24', bed.value('192.0.2.5'));
      const { store, notices, noticed } = bed.openHeard();
      const watcher = await bed.watch(store);
      for (const key of JUNK_KEYS) await bed.harness.put(key, 'anything');
      await noticed(JUNK_KEYS.length);
      // A second look is no second report.
      await bed.acquire(store, '192.0.2.1');
      for (const key of JUNK_KEYS) await bed.harness.remove(key);
      await bed.barrier(watcher);
      expect(notices.map(({ kind }) => kind)).toEqual(JUNK_KEYS.map(() => 'foreign'));
      expect(watcher.keys).toEqual(['10.42.5.0-24']);
      expect(watcher.log).toEqual(['added 10.42.0.0-24', 'removed 10.42.0.0-24']);
    });

    it.each(JUNK_VALUES)('value %j keeps the last good lease until the key is gone', async (junk) => {
      await bed.harness.put('10.42.5.0-24', bed.value('192.0.2.5'));
      const { store, notices, noticed } = bed.openHeard();
      const watcher = await bed.watch(store);
      await bed.harness.put('10.42.5.0-24', junk);
      await noticed(1);
      await bed.acquire(store, '192.0.2.1');
      await bed.barrier(watcher);
      expect(notices).toMatchObject([{ kind: 'corrupt' }]);
      expect(watcher.keys).toEqual(['10.42.5.0-24']);
      await bed.harness.put('10.42.5.0-24', bed.value('192.0.2.55'));
      await watcher.until(() => watcher.leases.get('10.42.5.0-24')?.attributes.publicIp.toString() === '192.0.2.55');
      await bed.harness.put('10.42.5.0-24', junk);
      await noticed(2);
      await bed.harness.remove('10.42.5.0-24');
      await watcher.until(() => watcher.leases.size === 0);
    });

    it('holds the subnet it names against new hosts', async () => {
      await bed.harness.setConfig(SMALL_CONFIG);
      await bed.harness.put('10.42.0.64-26', 'junk');
      for (const host of [1, 2]) await bed.acquire(bed.open(), `192.0.2.${host}`);
      await expect(bed.acquire(bed.open(), '192.0.2.3')).rejects.toMatchObject({
        code: 'OUT_OF_SUBNETS',
        message: expect.stringContaining('1 of them unreadable'),
      });
      expect(await bed.harness.get('10.42.0.64-26')).toBe('junk');
    });

    it('in our own lease is repaired by the next renewal', async () => {
      const store = bed.open();
      const lease = await bed.acquire(store, '192.0.2.1');
      const key = leaseKey(lease);
      const watcher = await bed.watch(store);
      await bed.harness.put(key, '{"PublicIP":');
      await bed.barrier(watcher);
      await store.renew(lease);
      expect(decodeLease((await bed.harness.get(key))!).attributes.publicIp.toString()).toBe('192.0.2.1');
      expect(watcher.log.filter((line) => line.startsWith('own'))).toEqual([]);
    });
  });
}
