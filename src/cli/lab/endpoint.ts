/**
 * The program that the lab runs inside a pod's or a host's namespace: servers to talk to, and the client side of every
 * check. It takes {@link Calls} over its IPC channel and ends when that channel closes, so that it never outlives the
 * lab that started it.
 */
import { createSocket, type RemoteInfo, type Socket as Datagrams } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { errnoOf, messageOf } from '../../errors.js';
import { Pinger, Stream } from './endpoint-traffic.js';
import { PORTS, socketType, type Calls, type Reply, type Request, type UdpEchoResult } from './protocol.js';
import { fillPattern, intactLength } from './pattern.js';

const CHUNK_BYTES = 256 * 1024;

/** Starts the three services of a family; resolves when all of them listen. */
async function serve(family: 4 | 6): Promise<void> {
  const address = family === 4 ? '0.0.0.0' : '::';
  const zeros = Buffer.alloc(CHUNK_BYTES);
  const source = (socket: Socket): void => {
    const more = (): void => {
      while (!socket.destroyed && socket.write(zeros));
    };
    socket.on('drain', more);
    more();
  };
  const services: readonly [number, (socket: Socket) => void][] = [
    [PORTS.echo, (socket) => socket.pipe(socket)],
    [PORTS.source, source],
    [PORTS.who, (socket) => socket.end(socket.remoteAddress ?? '')],
  ];
  for (const [port, handle] of services) {
    const server = createServer((socket) => {
      // The other side may end its run at any moment; that is no fault of this program.
      socket.on('error', () => socket.destroy());
      handle(socket);
    });
    server.listen({ port, host: address, ipv6Only: family === 6 });
    await once(server, 'listening');
  }
  const only = { type: family === 4 ? 'udp4' : 'udp6', ipv6Only: family === 6 } as const;
  const echo = createSocket({ ...only, recvBufferSize: 4 << 20, sendBufferSize: 4 << 20 });
  echo.on('message', (message, from) => echo.send(message, from.port, from.address, () => {}));
  const who = createSocket(only);
  who.on('message', (_message, from) => who.send(from.address, from.port, from.address, () => {}));
  await Promise.all([bound(echo, PORTS.echo, address), bound(who, PORTS.who, address)]);
}

async function bound(socket: Datagrams, port: number, address: string): Promise<void> {
  socket.on('error', () => {});
  socket.bind(port, address);
  await once(socket, 'listening');
}

/** Rejects when time is up; `what` completes "no ... within". */
async function within<T>(timeoutMs: number, what: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const control = new AbortController();
  const timer = setTimeout(() => {
    control.abort(new Error(`no ${what} within ${String(timeoutMs)} ms`));
  }, timeoutMs);
  const aborted = new Promise<never>((_, reject) => {
    control.signal.addEventListener('abort', () => reject(control.signal.reason as Error));
  });
  try {
    return await Promise.race([work(control.signal), aborted]);
  } finally {
    clearTimeout(timer);
  }
}

