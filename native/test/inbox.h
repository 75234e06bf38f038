/*
 * The underlay's side of an engine without a kernel: recvmmsg and recvmsg on UDP_FD hand out what a test put into the
 * inbox, with sender, UDP_GRO size and truncation flag as the kernel reports them.
 */
#ifndef PODWIRE_TEST_INBOX_H
#define PODWIRE_TEST_INBOX_H
#include "fixture.h"

#define UDP_FD 30000
#define INBOX_MESSAGES 64

static struct {
  struct {
    uint8_t *data;
    size_t length;
    int gro; /* 0 = no control message */
    int tos; /* -1 = no control message */
    uint32_t sender;
    bool truncated;
  } message[INBOX_MESSAGES];
  unsigned count, taken;
} inbox;

static inline void inbox_add(const uint8_t *data, size_t length, int gro, uint32_t sender, bool truncated)
{
  CHECK(inbox.count < INBOX_MESSAGES, "inbox is full");
  CHECK(length <= 65536, "a receive slot takes 65536 bytes");
  uint8_t *copy = malloc(length ? length : 1);
  CHECK(copy != NULL, "out of memory");
  memcpy(copy, data, length);
  inbox.message[inbox.count].data = copy;
  inbox.message[inbox.count].length = length;
  inbox.message[inbox.count].gro = gro;
  inbox.message[inbox.count].tos = -1;
  inbox.message[inbox.count].sender = sender;
  inbox.message[inbox.count++].truncated = truncated;
}

static inline void inbox_clear(void)
{
  for (unsigned i = 0; i < inbox.count; i++)
    free(inbox.message[i].data);
  inbox.count = inbox.taken = 0;
}

/* Sender numbers: even ones are IPv4 10.0.x.y, odd ones IPv6 fd00::x; the port is 1000 + number. */
static inline socklen_t sender_address(uint32_t sender, struct sockaddr_in6 *out)
{
  memset(out, 0, sizeof *out);
  if (sender % 2) {
    out->sin6_family = AF_INET6;
    out->sin6_port = htons((uint16_t)(1000 + sender));
    out->sin6_addr.s6_addr[0] = 0xfd;
    out->sin6_addr.s6_addr[15] = (uint8_t)sender;
    return sizeof *out;
  }
  struct sockaddr_in v4 = {.sin_family = AF_INET,
                           .sin_port = htons((uint16_t)(1000 + sender)),
                           .sin_addr.s_addr = htonl(0x0a000000 + sender)};
  memcpy(out, &v4, sizeof v4);
  return sizeof v4;
}

static inline bool take_from_inbox(struct msghdr *m, unsigned *length)
{
  if (inbox.taken == inbox.count)
    return false;
  struct sockaddr_in6 from;
  const socklen_t name_bytes = sender_address(inbox.message[inbox.taken].sender, &from);
  const int gro = inbox.message[inbox.taken].gro;
  CHECK(m->msg_namelen >= sizeof from, "slot was not rearmed: room for %u bytes of address", m->msg_namelen);
  CHECK(m->msg_controllen >= 2 * CMSG_SPACE(sizeof gro), "slot was not rearmed: no room for UDP_GRO and a type of service");
  EQUAL(m->msg_iovlen, 1);
  EQUAL(m->msg_iov[0].iov_len, 65536);
  memcpy(m->msg_name, &from, name_bytes);
  m->msg_namelen = name_bytes;
  memcpy(m->msg_iov[0].iov_base, inbox.message[inbox.taken].data, inbox.message[inbox.taken].length);
  *length = (unsigned)inbox.message[inbox.taken].length;
  m->msg_flags = inbox.message[inbox.taken].truncated ? MSG_TRUNC : 0;
  struct cmsghdr *c = CMSG_FIRSTHDR(m);
  m->msg_controllen = 0;
  if (gro) {
    c->cmsg_level = SOL_UDP;
    c->cmsg_type = UDP_GRO;
    c->cmsg_len = CMSG_LEN(sizeof gro);
    memcpy(CMSG_DATA(c), &gro, sizeof gro);
    m->msg_controllen = CMSG_SPACE(sizeof gro);
    c = (struct cmsghdr *)(void *)((uint8_t *)c + CMSG_SPACE(sizeof gro));
  }
  const int tos = inbox.message[inbox.taken].tos;
  if (tos >= 0) { /* the kernel: one byte for IPv4, an int for IPv6 */
    const bool v4 = name_bytes == sizeof(struct sockaddr_in);
    const uint8_t byte = (uint8_t)tos;
    c->cmsg_level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
    c->cmsg_type = v4 ? IP_TOS : IPV6_TCLASS;
    c->cmsg_len = v4 ? CMSG_LEN(1) : CMSG_LEN(sizeof tos);
    memcpy(CMSG_DATA(c), v4 ? (const void *)&byte : &tos, v4 ? 1 : sizeof tos);
    m->msg_controllen += CMSG_SPACE(v4 ? 1 : sizeof tos);
  }
  inbox.taken++;
  return true;
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
  if (fd != UDP_FD)
    return (int)syscall(SYS_recvmmsg, fd, messages, count, flags, timeout);
  unsigned n = 0;
  while (n < count && take_from_inbox(&messages[n].msg_hdr, &messages[n].msg_len))
    n++;
  if (n)
    return (int)n;
  errno = EAGAIN;
  return -1;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
  unsigned length;
  if (fd != UDP_FD)
    return syscall(SYS_recvmsg, fd, message, flags);
  if (take_from_inbox(message, &length))
    return length;
  errno = EAGAIN;
  return -1;
}
#endif
