/** Whole IPv4 and IPv6 packets for tests, with right lengths and checksums, and superpackets made from several. */
import { checksum, pseudoHeaderSum4, pseudoHeaderSum6, sum } from '../net/checksum.js';
import { PROTOCOL_TCP, PROTOCOL_UDP } from '../net/packet.js';
import { Address } from '../net/prefix.js';
import type { Offload } from '../io/segmentation.js';
import { parseHeaders } from '../io/segmentation.js';

/** RFC 3692: for experiments. Nothing in a data plane knows it. */
const PROTOCOL_EXPERIMENT = 253;

export interface PacketFields {
  readonly source: Address | string;
  readonly destination: Address | string;
  /** `raw` is a payload without transport header. */
  readonly kind?: 'raw' | 'udp' | 'tcp';
  readonly payload?: Uint8Array;
  readonly sourcePort?: number;
  readonly destinationPort?: number;
  /** Protocol number of a raw packet. */
  readonly protocol?: number;
  readonly ttl?: number;
  readonly trafficClass?: number;
  /** IPv4 only. */
  readonly id?: number;
  readonly dontFragment?: boolean;
  /** IPv4: flags and offset field as it stands in the header; wins over `dontFragment`. */
  readonly fragment?: number;
  /** IPv4 options, a multiple of 4 bytes. */
  readonly options?: Uint8Array;
  /** TCP only. */
  readonly sequence?: number;
  readonly flags?: number;
  readonly tcpOptions?: Uint8Array;
  /** Transport checksum, when it shall not be the right one. */
  readonly checksum?: number;
}

/** TCP flags. */
export const TCP_FIN = 0x01;
export const TCP_PSH = 0x08;
export const TCP_ACK = 0x10;
export const TCP_CWR = 0x80;

