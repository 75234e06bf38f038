import { describe, expect, it } from 'vitest';
import { allocate, collides, fits, type HeldSubnets } from '../../../src/control/allocator.js';
import type { AcquireRequest, Lease } from '../../../src/control/lease.js';
import { leaseKey, parseLeaseKey } from '../../../src/control/lease-key.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import { Prefix } from '../../../src/net/prefix.js';
import { attributesOf, leaseOf } from '../../support/leases.js';

const wide = parseNetworkConfig('{"Network":"10.42.0.0/16"}');
const small = parseNetworkConfig('{"Network":"10.42.0.0/24"}');
const dual = parseNetworkConfig('{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:42::/48"}');
const soon = new Date(0);

const held = (subnet: string, publicIp: string, more: Partial<Lease> = {}, expired = false): HeldSubnets => {
  const lease = { ...leaseOf(subnet, publicIp), expiresAt: soon, ...more };
  return { ...lease, lease, expired };
};
const reserved = (subnet: string, publicIp: string): HeldSubnets => {
  const lease = leaseOf(subnet, publicIp);
  return { ...lease, lease, expired: false };
};
const request = (publicIp: string, more: Partial<AcquireRequest> = {}): AcquireRequest => ({
  attributes: attributesOf(publicIp),
  ...more,
});
const run = (
  config: typeof wide,
  entries: readonly HeldSubnets[],
  wanted: AcquireRequest,
  random: () => number = () => 0,
) => allocate({ config, held: entries, request: wanted, random });

describe('our own lease', () => {
  it('is the first by key of those with our PublicIP', () => {
    const plan = run(wide, [held('10.42.9.0/24', '1.1.1.1'), held('10.42.10.0/24', '1.1.1.1')], request('1.1.1.1'));
    // Byte order: "10.42.10.0-24" < "10.42.9.0-24".
    expect(plan).toMatchObject({ from: 'own', ownExpired: false });
    expect(leaseKey(plan.own!)).toBe('10.42.10.0-24');
  });

  it('is the one we had last, and before all others the subnet that pods live in', () => {
    const entries = [held('10.42.10.0/24', '1.1.1.1'), held('10.42.9.0/24', '1.1.1.1')];
    const previous = (subnet: string) => ({ previous: { subnet: Prefix.parse(subnet) } });
    expect(leaseKey(run(wide, entries, request('1.1.1.1', previous('10.42.9.0/24'))).own!)).toBe('10.42.9.0-24');
    const lost = request('1.1.1.1', previous('10.42.77.0/24'));
    expect(leaseKey(run(wide, entries, lost).own!)).toBe('10.42.10.0-24');
    const served = run(wide, entries, { ...lost, isServing: true });
    expect([served.from, leaseKey(served.subnets)]).toEqual(['previous', '10.42.77.0-24']);
    const stolen = [...entries, held('10.42.77.0/24', '2.2.2.2')];
    expect(leaseKey(run(wide, stolen, { ...lost, isServing: true }).own!)).toBe('10.42.10.0-24');
  });

  it('that does not fit is discarded for one that does, and reservations are left alone', () => {
    const plan = run(wide, [held('10.99.1.0/24', '1.1.1.1'), reserved('10.98.1.0/24', '1.1.1.1')], request('1.1.1.1'));
    expect(plan.from).toBe('free');
    expect(plan.discard.map(leaseKey)).toEqual(['10.99.1.0-24']);
  });

  it('goes by owner where both sides have one', () => {
    const entries = [held('10.42.5.0/24', '1.1.1.1', { owner: 'a' }), held('10.42.6.0/24', '2.2.2.2', { owner: 'b' })];
    expect(leaseKey(run(wide, entries, request('1.1.1.1', { owner: 'b' })).own!)).toBe('10.42.6.0-24');
    const stranger = run(wide, entries, request('1.1.1.1', { owner: 'c' }));
    expect(stranger.from).toBe('free');
    expect(stranger.conflicts.map(leaseKey)).toEqual(['10.42.5.0-24']);
    expect(run(wide, entries, request('1.1.1.1')).from).toBe('own');
  });

  it('may be had back after it ran out, by a reinstalled host too, unless somebody else lives in it', () => {
    const mine = held('10.42.5.0/24', '1.1.1.1', { owner: 'a' }, true);
    expect(run(wide, [mine], request('1.1.1.1', { owner: 'new' }))).toMatchObject({ from: 'own', ownExpired: true });
    const intruder = held('10.42.5.0/25', '3.3.3.3');
    expect(run(wide, [mine, intruder], request('1.1.1.1', { owner: 'a' })).from).not.toBe('own');
  });

  it('of an IPv6-only host is not everybody with PublicIP 0.0.0.0', () => {
    const entry = held('10.42.5.0/24', '0.0.0.0');
    expect(run(wide, [entry], request('1.1.1.1')).from).toBe('free');
  });
});

