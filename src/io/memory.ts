/**
 * The twin of the native port: the same rows, verdicts and counters over a {@link MemoryNetwork} and a pod side that is
 * two queues in memory. What native/ does in vectors and system calls is done here one packet at a time, so that a
 * difference between the two is a defect in one of them; both pass the same contract suite.
 */
import { PodwireError } from '../errors.js';
import { outerMark } from '../net/ecn.js';
import { Address } from '../net/prefix.js';
import type { Batch, BatchMemory } from './batch.js';
import {
  EF_BAD,
  EF_TCP,
  EGRESS_BASE,
  E_FLAGS,
  E_GSO,
  E_HASH,
  E_HEADER,
  E_LENGTH,
  E_OFFSET,
  E_SEGMENTS,
  E_VERDICT,
  INGRESS_BASE,
  I_BYTES,
  I_FLAGS,
  I_LENGTH,
  I_MESSAGE,
  I_OFFSET,
  I_SEGMENTS,
  I_VERDICT,
  MAX_EGRESS,
  MAX_INGRESS,
  MAX_MESSAGES,
  MAX_REPLIES,
  MESSAGE_BASE,
  META_EGRESS_COUNT,
  META_HEARTBEAT,
  META_INGRESS_COUNT,
  META_MESSAGE_COUNT,
  META_REPLY_COUNT,
  M_FAMILY,
  M_LENGTH,
  M_PORT,
  M_WORD0,
  PEER_TX_DROPS,
  PEER_WORDS,
  REPLY_BASE,
  ROW_WORDS,
  R_LENGTH,
  R_OFFSET,
  TUN_SLOT,
  UDP_SLOT,
  V_FRAGMENT,
  openBatch,
} from './batch.js';
import type { Datagram, Endpoint, MemoryNetwork } from './memory-network.js';
import type { FromPod } from './memory-egress.js';
import { describeEgress } from './memory-egress.js';
import { finished, framed, takeMark } from './memory-frames.js';
import { readNextHop } from './memory-network.js';
import type { PacketPort, PortEncapsulation } from './ports.js';
import type { Offload } from './segmentation.js';
import { congestionMark, fragment, isPartial, parseHeaders, portsKey, segment } from './segmentation.js';

/** native/layout.h: PW_V_ROW_MASK, PW_NEXTHOP_…; native/engine.h: PW_TUN_HEADROOM. */
const VERDICT_ROW_MASK = 0x00ffffff;
const FIRST_NEXT_HOP = 3;
const NEXT_HOP_BYTES = 64;
const TUN_HEADROOM = 16;
const RUN_TCP = 1;
const RUN_UDP = 2;
const PROTOCOL_TCP = 6;
/** What a dead descriptor gives. */
const EBADF = 9;
/** The first source port of those that flows are spread over, and how many there are. */
const FIRST_SOURCE_PORT = 49_152;
const SOURCE_PORTS = 16;
const DEFAULT_TUN_QUEUE = 2000;

export interface MemoryPortSpec {
  readonly network: MemoryNetwork;
  /** Where the port receives, and the address that it sends from. */
  readonly bind: { readonly address: Address | string; readonly port: number };
  readonly memory: BatchMemory;
  /** Names of the counters in the order of their indices (dataplane/counters.ts). */
  readonly counterNames: readonly string[];
  /** Packets from pods that may wait to be read; default 2000, as the TUN's queue. */
  readonly tunQueue?: number;
  /** The wire format, and the MTU of the pods' device, to which a packet that a kernel left whole is cut; default udp. */
  readonly encapsulation?: PortEncapsulation;
  readonly innerMtu?: number;
  /** `false`: every received packet is a row of its own, as without TUN offloads. Default true. */
  readonly runs?: boolean;
}

/** flannel's udp: the datagram is the packet. */
const BARE: PortEncapsulation = {
  headerBytes: 0,
  carriesEcn: false,
  fault: (datagram) => (datagram.length < 20 ? 'dropShort' : undefined),
};
const DEFAULT_INNER_MTU = 1450;

/**
 * A port in memory. The caller plays the pods: {@link inject} is what a pod sends, {@link take} what pods received.
 * As with a native port, rows and arenas belong to TypeScript between two turns.
 */
