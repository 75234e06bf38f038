/*
 * What a kernel's vxlan device leaves to a device that never comes (kernel-facts 9): checksums that are only the pseudo
 * header's sum, and TCP and UDP superpackets that nobody cut. From captured frames (test/vectors/vxlan.txt), and from
 * packets of every size, with and without a TUN that takes superpackets, and with one that refuses.
 */
#include "joining.h"

#define VECTORS "test/vectors/vxlan.txt"

static unsigned rows_delivered(void)
{
  unsigned segments = 0;
  while (pw_ingress_receive(engine) > 0) {
    const int rows = pw_coalesce(engine);
    for (int i = 0; i < rows; i++) {
      int32_t *r = pw_ingress_row(engine, (unsigned)i);
      r[PW_I_VERDICT] = 2;
      segments += (unsigned)r[PW_I_SEGMENTS];
    }
    pw_ingress_write(engine);
  }
  return segments;
}

/* Puts the pseudo header's sum where the checksum belongs. */
static void unfinish(uint8_t *p, size_t n, const struct shape *s)
{
  put16(p + l4_checksum_at(s), pseudo_header(p, s->protocol, (unsigned)(n - ip_header_bytes(s))));
}

/* Everything that was written to the TUN, as packets that a device would make of it. */
static void finish_writes(struct packets *out, const struct shape *s)
{
  static uint8_t copy[70000];
  for (size_t i = 0; i < wire.tun.count; i++) {
    struct pw_virtio_header h = {0};
    const struct packet *t = &wire.tun.item[i];
    const unsigned virtio = engine->c.virtio_bytes;
    if (virtio)
      memcpy(&h, t->data, sizeof h);
    const size_t n = t->length - virtio;
    memcpy(copy, t->data + virtio, n);
    struct shape shape = *s;
    shape.payload = n - header_bytes(s);
    if (h.gso_type) {
      EQUAL(h.flags, PW_VIRTIO_NEEDS_CSUM);
      EQUAL(h.gso_type & ~PW_GSO_ECN, s->protocol == UDP ? PW_GSO_UDP_L4 : s->family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6);
      EQUAL(!!(h.gso_type & PW_GSO_ECN), s->protocol == TCP && (copy[ip_header_bytes(s) + 13] & 0x80));
      EQUAL(h.header_length, header_bytes(s));
      EQUAL(h.csum_start, ip_header_bytes(s));
      EQUAL(get16(copy + l4_checksum_at(s)), pseudo_header(copy, s->protocol, (unsigned)(n - ip_header_bytes(s))));
      model_segments(out, copy, n, &shape, h.gso_size, 0);
      continue;
    }
    if (h.flags) {
      EQUAL(h.flags, PW_VIRTIO_NEEDS_CSUM);
      EQUAL(h.csum_start + h.csum_offset, l4_checksum_at(s));
      finish(copy, n, &shape);
    }
    packets_add(out, copy, n, 0);
  }
}

static size_t superpacket_bytes;

static int refuse_superpacket(size_t bytes)
{
  return bytes == superpacket_bytes ? EINVAL : 0;
}

static void unfinished_packets(void)
{
  static uint8_t frame[70000];
  uint8_t *packet = frame + PW_VXLAN_BYTES;
  for (unsigned round = 0; round < 3000 * test_factor; round++) {
    struct packets got = {0}, wanted = {0};
    struct shape s = random_shape(once_in(2) ? 1450 : 64000);
    s.payload += s.protocol == UDP;
    const size_t n = random_packet(packet, &s);
    const unsigned payload = (unsigned)s.payload;
    const unsigned gro = s.protocol == UDP && payload > 1 && once_in(2) ? between(1 + payload / 2000, payload - 1) : 0;
    config.inner_mtu = once_in(3) ? between(1200, 1600) : 1450;
    const unsigned cut = config.inner_mtu < 1280 ? config.inner_mtu : 1280; /* what every link of a pod takes */
    const bool whole = s.protocol == TCP ? n > config.inner_mtu : gro != 0;
    const unsigned gso = s.protocol == TCP ? cut - header_bytes(&s) : gro;
    config.tun_tcp = !once_in(3);
    config.tun_udp = !once_in(3);
    config.virtio_bytes = config.tun_tcp || config.tun_udp || once_in(2) ? PW_VIRTIO_BYTES : 0;
    const bool refuse = once_in(5), wrong = once_in(10) && s.family == 4;
    in_case("unfinished %u: %s, %zu bytes, gro %u%s", round, s.protocol == TCP ? "TCP" : "UDP", n, gro,
            refuse ? ", refused" : "");
    if (s.protocol == TCP && s.payload == 0)
      continue;
    unfinish(packet, n, &s);
    if (wrong)
      packet[10] ^= 1;
    vxlan_prefix(frame, config.vtep, packet);
    fresh();
    wire.refuse_write = refuse && whole ? refuse_superpacket : NULL;
    superpacket_bytes = n + PW_VIRTIO_BYTES;
    inbox_add(frame, PW_VXLAN_BYTES + n, (int)gro, 0, false);
    const unsigned segments = rows_delivered();
    if (wrong) { /* whoever gets it drops it: nothing may put its header's checksum right */
      CHECK(wire.tun.count <= 1, "a packet with a wrong header was cut");
      packets_free(&got);
      continue;
    }
    finish_writes(&got, &s);
    finish(packet, n, &s);
    if (whole)
      model_segments(&wanted, packet, n, &s, gso, 0);
    else
      packets_add(&wanted, packet, n, 0);
    same_packets(&got, &wanted, "finished packets");
    EQUAL(segments, wanted.count);
    EQUAL(counted(engine, PW_C_ingressPackets), wanted.count);
    const bool offered = whole && (s.protocol == TCP ? config.tun_tcp : config.tun_udp);
    EQUAL(wire.tun.count, offered && !refuse ? 1 : wanted.count);
    EQUAL(counted(engine, PW_C_fallbackTunGso), offered && refuse);
    packets_free(&got);
    packets_free(&wanted);
  }
  wire.refuse_write = NULL;
}

