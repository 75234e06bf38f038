/*
 * Waiting for {TUN, socket, wake eventfd}. A short spin before blocking saves the wake-up of a halted processor, which
 * is most of a ping-pong's round trip; a spin that finds nothing costs a core and slows the others down. So the spin
 * is earned: every wait measures whether a packet came within the spin's length, and only while that keeps being so,
 * after small and sparse batches, the next wait spins (kernel-facts "A spin that does not succeed must stop").
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

#define SMALL_TURN_BYTES 8192
#define SCORE_MAX 16
#define SCORE_SPIN 6
#define SCORE_MISS 6

int64_t pw_now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void learn(struct pw_engine *e, bool paid)
{
  e->spin_score += paid ? 1 : -SCORE_MISS;
  if (e->spin_score > SCORE_MAX)
    e->spin_score = SCORE_MAX;
  if (e->spin_score < 0)
    e->spin_score = 0;
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
  const bool spin = e->c.spin == PW_SPIN_ALWAYS || e->spin_score >= SCORE_SPIN;
  if (spin) {
    do {
      got = take_in(e, true, true);
      if (got) {
        pw_count(e, PW_C_spinHits, 1);
        learn(e, true);
        return got;
      }
      sched_yield(); /* whoever this packet was for may wait for this very processor */
    } while (pw_now_ns() - from < (int64_t)e->c.spin_ns);
    pw_count(e, PW_C_spinMisses, 1);
  }
  got = block(e, timeout_ms);
  if (spin)
    learn(e, false);
  else
    learn(e, got > 0 && pw_now_ns() - from < (int64_t)e->c.spin_ns);
  return got;
}
