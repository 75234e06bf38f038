/**
 * What every packet port must do, whatever it sits on: the native port over the kernel and its twin in memory pass the
 * same cases. A case is a name and a function that rejects; any test runner can run them.
 */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { readNote, NOTE_UNKNOWN_SENDER } from '../dataplane/policy.js';
import { MAX_EGRESS } from '../io/batch.js';
import { seededRandom } from '../io/memory-network.js';
import {
  arrived,
  between,
  connect,
  counts,
  drops,
  FAMILIES,
  framed,
  hex,
  hop,
  innerMtu,
  NOWHERE,
  noise,
  passes,
  PODS,
  samePackets,
} from './contract-checks.js';
import type { Run } from './contract-checks.js';
import { SEGMENT_CASES, tcpTrain } from './contract-segments.js';
import { VXLAN_CASES } from './contract-vxlan.js';
import { superpacket } from './packets.js';
import type { PacketFields } from './packets.js';
import type { LinkEnd, OpenLink } from './port-link.js';
import { LEASES, LINK_FORMATS, until } from './port-link.js';

/** What only some wire formats have to do. */
const FORMAT_CASES: Readonly<Record<string, Readonly<Record<string, Run>>>> = { vxlan: VXLAN_CASES };

export interface ContractCase {
  readonly name: string;
  readonly run: () => Promise<void>;
}

