// Deciding that there is nothing to do: digests of inputs, compared with what the last set-up recorded.

import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { join, relative } from 'node:path';

/**
 * All files below a directory with one of these endings, sorted.
 *
 * @param {string} directory @param {string[]} endings
 */
export function filesBelow(directory, endings) {
  /** @type {string[]} */
  const found = [];
  const visit = (at) => {
    for (const entry of readdirSync(at, { withFileTypes: true })) {
      const path = join(at, entry.name);
      if (entry.isDirectory()) visit(path);
      else if (endings.some((ending) => entry.name.endsWith(ending))) found.push(path);
    }
  };
  if (existsSync(directory)) visit(directory);
  return found.sort();
}

/** A digest over file names (relative to `root`) and contents; a missing file counts as such. */
export function digestOf(root, files) {
  const hash = createHash('sha256');
  for (const file of files) {
    hash.update(relative(root, file)).update('\0');
    hash.update(existsSync(file) ? readFileSync(file) : 'missing').update('\0');
  }
  return hash.digest('hex');
}

/** What the compiler's output depends on. */
export function typescriptInputs(root) {
  const sources = filesBelow(join(root, 'src'), ['.ts']);
  const compiler = join(root, 'node_modules/typescript/package.json');
  return { sources, digest: digestOf(root, [...sources, join(root, 'tsconfig.json'), compiler]) };
}

/** The output file of a source. */
export function outputOf(root, source) {
  return join(root, 'dist', relative(join(root, 'src'), source).replace(/\.ts$/, '.js'));
}

/** Deletes compiled files whose source is gone: tests and imports must not find what the sources no longer have. */
export function removeOrphans(root, sources) {
  const expected = new Set(sources.map((source) => outputOf(root, source).replace(/\.js$/, '')));
  const removed = [];
  for (const file of filesBelow(join(root, 'dist'), ['.js', '.js.map', '.d.ts'])) {
    if (expected.has(file.replace(/\.(?:js|js\.map|d\.ts)$/, ''))) continue;
    rmSync(file);
    removed.push(relative(root, file));
  }
  return removed;
}

/**
 * Why node_modules does not hold what the lock file asks for, or undefined when it does. npm's own record of what it
 * installed is compared entry by entry, so that no stamp of ours can go stale when someone else runs npm.
 */
export function dependencyGap(root) {
  const installed = readJson(join(root, 'node_modules/.package-lock.json'));
  if (installed === undefined) return 'nothing is installed';
  const lock = readJson(join(root, 'package-lock.json'));
  if (lock === undefined) return 'there is no package-lock.json';
  const manifest = readJson(join(root, 'package.json'));
  for (const group of ['dependencies', 'devDependencies', 'optionalDependencies']) {
    const wanted = JSON.stringify(manifest?.[group] ?? {});
    if (wanted !== JSON.stringify(lock.packages?.['']?.[group] ?? {})) return `${group} of package.json changed`;
  }
  for (const [path, entry] of Object.entries(lock.packages ?? {})) {
    if (path === '') continue;
    const present = installed.packages?.[path];
    // Binaries for other platforms, and optional packages that could not be installed, are rightly absent.
    if (present === undefined && entry.optional === true) continue;
    if (present?.version !== entry.version) return `${path} is not at ${entry.version}`;
    if (!existsSync(join(root, path))) return `${path} is gone`;
  }
  return undefined;
}

function readJson(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'));
  } catch {
    return undefined;
  }
}
