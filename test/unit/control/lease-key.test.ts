import { describe, expect, it } from 'vitest';
import { leaseKey, parseLeaseKey, tryParseLeaseKey } from '../../../src/control/lease-key.js';
import { Prefix } from '../../../src/net/prefix.js';

describe('lease key', () => {
  it.each([
    ['10.5.34.0-24', '10.5.34.0/24', undefined],
    ['10.12.13.0-24&fd00:12:13::-56', '10.12.13.0/24', 'fd00:12:13::/56'],
    ['0.0.0.0-0&fd42:0:0:22::-64', 'fd42:0:0:22::/64', undefined],
    ['128.0.0.0-1', '128.0.0.0/1', undefined],
    ['10.0.0.2-31', '10.0.0.2/31', undefined],
  ])('%s goes both ways', (key, subnet, subnet6) => {
    const parsed = parseLeaseKey(key);
    expect(parsed.subnet.toString()).toBe(subnet);
    expect(parsed.subnet6?.toString()).toBe(subnet6);
    expect(leaseKey(parsed)).toBe(key);
  });

  it('takes a longer spelling of the IPv6 part, as flannel does, and writes the canonical one', () => {
    expect(leaseKey(parseLeaseKey('10.12.13.0-24&fd00:12:13:0:0:0:0:0-56'))).toBe('10.12.13.0-24&fd00:12:13::-56');
  });

  it('is written canonically', () => {
    const subnet6 = Prefix.parse('FD00:0012:0013:0000::/56');
    expect(leaseKey({ subnet: Prefix.parse('10.12.13.77/24'), subnet6 })).toBe('10.12.13.0-24&fd00:12:13::-56');
  });

  it.each([
    // flannel's eleven
    '10',
    '10.12.13.0',
    '10.12.13-24',
    '10.12.13.300-24',
    '10.12.13.0-24hi',
    '&2001::-56',
    '10.12.13.0-24&:12:13:-56',
    '10.12.13.0-24&20011::-56',
    '10.12.13.0-24&2001-56',
    '10.12.13.0-24&2001::',
    '10.12.13.0-24&2001::-56hi',
    // ours
    '',
    'x10.12.13.0-24',
    '/10.12.13.0-24',
    '10.12.13.0-24\n',
    '10.12.13.0-24/hb',
    '10.12.13.0-32',
    '10.12.13.0-024',
    '010.12.13.0-24',
    '10.12.13.7-24',
    '10,12,13,0-24',
    '0.0.0.0-0',
    '10.12.13.0-24&2001::-128',
    '10.12.13.0-24&2001::1-56',
    '10.12.13.0-24&2001:DB8::-56',
    '10.12.13.0-24&2001::-056',
    '10.12.13.0-24&',
    '10.12.13.0-24&::-0',
  ])('%j is none', (key) => {
    expect(tryParseLeaseKey(key)).toBeUndefined();
    expect(() => parseLeaseKey(key)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
