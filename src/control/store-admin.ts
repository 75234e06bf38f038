/**
 * What an operator does to a store, beside what agents do: `podwire leases`. Works on any store that offers it and
 * needs no agent; agents hear of the changes through their watch.
 */
import type { Lease, LeaseAttributes } from './lease.js';
import type { LeaseSubnets } from './lease-key.js';

/**
 * Every method throws PodwireErrors: `STORE_UNAVAILABLE`, `PERMISSION`, `INVALID_ARGUMENT`, `ABORTED`, `CLOSED`, and
 * what is said at each.
 */
export interface StoreAdmin {
  /** All leases that can be read, our own included, in byte order of their keys. One without `expiresAt` is a reservation. */
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
