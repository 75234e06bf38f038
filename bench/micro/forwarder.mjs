// @ts-check
/**
 * Micro-benchmark of the decisions: node bench/micro/forwarder.mjs [--json FILE] [--quick] (after `npm run build`).
 *
 * Batches of 64 packets as the engine hands them over (a table row and a packet each), IPv4 with UDP, towards one route and
 * towards uniformly random ones of 100,000. A pass puts new addresses into the packets of one batch and decides it; the
 * writing is the same work in all rows and is part of the time. Time per packet.
 */
import { writeFileSync } from 'node:fs';
import benny from 'benny';
import { COUNTER_COUNT } from '../../dist/dataplane/counters.js';
import { Forwarder } from '../../dist/dataplane/forwarder.js';
import { POLICY_OVERHEAD, POLICY_SOURCE_CHECK, POLICY_WORDS, SOURCE_CHECK_LEASE } from '../../dist/dataplane/policy.js';
import { Fib } from '../../dist/fib/fib.js';
import { FIRST_NEXT_HOP, createFibMemory } from '../../dist/fib/layout.js';
import { FibReader } from '../../dist/fib/lookup.js';
import * as tables from '../../dist/io/batch.js';
import { Address, Prefix } from '../../dist/net/prefix.js';

const PREFIXES = 100_000;
const HOSTS = 5000;
const BATCH = 64;
const DESTINATIONS = 1 << 18;
const PACKET_BYTES = 92;
/** Odd, so that packets do not share a cache set. */
const PACKET_STRIDE = 1344;
const OVERHEAD = 28;
const OWN_SUBNET = '10.240.0.0/24';
const OWN_POD = 0x0af00002;
const quick = process.argv.includes('--quick');

/**
 * xorshift32: seeded, spreads well enough.
 * @param {number} seed
 */
function random32(seed) {
  let x = seed;
  return () => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
}
const random = random32(20_261_120);

const ROUTES_START = 0x0a000000;
/** Routes below the own subnet; the others lie above it. */
const BELOW_OWN = (OWN_POD - ROUTES_START) >>> 8;

/** Base address of route number i: the /24s from 10.0.0.0 on, without the own subnet. @param {number} i */
const baseOf = (i) => ROUTES_START + (i < BELOW_OWN ? i : i + 1) * 256;

/** @param {number} i */
const hostOf = (i) => ({ address: Address.fromUint32(0xc0a80000 + (i % HOSTS)) });

/** A packet of 92 bytes from the own pod (egress) or to it (ingress). @param {DataView} view @param {number} at */
function writePacket(view, at) {
  view.setUint8(at, 0x45);
  view.setUint16(at + 2, PACKET_BYTES);
  view.setUint8(at + 8, 63);
  view.setUint8(at + 9, 17);
  view.setInt32(at + 12, OWN_POD);
  view.setInt32(at + 16, OWN_POD);
  view.setUint16(at + 24, PACKET_BYTES - 20);
}

const memory = createFibMemory({ maxRoutes: PREFIXES + 10, maxNextHops: 2 * HOSTS, readers: 1 });
const fib = new Fib(memory);
fib.setLocal([OWN_SUBNET]);
fib.replace(Array.from({ length: PREFIXES }, (_, i) => [Prefix.of(Address.fromUint32(baseOf(i)), 24), hostOf(i)]));

const batchMemory = tables.createBatchMemory(COUNTER_COUNT, 2 * HOSTS);
const batch = tables.openBatch(batchMemory);
const policy = new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
policy[POLICY_OVERHEAD] = OVERHEAD;
policy[POLICY_SOURCE_CHECK] = SOURCE_CHECK_LEASE;
const reader = new FibReader(memory, 0);
const forwarder = new Forwarder(batch, reader, policy, Date.now);
const { meta, tunView, udpView } = batch;

