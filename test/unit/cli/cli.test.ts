import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { cli, root, run, type Finished } from '../../support/process.js';
import { missing } from '../../support/requires.js';

/** The built program as an operator runs it. Nothing here gets as far as touching the host. */
const lacking = missing({ files: ['dist/bundle/main.cjs'] });

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pw-cli-'));
});
afterAll(async () => {
  await rm(directory, { recursive: true });
});

function podwire(args: readonly string[], environment: NodeJS.ProcessEnv = {}): Promise<Finished> {
  const inherited = Object.entries(process.env).filter(([name]) => !/^(FLANNELD|PODWIRE)_/.test(name));
  return run(process.execPath, [cli, ...args], { env: { ...Object.fromEntries(inherited), ...environment } });
}

/** Command line → exit code and the one line on standard error. */
const refused: readonly [string, readonly string[], number, RegExp, NodeJS.ProcessEnv?][] = [
  ['an unknown command, with the nearest', ['agnet'], 2, /^podwire: unknown command 'agnet', did you mean agent\?$/],
  [
    'an unknown flag, with the nearest',
    ['agent', '--ifcae=eth0'],
    2,
    /^podwire: unknown option '--ifcae', did you mean --iface\?$/,
  ],
  [
    'an unknown flag with one dash',
    ['agent', '-public-pi=1.2.3.4'],
    2,
    /unknown option '--public-pi', did you mean --public-ip\?$/,
  ],
  [
    'an unknown flag with nothing near',
    ['agent', '--zzzzzzzz'],
    2,
    /^podwire: unknown option '--zzzzzzzz'; see --help$/,
  ],
  ['a flag without its value', ['agent', '--iface'], 2, /--iface <name\|address>' argument missing/],
  [
    'a word that is no flag',
    ['agent', '-ip-masq', 'false'],
    2,
    /unexpected argument "false": a boolean flag takes its value as --flag=false/,
  ],
  ['an unknown flag of status', ['status', '--jsn'], 2, /unknown option '--jsn', did you mean --json\?/],
  ['an argument to status', ['status', 'now'], 2, /too many arguments/],
  [
    'a bad address',
    ['agent', '--store=dir:/x', '--public-ip=1.2.3'],
    2,
    /^podwire: --public-ip "1\.2\.3" is not an IPv4 address; see podwire agent --help$/,
  ],
  [
    'a bad number',
    ['agent', '--store=dir:/x', '--workers=-1'],
    2,
    /--workers "-1" is not a number from 1 to 32 or auto/,
  ],
  ['a bad duration', ['agent', '--store=dir:/x', '--lease-ttl=soon'], 2, /--lease-ttl "soon" is no duration/],
  [
    'a bad choice',
    ['agent', '--store=dir:/x', '--spin=maybe'],
    2,
    /--spin "maybe" is not one of adaptive, off, always/,
  ],
  ['a bad boolean', ['agent', '--store=dir:/x', '--ip-masq=2'], 2, /--ip-masq=2 is neither true nor false/],
  [
    'a bad value from the environment',
    ['agent', '--store=dir:/x'],
    2,
    /FLANNELD_SUBNET_LEASE_RENEW_MARGIN|out of acceptable range/,
    { FLANNELD_SUBNET_LEASE_RENEW_MARGIN: '5000' },
  ],
  ['a store of another kind', ['agent', '--store=redis'], 2, /^podwire: --store "redis" is no lease store/],
  [
    'a bad etcd server',
    ['agent', '--etcd-endpoints=10.0.0.1'],
    2,
    /^podwire: --etcd-endpoints: "10\.0\.0\.1" is no etcd server/,
  ],
  [
    'a password in the environment, where a server should be',
    ['agent'],
    2,
    /^podwire: FLANNELD_ETCD_ENDPOINTS: "…@h:1" has a user in it/,
    { FLANNELD_ETCD_ENDPOINTS: 'http://root:hunter2@h:1' },
  ],
  ['a typo in a flag without effect', ['agent', '--kube-subnet-mgt'], 2, /did you mean --kube-subnet-mgr\?/],
  [
    'a file of variables that is not there',
    ['agent', '--environment-file=/nonexistent'],
    1,
    /cannot read --environment-file \/nonexistent/,
  ],
  ['Kubernetes flags', ['agent', '-kube-subnet-mgr'], 1, /^podwire: --kube-subnet-mgr belongs to the Kubernetes store/],
  ['a bad port', ['agent', '--store=dir:/x', '--healthz-port=81000'], 2, /--healthz-port "81000" is not a number/],
  [
    'no agent to ask',
    ['status', '--subnet-file=/nonexistent/subnet.env'],
    1,
    /^podwire: no agent runs at \/nonexistent\/podwire-subnet\.sock: start one/,
  ],
];

describe.skipIf(lacking)('one line, and the exit code', () => {
  test.each(refused)('%s', async (_, args, code, message, environment) => {
    const finished = await podwire(args, environment);
    expect(finished.stderr.trimEnd()).toMatch(message);
    expect(finished.stderr.trimEnd()).not.toContain('\n');
    expect([finished.code, finished.stdout]).toEqual([code, '']);
  });

  test('no command prints the help to standard error', async () => {
    const finished = await podwire([]);
    expect([finished.code, finished.stdout]).toEqual([2, '']);
    expect(finished.stderr).toMatch(/^Usage: podwire/);
  });

  test('PODWIRE_DEBUG adds the stack, and only then', async () => {
    const args = ['status', '--subnet-file=/nonexistent/subnet.env'];
    expect((await podwire(args, { PODWIRE_DEBUG: '1' })).stderr).toMatch(/\n {4}at .*caused by Error: connect ENOENT/s);
  });
});

describe.skipIf(lacking)('version and help', () => {
  test.each([[['--version']], [['agent', '--version']], [['agent', '-version']]])('%j', async (args) => {
    const { version } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as { version: string };
    expect(await podwire(args)).toMatchObject({ code: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('the help of agent has the flags that do something, and their defaults', async () => {
    const { code, stdout } = await podwire(['agent', '--help']);
    expect(code).toBe(0);
    for (const part of [
      '--iface <',
      '--store <etcd|dir:PATH>',
      '--subnet-file <',
      '--etcd-password <',
      'Data plane:',
      '/run/flannel/subnet.env',
      '24h',
    ]) {
      expect(stdout).toContain(part);
    }
  });

  test('the help of podwire names every command', async () => {
    const { stdout } = await podwire(['--help']);
    for (const name of ['agent', 'lab', 'leases', 'status']) expect(stdout).toMatch(new RegExp(`^ +${name} `, 'm'));
  });
});

describe.skipIf(lacking)('agent before it touches the host', () => {
  test.each([
    ['a store that is not there', 'none', /no network config at .*none\/config; create it with: mkdir -p/],
    ['a store that is a file', 'file', /^(?!.*\n).*file/],
  ])('%s: a start line and one error line, exit 1, nothing made', async (_, name, message) => {
    await writeFile(join(directory, 'file'), '');
    const before = await readdir(directory);
    const finished = await podwire([
      'agent',
      `--store=dir:${join(directory, name)}`,
      `--subnet-file=${join(directory, 'run', 'subnet.env')}`,
      '--log-format=json',
    ]);
    const lines = finished.stderr
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as { level: string; msg: string });
    expect(finished.code).toBe(1);
    const errors = lines.filter(({ level }) => level === 'error').map(({ msg }) => msg);
    // Without root or a TUN device the host itself is the first thing that is wrong.
    const needsHost = process.getuid?.() !== 0;
    expect(errors).toEqual([expect.stringMatching(needsHost ? /CAP_NET_ADMIN|\/dev\/net\/tun|config/ : message)]);
    expect(await readdir(directory)).toEqual(before);
  });
});
