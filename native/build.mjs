#!/usr/bin/env node
// Builds the addon with the C compiler that is there, without node-gyp and without a download.
//
//   node native/build.mjs                   prebuilds/linux-<arch>/podwire.node; no work when nothing changed
//   node native/build.mjs --install         the same for an installed package: a binary that loads is kept
//   node native/build.mjs --sanitize-test   native/test/*.c under ASan and UBSan, each program with its own main()
//   node native/build.mjs --sanitize-addon  an instrumented addon; prints the environment to load it with
//   node native/build.mjs --sources         the sources for this architecture (binding.gyp reads this)
//
// native/*.c is the addon, except native/test*. Only files that include <node_api.h> know Node, so everything else
// links into the test programs unchanged. A file named *_avx2.c is compiled with -mavx2, and left out where that
// means nothing; *_neon.c likewise exists on arm64 only. NAPI_VERSION 8 makes one binary serve Node 20 to 26.

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { basename, dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const native = dirname(fileURLToPath(import.meta.url));
const root = dirname(native);
const target = `linux-${process.arch}`;
const binary = join(root, 'prebuilds', target, 'podwire.node');

const COMMON = ['-D_GNU_SOURCE', '-g', '-fPIC', '-Wall', '-Wextra', '-std=gnu11', '-fvisibility=hidden'];
const RELEASE = ['-O2', ...COMMON];
const SANITIZE = [
  '-O1',
  '-fno-omit-frame-pointer',
  '-fsanitize=address,undefined',
  '-fno-sanitize-recover=all',
  '-DPODWIRE_SANITIZE=1',
  ...COMMON,
];

/** What a failed build throws: one line for a person, and the compiler's own words. */
export class BuildError extends Error {
  constructor(message, output = '') {
    super(message);
    this.name = 'BuildError';
    this.output = output;
  }
}

/** The compiler from `CC` (which may carry arguments), else `cc`. */
function compiler() {
  const [command, ...args] = (process.env.CC ?? 'cc').trim().split(/\s+/);
  const version = spawnSync(command, [...args, '--version'], { encoding: 'utf8' });
  if (version.error !== undefined || version.status !== 0) {
    const reason = version.error?.message ?? `exit code ${String(version.status)}`;
    throw new BuildError(
      `cannot run the C compiler '${command}' (${reason}); install gcc (Debian/Ubuntu: apt-get install gcc libc6-dev) or set CC`,
    );
  }
  return { command, args, version: version.stdout.split('\n')[0] };
}

/** The directory that holds node_api.h: beside the running Node, in the usual places, else node-api-headers. */
export function headers() {
  const beside = join(dirname(process.execPath), '..', 'include', 'node');
  for (const candidate of [beside, '/usr/include/node', '/usr/local/include/node']) {
    if (existsSync(join(candidate, 'node_api.h'))) return resolve(candidate);
  }
  try {
    return createRequire(import.meta.url)('node-api-headers').include_dir;
  } catch {
    throw new BuildError(
      `no Node-API headers: tried ${beside}, /usr/include/node, /usr/local/include/node and the package node-api-headers; run 'npm install node-api-headers'`,
    );
  }
}

/** The addon's sources for an architecture, absolute paths in a fixed order. */
export function sources(arch = process.arch) {
  return readdirSync(native)
    .filter((name) => name.endsWith('.c') && !name.startsWith('test'))
    .filter((name) => arch === 'x64' || !name.endsWith('_avx2.c'))
    .filter((name) => arch === 'arm64' || !name.endsWith('_neon.c'))
    .sort()
    .map((name) => join(native, name));
}

function extraFlags(file) {
  return file.endsWith('_avx2.c') ? ['-mavx2'] : [];
}

function usesNode(file) {
  return /^\s*#\s*include\s*<(?:node_api|js_native_api)\.h>/m.test(readFileSync(file, 'utf8'));
}

function headerFiles() {
  const found = [];
  for (const directory of [native, join(native, 'test')]) {
    if (!existsSync(directory)) continue;
    for (const name of readdirSync(directory).sort()) if (name.endsWith('.h')) found.push(join(directory, name));
  }
  return found;
}

/** A digest of texts and files. File names count relative to the package, so that a moved checkout stays built. */
function digest(texts, files) {
  const hash = createHash('sha256');
  for (const text of texts) hash.update(text).update('\0');
  for (const file of files) hash.update(relative(root, file)).update('\0').update(readFileSync(file)).update('\0');
  return hash.digest('hex');
}

/** The build's inputs as one digest; the stamp beside a binary holds the one it was made from. */
export function inputDigest(cc = compiler()) {
  const self = fileURLToPath(import.meta.url);
  return digest([cc.version, ...cc.args, ...RELEASE, process.arch], [self, ...headerFiles(), ...sources()]);
}

function readIfThere(file) {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

/** Runs a program; resolves with its exit code (128 + signal number when killed) and everything it printed. */
function run(command, args, options = {}) {
  return new Promise((done, fail) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += String(chunk)));
    child.on('error', fail);
    child.on('close', (code, signal) => done({ code: code ?? 128, signal, output }));
  });
}

