/*
 * Hostile bytes: random, and mutated from test/vectors/packets.txt and vxlan.txt. Every packet ends where its memory ends, so that
 * the sanitizer sees a single byte read too far; what the functions answer is held against what must always be true.
 */
#include "joining.h"

#define LONGEST 2048

static struct packets corpus, frames;

static void read_corpus(struct packets *out, const char *path, size_t least)
{
  static char line[2 * LONGEST + 256];
  FILE *f = fopen(path, "r");
  CHECK(f != NULL, "cannot read %s: run it in the checkout", path);
  while (fgets(line, sizeof line, f)) {
    uint8_t bytes[LONGEST];
    size_t n = 0;
    const char *hex = strchr(line, ' ');
    unsigned byte;
    if (line[0] == '#' || !hex)
      continue;
    for (hex++; n < sizeof bytes && sscanf(hex, "%2x", &byte) == 1; hex += 2)
      bytes[n++] = (uint8_t)byte;
    packets_add(out, bytes, n, 0);
  }
  fclose(f);
  CHECK(out->count >= least, "only %zu packets in %s", out->count, path);
}

static const uint8_t interesting[] = {0x00, 0x01, 0x04, 0x06, 0x11, 0x14, 0x2c, 0x3c, 0x40, 0x45, 0x4f, 0x60, 0x7f, 0x80, 0xff};

/* A packet to try, in a block of exactly its size. */
static uint8_t *mutant(size_t *length)
{
  static uint8_t bytes[LONGEST];
  size_t n;
  if (once_in(10)) { /* random, with a plausible beginning */
    n = once_in(2) ? below(80) : below(LONGEST);
    random_bytes(bytes, n);
    if (n && !once_in(4))
      bytes[0] = (uint8_t)(once_in(2) ? 0x40 | below(16) : 0x60 | below(16));
  } else if (once_in(4)) { /* right in everything, to begin with */
    const struct shape s = random_shape(LONGEST);
    n = random_packet(bytes, &s);
  } else {
    const struct packet *seed = &corpus.item[below((unsigned)corpus.count)];
    n = seed->length;
    memcpy(bytes, seed->data, n);
  }
  for (unsigned i = below(5); i > 0 && n; i--) {
    const unsigned at = once_in(2) && n > 60 ? below(60) : below((unsigned)n);
    if (once_in(3))
      bytes[at] ^= (uint8_t)(1u << below(8));
    else
      bytes[at] = interesting[below(sizeof interesting)];
  }
  if (once_in(4) && n) /* cut */
    n = below((unsigned)n + 1);
  if (once_in(8)) { /* longer than it says */
    const size_t more = between(1, 64);
    if (n + more <= LONGEST) {
      random_bytes(bytes + n, more);
      n += more;
    }
  }
  if (n >= 20 && !once_in(3) && bytes[0] >> 4 == 4) /* a length that fits, so that the next check is reached */
    put16(bytes + 2, (unsigned)n);
  uint8_t *exact = malloc(n ? n : 1);
  CHECK(exact != NULL, "out of memory");
  memcpy(exact, bytes, n);
  *length = n;
  return exact;
}

static void parsing(void)
{
  unsigned accepted = 0;
  for (unsigned i = 0; i < 60000 * test_factor; i++) {
    size_t n;
    uint8_t *p = mutant(&n);
    struct pw_ip ip;
    in_case("pw_parse_ip %u, %zu bytes", i, n);
    if (pw_parse_ip(p, n, &ip) == 0) {
      accepted++;
      CHECK(ip.family == p[0] >> 4, "family %u", ip.family);
      CHECK(ip.length <= n && ip.l4 <= ip.length && ip.l4 >= (ip.family == 4 ? 20 : 40), "length %u, L4 at %u",
            ip.length, ip.l4);
      EQUAL(ip.length, ip.family == 4 ? get16(p + 2) : 40 + get16(p + 4));
      EQUAL(ip.options, ip.l4 != (ip.family == 4 ? 20 : 40));
      CHECK(pw_flow_hash(p, n, &ip) >> 31 == 0, "hash has more than 31 bits");
      (void)pw_pseudo_sum(p, &ip);
    }
    free(p);
  }
  in_case("pw_parse_ip");
  CHECK(accepted > 5000, "only %u packets were accepted: the mutations are too wild to test anything", accepted);
}

