/*
 * pw_turn with UDP sockets of the real kernel, so that UDP_SEGMENT and UDP_GRO are the kernel's own: what goes in as a
 * superpacket comes out as the slow model's datagrams, and the other way round.
 */
#include "bed.h"

static void to_tun(const struct pw_virtio_header *h, const uint8_t *p, size_t n)
{
  struct iovec iov[2] = {{(void *)(uintptr_t)h, sizeof *h}, {(void *)(uintptr_t)p, n}};
  EQUAL(writev(bed.tun_far, iov, 2), (ssize_t)(sizeof *h + n));
}

/* A superpacket from the TUN is cut here, crosses the kernel with UDP_SEGMENT or without, and arrives cut. */
static void egress(int family, unsigned udp_segments, bool batch_calls)
{
  static uint8_t packet[65600], got[65600];
  in_case("egress over IPv%d, %u segments a send%s", family == AF_INET ? 4 : 6, udp_segments,
          batch_calls ? "" : ", one call each");
  open_bed(family, true, udp_segments, batch_calls, PW_SPIN_OFF);
  for (unsigned i = 0; i < 20; i++) {
    struct packets wanted = {0};
    const unsigned gso = between(100, 1400);
    struct shape s = {.family = once_in(2) ? 4 : 6, .protocol = once_in(2) ? TCP : UDP};
    s.payload = between(1, once_in(4) ? 65535 - 40 - 20 : 40 * gso);
    if (s.payload > 120 * gso)
      s.payload = 120 * gso;
    const size_t n = random_packet(packet, &s);
    const struct pw_virtio_header h = {
        .flags = PW_VIRTIO_NEEDS_CSUM,
        .gso_type = s.protocol == UDP ? PW_GSO_UDP_L4 : s.family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6,
        .header_length = (uint16_t)header_bytes(&s),
        .gso_size = (uint16_t)gso,
        .csum_start = (uint16_t)ip_header_bytes(&s),
        .csum_offset = s.protocol == TCP ? 16 : 6,
    };
    to_tun(&h, packet, n);
    model_segments(&wanted, packet, n, &s, gso, 0);
    EQUAL(turn_until_rows() & 0xffff, 1);
    EQUAL(((int32_t *)bed.meta)[PW_META_EGRESS_COUNT], 1);
    int32_t *r = pw_egress_row(bed.e, 0);
    EQUAL(r[PW_E_SEGMENTS], wanted.count);
    r[PW_E_VERDICT] = ROW;
    EQUAL(pw_turn(bed.e, 0), 0);
    for (size_t k = 0; k < wanted.count; k++) {
      const struct packet datagram = {got, expect_datagram(bed.peer, got, sizeof got), 0};
      const long at = first_difference(&datagram, &wanted.item[k]);
      CHECK(at < 0, "datagram %zu of %zu differs at byte %ld", k, wanted.count, at);
    }
    expect_silence(bed.peer);
    packets_free(&wanted);
  }
  EQUAL(bed.counters[PW_C_fallbackUdpSegment], 0);
  EQUAL(bed.counters[PW_C_egressPackets], bed.peers[ROW * PW_PEER_WORDS]);
  CHECK(udp_segments == 1 || bed.counters[PW_C_sendEntries] < bed.counters[PW_C_egressPackets], "no offload used");
  close_bed();
}

/* Datagrams of one flow, sent with UDP_SEGMENT, come through UDP_GRO as one row and go to the TUN as one superpacket. */
static void ingress(int family, bool gro, bool batch_calls)
{
  static uint8_t packet[65600], message[65600], got[65600];
  in_case("ingress over IPv%d%s%s", family == AF_INET ? 4 : 6, gro ? "" : ", no UDP_GRO",
          batch_calls ? "" : ", one call each");
  open_bed(family, gro, 127, batch_calls, PW_SPIN_OFF);
  struct shape s = {.family = 4, .protocol = TCP, .payload = 30 * 1400 - 600};
  const size_t n = random_packet(packet, &s);
  packet[33] = 0x18; /* ACK, PSH */
  finish(packet, n, &s);
  struct packets wanted = {0}, cut = {0};
  model_segments(&wanted, packet, n, &s, 1400, 0);
  size_t bytes = 0;
  for (size_t i = 0; i < wanted.count; i++) {
    memcpy(message + bytes, wanted.item[i].data, wanted.item[i].length);
    bytes += wanted.item[i].length;
  }
  const int size = (int)wanted.item[0].length;
  EQUAL(setsockopt(bed.peer, SOL_UDP, UDP_SEGMENT, &size, sizeof size), 0);
  EQUAL(sendto(bed.peer, message, bytes, 0, (struct sockaddr *)&bed.bound, bed.address_bytes), (ssize_t)bytes);
  unsigned rows_seen = 0;
  const int64_t until = pw_now_ns() + PATIENCE_MS * 1000000ll;
  while (bed.counters[PW_C_ingressPackets] < (double)wanted.count) {
    const int rows = pw_turn(bed.e, 100);
    CHECK(rows >= 0 && pw_now_ns() < until, "pw_turn gave %d; %g packets of %zu", rows,
          bed.counters[PW_C_ingressPackets], wanted.count);
    for (int i = 0; i < rows >> 16; i++, rows_seen++) {
      int32_t *r = pw_ingress_row(bed.e, (unsigned)i);
      const int32_t *m = pw_message_row(bed.e, (unsigned)r[PW_I_MESSAGE]);
      EQUAL(m[PW_M_FAMILY], family == AF_INET ? 4 : 6);
      EQUAL(m[PW_M_WORD0], family == AF_INET ? INADDR_LOOPBACK : 0);
      EQUAL(m[family == AF_INET ? PW_M_WORD1 : PW_M_WORD3], family == AF_INET ? 0 : 1);
      EQUAL(m[PW_M_PORT], ntohs(((struct sockaddr_in *)&bed.peer_address)->sin_port));
      EQUAL(m[PW_M_GRO], gro ? size : 0);
      r[PW_I_VERDICT] = 1 + 5;
    }
    while (recv(bed.tun_far, got, 1, MSG_PEEK) > 0) {
      const size_t length = expect_datagram(bed.tun_far, got, sizeof got);
      struct pw_virtio_header h;
      memcpy(&h, got, sizeof h);
      s.payload = length - sizeof h - header_bytes(&s);
      if (h.gso_type)
        model_segments(&cut, got + sizeof h, length - sizeof h, &s, h.gso_size, 0);
      else
        packets_add(&cut, got + sizeof h, length - sizeof h, 0);
    }
  }
  same_packets(&cut, &wanted, "through the TUN");
  EQUAL(bed.peers[5 * PW_PEER_WORDS + 2], wanted.count);
  if (gro)
    EQUAL(rows_seen, 1);
  packets_free(&wanted);
  packets_free(&cut);
  close_bed();
}

int main(void)
{
  start_test("turn");
  pw_checksum_init(NULL);
  const unsigned most = pw_probe_udp_segments();
  in_case("probing UDP_SEGMENT");
  CHECK(most == 0 || most == 64 || most == 127, "%u segments", most);
  static const int families[] = {AF_INET, AF_INET6};
  for (unsigned f = 0; f < 2; f++) {
    if (most)
      egress(families[f], most, true);
    egress(families[f], 1, true);
    egress(families[f], 1, false);
    ingress(families[f], true, true);
    ingress(families[f], true, false);
    ingress(families[f], false, true);
    ingress(families[f], false, false);
  }
  return 0;
}
