import { describe, expect, test } from 'vitest';
import { addSubnets, bringUp, listTunDevices, removeSubnets } from '../../../src/host/overlay-link.js';
import { Prefix } from '../../../src/net/prefix.js';
import { commandFailed, fakeIp } from './fake-ip.js';

const OPTIONS = {
  device: 'pwtest-none0',
  mtu: 1472,
  subnets: [Prefix.parse('10.42.7.0/24')],
  networks: [Prefix.parse('10.42.0.0/16')],
};

describe('bringUp', () => {
  test('the commands and their order: addresses before up, the route last', async () => {
    const { runner, calls } = fakeIp({});
    await bringUp(runner, OPTIONS);
    expect(calls).toEqual([
      'link set dev pwtest-none0 mtu 1472',
      'address add 10.42.7.0/32 dev pwtest-none0',
      'link set dev pwtest-none0 up',
      'route add 10.42.0.0/16 dev pwtest-none0 proto 111 scope global',
    ]);
  });

  test('dual stack: no address of the kernel’s own making, a /128, an IPv6 route', async () => {
    const { runner, calls } = fakeIp({});
    await bringUp(runner, {
      ...OPTIONS,
      txQueueLength: 2000,
      subnets: [...OPTIONS.subnets, Prefix.parse('fd00:42:7::/64')],
      networks: [...OPTIONS.networks, Prefix.parse('fd00:42::/48')],
    });
    expect(calls).toEqual([
      'link set dev pwtest-none0 addrgenmode none',
      'link set dev pwtest-none0 mtu 1472 txqueuelen 2000',
      'address add 10.42.7.0/32 dev pwtest-none0',
      'address add fd00:42:7::/128 dev pwtest-none0',
      'link set dev pwtest-none0 up',
      'route add 10.42.0.0/16 dev pwtest-none0 proto 111 scope global',
      'route add fd00:42::/48 dev pwtest-none0 proto 111',
    ]);
  });

  test('a route that appeared meanwhile is one clear line', async () => {
    const { runner } = fakeIp({
      '-batch -': commandFailed('ip route add 10.42.0.0/16 dev flannel0: RTNETLINK answers: File exists'),
    });
    await expect(bringUp(runner, OPTIONS)).rejects.toMatchObject({
      code: 'INTERFACE',
      message: expect.stringMatching(
        /^another route takes the pod network 10\.42\.0\.0\/16 .*choose another Network$/,
      ) as string,
    });
  });

  test('any other failure stays as it is', async () => {
    const { runner } = fakeIp({ '-batch -': commandFailed('ip link set dev x up: No such device') });
    await expect(bringUp(runner, OPTIONS)).rejects.toMatchObject({ code: 'COMMAND_FAILED' });
  });
});

describe('addresses', () => {
  test('adding twice is fine, and so is removing what is gone', async () => {
    const { runner, calls } = fakeIp({
      'address del 10.42.7.0/32': commandFailed('ip address del: RTNETLINK answers: Cannot assign requested address'),
      'address del 10.42.8.0/32': '',
    });
    await addSubnets(runner, 'flannel0', [Prefix.parse('10.42.9.0/24')]);
    await removeSubnets(runner, 'flannel0', [Prefix.parse('10.42.7.0/24'), Prefix.parse('10.42.8.0/24')]);
    expect(calls).toEqual([
      'address replace 10.42.9.0/32 dev flannel0',
      'address del 10.42.7.0/32 dev flannel0',
      'address del 10.42.8.0/32 dev flannel0',
    ]);
  });

  test('a device that is gone is an error', async () => {
    const { runner } = fakeIp({ 'address del': commandFailed('ip address del: Cannot find device "flannel0"') });
    await expect(removeSubnets(runner, 'flannel0', OPTIONS.subnets)).rejects.toThrow(/Cannot find device/);
  });
});

test('TUN devices by name', async () => {
  const { runner } = fakeIp({ '-j link show type tun': [{ ifname: 'flannel0' }, { ifname: 'tap3' }, {}] });
  expect([...(await listTunDevices(runner))]).toEqual(['flannel0', 'tap3']);
});
