import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { LabReport } from '../../src/cli/lab/report.js';
import { RoutesOverlay } from '../support/lab-routes.js';
import { cli, ok, Process, root, run, until } from '../support/process.js';
import { missing } from '../support/requires.js';

type RunModule = typeof import('../../src/cli/lab/run.js');
type ViewModule = typeof import('../../src/cli/lab/view.js');

const NAMES = [
  'ping',
  'tcp',
  'udp',
  'mtu',
  'beyond-mtu',
  'fragments',
  'source-address',
  'node-to-pod',
  'unreachable',
  'flow-stays',
  'join',
  'leave',
  'traffic',
  'drops',
];

function lab(...args: readonly string[]): Process {
  return new Process(process.execPath, [cli, 'lab', ...args]);
}

async function namespacesOf(pid: number): Promise<readonly string[]> {
  const listed = await ok('ip', ['netns', 'list']);
  return listed.split('\n').filter((line) => line.startsWith(`pwlab-${String(pid)}-`));
}

function directoriesOf(pid: number): readonly string[] {
  return readdirSync('/run').filter((name) => name.startsWith(`podwire-lab-${String(pid)}-`));
}

/** The processes whose command line names the run's directory: its agents. */
async function agentsOf(pid: number): Promise<readonly string[]> {
  return (await run('pgrep', ['-f', `/run/podwire-lab-${String(pid)}-`])).stdout.split('\n').filter(Boolean);
}

async function expectNothingLeft(pid: number): Promise<void> {
  expect(await namespacesOf(pid)).toEqual([]);
  expect(directoriesOf(pid)).toEqual([]);
  expect(await agentsOf(pid)).toEqual([]);
}

const needs = { root: true, tun: true, commands: ['ip', 'pgrep'], files: ['dist/bundle/main.cjs'] };

