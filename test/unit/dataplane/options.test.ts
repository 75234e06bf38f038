import { describe, expect, it } from 'vitest';
import type { DataplaneOptions } from '../../../src/dataplane/options.js';
import { resolveOptions } from '../../../src/dataplane/options.js';
import { PodwireError } from '../../../src/errors.js';
import { MacAddress } from '../../../src/net/prefix.js';

const LEAST: DataplaneOptions = { bind: { address: '192.0.2.1' }, local: ['10.1.2.0/24'] };

function resolve(more: Partial<DataplaneOptions> = {}, processors = 4): ReturnType<typeof resolveOptions> {
  return resolveOptions({ ...LEAST, ...more }, processors);
}

/** What a caller without types may hand over. */
function refused(more: Readonly<Record<string, unknown>>): PodwireError {
  try {
    resolveOptions({ ...LEAST, ...more }, 4);
  } catch (error) {
    if (error instanceof PodwireError) return error;
    throw error;
  }
  throw new Error(`taken: ${JSON.stringify(more)}`);
}

describe('the options of a data plane', () => {
  it('have defaults', () => {
    const { mtu, logger, encapsulation, ...rest } = resolve();
    expect(rest).toMatchObject({
      device: 'flannel%d',
      port: 8285,
      ownAddresses: [],
      workers: 2,
      sourceCheck: 'lease',
      fixedSourcePort: false,
      tun: 'uso',
      udp: 'gso',
      spin: 'adaptive',
      configuredMtu: undefined,
      maxRoutes: 20_000,
    });
    expect(rest.address.toString()).toBe('192.0.2.1');
    expect(rest.local.map(String)).toEqual(['10.1.2.0/24']);
    expect(rest.pathMtu).toMatchObject({ intervalMs: 60_000 });
    expect(encapsulation.name).toBe('udp');
    expect([mtu.underlay, mtu.overlay, mtu.overhead]).toEqual([1500, 1472, 28]);
    expect(() => logger.error({}, 'goes nowhere')).not.toThrow();
  });

  it('know the overhead of the underlay’s family', () => {
    const { mtu } = resolve({ bind: { address: '2001:db8::1' }, underlayMtu: 9000 });
    expect([mtu.underlay, mtu.overlay, mtu.overhead]).toEqual([9000, 8952, 48]);
  });

  it('know vxlan: its port, its overhead on both families, its own end', () => {
    const encapsulation = { type: 'vxlan', vni: 1, vtepMac: '0E:12:34:56:78:9A' } as const;
    const four = resolve({ encapsulation });
    expect([four.port, four.mtu.overlay, four.mtu.overhead]).toEqual([8472, 1450, 50]);
    const six = resolve({ encapsulation, bind: { address: '2001:db8::1', port: 4789 } });
    expect([six.port, six.mtu.overlay, six.mtu.overhead]).toEqual([4789, 1430, 70]);
    expect(four.encapsulation.name).toBe('vxlan');
    const mac = [0x0e, 0x12, 0x34, 0x56, 0x78, 0x9a];
    expect([...four.encapsulation.accepts]).toEqual([8, 0, 0, 0, 0, 0, 1, 0, ...mac]);
    const same = resolve({ encapsulation: { ...encapsulation, vtepMac: MacAddress.fromBytes(Uint8Array.from(mac)) } });
    expect(same.encapsulation.accepts).toEqual(four.encapsulation.accepts);
  });

  it.each([
    [1, 1],
    [2, 1],
    [3, 1],
    [4, 2],
    [8, 4],
    [64, 4],
  ])('on %i processors mean %i workers', (processors, workers) => {
    expect(resolve({}, processors).workers).toBe(workers);
    expect(resolve({ workers: 'auto' }, processors).workers).toBe(workers);
    expect(resolve({ workers: 7 }, processors).workers).toBe(7);
  });

  it('take what is given', () => {
    const given = resolve({
      device: 'pod%d',
      bind: { address: '192.0.2.1', port: 1 },
      ownAddresses: ['10.1.2.1', 'fd00::1'],
      workers: 32,
      sourceCheck: 'strict',
      sourcePort: 'fixed',
      offload: { tun: 'none', udp: 'single' },
      spin: 'off',
      pathMtu: false,
      maxRoutes: 500_000,
    });
    expect(given).toMatchObject({
      device: 'pod%d',
      port: 1,
      workers: 32,
      sourceCheck: 'strict',
      fixedSourcePort: true,
      tun: 'none',
      udp: 'single',
      spin: 'off',
      pathMtu: false,
      maxRoutes: 500_000,
    });
    expect(given.ownAddresses.map(String)).toEqual(['10.1.2.1', 'fd00::1']);
    expect(resolve({ offload: { tun: 'auto', udp: 'auto' } })).toMatchObject({ tun: 'uso', udp: 'gso' });
    expect(resolve({ device: 'abcdefghijklmno' }).device).toBe('abcdefghijklmno');
  });

  // Each: what is wrong, and the words that its one line must have: the option, the value and what to give instead.
  const wrong: readonly (readonly [Readonly<Record<string, unknown>>, ...string[]])[] = [
    [{ bind: undefined }, 'bind', 'address'],
    [{ bind: '192.0.2.1' }, 'bind', 'address'],
    [{ bind: {} }, 'undefined', 'not an IP address'],
    [{ bind: { address: '192.0.2.256' } }, '"192.0.2.256"', 'not an IP address'],
    [{ bind: { address: '239.1.1.1' } }, 'bind.address', '239.1.1.1', 'underlay interface'],
    [{ bind: { address: '255.255.255.255' } }, 'bind.address', '255.255.255.255'],
    [{ bind: { address: 'ff02::1' } }, 'bind.address', 'ff02::1'],
    [{ bind: { address: '192.0.2.1', port: 0 } }, 'bind.port', '0', '1 to 65535'],
    [{ bind: { address: '192.0.2.1', port: 65_536 } }, 'bind.port', '65536'],
    [{ bind: { address: '192.0.2.1', port: 8285.5 } }, 'bind.port', '8285.5'],
    [{ bind: { address: '192.0.2.1', port: '8285' } }, 'bind.port', '8285', 'whole number'],
    [{ local: undefined }, 'local', 'list'],
    [{ local: '10.1.2.0/24' }, 'local', '"10.1.2.0/24"', 'list'],
    [{ local: ['10.1.2.0'] }, '"10.1.2.0"', 'not a prefix'],
    [{ ownAddresses: '10.1.2.1' }, 'ownAddresses', '"10.1.2.1"', 'list'],
    [{ ownAddresses: ['10.1.2.1/24'] }, '"10.1.2.1/24"', 'not an IP address'],
    [{ encapsulation: 'vxlan' }, 'encapsulation', '"vxlan"', 'udp'],
    [{ encapsulation: { type: 'geneve', vni: 1 } }, 'encapsulation', 'geneve', "type: 'vxlan'"],
    [{ encapsulation: { type: 'vxlan', vni: 1 << 24, vtepMac: '0e:00:00:00:00:01' } }, 'vni', '16777216', '16777215'],
    [{ encapsulation: { type: 'vxlan', vni: -1, vtepMac: '0e:00:00:00:00:01' } }, 'vni', '-1', 'whole number'],
    [{ encapsulation: { type: 'vxlan', vtepMac: '0e:00:00:00:00:01' } }, 'vni', 'undefined', 'whole number'],
    [{ underlayMtu: 100 }, 'MTU', '100', '576'],
    [{ underlayMtu: 65_536 }, 'MTU', '65536', '65535'],
    [{ underlayMtu: Number.NaN }, 'MTU', 'NaN'],
    [{ workers: 0 }, 'workers', '0', '1 to 32'],
    [{ workers: 33 }, 'workers', '33', '1 to 32'],
    [{ workers: 'many' }, 'workers', 'many'],
    [{ sourceCheck: 'none' }, 'sourceCheck', '"none"', 'off, lease, strict'],
    [{ sourcePort: 'random' }, 'sourcePort', '"random"', 'flow, fixed'],
    [{ offload: { tun: 'gso' } }, 'offload.tun', '"gso"', 'auto, uso, tso, csum, none'],
    [{ offload: { udp: 'uso' } }, 'offload.udp', '"uso"', 'auto, gso, mmsg, single'],
    [{ spin: true }, 'spin', 'true', 'off, adaptive, always'],
    [{ spin: 'a\nb' }, 'spin', '"a\\nb"'],
    [{ pathMtu: { retries: 0 } }, 'pathMtu.retries', '0', '1 to 10'],
    [{ maxRoutes: 0 }, 'maxRoutes', '0'],
    [{ maxRoutes: 500_001 }, 'maxRoutes', '500001', '500000'],
    [{ device: '' }, 'device', '""', '1 to 15'],
    [{ device: 'sixteen-letters-' }, 'device', 'sixteen-letters-'],
    [{ device: 'äöüäöüäö' }, 'device', 'äöüäöüäö'], // 16 bytes
    [{ device: 'a b' }, 'device', 'a b'],
    [{ device: 'a\nb' }, 'device', '"a\\nb"'],
    [{ device: 'a/b' }, 'device', 'a/b'],
    [{ device: 'a:1' }, 'device', 'a:1'],
    [{ device: '..' }, 'device', '".."'],
    [{ device: 'a%d%d' }, 'device', 'a%d%d'],
    [{ device: 'a%s' }, 'device', 'a%s'],
    [{ device: 7 }, 'device', '7'],
  ];
  it.each(wrong.map(([more, ...words]) => ({ more, words })))('refuse $more in one line', ({ more, words }) => {
    const error = refused(more);
    expect(['INVALID_ARGUMENT', 'INVALID_ADDRESS']).toContain(error.code);
    expect(error.message).not.toContain('\n');
    for (const word of words) expect(error.message).toContain(word);
  });
});
