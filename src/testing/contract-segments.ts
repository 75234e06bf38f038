/** The port contract, part two: superpackets, checksums left to the device, runs, padding and fragments. */
import { deepEqual, equal, ok } from 'node:assert/strict';
import { checksum } from '../net/checksum.js';
import type { Family } from '../net/prefix.js';
import {
  arrived,
  between,
  connect,
  counts,
  drops,
  FAMILIES,
  framed,
  hex,
  innerMtu,
  noise,
  passes,
  samePackets,
} from './contract-checks.js';
import type { Run } from './contract-checks.js';
import {
  TCP_ACK,
  TCP_CWR,
  TCP_FIN,
  TCP_PSH,
  checksumHolds,
  reassemble,
  superpacket,
  withPartialChecksum,
} from './packets.js';
import type { PacketFields } from './packets.js';
import type { PortLink } from './port-link.js';

/** Payload sizes that are not a multiple of anything. */
const ODD = { 4: 64, 6: 65 } as const;

/** Segments of one TCP flow with consecutive sequence numbers and ids. */
export function tcpTrain(family: Family, sizes: readonly number[], fields: Partial<PacketFields> = {}): Uint8Array[] {
  let sequence = fields.sequence ?? 0xffff_f000; // wraps on the way
  return sizes.map((size, i) => {
    const last = i === sizes.length - 1;
    const flags = TCP_ACK | (last ? (fields.flags ?? 0) & (TCP_PSH | TCP_FIN) : 0);
    const whole = between(family, {
      kind: 'tcp',
      dontFragment: true,
      tcpOptions: Uint8Array.of(1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 7),
      ...fields,
      flags: flags | (i === 0 ? (fields.flags ?? 0) & TCP_CWR : 0),
      id: ((fields.id ?? 0xfffe) + i) & 0xffff,
      sequence,
      payload: noise(size, sequence),
    });
    sequence = (sequence + size) >>> 0;
    return whole;
  });
}

export function udpTrain(family: Family, sizes: readonly number[], fields: Partial<PacketFields> = {}): Uint8Array[] {
  return sizes.map((size, i) =>
    between(family, { kind: 'udp', ...fields, id: ((fields.id ?? 0) + i) & 0xffff, payload: noise(size, 77 + i) }),
  );
}

