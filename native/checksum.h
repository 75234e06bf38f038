/* Internet checksum (RFC 1071) over byte ranges, fastest variant of this processor. */
#ifndef PODWIRE_CHECKSUM_H
#define PODWIRE_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>

/*
 * One's-complement sum of the 16-bit words at p, in host order, not complemented and folded to 32 bits or less.
 * An odd last byte counts as if a zero byte followed. Sums of ranges that start at even distances may be added.
 */
typedef uint32_t (*pw_sum_fn)(const uint8_t *p, size_t n);

extern pw_sum_fn pw_sum;

/* The same sum, of bytes that are copied to `to` on the way; the ranges do not overlap. */
typedef uint32_t (*pw_sum_copy_fn)(uint8_t *to, const uint8_t *p, size_t n);

extern pw_sum_copy_fn pw_sum_copy;

/* Chooses both for this processor; force names a variant ("portable", "avx2", "neon") or is NULL. 0 or -EINVAL. */
int pw_checksum_init(const char *force);
const char *pw_checksum_variant(void);

static inline uint16_t pw_fold(uint64_t sum)
{
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return (uint16_t)((sum & 0xffff) + (sum >> 16));
}
#endif
