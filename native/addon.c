/*
 * Node-API surface of the engine; the only file that knows Node. Slow-path functions return a count or -errno and never
 * throw for a system fault; wrong argument types throw TypeError. NAPI_VERSION 8: one binary serves Node 20 to 26.
 */
#include <errno.h>
#include <node_api.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "checksum.h"
#include "engine.h"
#include "host.h"

#define ARGS(count) \
  napi_value argv[count]; \
  size_t argc = count; \
  if (napi_get_cb_info(env, info, &argc, argv, NULL, NULL) != napi_ok || argc < count) { \
    napi_throw_type_error(env, NULL, "podwire addon: missing argument"); \
    return NULL; \
  }

static napi_value integer(napi_env env, int64_t v)
{
  napi_value out = NULL;
  napi_create_int64(env, v, &out);
  return out;
}

static napi_value text(napi_env env, const char *s)
{
  napi_value out = NULL;
  napi_create_string_utf8(env, s, NAPI_AUTO_LENGTH, &out);
  return out;
}

static bool get_int(napi_env env, napi_value v, int *out)
{
  int32_t n;
  if (napi_get_value_int32(env, v, &n) != napi_ok) {
    napi_throw_type_error(env, NULL, "podwire addon: expected an integer");
    return false;
  }
  *out = n;
  return true;
}

/* A string of fewer than `room` bytes; longer ones would be cut without a word and name something else. */
static bool get_text(napi_env env, napi_value v, char *out, size_t room)
{
  size_t n;
  if (napi_get_value_string_utf8(env, v, NULL, 0, &n) != napi_ok || n >= room) {
    napi_throw_type_error(env, NULL, "podwire addon: expected a string, or a shorter one");
    return false;
  }
  return napi_get_value_string_utf8(env, v, out, room, &n) == napi_ok;
}

static bool get_bool(napi_env env, napi_value v)
{
  bool b = false;
  napi_get_value_bool(env, v, &b);
  return b;
}

