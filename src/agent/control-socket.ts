/**
 * The agent's control socket: HTTP over a unix socket that only its owner (root) may open.
 *
 * `GET /v1/status` answers with the agent's {@link AgentStatus} as JSON, or with 503 and `{"error": …}` while it is
 * starting; `GET /metrics` with the agent's metrics as text. The socket also says that an agent is there: a second one for the same subnet file finds it alive, while
 * the socket of a dead process refuses connections and is replaced.
 */
import { createHash, randomBytes } from 'node:crypto';
import { link, lstat, mkdir, rm, rmdir } from 'node:fs/promises';
import { createServer, request, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { connect, createServer as createLockServer } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoOf, messageOf, PodwireError } from '../errors.js';

/**
 * Answers a request path with a JSON value or a {@link TextAnswer}, or with a promise of one; with undefined while there
 * is nothing to tell yet.
 */
export type ControlRoutes = Readonly<Record<string, () => unknown>>;

/** An answer that is no JSON. */
export class TextAnswer {
  readonly contentType: string;
  readonly body: string;

  constructor(answer: { readonly contentType: string; readonly body: string }) {
    this.contentType = answer.contentType;
    this.body = answer.body;
  }
}

const REQUEST_TIMEOUT_MS = 5_000;
const LOCK_WAIT_MS = 1_000;
const LOCK_RETRY_MS = 5;

export class ControlSocket implements AsyncDisposable {
  readonly path: string;
  readonly #server: Server;
  readonly #inode: bigint;
  /** The directory was missing: it goes again if nobody else has put anything there. */
  readonly #madeDirectory: boolean;

  private constructor(path: string, server: Server, inode: bigint, madeDirectory: boolean) {
    this.path = path;
    this.#server = server;
    this.#inode = inode;
    this.#madeDirectory = madeDirectory;
  }

  /**
   * Binds the socket, mode 0600, in a directory that is made (0755) if missing.
   *
   * @throws {PodwireError} `DEVICE_IN_USE` when a live agent answers there; `SYSTEM` when it cannot be made.
   */
  static async open(path: string, routes: ControlRoutes): Promise<ControlSocket> {
    const server = createServer((incoming, response) => void answer(routes, incoming, response));
    server.requestTimeout = REQUEST_TIMEOUT_MS;
    server.keepAliveTimeout = 1;
    // Bound under a private name and then linked: nobody ever finds a socket that does not answer or is not yet 0600.
    // The private name is short: a unix socket's path has 107 bytes at most.
    const temporary = join(dirname(path), `.pw${randomBytes(4).toString('hex')}`);
    try {
      const made = await mkdir(dirname(path), { recursive: true, mode: 0o755 });
      await listen(server, temporary);
      const { ino } = await lstat(temporary, { bigint: true });
      await claim(path, temporary);
      return new ControlSocket(path, server, ino, made !== undefined);
    } catch (error) {
      server.close();
      if (error instanceof PodwireError) throw error;
      const errno = errnoOf(error);
      throw new PodwireError(
        'SYSTEM',
        `cannot make the control socket ${path}: ${messageOf(error)}; see --control-socket`,
        {
          cause: error,
          ...(errno === undefined ? {} : { errno }),
        },
      );
    } finally {
      await rm(temporary, { force: true }).catch(() => undefined);
    }
  }

  /** Stops listening and removes the socket, unless somebody has put another one there. */
  async close(): Promise<void> {
    if ((await inodeOf(this.path)) === this.#inode) await rm(this.path, { force: true }).catch(() => undefined);
    if (this.#madeDirectory) await rmdir(dirname(this.path)).catch(() => undefined);
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    // bind(2) happens inside listen(), so the umask covers exactly the socket file.
    const umask = process.umask(0o177);
    try {
      server.listen(path, () => {
        server.off('error', reject);
        server.on('error', () => undefined);
        resolve();
      });
    } finally {
      process.umask(umask);
    }
  });
}

/** Gives the listening socket its public name; a dead predecessor's is removed first. */
async function claim(path: string, temporary: string): Promise<void> {
  if (await linked(temporary, path)) return;
  // Between finding a socket dead and removing it, another agent may have put its own there: one at a time.
  const unlock = await lock(path);
  try {
    const state = await probe(path);
    if (state === 'alive') {
      throw new PodwireError(
        'DEVICE_IN_USE',
        `another podwire agent answers at ${path}: stop it first, or give this one its own --subnet-file`,
      );
    }
    if (state === 'foreign') {
      throw new PodwireError('SYSTEM', `${path} exists and is no socket: remove it, or see --control-socket`);
    }
    await rm(path, { force: true });
    await link(temporary, path);
  } finally {
    unlock();
  }
}

async function linked(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false;
    throw error;
  }
}

