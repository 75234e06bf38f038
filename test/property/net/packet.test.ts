import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  checksum,
  fold,
  pseudoHeaderSum4,
  pseudoHeaderSum6,
  sum,
  updateChecksum,
  updateChecksum32,
} from '../../../src/net/checksum.js';
import * as icmp from '../../../src/net/icmp.js';
import * as packet from '../../../src/net/packet.js';
import {
  addressBytes,
  bytes,
  fragmentHeader,
  ipv4,
  ipv6,
  onesComplementChecksum,
  paddingHeader,
  transportChecksum,
  viewOf,
} from '../../support/packets.js';

/** A DataView that records how far it is read; reading outside [from, to) throws. */
class GuardedView extends DataView<ArrayBuffer> {
  readonly #from: number;
  readonly #to: number;

  constructor(buffer: ArrayBuffer, from: number, to: number) {
    super(buffer);
    this.#from = from;
    this.#to = to;
  }

  #check(at: number, size: number): void {
    if (at < this.#from || at + size > this.#to)
      throw new Error(`read of ${size} bytes at ${at} outside ${this.#from}–${this.#to}`);
  }

  override getUint8(at: number): number {
    this.#check(at, 1);
    return super.getUint8(at);
  }

  override getUint16(at: number): number {
    this.#check(at, 2);
    return super.getUint16(at);
  }

  override getUint32(at: number): number {
    this.#check(at, 4);
    return super.getUint32(at);
  }
}

const payload = fc.uint8Array({ maxLength: 80 });
const goodV4 = fc
  .record({
    payload,
    protocol: fc.constantFrom(1, 6, 17, 50),
    options: fc.array(fc.nat(255), { maxLength: 40 }),
    moreFragments: fc.boolean(),
    fragmentOffset: fc.constantFrom(0, 0, 8, 1480),
  })
  .map((fields) => ipv4(fields));
const goodV6 = fc
  .record({
    payload,
    nextHeader: fc.constantFrom(58, 6, 17, 50, 59),
    extensions: fc.array(
      fc.oneof(
        fc
          .tuple(fc.constantFrom(0, 43, 60, 135), fc.integer({ min: 1, max: 3 }))
          .map(([type, units]) => paddingHeader(type, units)),
        fc.tuple(fc.constantFrom(0, 8), fc.boolean()).map(([offset, more]) => fragmentHeader(offset, more)),
      ),
      { maxLength: 10 },
    ),
  })
  .map((fields) => ipv6(fields));

/** Good packets, good packets with some bytes changed or cut, and noise that starts like a packet. */
const anything = fc.oneof(goodV4, goodV6, fc.uint8Array({ maxLength: 120 })).chain((data) =>
  fc.tuple(fc.array(fc.tuple(fc.nat(80), fc.nat(255)), { maxLength: 4 }), fc.nat(data.length)).map(([changes, cut]) => {
    const mutated = Uint8Array.from(data);
    for (const [at, value] of changes) if (at < mutated.length) mutated[at] = value;
    return mutated.subarray(0, changes.length % 2 === 0 ? mutated.length : cut);
  }),
);

describe('random and mutated bytes', () => {
  it('are never read outside the received bytes, and errors about them never exceed their limits', () => {
    let valid = 0;
    fc.assert(
      fc.property(anything, fc.nat(40), (data, offset) => {
        const whole = bytes(new Uint8Array(offset), data, new Uint8Array(40).fill(0xff));
        const view = new GuardedView(whole.buffer, offset, offset + data.length);
        const out = new Uint8Array(8 + icmp.ICMP6_MAX_BYTES + 8).fill(0xee);
        let written = 0;
        if (packet.validateIpv4(view, offset, data.length) === packet.PACKET_OK) {
          valid++;
          packet.ipv4Transport(view, offset);
          if (!icmp.mayAnswer4(view, offset, data.length)) return;
          written = icmp.writeFragmentationNeeded4(out, 8, 0x0a000001, 1400, view, offset, data.length);
          expect(written).toBeLessThanOrEqual(icmp.ICMP4_MAX_BYTES);
        } else if (packet.validateIpv6(view, offset, data.length) === packet.PACKET_OK) {
          valid++;
          packet.ipv6Transport(view, offset, data.length);
          if (!icmp.mayAnswer6(view, offset, data.length)) return;
          written = icmp.writePacketTooBig6(out, 8, new Uint8Array(16), 0, 1400, view, offset, data.length);
          expect(written).toBeLessThanOrEqual(icmp.ICMP6_MAX_BYTES);
        }
        expect([...out.subarray(0, 8), ...out.subarray(8 + written)].every((byte) => byte === 0xee)).toBe(true);
      }),
      { numRuns: 5000 },
    );
    expect(valid).toBeGreaterThan(1000);
  });
});

