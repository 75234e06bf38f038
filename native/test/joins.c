/*
 * What is joined and what is not, case by case: a bulk stream becomes one write, and every rule of native/coalesce.c
 * ends or prevents a run.
 */
#include "joining.h"

/* Delivers what arrived; `writes` are the segments of each write to the TUN, in any order. */
static void expect_writes(const unsigned *writes, size_t count)
{
  unsigned got[64] = {0}, wanted[64] = {0};
  judge_checksums();
  deliver_all();
  CHECK(wire.tun.count == count, "%zu writes to the TUN, expected %zu", wire.tun.count, count);
  for (size_t i = 0; i < count; i++) {
    const struct pw_virtio_header *h = (const struct pw_virtio_header *)(const void *)wire.tun.item[i].data;
    const size_t payload = wire.tun.item[i].length - PW_VIRTIO_BYTES - h->header_length;
    const size_t segments = h->gso_type ? (payload + h->gso_size - 1) / h->gso_size : 1;
    got[segments < 64 ? segments : 0]++;
    wanted[writes[i] < 64 ? writes[i] : 0]++;
  }
  for (unsigned n = 0; n < 64; n++)
    CHECK(got[n] == wanted[n], "%u writes of %u segments, expected %u", got[n], n, wanted[n]);
  expect_everything();
}
#define WRITES(...) expect_writes((const unsigned[]){__VA_ARGS__}, sizeof((const unsigned[]){__VA_ARGS__}) / sizeof(unsigned))

static unsigned slot_of(const struct stream *s)
{
  uint8_t packet[200];
  struct pw_ip ip;
  memcpy(packet, s->header, sizeof s->header);
  finish(packet, header_bytes(&s->shape) + 1, &s->shape);
  EQUAL(pw_parse_ip(packet, header_bytes(&s->shape) + 1, &ip), 0);
  return pw_flow_hash(packet, header_bytes(&s->shape) + 1, &ip) % PW_FLOW_SLOTS;
}

/* Flows that share a slot end each other's runs. */
static bool shares_slot(const struct stream *flows, int newest)
{
  for (int i = 0; i < newest; i++) {
    if (slot_of(&flows[i]) == slot_of(&flows[newest]))
      return true;
  }
  return false;
}

static void bulk(int family, int protocol)
{
  const unsigned header = (family == 4 ? 20 : 40) + (protocol == TCP ? 32 : 8);
  struct stream s = start_stream(family, protocol, 0);
  in_case("bulk, IPv%d protocol %d", family, protocol);
  fresh();
  for (unsigned i = 0; i < 43; i++)
    next(&s, 1400, 0);
  next(&s, 700, PUSH); /* the last may be shorter */
  WRITES(44);

  in_case("datagrams that came one by one, IPv%d protocol %d", family, protocol);
  fresh();
  for (unsigned i = 0; i < 20; i++)
    next(&s, 1000, ALONE);
  WRITES(20);

  in_case("bytes of one superpacket, IPv%d protocol %d", family, protocol);
  fresh();
  const unsigned most = (65535 - header) / 4000;
  for (unsigned i = 0; i < most + 1; i++)
    next(&s, 4000, 0);
  WRITES(most, 1);

  in_case("a shorter one ends a run, a longer one starts another, IPv%d protocol %d", family, protocol);
  fresh();
  for (unsigned i = 0; i < 3; i++)
    next(&s, 1000, 0);
  next(&s, 999, 0);
  next(&s, 999, 0);
  next(&s, 999, 0);
  next(&s, 1000, 0);
  WRITES(4, 2, 1);

  in_case("four flows interleaved, IPv%d protocol %d", family, protocol);
  fresh();
  struct stream flows[4];
  for (int i = 0; i < 4; i++) {
    do
      flows[i] = start_stream(family, protocol, i);
    while (shares_slot(flows, i));
  }
  for (unsigned i = 0; i < 40; i++)
    next(&flows[i % 4], 1200, 0);
  WRITES(10, 10, 10, 10);

  in_case("what is wrong is never joined, IPv%d protocol %d", family, protocol);
  for (unsigned broken = 0; broken < 5; broken++) {
    fresh();
    for (unsigned i = 0; i < 5; i++)
      next(&s, 1000, i == broken ? BROKEN : 0);
    if (broken == 0 || broken == 4)
      WRITES(4, 1);
    else if (broken == 2)
      WRITES(2, 1, 2);
    else
      WRITES(1, 1, 3);
  }

  in_case("padding stays behind, IPv%d protocol %d", family, protocol);
  fresh();
  for (unsigned i = 0; i < 4; i++)
    next(&s, 18, PADDED);
  WRITES(4);
}

