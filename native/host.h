/* Opening and asking the kernel's side: TUN queues, UDP sockets, what this kernel can do. Slow path only. */
#ifndef PODWIRE_HOST_H
#define PODWIRE_HOST_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define PW_NAME_BYTES 16 /* IFNAMSIZ */

/* Offload rungs of a TUN, best first; each includes the ones below. */
enum pw_tun_rung { PW_TUN_PLAIN, PW_TUN_CSUM, PW_TUN_TSO, PW_TUN_USO };

struct pw_tun {
  int fd;
  int index;                /* interface index */
  enum pw_tun_rung rung;    /* what the kernel granted */
  char name[PW_NAME_BYTES]; /* in: name or pattern ("flannel%d"); out: the device's name */
};

/*
 * Opens a TUN queue (IFF_TUN | IFF_NO_PI, non-blocking, close-on-exec). `first` asks for a device of our own
 * (IFF_TUN_EXCL: EBUSY when it exists); later queues of a multi-queue device join by its name. The best offload rung up
 * to t->rung is negotiated; PW_TUN_PLAIN means no virtio header at all. 0 or -errno, nothing left open.
 */
int pw_tun_open(struct pw_tun *t, bool multi_queue, bool first);
/* Takes a queue out of the device's steering or back in (TUNSETQUEUE). 0 or -errno. */
int pw_tun_attach(int fd, bool attached);
int pw_tun_set_queue_length(const char *name, unsigned packets);

struct pw_socket_options {
  bool receive;      /* bind for receiving: UDP_GRO, big receive buffer; else a send-only socket whose input is dropped */
  bool gro;
  bool tos;          /* every message comes with its outer type of service or traffic class */
  bool reuse_port;   /* set SO_REUSEPORT before binding: later sockets of one group */
  bool share_after;  /* set SO_REUSEPORT after binding: the first socket, so that a second agent is refused */
  unsigned buffer_bytes;
};

/* A bound, non-blocking UDP socket with DF set by IP_PMTUDISC_PROBE (design 9.1). fd or -errno. */
int pw_udp_open(const struct sockaddr *address, socklen_t bytes, const struct pw_socket_options *o);
/* Raw IPv4 socket of protocol 4 bound to an address, for sending and receiving, with DF set likewise. fd or -errno. */
int pw_ipip_open(const struct sockaddr_in *address, unsigned buffer_bytes);
/* Raw ICMP or ICMPv6 socket that only sends. fd or -errno. */
int pw_icmp_open(int family);
/* Datagrams the socket's queue refused (SK_MEMINFO_DROPS), or -errno. */
int64_t pw_socket_drops(int fd);

struct pw_link {
  uint64_t tx_dropped, rx_dropped;
  uint32_t mtu, flags;
};
/* Statistics of an interface by index over rtnetlink. 0 or -errno. */
int pw_link_read(int index, struct pw_link *out);

/*
 * Sends one datagram to a unix socket without waiting: `address` as in NOTIFY_SOCKET of sd_notify(3), "/path" or
 * "@abstract". 0 or -errno; -EAFNOSUPPORT for any other form.
 */
int pw_notify(const char *address, const char *text);
/* Sends the question of a peer probe (probe.c). 0 or -errno. */
int pw_probe_ask(int fd, const struct sockaddr *to, socklen_t bytes, uint32_t nonce);

/* Most segments a UDP_SEGMENT send takes here: 127, 64, or 0 when the kernel has none. */
unsigned pw_probe_udp_segments(void);
#endif
