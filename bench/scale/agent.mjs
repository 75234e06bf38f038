// @ts-check
/**
 * What an agent costs that has nothing to do, and whether its worker threads collect garbage under load.
 *
 * Idle: the busier of the two agents over a quiet span, in percent of one core; resident memory of the larger one.
 *
 * Garbage: agents run under V8's --trace-gc, whose lines name the isolate (the thread) and the milliseconds since it began.
 * The isolate that speaks first is the main thread; start-up alone makes it collect. Lines of other isolates count from the
 * start of the load. Their clocks begin between the start of the process and its readiness, so up to that much of the
 * warm-up before the load counts too: never less than the span.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { processesCpu, processesMemory } from '../lib/meter.mjs';
import { BenchError } from '../lib/process.mjs';

/** A line of --trace-gc: isolate, milliseconds of its clock. */
const COLLECTION = /^\[\d+:(0x[0-9a-f]+)(?::\d+)?\]\s+(\d+(?:\.\d+)?) ms: /m;

/**
 * @param {import('../lib/bed.mjs').Bed} bed
 * @param {{ idleSeconds: number }} settings
 * @returns {Promise<{ values: Record<string, number>, raw: object }>}
 */
export async function measureIdle(bed, { idleSeconds }) {
  const before = bed.tunnelPids.map((pid) => processesCpu([pid]));
  const start = performance.now();
  await delay(idleSeconds * 1000, undefined, { signal: bed.signal });
  const seconds = (performance.now() - start) / 1000;
  const percents = bed.tunnelPids.map((pid, index) => (100 * (processesCpu([pid]) - (before[index] ?? 0))) / seconds);
  return {
    values: { 'idle.cpu': Math.max(...percents), 'idle.memory': processesMemory(bed.tunnelPids).nowMiB },
    raw: { idle: { seconds, percents } },
  };
}

/**
 * Puts load on agents that run under --trace-gc.
 * @param {import('../lib/bed.mjs').Bed} bed
 * @param {{ loadSeconds: number }} settings
 * @returns {Promise<() => { values: Record<string, number>, raw: object }>} to be called when the agents have ended (their
 *   output is complete only then)
 */
export async function loadForGarbage(bed, { loadSeconds }) {
  const readyAt = performance.now();
  await bed.warmUp(2);
  const loadAt = performance.now();
  await bed.withServerTool('pps', 'receive', loadSeconds + 10, () =>
    bed.clientTool('pps', 'send', { size: 1392, seconds: loadSeconds, rate: 0 }, (loadSeconds + 10) * 1000),
  );
  const logs = bed.session.daemons;
  return () => {
    const collections = logs.flatMap((daemon) => {
      // Start-up alone collects: a log without any line is no trace, and would be a perfect result.
      if (!COLLECTION.test(daemon.output())) throw new BenchError(`${daemon.name} wrote no trace of its collections`);
      return workerCollections(daemon.output(), loadAt - readyAt);
    });
    return { values: { 'gc.workers': collections.length }, raw: { gc: { loadSeconds, collections } } };
  };
}

/**
 * Collections of all threads but the main one.
 * @param {string} log
 * @param {number} sinceMs of the isolate's own clock
 * @returns {string[]} the lines
 */
export function workerCollections(log, sinceMs) {
  let main;
  const found = [];
  for (const line of log.split('\n')) {
    const match = COLLECTION.exec(line);
    if (match === null) continue;
    const [, isolate, ms] = match;
    main ??= isolate;
    if (isolate !== main && Number(ms) >= sinceMs) found.push(line);
  }
  return found;
}
