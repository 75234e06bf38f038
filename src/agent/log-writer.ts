/**
 * Where log lines go without ever holding the agent up: written at once, in order, to a descriptor whose reader may be
 * slow, stuck or gone, on a disk that may be full. What cannot be written is dropped and counted.
 *
 * (pino's own destination either blocks the event loop with its reader, or spins on a full disk at exit.)
 */
import { constants, fstatSync, openSync, writeSync } from 'node:fs';
import { errnoOf } from '../errors.js';

/** Lines kept for a reader that does not read, in bytes. */
const MAX_WAITING_BYTES = 1 << 20;
/** Time between tries while the reader does not read. */
const RETRY_MS = 20;
/** After a failed write lines are dropped for this long, so that a full disk is not asked for every line. */
const PAUSE_MS = 1_000;

/**
 * Standard error. A pipe or terminal is opened once more, so that writing fails with EAGAIN instead of blocking,
 * without changing the mode for whoever shares it. A file never blocks, and a socket (systemd's journal) cannot be
 * opened again: both are used as they are.
 */
export function openStandardError(): number {
  try {
    const stats = fstatSync(2);
    if (!stats.isFIFO() && !stats.isCharacterDevice()) return 2;
    return openSync('/proc/self/fd/2', constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch {
    return 2;
  }
}

export class LogWriter {
  readonly #fd: number;
  /** Bytes of whole lines, but for the first, which may be the rest of one. */
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #timer: NodeJS.Timeout | undefined;
  #pausedUntil = 0;
  #isClosed = false;
  #dropped = 0;

  /** @param fd best a descriptor that does not block, see {@link openStandardError}. It stays the caller's. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Lines lost so far; those that waited together for a write that failed count as one. */
  get dropped(): number {
    return this.#dropped;
  }

  write(line: string): void {
    const bytes = Buffer.from(line);
    const isFull = this.#waitingBytes + bytes.length > MAX_WAITING_BYTES;
    if (this.#isClosed || isFull || performance.now() < this.#pausedUntil) {
      this.#dropped++;
      return;
    }
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    // While the timer runs the reader is behind: lines queue up for it.
    if (this.#timer === undefined) this.flush();
  }

  /** Writes as much of what waits as is taken at once; also right before the process ends. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    while (this.#waiting.length > 0) {
      const [first] = this.#waiting;
      const bytes = first !== undefined && this.#waiting.length === 1 ? first : Buffer.concat(this.#waiting);
      this.#waiting = [bytes];
      let written: number;
      try {
        written = writeSync(this.#fd, bytes);
      } catch (error) {
        this.#failed(error);
        return;
      }
      this.#waiting = written === bytes.length ? [] : [bytes.subarray(written)];
      this.#waitingBytes = bytes.length - written;
    }
  }

  #failed(error: unknown): void {
    const errno = errnoOf(error);
    if (errno === 'EAGAIN') {
      this.#timer = setTimeout(() => this.flush(), RETRY_MS);
      this.#timer.unref();
      return;
    }
    this.#dropped++;
    this.#waiting = [];
    this.#waitingBytes = 0;
    // Nobody will ever read again; anything else (ENOSPC, EIO) may pass.
    if (errno === 'EPIPE' || errno === 'EBADF') this.#isClosed = true;
    else this.#pausedUntil = performance.now() + PAUSE_MS;
  }
}