for (let i = 0; i < BATCH; i++) {
  const at = i * PACKET_STRIDE;
  writePacket(tunView, at);
  writePacket(udpView, at);
  const egress = tables.EGRESS_BASE + i * tables.ROW_WORDS;
  meta[egress + tables.E_OFFSET] = at;
  meta[egress + tables.E_LENGTH] = PACKET_BYTES;
  meta[egress + tables.E_FLAGS] = tables.EF_UDP;
  meta[egress + tables.E_SEGMENTS] = 1;
  const ingress = tables.INGRESS_BASE + i * tables.ROW_WORDS;
  meta[ingress + tables.I_OFFSET] = at;
  meta[ingress + tables.I_LENGTH] = PACKET_BYTES;
  meta[ingress + tables.I_SEGMENTS] = 1;
  meta[ingress + tables.I_BYTES] = PACKET_BYTES;
}
meta[tables.META_MESSAGE_COUNT] = 1;
meta[tables.MESSAGE_BASE + tables.M_FAMILY] = 4;

/**
 * Remote pods and, at the same index, the words of their hosts' addresses.
 * @param {number} routes how many of the routes are used
 */
function remotePods(routes) {
  const pods = new Int32Array(DESTINATIONS);
  const hosts = new Int32Array(DESTINATIONS);
  for (let i = 0; i < DESTINATIONS; i++) {
    const route = random() % routes;
    pods[i] = baseOf(route) + 2 + (random() % 250);
    hosts[i] = hostOf(route).address.toUint32();
  }
  return { pods, hosts };
}
const one = remotePods(1);
const many = remotePods(PREFIXES);

let next = 0;
/** Decides one batch of packets to the next 64 of these pods. @param {typeof one} remote */
function egress({ pods }) {
  const from = next;
  next = (next + BATCH) & (DESTINATIONS - 1);
  for (let i = 0; i < BATCH; i++) tunView.setInt32(i * PACKET_STRIDE + 16, /** @type {number} */ (pods[from + i]));
  reader.enter();
  forwarder.egress(BATCH);
}

/** Decides one batch of packets from one of these pods, as one receive message holds them. @param {typeof one} remote */
function ingress({ pods, hosts }) {
  const from = next;
  next = (next + BATCH) & (DESTINATIONS - 1);
  const source = /** @type {number} */ (pods[from]);
  meta[tables.MESSAGE_BASE + tables.M_WORD0] = /** @type {number} */ (hosts[from]);
  for (let i = 0; i < BATCH; i++) udpView.setInt32(i * PACKET_STRIDE + 12, source);
  reader.enter();
  forwarder.ingress(BATCH);
}

/** A forwarder that drops would be a fast one. */
function check() {
  for (let pass = 0; pass < 200; pass++) {
    egress(many);
    ingress(many);
    for (let i = 0; i < BATCH; i++) {
      const sent = meta[tables.EGRESS_BASE + i * tables.ROW_WORDS + tables.E_VERDICT] ?? 0;
      const delivered = meta[tables.INGRESS_BASE + i * tables.ROW_WORDS + tables.I_VERDICT] ?? 0;
      if (sent < FIRST_NEXT_HOP) throw new Error(`egress row ${i} was not forwarded (verdict ${sent})`);
      if (delivered === 0) throw new Error(`ingress row ${i} was not delivered`);
    }
  }
}
check();

const PASSES = 1000;
/** @param {(remote: typeof one) => void} decide @param {typeof one} remote */
function repeat(decide, remote) {
  return () => {
    for (let pass = 0; pass < PASSES; pass++) decide(remote);
  };
}

const options = quick ? { minSamples: 3, maxTime: 0.1 } : { minSamples: 20, maxTime: 3 };
const suite = await benny.suite(
  'forwarder, batches of 64 packets',
  benny.add('egress, 1 prefix', repeat(egress, one), options),
  benny.add('egress, 100,000 prefixes', repeat(egress, many), options),
  benny.add('ingress, 1 sender', repeat(ingress, one), options),
  benny.add('ingress, 5,000 senders', repeat(ingress, many), options),
);

const results = suite.results.map(({ name, details }) => ({
  name,
  ns: (details.median * 1e9) / (PASSES * BATCH),
  errorPercent: details.relativeMarginOfError,
}));
for (const { name, ns, errorPercent } of results) {
  console.log(`${name.padEnd(32)} ${ns.toFixed(1).padStart(8)} ns (±${errorPercent.toFixed(1)} %)`);
}
const json = process.argv.indexOf('--json');
if (json > 0) writeFileSync(process.argv[json + 1] ?? '', JSON.stringify({ suite: 'forwarder', results }));
