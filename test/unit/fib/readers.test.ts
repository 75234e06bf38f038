/**
 * Real threads look up without a pause while the table churns around them: covering, nested and neighbouring
 * prefixes come and go, next hops are used up and reused. Results for prefixes that do not change must never be
 * wrong or missing, and a row that a batch found must keep its meaning to the end of that batch.
 */
import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { Fib } from '../../../src/fib/fib.js';
import { createFibMemory } from '../../../src/fib/layout.js';
import { Address, Prefix } from '../../../src/net/prefix.js';

const lookup = new URL('../../../dist/fib/lookup.js', import.meta.url);
const READERS = 2;
const UPDATES = 10_000;
const SEED = Number(process.env['FIB_SEED'] ?? Date.now()) & 0x7fffffff;

/** Words of `shared`: the stop flag, then for each reader its batches, wrong stable results, wrong rows. */
const STOP = 0;
const wordAt = (reader: number, what: number): number => 4 + 4 * reader + what;

/**
 * `stable`: rows of [family, a, b, c, d, expected underlay address], `moving` the same with the expected third byte of
 * that address: every moving prefix only ever leads to next hops 10.9.<third byte>.x.
 */
const source = `
  import { parentPort, workerData } from 'node:worker_threads';
  const { FibReader } = await import(workerData.lookup);
  const { memory, reader: index, shared, stable, moving } = workerData;
  const reader = new FibReader(memory, index);
  const rows = new DataView(memory.buffer, memory.rowsOffset);
  const find = (list, i) => list[i] === 4
    ? reader.lookup4(list[i + 1]) : reader.lookup6(list[i + 1], list[i + 2], list[i + 3], list[i + 4]);
  const found = new Int32Array(moving.length / 6);
  let wrongStable = 0, wrongRows = 0;
  parentPort.postMessage('ready');
  for (let batches = 1; Atomics.load(shared, 0) === 0; batches++) {
    reader.enter();
    for (let i = 0; i < moving.length; i += 6) found[i / 6] = find(moving, i);
    for (let i = 0; i < stable.length; i += 6) {
      if (rows.getInt32(64 * find(stable, i) + 4) !== stable[i + 5]) wrongStable++;
    }
    for (let i = 0; i < moving.length; i += 6) {
      const row = found[i / 6];
      if (row < 3) continue;
      const address = rows.getInt32(64 * row + 4);
      if (address >>> 16 !== 0x0a09 || ((address >>> 8) & 0xff) !== moving[i + 5]) wrongRows++;
      else if (reader.hostId[row] !== rows.getUint32(64 * row + 32, true)) wrongRows++;
    }
    if (batches % 16 === 0) reader.leave();
    shared[4 + 4 * index] = batches;
    shared[5 + 4 * index] = wrongStable;
    shared[6 + 4 * index] = wrongRows;
  }
  reader.leave();
`;

const entry = (address: Address, expected: number): number[] => {
  const words = Array.from({ length: address.bytes.length / 4 }, (_, i) => address.word(i) | 0);
  return [address.family, ...words, ...Array<number>(4 - words.length).fill(0), expected];
};