describe('a previous subnet', () => {
  it('is taken when free, one family at a time', () => {
    const previous = { subnet: Prefix.parse('10.42.7.0/24'), subnet6: Prefix.parse('fd00:42:0:7::/64') };
    const both = run(dual, [], request('1.1.1.1', { previous }));
    expect(leaseKey(both.subnets)).toBe('10.42.7.0-24&fd00:42:0:7::-64');
    expect(both.from).toBe('previous');
    const taken = { ...parseLeaseKey('10.42.8.0-24&fd00:42:0:7::-64'), expired: false };
    expect(leaseKey(run(dual, [taken], request('1.1.1.1', { previous })).subnets)).toBe(
      '10.42.7.0-24&fd00:42:0:1::-64',
    );
  });

  it('of an expired lease evicts it', () => {
    const entry = held('10.42.7.0/24', '2.2.2.2', {}, true);
    const plan = run(wide, [entry], request('1.1.1.1', { previous: { subnet: Prefix.parse('10.42.7.0/24') } }));
    expect(plan.from).toBe('expired');
    expect(plan.evict.map(leaseKey)).toEqual(['10.42.7.0-24']);
  });
});

describe('a free subnet', () => {
  it('is drawn from the first hundred only', () => {
    expect(leaseKey(run(wide, [], request('1.1.1.1'), () => 0).subnets)).toBe('10.42.1.0-24');
    expect(leaseKey(run(wide, [], request('1.1.1.1'), () => 0.999999).subnets)).toBe('10.42.100.0-24');
    expect(leaseKey(run(wide, [], request('1.1.1.1'), () => 1).subnets)).toBe('10.42.100.0-24');
  });

  it('avoids what is held, whatever its length, readable or not', () => {
    const entries: HeldSubnets[] = [
      held('10.42.0.0/20', '2.2.2.2'),
      held('10.42.16.128/25', '3.3.3.3'),
      { ...parseLeaseKey('10.42.17.0-24'), expired: false },
    ];
    expect(leaseKey(run(wide, entries, request('1.1.1.1')).subnets)).toBe('10.42.18.0-24');
  });

  it('prefers never used to expired, and the longest expired among those', () => {
    const at = (ms: number) => ({ expiresAt: new Date(ms) });
    const entries = [
      held('10.42.0.64/26', '2.2.2.2', at(3000), true),
      held('10.42.0.128/26', '3.3.3.3', at(1000), true),
      held('10.42.0.192/26', '4.4.4.4', at(2000), true),
    ];
    expect(leaseKey(run(small, entries.slice(0, 2), request('1.1.1.1')).subnets)).toBe('10.42.0.192-26');
    const plan = run(small, entries, request('1.1.1.1'));
    expect(leaseKey(plan.subnets)).toBe('10.42.0.128-26');
    expect(plan.evict).toHaveLength(1);
  });

  it('reaches the very last address of the family', () => {
    const top = parseNetworkConfig('{"Network":"255.255.255.0/24","SubnetMin":"255.255.255.192"}');
    expect(leaseKey(run(top, [], request('1.1.1.1')).subnets)).toBe('255.255.255.192-26');
    const full = [{ ...parseLeaseKey('255.255.255.192-26'), expired: false }];
    expect(() => run(top, full, request('1.1.1.1'))).toThrow('out of subnets');
  });

  it.each([
    ['all held', small, ['10.42.0.64-26', '10.42.0.128-26', '10.42.0.192-26']],
    [
      'min behind max',
      parseNetworkConfig('{"Network":"10.42.0.0/16","SubnetMin":"10.42.9.0","SubnetMax":"10.42.2.0"}'),
      [],
    ],
  ])('does not exist: %s', (_why, config, keys) => {
    const entries = keys.map((key) => ({ ...parseLeaseKey(key), expired: false }));
    expect(() => run(config, entries, request('1.1.1.1'))).toThrow(
      expect.objectContaining({ code: 'OUT_OF_SUBNETS', message: expect.stringContaining(`${keys.length} leases`) }),
    );
  });
});

describe('helpers', () => {
  it('fits wants every family, and only those, at the right length and place', () => {
    expect(fits(parseLeaseKey('10.42.1.0-24'), wide)).toBe(true);
    expect(fits(parseLeaseKey('10.42.0.0-24'), wide)).toBe(false);
    expect(fits(parseLeaseKey('10.42.1.0-25'), wide)).toBe(false);
    expect(fits(parseLeaseKey('10.42.1.0-24&fd00:42:0:1::-64'), wide)).toBe(false);
    expect(fits(parseLeaseKey('10.42.1.0-24'), dual)).toBe(false);
    expect(fits(parseLeaseKey('10.42.1.0-24&fd00:42:0:1::-64'), dual)).toBe(true);
    expect(fits(parseLeaseKey('10.42.1.0-24&fd00:42::-64'), dual)).toBe(false);
  });

  it('collides sees live overlaps of others only', () => {
    const mine = leaseOf('10.42.1.0/24', '1.1.1.1');
    expect(collides(mine, [held('10.42.1.0/24', '1.1.1.1'), held('10.42.1.0/25', '1.1.1.1')])).toBe(false);
    expect(collides(mine, [held('10.42.1.0/25', '2.2.2.2', {}, true)])).toBe(false);
    expect(collides(mine, [held('10.42.1.0/25', '2.2.2.2')])).toBe(true);
    expect(collides(mine, [{ ...parseLeaseKey('10.42.1.0-25'), expired: false }])).toBe(true);
  });

  it('a lease must live a second', () => {
    for (const ttlMs of [0, 999, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => run(wide, [], request('1.1.1.1', { ttlMs }))).toThrow('1000 ms');
    }
  });
});
