/**
 * A network config that changes while the agent runs: another backend, other parameters of it, another network. The
 * agent leaves the old overlay and joins the new one in the same process; the lease's subnet stays where it still fits.
 *
 * A change is followed at once on SIGHUP, and without one when it is found on two looks in a row, so that nobody
 * follows a config that is only half written.
 */
import { messageOf } from '../errors.js';
import type { LeaseStore, Logger, NetworkConfig } from '../index.js';

/** Fields that a joined overlay is built on. The others count when a lease is acquired. */
const FOLLOWED = ['enableIPv4', 'enableIPv6', 'enableNFTables', 'network', 'ipv6Network', 'backend'] as const;

/** One clause a field that differs: `backend {"Type":"udp"} -> {"Type":"vxlan"}`; secrets are left out. */
export function configChanges(before: NetworkConfig, after: NetworkConfig): string[] {
  return FOLLOWED.filter((field) => exact(before[field]) !== exact(after[field])).map((field) => {
    const [was, is] = [show(before[field]), show(after[field])];
    return was === is ? `${field} (a secret)` : `${field} ${was} -> ${is}`;
  });
}

export interface ConfigFollowerOptions {
  readonly store: LeaseStore;
  readonly log: Logger;
  /** The config of the overlay that runs; undefined while there is none. */
  readonly current: () => NetworkConfig | undefined;
  /** Hears what is different; called again only after the overlay runs with another config. */
  readonly onChange: (changes: readonly string[]) => void;
  /** Milliseconds between looks; default 30,000. */
  readonly periodMs?: number;
}

const PERIOD_MS = 30_000;

export class ConfigFollower {
  readonly #options: ConfigFollowerOptions;
  readonly #timer: NodeJS.Timeout;
  /** What the look before this one found. */
  #seen = '';
  #fault = '';
  #isLooking = false;

  constructor(options: ConfigFollowerOptions) {
    this.#options = options;
    this.#timer = setInterval(() => void this.look(), options.periodMs ?? PERIOD_MS).unref();
  }

  /**
   * Reads the config. Never rejects.
   *
   * @param isSure follow a change on this look already.
   * @returns whether a change is followed now.
   */
  async look(isSure = false): Promise<boolean> {
    if (this.#isLooking) return false;
    this.#isLooking = true;
    const { store, log, current, onChange } = this.#options;
    try {
      const after = await store.network();
      const before = current();
      if (before === undefined) return false;
      const changes = configChanges(before, after);
      const found = changes.length === 0 ? '' : exact(FOLLOWED.map((field) => exact(after[field])));
      if (found !== '' && (isSure || found === this.#seen)) {
        this.#seen = '';
        onChange(changes);
        return true;
      }
      if (found !== '') log.info({ changed: changes.join(', ') }, 'the network config has changed');
      this.#seen = found;
      this.#fault = '';
    } catch (error) {
      // An outage is the store's to tell; a config that cannot be read is told once, and nothing is followed.
      const fault = messageOf(error);
      // On SIGHUP whoever reloads says so.
      if (fault !== this.#fault && !isSure)
        log.warn({}, `the network config cannot be read, going on as before: ${fault}`);
      this.#fault = fault;
      this.#seen = '';
    } finally {
      this.#isLooking = false;
    }
    return false;
  }

  close(): void {
    clearInterval(this.#timer);
  }
}

function exact(value: unknown): string {
  if (value === undefined) return 'none';
  if (typeof value !== 'object' || value === null || !('raw' in value)) return JSON.stringify(value);
  // Names are read without regard to case, and in any order.
  const fields = Object.entries((value as NetworkConfig['backend']).raw)
    .map(([name, field]): [string, unknown] => [name.toLowerCase(), field])
    .filter(([name]) => name !== 'type');
  return JSON.stringify([(value as NetworkConfig['backend']).type, fields.sort(([a], [b]) => (a < b ? -1 : 1))]);
}

/** Addresses and prefixes as text, a Backend as its object without secrets. */
function show(value: NetworkConfig[(typeof FOLLOWED)[number]]): string {
  if (value === undefined) return 'none';
  if (typeof value !== 'object' || !('raw' in value)) return value.toString();
  return JSON.stringify(value.raw, (key, field: unknown) => (/^(psk|accesskeysecret)$/i.test(key) ? '…' : field));
}
