/*
 * The engine of one worker: a TUN queue on one side, UDP sockets on the other, tables shared with TypeScript between.
 *
 * Words: a *segment* is one packet as it is on the wire; a *superpacket* is up to 64 KiB that the kernel hands over as
 * one (TSO/USO); a *run* is inner packets of one flow that go to the TUN as one superpacket; an *entry* is one mmsghdr,
 * with UDP_SEGMENT several datagrams of equal size; a *lane* is one send socket with the entries waiting for it.
 *
 * Every function returns a count >= 0 or -errno, never prints, never exits, and allocates only in pw_engine_create.
 * No Node header is included here: the same files are compiled alone for the sanitizers.
 */
#ifndef PODWIRE_ENGINE_H
#define PODWIRE_ENGINE_H
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include "layout.h"
#include "spin.h"

#define PW_MAX_LANES 64
#define PW_LANE_ENTRIES 128
#define PW_LANE_IOVS 1024       /* UIO_MAXIOV bounds one entry anyway */
#define PW_SEND_ARENA 204800    /* bytes built between two flushes: three superpackets, which stay in a core's cache */
#define PW_COPY_MOST 512        /* a packet up to this long is copied next to those it shares a send with */
#define PW_HEADER_MAX 255       /* longest IP + L4 header that is segmented here */
#define PW_MAX_SEGMENTS 127     /* per UDP_SEGMENT send: UDP_MAX_SEGMENTS is 128 since Linux 6.9, 64 before */
#define PW_IP_MAX 65535
#define PW_TCP_PSH 0x08
#define PW_TUN_HEADROOM 16      /* before each IP header in the TUN arena; the virtio header ends right before it */
#define PW_TUN_HEADROOM_VXLAN 32 /* as much as the VXLAN header takes, which overwrites the virtio header */
#define PW_TUN_SLOT (PW_TUN_HEADROOM_VXLAN + 65536 + 64)
#define PW_UDP_SLOT (65536 + 1088) /* the odd gap keeps slots off the same cache sets (kernel-facts 10) */
#define PW_SEGMENT_TABLE 4096
#define PW_CUT_MTU 1280 /* TCP superpackets are cut to this at most: pods' links may be smaller than the TUN, but not less */
#define PW_FLOW_SLOTS 64

struct pw_virtio_header { /* struct virtio_net_hdr, host byte order as TUN has it unless told otherwise */
  uint8_t flags, gso_type;
  uint16_t header_length, gso_size, csum_start, csum_offset;
};
#define PW_VIRTIO_BYTES 10
#define PW_VIRTIO_NEEDS_CSUM 1
#define PW_VIRTIO_DATA_VALID 2
#define PW_GSO_NONE 0
#define PW_GSO_TCPV4 1
#define PW_GSO_TCPV6 4
#define PW_GSO_UDP_L4 5
#define PW_GSO_ECN 0x80

/* What an IP header says, all of it checked against the bytes that are there. */
struct pw_ip {
  uint32_t length;    /* bytes by the header's own word, <= bytes received */
  uint16_t l4;        /* offset of the L4 header */
  uint8_t family;     /* 4 or 6 */
  uint8_t protocol;   /* after IPv6 extension headers */
  bool fragment;      /* any fragment, also the first */
  bool options;       /* IPv4 options or IPv6 extension headers present */
};

/* 0, or -EINVAL when the n bytes at p are not an IP packet whose lengths agree. */
int pw_parse_ip(const uint8_t *p, size_t n, struct pw_ip *ip);
/* 31-bit hash of addresses, protocol and, for unfragmented TCP and UDP, ports. Same for no two directions. */
uint32_t pw_flow_hash(const uint8_t *p, size_t n, const struct pw_ip *ip);
/* Sum over addresses and protocol of the pseudo header, without the length (RFC 793, RFC 8200 8.1). */
uint64_t pw_pseudo_sum(const uint8_t *p, const struct pw_ip *ip);

/* Congestion marks of an IP header, RFC 3168 5. */
#define PW_ECN_ECT1 1
#define PW_ECN_ECT0 2
#define PW_ECN_CE 3

#define PW_VTEP_BYTES 14

enum pw_spin { PW_SPIN_OFF, PW_SPIN_ADAPTIVE, PW_SPIN_ALWAYS };

