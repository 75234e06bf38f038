/*
 * What the files of the Node-API surface share: values in and out. Wrong argument types throw TypeError and give
 * false or NULL; the caller returns at once.
 */
#ifndef PODWIRE_ADDON_H
#define PODWIRE_ADDON_H
#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARGS(count) \
  napi_value argv[count]; \
  size_t argc = count; \
  if (napi_get_cb_info(env, info, &argc, argv, NULL, NULL) != napi_ok || argc < count) { \
    napi_throw_type_error(env, NULL, "podwire addon: missing argument"); \
    return NULL; \
  }

static inline napi_value integer(napi_env env, int64_t v)
{
  napi_value out = NULL;
  napi_create_int64(env, v, &out);
  return out;
}

static inline napi_value text(napi_env env, const char *s)
{
  napi_value out = NULL;
  napi_create_string_utf8(env, s, NAPI_AUTO_LENGTH, &out);
  return out;
}

static inline bool get_int(napi_env env, napi_value v, int *out)
{
  int32_t n;
  if (napi_get_value_int32(env, v, &n) != napi_ok) {
    napi_throw_type_error(env, NULL, "podwire addon: expected an integer");
    return false;
  }
  *out = n;
  return true;
}

/* A string of fewer than `room` bytes; longer ones would be cut without a word and name something else. */
static inline bool get_text(napi_env env, napi_value v, char *out, size_t room)
{
  size_t n;
  if (napi_get_value_string_utf8(env, v, NULL, 0, &n) != napi_ok || n >= room) {
    napi_throw_type_error(env, NULL, "podwire addon: expected a string, or a shorter one");
    return false;
  }
  return napi_get_value_string_utf8(env, v, out, room, &n) == napi_ok;
}

static inline bool get_bool(napi_env env, napi_value v)
{
  bool b = false;
  napi_get_value_bool(env, v, &b);
  return b;
}

static inline bool get_bytes(napi_env env, napi_value v, void **data, size_t *bytes)
{
  static const uint8_t width[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8};
  napi_typedarray_type type;
  size_t length;
  bool is = false;
  if (napi_is_typedarray(env, v, &is) != napi_ok || !is ||
      napi_get_typedarray_info(env, v, &type, &length, data, NULL, NULL) != napi_ok || (unsigned)type >= sizeof width) {
    napi_throw_type_error(env, NULL, "podwire addon: expected a typed array");
    return false;
  }
  *bytes = length * width[type];
  return true;
}

static inline napi_value property(napi_env env, napi_value object, const char *name)
{
  napi_value v = NULL;
  napi_get_named_property(env, object, name, &v);
  return v;
}

static inline bool property_int(napi_env env, napi_value object, const char *name, int *out)
{
  return get_int(env, property(env, object, name), out);
}

static inline void set(napi_env env, napi_value object, const char *name, napi_value v)
{
  napi_set_named_property(env, object, name, v);
}

/* addon-engine.c */
napi_value pw_addon_engine_create(napi_env env, napi_callback_info info);
napi_value pw_addon_layout(napi_env env, napi_callback_info info);
/* addon-program.c */
napi_value pw_addon_program_run(napi_env env, napi_callback_info info);
#endif
