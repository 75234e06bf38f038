/**
 * What every lease store must do, run over each of them. A store's test file makes a harness: a fresh, empty store,
 * ways to look into it from outside, and a clock to pass.
 */
import { beforeEach, describe, expect, it } from 'vitest';
import { decodeLease } from '../../../src/control/lease-codec.js';
import {
  DEFAULT_TTL_MS,
  type AcquireRequest,
  type Lease,
  type LeaseStore,
  type StoreNotice,
} from '../../../src/control/lease.js';
import { leaseKey, tryParseLeaseKey } from '../../../src/control/lease-key.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { attributesOf } from '../../support/leases.js';
import { CONFIG, DUAL_CONFIG, SLACK_MS, SMALL_CONFIG, StoreBed, TTL_MS, type StoreHarness } from './harness.js';
import { watchContract } from './watch.js';

export function leaseStoreContract(name: string, make: () => Promise<StoreHarness>): void {
  describe(`lease store contract: ${name}`, () => {
    const bed = new StoreBed(make);

    describe('network config', () => {
      it('is read as it is now', async () => {
        const store = bed.open();
        expect((await store.network()).network?.toString()).toBe('10.42.0.0/16');
        await bed.harness.setConfig('{"network":"10.43.0.0/16"}');
        const changed = await store.network();
        expect(changed.network?.toString()).toBe('10.43.0.0/16');
        expect(changed.backend).toMatchObject({ type: 'udp', defaulted: true });
      });

      it('says what is missing or wrong, and acquires nothing', async () => {
        const store = bed.open();
        await bed.harness.setConfig(undefined);
        await expect(store.network()).rejects.toMatchObject({ code: 'NO_CONFIG' });
        await expect(bed.acquire(store, '192.0.2.1')).rejects.toMatchObject({ code: 'NO_CONFIG' });
        await bed.harness.setConfig('{"Network":"10.42.0.0/16"');
        await expect(store.network()).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
        await expect(bed.acquire(store, '192.0.2.1')).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
        expect(await bed.harness.keys()).toEqual([]);
      });
    });

    describe('acquire', () => {
      it('takes a free subnet in range and stores what flannel reads', async () => {
        const lease = await bed.acquire(bed.open(), '192.0.2.1');
        expect(Prefix.parse('10.42.0.0/16').contains(lease.subnet)).toBe(true);
        expect(lease.subnet.length).toBe(24);
        expect(lease.subnet.address.toString()).not.toBe('10.42.0.0');
        expect(lease.expiresAt?.getTime()).toBe(bed.harness.now() + TTL_MS);
        const key = leaseKey(lease);
        expect(await bed.harness.keys()).toEqual([key]);
        const stored = (await bed.harness.get(key))!;
        expect(stored).toMatch(/^\{"PublicIP":"192\.0\.2\.1","PublicIPv6":null[,}]/);
        expect(decodeLease(stored).attributes.publicIp.toString()).toBe('192.0.2.1');
      });

      it('lives 24 hours unless told otherwise', async () => {
        const lease = await bed.open().acquire({ attributes: attributesOf('192.0.2.1') });
        expect(lease.expiresAt?.getTime()).toBe(bed.harness.now() + DEFAULT_TTL_MS);
      });

      it('gives the same host its subnet again', async () => {
        const first = await bed.acquire(bed.open(), '192.0.2.1');
        const again = await bed.acquire(bed.open(), '192.0.2.1');
        expect(again.subnet.equals(first.subnet)).toBe(true);
        expect(await bed.harness.keys()).toHaveLength(1);
      });

      it('keeps the subnet of an owner whose address has changed', async () => {
        const first = await bed.acquire(bed.open(), '192.0.2.1', { owner: 'node-a' });
        const again = await bed.acquire(bed.open(), '192.0.2.77', { owner: 'node-a' });
        expect(again.subnet.equals(first.subnet)).toBe(true);
        expect(decodeLease((await bed.harness.get(leaseKey(first)))!).attributes.publicIp.toString()).toBe(
          '192.0.2.77',
        );
      });

      it('does not give one live agent the subnet of another with the same address, and says so', async () => {
        const notices: StoreNotice[] = [];
        const first = await bed.acquire(bed.open(), '192.0.2.1', { owner: 'node-a' });
        const second = await bed.acquire(
          bed.open((notice) => notices.push(notice)),
          '192.0.2.1',
          { owner: 'node-b' },
        );
        expect(second.subnet.overlaps(first.subnet)).toBe(false);
        expect(notices.filter(({ kind }) => kind === 'conflict')).toHaveLength(1);
      });

      it('tells the first of two agents with one address as well', async () => {
        const { store: first, notices, noticed } = bed.openHeard();
        await bed.acquire(first, '192.0.2.1', { owner: 'node-a' });
        await bed.watch(first);
        const second = await bed.acquire(bed.open(), '192.0.2.1', { owner: 'node-b' });
        await noticed(1);
        expect(notices).toMatchObject([{ kind: 'conflict', reason: expect.stringContaining(leaseKey(second)) }]);
      });

      it('reuses the previous subnet when it is free and fits', async () => {
        const previous = { subnet: Prefix.parse('10.42.77.0/24') };
        const lease = await bed.acquire(bed.open(), '192.0.2.1', { previous });
        expect(lease.subnet.toString()).toBe('10.42.77.0/24');
      });

      it.each([
        ['outside the network', '10.77.1.0/24'],
        ['of another length', '10.42.177.0/25'],
        ['of another family', 'fd00::/64'],
        ['held by another host', '10.42.9.0/24'],
      ])('ignores a previous subnet %s', async (_why, previous) => {
        await bed.harness.put('10.42.9.0-24', bed.value('192.0.2.9', TTL_MS));
        const lease = await bed.acquire(bed.open(), '192.0.2.1', { previous: { subnet: Prefix.parse(previous) } });
        expect(lease.subnet.overlaps(Prefix.parse(previous))).toBe(false);
        expect(lease.subnet.length).toBe(24);
      });

      it('moves to the new network when the config has changed, and cleans up', async () => {
        const before = await bed.acquire(bed.open(), '192.0.2.1');
        await bed.harness.setConfig('{"Network":"10.99.0.0/16"}');
        const after = await bed.acquire(bed.open(), '192.0.2.1');
        expect(after.subnet.toString()).toMatch(/^10\.99\./);
        expect(await bed.harness.keys()).toEqual([leaseKey(after)]);
        expect(leaseKey(after)).not.toBe(leaseKey(before));
      });

      it('says clearly that nothing is free, and finds what comes free', async () => {
        await bed.harness.setConfig(SMALL_CONFIG);
        const leases: Lease[] = [];
        const first = bed.open();
        for (const host of [1, 2, 3])
          leases.push(await bed.acquire(host === 1 ? first : bed.open(), `192.0.2.${host}`));
        expect(new Set(leases.map(leaseKey)).size).toBe(3);
        const late = bed.open();
        await expect(bed.acquire(late, '192.0.2.4')).rejects.toMatchObject({
          code: 'OUT_OF_SUBNETS',
          message: expect.stringMatching(/out of subnets: 3 leases.*10\.42\.0\.0\/24/),
        });
        await first.release(leases[0]!);
        expect((await bed.acquire(late, '192.0.2.4')).subnet.equals(leases[0]!.subnet)).toBe(true);
      });

      it('takes over what has expired', async () => {
        await bed.harness.setConfig(SMALL_CONFIG);
        for (const host of [1, 2, 3]) await bed.acquire(bed.open(), `192.0.2.${host}`);
        await bed.harness.advance(TTL_MS + SLACK_MS);
        const taken = [];
        for (const host of [11, 12, 13]) taken.push(await bed.acquire(bed.open(), `192.0.2.${host}`));
        expect(new Set(taken.map(leaseKey)).size).toBe(3);
        expect(await bed.harness.keys()).toEqual(taken.map(leaseKey).sort());
      });

      it('never gives one subnet to two of many that start at once', async () => {
        await bed.harness.setConfig('{"Network":"10.42.0.0/24","SubnetLen":28}');
        const results = await Promise.allSettled(
          Array.from({ length: 20 }, (_, i) => bed.acquire(bed.open(), `192.0.2.${i + 1}`)),
        );
        const won = results.flatMap((result) => (result.status === 'fulfilled' ? [leaseKey(result.value)] : []));
        expect(new Set(won).size).toBe(won.length);
        expect(won).toHaveLength(15);
        for (const result of results) {
          if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'OUT_OF_SUBNETS' });
        }
      });

      it.each(['0.0.0.0', '224.0.0.1', '255.255.255.255', '127.0.0.1', '10.42.1.1'])(
        'refuses the public IP %s',
        async (publicIp) => {
          await expect(bed.acquire(bed.open(), publicIp)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
          expect(await bed.harness.keys()).toEqual([]);
        },
      );

      it('can be cancelled, and does nothing once closed', async () => {
        const store = bed.open();
        await expect(
          store.acquire({ attributes: attributesOf('192.0.2.1') }, AbortSignal.abort()),
        ).rejects.toMatchObject({
          code: 'ABORTED',
        });
        await store[Symbol.asyncDispose]();
        await expect(bed.acquire(store, '192.0.2.1')).rejects.toMatchObject({ code: 'CLOSED' });
        expect(await bed.harness.keys()).toEqual([]);
      });
    });

    describe('dual stack', () => {
      beforeEach(() => bed.harness.setConfig(DUAL_CONFIG));
      const dual = (host: number): Pick<AcquireRequest, 'attributes'> => ({
        attributes: attributesOf(`192.0.2.${host}`, { publicIpv6: Address.parse(`2001:db8::${host}`) }),
      });

      it('refuses what takes flanneld down: two families in the key, no PublicIPv6 in the value', async () => {
        await expect(bed.acquire(bed.open(), '192.0.2.1')).rejects.toMatchObject({
          code: 'INVALID_ARGUMENT',
          message: expect.stringContaining('vxlan'),
        });
        expect(await bed.harness.keys()).toEqual([]);
      });

      it('carries pods of both families over IPv4 where the backend can', async () => {
        await bed.harness.setConfig(DUAL_CONFIG.replace('vxlan', 'udp'));
        expect((await bed.acquire(bed.open(), '192.0.2.1')).subnet6).toBeDefined();
      });

      it('leases both families under one key', async () => {
        const lease = await bed.acquire(bed.open(), '', dual(1));
        expect(lease.subnet6?.length).toBe(64);
        expect(Prefix.parse('fd00:42::/48').contains(lease.subnet6!)).toBe(true);
        const [key] = await bed.harness.keys();
        expect(key).toMatch(/^10\.42\.\d+\.0-24&fd00:42:0:[0-9a-f]+::-64$/);
        expect(tryParseLeaseKey(key!)?.subnet6?.equals(lease.subnet6!)).toBe(true);
        expect((await bed.acquire(bed.open(), '', dual(1))).subnet6!.equals(lease.subnet6!)).toBe(true);
      });

      it('keeps its IPv4 subnet when IPv6 is switched on', async () => {
        await bed.harness.setConfig(CONFIG);
        const before = await bed.acquire(bed.open(), '', dual(1));
        await bed.harness.setConfig(DUAL_CONFIG);
        const after = await bed.acquire(bed.open(), '', dual(1));
        expect(after.subnet.equals(before.subnet)).toBe(true);
        expect(await bed.harness.keys()).toEqual([leaseKey(after)]);
      });

      it('never gives one subnet of either family to two', async () => {
        await bed.harness.setConfig(
          '{"Network":"10.42.0.0/24","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00:42::/60","IPv6SubnetLen":64}',
        );
        const leases = await Promise.all(
          Array.from({ length: 12 }, (_, i) => bed.acquire(bed.open(), '', dual(i + 1))),
        );
        expect(new Set(leases.map((lease) => lease.subnet.toString())).size).toBe(12);
        expect(new Set(leases.map((lease) => lease.subnet6!.toString())).size).toBe(12);
      });
    });

    describe('IPv6 alone', () => {
      beforeEach(() => bed.harness.setConfig('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/48"}'));
      const acquire6 = (store: LeaseStore, publicIpv6: string, more: Partial<AcquireRequest> = {}) =>
        store.acquire({
          attributes: attributesOf('0.0.0.0', { publicIpv6: Address.parse(publicIpv6) }),
          ttlMs: TTL_MS,
          ...more,
        });

      it("is leased under flannel's key, and hosts are told apart by their IPv6 address", async () => {
        const first = await acquire6(bed.open(), '2001:db8::1');
        const second = await acquire6(bed.open(), '2001:db8::2');
        expect(first.subnet.family).toBe(6);
        expect(first.subnet6).toBeUndefined();
        expect(second.subnet.overlaps(first.subnet)).toBe(false);
        expect((await acquire6(bed.open(), '2001:db8::1')).subnet.equals(first.subnet)).toBe(true);
        const key = leaseKey(first);
        expect(key).toMatch(/^0\.0\.0\.0-0&fd00:42:0:[0-9a-f]+::-64$/);
        expect(await bed.harness.get(key)).toMatch(/^\{"PublicIP":"0\.0\.0\.0","PublicIPv6":"2001:db8::1"[,}]/);
        expect(await bed.harness.keys()).toHaveLength(2);
      });

      it('is not mistaken for a conflict of everybody with everybody', async () => {
        const notices: StoreNotice[] = [];
        await acquire6(bed.open(), '2001:db8::1', { owner: 'node-a' });
        await acquire6(
          bed.open((notice) => notices.push(notice)),
          '2001:db8::2',
          { owner: 'node-b' },
        );
        expect(notices).toEqual([]);
        const late: StoreNotice[] = [];
        await acquire6(
          bed.open((notice) => late.push(notice)),
          '2001:db8::2',
          { owner: 'node-c' },
        );
        expect(late).toMatchObject([{ kind: 'conflict', reason: expect.stringContaining('2001:db8::2') }]);
      });

      it.each(['::1', 'ff02::1', 'fd00:42::1'])('refuses the public address %s', async (publicIpv6) => {
        await expect(acquire6(bed.open(), publicIpv6)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      });

      it('needs an address of either family', async () => {
        await expect(bed.acquire(bed.open(), '0.0.0.0')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
        expect((await bed.acquire(bed.open(), '192.0.2.1')).subnet.family).toBe(6);
      });
    });

    describe('reservations', () => {
      it('are for the host they name, and stay reservations', async () => {
        await bed.harness.put('10.42.200.0-24', '{"PublicIP":"192.0.2.1"}');
        const store = bed.open();
        const lease = await bed.acquire(store, '192.0.2.1', { owner: 'node-a' });
        expect(lease.subnet.toString()).toBe('10.42.200.0/24');
        expect(lease.expiresAt).toBeUndefined();
        const renewed = await store.renew(lease);
        expect(renewed.expiresAt).toBeUndefined();
        expect(decodeLease((await bed.harness.get('10.42.200.0-24'))!).expiresAt).toBeUndefined();
        await store.release(renewed);
        expect(await bed.harness.keys()).toEqual(['10.42.200.0-24']);
      });

      it('are kept from everybody else', async () => {
        await bed.harness.setConfig(SMALL_CONFIG);
        await bed.harness.put('10.42.0.64-26', '{"PublicIP":"192.0.2.99"}');
        await bed.harness.put('10.42.0.128-26', '{}');
        await bed.acquire(bed.open(), '192.0.2.1');
        await bed.harness.advance(DEFAULT_TTL_MS / 2);
        await expect(bed.acquire(bed.open(), '192.0.2.2')).resolves.toMatchObject({});
        expect(await bed.harness.get('10.42.0.64-26')).toBe('{"PublicIP":"192.0.2.99"}');
        expect(await bed.harness.get('10.42.0.128-26')).toBe('{}');
      });
    });

    describe('renew and release', () => {
      it('prolongs, and writes new attributes', async () => {
        const store = bed.open();
        const lease = await bed.acquire(store, '192.0.2.1');
        await bed.harness.advance(TTL_MS / 2);
        const data = { VNI: 1, VtepMAC: 'c6:d2:32:6f:8f:44' };
        const attributes = attributesOf('192.0.2.1', { backendType: 'vxlan', backendData: data });
        const renewed = await store.renew({ ...lease, attributes });
        expect(renewed.expiresAt?.getTime()).toBe(bed.harness.now() + TTL_MS);
        const stored = (await bed.harness.get(leaseKey(lease)))!;
        expect(stored).toContain('"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}');
        await bed.harness.advance(TTL_MS - 60_000);
        expect(await bed.harness.keys()).toEqual([leaseKey(lease)]);
      });

      it('confirms a lease that this host only remembered', async () => {
        const lease = await bed.acquire(bed.open(), '192.0.2.1', { owner: 'node-a' });
        const restarted = bed.open();
        const renewed = await restarted.renew({ ...lease, unconfirmed: true });
        expect(renewed.unconfirmed).toBeUndefined();
        expect(leaseKey(renewed)).toBe(leaseKey(lease));
      });

      it('tells a lease that is gone, and does not write it back', async () => {
        const store = bed.open();
        const lease = await bed.acquire(store, '192.0.2.1');
        await bed.harness.remove(leaseKey(lease));
        await expect(store.renew(lease)).rejects.toMatchObject({ code: 'LEASE_LOST' });
        expect(await bed.harness.keys()).toEqual([]);
      });

      it('tells a lease that somebody else has, and leaves it to them', async () => {
        const store = bed.open();
        const lease = await bed.acquire(store, '192.0.2.1', { owner: 'node-a' });
        const theirs = bed.value('192.0.2.2', TTL_MS, 'node-b');
        await bed.harness.put(leaseKey(lease), theirs);
        await expect(store.renew(lease)).rejects.toMatchObject({
          code: 'LEASE_LOST',
          message: expect.stringContaining('192.0.2.2'),
        });
        await store.release(lease);
        expect(await bed.harness.get(leaseKey(lease))).toBe(theirs);
      });

      it('gives a lease back', async () => {
        const store = bed.open();
        const lease = await bed.acquire(store, '192.0.2.1');
        await store.release(lease);
        expect(await bed.harness.keys()).toEqual([]);
        await store.release(lease);
      });
    });

    watchContract(bed);
  });
}
