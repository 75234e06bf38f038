/* Every checksum variant of this processor equals the obvious RFC 1071 sum: all lengths, all alignments, at random. */
#include "checksum.h"
#include <errno.h>
#include "wire.h"

#define LENGTHS 4096
#define OFFSETS 64
#define LONGEST 65536

/* The variant's sum as a number of 16-bit words in network order. */
static unsigned sum_of(const uint8_t *p, size_t n)
{
  uint8_t word[2];
  const uint16_t folded = pw_fold(pw_sum(p, n));
  memcpy(word, &folded, 2); /* pw_sum works on words as they lie in memory */
  return get16(word);
}

/* 0 and 0xffff are the same number, but zero bytes alone must give 0: a UDP checksum depends on it. */
static void same_sum(const uint8_t *p, size_t n, unsigned wanted)
{
  const unsigned got = sum_of(p, n);
  CHECK(got == wanted, "sum %#06x, expected %#06x", got, wanted);
  static uint8_t room[LONGEST + 2];
  room[0] = room[n + 1] = 0xa5; /* odd, so never aligned as the source is */
  const uint32_t sum = pw_sum_copy(room + 1, p, n);
  CHECK(sum == pw_sum(p, n), "with a copy %#x, without %#x", sum, pw_sum(p, n));
  CHECK(!memcmp(room + 1, p, n), "the copy differs");
  CHECK(room[0] == 0xa5 && room[n + 1] == 0xa5, "the copy wrote beside its room");
}

static void all_lengths_and_offsets(const char *variant)
{
  /* exactly as large as the longest range at the last offset: one byte too many is seen by the sanitizer */
  uint8_t *bytes = malloc(LENGTHS + OFFSETS - 1);
  CHECK(bytes != NULL, "out of memory");
  random_bytes(bytes, LENGTHS + OFFSETS - 1);
  for (unsigned offset = 0; offset < OFFSETS; offset++) {
    unsigned running = 0; /* the obvious sum of the even prefix, extended as the length grows */
    for (unsigned n = 0; n <= LENGTHS; n++) {
      in_case("%s, %u bytes at offset %u", variant, n, offset);
      if (n >= 2 && n % 2 == 0)
        running = add_up(running, bytes + offset + n - 2, 2);
      same_sum(bytes + offset, n, n % 2 ? add_up(running, bytes + offset + n - 1, 1) : running);
    }
  }
  free(bytes);
}

static void at_the_end_of_memory(const char *variant)
{
  for (unsigned n = 0; n <= 512; n++) {
    in_case("%s, a block of exactly %u bytes", variant, n);
    uint8_t *block = malloc(n ? n : 1);
    CHECK(block != NULL, "out of memory");
    random_bytes(block, n);
    same_sum(block, n, add_up(0, block, n));
    free(block);
  }
}

static void extremes(const char *variant)
{
  static uint8_t bytes[LONGEST + OFFSETS];
  static const uint8_t fills[] = {0x00, 0xff, 0x01, 0x80, 0x7f};
  for (unsigned f = 0; f < sizeof fills; f++) {
    memset(bytes, fills[f], sizeof bytes);
    for (unsigned n = 65536 - 70; n <= 65536; n++) {
      in_case("%s, %u bytes of %#04x", variant, n, fills[f]);
      same_sum(bytes + f, n, add_up(0, bytes + f, n));
    }
  }
}

static void random_ranges(const char *variant)
{
  static uint8_t bytes[LONGEST + OFFSETS];
  for (unsigned i = 0; i < 400 * test_factor; i++) {
    const unsigned n = below(65537), offset = below(64);
    in_case("%s, random %u: %u bytes at offset %u", variant, i, n, offset);
    random_bytes(bytes + offset, n);
    if (once_in(3))
      memset(bytes + offset, 0xff, below(n + 1));
    const unsigned wanted = add_up(0, bytes + offset, n);
    same_sum(bytes + offset, n, wanted);
    /* parts that start at even distances may be added */
    const unsigned cut = below(n / 2 + 1) * 2;
    uint8_t word[2];
    const uint16_t folded = pw_fold((uint64_t)pw_sum(bytes + offset, cut) + pw_sum(bytes + offset + cut, n - cut));
    memcpy(word, &folded, 2);
    CHECK(get16(word) == wanted, "in two parts cut at %u: %#06x, expected %#06x", cut, get16(word), wanted);
  }
}

static void folding(void)
{
  in_case("folding");
  for (unsigned i = 0; i < 200000; i++) {
    const uint64_t sum = i < 64 ? ~0ull >> i : random_word() >> below(64);
    const unsigned wanted = sum ? (unsigned)((sum - 1) % 0xffff + 1) : 0;
    CHECK(pw_fold(sum) == wanted, "fold of %#llx is %#x, expected %#x", (unsigned long long)sum, pw_fold(sum), wanted);
  }
}

int main(void)
{
  static const char *const variants[] = {"portable", "avx2", "neon"};
  start_test("checksum");
  unsigned tested = 0;
  for (unsigned v = 0; v < 3; v++) {
    const int error = pw_checksum_init(variants[v]);
    in_case("choosing %s", variants[v]);
    CHECK(error == 0 || error == -EINVAL, "returned %d", error);
    if (error) {
      printf("  %s: not on this processor\n", variants[v]);
      continue;
    }
    CHECK(!strcmp(pw_checksum_variant(), variants[v]), "variant is %s", pw_checksum_variant());
    all_lengths_and_offsets(variants[v]);
    at_the_end_of_memory(variants[v]);
    extremes(variants[v]);
    random_ranges(variants[v]);
    tested++;
  }
  in_case("choice of a variant");
  EQUAL(pw_checksum_init("no such variant"), -EINVAL);
  EQUAL(pw_checksum_init(NULL), 0);
  CHECK(tested >= 1, "no variant was tested");
#if defined(__x86_64__)
  CHECK(!strcmp(pw_checksum_variant(), __builtin_cpu_supports("avx2") ? "avx2" : "portable"), "default is %s",
        pw_checksum_variant());
#endif
  folding();
  printf("checksum: %u variants\n", tested);
  return 0;
}
