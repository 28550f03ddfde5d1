/* runtime: what executes a servable. TensorFlow is one; the null runtime serves tests and benchmarks.
 *
 * open and close run on loader threads, run and release on executors, several at once on one model.
 * A runtime knows tensors and signatures, never sockets, calls or batches. Part of the plug-ins' ABI (plugin.h). */
#ifndef FS_RUNTIME_H
#define FS_RUNTIME_H

#include <stdbool.h>
#include <stdint.h>

#include "dense.h"

/* One input or output of a signature. dims[i] < 0: unknown. ndim < 0: unknown rank. */
typedef struct fs_port {
    char *alias;    /* "x" */
    char *tensor;   /* "serving_default_x:0" */
    int32_t dtype;
    int32_t ndim;
    int64_t *dims;
} fs_port;

/* Inputs and outputs are sorted by alias, the canonical feed order. */
typedef struct fs_signature {
    char *name;
    fs_port *inputs;
    uint32_t n_inputs;
    fs_port *outputs;
    uint32_t n_outputs;
    /* Outputs of the XLA-compiled twin of this signature, "node:index" in the order of `outputs`;
     * NULL when there is none and every run is plain. */
    char **compiled_outputs;
} fs_signature;

typedef struct fs_model_spec {
    const char *path;            /* a SavedModel's directory */
    const char **tags;
    uint32_t n_tags;
    fs_slice session_config;     /* a serialized tensorflow.ConfigProto, or empty */
    bool second_session_plain;   /* variant FS_RUN_PLAIN runs in a session of its own, */
    fs_slice plain_config;       /*   opened with this ConfigProto (auto-clustering is session-wide) */
    const fs_signature *signatures; /* outlives the model */
    uint32_t n_signatures;
} fs_model_spec;

typedef struct fs_model fs_model; /* each runtime's own */

enum fs_run_variant {
    FS_RUN_PLAIN,
    FS_RUN_COMPILED, /* only with shapes that were compiled beforehand */
};

typedef struct fs_runtime_ops {
    const char *name;

    /* Opens the model at spec->path, for the signatures in `spec`, which outlive the model. Blocks. On success
     * *out is the caller's until close. 0 or -code with *err filled. */
    int (*open)(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err);

    /* Runs signature number `sig`. inputs: n_inputs tensors in the signature's order, which stay the
     * caller's (see fs_tensor.buf). outputs: room for n_outputs tensors; on success each is filled, and with
     * all that it points to the caller's until release; on failure none is. Dtypes of inputs are the
     * signature's. Shapes are for the runtime to check: one that does not fit the signature comes here as the
     * client sent it, alone. 0 or -code with *err filled; the client reads the message. */
    int (*run)(fs_model *model, uint32_t sig, enum fs_run_variant variant, const fs_tensor *inputs,
               fs_tensor *outputs, fs_error *err);

    /* Gives one output back. Any thread, while the model is open. */
    void (*release)(fs_tensor *output);

    /* After its last run, and the last release of its outputs. */
    void (*close)(fs_model *model);
} fs_runtime_ops;

/* A run past the signatures, by the names that tensors ("x:0", "x") and operations have in the graph. */
typedef struct fs_named_run {
    const fs_slice *feeds;
    const fs_tensor *inputs; /* n_feeds, with ops->run's rules, save that dtypes are whatever the caller sent */
    uint32_t n_feeds;
    const fs_slice *fetches;
    uint32_t n_fetches;
    const fs_slice *targets; /* operations to be run as well */
    uint32_t n_targets;
} fs_named_run;

/* A runtime as its users hold it. Not what a plug-in gives: of that, ops and self. */
typedef struct fs_runtime {
    const fs_runtime_ops *ops;
    void *self;
    /* As ops->run, with room for n_fetches outputs. NULL: this runtime has signatures and nothing else. */
    int (*run_named)(fs_model *model, const fs_named_run *run, fs_tensor *outputs, fs_error *err);
    /* After a plain run of `sig` has failed with *err: may put what more there is to say about it in the place of
     * its text, by running it once more. NULL: there is no more. Inputs and threads as for ops->run. */
    void (*explain)(fs_model *model, uint32_t sig, const fs_tensor *inputs, fs_error *err);
} fs_runtime;

/* Explains *err, where the runtime can: for whoever hands the text on to somebody who reads it. */
static inline void fs_runtime_explain(const fs_runtime *runtime, fs_model *model, uint32_t sig,
                                      const fs_tensor *inputs, fs_error *err)
{
    if (runtime->explain != NULL)
        runtime->explain(model, sig, inputs, err);
}

#endif
