/*
 * taps DEVICE... -- PROGRAM ARGUMENT...
 *
 * Runs PROGRAM with one AF_PACKET socket per DEVICE as file descriptors 3, 4, ...: what is written to such a socket
 * leaves through the device as if a route led there, what the device receives can be read, each with a struct
 * virtio_net_hdr in front (PACKET_VNET_HDR in net/packet/af_packet.c), so that superpackets cross whole. What leaves
 * through the device is not shown.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST_FD 3
#define BUFFER_BYTES (64 << 20)

static int fail(const char *what, const char *device)
{
  fprintf(stderr, "taps: %s %s: %s\n", what, device, strerror(errno));
  return 1;
}

static int open_tap(const char *device)
{
  const int one = 1, bytes = BUFFER_BYTES;
  int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return -1;
  if (setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof one) < 0 ||
      setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof one) < 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0 ||
      setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
    return -1;
  struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
  at.sll_ifindex = (int)if_nametoindex(device);
  if (!at.sll_ifindex || bind(fd, (struct sockaddr *)&at, sizeof at) < 0)
    return -1;
  return fd;
}

int main(int argc, char **argv)
{
  int i = 1;
  for (; i < argc && strcmp(argv[i], "--"); i++) {
    int fd = open_tap(argv[i]), wanted = FIRST_FD + i - 1;
    if (fd < 0)
      return fail("cannot open a packet socket on", argv[i]);
    if (fd != wanted) {
      if (dup2(fd, wanted) < 0)
        return fail("cannot give its number to", argv[i]);
      close(fd);
    }
  }
  if (i + 1 >= argc) {
    fprintf(stderr, "taps: usage: taps DEVICE... -- PROGRAM ARGUMENT...\n");
    return 1;
  }
  execvp(argv[i + 1], argv + i + 1);
  return fail("cannot run", argv[i + 1]);
}
