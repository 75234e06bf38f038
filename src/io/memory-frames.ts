/** What the port in memory does to datagrams with an encapsulation: native/vxlan.c and the end of native/ingress.c. */
import { innerMark } from '../net/ecn.js';
import { PROTOCOL_TCP } from '../net/packet.js';
import { NEXTHOP_ENCAP } from './batch.js';
import type { PacketHeaders } from './segmentation.js';
import { completeChecksum, congestionMark, segment, setCongestionMark, superpacketHeader } from './segmentation.js';

const ETHERTYPE_IPV6 = [0x86, 0xdd];
/** native/engine.h: PW_CUT_MTU. */
const CUT_MTU = 1280;

/**
 * The packet behind the header that its next hop's row has for IPv4; Ethernet's last two bytes are the EtherType.
 * @param row byte offset of the row in `rows`
 */
export function framed(packet: Uint8Array, headerBytes: number, rows: DataView, row: number): Uint8Array {
  if (headerBytes === 0) return packet;
  const datagram = new Uint8Array(headerBytes + packet.length);
  datagram.set(new Uint8Array(rows.buffer, rows.byteOffset + row + NEXTHOP_ENCAP, headerBytes));
  if (packet[0]! >>> 4 === 6) datagram.set(ETHERTYPE_IPV6, headerBytes - 2);
  datagram.set(packet, headerBytes);
  return datagram;
}

/** Carries the outer congestion mark over to the packet; false when the packet must be dropped. */
export function takeMark(packet: Uint8Array, outer: number): boolean {
  const inner = congestionMark(packet);
  const mark = innerMark(outer, inner);
  if (mark !== undefined && mark !== inner) setCongestionMark(packet, mark);
  return mark !== undefined;
}

/**
 * The packets that a device makes of one whose checksum, and above the MTU whose segmentation, the sending kernel left
 * to it. The checksum is made in place.
 */
export function finished(packet: Uint8Array, { l4, protocol }: PacketHeaders, innerMtu: number): Uint8Array[] {
  const tcp = protocol === PROTOCOL_TCP;
  completeChecksum(packet, { start: l4, offset: tcp ? 16 : 6 });
  const header = tcp && packet.length > innerMtu ? superpacketHeader(packet, 'tcp', innerMtu) : undefined;
  const cut = Math.min(innerMtu, CUT_MTU);
  return header === undefined || header >= cut ? [packet] : segment(packet, 'tcp', header, cut - header);
}
