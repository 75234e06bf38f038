/** The port contract, part three: what is VXLAN's own. */
import { deepEqual } from 'node:assert/strict';
import type { Family } from '../net/prefix.js';
import {
  arrived,
  between,
  connect,
  counts,
  drops,
  FAMILIES,
  framed,
  noise,
  passes,
  samePackets,
} from './contract-checks.js';
import type { Run } from './contract-checks.js';
import { tcpTrain } from './contract-segments.js';
import { superpacket, withPartialChecksum } from './packets.js';

/** Bytes of TCP payload with the timestamp option in what every link of a pod takes. */
function fullSegment(family: Family): number {
  return 1280 - (family === 4 ? 20 : 40) - 32;
}

export const VXLAN_CASES: Readonly<Record<string, Run>> = {
  'refuses frames that are not for it, each with its counter': async (link) => {
    connect(link, { senders: [link.stranger.toString()] });
    const good = framed(link, between(4, { payload: noise(30, 1) }));
    const own = link.format.macs[1]!.bytes;
    const changed = (at: number, ...bytes: readonly number[]): Uint8Array => {
      const copy = Uint8Array.from(good);
      copy.set(bytes, at);
      return copy;
    };
    const cases = {
      // no I flag, GBP, GPE, OAM; reserved bits on both sides of the VNI
      dropVxlanFlags: [changed(0, 0), changed(0, 0x88), changed(0, 0x0c), changed(0, 9), changed(3, 1), changed(7, 1)],
      dropVxlanVni: [changed(4, 0), changed(6, 0xee), changed(4, 0xef, 0xcd, 0xab)],
      dropVxlanLoop: [changed(14, ...own)],
      // ARP, IPv6 around IPv4, VLAN, an 802.3 length
      dropVxlanType: [changed(20, 8, 6), changed(20, 0x86, 0xdd), changed(20, 0x81, 0), changed(20, 0, 38)],
      dropVxlanGroup: [changed(8, 0x33, 0x33, 0, 0, 0, 1), changed(8, ...Array<number>(6).fill(255))],
      dropVxlanMac: [changed(8, 0x0e, 0, 0, 0, 0, 0x77), changed(8, 0, 0, 0, 0, 0, 0)],
      dropShort: [good.subarray(0, 41), good.subarray(0, 22), good.subarray(0, 21)],
    };
    const frames = Object.values(cases).flat();
    for (const frame of frames) await link.sendAs(1, frame);
    await link.sendAs(1, good);
    await arrived(link, frames.length + 1);
    deepEqual(
      drops(link.ends[1]),
      Object.fromEntries(Object.entries(cases).map(([name, these]) => [name, these.length])),
    );
    samePackets(link.ends[1].take(), [good.subarray(22)], 'the one good frame');
  },

  'leaves congestion marks as they were when nothing marks on the way': async (link) => {
    connect(link);
    const packets = FAMILIES.flatMap((family) =>
      [0, 1, 2, 3].map((mark) => between(family, { kind: 'udp', trafficClass: 0xb8 | mark, payload: noise(9, mark) })),
    );
    await passes(link, packets, 'every mark');
    deepEqual(link.ends.map(drops), [{}, {}]);
  },

  'completes checksums that a kernel left to a device': async (link) => {
    connect(link, { senders: [link.stranger.toString()] });
    const whole = FAMILIES.flatMap((family) =>
      (['udp', 'tcp'] as const).flatMap((kind) =>
        [0, 1, 9, 700, 1001].map((size) => between(family, { kind, payload: noise(size, size), dontFragment: true })),
      ),
    );
    for (const one of whole) await link.sendAs(1, framed(link, withPartialChecksum(one).packet));
    await arrived(link, whole.length);
    samePackets(link.ends[1].take(), whole, 'unfinished packets');
    counts(link.ends[1], { ingressPackets: whole.length });
  },

  'cuts superpackets that a kernel left to a device': async (link) => {
    connect(link, { senders: [link.stranger.toString()] });
    let total = 0;
    for (const family of FAMILIES) {
      const full = fullSegment(family);
      for (const sizes of [[full, 700], [full, full, 1], Array<number>(40).fill(full)]) {
        for (const flags of [0, 0x08, 0x80]) {
          const train = tcpTrain(family, sizes, { flags, id: 100 });
          await link.sendAs(1, framed(link, superpacket(train).packet));
          total += train.length;
          await arrived(link, total);
          samePackets(link.ends[1].take(), train, `a superpacket of ${train.length}`);
        }
      }
    }
    counts(link.ends[1], { ingressPackets: total });
    deepEqual(drops(link.ends[1]), {});
  },
};
