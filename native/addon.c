/*
 * Node-API surface: opening and asking the kernel's side; the engine is in addon-engine.c, other programs in
 * addon-program.c. These files alone know Node. Slow-path functions return a count or -errno and never throw for a
 * system fault; wrong argument types throw TypeError. NAPI_VERSION 8: one binary serves Node 20 to 26.
 */
#include <errno.h>
#include <node_api.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "addon.h"
#include "checksum.h"
#include "engine.h"
#include "host.h"

/* sockaddr from 4 or 16 address bytes and a port; 0 bytes when neither */
static socklen_t make_sockaddr(struct sockaddr_storage *s, const void *address, size_t bytes, int port)
{
  memset(s, 0, sizeof *s);
  if (bytes == 4) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)s;
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    memcpy(&v4->sin_addr, address, 4);
    return sizeof *v4;
  }
  if (bytes == 16) {
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)s;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    memcpy(&v6->sin6_addr, address, 16);
    return sizeof *v6;
  }
  return 0;
}

/* tunOpen(name, rung, multiQueue, first) -> {fd, name, index, rung} | -errno */
static napi_value tun_open(napi_env env, napi_callback_info info)
{
  ARGS(4)
  struct pw_tun t = {0};
  int rung;
  if (!get_text(env, argv[0], t.name, sizeof t.name) || !get_int(env, argv[1], &rung))
    return NULL;
  if (rung < PW_TUN_PLAIN || rung > PW_TUN_USO)
    return integer(env, -EINVAL);
  t.rung = (enum pw_tun_rung)rung;
  int error = pw_tun_open(&t, get_bool(env, argv[2]), get_bool(env, argv[3]));
  if (error)
    return integer(env, error);
  napi_value out;
  napi_create_object(env, &out);
  set(env, out, "fd", integer(env, t.fd));
  set(env, out, "name", text(env, t.name));
  set(env, out, "index", integer(env, t.index));
  set(env, out, "rung", integer(env, t.rung));
  return out;
}

/* tunAttach(fd, attached) -> 0 | -errno */
static napi_value tun_attach(napi_env env, napi_callback_info info)
{
  ARGS(2)
  int fd;
  return get_int(env, argv[0], &fd) ? integer(env, pw_tun_attach(fd, get_bool(env, argv[1]))) : NULL;
}

/* tunQueueLength(name, packets) -> 0 | -errno */
static napi_value tun_queue_length(napi_env env, napi_callback_info info)
{
  ARGS(2)
  char name[PW_NAME_BYTES];
  int packets;
  if (!get_text(env, argv[0], name, sizeof name) || !get_int(env, argv[1], &packets))
    return NULL;
  return integer(env, pw_tun_set_queue_length(name, (unsigned)packets));
}

/* udpOpen(addressBytes, port, {receive, gro, tos, reusePort, shareAfter, bufferBytes}) -> fd | -errno */
static napi_value udp_open(napi_env env, napi_callback_info info)
{
  ARGS(3)
  void *address;
  size_t bytes;
  int port, buffer;
  struct sockaddr_storage s;
  if (!get_bytes(env, argv[0], &address, &bytes) || !get_int(env, argv[1], &port) ||
      !property_int(env, argv[2], "bufferBytes", &buffer))
    return NULL;
  socklen_t n = make_sockaddr(&s, address, bytes, port);
  if (!n || port < 0 || port > 65535 || buffer < 0)
    return integer(env, -EINVAL);
  struct pw_socket_options o = {
      .receive = get_bool(env, property(env, argv[2], "receive")),
      .gro = get_bool(env, property(env, argv[2], "gro")),
      .tos = get_bool(env, property(env, argv[2], "tos")),
      .reuse_port = get_bool(env, property(env, argv[2], "reusePort")),
      .share_after = get_bool(env, property(env, argv[2], "shareAfter")),
      .buffer_bytes = (unsigned)buffer,
  };
  return integer(env, pw_udp_open((struct sockaddr *)&s, n, &o));
}

/* ipipOpen(addressBytes, bufferBytes) -> fd | -errno */
static napi_value ipip_open(napi_env env, napi_callback_info info)
{
  ARGS(2)
  void *address;
  size_t bytes;
  int buffer;
  struct sockaddr_storage s;
  if (!get_bytes(env, argv[0], &address, &bytes) || !get_int(env, argv[1], &buffer))
    return NULL;
  if (buffer < 0 || make_sockaddr(&s, address, bytes, 0) != sizeof(struct sockaddr_in))
    return integer(env, -EINVAL);
  return integer(env, pw_ipip_open((struct sockaddr_in *)&s, (unsigned)buffer));
}

/* icmpOpen(family) -> fd | -errno */
static napi_value icmp_open(napi_env env, napi_callback_info info)
{
  ARGS(1)
  int family;
  return get_int(env, argv[0], &family) ? integer(env, pw_icmp_open(family == 6 ? AF_INET6 : AF_INET)) : NULL;
}

