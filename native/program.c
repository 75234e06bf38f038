/* See program.h. */
#include "program.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

#define FIRST_ROOM 4096
/* How long an end that was asked for by SIGKILL is waited for: a program that hangs in the kernel is left behind. */
#define KILL_WAIT_MS 1000

enum { IN, OUT, ERR, STREAMS };

static int64_t now_ms(void)
{
  return pw_now_ns() / 1000000;
}

static void close_pipes(int pipes[STREAMS][2])
{
  for (int i = 0; i < STREAMS; i++)
    for (int end = 0; end < 2; end++)
      if (pipes[i][end] >= 0)
        close(pipes[i][end]);
}

static int start_file(const struct pw_program *p, const char *file, int pipes[STREAMS][2], pid_t *pid)
{
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t signals;
  int error = posix_spawn_file_actions_init(&actions);
  if (error)
    return error;
  error = posix_spawnattr_init(&attributes);
  if (error) {
    posix_spawn_file_actions_destroy(&actions);
    return error;
  }
  /* Whatever Node ignores or this thread blocks must not be inherited. */
  sigemptyset(&signals);
  posix_spawnattr_setsigmask(&attributes, &signals);
  sigfillset(&signals);
  posix_spawnattr_setsigdefault(&attributes, &signals);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  if (p->input)
    error = posix_spawn_file_actions_adddup2(&actions, pipes[IN][0], STDIN_FILENO);
  else
    error = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (!error)
    error = posix_spawn_file_actions_adddup2(&actions, pipes[OUT][1], STDOUT_FILENO);
  if (!error)
    error = posix_spawn_file_actions_adddup2(&actions, pipes[ERR][1], STDERR_FILENO);
  if (!error)
    error = posix_spawn(pid, file, &actions, &attributes, p->argv, p->envp);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  return error;
}

static const char *path_of(char *const *envp)
{
  for (; *envp; envp++)
    if (strncmp(*envp, "PATH=", 5) == 0)
      return *envp + 5;
  return "/usr/bin:/bin";
}

/* As execvpe: a file that may not be run is passed over, and is the answer when no other is found. */
static int start(const struct pw_program *p, int pipes[STREAMS][2], pid_t *pid)
{
  const char *name = p->argv[0];
  char file[PATH_MAX];
  int error = ENOENT;
  if (strchr(name, '/'))
    return start_file(p, name, pipes, pid);
  for (const char *at = path_of(p->envp), *end; at; at = *end ? end + 1 : NULL) {
    end = strchrnul(at, ':');
    const size_t n = (size_t)(end - at);
    if (n == 0 || n + strlen(name) + 2 > sizeof file)
      continue;
    memcpy(file, at, n);
    file[n] = '/';
    strcpy(file + n + 1, name);
    if (access(file, X_OK) != 0) {
      if (errno == EACCES)
        error = EACCES;
      continue;
    }
    const int failed = start_file(p, file, pipes, pid);
    if (failed != ENOENT && failed != EACCES && failed != ENOTDIR)
      return failed;
    if (failed == EACCES)
      error = EACCES;
  }
  return error;
}

/* Reads what is there. False at the end of the stream. */
static bool take(int fd, struct pw_output *o, int *error)
{
  for (;;) {
    if (o->bytes == o->room) {
      const size_t room = o->room ? o->room * 2 : FIRST_ROOM;
      char *data = realloc(o->data, room);
      if (!data) {
        *error = -ENOMEM;
        return false;
      }
      o->data = data;
      o->room = room;
    }
    const ssize_t n = read(fd, o->data + o->bytes, o->room - o->bytes);
    if (n > 0)
      o->bytes += (size_t)n;
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
      return false;
    else if (errno == EAGAIN)
      return true;
  }
}

/* Feeds and reads until the input is taken and both outputs have ended. 0, -ETIMEDOUT, -EMSGSIZE or -ENOMEM. */
static int talk(struct pw_program *p, int pipes[STREAMS][2], int64_t until_ms)
{
  struct pollfd polled[STREAMS] = {
      {.fd = pipes[IN][1], .events = POLLOUT}, {.fd = pipes[OUT][0], .events = POLLIN}, {.fd = pipes[ERR][0], .events = POLLIN}};
  struct pw_output *const outputs[STREAMS] = {NULL, &p->out, &p->error};
  size_t fed = 0;
  int error = 0;
  while (polled[IN].fd >= 0 || polled[OUT].fd >= 0 || polled[ERR].fd >= 0) {
    if (polled[IN].fd >= 0 && fed == p->input_bytes) {
      close(pipes[IN][1]);
      polled[IN].fd = pipes[IN][1] = -1;
      continue;
    }
    const int64_t left = until_ms - now_ms();
    if (left <= 0)
      return -ETIMEDOUT;
    if (poll(polled, STREAMS, (int)left) < 0 && errno != EINTR)
      return -errno;
    if (polled[IN].fd >= 0 && polled[IN].revents) {
      const ssize_t n = write(polled[IN].fd, p->input + fed, p->input_bytes - fed);
      if (n > 0)
        fed += (size_t)n;
      else if (n < 0 && errno != EAGAIN && errno != EINTR)
        fed = p->input_bytes; /* it does not want to read it all */
    }
    for (int i = OUT; i <= ERR; i++)
      if (polled[i].fd >= 0 && polled[i].revents && !take(polled[i].fd, outputs[i], &error))
        polled[i].fd = -1;
    if (error)
      return error;
    if (p->out.bytes + p->error.bytes > p->most_bytes)
      return -EMSGSIZE;
  }
  return 0;
}

/* Waits for the end. False when it has not come in time. */
static bool reap(pid_t pid, int64_t until_ms, int *status)
{
  struct timespec pause = {.tv_nsec = 50000};
  for (;;) {
    const pid_t got = waitpid(pid, status, WNOHANG);
    if (got == pid || (got < 0 && errno != EINTR))
      return true;
    if (now_ms() >= until_ms)
      return false;
    nanosleep(&pause, NULL);
    if (pause.tv_nsec < 10000000)
      pause.tv_nsec *= 2;
  }
}

int pw_program_run(struct pw_program *p)
{
  const int64_t until_ms = now_ms() + p->timeout_ms;
  int pipes[STREAMS][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
  int error = 0, status = 0;
  pid_t pid = 0;
  for (int i = p->input ? IN : OUT; i < STREAMS && !error; i++)
    if (pipe2(pipes[i], O_CLOEXEC) < 0)
      error = errno;
  if (!error)
    error = start(p, pipes, &pid);
  if (error) {
    close_pipes(pipes);
    return -error;
  }
  for (int i = 0; i < STREAMS; i++) {
    const int theirs = i == IN ? 0 : 1;
    if (pipes[i][theirs] < 0)
      continue;
    close(pipes[i][theirs]);
    pipes[i][theirs] = -1;
    fcntl(pipes[i][!theirs], F_SETFL, O_NONBLOCK);
  }
  error = talk(p, pipes, until_ms);
  if (error)
    kill(pid, SIGKILL); /* before its pipes are gone, which could end it with SIGPIPE first */
  close_pipes(pipes);
  if (!error && !reap(pid, until_ms, &status)) {
    error = -ETIMEDOUT;
    kill(pid, SIGKILL);
  }
  if (error)
    reap(pid, now_ms() + KILL_WAIT_MS, &status);
  p->status = WIFSIGNALED(status) ? 256 + WTERMSIG(status) : WEXITSTATUS(status);
  return error;
}
