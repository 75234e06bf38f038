/** How a command line ends: one line for every error, and the exit codes. */
import { CommanderError, type Command } from 'commander';
import { messageOf } from '../errors.js';

export const EXIT_OK = 0;
/** Something failed at run time. */
export const EXIT_FAILURE = 1;
/** The command line itself is wrong. */
export const EXIT_USAGE = 2;

/** A mistake in the arguments that commander cannot see, such as a value out of range. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** A command's own exit code for something that is no error to report, such as a failed check. */
export class ExitCode extends Error {
  override readonly name = 'ExitCode';
  readonly code: number;

  constructor(code: number) {
    super(`exit code ${code}`);
    this.code = code;
  }
}

/** Makes a command and its sub-commands throw instead of exiting, and leave the error line to {@link report}. */
export function throwInsteadOfExit(command: Command): Command {
  command.exitOverride();
  command.configureOutput({ outputError: () => undefined });
  for (const child of command.commands) throwInsteadOfExit(child);
  return command;
}

/**
 * The exit code for whatever a command threw; an error is written as one line to standard error, with the stack only
 * when PODWIRE_DEBUG is set.
 */
export function report(error: unknown, write: (line: string) => void = (line) => process.stderr.write(line)): number {
  if (error instanceof ExitCode) return error.code;
  if (error instanceof CommanderError) {
    // commander has already printed help and version, on request (0) or because the command is missing.
    if (error.code.startsWith('commander.help')) return error.code === 'commander.help' ? EXIT_USAGE : error.exitCode;
    if (error.code === 'commander.version') return EXIT_OK;
    const text = messageOf(error)
      .replace(/^error: /, '')
      .replace(/ ?\(Did you mean (.*?)\?\)/, ', did you mean $1?');
    write(`podwire: ${text.endsWith('?') ? text : `${text}; see --help`}\n`);
    return EXIT_USAGE;
  }
  write(`podwire: ${messageOf(error)}\n`);
  if (process.env['PODWIRE_DEBUG'] && error instanceof Error) write(`${debugText(error)}\n`);
  return error instanceof UsageError ? EXIT_USAGE : EXIT_FAILURE;
}

function debugText(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by ${debugText(error.cause)}` : '';
  return `${error.stack ?? error.message}${cause}`;
}
