import { describe, expect, it } from 'vitest';
import { DesiredRoutes, type RouteDifference } from '../../../src/control/desired-routes.js';
import { parseLeaseKey } from '../../../src/control/lease-key.js';
import type { Lease } from '../../../src/control/lease.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import { Address } from '../../../src/net/prefix.js';
import { attributesOf, leaseOf } from '../../support/leases.js';

const own = leaseOf('10.42.1.0/24', '192.0.2.1');
const ownAddresses = [Address.parse('192.0.2.1'), Address.parse('192.0.2.101')];
const single = parseNetworkConfig('{"Network":"10.42.0.0/16"}');
const dual = parseNetworkConfig('{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48"}');
const make = (config = single) => new DesiredRoutes({ config, own, ownAddresses });
const named = (key: string, publicIp: string, publicIpv6?: string): Lease => ({
  ...parseLeaseKey(key),
  attributes: attributesOf(publicIp, publicIpv6 === undefined ? {} : { publicIpv6: Address.parse(publicIpv6) }),
});
const summary = ({ added, removed, refused }: RouteDifference) => ({
  added: added.map(({ route }) => `${route.prefix.toString()} via ${route.via.toString()}`),
  removed: removed.map(({ prefix }) => prefix.toString()),
  refused: refused.map(({ reason }) => reason),
});
const nothing = { added: [], removed: [], refused: [] };

describe('refused leases', () => {
  it.each([
    ['10.42.5.0-24', '0.0.0.0', 'unspecifiedAddress'],
    ['10.42.5.0-24', '127.0.0.9', 'loopbackAddress'],
    ['10.42.5.0-24', '239.1.2.3', 'multicastAddress'],
    ['10.42.5.0-24', '255.255.255.255', 'broadcastAddress'],
    ['10.42.5.0-24', '10.42.9.9', 'addressInsideNetwork'],
    ['10.42.5.0-24', '192.0.2.1', 'ownAddress'],
    ['10.42.5.0-24', '192.0.2.101', 'ownAddress'],
    ['10.42.5.0-24&fd00:42:0:5::-64', '192.0.2.5', 'wrongFamily'],
    ['10.43.5.0-24', '192.0.2.5', 'outsideNetwork'],
    ['10.0.0.0-8', '192.0.2.5', 'outsideNetwork'],
    ['10.42.1.128-25', '192.0.2.5', 'overlap'],
    ['10.42.0.0-20', '192.0.2.5', 'overlap'],
  ])('%s of %s: %s', (key, publicIp, reason) => {
    const routes = make();
    const step = routes.put(named(key, publicIp));
    expect(summary(step)).toEqual({ ...nothing, refused: [reason] });
    expect(step.refused[0]?.detail).toContain(key);
    expect(routes.routes.size).toBe(0);
    expect([...routes.refused.keys()]).toEqual([key]);
    expect(routes.refusals).toEqual({ [reason]: 1 });
    // The same news again is no news.
    expect(summary(routes.put(named(key, publicIp)))).toEqual(nothing);
    expect(routes.refusals).toEqual({ [reason]: 1 });
    // And everything else goes on.
    expect(summary(routes.put(leaseOf('10.42.200.0/24', '192.0.2.200'))).added).toHaveLength(1);
    routes.remove(named(key, publicIp));
    expect(routes.refused.size).toBe(0);
  });

  it.each([
    ['10.42.5.0-24&fd00:42:0:5::-64', '192.0.2.5', 'fd00:42:0:9::1', 'addressInsideNetwork'],
    ['10.42.5.0-24&fd00:42:0:5::-64', '192.0.2.5', '::', 'unspecifiedAddress'],
    ['10.42.5.0-24&fd00:43:0:5::-64', '192.0.2.5', 'fd99::1', 'outsideNetwork'],
    ['0.0.0.0-0&fd00:42:0:5::-64', '0.0.0.0', undefined, 'unspecifiedAddress'],
  ])('in a dual-stack network: %s of %s and %s: %s', (key, publicIp, publicIpv6, reason) => {
    expect(summary(make(dual).put(named(key, publicIp, publicIpv6))).refused).toEqual([reason]);
  });

  it('withdraw the route they had', () => {
    const routes = make();
    routes.put(leaseOf('10.42.5.0/24', '192.0.2.5'));
    expect(summary(routes.put(leaseOf('10.42.5.0/24', '127.0.0.1')))).toEqual({
      added: [],
      removed: ['10.42.5.0/24'],
      refused: ['loopbackAddress'],
    });
    expect(summary(routes.put(leaseOf('10.42.5.0/24', '192.0.2.6'))).added).toEqual(['10.42.5.0/24 via 192.0.2.6']);
    expect(routes.refused.size).toBe(0);
  });
});

