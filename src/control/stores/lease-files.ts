/**
 * Atomic operations on a directory of lease files. Knows files and their text, nothing of leases.
 *
 * ```
 * PATH/config                  the network config
 * PATH/subnets/<lease key>     one lease each; only ever created, replaced and removed whole
 * PATH/.podwire/               half-done work, invisible to readers of subnets/
 *     <key>.<id>.new           a text being written; linked or renamed into place when complete
 *     <key>.<hash>.claim       the right to take over the lease with exactly this text
 *     <key>.<id>.tomb          a file moved out of the way while it is being taken over
 * ```
 * No locks: they do not work on every shared file system and outlive their holders. Instead
 * - a file is *created* by link(2), which fails when the name exists, from a text already synced to disk;
 * - the holder of a live lease *replaces* it by rename(2), and nobody else touches a live lease;
 * - an expired lease is *taken* by whoever first links the claim for its text; the taker moves the file
 *   away, checks that it moved what it claimed (else puts it back), and creates its own.
 * A process killed anywhere leaves whole files only, and its remains in `.podwire` are cleaned by age. On NFS,
 * link and rename can succeed and still report an error when the reply was lost, so the result is looked at.
 */
import { createHash, randomBytes } from 'node:crypto';
import { constants, type Stats } from 'node:fs';
import { link, lstat, mkdir, open, readdir, readFile, rename, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf, messageOf, PodwireError } from '../../errors.js';
import { MAX_VALUE_BYTES } from '../lease-codec.js';

/** A taker is done within milliseconds; a claim this old belongs to one that died. */
const CLAIM_LIFE_MS = 30_000;
/** Leftovers older than this are deleted. */
const LEFTOVER_LIFE_MS = 10 * 60_000;

export interface FileText {
  readonly text: string;
  /** Changes whenever the file does, by content or by replacement. */
  readonly signature: string;
}

export type ReadResult =
  | { readonly kind: 'text'; readonly file: FileText }
  /** Its signature is the one the caller knows. */
  | { readonly kind: 'unchanged' }
  | { readonly kind: 'absent' }
  /** Not a readable file of bearable size; `reason` says what it is. */
  | { readonly kind: 'unreadable'; readonly signature: string; readonly reason: string };

export class LeaseFiles {
  readonly path: string;
  readonly configPath: string;
  readonly subnetsPath: string;
  readonly #privatePath: string;

  constructor(path: string) {
    this.path = path;
    this.configPath = join(path, 'config');
    this.subnetsPath = join(path, 'subnets');
    this.#privatePath = join(path, '.podwire');
  }

  leasePath(name: string): string {
    return join(this.subnetsPath, name);
  }

  /** The config's text, or undefined when there is none. @throws PodwireError STORE_UNAVAILABLE. */
  async readConfig(): Promise<string | undefined> {
    try {
      return await readFile(this.configPath, 'utf8');
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return undefined;
      throw storeFault('read the network config', this.configPath, error);
    }
  }

  /** Writes the config whole, in the place of the one there is. @throws PodwireError STORE_UNAVAILABLE. */
  async writeConfig(text: string): Promise<void> {
    await this.ensureSubnets();
    await this.#withNew('config', text, (path) => rename(path, this.configPath));
  }

  /** Creates `subnets/` where missing. @throws PodwireError STORE_UNAVAILABLE. */
  async ensureSubnets(): Promise<void> {
    await mkdir(this.subnetsPath, { recursive: true }).catch((error: unknown) => {
      throw storeFault('create', this.subnetsPath, error);
    });
  }

  /** Identity and modification time of `subnets/`. @throws PodwireError STORE_UNAVAILABLE. */
  async statSubnets(): Promise<{ identity: string; modifiedMs: number; signature: string }> {
    try {
      const info = await stat(this.subnetsPath, { bigint: true });
      const identity = `${info.dev}:${info.ino}`;
      return { identity, modifiedMs: Number(info.mtimeMs), signature: `${identity}:${info.mtimeNs}:${info.nlink}` };
    } catch (error) {
      throw storeFault('read', this.subnetsPath, error);
    }
  }

