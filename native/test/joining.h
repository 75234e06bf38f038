/*
 * What the TUN was given, undone: every superpacket is cut into packets again by the slow model, and each packet that
 * comes out is looked up among those that went in.
 */
#ifndef PODWIRE_TEST_JOINING_H
#define PODWIRE_TEST_JOINING_H
#include "inbox.h"
#include "wire.h"

/* A packet that went in. */
struct sent {
  uint8_t *data;
  size_t length;
  struct shape shape;
  int flow;        /* packets of one flow may not overtake each other; -1 = of no flow */
  uint32_t sender;
  bool whole;      /* both checksums hold by the model: only such a packet may be part of a superpacket */
  bool delivered;
};

/* Does the packet carry right checksums, all of them present? Only asked for packets whose shape is still theirs. */
static inline bool checksums_right(const uint8_t *p, size_t n, const struct shape *s)
{
  const unsigned l4 = ip_header_bytes(s);
  if (s->family == 4 && add_up(0, p, l4) != 0xffff)
    return false;
  if (s->protocol == UDP && get16(p + l4 + 6) == 0)
    return false;
  return add_up(pseudo_header(p, s->protocol, (unsigned)(n - l4)), p + l4, n - l4) == 0xffff;
}

/* With DF set an IPv4 id means nothing (RFC 6864), so a device may count it up: equal but for it. */
static inline bool equal_but_for_id(const struct sent *in, const uint8_t *p, size_t n)
{
  if (in->shape.family != 4 || !(in->data[6] & 0x40) || in->length != n)
    return false;
  uint8_t header[60];
  const unsigned bytes = ip_header_bytes(&in->shape);
  memcpy(header, in->data, bytes);
  memcpy(header + 4, p + 4, 2);
  put16(header + 10, 0);
  put16(header + 10, 0xffff - add_up(0, header, bytes));
  return !memcmp(header, p, bytes) && !memcmp(in->data + bytes, p + bytes, n - bytes);
}

/* Finds the packet that came out among those that went in, and marks it. Returns its index. */
static inline size_t find_sent(struct sent *in, size_t count, const uint8_t *p, size_t n, bool joined)
{
  for (size_t i = 0; i < count; i++) {
    if (in[i].delivered)
      continue;
    const bool same = in[i].length == n && !memcmp(in[i].data, p, n);
    if (same || (joined && in[i].whole && equal_but_for_id(&in[i], p, n))) {
      CHECK(!joined || in[i].whole, "packet %zu with a wrong or absent checksum is in a superpacket", i);
      in[i].delivered = true;
      return i;
    }
  }
  fail_at(__FILE__, __LINE__, "a packet of %zu bytes%s was delivered that nobody sent", n,
          joined ? " in a superpacket" : "");
}

/* The shape of a packet that the engine joined, so without IP options; n is known to be long enough. */
static inline struct shape joined_shape(const uint8_t *p, size_t n)
{
  struct shape s = {.family = p[0] >> 4};
  CHECK(s.family == 4 || s.family == 6, "superpacket of IP version %d", s.family);
  CHECK(s.family == 6 || p[0] == 0x45, "superpacket with IPv4 options");
  s.protocol = s.family == 4 ? p[9] : p[6];
  CHECK(s.protocol == TCP || s.protocol == UDP, "superpacket of protocol %d", s.protocol);
  if (s.protocol == TCP)
    s.l4_options = (p[ip_header_bytes(&s) + 12] >> 4) * 4u - 20;
  s.payload = n - header_bytes(&s);
  return s;
}

/* Holds one superpacket against virtio's rules and cuts it; appends to out. */
static inline void cut_superpacket(const struct pw_virtio_header *h, const uint8_t *p, size_t n, struct packets *out)
{
  const struct shape s = joined_shape(p, n);
  const unsigned l4 = ip_header_bytes(&s);
  EQUAL(h->flags, PW_VIRTIO_NEEDS_CSUM);
  EQUAL(h->gso_type, s.protocol == UDP ? PW_GSO_UDP_L4 : s.family == 4 ? PW_GSO_TCPV4 : PW_GSO_TCPV6);
  EQUAL(h->header_length, header_bytes(&s));
  EQUAL(h->csum_start, l4);
  EQUAL(h->csum_offset, l4_checksum_at(&s) - l4);
  CHECK(n <= 65535, "superpacket of %zu bytes", n);
  CHECK(h->gso_size > 0 && s.payload > h->gso_size, "superpacket of one segment: payload %zu, gso %u", s.payload,
        h->gso_size);
  EQUAL(s.family == 4 ? get16(p + 2) : get16(p + 4) + 40, n);
  CHECK(s.family == 6 || add_up(0, p, 20) == 0xffff, "superpacket with a wrong IPv4 header checksum");
  if (s.protocol == UDP)
    EQUAL(get16(p + l4 + 4), n - l4);
  EQUAL(get16(p + l4_checksum_at(&s)), pseudo_header(p, s.protocol, (unsigned)(n - l4)));
  model_segments(out, p, n, &s, h->gso_size, 0);
}

