/*
 * What every native test program shares: a printed seed, random numbers from it, and checks that say which case failed.
 *
 *   PODWIRE_TEST_SEED=<number>    repeats a run
 *   PODWIRE_TEST_ROUNDS=<factor>  multiplies the number of random cases, for a long soak
 */
#ifndef PODWIRE_TEST_HARNESS_H
#define PODWIRE_TEST_HARNESS_H
#include <dirent.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static uint64_t random_state;
static uint64_t test_seed;
static unsigned test_factor = 1;
static char test_case[160] = "start";

static inline void start_test(const char *name)
{
  const char *seed = getenv("PODWIRE_TEST_SEED"), *factor = getenv("PODWIRE_TEST_ROUNDS");
  if (seed)
    test_seed = strtoull(seed, NULL, 0);
  else if (getrandom(&test_seed, sizeof test_seed, 0) != sizeof test_seed)
    test_seed = 1;
  if (factor && atoi(factor) > 0)
    test_factor = (unsigned)atoi(factor);
  random_state = test_seed;
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("%s: PODWIRE_TEST_SEED=%llu\n", name, (unsigned long long)test_seed);
}

/* Names the case that runs from here on; every failure prints it. */
__attribute__((format(printf, 1, 2))) static inline void in_case(const char *format, ...)
{
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(test_case, sizeof test_case, format, arguments);
  va_end(arguments);
}

__attribute__((noreturn, format(printf, 3, 4))) static inline void fail_at(const char *file, int line,
                                                                           const char *format, ...)
{
  va_list arguments;
  fprintf(stderr, "%s:%d: case '%s': ", file, line, test_case);
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fprintf(stderr, " (PODWIRE_TEST_SEED=%llu)\n", (unsigned long long)test_seed);
  exit(1);
}

#define CHECK(condition, ...) \
  do { \
    if (!(condition)) \
      fail_at(__FILE__, __LINE__, __VA_ARGS__); \
  } while (0)

#define EQUAL(got, wanted) \
  do { \
    const long long got_value = (long long)(got), wanted_value = (long long)(wanted); \
    if (got_value != wanted_value) \
      fail_at(__FILE__, __LINE__, "%s is %lld, expected %lld", #got, got_value, wanted_value); \
  } while (0)

/* Of this process, and some more that are always there: for comparing before and after. */
static inline unsigned open_descriptors(void)
{
  unsigned n = 0;
  DIR *d = opendir("/proc/self/fd");
  CHECK(d != NULL, "no /proc/self/fd");
  while (readdir(d))
    n++;
  closedir(d);
  return n;
}

/* splitmix64 */
static inline uint64_t random_word(void)
{
  uint64_t z = (random_state += 0x9e3779b97f4a7c15ull);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}

/* 0 .. below-1 */
static inline unsigned below(unsigned limit)
{
  return (unsigned)(random_word() % limit);
}

/* least .. most, both included */
static inline unsigned between(unsigned least, unsigned most)
{
  return least + below(most - least + 1);
}

/* true once in n */
static inline bool once_in(unsigned n)
{
  return below(n) == 0;
}

/* 1 .. most, small values as likely as large ones: the number of bits is uniform */
static inline unsigned spread(unsigned most)
{
  unsigned bits = 0;
  while (most >> bits)
    bits++;
  const unsigned limit = 1u << between(1, bits);
  const unsigned value = 1 + below(limit);
  return value > most ? most : value;
}

static inline void random_bytes(uint8_t *out, size_t n)
{
  for (size_t i = 0; i < n; i++)
    out[i] = (uint8_t)random_word();
}

/* Packets in the order they came; `tag` says where to or from. */
struct packet {
  uint8_t *data;
  size_t length;
  uint32_t tag;
};

struct packets {
  struct packet *item;
  size_t count, room;
};

static inline void packets_add(struct packets *list, const uint8_t *data, size_t length, uint32_t tag)
{
  if (list->count == list->room) {
    list->room = list->room ? list->room * 2 : 64;
    list->item = realloc(list->item, list->room * sizeof *list->item);
    CHECK(list->item != NULL, "out of memory");
  }
  uint8_t *copy = malloc(length ? length : 1);
  CHECK(copy != NULL, "out of memory");
  memcpy(copy, data, length);
  list->item[list->count++] = (struct packet){copy, length, tag};
}

static inline void packets_clear(struct packets *list)
{
  for (size_t i = 0; i < list->count; i++)
    free(list->item[i].data);
  list->count = 0;
}

static inline void packets_free(struct packets *list)
{
  packets_clear(list);
  free(list->item);
  *list = (struct packets){0};
}

/* Index of the first byte that differs, or the shorter length, or -1 when equal. */
static inline long first_difference(const struct packet *a, const struct packet *b)
{
  const size_t n = a->length < b->length ? a->length : b->length;
  for (size_t i = 0; i < n; i++) {
    if (a->data[i] != b->data[i])
      return (long)i;
  }
  return a->length == b->length ? -1 : (long)n;
}

static inline void same_packets(const struct packets *got, const struct packets *wanted, const char *what)
{
  for (size_t i = 0; i < got->count && i < wanted->count; i++) {
    const long at = first_difference(&got->item[i], &wanted->item[i]);
    CHECK(at < 0, "%s: packet %zu of %zu differs at byte %ld (%zu bytes, expected %zu)", what, i, wanted->count, at,
          got->item[i].length, wanted->item[i].length);
    CHECK(got->item[i].tag == wanted->item[i].tag, "%s: packet %zu went to %u, expected %u", what, i,
          got->item[i].tag, wanted->item[i].tag);
  }
  CHECK(got->count == wanted->count, "%s: %zu packets, expected %zu", what, got->count, wanted->count);
}
#endif
