import { spawn } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { request } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { askControlSocket, ControlSocket, TextAnswer } from '../../../src/agent/control-socket.js';

let directory: string;
let path: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'pw-sock-'));
  // No name of an agent's: `podwire status` in another test, of this network namespace, would find it.
  path = join(directory, 'run', 'control.sock');
});
afterEach(async () => {
  await rm(directory, { recursive: true });
});

/** The socket file of a process that was killed. */
async function deadSocket(): Promise<void> {
  await mkdir(join(directory, 'run'), { recursive: true });
  const script = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
  const child = spawn(process.execPath, ['-e', script], { stdio: 'ignore' });
  await new Promise((resolve) => child.once('close', resolve));
  expect((await stat(path)).isSocket()).toBe(true);
}

function status(method: string, url: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const outgoing = request({ socketPath: path, path: url, method }, (response) => {
      response.resume();
      resolve(response.statusCode);
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

test('answers, mode 0600, and is gone after close with nothing left beside it', async () => {
  await mkdir(join(directory, 'run'));
  const socket = await ControlSocket.open(path, { '/v1/status': () => ({ pid: 7 }) });
  expect(await askControlSocket(path, '/v1/status')).toEqual({ pid: 7 });
  expect((await stat(path)).mode & 0o777).toBe(0o600);
  expect(await readdir(join(directory, 'run'))).toEqual(['control.sock']);
  await socket.close();
  expect(await readdir(join(directory, 'run'))).toEqual([]);
});

test('a directory that it made goes with it, unless something else is there', async () => {
  await (await ControlSocket.open(path, {})).close();
  expect(await readdir(directory)).toEqual([]);
  const socket = await ControlSocket.open(path, {});
  await writeFile(join(directory, 'run', 'subnet.env'), '');
  await socket.close();
  expect(await readdir(join(directory, 'run'))).toEqual(['subnet.env']);
});

test('the umask of the process is what it was', async () => {
  const umask = process.umask();
  await using _socket = await ControlSocket.open(path, {});
  expect(process.umask()).toBe(umask);
});

test('other paths, methods and a failing route', async () => {
  await using _socket = await ControlSocket.open(path, {
    '/v1/status': () => undefined,
    '/v1/broken': () => {
      throw new Error('oh');
    },
  });
  expect(await status('GET', '/v1/status')).toBe(503);
  expect(await status('GET', '/v1/status?x=1')).toBe(503);
  expect(await status('POST', '/v1/status')).toBe(405);
  expect(await status('GET', '/')).toBe(404);
  expect(await status('GET', '/toString')).toBe(404);
  expect(await status('GET', '/v1/broken')).toBe(500);
  await expect(askControlSocket(path, '/v1/status')).rejects.toMatchObject({
    code: 'CLOSED',
    message: expect.stringContaining('the agent is starting') as string,
  });
});

test('text is answered as text, and a promise when it is there', async () => {
  await using _socket = await ControlSocket.open(path, {
    '/metrics': async () => new TextAnswer({ contentType: 'text/plain; version=0.0.4', body: 'a 1\n' }),
    '/v1/late': async () => ({ late: true }),
    '/v1/broken': async () => {
      throw new Error('oh');
    },
  });
  const answer = await new Promise<readonly [unknown, string]>((resolve, reject) => {
    const outgoing = request({ socketPath: path, path: '/metrics' }, (response) => {
      response.setEncoding('utf8');
      response.once('data', (text: string) => resolve([response.headers['content-type'], text]));
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
  expect(answer).toEqual(['text/plain; version=0.0.4', 'a 1\n']);
  expect(await askControlSocket(path, '/v1/late')).toEqual({ late: true });
  expect(await status('GET', '/v1/broken')).toBe(500);
});

test('a second agent gets one line, and the first goes on', async () => {
  await using _first = await ControlSocket.open(path, { '/v1/status': () => 1 });
  await expect(ControlSocket.open(path, { '/v1/status': () => 2 })).rejects.toMatchObject({
    code: 'DEVICE_IN_USE',
    message: `another podwire agent answers at ${path}: stop it first, or give this one its own --subnet-file`,
  });
  expect(await askControlSocket(path, '/v1/status')).toBe(1);
  expect(await readdir(join(directory, 'run'))).toEqual(['control.sock']);
});

test("a dead process's socket is replaced", async () => {
  await deadSocket();
  await expect(askControlSocket(path, '/')).rejects.toMatchObject({ code: 'CLOSED' });
  await using _socket = await ControlSocket.open(path, { '/v1/status': () => 'new' });
  expect(await askControlSocket(path, '/v1/status')).toBe('new');
});

test('of many agents that start at once over a dead socket exactly one gets it', async () => {
  await deadSocket();
  const results = await Promise.allSettled(
    Array.from({ length: 8 }, (_, i) => ControlSocket.open(path, { '/v1/status': () => i })),
  );
  const winners = results.filter((result) => result.status === 'fulfilled');
  expect(winners).toHaveLength(1);
  expect(typeof (await askControlSocket(path, '/v1/status'))).toBe('number');
  expect(await readdir(join(directory, 'run'))).toEqual(['control.sock']);
  await winners[0]?.value.close();
});

test('something that is no socket is never removed', async () => {
  await mkdir(join(directory, 'run'));
  await writeFile(path, 'precious');
  await expect(ControlSocket.open(path, {})).rejects.toThrow(/exists and is no socket/);
  expect((await stat(path)).size).toBe(8);
});

test('a directory that cannot be made is one line with the path', async () => {
  await writeFile(join(directory, 'run'), '');
  await expect(ControlSocket.open(path, {})).rejects.toMatchObject({
    code: 'SYSTEM',
    message: expect.stringMatching(/^cannot make the control socket .*control\.sock: .*--control-socket$/) as string,
  });
});

test('closing does not remove the socket of a successor', async () => {
  const first = await ControlSocket.open(path, {});
  await rm(path);
  await using _second = await ControlSocket.open(path, { '/v1/status': () => 2 });
  await first.close();
  expect(await askControlSocket(path, '/v1/status')).toBe(2);
});

test('closing does not wait for a client that says nothing', async () => {
  const socket = await ControlSocket.open(path, {});
  const client = connect(path);
  await new Promise<void>((resolve) => client.once('connect', () => resolve()));
  const ended = new Promise<void>((resolve) => client.once('close', () => resolve()));
  client.on('error', () => undefined);
  client.resume();
  await socket.close();
  await ended;
});

describe('asking', () => {
  test('nobody there says how to start one', async () => {
    await expect(askControlSocket(path, '/')).rejects.toMatchObject({
      code: 'CLOSED',
      message: expect.stringMatching(/^no agent runs at .*control\.sock: start one with podwire agent/) as string,
    });
  });
});
