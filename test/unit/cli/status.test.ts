import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ControlSocket } from '../../../src/agent/control-socket.js';
import { agentStatus, type AgentStatus } from '../../../src/agent/status.js';
import { findAgents } from '../../../src/cli/status/find.js';
import { ratesOf } from '../../../src/cli/status/rates.js';
import { viewOf, type ViewOptions } from '../../../src/cli/status/view.js';
import { newLeaseCounts } from '../../../src/control/lease-counts.js';
import type { OverlayStatus } from '../../../src/index.js';
import { cli, Process, run, until, type Finished } from '../../support/process.js';
import { missing } from '../../support/requires.js';
import {
  engineStats,
  firewallStats,
  hostState,
  leaseOf,
  overlayStatus,
  peerStats,
  routed,
} from '../agent/fake-status.js';

const NOW = new Date('2030-01-01T12:00:00Z');
const STARTED = new Date(NOW.getTime() - 3_725_000);

function statusOf(more: Partial<OverlayStatus> = {}): AgentStatus {
  const expiresAt = new Date(NOW.getTime() + 7_230_000);
  const driftRepaired = { link: 0, address: 0, route: 0, neighbour: 0, fdb: 0, switch: 0 };
  const host = { ...hostState, driftRepaired, failing: [], reopened: 0 };
  const overlay = overlayStatus({ lease: leaseOf('10.42.7.0/24', '192.168.1.5', { expiresAt }), host, ...more });
  // As the control socket gives it.
  return JSON.parse(
    JSON.stringify(agentStatus({ version: '0.1.0', pid: 4711, startedAt: STARTED }, overlay)),
  ) as AgentStatus;
}

/** The text of a view with runs of spaces as two. */
function linesOf(status: AgentStatus, options: Partial<ViewOptions> = {}): string[] {
  return viewOf(status, { now: NOW, ...options }).map(({ text }) => text.replace(/ {2,}/g, '  '));
}

const traffic = { txPackets: 10, txBytes: 2048, rxPackets: 3, rxBytes: 300, lastHeardMs: 65_000 };
const refused = {
  lease: leaseOf('10.42.9.0/24', '10.42.1.1'),
  state: 'refused' as const,
  reason: 'its address 10.42.1.1 lies inside 10.42.0.0/16',
};

