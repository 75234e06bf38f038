/* Interface statistics over rtnetlink(7): one request, one answer. */
#include <errno.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "host.h"

static int parse_link(const struct nlmsghdr *n, struct pw_link *out)
{
  const struct ifinfomsg *info = NLMSG_DATA(n);
  int left = (int)IFLA_PAYLOAD(n);
  out->flags = info->ifi_flags;
  for (const struct rtattr *a = IFLA_RTA(info); RTA_OK(a, left); a = RTA_NEXT(a, left)) {
    if (a->rta_type == IFLA_MTU && RTA_PAYLOAD(a) >= sizeof(uint32_t)) {
      memcpy(&out->mtu, RTA_DATA(a), sizeof(uint32_t));
    } else if (a->rta_type == IFLA_STATS64) {
      struct rtnl_link_stats64 s;
      memset(&s, 0, sizeof s);
      memcpy(&s, RTA_DATA(a), RTA_PAYLOAD(a) < sizeof s ? RTA_PAYLOAD(a) : sizeof s);
      out->tx_dropped = s.tx_dropped;
      out->rx_dropped = s.rx_dropped;
    }
  }
  return 0;
}

int pw_link_read(int index, struct pw_link *out)
{
  struct {
    struct nlmsghdr n;
    struct ifinfomsg i;
  } request = {.n = {.nlmsg_len = sizeof request, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST},
               .i = {.ifi_family = AF_UNSPEC, .ifi_index = index}};
  union {
    struct nlmsghdr n;
    uint8_t bytes[16384];
  } answer;
  memset(out, 0, sizeof *out);
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
  if (fd < 0)
    return -errno;
  int error = 0;
  ssize_t n = -1;
  if (send(fd, &request, sizeof request, 0) < 0 || (n = recv(fd, &answer, sizeof answer, 0)) < 0)
    error = -errno;
  close(fd);
  if (error)
    return error;
  if (!NLMSG_OK(&answer.n, (size_t)n))
    return -EBADMSG;
  if (answer.n.nlmsg_type == NLMSG_ERROR)
    return answer.n.nlmsg_len >= NLMSG_LENGTH(sizeof(struct nlmsgerr))
               ? ((struct nlmsgerr *)NLMSG_DATA(&answer.n))->error
               : -EBADMSG;
  if (answer.n.nlmsg_type != RTM_NEWLINK || answer.n.nlmsg_len < NLMSG_LENGTH(sizeof(struct ifinfomsg)))
    return -EBADMSG;
  return parse_link(&answer.n, out);
}
