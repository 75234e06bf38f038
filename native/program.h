/*
 * Runs another program to its end and collects what it prints. Slow path, on a thread of its own: the calling thread
 * waits.
 *
 * By posix_spawn, which neither copies this process's page tables nor marks its pages copy-on-write: a fork() of an
 * agent with many leases takes milliseconds, and every page that a worker writes afterwards is a fault.
 */
#ifndef PODWIRE_PROGRAM_H
#define PODWIRE_PROGRAM_H
#include <stddef.h>

struct pw_output {
  char *data; /* free() it */
  size_t bytes, room;
};

struct pw_program {
  char *const *argv;  /* argv[0] without a slash is looked for in the PATH of envp, as execvpe(3) */
  char *const *envp;
  const char *input;  /* standard input; NULL: none (/dev/null) */
  size_t input_bytes;
  int timeout_ms;     /* it is killed then */
  size_t most_bytes;  /* of output, both streams: it is killed beyond */
  struct pw_output out, error;
  int status;         /* exit code, or 256 plus the signal that ended it */
};

/*
 * The caller must have SIGPIPE blocked or ignored. 0 when the program has ended by itself, whatever its status;
 * -ETIMEDOUT or -EMSGSIZE when it was killed for one of its limits; else -errno: it could not be started (-ENOENT: no
 * such program). The outputs hold what has come so far in every case.
 */
int pw_program_run(struct pw_program *p);
#endif
