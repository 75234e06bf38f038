/** What every backend asks of the underlay. */
import { PodwireError } from '../../errors.js';
import type { SelectedInterface } from '../../host/select-interface.js';
import { Address, type Family, type Prefix } from '../../net/prefix.js';
import type { Lease, LeaseAttributes } from '../lease.js';
import { backendOption, type NetworkConfig } from '../network-config.js';
import type { BackendOptions, PeerSources } from './backend.js';

/**
 * An outer packet to an address inside the overlay would be sent into the tunnel again, for ever.
 *
 * @throws {PodwireError} `INTERFACE`.
 */
export function refuseLoop(overlay: Prefix, underlay: SelectedInterface): void {
  for (const address of [underlay.address, underlay.publicIp, underlay.address6, underlay.publicIpv6]) {
    if (address !== undefined && overlay.contains(address)) {
      throw new PodwireError(
        'INTERFACE',
        `the address ${address.toString()} of ${underlay.name} lies inside the pod network ${overlay.toString()}, packets would go round in a loop: choose another --iface, --public-ip or Network`,
      );
    }
  }
}

/** The underlay address for a prefix of a lease: of the prefix's own family; undefined when the lease names none. */
export function peerAddress(prefix: Prefix, lease: Lease): Address | undefined {
  const { publicIp, publicIpv6 } = lease.attributes;
  if (prefix.family === 6) return publicIpv6;
  return publicIp.isUnspecified ? undefined : publicIp;
}

/** Whom packets of a host may come from besides its lease's `address`: for the next hops of user-space backends. */
export function sendersOf(
  { peerSources }: BackendOptions,
  address: Address,
): { readonly senders?: readonly Address[] } {
  const senders = peerSources?.get(address.toString());
  return senders === undefined ? {} : { senders };
}

/**
 * Reads such addresses as a caller gives them.
 *
 * @throws {PodwireError} `INVALID_ADDRESS`.
 */
export function readPeerSources(given: Readonly<Record<string, readonly string[]>>): PeerSources {
  return new Map(
    Object.entries(given).map(([peer, sources]) => {
      const address = Address.parse(peer);
      const senders = sources.map((text) => Address.parse(text));
      const other = senders.find(({ family }) => family !== address.family);
      if (other !== undefined) {
        throw new PodwireError(
          'INVALID_ADDRESS',
          `${other.toString()} cannot be a source of ${peer}: a tunnel's outer packets are all of one family`,
        );
      }
      return [address.toString(), senders];
    }),
  );
}

/** What a lease of ours says about addresses; `0.0.0.0` for an IPv4 address that an IPv6-only host has not got. */
export function ownPublicAddresses(underlay: SelectedInterface): Pick<LeaseAttributes, 'publicIp' | 'publicIpv6'> {
  const { publicIp, publicIpv6 } = underlay;
  return { publicIp: publicIp ?? Address.fromUint32(0), ...(publicIpv6 === undefined ? {} : { publicIpv6 }) };
}

/** Why a lease of another backend type is not followed; undefined for one of `type`. */
export function otherType(lease: Lease, type: string): string | undefined {
  const { backendType } = lease.attributes;
  return backendType.toLowerCase() === type ? undefined : `its backend is ${backendType || 'udp'}, ours is ${type}`;
}

/** Why no packet for `prefix` can go to the host of `lease`: it names no address for it. */
export function withoutAddress(lease: Lease, prefix: Prefix): string | undefined {
  if (peerAddress(prefix, lease) !== undefined) return undefined;
  return `it names no IPv${prefix.family} address for ${prefix.toString()}`;
}

/**
 * Families of the addresses that this host must have on its underlay.
 *
 * @throws {PodwireError} `INVALID_CONFIG`.
 */
export function underlayFamilies(network: NetworkConfig): Family[] {
  if (network.backend.type === 'udp' && hasIpv6Underlay(network)) return [6];
  return [...(network.enableIPv4 ? [4 as const] : []), ...(network.enableIPv6 ? [6 as const] : [])];
}

/**
 * Whether the udp backend's outer packets are IPv6.
 *
 * @throws {PodwireError} `INVALID_CONFIG`.
 */
export function hasIpv6Underlay(network: NetworkConfig): boolean {
  const value = backendOption(network, 'IPv6Underlay') ?? !network.enableIPv4;
  if (typeof value === 'boolean') return value;
  throw new PodwireError(
    'INVALID_CONFIG',
    `invalid network config: Backend.IPv6Underlay is ${JSON.stringify(value)}; write true or false`,
  );
}
