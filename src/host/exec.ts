/**
 * The one place where podwire runs another program.
 *
 * Host set-up goes through iproute2, the kernel's own client. Every run has a time limit, an English locale (its
 * messages end up in our one-line errors) and a `PATH` that also holds the sbin directories, which an ordinary user's
 * often lacks.
 */
import { PodwireError } from '../errors.js';
import { type ProgramEnd, runProgram } from '../io/program.js';

export interface RunOptions {
  /** Text for the program's standard input. Absent: standard input is empty. */
  readonly input?: string;
  /** Time limit in milliseconds; the program is killed when it is over. Default 5000. */
  readonly timeoutMs?: number;
  /** Environment variables besides those of this process. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Runs `command` and resolves with its standard output. Injectable, so that host logic is testable without a host. */
export type Runner = (command: string, args: readonly string[], options?: RunOptions) => Promise<string>;

const DEFAULT_TIMEOUT_MS = 5_000;
const MAX_OUTPUT_BYTES = 64 * 1024 * 1024;

const INSTALL: Readonly<Record<string, string>> = {
  ip: 'install iproute2 (apt-get install iproute2, dnf install iproute, apk add iproute2)',
  bridge: 'install iproute2 (apt-get install iproute2, dnf install iproute, apk add iproute2)',
  wg: 'install wireguard-tools (apt-get, dnf or apk)',
};

/**
 * @throws {PodwireError} `COMMAND_FAILED` with one line: the command as it was tried, what it answered, and for a
 *   missing program what to install. `errno` is set when the program could not be started.
 */
export const run: Runner = async (command, args, options = {}) => {
  const { input, timeoutMs = DEFAULT_TIMEOUT_MS } = options;
  const shown = [command, ...args].join(' ');
  const end = await runProgram([command, ...args], {
    env: { ...programEnvironment(), ...options.env },
    input,
    timeoutMs,
    mostBytes: MAX_OUTPUT_BYTES,
  });
  if (end.code === 0) return end.output.toString('utf8');
  if (end.kind === 'start') {
    const { errno = '' } = end;
    const advice = errno === 'ENOENT' ? `not found: ${INSTALL[command] ?? `install the program ${command}`}` : errno;
    throw new PodwireError('COMMAND_FAILED', `cannot run ${shown}: ${advice}`, { errno });
  }
  const problems = {
    timeout: () => `${shown}: no answer within ${timeoutMs} ms`,
    output: () => `${shown}: more than ${MAX_OUTPUT_BYTES} bytes of output`,
    exit: () => describeFailure(command, args, input, end),
  };
  throw new PodwireError('COMMAND_FAILED', problems[end.kind]());
};

/** What every program we run gets: English messages, and the directories of system programs. */
export function programEnvironment(): NodeJS.ProcessEnv {
  return { ...process.env, LC_ALL: 'C', PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin` };
}

function describeFailure(
  command: string,
  args: readonly string[],
  input: string | undefined,
  { code, signal, errors }: ProgramEnd,
): string {
  const text = errors.toString('utf8');
  // `ip -batch -` names the failed line: show that command instead of the batch.
  const failedLine = /Command failed -:(\d+)/.exec(text)?.[1];
  const batchCommand = failedLine === undefined ? undefined : input?.split('\n')[Number(failedLine) - 1];
  const shown = batchCommand === undefined ? [command, ...args].join(' ') : `${command} ${batchCommand}`;
  const answer = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('Command failed -:'))
    .join('; ')
    .slice(0, 300);
  if (command === 'ip' && /unrecognized option|invalid option|is unknown, try "ip -help"|BusyBox/i.test(answer)) {
    return `${shown}: this is not a full iproute2 (${answer}): ${INSTALL['ip'] ?? ''}`;
  }
  return `${shown}: ${answer === '' ? (signal === null ? `exit code ${code}` : `killed by ${signal}`) : answer}`;
}

/**
 * Runs `ip -j …` and returns the parsed JSON array (iproute2 prints nothing at all for some empty answers).
 *
 * @throws {PodwireError} `COMMAND_FAILED` as {@link run}, and when the output is no JSON array.
 */
export function ipJson(runner: Runner, args: readonly string[]): Promise<unknown[]> {
  return toolJson(runner, 'ip', args);
}

/** {@link ipJson} for `bridge`. @throws {PodwireError} `COMMAND_FAILED`. */
export function bridgeJson(runner: Runner, args: readonly string[]): Promise<unknown[]> {
  return toolJson(runner, 'bridge', args);
}

async function toolJson(runner: Runner, tool: 'ip' | 'bridge', args: readonly string[]): Promise<unknown[]> {
  const output = (await runner(tool, ['-j', ...args])).trim();
  if (output === '') return [];
  const shown = `${tool} -j ${args.join(' ')}`;
  let parsed: unknown;
  try {
    parsed = JSON.parse(output);
  } catch (error) {
    throw new PodwireError('COMMAND_FAILED', `${shown}: the answer is no JSON (iproute2 too old?)`, { cause: error });
  }
  if (!Array.isArray(parsed)) throw new PodwireError('COMMAND_FAILED', `${shown}: the answer is no JSON array`);
  return parsed;
}

/**
 * Runs several `ip` commands (without the leading `ip`, and without options such as `-4`, which `ip -batch` does not
 * take) in one process, in order, up to the first that fails.
 *
 * @throws {PodwireError} `COMMAND_FAILED` naming the command that failed; the ones before it stay done.
 */
export async function ipBatch(runner: Runner, commands: readonly string[]): Promise<void> {
  if (commands.length === 0) return;
  await runner('ip', ['-batch', '-'], { input: `${commands.join('\n')}\n` });
}