/* Neighbours of a flow that a kernel left unfinished are joined like others; a finished one may be among them. */
static void joined_unfinished(void)
{
  static uint8_t frame[2000];
  struct packets got = {0}, wanted = {0};
  struct shape s = {.family = 4, .protocol = UDP, .payload = 100};
  in_case("unfinished neighbours");
  config.tun_udp = config.tun_tcp = true;
  config.virtio_bytes = PW_VIRTIO_BYTES;
  fresh();
  random_packet(frame + PW_VXLAN_BYTES, &s);
  vxlan_prefix(frame, config.vtep, frame + PW_VXLAN_BYTES);
  uint8_t *p = frame + PW_VXLAN_BYTES;
  put16(p + 6, 0x4000);
  for (unsigned i = 0; i < 10; i++) {
    random_bytes(p + 28, s.payload);
    put16(p + 4, i);
    finish(p, 128, &s);
    packets_add(&wanted, p, 128, 0);
    if (i % 4)
      unfinish(p, 128, &s);
    inbox_add(frame, PW_VXLAN_BYTES + 128, 0, 0, false);
  }
  EQUAL(rows_delivered(), 10);
  EQUAL(wire.tun.count, 1);
  struct pw_virtio_header h;
  memcpy(&h, wire.tun.item[0].data, sizeof h);
  cut_superpacket(&h, wire.tun.item[0].data + sizeof h, wire.tun.item[0].length - sizeof h, &got);
  for (size_t i = 0; i < got.count; i++) { /* with DF the id means nothing and is not kept */
    put16(got.item[i].data + 4, get16(wanted.item[i].data + 4));
    finish(got.item[i].data, 128, &s);
  }
  same_packets(&got, &wanted, "cut again");
  packets_free(&got);
  packets_free(&wanted);
}

static void captured(void)
{
  static char line[8192];
  static uint8_t frame[4000];
  static const uint8_t vtep[] = {8, 0, 0, 0, 0, 0, 1, 0, 0x0e, 0x22, 0x22, 0x22, 0x22, 0x22};
  unsigned delivered = 0, refused = 0;
  FILE *f = fopen(VECTORS, "r");
  CHECK(f != NULL, "cannot read %s: run it in the checkout", VECTORS);
  memcpy(config.vtep, vtep, sizeof vtep);
  while (fgets(line, sizeof line, f)) {
    char *hex = strchr(line, ' ');
    if (line[0] == '#' || !hex)
      continue;
    *hex++ = 0;
    size_t n = 0;
    for (unsigned byte; n < sizeof frame && sscanf(hex + 2 * n, "%2x", &byte) == 1; n++)
      frame[n] = (uint8_t)byte;
    const char *uso = strstr(line, "uso-");
    const int gro = uso ? atoi(uso + 4) : 0;
    for (unsigned virtio = 0; virtio < 2; virtio++) {
      in_case("%s%s", line, virtio ? "" : ", plain TUN");
      config.virtio_bytes = virtio ? PW_VIRTIO_BYTES : 0;
      config.tun_tcp = config.tun_udp = virtio;
      fresh();
      inbox_add(frame, n, gro, 0, false);
      const unsigned segments = rows_delivered();
      const uint8_t *p = frame + PW_VXLAN_BYTES;
      if (!segments) {
        const enum pw_counter why = strstr(line, "arp")    ? PW_C_dropVxlanType
                                    : strstr(line, "neigh") ? PW_C_dropVxlanGroup
                                                            : PW_C_dropVxlanFlags;
        EQUAL(counted(engine, why), 1);
        refused++;
        continue;
      }
      delivered++;
      CHECK(counted(engine, PW_C_ingressPackets) == segments, "%u segments", segments);
      EQUAL(segments, gro ? (n - PW_VXLAN_BYTES - (p[0] >> 4 == 4 ? 28 : 48) + (unsigned)gro - 1) / (unsigned)gro : 1);
      /* a kernel that gets it finds nothing wrong */
      const bool transport = strstr(line, "udp") || strstr(line, "tcp") || uso;
      struct shape s = {.family = p[0] >> 4, .protocol = strstr(line, "tcp") ? TCP : UDP};
      if (!transport)
        continue;
      struct packets got = {0};
      if (s.protocol == TCP)
        s.l4_options = (p[ip_header_bytes(&s) + 12] >> 4) * 4u - 20;
      finish_writes(&got, &s);
      EQUAL(got.count, segments);
      for (size_t i = 0; i < got.count; i++)
        CHECK(checksums_right(got.item[i].data, got.item[i].length, &s), "packet %zu has a wrong checksum", i);
      packets_free(&got);
    }
  }
  fclose(f);
  in_case("captured frames");
  CHECK(delivered >= 22 && refused == 6, "%u delivered, %u refused", delivered, refused);
}

int main(void)
{
  start_test("unfinished");
  pw_checksum_init(NULL);
  config = new_config(&memory);
  config.udp_fd = UDP_FD;
  config.vxlan = true;
  unfinished_packets();
  joined_unfinished();
  captured();
  fresh();
  free_engine(engine, &memory);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
