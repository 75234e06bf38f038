/** A real forwarder over a real forwarding table and arenas of exactly the wanted size. */
import { COUNTER_COUNT, COUNTER_NAMES } from '../../../src/dataplane/counters.js';
import type { CounterName } from '../../../src/dataplane/counters.js';
import { Forwarder } from '../../../src/dataplane/forwarder.js';
import {
  NOTE_SPOOFED,
  NOTE_UNKNOWN_SENDER,
  POLICY_OVERHEAD,
  POLICY_SOURCE_CHECK,
  POLICY_WORDS,
  SOURCE_CHECKS,
  TOKENS_UNREACHABLE,
  readNote,
} from '../../../src/dataplane/policy.js';
import { Fib } from '../../../src/fib/fib.js';
import { createFibMemory } from '../../../src/fib/layout.js';
import { FibReader } from '../../../src/fib/lookup.js';
import * as layout from '../../../src/io/batch.js';
import type { Batch } from '../../../src/io/batch.js';
import { senderWords } from './arbitraries.js';
import type { EgressPacket, IngressPacket, Verdict, World } from './model.js';

const INNER_MTU_MASK = 0x00ffffff;

export interface Arena {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** Packets one behind the other, `poison` before each; the arena ends with the last byte of the last packet. */
export function layOut(packets: readonly Uint8Array[], poison: number): { arena: Arena; offsets: number[] } {
  const gap = 24;
  const bytes = new Uint8Array(packets.reduce((total, one) => total + gap + one.length, 0)).fill(poison);
  const offsets: number[] = [];
  let at = 0;
  for (const one of packets) {
    offsets.push(at + gap);
    bytes.set(one, at + gap);
    at += gap + one.length;
  }
  return { arena: { bytes, view: new DataView(bytes.buffer) }, offsets };
}

export class Harness {
  readonly fib: Fib;
  readonly #policy = new Int32Array(new SharedArrayBuffer(POLICY_WORDS * 4));
  readonly #reader: FibReader;
  readonly #counters = new Float64Array(COUNTER_COUNT);
  readonly #reply = new Uint8Array(layout.MAX_REPLIES * layout.REPLY_SLOT);
  readonly meta = new Int32Array(layout.META_TOTAL_WORDS);
  now = 1;

  constructor(world: World) {
    const memory = createFibMemory({ maxRoutes: 64, maxNextHops: 64, readers: 1 });
    this.fib = new Fib(memory);
    this.fib.setLocal(world.local, world.own);
    for (const { prefix, ...nextHop } of world.leases) this.fib.set(prefix, nextHop);
    for (const [address, mtu] of Object.entries(world.pathMtu)) this.fib.setPathMtu(address, mtu);
    this.#policy[POLICY_SOURCE_CHECK] = SOURCE_CHECKS.indexOf(world.sourceCheck);
    this.#policy[POLICY_OVERHEAD] = world.overhead;
    this.#reader = new FibReader(memory, 0);
  }

  #forwarder(tun: Arena, udp: Arena): Forwarder {
    const batch: Batch = {
      meta: this.meta,
      counters: this.#counters,
      peers: new Float64Array(0),
      tun: tun.bytes,
      tunView: tun.view,
      udp: udp.bytes,
      udpView: udp.view,
      reply: this.#reply,
    };
    this.#reader.enter();
    return new Forwarder(batch, this.#reader, this.#policy, () => this.now);
  }

  /** Forgets what was counted, noted and rate-limited. */
  reset(): void {
    this.#counters.fill(0);
    this.#policy.fill(0, TOKENS_UNREACHABLE);
  }

