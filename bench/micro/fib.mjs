// Micro-benchmark of the forwarding table: node bench/micro/fib.mjs [--json FILE] (after `npm run build`).
//
// 100,000 prefixes of mixed lengths in each family, destinations uniformly random in the covered space: a random
// prefix, random host bits. Every look-up pass walks 1,048,576 pre-generated destinations and sums the results, so
// that nothing is hoisted or dropped. Updates are timed while another thread looks up all the time.
import { writeFileSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import benny from 'benny';
import { Fib } from '../../dist/fib/fib.js';
import { createFibMemory } from '../../dist/fib/layout.js';
import { FibReader } from '../../dist/fib/lookup.js';
import { Address, Prefix } from '../../dist/net/prefix.js';

const PREFIXES = 100_000;
const HOSTS = 5_000;
const DESTINATIONS = 1 << 20;
const UPDATES = 50_000;
const SEED = 20261120;

/** mulberry32: small, seeded, good enough to spread destinations. */
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

function distinct(make) {
  const found = new Map();
  while (found.size < PREFIXES) {
    const prefix = make();
    found.set(prefix.toString(), prefix);
  }
  return [...found.values()];
}

/** Random destinations as words, four for IPv6. */
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
const prefixes4 = distinct(prefix4);
const prefixes6 = distinct(prefix6);
const memory = createFibMemory({ maxRoutes: 2 * PREFIXES + 10, maxNextHops: 2 * HOSTS, readers: 2 });
const fib = new Fib(memory);
const reader = new FibReader(memory, 0);
const loadStart = performance.now();
fib.replace([...prefixes4, ...prefixes6].map((prefix, i) => [prefix, hosts[i % HOSTS]]));
const loadMs = performance.now() - loadStart;
const to4 = destinations(prefixes4, 1);
const to6 = destinations(prefixes6, 4);
const senders = Int32Array.from({ length: DESTINATIONS }, () => 0xc0a80000 + below(HOSTS));

function pass4(addresses) {
  let sum = 0;
  for (let i = 0; i < addresses.length; i++) sum = (sum + reader.lookup4(addresses[i])) | 0;
  return sum;
}
function pass6(addresses) {
  let sum = 0;
  for (let i = 0; i < addresses.length; i += 4) {
    sum = (sum + reader.lookup6(addresses[i], addresses[i + 1], addresses[i + 2], addresses[i + 3])) | 0;
  }
  return sum;
}
function passSenders(addresses) {
  let sum = 0;
  for (let i = 0; i < addresses.length; i++) sum = (sum + reader.lookupSender4(addresses[i])) | 0;
  return sum;
}
/** Every destination is covered, so every result must be a next hop; a wrong table would be a fast one. */
function check() {
  for (const i of [...to4.keys()].slice(0, 10_000)) if (reader.lookup4(to4[i]) < 2) throw new Error('no route');
  for (let i = 0; i < 40_000; i += 4) {
    if (reader.lookup6(to6[i], to6[i + 1], to6[i + 2], to6[i + 3]) < 2) throw new Error('no route');
  }
}
reader.enter();
check();

/** A thread that looks up without pause, in batches as a worker does, until `stop[0]` is 1; counts passes in stop[1]. */
const stop = new Int32Array(new SharedArrayBuffer(8));
const beside = new Worker(
  `import { workerData } from 'node:worker_threads';
   const { FibReader } = await import(workerData.module);
   const { memory, addresses, stop } = workerData;
   const reader = new FibReader(memory, 1);
   let sum = 0;
   while (Atomics.load(stop, 0) === 0) {
     for (let i = 0; i + 64 <= addresses.length; i += 64) {
       reader.enter();
       for (let j = i; j < i + 64; j++) sum = (sum + reader.lookup4(addresses[j])) | 0;
     }
     Atomics.add(stop, 1, 1);
   }
   reader.leave();`,
  {
    eval: true,
    execArgv: ['--input-type=module'],
    workerData: { module: new URL('../../dist/fib/lookup.js', import.meta.url).href, memory, addresses: to4, stop },
  },
);

let step = 0;
/** Every second update removes a route, the next one puts it back with another next hop. */
function updates(prefixes) {
  for (let i = 0; i < UPDATES; i += 2) {
    const prefix = prefixes[(step * 7919) % prefixes.length];
    fib.delete(prefix);
    fib.set(prefix, hosts[step % HOSTS]);
    step++;
  }
}

const suite = await benny.suite(
  'forwarding table, 100,000 IPv4 and 100,000 IPv6 prefixes',
  benny.add('look-up IPv4', () => pass4(to4)),
  benny.add('look-up IPv6', () => pass6(to6)),
  benny.add('look-up sender IPv4', () => passSenders(senders)),
  benny.add('update IPv4 beside a reader', () => updates(prefixes4)),
  benny.add('update IPv6 beside a reader', () => updates(prefixes6)),
  benny.cycle(),
);
Atomics.store(stop, 0, 1);
await new Promise((resolve) => beside.once('exit', resolve));

const perUnit = suite.results.map(({ name, details }) => {
  const units = name.startsWith('update') ? UPDATES : DESTINATIONS;
  return { name, ns: (details.median * 1e9) / units, errorPercent: details.relativeMarginOfError };
});
for (const { name, ns, errorPercent } of perUnit) {
  const rate = name.startsWith('update') ? `, ${Math.round(1e9 / ns).toLocaleString('en')} a second` : '';
  console.log(`${name.padEnd(32)} ${ns.toFixed(1).padStart(8)} ns${rate} (±${errorPercent.toFixed(1)} %)`);
}
const usage = fib.memoryUsage();
const mib = (words) => ((words * 4) / 2 ** 20).toFixed(1);
console.log(`passes of the reader beside: ${stop[1]}; first load of 200,000 routes: ${loadMs.toFixed(0)} ms`);
console.log(`heap in use ${mib(usage.usedWords)} MiB, at most ${mib(usage.peakWords)} MiB`);
const json = process.argv.indexOf('--json');
if (json > 0) writeFileSync(process.argv[json + 1], JSON.stringify({ suite: 'fib', loadMs, results: perUnit, usage }));
