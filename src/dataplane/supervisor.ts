/**
 * Keeps one loop running in each worker thread: starts them in a Piscina pool, starts a crashed one again with bounded
 * back-off while the others forward, and stops them all.
 *
 * Piscina's `close()` ends busy workers when the first of several loops returns, so it is never used: stopping is the
 * stop word, a wake-up, every run awaited, then `destroy()`.
 */
import { MessageChannel } from 'node:worker_threads';
import type { Piscina } from 'piscina';
import { PodwireError, errnoOf, messageOf } from '../errors.js';
import type { Fib } from '../fib/fib.js';
import type { Batch, BatchMemory } from '../io/batch.js';
import { META_STOP, openBatch } from '../io/batch.js';
import type { KernelSide } from './kernel.js';
import type { ResolvedOptions } from './options.js';
import { startThreads } from './threads.js';
import type { WorkerTask } from './worker.js';
import { STOP_LEAVE, STOP_RUN } from './worker.js';

const FIRST_BACKOFF_MS = 10;
const LONGEST_BACKOFF_MS = 5000;
/** A worker that ran this long has proved itself: its next crash is its first. */
const PROVED_AFTER_MS = 30_000;
/** The longest spin, as long as KVM polls for a halted guest: about what the wake-ups on both ends of a ping-pong take. */
const SPIN_NS = 200_000;

export type WorkerState = 'starting' | 'running' | 'restarting' | 'stopped';

interface Slot {
  readonly index: number;
  readonly memory: BatchMemory;
  readonly batch: Batch;
  state: WorkerState;
  restarts: number;
  failures: number;
  lastError: string | undefined;
  done: Promise<void>;
}

export class Supervisor {
  readonly #options: ResolvedOptions;
  readonly #kernel: KernelSide;
  readonly #fib: Fib;
  readonly #policy: Int32Array<SharedArrayBuffer>;
  readonly #slots: readonly Slot[];
  readonly #pool: Piscina;
  readonly #fail: (error: PodwireError) => void;
  /** Ends a back-off early. */
  #wakeUps = new Set<() => void>();
  #stopping = false;