static napi_value event_open(napi_env env, napi_callback_info info)
{
  (void)info;
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  return integer(env, fd < 0 ? -errno : fd);
}

/* eventSignal(fd) -> 0 | -errno: wakes whoever polls it */
static napi_value event_signal(napi_env env, napi_callback_info info)
{
  ARGS(1)
  int fd;
  uint64_t one = 1;
  if (!get_int(env, argv[0], &fd))
    return NULL;
  return integer(env, write(fd, &one, sizeof one) < 0 && errno != EAGAIN ? -errno : 0);
}

static napi_value close_fd(napi_env env, napi_callback_info info)
{
  ARGS(1)
  int fd;
  return get_int(env, argv[0], &fd) ? integer(env, close(fd) < 0 ? -errno : 0) : NULL;
}

/* socketDrops(fd) -> datagrams | -errno */
static napi_value socket_drops(napi_env env, napi_callback_info info)
{
  ARGS(1)
  int fd;
  return get_int(env, argv[0], &fd) ? integer(env, pw_socket_drops(fd)) : NULL;
}

/* probeAsk(fd, addressBytes, port, nonce) -> 0 | -errno */
static napi_value probe_ask(napi_env env, napi_callback_info info)
{
  ARGS(4)
  void *address;
  size_t bytes;
  int fd, port, nonce;
  struct sockaddr_storage s;
  if (!get_int(env, argv[0], &fd) || !get_bytes(env, argv[1], &address, &bytes) || !get_int(env, argv[2], &port) ||
      !get_int(env, argv[3], &nonce))
    return NULL;
  const socklen_t n = make_sockaddr(&s, address, bytes, port);
  return integer(env, n ? pw_probe_ask(fd, (struct sockaddr *)&s, n, (uint32_t)nonce) : -EINVAL);
}

/* linkRead(index) -> {txDropped, rxDropped, mtu, flags} | -errno */
static napi_value link_read(napi_env env, napi_callback_info info)
{
  ARGS(1)
  int index;
  struct pw_link l;
  if (!get_int(env, argv[0], &index))
    return NULL;
  int error = pw_link_read(index, &l);
  if (error)
    return integer(env, error);
  napi_value out;
  napi_create_object(env, &out);
  set(env, out, "txDropped", integer(env, (int64_t)l.tx_dropped));
  set(env, out, "rxDropped", integer(env, (int64_t)l.rx_dropped));
  set(env, out, "mtu", integer(env, l.mtu));
  set(env, out, "flags", integer(env, l.flags));
  return out;
}

/* notify(address, text) -> 0 | -errno */
static napi_value notify(napi_env env, napi_callback_info info)
{
  ARGS(2)
  char address[128], message[1024];
  if (!get_text(env, argv[0], address, sizeof address) || !get_text(env, argv[1], message, sizeof message))
    return NULL;
  return integer(env, pw_notify(address, message));
}

static napi_value probe_udp_segments(napi_env env, napi_callback_info info)
{
  (void)info;
  return integer(env, pw_probe_udp_segments());
}

/* checksum(bytes, variant | '') -> folded 16-bit sum in memory order | -errno; for tests and the capability report */
static napi_value checksum(napi_env env, napi_callback_info info)
{
  ARGS(2)
  void *data;
  size_t bytes;
  char name[16];
  if (!get_bytes(env, argv[0], &data, &bytes) || !get_text(env, argv[1], name, sizeof name))
    return NULL;
  int error = pw_checksum_init(name[0] ? name : NULL);
  int64_t sum = error ? error : ntohs(pw_fold(pw_sum(data, bytes)));
  pw_checksum_init(NULL);
  return integer(env, sum);
}

static napi_value noop(napi_env env, napi_callback_info info)
{
  (void)env;
  (void)info;
  return NULL;
}

NAPI_MODULE_INIT()
{
  static const struct {
    const char *name;
    napi_callback callback;
  } functions[] = {
      {"tunOpen", tun_open},         {"tunAttach", tun_attach},   {"tunQueueLength", tun_queue_length},
      {"udpOpen", udp_open},         {"icmpOpen", icmp_open},     {"eventOpen", event_open},
      {"ipipOpen", ipip_open},
      {"eventSignal", event_signal}, {"closeFd", close_fd},       {"socketDrops", socket_drops},
      {"linkRead", link_read},       {"checksum", checksum},      {"probeUdpSegments", probe_udp_segments},
      {"notify", notify},            {"probeAsk", probe_ask},     {"noop", noop},
      {"layout", pw_addon_layout},   {"engineCreate", pw_addon_engine_create},
      {"programRun", pw_addon_program_run},
  };
  pw_checksum_init(NULL);
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    napi_value f;
    napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].callback, NULL, &f);
    set(env, exports, functions[i].name, f);
  }
  return exports;
}