static void tcp_rules(void)
{
  struct stream s = start_stream(4, TCP, 0);
  in_case("a wrong IPv4 header checksum");
  fresh();
  for (unsigned i = 0; i < 5; i++)
    next(&s, 1000, i == 2 ? BROKEN_HEADER : 0);
  WRITES(2, 1, 2);

  in_case("PSH ends a run");
  fresh();
  for (unsigned i = 1; i <= 6; i++)
    next(&s, 1000, i % 3 ? 0 : PUSH);
  WRITES(3, 3);

  in_case("a first packet with PSH starts none");
  fresh();
  next(&s, 1000, PUSH);
  next(&s, 1000, 0);
  next(&s, 1000, 0);
  WRITES(1, 2);

  in_case("a gap, a repetition and a step back");
  fresh();
  next(&s, 1000, 0);
  s.sequence += 1000;
  next(&s, 1000, 0);
  s.sequence -= 1000;
  next(&s, 1000, 0);
  s.sequence -= 3000;
  next(&s, 1000, 0);
  WRITES(1, 1, 1, 1);

  in_case("segments of one run");
  fresh();
  for (unsigned i = 0; i < 600; i++)
    next(&s, 2, 0);
  WRITES(512, 88);

  static const uint8_t flags[] = {0x01, 0x02, 0x04, 0x20, 0x80};
  for (unsigned i = 0; i < sizeof flags; i++) {
    in_case("flags %#x are never joined", flags[i]);
    fresh();
    struct stream odd = s;
    next(&s, 1000, 0);
    odd.header[33] = 0x10 | flags[i];
    odd.sequence = s.sequence;
    next(&odd, 1000, 0);
    odd.header[33] = 0x10;
    next(&odd, 1000, 0);
    WRITES(1, 1, 1);
  }

  /* offsets of IPv4 + TCP bytes that must agree: service, TTL, acknowledgement, window, urgent, NS, options */
  static const unsigned bytes[] = {1, 8, 28, 31, 34, 35, 38, 43, 51};
  for (unsigned i = 0; i < sizeof bytes / sizeof *bytes; i++) {
    in_case("another byte %u", bytes[i]);
    fresh();
    struct stream changed = s;
    changed.header[bytes[i]] ^= 1;
    next(&s, 1000, 0);
    changed.sequence = s.sequence;
    next(&changed, 1000, 0);
    next(&changed, 1000, 0);
    WRITES(1, 2);
  }
}

/* Flows that differ in one field only and yet share a slot of the flow table. */
static void neighbours(int family, int protocol)
{
  const unsigned l4 = family == 4 ? 20 : 40, at = family == 4 ? 12 : 8, bytes = family == 4 ? 4 : 16;
  const struct {
    const char *what;
    unsigned from, to;
  } fields[] = {{"source", at, at + bytes},
                {"destination", at + bytes, at + 2 * bytes},
                {"source port", l4, l4 + 2},
                {"destination port", l4 + 2, l4 + 4}};
  for (unsigned i = 0; i < 4; i++) {
    in_case("another %s, IPv%d protocol %d", fields[i].what, family, protocol);
    struct stream flows[2] = {start_stream(family, protocol, 0)};
    do {
      flows[1] = flows[0];
      flows[1].flow = 1;
      flows[1].header[between(fields[i].from, fields[i].to - 1)] ^= (uint8_t)between(1, 255);
      flows[1].header[fields[i].to - 1] ^= (uint8_t)between(0, 255);
    } while (!memcmp(flows[0].header, flows[1].header, sizeof flows[0].header) || !shares_slot(flows, 1));
    fresh();
    next(&flows[0], 500, 0);
    flows[1].sequence = flows[0].sequence;
    flows[1].id = flows[0].id;
    next(&flows[1], 500, 0);
    next(&flows[1], 500, 0);
    WRITES(1, 2);
  }
}

