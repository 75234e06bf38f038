import { describe, expect, it } from 'vitest';
import * as packet from '../../../src/net/packet.js';
import {
  authenticationHeader,
  bytes,
  fragmentHeader,
  ipv4,
  ipv6,
  paddingHeader,
  ramp,
  viewOf,
  type ExtensionHeader,
} from '../../support/packets.js';

/** The packet in the middle of other bytes, so that a reader that ignores the offset or the length is caught. */
function placed(data: Uint8Array, offset = 13): DataView {
  return viewOf(bytes(new Uint8Array(offset).fill(0x66), data, new Uint8Array(64).fill(0x66)));
}
const AT = 13;

describe('validateIpv4', () => {
  const good = ipv4({ payload: ramp(20) });
  const verdict = (data: Uint8Array, length = data.length): number => packet.validateIpv4(placed(data), AT, length);

  it('accepts whole packets, with options and with padding after them', () => {
    expect(verdict(good)).toBe(packet.PACKET_OK);
    expect(verdict(good, good.length + 6)).toBe(packet.PACKET_OK);
    expect(verdict(ipv4({ options: ramp(40) }))).toBe(packet.PACKET_OK);
    expect(verdict(ipv4())).toBe(packet.PACKET_OK);
  });

  it('names what is wrong', () => {
    for (let length = 0; length < 20; length++) expect(verdict(good, length)).toBe(packet.PACKET_SHORT);
    expect(verdict(ipv4({ version: 6, payload: ramp(20) }))).toBe(packet.PACKET_VERSION);
    expect(verdict(ipv4({ version: 0 }))).toBe(packet.PACKET_VERSION);
    expect(verdict(ipv4({ ihl: 4 }))).toBe(packet.PACKET_HEADER_LENGTH);
    expect(verdict(ipv4({ ihl: 6 }))).toBe(packet.PACKET_HEADER_LENGTH);
    expect(verdict(ipv4({ totalLength: 19 }))).toBe(packet.PACKET_LENGTH);
    expect(verdict(ipv4({ options: ramp(8), totalLength: 27 }))).toBe(packet.PACKET_LENGTH);
    expect(verdict(good, good.length - 1)).toBe(packet.PACKET_TRUNCATED);
    expect(verdict(ipv4({ totalLength: 65535 }))).toBe(packet.PACKET_TRUNCATED);
  });
});

describe('validateIpv6', () => {
  const good = ipv6({ payload: ramp(20) });
  const verdict = (data: Uint8Array, length = data.length): number => packet.validateIpv6(placed(data), AT, length);

  it('accepts whole packets, with padding after them, and empty ones', () => {
    expect(verdict(good)).toBe(packet.PACKET_OK);
    expect(verdict(good, good.length + 6)).toBe(packet.PACKET_OK);
    expect(verdict(ipv6({ nextHeader: 59 }))).toBe(packet.PACKET_OK);
  });

  it('names what is wrong', () => {
    for (let length = 0; length < 40; length++) expect(verdict(good, length)).toBe(packet.PACKET_SHORT);
    expect(verdict(ipv6({ version: 4, payload: ramp(20) }))).toBe(packet.PACKET_VERSION);
    expect(verdict(good, good.length - 1)).toBe(packet.PACKET_TRUNCATED);
    const jumbo: ExtensionHeader = { type: 0, body: [0, 0xc2, 4, 0, 1, 0, 0] };
    expect(verdict(ipv6({ extensions: [jumbo], payloadLength: 0, payload: ramp(8) }))).toBe(packet.PACKET_LENGTH);
  });
});

describe('fields', () => {
  it('reads every IPv4 field', () => {
    const data = ipv4({
      src: '255.1.2.3',
      dst: '10.0.0.254',
      protocol: 6,
      ttl: 200,
      id: 0xfedc,
      dontFragment: true,
      options: [1, 1, 1, 1],
      payload: ramp(9),
    });
    const view = placed(data);
    expect(packet.ipVersion(view, AT)).toBe(4);
    expect(packet.ipv4HeaderLength(view, AT)).toBe(24);
    expect(packet.ipv4TotalLength(view, AT)).toBe(33);
    expect(packet.ipv4Id(view, AT)).toBe(0xfedc);
    expect(packet.ipv4Ttl(view, AT)).toBe(200);
    expect(packet.ipv4Protocol(view, AT)).toBe(6);
    expect(packet.ipv4Source(view, AT)).toBe(0xff010203);
    expect(packet.ipv4Destination(view, AT)).toBe(0x0a0000fe);
    expect(packet.ipv4DontFragment(view, AT)).toBe(true);
    expect(packet.ipv4MoreFragments(view, AT)).toBe(false);
    expect(packet.ipv4IsFragment(view, AT)).toBe(false);
  });

  it.each([
    { more: false, offset: 0, fragment: false, later: false },
    { more: true, offset: 0, fragment: true, later: false },
    { more: true, offset: 1480, fragment: true, later: true },
    { more: false, offset: 65528, fragment: true, later: true },
  ])('reads IPv4 fragment fields: %o', ({ more, offset, fragment, later }) => {
    const view = placed(ipv4({ moreFragments: more, fragmentOffset: offset, payload: ramp(8) }));
    expect(packet.ipv4MoreFragments(view, AT)).toBe(more);
    expect(packet.ipv4FragmentOffset(view, AT)).toBe(offset);
    expect(packet.ipv4IsFragment(view, AT)).toBe(fragment);
    expect(packet.ipv4DontFragment(view, AT)).toBe(false);
    const transport = packet.ipv4Transport(view, AT);
    expect(packet.transportIsFragment(transport)).toBe(fragment);
    expect(packet.transportIsLaterFragment(transport)).toBe(later);
    expect(packet.transportProtocol(transport)).toBe(17);
    expect(packet.transportOffset(transport)).toBe(20);
  });

  it('reads every IPv6 field', () => {
    const view = placed(
      ipv6({
        src: 'ffff:1::2:3:4',
        dst: 'fd00::8000:1',
        nextHeader: 6,
        hopLimit: 3,
        trafficClass: 0xff,
        flowLabel: 0xfffff,
        payload: ramp(7),
      }),
    );
    expect(packet.ipVersion(view, AT)).toBe(6);
    expect(packet.ipv6PayloadLength(view, AT)).toBe(7);
    expect(packet.ipv6TotalLength(view, AT)).toBe(47);
    expect(packet.ipv6NextHeader(view, AT)).toBe(6);
    expect(packet.ipv6HopLimit(view, AT)).toBe(3);
    expect([0, 1, 2, 3].map((w) => packet.ipv6SourceWord(view, AT, w))).toEqual([
      0xffff0001, 0, 0x00000002, 0x00030004,
    ]);
    expect([0, 1, 2, 3].map((w) => packet.ipv6DestinationWord(view, AT, w))).toEqual([0xfd000000, 0, 0, 0x80000001]);
  });
});

