import { describe, expect, test } from 'vitest';
import { FLAGS } from '../../src/agent/flags.js';
import { counterpart } from '../support/counterparts.js';
import { run } from '../support/process.js';
import { missing } from '../support/requires.js';

/** What `flanneld --help` says of one flag. */
interface Listed {
  readonly name: string;
  /** `string`, `int`, `value`, or empty for a boolean. */
  readonly kind: string;
  readonly default: string | undefined;
}

function parseHelp(text: string): Listed[] {
  return Array.from(text.matchAll(/^ {2}-(\S+)(?: (\w+))?\n\s+\t(.*)$/gm), ([, name = '', kind = '', help = '']) => ({
    name,
    kind,
    default: /\(default "?([^"]*?)"?\)$/.exec(help)?.[1],
  }));
}

describe.skipIf(missing({ counterparts: ['flanneld'] }))('the real flanneld’s flags', () => {
  test('are all here, with their kinds and defaults', async () => {
    const { stderr, stdout } = await run(counterpart('flanneld'), ['--help']);
    const listed = parseHelp(`${stderr}${stdout}`).filter(({ name }) => name !== 'version');
    expect(listed.length).toBeGreaterThanOrEqual(30);
    const known = new Map(FLAGS.filter(({ group }) => group !== 'own').map((flag) => [flag.name, flag]));
    for (const flag of listed) {
      const ours = known.get(flag.name);
      const isBool = flag.kind === '';
      const zero = isBool ? 'false' : flag.kind === 'int' ? '0' : '';
      expect([flag.name, ours?.kind === 'bool', ours?.kind === 'int' && flag.name !== 'v']).toEqual([
        flag.name,
        isBool,
        flag.kind === 'int',
      ]);
      if (flag.name !== 'v') expect([flag.name, ours?.default ?? '']).toEqual([flag.name, flag.default ?? zero]);
    }
    expect(new Set(listed.map(({ name }) => name))).toEqual(new Set(known.keys()));
  });
});
