import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { judgeConfig, readSubnets } from '../../../src/cli/leases/change.js';
import { formatLeases, leaseEntry } from '../../../src/cli/leases/document.js';
import { WatchDiary } from '../../../src/cli/leases/watch.js';
import { UsageError } from '../../../src/cli/usage.js';
import { encodeLease } from '../../../src/control/lease-codec.js';
import { leaseKey } from '../../../src/control/lease-key.js';
import { parseNetworkConfig } from '../../../src/control/network-config.js';
import type { Lease } from '../../../src/index.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { cli, Process, run, until, type Finished } from '../../support/process.js';
import { missing } from '../../support/requires.js';

const NOW = new Date('2030-01-01T12:00:00Z');
const HOUR_MS = 3_600_000;

function lease(subnet: string, publicIp: string, more: Partial<Lease> & { type?: string; hours?: number } = {}): Lease {
  const { type = '', hours = 24, ...rest } = more;
  return {
    subnet: Prefix.parse(subnet),
    attributes: { publicIp: Address.parse(publicIp), backendType: type },
    expiresAt: new Date(NOW.getTime() + hours * HOUR_MS),
    ...rest,
  };
}

function reservation(subnet: string, publicIp: string): Lease {
  const { expiresAt: _none, ...rest } = lease(subnet, publicIp);
  return rest;
}

describe('subnets on the command line', () => {
  test.each([
    [['10.42.5.0/24'], '10.42.5.0-24'],
    [['10.42.5.0-24'], '10.42.5.0-24'],
    [['10.42.5.0/24', 'fd00:5::/64'], '10.42.5.0-24&fd00:5::-64'],
    [['fd00:5::/64', '10.42.5.0/24'], '10.42.5.0-24&fd00:5::-64'],
    [['10.42.5.0-24&fd00:5::-64'], '10.42.5.0-24&fd00:5::-64'],
    [['fd00:5::/64'], '0.0.0.0-0&fd00:5::-64'],
  ])('%j is %s', (texts, key) => {
    expect(leaseKey(readSubnets(texts))).toBe(key);
  });

  test.each([
    [['10.42.5.0']],
    [['10.42.5/24']],
    [['10.42.5.0-33']],
    [['10.42.5.0/24', '10.42.6.0/24']],
    [['a', 'b', 'c']],
  ])('%j is a usage error with what to write', (texts) => {
    expect(() => readSubnets(texts)).toThrow(UsageError);
    expect(() => readSubnets(texts)).toThrow(/10\.42\.5\.0\/24|one subnet/);
  });
});

describe('a network config before it is written', () => {
  const leases = [
    lease('10.42.5.0/24', '192.0.2.5'),
    lease('10.42.6.0/24', '192.0.2.6', { hours: -1 }),
    reservation('10.42.7.0/24', '192.0.2.7'),
  ];
  const udp = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';

  test('that changes nothing has no warning', () => {
    expect(judgeConfig(udp, leases, NOW)).toEqual([]);
    expect(judgeConfig(udp.replace('udp', 'alloc'), leases, NOW)).toEqual([]);
  });

  test.each([
    ['another network', '{"Network":"10.43.0.0/16","Backend":{"Type":"udp"}}'],
    ['other subnet lengths', '{"Network":"10.42.0.0/16","SubnetLen":25,"Backend":{"Type":"udp"}}'],
    ['a narrower range', '{"Network":"10.42.0.0/16","SubnetMin":"10.42.9.0","Backend":{"Type":"udp"}}'],
    ['two families', '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"udp"}}'],
  ])('%s: names the live leases that do not fit, not the ended ones', (_, config) => {
    const warnings = judgeConfig(config, leases, NOW);
    expect(warnings).toEqual([
      expect.stringMatching(/^2 leases would not fit .*10\.42\.5\.0\/24 of 192\.0\.2\.5, 10\.42\.7/),
    ]);
    expect(warnings[0]).not.toContain('10.42.6');
  });

  test('another backend: those who must restart, reservations left out', () => {
    expect(judgeConfig(udp.replace('udp', 'vxlan'), leases, NOW)).toEqual([
      expect.stringMatching(/^1 lease of another backend than vxlan: 10\.42\.5\.0\/24 of 192\.0\.2\.5;/),
    ]);
  });

  test('many leases are counted and the first ones named', () => {
    const many = Array.from({ length: 40 }, (_, i) => lease(`10.42.${i + 1}.0/24`, `192.0.2.${i + 1}`));
    const [warning] = judgeConfig(udp.replace('10.42.', '10.43.'), many, NOW);
    expect(warning).toMatch(/^40 leases .* 10\.42\.5\.0\/24 of 192\.0\.2\.5, and 35 more;/);
  });

  test('no Backend is said aloud, and what flanneld refuses is refused in its words', () => {
    expect(judgeConfig('{"Network":"10.42.0.0/16"}', [], NOW)).toEqual([expect.stringContaining('names no Backend')]);
    expect(() => judgeConfig('{"Network":"10.42.0.0/30"}', [], NOW)).toThrow(/network is too small/);
    expect(() => judgeConfig('{}', [], NOW)).toThrow(/please define a correct Network parameter/);
  });
});

