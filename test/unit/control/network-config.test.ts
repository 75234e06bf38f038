import { describe, expect, it } from 'vitest';
import { backendOption, parseNetworkConfig } from '../../../src/control/network-config.js';

const parse = (config: unknown) => parseNetworkConfig(JSON.stringify(config));
const text = (value: { toString(): string } | undefined): string | undefined => value?.toString();

describe('IPv4', () => {
  it.each([
    // network, subnetLen, min, max: flannel's own examples first
    ['10.3.0.0/16', 24, '10.3.1.0', '10.3.255.0'],
    ['10.0.0.0/8', 24, '10.0.1.0', '10.255.255.0'],
    ['10.1.0.0/22', 24, '10.1.1.0', '10.1.3.0'],
    ['10.1.0.0/23', 25, '10.1.0.128', '10.1.1.128'],
    ['10.1.1.0/24', 26, '10.1.1.64', '10.1.1.192'],
    ['10.1.1.0/25', 27, '10.1.1.32', '10.1.1.96'],
    ['10.1.1.16/28', 30, '10.1.1.20', '10.1.1.28'],
    ['128.0.0.0/1', 24, '128.0.1.0', '255.255.255.0'],
  ])('derives subnets of %s', (network, subnetLen, min, max) => {
    const config = parse({ Network: network });
    expect(text(config.network)).toBe(network);
    expect(config).toMatchObject({ enableIPv4: true, enableIPv6: false, subnetLen, ipv6SubnetLen: 0 });
    expect([text(config.subnetMin), text(config.subnetMax)]).toEqual([min, max]);
    expect(config.ipv6Network).toBeUndefined();
  });

  it('masks host bits off and takes what is given', () => {
    const config = parse({ Network: '10.3.4.5/16', SubnetLen: 28, SubnetMin: '10.3.5.16', SubnetMax: '10.3.8.240' });
    expect(text(config.network)).toBe('10.3.0.0/16');
    expect(config.subnetLen).toBe(28);
    expect([text(config.subnetMin), text(config.subnetMax)]).toEqual(['10.3.5.16', '10.3.8.240']);
  });

  it('takes zero for not given, as flannel does, and does not order min and max', () => {
    const config = parse({ Network: '10.3.0.0/16', SubnetLen: 0, SubnetMin: '0.0.0.0', SubnetMax: '0.0.0.0' });
    expect(config.subnetLen).toBe(24);
    expect(text(config.subnetMin)).toBe('10.3.1.0');
    expect(text(parse({ Network: '10.3.0.0/16', SubnetMin: '10.3.9.0', SubnetMax: '10.3.2.0' }).subnetMin)).toBe(
      '10.3.9.0',
    );
  });

  it.each([
    [{}, 'please define a correct Network parameter in the flannel config', 'missing'],
    [{ Network: '0.0.0.0/0' }, 'please define a correct Network parameter in the flannel config', '0.0.0.0/0'],
    [{ Network: '10.0.0.0/16', SubnetLen: 31 }, 'SubnetLen must be less than /31', '31'],
    [{ Network: '10.0.0.0/16', SubnetLen: 17 }, 'network must be able to accommodate at least four subnets', '17'],
    [{ Network: '10.0.0.0/29' }, 'network is too small. Minimum useful network prefix is /28', '10.0.0.0/29'],
    [{ Network: '10.0.0.0/16', SubnetMin: '10.1.0.0' }, 'SubnetMin is not in the range of the Network', '10.1.0.0'],
    [{ Network: '10.0.0.0/16', SubnetMax: '9.255.0.0' }, 'SubnetMax is not in the range of the Network', '9.255.0.0'],
    [
      { Network: '10.0.0.0/16', SubnetMin: '10.0.1.1' },
      'SubnetMin is not on a SubnetLen boundary: 10.0.1.1',
      '10.0.1.0',
    ],
    [
      { Network: '10.0.0.0/16', SubnetMax: '10.0.9.4' },
      'SubnetMax is not on a SubnetLen boundary: 10.0.9.4',
      '10.0.9.0',
    ],
    [{ Network: 'fc00::/48' }, 'invalid IPv4 CIDR format', 'fc00::/48'],
    [{ Network: '10.0.0.0' }, 'invalid CIDR address', '10.0.0.0'],
    [{ Network: null }, 'invalid CIDR address', 'null'],
    [{ Network: 5 }, 'invalid CIDR address', '5'],
    [{ Network: '10.0.0.0/16', SubnetMin: '10.0.1.0/24' }, 'invalid IP address format', '10.0.1.0/24'],
    [{ Network: '10.0.0.0/16', SubnetMin: null }, 'invalid IP address format', 'null'],
    [{ Network: '10.0.0.0/16', SubnetLen: '24' }, 'SubnetLen must be a whole number', '24'],
    [{ Network: '10.0.0.0/16', SubnetLen: -1 }, 'SubnetLen must be a whole number', '-1'],
    [{ Network: '10.0.0.0/16', EnableIPv6: 'yes' }, 'EnableIPv6 must be true or false', 'yes'],
    [{ Network: '10.0.0.0/16', EnableIPv4: false }, 'none defined stack', 'false'],
  ])('refuses %j', (config, error, value) => {
    expect(() => parse(config)).toThrow(error);
    expect(() => parse(config)).toThrow(value);
    expect(() => parse(config)).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }));
    expect(() => parse(config)).not.toThrow('\n');
  });
});

