/**
 * The decisions: which next hop for a packet from a pod, and whether a packet from the underlay may enter. Pure: it
 * reads the batch's rows and headers and the FIB, writes verdicts, counters and replies, and knows no kernel. One call
 * a batch and direction; nothing is allocated, thrown or looked up by name.
 */
import type { FibReader } from '../fib/lookup.js';
import { FIRST_NEXT_HOP, LOCAL, NO_ROUTE, SELF } from '../fib/layout.js';
import {
  ICMP4_NET_UNREACHABLE,
  ICMP4_OFFSET,
  ICMP6_NO_ROUTE,
  ICMP6_OFFSET,
  mayAnswer4,
  mayAnswer6,
  takeToken,
  writeFragmentationNeeded4,
  writePacketTooBig6,
  writeUnreachable4,
  writeUnreachable6,
} from '../net/icmp.js';
import { PACKET_OK, PACKET_TRUNCATED, validateIpv4, validateIpv6 } from '../net/packet.js';
import type { Batch } from '../io/batch.js';
import {
  EF_BAD,
  EGRESS_BASE,
  E_FLAGS,
  E_GSO,
  E_HEADER,
  E_LENGTH,
  E_OFFSET,
  E_SEGMENTS,
  E_VERDICT,
  IF_PROBE,
  IF_TRUNCATED,
  INGRESS_BASE,
  I_BYTES,
  I_FLAGS,
  I_LENGTH,
  I_MESSAGE,
  I_OFFSET,
  I_SEGMENTS,
  I_VERDICT,
  MAX_MESSAGES,
  MAX_REPLIES,
  MESSAGE_BASE,
  META_MESSAGE_COUNT,
  META_REPLY_COUNT,
  M_FAMILY,
  M_WORD0,
  PEER_PROBES_HEARD,
  PEER_PROBE_ANSWERS,
  PEER_PROBE_MICROSECONDS,
  PEER_RX_DROPS,
  PEER_TX_DROPS,
  PEER_WORDS,
  PROBE_QUESTION,
  PROBE_TYPE,
  REPLY_BASE,
  REPLY_SLOT,
  ROW_WORDS,
  R_FAMILY,
  R_L4_OFFSET,
  R_LENGTH,
  R_OFFSET,
  V_FRAGMENT,
} from '../io/batch.js';
import { counterIndex } from './counters.js';
import {
  NOTE_SPOOFED,
  NOTE_UNKNOWN_SENDER,
  POLICY_OVERHEAD,
  POLICY_PROBE_NONCE,
  POLICY_SOURCE_CHECK,
  SOURCE_CHECK_OFF,
  SOURCE_CHECK_STRICT,
  TOKENS_TOO_BIG,
  TOKENS_UNREACHABLE,
  takeNote,
} from './policy.js';

/** ICMP errors a second, all workers together, and how many at once. "Too big" is what path MTU discovery lives on. */
const UNREACHABLE_PER_SECOND = 200;
const UNREACHABLE_BURST = 50;
const TOO_BIG_PER_SECOND = 1000;
const TOO_BIG_BURST = 200;

const DROP_NO_ROUTE = counterIndex('dropNoRoute');
const DROP_OWN_SUBNET = counterIndex('dropOwnSubnet');
const DROP_MULTICAST = counterIndex('dropMulticast');
const DROP_TOO_BIG = counterIndex('dropTooBig');
const DROP_MALFORMED = counterIndex('dropMalformed');
const DROP_TRUNCATED = counterIndex('dropTruncated');
const DROP_UNKNOWN_SENDER = counterIndex('dropUnknownSender');
const DROP_SPOOFED_SOURCE = counterIndex('dropSpoofedSource');
const DROP_NOT_LOCAL = counterIndex('dropNotLocal');
const PROBES_IGNORED = counterIndex('probesIgnored');
const REPLIES_LIMITED = counterIndex('repliesLimited');
const REPLIES_SUPPRESSED = counterIndex('repliesSuppressed');

