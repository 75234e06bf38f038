/**
 * The rules of the forwarder, slow and obvious: addresses are big integers, look-ups try every prefix, headers are read
 * by the RFCs' figures. Shares no code with src/ but the names of the counters.
 */
import type { CounterName } from '../../../src/dataplane/counters.js';
import { addressBytes, icmp, icmpv6, ipv4, ipv6 } from '../../support/packets.js';

export interface Lease {
  /** Such as `10.1.0.0/16`, host bits zero. */
  readonly prefix: string;
  /** The next hop's underlay address and port, and what else that host sends from. */
  readonly address: string;
  readonly port: number;
  readonly senders: readonly string[];
}

export interface World {
  readonly local: readonly string[];
  readonly own: readonly string[];
  readonly leases: readonly Lease[];
  /** Path MTU by underlay address, bytes of outer packet. */
  readonly pathMtu: Readonly<Record<string, number>>;
  readonly overhead: number;
  readonly sourceCheck: 'off' | 'lease' | 'strict';
}

export interface EgressPacket {
  readonly bytes: Uint8Array;
  readonly bad: boolean;
  /** 0 = not a superpacket. */
  readonly gso: number;
  readonly header: number;
  readonly segments: number;
}

export interface IngressPacket {
  readonly bytes: Uint8Array;
  readonly truncated: boolean;
  readonly segments: number;
  /** Outer sender. */
  readonly sender: string;
}

export type Verdict =
  | { readonly kind: 'drop' }
  | { readonly kind: 'send'; readonly address: string; readonly port: number; readonly fragmentMtu: number | undefined }
  | { readonly kind: 'deliver'; readonly host: string | undefined };

const DROP: Verdict = { kind: 'drop' };
const REPLIES_PER_BATCH = 32;

type Found = { readonly kind: 'local' } | { readonly kind: 'route'; readonly lease: Lease } | undefined;

