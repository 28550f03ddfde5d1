/* litert: see litert.h.
 *
 * A model is its file, mapped once, and a pool of interpreters (LiteRT's compiled models), for one runs one batch
 * at a time. A run takes an interpreter that is free, preferably one that has seen these shapes last: another has
 * to be set to them first. With one thread for each run, ops run in the thread that calls.
 *
 * LiteRT writes outputs to memory that it is given, so their shapes must be known before a run. One more
 * interpreter, which never runs, says what they are for the shapes of the inputs; what it has said once is kept.
 * (The others cannot be asked: they would compare the new shapes with the memory of their last run.) Outputs whose
 * shapes depend on values are never written there, nor can they be had otherwise. They are found by the first run
 * of each shape, whose outputs are filled with a pattern before: if it still stands, the signature fails.
 *
 * Memory: inputs are lent where they lie, unless they are not aligned as LiteRT wants it; an interpreter keeps
 * their address, and looks there no more once it has returned. Outputs are buffers of ours. */
#include "litert.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "litert_api.h"
#include "slab.h"
#include "status.h"
#include "tensor.h"

enum {
    PORTS_ON_STACK = 32,
    THREAD_CACHE_BYTES = 4 << 20, /* free blocks that a thread keeps: outputs, and copies of inputs */
    SHAPES = 1024,                /* places for what is known of a signature's shapes; a power of two */
    SHAPES_KEPT = 768,            /* of these are taken, so that a search ends */
    OPTIONS_MAX = 64,
};

/* What outputs are filled with when it is to be seen whether they are written. */
static const uint8_t PATTERNS[] = {0xa5, 0x5a};

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
    atomic_bool proven; /* a run has written every output */
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
    _Atomic(lite_shape *) *shapes; /* SHAPES places, by hash. Set once: release -> acquire of a search */
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

/* ---- errors ------------------------------------------------------------------------------ */

static int fail_memory(fs_error *err)
{
    return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
}

/* `what`, and what the interpreter says about it. */
static int fail_compiled(const lite_api *api, LiteRtCompiledModel compiled, int status, enum fs_code code,
                         const char *what, fs_error *err)
{
    if (status == LITERT_OUT_OF_MEMORY)
        return fail_memory(err);
    char *words = NULL;
    int rc;
    if (api->CompiledModelGetErrorMessages(compiled, &words) == LITERT_OK && words != NULL && *words != '\0') {
        size_t len = strlen(words);
        while (len > 0 && words[len - 1] == '\n')
            len--;
        rc = fs_fail(err, code, "%s: %.*s", what, len < FS_MESSAGE_MAX ? (int)len : FS_MESSAGE_MAX, words);
    } else {
        rc = fs_fail(err, code, "%s (LiteRT's status %d)", what, status);
    }
    free(words);
    api->CompiledModelClearErrors(compiled);
    return rc;
}

static int fail_status(int status, const char *what, fs_error *err)
{
    if (status == LITERT_OUT_OF_MEMORY)
        return fail_memory(err);
    return fs_fail(err, FS_INTERNAL, "LiteRT cannot %s (status %d)", what, status);
}

/* ---- types ------------------------------------------------------------------------------- */

/* LiteRT's element type; 0 for what it does not know, or packs more densely than we do. */
static int32_t element_type(int32_t dtype)
{
    switch (dtype) {
    case FS_DT_FLOAT: return LITERT_FLOAT32;
    case FS_DT_DOUBLE: return LITERT_FLOAT64;
    case FS_DT_HALF: return LITERT_FLOAT16;
    case FS_DT_BFLOAT16: return LITERT_BFLOAT16;
    case FS_DT_INT8: return LITERT_INT8;
    case FS_DT_INT16: return LITERT_INT16;
    case FS_DT_INT32: return LITERT_INT32;
    case FS_DT_INT64: return LITERT_INT64;
    case FS_DT_UINT8: return LITERT_UINT8;
    case FS_DT_UINT16: return LITERT_UINT16;
    case FS_DT_UINT32: return LITERT_UINT32;
    case FS_DT_UINT64: return LITERT_UINT64;
    case FS_DT_BOOL: return LITERT_BOOL;
    case FS_DT_COMPLEX64: return LITERT_COMPLEX64;
    case FS_DT_COMPLEX128: return LITERT_COMPLEX128;
    default: return 0;
    }
}

/* The bytes of a tensor of this shape and dtype; 0 when it has none, or more than can be. */
static size_t bytes_of(const LiteRtLayout *layout, int32_t dtype)
{
    size_t bytes = fs_dtype_size(dtype);
    for (unsigned i = 0; i < layout->rank; i++)
        if (layout->dims[i] <= 0 || __builtin_mul_overflow(bytes, (size_t)layout->dims[i], &bytes))
            return 0;
    return bytes <= SIZE_MAX / 8 ? bytes : 0;
}