describe('overlap', () => {
  it('leaves the one already followed, and follows the other when that goes', () => {
    const routes = make();
    routes.put(leaseOf('10.42.16.0/20', '192.0.2.5'));
    expect(summary(routes.put(leaseOf('10.42.17.0/24', '192.0.2.6'))).refused).toEqual(['overlap']);
    expect(summary(routes.put(leaseOf('10.42.16.0/20', '192.0.2.55')))).toEqual({
      ...nothing,
      added: ['10.42.16.0/20 via 192.0.2.55'],
    });
    expect(summary(routes.remove(leaseOf('10.42.16.0/20', '192.0.2.55')))).toEqual({
      added: ['10.42.17.0/24 via 192.0.2.6'],
      removed: ['10.42.16.0/20'],
      refused: [],
    });
    expect([...routes.routes.keys()]).toEqual(['10.42.17.0/24']);
  });

  it('on a first snapshot is decided alike on every host', () => {
    const leases = [leaseOf('10.42.5.0/25', '192.0.2.5'), leaseOf('10.42.5.0/24', '192.0.2.6')];
    for (const order of [leases, leases.toReversed()]) {
      const routes = make();
      routes.replace(order);
      expect([...routes.routes.keys()]).toEqual(['10.42.5.0/24']);
    }
  });
});

describe('differences', () => {
  it('of a snapshot are net', () => {
    const routes = make();
    const a = leaseOf('10.42.5.0/24', '192.0.2.5');
    const b = leaseOf('10.42.6.0/24', '192.0.2.6');
    expect(summary(routes.replace([b, a])).added).toEqual(['10.42.5.0/24 via 192.0.2.5', '10.42.6.0/24 via 192.0.2.6']);
    expect(summary(routes.replace([a, leaseOf('10.42.7.0/24', '192.0.2.7')]))).toEqual({
      added: ['10.42.7.0/24 via 192.0.2.7'],
      removed: ['10.42.6.0/24'],
      refused: [],
    });
    expect([...routes.leases.keys()].sort()).toEqual(['10.42.5.0-24', '10.42.7.0-24']);
  });

  it('of a renewal are none, of new attributes one with what was before', () => {
    const routes = make();
    const lease = leaseOf('10.42.5.0/24', '192.0.2.5', { expiresAt: new Date(1000) });
    routes.put(lease);
    const renewed = { ...lease, expiresAt: new Date(2000) };
    expect(summary(routes.put(renewed))).toEqual(nothing);
    expect(routes.routes.get('10.42.5.0/24')?.lease).toBe(renewed);
    const changed = routes.put({ ...lease, attributes: attributesOf('192.0.2.5', { backendData: { VtepMAC: 'x' } }) });
    expect(changed.added).toHaveLength(1);
    expect(changed.added[0]?.before?.lease).toBe(renewed);
  });

  it('of something unknown are none', () => {
    expect(summary(make().remove(leaseOf('10.42.5.0/24', '192.0.2.5')))).toEqual(nothing);
  });

  it('follow our own lease and addresses', () => {
    const routes = make();
    routes.put(leaseOf('10.42.2.0/24', '192.0.2.2'));
    routes.put(leaseOf('10.42.1.0/24', '192.0.2.66'));
    const moved = routes.setContext({ config: single, own: leaseOf('10.42.2.0/24', '192.0.2.1'), ownAddresses });
    expect(summary(moved)).toEqual({
      added: ['10.42.1.0/24 via 192.0.2.66'],
      removed: ['10.42.2.0/24'],
      refused: ['overlap'],
    });
  });

  it('of a dual-stack lease are two routes, each over its own underlay', () => {
    const routes = make(dual);
    expect(summary(routes.put(named('10.42.5.0-24&fd00:42:0:5::-64', '192.0.2.5', 'fd99::5'))).added).toEqual([
      '10.42.5.0/24 via 192.0.2.5',
      'fd00:42:0:5::/64 via fd99::5',
    ]);
    expect(summary(routes.put(named('10.42.6.0-24&fd00:42:0:6::-64', '192.0.2.6'))).added).toContain(
      'fd00:42:0:6::/64 via 192.0.2.6',
    );
    expect(summary(routes.put(named('10.42.7.0-24', '192.0.2.7'))).added).toHaveLength(1);
    expect(summary(routes.put(named('0.0.0.0-0&fd00:42:0:8::-64', '0.0.0.0', 'fd99::8'))).added).toEqual([
      'fd00:42:0:8::/64 via fd99::8',
    ]);
  });
});
