#!/usr/bin/env node
/**
 * `podwire`: runs the program from its bundle where the build has made one, which starts sooner than the modules it is
 * made of; else from those. The package's command is this file as a CommonJS module, dist/bundle/main.cjs: Node has less
 * to load for one of those.
 */
import { statSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Bundle } from './bundle.js';

/** Of {@link Bundle.load}: what the program's module exports. */
interface Program {
  readonly run: (argv: readonly string[]) => Promise<number>;
}

// Paths from here, and from the bundle's directory beside this one.
const BUNDLE = fileURLToPath(new URL('../bundle/podwire.cjs', import.meta.url));
/** The bundler would write it anew, were it to see it in an import(). */
const PROGRAM = new URL('../cli/program.js', import.meta.url).href;
/** The compiler's own record, where the package is being worked on. */
const COMPILED = fileURLToPath(new URL('../.tsbuildinfo', import.meta.url));
/** An agent has started by then, and its start is worth keeping: V8 has compiled what it takes. */
const KEEP_AFTER_MS = 5_000;

/** A bundle of older modules than those beside it would be a riddle. */
function isCurrent(): boolean {
  const [bundle, compiled] = [BUNDLE, COMPILED].map((file) => statSync(file, { throwIfNoEntry: false })?.mtimeMs);
  return bundle !== undefined && (compiled ?? 0) <= bundle;
}

async function load(command: string | undefined): Promise<Program> {
  if (!isCurrent()) return (await import(PROGRAM)) as Program;
  const bundle = new Bundle(BUNDLE, process.env['CACHE_DIRECTORY']);
  const program = bundle.load() as Program;
  if (command === 'agent' && !bundle.wasCompiled) setTimeout(() => bundle.keep(), KEEP_AFTER_MS).unref();
  return program;
}

async function main(argv: readonly string[]): Promise<void> {
  process.exitCode = await (await load(argv[0])).run(argv);
}

void main(process.argv.slice(2));
