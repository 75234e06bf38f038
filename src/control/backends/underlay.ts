/** What every backend asks of the underlay. */
import { PodwireError } from '../../errors.js';
import type { SelectedInterface } from '../../host/select-interface.js';
import type { Prefix } from '../../net/prefix.js';

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
