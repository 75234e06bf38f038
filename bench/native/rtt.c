/* Round-trip times of single UDP datagrams: `rtt echo` in one pod, `rtt ping` or `rtt paced` in the other.
 *
 *   rtt echo  --bind A [--port P] --seconds S
 *   rtt ping  --to A [--port P] [--size B] --seconds S [--count N] [--warmup W]
 *   rtt paced --to A [--port P] [--size B] --seconds S --rate R [--warmup W]
 *
 * Payload (host byte order; the echo returns it unchanged):
 *   0  u64  sequence number
 *   8  u64  time of sending, nanoseconds of CLOCK_MONOTONIC
 *   16 ...  padding up to --size
 *
 * `ping` is ping-pong: the next datagram leaves when the answer to the last one is here; both ends block in the kernel, so
 * every hop of the way pays its wake-up. An answer missing for 200 ms is a loss.
 * `paced` is open loop: datagrams leave at fixed times whatever happens to the earlier ones, and the client stays on its
 * processor (it spins on a non-blocking receive), so its own wake-up is not part of the figure: that of the tunnel and of
 * the echo is. A time of sending missed by more than 1 ms (client not on a processor) is skipped and counted as late; the
 * round trip counts from the real time of sending. Answers later than 200 ms after the last datagram are losses.
 *
 * The first --warmup seconds (default 0.2) are sent and not counted. */
#include "tool.h"

#define MAX_SAMPLES (8u << 20)
#define MAX_BYTES 2048
#define LOSS_US 200000

struct header {
  uint64_t sequence, sent_ns;
};

struct samples {
  uint32_t *ns;
  uint64_t count, sent, strays;
};

static struct samples new_samples(void) {
  struct samples samples = {.ns = malloc(MAX_SAMPLES * sizeof(uint32_t))};
  if (samples.ns == NULL) die("rtt: no memory for %u samples", MAX_SAMPLES);
  return samples;
}