describe('IPv6', () => {
  const six = (more: object) => parse({ Network: '10.3.0.0/16', EnableIPv6: true, ...more });

  it.each([
    ['fc00::/48', 64, 'fc00:0:0:1::', 'fc00:0:0:ffff::'],
    ['fd00:42::/62', 64, 'fd00:42:0:1::', 'fd00:42:0:3::'],
    ['fd00:42::/63', 65, 'fd00:42:0:0:8000::', 'fd00:42:0:1:8000::'],
    ['fd00:42::/124', 126, 'fd00:42::4', 'fd00:42::c'],
  ])('derives subnets of %s', (network, length, min, max) => {
    const config = six({ IPv6Network: network });
    expect([text(config.ipv6Network), config.ipv6SubnetLen]).toEqual([network, length]);
    expect([text(config.ipv6SubnetMin), text(config.ipv6SubnetMax)]).toEqual([min, max]);
    expect(config.subnetLen).toBe(24);
  });

  it('takes overrides, and null for not given', () => {
    const config = six({
      IPv6Network: 'fc00::/48',
      IPv6SubnetLen: 124,
      IPv6SubnetMin: 'fc00::10',
      IPv6SubnetMax: null,
    });
    expect([config.ipv6SubnetLen, text(config.ipv6SubnetMin)]).toEqual([124, 'fc00::10']);
    expect(text(config.ipv6SubnetMax)).toBe('fc00::ffff:ffff:ffff:ffff:fff0');
  });

  it('can be alone', () => {
    const config = parse({ EnableIPv4: false, EnableIPv6: true, IPv6Network: 'fc00::/48' });
    expect(config.network).toBeUndefined();
    expect(config).toMatchObject({ enableIPv4: false, subnetLen: 0, ipv6SubnetLen: 64 });
  });

  it('is not judged when it is off, but must be readable', () => {
    expect(parse({ Network: '10.3.0.0/16', IPv6Network: 'fc00::/127' }).ipv6Network).toBeUndefined();
    expect(() => parse({ Network: '10.3.0.0/16', IPv6Network: 'fc00' })).toThrow('invalid CIDR address');
  });

  it.each([
    [{}, 'please define a correct IPv6Network parameter in the flannel config'],
    [{ IPv6Network: 'fc00::/48', IPv6SubnetLen: 127 }, 'SubnetLen must be less than /127'],
    [{ IPv6Network: 'fc00::/48', IPv6SubnetLen: 49 }, 'network must be able to accommodate at least four subnets'],
    [{ IPv6Network: 'fc00::/125' }, 'IPv6Network is too small. Minimum useful network prefix is /124'],
    [{ IPv6Network: 'fc00::/48', IPv6SubnetMin: 'fd00::' }, 'IPv6SubnetMin is not in the range of the IPv6Network'],
    [{ IPv6Network: 'fc00::/48', IPv6SubnetMax: 'fd00::' }, 'IPv6SubnetMax is not in the range of the IPv6Network'],
    [{ IPv6Network: 'fc00::/48', IPv6SubnetMin: 'fc00::1' }, 'IPv6SubnetMin is not on a SubnetLen boundary: fc00::1'],
    [{ IPv6Network: '10.0.0.0/8' }, 'invalid IPv6 CIDR format'],
  ])('refuses %j', (config, error) => {
    expect(() => six(config)).toThrow(error);
  });
});

