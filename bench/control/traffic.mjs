// @ts-check
/**
 * Datagrams with numbers, one after the other, and when each arrived: how a change of the routes shows in packets. All
 * times are CLOCK_MONOTONIC, which namespaces of one machine share.
 *
 * As a program, `node bench/control/traffic.mjs ADDRESS PORT OFFSET`, it listens and prints a line for every datagram:
 * its number and the time of its arrival in microseconds. OFFSET is where the number stands in the payload: behind an
 * inner packet's headers when it is a peer's data port that listens.
 */
import { createSocket } from 'node:dgram';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as delay } from 'node:timers/promises';
import { Daemon, waitFor } from '../lib/process.mjs';

const PROGRAM = fileURLToPath(import.meta.url);

/** Microseconds of CLOCK_MONOTONIC. */
export const nowUs = () => Number(process.hrtime.bigint() / 1000n);

/** Sends to one address at a pace until it is stopped. */
export class Sender {
  #socket = createSocket('udp4');
  #stopped = false;
  /** @type {Promise<void>} */ #loop;
  sent = 0;

  /**
   * @param {string} address
   * @param {number} port
   * @param {number} perSecond
   */
  constructor(address, port, perSecond) {
    this.#socket.on('error', () => {}); // no route is what is measured
    this.#loop = this.#run(address, port, perSecond);
  }

  /**
   * @param {string} address
   * @param {number} port
   * @param {number} perSecond
   */
  async #run(address, port, perSecond) {
    const start = performance.now();
    while (!this.#stopped) {
      const due = Math.floor(((performance.now() - start) * perSecond) / 1000);
      for (; this.sent < due; this.sent++) {
        const payload = Buffer.alloc(12);
        payload.writeUInt32BE(this.sent);
        this.#socket.send(payload, port, address, () => {});
      }
      await delay(1);
    }
  }

  /** May be called twice. */
  async stop() {
    if (this.#stopped) return;
    this.#stopped = true;
    await this.#loop;
    this.#socket.close();
  }
}

/** The listening program in a namespace, and what it has heard. */
export class Listener {
  static #started = 0;
  #read = 0;
  /** @type {{ number: number, atUs: number }[]} */ arrivals = [];

  /** @param {Daemon} daemon */
  constructor(daemon) {
    this.daemon = daemon;
  }

  /**
   * @param {string} namespace
   * @param {{ address: string, port: number, offset: number, directory: string, signal: AbortSignal }} options
   */
  static async start(namespace, { address, port, offset, directory, signal }) {
    const argv = [process.execPath, PROGRAM, address, String(port), String(offset)];
    const daemon = new Daemon(`listener on ${namespace}`, argv, {
      namespace,
      logFile: join(directory, `listener-${(Listener.#started += 1)}.log`),
    });
    await waitFor('the listener', () => daemon.output().startsWith('ready\n'), { signal, alive: [daemon] });
    return new Listener(daemon);
  }

  /** Takes in what has been printed since the last call. */
  look() {
    const text = this.daemon.output();
    const end = text.lastIndexOf('\n') + 1;
    for (const line of text.slice(this.#read, end).split('\n')) {
      const [number, atUs] = line.split(' ').map(Number);
      if (line.includes(' ') && number !== undefined && atUs !== undefined) this.arrivals.push({ number, atUs });
    }
    this.#read = end;
    return this.arrivals;
  }
}

if (process.argv[1] === PROGRAM) {
  const [address = '', port = '', offset = '0'] = process.argv.slice(2);
  const socket = createSocket('udp4');
  const at = Number(offset);
  socket.on('message', (data) => {
    if (data.length >= at + 4) process.stdout.write(`${data.readUInt32BE(at)} ${nowUs()}\n`);
  });
  socket.bind(Number(port), address, () => process.stdout.write('ready\n'));
  process.on('SIGTERM', () => socket.close());
}
