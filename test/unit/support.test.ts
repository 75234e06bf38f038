import { afterEach, describe, expect, it, vi } from 'vitest';
import { NetNs, veth } from '../support/netns.js';
import { ok, Process, run, until } from '../support/process.js';
import { missing } from '../support/requires.js';

describe('until', () => {
  it('returns the first value that is neither undefined nor false', async () => {
    const values = [undefined, false, 0];
    expect(await until(() => values.shift(), { what: 'a value', intervalMs: 1 })).toBe(0);
  });

  it('names what it waited for when time is up', async () => {
    await expect(until(() => false, { what: 'rain', timeoutMs: 5, intervalMs: 1 })).rejects.toThrow('in vain for rain');
  });
});

describe('Process', () => {
  it('collects output and the exit code', async () => {
    expect(await run('sh', ['-c', 'echo out; echo err >&2; exit 3'])).toEqual({
      code: 3,
      signal: null,
      stdout: 'out\n',
      stderr: 'err\n',
    });
  });

  it('fails an expected success with the output', async () => {
    await expect(ok('sh', ['-c', 'echo why >&2; exit 1'])).rejects.toThrow(/exit code 1\nwhy/);
  });

  it('ends the wait for output when the program ends first', async () => {
    await using child = new Process('sh', ['-c', 'echo other']);
    await expect(child.output(/never/)).rejects.toThrow(/ended before stdout matched \/never\/:\nother/);
  });

  it('escalates to SIGKILL', async () => {
    await using child = new Process('sh', ['-c', 'trap "" TERM; echo ready; while :; do read x < /dev/zero; done']);
    await child.output(/ready/);
    expect((await child.stop('SIGTERM', 50)).signal).toBe('SIGKILL');
  });
});

describe('missing', () => {
  afterEach(() => void vi.unstubAllEnvs());

  it('is false when everything is there', () => {
    expect(missing({ commands: ['sh', 'cat'], files: ['package.json'] })).toBe(false);
  });

  it('gives the reason outside CI and throws inside', () => {
    vi.stubEnv('CI', '');
    expect(missing({ commands: ['no-such-program'] })).toContain("the command 'no-such-program'");
    vi.stubEnv('CI', 'true');
    expect(() => missing({ commands: ['no-such-program'] })).toThrow(/with CI set that is a failure/);
  });
});

describe.skipIf(missing({ root: true, commands: ['ip'] }))('NetNs', () => {
  it('joins two namespaces, and leaves nothing behind', async () => {
    let names: string[];
    {
      await using a = await NetNs.create('support', 'a');
      await using b = await NetNs.create('support', 'b');
      names = [a.name, b.name];
      await veth(
        { ns: a, name: 'eth0', address: '10.0.0.1/24' },
        { ns: b, name: 'eth0', address: '10.0.0.2/24' },
        { mtu: 1400 },
      );
      await a.sysctl({ 'net.ipv4.ip_forward': 1 });
      expect((await a.ok('cat', ['/proc/sys/net/ipv4/ip_forward'])).trim()).toBe('1');
      expect(JSON.parse(await b.ip('-j', 'link', 'show', 'eth0'))).toMatchObject([{ mtu: 1400, operstate: 'UP' }]);
      const sleeper = b.spawn('sleep', ['600']);
      await until(async () => (await run('ip', ['netns', 'pids', b.name])).stdout.includes(String(sleeper.pid)), {
        what: 'the program to be inside',
      });
    }
    const left = await ok('ip', ['netns', 'list']);
    for (const name of names) expect(left).not.toContain(name);
  });
});
