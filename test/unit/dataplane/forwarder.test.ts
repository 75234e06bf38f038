import { describe, expect, it } from 'vitest';
import { Harness, layOut } from '../../property/dataplane/harness.js';
import type { EgressPacket, Verdict, World } from '../../property/dataplane/model.js';
import { hex, icmp, icmpv6, ipv4, ipv6, ramp, tcpPacket, toHex, udpPacket } from '../../support/packets.js';

/** This host is 192.0.2.1 with 10.1.1.0/24; two leases of 192.0.2.2 count as one host (design 9.6). */
const WORLD: World = {
  local: ['10.1.1.0/24', 'fd00:1::/64'],
  own: ['192.0.2.1', '10.0.0.9'],
  leases: [
    { prefix: '10.1.2.0/24', address: '192.0.2.2', port: 8285, senders: ['198.51.100.2'] },
    { prefix: '10.1.20.0/24', address: '192.0.2.2', port: 8286, senders: [] },
    { prefix: '10.1.3.0/24', address: '192.0.2.3', port: 8285, senders: [] },
    { prefix: 'fd00:3::/64', address: '192.0.2.3', port: 8285, senders: [] },
  ],
  pathMtu: { '192.0.2.2': 1500, '192.0.2.3': 1400 },
  overhead: 28,
  sourceCheck: 'lease',
};
const DROP: Verdict = { kind: 'drop' };

function row(bytes: Uint8Array, more: Partial<EgressPacket> = {}): EgressPacket {
  return { bytes, bad: false, gso: 0, header: 0, segments: 1, ...more };
}

function egress(harness: Harness, ...rows: EgressPacket[]): Verdict[] {
  const { arena, offsets } = layOut(
    rows.map((one) => one.bytes),
    0xee,
  );
  return harness.egress(rows, arena, offsets);
}

function ingress(harness: Harness, sender: string, source: string, destination = '10.1.1.5', segments = 1): Verdict {
  const bytes = udpPacket({ src: source, dst: destination, payload: ramp(8) });
  const { arena, offsets } = layOut([bytes], 0xee);
  return harness.ingress([{ bytes, truncated: false, segments, sender }], arena, offsets)[0]!;
}

function to(destination: string, size = 100, dontFragment = false): EgressPacket {
  const src = destination.includes(':') ? 'fd00:1::5' : '10.1.1.5';
  const header = destination.includes(':') ? 48 : 28;
  return row(udpPacket({ src, dst: destination, payload: ramp(size - header), ip: { dontFragment } }));
}

function send(address: string, port = 8285, fragmentMtu?: number): Verdict {
  return { kind: 'send', address, port, fragmentMtu };
}

