/**
 * Which interface and address carry the tunnel, and why: flannel's rules (contract 9.1), in flannel's order.
 */
import { messageOf, PodwireError } from '../errors.js';
import { Address, type Family } from '../net/prefix.js';
import type { Early } from './early.js';
import type { Runner } from './exec.js';
import {
  defaultRouteDevice,
  type HostInterface,
  listInterfaces,
  ownerOf,
  routeTo,
  usableAddresses,
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
  /** Where the rule itself fixes addresses, at most one a family. */
  readonly fixed: readonly Address[];
  readonly why: string;
}

interface Host {
  readonly runner: Runner;
  readonly interfaces: readonly HostInterface[];
  readonly families: readonly Family[];
}

/**
 * @param families the enabled address families of the network, at least one.
 * @param early the interfaces, where they were asked for before the network was known.
 * @throws {PodwireError} `INTERFACE` (nothing matches, no address, MTU 0), `INVALID_ADDRESS`, `INVALID_ARGUMENT` (a
 *   bad pattern), `COMMAND_FAILED`.
 */
export async function selectInterface(
  runner: Runner,
  choice: InterfaceChoice,
  families: readonly Family[],
  early?: Early<HostInterface[]>,
): Promise<SelectedInterface> {
  const publicIp = parsePublic(choice.publicIp, 4, '--public-ip');
  const publicIpv6 = parsePublic(choice.publicIpv6, 6, '--public-ipv6');
  const patterns = (choice.ifaceRegex ?? []).map((text) => ({ text, expression: parseInterfacePattern(text) }));
  const host: Host = { runner, interfaces: await (early?.take() ?? listInterfaces(runner)), families };
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
  const chosen4 = families.includes(4) ? chooseAddress(match, 4, publicIp) : undefined;
  const chosen6 = families.includes(6) ? chooseAddress(match, 6, publicIpv6) : undefined;
  if (chosen4 === undefined && chosen6?.address.isLinkLocal === true) {
    throw new PodwireError(
      'INTERFACE',
      `interface ${entry.name} has only the link-local IPv6 address ${chosen6.address.toString()}, which no tunnel can be bound to: give it a global or unique local one`,
    );
  }
  const told = [
    ...(explicit && publicIp !== undefined ? ['the public address is --public-ip'] : []),
    ...(explicit && publicIpv6 !== undefined ? ['the public IPv6 address is --public-ipv6'] : []),
  ];
  return {
    name: entry.name,
    index: entry.index,
    mtu: entry.mtu,
    address: chosen4?.address,
    address6: chosen6?.address,
    publicIp: publicIp ?? chosen4?.address,
    publicIpv6: publicIpv6 ?? chosen6?.address,
    why: [match.why, chosen4?.why, chosen6?.why, ...told].filter((part) => part !== undefined).join('; '),
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

const POSIX_CLASSES: Readonly<Record<string, string>> = {
  alnum: 'A-Za-z0-9',
  alpha: 'A-Za-z',
  digit: '0-9',
  lower: 'a-z',
  punct: '!-\\/:-@\\[-`\\{-~',
  space: '\\s',
  upper: 'A-Z',
  word: '\\w',
  xdigit: '0-9A-Fa-f',
};

/**
 * A Go expression as JavaScript's: leading `(?i)`-style flags, `(?P<name>…)`, `\A`, `\z` and POSIX classes are
 * rewritten; whatever JavaScript does not know is an error, because the `u` flag lets nothing pass as something else.
 *
 * @throws {PodwireError} `INVALID_ARGUMENT`.
 */
export function parseInterfacePattern(pattern: string): RegExp {
  const lead = /^\(\?([ims]+)\)/.exec(pattern);
  const body = pattern
    .slice(lead?.[0].length ?? 0)
    .replaceAll('(?P<', '(?<')
    .replace(/\[:(\w+):\]/g, (whole, name: string) => POSIX_CLASSES[name] ?? whole)
    .replace(/\\([\s\S])/g, (whole, escaped: string) => {
      if (escaped === 'A') return '(?<![\\s\\S])';
      if (escaped === 'z') return '(?![\\s\\S])';
      // Go lets every punctuation mark be escaped.
      return /[-!"#%&',:;<=>@_`~ ]/.test(escaped) ? `\\x${escaped.charCodeAt(0).toString(16)}` : whole;
    });
  try {
    return new RegExp(body, `u${lead?.[1] ?? ''}`);
  } catch (error) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `--iface-regex ${JSON.stringify(pattern)} is no valid regular expression: ${messageOf(error)}`,
      { cause: error },
    );
  }
}

interface Pattern {
  /** As it was given. */
  readonly text: string;
  readonly expression: RegExp;
}

async function matchExplicit(host: Host, choice: InterfaceChoice, patterns: readonly Pattern[]): Promise<Match> {
  const tried: string[] = [];
  for (const text of choice.iface ?? []) {
    const match = matchIface(host, text);
    if (match !== undefined) return match;
    tried.push(`--iface ${text}`);
  }
  for (const pattern of patterns) {
    const match = matchPattern(host, pattern);
    if (match !== undefined) return match;
    tried.push(`--iface-regex ${pattern.text}`);
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
      return { entry, fixed: source === undefined ? [] : [source], why };
    }
    tried.push(`--iface-can-reach ${target.toString()} (device ${device})`);
  }
  throw new PodwireError(
    'INTERFACE',
    `Failed to find interface to use that matches the interfaces and/or regexes provided: ${tried.join(', ')}; ` +
      `this host has ${describeInterfaces(host.interfaces)}`,
  );
}