/* ---- the calling thread ------------------------------------------------------------------ */

static void slab_free(void *arg)
{
    fs_slab_release(arg);
}

/* NULL when out of memory. */
static fs_slab *slab_get(lite_runtime *runtime)
{
    fs_slab *slab = pthread_getspecific(runtime->slab);
    if (slab != NULL)
        return slab;
    slab = fs_slab_new(THREAD_CACHE_BYTES);
    if (slab != NULL && pthread_setspecific(runtime->slab, slab) != 0) {
        fs_slab_release(slab);
        return NULL;
    }
    return slab;
}

/* ---- shapes ------------------------------------------------------------------------------ */

static uint64_t hash_shapes(const lite_signature *sig, const fs_tensor *inputs)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint32_t i = 0; i < sig->spec->n_inputs; i++) {
        hash = (hash ^ (uint64_t)inputs[i].ndim) * 0x100000001b3u;
        for (int32_t k = 0; k < inputs[i].ndim; k++)
            hash = (hash ^ (uint64_t)inputs[i].dims[k]) * 0x100000001b3u;
    }
    return hash ^ hash >> 32;
}

static bool has_shapes(const lite_shape *shape, const lite_signature *sig, const fs_tensor *inputs)
{
    for (uint32_t i = 0; i < sig->spec->n_inputs; i++) {
        const LiteRtLayout *layout = &shape->inputs[i].layout;
        const fs_tensor *in = &inputs[sig->feeds[i]];
        if ((int32_t)layout->rank != in->ndim)
            return false;
        for (int32_t k = 0; k < in->ndim; k++)
            if (layout->dims[k] != in->dims[k])
                return false;
    }
    return true;
}

/* What is known for inputs of these shapes; NULL when nothing is. */
static lite_shape *find_shape(const lite_signature *sig, uint64_t hash, const fs_tensor *inputs)
{
    for (size_t at = hash;; at++) {
        /* acquire: pairs with the release that put it there. */
        lite_shape *shape = atomic_load_explicit(&sig->shapes[at & (SHAPES - 1)], memory_order_acquire);
        if (shape == NULL || (shape->hash == hash && has_shapes(shape, sig, inputs)))
            return shape;
    }
}

static void keep_shape(lite_signature *sig, lite_shape *shape)
{
    if (sig->n_shapes >= SHAPES_KEPT)
        return;
    size_t at = shape->hash;
    /* relaxed: only holders of `learning` write. */
    while (atomic_load_explicit(&sig->shapes[at & (SHAPES - 1)], memory_order_relaxed) != NULL)
        at++;
    shape->kept = true;
    sig->n_shapes++;
    /* release: a search that finds it sees it whole. */
    atomic_store_explicit(&sig->shapes[at & (SHAPES - 1)], shape, memory_order_release);
}

/* Made for these inputs, whose shapes LiteRT can express; what is known of the outputs is nothing yet. */
static int shape_new(const lite_signature *sig, uint64_t hash, const fs_tensor *inputs, lite_shape **out,
                     fs_error *err)
{
    const fs_signature *spec = sig->spec;
    for (uint32_t i = 0; i < spec->n_inputs; i++) {
        const fs_tensor *in = &inputs[i];
        if (in->ndim > LITERT_MAX_RANK || (in->ndim == 0 && spec->inputs[i].ndim > 0))
            return fs_fail(err, FS_INVALID_ARGUMENT, "input '%s' has %d dimensions, which the model does not take",
                           spec->inputs[i].alias, in->ndim);
        for (int32_t k = 0; k < in->ndim; k++)
            if (in->dims[k] <= 0 || in->dims[k] > INT32_MAX)
                return fs_fail(err, FS_INVALID_ARGUMENT, "input '%s' has a dimension of size %lld, and TFLite needs 1 or more",
                               spec->inputs[i].alias, (long long)in->dims[k]);
    }
    size_t types = ((size_t)spec->n_inputs + spec->n_outputs) * sizeof(LiteRtRankedTensorType);
    lite_shape *shape = calloc(1, sizeof *shape + types + spec->n_outputs * sizeof(size_t));
    if (shape == NULL)
        return fail_memory(err);
    shape->hash = hash;
    shape->outputs = shape->inputs + spec->n_inputs;
    shape->output_bytes = (size_t *)(void *)(shape->outputs + spec->n_outputs);
    for (uint32_t i = 0; i < spec->n_inputs; i++) {
        const fs_tensor *in = &inputs[sig->feeds[i]];
        shape->inputs[i].element_type = element_type(in->dtype);
        shape->inputs[i].layout.rank = (unsigned)in->ndim;
        for (int32_t k = 0; k < in->ndim; k++)
            shape->inputs[i].layout.dims[k] = (int32_t)in->dims[k];
    }
    *out = shape;
    return 0;
}

