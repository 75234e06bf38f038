// @ts-check
/**
 * The highest offered rate that loses less than a limit. Pure: the probes are the caller's.
 *
 * The flood that was measured before is the first trial: when it passes, nothing can be offered faster, and one paced trial
 * above it only looks whether pacing helps. From the start rate the search goes up by a quarter (or down by a fifth) until
 * one rate passes and one fails, then to the geometric middle of the two until they are within the tolerance. The result is
 * the highest rate that was really offered by a trial that passed.
 *
 * A narrow failure (loss below 5 times the limit) is tried once more, because a single disturbance of the machine is enough
 * for it; that is allowed twice a search, for every contender alike.
 *
 * A sender that shares its processors with the tunnel may offer less than it was asked for. The search goes on as long as
 * asking for more gives more; when two trials in a row gain less than 2 %, the sender is the limit: `senderLimited`.
 */

/** Share of packets that may be lost: "less than 1 %". */
export const LOSS_LIMIT = 0.01;
const STEP_UP = 1.25;
const STEP_DOWN = 0.8;
const KEPT_PACE = 0.95;
const GAIN = 1.02;
const STALLS = 2;
const NARROW = 5;
const SECOND_TRIES = 2;

/**
 * @typedef {object} Probe one trial at a rate
 * @property {number} offered packets/s that were really sent
 * @property {number} loss share of the sent packets, 0 to 1
 *
 * @typedef {object} SearchResult
 * @property {number} rate the highest offered rate that passed, the flood's included; 0 when none did
 * @property {boolean} senderLimited
 * @property {(Probe & { asked: number })[]} probes in order
 */

/**
 * @param {(rate: number) => Promise<Probe>} probe
 * @param {{ flood: Probe, start: number, tolerance?: number, maxProbes?: number }} options `start`: packets/s
 * @returns {Promise<SearchResult>}
 */
export async function searchRate(probe, { flood, start, tolerance = 0.05, maxProbes = 12 }) {
  const floodPasses = flood.loss < LOSS_LIMIT;
  /** @type {SearchResult} */
  const result = { rate: floodPasses ? flood.offered : 0, senderLimited: false, probes: [] };
  let passed = 0;
  let failed = Infinity;
  let secondTries = SECOND_TRIES;
  let stalls = floodPasses ? STALLS - 1 : 0;
  let asked = floodPasses ? flood.offered * STEP_UP : start;
  while (result.probes.length < maxProbes && asked >= 1) {
    let trial = await probe(asked);
    result.probes.push({ asked, ...trial });
    const narrow = trial.loss >= LOSS_LIMIT && trial.loss < NARROW * LOSS_LIMIT;
    if (narrow && secondTries > 0 && result.probes.length < maxProbes) {
      secondTries -= 1;
      trial = await probe(asked);
      result.probes.push({ asked, ...trial });
    }
    if (trial.loss < LOSS_LIMIT) {
      const stalled = trial.offered < KEPT_PACE * asked && trial.offered < GAIN * result.rate;
      stalls = stalled ? stalls + 1 : 0;
      passed = Math.max(passed, asked);
      result.rate = Math.max(result.rate, trial.offered);
      if (stalls >= STALLS) {
        result.senderLimited = true;
        break;
      }
    } else {
      failed = Math.min(failed, asked);
    }
    if (failed <= passed * (1 + tolerance)) break;
    if (failed === Infinity) asked *= STEP_UP;
    else if (passed > 0) asked = Math.sqrt(passed * failed);
    else asked = Math.min(failed * STEP_DOWN, trial.offered);
    if (floodPasses && asked < flood.offered) break; // below what has passed already
  }
  return result;
}
