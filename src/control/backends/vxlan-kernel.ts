/**
 * vxlan through the kernel's device, programmed as flannel does (contract 5): the device with a permanent MAC, the
 * subnet's base address, and for each peer a permanent neighbour, an FDB entry and an onlink route. A device with the
 * same parameters is taken over as it is, whoever made it.
 */
import { PodwireError } from '../../errors.js';
import type { DesiredFdbEntry, DesiredLink } from '../../host/desired.js';
import { ipJson, type Runner } from '../../host/exec.js';
import { field, numberField, textField } from '../../host/interfaces.js';
import { ensureSwitch } from '../../host/system.js';
import { overheadOf } from '../../net/mtu.js';
import { type Address, type Family, MacAddress, type Prefix } from '../../net/prefix.js';
import type { Lease, LeaseAttributes } from '../lease.js';
import { networksOf } from '../network-config.js';
import type { BackendOptions } from './backend.js';
import { baseAddresses, type Carrier, KernelBackend } from './kernel-backend.js';
import type { KernelBase, KernelPath } from './kernel-paths.js';
import { ownPublicAddresses, peerAddress } from './underlay.js';
import { vtepMac } from './vtep.js';
import { peerVtep, type VxlanConfig, vtepData } from './vxlan-config.js';

/** The tunnel of one family: its outer and its inner packets are of that family. */
export interface VxlanLeg {
  readonly family: Family;
  readonly device: string;
  /** Of the underlay interface: what the device sends from. */
  readonly local: Address;
  /** Inner, bytes. */
  readonly mtu: number;
}

/** The legs that a network needs, IPv4 first. @throws {PodwireError} `INTERFACE`: the underlay lacks a family. */
export function vxlanLegs({ network, underlay, logger }: BackendOptions, config: VxlanConfig): VxlanLeg[] {
  if (config.mtu !== undefined && config.mtu > underlay.mtu) {
    logger.warn(
      { mtu: config.mtu },
      `Backend.MTU ${config.mtu} is more than ${underlay.name} carries, its ${underlay.mtu} bytes are used`,
    );
  }
  const outer = Math.min(config.mtu ?? underlay.mtu, underlay.mtu);
  return networksOf(network).map(({ family }) => {
    const local = family === 4 ? underlay.address : underlay.address6;
    if (local === undefined) {
      throw new PodwireError('INTERFACE', `${underlay.name} has no IPv${family} address for the vxlan tunnel`);
    }
    const device = family === 4 ? `flannel.${config.vni}` : `flannel-v6.${config.vni}`;
    return { family, device, local, mtu: outer - overheadOf('vxlan', family) };
  });
}

/** What pods get: the least of the legs, so that a packet of either family passes. flanneld says IPv4's for both. */
export function podMtu(legs: readonly VxlanLeg[]): number {
  return Math.min(...legs.map(({ mtu }) => mtu));
}

/** What is there under a leg's name. */
export interface ExistingDevice {
  readonly kind: string | undefined;
  readonly mac: MacAddress | undefined;
  readonly learning: boolean | undefined;
  /** Whether it can be taken over in place. */
  readonly fits: boolean;
}

/** The device of a leg as it is, or undefined. @throws {PodwireError} `COMMAND_FAILED`. */
export async function existingDevice(
  runner: Runner,
  leg: VxlanLeg,
  config: VxlanConfig,
  underlay: string,
): Promise<ExistingDevice | undefined> {
  for (const entry of await ipJson(runner, ['-d', 'link', 'show'])) {
    if (textField(entry, 'ifname') !== leg.device) continue;
    const kind = textField(field(entry, 'linkinfo'), 'info_kind');
    const data = field(field(entry, 'linkinfo'), 'info_data');
    const mac = textField(entry, 'address');
    return {
      kind,
      mac: kind === 'vxlan' && mac !== undefined ? MacAddress.parse(mac) : undefined,
      learning: kind === 'vxlan' ? field(data, 'learning') === true : undefined,
      fits: fits(entry, leg, config, underlay),
    };
  }
  return undefined;
}

