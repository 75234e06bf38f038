import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DurableStore } from '../../../src/control/durable-store.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import { type LeaseTable, readLeaseTable, writeLeaseTable } from '../../../src/control/lease-table.js';
import type { Lease, StoreNotice } from '../../../src/control/lease.js';
import { formatNetworkConfig, parseNetworkConfig } from '../../../src/control/network-config.js';
import { MemoryStoreServer } from '../../../src/control/stores/memory.js';
import type { PodwireError } from '../../../src/errors.js';
import { Prefix } from '../../../src/net/prefix.js';
import { attributesOf, leaseOf, Watcher } from '../../support/leases.js';
import { until } from '../../support/process.js';

const CONFIG = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp","Port":9000}}';
const DUAL =
  '{"EnableIPv6":true,"Network":"10.42.0.0/16","SubnetLen":26,"SubnetMin":"10.42.8.0","IPv6Network":"fd00:42::/48","EnableNFTables":true,"Backend":{"type":"VXLAN","VNI":7}}';

let directory: string;
let path: string;
let server: MemoryStoreServer;
let isAway: boolean;
let warnings: string[];
let notices: StoreNotice[];

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'podwire-table-'));
  path = join(directory, 'state', 'us.leases');
  isAway = false;
  server = new MemoryStoreServer({
    config: CONFIG,
    fault: (_, client) => (isAway && client === 'us' ? 'fail' : 'none'),
  });
  warnings = [];
  notices = [];
});
afterEach(() => rm(directory, { recursive: true }));

const request = { attributes: attributesOf('192.0.2.1'), owner: 'us' };

/** A host's store over the table, as one run of an agent has it. */
async function open(isLasting?: (error: PodwireError) => boolean): Promise<DurableStore> {
  const store = await DurableStore.open(
    { store: server.open({ name: 'us' }), path, patienceMs: 50, ...(isLasting && { isLasting }) },
    (reason) => void warnings.push(reason),
  );
  store.onNotice((notice) => void notices.push(notice));
  return store;
}

function goAway(): void {
  isAway = true;
  server.partition('us');
}

function comeBack(): void {
  isAway = false;
  server.heal('us');
}

/** One run that learns of us and of two peers, and ends. */
async function earlierRun(): Promise<Lease> {
  for (const [name, address] of [
    ['b', '192.0.2.2'],
    ['c', '192.0.2.3'],
  ] as const) {
    await server.open({ name }).acquire({ attributes: attributesOf(address), owner: name });
  }
  await using store = await open();
  await store.network();
  const lease = await store.acquire(request);
  await using watcher = new Watcher(store);
  await watcher.started();
  return lease;
}

/** With addresses and prefixes as text. */
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value));

describe('lease table', () => {
  const table: LeaseTable = {
    store: 'a store',
    savedAt: new Date('2026-01-02T03:04:05.678Z'),
    config: parseNetworkConfig(DUAL),
    own: leaseOf('10.42.9.0/26', '192.0.2.1', {
      subnet6: Prefix.parse('fd00:42:0:9::/64'),
      owner: 'us',
      expiresAt: new Date('2026-01-03T03:04:05.678Z'),
    }),
    leases: [
      leaseOf('10.42.9.64/26', '192.0.2.2', {
        attributes: attributesOf('192.0.2.2', {
          backendType: 'vxlan',
          backendData: { VNI: 7, VtepMAC: '02:00:00:00:00:02' },
        }),
      }),
      leaseOf('10.42.9.128/26', '192.0.2.3'),
    ],
  };

  test('is read back as it was written; no file is no table', async () => {
    expect(await readLeaseTable(path)).toBeUndefined();
    await writeLeaseTable(path, table);
    expect(plain(await readLeaseTable(path))).toEqual(plain(table));
    await writeLeaseTable(path, { ...table, leases: [] });
    expect((await readLeaseTable(path))?.leases).toEqual([]);
  });

  test('any damaged byte, and any missing end, is noticed', async () => {
    await writeLeaseTable(path, table);
    const good = await readFile(path);
    for (let i = 0; i < good.length - 1; i++) {
      const bad = Buffer.from(good);
      bad[i]! ^= 1;
      await writeFile(path, bad);
      await expect(readLeaseTable(path), `byte ${i}`).rejects.toThrow(/^the lease table .* is damaged and not used: /);
    }
    for (const length of [0, 1, 40, 100, good.length - 2]) {
      await writeFile(path, good.subarray(0, length));
      await expect(readLeaseTable(path), `length ${length}`).rejects.toThrow(/is damaged and not used/);
    }
  });

  test.each([CONFIG, DUAL, '{"Network":"10.1.0.0/16"}'])('a config survives: %s', (text) => {
    const config = parseNetworkConfig(text);
    expect(JSON.stringify(parseNetworkConfig(formatNetworkConfig(config)))).toBe(JSON.stringify(config));
  });
});

