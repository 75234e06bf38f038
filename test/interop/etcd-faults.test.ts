/** How the etcd store lives through what happens to clusters: real etcd, killed, paused, compacted, emptied, cut off. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ManualClock } from '../../src/control/clock.js';
import { leaseKey } from '../../src/control/lease-key.js';
import type { Lease, LeaseStore, StoreNotice } from '../../src/control/lease.js';
import { etcdStore, type EtcdStoreOptions } from '../../src/control/stores/etcd.js';
import { EtcdCluster, type EtcdOptions, type EtcdVersion } from '../support/etcd.js';
import { RawEtcd } from '../support/etcd-client.js';
import { attributesOf, Watcher } from '../support/leases.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';
import { TcpProxy } from '../support/tcp-proxy.js';

const PREFIX = '/coreos.com/network';
const CONFIG = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';
const A = '10.42.5.0-24';
const B = '10.42.6.0-24';
const C = '10.42.7.0-24';

const VERSIONS: readonly EtcdVersion[] = ['etcd-old', 'etcd-3.6'];

describe.skipIf(missing({ counterparts: [...VERSIONS, 'etcdctl'] }))('etcd store faults', () => {
  const opened: AsyncDisposable[] = [];
  const raws: RawEtcd[] = [];
  let notices: StoreNotice[] = [];

  beforeEach(() => {
    notices = [];
  });
  afterEach(async () => {
    for (const each of opened.splice(0).reverse()) await each[Symbol.asyncDispose]();
    for (const raw of raws.splice(0)) raw.close();
  });

  const keep = <T extends AsyncDisposable>(each: T): T => {
    opened.push(each);
    return each;
  };
  const start = async (options: EtcdOptions = {}): Promise<{ cluster: EtcdCluster; raw: RawEtcd }> => {
    const cluster = keep(await EtcdCluster.start(options));
    const raw = new RawEtcd({ endpoints: cluster.urls });
    raws.push(raw);
    await raw.put(`${PREFIX}/config`, CONFIG);
    return { cluster, raw };
  };
  const open = (endpoints: readonly string[], more: Partial<EtcdStoreOptions> = {}): LeaseStore =>
    keep(etcdStore({ endpoints, requestTimeoutMs: 2_000, onNotice: (notice) => notices.push(notice), ...more }));
  const watch = async (store: LeaseStore): Promise<Watcher> => {
    const watcher = keep(new Watcher(store));
    await watcher.started();
    return watcher;
  };
  const lease = (raw: RawEtcd, key: string, publicIp: string): Promise<void> =>
    raw.put(`${PREFIX}/subnets/${key}`, `{"PublicIP":"${publicIp}","PublicIPv6":null}`);
  const ipOf = (watcher: Watcher, key: string): string | undefined =>
    watcher.leases.get(key)?.attributes.publicIp.toString();
  const acquire = (store: LeaseStore, host: number): Promise<Lease> =>
    store.acquire({ attributes: attributesOf(`192.0.2.${host}`), owner: `host${host}` });
  const kinds = (): string[] => notices.map(({ kind }) => kind);

  it('a watch that was cut off is resumed where it ended', async () => {
    const { cluster, raw } = await start();
    const proxy = keep(await TcpProxy.open(cluster.url(0)));
    await lease(raw, A, '192.0.2.5');
    const store = open([proxy.url]);
    const watcher = await watch(store);
    proxy.cut();
    await lease(raw, A, '192.0.2.55');
    await lease(raw, B, '192.0.2.6');
    await lease(raw, C, '192.0.2.7');
    await raw.delete(`${PREFIX}/subnets/${C}`);
    await until(() => kinds().includes('down'), { what: 'the outage to be told' });
    proxy.heal();
    await watcher.until(() => ipOf(watcher, A) === '192.0.2.55' && watcher.leases.has(B));
    expect(watcher.log.toSorted()).toEqual([`added ${A}`, `added ${B}`]);
    expect(watcher.changes.filter(({ kind }) => kind === 'snapshot')).toHaveLength(1);
    expect(kinds()).toEqual(['down', 'up']);
    expect(store.metrics!()).toMatchObject({ resyncs: 0 });
    expect(store.metrics!()['reconnects']).toBeGreaterThan(0);
  });

  it('what compaction has hidden is found by a new list, and nothing true is withdrawn', async () => {
    const { cluster, raw } = await start();
    const proxy = keep(await TcpProxy.open(cluster.url(0)));
    await lease(raw, A, '192.0.2.5');
    await lease(raw, B, '192.0.2.6');
    await lease(raw, C, '192.0.2.7');
    const store = open([proxy.url]);
    const mine = await acquire(store, 1);
    const watcher = await watch(store);
    proxy.cut();
    await lease(raw, A, '192.0.2.55');
    await raw.delete(`${PREFIX}/subnets/${B}`);
    await raw.delete(`${PREFIX}/subnets/${leaseKey(mine)}`);
    const status = await cluster.ctl(['put', 'elsewhere', 'x', '-w', 'json']);
    await cluster.ctl(['compaction', /"revision":(\d+)/.exec(status)![1]!]);
    proxy.heal();
    await watcher.until(() => ipOf(watcher, A) === '192.0.2.55' && !watcher.leases.has(B));
    await watcher.until(() => watcher.log.includes(`own lost ${leaseKey(mine)}`));
    expect(watcher.log.toSorted()).toEqual([`added ${A}`, `own lost ${leaseKey(mine)}`, `removed ${B}`]);
    expect(store.metrics!()).toMatchObject({ resyncs: 1 });
    await lease(raw, B, '192.0.2.66');
    await watcher.until(() => ipOf(watcher, B) === '192.0.2.66');
    // The own lease is had again, under the same key.
    const again = await store.acquire({ attributes: mine.attributes, owner: 'host1', previous: mine });
    expect(leaseKey(again)).toBe(leaseKey(mine));
  });

  it('a watch that hangs is noticed and taken to another endpoint', async () => {
    const { cluster, raw } = await start();
    const hung = keep(await TcpProxy.open(cluster.url(0)));
    const good = keep(await TcpProxy.open(cluster.url(0)));
    const store = open([hung.url, good.url], { random: () => 0, requestTimeoutMs: 500, progressMs: 300 });
    const watcher = await watch(store);
    expect(good.connections).toBe(0);
    hung.goDeaf();
    await lease(raw, A, '192.0.2.5');
    await watcher.until(() => watcher.leases.has(A));
    expect(good.connections).toBeGreaterThan(0);
    expect(kinds()).toEqual([]);
    expect((await acquire(store, 1)).expiresAt).toBeDefined();
  });

  it('an endpoint that swallows everything, or refuses, does not keep the first call waiting', async () => {
    const { cluster } = await start();
    const swallows = keep(await TcpProxy.open(cluster.url(0)));
    swallows.goDeaf();
    const refuses = keep(await TcpProxy.open(cluster.url(0)));
    refuses.cut();
    const store = open([swallows.url, refuses.url, cluster.url(0)], { random: () => 0 });
    const mine = await acquire(store, 1);
    expect((await store.renew(mine)).expiresAt).toBeDefined();
    expect(kinds()).toEqual([]);
  });

  it.each(VERSIONS)('a quiet watch that is well is left alone by %s', async (version) => {
    const { cluster, raw } = await start({ version });
    const store = open(cluster.urls, { requestTimeoutMs: 1_500, progressMs: 50 });
    const watcher = await watch(store);
    const { requests } = store.metrics!() as { requests: number };
    // Many times the request's time passes.
    const other = open(cluster.urls, { prefix: '/elsewhere' });
    await raw.put('/elsewhere/config', CONFIG);
    const endMs = performance.now() + 3_000;
    while (performance.now() < endMs) await other.release(await acquire(other, 2));
    await lease(raw, A, '192.0.2.5');
    await watcher.until(() => watcher.leases.has(A));
    expect(store.metrics!()).toMatchObject({ reconnects: 0, requests });
  });

  it('a write whose answer is lost is neither repeated blindly nor forgotten', async () => {
    const { cluster, raw } = await start();
    const proxy = keep(await TcpProxy.open(cluster.url(0)));
    const store = open([proxy.url], { requestTimeoutMs: 1_000 });
    await store.network();
    let lost = 0;
    proxy.onRequest = (data) => {
      // The value of the lease goes by: etcd gets it, and its answer nobody.
      if (lost > 0 || !data.includes('"PublicIP"')) return;
      lost++;
      proxy.goDeaf();
      setTimeout(() => proxy.heal(), 1_200);
    };
    const mine = await acquire(store, 1);
    expect(lost).toBe(1);
    const stored = await raw.list(`${PREFIX}/subnets`);
    expect(stored.map(({ key }) => key.toString())).toEqual([`${PREFIX}/subnets/${leaseKey(mine)}`]);
    expect(stored[0]!.lease).not.toBe('0');
    lost = 0;
    const renewed = await store.renew(mine);
    expect(lost).toBe(1);
    expect(renewed.expiresAt).toBeDefined();
    const { left, keys } = await raw.timeToLive((await raw.list(`${PREFIX}/subnets`))[0]!.lease);
    expect(left).toBeGreaterThan(86_000);
    expect(keys).toHaveLength(1);
  });

  it('a cluster that comes back empty does not take the network down', async () => {
    const { cluster, raw } = await start();
    const clock = new ManualClock();
    await lease(raw, A, '192.0.2.5');
    await lease(raw, B, '192.0.2.6');
    const store = open(cluster.urls, { clock });
    const mine = await acquire(store, 1);
    const watcher = await watch(store);
    await cluster.kill(0);
    await cluster.restart(0, { wipe: true });
    await raw.put(`${PREFIX}/config`, CONFIG);
    await until(() => notices.some(({ reason }) => /new cluster, restored/.test(reason)), { what: 'the notice' });
    await watcher.until(() => watcher.log.includes(`own lost ${leaseKey(mine)}`));
    expect(watcher.keys).toEqual([A, B]);
    const again = await store.acquire({ attributes: mine.attributes, owner: 'host1', previous: mine, isServing: true });
    expect(leaseKey(again)).toBe(leaseKey(mine));
    // A writes its lease again in time, B is gone for good.
    await lease(raw, A, '192.0.2.55');
    await watcher.until(() => ipOf(watcher, A) === '192.0.2.55');
    expect(watcher.keys).toEqual([A, B]);
    await clock.advance(61_000);
    await watcher.until(() => !watcher.leases.has(B));
    expect(watcher.keys).toEqual([A]);
    expect(watcher.log.filter((line) => line.startsWith('removed'))).toEqual([`removed ${B}`]);
  });

  it('a full etcd refuses writes with advice, and is used again when it has room', async () => {
    const { cluster, raw } = await start({ args: ['--quota-backend-bytes', String(4 * 1024 * 1024)] });
    const store = open(cluster.urls);
    const mine = await acquire(store, 1);
    const watcher = await watch(store);
    const filled = async (): Promise<unknown> => {
      for (let i = 0; i < 100; i++) await raw.put(`/filler/${i % 2}`, 'x'.repeat(256 * 1024));
      return expect.unreachable('etcd is never full');
    };
    await expect(filled()).rejects.toThrow(/space exceeded/);
    await expect(store.renew(mine)).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      message: expect.stringMatching(/space exceeded.*compact and defragment/),
    });
    expect(watcher.log).toEqual([]);
    const status = await cluster.ctl(['endpoint', 'status', '-w', 'json']);
    await cluster.ctl(['compaction', /"revision":(\d+)/.exec(status)![1]!]);
    await cluster.ctl(['defrag']);
    await cluster.ctl(['alarm', 'disarm']);
    expect((await store.renew(mine)).expiresAt).toBeDefined();
    await lease(raw, A, '192.0.2.5');
    await watcher.until(() => watcher.leases.has(A));
  });

  describe('on three nodes', () => {
    it('the end of any member costs nothing, and the loss of the leader only time', async () => {
      const { cluster, raw } = await start({ members: 3 });
      await lease(raw, A, '192.0.2.5');
      const stores = [0, 0.4, 0.8].map((share) => open(cluster.urls, { random: () => share, progressMs: 500 }));
      const leases = await Promise.all(stores.map((store, i) => acquire(store, i + 1)));
      const watchers = await Promise.all(stores.map(watch));
      for (let round = 0; round < 2; round++) {
        const leader = await cluster.leader();
        await cluster.kill(leader);
        // Whoever sat on that member goes on at another, as soon as there is a leader again.
        await until(() => Promise.all(leases.map((each, i) => stores[i]!.renew(each))).catch(() => false), {
          what: 'all renewals',
          timeoutMs: 20_000,
        });
        await lease(raw, B, `198.51.100.${round}`);
        for (const watcher of watchers) await watcher.until(() => ipOf(watcher, B) === `198.51.100.${round}`);
        await cluster.restart(leader);
      }
      for (const watcher of watchers) {
        expect(watcher.log.filter((line) => !line.startsWith('added'))).toEqual([]);
        expect(watcher.changes.filter(({ kind }) => kind === 'snapshot')).toHaveLength(1);
      }
      expect(stores.map((store) => store.metrics!()['resyncs'])).toEqual([0, 0, 0]);
    });

    it('without a quorum nothing is withdrawn, the outage is told once, and its end', async () => {
      const { cluster, raw } = await start({ members: 3 });
      await lease(raw, A, '192.0.2.5');
      const store = open([cluster.url(0)], { progressMs: 500 });
      const mine = await acquire(store, 1);
      const watcher = await watch(store);
      cluster.pause(1);
      cluster.pause(2);
      // The member itself answers on: only the lack of a leader can end the watch.
      await until(() => kinds().includes('down'), { what: 'the outage to be told', timeoutMs: 30_000 });
      await expect(store.renew(mine)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
      expect(watcher.log).toEqual([]);
      cluster.resume(1);
      cluster.resume(2);
      await until(() => kinds().includes('up'), { what: 'the end of the outage', timeoutMs: 30_000 });
      await lease(raw, B, '192.0.2.6');
      await watcher.until(() => watcher.leases.has(B));
      expect(kinds()).toEqual(['down', 'up']);
      expect(watcher.log).toEqual([`added ${B}`]);
      expect((await store.renew(mine)).expiresAt).toBeDefined();
    });
  });
});
