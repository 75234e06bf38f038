/**
 * A backend in which the kernel carries the packets: what differs between host-gw, vxlan and ipip is a {@link Carrier},
 * which says which devices and paths there must be. They are kept so by {@link KernelPaths}, and they stay when the
 * agent ends, so that neither a restart nor another agent in our place loses a packet.
 */
import type { DataplaneStats } from '../../dataplane/dataplane.js';
import { messageOf, PodwireError } from '../../errors.js';
import { listOwnAddresses, listTunDevices } from '../../host/overlay-link.js';
import { type KernelRoute, listRoutes, reviewRoutes } from '../../host/routes.js';
import type { Address, Family, Prefix } from '../../net/prefix.js';
import { type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { type KernelBase, type KernelPath, KernelPaths } from './kernel-paths.js';
import { otherType, peerAddress, refuseLoop, withoutAddress } from './underlay.js';

/** One way in which the kernel carries packets. */
export interface Carrier {
  readonly type: string;
  /** For log and status; of several the IPv4 one. */
  readonly device: string;
  readonly mtu: number;
  readonly attributes: LeaseAttributes;
  readonly facts: Readonly<Record<string, unknown>>;
  /** Peers on the underlay's own link are reached without the tunnel. */
  readonly directRouting: boolean;
  /** Devices, and addresses for the leases; for none before the first lease. */
  base(leases: readonly Lease[]): KernelBase;
  path(prefix: Prefix, lease: Lease): KernelPath;
  refusal(lease: Lease, prefix: Prefix): string | undefined;
  /** The kernel's refusal of a path in the operator's words. */
  explain?(path: KernelPath, reason: string): string;
  /** A device was made, at the start or because somebody removed it. */
  onDeviceMade?(): Promise<void>;
}

export class KernelBackend implements Backend {
  readonly dataplane = undefined;
  readonly closed: Promise<void>;
  readonly ownAddresses: readonly Address[];
  readonly #carrier: Carrier;
  readonly #options: BackendOptions;
  readonly #paths: KernelPaths;
  readonly #wanted = new Map<string, { readonly prefix: Prefix; readonly lease: Lease }>();
  readonly #newDevices: readonly string[];
  #begun = false;
  #settleClosed!: () => void;
  #closing: Promise<void> | undefined;

  private constructor(
    carrier: Carrier,
    options: BackendOptions,
    host: { own: readonly Address[]; tunDevices: ReadonlySet<string>; newDevices: readonly string[] },
  ) {
    this.#carrier = carrier;
    this.#options = options;
    this.#newDevices = host.newDevices;
    const { publicIp, publicIpv6 } = options.underlay;
    this.ownAddresses = [...[publicIp, publicIpv6].filter((address) => address !== undefined), ...host.own];
    this.closed = new Promise((resolve) => (this.#settleClosed = resolve));
    this.#paths = new KernelPaths({
      runner: options.runner,
      logger: options.logger,
      guard: requireGuard(options),
      part: carrier.type,
      networks: networksOf(options.network),
      underlay: options.underlay.name,
      foreignDevices: host.tunDevices,
      ...(options.onRouteFault === undefined ? {} : { onFault: options.onRouteFault }),
      ...(carrier.explain === undefined
        ? {}
        : { explain: (path, reason) => carrier.explain?.(path, reason) ?? reason }),
      ...(carrier.onDeviceMade === undefined ? {} : { onDeviceMade: async () => await carrier.onDeviceMade?.() }),
      ...(carrier.directRouting
        ? { prepare: () => chooseWays(options, this.#wanted.values(), this.#paths, carrier.path.bind(carrier)) }
        : {}),
    });
  }

  /**
   * Makes the devices, so that a kernel without them is found out before a lease is taken.
   *
   * @param existing names of the carrier's devices that are there already; others are removed if the start fails.
   * @throws {PodwireError} `INTERFACE` (a colliding route, an underlay inside the overlay), `COMMAND_FAILED`.
   */
  static async open(
    carrier: Carrier,
    options: BackendOptions,
    existing: ReadonlySet<string> = new Set(),
  ): Promise<KernelBackend> {
    const { network, underlay, runner } = options;
    const tunDevices = await listTunDevices(runner);
    for (const overlay of networksOf(network)) {
      refuseLoop(overlay, underlay);
      reviewRoutes(await listRoutes(runner, overlay.family), overlay, [], tunDevices);
    }
    const base = carrier.base([]);
    const devices = (base.links ?? []).map(({ device }) => device);
    for (const device of devices) {
      if (tunDevices.has(device)) {
        throw new PodwireError(
          'DEVICE_IN_USE',
          `the device ${device} is the TUN of a running agent: stop that agent first, or give this one another VNI`,
        );
      }
    }
    const own = await listOwnAddresses(runner);
    const backend = new KernelBackend(carrier, options, {
      own,
      tunDevices,
      newDevices: devices.filter((device) => !existing.has(device)),
    });
    try {
      if (devices.length > 0) await backend.#paths.setBase(base);
      return backend;
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  get type(): string {
    return this.#carrier.type;
  }

  get attributes(): LeaseAttributes {
    return this.#carrier.attributes;
  }

  get device(): string {
    return this.#carrier.device;
  }

  get mtu(): number {
    return this.#carrier.mtu;
  }

  get facts(): Readonly<Record<string, unknown>> {
    return this.#carrier.facts;
  }

  get stats(): DataplaneStats | undefined {
    return undefined;
  }

  async begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    await this.#paths.setBase(this.#carrier.base([lease]));
    this.#begun = true;
    await publish();
  }

  async changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    await this.#paths.setBase(this.#carrier.base([to, from]));
    await publish();
    await this.#paths.setBase(this.#carrier.base([to]));
  }

  refusal(lease: Lease, prefix: Prefix): string | undefined {
    return otherType(lease, this.type) ?? withoutAddress(lease, prefix) ?? this.#carrier.refusal(lease, prefix);
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    this.#wanted.set(prefix.toString(), { prefix, lease });
    // Which way is direct is known when the routes of the host have been read, before the next pass.
    if (this.#carrier.directRouting) void this.#paths.settle();
    else this.#paths.set(prefix, this.#carrier.path(prefix, lease));
  }

  removeRoute(prefix: Prefix): boolean {
    const isKnown = this.#wanted.delete(prefix.toString());
    this.#paths.delete(prefix);
    return isKnown;
  }

  /** Peers may have come to be, or be no more, on the underlay's own link. */
  async hostChanged(): Promise<void> {
    if (this.#carrier.directRouting && this.#begun) await this.#paths.settle();
  }

  routesComplete(): void {
    this.#paths.complete();
  }

  /** For tests: resolves when the kernel has what was asked for. */
  settled(): Promise<void> {
    return this.#paths.settle();
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async dismantle(): Promise<void> {
    await this.close();
    await this.#paths.dismantle();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    await this.#paths.close();
    // A start that came to nothing leaves nothing; a device that carried packets goes on carrying them.
    if (!this.#begun) {
      for (const device of this.#newDevices) {
        await this.#options.runner('ip', ['link', 'del', 'dev', device]).catch((error: unknown) => {
          const reason = messageOf(error);
          if (!/Cannot find device/.test(reason)) this.#options.logger.warn({ device }, reason);
        });
      }
    }
    this.#settleClosed();
  }
}

/** Which peers are on the underlay device's own link, by the host's main routing table. */
export class DirectWays {
  readonly #device: string;
  readonly #routes: ReadonlyMap<Family, readonly KernelRoute[]>;

  private constructor(device: string, routes: ReadonlyMap<Family, readonly KernelRoute[]>) {
    this.#device = device;
    this.#routes = routes;
  }

  /** @throws {PodwireError} `COMMAND_FAILED`. */
  static async read(
    runner: BackendOptions['runner'],
    device: string,
    networks: readonly Prefix[],
  ): Promise<DirectWays> {
    const routes = new Map<Family, readonly KernelRoute[]>();
    for (const { family } of networks) {
      // The most specific first, of equals the one with the lowest metric: the order of the kernel's choice.
      const all = (await listRoutes(runner, family)).filter(
        ({ destination }) => !networks.some((network) => network.contains(destination)),
      );
      routes.set(
        family,
        all.sort((a, b) => b.destination.length - a.destination.length || a.metric - b.metric),
      );
    }
    return new DirectWays(device, routes);
  }

  isDirect(address: Address): boolean {
    const route = this.#routes.get(address.family)?.find(({ destination }) => destination.contains(address));
    return route?.type === 'unicast' && route.device === this.#device && route.gateway === undefined;
  }

  /** The path without a tunnel, or undefined when the peer is behind a gateway. */
  path(prefix: Prefix, lease: Lease): KernelPath | undefined {
    const gateway = peerAddress(prefix, lease);
    if (gateway === undefined || gateway.family !== prefix.family || !this.isDirect(gateway)) return undefined;
    return { route: { destination: prefix, device: this.#device, gateway } };
  }
}

/**
 * Sets the paths of all wanted prefixes: direct where the peer is on the underlay's own link, else `tunnelled`, or none
 * where the tunnel has one route for all.
 *
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function chooseWays(
  { runner, underlay, network }: BackendOptions,
  wanted: Iterable<{ readonly prefix: Prefix; readonly lease: Lease }>,
  paths: KernelPaths,
  tunnelled?: Carrier['path'],
): Promise<void> {
  const ways = await DirectWays.read(runner, underlay.name, networksOf(network));
  for (const { prefix, lease } of wanted) {
    const path = ways.path(prefix, lease) ?? tunnelled?.(prefix, lease);
    if (path === undefined) paths.delete(prefix);
    else paths.set(prefix, path);
  }
}

/** The base addresses of leases, as flannel puts them on its devices: `/32` and `/128`. */
export function baseAddresses(
  leases: readonly Lease[],
  device: string,
  family: Family,
): NonNullable<KernelBase['addresses']> {
  return leases
    .flatMap((lease) => subnetsOf(lease))
    .filter((subnet) => subnet.family === family)
    .map(({ address }) => ({ device, address, length: family === 4 ? 32 : 128 }));
}

/** Whoever lets the kernel carry packets needs somebody to keep it so. */
export function requireGuard({ guard }: BackendOptions): NonNullable<BackendOptions['guard']> {
  if (guard === undefined) throw new Error('a backend in the kernel needs a guard');
  return guard;
}
