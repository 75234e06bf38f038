/**
 * The benchmark as a program: one quick round on real packets. Its figures mean nothing and are not looked at; the shape
 * of what it reports is, and that it cleans up after itself however it ends.
 */
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Document } from '../../bench/report/document.mjs';
import { Process, root, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const PROGRAMS = { root: true, commands: ['ip', 'bridge', 'ethtool', 'iperf3', 'cc'] };
const AGENT = { tun: true, files: ['dist/bundle/main.cjs', 'dist/index.js'] };

const start = (...args: string[]) => new Process(process.execPath, [`${root}/bench/main.mjs`, ...args]);

/** Namespaces of one run. */
const namespacesOf = (pid: number) =>
  existsSync('/run/netns')
    ? readdirSync('/run/netns').filter((name) => name.startsWith(`pwbench-${String(pid)}-`))
    : [];

/** Whether the process is there and no zombie. */
function running(pid: number): boolean {
  try {
    return !readFileSync(`/proc/${String(pid)}/stat`, 'utf8').includes(') Z ');
  } catch {
    return false;
  }
}

/** Direct descendants of a process that run `program`. */
function childrenOf(pid: number, program: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((candidate) => {
      try {
        const stat = readFileSync(`/proc/${String(candidate)}/stat`, 'utf8');
        const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
        return parent === pid && readFileSync(`/proc/${String(candidate)}/cmdline`, 'utf8').includes(program);
      } catch {
        return false;
      }
    });
}

describe.skipIf(missing({ ...PROGRAMS, ...AGENT }))('npm run bench', () => {
  let directory = '';
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), 'podwire-test-bench-'));
  });
  afterAll(() => {
    rmSync(directory, { recursive: true, force: true });
  });

  it('measures every contender on both underlays and writes one document', { timeout: 180_000 }, async () => {
    const file = join(directory, 'report.json');
    const args = ['throughput,pps,latency,agent', '--quick', '--rounds', '1', '--contenders', 'vxlan,podwire'];
    await using bench = start(...args, '--json', file);
    const { pid } = bench;
    const { code, stdout, stderr } = await bench.finished;
    expect(code, stdout + stderr).toBe(0);

    const document = JSON.parse(readFileSync(file, 'utf8')) as Document;
    expect(document.schema).toBe('podwire-bench/1');
    expect(document.problems).toEqual([]);
    expect(document.command).toEqual([...args, '--json', file]);
    expect(document.machine).toMatchObject({ node: process.version, cores: expect.any(Number) as number });
    expect(document.contenders.map(({ name }) => name)).toEqual(['vxlan', 'podwire']);
    for (const underlay of ['veth', 'nic'] as const) {
      for (const contender of ['vxlan', 'podwire']) {
        const rows = document.summary.filter((row) => row.underlay === underlay && row.contender === contender);
        const measured = new Map(rows.map((row) => [row.metric, row]));
        for (const metric of [
          'tcp1.gbps',
          'tcp4.cpuPerGB',
          'udp64.flood',
          'udp1392.flood',
          'ping.p50',
          'paced2000.p99',
        ]) {
          expect(measured.get(metric)?.value.median, `${underlay} ${contender} ${metric}`).toBeGreaterThan(0);
          if (contender === 'vxlan') expect(measured.get(metric)?.ratio?.median).toBe(1);
        }
        expect(measured.has('memory.peak')).toBe(contender === 'podwire');
      }
    }
    // What makes the second underlay a plain NIC, as ethtool saw it.
    expect(document.underlayFeatures['veth']).toMatchObject({ 'tx-udp_tnl-segmentation': 'on' });
    expect(document.underlayFeatures['nic']).toMatchObject({
      'tx-tcp-segmentation': 'off',
      'tx-udp-segmentation': 'off',
      'tx-udp_tnl-segmentation': 'off',
      'generic-receive-offload': 'on',
      'tx-checksum-ip-generic': 'on',
    });
    // A missed target is a verdict, not a failure: figures of a quick run may be anything.
    expect(new Set(document.targets.map(({ verdict }) => verdict)).size).toBeGreaterThan(1);
    expect(document.targets.find(({ title }) => title.startsWith('TCP, 1 stream, to vxlan'))).toMatchObject({
      underlay: 'veth',
      verdict: expect.stringMatching(/^(reached|missed)$/) as string,
    });
    expect(document.samples.some(({ values }) => values['gc.workers'] !== undefined)).toBe(true);
    expect(stdout).toContain('QUICK RUN');
    expect(stdout).toContain('UDP 64 B, flood (kpps)');
    expect(namespacesOf(pid)).toEqual([]);
  });

  it('measures vxlan in user space, also against the kernel’s device', { timeout: 120_000 }, async () => {
    const file = join(directory, 'backends.json');
    const names = ['vxlan', 'podwire-vxlan', 'podwire-to-vxlan', 'vxlan-to-podwire'];
    const args = ['throughput', '--quick', '--rounds', '1', '--underlay', 'veth', '--contenders', names.join()];
    await using bench = start(...args, '--json', file);
    const { code, stdout, stderr } = await bench.finished;
    expect(code, stdout + stderr).toBe(0);
    const document = JSON.parse(readFileSync(file, 'utf8')) as Document;
    expect(document.problems).toEqual([]);
    for (const contender of names) {
      const row = document.summary.find((one) => one.contender === contender && one.metric === 'tcp1.gbps');
      // Far below any machine's figure, far above what is left when superpackets are lost: a trickle of retransmissions.
      expect(row?.value.median, contender).toBeGreaterThan(0.2);
    }
  });
});

describe.skipIf(missing(PROGRAMS))('npm run bench, ended early', () => {
  it('cleans up on Ctrl-C, and no second run starts beside it', { timeout: 60_000 }, async () => {
    await using bench = start('latency', '--rounds', '1', '--underlay', 'veth', '--contenders', 'direct');
    await until(() => namespacesOf(bench.pid).length === 4, { what: 'the namespaces' });

    await using second = start('latency', '--quick', '--contenders', 'direct');
    const refused = await second.finished;
    expect(refused.code).toBe(1);
    expect(refused.stderr).toContain(`another benchmark is running (process ${String(bench.pid)}`);

    const { pid } = bench;
    const { code, stderr } = await bench.stop('SIGINT', 20_000);
    expect(code).toBe(1);
    expect(stderr).toContain('interrupted by SIGINT');
    expect(namespacesOf(pid)).toEqual([]);
  });

  it('removes what a killed run left, processes included', { timeout: 60_000 }, async () => {
    await using bench = start('latency', '--rounds', '1', '--underlay', 'veth', '--contenders', 'direct');
    const { pid } = bench;
    const orphans = await until(
      () => {
        const echoes = childrenOf(pid, 'rtt');
        return echoes.length > 0 ? echoes : undefined;
      },
      { what: 'a load tool' },
    );
    await bench.stop('SIGKILL');
    expect(namespacesOf(pid)).toHaveLength(4);

    await using next = start('latency', '--quick', '--rounds', '1', '--underlay', 'veth', '--contenders', 'direct');
    const { code, stderr } = await next.finished;
    expect(code, stderr).toBe(0);
    expect(stderr).toContain(`removing what the ended run ${String(pid)} left`);
    expect(namespacesOf(pid)).toEqual([]);
    expect(orphans.filter(running)).toEqual([]);
  });
});
