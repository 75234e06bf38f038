/*
 * What waits to be sent: which datagrams share a send, in which order they leave, and what becomes of a refused one.
 * Whatever happens, every datagram is either sent once, in its lane's order, or counted once in a drop counter.
 */
#include "fixture.h"

static struct memory memory;
static struct pw_config config;
static struct pw_engine *engine;
static struct packets wanted;

/* Datagrams live here until they are flushed, as arenas do. */
static uint8_t payloads[1 << 21];
static size_t used;

static void fresh(unsigned udp_segments, bool batch_calls)
{
  config.udp_segments = udp_segments;
  config.batch_calls = batch_calls;
  pw_engine_destroy(engine);
  engine = new_engine(&config);
  forget_counters(engine);
  forget_wire();
  packets_clear(&wanted);
  wire.refuse = NULL;
  used = 0;
}

static void add(unsigned lane, uint32_t row, size_t header, size_t payload)
{
  CHECK(used + header + payload <= sizeof payloads, "test needs more memory");
  uint8_t *p = payloads + used;
  used += header + payload;
  random_bytes(p, header + payload);
  pw_lane_add(engine, lane, row, p, header, p + header, payload);
  packets_add(&wanted, p, header + payload, row | lane << 16);
}

/* Adds a datagram that is built in the send arena, next to the one before it. */
static void build(unsigned lane, uint32_t row, size_t bytes)
{
  uint8_t *room = pw_send_room(engine, bytes);
  random_bytes(room, bytes);
  pw_lane_add(engine, lane, row, room, bytes, NULL, 0);
  packets_add(&wanted, room, bytes, row | lane << 16);
}

/* Sent in order within each lane; lanes may overtake each other. */
static void same_by_lane(void)
{
  for (unsigned lane = 0; lane < engine->c.send_count; lane++) {
    struct packets got = {0}, expected = {0};
    for (size_t i = 0; i < wire.datagrams.count; i++) {
      const struct packet *p = &wire.datagrams.item[i];
      if (p->tag >> 16 == lane)
        packets_add(&got, p->data, p->length, p->tag);
    }
    for (size_t i = 0; i < wanted.count; i++) {
      const struct packet *p = &wanted.item[i];
      if (p->tag >> 16 == lane)
        packets_add(&expected, p->data, p->length, p->tag);
    }
    same_packets(&got, &expected, "a lane");
    packets_free(&got);
    packets_free(&expected);
  }
}

static void expect_entries(const unsigned *segments, size_t count)
{
  EQUAL(wire.entries, count);
  for (size_t i = 0; i < count; i++)
    CHECK(wire.entry[i].segments == segments[i], "message %zu has %u segments, expected %u", i, wire.entry[i].segments,
          segments[i]);
}