/** An open TCP connection that dies with the signal. */
async function open(host: string, port: number, signal: AbortSignal): Promise<Socket> {
  const socket = connect({ host, port, noDelay: true });
  signal.addEventListener('abort', () => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

async function tcpEcho({ host, bytes, timeoutMs }: Parameters<Calls['tcpEcho']>[0]) {
  const start = performance.now();
  const intactBytes = await within(timeoutMs, `complete echo from ${host} over TCP`, async (signal) => {
    const socket = await open(host, PORTS.echo, signal);
    const sent = fillPattern(Buffer.allocUnsafe(bytes), bytes);
    const chunks: Buffer[] = [];
    socket.on('data', (chunk) => chunks.push(chunk));
    socket.end(sent);
    await once(socket, 'end');
    return intactLength(Buffer.concat(chunks), sent);
  });
  return { intactBytes, milliseconds: performance.now() - start };
}

/** A client socket for the echo service; counts its replies until `stop`. */
class Echoes {
  readonly #socket: Datagrams;
  readonly #expected: Map<number, { message: Buffer; sentAt: number }> = new Map();
  readonly #rttUs: number[] = [];
  #sent = 0;
  #corrupt = 0;
  #wake: (() => void) | undefined;

  constructor(host: string) {
    this.#socket = createSocket({ type: socketType(host), recvBufferSize: 4 << 20, sendBufferSize: 4 << 20 });
    this.#socket.on('message', (message) => this.#take(message));
    this.#socket.on('error', () => {});
  }

  #take(message: Buffer): void {
    const sequence = message.length >= 4 ? message.readUInt32BE(0) : -1;
    const expected = this.#expected.get(sequence);
    if (expected === undefined || !expected.message.equals(message)) this.#corrupt += 1;
    else this.#rttUs.push((performance.now() - expected.sentAt) * 1000);
    this.#expected.delete(sequence);
    this.#wake?.();
  }

  /** Sends a datagram of `size` bytes (at least 4) that is unlike every other one of this socket. */
  send(host: string, size: number): void {
    const message = fillPattern(Buffer.allocUnsafe(size), this.#sent);
    message.writeUInt32BE(this.#sent, 0);
    this.#expected.set(this.#sent, { message, sentAt: performance.now() });
    this.#sent += 1;
    this.#socket.send(message, PORTS.echo, host, () => {});
  }

  /** Waits until every datagram is answered, or until `deadline` (performance.now()). */
  async settle(deadline: number): Promise<void> {
    while (this.#expected.size > 0) {
      const left = deadline - performance.now();
      if (left <= 0) return;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** What happened since the last call; datagrams without an answer are given up. */
  take(): UdpEchoResult {
    const result = { sent: this.#sent, received: this.#rttUs.length, corrupt: this.#corrupt, rttUs: [...this.#rttUs] };
    this.#sent = 0;
    this.#corrupt = 0;
    this.#rttUs.length = 0;
    this.#expected.clear();
    return result;
  }

  close(): void {
    this.#socket.close();
  }
}

async function udpEcho({ host, sizes, intervalMs, timeoutMs }: Parameters<Calls['udpEcho']>[0]) {
  const echoes = new Echoes(host);
  const start = performance.now();
  try {
    for (const [index, size] of sizes.entries()) {
      const due = start + index * intervalMs;
      const wait = due - performance.now();
      if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
      echoes.send(host, size);
    }
    await echoes.settle(performance.now() + timeoutMs);
    return echoes.take();
  } finally {
    echoes.close();
  }
}

const flows = new Map<string, Echoes>();

async function pingPong({ host, flow, rounds, timeoutMs }: Parameters<Calls['pingPong']>[0]) {
  const echoes = flows.get(flow) ?? new Echoes(host);
  flows.set(flow, echoes);
  const deadline = performance.now() + timeoutMs;
  for (let round = 0; round < rounds && performance.now() < deadline; round += 1) {
    echoes.send(host, 64);
    await echoes.settle(Math.min(deadline, performance.now() + 1000));
  }
  return echoes.take();
}

async function who({ host, timeoutMs }: Parameters<Calls['who']>[0]) {
  return await within(timeoutMs, `answer from ${host}`, async (signal) => {
    const socket = await open(host, PORTS.who, signal);
    let tcp = '';
    socket.on('data', (chunk) => (tcp += chunk.toString()));
    await once(socket, 'end');
    const datagrams = createSocket(socketType(host));
    try {
      datagrams.send('who', PORTS.who, host);
      const [message] = (await once(datagrams, 'message', { signal })) as [Buffer, RemoteInfo];
      return { tcp, udp: message.toString() };
    } finally {
      datagrams.close();
    }
  });
}

/** One try; undefined when a refusal was reported as a connection. */
async function connectOnce(host: string, timeoutMs: number): Promise<string | undefined> {
  const socket = connect({ host, port: PORTS.who });
  const outcome = await new Promise<string | undefined>((resolve) => {
    const timer = setTimeout(() => resolve('no answer'), timeoutMs);
    socket.once('connect', () => resolve(socket.remoteAddress === undefined ? undefined : 'connected'));
    socket.on('error', (error) => resolve(errnoOf(error) ?? error.message));
    socket.once('close', () => clearTimeout(timer));
  });
  socket.destroy();
  return outcome;
}

/**
 * An ICMP error may arrive while connect(2) is under way. Then, once in some thousand times (Node 20, Linux 6.18), the
 * socket's error is gone when libuv asks for it, and it tells of a connection that has no other end.
 */
async function tryConnect({ host, timeoutMs }: Parameters<Calls['connect']>[0]) {
  const start = performance.now();
  let outcome: string | undefined;
  do {
    outcome = await connectOnce(host, timeoutMs);
  } while (outcome === undefined && performance.now() - start < timeoutMs);
  return { outcome: outcome ?? 'no answer', milliseconds: performance.now() - start };
}

const stream = new Stream();
const pinger = new Pinger();

const calls: {
  [N in keyof Calls]: (args: Parameters<Calls[N]>[0]) => ReturnType<Calls[N]> | Promise<ReturnType<Calls[N]>>;
} = {
  tcpEcho,
  udpEcho,
  pingPong,
  who,
  connect: tryConnect,
  startStream: ({ host }) => stream.start(host),
  stopStream: () => stream.stop(),
  startPings: ({ host, intervalMs }) => pinger.start(host, intervalMs),
  stopPings: () => pinger.stop(),
  tick: () => ({ ...stream.take(), ...pinger.take() }),
};

function reply(message: Reply): void {
  if (process.connected) process.send?.(message);
}

process.on('disconnect', () => process.exit(0));
// Ctrl-C is the lab's business: it closes the channel when it is done with us.
process.on('SIGINT', () => {});
process.on('message', (request: Request) => {
  const call = calls[request.call] as (args: unknown) => unknown;
  Promise.resolve()
    .then(() => call(request.args))
    .then((result) => reply({ id: request.id, result: result ?? null }))
    .catch((error: unknown) => reply({ id: request.id, error: messageOf(error) }));
});
await serve(4);
// Where the kernel has IPv6; without it nobody asks for it.
await serve(6).catch(() => undefined);
reply({ ready: true });
