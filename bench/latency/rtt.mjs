// @ts-check
/**
 * Round-trip times of a 64-byte UDP datagram between the pods: ping-pong, and paced at fixed rates (see native/rtt.c for
 * who waits how). Microseconds.
 */

/** Packets per second of the paced runs. */
export const PACES = [100, 1000, 2000, 5000, 10_000, 20_000];

/**
 * @param {import('../lib/bed.mjs').Bed} bed
 * @param {{ pingSeconds: number, pacedSeconds: (rate: number) => number, paces: readonly number[], warmupSeconds: number }} settings
 * @returns {Promise<{ values: Record<string, number>, raw: Record<string, object> }>}
 */
export async function measureLatency(bed, { pingSeconds, pacedSeconds, paces, warmupSeconds }) {
  /** @type {Record<string, number>} */
  const values = {};
  /** @type {Record<string, object>} */
  const raw = {};
  const total = pingSeconds + paces.reduce((sum, rate) => sum + pacedSeconds(rate) + warmupSeconds + 1, 0);
  await bed.withServerTool('rtt', 'echo', total + 60, async () => {
    const ping = await bed.clientTool(
      'rtt',
      'ping',
      { seconds: pingSeconds, warmup: warmupSeconds },
      (pingSeconds + warmupSeconds + 10) * 1000,
    );
    raw['ping'] = ping;
    values['ping.p50'] = ping.p50Us;
    values['ping.p99'] = ping.p99Us;
    values['ping.p999'] = ping.p999Us;
    for (const rate of paces) {
      const seconds = pacedSeconds(rate);
      const paced = await bed.clientTool(
        'rtt',
        'paced',
        { seconds, rate, warmup: warmupSeconds },
        (seconds + warmupSeconds + 10) * 1000,
      );
      raw[`paced${rate}`] = paced;
      values[`paced${rate}.p50`] = paced.p50Us;
      values[`paced${rate}.p99`] = paced.p99Us;
    }
  });
  return { values, raw };
}