static void add_sample(struct samples *samples, uint64_t ns) {
  if (samples->count < MAX_SAMPLES) samples->ns[samples->count++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static int by_value(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

/* Nearest-rank percentile of the sorted samples, in microseconds. */
static double percentile_us(const struct samples *samples, double fraction) {
  uint64_t rank = (uint64_t)(fraction * (double)samples->count);
  if (rank >= samples->count) rank = samples->count - 1;
  return samples->ns[rank] / 1000.0;
}

static int print_result(struct samples *samples, double seconds, uint64_t late) {
  if (samples->count == 0) die("rtt: no answer to %" PRIu64 " datagrams", samples->sent);
  qsort(samples->ns, samples->count, sizeof(uint32_t), by_value);
  double sum = 0;
  for (uint64_t i = 0; i < samples->count; i++) sum += samples->ns[i];
  printf("{\"count\":%" PRIu64 ",\"sent\":%" PRIu64 ",\"lost\":%" PRIu64 ",\"strays\":%" PRIu64 ",\"late\":%" PRIu64
         ",\"seconds\":%.3f,\"minUs\":%.3f,\"meanUs\":%.3f,\"p50Us\":%.3f,\"p90Us\":%.3f,\"p99Us\":%.3f,\"p999Us\":%.3f,"
         "\"maxUs\":%.3f}\n",
         samples->count, samples->sent, samples->sent - samples->count, samples->strays, late, seconds,
         samples->ns[0] / 1000.0, sum / (double)samples->count / 1000.0, percentile_us(samples, 0.5),
         percentile_us(samples, 0.9), percentile_us(samples, 0.99), percentile_us(samples, 0.999),
         samples->ns[samples->count - 1] / 1000.0);
  return 0;
}

static int run_echo(int argc, char **argv) {
  union address at = address_option(argc, argv, "bind");
  bound_lifetime(number_option(argc, argv, "seconds", NULL, 0.05, 3600) + 5);
  int fd = udp_socket(at.any.sa_family, 0);
  bind_and_announce(fd, &at);
  static uint8_t buffer[MAX_BYTES];
  uint64_t answered = 0;
  while (!stop_requested) {
    union address from;
    socklen_t from_length = sizeof from;
    ssize_t length = recvfrom(fd, buffer, sizeof buffer, 0, &from.any, &from_length);
    if (length < 0) continue;
    if (sendto(fd, buffer, (size_t)length, 0, &from.any, from_length) == length) answered++;
  }
  printf("{\"answered\":%" PRIu64 "}\n", answered);
  return 0;
}

struct client {
  int fd;
  size_t size;
  double seconds, warmup;
};

static struct client open_client(int argc, char **argv) {
  union address to = address_option(argc, argv, "to");
  struct client client = {
      .size = (size_t)number_option(argc, argv, "size", "64", sizeof(struct header), MAX_BYTES),
      .seconds = number_option(argc, argv, "seconds", NULL, 0.05, 600),
      .warmup = number_option(argc, argv, "warmup", "0.2", 0, 60),
  };
  bound_lifetime(client.seconds + client.warmup + 5);
  client.fd = udp_socket(to.any.sa_family, LOSS_US);
  if (connect(client.fd, &to.any, address_bytes(&to)) < 0) die("connect: %s", strerror(errno));
  return client;
}

/* Sends one datagram; false = refused for the moment (the peer's port is not open, a queue is full). */
static bool send_one(const struct client *client, uint64_t sequence) {
  static uint8_t buffer[MAX_BYTES];
  struct header header = {.sequence = sequence, .sent_ns = now_ns()};
  memcpy(buffer, &header, sizeof header);
  if (send(client->fd, buffer, client->size, 0) >= 0) return true;
  if (errno != ECONNREFUSED && errno != ENOBUFS && errno != EAGAIN && errno != EINTR) die("send: %s", strerror(errno));
  return false;
}

static int run_ping(int argc, char **argv) {
  struct client client = open_client(argc, argv);
  uint64_t limit = (uint64_t)number_option(argc, argv, "count", "0", 0, 1e9);
  struct samples samples = new_samples();
  uint8_t buffer[MAX_BYTES];
  uint64_t start = now_ns(), counted_from = start + (uint64_t)(client.warmup * 1e9);
  uint64_t end = counted_from + (uint64_t)(client.seconds * 1e9), sequence = 0, now;
  while ((now = now_ns()) < end && !stop_requested && (limit == 0 || samples.count < limit)) {
    bool counted = now >= counted_from;
    if (!send_one(&client, ++sequence)) {
      sleep_until(now + 1000000);
      continue;
    }
    samples.sent += counted;
    for (;;) {
      ssize_t length = recv(client.fd, buffer, sizeof buffer, 0);
      if (length < 0) break; /* no answer within 200 ms, refused, or asked to stop */
      struct header header;
      memcpy(&header, buffer, sizeof header);
      if ((size_t)length < sizeof header || header.sequence != sequence) {
        samples.strays++;
        continue;
      }
      if (counted) add_sample(&samples, now_ns() - header.sent_ns);
      break;
    }
  }
  return print_result(&samples, (double)(now_ns() - counted_from) / 1e9, 0);
}

static int run_paced(int argc, char **argv) {
  struct client client = open_client(argc, argv);
  double rate = number_option(argc, argv, "rate", NULL, 1, 1e6);
  struct samples samples = new_samples();
  uint8_t buffer[MAX_BYTES];
  uint64_t period = (uint64_t)(1e9 / rate), start = now_ns(), due = start, late = 0, sequence = 0;
  uint64_t counted_from = start + (uint64_t)(client.warmup * 1e9);
  uint64_t end = counted_from + (uint64_t)(client.seconds * 1e9), first_counted = 0;
  while (!stop_requested) {
    uint64_t now = now_ns();
    if (now >= due && due < end) {
      if (now - due > 1000000) {
        uint64_t missed = (now - due) / period;
        late += missed;
        due += missed * period;
      }
      if (send_one(&client, ++sequence) && now >= counted_from) {
        if (first_counted == 0) first_counted = sequence;
        samples.sent++;
      }
      due += period;
    } else if (due >= end && (samples.count == samples.sent || now > end + LOSS_US * 1000ull)) {
      break;
    }
    ssize_t length = recv(client.fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (length < 0) continue;
    struct header header;
    memcpy(&header, buffer, sizeof header);
    if ((size_t)length < sizeof header || header.sequence > sequence)
      samples.strays++;
    else if (first_counted != 0 && header.sequence >= first_counted)
      add_sample(&samples, now_ns() - header.sent_ns);
  }
  return print_result(&samples, (double)(end - counted_from) / 1e9, late);
}

int main(int argc, char **argv) {
  if (argc >= 2 && strcmp(argv[1], "echo") == 0) return run_echo(argc, argv);
  if (argc >= 2 && strcmp(argv[1], "ping") == 0) return run_ping(argc, argv);
  if (argc >= 2 && strcmp(argv[1], "paced") == 0) return run_paced(argc, argv);
  die("usage: rtt echo|ping|paced --option value ...");
}
