/*
 * VXLAN around inner packets (RFC 7348), and what a tunnel does with congestion marks. The header of a next hop is
 * prebuilt by TypeScript (src/encap/vxlan.ts); here it is copied, and a received one is compared:
 *
 *   0 flags: 08, the I flag | 1 reserved:24 | 4 VNI:24 | 7 reserved | 8 inner destination MAC | 14 inner source MAC
 *   20 EtherType: 0800 or 86dd | 22 inner IP packet
 *
 * What is refused is what the kernel's device refuses (vxlan_rcv in drivers/net/vxlan/vxlan_core.c, eth_type_trans,
 * ip_forward), each with a counter of its own.
 */
#include <string.h>
#include "checksum.h"
#include "engine.h"

#define DESTINATION_MAC 8
#define SOURCE_MAC 14
#define ETHERTYPE 20
#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd

/* Writes the header for next hop `row` to the PW_VXLAN_BYTES at `at`. */
void pw_vxlan_put(const struct pw_engine *e, uint32_t row, uint8_t *at, bool v6)
{
  memcpy(at, e->c.nexthops + (size_t)row * PW_NEXTHOP_BYTES + PW_NEXTHOP_ENCAP, PW_VXLAN_BYTES);
  if (v6)
    pw_put16(at + ETHERTYPE, ETHERTYPE_IPV6);
}

static bool type_agrees(const uint8_t *frame)
{
  const unsigned version = frame[PW_VXLAN_BYTES] >> 4, type = pw_get16(frame + ETHERTYPE);
  return type == ETHERTYPE_IPV4 ? version == 4 : type == ETHERTYPE_IPV6 && version == 6;
}

/* Why the frame is not for this end point. GBP (0x80), GPE (0x04) and every other extension change what follows. */
static enum pw_counter refusal(const struct pw_engine *e, const uint8_t *frame)
{
  const uint8_t *vtep = e->c.vtep;
  if (memcmp(frame, vtep, 4) || frame[7] != vtep[7])
    return PW_C_dropVxlanFlags;
  if (memcmp(frame + 4, vtep + 4, 3))
    return PW_C_dropVxlanVni;
  if (!memcmp(frame + SOURCE_MAC, vtep + DESTINATION_MAC, 6))
    return PW_C_dropVxlanLoop;
  if (!type_agrees(frame))
    return PW_C_dropVxlanType;
  return frame[DESTINATION_MAC] & 1 ? PW_C_dropVxlanGroup : PW_C_dropVxlanMac;
}

/*
 * Takes the frame of at least PW_VXLAN_BYTES + 20 bytes, carrying the outer congestion mark over to its packet. False
 * when it was counted as a drop.
 */
bool pw_vxlan_take(struct pw_engine *e, unsigned message, uint8_t *frame)
{
  const uint8_t *vtep = e->c.vtep;
  if (memcmp(frame, vtep, PW_VTEP_BYTES) || !memcmp(frame + SOURCE_MAC, vtep + DESTINATION_MAC, 6) ||
      !type_agrees(frame)) {
    pw_count(e, refusal(e, frame), 1);
    return false;
  }
  const uint8_t tos = e->message_tos[message];
  if ((tos & 3) && !pw_ecn_in(frame + PW_VXLAN_BYTES, tos)) {
    pw_count(e, PW_C_dropEcnMark, 1);
    return false;
  }
  return true;
}

/*
 * Bytes of the first frame of a message that UDP_GRO says consists of frames of `size` bytes. UDP_GRO is also what the
 * kernel reports for a single frame around a UDP superpacket that nobody cut: the inner packet then spans the message,
 * its checksum is partial, and `size` is the payload of its segments.
 */
uint32_t pw_vxlan_span(const uint8_t *frame, uint32_t size, uint32_t length)
{
  struct pw_ip ip;
  const uint8_t *p = frame + PW_VXLAN_BYTES;
  if (pw_parse_ip(p, length - PW_VXLAN_BYTES, &ip) || ip.length + PW_VXLAN_BYTES <= size ||
      ip.protocol != IPPROTO_UDP || !pw_checksum_is_partial(p, &ip))
    return size;
  return length;
}

/* Is the L4 checksum of this TCP or UDP packet no more than the pseudo header's sum? p holds ip->length bytes. */
bool pw_checksum_is_partial(const uint8_t *p, const struct pw_ip *ip)
{
  const bool tcp = ip->protocol == IPPROTO_TCP;
  if (ip->fragment || (!tcp && ip->protocol != IPPROTO_UDP) || ip->l4 + (tcp ? 20u : 8u) > ip->length)
    return false;
  uint16_t field;
  memcpy(&field, p + ip->l4 + (tcp ? 16 : 6), 2);
  return field == pw_fold(pw_pseudo_sum(p, ip) + htons((uint16_t)(ip->length - ip->l4)));
}

static uint8_t traffic_class(const uint8_t *p)
{
  return p[0] >> 4 == 4 ? p[1] : (uint8_t)(p[0] << 4 | p[1] >> 4);
}

/*
 * The outer type of service for the inner packet at p: no DSCP (flannel's device has `tos 0`), its congestion mark, CE
 * as ECT(0) as INET_ECN_encapsulate() has it (include/net/inet_ecn.h; the full-functionality option of RFC 3168 9.1.1).
 */
uint8_t pw_ecn_out(const uint8_t *p)
{
  const uint8_t mark = traffic_class(p) & 3;
  return mark == PW_ECN_CE ? PW_ECN_ECT0 : mark;
}

static void set_mark(uint8_t *p, uint8_t mark)
{
  if (p[0] >> 4 == 6) {
    p[1] = (uint8_t)((p[1] & ~0x30) | mark << 4);
    return;
  }
  /* RFC 1624 3, eqn. 3: HC' = ~(~HC + ~m + m') over the word that holds the type of service */
  const unsigned before = pw_get16(p), after = (before & ~3u) | mark;
  unsigned sum = (~pw_get16(p + 10) & 0xffffu) + (~before & 0xffffu) + after;
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  pw_put16(p, after);
  pw_put16(p + 10, ~sum & 0xffff);
}

/*
 * Carries the congestion mark of a received outer header over to the inner packet, as RFC 6040 4.2 and
 * INET_ECN_decapsulate() do: CE and ECT(1) replace a lesser mark. False when the packet must be dropped: it was marked
 * CE on the way although its sender does not understand marks.
 */
bool pw_ecn_in(uint8_t *p, uint8_t outer_tos)
{
  const uint8_t outer = outer_tos & 3, inner = traffic_class(p) & 3;
  if (inner == 0)
    return outer != PW_ECN_CE;
  if (outer == PW_ECN_CE ? inner != PW_ECN_CE : outer == PW_ECN_ECT1 && inner == PW_ECN_ECT0)
    set_mark(p, outer);
  return true;
}
