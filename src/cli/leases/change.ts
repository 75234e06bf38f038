/** What `podwire leases` writes: reservations, releases, the network config. */
import { fits } from '../../control/allocator.js';
import { leaseKey, tryParseLeaseKey } from '../../control/lease-key.js';
import {
  isExpired,
  type Lease,
  type LeaseAttributes,
  sameSubnets,
  subnetsOf,
  type LeaseSubnets,
  type StoreAdmin,
} from '../../control/lease.js';
import { networksOf, parseNetworkConfig } from '../../control/network-config.js';
import { PodwireError } from '../../errors.js';
import { Address, type Family, Prefix } from '../../net/prefix.js';
import { formatDuration } from '../format.js';
import { UsageError } from '../usage.js';

/** Of a long list in a message. */
const MOST_NAMED = 5;

/**
 * `10.42.5.0/24`, a lease's key (`10.42.5.0-24`), or the two subnets of a dual-stack lease.
 *
 * @throws {UsageError}
 */
export function readSubnets(texts: readonly string[]): LeaseSubnets {
  const [first = '', second] = texts;
  const key = second === undefined ? tryParseLeaseKey(first) : undefined;
  if (key !== undefined) return key;
  const prefixes = texts.map((text) => {
    const prefix = Prefix.tryParse(text);
    if (prefix !== undefined) return prefix;
    throw new UsageError(
      `${JSON.stringify(text)} is no subnet: write it like 10.42.5.0/24, or like the key 10.42.5.0-24`,
    );
  });
  const [subnet, subnet6] = prefixes.toSorted((a, b) => a.family - b.family);
  if (subnet === undefined || prefixes.length > 2 || (subnet6 !== undefined && subnet.family === subnet6.family)) {
    throw new UsageError(`${texts.join(' ')}: give one subnet, or the IPv4 and the IPv6 subnet of one lease`);
  }
  return { subnet, ...(subnet6 && { subnet6 }) };
}

/** @throws {UsageError} */
export function readAddress(option: string, text: string, family: Family): Address {
  const address = Address.tryParse(text);
  if (address?.family === family) return address;
  throw new UsageError(`${option} ${JSON.stringify(text)} is not an IPv${family} address`);
}

/** The attributes of a reservation: what udp writes, which peers of every backend accept (contract 2.1). */
export function reservationFor(publicIp: string | undefined, publicIpv6: string | undefined): LeaseAttributes {
  if (publicIp === undefined && publicIpv6 === undefined) {
    throw new UsageError(
      'give the host that it is for: --public-ip ADDRESS, and --public-ipv6 in a dual-stack network',
    );
  }
  return {
    publicIp: publicIp === undefined ? Address.fromUint32(0) : readAddress('--public-ip', publicIp, 4),
    ...(publicIpv6 !== undefined && { publicIpv6: readAddress('--public-ipv6', publicIpv6, 6) }),
    backendType: '',
  };
}

/** @param warn gets one line for whatever keeps the reservation from being what was meant */
export async function reserve(
  admin: StoreAdmin,
  subnets: LeaseSubnets,
  attributes: LeaseAttributes,
  warn: (line: string) => void,
): Promise<Lease> {
  const lease = await admin.reserve(subnets, attributes);
  const address = addressOf(attributes);
  for (const other of await admin.list()) {
    if (sameSubnets(other, lease) || addressOf(other.attributes) !== address) continue;
    warn(`${address} also holds ${leaseKey(other)}: its agent may go on with that one until it is released`);
  }
  return lease;
}

/**
 * @throws {PodwireError} LEASE_LOST when there is no such lease; LEASE_CONFLICT when a host still uses it and `force` is
 * not given.
 */
export async function release(
  admin: StoreAdmin,
  subnets: LeaseSubnets,
  { force, now }: { readonly force: boolean; readonly now: Date },
): Promise<Lease> {
  const lease = (await admin.list()).find((each) => sameSubnets(each, subnets));
  const key = leaseKey(subnets);
  if (lease !== undefined && !force && lease.expiresAt !== undefined && !isExpired(lease, now.getTime())) {
    const left = formatDuration(lease.expiresAt.getTime() - now.getTime());
    throw new PodwireError(
      'LEASE_CONFLICT',
      `${key} is held by ${addressOf(lease.attributes)} for another ${left} and may be in use: stop that host's agent and let ` +
        'it end, or give --force (a live podwire agent takes it again at once, flanneld exits)',
    );
  }
  if (lease === undefined || !(await admin.remove(subnets))) {
    throw new PodwireError('LEASE_LOST', `there is no lease ${key}: see podwire leases list`);
  }
  return lease;
}

/**
 * Checks a network config and says what it would do to the leases that are there.
 *
 * @returns one line for each warning.
 * @throws {PodwireError} INVALID_CONFIG as agents and flanneld would.
 */
export function judgeConfig(text: string, leases: readonly Lease[], now: Date): string[] {
  const config = parseNetworkConfig(text);
  const live = leases.filter((lease) => !isExpired(lease, now.getTime()));
  const warnings: string[] = [];
  const outside = live.filter((lease) => !fits(lease, config));
  if (outside.length > 0) {
    const networks = networksOf(config).join(' and ');
    warnings.push(
      `${count(outside)} would not fit into ${networks} (range, subnet length, families): ${named(outside)}; their ` +
        'hosts keep them until they restart and then get others, and podwire hosts refuse what is outside of the network',
    );
  }
  const usual = config.backend.type === 'udp' || config.backend.type === 'alloc' ? '' : config.backend.type;
  const others = live.filter(
    ({ attributes, expiresAt }) => expiresAt !== undefined && attributes.backendType !== usual,
  );
  if (others.length > 0) {
    warnings.push(
      `${count(others)} of another backend than ${config.backend.type}: ${named(others)}; those hosts must be restarted ` +
        'to follow, until then they and the others ignore each other',
    );
  }
  if (config.backend.defaulted) {
    warnings.push(
      'it names no Backend, so that it is udp (flannel\'s default); add "Backend":{"Type":"udp"} to say so',
    );
  }
  return warnings;
}

function count(leases: readonly Lease[]): string {
  return leases.length === 1 ? '1 lease' : `${leases.length} leases`;
}

function named(leases: readonly Lease[]): string {
  const first = leases
    .slice(0, MOST_NAMED)
    .map((lease) => `${subnetsOf(lease).join(' ')} of ${addressOf(lease.attributes)}`);
  return [...first, ...(leases.length > MOST_NAMED ? [`and ${leases.length - MOST_NAMED} more`] : [])].join(', ');
}

function addressOf({ publicIp, publicIpv6 }: LeaseAttributes): string {
  return (publicIp.isUnspecified && publicIpv6 ? publicIpv6 : publicIp).toString();
}
