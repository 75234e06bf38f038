/** What only the directory store has: files that are half written, foreign, in the way; directories that come and go. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  appendFile,
  link,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { setTimeout as turn } from 'node:timers/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ManualClock } from '../../../src/control/clock.js';
import { encodeLease } from '../../../src/control/lease-codec.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import type { LeaseStore, StoreNotice } from '../../../src/control/lease.js';
import { directoryStore, type DirectoryStoreOptions } from '../../../src/control/stores/directory.js';
import { LeaseFiles } from '../../../src/control/stores/lease-files.js';
import { attributesOf, Signal, Watcher } from '../../support/leases.js';
import { missing } from '../../support/requires.js';

const HOUR_MS = 3_600_000;

let path: string;
let subnets: string;
let clock: ManualClock;
let notices: StoreNotice[];
let heard: Signal;
let testOver = new AbortController();
let cleanups: (() => PromiseLike<unknown>)[] = [];

beforeEach(async () => {
  path = await mkdtemp(join(tmpdir(), 'podwire-dir-'));
  cleanups.push(() => rm(path, { recursive: true, force: true }));
  subnets = join(path, 'subnets');
  await mkdir(subnets);
  await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/16"}');
  clock = new ManualClock();
  notices = [];
  heard = new Signal();
});

afterEach(async () => {
  testOver.abort();
  testOver = new AbortController();
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
  cleanups = [];
});

const open = (options: DirectoryStoreOptions = {}): LeaseStore => {
  const onNotice = (notice: StoreNotice): void => {
    notices.push(notice);
    heard.fire();
  };
  const store = directoryStore(path, { clock, onNotice, ...options });
  cleanups.push(() => store[Symbol.asyncDispose]());
  return store;
};
const watch = async (store: LeaseStore): Promise<Watcher> => {
  const watcher = new Watcher(store);
  cleanups.push(() => watcher[Symbol.asyncDispose]());
  await watcher.started();
  return watcher;
};
const value = (publicIp: string, ttlMs = 24 * HOUR_MS): string =>
  encodeLease(attributesOf(publicIp), { expiresAt: new Date(clock.now() + ttlMs) });
/** Written whole under another name, then moved into place. */
const put = async (key: string, text: string): Promise<void> => {
  await writeFile(join(path, 'draft'), text);
  await rename(join(path, 'draft'), join(subnets, key));
};
const barrier = async (watcher: Watcher): Promise<void> => {
  await put('10.42.250.0-24', value('198.51.100.250'));
  await watcher.until(() => watcher.leases.has('10.42.250.0-24'));
  await unlink(join(subnets, '10.42.250.0-24'));
  await watcher.until(() => !watcher.leases.has('10.42.250.0-24'));
};
const has = (kind: StoreNotice['kind'], count = 1): boolean =>
  notices.filter((notice) => notice.kind === kind).length >= count;
const noticed = (kind: StoreNotice['kind'], count = 1): Promise<void> => heard.until(() => has(kind, count));
/** Lets time pass until `condition` holds, with turns of the event loop for the real files in between. */
const passUntil = async (condition: () => boolean, stepMs = 500): Promise<void> => {
  const { signal } = testOver;
  while (!signal.aborted && !condition()) {
    await clock.advance(stepMs);
    await turn(1);
  }
};
/** A condition for {@link passUntil} that holds after `count` steps. */
const takeTurns = (count: number): (() => boolean) => {
  let left = count;
  return () => left-- === 0;
};
const kinds = (): string[] => notices.map(({ kind }) => kind);

