/**
 * ICMP and ICMPv6 errors about packets that cannot be forwarded: when one may be sent, its bytes, and how often.
 *
 * The writers build a whole IP packet (header, ICMP header, quoted offender) into memory of the caller's and return its
 * length. A TUN takes all of it; a raw ICMP socket takes what follows `ICMP4_OFFSET` / `ICMP6_OFFSET`. Nothing is
 * allocated. The offender must have passed `validateIpv4` / `validateIpv6` and `mayAnswer4` / `mayAnswer6`.
 *
 *   IPv4   0 IP header, 20 bytes | 20 type 3 | 21 code | 22 checksum:16 | 24 zero:16 | 26 next-hop MTU:16 | 28 quote
 *   IPv6   0 IP header, 40 bytes | 40 type 1 or 2 | 41 code | 42 checksum:16 | 44 MTU:32, zero for type 1 | 48 quote
 */
import { checksum, pseudoHeaderSum6 } from './checksum.js';
import {
  IPV4_HEADER_BYTES,
  IPV6_HEADER_BYTES,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  TRANSPORT_UNKNOWN,
  ipv4Destination,
  ipv4Source,
  ipv4TotalLength,
  ipv4Transport,
  ipv6DestinationWord,
  ipv6SourceWord,
  ipv6TotalLength,
  ipv6Transport,
  transportIsLaterFragment,
  transportOffset,
  transportProtocol,
} from './packet.js';

/** Where the ICMP part of a written packet begins. */
export const ICMP4_OFFSET: number = IPV4_HEADER_BYTES;
export const ICMP6_OFFSET: number = IPV6_HEADER_BYTES;

/** Room that a writer needs: the longest packet it makes (RFC 1812 4.3.2.3; RFC 4443 2.4 (c)). */
export const ICMP4_MAX_BYTES = 576;
export const ICMP6_MAX_BYTES = 1280;

/** Codes of "destination unreachable". */
export const ICMP4_NET_UNREACHABLE = 0;
export const ICMP4_HOST_UNREACHABLE = 1;
export const ICMP4_ADMINISTRATIVELY_PROHIBITED = 13;
export const ICMP6_NO_ROUTE = 0;
export const ICMP6_ADMINISTRATIVELY_PROHIBITED = 1;
export const ICMP6_ADDRESS_UNREACHABLE = 3;

const ICMP4_UNREACHABLE = 3;
const ICMP4_FRAGMENTATION_NEEDED = 4;
const ICMP6_UNREACHABLE = 1;
const ICMP6_PACKET_TOO_BIG = 2;
const ICMP6_REDIRECT = 137;
const ICMP_HEADER_BYTES = 8;

/** TTL and hop limit of what we originate. */
const HOPS = 64;
/** RFC 1812 4.3.2.5: errors travel with precedence 6, internetwork control. */
const PRECEDENCE_INTERNETWORK_CONTROL = 0xc0;
const DONT_FRAGMENT = 0x40;

/**
 * ICMP types that are queries or answers, so that an error about them cannot start a conversation of errors: echo
 * reply and request, router advertisement and solicitation, timestamp, information, address mask (0, 8, 9, 10, 13–18)
 * and extended echo (42, 43). Every other type counts as an error, those not yet invented included.
 */
function isIcmp4Query(type: number): boolean {
  return type === 0 || (type >= 8 && type <= 10) || (type >= 13 && type <= 18) || type === 42 || type === 43;
}

/**
 * Whether an ICMP error about this valid packet is allowed (RFC 1122 3.2.2, RFC 1812 4.3.2.7): never about an ICMP
 * error, a fragment other than the first, a multicast, broadcast or unspecified destination, or a source that is not
 * one host: 0/8, loopback, multicast, class E, broadcast.
 */
export function mayAnswer4(view: DataView, offset: number, length: number): boolean {
  const source = ipv4Source(view, offset) >>> 24;
  if (source === 0 || source === 127 || source >= 224) return false;
  const destination = ipv4Destination(view, offset);
  if (destination === 0 || destination >>> 28 === 0xe || destination === 0xffffffff) return false;
  const transport = ipv4Transport(view, offset);
  if (transportIsLaterFragment(transport)) return false;
  if (transportProtocol(transport) !== PROTOCOL_ICMP) return true;
  const at = transportOffset(transport);
  return at < Math.min(length, ipv4TotalLength(view, offset)) && isIcmp4Query(view.getUint8(offset + at));
}

/**
 * Whether an ICMPv6 error about this valid packet is allowed (RFC 4443 2.4 (e)): never about an ICMPv6 error or
 * redirect, a fragment other than the first, a packet whose header chain cannot be followed (it may be an error), a
 * multicast or unspecified destination, or a source that is not one node: unspecified, loopback, multicast. A
 * link-local source gets none either: the answer would have to leave on a link that a router cannot name from here.
 * The exception for "packet too big" about multicast (e.3) is not used: an overlay routes no multicast.
 */
