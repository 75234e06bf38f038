/** A directory store in a directory of its own, with a clock to pass, for the tests beside it. */
import { mkdir, mkdtemp, rename, rm, unlink, writeFile } from 'node:fs/promises';
import { setTimeout as turn } from 'node:timers/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach } from 'vitest';
import { ManualClock } from '../../../src/control/clock.js';
import { encodeLease } from '../../../src/control/lease-codec.js';
import type { LeaseStore, StoreNotice } from '../../../src/control/lease.js';
import { directoryStore, type DirectoryStoreOptions } from '../../../src/control/stores/directory.js';
import { attributesOf, Signal, Watcher } from '../../support/leases.js';

export const HOUR_MS = 3_600_000;

export let path: string;
export let subnets: string;
export let clock: ManualClock;
export let notices: StoreNotice[];
export let heard: Signal;
let testOver = new AbortController();
/** What the test made, undone in reverse. */
export const cleanups: (() => PromiseLike<unknown>)[] = [];

/** Gives each test of the file an empty store, and takes away what it made. */
export function useDirectory(): void {
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
  });
}

export const open = (options: DirectoryStoreOptions = {}): LeaseStore => {
  const onNotice = (notice: StoreNotice): void => {
    notices.push(notice);
    heard.fire();
  };
  const store = directoryStore(path, { clock, onNotice, ...options });
  cleanups.push(() => store[Symbol.asyncDispose]());
  return store;
};
export const watch = async (store: LeaseStore): Promise<Watcher> => {
  const watcher = new Watcher(store);
  cleanups.push(() => watcher[Symbol.asyncDispose]());
  await watcher.started();
  return watcher;
};
export const value = (publicIp: string, ttlMs = 24 * HOUR_MS): string =>
  encodeLease(attributesOf(publicIp), { expiresAt: new Date(clock.now() + ttlMs) });
/** Written whole under another name, then moved into place. */
export const put = async (key: string, text: string): Promise<void> => {
  await writeFile(join(path, 'draft'), text);
  await rename(join(path, 'draft'), join(subnets, key));
};
/** After this, everything that happened before has reached `watcher`. Nobody is ever given a network's first subnet. */
export const barrier = async (watcher: Watcher): Promise<void> => {
  await put('10.42.0.0-24', value('198.51.100.250'));
  await watcher.until(() => watcher.leases.has('10.42.0.0-24'));
  await unlink(join(subnets, '10.42.0.0-24'));
  await watcher.until(() => !watcher.leases.has('10.42.0.0-24'));
};
export const has = (kind: StoreNotice['kind'], count = 1): boolean =>
  notices.filter((notice) => notice.kind === kind).length >= count;
export const noticed = (kind: StoreNotice['kind'], count = 1): Promise<void> => heard.until(() => has(kind, count));
/** Lets time pass until `condition` holds, with turns of the event loop for the real files in between. */
export const passUntil = async (condition: () => boolean, stepMs = 500): Promise<void> => {
  const { signal } = testOver;
  while (!signal.aborted && !condition()) {
    await clock.advance(stepMs);
    await turn(1);
  }
};
/** A condition for {@link passUntil} that holds after `count` steps. */
export const takeTurns = (count: number): (() => boolean) => {
  let left = count;
  return () => left-- === 0;
};
export const kinds = (): string[] => notices.map(({ kind }) => kind);
