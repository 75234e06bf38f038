/**
 * Addresses, prefixes and hardware addresses: immutable values for everything outside the packet path.
 *
 * The packet path works on 32-bit words read straight from packets (see packet.ts) and meets these classes only
 * where a table is written. Text is strict on the way in (one spelling of a dotted quad, no zone ids, no octal,
 * no short forms) and canonical on the way out (RFC 5952), so that two spellings of one address never become
 * two keys.
 */
import ipaddr from 'ipaddr.js';
import { PodwireError } from '../errors.js';

export type Family = 4 | 6;

/** A value in an error message: quoted, on one line, short. */
function quoted(value: unknown): string {
  const text = typeof value === 'string' ? JSON.stringify(value) : String(value);
  return text.length > 64 ? `${text.slice(0, 60)}…` : text;
}

/** Four decimal octets, `0`–`255`, no leading zeros, nothing else; undefined for anything but that. */
function parseDottedQuad(text: string): number | undefined {
  let value = 0;
  let octet = -1;
  let octets = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code === 0x2e) {
      if (octet < 0) return undefined;
      value = value * 256 + octet;
      octets++;
      octet = -1;
    } else {
      const digit = code - 0x30;
      if (digit < 0 || digit > 9 || octet === 0) return undefined;
      octet = octet < 0 ? digit : octet * 10 + digit;
      if (octet > 255) return undefined;
    }
  }
  return octets === 3 && octet >= 0 ? value * 256 + octet : undefined;
}

/**
 * RFC 4291 2.2 text to 16 bytes. The library would also take zone ids and lax dotted tails (`::01.2.3.4`), so the
 * alphabet is checked first and a dotted tail is turned into hexadecimal groups by the strict reader above.
 */
function parseIpv6(text: string): number[] | undefined {
  if (text.length > 45 || !/^[0-9a-fA-F:]*:[0-9a-fA-F.]*$/.test(text)) return undefined;
  let groups = text;
  if (text.includes('.')) {
    const tail = text.lastIndexOf(':') + 1;
    const value = parseDottedQuad(text.slice(tail));
    if (value === undefined) return undefined;
    groups = `${text.slice(0, tail)}${(value >>> 16).toString(16)}:${(value & 0xffff).toString(16)}`;
  }
  return ipaddr.IPv6.isValid(groups) ? ipaddr.IPv6.parse(groups).toByteArray() : undefined;
}

function isMapped(bytes: Uint8Array): boolean {
  return bytes.length === 16 && bytes[10] === 0xff && bytes[11] === 0xff && bytes.subarray(0, 10).every((b) => b === 0);
}

function isZerosThen(bytes: Uint8Array, last: number): boolean {
  for (let i = 0; i < bytes.length - 1; i++) if (bytes[i] !== 0) return false;
  return bytes[bytes.length - 1] === last;
}

/**
 * One IPv4 or IPv6 address. `::ffff:a.b.c.d` stays IPv6 (it is printed with its dotted quad, RFC 5952 5), but the
 * `is…` classes look at the IPv4 address inside, because that is what the kernel would send to.
 */
export class Address {
  readonly family: Family;
  /** 4 or 16 bytes in network order. Never written to: copy before changing. */
  readonly bytes: Uint8Array;
  #text: string | undefined;

  private constructor(bytes: Uint8Array) {
    this.family = bytes.length === 4 ? 4 : 6;
    this.bytes = bytes;
  }

  /** @throws PodwireError INVALID_ADDRESS unless `text` is one strict IPv4 or IPv6 address. */
  static parse(text: string): Address {
    const address = Address.tryParse(text);
    if (address) return address;
    throw new PodwireError(
      'INVALID_ADDRESS',
      `${quoted(text)} is not an IP address: write it like 10.1.2.3 or fd00::1, without port, prefix length or zone`,
    );
  }

  static tryParse(text: string): Address | undefined {
    if (typeof text !== 'string') return undefined;
    const quad = parseDottedQuad(text);
    if (quad !== undefined) return Address.fromUint32(quad);
    const bytes = parseIpv6(text);
    return bytes && new Address(Uint8Array.from(bytes));
  }

  /** Copies 4 or 16 bytes in network order. @throws PodwireError INVALID_ADDRESS for any other length. */
  static fromBytes(bytes: Uint8Array): Address {
    if (bytes.length !== 4 && bytes.length !== 16) {
      throw new PodwireError('INVALID_ADDRESS', `an address has 4 or 16 bytes, got ${bytes.length}`);
    }
    return new Address(Uint8Array.from(bytes));
  }

  /** The IPv4 address with this unsigned 32-bit value (`0x0a010203` is 10.1.2.3). */
  static fromUint32(value: number): Address {
    if (!Number.isInteger(value) || value < 0 || value > 0xffffffff) {
      throw new PodwireError('INVALID_ADDRESS', `an IPv4 address is an integer from 0 to 2^32-1, got ${quoted(value)}`);
    }
    return new Address(Uint8Array.of(value >>> 24, value >>> 16, value >>> 8, value));
  }

