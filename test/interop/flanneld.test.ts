import { mkdir, rm, writeFile } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Cluster, CLUSTER_NEEDS } from '../support/clusters.js';
import { expectPodwireAgrees, type FlanneldBytes, RECORDED } from '../support/flanneld-bytes.js';
import { root } from '../support/process.js';
import { missing } from '../support/requires.js';

const lacking = missing(CLUSTER_NEEDS);

afterAll(() => Cluster.disposeAll());

/** The bed that the mixed clusters are tested in, with the original alone: what it shows there is flanneld's. */
describe.skipIf(lacking)('a cluster of flanneld alone', () => {
  test.each(['vxlan', 'udp'])('%s: pods reach each other, a restart keeps the subnet', async (type) => {
    await using cluster = await Cluster.create(2, { Network: '10.42.0.0/16', Backend: { Type: type } });
    for (const host of cluster.hosts) await host.join('flanneld');
    await cluster.connected();
    await cluster.reachable();
    const before = await cluster.holders();
    expect(Object.keys(before).sort()).toEqual(cluster.hosts.map(({ underlay }) => underlay));
    const counts = await cluster.pinging(async () => {
      await cluster.host(2).stop();
      await cluster.host(2).join('flanneld');
      await cluster.connected();
    });
    expect(await cluster.holders()).toEqual(before);
    for (const { sent, lost } of Object.values(counts)) {
      expect(sent).toBeGreaterThan(10);
      // The kernel keeps the tunnel of vxlan; udp's goes with the process, and the counter must notice.
      if (type === 'vxlan') expect(lost).toBe(0);
      else expect(lost).toBeGreaterThan(0);
    }
  });
});

describe.skipIf(lacking)('what flanneld writes, podwire writes', () => {
  let cluster: Cluster;
  const recorded: FlanneldBytes[] = [];

  beforeAll(async () => {
    cluster = await Cluster.create(1);
  });

  // PODWIRE_WRITE_VECTORS=1 keeps the recordings for the unit tests.
  afterAll(async () => {
    await cluster[Symbol.asyncDispose]();
    if (process.env['PODWIRE_WRITE_VECTORS'] && recorded.length === Object.keys(RECORDED).length) {
      await writeFile(`${root}/test/vectors/flanneld.json`, `${JSON.stringify(recorded, null, 2)}\n`);
    }
  });

  test.each(Object.entries(RECORDED))('%s', async (name, config) => {
    const host = cluster.host(1);
    await cluster.etcd.ctl('del', '--prefix', '/');
    await rm(host.run, { recursive: true });
    await mkdir(host.run);
    await cluster.etcd.setConfig(config);
    host.start('flanneld');
    await host.ready();
    const [lease, ...others] = await cluster.leases();
    const subnetEnv = await host.subnetEnv();
    expect((await host.stop()).code).toBe(0);
    expect(others).toEqual([]);
    const bytes = {
      name,
      config: JSON.stringify(config),
      key: lease?.name ?? '',
      value: lease?.value ?? '',
      subnetEnv,
    };
    recorded.push(bytes);
    expectPodwireAgrees(bytes);
  });
});
