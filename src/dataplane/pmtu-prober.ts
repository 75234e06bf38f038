/**
 * Path-MTU probes with the optional `raw-socket` package: ICMP echo requests that nobody on the way may fragment.
 *
 * IP_MTU_DISCOVER is PROBE: the kernel sets DF and believes no ICMP report, so a forged "fragmentation needed" neither
 * stops nor shrinks a probe (WANT and DO would: kernel ip(7)). Every request carries a fresh 16-byte nonce; an answer
 * counts only with the nonce, from the address asked and at full length, so that nobody off the path can make one.
 *
 * Main thread only: loading raw-socket in a worker thread crashes the process.
 */
import { randomBytes } from 'node:crypto';
import { createRequire } from 'node:module';
import { isMainThread } from 'node:worker_threads';
import { PodwireError, messageOf } from '../errors.js';
import { checksum } from '../net/checksum.js';
import { IPV4_HEADER_BYTES, IPV6_HEADER_BYTES } from '../net/packet.js';
import { Address, type Family } from '../net/prefix.js';
import type { ProbeOutcome } from './pmtu-search.js';

export interface PathMtuProber {
  /** Sends one request of `sizeBytes` of outer IP packet; never rejects. */
  probe(address: Address, sizeBytes: number, timeoutMs: number): Promise<ProbeOutcome>;
  close(): void;
}

/** Hears of every "fragmentation needed" or "packet too big" about a packet to `address`, true or forged. */
export type ReportListener = (address: Address, mtu: number) => void;

/** @throws PodwireError (UNSUPPORTED, PERMISSION) saying why probing is not available */
export type OpenProber = (onReport: ReportListener) => Promise<PathMtuProber>;

/** What is used of raw-socket 1.8, which has no types. */
export interface RawSocket {
  on(event: 'message', listener: (message: Buffer, source: string) => void): void;
  on(event: 'error', listener: (error: Error) => void): void;
  setOption(level: number, option: number, value: number): void;
  setOption(level: number, option: number, value: Buffer, length: number): void;
  send(buffer: Buffer, offset: number, length: number, address: string, after: (error: Error | null) => void): void;
  close(): void;
}

export interface RawSocketModule {
  createSocket(options: { protocol: number; addressFamily: number; bufferSize: number }): RawSocket;
}

interface Pending {
  readonly address: Address;
  readonly icmpBytes: number;
  readonly settle: (outcome: ProbeOutcome) => void;
}

const ICMP_HEADER_BYTES = 8;
const NONCE_BYTES = 16;
/** One message at most; raw-socket hands out slices of this one buffer, so messages are read before the next arrives. */
const RECEIVE_BYTES = 65_535;

/** Constants of <linux/in.h>, <linux/in6.h>, <linux/icmp.h> and <linux/icmpv6.h>. */
const PMTUDISC_PROBE = 3;
const SOL_RAW = 255;
const ICMP_FILTER = 1;

/** What differs between the families. */
const FAMILIES = {
  4: {
    addressFamily: 1, // raw-socket's own numbering
    protocol: 1,
    ipHeader: IPV4_HEADER_BYTES,
    level: 0, // IPPROTO_IP
    mtuDiscover: 10, // IP_MTU_DISCOVER
    echoRequest: 8,
    echoReply: 0,
    tooBig: 3, // with code 4
    tooBigCode: 4,
    quotedDestination: 16,
  },
  6: {
    addressFamily: 2,
    protocol: 58,
    ipHeader: IPV6_HEADER_BYTES,
    level: 41, // IPPROTO_IPV6
    mtuDiscover: 23, // IPV6_MTU_DISCOVER
    echoRequest: 128,
    echoReply: 129,
    tooBig: 2,
    tooBigCode: 0,
    quotedDestination: 24,
  },
} as const;

/** Loads raw-socket and opens the IPv4 socket, so that a missing package or right shows at once. */
export const openRawSocketProber: OpenProber = async (onReport) => {
  if (!isMainThread) {
    throw new PodwireError('UNSUPPORTED', 'path MTU probing needs raw-socket, which only works on the main thread');
  }
  // Not a literal: the package is optional and has no types.
  const name = 'raw-socket';
  let module: RawSocketModule;
  try {
    module = createRequire(import.meta.url)(name) as RawSocketModule;
  } catch (cause) {
    const reason = messageOf(cause).slice(0, 200);
    throw new PodwireError('UNSUPPORTED', `the optional package raw-socket does not load (${reason})`, { cause });
  }
  const prober = new RawSocketProber(module, onReport);
  try {
    prober.open(4);
  } catch (cause) {
    throw new PodwireError('PERMISSION', `a raw ICMP socket was refused (${messageOf(cause)}): it needs CAP_NET_RAW`, {
      cause,
    });
  }
  return prober;
};

/** The prober over a loaded raw-socket, or over anything that behaves like it. */
export class RawSocketProber implements PathMtuProber {
  readonly #module: RawSocketModule;
  readonly #onReport: ReportListener;
  readonly #sockets = new Map<Family, RawSocket>();
  /** By nonce, as a string of its bytes. */
  readonly #pending = new Map<string, Pending>();
  readonly #id = randomBytes(2).readUInt16BE(0);
  #sequence = 0;
  #closed = false;