struct pw_config {
  int tun_fd, udp_fd, wake_fd; /* borrowed: whoever opened them closes them, after the engine */
  int icmp4_fd, icmp6_fd;      /* raw ICMP sockets for replies, or -1: replies then leave through the TUN */
  int send_fd[PW_MAX_LANES];
  unsigned send_count;
  unsigned virtio_bytes; /* 10 with IFF_VNET_HDR, else 0 */
  bool tun_tcp, tun_udp; /* superpackets of that kind may be written to the TUN */
  unsigned udp_segments; /* most segments in one UDP_SEGMENT send, 0 or 1 = never */
  bool batch_calls;      /* sendmmsg/recvmmsg; false: one call per datagram and packet */
  bool vxlan;            /* VXLAN frames in the datagrams; false: the bare inner packet (flannel's udp) */
  uint8_t vtep[PW_VTEP_BYTES]; /* with vxlan: what a frame for us begins with, VXLAN header and our own MAC */
  bool raw_ip;           /* the sockets are raw IPv4 ones of protocol 4 (IP in IP, RFC 2003), not UDP: what is received
                            begins with the outer header, what is sent gets its own from the kernel */
  unsigned inner_mtu;    /* with vxlan and raw_ip: of the TUN; a TCP packet above it is a superpacket left uncut */
  enum pw_spin spin;
  unsigned spin_ns; /* longest spin */
  int32_t *meta;
  double *counters;
  uint8_t *tun_arena, *udp_arena, *reply_arena;
  size_t tun_bytes, udp_bytes, reply_bytes;
  const uint8_t *nexthops; /* PW_NEXTHOP_BYTES each */
  size_t nexthop_count;
  double *peers; /* PW_PEER_WORDS each, index as nexthops and host ids */
  size_t peer_count;
  int32_t *reader; /* this worker's epoch word in the FIB: set to 0 before blocking */
};

#define PW_TO(row, tos) ((uint32_t)(row) | (uint32_t)(tos) << 24) /* rows are below 2^24: PW_V_ROW_MASK */
#define PW_TO_ROW(to) ((to)&PW_V_ROW_MASK)
#define PW_TO_TOS(to) ((uint8_t)((to) >> 24))

struct pw_entry {
  uint32_t to;          /* PW_TO(next-hop row, outer type of service or traffic class) */
  uint32_t bytes;
  uint32_t inner_bytes;
  uint16_t size;        /* bytes of every datagram but the last */
  uint16_t segments;
  bool closed;          /* a shorter datagram was added: nothing may follow */
};

struct pw_lane {
  unsigned entries, iovs;
  struct mmsghdr message[PW_LANE_ENTRIES];
  struct pw_entry entry[PW_LANE_ENTRIES];
  union {
    struct cmsghdr align;
    uint8_t bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(uint16_t))]; /* type of service, UDP_SEGMENT */
  } control[PW_LANE_ENTRIES];
  struct iovec iov[PW_LANE_IOVS];
};

struct pw_segment { /* one inner packet that arrived */
  uint32_t offset;  /* IP header in the UDP arena */
  uint32_t next;    /* segment table index, 0 = last */
  uint16_t length;  /* bytes by its IP header, or as received when that is nonsense */
  uint8_t header;   /* bytes of IP and L4 header, 0 when the packet joins nothing */
  bool partial;     /* its L4 checksum is only the pseudo header's sum: left to the device (kernel-facts 9) */
};

struct pw_flow { /* the run that packets of one flow may still join */
  uint32_t row;   /* ingress row + 1, 0 = none */
  uint32_t last;  /* segment table index */
  uint32_t next_sequence;
  uint32_t bytes; /* of the superpacket so far */
  uint16_t payload, segments;
  uint16_t last_id;
  uint16_t sender; /* message row of the first message from this sender */
  bool tcp;
  struct pw_ip ip;
};

struct pw_engine {
  struct pw_config c;
  unsigned encap_bytes;    /* in front of the inner packet, within the datagram */
  bool marks;              /* congestion marks go from the inner header to the outer one and back (RFC 6040); and inner
                              checksums may be partial: vxlan and raw_ip, where the peer may be a kernel's device */
  unsigned tun_headroom;
  unsigned cut_mtu;        /* bytes of the packets that a TCP superpacket from the underlay becomes */
  unsigned message_slots;
  unsigned messages;       /* valid rows of the message table */
  unsigned parse_message;  /* where parsing goes on when a table was full */
  uint32_t parse_offset;
  unsigned egress_rows, ingress_rows, segments;
  size_t turn_bytes;       /* of the last turn, for the spin's judgement */
  int64_t udp_backoff_until; /* UDP_SEGMENT was refused by the device: not tried before (CLOCK_MONOTONIC ns) */
  unsigned udp_refusals;
  struct pw_spinning spinning;
  unsigned send_used;
  uint16_t message_sender[PW_MAX_MESSAGES];
  uint8_t message_tos[PW_MAX_MESSAGES];
  struct pw_flow flow[PW_FLOW_SLOTS];
  struct pw_segment segment[PW_SEGMENT_TABLE];
  struct mmsghdr receive[PW_MAX_MESSAGES];
  struct iovec receive_iov[PW_MAX_MESSAGES];
  struct sockaddr_in6 receive_from[PW_MAX_MESSAGES];
  union {
    struct cmsghdr align;
    uint8_t bytes[2 * CMSG_SPACE(sizeof(int))]; /* UDP_GRO, type of service */
  } receive_control[PW_MAX_MESSAGES];
  uint8_t send_arena[PW_SEND_ARENA];
  struct pw_lane *lane; /* send_count of them */
};

