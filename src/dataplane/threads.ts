/**
 * The threads of the workers: a Piscina pool. A thread takes longer to come up than everything else that a data plane
 * needs, so a start that has yet to ask a store and the host starts them ahead.
 */
import { availableParallelism } from 'node:os';
import { setFlagsFromString } from 'node:v8';
import { Piscina } from 'piscina';
import { automaticWorkers, MOST_WORKERS, type ReadyThreads } from './options.js';

/** @param count of threads, each for one task that does not end. */
export function startThreads(count: number): Piscina {
  // Some seconds after a quiet start V8 collects an isolate once more to shrink its heap, which stops a worker for up to
  // 10 ms. A flag is the only way to tell it not to; it concerns threads that are made from here on.
  setFlagsFromString('--no-memory-reducer');
  return new Piscina({
    // Beside this file, and beside the bundle.
    filename: new URL('./thread.js', import.meta.url).href,
    minThreads: count,
    maxThreads: count,
    concurrentTasksPerWorker: 1,
    idleTimeout: Infinity,
    recordTiming: false,
    atomics: 'disabled',
  });
}

/** Threads that wait for a data plane. One data plane takes them; whoever made them closes them, taken or not. */
export class ThreadsAhead implements ReadyThreads, AsyncDisposable {
  readonly #count: number;
  #pool: Piscina | undefined;

  /** @param workers as in `DataplaneOptions`; what is no number of threads is left to the data plane to refuse. */
  constructor(workers: number | 'auto' = 'auto') {
    this.#count = workers === 'auto' ? automaticWorkers(availableParallelism()) : workers;
    if (Number.isInteger(this.#count) && this.#count >= 1 && this.#count <= MOST_WORKERS) {
      this.#pool = startThreads(this.#count);
      // A thread that dies is replaced; whoever takes them hears of it from the task.
      this.#pool.on('error', () => undefined);
    }
  }

  /** The threads, when there are just as many; they are the caller's then. */
  take(count: number): Piscina | undefined {
    if (count !== this.#count) return undefined;
    const pool = this.#pool;
    this.#pool = undefined;
    return pool;
  }

  /** Ends the threads if nobody has taken them. */
  async [Symbol.asyncDispose](): Promise<void> {
    const pool = this.#pool;
    this.#pool = undefined;
    await pool?.destroy();
  }
}
