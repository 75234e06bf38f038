/* What the two load tools share: time, arguments, sockets. Header-only, so that each tool is one file for the compiler.
 *
 * Both tools are bounded in time by alarm(2): whatever happens to the harness, they end by themselves. Results go to
 * stdout as one line of JSON; "ready" on a line of its own says that a receiver is bound. Errors: one line on stderr,
 * exit code 1. */
#ifndef PODWIRE_BENCH_TOOL_H
#define PODWIRE_BENCH_TOOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000ull

static volatile sig_atomic_t stop_requested;

static void on_stop(int signal_number) {
  (void)signal_number;
  stop_requested = 1;
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  fputc('\n', stderr);
  exit(1);
}

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

static inline void sleep_until(uint64_t deadline_ns) {
  struct timespec t = {.tv_sec = (time_t)(deadline_ns / NS_PER_SECOND), .tv_nsec = (long)(deadline_ns % NS_PER_SECOND)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* SIGTERM and SIGINT ask for an orderly end (the result is still printed); SIGALRM ends a tool that nobody stopped. */
static void bound_lifetime(double seconds) {
  struct sigaction action = {.sa_handler = on_stop};
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGALRM, &action, NULL);
  alarm((unsigned)(seconds + 1.0));
  prctl(PR_SET_TIMERSLACK, 1ul, 0, 0, 0);
}

/* The value of --NAME in argv, else fallback; a NULL fallback makes the option required. */
static const char *option(int argc, char **argv, const char *name, const char *fallback) {
  for (int i = 2; i + 1 < argc; i += 2)
    if (strncmp(argv[i], "--", 2) == 0 && strcmp(argv[i] + 2, name) == 0) return argv[i + 1];
  if (fallback == NULL) die("%s %s: option --%s is missing", argv[0], argv[1], name);
  return fallback;
}

static double number_option(int argc, char **argv, const char *name, const char *fallback, double low, double high) {
  const char *text = option(argc, argv, name, fallback);
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end != '\0' || !(value >= low && value <= high))
    die("%s: --%s must be a number from %g to %g, got \"%s\"", argv[0], name, low, high, text);
  return value;
}

/* An address of either family, with its port. */
union address {
  struct sockaddr any;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
};

static socklen_t address_bytes(const union address *address) {
  return address->any.sa_family == AF_INET6 ? sizeof address->v6 : sizeof address->v4;
}

static union address address_option(int argc, char **argv, const char *name) {
  union address address = {0};
  const char *text = option(argc, argv, name, NULL);
  const uint16_t port = htons((uint16_t)number_option(argc, argv, "port", "9001", 1, 65535));
  if (inet_pton(AF_INET, text, &address.v4.sin_addr) == 1) {
    address.v4.sin_family = AF_INET;
    address.v4.sin_port = port;
  } else if (inet_pton(AF_INET6, text, &address.v6.sin6_addr) == 1) {
    address.v6.sin6_family = AF_INET6;
    address.v6.sin6_port = port;
  } else {
    die("%s: --%s must be an IP address, got \"%s\"", argv[0], name, text);
  }
  return address;
}

/* A UDP socket with large buffers where the privilege allows (else the largest the limits give), receive timeout in
 * microseconds (0 = wait for ever). */
static int udp_socket(int family, uint64_t receive_timeout_us) {
  int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket: %s", strerror(errno));
  int bytes = 16 << 20;
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
  if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
  if (receive_timeout_us > 0) {
    struct timeval timeout = {.tv_sec = (time_t)(receive_timeout_us / 1000000), .tv_usec = (suseconds_t)(receive_timeout_us % 1000000)};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  }
  return fd;
}

static void bind_and_announce(int fd, const union address *address) {
  if (bind(fd, &address->any, address_bytes(address)) < 0) die("bind: %s", strerror(errno));
  puts("ready");
  fflush(stdout);
}

#endif
