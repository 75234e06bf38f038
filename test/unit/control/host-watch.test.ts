import { afterEach, beforeEach, expect, test } from 'vitest';
import { HostWatch } from '../../../src/control/host-watch.js';
import type { Logger } from '../../../src/dataplane/logger.js';
import type { SelectedInterface } from '../../../src/host/select-interface.js';
import { Address, Prefix } from '../../../src/net/prefix.js';
import { until } from '../../support/process.js';
import { QuietGuard, QuietMonitor } from '../../support/quiet-host.js';
import { fakeIp, link } from '../host/fake-ip.js';

const chosen = (name: string, address: string): SelectedInterface => ({
  name,
  index: 2,
  mtu: 1500,
  address: Address.parse(address),
  address6: undefined,
  publicIp: Address.parse(address),
  publicIpv6: undefined,
  why: 'a test says so',
});

let monitor: QuietMonitor;
let guard: QuietGuard;
let said: string[];
let moves: string[];
let answer: SelectedInterface;
let devices: unknown[];
let changes: number;
let watch: HostWatch;

beforeEach(() => {
  monitor = new QuietMonitor();
  guard = new QuietGuard();
  said = [];
  moves = [];
  answer = chosen('eth0', '10.0.0.1');
  devices = [link('eth0', 2, ['10.0.0.1'])];
  changes = 0;
});

afterEach(() => watch.close());

const logger = Object.fromEntries(
  ['debug', 'info', 'warn', 'error'].map((level) => [
    level,
    (_: object, message: string) => void said.push(`${level}: ${message}`),
  ]),
) as unknown as Logger;

const open = (device: string): void => {
  watch = new HostWatch({
    runner: fakeIp({ '-j -d address show': () => devices }).runner,
    monitor,
    guard,
    logger,
    networks: [Prefix.parse('10.42.0.0/16')],
    underlay: answer,
    select: async () => answer,
    followsRoutes: false,
    own: () => ({ subnets: [Prefix.parse('10.42.7.0/24')], device }),
    onMove: (_, what) => moves.push(what),
    onHostChanged: async () => void changes++,
  });
};

test.each(['flannel0', 'eth0'])(
  'an underlay address is followed when the device of the overlay is %s',
  async (device) => {
    open(device);
    answer = chosen('eth0', '10.0.0.9');
    monitor.say({ addresses: new Set(['eth0']) });
    await until(() => moves.length > 0, { what: 'the move' });
    await until(() => changes > 0, { what: 'the news for the backend' });
    // And from the interface that it moved to.
    answer = chosen('eth1', '10.1.0.1');
    monitor.say({ addresses: new Set(['eth1']) });
    await until(() => moves.length > 1, { what: 'the second move' });
    expect(moves[1]).toMatch(/^name eth0 -> eth1, /);
  },
);

test('what happens to the overlay’s own device is no news', async () => {
  open('flannel0');
  const own = new Set(['flannel0']);
  monitor.say({ links: own, addresses: own, routeDevices: own, destinations: new Set(['10.42.0.0/16']) });
  monitor.say({ addresses: new Set(['eth0']) });
  await until(() => changes > 0, { what: 'the news of another device' });
  expect(changes).toBe(1);
});

test('a bridge with a stray address is told, shown, and told again when it is gone', async () => {
  open('flannel0');
  devices.push(link('cni0', 5, ['10.42.9.1']), link('flannel0', 6, ['10.42.8.0']));
  monitor.say({ addresses: new Set(['cni0']) });
  await until(() => watch.state({ reopened: 2, problems: [] }).problems.length > 0, { what: 'the problem' });
  expect(watch.state({ reopened: 2, problems: [] })).toMatchObject({
    reopened: 2,
    problems: [expect.stringMatching(/^cni0 has 10\.42\.9\.1\/24/)],
  });
  devices.length = 1;
  monitor.say({ addresses: new Set(['cni0']) });
  await until(() => watch.state({ reopened: 2, problems: [] }).problems.length === 0, { what: 'its end' });
  expect(said).toEqual([expect.stringMatching(/^error: cni0 has/), 'info: no more: cni0 has 10.42.9.1/24']);
});

test('closing closes guard and monitor', async () => {
  open('flannel0');
  await watch.keepForwarding([4, 6]);
  expect(guard.parts.get('forwarding')?.switches?.map(({ path }) => path)).toEqual([
    'net/ipv4/ip_forward',
    'net/ipv6/conf/all/forwarding',
  ]);
  await watch.close();
  expect([guard.closed, monitor.closed]).toEqual([true, true]);
});