describe.skipIf(missing(needs))('podwire lab', () => {
  it('prints one document, every check holds, nothing is left', async () => {
    await using child = lab('--json', '--duration', '3', '--workers', '2');
    const result = await child.finished;
    const report = JSON.parse(result.stdout) as LabReport;
    expect(report.checks.filter((check) => !check.ok)).toEqual([]);
    expect(report.checks.map((check) => check.name)).toEqual(NAMES);
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(report.ok).toBe(true);
    expect(report.figures?.seconds).toBeGreaterThanOrEqual(3);
    expect(report.figures?.tcpGbitPerSecond).toBeGreaterThan(0.1);
    expect(report.figures?.rttIdleUs?.count).toBeGreaterThan(10);
    expect(report.hosts).toHaveLength(2);
    for (const host of report.hosts) {
      expect(host.netns).toMatch(new RegExp(`^pwlab-${String(child.pid)}-.*h[12]$`));
      expect(host.address).toMatch(/^172\.30\.0\.[12]$/);
      expect(host.subnet).toMatch(/^10\.42\.\d+\.0\/24$/);
      expect(host.pods).toHaveLength(1);
      expect(host.pods[0]?.address).toBe(host.subnet.replace(/0\/24$/, '2'));
    }
    await expectNothingLeft(child.pid);
  });

  it('writes plain lines when not on a terminal', async () => {
    await using child = lab('--duration', '1');
    const { code, stdout } = await child.finished;
    expect(stdout).not.toContain('\u001b');
    expect(stdout).toMatch(/^ +\d+ s +[\d.]+ [GMk]?bit\/s +[\d.]+ [Mk]?packets\/s +RTT .* leases 2 +drops /m);
    expect(stdout).toMatch(/\nPASSED: all 14 checks held\n$/);
    expect(code).toBe(0);
  });

  it('removes everything on Ctrl-C, while it builds and while it runs', async () => {
    for (const moment of [/^podwire lab: 2 hosts/m, /^ok +tcp/m]) {
      await using child = lab('--duration', '30');
      await child.output(moment);
      const { code } = await child.stop('SIGINT');
      expect(code).toBe(130);
      await expectNothingLeft(child.pid);
    }
  });

  it('is held until it is asked to stop, and then ends with its verdict', async () => {
    await using child = lab('--json', '--hold', '--duration', '1');
    await child.output(/^}$/m, { timeoutMs: 40_000 });
    const { commands } = JSON.parse(child.stdout) as LabReport;
    const ping = commands?.find((command) => command.includes(' ping ')) ?? '';
    const status = commands?.find((command) => command.includes(' status ')) ?? '';
    expect(await ok('sh', ['-c', status])).toContain('network    10.42.0.0/16  backend udp');
    expect(ping).toMatch(/^ip netns exec pwlab-\S+-h1-pod ping 10\.42\.\d+\.2$/);
    const { code, stdout } = await child.stop('SIGTERM');
    expect(code).toBe(0);
    expect(() => JSON.parse(stdout) as unknown).not.toThrow();
    await expectNothingLeft(child.pid);
  });

  it('removes what a killed run left, and leaves a running one alone', async () => {
    await using held = lab('--json', '--hold', '--duration', '1');
    await held.output(/^}$/m, { timeoutMs: 40_000 });
    await using killed = lab('--duration', '30');
    await killed.output(/^ok +ping/m);
    await killed.stop('SIGKILL');
    expect((await namespacesOf(killed.pid)).length).toBeGreaterThan(0);
    expect(await agentsOf(killed.pid)).toHaveLength(2);
    await using next = lab('--duration', '30');
    await next.output(/^removed what an earlier run left: .*pwlab-/m);
    await expectNothingLeft(killed.pid);
    await next.stop('SIGINT');
    expect((await namespacesOf(held.pid)).length).toBe(5);
    expect(await agentsOf(held.pid)).toHaveLength(2);
    await held.stop('SIGINT');
  });

  it('says which agent died, and why it cannot go on', async () => {
    await using child = lab('--json', '--duration', '30');
    const agents = await until(
      async () => {
        const pids = await agentsOf(child.pid);
        return pids.length === 2 && (await namespacesOf(child.pid)).length === 5 ? pids : undefined;
      },
      { what: 'both agents and pods', timeoutMs: 20_000 },
    );
    process.kill(Number(agents[1]), 'SIGKILL');
    const { code, stdout, stderr } = await child.finished;
    expect(code).toBe(1);
    expect(stderr).toMatch(/^podwire: the agent of host [12] ended \(SIGKILL\): [^\n]+\n$/);
    expect(JSON.parse(stdout)).toMatchObject({
      ok: false,
      error: expect.stringContaining('ended (SIGKILL)') as unknown,
    });
    await expectNothingLeft(child.pid);
  });
});

describe.skipIf(missing({ ...needs, commands: ['ip', 'iptables'] }))('the lab itself, on plain kernel routes', () => {
  // The built modules, because the traffic programs are files beside them.
  const load = async () => ({
    ...((await import(`${root}/dist/cli/lab/run.js`)) as RunModule),
    ...((await import(`${root}/dist/cli/lab/view.js`)) as ViewModule),
  });

  const runOn = async (overlay: RoutesOverlay): Promise<LabReport> => {
    const { runLab, silentView } = await load();
    const signal = new AbortController().signal;
    const report = (): void => {};
    const hooks = { overlay: () => Promise.resolve(overlay), view: silentView, report, signal };
    return await runLab({ durationSeconds: 1, hosts: 3, hold: false }, hooks);
  };

  it('holds every check where packets are simply routed', async () => {
    const report = await runOn(new RoutesOverlay());
    expect(report.checks.filter((check) => !check.ok)).toEqual([]);
    expect(report.checks.map((check) => check.name)).toEqual(NAMES);
    await expectNothingLeft(process.pid);
  });

  it('notices rewritten sources, a wrong MTU, hopping flows and a route that stays', async () => {
    const report = await runOn(new RoutesOverlay(['nat', 'mtu', 'hops', 'sticky']));
    const failed = report.checks.filter((check) => !check.ok).map((check) => check.name);
    expect(failed).toEqual(['beyond-mtu', 'source-address', 'flow-stays', 'leave']);
    expect(report.ok).toBe(false);
    await expectNothingLeft(process.pid);
  });
});
