/**
 * A program in one file, and V8's compiled code of it, which is kept from one start to the next: compiling is most of
 * what a start does.
 *
 * The compiled code is as good as the program itself: who can write it can be us. So it is kept in a directory that the
 * service manager made for us alone (systemd's CacheDirectory=), else beside the bundle, and in neither unless the
 * directory is our own and nobody else may write there.
 */
import { closeSync, openSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writevSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, isAbsolute, join } from 'node:path';
import { cachedDataVersionTag } from 'node:v8';
import { Script } from 'node:vm';
import { crc32 } from 'node:zlib';

/** Of the file with compiled code: CRC-32 and length of the rest, 4 bytes each, little-endian. V8 checks neither. */
const HEADER_BYTES = 8;

type Wrapper = (
  exports: unknown,
  require: NodeJS.Require,
  module: { exports: unknown },
  filename: string,
  directory: string,
) => void;

export class Bundle {
  readonly #file: string;
  readonly #cacheDirectory: string;
  #script: Script | undefined;
  #cacheFile = '';
  #wasCompiled = false;

  /**
   * @param file a program without import(), in ASCII: a first line of `// ` and a digest of the rest in hexadecimal digits,
   *   then one expression, the function that CommonJS calls.
   * @param cacheDirectory `CACHE_DIRECTORY` as systemd sets it: of several, with colons between, the first is ours.
   */
  constructor(file: string, cacheDirectory: string | undefined) {
    this.#file = file;
    const [given = ''] = (cacheDirectory ?? '').split(':');
    this.#cacheDirectory = isAbsolute(given) ? given : dirname(file);
  }

  /** True when the compiled code of an earlier start was taken. */
  get wasCompiled(): boolean {
    return this.#wasCompiled;
  }

  /** Runs the file. @returns what it exports. */
  load(): unknown {
    const source = readFileSync(this.#file, 'latin1');
    const digest = /^\/\/ ([0-9a-f]{16})/.exec(source)?.[1];
    const filename = this.#file;
    // V8 compares only lengths: the digest tells bundles apart. The tag stands for V8's version, flags and processor.
    if (digest !== undefined) this.#cacheFile = `${prefix()}${digest}.cache`;
    const cachedData = this.#read();
    const script = new Script(source, { filename, ...(cachedData === undefined ? {} : { cachedData }) });
    this.#wasCompiled = cachedData !== undefined && script.cachedDataRejected !== true;
    this.#script = script;
    const module: { exports: unknown } = { exports: {} };
    const run = script.runInThisContext() as Wrapper;
    run(module.exports, createRequire(filename), module, filename, dirname(filename));
    return module.exports;
  }

  /** Keeps what V8 has compiled so far for the next {@link load}; without a place for it nothing is kept. */
  keep(): void {
    const script = this.#script;
    this.#script = undefined;
    if (script === undefined || this.#cacheFile === '' || !isOurs(this.#cacheDirectory)) return;
    const file = join(this.#cacheDirectory, this.#cacheFile);
    const unfinished = `${file}.${process.pid}`;
    try {
      write(unfinished, script.createCachedData());
      renameSync(unfinished, file);
      // Of earlier bundles, for this very Node.
      for (const name of readdirSync(this.#cacheDirectory)) {
        if (name.startsWith(prefix()) && name !== this.#cacheFile) rmSync(join(this.#cacheDirectory, name));
      }
    } catch {
      // A full or read-only disk: the next start compiles again.
      rmSync(unfinished, { force: true });
    }
  }

  #read(): Buffer | undefined {
    if (this.#cacheFile === '' || !isOurs(this.#cacheDirectory)) return undefined;
    try {
      return unseal(readFileSync(join(this.#cacheDirectory, this.#cacheFile)));
    } catch {
      return undefined;
    }
  }
}

/** Makes the file; none of that name may be there. */
function write(file: string, data: Buffer): void {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(crc32(data), 0);
  header.writeUInt32LE(data.length, 4);
  const fd = openSync(file, 'wx', 0o644);
  try {
    // What a full disk cuts is seen by its length.
    writevSync(fd, [header, data]);
  } finally {
    closeSync(fd);
  }
}

/** Undefined where the file was cut or damaged. */
function unseal(file: Buffer): Buffer | undefined {
  if (file.length < HEADER_BYTES) return undefined;
  const data = file.subarray(HEADER_BYTES);
  return file.readUInt32LE(4) === data.length && file.readUInt32LE(0) === crc32(data) ? data : undefined;
}

function prefix(): string {
  return `podwire-${cachedDataVersionTag().toString(16)}-`;
}

/** Of this user, or of root, who may be us anyway; and not writable by others. */
function isOurs(directory: string): boolean {
  try {
    const { uid, mode } = statSync(directory);
    return (uid === process.geteuid?.() || uid === 0) && (mode & 0o022) === 0;
  } catch {
    return false;
  }
}
