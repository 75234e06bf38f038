/**
 * vxlan in user space: podwire is the tunnel end point, one data plane for each address family, its TUN under the name
 * of flannel's device. On the wire and in the lease it is what the kernel's device is, so hosts can change one by one.
 *
 * The kernel's device and our socket cannot share the port, nor the name: a device that is there is removed when this
 * host's lease is known, right before its place is taken, and its MAC goes on (design 9.8).
 */
import { Dataplane, type DataplaneStats } from '../../dataplane/dataplane.js';
import { mergeStats } from '../../dataplane/merge-stats.js';
import { messageOf, PodwireError } from '../../errors.js';
import { configuredMtuReader } from '../../host/configured-mtu.js';
import { listInterfaces } from '../../host/interfaces.js';
import { listOwnAddresses, ownAddressesOf, tunDevicesOf } from '../../host/overlay-link.js';
import { listRoutes, reviewRoutes } from '../../host/routes.js';
import { checkTun, ensureSwitch } from '../../host/system.js';
import { overheadOf } from '../../net/mtu.js';
import type { Address, Family, MacAddress, Prefix } from '../../net/prefix.js';
import { departing, type Lease, type LeaseAttributes, subnetsOf } from '../lease.js';
import { networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { baseAddresses, chooseWays, requireGuard } from './kernel-backend.js';
import { type KernelBase, KernelPaths } from './kernel-paths.js';
import { otherType, peerAddress, refuseLoop, sendersOf, withoutAddress } from './underlay.js';
import { vtepMac } from './vtep.js';
import { peerVtep, type VxlanConfig } from './vxlan-config.js';
import {
  type ExistingDevice,
  existingDevice,
  podMtu,
  vxlanAttributes,
  vxlanFacts,
  type VxlanLeg,
  vxlanLegs,
  vxlanRefusal,
} from './vxlan-kernel.js';

interface Leg extends VxlanLeg {
  readonly mac: MacAddress;
  /** The kernel's device under our name, which goes when we begin. */
  readonly existing: ExistingDevice | undefined;
  dataplane?: Dataplane;
}

export class UserVxlanBackend implements Backend {
  readonly type = 'vxlan';
  readonly closed: Promise<void>;
  readonly attributes: LeaseAttributes;
  readonly mtu: number;
  readonly #options: BackendOptions;
  readonly #config: VxlanConfig;
  readonly #legs: readonly Leg[];
  #hostAddresses: readonly Address[];
  #subnets: readonly Prefix[] = [];
  readonly #macs: ReadonlyMap<Family, MacAddress>;
  readonly #networks: readonly Prefix[];
  readonly #paths: KernelPaths;
  readonly #wanted = new Map<string, { readonly prefix: Prefix; readonly lease: Lease }>();
  #settle!: { resolve: () => void; reject: (error: unknown) => void };
  #closing: Promise<void> | undefined;

  private constructor(
    options: BackendOptions,
    config: VxlanConfig,
    legs: readonly Leg[],
    host: { readonly own: readonly Address[]; readonly tunDevices: ReadonlySet<string> },
  ) {
    const { underlay, network } = options;
    this.#options = options;
    this.#config = config;
    this.#legs = legs;
    this.#hostAddresses = host.own;
    this.#networks = networksOf(network);
    this.#macs = new Map(legs.map(({ family, mac }) => [family, mac]));
    const port = options.port === config.port ? undefined : options.port;
    this.attributes = { ...vxlanAttributes(underlay, config, this.#macs), ...(port === undefined ? {} : { port }) };
    this.mtu = podMtu(legs);
    this.closed = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.closed.catch(() => undefined);
    this.#paths = new KernelPaths({
      runner: options.runner,
      logger: options.logger,
      guard: requireGuard(options),
      part: 'vxlan',
      networks: this.#networks,
      underlay: underlay.name,
      foreignDevices: host.tunDevices,
      ...(options.onRouteFault === undefined ? {} : { onFault: options.onRouteFault }),
      ...(config.directRouting ? { prepare: () => chooseWays(options, this.#wanted.values(), this.#paths) } : {}),
    });
  }

  /**
   * Opens the data planes, unless a kernel device stands in their place until {@link begin}.
   *
   * @throws {PodwireError} `UNSUPPORTED` (GBP), `INTERFACE`, `DEVICE_IN_USE`, and what {@link Dataplane.start} throws.
   */
  static async open(options: BackendOptions, config: VxlanConfig): Promise<UserVxlanBackend> {
    const { network, underlay, runner, logger, state } = options;
    if (config.gbp) {
      throw new PodwireError(
        'UNSUPPORTED',
        'Backend.GBP needs the kernel: podwire itself carries no group policy; set "Mode":"kernel" or leave GBP out',
      );
    }
    if (config.learning)
      logger.warn({}, 'Backend.Learning has no effect in user space: peers are known from their leases');
    if (options.openDataplane === undefined) await checkTun();
    const interfaces = await listInterfaces(runner);
    const tunDevices = tunDevicesOf(interfaces);
    const legs: Leg[] = [];
    for (const leg of vxlanLegs(options, config)) {
      const existing = await existingDevice(runner, leg, config, underlay.name);
      if (existing !== undefined && existing.kind !== 'vxlan') {
        throw new PodwireError(
          'DEVICE_IN_USE',
          `a device ${leg.device} (${existing.kind ?? 'of unknown kind'}) is there already: another agent runs with this VNI; stop it first`,
        );
      }
      const publicIp = (leg.family === 4 ? underlay.publicIp : underlay.publicIpv6) ?? leg.local;
      const mac = await vtepMac({ vni: config.vni, family: leg.family, publicIp, state, logger }, existing?.mac);
      legs.push({ ...leg, mac, existing });
    }
    for (const overlay of networksOf(network)) {
      refuseLoop(overlay, underlay);
      reviewRoutes(await listRoutes(runner, overlay.family), overlay, [], tunDevices);
    }
    const backend = new UserVxlanBackend(options, config, legs, { own: ownAddressesOf(interfaces), tunDevices });
    try {
      if (legs.every(({ existing }) => existing === undefined)) await backend.#openLegs();
      return backend;
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  get ownAddresses(): readonly Address[] {
    const { publicIp, publicIpv6 } = this.#options.underlay;
    return [publicIp, publicIpv6, ...this.#hostAddresses].filter((address) => address !== undefined);
  }

  get dataplane(): Dataplane | undefined {
    return this.#legs[0]?.dataplane;
  }

  get device(): string {
    return this.#legs[0]!.device;
  }

  get device6(): string | undefined {
    const own = this.#networks.find(({ family }) => family === 6);
    const device = own && this.#leg(own)?.device;
    return device === this.device ? undefined : device;
  }

  get facts(): Readonly<Record<string, unknown>> {
    return { ...vxlanFacts('podwire', this.#config, this.#legs, this.#macs), ...this.dataplane?.capabilities };
  }

  get stats(): DataplaneStats | undefined {
    const planes = this.#legs.flatMap(({ dataplane }) => (dataplane === undefined ? [] : [dataplane.stats()]));
    return planes.length === 0 ? undefined : mergeStats(planes);
  }

  async begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    const { logger } = this.#options;
    const startedAt = performance.now();
    const handedOver = this.#legs.filter(
      ({ existing, dataplane }) => existing !== undefined && dataplane === undefined,
    );
    if (handedOver.length > 0) {
      for (const { device } of handedOver) await this.#removeDevice(device);
      await this.#openLegs();
    }
    this.#setLocal(subnetsOf(lease));
    for (const { dataplane } of this.#legs) await dataplane?.forwarding;
    await this.#paths.setBase(this.#base([lease]));
    if (handedOver.length > 0) {
      const tookMs = Math.round(performance.now() - startedAt);
      logger.info(
        { tookMs, vtepMac: [...this.#macs.values()].join(' ') },
        `took over from the kernel's vxlan device, which is removed; packets were not carried for ${tookMs} ms`,
      );
    }
    await publish();
  }

  async changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    this.#setLocal([...departing(from, to), ...subnetsOf(to)]);
    await this.#paths.setBase(this.#base([to, from]));
    await publish();
    this.#setLocal(subnetsOf(to));
    await this.#paths.setBase(this.#base([to]));
  }

  refusal(lease: Lease, prefix: Prefix): string | undefined {
    return (
      otherType(lease, this.type) ??
      withoutAddress(lease, prefix) ??
      vxlanRefusal(lease, prefix, this.#config, this.#macs)
    );
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    const before = this.#wanted.get(prefix.toString());
    this.#wanted.set(prefix.toString(), { prefix, lease });
    try {
      this.#program(prefix, lease);
    } catch (error) {
      if (before === undefined) this.#wanted.delete(prefix.toString());
      else this.#wanted.set(prefix.toString(), before);
      throw error;
    }
    if (this.#config.directRouting) void this.#paths.settle();
  }

  removeRoute(prefix: Prefix): boolean {
    const isKnown = this.#wanted.delete(prefix.toString());
    this.#paths.delete(prefix);
    this.#leg(prefix)?.dataplane?.routes.delete(prefix);
    return isKnown;
  }

  routesComplete(): void {
    this.#paths.complete();
  }

  async hostChanged(): Promise<void> {
    this.#hostAddresses = await listOwnAddresses(this.#options.runner);
    this.#setLocal(this.#subnets);
    for (const { dataplane } of this.#legs) dataplane?.refreshPathMtu();
    // Peers may have come to be, or be no more, on the underlay's own link.
    if (this.#config.directRouting) await this.#paths.settle();
  }

  /** Stops the workers and closes the TUNs; addresses and the networks' routes go with them, direct routes stay. */
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
    for (const { dataplane } of this.#legs) await dataplane?.close();
    this.#settle.resolve();
  }

  #leg({ family }: Prefix): Leg | undefined {
    return this.#legs.find((leg) => leg.family === family);
  }

  #setLocal(subnets: readonly Prefix[]): void {
    this.#subnets = subnets;
    for (const { dataplane } of this.#legs) dataplane?.setLocal(subnets, this.#hostAddresses);
  }

  /** The tunnel knows direct peers too: they may send through it all the same. */
  #program(prefix: Prefix, lease: Lease): void {
    const address = peerAddress(prefix, lease)!;
    this.#leg(prefix)?.dataplane?.routes.set(prefix, {
      address,
      ...sendersOf(this.#options, address),
      port: lease.attributes.port ?? this.#config.port,
      vtepMac: peerVtep(lease, prefix, this.#config.vni).toString(),
    });
  }

  async #removeDevice(device: string): Promise<void> {
    try {
      await this.#options.runner('ip', ['link', 'del', 'dev', device]);
    } catch (error) {
      if (!/Cannot find device/.test(messageOf(error))) throw error;
    }
  }

  async #openLegs(): Promise<void> {
    const { dataplane, runner, logger, openDataplane, txQueueLength } = this.#options;
    const open = openDataplane ?? (async (resolved) => Dataplane.start(resolved));
    for (const leg of this.#legs) {
      const { family, device, local, mac, mtu } = leg;
      const plane = await open({
        ...dataplane,
        device,
        bind: { address: local, port: this.#options.port ?? this.#config.port },
        encapsulation: { type: 'vxlan', vni: this.#config.vni, vtepMac: mac },
        local: [],
        ownAddresses: this.#hostAddresses,
        underlayMtu: mtu + overheadOf('vxlan', family),
        configuredMtu: configuredMtuReader(runner),
        logger,
      });
      leg.dataplane = plane;
      plane.closed.catch((error: unknown) => this.#settle.reject(error));
      await this.#quiet(leg);
      if (txQueueLength !== undefined) {
        await runner('ip', ['link', 'set', 'dev', device, 'txqueuelen', String(txQueueLength)]);
      }
    }
    for (const { prefix, lease } of this.#wanted.values()) {
      try {
        this.#program(prefix, lease);
      } catch (error) {
        this.#options.onRouteFault?.(prefix, messageOf(error));
      }
    }
  }

  /** Keeps the kernel from sending router solicitations and multicast reports into the tunnel. */
  async #quiet({ family, device }: Leg): Promise<void> {
    const base = `/proc/sys/net/ipv6/conf/${device}`;
    if (family === 4) await ensureSwitch(`${base}/disable_ipv6`, '1');
    else {
      await ensureSwitch(`${base}/accept_ra`, '0');
      await ensureSwitch(`${base}/router_solicitations`, '0');
      await this.#options.runner('ip', ['link', 'set', 'dev', device, 'addrgenmode', 'none']);
    }
  }

  #base(leases: readonly Lease[]): KernelBase {
    return {
      links: this.#legs.map(({ device, mtu }) => ({ device, up: true, mtu })),
      addresses: this.#legs.flatMap(({ device, family }) => baseAddresses(leases, device, family)),
      routes: this.#networks.map((destination) => ({ destination, device: this.#leg(destination)!.device })),
      exclusive: this.#legs.map(({ device }) => device),
    };
  }
}
