/**
 * The agent's HTTP server for health checks and metrics: a table of paths, `GET` and `HEAD` only, nothing else.
 *
 * It faces the network, so it bounds what a stranger can make it hold: connections, header bytes and times.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { errnoOf, messageOf, PodwireError } from '../errors.js';

export interface HttpAnswer {
  readonly status: number;
  /** Default `text/plain; charset=utf-8`. */
  readonly contentType?: string;
  readonly body: string;
}

/** Makes the answer to a request for its path. What it throws is a 500 with one line. */
export type HttpHandler = (query: URLSearchParams) => HttpAnswer | Promise<HttpAnswer>;

/** Path, such as `/metrics`, to its handler. */
export type HttpRoutes = Readonly<Record<string, HttpHandler>>;

const MAX_CONNECTIONS = 256;
const MAX_HEADER_BYTES = 8_192;
const REQUEST_TIMEOUT_MS = 5_000;
const KEEP_ALIVE_MS = 5_000;

export class HttpServer implements AsyncDisposable {
  /** The port that is listened on, also where 0 asked for any. */
  readonly port: number;
  readonly #server: Server;

  private constructor(server: Server, port: number) {
    this.#server = server;
    this.port = port;
  }

  /**
   * Listens; answers from the moment it resolves.
   *
   * @param host an address, or a name that resolves to one of this host.
   * @throws {PodwireError} `PORT_IN_USE`, `PERMISSION`, `INVALID_ADDRESS`, `SYSTEM`: one line with what to do.
   */
  static async open(host: string, port: number, routes: HttpRoutes): Promise<HttpServer> {
    const server = createServer({ maxHeaderSize: MAX_HEADER_BYTES }, (request, response) => {
      void answer(routes, request, response);
    });
    server.requestTimeout = REQUEST_TIMEOUT_MS;
    server.headersTimeout = REQUEST_TIMEOUT_MS;
    server.keepAliveTimeout = KEEP_ALIVE_MS;
    server.maxConnections = MAX_CONNECTIONS;
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(listenError(host, port, error)));
      server.listen({ host, port, exclusive: true }, () => {
        server.removeAllListeners('error');
        server.on('error', () => undefined);
        resolve();
      });
    });
    const address = server.address();
    return new HttpServer(server, typeof address === 'object' && address !== null ? address.port : port);
  }

  async close(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

async function answer(routes: HttpRoutes, request: IncomingMessage, response: ServerResponse): Promise<void> {
  request.resume();
  response.on('error', () => undefined);
  const { path, query } = targetOf(request.url ?? '/');
  const handler = Object.hasOwn(routes, path) ? routes[path] : undefined;
  let made: HttpAnswer;
  if (handler === undefined) {
    made = { status: 404, body: `there is ${Object.keys(routes).join(', ')}\n` };
  } else if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('allow', 'GET, HEAD');
    made = { status: 405, body: 'GET or HEAD only\n' };
  } else {
    try {
      made = await handler(query);
    } catch (error) {
      made = { status: 500, body: `${messageOf(error)}\n` };
    }
  }
  response.writeHead(made.status, {
    'content-type': made.contentType ?? 'text/plain; charset=utf-8',
    'content-length': Buffer.byteLength(made.body),
    'cache-control': 'no-store',
  });
  response.end(request.method === 'HEAD' ? undefined : made.body);
}

function targetOf(url: string): { readonly path: string; readonly query: URLSearchParams } {
  const mark = url.indexOf('?');
  return mark < 0
    ? { path: url, query: new URLSearchParams() }
    : { path: url.slice(0, mark), query: new URLSearchParams(url.slice(mark + 1)) };
}

function listenError(host: string, port: number, error: unknown): PodwireError {
  const errno = errnoOf(error);
  const options = { cause: error, ...(errno === undefined ? {} : { errno }), syscall: 'listen' };
  const where = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
  const tried = `cannot serve health checks on ${where}`;
  switch (errno) {
    case 'EADDRINUSE':
      return new PodwireError(
        'PORT_IN_USE',
        `${tried}: the port is in use (see: ss -tlnp); give another --healthz-port`,
        options,
      );
    case 'EACCES':
      return new PodwireError(
        'PERMISSION',
        `${tried}: ports below 1024 need CAP_NET_BIND_SERVICE; give another --healthz-port`,
        options,
      );
    case 'EADDRNOTAVAIL':
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return new PodwireError('INVALID_ADDRESS', `${tried}: this host has no such address; see --healthz-ip`, options);
    default:
      return new PodwireError('SYSTEM', `${tried}: ${messageOf(error)}; see --healthz-ip and --healthz-port`, options);
  }
}
