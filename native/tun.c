/* TUN devices: Documentation/networking/tuntap.rst, drivers/net/tun.c. */
#include "host.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

static unsigned rung_flags(enum pw_tun_rung rung)
{
  unsigned flags = 0;
  if (rung >= PW_TUN_CSUM)
    flags |= TUN_F_CSUM;
  if (rung >= PW_TUN_TSO)
    flags |= TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
  if (rung >= PW_TUN_USO)
    flags |= TUN_F_USO4 | TUN_F_USO6; /* Linux 6.2 */
  return flags;
}

int pw_tun_open(struct pw_tun *t, bool multi_queue, bool first)
{
  struct ifreq r;
  int error;
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  memset(&r, 0, sizeof r);
  memcpy(r.ifr_name, t->name, sizeof r.ifr_name);
  r.ifr_name[sizeof r.ifr_name - 1] = 0;
  unsigned flags = IFF_TUN | IFF_NO_PI;
  if (first)
    flags |= IFF_TUN_EXCL;
  if (t->rung > PW_TUN_PLAIN)
    flags |= IFF_VNET_HDR;
  if (multi_queue)
    flags |= IFF_MULTI_QUEUE;
  r.ifr_flags = (short)flags;
  if (ioctl(fd, TUNSETIFF, &r) < 0)
    goto fail;
  if (t->rung > PW_TUN_PLAIN) {
    int header = 10;
    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0)
      goto fail;
    while (ioctl(fd, TUNSETOFFLOAD, (unsigned long)rung_flags(t->rung)) < 0) {
      if (errno != EINVAL || t->rung == PW_TUN_CSUM)
        goto fail;
      t->rung--;
    }
  }
  memcpy(t->name, r.ifr_name, sizeof t->name);
  t->index = (int)if_nametoindex(t->name);
  if (!t->index)
    goto fail;
  t->fd = fd;
  return 0;
fail:
  error = errno;
  close(fd);
  return -error;
}

int pw_tun_attach(int fd, bool attached)
{
  struct ifreq r;
  memset(&r, 0, sizeof r);
  r.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
  return ioctl(fd, TUNSETQUEUE, &r) < 0 ? -errno : 0;
}

int pw_tun_set_queue_length(const char *name, unsigned packets)
{
  struct ifreq r;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0)
    return -errno;
  memset(&r, 0, sizeof r);
  strncpy(r.ifr_name, name, sizeof r.ifr_name - 1);
  r.ifr_qlen = (int)packets;
  int error = ioctl(fd, SIOCSIFTXQLEN, &r) < 0 ? -errno : 0;
  close(fd);
  return error;
}
