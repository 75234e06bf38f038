// @ts-check
/** What every contender offers, and what several of them share. */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { Daemon, waitFor } from '../lib/process.mjs';

/**
 * @typedef {'throughput' | 'pps' | 'latency' | 'agent'} Measure
 *
 * @typedef {object} StartContext
 * @property {string} workDir a directory of this start alone
 * @property {AbortSignal} signal
 *
 * @typedef {object} Session a tunnel that runs; the pods do not exist yet
 * @property {readonly import('../lib/process.mjs').Daemon[]} daemons processes of the tunnel itself: their processor time and
 *   memory count as the tunnel's
 * @property {readonly [string, string]} [subnets] of the pods of host 1 and 2, when the contender chose them
 * @property {() => Promise<string[]>} stop returns what went wrong
 *
 * @typedef {object} Contender
 * @property {string} name
 * @property {string} about one line for the report
 * @property {import('../lib/topology.mjs').Family} [family] of all addresses, inside and outside; IPv4 unless it says so
 * @property {readonly Measure[]} measures what it takes part in unless --contenders names it
 * @property {() => Promise<{ version: string } | { missing: string }>} available
 * @property {(topology: import('../lib/topology.mjs').Topology, context: StartContext) => Promise<Session>} start
 */

/** Where programs are looked for, as a PATH: the directory PODWIRE_BENCH_BIN, then the PATH itself. */
export function searchPath() {
  return [process.env['PODWIRE_BENCH_BIN'], process.env['PATH']].filter(Boolean).join(':');
}

/**
 * Looks along {@link searchPath}.
 * @param {string} name
 * @returns {string | undefined} path
 */
export function findProgram(name) {
  for (const directory of searchPath().split(':').filter(Boolean)) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // not there
    }
  }
  return undefined;
}

/** @param {string} name */
export function missingProgram(name) {
  return { missing: `${name} is neither on the PATH nor in the directory PODWIRE_BENCH_BIN` };
}

/**
 * Stops daemons in reverse order of their start.
 * @param {readonly import('../lib/process.mjs').Daemon[]} daemons
 * @returns {Promise<string[]>}
 */
export async function stopAll(daemons) {
  const problems = [];
  for (const daemon of daemons.toReversed()) {
    const problem = await daemon.stop();
    if (problem !== undefined) problems.push(problem);
  }
  return problems;
}

/**
 * Starts a program that prints `ready` once it forwards, and waits for that.
 * @param {import('../lib/process.mjs').Daemon[]} daemons gets it
 * @param {string} name
 * @param {readonly string[]} argv
 * @param {{ namespace: string, logFile: string }} place
 * @param {AbortSignal} signal
 */
export async function startReady(daemons, name, argv, place, signal) {
  const daemon = new Daemon(name, argv, place);
  daemons.push(daemon);
  await waitFor(`${name} to be ready`, async () => daemon.output().includes('ready\n'), {
    signal,
    alive: daemons,
    timeoutMs: 20_000,
  });
}

/**
 * Starts several daemons so that a failure half-way stops those that run already.
 * @template T
 * @param {(daemons: import('../lib/process.mjs').Daemon[]) => Promise<T>} body pushes what it starts
 * @returns {Promise<T>}
 */
export async function startingDaemons(body) {
  /** @type {import('../lib/process.mjs').Daemon[]} */
  const daemons = [];
  try {
    return await body(daemons);
  } catch (error) {
    await stopAll(daemons);
    throw error;
  }
}
