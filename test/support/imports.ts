import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { root } from './process.js';

/** One import of a source file. */
export interface Import {
  /** As written: `../net/prefix.js`, `node:fs`, `pino`. */
  readonly specifier: string;
  /** The source it means, relative to the checkout (`src/net/prefix.ts`), or undefined for a package or `node:`. */
  readonly target: string | undefined;
  /** Erased by the compiler: every binding is a type. */
  readonly typeOnly: boolean;
}

export interface SourceFile {
  /** Relative to the checkout: `src/net/prefix.ts`. */
  readonly path: string;
  readonly text: string;
  readonly imports: readonly Import[];
}

/** Every TypeScript file below src/, with what it imports. */
export function sourceFiles(): readonly SourceFile[] {
  return readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .sort()
    .map((name) => {
      const path = `src/${name}`;
      const text = readFileSync(join(root, path), 'utf8');
      return { path, text, imports: importsOf(path, text) };
    });
}

/**
 * The imports of one file: static, re-exports, side effects and `import()` of a literal. Works on text without
 * comments; the repository's formatter keeps imports regular enough for that.
 */
export function importsOf(path: string, text: string): readonly Import[] {
  const code = text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  const found: Import[] = [];
  const add = (specifier: string, typeOnly: boolean): void => {
    found.push({ specifier, target: targetOf(path, specifier), typeOnly });
  };
  for (const match of code.matchAll(/^\s*(?:import|export)\s+(type\s+)?([\w$*\s{},]*?)\s*from\s*'([^']+)'/gm)) {
    const [, type, clause = '', specifier = ''] = match;
    const braces = /^\{([^}]*)\}$/.exec(clause.trim())?.[1];
    const names = braces?.split(',').map((name) => name.trim()) ?? [];
    const allTypes = names.some(Boolean) && names.every((name) => name === '' || name.startsWith('type '));
    add(specifier, type !== undefined || allTypes);
  }
  for (const match of code.matchAll(/^\s*import\s*'([^']+)'/gm)) add(match[1] ?? '', false);
  // `typeof import('x')` and `import('x').T` in a type position are rare enough to count as real imports.
  for (const match of code.matchAll(/\bimport\(\s*'([^']+)'/g)) add(match[1] ?? '', false);
  return found;
}

function targetOf(path: string, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) return undefined;
  const absolute = join(root, dirname(path), specifier);
  return relative(root, absolute).replace(/\.js$/, '.ts');
}
