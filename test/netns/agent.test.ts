import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { AgentStatus } from '../../src/agent/status.js';
import { NetNs, veth } from '../support/netns.js';
import { cli, type Finished, type Process, until } from '../support/process.js';
import { missing } from '../support/requires.js';

/**
 * Real agents in two network namespaces joined by a veth pair, leases in a directory. Every test starts its own
 * agents; a killed one is started again on the same files.
 */
const lacking = missing({ root: true, tun: true, commands: ['ip', 'ping'], files: ['dist/cli/main.js'] });

interface Host {
  readonly ns: NetNs;
  readonly underlay: string;
  /** Its own /run. */
  readonly run: string;
}

let directory: string;
let store: string;
let a: Host;
let b: Host;
const started: Process[] = [];

async function makeHost(label: string, underlay: string): Promise<Host> {
  const run = join(directory, label);
  await mkdir(run);
  return { ns: await NetNs.create('agent', label), underlay, run };
}

function start(host: Host, ...extra: readonly string[]): Process {
  const agent = host.ns.spawn(process.execPath, [
    cli,
    'agent',
    `--store=dir:${store}`,
    '--iface=eth0',
    `--subnet-file=${join(host.run, 'subnet.env')}`,
    '--log-format=json',
    '--workers=1',
    ...extra,
  ]);
  started.push(agent);
  return agent;
}

const ready = (agent: Process): Promise<RegExpExecArray> => agent.output(/"msg":"ready"/, { from: 'stderr' });

interface Record {
  readonly level: string;
  readonly msg: string;
}

function errorsOf(finished: Pick<Finished, 'stderr'>): string[] {
  return finished.stderr
    .trim()
    .split('\n')
    .map((line) => (line.startsWith('{') ? (JSON.parse(line) as Record) : { level: 'error', msg: line }))
    .filter((record) => record.level === 'error')
    .map((record) => record.msg);
}

async function status(host: Host): Promise<AgentStatus> {
  const text = await host.ns.ok(process.execPath, [
    cli,
    'status',
    '--json',
    `--subnet-file=${join(host.run, 'subnet.env')}`,
  ]);
  return JSON.parse(text) as AgentStatus;
}

const subnetEnv = (host: Host): Promise<string> => readFile(join(host.run, 'subnet.env'), 'utf8');

/** `10.42.7` of `FLANNEL_SUBNET=10.42.7.1/24`. */
async function subnetBase(host: Host): Promise<string> {
  return /FLANNEL_SUBNET=(\d+\.\d+\.\d+)\.1\/24\n/.exec(await subnetEnv(host))?.[1] ?? 'none';
}

const leases = async (): Promise<string[]> =>
  (await readdir(join(store, 'subnets')).catch(() => [])).filter((name) => /^\d/.test(name)).sort();

const links = async (host: Host): Promise<string[]> =>
  (JSON.parse(await host.ns.ip('-j', 'link', 'show')) as { ifname: string }[]).map(({ ifname }) => ifname).sort();

const routes = (host: Host): Promise<string> => host.ns.ip('-N', 'route', 'show');

/** From the TUN address of one host to the other's: through both data planes and back. */
async function pings(from: Host, to: Host): Promise<boolean> {
  const target = `${await subnetBase(to)}.0`;
  return (await from.ns.run('ping', ['-c', '1', '-W', '1', '-n', target])).code === 0;
}

/** Both hosts know each other and packets pass. */
async function connected(): Promise<void> {
  await until(async () => (await pings(a, b)) && (await pings(b, a)), { what: 'ping both ways' });
}

