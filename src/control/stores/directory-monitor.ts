/**
 * Keeps an {@link EntryTable} in step with a directory: inotify for speed, a periodic rescan for what inotify cannot
 * see (other hosts on a shared file system, lost events), and patience when the directory cannot be read.
 *
 * A failure to read never changes the table. After an outage nothing expires for `returnGraceMs`, and if the
 * directory that came back is another one, nothing that is missing from it is dropped for as long either: its
 * holders need time to write their leases again.
 *
 * On NFS a rescan sees other hosts' files only as fresh as the mount's attribute cache: mount with `actimeo=1`.
 */
import { watch, type FSWatcher } from 'node:fs';
import { messageOf } from '../../errors.js';
import { Backoff, type Clock } from '../clock.js';
import { isExpired, type StoreNotice } from '../lease.js';
import { decodeLease } from '../lease-codec.js';
import { tryParseLeaseKey } from '../lease-key.js';
import type { EntryTable } from './entry-table.js';
import type { LeaseFiles } from './lease-files.js';

/** Files looked at together. */
const CONCURRENCY = 16;
/** A file moved aside is put back or gone within this. */
const MOVED_ASIDE_RECHECK_MS = 100;
/** Every so many rescans everything is looked at, even when the directory says that nothing changed. */
const FULL_EVERY = 12;

export interface DirectoryMonitorOptions {
  readonly files: LeaseFiles;
  readonly table: EntryTable;
  readonly clock: Clock;
  readonly random: () => number;
  readonly rescanMs: number;
  readonly returnGraceMs: number;
  readonly skewMs: number;
  readonly inotify: boolean;
  readonly onNotice: (notice: StoreNotice) => void;
}

export class DirectoryMonitor {
  readonly #options: DirectoryMonitorOptions;
  readonly #pending = new Set<string>();
  #turn: Promise<unknown> = Promise.resolve();
  #watcher: FSWatcher | undefined;
  readonly #signatures = new Map<string, string>();
  /** Which directory was listed last, and which one inotify watches: one name can become another directory. */
  #identity: string | undefined;
  #watchedIdentity: string | undefined;
  /** The directory's signature at the last scan, and how many scans in a row it has been the same. */
  #signature: string | undefined;
  #sameScans = 0;
  #scans = 0;
  #isElsewhere = false;
  #isRunning = false;
  #isDown = false;
  #isDegraded = false;
  #wake: (() => void) | undefined;

  constructor(options: DirectoryMonitorOptions) {
    this.#options = options;
  }

