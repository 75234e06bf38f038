/*
 * pw_program_run with real programs: what they print, how they end, both limits, standard input in every size and with
 * nobody who reads it, the PATH; and that neither a descriptor nor a process is left, nor a signal that is ignored handed
 * on.
 */
#include "program.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "engine.h"
#include "harness.h"

static char directory[] = "/tmp/pw-programs-XXXXXX";

static struct pw_program program(char *const *argv)
{
  static char *const environment[] = {"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C", "WORD=of the environment", NULL};
  return (struct pw_program){.argv = argv, .envp = environment, .timeout_ms = 20000, .most_bytes = 1 << 26};
}

/* Runs it, and looks that nothing is left. */
static int finish(struct pw_program *p)
{
  const unsigned before = open_descriptors();
  const int result = pw_program_run(p);
  EQUAL(open_descriptors(), before);
  EQUAL(waitpid(-1, NULL, WNOHANG), -1);
  EQUAL(errno, ECHILD);
  return result;
}

static void release(struct pw_program *p)
{
  free(p->out.data);
  free(p->error.data);
}

static void is(const struct pw_output *o, const char *wanted)
{
  CHECK(o->bytes == strlen(wanted) && (o->bytes == 0 || memcmp(o->data, wanted, o->bytes) == 0), "got '%.*s', not '%s'",
        (int)o->bytes, o->data ? o->data : "", wanted);
}

static void shell(const char *script, int result, int status, const char *out, const char *error)
{
  in_case("sh -c '%s'", script);
  char *const argv[] = {"sh", "-c", (char *)script, NULL};
  struct pw_program p = program(argv);
  EQUAL(finish(&p), result);
  EQUAL(p.status, status);
  is(&p.out, out);
  is(&p.error, error);
  release(&p);
}

static void endings(void)
{
  shell("echo out; echo err >&2", 0, 0, "out\n", "err\n");
  shell("exit 3", 0, 3, "", "");
  shell("exit 255", 0, 255, "", "");
  shell("kill -TERM $$", 0, 256 + SIGTERM, "", "");
  shell("kill -KILL $$", 0, 256 + SIGKILL, "", "");
  shell("echo $WORD", 0, 0, "of the environment\n", "");
  /* Without input there is an end of it at once. */
  shell("cat; echo end", 0, 0, "end\n", "");
  /* Streams that are closed early, and an end that comes later. */
  shell("exec >&- 2>&-; sleep 0.05; exit 4", 0, 4, "", "");
  /* A child that holds the pipe: all it prints belongs to it. */
  shell("(sleep 0.05; echo late) & echo early", 0, 0, "early\nlate\n", "");
  /* SIGPIPE is ignored here, and must not be there. */
  shell("(trap - PIPE; while :; do echo y; done) 2>&1 | head -n 1", 0, 0, "y\n", "");
}

static void inputs(void)
{
  static const size_t sizes[] = {0, 1, 4095, 4096, 65536, 65537, 1000003};
  for (unsigned i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    in_case("cat with %zu bytes", sizes[i]);
    char *const argv[] = {"cat", NULL};
    struct pw_program p = program(argv);
    char *input = malloc(sizes[i] + 1);
    for (size_t at = 0; at < sizes[i]; at++)
      input[at] = (char)random_word();
    p.input = input;
    p.input_bytes = sizes[i];
    EQUAL(finish(&p), 0);
    EQUAL(p.status, 0);
    EQUAL(p.out.bytes, sizes[i]);
    CHECK(sizes[i] == 0 || memcmp(p.out.data, input, sizes[i]) == 0, "other bytes");
    free(input);
    release(&p);
  }
  in_case("input that nobody reads");
  static char much[1 << 20];
  char *const argv[] = {"true", NULL};
  struct pw_program p = program(argv);
  p.input = much;
  p.input_bytes = sizeof much;
  EQUAL(finish(&p), 0);
  EQUAL(p.status, 0);
  release(&p);
  in_case("input that is read after the output was closed");
  char file[sizeof directory + 8];
  snprintf(file, sizeof file, "%s/read", directory);
  char script[PATH_MAX];
  snprintf(script, sizeof script, "exec >&- 2>&-; sleep 0.05; cat >%s", file);
  char *const reader[] = {"sh", "-c", script, NULL};
  p = program(reader);
  p.input = much;
  p.input_bytes = sizeof much;
  EQUAL(finish(&p), 0);
  EQUAL(p.status, 0);
  struct stat s;
  EQUAL(stat(file, &s), 0);
  EQUAL(s.st_size, sizeof much);
  unlink(file);
  release(&p);
}

