/* Waiting for {TUN, socket, wake eventfd}, after small turns with a short spin first where that pays off (spin.h). */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

#define SMALL_TURN_BYTES 8192

int64_t pw_now_ns(void)
{
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
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
  struct pw_spinning *s = &e->spinning;
  const int64_t limit = e->c.spin_ns, from = pw_now_ns();
  if (e->c.spin == PW_SPIN_ADAPTIVE && !pw_spin_earned(s)) {
    got = block(e, timeout_ms);
    if (got > 0)
      pw_spin_waited(s, pw_now_ns() - from <= limit);
    return got;
  }
  int64_t before = from, now;
  do {
    sched_yield(); /* whoever the last packet was for may wait for this very processor */
    got = take_in(e, true, true);
    now = pw_now_ns();
    if (now - before > limit * PW_SPIN_CROWDED) {
      /* the processor is wanted by others: spinning here costs them and, after each yield, a whole slice of ours */
      pw_count(e, PW_C_spinMisses, 1);
      pw_spin_crowded(s);
      return got ? got : block(e, timeout_ms);
    }
    if (got) {
      pw_count(e, PW_C_spinHits, 1);
      pw_spin_hit(s, now - from > limit / PW_SPIN_LATE);
      return got;
    }
    before = now;
  } while (now - from < limit);
  pw_count(e, PW_C_spinMisses, 1);
  pw_spin_missed(s);
  return block(e, timeout_ms);
}
