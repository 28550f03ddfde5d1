/* tf: TensorFlow as a runtime, reached through its C API in a library that is opened at run time.
 *
 * Opened once by the composition root (or a trial process); its models are then used as runtime.h says:
 * open and close on loader threads, run and release on executors. The only file of the native core that
 * knows TensorFlow. Knows no sockets, calls or batches. */
#ifndef FS_TF_H
#define FS_TF_H

#include "runtime.h"

/* Opens libtensorflow_framework.so.2 and libtensorflow_cc.so.2 in `library_dir` (the `tensorflow`
 * directory of an installed wheel) and fills *out. The libraries are never unloaded: TensorFlow's threads
 * and static destructors live in them.
 *
 * 0; -FS_FAILED_PRECONDITION when a library cannot be opened or lacks a symbol (the message names both);
 * -FS_RESOURCE_EXHAUSTED when out of memory. The caller gives *out back with fs_runtime_tensorflow_free.
 * Any thread. */
int fs_runtime_tensorflow(const char *library_dir, fs_runtime *out, fs_error *err);

/* Loads a shared library of custom ops, for all models opened from then on; it stays open. Before the first
 * model. 0 or -code with *err, which names the library and gives TensorFlow's reason. */
int fs_runtime_tensorflow_op_library(const fs_runtime *runtime, const char *path, fs_error *err);

/* Makes what TensorFlow makes once a process and every session shares, by opening a session on an empty graph
 * with this ConfigProto and closing it: devices, and the threads of its pools. These have the priority of the
 * calling thread for good, and the numbers that this ConfigProto asks for, so it comes before the first model
 * and from a thread of normal priority. 0 or -code with *err. */
int fs_runtime_tensorflow_prime(const fs_runtime *runtime, fs_slice session_config, fs_error *err);

/* For measurement: values are restored by ops in the session's pool, as in a server that knows no better, and
 * not by the thread that opens. Before the first model. */
void fs_runtime_tensorflow_restore_in_pool(fs_runtime *runtime);

/* What a traced run is to tell besides how long each op took, when, and what it allocated. */
enum fs_tf_trace {
    FS_TF_TRACE_DEVICES = 1, /* what accelerators did, which starts a profiler for the length of the run */
    FS_TF_TRACE_GRAPHS = 2,  /* the graphs that ran, as grappler and XLA have left them */
};

/* A serialized tensorflow.RunMetadata. */
typedef struct fs_tf_metadata {
    fs_slice bytes;
    void *handle;
} fs_tf_metadata;

/* ops->run of a model of this runtime, traced: `what` has bits of fs_tf_trace. *metadata is the caller's on
 * success, to be given back while the model is open; untouched on failure. The executor for one thread
 * (ConfigProto.experimental.executor_type) traces nothing: of its runs there are graphs and no times. Profiling
 * only: a traced run is slower. Any thread. */
int fs_runtime_tensorflow_run_traced(fs_model *model, uint32_t sig, enum fs_run_variant variant, unsigned what,
                                     const fs_tensor *inputs, fs_tensor *outputs, fs_tf_metadata *metadata,
                                     fs_error *err);
void fs_runtime_tensorflow_metadata_free(const fs_model *model, fs_tf_metadata *metadata);

/* TensorFlow's own version, "2.21.0". Lives as long as the process. Any thread. */
const char *fs_runtime_tensorflow_version(const fs_runtime *runtime);

/* Gives the runtime up: after the last model is closed and every other thread that ran one has ended.
 * A runtime that was never opened (all zeros) is fine. */
void fs_runtime_tensorflow_free(fs_runtime *runtime);

#endif
