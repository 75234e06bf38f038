// dist/bundle, of what tsc has made: podwire.cjs, the program and the packages it needs in one file; main.cjs, which runs
// it; what its threads run, thread.js, and worker.js, which Piscina looks for beside itself.

import { createHash } from 'node:crypto';
import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { argv } from 'node:process';
import { fileURLToPath, pathToFileURL } from 'node:url';

/** Not in it: packages with binaries of their own beside their modules, or that are nobody's dependency. */
const EXTERNAL = [/^raw-socket$/, /^node-gyp-build$/, /^@napi-rs\/nice$/];

/** @param {string} root of the package */
export function bundleOf(root) {
  return join(root, 'dist/bundle/podwire.cjs');
}

/**
 * @param {string} root of the package, with an up-to-date dist/
 * @throws {Error} with the bundler's words
 */
export async function makeBundle(root) {
  // Only here, because it comes with the development packages, which set-up has yet to install.
  const { rolldown } = await import('rolldown');
  const oneFile = async (input) => {
    const bundle = await rolldown({ input: join(root, input), platform: 'node', external: EXTERNAL });
    const { output } = await bundle.generate({
      format: 'cjs',
      codeSplitting: false,
      comments: { legal: true, jsdoc: false },
    });
    await bundle.close();
    const [chunk, ...rest] = output;
    if (rest.length > 0) throw new Error(`the bundle of ${input} has ${output.length} files, not one`);
    return chunk;
  };
  const chunk = await oneFile('dist/cli/program.js');
  const others = {
    'main.cjs': await oneFile('dist/cli/main.js'),
    'thread.js': await oneFile('dist/dataplane/thread.js'),
    'worker.js': await oneFile('node_modules/piscina/dist/worker.js'),
  };
  if (/^[^*/]*[^\w.$]import\(/m.test(chunk.code)) throw new Error('a module imports what is not in the bundle');
  // As src/cli/bundle.ts takes it: one function, in ASCII, which V8 holds in half the memory; the digest is the name of
  // the compiled code that belongs to it.
  const ascii = chunk.code.replace(/[^\0-\x7f]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);
  const code = `(function (exports, require, module, __filename, __dirname) {${ascii}\n})\n`;
  const digest = createHash('sha256').update(code).digest('hex');
  const file = bundleOf(root);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(join(dirname(file), 'LICENSES.txt'), licencesOf(chunk.moduleIds));
  for (const [name, { code: text }] of Object.entries(others)) writeFileSync(join(dirname(file), name), text);
  chmodSync(join(dirname(file), 'main.cjs'), 0o755);
  // The package's own says that a .js is an ES module.
  writeFileSync(join(dirname(file), 'package.json'), '{ "type": "commonjs" }\n');
  writeFileSync(`${file}.new`, `// ${digest}\n${code}`);
  renameSync(`${file}.new`, file);
}

/**
 * Name, version and licence text of the packages that modules come from.
 *
 * @param {readonly string[]} modules paths
 */
function licencesOf(modules) {
  const homes = modules.map((path) => /^.*\/node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0]);
  const texts = [...new Set(homes.filter((home) => home !== undefined))].sort().map((home) => {
    const { name, version, license } = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8'));
    const files = readdirSync(home).filter((entry) => /^(?:licen[cs]e|notice|copying)/i.test(entry));
    const words = files.map((entry) => readFileSync(join(home, entry), 'utf8').trim());
    return [`${name} ${version}, ${license}`, ...words].join('\n\n');
  });
  return `podwire.cjs holds code of these packages.\n\n${texts.join(`\n\n${'-'.repeat(80)}\n\n`)}\n`;
}

if (argv[1] !== undefined && import.meta.url === pathToFileURL(resolve(argv[1])).href) {
  await makeBundle(fileURLToPath(new URL('../..', import.meta.url)));
}
