import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ManualClock } from '../../../src/control/clock.js';
import { encodeLease } from '../../../src/control/lease-codec.js';
import { LeaseKeeper, type LeaseKeeperOptions } from '../../../src/control/lease-keeper.js';
import type { LeaseKeeperListener } from '../../../src/control/lease-listener.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import { MemoryStoreServer, type MemoryFault, type MemoryOperation } from '../../../src/control/stores/memory.js';
import { PodwireError } from '../../../src/errors.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { attributesOf, leaseOf, Signal } from '../../support/leases.js';

const HOUR_MS = 3_600_000;
const CONFIG = '{"Network":"10.42.0.0/16"}';

/** A listener that writes down what it hears, one line each. */
class Journal {
  readonly lines: string[] = [];
  readonly signal = new Signal();

  #write(line: string): void {
    this.lines.push(line);
    this.signal.fire();
  }

  until(line: string | RegExp): Promise<void> {
    return this.signal.until(() =>
      this.lines.some((written) => (typeof line === 'string' ? written === line : line.test(written))),
    );
  }

  take(): string[] {
    return this.lines.splice(0);
  }

  readonly listener: LeaseKeeperListener = {
    waiting: (error) => this.#write(`waiting ${error.code}`),
    acquired: (lease) => this.#write(`acquired ${leaseKey(lease)}`),
    renewed: (lease) => this.#write(`renewed ${leaseKey(lease)}`),
    ownLost: (lease, state, holder) =>
      this.#write(`${state} ${leaseKey(lease)}${holder ? ` to ${holder.attributes.publicIp.toString()}` : ''}`),
    ownRestored: (lease) => this.#write(`restored ${leaseKey(lease)}`),
    ownChanged: (lease, previous) => this.#write(`changed ${leaseKey(previous)} to ${leaseKey(lease)}`),
    snapshotApplied: (routes) => this.#write(`snapshot ${routes.size}`),
    added: (route, before) =>
      this.#write(`${before ? 'replaced' : 'added'} ${route.prefix.toString()} via ${route.via.toString()}`),
    removed: (route) => this.#write(`removed ${route.prefix.toString()}`),
    refused: (refused) => this.#write(`refused ${refused.reason}`),
    storeDown: (error) => this.#write(`down ${error.code}`),
    storeUp: () => this.#write('up'),
    notice: (notice) => this.#write(`notice ${notice.kind}`),
  };
}

let clock: ManualClock;
let server: MemoryStoreServer;
let fault: (operation: MemoryOperation, client: string) => MemoryFault;
let journal: Journal;
const keepers: LeaseKeeper[] = [];

beforeEach(() => {
  clock = new ManualClock();
  fault = () => 'none';
  server = new MemoryStoreServer({ clock, config: CONFIG, fault: (operation, client) => fault(operation, client) });
  journal = new Journal();
});

afterEach(async () => {
  for (const keeper of keepers.splice(0)) await keeper.close();
});

const make = (more: Partial<LeaseKeeperOptions> = {}, owner: string | null = 'me'): LeaseKeeper => {
  const keeper = new LeaseKeeper({
    store: server.open({ name: 'me', random: () => 0 }),
    attributes: attributesOf('192.0.2.1'),
    ...(owner !== null && { owner }),
    listener: journal.listener,
    clock,
    random: () => 0.5,
    ...more,
  });
  keepers.push(keeper);
  return keeper;
};
const put = (key: string, publicIp: string, ttlMs = 48 * HOUR_MS, owner?: string): void =>
  server.put(key, encodeLease(attributesOf(publicIp), { expiresAt: new Date(clock.now() + ttlMs), owner }));

