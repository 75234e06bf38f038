/*
 * The sum is taken over 32-bit words into 64-bit lanes: a lane takes 2^32 words before it can overflow, far more than
 * a 64 KiB packet has. 2^16 - 1 divides 2^32 - 1, so folding at the end gives the sum of 16-bit words (RFC 1071 2 B).
 */
#include "checksum.h"
#include <errno.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static inline uint64_t sum_tail(const uint8_t *p, size_t n, uint64_t sum)
{
  uint32_t word;
  while (n >= 4) {
    memcpy(&word, p, 4);
    sum += word;
    p += 4;
    n -= 4;
  }
  if (n) {
    word = 0;
    memcpy(&word, p, n);
    sum += word;
  }
  return sum;
}

static inline uint32_t fold32(uint64_t sum)
{
  sum = (sum & 0xffffffff) + (sum >> 32);
  return (uint32_t)((sum & 0xffffffff) + (sum >> 32));
}

/* Each variant once, with and without the copy: `to` is a constant NULL in pw_sum. */
#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t portable(uint8_t *to, const uint8_t *p, size_t n)
{
  uint64_t a = 0, b = 0, w[4];
  if (to)
    memcpy(to, p, n);
  while (n >= 32) {
    memcpy(w, p, 32);
    a += (w[0] & 0xffffffff) + (w[0] >> 32) + (w[1] & 0xffffffff) + (w[1] >> 32);
    b += (w[2] & 0xffffffff) + (w[2] >> 32) + (w[3] & 0xffffffff) + (w[3] >> 32);
    p += 32;
    n -= 32;
  }
  return fold32(sum_tail(p, n, a + b));
}

static uint32_t sum_portable(const uint8_t *p, size_t n)
{
  return portable(NULL, p, n);
}

static uint32_t sum_copy_portable(uint8_t *to, const uint8_t *p, size_t n)
{
  return portable(to, p, n);
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

AVX2 INLINE uint32_t avx2(uint8_t *to, const uint8_t *p, size_t n)
{
  uint64_t sum = 0;
  if (n >= 64) {
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    do {
      __m256i x = _mm256_loadu_si256((const __m256i *)p);
      __m256i y = _mm256_loadu_si256((const __m256i *)(p + 32));
      if (to) {
        _mm256_storeu_si256((__m256i *)to, x);
        _mm256_storeu_si256((__m256i *)(to + 32), y);
        to += 64;
      }
      a = _mm256_add_epi64(a, _mm256_and_si256(x, low));
      b = _mm256_add_epi64(b, _mm256_srli_epi64(x, 32));
      c = _mm256_add_epi64(c, _mm256_and_si256(y, low));
      d = _mm256_add_epi64(d, _mm256_srli_epi64(y, 32));
      p += 64;
      n -= 64;
    } while (n >= 64);
    uint64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, _mm256_add_epi64(_mm256_add_epi64(a, b), _mm256_add_epi64(c, d)));
    sum = lane[0] + lane[1] + lane[2] + lane[3];
  }
  if (to)
    memcpy(to, p, n);
  return fold32(sum_tail(p, n, sum));
}

AVX2 static uint32_t sum_avx2(const uint8_t *p, size_t n)
{
  return avx2(NULL, p, n);
}

AVX2 static uint32_t sum_copy_avx2(uint8_t *to, const uint8_t *p, size_t n)
{
  return avx2(to, p, n);
}
#endif

#if defined(__aarch64__)
INLINE uint32_t neon(uint8_t *to, const uint8_t *p, size_t n)
{
  uint64x2_t a = vdupq_n_u64(0), b = a, c = a, d = a;
  while (n >= 64) {
    const uint8x16_t v = vld1q_u8(p), w = vld1q_u8(p + 16), x = vld1q_u8(p + 32), y = vld1q_u8(p + 48);
    if (to) {
      vst1q_u8(to, v);
      vst1q_u8(to + 16, w);
      vst1q_u8(to + 32, x);
      vst1q_u8(to + 48, y);
      to += 64;
    }
    a = vpadalq_u32(a, vreinterpretq_u32_u8(v));
    b = vpadalq_u32(b, vreinterpretq_u32_u8(w));
    c = vpadalq_u32(c, vreinterpretq_u32_u8(x));
    d = vpadalq_u32(d, vreinterpretq_u32_u8(y));
    p += 64;
    n -= 64;
  }
  if (to)
    memcpy(to, p, n);
  uint64x2_t all = vaddq_u64(vaddq_u64(a, b), vaddq_u64(c, d));
  return fold32(sum_tail(p, n, vgetq_lane_u64(all, 0) + vgetq_lane_u64(all, 1)));
}

static uint32_t sum_neon(const uint8_t *p, size_t n)
{
  return neon(NULL, p, n);
}

static uint32_t sum_copy_neon(uint8_t *to, const uint8_t *p, size_t n)
{
  return neon(to, p, n);
}
#endif

static const char *variant = "portable";
pw_sum_fn pw_sum = sum_portable;
pw_sum_copy_fn pw_sum_copy = sum_copy_portable;

int pw_checksum_init(const char *force)
{
  pw_sum_fn best = sum_portable;
  pw_sum_copy_fn best_copy = sum_copy_portable;
  const char *name = "portable";
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && (!force || !strcmp(force, "avx2"))) {
    best = sum_avx2;
    best_copy = sum_copy_avx2;
    name = "avx2";
  }
#elif defined(__aarch64__)
  if (!force || !strcmp(force, "neon")) {
    best = sum_neon;
    best_copy = sum_copy_neon;
    name = "neon";
  }
#endif
  if (force && strcmp(force, name))
    return -EINVAL;
  pw_sum = best;
  pw_sum_copy = best_copy;
  variant = name;
  return 0;
}

const char *pw_checksum_variant(void)
{
  return variant;
}
