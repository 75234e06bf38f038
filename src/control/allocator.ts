/**
 * Which subnet a host gets, decided from what the store holds: a pure function, so that every store decides alike.
 *
 * flannel's order: the lease that already has our PublicIP, then the subnet we had before, then one drawn from
 * the first hundred free ones (not simply the first, so that hosts starting together rarely want the same).
 * Where flannel leaves a gap, this fills it: subnets of expired leases are used last, oldest first, so that a host
 * that comes back late finds its own; IPv4 and IPv6 are kept one by one when only one of them still fits.
 */
import { PodwireError } from '../errors.js';
import { type Address, Prefix } from '../net/prefix.js';
import {
  belongsTo,
  overlap,
  sameHost,
  sameSubnets,
  subnetsOf,
  type AcquireRequest,
  type Lease,
  type LeaseAttributes,
  type LeaseSubnets,
} from './lease.js';
import { leaseKey } from './lease-key.js';
import { ipv4Pool, ipv6Pool, type NetworkConfig, type SubnetPool } from './network-config.js';
import { fromBigInt, mergeRanges, rangeOf, toBigInt } from './ranges.js';

/** How many free subnets the draw is made from. */
const CANDIDATES = 100;

/** One entry of the store. */
export interface HeldSubnets extends LeaseSubnets {
  /** Absent: the value cannot be read, so somebody unknown holds it. */
  readonly lease?: Lease;
  readonly expired: boolean;
}

export interface AllocationInput {
  readonly config: NetworkConfig;
  readonly request: AcquireRequest;
  readonly held: readonly HeldSubnets[];
  /** Uniform in [0, 1). */
  readonly random: () => number;
}

export interface Allocation {
  readonly subnets: LeaseSubnets;
  /** `own`: `lease` is already ours. `previous`, `free`: nobody has it. `expired`: `evict` had it. */
  readonly from: 'own' | 'previous' | 'free' | 'expired';
  /** Our entry to renew, when `from` is `own`. */
  readonly own?: Lease;
  /** `own` has run out, so that others may be taking it. */
  readonly ownExpired: boolean;
  /** Expired leases of others that overlap the choice and must go first. */
  readonly evict: readonly Lease[];
  /** Leases of ours that do not fit the config any more; to be removed once the new one stands. */
  readonly discard: readonly Lease[];
  /** Live leases of other agents that claim our PublicIP. */
  readonly conflicts: readonly Lease[];
}

/**
 * Decides what to acquire.
 * @throws PodwireError OUT_OF_SUBNETS when nothing is free; INVALID_ARGUMENT for a PublicIP that no peer could use.
 */
export function allocate(input: AllocationInput): Allocation {
  const { config, request, held } = input;
  checkRequest(config, request);
  const ours: HeldSubnets[] = [];
  const theirs: HeldSubnets[] = [];
  for (const entry of held) (entry.lease && isOurs(entry.lease, entry.expired, request) ? ours : theirs).push(entry);
  const live = theirs.filter((entry) => !entry.expired);
  const conflicts = live.flatMap(({ lease }) =>
    lease && sameHost(lease.attributes, request.attributes) ? [lease] : [],
  );

  const { previous } = request;
  const isPrevious = (entry: LeaseSubnets): boolean =>
    previous?.subnet !== undefined && sameSubnets(entry, { ...previous, subnet: previous.subnet });
  // Of several, the one we had last; else byte order of the key decides, as in flannel.
  ours.sort((a, b) => Number(isPrevious(b)) - Number(isPrevious(a)) || compareBytes(leaseKey(a), leaseKey(b)));
  const own = ours.find(
    (entry) =>
      fits(entry, config) &&
      !(entry.expired && live.some((other) => overlap(other, entry))) &&
      !(request.isServing && !isPrevious(entry) && isFree(previous, live, config)),
  );
  const discard = ours.flatMap(({ lease }) => (lease?.expiresAt && !fits(lease, config) ? [lease] : []));
  if (own?.lease) {
    return { subnets: own, from: 'own', own: own.lease, ownExpired: own.expired, evict: [], discard, conflicts };
  }

  const expired = theirs.flatMap(({ lease, expired: over }) => (lease && over ? [lease] : []));
  const wanted = [previous?.subnet, previous?.subnet6, ...ours.flatMap(subnetsOf)];
  const pools = [ipv4Pool(config), ipv6Pool(config)].filter((pool) => pool !== undefined);
  const chosen = pools.map((pool) => chooseFrom(pool, { wanted, live, expired, random: input.random }));
  const [first, second] = chosen;
  if (!first || chosen.length !== pools.length || chosen.includes(undefined)) throw outOfSubnets(config, held);
  const subnets: LeaseSubnets = { subnet: first.subnet, ...(second && { subnet6: second.subnet }) };
  const evict = expired.filter((lease) => overlap(lease, subnets));
  const from = evict.length > 0 ? 'expired' : first.from;
  return { subnets, from, ownExpired: false, evict, discard, conflicts };
}

