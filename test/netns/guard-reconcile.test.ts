import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { DesiredHost } from '../../src/host/desired.js';
import type { Runner } from '../../src/host/exec.js';
import { reconcile } from '../../src/host/reconcile.js';
import { Address, Prefix } from '../../src/net/prefix.js';
import { NetNs, veth } from '../support/netns.js';
import { generator, pick, seed } from '../support/random.js';
import { type NsRunner, nsRunner } from '../support/ns-runner.js';
import { missing } from '../support/requires.js';

const VXLAN = 'link add flannel.7 type vxlan id 7 dstport 8472 local 192.168.0.1 dev eth0 nolearning';
const mac = (index: number): string =>
  `02:00:00:00:${(index >> 8).toString(16).padStart(2, '0')}:${(index & 255).toString(16).padStart(2, '0')}`;

/** What a vxlan backend wants for so many peers, from `first` on. */
function vxlanHost(peers: number, first = 0): DesiredHost {
  const indices = Array.from({ length: peers }, (_, index) => first + index);
  const device = 'flannel.7';
  const base = (index: number): Address => Address.fromUint32(0x0a400000 + index * 256);
  return {
    families: [4, 6],
    links: [{ device, up: true, mtu: 1450, mac: '02:aa:00:00:00:01', create: { command: VXLAN } }],
    addresses: [{ device, address: Address.parse('10.95.255.0'), length: 32 }],
    routes: indices.map((index) => ({
      destination: Prefix.of(base(index), 24),
      device,
      gateway: base(index),
      onlink: true,
    })),
    neighbours: indices.map((index) => ({ device, address: base(index), mac: mac(index) })),
    fdb: indices.map((index) => ({ device, mac: mac(index), remote: Address.fromUint32(0xc0a80100 + index) })),
    exclusive: [device],
  };
}