describe('JSON as Go reads it', () => {
  it('matches names in any case and ignores unknown ones', () => {
    const config = parse({ network: '10.3.0.0/16', enableipv6: true, IPV6network: 'fc00::/48', Color: 'red' });
    expect(text(config.network)).toBe('10.3.0.0/16');
    expect(text(config.ipv6Network)).toBe('fc00::/48');
  });

  it('takes the last of several, however they are spelt', () => {
    const config = parseNetworkConfig(
      '{"Network":"10.1.0.0/16","network":"10.2.0.0/16","Network":"10.3.0.0/16","SubnetLen":26,"SubnetLen":null}',
    );
    expect(text(config.network)).toBe('10.3.0.0/16');
    expect(config.subnetLen).toBe(26);
    const other = parseNetworkConfig('{"Network":"10.1.0.0/16","NETWORK":"10.2.0.0/16"}');
    expect(text(other.network)).toBe('10.2.0.0/16');
  });

  it('wants plain digits for a number', () => {
    expect(() => parseNetworkConfig('{"Network":"10.1.0.0/16","SubnetLen":24.0}')).toThrow('whole number');
    expect(() => parseNetworkConfig('{"Network":"10.1.0.0/16","SubnetLen":2.4e1}')).toThrow('whole number');
  });

  it.each(['', '   ', '{', '[]', '5', 'null', '{"Network":}', '{"Network":"10.1.0.0/16"} x'])('refuses %j', (json) => {
    expect(() => parseNetworkConfig(json)).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }));
  });
});

describe('Backend', () => {
  const backend = (value: unknown) => parse({ Network: '10.3.0.0/16', Backend: value }).backend;

  it('is udp when absent, and says that nobody asked for it', () => {
    expect(parse({ Network: '10.3.0.0/16' }).backend).toEqual({ type: 'udp', raw: {}, defaulted: true });
  });

  it('is lower-cased and keeps its options, found in any case', () => {
    const config = parse({ Network: '10.3.0.0/16', backend: { type: 'VXLAN', vni: 7, Port: null } });
    expect(config.backend).toEqual({ type: 'vxlan', raw: { type: 'VXLAN', vni: 7, Port: null }, defaulted: false });
    expect(backendOption(config, 'VNI')).toBe(7);
    expect(backendOption(config, 'Port')).toBeUndefined();
    expect(backendOption(config, 'MTU')).toBeUndefined();
  });

  it('keeps the last of two spellings of one option', () => {
    const { backend: read } = parseNetworkConfig(
      '{"Network":"10.3.0.0/16","Backend":{"Type":"udp","Port":1,"port":2}}',
    );
    expect(read.raw).toEqual({ Type: 'udp', port: 2 });
  });

  it('does not take __proto__ for more than a name', () => {
    const read = parseNetworkConfig(
      '{"Network":"10.3.0.0/16","Backend":{"Type":"udp","__proto__":{"Port":9}}}',
    ).backend;
    expect(Object.getPrototypeOf(read.raw)).toBe(Object.prototype);
    expect(backendOption({ backend: read }, 'Port')).toBeUndefined();
  });

  it.each([
    [{}, 'unknown backend type: '],
    [null, 'unknown backend type: '],
    [{ Type: 'gre' }, 'unknown backend type: gre'],
    [{ Type: 5 }, 'error decoding Backend property of config'],
    ['udp', 'error decoding Backend property of config'],
    [[], 'error decoding Backend property of config'],
  ])('refuses %j', (value, error) => {
    expect(() => backend(value)).toThrow(error);
  });
});
