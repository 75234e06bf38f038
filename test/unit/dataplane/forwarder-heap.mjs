/**
 * forwarder-heap.mjs, run with --expose-gc: heap bytes that the forwarder allocates for each kind of row, as one JSON
 * object {kind: {rows, bytes, collections}} (collections: how often the garbage collector ran). A kind is one batch repeated until a million rows are decided.
 */
import { PerformanceObserver } from 'node:perf_hooks';
import { COUNTER_COUNT, COUNTER_NAMES } from '../../../dist/dataplane/counters.js';
import { Forwarder } from '../../../dist/dataplane/forwarder.js';
import {
  POLICY_OVERHEAD,
  POLICY_SOURCE_CHECK,
  POLICY_WORDS,
  SOURCE_CHECK_LEASE,
} from '../../../dist/dataplane/policy.js';
import { Fib } from '../../../dist/fib/fib.js';
import { createFibMemory } from '../../../dist/fib/layout.js';
import { FibReader } from '../../../dist/fib/lookup.js';
import * as layout from '../../../dist/io/batch.js';
import { packet } from '../../../dist/testing.js';

const ROWS = 1_000_000;
const WARM_UP_ROWS = 200_000;
const ROWS_PER_BATCH = 200;

const batch = layout.openBatch(layout.createBatchMemory(COUNTER_COUNT, 8));
const memory = createFibMemory({ maxRoutes: 1000, maxNextHops: 1000, readers: 1 });
const fib = new Fib(memory);
fib.setLocal(['10.1.0.0/24', 'fd00:0:1::/64'], ['192.0.2.9']);
for (let i = 1; i < 200; i++) {
  fib.set(`10.1.${i}.0/24`, { address: `192.0.2.${i}` });
  fib.set(`fd00:${i}::/64`, { address: `192.0.2.${i}` });
}
const reader = new FibReader(memory, 0);
const policy = new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
policy[POLICY_OVERHEAD] = 28;
policy[POLICY_SOURCE_CHECK] = SOURCE_CHECK_LEASE;
const forwarder = new Forwarder(batch, reader, policy, Date.now);

const [POD4, POD6] = ['10.1.0.5', 'fd00:0:1::5'];
const data = (bytes) => new Uint8Array(bytes).fill(7);
const fromPod = (four, destination, fields) =>
  packet({ source: four ? POD4 : POD6, destination, kind: 'udp', payload: data(64), ...fields });
const fromPeer = (fields) =>
  packet({ source: '10.1.7.1', destination: POD4, kind: 'udp', payload: data(64), ...fields });

/** Packets of one kind, `out` from pods or `in` from the peer 192.0.2.7, and where each of them must be counted. */
const KINDS = {
  'IPv4 forwarded': { out: [1, 2, 77].map((i) => fromPod(true, `10.1.${i}.9`)) },
  'IPv6 forwarded': { out: [1, 2, 77].map((i) => fromPod(false, `fd00:${i}::9`)) },
  fragmented: { out: [fromPod(true, '10.1.3.3', { payload: data(1600) })] },
  'own subnet': { out: [fromPod(true, '10.1.0.9')], counter: 'dropOwnSubnet' },
  multicast: { out: [fromPod(false, 'ff02::1')], counter: 'dropMulticast' },
  'no route, answered or limited': {
    out: [fromPod(true, '10.9.9.9'), fromPod(false, 'fd00:9999::9')],
    counter: 'dropNoRoute',
  },
  'no route, never answered': {
    out: [fromPod(true, '10.9.9.9', { kind: 'raw', protocol: 1 })],
    counter: 'repliesSuppressed',
  },
  'too big': {
    out: [fromPod(true, '10.1.3.3', { payload: data(1600), dontFragment: true })],
    counter: 'dropTooBig',
  },
  malformed: { out: [Uint8Array.of(0x41, ...data(30))], counter: 'dropMalformed' },
  delivered: { in: [fromPeer({}), fromPeer({ source: 'fd00:7::1', destination: POD6 })] },
  truncated: { in: [fromPeer({}).subarray(0, 40)], counter: 'dropTruncated' },
  spoofed: { in: [fromPeer({ source: '10.1.8.1' }), fromPeer({ source: POD4 })], counter: 'dropSpoofedSource' },
  'not local': { in: [fromPeer({ destination: '10.1.9.1' })], counter: 'dropNotLocal' },
  'unknown sender': { in: [fromPeer({})], sender: 0x01020304, counter: 'dropUnknownSender' },
};

