/**
 * What the underlay may bring in and what not: every refusal has its own counter, exactly, and what is let through
 * arrives in the pod as it was sent. One host with a data plane; everybody else is a plain UDP socket with an address.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { SourceCheck } from '../../src/dataplane/policy.js';
import type { Host } from '../support/engine-lab.js';
import { EngineLab } from '../support/engine-lab.js';
import { bytes, ipv4, ipv6, ramp, toHex, udpPacket } from '../support/packets.js';
import { until } from '../support/process.js';
import type { Datagram, Remote } from '../support/remote.js';
import { missing } from '../support/requires.js';

const PEER = '192.168.77.2';
const OTHER = '192.168.77.3';
const STRANGER = '192.168.77.66';
const PORT = 4444;

/** A packet to the pod (or to `dst`) from an inner source, its payload naming the case. */
function inner(src: string, dst = src.includes(':') ? 'fd77:1::2' : '10.244.1.2', payload = ramp(30)): Uint8Array {
  return udpPacket({ src, dst, sport: 9, dport: src.includes(':') ? PORT + 1 : PORT, payload });
}

const good = inner('10.244.2.2');
const good6 = inner('fd77:2::2');

interface Case {
  readonly what: string;
  readonly from: string;
  readonly packet: Uint8Array;
  /** Counter for every mode, or one for each; `ingressPackets` = let through. */
  readonly counter: string | Readonly<Record<SourceCheck, string>>;
}

const byMode = (off: string, lease: string, strict: string) => ({ off, lease, strict });
const cases: readonly Case[] = [
  { what: 'a packet of the peer’s lease', from: PEER, packet: good, counter: 'ingressPackets' },
  { what: 'IPv6 of the peer’s lease', from: PEER, packet: good6, counter: 'ingressPackets' },
  { what: 'the peer’s other lease', from: PEER, packet: inner('10.244.20.5'), counter: 'ingressPackets' },
  { what: 'bytes behind the packet’s end', from: PEER, packet: bytes(good, ramp(7)), counter: 'ingressPackets' },
  {
    what: 'a source that nobody leased',
    from: PEER,
    packet: inner('172.16.5.5'),
    counter: byMode('ingressPackets', 'ingressPackets', 'dropSpoofedSource'),
  },
  {
    what: 'a source that another host leased',
    from: PEER,
    packet: inner('10.244.3.7'),
    counter: byMode('ingressPackets', 'dropSpoofedSource', 'dropSpoofedSource'),
  },
  {
    what: 'an IPv6 source that another host leased',
    from: PEER,
    packet: inner('fd77:3::7'),
    counter: byMode('ingressPackets', 'dropSpoofedSource', 'dropSpoofedSource'),
  },
  {
    what: 'a sender without a lease',
    from: STRANGER,
    packet: good,
    counter: byMode('ingressPackets', 'dropUnknownSender', 'dropUnknownSender'),
  },
  {
    what: 'another known address of a peer',
    from: '192.168.77.4',
    packet: inner('10.244.3.7'),
    counter: 'ingressPackets',
  },
  { what: 'a source in our own lease', from: PEER, packet: inner('10.244.1.9'), counter: 'dropSpoofedSource' },
  { what: 'an IPv6 source in our own lease', from: PEER, packet: inner('fd77:1::9'), counter: 'dropSpoofedSource' },
  { what: 'our bridge as the source', from: PEER, packet: inner('10.244.1.1'), counter: 'dropSpoofedSource' },
  {
    what: 'our underlay address as the source',
    from: PEER,
    packet: inner('192.168.77.1'),
    counter: 'dropSpoofedSource',
  },
  { what: 'a destination elsewhere', from: PEER, packet: inner('10.244.2.2', '10.244.3.3'), counter: 'dropNotLocal' },
  { what: 'a destination of nobody', from: PEER, packet: inner('10.244.2.2', '8.8.8.8'), counter: 'dropNotLocal' },
  {
    what: 'a host address as destination',
    from: PEER,
    packet: inner('10.244.2.2', '192.168.77.1'),
    counter: 'dropNotLocal',
  },
  {
    what: 'an IPv6 destination elsewhere',
    from: PEER,
    packet: inner('fd77:2::2', 'fd77:3::1'),
    counter: 'dropNotLocal',
  },
  { what: 'multicast', from: PEER, packet: inner('10.244.2.2', '224.0.0.1'), counter: 'dropNotLocal' },
  { what: 'version 5', from: PEER, packet: ipv4({ version: 5 }), counter: 'dropMalformed' },
  { what: 'version 15', from: PEER, packet: new Uint8Array(40).fill(0xff), counter: 'dropMalformed' },
  { what: 'version 0', from: PEER, packet: new Uint8Array(100), counter: 'dropMalformed' },
  { what: 'a header of 16 bytes', from: PEER, packet: ipv4({ ihl: 4 }), counter: 'dropMalformed' },
  { what: 'a header beyond the datagram', from: PEER, packet: ipv4({ ihl: 15 }), counter: 'dropMalformed' },
  { what: 'a length below the header', from: PEER, packet: ipv4({ totalLength: 19 }), counter: 'dropMalformed' },
  { what: 'half an IPv6 header', from: PEER, packet: ipv6({}).subarray(0, 39), counter: 'dropMalformed' },
  { what: 'a cut packet', from: PEER, packet: good.subarray(0, -1), counter: 'dropTruncated' },
  { what: 'a cut IPv6 packet', from: PEER, packet: good6.subarray(0, -1), counter: 'dropTruncated' },
  { what: 'a length of 65535', from: PEER, packet: ipv4({ totalLength: 65_535 }), counter: 'dropTruncated' },
  { what: '19 bytes', from: PEER, packet: good.subarray(0, 19), counter: 'dropShort' },
  { what: 'one byte', from: PEER, packet: good.subarray(0, 1), counter: 'dropShort' },
  { what: 'no bytes', from: PEER, packet: good.subarray(0, 0), counter: 'dropShort' },
];