  static from(value: Address | string): Address {
    return value instanceof Address ? value : Address.parse(value);
  }

  /** The unsigned 32-bit value of an IPv4 address. @throws PodwireError INVALID_ADDRESS for IPv6. */
  toUint32(): number {
    if (this.family !== 4) {
      throw new PodwireError(
        'INVALID_ADDRESS',
        `${this.toString()} is an IPv6 address where an IPv4 address is needed`,
      );
    }
    return this.word(0);
  }

  /** Big-endian unsigned 32-bit word: index 0 for IPv4, 0 (first) to 3 for IPv6. */
  word(index: number): number {
    const at = index * 4;
    if (!Number.isInteger(index) || at < 0 || at >= this.bytes.length) {
      throw new PodwireError('INVALID_ARGUMENT', `${this.toString()} has no 32-bit word ${quoted(index)}`);
    }
    const b = this.bytes;
    return ((b[at]! << 24) | (b[at + 1]! << 16) | (b[at + 2]! << 8) | b[at + 3]!) >>> 0;
  }

  /** Dotted quad or RFC 5952 text, lower case. */
  toString(): string {
    return (this.#text ??= this.#format());
  }

  #format(): string {
    if (this.family === 4) return this.bytes.join('.');
    if (isMapped(this.bytes)) return `::ffff:${this.bytes.subarray(12).join('.')}`;
    return (ipaddr.fromByteArray([...this.bytes]) as ipaddr.IPv6).toRFC5952String();
  }

  toJSON(): string {
    return this.toString();
  }

  equals(other: Address): boolean {
    return this.compare(other) === 0;
  }

  /** Negative, 0 or positive: IPv4 before IPv6, then numerically. */
  compare(other: Address): number {
    if (this.family !== other.family) return this.family - other.family;
    for (let i = 0; i < this.bytes.length; i++) {
      const difference = this.bytes[i]! - other.bytes[i]!;
      if (difference !== 0) return difference;
    }
    return 0;
  }

  /** The address `delta` further on. @throws PodwireError INVALID_ARGUMENT when that leaves the family's range. */
  offset(delta: bigint): Address {
    let value = delta;
    for (let i = 0; i < this.bytes.length; i++)
      value += BigInt(this.bytes[i]!) << BigInt(8 * (this.bytes.length - 1 - i));
    if (value >> BigInt(8 * this.bytes.length) !== 0n) {
      throw new PodwireError('INVALID_ARGUMENT', `${this.toString()} plus ${delta} is no IPv${this.family} address`);
    }
    const bytes = new Uint8Array(this.bytes.length);
    for (let i = bytes.length - 1; i >= 0; i--, value >>= 8n) bytes[i] = Number(value & 0xffn);
    return new Address(bytes);
  }

  /** `0.0.0.0` or `::`. */
  get isUnspecified(): boolean {
    return isZerosThen(this.#plain(), 0);
  }

  /** `127.0.0.0/8` or `::1`. */
  get isLoopback(): boolean {
    const b = this.#plain();
    return b.length === 4 ? b[0] === 127 : isZerosThen(b, 1);
  }

  /** `224.0.0.0/4` or `ff00::/8`. */
  get isMulticast(): boolean {
    const b = this.#plain();
    return b.length === 4 ? (b[0]! & 0xf0) === 0xe0 : b[0] === 0xff;
  }

  /** `169.254.0.0/16` or `fe80::/10`. */
  get isLinkLocal(): boolean {
    const b = this.#plain();
    return b.length === 4 ? b[0] === 169 && b[1] === 254 : b[0] === 0xfe && (b[1]! & 0xc0) === 0x80;
  }

  /** `255.255.255.255`; a subnet's own broadcast address is `Prefix.last`. */
  get isBroadcast(): boolean {
    const b = this.#plain();
    return b.length === 4 && b.every((byte) => byte === 255);
  }

  /** The bytes that decide the class: those of the embedded IPv4 address when it is IPv4-mapped. */
  #plain(): Uint8Array {
    return isMapped(this.bytes) ? this.bytes.subarray(12) : this.bytes;
  }
}

/** A network: an address whose host bits are zero, and the number of leading bits that count. */
export class Prefix {
  /** First address; host bits are zero. */
  readonly address: Address;
  /** 0–32 or 0–128. */
  readonly length: number;
  readonly family: Family;
  #last: Address | undefined;

  private constructor(address: Address, length: number) {
    this.address = address;
    this.length = length;
    this.family = address.family;
  }

