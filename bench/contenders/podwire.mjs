// @ts-check
/**
 * podwire itself: one real `podwire agent` process per host, leases from a directory store.
 *
 *   podwire         as it comes
 *   podwire-nospin  never waits by spinning
 *   podwire-plain   every offload off, one call per packet, one worker: what a straightforward TUN program does
 *   podwire-BACKEND the same agents with another backend; they take part when they are named, and in the mode `backends`
 *   podwire-ipv6    the same agents in a network of IPv6 alone, inside and outside; likewise
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Daemon, run, waitFor } from '../lib/process.mjs';
import { searchPath, startingDaemons, stopAll } from './contender.mjs';

/** @typedef {import('./contender.mjs').Contender} Contender */

const CLI = fileURLToPath(new URL('../../dist/bundle/main.cjs', import.meta.url));
const PACKAGE = new URL('../../package.json', import.meta.url);
/** Of the network config, by family. */
const NETWORKS = {
  4: { Network: '10.77.0.0/16' },
  6: { EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fd77::/48', IPv6SubnetLen: 64 },
};
const OWN_SOCKETS = 'mkdir -p "$0" /var/run/wireguard && mount --bind "$0" /var/run/wireguard && exec "$@"';

/**
 * @param {string} name
 * @param {string} about
 * @param {Contender['measures']} measures
 * @param {readonly string[]} agentOptions
 * @param {readonly string[]} [nodeOptions]
 * @param {Readonly<Record<string, unknown>>} [backend] of the network config
 * @param {import('../lib/topology.mjs').Family} [family]
 * @returns {Contender}
 */
function podwireContender(
  name,
  about,
  measures,
  agentOptions,
  nodeOptions = [],
  backend = { Type: 'udp' },
  family = 4,
) {
  return {
    name,
    family,
    about: [about, agentOptions.join(' ')].filter(Boolean).join(': '),
    measures,
    available: async () =>
      existsSync(CLI)
        ? { version: await packageVersion() }
        : { missing: `${CLI} does not exist; build it: npm run build` },
    start: (topology, context) => startAgents(topology, context, agentOptions, nodeOptions, backend),
  };
}

/** Version of the package, and of the commit where git knows it. */
async function packageVersion() {
  const { version } = JSON.parse(readFileSync(PACKAGE, 'utf8'));
  const directory = fileURLToPath(new URL('.', PACKAGE));
  const git = await run(['git', '-C', directory, 'describe', '--always', '--dirty'], { allowFailure: true }).catch(
    () => undefined,
  );
  return git?.code === 0 ? `${version} (${git.stdout.trim()})` : version;
}

/**
 * @param {import('../lib/topology.mjs').Topology} topology
 * @param {import('./contender.mjs').StartContext} context
 * @param {readonly string[]} agentOptions
 * @param {readonly string[]} nodeOptions
 * @param {Readonly<Record<string, unknown>>} backend
 * @returns {Promise<import('./contender.mjs').Session>}
 */
function startAgents(topology, { workDir, signal }, agentOptions, nodeOptions, backend) {
  const store = join(workDir, 'store');
  mkdirSync(store);
  writeFileSync(join(store, 'config'), JSON.stringify({ ...NETWORKS[topology.family], Backend: backend }));
  return startingDaemons(async (daemons) => {
    const subnetFiles = topology.hosts.map((host, index) => {
      const directory = join(workDir, `host${index + 1}`);
      mkdirSync(directory);
      const subnetFile = join(directory, 'subnet.env');
      // wireguard-go and wg have a directory for sockets that is the same in all namespaces.
      const own = backend['Type'] === 'wireguard' ? ['sh', '-c', OWN_SOCKETS, join(directory, 'wireguard')] : [];
      const argv = [...own, process.execPath, ...nodeOptions, CLI, 'agent', '--store', `dir:${store}`];
      const publicAddress = topology.family === 6 ? '--public-ipv6' : '--public-ip';
      argv.push('--iface', host.device, publicAddress, host.address, '--device', 'flannel0');
      argv.push('--subnet-file', subnetFile, '--control-socket', join(directory, 'agent.sock'));
      // No contender has firewall rules: what they cost is the kernel's.
      argv.push('--state-dir', join(directory, 'state'), '--firewall', 'none', ...agentOptions);
      daemons.push(
        new Daemon(`podwire agent on ${host.netns}`, argv, {
          namespace: host.netns,
          logFile: join(directory, 'agent.log'),
          env: { PATH: searchPath() }, // for wireguard-go
        }),
      );
      return subnetFile;
    });
    /** @param {string} file */
    const subnetOf = (file) =>
      waitFor(`the agent's ${file}`, () => subnetFromEnvironmentFile(file), {
        signal,
        alive: daemons,
        timeoutMs: 20_000,
      });
    const subnets = /** @type {const} */ ([await subnetOf(subnetFiles[0] ?? ''), await subnetOf(subnetFiles[1] ?? '')]);
    return { daemons, subnets, stop: () => stopAll(daemons) };
  });
}

/**
 * The host's subnet from a flannel subnet.env (`FLANNEL_SUBNET=10.77.3.1/24`, `FLANNEL_IPV6_SUBNET=fd77:0:0:3::1/64`).
 * @param {string} path
 * @returns {string | undefined} undefined while the file is not there
 */
export function subnetFromEnvironmentFile(path) {
  if (!existsSync(path)) return undefined;
  const text = readFileSync(path, 'utf8');
  const six = /^FLANNEL_IPV6_SUBNET=([0-9a-f:]+::)1\/64$/m.exec(text);
  if (six !== null) return `${six[1]}/64`;
  const match = /^FLANNEL_SUBNET=(\d+\.\d+\.\d+)\.\d+\/24$/m.exec(text);
  return match === null ? undefined : `${match[1]}.0/24`;
}

const PLAIN = ['--tun-offload', 'none', '--udp-offload', 'single', '--spin', 'off', '--workers', '1'];

export const podwire = podwireContender(
  'podwire',
  'podwire agents as they come',
  ['throughput', 'pps', 'latency', 'agent'],
  [],
);
export const podwireNoSpin = podwireContender(
  'podwire-nospin',
  'podwire without spinning',
  ['latency'],
  ['--spin', 'off'],
);
export const podwirePlain = podwireContender(
  'podwire-plain',
  'podwire with every offload off',
  ['throughput', 'pps'],
  PLAIN,
);
/** Not a row of the tables: tells about the garbage collections of the agent's threads. */
export const podwireTraced = podwireContender('podwire-traced', 'podwire under --trace-gc', [], [], ['--trace-gc']);

/**
 * @param {string} name
 * @param {string} about
 * @param {Readonly<Record<string, unknown>>} backend
 * @param {import('../lib/topology.mjs').Family} [family]
 */
const withBackend = (name, about, backend, family) => podwireContender(name, about, [], [], [], backend, family);

export const podwireVxlanKernel = withBackend('podwire-vxlan-kernel', "podwire agents, the kernel's vxlan device", {
  Type: 'vxlan',
  Mode: 'kernel',
});
export const podwireHostGw = withBackend('podwire-host-gw', 'podwire agents, host-gw: compare with direct', {
  Type: 'host-gw',
});
export const podwireIpv6 = withBackend(
  'podwire-ipv6',
  'podwire agents, IPv6 pods over an IPv6 underlay: compare with podwire',
  { Type: 'udp' },
  6,
);
export const podwireIpip = withBackend('podwire-ipip', 'podwire agents, ipip in user space', {
  Type: 'ipip',
  Mode: 'user',
});
export const podwireWireguard = withBackend(
  'podwire-wireguard',
  'podwire agents, WireGuard by the kernel or wireguard-go: compare with wireguard-go',
  { Type: 'wireguard' },
);
