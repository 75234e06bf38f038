/*
 * Peer probes on the data port, 16 bytes in network order:
 *
 *    0  4  "pwp" and the version 1
 *    4  1  type: 1 question, 2 answer
 *    5  3  nonce of whoever asks
 *    8  8  clock of whoever asks (CLOCK_MONOTONIC, ns), opaque to others
 *
 * flanneld's udp backend and every podwire ignore datagrams below 20 bytes; a vxlan device drops these because their
 * first byte has no I flag (RFC 7348). The answer is the question with another type, sent to where it came from. Who is
 * answered and what an answer means is decided in TypeScript, which gets each probe as an ingress row of its own.
 */
#include <errno.h>
#include <string.h>
#include "engine.h"
#include "host.h"

#define MAGIC 0x70777001u
#define LONGEST_NS 10000000000LL /* an answer that took longer is to nothing that anybody still waits for */

int pw_probe_take(struct pw_engine *e, unsigned message, uint32_t offset, size_t n)
{
  const uint8_t *p = e->c.udp_arena + offset;
  if (n != PW_PROBE_BYTES || pw_get32(p) != MAGIC || (p[PW_PROBE_TYPE] != PW_PROBE_QUESTION && p[PW_PROBE_TYPE] != PW_PROBE_ANSWER))
    return 0;
  if (e->ingress_rows >= PW_MAX_INGRESS)
    return -ENOSPC;
  const int64_t took = pw_now_ns() - (int64_t)((uint64_t)pw_get32(p + 8) << 32 | pw_get32(p + 12));
  int32_t *r = pw_ingress_row(e, e->ingress_rows++);
  r[PW_I_OFFSET] = (int32_t)offset;
  r[PW_I_LENGTH] = PW_PROBE_BYTES;
  r[PW_I_SEGMENTS] = 1;
  r[PW_I_FIRST] = 0;
  r[PW_I_MESSAGE] = (int32_t)message;
  r[PW_I_VERDICT] = 0;
  r[PW_I_BYTES] = took >= 0 && took <= LONGEST_NS ? (int32_t)(took / 1000) : -1;
  r[PW_I_FLAGS] = PW_IF_PROBE;
  return 1;
}

void pw_probe_answer(struct pw_engine *e, const int32_t *row)
{
  const struct sockaddr_in6 *to = &e->receive_from[row[PW_I_MESSAGE]];
  uint8_t answer[PW_PROBE_BYTES];
  memcpy(answer, e->c.udp_arena + row[PW_I_OFFSET], sizeof answer);
  answer[PW_PROBE_TYPE] = PW_PROBE_ANSWER;
  const socklen_t bytes = to->sin6_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof *to;
  if (sendto(e->c.udp_fd, answer, sizeof answer, MSG_DONTWAIT, (const struct sockaddr *)to, bytes) >= 0)
    pw_count(e, PW_C_probesAnswered, 1);
}

int pw_probe_ask(int fd, const struct sockaddr *to, socklen_t bytes, uint32_t nonce)
{
  uint8_t question[PW_PROBE_BYTES];
  const uint64_t now = (uint64_t)pw_now_ns();
  pw_put32(question, MAGIC);
  pw_put32(question + 4, (uint32_t)PW_PROBE_QUESTION << 24 | (nonce & 0xffffff));
  pw_put32(question + 8, (uint32_t)(now >> 32));
  pw_put32(question + 12, (uint32_t)now);
  return sendto(fd, question, sizeof question, MSG_DONTWAIT, to, bytes) < 0 ? -errno : 0;
}
