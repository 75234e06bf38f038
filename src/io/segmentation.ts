/**
 * What native/segment.c and native/packet.c do to packets, written to be obviously right instead of fast: cutting
 * superpackets into segments and IPv4 packets into fragments, with every checksum computed from nothing. The memory
 * port runs on it, and tests hold the C code against it.
 */
import { checksum, pseudoHeaderSum4, pseudoHeaderSum6 } from '../net/checksum.js';
import { PROTOCOL_TCP, PROTOCOL_UDP } from '../net/packet.js';

/** What the kernel tells beside a packet's bytes, as struct virtio_net_hdr does (virtio 1.2, 5.1.6). */
export interface Offload {
  /** The packet is a superpacket: its payload is cut into slices of `size` bytes, the last may be shorter. */
  readonly gso?: { readonly kind: 'tcp' | 'udp'; readonly size: number };
  /**
   * The transport checksum is left to the device: the field `offset` bytes behind `start` holds the pseudo header's
   * sum, and the checksum covers everything from `start` on.
   */
  readonly checksum?: { readonly start: number; readonly offset: number };
}

/** The headers of a packet whose lengths agree with the bytes that are there. */
export interface PacketHeaders {
  readonly family: 4 | 6;
  /** Bytes by the header's own word; received bytes may be more. */
  readonly length: number;
  /** Offset of the transport header. */
  readonly l4: number;
  readonly protocol: number;
  /** Any fragment, the first included. */
  readonly fragment: boolean;
  /** IPv4 options or IPv6 extension headers are there. */
  readonly options: boolean;
}

const HOP_BY_HOP = 0;
const ROUTING = 43;
const FRAGMENT = 44;
const DESTINATION_OPTIONS = 60;
const MOST_EXTENSIONS = 8;

const TCP_FIN = 0x01;
const TCP_PSH = 0x08;
const TCP_CWR = 0x80;

/** Headers of the packet in `bytes`, or undefined when they contradict the bytes; see `pw_parse_ip`. */
export function parseHeaders(bytes: Uint8Array): PacketHeaders | undefined {
  if (bytes.length < 20) return undefined;
  const view = viewOf(bytes);
  const version = bytes[0]! >>> 4;
  if (version === 6) return parseHeaders6(bytes, view);
  if (version !== 4) return undefined;
  const l4 = (bytes[0]! & 15) * 4;
  const length = view.getUint16(2);
  if (l4 < 20 || length < l4 || length > bytes.length) return undefined;
  const fragment = (view.getUint16(6) & 0x3fff) !== 0;
  return { family: 4, length, l4, protocol: bytes[9]!, fragment, options: l4 !== 20 };
}

function parseHeaders6(bytes: Uint8Array, view: DataView): PacketHeaders | undefined {
  if (bytes.length < 40) return undefined;
  const length = 40 + view.getUint16(4);
  if (length > bytes.length) return undefined;
  let protocol = bytes[6]!;
  let l4 = 40;
  let fragment = false;
  for (let i = 0; i < MOST_EXTENSIONS && !fragment; i++) {
    fragment = protocol === FRAGMENT;
    if (!fragment && protocol !== HOP_BY_HOP && protocol !== ROUTING && protocol !== DESTINATION_OPTIONS) break;
    if (l4 + 8 > length) return undefined;
    const size = fragment ? 8 : 8 + bytes[l4 + 1]! * 8;
    if (l4 + size > length) return undefined;
    protocol = bytes[l4]!;
    l4 += size;
  }
  return { family: 6, length, l4, protocol, fragment, options: l4 !== 40 };
}

/** 31-bit hash of addresses, protocol and, for unfragmented TCP and UDP, ports: the same as `pw_flow_hash`. */
export function flowHash(bytes: Uint8Array, headers: PacketHeaders): number {
  const view = viewOf(bytes);
  const mix = (hash: number, word: number): number => {
    const product = Math.imul(hash ^ word, 0x9e3779b1);
    return product ^ (product >>> 15);
  };
  let hash = headers.protocol;
  const [from, to] = headers.family === 6 ? [8, 40] : [12, 20];
  for (let at = from; at < to; at += 4) hash = mix(hash, view.getInt32(at));
  const ports = headers.protocol === PROTOCOL_TCP || headers.protocol === PROTOCOL_UDP;
  if (ports && !headers.fragment && headers.l4 + 4 <= bytes.length) hash = mix(hash, view.getInt32(headers.l4));
  return mix(hash, hash >>> 7) >>> 1;
}

