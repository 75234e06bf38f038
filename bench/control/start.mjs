// @ts-check
/**
 * Cold start: from the start of the process to its subnet.env, with an etcd that answers and no lease of ours in it. The
 * first start on a host compiles the program; it and those after it are rows of their own.
 */
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { waitFor } from '../lib/process.mjs';
import { fileAppears, startAgent } from './agents.mjs';
import { configOf, leaseKeyOf } from './etcd.mjs';

const NETWORK = '10.77.0.0/16';

/**
 * Milliseconds; `first`: of podwire without compiled code of an earlier start.
 *
 * @typedef {Record<'podwire' | 'first' | 'flanneld', number[]>} Starts
 */

/**
 * @param {import('./measure.mjs').Context} context
 * @returns {Promise<Starts>}
 */
export async function measureStarts({ etcd, place, workDir, signal, settings, programs, log }) {
  const prefix = '/bench/start';
  const compiled = join(workDir, 'compiled');
  await etcd.write([configOf(prefix, NETWORK)]);
  let count = 0;
  /**
   * @param {'podwire' | 'flanneld'} program
   * @param {{ compiled?: string }} [options]
   * @param {() => Promise<void>} [meanwhile] before the agent is stopped
   */
  const start = async (program, options = {}, meanwhile = async () => {}) => {
    const directory = join(workDir, `start-${count++}`);
    const from = performance.now();
    const agent = startAgent(program, place, { endpoint: etcd.endpoint, prefix, directory, ...options });
    try {
      await fileAppears(agent.subnetFile, agent.daemon, signal);
      const tookMs = performance.now() - from;
      await meanwhile();
      return tookMs;
    } finally {
      await agent.daemon.stop();
      rmSync(directory, { recursive: true, force: true });
      // The next one is a new host again.
      await etcd.write(Array.from({ length: 100 }, (_, i) => ({ key: leaseKeyOf(prefix, `10.77.${i + 1}.0`) })));
    }
  };
  log(`start: ${settings.starts} times ${programs.join(' and ')}`);
  const isKept = () => readdirSync(compiled).some((name) => name.endsWith('.cache'));
  await start('podwire', { compiled }, async () => {
    await waitFor(`compiled code in ${compiled}`, isKept, { signal, timeoutMs: 30_000 });
  });
  /** @type {Starts} */
  const found = { podwire: [], first: [], flanneld: [] };
  for (let trial = 0; trial < settings.starts; trial++) {
    found.first.push(await start('podwire'));
    found.podwire.push(await start('podwire', { compiled }));
    if (programs.includes('flanneld')) found.flanneld.push(await start('flanneld'));
  }
  for (const [name, times] of Object.entries(found)) {
    log(`start, ${name}: ${times.map((ms) => ms.toFixed(0)).join(' ')} ms`);
  }
  return found;
}