describe.skipIf(missing({ root: true, tun: true, commands: ['ip'], files: ['dist/dataplane/dataplane.js'] }))(
  'from the underlay',
  () => {
    let lab: EngineLab;
    let host: Host;
    let pod: Remote;
    let world: Remote;

    beforeAll(async () => {
      lab = await EngineLab.create(2);
      const [first, second] = lab.hosts as [Host, Host];
      host = first;
      pod = await lab.remote(host.pod);
      world = await lab.remote(second.ns);
      for (const address of [OTHER, '192.168.77.4', STRANGER]) {
        await second.ns.ip('address', 'add', `${address}/24`, 'dev', 'eth0');
      }
      await pod.udpListen('0.0.0.0', PORT);
      await pod.udpListen('fd77:1::2', PORT + 1);
    });
    afterAll(async () => await lab[Symbol.asyncDispose]());

    async function open(sourceCheck: SourceCheck): Promise<Remote> {
      const engine = await lab.remote(host.ns);
      await lab.open(engine, host, { sourceCheck, workers: 1 });
      await engine.routes([
        ['10.244.2.0/24', PEER],
        ['10.244.20.0/24', PEER],
        ['fd77:2::/64', PEER],
        ['10.244.3.0/24', { address: OTHER, senders: ['192.168.77.4'] }],
        ['fd77:3::/64', OTHER],
      ]);
      return engine;
    }

    const send = (from: string, ...packets: readonly Uint8Array[]): Promise<void> =>
      world.udpSend({ address: host.underlay, port: 8285, local: from, datagrams: packets.map(toHex) });

    it.each(['off', 'lease', 'strict'] as const)('sourceCheck %s counts each refusal once', async (mode) => {
      await using engine = await open(mode);
      for (const { what, from, packet, counter } of cases) {
        const wanted = typeof counter === 'string' ? counter : counter[mode];
        const before = await engine.stats();
        await send(from, packet, packet, packet);
        // A good packet comes after them in the same queue: when it is through, they were decided.
        await send(PEER, good);
        const goodOnes = wanted === 'ingressPackets' ? 4 : 1;
        const changes = await until(
          async () => {
            const seen = await engine.changes(before);
            return seen['ingressPackets'] === goodOnes && seen;
          },
          { what: `${what} (${from}, ${mode}) to be decided, expecting ${wanted}` },
        );
        expect(changes, what).toEqual({ ingressPackets: goodOnes, ...(goodOnes === 1 ? { [wanted]: 3 } : {}) });
      }
      const { offenders, totals } = await engine.stats();
      // Notes are taken once a run, and packets that are alike may share one.
      const { unknownSender, spoofedSource } = offenders;
      expect(unknownSender?.address).toBe(mode === 'off' ? undefined : STRANGER);
      expect(unknownSender?.count ?? 0).toBeLessThanOrEqual(totals.dropUnknownSender);
      expect(spoofedSource?.address).toBe(PEER);
      expect(spoofedSource?.count).toBeLessThanOrEqual(totals.dropSpoofedSource);
    });

    it('delivers exactly what came, to the pod it is for', async () => {
      await using engine = await open('lease');
      await pod.udpReceived(PORT);
      const sizes = [0, 1, 7, 500, 1444, 20_000, 60_000];
      await send(PEER, ...sizes.map((size) => inner('10.244.2.2', undefined, ramp(size, size))));
      const got: Datagram[] = [];
      await until(async () => got.push(...(await pod.udpReceived(PORT))) >= sizes.length, { what: 'all datagrams' });
      expect(got.map(({ from, port, hex }) => [from, port, hex])).toEqual(
        sizes.map((size) => ['10.244.2.2', 9, toHex(ramp(size, size))]),
      );
      expect((await engine.stats()).peers).toContainEqual(
        expect.objectContaining({ address: PEER, rxPackets: sizes.length }),
      );
    });

    it('changes its mind with setLocal and with the routes, at once', async () => {
      await using engine = await open('strict');
      const decide = async (packet: Uint8Array): Promise<Record<string, number>> => {
        const before = await engine.stats();
        await send(PEER, packet);
        return await until(
          async () => {
            const seen = await engine.changes(before);
            return Object.keys(seen).length > 0 && seen;
          },
          { what: 'the packet to be decided' },
        );
      };
      expect(await decide(inner('10.244.50.2'))).toEqual({ dropSpoofedSource: 1 });
      await engine.routes([['10.244.50.0/24', PEER]]);
      expect(await decide(inner('10.244.50.2'))).toEqual({ ingressPackets: 1 });
      expect(await decide(good)).toEqual({ dropSpoofedSource: 1 });
      await engine.call('setLocal', { local: ['10.244.99.0/24'] });
      expect(await decide(inner('10.244.50.2'))).toEqual({ dropNotLocal: 1 });
      await engine.call('setLocal', { local: [host.subnet] });
      expect(await decide(inner('10.244.50.2'))).toEqual({ ingressPackets: 1 });
      await engine.routes([]);
      expect(await decide(inner('10.244.50.2'))).toEqual({ dropUnknownSender: 1 });
    });
  },
);
