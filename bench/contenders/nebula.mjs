// @ts-check
/** nebula: an encrypting overlay in user space; the pods' subnets are its "unsafe routes". */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Daemon, run } from '../lib/process.mjs';
import { innerMtu } from '../lib/topology.mjs';
import { findProgram, missingProgram, startingDaemons, stopAll } from './contender.mjs';

const PORT = 4242;
/** @param {number} index of the host */
const overlayAddress = (index) => `10.78.0.${index + 1}`;

/** @type {import('./contender.mjs').Contender} */
export const nebula = {
  name: 'nebula',
  about: 'nebula, pod subnets as unsafe routes; encrypts',
  measures: ['throughput', 'pps', 'latency'],
  available: async () => {
    const program = findProgram('nebula');
    if (program === undefined) return missingProgram('nebula');
    if (findProgram('nebula-cert') === undefined) return missingProgram('nebula-cert');
    const { stdout } = await run([program, '-version'], { allowFailure: true });
    return { version: `nebula ${stdout.trim().split('\n', 1)[0]}` };
  },
  start: (topology, { workDir, signal }) =>
    startingDaemons(async (daemons) => {
      const certificates = [findProgram('nebula-cert') ?? 'nebula-cert'];
      const [caCertificate, caKey] = [join(workDir, 'ca.crt'), join(workDir, 'ca.key')];
      await run([...certificates, 'ca', '-name', 'bench', '-out-crt', caCertificate, '-out-key', caKey], { signal });
      for (const [index, host] of topology.hosts.entries()) {
        const peer = topology.hosts[1 - index] ?? host;
        const directory = join(workDir, `host${index + 1}`);
        mkdirSync(directory);
        const [certificate, key] = [join(directory, 'host.crt'), join(directory, 'host.key')];
        const sign = ['sign', '-ca-crt', caCertificate, '-ca-key', caKey, '-name', `host${index + 1}`];
        sign.push(
          '-ip',
          `${overlayAddress(index)}/24`,
          '-subnets',
          host.subnet,
          '-out-crt',
          certificate,
          '-out-key',
          key,
        );
        await run([...certificates, ...sign], { signal });
        // JSON is YAML.
        const config = {
          pki: { ca: caCertificate, cert: certificate, key },
          static_host_map: { [overlayAddress(1 - index)]: [`${peer.address}:${PORT}`] },
          lighthouse: { am_lighthouse: false, hosts: [] },
          listen: { host: host.address, port: PORT, batch: 64, read_buffer: 10485760, write_buffer: 10485760 },
          punchy: { punch: false },
          tun: {
            dev: 'nebula1',
            mtu: innerMtu,
            tx_queue: 500,
            unsafe_routes: [{ route: peer.subnet, via: overlayAddress(1 - index), mtu: innerMtu }],
          },
          firewall: {
            default_local_cidr_any: true,
            outbound: [{ port: 'any', proto: 'any', host: 'any' }],
            inbound: [{ port: 'any', proto: 'any', host: 'any' }],
          },
          logging: { level: 'warning' },
        };
        const configFile = join(directory, 'config.yml');
        writeFileSync(configFile, JSON.stringify(config));
        daemons.push(
          new Daemon(`nebula on ${host.netns}`, [findProgram('nebula') ?? 'nebula', '-config', configFile], {
            namespace: host.netns,
            logFile: join(directory, 'nebula.log'),
          }),
        );
      }
      return { daemons, stop: () => stopAll(daemons) };
    }),
};
