/*
 * From received datagrams to rows for TypeScript: every datagram is one inner packet (flannel's udp framing) or one
 * VXLAN frame around it, and neighbours of one TCP or UDP flow are put together into a run that goes to the TUN as one
 * superpacket.
 *
 * A packet joins a run only when segmenting the superpacket again gives the same packets: equal headers except length,
 * id, checksum, sequence and PSH; consecutive sequence; equal payload size, only the last may be shorter; PSH or a
 * short packet ends the run (the rules of the kernel's GRO, net/ipv4/tcp_offload.c). Without DF the ids must count up
 * (RFC 6864: with DF they carry no meaning). UDP without a checksum is never joined. Checksums are verified when the run
 * is written (ingress.c), which has to read every byte anyway.
 *
 * A kernel's vxlan device on a veth leaves the inner checksum, and the cutting of a TSO or USO superpacket, to a device
 * that never comes (kernel-facts 9): such packets carry the pseudo header's sum, which
 * is all that can be verified of them, and one above the MTU is a row of its own.
 */
#include <errno.h>
#include <string.h>
#include "checksum.h"
#include "engine.h"

#define TCP_ACK 0x10
#define TCP_JOINABLE (TCP_ACK | PW_TCP_PSH | 0x40 /* ECE */)
#define UDP_RUN_SEGMENTS 64
#define TCP_RUN_SEGMENTS 512 /* bounds runs of short segments; full ones end at PW_IP_MAX bytes before */

/* Bytes of IP + L4 header when the packet may be part of a run, else 0. */
static unsigned joinable_header(const struct pw_engine *e, const uint8_t *p, const struct pw_ip *ip)
{
  if (ip->fragment || ip->options)
    return 0;
  if (ip->protocol == IPPROTO_TCP && e->c.tun_tcp) {
    if (ip->length < ip->l4 + 20u)
      return 0;
    const unsigned header = ip->l4 + (p[ip->l4 + 12] >> 4) * 4u;
    const uint8_t flags = p[ip->l4 + 13];
    if (header < ip->l4 + 20u || header >= ip->length || !(flags & TCP_ACK) || (flags & ~TCP_JOINABLE))
      return 0;
    return header;
  }
  if (ip->protocol == IPPROTO_UDP && e->c.tun_udp) {
    if (ip->length <= ip->l4 + 8u || pw_get16(p + ip->l4 + 4) != ip->length - ip->l4 || !pw_get16(p + ip->l4 + 6))
      return 0;
    return ip->l4 + 8;
  }
  return 0;
}

/* Do the headers agree in everything that segmentation would copy? */
static bool headers_agree(const uint8_t *a, const uint8_t *b, const struct pw_ip *ip, unsigned header)
{
  if (ip->family == 4) {
    if (memcmp(a, b, 2) || memcmp(a + 6, b + 6, 4) || memcmp(a + 12, b + 12, 8))
      return false;
  } else if (memcmp(a, b, 4) || memcmp(a + 6, b + 6, 34)) {
    return false;
  }
  a += ip->l4;
  b += ip->l4;
  if (memcmp(a, b, 4))
    return false;
  if (ip->protocol == IPPROTO_UDP)
    return true;
  /* acknowledgement, header length; flags without PSH; window; urgent pointer; options with their timestamps */
  return !memcmp(a + 8, b + 8, 5) && !((a[13] ^ b[13]) & ~PW_TCP_PSH) && !memcmp(a + 14, b + 14, 2) &&
         !memcmp(a + 18, b + 18, header - ip->l4 - 18u);
}

static bool may_join(struct pw_engine *e, const struct pw_flow *f, const uint8_t *p, const struct pw_ip *ip,
                     unsigned header, unsigned sender)
{
  const struct pw_segment *last = &e->segment[f->last];
  const unsigned payload = ip->length - header;
  if (f->sender != sender || payload > f->payload || f->segments >= (f->tcp ? TCP_RUN_SEGMENTS : UDP_RUN_SEGMENTS) ||
      f->bytes + payload > PW_IP_MAX || header != last->header || ip->protocol != f->ip.protocol ||
      ip->family != f->ip.family)
    return false;
  const uint8_t *before = e->c.udp_arena + last->offset;
  if (!headers_agree(before, p, ip, header))
    return false;
  if (ip->family == 4 && !(p[6] & 0x40) && pw_get16(p + 4) != (uint16_t)(f->last_id + 1))
    return false;
  return !f->tcp || pw_get32(p + ip->l4 + 4) == f->next_sequence;
}