static void identification(void)
{
  static const struct {
    bool fragmentable;
    unsigned step, joined;
  } cases[] = {{false, 0, 6}, {false, 1, 6}, {false, 77, 6}, {true, 1, 6}, {true, 0, 1}, {true, 2, 1}};
  for (unsigned i = 0; i < 6; i++) {
    in_case("%s, id step %u", cases[i].fragmentable ? "without DF" : "DF", cases[i].step);
    fresh();
    struct stream s = start_stream(4, TCP, 0);
    s.id_step = cases[i].step;
    if (cases[i].fragmentable)
      put16(s.header + 6, 0);
    for (unsigned n = 0; n < 6; n++)
      next(&s, 1000, 0);
    if (cases[i].joined == 6)
      WRITES(6);
    else
      WRITES(1, 1, 1, 1, 1, 1);
  }
}

/* Four datagrams whose sums come out right although the UDP header is not what segmentation would write. */
static void odd_udp_headers(int family, bool length)
{
  static uint8_t packet[200];
  struct shape s = {.family = family, .protocol = UDP, .payload = 100};
  const unsigned l4 = ip_header_bytes(&s), n = header_bytes(&s) + 100;
  in_case("UDP over IPv%d: %s", family, length ? "a length that is not the packet's" : "a checksum that is 0 and right");
  fresh();
  random_packet(packet, &s);
  if (family == 4)
    put16(packet + 6, 0x4000);
  for (unsigned i = 0; i < 4; i++) {
    random_bytes(packet + l4 + 8, 100);
    finish(packet, n, &s);
    if (length)
      put16(packet + l4 + 4, 90);
    put16(packet + l4 + 6, 0);
    /* a payload word takes what is missing to all ones, with the checksum field left at 0 or not */
    if (length)
      put16(packet + l4 + 6, 0x1234);
    put16(packet + l4 + 8, 0);
    put16(packet + l4 + 8, 0xffff - add_up(pseudo_header(packet, UDP, n - l4), packet + l4, n - l4));
    EQUAL(add_up(pseudo_header(packet, UDP, n - l4), packet + l4, n - l4), 0xffff);
    if (family == 4) {
      put16(packet + 10, 0);
      put16(packet + 10, 0xffff - add_up(0, packet, 20));
    }
    arrive(packet, n, 0, &s, 0, 0, true);
  }
  WRITES(1, 1, 1, 1);
}

static void udp_rules(void)
{
  for (int family = 4; family <= 6; family += 2) {
    odd_udp_headers(family, false);
    odd_udp_headers(family, true);
  }
  struct stream s = start_stream(4, UDP, 0);
  in_case("64 datagrams of a run");
  fresh();
  for (unsigned i = 0; i < 100; i++)
    next(&s, 100, 0);
  WRITES(64, 36);
  in_case("no checksum, no run");
  for (int family = 4; family <= 6; family += 2) {
    fresh();
    struct stream bare = start_stream(family, UDP, 0);
    for (unsigned i = 0; i < 3; i++)
      next(&bare, 100, NO_CHECKSUM);
    WRITES(1, 1, 1);
  }
  in_case("fragments, whatever their sums are");
  fresh();
  struct stream fragment = start_stream(4, UDP, -1);
  put16(fragment.header + 6, 0x2000);
  for (unsigned i = 0; i < 3; i++)
    next(&fragment, 96, 0);
  WRITES(1, 1, 1);
  in_case("two senders, one flow");
  fresh();
  for (unsigned i = 0; i < 6; i++) {
    s.sender = i < 3 ? 2 : 4;
    next(&s, 100, 0);
  }
  WRITES(3, 3);
  in_case("one sender, two messages");
  fresh();
  for (unsigned i = 0; i < 6; i++) {
    next(&s, 100, 0);
    if (i == 2)
      close_message();
  }
  WRITES(6);
}

int main(void)
{
  start_test("joins");
  pw_checksum_init(NULL);
  config = new_config(&memory);
  config.udp_fd = UDP_FD;
  for (int family = 4; family <= 6; family += 2) {
    bulk(family, TCP);
    bulk(family, UDP);
    neighbours(family, TCP);
    neighbours(family, UDP);
  }
  tcp_rules();
  identification();
  udp_rules();
  fresh();
  free_engine(engine, &memory);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