export function mayAnswer6(view: DataView, offset: number, length: number): boolean {
  const source = ipv6SourceWord(view, offset, 0);
  if (source >>> 24 === 0xff || source >>> 22 === 0xfe80 >>> 6) return false;
  if (source === 0 && ipv6SourceWord(view, offset, 1) === 0 && ipv6SourceWord(view, offset, 2) === 0) {
    if (ipv6SourceWord(view, offset, 3) <= 1) return false;
  }
  const destination = ipv6DestinationWord(view, offset, 0);
  if (destination >>> 24 === 0xff) return false;
  if (destination === 0 && ipv6DestinationWord(view, offset, 1) === 0 && ipv6DestinationWord(view, offset, 2) === 0) {
    if (ipv6DestinationWord(view, offset, 3) === 0) return false;
  }
  const transport = ipv6Transport(view, offset, length);
  if (transport === TRANSPORT_UNKNOWN || transportIsLaterFragment(transport)) return false;
  if (transportProtocol(transport) !== PROTOCOL_ICMPV6) return true;
  const at = transportOffset(transport);
  if (at >= Math.min(length, ipv6TotalLength(view, offset))) return false;
  const type = view.getUint8(offset + at);
  return type >= 128 && type !== ICMP6_REDIRECT;
}

/**
 * Destination unreachable (RFC 792) about the packet at `offset`, to its source.
 * @param out at least `ICMP4_MAX_BYTES` from `at` on, not overlapping the offender
 * @param source unsigned 32-bit word; design 9.4 says which sources reach a pod
 * @param code such as `ICMP4_NET_UNREACHABLE`
 * @returns bytes written
 */
export function writeUnreachable4(
  out: Uint8Array,
  at: number,
  source: number,
  code: number,
  view: DataView,
  offset: number,
  length: number,
): number {
  return writeError4(out, at, source, code, 0, view, offset, length);
}

/**
 * Fragmentation needed and DF set (RFC 1191 4): as `writeUnreachable4`, with the size that would have passed.
 * @param mtu bytes of inner packet, written as at most 65535
 */
export function writeFragmentationNeeded4(
  out: Uint8Array,
  at: number,
  source: number,
  mtu: number,
  view: DataView,
  offset: number,
  length: number,
): number {
  return writeError4(out, at, source, ICMP4_FRAGMENTATION_NEEDED, Math.min(mtu, 0xffff), view, offset, length);
}

function writeError4(
  out: Uint8Array,
  at: number,
  source: number,
  code: number,
  mtu: number,
  view: DataView,
  offset: number,
  length: number,
): number {
  const quote = Math.min(
    length,
    ipv4TotalLength(view, offset),
    ICMP4_MAX_BYTES - IPV4_HEADER_BYTES - ICMP_HEADER_BYTES,
  );
  const total = IPV4_HEADER_BYTES + ICMP_HEADER_BYTES + quote;
  out[at] = 0x45;
  out[at + 1] = PRECEDENCE_INTERNETWORK_CONTROL;
  put16(out, at + 2, total);
  // An unfragmented packet that says DF needs no identification of its own (RFC 6864 4.1).
  put16(out, at + 4, 0);
  out[at + 6] = DONT_FRAGMENT;
  out[at + 7] = 0;
  out[at + 8] = HOPS;
  out[at + 9] = PROTOCOL_ICMP;
  put16(out, at + 10, 0);
  put32(out, at + 12, source);
  put32(out, at + 16, ipv4Source(view, offset));
  put16(out, at + 10, checksum(out, at, IPV4_HEADER_BYTES));

  const icmp = at + ICMP4_OFFSET;
  out[icmp] = ICMP4_UNREACHABLE;
  out[icmp + 1] = code;
  put16(out, icmp + 2, 0);
  put16(out, icmp + 4, 0);
  put16(out, icmp + 6, mtu);
  copy(out, icmp + ICMP_HEADER_BYTES, view, offset, quote);
  put16(out, icmp + 2, checksum(out, icmp, ICMP_HEADER_BYTES + quote));
  return total;
}

/**
 * ICMPv6 destination unreachable (RFC 4443 3.1) about the packet at `offset`, to its source.
 * @param out at least `ICMP6_MAX_BYTES` from `at` on, not overlapping the offender
 * @param source the 16 bytes at `sourceOffset` of this array, so that an address may be taken from a packet in place
 * @param code such as `ICMP6_NO_ROUTE`
 * @returns bytes written
 */
export function writeUnreachable6(
  out: Uint8Array,
  at: number,
  source: Uint8Array,
  sourceOffset: number,
  code: number,
  view: DataView,
  offset: number,
  length: number,
): number {
  return writeError6(out, at, source, sourceOffset, ICMP6_UNREACHABLE, code, 0, view, offset, length);
}

