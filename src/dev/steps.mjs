// The steps of set-up. Each looks first whether there is anything to do, and says nothing when there is not.

import { spawn } from 'node:child_process';
import { accessSync, constants, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { BuildError, buildAddon } from '../../native/build.mjs';
import { bundleOf, makeBundle } from './bundle.mjs';
import { dependencyGap, digestOf, outputOf, removeOrphans, typescriptInputs } from './inputs.mjs';
import { available, ensureCommands, say, SetupError } from './system.mjs';

function run(command, args, options = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += String(chunk)));
    child.on('error', (error) => reject(new SetupError(`cannot run ${command}: ${error.message}`)));
    child.on('close', (code) => resolve({ code, output }));
  });
}

/** npm as the one that runs us, else the one on the PATH. */
async function npm(root, args, env = {}) {
  const own = process.env.npm_execpath;
  const byNode = own !== undefined && /\.c?js$/.test(own) && existsSync(own);
  const [command, first] = byNode ? [process.execPath, [own]] : ['npm', []];
  return await run(command, [...first, ...args], { cwd: root, env: { ...process.env, ...env } });
}

function checkWritable(root, what) {
  try {
    accessSync(root, constants.W_OK);
  } catch {
    throw new SetupError(
      `${what} is to be written, but ${root} is read-only for this user; its owner runs: npm run setup`,
    );
  }
}

async function timed(what, work) {
  const start = performance.now();
  say(`${what} ...`);
  const result = await work();
  say(`${what}: ${((performance.now() - start) / 1000).toFixed(1)} s`);
  return result;
}

/** npm ci with the lock file, when node_modules does not match it. Install scripts stay off: no step waits for them. */
export async function dependencies(root) {
  const gap = dependencyGap(root);
  if (gap === undefined) return;
  checkWritable(root, 'node_modules');
  await timed(`installing npm packages (${gap})`, async () => {
    const args = ['ci', '--ignore-scripts', '--prefer-offline', '--no-audit', '--no-fund', '--loglevel=error'];
    const { code, output } = await npm(root, args);
    if (code !== 0) throw new SetupError(`npm ${args.join(' ')} failed with exit code ${code}`, output);
  });
}

/**
 * TypeScript to dist/, when a source, the configuration or the compiler changed, or an output is missing.
 *
 * @returns the digest of what dist/ is made of
 */
export async function typescript(root) {
  const stamp = join(root, 'dist/.setup');
  const { sources, digest } = typescriptInputs(root);
  const recorded = existsSync(stamp) ? readFileSync(stamp, 'utf8') : '';
  if (recorded === digest && sources.every((source) => existsSync(outputOf(root, source)))) return digest;
  checkWritable(root, 'dist');
  await timed('compiling TypeScript', async () => {
    // An output that was deleted by hand is written again only without the incremental record.
    if (sources.some((source) => !existsSync(outputOf(root, source))))
      rmSync(join(root, 'dist/.tsbuildinfo'), { force: true });
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    const { code, output } = await run(process.execPath, [compiler, '-p', 'tsconfig.json'], { cwd: root });
    if (code !== 0) throw new SetupError('the TypeScript sources do not compile', output);
    removeOrphans(root, sources);
    mkdirSync(dirname(stamp), { recursive: true });
    writeFileSync(stamp, digest);
  });
  return digest;
}

/** A bundle older than the compiler's record is not used (src/cli/main.ts). */
function mtimeOf(file) {
  return existsSync(file) ? statSync(file).mtimeMs : 0;
}

