// @ts-check
/**
 * Child processes of a benchmark run: every one has a time limit or an owner that stops it, and is killed by its pid only.
 *
 * A process inside a namespace is started as `ip netns exec NAME PROGRAM`, which becomes PROGRAM by exec(3), so the pid of
 * the child is the pid of the program.
 */
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';

/** A benchmark cannot go on, for a reason that one line explains. Anything else that is thrown is a defect of the harness. */
export class BenchError extends Error {}

/** @type {Set<import('node:child_process').ChildProcess>} */
const children = new Set();

/** Kills what is left, at once; for `process.on('exit')`. */
export function killAllChildren() {
  for (const child of children) child.kill('SIGKILL');
}

/**
 * @param {string | undefined} namespace
 * @param {readonly string[]} argv
 * @returns {string[]}
 */
function inNamespace(namespace, argv) {
  return namespace === undefined ? [...argv] : ['ip', 'netns', 'exec', namespace, ...argv];
}

/**
 * @typedef {object} RunOptions
 * @property {string} [namespace] network namespace
 * @property {number} [timeoutMs] default 10 s; then SIGKILL and an error
 * @property {string} [input] for standard input
 * @property {AbortSignal} [signal] ends the process (SIGKILL) when the run is interrupted
 * @property {boolean} [allowFailure] an exit code other than 0 is no error
 */

/**
 * Runs a program to its end.
 * @param {readonly string[]} argv
 * @param {RunOptions} [options]
 * @returns {Promise<{ code: number | null, stdout: string, stderr: string }>}
 * @throws {BenchError} not startable, exit code other than 0, or out of time
 */
export async function run(argv, options = {}) {
  const { namespace, timeoutMs = 10_000, input, signal, allowFailure = false } = options;
  signal?.throwIfAborted();
  const [command = '', ...args] = inNamespace(namespace, argv);
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  children.add(child);
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
  child.stdin.on('error', () => {}); // a program may end without reading its input
  child.stdin.end(input ?? '');
  let outOfTime = false;
  const timer = setTimeout(() => {
    outOfTime = true;
    child.kill('SIGKILL');
  }, timeoutMs);
  const onAbort = () => child.kill('SIGKILL');
  signal?.addEventListener('abort', onAbort, { once: true });
  try {
    const code = await new Promise((resolve, reject) => {
      child.once('error', (error) => reject(new BenchError(`cannot start ${command}: ${error.message}`)));
      child.once('close', resolve);
    });
    signal?.throwIfAborted();
    const said = firstLine(stderr) || firstLine(stdout) || 'it said nothing';
    if (outOfTime) throw new BenchError(`\`${argv.join(' ')}\` was not done after ${timeoutMs / 1000} s: ${said}`);
    if (code !== 0 && !allowFailure) throw new BenchError(`\`${argv.join(' ')}\` failed (exit code ${code}): ${said}`);
    return { code, stdout, stderr };
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
    children.delete(child);
  }
}

/** @param {string} text */
function firstLine(text) {
  return text.trim().split('\n', 1)[0] ?? '';
}

/** A process that runs until it is stopped; its output is in a file. */
export class Daemon {
  /** @type {import('node:child_process').ChildProcess} */ #child;
  /** @type {Promise<void>} */ #ended;
  #exited = false;

  /**
   * @param {string} name for messages
   * @param {readonly string[]} argv
   * @param {{ namespace?: string, logFile: string, cwd?: string, env?: Record<string, string> }} options
   */
  constructor(name, argv, options) {
    this.name = name;
    this.logFile = options.logFile;
    const [command = '', ...args] = inNamespace(options.namespace, argv);
    const log = openSync(options.logFile, 'a');
    this.#child = spawn(command, args, {
      stdio: ['ignore', log, log],
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
    });
    closeSync(log);
    children.add(this.#child);
    this.#ended = new Promise((resolve) => {
      const done = () => {
        this.#exited = true;
        children.delete(this.#child);
        resolve();
      };
      this.#child.once('exit', done);
      this.#child.once('error', done);
    });
  }

  get pid() {
    return this.#child.pid ?? 0;
  }

  /** Everything it has written so far. */
  output() {
    return readFileSync(this.logFile, 'utf8');
  }

  /** @returns {string} the last line it wrote */
  lastWords() {
    return this.output().trim().split('\n').at(-1) || 'it wrote nothing';
  }

  /** @throws {BenchError} it is gone */
  assertAlive() {
    if (this.#exited) throw new BenchError(`${this.name} ended by itself: ${this.lastWords()}`);
  }

  /**
   * Asks it to end, and insists after a while.
   * @param {number} [graceMs]
   * @returns {Promise<string | undefined>} what went wrong, if anything did
   */
  async stop(graceMs = 5000) {
    if (this.#exited) return `${this.name} had ended by itself: ${this.lastWords()}`;
    this.#child.kill('SIGTERM');
    const timer = new AbortController();
    const late = await Promise.race([
      this.#ended.then(() => false),
      delay(graceMs, true, { signal: timer.signal }).catch(() => false),
    ]);
    timer.abort();
    if (!late) return undefined;
    this.#child.kill('SIGKILL');
    await this.#ended;
    return `${this.name} did not end within ${graceMs / 1000} s of SIGTERM and was killed`;
  }
}

/**
 * Waits until a condition holds, looking every 10 ms.
 * @template T
 * @param {string} what for the message
 * @param {() => T | undefined | false | Promise<T | undefined | false>} condition
 * @param {{ timeoutMs?: number, signal?: AbortSignal, alive?: readonly Daemon[] }} [options] `alive`: give up as soon as one of these is gone
 * @returns {Promise<T>}
 * @throws {BenchError} the time is up, or one of `alive` ended
 */
export async function waitFor(what, condition, { timeoutMs = 10_000, signal, alive = [] } = {}) {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    signal?.throwIfAborted();
    const value = await condition();
    if (value !== undefined && value !== false) return value;
    for (const daemon of alive) daemon.assertAlive();
    if (Date.now() > deadline) {
      const words = alive.map((daemon) => `; ${daemon.name}: ${daemon.lastWords()}`).join('');
      throw new BenchError(`waited ${timeoutMs / 1000} s for ${what} in vain${words}`);
    }
    await delay(10);
  }
}
