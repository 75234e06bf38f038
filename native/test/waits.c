/*
 * When a turn waits and what ends the wait: packets, the eventfd, the time-out, a dead descriptor; how the spin is
 * earned and lost; what a full table does to the turns after it; and which configurations are refused.
 */
#include "bed.h"

static uint8_t echo[28] = {0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 1, 15, 2, 10, 1, 16, 2, 8, 0, 0, 0, 0, 1, 0, 1};

static void to_udp(const uint8_t *p, size_t n)
{
  EQUAL(sendto(bed.peer, p, n, 0, (struct sockaddr *)&bed.bound, bed.address_bytes), (ssize_t)n);
}

static void to_tun(const uint8_t *p, size_t n)
{
  uint8_t write_bytes[200] = {0};
  memcpy(write_bytes + PW_VIRTIO_BYTES, p, n);
  EQUAL(send(bed.tun_far, write_bytes, PW_VIRTIO_BYTES + n, 0), (ssize_t)(PW_VIRTIO_BYTES + n));
}

static void time_out(void)
{
  for (int spin = PW_SPIN_OFF; spin <= PW_SPIN_ALWAYS; spin++) {
    in_case("time-out, spin %d", spin);
    open_bed(AF_INET, true, 127, true, (enum pw_spin)spin);
    bed.reader = 77;
    EQUAL(pw_turn(bed.e, 0), 0);
    EQUAL(bed.reader, 77); /* a turn that does not block holds on to its FIB rows */
    EQUAL(bed.counters[PW_C_waits], 0);
    const int64_t from = pw_now_ns();
    EQUAL(pw_turn(bed.e, 5), 0);
    CHECK(pw_now_ns() - from >= 4000000, "came back after %lld ns", (long long)(pw_now_ns() - from));
    EQUAL(bed.reader, 0); /* quiescent while blocked */
    EQUAL(bed.counters[PW_C_waits], 1);
    EQUAL(bed.counters[PW_C_turns], 2);
    EQUAL(((int32_t *)bed.meta)[PW_META_HEARTBEAT], 2);
    EQUAL(bed.counters[PW_C_spinMisses], spin == PW_SPIN_ALWAYS);
    close_bed();
  }
}

static void wake_up(void)
{
  const uint64_t one = 1;
  uint64_t left;
  in_case("wake-up");
  open_bed(AF_INET, true, 127, true, PW_SPIN_ADAPTIVE);
  for (unsigned i = 0; i < 3; i++) {
    EQUAL(write(bed.c.wake_fd, &one, sizeof one), sizeof one);
    EQUAL(pw_turn(bed.e, 3600000), 0);
    CHECK(read(bed.c.wake_fd, &left, sizeof left) < 0 && errno == EAGAIN, "the wake-up was not taken");
  }
  in_case("a wake-up and packets at once");
  EQUAL(write(bed.c.wake_fd, &one, sizeof one), sizeof one);
  to_tun(echo, sizeof echo);
  to_udp(echo, sizeof echo);
  EQUAL(turn_until_rows(), 1 | 1 << 16);
  close_bed();
}

/* A dead descriptor is an error, never a loop that spins. */
static void dead_descriptors(void)
{
  in_case("TUN closed");
  open_bed(AF_INET, true, 127, true, PW_SPIN_OFF);
  close(bed.c.tun_fd);
  EQUAL(pw_turn(bed.e, 1000), -EBADF);
  bed.c.tun_fd = -1;
  close_bed();
  in_case("socket closed");
  open_bed(AF_INET, true, 127, true, PW_SPIN_OFF);
  close(bed.c.udp_fd);
  EQUAL(pw_turn(bed.e, 1000), -EBADF);
  bed.c.udp_fd = -1;
  close_bed();
}

/* Sends one datagram as soon as the engine has begun the turn after `turns`. */
static void *send_during_turn(void *turns)
{
  const volatile double *begun = &bed.counters[PW_C_turns];
  while (*begun <= *(double *)turns)
    ;
  to_udp(echo, sizeof echo);
  return NULL;
}

