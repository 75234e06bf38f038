/*
 * pw_tun_accept and pw_segment_row against the slow model of wire.h: whatever the kernel hands over as one superpacket
 * leaves as exactly the datagrams that a segmenting device, or RFC 791's fragmentation, would have made of it.
 */
#include "fixture.h"
#include "wire.h"

static struct memory memory;
static struct pw_engine *engine;
static struct packets wanted;

struct accepted {
  uint8_t *block; /* the arena: nothing lies behind the packet's last byte */
  size_t length;
  int result;
  const int32_t *row;
};

/* Hands a packet over as the TUN does, `padding` bytes behind its end included; the arena ends with them. */
static struct accepted accept_packet(uint8_t *p, size_t bytes, size_t padding, const struct pw_virtio_header *h)
{
  const size_t n = bytes + padding;
  random_bytes(p + bytes, padding);
  const uint32_t offset = below(64) * 2;
  struct accepted a = {.block = malloc(offset + n), .length = n, .row = pw_egress_row(engine, 0)};
  CHECK(a.block != NULL, "out of memory");
  memcpy(a.block + offset, p, n);
  engine->c.tun_arena = a.block;
  engine->c.tun_bytes = offset + n;
  a.result = pw_tun_accept(engine, 0, offset, n, h);
  EQUAL(a.row[PW_E_OFFSET], offset);
  CHECK(a.row[PW_E_LENGTH] <= (int32_t)n, "more bytes than there are"); /* less by the padding */
  EQUAL(a.row[PW_E_VERDICT], 0);
  CHECK(a.row[PW_E_HASH] >= 0, "hash has more than 31 bits");
  return a;
}

/* Carries out a verdict and compares what left with `wanted`. */
static void send_and_compare(struct accepted *a, int32_t verdict, int32_t mtu)
{
  int32_t *row = pw_egress_row(engine, 0);
  row[PW_E_VERDICT] = verdict;
  if (verdict & PW_V_FRAGMENT)
    row[PW_E_SEGMENTS] = mtu;
  forget_counters(engine);
  pw_segment_row(engine, 0);
  pw_lanes_flush(engine);
  same_packets(&wire.datagrams, &wanted, "on the wire");
  double bytes = 0;
  for (size_t i = 0; i < wanted.count; i++)
    bytes += (double)wanted.item[i].length;
  EQUAL(counted(engine, PW_C_egressPackets), wanted.count);
  EQUAL(counted(engine, PW_C_egressBytes), bytes);
  const uint32_t nexthop = (uint32_t)verdict & PW_V_ROW_MASK;
  EQUAL(engine->c.peers[nexthop * PW_PEER_WORDS], wanted.count);
  EQUAL(engine->c.peers[nexthop * PW_PEER_WORDS + 1], bytes);
  free(a->block);
  packets_clear(&wanted);
  forget_wire();
}

static struct pw_virtio_header offload_header(const struct shape *s, unsigned gso)
{
  struct pw_virtio_header h = {
      .flags = PW_VIRTIO_NEEDS_CSUM,
      .gso_type = s->protocol == UDP ? PW_GSO_UDP_L4 : s->family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6,
      .header_length = (uint16_t)header_bytes(s),
      .gso_size = (uint16_t)gso,
      .csum_start = (uint16_t)ip_header_bytes(s),
      .csum_offset = s->protocol == TCP ? 16 : 6,
  };
  if (s->protocol == TCP && once_in(3))
    h.gso_type |= PW_GSO_ECN;
  return h;
}

/* Changes two bytes of payload so that the checksum of the packet of n bytes at p computes to zero. */
static void make_checksum_zero(uint8_t *p, size_t n, const struct shape *s)
{
  const unsigned word = header_bytes(s); /* even, as every header is */
  finish(p, n, s);
  put16(p + word, add_up(get16(p + word), p + l4_checksum_at(s), 2));
  finish(p, n, s);
}

static uint32_t tag_of(const struct accepted *a, int32_t verdict)
{
  const uint32_t lane = (uint32_t)a->row[PW_E_HASH] % engine->c.send_count;
  return ((uint32_t)verdict & PW_V_ROW_MASK) | lane << 16;
}