/*
 * Segments of a superpacket that nobody cut, or 0 when the packet is one and is delivered as it is. TCP above the MTU is
 * a superpacket and may be cut anywhere, so small enough for any pod's link; UDP is one when UDP_GRO told its segments'
 * size, which pw_vxlan_span then took as such. The packet's checksum is partial.
 */
static __attribute__((noinline)) unsigned segments_of_whole(const struct pw_engine *e, const uint8_t *p, const struct pw_ip *ip, unsigned message,
                                  unsigned *header)
{
  const bool tcp = ip->protocol == IPPROTO_TCP;
  *header = ip->l4 + (tcp ? (p[ip->l4 + 12] >> 4) * 4u : 8u);
  const unsigned gro = (uint32_t)e->c.meta[PW_MESSAGE_BASE + message * PW_ROW_WORDS + PW_M_GRO];
  if (*header < ip->l4 + (tcp ? 20u : 8u) || *header >= ip->length || *header > PW_HEADER_MAX)
    return 0;
  if (tcp ? ip->length <= e->c.inner_mtu || *header >= e->cut_mtu : !gro || ip->length + e->encap_bytes <= gro)
    return 0;
  if (ip->family == 4 && pw_fold(pw_sum(p, ip->l4)) != 0xffff)
    return 0; /* cutting would give the segments a right one */
  const unsigned gso = tcp ? e->cut_mtu - *header : gro;
  return (ip->length - *header + gso - 1) / gso;
}

/*
 * Takes the inner packet of n bytes at offset of the UDP arena into the tables. With `unfinished` a kernel's device may have
 * left the L4 checksum partial. Returns 0 or -ENOSPC when a table is full.
 */
static inline __attribute__((always_inline)) int take_packet(struct pw_engine *e, const bool unfinished, unsigned message,
                                                             uint32_t offset, size_t n, int32_t flags)
{
  if (e->segments >= PW_SEGMENT_TABLE || e->ingress_rows >= PW_MAX_INGRESS)
    return -ENOSPC;
  const uint8_t *p = e->c.udp_arena + offset;
  struct pw_ip ip;
  const bool parsed = !(flags & PW_IF_TRUNCATED) && !pw_parse_ip(p, n, &ip);
  const bool partial = unfinished && parsed && pw_checksum_is_partial(p, &ip);
  unsigned header = 0, whole = partial ? segments_of_whole(e, p, &ip, message, &header) : 0;
  if (!whole)
    header = parsed ? joinable_header(e, p, &ip) : 0;
  struct pw_flow *f = parsed ? &e->flow[pw_flow_hash(p, n, &ip) % PW_FLOW_SLOTS] : NULL;
  const unsigned index = e->segments++; /* index 0 is never used: 0 ends a list */
  struct pw_segment *s = &e->segment[index];
  *s = (struct pw_segment){.offset = offset,
                           .length = (uint16_t)(parsed ? ip.length : n),
                           .header = (uint8_t)header,
                           .partial = partial};
  if (f && f->row && header && !whole && may_join(e, f, p, &ip, header, e->message_sender[message])) {
    const unsigned payload = ip.length - header;
    int32_t *r = pw_ingress_row(e, f->row - 1);
    e->segment[f->last].next = index;
    f->last = index;
    f->bytes += payload;
    f->segments++;
    f->next_sequence += payload;
    f->last_id = pw_get16(p + 4);
    r[PW_I_SEGMENTS]++;
    r[PW_I_BYTES] += (int32_t)ip.length;
    r[PW_I_FLAGS] |= f->tcp ? PW_IF_TCP : PW_IF_UDP;
    if (payload < f->payload || (f->tcp && (p[ip.l4 + 13] & PW_TCP_PSH)))
      f->row = 0;
    return 0;
  }
  int32_t *r = pw_ingress_row(e, e->ingress_rows++);
  r[PW_I_OFFSET] = (int32_t)offset;
  r[PW_I_LENGTH] = (int32_t)n;
  r[PW_I_SEGMENTS] = whole ? (int32_t)whole : 1;
  r[PW_I_FIRST] = (int32_t)index;
  r[PW_I_MESSAGE] = (int32_t)message;
  r[PW_I_VERDICT] = 0;
  r[PW_I_BYTES] = s->length;
  r[PW_I_FLAGS] = flags | (whole ? PW_IF_WHOLE : 0);
  if (!f)
    return 0;
  f->row = 0; /* later packets of this flow must not overtake this one */
  if (header && !whole && !(ip.protocol == IPPROTO_TCP && (p[ip.l4 + 13] & PW_TCP_PSH))) {
    f->row = e->ingress_rows;
    f->last = index;
    f->ip = ip;
    f->payload = (uint16_t)(ip.length - header);
    f->bytes = ip.length;
    f->segments = 1;
    f->tcp = ip.protocol == IPPROTO_TCP;
    f->next_sequence = f->tcp ? pw_get32(p + ip.l4 + 4) + f->payload : 0;
    f->last_id = pw_get16(p + 4);
    f->sender = e->message_sender[message];
  }
  return 0;
}