function numberOf(bytes: readonly number[] | Uint8Array): bigint {
  return [...bytes].reduce((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

function within(address: Uint8Array, prefix: string): boolean {
  const [text, length] = prefix.split('/') as [string, string];
  const base = addressBytes(text);
  if (base.length !== address.length) return false;
  const rest = BigInt(base.length * 8 - Number(length));
  return numberOf(base) >> rest === numberOf(address) >> rest;
}

function text(address: Uint8Array): string {
  if (address.length === 4) return address.join('.');
  const groups = Array.from({ length: 8 }, (_, i) => ((address[2 * i]! << 8) | address[2 * i + 1]!).toString(16));
  return groups.join(':');
}

function same(a: string, b: string): boolean {
  return addressBytes(a).join() === addressBytes(b).join();
}

/** A token bucket in thousandths of a token. */
class Bucket {
  readonly #rate: number;
  readonly #full: number;
  #held: number;
  #last: number | undefined;

  constructor(rate: number, burst: number) {
    this.#rate = rate;
    this.#full = burst * 1000;
    this.#held = this.#full;
  }

  take(now: number): boolean {
    if (this.#last !== undefined) this.#held = Math.min(this.#full, this.#held + (now - this.#last) * this.#rate);
    this.#last = now;
    if (this.#held < 1000) return false;
    this.#held -= 1000;
    return true;
  }
}

export class Model {
  readonly counters: Partial<Record<CounterName, number>> = {};
  /** ICMP errors of the batch. */
  replies: Uint8Array[] = [];
  /** Latest outer sender that was refused, and how often. */
  readonly unknown: { count: number; address: string | undefined } = { count: 0, address: undefined };
  readonly spoofed: { count: number; address: string | undefined } = { count: 0, address: undefined };
  readonly #world: World;
  readonly #unreachable = new Bucket(200, 50);
  readonly #tooBig = new Bucket(1000, 200);

  constructor(world: World) {
    this.#world = world;
  }

  egress({ bytes, bad, gso, header, segments }: EgressPacket, now: number): Verdict {
    if (bad || this.#parse(bytes) !== 'ok') return this.#drop('dropMalformed', segments);
    const four = bytes[0]! >> 4 === 4;
    const destination = four ? bytes.subarray(16, 20) : bytes.subarray(24, 40);
    const found = this.#lookUp(destination);
    if (found?.kind === 'local') return this.#drop('dropOwnSubnet', segments);
    if (found === undefined) {
      if (isQuiet(destination)) return this.#drop('dropMulticast', segments);
      this.#answer(bytes, undefined, now);
      return this.#drop('dropNoRoute', segments);
    }
    const { address, port } = found.lease;
    const mtu = this.#world.pathMtu[address]! - this.#world.overhead;
    const largest = gso === 0 ? bytes.length : Math.min(bytes.length, header + gso);
    if (largest <= mtu) return { kind: 'send', address, port, fragmentMtu: undefined };
    const mayFragment = four && (bytes[6]! & 0x40) === 0;
    if (mayFragment) return { kind: 'send', address, port, fragmentMtu: mtu };
    this.#answer(bytes, mtu, now);
    return this.#drop('dropTooBig', segments);
  }

  ingress({ bytes, truncated, segments, sender }: IngressPacket): Verdict {
    const { sourceCheck } = this.#world;
    if (truncated) return this.#drop('dropTruncated', segments);
    const parsed = this.#parse(bytes);
    if (parsed !== 'ok') return this.#drop(parsed === 'truncated' ? 'dropTruncated' : 'dropMalformed', segments);
    const four = bytes[0]! >> 4 === 4;
    const source = this.#lookUp(four ? bytes.subarray(12, 16) : bytes.subarray(8, 24));
    const destination = this.#lookUp(four ? bytes.subarray(16, 20) : bytes.subarray(24, 40));
    const host = this.#hostOf(sender);
    if (sourceCheck !== 'off' && host === undefined) {
      note(this.unknown, sender, segments);
      return this.#drop('dropUnknownSender', segments);
    }
    const ours = source?.kind === 'local';
    const foreign = sourceCheck !== 'off' && source?.kind === 'route' && source.lease.address !== host;
    const nobodys = sourceCheck === 'strict' && source === undefined;
    if (ours || foreign || nobodys) {
      note(this.spoofed, sender, segments);
      return this.#drop('dropSpoofedSource', segments);
    }
    const inLease = destination?.kind === 'local' && this.#inOwnLease(four ? bytes.slice(16, 20) : bytes.slice(24, 40));
    return inLease ? { kind: 'deliver', host } : this.#drop('dropNotLocal', segments);
  }

  #count(name: CounterName, by: number): void {
    this.counters[name] = (this.counters[name] ?? 0) + by;
  }

  #drop(name: CounterName, segments: number): Verdict {
    this.#count(name, segments);
    return DROP;
  }

  /** RFC 791 3.1, RFC 8200 3: do the lengths agree with each other and with the bytes that are there? */
  #parse(bytes: Uint8Array): 'ok' | 'malformed' | 'truncated' {
    const version = (bytes[0] ?? 0) >> 4;
    if (version === 4) {
      if (bytes.length < 20) return 'malformed';
      const header = (bytes[0]! & 15) * 4;
      const total = bytes[2]! * 256 + bytes[3]!;
      if (header < 20 || header > bytes.length || total < header) return 'malformed';
      return total > bytes.length ? 'truncated' : 'ok';
    }
    if (version !== 6 || bytes.length < 40) return 'malformed';
    const payload = bytes[4]! * 256 + bytes[5]!;
    if (payload === 0 && bytes[6] === 0 && bytes.length > 40) return 'malformed'; // a jumbogram, RFC 2675
    return 40 + payload > bytes.length ? 'truncated' : 'ok';
  }

  /** Longest prefix; what is this host's own wins over a route for the same prefix. */
  #lookUp(address: Uint8Array): Found {
    const { local, own, leases } = this.#world;
    let best: Found;
    let length = -1;
    for (const lease of leases) {
      const bits = Number(lease.prefix.split('/')[1]);
      if (within(address, lease.prefix) && bits > length) [best, length] = [{ kind: 'route', lease }, bits];
    }
    const outside = own.filter((one) => !local.some((prefix) => within(Uint8Array.from(addressBytes(one)), prefix)));
    const ours = [...local, ...outside.map((one) => `${one}/${one.includes(':') ? 128 : 32}`)];
    for (const prefix of ours) {
      const bits = Number(prefix.split('/')[1]);
      if (within(address, prefix) && bits >= length) [best, length] = [{ kind: 'local' }, bits];
    }
    return best;
  }

  /** Own addresses outside of the own leases get nothing from the underlay. */
  #inOwnLease(address: Uint8Array): boolean {
    return this.#world.local.some((prefix) => within(address, prefix));
  }

  /** Underlay address of the host that sends from here. */
  #hostOf(sender: string): string | undefined {
    const found = this.#world.leases.find((lease) =>
      [lease.address, ...lease.senders].some((one) => same(one, sender)),
    );
    return found?.address;
  }

  #answer(bytes: Uint8Array, mtu: number | undefined, now: number): void {
    const four = bytes[0]! >> 4 === 4;
    if (!(four ? mayAnswer4(bytes) : mayAnswer6(bytes))) return this.#count('repliesSuppressed', 1);
    const bucket = mtu === undefined ? this.#unreachable : this.#tooBig;
    if (this.replies.length >= REPLIES_PER_BATCH || !bucket.take(now)) return this.#count('repliesLimited', 1);
    this.replies.push(four ? error4(bytes, mtu) : error6(bytes, mtu));
  }
}

