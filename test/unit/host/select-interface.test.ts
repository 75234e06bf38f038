import { describe, expect, test } from 'vitest';
import {
  type InterfaceChoice,
  parseInterfacePattern,
  selectInterface,
  type SelectedInterface,
} from '../../../src/host/select-interface.js';
import type { Family } from '../../../src/net/prefix.js';
import { commandFailed, fakeIp, link } from './fake-ip.js';

const HOST = [
  link('lo', 1, [
    { local: '127.0.0.1', scope: 'host' },
    { local: '::1', scope: 'host' },
  ]),
  link('eth0', 2, ['192.168.1.5', '192.168.1.6', 'fd00::5', 'fe80::1']),
  link('eth1', 3, ['10.0.0.7', 'fe80::2'], { mtu: 9000 }),
  link('eth2', 4, []),
  link('dead0', 5, ['10.9.9.9'], { mtu: 0 }),
  link('wlan-a', 6, ['172.16.0.3']),
];

const DEFAULTS = {
  '-j -d address show': HOST,
  '-j -4 route show default': [{ dst: 'default', gateway: '192.168.1.1', dev: 'eth0' }],
  '-j -6 route show default': [{ dst: 'default', gateway: 'fd00::1', dev: 'eth0' }],
  '-j -4 route get 10.0.0.200': [{ dst: '10.0.0.200', dev: 'eth1', prefsrc: '10.0.0.7' }],
  '-j -4 route get 8.8.8.8': commandFailed('ip -j -4 route get 8.8.8.8: RTNETLINK answers: Network is unreachable'),
};

function select(
  choice: InterfaceChoice,
  families: readonly Family[] = [4],
  answers: object = {},
): Promise<SelectedInterface> {
  return selectInterface(
    fakeIp({ ...answers, ...Object.fromEntries(Object.entries(DEFAULTS).filter(([key]) => !(key in answers))) }).runner,
    choice,
    families,
  );
}

/** name, own address, public address, and a part of the reason. */
const chosen: readonly [string, InterfaceChoice, string, string, string, string][] = [
  ['nothing given: the default route', {}, 'eth0', '192.168.1.5', '192.168.1.5', 'it has the default route'],
  ['--iface by name', { iface: ['eth1'] }, 'eth1', '10.0.0.7', '10.0.0.7', 'named by --iface eth1'],
  [
    '--iface by address keeps that address',
    { iface: ['192.168.1.6'] },
    'eth0',
    '192.168.1.6',
    '192.168.1.6',
    'it owns --iface 192.168.1.6',
  ],
  [
    'the first --iface that matches',
    { iface: ['eth9', 'eth2', 'eth1', 'eth0'] },
    'eth1',
    '10.0.0.7',
    '10.0.0.7',
    'named by --iface eth1',
  ],
  [
    '--iface before --iface-regex',
    { iface: ['eth1'], ifaceRegex: ['^192'] },
    'eth1',
    '10.0.0.7',
    '10.0.0.7',
    'named by',
  ],
  [
    '--iface-regex on addresses first',
    { ifaceRegex: ['^172\\.16\\.'] },
    'wlan-a',
    '172.16.0.3',
    '172.16.0.3',
    'its address 172.16.0.3 matches',
  ],
  [
    '--iface-regex takes the address that matched',
    { ifaceRegex: ['\\.6$'] },
    'eth0',
    '192.168.1.6',
    '192.168.1.6',
    'its address 192.168.1.6 matches',
  ],
  [
    '--iface-regex on names when no address matches',
    { ifaceRegex: ['^wlan'] },
    'wlan-a',
    '172.16.0.3',
    '172.16.0.3',
    'its name matches',
  ],
  [
    "--iface-regex with Go's (?i)",
    { ifaceRegex: ['(?i)WLAN'] },
    'wlan-a',
    '172.16.0.3',
    '172.16.0.3',
    'its name matches',
  ],
  [
    '--iface-regex before --iface-can-reach',
    { ifaceRegex: ['nope'], ifaceCanReach: '10.0.0.200' },
    'eth1',
    '10.0.0.7',
    '10.0.0.7',
    "the kernel's route to --iface-can-reach",
  ],
  [
    '--public-ip alone picks its owner',
    { publicIp: '10.0.0.7' },
    'eth1',
    '10.0.0.7',
    '10.0.0.7',
    'it owns --public-ip 10.0.0.7',
  ],
  [
    '--public-ip beside --iface is only told to peers',
    { iface: ['eth1'], publicIp: '203.0.113.9' },
    'eth1',
    '10.0.0.7',
    '203.0.113.9',
    'the public address is --public-ip',
  ],
];

