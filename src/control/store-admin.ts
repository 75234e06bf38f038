/**
 * What an operator does to a store, beside what agents do: `podwire leases`. Works on any store that offers it and
 * needs no agent; agents hear of the changes through their watch.
 */
import { PodwireError } from '../errors.js';
import { checkAddresses, fits } from './allocator.js';
import { leaseKey, type LeaseSubnets } from './lease-key.js';
import { overlap, sameHost, sameSubnets, type Lease, type LeaseAttributes } from './lease.js';
import type { NetworkConfig } from './network-config.js';

/**
 * Every method throws PodwireErrors: `STORE_UNAVAILABLE`, `PERMISSION`, `INVALID_ARGUMENT`, `ABORTED`, `CLOSED`, and
 * what is said at each.
 */
export interface StoreAdmin {
  /**
   * All leases that can be read, our own included, in byte order of their keys. One without `expiresAt` is a
   * reservation; one that has run out may still be there, where nobody has taken its place.
   */
  list(signal?: AbortSignal): Promise<readonly Lease[]>;
  /**
   * Keeps a subnet for the host with the PublicIP of `attributes` (of an IPv6-only network, its PublicIPv6): a lease
   * without expiry. A live lease of that host becomes a reservation and keeps what its agent has written.
   *
   * @throws PodwireError LEASE_CONFLICT when another host holds an overlapping lease; INVALID_ARGUMENT when the
   * network would not hand out these subnets or peers could not use the address; NO_CONFIG, INVALID_CONFIG.
   */
  reserve(subnets: LeaseSubnets, attributes: LeaseAttributes): Promise<Lease>;
  /** Removes a lease or reservation, whoever holds it: a live agent acquires anew. False when there is none. */
  remove(subnets: LeaseSubnets): Promise<boolean>;
  /** The network config's text as it is, also when it is not valid; undefined when there is none. */
  readConfig(signal?: AbortSignal): Promise<string | undefined>;
  /** Writes the network config, unchanged. @throws PodwireError INVALID_CONFIG for one no agent could use. */
  writeConfig(json: string): Promise<void>;
}

/** An entry of a store as {@link checkReservation} sees it. */
export interface ReservedAgainst extends LeaseSubnets {
  /** For messages. */
  readonly path: string;
  /** Absent: the entry cannot be read. */
  readonly attributes?: LeaseAttributes | undefined;
}

/**
 * Whether `subnets` may be kept for the host of `attributes`, given all live entries of the store.
 * @throws PodwireError as {@link StoreAdmin.reserve}.
 */
export function checkReservation(
  config: NetworkConfig,
  subnets: LeaseSubnets,
  attributes: LeaseAttributes,
  held: readonly ReservedAgainst[],
): void {
  if (!fits(subnets, config)) {
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `cannot reserve ${leaseKey(subnets)}: the network config would not hand it out; ` +
        'check its range, its subnet length and which families are enabled',
    );
  }
  checkAddresses(config, attributes);
  for (const other of held) {
    if (!overlap(other, subnets)) continue;
    if (sameSubnets(other, subnets) && other.attributes && sameHost(other.attributes, attributes)) continue;
    const { publicIp, publicIpv6 } = other.attributes ?? {};
    const holder = publicIp?.isUnspecified && publicIpv6 ? publicIpv6 : publicIp;
    throw new PodwireError(
      'LEASE_CONFLICT',
      `cannot reserve ${leaseKey(subnets)}: ${other.path} is held by ${holder?.toString() ?? 'an entry that cannot be read'}; ` +
        'choose another subnet, or release that one first',
    );
  }
}