async function eachOf(items, limit, work) {
  const queue = [...items];
  const lanes = Array.from({ length: Math.max(1, Math.min(limit, queue.length)) }, async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item);
  });
  await Promise.all(lanes);
}

/** Compiles sources to objects in `directory`, those whose inputs changed; returns the objects in the same order. */
async function compile(cc, files, flags, directory, { strict, log }) {
  mkdirSync(directory, { recursive: true });
  const shared = headerFiles();
  const objects = new Map();
  await eachOf(files, availableParallelism(), async (file) => {
    const args = [...cc.args, ...flags, ...extraFlags(file), '-I', native];
    if (usesNode(file)) args.push('-DNAPI_VERSION=8', '-isystem', headers());
    const object = join(directory, `${basename(file, '.c')}.o`);
    const key = digest([cc.version, ...args, ...(strict ? ['-Werror'] : [])], [file, ...shared]);
    objects.set(file, object);
    if (existsSync(object) && readIfThere(`${object}.stamp`) === key) return;
    if (strict) args.push('-Werror');
    const result = await run(cc.command, [...args, '-c', file, '-o', object]);
    if (result.code !== 0) {
      throw new BuildError(`${relative(root, file)} does not compile (${cc.version})`, result.output);
    }
    if (result.output !== '') log(result.output.trimEnd());
    writeFileSync(`${object}.stamp`, key);
  });
  return files.map((file) => objects.get(file));
}

async function link(cc, objects, flags, output) {
  mkdirSync(dirname(output), { recursive: true });
  const temporary = `${output}.${String(process.pid)}.tmp`;
  const result = await run(cc.command, [...cc.args, ...flags, '-o', temporary, ...objects, '-lpthread']);
  if (result.code !== 0) {
    rmSync(temporary, { force: true });
    throw new BuildError(`${relative(root, output)} does not link (${cc.version})`, result.output);
  }
  // A rename never truncates a file that a running agent has mapped.
  renameSync(temporary, output);
}

/**
 * Builds prebuilds/linux-<arch>/podwire.node unless its stamp says that it is up to date.
 *
 * @param {{ strict?: boolean, log?: (line: string) => void }} options `strict` (default) makes warnings errors; a
 *   stranger's newer compiler may warn of more, so set-up and `npm install` switch it off outside CI.
 * @returns {Promise<{ built: boolean, path: string }>}
 * @throws {BuildError} no compiler, no headers, or a source that does not compile
 */
export async function buildAddon({ strict = true, log = console.error } = {}) {
  const cc = compiler();
  const inputs = inputDigest(cc);
  const stamp = join(dirname(binary), 'podwire.stamp');
  if (existsSync(binary) && readIfThere(stamp) === inputs) return { built: false, path: binary };
  const files = sources();
  if (files.length === 0) throw new BuildError(`no C sources in ${native}; the checkout or package is incomplete`);
  const objects = await compile(cc, files, RELEASE, join(native, 'build', target), { strict, log });
  rmSync(stamp, { force: true });
  await link(cc, objects, ['-shared', '-O2', '-g', '-Wl,-z,relro,-z,now'], binary);
  writeFileSync(stamp, inputs);
  return { built: true, path: binary };
}

/** For `npm install` of the published package: a binary that loads is kept, else compiled, else left to node-gyp. */
async function install() {
  if (existsSync(binary)) {
    try {
      createRequire(import.meta.url)(binary);
      return 'the prebuilt addon loads';
    } catch (error) {
      console.error(`podwire: the prebuilt addon does not load here (${error.message.split('\n')[0]}); compiling it`);
    }
  }
  try {
    const { path } = await buildAddon({ strict: false });
    return `built ${relative(root, path)}`;
  } catch (error) {
    if (!(error instanceof BuildError) || !error.message.startsWith('no Node-API headers')) throw error;
    const gyp = spawnSync('node-gyp', ['rebuild', '--directory', native], { stdio: 'inherit' });
    if (gyp.error !== undefined || gyp.status !== 0) throw error;
    mkdirSync(dirname(binary), { recursive: true });
    copyFileSync(join(native, 'build', 'Release', 'podwire.node'), binary);
    return `built ${relative(root, binary)} with node-gyp`;
  }
}