test.each(chosen)('%s', async (_, choice, name, address, publicIp, why) => {
  const selected = await select(choice);
  expect([selected.name, String(selected.address), String(selected.publicIp)]).toEqual([name, address, publicIp]);
  expect(selected.why).toContain(why);
  expect(selected.address6).toBeUndefined();
});

const refused: readonly [string, InterfaceChoice, readonly Family[], string, RegExp][] = [
  [
    'nothing matches',
    { iface: ['eth9'], ifaceRegex: ['^zz'] },
    [4],
    'INTERFACE',
    /Failed to find interface.*--iface eth9, --iface-regex \^zz; this host has eth0 \(192\.168\.1\.5 192\.168\.1\.6 fd00::5\)/,
  ],
  [
    'an address nobody owns',
    { iface: ['10.1.2.3'] },
    [4],
    'INTERFACE',
    /Failed to find interface.*--iface 10\.1\.2\.3/,
  ],
  ['MTU 0', { iface: ['dead0'] }, [4], 'INTERFACE', /dead0 has no MTU/],
  ['loopback by address', { iface: ['127.0.0.1'] }, [4], 'INTERFACE', /peers can reach on interface lo/],
  [
    'a bad pattern',
    { ifaceRegex: ['('] },
    [4],
    'INVALID_ARGUMENT',
    /--iface-regex "\(" is no valid regular expression/,
  ],
  ['--iface-can-reach without a route', { ifaceCanReach: '8.8.8.8' }, [4], 'INTERFACE', /no route to 8\.8\.8\.8/],
  ['--iface-can-reach that is no address', { ifaceCanReach: 'eth0' }, [4], 'INVALID_ADDRESS', /--iface-can-reach eth0/],
  [
    'a public address nobody owns',
    { publicIp: '203.0.113.9' },
    [4],
    'INTERFACE',
    /no interface owns --public-ip 203\.0\.113\.9: name the interface with --iface too/,
  ],
  [
    'a public address that is none',
    { publicIp: '1.2.3' },
    [4],
    'INVALID_ADDRESS',
    /invalid public IP address: --public-ip "1\.2\.3"/,
  ],
  ['a public address of the wrong family', { publicIp: 'fd00::5' }, [4], 'INVALID_ADDRESS', /is not an IPv4 address/],
  [
    'a loopback public address',
    { iface: ['eth0'], publicIp: '127.0.0.1' },
    [4],
    'INVALID_ADDRESS',
    /cannot be reached by peers/,
  ],
  [
    'dual stack without an IPv6 address',
    { publicIp: '172.16.0.3' },
    [4, 6],
    'INTERFACE',
    /^failed to find an IPv6 address/,
  ],
];

test.each(refused)('refused: %s', async (_, choice, families, code, message) => {
  await expect(select(choice, families)).rejects.toMatchObject({
    code,
    message: expect.stringMatching(message) as string,
  });
});

describe('dual stack', () => {
  test('both default routes must be one interface', async () => {
    const selected = await select({}, [4, 6]);
    expect([selected.name, String(selected.address), String(selected.address6)]).toEqual([
      'eth0',
      '192.168.1.5',
      'fd00::5',
    ]);
    await expect(select({}, [4, 6], { '-j -6 route show default': [{ dst: 'default', dev: 'eth1' }] })).rejects.toThrow(
      /different interfaces \(eth0, eth1\)/,
    );
  });

  test('an interface that lacks a family is no match by name', async () => {
    const selected = await select({ iface: ['wlan-a', 'eth0'] }, [4, 6]);
    expect(selected.name).toBe('eth0');
  });
});

