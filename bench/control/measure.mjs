// @ts-check
/**
 * The measurements of lease control, as a program inside host 1's namespace: `node bench/control/measure.mjs CONFIG`, CONFIG
 * as JSON ({@link MeasureConfig}). Progress goes to stderr; the last line of stdout is the result. Ends what it started on
 * SIGTERM.
 */
import { findProgram } from '../contenders/contender.mjs';
import { killAllChildren } from '../lib/process.mjs';
import { Etcd } from './etcd.mjs';
import { measureAgents, measureForwarding } from './forwarding.mjs';
import { measurePeers } from './peers.mjs';
import { measureScale } from './scale.mjs';
import { measureStarts } from './start.mjs';

/**
 * @typedef {object} Settings
 * @property {number} starts cold starts of each program
 * @property {number} changes joins and leaves
 * @property {number} agents joins of a real agent
 * @property {number} churnSeconds
 *
 * @typedef {object} MeasureConfig
 * @property {import('./agents.mjs').Place} place host 1, without a namespace: this process is in it
 * @property {import('./agents.mjs').Place} other host 2
 * @property {string} workDir
 * @property {Settings} settings
 *
 * @typedef {object} Context
 * @property {Etcd} etcd
 * @property {import('./agents.mjs').Place} place
 * @property {import('./agents.mjs').Place} other
 * @property {string} workDir
 * @property {Settings} settings
 * @property {readonly ('podwire' | 'flanneld')[]} programs
 * @property {AbortSignal} signal
 * @property {(line: string) => void} log
 *
 * @typedef {object} MeasureResult
 * @property {import('./start.mjs').Starts} starts
 * @property {{ join: number[], leave: number[] }} peers milliseconds
 * @property {{ join: number[], leave: number[] }} forwarding milliseconds
 * @property {number[]} agents milliseconds
 * @property {Record<string, number>} scale metrics
 */

/** @param {MeasureConfig} config */
async function measure({ place, other, workDir, settings }) {
  const stop = new AbortController();
  process.on('SIGTERM', () => stop.abort(new Error('stopped')));
  process.on('exit', killAllChildren);
  const { etcd, daemon } = await Etcd.start(place.address, workDir, stop.signal);
  /** @type {Context} */
  const context = {
    etcd,
    place,
    other,
    workDir,
    settings,
    programs: findProgram('flanneld') === undefined ? ['podwire'] : ['podwire', 'flanneld'],
    signal: stop.signal,
    log: (line) => process.stderr.write(`control: ${line}\n`),
  };
  try {
    return {
      starts: await measureStarts(context),
      peers: await measurePeers(context),
      forwarding: await measureForwarding(context),
      agents: await measureAgents(context),
      scale: await measureScale(context),
    };
  } finally {
    await daemon.stop();
  }
}

try {
  const result = await measure(JSON.parse(process.argv[2] ?? '{}'));
  process.stdout.write(`${JSON.stringify(result)}\n`);
} catch (error) {
  process.stderr.write(`control failed: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