describe('watching', () => {
  test('one line for what is new, whatever the store repeats', () => {
    const diary = new WatchDiary();
    const [five, six, seven] = [5, 6, 7].map((n) => lease(`10.42.${n}.0/24`, `192.0.2.${n}`));
    const take = (change: Parameters<WatchDiary['take']>[0]): string[] =>
      diary.take(change).map((line) => `${line.kind} ${line.lease.subnet.toString()}`);
    expect(take({ kind: 'snapshot', leases: [five!, six!] })).toEqual(['present 10.42.5.0/24', 'present 10.42.6.0/24']);
    expect(take({ kind: 'added', lease: seven! })).toEqual(['added 10.42.7.0/24']);
    expect(take({ kind: 'added', lease: seven! })).toEqual([]);
    const renewed = { ...seven!, expiresAt: new Date(0) };
    expect(take({ kind: 'added', lease: renewed })).toEqual(['renewed 10.42.7.0/24']);
    const moved = { ...renewed, attributes: { ...renewed.attributes, publicIp: Address.parse('192.0.2.77') } };
    expect(take({ kind: 'added', lease: moved })).toEqual(['changed 10.42.7.0/24']);
    expect(take({ kind: 'removed', lease: five! })).toEqual(['removed 10.42.5.0/24']);
    expect(take({ kind: 'removed', lease: five! })).toEqual([]);
    // After a break of the watch: 6 is gone, 7 as it was, 5 is back.
    expect(take({ kind: 'snapshot', leases: [moved, five!] })).toEqual(['removed 10.42.6.0/24', 'added 10.42.5.0/24']);
  });
});

describe('the table', () => {
  const config = parseNetworkConfig('{"Network":"10.42.0.0/16"}');
  const leases = [
    lease('10.42.5.0/24', '192.0.2.5', { owner: 'machine-5', hours: 23.5 }),
    reservation('10.42.7.0/24', '192.0.2.7'),
    lease('10.99.0.0/24', '192.0.2.9', { type: 'vxlan', hours: -2 }),
  ].map((one) => leaseEntry(one, config));
  const document = { schema: 'podwire-leases/1', store: 'memory', leases } as const;

  test('says who, until when, and what podwire would refuse', () => {
    expect(formatLeases(document, NOW).map((line) => line.replace(/ {2,}/g, '  '))).toEqual([
      'SUBNET  PUBLIC IP  BACKEND  LEASE  REFUSED  OWNER',
      '10.42.5.0/24  192.0.2.5  udp  ends in 23h 30m  machine-5',
      '10.42.7.0/24  192.0.2.7  -  reserved',
      '10.99.0.0/24  192.0.2.9  vxlan  ENDED 2h ago  10.99.0.0/24 is outside 10.42.0.0/16',
    ]);
  });

  test('gives up the owner, then the backend, before it cuts', () => {
    const titles = (width: number): string => formatLeases(document, NOW, width)[0]!.replace(/ {2,}/g, '  ');
    expect(titles(97)).toBe('SUBNET  PUBLIC IP  BACKEND  LEASE  REFUSED');
    expect(titles(80)).toMatch(/^SUBNET {2}PUBLIC IP {2}LEASE/);
    for (const width of [97, 80, 40, 10]) {
      for (const line of formatLeases(document, NOW, width)) expect(line.length).toBeLessThanOrEqual(width);
    }
  });

  test('of nothing is one line', () => {
    expect(formatLeases({ ...document, leases: [] }, NOW)).toEqual(['no leases in memory']);
  });
});

