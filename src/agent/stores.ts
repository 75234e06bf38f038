/** From the configuration of a store to the store; the agent and `podwire leases` share it. */
import type { LeaseStore } from '../control/lease.js';
import type { StoreConfig } from './store-config.js';

/**
 * Opens a store without asking it anything yet: a store that is away is the caller's to wait for. Only the chosen
 * store's modules are loaded. The caller disposes of it.
 *
 * @throws {PodwireError} `INVALID_ARGUMENT` for options that cannot work, such as a certificate that is none.
 */
export async function openStore(config: StoreConfig): Promise<LeaseStore> {
  if (config.kind === 'directory') {
    const { directoryStore } = await import('../control/stores/directory.js');
    return directoryStore(config.path);
  }
  const { etcdStore } = await import('../control/stores/etcd.js');
  return etcdStore(config.options);
}
