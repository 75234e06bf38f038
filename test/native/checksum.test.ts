import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { addon } from '../../src/io/native.js';
import { checksum, sum } from '../../src/net/checksum.js';

const variants = ['portable', 'avx2', 'neon'].filter((name) => addon().checksum(Uint8Array.of(1), name) >= 0);

describe('native checksum', () => {
  it('has a portable variant, and the processor’s own where there is one', () => {
    expect(variants).toContain('portable');
    expect(variants).toContain(addon().layout().checksumVariant);
    if (process.arch === 'arm64') expect(variants).toContain('neon');
  });

  it.each(variants)('%s equals the reference for any bytes at any alignment', (variant) => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 3000 }), fc.nat(64), fc.boolean(), (bytes, offset, high) => {
        const block = new Uint8Array(offset + bytes.length);
        block.set(bytes, offset);
        if (high) block.fill(0xff, offset + (bytes.length >> 1));
        expect(addon().checksum(block.subarray(offset), variant)).toBe(sum(block, offset, bytes.length));
      }),
      { numRuns: 300 },
    );
  });

  it.each(variants)('%s finds every single flipped bit', (variant) => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 2, maxLength: 400 }), fc.nat(), fc.nat(7), (bytes, where, bit) => {
        const at = where % bytes.length;
        const before = addon().checksum(bytes, variant);
        bytes[at]! ^= 1 << bit;
        expect(addon().checksum(bytes, variant)).not.toBe(before);
      }),
    );
  });

  it.each(variants)('%s agrees that a packet with its checksum sums to all ones', (variant) => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 4, maxLength: 1500 }), (bytes) => {
        bytes[2] = bytes[3] = 0;
        const check = checksum(bytes, 0, bytes.length);
        bytes[2] = check >> 8;
        bytes[3] = check & 0xff;
        expect(addon().checksum(bytes, variant)).toBe(0xffff);
      }),
    );
  });
});
