/** What the etcd store writes and reads, byte for byte, on real etcd; and many hosts at once. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/control/clock.js';
import { leaseKey } from '../../src/control/lease-key.js';
import type { AcquireRequest, Lease, LeaseStore, StoreNotice } from '../../src/control/lease.js';
import { etcdStore, type EtcdStoreOptions } from '../../src/control/stores/etcd.js';
import { Address, Prefix } from '../../src/net/prefix.js';
import { EtcdCluster, type EtcdVersion } from '../support/etcd.js';
import { RawEtcd } from '../support/etcd-client.js';
import { attributesOf, Signal, Watcher } from '../support/leases.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

const VERSIONS: readonly EtcdVersion[] = ['etcd-old', 'etcd-3.6'];
const NOW_MS = Date.UTC(2026, 0, 1);

describe.each(VERSIONS)('data in %s', (version) => {
  describe.skipIf(missing({ counterparts: [version, 'etcdctl'] }))('', () => {
    let cluster: EtcdCluster;
    let raw: RawEtcd;
    let prefix = '';
    let networks = 0;
    const opened: AsyncDisposable[] = [];

    beforeAll(async () => {
      cluster = await EtcdCluster.start({ version });
      raw = new RawEtcd({ endpoints: cluster.urls });
    });
    afterAll(async () => {
      raw.close();
      await cluster[Symbol.asyncDispose]();
    });
    beforeEach(async () => {
      prefix = `/net${networks++}`;
      await raw.put(`${prefix}/config`, '{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}');
    });
    afterEach(async () => {
      for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
    });

    const keep = <T extends AsyncDisposable>(each: T): T => {
      opened.push(each);
      return each;
    };
    const open = (more: Partial<EtcdStoreOptions> = {}): LeaseStore =>
      keep(etcdStore({ endpoints: cluster.urls, prefix, clock: new ManualClock(NOW_MS), ...more }));
    const acquire = (store: LeaseStore, host: number, more: Partial<AcquireRequest> = {}): Promise<Lease> =>
      store.acquire({ attributes: attributesOf(`192.0.2.${host}`), owner: `host${host}`, ...more });
    const stored = async (): Promise<[string, string][]> =>
      (await raw.list(prefix)).map(({ key, value }) => [key.toString(), value.toString()]);
    const leaseIdOf = async (lease: Lease): Promise<string> =>
      (await raw.get(`${prefix}/subnets/${leaseKey(lease)}`))!.lease;

    it.each(['/a/b', '/a//b/', '/a/./c/../b', '/a/b///'])('prefix %s is joined as Go joins paths', async (spelling) => {
      const own = `/spelling${networks}`;
      await raw.put(`${own}/a/b/config`, '{"Network":"10.42.0.0/16"}');
      const lease = await acquire(open({ prefix: `${own}${spelling}` }), 1);
      expect((await raw.list(`${own}/a`)).map(({ key }) => key.toString())).toEqual([
        `${own}/a/b/config`,
        `${own}/a/b/subnets/${leaseKey(lease)}`,
      ]);
    });

    it('a lease is what flanneld writes, and two fields more that it skips', async () => {
      const data = { VNI: 1, VtepMAC: 'c6:d2:32:6f:8f:44' };
      const attributes = attributesOf('192.168.64.3', { backendType: 'vxlan', backendData: data });
      const previous = { subnet: Prefix.parse('10.42.9.0/24') };
      const lease = await open().acquire({ attributes, previous, owner: 'host<1>' });
      expect((await stored())[1]).toEqual([
        `${prefix}/subnets/10.42.9.0-24`,
        '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan",' +
          '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},' +
          '"Expiration":"2026-01-02T00:00:00.000Z","Owner":"host\\u003c1\\u003e"}',
      ]);
      expect(await raw.timeToLive(await leaseIdOf(lease))).toMatchObject({ granted: 86_400 });
    });

    it('dual stack', async () => {
      const config = '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48"}';
      await raw.put(`${prefix}/config`, config);
      const attributes = attributesOf('192.0.2.1', { publicIpv6: Address.parse('2001:DB8:0::1') });
      const previous = { subnet: Prefix.parse('10.42.9.0/24'), subnet6: Prefix.parse('fd00:42:0:9::/64') };
      await open().acquire({ attributes, previous });
      expect((await stored())[1]).toEqual([
        `${prefix}/subnets/10.42.9.0-24&fd00:42:0:9::-64`,
        '{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","Expiration":"2026-01-02T00:00:00.000Z"}',
      ]);
    });

    it('a lease of flanneld is taken over by its host, and what nobody knows in it is kept', async () => {
      const id = await raw.grant(86_400);
      const value = '{"PublicIP":"192.0.2.1","PublicIPv6":null,"Rack": {"row":4},"publicip":"192.0.2.1","Note":"a<b"}';
      await raw.put(`${prefix}/subnets/10.42.9.0-24`, value, id);
      const store = open();
      const lease = await acquire(store, 1);
      expect(leaseKey(lease)).toBe('10.42.9.0-24');
      const expected =
        '{"PublicIP":"192.0.2.1","PublicIPv6":null,"Expiration":"2026-01-02T00:00:00.000Z","Owner":"host1",' +
        '"Rack":{"row":4},"Note":"a<b"}';
      expect((await stored())[1]![1]).toBe(expected);
      await store.renew(lease);
      expect((await stored())[1]![1]).toBe(expected);
    });

    it("the end of flanneld's leases is asked of etcd, once", async () => {
      const value = '{"PublicIP":"192.0.2.9","PublicIPv6":null}';
      await raw.put(`${prefix}/subnets/10.42.9.0-24`, value, await raw.grant(3_600));
      await raw.put(`${prefix}/subnets/10.42.10.0-24`, value, await raw.grant(86_400));
      const store = open();
      const watcher = keep(new Watcher(store));
      const leftOf = (key: string): number => (watcher.leases.get(key)!.expiresAt!.getTime() - NOW_MS) / 1000;
      await watcher.started();
      await watcher.until(() => leftOf('10.42.9.0-24') <= 3_600);
      expect(leftOf('10.42.9.0-24')).toBeGreaterThan(3_500);
      await raw.put(`${prefix}/subnets/10.42.11.0-24`, value, await raw.grant(86_400));
      await watcher.until(() => watcher.leases.size === 3);
      for (const key of ['10.42.10.0-24', '10.42.11.0-24']) expect(leftOf(key)).toBe(86_400);
      expect(watcher.log).toEqual(['added 10.42.9.0-24', 'added 10.42.11.0-24']);
      // A new list is no news.
      await store.acquire({ attributes: attributesOf('192.0.2.1') });
      await raw.delete(`${prefix}/subnets/10.42.11.0-24`);
      await watcher.until(() => watcher.leases.size === 2);
      expect(watcher.log.slice(2)).toEqual(['removed 10.42.11.0-24']);
    });

    it('a lease whose host is gone ends when etcd says so', async () => {
      const watcher = keep(new Watcher(open()));
      await watcher.started();
      const lease = await acquire(open(), 1, { ttlMs: 2_000 });
      await watcher.until(() => watcher.leases.size === 0 && watcher.log.length > 1);
      expect(watcher.log).toEqual([`added ${leaseKey(lease)}`, `removed ${leaseKey(lease)}`]);
      expect((await stored()).map(([key]) => key)).toEqual([`${prefix}/config`]);
    });

    it('a reservation has no etcd lease, before and after', async () => {
      await raw.put(`${prefix}/subnets/10.42.9.0-24`, '{"PublicIP":"192.0.2.1","Why":"printer"}');
      const store = open();
      const lease = await acquire(store, 1);
      expect(lease.expiresAt).toBeUndefined();
      expect(await leaseIdOf(lease)).toBe('0');
      await store.renew({ ...lease, attributes: attributesOf('192.0.2.1', { backendType: 'vxlan' }) });
      expect(await leaseIdOf(lease)).toBe('0');
      expect((await stored())[1]![1]).toBe(
        '{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","Owner":"host1","Why":"printer"}',
      );
    });

    it('a renewal grants anew and revokes the etcd lease it had, unless others use that', async () => {
      const store = open();
      const lease = await acquire(store, 1);
      const first = await leaseIdOf(lease);
      await store.renew(lease);
      const second = await leaseIdOf(lease);
      expect(second).not.toBe(first);
      await until(async () => (await raw.timeToLive(first)).left === -1, { what: 'the old etcd lease to go' });
      await raw.put(`${prefix}/shared`, 'x', second);
      await store.renew(lease);
      await store.release(lease);
      expect((await raw.timeToLive(second)).left).toBeGreaterThan(0);
      expect((await stored()).map(([key]) => key)).toEqual([`${prefix}/config`, `${prefix}/shared`]);
    });

    it('a lease whose key no longer fits the families of the network is not written again', async () => {
      const dual =
        '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48","Backend":{"Type":"vxlan"}}';
      await raw.put(`${prefix}/config`, dual);
      const attributes = attributesOf('192.0.2.1', { publicIpv6: Address.parse('2001:db8::1') });
      const store = open();
      const lease = await store.acquire({ attributes, owner: 'host1' });
      await expect(store.renew({ ...lease, attributes: attributesOf('192.0.2.1') })).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
      });
      // A config that is broken for a moment changes nothing.
      await raw.put(`${prefix}/config`, '{');
      const before = await leaseIdOf(lease);
      await store.renew(lease);
      expect(await leaseIdOf(lease)).not.toBe(before);
      await raw.put(`${prefix}/config`, '{"Network":"10.42.0.0/16"}');
      await expect(store.renew(lease)).rejects.toMatchObject({ code: 'LEASE_LOST' });
      const single = await store.acquire({ attributes, owner: 'host1', previous: lease, isServing: true });
      expect(single.subnet.equals(lease.subnet)).toBe(true);
      expect((await stored()).map(([key]) => key)).toEqual([
        `${prefix}/config`,
        `${prefix}/subnets/${leaseKey(single)}`,
      ]);
    });

    it('keys beside the tree are noticed once and left alone, and what flanneld takes for leased is not given out', async () => {
      await raw.put(`${prefix}/config`, '{"Network":"10.42.0.0/24"}');
      const strange = [`${prefix}/subnets`, `${prefix}/subnets-old/10.42.0.64-26`, `${prefix}/subnets/x10.42.0.128-26`];
      for (const key of strange) await raw.put(key, '{"PublicIP":"192.0.2.9"}');
      const notices: StoreNotice[] = [];
      const heard = new Signal();
      const store = open({
        onNotice: (notice) => {
          notices.push(notice);
          heard.fire();
        },
      });
      const watcher = keep(new Watcher(store));
      await watcher.started();
      expect(watcher.keys).toEqual([]);
      expect(leaseKey(await acquire(store, 1))).toBe('10.42.0.192-26');
      await expect(acquire(open(), 2)).rejects.toMatchObject({ code: 'OUT_OF_SUBNETS' });
      expect(notices.map(({ kind }) => kind)).toEqual(['foreign', 'foreign', 'foreign']);
      expect(store.metrics!()).toMatchObject({ skippedEvents: 3 });
      await raw.delete(strange[1]!);
      await raw.put(`${prefix}/subnets/10.42.0.64-26`, '{');
      await heard.until(() => notices.length > 3);
      expect(notices[3]).toMatchObject({ kind: 'corrupt', path: `${prefix}/subnets/10.42.0.64-26` });
      await raw.delete(`${prefix}/subnets/10.42.0.64-26`);
      expect(leaseKey(await acquire(open(), 2))).toBe('10.42.0.64-26');
      expect((await stored()).map(([key]) => key)).toContain(strange[0]);
    });

    it('a host with our address but no owner name, such as flanneld, that writes into our lease is reported', async () => {
      const notices: StoreNotice[] = [];
      const heard = new Signal();
      const store = open({
        onNotice: (notice) => {
          notices.push(notice);
          heard.fire();
        },
      });
      const lease = await acquire(store, 1);
      const watcher = keep(new Watcher(store));
      await watcher.started();
      const id = await raw.grant(86_400);
      await raw.put(`${prefix}/subnets/${leaseKey(lease)}`, '{"PublicIP":"192.0.2.1","PublicIPv6":null}', id);
      await heard.until(() => notices.length > 0);
      expect(notices).toMatchObject([{ kind: 'conflict', reason: expect.stringContaining('192.0.2.1') }]);
      await store.renew(lease);
      expect(watcher.log).toEqual([]);
    });

    it.each([
      ['IPv4', '{"Network":"10.42.0.0/20","SubnetLen":28}', 200, 255],
      [
        'dual stack',
        '{"Network":"10.42.0.0/22","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00:42::/58","Backend":{"Type":"vxlan"}}',
        40,
        63,
      ],
    ])(
      'many hosts that start at once on a nearly full network, %s',
      { timeout: 60_000 },
      async (_name, config, hosts, room) => {
        await raw.put(`${prefix}/config`, config);
        // All but as many subnets as there are hosts, less five.
        const probe = open();
        const taken = room - hosts + 5;
        for (let i = 0; i < taken; i++) {
          const publicIpv6 = Address.parse(`2001:db8:1::${i + 1}`);
          await probe.acquire({ attributes: attributesOf(`198.51.100.${i + 1}`, { publicIpv6 }) });
        }
        const results = await Promise.allSettled(
          Array.from({ length: hosts }, (_, i) => {
            const publicIpv6 = Address.parse(`2001:db8::${(i + 1).toString(16)}`);
            const attributes = attributesOf(`192.0.2.${i + 1}`, { publicIpv6 });
            return open({ requestTimeoutMs: 20_000 }).acquire({ attributes, owner: `host${i}` });
          }),
        );
        const won = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
        const lost = results.flatMap((result) => (result.status === 'rejected' ? [result.reason as unknown] : []));
        for (const error of lost) expect(error).toMatchObject({ code: 'OUT_OF_SUBNETS' });
        expect(won).toHaveLength(hosts - 5);
        expect(new Set(won.map(({ subnet }) => subnet.toString())).size).toBe(won.length);
        expect(new Set(won.map(({ subnet6 }, i) => subnet6?.toString() ?? i)).size).toBe(won.length);
        expect(await raw.list(`${prefix}/subnets/`)).toHaveLength(room);
      },
    );
  });
});
