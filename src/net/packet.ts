/**
 * Header fields of IPv4 (RFC 791) and IPv6 (RFC 8200) packets, read in place.
 *
 * Every reader takes the same DataView over the packet arena and the packet's offset, allocates nothing and checks
 * nothing: call `validateIpv4` / `validateIpv6` once with the bytes that were received, `[offset, offset + length)`,
 * and read afterwards. Addresses are unsigned 32-bit words (IPv6: four of them, most significant first).
 *
 *   IPv4   0 version:4 ihl:4 | 1 tos | 2 total length:16 | 4 id:16 | 6 flags:3 fragment offset:13
 *          8 ttl | 9 protocol | 10 checksum:16 | 12 source:32 | 16 destination:32 | 20 options
 *   IPv6   0 version:4 class:8 label:20 | 4 payload length:16 | 6 next header | 7 hop limit | 8 source | 24 destination
 */

export const IPV4_HEADER_BYTES = 20;
export const IPV6_HEADER_BYTES = 40;

/** IANA protocol numbers that the data plane looks at. */
export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_ICMPV6 = 58;

/** Reason codes of `validateIpv4` and `validateIpv6`; `PACKET_OK` is 0, so the result can be tested as a truth value. */
export const PACKET_OK = 0;
/** Fewer bytes than the fixed header. */
export const PACKET_SHORT = 1;
/** The version nibble is another one. */
export const PACKET_VERSION = 2;
/** IPv4: the header length field is below 5 words or reaches beyond the received bytes. */
export const PACKET_HEADER_LENGTH = 3;
/** The length field is smaller than the header (IPv6: a jumbogram, RFC 2675, which no overlay carries). */
export const PACKET_LENGTH = 4;
/** The length field is larger than the received bytes. */
export const PACKET_TRUNCATED = 5;

/** Version nibble of the first byte: 4, 6 or something foreign. Needs one byte. */
export function ipVersion(view: DataView, offset: number): number {
  return view.getUint8(offset) >>> 4;
}

/**
 * Whether `length` received bytes at `offset` hold a whole IPv4 packet: 0 or the reason why not. Bytes after the total
 * length are allowed (padding): the packet is `ipv4TotalLength` bytes. The header checksum is not looked at: the
 * kernel that receives the packet does that.
 */
export function validateIpv4(view: DataView, offset: number, length: number): number {
  if (length < IPV4_HEADER_BYTES) return PACKET_SHORT;
  const first = view.getUint8(offset);
  if (first >>> 4 !== 4) return PACKET_VERSION;
  const header = (first & 15) * 4;
  if (header < IPV4_HEADER_BYTES || header > length) return PACKET_HEADER_LENGTH;
  const total = view.getUint16(offset + 2);
  if (total < header) return PACKET_LENGTH;
  return total > length ? PACKET_TRUNCATED : PACKET_OK;
}

/** Whether `length` received bytes at `offset` hold a whole IPv6 packet: 0 or the reason why not. */
export function validateIpv6(view: DataView, offset: number, length: number): number {
  if (length < IPV6_HEADER_BYTES) return PACKET_SHORT;
  if (view.getUint8(offset) >>> 4 !== 6) return PACKET_VERSION;
  const payload = view.getUint16(offset + 4);
  if (payload === 0 && length > IPV6_HEADER_BYTES && view.getUint8(offset + 6) === NEXT_HOP_BY_HOP)
    return PACKET_LENGTH;
  return IPV6_HEADER_BYTES + payload > length ? PACKET_TRUNCATED : PACKET_OK;
}

/** IPv4 header length in bytes, 20–60 in a valid packet. */
export function ipv4HeaderLength(view: DataView, offset: number): number {
  return (view.getUint8(offset) & 15) * 4;
}

/** Header and payload, bytes. */
export function ipv4TotalLength(view: DataView, offset: number): number {
  return view.getUint16(offset + 2);
}

export function ipv4Id(view: DataView, offset: number): number {
  return view.getUint16(offset + 4);
}

/** Whether "don't fragment" is set. */
export function ipv4DontFragment(view: DataView, offset: number): boolean {
  return (view.getUint8(offset + 6) & 0x40) !== 0;
}

/** Whether more fragments follow. */
export function ipv4MoreFragments(view: DataView, offset: number): boolean {
  return (view.getUint8(offset + 6) & 0x20) !== 0;
}

/** Offset of this fragment's data in the original payload, bytes (a multiple of 8). */
export function ipv4FragmentOffset(view: DataView, offset: number): number {
  return (view.getUint16(offset + 6) & 0x1fff) * 8;
}

/** Whether this is any fragment, the first included. */
export function ipv4IsFragment(view: DataView, offset: number): boolean {
  return (view.getUint16(offset + 6) & 0x3fff) !== 0;
}

export function ipv4Ttl(view: DataView, offset: number): number {
  return view.getUint8(offset + 8);
}

export function ipv4Protocol(view: DataView, offset: number): number {
  return view.getUint8(offset + 9);
}

export function ipv4Source(view: DataView, offset: number): number {
  return view.getUint32(offset + 12);
}

export function ipv4Destination(view: DataView, offset: number): number {
  return view.getUint32(offset + 16);
}

