/*
 * Cutting superpackets into segments and packets into fragments. A segment is built in the send arena: what the
 * encapsulation puts in front (VXLAN header and inner Ethernet), a rebuilt header, and the payload, which is copied while
 * it is summed. The sum has to read it anyway, and one long piece of memory costs the kernel a third less than an iovec
 * of header and payload slice a segment. Fragments are slices of the TUN arena behind rebuilt headers.
 * TCP: RFC 9293 header; the rules of a segmenting device are those of tcp_gso_segment() (net/ipv4/tcp_offload.c):
 * sequence advances, FIN and PSH only on the last, CWR only on the first (RFC 3168 6.1.2), IPv4 id counts up.
 */
#include <string.h>
#include "checksum.h"
#include "engine.h"

#define TCP_FIN 0x01
#define TCP_CWR 0x80

/* Where segments go. */
struct way {
  unsigned lane;
  uint32_t to;       /* PW_TO; host id of the sender when to_tun */
  unsigned prefix;   /* bytes right in front of every header that belong to the datagram */
  bool to_tun;       /* written to the TUN at once: a superpacket from the underlay that the TUN does not take */
};

/* A packet leaves: header, with what the encapsulation puts in front right before it, then payload. */
static void put_packet(struct pw_engine *e, const struct way *w, uint8_t *header, unsigned header_bytes,
                       const uint8_t *payload, size_t payload_bytes)
{
  if (!w->to_tun) {
    pw_lane_add(e, w->lane, w->to, header - w->prefix, header_bytes + w->prefix, payload, payload_bytes);
    return;
  }
  struct pw_virtio_header h = {0};
  struct iovec iov[3] = {{&h, e->c.virtio_bytes}, {header, header_bytes}, {(void *)(uintptr_t)payload, payload_bytes}};
  const bool plain = !e->c.virtio_bytes;
  pw_tun_deliver(e, iov + plain, 3 - plain, w->to, header_bytes + payload_bytes);
}

/* Later fragments carry only the options whose copied bit is set (RFC 791 3.1); the others become no-operations. */
static void clear_uncopied_options(uint8_t *header, unsigned bytes)
{
  unsigned at = 20;
  while (at < bytes) {
    uint8_t type = header[at];
    if (type == 0)
      return;
    unsigned length = type == 1 || at + 1 >= bytes ? 1 : header[at + 1];
    if (length < 1 || at + length > bytes || (type != 1 && length < 2))
      length = bytes - at;
    if (!(type & 0x80))
      memset(header + at, 1, length);
    at += length;
  }
}

/*
 * One packet of header_bytes + payload_bytes as IPv4 fragments of at most mtu bytes. ip_bytes of the header are IP,
 * the rest L4, which travels in the first fragment.
 */
static void add_fragments(struct pw_engine *e, const struct way *w, uint8_t *header, unsigned header_bytes,
                          unsigned ip_bytes, const uint8_t *payload, size_t payload_bytes, unsigned mtu)
{
  if (header_bytes + payload_bytes <= mtu) { /* a superpacket's last segment may fit */
    put_packet(e, w, header, header_bytes, payload, payload_bytes);
    return;
  }
  if (mtu < ip_bytes + 8 + (header_bytes - ip_bytes)) {
    pw_count(e, PW_C_dropTooBig, 1);
    if (PW_TO_ROW(w->to) < e->c.peer_count)
      e->c.peers[(size_t)PW_TO_ROW(w->to) * PW_PEER_WORDS + PW_PEER_TX_DROPS] += 1;
    return;
  }
  uint8_t original[PW_VXLAN_BYTES + PW_HEADER_MAX + 1]; /* the header may lie in the arena that making room can empty */
  memcpy(original, header - w->prefix, w->prefix + header_bytes);
  header = original + w->prefix;
  const unsigned first = pw_get16(header + 6) & 0x1fff; /* a fragment may be cut again */
  const bool more_follow = pw_get16(header + 6) & 0x2000;
  unsigned position = 0, l4 = header_bytes - ip_bytes;
  const unsigned room = (mtu - ip_bytes) & ~7u;
  do {
    size_t slice = room - l4;
    bool last = slice >= payload_bytes;
    if (last)
      slice = payload_bytes;
    uint8_t *h = pw_send_room(e, w->prefix + ip_bytes + l4) + w->prefix;
    memcpy(h - w->prefix, original, w->prefix + ip_bytes + l4);
    if (position)
      clear_uncopied_options(h, ip_bytes);
    pw_put16(h + 2, (unsigned)(ip_bytes + l4 + slice));
    pw_put16(h + 6, (last && !more_follow ? 0 : 0x2000) | ((first + position / 8) & 0x1fff));
    pw_put16(h + 10, 0);
    pw_put_sum(h + 10, (uint16_t)~pw_fold(pw_sum(h, ip_bytes)));
    put_packet(e, w, h, ip_bytes + l4, payload, slice);
    pw_count(e, PW_C_fragmentsSent, 1);
    position += (unsigned)(l4 + slice);
    payload += slice;
    payload_bytes -= slice;
    l4 = 0;
  } while (payload_bytes);
}

