/* Underlay to TUN: receives batches, writes the runs and packets TypeScript let through, and sends its replies. */
#include <errno.h>
#include <string.h>
#include <unistd.h>
#include "checksum.h"
#include "engine.h"
#include "udp-options.h"

/* Makes receive slot i ready for the next recvmmsg, which changes lengths and flags of those it uses. */
void pw_ingress_arm(struct pw_engine *e, unsigned i)
{
  struct msghdr *m = &e->receive[i].msg_hdr;
  m->msg_name = &e->receive_from[i];
  m->msg_namelen = sizeof e->receive_from[i];
  m->msg_iov = &e->receive_iov[i];
  m->msg_iovlen = 1;
  m->msg_control = e->receive_control[i].bytes;
  m->msg_controllen = sizeof e->receive_control[i].bytes;
  m->msg_flags = 0;
}

static void describe_message(struct pw_engine *e, unsigned i, size_t length)
{
  int32_t *r = pw_message_row(e, i);
  const struct sockaddr_in6 *from = &e->receive_from[i];
  const uint8_t *address = from->sin6_addr.s6_addr;
  memset(r, 0, PW_ROW_WORDS * sizeof *r);
  if (from->sin6_family == AF_INET) {
    struct sockaddr_in v4;
    memcpy(&v4, from, sizeof v4);
    r[PW_M_FAMILY] = 4;
    r[PW_M_WORD0] = (int32_t)ntohl(v4.sin_addr.s_addr);
  } else if (IN6_IS_ADDR_V4MAPPED(&from->sin6_addr)) {
    r[PW_M_FAMILY] = 4;
    r[PW_M_WORD0] = (int32_t)pw_get32(address + 12);
  } else {
    r[PW_M_FAMILY] = 6;
    for (int w = 0; w < 4; w++)
      r[PW_M_WORD0 + w] = (int32_t)pw_get32(address + 4 * w);
  }
  r[PW_M_PORT] = ntohs(from->sin6_port); /* the port lies at the same place in both families */
  r[PW_M_LENGTH] = (int32_t)length;
  e->message_tos[i] = 0;
  struct msghdr *m = &e->receive[i].msg_hdr;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
    int size;
    if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO && c->cmsg_len >= CMSG_LEN(sizeof size)) {
      memcpy(&size, CMSG_DATA(c), sizeof size);
      if (size > 0 && (size_t)size < length)
        r[PW_M_GRO] = size;
    } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS && c->cmsg_len >= CMSG_LEN(1)) {
      e->message_tos[i] = *CMSG_DATA(c);
    } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS && c->cmsg_len >= CMSG_LEN(sizeof size)) {
      memcpy(&size, CMSG_DATA(c), sizeof size);
      e->message_tos[i] = (uint8_t)size;
    }
  }
  e->message_sender[i] = (uint16_t)i;
  if (i && !memcmp(r, pw_message_row(e, e->message_sender[i - 1]), 5 * sizeof *r))
    e->message_sender[i] = e->message_sender[i - 1];
}

/* Receives what waits, at most one batch. Returns messages or -errno. */
int pw_ingress_receive(struct pw_engine *e)
{
  int n;
  pw_count(e, PW_C_receiveCalls, 1);
  if (e->c.batch_calls) {
    n = recvmmsg(e->c.udp_fd, e->receive, e->message_slots, MSG_DONTWAIT, NULL);
  } else {
    ssize_t bytes = recvmsg(e->c.udp_fd, &e->receive[0].msg_hdr, MSG_DONTWAIT);
    n = bytes < 0 ? -1 : 1;
    if (bytes >= 0)
      e->receive[0].msg_len = (unsigned)bytes;
  }
  e->messages = e->parse_message = 0;
  e->parse_offset = 0;
  if (n < 0)
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
  for (int i = 0; i < n; i++) {
    size_t length = e->receive[i].msg_len;
    if (length > 65536)
      length = 65536;
    describe_message(e, (unsigned)i, length);
    e->turn_bytes += length;
  }
  e->messages = (unsigned)n;
  pw_count(e, PW_C_receiveMessages, n);
  return n;
}