/**
 * A lock that the kernel gives back with the process: a socket in the abstract namespace (unix(7)). Anybody can bind
 * that name, so who does not let go only costs us the wait.
 */
async function lock(path: string): Promise<() => void> {
  const name = `\0podwire-${createHash('sha256').update(path).digest('hex').slice(0, 32)}`;
  const deadline = performance.now() + LOCK_WAIT_MS;
  for (;;) {
    const server = createLockServer();
    const bound = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(name, () => resolve(true));
    });
    if (bound) return () => void server.close();
    if (performance.now() > deadline) return () => undefined;
    await sleep(LOCK_RETRY_MS);
  }
}

async function inodeOf(path: string): Promise<bigint | undefined> {
  return lstat(path, { bigint: true }).then(
    ({ ino }) => ino,
    () => undefined,
  );
}

async function probe(path: string): Promise<'alive' | 'dead' | 'foreign'> {
  const stats = await lstat(path).catch(() => undefined);
  if (stats === undefined) return 'dead';
  if (!stats.isSocket()) return 'foreign';
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve('alive');
    });
    socket.once('error', (error) => {
      const errno = errnoOf(error);
      if (errno === 'ECONNREFUSED' || errno === 'ENOENT') resolve('dead');
      else if (errno === 'EAGAIN') resolve('alive');
      else reject(error);
    });
  });
}

async function answer(routes: ControlRoutes, incoming: IncomingMessage, response: ServerResponse): Promise<void> {
  const send = (status: number, body: unknown): void => {
    const isText = body instanceof TextAnswer;
    const text = isText ? body.body : `${JSON.stringify(body)}\n`;
    response.writeHead(status, {
      'content-type': isText ? body.contentType : 'application/json',
      'content-length': Buffer.byteLength(text),
      connection: 'close',
    });
    response.end(text);
  };
  incoming.resume();
  response.on('error', () => undefined);
  const path = (incoming.url ?? '').replace(/\?.*$/s, '');
  const route = Object.hasOwn(routes, path) ? routes[path] : undefined;
  if (route === undefined)
    return send(404, { error: `nothing at ${path}: there is ${Object.keys(routes).join(', ')}` });
  if (incoming.method !== 'GET') return send(405, { error: `${path} answers GET only` });
  try {
    const body = await route();
    return body === undefined ? send(503, { error: 'the agent is starting' }) : send(200, body);
  } catch (error) {
    return send(500, { error: messageOf(error) });
  }
}

/**
 * Asks a control socket.
 *
 * @throws {PodwireError} `CLOSED` when no agent is there, `PERMISSION`, `SYSTEM`, each one line with what to do.
 */
export async function askControlSocket(path: string, url: string): Promise<unknown> {
  const { status, text } = await get(path, url);
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch (error) {
    throw new PodwireError('SYSTEM', `the answer at ${path} is no JSON: is that a podwire agent's socket?`, {
      cause: error,
    });
  }
  if (status === 200) return body;
  const reason = typeof body === 'object' && body !== null && 'error' in body ? String(body.error) : `HTTP ${status}`;
  throw new PodwireError(status === 503 ? 'CLOSED' : 'SYSTEM', `the agent at ${path} has no answer: ${reason}`);
}

function get(path: string, url: string): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error): void => reject(connectError(path, error));
    const outgoing = request({ socketPath: path, path: url, timeout: REQUEST_TIMEOUT_MS }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => (text += chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
      response.on('error', fail);
    });
    outgoing.on('timeout', () => outgoing.destroy(new Error(`no answer within ${REQUEST_TIMEOUT_MS} ms`)));
    outgoing.on('error', fail);
    outgoing.end();
  });
}

function connectError(path: string, error: Error): PodwireError {
  const errno = errnoOf(error);
  const options = { cause: error, ...(errno === undefined ? {} : { errno }) };
  if (errno === 'ENOENT' || errno === 'ECONNREFUSED' || errno === 'ENOTDIR') {
    return new PodwireError(
      'CLOSED',
      `no agent runs at ${path}: start one with podwire agent, or name its subnet file with --subnet-file`,
      options,
    );
  }
  if (errno === 'EACCES' || errno === 'EPERM') {
    return new PodwireError('PERMISSION', `may not open ${path}: run as the agent's user (root)`, options);
  }
  return new PodwireError('SYSTEM', `cannot ask the agent at ${path}: ${messageOf(error)}`, options);
}
