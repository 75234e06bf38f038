/**
 * Which interface and address carry the tunnel, and why: flannel's rules (contract 9.1), in flannel's order.
 */
import { messageOf, PodwireError } from '../errors.js';
import { Address, type Family } from '../net/prefix.js';
import type { Runner } from './exec.js';
import {
  defaultRouteDevice,
  type HostInterface,
  listInterfaces,
  ownerOf,
  preferredAddress,
  routeTo,
} from './interfaces.js';

export interface InterfaceChoice {
  /** Names or addresses, tried in order. */
  readonly iface?: readonly string[];
  /** Regular expressions, tried in order: first on the addresses of every interface, then on the names. */
  readonly ifaceRegex?: readonly string[];
  /** Take the interface and source address of the kernel's route to this address. */
  readonly ifaceCanReach?: string;
  /** The address that peers use; default: the interface's own. Without the options above it also picks the interface. */
  readonly publicIp?: string;
  readonly publicIpv6?: string;
}

export interface SelectedInterface {
  readonly name: string;
  readonly index: number;
  /** Bytes, never 0. */
  readonly mtu: number;
  /** The interface's IPv4 address (undefined only when IPv4 is not asked for). */
  readonly address: Address | undefined;
  readonly address6: Address | undefined;
  /** What the lease tells the peers: the option, or the interface's address. */
  readonly publicIp: Address | undefined;
  readonly publicIpv6: Address | undefined;
  /** One clause for log and status: how the interface and the addresses were chosen. */
  readonly why: string;
}

interface Match {
  readonly entry: HostInterface;
  /** Set where the rule itself fixes the address. */
  readonly address?: Address;
  readonly why: string;
}

interface Host {
  readonly runner: Runner;
  readonly interfaces: readonly HostInterface[];
  readonly families: readonly Family[];
}

/**
 * @param families the enabled address families of the network, at least one.
 * @throws {PodwireError} `INTERFACE` (nothing matches, no address, MTU 0), `INVALID_ADDRESS`, `INVALID_ARGUMENT` (a
 *   bad pattern), `COMMAND_FAILED`.
 */
export async function selectInterface(
  runner: Runner,
  choice: InterfaceChoice,
  families: readonly Family[],
): Promise<SelectedInterface> {
  const publicIp = parsePublic(choice.publicIp, 4, '--public-ip');
  const publicIpv6 = parsePublic(choice.publicIpv6, 6, '--public-ipv6');
  const patterns = (choice.ifaceRegex ?? []).map(parsePattern);
  const host: Host = { runner, interfaces: await listInterfaces(runner), families };
  const explicit = (choice.iface?.length ?? 0) + patterns.length > 0 || choice.ifaceCanReach !== undefined;
  const match = explicit
    ? await matchExplicit(host, choice, patterns)
    : await matchDefault(host, families.includes(4) ? publicIp : undefined, publicIpv6);
  const { entry } = match;
  if (entry.mtu === 0) {
    throw new PodwireError(
      'INTERFACE',
      `interface ${entry.name} has no MTU: set one (ip link set ${entry.name} mtu …)`,
    );
  }
  const address = families.includes(4) ? requireAddress(match, 4) : undefined;
  const address6 = families.includes(6) ? requireAddress(match, 6) : undefined;
  return {
    name: entry.name,
    index: entry.index,
    mtu: entry.mtu,
    address,
    address6,
    publicIp: publicIp ?? address,
    publicIpv6: publicIpv6 ?? address6,
    why: match.why + (explicit && publicIp !== undefined ? '; the public address is --public-ip' : ''),
  };
}

function parsePublic(text: string | undefined, family: Family, option: string): Address | undefined {
  if (text === undefined) return undefined;
  const address = Address.tryParse(text);
  if (address === undefined || address.family !== family) {
    throw new PodwireError(
      'INVALID_ADDRESS',
      `invalid public IP address: ${option} ${JSON.stringify(text)} is not an IPv${family} address`,
    );
  }
  if (address.isUnspecified || address.isLoopback || address.isMulticast || address.isBroadcast) {
    throw new PodwireError(
      'INVALID_ADDRESS',
      `${option} ${text} cannot be reached by peers: give an address of this host (or of its NAT)`,
    );
  }
  return address;
}

/** Go's leading `(?i)` style flags have no JavaScript spelling inside a pattern: they become the expression's flags. */
function parsePattern(pattern: string): RegExp {
  const lead = /^\(\?([ims]+)\)/.exec(pattern);
  try {
    return new RegExp(lead === null ? pattern : pattern.slice(lead[0].length), lead?.[1] ?? '');
  } catch (error) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `--iface-regex ${JSON.stringify(pattern)} is no valid regular expression: ${messageOf(error)}`,
      { cause: error },
    );
  }
}

