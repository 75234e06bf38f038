/** Allocation, routes and the feed against slow, obvious models. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { allocate, type HeldSubnets } from '../../../src/control/allocator.js';
import { DesiredRoutes, type RouteDifference } from '../../../src/control/desired-routes.js';
import { LeaseFeed } from '../../../src/control/lease-feed.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import { overlap, type Lease } from '../../../src/control/lease.js';
import { ipv4Pool, parseNetworkConfig } from '../../../src/control/network-config.js';
import { DisjointPrefixes } from '../../../src/control/ranges.js';
import { PodwireError } from '../../../src/errors.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { attributesOf, leaseOf } from '../../support/leases.js';

/** Prefixes inside 10.42.0.0/22 from /23 to /28, so that they meet. */
const near = fc
  .tuple(fc.nat(1023), fc.integer({ min: 23, max: 28 }))
  .map(([offset, length]) => Prefix.of(Address.parse('10.42.0.0').offset(BigInt(offset)), length));
const host = fc.integer({ min: 1, max: 6 }).map((n) => `192.0.2.${n}`);

describe('allocation', () => {
  const entry = fc
    .tuple(near, host, fc.boolean(), fc.boolean(), fc.nat(100))
    .map(([subnet, publicIp, expired, isReadable, end]): HeldSubnets => {
      const lease: Lease = { subnet, attributes: attributesOf(publicIp), expiresAt: new Date(end) };
      return { subnet, ...(isReadable && { lease }), expired: expired && isReadable };
    });

  it('gives what is free, or ours, and gives up only when nothing is', () => {
    const config = parseNetworkConfig('{"Network":"10.42.0.0/22","SubnetLen":26}');
    const pool = ipv4Pool(config)!;
    const all = Array.from({ length: 15 }, (_, i) => Prefix.of(pool.min.offset(BigInt(i * 64)), 26));
    fc.assert(
      fc.property(
        fc.array(entry, { maxLength: 30 }),
        host,
        fc.option(near),
        fc.double({ min: 0, max: 1, noNaN: true }),
        (held, publicIp, previous, roll) => {
          const live = held.filter((each) => !each.expired && each.lease?.attributes.publicIp.toString() !== publicIp);
          const free = all.filter((subnet) => !live.some((each) => each.subnet.overlaps(subnet)));
          const request = { attributes: attributesOf(publicIp), ...(previous && { previous: { subnet: previous } }) };
          try {
            const plan = allocate({ config, held, request, random: () => roll });
            if (plan.from === 'own') {
              expect(plan.own?.attributes.publicIp.toString()).toBe(publicIp);
              expect(all.some((subnet) => subnet.equals(plan.subnets.subnet))).toBe(true);
              return;
            }
            expect(free.map(String)).toContain(plan.subnets.subnet.toString());
            const inTheWay = held.filter((each) => each.expired && overlap(each, plan.subnets));
            for (const gone of plan.evict) expect(inTheWay.some((each) => each.lease === gone)).toBe(true);
            const others = inTheWay.filter((each) => each.lease?.attributes.publicIp.toString() !== publicIp);
            expect(plan.evict).toHaveLength(others.length);
            if (previous && free.some((subnet) => subnet.equals(previous))) {
              const ours = held.some((each) => each.lease?.attributes.publicIp.toString() === publicIp);
              if (!ours) expect(plan.subnets.subnet.equals(previous)).toBe(true);
            } else if (plan.from === 'expired' && !previous) {
              const unused = free.filter(
                (subnet) => !held.some((each) => each.expired && each.subnet.overlaps(subnet)),
              );
              const ours = held.some((each) => each.lease?.attributes.publicIp.toString() === publicIp);
              if (!ours) expect(unused).toEqual([]);
            }
          } catch (error) {
            if (!(error instanceof PodwireError)) throw error;
            expect(error.code).toBe('OUT_OF_SUBNETS');
            expect(free).toEqual([]);
          }
        },
      ),
      { numRuns: 1000 },
    );
  });
});

describe('disjoint prefixes', () => {
  it('find what a linear search finds', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(near, fc.boolean()), { maxLength: 60 }), near, (steps, probe) => {
        const fast = new DisjointPrefixes<Prefix>();
        let slow: Prefix[] = [];
        for (const [prefix, isAdding] of steps) {
          if (isAdding) {
            if (slow.some((each) => each.overlaps(prefix))) continue;
            fast.add(prefix, prefix);
            slow.push(prefix);
          } else {
            expect(fast.delete(prefix)).toBe(slow.some((each) => each.equals(prefix)));
            slow = slow.filter((each) => !each.equals(prefix));
          }
        }
        const found = fast.overlapping(probe);
        const possible = slow.filter((each) => each.overlaps(probe));
        if (possible.length === 0) expect(found).toBeUndefined();
        else expect(possible.map(String)).toContain(String(found));
      }),
    );
  });
});