/*
 * Everything that was written to the TUN against everything that went in: each packet once, byte for byte, none
 * overtaken by another of its flow. Returns the number of packets that came out.
 */
static inline size_t account_for_writes(struct sent *in, size_t count, unsigned virtio, size_t *last_of_flow)
{
  size_t delivered = 0;
  for (size_t w = 0; w < wire.tun.count; w++) {
    const struct packet *t = &wire.tun.item[w];
    struct pw_virtio_header h = {0};
    struct packets cut = {0};
    CHECK(t->length > virtio, "a write of %zu bytes", t->length);
    if (virtio)
      memcpy(&h, t->data, sizeof h);
    const bool joined = h.gso_type != PW_GSO_NONE;
    if (joined) {
      cut_superpacket(&h, t->data + virtio, t->length - virtio, &cut);
    } else {
      CHECK(!h.flags && !h.gso_size, "virtio header of a single packet is not empty");
      packets_add(&cut, t->data + virtio, t->length - virtio, 0);
    }
    uint32_t sender = 0;
    for (size_t k = 0; k < cut.count; k++) {
      const size_t i = find_sent(in, count, cut.item[k].data, cut.item[k].length, joined);
      CHECK(!k || in[i].sender == sender, "a superpacket of two senders");
      sender = in[i].sender;
      if (in[i].flow >= 0) {
        CHECK(i + 1 > last_of_flow[in[i].flow], "packet %zu was overtaken by %zu of its flow", i,
              last_of_flow[in[i].flow] - 1);
        last_of_flow[in[i].flow] = i + 1;
      }
    }
    delivered += cut.count;
    packets_free(&cut);
  }
  return delivered;
}

/* ---- an engine, what goes in, and what must come out --------------------------------------------------------- */

#define FLOWS 12
#define MOST_SENT 8000

static struct memory memory;
static struct pw_config config;
static struct pw_engine *engine;
static struct sent in[MOST_SENT];
static size_t in_count;
static uint8_t message[70000];
static size_t message_bytes;
static int message_gro;
static uint32_t message_sender;
static bool message_closed;

static inline void fresh(void)
{
  pw_engine_destroy(engine);
  engine = new_engine(&config);
  forget_counters(engine);
  forget_wire();
  inbox_clear();
  for (size_t i = 0; i < in_count; i++)
    free(in[i].data);
  in_count = message_bytes = 0;
  wire.refuse_write = NULL;
}

static inline void close_message(void)
{
  if (message_bytes)
    inbox_add(message, message_bytes, message_gro, message_sender, false);
  message_bytes = 0;
}

/* What a peer puts in front of a packet for this end point; false when no EtherType fits it. */
static inline bool vxlan_prefix(uint8_t *out, const uint8_t *vtep, const uint8_t *p)
{
  static const uint8_t source[] = {0x0e, 0xbb, 0, 0, 0, 2};
  memcpy(out, vtep, PW_VTEP_BYTES);
  memcpy(out + PW_VTEP_BYTES, source, sizeof source);
  put16(out + 20, p[0] >> 4 == 4 ? 0x0800 : 0x86dd);
  return p[0] >> 4 == 4 || p[0] >> 4 == 6;
}

/* Does a packet say by chance, once in 65,536, what only a kernel says that left its checksum to a device? */
static inline bool looks_unfinished(const uint8_t *p, size_t n)
{
  struct pw_ip ip;
  return !pw_parse_ip(p, n, &ip) && pw_checksum_is_partial(p, &ip);
}

/* One datagram: joins the message being built when UDP_GRO would, else starts the next. */
static inline void arrive(const uint8_t *p, size_t n, size_t padding, const struct shape *shape, int flow, uint32_t sender,
                          bool gro)
{
  uint8_t prefix[PW_VXLAN_BYTES];
  const size_t before = config.vxlan ? sizeof prefix : 0, total = before + n + padding;
  if (config.vxlan && (!vxlan_prefix(prefix, config.vtep, p) || looks_unfinished(p, n)))
    return;
  CHECK(in_count < MOST_SENT, "test sends too much");
  if (!gro || message_closed || sender != message_sender || message_bytes + total > 65507 ||
      (message_gro && (int)total > message_gro))
    close_message();
  if (!message_bytes) {
    message_gro = gro ? (int)total : 0;
    message_sender = sender;
  }
  message_closed = (int)total != message_gro;
  memcpy(message + message_bytes, prefix, before);
  memcpy(message + message_bytes + before, p, n);
  random_bytes(message + message_bytes + before + n, padding);
  message_bytes += total;
  in[in_count] = (struct sent){.length = n, .shape = *shape, .flow = flow, .sender = sender};
  in[in_count].data = malloc(n);
  CHECK(in[in_count].data != NULL, "out of memory");
  memcpy(in[in_count++].data, p, n);
}

static unsigned rows_seen, segments_seen, runs_seen;

