/**
 * flannel's `udp` framing: the UDP payload is the inner IP packet, one packet a datagram; no header, no magic, no
 * length. Datagrams below 20 bytes are ignored by every receiver, flanneld's included. Source ports carry no meaning.
 */
import { PodwireError } from '../errors.js';
import { overheadOf } from '../net/mtu.js';
import { IPV4_HEADER_BYTES } from '../net/packet.js';
import type { Encapsulation } from './encapsulation.js';

const NOTHING = new Uint8Array(0);

export const udpEncapsulation: Encapsulation = {
  name: 'udp',
  carrier: 'udp',
  defaultPort: 8285,
  headerBytes: 0,
  accepts: NOTHING,
  carriesEcn: false,
  overhead: (outer) => overheadOf('udp', outer),
  vtep(mac, whose) {
    if (mac === undefined) return undefined;
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${whose} has vtepMac ${mac.toString()}, but udp carries no Ethernet: leave it out, or open the data plane with encapsulation vxlan`,
    );
  },
  header: () => NOTHING,
  fault: (datagram) => (datagram.length < IPV4_HEADER_BYTES ? 'dropShort' : undefined),
};