/* Rearms the slots that the last batch used; after coalescing, which still looks at their flags. */
static void rearm_slots(struct pw_engine *e)
{
  for (unsigned i = 0; i < e->messages; i++)
    pw_ingress_arm(e, i);
  e->messages = 0;
}

/* One packet or superpacket to the TUN; a refused single packet is counted, a refused superpacket is the caller's. */
static bool tun_write(struct pw_engine *e, struct iovec *iov, int count, unsigned segments)
{
  ssize_t n;
  do
    n = writev(e->c.tun_fd, iov, count);
  while (n < 0 && errno == EINTR);
  pw_count(e, PW_C_tunWrites, 1);
  if (n >= 0)
    return true;
  if (segments <= 1)
    pw_count(e, errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM ? PW_C_dropTunFull : PW_C_dropTunError, 1);
  return false;
}

static void count_delivered(struct pw_engine *e, uint32_t host, double segments, double bytes)
{
  pw_count(e, PW_C_ingressPackets, segments);
  pw_count(e, PW_C_ingressBytes, bytes);
  if (host && host < e->c.peer_count) {
    double *peer = e->c.peers + (size_t)host * PW_PEER_WORDS;
    peer[2] += segments;
    peer[3] += bytes;
  }
}

/* One packet to the TUN, counted as delivered from host or as a drop. */
void pw_tun_deliver(struct pw_engine *e, struct iovec *iov, int count, uint32_t host, size_t bytes)
{
  if (tun_write(e, iov, count, 1))
    count_delivered(e, host, 1, (double)bytes);
  else if (host && host < e->c.peer_count)
    e->c.peers[(size_t)host * PW_PEER_WORDS + PW_PEER_RX_DROPS] += 1;
}

/* Virtio header of a TCP or UDP packet whose checksum is still to be made. */
static struct pw_virtio_header unfinished(const struct pw_ip *ip)
{
  return (struct pw_virtio_header){
      .flags = PW_VIRTIO_NEEDS_CSUM, .csum_start = ip->l4, .csum_offset = ip->protocol == IPPROTO_TCP ? 16 : 6};
}

/* The same of a superpacket: `header` bytes of IP and L4 header, then segments of `gso` bytes. */
static struct pw_virtio_header uncut(const struct pw_ip *ip, unsigned header, unsigned gso)
{
  struct pw_virtio_header h = unfinished(ip);
  h.gso_type = ip->protocol != IPPROTO_TCP ? PW_GSO_UDP_L4 : ip->family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6;
  h.header_length = (uint16_t)header;
  h.gso_size = (uint16_t)gso;
  return h;
}

static void write_single(struct pw_engine *e, const struct pw_segment *s, uint32_t host)
{
  struct pw_virtio_header h = {0};
  uint8_t *p = e->c.udp_arena + s->offset;
  struct pw_ip ip;
  if (s->partial && !pw_parse_ip(p, s->length, &ip)) {
    h = unfinished(&ip);
    if (!e->c.virtio_bytes)
      pw_complete_checksum(p, s->length, &h);
  }
  struct iovec iov[2] = {{&h, e->c.virtio_bytes}, {p, s->length}};
  pw_tun_deliver(e, e->c.virtio_bytes ? iov : iov + 1, e->c.virtio_bytes ? 2 : 1, host, s->length);
}

/*
 * A packet above the MTU that a kernel left for a device to cut (kernel-facts 9): as one superpacket where the TUN takes
 * those, else in segments. UDP_GRO told the size of UDP's; TCP's may be any that fits.
 */
