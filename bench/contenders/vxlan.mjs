// @ts-check
/**
 * vxlan in user space, between two data planes of podwire and between one and the kernel's device set up as flannel does.
 * Traffic goes from host 1 to host 2. They take part when they are named, and in the mode `backends`.
 */
import { existsSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { dropEncapsulationMark } from '../lib/topology.mjs';
import { startReady, startingDaemons, stopAll } from './contender.mjs';
import { VXLAN_DEVICE, createVxlan, joinVxlan } from './kernel.mjs';

/** @typedef {import('./contender.mjs').Contender} Contender */
/** @typedef {'podwire' | 'kernel'} End */

const PROGRAM = fileURLToPath(new URL('../lib/vtep.mjs', import.meta.url));
const PACKAGE = fileURLToPath(new URL('../../dist/index.js', import.meta.url));
const NETWORKS = { 4: '10.77.0.0/16', 6: 'fd77::/48' };
const MACS = /** @type {const} */ (['0e:77:00:00:00:01', '0e:77:00:00:00:02']);

/**
 * @param {string} name
 * @param {string} about
 * @param {readonly [End, End]} ends of host 1 and host 2; the kernel's has IPv4 only
 * @param {import('../lib/topology.mjs').Family} [family]
 * @returns {Contender}
 */
function vxlanContender(name, about, ends, family = 4) {
  return {
    name,
    family,
    about,
    measures: [],
    available: async () =>
      existsSync(PACKAGE)
        ? { version: `Linux ${release()}` }
        : { missing: `${PACKAGE} does not exist; build it: npm run build` },
    start: (topology, context) => startingDaemons((daemons) => startEnds(topology, context, ends, daemons)),
  };
}

/**
 * @param {import('../lib/topology.mjs').Topology} topology
 * @param {import('./contender.mjs').StartContext} context
 * @param {readonly [End, End]} ends
 * @param {import('../lib/process.mjs').Daemon[]} daemons
 * @returns {Promise<import('./contender.mjs').Session>}
 */
async function startEnds({ hosts, family, underlay }, { workDir, signal }, ends, daemons) {
  /** @type {[string, string]} */
  const macs = [...MACS];
  for (const index of /** @type {const} */ ([0, 1])) {
    if (ends[index] === 'kernel') macs[index] = await createVxlan(hosts[index]);
  }
  if (underlay === 'nic' && ends[0] === 'kernel') await dropEncapsulationMark(hosts[0]);
  for (const index of /** @type {const} */ ([0, 1])) {
    const [host, peer] = [hosts[index], hosts[1 - index] ?? hosts[index]];
    const peerMac = macs[1 - index] ?? '';
    if (ends[index] === 'kernel') {
      await joinVxlan(host, peer, peerMac);
      continue;
    }
    const config = {
      device: VXLAN_DEVICE,
      address: host.address,
      subnet: host.subnet,
      network: NETWORKS[family],
      mac: macs[index],
      peer: { address: peer.address, subnet: peer.subnet, mac: peerMac },
    };
    const place = { namespace: host.netns, logFile: join(workDir, `vtep${index + 1}.log`) };
    const argv = [process.execPath, PROGRAM, JSON.stringify(config)];
    await startReady(daemons, `podwire vxlan on ${host.netns}`, argv, place, signal);
  }
  return { daemons, stop: () => stopAll(daemons) };
}

export const podwireVxlan = vxlanContender('podwire-vxlan', 'vxlan in user space on both hosts', [
  'podwire',
  'podwire',
]);
export const podwireVxlanIpv6 = vxlanContender(
  'podwire-vxlan-ipv6',
  'vxlan in user space on both hosts, IPv6 pods over an IPv6 underlay: compare with podwire-vxlan',
  ['podwire', 'podwire'],
  6,
);
export const podwireToVxlan = vxlanContender(
  'podwire-to-vxlan',
  "vxlan in user space on host 1, the kernel's device on host 2",
  ['podwire', 'kernel'],
);
export const vxlanToPodwire = vxlanContender(
  'vxlan-to-podwire',
  "the kernel's vxlan device on host 1, user space on host 2",
  ['kernel', 'podwire'],
);
