// @ts-check
/**
 * Route updates under traffic: two data planes with 100,000 routes each change theirs all the time, while datagrams pass
 * between the pods at a pace far below what the tunnel takes. Not one may be lost.
 */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startingDaemons, stopAll } from '../contenders/contender.mjs';
import { Daemon, waitFor } from '../lib/process.mjs';

const ROUTES = 100_000;
/** Above the target, with room for the sum over a span to show it. */
const UPDATES_PER_SECOND = 60_000;
const PACKETS_PER_SECOND = 20_000;
const NETWORK = '10.77.0.0/16';
const PROGRAM = fileURLToPath(new URL('./node.mjs', import.meta.url));

/**
 * The contender of this measurement; no row of the tables.
 * @param {number} seconds of the updates
 * @returns {import('../contenders/contender.mjs').Contender}
 */
export function updatingNodes(seconds) {
  return {
    name: 'podwire-updates',
    about: 'two embedded data planes whose routes change',
    measures: [],
    available: async () => ({ version: '' }),
    start: (topology, { workDir, signal }) =>
      startingDaemons(async (daemons) => {
        const [one, two] = topology.hosts;
        for (const [host, peer] of /** @type {const} */ ([
          [one, two],
          [two, one],
        ])) {
          const config = {
            address: host.address,
            subnet: host.subnet,
            peer: { address: peer.address, subnet: peer.subnet },
            network: NETWORK,
            routes: ROUTES,
            updatesPerSecond: UPDATES_PER_SECOND,
            seconds,
          };
          const node = new Daemon(`data plane on ${host.netns}`, [process.execPath, PROGRAM, JSON.stringify(config)], {
            namespace: host.netns,
            logFile: join(workDir, `${host.netns}.log`),
          });
          daemons.push(node);
          await waitFor(`the data plane on ${host.netns}`, () => node.output().includes('ready\n'), {
            signal,
            alive: [node],
            timeoutMs: 60_000,
          });
        }
        return { daemons, stop: () => stopAll(daemons) };
      }),
  };
}

/**
 * @param {import('../lib/bed.mjs').Bed} bed with {@link updatingNodes}
 * @param {{ updateSeconds: number }} settings
 * @returns {Promise<{ values: Record<string, number>, raw: object }>} updates per second of the slower host; packets lost
 */
export async function measureUpdates(bed, { updateSeconds }) {
  await bed.warmUp(1);
  for (const daemon of bed.session.daemons) process.kill(daemon.pid, 'SIGUSR2');
  const { result: sent, server: received } = await bed.withServerTool('pps', 'receive', updateSeconds + 10, () =>
    bed.clientTool(
      'pps',
      'send',
      { size: 64, seconds: updateSeconds, rate: PACKETS_PER_SECOND },
      (updateSeconds + 10) * 1000,
    ),
  );
  const hosts = [];
  for (const daemon of bed.session.daemons) {
    const line = await waitFor(`the result of ${daemon.name}`, () => /^\{.*\}$/m.exec(daemon.output())?.[0], {
      signal: bed.signal,
      alive: [daemon],
      timeoutMs: 30_000,
    });
    hosts.push(JSON.parse(line));
  }
  return {
    values: {
      'updates.rate': Math.min(...hosts.map(({ updates, seconds }) => updates / seconds)),
      'updates.lost': sent.sent - received.received,
    },
    raw: { updates: { sent, received, hosts } },
  };
}
