/*
 * pw_ingress_receive, pw_coalesce and pw_ingress_write: datagrams in, writes to the TUN out. Random streams of many
 * flows with reordering, duplicates, corruption and changing headers come out as exactly the packets that went in;
 * nothing corrupt is ever part of a superpacket, and no flow is reordered. A superpacket that the TUN refuses is
 * written packet by packet, and a full table goes on in the next turn. What should be joined is in joins.c.
 */
#include "joining.h"

struct flow {
  struct shape shape; /* payload: the usual one */
  uint8_t header[160];
  uint32_t sequence;
  unsigned id, id_step;
  uint32_t sender;
};

static void start_flow(struct flow *f, uint32_t sender)
{
  static uint8_t packet[2000];
  f->shape = random_shape(1500);
  if (!once_in(8))
    f->shape.ip_options = 0;
  f->shape.payload = between(1, 1400);
  random_packet(packet, &f->shape);
  memcpy(f->header, packet, header_bytes(&f->shape));
  f->sequence = once_in(4) ? 0xffffff00u : (uint32_t)random_word();
  f->id = below(65536);
  f->id_step = below(3);
  f->sender = sender;
  if (f->shape.protocol == TCP)
    f->header[ip_header_bytes(&f->shape) + 13] = 0x10;
}

/* Something a sender may change between two packets of a flow. */
static void change_header(struct flow *f)
{
  const unsigned l4 = ip_header_bytes(&f->shape);
  switch (below(5)) {
  case 0:
    f->header[f->shape.family == 4 ? 8 : 7]++; /* TTL, hop limit */
    break;
  case 1:
    f->header[1] ^= 0x10; /* type of service; traffic class or flow label */
    break;
  case 2:
    if (f->shape.protocol == TCP)
      f->header[l4 + 8 + below(4)]++; /* acknowledgement */
    break;
  case 3:
    if (f->shape.protocol == TCP)
      f->header[l4 + 14 + below(2)]++; /* window */
    break;
  default:
    if (f->shape.l4_options)
      f->header[l4 + 20 + below(f->shape.l4_options)]++; /* timestamp */
  }
}

/* The next packet of a flow. Returns its length. */
static size_t next_packet(struct flow *f, uint8_t *p, struct shape *s)
{
  *s = f->shape;
  if (once_in(10))
    s->payload = spread(1400);
  if (once_in(25) && s->protocol == TCP)
    s->payload = 0;
  if (once_in(30))
    change_header(f);
  const unsigned header = header_bytes(s), l4 = ip_header_bytes(s);
  memcpy(p, f->header, header);
  random_bytes(p + header, s->payload);
  if (s->family == 4)
    put16(p + 4, f->id);
  f->id = (f->id + f->id_step) & 0xffff;
  if (s->protocol == TCP) {
    if (once_in(8))
      p[l4 + 13] |= 0x08;
    if (once_in(30))
      p[l4 + 13] ^= (uint8_t)(1u << below(8));
    put32(p + l4 + 4, f->sequence);
    f->sequence += (uint32_t)s->payload;
  }
  const size_t n = header + s->payload;
  finish(p, n, s);
  if (s->protocol == UDP && once_in(12))
    put16(p + l4 + 6, 0);
  return n;
}

/* Flips one bit. The flow is known still while addresses, protocol and ports are whole. */
static size_t corrupt(uint8_t *p, size_t n, const struct shape *s, int *flow)
{
  const unsigned l4 = ip_header_bytes(s), least = s->family == 6 && s->ip_options ? 40 : 0;
  const unsigned at = between(least, (once_in(2) && n > 80 ? 80 : (unsigned)n) - 1);
  p[at] ^= (uint8_t)(1u << below(8));
  if (at < l4 + 4)
    *flow = -1;
  if (p[0] >> 4 == 4 && (p[0] & 15) >= 5 && get16(p + 2) >= (p[0] & 15u) * 4 && get16(p + 2) < n)
    return get16(p + 2);
  return p[0] >> 4 == 6 && 40 + get16(p + 4) < n ? 40 + get16(p + 4) : n;
}

static void random_streams(void)
{
  static uint8_t packet[2000], held[2000];
  for (unsigned round = 0; round < 250 * test_factor; round++) {
    config.tun_tcp = !once_in(5);
    config.tun_udp = !once_in(5);
    config.virtio_bytes = config.tun_tcp || config.tun_udp || once_in(2) ? PW_VIRTIO_BYTES : 0;
    config.batch_calls = !once_in(5);
    config.vxlan = once_in(2);
    fresh();
    struct flow flow[FLOWS];
    const unsigned flows = between(1, FLOWS), senders = between(1, 4), gro = between(1, 10);
    in_case("stream %u: %u flows, %u senders, joins %s%s%s", round, flows, senders, config.tun_tcp ? "TCP " : "",
            config.tun_udp ? "UDP" : "", config.vxlan ? ", vxlan" : "");
    for (unsigned i = 0; i < flows; i++)
      start_flow(&flow[i], below(senders));
    unsigned short_ones = 0, current = 0;
    size_t held_bytes = 0;
    struct shape held_shape;
    int held_flow = 0;
    while (inbox.count < INBOX_MESSAGES - 6 && in_count < 600) {
      if (!once_in(6))
        current = below(flows);
      struct flow *f = &flow[current];
      struct shape s;
      int key = (int)current;
      size_t n = next_packet(f, packet, &s), padding = once_in(40) ? between(1, 18) : 0;
      if (once_in(30)) {
        const size_t trimmed = corrupt(packet, n, &s, &key);
        padding = 0;
        if (trimmed < n) /* the engine believes a shorter length; the rest becomes padding */
          padding = n - trimmed;
        n = trimmed;
      }
      if (once_in(20) && !held_bytes) { /* overtaken by what follows */
        memcpy(held, packet, n);
        held_bytes = n;
        held_shape = s;
        held_flow = key;
        continue;
      }
      arrive(packet, n, padding, &s, key, f->sender, !once_in(gro));
      if (once_in(30))
        arrive(packet, n, 0, &s, key, f->sender, true); /* twice */
      if (held_bytes && once_in(3)) {
        arrive(held, held_bytes, 0, &held_shape, held_flow, flow[current].sender, false);
        held_bytes = 0;
      }
      if (once_in(50)) { /* fewer bytes than an IP header has, and none at all */
        close_message();
        inbox_add(packet, below(20), 0, 0, false);
        short_ones++;
      }
    }
    judge_checksums();
    deliver_all();
    expect_everything();
    EQUAL(counted(engine, PW_C_dropShort), short_ones);
    CHECK(engine->c.tun_tcp || engine->c.tun_udp || !runs_seen, "joined although the TUN takes no superpackets");
  }
}

