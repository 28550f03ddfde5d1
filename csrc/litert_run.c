/* litert_run: see litert_own.h.
 *
 * Memory: inputs are lent where they lie, unless they are not aligned as LiteRT wants it; an interpreter
 * keeps their address, and looks there no more once it has returned. Outputs are buffers of ours. What is
 * written to none of them is found by the first run of each shape: they are filled with a pattern before, and
 * if it still stands afterwards, the run fails. */
#include <stdlib.h>
#include <string.h>

#include "litert_own.h"

enum {
    PORTS_ON_STACK = 32,
    CORRECTIONS = 2, /* of a guess at the outputs' shapes */
    THREAD_CACHE_BYTES = 4 << 20, /* free blocks that a thread keeps: outputs, and copies of inputs */
};

/* What outputs are filled with when it is to be seen whether they are written. */
static const uint8_t PATTERNS[] = {0xa5, 0x5a};

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
    /* seq_cst: the waiter counts itself, then looks; who gives one back frees it, then looks at the count:
     * one of the two sees the other. */
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
    fs_slab *slab;
    bool corrected;  /* the shapes of outputs were others than guessed: it has to run again */
} lite_job;

/* Stands behind an output's elements, in the same fs_buf, which is its fs_tensor.handle. */
static int64_t *output_dims(fs_buf *buf, size_t bytes)
{
    return (int64_t *)(void *)(buf->data + ((bytes + 7) & ~(size_t)7));
}

void lite_release(fs_tensor *output)
{
    fs_buf_unref(output->handle);
    output->handle = NULL;
}

/* Wraps memory for LiteRT. */
static int wrap(const lite_api *api, const LiteRtRankedTensorType *type, void *data, size_t bytes,
                LiteRtTensorBuffer *out, fs_error *err)
{
    int status = api->CreateTensorBufferFromHostMemory(type, data, bytes, NULL, out);
    return status == LITERT_OK ? 0 : lite_fail_status(status, "wrap a tensor", err);
}