describe('the view', () => {
  test('has this host, then its peers, what is wrong first', () => {
    const probe = { state: 'ok', rttUs: 250, lossPermille: 31 } as const;
    const totals = { egressPackets: 10, egressBytes: 5_000_000, ingressPackets: 3, ingressBytes: 300, dropNoRoute: 4 };
    const status = statusOf({
      leases: [routed('10.42.8.0/24', '192.168.1.8'), refused],
      dataplane: engineStats(totals, [peerStats('192.168.1.8', { ...traffic, txDrops: 2, probe })]),
      store: { description: 'directory /x', ok: false, lastError: 'disk full' },
      firewall: firewallStats,
    });
    const lines = viewOf(status, { now: NOW });
    expect(linesOf(status)).toEqual([
      'podwire 0.1.0  pid 4711  up 1h 2m',
      'network  10.42.0.0/16  backend udp',
      'lease  10.42.7.0/24  public 192.168.1.5  expires in 2h',
      'device  flannel0  mtu 1472  over eth0 192.168.1.5 mtu 1500 (it has the default route)',
      'store  directory /x  FAILING: disk full',
      'firewall  nft  masquerade forward  ok  repaired 2 times',
      'workers  2 running, restarted 2 times',
      'packets  out 10 (4.8 MiB)  in 3 (300 B)',
      'drops  no route 4',
      '',
      'PEER  SUBNET  OUT  BYTES  IN  BYTES  DROPS  HEARD  RTT  LOSS  PATH MTU  STATE',
      '10.42.1.1  10.42.9.0/24  refused: its address 10.42.1.1 lies inside 10.42.0.0/16',
      '192.168.1.8  10.42.8.0/24  10  2.0 KiB  3  300 B  2 out 0 in  1m 5s ago  250 µs  3.1 %  1500  routed',
    ]);
    expect(lines.filter(({ tone }) => tone === 'bad').map(({ text }) => text.slice(0, 9).trim())).toEqual([
      'store',
      '10.42.1.1',
    ]);
  });

  test.each<[string, Partial<OverlayStatus>, RegExp]>([
    ['a lost lease', { leaseHeld: false }, /^lease .*LOST, acquiring again/m],
    ['a reservation', { lease: leaseOf('10.42.7.0/24', '192.168.1.5') }, /^lease .*reserved/m],
    [
      'a lease that has ended',
      { lease: leaseOf('10.42.7.0/24', '1.2.3.4', { expiresAt: new Date(NOW.getTime() - 60_000) }) },
      /EXPIRED 1m ago/,
    ],
    [
      'failed renewals',
      { counts: { ...newLeaseCounts(), renewFailures: 3, lost: 1, refusals: {} } },
      /3 renewals failed, lost 1 times/,
    ],
    [
      'a second host with our address',
      { counts: { ...newLeaseCounts(), refusals: {}, lastConflict: 'public IP is also used by b' } },
      /^CONFLICT +public IP is also used/m,
    ],
    [
      'a subnet file that is not written',
      { subnetFile: { path: '/run/x.env', written: false } },
      /^file +\/run\/x\.env NOT WRITTEN/m,
    ],
    [
      'a lease table',
      { store: { description: 's', ok: false, lastError: 'gone', tableOf: new Date(NOW.getTime() - 120_000) } },
      /FAILING: gone; forwarding by the lease table of 2m ago/,
    ],
    [
      'a broken firewall',
      { firewall: { ...firewallStats, state: 'failing', lastError: 'nft is missing' } },
      /FAILING: nft is missing/,
    ],
    [
      'repairs and what cannot be repaired',
      { host: hostState },
      /^host +repaired 4 route {2}data plane opened again 3 times\nPROBLEM +link flannel0$/m,
    ],
    [
      'a deaf host',
      { host: { ...hostState, monitor: { running: false, restarts: 9, overruns: 0 } } },
      /^host +changes of the host are noticed late/m,
    ],
    ['the kernel', { dataplane: undefined }, /^packets +carried by the kernel$/m],
    ['nobody else', {}, /^no other host has a lease$/m],
  ])('shows %s', (_, more, text) => {
    expect(linesOf(statusOf(more)).join('\n')).toMatch(text);
  });

  test('a host with two leases has its counts once, one with two addresses their sum', () => {
    const two = statusOf({
      leases: [routed('10.42.8.0/24', '192.168.1.8'), routed('10.42.18.0/24', '192.168.1.8')],
      dataplane: engineStats({}, [peerStats('192.168.1.8', traffic)]),
    });
    expect(linesOf(two).slice(-2)).toEqual([
      '192.168.1.8  10.42.8.0/24  10  2.0 KiB  3  300 B  0  1m 5s ago  1500  routed',
      '192.168.1.8  10.42.18.0/24  routed',
    ]);
    const dual = { ...two, leases: [{ ...two.leases[0]!, publicIpv6: 'fd00::8' }] };
    const peers = [
      peerStats('192.168.1.8', traffic),
      peerStats('fd00::8', { ...traffic, lastHeardMs: 500, pathMtu: 1400 }),
    ];
    expect(linesOf({ ...dual, dataplane: { ...dual.dataplane!, peers } }).slice(-1)).toEqual([
      '192.168.1.8  10.42.8.0/24  20  4.0 KiB  6  600 B  0  now  1400  routed',
    ]);
  });

  test.each([
    [{ state: 'no-probe', lossPermille: 1000 } as const, 'never  no probe'],
    [{ state: 'unanswered', rttUs: 20, lossPermille: 1000 } as const, 'never  no answer  100 %'],
    [{ state: 'ok', rttUs: 12_345, lossPermille: 0 } as const, 'idle  12.3 ms  0 %'],
  ])('a probe that is %j reads %s', (probe, text) => {
    const status = statusOf({
      leases: [routed('10.42.8.0/24', '192.168.1.8')],
      dataplane: engineStats({}, [peerStats('192.168.1.8', { probe })]),
    });
    expect(linesOf(status).at(-1)).toContain(`${text}  1500`);
  });

  test('fits any width: columns give way, the reason last', () => {
    const status = statusOf({
      leases: [routed('10.42.8.0/24', '192.168.1.8'), refused],
      dataplane: engineStats({}, [peerStats('192.168.1.8', traffic)]),
    });
    const titles = (width: number): string => linesOf(status, { width }).find((line) => line.startsWith('PEER')) ?? '';
    expect(titles(113)).toBe('PEER  SUBNET  BYTES  BYTES  HEARD  STATE');
    expect(titles(90)).toBe('PEER  SUBNET  STATE');
    for (let width = 1; width < 160; width++) {
      for (const { text } of viewOf(status, { now: NOW, width })) expect(text.length).toBeLessThanOrEqual(width);
    }
  });

  test('fits any height: what is wrong and the busiest stay', () => {
    const hosts = Array.from({ length: 50 }, (_, i) => i + 10);
    const status = (packets: number): AgentStatus =>
      statusOf({
        leases: [...hosts.map((i) => routed(`10.42.${i}.0/24`, `192.168.1.${i}`)), refused],
        dataplane: engineStats(
          {},
          hosts.map((i) => peerStats(`192.168.1.${i}`, { txBytes: i === 33 ? packets * 1000 : 0 })),
        ),
      });
    const rates = ratesOf(status(0), status(5), 1);
    const lines = linesOf(status(5), { height: 14, rates });
    expect(lines).toHaveLength(14);
    const rows = lines.slice(lines.findIndex((line) => line.startsWith('PEER')) + 1);
    expect(rows[0]).toMatch(/^10\.42\.1\.1 .*refused/);
    expect(rows[1]).toMatch(/^192\.168\.1\.33 .*40\.0 kbit\/s/);
    expect(rows.at(-1)).toBe(`… and ${51 - (rows.length - 1)} more`);
  });
});

