#include "spin.h"

#define SCORE_TRIAL 4
#define SCORE_MAX 12
#define COST_MISS 4
#define COST_CROWDED 8 /* a full score survives one: a virtual machine's pauses look the same */
#define TRIAL_SPINS 16
#define FORGIVING_STREAK 256

void pw_spin_reset(struct pw_spinning *s)
{
  *s = (struct pw_spinning){.score = -1, .waits = PW_SPIN_WAITS_MIN, .backoff = PW_SPIN_WAITS_MIN};
}

static void spend(struct pw_spinning *s, int points)
{
  s->score -= points;
  if (s->score >= 0)
    return;
  s->score = -1;
  s->streak = 0;
  s->backoff = s->backoff > PW_SPIN_WAITS_MAX / 2 ? PW_SPIN_WAITS_MAX : s->backoff * 2;
  s->waits = s->backoff;
}

void pw_spin_hit(struct pw_spinning *s, bool late)
{
  const bool trial = s->trial > 0;
  if (trial)
    s->trial--;
  if (late) {
    if (!trial)
      spend(s, 1);
  } else if (s->score < SCORE_MAX) {
    s->score++;
  } else if (++s->streak >= FORGIVING_STREAK) {
    s->backoff = PW_SPIN_WAITS_MIN;
  }
}

void pw_spin_missed(struct pw_spinning *s)
{
  spend(s, COST_MISS);
}

void pw_spin_crowded(struct pw_spinning *s)
{
  spend(s, COST_CROWDED);
}

void pw_spin_waited(struct pw_spinning *s, bool soon)
{
  if (!soon) {
    s->waits = s->waits > s->backoff - COST_MISS ? s->backoff : s->waits + COST_MISS;
  } else if (--s->waits <= 0) {
    s->score = SCORE_TRIAL;
    s->trial = TRIAL_SPINS;
  }
}
