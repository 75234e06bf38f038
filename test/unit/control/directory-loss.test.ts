/** The directory store where several want the same file, and where the directory itself goes. */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rename, rm, unlink, utimes, writeFile } from 'node:fs/promises';
import { setTimeout as turn } from 'node:timers/promises';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { leaseKey } from '../../../src/control/lease-key.js';
import { LeaseFiles } from '../../../src/control/stores/lease-files.js';
import { attributesOf, Watcher } from '../../support/leases.js';
import {
  HOUR_MS,
  barrier,
  cleanups,
  clock,
  has,
  kinds,
  noticed,
  notices,
  open,
  passUntil,
  path,
  put,
  subnets,
  useDirectory,
  value,
  watch,
} from './directory-bed.js';

useDirectory();

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