/**
 * Addresses, protocol and ports of an unfragmented TCP or UDP packet without options as one text; undefined for every
 * other packet.
 */
export function portsKey(bytes: Uint8Array, headers: PacketHeaders): string | undefined {
  const { family, l4, protocol, fragment: cut, options } = headers;
  if (cut || options || (protocol !== PROTOCOL_TCP && protocol !== PROTOCOL_UDP)) return undefined;
  if (l4 + 4 > headers.length) return undefined;
  const addresses = family === 4 ? bytes.subarray(12, 20) : bytes.subarray(8, 40);
  return `${protocol} ${addresses.join('.')} ${bytes.subarray(l4, l4 + 4).join('.')}`;
}

/** The congestion mark of an IP header, RFC 3168 5. */
export function congestionMark(packet: Uint8Array): number {
  return (packet[0]! >>> 4 === 6 ? packet[1]! >>> 4 : packet[1]!) & 3;
}

/** Changes the congestion mark; IPv4's header checksum by the difference, so that a wrong one stays wrong (RFC 1624). */
export function setCongestionMark(packet: Uint8Array, mark: number): void {
  if (packet[0]! >>> 4 === 6) {
    packet[1] = (packet[1]! & ~0x30) | (mark << 4);
    return;
  }
  const view = viewOf(packet);
  const before = view.getUint16(0);
  const after = (before & ~3) | mark;
  let sum = (~view.getUint16(10) & 0xffff) + (~before & 0xffff) + after;
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  view.setUint16(0, after);
  view.setUint16(10, ~sum & 0xffff);
}

/** Whether the transport checksum of this TCP or UDP packet is no more than the pseudo header's sum. */
export function isPartial(bytes: Uint8Array, { family, length, l4, protocol, fragment: cut }: PacketHeaders): boolean {
  const tcp = protocol === PROTOCOL_TCP;
  if (cut || (!tcp && protocol !== PROTOCOL_UDP) || l4 + (tcp ? 20 : 8) > length) return false;
  const view = viewOf(bytes);
  let sum =
    family === 4
      ? pseudoHeaderSum4(view.getUint32(12), view.getUint32(16), protocol, length - l4)
      : pseudoHeaderSum6(bytes, 8, protocol, length - l4);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return view.getUint16(l4 + (tcp ? 16 : 6)) === sum;
}

/** Fills in the checksum that was left to the device. False when it would lie outside of the packet. */
export function completeChecksum(bytes: Uint8Array, { start, offset }: NonNullable<Offload['checksum']>): boolean {
  const at = start + offset;
  if (start >= bytes.length || at + 2 > bytes.length) return false;
  // The field holds the pseudo header's sum, so it is simply part of the range.
  const value = checksum(bytes, start, bytes.length - start);
  viewOf(bytes).setUint16(at, value === 0 && offset === 6 ? 0xffff : value); // RFC 768: a UDP sum of zero goes as ones
  return true;
}

/**
 * Bytes of IP and transport header that each segment of a superpacket repeats, or undefined when the packet cannot be
 * one of that kind; see `pw_tun_accept`.
 */
export function superpacketHeader(bytes: Uint8Array, kind: 'tcp' | 'udp', gsoSize: number): number | undefined {
  const headers = parseHeaders(bytes);
  if (headers === undefined || headers.fragment || headers.length !== bytes.length || gsoSize === 0) return undefined;
  if (headers.protocol !== (kind === 'tcp' ? PROTOCOL_TCP : PROTOCOL_UDP)) return undefined;
  const least = kind === 'tcp' ? 20 : 8;
  if (headers.l4 + least > bytes.length) return undefined;
  const l4Bytes = kind === 'tcp' ? (bytes[headers.l4 + 12]! >>> 4) * 4 : 8;
  const header = headers.l4 + l4Bytes;
  return l4Bytes < least || header >= bytes.length || header > 255 ? undefined : header;
}

/**
 * The packets that a TCP or UDP superpacket stands for, by the rules of a segmenting device (`tcp_gso_segment` in
 * net/ipv4/tcp_offload.c, `__udp_gso_segment` in net/ipv4/udp_offload.c): sequence advances, FIN and PSH only on the
 * last, CWR only on the first (RFC 3168 6.1.2), the IPv4 id counts up.
 */
