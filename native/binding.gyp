{
  # For node-gyp users only: native/build.mjs builds the same addon without it.
  "targets": [
    {
      "target_name": "podwire",
      "sources": ["<!@(node build.mjs --sources)"],
      "defines": ["NAPI_VERSION=8"],
      "cflags": ["-O2", "-g", "-Wall", "-Wextra", "-std=gnu11", "-fvisibility=hidden"],
      "libraries": ["-lpthread"]
    }
  ]
}