  constructor(module: RawSocketModule, onReport: ReportListener) {
    this.#module = module;
    this.#onReport = onReport;
  }

  /** Requests whose fate is not known yet. */
  get underWay(): number {
    return this.#pending.size;
  }

  open(family: Family): RawSocket {
    const existing = this.#sockets.get(family);
    if (existing) return existing;
    const f = FAMILIES[family];
    const { protocol, addressFamily } = f;
    const socket = this.#module.createSocket({ protocol, addressFamily, bufferSize: RECEIVE_BYTES });
    socket.on('error', () => {
      // The next probe opens another one; those under way end as lost.
      if (this.#sockets.get(family) !== socket) return;
      this.#sockets.delete(family);
      socket.close();
    });
    socket.on('message', (message, source) => {
      if (family === 4) this.#received4(message, source);
      else this.#received(6, message, source);
    });
    try {
      socket.setOption(f.level, f.mtuDiscover, PMTUDISC_PROBE);
      // Only answers and reports come in: a busy host hears much other ICMP.
      if (family === 4) socket.setOption(SOL_RAW, ICMP_FILTER, ~((1 << f.echoReply) | (1 << f.tooBig)) >>> 0);
      else socket.setOption(protocol, ICMP_FILTER, icmp6Filter(f.echoReply, f.tooBig), 32);
    } catch (error) {
      socket.close();
      throw error;
    }
    this.#sockets.set(family, socket);
    return socket;
  }

  probe(address: Address, sizeBytes: number, timeoutMs: number): Promise<ProbeOutcome> {
    const f = FAMILIES[address.family];
    const icmpBytes = sizeBytes - f.ipHeader;
    if (this.#closed || icmpBytes < ICMP_HEADER_BYTES + NONCE_BYTES) return Promise.resolve('failed');
    let socket: RawSocket;
    try {
      socket = this.open(address.family);
    } catch {
      return Promise.resolve('failed');
    }

    // type, code, checksum:16, id:16, sequence:16, nonce, zeros. The kernel fills in the ICMPv6 checksum.
    const request = Buffer.alloc(icmpBytes);
    request[0] = f.echoRequest;
    request.writeUInt16BE(this.#id, 4);
    this.#sequence = (this.#sequence + 1) & 0xffff;
    request.writeUInt16BE(this.#sequence, 6);
    randomBytes(NONCE_BYTES).copy(request, ICMP_HEADER_BYTES);
    if (address.family === 4) request.writeUInt16BE(checksum(request, 0, icmpBytes), 2);
    const nonce = nonceOf(request);

    return new Promise((resolve) => {
      const settle = (outcome: ProbeOutcome): void => {
        clearTimeout(timer);
        this.#pending.delete(nonce);
        resolve(outcome);
      };
      const timer = setTimeout(settle, timeoutMs, 'lost');
      timer.unref();
      this.#pending.set(nonce, { address, icmpBytes, settle });
      socket.send(request, 0, icmpBytes, address.toString(), (error) => {
        // raw-socket's errors have no code, only strerror's text (glibc, musl).
        if (error) settle(/message too l(ong|arge)/i.test(error.message) ? 'too-big' : 'failed');
      });
    });
  }

  /** A raw IPv4 socket delivers the IP header too (raw(7)). */
  #received4(packet: Buffer, source: string): void {
    this.#received(4, packet.subarray((packet[0]! & 15) * 4), source);
  }

  #received(family: Family, message: Buffer, source: string): void {
    const f = FAMILIES[family];
    if (message.length < ICMP_HEADER_BYTES) return;
    if (message[0] === f.echoReply) {
      const pending = this.#pending.get(nonceOf(message));
      if (pending === undefined || pending.icmpBytes !== message.length) return;
      if (Address.tryParse(source)?.equals(pending.address) === true) pending.settle('answered');
    } else if (message[0] === f.tooBig && message[1] === f.tooBigCode) {
      const quote = message.subarray(ICMP_HEADER_BYTES);
      if (quote.length < f.ipHeader || quote[0]! >>> 4 !== family) return;
      const destination = quote.subarray(f.quotedDestination, f.quotedDestination + (family === 4 ? 4 : 16));
      this.#onReport(Address.fromBytes(destination), family === 4 ? message.readUInt16BE(6) : message.readUInt32BE(4));
    }
  }

  close(): void {
    this.#closed = true;
    for (const socket of this.#sockets.values()) socket.close();
    this.#sockets.clear();
    for (const { settle } of this.#pending.values()) settle('failed');
  }
}

function nonceOf(message: Buffer): string {
  return message.toString('latin1', ICMP_HEADER_BYTES, ICMP_HEADER_BYTES + NONCE_BYTES);
}

/** struct icmp6_filter: 256 bits in native 32-bit words, a set bit blocks that type. */
function icmp6Filter(...passed: number[]): Buffer {
  const filter = Buffer.alloc(32, 0xff);
  const words = new Uint32Array(filter.buffer, filter.byteOffset, 8);
  for (const type of passed) words[type >>> 5] = words[type >>> 5]! & ~(1 << (type & 31));
  return filter;
}
