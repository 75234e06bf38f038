import { isIPv4, isIPv6 } from 'node:net';
import fc from 'fast-check';
import ipaddr from 'ipaddr.js';
import { describe, expect, it } from 'vitest';
import { Address, Prefix } from '../../../src/net/prefix.js';

const bytes4 = fc.uint8Array({ minLength: 4, maxLength: 4 });
/** IPv6 bytes with many zero groups, so that the rules about `::` are met. */
const bytes6 = fc
  .array(fc.oneof({ weight: 2, arbitrary: fc.constant(0) }, fc.integer({ min: 0, max: 0xffff })), {
    minLength: 8,
    maxLength: 8,
  })
  .map((words) => Uint8Array.from(words.flatMap((word) => [word >> 8, word & 255])));
const anyBytes = fc.oneof(bytes4, bytes6);

/** Slow obvious model: an address as a number. */
function valueOf(bytes: Uint8Array): bigint {
  return bytes.reduce((value, byte) => value * 256n + BigInt(byte), 0n);
}

function maskOf(length: number, bits: number): bigint {
  return ((1n << BigInt(length)) - 1n) << BigInt(bits - length);
}

describe('Address', () => {
  it('prints what two other implementations read back as the same bytes', () => {
    fc.assert(
      fc.property(anyBytes, (bytes) => {
        const text = Address.fromBytes(bytes).toString();
        expect([...Address.parse(text).bytes]).toEqual([...bytes]);
        expect(ipaddr.parse(text).toByteArray()).toEqual([...bytes]);
        expect(bytes.length === 4 ? isIPv4(text) : isIPv6(text)).toBe(true);
        expect(text).toBe(text.toLowerCase());
      }),
    );
  });

  it('prints IPv6 as the URL standard does (RFC 5952 without its dotted tails)', () => {
    fc.assert(
      fc.property(bytes6, (bytes) => {
        const text = Address.fromBytes(bytes).toString();
        fc.pre(!text.includes('.'));
        expect(
          new URL(
            `http://[${[...bytes]
              .map((b) => b.toString(16).padStart(2, '0'))
              .join('')
              .match(/..../g)!
              .join(':')}]/`,
          ).hostname,
        ).toBe(`[${text}]`);
      }),
    );
  });

  it('accepts exactly what the kernel-side parser accepts, zone ids excepted', () => {
    const character = fc.constantFrom(...'0123456789abcfF::::....%g/ -x'.split(''));
    const noise = fc.string({ unit: character, maxLength: 24 });
    const nearly = fc.tuple(anyBytes, fc.nat(40), fc.nat(2), character).map(([bytes, at, remove, insert]) => {
      const text = Address.fromBytes(bytes).toString();
      return text.slice(0, at) + insert + text.slice(at + remove);
    });
    fc.assert(
      fc.property(fc.oneof(noise, nearly), (text) => {
        const valid = !text.includes('%') && (isIPv4(text) || isIPv6(text));
        expect(Address.tryParse(text) !== undefined, JSON.stringify(text)).toBe(valid);
      }),
      { numRuns: 2000 },
    );
  });

  it('orders, compares and adds like the number it is', () => {
    fc.assert(
      fc.property(anyBytes, anyBytes, fc.bigInt({ min: -(2n ** 40n), max: 2n ** 40n }), (left, right, delta) => {
        const a = Address.fromBytes(left);
        const b = Address.fromBytes(right);
        const difference =
          left.length === right.length ? valueOf(left) - valueOf(right) : BigInt(left.length - right.length);
        expect(Math.sign(a.compare(b))).toBe(difference < 0n ? -1 : difference > 0n ? 1 : 0);
        expect(a.equals(b)).toBe(difference === 0n);
        const moved = valueOf(left) + delta;
        if (moved < 0n || moved >= 1n << BigInt(left.length * 8)) expect(() => a.offset(delta)).toThrow(/plus/);
        else expect(valueOf(a.offset(delta).bytes)).toBe(moved);
      }),
    );
  });
});

describe('Prefix', () => {
  const prefix = anyBytes.chain((bytes) =>
    fc.nat(bytes.length * 8).map((length) => ({ bytes, length, prefix: Prefix.of(Address.fromBytes(bytes), length) })),
  );
  /** A prefix and an address that differ in one random bit, so that borders are met. */
  const pair = prefix.chain((p) =>
    fc.option(fc.nat(p.bytes.length * 8 - 1), { nil: -1 }).map((bit) => {
      const bytes = Uint8Array.from(p.bytes);
      if (bit >= 0) bytes[bit >> 3] = bytes[bit >> 3]! ^ (0x80 >> (bit & 7));
      return { ...p, other: bytes };
    }),
  );

  it('masks, ends and contains like a number', () => {
    fc.assert(
      fc.property(pair, ({ bytes, length, prefix: p, other }) => {
        const bits = bytes.length * 8;
        const mask = maskOf(length, bits);
        const host = (1n << BigInt(bits - length)) - 1n;
        expect(valueOf(p.address.bytes)).toBe(valueOf(bytes) & mask);
        expect(valueOf(p.last.bytes)).toBe((valueOf(bytes) & mask) + host);
        expect(p.contains(Address.fromBytes(other))).toBe((valueOf(other) & mask) === (valueOf(bytes) & mask));
        expect(Prefix.parse(p.toString()).equals(p)).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });

  it('overlaps exactly when the ranges meet, and contains exactly when one range is inside', () => {
    fc.assert(
      fc.property(pair, fc.nat(128), ({ bytes, prefix: p, other }, otherLength) => {
        const q = Prefix.of(Address.fromBytes(other), otherLength % (bytes.length * 8 + 1));
        const [p0, p1, q0, q1] = [p.address, p.last, q.address, q.last].map((a) => valueOf(a.bytes)) as [
          bigint,
          bigint,
          bigint,
          bigint,
        ];
        expect(p.overlaps(q)).toBe(p0 <= q1 && q0 <= p1);
        expect(q.overlaps(p)).toBe(p.overlaps(q));
        expect(p.contains(q)).toBe(p0 <= q0 && q1 <= p1);
      }),
      { numRuns: 1000 },
    );
  });
});
