import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Bundle } from '../../../src/cli/bundle.js';

let directory: string;
let file: string;
let cache: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'pw-bundle-'));
  file = join(directory, 'program.cjs');
  cache = join(directory, 'cache');
  mkdirSync(cache, { mode: 0o700 });
});
afterEach(() => rmSync(directory, { recursive: true }));

/** All of one length: V8 itself tells sources apart by no more than that. */
function write(answer: '1' | '2'): void {
  const code = `exports.answer = () => ${answer};\nexports.here = [__filename, __dirname];\nexports.join = require('node:path').join;`;
  writeFileSync(file, `// ${answer.repeat(64)}\n${asFunction(code)}\n`);
}

function asFunction(code: string): string {
  return `(function (exports, require, module, __filename, __dirname) {${code}\n})`;
}

interface Exports {
  readonly answer: () => number;
  readonly here: readonly string[];
  readonly join: typeof join;
}

function load(cacheDirectory: string | undefined): { bundle: Bundle; exports: Exports } {
  const bundle = new Bundle(file, cacheDirectory);
  return { bundle, exports: bundle.load() as Exports };
}

describe('a bundle', () => {
  test('runs as a CommonJS module', () => {
    write('1');
    const { bundle, exports } = load(cache);
    expect(exports.answer()).toBe(1);
    expect(exports.here).toEqual([file, directory]);
    expect(exports.join).toBe(join);
    expect(bundle.wasCompiled).toBe(false);
    expect(readdirSync(cache)).toEqual([]);
  });

  test('its compiled code is kept once, in the first directory that was given, and taken at the next start', () => {
    write('1');
    const first = load(`${cache}:/nowhere`);
    first.exports.answer();
    first.bundle.keep();
    first.bundle.keep();
    expect(readdirSync(cache)).toEqual([expect.stringMatching(/^podwire-[0-9a-f]+-1{16}\.cache$/)]);
    const second = load(cache);
    expect(second.bundle.wasCompiled).toBe(true);
    expect(second.exports.answer()).toBe(1);
  });

  test('without a directory it is kept beside the bundle', () => {
    chmodSync(directory, 0o755);
    write('1');
    load(undefined).bundle.keep();
    expect(readdirSync(directory).filter((name) => name.endsWith('.cache'))).toHaveLength(1);
    expect(load('').bundle.wasCompiled).toBe(true);
  });

  test('another bundle never runs the code of this one, and takes its place', () => {
    write('1');
    load(cache).bundle.keep();
    write('2');
    const other = load(cache);
    expect(other.bundle.wasCompiled).toBe(false);
    expect(other.exports.answer()).toBe(2);
    other.bundle.keep();
    expect(readdirSync(cache)).toEqual([expect.stringMatching(/-2{16}\.cache$/)]);
  });

  test('what others could have written is not run, and nothing is written there', () => {
    write('1');
    load(cache).bundle.keep();
    chmodSync(cache, 0o777);
    expect(load(cache).bundle.wasCompiled).toBe(false);
    write('2');
    load(cache).bundle.keep();
    expect(readdirSync(cache)).toEqual([expect.stringMatching(/-1{16}\.cache$/)]);
  });

  test('damaged code is compiled again; a directory that is gone costs nothing', () => {
    write('1');
    load(cache).bundle.keep();
    const [name = ''] = readdirSync(cache);
    const whole = readFileSync(join(cache, name));
    const changed = Buffer.from(whole);
    changed[whole.length - 9]! ^= 1;
    for (const damaged of [Buffer.from('non'), Buffer.from('nonsense'), whole.subarray(0, -1), changed]) {
      writeFileSync(join(cache, name), damaged);
      const { bundle, exports } = load(cache);
      expect(bundle.wasCompiled).toBe(false);
      expect(exports.answer()).toBe(1);
    }
    const { bundle } = load(cache);
    rmSync(cache, { recursive: true });
    expect(() => bundle.keep()).not.toThrow();
  });

  test('without a digest in its first line nothing is kept', () => {
    writeFileSync(file, asFunction('exports.answer = () => 3;'));
    const { bundle, exports } = load(cache);
    expect(exports.answer()).toBe(3);
    bundle.keep();
    expect(readdirSync(cache)).toEqual([]);
  });
});
