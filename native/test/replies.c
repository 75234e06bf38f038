/*
 * pw_replies_send: packets that TypeScript built leave through the host's raw socket, or through the TUN when there is
 * none or it refuses; rows that point outside of the reply arena are ignored.
 */
#include "fixture.h"
#include <netinet/in.h>

#define ICMP4_FD 40004
#define ICMP6_FD 40006

static struct {
  unsigned calls;
  int fd, error;
  uint8_t bytes[70000];
  size_t length;
  struct sockaddr_storage to;
  socklen_t to_bytes;
} raw;

ssize_t sendto(int fd, const void *bytes, size_t n, int flags, const struct sockaddr *to, socklen_t to_bytes)
{
  if (fd != ICMP4_FD && fd != ICMP6_FD)
    return syscall(SYS_sendto, fd, bytes, n, flags, to, to_bytes);
  CHECK(n <= sizeof raw.bytes && to_bytes <= sizeof raw.to, "%zu bytes to an address of %u", n, to_bytes);
  CHECK(flags & MSG_DONTWAIT, "a reply may block the worker");
  raw.calls++;
  raw.fd = fd;
  memcpy(raw.bytes, bytes, n);
  raw.length = n;
  memcpy(&raw.to, to, to_bytes);
  raw.to_bytes = to_bytes;
  if (raw.error) {
    errno = raw.error;
    return -1;
  }
  return (ssize_t)n;
}

static struct memory memory;
static struct pw_config config;
static struct pw_engine *engine;

static void fresh(void)
{
  pw_engine_destroy(engine);
  engine = new_engine(&config);
  forget_counters(engine);
  forget_wire();
  wire.refuse_write = NULL;
  memset(&raw, 0, sizeof raw);
}

static void fill_row(unsigned index, int32_t offset, int32_t length, int32_t l4, int32_t family)
{
  int32_t *r = engine->c.meta + PW_REPLY_BASE + index * PW_ROW_WORDS;
  r[PW_R_OFFSET] = offset;
  r[PW_R_LENGTH] = length;
  r[PW_R_L4_OFFSET] = l4;
  r[PW_R_FAMILY] = family;
}

/* A reply of n bytes at offset of the arena. */
static uint8_t *reply(int32_t offset, unsigned n, int family)
{
  uint8_t *p = memory.reply + offset;
  random_bytes(p, n);
  p[0] = family == 4 ? 0x45 : 0x60;
  fill_row(0, offset, (int32_t)n, family == 4 ? 20 : 40, family);
  engine->c.meta[PW_META_REPLY_COUNT] = 1;
  return p;
}

static void through_raw_socket(int family)
{
  in_case("IPv%d through the raw socket", family);
  fresh();
  const unsigned header = family == 4 ? 20 : 40;
  const uint8_t *p = reply(1280, 576, family);
  pw_replies_send(engine);
  EQUAL(engine->c.meta[PW_META_REPLY_COUNT], 0);
  EQUAL(raw.calls, 1);
  EQUAL(raw.fd, family == 4 ? ICMP4_FD : ICMP6_FD);
  EQUAL(raw.length, 576 - header);
  CHECK(!memcmp(raw.bytes, p + header, raw.length), "other bytes");
  EQUAL(raw.to.ss_family, family == 4 ? AF_INET : AF_INET6);
  if (family == 4)
    CHECK(!memcmp(&((struct sockaddr_in *)&raw.to)->sin_addr, p + 16, 4), "to another address");
  else
    CHECK(!memcmp(&((struct sockaddr_in6 *)&raw.to)->sin6_addr, p + 24, 16), "to another address");
  EQUAL(wire.tun.count, 0);
  EQUAL(counted(engine, PW_C_repliesSent), 1);
}

static int refuse_all(size_t bytes)
{
  (void)bytes;
  return EIO;
}

