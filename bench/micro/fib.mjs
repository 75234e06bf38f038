/**
 * Micro-benchmark of the forwarding table: node bench/micro/fib.mjs [--json FILE] [--quick] (after `npm run build`).
 *
 * 100,000 prefixes of mixed lengths in each family, destinations uniformly random in the covered space: a random prefix,
 * then random host bits: 1,048,576 of them drawn beforehand, of which each pass walks the next 65,536 and adds the
 * results up, so that nothing is hoisted or dropped. Updates (a route goes, then comes back through another next hop)
 * are timed while another thread looks up without a pause. Samples are about a millisecond, shorter than a time slice,
 * and the median counts: other work on the machine then shows in the margin rather than in the figure.
 */
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import benny from 'benny';
import { Fib } from '../../dist/fib/fib.js';
import { FIRST_NEXT_HOP, createFibMemory } from '../../dist/fib/layout.js';
import { FibReader } from '../../dist/fib/lookup.js';
import { Address, Prefix } from '../../dist/net/prefix.js';

const PREFIXES = 100_000;
const HOSTS = 5_000;
const DESTINATIONS = 1 << 20;
const PASS = 1 << 16;
const UPDATES = 500;
const SEED = 20261120;
const quick = process.argv.includes('--quick');

/**
 * mulberry32: small, seeded, spreads well enough.
 * @param {number} seed
 */
function random32(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return t ^ (t >>> 14);
  };
}

const random = random32(SEED);
/** @param {number} n */
const below = (n) => (random() >>> 0) % n;

/** IPv4: half /24, the rest /20 to /28 and some host routes, all inside 10.0.0.0/8 and 100.64.0.0/10. */
function prefix4() {
  const kind = below(100);
  const length = kind < 50 ? 24 : kind < 98 ? 20 + below(9) : 32;
  const base = below(5) < 4 ? 0x0a000000 | (random() & 0xffffff) : 0x64400000 | (random() & 0x3fffff);
  return Prefix.of(Address.fromUint32(base >>> 0), length);
}

/** IPv6: half /64s side by side in one /48 after another, half spread over all of fd00::/8 as /56 to /72 and /128. */
function prefix6() {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < 16; i += 4) view.setInt32(i, random());
  bytes[0] = 0xfd;
  const kind = below(100);
  if (kind < 50) {
    view.setInt32(0, 0xfd001234 | 0);
    view.setUint16(4, below(2));
    return Prefix.of(Address.fromBytes(bytes), 64);
  }
  const length = kind < 75 ? 64 : kind < 98 ? 56 + below(17) : 128;
  return Prefix.of(Address.fromBytes(bytes), length);
}

/** @param {() => Prefix} make */
function distinct(make) {
  const found = new Map();
  while (found.size < PREFIXES) {
    const prefix = make();
    found.set(prefix.toString(), prefix);
  }
  return [...found.values()];
}

/**
 * Random destinations as words, one or four each.
 * @param {readonly Prefix[]} prefixes
 * @param {number} words
 */
function destinations(prefixes, words) {
  const result = new Int32Array(DESTINATIONS * words);
  for (let i = 0; i < DESTINATIONS; i++) {
    const prefix = prefixes[below(prefixes.length)];
    for (let w = 0; w < words; w++) {
      const host = Math.max(0, Math.min(32, (w + 1) * 32 - prefix.length));
      const mask = host === 0 ? 0 : host === 32 ? -1 : (1 << host) - 1;
      result[i * words + w] = prefix.address.word(w) | (random() & mask);
    }
  }
  return result;
}

const hosts = Array.from({ length: HOSTS }, (_, i) => ({ address: Address.fromUint32(0xc0a80000 + i) }));
/** @param {number} i */
const hostOf = (i) => hosts[i % HOSTS];
const prefixes4 = distinct(prefix4);
const prefixes6 = distinct(prefix6);
const memory = createFibMemory({ maxRoutes: 2 * PREFIXES + 10, maxNextHops: 2 * HOSTS, readers: 2 });
const fib = new Fib(memory);
const reader = new FibReader(memory, 0);
const loadStart = performance.now();
fib.replace([...prefixes4, ...prefixes6].map((prefix, i) => [prefix, hostOf(i)]));
const loadMs = performance.now() - loadStart;
const { usedWords } = fib.memoryUsage();
const to4 = destinations(prefixes4, 1);
const to6 = destinations(prefixes6, 4);
const senders = Int32Array.from({ length: DESTINATIONS }, () => 0xc0a80000 + below(HOSTS));

