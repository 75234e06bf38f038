import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { deviceExists, hasRoute } from '../../../src/host/proc-net.js';
import { Prefix } from '../../../src/net/prefix.js';
import { NetNs } from '../../support/netns.js';
import { missing } from '../../support/requires.js';

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pwag-proc-'));
});
afterAll(() => rm(directory, { recursive: true }));

describe.skipIf(missing({ root: true, commands: ['ip'] }))('a real kernel’s tables', () => {
  let ns: NetNs;
  beforeAll(async () => {
    ns = await NetNs.create('ag', 'proc');
    await ns.ip('link', 'add', 'wire0', 'type', 'veth', 'peer', 'name', 'wire1');
    await ns.ip('link', 'set', 'wire0', 'up');
    await ns.ip('link', 'set', 'wire1', 'up');
    for (const route of ['10.42.0.0/16', '10.128.0.0/9', '192.0.2.7/32', 'fd42::/48', 'fd43:0:0:1::/64']) {
      await ns.ip('route', 'add', route, 'dev', 'wire0');
    }
    await ns.ip('route', 'add', 'unreachable', '10.99.0.0/16');
    await copy();
  });
  afterAll(() => ns[Symbol.asyncDispose]());

  /** What a process in the namespace reads. */
  async function copy(): Promise<void> {
    for (const name of ['dev', 'route', 'ipv6_route']) {
      await writeFile(join(directory, name), await ns.ok('cat', [`/proc/self/net/${name}`]));
    }
  }

  const routed = (prefix: string, device: string): Promise<boolean> =>
    hasRoute(Prefix.parse(prefix), device, directory);

  test.each([
    ['10.42.0.0/16', 'wire0', true],
    ['10.42.0.0/16', 'wire1', false],
    ['10.42.0.0/16', 'wire', false],
    ['10.42.0.0/17', 'wire0', false],
    ['10.128.0.0/9', 'wire0', true],
    ['192.0.2.7/32', 'wire0', true],
    ['10.99.0.0/16', 'wire0', false],
    ['fd42::/48', 'wire0', true],
    ['fd42::/49', 'wire0', false],
    ['fd43:0:0:1::/64', 'wire0', true],
    ['fd43:0:0:2::/64', 'wire0', false],
  ])('%s by %s: %s', async (prefix, device, expected) => {
    expect(await routed(prefix, device)).toBe(expected);
  });

  test('a device that is down is there without routes', async () => {
    expect([await deviceExists('wire0', directory), await deviceExists('wire', directory)]).toEqual([true, false]);
    await ns.ip('link', 'set', 'wire0', 'down');
    await copy();
    expect([await deviceExists('wire0', directory), await routed('10.42.0.0/16', 'wire0')]).toEqual([true, false]);
  });
});

test('a kernel without IPv6 has no such file and no such route; anything else is an error', async () => {
  const empty = await mkdtemp(join(tmpdir(), 'pwag-none-'));
  try {
    expect(await hasRoute(Prefix.parse('fd42::/48'), 'x', empty)).toBe(false);
    await expect(hasRoute(Prefix.parse('10.0.0.0/8'), 'x', empty)).rejects.toThrow('ENOENT');
  } finally {
    await rm(empty, { recursive: true });
  }
});