describe('checksums', () => {
  it('equal the model, in one piece and in chained even pieces', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(300), (data, cut) => {
        const at = Math.min(cut, data.length) & ~1;
        expect(checksum(data, 0, data.length)).toBe(onesComplementChecksum(data));
        expect(checksum(data, at, data.length - at, sum(data, 0, at))).toBe(onesComplementChecksum(data));
      }),
    );
  });

  it('are right after an incremental update, for every header that is not all zero', () => {
    const word = fc.integer({ min: 0, max: 0xffff });
    fc.assert(
      fc.property(fc.array(word, { minLength: 2, maxLength: 12 }), fc.nat(), word, word, (words, seed, high, low) => {
        // A constant word 0x4500 keeps the data from being all zero, where the two zeros cannot be told apart.
        const toBytes = (list: number[]): Uint8Array =>
          Uint8Array.from([0x4500, ...list].flatMap((w) => [w >> 8, w & 255]));
        const at = seed % (words.length - 1);
        const before = checksum(toBytes(words), 0, 2 + words.length * 2);
        const changed = words.with(at, high);
        expect(updateChecksum(before, words[at]!, high)).toBe(checksum(toBytes(changed), 0, 2 + words.length * 2));
        const both = changed.with(at + 1, low);
        const old32 = ((words[at]! << 16) | words[at + 1]!) >>> 0;
        const new32 = ((high << 16) | low) >>> 0;
        expect(updateChecksum32(before, old32, new32)).toBe(checksum(toBytes(both), 0, 2 + words.length * 2));
      }),
    );
  });

  it('cover the pseudo header of both families', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 100 }), fc.constantFrom(6, 17, 58), (segment, protocol) => {
        const v4 = pseudoHeaderSum4(0xc0a80a01, 0x0a0000fe, protocol, segment.length);
        expect(checksum(segment, 0, segment.length, v4)).toBe(
          transportChecksum('192.168.10.1', '10.0.0.254', protocol, [...segment]),
        );
        const addresses = bytes(7, addressBytes('fd00:1::abcd'), addressBytes('2001:db8::1'));
        const v6 = pseudoHeaderSum6(addresses, 1, protocol, segment.length);
        expect(checksum(segment, 0, segment.length, v6)).toBe(
          transportChecksum('fd00:1::abcd', '2001:db8::1', protocol, [...segment]),
        );
        expect(fold(v4)).toBe(v4);
      }),
    );
    const long = pseudoHeaderSum6(new Uint8Array(32), 0, 6, 0x12345);
    expect(long).toBe(1 + 0x2345 + 6);
  });
});

describe('field readers', () => {
  it('find a transport header exactly where the builder put it', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.constantFrom(0, 43, 60, 135, 139, 140), fc.integer({ min: 1, max: 5 })), {
          maxLength: packet.MAX_EXTENSION_HEADERS,
        }),
        fc.constantFrom(6, 17, 58),
        (shape, nextHeader) => {
          const data = ipv6({
            extensions: shape.map(([type, units]) => paddingHeader(type, units)),
            nextHeader,
            payload: [1, 2, 3],
          });
          const transport = packet.ipv6Transport(viewOf(data), 0, data.length);
          expect(packet.transportProtocol(transport)).toBe(nextHeader);
          expect(packet.transportOffset(transport)).toBe(data.length - 3);
        },
      ),
    );
  });
});
