// @ts-check
/**
 * The ceiling: what no tunnel between a TUN device and a UDP socket exceeds on this machine. Superpackets go through two
 * processes in C as they are (bench/native/copies.c): four copies of every byte and the system calls for them, nothing
 * else. What podwire is below it, podwire costs.
 */
import { release } from 'node:os';
import { join } from 'node:path';
import { buildTools } from '../lib/native.mjs';
import { innerMtu, ipBatch } from '../lib/topology.mjs';
import { startReady, startingDaemons, stopAll } from './contender.mjs';

const DEVICE = 'copies0';
const NETWORK = '10.77.0.0/16';
/** It ends by itself should nobody stop it. */
const SECONDS = 600;

/** @type {import('./contender.mjs').Contender} */
export const copies = {
  name: 'copies',
  about: 'the ceiling: TUN to UDP and back in C, no headers, checksums or look-ups',
  measures: [],
  available: async () => ({ version: `Linux ${release()}` }),
  start: (topology, { workDir, signal }) =>
    startingDaemons(async (daemons) => {
      const tools = await buildTools();
      for (const [index, host] of topology.hosts.entries()) {
        const peer = topology.hosts[1 - index] ?? host;
        const argv = [tools.copies, 'run', '--device', DEVICE, '--bind', host.address, '--to', peer.address];
        argv.push('--port', '4789', '--seconds', `${SECONDS}`);
        const place = { namespace: host.netns, logFile: join(workDir, `copies${index + 1}.log`) };
        await startReady(daemons, `copies on ${host.netns}`, argv, place, signal);
        await ipBatch(host.netns, [
          `link set ${DEVICE} mtu ${innerMtu} up`,
          `address add ${host.subnet.replace(/\/\d+$/, '/32')} dev ${DEVICE}`,
          `route add ${NETWORK} dev ${DEVICE}`,
        ]);
      }
      return { daemons, stop: () => stopAll(daemons) };
    }),
};
