#!/usr/bin/env node
// From a fresh clone to a running command: packages, TypeScript, addon, programs, then the command itself.
//
//   node src/dev/setup.mjs                 set-up only            (npm run setup)
//   node src/dev/setup.mjs lab ARGS        podwire lab ARGS       (npm start -- ARGS)
//   node src/dev/setup.mjs test ARGS       vitest run ARGS        (npm test -- ARGS)
//   node src/dev/setup.mjs bench ARGS      bench/main.mjs ARGS    (npm run bench -- ARGS)
//
// Only node:* imports here, because nothing may be installed yet.

import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { addon, bundle, dependencies, programs, rawSocket, typescript } from './steps.mjs';
import { checkNode, say, SetupError } from './system.mjs';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

const COMMANDS = {
  lab: ['dist/bundle/main.cjs', 'lab'],
  test: ['node_modules/vitest/vitest.mjs', 'run'],
  bench: ['bench/main.mjs'],
};

async function prepare(mode) {
  checkNode();
  await dependencies(root);
  await Promise.all([typescript(root).then((compiled) => bundle(root, compiled)), addon()]);
  await rawSocket(root);
  programs(root, mode);
}

/** Runs the command in our place: its signals, its output, its exit code. */
function hand(mode, args) {
  const [script, ...first] = COMMANDS[mode];
  const child = spawn(process.execPath, [join(root, script), ...first, ...args], { stdio: 'inherit', cwd: root });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    // A terminal's Ctrl-C reaches the whole process group by itself.
    process.on(signal, () => {
      if (signal !== 'SIGINT' || !process.stdin.isTTY) child.kill(signal);
    });
  }
  child.on('error', (error) => {
    say(`cannot run ${script}: ${error.message}`);
    process.exitCode = 1;
  });
  child.on('exit', (code, signal) => {
    process.exitCode = code ?? 128 + constants.signals[signal];
  });
}

const [mode, ...args] = process.argv.slice(2);
try {
  if (mode !== undefined && COMMANDS[mode] === undefined) {
    throw new SetupError(`unknown mode '${mode}'; use lab, test, bench or nothing`);
  }
  await prepare(mode);
  if (mode !== undefined) hand(mode, args);
} catch (error) {
  if (!(error instanceof SetupError)) throw error;
  if (error.output !== '') process.stderr.write(`${error.output.trimEnd()}\n`);
  say(error.message);
  process.exitCode = 1;
}
