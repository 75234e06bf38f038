import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PodwireError } from '../../../src/errors.js';
import { ipBatch, ipJson, run } from '../../../src/host/exec.js';
import { fakeIp } from './fake-ip.js';

describe('run', () => {
  test('resolves with standard output and feeds standard input', async () => {
    expect(await run('cat', [], { input: 'hello\n' })).toBe('hello\n');
  });

  test('a failing command is one line with the command and its answer', async () => {
    const error = await run('sh', ['-c', 'echo "first" >&2; echo " second " >&2; exit 3']).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(PodwireError);
    expect(error).toMatchObject({
      code: 'COMMAND_FAILED',
      message: 'sh -c echo "first" >&2; echo " second " >&2; exit 3: first; second',
    });
  });

  test('a silent failure names the exit code or the signal', async () => {
    await expect(run('sh', ['-c', 'exit 7'])).rejects.toThrow('sh -c exit 7: exit code 7');
    await expect(run('sh', ['-c', 'kill -TERM $$'])).rejects.toThrow('killed by SIGTERM');
  });

  test('a missing program says what to install', async () => {
    const saved = process.env['PATH'];
    const error = await run('podwire-no-such-program', []).catch((e: unknown) => e);
    expect(error).toMatchObject({ code: 'COMMAND_FAILED', errno: 'ENOENT' });
    expect((error as Error).message).toBe(
      'cannot run podwire-no-such-program : not found: install the program podwire-no-such-program'.replace(' :', ':'),
    );
    process.env['PATH'] = saved;
  });

  test('a program that does not end is killed at the limit', async () => {
    const started = performance.now();
    await expect(run('sleep', ['60'], { timeoutMs: 50 })).rejects.toThrow('sleep 60: no answer within 50 ms');
    expect(performance.now() - started).toBeLessThan(5_000);
  });

  test('many at once, and the event loop goes on meanwhile', async () => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const words = Array.from({ length: 50 }, (_, i) => `word ${i}`);
    const answers = await Promise.all(words.map((word) => run('sh', ['-c', 'sleep 0.05; cat'], { input: word })));
    clearInterval(timer);
    expect(answers).toEqual(words);
    expect(ticks).toBeGreaterThan(5);
  });

  test('the environment is this process’s with what is given, and English', async () => {
    const script = 'echo "$LC_ALL $GIVEN $HOME"';
    expect(await run('sh', ['-c', script], { env: { GIVEN: 'ünïcode' } })).toBe(`C ünïcode ${process.env['HOME']}\n`);
  });

  test('a text that no program can be given is one clear line', async () => {
    await expect(run('echo', ['a\0b'])).rejects.toThrow(/^cannot run echo a\0b: EINVAL$/);
    await expect(run('', [])).rejects.toThrow(/EINVAL$/);
  });

  test('output without end is cut short', async () => {
    await expect(run('cat', ['/dev/zero'])).rejects.toThrow('cat /dev/zero: more than 67108864 bytes of output');
  });

  test('a program that never reads its input is no crash', async () => {
    await expect(run('true', [], { input: 'x'.repeat(1_000_000) })).resolves.toBe('');
  });
});

describe('with a fake ip on the PATH', () => {
  let directory: string;
  let path: string | undefined;

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'podwire-exec-'));
    path = process.env['PATH'];
    process.env['PATH'] = `${directory}:${path ?? ''}`;
  });

  afterEach(async () => {
    process.env['PATH'] = path;
    await rm(directory, { recursive: true });
  });

  const install = (script: string): Promise<void> =>
    writeFile(join(directory, 'ip'), `#!/bin/sh\n${script}`, { mode: 0o755 });

  test('a failed batch shows the command of the failed line', async () => {
    await install('cat >/dev/null; echo "RTNETLINK answers: File exists" >&2; echo "Command failed -:2" >&2; exit 1');
    await expect(ipBatch(run, ['link set dev t0 up', 'route add 10.0.0.0/8 dev t0'])).rejects.toThrow(
      'ip route add 10.0.0.0/8 dev t0: RTNETLINK answers: File exists',
    );
  });

  test("busybox's ip is told apart from a failing command", async () => {
    await install('echo "ip: unrecognized option: j" >&2; exit 1');
    await expect(ipJson(run, ['link', 'show'])).rejects.toThrow(/not a full iproute2.*install iproute2/);
  });
});

describe('ipJson', () => {
  test('returns the array, and an empty one for no output', async () => {
    expect(await ipJson(fakeIp({ '-j link': '[{"a":1}]' }).runner, ['link'])).toEqual([{ a: 1 }]);
    expect(await ipJson(fakeIp({ '-j link': ' \n' }).runner, ['link'])).toEqual([]);
  });

  test.each([
    ['text', '1: lo: <LOOPBACK>'],
    ['an object', '{"a":1}'],
  ])('%s instead of an array is one clear line', async (_, output) => {
    await expect(ipJson(fakeIp({ '-j link': output }).runner, ['link'])).rejects.toThrow(
      /^ip -j link: the answer is no JSON/,
    );
  });
});
