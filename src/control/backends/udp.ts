/**
 * The `udp` backend: one {@link Dataplane} with flannel's framing, the host's side of its TUN, and the routes that
 * follow the leases. After `close` the kernel has nothing of ours left.
 */
import { Dataplane, type DataplaneStats } from '../../dataplane/dataplane.js';
import { PodwireError } from '../../errors.js';
import { configuredMtuReader } from '../../host/configured-mtu.js';
import { addSubnets, bringUp, listOwnAddresses, listTunDevices, removeSubnets } from '../../host/overlay-link.js';
import { describeRoute, listRoutes, removeRoutes, reviewRoutes, type KernelRoute } from '../../host/routes.js';
import type { Address, Prefix } from '../../net/prefix.js';
import { type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { backendOption, type NetworkConfig, networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { refuseLoop } from './underlay.js';

/** flannel's port (contract 4.1); the same on every host of a network, because no lease names it. */
export const DEFAULT_UDP_PORT = 8285;

/** How many diverting routes are named one by one. */
const NAMED_ROUTES = 4;

export class UdpBackend implements Backend {
  readonly type = 'udp';
  readonly dataplane: Dataplane;
  readonly port: number;
  readonly #options: BackendOptions;
  readonly #networks: readonly Prefix[];
  readonly #ownAddresses: readonly Address[];

  private constructor(options: BackendOptions, dataplane: Dataplane, port: number, own: readonly Address[]) {
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
  static async open(options: BackendOptions): Promise<UdpBackend> {
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

  get device(): string {
    return this.dataplane.device.name;
  }

  get mtu(): number {
    return this.dataplane.mtu.overlay;
  }

  get closed(): Promise<void> {
    return this.dataplane.closed;
  }

  get facts(): Readonly<Record<string, unknown>> {
    return { port: this.port, ...this.dataplane.capabilities };
  }

  get stats(): DataplaneStats {
    return this.dataplane.stats();
  }

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

  refusal(lease: Lease): string | undefined {
    const { backendType, publicIp } = lease.attributes;
    if (backendType !== '' && backendType !== 'udp') return `its backend is ${backendType}, ours is udp`;
    return publicIp.isUnspecified ? 'it has no IPv4 address for the udp tunnel' : undefined;
  }

  /** The tunnel's outside is IPv4 whatever the prefix is. */
  setRoute(prefix: Prefix, lease: Lease): void {
    this.dataplane.routes.set(prefix, { address: lease.attributes.publicIp, port: this.port });
  }

  removeRoute(prefix: Prefix): boolean {
    return this.dataplane.routes.delete(prefix);
  }

  /** Routes live in the engine: an earlier run has left none. */
  routesComplete(): void {}

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

/** @throws {PodwireError} `INVALID_CONFIG` (Port). */
function portOf(network: NetworkConfig): number {
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