static struct pw_virtio_header hostile_header(const uint8_t *p, size_t n)
{
  static const uint8_t types[] = {PW_GSO_NONE, PW_GSO_TCPV4, PW_GSO_TCPV6, PW_GSO_UDP_L4, 3, 0x81, 0x84, 0x80, 0x7f};
  struct pw_virtio_header h;
  random_bytes((uint8_t *)&h, sizeof h);
  if (once_in(10))
    return h;
  h.flags = (uint8_t)below(4);
  h.gso_type = types[below(sizeof types)];
  h.gso_size = (uint16_t)(once_in(10) ? 0 : spread(65535));
  h.csum_start = (uint16_t)(once_in(2) ? 20 : below((unsigned)n + 2));
  h.csum_offset = (uint16_t)(once_in(3) ? below((unsigned)n + 2) : once_in(2) ? 6 : 16);
  if (n && once_in(2)) { /* what the kernel would say */
    const bool tcp = n > 9 && (p[0] >> 4 == 4 ? p[9] : p[6]) == TCP;
    h.gso_type = !tcp ? PW_GSO_UDP_L4 : p[0] >> 4 == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6;
  }
  return h;
}

/* Whatever the row and TypeScript's words in it say, only what was received is sent. */
static void accepting_and_sending(bool vxlan)
{
  struct memory memory;
  struct pw_config c = new_config(&memory);
  c.send_count = 3;
  c.vxlan = vxlan;
  struct pw_engine *e = new_engine(&c);
  const size_t room = e->encap_bytes; /* in front of the packet, exactly as much as may be written */
  unsigned superpackets = 0;
  for (unsigned i = 0; i < 60000 * test_factor; i++) {
    size_t n;
    uint8_t *p = mutant(&n);
    const struct pw_virtio_header h = hostile_header(p, n);
    int32_t *r = pw_egress_row(e, 0);
    in_case("pw_tun_accept %u, %zu bytes, type %u, size %u, start %u, offset %u", i, n, h.gso_type, h.gso_size,
            h.csum_start, h.csum_offset);
    if (vxlan) {
      uint8_t *roomy = malloc(room + n + !n);
      CHECK(roomy != NULL, "out of memory");
      memcpy(roomy + room, p, n);
      free(p);
      p = roomy;
    }
    e->c.tun_arena = p;
    e->c.tun_bytes = room + n;
    const int result = pw_tun_accept(e, 0, (uint32_t)room, n, once_in(10) ? NULL : &h);
    EQUAL(!!(r[PW_E_FLAGS] & PW_EF_BAD), result != 0);
    CHECK(r[PW_E_LENGTH] <= (int)n && (result || r[PW_E_LENGTH] >= 20), "length %d", r[PW_E_LENGTH]);
    CHECK(r[PW_E_SEGMENTS] >= 1, "%d segments", r[PW_E_SEGMENTS]);
    if (r[PW_E_GSO]) {
      superpackets++;
      CHECK(r[PW_E_HEADER] >= 28 && r[PW_E_HEADER] < (int)n, "header of %d bytes", r[PW_E_HEADER]);
      EQUAL(r[PW_E_SEGMENTS], ((int)n - r[PW_E_HEADER] + r[PW_E_GSO] - 1) / r[PW_E_GSO]);
    }
    const int32_t segments = r[PW_E_SEGMENTS];
    r[PW_E_VERDICT] = once_in(4) ? (int32_t)random_word() : (int32_t)below(NEXTHOPS + 2);
    if (once_in(3)) {
      r[PW_E_VERDICT] |= PW_V_FRAGMENT;
      r[PW_E_SEGMENTS] = once_in(4) ? (int32_t)random_word() : (int32_t)between(20, 1500);
    }
    const bool plain = !(r[PW_E_VERDICT] & PW_V_FRAGMENT);
    const uint32_t row = (uint32_t)r[PW_E_VERDICT] & PW_V_ROW_MASK;
    forget_counters(e);
    pw_segment_row(e, 0);
    pw_lanes_flush(e);
    if (row < 3 || row >= NEXTHOPS || result || n < 20)
      EQUAL(wire.datagrams.count, 0);
    else if (plain)
      EQUAL(wire.datagrams.count, segments);
    EQUAL(counted(e, PW_C_egressPackets), wire.datagrams.count);
    for (size_t k = 0; k < wire.datagrams.count; k++)
      CHECK(wire.datagrams.item[k].length <= room + n + 60, "a datagram of %zu bytes", wire.datagrams.item[k].length);
    forget_wire();
    free(p);
  }
  in_case("pw_tun_accept");
  CHECK(superpackets > 1000, "only %u superpackets were accepted", superpackets);
  e->c.tun_arena = memory.tun;
  free_engine(e, &memory);
}