/* Inlined with constants, so that bare packets do not pay for the other formats. */
static inline __attribute__((always_inline)) void segment_superpacket(struct pw_engine *e, const struct way *w,
                                                                      unsigned prefix, bool to_tun, const uint8_t *p,
                                                                      size_t n, unsigned header, unsigned gso, bool tcp,
                                                                      unsigned fragment_mtu)
{
  struct pw_ip ip;
  if (pw_parse_ip(p, n, &ip))
    return;
  const bool v4 = ip.family == 4;
  const unsigned l4 = ip.l4, l4_bytes = header - l4;
  const unsigned sum_at = l4 + (tcp ? 16 : 6);
  /* what is equal in all segments is summed once: the header with the words that differ set to zero */
  uint8_t whole[PW_VXLAN_BYTES + PW_HEADER_MAX + 1], tun_header[PW_HEADER_MAX + 1];
  uint8_t *base = whole + prefix;
  memcpy(whole, p - prefix, prefix + header);
  uint32_t sequence = 0;
  uint8_t flags = 0;
  unsigned id = 0;
  if (v4) {
    id = pw_get16(base + 4);
    memset(base + 2, 0, 4);
    memset(base + 10, 0, 2);
  }
  const uint64_t ip_sum = v4 ? pw_sum(base, l4) : 0;
  memset(base + sum_at, 0, 2);
  if (tcp) {
    sequence = pw_get32(base + l4 + 4);
    flags = base[l4 + 13];
    memset(base + l4 + 4, 0, 4);
    base[l4 + 13] = 0;
  } else {
    memset(base + l4 + 4, 0, 2);
  }
  const bool in_place = to_tun || fragment_mtu; /* the payload is not copied */
  const uint64_t l4_sum = pw_sum(base + l4, l4_bytes) + pw_pseudo_sum(p, &ip);
  for (size_t at = header; at < n; at += gso) {
    const size_t slice = n - at < gso ? n - at : gso;
    const bool first = at == header, last = at + slice == n;
    uint8_t *h = to_tun ? tun_header : pw_send_room(e, prefix + header + (in_place ? 0 : slice)) + prefix;
    memcpy(h - prefix, whole, prefix + header);
    const unsigned l4_length = (unsigned)(l4_bytes + slice);
    if (v4) {
      const unsigned length = l4 + l4_length;
      pw_put16(h + 2, length);
      pw_put16(h + 4, id & 0xffff);
      pw_put_sum(h + 10, (uint16_t)~pw_fold(ip_sum + htons((uint16_t)length) + htons((uint16_t)id)));
      id++;
    } else {
      pw_put16(h + 4, (unsigned)(l4 + l4_length - 40));
    }
    uint64_t sum = l4_sum + htons((uint16_t)l4_length);
    sum += in_place ? pw_sum(p + at, slice) : pw_sum_copy(h + header, p + at, slice);
    if (tcp) {
      uint8_t f = flags;
      if (!first)
        f &= (uint8_t)~TCP_CWR;
      if (!last)
        f &= (uint8_t) ~(TCP_FIN | PW_TCP_PSH);
      h[l4 + 13] = f;
      pw_put32(h + l4 + 4, sequence);
      sum += htonl(sequence);
      sum += htons(f);
      sequence += (uint32_t)slice;
    } else {
      pw_put16(h + l4 + 4, l4_length);
      sum += htons((uint16_t)l4_length);
    }
    uint16_t check = (uint16_t)~pw_fold(sum);
    pw_put_sum(h + sum_at, check || tcp ? check : 0xffff);
    if (fragment_mtu)
      add_fragments(e, w, h, header, l4, p + at, slice, fragment_mtu);
    else if (to_tun)
      put_packet(e, w, h, header, p + at, slice);
    else
      pw_lane_add(e, w->lane, w->to, h - prefix, prefix + header + slice, NULL, 0);
  }
}

