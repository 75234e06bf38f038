/** What all stores check before they keep a subnet for a host: `podwire leases reserve`. */
import { PodwireError } from '../errors.js';
import { checkAddresses, fits } from './allocator.js';
import { leaseKey } from './lease-key.js';
import { overlap, publicAddress, sameHost, sameSubnets, type LeaseAttributes, type LeaseSubnets } from './lease.js';
import type { NetworkConfig } from './network-config.js';

/** An entry of a store as {@link checkReservation} sees it. */
export interface ReservedAgainst extends LeaseSubnets {
  /** For messages. */
  readonly path: string;
  /** Absent: the entry cannot be read. */
  readonly attributes?: LeaseAttributes | undefined;
}

/**
 * Whether `subnets` may be kept for the host of `attributes`, given all live entries of the store.
 * @throws PodwireError as StoreAdmin.reserve (lease.ts).
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
    const holder = other.attributes && publicAddress(other.attributes);
    throw new PodwireError(
      'LEASE_CONFLICT',
      `cannot reserve ${leaseKey(subnets)}: ${other.path} is held by ${holder?.toString() ?? 'an entry that cannot be read'}; ` +
        'choose another subnet, or release that one first',
    );
  }
}
