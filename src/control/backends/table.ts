/**
 * Which backends there are: a new one is a file with a class and a line here.
 *
 * Modules are loaded when a network config names them.
 */
import { PodwireError } from '../../errors.js';
import type { NetworkConfig } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';

interface BackendClass {
  open(options: BackendOptions): Promise<Backend>;
}

const BACKENDS: Readonly<Record<string, () => Promise<BackendClass>>> = {
  udp: async () => (await import('./udp.js')).UdpBackend,
};

/**
 * Opens the backend that the network config asks for.
 *
 * @throws {PodwireError} `UNSUPPORTED`, and what the backend's `open` throws.
 */
export async function openBackend(options: BackendOptions): Promise<Backend> {
  const load = Object.hasOwn(BACKENDS, typeOf(options.network)) ? BACKENDS[typeOf(options.network)] : undefined;
  if (load === undefined) {
    throw new PodwireError(
      'UNSUPPORTED',
      `the network config asks for the backend ${JSON.stringify(typeOf(options.network))}: this version has ${Object.keys(BACKENDS).join(', ')}; set for instance "Backend":{"Type":"udp"}`,
    );
  }
  return (await load()).open(options);
}

function typeOf(network: NetworkConfig): string {
  return network.backend.type;
}
