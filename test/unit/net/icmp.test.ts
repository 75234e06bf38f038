import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import * as net from '../../../src/net/icmp.js';
import {
  addressBytes,
  bytes,
  fragmentHeader,
  hex,
  icmp,
  icmpv6,
  ipv4,
  ipv6,
  onesComplementChecksum,
  paddingHeader,
  ramp,
  toHex,
  transportChecksum,
  udpPacket,
  viewOf,
  type Ipv4Fields,
  type Ipv6Fields,
} from '../../support/packets.js';

const V4 = { src: '10.1.15.2', dst: '10.1.99.9' };
const V6 = { src: 'fd00:15::2', dst: 'fd00:99::9' };

describe('mayAnswer4', () => {
  const may = (data: Uint8Array): boolean => net.mayAnswer4(viewOf(data), 0, data.length);
  const about = (fields: Ipv4Fields): boolean => may(ipv4({ ...V4, payload: ramp(8), ...fields }));

  it('answers data packets, first fragments and ICMP queries', () => {
    expect(about({ protocol: 17 })).toBe(true);
    expect(about({ protocol: 6, options: [1, 1, 1, 1] })).toBe(true);
    expect(about({ moreFragments: true })).toBe(true);
    for (const type of [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43]) {
      expect(about({ protocol: 1, payload: icmp(type, 0, 0) }), `type ${type}`).toBe(true);
    }
  });

  it('stays silent about ICMP errors, unknown ICMP types, and ICMP too short to tell', () => {
    for (const type of [3, 4, 5, 11, 12, 1, 2, 6, 7, 19, 30, 40, 41, 44, 253, 255]) {
      expect(about({ protocol: 1, payload: icmp(type, 0, 0) }), `type ${type}`).toBe(false);
    }
    expect(about({ protocol: 1, payload: [] })).toBe(false);
    expect(may(bytes(ipv4({ ...V4, protocol: 1 }), [8, 0, 0, 0]))).toBe(false);
  });

  it('stays silent about later fragments', () => {
    expect(about({ fragmentOffset: 8 })).toBe(false);
    expect(about({ fragmentOffset: 8, moreFragments: true, protocol: 1, payload: icmp(8, 0, 0) })).toBe(false);
  });

  it.each(['0.0.0.0', '0.1.2.3', '127.0.0.1', '224.0.0.1', '239.1.1.1', '240.0.0.1', '255.255.255.255'])(
    'stays silent towards source %s',
    (src) => {
      expect(about({ src })).toBe(false);
    },
  );

  it.each(['0.0.0.0', '224.0.0.251', '239.255.255.250', '255.255.255.255'])(
    'stays silent about destination %s',
    (dst) => {
      expect(about({ dst })).toBe(false);
    },
  );

  it.each(['1.0.0.1', '126.255.255.255', '128.0.0.1', '223.255.255.255'])('knows the neighbours: source %s', (src) => {
    expect(about({ src })).toBe(true);
  });
});

