/*
 * An engine without a kernel around it. The program's own sendmmsg, sendmsg and writev take the place of libc's:
 * what goes to a send socket or to the TUN is collected, every byte of it touched (so that the sanitizer checks every
 * iovec), and held against the kernel's rules for UDP_SEGMENT. Other file descriptors reach the kernel as always.
 */
#ifndef PODWIRE_TEST_FIXTURE_H
#define PODWIRE_TEST_FIXTURE_H
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "checksum.h"
#include "engine.h"
#include "harness.h"
#include "udp-options.h"

#define NEXTHOPS 16
#define LANE_FD 10000 /* the send socket of lane i is LANE_FD + i: no such descriptor exists */
#define TUN_FD 20000

/* One call's worth of what left through a send socket. */
struct entry {
  int fd;
  uint32_t row;
  unsigned segments, size;
  size_t bytes;
  bool offloaded; /* carried UDP_SEGMENT */
  int tos;        /* carried as IP_TOS or IPV6_TCLASS, 0 without */
};

static struct {
  struct packets datagrams; /* as they are on the wire, tag: next hop | lane << 16 */
  struct packets tun;       /* writes to the TUN with their virtio header */
  struct entry entry[65536];
  size_t entries;
  unsigned calls;
  const uint8_t *nexthops;
  unsigned most_segments; /* what the pretended kernel takes in one send */
  /* 0, or the errno with which a message is refused; NULL = nothing is */
  int (*refuse)(int fd, const struct entry *entry);
  int (*refuse_write)(size_t bytes);
} wire = {.most_segments = 127};

static inline size_t gather(uint8_t *out, size_t room, const struct iovec *iov, size_t count)
{
  size_t n = 0;
  CHECK(count <= 1024, "%zu iovecs, more than UIO_MAXIOV", count);
  for (size_t i = 0; i < count; i++) {
    CHECK(n + iov[i].iov_len <= room, "message of more than %zu bytes", room);
    memcpy(out + n, iov[i].iov_base, iov[i].iov_len);
    n += iov[i].iov_len;
  }
  return n;
}

static inline unsigned segment_size(const struct msghdr *m, int *tos)
{
  uint16_t size = 0;
  *tos = 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)m, c)) {
    if (m->msg_namelen == 16 ? c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS
                             : c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
      EQUAL(c->cmsg_len, CMSG_LEN(sizeof *tos));
      memcpy(tos, CMSG_DATA(c), sizeof *tos);
      CHECK(*tos > 0 && *tos < 4, "type of service %d", *tos); /* an empty one would only cost time */
      continue;
    }
    CHECK(c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_SEGMENT, "unknown control message");
    EQUAL(c->cmsg_len, CMSG_LEN(sizeof size));
    memcpy(&size, CMSG_DATA(c), sizeof size);
    CHECK(size > 0, "UDP_SEGMENT of 0");
  }
  return size;
}

/* udp_sendmsg() and udp_send_skb() as far as they refuse: bytes taken or -errno. */
static inline ssize_t take_message(int fd, const struct msghdr *m)
{
  static uint8_t bytes[70000];
  const size_t n = gather(bytes, sizeof bytes, m->msg_iov, m->msg_iovlen);
  const size_t row = (size_t)((const uint8_t *)m->msg_name - wire.nexthops) / PW_NEXTHOP_BYTES;
  int tos;
  const unsigned size = segment_size(m, &tos);
  CHECK(row < NEXTHOPS && (const uint8_t *)m->msg_name == wire.nexthops + row * PW_NEXTHOP_BYTES, "not a next hop");
  EQUAL(m->msg_namelen, row % 2 ? 28 : 16);
  CHECK(n > 0 && n <= (row % 2 ? 65527 : 65507), "a send of %zu bytes", n);
  struct entry e = {.fd = fd, .row = (uint32_t)row, .size = size, .bytes = n, .offloaded = size != 0, .tos = tos};
  e.segments = size ? (unsigned)((n + size - 1) / size) : 1;
  if (e.segments > wire.most_segments)
    return -EINVAL;
  const int refused = wire.refuse ? wire.refuse(fd, &e) : 0;
  if (refused)
    return -refused;
  const size_t step = size ? size : n;
  for (size_t at = 0; at < n; at += step)
    packets_add(&wire.datagrams, bytes + at, n - at < step ? n - at : step, (uint32_t)row | (uint32_t)(fd - LANE_FD) << 16);
  CHECK(wire.entries < 65536, "too many messages for one test case");
  wire.entry[wire.entries++] = e;
  return (ssize_t)n;
}

