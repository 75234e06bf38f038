/*
 * pw_tun_accept's refusals: a virtio header and a packet that contradict each other are marked PW_EF_BAD, whole, and
 * nothing of them is ever sent. Each case breaks one thing in a packet that is accepted otherwise.
 */
#include "fixture.h"
#include "wire.h"

static struct memory memory;
static struct pw_engine *engine;

struct attempt {
  uint8_t packet[4000];
  size_t n;
  struct shape shape;
  struct pw_virtio_header header;
};

static struct attempt good(int family, int protocol)
{
  static struct attempt a;
  a.shape = (struct shape){.family = family, .protocol = protocol, .payload = 1000};
  a.n = random_packet(a.packet, &a.shape);
  a.header = (struct pw_virtio_header){
      .flags = PW_VIRTIO_NEEDS_CSUM,
      .gso_type = protocol == UDP ? PW_GSO_UDP_L4 : family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6,
      .header_length = (uint16_t)header_bytes(&a.shape),
      .gso_size = 100,
      .csum_start = (uint16_t)ip_header_bytes(&a.shape),
      .csum_offset = protocol == TCP ? 16 : 6,
  };
  return a;
}

static int offer(const struct attempt *a)
{
  uint8_t *exact = malloc(a->n);
  CHECK(exact != NULL, "out of memory");
  memcpy(exact, a->packet, a->n);
  engine->c.tun_arena = exact;
  engine->c.tun_bytes = a->n;
  const int result = pw_tun_accept(engine, 0, 0, a->n, &a->header);
  int32_t *r = pw_egress_row(engine, 0);
  EQUAL(r[PW_E_FLAGS] == PW_EF_BAD, result != 0);
  EQUAL(r[PW_E_SEGMENTS] >= 1, true);
  r[PW_E_VERDICT] = 3;
  pw_segment_row(engine, 0);
  pw_lanes_flush(engine);
  EQUAL(wire.datagrams.count != 0, result == 0);
  forget_wire();
  free(exact);
  return result;
}

static void refused(const struct attempt *a, const char *what)
{
  in_case("IPv%d protocol %d: %s", a->shape.family, a->shape.protocol, what);
  EQUAL(offer(a), -EINVAL);
}

static void contradictions(int family, int protocol)
{
  const unsigned l4 = family == 4 ? 20 : 40;
  struct attempt a = good(family, protocol);
  in_case("IPv%d protocol %d: nothing wrong", family, protocol);
  EQUAL(offer(&a), 0);
  a.header.gso_type |= protocol == TCP ? PW_GSO_ECN : 0;
  EQUAL(offer(&a), 0);

#define BROKEN(what, change) \
  do { \
    struct attempt b = good(family, protocol); \
    change; \
    refused(&b, what); \
  } while (0)
  BROKEN("a size of 0", b.header.gso_size = 0);
  BROKEN("an unknown type", b.header.gso_type = 3 /* UFO */);
  BROKEN("another unknown type", b.header.gso_type = 0x7f);
  BROKEN("the other protocol's type",
         b.header.gso_type = protocol == UDP ? (family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6) : PW_GSO_UDP_L4);
  if (protocol == TCP)
    BROKEN("the other family's type", b.header.gso_type = family == 4 ? PW_GSO_TCPV6 : PW_GSO_TCPV4);
  BROKEN("an IP length below what is there", put16(b.packet + (family == 4 ? 2 : 4), family == 4 ? 1000 : 900));
  BROKEN("an IP length above what is there", put16(b.packet + (family == 4 ? 2 : 4), 2000));
  BROKEN("no payload", b.n = header_bytes(&b.shape);
         put16(b.packet + (family == 4 ? 2 : 4), (unsigned)b.n - (family == 4 ? 0 : 40)));
  BROKEN("half an L4 header", b.n = l4 + 7; put16(b.packet + (family == 4 ? 2 : 4), family == 4 ? l4 + 7 : 7));
  BROKEN("another protocol", b.packet[family == 4 ? 9 : 6] = 132);
  if (family == 4) {
    BROKEN("a first fragment", put16(b.packet + 6, 0x2000));
    BROKEN("a later fragment", put16(b.packet + 6, 100));
    BROKEN("a header of 16 bytes", b.packet[0] = 0x44);
  } else {
    BROKEN("a fragment header", b.packet[6] = 44; b.packet[40] = (uint8_t)protocol);
    BROKEN("headers of more than 255 bytes", b.packet[6] = 60; b.packet[40] = (uint8_t)protocol; b.packet[41] = 27;
           b.packet[40 + 28 * 8 + 12] = 0x50; b.packet[40 + 28 * 8 + 4] = 0);
    BROKEN("an extension beyond the packet", b.packet[6] = 0; b.packet[40] = (uint8_t)protocol; b.packet[41] = 200);
  }
  if (protocol == TCP) {
    BROKEN("a TCP header of 16 bytes", b.packet[l4 + 12] = 0x40);
    BROKEN("a TCP header of 0 bytes", b.packet[l4 + 12] = 0);
    BROKEN("a TCP header beyond the packet", b.n = l4 + 50; put16(b.packet + (family == 4 ? 2 : 4), family == 4 ? l4 + 50 : 50);
           b.packet[l4 + 12] = 0xf0);
  }
  BROKEN("version 5", b.packet[0] = (uint8_t)(0x50 | (b.packet[0] & 15)));
  BROKEN("19 bytes", b.n = 19);
}

/* A single packet whose checksum is left to the device: the field must lie inside. */
static void partial_checksums(void)
{
  for (unsigned i = 0; i < 400; i++) {
    struct attempt a = good(once_in(2) ? 4 : 6, UDP);
    a.header.gso_type = PW_GSO_NONE;
    a.header.csum_start = (uint16_t)(once_in(2) ? between((unsigned)a.n - 4, (unsigned)a.n + 4) : below(65536));
    a.header.csum_offset = (uint16_t)(once_in(2) ? below(8) : below(65536));
    const bool inside = (size_t)a.header.csum_start + a.header.csum_offset + 2 <= a.n;
    in_case("checksum of %zu bytes from %u, field at +%u", a.n, a.header.csum_start, a.header.csum_offset);
    EQUAL(offer(&a), inside ? 0 : -EINVAL);
  }
}

int main(void)
{
  start_test("accept");
  pw_checksum_init(NULL);
  const struct pw_config c = new_config(&memory);
  engine = new_engine(&c);
  for (int family = 4; family <= 6; family += 2) {
    contradictions(family, TCP);
    contradictions(family, UDP);
  }
  partial_checksums();
  free_engine(engine, &memory);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
