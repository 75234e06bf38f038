/*
 * The slow, obvious model of packets: written from RFC 791, 768, 8200, 9293 and 1071 and deliberately without anything
 * of the code under test. Every checksum is recomputed from scratch, 16 bits at a time.
 */
#ifndef PODWIRE_TEST_WIRE_H
#define PODWIRE_TEST_WIRE_H
#include "harness.h"

enum { TCP = 6, UDP = 17 };

struct shape {
  int family;          /* 4 or 6 */
  int protocol;        /* TCP or UDP */
  unsigned ip_options; /* bytes of IPv4 options or IPv6 extension headers; a multiple of 4 or 8 */
  unsigned l4_options; /* bytes of TCP options, a multiple of 4 */
  size_t payload;
};

static inline unsigned get16(const uint8_t *p)
{
  return (unsigned)p[0] << 8 | p[1];
}

static inline uint32_t get32(const uint8_t *p)
{
  return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static inline void put16(uint8_t *p, unsigned v)
{
  p[0] = (uint8_t)(v >> 8 & 0xff);
  p[1] = (uint8_t)(v & 0xff);
}

static inline void put32(uint8_t *p, uint32_t v)
{
  put16(p, v >> 16);
  put16(p + 2, v & 0xffff);
}

/* RFC 1071: one's complement sum of 16-bit words in network order on top of `sum`, an odd last byte padded with zero. */
static inline unsigned add_up(unsigned sum, const uint8_t *p, size_t n)
{
  for (size_t i = 0; i < n; i += 2) {
    sum += (unsigned)p[i] << 8 | (i + 1 < n ? p[i + 1] : 0u);
    if (sum > 0xffff)
      sum -= 0xffff;
  }
  return sum;
}

static inline unsigned ip_header_bytes(const struct shape *s)
{
  return (s->family == 4 ? 20 : 40) + s->ip_options;
}

static inline unsigned header_bytes(const struct shape *s)
{
  return ip_header_bytes(s) + (s->protocol == TCP ? 20 + s->l4_options : 8);
}

/* Sum of the pseudo header: addresses, protocol and the length of what follows the IP header. */
static inline unsigned pseudo_header(const uint8_t *ip, int protocol, unsigned l4_length)
{
  uint8_t tail[4] = {0, (uint8_t)protocol, 0, 0};
  put16(tail + 2, l4_length);
  const unsigned addresses = ip[0] >> 4 == 4 ? add_up(0, ip + 12, 8) : add_up(0, ip + 8, 32);
  return add_up(addresses, tail, 4);
}

static inline unsigned l4_checksum_at(const struct shape *s)
{
  return ip_header_bytes(s) + (s->protocol == TCP ? 16 : 6);
}

/* Length fields and checksums of the packet of n bytes, as its sender would have written them. */
static inline void finish(uint8_t *p, size_t n, const struct shape *s)
{
  const unsigned l4 = ip_header_bytes(s), at = l4_checksum_at(s);
  if (s->protocol == UDP)
    put16(p + l4 + 4, (unsigned)(n - l4));
  put16(p + at, 0);
  unsigned check = 0xffff - add_up(pseudo_header(p, s->protocol, (unsigned)(n - l4)), p + l4, n - l4);
  if (s->protocol == UDP && check == 0)
    check = 0xffff; /* RFC 768 */
  put16(p + at, check);
  if (s->family == 4) {
    put16(p + 2, (unsigned)n);
    put16(p + 10, 0);
    put16(p + 10, 0xffff - add_up(0, p, l4));
  } else {
    put16(p + 4, (unsigned)(n - 40));
  }
}

/* Well-formed IPv4 options: the copied bit, length and data at random, no-operations and an end of list in between. */
static inline void write_ip_options(uint8_t *p, unsigned n)
{
  unsigned at = 0;
  while (at < n) {
    const unsigned left = n - at;
    if (left < 2 || once_in(4)) {
      p[at++] = 1;
    } else if (once_in(12)) {
      memset(p + at, 0, left);
      at = n;
    } else {
      const unsigned length = between(2, left);
      random_bytes(p + at, length);
      p[at] = (uint8_t)(between(2, 31) | below(8) << 5);
      p[at + 1] = (uint8_t)length;
      at += length;
    }
  }
}

/* IPv6 extension headers of n bytes in all: hop-by-hop, routing or destination options. Returns the first one's type. */
static inline uint8_t write_extensions(uint8_t *p, unsigned n, uint8_t protocol)
{
  static const uint8_t types[] = {0, 43, 60};
  if (!n)
    return protocol;
  const unsigned first = 8 * between(1, n / 8);
  random_bytes(p, first);
  p[1] = (uint8_t)(first / 8 - 1);
  p[0] = write_extensions(p + first, n - first, protocol);
  return types[below(3)];
}

static inline struct shape random_shape(size_t largest)
{
  struct shape s = {.family = once_in(2) ? 4 : 6, .protocol = once_in(2) ? TCP : UDP};
  if (once_in(4))
    s.ip_options = s.family == 4 ? 4 * between(1, 10) : 8 * between(1, 7);
  if (s.protocol == TCP && once_in(2))
    s.l4_options = once_in(2) ? 12 : 4 * between(1, 10);
  s.payload = spread((unsigned)(largest - header_bytes(&s)));
  return s;
}

/* A packet of that shape with everything else at random, its checksums right. Returns its length. */
static inline size_t random_packet(uint8_t *p, const struct shape *s)
{
  const size_t n = header_bytes(s) + s->payload;
  const unsigned l4 = ip_header_bytes(s);
  random_bytes(p, n);
  if (s->family == 4) {
    p[0] = (uint8_t)(0x40 | (5 + s->ip_options / 4));
    put16(p + 6, once_in(2) ? 0x4000 : 0);
    p[9] = (uint8_t)s->protocol;
    write_ip_options(p + 20, s->ip_options);
  } else {
    p[0] = (uint8_t)(0x60 | below(16));
    p[6] = write_extensions(p + 40, s->ip_options, (uint8_t)s->protocol);
  }
  if (s->protocol == TCP)
    p[l4 + 12] = (uint8_t)((5 + s->l4_options / 4) << 4 | below(2));
  finish(p, n, s);
  return n;
}

/*
 * What a segmenting device makes of a superpacket (tcp_gso_segment, __udp_gso_segment): payload in slices of gso bytes
 * behind a copy of the headers; sequence and IPv4 id count up, FIN and PSH only on the last, CWR only on the first.
 */
static inline void model_segments(struct packets *out, const uint8_t *p, size_t n, const struct shape *s, size_t gso,
                                  uint32_t tag)
{
  const unsigned header = header_bytes(s), l4 = ip_header_bytes(s);
  uint8_t *copy = malloc(header + gso);
  CHECK(copy != NULL, "out of memory");
  unsigned i = 0;
  for (size_t at = header; at < n; at += gso, i++) {
    const size_t slice = n - at < gso ? n - at : gso;
    memcpy(copy, p, header);
    memcpy(copy + header, p + at, slice);
    if (s->family == 4)
      put16(copy + 4, get16(p + 4) + i);
    if (s->protocol == TCP) {
      put32(copy + l4 + 4, get32(p + l4 + 4) + (uint32_t)(at - header));
      if (at + slice < n)
        copy[l4 + 13] &= (uint8_t) ~(0x01 | 0x08);
      if (i)
        copy[l4 + 13] &= 0x7f;
    }
    finish(copy, header + slice, s);
    packets_add(out, copy, header + slice, tag);
  }
  free(copy);
}

/* Options without the copied bit give way to no-operations in every fragment but the first (RFC 791 3.1). */
static inline void keep_copied_options(uint8_t *option, unsigned n)
{
  for (unsigned at = 0; at < n && option[at] != 0;) {
    const unsigned length = option[at] == 1 ? 1 : option[at + 1];
    if (option[at] < 128)
      for (unsigned i = 0; i < length; i++)
        option[at + i] = 1;
    at += length;
  }
}

/* RFC 791 3.2: an IPv4 packet, possibly a fragment itself, as fragments of at most mtu bytes; whole when it fits. */
static inline void model_fragments(struct packets *out, const uint8_t *p, size_t n, unsigned mtu, uint32_t tag)
{
  const unsigned header = (p[0] & 15u) * 4, word = get16(p + 6);
  if (n <= mtu) {
    packets_add(out, p, n, tag);
    return;
  }
  if (n <= mtu) {
    packets_add(out, p, n, tag);
    return;
  }
  const size_t blocks = (mtu - header) / 8;
  uint8_t *copy = malloc(n);
  CHECK(copy != NULL, "out of memory");
  for (size_t at = header; at < n || at == header; at += blocks * 8) {
    const bool last = n - at <= blocks * 8;
    const size_t slice = last ? n - at : blocks * 8;
    memcpy(copy, p, header);
    memcpy(copy + header, p + at, slice);
    if (at > header)
      keep_copied_options(copy + 20, header - 20);
    put16(copy + 2, (unsigned)(header + slice));
    put16(copy + 6, (last ? word & 0x2000 : 0x2000) | ((word & 0x1fff) + (unsigned)(at - header) / 8));
    put16(copy + 10, 0);
    put16(copy + 10, 0xffff - add_up(0, copy, header));
    packets_add(out, copy, header + slice, tag);
    if (last)
      break;
  }
  free(copy);
}
#endif