static int prepare(const lite_api *api, const lite_signature *sig, const lite_shape *shape,
                   const fs_tensor *inputs, lite_job *job, fs_error *err)
{
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        const fs_tensor *in = &inputs[sig->feeds[i]];
        void *data = in->data;
        /* Vector code reads a little beyond the end, which every fs_buf has room for (slab.h). */
        if (in->buf == NULL || (uintptr_t)data % LITERT_ALIGNMENT != 0) {
            job->memory[i] = fs_buf_new(job->slab, in->bytes);
            if (job->memory[i] == NULL)
                return lite_fail_memory(err);
            data = memcpy(job->memory[i]->data, in->data, in->bytes);
        }
        int rc = wrap(api, &shape->inputs[i], data, in->bytes, &job->buffers[i], err);
        if (rc != 0)
            return rc;
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        size_t bytes = shape->output_bytes[i];
        fs_buf *buf = fs_buf_new(job->slab, bytes + 8 + LITERT_MAX_RANK * sizeof(int64_t));
        if (buf == NULL)
            return lite_fail_memory(err);
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

static int run_once(const lite_api *api, LiteRtCompiledModel compiled, const lite_signature *sig, lite_job *job)
{
    return api->RunCompiledModel(compiled, sig->number, job->n_inputs, job->buffers, job->n_outputs,
                                 job->buffers + job->n_inputs);
}

/* After a run: corrects a guess, if that is what it takes. What was proven and is wrong all the same depends on
 * values: LiteRT gives it now and then, which is no way to serve. */
static int compare_shapes(const lite_api *api, LiteRtCompiledModel compiled, lite_signature *sig,
                          lite_shape *shape, lite_job *job, fs_error *err)
{
    if (job->n_outputs == 0)
        return 0;
    LiteRtLayout *layouts = fs_slab_alloc(job->slab, job->n_outputs * sizeof *layouts);
    if (layouts == NULL)
        return lite_fail_memory(err);
    int status =
        api->GetCompiledModelOutputTensorLayouts(compiled, sig->number, job->n_outputs, layouts, false);
    if (status == LITERT_OK && !shape->kept) {
        job->corrected = lite_shape_correct(sig, shape, layouts);
    } else if (status == LITERT_OK && !lite_shape_holds(sig, shape, layouts)) {
        /* relaxed: who has not heard of it finds out. */
        atomic_store_explicit(&sig->varying, true, memory_order_relaxed);
    }
    fs_slab_free(layouts);
    if (atomic_load_explicit(&sig->varying, memory_order_relaxed))
        return fail_unwritten(sig, 0, err);
    return status == LITERT_OUT_OF_MEMORY ? lite_fail_memory(err) : 0;
}

/* The first run of a shape: makes sure that the guess is right and that outputs are written. What looks
 * untouched is run again over another pattern. */
static int run_to_prove(const lite_api *api, LiteRtCompiledModel compiled, lite_signature *sig,
                        lite_shape *shape, lite_job *job, fs_error *err)
{
    fs_buf **outputs = job->memory + job->n_inputs;
    uint32_t unwritten = 0;
    for (size_t round = 0; round < sizeof PATTERNS; round++) {
        for (uint32_t i = 0; i < job->n_outputs; i++)
            memset(outputs[i]->data, PATTERNS[round], shape->output_bytes[i]);
        int status = run_once(api, compiled, sig, job);
        if (round == 0) {
            int rc = compare_shapes(api, compiled, sig, shape, job, err);
            if (rc != 0 || job->corrected) {
                api->CompiledModelClearErrors(compiled);
                return rc;
            }
            if (status != LITERT_OK)
                return lite_fail_compiled(api, compiled, status, FS_INTERNAL,
                                          "Failed to invoke TfLite interpreter", err);
        }
        if (status != LITERT_OK) {
            api->CompiledModelClearErrors(compiled); /* it misses the memory of what has none */
            break;
        }
        unwritten = 0;
        while (unwritten < job->n_outputs &&
               !untouched(outputs[unwritten]->data, shape->output_bytes[unwritten], PATTERNS[round]))
            unwritten++;
        if (unwritten == job->n_outputs)
            return 0;
    }
    return fail_unwritten(sig, unwritten, err);
}

static int run_on(fs_model *model, lite_interpreter *one, uint32_t number, lite_shape *shape,
                  const fs_tensor *inputs, lite_job *job, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    lite_signature *sig = &model->signatures[number];
    /* relaxed: whoever has the interpreter alone writes this, and others only guess by it. */
    if (!shape->kept || atomic_load_explicit(&one->current[number], memory_order_relaxed) != shape) {
        atomic_store_explicit(&one->current[number], NULL, memory_order_relaxed);
        int status = lite_set_inputs(api, one->compiled, sig, shape);
        if (status != LITERT_OK)
            return lite_fail_compiled(api, one->compiled, status, FS_INVALID_ARGUMENT,
                                      "the model does not take inputs of these shapes", err);
    }
    int rc = 0;
    if (shape->kept) {
        int status = run_once(api, one->compiled, sig, job);
        rc = compare_shapes(api, one->compiled, sig, shape, job, err);
        if (rc == 0 && status != LITERT_OK)
            rc = lite_fail_compiled(api, one->compiled, status, FS_INTERNAL,
                                    "Failed to invoke TfLite interpreter", err);
    } else {
        rc = run_to_prove(api, one->compiled, sig, shape, job, err);
        if (rc == 0 && !job->corrected)
            lite_shape_keep(model, sig, shape, inputs);
    }
    bool set = rc == 0 && shape->kept;
    atomic_store_explicit(&one->current[number], set ? shape : NULL, memory_order_relaxed);
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

static int run_with(fs_model *model, uint32_t number, lite_shape *shape, const fs_tensor *inputs, lite_job *job,
                    fs_tensor *outputs, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    const lite_signature *sig = &model->signatures[number];
    int rc = prepare(api, sig, shape, inputs, job, err);
    if (rc == 0) {
        lite_interpreter *one = take_interpreter(model, number, shape);
        rc = run_on(model, one, number, shape, inputs, job, err);
        give_interpreter(model, one);
    }
    if (rc == 0 && !job->corrected)
        give_outputs(sig, shape, job, outputs);
    for (uint32_t i = 0; i < job->n_inputs + job->n_outputs; i++) {
        if (job->buffers[i] != NULL)
            api->DestroyTensorBuffer(job->buffers[i]);
        fs_buf_unref(job->memory[i]);
        job->buffers[i] = NULL;
        job->memory[i] = NULL;
    }
    return rc;
}

/* Runs, and again when the shapes of outputs were guessed wrong. */
static int run_until_right(fs_model *model, uint32_t number, lite_shape *shape, const fs_tensor *inputs,
                           lite_job *job, fs_tensor *outputs, fs_error *err)
{
    for (int corrections = 0; corrections <= CORRECTIONS; corrections++) {
        job->corrected = false;
        int rc = run_with(model, number, shape, inputs, job, outputs, err);
        if (rc == 0 && !job->corrected)
            return 0;
        if (rc != 0 && (corrections == 0 || rc == -FS_RESOURCE_EXHAUSTED))
            return rc;
        if (rc != 0)
            break;
    }
    return fail_unwritten(&model->signatures[number], 0, err);
}

/* For inputs that nothing is known of. */
static int run_new(fs_model *model, uint32_t number, const fs_tensor *inputs, lite_job *job, fs_tensor *outputs,
                   fs_error *err)
{
    lite_signature *sig = &model->signatures[number];
    lite_shape *shape = NULL;
    int rc = lite_shape_new(model, sig, inputs, &shape, err);
    if (rc != 0)
        return rc;
    rc = run_until_right(model, number, shape, inputs, job, outputs, err);
    if (!shape->kept)
        free(shape);
    return rc;
}

static int run_known_or_new(fs_model *model, uint32_t number, const fs_tensor *inputs, lite_job *job,
                            fs_tensor *outputs, fs_error *err)
{
    const lite_signature *sig = &model->signatures[number];
    if (atomic_load_explicit(&sig->varying, memory_order_relaxed)) /* relaxed: as where it is set */
        return fail_unwritten(sig, 0, err);
    lite_shape *shape = lite_shape_find(sig, inputs);
    return shape != NULL ? run_with(model, number, shape, inputs, job, outputs, err)
                         : run_new(model, number, inputs, job, outputs, err);
}

int lite_run(fs_model *model, uint32_t number, enum fs_run_variant variant, const fs_tensor *inputs,
             fs_tensor *outputs, fs_error *err)
{
    (void)variant; /* there is one only */
    const lite_signature *sig = &model->signatures[number];
    if (sig->broken != NULL)
        return fs_fail_text(err, (enum fs_code)sig->broken->code, sig->broken->msg, sig->broken->len);
    fs_slab *slab = fs_slab_of_thread(model->runtime->slab, THREAD_CACHE_BYTES);
    if (slab == NULL)
        return lite_fail_memory(err);

    LiteRtTensorBuffer buffers[PORTS_ON_STACK] = {0};
    fs_buf *memory[PORTS_ON_STACK] = {0};
    lite_job job = {.n_inputs = sig->spec->n_inputs, .n_outputs = sig->spec->n_outputs, .buffers = buffers,
                    .memory = memory, .slab = slab};
    size_t ports = (size_t)job.n_inputs + job.n_outputs;
    void *more = NULL;
    if (ports > PORTS_ON_STACK) {
        more = fs_slab_alloc(slab, ports * 2 * sizeof(void *));
        if (more == NULL)
            return lite_fail_memory(err);
        memset(more, 0, ports * 2 * sizeof(void *));
        job.buffers = more;
        job.memory = (fs_buf **)more + ports;
    }
    int rc = run_known_or_new(model, number, inputs, &job, outputs, err);
    fs_slab_free(more);
    return rc;
}
