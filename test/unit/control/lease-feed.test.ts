import { describe, expect, it } from 'vitest';
import { LeaseFeed } from '../../../src/control/lease-feed.js';
import type { LeaseChange } from '../../../src/control/lease.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import { leaseOf } from '../../support/leases.js';

const a1 = leaseOf('10.42.1.0/24', '192.0.2.1');
const a2 = leaseOf('10.42.1.0/24', '192.0.2.11');
const b = leaseOf('10.42.2.0/24', '192.0.2.2');

const text = (change: LeaseChange): string => {
  if (change.kind === 'snapshot') return `snapshot ${change.leases.map(leaseKey).join(' ')}`;
  return `${change.kind} ${leaseKey(change.lease)} ${change.lease.attributes.publicIp.toString()}`;
};

/** Everything a feed has to say at the moment. */
async function drain(feed: LeaseFeed, count: number): Promise<string[]> {
  const stop = new AbortController();
  const told: string[] = [];
  if (count === 0) return told;
  for await (const change of feed.changes(stop.signal)) {
    told.push(text(change));
    if (told.length === count) break;
  }
  return told;
}

describe('lease feed', () => {
  it('says nothing before it has started, then a snapshot of that moment', async () => {
    const feed = new LeaseFeed();
    feed.put('a', a1);
    const first = feed.changes(new AbortController().signal).next();
    feed.put('b', b);
    feed.delete('b');
    feed.start();
    expect(text((await first).value as LeaseChange)).toBe('snapshot 10.42.1.0-24');
  });

  it('tells a slow reader the difference, not the history', async () => {
    const feed = new LeaseFeed();
    feed.start();
    expect(await drain(feed, 1)).toEqual(['snapshot ']);
    feed.put('a', a1);
    feed.put('a', a2);
    feed.put('b', b);
    expect(await drain(feed, 2)).toEqual(['added 10.42.1.0-24 192.0.2.11', 'added 10.42.2.0-24 192.0.2.2']);
    feed.delete('a');
    feed.put('a', a1);
    feed.delete('b');
    expect(await drain(feed, 2)).toEqual(['added 10.42.1.0-24 192.0.2.1', 'removed 10.42.2.0-24 192.0.2.2']);
  });

  it('tells only the latest of our own lease, and nothing once that is settled', async () => {
    const feed = new LeaseFeed();
    feed.start();
    await drain(feed, 1);
    feed.own('a', 'lost', a1);
    feed.own('a', 'replaced', a2);
    expect(await drain(feed, 1)).toEqual(['own 10.42.1.0-24 192.0.2.11']);
    feed.own('a', 'lost', a1);
    feed.clearOwn('a');
    feed.put('b', b);
    expect(await drain(feed, 1)).toEqual(['added 10.42.2.0-24 192.0.2.2']);
  });

  it('wakes a waiting reader, and ends with its signal', async () => {
    const feed = new LeaseFeed();
    const stop = new AbortController();
    const changes = feed.changes(stop.signal);
    feed.start();
    await changes.next();
    const next = changes.next();
    feed.put('b', b);
    expect(text((await next).value as LeaseChange)).toBe('added 10.42.2.0-24 192.0.2.2');
    const last = changes.next();
    stop.abort();
    expect((await last).done).toBe(true);
    expect((await new LeaseFeed().changes(AbortSignal.abort()).next()).done).toBe(true);
  });
});
