/**
 * The one error type that crosses podwire's public border.
 *
 * `code` is stable and meant for programs; `message` is one line for a person and says what was tried,
 * with which value, and what to do. For system faults `errno` is the symbolic name (`EACCES`) and
 * `syscall` the call that failed.
 */
export type PodwireErrorCode =
  | 'INVALID_ARGUMENT'
  | 'INVALID_ADDRESS'
  | 'INVALID_CONFIG'
  | 'NO_CONFIG'
  | 'UNSUPPORTED'
  | 'PERMISSION'
  | 'PORT_IN_USE'
  | 'DEVICE_IN_USE'
  | 'DEVICE'
  | 'INTERFACE'
  | 'ADDON'
  | 'CAPACITY'
  | 'WORKER'
  | 'STORE_UNAVAILABLE'
  | 'STORE_CORRUPT'
  | 'OUT_OF_SUBNETS'
  | 'LEASE_CONFLICT'
  | 'LEASE_LOST'
  | 'COMMAND_FAILED'
  | 'ABORTED'
  | 'CLOSED'
  | 'SYSTEM';

export interface PodwireErrorOptions {
  readonly cause?: unknown;
  readonly errno?: string;
  readonly syscall?: string;
}

export class PodwireError extends Error {
  override readonly name = 'PodwireError';
  readonly code: PodwireErrorCode;
  readonly errno: string | undefined;
  readonly syscall: string | undefined;

  constructor(code: PodwireErrorCode, message: string, options: PodwireErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errno = options.errno;
    this.syscall = options.syscall;
  }
}

/** The `errno` name of a Node system error or a {@link PodwireError}, or undefined. */
export function errnoOf(error: unknown): string | undefined {
  if (error instanceof PodwireError) return error.errno;
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code;
  return undefined;
}

/** The message of anything that was thrown, as one line. */
export function messageOf(error: unknown): string {
  return (error instanceof Error ? error.message : String(error)).replace(/\s*\n\s*/g, ' ');
}
