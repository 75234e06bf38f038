// @ts-check
/**
 * The order of a run: in each round every contender runs once on each underlay, and the order rotates from round to round,
 * so that what drifts with time meets everybody. Each start of a contender gets a new topology. A contender that fails is
 * reported and left out of that round; the others go on.
 */
import { join } from 'node:path';
import { podwireTraced } from './contenders/podwire.mjs';
import { measureLatency } from './latency/rtt.mjs';
import { withBed } from './lib/bed.mjs';
import { machineCpu, machineCpuBetween, processesMemory } from './lib/meter.mjs';
import { BenchError } from './lib/process.mjs';
import { loadForGarbage, measureIdle } from './scale/agent.mjs';
import { measureUpdates, updatingNodes } from './scale/updates.mjs';
import { measurePps } from './throughput/pps.mjs';
import { measureTcp } from './throughput/tcp.mjs';

/** UDP payload sizes of the packet rates, bytes. */
export const SIZES = [64, 1392];

/**
 * @typedef {object} Sample what one start of one contender gave
 * @property {number} round from 1
 * @property {import('./lib/topology.mjs').Underlay | 'micro' | 'control'} underlay
 * @property {string} contender
 * @property {string} startedAt ISO 8601
 * @property {Record<string, number>} values by metric
 * @property {object} raw everything the tools said
 * @property {{ busyPercent: number, stealPercent: number, seconds: number }} machine over the whole start
 *
 * @typedef {Pick<Sample, 'values' | 'raw'>} Part what one measurement gave
 *
 * @typedef {object} RunContext
 * @property {import('./options.mjs').Options} options
 * @property {import('./lib/native.mjs').Tools} tools
 * @property {string} workDir
 * @property {AbortSignal} signal
 * @property {(line: string) => void} log
 */

/**
 * @template T
 * @param {readonly T[]} list
 * @param {number} by
 */
export function rotated(list, by) {
  const at = list.length === 0 ? 0 : by % list.length;
  return [...list.slice(at), ...list.slice(0, at)];
}

/**
 * @param {readonly import('./contenders/contender.mjs').Contender[]} contenders
 * @param {RunContext} context
 * @returns {Promise<{ samples: Sample[], problems: string[], features: Record<string, Record<string, string>> }>}
 */
export async function runRounds(contenders, context) {
  const { options, log, signal } = context;
  /** @type {Sample[]} */
  const samples = [];
  /** @type {string[]} */
  const problems = [];
  /** @type {Record<string, Record<string, string>>} */
  const features = {};

  /**
   * @param {string} label
   * @param {() => Promise<string[]>} body
   */
  const guarded = async (label, body) => {
    try {
      for (const problem of await body()) problems.push(`${label}: ${problem}`);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof BenchError)) throw error;
      problems.push(`${label}: ${error.message}`);
      log(`${label}: ${error.message}`);
    }
  };

  for (let round = 1; round <= options.rounds; round++) {
    for (const underlay of options.underlays) {
      for (const contender of rotated(contenders, round - 1)) {
        const label = `round ${round}/${options.rounds}, ${underlay}, ${contender.name}`;
        const workDir = join(context.workDir, `${round}-${underlay}-${contender.name}`);
        await guarded(label, async () => {
          const sample = newSample(round, underlay, contender.name);
          const before = machineCpu();
          try {
            return await withBed(contender, underlay, { ...context, workDir }, async (bed) => {
              features[underlay] = bed.topology.features;
              const withAgent = round === 1 && underlay === options.underlays[0];
              const measures = measuresOf(contender, options).filter((measure) => measure !== 'agent' || withAgent);
              await measureAll(bed, measures, context, sample);
            });
          } finally {
            const { busyPercent, stealPercent, seconds } = machineCpuBetween(before, machineCpu());
            sample.machine = { busyPercent, stealPercent, seconds };
            if (Object.keys(sample.values).length > 0) samples.push(sample);
          }
        });
      }
    }
  }

  if (options.measures.includes('agent') && contenders.some((contender) => contender.name === 'podwire')) {
    const underlay = options.underlays[0] ?? 'veth';
    const { garbageSeconds, updateSeconds } = options.durations;
    /**
     * A measurement of podwire on a bed of its own, once a run.
     * @param {string} label
     * @param {import('./contenders/contender.mjs').Contender} contender
     * @param {(bed: import('./lib/bed.mjs').Bed) => Promise<() => Part>} body what it returns is called when the bed is gone
     */
    const once = (label, contender, body) =>
      guarded(label, async () => {
        const sample = newSample(1, underlay, 'podwire');
        /** @type {(() => Part) | undefined} */
        let finish;
        const workDir = join(context.workDir, contender.name);
        const ended = await withBed(contender, underlay, { ...context, workDir }, async (bed) => {
          finish = await body(bed);
        });
        if (finish !== undefined) {
          Object.assign(sample, finish());
          samples.push(sample);
          log(`${label}: ${describeValues(sample.values)}`);
        }
        return ended;
      });
    await once('garbage collections', podwireTraced, (bed) => loadForGarbage(bed, { loadSeconds: garbageSeconds }));
    await once('route updates', updatingNodes(updateSeconds), async (bed) => {
      const part = await measureUpdates(bed, { updateSeconds });
      return () => part;
    });
  }
  return { samples, problems, features };
}