describe('mayAnswer6', () => {
  const may = (data: Uint8Array, length = data.length): boolean => net.mayAnswer6(viewOf(data), 0, length);
  const about = (fields: Ipv6Fields): boolean => may(ipv6({ ...V6, payload: ramp(8), ...fields }));
  const icmpType = (type: number, extensions: Ipv6Fields['extensions'] = []): boolean =>
    about({ nextHeader: 58, extensions, payload: icmpv6(V6, type, 0, 0) });

  it('answers data packets, first fragments and informational ICMPv6', () => {
    expect(about({ nextHeader: 17 })).toBe(true);
    expect(about({ nextHeader: 50, extensions: [paddingHeader(60)] })).toBe(true);
    expect(about({ extensions: [fragmentHeader(0, true)] })).toBe(true);
    for (const type of [128, 129, 133, 135, 143]) expect(icmpType(type), `type ${type}`).toBe(true);
    expect(icmpType(128, [paddingHeader(0), fragmentHeader(0, false)])).toBe(true);
  });

  it('stays silent about errors and redirects, behind extension headers too', () => {
    for (const type of [0, 1, 2, 3, 4, 100, 127, 137]) {
      expect(icmpType(type), `type ${type}`).toBe(false);
      expect(icmpType(type, [paddingHeader(0, 3), paddingHeader(60)]), `type ${type}`).toBe(false);
    }
  });

  it('stays silent about later fragments and about chains it cannot follow', () => {
    expect(about({ extensions: [fragmentHeader(8, false)] })).toBe(false);
    expect(about({ nextHeader: 58, payload: [] })).toBe(false);
    expect(about({ extensions: Array.from({ length: 9 }, () => paddingHeader(60)) })).toBe(false);
    expect(may(ipv6({ ...V6, extensions: [paddingHeader(0, 2)] }), 50)).toBe(false);
  });

  it.each(['::', '::1', 'ff02::1', 'fe80::1', 'febf::1'])('stays silent towards source %s', (src) => {
    expect(about({ src })).toBe(false);
  });

  it.each(['::', 'ff02::1', 'ff0e::1'])('stays silent about destination %s', (dst) => {
    expect(about({ dst })).toBe(false);
  });

  it.each(['::2', '0:0:1::1', '0:0:0:0:1::', '::1:0:0:1', 'fec0::1', 'fe7f::1', 'fd00::1'])(
    'knows the neighbours: source %s',
    (src) => {
      expect(about({ src })).toBe(true);
      expect(about({ dst: src })).toBe(true);
    },
  );
});

/** Writes into the middle of a marked buffer and proves that nothing around it was touched. */
function written(write: (out: Uint8Array, at: number) => number): Uint8Array {
  const out = new Uint8Array(2000).fill(0xee);
  const length = write(out, 100);
  expect(out.subarray(0, 100).every((b) => b === 0xee) && out.subarray(100 + length).every((b) => b === 0xee)).toBe(
    true,
  );
  return out.subarray(100, 100 + length);
}

describe('IPv4 errors', () => {
  const offender = udpPacket({ ...V4, payload: ramp(4), ip: { options: [1, 1, 1, 0] } });

  it('are exactly the RFC 792 message in an RFC 1812 packet', () => {
    const data = written((out, at) =>
      net.writeUnreachable4(
        out,
        at,
        0x0a010101,
        net.ICMP4_NET_UNREACHABLE,
        viewOf(bytes(1, 2, 3, offender)),
        3,
        offender.length,
      ),
    );
    const expected = ipv4({
      src: '10.1.1.1',
      dst: '10.1.15.2',
      protocol: 1,
      tos: 0xc0,
      id: 0,
      dontFragment: true,
      ttl: 64,
      payload: icmp(3, 0, 0, offender),
    });
    expect(toHex(data)).toBe(toHex(expected));
    expect(toHex(data.subarray(net.ICMP4_OFFSET))).toBe(toHex(icmp(3, 0, 0, offender)));
  });

  it('quote what flannel quotes and more: its golden offender (contract 4.3)', () => {
    const golden = hex('45000020123440004011a28c0a010f020a01630930390007000c000061626364');
    const data = written((out, at) => net.writeUnreachable4(out, at, 0x0a010f00, 0, viewOf(golden), 0, golden.length));
    const flannel = hex(
      '4500003800000000080180c20a010f000a010f020300ccb30000000045000020123440004011a28c0a010f020a01630930390007000c0000',
    );
    expect(toHex(data.subarray(28, 28 + 28))).toBe(toHex(flannel.subarray(28)));
    expect(toHex(data.subarray(28))).toBe(toHex(golden));
    expect(toHex(data.subarray(12, 22))).toBe(toHex(flannel.subarray(12, 22)));
  });

  it.each([
    [1400, 1400],
    [68, 68],
    [70_000, 65_535],
  ])('carry the next-hop MTU %i (RFC 1191)', (mtu, said) => {
    const data = written((out, at) =>
      net.writeFragmentationNeeded4(out, at, 0x0a010101, mtu, viewOf(offender), 0, offender.length),
    );
    expect([...data.subarray(20, 22)]).toEqual([3, 4]);
    expect(viewOf(data).getUint16(24)).toBe(0);
    expect(viewOf(data).getUint16(26)).toBe(said);
    expect(onesComplementChecksum(data.subarray(20))).toBe(0);
    expect(onesComplementChecksum(data.subarray(0, 20))).toBe(0);
  });

  it('end at 576 bytes, at the end of the packet, and never quote what was not received', () => {
    const sizeFor = (data: Uint8Array, length = data.length): number =>
      written((out, at) => net.writeUnreachable4(out, at, 1, 0, viewOf(data), 0, length)).length;
    const big = ipv4({ ...V4, payload: ramp(3000) });
    expect(sizeFor(big)).toBe(576);
    const data = written((out, at) => net.writeUnreachable4(out, at, 1, 0, viewOf(big), 0, big.length));
    expect(toHex(data.subarray(28))).toBe(toHex(big.subarray(0, 548)));
    expect(viewOf(data).getUint16(2)).toBe(576);
    expect(sizeFor(ipv4({ ...V4, payload: ramp(528) }))).toBe(576);
    expect(sizeFor(ipv4({ ...V4, payload: ramp(527) }))).toBe(575);
    expect(sizeFor(bytes(offender, ramp(30)))).toBe(28 + offender.length);
    expect(sizeFor(big, 60)).toBe(88);
  });
});