export const SEGMENT_CASES: Readonly<Record<string, Run>> = {
  'cuts TCP superpackets as a device would': async (link, outer) => {
    connect(link);
    const most = innerMtu(link, outer);
    const trains: Uint8Array[][] = [];
    for (const family of FAMILIES) {
      const full = most - (family === 4 ? 20 : 40) - 32;
      for (const flags of [0, TCP_PSH, TCP_FIN | TCP_PSH, TCP_CWR, TCP_CWR | TCP_FIN]) {
        const sourcePort = 2000 + trains.length;
        trains.push(tcpTrain(family, [full, full, 1 + flags], { flags, sourcePort }));
      }
      trains.push(tcpTrain(family, Array<number>(44).fill(full), { sourcePort: 3000 }));
      trains.push(tcpTrain(family, Array<number>(500).fill(ODD[family]), { sourcePort: 3001 }));
    }
    await superpacketsPass(link, trains);
  },

  'cuts UDP superpackets as a device would': async (link, outer) => {
    connect(link);
    const trains: Uint8Array[][] = [];
    for (const family of FAMILIES) {
      const full = innerMtu(link, outer) - (family === 4 ? 20 : 40) - 8;
      trains.push(udpTrain(family, [full, 1], { sourcePort: 2000 }));
      trains.push(udpTrain(family, Array<number>(40).fill(full), { sourcePort: 2001, id: 0xfff0 }));
      trains.push(udpTrain(family, [...Array<number>(63).fill(ODD[family]), 9], { sourcePort: 2002 }));
      trains.push(udpTrain(family, Array<number>(30).fill(2), { sourcePort: 2003, dontFragment: true }));
      const zeroSum = zeroSumDatagram(family);
      trains.push([zeroSum, zeroSum, zeroSum].map((one, i) => withId(one, i)));
    }
    await superpacketsPass(link, trains);
  },

  'completes checksums that were left to the device': async (link) => {
    connect(link);
    const packets: Uint8Array[] = [];
    for (const family of FAMILIES) {
      for (const kind of ['udp', 'tcp'] as const) {
        for (const size of [0, 1, 2, 9, 700, 1001]) packets.push(between(family, { kind, payload: noise(size, size) }));
      }
      packets.push(zeroSumDatagram(family)); // for TCP not even Linux agrees with itself
    }
    for (const whole of packets) {
      const { packet: partial, offload } = withPartialChecksum(whole);
      link.ends[0].inject(partial, offload);
    }
    await arrived(link, packets.length);
    samePackets(link.ends[1].take(), packets, 'completed packets');
  },

  'puts together nothing that would be cut differently': async (link) => {
    connect(link);
    for (const family of FAMILIES) {
      for (const [what, train] of Object.entries(awkwardTrains(family)))
        await passes(link, train, `IPv${family} ${what}`);
    }
  },

  'does not deliver padding': async (link) => {
    connect(link, { senders: [link.stranger.toString()] });
    const packets = FAMILIES.flatMap((family) =>
      (['raw', 'udp'] as const).map((kind) => between(family, { kind, payload: noise(31, family) })),
    );
    const padded = packets.map((one) => Uint8Array.of(...one, ...noise(17, 1)));
    for (const one of padded) link.ends[0].inject(one);
    await arrived(link, packets.length);
    samePackets(link.ends[1].take(), packets, 'padded by a pod');
    counts(link.ends[0], { egressBytes: packets.reduce((total, one) => total + one.length, 0) });
    for (const one of padded) await link.sendAs(1, framed(link, one));
    await arrived(link, 2 * packets.length);
    samePackets(link.ends[1].take(), packets, 'padded by a peer');
  },

  'fragments IPv4 packets without DF to the path MTU': async (link, outer) => {
    const overhead = 1500 - innerMtu(link, outer);
    for (const mtu of [576, 600, 1000, 1400]) {
      connect(link, { mtu });
      for (const size of [mtu - overhead - 19, 1400, 3000, 9000]) await fragmentsPass(link, size, mtu - overhead);
    }
  },

  'fragments a fragment again': async (link, outer) => {
    const mtu = 700 - (1500 - innerMtu(link, outer));
    connect(link, { mtu: 700 });
    const room = Math.floor((mtu - 20) / 8) * 8;
    for (const [i, unit] of [25, 0x1234].entries()) {
      const data = noise(1600, unit);
      link.ends[0].inject(between(4, { fragment: 0x2000 | unit, payload: data, id: 9 }));
      await arrived(link, (i + 1) * Math.ceil(1600 / room));
      const got = link.ends[1].take();
      ok(
        got.every((one) => (one[6]! & 0x20) !== 0),
        'more fragments follow all of them',
      );
      const offsets = got.map((one) => (((one[6]! & 0x1f) << 8) | one[7]!) * 8);
      deepEqual(
        offsets,
        offsets.map((_, k) => unit * 8 + k * room),
      );
      deepEqual(hex([Uint8Array.from(got.flatMap((one) => [...one.subarray(20)]))]), hex([data]));
    }
  },

  'repeats only copied options in later fragments': async (link) => {
    connect(link, { mtu: 576 });
    // router alert (copied), record route (not copied), end of list
    const options = Uint8Array.of(0x94, 4, 0, 0, 7, 7, 4, 0, 0, 0, 0, 0);
    link.ends[0].inject(between(4, { options, payload: noise(1000, 4) }));
    await arrived(link, 2);
    const [first, second] = link.ends[1].take();
    deepEqual([...first!.subarray(20, 32)], [...options]);
    deepEqual([...second!.subarray(20, 32)], [0x94, 4, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0]);
  },

  'fragments the segments of a superpacket': async (link, outer) => {
    connect(link, { mtu: 900 });
    const inner = 900 - (1500 - innerMtu(link, outer));
    const train = udpTrain(4, [1200, 1200, 100], { sourcePort: 2000, id: 50 });
    const { packet: whole, offload } = superpacket(train);
    link.ends[0].inject(whole, offload);
    await arrived(link, 5);
    const got = link.ends[1].take();
    equal(got.length, 5);
    for (const [i, one] of train.entries()) {
      const mine = got.filter((fragment) => ((fragment[4]! << 8) | fragment[5]!) === 50 + i);
      ok(mine.every((fragment) => fragment.length <= inner));
      deepEqual(hex([reassemble(mine)!]), hex([one.subarray(20)]));
    }
    counts(link.ends[0], { fragmentsSent: 4, egressPackets: 5 }); // the last segment fits and stays whole
  },
};

/** A datagram whose last word makes the sum zero, which UDP sends as ones (RFC 768). */
function zeroSumDatagram(family: Family): Uint8Array {
  const field = family === 4 ? 26 : 46;
  const almost = between(family, { kind: 'udp', payload: Uint8Array.of(1, 2, 3, 4, 0, 0) });
  const word = [almost[field]!, almost[field + 1]!];
  const datagram = between(family, { kind: 'udp', payload: Uint8Array.of(1, 2, 3, 4, ...word) });
  deepEqual([...datagram.subarray(field, field + 2)], [0xff, 0xff]);
  return datagram;
}