/* Caps of bytes and segments, and what ends an entry. */
static void sharing(void)
{
  in_case("segments per send");
  fresh(127, true);
  for (unsigned i = 0; i < 300; i++)
    add(0, 3, 0, 100);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){127, 127, 46}, 3);
  same_by_lane();

  in_case("segments per send of an older kernel");
  fresh(64, true);
  for (unsigned i = 0; i < 130; i++)
    add(0, 3, 40, 60);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){64, 64, 2}, 3);

  in_case("bytes per send");
  fresh(127, true);
  for (unsigned i = 0; i < 46; i++)
    add(0, 4, 52, 1420);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){44, 2}, 2); /* kernel-facts: 44 x 1472 */
  same_by_lane();

  in_case("what lies together is one piece");
  fresh(127, true);
  for (unsigned i = 0; i < 45; i++)
    build(0, 4, 1472);
  EQUAL(engine->lane[0].iovs, 2);
  EQUAL(engine->lane[0].message[0].msg_hdr.msg_iov[0].iov_len, 44 * 1472);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){44, 1}, 2);
  same_by_lane();

  in_case("the largest packets go alone");
  fresh(127, true);
  add(0, 4, 40, 65507 - 40);
  add(0, 4, 40, 32704);
  add(0, 4, 40, 32703);
  add(0, 4, 40, 32703);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){1, 2, 1}, 3);

  in_case("a shorter one ends the send, a longer one starts another");
  fresh(127, true);
  const size_t sizes[] = {500, 500, 400, 400, 400, 500, 1, 1};
  for (unsigned i = 0; i < 8; i++)
    add(0, 5, 0, sizes[i]);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){3, 2, 2, 1}, 4);
  same_by_lane();

  in_case("next hops share nothing");
  fresh(127, true);
  for (unsigned i = 0; i < 6; i++)
    add(0, 3 + i % 2, 0, 200);
  pw_lanes_flush(engine);
  expect_entries((const unsigned[]){1, 1, 1, 1, 1, 1}, 6);

  in_case("without UDP_SEGMENT");
  for (unsigned most = 0; most <= 1; most++) {
    fresh(most, true);
    for (unsigned i = 0; i < 5; i++)
      add(0, 3, 0, 200);
    pw_lanes_flush(engine);
    expect_entries((const unsigned[]){1, 1, 1, 1, 1}, 5);
    EQUAL(wire.calls, 1);
    CHECK(!wire.entry[0].offloaded, "a single datagram carries UDP_SEGMENT");
  }

  in_case("one call each");
  fresh(1, false);
  for (unsigned i = 0; i < 5; i++)
    add(0, 3, 0, 200);
  pw_lanes_flush(engine);
  EQUAL(wire.calls, 5);
  same_by_lane();
}

static void random_streams(void)
{
  for (unsigned round = 0; round < 150 * test_factor; round++) {
    static const unsigned most[] = {0, 1, 2, 64, 127};
    const unsigned count = between(1, 1500), mode = below(3);
    config.send_count = between(1, 4);
    fresh(most[below(5)], !once_in(4));
    in_case("stream %u: %u datagrams, %u lanes, %u segments a send", round, count, config.send_count,
            config.udp_segments);
    for (unsigned i = 0; i < count && used < sizeof payloads - 70000; i++) {
      const size_t size = mode == 0 ? spread(65507) : mode == 1 ? 1400 : between(1, 3) * 40;
      const size_t header = once_in(4) ? 0 : size > 40 ? 40 : size;
      add(below(config.send_count), 3 + below(once_in(3) ? NEXTHOPS - 3 : 1), header, size - header);
      if (once_in(200))
        pw_lanes_flush(engine);
    }
    pw_lanes_flush(engine);
    same_by_lane();
    EQUAL(counted(engine, PW_C_egressPackets), wanted.count);
    EQUAL(counted(engine, PW_C_sendEntries), wire.entries);
    EQUAL(counted(engine, PW_C_sendCalls), wire.calls);
    EQUAL(counted(engine, PW_C_fallbackUdpSegment), 0);
  }
  config.send_count = 1;
}

/* What is built for several lanes uses the send arena up: it is flushed, not written over. */
static void send_arena(void)
{
  config.send_count = 8;
  fresh(127, true);
  in_case("send arena");
  for (unsigned i = 0; i < 6000; i++)
    build(i / 200 % 8, 3, between(40, 120));
  pw_lanes_flush(engine);
  same_by_lane();
  EQUAL(engine->send_used, 0);
  config.send_count = 1;
}

static int device_error;
static unsigned offloads_tried;

static int refuse_offload(int fd, const struct entry *entry)
{
  (void)fd;
  offloads_tried += entry->offloaded;
  return entry->offloaded ? device_error : 0;
}

