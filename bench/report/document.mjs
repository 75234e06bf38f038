// @ts-check
/** The result of a run as one JSON document: everything raw, and what the report says about it. */
import { BASELINE } from '../contenders/index.mjs';
import { innerMtu, UNDERLAY_MTU } from '../lib/topology.mjs';
import { METRICS } from './metrics.mjs';
import { summarise } from './stats.mjs';
import { judge } from './targets.mjs';

/**
 * @typedef {object} Document
 * @property {'podwire-bench/1'} schema
 * @property {string} startedAt ISO 8601
 * @property {string} finishedAt
 * @property {readonly string[]} command
 * @property {import('../options.mjs').Options} options
 * @property {{ kernel: string, cpu: string, cores: number, memoryMiB: number, node: string, iperf3: string, cpuAccounting: string, compiler: string }} machine
 * @property {{ loadavg: number[], busyPercent: number, stealPercent: number, stealPercentDuring: number }} noise
 * @property {{ contender: string, metric: string, percent: number }[]} noiseFloor widest spread of the baselines' rows
 * @property {number} innerMtu
 * @property {number} underlayMtu
 * @property {string} baseline
 * @property {Record<string, Record<string, string>>} underlayFeatures ethtool -k, by underlay
 * @property {{ name: string, about: string, version?: string, missing?: string }[]} contenders
 * @property {readonly import('./metrics.mjs').Metric[]} metrics those that were measured
 * @property {import('./stats.mjs').Row[]} summary
 * @property {import('./targets.mjs').Verdict[]} targets
 * @property {import('../rounds.mjs').Sample[]} samples
 * @property {object} micro raw results of the micro suites
 * @property {string[]} problems
 */

/** Row of the samples that the micro suites fill; it stands beside the underlays. */
export const MICRO = 'micro';

/**
 * How far the rounds of a baseline lie apart at worst: what the machine's noise makes of a tunnel that does not change.
 * @param {readonly import('./stats.mjs').Row[]} summary
 */
function noiseFloor(summary) {
  const floor = [];
  for (const contender of ['direct', 'vxlan']) {
    let worst;
    for (const { contender: name, metric, underlay, value } of summary) {
      if (name !== contender || value.count < 2 || !(value.median > 0) || !/gbps|flood|lossfree|ping\.p50/.test(metric))
        continue;
      const percent = (100 * (value.max - value.min)) / value.median;
      if (worst === undefined || percent > worst.percent)
        worst = { contender, metric: `${metric}, ${underlay}`, percent };
    }
    if (worst !== undefined) floor.push(worst);
  }
  return floor;
}

/**
 * @param {Omit<Document, 'schema' | 'finishedAt' | 'noiseFloor' | 'innerMtu' | 'underlayMtu' | 'baseline' | 'metrics' | 'summary' | 'targets'>} parts
 * @returns {Document}
 */
export function makeDocument(parts) {
  const { samples } = parts;
  const metrics = METRICS.filter(({ id }) => samples.some((sample) => sample.values[id] !== undefined));
  const known = [...parts.contenders.map((contender) => contender.name), MICRO];
  const names = [...new Set([...known, ...samples.map((sample) => sample.contender)])];
  const underlays = [...new Set([...parts.options.underlays, ...samples.map((sample) => sample.underlay)])];
  const summary = summarise(samples, {
    underlays,
    metrics: metrics.map(({ id }) => id),
    contenders: names,
    baseline: BASELINE,
  });
  return {
    schema: 'podwire-bench/1',
    ...parts,
    finishedAt: new Date().toISOString(),
    noiseFloor: noiseFloor(summary),
    innerMtu,
    underlayMtu: UNDERLAY_MTU,
    baseline: BASELINE,
    metrics,
    summary,
    targets: judge(samples),
  };
}