/* Sets an interpreter's inputs to a shape. 0 or LiteRT's status. */
static int set_inputs(const lite_api *api, LiteRtCompiledModel compiled, const lite_signature *sig,
                      const lite_shape *shape)
{
    for (uint32_t i = 0; i < sig->spec->n_inputs; i++) {
        const LiteRtLayout *layout = &shape->inputs[i].layout;
        int status = layout->rank == 0 ? LITERT_OK
                                       : api->CompiledModelResizeInputTensorNonStrict(
                                             compiled, sig->number, i, layout->dims, layout->rank);
        if (status != LITERT_OK)
            return status;
    }
    return LITERT_OK;
}

/* Asks the scout what the outputs will be. Under `learning`. */
static int ask_scout(fs_model *model, const lite_signature *sig, lite_shape *shape, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    const fs_signature *spec = sig->spec;
    for (uint32_t i = 0; i < spec->n_outputs; i++)
        shape->outputs[i].element_type = element_type(spec->outputs[sig->fetches[i]].dtype);
    LiteRtLayout *layouts = calloc((size_t)spec->n_outputs + 1, sizeof *layouts);
    if (layouts == NULL)
        return fail_memory(err);
    int status = set_inputs(api, model->scout, sig, shape);
    if (status == LITERT_OK)
        status = api->GetCompiledModelOutputTensorLayouts(model->scout, sig->number, spec->n_outputs, layouts, true);
    int rc = 0;
    if (status != LITERT_OK)
        rc = fail_compiled(api, model->scout, status, FS_INVALID_ARGUMENT, "the model does not take inputs of these shapes",
                           err);
    for (uint32_t i = 0; i < spec->n_outputs && rc == 0; i++) {
        const fs_port *port = &spec->outputs[sig->fetches[i]];
        shape->outputs[i].layout.rank = layouts[i].rank;
        memcpy(shape->outputs[i].layout.dims, layouts[i].dims, sizeof layouts[i].dims);
        if (layouts[i].rank <= LITERT_MAX_RANK)
            shape->output_bytes[i] = bytes_of(&layouts[i], port->dtype);
        if (shape->output_bytes[i] == 0)
            rc = fs_fail(err, FS_UNIMPLEMENTED, "output '%s' has no shape before the model has run", port->alias);
    }
    free(layouts);
    return rc;
}

/* What is known for inputs of these shapes, found out if it is the first time. *out is the caller's to free when it
 * is not kept. */
static int shape_of(fs_model *model, lite_signature *sig, const fs_tensor *inputs, lite_shape **out, fs_error *err)
{
    uint64_t hash = hash_shapes(sig, inputs);
    *out = find_shape(sig, hash, inputs);
    if (*out != NULL)
        return 0;
    lite_shape *shape;
    int rc = shape_new(sig, hash, inputs, &shape, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&model->learning);
    lite_shape *meanwhile = find_shape(sig, hash, inputs);
    if (meanwhile == NULL) {
        rc = ask_scout(model, sig, shape, err);
        if (rc == 0)
            keep_shape(sig, shape);
    }
    pthread_mutex_unlock(&model->learning);
    if (meanwhile != NULL || rc != 0)
        free(shape);
    *out = meanwhile != NULL ? meanwhile : shape;
    return rc;
}

/* ---- interpreters ------------------------------------------------------------------------ */

static lite_interpreter *try_take(fs_model *model, uint32_t sig, const lite_shape *shape)
{
    for (int any = 0; any < 2; any++) {
        for (int32_t i = 0; i < model->n_interpreters; i++) {
            lite_interpreter *one = &model->interpreters[i];
            /* relaxed: a guess at who has this shape; `busy` decides. */
            if (!any && atomic_load_explicit(&one->current[sig], memory_order_relaxed) != shape)
                continue;
            /* seq_cst: see take_interpreter; as acquire it pairs with the release of who had it before. */
            if (!atomic_load_explicit(&one->busy, memory_order_relaxed) &&
                !atomic_exchange_explicit(&one->busy, true, memory_order_seq_cst))
                return one;
        }
    }
    return NULL;
}

/* Waits for one when there is none. */
static lite_interpreter *take_interpreter(fs_model *model, uint32_t sig, const lite_shape *shape)
{
    lite_interpreter *one = try_take(model, sig, shape);
    if (one != NULL)
        return one;
    pthread_mutex_lock(&model->waiters);
    /* seq_cst: the waiter counts itself, then looks; who gives one back frees it, then looks at the count: one of
     * the two sees the other. */
    atomic_fetch_add_explicit(&model->waiting, 1, memory_order_seq_cst);
    while ((one = try_take(model, sig, shape)) == NULL)
        pthread_cond_wait(&model->freed, &model->waiters);
    atomic_fetch_sub_explicit(&model->waiting, 1, memory_order_relaxed);
    pthread_mutex_unlock(&model->waiters);
    return one;
}