describe('files', () => {
  it('half written are reported, and read when they are complete', async () => {
    const watcher = await watch(open());
    const file = join(subnets, '10.42.5.0-24');
    await writeFile(file, '{"PublicIP":"192.0.');
    await noticed('corrupt');
    await appendFile(file, '2.5"}');
    await watcher.until(() => watcher.leases.has('10.42.5.0-24'));
    expect(kinds()).toEqual(['corrupt']);
    expect(notices[0]).toMatchObject({ path: file, reason: expect.stringContaining('JSON') });
  });

  it('that are foreign are reported with what they seem to be, again only when they change', async () => {
    const names = {
      '.nfs0000001': 'NFS',
      '.hidden': 'hidden',
      '10.42.5.0-24~': 'editor',
      '#x#': 'editor',
      readme: 'lease key',
    };
    for (const name of Object.keys(names)) await writeFile(join(subnets, name), 'x');
    const watcher = await watch(open());
    await clock.advance(10 * 60_000);
    await barrier(watcher);
    expect(kinds()).toEqual(Object.keys(names).map(() => 'foreign'));
    for (const [name, what] of Object.entries(names)) {
      const notice = notices.find((each) => 'path' in each && each.path === join(subnets, name));
      expect(notice?.reason).toContain(what);
    }
    await writeFile(join(subnets, 'readme'), 'changed');
    await noticed('foreign', 6);
  });

  it.each(['pipe', 'directory', 'link', 'giant'])(
    'in the way of a lease (%s) neither block nor count',
    async (what) => {
      const file = join(subnets, '10.42.5.0-24');
      if (what === 'pipe') execFileSync('mkfifo', [file]);
      if (what === 'directory') await mkdir(file);
      if (what === 'link') await symlink('/dev/zero', file);
      if (what === 'giant') await writeFile(file, ' '.repeat(70_000));
      const store = open();
      const watcher = await watch(store);
      await barrier(watcher);
      expect(watcher.keys).toEqual([]);
      expect(kinds()).toEqual(['corrupt']);
      // Whoever put it there may mean something by it: nobody else gets the subnet.
      const lease = await store.acquire({ attributes: attributesOf('192.0.2.1') });
      expect(leaseKey(lease)).not.toBe('10.42.5.0-24');
      expect((await lstat(file)).isFile()).toBe(what === 'giant');
    },
  );

  it('changed behind the back of inotify are found by the rescan', async () => {
    const watcher = await watch(open({ inotify: false, rescanMs: 1000 }));
    await put('10.42.5.0-24', value('192.0.2.5'));
    await passUntil(() => watcher.leases.has('10.42.5.0-24'));
    // In place: the directory does not change, so once it is known to be quiet only every twelfth look sees it.
    for (let scan = 0; scan < 13; scan++) await passUntil(takeTurns(2));
    await writeFile(join(subnets, '10.42.5.0-24'), value('192.0.2.55'));
    await passUntil(() => watcher.leases.get('10.42.5.0-24')?.attributes.publicIp.toString() === '192.0.2.55');
    await unlink(join(subnets, '10.42.5.0-24'));
    await passUntil(() => watcher.leases.size === 0);
  });

  it('of our own stay private while they are made: subnets/ holds leases only', async () => {
    const seen = new Set<string>();
    const stop = new AbortController();
    const store = open();
    const looking = (async () => {
      while (!stop.signal.aborted) for (const name of await readdir(subnets)) seen.add(name);
    })();
    let lease = await store.acquire({ attributes: attributesOf('192.0.2.1') });
    for (let i = 0; i < 20; i++) lease = await store.renew(lease);
    stop.abort();
    await looking;
    expect([...seen]).toEqual([leaseKey(lease)]);
    expect(await readdir(join(path, '.podwire'))).toEqual([]);
    expect((await lstat(join(subnets, leaseKey(lease)))).mode & 0o777).toBe(0o644);
  });
});

