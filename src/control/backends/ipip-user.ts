/**
 * ipip in user space, for kernels without the ipip module: one data plane over a raw socket, its TUN under the name of
 * flannel's device. On the wire and in the lease it is what the kernel's device is.
 */
import { Dataplane, type DataplaneStats } from '../../dataplane/dataplane.js';
import { configuredMtuReader } from '../../host/configured-mtu.js';
import { listInterfaces } from '../../host/interfaces.js';
import { listOwnAddresses, ownAddressesOf, tunDevicesOf } from '../../host/overlay-link.js';
import { listRoutes, reviewRoutes } from '../../host/routes.js';
import { checkTun, ensureSwitch } from '../../host/system.js';
import type { Address, Prefix } from '../../net/prefix.js';
import { departing, type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { baseAddresses, chooseWays, requireGuard } from './kernel-backend.js';
import { type KernelBase, KernelPaths } from './kernel-paths.js';
import { otherType, ownPublicAddresses, peerAddress, refuseLoop, sendersOf } from './underlay.js';

export interface UserIpipOptions {
  /** Name of the TUN. */
  readonly device: string;
  /** This host's underlay address. */
  readonly local: Address;
  readonly directRouting: boolean;
}

export class UserIpipBackend implements Backend {
  readonly type = 'ipip';
  readonly isWithoutPort = true;
  readonly dataplane: Dataplane;
  readonly attributes: LeaseAttributes;
  readonly #options: BackendOptions;
  readonly #ipip: UserIpipOptions;
  readonly #networks: readonly Prefix[];
  readonly #paths: KernelPaths;
  readonly #wanted = new Map<string, { readonly prefix: Prefix; readonly lease: Lease }>();
  #hostAddresses: readonly Address[];
  #subnets: readonly Prefix[] = [];

  private constructor(
    options: BackendOptions,
    ipip: UserIpipOptions,
    dataplane: Dataplane,
    host: { readonly own: readonly Address[]; readonly tunDevices: ReadonlySet<string> },
  ) {
    this.#options = options;
    this.#ipip = ipip;
    this.#networks = networksOf(options.network);
    this.#hostAddresses = host.own;
    this.dataplane = dataplane;
    this.attributes = { ...ownPublicAddresses(options.underlay), backendType: this.type };
    this.#paths = new KernelPaths({
      runner: options.runner,
      logger: options.logger,
      guard: requireGuard(options),
      part: this.type,
      networks: this.#networks,
      underlay: options.underlay.name,
      foreignDevices: host.tunDevices,
      ...(options.onRouteFault === undefined ? {} : { onFault: options.onRouteFault }),
      ...(ipip.directRouting ? { prepare: () => chooseWays(options, this.#wanted.values(), this.#paths) } : {}),
    });
  }

  /**
   * @throws {PodwireError} `INTERFACE` (a colliding route, an underlay inside the overlay), and what
   *   {@link Dataplane.start} throws.
   */
  static async open(options: BackendOptions, ipip: UserIpipOptions): Promise<UserIpipBackend> {
    const { network, underlay, runner, logger } = options;
    if (options.openDataplane === undefined) await checkTun();
    const interfaces = await listInterfaces(runner);
    const tunDevices = tunDevicesOf(interfaces);
    for (const overlay of networksOf(network)) {
      refuseLoop(overlay, underlay);
      reviewRoutes(await listRoutes(runner, overlay.family), overlay, [], tunDevices);
    }
    const own = ownAddressesOf(interfaces);
    const open = options.openDataplane ?? (async (resolved) => Dataplane.start(resolved));
    const { workers, ...choices } = options.dataplane;
    if (workers !== undefined && workers !== 'auto' && workers > 1) {
      logger.warn({ workers }, 'ipip has one worker: every raw socket of the host gets a copy of every packet');
    }
    const dataplane = await open({
      ...choices,
      workers: 1,
      device: ipip.device,
      bind: { address: ipip.local },
      encapsulation: 'ipip',
      local: [],
      ownAddresses: own,
      underlayMtu: underlay.mtu,
      configuredMtu: configuredMtuReader(runner),
      logger,
    });
    await ensureSwitch(`/proc/sys/net/ipv6/conf/${ipip.device}/disable_ipv6`, '1');
    return new UserIpipBackend(options, ipip, dataplane, { own, tunDevices });
  }

  get ownAddresses(): readonly Address[] {
    const { publicIp } = this.#options.underlay;
    return [...(publicIp === undefined ? [] : [publicIp]), ...this.#hostAddresses];
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
    return { carriedBy: 'podwire', directRouting: this.#ipip.directRouting, ...this.dataplane.capabilities };
  }

  get stats(): DataplaneStats {
    return this.dataplane.stats();
  }

  async begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    this.#setLocal(subnetsOf(lease));
    await this.dataplane.forwarding;
    await this.#paths.setBase(this.#base([lease]));
    await publish();
  }

  async changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    this.#setLocal([...departing(from, to), ...subnetsOf(to)]);
    await this.#paths.setBase(this.#base([to, from]));
    await publish();
    this.#setLocal(subnetsOf(to));
    await this.#paths.setBase(this.#base([to]));
  }

  async hostChanged(): Promise<void> {
    this.#hostAddresses = await listOwnAddresses(this.#options.runner);
    this.#setLocal(this.#subnets);
    this.dataplane.refreshPathMtu();
    // Peers may have come to be, or be no more, on the underlay's own link.
    if (this.#ipip.directRouting) await this.#paths.settle();
  }

  refusal(lease: Lease, prefix: Prefix): string | undefined {
    const other = otherType(lease, this.type);
    if (other !== undefined) return other;
    return peerAddress(prefix, lease)?.family === 4 ? undefined : `it names no IPv4 address for ${prefix.toString()}`;
  }

  /** The tunnel knows direct peers too: they may send through it all the same. */
  setRoute(prefix: Prefix, lease: Lease): void {
    const address = peerAddress(prefix, lease)!;
    this.dataplane.routes.set(prefix, { address, ...sendersOf(this.#options, address) });
    this.#wanted.set(prefix.toString(), { prefix, lease });
    if (this.#ipip.directRouting) void this.#paths.settle();
  }

  removeRoute(prefix: Prefix): boolean {
    this.#wanted.delete(prefix.toString());
    this.#paths.delete(prefix);
    return this.dataplane.routes.delete(prefix);
  }

  routesComplete(): void {
    this.#paths.complete();
  }

  /** Stops the worker and closes the TUN; addresses and the network's route go with it, direct routes stay. */
  async close(): Promise<void> {
    await this.#paths.close();
    await this.dataplane.close();
  }

  async dismantle(): Promise<void> {
    await this.close();
    await this.#paths.dismantle();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #setLocal(subnets: readonly Prefix[]): void {
    this.#subnets = subnets;
    this.dataplane.setLocal(subnets, this.#hostAddresses);
  }

  #base(leases: readonly Lease[]): KernelBase {
    const { device, mtu } = this;
    return {
      links: [{ device, up: true, mtu }],
      addresses: baseAddresses(leases, device, 4),
      routes: this.#networks.map((destination) => ({ destination, device })),
      exclusive: [device],
    };
  }
}