static int32_t random_nexthop(void)
{
  return (int32_t)between(3, NEXTHOPS - 1);
}

static void superpacket(const struct shape *s, unsigned gso, bool zero_sum)
{
  static uint8_t packet[65600];
  size_t n = random_packet(packet, s);
  const int32_t verdict = random_nexthop();
  if (zero_sum) { /* of the first segment, as the model makes it */
    struct packets segments = {0};
    model_segments(&segments, packet, n, s, gso, 0);
    make_checksum_zero(segments.item[0].data, segments.item[0].length, s);
    memcpy(packet + header_bytes(s), segments.item[0].data + header_bytes(s), 2);
    packets_free(&segments);
  }
  /* the kernel leaves the pseudo header's sum in the checksum field; whatever it is must not matter */
  put16(packet + l4_checksum_at(s), below(65536));
  const struct pw_virtio_header h = offload_header(s, gso);
  struct accepted a = accept_packet(packet, n, 0, &h);
  EQUAL(a.result, 0);
  EQUAL(a.row[PW_E_GSO], gso);
  EQUAL(a.row[PW_E_HEADER], header_bytes(s));
  EQUAL(a.row[PW_E_FLAGS], s->protocol == TCP ? PW_EF_TCP : PW_EF_UDP);
  model_segments(&wanted, packet, n, s, gso, tag_of(&a, verdict));
  EQUAL(a.row[PW_E_SEGMENTS], wanted.count);
  if (zero_sum)
    EQUAL(get16(wanted.item[0].data + l4_checksum_at(s)), s->protocol == TCP ? 0 : 0xffff);
  send_and_compare(&a, verdict, 0);
}

static void superpackets(void)
{
  for (unsigned i = 0; i < 1500 * test_factor; i++) {
    const struct shape s = random_shape(once_in(6) ? 65507 : 9000);
    const unsigned least = s.payload > 20000 ? 16 : 1;
    unsigned gso = spread(65535);
    if (gso < least)
      gso = least;
    engine->c.send_count = between(1, 5);
    in_case("superpacket %u: IPv%d protocol %d, headers %u, payload %zu, gso %u", i, s.family, s.protocol,
            header_bytes(&s), s.payload, gso);
    superpacket(&s, gso, s.payload >= 2 && gso >= 2 && once_in(8));
  }
}

/* Every length around the border of the last segment, and the kernel's most common sizes. */
static void borders(void)
{
  for (int family = 4; family <= 6; family += 2) {
    for (unsigned gso = 1; gso <= 1460; gso += gso < 20 ? 1 : 180) {
      for (size_t payload = 1; payload <= 3 * gso + 1; payload += gso < 20 ? 1 : gso / 3) {
        struct shape s = {.family = family, .protocol = payload % 2 ? TCP : UDP, .payload = payload};
        in_case("border: IPv%d protocol %d, payload %zu, gso %u", family, s.protocol, payload, gso);
        superpacket(&s, gso, false);
      }
    }
  }
}

/* More segments than the send arena holds, more iovecs and entries than a lane holds. */
static void overflowing_arenas(void)
{
  struct shape s = {.family = 4, .protocol = TCP, .l4_options = 40, .payload = 65535 - 80};
  engine->c.send_count = 1;
  in_case("65,455 segments of one byte");
  superpacket(&s, 1, false);
  s.protocol = UDP;
  s.family = 6;
  s.l4_options = 0;
  s.payload = 60001;
  in_case("6,001 segments of ten bytes");
  superpacket(&s, 10, false);
  in_case("6,001 segments without UDP_SEGMENT");
  engine->c.udp_segments = 1;
  superpacket(&s, 10, false);
  engine->c.udp_segments = wire.most_segments = 127;
}