describe('ipv6Transport', () => {
  const walk = (extensions: ExtensionHeader[], nextHeader = 17, length?: number): number => {
    const data = ipv6({ extensions, nextHeader, payload: ramp(8) });
    return packet.ipv6Transport(placed(data), AT, length ?? data.length);
  };

  it.each([
    ['none', [], 40],
    ['hop-by-hop', [paddingHeader(0)], 48],
    ['hop-by-hop of 24 bytes', [paddingHeader(0, 3)], 64],
    [
      'all kinds',
      [
        paddingHeader(0),
        paddingHeader(60),
        paddingHeader(43, 2),
        authenticationHeader(3),
        paddingHeader(135),
        paddingHeader(139),
        paddingHeader(140),
      ],
      40 + 8 + 8 + 16 + 24 + 24,
    ],
    ['atomic fragment', [fragmentHeader(0, false)], 48],
    [
      'the most that is walked',
      Array.from({ length: packet.MAX_EXTENSION_HEADERS }, () => paddingHeader(60)),
      40 + 8 * packet.MAX_EXTENSION_HEADERS,
    ],
  ] as [string, ExtensionHeader[], number][])('finds the transport header behind: %s', (_, extensions, offset) => {
    const transport = walk(extensions);
    expect(packet.transportProtocol(transport)).toBe(17);
    expect(packet.transportOffset(transport)).toBe(offset);
    expect(packet.transportIsFragment(transport)).toBe(false);
    expect(packet.transportIsLaterFragment(transport)).toBe(false);
  });

  it('tells first from later fragments', () => {
    const first = walk([paddingHeader(0), fragmentHeader(0, true), paddingHeader(60)]);
    expect([
      packet.transportOffset(first),
      packet.transportIsFragment(first),
      packet.transportIsLaterFragment(first),
    ]).toEqual([64, true, false]);
    const later = walk([paddingHeader(0), fragmentHeader(1448, false)], 6);
    expect([
      packet.transportOffset(later),
      packet.transportIsFragment(later),
      packet.transportIsLaterFragment(later),
    ]).toEqual([56, true, true]);
    expect(packet.transportProtocol(later)).toBe(6);
  });

  it('stops at ESP and at "no next header"', () => {
    expect(packet.transportProtocol(walk([paddingHeader(60)], 50))).toBe(50);
    expect(packet.transportProtocol(walk([], 59))).toBe(59);
  });

  it('gives up on cut-off chains, on chains beyond the packet, and on too many headers', () => {
    const chain = [paddingHeader(0), paddingHeader(60, 2), authenticationHeader(1), fragmentHeader(0, true)];
    for (let length = 40; length < 40 + 8 + 16 + 16 + 8; length++) {
      expect(walk(chain, 17, length), `${length} bytes`).toBe(packet.TRANSPORT_UNKNOWN);
    }
    expect(walk(chain, 17, 88)).not.toBe(packet.TRANSPORT_UNKNOWN);
    const ends = ipv6({ extensions: [paddingHeader(0), paddingHeader(60)], payloadLength: 8 });
    expect(packet.ipv6Transport(placed(ends), AT, ends.length)).toBe(packet.TRANSPORT_UNKNOWN);
    const many = Array.from({ length: packet.MAX_EXTENSION_HEADERS + 1 }, () => paddingHeader(60));
    expect(walk(many)).toBe(packet.TRANSPORT_UNKNOWN);
  });

  it('is an integer that survives the longest chain', () => {
    const transport = walk(Array.from({ length: 8 }, () => paddingHeader(60, 256)));
    expect(packet.transportOffset(transport)).toBe(40 + 8 * 2048);
  });
});
