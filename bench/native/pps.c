/* Packet-rate load: `pps send` and `pps receive`, one UDP flow, one datagram per message, sendmmsg/recvmmsg.
 *
 *   pps send    --to A [--port P] --size B --seconds S [--rate R] [--pace sleep|spin]
 *   pps receive --bind A [--port P] --seconds S
 *
 * Payload (host byte order; both ends are the same machine):
 *   0  u64  sequence number, from 0
 *   8  ...  padding up to --size (at least 8 bytes)
 *
 * Loss is sent minus received; duplicates are found with a bitmap over the sequence numbers, so a duplicate never hides a
 * loss. A packet is "reordered" when a higher number arrived before it.
 *
 * Pacing is a token bucket of R packets/s and a depth of one millisecond beyond the batch: the sender catches up on a delay
 * of up to 1 ms, and forgives a longer one instead of turning it into a burst that no pacing asked for. The
 * rate really offered is in the result. Between batches it sleeps (`sleep`: wakes by high-resolution timer, leaves the
 * processor to the tunnel) or stays on the processor (`spin`). --rate 0 = flood: no pacing at all.
 *
 * `receive` runs until SIGTERM, then drains until 150 ms pass without a packet. */
#include "tool.h"
#include <linux/sock_diag.h>

#define BATCH 64
#define SLOT_BYTES 2048
#define QUIET_US 150000
#define MAX_SEQUENCE (1ull << 30)

static uint8_t buffers[BATCH][SLOT_BYTES];
static struct iovec vectors[BATCH];
static struct mmsghdr messages[BATCH];

static void prepare_messages(size_t length) {
  for (int i = 0; i < BATCH; i++) {
    vectors[i] = (struct iovec){.iov_base = buffers[i], .iov_len = length};
    messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
  }
}

static int run_send(int argc, char **argv) {
  union address to = address_option(argc, argv, "to");
  size_t size = (size_t)number_option(argc, argv, "size", NULL, 8, SLOT_BYTES);
  double seconds = number_option(argc, argv, "seconds", NULL, 0.05, 600);
  double rate = number_option(argc, argv, "rate", "0", 0, 1e8);
  const char *pace = option(argc, argv, "pace", "sleep");
  bool spin = strcmp(pace, "spin") == 0;
  if (!spin && strcmp(pace, "sleep") != 0) die("pps send: --pace must be sleep or spin, got \"%s\"", pace);

  bound_lifetime(seconds + 5);
  int fd = udp_socket(to.any.sa_family, 0);
  if (connect(fd, &to.any, address_bytes(&to)) < 0) die("connect: %s", strerror(errno));
  prepare_messages(size);

  /* A batch covers about 100 us of the offered rate, so that pacing costs few wake-ups and yet no long burst. */
  uint64_t wanted = rate > 0 ? (uint64_t)(rate / 10000.0) : BATCH;
  unsigned batch = (unsigned)(wanted < 1 ? 1 : wanted > BATCH ? BATCH : wanted);
  double depth = batch + (rate > 1000 ? rate / 1000.0 : 1.0);

  uint64_t sequence = 0, refused = 0, forgiven = 0;
  uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), now = start, filled = start;
  double tokens = batch;
  while (now < end && !stop_requested) {
    unsigned count = batch;
    if (rate > 0) {
      tokens += (double)(now - filled) * rate / 1e9;
      filled = now;
      if (tokens > depth) {
        forgiven += (uint64_t)(tokens - depth);
        tokens = depth;
      }
      if (tokens < batch) {
        uint64_t due = now + (uint64_t)((batch - tokens) * 1e9 / rate);
        if (!spin) sleep_until(due < end ? due : end);
        now = now_ns();
        continue;
      }
    }
    for (unsigned i = 0; i < count; i++) memcpy(buffers[i], &(uint64_t){sequence + i}, 8);
    int sent = sendmmsg(fd, messages, count, 0);
    now = now_ns();
    if (sent < 0) {
      if (errno == EINTR) continue;
      /* A full queue (ENOBUFS) or a port-unreachable of a receiver that is not up (ECONNREFUSED) is an offered packet. */
      if (errno != ENOBUFS && errno != EAGAIN && errno != ECONNREFUSED) die("sendmmsg: %s", strerror(errno));
      refused++;
      continue;
    }
    sequence += (uint64_t)sent;
    tokens -= sent;
    if (sequence >= MAX_SEQUENCE) break;
  }
  double elapsed = (double)(now - start) / 1e9;
  printf("{\"sent\":%" PRIu64 ",\"seconds\":%.6f,\"pps\":%.1f,\"asked\":%.1f,\"size\":%zu,\"batch\":%u,\"refusedCalls\":%" PRIu64
         ",\"forgiven\":%" PRIu64 "}\n",
         sequence, elapsed, (double)sequence / elapsed, rate, size, batch, refused, forgiven);
  return 0;
}

struct tally {
  uint64_t received, duplicates, reordered, malformed, bytes, next, first_ns, last_ns;
  uint8_t *seen; /* one bit a sequence number, zero pages until touched */
};

static void take(struct tally *tally, const uint8_t *payload, size_t length) {
  uint64_t sequence;
  if (length < sizeof sequence) {
    tally->malformed++;
    return;
  }
  memcpy(&sequence, payload, sizeof sequence);
  if (sequence >= MAX_SEQUENCE) {
    tally->malformed++;
    return;
  }
  uint8_t bit = (uint8_t)(1u << (sequence & 7));
  if (tally->seen[sequence >> 3] & bit) {
    tally->duplicates++;
    return;
  }
  tally->seen[sequence >> 3] |= bit;
  if (sequence < tally->next)
    tally->reordered++;
  else
    tally->next = sequence + 1;
  tally->received++;
  tally->bytes += length;
}

static int run_receive(int argc, char **argv) {
  union address at = address_option(argc, argv, "bind");
  double seconds = number_option(argc, argv, "seconds", NULL, 0.05, 600);
  bound_lifetime(seconds + 5);
  struct tally tally = {.seen = calloc(1, MAX_SEQUENCE / 8)};
  if (tally.seen == NULL) die("pps receive: no memory for the bitmap");
  int fd = udp_socket(at.any.sa_family, QUIET_US);
  prepare_messages(SLOT_BYTES);
  bind_and_announce(fd, &at);

  for (;;) {
    int count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) die("recvmmsg: %s", strerror(errno));
      if (stop_requested) break;
      continue;
    }
    uint64_t now = now_ns();
    if (tally.first_ns == 0) tally.first_ns = now;
    tally.last_ns = now;
    for (int i = 0; i < count; i++) take(&tally, buffers[i], messages[i].msg_len);
  }

  uint32_t memory[SK_MEMINFO_VARS] = {0};
  socklen_t length = sizeof memory;
  getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &length);
  printf("{\"received\":%" PRIu64 ",\"duplicates\":%" PRIu64 ",\"reordered\":%" PRIu64 ",\"malformed\":%" PRIu64
         ",\"bytes\":%" PRIu64 ",\"seconds\":%.6f,\"socketDrops\":%u}\n",
         tally.received, tally.duplicates, tally.reordered, tally.malformed, tally.bytes,
         (double)(tally.last_ns - tally.first_ns) / 1e9, memory[SK_MEMINFO_DROPS]);
  return 0;
}

int main(int argc, char **argv) {
  if (argc >= 2 && strcmp(argv[1], "send") == 0) return run_send(argc, argv);
  if (argc >= 2 && strcmp(argv[1], "receive") == 0) return run_receive(argc, argv);
  die("usage: pps send|receive --option value ...");
}