/* A message that a sender could have sent, nearly: what would be joined, with a few bytes changed. Returns its bytes. */
static size_t spoiled_stream(uint8_t *bytes, size_t *one)
{
  struct stream s = start_stream(once_in(2) ? 4 : 6, once_in(2) ? TCP : UDP, 0);
  const size_t payload = spread(200);
  for (unsigned k = between(2, 16); k > 0; k--)
    next(&s, payload, once_in(10) ? PUSH : 0);
  const size_t n = message_bytes;
  memcpy(bytes, message, n);
  *one = in[0].length;
  message_bytes = 0;
  for (; in_count; in_count--)
    free(in[in_count - 1].data);
  for (unsigned k = below(4); k > 0; k--)
    bytes[below((unsigned)n)] = once_in(2) ? (uint8_t)random_word() : interesting[below(sizeof interesting)];
  return n;
}

/* Mutants, mostly repeated. */
static size_t mutants(uint8_t *bytes, size_t *one)
{
  size_t n = 0;
  uint8_t *p = mutant(one);
  for (unsigned k = between(1, 16); k > 0; k--) {
    if (once_in(6)) {
      free(p);
      p = mutant(one);
    }
    memcpy(bytes + n, p, *one);
    n += *one;
  }
  free(p);
  return n;
}

/* One received message, cut at any UDP_GRO size, with every kind of verdict. */
static void coalescing(void)
{
  unsigned joined = 0;
  for (unsigned i = 0; i < 20000 * test_factor; i++) {
    size_t one;
    uint8_t *bytes = malloc(16 * LONGEST);
    CHECK(bytes != NULL, "out of memory");
    const size_t n = once_in(2) ? spoiled_stream(bytes, &one) : mutants(bytes, &one);
    bytes = realloc(bytes, n ? n : 1);
    CHECK(bytes != NULL, "out of memory");
    engine->c.udp_arena = bytes;
    int32_t *m = pw_message_row(engine, 0);
    m[PW_M_LENGTH] = (int32_t)n;
    m[PW_M_GRO] = once_in(8) ? 0 : once_in(8) ? (int32_t)between(1, 300) : (int32_t)one;
    engine->receive[0].msg_hdr.msg_flags = once_in(10) ? MSG_TRUNC : 0;
    engine->messages = 1;
    engine->parse_message = engine->parse_offset = 0;
    in_case("pw_coalesce %u: %zu bytes in pieces of %d", i, n, m[PW_M_GRO]);
    forget_counters(engine);
    double delivered = 0;
    do {
      const int rows = pw_coalesce(engine);
      for (int k = 0; k < rows; k++) {
        int32_t *r = pw_ingress_row(engine, (unsigned)k);
        CHECK(r[PW_I_OFFSET] >= 0 && r[PW_I_LENGTH] >= 20 && (size_t)(r[PW_I_OFFSET] + r[PW_I_LENGTH]) <= n,
              "row of %d bytes at %d", r[PW_I_LENGTH], r[PW_I_OFFSET]);
        r[PW_I_VERDICT] = once_in(3) ? (int32_t)random_word() : 1;
        delivered += r[PW_I_VERDICT] > 0 ? r[PW_I_SEGMENTS] : 0;
      }
      pw_ingress_write(engine);
    } while (engine->parse_message < engine->messages);
    EQUAL(counted(engine, PW_C_ingressPackets), delivered);
    for (size_t w = 0; w < wire.tun.count; w++) {
      const struct packet *t = &wire.tun.item[w];
      struct pw_virtio_header h;
      struct packets cut = {0};
      memcpy(&h, t->data, sizeof h);
      if (h.gso_type) {
        cut_superpacket(&h, t->data + sizeof h, t->length - sizeof h, &cut);
        joined++;
      }
      packets_free(&cut);
    }
    forget_wire();
    free(bytes);
  }
  in_case("pw_coalesce");
  CHECK(joined > 3000, "only %u superpackets were made", joined);
  engine->c.udp_arena = memory.udp;
}

