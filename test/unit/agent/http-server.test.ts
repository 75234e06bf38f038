import { connect } from 'node:net';
import { afterEach, expect, test } from 'vitest';
import { HttpServer, type HttpRoutes } from '../../../src/agent/http-server.js';

const opened: HttpServer[] = [];
afterEach(async () => {
  for (const server of opened.splice(0)) await server.close();
});

async function open(routes: HttpRoutes, host = '127.0.0.1', port = 0): Promise<HttpServer> {
  const server = await HttpServer.open(host, port, routes);
  opened.push(server);
  return server;
}

const ROUTES: HttpRoutes = {
  '/a': () => ({ status: 200, body: 'exactly this' }),
  '/b': async (query) => ({ status: 503, contentType: 'application/json', body: JSON.stringify([...query]) }),
  '/c': () => {
    throw new Error('broken\nin two');
  },
};

test('answers by path, whatever the query', async () => {
  const { port } = await open(ROUTES);
  const get = async (path: string, init?: RequestInit) => {
    const answer = await fetch(`http://127.0.0.1:${port}${path}`, init);
    return [answer.status, await answer.text(), answer.headers.get('content-type')];
  };
  expect(await get('/a')).toEqual([200, 'exactly this', 'text/plain; charset=utf-8']);
  expect(await get('/b?x=1&y')).toEqual([503, '[["x","1"],["y",""]]', 'application/json']);
  expect(await get('/a', { method: 'HEAD' })).toEqual([200, '', 'text/plain; charset=utf-8']);
  expect(await get('/c')).toEqual([500, 'broken in two\n', 'text/plain; charset=utf-8']);
  expect((await get('/a', { method: 'POST', body: 'x' }))[0]).toBe(405);
  for (const path of ['/', '/a/', '/constructor', '/__proto__', '/%61']) {
    expect(await get(path)).toEqual([404, 'there is /a, /b, /c\n', 'text/plain; charset=utf-8']);
  }
});

test('what is no HTTP is refused, and others are served on', async () => {
  const { port } = await open(ROUTES);
  const junk = connect(port, '127.0.0.1');
  const reply = await new Promise<string>((resolve) => {
    let text = '';
    junk.on('data', (chunk) => (text += String(chunk)));
    junk.on('error', () => undefined);
    junk.on('close', () => resolve(text));
    junk.write(`GET /${'x'.repeat(20_000)} HTTP/1.1\r\n\r\n`);
  });
  expect(reply).toMatch(/^HTTP\/1\.1 4\d\d /);
  expect((await fetch(`http://127.0.0.1:${port}/a`)).status).toBe(200);
});

test.each([
  ['127.0.0.1', 'PORT_IN_USE', /^cannot serve health checks on 127\.0\.0\.1:\d+: the port is in use/],
  ['192.0.2.1', 'INVALID_ADDRESS', /192\.0\.2\.1:\d+: this host has no such address; see --healthz-ip/],
  ['2001:db8::1', 'INVALID_ADDRESS', /^cannot serve health checks on \[2001:db8::1\]:/],
  ['no-such-host.invalid', 'INVALID_ADDRESS', /see --healthz-ip/],
])('%s: %s', async (host, code, message) => {
  const { port } = await open(ROUTES);
  const failure = await HttpServer.open(host, port, ROUTES).catch((error: unknown) => error);
  expect(failure).toMatchObject({ code, message: expect.stringMatching(message) as string });
});

test('closing does not wait for those who keep a connection open', async () => {
  const server = await open(ROUTES);
  const idle = connect(server.port, '127.0.0.1');
  await new Promise((resolve) => idle.once('connect', resolve));
  const gone = new Promise((resolve) => idle.once('close', resolve));
  idle.on('error', () => undefined);
  await server.close();
  await gone;
});
