/**
 * A simulated underlay: datagrams between addresses, in virtual time, with faults that a seed decides. Nothing happens
 * by itself: no timer runs, the clock moves when {@link MemoryNetwork.advance} is called, and the same seed and calls
 * give the same run.
 */
import { PodwireError } from '../errors.js';
import { Address } from '../net/prefix.js';

/** What may happen to a datagram; shares are probabilities from 0 to 1. */
export interface Faults {
  /** Share that vanishes. */
  readonly loss: number;
  /** Share that arrives twice. */
  readonly duplication: number;
  /**
   * Share of which one bit is turned. It arrives all the same, as it does when the underlay's UDP checksum is off or
   * was fooled: what the receiver must survive.
   */
  readonly corruption: number;
  /** Share that takes 1 to `reorderingTicks` ticks longer, so that later datagrams overtake it. */
  readonly reordering: number;
  readonly reorderingTicks: number;
  /** Ticks that every datagram takes; 0 arrives within the call that sent it. */
  readonly latencyTicks: number;
  /** Largest outer packet in bytes that this path carries; a larger one vanishes without a word (a "black hole"). */
  readonly pathMtu: number;
}

export interface MemoryNetworkOptions extends Partial<Faults> {
  /** Any integer; default 1. */
  readonly seed?: number;
  /** MTU in bytes of every host's underlay device; a larger outer packet is refused at the sender. Default 1500. */
  readonly mtu?: number;
  /** Datagrams that wait for one socket at most; what comes on top is lost, as with SO_RCVBUF. Default 4096. */
  readonly socketQueue?: number;
}

/** One end of a datagram's way. */
export interface Endpoint {
  readonly address: Address;
  readonly port: number;
}

export interface Datagram {
  readonly from: Endpoint;
  readonly to: Endpoint;
  readonly payload: Uint8Array;
  /** The outer header's congestion mark, 0 to 3. */
  readonly mark: number;
}

/**
 * What became of the datagrams: `sent + duplicated = lost + tooBig + noReceiver + overflow + delivered + inFlight`.
 * `corrupted` and `reordered` are counted besides.
 */
export interface NetworkStats {
  readonly sent: number;
  readonly lost: number;
  readonly duplicated: number;
  readonly corrupted: number;
  readonly reordered: number;
  readonly tooBig: number;
  readonly noReceiver: number;
  readonly overflow: number;
  readonly delivered: number;
  readonly inFlight: number;
}

/** Who a socket's datagrams are given to; false when its queue is full. */
type Receiver = (datagram: Datagram) => boolean;

interface InFlight {
  readonly due: number;
  readonly order: number;
  readonly datagram: Datagram;
}

const NO_FAULTS: Faults = {
  loss: 0,
  duplication: 0,
  corruption: 0,
  reordering: 0,
  reorderingTicks: 8,
  latencyTicks: 0,
  pathMtu: 65_535,
};
const DEFAULT_MTU = 1500;
const DEFAULT_SOCKET_QUEUE = 4096;

/** Numbers in [0, 1) that only depend on the seed (mulberry32: 32 bits of state, good enough to choose faults). */
export function seededRandom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

/** Bytes of an outer packet around `payload` bytes: IP and UDP header. */
function outerBytes(to: Address, payload: number): number {
  return (to.family === 4 ? 20 : 40) + 8 + payload;
}