describe.skipIf(lacking)('podwire agent on two hosts', () => {
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pwagent-'));
    a = await makeHost('a', '10.77.0.1');
    b = await makeHost('b', '10.77.0.2');
    await veth(
      { ns: a.ns, name: 'eth0', address: `${a.underlay}/24` },
      { ns: b.ns, name: 'eth0', address: `${b.underlay}/24` },
    );
  });

  afterAll(async () => {
    await a.ns[Symbol.asyncDispose]();
    await b.ns[Symbol.asyncDispose]();
    await rm(directory, { recursive: true, force: true });
  });

  beforeEach(async () => {
    store = await mkdtemp(join(directory, 'store-'));
    await writeFile(join(store, 'config'), '{"Network":"10.42.0.0/16","Backend":{"Type":"udp"}}');
    for (const host of [a, b]) {
      await rm(host.run, { recursive: true, force: true });
      await mkdir(host.run);
    }
  });

  afterEach(async () => {
    for (const agent of started.splice(0)) await agent[Symbol.asyncDispose]();
  });

  test('start: device, address, route, subnet file, forwarding, status; packets pass', async () => {
    await a.ns.sysctl({ 'net.ipv4.ip_forward': 0 });
    const [first, second] = [start(a), start(b)];
    await Promise.all([ready(first), ready(second)]);
    const base = await subnetBase(a);
    expect(await subnetEnv(a)).toBe(
      `FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=${base}.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n`,
    );
    const [device] = JSON.parse(await a.ns.ip('-j', 'address', 'show', 'dev', 'flannel0')) as {
      mtu: number;
      flags: string[];
      addr_info: { local: string; prefixlen: number }[];
    }[];
    expect(device).toMatchObject({ mtu: 1472, addr_info: [{ local: `${base}.0`, prefixlen: 32 }] });
    expect(device?.flags).toContain('UP');
    expect(device?.addr_info).toHaveLength(1);
    expect(await routes(a)).toMatch(/^10\.42\.0\.0\/16 dev flannel0 proto 111 *$/m);
    expect(await a.ns.ok('cat', ['/proc/sys/net/ipv4/ip_forward'])).toBe('1\n');
    await connected();
    const seen = await status(a);
    expect(seen).toMatchObject({
      pid: first.pid,
      backend: 'udp',
      network: '10.42.0.0/16',
      interface: { name: 'eth0', address: a.underlay, mtu: 1500, why: 'named by --iface eth0' },
      lease: { subnet: `${base}.0/24`, publicIp: a.underlay, held: true },
      device: { name: 'flannel0', mtu: 1472 },
      leases: [{ subnet: `${await subnetBase(b)}.0/24`, publicIp: b.underlay, backendType: '', state: 'routed' }],
      store: { ok: true },
    });
    expect(seen.dataplane.totals.egressPackets).toBeGreaterThan(0);
    const lifeMs = Date.parse(seen.lease.expiresAt ?? '') - Date.now();
    expect(lifeMs).toBeGreaterThan(23 * 3_600_000);
    expect(lifeMs).toBeLessThanOrEqual(24 * 3_600_000);
    expect(JSON.parse(await readFile(join(store, 'subnets', `${base}.0-24`), 'utf8'))).toMatchObject({
      PublicIP: a.underlay,
      PublicIPv6: null,
    });
    expect(errorsOf(first)).toEqual([]);
  });

  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s: exit 0 at once, device gone, lease kept; the next start has it again',
    async (signal) => {
      const first = start(a);
      await ready(first);
      const base = await subnetBase(a);
      const before = performance.now();
      const finished = await first.stop(signal);
      const tookMs = performance.now() - before;
      expect([finished.code, finished.signal]).toEqual([0, null]);
      expect(tookMs).toBeLessThan(1_000);
      expect(await links(a)).toEqual(['eth0', 'lo']);
      expect(await routes(a)).not.toContain('10.42.');
      expect(await leases()).toEqual([`${base}.0-24`]);
      expect(await readdir(a.run)).toEqual(['subnet.env']);
      await ready(start(a));
      expect(await subnetBase(a)).toBe(base);
      expect(await leases()).toEqual([`${base}.0-24`]);
    },
  );

  test('kill -9: everything goes with the process, and the next start has the same subnet', async () => {
    const [first, second] = [start(a), start(b)];
    await Promise.all([ready(first), ready(second)]);
    await connected();
    const base = await subnetBase(a);
    await first.stop('SIGKILL');
    expect(await links(a)).toEqual(['eth0', 'lo']);
    expect(await readdir(a.run)).toEqual(['podwire-subnet.sock', 'subnet.env']);
    const dead = await a.ns.run(process.execPath, [cli, 'status', `--subnet-file=${join(a.run, 'subnet.env')}`]);
    expect(dead.code).toBe(1);
    expect(dead.stderr).toMatch(/^podwire: no agent runs at .*\n$/);
    await ready(start(a));
    expect(await subnetBase(a)).toBe(base);
    await connected();
  });

  test('the lease alone is enough to find the subnet again, and the subnet file alone too', async () => {
    await (async () => {
      const agent = start(a);
      await ready(agent);
      await agent.stop();
    })();
    const base = await subnetBase(a);
    await rm(join(a.run, 'subnet.env'));
    const second = start(a);
    await ready(second);
    expect(await subnetBase(a)).toBe(base);
    await second.stop();
    await rm(join(store, 'subnets', `${base}.0-24`));
    await ready(start(a));
    expect(await subnetBase(a)).toBe(base);
  });

  test('--release-on-exit gives the lease back, and the other host lets the route go', async () => {
    const [first, second] = [start(a, '--release-on-exit'), start(b)];
    await Promise.all([ready(first), ready(second)]);
    await connected();
    const gone = await subnetBase(a);
    expect((await first.stop()).code).toBe(0);
    expect(await leases()).toEqual([`${await subnetBase(b)}.0-24`]);
    await until(async () => (await status(b)).leases.length === 0, { what: `${gone} to be withdrawn` });
    expect((await status(b)).dataplane.routes).toBe(0);
    const answer = await b.ns.run('ping', ['-c', '1', '-W', '1', '-n', `${gone}.0`]);
    expect(answer.stdout).toContain('Destination Net Unreachable');
  });

  test('an own lease that somebody deletes is acquired again, the same one, without a gap', async () => {
    const [first, second] = [start(a), start(b)];
    await Promise.all([ready(first), ready(second)]);
    await connected();
    const base = await subnetBase(a);
    await rm(join(store, 'subnets', `${base}.0-24`));
    await until(async () => (await leases()).includes(`${base}.0-24`), { what: 'the lease to be back' });
    await until(async () => (await status(a)).lease.held, { what: 'the agent to hold it' });
    await connected();
    expect(await subnetBase(a)).toBe(base);
    expect(first.running).toBe(true);
  });

  test('a subnet that another host took is given up for a new one, everywhere', async () => {
    const [first, second] = [start(a), start(b)];
    await Promise.all([ready(first), ready(second)]);
    const old = await subnetBase(a);
    const thief = {
      PublicIP: '10.77.0.99',
      PublicIPv6: null,
      Expiration: new Date(Date.now() + 3_600_000).toISOString(),
      Owner: 'thief',
    };
    await writeFile(join(store, 'subnets', `${old}.0-24`), JSON.stringify(thief));
    await until(async () => (await subnetBase(a)) !== old, { what: 'a new subnet in the subnet file' });
    const base = await subnetBase(a);
    await until(async () => !(await a.ns.ip('address', 'show', 'dev', 'flannel0')).includes(`${old}.0/32`), {
      what: 'the old address to go',
    });
    expect(await a.ns.ip('address', 'show', 'dev', 'flannel0')).toContain(`${base}.0/32`);
    expect((await status(a)).lease).toMatchObject({ subnet: `${base}.0/24`, held: true });
    await connected();
    expect(first.running).toBe(true);
  });

  test('a second agent for the same subnet file gets its one line; the first goes on', async () => {
    const first = start(a);
    await ready(first);
    const second = await start(a).finished;
    expect(second.code).toBe(1);
    expect(errorsOf(second)).toEqual([expect.stringMatching(/^another podwire agent answers at .*--subnet-file$/)]);
    expect((await status(a)).pid).toBe(first.pid);
    expect(await links(a)).toEqual(['eth0', 'flannel0', 'lo']);
  });

  test.each([
    [
      'network',
      '{"Network":"10.42.0.0/16"}',
      'second0',
      /^another podwire agent already routes 10\.42\.0\.0\/16 to flannel0/,
    ],
    ['port', '{"Network":"10.43.0.0/16"}', 'second0', /UDP port 8285 on 10\.77\.0\.1 is in use/],
    ['device', '{"Network":"10.43.0.0/16","Backend":{"Type":"udp","Port":8286}}', 'flannel0', /flannel0/],
  ])(
    'a second agent with its own subnet file on the same %s gets its one line and leaves nothing; the first goes on',
    async (_, config, device, message) => {
      const first = start(a);
      await ready(first);
      const before = await leases();
      const otherStore = await mkdtemp(join(directory, 'store-'));
      await writeFile(join(otherStore, 'config'), config);
      const second = await start(
        a,
        `--store=dir:${otherStore}`,
        `--subnet-file=${join(a.run, 'other', 'subnet.env')}`,
        `--device=${device}`,
      ).finished;
      expect(second.code).toBe(1);
      expect(errorsOf(second)).toEqual([expect.stringMatching(message)]);
      expect(await readdir(a.run)).toEqual(['podwire-subnet.sock', 'subnet.env']);
      expect(await readdir(otherStore)).toEqual(['config']);
      expect(await links(a)).toEqual(['eth0', 'flannel0', 'lo']);
      expect(await leases()).toEqual(before);
      expect((await status(a)).pid).toBe(first.pid);
    },
  );

  test('two agents with networks, ports and subnet files of their own share a host', async () => {
    const first = start(a);
    await ready(first);
    const otherStore = await mkdtemp(join(directory, 'store-'));
    await writeFile(join(otherStore, 'config'), '{"Network":"10.43.0.0/16","Backend":{"Type":"udp","Port":8286}}');
    const second = start(a, `--store=dir:${otherStore}`, `--subnet-file=${join(a.run, 'second.env')}`);
    await ready(second);
    expect(await links(a)).toEqual(['eth0', 'flannel0', 'flannel1', 'lo']);
    expect(await readdir(a.run)).toEqual(['podwire-second.sock', 'podwire-subnet.sock', 'second.env', 'subnet.env']);
    expect((await second.stop()).code).toBe(0);
    expect(await routes(a)).toMatch(/^10\.42\.0\.0\/16 dev flannel0 /m);
    expect((await status(a)).pid).toBe(first.pid);
  });

  test('SIGTERM while it starts is a clean stop: exit 0, and nothing is left', async () => {
    for (const moment of [/podwire agent starts/, /underlay chosen/, /data plane open/, /lease acquired/]) {
      const agent = start(a);
      await agent.output(moment, { from: 'stderr' });
      const finished = await agent.stop();
      expect([String(moment), finished.code, errorsOf(finished)]).toEqual([String(moment), 0, []]);
      expect(await links(a)).toEqual(['eth0', 'lo']);
      // The signal may come when the start is over: then the lease and the file stay, as after any stop.
      if (!/"msg":"ready"/.test(finished.stderr)) {
        expect([await leases(), await readdir(a.run)], finished.stderr).toEqual([[], []]);
      }
      await rm(join(a.run, 'subnet.env'), { force: true });
      await rm(join(store, 'subnets'), { recursive: true, force: true });
    }
  });

  test('SIGHUP changes nothing', async () => {
    const agent = start(a);
    await ready(agent);
    agent.child.kill('SIGHUP');
    await agent.output(/SIGHUP/, { from: 'stderr' });
    expect((await status(a)).pid).toBe(agent.pid);
    expect((await agent.stop()).code).toBe(0);
  });

  test('a device that somebody deletes ends the agent: one line, exit 1', async () => {
    const agent = start(a);
    await ready(agent);
    await a.ns.ip('link', 'del', 'flannel0');
    const finished = await agent.finished;
    expect(finished.code).toBe(1);
    expect(errorsOf(finished)).toEqual([expect.stringMatching(/flannel0/)]);
    expect(await readdir(a.run)).toEqual(['subnet.env']);
  });

  test('dual stack: both families are routed, announced and carried', async () => {
    await writeFile(
      join(store, 'config'),
      '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"udp"}}',
    );
    for (const host of [a, b]) {
      const last = host.underlay.split('.').at(-1) ?? '';
      await host.ns.ip('address', 'replace', `fd77::${last}/64`, 'dev', 'eth0', 'nodad');
    }
    await Promise.all([start(a), start(b)].map(ready));
    const env = await subnetEnv(b);
    const base6 = /FLANNEL_IPV6_NETWORK=fd42::\/48\nFLANNEL_IPV6_SUBNET=(fd42:.*::)1\/64\nFLANNEL_MTU=1472\n/.exec(
      env,
    )?.[1];
    expect(base6).toBeDefined();
    await connected();
    await until(async () => (await a.ns.run('ping', ['-6', '-c', '1', '-W', '1', '-n', base6 ?? ''])).code === 0, {
      what: 'ping over IPv6',
    });
    expect(await a.ns.ip('-N', '-6', 'route', 'show')).toMatch(/^fd42::\/48 dev flannel0 proto 111 /m);
    const device = await a.ns.ip('-6', 'address', 'show', 'dev', 'flannel0');
    expect(device).toMatch(/inet6 fd42:.*\/128 scope global/);
    expect(device).not.toContain('fe80:');
    const [lease] = (await status(a)).leases;
    expect(lease).toMatchObject({ subnet6: expect.stringMatching(/^fd42:.*\/64$/) as string, state: 'routed' });
  });

  test('the data plane is told the MTU that a route is configured with', async () => {
    await a.ns.ip('route', 'add', `${b.underlay}/32`, 'dev', 'eth0', 'mtu', '1300');
    try {
      await Promise.all([start(a), start(b)].map(ready));
      await until(async () => (await status(a)).dataplane.peers[0]?.pathMtu === 1300, { what: 'a path MTU of 1300' });
      expect((await status(b)).dataplane.peers[0]?.pathMtu).toBe(1500);
    } finally {
      await a.ns.ip('route', 'del', `${b.underlay}/32`);
    }
  });

  test('a stale route of ours is removed, a foreign one stays and is named', async () => {
    await a.ns.ip('route', 'add', '10.42.200.0/24', 'via', b.underlay, 'proto', '111');
    await a.ns.ip('route', 'add', '10.42.201.0/24', 'via', b.underlay);
    try {
      const agent = start(a);
      await ready(agent);
      const table = await routes(a);
      expect(table).not.toContain('10.42.200.0/24');
      expect(table).toContain('10.42.201.0/24');
      expect(agent.stderr).toMatch(
        /other routes take packets away from the tunnel: route 10\.42\.201\.0\/24 via 10\.77\.0\.2 dev eth0/,
      );
    } finally {
      await a.ns.run('ip', ['route', 'del', '10.42.200.0/24']);
      await a.ns.ip('route', 'del', '10.42.201.0/24');
    }
  });

  describe('a start that fails is one line, exit 1, and nothing is left', () => {
    interface Failure {
      readonly name: string;
      readonly prepare?: () => Promise<unknown>;
      readonly args?: readonly string[];
      readonly message: RegExp;
      readonly restore?: () => Promise<unknown>;
      /** Run the agent through this program. */
      readonly wrapper?: readonly string[];
    }
    const config = (text: string) => (): Promise<void> => writeFile(join(store, 'config'), text);
    const failures: readonly Failure[] = [
      {
        name: 'no network config',
        prepare: () => rm(join(store, 'config')),
        message: /^no network config at .*\/config; create it with/,
      },
      {
        name: 'config that is no JSON',
        prepare: config('{"Network"'),
        message: /^invalid network config: not valid JSON/,
      },
      { name: 'config without a network', prepare: config('{}'), message: /please define a correct Network parameter/ },
      {
        name: 'a backend of flannel’s that is not here',
        prepare: config('{"Network":"10.42.0.0/16","Backend":{"Type":"vxlan"}}'),
        message: /asks for the backend "vxlan": this version has udp only/,
      },
      {
        name: 'a bad port',
        prepare: config('{"Network":"10.42.0.0/16","Backend":{"Type":"udp","Port":70000}}'),
        message: /Backend\.Port is 70000/,
      },
      {
        name: 'IPv6 only',
        prepare: config('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:42::/48"}'),
        message: /IPv6|IPv4/,
      },
      {
        name: 'the underlay inside the pod network',
        prepare: config('{"Network":"10.64.0.0/10"}'),
        message: /10\.77\.0\.1 of eth0 lies inside the pod network 10\.64\.0\.0\/10/,
      },
      { name: 'no such interface', args: ['--iface=eth7'], message: /^(Failed to find interface).*eth7/ },
      {
        name: 'a public address nobody owns',
        args: ['--public-ip=10.77.0.77'],
        message: /^no interface owns --public-ip 10\.77\.0\.77/,
      },
      {
        name: 'a route that collides',
        prepare: () => a.ns.ip('route', 'add', '10.42.0.0/16', 'via', b.underlay),
        restore: () => a.ns.ip('route', 'del', '10.42.0.0/16'),
        message: /route 10\.42\.0\.0\/16 via 10\.77\.0\.2 dev eth0 already takes the pod network: remove it/,
      },
      {
        name: 'no CAP_NET_ADMIN',
        wrapper: ['setpriv', '--inh-caps=-net_admin', '--bounding-set=-net_admin'],
        message: /CAP_NET_ADMIN/,
      },
      {
        name: 'no /dev/net/tun',
        wrapper: ['unshare', '--mount', 'sh', '-c', 'mount -t tmpfs none /dev/net && exec "$@"', 'sh'],
        message: /^\/dev\/net\/tun is missing: load the module/,
      },
    ];

    test.each(failures)('$name', async (failure) => {
      await failure.prepare?.();
      try {
        const before = { links: await links(a), routes: await routes(a), leases: await leases() };
        const args = [
          ...(failure.wrapper ?? []),
          process.execPath,
          cli,
          'agent',
          `--store=dir:${store}`,
          ...(failure.args ?? ['--iface=eth0']),
          `--subnet-file=${join(a.run, 'subnet.env')}`,
          '--log-format=json',
        ];
        const finished = await a.ns.run(args[0] ?? '', args.slice(1));
        expect(finished.code).toBe(1);
        expect(errorsOf(finished)).toEqual([expect.stringMatching(failure.message)]);
        expect(finished.stdout).toBe('');
        expect({ links: await links(a), routes: await routes(a), leases: await leases() }).toEqual(before);
        expect(await readdir(a.run)).toEqual([]);
      } finally {
        await failure.restore?.();
      }
    });

    test('out of subnets', async () => {
      await writeFile(
        join(store, 'config'),
        '{"Network":"10.42.0.0/24","SubnetLen":26,"SubnetMin":"10.42.0.64","SubnetMax":"10.42.0.64"}',
      );
      await ready(start(b));
      const finished = await start(a).finished;
      expect(finished.code).toBe(1);
      expect(errorsOf(finished)).toEqual([expect.stringMatching(/out of subnets/)]);
      expect(await links(a)).toEqual(['eth0', 'lo']);
      expect(await readdir(a.run)).toEqual([]);
    });
  });
});