static void give_interpreter(fs_model *model, lite_interpreter *one)
{
    atomic_store_explicit(&one->busy, false, memory_order_seq_cst);
    if (atomic_load_explicit(&model->waiting, memory_order_seq_cst) > 0) {
        pthread_mutex_lock(&model->waiters);
        pthread_cond_signal(&model->freed);
        pthread_mutex_unlock(&model->waiters);
    }
}

/* ---- run --------------------------------------------------------------------------------- */

/* What one run needs, in LiteRT's order: inputs, then outputs. */
typedef struct lite_job {
    uint32_t n_inputs, n_outputs;
    LiteRtTensorBuffer *buffers;
    fs_buf **memory; /* copies of inputs, NULL for those that are lent; outputs */
} lite_job;

/* Stands behind an output's elements, in the same fs_buf, which is its fs_tensor.handle. */
static int64_t *output_dims(fs_buf *buf, size_t bytes)
{
    return (int64_t *)(void *)(buf->data + ((bytes + 7) & ~(size_t)7));
}

static void lite_release(fs_tensor *output)
{
    fs_buf_unref(output->handle);
    output->handle = NULL;
}

/* Wraps memory for LiteRT. */
static int wrap(const lite_api *api, const LiteRtRankedTensorType *type, void *data, size_t bytes,
                LiteRtTensorBuffer *out, fs_error *err)
{
    int status = api->CreateTensorBufferFromHostMemory(type, data, bytes, NULL, out);
    return status == LITERT_OK ? 0 : fail_status(status, "wrap a tensor", err);
}

