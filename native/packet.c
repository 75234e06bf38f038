/* Reading IP headers: RFC 791, RFC 8200. Nothing past the n bytes that were received is ever read. */
#include <errno.h>
#include <string.h>
#include "checksum.h"
#include "engine.h"

#define MAX_EXTENSIONS 8

static int parse_ipv6(const uint8_t *p, size_t n, struct pw_ip *ip)
{
  if (n < 40)
    return -EINVAL;
  size_t length = 40 + (size_t)pw_get16(p + 4);
  if (length > n)
    return -EINVAL;
  uint8_t next = p[6];
  size_t at = 40;
  bool fragment = false;
  for (int i = 0; i < MAX_EXTENSIONS; i++) {
    if (next == 44) { /* fragment header, RFC 8200 4.5 */
      if (at + 8 > length)
        return -EINVAL;
      fragment = true;
      next = p[at];
      at += 8;
      break; /* what follows in a later fragment is payload */
    }
    if (next != 0 && next != 43 && next != 60)
      break;
    if (at + 8 > length)
      return -EINVAL;
    size_t bytes = 8 + (size_t)p[at + 1] * 8;
    next = p[at];
    if (at + bytes > length)
      return -EINVAL;
    at += bytes;
  }
  ip->length = (uint32_t)length;
  ip->l4 = (uint16_t)at;
  ip->family = 6;
  ip->protocol = next;
  ip->fragment = fragment;
  ip->options = at != 40;
  return 0;
}

int pw_parse_ip(const uint8_t *p, size_t n, struct pw_ip *ip)
{
  memset(ip, 0, sizeof *ip);
  if (n < 20)
    return -EINVAL;
  if (p[0] >> 4 == 6)
    return parse_ipv6(p, n, ip);
  if (p[0] >> 4 != 4)
    return -EINVAL;
  unsigned header = (p[0] & 15u) * 4;
  unsigned length = pw_get16(p + 2);
  if (header < 20 || length < header || length > n)
    return -EINVAL;
  ip->length = length;
  ip->l4 = (uint16_t)header;
  ip->family = 4;
  ip->protocol = p[9];
  ip->fragment = (pw_get16(p + 6) & 0x3fff) != 0;
  ip->options = header != 20;
  return 0;
}

static inline uint32_t mix(uint32_t h, uint32_t v)
{
  h = (h ^ v) * 0x9e3779b1u;
  return h ^ h >> 15;
}

uint32_t pw_flow_hash(const uint8_t *p, size_t n, const struct pw_ip *ip)
{
  uint32_t h = ip->protocol;
  size_t from = ip->family == 6 ? 8 : 12, to = ip->family == 6 ? 40 : 20;
  for (size_t i = from; i < to; i += 4)
    h = mix(h, pw_get32(p + i));
  if (!ip->fragment && (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP) && (size_t)ip->l4 + 4 <= n)
    h = mix(h, pw_get32(p + ip->l4));
  h = mix(h, h >> 7);
  return h >> 1;
}

uint64_t pw_pseudo_sum(const uint8_t *p, const struct pw_ip *ip)
{
  uint64_t addresses = ip->family == 6 ? pw_sum(p + 8, 32) : pw_sum(p + 12, 8);
  return addresses + htons(ip->protocol);
}
