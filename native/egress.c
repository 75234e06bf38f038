/* TUN to underlay: reads bursts, describes them for TypeScript, and sends what TypeScript decided to forward. */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "checksum.h"
#include "engine.h"

/* Completes the L4 checksum of a single packet that the kernel left to the device (virtio NEEDS_CSUM). */
int pw_complete_checksum(uint8_t *p, size_t n, const struct pw_virtio_header *h)
{
  size_t start = h->csum_start, at = start + h->csum_offset;
  if (start >= n || at + 2 > n)
    return -EINVAL;
  /* the field holds the pseudo header's sum, so it is simply part of the range */
  uint16_t sum = (uint16_t)~pw_fold(pw_sum(p + start, n - start));
  pw_put_sum(p + at, sum || h->csum_offset != 6 ? sum : 0xffff); /* RFC 768: a UDP sum of zero is sent as ones */
  return 0;
}

/* Describes the n bytes at offset of the TUN arena as egress row `row`. Always fills the row; 0 or -EINVAL. */
int pw_tun_accept(struct pw_engine *e, unsigned row, uint32_t offset, size_t n, const struct pw_virtio_header *h)
{
  uint8_t *p = e->c.tun_arena + offset;
  int32_t *r = pw_egress_row(e, row);
  struct pw_ip ip;
  r[PW_E_OFFSET] = (int32_t)offset;
  r[PW_E_LENGTH] = (int32_t)n;
  r[PW_E_GSO] = r[PW_E_FLAGS] = r[PW_E_HEADER] = r[PW_E_HASH] = r[PW_E_VERDICT] = 0;
  r[PW_E_SEGMENTS] = 1;
  if (pw_parse_ip(p, n, &ip)) {
    r[PW_E_FLAGS] = PW_EF_BAD;
    return -EINVAL;
  }
  r[PW_E_HASH] = (int32_t)pw_flow_hash(p, n, &ip);
  unsigned type = h ? h->gso_type & ~PW_GSO_ECN : PW_GSO_NONE;
  if (type == PW_GSO_NONE) {
    r[PW_E_LENGTH] = (int32_t)(n = ip.length); /* what follows is padding: it goes nowhere and is in no checksum */
    if (h && (h->flags & PW_VIRTIO_NEEDS_CSUM) && pw_complete_checksum(p, n, h)) {
      r[PW_E_FLAGS] = PW_EF_BAD;
      return -EINVAL;
    }
    return 0;
  }
  bool tcp = type == PW_GSO_TCPV4 || type == PW_GSO_TCPV6;
  unsigned family = type == PW_GSO_TCPV4 ? 4 : type == PW_GSO_TCPV6 ? 6 : ip.family;
  unsigned l4_bytes = 8;
  r[PW_E_FLAGS] = PW_EF_BAD;
  if ((!tcp && type != PW_GSO_UDP_L4) || ip.family != family || ip.fragment || ip.length != n || h->gso_size == 0 ||
      ip.protocol != (tcp ? IPPROTO_TCP : IPPROTO_UDP))
    return -EINVAL;
  if ((size_t)ip.l4 + (tcp ? 20 : 8) > n)
    return -EINVAL;
  if (tcp)
    l4_bytes = (p[ip.l4 + 12] >> 4) * 4u;
  unsigned header = ip.l4 + l4_bytes;
  if (l4_bytes < (tcp ? 20u : 8u) || header >= n || header > PW_HEADER_MAX)
    return -EINVAL;
  r[PW_E_FLAGS] = tcp ? PW_EF_TCP : PW_EF_UDP;
  r[PW_E_GSO] = h->gso_size;
  r[PW_E_HEADER] = (int32_t)header;
  r[PW_E_SEGMENTS] = (int32_t)((n - header + h->gso_size - 1) / h->gso_size);
  return 0;
}

/*
 * Reads packets until the queue is dry, the table or the arena is full. Packets are laid densely, each IP header at a
 * multiple of 64 plus the headroom, so that small packets share pages. Returns the rows filled or -errno.
 */
int pw_egress_read(struct pw_engine *e)
{
  const unsigned virtio = e->c.virtio_bytes;
  const unsigned most = e->c.batch_calls ? PW_MAX_EGRESS : 1;
  size_t at = 0;
  unsigned rows = 0;
  while (rows < most && e->c.tun_bytes - at >= PW_TUN_SLOT) {
    uint32_t offset = (uint32_t)(at + e->tun_headroom);
    uint8_t *p = e->c.tun_arena + offset;
    ssize_t n = read(e->c.tun_fd, p - virtio, 65536 + virtio);
    if (n < 0) {
      if (errno == EAGAIN)
        break;
      if (errno == EINTR)
        continue;
      if (rows)
        break;
      return -errno;
    }
    pw_count(e, PW_C_tunReads, 1);
    if ((size_t)n <= virtio)
      continue;
    struct pw_virtio_header h;
    if (virtio)
      memcpy(&h, p - virtio, sizeof h);
    size_t length = (size_t)n - virtio;
    pw_tun_accept(e, rows, offset, length, virtio ? &h : NULL);
    e->turn_bytes += length;
    rows++;
    at = (offset + length + 63) & ~(size_t)63;
  }
  e->egress_rows = rows;
  return (int)rows;
}

void pw_egress_send(struct pw_engine *e)
{
  for (unsigned i = 0; i < e->egress_rows; i++)
    pw_segment_row(e, i);
  e->egress_rows = 0;
  pw_lanes_flush(e);
}