describe('IPv6 errors', () => {
  const offender = udpPacket({ ...V6, payload: ramp(5) });
  const source = bytes(9, 9, addressBytes('fd00:15::1'));

  it('are exactly the RFC 4443 message, pseudo header in the checksum', () => {
    const data = written((out, at) =>
      net.writeUnreachable6(out, at, source, 2, net.ICMP6_NO_ROUTE, viewOf(bytes(1, offender)), 1, offender.length),
    );
    const ends = { src: 'fd00:15::1', dst: 'fd00:15::2' };
    const expected = ipv6({ ...ends, nextHeader: 58, hopLimit: 64, payload: icmpv6(ends, 1, 0, 0, offender) });
    expect(toHex(data)).toBe(toHex(expected));
    expect(data[net.ICMP6_OFFSET]).toBe(1);
  });

  it('can take their source from the offender itself, in place', () => {
    const data = written((out, at) =>
      net.writeUnreachable6(out, at, offender, 24, 0, viewOf(offender), 0, offender.length),
    );
    expect([...data.subarray(8, 24)]).toEqual(addressBytes(V6.dst));
    expect([...data.subarray(24, 40)]).toEqual(addressBytes(V6.src));
    expect(transportChecksum(V6.dst, V6.src, 58, [...data.subarray(40)])).toBe(0);
  });

  it.each([
    [1400, 1400],
    [65_575, 65_575],
    [1280, 1280],
    [600, 1280],
  ])('say packet too big: MTU %i as %i', (mtu, said) => {
    const data = written((out, at) =>
      net.writePacketTooBig6(out, at, source, 2, mtu, viewOf(offender), 0, offender.length),
    );
    expect([...data.subarray(40, 42)]).toEqual([2, 0]);
    expect(viewOf(data).getUint32(44)).toBe(said);
    expect(transportChecksum('fd00:15::1', V6.src, 58, [...data.subarray(40)])).toBe(0);
  });

  it('end at 1280 bytes, at the end of the packet, and never quote what was not received', () => {
    const sizeFor = (data: Uint8Array, length = data.length): number =>
      written((out, at) => net.writeUnreachable6(out, at, source, 2, 0, viewOf(data), 0, length)).length;
    const big = ipv6({ ...V6, payload: ramp(3000) });
    expect(sizeFor(big)).toBe(1280);
    expect(sizeFor(ipv6({ ...V6, payload: ramp(1192) }))).toBe(1280);
    expect(sizeFor(ipv6({ ...V6, payload: ramp(1191) }))).toBe(1279);
    expect(sizeFor(bytes(offender, ramp(30)))).toBe(48 + offender.length);
    expect(sizeFor(big, 60)).toBe(108);
  });
});

