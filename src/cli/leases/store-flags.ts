/** The flags that say which lease store is meant: the agent's own, so that what works for it works here. */
import { type Command, Option } from 'commander';
import { FLAGS, type Flag } from '../../agent/flags.js';
import { readStoreConfig } from '../../agent/store-config.js';
import { openStore } from '../../agent/stores.js';
import type { LeaseStore, StoreAdmin } from '../../control/lease.js';
import { messageOf, PodwireError } from '../../errors.js';
import { UsageError } from '../usage.js';

const STORE_FLAGS: readonly Flag[] = FLAGS.filter(({ name, section }) => name === 'store' || section === 'etcd');

function optionOf({ name, value, help, default: fallback }: Flag): Option {
  const shown = fallback === undefined || fallback === '' ? help : `${help} (default: ${fallback})`;
  return new Option(`--${name} <${value}>`, shown).helpGroup('Lease store:');
}

/** Adds the store's flags to a command. */
export function withStoreFlags(command: Command): Command {
  for (const flag of STORE_FLAGS) command.addOption(optionOf(flag));
  return command;
}

export interface OpenedStore extends AsyncDisposable {
  readonly store: LeaseStore;
  readonly admin: StoreAdmin;
}

/**
 * The store that the flags and the environment (FLANNELD_ETCD_…, PODWIRE_STORE) name; warnings go to `warn`.
 *
 * @throws {UsageError} for flags that cannot be; {PodwireError} UNSUPPORTED where leases cannot be administered.
 */
export async function openNamedStore(command: Command, warn: (line: string) => void): Promise<OpenedStore> {
  const options = command.opts<Record<string, string | undefined>>();
  const given = Object.fromEntries(STORE_FLAGS.map((flag) => [flag.name, options[optionOf(flag).attributeName()]]));
  let store: LeaseStore;
  try {
    const read = readStoreConfig(given, process.env);
    for (const line of read.warnings) warn(line);
    store = await openStore(read.store);
  } catch (error) {
    const isUsage = error instanceof PodwireError && error.code === 'INVALID_ARGUMENT';
    throw isUsage ? new UsageError(`${messageOf(error)}; see podwire leases --help`, { cause: error }) : error;
  }
  const { admin } = store;
  if (admin === undefined) {
    await store[Symbol.asyncDispose]();
    throw new PodwireError('UNSUPPORTED', `leases of ${store.description} cannot be administered from here`);
  }
  return { store, admin, [Symbol.asyncDispose]: () => store[Symbol.asyncDispose]() };
}