/** Whether the subnets are ones this config would hand out: families, lengths and range all agree. */
export function fits(subnets: LeaseSubnets, config: NetworkConfig): boolean {
  const pools = [ipv4Pool(config), ipv6Pool(config)].filter((pool) => pool !== undefined);
  const parts = subnetsOf(subnets);
  return parts.length === pools.length && pools.every((pool, i) => inPool(parts[i], pool));
}

/** Whether all of `previous` can be had. */
function isFree(previous: AcquireRequest['previous'], live: readonly HeldSubnets[], config: NetworkConfig): boolean {
  if (!previous?.subnet) return false;
  const wanted = { ...previous, subnet: previous.subnet };
  return fits(wanted, config) && !live.some((other) => overlap(other, wanted));
}

function isOurs(lease: Lease, expired: boolean, request: AcquireRequest): boolean {
  // A reinstalled host has a new owner name: it may have its PublicIP's lease back once that has run out.
  return belongsTo(lease, request) || (expired && belongsTo(lease, { attributes: request.attributes }));
}

function inPool(subnet: Prefix | undefined, pool: SubnetPool): boolean {
  return (
    subnet !== undefined &&
    subnet.family === pool.network.family &&
    subnet.length === pool.subnetLen &&
    subnet.address.compare(pool.min) >= 0 &&
    subnet.address.compare(pool.max) <= 0
  );
}

interface ChoiceInput {
  readonly wanted: readonly (Prefix | undefined)[];
  readonly live: readonly HeldSubnets[];
  readonly expired: readonly Lease[];
  readonly random: () => number;
}

function chooseFrom(pool: SubnetPool, input: ChoiceInput): { subnet: Prefix; from: Allocation['from'] } | undefined {
  const { wanted, live, expired, random } = input;
  const taken = live.flatMap(subnetsOf);
  const previous = wanted.find(
    (subnet) => subnet && inPool(subnet, pool) && !taken.some((other) => other.overlaps(subnet)),
  );
  if (previous) return { subnet: previous, from: 'previous' };
  const unused = freeSubnets(pool, [...taken, ...expired.flatMap(subnetsOf)]);
  if (unused.length > 0) return { subnet: draw(unused, random), from: 'free' };
  const reusable = freeSubnets(pool, taken)
    .map((subnet) => ({ subnet, endedMs: lastEnd(expired, subnet) }))
    .sort((a, b) => a.endedMs - b.endedMs);
  // A draw among the oldest quarter: always the very oldest would set racing hosts on one subnet.
  const oldest = reusable.slice(0, Math.ceil(reusable.length / 4));
  return oldest.length > 0 ? { subnet: draw(oldest, random).subnet, from: 'expired' } : undefined;
}

function lastEnd(expired: readonly Lease[], subnet: Prefix): number {
  const ends = expired.filter((lease) => overlap(lease, { subnet })).map((lease) => lease.expiresAt?.getTime() ?? 0);
  return Math.max(...ends);
}

function draw<T>(candidates: readonly T[], random: () => number): T {
  return candidates[Math.min(candidates.length - 1, Math.floor(random() * candidates.length))]!;
}

/** The first hundred subnets of the pool that overlap none of `taken`. */
function freeSubnets(pool: SubnetPool, taken: readonly Prefix[]): Prefix[] {
  const { family } = pool.network;
  const size = 1n << BigInt((family === 4 ? 32 : 128) - pool.subnetLen);
  const last = toBigInt(pool.max);
  const blocks = mergeRanges(taken.filter((prefix) => prefix.family === family).map(rangeOf));
  const free: Prefix[] = [];
  let block = 0;
  for (let at = toBigInt(pool.min); at <= last && free.length < CANDIDATES;) {
    while (block < blocks.length && blocks[block]!.last < at) block++;
    const next = blocks[block];
    if (next !== undefined && next.first < at + size) {
      at = ((next.last + size) / size) * size;
    } else {
      free.push(Prefix.of(fromBigInt(at, family), pool.subnetLen));
      at += size;
    }
  }
  return free;
}

