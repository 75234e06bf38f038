/**
 * Time as the control plane sees it, so that a day of lease life runs in a test without waiting.
 *
 * Wall time (`now`) is what hosts compare with each other; monotonic time is what one host measures durations
 * with: a lease already seen alive keeps its remaining life when somebody sets the wall clock.
 */
import { PodwireError } from '../errors.js';

export interface Clock {
  /** Milliseconds since 1970, as `Date.now()`. May jump. */
  now(): number;
  /** Milliseconds since some fixed moment. Never jumps back. */
  monotonic(): number;
  /**
   * Calls back once after `delayMs`; the returned function cancels. A `background` timer alone does not keep the
   * process alive.
   */
  timer(callback: () => void, delayMs: number, kind?: 'background'): () => void;
}

/** setTimeout fires at once for delays above this. */
const LONGEST_TIMEOUT_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  now: () => Date.now(),
  monotonic: () => performance.now(),
  timer(callback, delayMs, kind) {
    let handle: NodeJS.Timeout;
    const arm = (leftMs: number): void => {
      const stepMs = Math.min(Math.max(0, leftMs), LONGEST_TIMEOUT_MS);
      handle = setTimeout(() => (leftMs > stepMs ? arm(leftMs - stepMs) : callback()), stepMs);
      if (kind === 'background') handle.unref();
    };
    arm(delayMs);
    return () => clearTimeout(handle);
  },
};

/** A clock that stands still until told: for tests and simulations. */
export class ManualClock implements Clock {
  #wallMs: number;
  #monotonicMs = 0;
  #nextId = 0;
  readonly #timers = new Map<number, { dueMs: number; callback: () => void }>();

  constructor(startMs = Date.UTC(2026, 0, 1)) {
    this.#wallMs = startMs;
  }

  now(): number {
    return this.#wallMs;
  }

  monotonic(): number {
    return this.#monotonicMs;
  }

  timer(callback: () => void, delayMs: number): () => void {
    const id = this.#nextId++;
    this.#timers.set(id, { dueMs: this.#monotonicMs + Math.max(0, delayMs), callback });
    return () => this.#timers.delete(id);
  }

  /** Lets `ms` pass: due timers fire in order, each after the event loop has settled what the last one started. */
  async advance(ms: number): Promise<void> {
    const endMs = this.#monotonicMs + ms;
    await settle();
    for (;;) {
      let next: [number, { dueMs: number; callback: () => void }] | undefined;
      for (const entry of this.#timers) {
        if (entry[1].dueMs <= endMs && (next === undefined || entry[1].dueMs < next[1].dueMs)) next = entry;
      }
      if (next === undefined) break;
      this.#timers.delete(next[0]);
      this.#pass(next[1].dueMs - this.#monotonicMs);
      next[1].callback();
      await settle();
    }
    this.#pass(endMs - this.#monotonicMs);
  }

  /** Somebody sets the wall clock: `now` moves, durations do not. */
  jump(ms: number): void {
    this.#wallMs += ms;
  }

  get pendingTimers(): number {
    return this.#timers.size;
  }

  #pass(ms: number): void {
    const step = Math.max(0, ms);
    this.#wallMs += step;
    this.#monotonicMs += step;
  }
}

async function settle(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Waits; true when the time has passed, false (at once) when `signal` was aborted. */
export function pause(clock: Clock, delayMs: number, signal?: AbortSignal): Promise<boolean> {
  if (signal?.aborted) return Promise.resolve(false);
  return new Promise((resolve) => {
    const onAbort = (): void => {
      cancel();
      resolve(false);
    };
    const cancel = clock.timer(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve(true);
    }, delayMs);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** @throws PodwireError ABORTED when the caller has given up `what`. */
export function throwIfAborted(signal: AbortSignal | undefined, what: string): void {
  if (signal?.aborted) throw new PodwireError('ABORTED', `${what} was cancelled`, { cause: signal.reason });
}

/**
 * The result of `call`, without waiting for a call that hangs once nobody wants it any more.
 * @throws PodwireError ABORTED as soon as `signal` aborts; the call itself goes on unheard.
 */
export async function untilAborted<T>(call: Promise<T>, signal: AbortSignal, what: string): Promise<T> {
  let onAbort: (() => void) | undefined;
  const gone = new Promise<never>((_resolve, reject) => {
    onAbort = () => reject(new PodwireError('ABORTED', `${what} was cancelled`));
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) onAbort();
  });
  try {
    return await Promise.race([call, gone]);
  } finally {
    if (onAbort) signal.removeEventListener('abort', onAbort);
  }
}

export interface BackoffOptions {
  /** First delay. */
  readonly minMs: number;
  /** Delays double up to this. */
  readonly maxMs: number;
}

/** Doubling delays, each drawn from its upper half, so that many hosts that failed together do not return together. */
export class Backoff {
  readonly #options: BackoffOptions;
  readonly #random: () => number;
  #ceilingMs: number;

  constructor(options: BackoffOptions, random: () => number = Math.random) {
    this.#options = options;
    this.#random = random;
    this.#ceilingMs = options.minMs;
  }

  nextMs(): number {
    const ceiling = this.#ceilingMs;
    this.#ceilingMs = Math.min(ceiling * 2, this.#options.maxMs);
    return ceiling * (0.5 + this.#random() / 2);
  }

  reset(): void {
    this.#ceilingMs = this.#options.minMs;
  }
}