/* Checks every size in c (-EINVAL) and allocates (-ENOMEM). The memory in c must outlive the engine. */
int pw_engine_create(const struct pw_config *c, struct pw_engine **out);
void pw_engine_destroy(struct pw_engine *e);

/*
 * One turn: carries out the verdicts of the last turn (sends, writes, replies), then takes in what waits, and blocks
 * at most timeout_ms when nothing does. Returns egress rows | ingress rows << 16, 0 after a wake-up or the time-out.
 */
int pw_turn(struct pw_engine *e, int timeout_ms);

/* egress.c */
int pw_egress_read(struct pw_engine *e);
void pw_egress_send(struct pw_engine *e);
int pw_complete_checksum(uint8_t *p, size_t n, const struct pw_virtio_header *h);
int pw_tun_accept(struct pw_engine *e, unsigned row, uint32_t offset, size_t n, const struct pw_virtio_header *h);
/* segment.c */
void pw_segment_row(struct pw_engine *e, unsigned row);
unsigned pw_segment_to_tun(struct pw_engine *e, uint32_t host, const uint8_t *p, size_t n, unsigned header, unsigned gso);
/* lane.c */
void pw_lane_add(struct pw_engine *e, unsigned lane, uint32_t to, const uint8_t *header, size_t header_bytes,
                 const uint8_t *payload, size_t payload_bytes);
void pw_lane_flush(struct pw_engine *e, unsigned lane);
void pw_lanes_flush(struct pw_engine *e);
uint8_t *pw_send_room(struct pw_engine *e, size_t bytes);
/* ingress.c */
void pw_ingress_arm(struct pw_engine *e, unsigned slot);
int pw_ingress_receive(struct pw_engine *e);
void pw_ingress_write(struct pw_engine *e);
void pw_tun_deliver(struct pw_engine *e, struct iovec *iov, int count, uint32_t host, size_t bytes);
/* coalesce.c */
int pw_coalesce(struct pw_engine *e);
/* vxlan.c */
void pw_vxlan_put(const struct pw_engine *e, uint32_t row, uint8_t *at, bool v6);
uint8_t pw_ecn_out(const uint8_t *p);
bool pw_ecn_in(uint8_t *p, uint8_t outer_tos);
bool pw_vxlan_take(struct pw_engine *e, unsigned message, uint8_t *frame);
bool pw_checksum_is_partial(const uint8_t *p, const struct pw_ip *ip);
uint32_t pw_vxlan_span(const uint8_t *frame, uint32_t size, uint32_t length);
/* probe.c: a row for a probe: 1, or 0 when the n bytes are none, or -ENOSPC */
int pw_probe_take(struct pw_engine *e, unsigned message, uint32_t offset, size_t n);
void pw_probe_answer(struct pw_engine *e, const int32_t *row);
/* wait.c */
int pw_wait(struct pw_engine *e, int timeout_ms);
int64_t pw_now_ns(void);
void pw_replies_send(struct pw_engine *e);

static inline int32_t *pw_egress_row(struct pw_engine *e, unsigned row)
{
  return e->c.meta + PW_EGRESS_BASE + row * PW_ROW_WORDS;
}
static inline int32_t *pw_ingress_row(struct pw_engine *e, unsigned row)
{
  return e->c.meta + PW_INGRESS_BASE + row * PW_ROW_WORDS;
}
static inline int32_t *pw_message_row(struct pw_engine *e, unsigned row)
{
  return e->c.meta + PW_MESSAGE_BASE + row * PW_ROW_WORDS;
}
static inline void pw_count(struct pw_engine *e, enum pw_counter counter, double by)
{
  e->c.counters[counter] += by;
}
static inline uint16_t pw_get16(const uint8_t *p)
{
  return (uint16_t)(p[0] << 8 | p[1]);
}
static inline uint32_t pw_get32(const uint8_t *p)
{
  return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}
static inline void pw_put16(uint8_t *p, unsigned v)
{
  p[0] = (uint8_t)(v >> 8);
  p[1] = (uint8_t)v;
}
static inline void pw_put32(uint8_t *p, uint32_t v)
{
  pw_put16(p, v >> 16);
  pw_put16(p + 2, v & 0xffff);
}
/* stores a sum as it stands in memory: sums are kept in host order over memory words */
static inline void pw_put_sum(uint8_t *p, uint16_t v)
{
  __builtin_memcpy(p, &v, 2);
}
#endif
