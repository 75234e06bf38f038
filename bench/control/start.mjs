// @ts-check
/** Cold start: from the start of the process to its subnet.env, with an etcd that answers and no lease of ours in it. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileAppears, startAgent } from './agents.mjs';
import { configOf, leaseKeyOf } from './etcd.mjs';

const NETWORK = '10.77.0.0/16';

/**
 * @param {import('./measure.mjs').Context} context
 * @returns {Promise<Record<'podwire' | 'flanneld', number[]>>} milliseconds
 */
export async function measureStarts({ etcd, place, workDir, signal, settings, programs, log }) {
  /** @type {Record<'podwire' | 'flanneld', number[]>} */
  const found = { podwire: [], flanneld: [] };
  const prefix = '/bench/start';
  await etcd.write([configOf(prefix, NETWORK)]);
  log(`start: ${settings.starts} times ${programs.join(' and ')}`);
  for (let trial = 0; trial < settings.starts; trial++) {
    for (const program of programs) {
      const directory = join(workDir, `start-${program}-${trial}`);
      const from = performance.now();
      const agent = startAgent(program, place, { endpoint: etcd.endpoint, prefix, directory });
      try {
        await fileAppears(agent.subnetFile, agent.daemon, signal);
        found[program].push(performance.now() - from);
      } finally {
        await agent.daemon.stop();
      }
      rmSync(directory, { recursive: true, force: true });
      // The next one is a new host again.
      await etcd.write(Array.from({ length: 100 }, (_, i) => ({ key: leaseKeyOf(prefix, `10.77.${i + 1}.0`) })));
    }
  }
  for (const program of programs) log(`start, ${program}: ${found[program].map((ms) => ms.toFixed(0)).join(' ')} ms`);
  return found;
}
