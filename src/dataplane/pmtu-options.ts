/** How path MTUs are probed: the part of the data plane's options that belongs to pmtu.ts. */
import { PodwireError } from '../errors.js';

export interface PathMtuOptions {
  /** Time between two looks at whether the path still carries what is used. Default 60,000 ms. */
  readonly intervalMs?: number;
  /** Time between two tries to use more, and between two readings of the configured MTUs. Default 600,000 ms. */
  readonly raiseIntervalMs?: number;
  /** Longest wait for one answer; shorter for peers whose round-trip time is known. Default 1,000 ms. */
  readonly timeoutMs?: number;
  /** Probes of one size that must be lost, with a small one answered after each, before it is too big. Default 3. */
  readonly retries?: number;
  /** Share by which each interval varies at random, 0 to 1, so that peers are not probed in step. Default 0.2. */
  readonly jitter?: number;
  /** Peers that are probed at the same time. Default 16. */
  readonly concurrency?: number;
  /** A peer is probed at most this often because of reports. Default 5,000 ms. */
  readonly reportIntervalMs?: number;
  /** Results kept, for peers that leave and come back within `raiseIntervalMs`. Default 16,384. */
  readonly remembered?: number;
}

export const PATH_MTU_DEFAULTS: Required<PathMtuOptions> = {
  intervalMs: 60_000,
  raiseIntervalMs: 600_000,
  timeoutMs: 1_000,
  retries: 3,
  jitter: 0.2,
  concurrency: 16,
  reportIntervalMs: 5_000,
  remembered: 16_384,
};

/**
 * The options with their defaults.
 * @throws PodwireError INVALID_ARGUMENT for a value outside its range
 */
export function pathMtuSettings(given: PathMtuOptions): Required<PathMtuOptions> {
  const options = { ...PATH_MTU_DEFAULTS, ...given };
  const ranges: Record<keyof PathMtuOptions, readonly [number, number]> = {
    intervalMs: [100, 86_400_000],
    raiseIntervalMs: [100, 86_400_000],
    timeoutMs: [10, 60_000],
    retries: [1, 10],
    jitter: [0, 1],
    concurrency: [1, 1024],
    reportIntervalMs: [0, 86_400_000],
    remembered: [1, 1_000_000],
  };
  for (const [name, [least, most]] of Object.entries(ranges) as [keyof PathMtuOptions, readonly [number, number]][]) {
    const value = options[name];
    const whole = name === 'jitter' || Number.isInteger(value);
    if (typeof value !== 'number' || !whole || !(value >= least && value <= most)) {
      throw new PodwireError(
        'INVALID_ARGUMENT',
        `option pathMtu.${name} is ${String(value)}: give a ${name === 'jitter' ? '' : 'whole '}number from ${least} to ${most}`,
      );
    }
  }
  return options;
}
