/**
 * What every lease store must do, run over each of them. A store's test file makes a harness: a fresh, empty store,
 * ways to look into it from outside, and a clock to pass.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { decodeLease, encodeLease } from '../../../src/control/lease-codec.js';
import {
  DEFAULT_TTL_MS,
  type AcquireRequest,
  type Lease,
  type LeaseStore,
  type StoreNotice,
} from '../../../src/control/lease.js';
import { leaseKey, tryParseLeaseKey } from '../../../src/control/lease-key.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { attributesOf, Signal, Watcher } from '../../support/leases.js';

export interface StoreHarness extends AsyncDisposable {
  /** A client of its own, as on one more host. */
  open(onNotice?: (notice: StoreNotice) => void): LeaseStore;
  setConfig(text: string | undefined): Promise<void>;
  /** Raw access to `subnets/<key>`, behind the clients' backs. */
  put(key: string, value: string): Promise<void>;
  get(key: string): Promise<string | undefined>;
  remove(key: string): Promise<void>;
  keys(): Promise<string[]>;
  /** Lets time pass for the store and its clients. */
  advance(ms: number): Promise<void>;
  now(): number;
}

export const CONFIG = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';
/** Three subnets: .64, .128, .192. */
export const SMALL_CONFIG = '{"Network":"10.42.0.0/24","Backend":{"Type":"udp"}}';
export const DUAL_CONFIG =
  '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48","Backend":{"Type":"vxlan"}}';

/** Longer than any tolerance a store has for clocks that differ. */
const SLACK_MS = 10 * 60_000;
const TTL_MS = 60 * 60_000;