/** Bytes after the fixed header, extension headers included. */
export function ipv6PayloadLength(view: DataView, offset: number): number {
  return view.getUint16(offset + 4);
}

/** Header and payload, bytes. */
export function ipv6TotalLength(view: DataView, offset: number): number {
  return IPV6_HEADER_BYTES + view.getUint16(offset + 4);
}

export function ipv6NextHeader(view: DataView, offset: number): number {
  return view.getUint8(offset + 6);
}

export function ipv6HopLimit(view: DataView, offset: number): number {
  return view.getUint8(offset + 7);
}

/** Word 0 (most significant) to 3 of the source. */
export function ipv6SourceWord(view: DataView, offset: number, word: number): number {
  return view.getUint32(offset + 8 + word * 4);
}

/** Word 0 (most significant) to 3 of the destination. */
export function ipv6DestinationWord(view: DataView, offset: number, word: number): number {
  return view.getUint32(offset + 24 + word * 4);
}

/*
 * Where the transport header is: one small integer, so that nothing is allocated.
 *
 *   bits 0–7 protocol · bits 8–24 header offset from the start of the packet · bit 25 a fragment · bit 26 not the first
 *
 * In a fragment that is not the first there is no transport header at that offset, only data.
 */
const FRAGMENT = 1 << 25;
const LATER_FRAGMENT = 1 << 26;

/** The transport header cannot be found within the received bytes and the bounds of the walk. */
export const TRANSPORT_UNKNOWN = -1;

const NEXT_HOP_BY_HOP = 0;
const NEXT_ROUTING = 43;
const NEXT_FRAGMENT = 44;
const NEXT_AUTHENTICATION = 51;
const NEXT_DESTINATION = 60;
const NEXT_MOBILITY = 135;
const NEXT_HIP = 139;
const NEXT_SHIM6 = 140;

/** Extension headers that are walked at most; a packet with more of them is not worth understanding. */
export const MAX_EXTENSION_HEADERS = 8;

/** Protocol and place of the transport header of a valid IPv4 packet; read it with the `transport…` functions. */
export function ipv4Transport(view: DataView, offset: number): number {
  const found = view.getUint8(offset + 9) | (ipv4HeaderLength(view, offset) << 8);
  const fragment = view.getUint16(offset + 6) & 0x3fff;
  if (fragment === 0) return found;
  return (fragment & 0x1fff) === 0 ? found | FRAGMENT : found | FRAGMENT | LATER_FRAGMENT;
}

/**
 * Walks the extension headers of a valid IPv6 packet (RFC 8200 4, RFC 7045), at most `MAX_EXTENSION_HEADERS` and never
 * beyond `length` bytes nor the packet's own end. ESP (50) and "no next header" (59) end the walk as protocols.
 * `TRANSPORT_UNKNOWN` when a header is cut off or there are too many.
 */
export function ipv6Transport(view: DataView, offset: number, length: number): number {
  const end = Math.min(length, ipv6TotalLength(view, offset));
  let next = view.getUint8(offset + 6);
  let at = IPV6_HEADER_BYTES;
  let flags = 0;
  for (let headers = 0; headers <= MAX_EXTENSION_HEADERS; headers++) {
    let bytes: number;
    switch (next) {
      case NEXT_HOP_BY_HOP:
      case NEXT_ROUTING:
      case NEXT_DESTINATION:
      case NEXT_MOBILITY:
      case NEXT_HIP:
      case NEXT_SHIM6:
        if (at + 8 > end) return TRANSPORT_UNKNOWN;
        bytes = (view.getUint8(offset + at + 1) + 1) * 8;
        break;
      case NEXT_AUTHENTICATION:
        if (at + 8 > end) return TRANSPORT_UNKNOWN;
        bytes = (view.getUint8(offset + at + 1) + 2) * 4;
        break;
      case NEXT_FRAGMENT: {
        if (at + 8 > end) return TRANSPORT_UNKNOWN;
        bytes = 8;
        const word = view.getUint16(offset + at + 2);
        if (word & 0xfff8) return view.getUint8(offset + at) | ((at + 8) << 8) | FRAGMENT | LATER_FRAGMENT;
        // An atomic fragment (RFC 6946: offset 0, none follows) is a whole packet.
        if (word & 1) flags |= FRAGMENT;
        break;
      }
      default:
        return next | (at << 8) | flags;
    }
    next = view.getUint8(offset + at);
    at += bytes;
    if (at > end) return TRANSPORT_UNKNOWN;
  }
  return TRANSPORT_UNKNOWN;
}

/** IANA protocol number of an `ipv…Transport` result other than `TRANSPORT_UNKNOWN`. */
export function transportProtocol(transport: number): number {
  return transport & 0xff;
}

/** Offset of the transport header from the start of the packet, bytes. */
export function transportOffset(transport: number): number {
  return (transport >>> 8) & 0x1ffff;
}

/** Whether the packet is one of several fragments, the first included. */
export function transportIsFragment(transport: number): boolean {
  return (transport & FRAGMENT) !== 0;
}

/** Whether the packet is a fragment without a transport header. */
export function transportIsLaterFragment(transport: number): boolean {
  return (transport & LATER_FRAGMENT) !== 0;
}
