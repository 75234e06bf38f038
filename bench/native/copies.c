/* The least that a tunnel in user space can do: superpackets from a TUN device through a UDP socket as they are, and
 * back. No headers, checksums, look-ups or checks, so nobody could use it; what it costs is the kernel's, and no tunnel
 * between a TUN device and a UDP socket is cheaper.
 *
 *   copies run --device NAME --bind A --to B [--port P] --seconds S
 *
 * Datagrams are slices of a byte stream: for each packet the virtio_net_hdr that the TUN gave and the packet, IPv4. One
 * lost or reordered costs what is left of the batch; the stream begins again where a datagram begins with a packet. */
#include "tool.h"
#include "../../native/udp-options.h"
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#define VIRTIO_BYTES 10
#define PACKET_MOST (VIRTIO_BYTES + 65535)
#define DATAGRAM 1472 /* of an underlay of 1500 bytes */
#define SEND_MOST (44 * DATAGRAM)
#define READS 16
#define MESSAGES 64
#define SLOT (65536 + 1088)

static uint8_t out[READS][SLOT], in[MESSAGES][SLOT], begun[PACKET_MOST];
static size_t begun_bytes; /* of a packet whose rest comes with the next batch */
static struct mmsghdr sends[2 * READS], receives[MESSAGES];
static struct iovec send_iov[2 * READS], receive_iov[MESSAGES];

static int open_tun(const char *name) {
  struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0) die("copies: %s: %s", name, strerror(errno));
  if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN) < 0) die("TUNSETOFFLOAD: %s", strerror(errno));
  return fd;
}

static int to_underlay(int tun, int udp) {
  unsigned count = 0;
  int packets = 0;
  for (; packets < READS; packets++) {
    ssize_t n = read(tun, out[packets], PACKET_MOST);
    if (n <= 0) break;
    const size_t first = (size_t)n < SEND_MOST ? (size_t)n : SEND_MOST;
    send_iov[count++] = (struct iovec){out[packets], first};
    if (first < (size_t)n) send_iov[count++] = (struct iovec){out[packets] + first, (size_t)n - first};
  }
  for (unsigned done = 0; done < count;) {
    int n = sendmmsg(udp, sends + done, count - done, MSG_DONTWAIT);
    if (n > 0) {
      done += (unsigned)n;
      continue;
    }
    if (errno != EAGAIN) done++;
    struct pollfd room = {.fd = udp, .events = POLLOUT};
    poll(&room, 1, 2);
  }
  return packets;
}

/* Bytes of virtio_net_hdr and packet when at least the header of an IPv4 packet is at p, else 0. */
static size_t packet_bytes(const uint8_t *p, size_t bytes) {
  if (bytes < VIRTIO_BYTES + 20 || p[VIRTIO_BYTES] >> 4 != 4) return 0;
  return VIRTIO_BYTES + ((size_t)p[VIRTIO_BYTES + 2] << 8 | p[VIRTIO_BYTES + 3]);
}

static int to_pods(int tun, int udp) {
  int messages = recvmmsg(udp, receives, MESSAGES, MSG_DONTWAIT, NULL);
  struct iovec packet[MESSAGES + 1] = {{begun, begun_bytes}};
  int pieces = begun_bytes > 0;
  size_t have = begun_bytes, whole = packet_bytes(begun, begun_bytes);
  for (int i = 0; i < messages; i++) {
    for (size_t at = 0, left = receives[i].msg_len; left > 0;) {
      if (have == 0) whole = packet_bytes(in[i] + at, left);
      if (whole == 0) break;
      const size_t take = left < whole - have ? left : whole - have;
      packet[pieces++] = (struct iovec){in[i] + at, take};
      have += take;
      at += take;
      left -= take;
      if (have < whole) continue;
      if (writev(tun, packet, pieces) < 0) whole = 0; /* an offset in the stream was wrong: what is here is lost */
      pieces = 0;
      have = 0;
    }
  }
  if (messages > 0) {
    begun_bytes = 0;
    for (int i = 0; i < pieces; i++) {
      memmove(begun + begun_bytes, packet[i].iov_base, packet[i].iov_len);
      begun_bytes += packet[i].iov_len;
    }
  }
  return messages > 0;
}

int main(int argc, char **argv) {
  if (argc < 2 || strcmp(argv[1], "run") != 0) die("usage: copies run --device NAME --bind A --to B [--port P] --seconds S");
  bound_lifetime(number_option(argc, argv, "seconds", NULL, 1, 3600));
  const union address own = address_option(argc, argv, "bind"), peer = address_option(argc, argv, "to");
  const int tun = open_tun(option(argc, argv, "device", NULL)), udp = udp_socket(own.any.sa_family, 0);
  const int on = 1, datagram = DATAGRAM;
  if (setsockopt(udp, SOL_UDP, UDP_GRO, &on, sizeof on) < 0 || setsockopt(udp, SOL_UDP, UDP_SEGMENT, &datagram, sizeof datagram) < 0)
    die("UDP_GRO, UDP_SEGMENT: %s", strerror(errno));
  for (unsigned i = 0; i < MESSAGES; i++) {
    receive_iov[i] = (struct iovec){in[i], 65536};
    receives[i].msg_hdr = (struct msghdr){.msg_iov = &receive_iov[i], .msg_iovlen = 1};
  }
  for (unsigned i = 0; i < 2 * READS; i++) sends[i].msg_hdr = (struct msghdr){.msg_iov = &send_iov[i], .msg_iovlen = 1};
  if (bind(udp, &own.any, address_bytes(&own)) < 0 || connect(udp, &peer.any, address_bytes(&peer)) < 0)
    die("copies: cannot bind or connect: %s", strerror(errno));
  puts("ready");
  fflush(stdout);
  while (!stop_requested) {
    const int sent = to_underlay(tun, udp), received = to_pods(tun, udp);
    struct pollfd wait[2] = {{.fd = tun, .events = POLLIN}, {.fd = udp, .events = POLLIN}};
    if (!sent && !received) poll(wait, 2, 1000);
  }
  return 0;
}