  /** Verdicts of one batch of packets from pods. */
  egress(packets: readonly EgressPacket[], arena: Arena, offsets: readonly number[]): Verdict[] {
    const { meta } = this;
    meta[layout.META_REPLY_COUNT] = 0;
    for (const [i, one] of packets.entries()) {
      const row = layout.EGRESS_BASE + i * layout.ROW_WORDS;
      meta.fill(0, row, row + layout.ROW_WORDS);
      meta[row + layout.E_OFFSET] = offsets[i]!;
      meta[row + layout.E_LENGTH] = one.bytes.length;
      meta[row + layout.E_GSO] = one.gso;
      meta[row + layout.E_HEADER] = one.header;
      meta[row + layout.E_FLAGS] = one.bad ? layout.EF_BAD : 0;
      meta[row + layout.E_SEGMENTS] = one.segments;
      meta[row + layout.E_VERDICT] = -1; // whatever the last batch left
    }
    this.#forwarder(arena, arena).egress(packets.length);
    return packets.map((_, i) => this.#egressVerdict(layout.EGRESS_BASE + i * layout.ROW_WORDS));
  }

  #egressVerdict(row: number): Verdict {
    const verdict = this.meta[row + layout.E_VERDICT]!;
    if (verdict === 0) return { kind: 'drop' };
    const next = this.fib.nextHopRow(verdict & INNER_MTU_MASK);
    if (next === undefined) throw new Error(`verdict ${verdict} names no next hop`);
    const cut = (verdict & layout.V_FRAGMENT) !== 0;
    return {
      kind: 'send',
      address: next.address.toString(),
      port: next.port,
      fragmentMtu: cut ? this.meta[row + layout.E_SEGMENTS]! : undefined,
    };
  }

  /** Verdicts of one batch of runs from the underlay, each in a message of its own or sharing the one before. */
  ingress(packets: readonly IngressPacket[], arena: Arena, offsets: readonly number[]): Verdict[] {
    const { meta } = this;
    let messages = 0;
    for (const [i, one] of packets.entries()) {
      if (i === 0 || one.sender !== packets[i - 1]!.sender) this.#message(messages++, one.sender);
      const row = layout.INGRESS_BASE + i * layout.ROW_WORDS;
      meta.fill(0, row, row + layout.ROW_WORDS);
      meta[row + layout.I_OFFSET] = offsets[i]!;
      meta[row + layout.I_LENGTH] = one.bytes.length;
      meta[row + layout.I_SEGMENTS] = one.segments;
      meta[row + layout.I_MESSAGE] = messages - 1;
      meta[row + layout.I_FLAGS] = one.truncated ? layout.IF_TRUNCATED : 0;
      meta[row + layout.I_VERDICT] = -1;
    }
    meta[layout.META_MESSAGE_COUNT] = messages;
    this.#forwarder(arena, arena).ingress(packets.length);
    return packets.map((_, i) =>
      this.#ingressVerdict(meta[layout.INGRESS_BASE + i * layout.ROW_WORDS + layout.I_VERDICT]!),
    );
  }

  #message(index: number, sender: string): void {
    const row = layout.MESSAGE_BASE + index * layout.ROW_WORDS;
    const { family, words } = senderWords(sender);
    this.meta.fill(0, row, row + layout.ROW_WORDS);
    this.meta[row + layout.M_FAMILY] = family;
    for (const [i, word] of words.entries()) this.meta[row + layout.M_WORD0 + i] = word;
  }

  #ingressVerdict(verdict: number): Verdict {
    if (verdict === 0) return { kind: 'drop' };
    const host = this.fib.nextHopRows().find((row) => row.hostId === verdict - 1);
    if (verdict !== 1 && host === undefined) throw new Error(`verdict ${verdict} names no host`);
    return { kind: 'deliver', host: host?.address.toString() };
  }

  /** ICMP errors of the last egress batch. */
  replies(): Uint8Array[] {
    return Array.from({ length: this.meta[layout.META_REPLY_COUNT]! }, (_, i) => {
      const row = layout.REPLY_BASE + i * layout.ROW_WORDS;
      const at = this.meta[row + layout.R_OFFSET]!;
      const bytes = this.#reply.slice(at, at + this.meta[row + layout.R_LENGTH]!);
      const four = bytes[0]! >>> 4 === 4;
      const fields = [this.meta[row + layout.R_FAMILY], this.meta[row + layout.R_L4_OFFSET]];
      if (fields.join() !== (four ? '4,20' : '6,40')) throw new Error(`reply row says ${fields.join()}`);
      return bytes;
    });
  }

  /** Counters that are not zero. */
  counters(): Partial<Record<CounterName, number>> {
    const named: Partial<Record<CounterName, number>> = {};
    for (const [i, name] of COUNTER_NAMES.entries()) if (this.#counters[i] !== 0) named[name] = this.#counters[i]!;
    return named;
  }

  notes(): { unknown: ReturnType<typeof readNote>; spoofed: ReturnType<typeof readNote> } {
    return { unknown: readNote(this.#policy, NOTE_UNKNOWN_SENDER), spoofed: readNote(this.#policy, NOTE_SPOOFED) };
  }
}
