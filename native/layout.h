/*
 * Shared memory layout: the words that TypeScript (src/dataplane/batch.ts, counters.ts) and C both read and write.
 * One worker thread owns one set of these tables; nothing here is shared between workers.
 * All words are host byte order int32 unless said otherwise. addon-engine.c exports these numbers so that a test can hold
 * both sides against each other.
 */
#ifndef PODWIRE_LAYOUT_H
#define PODWIRE_LAYOUT_H

/* ---- meta table: control words --------------------------------------------------------------------------------- */
#define PW_META_EGRESS_COUNT 0   /* rows filled in the egress table by the last turn */
#define PW_META_INGRESS_COUNT 1  /* rows filled in the ingress table by the last turn */
#define PW_META_MESSAGE_COUNT 2  /* rows filled in the message table */
#define PW_META_REPLY_COUNT 3    /* rows TypeScript filled in the reply table; C sets it back to 0 once sent */
#define PW_META_STOP 4           /* non-zero: the worker leaves its loop (written by the main thread, with Atomics) */
#define PW_META_HEARTBEAT 5      /* turns taken, modulo 2^32: shows the main thread that the loop moves */
#define PW_META_WORDS 16

#define PW_MAX_EGRESS 256
#define PW_MAX_INGRESS 1024
#define PW_MAX_MESSAGES 64
#define PW_MAX_REPLIES 32
#define PW_ROW_WORDS 8

#define PW_EGRESS_BASE PW_META_WORDS
#define PW_INGRESS_BASE (PW_EGRESS_BASE + PW_MAX_EGRESS * PW_ROW_WORDS)
#define PW_MESSAGE_BASE (PW_INGRESS_BASE + PW_MAX_INGRESS * PW_ROW_WORDS)
#define PW_REPLY_BASE (PW_MESSAGE_BASE + PW_MAX_MESSAGES * PW_ROW_WORDS)
#define PW_META_TOTAL_WORDS (PW_REPLY_BASE + PW_MAX_REPLIES * PW_ROW_WORDS)

/* ---- egress row: one packet or superpacket read from the TUN ---------------------------------------------------- */
#define PW_E_OFFSET 0   /* byte offset of the IP header in the TUN arena */
#define PW_E_LENGTH 1   /* bytes of the packet, IP header included, without padding; as received when PW_EF_BAD */
#define PW_E_GSO 2      /* gsoSize: payload bytes of each segment but the last; 0 = not a superpacket */
#define PW_E_FLAGS 3    /* PW_EF_* */
#define PW_E_HEADER 4   /* bytes of IP and L4 header in front of the payload of a superpacket; 0 when not a superpacket */
#define PW_E_HASH 5     /* flow hash, 31 bits: chooses the send socket and with it the outer source port */
#define PW_E_VERDICT 6  /* written by TypeScript: next-hop row index >= 3, or 0 = dropped; PW_V_FRAGMENT may be added */
#define PW_E_SEGMENTS 7 /* packets this row becomes on the wire; with PW_V_FRAGMENT TypeScript replaces it by the inner MTU */

#define PW_EF_TCP 1 /* superpacket of TCP segments */
#define PW_EF_UDP 2 /* superpacket of UDP datagrams */
#define PW_EF_BAD 4 /* virtio header and packet contradict each other: TypeScript must drop it as malformed */

#define PW_V_FRAGMENT 0x10000000 /* verdict flag: IPv4 packet without DF goes out as fragments that fit the inner MTU */
#define PW_V_ROW_MASK 0x00ffffff

/* ---- ingress row: a run of inner packets of one flow, or a single inner packet ---------------------------------- */
#define PW_I_OFFSET 0   /* byte offset of the first packet's IP header in the UDP arena */
#define PW_I_LENGTH 1   /* bytes of the first packet as received, without VXLAN header (may be more than its IP length) */
#define PW_I_SEGMENTS 2 /* inner packets in the run */
#define PW_I_FIRST 3    /* C only: index of the first packet in the segment table */
#define PW_I_MESSAGE 4  /* row of the message table it came in */
#define PW_I_VERDICT 5  /* written by TypeScript: 0 = dropped, else deliver to the TUN: 1 + host id of the sender (0 = unknown) */
#define PW_I_BYTES 6    /* inner bytes of the whole run */
#define PW_I_FLAGS 7    /* PW_IF_* */

