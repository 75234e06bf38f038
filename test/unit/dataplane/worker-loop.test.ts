import { describe, expect, it } from 'vitest';
import { COUNTER_COUNT, COUNTER_NAMES } from '../../../src/dataplane/counters.js';
import { POLICY_WORDS } from '../../../src/dataplane/policy.js';
import { STOP_LEAVE, STOP_THROW, forward } from '../../../src/dataplane/worker.js';
import { Fib } from '../../../src/fib/fib.js';
import { controlView, createFibMemory, readerWord, rowsView } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import { META_HEARTBEAT, META_STOP, createBatchMemory } from '../../../src/io/batch.js';
import { MemoryPort } from '../../../src/io/memory.js';
import { MemoryNetwork } from '../../../src/io/memory-network.js';
import type { PacketPort } from '../../../src/io/ports.js';
import { packet } from '../../../src/testing.js';

/** The loop over a port in memory; `onTurn` sees every turn before it happens. */
function setUp(onTurn: (turn: number, port: MemoryPort) => void) {
  const memory = createFibMemory({ maxRoutes: 10, maxNextHops: 10, readers: 1 });
  const fib = new Fib(memory);
  fib.setLocal(['10.1.1.0/24']);
  fib.set('10.1.2.0/24', { address: '192.0.2.2' });
  const network = new MemoryNetwork();
  const word = readerWord(0);
  const reader = controlView(memory).subarray(word, word + 1);
  const port = new MemoryPort(
    {
      network,
      bind: { address: '192.0.2.1', port: 8285 },
      memory: createBatchMemory(COUNTER_COUNT, memory.rowCapacity),
      counterNames: COUNTER_NAMES,
    },
    rowsView(memory),
    reader,
  );
  let turns = 0;
  const watched: PacketPort = {
    batch: port.batch,
    turn: (timeoutMs) => {
      onTurn(turns++, port);
      return port.turn(timeoutMs);
    },
    destroy: () => port.destroy(),
  };
  const policy = new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
  return { network, port, reader, run: () => forward(watched, new FibReader(memory, 0), policy) };
}

describe('the loop of a worker', () => {
  it('forwards until it is told to leave, and holds nothing when it waits', () => {
    const held: number[] = [];
    const { network, port, reader, run } = setUp((turn, port) => {
      held.push(reader[0]!);
      if (turn === 0) port.inject(packet({ source: '10.1.1.5', destination: '10.1.2.5' }));
      if (turn === 4) port.batch.meta[META_STOP] = STOP_LEAVE;
    });
    run();
    expect(network.stats).toMatchObject({ sent: 1, noReceiver: 1 });
    expect(port.batch.meta[META_HEARTBEAT]).toBe(5);
    // Before the turn that sends it is inside the table; once it has waited, it is not.
    expect(held.map((word) => word !== 0)).toEqual([false, true, false, false, false]);
  });

  it('fails when fault injection asks for it', () => {
    const { run } = setUp((turn, port) => {
      if (turn === 2) port.batch.meta[META_STOP] = STOP_THROW;
    });
    expect(run).toThrow(expect.objectContaining({ code: 'WORKER' }));
  });

  it('says which error took the device away', () => {
    const { run } = setUp((turn, port) => {
      if (turn === 1) port.destroy();
    });
    expect(run).toThrow(expect.objectContaining({ code: 'DEVICE', errno: 'EBADF' }));
  });
});