describe('default route', () => {
  test('none at all says so', async () => {
    await expect(select({}, [4], { '-j -4 route show default': [] })).rejects.toThrow(/no IPv4 default route.*--iface/);
  });

  test('a multipath route counts with its first next hop, an unreachable one not at all', async () => {
    const selected = await select({}, [4], {
      '-j -4 route show default': [
        { type: 'unreachable', dst: 'default' },
        {
          dst: 'default',
          nexthops: [
            { gateway: '10.0.0.1', dev: 'eth1' },
            { gateway: '192.168.1.1', dev: 'eth0' },
          ],
        },
      ],
    });
    expect(selected.name).toBe('eth1');
  });
});

/** flannel's order of preference, each address a step worse than the one before. */
test.each([
  [['10.0.0.1', '10.0.0.2'], '10.0.0.1'],
  [[{ local: '10.0.0.1', deprecated: true }, '10.0.0.2'], '10.0.0.2'],
  [['169.254.3.4', '10.0.0.2'], '10.0.0.2'],
  [['169.254.3.4'], '169.254.3.4'],
  [[{ local: '10.0.0.1', dynamic: true }, '10.0.0.2'], '10.0.0.2'],
  [
    [
      { local: '10.0.0.1', dynamic: true, temporary: true },
      { local: '10.0.0.2', dynamic: true },
    ],
    '10.0.0.2',
  ],
  [['169.254.3.4', { local: '10.0.0.1', dynamic: true }], '10.0.0.1'],
])('preferred address of %j is %s', async (addresses, expected) => {
  const answers = { '-j -d address show': [link('eth0', 2, addresses)] };
  expect(String((await select({ iface: ['eth0'] }, [4], answers)).address)).toBe(expected);
});

test('only deprecated addresses are no address', async () => {
  const answers = { '-j -d address show': [link('eth0', 2, [{ local: '10.0.0.1', deprecated: true }])] };
  await expect(select({ iface: ['eth0'] }, [4], answers)).rejects.toThrow(/Failed to find interface/);
});

describe('which of several addresses', () => {
  const six = (...addresses: Parameters<typeof link>[2]) => ({
    '-j -d address show': [link('eth0', 2, ['10.0.0.1', ...addresses])],
  });

  test.each([
    [
      [
        { local: 'fd00::1', temporary: true, dynamic: true },
        { local: 'fd00::2', dynamic: true },
      ],
      'fd00::2',
    ],
    [
      [
        { local: 'fd00::1', deprecated: true },
        { local: 'fd00::2', dynamic: true, temporary: true },
      ],
      'fd00::2',
    ],
    [
      [
        { local: 'fd00::1', dadfailed: true, tentative: true },
        { local: 'fd00::2', dynamic: true },
      ],
      'fd00::2',
    ],
    [[{ local: 'fd00::1', tentative: true }, 'fe80::1'], 'fe80::1'],
    [[{ local: 'fd00::1', tentative: true }], 'fd00::1'],
    [['fe80::1', { local: 'fd00::1', dynamic: true }], 'fd00::1'],
    [[{ local: 'fd00::1', dynamic: true }, 'fd00::2'], 'fd00::2'],
  ])('of %j stays with %s', async (addresses, expected) => {
    const selected = await select({ iface: ['eth0'] }, [4, 6], six(...addresses));
    expect(String(selected.address6)).toBe(expected);
  });

  test('a tunnel over IPv6 alone cannot use a link-local address', async () => {
    const answers = { '-j -d address show': [link('eth0', 2, ['10.0.0.1', 'fe80::1'])] };
    await expect(select({ iface: ['eth0'] }, [6], answers)).rejects.toThrow(
      /^interface eth0 has only the link-local IPv6 address fe80::1, which no tunnel can be bound to/,
    );
    expect(String((await select({ iface: ['eth0'] }, [4, 6], answers)).address6)).toBe('fe80::1');
  });

  test('the reason says so when there was a choice', async () => {
    expect((await select({ iface: ['eth1'] })).why).toBe('named by --iface eth1');
    expect((await select({ iface: ['eth0'] })).why).toBe(
      'named by --iface eth0; 192.168.1.5 is the first of its 2 IPv4 addresses',
    );
    expect((await select({ iface: ['eth0'], publicIp: '192.168.1.6' })).why).toBe(
      'named by --iface eth0; 192.168.1.6 is its public one; the public address is --public-ip',
    );
    expect((await select({ ifaceCanReach: '10.0.0.200' })).why).toBe(
      "the kernel's route to --iface-can-reach 10.0.0.200 leaves there",
    );
  });

  test('the public addresses are sent from where the interface owns them, unless the rule fixed another', async () => {
    const both = await select({ iface: ['eth0'], publicIp: '192.168.1.6', publicIpv6: 'fd00::5' }, [4, 6]);
    expect([both.address, both.address6, both.publicIp, both.publicIpv6].map(String)).toEqual([
      '192.168.1.6',
      'fd00::5',
      '192.168.1.6',
      'fd00::5',
    ]);
    const fixed = await select({ iface: ['192.168.1.5'], publicIp: '192.168.1.6' });
    expect([fixed.address, fixed.publicIp].map(String)).toEqual(['192.168.1.5', '192.168.1.6']);
    const only6 = await select({ iface: ['fd00::5'] }, [6]);
    expect([only6.address, only6.publicIp, only6.address6].map(String)).toEqual(['undefined', 'undefined', 'fd00::5']);
  });
});

