/**
 * IP in IP (RFC 2003, protocol 4), as flannel's `ipip` backend has the kernel speak it: an outer IPv4 header and the
 * inner IPv4 packet right behind it. There are no ports, so a flow's packets look alike to the underlay's load
 * balancers, and nothing tells one network on a host from another. IPv6 inside would be protocol 41 and is not carried.
 */
import { PodwireError } from '../errors.js';
import { overheadOf } from '../net/mtu.js';
import { IPV4_HEADER_BYTES } from '../net/packet.js';
import type { Encapsulation } from './encapsulation.js';

const NOTHING = new Uint8Array(0);

export const ipipEncapsulation: Encapsulation = {
  name: 'ipip',
  carrier: 'ip',
  defaultPort: 0,
  headerBytes: 0,
  accepts: NOTHING,
  carriesEcn: true,
  overhead: (outer) => overheadOf('ipip', outer),
  vtep(mac, whose) {
    if (mac === undefined) return undefined;
    throw new PodwireError(
      'INVALID_ARGUMENT',
      `${whose} has vtepMac ${mac.toString()}, but ipip carries no Ethernet: leave it out, or open the data plane with encapsulation vxlan`,
    );
  },
  header: () => NOTHING,
  fault: (payload) => (payload.length < IPV4_HEADER_BYTES ? 'dropShort' : undefined),
};
