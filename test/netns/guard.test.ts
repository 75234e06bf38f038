import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type GuardedState, HostGuard, type GuardOptions } from '../../src/host/guard.js';
import { HostMonitor } from '../../src/host/monitor.js';
import { Address, Prefix } from '../../src/net/prefix.js';
import { NetNs } from '../support/netns.js';
import { nsRunner } from '../support/ns-runner.js';
import { until } from '../support/process.js';
import { missing } from '../support/requires.js';

const NETWORK = '10.42.0.0/16';

const TUN: GuardedState = {
  families: [4],
  links: [{ device: 'flannel0', up: true, mtu: 1472 }],
  addresses: [{ device: 'flannel0', address: Address.parse('10.42.7.0'), length: 32 }],
  routes: [{ destination: Prefix.parse(NETWORK), device: 'flannel0' }],
  mayDisplace: ({ protocol }) => protocol !== '111',
};

describe.skipIf(missing({ root: true, tun: true, commands: ['ip', 'sh'] }))('HostGuard on a real kernel', () => {
  let ns: NetNs;
  let monitor: HostMonitor;
  let guard: HostGuard;
  let said: string[];

  beforeEach(async () => {
    ns = await NetNs.create('wa', 'guard');
    await ns.ip('tuntap', 'add', 'flannel0', 'mode', 'tun');
    await ns.ip('tuntap', 'add', 'other0', 'mode', 'tun');
    await ns.ip('link', 'set', 'other0', 'up');
    said = [];
    monitor = new HostMonitor({ enter: ['ip', 'netns', 'exec', ns.name] });
    monitor.listen();
    // Its first burst asks for a look at everything: not one that a test should count.
    await new Promise<void>((resolve) => monitor.subscribe(({ everything }) => everything && resolve()));
  });

  afterEach(async () => {
    await guard.close();
    await monitor.close();
    await ns[Symbol.asyncDispose]();
  });

  const watch = async (options: Partial<GuardOptions> = {}, desired = TUN): Promise<void> => {
    guard = new HostGuard({
      runner: nsRunner(ns).runner,
      monitor,
      say: (level, _, message) => said.push(`${level}: ${message}`),
      ...options,
    });
    await guard.keep('tun', desired);
  };

  const routes = (): Promise<string> => ns.ip('-N', 'route', 'show');
  const right = async (): Promise<boolean> => {
    const [device] = JSON.parse(await ns.ip('-j', 'address', 'show', 'dev', 'flannel0')) as {
      mtu: number;
      flags: string[];
      addr_info: { local: string }[];
    }[];
    return (
      device?.mtu === 1472 &&
      device.flags.includes('UP') &&
      device.addr_info.some(({ local }) => local === '10.42.7.0') &&
      /^10\.42\.0\.0\/16 dev flannel0 proto 111 /m.test(await routes())
    );
  };
  const total = (): number => Object.values(guard.stats().driftRepaired).reduce((sum, count) => sum + count, 0);

  test('what is wanted for the first time is made, and is no drift', async () => {
    await watch();
    expect(await right()).toBe(true);
    expect(total()).toBe(0);
    expect(said).toEqual([]);
  });

  test.each([
    ['link down', ['link', 'set', 'flannel0', 'down'], { link: 1, route: 1 }, /flannel0 was down/],
    ['MTU', ['link', 'set', 'flannel0', 'mtu', '1300'], { link: 1 }, /mtu of flannel0 was 1300, not 1472/],
    [
      'address',
      ['address', 'del', '10.42.7.0/32', 'dev', 'flannel0'],
      { address: 1, route: 1 },
      /address 10\.42\.7\.0\/32 of flannel0 was missing/,
    ],
    ['route removed', ['route', 'del', NETWORK], { route: 1 }, /route 10\.42\.0\.0\/16 was missing/],
    [
      'route replaced',
      ['route', 'replace', NETWORK, 'dev', 'other0'],
      { route: 1 },
      /was replaced by another: route 10\.42\.0\.0\/16 dev other0/,
    ],
  ])('%s: repaired within a second, counted and told once', async (_, command, counts, told) => {
    await watch();
    // The state is asked for in other processes than the guard's: what counts is the guard's own clock.
    await ns.ip(...command);
    const before = performance.now();
    await until(() => total() > 0, { what: 'the repair', intervalMs: 5 });
    expect(performance.now() - before).toBeLessThan(1_000);
    expect(await right()).toBe(true);
    expect(guard.stats()).toMatchObject({ driftRepaired: counts, failing: [], fought: [] });
    expect(guard.stats().lastRepair?.what).toMatch(told);
    expect(said).toEqual([expect.stringMatching(/^warn: put right: /)]);
  });

  test('what foreign routes and devices do is nobody’s business', async () => {
    await watch();
    const { checks } = guard.stats();
    await ns.ip('address', 'add', '10.99.0.1/24', 'dev', 'other0');
    await ns.ip('route', 'add', '10.98.0.0/16', 'dev', 'other0');
    await ns.ip('link', 'set', 'other0', 'mtu', '1300');
    await ns.ip('route', 'del', NETWORK);
    await until(() => total() > 0, { what: 'the repair of ours' });
    expect(guard.stats().checks - checks).toBeLessThanOrEqual(2);
    expect(await routes()).toContain('10.98.0.0/16 dev other0');
    expect(total()).toBe(1);
  });

  test('a fight: repaired at growing distances, said once, over when the other stops', async () => {
    await watch({ fights: { repairs: 3, windowMs: 10_000, firstMs: 200, longestMs: 400, calmMs: 300 } });
    const fighter = ns.spawn('sh', ['-c', `while :; do ip route del ${NETWORK} 2>/dev/null; sleep 0.02; done`]);
    await until(() => guard.stats().fought.length > 0, { what: 'the fight to be seen' });
    const { repairs, at } = { repairs: total(), at: performance.now() };
    await until(() => total() >= repairs + 4, { what: 'more repairs' });
    // 4 more repairs, at 200, 400, 400 and 400 ms
    expect(performance.now() - at).toBeGreaterThan(1_000);
    expect(guard.stats().fought).toEqual([`tun route ${NETWORK} 0`]);
    await fighter.stop('SIGKILL');
    await until(() => guard.stats().fought.length === 0, { what: 'peace' });
    expect(await right()).toBe(true);
    expect(said.filter((line) => line.startsWith('error: somebody keeps undoing'))).toHaveLength(1);
    expect(said.filter((line) => line.startsWith('warn: put right'))).toHaveLength(3);
    expect(said.at(-1)).toMatch(/^info: nobody undoes route /);
  });

  test("two agents that want the same route: the other's live one is left alone and named", async () => {
    await watch();
    await ns.ip('route', 'replace', NETWORK, 'dev', 'other0', 'proto', '111');
    await until(() => guard.stats().failing.length > 0, { what: 'the failure to show' });
    expect(guard.stats().failing).toEqual([
      expect.stringMatching(/^route 10\.42\.0\.0\/16 dev other0 stands in the place of ours/),
    ]);
    expect(await routes()).toMatch(/^10\.42\.0\.0\/16 dev other0 proto 111 /m);
    await ns.ip('route', 'del', NETWORK);
    await until(right, { what: 'ours to be back' });
    await until(() => guard.stats().failing.length === 0, { what: 'the failure to be over' });
    expect(said).toEqual([
      expect.stringMatching(/^error: cannot be put right: route .* stands in the place/),
      expect.stringMatching(/^info: right again: /),
    ]);
  });

  test('a device that is gone is told once; what comes back is set up again', async () => {
    await watch();
    await ns.ip('link', 'del', 'flannel0');
    await until(() => guard.stats().failing.length > 0, { what: 'the failure' });
    await ns.ip('tuntap', 'add', 'flannel0', 'mode', 'tun');
    await until(right, { what: 'the device to be right' });
    await until(() => guard.stats().failing.length === 0, { what: 'the failure to be over' });
    expect(said.filter((line) => line.includes('device flannel0 is gone'))).toHaveLength(2);
  });

  test('drift that no event told of is found by the periodic look', async () => {
    await monitor.close();
    monitor = new HostMonitor({ enter: ['ip', 'netns', 'exec', `${ns.name}-none`] });
    monitor.listen();
    await watch({ periodMs: 200 });
    await ns.ip('link', 'set', 'flannel0', 'mtu', '1300');
    await until(right, { what: 'the repair' });
  });

  test('a part that is dropped, and a guard that is closed, repair nothing', async () => {
    await watch({ periodMs: 50 });
    await guard.drop('tun');
    await guard.keep('other', { families: [], links: [{ device: 'other0', mtu: 1400 }] });
    await ns.ip('link', 'set', 'flannel0', 'mtu', '1300');
    await ns.ip('link', 'set', 'other0', 'mtu', '1300');
    await until(() => total() > 0, { what: 'the repair of the other part' });
    expect(await right()).toBe(false);
    await guard.close();
    await ns.ip('link', 'set', 'other0', 'mtu', '1300');
    const { checks } = guard.stats();
    await guard.keep('tun', TUN);
    expect(guard.stats().checks).toBe(checks);
  });
});
