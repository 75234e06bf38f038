import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cluster, CLUSTER_NEEDS, type Daemon } from '../support/clusters.js';
import {
  complaints,
  exchange,
  expectLeases,
  longestGapMs,
  losses,
  statusOf,
  toldToPeers,
} from '../support/clusters-checks.js';
import { cli, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const V4 = { Network: '10.42.0.0/16' };
const DUAL = { ...V4, EnableIPv6: true, IPv6Network: 'fd42::/48' };

/**
 * - `lossless`: where the kernel forwards without the daemon, so that nothing is lost: when flanneld or podwire
 *   restarts, and when one takes the other's place.
 * - `podwireMtu`: where FLANNEL_MTU is not the one that flanneld writes. With IPv6 the tunnel costs 70 bytes; flanneld
 *   still says 1450, and its own device then refuses what is longer than 1430.
 */
interface Backend {
  readonly name: string;
  readonly config: object;
  readonly lossless: { readonly flanneld: boolean; readonly podwire: boolean; readonly exchange: boolean };
  readonly podwireMtu?: number;
}

const KERNEL = { flanneld: true, podwire: true, exchange: true };

/** flanneld does not know the `Mode` of vxlan. Without one, podwire adopts a device and carries the packets itself where there is none. */
const BACKENDS: readonly Backend[] = [
  {
    name: 'udp',
    config: { ...V4, Backend: { Type: 'udp' } },
    lossless: { flanneld: false, podwire: false, exchange: false },
  },
  {
    name: 'vxlan',
    config: { ...V4, Backend: { Type: 'vxlan' } },
    lossless: { flanneld: true, podwire: false, exchange: true },
  },
  {
    name: 'vxlan, dual stack',
    config: { ...DUAL, Backend: { Type: 'vxlan' } },
    lossless: { flanneld: true, podwire: false, exchange: true },
    podwireMtu: 1430,
  },
  {
    name: 'vxlan in user space',
    config: { ...V4, Backend: { Type: 'vxlan', Mode: 'user', VNI: 4097, Port: 4789 } },
    lossless: { flanneld: true, podwire: false, exchange: false },
  },
  { name: 'vxlan in the kernel', config: { ...V4, Backend: { Type: 'vxlan', Mode: 'kernel' } }, lossless: KERNEL },
  { name: 'host-gw', config: { ...V4, Backend: { Type: 'host-gw' } }, lossless: KERNEL },
  { name: 'host-gw, dual stack', config: { ...DUAL, Backend: { Type: 'host-gw' } }, lossless: KERNEL },
];

/** Only for a look at the tests themselves: PODWIRE_INTEROP_OURS=flanneld runs them with the original everywhere. */
const OURS = (process.env['PODWIRE_INTEROP_OURS'] ?? 'podwire') as Daemon;

const lacking = missing(CLUSTER_NEEDS);

afterAll(() => Cluster.disposeAll());

describe.skipIf(lacking).each<Backend>(BACKENDS)('$name, one flanneld and two podwire hosts', (backend) => {
  const { config, lossless, podwireMtu } = backend;
  let cluster: Cluster;

  beforeAll(async () => {
    cluster = await Cluster.create(3, config);
  });

  afterAll(() => cluster[Symbol.asyncDispose]());

  test('flanneld is there first; everybody reaches everybody', async () => {
    await cluster.host(1).join('flanneld');
    await Promise.all([cluster.host(2).join(OURS), cluster.host(3).join(OURS)]);
    await cluster.connected();
    await cluster.reachable();
    await expectLeases(cluster);
    // flanneld 0.28.4 has no /readyz yet.
    const paths = cluster.hosts.map(({ daemon }) => (daemon?.kind === 'podwire' ? '/readyz' : '/healthz'));
    const answers = await Promise.all(cluster.hosts.map((host, index) => host.health(paths[index] ?? '')));
    expect(answers).toEqual(
      paths.map((path) => (path === '/readyz' ? '200 flanneld is ready' : '200 flanneld is running')),
    );
  });

  test.each([
    [1, 'SIGTERM'],
    [1, 'SIGKILL'],
    [2, 'SIGTERM'],
    [2, 'SIGKILL'],
    [3, 'SIGKILL'],
  ] as const)('host %i restarts after %s: same subnet, and the others notice nothing', async (number, signal) => {
    const host = cluster.host(number);
    const before = [await host.subnetEnv(), await toldToPeers(cluster, host)];
    const counts = await exchange(cluster, host, signal);
    expect([await host.subnetEnv(), await toldToPeers(cluster, host)]).toEqual(before);
    if (lossless[host.daemon?.kind ?? OURS]) expect(losses(counts)).toEqual([]);
    expect(longestGapMs(counts, host)).toBeLessThan(5000);
  });

  test('flanneld -> podwire -> flanneld on host 1, with the same arguments', async () => {
    const host = cluster.host(1);
    const original = await host.subnetEnv();
    const told = await toldToPeers(cluster, host);
    const ours = podwireMtu === undefined ? original : original.replace(/MTU=\d+/, `MTU=${String(podwireMtu)}`);
    for (const kind of [OURS, 'flanneld'] as const) {
      const counts = await exchange(cluster, host, 'SIGTERM', kind);
      expect(await host.subnetEnv()).toBe(kind === 'podwire' ? ours : original);
      if (lossless.exchange) expect(losses(counts)).toEqual([]);
      // flanneld has a new VtepMAC when its device is gone.
      if (lossless.exchange || kind === 'podwire') expect(await toldToPeers(cluster, host)).toBe(told);
      expect(longestGapMs(counts, host)).toBeLessThan(5000);
      await cluster.reachable(undefined, 500_000);
      await expectLeases(cluster);
      // --ip-masq: what leaves the cluster has the host's address; 10.77.0.250 has no way back to a pod.
      // flanneld's chains are there when it runs, and only then: nobody masquerades twice.
      expect((await host.ns.ok('iptables-save', [])).includes('-j FLANNEL-')).toBe(kind === 'flanneld');
      for (const { ns } of cluster.pods()) await ns.ok('ping', ['-c', '1', '-W', '2', '-n', '10.77.0.250']);
    }
  });

  test('beside a running flanneld podwire does not start, and cleans up only what is its own', async () => {
    const host = cluster.host(1);
    const leases = await cluster.leases();
    const counts = await cluster.pinging(async () => {
      const env = { ...process.env, PODWIRE_STATE_DIR: `${host.run}/state` };
      const second = await host.ns.run(process.execPath, [cli, 'agent', ...host.unit.arguments], { env });
      expect(second.code).toBe(1);
      expect(second.stderr).toMatch(/flanneld \(pid \d+\) runs here with the same subnet file .*: stop it first/);
      // From the test before, where podwire had its place.
      const cleanup = await host.ns.ok(process.execPath, [cli, 'cleanup', `--subnet-file=${host.subnetFile}`]);
      expect(cleanup).toMatch(
        /^flanneld \(pid \d+\) runs here .* left alone\n(removed nft table ip6? podwire-\S+\n)+$/,
      );
    });
    expect(losses(counts)).toEqual([]);
    expect(await cluster.leases()).toEqual(leases);
    expect(await host.ns.ok('nft', ['list', 'tables'])).not.toContain('podwire');
    expect(await host.ns.ok('iptables-save', [])).toContain('-j FLANNEL-');
    for (const { ns } of cluster.pods()) await ns.ok('ping', ['-c', '1', '-W', '2', '-n', '10.77.0.250']);
  });

  test('a host leaves and comes back while the others talk', async () => {
    const [stays, talks, leaves] = [cluster.host(1), cluster.host(2), cluster.host(3)];
    const subnet = await leaves.subnet();
    const key = (await cluster.holders())[leaves.underlay] ?? '';
    const counts = await cluster.pinging(async () => {
      await leaves.stop();
      await cluster.etcd.removeSubnet(key);
      if (OURS === 'podwire') {
        await until(async () => (await statusOf(talks)).leases.every((lease) => lease.publicIp !== leaves.underlay), {
          what: 'the lease to be withdrawn',
        });
      }
      await leaves.join(OURS);
      await cluster.connected();
    });
    expect(losses(counts, [leaves])).toEqual([]);
    expect(await leaves.subnet()).toBe(subnet);
    for (const host of [stays, talks, leaves]) expect(complaints(host)).toEqual([]);
  });
});

const IN_BOTH_ORDERS = ['udp', 'vxlan', 'vxlan, dual stack', 'host-gw'];
const otherOrder = BACKENDS.filter(({ name }) => IN_BOTH_ORDERS.includes(name));

describe.skipIf(lacking).each<Backend>(otherOrder)('$name, the other order', ({ config }) => {
  test('podwire hosts are there first; flanneld joins and everybody reaches everybody', async () => {
    await using cluster = await Cluster.create(3, config);
    await Promise.all([cluster.host(2).join(OURS), cluster.host(3).join(OURS)]);
    await cluster.connected([cluster.host(2), cluster.host(3)]);
    await cluster.host(1).join('flanneld');
    await cluster.connected();
    await cluster.reachable();
    await expectLeases(cluster);
    for (const host of cluster.hosts) expect(complaints(host)).toEqual([]);
  });
});
