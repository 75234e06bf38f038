/* programRun for Node: a thread for every program that runs, and one call back on the event loop when it has ended. */
#include <errno.h>
#include <node_api.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "addon.h"
#include "program.h"

struct job {
  struct pw_program program;
  int result;
  napi_threadsafe_function done;
  /* All of one block: the texts that argv, envp and input point into. */
  char *texts;
};

static void job_free(struct job *j)
{
  free((void *)j->program.argv);
  free((void *)j->program.envp);
  free(j->program.out.data);
  free(j->program.error.data);
  free(j->texts);
  free(j);
}

static napi_value output(napi_env env, const struct pw_output *o)
{
  napi_value out = NULL;
  napi_create_buffer_copy(env, o->bytes, o->bytes ? o->data : "", NULL, &out);
  return out;
}

/* On the event loop; `env` is NULL when that has ended. */
static void call_back(napi_env env, napi_value callback, void *context, void *data)
{
  struct job *j = data;
  (void)context;
  if (env && callback) {
    napi_value self, argv[] = {integer(env, j->result ? j->result : j->program.status), output(env, &j->program.out),
                               output(env, &j->program.error)};
    napi_get_undefined(env, &self);
    napi_call_function(env, self, callback, 3, argv, NULL);
  }
  job_free(j);
}

static void *run(void *data)
{
  struct job *j = data;
  napi_threadsafe_function done = j->done;
  j->result = pw_program_run(&j->program);
  const napi_status status = napi_call_threadsafe_function(done, j, napi_tsfn_nonblocking);
  if (status != napi_ok)
    job_free(j);
  /* An event loop that has ended has released it for us. */
  if (status != napi_closing)
    napi_release_threadsafe_function(done, napi_tsfn_release);
  return NULL;
}

/* Pointers to the texts of a block, each with its final zero; NULL for want of memory. `bytes` > 0, the last one is 0. */
static char **pointers(char *block, size_t bytes)
{
  size_t count = 0, at = 0;
  for (size_t i = 0; i < bytes; i++)
    count += !block[i];
  char **list = malloc((count + 1) * sizeof *list);
  for (size_t i = 0; list && i < count; i++) {
    list[i] = block + at;
    at += strlen(block + at) + 1;
  }
  if (list)
    list[count] = NULL;
  return list;
}

/* Takes what Node gave over into memory of our own. */
static struct job *job_of(const char *argv, size_t argv_bytes, const char *envp, size_t envp_bytes, const char *input,
                          size_t input_bytes)
{
  struct job *j = calloc(1, sizeof *j);
  char *texts = malloc(argv_bytes + envp_bytes + input_bytes + 1);
  if (!j || !texts) {
    free(j);
    free(texts);
    return NULL;
  }
  j->texts = texts;
  memcpy(texts, argv, argv_bytes);
  memcpy(texts + argv_bytes, envp, envp_bytes);
  if (input_bytes)
    memcpy(texts + argv_bytes + envp_bytes, input, input_bytes);
  j->program.argv = pointers(texts, argv_bytes);
  j->program.envp = pointers(texts + argv_bytes, envp_bytes);
  j->program.input = input ? texts + argv_bytes + envp_bytes : NULL;
  j->program.input_bytes = input_bytes;
  if (!j->program.argv || !j->program.envp) {
    job_free(j);
    return NULL;
  }
  return j;
}

static int job_start(struct job *j)
{
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all, before;
  /* No signal of the process is for this thread, and a program that does not read its input is no SIGPIPE. */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  const int error = pthread_create(&thread, &attributes, run, j);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return -error;
}

/*
 * programRun(argv, envp, input | undefined, timeoutMs, mostBytes, done) -> 0 | -errno. argv and envp: bytes of texts
 * with a final zero each. done(status | -errno, output, errors) is called once, as pw_program_run says, unless this
 * itself fails.
 */
napi_value pw_addon_program_run(napi_env env, napi_callback_info info)
{
  ARGS(6)
  void *arguments, *environment, *input = NULL;
  size_t argument_bytes, environment_bytes, input_bytes = 0;
  int timeout_ms, most_bytes;
  napi_valuetype type = napi_undefined;
  napi_typeof(env, argv[2], &type);
  if (!get_bytes(env, argv[0], &arguments, &argument_bytes) || !get_bytes(env, argv[1], &environment, &environment_bytes) ||
      (type != napi_undefined && !get_bytes(env, argv[2], &input, &input_bytes)) || !get_int(env, argv[3], &timeout_ms) ||
      !get_int(env, argv[4], &most_bytes))
    return NULL;
  const char *a = arguments, *e = environment;
  if (argument_bytes < 2 || a[argument_bytes - 1] || (environment_bytes && e[environment_bytes - 1]) || timeout_ms < 0 ||
      most_bytes < 0)
    return integer(env, -EINVAL);
  /* An empty typed array may have no memory. */
  struct job *j = job_of(a, argument_bytes, e ? e : "", environment_bytes,
                         type == napi_undefined ? NULL : input ? (const char *)input : "", input_bytes);
  if (!j)
    return integer(env, -ENOMEM);
  j->program.timeout_ms = timeout_ms;
  j->program.most_bytes = (size_t)most_bytes;
  if (napi_create_threadsafe_function(env, argv[5], NULL, text(env, "podwire program"), 0, 1, NULL, NULL, NULL, call_back,
                                      &j->done) != napi_ok) {
    job_free(j);
    napi_throw_type_error(env, NULL, "podwire addon: expected a function");
    return NULL;
  }
  napi_threadsafe_function done = j->done;
  const int error = job_start(j);
  if (error) {
    napi_release_threadsafe_function(done, napi_tsfn_release);
    job_free(j);
  }
  return integer(env, error);
}
