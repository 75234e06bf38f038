import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Runner } from '../../../src/host/exec.js';
import { type GuardedState, type GuardOptions, HostGuard } from '../../../src/host/guard.js';
import type { Reconciliation } from '../../../src/host/reconcile.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { until } from '../../support/process.js';
import { QuietMonitor } from '../../support/quiet-host.js';
import { commandFailed } from './fake-ip.js';

const TUN: GuardedState = {
  families: [4],
  links: [{ device: 'tun0', up: true, mtu: 1472 }],
  routes: [{ destination: Prefix.parse('10.42.0.0/16'), device: 'tun0' }],
};

/** A host with one device; commands other than questions change it. */
class Host {
  readonly commands: string[] = [];
  looks = 0;
  mtu = 1472;
  routed = true;
  fault: Error | undefined;
  refuse: RegExp | undefined;
  addresses = new Set<string>();

  readonly runner: Runner = async (_, args, options = {}) => {
    if (this.fault !== undefined) throw this.fault;
    const text = args.join(' ');
    if (text.startsWith('-j -d address')) {
      this.looks++;
      const addresses = Array.from(this.addresses, (local) => ({ local, prefixlen: 32 }));
      const device = { ifname: 'tun0', ifindex: 3, mtu: this.mtu, flags: ['UP'], addr_info: addresses };
      return JSON.stringify([device]);
    }
    if (text.includes('route show')) {
      return JSON.stringify(this.routed ? [{ dst: '10.42.0.0/16', dev: 'tun0', flags: [] }] : []);
    }
    for (const command of (options.input ?? text).trimEnd().split('\n')) {
      if (this.refuse?.test(command) === true) throw commandFailed(`ip ${command}: no`);
      this.commands.push(command);
      const mtu = /mtu (\d+)$/.exec(command)?.[1];
      if (mtu !== undefined) this.mtu = Number(mtu);
      if (command.startsWith('route')) this.routed = true;
      const address = /^address replace (.*)\/32/.exec(command)?.[1];
      if (address !== undefined) this.addresses.add(address);
    }
    return '';
  };
}

let host: Host;
let monitor: QuietMonitor;
let said: string[];
let guard: HostGuard;
let directory: string;

beforeEach(async () => {
  host = new Host();
  monitor = new QuietMonitor();
  said = [];
  directory = await mkdtemp(join(tmpdir(), 'pwguard-'));
});

afterEach(async () => {
  await guard.close();
  await rm(directory, { recursive: true });
});

const open = (more: Partial<GuardOptions> = {}): HostGuard => {
  guard = new HostGuard({
    runner: host.runner,
    monitor,
    say: (level, _, message) => said.push(`${level}: ${message}`),
    ...more,
  });
  return guard;
};
const looks = (count: number): Promise<true> =>
  until(() => (host.looks >= count ? true : undefined), { what: `${count} looks` });

describe('events', () => {
  test.each([
    ['its device', { links: new Set(['tun0']) }],
    ['an address of it', { addresses: new Set(['tun0']) }],
    [
      'a route to its destination anywhere',
      { destinations: new Set(['10.42.0.0/16']), routeDevices: new Set(['eth0']) },
    ],
    ['any route of its device', { destinations: new Set(['10.1.0.0/16']), routeDevices: new Set(['tun0']) }],
    ['everything', { everything: true }],
  ])('about %s lead to a look', async (_, events) => {
    await open().keep('tun', TUN);
    host.mtu = 1300;
    monitor.say(events);
    await until(() => host.mtu === 1472, { what: 'the repair' });
    expect(guard.stats().driftRepaired.link).toBe(1);
  });

  test('about anything else lead to none', async () => {
    await open().keep('tun', TUN);
    const { looks: before } = host;
    monitor.say({ links: new Set(['eth0']), addresses: new Set(['eth0']), neighbours: new Set(['tun0', 'eth0']) });
    monitor.say({ destinations: new Set(['10.43.0.0/16']), routeDevices: new Set(['eth0']), forwarding: true });
    // Two further looks that were asked for would come before this one.
    await guard.keep('other', { families: [], links: [{ device: 'tun0' }] });
    expect(host.looks).toBe(before + 1);
  });

  test('a storm of them costs few looks', async () => {
    await open().keep('tun', TUN);
    const before = host.looks;
    for (let i = 0; i < 1_000; i++) monitor.say({ links: new Set(['tun0']) });
    await looks(before + 1);
    await guard.keep('other', { families: [], links: [{ device: 'tun0' }] });
    expect(host.looks).toBeLessThanOrEqual(before + 3);
  });

  test('host routes are known by the name that ip prints', async () => {
    const destination = Prefix.parse('10.42.7.9/32');
    const six = Prefix.parse('fd42::9/128');
    await open().keep('host', {
      families: [4, 6],
      routes: [
        { destination, device: 'gone0' },
        { destination: six, device: 'gone0' },
      ],
    });
    for (const name of ['10.42.7.9', 'fd42::9']) {
      const before = host.looks;
      monitor.say({ destinations: new Set([name]) });
      await looks(before + 1);
    }
  });
});