static void limits(void)
{
  static char *const hang[] = {"sh", "-c", "echo so far; echo problem >&2; exec sleep 60", NULL};
  static char *const silent[] = {"sh", "-c", "exec >&- 2>&-; exec sleep 60", NULL};
  static char *const held[] = {"sh", "-c", "sleep 0.3 & exit 0", NULL};
  in_case("a program that does not end");
  struct pw_program p = program(hang);
  p.timeout_ms = 100;
  const int64_t from = pw_now_ns();
  EQUAL(finish(&p), -ETIMEDOUT);
  CHECK(pw_now_ns() - from >= 100000000, "before its time");
  EQUAL(p.status, 256 + SIGKILL);
  is(&p.out, "so far\n");
  is(&p.error, "problem\n");
  release(&p);
  in_case("one that has closed its output");
  p = program(silent);
  p.timeout_ms = 50;
  EQUAL(finish(&p), -ETIMEDOUT);
  EQUAL(p.status, 256 + SIGKILL);
  release(&p);
  in_case("one whose child holds the output");
  p = program(held);
  p.timeout_ms = 50;
  EQUAL(finish(&p), -ETIMEDOUT);
  release(&p);
  in_case("one that prints without end");
  static char *const yes[] = {"yes", NULL};
  p = program(yes);
  p.most_bytes = 100000;
  EQUAL(finish(&p), -EMSGSIZE);
  EQUAL(p.status, 256 + SIGKILL);
  CHECK(p.out.bytes > 100000, "cut at %zu", p.out.bytes);
  release(&p);
  in_case("as much as it may");
  static char *const some[] = {"head", "-c", "100000", "/dev/zero", NULL};
  p = program(some);
  p.most_bytes = 100000;
  EQUAL(finish(&p), 0);
  EQUAL(p.out.bytes, 100000);
  release(&p);
}

static void put(const char *name, mode_t mode, const char *text)
{
  char file[PATH_MAX];
  snprintf(file, sizeof file, "%s/%s", directory, name);
  const int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, mode);
  CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && fchmod(fd, mode) == 0, "%s", strerror(errno));
  close(fd);
}

static int start_of(char *name, char *path, struct pw_program *p)
{
  static char variable[PATH_MAX * 2];
  char *const argv[] = {name, NULL};
  char *const environment[] = {variable, NULL};
  snprintf(variable, sizeof variable, "PATH=%s", path);
  *p = program(argv);
  p->envp = environment;
  return finish(p);
}

static void paths(void)
{
  char path[PATH_MAX], full[PATH_MAX], longest[PATH_MAX + 64];
  struct pw_program p;
  put("good", 0755, "#!/bin/sh\necho good\n");
  put("forbidden", 0644, "#!/bin/sh\n");
  put("lost", 0755, "#!/no/such/interpreter\n");
  put("senseless", 0755, "no program\n");
  snprintf(path, sizeof path, "/no/such:%s::/usr/bin:/bin", directory);
  in_case("found on the PATH");
  EQUAL(start_of("good", path, &p), 0);
  is(&p.out, "good\n");
  release(&p);
  in_case("at a path");
  snprintf(full, sizeof full, "%s/good", directory);
  EQUAL(start_of(full, "/nowhere", &p), 0);
  is(&p.out, "good\n");
  release(&p);
  in_case("nowhere");
  EQUAL(start_of("no-such-program", path, &p), -ENOENT);
  EQUAL(start_of("good", "", &p), -ENOENT);
  in_case("not to be run");
  EQUAL(start_of("forbidden", path, &p), -EACCES);
  EQUAL(start_of("senseless", path, &p), -ENOEXEC);
  EQUAL(start_of("lost", path, &p), -ENOENT);
  in_case("a directory too long");
  memset(longest, 'x', sizeof longest - 1);
  longest[0] = '/';
  longest[sizeof longest - 1] = 0;
  EQUAL(start_of("good", longest, &p), -ENOENT);
  static const char *const names[] = {"good", "forbidden", "lost", "senseless"};
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
    snprintf(full, sizeof full, "%s/%s", directory, names[i]);
    unlink(full);
  }
}

int main(void)
{
  start_test("programs");
  signal(SIGPIPE, SIG_IGN);
  CHECK(mkdtemp(directory) != NULL, "%s", strerror(errno));
  endings();
  inputs();
  limits();
  paths();
  rmdir(directory);
  return 0;
}
