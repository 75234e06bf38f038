/** Whatever is in a store, reading it gives a value that makes sense or a PodwireError, nothing else. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { jsonFields } from '../../../src/control/json.js';
import { decodeLease, encodeLease } from '../../../src/control/lease-codec.js';
import { leaseKey, tryParseLeaseKey } from '../../../src/control/lease-key.js';
import type { LeaseAttributes } from '../../../src/control/lease.js';
import { ipv4Pool, ipv6Pool, parseNetworkConfig, type SubnetPool } from '../../../src/control/network-config.js';
import { toBigInt } from '../../../src/control/ranges.js';
import { PodwireError } from '../../../src/errors.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

/** The result, or undefined for a PodwireError with one line; anything else fails the property. */
function attempt<T>(run: () => T): T | undefined {
  try {
    return run();
  } catch (error) {
    if (!(error instanceof PodwireError)) throw error;
    expect(error.message).not.toContain('\n');
    expect(error.message.length).toBeLessThan(400);
    return undefined;
  }
}

const address4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((bytes) => Address.fromBytes(bytes));
const address6 = fc.uint8Array({ minLength: 16, maxLength: 16 }).map((bytes) => Address.fromBytes(bytes));
const prefix4 = fc
  .tuple(address4, fc.integer({ min: 1, max: 31 }))
  .map(([address, length]) => Prefix.of(address, length));
const prefix6 = fc
  .tuple(address6, fc.integer({ min: 1, max: 127 }))
  .map(([address, length]) => Prefix.of(address, length));

const spelling = (name: string): fc.Arbitrary<string> =>
  fc.constantFrom(name, name.toLowerCase(), name.toUpperCase(), name.slice(0, 3).toLowerCase() + name.slice(3));
