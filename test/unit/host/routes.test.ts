import { describe, expect, test } from 'vitest';
import { describeRoute, listRoutes, removeRoutes, reviewRoutes, type KernelRoute } from '../../../src/host/routes.js';
import { Prefix } from '../../../src/net/prefix.js';
import { fakeIp } from './fake-ip.js';

const NETWORK = Prefix.parse('10.42.0.0/16');
const OWN = Prefix.parse('10.42.7.0/24');

function route(destination: string, device: string, extra: Partial<KernelRoute> = {}): KernelRoute {
  return {
    destination: Prefix.parse(destination),
    device,
    gateway: undefined,
    metric: 0,
    protocol: '3',
    type: 'unicast',
    ...extra,
  };
}

const OURS = { protocol: '111' };

describe('reading the table', () => {
  test('every form that iproute2 prints', async () => {
    const { runner } = fakeIp({
      '-j -N -4 route show table main': [
        { dst: 'default', gateway: '10.0.0.1', dev: 'eth0', protocol: '16', metric: 100 },
        { dst: '10.42.0.0/16', dev: 'flannel0', protocol: '111' },
        {
          dst: '10.5.0.0/16',
          nexthops: [
            { gateway: '10.9.0.4', dev: 'd0' },
            { gateway: '10.9.0.5', dev: 'd1' },
          ],
        },
        { type: 'blackhole', dst: '10.6.0.0/16' },
        { dst: '10.7.7.7', dev: 'eth0', scope: '253' },
        { dst: 'garbage', dev: 'eth0' },
      ],
    });
    const shown = (await listRoutes(runner, 4)).map((entry) => `${describeRoute(entry)} proto ${entry.protocol}`);
    expect(shown).toEqual([
      'route 0.0.0.0/0 via 10.0.0.1 dev eth0 metric 100 proto 16',
      'route 10.42.0.0/16 dev flannel0 proto 111',
      'route 10.5.0.0/16 via 10.9.0.4 dev d0 proto 3',
      'blackhole route 10.6.0.0/16 proto 3',
      'route 10.7.7.7/32 dev eth0 proto 3',
    ]);
  });
});

describe('review', () => {
  const review = (routes: readonly KernelRoute[], tun: readonly string[] = []) => {
    const { stale, diverting } = reviewRoutes(routes, NETWORK, [OWN], new Set(tun));
    return { stale: stale.map(describeRoute), diverting: diverting.map(describeRoute) };
  };

  test('routes outside the network, and the bridge of the own subnet, are nobody’s business', () => {
    expect(
      review([
        route('0.0.0.0/0', 'eth0'),
        route('10.0.0.0/8', 'eth0'),
        route('10.43.0.0/24', 'eth0', OURS),
        route('10.42.7.0/24', 'cni0'),
        route('10.42.7.5/32', 'veth1'),
      ]),
    ).toEqual({ stale: [], diverting: [] });
  });

  test('ours on a device that no process holds are stale, also one for the whole network', () => {
    expect(
      review([route('10.42.0.0/16', 'eth1', OURS), route('10.42.3.0/24', 'eth0', { ...OURS, gateway: '10.0.0.3' })]),
    ).toEqual({
      stale: ['route 10.42.0.0/16 dev eth1', 'route 10.42.3.0/24 via 10.0.0.3 dev eth0'],
      diverting: [],
    });
  });

  test('foreign ones inside the network divert packets, and are only named', () => {
    expect(
      review([
        route('10.42.3.0/24', 'flannel.1', { gateway: '10.42.3.0' }),
        route('10.42.4.0/24', '', { type: 'blackhole' }),
      ]),
    ).toEqual({
      stale: [],
      diverting: ['route 10.42.3.0/24 via 10.42.3.0 dev flannel.1', 'blackhole route 10.42.4.0/24'],
    });
  });

  test('a foreign route for the whole network at a worse metric does no harm', () => {
    expect(review([route('10.42.0.0/16', 'eth0', { metric: 50 })])).toEqual({ stale: [], diverting: [] });
  });

  test('a foreign route for the whole network collides, in one line with the way out', () => {
    expect(() => review([route('10.42.0.0/16', 'eth0', { gateway: '10.0.0.9' })])).toThrow(
      'route 10.42.0.0/16 via 10.0.0.9 dev eth0 already takes the pod network: remove it (ip route del 10.42.0.0/16 dev eth0) or choose another Network',
    );
  });

  test("flanneld's own route, while it runs: it is to be stopped, not robbed of its route", () => {
    expect(() => review([route('10.42.0.0/16', 'flannel0')], ['flannel0'])).toThrow(
      'route 10.42.0.0/16 dev flannel0 belongs to a running program, flanneld perhaps: stop that first, or choose another Network',
    );
  });

  test("another live agent's route collides, and is not taken for a stale one", () => {
    expect(() => review([route('10.42.0.0/16', 'flannel0', OURS)], ['flannel0'])).toThrow(
      /another podwire agent already routes 10\.42\.0\.0\/16 to flannel0/,
    );
  });

  test('IPv6: the default metric is 1024, smaller ones win over ours', () => {
    const network = Prefix.parse('fd00:42::/48');
    const foreign = (metric: number) => [route('fd00:42::/48', 'eth0', { metric })];
    expect(() => reviewRoutes(foreign(1024), network, [], new Set())).toThrow(/already takes the pod network/);
    expect(reviewRoutes(foreign(512), network, [], new Set()).diverting).toHaveLength(1);
    expect(reviewRoutes(foreign(2048), network, [], new Set()).diverting).toHaveLength(0);
  });
});

test('removal names protocol, device and metric, so that a foreign twin stays', async () => {
  const { runner, calls } = fakeIp({});
  await removeRoutes(runner, [
    route('10.42.3.0/24', 'eth0', { ...OURS, metric: 20 }),
    route('10.42.4.0/24', '', { ...OURS, type: 'blackhole' }),
  ]);
  expect(calls).toEqual([
    'route del 10.42.3.0/24 dev eth0 metric 20 proto 111',
    'route del blackhole 10.42.4.0/24 proto 111',
  ]);
});