static int prepare(const lite_api *api, fs_slab *slab, const lite_signature *sig, const lite_shape *shape,
                   const fs_tensor *inputs, lite_job *job, fs_error *err)
{
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        const fs_tensor *in = &inputs[sig->feeds[i]];
        void *data = in->data;
        /* Vector code reads a little beyond the end, which every fs_buf has room for (slab.h). */
        if (in->buf == NULL || (uintptr_t)data % LITERT_ALIGNMENT != 0) {
            job->memory[i] = fs_buf_new(slab, in->bytes);
            if (job->memory[i] == NULL)
                return fail_memory(err);
            data = memcpy(job->memory[i]->data, in->data, in->bytes);
        }
        int rc = wrap(api, &shape->inputs[i], data, in->bytes, &job->buffers[i], err);
        if (rc != 0)
            return rc;
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        size_t bytes = shape->output_bytes[i];
        fs_buf *buf = fs_buf_new(slab, bytes + 8 + LITERT_MAX_RANK * sizeof(int64_t));
        if (buf == NULL)
            return fail_memory(err);
        job->memory[job->n_inputs + i] = buf;
        int rc = wrap(api, &shape->outputs[i], buf->data, bytes, &job->buffers[job->n_inputs + i], err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Whether nothing but `pattern` stands there. */
static bool untouched(const uint8_t *data, size_t bytes, uint8_t pattern)
{
    return data[0] == pattern && memcmp(data, data + 1, bytes - 1) == 0;
}

/* An output that LiteRT has not written, though it ran; in LiteRT's order. */
static int fail_unwritten(const lite_signature *sig, uint32_t output, fs_error *err)
{
    return fs_fail(err, FS_UNIMPLEMENTED,
                   "output '%s' has a shape that depends on values, and LiteRT's C API gives no access to it",
                   sig->spec->outputs[sig->fetches[output]].alias);
}

/* Runs. The first time for a shape it makes sure that outputs are written: what looks untouched is run again over
 * another pattern. */
static int run_job(const lite_api *api, LiteRtCompiledModel compiled, const lite_signature *sig, lite_shape *shape,
                   lite_job *job, fs_error *err)
{
    fs_buf **outputs = job->memory + job->n_inputs;
    /* relaxed: it only saves work. */
    bool proven = atomic_load_explicit(&shape->proven, memory_order_relaxed);
    uint32_t unwritten = 0;
    for (size_t round = 0; round < sizeof PATTERNS; round++) {
        for (uint32_t i = 0; i < job->n_outputs && !proven; i++)
            memset(outputs[i]->data, PATTERNS[round], shape->output_bytes[i]);
        int status = api->RunCompiledModel(compiled, sig->number, job->n_inputs, job->buffers, job->n_outputs,
                                           job->buffers + job->n_inputs);
        if (status != LITERT_OK && round == 0)
            return fail_compiled(api, compiled, status, FS_INTERNAL, "Failed to invoke TfLite interpreter", err);
        if (status != LITERT_OK) {
            api->CompiledModelClearErrors(compiled); /* it misses the memory of what has none */
            break;
        }
        if (proven)
            return 0;
        unwritten = 0;
        while (unwritten < job->n_outputs &&
               !untouched(outputs[unwritten]->data, shape->output_bytes[unwritten], PATTERNS[round]))
            unwritten++;
        if (unwritten == job->n_outputs) {
            atomic_store_explicit(&shape->proven, true, memory_order_relaxed);
            return 0;
        }
    }
    return fail_unwritten(sig, unwritten, err);
}

static int run_on(fs_model *model, lite_interpreter *one, uint32_t number, lite_shape *shape, lite_job *job,
                  fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    const lite_signature *sig = &model->signatures[number];
    /* relaxed: whoever has the interpreter alone writes this, and others only guess by it. */
    if (!shape->kept || atomic_load_explicit(&one->current[number], memory_order_relaxed) != shape) {
        atomic_store_explicit(&one->current[number], NULL, memory_order_relaxed);
        int status = set_inputs(api, one->compiled, sig, shape);
        if (status != LITERT_OK)
            return fail_compiled(api, one->compiled, status, FS_INVALID_ARGUMENT,
                                 "the model does not take inputs of these shapes", err);
    }
    int rc = run_job(api, one->compiled, sig, shape, job, err);
    atomic_store_explicit(&one->current[number], rc == 0 && shape->kept ? shape : NULL, memory_order_relaxed);
    return rc;
}

static void give_outputs(const lite_signature *sig, const lite_shape *shape, lite_job *job, fs_tensor *outputs)
{
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        fs_buf *buf = job->memory[job->n_inputs + i];
        job->memory[job->n_inputs + i] = NULL;
        const LiteRtLayout *layout = &shape->outputs[i].layout;
        int64_t *dims = output_dims(buf, shape->output_bytes[i]);
        for (unsigned k = 0; k < layout->rank; k++)
            dims[k] = layout->dims[k];
        int32_t dtype = sig->spec->outputs[sig->fetches[i]].dtype;
        outputs[sig->fetches[i]] = (fs_tensor){
            .dtype = dtype,
            .ndim = (int32_t)layout->rank,
            .dims = dims,
            .elements = (int64_t)(shape->output_bytes[i] / fs_dtype_size(dtype)),
            .data = buf->data,
            .bytes = shape->output_bytes[i],
            .handle = buf,
        };
    }
}

static int run_with(fs_model *model, fs_slab *slab, uint32_t number, lite_shape *shape, const fs_tensor *inputs,
                    lite_job *job, fs_tensor *outputs, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    const lite_signature *sig = &model->signatures[number];
    int rc = prepare(api, slab, sig, shape, inputs, job, err);
    if (rc == 0) {
        lite_interpreter *one = take_interpreter(model, number, shape);
        rc = run_on(model, one, number, shape, job, err);
        give_interpreter(model, one);
    }
    if (rc == 0)
        give_outputs(sig, shape, job, outputs);
    for (uint32_t i = 0; i < job->n_inputs + job->n_outputs; i++) {
        if (job->buffers[i] != NULL)
            api->DestroyTensorBuffer(job->buffers[i]);
        fs_buf_unref(job->memory[i]);
    }
    return rc;
}

static int lite_run(fs_model *model, uint32_t number, enum fs_run_variant variant, const fs_tensor *inputs,
                    fs_tensor *outputs, fs_error *err)
{
    (void)variant; /* there is one only */
    lite_signature *sig = &model->signatures[number];
    if (sig->broken != NULL)
        return fs_fail_text(err, (enum fs_code)sig->broken->code, sig->broken->msg, sig->broken->len);
    fs_slab *slab = slab_get(model->runtime);
    if (slab == NULL)
        return fail_memory(err);
    lite_shape *shape;
    int rc = shape_of(model, sig, inputs, &shape, err);
    if (rc != 0)
        return rc;

    LiteRtTensorBuffer buffers[PORTS_ON_STACK] = {0};
    fs_buf *memory[PORTS_ON_STACK] = {0};
    lite_job job = {.n_inputs = sig->spec->n_inputs, .n_outputs = sig->spec->n_outputs, .buffers = buffers,
                    .memory = memory};
    size_t ports = (size_t)job.n_inputs + job.n_outputs;
    void *more = NULL;
    if (ports > PORTS_ON_STACK) {
        more = fs_slab_alloc(slab, ports * 2 * sizeof(void *));
        if (more != NULL) {
            memset(more, 0, ports * 2 * sizeof(void *));
            job.buffers = more;
            job.memory = (fs_buf **)more + ports;
        }
    }
    rc = ports > PORTS_ON_STACK && more == NULL
             ? fail_memory(err)
             : run_with(model, slab, number, shape, inputs, &job, outputs, err);
    fs_slab_free(more);
    if (!shape->kept)
        free(shape);
    return rc;
}

/* ---- open -------------------------------------------------------------------------------- */

static int add_options(const lite_api *api, LiteRtOptions options, const char *kind, const char *text)
{
    size_t len = strlen(text);
    char *copy = malloc(len + 1);
    if (copy == NULL)
        return LITERT_OUT_OF_MEMORY;
    memcpy(copy, text, len + 1);
    LiteRtOpaqueOptions opaque;
    int status = api->CreateOpaqueOptions(kind, copy, free, &opaque);
    if (status != LITERT_OK) {
        free(copy);
        return status;
    }
    status = api->AddOpaqueOptions(options, opaque);
    if (status != LITERT_OK)
        api->DestroyOpaqueOptions(opaque);
    return status;
}

/* One more interpreter. `cpu`: how it computes, as LiteRT's options of that name have it. */
static int compiled_new(fs_model *model, const char *cpu, LiteRtCompiledModel *out, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    LiteRtOptions options;
    int status = api->CreateOptions(&options);
    if (status != LITERT_OK)
        return fail_status(status, "make options", err);
    status = api->SetOptionsHardwareAccelerators(options, LITERT_CPU);
    if (status == LITERT_OK)
        status = add_options(api, options, "xnnpack", cpu);
    /* Errors are kept to be asked for, not printed. */
    if (status == LITERT_OK)
        status = add_options(api, options, "runtime_options_string", "error_reporter_mode = 2\n");
    if (status == LITERT_OK)
        status = api->CreateCompiledModel(model->runtime->environment, model->file, options, out);
    api->DestroyOptions(options);
    if (status == LITERT_OK || status == LITERT_OUT_OF_MEMORY)
        return status == LITERT_OK ? 0 : fail_memory(err);
    return fs_fail(err, FS_INVALID_ARGUMENT,
                   "LiteRT cannot make an interpreter of it (status %d): it has ops that are not among LiteRT's own, "
                   "or the file is damaged",
                   status);
}

/* Notes why a signature cannot run. */
static int set_broken(lite_signature *sig, fs_error *err, const char *fmt, const char *alias, const char *what)
{
    if (sig->broken != NULL)
        return 0;
    sig->broken = malloc(sizeof *sig->broken);
    if (sig->broken == NULL)
        return fail_memory(err);
    fs_fail(sig->broken, FS_UNIMPLEMENTED, fmt, alias, what);
    return 0;
}

/* Finds which of `ports` each of the subgraph's tensors is, by name. Those that are missing break the signature. */
static int match_ports(const lite_api *api, lite_signature *sig, LiteRtSubgraph subgraph, const fs_port *ports,
                       uint32_t n_ports, bool inputs, uint32_t *order, fs_error *err)
{
    size_t n = 0;
    int status = inputs ? api->GetNumSubgraphInputs(subgraph, &n) : api->GetNumSubgraphOutputs(subgraph, &n);
    uint32_t found = 0;
    for (size_t i = 0; i < n && n == n_ports && status == LITERT_OK; i++) {
        LiteRtTensor tensor;
        const char *name;
        status = inputs ? api->GetSubgraphInput(subgraph, i, &tensor) : api->GetSubgraphOutput(subgraph, i, &tensor);
        if (status == LITERT_OK)
            status = api->GetTensorName(tensor, &name);
        for (uint32_t k = 0; k < n_ports && status == LITERT_OK; k++)
            if (strcmp(ports[k].tensor, name) == 0) {
                order[i] = k;
                found++;
                break;
            }
    }
    if (status != LITERT_OK)
        return fail_status(status, "list the model's tensors", err);
    if (found != n_ports)
        return set_broken(sig, err, "signature '%s' does not name each %s of its subgraph once", sig->spec->name,
                          inputs ? "input" : "output");
    for (uint32_t k = 0; k < n_ports; k++)
        if (element_type(ports[k].dtype) == 0) {
            int rc = set_broken(sig, err, "'%s' is a tensor of type %s, which LiteRT's C API gives no access to",
                                ports[k].alias, fs_dtype_name(ports[k].dtype));
            if (rc != 0)
                return rc;
        }
    return 0;
}

/* LiteRT's number of the signature of this name; of the only one, when the file names none. */
static int find_signature(const fs_model *model, const char *name, size_t *number, LiteRtSignature *out, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    size_t n = 0;
    int status = api->GetNumModelSignatures(model->file, &n);
    for (size_t i = 0; i < n && status == LITERT_OK; i++) {
        const char *key = NULL;
        status = api->GetModelSignature(model->file, i, out);
        if (status == LITERT_OK)
            status = api->GetSignatureKey(*out, &key);
        *number = i;
        if (status == LITERT_OK && (n == 1 || strcmp(key, name) == 0))
            return 0;
    }
    if (status != LITERT_OK)
        return fail_status(status, "list the model's signatures", err);
    return fs_fail(err, FS_INVALID_ARGUMENT, "the model has no signature '%s'", name);
}

static int signature_open(fs_model *model, const fs_signature *spec, lite_signature *sig, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    sig->spec = spec;
    sig->feeds = calloc((size_t)spec->n_inputs + 1, sizeof *sig->feeds);
    sig->fetches = calloc((size_t)spec->n_outputs + 1, sizeof *sig->fetches);
    sig->shapes = calloc(SHAPES, sizeof *sig->shapes);
    if (sig->feeds == NULL || sig->fetches == NULL || sig->shapes == NULL)
        return fail_memory(err);
    LiteRtSignature signature;
    int rc = find_signature(model, spec->name, &sig->number, &signature, err);
    if (rc != 0)
        return rc;
    LiteRtSubgraph subgraph;
    int status = api->GetSignatureSubgraph(signature, &subgraph);
    if (status != LITERT_OK)
        return fail_status(status, "find a signature's subgraph", err);
    rc = match_ports(api, sig, subgraph, spec->inputs, spec->n_inputs, true, sig->feeds, err);
    if (rc == 0)
        rc = match_ports(api, sig, subgraph, spec->outputs, spec->n_outputs, false, sig->fetches, err);
    return rc;
}

static void signature_close(lite_signature *sig)
{
    for (size_t i = 0; i < SHAPES && sig->shapes != NULL; i++)
        free(atomic_load_explicit(&sig->shapes[i], memory_order_relaxed)); /* relaxed: nobody runs any more */
    free(sig->shapes);
    free(sig->feeds);
    free(sig->fetches);
    free(sig->broken);
}

static void lite_close(fs_model *model)
{
    const lite_api *api = &model->runtime->api;
    for (int32_t i = 0; i < model->n_interpreters && model->interpreters != NULL; i++) {
        if (model->interpreters[i].compiled != NULL)
            api->DestroyCompiledModel(model->interpreters[i].compiled);
        free(model->interpreters[i].current);
    }
    if (model->scout != NULL)
        api->DestroyCompiledModel(model->scout);
    if (model->file != NULL)
        api->DestroyModel(model->file);
    for (uint32_t i = 0; i < model->n_signatures && model->signatures != NULL; i++)
        signature_close(&model->signatures[i]);
    pthread_cond_destroy(&model->freed);
    pthread_mutex_destroy(&model->waiters);
    pthread_mutex_destroy(&model->learning);
    free(model->interpreters);
    free(model->signatures);
    free(model);
}

static int file_open(fs_model *model, const char *dir, fs_error *err)
{
    size_t len = strlen(dir);
    char *path = malloc(len + sizeof "/" FS_LITERT_MODEL);
    if (path == NULL)
        return fail_memory(err);
    memcpy(path, dir, len);
    memcpy(path + len, "/" FS_LITERT_MODEL, sizeof "/" FS_LITERT_MODEL);
    int status = model->runtime->api.CreateModelFromFile(model->runtime->environment, path, &model->file);
    int rc = 0;
    if (status == LITERT_OUT_OF_MEMORY)
        rc = fail_memory(err);
    else if (status != LITERT_OK)
        rc = fs_fail(err, FS_INVALID_ARGUMENT, "%s is not there, or no TFLite model (LiteRT's status %d)", path, status);
    free(path);
    return rc;
}

static int interpreters_open(fs_model *model, fs_error *err)
{
    size_t bytes = (size_t)model->n_interpreters * sizeof *model->interpreters;
    model->interpreters = aligned_alloc(_Alignof(lite_interpreter), bytes);
    if (model->interpreters == NULL)
        return fail_memory(err);
    memset(model->interpreters, 0, bytes);
    char cpu[OPTIONS_MAX];
    snprintf(cpu, sizeof cpu, "num_threads = %d\n", (int)model->runtime->options.threads);
    for (int32_t i = 0; i < model->n_interpreters; i++) {
        lite_interpreter *one = &model->interpreters[i];
        one->current = calloc((size_t)model->n_signatures + 1, sizeof *one->current);
        if (one->current == NULL)
            return fail_memory(err);
        int rc = compiled_new(model, cpu, &one->compiled, err);
        if (rc != 0)
            return rc;
    }
    /* It computes nothing, so it need not prepare weights for that. */
    return compiled_new(model, "num_threads = 1\nkernel_mode = \"builtin\"\n", &model->scout, err);
}

static int lite_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    fs_model *model = calloc(1, sizeof *model);
    if (model == NULL)
        return fail_memory(err);
    model->runtime = self;
    model->n_signatures = spec->n_signatures;
    model->n_interpreters = model->runtime->options.interpreters;
    pthread_mutex_init(&model->learning, NULL);
    pthread_mutex_init(&model->waiters, NULL);
    pthread_cond_init(&model->freed, NULL);
    int rc = file_open(model, spec->path, err);
    model->signatures = calloc((size_t)spec->n_signatures + 1, sizeof *model->signatures);
    if (rc == 0 && model->signatures == NULL)
        rc = fail_memory(err);
    for (uint32_t i = 0; i < spec->n_signatures && rc == 0; i++)
        rc = signature_open(model, &spec->signatures[i], &model->signatures[i], err);
    if (rc == 0)
        rc = interpreters_open(model, err);
    if (rc != 0) {
        lite_close(model);
        return rc;
    }
    *out = model;
    return 0;
}