/** Backends whose flanneld does not look at PublicIPv6. */
const WITHOUT_IPV6_UNDERLAY: ReadonlySet<string> = new Set(['udp', 'alloc']);

/**
 * What an agent must not ask for.
 * @throws PodwireError INVALID_ARGUMENT for addresses that peers must refuse, and for a lease that takes real flanneld
 * down: with two families in the key but no PublicIPv6 in the value.
 */
export function checkRequest(config: NetworkConfig, request: AcquireRequest): void {
  checkAddresses(config, request.attributes);
  const { ttlMs } = request;
  if (ttlMs !== undefined && !(Number.isFinite(ttlMs) && ttlMs >= 1000)) {
    throw new PodwireError('INVALID_ARGUMENT', `a lease must live 1000 ms or longer, not ${ttlMs} ms`);
  }
}

/** The part of {@link checkRequest} about the host's addresses. @throws PodwireError INVALID_ARGUMENT. */
export function checkAddresses(config: NetworkConfig, attributes: LeaseAttributes): void {
  const { publicIp, publicIpv6 } = attributes;
  if (publicIp.family !== 4) throw refusedAddress(publicIp, 'is not an IPv4 address');
  // A host of an IPv6-only network may have either kind of underlay address, and so may one of a udp network; 0.0.0.0
  // stands for none.
  const needsOne = publicIpv6 === undefined && publicIp.isUnspecified;
  const needsIpv4 = needsOne || (config.enableIPv4 && config.backend.type !== 'udp');
  if (needsIpv4 || !publicIp.isUnspecified) checkAddress(config, publicIp);
  if (publicIpv6) checkAddress(config, publicIpv6);
  else if (config.enableIPv4 && config.enableIPv6 && !WITHOUT_IPV6_UNDERLAY.has(config.backend.type)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `a dual-stack ${config.backend.type} network needs the public IPv6 address of every host; give this host's own`,
    );
  }
}

function checkAddress(config: NetworkConfig, address: Address): void {
  const network = address.family === 4 ? config.network : config.ipv6Network;
  if (address.isUnspecified) throw refusedAddress(address, 'is unspecified');
  if (address.isMulticast || address.isBroadcast) throw refusedAddress(address, 'is not the address of a host');
  if (address.isLoopback) throw refusedAddress(address, 'is a loopback address, which no other host can reach');
  if (network?.contains(address)) {
    throw refusedAddress(address, `lies inside the overlay network ${network.toString()}, so packets to it would loop`);
  }
}

function refusedAddress(address: Address, reason: string): PodwireError {
  return new PodwireError(
    'INVALID_ARGUMENT',
    `public IP ${address.toString()} ${reason}; give this host's own underlay address`,
  );
}

function outOfSubnets(config: NetworkConfig, held: readonly HeldSubnets[]): PodwireError {
  const pools = [ipv4Pool(config), ipv6Pool(config)].filter((pool) => pool !== undefined);
  const where = pools
    .map(({ network, min, max, subnetLen }) => {
      return `${network.toString()} (subnets of /${subnetLen} from ${min.toString()} to ${max.toString()})`;
    })
    .join(' and ');
  const live = held.filter((entry) => !entry.expired);
  const unreadable = live.filter((entry) => entry.lease === undefined).length;
  return new PodwireError(
    'OUT_OF_SUBNETS',
    `out of subnets: ${live.length} leases are held in ${where}` +
      `${unreadable > 0 ? `, ${unreadable} of them unreadable` : ''}; release unused leases or enlarge the network`,
  );
}

function compareBytes(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** Whether somebody else's live entry overlaps what we have just written; then we must give way. */
export function collides(mine: Lease, held: readonly HeldSubnets[]): boolean {
  return held.some(
    (entry) =>
      !entry.expired &&
      !sameSubnets(entry, mine) &&
      overlap(entry, mine) &&
      !(entry.lease && belongsTo(entry.lease, mine)),
  );
}
