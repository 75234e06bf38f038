/** Other programs, run by the addon: without the fork() of node:child_process, which stops all threads (native/program.h). */
import { constants } from 'node:os';
import { addon, errnoName } from './native.js';

export interface ProgramOptions {
  /** Whole; `PATH` says where the program is looked for. */
  readonly env: Readonly<Record<string, string | undefined>>;
  /** For standard input; absent: that is empty. */
  readonly input?: string | undefined;
  /** Milliseconds; the program is killed then. */
  readonly timeoutMs: number;
  /** Bytes of output and errors together; the program is killed beyond. */
  readonly mostBytes: number;
}

export interface ProgramEnd {
  /** `exit`: it ended by itself; `timeout`, `output`: killed for that limit; `start`: there is none to run. */
  readonly kind: 'exit' | 'timeout' | 'output' | 'start';
  /** Null when a signal ended it. */
  readonly code: number | null;
  readonly signal: string | null;
  /** Name of the error of a `start`. */
  readonly errno: string | undefined;
  readonly output: Buffer;
  readonly errors: Buffer;
}

/**
 * Runs a program to its end, or to that of its patience.
 *
 * @param argv the program, looked for in `env.PATH` unless there is a slash in it, and its arguments.
 * @throws PodwireError ADDON
 */
export function runProgram(argv: readonly string[], options: ProgramOptions): Promise<ProgramEnd> {
  const { env, input, timeoutMs, mostBytes } = options;
  const variables = Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]));
  const texts = [...argv, ...variables];
  const native = addon();
  return new Promise((resolve) => {
    const done = (status: number, output: Buffer, errors: Buffer): void => resolve(endOf(status, output, errors));
    // A text with a zero in it would be two, and no program has an empty name.
    const isSound = argv[0] !== undefined && argv[0] !== '' && !texts.some((text) => text.includes('\0'));
    const started = isSound
      ? native.programRun(
          block(argv),
          block(variables),
          input === undefined ? input : Buffer.from(input),
          timeoutMs,
          mostBytes,
          done,
        )
      : -constants.errno.EINVAL;
    if (started < 0) done(started, Buffer.alloc(0), Buffer.alloc(0));
  });
}

function block(texts: readonly string[]): Uint8Array {
  return Buffer.from(texts.map((text) => `${text}\0`).join(''));
}

function endOf(status: number, output: Buffer, errors: Buffer): ProgramEnd {
  const end = { code: null, signal: null, errno: undefined, output, errors };
  if (status === -constants.errno.ETIMEDOUT) return { ...end, kind: 'timeout' };
  if (status === -constants.errno.EMSGSIZE) return { ...end, kind: 'output' };
  if (status < 0) return { ...end, kind: 'start', errno: errnoName(status) };
  if (status < 256) return { ...end, kind: 'exit', code: status };
  return { ...end, kind: 'exit', signal: signalName(status - 256) };
}

function signalName(number: number): string {
  return Object.entries(constants.signals).find(([, value]) => value === number)?.[0] ?? `signal ${number}`;
}
