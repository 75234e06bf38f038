// @ts-check
/** Agents that take their leases from the benchmark's etcd. */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { findProgram } from '../contenders/contender.mjs';
import { BenchError, Daemon } from '../lib/process.mjs';

const CLI = fileURLToPath(new URL('../../dist/bundle/main.cjs', import.meta.url));

/** As deploy/podwire.service sets it. */
const NODE_OPTIONS = '--max-semi-space-size=4';

/**
 * @typedef {object} Place where an agent runs
 * @property {string} [netns] undefined: the one of this process
 * @property {string} address
 * @property {string} device
 */

/**
 * @param {'podwire' | 'flanneld'} program
 * @param {Place} place
 * @param {{ endpoint: string, prefix: string, directory: string, compiled?: string, extra?: readonly string[] }} options
 *   `directory` is its own; `compiled`: directory with compiled code of earlier starts, default: none
 * @returns {{ daemon: Daemon, subnetFile: string, controlSocket: string }}
 */
export function startAgent(program, place, { endpoint, prefix, directory, compiled, extra = [] }) {
  // An agent that runs for a while leaves its compiled code there; the service has such a directory too.
  const cacheDirectory = compiled ?? join(directory, 'compiled');
  for (const own of [directory, cacheDirectory]) mkdirSync(own, { recursive: true });
  const subnetFile = join(directory, 'subnet.env');
  const controlSocket = join(directory, 'agent.sock');
  const flags = [`-etcd-endpoints=${endpoint}`, `-etcd-prefix=${prefix}`, `-iface=${place.device}`];
  flags.push(`-public-ip=${place.address}`, `-subnet-file=${subnetFile}`, '-ip-masq=false');
  const own = [`--control-socket=${controlSocket}`, `--state-dir=${join(directory, 'state')}`, '--log-format=json'];
  const argv =
    program === 'flanneld'
      ? [findProgram('flanneld') ?? 'flanneld', ...flags]
      : [process.execPath, CLI, 'agent', ...flags, ...own, ...extra];
  const daemon = new Daemon(`${program} ${place.address}`, argv, {
    ...(place.netns === undefined ? {} : { namespace: place.netns }),
    logFile: join(directory, 'agent.log'),
    env: { NODE_OPTIONS, CACHE_DIRECTORY: cacheDirectory },
  });
  return { daemon, subnetFile, controlSocket };
}

/**
 * From a file's being there to the millisecond.
 * @param {string} file
 * @param {Daemon} daemon that makes it
 * @param {AbortSignal} signal
 */
export async function fileAppears(file, daemon, signal) {
  const deadline = performance.now() + 20_000;
  while (!existsSync(file)) {
    signal.throwIfAborted();
    daemon.assertAlive();
    if (performance.now() > deadline) throw new BenchError(`${daemon.name} made no ${file}: ${daemon.lastWords()}`);
    await delay(1);
  }
}

/**
 * A line of an agent's JSON log.
 * @param {Daemon} daemon
 * @param {string} message
 * @returns {{ atMs: number, fields: Record<string, any> } | undefined}
 */
export function logLine(daemon, message) {
  const line = daemon
    .output()
    .split('\n')
    .find((one) => one.startsWith('{') && one.includes(`"msg":${JSON.stringify(message)}`));
  if (line === undefined) return undefined;
  const fields = JSON.parse(line);
  return { atMs: Date.parse(fields.time), fields };
}
