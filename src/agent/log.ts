/**
 * The agent's log: pino's JSON lines, or one readable line a record on a terminal. It goes to standard error, as
 * flanneld's does, so that standard output stays free.
 *
 * One line a state change, none a packet; and a message that repeats is held back after a burst, so that no fault can
 * fill a disk.
 */
import { isatty } from 'node:tty';
import { pino, type DestinationStream, type Logger as PinoLogger } from 'pino';

import { LogWriter, openStandardError } from './log-writer.js';

export type LogLevel = 'debug' | 'info' | 'warn' | 'error';
export type LogFormat = 'auto' | 'json' | 'pretty';

export interface LogOptions {
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** Where lines go; default: standard error. */
  readonly destination?: DestinationStream;
  readonly isTerminal?: boolean;
  /** Milliseconds, for the rate limit; default `performance.now`. */
  readonly now?: () => number;
}

/** Lines with the same level and message that may come at once, and the time after which a new burst may come. */
export const LOG_BURST = 10;
export const LOG_WINDOW_MS = 60_000;
const MAX_MESSAGES = 1_000;

/** A pino logger with the rate limit in front of it. */
export function createLog(options: LogOptions): PinoLogger {
  const isTerminal = options.isTerminal ?? isatty(2);
  const pretty = options.format === 'pretty' || (options.format === 'auto' && isTerminal);
  const destination = options.destination ?? standardError();
  const limit = new RateLimit(options.now ?? (() => performance.now()));
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      hooks: {
        logMethod(args, method, level) {
          const message = typeof args[0] === 'string' ? args[0] : typeof args[1] === 'string' ? args[1] : '';
          const held = limit.admit(`${level} ${message}`);
          if (held === undefined) return;
          if (held === 0) return method.apply(this, args);
          const first: unknown = args[0];
          const isObject = typeof first === 'object' && first !== null;
          const rest: unknown[] = isObject ? args.slice(1) : args;
          const fields = { ...(isObject ? first : {}), suppressed: held };
          method.apply(this, [fields, ...rest] as unknown as typeof args);
        },
      },
    },
    pretty
      ? { write: (line: string) => destination.write(formatLine(line, isTerminal && !process.env['NO_COLOR'])) }
      : destination,
  );
}

function standardError(): DestinationStream {
  const writer = new LogWriter(openStandardError());
  process.once('exit', () => writer.flush());
  return writer;
}

/** Counts equal messages in a window of time. */
class RateLimit {
  readonly #now: () => number;
  readonly #seen = new Map<string, { start: number; count: number; held: number }>();

  constructor(now: () => number) {
    this.#now = now;
  }

  /** The number of lines held back before this one, or undefined when this one is held back too. */
  admit(key: string): number | undefined {
    const now = this.#now();
    const entry = this.#seen.get(key);
    if (entry === undefined || now - entry.start >= LOG_WINDOW_MS) {
      this.#seen.delete(key);
      if (this.#seen.size >= MAX_MESSAGES) {
        // The oldest window goes first: a Map keeps the order of insertion.
        for (const oldest of this.#seen.keys()) {
          this.#seen.delete(oldest);
          break;
        }
      }
      this.#seen.set(key, { start: now, count: 1, held: 0 });
      return entry?.held ?? 0;
    }
    entry.count++;
    if (entry.count > LOG_BURST) {
      entry.held++;
      return undefined;
    }
    return 0;
  }
}

const COLOURS: Readonly<Record<string, string>> = {
  debug: '\x1b[2m',
  info: '\x1b[32m',
  warn: '\x1b[33m',
  error: '\x1b[31m',
};

/** `12:03:04.123 info  lease acquired  subnet=10.5.1.0/24`; a line that is no record of ours passes unchanged. */
export function formatLine(line: string, colour: boolean): string {
  let record: Record<string, unknown>;
  try {
    record = JSON.parse(line) as Record<string, unknown>;
  } catch {
    return line;
  }
  const { level, time, msg, ...rest } = record;
  const label = String(level).padEnd(5);
  const shown = colour ? `${COLOURS[String(level)] ?? ''}${label}\x1b[0m` : label;
  const details = Object.entries(rest)
    .map(([key, value]) => `${key}=${formatValue(value)}`)
    .join(' ');
  return `${String(time).slice(11, 23)} ${shown} ${String(msg)}${details === '' ? '' : `  ${details}`}\n`;
}

function formatValue(value: unknown): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return typeof value === 'string' && /[\s"=]/.test(text) ? JSON.stringify(text) : text;
}
