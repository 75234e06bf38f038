/** The two loads that run in the background of the lab: one TCP stream and one pinger for each endpoint at most. */
import { createSocket, type Socket as Datagrams } from 'node:dgram';
import { connect, type Socket } from 'node:net';
import { messageOf } from '../../errors.js';
import { PORTS, socketType } from './protocol.js';

const RECEIVE_BYTES = 512 * 1024;
/** A reply later than this is lost. */
const PING_TIMEOUT_MS = 1000;
const PING_BYTES = 64;

/** Receives from another endpoint's source service into one buffer, and counts. */
export class Stream {
  #socket: Socket | undefined;
  #bytes = 0;
  #error: string | undefined;

  start(host: string): null {
    this.stop();
    this.#error = undefined;
    const socket = connect({
      host,
      port: PORTS.source,
      onread: {
        buffer: Buffer.allocUnsafe(RECEIVE_BYTES),
        callback: (length) => {
          this.#bytes += length;
          return true;
        },
      },
    });
    socket.on('error', (error) => {
      if (this.#socket === socket) this.#error = messageOf(error);
    });
    socket.on('close', () => {
      if (this.#socket === socket) this.#error ??= 'the connection was closed';
    });
    this.#socket = socket;
    return null;
  }

  stop(): null {
    const socket = this.#socket;
    this.#socket = undefined;
    socket?.resetAndDestroy();
    return null;
  }

  take(): { streamBytes: number; streamError?: string } {
    const streamBytes = this.#bytes;
    this.#bytes = 0;
    return { streamBytes, ...(this.#error === undefined ? {} : { streamError: this.#error }) };
  }
}

/** Sends numbered 64-byte echoes at a steady pace and keeps their round-trip times. */
export class Pinger {
  #socket: Datagrams | undefined;
  #timer: NodeJS.Timeout | undefined;
  readonly #waiting: Map<number, number> = new Map();
  #next = 0;
  #rttUs: number[] = [];
  #pings = 0;
  #lost = 0;

  start(host: string, intervalMs: number): null {
    this.stop();
    const socket = createSocket(socketType(host));
    socket.on('error', () => {});
    socket.on('message', (message) => {
      const sentAt = this.#waiting.get(message.readUInt32BE(0));
      if (sentAt === undefined) return;
      this.#waiting.delete(message.readUInt32BE(0));
      this.#rttUs.push((performance.now() - sentAt) * 1000);
    });
    const message = Buffer.alloc(PING_BYTES);
    this.#socket = socket;
    this.#timer = setInterval(() => {
      message.writeUInt32BE(this.#next, 0);
      this.#waiting.set(this.#next, performance.now());
      this.#next = (this.#next + 1) >>> 0;
      this.#pings += 1;
      socket.send(message, PORTS.echo, host, () => {});
    }, intervalMs);
    return null;
  }

  stop(): null {
    clearInterval(this.#timer);
    this.#socket?.close();
    this.#socket = undefined;
    this.#waiting.clear();
    return null;
  }

  take(): { rttUs: readonly number[]; pings: number; lost: number } {
    const deadline = performance.now() - PING_TIMEOUT_MS;
    for (const [sequence, sentAt] of this.#waiting) {
      if (sentAt > deadline) break;
      this.#waiting.delete(sequence);
      this.#lost += 1;
    }
    const result = { rttUs: this.#rttUs, pings: this.#pings, lost: this.#lost };
    this.#rttUs = [];
    this.#pings = 0;
    this.#lost = 0;
    return result;
  }
}