describe('rates', () => {
  const at = (tx: number, drops: number, startedAt = STARTED): AgentStatus => ({
    ...statusOf({
      leases: [routed('10.42.8.0/24', '192.168.1.8')],
      dataplane: engineStats({ egressBytes: tx * 100, egressPackets: tx, dropNoRoute: drops }, [
        peerStats('192.168.1.8', { txBytes: tx * 100, txPackets: tx }),
      ]),
    }),
    startedAt: startedAt.toISOString(),
  });

  test('are what grew, over the time between', () => {
    const rates = ratesOf(at(100, 0), at(300, 8), 2)!;
    expect(rates.total).toEqual({ egressBits: 80_000, ingressBits: 0, egressPackets: 100, ingressPackets: 0 });
    expect(rates.peers.get('192.168.1.8 8285')).toMatchObject({ egressBits: 80_000 });
    expect(rates.drops).toEqual({ dropNoRoute: 4 });
    expect(linesOf(at(300, 8), { rates })).toEqual(
      expect.arrayContaining([
        'packets  out 300 (29.3 KiB), 80.0 kbit/s, 100 packets/s  in 0 (0 B), 0 bit/s, 0 packets/s',
        'drops  no route 8 (+4/s)',
      ]),
    );
  });

  test('of a peer that came back begin at zero, and there are none across a restart', () => {
    expect(ratesOf(at(300, 8), at(50, 8), 1)!.total.egressPackets).toBe(50);
    expect(ratesOf(at(100, 0), at(300, 0, NOW), 1)).toBeUndefined();
    expect(ratesOf(statusOf({ dataplane: undefined }), statusOf(), 1)).toBeUndefined();
  });
});