describe('what was asked for', () => {
  test('is made at once, is no drift, and tells its owner', async () => {
    host.mtu = 1500;
    host.routed = false;
    const passes: Reconciliation[] = [];
    await open().keep('tun', TUN, (result) => passes.push(result));
    expect(host.commands).toEqual([
      'link set dev tun0 mtu 1472',
      'route add 10.42.0.0/16 dev tun0 proto 111 scope global',
    ]);
    expect(passes.map(({ made }) => made.map(({ key }) => key))).toEqual([['link tun0 mtu', 'route 10.42.0.0/16 0']]);
    await guard.keep('tun', { ...TUN, links: [{ device: 'tun0', mtu: 1400 }] });
    expect(host.mtu).toBe(1400);
    expect(guard.stats()).toMatchObject({ driftRepaired: { link: 0, route: 0 }, lastRepair: undefined });
    expect(said).toEqual([]);
  });

  test('many wishes that come together are one look', async () => {
    open();
    const wishes = Array.from({ length: 100 }, (_, index) =>
      guard.keep('tun', { ...TUN, links: [{ device: 'tun0', mtu: 1300 + index }] }),
    );
    await Promise.all(wishes);
    expect(host.mtu).toBe(1399);
    expect(guard.stats().checks).toBeLessThanOrEqual(2);
  });

  test('and refused is told once, kept in the stats, tried again, and told when it works', async () => {
    host.mtu = 1500;
    host.refuse = /mtu/;
    await open({ periodMs: 60 }).keep('tun', TUN);
    const { checks } = guard.stats();
    await until(() => guard.stats().checks > checks + 2, { what: 'more tries' });
    expect(guard.stats().failing).toEqual(['ip link set dev tun0 mtu 1472: no']);
    expect(said).toEqual(['error: cannot be put right: ip link set dev tun0 mtu 1472: no']);
    host.refuse = undefined;
    await until(() => guard.stats().failing.length === 0, { what: 'it to work' });
    expect(said.slice(1)).toEqual(['info: right again: ip link set dev tun0 mtu 1472: no']);
    expect(guard.stats().driftRepaired.link).toBe(0);
  });
});

test('a host that cannot be looked at is told once, and looked at again', async () => {
  host.fault = commandFailed('cannot run ip: not found');
  await open({ periodMs: 50 }).keep('tun', TUN);
  await until(() => guard.stats().checks > 2, { what: 'more looks' });
  expect(said).toEqual(['error: cannot be put right: the host cannot be looked at: cannot run ip: not found']);
  host.fault = undefined;
  host.mtu = 1300;
  await until(() => host.mtu === 1472, { what: 'the first good look' });
  await until(() => guard.stats().failing.length === 0, { what: 'the failure to be over' });
});

test('many repairs are one line that names a few', async () => {
  const addresses = Array.from({ length: 9 }, (_, index) => ({
    device: 'tun0',
    address: Address.parse(`10.42.${index}.0`),
    length: 32,
  }));
  await open().keep('tun', { families: [], addresses });
  host.addresses.clear();
  monitor.say({ everything: true });
  await until(() => said.length > 0, { what: 'the line' });
  expect(said[0]).toMatch(
    /^warn: put right: (address \S+ of tun0 was missing; ){3}address \S+ of tun0 was missing and 5 more$/,
  );
});

describe('switches', () => {
  const path = 'net/ipv4/ip_forward';
  const file = (): string => join(directory, path);
  const wanted: GuardedState = { families: [], switches: [{ path, value: '1' }] };

  beforeEach(() => mkdir(join(directory, 'net/ipv4'), { recursive: true }));

  test('are set, and set again when somebody changes them, without a look at anything else', async () => {
    await writeFile(file(), '0\n');
    await open({ procSys: directory }).keep('forwarding', wanted);
    expect(await readFile(file(), 'utf8')).toBe('1');
    expect([guard.stats().driftRepaired.switch, said, host.looks]).toEqual([0, [], 0]);
    await writeFile(file(), '0\n');
    monitor.say({ forwarding: true });
    await until(() => guard.stats().driftRepaired.switch === 1, { what: 'the repair' });
    expect(await readFile(file(), 'utf8')).toBe('1');
    expect(said).toEqual(['warn: put right: net.ipv4.ip_forward was 0, not 1']);
  });

  test('that do not exist are right; that cannot be set are told with the command', async () => {
    await open({ procSys: directory }).keep('forwarding', wanted);
    expect(said).toEqual([]);
    await guard.keep('forwarding', { families: [], switches: [{ path: 'net', value: '1' }] });
    expect(said).toEqual([]);
    // Readable and not writable, also for root.
    await guard.close();
    open({ procSys: '/proc' });
    await guard.keep('forwarding', { families: [], switches: [{ path: 'version', value: '1' }] });
    expect(said).toEqual([
      expect.stringMatching(/^error: cannot be put right: version is Linux .* run sysctl -w version=1$/),
    ]);
  });
});

test('closing ends the waiting, and a closed guard does nothing', async () => {
  host.fault = commandFailed('no');
  open();
  const kept = guard.keep('tun', TUN);
  await guard.close();
  await kept;
  await guard.keep('tun', TUN);
  monitor.say({ everything: true });
  expect(guard.stats().checks).toBeLessThanOrEqual(1);
});