/* Fragments of one segment that use the whole send arena: the segment's own header lies in it. */
static void overflowing_fragments(void)
{
  static uint8_t packet[65600];
  struct shape s = {.family = 4, .protocol = UDP, .ip_options = 40, .payload = 64000};
  in_case("a segment of 60,000 bytes in fragments of 16");
  engine->c.send_count = 1;
  const size_t n = random_packet(packet, &s);
  put16(packet + 6, 0);
  const struct pw_virtio_header h = offload_header(&s, 60000);
  struct packets segments = {0};
  struct accepted a = accept_packet(packet, n, 0, &h);
  model_segments(&segments, packet, n, &s, 60000, 0);
  for (size_t k = 0; k < segments.count; k++)
    model_fragments(&wanted, segments.item[k].data, segments.item[k].length, 60 + 16, tag_of(&a, 3));
  pw_send_room(engine, 16); /* an earlier packet's: the arena's second round then lies askew over the header */
  send_and_compare(&a, 3 | PW_V_FRAGMENT, 60 + 16);
  packets_free(&segments);
}

/* Single packets, with the checksum complete or left to the device. */
static void single_packets(void)
{
  static uint8_t packet[65600];
  for (unsigned i = 0; i < 2000 * test_factor; i++) {
    const struct shape s = random_shape(once_in(6) ? 65507 : 1500);
    const bool partial = once_in(2), zero = s.payload >= 2 && once_in(4), plain = !partial && once_in(2);
    const size_t n = random_packet(packet, &s);
    const unsigned l4 = ip_header_bytes(&s), at = l4_checksum_at(&s);
    in_case("packet %u: IPv%d protocol %d, %zu bytes%s%s", i, s.family, s.protocol, n, partial ? ", partial" : "",
            zero ? ", checksum computes to zero" : "");
    if (zero) {
      make_checksum_zero(packet, n, &s);
      EQUAL(get16(packet + at), s.protocol == TCP ? 0 : 0xffff);
    }
    struct pw_virtio_header h = {0};
    packets_add(&wanted, packet, n, 0);
    if (partial) {
      h = (struct pw_virtio_header){.flags = PW_VIRTIO_NEEDS_CSUM, .csum_start = (uint16_t)l4,
                                    .csum_offset = (uint16_t)(at - l4)};
      put16(packet + at, pseudo_header(packet, s.protocol, (unsigned)(n - l4)));
    }
    const int32_t verdict = random_nexthop();
    struct accepted a = accept_packet(packet, n, once_in(4) ? between(1, 40) : 0, plain ? NULL : &h);
    EQUAL(a.result, 0);
    EQUAL(a.row[PW_E_GSO], 0);
    EQUAL(a.row[PW_E_FLAGS], 0);
    EQUAL(a.row[PW_E_SEGMENTS], 1);
    wanted.item[0].tag = tag_of(&a, verdict);
    send_and_compare(&a, verdict, 0);
  }
}

/* One IPv4 packet, which may be a fragment already, into fragments of at most mtu bytes. */
static void fragments(void)
{
  static uint8_t packet[65600];
  for (unsigned i = 0; i < 1500 * test_factor; i++) {
    struct shape s = random_shape(once_in(6) ? 65507 : 4000);
    if (s.family == 6)
      s.ip_options = 0;
    s.family = 4;
    size_t n = random_packet(packet, &s);
    const unsigned header = ip_header_bytes(&s);
    put16(packet + 6, 0);
    if (once_in(3)) {
      const bool more = once_in(2);
      if (more)
        n -= (n - header) % 8;
      const unsigned blocks = (unsigned)(n - header + 7) / 8;
      put16(packet + 6, (more ? 0x2000 : 0) | (blocks < 0x1fff ? below(0x1fff - blocks) : 0));
    }
    finish(packet, n, &s); /* the L4 checksum of a fragment is nobody's business here */
    const unsigned mtu = header + (once_in(4) ? below(16) : 8 + spread((unsigned)n));
    in_case("fragments %u: %zu bytes, header %u, flags %#x, mtu %u", i, n, header, get16(packet + 6), mtu);
    const int32_t verdict = random_nexthop() | PW_V_FRAGMENT;
    struct accepted a = accept_packet(packet, n, once_in(4) ? between(1, 40) : 0, NULL);
    EQUAL(a.result, 0);
    const bool refused = n > mtu && mtu < header + 8;
    if (!refused)
      model_fragments(&wanted, packet, n, mtu, tag_of(&a, verdict));
    const size_t pieces = wanted.count > 1 ? wanted.count : 0;
    send_and_compare(&a, verdict, (int32_t)mtu);
    EQUAL(counted(engine, PW_C_dropTooBig), refused);
    EQUAL(counted(engine, PW_C_fragmentsSent), pieces);
  }
}

