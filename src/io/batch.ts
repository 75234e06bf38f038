/**
 * The tables that one worker shares with the engine in C: the same words as native/layout.h, which documents each.
 *
 * A batch belongs to one worker thread. C fills the egress, ingress and message rows during a turn and reads the
 * verdicts at the start of the next one; in between the rows and the packet bytes belong to TypeScript.
 */

export const META_EGRESS_COUNT = 0;
export const META_INGRESS_COUNT = 1;
export const META_MESSAGE_COUNT = 2;
export const META_REPLY_COUNT = 3;
/** 0 = run, 1 = leave the loop; see worker.ts for the values that only fault injection uses. */
export const META_STOP = 4;
export const META_HEARTBEAT = 5;

export const MAX_EGRESS = 256;
export const MAX_INGRESS = 1024;
/**
 * Messages received before they are written. A kernel's vxlan device sends without an outer checksum, and UDP_GRO merges
 * none of those: each message is one packet then, and a superpacket to the TUN takes some 47 of them.
 */
export const MAX_MESSAGES = 64;
export const MAX_REPLIES = 32;
export const ROW_WORDS = 8;

export const EGRESS_BASE = 16;
export const INGRESS_BASE: number = EGRESS_BASE + MAX_EGRESS * ROW_WORDS;
export const MESSAGE_BASE: number = INGRESS_BASE + MAX_INGRESS * ROW_WORDS;
export const REPLY_BASE: number = MESSAGE_BASE + MAX_MESSAGES * ROW_WORDS;
export const META_TOTAL_WORDS: number = REPLY_BASE + MAX_REPLIES * ROW_WORDS;

/** Egress row: one packet or superpacket from the TUN. */
export const E_OFFSET = 0;
export const E_LENGTH = 1;
export const E_GSO = 2;
export const E_FLAGS = 3;
export const E_HEADER = 4;
export const E_HASH = 5;
export const E_VERDICT = 6;
export const E_SEGMENTS = 7;
export const EF_TCP = 1;
export const EF_UDP = 2;
export const EF_BAD = 4;
/** Added to the verdict: send as IPv4 fragments of at most E_SEGMENTS bytes, where TypeScript put the inner MTU. */
export const V_FRAGMENT = 0x10000000;

/** Ingress row: a run of inner packets of one flow, or one inner packet. */
export const I_OFFSET = 0;
export const I_LENGTH = 1;
export const I_SEGMENTS = 2;
export const I_MESSAGE = 4;
export const I_VERDICT = 5;
export const I_BYTES = 6;
export const I_FLAGS = 7;
export const IF_TRUNCATED = 4;
/** A peer probe: 16 bytes, see native/probe.c; I_BYTES is the microseconds since its clock word, or -1. */
export const IF_PROBE = 16;
export const PROBE_QUESTION = 1;
export const PROBE_ANSWER = 2;
/** Offset of the byte that tells which; a nonce of three bytes follows. */
export const PROBE_TYPE = 4;

/** Where a next-hop row has the header that stands in front of inner packets, and the most bytes that it may have. */
export const NEXTHOP_ENCAP = 42;
export const VXLAN_BYTES = 22;

/** Message row: what one receive gave. */
export const M_FAMILY = 0;
export const M_WORD0 = 1;
export const M_PORT = 5;
export const M_LENGTH = 6;

/** Reply row: a packet that TypeScript built. */
export const R_OFFSET = 0;
export const R_LENGTH = 1;
export const R_L4_OFFSET = 2;
export const R_FAMILY = 3;

/** Bytes of a receive slot and of the least TUN arena. */
export const UDP_SLOT = 66_624;
export const TUN_SLOT = 65_632;
/** One reply is at most an ICMPv6 error: 1280 bytes. */
export const REPLY_SLOT = 1280;

/**
 * Per next hop (transmit) and host id (receive): float64 txPackets, txBytes, rxPackets, rxBytes, txDrops, rxDrops, and of
 * peer probes: heard, answers to ours, microseconds that those took.
 */
