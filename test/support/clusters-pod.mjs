// What runs inside a pod of a test cluster: echo services on all addresses of both families, and the client side of
// the checks. Requests and answers are IPC messages, one answer a request; it ends when the channel closes.

import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';

const PORT = 7007;
const PING_BYTES = 64;

/** Bytes that differ from those of every other seed, and never repeat within a segment's length. */
function pattern(length, seed) {
  const bytes = Buffer.allocUnsafe(length);
  let state = (seed * 2654435761 + 1) >>> 0;
  for (let i = 0; i < length; i += 1) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

const family = (host) => (host.includes(':') ? 'udp6' : 'udp4');

async function serve() {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => socket.destroy());
    socket.pipe(socket);
  });
  server.listen(PORT, '::');
  await once(server, 'listening');
  const echo = createSocket({ type: 'udp6', recvBufferSize: 4 << 20, sendBufferSize: 4 << 20 });
  echo.on('error', () => {});
  echo.on('message', (message, from) => echo.send(message, from.port, from.address, () => {}));
  echo.bind(PORT, '::');
  await once(echo, 'listening');
}

/** Sends `bytes` over TCP to the echo of `host` and compares what comes back. */
async function transfer({ host, bytes, timeoutMs }) {
  const sent = pattern(bytes, 1);
  const socket = connect({ host, port: PORT, noDelay: true });
  socket.setTimeout(timeoutMs, () => socket.destroy(new Error(`no progress for ${timeoutMs} ms`)));
  let received = 0;
  let wrong = -1;
  socket.on('data', (chunk) => {
    if (wrong < 0 && !sent.subarray(received, received + chunk.length).equals(chunk)) wrong = received;
    received += chunk.length;
  });
  socket.end(sent);
  await once(socket, 'close');
  return { received, wrong };
}

/** Sends one datagram of each size to the echo of `host`; the sizes whose echo came back right, in order. */
async function datagrams({ host, sizes, timeoutMs }) {
  const socket = createSocket({ type: family(host), recvBufferSize: 4 << 20 });
  const answered = new Set();
  try {
    const all = new Promise((resolve) => {
      socket.on('message', (message) => {
        if (pattern(message.length, message.length).equals(message)) answered.add(message.length);
        if (answered.size === sizes.length) resolve();
      });
      setTimeout(resolve, timeoutMs);
    });
    socket.on('error', () => {});
    for (const size of sizes) socket.send(pattern(size, size), PORT, host, () => {});
    await all;
  } finally {
    socket.close();
  }
  return sizes.filter((size) => answered.has(size));
}

/** One echo every `intervalMs` to each host, until they are stopped. */
const pingers = new Map();

function startPings({ hosts, intervalMs }) {
  for (const host of hosts) {
    const pinger = { socket: createSocket(family(host)), sent: 0, waiting: new Map() };
    pingers.set(host, pinger);
    pinger.socket.on('error', () => {});
    pinger.socket.on('message', (message) => pinger.waiting.delete(message.readUInt32BE(0)));
    pinger.timer = setInterval(() => {
      const message = Buffer.alloc(PING_BYTES);
      message.writeUInt32BE(pinger.sent, 0);
      pinger.waiting.set(pinger.sent, performance.now());
      pinger.sent += 1;
      pinger.socket.send(message, PORT, host, () => {});
    }, intervalMs);
  }
  return null;
}

/**
 * Stops them and waits up to 1 s for late answers. A host's `longestGapMs` is the time from the first to the last
 * echo of the longest run of lost ones.
 */
async function stopPings() {
  const result = {};
  for (const pinger of pingers.values()) clearInterval(pinger.timer);
  const deadline = performance.now() + 1000;
  for (const [host, pinger] of pingers) {
    while (pinger.waiting.size > 0 && performance.now() < deadline) await new Promise((done) => setTimeout(done, 10));
    pinger.socket.close();
    let longestGapMs = 0;
    let first = 0;
    let before = -2;
    for (const [sequence, sentAt] of pinger.waiting) {
      if (sequence !== before + 1) first = sentAt;
      before = sequence;
      longestGapMs = Math.max(longestGapMs, sentAt - first);
    }
    result[host] = { sent: pinger.sent, lost: pinger.waiting.size, longestGapMs: Math.round(longestGapMs) };
  }
  pingers.clear();
  return result;
}

const calls = { transfer, datagrams, startPings, stopPings };

process.on('disconnect', () => process.exit(0));
process.on('message', ({ id, call, args }) => {
  Promise.resolve()
    .then(() => calls[call](args))
    .then((result) => process.send({ id, result }))
    .catch((error) => process.send({ id, error: String(error?.message ?? error) }));
});
await serve();
process.send({ ready: true });