/** The program in one file, when what it is made of changed. @param compiled what {@link typescript} returned */
export async function bundle(root, compiled) {
  const stamp = join(root, 'dist/.setup-bundle');
  const script = join(root, 'src/dev/bundle.mjs');
  const digest = `${compiled} ${digestOf(root, [join(root, 'package-lock.json'), script])}`;
  const isCurrent = existsSync(bundleOf(root)) && mtimeOf(bundleOf(root)) >= mtimeOf(join(root, 'dist/.tsbuildinfo'));
  if (isCurrent && existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) return;
  checkWritable(root, 'dist');
  await timed('bundling the program', async () => {
    await makeBundle(root).catch((error) => {
      throw new SetupError('the program cannot be bundled', error.message);
    });
    writeFileSync(stamp, digest);
  });
}

/** The addon, when its inputs changed. Warnings are errors in CI only: a newer compiler may know more of them. */
export async function addon() {
  if (!available(process.env.CC?.split(' ')[0] ?? 'cc')) ensureCommands({ required: ['cc'], why: 'the addon' });
  const start = performance.now();
  try {
    const { built } = await buildAddon({ strict: Boolean(process.env.CI), log: say });
    if (built) say(`building the addon: ${((performance.now() - start) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (error instanceof BuildError) throw new SetupError(error.message, error.output);
    throw error;
  }
}

/** The directory whose include/node holds the C++ headers of exactly this Node, or undefined. */
function nodeDirectory() {
  const directory = dirname(dirname(process.execPath));
  const header = join(directory, 'include/node/node_version.h');
  if (!existsSync(header)) return undefined;
  const text = readFileSync(header, 'utf8');
  const part = (name) => new RegExp(`#define NODE_${name}_VERSION (\\d+)`).exec(text)?.[1];
  const version = [part('MAJOR'), part('MINOR'), part('PATCH')].join('.');
  return version === process.versions.node ? directory : undefined;
}

/**
 * The optional raw-socket, which measures path MTUs: compiled only where this Node's C++ headers and a C++ compiler
 * are, so that node-gyp never downloads, once per Node version. A failure costs a line, nothing else.
 */
export async function rawSocket(root) {
  const home = join(root, 'node_modules/raw-socket');
  const stamp = join(home, '.podwire-set-up');
  const identity = `${process.versions.modules} ${process.arch}`;
  if (!existsSync(home) || (existsSync(stamp) && readFileSync(stamp, 'utf8') === identity)) return;
  const directory = nodeDirectory();
  const compiler = process.env.CXX?.split(' ')[0] ?? 'c++';
  const lacking = directory === undefined ? `the C++ headers of Node ${process.versions.node}` : compiler;
  try {
    accessSync(home, constants.W_OK);
    if (directory === undefined || !available(compiler)) {
      say(`raw-socket (optional, path MTU probes) is left unbuilt: ${lacking} not found`);
    } else {
      const args = ['rebuild', 'raw-socket', '--foreground-scripts', '--loglevel=error'];
      const { code, output } = await npm(root, args, { npm_config_nodedir: directory });
      const reason = output.split('\n').find((line) => /error/i.test(line)) ?? `exit code ${code}`;
      say(code === 0 ? 'built raw-socket' : `raw-socket (optional, path MTU probes) does not build: ${reason.trim()}`);
    }
    writeFileSync(stamp, identity);
  } catch (error) {
    say(`raw-socket (optional, path MTU probes) is left as it is: ${error.message}`);
  }
}

/** Programs that a mode runs. Optional ones are tried once; a note in dist/ keeps later starts fast and quiet. */
export function programs(root, mode) {
  const root0 = process.getuid() === 0;
  if (mode === 'lab') {
    const note = join(root, 'dist/.setup-programs');
    const required = root0 ? ['ip'] : ['ip', 'unshare'];
    const unmet = ensureCommands({ required, optional: ['ping'], optionalTried: existsSync(note), why: 'the lab' });
    if (unmet) {
      say('ping is not to be had: the lab uses UDP echoes instead');
      writeFileSync(note, 'ping\n');
    }
  } else if (mode === 'bench') {
    ensureCommands({ required: ['ip', 'iperf3', 'ethtool'], why: 'the benchmarks' });
  }
}
