/**
 * What Piscina runs in a worker's thread, for as long as the data plane runs. A file of its own for the bundle, which has
 * it as one file of that name.
 */
import { controlView, readerWord, rowsView } from '../fib/layout.js';
import { FibReader } from '../fib/lookup.js';
import { createNativePort } from '../io/native.js';
import { forward, type WorkerTask } from './worker.js';

export default function run(task: WorkerTask): void {
  const reader = new FibReader(task.fib, task.index);
  const word = readerWord(task.index);
  const port = createNativePort(task.port, rowsView(task.fib), controlView(task.fib).subarray(word, word + 1));
  task.ready.postMessage('running');
  task.ready.close();
  try {
    forward(port, reader, task.policy);
  } finally {
    reader.leave();
    port.destroy();
  }
}
