/*
 * Opening sockets and asking the kernel, as far as it takes no privilege: who may share a port, that a socket for
 * sending takes nothing in, that no ICMP can change what is sent, and that failures are an errno and leave nothing open.
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>
#include "harness.h"
#include "host.h"
#include "udp-options.h"

static int option(int fd, int level, int name)
{
  int value = -1;
  socklen_t bytes = sizeof value;
  EQUAL(getsockopt(fd, level, name, &value, &bytes), 0);
  return value;
}

struct where {
  struct sockaddr_storage address;
  socklen_t bytes;
};

static struct where loopback(int family, unsigned port)
{
  struct where w = {.bytes = family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in)};
  if (family == AF_INET6)
    *(struct sockaddr_in6 *)&w.address = (struct sockaddr_in6){
        .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  else
    *(struct sockaddr_in *)&w.address = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  return w;
}

static int opened(const struct where *w, struct pw_socket_options o)
{
  if (!o.buffer_bytes)
    o.buffer_bytes = 1 << 20;
  return pw_udp_open((const struct sockaddr *)&w->address, w->bytes, &o);
}

static struct where bound_to(int fd)
{
  struct where w = {.bytes = sizeof w.address};
  EQUAL(getsockname(fd, (struct sockaddr *)&w.address, &w.bytes), 0);
  return w;
}

static void options_of_a_socket(int family)
{
  in_case("options, IPv%d", family == AF_INET ? 4 : 6);
  const struct where any = loopback(family, 0);
  const int fd = opened(&any, (struct pw_socket_options){.receive = true, .gro = true});
  CHECK(fd >= 0, "%s", strerror(-fd));
  if (family == AF_INET6) {
    EQUAL(option(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER), IPV6_PMTUDISC_PROBE);
    EQUAL(option(fd, IPPROTO_IPV6, IPV6_V6ONLY), 1);
    EQUAL(option(fd, IPPROTO_IPV6, IPV6_RECVERR), 0); /* somebody's port-unreachable must not fail sends to others */
  } else {
    EQUAL(option(fd, IPPROTO_IP, IP_MTU_DISCOVER), IP_PMTUDISC_PROBE);
    EQUAL(option(fd, IPPROTO_IP, IP_RECVERR), 0);
  }
  EQUAL(option(fd, SOL_UDP, UDP_GRO), 1);
  CHECK(option(fd, SOL_SOCKET, SO_RCVBUF) >= 200000, "receive buffer of %d bytes", option(fd, SOL_SOCKET, SO_RCVBUF));
  CHECK(fcntl(fd, F_GETFL) & O_NONBLOCK, "the socket blocks");
  CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC, "children inherit the socket");
  EQUAL(option(fd, SOL_SOCKET, SO_REUSEPORT), 0);
  close(fd);
}

/* design 9.5: a second agent is refused, the first one's other workers are not. */
static void sharing_a_port(int family)
{
  in_case("sharing a port, IPv%d", family == AF_INET ? 4 : 6);
  const struct where any = loopback(family, 0);
  const struct pw_socket_options first = {.receive = true, .share_after = true}, later = {.receive = true, .reuse_port = true};
  const int one = opened(&any, first);
  CHECK(one >= 0, "%s", strerror(-one));
  const struct where port = bound_to(one);
  const int two = opened(&port, later);
  CHECK(two >= 0, "a second worker is refused: %s", strerror(-two));
  EQUAL(opened(&port, first), -EADDRINUSE);
  EQUAL(opened(&port, (struct pw_socket_options){.receive = true}), -EADDRINUSE);
  close(one);
  close(two);
  const int alone = opened(&port, (struct pw_socket_options){.receive = true});
  CHECK(alone >= 0, "%s", strerror(-alone));
  EQUAL(opened(&port, later), -EADDRINUSE);
  close(alone);
}

