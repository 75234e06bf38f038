/** Random worlds and packets: addresses that hit, miss and graze the prefixes; headers that are right, odd and broken. */
import fc from 'fast-check';
import { addressBytes, icmp, icmpv6, ipv4, ipv6, paddingHeader, ramp, tcp, udp } from '../../support/packets.js';
import { authenticationHeader, fragmentHeader } from '../../support/packets.js';
import type { ExtensionHeader } from '../../support/packets.js';
import type { EgressPacket, IngressPacket, Lease, World } from './model.js';

/** Underlay addresses of hosts; each also sends from one more address. */
const HOSTS = ['192.0.2.1', '192.0.2.2', '192.0.2.3', '192.0.2.255', '2001:db8::1', '2001:db8:0:1::'];
const MORE_SENDERS = ['198.51.100.1', '198.51.100.2', '203.0.113.3', '2001:db8::4', '198.51.100.5', '2001:db8::6'];
const STRANGERS = ['192.0.2.77', '2001:db8::77'];

function hexGroups(bytes: readonly number[]): string {
  return Array.from({ length: 8 }, (_, i) => ((bytes[2 * i]! << 8) | bytes[2 * i + 1]!).toString(16)).join(':');
}

function textOf(bytes: readonly number[]): string {
  return bytes.length === 4 ? bytes.join('.') : hexGroups(bytes);
}

function masked(bytes: readonly number[], length: number): number[] {
  return bytes.map((byte, i) => byte & (0xff00 >> Math.min(8, Math.max(0, length - 8 * i))) & 0xff);
}

/** Few distinct values, so that prefixes nest and packets hit them. */
const bytes4 = fc.tuple(
  fc.constant(10),
  fc.constantFrom(0, 1, 2),
  fc.constantFrom(0, 1, 127, 128),
  fc.constantFrom(0, 1, 64, 255),
);
const bytes6 = fc
  .tuple(fc.constantFrom(0, 1), fc.constantFrom(0, 1, 0x80), fc.constantFrom(0, 1, 0xff))
  .map(([a, b, c]) => [0xfd, 0, 0, a, 0, b, 0, 0, 0, 0, 0, 0, 0, 0, 0, c]);

const prefix = fc.oneof(
  fc.tuple(bytes4, fc.constantFrom(8, 14, 16, 23, 24, 25, 31, 32)),
  fc.tuple(bytes6, fc.constantFrom(16, 31, 32, 47, 48, 64, 65, 128)),
);
const prefixText = prefix.map(([bytes, length]) => `${textOf(masked(bytes, length))}/${length}`);

const host = fc.nat(HOSTS.length - 1);

const lease: fc.Arbitrary<Lease> = fc
  .record({ prefix: prefixText, host, port: fc.constantFrom(8285, 8285, 4789, 65_535), more: fc.boolean() })
  .map(({ prefix, host, port, more }) => ({
    prefix,
    address: HOSTS[host]!,
    port,
    senders: more ? [MORE_SENDERS[host]!] : [],
  }));

export const world: fc.Arbitrary<World> = fc.record({
  local: fc.uniqueArray(prefixText, { minLength: 1, maxLength: 4 }),
  own: fc.uniqueArray(fc.oneof(bytes4, bytes6).map(textOf), { maxLength: 3 }),
  leases: fc.uniqueArray(lease, { maxLength: 16, size: 'max', selector: (one) => one.prefix }),
  pathMtu: fc
    .array(fc.constantFrom(68, 97, 576, 1280, 1400, 1500, 9000, 65_535), {
      minLength: HOSTS.length,
      maxLength: HOSTS.length,
    })
    .map((mtus) => Object.fromEntries(HOSTS.map((address, i) => [address, mtus[i]!]))),
  overhead: fc.constantFrom(28, 48),
  sourceCheck: fc.constantFrom('off', 'lease', 'strict'),
});