export function segment(bytes: Uint8Array, kind: 'tcp' | 'udp', header: number, gsoSize: number): Uint8Array[] {
  const headers = parseHeaders(bytes);
  if (headers === undefined) return [];
  const { family, l4 } = headers;
  const before = viewOf(bytes);
  const segments: Uint8Array[] = [];
  for (let at = header; at < bytes.length; at += gsoSize) {
    const slice = bytes.subarray(at, at + gsoSize);
    const packet = new Uint8Array(header + slice.length);
    packet.set(bytes.subarray(0, header));
    packet.set(slice, header);
    const view = viewOf(packet);
    const l4Length = packet.length - l4;
    if (family === 4) {
      view.setUint16(2, packet.length);
      view.setUint16(4, before.getUint16(4) + segments.length);
      setIpv4Checksum(packet, l4);
    } else {
      view.setUint16(4, packet.length - 40);
    }
    if (kind === 'tcp') {
      view.setUint32(l4 + 4, before.getUint32(l4 + 4) + (at - header));
      let flags = bytes[l4 + 13]!;
      if (at !== header) flags &= ~TCP_CWR;
      if (at + slice.length !== bytes.length) flags &= ~(TCP_FIN | TCP_PSH);
      packet[l4 + 13] = flags;
    } else {
      view.setUint16(l4 + 4, l4Length);
    }
    setTransportChecksum(packet, family, l4, kind);
    segments.push(packet);
  }
  return segments;
}

/**
 * An IPv4 packet as fragments of at most `mtu` bytes (RFC 791 3.2), or as it is when it fits; undefined when not even 8 bytes of data would
 * fit beside the header. A fragment may be cut again.
 * @param together bytes behind the IP header that must travel in one fragment
 */
export function fragment(bytes: Uint8Array, mtu: number, together = 0): Uint8Array[] | undefined {
  const header = (bytes[0]! & 15) * 4;
  if (bytes.length <= mtu) return [bytes];
  if (mtu < header + together + 8) return undefined;
  const field = viewOf(bytes).getUint16(6);
  const moreFollow = (field & 0x2000) !== 0;
  const first = field & 0x1fff;
  const room = Math.floor((mtu - header) / 8) * 8;
  const fragments: Uint8Array[] = [];
  for (let at = header; at < bytes.length || fragments.length === 0; at += room) {
    const data = bytes.subarray(at, at + room);
    const packet = new Uint8Array(header + data.length);
    packet.set(bytes.subarray(0, header));
    packet.set(data, header);
    if (at !== header) clearUncopiedOptions(packet, header);
    const view = viewOf(packet);
    const last = at + room >= bytes.length;
    view.setUint16(2, packet.length);
    view.setUint16(6, (last && !moreFollow ? 0 : 0x2000) | ((first + (at - header) / 8) & 0x1fff));
    setIpv4Checksum(packet, header);
    fragments.push(packet);
  }
  return fragments;
}

/** Later fragments carry only the options whose copied bit is set (RFC 791 3.1); the others become no-operations. */
function clearUncopiedOptions(packet: Uint8Array, header: number): void {
  let at = 20;
  while (at < header) {
    const type = packet[at]!;
    if (type === 0) return;
    let length = type === 1 || at + 1 >= header ? 1 : packet[at + 1]!;
    if (length < 1 || at + length > header || (type !== 1 && length < 2)) length = header - at;
    if ((type & 0x80) === 0) packet.fill(1, at, at + length);
    at += length;
  }
}

function setIpv4Checksum(packet: Uint8Array, header: number): void {
  const view = viewOf(packet);
  view.setUint16(10, 0);
  view.setUint16(10, checksum(packet, 0, header));
}

function setTransportChecksum(packet: Uint8Array, family: 4 | 6, l4: number, kind: 'tcp' | 'udp'): void {
  const view = viewOf(packet);
  const field = l4 + (kind === 'tcp' ? 16 : 6);
  const protocol = kind === 'tcp' ? PROTOCOL_TCP : PROTOCOL_UDP;
  const length = packet.length - l4;
  view.setUint16(field, 0);
  const pseudo =
    family === 4
      ? pseudoHeaderSum4(view.getUint32(12), view.getUint32(16), protocol, length)
      : pseudoHeaderSum6(packet, 8, protocol, length);
  const value = checksum(packet, l4, length, pseudo);
  view.setUint16(field, value === 0 && kind === 'udp' ? 0xffff : value);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
