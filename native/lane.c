/*
 * Lanes: what waits to be sent from one socket. Datagrams of equal size for one next hop share an entry, so that they
 * cross the underlay's stack once (UDP_SEGMENT, include/uapi/linux/udp.h): only the last of them may be shorter, at
 * most 65,507 bytes (65,487 over IPv6) and udp_segments of them. Segment borders are byte counts, not iovec borders.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include "engine.h"
#include "udp-options.h"

#define ENTRY_BYTES 65487u
#define FULL_WAIT_MS 2
#define BACKOFF_NS 10000000000ll

/*
 * Room for at most PW_SEND_ARENA bytes that stays valid until the next flush; flushes when the arena is used up. What is
 * built in one room after the other lies together, so that the kernel copies it as one piece.
 */
uint8_t *pw_send_room(struct pw_engine *e, size_t bytes)
{
  if (e->send_used + bytes > PW_SEND_ARENA)
    pw_lanes_flush(e);
  uint8_t *room = e->send_arena + e->send_used;
  e->send_used += (unsigned)bytes;
  return room;
}

static void open_entry(struct pw_engine *e, struct pw_lane *l, uint32_t to, size_t size)
{
  const uint8_t *nexthop = e->c.nexthops + (size_t)PW_TO_ROW(to) * PW_NEXTHOP_BYTES;
  uint16_t name_bytes;
  memcpy(&name_bytes, nexthop + PW_NEXTHOP_SOCKADDR_LENGTH, 2);
  struct msghdr *m = &l->message[l->entries].msg_hdr;
  m->msg_name = (void *)(uintptr_t)nexthop;
  m->msg_namelen = name_bytes;
  m->msg_iov = &l->iov[l->iovs];
  m->msg_iovlen = 0;
  m->msg_control = NULL;
  m->msg_controllen = 0;
  m->msg_flags = 0;
  l->entry[l->entries] = (struct pw_entry){.to = to, .size = (uint16_t)size};
  l->entries++;
}

/* The next bytes of the newest entry; bytes that follow its last ones in memory become part of the same iovec. */
static void append(struct pw_lane *l, const uint8_t *at, size_t bytes)
{
  struct msghdr *m = &l->message[l->entries - 1].msg_hdr;
  struct iovec *last = l->iovs ? &l->iov[l->iovs - 1] : NULL;
  if (!bytes)
    return;
  if (m->msg_iovlen && (uint8_t *)last->iov_base + last->iov_len == at) {
    last->iov_len += bytes;
    return;
  }
  l->iov[l->iovs++] = (struct iovec){(void *)(uintptr_t)at, bytes};
  m->msg_iovlen++;
}

/*
 * Adds the datagram header + payload for the next hop and outer type of service in PW_TO form. Both ranges must stay as
 * they are until the lane is flushed; either may be empty.
 */
void pw_lane_add(struct pw_engine *e, unsigned lane, uint32_t to, const uint8_t *header, size_t header_bytes,
                 const uint8_t *payload, size_t payload_bytes)
{
  struct pw_lane *l = &e->lane[lane];
  const size_t size = header_bytes + payload_bytes;
  if (size > PW_IP_MAX)
    return;
  if (l->iovs + 2 > PW_LANE_IOVS)
    pw_lane_flush(e, lane);
  struct pw_entry *t = l->entries ? &l->entry[l->entries - 1] : NULL;
  if (!t || t->to != to || t->closed || size > t->size || t->segments >= e->c.udp_segments ||
      t->bytes + size > ENTRY_BYTES) {
    if (l->entries == PW_LANE_ENTRIES)
      pw_lane_flush(e, lane);
    open_entry(e, l, to, size);
    t = &l->entry[l->entries - 1];
  }
  append(l, header, header_bytes);
  append(l, payload, payload_bytes);
  t->bytes += (uint32_t)size;
  t->segments++;
  t->closed = size < t->size;
}

/* Control messages of entry i: its type of service when there is one, then UDP_SEGMENT when it is to be cut. */
static void attach_control(struct pw_lane *l, unsigned i, bool cut)
{
  struct msghdr *m = &l->message[i].msg_hdr;
  struct cmsghdr *c = &l->control[i].align;
  m->msg_control = c;
  m->msg_controllen = 0;
  const int tos = PW_TO_TOS(l->entry[i].to);
  if (tos) {
    const bool v4 = m->msg_namelen == sizeof(struct sockaddr_in);
    c->cmsg_level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
    c->cmsg_type = v4 ? IP_TOS : IPV6_TCLASS;
    c->cmsg_len = CMSG_LEN(sizeof tos);
    memcpy(CMSG_DATA(c), &tos, sizeof tos);
    m->msg_controllen = CMSG_SPACE(sizeof tos);
    c = (struct cmsghdr *)(void *)(l->control[i].bytes + CMSG_SPACE(sizeof tos));
  }
  if (cut) {
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = UDP_SEGMENT;
    c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    memcpy(CMSG_DATA(c), &l->entry[i].size, sizeof(uint16_t));
    m->msg_controllen += CMSG_SPACE(sizeof(uint16_t));
  }
}

static void count_sent(struct pw_engine *e, const struct pw_entry *t, unsigned segments, double bytes)
{
  bytes -= (double)e->encap_bytes * segments;
  pw_count(e, PW_C_egressPackets, segments);
  pw_count(e, PW_C_egressBytes, bytes);
  if (PW_TO_ROW(t->to) < e->c.peer_count) {
    double *peer = e->c.peers + (size_t)PW_TO_ROW(t->to) * PW_PEER_WORDS;
    peer[0] += segments;
    peer[1] += bytes;
  }
}

