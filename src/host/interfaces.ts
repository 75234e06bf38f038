/**
 * What the kernel says about this host's interfaces and the routes to an address, read through `ip -j`.
 */
import { PodwireError } from '../errors.js';
import { Address, type Family } from '../net/prefix.js';
import { ipJson, type Runner } from './exec.js';

export interface InterfaceAddress {
  readonly address: Address;
  readonly prefixLength: number;
  readonly scope: 'global' | 'site' | 'link' | 'host' | 'other';
  /** Its preferred lifetime is over: no new connections should use it. */
  readonly deprecated: boolean;
  /** Has a lifetime (DHCP, SLAAC), unlike a permanent one. */
  readonly dynamic: boolean;
  /** An RFC 8981 privacy address. */
  readonly temporary: boolean;
  /** Duplicate address detection has not ended yet, or has found another owner: nothing can be sent from it. */
  readonly tentative: boolean;
  readonly duplicate: boolean;
}

export interface HostInterface {
  readonly name: string;
  readonly index: number;
  /** Bytes; 0 when the kernel names none. */
  readonly mtu: number;
  readonly up: boolean;
  /** The link works: a cable is plugged in, the other end is up. */
  readonly carrier: boolean;
  /** `ip` link type of a virtual device (`tun`, `vxlan`, …), where the kernel tells. */
  readonly kind: string | undefined;
  /** In the kernel's order. */
  readonly addresses: readonly InterfaceAddress[];
}

const SCOPES = new Set(['global', 'site', 'link', 'host']);

/** A property of an unknown JSON value, or undefined. */
export function field(value: unknown, key: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined;
}

export function textField(value: unknown, key: string): string | undefined {
  const found = field(value, key);
  return typeof found === 'string' ? found : undefined;
}

export function numberField(value: unknown, key: string): number | undefined {
  const found = field(value, key);
  return typeof found === 'number' ? found : undefined;
}

export function listField(value: unknown, key: string): readonly unknown[] {
  const found = field(value, key);
  return Array.isArray(found) ? found : [];
}

function parseAddress(entry: unknown): InterfaceAddress | undefined {
  const address = Address.tryParse(textField(entry, 'local') ?? '');
  if (address === undefined) return undefined;
  const scope = textField(entry, 'scope') ?? '';
  return {
    address,
    prefixLength: numberField(entry, 'prefixlen') ?? (address.family === 4 ? 32 : 128),
    scope: SCOPES.has(scope) ? (scope as InterfaceAddress['scope']) : 'other',
    deprecated: field(entry, 'deprecated') === true,
    dynamic: field(entry, 'dynamic') === true,
    temporary: field(entry, 'temporary') === true,
    tentative: field(entry, 'tentative') === true,
    duplicate: field(entry, 'dadfailed') === true,
  };
}

/**
 * Every interface of this network namespace, in index order.
 *
 * @throws {PodwireError} `COMMAND_FAILED` as {@link ipJson}.
 */
export async function listInterfaces(runner: Runner): Promise<HostInterface[]> {
  const interfaces: HostInterface[] = [];
  for (const entry of await ipJson(runner, ['-d', 'address', 'show'])) {
    const name = textField(entry, 'ifname');
    const index = numberField(entry, 'ifindex');
    if (name === undefined || index === undefined) continue;
    interfaces.push({
      name,
      index,
      mtu: numberField(entry, 'mtu') ?? 0,
      up: listField(entry, 'flags').includes('UP'),
      carrier: listField(entry, 'flags').includes('LOWER_UP'),
      kind: textField(field(entry, 'linkinfo'), 'info_kind'),
      addresses: listField(entry, 'addr_info')
        .map(parseAddress)
        .filter((address) => address !== undefined),
    });
  }
  return interfaces.sort((a, b) => a.index - b.index);
}

/** The interface that owns exactly this address. */
export function ownerOf(interfaces: readonly HostInterface[], address: Address): HostInterface | undefined {
  return interfaces.find((entry) => entry.addresses.some((candidate) => candidate.address.equals(address)));
}

/**
 * The addresses of `family` that may be used on an interface, best first, in flannel's order (contract 9.1): not
 * deprecated; global before link-local, permanent before dynamic, not temporary before temporary; otherwise the
 * kernel's order. Loopback and other addresses that no peer can reach do not count, and none that another host has.
 */
export function usableAddresses(entry: HostInterface, family: Family): Address[] {
  const rank = (candidate: InterfaceAddress): number =>
    (candidate.tentative ? 8 : 0) +
    (candidate.address.isLinkLocal || candidate.scope === 'link' ? 4 : 0) +
    (candidate.dynamic ? 2 : 0) +
    (candidate.temporary ? 1 : 0);
  return entry.addresses
    .filter(({ address, deprecated, duplicate }) => address.family === family && !deprecated && !duplicate)
    .filter(({ address }) => !address.isLoopback && !address.isMulticast && !address.isUnspecified)
    .sort((a, b) => rank(a) - rank(b))
    .map(({ address }) => address);
}

/**
 * The device of the first default route of `family` (of a multipath route: of its first next hop).
 *
 * @throws {PodwireError} `COMMAND_FAILED`.
 */
export async function defaultRouteDevice(runner: Runner, family: Family): Promise<string | undefined> {
  for (const route of await ipJson(runner, [`-${family}`, 'route', 'show', 'default'])) {
    const type = textField(route, 'type');
    if (type !== undefined && type !== 'unicast') continue;
    const device = textField(route, 'dev') ?? textField(listField(route, 'nexthops')[0], 'dev');
    if (device !== undefined) return device;
  }
  return undefined;
}

/**
 * Where the kernel would send a packet for `target`: the device and the source address it would take.
 *
 * @throws {PodwireError} `INTERFACE` when there is no route.
 */
export async function routeTo(
  runner: Runner,
  target: Address,
): Promise<{ readonly device: string; readonly source: Address | undefined }> {
  let route: unknown;
  try {
    [route] = await ipJson(runner, [`-${target.family}`, 'route', 'get', target.toString()]);
  } catch (error) {
    if (error instanceof PodwireError && error.errno === undefined) {
      throw new PodwireError('INTERFACE', `no route to ${target.toString()} (${error.message})`, { cause: error });
    }
    throw error;
  }
  const device = textField(route, 'dev');
  if (device === undefined) throw new PodwireError('INTERFACE', `no route to ${target.toString()}`);
  return { device, source: Address.tryParse(textField(route, 'prefsrc') ?? '') };
}
