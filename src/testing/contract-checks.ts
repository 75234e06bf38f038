/** What the cases of the port contract share: packets between two pods, and what must be true of what arrives. */
import { deepEqual, equal } from 'node:assert/strict';
import type { CounterName } from '../dataplane/counters.js';
import { seededRandom } from '../io/memory-network.js';
import { flowHash, parseHeaders } from '../io/segmentation.js';
import { checksum } from '../net/checksum.js';
import type { NextHop } from '../fib/fib.js';
import type { Address, Family } from '../net/prefix.js';
import { packet } from './packets.js';
import type { PacketFields } from './packets.js';
import type { LinkEnd, PortLink } from './port-link.js';
import { LEASES, LINK_PORT, until } from './port-link.js';

/** Pods of both hosts: `POD[family][host]`. */
export const PODS: Readonly<Record<Family, readonly [string, string]>> = {
  4: ['10.1.1.5', '10.1.2.7'],
  6: ['fd00:1:1::5', 'fd00:1:2::7'],
};
/** Inner destinations without a route. */
export const NOWHERE: Readonly<Record<Family, string>> = { 4: '10.9.9.9', 6: 'fd00:9::9' };
export const FAMILIES: readonly Family[] = [4, 6];
/** Inner bytes that fit into 1,500 of outer IPv4 or IPv6. */
export function innerMtu({ format }: PortLink, outer: Family): number {
  return 1500 - format.encapsulations[0].overhead(outer);
}

/** A next hop to this address with what the link's wire format needs: `end` is whose VTEP it is. */
export function hop({ format }: PortLink, end: number, address: Address): NextHop {
  const vtepMac = format.macs[end];
  return { address, port: LINK_PORT, ...(vtepMac === undefined ? {} : { vtepMac }) };
}

/** What carries this packet from the stranger's tunnel end to host 1. */
export function framed({ format }: PortLink, packet: Uint8Array): Uint8Array {
  const family = (packet[0] ?? 0x40) >>> 4 === 6 ? 6 : 4;
  return Uint8Array.of(...format.encapsulations[2].header(family, format.macs[1]), ...packet);
}

/** From pod 0 to pod 1, unless told otherwise. */
export function between(family: Family, fields: Partial<PacketFields> = {}): Uint8Array {
  return packet({ source: PODS[family][0], destination: PODS[family][1], ...fields });
}

/** `count` bytes that differ from those of another `seed`. */
export function noise(count: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  return Uint8Array.from({ length: count }, () => Math.floor(random() * 256));
}

export function hex(packets: readonly Uint8Array[]): string[] {
  return packets.map((one) => Array.from(one, (byte) => byte.toString(16).padStart(2, '0')).join(''));
}

/**
 * Text of a packet for comparison. The id of an IPv4 packet that is never fragmented carries no meaning (RFC 6864 4.1)
 * and is not kept by a run that crosses as one superpacket; all else is compared, also whether the header's checksum
 * is right.
 */
function comparable(whole: Uint8Array): string {
  const text = Array.from(whole, (byte) => byte.toString(16).padStart(2, '0'));
  const atomic = whole[0]! >>> 4 === 4 && whole.length >= 20 && (whole[6]! & 0x7f) === 0x40 && whole[7] === 0;
  if (!atomic) return text.join('');
  const right = checksum(whole, 0, (whole[0]! & 15) * 4) === 0;
  return [...text.slice(0, 4), '(id)', ...text.slice(6, 10), right ? '(right)' : '(wrong)', ...text.slice(12)].join('');
}

/** Packets by flow: only within a flow is there an order to keep. */
function byFlow(packets: readonly Uint8Array[]): Map<number, string[]> {
  const flows = new Map<number, string[]>();
  for (const one of packets) {
    const headers = parseHeaders(one);
    const flow = headers === undefined ? -1 : flowHash(one, headers);
    const found = flows.get(flow);
    if (found === undefined) flows.set(flow, [comparable(one)]);
    else found.push(comparable(one));
  }
  return flows;
}

/** Equal packets, in equal order within each flow; a failure shows the first difference instead of everything. */
export function samePackets(actual: readonly Uint8Array[], expected: readonly Uint8Array[], what: string): void {
  const arrived = byFlow(actual);
  for (const [flow, want] of byFlow(expected)) {
    const got = arrived.get(flow) ?? [];
    const first = want.findIndex((text, i) => got[i] !== text);
    if (first >= 0)
      equal(got[first], want[first], `${what}: packet ${first} of ${want.length} (${got.length} arrived)`);
  }
  equal(actual.length, expected.length, `${what}: packets that arrived`);
}

export function connect(
  link: PortLink,
  options: { readonly mtu?: number; readonly senders?: readonly string[] } = {},
): void {
  for (const [i, { host }] of link.ends.entries()) {
    const nextHop = { ...hop(link, 1 - i, link.ends[1 - i]!.address), ...options };
    for (const prefix of LEASES[1 - i]!) host.fib.set(prefix, nextHop);
  }
}

/** Waits until host 1 delivered or dropped `count` packets. */
export async function arrived(link: PortLink, count: number): Promise<void> {
  const { host } = link.ends[1];
  await until(link, () => host.counters().ingressPackets + host.dropped() >= count, `${count} packets are dealt with`);
}

/** Sends `packets` from pod 0 and expects the same ones, in the same order within each flow, at pod 1. */
export async function passes(link: PortLink, packets: readonly Uint8Array[], what: string): Promise<void> {
  const before = link.ends[1].host.counters().ingressPackets;
  for (const one of packets) link.ends[0].inject(one);
  await arrived(link, before + packets.length);
  samePackets(link.ends[1].take(), packets, what);
}

export function counts(end: LinkEnd, expected: Partial<Record<CounterName, number>>): void {
  const all = end.host.counters();
  const actual = Object.fromEntries(Object.keys(expected).map((name) => [name, all[name as CounterName]]));
  deepEqual(actual, expected);
}

/** All drop counters that are not zero. */
export function drops(end: LinkEnd): Record<string, number> {
  return Object.fromEntries(
    Object.entries(end.host.counters()).filter(([name, value]) => name.startsWith('drop') && value !== 0),
  );
}

export type Run = (link: PortLink, outer: Family) => Promise<void>;