/* ---- the library ------------------------------------------------------------------------- */

static const fs_runtime_ops LITERT_OPS = {
    .name = "litert",
    .open = lite_open,
    .run = lite_run,
    .release = lite_release,
    .close = lite_close,
};

static void *library_open(const char *dir, fs_error *err)
{
    static const char file[] = "/libLiteRt.so";
    size_t len = strlen(dir);
    char *path = malloc(len + sizeof file);
    if (path == NULL) {
        fail_memory(err);
        return NULL;
    }
    memcpy(path, dir, len);
    memcpy(path + len, file, sizeof file);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL) {
        const char *why = dlerror();
        fs_fail(err, FS_FAILED_PRECONDITION, "cannot open LiteRT's library: %s", why != NULL ? why : path);
    }
    free(path);
    return library;
}

/* Before 2.3 there was no environment in front of a buffer: then the NULL is the buffer, and refused as such, before
 * anything is touched. Since then it is what lies there that is refused. */
static bool is_new_enough(const lite_api *api)
{
    static const uint8_t no_model[64];
    LiteRtModel none = NULL;
    return api->CreateModelFromBuffer(NULL, no_model, sizeof no_model, &none) != LITERT_INVALID_ARGUMENT;
}

int fs_runtime_litert(const char *library_dir, const fs_litert_options *options, fs_runtime *out, fs_error *err)
{
    void *library = library_open(library_dir, err);
    if (library == NULL)
        return err != NULL ? -err->code : -FS_FAILED_PRECONDITION;
    lite_runtime *runtime = calloc(1, sizeof *runtime);
    if (runtime == NULL)
        return fail_memory(err);
    runtime->options = *options;

    const char *missing = NULL;
#define RESOLVE(result, name, args)                                \
    {                                                              \
        void *symbol = dlsym(library, "LiteRt" #name);             \
        if (symbol == NULL && missing == NULL)                     \
            missing = "LiteRt" #name;                              \
        memcpy(&runtime->api.name, &symbol, sizeof symbol);        \
    }
    FS_LITERT_FUNCTIONS(RESOLVE)
#undef RESOLVE
    if (missing != NULL || !is_new_enough(&runtime->api)) {
        free(runtime);
        return fs_fail(err, FS_FAILED_PRECONDITION, "LiteRT's library in %s %s%s: LiteRT 2.3 or newer is needed",
                       library_dir, missing != NULL ? "has no " : "is too old", missing != NULL ? missing : "");
    }

    /* No search for other hardware, and nothing on stderr. */
    const LiteRtEnvOption quiet[] = {
        {.tag = LITERT_ENV_AUTO_REGISTER_ACCELERATORS, .value = {LITERT_ANY_INT, LITERT_CPU}},
        {.tag = LITERT_ENV_MIN_LOGGER_SEVERITY, .value = {LITERT_ANY_INT, LITERT_LOG_SILENT}},
    };
    int status = runtime->api.CreateEnvironment(2, quiet, &runtime->environment);
    if (status != LITERT_OK) {
        free(runtime);
        return fail_status(status, "make an environment", err);
    }
    if (pthread_key_create(&runtime->slab, slab_free) != 0) {
        runtime->api.DestroyEnvironment(runtime->environment);
        free(runtime);
        return fail_memory(err);
    }
    *out = (fs_runtime){.ops = &LITERT_OPS, .self = runtime};
    return 0;
}

void fs_runtime_litert_free(fs_runtime *runtime)
{
    lite_runtime *self = runtime->self;
    if (self == NULL)
        return;
    /* Other threads' destructors have run with them; this thread may live on. */
    fs_slab *slab = pthread_getspecific(self->slab);
    if (slab != NULL)
        fs_slab_release(slab);
    pthread_key_delete(self->slab);
    self->api.DestroyEnvironment(self->environment);
    free(self);
    *runtime = (fs_runtime){0};
}