/** The same packet with another IPv4 id, below 256. */
function withId(whole: Uint8Array, id: number): Uint8Array {
  const copy = Uint8Array.from(whole);
  if (copy[0]! >>> 4 === 6) return copy;
  copy.set([0, id], 4);
  copy.set([0, 0], 10);
  const right = checksum(copy, 0, 20);
  copy.set([right >> 8, right & 0xff], 10);
  return copy;
}

async function superpacketsPass(link: PortLink, trains: readonly (readonly Uint8Array[])[]): Promise<void> {
  let total = 0;
  for (const train of trains) {
    ok(train.every(checksumHolds), 'the test itself is right');
    const { packet: whole, offload } = superpacket(train);
    link.ends[0].inject(whole, offload);
    total += train.length;
    await arrived(link, total);
    samePackets(link.ends[1].take(), train, `a superpacket of ${train.length}`);
  }
  counts(link.ends[0], { egressPackets: total });
  deepEqual(link.ends.map(drops), [{}, {}]);
}

/** Sends one IPv4 packet with `size` bytes of data and checks its fragments against RFC 791. */
async function fragmentsPass(link: PortLink, size: number, inner: number): Promise<void> {
  const before = link.ends[1].host.counters().ingressPackets;
  const sent = link.ends[0].host.counters().fragmentsSent;
  const whole = between(4, { kind: 'udp', payload: noise(size - 8, size), id: size });
  link.ends[0].inject(whole);
  const pieces = Math.ceil(size / (Math.floor((inner - 20) / 8) * 8));
  await arrived(link, before + pieces);
  counts(link.ends[0], { fragmentsSent: sent + pieces });
  const got = link.ends[1].take();
  equal(got.length, pieces);
  for (const one of got) {
    ok(one.length <= inner, `a fragment of ${one.length} bytes on a path for ${inner}`);
    equal((one[4]! << 8) | one[5]!, size & 0xffff);
  }
  deepEqual(hex([reassemble(got)!]), hex([whole.subarray(20)]));
}

/** Neighbours of one flow that must not become one superpacket, or only partly. */
function awkwardTrains(family: Family): Record<string, Uint8Array[]> {
  const plain = (): Uint8Array[] => tcpTrain(family, [100, 100, 100, 100], { sequence: 5000 });
  const changed = (change: (i: number) => Partial<PacketFields>): Uint8Array[] =>
    [0, 1, 2, 3].map((i) =>
      between(family, {
        kind: 'tcp',
        dontFragment: true,
        sequence: 1 + i * 100,
        payload: noise(100, i),
        ...change(i),
      }),
    );
  const [one, two, three, four] = plain() as [Uint8Array, Uint8Array, Uint8Array, Uint8Array];
  const datagrams = (change: (i: number) => Partial<PacketFields>): Uint8Array[] =>
    [0, 1, 2, 3].map((i) => between(family, { kind: 'udp', id: i, payload: noise(100, i), ...change(i) }));
  return {
    'out of order': [one, three, two, four],
    'twice the same': [one, one, two, two],
    'a gap': [one, two, four],
    'PSH in the middle': changed((i) => ({ flags: i === 1 ? TCP_ACK | TCP_PSH : TCP_ACK })),
    'FIN in the middle': changed((i) => ({ flags: i === 1 ? TCP_ACK | TCP_FIN : TCP_ACK })),
    'another TTL': changed((i) => ({ ttl: 60 + (i >> 1) })),
    'another class': changed((i) => ({ trafficClass: i >> 1 })),
    'another DF': changed((i) => ({ dontFragment: i < 2 })),
    'ids that do not count up': changed((i) => ({ dontFragment: false, id: i * 3 })),
    'other options': changed((i) => ({ tcpOptions: Uint8Array.of(1, 1, 1, i >> 1) })),
    'a wrong checksum': changed((i) => (i === 2 ? { checksum: 0x1234 } : {})),
    'a wrong checksum first': changed((i) => (i === 0 ? { checksum: 0x1234 } : {})),
    'growing sizes': tcpTrain(family, [100, 101, 102]),
    'a short one in the middle': tcpTrain(family, [100, 60, 100]),
    'no payload': tcpTrain(family, [0, 0, 100, 100, 0]),
    'an empty one between two that would join': tcpTrain(family, [100, 0, 100]),
    'UDP without checksum': datagrams(() => (family === 4 ? { checksum: 0 } : {})),
    'UDP with a wrong checksum': datagrams((i) => (i === 1 ? { checksum: 0x4321 } : {})),
    'UDP of growing sizes': udpTrain(family, [50, 60, 70]),
    'UDP ids that do not count up': datagrams((i) => ({ id: 9 - i })),
    'IPv4 header options':
      family === 4 ? datagrams(() => ({ options: Uint8Array.of(1, 1, 1, 0) })) : datagrams(() => ({})),
  };
}
