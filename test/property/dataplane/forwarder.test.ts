import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { COUNTERS } from '../../../src/dataplane/counters.js';
import { Address } from '../../../src/net/prefix.js';
import { MAX_MESSAGES } from '../../../src/io/batch.js';
import { addressBytes, ramp, toHex, udpPacket } from '../../support/packets.js';
import { egressPacket, ingressPacket, packetBytes, sender, world } from './arbitraries.js';
import { Harness, layOut } from './harness.js';
import type { Arena } from './harness.js';
import { Model } from './model.js';
import type { EgressPacket, Verdict, World } from './model.js';

/** Addresses in the form in which the table shows them. */
function shown(verdict: Verdict): Verdict {
  const plain = (text: string): string => Address.fromBytes(Uint8Array.from(addressBytes(text))).toString();
  if (verdict.kind === 'send') return { ...verdict, address: plain(verdict.address) };
  if (verdict.kind === 'deliver' && verdict.host !== undefined) return { kind: 'deliver', host: plain(verdict.host) };
  return verdict;
}

/** Everything is routed somewhere small, so that every packet gets as far as it can. */
const OPEN: World = {
  local: ['10.0.0.0/9', 'fd00::/17'],
  own: [],
  leases: ['0.0.0.0/1', '10.128.0.0/9', 'fd00:8000::/17', '::/1'].map((prefix, i) => ({
    prefix,
    address: `192.0.2.${i + 1}`,
    port: 8285,
    senders: [],
  })),
  pathMtu: { '192.0.2.1': 68, '192.0.2.2': 100, '192.0.2.3': 100, '192.0.2.4': 1400 },
  overhead: 28,
  sourceCheck: 'off',
};

/** How often each counter moved and each verdict was given: a rule that no random packet meets is not tested. */
const met: Record<string, number> = {};

function meet(counters: Readonly<Record<string, number>>, verdicts: readonly Verdict[]): void {
  for (const name of Object.keys(counters)) met[name] = (met[name] ?? 0) + 1;
  for (const verdict of verdicts) {
    const kind = verdict.kind === 'send' && verdict.fragmentMtu !== undefined ? 'fragment' : verdict.kind;
    met[kind] = (met[kind] ?? 0) + 1;
  }
}

describe('the forwarder and the model of its rules', () => {
  it('decide alike about what pods send', () => {
    const batches = fc.array(
      fc.tuple(fc.array(egressPacket, { minLength: 1, maxLength: 100, size: 'max' }), fc.nat(400)),
      {
        minLength: 1,
        maxLength: 4,
      },
    );
    fc.assert(
      fc.property(world, batches, fc.nat(255), (world, batches, poison) => {
        const harness = new Harness(world);
        const model = new Model(world);
        for (const [packets, pause] of batches) {
          harness.now += pause;
          model.replies = [];
          const { arena, offsets } = layOut(
            packets.map((one) => one.bytes),
            poison,
          );
          const verdicts = harness.egress(packets, arena, offsets);
          expect(verdicts).toEqual(packets.map((one) => shown(model.egress(one, harness.now))));
          expect(harness.replies().map(toHex)).toEqual(model.replies.map(toHex));
          expect(harness.counters()).toEqual(model.counters);
          meet(model.counters, verdicts);
        }
      }),
      { numRuns: 60 },
    );
  }, 60_000);

  it('limit the answers alike', () => {
    const row = (bytes: Uint8Array): EgressPacket => ({ bytes, bad: false, gso: 0, header: 0, segments: 1 });
    const unreachable = row(udpPacket({ src: '10.1.1.1', dst: '172.16.0.1', payload: ramp(40) }));
    const tooBig = row(udpPacket({ src: 'fd00::1', dst: '2001:db8:5::1', payload: ramp(1400) }));
    const batches = fc.array(fc.tuple(fc.nat(80), fc.nat(80), fc.nat(700)), {
      minLength: 1,
      maxLength: 12,
      size: 'max',
    });
    const world: World = {
      ...OPEN,
      leases: [{ prefix: '2001:db8:5::/48', address: '192.0.2.4', port: 1, senders: [] }],
    };
    fc.assert(
      fc.property(batches, (batches) => {
        const harness = new Harness(world);
        const model = new Model(world);
        for (const [first, second, pause] of batches) {
          harness.now += pause;
          model.replies = [];
          const packets = [
            ...Array<EgressPacket>(first).fill(unreachable),
            ...Array<EgressPacket>(second).fill(tooBig),
          ];
          const { arena, offsets } = layOut(
            packets.map((one) => one.bytes),
            0,
          );
          const verdicts = harness.egress(packets, arena, offsets);
          expect(verdicts).toEqual(packets.map((one) => model.egress(one, harness.now)));
          expect(harness.replies().map(toHex)).toEqual(model.replies.map(toHex));
          expect(harness.counters()).toEqual(model.counters);
          meet(model.counters, verdicts);
        }
      }),
      { numRuns: 60 },
    );
  }, 60_000);

  it('decide alike about what comes from the underlay', () => {
    const packets = fc.array(ingressPacket, { minLength: 1, maxLength: MAX_MESSAGES, size: 'max' });
    fc.assert(
      fc.property(world, packets, fc.nat(255), (world, packets, poison) => {
        const harness = new Harness(world);
        const model = new Model(world);
        const { arena, offsets } = layOut(
          packets.map((one) => one.bytes),
          poison,
        );
        const verdicts = harness.ingress(packets, arena, offsets);
        expect(verdicts).toEqual(packets.map((one) => shown(model.ingress(one))));
        expect(harness.counters()).toEqual(model.counters);
        meet(model.counters, verdicts);
        const notes = harness.notes();
        for (const [note, expected] of [
          [notes.unknown, model.unknown],
          [notes.spoofed, model.spoofed],
        ] as const) {
          expect(note?.count ?? 0).toBe(expected.count);
          expect(note && [...note.bytes]).toEqual(expected.address && addressBytes(expected.address));
        }
      }),
      { numRuns: 250 },
    );
  }, 60_000);
});