describe('takeToken', () => {
  const bucket = (): Int32Array => new Int32Array(new SharedArrayBuffer(16));
  const drain = (state: Int32Array, nowMs: number, rate: number, burst: number): number => {
    let taken = 0;
    while (net.takeToken(state, 1, nowMs, rate, burst)) taken++;
    return taken;
  };

  it('starts full, even at time 0 and at negative times', () => {
    for (const now of [0, 1, 5_000_000_000, -5]) expect(drain(bucket(), now, 10, 6)).toBe(6);
  });

  it('touches only its own words', () => {
    const state = bucket();
    state[0] = 77;
    state[3] = 88;
    drain(state, 1000, 10, 6);
    expect([state[0], state[3]]).toEqual([77, 88]);
  });

  it('refills at its rate, in fractions, up to the burst', () => {
    const state = bucket();
    expect(drain(state, 1000, 10, 6)).toBe(6);
    expect(drain(state, 1099, 10, 6)).toBe(0);
    expect(drain(state, 1100, 10, 6)).toBe(1);
    for (let now = 1101; now < 1200; now++) expect(net.takeToken(state, 1, now, 10, 6)).toBe(false);
    expect(net.takeToken(state, 1, 1200, 10, 6)).toBe(true);
    expect(drain(state, 1_000_000, 10, 6)).toBe(6);
  });

  it('gives nothing for a clock that lags behind another thread', () => {
    const state = bucket();
    drain(state, 10_000, 1000, 6);
    expect(drain(state, 9_000, 1000, 6)).toBe(0);
    expect(drain(state, 10_000, 1000, 6)).toBe(0);
    expect(drain(state, 10_001, 1000, 6)).toBe(1);
  });

  it('works across the wrap of 32-bit milliseconds, and after a silence longer than half of it', () => {
    const state = bucket();
    const wrap = 2 ** 31;
    expect(drain(state, wrap - 50, 10, 6)).toBe(6);
    expect(drain(state, wrap + 50, 10, 6)).toBe(1);
    expect(drain(state, wrap + 50 + 30 * 86_400_000, 10, 6)).toBe(6);
  });

  it('never gives out more than it has to several threads at once, and hands all of that out', async () => {
    const threads = 4;
    const burst = 500;
    const milliseconds = 2000;
    const rate = 1000;
    const state = new Int32Array(new SharedArrayBuffer(16));
    const gate = new Int32Array(new SharedArrayBuffer(8));
    // The source of takeToken itself runs in the workers: it needs nothing but Atomics and these constants.
    const code = `
      const { workerData, parentPort } = require('node:worker_threads');
      const CLOCK_SKEW_MS = 60_000, MILLITOKENS = 1000;
      ${net.takeToken.toString()}
      const { state, gate, threads, milliseconds, rate, burst } = workerData;
      Atomics.add(gate, 0, 1);
      while (Atomics.load(gate, 0) < threads);
      let taken = 0;
      for (let now = 1; now <= milliseconds; now++) {
        for (let i = 0; i < 50; i++) if (takeToken(state, 0, now, rate, burst)) taken++;
      }
      parentPort.postMessage(taken);`;
    const workers = Array.from(
      { length: threads },
      () => new Worker(code, { eval: true, workerData: { state, gate, threads, milliseconds, rate, burst } }),
    );
    const taken = await Promise.all(
      workers.map(
        (worker) => new Promise<number>((resolve, reject) => worker.once('message', resolve).once('error', reject)),
      ),
    );
    await Promise.all(workers.map((worker) => worker.terminate()));
    const total = taken.reduce((a, b) => a + b, 0);
    const most = burst + ((milliseconds - 1) * rate) / 1000;
    expect(total).toBeLessThanOrEqual(most);
    expect(total).toBeGreaterThan(most * 0.9);
  });
});
