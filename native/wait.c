/*
 * Waiting for {TUN, socket, wake eventfd}. A short spin before blocking saves the wake-up of a halted processor, which
 * is most of a ping-pong's round trip; a spin that finds nothing costs a core and slows the others down (kernel-facts
 * "A spin that does not succeed must stop"). So the spin is earned. While it is off, waits after small batches that end
 * soon count towards a trial; a trial spins longer, because the peer may not spin yet; hits keep the spin on, misses
 * weigh several hits and end it, and each end doubles the waits that it takes to the next trial. Many hits in a row
 * forgive earlier ends.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

#define SMALL_TURN_BYTES 8192
#define SCORE_TRIAL 4
#define SCORE_MAX 12
#define SCORE_MISS 4
#define SOON 4        /* a wait is soon over within this many spin lengths */
#define TRIAL_SPIN 2  /* spin lengths of a spin while its score is not above a trial's */
#define WAITS_MAX 65536
#define FORGIVING_STREAK 256
#define CROWDED 20    /* a yield that took this many spin lengths met somebody who computes */
#define CROWDED_WEIGHT 4

int64_t pw_now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void stop_spinning(struct pw_engine *e, int backoff_factor)
{
  e->spin_score = -1;
  e->spin_backoff *= backoff_factor;
  if (e->spin_backoff > WAITS_MAX)
    e->spin_backoff = WAITS_MAX;
  e->spin_waits = e->spin_backoff;
}

static void learn_from_spin(struct pw_engine *e, bool hit)
{
  e->spin_score += hit ? 1 : -SCORE_MISS;
  if (e->spin_score > SCORE_MAX) {
    e->spin_score = SCORE_MAX;
    if (++e->spin_streak >= FORGIVING_STREAK)
      e->spin_backoff = PW_SPIN_WAITS_MIN;
  } else {
    e->spin_streak = 0;
  }
  if (e->spin_score < 0)
    stop_spinning(e, 2);
}

static void learn_from_wait(struct pw_engine *e, int64_t waited_ns)
{
  if (waited_ns <= (int64_t)e->c.spin_ns * SOON && --e->spin_waits <= 0)
    e->spin_score = SCORE_TRIAL;
}

/* Takes in whatever is there without blocking: 1 when something came, 0, or -errno. */
static int take_in(struct pw_engine *e, bool tun, bool udp)
{
  int rows = tun ? pw_egress_read(e) : 0;
  if (rows < 0)
    return rows;
  int messages = udp ? pw_ingress_receive(e) : 0;
  if (messages < 0)
    return messages;
  return rows > 0 || messages > 0;
}

static int block(struct pw_engine *e, int timeout_ms)
{
  struct pollfd p[3] = {
      {.fd = e->c.tun_fd, .events = POLLIN}, {.fd = e->c.udp_fd, .events = POLLIN}, {.fd = e->c.wake_fd, .events = POLLIN}};
  /* from here on this worker holds no FIB row: the writer may reuse memory without it (src/fib/layout.ts) */
  __atomic_store_n(e->c.reader, 0, __ATOMIC_RELEASE);
  pw_count(e, PW_C_waits, 1);
  int n = poll(p, 3, timeout_ms);
  if (n < 0)
    return errno == EINTR ? 0 : -errno;
  if (p[2].revents) {
    uint64_t word;
    if (read(e->c.wake_fd, &word, sizeof word) < 0 && errno != EAGAIN && errno != EINTR)
      return -errno;
  }
  if ((p[0].revents | p[1].revents) & POLLNVAL)
    return -EBADF;
  return take_in(e, p[0].revents != 0, p[1].revents != 0);
}

/*
 * Takes in what waits; blocks at most timeout_ms when nothing does. Returns 1 when rows or messages were taken in, 0
 * after a wake-up or the time-out, or -errno.
 */
int pw_wait(struct pw_engine *e, int timeout_ms)
{
  const bool small = e->turn_bytes <= SMALL_TURN_BYTES;
  e->turn_bytes = 0;
  int got = take_in(e, true, true);
  if (got || timeout_ms == 0)
    return got;
  if (e->c.spin == PW_SPIN_OFF || !small)
    return block(e, timeout_ms);
  const int64_t from = pw_now_ns();
  if (e->c.spin == PW_SPIN_ADAPTIVE && e->spin_score < 0) {
    got = block(e, timeout_ms);
    if (got > 0)
      learn_from_wait(e, pw_now_ns() - from);
    return got;
  }
  const int64_t limit = (int64_t)e->c.spin_ns * (e->spin_score <= SCORE_TRIAL ? TRIAL_SPIN : 1);
  int64_t before = from, now;
  do {
    sched_yield(); /* whoever the last packet was for may wait for this very processor */
    got = take_in(e, true, true);
    now = pw_now_ns();
    if (now - before > (int64_t)e->c.spin_ns * CROWDED) {
      /* the processor is wanted by others: spinning here costs them and, after each yield, a whole slice of ours */
      pw_count(e, PW_C_spinMisses, 1);
      stop_spinning(e, CROWDED_WEIGHT);
      return got ? got : block(e, timeout_ms);
    }
    if (got) {
      pw_count(e, PW_C_spinHits, 1);
      learn_from_spin(e, true);
      return got;
    }
    before = now;
  } while (now - from < limit);
  pw_count(e, PW_C_spinMisses, 1);
  learn_from_spin(e, false);
  return block(e, timeout_ms);
}