const SPECIAL4 = ['0.0.0.0', '0.1.2.3', '127.0.0.1', '224.0.0.1', '239.1.1.1', '240.0.0.1', '255.255.255.255'];
const SPECIAL6 = ['0:0:0:0:0:0:0:0', '0:0:0:0:0:0:0:1', '0:0:0:0:0:0:0:2', 'fe80:0:0:0:0:0:0:1', 'febf:0:0:0:0:0:0:1'];
const MULTICAST6 = ['ff02:0:0:0:0:0:0:2', 'ff0e:0:0:0:0:0:0:1'];

const address4 = fc.oneof(
  { weight: 8, arbitrary: bytes4.map(textOf) },
  { weight: 2, arbitrary: fc.array(fc.nat(255), { minLength: 4, maxLength: 4 }).map(textOf) },
  { weight: 1, arbitrary: fc.constantFrom(...SPECIAL4) },
);
const address6 = fc.oneof(
  { weight: 8, arbitrary: bytes6.map(textOf) },
  { weight: 2, arbitrary: fc.array(fc.nat(255), { minLength: 16, maxLength: 16 }).map(textOf) },
  { weight: 1, arbitrary: fc.constantFrom(...SPECIAL6, ...MULTICAST6) },
);

const icmpType = fc.oneof(fc.constantFrom(0, 3, 5, 8, 11, 12, 13, 18, 40, 42, 43), fc.nat(255));
const icmp6Type = fc.oneof(fc.constantFrom(0, 1, 2, 127, 128, 129, 133, 136, 137), fc.nat(255));
/** Sizes around everything that the rules compare with. */
const size = fc.oneof(
  fc.nat(80),
  fc.constantFrom(
    540,
    548,
    556,
    576,
    1192,
    1232,
    1240,
    1252,
    1280,
    1344,
    1352,
    1372,
    1412,
    1424,
    1432,
    1452,
    1472,
    1500,
  ),
  fc.nat(2000),
);

const whole4 = fc
  .record({
    src: address4,
    dst: address4,
    kind: fc.constantFrom('udp', 'tcp', 'icmp', 'none'),
    type: icmpType,
    size,
    dontFragment: fc.boolean(),
    moreFragments: fc.boolean(),
    fragmentOffset: fc.constantFrom(0, 0, 0, 8, 1480, 65_528),
    options: fc.constantFrom([], [], [1, 1, 1, 0], [0x94, 4, 0, 0, 7, 7, 4, 0]),
    ttl: fc.nat(255),
  })
  .map(({ kind, type, size, ...fields }) => {
    const data = ramp(size);
    const { src, dst } = fields;
    if (kind === 'udp') return ipv4({ ...fields, protocol: 17, payload: udp({ src, dst, payload: data }) });
    if (kind === 'tcp') return ipv4({ ...fields, protocol: 6, payload: tcp({ src, dst, payload: data }) });
    if (kind === 'icmp') return ipv4({ ...fields, protocol: 1, payload: icmp(type, 0, 0, data) });
    return ipv4({ ...fields, protocol: 1, payload: [] }); // ICMP without even a type
  });

const extension: fc.Arbitrary<ExtensionHeader> = fc.oneof(
  fc
    .tuple(fc.constantFrom(0, 43, 60, 135, 139, 140), fc.integer({ min: 1, max: 3 }))
    .map(([t, n]) => paddingHeader(t, n)),
  fc.tuple(fc.constantFrom(0, 0, 8, 1448), fc.boolean()).map(([at, more]) => fragmentHeader(at, more)),
  fc.integer({ min: 0, max: 4 }).map((words) => authenticationHeader(words)),
);

const whole6 = fc
  .record({
    src: address6,
    dst: address6,
    kind: fc.constantFrom('udp', 'tcp', 'icmp', 'none', 'cut'),
    type: icmp6Type,
    size,
    extensions: fc.oneof(
      fc.constant([]),
      fc.array(extension, { maxLength: 3 }),
      fc.array(extension, { maxLength: 10 }),
    ),
    hopLimit: fc.nat(255),
  })
  .map(({ kind, type, size, ...fields }) => {
    const data = ramp(size);
    const { src, dst } = fields;
    if (kind === 'udp') return ipv6({ ...fields, nextHeader: 17, payload: udp({ src, dst, payload: data }) });
    if (kind === 'tcp') return ipv6({ ...fields, nextHeader: 6, payload: tcp({ src, dst, payload: data }) });
    if (kind === 'icmp') return ipv6({ ...fields, nextHeader: 58, payload: icmpv6({ src, dst }, type, 0, 0, data) });
    return ipv6({ ...fields, nextHeader: kind === 'cut' ? 60 : 58, payload: [] });
  });