describe('remains of killed processes', () => {
  const remains = (name: string): string => join(path, '.podwire', name);

  beforeEach(() => mkdir(join(path, '.podwire')));

  it('are deleted by age', async () => {
    const old = new Date(Date.now() - HOUR_MS);
    for (const name of ['10.42.5.0-24.ab12.new', '10.42.5.0-24.cd34.claim', 'sweep.ef56.new']) {
      await writeFile(remains(name), 'x');
      await utimes(remains(name), old, old);
    }
    await writeFile(remains('10.42.6.0-24.ab13.new'), 'x');
    await writeFile(remains('notes.txt'), 'not ours');
    await open().acquire({ attributes: attributesOf('192.0.2.1') });
    expect(await readdir(join(path, '.podwire'))).toEqual(['10.42.6.0-24.ab13.new', 'notes.txt']);
  });

  it('that hold a live lease are put back', async () => {
    const text = value('192.0.2.5');
    await writeFile(remains('10.42.1.0-24.ab12.tomb'), text);
    const lease = await open({ random: () => 0 }).acquire({ attributes: attributesOf('192.0.2.1') });
    expect(leaseKey(lease)).toBe('10.42.2.0-24');
    expect(await readFile(join(subnets, '10.42.1.0-24'), 'utf8')).toBe(text);
    expect(await readdir(join(path, '.podwire'))).toEqual([]);
  });

  it('do not make a watcher drop a lease that is only moved aside', async () => {
    await put('10.42.5.0-24', value('192.0.2.5'));
    const watcher = await watch(open());
    await rename(join(subnets, '10.42.5.0-24'), remains('10.42.5.0-24.ab12.tomb'));
    await barrier(watcher);
    expect(watcher.keys).toEqual(['10.42.5.0-24']);
    await link(remains('10.42.5.0-24.ab12.tomb'), join(subnets, '10.42.5.0-24'));
    await unlink(remains('10.42.5.0-24.ab12.tomb'));
    await barrier(watcher);
    expect(watcher.log.filter((line) => line.includes('10.42.5.0'))).toEqual([]);
    await rename(join(subnets, '10.42.5.0-24'), remains('10.42.5.0-24.ab13.tomb'));
    await unlink(remains('10.42.5.0-24.ab13.tomb'));
    await passUntil(() => watcher.leases.size === 0);
  });
});

