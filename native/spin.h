/*
 * Whether a short spin before blocking is worth its price. A hit saves the wake-up of a halted processor, which is most
 * of a ping-pong's round trip; a spin that finds nothing costs a core and slows the others down (kernel-facts "A spin
 * that does not succeed must stop"). So the spin is earned.
 *
 * While it is off, waits that end within one spin count towards a trial, and a longer one takes several of them back: a
 * spin for the answer alone, with a longer wait to the next request, made both slower where processors are few.
 * In a trial late hits cost nothing: the peer may not spin yet, and answers later for it. Then early hits keep the spin
 * on; late ones, misses and yields to somebody who computes use that up. Each end doubles the waits that it takes to
 * the next trial; many early hits forgive earlier ends.
 */
#ifndef PODWIRE_SPIN_H
#define PODWIRE_SPIN_H
#include <stdbool.h>
#include <stdint.h>

#define PW_SPIN_WAITS_MIN 16    /* short waits before the first trial */
#define PW_SPIN_WAITS_MAX 65536
#define PW_SPIN_LATE 2          /* a hit is late after 1/PW_SPIN_LATE of the longest spin */
#define PW_SPIN_CROWDED 5       /* a yield of more than this many longest spins met somebody who computes */

struct pw_spinning {
  int score;    /* below 0: off */
  int trial;    /* spins left in which late hits cost nothing */
  int waits;    /* short waits left to the next trial */
  int backoff;  /* what waits starts from */
  int streak;   /* early hits at the highest score, since the last end */
};

void pw_spin_reset(struct pw_spinning *s);
static inline bool pw_spin_earned(const struct pw_spinning *s)
{
  return s->score >= 0;
}
/* What a spin came to. */
void pw_spin_hit(struct pw_spinning *s, bool late);
void pw_spin_missed(struct pw_spinning *s);
void pw_spin_crowded(struct pw_spinning *s);
/* A wait without a spin is over; `soon`: within the longest spin. */
void pw_spin_waited(struct pw_spinning *s, bool soon);
#endif
