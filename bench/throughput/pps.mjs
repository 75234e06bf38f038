// @ts-check
/**
 * Packet rates: one UDP flow of datagrams of one payload size, from one sending thread with sendmmsg to one receiving thread
 * with recvmmsg.
 *
 *   flood     no pacing; the figure is what arrives
 *   lossfree  the highest offered rate of which less than 1 % is lost, from the flood's rate by search
 *
 * The sizes are UDP payload (64 B = a 92-byte IP packet), as iperf3 -l has them. Rates of arrival count over the longer of
 * the sender's and the receiver's time, so that a queue that drains late does not flatter.
 */
import { processesCpu } from '../lib/meter.mjs';
import { searchRate } from './search.mjs';

/**
 * @param {import('../lib/bed.mjs').Bed} bed
 * @param {{ size: number, rate: number, seconds: number, pace: string }} load rate 0 = flood
 */
async function oneRun(bed, { size, rate, seconds, pace }) {
  const cpuBefore = processesCpu(bed.tunnelPids);
  const { result: sent, server: received } = await bed.withServerTool('pps', 'receive', seconds + 10, () =>
    bed.clientTool('pps', 'send', { size, seconds, rate, pace }, (seconds + 10) * 1000),
  );
  const span = Math.max(sent.seconds, received.seconds);
  return {
    offered: sent.pps,
    delivered: received.received / span,
    loss: sent.sent > 0 ? 1 - received.received / sent.sent : 1,
    tunnelSeconds: processesCpu(bed.tunnelPids) - cpuBefore,
    sent,
    received,
  };
}

/**
 * @param {import('../lib/bed.mjs').Bed} bed
 * @param {number} size UDP payload, bytes
 * @param {{ floodSeconds: number, probeSeconds: number, maxProbes: number, pace: string }} settings
 * @returns {Promise<{ values: Record<string, number>, raw: object }>}
 */
export async function measurePps(bed, size, { floodSeconds, probeSeconds, maxProbes, pace }) {
  const flood = await oneRun(bed, { size, rate: 0, seconds: floodSeconds, pace });
  const search = await searchRate((rate) => oneRun(bed, { size, rate, seconds: probeSeconds, pace }), {
    flood,
    start: Math.max(flood.delivered, 1000),
    maxProbes,
  });
  const name = `udp${size}`;
  const gbps = (/** @type {number} */ rate) => (rate * size * 8) / 1e9;
  const inGbps = size >= 1000;
  return {
    values: {
      [`${name}.lossfree`]: inGbps ? gbps(search.rate) : search.rate / 1000,
      [`${name}.flood`]: inGbps ? gbps(flood.delivered) : flood.delivered / 1000,
      [`${name}.senderLimited`]: Number(search.senderLimited),
    },
    raw: { [name]: { flood, search } },
  };
}
