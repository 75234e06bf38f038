import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { Cluster, CLUSTER_NEEDS, type ClusterHost } from '../support/clusters.js';
import { complaints, expectLeases, longestGapMs, losses, statusOf } from '../support/clusters-checks.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

/** What happens to etcd, or is found in it, with flanneld on host 1 and podwire on hosts 2 and 3. */
describe.skipIf(missing(CLUSTER_NEEDS))('a mixed udp cluster and its etcd', () => {
  let cluster: Cluster;
  let original: ClusterHost;
  let second: ClusterHost;
  let third: ClusterHost;

  beforeAll(async () => {
    cluster = await Cluster.create(3, { Network: '10.42.0.0/16', Backend: { Type: 'udp' } });
    [original, second, third] = [cluster.host(1), cluster.host(2), cluster.host(3)];
    await original.join('flanneld');
    await second.join('podwire');
    await third.join('podwire');
  });

  afterAll(() => cluster[Symbol.asyncDispose]());

  beforeEach(() => cluster.connected());

  const restartOriginal = async (): Promise<void> => {
    await original.stop('SIGKILL');
    await original.join('flanneld');
    await cluster.connected();
  };

  test.each([
    ['a key that is no lease', 'junk', '{"PublicIP":"10.77.0.9","PublicIPv6":null}'],
    ['a key below a lease', '10.42.200.0-24/hb', 'alive'],
    ['an empty value', '10.42.200.0-24', ''],
    ['a value that is no JSON', '10.42.200.0-24', 'lost+found'],
    ['a value that is no object', '10.42.200.0-24', '[]'],
    ['an address that is none', '10.42.200.0-24', '{"PublicIP":"10.77.0.300"}'],
  ])('%s: podwire says so and goes on; flanneld needs its restart', async (_, key, value) => {
    const counts = await cluster.pinging(
      async () => {
        const before = second.log.length;
        await cluster.etcd.putSubnet(key, value);
        await until(() => second.log.slice(before).includes(key), { what: `podwire to name ${key}` });
        await cluster.etcd.removeSubnet(key);
        await cluster.etcd.putSubnet('10.42.201.0-24', '{"PublicIP":"10.77.0.201","PublicIPv6":null}');
        await until(async () => (await statusOf(second)).leases.some(({ publicIp }) => publicIp === '10.77.0.201'), {
          what: 'the next lease to be seen',
        });
        await cluster.etcd.removeSubnet('10.42.201.0-24');
      },
      { hosts: [second, third] },
    );
    expect(losses(counts)).toEqual([]);
    await restartOriginal();
  });

  test('a lease of the wrong family is refused with the reason, before and after a restart', async () => {
    const key = '10.42.202.0-24&fd42:0:0:9::-64';
    const refused = async (): Promise<string | undefined> => {
      const lease = (await statusOf(second)).leases.find(({ publicIp }) => publicIp === '10.77.0.202');
      return lease === undefined ? undefined : `${lease.state}: ${lease.reason ?? ''}`;
    };
    const counts = await cluster.pinging(async () => {
      await cluster.etcd.putSubnet(key, '{"PublicIP":"10.77.0.202","PublicIPv6":null}');
      expect(await until(refused, { what: 'the lease to be shown' })).toMatch(/^refused: .*IPv6/);
    });
    expect(losses(counts)).toEqual([]);
    await second.stop();
    await second.join('podwire');
    expect(await until(refused, { what: 'the lease to be shown again' })).toMatch(/^refused: .*IPv6/);
    await cluster.connected();
    await cluster.etcd.removeSubnet(key);
  });

  test('an own lease that somebody deletes comes back, the same one', async () => {
    const before = await cluster.holders();
    const counts = await cluster.pinging(async () => {
      await cluster.etcd.removeSubnet(before[second.underlay] ?? '');
      await until(async () => (await cluster.holders())[second.underlay], { what: 'the lease to be back' });
      await cluster.connected();
    });
    expect(await cluster.holders()).toEqual(before);
    await until(async () => (await statusOf(second)).lease.held, { what: 'the agent to hold it' });
    await expectLeases(cluster);
    expect(losses(counts, [second])).toEqual([]);
    expect(longestGapMs(counts, second)).toBeLessThan(2000);
  });

  test('etcd away for a while: nothing is lost, and a restart forwards without it', async () => {
    const before = await cluster.holders();
    const away = await cluster.pinging(async () => {
      await cluster.etcd.stop();
      for (const host of [second, third]) {
        await until(async () => !(await statusOf(host)).store.ok, {
          what: 'the outage to be noticed',
          timeoutMs: 20_000,
        });
      }
    });
    expect(losses(away)).toEqual([]);
    const restart = await cluster.pinging(async () => {
      await second.stop();
      await second.join('podwire');
      await cluster.connected();
    });
    expect(losses(restart, [second])).toEqual([]);
    expect(longestGapMs(restart, second)).toBeLessThan(5000);
    await cluster.reachable(undefined, 500_000);
    const back = await cluster.pinging(async () => {
      await cluster.etcd.start();
      for (const host of [second, third]) {
        await until(async () => (await statusOf(host)).store.ok, { what: 'etcd to be back', timeoutMs: 30_000 });
      }
    });
    expect(losses(back)).toEqual([]);
    expect(await cluster.holders()).toEqual(before);
  });

  test('a reservation is taken, stays a reservation, and flanneld routes to it', async () => {
    const old = (await cluster.holders())[third.underlay] ?? '';
    await third.stop();
    await cluster.etcd.removeSubnet(old);
    await cluster.etcd.putSubnet('10.42.77.0-24', `{"PublicIP":"${third.underlay}","PublicIPv6":null}`);
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      await third.join('podwire');
      expect(await third.subnet()).toBe('10.42.77.0');
      await cluster.connected();
      const own = (await cluster.leases()).filter(({ publicIp }) => publicIp === third.underlay);
      expect(own).toMatchObject([{ name: '10.42.77.0-24', leaseId: '0' }]);
      expect((await statusOf(third)).lease.expiresAt).toBeUndefined();
      await third.stop(signal);
    }
    await third.join('podwire');
    await cluster.connected();
  });

  test('after all that flanneld has nothing to complain about, and neither has podwire', () => {
    expect(complaints(original)).toEqual([]);
    expect(complaints(third)).toEqual([]);
  });
});
