/* litert_own: what the files of LiteRT's runtime share.
 *
 *     litert.c         the library; models and their interpreters, opened and closed
 *     litert_shapes.c  what is known of a signature for inputs of certain shapes, and how it is found out
 *     litert_run.c     interpreters taken and given back, and runs
 *
 * A model is its file, mapped once, and a pool of interpreters (LiteRT's compiled models), each for one run
 * at a time. A run takes one that is free, preferably one that had these shapes last: any other is set to
 * them first. With one thread for each run, ops run in the thread that calls.
 *
 * LiteRT writes outputs to memory that it is given, so their shapes must be known before a run. One more
 * interpreter, the scout, never runs and says what they are for shapes of inputs. (The others cannot be
 * asked: they would compare the new shapes with the memory of their last run.) It may be wrong where shapes
 * in the middle of the model depend on values: every run compares, and the first of each shape corrects it.
 * An output that is such a tensor itself is never written to memory of ours, nor can it be had otherwise. */
#ifndef FS_LITERT_OWN_H
#define FS_LITERT_OWN_H

#include <pthread.h>
#include <stdatomic.h>

#include "litert.h"
#include "litert_api.h"
#include "slab.h"
#include "status.h"
#include "tensor.h"

enum { FS_LITE_SHAPES = 1024 }; /* places for what is known of a signature's shapes; a power of two */

#define FIELD(result, name, args) result(*name) args;
typedef struct lite_api {
    FS_LITERT_FUNCTIONS(FIELD)
} lite_api;
#undef FIELD

typedef struct lite_runtime {
    lite_api api;
    fs_litert_options options;
    LiteRtEnvironment environment;
    pthread_key_t slab; /* each thread's fs_slab */
} lite_runtime;

/* What is known about a signature for inputs of certain shapes; in LiteRT's order. */
typedef struct lite_shape {
    uint64_t hash;
    bool kept;          /* in the signature's table, until the model is closed */
    size_t *output_bytes;
    LiteRtRankedTensorType *outputs;
    LiteRtRankedTensorType inputs[];
} lite_shape;

typedef struct lite_signature {
    const fs_signature *spec;
    size_t number;      /* LiteRT's */
    uint32_t *feeds;    /* LiteRT's input i is input feeds[i] of the signature */
    uint32_t *fetches;  /* and its output i is output fetches[i] */
    fs_error *broken;   /* why every run of it fails, or NULL */
    uint32_t n_shapes;  /* guarded by the model's `learning` */
    atomic_bool varying; /* an output had two shapes for one of the inputs: no run can be trusted */
    _Atomic(lite_shape *) *shapes; /* FS_LITE_SHAPES places, by hash: release -> acquire of a search */
} lite_signature;

typedef struct lite_interpreter {
    _Alignas(64) atomic_bool busy;  /* release -> acquire hands the interpreter on */
    LiteRtCompiledModel compiled;
    _Atomic(lite_shape *) *current; /* for each signature: what its tensors are set to; NULL: not known */
} lite_interpreter;

struct fs_model {
    lite_runtime *runtime;
    LiteRtModel file;
    lite_signature *signatures;
    uint32_t n_signatures;
    lite_interpreter *interpreters;
    int32_t n_interpreters;

    pthread_mutex_t learning; /* guards `scout` and additions to the tables of shapes */
    LiteRtCompiledModel scout;

    atomic_int waiting;      /* threads that want an interpreter and found none */
    pthread_mutex_t waiters; /* guards nothing but their sleep */
    pthread_cond_t freed;
};

/* ---- litert.c ---------------------------------------------------------------------------- */

int lite_fail_memory(fs_error *err);

/* LiteRT cannot do `what`: its status says no more. */
int lite_fail_status(int status, const char *what, fs_error *err);

/* `what`, and what the interpreter, which is the caller's alone, says about it. */
int lite_fail_compiled(const lite_api *api, LiteRtCompiledModel compiled, int status, enum fs_code code,
                       const char *what, fs_error *err);

/* LiteRT's element type; 0 for what it does not know, or packs more densely than we do. */
int32_t lite_element_type(int32_t dtype);

/* ---- litert_shapes.c --------------------------------------------------------------------- */

/* What is known for inputs of these shapes; NULL when nothing is. */
lite_shape *lite_shape_find(const lite_signature *sig, const fs_tensor *inputs);

/* A guess at it: what the scout says, under a mutex. 0 or -code with *err; *out is the caller's to free. */
int lite_shape_new(fs_model *model, const lite_signature *sig, const fs_tensor *inputs, lite_shape **out,
                   fs_error *err);

/* Takes over what an interpreter says of its outputs after a run. Whether that is something else. */
bool lite_shape_correct(const lite_signature *sig, lite_shape *shape, const LiteRtLayout *layouts);

/* Whether an interpreter says of its outputs what is known. */
bool lite_shape_holds(const lite_signature *sig, const lite_shape *shape, const LiteRtLayout *layouts);

/* Lets others find a guess that a run has proven, if nobody was faster and there is room: shape->kept says
 * whether the model owns it from now on. Under the mutex. */
void lite_shape_keep(fs_model *model, lite_signature *sig, lite_shape *shape, const fs_tensor *inputs);

/* Sets an interpreter, which is the caller's alone, to a shape. 0 or LiteRT's status. */
int lite_set_inputs(const lite_api *api, LiteRtCompiledModel compiled, const lite_signature *sig,
                    const lite_shape *shape);

/* ---- litert_run.c: see runtime.h ---------------------------------------------------------- */

int lite_run(fs_model *model, uint32_t number, enum fs_run_variant variant, const fs_tensor *inputs,
             fs_tensor *outputs, fs_error *err);
void lite_release(fs_tensor *output);

#endif
