import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FLAGS, nearestFlag, normaliseArguments } from '../../../src/agent/flags.js';

describe('command lines in Go’s syntax', () => {
  test.each([
    ['-iface=eth0', ['--iface=eth0']],
    ['--iface eth0', ['--iface=eth0']],
    ['-iface eth0', ['--iface=eth0']],
    ['-ip-masq', ['--ip-masq=true']],
    ['--ip-masq=false', ['--ip-masq=false']],
    ['-ip-masq eth0', ['--ip-masq=true', 'eth0']],
    ['--public-ip -5', ['--public-ip=-5']],
    ['-iface', ['--iface']],
    ['-unknown 3', ['--unknown', '3']],
    ['--unknown=3', ['--unknown']],
    ['-v=2', ['--v=2']],
    ['-h', ['-h']],
    ['-version', ['--version']],
    ['-version=true', ['--version']],
    ['--version=0 -iface=eth0', ['--iface=eth0']],
    ['-- -iface', ['--', '-iface']],
    ['positional -iface=eth0', ['positional', '--iface=eth0']],
  ])('%s', (line, expected) => {
    expect(normaliseArguments(line.split(' '))).toEqual(expected);
  });

  test('what is already in the long form stays the same', () => {
    const argument = fc.constantFrom(...FLAGS.map((flag) => flag.name)).map((name) => `--${name}=value`);
    fc.assert(
      fc.property(fc.array(argument), (args) => {
        expect(normaliseArguments(args)).toEqual(args);
      }),
    );
  });

  test('an empty value stays a value', () => {
    expect(normaliseArguments(['-iface', ''])).toEqual(['--iface=']);
  });
});

test.each([
  ['ip-mask', 'ip-masq'],
  ['etcd-endpoint', 'etcd-endpoints'],
  ['ifcae-regex', 'iface-regex'],
  ['port', undefined],
  ['zzz', undefined],
])('the flag nearest to %s is %s', (text, name) => {
  expect(nearestFlag(text)?.name).toBe(name);
});