/** Rows of the last batch that were let through, and all that were counted so far. */
function tally({ out, counter }) {
  if (counter !== undefined) return batch.counters[COUNTER_NAMES.indexOf(counter)];
  const first = out ? layout.EGRESS_BASE + layout.E_VERDICT : layout.INGRESS_BASE + layout.I_VERDICT;
  let through = 0;
  for (let i = 0; i < ROWS_PER_BATCH; i++) if (batch.meta[first + i * layout.ROW_WORDS] > 0) through++;
  return through;
}

function fill({ out, in: incoming, sender = 0xc0000207 | 0 }) {
  const { meta, tun, udp } = batch;
  let at = 0;
  for (let i = 0; i < ROWS_PER_BATCH; i++) {
    const bytes = (out ?? incoming)[i % (out ?? incoming).length];
    const row = (out ? layout.EGRESS_BASE : layout.INGRESS_BASE) + i * layout.ROW_WORDS;
    meta.fill(0, row, row + layout.ROW_WORDS);
    (out ? tun : udp).set(bytes, at);
    meta[row + (out ? layout.E_OFFSET : layout.I_OFFSET)] = at;
    meta[row + (out ? layout.E_LENGTH : layout.I_LENGTH)] = bytes.length;
    meta[row + (out ? layout.E_SEGMENTS : layout.I_SEGMENTS)] = 1;
    at += bytes.length;
  }
  meta[layout.META_MESSAGE_COUNT] = 1;
  meta[layout.MESSAGE_BASE + layout.M_FAMILY] = 4;
  meta[layout.MESSAGE_BASE + layout.M_WORD0] = sender;
}

function decide(egress, rows) {
  for (let done = 0; done < rows; done += ROWS_PER_BATCH) {
    reader.enter();
    if (egress) {
      batch.meta[layout.META_REPLY_COUNT] = 0;
      forwarder.egress(ROWS_PER_BATCH);
    } else {
      forwarder.ingress(ROWS_PER_BATCH);
    }
  }
}

let collections = 0;
new PerformanceObserver((list) => (collections += list.getEntries().length)).observe({ entryTypes: ['gc'] });
/** The observer reports in a later turn of the event loop. */
const observed = () => new Promise((done) => setTimeout(done, 20));

// All kinds before the first is measured: compiled code is thrown away when a path is taken for the first time.
for (let round = 0; round < 3; round++) {
  for (const kind of Object.values(KINDS)) {
    fill(kind);
    decide(kind.out !== undefined, WARM_UP_ROWS);
  }
}
const result = {};
for (const [name, kind] of Object.entries(KINDS)) {
  fill(kind);
  decide(kind.out !== undefined, WARM_UP_ROWS);
  globalThis.gc();
  await observed();
  const counted = tally(kind);
  const before = { collections, heap: process.memoryUsage().heapUsed };
  decide(kind.out !== undefined, ROWS);
  const heap = process.memoryUsage().heapUsed;
  const right = kind.counter === undefined ? tally(kind) === ROWS_PER_BATCH : tally(kind) - counted === ROWS;
  if (!right) throw new Error(`'${name}' is not what it says`);
  await observed();
  result[name] = { rows: ROWS, bytes: heap - before.heap, collections: collections - before.collections };
}
process.stdout.write(JSON.stringify(result));
process.exit(0);