static unsigned writes_tried;

static int refuse_superpackets(size_t bytes)
{
  writes_tried++;
  return bytes > 2000 ? EINVAL : 0;
}

static int write_error;

static int refuse_second(size_t bytes)
{
  (void)bytes;
  return ++writes_tried == 2 ? write_error : 0;
}

static void refused_writes(void)
{
  struct stream s = start_stream(6, TCP, 0);
  in_case("the TUN refuses a superpacket");
  fresh();
  for (unsigned i = 0; i < 10; i++)
    next(&s, 1000, 0);
  wire.refuse_write = refuse_superpackets;
  writes_tried = 0;
  judge_checksums();
  deliver_all();
  expect_everything();
  EQUAL(wire.tun.count, 10);
  EQUAL(counted(engine, PW_C_fallbackTunGso), 1);
  EQUAL(counted(engine, PW_C_tunWrites), writes_tried);

  static const struct {
    int error;
    enum pw_counter counter;
  } cases[] = {{EAGAIN, PW_C_dropTunFull},  {ENOBUFS, PW_C_dropTunFull},  {ENOMEM, PW_C_dropTunFull},
               {EIO, PW_C_dropTunError},    {EINVAL, PW_C_dropTunError}};
  for (unsigned i = 0; i < 5; i++) {
    in_case("the TUN refuses a packet with %s", strerror(cases[i].error));
    fresh();
    for (unsigned n = 0; n < 3; n++)
      next(&s, 1000, PUSH);
    wire.refuse_write = refuse_second;
    write_error = cases[i].error;
    writes_tried = 0;
    deliver_all();
    EQUAL(wire.tun.count, 2);
    EQUAL(counted(engine, cases[i].counter), 1);
    EQUAL(counted(engine, PW_C_ingressPackets), 2);
  }
}

/* What TypeScript dropped is not written; a truncated datagram is marked, and only the one that was cut. */
static void verdicts(void)
{
  struct stream s = start_stream(4, TCP, 0);
  in_case("dropped rows and truncated datagrams");
  fresh();
  for (unsigned i = 0; i < 4; i++)
    next(&s, 1000, 0);
  inbox_add(message, message_bytes, message_gro, 0, true);
  message_bytes = 0;
  EQUAL(pw_ingress_receive(engine), 1);
  EQUAL(pw_coalesce(engine), 2);
  EQUAL(pw_ingress_row(engine, 0)[PW_I_SEGMENTS], 3);
  EQUAL(pw_ingress_row(engine, 0)[PW_I_FLAGS], PW_IF_TCP);
  EQUAL(pw_ingress_row(engine, 1)[PW_I_FLAGS], PW_IF_TRUNCATED);
  pw_ingress_write(engine);
  EQUAL(wire.tun.count, 0);
  EQUAL(counted(engine, PW_C_ingressPackets), 0);
}

/* More rows, and more segments, than the tables hold: the rest waits for the next turn, in order, none lost. */
static void full_tables(void)
{
  in_case("more rows than the table holds");
  fresh();
  struct stream s = start_stream(4, UDP, 0);
  for (unsigned i = 0; i < 3500; i++)
    next(&s, 20, NO_CHECKSUM);
  close_message();
  CHECK(inbox.count >= 3, "%u messages", inbox.count);
  EQUAL(pw_ingress_receive(engine), inbox.count);
  unsigned turns = 0, rows = 0;
  do {
    const int n = pw_coalesce(engine);
    CHECK(n == PW_MAX_INGRESS || rows + (unsigned)n == 3500, "%d rows in turn %u", n, turns);
    for (int i = 0; i < n; i++)
      pw_ingress_row(engine, (unsigned)i)[PW_I_VERDICT] = 2;
    pw_ingress_write(engine);
    rows += (unsigned)n;
    turns++;
  } while (engine->parse_message < engine->messages);
  EQUAL(turns, 4);
  EQUAL(rows, 3500);
  segments_seen = rows_seen = rows;
  expect_everything();

  in_case("more segments than the table holds");
  fresh();
  struct stream t = start_stream(6, TCP, 1);
  for (unsigned i = 0; i < 6000; i++)
    next(&t, 2, 0);
  judge_checksums();
  deliver_all();
  CHECK(wire.tun.count >= 12 && wire.tun.count <= 14, "%zu writes", wire.tun.count);
  expect_everything();
}

int main(void)
{
  start_test("coalesce");
  pw_checksum_init(NULL);
  config = new_config(&memory);
  config.udp_fd = UDP_FD;
  const struct pw_config in_full = config;
  random_streams();
  config = in_full;
  refused_writes();
  verdicts();
  full_tables();
  fresh();
  free_engine(engine, &memory);
  packets_free(&wire.datagrams);
  packets_free(&wire.tun);
  return 0;
}
