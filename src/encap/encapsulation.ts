/**
 * Wire formats: what stands between the outer UDP header and the inner packet, and what that costs. One module a
 * format; test/contract/encap holds all of them to the same contract. native/ does the same to packets in bulk, with
 * the headers that are built here.
 */
import type { MacAddress, Family } from '../net/prefix.js';

/** Why a received datagram is not taken: the counter that it ends in. */
export type FrameFault =
  | 'dropShort'
  | 'dropVxlanFlags'
  | 'dropVxlanVni'
  | 'dropVxlanLoop'
  | 'dropVxlanType'
  | 'dropVxlanGroup'
  | 'dropVxlanMac';

export interface Encapsulation {
  /** Name of the backend that uses it, as in the network config. */
  readonly name: 'udp' | 'vxlan' | 'ipip';
  /** What the payload travels in: a UDP datagram, or (`ip`) an IPv4 packet of protocol 4 without more. */
  readonly carrier: 'udp' | 'ip';
  /** UDP port when nobody names one; 0 without UDP. */
  readonly defaultPort: number;
  /** Bytes between the outer UDP (or IP) header and the inner IP header. */
  readonly headerBytes: number;
  /** What every datagram for this host begins with: the part of the header that receivers compare. */
  readonly accepts: Uint8Array;
  /**
   * Whether the outer header carries the inner congestion mark, and the inner one takes over what the path added
   * (RFC 6040).
   */
  readonly carriesEcn: boolean;
  /** Bytes that an inner packet grows by on an underlay of this family: outer IP, UDP and the header above. */
  overhead(outer: Family): number;
  /**
   * The VTEP MAC of a next hop, checked: formats with inner Ethernet need one, the others take none.
   * @param whose names the next hop in the error
   * @throws PodwireError INVALID_ARGUMENT or INVALID_ADDRESS
   */
  vtep(mac: MacAddress | string | undefined, whose: string): MacAddress | undefined;
  /** The {@link headerBytes} in front of an inner packet of this family on its way to that VTEP. */
  header(inner: Family, vtepMac: MacAddress | undefined): Uint8Array;
  /** Why the payload of a received datagram holds no packet for this host, or undefined when it does. */
  fault(datagram: Uint8Array): FrameFault | undefined;
}

/** What an encapsulation is made from; plain data, safe to post to a worker. */
export type EncapsulationSpec =
  'udp' | 'ipip' | { readonly type: 'vxlan'; readonly vni: number; readonly vtepMac: string };