static void through_tun(int family, unsigned virtio)
{
  config.virtio_bytes = virtio;
  config.tun_tcp = config.tun_udp = virtio != 0;
  for (unsigned refusing = 0; refusing < 2; refusing++) {
    in_case("IPv%d through the TUN, virtio %u%s", family, virtio, refusing ? ", raw socket refuses" : "");
    config.icmp4_fd = refusing ? ICMP4_FD : -1;
    config.icmp6_fd = refusing ? ICMP6_FD : -1;
    fresh();
    raw.error = EPERM;
    const uint8_t *p = reply(0, 100, family);
    pw_replies_send(engine);
    EQUAL(raw.calls, refusing);
    EQUAL(wire.tun.count, 1);
    EQUAL(wire.tun.item[0].length, virtio + 100);
    for (unsigned i = 0; i < virtio; i++)
      EQUAL(wire.tun.item[0].data[i], 0);
    CHECK(!memcmp(wire.tun.item[0].data + virtio, p, 100), "other bytes");
    EQUAL(counted(engine, PW_C_repliesSent), 1);

    reply(0, 100, family);
    wire.refuse_write = refuse_all;
    pw_replies_send(engine);
    EQUAL(counted(engine, PW_C_repliesSent), 1);
    EQUAL(counted(engine, PW_C_dropReplyError), 1);
  }
  config.virtio_bytes = PW_VIRTIO_BYTES;
  config.tun_tcp = config.tun_udp = true;
  config.icmp4_fd = ICMP4_FD;
  config.icmp6_fd = ICMP6_FD;
}

static void full_table(void)
{
  in_case("a full table");
  fresh();
  for (unsigned i = 0; i < PW_MAX_REPLIES; i++)
    fill_row(i, (int32_t)(i * 1280), 1280, 40, 6);
  engine->c.meta[PW_META_REPLY_COUNT] = PW_MAX_REPLIES;
  pw_replies_send(engine);
  EQUAL(raw.calls, PW_MAX_REPLIES);
  EQUAL(counted(engine, PW_C_repliesSent), PW_MAX_REPLIES);
}

/* Whatever the rows say, nothing outside of the arena is read, and never more rows than there are. */
static void hostile_rows(void)
{
  static const int32_t words[] = {0, 1, 19, 20, 39, 40, 41, 1280, REPLY_BYTES - 1, REPLY_BYTES, REPLY_BYTES + 1,
                                  INT32_MAX, INT32_MIN, -1, -20};
  for (unsigned round = 0; round < 3000 * test_factor; round++) {
    in_case("hostile rows %u", round);
    if (once_in(3))
      config.icmp4_fd = config.icmp6_fd = -1;
    else
      config.icmp4_fd = ICMP4_FD, config.icmp6_fd = ICMP6_FD;
    fresh();
    for (unsigned i = 0; i < PW_MAX_REPLIES; i++) {
      int32_t w[4];
      for (unsigned k = 0; k < 4; k++)
        w[k] = once_in(4) ? (int32_t)random_word() : once_in(2) ? (int32_t)below(REPLY_BYTES) : words[below(15)];
      fill_row(i, w[0], w[1], once_in(2) ? 20 : w[2], once_in(2) ? 4 : 6);
    }
    engine->c.meta[PW_META_REPLY_COUNT] = once_in(2) ? (int32_t)below(PW_MAX_REPLIES + 2) : (int32_t)random_word();
    pw_replies_send(engine);
    EQUAL(engine->c.meta[PW_META_REPLY_COUNT], 0);
    CHECK(raw.calls + wire.tun.count <= PW_MAX_REPLIES, "%u sends of at most %d", raw.calls + (unsigned)wire.tun.count,
          PW_MAX_REPLIES);
    EQUAL(counted(engine, PW_C_repliesSent), raw.calls + wire.tun.count);
  }
}

int main(void)
{
  start_test("replies");
  config = new_config(&memory);
  config.icmp4_fd = ICMP4_FD;
  config.icmp6_fd = ICMP6_FD;
  for (int family = 4; family <= 6; family += 2) {
    through_raw_socket(family);
    through_tun(family, PW_VIRTIO_BYTES);
    through_tun(family, 0);
  }
  full_table();
  hostile_rows();
  free_engine(engine, &memory);
  packets_free(&wire.tun);
  packets_free(&wire.datagrams);
  return 0;
}