  /** Runs `work` alone: observations and writes of one client must not overtake each other. */
  exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work);
    this.#turn = result.catch(() => undefined);
    return result;
  }

  /** Looks at everything now; call within {@link exclusive}. @throws PodwireError STORE_UNAVAILABLE. */
  async refresh(): Promise<void> {
    const { files, table, clock, returnGraceMs } = this.#options;
    const at = table.epoch;
    const { identity } = await files.statSubnets();
    const names = await files.list();
    const isOther = this.#identity !== undefined && this.#identity !== identity;
    if (isOther) table.hold(clock.monotonic() + returnGraceMs);
    this.#identity = identity;
    const present = new Set(names);
    table.forgetForeign(present);
    for (const name of this.#signatures.keys()) if (!present.has(name)) this.#signatures.delete(name);
    await this.#lookAt(names, at);
    for (const name of table.names()) if (!present.has(name)) await this.#vanished(name, at, isOther);
    table.revive(at);
  }

  /** Whether the directory has been listed, so that there is something to tell. */
  get hasScanned(): boolean {
    return this.#identity !== undefined;
  }

  /** Deletes or puts back what killed processes left behind; call within {@link exclusive}. */
  async sweep(): Promise<void> {
    await this.#options.files.sweep((text) => {
      try {
        return !isExpired(decodeLease(text), this.#options.clock.now(), this.#options.skewMs);
      } catch {
        return false;
      }
    });
  }

  /** Follows the directory until `signal` aborts. A second call while one is running does nothing. */
  async run(signal: AbortSignal): Promise<void> {
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#signature = undefined;
    const { clock, random, rescanMs } = this.#options;
    const backoff = new Backoff({ minMs: 100, maxMs: rescanMs }, random);
    let nextScanMs = Number.NEGATIVE_INFINITY;
    try {
      while (!signal.aborted) {
        try {
          await this.exclusive(async () => {
            if (clock.monotonic() >= nextScanMs) {
              await this.#scan();
              nextScanMs = clock.monotonic() + rescanMs;
            } else {
              await this.#catchUp();
            }
          });
          this.#succeeded();
          backoff.reset();
        } catch (error) {
          this.#failed(error);
          nextScanMs = clock.monotonic() + backoff.nextMs();
        }
        await this.#sleep(
          Math.min(nextScanMs, this.#isDown ? Number.POSITIVE_INFINITY : this.#options.table.nextDueMs),
          signal,
        );
      }
    } finally {
      this.#closeWatcher();
      this.#isRunning = false;
    }
  }

  async #scan(): Promise<void> {
    const { files, table, clock, returnGraceMs } = this.#options;
    if (this.#isDown) table.hold(clock.monotonic() + returnGraceMs);
    // A new network: the config is there, nobody has taken a lease yet.
    if (!this.hasScanned && (await files.readConfig()) !== undefined) await files.ensureSubnets();
    // Listen first, list second: what happens in between is seen twice rather than never.
    const signature = await this.#listen();
    this.#sameScans = signature === this.#signature ? this.#sameScans + 1 : 0;
    this.#signature = signature;
    const isFull = this.#scans++ % FULL_EVERY === 0;
    // Changes within one tick of the file system's clock look alike, so a signature is trusted from its third sight on.
    if (isFull || this.#sameScans < 2) {
      this.#pending.clear();
      await this.refresh();
      if (isFull) await this.sweep();
      table.startFeeds();
    }
    await this.#catchUp();
  }

  /** Names that inotify reported, and leases whose time is up: an expiry counts only once the file was seen unrenewed. */
  async #catchUp(): Promise<void> {
    const { table } = this.#options;
    const names = [...this.#pending];
    this.#pending.clear();
    const due = table.due();
    const at = table.epoch;
    try {
      await this.#lookAt(new Set([...names, ...due]), at);
    } catch (error) {
      for (const name of names) this.#pending.add(name);
      if (due.length > 0) table.stillDue();
      throw error;
    }
    if (this.#isElsewhere) {
      this.#isElsewhere = false;
      await this.#listen();
      await this.refresh();
    }
    for (const name of due) table.publish(name, at);
  }

  async #lookAt(names: Iterable<string>, at: number): Promise<void> {
    const queue = [...names];
    const work = async (): Promise<void> => {
      for (let name = queue.pop(); name !== undefined; name = queue.pop()) await this.#look(name, at);
    };
    await Promise.all(Array.from({ length: Math.min(CONCURRENCY, queue.length) }, work));
  }

  async #look(name: string, at: number): Promise<void> {
    const { files, table } = this.#options;
    const isLease = tryParseLeaseKey(name) !== undefined;
    const entry = table.get(name);
    const known = !isLease || (entry && !entry.isMissing) ? this.#signatures.get(name) : undefined;
    const result = await files.read(name, known);
    switch (result.kind) {
      case 'unchanged':
        return;
      case 'absent': {
        // Gone together with its directory says nothing about the file: the whole has to be looked at.
        const { identity } = await files.statSubnets();
        if (identity === this.#identity) await this.#vanished(name, at, false);
        else this.#isElsewhere = true;
        return;
      }
      case 'unreadable':
        this.#signatures.set(name, result.signature);
        if (isLease) table.unreadable(name, result.signature, result.reason, at);
        else table.foreign(name, result.signature);
        return;
      case 'text':
        this.#signatures.set(name, result.file.signature);
        if (isLease) table.observe(name, result.file.text, at);
        else table.foreign(name, result.file.signature);
    }
  }

  async #vanished(name: string, at: number, isOther: boolean): Promise<void> {
    const { files, table, clock } = this.#options;
    const entry = table.get(name);
    if (entry && (isOther || (entry.isMissing && table.isHolding))) {
      this.#signature = undefined;
      table.missing(name, at);
      return;
    }
    if (entry?.text !== undefined && !table.isExpired(entry) && (await files.isMovedAside(name, entry.text))) {
      clock.timer(() => this.#suspect(name), MOVED_ASIDE_RECHECK_MS);
      return;
    }
    this.#signatures.delete(name);
    table.gone(name, at);
  }

  /** Makes inotify watch the directory that is there now, and tells its signature. */
  async #listen(): Promise<string> {
    const { identity, signature } = await this.#options.files.statSubnets();
    if (identity !== this.#watchedIdentity) this.#closeWatcher();
    this.#openWatcher(identity);
    return signature;
  }

  #openWatcher(identity: string): void {
    if (this.#watcher || !this.#options.inotify) return;
    try {
      this.#watcher = watch(this.#options.files.subnetsPath, (_event, name) => this.#suspect(name ?? undefined));
      this.#watcher.on('error', (error) => this.#degraded(error));
      this.#watchedIdentity = identity;
    } catch (error) {
      this.#degraded(error);
    }
  }

  #closeWatcher(): void {
    this.#watcher?.close();
    this.#watcher = undefined;
  }

  #degraded(error: unknown): void {
    this.#closeWatcher();
    if (this.#isDegraded) return;
    this.#isDegraded = true;
    const { files, rescanMs, onNotice } = this.#options;
    const reason = `no change events for ${files.subnetsPath} (${messageOf(error)}); looking every ${rescanMs} ms instead`;
    onNotice({ kind: 'degraded', reason });
  }

  #suspect(name: string | undefined): void {
    if (name === undefined) this.#signature = undefined;
    else this.#pending.add(name);
    this.#wake?.();
  }

  #failed(error: unknown): void {
    this.#closeWatcher();
    this.#signature = undefined;
    if (this.#isDown) return;
    this.#isDown = true;
    this.#options.onNotice({ kind: 'down', reason: `${messageOf(error)}; known leases stay in force`, error });
  }

  #succeeded(): void {
    if (!this.#isDown) return;
    this.#isDown = false;
    this.#options.onNotice({ kind: 'up', reason: `${this.#options.files.subnetsPath} can be read again` });
  }

  /** Until `atMs` (monotonic), a suspicion, or the end. */
  async #sleep(atMs: number, signal: AbortSignal): Promise<void> {
    if ((this.#pending.size > 0 && !this.#isDown) || signal.aborted) return;
    const { clock } = this.#options;
    const delayMs = atMs - clock.monotonic();
    if (delayMs <= 0) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        this.#wake = undefined;
        cancel();
        signal.removeEventListener('abort', done);
        resolve();
      };
      const cancel = clock.timer(done, delayMs);
      this.#wake = this.#isDown ? undefined : done;
      signal.addEventListener('abort', done, { once: true });
    });
  }
}
