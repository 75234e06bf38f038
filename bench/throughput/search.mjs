// @ts-check
/**
 * The highest offered rate that loses less than a limit. Pure: the probes are the caller's.
 *
 * From the start rate up by a quarter (or down by a fifth) until one rate passes and one fails, then the geometric middle of
 * the two until they are within the tolerance. A narrow failure (loss below 5 times the limit) is tried once more, because a
 * single disturbance of the machine is enough for it; that is allowed twice a search, for every contender alike.
 *
 * A sender that cannot reach the asked rate limits the search: when it passes with less than 95 % of what was asked, the
 * result is the rate it reached and `senderLimited`.
 */

/** Share of packets that may be lost: "less than 1 %". */
export const LOSS_LIMIT = 0.01;
const STEP_UP = 1.25;
const STEP_DOWN = 0.8;
const KEPT_PACE = 0.95;
const NARROW = 5;
const SECOND_TRIES = 2;

/**
 * @typedef {object} Probe one trial at a rate
 * @property {number} offered packets/s that were really sent
 * @property {number} loss share of the sent packets, 0 to 1
 *
 * @typedef {object} SearchResult
 * @property {number} rate the highest offered rate that passed; 0 when none did
 * @property {boolean} senderLimited
 * @property {(Probe & { asked: number })[]} probes in order
 */

/**
 * @param {(rate: number) => Promise<Probe>} probe
 * @param {{ start: number, tolerance?: number, maxProbes?: number }} options `start`: packets/s
 * @returns {Promise<SearchResult>}
 */
export async function searchRate(probe, { start, tolerance = 0.05, maxProbes = 12 }) {
  /** @type {SearchResult} */
  const result = { rate: 0, senderLimited: false, probes: [] };
  let passed = 0;
  let failed = Infinity;
  let secondTries = SECOND_TRIES;
  let asked = start;
  while (result.probes.length < maxProbes && asked >= 1) {
    let trial = await probe(asked);
    result.probes.push({ asked, ...trial });
    if (
      trial.loss >= LOSS_LIMIT &&
      trial.loss < NARROW * LOSS_LIMIT &&
      secondTries > 0 &&
      result.probes.length < maxProbes
    ) {
      secondTries -= 1;
      trial = await probe(asked);
      result.probes.push({ asked, ...trial });
    }
    if (trial.loss < LOSS_LIMIT) {
      passed = Math.max(passed, asked);
      result.rate = Math.max(result.rate, trial.offered);
      if (trial.offered < KEPT_PACE * asked) {
        result.senderLimited = true;
        break;
      }
    } else {
      failed = Math.min(failed, asked, Math.max(trial.offered, passed));
    }
    if (failed <= passed * (1 + tolerance)) break;
    if (failed === Infinity) asked *= STEP_UP;
    else if (passed === 0) asked = failed * STEP_DOWN;
    else asked = Math.sqrt(passed * failed);
  }
  return result;
}