export class Forwarder {
  readonly #batch: Batch;
  readonly #fib: FibReader;
  /** Words the main thread sets and notes the worker leaves; see policy.ts. */
  readonly #policy: Int32Array;
  /** Host id of each message's sender in this batch. */
  readonly #senders = new Int32Array(MAX_MESSAGES);
  readonly #now: () => number;
  /** The clock in this batch, as an int32, once something needed it: asking for each packet would allocate. */
  #nowMs = 0;
  #nowIsRead = false;

  /** @param now milliseconds of a clock that all workers share, for the rate limits */
  constructor(batch: Batch, fib: FibReader, policy: Int32Array, now: () => number) {
    this.#batch = batch;
    this.#fib = fib;
    this.#policy = policy;
    this.#now = now;
  }

  /** Decides egress rows 0..count-1. */
  egress(count: number): void {
    const batch = this.#batch;
    const meta = batch.meta;
    const view = batch.tunView;
    const counters = batch.counters;
    const peers = batch.peers;
    const fib = this.#fib;
    const overhead = this.#policy[POLICY_OVERHEAD]!;
    this.#nowIsRead = false;
    for (let row = EGRESS_BASE, end = EGRESS_BASE + count * ROW_WORDS; row < end; row += ROW_WORDS) {
      const offset = meta[row + E_OFFSET]!;
      const length = meta[row + E_LENGTH]!;
      const segments = meta[row + E_SEGMENTS]!;
      meta[row + E_VERDICT] = 0;
      if ((meta[row + E_FLAGS]! & EF_BAD) !== 0) {
        counters[DROP_MALFORMED]! += segments;
        continue;
      }
      const four = view.getUint8(offset) >>> 4 === 4;
      let next: number;
      if (four) {
        if (validateIpv4(view, offset, length) !== PACKET_OK) {
          counters[DROP_MALFORMED]! += segments;
          continue;
        }
        next = fib.lookup4(view.getInt32(offset + 16));
      } else {
        if (validateIpv6(view, offset, length) !== PACKET_OK) {
          counters[DROP_MALFORMED]! += segments;
          continue;
        }
        next = fib.lookup6(
          view.getInt32(offset + 24),
          view.getInt32(offset + 28),
          view.getInt32(offset + 32),
          view.getInt32(offset + 36),
        );
      }
      if (next < FIRST_NEXT_HOP) {
        this.#unroutable(next, four, offset, length, segments);
        continue;
      }
      const mtu = fib.pathMtu[next]! - overhead;
      const gso = meta[row + E_GSO]!;
      const size = gso === 0 ? length : Math.min(length, meta[row + E_HEADER]! + gso);
      if (size > mtu) {
        if (four && (view.getUint8(offset + 6) & 0x40) === 0) {
          meta[row + E_SEGMENTS] = mtu;
          meta[row + E_VERDICT] = next | V_FRAGMENT;
        } else {
          counters[DROP_TOO_BIG]! += segments;
          peers[next * PEER_WORDS + PEER_TX_DROPS]! += segments;
          this.#reply(true, four, mtu, offset, length);
        }
        continue;
      }
      meta[row + E_VERDICT] = next;
    }
  }

