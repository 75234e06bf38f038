/** What only the directory store has: files that are half written, foreign, in the way; directories that come and go. */
import { execFileSync } from 'node:child_process';
import {
  appendFile,
  link,
  lstat,
  mkdir,
  readdir,
  readFile,
  rename,
  symlink,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { leaseKey } from '../../../src/control/lease-key.js';
import { attributesOf } from '../../support/leases.js';
import { missing } from '../../support/requires.js';
import {
  HOUR_MS,
  barrier,
  cleanups,
  clock,
  kinds,
  noticed,
  notices,
  open,
  passUntil,
  path,
  put,
  subnets,
  takeTurns,
  useDirectory,
  value,
  watch,
} from './directory-bed.js';

useDirectory();

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