const configField = fc.oneof(
  fc.tuple(
    fc.constantFrom('EnableIPv4', 'EnableIPv6', 'EnableNFTables').chain(spelling),
    fc.oneof(fc.boolean(), fc.constant(null), fc.jsonValue({ maxDepth: 1 })),
  ),
  fc.tuple(spelling('Network'), fc.oneof(prefix4.map(String), prefix6.map(String), fc.jsonValue({ maxDepth: 1 }))),
  fc.tuple(spelling('IPv6Network'), fc.oneof(prefix6.map(String), fc.jsonValue({ maxDepth: 1 }))),
  fc.tuple(
    fc.constantFrom('SubnetLen', 'IPv6SubnetLen').chain(spelling),
    fc.oneof(fc.integer({ min: 0, max: 130 }), fc.double()),
  ),
  fc.tuple(fc.constantFrom('SubnetMin', 'SubnetMax').chain(spelling), address4.map(String)),
  fc.tuple(fc.constantFrom('IPv6SubnetMin', 'IPv6SubnetMax').chain(spelling), address6.map(String)),
  fc.tuple(spelling('Backend'), fc.oneof(fc.constant({ Type: 'udp' }), fc.jsonValue({ maxDepth: 2 }))),
  fc.tuple(fc.string(), fc.jsonValue({ maxDepth: 2 })),
);
const configText = fc
  .array(configField, { maxLength: 12 })
  .map((fields) => `{${fields.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`).join(',')}}`);

/** flannel's rules for derived values, said once more and slowly. */
function expectSane(pool: SubnetPool | undefined, bits: number): void {
  if (!pool) return;
  expect(pool.subnetLen).toBeGreaterThanOrEqual(pool.network.length + 2);
  expect(pool.subnetLen).toBeLessThanOrEqual(bits - 2);
  const size = 2n ** BigInt(bits - pool.subnetLen);
  for (const end of [pool.min, pool.max]) {
    expect(pool.network.contains(end)).toBe(true);
    expect(toBigInt(end) % size).toBe(0n);
  }
}

describe('network config', () => {
  it('of any text is sane or refused', () => {
    const almost = fc
      .tuple(configText, fc.nat(), fc.string({ maxLength: 3 }))
      .map(([text, at, junk]) => text.slice(0, at % (text.length + 1)) + junk + text.slice(at % (text.length + 1)));
    fc.assert(
      fc.property(fc.oneof(configText, almost, fc.string(), fc.json()), (text) => {
        const config = attempt(() => parseNetworkConfig(text));
        if (!config) return;
        expect(config.network !== undefined).toBe(config.enableIPv4);
        expect(config.ipv6Network !== undefined).toBe(config.enableIPv6);
        expectSane(ipv4Pool(config), 32);
        expectSane(ipv6Pool(config), 128);
      }),
      { numRuns: 2000 },
    );
  });

  it('of every IPv4 network that is large enough is accepted', () => {
    fc.assert(
      fc.property(address4, fc.integer({ min: 1, max: 28 }), (address, length) => {
        const network = Prefix.of(address, length).toString();
        const pool = ipv4Pool(parseNetworkConfig(JSON.stringify({ Network: network })))!;
        expectSane(pool, 32);
        expect(pool.subnetLen).toBe(length <= 22 ? 24 : length + 2);
        expect(toBigInt(pool.min)).toBe(toBigInt(pool.network.address) + 2n ** BigInt(32 - pool.subnetLen));
        expect(toBigInt(pool.max) + 2n ** BigInt(32 - pool.subnetLen) - 1n).toBe(toBigInt(pool.network.last));
      }),
    );
  });
});

describe('lease key', () => {
  it('goes both ways for every subnet', () => {
    fc.assert(
      fc.property(prefix4, fc.option(prefix6), (subnet, subnet6) => {
        const key = leaseKey({ subnet, ...(subnet6 && { subnet6 }) });
        const parsed = tryParseLeaseKey(key);
        expect(parsed?.subnet.equals(subnet)).toBe(true);
        expect(parsed?.subnet6?.toString()).toBe(subnet6?.toString());
        expect(leaseKey(parsed!)).toBe(key);
      }),
    );
  });

  it('of any text is none, or means one subnet whose own key means the same', () => {
    const part = fc.constantFrom('10.1.2.0', '10.1.2.3', '-', '24', '&', 'fd00::', '0', ':', '.', 'F', '\n', '1');
    fc.assert(
      fc.property(
        fc.oneof(
          fc.string(),
          fc.array(part, { maxLength: 8 }).map((parts) => parts.join('')),
        ),
        (text) => {
          const parsed = tryParseLeaseKey(text);
          if (!parsed) return;
          expect(tryParseLeaseKey(leaseKey(parsed))).toEqual(parsed);
          expect(text).not.toMatch(/[^0-9a-f:.&-]/);
        },
      ),
      { numRuns: 2000 },
    );
  });
});

const attributes: fc.Arbitrary<LeaseAttributes> = fc
  .record(
    {
      publicIp: address4,
      publicIpv6: address6,
      backendType: fc.string(),
      backendData: fc.jsonValue({ maxDepth: 3 }).filter((value) => value !== null),
      backendV6Data: fc.jsonValue({ maxDepth: 3 }).filter((value) => value !== null),
    },
    { requiredKeys: ['publicIp', 'backendType'] },
  )
  .map((record) => record as LeaseAttributes);
const extra = fc.record(
  {
    expiresAt: fc.date({ min: new Date(0), max: new Date('9999-01-01'), noInvalidDate: true }),
    owner: fc.string({ minLength: 1, maxLength: 40 }),
  },
  { requiredKeys: [] },
);

describe('lease value', () => {
  it('goes both ways', () => {
    fc.assert(
      fc.property(attributes, extra, (given, more) => {
        const text = encodeLease(given, more);
        const read = decodeLease(text);
        expect(encodeLease(read.attributes, read)).toBe(text);
        expect(read.expiresAt?.getTime()).toBe(more.expiresAt?.getTime());
        expect(read.owner).toBe(more.owner);
        expect(text).not.toMatch(/[<>\u2028\u2029]/);
      }),
    );
  });

  it('cut anywhere is no value: a half-written file never passes for another lease', () => {
    fc.assert(
      fc.property(attributes, extra, fc.nat(), (given, more, at) => {
        const text = encodeLease(given, more);
        const cut = text.slice(0, at % text.length);
        expect(attempt(() => decodeLease(cut))).toBeUndefined();
      }),
      { numRuns: 500 },
    );
  });

  it('of any text is a lease or refused', () => {
    const field = fc.oneof(
      fc.tuple(
        fc.constantFrom('PublicIP', 'publicipv6', 'BackendType', 'BackendData', 'Expiration', 'OWNER'),
        fc.jsonValue(),
      ),
      fc.tuple(fc.string(), fc.jsonValue()),
    );
    const object = fc
      .array(field, { maxLength: 6 })
      .map(
        (fields) =>
          `{${fields.map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(' ,')}}`,
      );
    fc.assert(
      fc.property(fc.oneof(object, fc.string(), fc.json()), (text) => {
        const read = attempt(() => decodeLease(text));
        if (read) expect(attempt(() => decodeLease(encodeLease(read.attributes, read)))).toBeDefined();
      }),
      { numRuns: 1000 },
    );
  });
});

describe('JSON fields', () => {
  it('are those of JSON.parse, in order, with their text', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string(), fc.jsonValue()), fc.constantFrom('', ' ', '\n\t '), (record, space) => {
        const text = `${space}${JSON.stringify(record, null, space)}${space}`;
        const expected = JSON.parse(text) as Record<string, unknown>;
        const fields = jsonFields(text);
        expect(fields.map(({ key }) => key).sort()).toEqual(Object.keys(expected).sort());
        for (const { key, value, raw } of fields) {
          expect(value).toEqual(Object.getOwnPropertyDescriptor(expected, key)?.value);
          expect(JSON.parse(raw)).toEqual(value);
        }
      }),
    );
  });
});