  /** Decides ingress rows 0..count-1. */
  ingress(count: number): void {
    const batch = this.#batch;
    const meta = batch.meta;
    const view = batch.udpView;
    const counters = batch.counters;
    const fib = this.#fib;
    const check = this.#policy[POLICY_SOURCE_CHECK]!;
    const senders = this.#senders;
    this.#lookUpSenders();
    for (let row = INGRESS_BASE, end = INGRESS_BASE + count * ROW_WORDS; row < end; row += ROW_WORDS) {
      const offset = meta[row + I_OFFSET]!;
      const length = meta[row + I_LENGTH]!;
      const segments = meta[row + I_SEGMENTS]!;
      meta[row + I_VERDICT] = 0;
      if ((meta[row + I_FLAGS]! & (IF_TRUNCATED | IF_PROBE)) !== 0) {
        if ((meta[row + I_FLAGS]! & IF_PROBE) !== 0) {
          this.#probe(row, offset, senders[meta[row + I_MESSAGE]!]!);
          continue;
        }
        counters[DROP_TRUNCATED]! += segments;
        this.#dropFrom(senders[meta[row + I_MESSAGE]!]!, segments);
        continue;
      }
      let source: number;
      let destination: number;
      let wrong: number;
      if (view.getUint8(offset) >>> 4 === 4) {
        wrong = validateIpv4(view, offset, length);
        source = wrong !== PACKET_OK ? NO_ROUTE : fib.lookup4(view.getInt32(offset + 12));
        destination = wrong !== PACKET_OK ? NO_ROUTE : fib.lookup4(view.getInt32(offset + 16));
      } else {
        wrong = validateIpv6(view, offset, length);
        source = wrong !== PACKET_OK ? NO_ROUTE : this.#lookup6(offset + 8);
        destination = wrong !== PACKET_OK ? NO_ROUTE : this.#lookup6(offset + 24);
      }
      if (wrong !== PACKET_OK) {
        counters[wrong === PACKET_TRUNCATED ? DROP_TRUNCATED : DROP_MALFORMED]! += segments;
        this.#dropFrom(senders[meta[row + I_MESSAGE]!]!, segments);
        continue;
      }
      const message = meta[row + I_MESSAGE]!;
      const host = senders[message]!;
      if (check !== SOURCE_CHECK_OFF && host === 0) {
        counters[DROP_UNKNOWN_SENDER]! += segments;
        takeNote(this.#policy, NOTE_UNKNOWN_SENDER, meta, MESSAGE_BASE + message * ROW_WORDS, segments);
        continue;
      }
      if (source === LOCAL || source === SELF || (check !== SOURCE_CHECK_OFF && !this.#mayUse(source, host, check))) {
        counters[DROP_SPOOFED_SOURCE]! += segments;
        this.#dropFrom(host, segments);
        takeNote(this.#policy, NOTE_SPOOFED, meta, MESSAGE_BASE + message * ROW_WORDS, segments);
        continue;
      }
      if (destination !== LOCAL) {
        counters[DROP_NOT_LOCAL]! += segments;
        this.#dropFrom(host, segments);
        continue;
      }
      meta[row + I_VERDICT] = 1 + host;
    }
  }

  /** A probe of a host that holds a lease is answered; its answer to a question of ours is counted with the time it took. */
  #probe(row: number, offset: number, host: number): void {
    const { meta, udpView, counters, peers } = this.#batch;
    const base = host * PEER_WORDS;
    const isQuestion = udpView.getUint8(offset + PROBE_TYPE) === PROBE_QUESTION;
    const nonce = udpView.getInt32(offset + PROBE_TYPE) & 0xffffff;
    const microseconds = meta[row + I_BYTES]!;
    if (host === 0 || (!isQuestion && (nonce !== this.#policy[POLICY_PROBE_NONCE]! || microseconds < 0))) {
      counters[PROBES_IGNORED]! += 1;
      return;
    }
    peers[base + PEER_PROBES_HEARD]! += 1;
    if (isQuestion) {
      meta[row + I_VERDICT] = 1 + host;
      return;
    }
    peers[base + PEER_PROBE_ANSWERS]! += 1;
    peers[base + PEER_PROBE_MICROSECONDS]! += microseconds;
  }

  /** Counts a drop for the host that sent it; 0 is nobody known. */
  #dropFrom(host: number, segments: number): void {
    if (host !== 0) this.#batch.peers[host * PEER_WORDS + PEER_RX_DROPS]! += segments;
  }

  /** Whether `host` may send from an inner source whose look-up gave `source`: leased to it, or to nobody. */
  #mayUse(source: number, host: number, check: number): boolean {
    if (source === NO_ROUTE) return check !== SOURCE_CHECK_STRICT;
    return this.#fib.hostId[source] === host;
  }

  #lookup6(at: number): number {
    const view = this.#batch.udpView;
    return this.#fib.lookup6(view.getInt32(at), view.getInt32(at + 4), view.getInt32(at + 8), view.getInt32(at + 12));
  }

  #lookUpSenders(): void {
    const meta = this.#batch.meta;
    const messages = meta[META_MESSAGE_COUNT]!;
    for (let m = 0, row = MESSAGE_BASE; m < messages; m++, row += ROW_WORDS) {
      const a = meta[row + M_WORD0]!;
      this.#senders[m] =
        meta[row + M_FAMILY] === 4
          ? this.#fib.lookupSender4(a)
          : this.#fib.lookupSender6(a, meta[row + M_WORD0 + 1]!, meta[row + M_WORD0 + 2]!, meta[row + M_WORD0 + 3]!);
    }
  }

