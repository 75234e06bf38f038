/**
 * `npm run bench -- control` as a program, quickly: that every figure is measured on a real etcd, and nothing is left.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { expect, describe, it } from 'vitest';
import type { Document } from '../../bench/report/document.mjs';
import { counterpart } from '../support/counterparts.js';
import { Process, root, until } from '../support/process.js';
import { missing } from '../support/requires.js';

const needs = {
  root: true,
  tun: true,
  commands: ['ip', 'bridge'],
  files: ['dist/bundle/main.cjs'],
  counterparts: ['etcd-3.6', 'flanneld'],
} as const;

const namespacesOf = (pid: number): string[] =>
  existsSync('/run/netns')
    ? readdirSync('/run/netns').filter((name) => name.startsWith(`pwbench-${String(pid)}-`))
    : [];

describe.skipIf(missing(needs))('npm run bench -- control', () => {
  const start = (...args: readonly string[]) => {
    const directories = [dirname(counterpart('etcd-3.6')), dirname(counterpart('flanneld')), process.env['PATH']];
    const env = { ...process.env, PODWIRE_BENCH_BIN: '', PATH: directories.join(':') };
    return new Process(process.execPath, [`${root}/bench/main.mjs`, 'control', ...args], { env });
  };

  it('measures starts, joins, leaves and 5,000 leases', { timeout: 120_000 }, async () => {
    const directory = mkdtempSync(join(tmpdir(), 'podwire-test-bench-'));
    try {
      const file = join(directory, 'report.json');
      await using bench = start('--quick', '--json', file);
      const { pid } = bench;
      const { code, stdout, stderr } = await bench.finished;
      expect(code, stdout + stderr).toBe(0);
      const document = JSON.parse(readFileSync(file, 'utf8')) as Document;
      expect(document.problems).toEqual([]);
      const measured = new Map(document.summary.map((row) => [`${row.contender} ${row.metric}`, row.value.median]));
      for (const contender of ['podwire', 'flanneld'])
        expect(measured.get(`${contender} control.start`)).toBeGreaterThan(0);
      for (const name of ['join', 'leave', 'seen', 'gone']) {
        expect(measured.get(`podwire control.${name}.p50`)).toBeGreaterThanOrEqual(0);
        expect(measured.get(`podwire control.${name}.p99`)).toBeGreaterThanOrEqual(
          measured.get(`podwire control.${name}.p50`)!,
        );
      }
      for (const name of ['agents', 'snapshot', 'snapshotStart', 'memory', 'memoryIdle', 'churn', 'churnLag']) {
        expect(measured.get(`podwire control.${name}`), name).toBeGreaterThan(0);
      }
      expect(measured.get('podwire control.churnLost')).toBeGreaterThanOrEqual(0);
      expect(document.targets.filter(({ verdict }) => verdict !== 'not measured')).toHaveLength(10);
      expect(stdout).toContain('cold start to subnet.env (ms)');
      expect(namespacesOf(pid)).toEqual([]);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });

  it('cleans up on Ctrl-C', { timeout: 60_000 }, async () => {
    await using bench = start();
    const { pid } = bench;
    await bench.output(/^control: start: 5 times podwire/m, { from: 'stderr', timeoutMs: 50_000 });
    const { code, stderr } = await bench.stop('SIGINT', 30_000);
    expect(code).toBe(1);
    expect(stderr).toContain('interrupted by SIGINT');
    expect(stderr).not.toContain('was left');
    await until(() => namespacesOf(pid).length === 0, { what: 'the namespaces to be gone' });
  });
});