/**
 * ICMPv6 packet too big (RFC 4443 3.2): as `writeUnreachable6`.
 * @param mtu bytes of inner packet; written as at least 1280, since a sender ignores less (RFC 8201 4)
 */
export function writePacketTooBig6(
  out: Uint8Array,
  at: number,
  source: Uint8Array,
  sourceOffset: number,
  mtu: number,
  view: DataView,
  offset: number,
  length: number,
): number {
  const said = Math.max(mtu, ICMP6_MAX_BYTES);
  return writeError6(out, at, source, sourceOffset, ICMP6_PACKET_TOO_BIG, 0, said, view, offset, length);
}

function writeError6(
  out: Uint8Array,
  at: number,
  source: Uint8Array,
  sourceOffset: number,
  type: number,
  code: number,
  mtu: number,
  view: DataView,
  offset: number,
  length: number,
): number {
  const quote = Math.min(
    length,
    ipv6TotalLength(view, offset),
    ICMP6_MAX_BYTES - IPV6_HEADER_BYTES - ICMP_HEADER_BYTES,
  );
  const payload = ICMP_HEADER_BYTES + quote;
  put32(out, at, 0x60000000);
  put16(out, at + 4, payload);
  out[at + 6] = PROTOCOL_ICMPV6;
  out[at + 7] = HOPS;
  for (let i = 0; i < 16; i++) out[at + 8 + i] = source[sourceOffset + i]!;
  copy(out, at + 24, view, offset + 8, 16);

  const icmp = at + ICMP6_OFFSET;
  out[icmp] = type;
  out[icmp + 1] = code;
  put16(out, icmp + 2, 0);
  put32(out, icmp + 4, mtu);
  copy(out, icmp + ICMP_HEADER_BYTES, view, offset, quote);
  const pseudo = pseudoHeaderSum6(out, at + 8, PROTOCOL_ICMPV6, payload);
  put16(out, icmp + 2, checksum(out, icmp, payload, pseudo));
  return IPV6_HEADER_BYTES + payload;
}

/** Int32 elements of one token bucket. All zero is a full bucket, so shared memory needs no preparation. */
export const TOKEN_BUCKET_WORDS = 2;

/** Clocks of different threads may disagree by this much; a stored time further ahead is a clock that wrapped. */
const CLOCK_SKEW_MS = 60_000;
const MILLITOKENS = 1000;

/**
 * Takes one token from a bucket that all workers share; false means: stay silent. Lock-free, never gives out more than
 * `burst` plus `ratePerSecond` times the time that passed, and allocates nothing.
 *
 * A bucket is two words: [index] when it was last filled (ms, modulo 2^32, never 0), [index + 1] thousandths of a token.
 * Whoever moves the time on by compare-and-exchange owns that interval and alone adds its tokens; another thread may
 * see them a moment late and is refused, never the reverse.
 * @param state over shared memory, `TOKEN_BUCKET_WORDS` elements from `index` on
 * @param nowMs the caller's clock; the same one in all threads, within a minute
 * @param ratePerSecond whole tokens a second, 1 or more
 * @param burst whole tokens of a full bucket, 1 to 2,000,000
 */
export function takeToken(
  state: Int32Array,
  index: number,
  nowMs: number,
  ratePerSecond: number,
  burst: number,
): boolean {
  const now = nowMs | 0 || 1;
  const full = burst * MILLITOKENS;
  const last = Atomics.load(state, index);
  const elapsed = (now - last) | 0;
  if (last === 0 || elapsed > 0 || elapsed < -CLOCK_SKEW_MS) {
    if (Atomics.compareExchange(state, index, last, now) === last) {
      const earned = last === 0 || elapsed < 0 ? full : Math.min(full, Math.floor(elapsed * ratePerSecond));
      let held = Atomics.load(state, index + 1);
      for (;;) {
        const seen = Atomics.compareExchange(state, index + 1, held, Math.min(full, held + earned));
        if (seen === held) break;
        held = seen;
      }
    }
  }
  let held = Atomics.load(state, index + 1);
  while (held >= MILLITOKENS) {
    const seen = Atomics.compareExchange(state, index + 1, held, held - MILLITOKENS);
    if (seen === held) return true;
    held = seen;
  }
  return false;
}

function put16(out: Uint8Array, at: number, value: number): void {
  out[at] = value >>> 8;
  out[at + 1] = value;
}

function put32(out: Uint8Array, at: number, value: number): void {
  out[at] = value >>> 24;
  out[at + 1] = value >>> 16;
  out[at + 2] = value >>> 8;
  out[at + 3] = value;
}

function copy(out: Uint8Array, at: number, view: DataView, offset: number, length: number): void {
  for (let i = 0; i < length; i++) out[at + i] = view.getUint8(offset + i);
}
