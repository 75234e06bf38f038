/**
 * Packets for tests, built independently of the code under test: plain arrays, byte by byte, own checksum.
 *
 * Every field that a test may want to be wrong (version, lengths, checksums) can be overridden. Addresses are text:
 * IPv4 dotted quads, IPv6 with at most one `::`.
 */

export type Bytes = Uint8Array<ArrayBuffer>;

export function bytes(...parts: (number | readonly number[] | Uint8Array)[]): Bytes {
  const all: number[] = [];
  for (const part of parts) {
    if (typeof part === 'number') all.push(part);
    else all.push(...part);
  }
  return Uint8Array.from(all);
}

/** Bytes of hexadecimal text; white space is ignored. */
export function hex(text: string): Bytes {
  const digits = text.replace(/\s+/g, '');
  if (!/^([0-9a-fA-F]{2})*$/.test(digits)) throw new Error(`not hexadecimal: ${text}`);
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

export function toHex(data: Uint8Array): string {
  return Array.from(data, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** A DataView over exactly these bytes. */
export function viewOf(data: Uint8Array): DataView {
  return new DataView(data.buffer, data.byteOffset, data.byteLength);
}

/** `count` bytes 0, 1, 2 … from `first` on, modulo 256. */
export function ramp(count: number, first = 0): Bytes {
  return Uint8Array.from({ length: count }, (_, i) => (first + i) & 0xff);
}

export function u16(value: number): number[] {
  return [(value >> 8) & 0xff, value & 0xff];
}

export function u32(value: number): number[] {
  return [(value >>> 24) & 0xff, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];
}

/** 4 bytes of a dotted quad, 16 of anything with a colon. */
export function addressBytes(text: string): number[] {
  if (!text.includes(':')) return text.split('.').map(Number);
  const [head, tail] = text.split('::');
  const words = (part: string | undefined): number[] =>
    part === undefined || part === '' ? [] : part.split(':').map((word) => Number.parseInt(word, 16));
  const front = words(head);
  const back = words(tail);
  const zeros = Array<number>(8 - front.length - back.length).fill(0);
  return [...front, ...zeros, ...back].flatMap(u16);
}

/** RFC 1071 with 32-bit BigInt-free arithmetic kept deliberately different from src/net: carries are added each step. */
export function onesComplementChecksum(data: Uint8Array | readonly number[]): number {
  let sum = 0;
  for (let i = 0; i < data.length; i += 2) {
    sum += ((data[i] ?? 0) << 8) | (data[i + 1] ?? 0);
    if (sum > 0xffff) sum = (sum & 0xffff) + 1;
  }
  return ~sum & 0xffff;
}

export interface Ipv4Fields {
  readonly src?: string;
  readonly dst?: string;
  readonly protocol?: number;
  readonly payload?: Uint8Array | readonly number[];
  readonly ttl?: number;
  readonly tos?: number;
  readonly id?: number;
  readonly dontFragment?: boolean;
  readonly moreFragments?: boolean;
  /** Bytes, a multiple of 8. */
  readonly fragmentOffset?: number;
  /** Option bytes; padded with end-of-list to a multiple of 4. */
  readonly options?: Uint8Array | readonly number[];
  readonly version?: number;
  /** Header length field, 32-bit words. */
  readonly ihl?: number;
  readonly totalLength?: number;
  readonly checksum?: number;
}

export function ipv4(fields: Ipv4Fields = {}): Bytes {
  const payload = [...(fields.payload ?? [])];
  const options = [...(fields.options ?? [])];
  while (options.length % 4 !== 0) options.push(0);
  const headerBytes = 20 + options.length;
  const flags =
    (fields.dontFragment === true ? 0x4000 : 0) |
    (fields.moreFragments === true ? 0x2000 : 0) |
    ((fields.fragmentOffset ?? 0) >> 3);
  const header = [
    ((fields.version ?? 4) << 4) | (fields.ihl ?? headerBytes / 4),
    fields.tos ?? 0,
    ...u16(fields.totalLength ?? headerBytes + payload.length),
    ...u16(fields.id ?? 0x1234),
    ...u16(flags),
    fields.ttl ?? 64,
    fields.protocol ?? 17,
    0,
    0,
    ...addressBytes(fields.src ?? '10.1.15.2'),
    ...addressBytes(fields.dst ?? '10.1.16.2'),
    ...options,
  ];
  const sum = u16(fields.checksum ?? onesComplementChecksum(header));
  header[10] = sum[0]!;
  header[11] = sum[1]!;
  return bytes(header, payload);
}

export interface ExtensionHeader {
  /** 0 hop-by-hop, 43 routing, 60 destination options, 44 fragment, 51 authentication, … */
  readonly type: number;
  /** All bytes after the "next header" byte. */
  readonly body: readonly number[];
}

/** Padding options header (hop-by-hop, destination, routing with no segments left) of `units` × 8 bytes. */
export function paddingHeader(type: number, units = 1): ExtensionHeader {
  const body = [units - 1, 1, units * 8 - 4, ...Array<number>(units * 8 - 4).fill(0)];
  return { type, body };
}

export function fragmentHeader(offset: number, more: boolean, id = 0xcafe0001): ExtensionHeader {
  return { type: 44, body: [0, ...u16((offset & 0xfff8) | (more ? 1 : 0)), ...u32(id)] };
}

/** Authentication header with `icvWords` × 4 bytes of check value (RFC 4302: length in words minus 2). */
export function authenticationHeader(icvWords = 3): ExtensionHeader {
  return { type: 51, body: [1 + icvWords, 0, 0, ...u32(1), ...u32(1), ...Array<number>(icvWords * 4).fill(0xaa)] };
}

export interface Ipv6Fields {
  readonly src?: string;
  readonly dst?: string;
  readonly nextHeader?: number;
  readonly payload?: Uint8Array | readonly number[];
  readonly hopLimit?: number;
  readonly trafficClass?: number;
  readonly flowLabel?: number;
  readonly extensions?: readonly ExtensionHeader[];
  readonly version?: number;
  readonly payloadLength?: number;
}

export function ipv6(fields: Ipv6Fields = {}): Bytes {
  const extensions = fields.extensions ?? [];
  const last = fields.nextHeader ?? 17;
  const chain = extensions.flatMap((header, i) => [extensions[i + 1]?.type ?? last, ...header.body]);
  const payload = [...chain, ...(fields.payload ?? [])];
  return bytes(
    u32((((fields.version ?? 6) << 28) | ((fields.trafficClass ?? 0) << 20) | (fields.flowLabel ?? 0)) >>> 0),
    u16(fields.payloadLength ?? payload.length),
    extensions[0]?.type ?? last,
    fields.hopLimit ?? 64,
    addressBytes(fields.src ?? 'fd00:15::2'),
    addressBytes(fields.dst ?? 'fd00:16::2'),
    payload,
  );
}

/** Transport checksum with the pseudo header of either family (by the shape of the addresses). */
export function transportChecksum(src: string, dst: string, protocol: number, segment: readonly number[]): number {
  const source = addressBytes(src);
  const tail =
    source.length === 4 ? [0, protocol, ...u16(segment.length)] : [...u32(segment.length), 0, 0, 0, protocol];
  return onesComplementChecksum([...source, ...addressBytes(dst), ...tail, ...segment]);
}

export interface UdpFields {
  readonly src: string;
  readonly dst: string;
  readonly sport?: number;
  readonly dport?: number;
  readonly payload?: Uint8Array | readonly number[];
  readonly checksum?: number;
}

/** A UDP datagram (header and payload) with the right checksum, 0xffff where it computes to 0. */
export function udp(fields: UdpFields): Bytes {
  const payload = [...(fields.payload ?? [])];
  const length = 8 + payload.length;
  const segment = [...u16(fields.sport ?? 4000), ...u16(fields.dport ?? 5000), ...u16(length), 0, 0, ...payload];
  const sum = u16(fields.checksum ?? (transportChecksum(fields.src, fields.dst, 17, segment) || 0xffff));
  segment[6] = sum[0]!;
  segment[7] = sum[1]!;
  return bytes(segment);
}

export const TCP_FIN = 0x01;
export const TCP_SYN = 0x02;
export const TCP_PSH = 0x08;
export const TCP_ACK = 0x10;
export const TCP_CWR = 0x80;

export interface TcpFields {
  readonly src: string;
  readonly dst: string;
  readonly sport?: number;
  readonly dport?: number;
  readonly seq?: number;
  readonly ack?: number;
  readonly flags?: number;
  readonly window?: number;
  readonly options?: Uint8Array | readonly number[];
  readonly payload?: Uint8Array | readonly number[];
  readonly checksum?: number;
}

/** A TCP segment (header, options padded to words, payload) with the right checksum. */
export function tcp(fields: TcpFields): Bytes {
  const options = [...(fields.options ?? [])];
  while (options.length % 4 !== 0) options.push(0);
  const segment = [
    ...u16(fields.sport ?? 4000),
    ...u16(fields.dport ?? 5000),
    ...u32(fields.seq ?? 1),
    ...u32(fields.ack ?? 1),
    ((20 + options.length) / 4) << 4,
    fields.flags ?? TCP_ACK,
    ...u16(fields.window ?? 65535),
    0,
    0,
    0,
    0,
    ...options,
    ...(fields.payload ?? []),
  ];
  const sum = u16(fields.checksum ?? transportChecksum(fields.src, fields.dst, 6, segment));
  segment[16] = sum[0]!;
  segment[17] = sum[1]!;
  return bytes(segment);
}

/** An ICMP message (IPv4): type, code, 4 bytes of rest, data. */
export function icmp(type: number, code: number, rest: number, data: Uint8Array | readonly number[] = []): Bytes {
  const message = [type, code, 0, 0, ...u32(rest), ...data];
  const sum = u16(onesComplementChecksum(message));
  message[2] = sum[0]!;
  message[3] = sum[1]!;
  return bytes(message);
}

/** An ICMPv6 message: its checksum covers the addresses too. */
export function icmpv6(
  addresses: { readonly src: string; readonly dst: string },
  type: number,
  code: number,
  rest: number,
  data: Uint8Array | readonly number[] = [],
): Bytes {
  const message = [type, code, 0, 0, ...u32(rest), ...data];
  const sum = u16(transportChecksum(addresses.src, addresses.dst, 58, message));
  message[2] = sum[0]!;
  message[3] = sum[1]!;
  return bytes(message);
}

/** A whole IPv4 or IPv6 UDP packet, the family taken from the addresses. */
export function udpPacket(fields: UdpFields & { readonly ip?: Ipv4Fields & Ipv6Fields }): Bytes {
  const payload = udp(fields);
  return fields.src.includes(':')
    ? ipv6({ ...fields.ip, src: fields.src, dst: fields.dst, nextHeader: 17, payload })
    : ipv4({ ...fields.ip, src: fields.src, dst: fields.dst, protocol: 17, payload });
}

/** A whole IPv4 or IPv6 TCP packet, the family taken from the addresses. */
export function tcpPacket(fields: TcpFields & { readonly ip?: Ipv4Fields & Ipv6Fields }): Bytes {
  const payload = tcp(fields);
  return fields.src.includes(':')
    ? ipv6({ ...fields.ip, src: fields.src, dst: fields.dst, nextHeader: 6, payload })
    : ipv4({ ...fields.ip, src: fields.src, dst: fields.dst, protocol: 6, payload });
}
