/**
 * The `udp` backend: one {@link Dataplane} with flannel's framing, the host's side of its TUN, and the routes that
 * follow the leases. After `close` the kernel has nothing of ours left.
 *
 * The tunnel's outside is IPv4, as flanneld's, whatever families the pods have. Between podwire hosts it may be IPv6: in
 * a network without IPv4, or with `"IPv6Underlay": true` in the backend's config.
 */
import { Dataplane, type DataplaneStats } from '../../dataplane/dataplane.js';
import { PodwireError } from '../../errors.js';
import { configuredMtuReader } from '../../host/configured-mtu.js';
import { defaultMetric } from '../../host/desired.js';
import {
  addSubnets,
  bringUp,
  linkState,
  listOwnAddresses,
  type OverlayLinkOptions,
  ownAddressesOf,
  removeSubnets,
  tunDevicesOf,
} from '../../host/overlay-link.js';
import { listInterfaces } from '../../host/interfaces.js';
import { describeRoute, listRoutes, removeRoutes, reviewRoutes, type KernelRoute } from '../../host/routes.js';
import { checkTun } from '../../host/system.js';
import type { Address, Family, Prefix } from '../../net/prefix.js';
import { departing, type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { backendOption, type NetworkConfig, networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { hasIpv6Underlay, ownPublicAddresses, refuseLoop, sendersOf } from './underlay.js';

/** flannel's port (contract 4.1); the same on every host of a network, because no lease names it. */
export const DEFAULT_UDP_PORT = 8285;

/** Name of the guard's part: the TUN and its route. */
const PART = 'device';
/** How many diverting routes are named one by one. */
const NAMED_ROUTES = 4;

export class UdpBackend implements Backend {
  readonly type = 'udp';
  readonly dataplane: Dataplane;
  readonly port: number;
  /** Of the hosts whose leases name none. */
  readonly #networkPort: number;
  readonly #options: BackendOptions;
  /** Family of the underlay addresses in use. */
  readonly #outer: Family;
  readonly #networks: readonly Prefix[];
  #ownAddresses: readonly Address[];
  #subnets: readonly Prefix[] = [];
  /** What was told of diverting routes, by network; empty: there are none any more. */
  readonly #diverting = new Map<string, string>();

  private constructor(
    options: BackendOptions,
    dataplane: Dataplane,
    { port, networkPort, outer }: { readonly port: number; readonly networkPort: number; readonly outer: Family },
    own: readonly Address[],
  ) {
    this.#options = options;
    this.#outer = outer;
    this.dataplane = dataplane;
    this.port = port;
    this.#networkPort = networkPort;
    this.#networks = networksOf(options.network);
    this.#ownAddresses = own;
  }

  /**
   * Checks the host's routes, removes stale ones of ours, and opens the data plane. No packet is carried yet.
   *
   * @throws {PodwireError} `INVALID_CONFIG` and `UNSUPPORTED` (the network config), `INTERFACE` (a colliding route, an
   *   underlay inside the overlay), and what {@link Dataplane.start} throws.
   */
  static async open(options: BackendOptions): Promise<UdpBackend> {
    if (options.openDataplane === undefined) await checkTun();
    const { network, underlay, runner, logger } = options;
    const networkPort = portOf(network);
    const port = options.port ?? networkPort;
    const outer = hasIpv6Underlay(network) ? 6 : 4;
    const bind = outer === 6 ? underlay.address6 : underlay.address;
    if (bind === undefined) {
      throw new PodwireError(
        'INTERFACE',
        `${underlay.name} has no IPv${outer} address for the udp backend: give it one, choose another --iface, or ${outer === 6 ? 'remove IPv6Underlay from' : 'set "IPv6Underlay":true in'} the Backend of the network config`,
      );
    }
    for (const overlay of networksOf(network)) refuseLoop(overlay, underlay);
    const open = options.openDataplane ?? (async (resolved) => Dataplane.start(resolved));
    const asking = askHost(options);
    asking.catch(() => undefined);
    // Threads start while the host is asked what it has and the store for a lease: {@link begin} waits for them.
    const opening = open({
      ...options.dataplane,
      bind: { address: bind, port },
      local: [],
      underlayMtu: underlay.mtu,
      configuredMtu: configuredMtuReader(runner),
      logger,
    });
    // It may fail first: what the host says is heard all the same, and tells more.
    opening.catch(() => undefined);
    const { own, stale } = await asking.catch(async (error: unknown) => {
      await opening.then((opened) => opened.close()).catch(() => undefined);
      throw error;
    });
    const dataplane = await opening;
    try {
      await removeRoutes(runner, stale);
      for (const route of stale)
        logger.info({ route: describeRoute(route) }, 'removed a route that an earlier agent left');
      return new UdpBackend(options, dataplane, { port, networkPort, outer }, own);
    } catch (error) {
      await dataplane.close();
      throw error;
    }
  }

  /** What peers need to know of us; udp leases name no backend type, as flanneld's. */
  get attributes(): LeaseAttributes {
    return {
      ...ownPublicAddresses(this.#options.underlay),
      backendType: '',
      ...(this.port === this.#networkPort ? {} : { port: this.port }),
    };
  }

  /** This host's underlay addresses, which no other host's lease may name. */
  get ownAddresses(): readonly Address[] {
    const { publicIp, publicIpv6 } = this.#options.underlay;
    return [publicIp, publicIpv6, ...this.#ownAddresses].filter((address) => address !== undefined);
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

  get problems(): readonly string[] {
    return [...this.#diverting.values()].filter((problem) => problem !== '');
  }

  get stats(): DataplaneStats {
    return this.dataplane.stats();
  }

  async begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    const { runner, logger } = this.#options;
    this.#subnets = subnetsOf(lease);
    this.dataplane.setLocal(this.#subnets, this.#ownAddresses);
    const [warnings] = await Promise.all([bringUp(runner, this.#link), this.dataplane.forwarding]);
    for (const warning of warnings) logger.warn({ device: this.device }, warning);
    await publish();
    await Promise.all([this.#warnOfDivertingRoutes(), this.#guard()]);
  }

  async changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    const { runner } = this.#options;
    const after = subnetsOf(to);
    const gone = departing(from, to);
    this.#subnets = [...gone, ...after];
    this.dataplane.setLocal(this.#subnets, this.#ownAddresses);
    await addSubnets(runner, this.device, after);
    await publish();
    this.#subnets = after;
    this.dataplane.setLocal(after, this.#ownAddresses);
    // Or the guard would bring back what is removed now.
    await this.#guard();
    await removeSubnets(runner, this.device, gone);
  }

  async hostChanged(): Promise<void> {
    this.#ownAddresses = await listOwnAddresses(this.#options.runner);
    this.dataplane.setLocal(this.#subnets, this.#ownAddresses);
    this.dataplane.refreshPathMtu();
    await this.#warnOfDivertingRoutes();
  }

  refusal(lease: Lease): string | undefined {
    const { backendType, publicIp, publicIpv6 } = lease.attributes;
    if (backendType !== '' && backendType !== 'udp') return `its backend is ${backendType}, ours is udp`;
    const isMissing = this.#outer === 6 ? publicIpv6 === undefined : publicIp.isUnspecified;
    return isMissing ? `it has no IPv${this.#outer} address for the udp tunnel` : undefined;
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    const { publicIp, publicIpv6, port = this.#networkPort } = lease.attributes;
    const address = this.#outer === 6 && publicIpv6 !== undefined ? publicIpv6 : publicIp;
    this.dataplane.routes.set(prefix, { address, port, ...sendersOf(this.#options, address) });
  }

  removeRoute(prefix: Prefix): boolean {
    return this.dataplane.routes.delete(prefix);
  }

  /** Routes live in the engine: an earlier run has left none. */
  routesComplete(): void {}

  /** Stops the workers and closes the device; address, link and kernel route go with it. */
  async close(): Promise<void> {
    await this.#options.guard?.drop(PART);
    await this.dataplane.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  get #link(): OverlayLinkOptions {
    const { txQueueLength } = this.#options;
    return {
      device: this.device,
      mtu: this.mtu,
      subnets: this.#subnets,
      networks: this.#networks,
      ...(txQueueLength === undefined ? {} : { txQueueLength }),
    };
  }

  async #guard(): Promise<void> {
    await this.#options.guard?.keep(PART, linkState(this.#link));
  }

  /** Once for every new set of such routes. */
  async #warnOfDivertingRoutes(): Promise<void> {
    const { runner, logger } = this.#options;
    for (const network of this.#networks) {
      const all = await listRoutes(runner, network.family);
      const isTwin = ({ destination, metric }: KernelRoute): boolean =>
        destination.equals(network) && metric === defaultMetric(network.family);
      // What takes the place of our own route is the guard's business; what stands before it is not.
      const own = all.findIndex((route) => route.device === this.device && isTwin(route));
      const before = all.slice(0, Math.max(0, own)).filter(isTwin);
      const others = all.filter((route) => route.device !== this.device && !isTwin(route));
      const diverting = [...before, ...reviewRoutes(others, network, this.#subnets, new Set()).diverting];
      const named = diverting.slice(0, NAMED_ROUTES).map(describeRoute).join(', ');
      const more = diverting.length > NAMED_ROUTES ? ` and ${diverting.length - NAMED_ROUTES} more` : '';
      const problem = named === '' ? '' : `other routes take packets away from the tunnel: ${named}${more}`;
      const told = this.#diverting.get(network.toString()) ?? '';
      if (told === problem) continue;
      this.#diverting.set(network.toString(), problem);
      if (problem === '') logger.info({ network: network.toString() }, 'no other routes take packets away any more');
      else logger.warn({ network: network.toString() }, problem);
    }
  }
}

/**
 * The host's own addresses, and routes of ours that an earlier agent left.
 *
 * @throws {PodwireError} `INTERFACE` (a colliding route), `COMMAND_FAILED`.
 */
async function askHost({ network, runner }: BackendOptions): Promise<{ own: Address[]; stale: KernelRoute[] }> {
  const networks = networksOf(network);
  const [interfaces, ...routes] = await Promise.all([
    listInterfaces(runner),
    ...networks.map(({ family }) => listRoutes(runner, family)),
  ]);
  const tunDevices = tunDevicesOf(interfaces);
  const stale = networks.flatMap((overlay, at) => reviewRoutes(routes[at]!, overlay, [], tunDevices).stale);
  return { own: ownAddressesOf(interfaces), stale };
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
