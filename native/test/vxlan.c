/*
 * vxlan.c and what egress does with it: frames around segments and fragments, congestion marks in both directions, and
 * refused frames by their counters. Streams of frames are in coalesce.c, what a kernel's device sends in unfinished.c.
 */
#include "joining.h"

#define HEADROOM PW_TUN_HEADROOM_VXLAN

/* ---- egress ---------------------------------------------------------------------------------------------------- */

static unsigned mark_of(const uint8_t *p)
{
  return (p[0] >> 4 == 4 ? p[1] : p[1] >> 4) & 3;
}

/* One egress row with this packet; gso 0 = no superpacket. */
static void accept_packet(uint8_t *p, size_t n, const struct shape *s, unsigned gso)
{
  struct pw_virtio_header h = {.gso_size = (uint16_t)gso};
  memcpy(engine->c.tun_arena + HEADROOM, p, n);
  if (gso)
    h.gso_type = s->protocol == UDP ? PW_GSO_UDP_L4 : s->family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6;
  EQUAL(pw_tun_accept(engine, 0, HEADROOM, n, &h), 0);
}

/* What left through the lanes is `inner`, each packet behind the header of its next hop, with its mark outside. */
static void expect_frames(const struct packets *inner, uint32_t row)
{
  const uint8_t *header = engine->c.nexthops + row * PW_NEXTHOP_BYTES + PW_NEXTHOP_ENCAP;
  struct packets bare = {0};
  double bytes = 0;
  for (size_t i = 0; i < wire.datagrams.count; i++) {
    const struct packet *d = &wire.datagrams.item[i];
    CHECK(d->length > PW_VXLAN_BYTES, "a frame of %zu bytes", d->length);
    CHECK(!memcmp(d->data, header, 20), "another header than its next hop's");
    EQUAL(get16(d->data + 20), d->data[PW_VXLAN_BYTES] >> 4 == 4 ? 0x0800 : 0x86dd);
    packets_add(&bare, d->data + PW_VXLAN_BYTES, d->length - PW_VXLAN_BYTES, 0);
    bytes += (double)(d->length - PW_VXLAN_BYTES);
  }
  same_packets(&bare, inner, "inner packets");
  for (size_t i = 0; i < wire.entries; i++) {
    const unsigned mark = mark_of(bare.item[0].data);
    EQUAL(wire.entry[i].tos, mark == 3 ? 2 : mark);
  }
  EQUAL(counted(engine, PW_C_egressPackets), inner->count);
  EQUAL(counted(engine, PW_C_egressBytes), bytes);
  packets_free(&bare);
}

static void framing(void)
{
  static uint8_t packet[66000];
  for (unsigned round = 0; round < 3000 * test_factor; round++) {
    struct packets wanted = {0};
    const bool super = once_in(2), fragments = once_in(4);
    struct shape s = random_shape(super ? 60000 : 1450);
    if (fragments)
      s.family = 4, s.ip_options = once_in(3) ? 4 * between(1, 10) : 0;
    s.payload += super;
    const size_t n = random_packet(packet, &s);
    const unsigned gso = super ? spread((unsigned)s.payload) : 0;
    const unsigned least = header_bytes(&s) + 8, mtu = fragments ? between(least, least + 1400) : 0;
    const uint32_t row = between(3, NEXTHOPS - 1);
    if (super && s.payload / gso > 2000)
      continue;
    in_case("frame %u: %zu bytes, gso %u, MTU %u", round, n, gso, mtu);
    config.udp_segments = once_in(3) ? 1 : 127;
    config.batch_calls = !once_in(4);
    fresh();
    accept_packet(packet, n, &s, gso);
    pw_egress_row(engine, 0)[PW_E_VERDICT] = (int32_t)row | (mtu ? PW_V_FRAGMENT : 0);
    if (mtu)
      pw_egress_row(engine, 0)[PW_E_SEGMENTS] = (int32_t)mtu;
    pw_segment_row(engine, 0);
    pw_lanes_flush(engine);
    struct packets whole = {0};
    if (super)
      model_segments(&whole, packet, n, &s, gso, 0);
    else
      packets_add(&whole, packet, n, 0);
    for (size_t i = 0; i < whole.count; i++) {
      if (mtu)
        model_fragments(&wanted, whole.item[i].data, whole.item[i].length, mtu, 0);
      else
        packets_add(&wanted, whole.item[i].data, whole.item[i].length, 0);
    }
    expect_frames(&wanted, row);
    packets_free(&whole);
    packets_free(&wanted);
  }
}

