import { dirname } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { LabReport } from '../../src/cli/lab/report.js';
import { findCounterpart } from '../support/counterparts.js';
import { cli, Process } from '../support/process.js';
import { missing } from '../support/requires.js';

const NEEDS = {
  root: true,
  tun: true,
  commands: ['ip', 'bridge', 'ping', 'wg'],
  counterparts: ['wireguard-go'] as const,
  files: ['dist/bundle/main.cjs'],
};
const SECOND = ['ping', 'tcp', 'udp', 'mtu', 'fragments', 'source-address', 'node-to-pod'].map((name) => `${name}-v6`);

describe.skipIf(missing(NEEDS))('podwire lab with every way from host to host', () => {
  it.each([
    [['--backend', 'vxlan', '--dual-stack'], 21, SECOND],
    [['--backend', 'vxlan-kernel', '--dual-stack'], 19, SECOND],
    [['--backend', 'host-gw', '--ipv6'], 12, []],
    [['--backend', 'wireguard'], 12, []],
    [['--backend', 'extension'], 12, []],
  ])('%j: all checks hold', async (args, count, also) => {
    const path = [dirname(findCounterpart('wireguard-go') ?? '/'), process.env['PATH']].join(':');
    const all = [cli, 'lab', '--json', '--duration', '1', '--workers', '1', ...args];
    await using child = new Process(process.execPath, all, { env: { ...process.env, PATH: path } });
    const { stdout, stderr } = await child.finished;
    expect(stderr).toBe('');
    const report = JSON.parse(stdout) as LabReport;
    expect(report.checks.filter((check) => !check.ok)).toEqual([]);
    const names = report.checks.map(({ name }) => name);
    expect(names).toHaveLength(count);
    expect(names).toEqual(expect.arrayContaining([...also]));
  });
});