export class MemoryPort implements PacketPort {
  readonly batch: Batch;
  readonly endpoint: Endpoint;
  readonly #network: MemoryNetwork;
  readonly #nextHops: DataView;
  readonly #reader: Int32Array;
  readonly #names: readonly string[];
  readonly #tunQueue: number;
  readonly #joins: boolean;
  readonly #encapsulation: PortEncapsulation;
  readonly #innerMtu: number;
  readonly #unbind: () => void;
  readonly #fromPods: FromPod[] = [];
  readonly #received: Datagram[] = [];
  #toPods: Uint8Array[] = [];
  #egressRows = 0;
  /** Packets of each ingress row of the last turn, in the order of arrival. */
  #runs: Uint8Array[][] = [];
  #destroyed = false;

  /**
   * @param nextHops the FIB's rows, 64 bytes each
   * @param reader this worker's epoch word in the FIB, one element
   * @throws PodwireError PORT_IN_USE
   */
  constructor(spec: MemoryPortSpec, nextHops: Uint8Array, reader: Int32Array) {
    this.batch = openBatch(spec.memory);
    this.endpoint = { address: Address.from(spec.bind.address), port: spec.bind.port };
    this.#network = spec.network;
    this.#nextHops = new DataView(nextHops.buffer, nextHops.byteOffset, nextHops.byteLength);
    this.#reader = reader;
    this.#names = spec.counterNames;
    this.#tunQueue = spec.tunQueue ?? DEFAULT_TUN_QUEUE;
    this.#joins = spec.runs ?? true;
    this.#encapsulation = spec.encapsulation ?? BARE;
    this.#innerMtu = spec.innerMtu ?? DEFAULT_INNER_MTU;
    this.#unbind = spec.network.bind(this.endpoint, (datagram) => {
      if (this.#received.length >= spec.network.socketQueue) return false;
      this.#received.push(datagram);
      return true;
    });
  }

  /** A pod's packet or superpacket; the bytes are copied. False when the TUN's queue is full: it is lost. */
  inject(packet: Uint8Array, offload: Offload = {}): boolean {
    if (packet.length > 65_535) throw new PodwireError('INVALID_ARGUMENT', `no packet has ${packet.length} bytes`);
    if (this.#fromPods.length >= this.#tunQueue) return false;
    this.#fromPods.push({ packet: Uint8Array.from(packet), offload });
    return true;
  }

  /** Everything that was delivered to the pods since the last call, replies included, one array a packet. */
  take(): Uint8Array[] {
    const packets = this.#toPods;
    this.#toPods = [];
    return packets;
  }

  /** Packets and datagrams that wait to be taken in by the next turns. */
  get waiting(): number {
    return this.#fromPods.length + this.#received.length;
  }

  /** As {@link PacketPort.turn}, but it never blocks: it returns 0 at once when nothing waits. */
  turn(timeoutMs: number): number {
    if (this.#destroyed) return -EBADF;
    const { meta } = this.batch;
    this.#send();
    this.#deliver();
    this.#reply();
    this.#count('turns', 1);
    meta[META_HEARTBEAT] = (meta[META_HEARTBEAT]! + 1) | 0;
    if (timeoutMs !== 0 && this.waiting === 0) {
      // Where the native port blocks, it holds no row of the FIB any more.
      Atomics.store(this.#reader, 0, 0);
      this.#count('waits', 1);
    }
    this.#readTun();
    const messages = this.#receive();
    meta[META_EGRESS_COUNT] = this.#egressRows;
    meta[META_INGRESS_COUNT] = this.#runs.length;
    meta[META_MESSAGE_COUNT] = messages;
    return this.#egressRows | (this.#runs.length << 16);
  }

  destroy(): void {
    this.#destroyed = true;
    this.#unbind();
  }

  #count(name: string, by: number): void {
    this.batch.counters[this.#names.indexOf(name)]! += by;
  }

  /** Fills egress rows: packets lie densely, each IP header at a multiple of 64 plus the headroom. */
  #readTun(): void {
    const { tun } = this.batch;
    let at = 0;
    let rows = 0;
    while (rows < MAX_EGRESS && tun.length - at >= TUN_SLOT) {
      const next = this.#fromPods.shift();
      if (next === undefined) break;
      this.#count('tunReads', 1);
      if (next.packet.length === 0) continue;
      const offset = at + TUN_HEADROOM;
      tun.set(next.packet, offset);
      describeEgress(this.batch, EGRESS_BASE + rows * ROW_WORDS, offset, next);
      rows++;
      at = Math.ceil((offset + next.packet.length) / 64) * 64;
    }
    this.#egressRows = rows;
  }

  /** Carries out the egress verdicts of the last turn. */
  #send(): void {
    const { meta, tun } = this.batch;
    for (let i = 0; i < this.#egressRows; i++) {
      const row = EGRESS_BASE + i * ROW_WORDS;
      const verdict = meta[row + E_VERDICT]!;
      const nextHop = verdict & VERDICT_ROW_MASK;
      const flags = meta[row + E_FLAGS]!;
      const offset = meta[row + E_OFFSET]!;
      const length = meta[row + E_LENGTH]!;
      if (nextHop < FIRST_NEXT_HOP || nextHop * NEXT_HOP_BYTES >= this.#nextHops.byteLength || flags & EF_BAD) continue;
      if (offset < 0 || length < 20 || offset + length > tun.length) continue;
      const packet = tun.slice(offset, offset + length);
      const gso = meta[row + E_GSO]!;
      const kind = (flags & EF_TCP) !== 0 ? 'tcp' : 'udp';
      const header = meta[row + E_HEADER]!;
      const packets = gso === 0 ? [packet] : segment(packet, kind, header, gso);
      const hash = meta[row + E_HASH]!;
      for (const one of packets) {
        if ((verdict & V_FRAGMENT) === 0) this.#sendOne(nextHop, hash, one);
        else this.#sendFragments(nextHop, hash, one, meta[row + E_SEGMENTS]!, gso === 0 ? 0 : header);
      }
      this.#count('egressSuperpackets', 1);
    }
    this.#egressRows = 0;
  }

  #sendFragments(nextHop: number, hash: number, packet: Uint8Array, mtu: number, header: number): void {
    const together = header === 0 ? 0 : header - (packet[0]! & 15) * 4;
    const fragments = fragment(packet, mtu, together);
    if (fragments === undefined) {
      this.#count('dropTooBig', 1);
      this.#countPeerDrop(nextHop);
      return;
    }
    if (fragments.length > 1) this.#count('fragmentsSent', fragments.length);
    for (const one of fragments) this.#sendOne(nextHop, hash, one);
  }

  #sendOne(nextHop: number, hash: number, packet: Uint8Array): void {
    this.#count('sendCalls', 1);
    this.#count('sendEntries', 1);
    const to = readNextHop(this.#nextHops, nextHop * NEXT_HOP_BYTES);
    if (to === undefined || to.address.family !== this.endpoint.address.family) {
      this.#count('dropSendError', 1);
      this.#countPeerDrop(nextHop);
      return;
    }
    const from = { address: this.endpoint.address, port: FIRST_SOURCE_PORT + (hash % SOURCE_PORTS) };
    const datagram = framed(packet, this.#encapsulation.headerBytes, this.#nextHops, nextHop * NEXT_HOP_BYTES);
    const mark = this.#encapsulation.carriesEcn ? outerMark(congestionMark(packet)) : 0;
    if (!this.#network.send(from, to, datagram, mark)) {
      this.#count('dropSendTooBig', 1);
      this.#countPeerDrop(nextHop);
      return;
    }
    this.#count('egressPackets', 1);
    this.#count('egressBytes', packet.length);
    this.#countPeer(nextHop, 0, packet.length);
  }

  /** Takes in one batch of datagrams: rows of messages, and of packets or runs of one flow. Returns the messages. */
  #receive(): number {
    const { udp } = this.batch;
    const slots = Math.min(MAX_MESSAGES, Math.floor(udp.length / UDP_SLOT));
    this.#runs = [];
    let messages = 0;
    this.#count('receiveCalls', 1);
    let open: string | undefined;
    while (messages < slots && this.#runs.length < MAX_INGRESS) {
      const datagram = this.#received.shift();
      if (datagram === undefined) break;
      const { from } = datagram;
      const slot = messages * UDP_SLOT;
      udp.set(datagram.payload, slot);
      this.#describeMessage(MESSAGE_BASE + messages * ROW_WORDS, from, datagram.payload.length);
      const message = messages++;
      const fault = this.#encapsulation.fault(datagram.payload);
      if (fault !== undefined) {
        this.#count(fault, 1);
        continue;
      }
      const offset = slot + this.#encapsulation.headerBytes;
      const payload = udp.subarray(offset, slot + datagram.payload.length);
      if (this.#encapsulation.carriesEcn && !takeMark(payload, datagram.mark)) {
        this.#count('dropEcnMark', 1);
        continue;
      }
      const headers = parseHeaders(payload);
      const packet = udp.subarray(offset, offset + (headers?.length ?? payload.length));
      if (this.#encapsulation.headerBytes > 0 && headers !== undefined && isPartial(packet, headers)) {
        this.#openRow(offset, payload.length, message, ...finished(packet, headers, this.#innerMtu));
        open = undefined;
        continue;
      }
      const ports = headers === undefined ? undefined : portsKey(packet, headers);
      const flow = ports === undefined ? undefined : `${from.address.toString()} ${ports}`;
      if (this.#joins && flow !== undefined && flow === open) this.#join(packet, headers!.protocol);
      else this.#openRow(offset, payload.length, message, packet);
      open = flow;
    }
    this.#count('receiveMessages', messages);
    return messages;
  }

  #openRow(offset: number, length: number, message: number, ...packets: Uint8Array[]): void {
    const { meta } = this.batch;
    const row = INGRESS_BASE + this.#runs.length * ROW_WORDS;
    meta.fill(0, row, row + ROW_WORDS);
    meta[row + I_OFFSET] = offset;
    meta[row + I_LENGTH] = length;
    meta[row + I_SEGMENTS] = packets.length;
    meta[row + I_MESSAGE] = message;
    meta[row + I_BYTES] = packets.reduce((sum, packet) => sum + packet.length, 0);
    this.#runs.push(packets);
  }

  #join(packet: Uint8Array, protocol: number): void {
    const { meta } = this.batch;
    const row = INGRESS_BASE + (this.#runs.length - 1) * ROW_WORDS;
    meta[row + I_SEGMENTS]! += 1;
    meta[row + I_BYTES]! += packet.length;
    meta[row + I_FLAGS] = protocol === PROTOCOL_TCP ? RUN_TCP : RUN_UDP;
    this.#runs.at(-1)!.push(packet);
  }

  #describeMessage(row: number, { address, port }: Endpoint, length: number): void {
    const { meta } = this.batch;
    meta.fill(0, row, row + ROW_WORDS);
    meta[row + M_FAMILY] = address.family;
    for (let word = 0; word < address.bytes.length / 4; word++) meta[row + M_WORD0 + word] = address.word(word);
    meta[row + M_PORT] = port;
    meta[row + M_LENGTH] = length;
  }

  /** Carries out the ingress verdicts of the last turn. */
  #deliver(): void {
    const { meta } = this.batch;
    for (const [i, run] of this.#runs.entries()) {
      const verdict = meta[INGRESS_BASE + i * ROW_WORDS + I_VERDICT]!;
      if (verdict <= 0) continue;
      this.#count('ingressSuperpackets', 1);
      for (const packet of run) {
        this.#toPods.push(Uint8Array.from(packet));
        this.#count('tunWrites', 1);
        this.#count('ingressPackets', 1);
        this.#count('ingressBytes', packet.length);
        if (verdict > 1) this.#countPeer(verdict - 1, 2, packet.length);
      }
    }
    this.#runs = [];
  }

  #countPeer(index: number, at: 0 | 2, bytes: number): void {
    const { peers } = this.batch;
    const base = index * PEER_WORDS + at;
    if (base >= peers.length) return;
    peers[base]! += 1;
    peers[base + 1]! += bytes;
  }

  #countPeerDrop(nextHop: number): void {
    const at = nextHop * PEER_WORDS + PEER_TX_DROPS;
    if (at < this.batch.peers.length) this.batch.peers[at]! += 1;
  }

  /** Packets that TypeScript built go to the pods. */
  #reply(): void {
    const { meta, reply } = this.batch;
    const count = Math.min(MAX_REPLIES, meta[META_REPLY_COUNT]!);
    meta[META_REPLY_COUNT] = 0;
    for (let i = 0; i < count; i++) {
      const row = REPLY_BASE + i * ROW_WORDS;
      const offset = meta[row + R_OFFSET]!;
      this.#toPods.push(reply.slice(offset, offset + meta[row + R_LENGTH]!));
      this.#count('repliesSent', 1);
    }
  }
}