/** An interface without a usable address, or an address of a family that is not in use, is no match, as in flannel. */
function matchIface(host: Host, text: string): Match | undefined {
  const address = Address.tryParse(text);
  if (address !== undefined) {
    const entry = host.families.includes(address.family) ? ownerOf(host.interfaces, address) : undefined;
    return entry === undefined ? undefined : { entry, fixed: [address], why: `it owns --iface ${text}` };
  }
  const entry = host.interfaces.find((candidate) => candidate.name === text);
  if (entry === undefined || !usable(host, entry)) return undefined;
  return { entry, fixed: [], why: `named by --iface ${text}` };
}

/**
 * In flannel's order: an interface with an address that matches, of every family in use; one with a name that
 * matches. Last, where flannel gives up, one of whose families only one matches: an expression rarely means both.
 */
function matchPattern(host: Host, { text, expression }: Pattern): Match | undefined {
  const candidates = host.interfaces.filter((entry) => usable(host, entry));
  const matched = candidates.map((entry) => ({
    entry,
    fixed: host.families
      .map((family) => usableAddresses(entry, family).find((address) => expression.test(address.toString())))
      .filter((address) => address !== undefined),
  }));
  const byAddress = ({ entry, fixed }: { entry: HostInterface; fixed: Address[] }): Match => ({
    entry,
    fixed,
    why: `its address ${fixed.join(' and ')} matches --iface-regex ${text}`,
  });
  const whole = matched.find(({ fixed }) => fixed.length === host.families.length);
  if (whole !== undefined) return byAddress(whole);
  const entry = candidates.find(({ name }) => expression.test(name));
  if (entry !== undefined) return { entry, fixed: [], why: `its name matches --iface-regex ${text}` };
  const half = matched.find(({ fixed }) => fixed.length > 0);
  return half === undefined ? undefined : byAddress(half);
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
    const other = publicIp !== undefined && host.families.includes(6) ? publicIpv6 : undefined;
    const otherOwner = other === undefined ? undefined : ownerOf(host.interfaces, other);
    if (otherOwner !== undefined && otherOwner.index !== entry.index) {
      throw new PodwireError(
        'INTERFACE',
        `--public-ip is on ${entry.name} and --public-ipv6 on ${otherOwner.name}: both must be on one interface`,
      );
    }
    return { entry, fixed: [wanted], why: `it owns ${option} ${wanted.toString()}` };
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
  return { entry, fixed: [], why: 'it has the default route' };
}

function usable(host: Host, entry: HostInterface): boolean {
  return host.families.every((family) => usableAddresses(entry, family).length > 0);
}

/**
 * The address to send from: what the rule fixed, else the public one where the interface owns it (packets that peers
 * send there must find us), else the best one.
 */
function chooseAddress(
  { entry, fixed, why }: Match,
  family: Family,
  publicAddress: Address | undefined,
): { readonly address: Address; readonly why: string | undefined } {
  const given = fixed.find((address) => address.family === family && !address.isLoopback);
  if (given !== undefined) return { address: given, why: undefined };
  const addresses = usableAddresses(entry, family);
  const own = addresses.find((address) => publicAddress?.equals(address));
  const [address = own] = own === undefined ? addresses : [own];
  if (address === undefined) {
    throw new PodwireError(
      'INTERFACE',
      `failed to find an IPv${family} address that peers can reach on interface ${entry.name} (${why})`,
    );
  }
  if (addresses.length === 1) return { address, why: undefined };
  const reason =
    own === undefined ? `is the first of its ${addresses.length} IPv${family} addresses` : 'is its public one';
  return { address, why: `${address.toString()} ${reason}` };
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
