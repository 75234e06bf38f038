// @ts-check
/**
 * Micro-benchmark of running a program of the host: node bench/micro/programs.mjs [--json FILE] [--quick] (after
 * `npm run build`).
 *
 * `ip -V` by the addon, as the agent does, and by node:child_process, in a process that holds 60 MiB: how long the event
 * loop is held by one, and for how long in sum a thread that writes all over 32 MiB of shared memory, as workers do, does
 * not get on (gaps above 1 ms). No benny here: what is measured is not the time of a call.
 */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { run } from '../../dist/host/exec.js';

const GAP_MS = 1;
const WARM_UP_MS = 300;
const PROGRAMS = 20;
const MEMORY = 32 * 1024 * 1024;
/** One word of every page, a stretch of them between two looks at the clock. */
const STRIDE = 1024;
const STRETCH = 2048;
const STOP = 1;

/** @param {{ memory: Int32Array, gaps: Float64Array }} shared */
function write({ memory, gaps }) {
  let at = 0;
  for (let last = performance.now(); Atomics.load(memory, STOP) === 0;) {
    for (let i = 0; i < STRETCH; i++) {
      memory[at] = i;
      at = (at + STRIDE) % memory.length;
    }
    const now = performance.now();
    if (now - last > GAP_MS) gaps[0] = (gaps[0] ?? 0) + now - last;
    last = now;
  }
}

/** @type {Readonly<Record<string, () => Promise<unknown>>>} */
const WAYS = {
  addon: () => run('ip', ['-V']),
  'node:child_process': () =>
    new Promise((resolve, reject) => {
      const child = spawn('ip', ['-V'], { stdio: ['ignore', 'pipe', 'pipe'] });
      child.stdout.resume();
      child.stderr.resume();
      child.on('error', reject).on('close', resolve);
    }),
};

/**
 * @param {() => Promise<unknown>} way
 * @returns {Promise<{ heldMs: number, stalledMs: number }>} of one program
 */
async function measure(way) {
  const shared = {
    memory: new Int32Array(new SharedArrayBuffer(MEMORY)),
    gaps: new Float64Array(new SharedArrayBuffer(8)),
  };
  const worker = new Worker(new URL(import.meta.url), { workerData: shared });
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  await delay(WARM_UP_MS);
  shared.gaps[0] = 0;
  let heldMs = 0;
  for (let i = 0; i < PROGRAMS; i++) {
    const from = performance.now();
    const running = way();
    heldMs += performance.now() - from;
    await running;
  }
  const [stalledMs = 0] = shared.gaps;
  Atomics.store(shared.memory, STOP, 1);
  await ended;
  return { heldMs: heldMs / PROGRAMS, stalledMs: stalledMs / PROGRAMS };
}

/** @param {readonly number[]} values */
function summary(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)] ?? NaN;
  const spread = ((sorted.at(-1) ?? NaN) - (sorted[0] ?? NaN)) / 2;
  return { ns: median * 1e6, errorPercent: median === 0 ? 0 : (100 * spread) / median };
}

async function main() {
  const rounds = process.argv.includes('--quick') ? 1 : 5;
  const held = Array.from({ length: 60 }, () => Buffer.alloc(1024 * 1024, 1));
  /** @type {Record<string, { heldMs: number, stalledMs: number }[]>} */
  const found = {};
  for (let round = 0; round < rounds; round++) {
    for (const [name, way] of Object.entries(WAYS)) (found[name] ??= []).push(await measure(way));
  }
  const results = Object.entries(found).flatMap(([name, all]) => [
    { name: `event loop held by a program, ${name}`, ...summary(all.map(({ heldMs }) => heldMs)) },
    { name: `thread stalled by a program, ${name}`, ...summary(all.map(({ stalledMs }) => stalledMs)) },
  ]);
  for (const { name, ns, errorPercent } of results) {
    console.log(`${name.padEnd(52)} ${(ns / 1e6).toFixed(2).padStart(8)} ms (±${errorPercent.toFixed(0)} %)`);
  }
  const json = process.argv.indexOf('--json');
  const facts = { suite: 'programs', heldMiB: held.length, results };
  if (json > 0) writeFileSync(process.argv[json + 1] ?? '', JSON.stringify(facts));
}

if (isMainThread) await main();
else write(workerData);