export class MemoryNetwork {
  /** MTU of the hosts' underlay devices, bytes. */
  readonly mtu: number;
  readonly socketQueue: number;
  readonly #random: () => number;
  readonly #everywhere: Faults;
  /** Faults of single paths, by `from > to`. */
  readonly #paths = new Map<string, Faults>();
  readonly #receivers = new Map<string, Receiver>();
  /** Ordered by due time, then by sending. */
  #inFlight: InFlight[] = [];
  #order = 0;
  #now = 0;
  readonly #stats = {
    sent: 0,
    lost: 0,
    duplicated: 0,
    corrupted: 0,
    reordered: 0,
    tooBig: 0,
    noReceiver: 0,
    overflow: 0,
    delivered: 0,
  };

  constructor(options: MemoryNetworkOptions = {}) {
    const { seed = 1, mtu = DEFAULT_MTU, socketQueue = DEFAULT_SOCKET_QUEUE, ...faults } = options;
    this.mtu = mtu;
    this.socketQueue = socketQueue;
    this.#random = seededRandom(seed);
    this.#everywhere = checkedFaults({ ...NO_FAULTS, ...faults });
  }

  /** Virtual time in ticks. */
  get now(): number {
    return this.#now;
  }

  get stats(): NetworkStats {
    return { ...this.#stats, inFlight: this.#inFlight.length };
  }

  /**
   * Faults of the way from one address to another, in that direction only; what is left out is as everywhere. Without
   * `faults` the path is as every other again.
   */
  setPath(from: Address | string, to: Address | string, faults?: Partial<Faults>): void {
    const key = pathKey(Address.from(from), Address.from(to));
    if (faults === undefined) this.#paths.delete(key);
    else this.#paths.set(key, checkedFaults({ ...this.#everywhere, ...faults }));
  }

  /**
   * Gives what is sent to `endpoint` to `receiver` until the returned function is called.
   * @throws PodwireError PORT_IN_USE when somebody has that address and port
   */
  bind(endpoint: Endpoint, receiver: Receiver): () => void {
    const key = endpointKey(endpoint);
    if (this.#receivers.has(key)) {
      throw new PodwireError('PORT_IN_USE', `UDP port ${endpoint.port} on ${endpoint.address.toString()} is in use`);
    }
    this.#receivers.set(key, receiver);
    return () => {
      if (this.#receivers.get(key) === receiver) this.#receivers.delete(key);
    };
  }

  /**
   * Sends a datagram; the bytes are copied. Anybody may send from any address: a spoofed outer source is one call.
   * False when the sender's own device refuses it because of its size.
   */
  send(from: Endpoint, to: Endpoint, payload: Uint8Array, mark = 0): boolean {
    const bytes = outerBytes(to.address, payload.length);
    if (bytes > this.mtu) return false;
    const faults = this.#paths.get(pathKey(from.address, to.address)) ?? this.#everywhere;
    this.#stats.sent++;
    if (bytes > faults.pathMtu) {
      this.#stats.tooBig++;
      return true;
    }
    if (this.#happens(faults.loss)) {
      this.#stats.lost++;
      return true;
    }
    this.#launch({ from, to, payload: this.#carried(payload, faults), mark }, faults);
    if (this.#happens(faults.duplication)) {
      this.#stats.duplicated++;
      this.#launch({ from, to, payload: this.#carried(payload, faults), mark }, faults);
    }
    return true;
  }

  /** Moves the clock on and delivers what is due by then. */
  advance(ticks = 1): void {
    this.#now += ticks;
    const due = this.#inFlight.findIndex((flight) => flight.due > this.#now);
    const arrived = this.#inFlight.splice(0, due < 0 ? this.#inFlight.length : due);
    for (const { datagram } of arrived) this.#deliver(datagram);
  }

  #happens(share: number): boolean {
    // No draw for what cannot happen: adding a fault to one path does not change what the others get from a seed.
    return share > 0 && this.#random() < share;
  }

  #carried(payload: Uint8Array, faults: Faults): Uint8Array {
    const copy = Uint8Array.from(payload);
    if (copy.length === 0 || !this.#happens(faults.corruption)) return copy;
    const bit = Math.floor(this.#random() * copy.length * 8);
    copy[bit >>> 3]! ^= 1 << (bit & 7);
    this.#stats.corrupted++;
    return copy;
  }

  #launch(datagram: Datagram, faults: Faults): void {
    let ticks = faults.latencyTicks;
    if (this.#happens(faults.reordering)) {
      ticks += 1 + Math.floor(this.#random() * faults.reorderingTicks);
      this.#stats.reordered++;
    }
    if (ticks === 0) {
      this.#deliver(datagram);
      return;
    }
    const flight = { due: this.#now + ticks, order: this.#order++, datagram };
    let at = this.#inFlight.length;
    while (at > 0 && this.#inFlight[at - 1]!.due > flight.due) at--;
    this.#inFlight.splice(at, 0, flight);
  }

  #deliver(datagram: Datagram): void {
    const receiver = this.#receivers.get(endpointKey(datagram.to));
    if (receiver === undefined) this.#stats.noReceiver++;
    else if (receiver(datagram)) this.#stats.delivered++;
    else this.#stats.overflow++;
  }
}

const AF_INET = 2;
const AF_INET6 = 10;
const SOCKADDR_LENGTH = 28;

/**
 * Where a next-hop row sends: its sockaddr_in (family, port, address) or sockaddr_in6 (family, port, flow, address),
 * family in host order (little endian), port and address in network order; undefined when it is neither.
 */
export function readNextHop(rows: DataView, at: number): Endpoint | undefined {
  const length = rows.getUint16(at + SOCKADDR_LENGTH, true);
  const family = rows.getUint16(at, true);
  const port = rows.getUint16(at + 2);
  const bytes = (offset: number, count: number): Uint8Array =>
    new Uint8Array(rows.buffer, rows.byteOffset + at + offset, count);
  if (family === AF_INET && length === 16) return { address: Address.fromBytes(bytes(4, 4)), port };
  if (family === AF_INET6 && length === 28) return { address: Address.fromBytes(bytes(8, 16)), port };
  return undefined;
}

function checkedFaults(faults: Faults): Faults {
  for (const name of ['loss', 'duplication', 'corruption', 'reordering'] as const) {
    const share = faults[name];
    if (!(share >= 0 && share <= 1)) {
      throw new PodwireError('INVALID_ARGUMENT', `${name} is ${String(share)}: give a share from 0 to 1`);
    }
  }
  for (const name of ['latencyTicks', 'reorderingTicks', 'pathMtu'] as const) {
    const value = faults[name];
    if (!Number.isInteger(value) || value < 0) {
      throw new PodwireError('INVALID_ARGUMENT', `${name} is ${String(value)}: give a whole number from 0 on`);
    }
  }
  return faults;
}

function endpointKey({ address, port }: Endpoint): string {
  return `${address.toString()} ${port}`;
}

function pathKey(from: Address, to: Address): string {
  return `${from.toString()} > ${to.toString()}`;
}