/** What flannel compares, too: not MTU, MAC and learning, which can be changed in place. */
function fits(entry: unknown, { family, local }: VxlanLeg, config: VxlanConfig, underlay: string): boolean {
  const info = field(entry, 'linkinfo');
  const data = field(info, 'info_data');
  return (
    textField(info, 'info_kind') === 'vxlan' &&
    numberField(data, 'id') === config.vni &&
    textField(data, 'link') === underlay &&
    textField(data, family === 4 ? 'local' : 'local6') === local.toString() &&
    numberField(data, 'port') === config.port &&
    field(data, 'l2miss') !== true &&
    (field(data, 'gbp') === true) === config.gbp
  );
}

/** @throws {PodwireError} `UNSUPPORTED` (no vxlan in the kernel), and as {@link KernelBackend.open}. */
export async function openKernelVxlan(options: BackendOptions, config: VxlanConfig): Promise<KernelBackend> {
  if (options.port !== undefined && options.port !== config.port) {
    throw new PodwireError(
      'UNSUPPORTED',
      `UDP port ${options.port} for this host alone needs vxlan in user space: add --vxlan-mode user, or leave the port out`,
    );
  }
  const { runner, logger, underlay, state } = options;
  const legs = vxlanLegs(options, config);
  const macs = new Map<Family, MacAddress>();
  const existing = new Set<string>();
  for (const leg of legs) {
    const found = await existingDevice(runner, leg, config, underlay.name);
    if (found !== undefined) existing.add(leg.device);
    const publicIp = (leg.family === 4 ? underlay.publicIp : underlay.publicIpv6) ?? leg.local;
    const identity = { vni: config.vni, family: leg.family, publicIp, state, logger };
    macs.set(leg.family, await vtepMac(identity, found?.mac));
    if (found?.fits === true) {
      logger.info({ device: leg.device }, 'taking over the vxlan device that is there, with its entries');
      if (found.learning !== config.learning) {
        const learning = config.learning ? 'learning' : 'nolearning';
        await runner('ip', ['link', 'set', 'dev', leg.device, 'type', 'vxlan', 'id', String(config.vni), learning]);
      }
    } else if (found?.kind === 'vxlan') {
      logger.warn({ device: leg.device }, 'the vxlan device that is there has other parameters: it is made anew');
    }
  }
  try {
    return await KernelBackend.open(new VxlanCarrier(options, config, legs, macs), options, existing);
  } catch (error) {
    if (error instanceof PodwireError && /Operation not supported|Unknown device type/.test(error.message)) {
      throw new PodwireError(
        'UNSUPPORTED',
        `this kernel has no vxlan (${error.message}): load it (modprobe vxlan), or let podwire carry the packets with "Mode":"user" or --vxlan-mode user`,
        { cause: error },
      );
    }
    throw error;
  }
}

class VxlanCarrier implements Carrier {
  readonly type = 'vxlan';
  readonly device: string;
  readonly mtu: number;
  readonly attributes: LeaseAttributes;
  readonly directRouting: boolean;
  readonly facts: Readonly<Record<string, unknown>>;
  readonly #config: VxlanConfig;
  readonly #underlay: string;
  readonly #legs: readonly VxlanLeg[];
  readonly #macs: ReadonlyMap<Family, MacAddress>;

  constructor(
    { underlay }: BackendOptions,
    config: VxlanConfig,
    legs: readonly VxlanLeg[],
    macs: ReadonlyMap<Family, MacAddress>,
  ) {
    this.#config = config;
    this.#underlay = underlay.name;
    this.#legs = legs;
    this.#macs = macs;
    this.device = legs[0]!.device;
    this.mtu = podMtu(legs);
    this.directRouting = config.directRouting;
    this.attributes = vxlanAttributes(underlay, config, macs);
    this.facts = vxlanFacts('kernel', config, legs, macs);
  }

