// @ts-check
/**
 * The benchmark: `npm run bench -- MODE [options]`, see options.mjs. The report goes to stdout, progress to stderr, and with
 * --json everything into a file. Exit code 0 when every contender that is there could be measured; what the figures are
 * does not change it. Needs root (or an unprivileged namespace that looks like it).
 */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CONTENDERS } from './contenders/index.mjs';
import { describeMachine, machineCpu, machineCpuBetween, observeNoise } from './lib/meter.mjs';
import { buildTools } from './lib/native.mjs';
import { BenchError, killAllChildren, run } from './lib/process.mjs';
import { setInnerMtu, removeLeftovers } from './lib/topology.mjs';
import { runControl } from './control/main.mjs';
import { runMicro } from './micro/main.mjs';
import { USAGE, parseOptions } from './options.mjs';
import { makeDocument } from './report/document.mjs';
import { renderReport } from './report/table.mjs';
import { measuresOf, runRounds } from './rounds.mjs';

/** @param {string} line */
const log = (line) => process.stderr.write(`${line}\n`);

/**
 * The programs that a run cannot do without.
 * @param {import('./options.mjs').Options} options
 */
async function checkRequirements(options) {
  if (process.getuid?.() !== 0) throw new BenchError('the benchmark makes network namespaces: run it as root');
  const needed = [
    ['ip', '-V', 'iproute2'],
    ['bridge', '-V', 'iproute2'],
  ];
  if (options.measures.includes('throughput')) needed.push(['iperf3', '--version', 'iperf3']);
  if (options.measures.length > 0 && options.underlays.includes('nic'))
    needed.push(['ethtool', '--version', 'ethtool']);
  for (const [program = '', argument = '', pack = ''] of needed) {
    await run([program, argument]).catch(() => {
      throw new BenchError(`the program ${program} is missing (Debian, Ubuntu: apt-get install ${pack})`);
    });
  }
}

/**
 * A report that cannot be written would be noticed half an hour late.
 * @param {string} file
 */
function checkWritable(file) {
  try {
    closeSync(openSync(file, 'a'));
  } catch (error) {
    throw new BenchError(`--json ${file} cannot be written: ${error instanceof Error ? error.message : String(error)}`);
  }
}

/**
 * Who takes part, and what is known of everybody.
 * @param {import('./options.mjs').Options} options
 */
async function chooseContenders(options) {
  const asked = CONTENDERS.filter(
    (contender) =>
      (options.contenders === undefined || options.contenders.includes(contender.name)) &&
      measuresOf(contender, options).length > 0,
  );
  const known = await Promise.all(
    asked.map(async (contender) => ({
      name: contender.name,
      about: contender.about,
      ...(await contender.available()),
    })),
  );
  for (const one of known) {
    if (!('missing' in one)) continue;
    if (options.contenders !== undefined) throw new BenchError(`contender ${one.name}: ${one.missing}`);
    log(`without ${one.name}: ${one.missing}`);
  }
  const present = asked.filter((contender) => known.some((one) => one.name === contender.name && !('missing' in one)));
  return { known, present };
}

/**
 * @param {import('./options.mjs').Options} options
 * @param {AbortSignal} signal
 */
async function bench(options, signal) {
  const startedAt = new Date().toISOString();
  /** @type {Awaited<ReturnType<typeof runRounds>>} */
  let measured = { samples: [], problems: [], features: {} };
  /** @type {Awaited<ReturnType<typeof chooseContenders>>} */
  let contenders = { known: [], present: [] };
  let compiler = '';
  if (options.measures.length > 0 || options.control) {
    await checkRequirements(options);
    await removeLeftovers(log);
  }
  if (options.measures.length > 0) {
    contenders = await chooseContenders(options);
  }
  const noise = await observeNoise(options.durations.noiseSeconds);
  const before = machineCpu();
  if (contenders.present.length > 0) {
    const tools = await buildTools();
    compiler = tools.compiler;
    const workDir = mkdtempSync(join(tmpdir(), 'podwire-bench-'));
    try {
      measured = await runRounds(contenders.present, { options, tools, workDir, signal, log });
    } finally {
      rmSync(workDir, { recursive: true, force: true });
    }
  }
  const micro = options.micro
    ? await runMicro({ quick: options.quick, log, signal })
    : { samples: [], raw: [], problems: [] };
  const control = options.control
    ? await runControl({ quick: options.quick, log, signal })
    : { samples: [], problems: [] };
  const { stealPercent: stealPercentDuring } = machineCpuBetween(before, machineCpu());
  return makeDocument({
    startedAt,
    command: process.argv.slice(2),
    options,
    machine: { ...(await describeMachine()), compiler },
    noise: { ...noise, stealPercentDuring },
    underlayFeatures: measured.features,
    contenders: contenders.known,
    samples: [...measured.samples, ...micro.samples, ...control.samples],
    micro: micro.raw,
    problems: [...measured.problems, ...micro.problems, ...control.problems],
  });
}

async function main() {
  const options = parseOptions(process.argv.slice(2));
  if (options === 'help') {
    process.stdout.write(`${USAGE}\n`);
    return 0;
  }
  setInnerMtu(options.mtu);
  if (options.jsonFile !== undefined) checkWritable(options.jsonFile);
  const interruption = new AbortController();
  for (const name of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
    process.on(name, () => {
      if (interruption.signal.aborted) return;
      log(`${name}: cleaning up`);
      interruption.abort(new BenchError(`interrupted by ${name}`));
    });
  }
  process.on('exit', killAllChildren);
  const document = await bench(options, interruption.signal);
  if (options.jsonFile !== undefined) writeFileSync(options.jsonFile, `${JSON.stringify(document, null, 1)}\n`);
  process.stdout.write(`${renderReport(document)}\n`);
  return document.problems.length > 0 ? 1 : 0;
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof BenchError)) throw error;
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
}
