import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ControlSocket } from '../../../src/agent/control-socket.js';
import { cli, root, run, type Finished } from '../../support/process.js';
import { missing } from '../../support/requires.js';

/** The built program as an operator runs it. Nothing here gets as far as touching the host. */
const lacking = missing({ files: ['dist/cli/main.js'] });

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

describe.skipIf(lacking)('status', () => {
  const STATUS = {
    version: '0.1.0',
    pid: 4711,
    startedAt: new Date(Date.now() - 3_725_000).toISOString(),
    backend: 'udp',
    network: '10.42.0.0/16',
    interface: { name: 'eth0', address: '192.168.1.5', mtu: 1500, why: 'it has the default route' },
    lease: {
      subnet: '10.42.7.0/24',
      publicIp: '192.168.1.5',
      expiresAt: new Date(Date.now() + 7_230_000).toISOString(),
      held: true,
    },
    device: { name: 'flannel0', mtu: 1472 },
    leases: [
      { subnet: '10.42.8.0/24', publicIp: '192.168.1.8', backendType: '', state: 'routed' },
      { subnet: '10.42.9.0/24', publicIp: '10.42.1.1', backendType: '', state: 'refused', reason: 'it lies inside' },
    ],
    dataplane: {
      totals: {
        egressPackets: 10,
        egressBytes: 5_000_000,
        ingressPackets: 3,
        ingressBytes: 300,
        dropNoRoute: 4,
        dropShort: 0,
      },
      workers: [{ state: 'running', restarts: 1, counters: {} }],
      peers: [
        { address: '192.168.1.8', port: 8285, txPackets: 10, txBytes: 2048, rxPackets: 3, rxBytes: 300, pathMtu: 1500 },
      ],
      routes: 1,
    },
    store: { description: 'directory /x', ok: false, lastError: 'disk full' },
  };

  test('--json is the document; without it a table that says the same', async () => {
    const path = join(directory, 'podwire-subnet.sock');
    await using _socket = await ControlSocket.open(path, { '/v1/status': () => STATUS });
    const json = await podwire(['status', '--json', `--control-socket=${path}`]);
    expect([json.code, json.stderr, JSON.parse(json.stdout)]).toEqual([0, '', STATUS]);
    const table = await podwire(['status', `--subnet-file=${join(directory, 'subnet.env')}`]);
    expect([table.code, table.stderr]).toEqual([0, '']);
    const lines = table.stdout.split('\n').map((line) => line.replace(/ {2,}/g, '  '));
    expect(lines).toEqual([
      expect.stringMatching(/^podwire 0\.1\.0 {2}pid 4711 {2}up 1h 2m$/),
      'network  10.42.0.0/16  backend udp',
      'lease  10.42.7.0/24  public 192.168.1.5  expires in 2h',
      'device  flannel0  mtu 1472  over eth0 192.168.1.5 mtu 1500 (it has the default route)',
      'store  directory /x  FAILING: disk full',
      'workers  running (1 restarts)',
      'packets  out 10 (4.8 MiB)  in 3 (300 B)',
      'drops  dropNoRoute 4',
      '',
      'PEER  SUBNET  OUT  IN  PATH MTU  STATE',
      '192.168.1.8  10.42.8.0/24  10  2.0 KiB  3  300 B  1500  routed',
      '10.42.1.1  10.42.9.0/24  0  0 B  0  0 B  -  refused: it lies inside',
      '',
    ]);
  });

  test('while the agent starts it says so, exit 1', async () => {
    const path = join(directory, 'starting.sock');
    await using _socket = await ControlSocket.open(path, { '/v1/status': () => undefined });
    const finished = await podwire(['status', `--control-socket=${path}`]);
    expect([finished.code, finished.stdout]).toEqual([1, '']);
    expect(finished.stderr).toMatch(/^podwire: the agent at .* has no answer: the agent is starting\n$/);
  });
});
