/* Life of an engine and the one call per loop turn. */
#include "engine.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool config_holds(const struct pw_config *c)
{
  if (c->tun_fd < 0 || c->udp_fd < 0 || c->wake_fd < 0 || !c->meta || !c->counters || !c->reader)
    return false;
  if (c->send_count < 1 || c->send_count > PW_MAX_LANES)
    return false;
  for (unsigned i = 0; i < c->send_count; i++) {
    if (c->send_fd[i] < 0)
      return false;
  }
  if (c->virtio_bytes != 0 && c->virtio_bytes != PW_VIRTIO_BYTES)
    return false;
  if ((c->tun_tcp || c->tun_udp) && !c->virtio_bytes)
    return false;
  if (!c->tun_arena || c->tun_bytes < PW_TUN_SLOT || !c->udp_arena || c->udp_bytes < PW_UDP_SLOT)
    return false;
  if (c->tun_bytes > INT32_MAX || c->udp_bytes > INT32_MAX || c->udp_segments > PW_MAX_SEGMENTS)
    return false;
  if (c->vxlan && c->raw_ip)
    return false;
  if ((c->vxlan || c->raw_ip) && (c->inner_mtu < 68 || c->inner_mtu > PW_IP_MAX))
    return false;
  return c->reply_arena && c->nexthops && c->nexthop_count && c->peers;
}

int pw_engine_create(const struct pw_config *c, struct pw_engine **out)
{
  if (!config_holds(c))
    return -EINVAL;
  struct pw_engine *e = calloc(1, sizeof *e);
  if (!e)
    return -ENOMEM;
  e->c = *c;
  e->marks = c->vxlan || c->raw_ip;
  e->encap_bytes = c->vxlan ? PW_VXLAN_BYTES : 0;
  e->cut_mtu = c->inner_mtu < PW_CUT_MTU ? c->inner_mtu : PW_CUT_MTU;
  e->tun_headroom = c->vxlan ? PW_TUN_HEADROOM_VXLAN : PW_TUN_HEADROOM;
  pw_spin_reset(&e->spinning);
  e->lane = calloc(c->send_count, sizeof *e->lane);
  if (!e->lane) {
    free(e);
    return -ENOMEM;
  }
  e->message_slots = (unsigned)(c->udp_bytes / PW_UDP_SLOT);
  if (e->message_slots > PW_MAX_MESSAGES)
    e->message_slots = PW_MAX_MESSAGES;
  for (unsigned i = 0; i < e->message_slots; i++) {
    e->receive_iov[i] = (struct iovec){c->udp_arena + (size_t)i * PW_UDP_SLOT, 65536};
    pw_ingress_arm(e, i);
  }
  *out = e;
  return 0;
}

void pw_engine_destroy(struct pw_engine *e)
{
  if (!e)
    return;
  free(e->lane);
  free(e);
}

int pw_turn(struct pw_engine *e, int timeout_ms)
{
  pw_egress_send(e);
  pw_ingress_write(e);
  if (e->c.meta[PW_META_REPLY_COUNT])
    pw_replies_send(e);
  pw_count(e, PW_C_turns, 1);
  e->c.meta[PW_META_HEARTBEAT] = (int32_t)((uint32_t)e->c.meta[PW_META_HEARTBEAT] + 1);
  if (e->parse_message >= e->messages) {
    int got = pw_wait(e, timeout_ms);
    if (got < 0)
      return got;
  }
  /* what is left of a batch whose tables were full is taken before anything new: the arena still holds it */
  if (e->messages)
    pw_coalesce(e);
  e->c.meta[PW_META_EGRESS_COUNT] = (int32_t)e->egress_rows;
  e->c.meta[PW_META_INGRESS_COUNT] = (int32_t)e->ingress_rows;
  e->c.meta[PW_META_MESSAGE_COUNT] = (int32_t)e->messages;
  return (int)(e->egress_rows | e->ingress_rows << 16);
}