static bool get_bytes(napi_env env, napi_value v, void **data, size_t *bytes)
{
  static const uint8_t width[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
  napi_typedarray_type type;
  size_t length;
  bool is = false;
  if (napi_is_typedarray(env, v, &is) != napi_ok || !is ||
      napi_get_typedarray_info(env, v, &type, &length, data, NULL, NULL) != napi_ok || (unsigned)type >= sizeof width) {
    napi_throw_type_error(env, NULL, "podwire addon: expected a typed array");
    return false;
  }
  *bytes = length * width[type];
  return true;
}

static napi_value property(napi_env env, napi_value object, const char *name)
{
  napi_value v = NULL;
  napi_get_named_property(env, object, name, &v);
  return v;
}

static bool property_int(napi_env env, napi_value object, const char *name, int *out)
{
  return get_int(env, property(env, object, name), out);
}

static void set(napi_env env, napi_value object, const char *name, napi_value v)
{
  napi_set_named_property(env, object, name, v);
}

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

/* ---- engine ---------------------------------------------------------------------------------------------------- */

struct holder {
  struct pw_engine *engine;
  napi_ref config;  /* keeps the typed arrays, and with them the memory, alive */
  int references;   /* the functions that reach this: it goes with the last of them */
};

static void holder_free(napi_env env, void *data, void *hint)
{
  struct holder *h = data;
  (void)hint;
  if (--h->references)
    return;
  pw_engine_destroy(h->engine);
  if (h->config)
    napi_delete_reference(env, h->config);
  free(h);
}

static napi_value engine_turn(napi_env env, napi_callback_info info)
{
  napi_value argv[1];
  size_t argc = 1;
  void *data;
  int32_t timeout = 0;
  napi_get_cb_info(env, info, &argc, argv, NULL, &data);
  struct holder *h = data;
  napi_get_value_int32(env, argv[0], &timeout);
  napi_value out = NULL;
  napi_create_int32(env, h->engine ? pw_turn(h->engine, timeout) : -EBADF, &out);
  return out;
}

static napi_value engine_destroy(napi_env env, napi_callback_info info)
{
  void *data;
  size_t argc = 0;
  napi_get_cb_info(env, info, &argc, NULL, NULL, &data);
  struct holder *h = data;
  pw_engine_destroy(h->engine);
  h->engine = NULL;
  if (h->config)
    napi_delete_reference(env, h->config);
  h->config = NULL;
  return NULL;
}

static bool read_lanes(napi_env env, napi_value config, struct pw_config *c)
{
  void *data;
  size_t bytes;
  if (!get_bytes(env, property(env, config, "sendFds"), &data, &bytes))
    return false;
  c->send_count = (unsigned)(bytes / sizeof(int32_t));
  if (c->send_count > PW_MAX_LANES)
    c->send_count = 0; /* refused by pw_engine_create */
  for (unsigned i = 0; i < c->send_count; i++)
    c->send_fd[i] = ((int32_t *)data)[i];
  return true;
}

/* rawIp: IP in IP; vtep: absent without VXLAN, else what a frame for us begins with */
static bool read_encapsulation(napi_env env, napi_value config, struct pw_config *c)
{
  void *vtep;
  size_t bytes;
  int inner_mtu;
  napi_valuetype type = napi_undefined;
  c->raw_ip = get_bool(env, property(env, config, "rawIp"));
  if (c->raw_ip) {
    if (!property_int(env, config, "innerMtu", &inner_mtu))
      return false;
    c->inner_mtu = inner_mtu > 0 ? (unsigned)inner_mtu : 0;
  }
  napi_typeof(env, property(env, config, "vtep"), &type);
  if (type == napi_undefined)
    return true;
  if (!get_bytes(env, property(env, config, "vtep"), &vtep, &bytes) ||
      !property_int(env, config, "innerMtu", &inner_mtu))
    return false;
  c->vxlan = true;
  c->inner_mtu = bytes == sizeof c->vtep && inner_mtu > 0 ? (unsigned)inner_mtu : 0; /* 0 is refused */
  if (bytes == sizeof c->vtep)
    memcpy(c->vtep, vtep, bytes);
  return true;
}

/* engineCreate({tunFd, udpFd, wakeFd, icmp4Fd, icmp6Fd, sendFds, ... typed arrays}) -> {turn(timeoutMs), destroy()} | -errno */
static napi_value engine_create(napi_env env, napi_callback_info info)
{
  ARGS(1)
  napi_value o = argv[0];
  struct pw_config c;
  memset(&c, 0, sizeof c);
  int virtio, segments, spin, spin_ns;
  void *meta, *counters, *peers, *reader, *nexthops;
  size_t meta_bytes, counter_bytes, peer_bytes, reader_bytes, nexthop_bytes;
  if (!property_int(env, o, "tunFd", &c.tun_fd) || !property_int(env, o, "udpFd", &c.udp_fd) ||
      !property_int(env, o, "wakeFd", &c.wake_fd) || !property_int(env, o, "icmp4Fd", &c.icmp4_fd) ||
      !property_int(env, o, "icmp6Fd", &c.icmp6_fd) || !property_int(env, o, "virtioBytes", &virtio) ||
      !property_int(env, o, "udpSegments", &segments) || !property_int(env, o, "spin", &spin) ||
      !property_int(env, o, "spinNs", &spin_ns) || !read_lanes(env, o, &c) || !read_encapsulation(env, o, &c) ||
      !get_bytes(env, property(env, o, "meta"), &meta, &meta_bytes) ||
      !get_bytes(env, property(env, o, "counters"), &counters, &counter_bytes) ||
      !get_bytes(env, property(env, o, "peers"), &peers, &peer_bytes) ||
      !get_bytes(env, property(env, o, "reader"), &reader, &reader_bytes) ||
      !get_bytes(env, property(env, o, "nextHops"), &nexthops, &nexthop_bytes) ||
      !get_bytes(env, property(env, o, "tunArena"), (void **)&c.tun_arena, &c.tun_bytes) ||
      !get_bytes(env, property(env, o, "udpArena"), (void **)&c.udp_arena, &c.udp_bytes) ||
      !get_bytes(env, property(env, o, "replyArena"), (void **)&c.reply_arena, &c.reply_bytes))
    return NULL;
  if (meta_bytes < PW_META_TOTAL_WORDS * sizeof(int32_t) || counter_bytes < PW_COUNTER_COUNT * sizeof(double) ||
      reader_bytes < sizeof(int32_t) || virtio < 0 || segments < 0 || spin < 0 || spin_ns < 0)
    return integer(env, -EINVAL);
  c.virtio_bytes = (unsigned)virtio;
  c.udp_segments = (unsigned)segments;
  c.spin = (enum pw_spin)spin;
  c.spin_ns = (unsigned)spin_ns;
  c.tun_tcp = get_bool(env, property(env, o, "tunTcp"));
  c.tun_udp = get_bool(env, property(env, o, "tunUdp"));
  c.batch_calls = get_bool(env, property(env, o, "batchCalls"));
  c.meta = meta;
  c.counters = counters;
  c.peers = peers;
  c.peer_count = peer_bytes / (PW_PEER_WORDS * sizeof(double));
  c.nexthops = nexthops;
  c.nexthop_count = nexthop_bytes / PW_NEXTHOP_BYTES;
  c.reader = reader;
  struct holder *h = calloc(1, sizeof *h);
  int error = h ? pw_engine_create(&c, &h->engine) : -ENOMEM;
  if (error) {
    free(h);
    return integer(env, error);
  }
  napi_value out, turn, destroy;
  napi_create_reference(env, o, 1, &h->config);
  napi_create_object(env, &out);
  napi_create_function(env, "turn", NAPI_AUTO_LENGTH, engine_turn, h, &turn);
  napi_create_function(env, "destroy", NAPI_AUTO_LENGTH, engine_destroy, h, &destroy);
  set(env, out, "turn", turn);
  set(env, out, "destroy", destroy);
  h->references = 2;
  napi_add_finalizer(env, turn, h, holder_free, NULL, NULL);
  napi_add_finalizer(env, destroy, h, holder_free, NULL, NULL);
  return out;
}

/* ---- constants ------------------------------------------------------------------------------------------------- */

static const struct {
  const char *name;
  int value;
} constants[] = {
#define CONSTANT(name) {#name, PW_##name},
    CONSTANT(META_EGRESS_COUNT) CONSTANT(META_INGRESS_COUNT) CONSTANT(META_MESSAGE_COUNT) CONSTANT(META_REPLY_COUNT)
    CONSTANT(META_STOP) CONSTANT(META_HEARTBEAT) CONSTANT(MAX_EGRESS) CONSTANT(MAX_INGRESS) CONSTANT(MAX_MESSAGES)
    CONSTANT(MAX_REPLIES) CONSTANT(ROW_WORDS) CONSTANT(EGRESS_BASE) CONSTANT(INGRESS_BASE) CONSTANT(MESSAGE_BASE)
    CONSTANT(REPLY_BASE) CONSTANT(META_TOTAL_WORDS) CONSTANT(E_OFFSET) CONSTANT(E_LENGTH) CONSTANT(E_GSO)
    CONSTANT(E_FLAGS) CONSTANT(E_HEADER) CONSTANT(E_HASH) CONSTANT(E_VERDICT) CONSTANT(E_SEGMENTS) CONSTANT(EF_TCP)
    CONSTANT(EF_UDP) CONSTANT(EF_BAD) CONSTANT(V_FRAGMENT) CONSTANT(I_OFFSET) CONSTANT(I_LENGTH) CONSTANT(I_SEGMENTS)
    CONSTANT(I_MESSAGE) CONSTANT(I_VERDICT) CONSTANT(I_BYTES) CONSTANT(I_FLAGS) CONSTANT(IF_TRUNCATED) CONSTANT(IF_PROBE)
    CONSTANT(PROBE_QUESTION) CONSTANT(PROBE_ANSWER) CONSTANT(PROBE_TYPE) CONSTANT(PEER_PROBES_HEARD)
    CONSTANT(PEER_PROBE_ANSWERS) CONSTANT(PEER_PROBE_MICROSECONDS)
    CONSTANT(NEXTHOP_ENCAP) CONSTANT(VXLAN_BYTES)
    CONSTANT(M_FAMILY) CONSTANT(M_WORD0) CONSTANT(M_PORT) CONSTANT(M_LENGTH) CONSTANT(R_OFFSET) CONSTANT(R_LENGTH)
    CONSTANT(R_L4_OFFSET) CONSTANT(R_FAMILY) CONSTANT(PEER_WORDS) CONSTANT(PEER_TX_DROPS)
    CONSTANT(PEER_RX_DROPS) CONSTANT(NEXTHOP_BYTES) CONSTANT(UDP_SLOT) CONSTANT(TUN_SLOT) CONSTANT(MAX_LANES)
#undef CONSTANT
};

static napi_value layout(napi_env env, napi_callback_info info)
{
  (void)info;
  napi_value out, names;
  napi_create_object(env, &out);
  for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
    set(env, out, constants[i].name, integer(env, constants[i].value));
  static const char *const counter_names[] = {
#define COUNTER_NAME(name) #name,
      PW_COUNTERS(COUNTER_NAME)
#undef COUNTER_NAME
  };
  napi_create_array(env, &names);
  for (uint32_t i = 0; i < PW_COUNTER_COUNT; i++)
    napi_set_element(env, names, i, text(env, counter_names[i]));
  set(env, out, "counters", names);
  set(env, out, "checksumVariant", text(env, pw_checksum_variant()));
  return out;
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
      {"layout", layout},            {"engineCreate", engine_create},
  };
  pw_checksum_init(NULL);
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    napi_value f;
    napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].callback, NULL, &f);
    set(env, exports, functions[i].name, f);
  }
  return exports;
}