describe.skipIf(missing({ root: true, commands: ['ip', 'bridge'] }))('reconcile on a real kernel', () => {
  let ns: NetNs;
  let peer: NetNs;
  let host: NsRunner;

  beforeEach(async () => {
    ns = await NetNs.create('wa', 'rec');
    peer = await NetNs.create('wa', 'peer');
    await veth({ ns, name: 'eth0', address: '192.168.0.1/16' }, { ns: peer, name: 'eth0', address: '192.168.0.2/16' });
    host = nsRunner(ns);
  });

  afterEach(async () => {
    await ns[Symbol.asyncDispose]();
    await peer[Symbol.asyncDispose]();
  });

  const settled = async (desired: DesiredHost): Promise<void> => {
    expect(await reconcile(host.runner, desired)).toEqual({ made: [], failed: [], held: [] });
  };

  test('from nothing to a device with peers; a second pass changes nothing', async () => {
    const desired = vxlanHost(3);
    const result = await reconcile(host.runner, desired);
    expect(result.failed).toEqual([]);
    await settled(desired);
    expect(await ns.ip('-N', 'route', 'show', 'proto', '111')).toMatch(
      /^10\.64\.0\.0\/24 via 10\.64\.0\.0 dev flannel\.7 onlink *$/m,
    );
    expect(await ns.ip('neigh', 'show', 'dev', 'flannel.7', 'nud', 'permanent')).toContain(
      `10.64.1.0 lladdr ${mac(1)} PERMANENT`,
    );
    expect(await ns.ok('bridge', ['fdb', 'show', 'dev', 'flannel.7'])).toContain(
      `${mac(2)} dst 192.168.1.2 self permanent`,
    );
  });

  test('the kernel gets neighbours and FDB entries before the routes that lead to them', async () => {
    await reconcile(host.runner, vxlanHost(0));
    const kinds: string[] = [];
    const watched: Runner = async (tool, args, options) => {
      const answer = await host.runner(tool, args, options);
      for (const line of options?.input?.trimEnd().split('\n') ?? []) kinds.push(line.split(' ')[0] ?? '');
      return answer;
    };
    await reconcile(watched, vxlanHost(3));
    expect(kinds.slice(-3)).toEqual(['route', 'route', 'route']);
    expect(kinds.slice(0, -3).toSorted()).toEqual(['fdb', 'fdb', 'fdb', 'neigh', 'neigh', 'neigh']);
  });

  test('what was removed, changed or added by hand is put right, and nothing else is touched', async () => {
    const desired = vxlanHost(4);
    await reconcile(host.runner, desired);
    await ns.ip('route', 'add', '10.64.9.0/24', 'dev', 'eth0');
    await ns.ip('route', 'add', '10.99.0.0/24', 'dev', 'eth0', 'proto', '111');
    const foreign = await ns.ip('-N', 'route', 'show', 'dev', 'eth0');
    await ns.ip('route', 'del', '10.64.0.0/24');
    await ns.ip('route', 'replace', '10.64.1.0/24', 'dev', 'flannel.7', 'proto', '111');
    await ns.ip('route', 'add', '10.64.8.0/24', 'dev', 'flannel.7', 'proto', '111');
    await ns.ip('neigh', 'del', '10.64.2.0', 'dev', 'flannel.7');
    await ns.ip('neigh', 'replace', '10.64.3.0', 'lladdr', mac(99), 'dev', 'flannel.7', 'nud', 'permanent');
    await ns.ok('bridge', ['fdb', 'replace', mac(0), 'dev', 'flannel.7', 'dst', '192.168.9.8', 'self', 'permanent']);
    await ns.ok('bridge', ['fdb', 'append', mac(77), 'dev', 'flannel.7', 'dst', '192.168.9.7', 'self', 'permanent']);
    await ns.ip('address', 'add', '10.95.254.0/32', 'dev', 'flannel.7');
    await ns.ip('address', 'del', '10.95.255.0/32', 'dev', 'flannel.7');
    await ns.ip('link', 'set', 'flannel.7', 'mtu', '1400');
    const result = await reconcile(host.runner, desired);
    expect(result.failed).toEqual([]);
    expect(result.made.map(({ action, key }) => `${action} ${key}`).sort()).toEqual([
      'add address 10.95.255.0/32 dev flannel.7',
      'add neighbour 10.64.2.0 dev flannel.7',
      'add route 10.64.0.0/24 0',
      `change fdb ${mac(0)} dev flannel.7`,
      'change link flannel.7 mtu',
      'change neighbour 10.64.3.0 dev flannel.7',
      'change route 10.64.1.0/24 0',
      'remove address 10.95.254.0/32 dev flannel.7',
      `remove fdb ${mac(77)} dev flannel.7`,
      'remove route 10.64.8.0/24 0 dev flannel.7',
    ]);
    await settled(desired);
    expect(await ns.ip('-N', 'route', 'show', 'dev', 'eth0')).toBe(foreign);
  });

  test('a MAC changed by hand, with which the neighbours go, and a last address, with which the routes go', async () => {
    const desired = vxlanHost(4);
    await reconcile(host.runner, desired);
    await ns.ip('link', 'set', 'flannel.7', 'address', '02:bb:00:00:00:01');
    const result = await reconcile(host.runner, desired);
    expect(result.failed).toEqual([]);
    expect(result.made.map(({ key }) => key)).toContain('link flannel.7 mac');
    await settled(desired);
    await ns.ip('address', 'del', '10.95.255.0/32', 'dev', 'flannel.7');
    expect((await reconcile(host.runner, desired)).failed).toEqual([]);
    await settled(desired);
  });

  test('a device that is gone, down or another comes back with everything on it', async () => {
    const kind = (entry: unknown): boolean => JSON.stringify(entry).includes('"info_kind":"vxlan"');
    const base = vxlanHost(2);
    const desired: DesiredHost = {
      ...base,
      links: [{ ...base.links![0]!, create: { command: VXLAN, matches: kind } }],
    };
    await reconcile(host.runner, desired);
    await ns.ip('link', 'del', 'flannel.7');
    expect((await reconcile(host.runner, desired)).failed).toEqual([]);
    await settled(desired);
    await ns.ip('link', 'set', 'flannel.7', 'down');
    expect((await reconcile(host.runner, desired)).failed).toEqual([]);
    await settled(desired);
    await ns.ip('link', 'del', 'flannel.7');
    await ns.ip('tuntap', 'add', 'flannel.7', 'mode', 'tun');
    expect((await reconcile(host.runner, desired)).failed).toEqual([]);
    await settled(desired);
  });

  test(`whatever somebody does to the device, one call puts it right (seed ${seed})`, async () => {
    const desired = vxlanHost(6);
    await reconcile(host.runner, desired);
    const random = generator(seed);
    const below = (limit: number): number => Math.floor(random() * limit);
    const subnet = (): string => `10.64.${below(8)}.0`;
    const damages: readonly (() => string)[] = [
      () => `link set flannel.7 ${random() < 0.5 ? 'down' : 'up'}`,
      () => `link set flannel.7 mtu ${1300 + below(3)}`,
      () => `link set flannel.7 address ${mac(100 + below(3))}`,
      () => `address ${random() < 0.5 ? 'del' : 'replace'} 10.95.255.0/32 dev flannel.7`,
      () => `address replace 10.95.${below(3)}.1/24 dev flannel.7`,
      () => `route del ${subnet()}/24`,
      () => `route replace ${subnet()}/24 dev flannel.7 proto 111`,
      () => `route replace ${subnet()}/24 via ${subnet()} dev flannel.7 onlink proto 111 mtu 1200`,
      () => `route append ${subnet()}/24 dev flannel.7 proto 111`,
      () => `neigh replace ${subnet()} lladdr ${mac(below(9))} dev flannel.7 nud permanent`,
      () => `neigh replace ${subnet()} lladdr ${mac(below(9))} dev flannel.7 nud reachable`,
      () => `neigh flush dev flannel.7 nud permanent`,
      () => `link del flannel.7`,
    ];
    for (let round = 0; round < 25; round++) {
      const commands = Array.from({ length: 1 + below(4) }, () => pick(random, damages)());
      for (const command of commands) await ns.run('ip', command.split(' '));
      if (random() < 0.3) {
        await ns.run('bridge', ['fdb', 'replace', mac(below(9)), 'dev', 'flannel.7', 'dst', '192.168.9.9', 'self']);
      }
      const { failed } = await reconcile(host.runner, desired);
      expect([commands, failed]).toEqual([commands, []]);
      expect([commands, await reconcile(host.runner, desired)]).toEqual([commands, { made: [], failed: [], held: [] }]);
    }
  });

  test('a device that cannot be made is one failure, and the rest is done', async () => {
    const base = vxlanHost(1);
    const routes = [
      { destination: Prefix.parse('10.65.0.0/24'), device: 'nope0' },
      { destination: Prefix.parse('10.65.1.0/24'), device: 'nope0' },
    ];
    const result = await reconcile(host.runner, { ...base, routes: [...base.routes!, ...routes] });
    expect(result.failed.map(({ reason }) => reason)).toEqual(['device nope0 is gone']);
    expect(result.made.map(({ key }) => key)).toContain('route 10.64.0.0/24 0');
  });

  test('one command that the kernel refuses does not keep the others from being done, and says why', async () => {
    const base = vxlanHost(3);
    const unreachable = {
      destination: Prefix.parse('10.65.0.0/24'),
      device: 'eth0',
      gateway: Address.parse('10.88.0.1'),
    };
    const desired = { ...base, routes: [unreachable, ...base.routes!] };
    const result = await reconcile(host.runner, desired);
    expect(result.failed).toEqual([
      {
        change: expect.objectContaining({ key: 'route 10.65.0.0/24 0' }),
        reason: expect.stringMatching(/invalid gateway/),
      },
    ]);
    await settled({ ...desired, routes: base.routes! });
  });

  test('removing what goes away at the same moment is no failure', async () => {
    await reconcile(host.runner, vxlanHost(6));
    const base = host.runner;
    let raced = false;
    host = {
      ...host,
      runner: async (command, args, options) => {
        if (args.includes('-batch') && !raced) {
          raced = true;
          for (const gone of ['10.64.4.0', '10.64.5.0']) {
            await ns.ip('neigh', 'del', gone, 'dev', 'flannel.7');
            await ns.ip('route', 'del', `${gone}/24`);
          }
          await ns.ok('bridge', ['fdb', 'del', mac(4), 'dev', 'flannel.7', 'dst', '192.168.1.4', 'self']);
        }
        return base(command, args, options);
      },
    };
    const result = await reconcile(host.runner, vxlanHost(4));
    expect(raced).toBe(true);
    expect(result.failed).toEqual([]);
    await settled(vxlanHost(4));
  });

  test('a foreign route in the place of ours: named and left alone, or displaced when that is allowed', async () => {
    const device = 'eth0';
    const desired: DesiredHost = {
      families: [4, 6],
      routes: [
        { destination: Prefix.parse('10.65.0.0/24'), device, gateway: Address.parse('192.168.0.2') },
        { destination: Prefix.parse('10.66.0.0/24'), device, gateway: Address.parse('192.168.0.2') },
      ],
    };
    await ns.ip('route', 'add', '10.65.0.0/24', 'via', '192.168.0.9', 'dev', 'eth0');
    const refused = await reconcile(host.runner, desired);
    expect(refused.failed.map(({ reason }) => reason)).toEqual([
      'route 10.65.0.0/24 via 192.168.0.9 dev eth0 stands in the place of ours: remove it (ip route del 10.65.0.0/24 dev eth0)',
    ]);
    expect(refused.made.map(({ key }) => key)).toEqual(['route 10.66.0.0/24 0']);
    expect(await ns.ip('route', 'show', '10.65.0.0/24')).toContain('via 192.168.0.9');
    const displaced = await reconcile(host.runner, { ...desired, mayDisplace: () => true });
    expect(displaced.made.map(({ why }) => why)).toEqual([
      'route 10.65.0.0/24 was replaced by another: route 10.65.0.0/24 via 192.168.0.9 dev eth0',
    ]);
    await settled(desired);
  });

  test('IPv6 routes of ours to one destination over several devices: one is left, the right one', async () => {
    await ns.ip('tuntap', 'add', 'tun0', 'mode', 'tun');
    await ns.ip('link', 'set', 'tun0', 'up');
    const destination = Prefix.parse('fd42::/64');
    const desired = (device: string): DesiredHost => ({
      families: [6],
      links: [{ device: 'tun0' }, { device: 'eth0' }],
      routes: [{ destination, device }],
    });
    const shown = async (): Promise<string> => (await ns.ip('-6', '-N', 'route', 'show', 'fd42::/64')).trim();
    for (const device of ['tun0', 'eth0'] as const) {
      await ns.run('ip', ['-6', 'route', 'flush', 'fd42::/64']);
      await ns.ip('-6', 'route', 'add', 'fd42::/64', 'dev', 'tun0', 'proto', '111');
      await ns.ip('-6', 'route', 'append', 'fd42::/64', 'dev', 'eth0', 'proto', '111');
      expect((await shown()).split('\n')).toHaveLength(2);
      expect((await reconcile(host.runner, desired(device))).failed).toEqual([]);
      expect(await shown()).toMatch(new RegExp(`^fd42::/64 dev ${device} proto 111 metric 1024 [^\\n]*$`));
      await settled(desired(device));
    }
  });

  test("a second agent's routes of the same number are not touched", async () => {
    await ns.ip('tuntap', 'add', 'flannel0', 'mode', 'tun');
    await ns.ip('link', 'set', 'flannel0', 'up');
    await ns.ip('route', 'add', '10.43.0.0/16', 'dev', 'flannel0', 'proto', '111');
    await reconcile(host.runner, vxlanHost(2));
    await reconcile(host.runner, vxlanHost(0));
    expect(await ns.ip('-N', 'route', 'show', 'proto', '111')).toMatch(/^10\.43\.0\.0\/16 dev flannel0 /m);
  });

  test('5,000 peers: a handful of processes for the whole table, fewer for a look, few for a change', async () => {
    const many = vxlanHost(5_000);
    expect((await reconcile(host.runner, many)).failed).toEqual([]);
    // Device and addresses, neighbours, FDB, routes: four that write, the rest look before and after.
    expect(host.commands.length).toBeLessThanOrEqual(13);
    host.commands.length = 0;
    await settled(many);
    expect(host.commands.length).toBeLessThanOrEqual(5);
    host.commands.length = 0;
    const result = await reconcile(host.runner, vxlanHost(5_000, 10));
    expect([result.failed.length, result.made.length]).toEqual([0, 60]);
    // New entries, routes, old entries: five that write.
    expect(host.commands.length).toBeLessThanOrEqual(11);
  });
});
