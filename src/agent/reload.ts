/**
 * SIGHUP: what can be followed while packets flow is followed, and the rest is said aloud. Nothing here ends the agent.
 */
import { messageOf } from '../errors.js';
import type { LeaseStore, Logger, NetworkConfig, Overlay } from '../index.js';
import type { AgentConfig } from './config.js';

export interface ReloadContext {
  readonly log: Logger;
  readonly store: LeaseStore;
  readonly overlay: Overlay;
}

/** Flags whose new value counts from now on; all others are read at the start only. */
const FOLLOWED: ReadonlySet<string> = new Set(['log-level', 'v', 'environment-file']);

/** The flags that differ and that a running agent cannot follow, as `--iface`; never their values. */
export function needRestart(before: AgentConfig, after: AgentConfig): string[] {
  return [...after.settings]
    .filter(([name, value]) => !FOLLOWED.has(name) && before.settings.get(name) !== value)
    .map(([name]) => `--${name}`);
}

/** Reads again what lies outside of the agent: network config and underlay; and writes the subnet file. */
export async function reloadSurroundings({ log, store, overlay }: ReloadContext): Promise<void> {
  await attempt(log, 'the network config cannot be read again, going on with the one of the start', async () => {
    reportNetworkConfig(log, overlay.network, await store.network());
  });
  await attempt(log, 'the subnet file is not written again', () => overlay.refresh());
}

async function attempt(log: Logger, problem: string, step: () => Promise<void>): Promise<void> {
  try {
    await step();
  } catch (error) {
    log.error({}, `${problem}: ${messageOf(error)}`);
  }
}

const COUNTS_LATER = [
  'subnetLen',
  'subnetMin',
  'subnetMax',
  'ipv6SubnetLen',
  'ipv6SubnetMin',
  'ipv6SubnetMax',
] as const satisfies readonly (keyof NetworkConfig)[];

/** What counts at the next acquire; what an overlay is built on is follow-config.ts's. */
function reportNetworkConfig(log: Logger, before: NetworkConfig, after: NetworkConfig): void {
  const show = (config: NetworkConfig, field: (typeof COUNTS_LATER)[number]): string =>
    config[field]?.toString() ?? 'none';
  const changed = COUNTS_LATER.filter((field) => show(before, field) !== show(after, field)).map(
    (field) => `${field} ${show(before, field)} -> ${show(after, field)}`,
  );
  if (changed.length > 0) {
    log.info({ changed: changed.join(', ') }, 'the network config has changed: it counts when a lease is acquired');
  }
}