describe('taking over a file', () => {
  let files: LeaseFiles;
  const name = '10.42.5.0-24';

  beforeEach(async () => {
    files = new LeaseFiles(path);
    await put(name, 'old');
  });

  const content = (): Promise<string> => readFile(join(subnets, name), 'utf8');

  it('succeeds for exactly one of many', async () => {
    const results = await Promise.all(
      Array.from({ length: 20 }, (_, i) => new LeaseFiles(path).take(name, 'old', `new ${i}`)),
    );
    const winners = results.flatMap((won, i) => (won ? [`new ${i}`] : []));
    expect(winners).toEqual([await content()]);
    expect(await readdir(join(path, '.podwire'))).toEqual([]);
  });

  it('leaves a file that has changed', async () => {
    expect(await files.take(name, 'older', 'new')).toBe(false);
    expect(await content()).toBe('old');
    expect(await files.take('10.42.6.0-24', 'old', 'new')).toBe(false);
    expect(await readdir(subnets)).toEqual([name]);
  });

  it('respects the claim of another, until that is as old as a dead process', async () => {
    await files.take(name, 'old', 'old');
    const claims: string[] = [];
    const stop = new AbortController();
    const looking = (async () => {
      while (!stop.signal.aborted) {
        for (const file of await readdir(join(path, '.podwire'))) if (file.endsWith('.claim')) claims.push(file);
      }
    })();
    while (claims.length === 0) await files.take(name, 'old', 'old');
    stop.abort();
    await looking;
    const claim = join(path, '.podwire', claims[0]!);
    await writeFile(claim, '');
    expect(await files.take(name, 'old', 'new')).toBe(false);
    expect(await content()).toBe('old');
    const old = new Date(Date.now() - 60_000);
    await utimes(claim, old, old);
    expect(await files.take(name, 'old', 'new')).toBe(true);
    expect(await content()).toBe('new');
  });

  it('never loses a file that is being replaced meanwhile', { timeout: 30_000 }, async () => {
    // The taker may catch the new text, and must put it back: whoever wrote it relies on it.
    const stop = new AbortController();
    const taking = (async () => {
      while (!stop.signal.aborted)
        await Promise.all(Array.from({ length: 3 }, () => new LeaseFiles(path).take(name, 'old', undefined)));
    })();
    let lost = 0;
    for (let i = 0; i < 80; i++) {
      await put(name, 'old');
      const replaced = await files.replace(name, () => true, `renewed ${i}`);
      if (replaced === 'replaced') {
        await turn(0);
        const deadline = Date.now() + 5000;
        while ((await content().catch(() => undefined)) !== `renewed ${i}` && Date.now() < deadline) await turn(0);
        if ((await content().catch(() => undefined)) !== `renewed ${i}`) lost++;
      }
    }
    stop.abort();
    await taking;
    expect(lost).toBe(0);
    expect(await readdir(join(path, '.podwire'))).toEqual([]);
  });

  it('goes for our own as well once it has run out: another claim on it comes first', async () => {
    const store = open();
    const lease = await store.acquire({ attributes: attributesOf('192.0.2.1'), ttlMs: HOUR_MS });
    const text = await readFile(join(subnets, leaseKey(lease)), 'utf8');
    const mark = createHash('sha256').update(text).digest('hex').slice(0, 20);
    await writeFile(join(path, '.podwire', `${leaseKey(lease)}.${mark}.claim`), '');
    await clock.advance(HOUR_MS - 60_000);
    const renewed = await store.renew(lease);
    await put(leaseKey(lease), text);
    await clock.advance(2 * HOUR_MS);
    await expect(store.renew(renewed)).rejects.toMatchObject({ code: 'LEASE_LOST' });
    expect(await readFile(join(subnets, leaseKey(lease)), 'utf8')).toBe(text);
  });

  it('can mean to remove it', async () => {
    expect(await files.take(name, 'old', undefined)).toBe(true);
    expect(await readdir(subnets)).toEqual([]);
  });

  it('cannot create what is there, nor replace what is not ours', async () => {
    expect(await files.create(name, 'new')).toBe(false);
    expect(await files.replace(name, (text) => text === 'mine', 'new')).toBe('foreign');
    expect(await files.replace('10.42.6.0-24', () => true, 'new')).toBe('absent');
    expect(await files.remove(name, (text) => text === 'mine')).toBe(false);
    expect(await content()).toBe('old');
    expect(await files.replace(name, (text) => text === 'old', 'new')).toBe('replaced');
    expect(await content()).toBe('new');
  });
});