  /** The names in `subnets/`, in byte order. @throws PodwireError STORE_UNAVAILABLE. */
  async list(): Promise<string[]> {
    try {
      return (await readdir(this.subnetsPath)).sort();
    } catch (error) {
      throw storeFault('list', this.subnetsPath, error);
    }
  }

  /**
   * Reads one lease file, unless `known` is still its signature.
   * @throws PodwireError STORE_UNAVAILABLE when the store, rather than this file, is at fault.
   */
  async read(name: string, known?: string): Promise<ReadResult> {
    try {
      return await this.#read(name, known);
    } catch (error) {
      // NFS: replaced by another host between looking and opening. A stale directory fails again.
      if (errnoOf(error) === 'ESTALE') return this.#read(name, undefined);
      throw error;
    }
  }

  async #read(name: string, known: string | undefined): Promise<ReadResult> {
    const path = this.leasePath(name);
    try {
      const info = await lstat(path, { bigint: true });
      const signature = `${info.ino}:${info.size}:${info.mtimeNs}:${info.ctimeNs}`;
      if (signature === known) return { kind: 'unchanged' };
      // Opening a pipe or device could block for ever, so the type is checked first.
      if (!info.isFile()) return { kind: 'unreadable', signature, reason: 'not a regular file' };
      if (info.size > MAX_VALUE_BYTES) {
        return { kind: 'unreadable', signature, reason: `${info.size} bytes, more than ${MAX_VALUE_BYTES}` };
      }
      return { kind: 'text', file: { text: await readRegular(path), signature } };
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === 'ENOENT') return { kind: 'absent' };
      if (errno === 'EACCES' || errno === 'EPERM' || errno === 'ELOOP') {
        return { kind: 'unreadable', signature: `${name}:${errno}`, reason: messageOf(error) };
      }
      throw storeFault('read', path, error);
    }
  }

  /** Creates a lease file with its whole text; false when the name is taken. @throws PodwireError STORE_UNAVAILABLE. */
  async create(name: string, text: string): Promise<boolean> {
    return this.#withNew(name, text, (path) => this.#link(path, this.leasePath(name)));
  }

  /**
   * Replaces a lease file whose present text `isOurs` accepts. For the holder of a live lease only.
   * @throws PodwireError STORE_UNAVAILABLE.
   */
  async replace(
    name: string,
    isOurs: (text: string) => boolean,
    text: string,
  ): Promise<'replaced' | 'absent' | 'foreign'> {
    return this.#withNew(name, text, async (path) => {
      const before = await this.read(name);
      if (before.kind === 'absent') return 'absent';
      if (before.kind === 'text' && !isOurs(before.file.text)) return 'foreign';
      await rename(path, this.leasePath(name));
      return 'replaced';
    });
  }

  /**
   * Takes the place of a lease file that has exactly the text `expected`, or just removes it when `text` is undefined.
   * False when somebody else was faster or the file has changed. @throws PodwireError STORE_UNAVAILABLE.
   */
  async take(name: string, expected: string, text: string | undefined): Promise<boolean> {
    return this.#withNew(name, text ?? '', async (path, nowMs) => {
      const claim = this.#private(name, createHash('sha256').update(expected).digest('hex').slice(0, 20), 'claim');
      if (!(await this.#claim(path, claim, nowMs))) return false;
      try {
        const before = await this.read(name);
        if (before.kind !== 'text' || before.file.text !== expected) return false;
        const tomb = this.#private(name, uniqueId(), 'tomb');
        if (!(await renameTo(this.leasePath(name), tomb))) return false;
        if ((await readRegular(tomb)) !== expected) {
          await this.#putBack(name, tomb);
          return false;
        }
        const taken = text === undefined || (await this.#link(path, this.leasePath(name)));
        await unlinkIfThere(tomb);
        return taken;
      } finally {
        await unlinkIfThere(claim);
      }
    });
  }

  /** Removes a lease file that `isOurs` accepts. For the holder of a live lease only. @throws PodwireError STORE_UNAVAILABLE. */
  async remove(name: string, isOurs: (text: string) => boolean): Promise<boolean> {
    try {
      const before = await this.read(name);
      if (before.kind !== 'text' || !isOurs(before.file.text)) return false;
      await unlinkIfThere(this.leasePath(name));
      await syncDirectory(this.subnetsPath);
      return true;
    } catch (error) {
      throw storeFault('remove', this.leasePath(name), error);
    }
  }

  /** Whether a file with this text is at this moment moved aside by a taker, so that its absence means nothing. */
  async isMovedAside(name: string, text: string): Promise<boolean> {
    for (const entry of await this.#leftovers()) {
      if (entry.kind !== 'tomb' || entry.name !== name) continue;
      const content = await readRegular(entry.path).catch(() => undefined);
      if (content === text) return true;
    }
    return false;
  }

  /**
   * Clears up after killed processes: puts back files that were moved aside and that `isLive` accepts (a taker that
   * lost against a renewal and died before putting it back), and deletes remains by age.
   */
  async sweep(isLive: (text: string) => boolean): Promise<void> {
    const entries = await this.#leftovers();
    if (entries.length === 0) return;
    const nowMs = await this.#fileSystemNow();
    for (const { path, name, kind } of entries) {
      try {
        const info = await lstat(path);
        if (kind === 'tomb' && isLive(await readRegular(path))) await this.#putBack(name, path);
        else if (nowMs - startedMs(info, kind) > LEFTOVER_LIFE_MS) await unlinkIfThere(path);
      } catch (error) {
        // Its owner finished meanwhile, or it is not ours to delete: the next sweep sees.
        if (errnoOf(error) === undefined) throw error;
      }
    }
  }

  /** Writes `text` to a fresh private file, hands it to `use` with the file system's time, and removes it. */
  async #withNew<T>(name: string, text: string, use: (path: string, nowMs: number) => Promise<T>): Promise<T> {
    const path = this.#private(name, uniqueId(), 'new');
    try {
      await mkdir(this.#privatePath, { recursive: true });
      let result: T;
      try {
        const nowMs = await writeSynced(path, text);
        result = await use(path, nowMs);
      } finally {
        await unlinkIfThere(path);
      }
      await syncDirectory(this.subnetsPath);
      return result;
    } catch (error) {
      throw storeFault('write lease', this.leasePath(name), error);
    }
  }

  /** link(2), true when `to` is now the file `from`, false when it is another. */
  async #link(from: string, to: string): Promise<boolean> {
    try {
      await link(from, to);
      return true;
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === 'EPERM' || errno === 'EOPNOTSUPP' || errno === 'ENOTSUP' || errno === 'ENOSYS') {
        throw new PodwireError(
          'UNSUPPORTED',
          `cannot keep leases in ${this.path}: its file system refuses hard links (${errno}); use another directory`,
          { cause: error, errno, syscall: 'link' },
        );
      }
      if (errno !== 'EEXIST') throw error;
      return sameFile(from, to);
    }
  }

  async #claim(path: string, claim: string, nowMs: number): Promise<boolean> {
    for (let attempt = 0; attempt < 2; attempt++) {
      if (await this.#link(path, claim)) return true;
      const info = await lstat(claim).catch(() => undefined);
      if (info && nowMs - startedMs(info, 'claim') <= CLAIM_LIFE_MS) return false;
      await unlinkIfThere(claim);
    }
    return false;
  }

  /** Undoes a move; the tomb goes once its file has its name back, or the name belongs to a newer file. */
  async #putBack(name: string, tomb: string): Promise<void> {
    await this.#link(tomb, this.leasePath(name));
    await unlinkIfThere(tomb);
  }

  async #leftovers(): Promise<{ path: string; name: string; kind: string }[]> {
    const names = await readdir(this.#privatePath).catch(() => [] as string[]);
    return names.flatMap((file) => {
      const match = /^(.+)\.[0-9a-f]+\.(new|claim|tomb)$/.exec(file);
      return match ? [{ path: join(this.#privatePath, file), name: match[1]!, kind: match[2]! }] : [];
    });
  }

  /** Now by the clock that stamps the files: ages must not depend on how a host's clock is set. */
  async #fileSystemNow(): Promise<number> {
    const path = this.#private('sweep', uniqueId(), 'new');
    try {
      return await writeSynced(path, '');
    } finally {
      await unlinkIfThere(path);
    }
  }

  #private(name: string, id: string, kind: 'new' | 'claim' | 'tomb'): string {
    return join(this.#privatePath, `${name}.${id}.${kind}`);
  }
}

const ADVICE: Readonly<Record<string, string>> = {
  ENOSPC: 'free some space',
  EDQUOT: 'raise the quota',
  EROFS: 'mount it read-write',
  EACCES: 'run as a user who may, or change its mode',
  EPERM: 'run as a user who may',
  ENOENT: 'create it, or mount what belongs there',
  ENOTDIR: 'something else is in its place',
  ESTALE: 'the share was re-exported; mount it again',
};

/** A system error as one line: what was tried, on which path, what to do. */
export function storeFault(what: string, path: string, error: unknown): PodwireError {
  if (error instanceof PodwireError) return error;
  const errno = errnoOf(error);
  const syscall = error instanceof Error && 'syscall' in error ? String(error.syscall) : undefined;
  const advice = errno === undefined ? undefined : ADVICE[errno];
  // Node's message repeats the path and the call: "ENOSPC: no space left on device, write".
  const reason = messageOf(error).replace(/,.*$/, '');
  return new PodwireError('STORE_UNAVAILABLE', `cannot ${what} ${path}: ${reason}${advice ? `; ${advice}` : ''}`, {
    cause: error,
    ...(errno !== undefined && { errno }),
    ...(syscall !== undefined && { syscall }),
  });
}

function uniqueId(): string {
  return randomBytes(10).toString('hex');
}

/** When the work on a private file began: a tomb is an old file, and the move shows in its change time only. */
function startedMs(info: Stats, kind: string): number {
  return kind === 'tomb' ? info.ctimeMs : info.mtimeMs;
}

/** Writes and syncs a new file readable by all; its modification time, by the file system's clock. */
async function writeSynced(path: string, text: string): Promise<number> {
  const handle = await open(path, 'wx', 0o644);
  try {
    await handle.writeFile(text);
    await handle.chmod(0o644);
    await handle.sync();
    return (await handle.stat()).mtimeMs;
  } finally {
    await handle.close();
  }
}

async function readRegular(path: string): Promise<string> {
  const handle = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  try {
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}

async function unlinkIfThere(path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => {
    if (errnoOf(error) !== 'ENOENT') throw error;
  });
}

/** rename(2); false when `from` is not there, and has not become `to` behind a lost reply either. */
async function renameTo(from: string, to: string): Promise<boolean> {
  try {
    await rename(from, to);
    return true;
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    return (await lstat(to).catch(() => undefined)) !== undefined;
  }
}

async function sameFile(a: string, b: string): Promise<boolean> {
  const [first, second] = await Promise.all([lstat(a), lstat(b).catch(() => undefined)]);
  return second !== undefined && first.ino === second.ino && first.dev === second.dev;
}

/** Makes names durable. Not every file system syncs directories, and a lease survives without. */
async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY).catch(() => undefined);
  await handle?.sync().catch(() => undefined);
  await handle?.close().catch(() => undefined);
}
