/**
 * The host's side of the TUN device: link state, MTU, addresses and the route of the pod network, as flannel's udp
 * backend sets them (contract 4.1).
 *
 * All of it hangs on the device and disappears with it, that is with the process that holds the TUN: there is nothing
 * to remove at the end, also after kill -9.
 */
import { messageOf, PodwireError } from '../errors.js';
import type { Address, Prefix } from '../net/prefix.js';
import { ipBatch, ipJson, type Runner } from './exec.js';
import type { DesiredSwitch, GuardedState } from './guard.js';
import { type HostInterface, listInterfaces, textField } from './interfaces.js';
import { ROUTE_PROTOCOL } from './routes.js';
import { ensureSwitch } from './system.js';

export interface OverlayLinkOptions {
  /** Name of the TUN device; it exists and is down. */
  readonly device: string;
  /** Overlay MTU in bytes. */
  readonly mtu: number;
  /** Own leases: the base address of each becomes a /32 (or /128) of the device, the source of host-to-pod packets. */
  readonly subnets: readonly Prefix[];
  /** Pod networks; each gets one route to the device. */
  readonly networks: readonly Prefix[];
  /** Packets that wait for a reader of the device before the kernel drops; absent: the kernel's default of 500. */
  readonly txQueueLength?: number;
}

/**
 * Brings the device up with its addresses and routes.
 *
 * @returns one line for each thing that did not work but does not keep packets from moving.
 * @throws {PodwireError} `INTERFACE` (a route for the network exists), `COMMAND_FAILED`.
 */
export async function bringUp(runner: Runner, options: OverlayLinkOptions): Promise<string[]> {
  const warnings = await quietIpv6(options);
  const { device } = options;
  const hasIpv6 = options.subnets.some((subnet) => subnet.family === 6);
  const commands = [
    ...(hasIpv6 ? [`link set dev ${device} addrgenmode none`] : []),
    `link set dev ${device} mtu ${options.mtu}` +
      (options.txQueueLength === undefined ? '' : ` txqueuelen ${options.txQueueLength}`),
    ...options.subnets.map((subnet) => `address add ${hostAddress(subnet)} dev ${device}`),
    `link set dev ${device} up`,
    ...options.networks.map((network) => routeCommand(network, device)),
  ];
  try {
    await ipBatch(runner, commands);
  } catch (error) {
    if (error instanceof PodwireError && /route add .*File exists/.test(error.message)) {
      const networks = options.networks.join(', ');
      throw new PodwireError(
        'INTERFACE',
        `another route takes the pod network ${networks} (${error.message}): remove it (see: ip route) or choose another Network`,
        { cause: error },
      );
    }
    throw error;
  }
  return warnings;
}

/**
 * What {@link bringUp} has set up, for the guard that keeps it so. A foreign route that takes the place of ours while
 * the agent runs is overwritten; a second agent's is not.
 */
export function linkState({ device, mtu, subnets, networks }: OverlayLinkOptions): GuardedState {
  return {
    families: networks.map(({ family }) => family),
    links: [{ device, up: true, mtu }],
    addresses: subnets.map(({ address, family }) => ({ device, address, length: family === 4 ? 32 : 128 })),
    routes: networks.map((destination) => ({ destination, device })),
    mayDisplace: ({ protocol }) => protocol !== String(ROUTE_PROTOCOL),
    switches: quietSwitches(device, subnets),
  };
}

/**
 * Adds the addresses of new leases; the old ones stay. Already there is fine.
 *
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function addSubnets(runner: Runner, device: string, subnets: readonly Prefix[]): Promise<void> {
  await ipBatch(
    runner,
    subnets.map((subnet) => `address replace ${hostAddress(subnet)} dev ${device}`),
  );
}

/**
 * Removes the addresses of leases that are over. One that is gone already is fine.
 *
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function removeSubnets(runner: Runner, device: string, subnets: readonly Prefix[]): Promise<void> {
  for (const subnet of subnets) {
    try {
      await runner('ip', ['address', 'del', hostAddress(subnet), 'dev', device]);
    } catch (error) {
      if (!/Cannot assign requested address|Address not found/.test(messageOf(error))) throw error;
    }
  }
}

/** Names of the TUN devices of this network namespace. @throws {PodwireError} `COMMAND_FAILED`. */
export async function listTunDevices(runner: Runner): Promise<Set<string>> {
  const entries = await ipJson(runner, ['link', 'show', 'type', 'tun']);
  return new Set(entries.map((entry) => textField(entry, 'ifname')).filter((name) => name !== undefined));
}

/** {@link listTunDevices} of a host that has been looked at. */
export function tunDevicesOf(interfaces: readonly HostInterface[]): Set<string> {
  return new Set(interfaces.filter(({ kind }) => kind === 'tun').map(({ name }) => name));
}

/** Every address of this host but loopback's: what a peer's packet must not carry as its source. */
export async function listOwnAddresses(runner: Runner): Promise<Address[]> {
  return ownAddressesOf(await listInterfaces(runner));
}

/** {@link listOwnAddresses} of a host that has been looked at. */
export function ownAddressesOf(interfaces: readonly HostInterface[]): Address[] {
  return interfaces
    .flatMap(({ addresses }) => addresses.map(({ address }) => address))
    .filter((address) => !address.isLoopback && !address.isLinkLocal);
}

function hostAddress(subnet: Prefix): string {
  return `${subnet.address.toString()}/${subnet.family === 4 ? 32 : 128}`;
}

function routeCommand(network: Prefix, device: string): string {
  // Scope global and no source, as flannel's: the kernel then picks the device's address.
  const scope = network.family === 4 ? ' scope global' : '';
  return `route add ${network.toString()} dev ${device} proto ${ROUTE_PROTOCOL}${scope}`;
}

/**
 * Keeps the kernel from sending router solicitations and multicast reports into the tunnel. Without an IPv6 lease the
 * device has no IPv6 at all.
 */
async function quietIpv6(options: OverlayLinkOptions): Promise<string[]> {
  const failed: string[] = [];
  for (const { path, value } of quietSwitches(options.device, options.subnets)) {
    const outcome = await ensureSwitch(`/proc/sys/${path}`, value);
    // A kernel without IPv6 has no such file and nothing to keep quiet.
    if (typeof outcome === 'object' && !outcome.failed.includes('ENOENT')) {
      failed.push(`${path.slice(path.lastIndexOf('/') + 1)} (${outcome.failed})`);
    }
  }
  return failed.length === 0
    ? []
    : [`IPv6 is not quiet on ${options.device}, it will send a few stray packets: cannot set ${failed.join(', ')}`];
}

function quietSwitches(device: string, subnets: readonly Prefix[]): DesiredSwitch[] {
  const hasIpv6 = subnets.some((subnet) => subnet.family === 6);
  const switches = hasIpv6
    ? { disable_ipv6: '0', accept_ra: '0', router_solicitations: '0', accept_dad: '0' }
    : { disable_ipv6: '1' };
  return Object.entries(switches).map(([name, value]) => ({ path: `net/ipv6/conf/${device}/${name}`, value }));
}