/* Packets with different marks do not share a send; a refused UDP_SEGMENT send keeps its mark. */
static int refuse_offload(int fd, const struct entry *entry)
{
  (void)fd;
  return entry->offloaded ? EIO : 0;
}

static void marked_sends(void)
{
  static uint8_t packet[200];
  struct shape s = {.family = 4, .protocol = UDP, .payload = 50};
  for (unsigned refuse = 0; refuse < 2; refuse++) {
    in_case("marked sends%s", refuse ? ", refused" : "");
    config.udp_segments = 127;
    config.batch_calls = true;
    fresh();
    wire.refuse = refuse ? refuse_offload : NULL;
    uint32_t at = 0;
    for (unsigned i = 0; i < 12; i++, at += 256) {
      const size_t n = random_packet(packet, &s);
      packet[1] = (uint8_t)(0xb8 | (i / 3)); /* three of each mark, with a DSCP that stays inside */
      memcpy(engine->c.tun_arena + at + HEADROOM, packet, n);
      EQUAL(pw_tun_accept(engine, i, at + HEADROOM, n, NULL), 0);
      pw_egress_row(engine, i)[PW_E_HASH] = 0;
      pw_egress_row(engine, i)[PW_E_VERDICT] = 4;
      pw_segment_row(engine, i);
    }
    pw_lanes_flush(engine);
    static const int tos[] = {0, 1, 2}; /* CE goes as ECT(0), so the last six share a send */
    static const unsigned each[] = {3, 3, 6};
    EQUAL(wire.entries, refuse ? 12 : 3);
    for (size_t i = 0; i < wire.entries; i++) {
      EQUAL(wire.entry[i].tos, refuse ? (i < 3 ? 0 : i < 6 ? 1 : 2) : tos[i]);
      EQUAL(wire.entry[i].segments, refuse ? 1 : each[i]);
    }
    wire.refuse = NULL;
  }
}

/* ---- congestion marks inwards ---------------------------------------------------------------------------------- */

/* RFC 6040 figure 4, in the kernel's reading (INET_ECN_decapsulate): -1 = dropped. */
static const int received_mark[4][4] = {
    /* inner: Not-ECT, ECT(1), ECT(0), CE */
    [0] = {0, 1, 2, 3}, /* outer Not-ECT */
    [1] = {0, 1, 1, 3}, /* outer ECT(1) */
    [2] = {0, 1, 2, 3}, /* outer ECT(0) */
    [3] = {-1, 3, 3, 3} /* outer CE */
};

static void marks(void)
{
  static uint8_t packet[2000], before[2000];
  for (unsigned round = 0; round < 4000 * test_factor; round++) {
    const struct shape s = random_shape(200);
    const size_t n = random_packet(packet, &s);
    const bool wrong = once_in(8) && s.family == 4;
    const uint8_t tos = (uint8_t)random_word();
    if (wrong)
      packet[10] ^= 0x10;
    memcpy(before, packet, n);
    in_case("mark %u: outer %u, inner %u", round, tos & 3, mark_of(before));
    const int wanted = received_mark[tos & 3][mark_of(before)];
    EQUAL(pw_ecn_in(packet, tos), wanted >= 0);
    if (wanted < 0)
      continue;
    EQUAL(mark_of(packet), wanted);
    if (s.family == 4)
      EQUAL(add_up(0, packet, ip_header_bytes(&s)) == 0xffff, !wrong);
    /* nothing else has changed */
    packet[1] = before[1];
    memcpy(packet + 10, before + 10, s.family == 4 ? 2 : 0);
    EQUAL(memcmp(packet, before, n), 0);
    EQUAL(pw_ecn_out(before), mark_of(before) == 3 ? 2 : mark_of(before));
  }
}

