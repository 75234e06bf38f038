/* One datagram to a unix socket, for sd_notify(3): Node has no unix datagram sockets. */
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "host.h"

int pw_notify(const char *address, const char *text)
{
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  const size_t length = strlen(address), bytes = strlen(text);
  if (address[0] != '/' && address[0] != '@')
    return -EAFNOSUPPORT;
  if (length < 2 || length >= sizeof to.sun_path)
    return -EINVAL;
  memcpy(to.sun_path, address, length);
  /* '@' stands for the zero byte of an abstract name; such a name has no final zero */
  const bool is_abstract = address[0] == '@';
  if (is_abstract)
    to.sun_path[0] = '\0';
  const socklen_t to_bytes = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (is_abstract ? 0 : 1));
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0)
    return -errno;
  const ssize_t sent = sendto(fd, text, bytes, MSG_NOSIGNAL, (const struct sockaddr *)&to, to_bytes);
  const int error = sent < 0 ? -errno : (size_t)sent == bytes ? 0 : -EMSGSIZE;
  close(fd);
  return error;
}
