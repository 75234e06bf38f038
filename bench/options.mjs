// @ts-check
/** The command line of the benchmark, and the durations that follow from it. */
import { parseArgs } from 'node:util';
import { BACKENDS, CONTENDERS } from './contenders/index.mjs';
import { PACES } from './latency/rtt.mjs';
import { BenchError } from './lib/process.mjs';
import { DEFAULT_INNER_MTU } from './lib/topology.mjs';

/** @typedef {import('./contenders/contender.mjs').Measure} Measure */

/** @type {Readonly<Record<string, { measures: readonly Measure[], micro: boolean, control?: true, contenders?: readonly string[] }>>} */
const MODES = {
  throughput: { measures: ['throughput'], micro: false },
  pps: { measures: ['pps'], micro: false },
  latency: { measures: ['latency'], micro: false },
  agent: { measures: ['agent'], micro: false },
  micro: { measures: [], micro: true },
  control: { measures: [], micro: false, control: true },
  backends: { measures: ['throughput', 'pps', 'latency'], micro: false, contenders: BACKENDS },
  all: { measures: ['throughput', 'pps', 'latency', 'agent'], micro: true },
};

export const USAGE = `Usage: npm run bench -- MODE [options]

MODE
  throughput   TCP with iperf3, 1 and 4 streams; processor time per GB; memory
  pps          UDP packet rates, 64 and 1392 bytes: flood, and the highest rate with less than 1 % loss
  latency      round trips: ping-pong, and paced at ${PACES.join(', ')} packets/s
  agent        an idle agent's processor time and memory; garbage collections of its
               workers under load; route updates while packets pass
  micro        single functions: look-up, update, forwarder, native call, running a program
  control      lease control on a real etcd: cold start (with flanneld where it is there), how
               soon joins and leaves are seen and forwarded, 5,000 leases, 1,000 changes a second
  backends     throughput, pps and latency of podwire's backends: ${BACKENDS.join(', ')}
  all          all of these but control and backends; several with commas: throughput,latency

  --rounds N           rounds; in each every contender runs once, in rotated order (default 3)
  --seconds S          length of one TCP, ping-pong or idle measurement (default 5)
  --underlay U         veth, nic or both (default both)
  --contenders A,B     only these: ${CONTENDERS.map((contender) => contender.name).join(', ')}
                       (default: all that are there and take part in the mode)
  --mtu BYTES          MTU of the pods, for all contenders (default ${DEFAULT_INNER_MTU}); not all allow more than 1440
  --pace sleep|spin    how the sender of paced packet rates waits between batches (default sleep)
  --json FILE          everything measured, as one JSON document
  --quick              fractions of a second each: shows that it works, the figures mean nothing
  --help               this text

Programs of other projects are looked for in the directory PODWIRE_BENCH_BIN, then on the PATH.`;

/**
 * @typedef {object} Durations seconds, unless the name says otherwise
 * @property {number} tcpSeconds whole
 * @property {number} tcpOmitSeconds whole
 * @property {number} floodSeconds
 * @property {number} probeSeconds
 * @property {number} maxProbes
 * @property {number} pingSeconds
 * @property {readonly number[]} paces
 * @property {(rate: number) => number} pacedSeconds
 * @property {number} warmupSeconds of a latency measurement
 * @property {number} bedWarmupSeconds of the tunnel
 * @property {number} idleSeconds
 * @property {number} garbageSeconds
 * @property {number} updateSeconds
 * @property {number} noiseSeconds
 *
 * @typedef {object} Options
 * @property {readonly string[]} modes
 * @property {readonly Measure[]} measures
 * @property {boolean} micro
 * @property {boolean} control
 * @property {number} rounds
 * @property {number} seconds
 * @property {readonly import('./lib/topology.mjs').Underlay[]} underlays
 * @property {readonly string[] | undefined} contenders names; undefined = the mode's
 * @property {number} mtu of the pods
 * @property {'sleep' | 'spin'} pace
 * @property {string | undefined} jsonFile
 * @property {boolean} quick
 * @property {Durations} durations
 */

/**
 * @param {number} seconds
 * @returns {Durations}
 */