describe('a packet from a pod', () => {
  it('goes to the host that holds its destination', () => {
    const verdicts = egress(
      new Harness(WORLD),
      to('10.1.2.1'),
      to('10.1.20.255'),
      to('10.1.3.0'),
      to('fd00:3::1'),
      to('10.1.1.9'),
      to('192.0.2.1'),
      to('10.1.4.1'),
      to('fd00:3:0:1::1'),
    );
    const [two, twenty] = [send('192.0.2.2'), send('192.0.2.2', 8286)];
    expect(verdicts).toEqual([two, twenty, send('192.0.2.3'), send('192.0.2.3'), DROP, DROP, DROP, DROP]);
  });

  it('follows the table from one batch to the next', () => {
    const harness = new Harness(WORLD);
    expect(egress(harness, to('10.1.2.130'))).toEqual([send('192.0.2.2')]);
    harness.fib.set('10.1.2.128/25', { address: '192.0.2.3' });
    expect(egress(harness, to('10.1.2.130'), to('10.1.2.1'))).toEqual([send('192.0.2.3'), send('192.0.2.2')]);
    harness.fib.delete('10.1.2.128/25');
    harness.fib.delete('10.1.2.0/24');
    expect(egress(harness, to('10.1.2.130'))).toEqual([DROP]);
    expect(harness.counters()).toEqual({ dropNoRoute: 1 });
  });

  it('is measured with its outer headers against the path MTU', () => {
    const harness = new Harness(WORLD);
    const [fits, over] = [1400 - 28, 1400 - 27];
    expect(egress(harness, to('10.1.3.1', fits, true), to('10.1.3.1', over, true))).toEqual([send('192.0.2.3'), DROP]);
    expect(egress(harness, to('fd00:3::1', fits), to('fd00:3::1', over))).toEqual([send('192.0.2.3'), DROP]);
    const cut = send('192.0.2.3', 8285, fits);
    expect(egress(harness, to('10.1.3.1', fits), to('10.1.3.1', over))).toEqual([send('192.0.2.3'), cut]);
    expect(harness.counters()).toEqual({ dropTooBig: 2 });
    harness.fib.setPathMtu('192.0.2.3', 1401);
    expect(egress(harness, to('10.1.3.1', over, true))).toEqual([send('192.0.2.3')]);
  });

  it('as a superpacket is measured and counted by its segments', () => {
    const harness = new Harness(WORLD);
    const whole = tcpPacket({ src: '10.1.1.5', dst: '10.1.3.1', payload: ramp(5000), ip: { dontFragment: true } });
    const [fits, over] = [1400 - 28 - 40, 1400 - 28 - 39];
    const superpacket = (gso: number): EgressPacket => row(whole, { gso, header: 40, segments: Math.ceil(5000 / gso) });
    expect(egress(harness, superpacket(fits), superpacket(over))).toEqual([send('192.0.2.3'), DROP]);
    expect(harness.counters()).toEqual({ dropTooBig: 4 });
    const one = tcpPacket({ src: '10.1.1.5', dst: '10.1.3.1', payload: ramp(50), ip: { dontFragment: true } });
    expect(egress(harness, row(one, { gso: 1400, header: 40 }))).toEqual([send('192.0.2.3')]);
  });

  it('of the kernel itself is dropped without a word', () => {
    const harness = new Harness(WORLD);
    const quiet = ['224.0.0.22', '239.255.255.250', '255.255.255.255', 'ff02::2', 'ff02::16', 'fe80::1'];
    expect(egress(harness, ...quiet.map((destination) => to(destination)))).toEqual(quiet.map(() => DROP));
    expect(harness.replies()).toEqual([]);
    expect(harness.counters()).toEqual({ dropMulticast: quiet.length });
  });

  it('gets at most 32 answers a batch', () => {
    const harness = new Harness(WORLD);
    const rows = Array.from({ length: 40 }, () => to('10.9.9.9'));
    egress(harness, ...rows);
    expect(harness.replies()).toHaveLength(32);
    expect(harness.counters()).toEqual({ dropNoRoute: 40, repliesLimited: 8 });
  });

  it('is never answered when it is an answer itself', () => {
    const harness = new Harness(WORLD);
    const [src, dst] = ['10.1.1.5', '10.9.9.9'];
    const quoted = ipv4({ src: dst, dst: src, payload: ramp(8) });
    const errors = [
      ipv4({ src, dst, protocol: 1, payload: icmp(3, 1, 0, quoted) }),
      ipv4({ src, dst, protocol: 1, payload: icmp(11, 0, 0, quoted) }),
      ipv4({ src, dst, fragmentOffset: 8, payload: ramp(64) }),
      ipv6({
        src: 'fd00:1::5',
        dst: 'fd00:9::1',
        nextHeader: 58,
        payload: icmpv6({ src: 'fd00:1::5', dst: 'fd00:9::1' }, 1, 0, 0, ramp(48)),
      }),
    ];
    egress(harness, ...errors.map((one) => row(one)));
    expect(harness.replies()).toEqual([]);
    expect(harness.counters()).toEqual({ dropNoRoute: 4, repliesSuppressed: 4 });
    egress(harness, row(ipv4({ src, dst, protocol: 1, payload: icmp(8, 0, 1, ramp(8)) })));
    expect(harness.replies()).toHaveLength(1);
  });
});

