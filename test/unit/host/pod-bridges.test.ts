import { expect, test } from 'vitest';
import type { HostInterface } from '../../../src/host/interfaces.js';
import { strayPodAddresses } from '../../../src/host/pod-bridges.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

const device = (name: string, ...addresses: readonly string[]): HostInterface => ({
  name,
  index: 1,
  mtu: 1500,
  up: true,
  carrier: true,
  kind: undefined,
  addresses: addresses.map((text) => {
    const [address = '', length = ''] = text.split('/');
    return {
      address: Address.parse(address),
      prefixLength: Number(length),
      scope: 'global',
      deprecated: false,
      dynamic: false,
      temporary: false,
      tentative: false,
      duplicate: false,
    };
  }),
});

const NETWORKS = [Prefix.parse('10.42.0.0/16'), Prefix.parse('fd42::/48')];
const SUBNETS = [Prefix.parse('10.42.7.0/24'), Prefix.parse('fd42:0:0:7::/64')];
const strays = (...devices: readonly HostInterface[]): string[] =>
  strayPodAddresses(devices, NETWORKS, SUBNETS, (name) => name === 'flannel0');

test('addresses of this host’s own subnets, of other networks, and of our device are right', () => {
  expect(
    strays(
      device('cni0', '10.42.7.1/24', 'fd42:0:0:7::1/64'),
      device('docker0', '172.17.0.1/16'),
      device('eth0', '192.168.1.5/24', 'fe80::1/64'),
      device('flannel0', '10.42.9.0/32'),
    ),
  ).toEqual([]);
});

test('an address of another subnet of the pod network is named, with its device and the way out', () => {
  expect(strays(device('cni0', '10.42.7.1/24', '10.42.9.1/24'), device('docker0', 'fd42:0:0:9::1/64'))).toEqual([
    "cni0 has 10.42.9.1/24, which lies in the pod network 10.42.0.0/16 but not in this host's 10.42.7.0/24 fd42:0:0:7::/64: its pods cannot be reached from other hosts; remove it (ip link del cni0) and start its pods again",
    expect.stringMatching(/^docker0 has fd42:0:0:9::1\/64, which lies in the pod network fd42::\/48 but not/),
  ]);
});