/* Lets everything through, as TypeScript would, until the inbox is empty; checks what TypeScript is told. */
static inline void deliver_all(void)
{
  rows_seen = segments_seen = runs_seen = 0;
  close_message();
  while (pw_ingress_receive(engine) > 0) {
    do {
      const int rows = pw_coalesce(engine);
      EQUAL(rows, engine->ingress_rows);
      CHECK(rows <= PW_MAX_INGRESS, "%d rows", rows);
      for (int i = 0; i < rows; i++) {
        int32_t *r = pw_ingress_row(engine, (unsigned)i);
        const int32_t *m = pw_message_row(engine, (unsigned)r[PW_I_MESSAGE]);
        CHECK(r[PW_I_MESSAGE] >= 0 && r[PW_I_MESSAGE] < (int)engine->messages, "row of message %d", r[PW_I_MESSAGE]);
        CHECK(r[PW_I_SEGMENTS] == 1 || r[PW_I_FLAGS] == PW_IF_TCP || r[PW_I_FLAGS] == PW_IF_UDP, "flags %#x",
              (unsigned)r[PW_I_FLAGS]);
        EQUAL(r[PW_I_VERDICT], 0);
        r[PW_I_VERDICT] = m[PW_M_FAMILY] == 4 ? 2 : 3; /* host ids 1 and 2 */
        rows_seen++;
        segments_seen += (unsigned)r[PW_I_SEGMENTS];
        runs_seen += r[PW_I_SEGMENTS] > 1;
      }
      pw_ingress_write(engine);
    } while (engine->parse_message < engine->messages);
  }
}

/* Marks the packets that may be part of a superpacket; needs their shapes to be right. */
static inline void judge_checksums(void)
{
  for (size_t i = 0; i < in_count; i++)
    in[i].whole = in[i].length == header_bytes(&in[i].shape) + in[i].shape.payload &&
                  checksums_right(in[i].data, in[i].length, &in[i].shape);
}

static inline void expect_everything(void)
{
  size_t last_of_flow[FLOWS] = {0};
  const size_t delivered = account_for_writes(in, in_count, engine->c.virtio_bytes, last_of_flow);
  EQUAL(delivered, in_count);
  EQUAL(segments_seen, in_count);
  EQUAL(counted(engine, PW_C_ingressPackets), in_count);
  double bytes = 0;
  for (size_t i = 0; i < in_count; i++)
    bytes += (double)in[i].length;
  EQUAL(counted(engine, PW_C_ingressBytes), bytes);
  EQUAL(counted(engine, PW_C_ingressSuperpackets), rows_seen);
  EQUAL(engine->c.peers[1 * PW_PEER_WORDS + 2] + engine->c.peers[2 * PW_PEER_WORDS + 2], in_count);
  EQUAL(engine->c.peers[1 * PW_PEER_WORDS + 3] + engine->c.peers[2 * PW_PEER_WORDS + 3], bytes);
}

/* ---- streams of packets that a kernel would have sent --------------------------------------------------------- */

struct stream {
  struct shape shape;
  uint8_t header[160];
  uint32_t sequence;
  unsigned id, id_step;
  uint32_t sender;
  int flow;
};

static inline struct stream start_stream(int family, int protocol, int flow)
{
  static uint8_t packet[200];
  struct stream s = {.shape = {.family = family, .protocol = protocol, .payload = 1}, .id_step = 1, .flow = flow};
  s.shape.l4_options = protocol == TCP ? 12 : 0;
  random_packet(packet, &s.shape);
  memcpy(s.header, packet, header_bytes(&s.shape));
  if (family == 4)
    put16(s.header + 6, 0x4000);
  if (protocol == TCP)
    s.header[ip_header_bytes(&s.shape) + 13] = 0x10;
  s.sequence = 0xfffffff0u;
  s.id = 0xfffe; /* both wrap */
  return s;
}

enum { PUSH = 1, BROKEN = 2, NO_CHECKSUM = 4, ALONE = 8, PADDED = 16, BROKEN_HEADER = 32 };

/* The next packet of a stream arrives. */
static inline void next(struct stream *s, size_t payload, unsigned how)
{
  static uint8_t packet[65600];
  struct shape shape = s->shape;
  shape.payload = payload;
  const unsigned header = header_bytes(&shape), l4 = ip_header_bytes(&shape);
  memcpy(packet, s->header, header);
  random_bytes(packet + header, payload);
  if (shape.family == 4)
    put16(packet + 4, s->id & 0xffff);
  s->id += s->id_step;
  if (shape.protocol == TCP) {
    put32(packet + l4 + 4, s->sequence);
    s->sequence += (uint32_t)payload;
    if (how & PUSH)
      packet[l4 + 13] |= 0x08;
  }
  finish(packet, header + payload, &shape);
  if (how & BROKEN)
    packet[header] ^= 0x40;
  if (how & BROKEN_HEADER)
    packet[10] ^= 1; /* the IPv4 header's own checksum */
  if (how & NO_CHECKSUM)
    put16(packet + l4 + 6, 0);
  arrive(packet, header + payload, how & PADDED ? 6 : 0, &shape, s->flow, s->sender, !(how & ALONE));
}
#endif
