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
  readonly run: (argv: readonly string[], onReady?: () => void) => Promise<number>;
}

// Paths from here, and from the bundle's directory beside this one.
const BUNDLE = fileURLToPath(new URL('../bundle/podwire.cjs', import.meta.url));
/** The bundler would write it anew, were it to see it in an import(). */
const PROGRAM = new URL('../cli/program.js', import.meta.url).href;
/** The compiler's own record, where the package is being worked on. */
const COMPILED = fileURLToPath(new URL('../.tsbuildinfo', import.meta.url));
/** After an agent's start, which is then worth keeping: V8 has compiled what it takes. A stop before is as good. */
const KEEP_AFTER_MS = 5_000;

/** A bundle of older modules than those beside it would be a riddle. */
function isCurrent(): boolean {
  const [bundle, compiled] = [BUNDLE, COMPILED].map((file) => statSync(file, { throwIfNoEntry: false })?.mtimeMs);
  return bundle !== undefined && (compiled ?? 0) <= bundle;
}

async function main(argv: readonly string[]): Promise<void> {
  if (!isCurrent()) {
    const program = (await import(PROGRAM)) as Program;
    process.exitCode = await program.run(argv);
    return;
  }
  const bundle = new Bundle(BUNDLE, process.env['CACHE_DIRECTORY']);
  const program = bundle.load() as Program;
  let isWorthKeeping = false;
  process.exitCode = await program.run(argv, () => {
    if (isWorthKeeping || bundle.wasCompiled) return;
    isWorthKeeping = true;
    setTimeout(() => bundle.keep(), KEEP_AFTER_MS).unref();
  });
  if (isWorthKeeping) bundle.keep();
}

void main(process.argv.slice(2));
