import { describe, expect, it } from 'vitest';
import { decodeLease, encodeLease, sameAttributes } from '../../../src/control/lease-codec.js';
import { Address } from '../../../src/net/prefix.js';
import { attributesOf } from '../../support/leases.js';

const vtep = { VNI: 1, VtepMAC: 'c6:d2:32:6f:8f:44' };

describe('stored value', () => {
  it.each([
    ['udp', attributesOf('1.2.3.4'), '{"PublicIP":"1.2.3.4","PublicIPv6":null}'],
    [
      'vxlan',
      attributesOf('192.168.64.3', { backendType: 'vxlan', backendData: vtep }),
      '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
    ],
    [
      'vxlan, dual stack',
      attributesOf('192.168.64.3', {
        publicIpv6: Address.parse('FD00:0::1'),
        backendType: 'vxlan',
        backendData: vtep,
        backendV6Data: vtep,
      }),
      '{"PublicIP":"192.168.64.3","PublicIPv6":"fd00::1","BackendType":"vxlan",' +
        '"BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"},"BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}',
    ],
    [
      'udp on a port of its own (not flannel)',
      attributesOf('1.2.3.4', { port: 9000 }),
      '{"PublicIP":"1.2.3.4","PublicIPv6":null,"Port":9000}',
    ],
    [
      'host-gw',
      attributesOf('192.168.64.3', { backendType: 'host-gw' }),
      '{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"host-gw"}',
    ],
    [
      'extension, escaped as Go escapes',
      attributesOf('1.2.3.4', { backendType: 'extension', backendData: 'a<b>&\u2028c"' }),
      '{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"extension","BackendData":"a\\u003cb\\u003e\\u0026\\u2028c\\""}',
    ],
  ])('of %s is what flanneld writes', (_name, attributes, text) => {
    expect(encodeLease(attributes)).toBe(text);
    const read = decodeLease(text);
    expect(read.expiresAt).toBeUndefined();
    expect(read.owner).toBeUndefined();
    expect(encodeLease(read.attributes)).toBe(text);
  });

  it('carries expiry and owner behind the fields flannel knows', () => {
    const expiresAt = new Date('2026-01-02T03:04:05.678Z');
    const text = encodeLease(attributesOf('1.2.3.4'), { expiresAt, owner: 'node-a' });
    expect(text).toBe(
      '{"PublicIP":"1.2.3.4","PublicIPv6":null,"Expiration":"2026-01-02T03:04:05.678Z","Owner":"node-a"}',
    );
    expect(decodeLease(text)).toMatchObject({ expiresAt, owner: 'node-a' });
  });

  it('is read in any case, order and company', () => {
    const read = decodeLease(
      ' {"x":[{"}":"]"}],"owner":null,"expiration":"2026-01-02T03:04:05+01:00","BACKENDDATA":null,"publicip":"9.9.9.9","PublicIp":"1.2.3.4"}\n',
    );
    expect(read.attributes.publicIp.toString()).toBe('1.2.3.4');
    expect(read.attributes.backendData).toBeUndefined();
    expect(read.expiresAt?.toISOString()).toBe('2026-01-02T02:04:05.000Z');
    expect(read.owner).toBeUndefined();
  });

  it('reads a missing PublicIP as 0.0.0.0, as flannel does', () => {
    expect(decodeLease('{}').attributes.publicIp.isUnspecified).toBe(true);
  });

  it.each([
    ['', 'empty'],
    ['{"PublicIP":"1.2.3.4"', 'JSON'],
    ['{"PublicIP":"1.2.3.4"}}', 'JSON'],
    ['[]', 'JSON object'],
    ['null', 'JSON object'],
    ['{"PublicIP":"1.2.3"}', 'PublicIP must be an IPv4 address'],
    ['{"PublicIP":"fd00::1"}', 'PublicIP must be an IPv4 address'],
    ['{"PublicIP":null}', 'PublicIP must be an IPv4 address'],
    ['{"PublicIP":16909060}', 'PublicIP must be an IPv4 address'],
    ['{"PublicIPv6":"1.2.3.4"}', 'PublicIPv6 must be an IPv6 address'],
    ['{"BackendType":5}', 'BackendType must be a string'],
    ['{"Expiration":5}', 'Expiration must be a string'],
    ['{"Expiration":"tomorrow"}', 'Expiration must be a time'],
    ['{"Expiration":"2026-13-02T03:04:05Z"}', 'Expiration must be a time'],
    ['{"Owner":""}', 'Owner must have'],
    [`{"Owner":"${'x'.repeat(300)}"}`, 'Owner must have'],
    [`{"x":${'['.repeat(300)}${']'.repeat(300)}}`, 'nested deeper'],
    [`{"x":"${'y'.repeat(70_000)}"}`, 'more than 65536'],
  ])('%.40s is refused', (text, error) => {
    expect(() => decodeLease(text)).toThrow(error);
    expect(() => decodeLease(text)).toThrow(expect.objectContaining({ code: 'STORE_CORRUPT' }));
  });

  it('differs for peers only by attributes', () => {
    const a = decodeLease('{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VNI":1}}').attributes;
    expect(sameAttributes(a, { ...a })).toBe(true);
    expect(sameAttributes(a, { ...a, backendData: { VNI: 2 } })).toBe(false);
    expect(sameAttributes(a, { ...a, publicIpv6: Address.parse('fd00::1') })).toBe(false);
  });
});

describe('fields that podwire does not know', () => {
  const value = '{"PublicIP":"1.2.3.4","Rack" : [1, 2],"note":"a","OWNER":"x","rack":{"row":4},"Note":null}';

  it('are kept as written, the last of a name, behind what podwire writes', () => {
    const { attributes, owner, unknown } = decodeLease(value);
    expect(owner).toBe('x');
    expect(encodeLease(attributes, { owner: 'y', unknown })).toBe(
      '{"PublicIP":"1.2.3.4","PublicIPv6":null,"Owner":"y","rack":{"row":4},"Note":null}',
    );
  });

  it('are dropped when there is too much of them, and never take known names', () => {
    const { attributes, unknown } = decodeLease(`{"PublicIP":"1.2.3.4","publicipv6":null,"Big":"${'x'.repeat(5000)}"}`);
    expect(encodeLease(attributes, { unknown })).toBe('{"PublicIP":"1.2.3.4","PublicIPv6":null}');
  });
});

it.each(['0', '65536', '8285.5', '"8285"', '[1]'])('a port that is none makes the value unreadable: %s', (port) => {
  expect(() => decodeLease(`{"PublicIP":"1.2.3.4","Port":${port}}`)).toThrow(/Port must be a UDP port from 1 to 65535/);
});
