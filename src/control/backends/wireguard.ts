/**
 * The `wireguard` backend: encrypted tunnels between all hosts (contract 6). One device for each family, or one for
 * both; the pod network is routed to it, and each lease is a peer whose subnets are its allowed addresses, so no host
 * can send in another's name.
 */
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { messageOf, PodwireError } from '../../errors.js';
import { listOwnAddresses, listTunDevices } from '../../host/overlay-link.js';
import { listRoutes, reviewRoutes } from '../../host/routes.js';
import {
  generateWireguardKeys,
  WireguardDevice,
  type WireguardKeys,
  wireguardKeysOf,
  type WireguardPeer,
} from '../../host/wireguard.js';
import type { Address, Family, Prefix } from '../../net/prefix.js';
import type { Lease, LeaseAttributes } from '../lease.js';
import { networksOf } from '../network-config.js';
import type { Backend, BackendOptions } from './backend.js';
import { baseAddresses, requireGuard } from './kernel-backend.js';
import { type KernelBase, KernelPaths } from './kernel-paths.js';
import { otherType, ownPublicAddresses, peerAddress, refuseLoop } from './underlay.js';
import {
  isPrivate,
  peerWireguard,
  wireguardBackendConfig,
  type WireguardConfig,
  type WireguardEndpoint,
  WIREGUARD_OVERHEAD,
} from './wireguard-config.js';

/** flanneld's key file; used where it is, so that a swap changes no key. */
const FLANNEL_KEY_FILE = '/run/flannel/wgkey';
const RETRY_MS = 1_000;

interface Leg {
  readonly device: string;
  /** Inner families. */
  readonly families: readonly Family[];
  readonly port: number;
  wireguard?: WireguardDevice;
}

export class WireguardBackend implements Backend {
  readonly type = 'wireguard';
  readonly dataplane = undefined;
  readonly stats = undefined;
  readonly closed: Promise<void>;
  readonly attributes: LeaseAttributes;
  readonly ownAddresses: readonly Address[];
  readonly mtu: number;
  readonly #options: BackendOptions;
  readonly #config: WireguardConfig;
  readonly #keys: WireguardKeys;
  readonly #legs: readonly Leg[];
  readonly #networks: readonly Prefix[];
  readonly #paths: KernelPaths;
  readonly #wanted = new Map<string, { readonly prefix: Prefix; readonly lease: Lease }>();
  readonly #faults = new Map<string, string>();
  #configuring: Promise<void> | undefined;
  #isAsked = false;
  #fault: string | undefined;
  #retry: NodeJS.Timeout | undefined;
  #isClosed = false;
  #settleClosed!: () => void;
  #closing: Promise<void> | undefined;

  private constructor(
    options: BackendOptions,
    config: WireguardConfig,
    keys: WireguardKeys,
    host: { readonly own: readonly Address[]; readonly tunDevices: ReadonlySet<string> },
  ) {
    const { underlay, network } = options;
    this.#options = options;
    this.#config = config;
    this.#keys = keys;
    this.#networks = networksOf(network);
    this.#legs = legsOf(this.#networks, config);
    this.attributes = this.#makeAttributes();
    const { publicIp, publicIpv6 } = underlay;
    this.ownAddresses = [...[publicIp, publicIpv6].filter((address) => address !== undefined), ...host.own];
    this.mtu = Math.min(config.mtu ?? underlay.mtu, underlay.mtu) - WIREGUARD_OVERHEAD;
    this.closed = new Promise((resolve) => (this.#settleClosed = resolve));
    const names = this.#legs.map(({ device }) => device);
    this.#paths = new KernelPaths({
      runner: options.runner,
      logger: options.logger,
      guard: requireGuard(options),
      part: 'wireguard',
      networks: this.#networks,
      underlay: underlay.name,
      // Of an agent that was killed, wireguard-go's devices are still there and are TUNs.
      foreignDevices: new Set([...host.tunDevices].filter((device) => !names.includes(device))),
      onDeviceMade: () => this.#configure(),
    });
  }