describe('readers in worker threads', () => {
  it(`see stable prefixes right through ${UPDATES} updates (seed ${SEED})`, { timeout: 120_000 }, async () => {
    expect(existsSync(lookup), 'dist/fib/lookup.js is missing: run npm run build first').toBe(true);
    let state = SEED | 1;
    const next = (below: number): number => {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) % below;
    };
    const memory = createFibMemory({ maxRoutes: 2000, maxNextHops: 1000, readers: READERS });
    const fib = new Fib(memory);

    // Stable: every eighth /24 of 10.1.0.0/16 and /64 of fd00:1:2::/48, and some deep ones.
    const stable: number[] = [];
    const keep = (text: string, n: number): void => {
      const prefix = Prefix.parse(text);
      const underlay = Address.parse(`192.0.2.${n}`);
      fib.set(prefix, { address: underlay });
      for (const address of [prefix.address, prefix.last]) stable.push(...entry(address, underlay.word(0) | 0));
    };
    for (let i = 0; i < 256; i += 8) keep(`10.1.${i}.0/24`, 1 + (i >>> 3));
    for (let i = 0; i < 256; i += 8) keep(`fd00:1:2:${i.toString(16)}::/64`, 1 + (i >>> 3));
    keep('10.1.9.9/32', 100);
    keep('fd00:1:2:9::9/128', 101);
    keep('10.77.0.0/16', 102);
    keep('fd77::/16', 103);

    // Moving: covers of the stable ones, their neighbours, and prefixes inside and beside. None inside a stable one.
    const moving = [
      '10.0.0.0/8',
      '10.1.0.0/16',
      '10.0.0.0/15',
      '10.1.1.0/24',
      '10.1.9.0/24',
      '10.1.9.8/29',
      '10.1.12.0/22',
    ]
      .concat(['10.1.13.128/25', '10.1.130.0/26', '10.1.131.77/32', '10.64.0.0/12'])
      .concat(['fd00::/8', 'fd00:1::/32', 'fd00:1:2::/48', 'fd00:1:2:1::/64', 'fd00:1:2:9::/64', 'fd00:1:2:9::/120'])
      .concat(['fd00:1:3::/48', 'fd00:1:2:81::/72', 'fd00:1:2:100::/56', 'fd00:8000::/17', '0.0.0.0/0', '::/0'])
      .map((text) => Prefix.parse(text));
    // A moving address must not see another moving prefix's next hop: watch those that no other one contains.
    const watched = moving.flatMap((prefix, i) => {
      const inside = moving.some((other) => other !== prefix && other.contains(prefix));
      return inside ? [] : entry(prefix.last, i);
    });

    const shared = new Int32Array(new SharedArrayBuffer(4 * (4 + 4 * READERS)));
    const workers = Array.from({ length: READERS }, (_, reader) => {
      const workerData = { lookup: lookup.href, memory, reader, shared, stable: Int32Array.from(stable), moving: Int32Array.from(watched) }; // prettier-ignore
      return new Worker(source, { eval: true, execArgv: ['--input-type=module'], workerData });
    });
    const ended = Promise.all(
      workers.map((worker) => new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject))),
    );
    try {
      await Promise.all(workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))));
      const start = shared.slice();
      for (let update = 0; update < UPDATES; update++) {
        // The two default routes come last and less often: each touches a whole root.
        const i = next(10) > 0 ? next(moving.length - 2) : moving.length - 1 - next(2);
        if (update % 1000 === 999) {
          // Everything else goes and half of it comes back, in one replace.
          const steady = [...fib.entries()].filter(([prefix]) => !moving.some((other) => other.equals(prefix)));
          const some = moving.flatMap((prefix, k) => next(2) === 0 ? [] : [[prefix, { address: `10.9.${k}.${next(250)}` }] as const]); // prettier-ignore
          fib.replace([...steady, ...some]);
        } else if (next(3) === 0) {
          fib.delete(moving[i]!);
        } else {
          fib.set(moving[i]!, { address: `10.9.${i}.${1 + next(250)}`, port: 1 + next(3) });
        }
      }
      for (let reader = 0; reader < READERS; reader++) {
        expect(shared[wordAt(reader, 0)]! - start[wordAt(reader, 0)]!, 'batches during the churn').toBeGreaterThan(10);
      }
    } finally {
      Atomics.store(shared, STOP, 1);
      await ended;
    }
    for (let reader = 0; reader < READERS; reader++) {
      expect([shared[wordAt(reader, 1)], shared[wordAt(reader, 2)]], 'wrong stable results, wrong rows').toEqual([
        0, 0,
      ]);
    }
    fib.replace([]);
    expect(fib.reclaim()).toBe(true);
    expect(fib.memoryUsage()).toMatchObject({ usedWords: 0, extentWords: 0, nextHops: 0, hosts: 0, senders: 0 });
  });
});