/*
 * IP in IP (RFC 2003): a message is one outer packet, header included, or the superpacket that GRO made of several; the
 * inner packet's checksum is partial then and its segments' size is not told (kernel-facts, raw sockets behind GRO).
 */
static int take_ip_in_ip(struct pw_engine *e, unsigned message, size_t length, bool cut)
{
  const uint32_t at = (uint32_t)(message * PW_UDP_SLOT);
  uint8_t *p = e->c.udp_arena + at;
  const unsigned header = (p[0] & 15) * 4u;
  if (length < 20 || header < 20 || length < header + 20) {
    pw_count(e, PW_C_dropShort, 1);
    return 0;
  }
  const uint8_t tos = p[1];
  if ((tos & 3) && !pw_ecn_in(p + header, tos)) {
    pw_count(e, PW_C_dropEcnMark, 1);
    return 0;
  }
  return take_packet(e, true, message, at + header, length - header, cut ? PW_IF_TRUNCATED : 0);
}

/* pw_coalesce, inlined once for each wire format, so that bare packets do not pay for the others. */
static inline __attribute__((always_inline)) int coalesce(struct pw_engine *e, const bool vxlan, const bool raw_ip)
{
  e->segments = 1;
  e->ingress_rows = 0;
  memset(e->flow, 0, sizeof e->flow);
  const unsigned encap_bytes = vxlan ? PW_VXLAN_BYTES : 0, least = encap_bytes + 20;
  for (; e->parse_message < e->messages; e->parse_message++, e->parse_offset = 0) {
    const unsigned m = e->parse_message;
    const int32_t *row = pw_message_row(e, m);
    const uint32_t length = (uint32_t)row[PW_M_LENGTH];
    const uint32_t gro = row[PW_M_GRO] ? (uint32_t)row[PW_M_GRO] : length;
    const bool cut = e->receive[m].msg_hdr.msg_flags & MSG_TRUNC;
    if (length == 0) {
      pw_count(e, PW_C_dropShort, 1); /* an empty datagram: flanneld ignores those too */
      continue;
    }
    if (raw_ip) {
      if (take_ip_in_ip(e, m, length, cut))
        return (int)e->ingress_rows;
      continue;
    }
    while (e->parse_offset < length) {
      uint32_t n = length - e->parse_offset < gro ? length - e->parse_offset : gro;
      const uint32_t at = (uint32_t)(m * PW_UDP_SLOT) + e->parse_offset;
      if (vxlan && n < length && !e->parse_offset && length >= least)
        n = pw_vxlan_span(e->c.udp_arena + at, n, length);
      const int probe = n < least ? pw_probe_take(e, m, at, n) : 0;
      if (probe < 0)
        return (int)e->ingress_rows;
      if (n < least) {
        if (!probe)
          pw_count(e, PW_C_dropShort, 1);
      } else if (!vxlan || pw_vxlan_take(e, m, e->c.udp_arena + at)) {
        if (take_packet(e, vxlan, m, at + encap_bytes, n - encap_bytes,
                        cut && e->parse_offset + n == length ? PW_IF_TRUNCATED : 0))
          return (int)e->ingress_rows;
      }
      e->parse_offset += n;
    }
  }
  return (int)e->ingress_rows;
}

/* Turns received messages into ingress rows, going on where a full table stopped it. Returns the rows filled. */
int pw_coalesce(struct pw_engine *e)
{
  if (e->c.raw_ip)
    return coalesce(e, false, true);
  return e->encap_bytes ? coalesce(e, true, false) : coalesce(e, false, false);
}