async function matchExplicit(host: Host, choice: InterfaceChoice, patterns: readonly RegExp[]): Promise<Match> {
  const tried: string[] = [];
  for (const text of choice.iface ?? []) {
    const match = matchIface(host, text);
    if (match !== undefined) return match;
    tried.push(`--iface ${text}`);
  }
  for (const pattern of patterns) {
    const match = matchPattern(host, pattern);
    if (match !== undefined) return match;
    tried.push(`--iface-regex ${pattern.source}`);
  }
  if (choice.ifaceCanReach !== undefined) {
    const target = Address.tryParse(choice.ifaceCanReach);
    if (target === undefined) {
      throw new PodwireError('INVALID_ADDRESS', `--iface-can-reach ${choice.ifaceCanReach} is not an IP address`);
    }
    const { device, source } = await routeTo(host.runner, target);
    const entry = host.interfaces.find((candidate) => candidate.name === device);
    if (entry !== undefined) {
      const why = `the kernel's route to --iface-can-reach ${target.toString()} leaves there`;
      return source === undefined ? { entry, why } : { entry, address: source, why };
    }
    tried.push(`--iface-can-reach ${target.toString()} (device ${device})`);
  }
  throw new PodwireError(
    'INTERFACE',
    `Failed to find interface to use that matches the interfaces and/or regexes provided: ${tried.join(', ')}; ` +
      `this host has ${describeInterfaces(host.interfaces)}`,
  );
}

/** An interface without a usable address is no match, as in flannel: the next option gets its turn. */
function matchIface(host: Host, text: string): Match | undefined {
  const address = Address.tryParse(text);
  if (address !== undefined) {
    const entry = ownerOf(host.interfaces, address);
    return entry === undefined ? undefined : { entry, address, why: `it owns --iface ${text}` };
  }
  const entry = host.interfaces.find((candidate) => candidate.name === text);
  return entry !== undefined && usable(host, entry) ? { entry, why: `named by --iface ${text}` } : undefined;
}

function matchPattern(host: Host, pattern: RegExp): Match | undefined {
  for (const entry of host.interfaces) {
    if (!usable(host, entry)) continue;
    const found = entry.addresses.find(
      ({ address, deprecated }) =>
        host.families.includes(address.family) &&
        !deprecated &&
        !address.isLoopback &&
        pattern.test(address.toString()),
    );
    if (found !== undefined) {
      const why = `its address ${found.address.toString()} matches --iface-regex ${pattern.source}`;
      return { entry, address: found.address, why };
    }
  }
  const entry = host.interfaces.find((candidate) => pattern.test(candidate.name) && usable(host, candidate));
  return entry === undefined ? undefined : { entry, why: `its name matches --iface-regex ${pattern.source}` };
}

async function matchDefault(
  host: Host,
  publicIp: Address | undefined,
  publicIpv6: Address | undefined,
): Promise<Match> {
  const wanted = publicIp ?? publicIpv6;
  if (wanted !== undefined) {
    const option = wanted.family === 4 ? '--public-ip' : '--public-ipv6';
    const entry = ownerOf(host.interfaces, wanted);
    if (entry === undefined) {
      throw new PodwireError(
        'INTERFACE',
        `no interface owns ${option} ${wanted.toString()}: name the interface with --iface too; ` +
          `this host has ${describeInterfaces(host.interfaces)}`,
      );
    }
    return { entry, address: wanted, why: `it owns ${option} ${wanted.toString()}` };
  }
  const devices = new Map<Family, string>();
  for (const family of host.families) {
    const device = await defaultRouteDevice(host.runner, family);
    if (device === undefined) {
      throw new PodwireError(
        'INTERFACE',
        `there is no IPv${family} default route to choose the interface by: name it with --iface; ` +
          `this host has ${describeInterfaces(host.interfaces)}`,
      );
    }
    devices.set(family, device);
  }
  const [device] = devices.values();
  if (new Set(devices.values()).size > 1) {
    throw new PodwireError(
      'INTERFACE',
      `the IPv4 and IPv6 default routes leave by different interfaces (${[...devices.values()].join(', ')}): name one with --iface`,
    );
  }
  const entry = host.interfaces.find((candidate) => candidate.name === device);
  if (entry === undefined) throw new PodwireError('INTERFACE', `the default route's interface ${device} is gone`);
  return { entry, why: 'it has the default route' };
}

function usable(host: Host, entry: HostInterface): boolean {
  return host.families.every((family) => preferredAddress(entry, family) !== undefined);
}

function requireAddress(match: Match, family: Family): Address {
  const { entry } = match;
  const address = match.address?.family === family ? match.address : preferredAddress(entry, family);
  if (address === undefined || address.isLoopback) {
    throw new PodwireError(
      'INTERFACE',
      `failed to find an IPv${family} address that peers can reach on interface ${entry.name} (${match.why})`,
    );
  }
  return address;
}

/** `eth0 (10.0.0.5), eth1 (no address)`: what a person could have meant. */
function describeInterfaces(interfaces: readonly HostInterface[]): string {
  const shown = interfaces
    .filter((entry) => entry.name !== 'lo')
    .slice(0, 8)
    .map((entry) => {
      const addresses = entry.addresses.filter(({ address }) => !address.isLinkLocal).map(({ address }) => address);
      return `${entry.name} (${addresses.length === 0 ? 'no address' : addresses.join(' ')})`;
    });
  return shown.length === 0 ? 'no interface but lo' : shown.join(', ');
}
