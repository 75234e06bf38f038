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
  vxlan: async () => (await import('./vxlan.js')).VxlanBackend,
  'host-gw': async () => (await import('./host-gw.js')).HostGwBackend,
  wireguard: async () => (await import('./wireguard.js')).WireguardBackend,
  ipip: async () => (await import('./ipip.js')).IpipBackend,
  extension: async () => (await import('./extension.js')).ExtensionBackend,
  alloc: async () => (await import('./alloc.js')).AllocBackend,
};

/** flannel's that podwire does not have, and what to use in their place. */
const INSTEAD: Readonly<Record<string, string>> = {
  ipsec: 'for encrypted pods use "Backend":{"Type":"wireguard"}',
  'tencent-vpc':
    'use "Backend":{"Type":"alloc"} and let the cloud controller set the VPC routes, or "Backend":{"Type":"vxlan"}',
};

/**
 * Opens the backend that the network config asks for.
 *
 * @throws {PodwireError} `UNSUPPORTED`, and what the backend's `open` throws.
 */
export async function openBackend(options: BackendOptions): Promise<Backend> {
  const load = Object.hasOwn(BACKENDS, typeOf(options.network)) ? BACKENDS[typeOf(options.network)] : undefined;
  if (load === undefined) {
    const type = typeOf(options.network);
    const advice = INSTEAD[type] ?? `this version has ${Object.keys(BACKENDS).join(', ')}`;
    throw new PodwireError(
      'UNSUPPORTED',
      `the network config asks for the backend ${JSON.stringify(type)}, which podwire does not have: ${advice}`,
    );
  }
  return (await load()).open(options);
}

function typeOf(network: NetworkConfig): string {
  return network.backend.type;
}
