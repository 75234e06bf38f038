import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import type { SelectedInterface } from '../../../src/host/select-interface.js';
import { UnderlayWatch, type UnderlayWatchOptions } from '../../../src/host/underlay-watch.js';
import { Address } from '../../../src/net/prefix.js';
import { until } from '../../support/process.js';
import { QuietMonitor } from '../../support/quiet-host.js';
import { fakeIp, link } from './fake-ip.js';

const chosen = (address: string, more: Partial<SelectedInterface> = {}): SelectedInterface => ({
  name: 'eth0',
  index: 2,
  mtu: 1500,
  address: Address.parse(address),
  address6: undefined,
  publicIp: Address.parse(address),
  publicIpv6: undefined,
  why: 'a test says so',
  ...more,
});

let monitor: QuietMonitor;
let said: string[];
let moves: string[];
let answer: SelectedInterface | Error;
let flags: string[];
let present: boolean;
let looks: number;
let watch: UnderlayWatch;

beforeEach(() => {
  monitor = new QuietMonitor();
  said = [];
  moves = [];
  answer = chosen('10.0.0.1');
  flags = ['UP', 'LOWER_UP'];
  present = true;
  looks = 0;
});

afterEach(() => watch.close());

const open = (more: Partial<UnderlayWatchOptions> = {}): void => {
  watch = new UnderlayWatch({
    runner: fakeIp({
      '-j -d address show': () => (present ? [link('eth0', 2, ['10.0.0.1'], { flags })] : [link('lo', 1, [])]),
    }).runner,
    monitor,
    current: chosen('10.0.0.1'),
    select: async () => {
      looks++;
      if (answer instanceof Error) throw answer;
      return answer;
    },
    isOurs: (device) => device === 'flannel0',
    followsRoutes: false,
    onMove: (_, changes) => moves.push(changes),
    say: (level, _, message) => said.push(`${level}: ${message}`),
    settleMs: 10,
    ...more,
  });
};
const look = async (events: Parameters<QuietMonitor['say']>[0] = { everything: true }): Promise<void> => {
  const before = looks;
  monitor.say(events);
  await until(() => (looks > before ? true : undefined), { what: 'a look' });
};

test('another answer is told with what is different, once', async () => {
  open();
  await look();
  expect(moves).toEqual([]);
  answer = chosen('10.0.0.9', { mtu: 1400 });
  await look({ addresses: new Set(['eth0']) });
  await look({ links: new Set(['eth0']) });
  await until(() => moves.length > 0, { what: 'the move' });
  await look();
  expect(moves).toEqual(['mtu 1500 -> 1400, address 10.0.0.1 -> 10.0.0.9, publicIp 10.0.0.1 -> 10.0.0.9']);
});

test('a change of several steps is one look, at its end', async () => {
  open({ settleMs: 50 });
  answer = new PodwireError('INTERFACE', 'no address');
  monitor.say({ addresses: new Set(['eth0']) });
  answer = chosen('10.0.0.9');
  for (let i = 0; i < 5; i++) monitor.say({ addresses: new Set(['eth0']) });
  await until(() => moves.length === 1, { what: 'the move' });
  expect([looks, said]).toEqual([1, []]);
});

test('no answer changes nothing, is told once, and again when there is one', async () => {
  open();
  answer = new PodwireError('INTERFACE', 'there is no IPv4 default route');
  await look();
  await look();
  await until(() => said.length > 0, { what: 'the warning' });
  expect(said).toEqual([
    'warn: the underlay cannot be chosen again, the old one stays in use: there is no IPv4 default route',
  ]);
  expect(watch.problems).toEqual(['the underlay cannot be chosen again: there is no IPv4 default route']);
  answer = chosen('10.0.0.1');
  await look();
  await until(() => watch.problems.length === 0, { what: 'the end of the problem' });
  expect(said.slice(1)).toEqual(['info: the underlay can be chosen again']);
  expect(moves).toEqual([]);
});

test.each([
  ['down', [], true],
  ['without carrier', ['UP', 'NO-CARRIER'], true],
  ['gone', [], false],
])('an interface that is %s is told, and told again when it is up', async (state, itsFlags, isPresent) => {
  open();
  flags = itsFlags;
  present = isPresent;
  await look();
  await look();
  expect(said).toEqual([`error: the underlay interface eth0 is ${state}: no packet leaves this host through it`]);
  expect(watch.problems).toEqual([`the underlay interface eth0 is ${state}`]);
  flags = ['UP', 'LOWER_UP'];
  present = true;
  await look();
  expect(said.slice(1)).toEqual(['info: the underlay interface eth0 is up again']);
  expect(watch.problems).toEqual([]);
});

describe('what is looked at', () => {
  test('not: our own device, other links, routes to elsewhere', async () => {
    open();
    monitor.say({ addresses: new Set(['flannel0']) });
    monitor.say({ links: new Set(['veth1']), neighbours: new Set(['eth0']), destinations: new Set(['10.9.0.0/16']) });
    await look({ destinations: new Set(['default']) });
    expect(looks).toBe(1);
  });

  test('every route, where the choice hangs on one', async () => {
    open({ followsRoutes: true });
    await look({ destinations: new Set(['10.9.0.0/16']) });
  });

  test('without an event, now and then', async () => {
    open({ periodMs: 20 });
    await until(() => looks >= 2, { what: 'two looks' });
  });
});
