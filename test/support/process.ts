import { spawn, type ChildProcess, type SpawnOptions } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

/** The checkout, absolute, without a trailing slash. */
export const root: string = fileURLToPath(new URL('../..', import.meta.url)).replace(/\/$/, '');
/** The built command line program; `npm test` builds it first. */
export const cli: string = `${root}/dist/bundle/main.cjs`;

export interface Finished {
  /** Exit code, or null when a signal ended it. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A running program whose output is collected. Dispose kills it (SIGKILL) if it still runs. */
export class Process implements AsyncDisposable {
  readonly child: ChildProcess;
  /** Resolves when the program has ended and its output is complete; never rejects after a successful start. */
  readonly finished: Promise<Finished>;
  stdout = '';
  stderr = '';

  constructor(command: string, args: readonly string[], options: SpawnOptions = {}) {
    this.child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.stdout += text));
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
    this.finished = new Promise((resolve, reject) => {
      this.child.once('error', reject);
      this.child.once('close', (code, signal) => {
        resolve({ code, signal, stdout: this.stdout, stderr: this.stderr });
      });
    });
    this.finished.catch(() => {});
  }

  get pid(): number {
    if (this.child.pid === undefined) throw new Error('the program did not start');
    return this.child.pid;
  }

  get running(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  /** Sends a signal and waits for the end; escalates to SIGKILL after `timeoutMs`. */
  async stop(signal: NodeJS.Signals = 'SIGTERM', timeoutMs = 10_000): Promise<Finished> {
    if (this.running) this.child.kill(signal);
    const timer = setTimeout(() => this.child.kill('SIGKILL'), timeoutMs);
    try {
      return await this.finished;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits until the output matches; fails with that output when the program ends or time is up first. */
  async output(
    pattern: RegExp,
    options: { from?: 'stdout' | 'stderr'; timeoutMs?: number } = {},
  ): Promise<RegExpExecArray> {
    const from = options.from ?? 'stdout';
    return await until(
      () => {
        const match = pattern.exec(this[from]);
        if (match === null && !this.running) {
          throw new Error(`program ended before ${from} matched ${String(pattern)}:\n${this.stdout}${this.stderr}`);
        }
        return match ?? undefined;
      },
      { what: `${from} to match ${String(pattern)}`, timeoutMs: options.timeoutMs ?? 20_000 },
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop('SIGKILL').catch(() => {});
  }
}

/** Runs a program to its end. */
export async function run(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<Finished> {
  return await new Process(command, args, options).finished;
}

/** Runs a program and returns its stdout; throws with its whole output unless it exits with 0. */
export async function ok(command: string, args: readonly string[], options: SpawnOptions = {}): Promise<string> {
  const result = await run(command, args, options);
  if (result.code !== 0) {
    const end = result.signal ?? `exit code ${String(result.code)}`;
    throw new Error(`${command} ${args.join(' ')}: ${end}\n${result.stdout}${result.stderr}`);
  }
  return result.stdout;
}

export interface UntilOptions {
  /** What is waited for, for the message of a timeout. */
  readonly what: string;
  readonly timeoutMs?: number;
  readonly intervalMs?: number;
}

/**
 * Polls until `condition` yields something other than `undefined` or `false`, and returns it. This is the tests' one
 * way to wait: for a condition, never for a time. What the condition throws ends the wait.
 */
export async function until<T>(
  condition: () => T | undefined | false | Promise<T | undefined | false>,
  { what, timeoutMs = 10_000, intervalMs = 10 }: UntilOptions,
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const value = await condition();
    if (value !== undefined && value !== false) return value;
    if (performance.now() > deadline) throw new Error(`waited ${String(timeoutMs)} ms in vain for ${what}`);
    await sleep(intervalMs);
  }
}
