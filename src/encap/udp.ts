/**
 * flannel's `udp` framing: the UDP payload is the inner IP packet, one packet a datagram; no header, no magic, no
 * length. Datagrams below 20 bytes are ignored by every receiver, flanneld's included. Source ports carry no meaning.
 */
import { bareEncapsulation } from './bare.js';
import type { Encapsulation } from './encapsulation.js';

export const udpEncapsulation: Encapsulation = bareEncapsulation({
  name: 'udp',
  carrier: 'udp',
  defaultPort: 8285,
  carriesEcn: false,
});