export function leaseStoreContract(name: string, make: () => Promise<StoreHarness>): void {
  describe(`lease store contract: ${name}`, () => {
    let harness: StoreHarness;
    let opened: LeaseStore[] = [];
    let watchers: Watcher[] = [];

    beforeEach(async () => {
      harness = await make();
      await harness.setConfig(CONFIG);
    });

    afterEach(async () => {
      for (const watcher of watchers.splice(0)) await watcher[Symbol.asyncDispose]();
      for (const store of opened.splice(0)) await store[Symbol.asyncDispose]();
      await harness[Symbol.asyncDispose]();
      opened = [];
      watchers = [];
    });

    const open = (onNotice?: (notice: StoreNotice) => void): LeaseStore => {
      const store = harness.open(onNotice);
      opened.push(store);
      return store;
    };
    const watch = async (store: LeaseStore): Promise<Watcher> => {
      const watcher = new Watcher(store);
      watchers.push(watcher);
      await watcher.started();
      return watcher;
    };
    const acquire = (store: LeaseStore, publicIp: string, more: Partial<Parameters<LeaseStore['acquire']>[0]> = {}) =>
      store.acquire({ attributes: attributesOf(publicIp || '0.0.0.0'), ttlMs: TTL_MS, ...more });
    const value = (publicIp: string, ttlMs?: number, owner?: string): string =>
      encodeLease(attributesOf(publicIp), {
        expiresAt: ttlMs === undefined ? undefined : new Date(harness.now() + ttlMs),
        owner,
      });
    /** After this, everything that happened before has reached `watcher`. Nobody is ever given a network's first subnet. */
    const barrier = async (watcher: Watcher, key = '10.42.0.0-24'): Promise<void> => {
      await harness.put(key, value('198.51.100.250'));
      await watcher.until(() => watcher.leases.has(key));
      await harness.remove(key);
      await watcher.until(() => !watcher.leases.has(key));
    };

    describe('network config', () => {
      it('is read as it is now', async () => {
        const store = open();
        expect((await store.network()).network?.toString()).toBe('10.42.0.0/16');
        await harness.setConfig('{"network":"10.43.0.0/16"}');
        const changed = await store.network();
        expect(changed.network?.toString()).toBe('10.43.0.0/16');
        expect(changed.backend).toMatchObject({ type: 'udp', defaulted: true });
      });

      it('says what is missing or wrong, and acquires nothing', async () => {
        const store = open();
        await harness.setConfig(undefined);
        await expect(store.network()).rejects.toMatchObject({ code: 'NO_CONFIG' });
        await expect(acquire(store, '192.0.2.1')).rejects.toMatchObject({ code: 'NO_CONFIG' });
        await harness.setConfig('{"Network":"10.42.0.0/16"');
        await expect(store.network()).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
        await expect(acquire(store, '192.0.2.1')).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
        expect(await harness.keys()).toEqual([]);
      });
    });

    describe('acquire', () => {
      it('takes a free subnet in range and stores what flannel reads', async () => {
        const lease = await acquire(open(), '192.0.2.1');
        expect(Prefix.parse('10.42.0.0/16').contains(lease.subnet)).toBe(true);
        expect(lease.subnet.length).toBe(24);
        expect(lease.subnet.address.toString()).not.toBe('10.42.0.0');
        expect(lease.expiresAt?.getTime()).toBe(harness.now() + TTL_MS);
        const key = leaseKey(lease);
        expect(await harness.keys()).toEqual([key]);
        const stored = (await harness.get(key))!;
        expect(stored).toMatch(/^\{"PublicIP":"192\.0\.2\.1","PublicIPv6":null[,}]/);
        expect(decodeLease(stored).attributes.publicIp.toString()).toBe('192.0.2.1');
      });

      it('lives 24 hours unless told otherwise', async () => {
        const lease = await open().acquire({ attributes: attributesOf('192.0.2.1') });
        expect(lease.expiresAt?.getTime()).toBe(harness.now() + DEFAULT_TTL_MS);
      });

      it('gives the same host its subnet again', async () => {
        const first = await acquire(open(), '192.0.2.1');
        const again = await acquire(open(), '192.0.2.1');
        expect(again.subnet.equals(first.subnet)).toBe(true);
        expect(await harness.keys()).toHaveLength(1);
      });

      it('keeps the subnet of an owner whose address has changed', async () => {
        const first = await acquire(open(), '192.0.2.1', { owner: 'node-a' });
        const again = await acquire(open(), '192.0.2.77', { owner: 'node-a' });
        expect(again.subnet.equals(first.subnet)).toBe(true);
        expect(decodeLease((await harness.get(leaseKey(first)))!).attributes.publicIp.toString()).toBe('192.0.2.77');
      });

      it('does not give one live agent the subnet of another with the same address, and says so', async () => {
        const notices: StoreNotice[] = [];
        const first = await acquire(open(), '192.0.2.1', { owner: 'node-a' });
        const second = await acquire(
          open((notice) => notices.push(notice)),
          '192.0.2.1',
          { owner: 'node-b' },
        );
        expect(second.subnet.overlaps(first.subnet)).toBe(false);
        expect(notices.filter(({ kind }) => kind === 'conflict')).toHaveLength(1);
      });

      it('tells the first of two agents with one address as well', async () => {
        const heard = new Signal();
        const notices: StoreNotice[] = [];
        const first = open((notice) => {
          notices.push(notice);
          heard.fire();
        });
        await acquire(first, '192.0.2.1', { owner: 'node-a' });
        await watch(first);
        const second = await acquire(open(), '192.0.2.1', { owner: 'node-b' });
        await heard.until(() => notices.length > 0);
        expect(notices).toMatchObject([{ kind: 'conflict', reason: expect.stringContaining(leaseKey(second)) }]);
      });

      it('reuses the previous subnet when it is free and fits', async () => {
        const previous = { subnet: Prefix.parse('10.42.77.0/24') };
        const lease = await acquire(open(), '192.0.2.1', { previous });
        expect(lease.subnet.toString()).toBe('10.42.77.0/24');
      });

      it.each([
        ['outside the network', '10.77.1.0/24'],
        ['of another length', '10.42.177.0/25'],
        ['of another family', 'fd00::/64'],
        ['held by another host', '10.42.9.0/24'],
      ])('ignores a previous subnet %s', async (_why, previous) => {
        await harness.put('10.42.9.0-24', value('192.0.2.9', TTL_MS));
        const lease = await acquire(open(), '192.0.2.1', { previous: { subnet: Prefix.parse(previous) } });
        expect(lease.subnet.overlaps(Prefix.parse(previous))).toBe(false);
        expect(lease.subnet.length).toBe(24);
      });

      it('moves to the new network when the config has changed, and cleans up', async () => {
        const before = await acquire(open(), '192.0.2.1');
        await harness.setConfig('{"Network":"10.99.0.0/16"}');
        const after = await acquire(open(), '192.0.2.1');
        expect(after.subnet.toString()).toMatch(/^10\.99\./);
        expect(await harness.keys()).toEqual([leaseKey(after)]);
        expect(leaseKey(after)).not.toBe(leaseKey(before));
      });

      it('says clearly that nothing is free, and finds what comes free', async () => {
        await harness.setConfig(SMALL_CONFIG);
        const leases: Lease[] = [];
        const first = open();
        for (const host of [1, 2, 3]) leases.push(await acquire(host === 1 ? first : open(), `192.0.2.${host}`));
        expect(new Set(leases.map(leaseKey)).size).toBe(3);
        const late = open();
        await expect(acquire(late, '192.0.2.4')).rejects.toMatchObject({
          code: 'OUT_OF_SUBNETS',
          message: expect.stringMatching(/out of subnets: 3 leases.*10\.42\.0\.0\/24/),
        });
        await first.release(leases[0]!);
        expect((await acquire(late, '192.0.2.4')).subnet.equals(leases[0]!.subnet)).toBe(true);
      });

      it('takes over what has expired', async () => {
        await harness.setConfig(SMALL_CONFIG);
        for (const host of [1, 2, 3]) await acquire(open(), `192.0.2.${host}`);
        await harness.advance(TTL_MS + SLACK_MS);
        const taken = [];
        for (const host of [11, 12, 13]) taken.push(await acquire(open(), `192.0.2.${host}`));
        expect(new Set(taken.map(leaseKey)).size).toBe(3);
        expect(await harness.keys()).toEqual(taken.map(leaseKey).sort());
      });

      it('never gives one subnet to two of many that start at once', async () => {
        await harness.setConfig('{"Network":"10.42.0.0/24","SubnetLen":28}');
        const results = await Promise.allSettled(
          Array.from({ length: 20 }, (_, i) => acquire(open(), `192.0.2.${i + 1}`)),
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
          await expect(acquire(open(), publicIp)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
          expect(await harness.keys()).toEqual([]);
        },
      );

      it('can be cancelled, and does nothing once closed', async () => {
        const store = open();
        await expect(
          store.acquire({ attributes: attributesOf('192.0.2.1') }, AbortSignal.abort()),
        ).rejects.toMatchObject({
          code: 'ABORTED',
        });
        await store[Symbol.asyncDispose]();
        await expect(acquire(store, '192.0.2.1')).rejects.toMatchObject({ code: 'CLOSED' });
        expect(await harness.keys()).toEqual([]);
      });
    });

    describe('dual stack', () => {
      beforeEach(() => harness.setConfig(DUAL_CONFIG));
      const dual = (host: number): Pick<AcquireRequest, 'attributes'> => ({
        attributes: attributesOf(`192.0.2.${host}`, { publicIpv6: Address.parse(`2001:db8::${host}`) }),
      });

      it('refuses what takes flanneld down: two families in the key, no PublicIPv6 in the value', async () => {
        await expect(acquire(open(), '192.0.2.1')).rejects.toMatchObject({
          code: 'INVALID_ARGUMENT',
          message: expect.stringContaining('vxlan'),
        });
        expect(await harness.keys()).toEqual([]);
      });

      it('carries pods of both families over IPv4 where the backend can', async () => {
        await harness.setConfig(DUAL_CONFIG.replace('vxlan', 'udp'));
        expect((await acquire(open(), '192.0.2.1')).subnet6).toBeDefined();
      });

      it('leases both families under one key', async () => {
        const lease = await acquire(open(), '', dual(1));
        expect(lease.subnet6?.length).toBe(64);
        expect(Prefix.parse('fd00:42::/48').contains(lease.subnet6!)).toBe(true);
        const [key] = await harness.keys();
        expect(key).toMatch(/^10\.42\.\d+\.0-24&fd00:42:0:[0-9a-f]+::-64$/);
        expect(tryParseLeaseKey(key!)?.subnet6?.equals(lease.subnet6!)).toBe(true);
        expect((await acquire(open(), '', dual(1))).subnet6!.equals(lease.subnet6!)).toBe(true);
      });

      it('keeps its IPv4 subnet when IPv6 is switched on', async () => {
        await harness.setConfig(CONFIG);
        const before = await acquire(open(), '', dual(1));
        await harness.setConfig(DUAL_CONFIG);
        const after = await acquire(open(), '', dual(1));
        expect(after.subnet.equals(before.subnet)).toBe(true);
        expect(await harness.keys()).toEqual([leaseKey(after)]);
      });

      it('never gives one subnet of either family to two', async () => {
        await harness.setConfig(
          '{"Network":"10.42.0.0/24","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00:42::/60","IPv6SubnetLen":64}',
        );
        const leases = await Promise.all(Array.from({ length: 12 }, (_, i) => acquire(open(), '', dual(i + 1))));
        expect(new Set(leases.map((lease) => lease.subnet.toString())).size).toBe(12);
        expect(new Set(leases.map((lease) => lease.subnet6!.toString())).size).toBe(12);
      });
    });

    describe('IPv6 alone', () => {
      beforeEach(() => harness.setConfig('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/48"}'));
      const acquire6 = (store: LeaseStore, publicIpv6: string, more: Partial<AcquireRequest> = {}) =>
        store.acquire({
          attributes: attributesOf('0.0.0.0', { publicIpv6: Address.parse(publicIpv6) }),
          ttlMs: TTL_MS,
          ...more,
        });

      it("is leased under flannel's key, and hosts are told apart by their IPv6 address", async () => {
        const first = await acquire6(open(), '2001:db8::1');
        const second = await acquire6(open(), '2001:db8::2');
        expect(first.subnet.family).toBe(6);
        expect(first.subnet6).toBeUndefined();
        expect(second.subnet.overlaps(first.subnet)).toBe(false);
        expect((await acquire6(open(), '2001:db8::1')).subnet.equals(first.subnet)).toBe(true);
        const key = leaseKey(first);
        expect(key).toMatch(/^0\.0\.0\.0-0&fd00:42:0:[0-9a-f]+::-64$/);
        expect(await harness.get(key)).toMatch(/^\{"PublicIP":"0\.0\.0\.0","PublicIPv6":"2001:db8::1"[,}]/);
        expect(await harness.keys()).toHaveLength(2);
      });

      it('is not mistaken for a conflict of everybody with everybody', async () => {
        const notices: StoreNotice[] = [];
        await acquire6(open(), '2001:db8::1', { owner: 'node-a' });
        await acquire6(
          open((notice) => notices.push(notice)),
          '2001:db8::2',
          { owner: 'node-b' },
        );
        expect(notices).toEqual([]);
        const late: StoreNotice[] = [];
        await acquire6(
          open((notice) => late.push(notice)),
          '2001:db8::2',
          { owner: 'node-c' },
        );
        expect(late).toMatchObject([{ kind: 'conflict', reason: expect.stringContaining('2001:db8::2') }]);
      });

      it.each(['::1', 'ff02::1', 'fd00:42::1'])('refuses the public address %s', async (publicIpv6) => {
        await expect(acquire6(open(), publicIpv6)).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
      });

      it('needs an address of either family', async () => {
        await expect(acquire(open(), '0.0.0.0')).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
        expect((await acquire(open(), '192.0.2.1')).subnet.family).toBe(6);
      });
    });

    describe('reservations', () => {
      it('are for the host they name, and stay reservations', async () => {
        await harness.put('10.42.200.0-24', '{"PublicIP":"192.0.2.1"}');
        const store = open();
        const lease = await acquire(store, '192.0.2.1', { owner: 'node-a' });
        expect(lease.subnet.toString()).toBe('10.42.200.0/24');
        expect(lease.expiresAt).toBeUndefined();
        const renewed = await store.renew(lease);
        expect(renewed.expiresAt).toBeUndefined();
        expect(decodeLease((await harness.get('10.42.200.0-24'))!).expiresAt).toBeUndefined();
        await store.release(renewed);
        expect(await harness.keys()).toEqual(['10.42.200.0-24']);
      });

      it('are kept from everybody else', async () => {
        await harness.setConfig(SMALL_CONFIG);
        await harness.put('10.42.0.64-26', '{"PublicIP":"192.0.2.99"}');
        await harness.put('10.42.0.128-26', '{}');
        await acquire(open(), '192.0.2.1');
        await harness.advance(DEFAULT_TTL_MS / 2);
        await expect(acquire(open(), '192.0.2.2')).resolves.toMatchObject({});
        expect(await harness.get('10.42.0.64-26')).toBe('{"PublicIP":"192.0.2.99"}');
        expect(await harness.get('10.42.0.128-26')).toBe('{}');
      });
    });

    describe('renew and release', () => {
      it('prolongs, and writes new attributes', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1');
        await harness.advance(TTL_MS / 2);
        const data = { VNI: 1, VtepMAC: 'c6:d2:32:6f:8f:44' };
        const attributes = attributesOf('192.0.2.1', { backendType: 'vxlan', backendData: data });
        const renewed = await store.renew({ ...lease, attributes });
        expect(renewed.expiresAt?.getTime()).toBe(harness.now() + TTL_MS);
        const stored = (await harness.get(leaseKey(lease)))!;
        expect(stored).toContain('"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}');
        await harness.advance(TTL_MS - 60_000);
        expect(await harness.keys()).toEqual([leaseKey(lease)]);
      });

      it('confirms a lease that this host only remembered', async () => {
        const lease = await acquire(open(), '192.0.2.1', { owner: 'node-a' });
        const restarted = open();
        const renewed = await restarted.renew({ ...lease, unconfirmed: true });
        expect(renewed.unconfirmed).toBeUndefined();
        expect(leaseKey(renewed)).toBe(leaseKey(lease));
      });

      it('tells a lease that is gone, and does not write it back', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1');
        await harness.remove(leaseKey(lease));
        await expect(store.renew(lease)).rejects.toMatchObject({ code: 'LEASE_LOST' });
        expect(await harness.keys()).toEqual([]);
      });

      it('tells a lease that somebody else has, and leaves it to them', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1', { owner: 'node-a' });
        const theirs = value('192.0.2.2', TTL_MS, 'node-b');
        await harness.put(leaseKey(lease), theirs);
        await expect(store.renew(lease)).rejects.toMatchObject({
          code: 'LEASE_LOST',
          message: expect.stringContaining('192.0.2.2'),
        });
        await store.release(lease);
        expect(await harness.get(leaseKey(lease))).toBe(theirs);
      });

      it('gives a lease back', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1');
        await store.release(lease);
        expect(await harness.keys()).toEqual([]);
        await store.release(lease);
      });
    });

    describe('watch', () => {
      it('starts with a snapshot of the others, and never reports our own lease', async () => {
        await harness.put('10.42.5.0-24', value('192.0.2.5', TTL_MS));
        const store = open();
        const mine = await acquire(store, '192.0.2.1');
        const watcher = await watch(store);
        expect(watcher.changes[0]?.kind).toBe('snapshot');
        expect(watcher.keys).toEqual(['10.42.5.0-24']);
        await store.renew(mine);
        await barrier(watcher);
        expect(watcher.log).toEqual(['added 10.42.0.0-24', 'removed 10.42.0.0-24']);
      });

      it('does not report a lease that is acquired while watching', async () => {
        const store = open();
        const watcher = await watch(store);
        await acquire(store, '192.0.2.1');
        await barrier(watcher);
        expect(watcher.log).toEqual(['added 10.42.0.0-24', 'removed 10.42.0.0-24']);
      });

      it('reports joining, changing and leaving of others', async () => {
        const watcher = await watch(open());
        const other = open();
        const lease = await acquire(other, '192.0.2.2');
        const key = leaseKey(lease);
        await watcher.until(() => watcher.leases.has(key));
        await other.renew({ ...lease, attributes: attributesOf('192.0.2.22') });
        await watcher.until(() => watcher.leases.get(key)?.attributes.publicIp.toString() === '192.0.2.22');
        await other.release({ ...lease, attributes: attributesOf('192.0.2.22') });
        await watcher.until(() => !watcher.leases.has(key));
        expect(watcher.log).toEqual([`added ${key}`, `added ${key}`, `removed ${key}`]);
      });

      it('reports expiry, once, with the last attributes', async () => {
        await harness.put('10.42.5.0-24', value('192.0.2.5', TTL_MS));
        const watcher = await watch(open());
        await harness.advance(TTL_MS + SLACK_MS);
        await watcher.until(() => watcher.leases.size === 0);
        const last = watcher.changes.at(-1);
        expect(last).toMatchObject({ kind: 'removed' });
        expect(last?.kind === 'removed' && last.lease.attributes.publicIp.toString()).toBe('192.0.2.5');
      });

      it('keeps a lease that is renewed in time', async () => {
        const other = open();
        const lease = await acquire(other, '192.0.2.2');
        const watcher = await watch(open());
        await harness.advance(TTL_MS * 0.9);
        const renewed = await other.renew(lease);
        await watcher.until(
          () => watcher.leases.get(leaseKey(lease))?.expiresAt?.getTime() === renewed.expiresAt!.getTime(),
        );
        await harness.advance(TTL_MS * 0.9);
        await barrier(watcher);
        expect(watcher.log).not.toContain(`removed ${leaseKey(lease)}`);
      });

      it('tells that our own lease is gone', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1');
        const watcher = await watch(store);
        await harness.remove(leaseKey(lease));
        await watcher.until(() => watcher.log.includes(`own lost ${leaseKey(lease)}`));
        const again = await acquire(store, '192.0.2.1', { previous: { subnet: lease.subnet } });
        expect(again.subnet.equals(lease.subnet)).toBe(true);
        await barrier(watcher);
        expect(watcher.log.filter((line) => line.startsWith('own'))).toHaveLength(1);
      });

      it('tells who has our lease, and shows it once we have another', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1', { owner: 'node-a' });
        const key = leaseKey(lease);
        const watcher = await watch(store);
        await harness.put(key, value('192.0.2.66', TTL_MS, 'thief'));
        await watcher.until(() => watcher.log.includes(`own replaced ${key}`));
        const change = watcher.changes.at(-1);
        expect(change?.kind === 'own' && change.lease.attributes.publicIp.toString()).toBe('192.0.2.66');
        const other = await acquire(store, '192.0.2.1', { owner: 'node-a', previous: { subnet: lease.subnet } });
        expect(other.subnet.overlaps(lease.subnet)).toBe(false);
        await watcher.until(() => watcher.leases.has(key));
      });

      it('serves two watchers of one client alike', async () => {
        const store = open();
        const [first, second] = [await watch(store), await watch(store)];
        await harness.put('10.42.5.0-24', value('192.0.2.5'));
        await first.until(() => first.leases.size === 1);
        await second.until(() => second.leases.size === 1);
      });

      it('ends when told to', async () => {
        const stop = new AbortController();
        const iterator = open().watch(stop.signal)[Symbol.asyncIterator]();
        expect((await iterator.next()).value).toMatchObject({ kind: 'snapshot' });
        const next = iterator.next();
        stop.abort();
        expect((await next).done).toBe(true);
      });
    });

    describe('junk', () => {
      const JUNK_KEYS = ['junk', '10.42.5.0-24.bak', '10.42.5.0', '10.42.5.0-33', '10.42.5.7-24', '.hidden', 'a&b'];
      const JUNK_VALUES = [
        '',
        '{',
        '[]',
        'null',
        '"x"',
        '{"PublicIP":5}',
        '{"PublicIP":"1.2.3"}',
        '{"PublicIP":"::1"}',
      ];

      it('under any key is reported once and changes nothing', async () => {
        await harness.put('10.42.5.0-24', value('192.0.2.5'));
        const notices: StoreNotice[] = [];
        const heard = new Signal();
        const store = open((notice) => {
          notices.push(notice);
          heard.fire();
        });
        const watcher = await watch(store);
        for (const key of JUNK_KEYS) await harness.put(key, 'anything');
        await heard.until(() => notices.length >= JUNK_KEYS.length);
        // A second look is no second report.
        await acquire(store, '192.0.2.1');
        for (const key of JUNK_KEYS) await harness.remove(key);
        await barrier(watcher);
        expect(notices.map(({ kind }) => kind)).toEqual(JUNK_KEYS.map(() => 'foreign'));
        expect(watcher.keys).toEqual(['10.42.5.0-24']);
        expect(watcher.log).toEqual(['added 10.42.0.0-24', 'removed 10.42.0.0-24']);
      });

      it.each(JUNK_VALUES)('value %j keeps the last good lease until the key is gone', async (junk) => {
        await harness.put('10.42.5.0-24', value('192.0.2.5'));
        const notices: StoreNotice[] = [];
        const heard = new Signal();
        const store = open((notice) => {
          notices.push(notice);
          heard.fire();
        });
        const watcher = await watch(store);
        await harness.put('10.42.5.0-24', junk);
        await heard.until(() => notices.length > 0);
        await acquire(store, '192.0.2.1');
        await barrier(watcher);
        expect(notices).toMatchObject([{ kind: 'corrupt' }]);
        expect(watcher.keys).toEqual(['10.42.5.0-24']);
        await harness.put('10.42.5.0-24', value('192.0.2.55'));
        await watcher.until(() => watcher.leases.get('10.42.5.0-24')?.attributes.publicIp.toString() === '192.0.2.55');
        await harness.put('10.42.5.0-24', junk);
        await heard.until(() => notices.length > 1);
        await harness.remove('10.42.5.0-24');
        await watcher.until(() => watcher.leases.size === 0);
      });

      it('holds the subnet it names against new hosts', async () => {
        await harness.setConfig(SMALL_CONFIG);
        await harness.put('10.42.0.64-26', 'junk');
        for (const host of [1, 2]) await acquire(open(), `192.0.2.${host}`);
        await expect(acquire(open(), '192.0.2.3')).rejects.toMatchObject({
          code: 'OUT_OF_SUBNETS',
          message: expect.stringContaining('1 of them unreadable'),
        });
        expect(await harness.get('10.42.0.64-26')).toBe('junk');
      });

      it('in our own lease is repaired by the next renewal', async () => {
        const store = open();
        const lease = await acquire(store, '192.0.2.1');
        const key = leaseKey(lease);
        const watcher = await watch(store);
        await harness.put(key, '{"PublicIP":');
        await barrier(watcher);
        await store.renew(lease);
        expect(decodeLease((await harness.get(key))!).attributes.publicIp.toString()).toBe('192.0.2.1');
        expect(watcher.log.filter((line) => line.startsWith('own'))).toEqual([]);
      });
    });
  });
}