describe('families', () => {
  test('an --iface address of a family that is not in use is passed over', async () => {
    expect((await select({ iface: ['fd00::5', 'eth1'] })).name).toBe('eth1');
    await expect(select({ iface: ['192.168.1.5'] }, [6])).rejects.toThrow(/Failed to find interface/);
  });

  test('in dual stack an expression is best matched by both families, then by name, then by one family', async () => {
    const answers = {
      '-j -d address show': [
        link('wan0', 2, ['10.1.0.1', 'fd01::1']),
        link('ten0', 3, ['10.2.0.1', 'fd10::1']),
        link('lan0', 4, ['10.3.0.1', 'fd03::1']),
      ],
    };
    const name = async (pattern: string) => (await select({ ifaceRegex: [pattern] }, [4, 6], answers)).name;
    expect(await name('^(10|fd10)')).toBe('ten0');
    expect(await name('^10\\.3|^wan')).toBe('wan0');
    expect(await name('^10\\.3')).toBe('lan0');
    expect(await name('^fd03')).toBe('lan0');
  });

  test('both public addresses must be on one interface', async () => {
    await expect(select({ publicIp: '10.0.0.7', publicIpv6: 'fd00::5' }, [4, 6])).rejects.toThrow(
      '--public-ip is on eth1 and --public-ipv6 on eth0: both must be on one interface',
    );
    const selected = await select({ publicIp: '192.168.1.5', publicIpv6: 'fd00::5' }, [4, 6]);
    expect(selected.name).toBe('eth0');
  });
});

describe('Go’s expressions', () => {
  test.each([
    ['(?i)^ETH', 'eth0', true],
    ['^eth[[:digit:]]+$', 'eth12', true],
    ['^eth[[:digit:]]+$', 'eth[', false],
    ['^[[:alpha:]_]+$', 'wan_a', true],
    ['\\Aeth0\\z', 'eth0', true],
    ['\\Aeth0\\z', 'xeth0', false],
    ['(?P<card>eth)0', 'eth0', true],
    ['wlan\\-a', 'wlan-a', true],
    ['10\\.0\\.0\\.', '10.0.0.7', true],
    ['10\\.0\\.0\\.', '10a0.0.7', false],
    ['eth\\d{1,2}', 'eth7', true],
    ['192\\:168', '192:168', true],
  ])('%s on %s: %s', (pattern, text, expected) => {
    expect(parseInterfacePattern(pattern).test(text)).toBe(expected);
  });

  test.each(['[[:nothing:]]', '\\Qeth0\\E', '\\pL', '(', 'eth**', '[z-a]'])(
    '%s is refused, not taken for another',
    (pattern) => {
      expect(() => parseInterfacePattern(pattern)).toThrow(/is no valid regular expression/);
    },
  );
});