function fullDurations(seconds) {
  return {
    tcpSeconds: Math.max(1, Math.round(seconds)),
    tcpOmitSeconds: 1,
    floodSeconds: Math.min(seconds, 3),
    probeSeconds: 1,
    maxProbes: 12,
    pingSeconds: seconds,
    paces: PACES,
    pacedSeconds: (rate) => Math.max(2, Math.min(seconds, 1000 / rate)),
    warmupSeconds: 0.3,
    bedWarmupSeconds: 1,
    idleSeconds: Math.max(seconds, 5),
    garbageSeconds: 10,
    updateSeconds: 5,
    noiseSeconds: 2,
  };
}

/** @type {Durations} */
const QUICK = {
  tcpSeconds: 1,
  tcpOmitSeconds: 0,
  floodSeconds: 0.2,
  probeSeconds: 0.2,
  maxProbes: 3,
  pingSeconds: 0.2,
  paces: PACES,
  pacedSeconds: () => 0.1,
  warmupSeconds: 0.05,
  bedWarmupSeconds: 0.1,
  idleSeconds: 0.5,
  garbageSeconds: 1,
  updateSeconds: 0.5,
  noiseSeconds: 0.2,
};

/**
 * @param {string} option
 * @param {string} text
 * @param {number} low
 * @param {number} high
 */
function number(option, text, low, high) {
  const value = Number(text);
  if (text.trim() === '' || !(value >= low && value <= high)) {
    throw new BenchError(`--${option} must be a number from ${low} to ${high}, got "${text}"`);
  }
  return value;
}

/**
 * @param {string} option
 * @param {string} text
 * @param {number} low
 * @param {number} high
 */
function wholeNumber(option, text, low, high) {
  const value = number(option, text, low, high);
  if (!Number.isInteger(value)) throw new BenchError(`--${option} must be a whole number, got "${text}"`);
  return value;
}

/**
 * @template {string} T
 * @param {string} option
 * @param {string} text
 * @param {readonly T[]} choices
 * @returns {T}
 */
function choice(option, text, choices) {
  const found = choices.find((name) => name === text);
  if (found === undefined) throw new BenchError(`${option} must be one of ${choices.join(', ')}, got "${text}"`);
  return found;
}

/** @param {readonly string[]} argv */
function parse(argv) {
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        rounds: { type: 'string', default: '3' },
        seconds: { type: 'string', default: '5' },
        underlay: { type: 'string', default: 'both' },
        contenders: { type: 'string' },
        mtu: { type: 'string', default: String(DEFAULT_INNER_MTU) },
        pace: { type: 'string', default: 'sleep' },
        json: { type: 'string' },
        quick: { type: 'boolean', default: false },
        help: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    throw new BenchError(error instanceof Error ? error.message : String(error));
  }
}

/**
 * @param {readonly string[]} argv
 * @returns {Options | 'help'}
 * @throws {BenchError} a wrong option, with its value
 */
export function parseOptions(argv) {
  const { values, positionals } = parse(argv);
  if (values.help) return 'help';
  if (positionals.length !== 1) {
    throw new BenchError(
      `give one mode, or several with commas, of ${Object.keys(MODES).join(', ')}; got "${positionals.join(' ')}"`,
    );
  }
  const modes = (positionals[0] ?? '').split(',').map((name) => choice('MODE', name.trim(), Object.keys(MODES)));
  const chosen = modes.map((mode) => /** @type {typeof MODES['all']} */ (MODES[mode]));
  const rounds = wholeNumber('rounds', values.rounds, 1, 100);
  const seconds = number('seconds', values.seconds, 1, 120);
  const underlay = choice('--underlay', values.underlay, ['veth', 'nic', 'both']);
  const ofModes = chosen.flatMap(({ contenders }) => contenders ?? []);
  const names =
    values.contenders?.split(',').map((name) =>
      choice(
        '--contenders',
        name.trim(),
        CONTENDERS.map((one) => one.name),
      ),
    ) ?? (ofModes.length > 0 ? [...new Set(ofModes)] : undefined);
  return {
    modes,
    measures: [...new Set(chosen.flatMap(({ measures }) => measures))],
    micro: chosen.some(({ micro }) => micro),
    control: chosen.some(({ control }) => control === true),
    rounds,
    seconds,
    underlays: underlay === 'both' ? ['veth', 'nic'] : [underlay],
    contenders: names,
    mtu: wholeNumber('mtu', values.mtu, 576, 1472),
    pace: choice('--pace', values.pace, ['sleep', 'spin']),
    jsonFile: values.json,
    quick: values.quick,
    durations: values.quick ? QUICK : fullDurations(seconds),
  };
}
