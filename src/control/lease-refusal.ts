/**
 * Leases of other hosts that must not be followed. flannel programs whatever it reads; a lease whose PublicIP lies
 * inside the overlay then sends packets round in a loop, and one with another host's subnet steals its traffic.
 */
import type { Address, Prefix } from '../net/prefix.js';
import { subnetsOf, type Lease } from './lease.js';
import { leaseKey } from './lease-key.js';
import type { NetworkConfig } from './network-config.js';

export type RefusalReason =
  | 'unspecifiedAddress'
  | 'loopbackAddress'
  | 'multicastAddress'
  | 'broadcastAddress'
  | 'addressInsideNetwork'
  | 'ownAddress'
  | 'wrongFamily'
  | 'outsideNetwork'
  | 'overlap';

export interface Refusal {
  readonly reason: RefusalReason;
  /** One line with the values. */
  readonly detail: string;
}

export interface RefusalContext {
  readonly config: NetworkConfig;
  /** The lease this host holds. */
  readonly own?: Lease | undefined;
  /** This host's underlay addresses: a lease of another host that names one of them would send packets to ourselves. */
  readonly ownAddresses: readonly Address[];
  /** A lease already followed that shares addresses with `subnet`. */
  readonly overlapping: (subnet: Prefix) => Lease | undefined;
}

/** Why `lease` must not be followed, or undefined when it may be. */
export function refuseLease(lease: Lease, context: RefusalContext): Refusal | undefined {
  const { config } = context;
  const subnets = subnetsOf(lease);
  for (const subnet of subnets) {
    const network = subnet.family === 4 ? config.network : config.ipv6Network;
    if (!network) return refusal('wrongFamily', lease, `the network has no IPv${subnet.family}`);
    if (!network.contains(subnet)) {
      return refusal('outsideNetwork', lease, `${subnet.toString()} is outside ${network.toString()}`);
    }
  }
  const byAddress = refuseAddresses(lease, context);
  if (byAddress) return byAddress;
  for (const subnet of subnets) {
    if (context.own && subnetsOf(context.own).some((mine) => mine.overlaps(subnet))) {
      return refusal('overlap', lease, `${subnet.toString()} overlaps our own ${leaseKey(context.own)}`);
    }
    const other = context.overlapping(subnet);
    if (other) {
      const holder = other.attributes.publicIp.toString();
      return refusal('overlap', lease, `${subnet.toString()} overlaps ${leaseKey(other)} of ${holder}`);
    }
  }
  return undefined;
}

function refuseAddresses(lease: Lease, context: RefusalContext): Refusal | undefined {
  const { publicIp, publicIpv6 } = lease.attributes;
  // A host without IPv4 says 0.0.0.0 for the address it has not got: in an IPv6-only lease, or a udp lease over IPv6.
  const needsNone = lease.subnet.family === 6 || (lease.attributes.backendType === '' && publicIpv6 !== undefined);
  const addresses = needsNone && publicIp.isUnspecified ? [] : [publicIp];
  if (publicIpv6) addresses.push(publicIpv6);
  if (addresses.length === 0) return refusal('unspecifiedAddress', lease, 'it names no address at all');
  for (const address of addresses) {
    const text = address.toString();
    if (address.isUnspecified) return refusal('unspecifiedAddress', lease, `its address is ${text}`);
    if (address.isLoopback) return refusal('loopbackAddress', lease, `its address ${text} is loopback`);
    if (address.isMulticast) return refusal('multicastAddress', lease, `its address ${text} is multicast`);
    if (address.isBroadcast) return refusal('broadcastAddress', lease, `its address ${text} is broadcast`);
    const network = address.family === 4 ? context.config.network : context.config.ipv6Network;
    if (network?.contains(address)) {
      return refusal('addressInsideNetwork', lease, `its address ${text} lies inside ${network.toString()}`);
    }
    if (context.ownAddresses.some((own) => own.equals(address))) {
      return refusal('ownAddress', lease, `its address ${text} is our own: two hosts use it, or an old lease of ours`);
    }
  }
  return undefined;
}

function refusal(reason: RefusalReason, lease: Lease, detail: string): Refusal {
  return { reason, detail: `lease ${leaseKey(lease)} refused: ${detail}` };
}