/* A device without checksum offload refuses every UDP_SEGMENT send: the datagrams leave one by one, in order. */
static void refused_offload(void)
{
  static const int errors[] = {EIO, EINVAL, EOPNOTSUPP};
  for (unsigned k = 0; k < 3; k++) {
    for (unsigned batch = 0; batch < 2; batch++) {
      device_error = errors[k];
      in_case("UDP_SEGMENT refused with %s%s", strerror(device_error), batch ? "" : ", one call each");
      fresh(127, batch);
      wire.refuse = refuse_offload;
      offloads_tried = 0;
      const unsigned tries = device_error == EOPNOTSUPP ? 40 : 8;
      for (unsigned i = 0; i < 40; i++) {
        for (unsigned n = between(2, 9); n > 0; n--)
          once_in(3) ? add(0, 3, 40, 100) : build(0, 3, 140);
        add(0, 4, 40, 7); /* alone: nothing to refuse */
        pw_lanes_flush(engine);
      }
      same_by_lane();
      EQUAL(counted(engine, PW_C_egressPackets), wanted.count);
      EQUAL(counted(engine, PW_C_fallbackUdpSegment), tries);
      EQUAL(offloads_tried, tries); /* after eight refusals by the device it is left in peace for a while */
      CHECK(device_error == EOPNOTSUPP || engine->udp_backoff_until > pw_now_ns() + 1000000000, "no back-off");

      engine->udp_backoff_until = engine->udp_backoff_until ? 1 : 0; /* the while is over, the device has changed */
      wire.refuse = NULL;
      for (unsigned i = 0; i < 9; i++)
        add(0, 3, 40, 100);
      wire.entries = 0;
      pw_lanes_flush(engine);
      expect_entries((const unsigned[]){9}, 1);
      same_by_lane();
    }
  }
}

static int refuse_all(int fd, const struct entry *entry)
{
  (void)fd;
  offloads_tried += entry->offloaded;
  return EINVAL;
}

/* A route that refuses everything (blackhole) says nothing about the device: offload is tried again at once. */
static void refusing_route(void)
{
  for (unsigned batch = 0; batch < 2; batch++) {
    in_case("a blackhole route%s", batch ? "" : ", one call each");
    fresh(127, batch);
    wire.refuse = refuse_all;
    offloads_tried = 0;
    for (unsigned i = 0; i < 40; i++) {
      for (unsigned n = 0; n < 5; n++)
        add(0, 3, 40, 100);
      pw_lanes_flush(engine);
    }
    EQUAL(offloads_tried, 40);
    EQUAL(engine->udp_backoff_until, 0);
    EQUAL(counted(engine, PW_C_dropSendError), 200);
    EQUAL(counted(engine, PW_C_egressPackets), 0);
    wire.refuse = NULL;
  }
}

static unsigned largest_datagram;

static int refuse_large(int fd, const struct entry *entry)
{
  (void)fd;
  const size_t datagram = entry->offloaded ? entry->size : entry->bytes;
  return datagram > largest_datagram ? EMSGSIZE : 0;
}

/* A path MTU below the datagrams: each is tried alone and counted; the smaller last one of a send still leaves. */
static void too_big(void)
{
  for (unsigned batch = 0; batch < 2; batch++) {
    in_case("EMSGSIZE%s", batch ? "" : ", one call each");
    fresh(127, batch);
    wire.refuse = refuse_large;
    largest_datagram = 1000;
    for (unsigned i = 0; i < 20; i++)
      add(0, 3, 40, 1100);
    add(0, 3, 40, 900); /* ends the send of the twenty */
    for (unsigned i = 0; i < 20; i++)
      add(0, 4, 40, 500);
    pw_lanes_flush(engine);
    EQUAL(counted(engine, PW_C_dropSendTooBig), 20);
    EQUAL(counted(engine, PW_C_egressPackets), 21);
    EQUAL(counted(engine, PW_C_fallbackUdpSegment), 1);
    EQUAL(wire.datagrams.count, 21);
    EQUAL(wire.datagrams.item[0].length, 940);
    EQUAL(engine->udp_backoff_until, 0); /* a path's fault is not the device's */
  }
}

static int next_error[8];
static unsigned errors_left;

static int refuse_for_a_while(int fd, const struct entry *entry)
{
  (void)fd;
  (void)entry;
  return errors_left ? next_error[--errors_left] : 0;
}

