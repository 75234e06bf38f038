import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { findFlanneld } from '../../../src/host/flanneld.js';

const OURS = '/run/flannel/subnet.env';
let proc: string;

interface Entry {
  readonly comm?: string;
  readonly net?: string;
  readonly args?: readonly string[];
  readonly env?: readonly string[];
}

function add(pid: string, { comm = 'flanneld', net = 'net:[1]', args = [], env = [] }: Entry): void {
  const directory = join(proc, pid);
  mkdirSync(join(directory, 'ns'), { recursive: true });
  writeFileSync(join(directory, 'comm'), `${comm}\n`);
  writeFileSync(join(directory, 'cmdline'), ['/opt/bin/flanneld', ...args, ''].join('\0'));
  writeFileSync(join(directory, 'environ'), [...env, ''].join('\0'));
  symlinkSync(net, join(directory, 'ns', 'net'));
  symlinkSync('/srv', join(directory, 'cwd'));
}

beforeEach(() => {
  proc = mkdtempSync(join(tmpdir(), 'pwproc-'));
  mkdirSync(join(proc, 'self', 'ns'), { recursive: true });
  symlinkSync('net:[1]', join(proc, 'self', 'ns', 'net'));
  mkdirSync(join(proc, 'sys'));
});

afterEach(() => rmSync(proc, { recursive: true }));

test.each<[string, Entry]>([
  ['with its default', {}],
  ['by flag', { args: ['--iface=eth0', `--subnet-file=${OURS}`] }],
  ['by flag with one dash and a value of its own', { args: ['-ip-masq', '-subnet-file', OURS] }],
  ['by the last of two flags', { args: ['-subnet-file=/a', `-subnet-file=${OURS}`] }],
  ['by its environment', { env: ['PATH=/bin', `FLANNELD_SUBNET_FILE=${OURS}`] }],
  ['by a way that starts where it was started', { args: ['-subnet-file=../run/flannel/subnet.env'] }],
])('flanneld that writes our subnet file is found: %s', (_, entry) => {
  add('7', { comm: 'bash' });
  add('42', entry);
  expect(findFlanneld(OURS, proc)).toBe(42);
});

test.each<[string, Entry]>([
  ['another subnet file', { args: ['-subnet-file=/run/flannel/second.env'] }],
  [
    'another subnet file, in spite of the environment',
    { args: ['-subnet-file=/a'], env: [`FLANNELD_SUBNET_FILE=${OURS}`] },
  ],
  ['another network namespace', { net: 'net:[2]' }],
  ['another program', { comm: 'flanneld-helper' }],
])('not ours: %s', (_, entry) => {
  add('42', entry);
  expect(findFlanneld(OURS, proc)).toBeUndefined();
});

test('a process that hides or has ended is none', () => {
  mkdirSync(join(proc, '9'));
  expect(findFlanneld(OURS, proc)).toBeUndefined();
});

test('the real /proc can be read', () => {
  expect(findFlanneld(join(proc, 'nobody.env'))).toBeUndefined();
});