describe('desired routes', () => {
  const config = parseNetworkConfig('{"Network":"10.42.0.0/22"}');
  const own = leaseOf('10.42.1.0/26', '192.0.2.6');
  const lease = fc
    .tuple(near, fc.oneof(host, fc.constantFrom('0.0.0.0', '127.0.0.1', '10.42.3.3')))
    .map(([subnet, publicIp]) => leaseOf(subnet.toString(), publicIp));
  const step = fc.oneof(
    { weight: 4, arbitrary: lease.map((value) => ['put', value] as const) },
    { weight: 2, arbitrary: lease.map((value) => ['remove', value] as const) },
    { weight: 1, arbitrary: fc.array(lease, { maxLength: 8 }).map((value) => ['replace', value] as const) },
  );

  it('never overlap, lose nothing, and their differences add up', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const routes = new DesiredRoutes({ config, own, ownAddresses: [Address.parse('192.0.2.6')] });
        const known = new Map<string, Lease>();
        const follower = new Map<string, string>();
        const apply = ({ added, removed }: RouteDifference): void => {
          for (const { prefix } of removed) expect(follower.delete(prefix.toString())).toBe(true);
          for (const { route, before } of added) {
            expect(follower.get(route.prefix.toString())).toBe(before?.via.toString());
            follower.set(route.prefix.toString(), route.via.toString());
          }
        };
        for (const [what, value] of steps) {
          if (what === 'put') {
            known.set(leaseKey(value), value);
            apply(routes.put(value));
          } else if (what === 'remove') {
            known.delete(leaseKey(value));
            apply(routes.remove(value));
          } else {
            known.clear();
            for (const each of value) known.set(leaseKey(each), each);
            apply(routes.replace(value));
          }
          expect(new Map([...routes.routes].map(([prefix, { via }]) => [prefix, via.toString()]))).toEqual(follower);
          expect([...routes.leases.keys()].sort()).toEqual([...known.keys()].sort());
          const followed = [...routes.routes.values()].map((route) => route.lease);
          for (const each of followed) {
            expect(overlap(each, own)).toBe(false);
            expect(followed.filter((other) => overlap(each, other))).toEqual([each]);
            expect(known.get(leaseKey(each))).toBe(each);
          }
          // Every lease is followed or refused, and one refused for overlapping has something to overlap.
          expect(followed.length + routes.refused.size).toBe(known.size);
          for (const { lease: refused, reason } of routes.refused.values()) {
            const isBlocked = [own, ...followed].some((each) => overlap(each, refused));
            if (reason === 'overlap') expect(isBlocked).toBe(true);
            else
              expect(['0.0.0.0', '127.0.0.1', '10.42.3.3', '192.0.2.6']).toContain(
                refused.attributes.publicIp.toString(),
              );
          }
        }
      }),
      { numRuns: 300 },
    );
  });
});

describe('lease feed', () => {
  it('brings any reader to the present state without a false word', async () => {
    const change = fc.tuple(fc.constantFrom('put', 'delete', 'read'), fc.constantFrom('a', 'b', 'c'), host);
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: 40 }), async (changes) => {
        const feed = new LeaseFeed();
        feed.start();
        const reader = feed.changes(new AbortController().signal);
        const state = new Map<string, Lease>();
        const believed = new Map<string, Lease>();
        const subnets = { a: '10.42.1.0/24', b: '10.42.2.0/24', c: '10.42.3.0/24' };
        const read = async (): Promise<void> => {
          const { value } = await reader.next();
          if (!value || value.kind === 'own') throw new Error('unexpected');
          if (value.kind === 'snapshot') {
            for (const each of value.leases) believed.set(leaseKey(each), each);
          } else if (value.kind === 'added') {
            believed.set(leaseKey(value.lease), value.lease);
          } else {
            expect(believed.delete(leaseKey(value.lease))).toBe(true);
          }
        };
        const isBehind = (): boolean =>
          believed.size !== state.size || [...state].some(([key, each]) => believed.get(key) !== each);
        await read();
        for (const [what, name, publicIp] of changes) {
          const lease = leaseOf(subnets[name as 'a'], publicIp);
          if (what === 'put') {
            feed.put(name, lease);
            state.set(leaseKey(lease), lease);
          } else if (what === 'delete') {
            feed.delete(name);
            state.delete(leaseKey(lease));
          } else if (isBehind()) {
            await read();
          }
        }
        while (isBehind()) await read();
        // Nothing is left to say: the next word is the next change.
        feed.put('z', leaseOf('10.42.9.0/24', '192.0.2.9'));
        const { value } = await reader.next();
        expect(value).toMatchObject({ kind: 'added' });
        expect(value?.kind === 'added' && leaseKey(value.lease)).toBe('10.42.9.0-24');
        await reader.return();
      }),
      { numRuns: 300 },
    );
  });
});
