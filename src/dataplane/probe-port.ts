/**
 * Peer probes where the kernel carries the packets and owns the data port: the same questions and answers (see
 * native/probe.c), asked and answered by the main thread on a UDP port of their own.
 */
import { createSocket, type Socket } from 'node:dgram';
import { PodwireError, messageOf } from '../errors.js';
import type { NextHopRow } from '../fib/next-hops.js';
import { PEER_PROBE_ANSWERS, PEER_PROBE_MICROSECONDS, PEER_PROBES_HEARD, PEER_WORDS } from '../io/batch.js';
import { PROBE_ANSWER, PROBE_QUESTION, PROBE_TYPE } from '../io/batch.js';
import type { Address } from '../net/prefix.js';
import { PeerActivity } from './activity.js';
import type { Logger } from './logger.js';
import { type PeerProbe, PeerProbes } from './probes.js';

/** Beside flannel's 8285; the same on every host of a network. */
export const PROBE_PORT = 8286;

const PROBE_BYTES = 16;
const MAGIC = 0x70777001;
const NONCE = 5;
const CLOCK = 8;
/** An answer that took longer is to nothing that anybody still waits for. */
const LONGEST_US = 10_000_000;
const MOST_PEERS = 20_000;

export interface ProbePortOptions {
  /** Underlay addresses to bind, at most one of each family. */
  readonly addresses: readonly Address[];
  readonly port?: number;
  /** Underlay addresses of the hosts that are asked and answered now. */
  readonly peers: () => Iterable<Address>;
  readonly logger: Logger;
}

export class ProbePort implements AsyncDisposable {
  readonly #options: ProbePortOptions;
  readonly #port: number;
  readonly #sockets: readonly { readonly family: number; readonly socket: Socket }[];
  readonly #counters = new Float64Array(MOST_PEERS * PEER_WORDS);
  readonly #activity: PeerActivity;
  readonly #probes: PeerProbes;
  /** By address text; ids are given once and not again. */
  readonly #rows = new Map<string, NextHopRow>();
  #nextId = 1;

  private constructor(options: ProbePortOptions, sockets: readonly { family: number; socket: Socket }[]) {
    this.#options = options;
    this.#port = options.port ?? PROBE_PORT;
    this.#sockets = sockets;
    const batches = [{ peers: this.#counters }];
    this.#activity = new PeerActivity(batches, MOST_PEERS);
    this.#probes = new PeerProbes({
      batches,
      peers: () => this.#refresh(),
      ask: (row, nonce) => this.#ask(row, nonce),
      logger: options.logger,
    });
    for (const { socket } of sockets) {
      socket.on('message', (bytes, from) => this.#take(socket, bytes, from));
      // What ICMP says about a peer is an answer that is missing.
      socket.on('error', () => undefined);
      socket.unref();
    }
    this.#refresh();
    this.#probes.start();
    this.#activity.start();
  }

  /** @throws {PodwireError} `PORT_IN_USE`, `SYSTEM`; nothing is left open. */
  static async open(options: ProbePortOptions): Promise<ProbePort> {
    const sockets: { family: number; socket: Socket }[] = [];
    try {
      for (const address of options.addresses) {
        sockets.push({ family: address.family, socket: await bind(address, options.port ?? PROBE_PORT) });
      }
    } catch (error) {
      for (const { socket } of sockets) socket.close();
      throw error;
    }
    return new ProbePort(options, sockets);
  }

  /** What is known of a peer; undefined until it has been asked. */
  of(address: Address): PeerProbe | undefined {
    const row = this.#rows.get(address.toString());
    return row && this.#probes.of(row.hostId);
  }

  /** Milliseconds since a probe of this peer was heard; undefined for never. */
  lastHeardMs(address: Address): number | undefined {
    const row = this.#rows.get(address.toString());
    return row && this.#activity.lastHeardMs(row.hostId);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#probes.stop();
    this.#activity.stop();
    await Promise.all(this.#sockets.map(({ socket }) => new Promise<void>((resolve) => socket.close(() => resolve()))));
  }

  #refresh(): NextHopRow[] {
    const present = new Set<string>();
    for (const address of this.#options.peers()) {
      const key = address.toString();
      present.add(key);
      if (this.#rows.has(key) || this.#nextId >= MOST_PEERS) continue;
      if (!this.#sockets.some(({ family }) => family === address.family)) continue;
      const hostId = this.#nextId++;
      this.#rows.set(key, {
        index: hostId,
        address,
        port: this.#port,
        vtepMac: undefined,
        hostId,
        pathMtu: 0,
        routes: 1,
      });
      this.#activity.added(hostId);
    }
    for (const key of this.#rows.keys()) if (!present.has(key)) this.#rows.delete(key);
    return [...this.#rows.values()];
  }

  #ask(row: NextHopRow, nonce: number): void {
    const question = Buffer.alloc(PROBE_BYTES);
    question.writeUInt32BE(MAGIC, 0);
    question.writeUInt8(PROBE_QUESTION, PROBE_TYPE);
    question.writeUIntBE(nonce, NONCE, 3);
    question.writeBigUInt64BE(process.hrtime.bigint(), CLOCK);
    const found = this.#sockets.find(({ family }) => family === row.address.family);
    found?.socket.send(question, row.port, row.address.toString(), () => undefined);
  }

  #take(socket: Socket, bytes: Buffer, from: { readonly address: string; readonly port: number }): void {
    if (bytes.length !== PROBE_BYTES || bytes.readUInt32BE(0) !== MAGIC) return;
    const row = this.#rows.get(from.address);
    if (row === undefined) return;
    const base = row.hostId * PEER_WORDS;
    const type = bytes.readUInt8(PROBE_TYPE);
    if (type === PROBE_QUESTION) {
      this.#counters[base + PEER_PROBES_HEARD]! += 1;
      bytes.writeUInt8(PROBE_ANSWER, PROBE_TYPE);
      socket.send(bytes, from.port, from.address, () => undefined);
      return;
    }
    if (type !== PROBE_ANSWER || bytes.readUIntBE(NONCE, 3) !== this.#probes.nonce) return;
    const tookUs = Number(process.hrtime.bigint() - bytes.readBigUInt64BE(CLOCK)) / 1000;
    if (tookUs < 0 || tookUs > LONGEST_US) return;
    this.#counters[base + PEER_PROBES_HEARD]! += 1;
    this.#counters[base + PEER_PROBE_ANSWERS]! += 1;
    this.#counters[base + PEER_PROBE_MICROSECONDS]! += tookUs;
  }
}

function bind(address: Address, port: number): Promise<Socket> {
  const socket = createSocket({ type: address.family === 6 ? 'udp6' : 'udp4', ipv6Only: address.family === 6 });
  return new Promise((resolve, reject) => {
    socket.once('error', (error: NodeJS.ErrnoException) => {
      socket.close();
      const inUse = error.code === 'EADDRINUSE';
      reject(
        new PodwireError(
          inUse ? 'PORT_IN_USE' : 'SYSTEM',
          `cannot bind UDP port ${port} on ${address.toString()} for peer probes: ${inUse ? 'it is in use' : messageOf(error)}; peers show no round trip and loss`,
          { cause: error },
        ),
      );
    });
    socket.bind({ address: address.toString(), port }, () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
  });
}
