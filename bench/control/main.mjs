// @ts-check
/**
 * Lease control on a real etcd: cold start, how soon a join and a leave are seen and forwarded, and a network of 5,000
 * hosts. Runs inside a bed of its own; the samples stand under "control".
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findProgram } from '../contenders/contender.mjs';
import { BenchError, Daemon, waitFor } from '../lib/process.mjs';
import { Topology } from '../lib/topology.mjs';

/** Row of the samples; it stands beside the underlays. */
export const CONTROL = 'control';

const PROGRAM = fileURLToPath(new URL('./measure.mjs', import.meta.url));
const TIMEOUT_MS = 5 * 60_000;

/** @type {import('./measure.mjs').Settings} */
const FULL = { starts: 5, changes: 50, agents: 5, churnSeconds: 5 };
/** @type {import('./measure.mjs').Settings} */
const QUICK = { starts: 1, changes: 3, agents: 1, churnSeconds: 1 };

/**
 * Nearest rank.
 * @param {readonly number[]} values
 * @param {number} share
 */
export function percentile(values, share) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN;
}

/**
 * @param {{ quick: boolean, log: (line: string) => void, signal: AbortSignal }} settings
 * @returns {Promise<{ samples: import('../rounds.mjs').Sample[], problems: string[] }>}
 */
export async function runControl({ quick, log, signal }) {
  if (findProgram('etcd') === undefined) {
    throw new BenchError('control needs etcd: it is neither on the PATH nor in the directory PODWIRE_BENCH_BIN');
  }
  if (findProgram('flanneld') === undefined) log('control: without flanneld, which is not there to compare with');
  const startedAt = new Date().toISOString();
  const workDir = mkdtempSync(join(tmpdir(), 'podwire-bench-control-'));
  const topology = await Topology.create('veth', signal);
  /** @type {string[]} */
  const problems = [];
  /** @type {import('../rounds.mjs').Sample[]} */
  let samples = [];
  try {
    const result = await measureInside(topology, workDir, quick ? QUICK : FULL, { log, signal });
    samples = samplesOf(result, startedAt);
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof BenchError)) throw error;
    problems.push(`control: ${error.message}`);
  } finally {
    problems.push(...(await topology.destroy()));
    rmSync(workDir, { recursive: true, force: true });
  }
  return { samples, problems };
}

/**
 * @param {Topology} topology
 * @param {string} workDir
 * @param {import('./measure.mjs').Settings} settings
 * @param {{ log: (line: string) => void, signal: AbortSignal }} context
 * @returns {Promise<import('./measure.mjs').MeasureResult>}
 */
async function measureInside(topology, workDir, settings, { log, signal }) {
  const [one, two] = topology.hosts;
  /** @type {import('./measure.mjs').MeasureConfig} */
  const config = {
    place: { address: one.address, device: one.device },
    other: { netns: two.netns, address: two.address, device: two.device },
    workDir,
    settings,
  };
  const daemon = new Daemon('the control measurement', [process.execPath, PROGRAM, JSON.stringify(config)], {
    namespace: one.netns,
    logFile: join(workDir, 'measure.log'),
  });
  let shown = 0;
  try {
    const line = await waitFor(
      'the control measurement',
      () => {
        const lines = daemon.output().split('\n').slice(0, -1);
        for (const progress of lines.slice(shown)) if (!progress.startsWith('{')) log(progress);
        shown = lines.length;
        const failed = lines.find((one) => one.startsWith('control failed: '));
        if (failed !== undefined) throw new BenchError(failed.slice('control failed: '.length));
        return lines.find((one) => one.startsWith('{"starts"'));
      },
      { signal, alive: [daemon], timeoutMs: TIMEOUT_MS },
    );
    return JSON.parse(line);
  } finally {
    await daemon.stop(15_000);
  }
}

/**
 * @param {import('./measure.mjs').MeasureResult} result
 * @param {string} startedAt
 * @returns {import('../rounds.mjs').Sample[]}
 */
export function samplesOf({ starts, peers, forwarding, agents, scale }, startedAt) {
  /**
   * @param {number} round
   * @param {string} contender
   * @param {Record<string, number>} values
   * @param {object} raw
   */
  const sample = (round, contender, values, raw) => ({
    round,
    underlay: /** @type {const} */ ('control'),
    contender,
    startedAt,
    values,
    raw,
    machine: { busyPercent: 0, stealPercent: 0, seconds: 0 },
  });
  const others = {
    'control.seen.p50': percentile(peers.join, 0.5),
    'control.seen.p99': percentile(peers.join, 0.99),
    'control.gone.p50': percentile(peers.leave, 0.5),
    'control.gone.p99': percentile(peers.leave, 0.99),
    'control.join.p50': percentile(forwarding.join, 0.5),
    'control.join.p99': percentile(forwarding.join, 0.99),
    'control.leave.p50': percentile(forwarding.leave, 0.5),
    'control.leave.p99': percentile(forwarding.leave, 0.99),
    'control.agents': percentile(agents, 0.5),
    ...scale,
  };
  return [
    ...starts.podwire.map((ms, i) =>
      sample(
        i + 1,
        'podwire',
        { 'control.start': ms, 'control.first': starts.first[i] ?? NaN, ...(i === 0 ? others : {}) },
        i === 0 ? { peers, forwarding, agents } : {},
      ),
    ),
    ...starts.flanneld.map((ms, i) => sample(i + 1, 'flanneld', { 'control.start': ms }, {})),
  ];
}
