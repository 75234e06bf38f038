import { expect, test } from 'vitest';
import { configuredMtuReader } from '../../../src/host/configured-mtu.js';
import type { RunOptions } from '../../../src/host/exec.js';
import { Address } from '../../../src/net/prefix.js';
import { commandFailed, fakeIp } from './fake-ip.js';

const LINKS = {
  '-j link show': [
    { ifname: 'eth0', mtu: 1500 },
    { ifname: 'eth1', mtu: 1400 },
  ],
};

/** `ip route get fibmatch` answers by the address asked for; an Error fails the whole batch, as without -force. */
const ROUTES: Readonly<Record<string, unknown>> = {
  '10.0.0.1': { dst: '10.0.0.0/24', dev: 'eth0' },
  '10.0.0.2': { dst: '10.0.0.0/24', dev: 'eth0', metrics: [{ mtu: 1300 }] },
  '10.0.0.3': { dst: '10.3.0.0/16', nexthops: [{ dev: 'eth0' }, { dev: 'eth1' }] },
  '10.0.0.4': { type: 'local', dst: '10.0.0.4', dev: 'eth0' },
  '10.0.0.5': commandFailed('RTNETLINK answers: Network is unreachable'),
  '10.0.0.6': { dst: '10.0.0.0/24', dev: 'gone0' },
};

function host() {
  const answer = (address: string): string => {
    const route = ROUTES[address];
    if (route instanceof Error) throw route;
    return JSON.stringify([route]);
  };
  return fakeIp({
    ...LINKS,
    '-j -batch -': ({ input = '' }: RunOptions) =>
      input
        .trimEnd()
        .split('\n')
        .map((line) => answer(line.split(' ').at(-1) ?? ''))
        .join('\n'),
    ...Object.fromEntries(
      Object.keys(ROUTES).map((address) => [`-j -4 route get fibmatch ${address}`, () => answer(address)]),
    ),
  });
}

test.each([
  ['link MTU of the route’s device', '10.0.0.1', 1500],
  ['a configured route MTU wins', '10.0.0.2', 1300],
  ['multipath: the smallest link', '10.0.0.3', 1400],
  ['an address of this host: none', '10.0.0.4', undefined],
  ['no route: none', '10.0.0.5', undefined],
  ['a device that is gone: none', '10.0.0.6', undefined],
])('%s', async (_, address, mtu) => {
  expect(await configuredMtuReader(host().runner)(Address.parse(address))).toBe(mtu);
});

test('questions that come together share one process, each with its own answer', async () => {
  const { runner, calls } = host();
  const read = configuredMtuReader(runner);
  const addresses = Array.from({ length: 200 }, (_, i) => `10.0.0.${(i % 3) + 1}`);
  const answers = await Promise.all(addresses.map((text) => read(Address.parse(text))));
  expect(answers).toEqual(addresses.map((text) => ({ '10.0.0.1': 1500, '10.0.0.2': 1300, '10.0.0.3': 1400 })[text]));
  expect(calls.filter((call) => call.startsWith('-j'))).toEqual(['-j link show']);
});

test('one address without a route does not cost the others their answer', async () => {
  const read = configuredMtuReader(host().runner);
  const answers = await Promise.all(['10.0.0.2', '10.0.0.5', '10.0.0.1'].map((text) => read(Address.parse(text))));
  expect(answers).toEqual([1300, undefined, 1500]);
});

test('link MTUs are read again after a while, so that a change is seen', async () => {
  let now = 0;
  let mtu = 1500;
  const { runner } = fakeIp({
    '-j -batch -': '[{"dst":"default","dev":"eth0"}]',
    '-j link show': () => [{ ifname: 'eth0', mtu }],
  });
  const read = configuredMtuReader(runner, () => now);
  expect(await read(Address.parse('10.0.0.1'))).toBe(1500);
  mtu = 9000;
  expect(await read(Address.parse('10.0.0.1'))).toBe(1500);
  now = 6_000;
  expect(await read(Address.parse('10.0.0.1'))).toBe(9000);
});
