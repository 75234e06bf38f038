/** What every wire format must do; native/ relies on it when it copies and compares headers in bulk. */
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { Encapsulation } from '../../../src/encap/encapsulation.js';
import { openEncapsulation } from '../../../src/encap/open.js';
import { ROW_HEADER, ROW_HEADER_BYTES } from '../../../src/fib/layout.js';
import { NEXTHOP_ENCAP, VXLAN_BYTES } from '../../../src/io/batch.js';
import { MacAddress } from '../../../src/net/prefix.js';
import { packet } from '../../../src/testing.js';
import { root } from '../../support/process.js';
import { hex, toHex } from '../../support/packets.js';

/** The two ends of test/vectors/vxlan.txt. */
const SENDER = '0e:11:11:11:11:11';
const RECEIVER = '0e:22:22:22:22:22';

interface Format {
  readonly name: string;
  readonly sender: Encapsulation;
  readonly receiver: Encapsulation;
  /** The receiver's VTEP. */
  readonly mac: MacAddress | undefined;
  readonly port: number;
  readonly overhead: readonly [number, number];
}

const FORMATS: readonly Format[] = [
  {
    name: 'udp',
    sender: openEncapsulation('udp'),
    receiver: openEncapsulation('udp'),
    mac: undefined,
    port: 8285,
    overhead: [28, 48],
  },
  {
    name: 'vxlan',
    sender: openEncapsulation({ type: 'vxlan', vni: 1, vtepMac: SENDER }),
    receiver: openEncapsulation({ type: 'vxlan', vni: 1, vtepMac: RECEIVER }),
    mac: MacAddress.parse(RECEIVER),
    port: 8472,
    overhead: [50, 70],
  },
  {
    name: 'ipip',
    sender: openEncapsulation('ipip'),
    receiver: openEncapsulation('ipip'),
    mac: undefined,
    port: 0,
    overhead: [20, 40],
  },
];

const INNER = {
  4: packet({ source: '10.244.1.0', destination: '10.244.2.7', kind: 'udp', payload: Uint8Array.of(1, 2, 3) }),
  6: packet({ source: 'fd77:1::', destination: 'fd77:2::7', kind: 'udp', payload: Uint8Array.of(1, 2, 3) }),
} as const;

describe.each(FORMATS)('$name', ({ name, sender, receiver, mac, port, overhead }) => {
  const framed = (family: 4 | 6): Uint8Array => Uint8Array.of(...sender.header(family, mac), ...INNER[family]);

  it('has its name, port and overhead', () => {
    expect([sender.name, sender.defaultPort]).toEqual([name, port]);
    expect([sender.overhead(4), sender.overhead(6)]).toEqual(overhead);
    const udp = sender.carrier === 'udp' ? 8 : 0;
    expect(sender.overhead(4)).toBe(20 + udp + sender.headerBytes);
    expect(sender.overhead(6)).toBe(40 + udp + sender.headerBytes);
  });

  it('builds headers of one size, which differ between the families in the last two bytes at most', () => {
    const [four, six] = [sender.header(4, mac), sender.header(6, mac)];
    expect([four.length, six.length]).toEqual([sender.headerBytes, sender.headerBytes]);
    expect(four.subarray(0, -2)).toEqual(six.subarray(0, -2));
    expect(sender.headerBytes).toBeLessThanOrEqual(ROW_HEADER_BYTES);
  });

  it('takes what another end sends to it, and sees what it accepts at the beginning', () => {
    for (const family of [4, 6] as const) {
      const datagram = framed(family);
      expect(receiver.fault(datagram)).toBeUndefined();
      expect(datagram.subarray(0, receiver.accepts.length)).toEqual(receiver.accepts);
    }
  });

  it('takes nothing that has no room for an IP header, and reads no further than there is', () => {
    const datagram = framed(4);
    for (let length = 0; length < receiver.headerBytes + 20; length++) {
      expect(receiver.fault(datagram.subarray(0, length))).toBe('dropShort');
    }
    expect(receiver.fault(datagram.subarray(0, receiver.headerBytes + 20))).toBeUndefined();
  });

  it('checks the VTEP of a next hop', () => {
    if (mac === undefined) {
      expect(sender.vtep(undefined, 'next hop 192.0.2.1')).toBeUndefined();
      expect(() => sender.vtep(RECEIVER, 'next hop 192.0.2.1')).toThrow(
        /next hop 192\.0\.2\.1 has vtepMac .* leave it/,
      );
      return;
    }
    expect(sender.vtep(RECEIVER, 'next hop 192.0.2.1')).toEqual(mac);
    expect(() => sender.vtep(undefined, 'next hop 192.0.2.1')).toThrow(/192\.0\.2\.1 has no vtepMac/);
    for (const bad of ['01:00:5e:00:00:01', 'ff:ff:ff:ff:ff:ff', '00:00:00:00:00:00', '0e:11:22:33:44']) {
      expect(() => sender.vtep(bad, 'next hop 192.0.2.1')).toThrow(
        expect.objectContaining({ code: 'INVALID_ADDRESS' }),
      );
    }
  });
});

describe('the row of a next hop', () => {
  it('has room for every header, at the place where native code looks', () => {
    expect([NEXTHOP_ENCAP, VXLAN_BYTES]).toEqual([ROW_HEADER, ROW_HEADER_BYTES]);
    expect(Math.max(...FORMATS.map(({ sender }) => sender.headerBytes))).toBe(ROW_HEADER_BYTES);
  });
});

describe('vxlan and the kernel', () => {
  const frames = readFileSync(`${root}/test/vectors/vxlan.txt`, 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.split(' ') as [string, string]);
  const { sender, receiver, mac } = FORMATS[1]!;
  const faults: Readonly<Record<string, string>> = {
    'arp-request': 'dropVxlanType',
    'ipv6-neighbour-solicitation': 'dropVxlanGroup',
    'gbp-marked': 'dropVxlanFlags',
  };

  it.each(frames)('%s: the same header, and the same opinion of it', (name, text) => {
    const frame = hex(text);
    expect(receiver.fault(frame)).toBe(faults[name]);
    if (faults[name] !== undefined) return;
    const family = name.startsWith('ipv6') ? 6 : 4;
    expect(toHex(sender.header(family, mac))).toBe(text.slice(0, 44));
    // The sender's own frame back to it, and another network's.
    expect(sender.fault(frame)).toBe('dropVxlanLoop');
    expect(openEncapsulation({ type: 'vxlan', vni: 2, vtepMac: RECEIVER }).fault(frame)).toBe('dropVxlanVni');
    expect(openEncapsulation({ type: 'vxlan', vni: 1, vtepMac: '0e:22:22:22:22:23' }).fault(frame)).toBe(
      'dropVxlanMac',
    );
  });

  it('covers what a kernel sends', () => {
    expect(frames.length).toBeGreaterThanOrEqual(14);
    for (const name of Object.keys(faults)) expect(frames.map(([known]) => known)).toContain(name);
  });
});