describe('a directory that goes away', () => {
  beforeEach(async () => {
    for (const host of [5, 6]) await put(`10.42.${host}.0-24`, value(`192.0.2.${host}`));
  });

  it('costs one line and no lease, and is followed again when it is back', async () => {
    const store = open();
    const watcher = await watch(store);
    const away = join(path, 'away');
    await rename(subnets, away);
    await passUntil(() => has('down'));
    await clock.advance(48 * HOUR_MS);
    expect(kinds()).toEqual(['down']);
    expect(notices[0]?.reason).toMatch(/subnets.*ENOENT.*known leases stay/);
    expect(watcher.keys).toEqual(['10.42.5.0-24', '10.42.6.0-24']);
    // Meanwhile: one left, one came, and what stays could not be renewed in time either.
    await unlink(join(away, '10.42.6.0-24'));
    await writeFile(join(away, '10.42.7.0-24'), value('192.0.2.7'));
    await rename(away, subnets);
    await passUntil(() => has('up'));
    await watcher.until(() => watcher.keys.join() === '10.42.5.0-24,10.42.7.0-24');
    await put('10.42.5.0-24', value('192.0.2.5'));
    await clock.advance(10 * 60_000);
    await barrier(watcher);
    expect(watcher.log.filter((line) => line.includes('10.42.5.0'))).toEqual(['added 10.42.5.0-24']);
    expect(kinds()).toEqual(['down', 'up']);
  });

  it('and comes back empty drops nothing that its holders can write again in time', async () => {
    const watcher = await watch(open());
    await rename(subnets, join(path, 'away'));
    await passUntil(() => has('down'));
    await mkdir(subnets);
    await passUntil(() => has('up'));
    await put('10.42.5.0-24', value('192.0.2.5'));
    await clock.advance(10_000);
    await barrier(watcher);
    expect(watcher.keys).toEqual(['10.42.5.0-24', '10.42.6.0-24']);
    await passUntil(() => watcher.keys.join() === '10.42.5.0-24');
    expect(watcher.log.filter((line) => line.startsWith('removed 10.42.5'))).toEqual([]);
  });

  it('just when a lease would run out keeps it: gone with its directory is not gone', async () => {
    await put('10.42.7.0-24', value('192.0.2.7', HOUR_MS));
    const watcher = await watch(open({ rescanMs: 48 * HOUR_MS }));
    await rename(subnets, join(path, 'away'));
    await clock.advance(2 * HOUR_MS);
    await noticed('down');
    expect(watcher.keys).toEqual(['10.42.5.0-24', '10.42.6.0-24', '10.42.7.0-24']);
  });

  it('and is another just when a lease would run out keeps it too', async () => {
    await put('10.42.7.0-24', value('192.0.2.7', HOUR_MS));
    const watcher = await watch(open({ rescanMs: 48 * HOUR_MS }));
    await mkdir(join(path, 'other'));
    await writeFile(join(path, 'other', '10.42.8.0-24'), value('192.0.2.8', 1000 * HOUR_MS));
    await rename(subnets, join(path, 'away'));
    await rename(join(path, 'other'), subnets);
    await clock.advance(2 * HOUR_MS);
    await watcher.until(() => watcher.leases.has('10.42.8.0-24'));
    expect(watcher.keys).toEqual(['10.42.5.0-24', '10.42.6.0-24', '10.42.7.0-24', '10.42.8.0-24']);
    await passUntil(() => watcher.leases.size === 1, 12 * HOUR_MS);
    expect(watcher.keys).toEqual(['10.42.8.0-24']);
  });

  it('and is another at the next look is listened to all the same', async () => {
    const watcher = await watch(open());
    await mkdir(join(path, 'other'));
    await writeFile(join(path, 'other', '10.42.5.0-24'), value('192.0.2.5'));
    await writeFile(join(path, 'other', '10.42.8.0-24'), value('192.0.2.8'));
    await rename(subnets, join(path, 'away'));
    await rename(join(path, 'other'), subnets);
    await passUntil(() => watcher.leases.has('10.42.8.0-24'));
    expect(watcher.keys).toEqual(['10.42.5.0-24', '10.42.6.0-24', '10.42.8.0-24']);
    await barrier(watcher);
    // Looked at between the two renames there is no directory at all, which may be said.
    expect(kinds().filter((kind) => kind !== 'down' && kind !== 'up')).toEqual([]);
  });

  it('takes our own lease with it, which is told at once', async () => {
    const store = open();
    const lease = await store.acquire({ attributes: attributesOf('192.0.2.1') });
    const watcher = await watch(store);
    await rename(subnets, join(path, 'away'));
    await passUntil(() => has('down'));
    expect(watcher.log).toEqual([]);
    await expect(store.renew(lease)).rejects.toMatchObject({ code: 'LEASE_LOST' });
    await mkdir(subnets);
    await passUntil(() => watcher.log.includes(`own lost ${leaseKey(lease)}`));
    const again = await store.acquire({ attributes: attributesOf('192.0.2.1'), previous: { subnet: lease.subnet } });
    expect(leaseKey(again)).toBe(leaseKey(lease));
  });

  it('before anything was there is waited for', async () => {
    await rm(path, { recursive: true });
    const store = open();
    const watcher = new Watcher(store);
    cleanups.push(() => watcher[Symbol.asyncDispose]());
    await noticed('down');
    await expect(store.acquire({ attributes: attributesOf('192.0.2.1') })).rejects.toMatchObject({
      code: 'NO_CONFIG',
      message: expect.stringContaining(`> ${join(path, 'config')}`),
    });
    await mkdir(path);
    await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/16"}');
    await passUntil(() => has('up'));
    await watcher.started();
    expect(kinds()).toEqual(['down', 'up']);
    expect(await readdir(path)).toEqual(['config', 'subnets']);
  });
});

