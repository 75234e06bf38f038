/**
 * The loop of one worker thread. It blocks in native code and never returns to the event loop; the main thread ends it
 * by a word in shared memory and an eventfd.
 */
import type { MessagePort } from 'node:worker_threads';
import { PodwireError } from '../errors.js';
import type { FibMemory } from '../fib/layout.js';
import type { FibReader } from '../fib/lookup.js';
import { META_STOP } from '../io/batch.js';
import type { NativePortSpec } from '../io/native.js';
import { errnoName } from '../io/native.js';
import type { PacketPort } from '../io/ports.js';
import { Forwarder } from './forwarder.js';

/** Values of META_STOP. The last two make the worker fail as a defect would, for the tests of the supervisor. */
export const STOP_RUN = 0;
export const STOP_LEAVE = 1;
export const STOP_THROW = 2;
export const STOP_EXIT = 3;

/** How long a turn may block: only bounds how late a lost wake-up is noticed. */
const WAIT_MS = 1000;

export interface WorkerTask {
  readonly index: number;
  readonly port: NativePortSpec;
  readonly fib: FibMemory;
  readonly policy: Int32Array<SharedArrayBuffer>;
  /** Gets one message, `'running'`, once the loop is entered. */
  readonly ready: MessagePort;
}

/**
 * Forwards until told to stop.
 * @throws PodwireError DEVICE when the kernel took the TUN or a socket away
 */
export function forward(port: PacketPort, fib: FibReader, policy: Int32Array): void {
  const { meta } = port.batch;
  const forwarder = new Forwarder(port.batch, fib, policy, Date.now);
  for (;;) {
    const rows = port.turn(WAIT_MS);
    const stop = Atomics.load(meta, META_STOP);
    if (stop !== STOP_RUN) {
      if (stop === STOP_LEAVE) return;
      if (stop === STOP_EXIT) process.exit(7);
      throw new PodwireError('WORKER', 'worker failed as the fault injection asked');
    }
    if (rows < 0) {
      const errno = errnoName(rows);
      throw new PodwireError('DEVICE', `the TUN queue or the UDP socket failed (${errno})`, { errno, syscall: 'poll' });
    }
    if (rows === 0) continue;
    fib.enter();
    if ((rows & 0xffff) !== 0) forwarder.egress(rows & 0xffff);
    if (rows >>> 16 !== 0) forwarder.ingress(rows >>> 16);
  }
}