export const PEER_WORDS = 9;
export const PEER_TX_DROPS = 4;
export const PEER_RX_DROPS = 5;
export const PEER_PROBES_HEARD = 6;
export const PEER_PROBE_ANSWERS = 7;
export const PEER_PROBE_MICROSECONDS = 8;

/** A next hop's index gets a new meaning: what was counted for its last one goes. */
export function clearTransmitCounts(peers: Float64Array, index: number): void {
  const base = index * PEER_WORDS;
  peers.fill(0, base, base + 2);
  peers[base + PEER_TX_DROPS] = 0;
}

/** The same for the id of a host, under which receipts are counted. */
export function clearReceiveCounts(peers: Float64Array, hostId: number): void {
  const base = hostId * PEER_WORDS;
  peers.fill(0, base + 2, base + 4);
  peers.fill(0, base + PEER_RX_DROPS, base + PEER_WORDS);
}

/** Where the regions of one batch lie in `buffer`, in bytes. Safe to post to a worker. */
export interface BatchMemory {
  readonly buffer: SharedArrayBuffer;
  readonly countersOffset: number;
  readonly counterCount: number;
  readonly peersOffset: number;
  readonly peerCount: number;
  readonly replyOffset: number;
  readonly udpOffset: number;
  readonly udpBytes: number;
  readonly tunOffset: number;
  readonly tunBytes: number;
}

/** Superpackets read before they are sent. */
const TUN_SUPERPACKETS = 16;
const PAGE = 4096;

/** Reserves the memory of one worker; pages are committed as they are used. */
export function createBatchMemory(counterCount: number, peerCount: number): BatchMemory {
  let end = 0;
  const region = (bytes: number): number => {
    const start = end;
    end = Math.ceil((start + bytes) / PAGE) * PAGE;
    return start;
  };
  region(META_TOTAL_WORDS * 4);
  const countersOffset = region(counterCount * 8);
  const peersOffset = region(peerCount * PEER_WORDS * 8);
  const replyOffset = region(MAX_REPLIES * REPLY_SLOT);
  const udpBytes = MAX_MESSAGES * UDP_SLOT;
  const udpOffset = region(udpBytes);
  const tunBytes = TUN_SUPERPACKETS * TUN_SLOT;
  const tunOffset = region(tunBytes);
  return {
    buffer: new SharedArrayBuffer(end),
    countersOffset,
    counterCount,
    peersOffset,
    peerCount,
    replyOffset,
    udpOffset,
    udpBytes,
    tunOffset,
    tunBytes,
  };
}

/** Views over a batch. */
export interface Batch {
  readonly meta: Int32Array;
  readonly counters: Float64Array;
  readonly peers: Float64Array;
  /** Packets from the TUN. */
  readonly tun: Uint8Array;
  readonly tunView: DataView;
  /** Datagrams from the underlay. */
  readonly udp: Uint8Array;
  readonly udpView: DataView;
  /** Packets that TypeScript builds, {@link REPLY_SLOT} bytes each. */
  readonly reply: Uint8Array;
}

export function openBatch(memory: BatchMemory): Batch {
  const { buffer } = memory;
  return {
    meta: new Int32Array(buffer, 0, META_TOTAL_WORDS),
    counters: new Float64Array(buffer, memory.countersOffset, memory.counterCount),
    peers: new Float64Array(buffer, memory.peersOffset, memory.peerCount * PEER_WORDS),
    tun: new Uint8Array(buffer, memory.tunOffset, memory.tunBytes),
    tunView: new DataView(buffer, memory.tunOffset, memory.tunBytes),
    udp: new Uint8Array(buffer, memory.udpOffset, memory.udpBytes),
    udpView: new DataView(buffer, memory.udpOffset, memory.udpBytes),
    reply: new Uint8Array(buffer, memory.replyOffset, MAX_REPLIES * REPLY_SLOT),
  };
}