describe.skipIf(missing({ files: ['dist/bundle/main.cjs'] }))('the command on a directory', { timeout: 60_000 }, () => {
  let directory: string;
  let store: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pw-leases-'));
  });
  afterAll(async () => await rm(directory, { recursive: true }));
  beforeEach(async () => {
    store = await mkdtemp(join(directory, 'store-'));
  });

  const clean = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(FLANNELD|PODWIRE)_/.test(name)));
  const arguments_ = (args: readonly string[]): string[] => [cli, 'leases', ...args, `--store=dir:${store}`];
  const leases = (...args: readonly string[]): Promise<Finished> =>
    run(process.execPath, arguments_(args), { env: clean });
  const stored = (): Promise<string[]> => readdir(join(store, 'subnets')).catch(() => []);
  const config = '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}';

  test('a network from nothing: config, reservation, list, release', async () => {
    expect(await leases('config', 'get')).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^podwire: no network config in directory .*config set/) as string,
    });
    expect(await leases('config', 'set', '{"Network":"10.42.0.0/33"}')).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringContaining('invalid CIDR address') as string,
    });
    expect((await leases('config', 'get')).code).toBe(1);
    expect((await leases('config', 'set', '--check', config)).code).toBe(0);
    expect((await leases('config', 'get')).code).toBe(1);
    await writeFile(join(directory, 'config.json'), `${config}\n`);
    expect(await leases('config', 'set', `@${join(directory, 'config.json')}`)).toMatchObject({ code: 0, stderr: '' });
    expect(await leases('config', 'get')).toMatchObject({ code: 0, stdout: `${config}\n` });

    expect(await leases('reserve', '10.42.5.0/24', '--public-ip=192.0.2.5')).toMatchObject({ code: 0, stderr: '' });
    // What flanneld writes for udp, and nothing else: peers of any backend take it.
    expect(await readFile(join(store, 'subnets', '10.42.5.0-24'), 'utf8')).toBe(
      '{"PublicIP":"192.0.2.5","PublicIPv6":null}',
    );
    const listed = await leases('list', '--json');
    expect(listed.stderr).toBe('');
    expect(JSON.parse(listed.stdout)).toEqual({
      schema: 'podwire-leases/1',
      store: `directory ${store}`,
      leases: [{ key: '10.42.5.0-24', subnet: '10.42.5.0/24', publicIp: '192.0.2.5', backendType: '', reserved: true }],
    });
    expect(await leases('reserve', '10.42.5.0/24', '--public-ip=192.0.2.6')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('192.0.2.5') as string,
    });
    expect(await leases('reserve', '10.42.6.0/24', '--public-ip=192.0.2.5')).toMatchObject({
      code: 0,
      stderr: expect.stringContaining('192.0.2.5 also holds 10.42.5.0-24') as string,
    });
    expect(await leases('release', '10.42.5.0/24')).toMatchObject({ code: 0, stderr: '' });
    expect(await leases('release', '10.42.5.0/24')).toMatchObject({
      code: 1,
      stderr: 'podwire: there is no lease 10.42.5.0-24: see podwire leases list\n',
    });
    expect(await stored()).toEqual(['10.42.6.0-24']);
  });

  test('a live lease is released by force only, and warned about when the network moves', async () => {
    await leases('config', 'set', config);
    await leases('reserve', '10.42.9.0/24', '--public-ip=192.0.2.9');
    const attributes = { publicIp: Address.parse('192.0.2.8'), backendType: '' };
    const expiresAt = new Date(Date.now() + HOUR_MS);
    await writeFile(join(store, 'subnets', '10.42.8.0-24'), encodeLease(attributes, { expiresAt }));
    const moved = await leases('config', 'set', config.replace('10.42.', '10.43.'));
    expect([moved.code, moved.stderr]).toEqual([
      0,
      expect.stringMatching(/^podwire: warning: 2 leases would not fit.*\n$/),
    ]);
    expect(await leases('release', '10.42.8.0/24')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/held by 192\.0\.2\.8 for another 59m .* --force/) as string,
    });
    expect(await stored()).toEqual(['10.42.8.0-24', '10.42.9.0-24']);
    expect((await leases('release', '10.42.8.0/24', '--force')).code).toBe(0);
    expect(await stored()).toEqual(['10.42.9.0-24']);
  });

  test.each([
    [['reserve', '10.42.5/24', '--public-ip=192.0.2.5'], 2, /is no subnet/],
    [['reserve', '10.42.5.0/24'], 2, /give the host that it is for/],
    [['reserve', '10.42.5.0/24', '--public-ip=fd00::1'], 2, /is not an IPv4 address/],
    [['config', 'set', '@'], 2, /@ names no file/],
    [['config', 'set', '@/nonexistent'], 1, /cannot read @\/nonexistent/],
    [['config', 'set'], 2, /missing required argument 'config'/],
    [['list', 'all'], 2, /too many arguments/],
    [['lst'], 2, /did you mean list/],
  ])('%j: exit code %i and one line', async (args, code, message) => {
    const finished = await leases(...args);
    expect([finished.code, finished.stdout]).toEqual([code, '']);
    expect(finished.stderr.trimEnd()).toMatch(message);
    expect(finished.stderr.trimEnd()).not.toContain('\n');
  });

  test('a store that is none is a usage error, with its flag', async () => {
    const finished = await run(process.execPath, [cli, 'leases', 'list', '--store=file:/x'], { env: clean });
    expect([finished.code, finished.stdout]).toEqual([2, '']);
    expect(finished.stderr).toMatch(/^podwire: --store "file:\/x" is no lease store/);
  });

  test('watch follows what others do and ends well', async () => {
    await leases('config', 'set', config);
    await leases('reserve', '10.42.5.0/24', '--public-ip=192.0.2.5');
    await using watch = new Process(process.execPath, arguments_(['watch', '--json']), { env: clean });
    const lines = (): { kind: string; lease: { key: string } }[] =>
      watch.stdout
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line) as { kind: string; lease: { key: string } });
    const seen = (count: number) => until(() => lines().length >= count, { what: `${count} lines of the watch` });
    await seen(1);
    await leases('reserve', '10.42.6.0/24', '--public-ip=192.0.2.6');
    await seen(2);
    await leases('release', '10.42.5.0/24');
    await seen(3);
    expect(lines().map(({ kind, lease: { key } }) => `${kind} ${key}`)).toEqual([
      'present 10.42.5.0-24',
      'added 10.42.6.0-24',
      'removed 10.42.5.0-24',
    ]);
    watch.child.kill('SIGTERM');
    expect(await watch.finished).toMatchObject({ code: 0, stderr: '' });
  });
});
