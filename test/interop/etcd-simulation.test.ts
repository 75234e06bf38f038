/**
 * Hosts on a real three-node etcd, faults in seeded order: no lease lost, none doubled, no route withdrawn that was
 * still true, everybody right again in the end.
 *
 * Runs for about 45 s; `PODWIRE_ETCD_FAULTS=1000` runs that many faults however long it takes, `PODWIRE_SEED` repeats
 * the order (what etcd makes of it also depends on time).
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { systemClock, type Clock } from '../../src/control/clock.js';
import { decodeLease } from '../../src/control/lease-codec.js';
import { LeaseKeeper } from '../../src/control/lease-keeper.js';
import { leaseKey } from '../../src/control/lease-key.js';
import { overlap, type Lease, type LeaseStore } from '../../src/control/lease.js';
import { etcdStore } from '../../src/control/stores/etcd.js';
import type { WatchResponse } from '../../src/control/stores/etcd/protocol.js';
import { PodwireError } from '../../src/errors.js';
import { EtcdCluster } from '../support/etcd.js';
import { RawEtcd } from '../support/etcd-client.js';
import { attributesOf } from '../support/leases.js';
import { until } from '../support/process.js';
import { generator, pick, seed } from '../support/random.js';
import { missing } from '../support/requires.js';
import { TcpProxy } from '../support/tcp-proxy.js';

const HOSTS = 6;
const PREFIX = '/coreos.com/network';
const CONFIG = '{"Network":"10.42.0.0/24","SubnetLen":27}';
const WANTED = Number(process.env['PODWIRE_ETCD_FAULTS'] ?? 0);
const TIME_MS = 45_000;
/** Renewed every few seconds; longer than any fault lasts. */
const TTL_MS = 60_000;

interface Host {
  readonly name: string;
  readonly proxies: readonly TcpProxy[];
  clockOffsetMs: number;
  keeper: LeaseKeeper;
  store: LeaseStore;
  readonly withdrawals: Map<string, number>;
}