describe('clocks', () => {
  it('that are set do not end leases already seen alive, nor keep dead ones', async () => {
    await put('10.42.5.0-24', value('192.0.2.5', HOUR_MS));
    const watcher = await watch(open());
    clock.jump(365 * 24 * HOUR_MS);
    await clock.advance(10 * 60_000);
    await barrier(watcher);
    expect(watcher.keys).toEqual(['10.42.5.0-24']);
    clock.jump(-2 * 365 * 24 * HOUR_MS);
    await passUntil(() => watcher.leases.size === 0, HOUR_MS / 4);
  });

  it('that were wrong at the start are forgiven when they are set right', async () => {
    await put('10.42.5.0-24', value('192.0.2.5', HOUR_MS));
    clock.jump(24 * HOUR_MS);
    const watcher = await watch(open());
    expect(watcher.keys).toEqual([]);
    clock.jump(-24 * HOUR_MS);
    await passUntil(() => watcher.leases.has('10.42.5.0-24'));
  });
});

describe.skipIf(missing({ root: true, commands: ['mount', 'umount'] }))('a file system that refuses', () => {
  const mount = (...args: string[]): void => void execFileSync('mount', args);

  beforeEach(async () => {
    mount('-t', 'tmpfs', '-o', 'size=256k,nr_inodes=64', 'tmpfs', path);
    cleanups.push(async () => execFileSync('umount', ['--lazy', path]));
    await mkdir(subnets);
    await writeFile(join(path, 'config'), '{"Network":"10.42.0.0/16"}');
    await put('10.42.5.0-24', value('192.0.2.5'));
  });

  const fill = async (): Promise<void> => {
    const junk = join(path, 'junk');
    await writeFile(junk, '');
    for (let i = 0; i < 100; i++) {
      try {
        await appendFile(junk, Buffer.alloc(4096));
      } catch {
        return;
      }
    }
    throw new Error('the file system is not full');
  };

  it('for want of space: our lease and the watch go on, with one line to tell', async () => {
    const store = open();
    const lease = await store.acquire({ attributes: attributesOf('192.0.2.1') });
    const before = await readFile(join(subnets, leaseKey(lease)), 'utf8');
    const watcher = await watch(store);
    await fill();
    await expect(store.renew(lease)).rejects.toMatchObject({
      code: 'STORE_UNAVAILABLE',
      errno: 'ENOSPC',
      message: expect.stringMatching(/^cannot write lease .*10\.42\..*no space left on device; free some space$/),
    });
    await expect(open().acquire({ attributes: attributesOf('192.0.2.2') })).rejects.toMatchObject({ errno: 'ENOSPC' });
    expect(await readFile(join(subnets, leaseKey(lease)), 'utf8')).toBe(before);
    expect(await readdir(join(path, '.podwire'))).toEqual([]);
    await unlink(join(subnets, '10.42.5.0-24'));
    await watcher.until(() => watcher.leases.size === 0);
    await unlink(join(path, 'junk'));
    await store.renew(lease);
    expect(watcher.log).toEqual(['removed 10.42.5.0-24']);
  });

  it('to be written: leases are read all the same', async () => {
    const store = open();
    const lease = await store.acquire({ attributes: attributesOf('192.0.2.1') });
    mount('-o', 'remount,ro', path);
    const watcher = await watch(store);
    expect(watcher.keys).toEqual(['10.42.5.0-24']);
    await expect(store.renew(lease)).rejects.toMatchObject({
      errno: 'EROFS',
      message: expect.stringContaining('mount it read-write'),
    });
    mount('-o', 'remount,rw', path);
    await store.renew(lease);
    expect(watcher.log).toEqual([]);
  });
});