const CASES: Readonly<Record<string, Run>> = {
  'delivers packets of every size unchanged': async (link, outer) => {
    connect(link);
    for (const family of FAMILIES) {
      const header = family === 4 ? 20 : 40;
      const most = innerMtu(link, outer) - header;
      const sizes = [0, 1, 2, 3, 7, 8, 20, 23, 24, 43, 44, 45, 512, 1000, most - 1, most];
      for (const kind of ['raw', 'udp', 'tcp'] as const) {
        const transport = { raw: 0, udp: 8, tcp: 20 }[kind];
        const packets = sizes
          .filter((size) => size + transport <= most)
          .map((size, i) => between(family, { kind, payload: noise(size, i), id: i * 7, dontFragment: i % 2 === 0 }));
        await passes(link, packets, `${kind} over IPv${family}`);
      }
    }
    deepEqual(link.ends.map(drops), [{}, {}]);
  },

  'leaves every header field alone': async (link) => {
    connect(link);
    const odd: Uint8Array[] = [];
    for (const family of FAMILIES) {
      for (const ttl of [0, 1, 255]) odd.push(between(family, { ttl, trafficClass: 0xb9, payload: noise(33, ttl) }));
      for (const protocol of [1, 2, 4, 41, 47, 50, 58, 59, 132]) {
        odd.push(between(family, { protocol, payload: noise(64, protocol) }));
      }
    }
    for (const fragment of [0x2000, 0x2001, 0x0007, 0x8000]) odd.push(between(4, { fragment, payload: noise(64, 5) }));
    odd.push(between(4, { options: Uint8Array.of(0x94, 4, 0, 0, 7, 4, 4, 0), payload: noise(40, 6) }));
    await passes(link, odd, 'odd headers');
  },

  'takes more packets at once than a batch has rows': async (link) => {
    connect(link);
    const count = MAX_EGRESS + 150;
    await passes(
      link,
      Array.from({ length: count }, (_, i) => between(4, { payload: Uint8Array.of(i >> 8, i, 1, 2), id: i })),
      'a burst',
    );
  },

  'takes more packets from the underlay at once than a batch has rows': async (link) => {
    connect(link);
    const [sender, receiver] = link.ends;
    const packets = Array.from({ length: 1600 }, (_, i) => between(4, { payload: noise(12, i) }));
    for (let at = 0; at < packets.length; at += 200) {
      for (const one of packets.slice(at, at + 200)) sender.inject(one);
      while (sender.host.counters().egressPackets < Math.min(packets.length, at + 200)) {
        sender.host.poll();
        await link.pause();
      }
    }
    await arrived(link, packets.length);
    samePackets(receiver.take(), packets, 'small packets of one flow');
  },

  'keeps the order within every flow': async (link) => {
    connect(link);
    const flows = 40;
    const each = 9;
    const sent = Array.from({ length: flows * each }, (_, i) => {
      const flow = i % flows;
      const family = flow % 2 === 0 ? 4 : 6;
      const kind = flow % 3 === 0 ? 'tcp' : 'udp';
      const turn = Math.floor(i / flows);
      const fields = { sourcePort: 1000 + flow, payload: noise(30 + ((flow * turn) % 5), i), id: turn };
      return between(family, { ...fields, kind, sequence: turn * 30 });
    });
    for (const one of sent) link.ends[0].inject(one);
    await arrived(link, sent.length);
    samePackets(link.ends[1].take(), sent, `${flows} flows`);
  },

  'answers what is too big and may not be fragmented': async (link, outer) => {
    connect(link, { mtu: 1400 });
    const mtu = 1400 - (1500 - innerMtu(link, outer));
    const big = FAMILIES.map((family) => between(family, { kind: 'udp', payload: noise(1420, 1), dontFragment: true }));
    for (const one of big) link.ends[0].inject(one);
    await until(link, () => link.ends[0].host.counters().repliesSent === 2, 'two errors are sent');
    const [four, six] = link.ends[0].take();
    deepEqual([...four!.subarray(20, 28)], [3, 4, four![22], four![23], 0, 0, mtu >> 8, mtu & 0xff]);
    deepEqual(hex([four!.subarray(28)]), hex([big[0]!.subarray(0, 548)]));
    deepEqual([...six!.subarray(40, 42), ...six!.subarray(44, 48)], [2, 0, 0, 0, mtu >> 8, mtu & 0xff]);
    deepEqual(hex([six!.subarray(48)]), hex([big[1]!.subarray(0, 1232)]));
    deepEqual(drops(link.ends[0]), { dropTooBig: 2 });
  },

  'answers what has no route': async (link) => {
    for (const family of FAMILIES) {
      link.ends[0].inject(between(family, { destination: NOWHERE[family], kind: 'udp', payload: noise(50, 1) }));
    }
    await until(link, () => link.ends[0].host.counters().repliesSent === 2, 'two errors are sent');
    const [four, six] = link.ends[0].take();
    deepEqual([...four!.subarray(20, 22)], [3, 0]);
    deepEqual([...six!.subarray(40, 42)], [1, 0]);
    deepEqual(drops(link.ends[0]), { dropNoRoute: 2 });
  },

  'drops datagrams that are too short': async (link) => {
    connect(link, { senders: [link.stranger.toString()] });
    for (let size = 0; size < 20; size++) await link.sendAs(1, new Uint8Array(size).fill(0x45));
    await arrived(link, 20);
    deepEqual(drops(link.ends[1]), { dropShort: 20 });
    deepEqual(link.ends[1].take(), []);
  },

  'drops what is no whole packet': async (link) => {
    connect(link, { senders: [link.stranger.toString()] });
    const good = between(4, { kind: 'udp', payload: noise(30, 1) });
    await link.sendAs(1, framed(link, good.subarray(0, 40))); // cut off
    await link.sendAs(1, framed(link, between(6, { payload: noise(30, 1) }).subarray(0, 69)));
    await link.sendAs(1, framed(link, new Uint8Array(60).fill(0x55))); // version 5
    await link.sendAs(1, framed(link, Uint8Array.of(0x44, ...good.subarray(1)))); // header of 16 bytes
    await link.sendAs(1, framed(link, between(6, { payload: noise(30, 1) }).subarray(0, 39)));
    await arrived(link, 5);
    const odd = link.format.name === 'vxlan' ? { dropMalformed: 2, dropVxlanType: 1 } : { dropMalformed: 3 };
    deepEqual(drops(link.ends[1]), { dropTruncated: 2, ...odd });
    deepEqual(link.ends[1].take(), []);
  },

  'delivers nothing from strangers': async (link) => {
    connect(link);
    await link.sendAs(1, framed(link, between(4)));
    await link.sendAs(1, framed(link, between(6)));
    await arrived(link, 2);
    deepEqual(drops(link.ends[1]), { dropUnknownSender: 2 });
    deepEqual([...(readNote(link.ends[1].host.policy, NOTE_UNKNOWN_SENDER)?.bytes ?? [])], [...link.stranger.bytes]);
    link.ends[1].host.fib.set('10.1.7.0/24', hop(link, 2, link.stranger));
    await link.sendAs(1, framed(link, between(4))); // leased to host 0
    await link.sendAs(1, framed(link, between(4, { source: PODS[4][1] }))); // our own
    await link.sendAs(1, framed(link, between(4, { source: '10.1.7.1', destination: '10.1.8.1' })));
    await link.sendAs(1, framed(link, between(4, { source: '10.1.7.1' })));
    await arrived(link, 6);
    deepEqual(drops(link.ends[1]), { dropUnknownSender: 2, dropSpoofedSource: 2, dropNotLocal: 1 });
    samePackets(link.ends[1].take(), [between(4, { source: '10.1.7.1' })], 'from a host that has a lease');
  },

  'carries a verdict out once': async (link) => {
    connect(link);
    await passes(link, [between(4), between(6)], 'two packets');
    for (let i = 0; i < 5; i++) await until(link, () => true, 'idle');
    deepEqual(link.ends[1].take(), []);
    counts(link.ends[0], { egressPackets: 2, egressBytes: 60 });
    counts(link.ends[1], { ingressPackets: 2, ingressBytes: 60 });
  },

  'counts per peer': async (link) => {
    connect(link);
    const packets = [100, 200, 300].map((size) => between(4, { payload: noise(size, size) }));
    await passes(link, packets, 'three packets');
    const [a, b] = link.ends;
    deepEqual(a.host.peer(b.address), { txPackets: 3, txBytes: 660, rxPackets: 0, rxBytes: 0 });
    deepEqual(b.host.peer(a.address), { txPackets: 0, txBytes: 0, rxPackets: 3, rxBytes: 660 });
  },

  'holds rows while they are in use and none while it waits': async (link) => {
    connect(link);
    const [{ host }] = link.ends;
    link.ends[0].inject(between(4));
    let rows = 0;
    for (const deadline = performance.now() + 10_000; rows === 0 && performance.now() < deadline;) rows = host.poll();
    equal(rows, 1);
    ok(host.readerWord[0] !== 0, 'the verdict names a row that is still needed');
    host.poll(1);
    equal(host.counters().egressPackets, 1);
    equal(host.poll(1), 0);
    equal(host.readerWord[0], 0, 'a port that waits holds nothing');
  },

  'follows a next hop that moves': async (link) => {
    connect(link);
    await passes(link, [between(4)], 'to host 1');
    const [a, b] = link.ends;
    a.host.fib.set(LEASES[1]![0], hop(link, 0, a.address)); // to itself: not local there
    a.inject(between(4));
    await until(link, () => a.host.dropped() === 1, 'the packet is dropped');
    const looped = link.format.name === 'vxlan' ? 'dropVxlanLoop' : 'dropSpoofedSource';
    counts(a, { [looped]: 1, egressPackets: 2 });
    deepEqual(b.take(), []);
  },

  'accounts for every packet of a mixed load': async (link) => {
    connect(link, { mtu: 1300, senders: [link.stranger.toString()] });
    const random = seededRandom(20_240_817);
    const [a, b] = link.ends;
    let injected = 0;
    let cut = 0;
    for (let round = 0; round < 12; round++) {
      for (let i = 0; i < 20; i++) {
        const kind = Math.floor(random() * 6);
        const family = random() < 0.5 ? 4 : 6;
        const fields: Partial<PacketFields> = {
          kind: random() < 0.5 ? 'udp' : 'tcp',
          payload: noise(1 + Math.floor(random() * 1380), i),
          dontFragment: true,
          destination: kind === 0 ? NOWHERE[family] : kind === 1 ? PODS[family][0] : PODS[family][1],
        };
        injected++;
        if (kind === 5) {
          const train = tcpTrain(family, [900, 900, 50], { sourcePort: 100 + i });
          const { packet: whole, offload } = superpacket(train);
          a.inject(whole, offload);
          injected += train.length - 1;
        } else if (kind === 4) {
          a.inject(between(4, { kind: 'udp', payload: noise(1600, i) }));
          cut++;
        } else {
          a.inject(between(family, fields));
        }
        if (random() < 0.2) await link.sendAs(1, framed(link, noise(Math.floor(random() * 200), i)));
      }
      await until(link, () => accounted(a) >= injected, 'every packet is sent or dropped');
    }
    equal(accounted(a), injected);
    // Fragments are packets of their own: two of each here.
    counts(a, { fragmentsSent: 2 * cut });
    const sent = a.host.counters().egressPackets;
    await until(link, () => b.host.counters().ingressPackets >= sent, 'everything that was sent arrives');
    const { ingressPackets } = b.host.counters();
    equal(b.take().length, ingressPackets);
    equal(ingressPackets, sent);

    /** Packets of pods that found their end; the two fragments of one packet are one. */
    function accounted({ host }: LinkEnd): number {
      const { egressPackets, fragmentsSent } = host.counters();
      return egressPackets - fragmentsSent / 2 + host.dropped();
    }
  },
};

/** The cases for every wire format and both families of the underlay. */
export function packetPortContract(open: OpenLink): ContractCase[] {
  return LINK_FORMATS.flatMap((format) =>
    FAMILIES.flatMap((outer) =>
      Object.entries({ ...CASES, ...SEGMENT_CASES, ...FORMAT_CASES[format.name] }).map(([name, run]) => ({
        name: `${format.name} over IPv${outer}: ${name}`,
        run: async () => {
          const link = await open(outer, format);
          try {
            await run(link, outer);
          } finally {
            await link.close();
          }
        },
      })),
    ),
  );
}