  base(leases: readonly Lease[]): KernelBase {
    return {
      links: this.#legs.map((leg) => this.#link(leg)),
      addresses: this.#legs.flatMap(({ device, family }) => baseAddresses(leases, device, family)),
      exclusive: this.#legs.map(({ device }) => device),
    };
  }

  path(prefix: Prefix, lease: Lease): KernelPath {
    const leg = this.#legs.find(({ family }) => family === prefix.family)!;
    const { device } = leg;
    const gateway = prefix.address;
    const mac = peerVtep(lease, prefix, this.#config.vni).toString();
    return {
      route: { destination: prefix, device, gateway, onlink: true },
      neighbour: { device, address: gateway, mac },
      fdb: { device, mac, remote: peerAddress(prefix, lease)! } satisfies DesiredFdbEntry,
    };
  }

  refusal(lease: Lease, prefix: Prefix): string | undefined {
    const { port = this.#config.port } = lease.attributes;
    return port === this.#config.port
      ? vxlanRefusal(lease, prefix, this.#config, this.#macs)
      : `it listens on UDP port ${port}, and the kernel's device sends to ${this.#config.port} only: use --vxlan-mode user`;
  }

  explain({ route }: KernelPath, reason: string): string {
    return `${route.device}: ${reason}`;
  }

  /** Without router advertisements, which a peer's pod could send. */
  async onDeviceMade(): Promise<void> {
    for (const { device } of this.#legs) await ensureSwitch(`/proc/sys/net/ipv6/conf/${device}/accept_ra`, '0');
  }

  #link(leg: VxlanLeg): DesiredLink {
    const { vni, port, gbp, learning } = this.#config;
    const mac = this.#macs.get(leg.family)!.toString();
    const command = [
      `link add ${leg.device} address ${mac} mtu ${leg.mtu}`,
      `type vxlan id ${vni} local ${leg.local.toString()} dev ${this.#underlay} dstport ${port}`,
      learning ? 'learning' : 'nolearning',
      ...(gbp ? ['gbp'] : []),
    ].join(' ');
    return {
      device: leg.device,
      up: true,
      mtu: leg.mtu,
      mac,
      create: { command, matches: (entry) => fits(entry, leg, this.#config, this.#underlay) },
    };
  }
}

/** What the lease says; the same in user space and with the kernel's device, so that a switch changes no byte of it. */
export function vxlanAttributes(
  underlay: BackendOptions['underlay'],
  { vni }: VxlanConfig,
  macs: ReadonlyMap<Family, MacAddress>,
): LeaseAttributes {
  const [mac4, mac6] = [macs.get(4), macs.get(6)];
  return {
    ...ownPublicAddresses(underlay),
    backendType: 'vxlan',
    ...(mac4 === undefined ? {} : { backendData: vtepData(vni, mac4) }),
    ...(mac6 === undefined ? {} : { backendV6Data: vtepData(vni, mac6) }),
  };
}

export function vxlanFacts(
  carriedBy: 'kernel' | 'podwire',
  { vni, port, directRouting }: VxlanConfig,
  legs: readonly VxlanLeg[],
  macs: ReadonlyMap<Family, MacAddress>,
): Readonly<Record<string, unknown>> {
  return {
    carriedBy,
    vni,
    port,
    directRouting,
    vtepMac: [...macs.values()].join(' '),
    devices: legs.map(({ device }) => device).join(' '),
  };
}

export function vxlanRefusal(
  lease: Lease,
  prefix: Prefix,
  { vni }: VxlanConfig,
  own: ReadonlyMap<Family, MacAddress>,
): string | undefined {
  const mac = peerVtep(lease, prefix, vni);
  if (typeof mac === 'string') return mac;
  // Frames with our own MAC would come back to us, or be taken for a loop.
  return own.get(prefix.family)?.equals(mac) === true ? `its VtepMAC ${mac.toString()} is our own` : undefined;
}
