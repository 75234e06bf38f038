// A program that a test starts inside a network namespace and drives by JSON lines (test/support/remote.ts): it opens a
// data plane of the built package, and makes and takes TCP and UDP traffic with the kernel's own sockets.
//
//   stdin   {"id": 1, "call": "open", "with": {...}}
//   stdout  {"id": 1, "value": ...} or {"id": 1, "error": {"code", "message", ...}}, and {"event": ..., ...}
import { createHash } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { writeSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { createInterface } from 'node:readline';
import { Dataplane } from '../../dist/dataplane/dataplane.js';

const print = (message) => {
  const line = Buffer.from(`${JSON.stringify(message)}\n`);
  // Synchronous, so that an answer precedes the exit it announces; a pipe may be full for a moment.
  for (let at = 0; at < line.length;) {
    try {
      at += writeSync(1, line, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
};

const describe = (error) => ({
  code: error.code,
  message: error.message,
  errno: error.errno,
  syscall: error.syscall,
});

/** Bytes that differ from place to place, so that a lost, doubled or misplaced segment changes the hash. */
function blockOf(seed, index) {
  const block = Buffer.allocUnsafe(65_536);
  let x = (seed * 2_654_435_761 + index * 40_503 + 1) >>> 0;
  for (let i = 0; i < block.length; i += 4) {
    x = (Math.imul(x, 1_664_525) + 1_013_904_223) >>> 0;
    block.writeUInt32LE(x, i);
  }
  return block;
}

let dataplane;
const levels = ['debug', 'info', 'warn', 'error'];
const logger = Object.fromEntries(
  levels.map((level) => [level, (fields, text) => print({ event: 'log', level, text, ...fields })]),
);

const listeners = new Map();
let flooding = false;

async function bound(address, port, options = {}) {
  const socket = createSocket({ type: address.includes(':') ? 'udp6' : 'udp4', ...options });
  await new Promise((resolve, reject) => {
    socket.once('error', reject);
    socket.bind(port, address, resolve);
  });
  socket.setRecvBufferSize?.(4 << 20);
  return socket;
}

const calls = {
  async open(options) {
    dataplane = await Dataplane.open({ pathMtu: false, peerProbes: false, logger, ...options });
    dataplane.closed.then(
      () => print({ event: 'closed' }),
      (error) => print({ event: 'closed', error: describe(error) }),
    );
    const { device, capabilities } = dataplane;
    return { device, capabilities, mtu: { ...dataplane.mtu } };
  },
  routes: ({ routes }) => dataplane.routes.replace(routes),
  setLocal: ({ local, ownAddresses }) => dataplane.setLocal(local, ownAddresses),
  stats: () => dataplane.stats(),
  injectFailure: ({ worker, how }) => dataplane.injectFailure(worker, how),
  /** Milliseconds that close() took. */
  async close() {
    const from = performance.now();
    await dataplane.close();
    return performance.now() - from;
  },
  exit: ({ code }) => setImmediate(() => process.exit(code)),
  throw: ({ message }) =>
    setImmediate(() => {
      throw new Error(message);
    }),
  collectGarbage: () => globalThis.gc(),

  /** Answers every connection's bytes with their number and hash. Returns the port. */
  async tcpListen({ address, port = 0 }) {
    const server = createServer({ allowHalfOpen: true }, (socket) => {
      const hash = createHash('sha256');
      let bytes = 0;
      socket.on('data', (data) => {
        hash.update(data);
        bytes += data.length;
      });
      socket.on('end', () => socket.end(JSON.stringify({ bytes, hash: hash.digest('hex') })));
      socket.on('error', () => socket.destroy());
    });
    await new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, address, resolve);
    });
    return server.address().port;
  },
  /** Sends bytes to a tcpListen elsewhere; says what was sent and what arrived there. */
  tcpSend: ({ address, port, bytes, seed }) =>
    new Promise((resolve, reject) => {
      const hash = createHash('sha256');
      const socket = createConnection({ host: address, port });
      let sent = 0;
      let answer = '';
      const more = () => {
        for (let open = true; open && sent < bytes;) {
          const block = blockOf(seed, sent / 65_536).subarray(0, bytes - sent);
          hash.update(block);
          sent += block.length;
          open = socket.write(block);
        }
        if (sent === bytes) socket.end();
      };
      socket.once('connect', more);
      socket.on('drain', more);
      socket.on('data', (data) => (answer += String(data)));
      socket.on('end', () => resolve({ sent: { bytes: sent, hash: hash.digest('hex') }, arrived: JSON.parse(answer) }));
      socket.on('error', reject);
    }),

  /** Collects datagrams, and sends them back if asked to. Returns the port. */
  async udpListen({ address, port = 0, echo = false }) {
    const socket = await bound(address, port);
    const received = [];
    socket.on('message', (data, from) => {
      received.push({ from: from.address, port: from.port, length: data.length, hex: data.toString('hex') });
      if (echo) socket.send(data, from.port, from.address);
    });
    listeners.set(socket.address().port, { socket, received });
    return socket.address().port;
  },
  /** What a listener collected since it was last asked. */
  udpReceived: ({ port }) => listeners.get(port).received.splice(0),
  udpClose({ port }) {
    listeners.get(port).socket.close();
    listeners.delete(port);
  },
  /** Sends datagrams given in hexadecimal; from a listener's socket when `from` is its port. */
  async udpSend({ address, port, datagrams, local = address.includes(':') ? '::' : '0.0.0.0', from }) {
    const socket = from === undefined ? await bound(local, 0) : listeners.get(from).socket;
    for (const hex of datagrams) {
      await new Promise((resolve, reject) => {
        socket.send(Buffer.from(hex, 'hex'), port, address, (error) => (error ? reject(error) : resolve()));
      });
    }
    if (from === undefined) socket.close();
  },
  /** One request at a time to an echoing listener, from one port; a lost one is sent again. */
  async udpExchange({ address, port, count, size, patienceMs = 1000, tries = 10, localPort = 0 }) {
    const socket = await bound(address.includes(':') ? '::' : '0.0.0.0', localPort);
    let answered = 0;
    let lost = 0;
    let wrong = 0;
    for (let i = 0; i < count; i++) {
      const request = Buffer.alloc(size, i);
      request.writeUInt32BE(i, 0);
      for (let attempt = 0; attempt < tries; attempt++) {
        const answer = await new Promise((resolve) => {
          const timer = setTimeout(() => resolve(undefined), patienceMs);
          socket.removeAllListeners('message');
          socket.on('message', (data) => {
            clearTimeout(timer);
            resolve(data);
          });
          socket.on('error', () => undefined); // an ICMP error is a loss like others
          socket.send(request, port, address);
        });
        if (answer === undefined) {
          lost++;
          continue;
        }
        answered++;
        if (!answer.equals(request)) wrong++;
        break;
      }
    }
    socket.close();
    return { answered, lost, wrong };
  },
  /** Sends from `flows` ports as fast as the event loop allows, until udpFloodStop. */
  async udpFlood({ address, port, size, flows = 1, burst = 64 }) {
    flooding = true;
    const sockets = await Promise.all(Array.from({ length: flows }, () => bound('0.0.0.0', 0)));
    const payload = Buffer.alloc(size, 0x5a);
    let sent = 0;
    const send = () => {
      if (!flooding) {
        for (const socket of sockets) socket.close();
        print({ event: 'flooded', sent });
        return;
      }
      let left = burst;
      const done = () => {
        if (--left === 0) setImmediate(send);
      };
      for (let i = 0; i < burst; i++) sockets[sent++ % flows].send(payload, port, address, done);
    };
    send();
  },
  udpFloodStop() {
    flooding = false;
  },
};

const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const { id, call, with: given } = JSON.parse(line);
  Promise.resolve()
    .then(() => calls[call](given ?? {}))
    .then(
      (value) => print({ id, value: value ?? null }),
      (error) => print({ id, error: describe(error) }),
    );
});
lines.on('close', () => process.exit(0));
print({ event: 'ready' });
