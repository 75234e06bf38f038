import { describe, expect, it } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import { Address, MacAddress, Prefix } from '../../../src/net/prefix.js';

function refusal(action: () => unknown): PodwireError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(PodwireError);
    return error as PodwireError;
  }
  throw new Error('nothing was thrown');
}

describe('Address text', () => {
  // RFC 5952: sections 2 (variations), 4.1–4.3 (rules), 5 (dotted quad), 1 (examples).
  it.each([
    ['2001:0db8:0:0:0:0:0:0001', '2001:db8::1'],
    ['2001:db8:0:0:0:0:2:1', '2001:db8::2:1'],
    ['2001:db8::0:1', '2001:db8::1'],
    ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['2001:db8::1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['2001:0:0:1:0:0:0:1', '2001:0:0:1::1'],
    ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['2001:DB8::AbCd', '2001:db8::abcd'],
    ['0:0:0:0:0:0:0:0', '::'],
    ['0:0:0:0:0:0:0:1', '::1'],
    ['1:0:0:0:0:0:0:0', '1::'],
    ['::ffff:192.0.2.1', '::ffff:192.0.2.1'],
    ['::ffff:c000:201', '::ffff:192.0.2.1'],
    ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
    ['10.1.2.3', '10.1.2.3'],
    ['0.0.0.0', '0.0.0.0'],
    ['255.255.255.255', '255.255.255.255'],
  ])('%s is printed as %s', (text, canonical) => {
    expect(Address.parse(text).toString()).toBe(canonical);
    expect(Address.parse(canonical).equals(Address.parse(text))).toBe(true);
    expect(JSON.stringify({ a: Address.parse(text) })).toBe(`{"a":"${canonical}"}`);
  });

  it.each([
    '',
    ' ',
    '1',
    '1.2.3',
    '1.2.3.4.5',
    '1.2.3.',
    '.1.2.3',
    '1..2.3',
    '256.1.1.1',
    '1.2.3.04',
    '010.1.2.3',
    '0x7f.1.1.1',
    '1.2.3.4 ',
    ' 1.2.3.4',
    '1.2.3.4/32',
    '1.2.3.4:80',
    '-1.2.3.4',
    '1.2.3.4\n',
    '2130706433',
    '١.1.1.1',
    ':',
    ':::',
    '1::2::3',
    '1:2:3:4:5:6:7',
    '1:2:3:4:5:6:7:8:9',
    '1::2:3:4:5:6:7:8',
    ':1::2',
    '1::2:',
    '12345::',
    '::00001',
    '::g',
    'fe80::1%eth0',
    '[::1]',
    '::1/128',
    '::1.2.3',
    '::1.2.3.04',
    '::ffff:1.2.3.256',
    '1.2.3.4::',
    '::1.2.3.4:5',
    '::1 ',
    '0000:0000:0000:0000:0000:0000:0000:0000:0000:0000',
  ])('refuses %j', (text) => {
    expect(Address.tryParse(text)).toBeUndefined();
    const error = refusal(() => Address.parse(text));
    expect(error.code).toBe('INVALID_ADDRESS');
    expect(error.message).not.toContain('\n');
  });

  it('says what was given and what to write instead, however long it was', () => {
    expect(refusal(() => Address.parse('10.1.2')).message).toBe(
      '"10.1.2" is not an IP address: write it like 10.1.2.3 or fd00::1, without port, prefix length or zone',
    );
    expect(refusal(() => Address.parse('x'.repeat(10_000))).message.length).toBeLessThan(200);
    expect(refusal(() => Address.parse(undefined as unknown as string)).code).toBe('INVALID_ADDRESS');
  });
});

describe('Address values', () => {
  it('copies bytes in and refuses wrong lengths', () => {
    const raw = Uint8Array.of(10, 0, 0, 1);
    const address = Address.fromBytes(raw);
    raw[0] = 99;
    expect(address.toString()).toBe('10.0.0.1');
    expect(refusal(() => Address.fromBytes(new Uint8Array(5))).code).toBe('INVALID_ADDRESS');
  });

  it('converts to and from words', () => {
    expect(Address.parse('255.2.3.4').toUint32()).toBe(0xff020304);
    expect(Address.fromUint32(0xff020304).toString()).toBe('255.2.3.4');
    const v6 = Address.parse('ffff:1::89ab:cdef');
    expect([0, 1, 2, 3].map((i) => v6.word(i))).toEqual([0xffff0001, 0, 0, 0x89abcdef]);
    for (const bad of [-1, 2 ** 32, 1.5, NaN])
      expect(refusal(() => Address.fromUint32(bad)).code).toBe('INVALID_ADDRESS');
    expect(refusal(() => v6.toUint32()).message).toContain('ffff:1::89ab:cdef is an IPv6 address');
    expect(refusal(() => v6.word(4)).code).toBe('INVALID_ARGUMENT');
    expect(refusal(() => Address.parse('1.2.3.4').word(1)).code).toBe('INVALID_ARGUMENT');
  });

  it('takes an Address or text', () => {
    const address = Address.parse('10.0.0.1');
    expect(Address.from(address)).toBe(address);
    expect(Address.from('10.0.0.1').equals(address)).toBe(true);
  });

  it('moves by an offset within its family', () => {
    expect(Address.parse('10.0.0.255').offset(1n).toString()).toBe('10.0.1.0');
    expect(Address.parse('10.0.1.0').offset(-1n).toString()).toBe('10.0.0.255');
    expect(Address.parse('::ffff:ffff').offset(1n).toString()).toBe('::1:0:0');
    expect(
      Address.parse('::')
        .offset((1n << 128n) - 1n)
        .equals(Address.parse('ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff')),
    ).toBe(true);
    expect(refusal(() => Address.parse('255.255.255.255').offset(1n)).code).toBe('INVALID_ARGUMENT');
    expect(refusal(() => Address.parse('::').offset(-1n)).code).toBe('INVALID_ARGUMENT');
  });

  const classes = ['isUnspecified', 'isLoopback', 'isMulticast', 'isLinkLocal', 'isBroadcast'] as const;
  it.each([
    ['0.0.0.0', 'isUnspecified'],
    ['::', 'isUnspecified'],
    ['0.0.0.1', ''],
    ['127.0.0.1', 'isLoopback'],
    ['127.255.255.255', 'isLoopback'],
    ['128.0.0.1', ''],
    ['::1', 'isLoopback'],
    ['::2', ''],
    ['1::1', ''],
    ['223.255.255.255', ''],
    ['224.0.0.1', 'isMulticast'],
    ['239.255.255.255', 'isMulticast'],
    ['240.0.0.1', ''],
    ['ff02::1', 'isMulticast'],
    ['fe80::1', 'isLinkLocal'],
    ['febf::1', 'isLinkLocal'],
    ['fec0::1', ''],
    ['169.254.1.1', 'isLinkLocal'],
    ['169.255.1.1', ''],
    ['255.255.255.255', 'isBroadcast'],
    ['255.255.255.254', ''],
    ['ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff', 'isMulticast'],
    ['10.0.0.255', ''],
    ['fd00::1', ''],
    ['::ffff:127.0.0.1', 'isLoopback'],
    ['::ffff:0.0.0.0', 'isUnspecified'],
    ['::ffff:224.0.0.1', 'isMulticast'],
    ['::ffff:10.0.0.1', ''],
  ])('%s is %s', (text, only) => {
    const address = Address.parse(text);
    expect(classes.filter((name) => address[name])).toEqual(only === '' ? [] : [only]);
  });
});

describe('Prefix', () => {
  it.each([
    ['10.1.2.3/24', '10.1.2.0/24', '10.1.2.255'],
    ['10.1.2.3/32', '10.1.2.3/32', '10.1.2.3'],
    ['10.1.2.3/0', '0.0.0.0/0', '255.255.255.255'],
    ['10.255.255.255/9', '10.128.0.0/9', '10.255.255.255'],
    ['2001:DB8:ffff::1/33', '2001:db8:8000::/33', '2001:db8:ffff:ffff:ffff:ffff:ffff:ffff'],
    ['::/0', '::/0', 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'],
    ['fd00::1/128', 'fd00::1/128', 'fd00::1'],
  ])('%s is %s, up to %s', (text, canonical, last) => {
    const prefix = Prefix.parse(text);
    expect(prefix.toString()).toBe(canonical);
    expect(prefix.last.toString()).toBe(last);
    expect(Prefix.from(canonical).equals(prefix)).toBe(true);
    expect(JSON.stringify([prefix])).toBe(`["${canonical}"]`);
  });

  it.each([
    '10.1.2.3',
    '10.1.2.0/',
    '/24',
    '10.1.2.0/33',
    '::/129',
    '10.1.2.0/-1',
    '10.1.2.0/+8',
    '10.1.2.0/08',
    '10.1.2.0/ 8',
    '10.1.2.0/8.',
    '10.1.2.0/255.255.255.0',
    '10.1.2.0/24/24',
    '10.1.2/24',
    '10.1.2.0/1e1',
    'fe80::%eth0/64',
    '',
  ])('refuses %j', (text) => {
    expect(Prefix.tryParse(text)).toBeUndefined();
    expect(refusal(() => Prefix.parse(text)).code).toBe('INVALID_ADDRESS');
  });

  it('refuses impossible lengths by name', () => {
    const error = refusal(() => Prefix.of(Address.parse('10.0.0.0'), 33));
    expect(error.message).toBe('prefix length 33 for 10.0.0.0 must be from 0 to 32');
    expect(refusal(() => Prefix.of(Address.parse('::'), 1.5)).code).toBe('INVALID_ARGUMENT');
  });

  it('keeps families apart', () => {
    expect(Prefix.parse('0.0.0.0/0').contains(Address.parse('::1'))).toBe(false);
    expect(Prefix.parse('::/0').contains(Address.parse('1.2.3.4'))).toBe(false);
    expect(Prefix.parse('::/0').overlaps(Prefix.parse('0.0.0.0/0'))).toBe(false);
    expect(Prefix.parse('::/0').equals(Prefix.parse('0.0.0.0/0'))).toBe(false);
  });
});

describe('MacAddress', () => {
  it('parses both separators and prints colons in lower case', () => {
    expect(MacAddress.parse('0E:12:34:ab:CD:ef').toString()).toBe('0e:12:34:ab:cd:ef');
    expect(MacAddress.parse('0e-12-34-ab-cd-ef').equals(MacAddress.parse('0e:12:34:ab:cd:ef'))).toBe(true);
    expect(MacAddress.parse('0e:12:34:ab:cd:ef').equals(MacAddress.parse('0e:12:34:ab:cd:ee'))).toBe(false);
  });

  it.each([
    '',
    '0e:12:34:ab:cd',
    '0e:12:34:ab:cd:ef:00',
    '0e:12-34:ab:cd:ef',
    'e:12:34:ab:cd:ef',
    '0e1234abcdef',
    '0e:12:34:ab:cd:eg',
  ])('refuses %j', (text) => {
    expect(refusal(() => MacAddress.parse(text)).code).toBe('INVALID_ADDRESS');
  });

  it('makes random addresses unicast and locally administered', () => {
    for (let first = 0; first < 256; first++) {
      const mac = MacAddress.random(Uint8Array.of(first, 1, 2, 3, 4, 5));
      expect(mac.bytes[0]! & 0x03).toBe(0x02);
      expect(mac.bytes[0]! & 0xfc).toBe(first & 0xfc);
      expect([...mac.bytes.subarray(1)]).toEqual([1, 2, 3, 4, 5]);
    }
    expect(refusal(() => MacAddress.random(new Uint8Array(5))).code).toBe('INVALID_ADDRESS');
  });
});
