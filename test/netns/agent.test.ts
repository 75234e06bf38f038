import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  AGENT_NEEDS,
  AgentBed,
  type AgentHost,
  errorsOf,
  linesOf,
  links,
  ready,
  routes,
  statusOf,
  subnetBase,
  subnetEnv,
} from '../support/agents.js';
import { cli, until } from '../support/process.js';
import { missing } from '../support/requires.js';

/** Real agents, each started by its test; a killed one is started again on the same files. */
describe.skipIf(missing(AGENT_NEEDS))('podwire agent on two hosts', () => {
  let bed: AgentBed;
  let a: AgentHost;
  let b: AgentHost;

  beforeAll(async () => {
    bed = await AgentBed.create();
    ({ a, b } = bed);
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  beforeEach(() => bed.reset());

  afterEach(() => bed.killAll());

  test('start: device, address, route, subnet file, forwarding, status; packets pass', async () => {
    await a.ns.sysctl({ 'net.ipv4.ip_forward': 0 });
    const [first] = await bed.startBoth();
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
    await bed.connected();
    const seen = await statusOf(a);
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
    expect(seen.dataplane?.totals.egressPackets).toBeGreaterThan(0);
    const lifeMs = Date.parse(seen.lease.expiresAt ?? '') - Date.now();
    expect(lifeMs).toBeGreaterThan(23 * 3_600_000);
    expect(lifeMs).toBeLessThanOrEqual(24 * 3_600_000);
    expect(JSON.parse(await readFile(join(bed.store, 'subnets', `${base}.0-24`), 'utf8'))).toMatchObject({
      PublicIP: a.underlay,
      PublicIPv6: null,
    });
    expect(errorsOf(first)).toEqual([]);
  });

  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s: exit 0 at once, device gone, lease kept; the next start has it again',
    async (signal) => {
      const first = await bed.startReady(a);
      const base = await subnetBase(a);
      const before = performance.now();
      const finished = await first.stop(signal);
      const tookMs = performance.now() - before;
      expect([finished.code, finished.signal]).toEqual([0, null]);
      expect(tookMs).toBeLessThan(1_000);
      expect(await links(a)).toEqual(['eth0', 'lo']);
      expect(await routes(a)).not.toContain('10.42.');
      expect(await bed.leases()).toEqual([`${base}.0-24`]);
      expect(await readdir(a.run)).toEqual(['subnet.env']);
      await bed.startReady(a);
      expect(await subnetBase(a)).toBe(base);
      expect(await bed.leases()).toEqual([`${base}.0-24`]);
    },
  );

  test('kill -9: everything goes with the process, and the next start has the same subnet', async () => {
    const [first] = await bed.startBoth();
    await bed.connected();
    const base = await subnetBase(a);
    await first.stop('SIGKILL');
    expect(await links(a)).toEqual(['eth0', 'lo']);
    expect(await readdir(a.run)).toEqual(['podwire-subnet.sock', 'subnet.env']);
    const dead = await a.ns.run(process.execPath, [cli, 'status', `--subnet-file=${a.subnetFile}`]);
    expect(dead.code).toBe(1);
    expect(dead.stderr).toMatch(/^podwire: no agent runs at .*\n$/);
    await bed.startReady(a);
    expect(await subnetBase(a)).toBe(base);
    await bed.connected();
  });

  test('the lease alone is enough to find the subnet again, and the subnet file alone too', async () => {
    await (async () => {
      const agent = await bed.startReady(a);
      await agent.stop();
    })();
    const base = await subnetBase(a);
    await rm(a.subnetFile);
    const second = await bed.startReady(a);
    expect(await subnetBase(a)).toBe(base);
    await second.stop();
    await rm(join(bed.store, 'subnets', `${base}.0-24`));
    await bed.startReady(a);
    expect(await subnetBase(a)).toBe(base);
  });

  test('without its store a host starts from its lease table, forwards, and is confirmed when the store is back', async () => {
    const [first] = await bed.startBoth();
    await bed.connected();
    const base = await subnetBase(a);
    await until(async () => (await readdir(a.state).catch(() => [])).some((name) => name.endsWith('.leases')), {
      what: 'the table',
    });
    expect((await first.stop()).code).toBe(0);
    await rename(bed.store, `${bed.store}.away`);
    const second = await bed.startReady(a);
    expect(await subnetBase(a)).toBe(base);
    await bed.connected();
    expect((await statusOf(a)).lease).toMatchObject({ subnet: `${base}.0/24`, held: false });
    expect((await statusOf(a)).store).toMatchObject({ ok: false, tableOf: expect.any(String) });
    expect(linesOf(second, 'warn')).toContainEqual(expect.stringMatching(/^starting without the store .*, 1 leases$/));
    await rename(`${bed.store}.away`, bed.store);
    // The lease and the others' leases come back each for itself.
    await until(async () => (await statusOf(a)).lease.held && (await statusOf(a)).store.ok, { what: 'the store' });
    expect((await statusOf(a)).store).toEqual({
      description: expect.any(String),
      ok: true,
      lastError: expect.any(String),
    });
    expect(await subnetBase(a)).toBe(base);
    expect((await statusOf(b)).leases).toHaveLength(1);
    await bed.connected();
  });

  test('--release-on-exit gives the lease back, and the other host lets the route go', async () => {
    const [first, second] = [bed.start(a, '--release-on-exit'), bed.start(b)];
    await Promise.all([ready(first), ready(second)]);
    await bed.connected();
    const gone = await subnetBase(a);
    expect((await first.stop()).code).toBe(0);
    expect(await bed.leases()).toEqual([`${await subnetBase(b)}.0-24`]);
    await until(async () => (await statusOf(b)).leases.length === 0, { what: `${gone} to be withdrawn` });
    expect((await statusOf(b)).dataplane?.routes).toBe(0);
    const answer = await b.ns.run('ping', ['-c', '1', '-W', '1', '-n', `${gone}.0`]);
    expect(answer.stdout).toContain('Destination Net Unreachable');
  });

  test('an own lease that somebody deletes is acquired again, the same one, without a gap', async () => {
    const [first] = await bed.startBoth();
    await bed.connected();
    const base = await subnetBase(a);
    await rm(join(bed.store, 'subnets', `${base}.0-24`));
    await until(async () => (await bed.leases()).includes(`${base}.0-24`), { what: 'the lease to be back' });
    await until(async () => (await statusOf(a)).lease.held, { what: 'the agent to hold it' });
    await bed.connected();
    expect(await subnetBase(a)).toBe(base);
    expect(first.running).toBe(true);
  });

  test('a subnet that another host took is given up for a new one, everywhere', async () => {
    const [first] = await bed.startBoth();
    const old = await subnetBase(a);
    const thief = {
      PublicIP: '10.77.0.99',
      PublicIPv6: null,
      Expiration: new Date(Date.now() + 3_600_000).toISOString(),
      Owner: 'thief',
    };
    await writeFile(join(bed.store, 'subnets', `${old}.0-24`), JSON.stringify(thief));
    await until(async () => (await subnetBase(a)) !== old, { what: 'a new subnet in the subnet file' });
    const base = await subnetBase(a);
    await until(async () => !(await a.ns.ip('address', 'show', 'dev', 'flannel0')).includes(`${old}.0/32`), {
      what: 'the old address to go',
    });
    expect(await a.ns.ip('address', 'show', 'dev', 'flannel0')).toContain(`${base}.0/32`);
    expect((await statusOf(a)).lease).toMatchObject({ subnet: `${base}.0/24`, held: true });
    await bed.connected();
    expect(first.running).toBe(true);
  });

  test('a second agent for the same subnet file gets its one line; the first goes on', async () => {
    const first = await bed.startReady(a);
    const second = await bed.start(a).finished;
    expect(second.code).toBe(1);
    expect(errorsOf(second)).toEqual([expect.stringMatching(/^another podwire agent answers at .*--subnet-file$/)]);
    expect((await statusOf(a)).pid).toBe(first.pid);
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
      const first = await bed.startReady(a);
      const before = await bed.leases();
      const otherStore = await bed.makeStore(config);
      const second = await bed.start(
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
      expect(await bed.leases()).toEqual(before);
      expect((await statusOf(a)).pid).toBe(first.pid);
    },
  );

  test('two agents with networks, ports and subnet files of their own share a host', async () => {
    const first = await bed.startReady(a);
    const otherStore = await bed.makeStore('{"Network":"10.43.0.0/16","Backend":{"Type":"udp","Port":8286}}');
    const second = bed.start(a, `--store=dir:${otherStore}`, `--subnet-file=${join(a.run, 'second.env')}`);
    await ready(second);
    expect(await links(a)).toEqual(['eth0', 'flannel0', 'flannel1', 'lo']);
    expect(await readdir(a.run)).toEqual(['podwire-second.sock', 'podwire-subnet.sock', 'second.env', 'subnet.env']);
    expect((await second.stop()).code).toBe(0);
    expect(await routes(a)).toMatch(/^10\.42\.0\.0\/16 dev flannel0 /m);
    expect((await statusOf(a)).pid).toBe(first.pid);
  });

  test('SIGTERM while it starts is a clean stop: exit 0, and nothing is left', async () => {
    for (const moment of [/podwire agent starts/, /underlay chosen/, /data plane open/, /lease acquired/]) {
      const agent = bed.start(a);
      await agent.output(moment, { from: 'stderr' });
      const finished = await agent.stop();
      expect([String(moment), finished.code, errorsOf(finished)]).toEqual([String(moment), 0, []]);
      expect(await links(a)).toEqual(['eth0', 'lo']);
      // The signal may come when the start is over: then the lease and the file stay, as after any stop.
      if (!/"msg":"ready"/.test(finished.stderr)) {
        expect([await bed.leases(), await readdir(a.run)], finished.stderr).toEqual([[], []]);
      }
      await rm(a.subnetFile, { force: true });
      await rm(join(bed.store, 'subnets'), { recursive: true, force: true });
    }
  });

  test('SIGHUP changes nothing', async () => {
    const agent = await bed.startReady(a);
    agent.child.kill('SIGHUP');
    await agent.output(/SIGHUP/, { from: 'stderr' });
    expect((await statusOf(a)).pid).toBe(agent.pid);
    expect((await agent.stop()).code).toBe(0);
  });

  test('dual stack: both families are routed, announced and carried', async () => {
    await writeFile(
      join(bed.store, 'config'),
      '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"udp"}}',
    );
    for (const host of [a, b]) {
      const last = host.underlay.split('.').at(-1) ?? '';
      await host.ns.ip('address', 'replace', `fd77::${last}/64`, 'dev', 'eth0', 'nodad');
    }
    await bed.startBoth();
    const env = await subnetEnv(b);
    const base6 = /FLANNEL_IPV6_NETWORK=fd42::\/48\nFLANNEL_IPV6_SUBNET=(fd42:.*::)1\/64\nFLANNEL_MTU=1472\n/.exec(
      env,
    )?.[1];
    expect(base6).toBeDefined();
    await bed.connected();
    await until(async () => (await a.ns.run('ping', ['-6', '-c', '1', '-W', '1', '-n', base6 ?? ''])).code === 0, {
      what: 'ping over IPv6',
    });
    expect(await a.ns.ip('-N', '-6', 'route', 'show')).toMatch(/^fd42::\/48 dev flannel0 proto 111 /m);
    const device = await a.ns.ip('-6', 'address', 'show', 'dev', 'flannel0');
    expect(device).toMatch(/inet6 fd42:.*\/128 scope global/);
    expect(device).not.toContain('fe80:');
    const [lease] = (await statusOf(a)).leases;
    expect(lease).toMatchObject({ subnet6: expect.stringMatching(/^fd42:.*\/64$/) as string, state: 'routed' });
  });

  test('the data plane is told the MTU that a route is configured with', async () => {
    await a.ns.ip('route', 'add', `${b.underlay}/32`, 'dev', 'eth0', 'mtu', '1300');
    try {
      await bed.startBoth();
      await until(async () => (await statusOf(a)).dataplane?.peers[0]?.pathMtu === 1300, {
        what: 'a path MTU of 1300',
      });
      expect((await statusOf(b)).dataplane?.peers[0]?.pathMtu).toBe(1500);
    } finally {
      await a.ns.ip('route', 'del', `${b.underlay}/32`);
    }
  });

  test('a stale route of ours is removed, a foreign one stays and is named', async () => {
    await a.ns.ip('route', 'add', '10.42.200.0/24', 'via', b.underlay, 'proto', '111');
    await a.ns.ip('route', 'add', '10.42.201.0/24', 'via', b.underlay);
    try {
      const agent = await bed.startReady(a);
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
});