static void turn_with_a_late_packet(void)
{
  pthread_t thread;
  double turns = bed.counters[PW_C_turns];
  EQUAL(pthread_create(&thread, NULL, send_during_turn, &turns), 0);
  EQUAL(pw_turn(bed.e, PATIENCE_MS), 1 << 16);
  EQUAL(pthread_join(thread, NULL), 0);
}

static void spinning(void)
{
  in_case("always: a packet that comes while spinning");
  open_bed(AF_INET, true, 127, true, PW_SPIN_ALWAYS);
  bed.e->c.spin_ns = 2000000000;
  for (unsigned i = 0; bed.counters[PW_C_spinHits] == 0; i++) { /* it may come so soon that no spin is needed */
    CHECK(i < 1000, "a thousand packets came and it never spun");
    turn_with_a_late_packet();
  }
  EQUAL(bed.counters[PW_C_waits], 0);
  close_bed();

  in_case("adaptive: earned by packets that come soon");
  open_bed(AF_INET, true, 127, true, PW_SPIN_ADAPTIVE);
  bed.e->c.spin_ns = 2000000000; /* whatever comes at all comes soon enough */
  for (unsigned i = 0; bed.counters[PW_C_spinHits] == 0; i++) {
    CHECK(i < 1000, "a thousand packets came soon and it does not spin");
    turn_with_a_late_packet();
  }
  const double waits = bed.counters[PW_C_waits];
  CHECK(waits > 2, "spins after %g waits", waits);
  for (unsigned i = 0; i < 20; i++)
    turn_with_a_late_packet();
  EQUAL(bed.counters[PW_C_waits], waits);

  in_case("adaptive: lost by spins that find nothing");
  bed.e->c.spin_ns = 1000;
  unsigned misses = 0;
  for (unsigned i = 0; i < 20; i++)
    EQUAL(pw_turn(bed.e, 1), 0);
  misses = (unsigned)bed.counters[PW_C_spinMisses];
  CHECK(misses >= 1 && misses < 8, "%u spins in vain in twenty turns", misses);
  close_bed();

  in_case("off: never");
  open_bed(AF_INET, true, 127, true, PW_SPIN_OFF);
  bed.e->c.spin_ns = 2000000000;
  for (unsigned i = 0; i < 30; i++)
    turn_with_a_late_packet();
  EQUAL(bed.counters[PW_C_spinHits] + bed.counters[PW_C_spinMisses], 0);
  close_bed();
}

