import { test } from 'vitest';
import { Cluster } from '../support/clusters.js';
import { cli } from '../support/process.js';
test.each([['vxlan', 'flanneld'], ['vxlan', 'podwire'], ['udp', 'flanneld'], ['udp', 'podwire']] as const)('%s %s', async (Type, other) => {
  await using cluster = await Cluster.create(2, { Network: '10.42.0.0/16', Backend: { Type } });
  const [a, b] = [cluster.host(1), cluster.host(2)];
  await a.join(other); await b.join('podwire');
  await cluster.connected();
  const [pa, pb] = cluster.pods();
  const M = process.env.M ?? "1400"; await pb!.ns.ip("link", "set", "eth0", "mtu", M); await b.ns.ip("link","set","pod","mtu",M); await b.ns.ip("link","set","cni0","mtu",M);
  await using server = pa!.ns.spawn('iperf3', ['-s']);
  await pb!.ns.ok('sh', ['-c', 'nstat -n']); await b.ns.ok('sh', ['-c', 'nstat -n']); await a.ns.ok('sh', ['-c', 'nstat -n']);
  for (const dir of [[], ['-R']]) {
    const r = await pb!.ns.run('timeout', ['8', 'iperf3', '-c', pa!.address, '-t', '2', '-f', 'm', ...dir]);
    console.log(Type, other, dir, r.stdout.split('\n').filter((l) => /sender|receiver|error/.test(l)).join('\n'), r.stderr);
    console.log('b host', await b.ns.ok('sh', ['-c', 'nstat | grep -iE "frag|discard|err|csum|trunc" || true']), 'a host', await a.ns.ok('sh', ['-c', 'nstat | grep -iE "frag|discard|err|csum|trunc" || true']), 'pod b', await pb!.ns.ok('sh', ['-c', 'nstat | grep -iE "Retrans|csum|err|prune|frag" || true']));
  }
  console.log(await b.ns.ok('sh', ['-c', process.execPath + ' ' + cli + ' status --subnet-file ' + b.subnetFile]));
});
