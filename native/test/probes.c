/*
 * probe.c over real sockets: a question becomes a row and, with a verdict, an answer to where it came from; an answer's
 * row has the time that it took; whatever else is short is counted as short.
 */
#include "bed.h"

#define NONCE 0x123456u

static void to_engine(const uint8_t *p, size_t n)
{
  EQUAL(sendto(bed.peer, p, n, 0, (struct sockaddr *)&bed.bound, bed.address_bytes), (ssize_t)n);
}

static int32_t *only_row(void)
{
  EQUAL(turn_until_rows() >> 16, 1);
  int32_t *r = pw_ingress_row(bed.e, 0);
  EQUAL(r[PW_I_FLAGS], PW_IF_PROBE);
  EQUAL(r[PW_I_LENGTH], PW_PROBE_BYTES);
  EQUAL(r[PW_I_SEGMENTS], 1);
  return r;
}

static void question_and_answer(int family, bool gro)
{
  uint8_t question[64], answer[64];
  in_case("question over IPv%d%s", family == AF_INET ? 4 : 6, gro ? ", GRO" : "");
  open_bed(family, gro, 1, true, PW_SPIN_OFF);
  /* asked by the engine's socket, seen by the peer */
  EQUAL(pw_probe_ask(bed.c.udp_fd, (struct sockaddr *)&bed.peer_address, bed.address_bytes, NONCE | 0xff000000u), 0);
  EQUAL(expect_datagram(bed.peer, question, sizeof question), PW_PROBE_BYTES);
  EQUAL(pw_get32(question), 0x70777001u);
  EQUAL(pw_get32(question + 4), (uint32_t)PW_PROBE_QUESTION << 24 | NONCE);
  /* without a verdict it is not answered, with one it is, byte for byte but for the type */
  to_engine(question, PW_PROBE_BYTES);
  only_row();
  EQUAL(pw_turn(bed.e, 0), 0);
  expect_silence(bed.peer);
  to_engine(question, PW_PROBE_BYTES);
  only_row()[PW_I_VERDICT] = 1 + 5;
  EQUAL(pw_turn(bed.e, 0), 0);
  EQUAL(expect_datagram(bed.peer, answer, sizeof answer), PW_PROBE_BYTES);
  question[4] = PW_PROBE_ANSWER;
  EQUAL(memcmp(question, answer, PW_PROBE_BYTES), 0);
  EQUAL(bed.counters[PW_C_probesAnswered], 1);
  expect_silence(bed.tun_far);
  /* our own question comes back: the row has its time */
  to_engine(answer, PW_PROBE_BYTES);
  const int32_t took = only_row()[PW_I_BYTES];
  CHECK(took >= 0 && took < 10000000, "%d us", took);
  EQUAL(pw_turn(bed.e, 0), 0);
  /* a clock word from the future or from long ago is no time */
  for (unsigned i = 0; i < 3; i++) {
    const uint64_t stamp = i == 0 ? UINT64_MAX : i == 1 ? 1 : (uint64_t)pw_now_ns() + 1000000000000ull;
    pw_put32(answer + 8, (uint32_t)(stamp >> 32));
    pw_put32(answer + 12, (uint32_t)stamp);
    to_engine(answer, PW_PROBE_BYTES);
    const int32_t us = only_row()[PW_I_BYTES];
    CHECK(us == -1 || (i == 1 && pw_now_ns() < 10000000000ll), "case %u: %d us", i, us);
    EQUAL(pw_turn(bed.e, 0), 0);
  }
  close_bed();
}

static void near_misses(void)
{
  in_case("what is no probe");
  open_bed(AF_INET, false, 1, true, PW_SPIN_OFF);
  unsigned sent = 0;
  uint8_t p[32] = {0x70, 0x77, 0x70, 1, PW_PROBE_QUESTION};
  for (unsigned n = 0; n < 20; n++) {
    if (n == PW_PROBE_BYTES)
      continue;
    to_engine(p, n);
    sent++;
  }
  for (unsigned i = 0; i < 5; i++) {
    uint8_t wrong[PW_PROBE_BYTES];
    memcpy(wrong, p, sizeof wrong);
    wrong[i] ^= (uint8_t)(1 + below(255));
    if (wrong[4] == PW_PROBE_ANSWER)
      wrong[4] = 3;
    to_engine(wrong, sizeof wrong);
    sent++;
  }
  for (const int64_t until = pw_now_ns() + PATIENCE_MS * 1000000ll;
       bed.counters[PW_C_dropShort] < sent && pw_now_ns() < until;)
    EQUAL(pw_turn(bed.e, 100), 0);
  EQUAL(bed.counters[PW_C_dropShort], sent);
  expect_silence(bed.peer);
  expect_silence(bed.tun_far);
  close_bed();
}

/* More probes in one batch than there are rows would be: packets around them keep their places. */
static void among_packets(void)
{
  static uint8_t packet[2000];
  in_case("probes between packets");
  open_bed(AF_INET, true, 1, true, PW_SPIN_OFF);
  const uint8_t question[PW_PROBE_BYTES] = {0x70, 0x77, 0x70, 1, PW_PROBE_QUESTION};
  struct shape s = {.family = 4, .protocol = UDP, .payload = 100};
  const size_t n = random_packet(packet, &s);
  for (unsigned i = 0; i < 10; i++) {
    to_engine(question, sizeof question);
    to_engine(packet, n);
  }
  unsigned probes = 0, packets = 0;
  while (probes + packets < 20) {
    const int rows = turn_until_rows() >> 16;
    for (int i = 0; i < rows; i++) {
      int32_t *r = pw_ingress_row(bed.e, (unsigned)i);
      if (r[PW_I_FLAGS] & PW_IF_PROBE) {
        probes++;
        r[PW_I_VERDICT] = 1 + 5;
      } else {
        packets += (unsigned)r[PW_I_SEGMENTS];
        r[PW_I_VERDICT] = 1 + 5;
      }
    }
  }
  EQUAL(probes, 10);
  EQUAL(packets, 10);
  EQUAL(pw_turn(bed.e, 0), 0);
  EQUAL(bed.counters[PW_C_probesAnswered], 10);
  EQUAL(bed.counters[PW_C_ingressPackets], 10);
  close_bed();
}

int main(void)
{
  start_test("probes");
  pw_checksum_init(NULL);
  question_and_answer(AF_INET, false);
  question_and_answer(AF_INET, true);
  question_and_answer(AF_INET6, true);
  near_misses();
  among_packets();
  return 0;
}