static void one_refused_among_many(int error, unsigned times, enum pw_counter counter, bool batch)
{
  in_case("%s %u times%s", strerror(error), times, batch ? "" : ", one call each");
  fresh(127, batch);
  wire.refuse = refuse_for_a_while;
  for (unsigned i = 0; i < times; i++)
    next_error[i] = error;
  errors_left = times;
  for (unsigned i = 0; i < 5; i++) {
    for (unsigned n = 0; n < 3; n++)
      add(0, 3 + i, 0, 200);
  }
  pw_lanes_flush(engine);
  const double dropped = counter == PW_COUNTER_COUNT ? 0 : counted(engine, counter);
  EQUAL(dropped, counter == PW_COUNTER_COUNT ? 0 : 3);
  EQUAL(counted(engine, PW_C_egressPackets), 15 - dropped);
  EQUAL(wire.datagrams.count, 15 - dropped);
  EQUAL(counted(engine, PW_C_fallbackUdpSegment), 0);
  for (unsigned i = 0; i < 5; i++) {
    const double *peer = engine->c.peers + (3 + i) * PW_PEER_WORDS, lost = dropped && i == 0 ? 3 : 0;
    EQUAL(peer[0], 3 - lost);
    EQUAL(peer[PW_PEER_TX_DROPS], lost);
  }
}

static void other_refusals(void)
{
  for (unsigned batch = 0; batch < 2; batch++) {
    one_refused_among_many(EAGAIN, 1, PW_COUNTER_COUNT, batch); /* room after a short wait */
    one_refused_among_many(ENOBUFS, 1, PW_COUNTER_COUNT, batch);
    one_refused_among_many(EAGAIN, 2, PW_C_dropSocketFull, batch);
    one_refused_among_many(ENOBUFS, 2, PW_C_dropSocketFull, batch);
    one_refused_among_many(EINTR, 3, PW_COUNTER_COUNT, batch);
    one_refused_among_many(EPERM, 1, PW_C_dropSendError, batch);
    one_refused_among_many(ENETUNREACH, 1, PW_C_dropSendError, batch);
  }
}

static int refuse_at_random(int fd, const struct entry *entry)
{
  static const int errors[] = {EAGAIN, ENOBUFS, EINTR, EMSGSIZE, EPERM, EIO, EINVAL, ECONNREFUSED, EHOSTUNREACH};
  (void)fd;
  (void)entry;
  return once_in(12) ? errors[below(9)] : 0;
}

/* Whatever is refused: nothing twice, nothing out of order, nothing uncounted. */
static void random_refusals(void)
{
  for (unsigned round = 0; round < 60 * test_factor; round++) {
    in_case("random refusals %u", round);
    fresh(once_in(3) ? 1 : 127, !once_in(4));
    wire.refuse = refuse_at_random;
    for (unsigned i = between(1, 600); i > 0; i--)
      add(0, 3 + below(2), 40, once_in(5) ? 100 : 1000);
    pw_lanes_flush(engine);
    size_t at = 0;
    for (size_t i = 0; i < wire.datagrams.count; i++) {
      while (at < wanted.count && first_difference(&wire.datagrams.item[i], &wanted.item[at]) >= 0)
        at++;
      CHECK(at < wanted.count, "datagram %zu is not one of those that were to follow", i);
      at++;
    }
    const double dropped = counted(engine, PW_C_dropSocketFull) + counted(engine, PW_C_dropSendError) +
                           counted(engine, PW_C_dropSendTooBig);
    EQUAL(counted(engine, PW_C_egressPackets), wire.datagrams.count);
    EQUAL(wire.datagrams.count + (size_t)dropped, wanted.count);
  }
}

int main(void)
{
  start_test("lanes");
  config = new_config(&memory);
  sharing();
  random_streams();
  send_arena();
  refused_offload();
  refusing_route();
  too_big();
  other_refusals();
  random_refusals();
  free_engine(engine, &memory);
  packets_free(&wanted);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
