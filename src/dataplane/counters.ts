/**
 * The counters, as data: name and meaning, in the order of native/layout.h. Each worker has its own row of float64 in
 * shared memory, with one writer, exact up to 2^53. Packets are counted in segments: packets as they are on the wire.
 * Every packet that is not forwarded is in exactly one `drop…` counter.
 */
export const COUNTERS = {
  egressPackets: 'inner packets handed to the underlay',
  egressBytes: 'their bytes, without the outer headers',
  ingressPackets: 'inner packets delivered to the TUN',
  ingressBytes: 'their bytes',
  egressSuperpackets: 'packets and superpackets sent: one decision each',
  ingressSuperpackets: 'runs and packets delivered: one decision each',
  turns: 'turns of the worker loop',
  waits: 'turns that blocked in poll',
  spinHits: 'spins that found something',
  spinMisses: 'spins that found nothing',
  sendCalls: 'sendmmsg or sendmsg calls',
  sendEntries: 'messages sent, each one datagram or a UDP_SEGMENT run',
  receiveCalls: 'recvmmsg or recvmsg calls',
  receiveMessages: 'messages received, each one datagram or a UDP_GRO run',
  tunReads: 'reads from the TUN',
  tunWrites: 'writes to the TUN',
  fallbackUdpSegment: 'UDP_SEGMENT sends that were refused and sent again one by one',
  fallbackTunGso: 'superpackets that the TUN refused and that were written again one by one',
  fragmentsSent: 'IPv4 fragments made of inner packets without DF that were too big for the path',
  repliesSent: 'ICMP errors sent to pods',
  repliesLimited: 'ICMP errors not sent: rate limit',
  repliesSuppressed: 'ICMP errors not sent: RFC 1122, 1812 or 4443 forbids an answer to that packet',
  probesAnswered: 'peer probes answered',
  probesIgnored: 'peer probes of hosts without a lease, and answers to no question of ours',
  dropNoRoute: 'from a pod: no lease holds the destination',
  dropOwnSubnet: 'from a pod: the destination is this host’s own, so it would loop',
  dropMulticast: 'from a pod or this host: multicast, broadcast or link-local destination, not carried',
  dropTooBig: 'from a pod: larger than the path takes and may not be fragmented',
  dropMalformed: 'headers that contradict each other or the bytes that are there',
  dropTruncated: 'from the underlay: the inner packet is longer than the datagram',
  dropShort: 'from the underlay: datagram too short for an IP header, and for what the encapsulation puts in front',
  dropVxlanFlags: 'from the underlay: VXLAN flags other than the plain I flag (GBP, GPE) or reserved bits set',
  dropVxlanVni: 'from the underlay: frame of another VNI',
  dropVxlanLoop: 'from the underlay: frame with our own MAC as its source, so it went in a circle',
  dropVxlanType: 'from the underlay: frame that carries no IP (ARP, spanning tree) or another version than it says',
  dropVxlanGroup: 'from the underlay: frame to a multicast or broadcast MAC (neighbour discovery), not carried',
  dropVxlanMac: 'from the underlay: frame to another MAC than this VTEP’s: the peer has an old lease of ours',
  dropEcnMark: 'from the underlay: marked CE on the way, but the sender does not understand congestion marks',
  dropUnknownSender: 'from the underlay: the sender holds no lease',
  dropSpoofedSource: 'from the underlay: the inner source is ours, or leased to another host than the sender',
  dropNotLocal: 'from the underlay: the inner destination is not in our lease',
  dropSocketFull: 'the socket’s send buffer stayed full',
  dropSendError: 'the underlay refused the datagram (route, firewall, link down)',
  dropSendTooBig: 'the underlay device’s MTU is below the datagram',
  dropTunFull: 'the kernel had no memory for the packet on the TUN',
  dropTunError: 'the kernel refused the packet on the TUN (link down, not IP)',
  dropReplyError: 'an ICMP error could not be sent',
} as const;

export type CounterName = keyof typeof COUNTERS;

export const COUNTER_NAMES: readonly CounterName[] = Object.keys(COUNTERS) as CounterName[];
export const COUNTER_COUNT: number = COUNTER_NAMES.length;

/** Index of a counter in a worker's row. */
export function counterIndex(name: CounterName): number {
  return COUNTER_NAMES.indexOf(name);
}

/** Kernel-side overflows, not counted by workers but read from the kernel with the rest. */
export const KERNEL_DROPS = {
  dropTunQueue: 'the TUN’s queue was full: workers did not keep up with the pods',
  dropSocketOverflow: 'the UDP socket’s receive queue was full: workers did not keep up with the underlay',
} as const;

export type TotalName = CounterName | keyof typeof KERNEL_DROPS;

/** A row of counters as an object. */
export function namedCounters(row: Float64Array): Record<CounterName, number> {
  const named = {} as Record<CounterName, number>;
  for (let i = 0; i < COUNTER_COUNT; i++) named[COUNTER_NAMES[i]!] = row[i] ?? 0;
  return named;
}
