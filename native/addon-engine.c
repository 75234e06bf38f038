/* The engine for Node: one call a turn, over memory that the caller registers once; and the constants of layout.h. */
#include <errno.h>
#include <node_api.h>
#include <stdlib.h>
#include <string.h>
#include "addon.h"
#include "checksum.h"
#include "engine.h"

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
napi_value pw_addon_engine_create(napi_env env, napi_callback_info info)
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

/* layout() -> every constant by name, `counters` in order, `checksumVariant` */
napi_value pw_addon_layout(napi_env env, napi_callback_info info)
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
