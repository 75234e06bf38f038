import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { dependencyGap, digestOf, filesBelow, outputOf, removeOrphans } from '../../src/dev/inputs.mjs';
import { available, checkNode, ensureCommands, family, installLine, SetupError } from '../../src/dev/system.mjs';
import { root, run } from '../support/process.js';

describe('checkNode', () => {
  it.each(['20.19.0', '20.20.2', '22.0.0', '26.10.0'])('takes %s', (version) => {
    expect(() => checkNode(version)).not.toThrow();
  });

  it.each(['18.20.0', '20.18.3', '19.9.0'])('refuses %s with what to do', (version) => {
    expect(() => checkNode(version)).toThrow(`this is Node ${version}, podwire needs 20.19 or newer: install`);
  });
});

describe('family and installLine', () => {
  it.each([
    ['ID=debian', 'debian'],
    ['ID=ubuntu\nID_LIKE=debian', 'debian'],
    ['NAME="x"\nID="linuxmint"\nID_LIKE="ubuntu debian"', 'debian'],
    ['ID="rocky"\nID_LIKE="rhel centos fedora"', 'fedora'],
    ['ID=opensuse-leap\nID_LIKE="suse opensuse"', 'suse'],
    ['ID=alpine', 'alpine'],
    ['ID=plan9\nVERSION_ID=debian', undefined],
  ])('%j is %s', (text, expected) => {
    expect(family(text)).toBe(expected);
  });

  it('gives one line to type, with sudo for an ordinary user', () => {
    expect(installLine(['ip', 'cc'], 'debian', 1000)).toBe('sudo apt-get install -y iproute2 gcc libc6-dev');
    expect(installLine(['ip'], 'fedora', 0)).toBe('dnf install -y iproute');
    expect(installLine(['ip'], undefined, 0)).toBe('install the programs ip');
  });
});

describe('available and ensureCommands', () => {
  it('finds programs, not directories or other files', () => {
    expect(available('sh')).toBe(true);
    expect(available('no-such-program')).toBe(false);
    expect(available('sbin', '/usr')).toBe(false);
    expect(available('passwd', '/etc')).toBe(false);
  });

  it('has nothing to do when all is there', () => {
    expect(ensureCommands({ required: ['cc'], why: 'a test' })).toBe(false);
  });
});

describe('inputs', () => {
  let directory: string;
  const write = (name: string, text: string): string => {
    const path = join(directory, name);
    mkdirSync(join(path, '..'), { recursive: true });
    writeFileSync(path, text);
    return path;
  };
  beforeEach(() => (directory = mkdtempSync(join(tmpdir(), 'podwire-setup-'))));
  afterEach(() => rmSync(directory, { recursive: true }));

  it('digests names and contents, and not where the checkout lies', () => {
    const file = write('a.ts', 'one');
    const before = digestOf(directory, [file]);
    expect(digestOf(directory, [file])).toBe(before);
    write('a.ts', 'two');
    expect(digestOf(directory, [file])).not.toBe(before);
    const elsewhere = write('copy/a.ts', 'one');
    expect(digestOf(join(directory, 'copy'), [elsewhere])).toBe(before);
    expect(digestOf(directory, [join(directory, 'b.ts')])).not.toBe(digestOf(directory, [join(directory, 'c.ts')]));
  });

  it('deletes outputs whose source is gone, and nothing else', () => {
    const kept = write('src/kept.ts', '');
    for (const name of ['kept.js', 'kept.d.ts', 'kept.js.map', 'gone/x.js', 'gone/x.d.ts', 'gone/x.js.map', '.setup']) {
      write(`dist/${name}`, '');
    }
    expect(outputOf(directory, kept)).toBe(join(directory, 'dist/kept.js'));
    expect(removeOrphans(directory, [kept]).sort()).toEqual([
      'dist/gone/x.d.ts',
      'dist/gone/x.js',
      'dist/gone/x.js.map',
    ]);
    expect(filesBelow(join(directory, 'dist'), ['.js', '.ts', '.map', '.setup'])).toHaveLength(4);
  });

  describe('dependencyGap', () => {
    const lock = (packages: Record<string, object>): string =>
      JSON.stringify({ packages: { '': { dependencies: { a: '^1.0.0' } }, ...packages } });
    beforeEach(() => {
      write('package.json', JSON.stringify({ dependencies: { a: '^1.0.0' } }));
      write('package-lock.json', lock({ 'node_modules/a': { version: '1.0.0' } }));
      write('node_modules/a/package.json', '{}');
    });

    it('is undefined when npm recorded what the lock file asks for', () => {
      write('node_modules/.package-lock.json', lock({ 'node_modules/a': { version: '1.0.0' } }));
      expect(dependencyGap(directory)).toBeUndefined();
    });

    it('names what differs', () => {
      expect(dependencyGap(directory)).toBe('nothing is installed');
      write('node_modules/.package-lock.json', lock({ 'node_modules/a': { version: '0.9.0' } }));
      expect(dependencyGap(directory)).toBe('node_modules/a is not at 1.0.0');
      write('node_modules/.package-lock.json', lock({ 'node_modules/a': { version: '1.0.0' } }));
      rmSync(join(directory, 'node_modules/a'), { recursive: true });
      expect(dependencyGap(directory)).toBe('node_modules/a is gone');
      write('package.json', JSON.stringify({ dependencies: { a: '^2.0.0' } }));
      expect(dependencyGap(directory)).toBe('dependencies of package.json changed');
    });

    it('accepts that an optional package for another platform is absent', () => {
      write(
        'package-lock.json',
        lock({ 'node_modules/a': { version: '1.0.0' }, 'node_modules/b': { version: '2', optional: true } }),
      );
      write('node_modules/.package-lock.json', lock({ 'node_modules/a': { version: '1.0.0' } }));
      expect(dependencyGap(directory)).toBeUndefined();
    });
  });
});

describe('setup.mjs', () => {
  it('refuses an unknown mode with one line on stderr, nothing on stdout', async () => {
    const result = await run(process.execPath, [`${root}/src/dev/setup.mjs`, 'dance']);
    expect(result).toEqual({
      code: 1,
      signal: null,
      stdout: '',
      stderr: "podwire set-up: unknown mode 'dance'; use lab, test, bench or nothing\n",
    });
  });

  it('is a SetupError with the program output kept apart', () => {
    expect(new SetupError('short', 'long\ntext')).toMatchObject({ message: 'short', output: 'long\ntext' });
  });
});