static void write_whole(struct pw_engine *e, const int32_t *r, uint32_t host)
{
  const struct pw_segment *s = &e->segment[r[PW_I_FIRST]];
  uint8_t *p = e->c.udp_arena + s->offset;
  struct pw_ip ip;
  if (pw_parse_ip(p, s->length, &ip))
    return;
  const bool tcp = ip.protocol == IPPROTO_TCP;
  const unsigned gso = tcp ? e->cut_mtu - s->header : (unsigned)pw_message_row(e, (unsigned)r[PW_I_MESSAGE])[PW_M_GRO];
  if (tcp ? e->c.tun_tcp : e->c.tun_udp) {
    struct pw_virtio_header h = uncut(&ip, s->header, gso);
    if (tcp && (p[ip.l4 + 13] & 0x80))
      h.gso_type |= PW_GSO_ECN; /* CWR belongs to the first segment only */
    struct iovec iov[2] = {{&h, PW_VIRTIO_BYTES}, {p, s->length}};
    if (tun_write(e, iov, 2, 2)) {
      count_delivered(e, host, r[PW_I_SEGMENTS], s->length);
      return;
    }
    pw_count(e, PW_C_fallbackTunGso, 1);
  }
  pw_segment_to_tun(e, host, p, s->length, s->header, gso);
}

/* IPv4 header and L4 checksum of t, as they arrived; its L4 payload is copied to `to`. A partial one is to be made. */
static bool copy_verified(const struct pw_engine *e, const struct pw_segment *t, const struct pw_ip *ip, uint64_t pseudo,
                          uint8_t *to)
{
  const uint8_t *p = e->c.udp_arena + t->offset;
  uint64_t sum = pseudo + htons((uint16_t)(t->length - ip->l4)) + pw_sum(p + ip->l4, t->header - (size_t)ip->l4);
  sum += pw_sum_copy(to, p + t->header, t->length - (size_t)t->header);
  return (t->partial || pw_fold(sum) == 0xffff) && (ip->family == 6 || pw_fold(pw_sum(p, ip->l4)) == 0xffff);
}

/* The first packet's header made that of n bytes: length, both checksums as v has them, and the last packet's PSH. */
static void finish_header(uint8_t *h, size_t n, const struct pw_ip *ip, const struct pw_virtio_header *v, bool push)
{
  const unsigned l4_bytes = (unsigned)n - ip->l4;
  if (ip->family == 4) {
    pw_put16(h + 2, (unsigned)n);
    pw_put16(h + 10, 0);
    pw_put_sum(h + 10, (uint16_t)~pw_fold(pw_sum(h, ip->l4)));
  } else {
    pw_put16(h + 4, l4_bytes);
  }
  if (push)
    h[ip->l4 + 13] |= PW_TCP_PSH;
  if (ip->protocol == IPPROTO_UDP)
    pw_put16(h + ip->l4 + 4, l4_bytes);
  pw_put_sum(h + v->csum_start + v->csum_offset, pw_fold(pw_pseudo_sum(h, ip) + htons((uint16_t)l4_bytes)));
}

/*
 * The packets of a run from segment `at` on as one superpacket, up to the first whose checksums do not hold: it is
 * written with NEEDS_CSUM, which would hide corruption. The payload is copied while it is summed, for the same reason as
 * in segment.c. A packet that is alone is written as it came, wrong or right. Returns the segment to go on with, 0 = none.
 */
static uint32_t write_run(struct pw_engine *e, uint32_t at, uint32_t host)
{
  const struct pw_segment *first = &e->segment[at];
  const uint8_t *p = e->c.udp_arena + first->offset;
  const unsigned header = first->header;
  struct pw_ip ip;
  uint8_t *h = pw_send_room(e, PW_IP_MAX);
  size_t n = header, bytes = 0;
  unsigned count = 0;
  bool push = false;
  uint32_t next = at;
  if (!pw_parse_ip(p, first->length, &ip)) {
    const uint64_t pseudo = pw_pseudo_sum(p, &ip);
    memcpy(h, p, header);
    while (next) {
      const struct pw_segment *t = &e->segment[next];
      if (n + t->length - header > PW_IP_MAX || !copy_verified(e, t, &ip, pseudo, h + n))
        break;
      n += t->length - header;
      bytes += t->length;
      count++;
      push = ip.protocol == IPPROTO_TCP && (e->c.udp_arena[t->offset + ip.l4 + 13] & PW_TCP_PSH);
      next = t->next;
    }
  }
  if (count > 1) {
    struct pw_virtio_header v = uncut(&ip, header, first->length - header);
    finish_header(h, n, &ip, &v, push);
    struct iovec iov[2] = {{&v, PW_VIRTIO_BYTES}, {h, n}};
    if (tun_write(e, iov, 2, count)) {
      count_delivered(e, host, count, (double)bytes);
      at = next;
    } else {
      pw_count(e, PW_C_fallbackTunGso, 1); /* one by one instead: nothing is lost by the refusal */
    }
  } else {
    next = first->next;
  }
  for (; at != next; at = e->segment[at].next)
    write_single(e, &e->segment[at], host);
  e->send_used = (unsigned)(h - e->send_arena); /* the room was for this write only */
  return next;
}

