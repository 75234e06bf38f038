/*
 * Datagrams with what Node cannot set or see: type of service, UDP_SEGMENT, no checksum; TTL and type of service of what
 * arrives. For tests only.
 *
 *   udptool send ADDRESS PORT TOS SEGMENT [nosum]   one datagram for each line of hexadecimal on stdin, or a UDP_SEGMENT
 *                                                   send when SEGMENT is not 0
 *   udptool listen ADDRESS PORT                     prints `listening`, then a line {"port","tos","ttl","hex"} a datagram
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef SO_NO_CHECK
#define SO_NO_CHECK 11
#endif

static int fail(const char *what)
{
  perror(what);
  return 1;
}

static socklen_t address_of(const char *text, int port, struct sockaddr_storage *out)
{
  struct sockaddr_in *v4 = (struct sockaddr_in *)out;
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
  memset(out, 0, sizeof *out);
  v4->sin_port = htons((uint16_t)port); /* at the same place in both */
  if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
    out->ss_family = AF_INET;
    return sizeof *v4;
  }
  out->ss_family = AF_INET6;
  return inet_pton(AF_INET6, text, &v6->sin6_addr) == 1 ? sizeof *v6 : 0;
}

static void set(int fd, int level, int option, int value)
{
  if (setsockopt(fd, level, option, &value, sizeof value) < 0)
    perror("setsockopt");
}

static int send_lines(int fd, const struct sockaddr *to, socklen_t bytes)
{
  static char line[140000];
  static unsigned char data[70000];
  while (fgets(line, sizeof line, stdin)) {
    size_t n = 0;
    unsigned byte;
    while (n < sizeof data && sscanf(line + 2 * n, "%2x", &byte) == 1)
      data[n++] = (unsigned char)byte;
    if (sendto(fd, data, n, 0, to, bytes) < 0)
      return fail("sendto");
  }
  return 0;
}

static int listen_for_ever(int fd)
{
  static unsigned char data[70000];
  puts("listening");
  fflush(stdout);
  for (;;) {
    union {
      struct cmsghdr align;
      unsigned char bytes[256];
    } control;
    struct iovec iov = {data, sizeof data};
    struct sockaddr_storage from;
    struct msghdr m = {.msg_name = &from, .msg_namelen = sizeof from, .msg_iov = &iov, .msg_iovlen = 1,
                       .msg_control = &control, .msg_controllen = sizeof control};
    const ssize_t n = recvmsg(fd, &m, 0);
    int tos = -1, ttl = -1;
    if (n < 0)
      return fail("recvmsg");
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
      if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TOS)
        tos = *CMSG_DATA(c);
      else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS)
        memcpy(&tos, CMSG_DATA(c), sizeof tos);
      else if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_TTL) ||
               (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_HOPLIMIT))
        memcpy(&ttl, CMSG_DATA(c), sizeof ttl);
    }
    const unsigned port = ntohs(((struct sockaddr_in *)&from)->sin_port);
    printf("{\"port\":%u,\"tos\":%d,\"ttl\":%d,\"hex\":\"", port, tos, ttl);
    for (ssize_t i = 0; i < n; i++)
      printf("%02x", data[i]);
    puts("\"}");
    fflush(stdout);
  }
}

int main(int argc, char **argv)
{
  struct sockaddr_storage address;
  const socklen_t bytes = argc >= 4 ? address_of(argv[2], atoi(argv[3]), &address) : 0;
  if (!bytes)
    return fputs("udptool send|listen ADDRESS PORT [TOS SEGMENT [nosum]]\n", stderr), 2;
  const int v6 = address.ss_family == AF_INET6;
  const int fd = socket(address.ss_family, SOCK_DGRAM, 0);
  if (fd < 0)
    return fail("socket");
  if (!strcmp(argv[1], "send") && argc >= 6) {
    set(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_TCLASS : IP_TOS, atoi(argv[4]));
    if (atoi(argv[5]))
      set(fd, SOL_UDP, UDP_SEGMENT, atoi(argv[5]));
    if (argc > 6)
      set(fd, SOL_SOCKET, SO_NO_CHECK, 1);
    return send_lines(fd, (struct sockaddr *)&address, bytes);
  }
  set(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_RECVTCLASS : IP_RECVTOS, 1);
  set(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_RECVHOPLIMIT : IP_RECVTTL, 1);
  set(fd, SOL_SOCKET, SO_RCVBUF, 4 << 20);
  if (bind(fd, (struct sockaddr *)&address, bytes) < 0)
    return fail("bind");
  return listen_for_ever(fd);
}