describe.skipIf(missing({ files: ['dist/bundle/main.cjs'] }))('the command', { timeout: 60_000 }, () => {
  let directory: string;
  let path: string;
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'pw-status-'));
    path = join(directory, 'podwire-subnet.sock');
  });
  afterAll(async () => await rm(directory, { recursive: true }));
  const podwire = (...args: readonly string[]): Promise<Finished> => run(process.execPath, [cli, 'status', ...args]);

  test('--json is the document and nothing else; without it a table that says the same', async () => {
    const status = statusOf({ leases: [routed('10.42.8.0/24', '192.168.1.8')] });
    await using _socket = await ControlSocket.open(path, { '/v1/status': () => status });
    const json = await podwire('--json', `--control-socket=${path}`);
    expect([json.code, json.stderr, JSON.parse(json.stdout)]).toEqual([0, '', status]);
    const shown = await podwire(`--subnet-file=${join(directory, 'subnet.env')}`);
    expect([shown.code, shown.stderr]).toEqual([0, '']);
    expect(shown.stdout).toMatch(/^podwire 0\.1\.0 {2}pid 4711/);
    expect(shown.stdout).toMatch(/^192\.168\.1\.8 +10\.42\.8\.0\/24 .*routed$/m);
    expect(shown.stdout).not.toContain('\u001b');
  });

  test('no agent, or one that starts: one line, exit 1', async () => {
    await using _socket = await ControlSocket.open(path, { '/v1/status': () => undefined });
    for (const args of [[], ['--json'], ['--watch']]) {
      const starting = await podwire(...args, `--control-socket=${path}`);
      expect(starting).toMatchObject({ code: 1, stdout: '' });
      expect(starting.stderr).toMatch(/^podwire: the agent at .* has no answer: the agent is starting\n$/);
      const none = await podwire(...args, `--control-socket=${join(directory, 'none.sock')}`);
      expect(none).toMatchObject({ code: 1, stdout: '' });
      expect(none.stderr).toMatch(/^podwire: no agent runs at .*none\.sock: start one with podwire agent, .*\n$/);
    }
  });

  test.each(['0', '-1', 'x', '1e3', '99999'])('--watch=%s is a usage error', async (seconds) => {
    const finished = await podwire(`--watch=${seconds}`, `--control-socket=${path}`);
    expect([finished.code, finished.stdout]).toEqual([2, '']);
    expect(finished.stderr).toMatch(/^podwire: --watch "[^"]*" is not a number of seconds from 0\.1 to 3600\n$/);
  });

  test('--watch goes on when the agent is started again, and ends well', async () => {
    let packets = 0;
    const routes = {
      '/v1/status': () => {
        packets += 1000;
        return statusOf({ dataplane: engineStats({ egressPackets: packets, egressBytes: packets * 100 }) });
      },
    };
    const socket = await ControlSocket.open(path, routes);
    await using watch = new Process(process.execPath, [cli, 'status', '--watch=0.1', `--control-socket=${path}`]);
    await watch.output(/out 1000 [^\n]*\n[\s\S]*out 2000 [^\n]* packets\/s/);
    await socket.close();
    await watch.output(/^podwire: no agent runs at .*; waiting for it\n$/, { from: 'stderr' });
    const looks = watch.stdout.length;
    await using _again = await ControlSocket.open(path, routes);
    await until(() => watch.stdout.length > looks, { what: 'the next look' });
    watch.child.kill('SIGINT');
    expect(await watch.finished).toMatchObject({ code: 0, stderr: expect.stringMatching(/^[^\n]*\n$/) as string });
  });

  test('--watch --json is one document a line', async () => {
    await using _socket = await ControlSocket.open(path, { '/v1/status': () => statusOf() });
    await using watch = new Process(process.execPath, [
      cli,
      'status',
      '--json',
      '--watch',
      '0.1',
      `--control-socket=${path}`,
    ]);
    await watch.output(/\n.*\n.*\n/);
    const lines = watch.stdout.split('\n').slice(0, 3);
    expect(lines.map((line) => JSON.parse(line) as AgentStatus)).toEqual([statusOf(), statusOf(), statusOf()]);
  });

  test('with several agents they are listed, to choose one by', async () => {
    // In directories nobody knows, and one of them starting; the network namespace of this process may have others.
    const [one, two] = [join(directory, 'one'), join(directory, 'two')];
    for (const each of [one, two]) await mkdir(each);
    await writeFile(join(one, 'podwire-stale.sock'), '');
    await using _one = await ControlSocket.open(join(one, 'podwire-subnet.sock'), { '/v1/status': () => statusOf() });
    await using _two = await ControlSocket.open(join(two, 'podwire-b.sock'), { '/v1/status': () => undefined });
    const ours = (await findAgents()).filter(({ controlSocket }) => controlSocket.startsWith(directory));
    expect(ours).toEqual([
      { controlSocket: join(one, 'podwire-subnet.sock'), status: statusOf() },
      { controlSocket: join(two, 'podwire-b.sock') },
    ]);
    const list = await podwire();
    expect([list.code, list.stderr]).toEqual([0, '']);
    expect(list.stdout).toMatch(/^CONTROL SOCKET +PID/);
    expect(list.stdout).toMatch(/one\/podwire-subnet\.sock +4711 +10\.42\.0\.0\/16 +10\.42\.7\.0\/24 +flannel0/);
    expect(list.stdout).toMatch(/two\/podwire-b\.sock +starting\n/);
    expect(list.stdout).toMatch(/choose one with --control-socket or --subnet-file\n$/);
    for (const option of ['--json', '--watch']) {
      const refused = await podwire(option);
      expect(refused).toMatchObject({ code: 1, stdout: '' });
      expect(refused.stderr).toMatch(/^podwire: \d+ agents run here: choose one with --control-socket, of .*\n$/);
    }
    const listed = JSON.parse((await podwire('--list', '--json')).stdout) as { schema: string; agents: unknown[] };
    expect(listed.schema).toBe('podwire-agents/1');
    expect(listed.agents).toEqual(expect.arrayContaining([...ours]));
  });

  test('agents are found in one order, whatever order the kernel lists them in', async () => {
    const open = (name: string): Promise<ControlSocket> =>
      ControlSocket.open(join(directory, name, 'podwire-x.sock'), { '/v1/status': () => undefined });
    await using _q = await open('q');
    await using _p = await open('p');
    await using _r = await open('r');
    const line = (name: string): string =>
      `0000: 00000002 00000000 00010000 0001 01 7 ${directory}/${name}/.pw0123abcd`;
    const expected = ['p', 'q', 'r'].map((name) => join(directory, name, 'podwire-x.sock'));
    for (const order of [
      ['p', 'q', 'r'],
      ['r', 'q', 'p'],
      ['q', 'r', 'p', 'q'],
    ]) {
      await writeFile(join(directory, 'list'), `Num RefCount Path\n${order.map(line).join('\n')}\n`);
      const found = (await findAgents(join(directory, 'list'))).map(({ controlSocket }) => controlSocket);
      expect(found.filter((each) => each.startsWith(directory))).toEqual(expected);
    }
  });

  test.each([
    ['of another version', { schema: 'podwire-status/9' }, '"podwire-status/9"'],
    ['that is something else', { pid: 7 }, 'no podwire status'],
  ])('an agent %s is said to be one', async (_name, answer, said) => {
    const other = join(directory, 'other', 'podwire-other.sock');
    await using _socket = await ControlSocket.open(other, { '/v1/status': () => answer });
    const problem = `${other} answers with ${said}, not "podwire-status/1": use the podwire command of the agent's own version`;
    expect(await podwire(`--control-socket=${other}`)).toMatchObject({
      code: 1,
      stdout: '',
      stderr: `podwire: ${problem}\n`,
    });
    const list = await podwire('--list');
    expect(list).toMatchObject({ code: 0, stdout: expect.stringMatching(/podwire-other\.sock +no answer/) as string });
    expect(list.stderr).toContain(`podwire: ${problem}\n`);
    const { agents } = JSON.parse((await podwire('--list', '--json')).stdout) as { agents: unknown[] };
    expect(agents).toContainEqual({ controlSocket: other, problem });
  });
});
