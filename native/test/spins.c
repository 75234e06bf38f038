/*
 * What the adaptive spin learns, without a clock or a socket: waits of known length go in, and what it would have cost
 * comes out. Lengths in microseconds.
 */
#include "../spin.h"
#include "harness.h"

#define LONGEST 200
#define WAKE 40     /* what a blocked end adds to every answer */
#define STEAL 1500  /* a pause of the whole machine */

struct tally {
  unsigned hits, misses, blocked, crowded;
};

/* One wait that `length` us of spinning would see the end of. Returns how late the worker then is. */
static unsigned wait_for(struct pw_spinning *s, unsigned length, struct tally *t)
{
  if (!pw_spin_earned(s)) {
    t->blocked++;
    pw_spin_waited(s, length + WAKE <= LONGEST);
    return WAKE;
  }
  if (length > LONGEST * PW_SPIN_CROWDED) {
    t->crowded++;
    pw_spin_crowded(s);
    return 0;
  }
  if (length <= LONGEST) {
    t->hits++;
    pw_spin_hit(s, length > LONGEST / PW_SPIN_LATE);
    return 0;
  }
  t->misses++;
  pw_spin_missed(s);
  return WAKE;
}

/*
 * A ping-pong: the near end waits for the answer, then for the next request; the far end for its pod, then for the next
 * request from afar. Who blocks makes the other wait longer. Returns what part of the second half's waits blocked.
 */
static double ping_pong(unsigned rounds, unsigned pauses, struct tally *t)
{
  struct pw_spinning near, far;
  unsigned next, request = WAKE, blocked = 0;
  pw_spin_reset(&near);
  pw_spin_reset(&far);
  for (unsigned round = 0; round < rounds; round++) {
    const unsigned before = t->blocked, steal = pauses && once_in(pauses) ? STEAL : 0;
    const unsigned pod = wait_for(&far, 10 + below(20), t);
    const unsigned answer = wait_for(&near, 20 + below(20) + request + pod + steal, t);
    next = wait_for(&near, 10 + below(20), t);
    request = wait_for(&far, 20 + below(20) + answer + next, t);
    if (round >= rounds / 2)
      blocked += t->blocked - before;
  }
  return blocked / (rounds / 2 * 4.0);
}

static void earned_by_both_ends(void)
{
  struct pw_spinning s;
  struct tally late = {0};
  in_case("the peer spins some answers later");
  pw_spin_reset(&s);
  while (!pw_spin_earned(&s))
    wait_for(&s, 150, &late);
  for (unsigned k = 0; k < 10; k++)
    wait_for(&s, 150, &late);
  for (unsigned k = 0; k < 100; k++)
    wait_for(&s, 50, &late);
  EQUAL(late.hits, 110);
  for (unsigned i = 0; i < 50 * test_factor; i++) {
    struct tally t = {0};
    in_case("ping-pong %u", i);
    EQUAL(ping_pong(400, 0, &t) * 1000, 0);
    in_case("ping-pong with pauses %u", i);
    const double blocked = ping_pong(100000, 3000, &t);
    CHECK(blocked < 0.02, "%g of the waits blocked", blocked);
  }
}

/* Trials that fail get rarer and rarer: waits that are never short enough cost nothing, mixed ones little. */
static void lost(void)
{
  struct pw_spinning s;
  for (unsigned i = 0; i < 50 * test_factor; i++) {
    struct tally t = {0};
    in_case("long waits, %u", i);
    pw_spin_reset(&s);
    for (unsigned k = 0; k < 10000; k++)
      wait_for(&s, LONGEST + 1 + below(1000), &t);
    EQUAL(t.misses + t.hits, 0);

    in_case("every fifth wait long, %u", i);
    t = (struct tally){0};
    for (unsigned k = 0; k < 10000; k++)
      wait_for(&s, k % 5 < 4 ? 10 : 300, &t);
    EQUAL(t.misses + t.hits, 0);

    in_case("short when blocked, long when spinning, %u", i);
    t = (struct tally){0};
    pw_spin_reset(&s);
    for (unsigned k = 0; k < 200000; k++)
      wait_for(&s, pw_spin_earned(&s) ? 300 : 10, &t);
    CHECK(t.misses >= 2 && t.misses < 40, "%u misses", t.misses); /* two a trial, doubling gaps */

    in_case("always late, %u", i);
    t = (struct tally){0};
    pw_spin_reset(&s);
    for (unsigned k = 0; k < 200000; k++)
      wait_for(&s, LONGEST / 2 + 1 + below(50), &t);
    CHECK(t.hits >= 21 && t.hits < 400, "%u late hits", t.hits);

    in_case("earned, then every wait long, %u", i);
    t = (struct tally){0};
    pw_spin_reset(&s);
    for (unsigned k = 0; k < 1000; k++)
      wait_for(&s, 10, &t);
    CHECK(pw_spin_earned(&s), "not earned");
    t = (struct tally){0};
    for (unsigned k = 0; k < 1000; k++)
      wait_for(&s, 300, &t);
    EQUAL(t.misses, 4);

    in_case("earned, then crowded, %u", i);
    pw_spin_reset(&s);
    for (unsigned k = 0; k < 1000; k++)
      wait_for(&s, 10, &t);
    t = (struct tally){0};
    wait_for(&s, STEAL, &t);
    CHECK(pw_spin_earned(&s), "one pause ended it");
    wait_for(&s, STEAL, &t);
    CHECK(!pw_spin_earned(&s), "two in a row did not");
    EQUAL(t.crowded, 2);
  }
}

static void forgiven(void)
{
  struct pw_spinning s;
  struct tally t = {0};
  in_case("backoff");
  pw_spin_reset(&s);
  for (unsigned end = 0; end < 40; end++) {
    const int before = s.backoff;
    while (!pw_spin_earned(&s))
      wait_for(&s, 10, &t);
    while (pw_spin_earned(&s))
      wait_for(&s, 300, &t);
    EQUAL(s.backoff, before == PW_SPIN_WAITS_MAX ? PW_SPIN_WAITS_MAX : before * 2);
  }
  EQUAL(s.backoff, PW_SPIN_WAITS_MAX);
  in_case("forgiven");
  while (!pw_spin_earned(&s))
    wait_for(&s, 10, &t);
  for (unsigned k = 0; k < 1000; k++)
    wait_for(&s, 10, &t);
  EQUAL(s.backoff, PW_SPIN_WAITS_MIN);
}

int main(void)
{
  start_test("spins");
  earned_by_both_ends();
  lost();
  forgiven();
  return 0;
}
