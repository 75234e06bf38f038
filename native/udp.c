/* UDP and raw ICMP sockets: ip(7), ipv6(7), udp(7), net/ipv4/udp.c. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <string.h>
#include <unistd.h>
#include "host.h"
#include "udp-options.h"

static int set_int(int fd, int level, int option, int value)
{
  return setsockopt(fd, level, option, &value, sizeof value);
}

/* A send-only socket must not collect what strangers send to its port: a filter that takes zero bytes of everything. */
static int drop_input(int fd)
{
  struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
  struct sock_fprog program = {.len = 1, .filter = &nothing};
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static void set_buffer(int fd, int force, int plain, unsigned bytes)
{
  if (set_int(fd, SOL_SOCKET, force, (int)bytes) < 0)
    (void)set_int(fd, SOL_SOCKET, plain, (int)bytes); /* without CAP_NET_ADMIN: as much as rmem_max allows */
}

int pw_udp_open(const struct sockaddr *address, socklen_t bytes, const struct pw_socket_options *o)
{
  const bool v6 = address->sa_family == AF_INET6;
  int fd = socket(address->sa_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int error;
  if (fd < 0)
    return -errno;
  if (v6) {
    if (set_int(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1) < 0 ||
        set_int(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE) < 0)
      goto fail;
  } else if (set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE) < 0) {
    goto fail;
  }
  if (o->reuse_port && set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
    goto fail;
  if (o->tos && (v6 ? set_int(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1) : set_int(fd, IPPROTO_IP, IP_RECVTOS, 1)) < 0)
    goto fail;
  set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, o->buffer_bytes);
  if (o->receive) {
    set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, o->buffer_bytes);
    if (o->gro && set_int(fd, SOL_UDP, UDP_GRO, 1) < 0)
      goto fail;
  } else if (drop_input(fd) < 0) {
    goto fail;
  }
  if (bind(fd, address, bytes) < 0)
    goto fail;
  if (o->share_after && set_int(fd, SOL_SOCKET, SO_REUSEPORT, 1) < 0)
    goto fail;
  return fd;
fail:
  error = errno;
  close(fd);
  return -error;
}

int pw_ipip_open(const struct sockaddr_in *address, unsigned buffer_bytes)
{
  int fd = socket(AF_INET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_IPIP);
  if (fd < 0)
    return -errno;
  set_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF, buffer_bytes);
  set_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF, buffer_bytes);
  if (set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE) < 0 ||
      bind(fd, (const struct sockaddr *)address, sizeof *address) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

int pw_icmp_open(int family)
{
  int fd = socket(family, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, family == AF_INET6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP);
  if (fd < 0)
    return -errno;
  if (drop_input(fd) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

int64_t pw_socket_drops(int fd)
{
  uint32_t info[SK_MEMINFO_VARS];
  socklen_t bytes = sizeof info;
  memset(info, 0, sizeof info);
  if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &bytes) < 0)
    return -errno;
  return info[SK_MEMINFO_DROPS];
}

static bool takes_segments(int fd, const struct sockaddr_in *to, unsigned count)
{
  uint8_t payload[PW_NAME_BYTES * 8] = {0};
  uint16_t size = 1;
  union {
    struct cmsghdr align;
    uint8_t bytes[CMSG_SPACE(sizeof size)];
  } control;
  struct iovec iov = {payload, count};
  struct msghdr m = {.msg_name = (void *)(uintptr_t)to,
                     .msg_namelen = sizeof *to,
                     .msg_iov = &iov,
                     .msg_iovlen = 1,
                     .msg_control = control.bytes,
                     .msg_controllen = sizeof control.bytes};
  memset(&control, 0, sizeof control);
  struct cmsghdr *c = CMSG_FIRSTHDR(&m);
  c->cmsg_level = SOL_UDP;
  c->cmsg_type = UDP_SEGMENT;
  c->cmsg_len = CMSG_LEN(sizeof size);
  memcpy(CMSG_DATA(c), &size, sizeof size);
  return sendmsg(fd, &m, MSG_DONTWAIT) >= 0;
}

/* Sends to a socket of our own on loopback; in a namespace whose loopback is down the option's presence must do. */
unsigned pw_probe_udp_segments(void)
{
  unsigned result = 0;
  struct sockaddr_in self = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t bytes = sizeof self;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return 0;
  if (set_int(fd, SOL_UDP, UDP_SEGMENT, 1) == 0) {
    result = 64;
    (void)set_int(fd, SOL_UDP, UDP_SEGMENT, 0);
    if (bind(fd, (struct sockaddr *)&self, bytes) == 0 && getsockname(fd, (struct sockaddr *)&self, &bytes) == 0 &&
        takes_segments(fd, &self, 127))
      result = 127;
  }
  close(fd);
  return result;
}