/* Superpackets of packets without DF whose segments are too big for the path: segment first, then fragment each. */
static void fragmented_superpackets(void)
{
  static uint8_t packet[65600];
  for (unsigned i = 0; i < 600 * test_factor; i++) {
    struct shape s = random_shape(once_in(6) ? 65507 : 12000);
    if (s.family == 6)
      s.ip_options = 0;
    s.family = 4;
    const size_t n = random_packet(packet, &s);
    put16(packet + 6, 0);
    finish(packet, n, &s);
    const unsigned gso = between(200, 1600), ip = ip_header_bytes(&s), l4 = header_bytes(&s) - ip;
    const unsigned mtu = once_in(6) ? ip + l4 + below(12) : between(ip + l4 + 8, 1600);
    in_case("fragmented superpacket %u: payload %zu, gso %u, mtu %u", i, s.payload, gso, mtu);
    struct packets segments = {0};
    const struct pw_virtio_header h = offload_header(&s, gso);
    struct accepted a = accept_packet(packet, n, 0, &h);
    EQUAL(a.result, 0);
    const int32_t verdict = random_nexthop() | PW_V_FRAGMENT;
    model_segments(&segments, packet, n, &s, gso, 0);
    size_t refused = 0;
    for (size_t k = 0; k < segments.count; k++) {
      if (segments.item[k].length > mtu && mtu < ip + l4 + 8)
        refused++;
      else
        model_fragments(&wanted, segments.item[k].data, segments.item[k].length, mtu, tag_of(&a, verdict));
    }
    send_and_compare(&a, verdict, (int32_t)mtu);
    EQUAL(counted(engine, PW_C_dropTooBig), refused);
    packets_free(&segments);
  }
}

/* The hash knows addresses, protocol and ports and nothing else; the two directions differ. */
static void flow_hash(void)
{
  static uint8_t packet[2000], other[2000];
  unsigned same = 0;
  for (unsigned i = 0; i < 3000; i++) {
    struct shape s = random_shape(1500);
    const size_t n = random_packet(packet, &s);
    const unsigned l4 = ip_header_bytes(&s), address = s.family == 4 ? 4 : 16, at = s.family == 4 ? 12 : 8;
    struct pw_ip ip;
    in_case("hash %u: IPv%d protocol %d", i, s.family, s.protocol);
    EQUAL(pw_parse_ip(packet, n, &ip), 0);
    const uint32_t hash = pw_flow_hash(packet, n, &ip);
    s.payload = spread(1000);
    const size_t m = random_packet(other, &s);
    memcpy(other + at, packet + at, 2 * address);
    memcpy(other + l4, packet + l4, 4);
    EQUAL(pw_parse_ip(other, m, &ip), 0);
    EQUAL(pw_flow_hash(other, m, &ip), hash);
    memcpy(other + at, packet + at + address, address);
    memcpy(other + at + address, packet + at, address);
    same += pw_flow_hash(other, m, &ip) == hash;
    memcpy(other + at, packet + at, 2 * address);
    other[l4 + below(4)] ^= (uint8_t)(1u << below(8));
    same += pw_flow_hash(other, m, &ip) == hash;
  }
  in_case("hash");
  CHECK(same <= 1, "%u of 6000 different flows have the hash of the first", same);
}

int main(void)
{
  start_test("segment");
  pw_checksum_init(NULL);
  struct pw_config c = new_config(&memory);
  c.send_count = 5;
  engine = new_engine(&c);
  borders();
  superpackets();
  overflowing_arenas();
  overflowing_fragments();
  single_packets();
  fragments();
  fragmented_superpackets();
  flow_hash();
  free_engine(engine, &memory);
  packets_free(&wanted);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