  /**
   * Makes the devices and sets keys and ports.
   *
   * @throws {PodwireError} `INVALID_CONFIG`, `INVALID_ARGUMENT` (the key file), `UNSUPPORTED` (neither the kernel's
   *   WireGuard nor wireguard-go), `INTERFACE`, `COMMAND_FAILED`.
   */
  static async open(options: BackendOptions): Promise<WireguardBackend> {
    const { network, underlay, runner, state, logger } = options;
    const config = wireguardBackendConfig(network);
    requireUnderlay(options, config);
    const tunDevices = await listTunDevices(runner);
    for (const overlay of networksOf(network)) {
      refuseLoop(overlay, underlay);
      reviewRoutes(await listRoutes(runner, overlay.family), overlay, [], new Set());
    }
    const keyFile = process.env['WIREGUARD_KEY_FILE'] ?? (await flannelsKeyFile()) ?? keyFileOf(state);
    if (keyFile === undefined)
      logger.warn({}, 'the WireGuard key is kept nowhere: peers see a new one after each start');
    const keys = keyFile === undefined ? generateWireguardKeys() : await wireguardKeysOf(keyFile);
    const backend = new WireguardBackend(options, config, keys, { own: await listOwnAddresses(runner), tunDevices });
    try {
      await backend.#openLegs();
      return backend;
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  get device(): string {
    return this.#legs[0]!.device;
  }

  get facts(): Readonly<Record<string, unknown>> {
    const { mode, presharedKey, keepaliveSeconds } = this.#config;
    return {
      carriedBy: this.#legs[0]?.wireguard?.carriedBy ?? 'wireguard',
      mode,
      publicKey: this.#keys.publicKey,
      ports: this.#legs.map(({ port }) => port).join(' '),
      devices: this.#legs.map(({ device }) => device).join(' '),
      presharedKey: presharedKey === undefined ? 'none' : 'set',
      keepaliveSeconds,
    };
  }

  async begin(lease: Lease, publish: () => Promise<void>): Promise<void> {
    await this.#paths.setBase(this.#base([lease]));
    // Routes come and go with the pod networks: every lease is a peer, none has a route of its own.
    this.#paths.complete();
    await publish();
  }

  async changeSubnet(from: Lease, to: Lease, publish: () => Promise<void>): Promise<void> {
    await this.#paths.setBase(this.#base([to, from]));
    await publish();
    await this.#paths.setBase(this.#base([to]));
  }

  refusal(lease: Lease, prefix: Prefix): string | undefined {
    const other = otherType(lease, this.type);
    if (other !== undefined) return other;
    const peer = peerWireguard(lease, prefix.family);
    if (typeof peer === 'string') return peer;
    if (peer.publicKey === this.#keys.publicKey) return 'its PublicKey is our own';
    return this.#endpoint(prefix, lease, peer) === undefined
      ? `it names no address that the mode ${this.#config.mode} can reach`
      : undefined;
  }

  setRoute(prefix: Prefix, lease: Lease): void {
    this.#wanted.set(prefix.toString(), { prefix, lease });
    void this.#configure();
  }

  removeRoute(prefix: Prefix): boolean {
    const isKnown = this.#wanted.delete(prefix.toString());
    this.#faults.delete(prefix.toString());
    if (isKnown) void this.#configure();
    return isKnown;
  }

  /** Peers of an earlier run went with its device. */
  routesComplete(): void {}

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    this.#isClosed = true;
    clearTimeout(this.#retry);
    await this.#paths.close();
    await this.#configuring;
    for (const { wireguard } of this.#legs) await wireguard?.close();
    this.#settleClosed();
  }

  async #openLegs(): Promise<void> {
    const { runner, logger } = this.#options;
    for (const leg of this.#legs) {
      leg.wireguard = await WireguardDevice.open({
        device: leg.device,
        runner,
        onNotice: (level, message) => logger[level]({ device: leg.device }, message),
        // The device is another one now: addresses and routes are the guard's, keys and peers ours.
        onRestarted: () => void this.#paths.settle().then(() => this.#configure()),
      });
      await leg.wireguard.configure(this.#settings(leg), []);
    }
  }

  #settings({ port }: Leg): Parameters<WireguardDevice['configure']>[0] {
    const { presharedKey, keepaliveSeconds } = this.#config;
    return { privateKey: this.#keys.privateKey, listenPort: port, presharedKey, keepaliveSeconds };
  }

  #base(leases: readonly Lease[]): KernelBase {
    return {
      links: this.#legs.map(({ device, wireguard }) => ({
        device,
        up: true,
        mtu: this.mtu,
        ...(wireguard?.carriedBy === 'kernel' ? { create: { command: `link add dev ${device} type wireguard` } } : {}),
      })),
      addresses: this.#legs.flatMap(({ device, families }) =>
        families.flatMap((family) => baseAddresses(leases, device, family)),
      ),
      routes: this.#networks.map((destination) => ({ destination, device: this.#leg(destination.family).device })),
      exclusive: this.#legs.map(({ device }) => device),
    };
  }

  #leg(family: Family): Leg {
    return this.#legs.find(({ families }) => families.includes(family))!;
  }

  /** Tells the devices their peers; what changes meanwhile is in the next telling. */
  #configure(): Promise<void> {
    this.#isAsked = true;
    this.#configuring ??= this.#tell().finally(() => (this.#configuring = undefined));
    return this.#configuring;
  }

  async #tell(): Promise<void> {
    while (this.#isAsked && !this.#isClosed) {
      await new Promise((resolve) => setImmediate(resolve));
      this.#isAsked = false;
      try {
        const peers = this.#peers();
        for (const leg of this.#legs) {
          await leg.wireguard?.configure(this.#settings(leg), [...(peers.get(leg)?.values() ?? [])]);
        }
        if (this.#fault !== undefined) this.#options.logger.info({}, 'the WireGuard peers are set again');
        this.#fault = undefined;
      } catch (error) {
        const reason = messageOf(error);
        if (this.#fault !== reason && !this.#isClosed) {
          this.#options.logger.error({}, `the WireGuard peers cannot be set, trying again: ${reason}`);
        }
        this.#fault = reason;
        clearTimeout(this.#retry);
        if (!this.#isClosed) this.#retry = setTimeout(() => void this.#configure(), RETRY_MS).unref();
      }
    }
  }

  #peers(): Map<Leg, Map<string, WireguardPeer>> {
    const all = new Map<Leg, Map<string, WireguardPeer>>();
    const faults = new Map<string, string>();
    for (const [text, { prefix, lease }] of this.#wanted) {
      const peer = peerWireguard(lease, prefix.family);
      const endpoint = typeof peer === 'string' ? undefined : this.#endpoint(prefix, lease, peer);
      if (typeof peer === 'string' || endpoint === undefined) continue;
      const leg = this.#leg(prefix.family);
      let peers = all.get(leg);
      if (peers === undefined) all.set(leg, (peers = new Map<string, WireguardPeer>()));
      const known = peers.get(peer.publicKey);
      if (known !== undefined && known.endpoint !== endpoint) {
        faults.set(text, `its public key is also that of ${known.endpoint}: a copied key file? (${endpoint})`);
        continue;
      }
      const allowedIps = [...(known?.allowedIps ?? []), prefix];
      peers.set(peer.publicKey, { publicKey: peer.publicKey, endpoint, allowedIps });
    }
    for (const [text, { prefix }] of this.#wanted) {
      const reason = faults.get(text);
      if (this.#faults.get(text) === reason) continue;
      if (reason === undefined) this.#faults.delete(text);
      else this.#faults.set(text, reason);
      this.#options.onRouteFault?.(prefix, reason);
    }
    return all;
  }

  /** Where the peer's device listens, as `address:port`; undefined when it names no address that our mode can use. */
  #endpoint(prefix: Prefix, lease: Lease, peer: WireguardEndpoint): string | undefined {
    const { mode, listenPort } = this.#config;
    if (mode === 'separate') {
      return endpointText(peerAddress(prefix, lease), peer.port || this.#leg(prefix.family).port);
    }
    const { publicIp, publicIpv6 } = lease.attributes;
    const ipv4 = publicIp.isUnspecified ? undefined : publicIp;
    const address = mode === 'ipv4' ? ipv4 : mode === 'ipv6' ? publicIpv6 : this.#likelier(ipv4, publicIpv6);
    // flanneld says ListenPortV6 in BackendV6Data though its one device listens on ListenPort.
    const first = peerWireguard(lease, 4);
    const port = typeof first === 'string' ? peer.port : first.port;
    return endpointText(address, port || listenPort);
  }

  /** flannel's choice: IPv4 unless it is private there and IPv6 is public on both sides. */
  #likelier(ipv4: Address | undefined, ipv6: Address | undefined): Address | undefined {
    if (ipv4 === undefined || ipv6 === undefined) return ipv4 ?? ipv6;
    const ours = this.#options.underlay.publicIpv6;
    const isPublic = !isPrivate(ipv6) && ours !== undefined && !isPrivate(ours);
    return isPrivate(ipv4) && isPublic ? ipv6 : ipv4;
  }

  #makeAttributes(): LeaseAttributes {
    const data = (family: Family): unknown => ({ PublicKey: this.#keys.publicKey, Port: this.#leg(family).port });
    const has = (family: Family): boolean => this.#networks.some((network) => network.family === family);
    return {
      ...ownPublicAddresses(this.#options.underlay),
      backendType: 'wireguard',
      ...(has(4) ? { backendData: data(4) } : {}),
      ...(has(6) ? { backendV6Data: data(6) } : {}),
    };
  }
}

function legsOf(networks: readonly Prefix[], { mode, listenPort, listenPortV6 }: WireguardConfig): Leg[] {
  const families = networks.map(({ family }) => family);
  if (mode !== 'separate') return [{ device: 'flannel-wg', families, port: listenPort }];
  return families.map((family) =>
    family === 4
      ? { device: 'flannel-wg', families: [4], port: listenPort }
      : { device: 'flannel-wg-v6', families: [6], port: listenPortV6 },
  );
}

function endpointText(address: Address | undefined, port: number): string | undefined {
  if (address === undefined) return undefined;
  return address.family === 4 ? `${address.toString()}:${port}` : `[${address.toString()}]:${port}`;
}

function requireUnderlay({ underlay }: BackendOptions, { mode }: WireguardConfig): void {
  const lacks = mode === 'ipv6' && underlay.publicIpv6 === undefined ? 6 : mode === 'ipv4' && underlay.publicIp === undefined ? 4 : undefined; // prettier-ignore
  if (lacks === undefined) return;
  throw new PodwireError(
    'INVALID_CONFIG',
    `Backend.Mode is ${mode}, but this host has no IPv${lacks} address for the tunnel: enable IPv${lacks} in the network config or set another Mode`,
  );
}

function keyFileOf(state: string | undefined): string | undefined {
  return state === undefined ? undefined : `${state}.wgkey`;
}

async function flannelsKeyFile(): Promise<string | undefined> {
  return await access(FLANNEL_KEY_FILE, constants.R_OK).then(
    () => FLANNEL_KEY_FILE,
    () => undefined,
  );
}