describe('the answers, byte for byte', () => {
  const offender = hex('45000024 1234 4000 40 11 0a7e 0a010105 0a090909 0fa0 1388 0010 b27e 0001020304050607');

  it('net unreachable', () => {
    const harness = new Harness(WORLD);
    egress(harness, row(offender));
    // from the unreachable destination, precedence 6, DF, id 0, TTL 64
    expect(harness.replies().map(toHex)).toEqual([
      toHex(hex('45c00040 0000 4000 40 01 1be6 0a090909 0a010105 0300 1b39 00000000')) + toHex(offender),
    ]);
  });

  it('fragmentation needed, with the MTU for the inner packet', () => {
    const harness = new Harness({ ...WORLD, leases: [{ ...WORLD.leases[0]!, prefix: '10.9.0.0/16' }] });
    harness.fib.setPathMtu('192.0.2.2', 68); // the least there is: 40 bytes inside
    const longer = udpPacket({ src: '10.1.1.5', dst: '10.9.9.9', payload: ramp(24), ip: { dontFragment: true } });
    egress(harness, row(longer));
    expect(toHex(harness.replies()[0]!.subarray(20, 28))).toMatch(/^0304....00000028$/);
  });

  it('packet too big never says less than 1280', () => {
    const harness = new Harness(WORLD);
    harness.fib.setPathMtu('192.0.2.3', 1200);
    egress(harness, to('fd00:3::1', 1300));
    const [answer] = harness.replies();
    expect(toHex(answer!.subarray(0, 8))).toBe('6000000004d83a40'); // 1232 + 8 bytes, ICMPv6, hop limit 64
    expect(toHex(answer!.subarray(40, 42)) + toHex(answer!.subarray(44, 48))).toBe('020000000500');
    expect(answer).toHaveLength(1280);
  });
});

describe('a packet from the underlay', () => {
  const cases: readonly (readonly [string, string, Record<World['sourceCheck'], string>])[] = [
    ['192.0.2.2', '10.1.2.7', { off: 'deliver', lease: 'deliver', strict: 'deliver' }],
    ['198.51.100.2', '10.1.2.7', { off: 'deliver', lease: 'deliver', strict: 'deliver' }],
    ['192.0.2.2', '10.1.20.7', { off: 'deliver', lease: 'deliver', strict: 'deliver' }],
    ['192.0.2.2', '10.1.3.7', { off: 'deliver', lease: 'dropSpoofedSource', strict: 'dropSpoofedSource' }],
    ['192.0.2.2', '172.16.0.1', { off: 'deliver', lease: 'deliver', strict: 'dropSpoofedSource' }],
    ['192.0.2.2', '10.1.1.5', { off: 'dropSpoofedSource', lease: 'dropSpoofedSource', strict: 'dropSpoofedSource' }],
    ['192.0.2.2', '192.0.2.1', { off: 'dropSpoofedSource', lease: 'dropSpoofedSource', strict: 'dropSpoofedSource' }],
    ['192.0.2.99', '10.1.2.7', { off: 'deliver', lease: 'dropUnknownSender', strict: 'dropUnknownSender' }],
    ['192.0.2.99', '172.16.0.1', { off: 'deliver', lease: 'dropUnknownSender', strict: 'dropUnknownSender' }],
  ];
  const rows = cases.flatMap(([sender, source, expected]) =>
    (['off', 'lease', 'strict'] as const).map((check) => ({ sender, source, check, expected: expected[check] })),
  );

  it.each(rows)('of $sender with source $source, check $check: $expected', ({ sender, source, check, expected }) => {
    const harness = new Harness({ ...WORLD, sourceCheck: check });
    expect(ingress(harness, sender, source).kind).toBe(expected === 'deliver' ? 'deliver' : 'drop');
    expect(harness.counters()).toEqual(expected === 'deliver' ? {} : { [expected]: 1 });
  });

  it('is delivered to own leases only', () => {
    const harness = new Harness(WORLD);
    for (const destination of ['10.1.3.1', '10.9.9.9', '192.0.2.1', '10.0.0.9', '224.0.0.1']) {
      expect(ingress(harness, '192.0.2.2', '10.1.2.7', destination)).toEqual(DROP);
    }
    expect(harness.counters()).toEqual({ dropNotLocal: 5 });
  });

  it('is counted by the packets of its run', () => {
    const harness = new Harness(WORLD);
    ingress(harness, '192.0.2.2', '10.1.3.7', '10.1.1.5', 17);
    expect(harness.counters()).toEqual({ dropSpoofedSource: 17 });
    expect(harness.notes().spoofed).toEqual({ count: 17, bytes: Uint8Array.of(192, 0, 2, 2) });
  });

  it('is delivered to a lease that has just become ours', () => {
    const harness = new Harness(WORLD);
    expect(ingress(harness, '192.0.2.2', '10.1.2.7', '10.1.5.1')).toEqual(DROP);
    harness.fib.setLocal([...WORLD.local, '10.1.5.0/24'], WORLD.own);
    expect(ingress(harness, '192.0.2.2', '10.1.2.7', '10.1.5.1')).toEqual({ kind: 'deliver', host: '192.0.2.2' });
  });
});
