/** Wire formats without a header of their own: the payload is the inner IP packet. */
import { PodwireError } from '../errors.js';
import { overheadOf } from '../net/mtu.js';
import { IPV4_HEADER_BYTES } from '../net/packet.js';
import type { Encapsulation } from './encapsulation.js';

const NOTHING = new Uint8Array(0);

/** What differs between such formats is given; the rest is as bare as the packet. */
export function bareEncapsulation(
  format: Pick<Encapsulation, 'name' | 'carrier' | 'defaultPort' | 'carriesEcn'>,
): Encapsulation {
  return {
    ...format,
    headerBytes: 0,
    accepts: NOTHING,
    overhead: (outer) => overheadOf(format.name, outer),
    vtep(mac, whose) {
      if (mac === undefined) return undefined;
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `${whose} has vtepMac ${mac.toString()}, but ${format.name} carries no Ethernet: leave it out, or open the data plane with encapsulation vxlan`,
      );
    },
    header: () => NOTHING,
    fault: (payload) => (payload.length < IPV4_HEADER_BYTES ? 'dropShort' : undefined),
  };
}
