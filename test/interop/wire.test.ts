import { afterAll, describe, expect, test } from 'vitest';
import { sum } from '../../src/net/checksum.js';
import { Cluster, CLUSTER_NEEDS, type Daemon, type Pod } from '../support/clusters.js';
import { capture, type CapturedDatagram } from '../support/clusters-capture.js';
import { missing } from '../support/requires.js';

/** As in mixed.test.ts. */
const OURS = (process.env['PODWIRE_INTEROP_OURS'] ?? 'podwire') as Daemon;

afterAll(() => Cluster.disposeAll());

/** Source, destination, TTL and length of the inner packet, whose header must be whole and right. */
function inner({ payload }: CapturedDatagram): string {
  expect([payload.readUInt8(0), payload.readUInt16BE(2)]).toEqual([0x45, payload.length]);
  expect(sum(payload, 0, 20)).toBe(0xffff);
  const address = (at: number): string => [...payload.subarray(at, at + 4)].join('.');
  return `${address(12)} > ${address(16)} ttl ${String(payload.readUInt8(8))} length ${String(payload.length)}`;
}

describe.skipIf(missing({ ...CLUSTER_NEEDS, commands: [...(CLUSTER_NEEDS.commands ?? []), 'tcpdump'] }))(
  'the wire between flanneld and podwire, udp',
  () => {
    test('a datagram is the packet of the pod, to port 8285, never fragmented', async () => {
      await using cluster = await Cluster.create(2, { Network: '10.42.0.0/16', Backend: { Type: 'udp' } });
      const [theirs, ours] = [cluster.host(1), cluster.host(2)];
      await theirs.join('flanneld');
      await ours.join(OURS);
      await cluster.connected();
      const [a, b] = cluster.pods() as [Pod, Pod];
      // Below 20 bytes is nothing that either of them forwards.
      const forwarded = (seen: readonly CapturedDatagram[]): CapturedDatagram[] =>
        seen.filter(({ payload }) => payload.length >= 20);
      const seen = await capture(
        cluster.underlay,
        'h1',
        'udp port 8285',
        async () => {
          await a.ns.ok('ping', ['-c', '3', '-i', '0.05', '-W', '2', '-n', '-s', '1444', '-M', 'do', b.address]);
          await b.ns.ok('ping', ['-c', '3', '-i', '0.05', '-W', '2', '-n', '-s', '100', a.address]);
        },
        (soFar) => forwarded(soFar).length >= 12,
      );
      const datagrams = forwarded(seen);
      const from = (underlay: string): CapturedDatagram[] => datagrams.filter(({ source }) => source === underlay);
      for (const [sender, receiver] of [
        [theirs, ours],
        [ours, theirs],
      ] as const) {
        const sent = from(sender.underlay);
        expect(new Set(sent.map(({ destination }) => destination))).toEqual(new Set([receiver.underlay]));
        expect(sent.every(({ destinationPort }) => destinationPort === 8285)).toBe(true);
        expect(sent.every(({ ttl, dontFragment }) => ttl === 64 && dontFragment)).toBe(true);
      }
      // flanneld's proxy counts as a hop at each end; podwire leaves that to the kernels.
      const ttl = OURS === 'flanneld' ? 62 : 63;
      expect(from(theirs.underlay).map(inner).sort()).toEqual([
        ...Array<string>(3).fill(`${a.address} > ${b.address} ttl 62 length 128`),
        ...Array<string>(3).fill(`${a.address} > ${b.address} ttl 62 length 1472`),
      ]);
      expect(from(ours.underlay).map(inner).sort()).toEqual([
        ...Array<string>(3).fill(`${b.address} > ${a.address} ttl ${String(ttl)} length 128`),
        ...Array<string>(3).fill(`${b.address} > ${a.address} ttl ${String(ttl)} length 1472`),
      ]);
    });
  },
);