void pw_ingress_write(struct pw_engine *e)
{
  for (unsigned i = 0; i < e->ingress_rows; i++) {
    const int32_t *r = pw_ingress_row(e, i);
    if (r[PW_I_VERDICT] <= 0)
      continue;
    if (r[PW_I_FLAGS] & PW_IF_PROBE) {
      pw_probe_answer(e, r);
      continue;
    }
    const uint32_t host = (uint32_t)r[PW_I_VERDICT] - 1, count = (uint32_t)r[PW_I_SEGMENTS];
    pw_count(e, PW_C_ingressSuperpackets, 1);
    if (r[PW_I_FLAGS] & PW_IF_WHOLE) {
      write_whole(e, r, host);
      continue;
    }
    uint32_t at = (uint32_t)r[PW_I_FIRST];
    while (at && count > 1 && (r[PW_I_FLAGS] & (PW_IF_TCP | PW_IF_UDP)))
      at = write_run(e, at, host);
    for (; at; at = e->segment[at].next)
      write_single(e, &e->segment[at], host);
  }
  e->ingress_rows = 0;
  if (e->parse_message >= e->messages)
    rearm_slots(e);
}

/* Packets that TypeScript built (ICMP errors): through the host's raw socket, else through the TUN (design 9.4). */
void pw_replies_send(struct pw_engine *e)
{
  unsigned count = (unsigned)e->c.meta[PW_META_REPLY_COUNT];
  e->c.meta[PW_META_REPLY_COUNT] = 0;
  for (unsigned i = 0; i < count && i < PW_MAX_REPLIES; i++) {
    const int32_t *r = e->c.meta + PW_REPLY_BASE + i * PW_ROW_WORDS;
    const uint32_t offset = (uint32_t)r[PW_R_OFFSET], length = (uint32_t)r[PW_R_LENGTH];
    const uint32_t l4 = (uint32_t)r[PW_R_L4_OFFSET];
    if (offset > e->c.reply_bytes || length > e->c.reply_bytes - offset || l4 >= length || l4 < 20)
      continue;
    uint8_t *p = e->c.reply_arena + offset;
    const bool v6 = r[PW_R_FAMILY] == 6;
    const int fd = v6 ? e->c.icmp6_fd : e->c.icmp4_fd;
    ssize_t n = -1;
    if (fd >= 0 && (!v6 || l4 >= 40)) {
      struct sockaddr_in to4 = {.sin_family = AF_INET};
      struct sockaddr_in6 to6 = {.sin6_family = AF_INET6};
      if (v6)
        memcpy(&to6.sin6_addr, p + 24, 16);
      else
        memcpy(&to4.sin_addr, p + 16, 4);
      n = sendto(fd, p + l4, length - l4, MSG_DONTWAIT, v6 ? (struct sockaddr *)&to6 : (struct sockaddr *)&to4,
                 v6 ? sizeof to6 : sizeof to4);
    }
    if (n < 0) {
      struct pw_virtio_header h = {0};
      struct iovec iov[2] = {{&h, e->c.virtio_bytes}, {p, length}};
      n = writev(e->c.tun_fd, e->c.virtio_bytes ? iov : iov + 1, e->c.virtio_bytes ? 2 : 1);
    }
    pw_count(e, n < 0 ? PW_C_dropReplyError : PW_C_repliesSent, 1);
  }
}