static void send_only(void)
{
  in_case("a socket for sending takes nothing in");
  const struct where any = loopback(AF_INET, 0);
  const int receiver = opened(&any, (struct pw_socket_options){.receive = true});
  const int sender = opened(&any, (struct pw_socket_options){0});
  CHECK(receiver >= 0 && sender >= 0, "no sockets");
  const struct where to_receiver = bound_to(receiver), to_sender = bound_to(sender);
  char byte;
  EQUAL(sendto(receiver, "x", 1, 0, (const struct sockaddr *)&to_sender.address, to_sender.bytes), 1);
  EQUAL(sendto(sender, "y", 1, 0, (const struct sockaddr *)&to_receiver.address, to_receiver.bytes), 1);
  struct pollfd p = {.fd = receiver, .events = POLLIN};
  EQUAL(poll(&p, 1, 10000), 1);
  EQUAL(recv(receiver, &byte, 1, 0), 1);
  EQUAL(byte, 'y');
  CHECK(recv(sender, &byte, 1, 0) < 0 && errno == EAGAIN, "it took something in");
  close(receiver);
  close(sender);
}

static void overflows(void)
{
  in_case("counting overflows");
  const struct where any = loopback(AF_INET, 0);
  const int fd = opened(&any, (struct pw_socket_options){.receive = true, .buffer_bytes = 4096});
  CHECK(fd >= 0, "%s", strerror(-fd));
  const struct where to = bound_to(fd);
  static const char bytes[1000];
  EQUAL(pw_socket_drops(fd), 0);
  for (unsigned i = 0; i < 200; i++)
    (void)sendto(fd, bytes, sizeof bytes, 0, (const struct sockaddr *)&to.address, to.bytes);
  unsigned kept = 0;
  char byte;
  struct pollfd p = {.fd = fd, .events = POLLIN};
  EQUAL(poll(&p, 1, 10000), 1);
  const int64_t drops = pw_socket_drops(fd);
  while (recv(fd, &byte, 1, 0) > 0)
    kept++;
  CHECK(drops > 0 && (unsigned)drops + kept >= 150, "%lld dropped, %u kept", (long long)drops, kept);
  close(fd);
}

static void failures(void)
{
  const unsigned before = open_descriptors();
  in_case("failures");
  struct where elsewhere = loopback(AF_INET, 0);
  ((struct sockaddr_in *)&elsewhere.address)->sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1, RFC 5737 */
  EQUAL(opened(&elsewhere, (struct pw_socket_options){.receive = true}), -EADDRNOTAVAIL);
  elsewhere.address.ss_family = AF_MAX;
  EQUAL(opened(&elsewhere, (struct pw_socket_options){.receive = true}), -EAFNOSUPPORT);
  EQUAL(pw_socket_drops(-1), -EBADF);
  EQUAL(pw_tun_attach(-1, false), -EBADF);
  EQUAL(pw_tun_attach(STDIN_FILENO, false) < 0, 1);
  const int queue = pw_tun_set_queue_length("no-such-device", 100);
  CHECK(queue == -ENODEV || queue == -EPERM, "queue length of no device: %d", queue);
  if (geteuid() != 0) {
    EQUAL(pw_icmp_open(AF_INET), -EPERM);
    EQUAL(pw_icmp_open(AF_INET6), -EPERM);
  }
  EQUAL(open_descriptors(), before);
}

static void links(void)
{
  struct pw_link link;
  in_case("interface statistics");
  EQUAL(pw_link_read((int)if_nametoindex("lo"), &link), 0);
  CHECK(link.mtu >= 1500 && (link.flags & IFF_LOOPBACK), "lo has MTU %u and flags %#x", link.mtu, link.flags);
  EQUAL(pw_link_read(0x7ffffff0, &link), -ENODEV);
  CHECK(pw_link_read(-1, &link) < 0, "interface -1 exists");
  EQUAL(link.mtu, 0);
}

int main(void)
{
  start_test("sockets");
  for (unsigned i = 0; i < 2; i++) {
    options_of_a_socket(i ? AF_INET6 : AF_INET);
    sharing_a_port(i ? AF_INET6 : AF_INET);
  }
  send_only();
  overflows();
  failures();
  links();
  return 0;
}