describe('the random worlds', () => {
  it('met every rule', () => {
    const rules = Object.entries(COUNTERS).filter(([name, meaning]) => {
      const byPort = /^drop(Short|Vxlan|Ecn)/.test(name);
      return /^from |^headers that|^ICMP errors not sent/.test(meaning) && !byPort;
    });
    expect(rules.length).toBeGreaterThanOrEqual(11);
    for (const rule of [...rules.map(([name]) => name), 'send', 'fragment', 'deliver']) {
      expect(met[rule] ?? 0, rule).toBeGreaterThan(10);
    }
  });
});

/** A view that refuses every read outside of [from, to). */
class GuardedView extends DataView<ArrayBuffer> {
  readonly #from: number;
  readonly #to: number;

  constructor(buffer: ArrayBuffer, from: number, to: number) {
    super(buffer);
    this.#from = from;
    this.#to = to;
  }

  #check(at: number, bytes: number): void {
    if (at < this.#from || at + bytes > this.#to) {
      throw new Error(`read of ${bytes} bytes at ${at - this.#from} of ${this.#to - this.#from}`);
    }
  }

  override getUint8(at: number): number {
    this.#check(at, 1);
    return super.getUint8(at);
  }

  override getUint16(at: number, little?: boolean): number {
    this.#check(at, 2);
    return super.getUint16(at, little);
  }

  override getInt32(at: number, little?: boolean): number {
    this.#check(at, 4);
    return super.getInt32(at, little);
  }

  override getUint32(at: number, little?: boolean): number {
    this.#check(at, 4);
    return super.getUint32(at, little);
  }
}

describe('the forwarder reads the packet and nothing else', () => {
  const surroundings = [0x00, 0x45, 0x60, 0xff];
  const harness = new Harness(OPEN);

  /** What the forwarder makes of one packet between `before` and the end of the arena. */
  function outcome(before: number, bytes: Uint8Array, decide: (arena: Arena, at: number[]) => Verdict[]): unknown {
    const { arena, offsets } = layOut([bytes], before);
    const guarded = new GuardedView(arena.bytes.buffer as ArrayBuffer, offsets[0]!, offsets[0]! + bytes.length);
    harness.reset();
    const verdicts = decide({ bytes: arena.bytes, view: guarded }, offsets);
    return [verdicts, harness.counters(), harness.replies().map(toHex)];
  }

  it('whatever a pod sends', () => {
    fc.assert(
      fc.property(packetBytes, (bytes) => {
        const row: EgressPacket = { bytes, bad: false, gso: 0, header: 0, segments: 1 };
        const all = surroundings.map((poison) =>
          outcome(poison, bytes, (arena, at) => harness.egress([row], arena, at)),
        );
        for (const one of all) expect(one).toEqual(all[0]);
      }),
      { numRuns: 500 },
    );
  }, 60_000);

  it('whatever comes from the underlay', () => {
    fc.assert(
      fc.property(packetBytes, sender, (bytes, sender) => {
        const row = { bytes, truncated: false, segments: 1, sender };
        const all = surroundings.map((poison) =>
          outcome(poison, bytes, (arena, at) => harness.ingress([row], arena, at)),
        );
        for (const one of all) expect(one).toEqual(all[0]);
      }),
      { numRuns: 500 },
    );
  }, 60_000);

  it('and never throws, at whatever byte a packet is cut off', () => {
    fc.assert(
      fc.property(packetBytes, (bytes) => {
        for (let length = 1; length <= Math.min(bytes.length, 90); length++) {
          const cut = bytes.slice(0, length);
          const { arena, offsets } = layOut([cut], 0xff);
          harness.egress([{ bytes: cut, bad: false, gso: 0, header: 0, segments: 1 }], arena, offsets);
          harness.ingress([{ bytes: cut, truncated: false, segments: 1, sender: '192.0.2.1' }], arena, offsets);
        }
      }),
      { numRuns: 150 },
    );
  }, 60_000);
});