  /**
   * `address/length`; host bits are masked off (`10.1.2.3/24` is `10.1.2.0/24`).
   * @throws PodwireError INVALID_ADDRESS for anything else, a bare address or a netmask included.
   */
  static parse(text: string): Prefix {
    const prefix = Prefix.tryParse(text);
    if (prefix) return prefix;
    throw new PodwireError(
      'INVALID_ADDRESS',
      `${quoted(text)} is not a prefix: write it as address/length, like 10.1.0.0/16 or fd00::/48`,
    );
  }

  static tryParse(text: string): Prefix | undefined {
    if (typeof text !== 'string') return undefined;
    const slash = text.indexOf('/');
    const digits = text.slice(slash + 1);
    if (slash < 0 || !/^(0|[1-9][0-9]{0,2})$/.test(digits)) return undefined;
    const address = Address.tryParse(text.slice(0, slash));
    const length = Number(digits);
    return address && length <= address.bytes.length * 8 ? Prefix.of(address, length) : undefined;
  }

  /** The prefix of `length` bits around `address`. @throws PodwireError INVALID_ARGUMENT for an impossible length. */
  static of(address: Address, length: number): Prefix {
    if (!Number.isInteger(length) || length < 0 || length > address.bytes.length * 8) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `prefix length ${quoted(length)} for ${address.toString()} must be from 0 to ${address.bytes.length * 8}`,
      );
    }
    return new Prefix(filled(address, length, 0), length);
  }

  static from(value: Prefix | string): Prefix {
    return value instanceof Prefix ? value : Prefix.parse(value);
  }

  /** Whether every address of `other` lies inside; another family never does. */
  contains(other: Address | Prefix): boolean {
    const length = other instanceof Prefix ? other.length : other.bytes.length * 8;
    const address = other instanceof Prefix ? other.address : other;
    if (address.family !== this.family || length < this.length) return false;
    const whole = this.length >>> 3;
    const rest = this.length & 7;
    for (let i = 0; i < whole; i++) if (address.bytes[i] !== this.address.bytes[i]) return false;
    return rest === 0 || (address.bytes[whole]! ^ this.address.bytes[whole]!) >>> (8 - rest) === 0;
  }

  overlaps(other: Prefix): boolean {
    return this.length <= other.length ? this.contains(other) : other.contains(this);
  }

  /** Last address: all host bits one. */
  get last(): Address {
    return (this.#last ??= filled(this.address, this.length, 0xff));
  }

  equals(other: Prefix): boolean {
    return this.length === other.length && this.address.equals(other.address);
  }

  toString(): string {
    return `${this.address.toString()}/${this.length}`;
  }

  toJSON(): string {
    return this.toString();
  }
}

/** `address` with every bit after the first `length` replaced by those of `fill` (0 or 0xff). */
function filled(address: Address, length: number, fill: number): Address {
  const bytes = Uint8Array.from(address.bytes);
  for (let i = length >>> 3; i < bytes.length; i++) {
    const kept = i === length >>> 3 ? length & 7 : 0;
    const mask = 0xff >>> kept;
    bytes[i] = (bytes[i]! & ~mask) | (fill & mask);
  }
  return Address.fromBytes(bytes);
}

/** A 48-bit Ethernet hardware address. */
export class MacAddress {
  /** 6 bytes. Never written to: copy before changing. */
  readonly bytes: Uint8Array;

  private constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  /** Six pairs of hexadecimal digits joined by `:` (or all by `-`). @throws PodwireError INVALID_ADDRESS. */
  static parse(text: string): MacAddress {
    if (typeof text !== 'string' || !/^[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}$/.test(text)) {
      throw new PodwireError(
        'INVALID_ADDRESS',
        `${quoted(text)} is not a hardware address: write it like 0e:12:34:56:78:9a`,
      );
    }
    return new MacAddress(Uint8Array.from(text.split(/[:-]/), (pair) => Number.parseInt(pair, 16)));
  }

  /** Copies 6 bytes. @throws PodwireError INVALID_ADDRESS for any other length. */
  static fromBytes(bytes: Uint8Array): MacAddress {
    if (bytes.length !== 6) {
      throw new PodwireError('INVALID_ADDRESS', `a hardware address has 6 bytes, got ${bytes.length}`);
    }
    return new MacAddress(Uint8Array.from(bytes));
  }

  /** A unicast, locally administered address from 6 random bytes of the caller's choosing. */
  static random(randomBytes: Uint8Array): MacAddress {
    const bytes = Uint8Array.from(randomBytes);
    bytes[0] = (bytes[0]! & 0xfe) | 0x02;
    return MacAddress.fromBytes(bytes);
  }

  toString(): string {
    return Array.from(this.bytes, (byte) => byte.toString(16).padStart(2, '0')).join(':');
  }

  toJSON(): string {
    return this.toString();
  }

  equals(other: MacAddress): boolean {
    return this.bytes.every((byte, i) => byte === other.bytes[i]);
  }
}
