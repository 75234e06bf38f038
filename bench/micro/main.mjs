// @ts-check
/**
 * Micro-benchmarks: single functions of the built package, without packets, most with benny. Each suite is a script of its own,
 * run in a process of its own (one suite's garbage and compiled code do not meet another's), also by hand:
 *
 *   node bench/micro/fib.mjs [--json FILE] [--quick]
 *
 * The file it writes is `{ suite, results: [{ name, ns, errorPercent }] }`, times per unit of work. The names below make
 * figures of the report from it; they stand there as contender and underlay "micro".
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BenchError, run } from '../lib/process.mjs';

const SUITES = ['fib', 'forwarder', 'calls', 'programs'];
const TIMEOUT_MS = 300_000;

/** @typedef {{ suite: string, results: { name: string, ns: number, errorPercent: number }[] }} SuiteResult */

/**
 * Figures of the report (report/metrics.mjs) from the rows of the suites, nanoseconds.
 * @type {Readonly<Record<string, (ns: (suite: string, row: string) => number | undefined) => number | undefined>>}
 */
const FIGURES = {
  'lookup4.random': (ns) => ns('fib', 'look-up IPv4'),
  'lookup6.random': (ns) => ns('fib', 'look-up IPv6'),
  'update.rate': (ns) => quotient(1e9, ns('fib', 'update IPv4 beside a reader')),
  'forwarder.ratio': (ns) => quotient(ns('forwarder', 'egress, 100,000 prefixes'), ns('forwarder', 'egress, 1 prefix')),
};

/**
 * @param {number | undefined} above
 * @param {number | undefined} below
 */
function quotient(above, below) {
  return above === undefined || below === undefined ? undefined : above / below;
}

/**
 * @param {readonly SuiteResult[]} suites
 * @returns {Record<string, number>}
 */
export function figures(suites) {
  /**
   * @param {string} suite
   * @param {string} row
   */
  const ns = (suite, row) => suites.find((one) => one.suite === suite)?.results.find((one) => one.name === row)?.ns;
  /** @type {Record<string, number>} */
  const values = {};
  for (const [metric, from] of Object.entries(FIGURES)) {
    const value = from(ns);
    if (value !== undefined) values[metric] = value;
  }
  return values;
}

/**
 * @param {{ quick: boolean, log: (line: string) => void, signal: AbortSignal }} settings
 * @returns {Promise<{ samples: import('../rounds.mjs').Sample[], raw: readonly SuiteResult[], problems: string[] }>}
 */
export async function runMicro({ quick, log, signal }) {
  const startedAt = new Date().toISOString();
  /** @type {SuiteResult[]} */
  const raw = [];
  /** @type {string[]} */
  const problems = [];
  const directory = mkdtempSync(join(tmpdir(), 'podwire-bench-micro-'));
  try {
    for (const name of SUITES) {
      const script = fileURLToPath(new URL(`./${name}.mjs`, import.meta.url));
      if (!existsSync(script)) continue;
      log(`micro: ${name}`);
      const file = join(directory, `${name}.json`);
      try {
        await run([process.execPath, script, '--json', file, ...(quick ? ['--quick'] : [])], {
          timeoutMs: TIMEOUT_MS,
          signal,
        });
        const result = /** @type {SuiteResult} */ (JSON.parse(readFileSync(file, 'utf8')));
        raw.push(result);
        for (const row of result.results)
          log(`  ${row.name}: ${row.ns.toFixed(1)} ns (±${row.errorPercent.toFixed(1)} %)`);
      } catch (error) {
        signal.throwIfAborted();
        if (!(error instanceof BenchError)) throw error;
        problems.push(`micro ${name}: ${error.message}`);
      }
    }
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
  const values = figures(raw);
  /** @type {import('../rounds.mjs').Sample} */
  const sample = {
    round: 1,
    underlay: 'micro',
    contender: 'micro',
    startedAt,
    values,
    raw: {},
    machine: { busyPercent: 0, stealPercent: 0, seconds: 0 },
  };
  return { samples: Object.keys(values).length > 0 ? [sample] : [], raw, problems };
}