/**
 * @param {number} round
 * @param {import('./lib/topology.mjs').Underlay} underlay
 * @param {string} contender
 * @returns {Sample}
 */
function newSample(round, underlay, contender) {
  const machine = { busyPercent: 0, stealPercent: 0, seconds: 0 };
  return { round, underlay, contender, startedAt: new Date().toISOString(), values: {}, raw: {}, machine };
}

/**
 * What a contender is measured for: what it takes part in by itself, or everything when it was named.
 * @param {import('./contenders/contender.mjs').Contender} contender
 * @param {import('./options.mjs').Options} options
 */
export function measuresOf(contender, options) {
  const named = options.contenders?.includes(contender.name) === true;
  return options.measures.filter((measure) => contender.measures.includes(measure) || (named && measure !== 'agent'));
}

/**
 * @param {import('./lib/bed.mjs').Bed} bed
 * @param {readonly import('./contenders/contender.mjs').Measure[]} measures
 * @param {RunContext} context
 * @param {Sample} sample is filled; what was measured before a failure stays
 */
async function measureAll(bed, measures, { options, log }, sample) {
  const { durations } = options;
  /** @param {Part} part */
  const add = (part) => {
    Object.assign(sample.values, part.values);
    Object.assign(sample.raw, part.raw);
    log(`  ${sample.underlay} ${sample.contender}: ${describeValues(part.values)}`);
  };
  if (measures.includes('agent')) add(await measureIdle(bed, durations));
  await bed.warmUp(durations.bedWarmupSeconds);
  if (measures.includes('throughput')) {
    for (const streams of [1, 4]) {
      add(await measureTcp(bed, streams, { seconds: durations.tcpSeconds, omitSeconds: durations.tcpOmitSeconds }));
    }
  }
  if (measures.includes('pps')) {
    // IPv6's larger header would cut the larger ones in two.
    const sizes = bed.topology.family === 6 ? SIZES.slice(0, 1) : SIZES;
    for (const size of sizes) add(await measurePps(bed, size, { ...durations, pace: options.pace }));
  }
  if (measures.includes('latency')) add(await measureLatency(bed, durations));
  if (bed.tunnelPids.length > 0) {
    const { nowMiB, peakMiB } = processesMemory(bed.tunnelPids);
    add({ values: { 'memory.peak': peakMiB }, raw: { memory: { nowMiB, peakMiB } } });
  }
}

/** @param {Record<string, number>} values */
function describeValues(values) {
  return Object.entries(values)
    .map(([metric, value]) => `${metric} ${Number(value.toPrecision(4))}`)
    .join(', ');
}