/* ---- refused frames -------------------------------------------------------------------------------------------- */

static enum pw_counter model_refusal(const uint8_t *f, size_t n)
{
  const uint8_t *vtep = config.vtep;
  if (n < 42)
    return PW_C_dropShort;
  if (f[0] != 8 || f[1] || f[2] || f[3] || f[7])
    return PW_C_dropVxlanFlags;
  if (f[4] != vtep[4] || f[5] != vtep[5] || f[6] != vtep[6])
    return PW_C_dropVxlanVni;
  if (!memcmp(f + 14, vtep + 8, 6))
    return PW_C_dropVxlanLoop;
  if (get16(f + 20) != (f[22] >> 4 == 4 ? 0x0800u : f[22] >> 4 == 6 ? 0x86ddu : 0x10000u))
    return PW_C_dropVxlanType;
  if (!memcmp(f + 8, vtep + 8, 6))
    return PW_COUNTER_COUNT;
  return f[8] & 1 ? PW_C_dropVxlanGroup : PW_C_dropVxlanMac;
}

static void refusals(void)
{
  static const enum pw_counter all[] = {PW_C_dropShort,     PW_C_dropVxlanFlags, PW_C_dropVxlanVni, PW_C_dropVxlanLoop,
                                        PW_C_dropVxlanType, PW_C_dropVxlanGroup, PW_C_dropVxlanMac, PW_COUNTER_COUNT};
  static uint8_t frame[2000];
  unsigned met[PW_COUNTER_COUNT + 1] = {0};
  for (unsigned round = 0; round < 6000 * test_factor; round++) {
    const struct shape s = random_shape(300);
    size_t n = PW_VXLAN_BYTES + random_packet(frame + PW_VXLAN_BYTES, &s);
    vxlan_prefix(frame, config.vtep, frame + PW_VXLAN_BYTES);
    for (unsigned i = below(3); i > 0; i--)
      frame[below(23)] = (uint8_t)(once_in(2) ? random_word() : 1u << below(8));
    if (once_in(20))
      memcpy(frame + 14, config.vtep + 8, 6);
    if (once_in(20))
      n = below(60);
    const enum pw_counter wanted = model_refusal(frame, n);
    in_case("refusal %u: %zu bytes, wanted %d", round, n, (int)wanted);
    fresh();
    inbox_add(frame, n, 0, 0, false);
    EQUAL(pw_ingress_receive(engine), 1);
    EQUAL(pw_coalesce(engine), wanted == PW_COUNTER_COUNT);
    for (unsigned i = 0; i + 1 < sizeof all / sizeof *all; i++)
      EQUAL(counted(engine, all[i]), all[i] == wanted);
    met[wanted]++;
    if (wanted == PW_COUNTER_COUNT) {
      EQUAL(pw_ingress_row(engine, 0)[PW_I_OFFSET], PW_VXLAN_BYTES);
      EQUAL(pw_ingress_row(engine, 0)[PW_I_LENGTH], n - PW_VXLAN_BYTES);
    }
  }
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
    CHECK(met[all[i]] > 20, "counter %d was met %u times only", (int)all[i], met[all[i]]);
}

int main(void)
{
  start_test("vxlan");
  pw_checksum_init(NULL);
  config = new_config(&memory);
  config.udp_fd = UDP_FD;
  config.vxlan = true;
  for (unsigned i = 0; i < NEXTHOPS; i++) {
    uint8_t *header = memory.nexthops + i * PW_NEXTHOP_BYTES + PW_NEXTHOP_ENCAP;
    random_bytes(header, PW_VXLAN_BYTES);
    put16(header + 20, 0x0800);
  }
  framing();
  marked_sends();
  marks();
  refusals();
  fresh();
  free_engine(engine, &memory);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