/** GCC 12's sanitizers cannot place their shadow memory under a kernel with 32 random bits; setarch -R helps. */
function withoutRandomAddresses(command, args) {
  const probe = spawnSync('setarch', ['-R', 'true']);
  return probe.status === 0 ? ['setarch', ['-R', command, ...args]] : [command, args];
}

/** Builds and runs one test program; a compile error fails this program, not the others. */
async function sanitizedProgram(cc, file, library, output, options) {
  const program = join(output, basename(file, '.c'));
  try {
    const [object] = await compile(cc, [file], SANITIZE, join(output, 'test'), options);
    await link(cc, [object, ...library], ['-fsanitize=address,undefined', '-g', '-lm'], program);
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    return { passed: false, detail: error.message, output: error.output };
  }
  const [command, args] = withoutRandomAddresses(program, []);
  const env = { ...process.env, ASAN_OPTIONS: 'detect_leaks=1', UBSAN_OPTIONS: 'print_stacktrace=1' };
  const result = await run(command, args, { cwd: root, env });
  const passed = result.code === 0 && result.signal === null;
  return { passed, detail: passed ? '' : `exit ${String(result.signal ?? result.code)}`, output: result.output };
}

async function sanitizeTest() {
  const cc = compiler();
  const directory = join(native, 'test');
  const programs = existsSync(directory)
    ? readdirSync(directory)
        .filter((name) => name.endsWith('.c'))
        .sort()
    : [];
  if (programs.length === 0) throw new BuildError(`no test programs: ${join(directory, '*.c')} matches nothing`);
  const output = join(native, 'build', `${target}-sanitize-test`);
  const options = { strict: true, log: console.error };
  const library = await compile(
    cc,
    sources().filter((file) => !usesNode(file)),
    SANITIZE,
    output,
    options,
  );
  let failed = 0;
  for (const name of programs) {
    const {
      passed,
      detail,
      output: said,
    } = await sanitizedProgram(cc, join(directory, name), library, output, options);
    if (!passed) failed += 1;
    console.log(`${passed ? 'ok    ' : 'FAILED'} native/test/${name}${detail === '' ? '' : ` (${detail})`}`);
    if (!passed && said !== '') console.log(said.trimEnd());
  }
  console.log(`native: ${String(programs.length - failed)} passed, ${String(failed)} failed`);
  return failed === 0;
}

async function sanitizeAddon() {
  const cc = compiler();
  const home = join(native, 'build', `${target}-sanitize-addon`);
  const output = join(home, 'prebuilds', target, 'podwire.node');
  const objects = await compile(cc, sources(), SANITIZE, join(home, 'objects'), { strict: true, log: console.error });
  await link(cc, objects, ['-shared', '-g', '-fsanitize=address,undefined'], output);
  const libraries = ['libasan.so', 'libubsan.so'].map((name) =>
    spawnSync(cc.command, [...cc.args, `-print-file-name=${name}`], { encoding: 'utf8' }).stdout.trim(),
  );
  // node-gyp-build looks below PODWIRE_PREBUILD first. The preloaded libraries also watch Node, which never frees what
  // it holds at exit and deletes by its own rules, and every program that is started: iproute2 copies a string onto
  // itself. None of that is the addon's.
  const strings = ['replace_str', 'intercept_strlen', 'intercept_strchr', 'intercept_strndup'];
  const off = ['detect_leaks', 'new_delete_type_mismatch', ...strings].map((name) => `${name}=0`);
  console.log(`PODWIRE_PREBUILD=${home}`);
  console.log(`LD_PRELOAD=${libraries.join(':')}`);
  console.log(`ASAN_OPTIONS=${off.join(':')}`);
  return true;
}

async function main(args) {
  const [mode, ...rest] = args;
  if (rest.length > 0) throw new BuildError(`one option at most, got '${args.join(' ')}'`);
  switch (mode) {
    case undefined: {
      const { built, path } = await buildAddon();
      console.log(`${relative(process.cwd(), path)} ${built ? 'built' : 'is up to date'}`);
      return true;
    }
    case '--install':
      console.log(`podwire: ${await install()}`);
      return true;
    case '--sanitize-test':
      return await sanitizeTest();
    case '--sanitize-addon':
      return await sanitizeAddon();
    case '--sources':
      console.log(
        sources()
          .map((file) => basename(file))
          .join('\n'),
      );
      return true;
    default:
      throw new BuildError(
        `unknown option '${mode}'; use --install, --sanitize-test, --sanitize-addon, --sources or nothing`,
      );
  }
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(resolve(process.argv[1])).href) {
  try {
    process.exitCode = (await main(process.argv.slice(2))) ? 0 : 1;
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    if (error.output !== '') console.error(error.output.trimEnd());
    console.error(`podwire native build: ${error.message}`);
    process.exitCode = 1;
  }
}
