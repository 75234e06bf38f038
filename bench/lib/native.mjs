// @ts-check
/** The load tools in C: built once per content into node_modules/.cache/podwire-bench, with whatever C compiler is there. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { BenchError, run } from './process.mjs';

const FLAGS = ['-std=gnu17', '-O2', '-Wall', '-Wextra'];

/** @typedef {{ pps: string, rtt: string, copies: string, compiler: string }} Tools paths of the programs, and the compiler's first line */

/**
 * @returns {Promise<Tools>}
 * @throws {BenchError} no compiler, or the source does not compile
 */
export async function buildTools() {
  const cc = process.env['CC'] ?? 'cc';
  const version = await run([cc, '--version']).catch(() => {
    throw new BenchError(`no C compiler: \`${cc}\` does not run; install gcc (apt-get install gcc) or set CC`);
  });
  const compiler = version.stdout.split('\n', 1)[0] ?? cc;
  const cache = fileURLToPath(new URL('../../node_modules/.cache/podwire-bench/', import.meta.url));
  mkdirSync(cache, { recursive: true });
  /** @param {'pps' | 'rtt' | 'copies'} name */
  const build = async (name) => {
    const source = fileURLToPath(new URL(`../native/${name}.c`, import.meta.url));
    const headers = ['../native/tool.h', '../../native/udp-options.h'].map((path) => new URL(path, import.meta.url));
    const content = [source, ...headers].map((file) => readFileSync(file));
    const parts = [...content, compiler, ...FLAGS];
    const hash = parts.reduce((sum, part) => sum.update(part), createHash('sha256')).digest('hex');
    const program = `${cache}${name}-${hash.slice(0, 16)}`;
    if (!existsSync(program)) {
      const draft = `${program}.${process.pid}`;
      await run([cc, ...FLAGS, '-o', draft, source], { timeoutMs: 60_000 });
      renameSync(draft, program); // atomic: two runs may build at once
    }
    return program;
  };
  return { pps: await build('pps'), rtt: await build('rtt'), copies: await build('copies'), compiler };
}