let start = 0;
/** The first destination of the next pass. */
function nextStart() {
  start = (start + PASS) % DESTINATIONS;
  return start;
}
function pass4() {
  let sum = 0;
  for (let i = nextStart(), end = i + PASS; i < end; i++) sum = (sum + reader.lookup4(to4[i])) | 0;
  return sum;
}
function pass6() {
  let sum = 0;
  for (let i = 4 * nextStart(), end = i + 4 * PASS; i < end; i += 4) {
    sum = (sum + reader.lookup6(to6[i], to6[i + 1], to6[i + 2], to6[i + 3])) | 0;
  }
  return sum;
}
function passSenders() {
  let sum = 0;
  for (let i = nextStart(), end = i + PASS; i < end; i++) sum = (sum + reader.lookupSender4(senders[i])) | 0;
  return sum;
}

let step = 0;
/** @param {readonly Prefix[]} prefixes */
function update(prefixes) {
  for (let i = 0; i < UPDATES; i += 2) {
    const prefix = prefixes[(step * 7919) % prefixes.length];
    fib.delete(prefix);
    fib.set(prefix, hostOf(step));
    step++;
  }
}

// Every destination is covered: a table that finds nothing would be a fast one.
for (let i = 0; i < DESTINATIONS; i++) {
  const found6 = reader.lookup6(to6[4 * i], to6[4 * i + 1], to6[4 * i + 2], to6[4 * i + 3]);
  if (Math.min(found6, reader.lookup4(to4[i])) < FIRST_NEXT_HOP) throw new Error('a route is missing');
}

const options = { minTime: 0.001, minSamples: 20, maxTime: quick ? 0.3 : 3 };
const lookUps = await benny.suite(
  'look-ups in 100,000 prefixes',
  benny.add('look-up IPv4', pass4, options),
  benny.add('look-up IPv6', pass6, options),
  benny.add('look-up sender IPv4', passSenders, options),
);

/** Word 0 stops the other thread, word 1 counts its passes. */
const shared = new Int32Array(new SharedArrayBuffer(8));
const beside = new Worker(
  `import { parentPort, workerData } from 'node:worker_threads';
   const { FibReader } = await import(workerData.lookup);
   const { memory, addresses, shared } = workerData;
   const reader = new FibReader(memory, 1);
   parentPort.postMessage('ready');
   let sum = 0;
   while (Atomics.load(shared, 0) === 0) {
     for (let i = 0; i + 64 <= addresses.length; i += 64) {
       reader.enter();
       for (let j = i; j < i + 64; j++) sum = (sum + reader.lookup4(addresses[j])) | 0;
     }
     Atomics.add(shared, 1, 1);
   }
   reader.leave();`,
  {
    eval: true,
    execArgv: ['--input-type=module'],
    workerData: { lookup: new URL('../../dist/fib/lookup.js', import.meta.url).href, memory, addresses: to4, shared },
  },
);
await once(beside, 'message');
const updates = await benny.suite(
  'updates of 100,000 prefixes beside a reader',
  benny.add('update IPv4 beside a reader', () => update(prefixes4), options),
  benny.add('update IPv6 beside a reader', () => update(prefixes6), options),
);
Atomics.store(shared, 0, 1);
await once(beside, 'exit');
if (shared[1] === 0) throw new Error('the reader beside the updates did not run');

const results = [...lookUps.results, ...updates.results].map(({ name, details }) => ({
  name,
  ns: (details.median * 1e9) / (name.startsWith('update') ? UPDATES : PASS),
  errorPercent: details.relativeMarginOfError,
}));
for (const { name, ns, errorPercent } of results) {
  console.log(`${name.padEnd(36)} ${ns.toFixed(1).padStart(8)} ns (±${errorPercent.toFixed(1)} %)`);
}
const mib = ((usedWords * 4) / 2 ** 20).toFixed(1);
console.log(`first load of 200,000 routes ${loadMs.toFixed(0)} ms, ${mib} MiB of chunks and skips`);
const json = process.argv.indexOf('--json');
if (json > 0) {
  writeFileSync(process.argv[json + 1], JSON.stringify({ suite: 'fib', loadMs, usedWords, results }));
}