describe('start', () => {
  it('acquires, applies the snapshot and follows what comes', async () => {
    put('10.42.7.0-24', '192.0.2.7');
    const keeper = make({ previous: { subnet: Prefix.parse('10.42.5.0/24') } });
    const lease = await keeper.start();
    expect(lease.subnet.toString()).toBe('10.42.5.0/24');
    await journal.until('snapshot 1');
    put('10.42.8.0-24', '192.0.2.8');
    await journal.until('added 10.42.8.0/24 via 192.0.2.8');
    server.delete('10.42.7.0-24');
    await journal.until('removed 10.42.7.0/24');
    put('10.42.8.0-24', '192.0.2.88');
    await journal.until('replaced 10.42.8.0/24 via 192.0.2.88');
    expect(journal.lines).toEqual([
      'acquired 10.42.5.0-24',
      'added 10.42.7.0/24 via 192.0.2.7',
      'snapshot 1',
      'added 10.42.8.0/24 via 192.0.2.8',
      'removed 10.42.7.0/24',
      'replaced 10.42.8.0/24 via 192.0.2.88',
    ]);
    expect([...keeper.routes.keys()]).toEqual(['10.42.8.0/24']);
    expect(keeper.store).toEqual({ description: 'memory (me)', ok: true });
  });

  it('waits for a config, saying why once', async () => {
    server.config = undefined;
    const keeper = make();
    const started = keeper.start();
    await journal.until('waiting NO_CONFIG');
    await clock.advance(120_000);
    server.config = '{';
    await clock.advance(60_000);
    await journal.until('waiting INVALID_CONFIG');
    server.config = CONFIG;
    await clock.advance(60_000);
    await started;
    expect(journal.lines.slice(0, 3)).toEqual([
      'waiting NO_CONFIG',
      'waiting INVALID_CONFIG',
      expect.stringMatching(/^acquired/),
    ]);
  });

  it('ends with an error that the caller calls fatal', async () => {
    server.config = '{';
    const keeper = make({ isFatal: (error) => error.code === 'INVALID_CONFIG' });
    await expect(keeper.start()).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
  });

  it('ends when it is cancelled or closed', async () => {
    server.config = undefined;
    const stop = new AbortController();
    const cancelled = make().start(stop.signal);
    stop.abort();
    await expect(cancelled).rejects.toMatchObject({ code: 'ABORTED' });
    const keeper = make();
    const closed = keeper.start();
    await keeper.close();
    await expect(closed).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(keeper.start()).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('survives an outage, and an answer that is lost after the lease was written', async () => {
    const faults: MemoryFault[] = ['fail', 'none', 'none', 'lost-reply'];
    fault = () => faults.shift() ?? 'none';
    const started = make().start();
    await journal.until('down STORE_UNAVAILABLE');
    await clock.advance(10_000);
    await started;
    expect(journal.lines.filter((line) => /down|up/.test(line))).toEqual(['down STORE_UNAVAILABLE', 'up']);
    expect(server.entries().size).toBe(1);
  });
});

describe('renewal', () => {
  it('comes an hour before the end, a little earlier by chance', async () => {
    const keeper = make();
    await keeper.start();
    await clock.advance(21 * HOUR_MS);
    expect(journal.lines.filter((line) => line.startsWith('renewed'))).toEqual([]);
    await clock.advance(2 * HOUR_MS);
    expect(journal.lines.filter((line) => line.startsWith('renewed'))).toHaveLength(1);
    expect(keeper.lease?.expiresAt?.getTime()).toBeGreaterThan(clock.now() + 22 * HOUR_MS);
    await clock.advance(30 * 24 * HOUR_MS);
    expect(server.entries().size).toBe(1);
    expect(journal.lines.join()).not.toMatch(/lost|changed|down/);
  });

  it("comes after a third of a short life, or at a margin of one's own, however long", async () => {
    const short = make({ ttlMs: 30_000 });
    await short.start();
    await clock.advance(20_000);
    expect(journal.take().filter((line) => line.startsWith('renewed'))).toHaveLength(1);
    await short.close();
    const eager = make({ ttlMs: 30_000, renewMarginMs: HOUR_MS });
    await eager.start();
    await clock.advance(3000);
    expect(journal.take().filter((line) => line.startsWith('renewed'))).toHaveLength(1);
  });

  it('that fails is tried again, and said once', async () => {
    const keeper = make();
    await keeper.start();
    fault = (operation) => (operation === 'write' ? 'fail' : 'none');
    await clock.advance(23 * HOUR_MS);
    await clock.advance(HOUR_MS / 2);
    expect(keeper.store.ok).toBe(false);
    expect(keeper.store.lastError).toContain('write a lease');
    fault = () => 'none';
    await clock.advance(60_000);
    expect(keeper.store.ok).toBe(true);
    expect(journal.lines.filter((line) => /down|up|renewed/.test(line))).toEqual([
      'down STORE_UNAVAILABLE',
      expect.stringMatching(/^renewed/),
      'up',
    ]);
    const { renewFailures, acquiredAt, writtenAt, ...counts } = keeper.counts;
    expect(counts).toMatchObject({ acquired: 1, renewed: 1, lost: 0, acquireFailures: 0, watchFailures: 0 });
    expect(renewFailures).toBeGreaterThan(1);
    expect(writtenAt!.getTime() - acquiredAt!.getTime()).toBeGreaterThan(23 * HOUR_MS);
    expect(writtenAt).toEqual(new Date(keeper.lease!.expiresAt!.getTime() - 24 * HOUR_MS));
  });

  it('carries new attributes at once, a new address included', async () => {
    const keeper = make({}, null);
    const lease = await keeper.start();
    await journal.until(/^snapshot/);
    put('10.42.9.0-24', '192.0.2.9');
    await journal.until(/^added/);
    keeper.setAttributes(attributesOf('192.0.2.9', { backendData: { a: 1 } }));
    await journal.until(/^renewed/);
    expect(server.entries().get(leaseKey(lease))).toContain('"PublicIP":"192.0.2.9"');
    // The peer with our new address is now somebody to keep away from.
    expect(journal.lines.slice(-3)).toEqual([
      'refused ownAddress',
      'removed 10.42.9.0/24',
      expect.stringMatching(/^renewed/),
    ]);
  });

  it('goes by another name from a new address on, so that its next start finds the lease', async () => {
    const keeper = make({ owner: 'us at 1' }, null);
    const lease = await keeper.start();
    expect(server.entries().get(leaseKey(lease))).toContain('"Owner":"us at 1"');
    keeper.setAttributes(attributesOf('192.0.2.9'), { owner: 'us at 9' });
    await journal.until(/^renewed/);
    expect(server.entries().get(leaseKey(lease))).toMatch(/"PublicIP":"192\.0\.2\.9".*"Owner":"us at 9"/);
    expect(keeper.lease?.owner).toBe('us at 9');
  });

  it('keeps away from leases with an address that this host has got meanwhile, without a write', async () => {
    const keeper = make({}, null);
    await keeper.start();
    await journal.until(/^snapshot/);
    put('10.42.9.0-24', '192.0.2.9');
    await journal.until(/^added/);
    keeper.setOwnAddresses([Address.parse('192.0.2.9')]);
    expect(journal.lines.slice(-2)).toEqual(['refused ownAddress', 'removed 10.42.9.0/24']);
    keeper.setOwnAddresses([]);
    expect(journal.lines.at(-1)).toMatch(/^added 10\.42\.9\.0\/24/);
    expect(keeper.counts.renewed).toBe(0);
  });

  it('does not renew a reservation', async () => {
    server.put('10.42.77.0-24', '{"PublicIP":"192.0.2.1"}');
    const keeper = make();
    expect((await keeper.start()).subnet.toString()).toBe('10.42.77.0/24');
    await clock.advance(365 * 24 * HOUR_MS);
    expect(journal.lines.filter((line) => line.startsWith('renewed'))).toEqual([]);
    expect(keeper.lease?.expiresAt).toBeUndefined();
  });
});

describe('a lost lease', () => {
  it('is had back at once when it was deleted', async () => {
    const keeper = make();
    const key = leaseKey(await keeper.start());
    await journal.until(/^snapshot/);
    server.delete(key);
    await journal.until(`restored ${key}`);
    expect(journal.lines.slice(-2)).toEqual([`lost ${key}`, `restored ${key}`]);
    expect([...server.entries().keys()]).toEqual([key]);
  });

  it('is served on until another one stands when somebody has it, and is then a route to them', async () => {
    const keeper = make();
    const key = leaseKey(await keeper.start());
    await journal.until(/^snapshot/);
    fault = (operation) => (operation === 'list' ? 'fail' : 'none');
    put(key, '192.0.2.66', HOUR_MS * 48, 'thief');
    await journal.until(`replaced ${key} to 192.0.2.66`);
    await clock.advance(60_000);
    expect(leaseKey(keeper.lease!)).toBe(key);
    fault = () => 'none';
    await clock.advance(60_000);
    await journal.until(/^added/);
    expect(journal.lines.filter((line) => !/^(down|up)/.test(line)).slice(-3)).toEqual([
      `replaced ${key} to 192.0.2.66`,
      `changed ${key} to ${leaseKey(keeper.lease!)}`,
      `added 10.42.1.0/24 via 192.0.2.66`,
    ]);
    const { acquireFailures, ...counts } = keeper.counts;
    expect(counts).toMatchObject({ acquired: 2, lost: 1, subnetChanges: 1, renewFailures: 0, routesAdded: 1 });
    expect(acquireFailures).toBeGreaterThan(0);
  });

  it('is told once for what happened to it, and again when that becomes worse', async () => {
    const keeper = make();
    const key = leaseKey(await keeper.start());
    await journal.until(/^snapshot/);
    fault = (operation) => (operation === 'network' ? 'fail' : 'none');
    server.delete(key);
    await journal.until(`lost ${key}`);
    put('10.42.99.0-24', '192.0.2.99');
    await journal.until(/^added/);
    put(key, '192.0.2.66', HOUR_MS, 'thief');
    await journal.until(`replaced ${key} to 192.0.2.66`);
    put(key, '192.0.2.66', 2 * HOUR_MS, 'thief');
    put('10.42.99.0-24', '192.0.2.98');
    await journal.until(/^replaced 10.42.99/);
    await clock.advance(30_000);
    expect(journal.lines.filter((line) => line.includes(key))).toEqual([
      `acquired ${key}`,
      `lost ${key}`,
      `replaced ${key} to 192.0.2.66`,
    ]);
  });

  it('is told once when the renewal and the watch both find it gone', async () => {
    const real = server.open({ name: 'me' });
    const news = new Signal();
    let isGone = false;
    const keeper = make({
      ttlMs: 30_000,
      store: {
        description: 'late',
        network: (signal) => real.network(signal),
        acquire: (request, signal) => {
          if (keeper.lease) return Promise.reject(new PodwireError('STORE_UNAVAILABLE', 'not now'));
          return real.acquire(request, signal);
        },
        renew: () => Promise.reject(new PodwireError('LEASE_LOST', 'gone')),
        release: (lease) => real.release(lease),
        async *watch() {
          yield { kind: 'snapshot', leases: [] };
          await news.until(() => isGone);
          yield { kind: 'own', state: 'lost', lease: keeper.lease! };
          yield { kind: 'added', lease: leaseOf('10.42.99.0/24', '192.0.2.99') };
        },
        [Symbol.asyncDispose]: () => real[Symbol.asyncDispose](),
      },
    });
    await keeper.start();
    await clock.advance(20_000);
    await journal.until(/^lost/);
    isGone = true;
    news.fire();
    await journal.until(/^added/);
    expect(journal.lines.filter((line) => line.startsWith('lost'))).toHaveLength(1);
  });

  it('is found out by the renewal when the watch was deaf', async () => {
    const keeper = make();
    const key = leaseKey(await keeper.start());
    await journal.until(/^snapshot/);
    server.partition('me');
    await journal.until('notice down');
    server.delete(key);
    await clock.advance(23 * HOUR_MS);
    server.heal('me');
    await clock.advance(HOUR_MS);
    await journal.until(`restored ${key}`);
    expect(journal.lines.filter((line) => line.startsWith('lost'))).toHaveLength(1);
    expect(journal.lines.filter((line) => line === 'up')).toHaveLength(1);
  });
});

describe('routes', () => {
  it('stay through an outage of any length, and are brought up to date after it', async () => {
    for (const host of [7, 8, 9]) put(`10.42.${host}.0-24`, `192.0.2.${host}`, 240 * HOUR_MS);
    const keeper = make({ ttlMs: 1000 * HOUR_MS });
    await keeper.start();
    await journal.until('snapshot 3');
    server.partition('me');
    await journal.until('down STORE_UNAVAILABLE');
    journal.take();
    server.delete('10.42.7.0-24');
    put('10.42.10.0-24', '192.0.2.10');
    put('10.42.8.0-24', '192.0.2.88');
    await clock.advance(24 * HOUR_MS);
    expect([...keeper.routes.keys()].sort()).toEqual(['10.42.7.0/24', '10.42.8.0/24', '10.42.9.0/24']);
    expect(journal.take()).toEqual([]);
    server.heal('me');
    await journal.until(/added/);
    await journal.until(/removed/);
    await journal.until(/replaced/);
    expect(journal.take().sort()).toEqual([
      'added 10.42.10.0/24 via 192.0.2.10',
      'notice up',
      'removed 10.42.7.0/24',
      'replaced 10.42.8.0/24 via 192.0.2.88',
      'up',
    ]);
  });

  it('do not include what is refused, which is counted and shown', async () => {
    put('10.42.7.0-24', '192.0.2.7');
    put('10.42.8.0-24', '10.42.1.1');
    put('10.99.8.0-24', '192.0.2.8');
    const keeper = make();
    await keeper.start();
    await journal.until('snapshot 1');
    expect(keeper.refusals).toEqual({ addressInsideNetwork: 1, outsideNetwork: 1 });
    expect([...keeper.refused.keys()].sort()).toEqual(['10.42.8.0-24', '10.99.8.0-24']);
    expect([...keeper.leases.keys()]).toHaveLength(3);
  });

  it('survive a watch that breaks, and one that throws', async () => {
    put('10.42.7.0-24', '192.0.2.7');
    const real = server.open({ name: 'me' });
    let watches = 0;
    const keeper = make({
      store: {
        description: 'flaky',
        network: (signal) => real.network(signal),
        acquire: (request, signal) => real.acquire(request, signal),
        renew: (lease, signal) => real.renew(lease, signal),
        release: (lease) => real.release(lease),
        async *watch(signal) {
          watches++;
          for await (const change of real.watch(signal)) {
            yield change;
            if (watches === 1) return;
            if (watches === 2) throw new TypeError('surprise');
          }
        },
        [Symbol.asyncDispose]: () => real[Symbol.asyncDispose](),
      },
    });
    await keeper.start();
    for (const expected of [1, 2]) {
      await journal.signal.until(() => journal.lines.filter((line) => line.startsWith('down')).length >= expected);
      await clock.advance(30_000);
      await journal.signal.until(() => journal.lines.filter((line) => line === 'up').length >= expected);
    }
    expect(journal.lines.filter((line) => line.startsWith('added'))).toHaveLength(1);
    expect(journal.lines.join()).not.toContain('removed');
    expect(keeper.store.lastError).toBe('the store failed: surprise');
    expect(keeper.counts).toMatchObject({ watchFailures: 2, snapshots: 3, routesAdded: 1, routesRemoved: 0 });
  });
});

describe('the end', () => {
  it('does not wait for a store that hangs', async () => {
    const real = server.open({ name: 'me' });
    let isHanging = false;
    const keeper = make({
      ttlMs: 30_000,
      store: {
        description: 'hanging',
        network: (signal) => real.network(signal),
        acquire: (request, signal) => real.acquire(request, signal),
        renew: () => {
          isHanging = true;
          return new Promise(() => undefined);
        },
        release: (lease) => real.release(lease),
        watch: (signal) => real.watch(signal),
        [Symbol.asyncDispose]: () => real[Symbol.asyncDispose](),
      },
    });
    await keeper.start();
    await clock.advance(29_000);
    expect(isHanging).toBe(true);
    await keeper.close();
  });

  it('keeps the lease, unless it is released', async () => {
    const keeper = make();
    await keeper.start();
    await keeper.close();
    expect(server.entries().size).toBe(1);
    const again = make();
    await again.start();
    await again.release();
    expect(server.entries().size).toBe(0);
    expect(clock.pendingTimers).toBe(0);
  });
});
