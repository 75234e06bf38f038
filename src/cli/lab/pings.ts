/** The pings between the first two pods that give the live view its round trips. */
import type { Lab } from './lab.js';

const INTERVAL_MS = 10;

export async function startPings(lab: Lab): Promise<void> {
  const [a, b] = lab.pair;
  await a.endpoint.call('startPings', { host: b.pod.address.toString(), intervalMs: INTERVAL_MS });
}

export async function stopPings(lab: Lab): Promise<void> {
  const [a] = lab.pair;
  await a.endpoint.call('stopPings', {});
}
