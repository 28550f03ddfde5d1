/* litert: LiteRT as a runtime for TFLite models, reached through its C API in a library that is opened at run
 * time.
 *
 * Opened once by the composition root (or a trial process); its models are then used as runtime.h says: open
 * and close on loader threads, run and release on executors. The only file of the native core that knows
 * LiteRT. Knows no sockets, calls or batches. */
#ifndef FS_LITERT_H
#define FS_LITERT_H

#include "runtime.h"

/* The file of a TFLite model, in the directory that fs_model_spec.path names. */
#define FS_LITERT_MODEL "model.tflite"

typedef struct fs_litert_options {
    int32_t threads;      /* of one run */
    int32_t interpreters; /* of one model: so many runs at once; more wait */
} fs_litert_options;

/* Opens libLiteRt.so in `library_dir` (the directory of an installed ai_edge_litert package) and fills *out.
 * The library is never unloaded.
 *
 * 0; -FS_FAILED_PRECONDITION when it cannot be opened, lacks a function or is older than 2.3;
 * -FS_RESOURCE_EXHAUSTED when out of memory. The caller gives *out back with fs_runtime_litert_free. Any
 * thread. */
int fs_runtime_litert(const char *library_dir, const fs_litert_options *options, fs_runtime *out,
                      fs_error *err);

/* Gives the runtime up: after the last model is closed and every other thread that ran one has ended.
 * A runtime that was never opened (all zeros) is fine. */
void fs_runtime_litert_free(fs_runtime *runtime);

#endif
