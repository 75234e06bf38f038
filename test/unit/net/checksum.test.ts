import { describe, expect, it } from 'vitest';
import { checksum, fold, pseudoHeaderSum4, pseudoHeaderSum6, sum, updateChecksum } from '../../../src/net/checksum.js';
import { hex } from '../../support/packets.js';

describe('known values', () => {
  it('sums the example of RFC 1071, section 3', () => {
    const data = hex('0001 f203 f4f5 f6f7');
    expect(sum(data, 0, 8)).toBe(0xddf2);
    expect(checksum(data, 0, 8)).toBe(0x220d);
  });

  it('checks the header that flannel sends (contract 4.2), before and after the TTL changed', () => {
    const header = hex('45000020123440004011f5930a010f020a011002');
    expect(checksum(header, 0, 20)).toBe(0);
    expect(updateChecksum(0xf593, 0x4011, 0x3f11)).toBe(0xf693);
  });

  it('counts an odd last byte as the high half of a word', () => {
    expect(sum(Uint8Array.of(0x12), 0, 1)).toBe(0x1200);
    expect(sum(Uint8Array.of(0xff, 1, 2, 3, 0xff), 1, 3)).toBe(0x0102 + 0x0300);
    expect(sum(new Uint8Array(0), 0, 0)).toBe(0);
    expect(checksum(new Uint8Array(0), 0, 0)).toBe(0xffff);
  });

  it('folds sums of any size', () => {
    expect(fold(0)).toBe(0);
    expect(fold(0xffff)).toBe(0xffff);
    expect(fold(0x10000)).toBe(1);
    expect(fold(0xffffffff)).toBe(0xffff);
    expect(fold(2 ** 52)).toBe(2 ** 4);
  });

  it('ends in the right zero where RFC 1141 does not (RFC 1624, section 4)', () => {
    expect(updateChecksum(0xdd2f, 0x5555, 0x3285)).toBe(0x0000);
  });

  // Captured on the loopback of Linux 6.18 with tcpdump: a UDP datagram and the port-unreachable about it. The UDP
  // checksum of the first is still partial there: the kernel left the pseudo-header sum in the field.
  const kernelIcmp4 = hex(`45c0003dd72800004001a4d57f0000017f000001 0303f17d00000000
    450000219cf2400040119fd77f0000017f000001 c9750009000dfe20 68656c6c6f`);
  const kernelIcmp6 = hex(`6003b22f003e3a40 00000000000000000000000000000001 00000000000000000000000000000001
    010467dc00000000 60034be5000e1140 00000000000000000000000000000001 00000000000000000000000000000001
    95410009000e0021 68656c6c6f21`);

  it('agrees with the kernel on IPv4 headers, ICMP with an odd length, and the UDP pseudo header', () => {
    expect(checksum(kernelIcmp4, 0, 20)).toBe(0);
    expect(checksum(kernelIcmp4, 20, kernelIcmp4.length - 20)).toBe(0);
    expect(pseudoHeaderSum4(0x7f000001, 0x7f000001, 17, 13)).toBe(0xfe20);
  });

  it('agrees with the kernel on ICMPv6 and on the UDP pseudo header over IPv6', () => {
    const length = kernelIcmp6.length - 40;
    expect(checksum(kernelIcmp6, 40, length, pseudoHeaderSum6(kernelIcmp6, 8, 58, length))).toBe(0);
    expect(pseudoHeaderSum6(kernelIcmp6, 48 + 8, 17, 14)).toBe(0x0021);
  });
});