/** Bytes changed, cut off or added behind a right packet. */
const damage = fc.oneof(
  { weight: 5, arbitrary: fc.constant((whole: Uint8Array) => whole) },
  {
    weight: 3,
    arbitrary: fc
      .array(fc.tuple(fc.oneof(fc.nat(9), fc.nat(79)), fc.nat(255)), { minLength: 1, maxLength: 3 })
      .map((changes) => (whole: Uint8Array) => {
        const copy = Uint8Array.from(whole);
        for (const [at, value] of changes) if (at < copy.length) copy[at] = value;
        return copy;
      }),
  },
  {
    weight: 1,
    arbitrary: fc.nat(100).map((cut) => (whole: Uint8Array) => whole.slice(0, Math.max(1, whole.length - cut))),
  },
  { weight: 1, arbitrary: fc.nat(60).map((to) => (whole: Uint8Array) => whole.slice(0, Math.max(1, to))) },
  {
    weight: 1,
    arbitrary: fc
      .integer({ min: 1, max: 40 })
      .map((more) => (whole: Uint8Array) => Uint8Array.of(...whole, ...ramp(more, 7))),
  },
);

export const packetBytes: fc.Arbitrary<Uint8Array> = fc.oneof(
  { weight: 9, arbitrary: fc.tuple(fc.oneof(whole4, whole6), damage).map(([whole, change]) => change(whole)) },
  { weight: 1, arbitrary: fc.uint8Array({ minLength: 1, maxLength: 120 }) },
);

/** As the engine in C fills it in: fields of superpackets only, and nothing but `bad` where it saw a contradiction. */
export const egressPacket: fc.Arbitrary<EgressPacket> = fc
  .record({
    bytes: packetBytes,
    bad: fc.oneof({ weight: 9, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
    gso: fc.oneof(
      { weight: 2, arbitrary: fc.constant(0) },
      { weight: 1, arbitrary: fc.integer({ min: 1, max: 1600 }) },
    ),
    header: fc.integer({ min: 28, max: 100 }),
  })
  .map(({ bytes, bad, gso, header }) =>
    gso === 0 || header >= bytes.length
      ? { bytes, bad, gso: 0, header: 0, segments: 1 }
      : { bytes, bad, gso, header, segments: Math.ceil((bytes.length - header) / gso) },
  );

export const sender: fc.Arbitrary<string> = fc.constantFrom(...HOSTS, ...MORE_SENDERS, ...STRANGERS);

/** Rows of the underlay have 20 bytes at least: shorter datagrams never become one. */
export const ingressPacket: fc.Arbitrary<IngressPacket> = fc.record({
  bytes: packetBytes.map((bytes) => (bytes.length < 20 ? Uint8Array.of(...bytes, ...ramp(20 - bytes.length)) : bytes)),
  truncated: fc.oneof({ weight: 15, arbitrary: fc.constant(false) }, { weight: 1, arbitrary: fc.constant(true) }),
  segments: fc.oneof(fc.constant(1), fc.integer({ min: 1, max: 64 })),
  sender,
});

/** The 32-bit words of a message row for a sender, most significant first. */
export function senderWords(text: string): { readonly family: 4 | 6; readonly words: readonly number[] } {
  const bytes = addressBytes(text);
  const words = Array.from({ length: bytes.length / 4 }, (_, i) =>
    bytes.slice(4 * i, 4 * i + 4).reduce((word, byte) => (word << 8) | byte, 0),
  );
  return { family: bytes.length === 4 ? 4 : 6, words };
}
