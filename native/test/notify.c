/* sd_notify's datagram: path and abstract sockets, and an errno with nothing left open for whatever cannot be sent. */
#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "harness.h"
#include "host.h"

/* A receiver at `address`, written as in NOTIFY_SOCKET. */
static int receiver(const char *address)
{
  struct sockaddr_un here = {.sun_family = AF_UNIX};
  const size_t n = strlen(address);
  memcpy(here.sun_path, address, n);
  if (address[0] == '@')
    here.sun_path[0] = '\0';
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
  CHECK(fd >= 0, "%s", strerror(errno));
  EQUAL(bind(fd, (struct sockaddr *)&here, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)), 0);
  return fd;
}

static void arrives(const char *address)
{
  in_case("a message to %s", address);
  const int fd = receiver(address);
  static const char *const messages[] = {"READY=1", "", "RELOADING=1\nMONOTONIC_USEC=123456789\nSTATUS=a b \xc3\xa9"};
  for (unsigned i = 0; i < sizeof messages / sizeof *messages; i++) {
    char got[256];
    EQUAL(pw_notify(address, messages[i]), 0);
    const ssize_t n = recv(fd, got, sizeof got, 0);
    EQUAL(n, (ssize_t)strlen(messages[i]));
    CHECK(memcmp(got, messages[i], (size_t)n) == 0, "another text");
  }
  in_case("a receiver that does not read: %s", address);
  int error = 0;
  for (unsigned i = 0; i < 100000 && error == 0; i++)
    error = pw_notify(address, "WATCHDOG=1");
  EQUAL(error, -EAGAIN);
  close(fd);
  in_case("a receiver that is gone: %s", address);
  EQUAL(pw_notify(address, "READY=1"), -ECONNREFUSED);
  if (address[0] == '/') {
    unlink(address);
    EQUAL(pw_notify(address, "READY=1"), -ENOENT);
  }
}

int main(void)
{
  start_test("notify");
  const unsigned before = open_descriptors();
  char path[108], longest[109], longer[110];
  snprintf(path, sizeof path, "/tmp/pwag-notify-%d", (int)getpid());
  arrives(path);
  snprintf(path, sizeof path, "@pwag-notify-%d", (int)getpid());
  arrives(path);
  in_case("the longest abstract name");
  snprintf(longest, sizeof longest, "@pwag-%d-%0100d", (int)getpid(), 7);
  longest[107] = '\0'; /* sun_path has 108 bytes, one of which stays for a path's final zero */
  arrives(longest);
  in_case("one byte too many");
  memset(longer, 'x', sizeof longer - 1);
  longer[0] = '@';
  longer[108] = '\0';
  EQUAL(pw_notify(longer, "READY=1"), -EINVAL);
  in_case("no address");
  EQUAL(pw_notify("", "READY=1"), -EAFNOSUPPORT);
  EQUAL(pw_notify("@", "READY=1"), -EINVAL);
  EQUAL(pw_notify("relative", "READY=1"), -EAFNOSUPPORT);
  EQUAL(pw_notify("vsock:2:1234", "READY=1"), -EAFNOSUPPORT);
  in_case("nothing is left open");
  EQUAL(open_descriptors(), before);
  return 0;
}
