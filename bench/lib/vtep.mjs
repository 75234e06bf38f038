// @ts-check
/**
 * One end of a user-space vxlan: `node bench/lib/vtep.mjs CONFIG`, inside the host's namespace. An embedder's program, on the
 * built package: a data plane with one route, and its device set up as the agent does.
 *
 * CONFIG is JSON: { device, address, subnet, network, mac, peer: { address, subnet, mac } }.
 * Prints `ready`. Ends on SIGTERM.
 */
import { execFileSync } from 'node:child_process';
import { Dataplane } from '../../dist/index.js';

/** @type {{ device: string, address: string, subnet: string, network: string, mac: string, peer: { address: string, subnet: string, mac: string } }} */
const config = JSON.parse(process.argv[2] ?? '{}');
const { device, peer } = config;

const plane = await Dataplane.open({
  device,
  bind: { address: config.address },
  local: [config.subnet],
  encapsulation: { type: 'vxlan', vni: 1, vtepMac: config.mac },
});
plane.routes.set(peer.subnet, { address: peer.address, vtepMac: peer.mac });
for (const line of [
  `link set ${device} mtu ${plane.mtu.overlay} up`,
  `address add ${config.subnet.replace(/\/\d+$/, config.subnet.includes(':') ? '/128' : '/32')} dev ${device}`,
  `route add ${config.network} dev ${device}`,
]) {
  execFileSync('ip', line.split(' '));
}
process.on('SIGTERM', () => void plane.close());
process.stdout.write('ready\n');
await plane.closed;
