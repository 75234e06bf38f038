// @ts-check
/** flannel's own udp backend (its C proxy): two flanneld processes and an etcd on host 1. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Daemon, run, waitFor } from '../lib/process.mjs';
import { findProgram, missingProgram, startingDaemons, stopAll } from './contender.mjs';
import { subnetFromEnvironmentFile } from './podwire.mjs';

const KEY = '/coreos.com/network/config';
const CONFIG = JSON.stringify({ Network: '10.77.0.0/16', Backend: { Type: 'udp' } });
/** Run inside the namespace: etcd's JSON gateway wants base64. Exits non-zero until etcd answers. */
const PUT = `fetch(process.argv[1] + '/v3/kv/put', { method: 'POST', body: JSON.stringify({ key: btoa(process.argv[2]), value: btoa(process.argv[3]) }) })
  .then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1));`;

/** @type {import('./contender.mjs').Contender} */
export const flanneld = {
  name: 'flanneld',
  about: "flannel's udp backend, leases from etcd",
  measures: ['throughput', 'pps', 'latency'],
  available: async () => {
    const program = findProgram('flanneld');
    if (program === undefined) return missingProgram('flanneld');
    if (findProgram('etcd') === undefined) return missingProgram('etcd (flanneld needs it)');
    const { stdout, stderr } = await run([program, '--version'], { allowFailure: true });
    return { version: `${stdout}${stderr}`.trim().split('\n', 1)[0] ?? '' };
  },
  start: (topology, { workDir, signal }) =>
    startingDaemons(async (daemons) => {
      const [first] = topology.hosts;
      const endpoint = `http://${first.address}:2379`;
      const etcdOptions = ['--data-dir', join(workDir, 'etcd'), '--log-level', 'error'];
      etcdOptions.push('--listen-client-urls', endpoint, '--advertise-client-urls', endpoint);
      etcdOptions.push('--listen-peer-urls', `http://${first.address}:2380`);
      const etcd = new Daemon('etcd', [findProgram('etcd') ?? 'etcd', ...etcdOptions], {
        namespace: first.netns,
        logFile: join(workDir, 'etcd.log'),
      });
      daemons.push(etcd);
      const put = [process.execPath, '-e', PUT, endpoint, KEY, CONFIG];
      await waitFor(
        'etcd to take the network config',
        async () => (await run(put, { namespace: first.netns, allowFailure: true })).code === 0,
        { signal, alive: [etcd], timeoutMs: 20_000 },
      );
      const files = topology.hosts.map((host, index) => {
        const directory = join(workDir, `host${index + 1}`);
        mkdirSync(directory);
        const subnetFile = join(directory, 'subnet.env');
        const argv = [
          findProgram('flanneld') ?? 'flanneld',
          `-etcd-endpoints=${endpoint}`,
          '-etcd-prefix=/coreos.com/network',
        ];
        argv.push(
          `-iface=${host.device}`,
          `-public-ip=${host.address}`,
          `-subnet-file=${subnetFile}`,
          '-ip-masq=false',
        );
        daemons.push(
          new Daemon(`flanneld on ${host.netns}`, argv, {
            namespace: host.netns,
            logFile: join(directory, 'flanneld.log'),
          }),
        );
        return subnetFile;
      });
      /** @param {string} file */
      const subnetOf = (file) =>
        waitFor(`flanneld's ${file}`, () => subnetFromEnvironmentFile(file), {
          signal,
          alive: daemons,
          timeoutMs: 20_000,
        });
      const subnets = /** @type {const} */ ([await subnetOf(files[0] ?? ''), await subnetOf(files[1] ?? '')]);
      const proxies = daemons.filter((daemon) => daemon !== etcd);
      return { daemons: proxies, subnets, stop: () => stopAll(daemons) };
    }),
};
