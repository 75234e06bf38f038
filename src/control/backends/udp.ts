/**
 * The `udp` backend: one {@link Dataplane} with flannel's framing, the host's side of its TUN, and the routes that
 * follow the leases.
 *
 * Life: `open` (device and sockets, no lease needed: whatever can fail on this host fails before a lease is taken),
 * `begin` (addresses, link, kernel route), then `setPeer`, `removePeer`, `changeSubnet`, at last `close`, after which
 * the kernel has nothing of ours left.
 */
import { Dataplane, type DataplaneOptions, type DataplaneStats } from '../../dataplane/dataplane.js';
import type { Logger } from '../../dataplane/logger.js';
import { PodwireError } from '../../errors.js';
import { configuredMtuReader } from '../../host/configured-mtu.js';
import type { Runner } from '../../host/exec.js';
import { addSubnets, bringUp, listOwnAddresses, listTunDevices, removeSubnets } from '../../host/overlay-link.js';
import { describeRoute, listRoutes, removeRoutes, reviewRoutes, type KernelRoute } from '../../host/routes.js';
import type { SelectedInterface } from '../../host/select-interface.js';
import type { Address, Prefix } from '../../net/prefix.js';
import { type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { backendOption, type NetworkConfig } from '../network-config.js';

/** flannel's port (contract 4.1); the same on every host of a network, because no lease names it. */
export const DEFAULT_UDP_PORT = 8285;

/** How many diverting routes are named one by one. */
const NAMED_ROUTES = 4;

/** What the caller may choose about the data plane; the rest follows from the network and the host. */
export type DataplaneChoices = Pick<
  DataplaneOptions,
  'device' | 'workers' | 'sourceCheck' | 'sourcePort' | 'offload' | 'spin' | 'pathMtu' | 'maxRoutes'
>;

export interface UdpBackendOptions {
  readonly network: NetworkConfig;
  readonly underlay: SelectedInterface;
  readonly dataplane: DataplaneChoices;
  readonly txQueueLength?: number;
  readonly runner: Runner;
  readonly logger: Logger;
  /** Seam for tests; default {@link Dataplane.open}. */
  readonly openDataplane?: (options: DataplaneOptions) => Promise<Dataplane>;
}

export class UdpBackend implements AsyncDisposable {
  readonly dataplane: Dataplane;
  readonly port: number;
  readonly #options: UdpBackendOptions;
  readonly #networks: readonly Prefix[];
  readonly #ownAddresses: readonly Address[];

  private constructor(options: UdpBackendOptions, dataplane: Dataplane, port: number, own: readonly Address[]) {
    this.#options = options;
    this.dataplane = dataplane;
    this.port = port;
    this.#networks = networksOf(options.network);
    this.#ownAddresses = own;
  }

  /**
   * Checks the host's routes, removes stale ones of ours, and opens the data plane. No packet is carried yet.
   *
   * @throws {PodwireError} `INVALID_CONFIG` and `UNSUPPORTED` (the network config), `INTERFACE` (a colliding route, an
   *   underlay inside the overlay), and what {@link Dataplane.open} throws.
   */
  static async open(options: UdpBackendOptions): Promise<UdpBackend> {
    const { network, underlay, runner, logger } = options;
    const port = portOf(network);
    const bind = underlay.address;
    if (network.network === undefined || bind === undefined) {
      throw new PodwireError(
        'UNSUPPORTED',
        'the udp backend needs IPv4 (its lease and its underlay are IPv4): set EnableIPv4 in the network config',
      );
    }
    for (const overlay of networksOf(network)) refuseLoop(overlay, underlay);
    const stale: KernelRoute[] = [];
    const tunDevices = await listTunDevices(runner);
    for (const overlay of networksOf(network)) {
      stale.push(...reviewRoutes(await listRoutes(runner, overlay.family), overlay, [], tunDevices).stale);
    }
    const own = await listOwnAddresses(runner);
    const open = options.openDataplane ?? ((resolved) => Dataplane.open(resolved));
    const dataplane = await open({
      ...options.dataplane,
      bind: { address: bind, port },
      local: [],
      ownAddresses: own,
      underlayMtu: underlay.mtu,
      configuredMtu: configuredMtuReader(runner),
      logger,
    });
    try {
      await removeRoutes(runner, stale);
      for (const route of stale)
        logger.info({ route: describeRoute(route) }, 'removed a route that an earlier agent left');
      return new UdpBackend(options, dataplane, port, own);
    } catch (error) {
      await dataplane.close();
      throw error;
    }
  }

  /** What peers need to know of us; udp leases name no backend type, as flanneld's. */
  get attributes(): LeaseAttributes {
    const { publicIp, publicIpv6 } = this.#options.underlay;
    if (publicIp === undefined) throw new Error('an open udp backend has an IPv4 address');
    return { publicIp, ...(publicIpv6 === undefined ? {} : { publicIpv6 }), backendType: '' };
  }

  /** This host's underlay addresses, which no other host's lease may name. */
  get ownAddresses(): readonly Address[] {
    return [this.attributes.publicIp, ...this.#ownAddresses];
  }

  get stats(): DataplaneStats {
    return this.dataplane.stats();
  }

  /**
   * Sets the device up for the lease: from here on packets flow.
   *
   * @throws {PodwireError} `INTERFACE`, `COMMAND_FAILED`; then the backend must be closed.
   */
  async begin(lease: Lease): Promise<void> {
    const { runner, logger, txQueueLength } = this.#options;
    const { name } = this.dataplane.device;
    this.dataplane.setLocal(subnetsOf(lease), this.#ownAddresses);
    const warnings = await bringUp(runner, {
      device: name,
      mtu: this.dataplane.mtu.overlay,
      subnets: subnetsOf(lease),
      networks: this.#networks,
      ...(txQueueLength === undefined ? {} : { txQueueLength }),
    });
    for (const warning of warnings) logger.warn({ device: name }, warning);
    await this.#warnOfDivertingRoutes(lease);
  }

  /**
   * A new subnet in place of an old one: both are served while `publish` tells the host's consumers, then the old one
   * is let go.
   *
   * @throws {PodwireError} `COMMAND_FAILED`; the old subnet is then still served.
   */
  async changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    const { runner } = this.#options;
    const { name } = this.dataplane.device;
    const [before, after] = [subnetsOf(from), subnetsOf(to)];
    const gone = before.filter((old) => !after.some((subnet) => subnet.equals(old)));
    this.dataplane.setLocal([...gone, ...after], this.#ownAddresses);
    await addSubnets(runner, name, after);
    await publish();
    this.dataplane.setLocal(after, this.#ownAddresses);
    await removeSubnets(runner, name, gone);
  }

  /** Why the lease of another host cannot be followed by this backend, beyond what every backend refuses. */
  refusal(lease: Lease): string | undefined {
    const { backendType, publicIp } = lease.attributes;
    if (backendType !== '' && backendType !== 'udp') return `its backend is ${backendType}, ours is udp`;
    return publicIp.isUnspecified ? 'it has no IPv4 address for the udp tunnel' : undefined;
  }

  /**
   * Sends a prefix to the host of its lease. The tunnel's outside is IPv4 whatever the prefix is.
   *
   * @throws {PodwireError} `CAPACITY`; the table is as before.
   */
  setRoute(prefix: Prefix, lease: Lease): void {
    this.dataplane.routes.set(prefix, { address: lease.attributes.publicIp, port: this.port });
  }

  /** False when there was no such route. */
  removeRoute(prefix: Prefix): boolean {
    return this.dataplane.routes.delete(prefix);
  }

  /** Stops the workers and closes the device; address, link and kernel route go with it. */
  async close(): Promise<void> {
    await this.dataplane.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #warnOfDivertingRoutes(lease: Lease): Promise<void> {
    const { runner, logger } = this.#options;
    const own = this.dataplane.device.name;
    for (const network of this.#networks) {
      const routes = (await listRoutes(runner, network.family)).filter((route) => route.device !== own);
      const { diverting } = reviewRoutes(routes, network, subnetsOf(lease), new Set());
      if (diverting.length === 0) continue;
      const named = diverting.slice(0, NAMED_ROUTES).map(describeRoute).join(', ');
      const more = diverting.length > NAMED_ROUTES ? ` and ${diverting.length - NAMED_ROUTES} more` : '';
      logger.warn({ network: network.toString() }, `other routes take packets away from the tunnel: ${named}${more}`);
    }
  }
}

/** The enabled pod networks, IPv4 first. */
export function networksOf(network: NetworkConfig): Prefix[] {
  return [network.network, network.ipv6Network].filter((prefix) => prefix !== undefined);
}

/** @throws {PodwireError} `UNSUPPORTED` (another backend) or `INVALID_CONFIG` (Port). */
function portOf(network: NetworkConfig): number {
  if (network.backend.type !== 'udp') {
    throw new PodwireError(
      'UNSUPPORTED',
      `the network config asks for the backend ${JSON.stringify(network.backend.type)}: this version has udp only, set "Backend":{"Type":"udp"}`,
    );
  }
  const port = backendOption(network, 'Port') ?? DEFAULT_UDP_PORT;
  // flannel decodes 0 as "not given".
  if (port === 0) return DEFAULT_UDP_PORT;
  if (typeof port !== 'number' || !Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new PodwireError(
      'INVALID_CONFIG',
      `invalid network config: Backend.Port is ${JSON.stringify(port)}; give a UDP port from 1 to 65535`,
    );
  }
  return port;
}

/** An outer packet to an address inside the overlay would be sent into the tunnel again, for ever. */
function refuseLoop(overlay: Prefix, underlay: SelectedInterface): void {
  for (const address of [underlay.address, underlay.publicIp, underlay.address6, underlay.publicIpv6]) {
    if (address !== undefined && overlay.contains(address)) {
      throw new PodwireError(
        'INTERFACE',
        `the address ${address.toString()} of ${underlay.name} lies inside the pod network ${overlay.toString()}, packets would go round in a loop: choose another --iface, --public-ip or Network`,
      );
    }
  }
}