describe('while the store is away at the start', () => {
  test('config, own lease and peers come from the table, and it is said once', async () => {
    const before = await earlierRun();
    goAway();
    await using store = await open();
    expect(String((await store.network()).network)).toBe('10.42.0.0/16');
    const lease = await store.acquire(request);
    expect(leaseKey(lease)).toBe(leaseKey(before));
    expect(lease.unconfirmed).toBe(true);
    await using watcher = new Watcher(store);
    await watcher.started();
    expect(watcher.leases.size).toBe(2);
    expect(store.standingInSince).toBeInstanceOf(Date);
    expect(notices.filter(({ kind }) => kind === 'degraded')).toEqual([
      expect.objectContaining({ reason: expect.stringMatching(/^starting without the store \(.*, 2 leases$/) }),
    ]);
    await expect(store.renew(lease)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
  });

  test('a store that only hangs is not waited for long', async () => {
    await earlierRun();
    server = new MemoryStoreServer({ latencyMs: () => 60_000 });
    await using store = await open();
    expect(String((await store.network()).network)).toBe('10.42.0.0/16');
    expect((await store.acquire(request)).unconfirmed).toBe(true);
  });

  test('a store that has lost its config is not believed', async () => {
    const before = await earlierRun();
    server.config = undefined;
    await using store = await open();
    expect(String((await store.network()).network)).toBe('10.42.0.0/16');
    expect(leaseKey(await store.acquire(request))).toBe(leaseKey(before));
  });

  test('on its return the lease is confirmed, and only what has changed is told', async () => {
    await earlierRun();
    goAway();
    await using store = await open();
    const lease = await store.acquire(request);
    await using watcher = new Watcher(store);
    await watcher.started();
    const gone = [...watcher.leases.keys()][0]!;
    server.delete(gone);
    comeBack();
    await watcher.until(({ leases }) => leases.size === 1);
    // Our own is among the store's leases, but not told as somebody's.
    expect(watcher.keys).not.toContain(leaseKey(lease));
    const confirmed = await store.renew(lease);
    expect(leaseKey(confirmed)).toBe(leaseKey(lease));
    expect(confirmed.unconfirmed).toBeUndefined();
    expect(store.standingInSince).toBeUndefined();
    expect((await store.renew(confirmed)).expiresAt!.getTime()).toBeGreaterThan(Date.now());
  });

  test('a subnet that went to somebody else meanwhile is lost, and the next acquire finds the new one', async () => {
    const before = await earlierRun();
    goAway();
    await using store = await open();
    const lease = await store.acquire(request);
    server.put(leaseKey(before), '{"PublicIP":"192.0.2.66","PublicIPv6":null,"Owner":"thief"}');
    comeBack();
    await expect(store.renew(lease)).rejects.toMatchObject({ code: 'LEASE_LOST' });
    const next = await store.acquire({ ...request, isServing: true });
    expect(leaseKey(next)).not.toBe(leaseKey(before));
    expect([...server.entries().keys()].filter((key) => key === leaseKey(next))).toHaveLength(1);
    expect(server.entries().size).toBe(4);
  });

  test('the subnet file says where pods live now', async () => {
    await earlierRun();
    goAway();
    await using store = await open();
    const lease = await store.acquire({ ...request, previous: { subnet: Prefix.parse('10.42.200.0/24') } });
    expect(lease.subnet.toString()).toBe('10.42.200.0/24');
    const elsewhere = { ...request, previous: { subnet: Prefix.parse('10.99.200.0/24') } };
    expect((await store.acquire(elsewhere)).subnet.toString()).not.toBe('10.99.200.0/24');
  });

  test('another identity, another store and a damaged table do not stand in', async () => {
    await earlierRun();
    goAway();
    await using store = await open();
    await store.network();
    const stranger = { attributes: attributesOf('192.0.2.77'), owner: 'stranger' };
    await expect(store.acquire(stranger)).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
    const other = await DurableStore.open({ store: server.open({ name: 'other' }), path }, (why) => warnings.push(why));
    expect(other.standingInSince).toBeUndefined();
    await writeFile(path, 'rubbish');
    await using damaged = await open();
    await expect(damaged.network()).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
    expect(warnings).toEqual([
      expect.stringMatching(/is of another store/),
      expect.stringMatching(/is damaged and not used/),
    ]);
  });

  test("what the store says counts, and so do the operator's faults", async () => {
    await earlierRun();
    server.config = '{"Network":"10.42.0.0/33"}';
    await using store = await open();
    await expect(store.network()).rejects.toMatchObject({ code: 'INVALID_CONFIG' });
    goAway();
    await using lasting = await open(() => true);
    await expect(lasting.network()).rejects.toMatchObject({ code: 'STORE_UNAVAILABLE' });
  });
});

test('a table that cannot be written is told once and tried again', async () => {
  await writeFile(join(directory, 'state'), 'a file in the place of the directory');
  await using store = await open();
  await store.network();
  await store.acquire(request);
  await using watcher = new Watcher(store);
  await watcher.started();
  const told = (): unknown[] => notices.filter(({ kind }) => kind === 'degraded');
  await until(() => told().length > 0, { what: 'the failed write to be told' });
  expect(told()).toEqual([
    expect.objectContaining({ reason: expect.stringMatching(/^cannot write the lease table .*; see --state-dir$/) }),
  ]);
  await rm(join(directory, 'state'));
  await server.open({ name: 'b' }).acquire({ attributes: attributesOf('192.0.2.2'), owner: 'b' });
  await until(async () => (await readLeaseTable(path))?.leases.length === 1, { what: 'the table' });
  expect(told()).toHaveLength(1);
});
