import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  AGENT_NEEDS,
  AgentBed,
  type AgentHost,
  errorsOf,
  links,
  ready,
  routes,
  statusOf,
  subnetBase,
  subnetEnv,
} from '../support/agents.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

/** What happens to running agents when somebody changes the host under them. */
describe.skipIf(missing(AGENT_NEEDS))('a running agent and its host', () => {
  let bed: AgentBed;
  let a: AgentHost;
  let b: AgentHost;

  beforeAll(async () => {
    bed = await AgentBed.create();
    ({ a, b } = bed);
  });

  afterAll(() => bed[Symbol.asyncDispose]());

  beforeEach(async () => {
    await bed.reset();
    for (const host of [a, b]) {
      await host.ns.ip('address', 'flush', 'dev', 'eth0');
      await host.ns.ip('link', 'set', 'eth0', 'up', 'mtu', '1500');
      await host.ns.ip('address', 'add', `${host.underlay}/24`, 'dev', 'eth0');
    }
  });

  afterEach(() => bed.killAll());

  const repaired = (host: AgentHost, what: RegExp): Promise<true> =>
    until(async () => (what.test((await statusOf(host)).host.lastRepair?.what ?? '') ? true : undefined), {
      what: `the repair of ${what.source}`,
    });

  test('link, MTU, address, route and forwarding changed by hand: put right within a second, counted, told', async () => {
    const [agent] = await bed.startBoth();
    await bed.connected();
    const base = await subnetBase(a);
    const right = async (): Promise<boolean> => {
      const device = await a.ns.ip('address', 'show', 'dev', 'flannel0');
      return (
        /[<,]UP[,>].* mtu 1472 /.test(device) &&
        device.includes(`inet ${base}.0/32`) &&
        /^10\.42\.0\.0\/16 dev flannel0 proto 111 /m.test(await routes(a)) &&
        (await a.ns.ok('cat', ['/proc/sys/net/ipv4/ip_forward'])) === '1\n'
      );
    };
    for (const [damage, told] of [
      ['ip link set flannel0 down', /flannel0 was down/],
      ['ip link set flannel0 mtu 1300', /mtu of flannel0 was 1300/],
      [`ip address del ${base}.0/32 dev flannel0`, /address .* was missing/],
      ['ip route del 10.42.0.0/16', /route 10\.42\.0\.0\/16 was missing/],
      [`ip route replace 10.42.0.0/16 via ${b.underlay}`, /was replaced by another: .* via/],
      ['echo 0 > /proc/sys/net/ipv4/ip_forward', /net\.ipv4\.ip_forward was 0, not 1/],
    ] as const) {
      const from = performance.now();
      await a.ns.ok('sh', ['-c', damage]);
      await until(right, { what: `the repair of: ${damage}`, intervalMs: 5 });
      expect([damage, performance.now() - from < 1_000]).toEqual([damage, true]);
      await repaired(a, told);
    }
    await bed.connected();
    const { host } = await statusOf(a);
    expect(host).toMatchObject({
      driftRepaired: { link: 2, address: 1, switch: 1 },
      reopened: 0,
      problems: [],
      eventsHeard: true,
    });
    expect(host.driftRepaired['route']).toBeGreaterThanOrEqual(3);
    expect(agent.stderr.match(/"msg":"put right: /g)).toHaveLength(6);
    expect(errorsOf(agent)).toEqual([]);
  });

  test('a TUN device that somebody deletes is made again: same lease, same routes, told and counted', async () => {
    const [agent] = await bed.startBoth();
    await bed.connected();
    const env = await subnetEnv(a);
    const leases = await bed.leases();
    for (const count of [1, 2]) {
      await a.ns.ip('link', 'del', 'flannel0');
      await until(async () => (await statusOf(a)).host.reopened === count, { what: 'the new data plane' });
      await bed.connected();
    }
    expect(await subnetEnv(a)).toBe(env);
    expect(await bed.leases()).toEqual(leases);
    expect(await links(a)).toEqual(['eth0', 'flannel0', 'lo']);
    const { device, dataplane, host } = await statusOf(a);
    expect([device.name, dataplane?.routes, host.problems]).toEqual(['flannel0', 1, []]);
    expect(agent.stderr.match(/the data plane is open again/g)).toHaveLength(2);
    expect((await agent.stop()).code).toBe(0);
    expect(await links(a)).toEqual(['eth0', 'lo']);
  });

  test('an underlay address that changes is followed: lease, peers, packets; the subnet stays', async () => {
    const [agent] = await bed.startBoth();
    await bed.connected();
    const base = await subnetBase(a);
    const next = '10.77.0.101';
    // As a DHCP client does it: the old one goes, for a moment there is none.
    await a.ns.ip('address', 'flush', 'dev', 'eth0');
    await a.ns.ip('address', 'add', `${next}/24`, 'dev', 'eth0');
    await until(async () => (await statusOf(a)).lease.publicIp === next, { what: 'the lease to name it' });
    await until(async () => (await statusOf(b)).leases[0]?.publicIp === next, { what: 'the other host to hear it' });
    await bed.connected();
    expect(await statusOf(a)).toMatchObject({
      interface: { name: 'eth0', address: next },
      lease: { subnet: `${base}.0/24`, held: true },
      host: { reopened: 1, problems: [] },
    });
    expect(JSON.parse(await readFile(join(bed.store, 'subnets', `${base}.0-24`), 'utf8'))).toMatchObject({
      PublicIP: next,
    });
    expect(agent.stderr).toMatch(/the underlay has changed, following it: address 10\.77\.0\.1 -> 10\.77\.0\.101/);
    // A restart finds the lease by what it says now.
    expect((await agent.stop()).code).toBe(0);
    await bed.startReady(a);
    expect(await subnetBase(a)).toBe(base);
    expect(await bed.leases()).toHaveLength(2);
  });

  test('an underlay MTU that changes is followed, in the device and in the subnet file', async () => {
    await bed.startBoth();
    await bed.connected();
    await a.ns.ip('link', 'set', 'eth0', 'mtu', '1400');
    await until(async () => (await subnetEnv(a)).includes('FLANNEL_MTU=1372\n'), { what: 'the subnet file' });
    await until(async () => (await statusOf(a)).device.mtu === 1372, { what: 'the device' });
    expect(await a.ns.ip('link', 'show', 'flannel0')).toContain(' mtu 1372 ');
    await bed.connected();
  });

  test('an underlay that goes down and comes back is told, and nothing is given up', async () => {
    const [agent] = await bed.startBoth();
    await bed.connected();
    await a.ns.ip('link', 'set', 'eth0', 'down');
    await agent.output(/"msg":"the underlay interface eth0 is down/, { from: 'stderr' });
    expect((await statusOf(a)).host.problems).toEqual(['the underlay interface eth0 is down']);
    await a.ns.ip('link', 'set', 'eth0', 'up');
    await agent.output(/"msg":"the underlay interface eth0 is up again"/, { from: 'stderr' });
    await bed.connected();
    expect((await statusOf(a)).host).toMatchObject({ problems: [], reopened: 0 });
  });

  test("a bridge with another subnet's address is told, and told again when it is gone", async () => {
    const agent = await bed.startReady(a);
    const base = await subnetBase(a);
    const other = base === '10.42.9' ? '10.42.8' : '10.42.9';
    await a.ns.ip('link', 'add', 'cni0', 'type', 'bridge');
    await a.ns.ip('address', 'add', `${base}.1/24`, 'dev', 'cni0');
    await a.ns.ip('address', 'add', `${other}.1/24`, 'dev', 'cni0');
    await until(async () => (await statusOf(a)).host.problems.length > 0, { what: 'the stray address' });
    expect((await statusOf(a)).host.problems).toEqual([
      expect.stringMatching(
        new RegExp(`^cni0 has ${other}\\.1/24, .* not in this host's ${base}\\.0/24: .*ip link del cni0`),
      ),
    ]);
    await a.ns.ip('link', 'del', 'cni0');
    await until(async () => (await statusOf(a)).host.problems.length === 0, { what: 'its end' });
    expect(agent.stderr).toContain(`no more: cni0 has ${other}.1/24`);
  });

  test('a foreign route that takes packets away from the tunnel is told and shown while it is there', async () => {
    await bed.startReady(a);
    for (const route of ['10.42.250.0/24', '10.42.0.0/16']) {
      await a.ns.ip('route', 'prepend', route, 'via', b.underlay, 'dev', 'eth0');
      await until(async () => (await statusOf(a)).host.problems.length > 0, { what: `${route} to be shown` });
      expect((await statusOf(a)).host.problems).toEqual([
        `other routes take packets away from the tunnel: route ${route} via ${b.underlay} dev eth0`,
      ]);
      await a.ns.ip('route', 'del', route, 'via', b.underlay);
      await until(async () => (await statusOf(a)).host.problems.length === 0, { what: 'the end of it' });
    }
    expect((await statusOf(a)).host.driftRepaired['route']).toBe(0);
  });

  test('two agents on one host: neither touches what is the other’s, also after kill -9 of one', async () => {
    const otherStore = await bed.makeStore('{"Network":"10.43.0.0/16","Backend":{"Type":"udp","Port":8286}}');
    const startSecond = async (): Promise<ReturnType<AgentBed['start']>> => {
      const second = bed.start(a, `--store=dir:${otherStore}`, `--subnet-file=${join(a.run, 'second.env')}`);
      await ready(second);
      return second;
    };
    const first = await bed.startReady(a);
    const second = await startSecond();
    const table = await routes(a);
    expect(table).toMatch(/^10\.42\.0\.0\/16 dev flannel0 /m);
    expect(table).toMatch(/^10\.43\.0\.0\/16 dev flannel1 /m);
    // A route of ours that a dead one left, one that is foreign, and one of another network.
    await a.ns.ip('route', 'add', '10.43.77.0/24', 'dev', 'eth0', 'proto', '111');
    await a.ns.ip('route', 'add', '10.43.78.0/24', 'dev', 'eth0');
    await a.ns.ip('route', 'add', '10.44.0.0/16', 'dev', 'eth0', 'proto', '111');
    await second.stop('SIGKILL');
    await startSecond();
    const after = await routes(a);
    expect(after).not.toContain('10.43.77.0/24');
    for (const kept of ['10.43.78.0/24 dev eth0', '10.44.0.0/16 dev eth0', '10.42.0.0/16 dev flannel0']) {
      expect(after).toContain(kept);
    }
    // Each repairs its own.
    await a.ns.ip('route', 'del', '10.42.0.0/16');
    await a.ns.ip('route', 'del', '10.43.0.0/16');
    await until(async () => (await routes(a)).includes('10.42.0.0/16 dev flannel0'), { what: "the first one's" });
    await until(async () => (await routes(a)).includes('10.43.0.0/16 dev flannel1'), { what: "the second one's" });
    expect(errorsOf(first)).toEqual([]);
    for (const route of ['10.43.78.0/24', '10.44.0.0/16']) await a.ns.ip('route', 'del', route);
  });

  test('kill -9 leaves no process of the agent behind', async () => {
    const agent = await bed.startReady(a);
    await until(async () => (await statusOf(a)).host.eventsHeard, { what: 'the monitor' });
    expect((await a.ns.pids()).length).toBeGreaterThan(1);
    await agent.stop('SIGKILL');
    await until(async () => (await a.ns.pids()).length === 0, { what: 'its children to end' });
  });

  test('IPv6: an address of the device and its route come back', async () => {
    await writeFile(
      join(bed.store, 'config'),
      '{"Network":"10.42.0.0/16","EnableIPv6":true,"IPv6Network":"fd42::/48","Backend":{"Type":"udp"}}',
    );
    await a.ns.ip('address', 'replace', 'fd77::1/64', 'dev', 'eth0', 'nodad');
    await bed.startReady(a);
    const own = /inet6 (fd42:\S+\/128)/.exec(await a.ns.ip('-6', 'address', 'show', 'dev', 'flannel0'))?.[1] ?? 'none';
    await a.ns.ip('-6', 'address', 'del', own, 'dev', 'flannel0');
    await a.ns.ip('-6', 'route', 'del', 'fd42::/48');
    await until(async () => (await a.ns.ip('-6', 'address', 'show', 'dev', 'flannel0')).includes(own), {
      what: 'the address',
    });
    await until(async () => /^fd42::\/48 dev flannel0 proto 111 /m.test(await a.ns.ip('-N', '-6', 'route', 'show')), {
      what: 'the route',
    });
    // Taking the link down takes every IPv6 address away.
    await a.ns.ip('link', 'set', 'flannel0', 'down');
    await until(async () => (await a.ns.ip('-6', 'address', 'show', 'dev', 'flannel0')).includes(own), {
      what: 'the address after the link was down',
    });
    expect(await a.ns.ip('-6', 'address', 'show', 'dev', 'flannel0')).not.toContain('fe80:');
  });
});
