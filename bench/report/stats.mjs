// @ts-check
/**
 * From samples to rows: median and range per contender and metric, and the ratio to another contender. A ratio is taken
 * within each round (both ran minutes apart at most), then the median of the ratios: machines drift more between rounds than
 * within one.
 */

/**
 * @typedef {{ median: number, min: number, max: number, count: number }} Spread
 *
 * @typedef {object} Row
 * @property {string} underlay
 * @property {string} metric
 * @property {string} contender
 * @property {Spread} value
 * @property {Spread | undefined} ratio to the baseline; none where the baseline was not measured or is 0
 */

/** @typedef {Pick<import('../rounds.mjs').Sample, 'round' | 'underlay' | 'contender' | 'values'>} Sample */

/**
 * @param {readonly number[]} numbers at least one
 * @returns {Spread}
 */
export function spread(numbers) {
  const sorted = numbers.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const high = sorted[middle] ?? Number.NaN;
  const median = sorted.length % 2 === 1 ? high : ((sorted[middle - 1] ?? Number.NaN) + high) / 2;
  return { median, min: sorted[0] ?? Number.NaN, max: sorted.at(-1) ?? Number.NaN, count: sorted.length };
}

/**
 * Values of a contender by round.
 * @param {readonly Sample[]} samples
 * @param {string} underlay
 * @param {string} metric
 * @param {string} contender
 * @returns {Map<number, number>}
 */
function byRound(samples, underlay, metric, contender) {
  const found = new Map();
  for (const sample of samples) {
    const value = sample.values[metric];
    if (sample.underlay === underlay && sample.contender === contender && value !== undefined)
      found.set(sample.round, value);
  }
  return found;
}

/**
 * Ratio of two contenders, round by round.
 * @param {readonly Sample[]} samples
 * @param {{ underlay: string, metric: string, contender: string, baseline: string }} which
 * @returns {Spread | undefined} undefined where no round has both
 */
export function ratio(samples, { underlay, metric, contender, baseline }) {
  const below = byRound(samples, underlay, metric, baseline);
  const ratios = [];
  for (const [round, value] of byRound(samples, underlay, metric, contender)) {
    const base = below.get(round);
    if (base !== undefined && base > 0) ratios.push(value / base);
  }
  return ratios.length > 0 ? spread(ratios) : undefined;
}

/**
 * @param {readonly Sample[]} samples
 * @param {{ underlays: readonly string[], metrics: readonly string[], contenders: readonly string[], baseline: string }} order
 * @returns {Row[]} in that order, without what was not measured
 */
export function summarise(samples, { underlays, metrics, contenders, baseline }) {
  const rows = [];
  for (const underlay of underlays) {
    for (const metric of metrics) {
      for (const contender of contenders) {
        const values = [...byRound(samples, underlay, metric, contender).values()];
        if (values.length === 0) continue;
        rows.push({
          underlay,
          metric,
          contender,
          value: spread(values),
          ratio: ratio(samples, { underlay, metric, contender, baseline }),
        });
      }
    }
  }
  return rows;
}