  /** @param fail called once when the data plane cannot go on: the device is gone */
  constructor(
    options: ResolvedOptions,
    kernel: KernelSide,
    fib: Fib,
    policy: Int32Array<SharedArrayBuffer>,
    memories: readonly BatchMemory[],
    fail: (error: PodwireError) => void,
  ) {
    this.#options = options;
    this.#kernel = kernel;
    this.#fib = fib;
    this.#policy = policy;
    this.#fail = fail;
    this.#slots = memories.map((memory, index) => ({
      index,
      memory,
      batch: openBatch(memory),
      state: 'starting',
      restarts: 0,
      failures: 0,
      lastError: undefined,
      done: Promise.resolve(),
    }));
    const ready = options.threads?.take(memories.length) as Piscina | undefined;
    this.#pool = ready ?? startThreads(memories.length);
    // A worker that dies outside of a task is replaced by the pool; its task's own rejection is what we act on.
    this.#pool.on('error', (error) => options.logger.debug({ err: messageOf(error) }, 'worker pool error'));
  }

  /** Starts every loop; resolves when all of them wait for packets. @throws the first worker's error */
  async start(): Promise<void> {
    await Promise.all(this.#slots.map((slot) => this.#launch(slot)));
  }

  get workers(): readonly { readonly state: WorkerState; readonly restarts: number; readonly batch: Batch }[] {
    return this.#slots;
  }

  /** Makes worker `index` fail as a defect would; for tests. @param how one of worker.ts' STOP_ values */
  inject(index: number, how: number): void {
    Atomics.store(this.#slots[index]!.batch.meta, META_STOP, how);
    this.#kernel.wake(index);
  }

  /** Tells every loop to leave, without waiting: what an `exit` handler can still do, or the process would hang. */
  signalStop(): void {
    this.#stopping = true;
    for (const slot of this.#slots) {
      Atomics.store(slot.batch.meta, META_STOP, STOP_LEAVE);
      this.#kernel.wake(slot.index);
    }
  }

  /** Ends every loop and the threads. */
  async stop(): Promise<void> {
    this.signalStop();
    for (const wakeUp of this.#wakeUps) wakeUp();
    await Promise.all(this.#slots.map((slot) => slot.done));
    await this.#pool.destroy();
    for (const slot of this.#slots) slot.state = 'stopped';
  }

  /** Starts the loop of one slot; the returned promise settles when it runs or failed to; `slot.done` when it is over. */
  #launch(slot: Slot): Promise<void> {
    const { port1, port2 } = new MessageChannel();
    const sendFds = this.#kernel.sendersOf(slot.index);
    const queue = this.#kernel.queues[slot.index]!;
    const { capabilities } = this.#kernel;
    const task: WorkerTask = {
      index: slot.index,
      policy: this.#policy,
      fib: this.#fib.memory,
      ready: port2,
      port: {
        tunFd: queue.tunFd,
        udpFd: queue.udpFd,
        wakeFd: queue.wakeFd,
        icmp4Fd: this.#kernel.icmp4Fd,
        icmp6Fd: this.#kernel.icmp6Fd,
        sendFds,
        tun: capabilities.tun,
        udpSegments: capabilities.udp === 'gso' ? capabilities.udpSegments : 1,
        batchCalls: capabilities.udp !== 'single',
        spin: this.#options.spin,
        spinNs: SPIN_NS,
        encapsulation: {
          accepts: this.#options.encapsulation.accepts,
          rawIp: this.#options.encapsulation.carrier === 'ip',
          innerMtu: this.#options.mtu.overlay,
        },
        memory: slot.memory,
      },
    };
    Atomics.store(slot.batch.meta, META_STOP, this.#stopping ? STOP_LEAVE : STOP_RUN);
    const started = Date.now();
    const over: Promise<unknown> = this.#pool.run(task, { transferList: [port2] });
    const running = new Promise<void>((resolve) => {
      port1.once('message', () => {
        slot.state = 'running';
        resolve();
      });
    });
    slot.done = over.then(
      () => undefined,
      (error: unknown) => this.#recover(slot, error, Date.now() - started),
    );
    return Promise.race([running, over.then(() => undefined)]).finally(() => port1.close());
  }

  /** After a crash: sidelines the queue, waits, starts again; gives up only when the device is gone. */
  async #recover(slot: Slot, error: unknown, ranMs: number): Promise<void> {
    this.#fib.clearReader(slot.index);
    if (this.#stopping) return;
    const wasRunning = slot.state === 'running';
    if (!wasRunning && slot.restarts === 0) return; // failed at the start: open() rejects with this error
    slot.state = 'restarting';
    slot.restarts++;
    slot.failures = ranMs >= PROVED_AFTER_MS ? 1 : slot.failures + 1;
    slot.lastError = messageOf(error);
    const { name } = this.#kernel.device;
    if (!this.#kernel.deviceExists()) {
      const errno = errnoOf(error);
      this.#fail(
        new PodwireError(
          'DEVICE',
          `the TUN device ${name} was removed under the running data plane: open it again`,
          errno === undefined ? { cause: error } : { cause: error, errno },
        ),
      );
      return;
    }
    const backoffMs = Math.min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** (slot.failures - 1));
    this.#options.logger.error(
      { worker: slot.index, restarts: slot.restarts, backoffMs, err: slot.lastError },
      `worker ${slot.index} failed and is started again in ${backoffMs} ms; the others go on`,
    );
    this.#kernel.sideline(slot.index);
    await this.#pause(backoffMs);
    if (this.#stopping) return;
    try {
      this.#kernel.rejoin(slot.index);
    } catch (cause) {
      return this.#recover(slot, cause, 0);
    }
    const launched = this.#launch(slot);
    await launched.then(
      () => this.#options.logger.info({ worker: slot.index }, `worker ${slot.index} forwards again`),
      () => undefined, // its own recovery is under way
    );
    return slot.done;
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const finish = (): void => {
        clearTimeout(timer);
        this.#wakeUps.delete(finish);
        resolve();
      };
      const timer = setTimeout(finish, ms);
      this.#wakeUps.add(finish);
    });
  }
}
