import { describe, expect, expectTypeOf, it } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import {
  innerMtu,
  isPlausibleMtu,
  outerSize,
  overheadOf,
  overlayMtu,
  underlayMtu,
  type InnerMtu,
  type OverlayMtuInput,
  type UnderlayMtu,
} from '../../../src/net/mtu.js';

describe('overhead', () => {
  it.each([
    ['udp', 4, 28],
    ['udp', 6, 48],
    ['vxlan', 4, 50],
    ['vxlan', 6, 70],
  ] as const)('of %s over IPv%i is %i', (tunnel, family, bytes) => {
    expect(overheadOf(tunnel, family)).toBe(bytes);
    expect(outerSize(innerMtu(underlayMtu(1500, family), bytes), bytes)).toBe(1500);
  });
});

describe('kinds of MTU', () => {
  it('cannot be mixed up at compile time', () => {
    expectTypeOf<UnderlayMtu>().not.toExtend<InnerMtu>();
    expectTypeOf<InnerMtu>().not.toExtend<UnderlayMtu>();
    expectTypeOf<number>().not.toExtend<UnderlayMtu>();
    // @ts-expect-error an inner MTU has the overhead taken off already
    innerMtu(innerMtu(underlayMtu(1500, 4), 28), 28);
  });

  it.each([
    [575, 4, false],
    [576, 4, true],
    [1279, 6, false],
    [1280, 6, true],
    [65_535, 4, true],
    [65_536, 4, false],
    [1400.5, 4, false],
    [NaN, 4, false],
    [Infinity, 6, false],
    [0, 4, false],
    [-1500, 4, false],
    [183, 4, false],
    [8, 4, false],
  ] as const)('%d over IPv%i is plausible: %s', (bytes, family, plausible) => {
    expect(isPlausibleMtu(bytes, family)).toBe(plausible);
    if (plausible) expect(underlayMtu(bytes, family)).toBe(bytes);
    else expect(() => underlayMtu(bytes, family, 'option underlayMtu')).toThrow(PodwireError);
  });

  it('names the value that is absurd and the range', () => {
    expect(() => underlayMtu(183, 4, 'option underlayMtu')).toThrow(
      'option underlayMtu is 183: give a whole number of bytes from 576 to 65535 (IPv4 underlay)',
    );
  });
});

describe('overlayMtu', () => {
  it.each([
    [
      { tunnel: 'udp', outerFamily: 4 },
      1472,
      'overlay MTU 1472 = underlay 1500 (default) - udp overhead 28 (outer IPv4 20 + UDP 8)',
    ],
    [
      { tunnel: 'udp', outerFamily: 6, underlay: 9000, underlayFrom: 'eth0' },
      8952,
      'overlay MTU 8952 = underlay 9000 (eth0) - udp overhead 48 (outer IPv6 40 + UDP 8)',
    ],
    [
      { tunnel: 'vxlan', outerFamily: 4, underlay: 1450 },
      1400,
      'overlay MTU 1400 = underlay 1450 (given) - vxlan overhead 50 (outer IPv4 20 + UDP 8 + VXLAN 8 + inner Ethernet 14)',
    ],
    [
      { tunnel: 'udp', outerFamily: 4, underlay: 576 },
      548,
      'overlay MTU 548 = underlay 576 (given) - udp overhead 28 (outer IPv4 20 + UDP 8)',
    ],
    [
      { tunnel: 'udp', outerFamily: 4, underlay: 1308, innerIpv6: true },
      1280,
      'overlay MTU 1280 = underlay 1308 (given) - udp overhead 28 (outer IPv4 20 + UDP 8)',
    ],
  ] as [OverlayMtuInput, number, string][])('%o', (input, overlay, explanation) => {
    const mtu = overlayMtu(input);
    expect(mtu).toMatchObject({ overlay, underlay: input.underlay ?? 1500, explicit: false });
    expect(mtu.underlay - mtu.overhead).toBe(mtu.overlay);
    expect(mtu.explain()).toBe(explanation);
  });

  it('lets an explicit value win as it is, below and above the arithmetic, and says so', () => {
    const low = overlayMtu({ tunnel: 'udp', outerFamily: 4, override: 1300 });
    expect(low).toMatchObject({ overlay: 1300, underlay: 1500, overhead: 28, explicit: true });
    expect(low.explain()).toBe(
      'overlay MTU 1300 as set; computed would be 1472 = underlay 1500 (default) - udp overhead 28 (outer IPv4 20 + UDP 8)',
    );
    const high = overlayMtu({ tunnel: 'udp', outerFamily: 4, override: 1500 });
    expect(high.overlay).toBe(1500);
    expect(high.explain()).toContain('larger packets than that are refused');
  });

  it.each([
    [{ override: 547 }, 'overlay MTU is set to 547: give a whole number of bytes from 548 to 65507'],
    [{ override: 65_508 }, 'from 548 to 65507'],
    [{ override: 1400.5 }, 'overlay MTU is set to 1400.5'],
    [{ override: 1279, innerIpv6: true }, 'from 1280 to 65507'],
    [{ underlay: 183, underlayFrom: 'eth0' }, 'underlay MTU (eth0) is 183: give a whole number of bytes from 576'],
    [
      { underlay: 1307, innerIpv6: true },
      'is below 1280, the least that IPv6 pods need: raise the underlay MTU to at least 1308',
    ],
  ])('refuses %o', (input, message) => {
    expect(() => overlayMtu({ tunnel: 'udp', outerFamily: 4, ...input })).toThrow(message);
  });
});
