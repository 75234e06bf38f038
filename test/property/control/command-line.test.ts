import { spawnSync } from 'node:child_process';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { fillCommandLine, parseCommandLine } from '../../../src/control/backends/command-line.js';

const VALUES = { SUBNET: '10.42.5.0/24', PUBLIC_IP: '192.0.2.5' };
const NAMES = Object.keys(VALUES);

/** What the shell itself makes of the text; a NUL after each argument. */
function byShell(text: string): string[] {
  const { stdout } = spawnSync('sh', ['-c', `printf '%s\\0' ${text}`], {
    env: { ...VALUES, PATH: process.env['PATH'] },
  });
  return stdout.toString().split('\0').slice(0, -1);
}

function parsed(text: string): string[] | undefined {
  try {
    return fillCommandLine(parseCommandLine(text, NAMES), VALUES);
  } catch {
    return undefined;
  }
}

describe('commands without a shell', () => {
  test('what is taken is split as a shell splits it', () => {
    const piece = fc.constantFrom('a', 'ip', ' ', '  ', '"', "'", '\\', '$SUBNET', '${PUBLIC_IP}', '-', '/', '=', '\n', '\t', '%', ',', ']', '!'); // prettier-ignore
    let taken = 0;
    fc.assert(
      fc.property(fc.array(piece, { minLength: 1, maxLength: 12 }), (pieces) => {
        // printf must have an argument to print, as a program has its name.
        const text = `x${pieces.join('')}`;
        const words = parsed(text);
        if (words === undefined) return;
        taken++;
        expect(words).toEqual(byShell(text));
      }),
      { numRuns: 300, seed: 20_261_120 },
    );
    expect(taken).toBeGreaterThan(50);
  });

  test.each([
    'a | b',
    'a && b',
    'a; b',
    'a > f',
    'a < f',
    'a `b`',
    '"`b`"',
    'a $(b)',
    '"$(b)"',
    'a $1',
    'a *',
    'a ~',
    'a # b',
    '(a)',
  ])('refused, a shell is needed: %s', (text) => {
    expect(() => parseCommandLine(text, NAMES)).toThrow(/needs a shell/);
  });

  test.each([
    ['', 'it is empty'],
    ['a "b', 'the quote " is not closed'],
    ["a 'b", "the quote ' is not closed"],
    ['a \\', 'it ends with a backslash'],
    ['a $HOME', '$HOME is not known here, only SUBNET, PUBLIC_IP are'],
  ])('refused: %s', (text, reason) => {
    expect(() => parseCommandLine(text, NAMES)).toThrow(reason);
  });

  test('a shell that is asked for gets its text as it is', () => {
    expect(parsed(`sh -c 'echo "$SUBNET" | tee "$f"'`)).toEqual(['sh', '-c', 'echo "$SUBNET" | tee "$f"']);
  });
});