/*
 * Writes the superpacket of n bytes to the TUN one segment at a time, each with its checksum made; counts what is
 * delivered from host. p is a TCP or UDP packet whose headers are `header` bytes. Returns the segments.
 */
unsigned pw_segment_to_tun(struct pw_engine *e, uint32_t host, const uint8_t *p, size_t n, unsigned header, unsigned gso)
{
  struct pw_ip ip;
  const struct way w = {.to = host, .to_tun = true};
  if (pw_parse_ip(p, n, &ip) || header >= n || header > PW_HEADER_MAX || !gso)
    return 0;
  segment_superpacket(e, &w, 0, true, p, n, header, gso, ip.protocol == IPPROTO_TCP, 0);
  return (unsigned)((n - header + gso - 1) / gso);
}

/* Carries out the verdict of one egress row. */
void pw_segment_row(struct pw_engine *e, unsigned index)
{
  const int32_t *r = pw_egress_row(e, index);
  const uint32_t verdict = (uint32_t)r[PW_E_VERDICT];
  const uint32_t row = verdict & PW_V_ROW_MASK;
  const uint32_t offset = (uint32_t)r[PW_E_OFFSET], length = (uint32_t)r[PW_E_LENGTH];
  if (row <= 2 || row >= e->c.nexthop_count || (r[PW_E_FLAGS] & PW_EF_BAD))
    return;
  if (offset > e->c.tun_bytes || length > e->c.tun_bytes - offset || length < 20 || offset < e->encap_bytes)
    return;
  uint8_t *p = e->c.tun_arena + offset;
  struct way w = {.lane = (uint32_t)r[PW_E_HASH] % e->c.send_count, .to = row, .prefix = e->encap_bytes};
  if (e->marks)
    w.to = PW_TO(row, pw_ecn_out(p));
  if (w.prefix)
    pw_vxlan_put(e, row, p - w.prefix, p[0] >> 4 == 6); /* into the headroom, whose virtio header is used up */
  const unsigned mtu = verdict & PW_V_FRAGMENT ? (uint32_t)r[PW_E_SEGMENTS] : 0;
  if (r[PW_E_GSO]) {
    const unsigned header = (unsigned)r[PW_E_HEADER], gso = (unsigned)r[PW_E_GSO];
    const bool tcp = r[PW_E_FLAGS] & PW_EF_TCP;
    if (w.prefix)
      segment_superpacket(e, &w, PW_VXLAN_BYTES, false, p, length, header, gso, tcp, mtu);
    else
      segment_superpacket(e, &w, 0, false, p, length, header, gso, tcp, mtu);
  } else if (mtu) {
    struct pw_ip ip;
    if (pw_parse_ip(p, length, &ip) || ip.family != 4) {
      pw_count(e, PW_C_dropMalformed, 1);
      return;
    }
    /* without the padding that may follow: in a fragment it would become payload */
    add_fragments(e, &w, p, ip.l4, ip.l4, p + ip.l4, ip.length - ip.l4, mtu);
  } else if (length <= PW_COPY_MOST) {
    uint8_t *copy = pw_send_room(e, w.prefix + length);
    memcpy(copy, p - w.prefix, w.prefix + length);
    pw_lane_add(e, w.lane, w.to, copy, w.prefix + length, NULL, 0);
  } else {
    pw_lane_add(e, w.lane, w.to, NULL, 0, p - w.prefix, length + w.prefix);
  }
  pw_count(e, PW_C_egressSuperpackets, 1);
}
