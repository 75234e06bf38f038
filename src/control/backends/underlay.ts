/** What every backend asks of the underlay. */
import { PodwireError } from '../../errors.js';
import type { SelectedInterface } from '../../host/select-interface.js';
import { Address, type Prefix } from '../../net/prefix.js';
import type { Lease, LeaseAttributes } from '../lease.js';

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

/** What a lease of ours says about addresses; `0.0.0.0` for an IPv4 address that an IPv6-only host has not got. */
export function ownPublicAddresses(underlay: SelectedInterface): Pick<LeaseAttributes, 'publicIp' | 'publicIpv6'> {
  const { publicIp, publicIpv6 } = underlay;
  return { publicIp: publicIp ?? Address.fromUint32(0), ...(publicIpv6 === undefined ? {} : { publicIpv6 }) };
}