static int send_once(struct pw_engine *e, int fd, struct mmsghdr *messages, unsigned count)
{
  pw_count(e, PW_C_sendCalls, 1);
  if (e->c.batch_calls) {
    int n = sendmmsg(fd, messages, count, MSG_DONTWAIT);
    return n < 0 ? -errno : n;
  }
  ssize_t n = sendmsg(fd, &messages->msg_hdr, MSG_DONTWAIT);
  return n < 0 ? -errno : 1;
}

/* Sends, waiting a little once while the socket's buffer is full. */
static int send_patiently(struct pw_engine *e, int fd, struct mmsghdr *messages, unsigned count)
{
  int n = send_once(e, fd, messages, count);
  if (n == -EAGAIN || n == -ENOBUFS) {
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    poll(&p, 1, FULL_WAIT_MS);
    n = send_once(e, fd, messages, count);
  }
  return n;
}

static void count_refused(struct pw_engine *e, uint32_t row, int error, unsigned segments)
{
  if (row < e->c.peer_count)
    e->c.peers[(size_t)row * PW_PEER_WORDS + PW_PEER_TX_DROPS] += segments;
  pw_count(e,
           error == -EAGAIN || error == -ENOBUFS ? PW_C_dropSocketFull
           : error == -EMSGSIZE                  ? PW_C_dropSendTooBig
                                                 : PW_C_dropSendError,
           segments);
}

/* A refused UDP_SEGMENT send again as single datagrams, cut by byte count. Returns how many left. */
static unsigned send_singly(struct pw_engine *e, int fd, struct pw_lane *l, unsigned i)
{
  const struct pw_entry *t = &l->entry[i];
  attach_control(l, i, false);
  struct mmsghdr single = l->message[i];
  struct iovec part[2]; /* a datagram was added as two ranges at most */
  const struct iovec *iov = l->message[i].msg_hdr.msg_iov;
  size_t offset = 0, left = t->bytes;
  unsigned sent = 0;
  single.msg_hdr.msg_iov = part;
  for (unsigned s = 0; s < t->segments; s++) {
    const size_t bytes = left < t->size ? left : t->size;
    size_t parts = 0;
    for (size_t missing = bytes; missing && parts < 2;) {
      const size_t here = iov->iov_len - offset, take = here < missing ? here : missing;
      part[parts++] = (struct iovec){(uint8_t *)iov->iov_base + offset, take};
      missing -= take;
      offset += take;
      if (offset == iov->iov_len) {
        iov++;
        offset = 0;
      }
    }
    left -= bytes;
    single.msg_hdr.msg_iovlen = parts;
    int n = send_patiently(e, fd, &single, 1);
    if (n == 1) {
      count_sent(e, t, 1, (double)bytes);
      sent++;
    } else {
      count_refused(e, PW_TO_ROW(t->to), n, 1);
    }
  }
  return sent;
}

/* The device has no checksum offload (EIO): asking again for every entry would only double the calls. */
static void note_device_refusal(struct pw_engine *e)
{
  if (++e->udp_refusals >= 8) {
    e->udp_refusals = 0;
    e->udp_backoff_until = pw_now_ns() + BACKOFF_NS;
  }
}

void pw_lane_flush(struct pw_engine *e, unsigned lane)
{
  struct pw_lane *l = &e->lane[lane];
  const int fd = e->c.send_fd[lane];
  const bool refused = e->udp_backoff_until && pw_now_ns() < e->udp_backoff_until;
  if (!refused)
    e->udp_backoff_until = 0;
  for (unsigned i = 0; i < l->entries; i++) {
    if (PW_TO_TOS(l->entry[i].to) || (l->entry[i].segments > 1 && !refused))
      attach_control(l, i, l->entry[i].segments > 1 && !refused);
  }
  pw_count(e, PW_C_sendEntries, l->entries);
  unsigned i = 0;
  while (i < l->entries) {
    if (refused && l->entry[i].segments > 1) {
      send_singly(e, fd, l, i++);
      continue;
    }
    unsigned until = i + 1;
    while (!refused && until < l->entries)
      until++;
    int n = send_patiently(e, fd, &l->message[i], until - i);
    if (n > 0) {
      for (int k = 0; k < n; k++)
        count_sent(e, &l->entry[i + (unsigned)k], l->entry[i + (unsigned)k].segments, l->entry[i + (unsigned)k].bytes);
      i += (unsigned)n;
      continue;
    }
    if (n == -EINTR)
      continue;
    /* entry i was refused, and only it: the others go on */
    if (l->entry[i].segments > 1 && (n == -EIO || n == -EINVAL || n == -EMSGSIZE || n == -EOPNOTSUPP)) {
      pw_count(e, PW_C_fallbackUdpSegment, 1);
      /* EINVAL is also what a blackhole route says, to every datagram */
      if (send_singly(e, fd, l, i) && (n == -EIO || n == -EINVAL))
        note_device_refusal(e);
    } else {
      count_refused(e, PW_TO_ROW(l->entry[i].to), n, l->entry[i].segments);
    }
    i++;
  }
  l->entries = 0;
  l->iovs = 0;
}

/* Flushes every lane; afterwards the send arena is free again. */
void pw_lanes_flush(struct pw_engine *e)
{
  for (unsigned i = 0; i < e->c.send_count; i++) {
    if (e->lane[i].entries)
      pw_lane_flush(e, i);
  }
  e->send_used = 0;
}
