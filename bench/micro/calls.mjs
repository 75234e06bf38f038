// @ts-check
/**
 * Micro-benchmark of the border to C: node bench/micro/calls.mjs [--json FILE] [--quick] (after `npm run build`).
 *
 * A call that does nothing, and the checksum of one packet with every variant that this processor has. Time per call.
 */
import { writeFileSync } from 'node:fs';
import benny from 'benny';
import { addon } from '../../dist/io/native.js';

const CALLS = 10_000;
const quick = process.argv.includes('--quick');
const native = addon();
const packet = new Uint8Array(1400).map((_, i) => i * 7);

/** @param {() => void} call */
function repeat(call) {
  return () => {
    for (let i = 0; i < CALLS; i++) call();
  };
}

const chosen = native.layout().checksumVariant;
const variants = [...new Set(['portable', chosen])];
const options = quick ? { minSamples: 3, maxTime: 0.1 } : { minSamples: 20, maxTime: 2 };
const suite = await benny.suite(
  'calls into the addon',
  benny.add(
    'call without argument',
    repeat(() => native.noop()),
    options,
  ),
  ...variants.map((variant) =>
    benny.add(
      `checksum of 1400 bytes, ${variant}`,
      repeat(() => native.checksum(packet, variant)),
      options,
    ),
  ),
);

const results = suite.results.map(({ name, details }) => ({
  name,
  ns: (details.median * 1e9) / CALLS,
  errorPercent: details.relativeMarginOfError,
}));
for (const { name, ns, errorPercent } of results) {
  console.log(`${name.padEnd(36)} ${ns.toFixed(1).padStart(8)} ns (±${errorPercent.toFixed(1)} %)`);
}
const json = process.argv.indexOf('--json');
if (json > 0) writeFileSync(process.argv[json + 1] ?? '', JSON.stringify({ suite: 'calls', chosen, results }));