/* A captured frame, or one around a mutant, with a few bytes changed. In a block of exactly its size. */
static uint8_t *spoiled_frame(size_t *length)
{
  static uint8_t bytes[PW_VXLAN_BYTES + 2 * LONGEST];
  size_t n;
  if (once_in(2)) {
    const struct packet *seed = &frames.item[below((unsigned)frames.count)];
    n = seed->length;
    memcpy(bytes, seed->data, n);
    memcpy(bytes, engine->c.vtep, once_in(3) ? 8 : PW_VTEP_BYTES);
  } else {
    uint8_t *p = mutant(&n);
    memcpy(bytes + PW_VXLAN_BYTES, p, n);
    vxlan_prefix(bytes, engine->c.vtep, n ? p : bytes);
    free(p);
    struct pw_ip ip;
    if (once_in(2) && !pw_parse_ip(bytes + PW_VXLAN_BYTES, n, &ip) && !ip.fragment && ip.l4 + 20u <= ip.length) {
      const unsigned field = ip.l4 + (ip.protocol == TCP ? 16 : 6); /* unfinished, so that more code is reached */
      pw_put_sum(bytes + PW_VXLAN_BYTES + field,
                 pw_fold(pw_pseudo_sum(bytes + PW_VXLAN_BYTES, &ip) + htons((uint16_t)(ip.length - ip.l4))));
    }
    n += PW_VXLAN_BYTES;
  }
  for (unsigned k = below(3); k > 0 && n; k--)
    bytes[below(once_in(3) ? (unsigned)n : n < 64 ? (unsigned)n : 64)] = (uint8_t)random_word();
  if (once_in(5))
    n = below((unsigned)n + 1);
  uint8_t *exact = malloc(n ? n : 1);
  CHECK(exact != NULL, "out of memory");
  memcpy(exact, bytes, n);
  *length = n;
  return exact;
}

/* One received message of frames, whatever UDP_GRO and the outer header say of it. */
static void receiving_frames(void)
{
  unsigned delivered_in_all = 0, whole = 0;
  engine->c.vxlan = true;
  engine->marks = true;
  engine->encap_bytes = PW_VXLAN_BYTES;
  engine->c.inner_mtu = engine->cut_mtu = 200; /* many captured packets are above it */
  for (unsigned i = 0; i < 30000 * test_factor; i++) {
    size_t n;
    uint8_t *bytes = spoiled_frame(&n);
    engine->c.udp_arena = bytes;
    engine->c.virtio_bytes = once_in(3) ? 0 : PW_VIRTIO_BYTES;
    engine->c.tun_tcp = engine->c.virtio_bytes && !once_in(3);
    engine->c.tun_udp = engine->c.virtio_bytes && !once_in(3);
    int32_t *m = pw_message_row(engine, 0);
    m[PW_M_LENGTH] = (int32_t)n;
    m[PW_M_GRO] = once_in(2) || n < 2 ? 0 : (int32_t)between(1, (unsigned)n - 1);
    engine->message_tos[0] = (uint8_t)random_word();
    engine->receive[0].msg_hdr.msg_flags = once_in(10) ? MSG_TRUNC : 0;
    engine->messages = 1;
    engine->parse_message = engine->parse_offset = 0;
    in_case("frames %u: %zu bytes in pieces of %d", i, n, m[PW_M_GRO]);
    forget_counters(engine);
    double delivered = 0;
    do {
      const int rows = pw_coalesce(engine);
      for (int k = 0; k < rows; k++) {
        int32_t *r = pw_ingress_row(engine, (unsigned)k);
        CHECK(r[PW_I_OFFSET] >= 0 && r[PW_I_LENGTH] >= 16 && (size_t)(r[PW_I_OFFSET] + r[PW_I_LENGTH]) <= n,
              "row of %d bytes at %d", r[PW_I_LENGTH], r[PW_I_OFFSET]);
        if (r[PW_I_FLAGS] & PW_IF_PROBE)
          continue;
        CHECK(r[PW_I_OFFSET] >= PW_VXLAN_BYTES && r[PW_I_LENGTH] >= 20, "row of %d bytes", r[PW_I_LENGTH]);
        whole += !!(r[PW_I_FLAGS] & PW_IF_WHOLE);
        r[PW_I_VERDICT] = once_in(4) ? (int32_t)random_word() : 1;
        delivered += r[PW_I_VERDICT] > 0 ? r[PW_I_SEGMENTS] : 0;
      }
      pw_ingress_write(engine);
    } while (engine->parse_message < engine->messages);
    EQUAL(counted(engine, PW_C_ingressPackets), delivered);
    delivered_in_all += (unsigned)delivered;
    for (size_t w = 0; w < wire.tun.count; w++) {
      const struct packet *t = &wire.tun.item[w];
      struct pw_virtio_header h = {0};
      if (!engine->c.virtio_bytes)
        continue;
      memcpy(&h, t->data, sizeof h);
      CHECK(!h.flags || h.csum_start + h.csum_offset + 2u <= t->length - sizeof h, "checksum outside of the packet");
      CHECK(!h.gso_type || (h.gso_size && h.header_length < t->length - sizeof h), "superpacket without segments");
    }
    forget_wire();
    free(bytes);
  }
  in_case("frames");
  CHECK(delivered_in_all > 5000 && whole > 500, "only %u packets, %u superpackets", delivered_in_all, whole);
  engine->c.udp_arena = memory.udp;
}