/* More datagrams than the row table holds: the next turns finish the batch before they take in anything new. */
static void full_table(void)
{
  enum { EACH = 120, MESSAGES = 12, ALL = EACH * MESSAGES };
  static uint8_t message[EACH * sizeof echo], got[100];
  const int size = sizeof echo;
  in_case("full table");
  open_bed(AF_INET, true, 127, true, PW_SPIN_OFF);
  EQUAL(setsockopt(bed.peer, SOL_SOCKET, SO_SNDBUFFORCE, &(int){8 << 20}, sizeof(int)) &&
            setsockopt(bed.peer, SOL_SOCKET, SO_SNDBUF, &(int){8 << 20}, sizeof(int)),
        0);
  if (setsockopt(bed.peer, SOL_UDP, UDP_SEGMENT, &size, sizeof size) || pw_probe_udp_segments() < EACH) {
    printf("  full table: this kernel's UDP_SEGMENT takes fewer than %d segments\n", EACH);
    close_bed();
    return;
  }
  for (unsigned m = 0, number = 0; m < MESSAGES; m++) {
    for (unsigned i = 0; i < EACH; i++, number++) {
      memcpy(message + i * sizeof echo, echo, sizeof echo);
      put16(message + i * sizeof echo + 26, number);
    }
    to_udp(message, sizeof message);
  }
  int rows = turn_until_rows();
  unsigned arrived = 0, carried = 0;
  for (; arrived < ALL; rows = arrived < ALL ? turn_until_rows() : 0) {
    const unsigned ingress = (unsigned)rows >> 16;
    const bool more = bed.e->parse_message < bed.e->messages;
    CHECK(!more || ingress == PW_MAX_INGRESS, "%u rows although more are waiting", ingress);
    for (unsigned i = 0; i < ingress; i++, arrived++) {
      const int32_t *r = pw_ingress_row(bed.e, i);
      EQUAL(get16(bed.udp_arena + r[PW_I_OFFSET] + 26), arrived);
    }
    if (more) {
      to_tun(echo, sizeof echo); /* must wait */
      carried++;
      rows = pw_turn(bed.e, 1000);
      EQUAL(rows & 0xffff, 0);
      CHECK(rows >> 16 > 0, "the rest of the batch was forgotten");
      for (unsigned i = 0; i < (unsigned)rows >> 16; i++, arrived++)
        EQUAL(get16(bed.udp_arena + pw_ingress_row(bed.e, i)[PW_I_OFFSET] + 26), arrived);
    }
  }
  CHECK(carried > 0, "the table was never full");
  EQUAL(turn_until_rows() & 0xffff, carried);
  EQUAL(bed.counters[PW_C_ingressPackets], 0); /* nobody let them through */
  CHECK(recv(bed.tun_far, got, sizeof got, 0) < 0, "a packet without a verdict was delivered");
  close_bed();
}

static void refused(const char *what, const struct pw_config *c)
{
  struct pw_engine *e = NULL;
  in_case("configuration with %s", what);
  EQUAL(pw_engine_create(c, &e), -EINVAL);
  CHECK(e == NULL, "an engine was made");
}

static void refused_configurations(void)
{
  open_bed(AF_INET, true, 127, true, PW_SPIN_OFF);
#define WITH(what, change) \
  do { \
    struct pw_config c = bed.c; \
    change; \
    refused(what, &c); \
  } while (0)
  WITH("no TUN", c.tun_fd = -1);
  WITH("no socket", c.udp_fd = -1);
  WITH("no eventfd", c.wake_fd = -1);
  WITH("no send socket", c.send_count = 0);
  WITH("too many send sockets", c.send_count = PW_MAX_LANES + 1);
  WITH("a bad send socket", c.send_fd[LANES - 1] = -1);
  WITH("half a virtio header", c.virtio_bytes = 5);
  WITH("superpackets without virtio headers", c.virtio_bytes = 0);
  WITH("no tables", c.meta = NULL);
  WITH("no counters", c.counters = NULL);
  WITH("no FIB word", c.reader = NULL);
  WITH("no TUN arena", c.tun_arena = NULL);
  WITH("a TUN arena that holds no packet", c.tun_bytes = PW_TUN_SLOT - 1);
  WITH("a TUN arena beyond int32", c.tun_bytes = (size_t)INT32_MAX + 1);
  WITH("no UDP arena", c.udp_arena = NULL);
  WITH("a UDP arena that holds no datagram", c.udp_bytes = PW_UDP_SLOT - 1);
  WITH("a UDP arena beyond int32", c.udp_bytes = (size_t)INT32_MAX + 1);
  WITH("too many segments a send", c.udp_segments = PW_MAX_SEGMENTS + 1);
  WITH("no reply arena", c.reply_arena = NULL);
  WITH("no next hops", c.nexthops = NULL);
  WITH("an empty next-hop table", c.nexthop_count = 0);
  WITH("no peer counters", c.peers = NULL);
  pw_engine_destroy(NULL); /* nothing to do */
  close_bed();
}

int main(void)
{
  start_test("waits");
  pw_checksum_init(NULL);
  refused_configurations();
  time_out();
  wake_up();
  dead_descriptors();
  spinning();
  full_table();
  return 0;
}