#define PW_IF_TCP 1
#define PW_IF_UDP 2
#define PW_IF_TRUNCATED 4 /* the datagram did not fit its receive slot: bytes are missing */
#define PW_IF_WHOLE 8     /* one packet above the MTU with a partial checksum: cut into PW_I_SEGMENTS on delivery */
#define PW_IF_PROBE 16    /* a peer probe (probe.c), PW_I_BYTES are the microseconds since its clock word or -1 */

#define PW_PROBE_BYTES 16
#define PW_PROBE_QUESTION 1 /* the byte at offset 4; a verdict other than 0 has it answered */
#define PW_PROBE_ANSWER 2
#define PW_PROBE_TYPE 4 /* offset of that byte; a nonce of three bytes follows */

/* ---- message row: one received datagram, or the several that UDP_GRO put together ------------------------------- */
#define PW_M_FAMILY 0  /* 4 or 6: the outer sender's address family (an IPv4-mapped IPv6 address counts as 4) */
#define PW_M_WORD0 1   /* sender address, first 32-bit word in host order (the whole IPv4 address) */
#define PW_M_WORD1 2
#define PW_M_WORD2 3
#define PW_M_WORD3 4
#define PW_M_PORT 5    /* sender port, host order */
#define PW_M_LENGTH 6  /* payload bytes */
#define PW_M_GRO 7     /* bytes of each datagram but the last, 0 = one datagram */

/* ---- reply row: an IP packet that TypeScript built in the reply arena, mostly ICMP to a pod --------------------- */
#define PW_R_OFFSET 0    /* byte offset of the IP header in the reply arena */
#define PW_R_LENGTH 1    /* bytes of the whole IP packet */
#define PW_R_L4_OFFSET 2 /* bytes of IP header: a raw socket sends what follows */
#define PW_R_FAMILY 3    /* 4 or 6 */

/* ---- counters: float64, one writer each (exact up to 2^53) ------------------------------------------------------ */
#define PW_COUNTERS(X) \
  X(egressPackets) \
  X(egressBytes) \
  X(ingressPackets) \
  X(ingressBytes) \
  X(egressSuperpackets) \
  X(ingressSuperpackets) \
  X(turns) \
  X(waits) \
  X(spinHits) \
  X(spinMisses) \
  X(sendCalls) \
  X(sendEntries) \
  X(receiveCalls) \
  X(receiveMessages) \
  X(tunReads) \
  X(tunWrites) \
  X(fallbackUdpSegment) \
  X(fallbackTunGso) \
  X(fragmentsSent) \
  X(repliesSent) \
  X(repliesLimited) \
  X(repliesSuppressed) \
  X(probesAnswered) \
  X(probesIgnored) \
  X(dropNoRoute) \
  X(dropOwnSubnet) \
  X(dropMulticast) \
  X(dropTooBig) \
  X(dropMalformed) \
  X(dropTruncated) \
  X(dropShort) \
  X(dropVxlanFlags) \
  X(dropVxlanVni) \
  X(dropVxlanLoop) \
  X(dropVxlanType) \
  X(dropVxlanGroup) \
  X(dropVxlanMac) \
  X(dropEcnMark) \
  X(dropUnknownSender) \
  X(dropSpoofedSource) \
  X(dropNotLocal) \
  X(dropSocketFull) \
  X(dropSendError) \
  X(dropSendTooBig) \
  X(dropTunFull) \
  X(dropTunError) \
  X(dropReplyError)

#define PW_COUNTER_ENUM(name) PW_C_##name,
enum pw_counter { PW_COUNTERS(PW_COUNTER_ENUM) PW_COUNTER_COUNT };

/*
 * per next hop and worker: float64 [txPackets, txBytes, rxPackets, rxBytes, txDrops, rxDrops, probes heard, answers to our
 * probes, microseconds that those took]; all but those of tx are indexed by host id
 */
#define PW_PEER_WORDS 9
#define PW_PEER_TX_DROPS 4
#define PW_PEER_RX_DROPS 5
#define PW_PEER_PROBES_HEARD 6
#define PW_PEER_PROBE_ANSWERS 7
#define PW_PEER_PROBE_MICROSECONDS 8

/* ---- next-hop row of the FIB (src/fib/layout.ts), 64 bytes ------------------------------------------------------ */
#define PW_NEXTHOP_BYTES 64
#define PW_NEXTHOP_SOCKADDR_LENGTH 28 /* uint16: 16 or 28 */
#define PW_NEXTHOP_ENCAP 42           /* what goes in front of an inner IPv4 packet: PW_VXLAN_BYTES, or nothing */
#define PW_VXLAN_BYTES 22             /* VXLAN header (RFC 7348 5), inner destination and source MAC, EtherType */

#endif
