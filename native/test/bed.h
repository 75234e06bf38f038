/* An engine between real descriptors: a socketpair in the TUN's place, UDP on loopback, an eventfd. No root needed. */
#ifndef PODWIRE_TEST_BED_H
#define PODWIRE_TEST_BED_H
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "checksum.h"
#include "engine.h"
#include "host.h"
#include "udp-options.h"
#include "wire.h"

#define LANES 4
#define ROW 3
#define PATIENCE_MS 10000

static struct {
  int tun_far, peer; /* the test's ends */
  struct sockaddr_storage bound, peer_address;
  socklen_t address_bytes;
  struct pw_config c;
  struct pw_engine *e;
  uint64_t meta[PW_META_TOTAL_WORDS / 2 + 1];
  double counters[PW_COUNTER_COUNT], peers[8 * PW_PEER_WORDS];
  uint8_t nexthops[8 * PW_NEXTHOP_BYTES], reply[PW_MAX_REPLIES * 1280];
  uint8_t *tun_arena, *udp_arena;
  int32_t reader;
} bed;

static inline int udp_socket(int family, bool receive, bool gro, struct sockaddr_storage *address, socklen_t *bytes)
{
  struct pw_socket_options o = {.receive = receive, .gro = gro, .buffer_bytes = 8 << 20};
  memset(address, 0, sizeof *address);
  address->ss_family = (sa_family_t)family;
  if (family == AF_INET6)
    ((struct sockaddr_in6 *)address)->sin6_addr = in6addr_loopback;
  else
    ((struct sockaddr_in *)address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  *bytes = family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
  const int fd = pw_udp_open((struct sockaddr *)address, *bytes, &o);
  CHECK(fd >= 0, "no UDP socket: %s", strerror(-fd));
  EQUAL(getsockname(fd, (struct sockaddr *)address, bytes), 0);
  return fd;
}

static inline void open_bed(int family, bool gro, unsigned udp_segments, bool batch_calls, enum pw_spin spin)
{
  int pair[2];
  struct sockaddr_storage unused;
  socklen_t bytes;
  memset(&bed, 0, sizeof bed);
  EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
  const int room = 1 << 20;
  for (int i = 0; i < 2; i++)
    EQUAL(setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
  bed.tun_far = pair[1];
  bed.peer = udp_socket(family, true, false, &bed.peer_address, &bed.address_bytes);
  bed.tun_arena = malloc(16 * PW_TUN_SLOT);
  bed.udp_arena = malloc(16 * PW_UDP_SLOT);
  CHECK(bed.tun_arena && bed.udp_arena, "out of memory");
  bed.c = (struct pw_config){
      .tun_fd = pair[0],
      .udp_fd = udp_socket(family, true, gro, &bed.bound, &bytes),
      .wake_fd = eventfd(0, EFD_NONBLOCK),
      .icmp4_fd = -1,
      .icmp6_fd = -1,
      .send_count = LANES,
      .virtio_bytes = PW_VIRTIO_BYTES,
      .tun_tcp = true,
      .tun_udp = true,
      .udp_segments = udp_segments,
      .batch_calls = batch_calls,
      .spin = spin,
      .spin_ns = 50000,
      .meta = (int32_t *)bed.meta,
      .counters = bed.counters,
      .tun_arena = bed.tun_arena,
      .udp_arena = bed.udp_arena,
      .reply_arena = bed.reply,
      .tun_bytes = 16 * PW_TUN_SLOT,
      .udp_bytes = 16 * PW_UDP_SLOT,
      .reply_bytes = sizeof bed.reply,
      .nexthops = bed.nexthops,
      .nexthop_count = 8,
      .peers = bed.peers,
      .peer_count = 8,
      .reader = &bed.reader,
  };
  for (unsigned i = 0; i < LANES; i++)
    bed.c.send_fd[i] = udp_socket(family, false, false, &unused, &bytes);
  uint8_t *nexthop = bed.nexthops + ROW * PW_NEXTHOP_BYTES;
  const uint16_t name_bytes = (uint16_t)bed.address_bytes;
  memcpy(nexthop, &bed.peer_address, bed.address_bytes);
  memcpy(nexthop + PW_NEXTHOP_SOCKADDR_LENGTH, &name_bytes, 2);
  EQUAL(pw_engine_create(&bed.c, &bed.e), 0);
}

static inline void close_bed(void)
{
  pw_engine_destroy(bed.e);
  close(bed.tun_far);
  close(bed.peer);
  close(bed.c.tun_fd);
  close(bed.c.udp_fd);
  close(bed.c.wake_fd);
  for (unsigned i = 0; i < LANES; i++)
    close(bed.c.send_fd[i]);
  free(bed.tun_arena);
  free(bed.udp_arena);
}

/* Reads one datagram from the test's end of something; fails when none comes. */
static inline size_t expect_datagram(int fd, uint8_t *out, size_t room)
{
  struct pollfd p = {.fd = fd, .events = POLLIN};
  CHECK(poll(&p, 1, PATIENCE_MS) == 1, "nothing came");
  const ssize_t n = recv(fd, out, room, 0);
  CHECK(n >= 0, "recv: %s", strerror(errno));
  return (size_t)n;
}

static inline void expect_silence(int fd)
{
  uint8_t byte;
  CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN, "something came that nobody should have sent");
}

/* Turns until there are rows; fails on an error or after a while. */
static inline int turn_until_rows(void)
{
  for (const int64_t until = pw_now_ns() + PATIENCE_MS * 1000000ll; pw_now_ns() < until;) {
    const int rows = pw_turn(bed.e, 100);
    CHECK(rows >= 0, "pw_turn: %s", strerror(-rows));
    if (rows)
      return rows;
  }
  fail_at(__FILE__, __LINE__, "no rows");
}
#endif