/* One received message behind an outer IP header that may say anything. */
static void receiving_ip_in_ip(void)
{
  unsigned delivered_in_all = 0;
  engine->c.vxlan = false;
  engine->encap_bytes = 0;
  engine->c.raw_ip = true;
  for (unsigned i = 0; i < 30000 * test_factor; i++) {
    const struct packet *inner = &corpus.item[below((unsigned)corpus.count)];
    const unsigned header = once_in(4) ? 20 + 4 * below(11) : 20;
    size_t n = header + inner->length;
    uint8_t *bytes = malloc(n);
    CHECK(bytes != NULL, "out of memory");
    memset(bytes, 0, header);
    bytes[0] = (uint8_t)(0x40 | header / 4);
    bytes[1] = (uint8_t)random_word();
    memcpy(bytes + header, inner->data, inner->length);
    for (unsigned k = below(3); k > 0; k--)
      bytes[below(once_in(2) ? (unsigned)n : 24)] = (uint8_t)random_word();
    if (once_in(5)) { /* ends where its memory ends */
      n = between(1, (unsigned)n);
      uint8_t *shorter = malloc(n);
      CHECK(shorter != NULL, "out of memory");
      memcpy(shorter, bytes, n);
      free(bytes);
      bytes = shorter;
    }
    engine->c.udp_arena = bytes;
    engine->c.virtio_bytes = once_in(3) ? 0 : PW_VIRTIO_BYTES;
    engine->c.tun_tcp = engine->c.virtio_bytes && !once_in(3);
    engine->c.tun_udp = engine->c.virtio_bytes && !once_in(3);
    int32_t *m = pw_message_row(engine, 0);
    m[PW_M_LENGTH] = (int32_t)n;
    m[PW_M_GRO] = 0;
    engine->receive[0].msg_hdr.msg_flags = once_in(10) ? MSG_TRUNC : 0;
    engine->messages = 1;
    engine->parse_message = engine->parse_offset = 0;
    in_case("ip in ip %u: %zu bytes", i, n);
    forget_counters(engine);
    const int rows = pw_coalesce(engine);
    EQUAL(engine->parse_message, engine->messages);
    EQUAL(rows + counted(engine, PW_C_dropShort) + counted(engine, PW_C_dropEcnMark), 1);
    double delivered = 0;
    for (int k = 0; k < rows; k++) {
      int32_t *r = pw_ingress_row(engine, (unsigned)k);
      CHECK(r[PW_I_OFFSET] >= 20 && r[PW_I_LENGTH] >= 20 && (size_t)(r[PW_I_OFFSET] + r[PW_I_LENGTH]) <= n,
            "row of %d bytes at %d", r[PW_I_LENGTH], r[PW_I_OFFSET]);
      r[PW_I_VERDICT] = 1;
      delivered += r[PW_I_SEGMENTS];
    }
    pw_ingress_write(engine);
    EQUAL(counted(engine, PW_C_ingressPackets), delivered);
    delivered_in_all += (unsigned)delivered;
    forget_wire();
    free(bytes);
  }
  in_case("ip in ip");
  CHECK(delivered_in_all > 5000, "only %u packets", delivered_in_all);
  engine->c.udp_arena = memory.udp;
}

int main(void)
{
  start_test("fuzz");
  pw_checksum_init(NULL);
  read_corpus(&corpus, "test/vectors/packets.txt", 30);
  read_corpus(&frames, "test/vectors/vxlan.txt", 14);
  parsing();
  accepting_and_sending(false);
  accepting_and_sending(true);
  config = new_config(&memory);
  engine = new_engine(&config);
  coalescing();
  receiving_frames();
  receiving_ip_in_ip();
  free_engine(engine, &memory);
  packets_free(&corpus);
  packets_free(&frames);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