function note(of: { count: number; address: string | undefined }, sender: string, segments: number): void {
  of.count += segments;
  of.address = sender;
}

/** Multicast, broadcast and reserved IPv4 (224/3); IPv6 multicast and link-local: what kernels emit by themselves. */
function isQuiet(address: Uint8Array): boolean {
  if (address.length === 4) return within(address, '224.0.0.0/3');
  return within(address, 'ff00::/8') || within(address, 'fe80::/10');
}

/** RFC 1122 3.2.2, RFC 1812 4.3.2.7. */
function mayAnswer4(bytes: Uint8Array): boolean {
  const source = bytes.subarray(12, 16);
  const destination = bytes.subarray(16, 20);
  const notOneHost = ['0.0.0.0/8', '127.0.0.0/8', '224.0.0.0/3'];
  if (notOneHost.some((prefix) => within(source, prefix))) return false;
  const notAnswered = ['0.0.0.0/32', '224.0.0.0/4', '255.255.255.255/32'];
  if (notAnswered.some((prefix) => within(destination, prefix))) return false;
  if (((bytes[6]! & 0x1f) << 8) + bytes[7]! !== 0) return false; // not the first fragment
  if (bytes[9] !== 1) return true;
  const header = (bytes[0]! & 15) * 4;
  const type = bytes.subarray(0, bytes[2]! * 256 + bytes[3]!)[header];
  return type !== undefined && [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43].includes(type);
}

/** RFC 4443 2.4 (e). */
function mayAnswer6(bytes: Uint8Array): boolean {
  const source = bytes.subarray(8, 24);
  const destination = bytes.subarray(24, 40);
  if (['::/127', 'fe80::/10', 'ff00::/8'].some((prefix) => within(source, prefix))) return false;
  if (['::/128', 'ff00::/8'].some((prefix) => within(destination, prefix))) return false;
  const whole = bytes.subarray(0, 40 + bytes[4]! * 256 + bytes[5]!);
  let next = whole[6]!;
  let at = 40;
  for (let headers = 0; ; headers++) {
    const units = extensionBytes(whole, next, at);
    if (units === undefined) break;
    if (headers === 8 || at + 8 > whole.length) return false;
    if (next === 44 && (whole[at + 2]! * 256 + whole[at + 3]!) >> 3 !== 0) return false; // not the first fragment
    if (at + units > whole.length) return false;
    next = whole[at]!;
    at += units;
  }
  if (next !== 58) return true;
  const type = whole[at];
  return type !== undefined && type >= 128 && type !== 137;
}

/** Bytes of the extension header of type `next` at `at`, undefined when it is none. */
function extensionBytes(whole: Uint8Array, next: number, at: number): number | undefined {
  if (next === 44) return 8;
  if (next === 51) return ((whole[at + 1] ?? 0) + 2) * 4; // RFC 4302 2.2: words minus 2
  return [0, 43, 60, 135, 139, 140].includes(next) ? ((whole[at + 1] ?? 0) + 1) * 8 : undefined;
}

/** RFC 792, RFC 1191 4, RFC 1812 4.3.2: from the unreachable destination, at most 576 bytes. */
function error4(bytes: Uint8Array, mtu: number | undefined): Uint8Array {
  const total = bytes[2]! * 256 + bytes[3]!;
  const quote = bytes.subarray(0, Math.min(total, 576 - 28));
  return ipv4({
    tos: 0xc0,
    id: 0,
    dontFragment: true,
    ttl: 64,
    protocol: 1,
    src: text(bytes.subarray(16, 20)),
    dst: text(bytes.subarray(12, 16)),
    payload: mtu === undefined ? icmp(3, 0, 0, quote) : icmp(3, 4, mtu, quote),
  });
}

/** RFC 4443 3.1 and 3.2: at most 1280 bytes; less than 1280 is no MTU that a sender would believe (RFC 8201 4). */
function error6(bytes: Uint8Array, mtu: number | undefined): Uint8Array {
  const total = 40 + bytes[4]! * 256 + bytes[5]!;
  const quote = bytes.subarray(0, Math.min(total, 1280 - 48));
  const addresses = { src: text(bytes.subarray(24, 40)), dst: text(bytes.subarray(8, 24)) };
  const error =
    mtu === undefined ? icmpv6(addresses, 1, 0, 0, quote) : icmpv6(addresses, 2, 0, Math.max(mtu, 1280), quote);
  return ipv6({ ...addresses, nextHeader: 58, hopLimit: 64, payload: error });
}
