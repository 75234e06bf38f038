// @ts-check
/** The two baselines that are nothing but kernel: plain routing (no tunnel) and the vxlan device, set up as flannel does. */
import { release } from 'node:os';
import { BenchError, run } from '../lib/process.mjs';
import { ipBatch } from '../lib/topology.mjs';

/** @typedef {import('./contender.mjs').Contender} Contender */

const version = `Linux ${release()}`;

/**
 * @param {import('../lib/topology.mjs').Topology} topology
 * @param {(host: import('../lib/topology.mjs').Host, peer: import('../lib/topology.mjs').Host) => Promise<void>} join
 */
async function onBothHosts(topology, join) {
  const [one, two] = topology.hosts;
  await join(one, two);
  await join(two, one);
  return { daemons: [], stop: async () => [] };
}

/** @type {Contender} */
export const direct = {
  name: 'direct',
  about: 'plain routing between the hosts, no tunnel: the upper bound',
  measures: ['throughput', 'pps', 'latency'],
  available: async () => ({ version }),
  start: (topology) =>
    onBothHosts(topology, (host, peer) =>
      ipBatch(host.netns, [`route add ${peer.subnet} via ${peer.address} dev ${host.device}`]),
    ),
};

/** The device of a vxlan network with VNI 1, whoever makes it. */
export const VXLAN_DEVICE = 'flannel.1';

/**
 * @param {import('../lib/topology.mjs').Host} host
 * @returns {Promise<string>} hardware address of its vxlan device
 */
export async function createVxlan(host) {
  const base = host.subnet.replace(/\/\d+$/, '');
  await ipBatch(host.netns, [
    `link add ${VXLAN_DEVICE} mtu 1450 type vxlan id 1 local ${host.address} dev ${host.device} dstport 8472 nolearning`,
    `address add ${base}/32 dev ${VXLAN_DEVICE}`,
    `link set ${VXLAN_DEVICE} up`,
  ]);
  const { stdout } = await run(['ip', '-n', host.netns, '-j', 'link', 'show', VXLAN_DEVICE]);
  return JSON.parse(stdout)[0].address;
}

/**
 * Neighbour, FDB entry and route to a peer, as flannel programs them.
 * @param {import('../lib/topology.mjs').Host} host that has the kernel's device
 * @param {import('../lib/topology.mjs').Host} peer
 * @param {string} lladdr hardware address of the peer's end
 */
export async function joinVxlan(host, peer, lladdr) {
  const base = peer.subnet.replace(/\/\d+$/, '');
  await ipBatch(host.netns, [
    `neighbour replace ${base} lladdr ${lladdr} dev ${VXLAN_DEVICE} nud permanent`,
    `route add ${peer.subnet} via ${base} dev ${VXLAN_DEVICE} onlink`,
  ]);
  const fdb = ['bridge', '-n', host.netns, 'fdb', 'append', lladdr, 'dev', VXLAN_DEVICE, 'dst', peer.address];
  await run([...fdb, 'self', 'permanent']);
}

/** @type {Contender} */
export const vxlan = {
  name: 'vxlan',
  about: 'kernel vxlan device as flannel sets it up: nolearning, permanent neighbour and FDB entries, onlink route',
  measures: ['throughput', 'pps', 'latency'],
  available: async () => ({ version }),
  start: async (topology) => {
    /** @type {Map<string, string>} */
    const hardware = new Map();
    for (const host of topology.hosts) hardware.set(host.netns, await createVxlan(host));
    return onBothHosts(topology, async (host, peer) => {
      const lladdr = hardware.get(peer.netns);
      if (lladdr === undefined) throw new BenchError(`no vxlan device on ${peer.netns}`);
      await joinVxlan(host, peer, lladdr);
    });
  },
};