static inline bool is_lane(int fd)
{
  return fd >= LANE_FD && fd < LANE_FD + PW_MAX_LANES;
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
  if (!is_lane(fd))
    return (int)syscall(SYS_sendmmsg, fd, messages, count, flags);
  wire.calls++;
  CHECK(count >= 1 && count <= 1024, "sendmmsg of %u messages", count);
  for (unsigned i = 0; i < count; i++) {
    const ssize_t n = take_message(fd, &messages[i].msg_hdr);
    if (n < 0) {
      errno = (int)-n;
      return i ? (int)i : -1; /* sendmmsg(2): an error only when not even the first was sent */
    }
    messages[i].msg_len = (unsigned)n;
  }
  return (int)count;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
  if (!is_lane(fd))
    return syscall(SYS_sendmsg, fd, message, flags);
  wire.calls++;
  const ssize_t n = take_message(fd, message);
  if (n < 0)
    errno = (int)-n;
  return n < 0 ? -1 : n;
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
  static uint8_t bytes[80000];
  if (fd != TUN_FD)
    return syscall(SYS_writev, fd, iov, count);
  const size_t n = gather(bytes, sizeof bytes, iov, (size_t)count);
  const int refused = wire.refuse_write ? wire.refuse_write(n) : 0;
  if (refused) {
    errno = refused;
    return -1;
  }
  packets_add(&wire.tun, bytes, n, (uint32_t)count);
  return (ssize_t)n;
}

static inline void forget_wire(void)
{
  packets_clear(&wire.datagrams);
  packets_clear(&wire.tun);
  wire.entries = 0;
  wire.calls = 0;
}

/* The memory that TypeScript gives to an engine in production, in blocks of exactly the size that is promised. */
struct memory {
  int32_t *meta;
  double *counters, *peers;
  uint8_t *tun, *udp, *reply, *nexthops;
  int32_t reader;
};

#define TUN_BYTES (4 * PW_TUN_SLOT)
#define UDP_BYTES ((size_t)PW_MAX_MESSAGES * PW_UDP_SLOT)
#define REPLY_BYTES (PW_MAX_REPLIES * 1280)

static inline void *block(size_t bytes)
{
  void *p = calloc(1, bytes);
  CHECK(p != NULL, "out of memory");
  return p;
}

/* A configuration that holds; odd next hops have IPv6 socket addresses. */
static inline struct pw_config new_config(struct memory *m)
{
  *m = (struct memory){
      .meta = block(PW_META_TOTAL_WORDS * sizeof(int32_t)),
      .counters = block(PW_COUNTER_COUNT * sizeof(double)),
      .peers = block(NEXTHOPS * PW_PEER_WORDS * sizeof(double)),
      .tun = block(TUN_BYTES),
      .udp = block(UDP_BYTES),
      .reply = block(REPLY_BYTES),
      .nexthops = block(NEXTHOPS * PW_NEXTHOP_BYTES),
  };
  for (unsigned i = 0; i < NEXTHOPS; i++) {
    const uint16_t bytes = i % 2 ? 28 : 16;
    memcpy(m->nexthops + i * PW_NEXTHOP_BYTES + PW_NEXTHOP_SOCKADDR_LENGTH, &bytes, 2);
  }
  struct pw_config c = {
      .tun_fd = TUN_FD,
      .udp_fd = TUN_FD,
      .wake_fd = TUN_FD,
      .icmp4_fd = -1,
      .icmp6_fd = -1,
      .send_count = 1,
      .virtio_bytes = PW_VIRTIO_BYTES,
      .tun_tcp = true,
      .tun_udp = true,
      .udp_segments = 127,
      .batch_calls = true,
      .vtep = {8, 0, 0, 0, 0xab, 0xcd, 0xef, 0, 0x0e, 0xaa, 0, 0, 0, 1}, /* used with .vxlan */
      .inner_mtu = 1450,
      .meta = m->meta,
      .counters = m->counters,
      .tun_arena = m->tun,
      .udp_arena = m->udp,
      .reply_arena = m->reply,
      .tun_bytes = TUN_BYTES,
      .udp_bytes = UDP_BYTES,
      .reply_bytes = REPLY_BYTES,
      .nexthops = m->nexthops,
      .nexthop_count = NEXTHOPS,
      .peers = m->peers,
      .peer_count = NEXTHOPS,
      .reader = &m->reader,
  };
  for (unsigned i = 0; i < PW_MAX_LANES; i++)
    c.send_fd[i] = LANE_FD + (int)i;
  return c;
}

static inline struct pw_engine *new_engine(const struct pw_config *c)
{
  struct pw_engine *e = NULL;
  EQUAL(pw_engine_create(c, &e), 0);
  wire.nexthops = c->nexthops;
  wire.most_segments = c->udp_segments > 1 ? c->udp_segments : 1;
  return e;
}

static inline void free_engine(struct pw_engine *e, struct memory *m)
{
  pw_engine_destroy(e);
  free(m->meta);
  free(m->counters);
  free(m->peers);
  free(m->tun);
  free(m->udp);
  free(m->reply);
  free(m->nexthops);
}

static inline double counted(const struct pw_engine *e, enum pw_counter counter)
{
  return e->c.counters[counter];
}

static inline void forget_counters(struct pw_engine *e)
{
  memset(e->c.counters, 0, PW_COUNTER_COUNT * sizeof(double));
  memset(e->c.peers, 0, e->c.peer_count * PW_PEER_WORDS * sizeof(double));
}
#endif