describe.skipIf(missing({ counterparts: ['etcd-3.6', 'etcdctl'] }))(`etcd simulation (seed ${seed})`, () => {
  const random = generator(seed);
  const hosts: Host[] = [];
  const deletions = new Map<string, number>();
  const moved: string[] = [];
  const done = new Map<string, number>();
  let cluster: EtcdCluster;
  let raw: RawEtcd;
  /** The last changes in etcd, for the message of a failure. */
  const history: string[] = [];
  /** How to end what is wrong at present, the cluster first. */
  const repairs: (() => Promise<void> | void)[] = [];
  let isOver = false;
  let isClusterHurt = false;
  let hasQuorum = true;

  beforeAll(async () => {
    cluster = await EtcdCluster.start({ members: 3 });
    raw = new RawEtcd({ endpoints: cluster.urls });
    await raw.put(`${PREFIX}/config`, CONFIG);
    void record();
  });
  afterAll(async () => {
    isOver = true;
    for (const { keeper, store, proxies } of hosts) {
      await keeper.close();
      await store[Symbol.asyncDispose]();
      for (const proxy of proxies) await proxy[Symbol.asyncDispose]();
    }
    raw.close();
    await cluster[Symbol.asyncDispose]();
  });

  const run = (host: Pick<Host, 'name' | 'proxies' | 'withdrawals'>, index: number, previous?: Lease) => {
    const clock: Clock = { ...systemClock, now: () => Date.now() + (hosts[index]?.clockOffsetMs ?? 0) };
    const endpoints = host.proxies.map(({ url }) => url);
    const store = etcdStore({ endpoints, clock, requestTimeoutMs: 1_500, progressMs: 400, random });
    const keeper = new LeaseKeeper({
      store,
      attributes: attributesOf(`192.0.2.${index + 1}`),
      owner: host.name,
      ...(previous && { previous }),
      ttlMs: TTL_MS,
      renewMarginMs: TTL_MS - 2_000,
      retry: { minMs: 50, maxMs: 500 },
      clock,
      random,
      listener: {
        removed: ({ lease }) => {
          const key = leaseKey(lease);
          host.withdrawals.set(key, (host.withdrawals.get(key) ?? 0) + 1);
        },
        ownChanged: (lease, before) => moved.push(`${host.name}: ${leaseKey(before)} to ${leaseKey(lease)}`),
      },
    });
    keeper.start().catch((error: unknown) => {
      if (!(error instanceof PodwireError && error.code === 'ABORTED')) throw error;
    });
    return { keeper, store };
  };

  /** True at every moment, whatever is broken. */
  const check = (when: string): void => {
    const held = hosts.flatMap(({ keeper, name }) => (keeper.lease ? [{ name, lease: keeper.lease }] : []));
    for (const { name, lease } of held) {
      const doubled = held.filter((other) => overlap(other.lease, lease)).map((other) => other.name);
      expect(doubled, `${when}: ${leaseKey(lease)} is held twice`).toEqual([name]);
    }
    for (const { name, withdrawals } of hosts) {
      for (const [key, count] of withdrawals) {
        const why = (): string => history.filter((line) => line.includes(key)).join('\n');
        if (count > (deletions.get(key) ?? 0))
          expect.unreachable(`${when}: ${name} withdrew ${key} wrongly:\n${why()}`);
      }
    }
    expect(moved, when).toEqual([]);
  };

  /** Notes every change, through all endpoints' troubles. */
  const record = async (): Promise<void> => {
    for (let next = 1; ;) {
      if (isOver) return;
      await new Promise<void>((resolve) => {
        const end = (): void => resolve();
        const onMessage = (message: WatchResponse): void => {
          if (message.compact_revision !== '0') next = Number(message.compact_revision);
          if (message.canceled) resolve();
          for (const { type, kv } of message.events) {
            next = Number(kv.mod_revision) + 1;
            history.push(`${kv.mod_revision} ${type} ${kv.key.toString()} lease ${kv.lease} ${kv.value.toString()}`);
          }
          history.splice(0, history.length - 60);
        };
        raw.transport.openWatch(onMessage, end).then((stream) => {
          const [key, range_end] = [Buffer.from(`${PREFIX}/subnets`), Buffer.from(`${PREFIX}/subnett`)];
          stream.send({ create_request: { key, range_end, start_revision: next } });
        }, end);
      });
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  };

  const pathOf = (host: Host): string => `${PREFIX}/subnets/${leaseKey(host.keeper.lease!)}`;
  const ofHosts = (): Host => pick(random, hosts);
  /** Access behind the hosts' backs must itself have a quorum, and wait for its leader. */
  const surely = async <T>(call: () => Promise<T>): Promise<T> => {
    if (!hasQuorum) for (const repair of repairs.splice(0)) await repair();
    const { value } = await until(
      () =>
        call().then(
          (value) => ({ value }),
          () => undefined,
        ),
      {
        what: 'etcd to answer the test',
        timeoutMs: 30_000,
      },
    );
    return value;
  };

  const hurt = async (index: number, isKilled: boolean): Promise<void> => {
    if (isClusterHurt) return;
    isClusterHurt = true;
    if (isKilled) await cluster.kill(index);
    else cluster.pause(index);
    repairs.unshift(async () => {
      if (isKilled) await cluster.restart(index);
      else cluster.resume(index);
      isClusterHurt = false;
    });
  };

  const FAULTS: Readonly<Record<string, () => Promise<void> | void>> = {
    kill: () => hurt(Math.floor(random() * 3), true),
    pause: () => hurt(Math.floor(random() * 3), false),
    leader: async () => {
      if (!isClusterHurt) await hurt(await cluster.leader(), true);
    },
    quorum: () => {
      if (isClusterHurt) return;
      isClusterHurt = true;
      hasQuorum = false;
      const spared = Math.floor(random() * 3);
      const others = [0, 1, 2].filter((index) => index !== spared);
      for (const index of others) cluster.pause(index);
      repairs.unshift(() => {
        for (const index of others) cluster.resume(index);
        isClusterHurt = false;
        hasQuorum = true;
      });
    },
    cut: () => {
      const { proxies } = ofHosts();
      for (const proxy of proxies) proxy.cut();
      repairs.push(() => proxies.forEach((proxy) => proxy.heal()));
    },
    deaf: () => {
      const proxy = pick(random, ofHosts().proxies);
      proxy.goDeaf();
      repairs.push(() => proxy.heal());
    },
    partition: () => {
      const { proxies } = ofHosts();
      for (const proxy of proxies) proxy.goDeaf();
      repairs.push(() => proxies.forEach((proxy) => proxy.heal()));
    },
    compaction: async () => {
      const { header } = await surely(() => raw.transport.read('range', { key: Buffer.from('x') }));
      const member = [0, 1, 2].find((index) => cluster.isRunning(index))!;
      // A paused member, or a revision that somebody else compacted, is no matter.
      await cluster.ctl(['compaction', header!.revision, '--command-timeout=2s'], member).catch(() => undefined);
    },
    junk: async () => {
      const key = pick(random, [`${PREFIX}/subnets/junk`, `${PREFIX}/subnets`, `${PREFIX}/subnets-old/10.42.0.32-27`]);
      await surely(() => raw.put(key, pick(random, ['', '{', '{"PublicIP":"192.0.2.99"}'])));
      repairs.push(() => surely(() => raw.delete(key)));
    },
    corrupt: async () => {
      const path = pathOf(ofHosts());
      const kv = await surely(() => raw.get(path));
      if (!kv) return;
      await surely(() => raw.putIfSame(kv, kv.value.toString().slice(0, Math.floor(random() * 40))));
      repairs.push(() =>
        surely(async () => {
          const now = await raw.get(path);
          if (now && now.value.length < 40) await raw.putIfSame(now, kv.value.toString());
        }),
      );
    },
    delete: async () => {
      const host = ofHosts();
      const key = leaseKey(host.keeper.lease!);
      const kv = await surely(() => raw.get(pathOf(host)));
      if (!kv) return;
      deletions.set(key, (deletions.get(key) ?? 0) + 1);
      // Until it is certain, but only this one: the host has it back within milliseconds.
      await surely(() => raw.deleteIfSame(kv));
    },
    crash: async () => {
      // Restarted, it could not tell that an unreadable value is its own.
      for (const repair of repairs.splice(0)) await repair();
      const host = ofHosts();
      const index = hosts.indexOf(host);
      const { lease } = host.keeper;
      await host.keeper.close();
      await host.store[Symbol.asyncDispose]();
      Object.assign(host, run(host, index, lease));
      await until(() => host.keeper.lease !== undefined, { what: `${host.name} to start again`, timeoutMs: 30_000 });
    },
    clock: () => {
      ofHosts().clockOffsetMs = (random() - 0.5) * 7_200_000;
    },
  };

  it('holds', { timeout: WANTED > 0 ? 60_000 + WANTED * 5_000 : 180_000 }, async () => {
    for (let i = 0; i < HOSTS; i++) {
      const proxies = await Promise.all(cluster.urls.map((url) => TcpProxy.open(url)));
      const part = { name: `host${i}`, proxies, clockOffsetMs: 0, withdrawals: new Map<string, number>() };
      hosts.push({ ...part, ...run(part, i) });
    }
    await until(() => hosts.every(({ keeper }) => keeper.lease && keeper.routes.size === HOSTS - 1), {
      what: 'all hosts to know each other',
      timeoutMs: 20_000,
    });
    const first = hosts.map(({ keeper }) => leaseKey(keeper.lease!));
    const endMs = performance.now() + TIME_MS;
    let faults = 0;
    for (; WANTED > 0 ? faults < WANTED : performance.now() < endMs; faults++) {
      const fault = pick(random, Object.keys(FAULTS));
      done.set(fault, (done.get(fault) ?? 0) + 1);
      await FAULTS[fault]!();
      const restMs = random() * (isClusterHurt ? 1_200 : 300);
      const untilMs = performance.now() + restMs;
      await until(() => performance.now() >= untilMs, { what: 'the fault to have its time', intervalMs: 20 });
      check(`fault ${faults}, ${fault}`);
      if (random() < 0.5) for (const repair of repairs.splice(0)) await repair();
    }
    for (const repair of repairs.splice(0)) await repair();

    const settled = async (): Promise<boolean> => {
      check('in the end');
      const stored = await raw.list(`${PREFIX}/subnets/`);
      const keys = stored.map(({ key }) => key.toString().slice(`${PREFIX}/subnets/`.length)).toSorted();
      const now = hosts.map(({ keeper }) => leaseKey(keeper.lease!));
      return (
        keys.join() === first.toSorted().join() &&
        now.join() === first.join() &&
        stored.every(
          ({ value }) => value.toString().endsWith('}') && decodeLease(value.toString()).owner !== undefined,
        ) &&
        hosts.every(({ keeper }, i) => {
          const peers = [...keeper.routes.values()].map(({ lease }) => leaseKey(lease)).toSorted();
          return (
            keeper.store.ok &&
            peers.join() ===
              first
                .filter((key) => key !== first[i])
                .toSorted()
                .join()
          );
        })
      );
    };
    await until(
      () =>
        settled().catch((error: unknown) =>
          error instanceof Error && error.name === 'AssertionError' ? Promise.reject(error) : false,
        ),
      {
        what: `everybody to be right again; ${hosts.map(({ name, keeper }) => `${name} ${keeper.store.lastError ?? 'ok'}`).join('; ')}`,
        timeoutMs: 60_000,
        intervalMs: 100,
      },
    );
    const counts = [...done].map(([name, count]) => `${name} ${count}`).join(', ');
    const metrics = hosts.map(({ store }) => store.metrics!());
    const sum = (name: string): number => metrics.reduce((total, each) => total + (each[name] ?? 0), 0);
    process.stderr.write(
      `etcd simulation, seed ${seed}: ${faults} faults (${counts}); ` +
        `${sum('reconnects')} watches begun again, ${sum('resyncs')} lists read again, ` +
        `${sum('endpointSwitches')} changes of endpoint, ${sum('skippedEvents')} entries skipped\n`,
    );
  });
});