  /** A destination without a next hop. What the kernel itself emits on the TUN (router solicitations, MLD) is quiet. */
  #unroutable(next: number, four: boolean, offset: number, length: number, segments: number): void {
    const { counters, tunView } = this.#batch;
    if (next !== NO_ROUTE) {
      counters[DROP_OWN_SUBNET]! += segments;
      return;
    }
    const first = tunView.getUint8(offset + (four ? 16 : 24));
    const linkLocal = !four && first === 0xfe && (tunView.getUint8(offset + 25) & 0xc0) === 0x80;
    if ((four ? first >= 224 : first === 0xff) || linkLocal) {
      counters[DROP_MULTICAST]! += segments;
      return;
    }
    counters[DROP_NO_ROUTE]! += segments;
    this.#reply(false, four, 0, offset, length);
  }

  /**
   * Puts an ICMP error about the packet at `offset` into the reply table: "too big" with the inner MTU, else "no
   * route". Its source is the unreachable destination, which is routed to the TUN and so passes rp_filter should the
   * host's raw socket be missing (design 9.4); the raw socket replaces it by an address of the host.
   */
  #reply(tooBig: boolean, four: boolean, mtu: number, offset: number, length: number): void {
    const { meta, counters, tun, tunView, reply } = this.#batch;
    const count = meta[META_REPLY_COUNT]!;
    if (!(four ? mayAnswer4(tunView, offset, length) : mayAnswer6(tunView, offset, length))) {
      counters[REPLIES_SUPPRESSED]! += 1;
      return;
    }
    if (!this.#nowIsRead) {
      this.#nowMs = this.#now() | 0;
      this.#nowIsRead = true;
    }
    const bucket = tooBig ? TOKENS_TOO_BIG : TOKENS_UNREACHABLE;
    const rate = tooBig ? TOO_BIG_PER_SECOND : UNREACHABLE_PER_SECOND;
    const burst = tooBig ? TOO_BIG_BURST : UNREACHABLE_BURST;
    if (count >= MAX_REPLIES || !takeToken(this.#policy, bucket, this.#nowMs, rate, burst)) {
      counters[REPLIES_LIMITED]! += 1;
      return;
    }
    const at = count * REPLY_SLOT;
    let bytes: number;
    if (four) {
      const source = tunView.getInt32(offset + 16);
      bytes = tooBig
        ? writeFragmentationNeeded4(reply, at, source, mtu, tunView, offset, length)
        : writeUnreachable4(reply, at, source, ICMP4_NET_UNREACHABLE, tunView, offset, length);
    } else {
      bytes = tooBig
        ? writePacketTooBig6(reply, at, tun, offset + 24, mtu, tunView, offset, length)
        : writeUnreachable6(reply, at, tun, offset + 24, ICMP6_NO_ROUTE, tunView, offset, length);
    }
    const row = REPLY_BASE + count * ROW_WORDS;
    meta[row + R_OFFSET] = at;
    meta[row + R_LENGTH] = bytes;
    meta[row + R_L4_OFFSET] = four ? ICMP4_OFFSET : ICMP6_OFFSET;
    meta[row + R_FAMILY] = four ? 4 : 6;
    meta[META_REPLY_COUNT] = count + 1;
  }
}
