import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { importsOf, sourceFiles, type SourceFile } from '../support/imports.js';
import { root } from '../support/process.js';

/**
 * What each area may import, besides itself and `errors`. Imports point one way:
 * cli, cni → agent → index → control → dataplane → fib, encap, io → net, errors.
 */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  errors: [],
  net: [],
  fib: ['net'],
  encap: ['net'],
  io: ['net'],
  dataplane: ['fib', 'encap', 'io', 'net'],
  host: ['io', 'net'],
  control: ['dataplane', 'host', 'net'],
  index: ['control', 'dataplane', 'fib', 'encap', 'io', 'host', 'net'],
  testing: ['index', 'control', 'dataplane', 'fib', 'encap', 'io', 'host', 'net'],
  agent: ['index', 'control', 'dataplane', 'fib', 'encap', 'io', 'host', 'net'],
  cli: ['agent', 'index', 'control', 'dataplane', 'fib', 'encap', 'io', 'host', 'net'],
  cni: ['agent', 'index', 'control', 'dataplane', 'fib', 'encap', 'io', 'host', 'net'],
};

/** `src/net/prefix.ts` belongs to `net`, `src/index.ts` to `index`. */
function areaOf(path: string): string {
  return path.split('/')[1]?.replace(/\.ts$/, '') ?? '';
}

/** Import rules that a file breaks, as `path: what`. */
function breaches(file: SourceFile): string[] {
  const area = areaOf(file.path);
  const allowed = MAY_IMPORT[area];
  if (allowed === undefined) return [`${file.path}: unknown area '${area}'`];
  const found: string[] = [];
  for (const { specifier, target } of file.imports) {
    const wrong = (why: string): number => found.push(`${file.path} imports ${specifier}: ${why}`);
    if (target !== undefined) {
      const other = areaOf(target);
      if (other !== area && other !== 'errors' && !allowed.includes(other)) wrong(`${area} may not import ${other}`);
      if (file.path.startsWith('src/control/stores/') && other === 'dataplane') wrong('stores never import it');
    } else if (area === 'net' && specifier !== 'ipaddr.js') {
      wrong('net imports nothing but errors and ipaddr.js');
    } else if (area === 'host' && !specifier.startsWith('node:')) {
      wrong('host imports only io, net, errors and node:*');
    }
    if (/\bnode-gyp-build\b|\.node$/.test(specifier) && file.path !== 'src/io/native.ts') {
      wrong('only src/io/native.ts loads the addon');
    }
  }
  return found;
}

function fake(path: string, text: string): SourceFile {
  return { path, text, imports: importsOf(path, text) };
}

describe('import direction', () => {
  const files = sourceFiles();

  it('reads the sources', () => {
    expect(files.length).toBeGreaterThan(20);
    expect(files.flatMap((file) => file.imports).length).toBeGreaterThan(files.length);
  });

  it('points one way', () => {
    expect(files.flatMap(breaches)).toEqual([]);
  });

  it('means files that exist', () => {
    const known = new Set(files.map((file) => file.path));
    const dangling = files.flatMap((file) =>
      file.imports
        .filter(({ target }) => target !== undefined && !known.has(target))
        .map(({ specifier }) => `${file.path}: ${specifier}`),
    );
    expect(dangling).toEqual([]);
  });

  it('finds a breach of every kind', () => {
    expect(breaches(fake('src/net/x.ts', "import { readFile } from 'node:fs';"))).toHaveLength(1);
    expect(breaches(fake('src/fib/x.ts', "import type { Io } from '../io/ports.js';"))).toHaveLength(1);
    expect(breaches(fake('src/host/x.ts', "import pino from 'pino';"))).toHaveLength(1);
    expect(breaches(fake('src/agent/x.ts', "const load = await import('node-gyp-build');"))).toHaveLength(1);
    expect(breaches(fake('src/control/stores/x.ts', "export { a } from '../../dataplane/a.js';"))).toHaveLength(1);
    expect(breaches(fake('src/dataplane/x.ts', "import {\n  a,\n  b,\n} from '../control/a.js';"))).toHaveLength(1);
    expect(breaches(fake('src/dataplane/x.ts', "// import { a } from '../control/a.js';"))).toEqual([]);
  });

  it('tells types from values', () => {
    const text =
      "import type { A } from './a.js';\nimport { type B, type C } from './b.js';\nimport { type D, e } from './c.js';";
    expect(importsOf('src/net/x.ts', text).map((entry) => entry.typeOnly)).toEqual([true, true, false]);
  });
});

describe('the forwarder', () => {
  it('is pure: no node:* and no io but the tables of io/batch.ts, however deep', () => {
    const files = new Map(sourceFiles().map((file) => [file.path, file]));
    const start = 'src/dataplane/forwarder.ts';
    expect(files.has(start)).toBe(true);
    const seen = new Set<string>();
    const impure: string[] = [];
    const visit = (path: string): void => {
      if (seen.has(path)) return;
      seen.add(path);
      for (const { specifier, target, typeOnly } of files.get(path)?.imports ?? []) {
        if (typeOnly) continue;
        const io = target !== undefined && areaOf(target) === 'io' && target !== 'src/io/batch.ts';
        if (io || specifier.startsWith('node:')) {
          impure.push(`${path}: ${specifier}`);
        } else if (target !== undefined) visit(target);
      }
    };
    visit(start);
    expect(impure).toEqual([]);
  });
});

describe('barrels', () => {
  it('are index.ts and testing.ts only', () => {
    const barrels = sourceFiles().filter(({ path, text }) => {
      if (path === 'src/index.ts' || path === 'src/testing.ts') return false;
      const code = text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
      const rest = code.replace(/^\s*export\s+(?:type\s+)?(?:\*|\{[^}]*\})\s*from\s*'[^']+';?/gm, '').trim();
      return rest === '' && code.trim() !== '';
    });
    expect(barrels.map(({ path }) => path)).toEqual([]);
  });
});

describe('native sources', () => {
  it('know Node only in the addon’s files', () => {
    const directory = join(root, 'native');
    const withNode = readdirSync(directory)
      .filter((name) => /\.[ch]$/.test(name))
      .filter((name) => /#\s*include\s*[<"](?:node|js_native)_api/.test(readFileSync(join(directory, name), 'utf8')));
    expect(withNode.toSorted()).toEqual(['addon-engine.c', 'addon-program.c', 'addon.c', 'addon.h']);
  });
});