function join(...parts: readonly (Uint8Array | readonly number[])[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

function u16(value: number): number[] {
  return [(value >>> 8) & 0xff, value & 0xff];
}

function u32(value: number): number[] {
  return [...u16(value >>> 16), ...u16(value)];
}

function transport(fields: PacketFields): Uint8Array {
  const payload = fields.payload ?? new Uint8Array();
  const ports = [...u16(fields.sourcePort ?? 4000), ...u16(fields.destinationPort ?? 5000)];
  switch (fields.kind ?? 'raw') {
    case 'udp':
      return join(ports, u16(8 + payload.length), [0, 0], payload);
    case 'tcp': {
      const options = fields.tcpOptions ?? new Uint8Array();
      const offset = ((20 + options.length) / 4) << 4;
      const fixed = [...u32(fields.sequence ?? 1), ...u32(1), offset, fields.flags ?? TCP_ACK, 0xff, 0xff, 0, 0, 0, 0];
      return join(ports, fixed, options, payload);
    }
    default:
      return payload;
  }
}

function protocolOf(fields: PacketFields): number {
  if (fields.kind === 'udp') return PROTOCOL_UDP;
  return fields.kind === 'tcp' ? PROTOCOL_TCP : (fields.protocol ?? PROTOCOL_EXPERIMENT);
}

/** A packet of the family of its addresses. */
export function packet(fields: PacketFields): Uint8Array {
  const source = Address.from(fields.source);
  const destination = Address.from(fields.destination);
  const body = transport(fields);
  const protocol = protocolOf(fields);
  const ttl = fields.ttl ?? 64;
  let header: Uint8Array;
  if (source.family === 4) {
    const options = fields.options ?? new Uint8Array();
    const flags = fields.fragment ?? (fields.dontFragment === true ? 0x4000 : 0);
    header = join(
      [0x45 + options.length / 4, fields.trafficClass ?? 0, ...u16(20 + options.length + body.length)],
      [...u16(fields.id ?? 0), ...u16(flags), ttl, protocol, 0, 0],
      source.bytes,
      destination.bytes,
      options,
    );
    header.set(u16(checksum(header, 0, header.length)), 10);
  } else {
    const first = 0x60000000 | ((fields.trafficClass ?? 0) << 20);
    header = join(u32(first), u16(body.length), [protocol, ttl], source.bytes, destination.bytes);
  }
  const whole = join(header, body);
  const field = checksumField(fields.kind, header.length);
  if (field !== undefined) {
    const right = checksum(whole, header.length, body.length, pseudoSum(whole, header.length, protocol));
    // RFC 768: a UDP sum of zero is sent as ones; TCP sends it as it is.
    whole.set(u16(fields.checksum ?? (right === 0 && fields.kind === 'udp' ? 0xffff : right)), field);
  }
  return whole;
}

function checksumField(kind: PacketFields['kind'], l4: number): number | undefined {
  if (kind === 'udp') return l4 + 6;
  return kind === 'tcp' ? l4 + 16 : undefined;
}

function pseudoSum(bytes: Uint8Array, l4: number, protocol: number): number {
  const length = bytes.length - l4;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return bytes[0]! >>> 4 === 4
    ? pseudoHeaderSum4(view.getUint32(12), view.getUint32(16), protocol, length)
    : pseudoHeaderSum6(bytes, 8, protocol, length);
}

/** A packet as a kernel hands it to a device that computes checksums: the field holds the pseudo header's sum. */
export function withPartialChecksum(whole: Uint8Array): { packet: Uint8Array; offload: Offload } {
  const headers = parseHeaders(whole);
  if (headers === undefined) throw new TypeError('not a whole packet');
  const { l4, protocol } = headers;
  const offset = protocol === PROTOCOL_TCP ? 16 : 6;
  const partial = Uint8Array.from(whole);
  partial.set(u16(pseudoSum(whole, l4, protocol)), l4 + offset);
  return { packet: partial, offload: { checksum: { start: l4, offset } } };
}

/**
 * The superpacket that a segmenting device would cut into exactly these packets of one flow: the first one's headers,
 * with the total length, and PSH and FIN of the last.
 */
export function superpacket(segments: readonly Uint8Array[]): { packet: Uint8Array; offload: Offload } {
  const first = segments[0]!;
  const headers = parseHeaders(first)!;
  const { l4, family, protocol } = headers;
  const tcp = protocol === PROTOCOL_TCP;
  const header = l4 + (tcp ? (first[l4 + 12]! >>> 4) * 4 : 8);
  const whole = join(first.subarray(0, header), ...segments.map((segment) => segment.subarray(header)));
  if (family === 4) {
    whole.set(u16(whole.length), 2);
    whole.set([0, 0], 10);
    whole.set(u16(checksum(whole, 0, l4)), 10);
  } else {
    whole.set(u16(whole.length - 40), 4);
  }
  if (tcp) whole[l4 + 13]! |= segments.at(-1)![l4 + 13]! & (TCP_FIN | TCP_PSH);
  else whole.set(u16(whole.length - l4), l4 + 4);
  const partial = withPartialChecksum(whole);
  const gso = { kind: tcp ? ('tcp' as const) : ('udp' as const), size: first.length - header };
  return { packet: partial.packet, offload: { ...partial.offload, gso } };
}

/** Whether the transport checksum of a whole TCP or UDP packet is right. */
export function checksumHolds(whole: Uint8Array): boolean {
  const { l4, protocol } = parseHeaders(whole)!;
  return sum(whole, l4, whole.length - l4, pseudoSum(whole, l4, protocol)) === 0xffff;
}

/** The data of an IPv4 packet that arrives as these fragments, in any order; undefined when bytes are missing. */
export function reassemble(fragments: readonly Uint8Array[]): Uint8Array | undefined {
  const pieces = fragments.map((whole) => {
    const view = new DataView(whole.buffer, whole.byteOffset, whole.byteLength);
    const header = (whole[0]! & 15) * 4;
    const field = view.getUint16(6);
    return { at: (field & 0x1fff) * 8, more: (field & 0x2000) !== 0, data: whole.subarray(header, view.getUint16(2)) };
  });
  pieces.sort((a, b) => a.at - b.at);
  let end = 0;
  for (const [i, piece] of pieces.entries()) {
    if (piece.at !== end || piece.more !== i < pieces.length - 1) return undefined;
    end += piece.data.length;
  }
  return join(...pieces.map((piece) => piece.data));
}
