/* litert_shapes: see litert_own.h. */
#include <stdlib.h>
#include <string.h>

#include "litert_own.h"

enum { SHAPES_KEPT = FS_LITE_SHAPES / 4 * 3 }; /* places that are taken at most, so that a search ends */

/* The bytes of a tensor of this shape and dtype; 0 when it has none, or more than can be. */
static size_t bytes_of(const LiteRtLayout *layout, int32_t dtype)
{
    size_t bytes = fs_dtype_size(dtype);
    for (unsigned i = 0; i < layout->rank; i++)
        if (layout->dims[i] <= 0 || __builtin_mul_overflow(bytes, (size_t)layout->dims[i], &bytes))
            return 0;
    return bytes <= SIZE_MAX / 8 ? bytes : 0;
}

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
        lite_shape *shape = atomic_load_explicit(&sig->shapes[at & (FS_LITE_SHAPES - 1)], memory_order_acquire);
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
    while (atomic_load_explicit(&sig->shapes[at & (FS_LITE_SHAPES - 1)], memory_order_relaxed) != NULL)
        at++;
    shape->kept = true;
    sig->n_shapes++;
    /* release: a search that finds it sees it whole. */
    atomic_store_explicit(&sig->shapes[at & (FS_LITE_SHAPES - 1)], shape, memory_order_release);
}

/* Made for these inputs, whose shapes LiteRT can express; what is known of the outputs is nothing yet. */
static int shape_new(const lite_signature *sig, uint64_t hash, const fs_tensor *inputs, lite_shape **out,
                     fs_error *err)
{
    const fs_signature *spec = sig->spec;
    for (uint32_t i = 0; i < spec->n_inputs; i++) {
        const fs_tensor *in = &inputs[i];
        /* LiteRT resizes nothing to a scalar: what was one once must stay one, and what was none cannot become one. */
        if (in->ndim > LITERT_MAX_RANK || (in->ndim == 0) != (spec->inputs[i].ndim == 0))
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "input '%s' has %d dimensions, which the model does not take",
                           spec->inputs[i].alias, in->ndim);
        for (int32_t k = 0; k < in->ndim; k++)
            if (in->dims[k] <= 0 || in->dims[k] > INT32_MAX)
                return fs_fail(err, FS_INVALID_ARGUMENT,
                               "input '%s' has a dimension of size %lld, and TFLite needs 1 or more",
                               spec->inputs[i].alias, (long long)in->dims[k]);
    }
    size_t types = ((size_t)spec->n_inputs + spec->n_outputs) * sizeof(LiteRtRankedTensorType);
    lite_shape *shape = calloc(1, sizeof *shape + types + spec->n_outputs * sizeof(size_t));
    if (shape == NULL)
        return lite_fail_memory(err);
    shape->hash = hash;
    shape->outputs = shape->inputs + spec->n_inputs;
    shape->output_bytes = (size_t *)(void *)(shape->outputs + spec->n_outputs);
    for (uint32_t i = 0; i < spec->n_inputs; i++) {
        const fs_tensor *in = &inputs[sig->feeds[i]];
        shape->inputs[i].element_type = lite_element_type(in->dtype);
        shape->inputs[i].layout.rank = (unsigned)in->ndim;
        for (int32_t k = 0; k < in->ndim; k++)
            shape->inputs[i].layout.dims[k] = (int32_t)in->dims[k];
    }
    *out = shape;
    return 0;
}

/* Sets an interpreter's inputs to a shape. 0 or LiteRT's status. */
int lite_set_inputs(const lite_api *api, LiteRtCompiledModel compiled, const lite_signature *sig,
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

bool lite_shape_correct(const lite_signature *sig, lite_shape *shape, const LiteRtLayout *layouts)
{
    bool changed = false;
    for (uint32_t i = 0; i < sig->spec->n_outputs; i++) {
        LiteRtLayout layout = {.rank = layouts[i].rank <= LITERT_MAX_RANK ? layouts[i].rank : 0};
        for (unsigned k = 0; k < layout.rank; k++)
            layout.dims[k] = layouts[i].dims[k] > 0 ? layouts[i].dims[k] : 1; /* to begin with something */
        size_t bytes = bytes_of(&layout, sig->spec->outputs[sig->fetches[i]].dtype);
        LiteRtLayout *known = &shape->outputs[i].layout;
        if (bytes == 0 || (shape->output_bytes[i] == bytes && known->rank == layout.rank &&
                           memcmp(known->dims, layout.dims, sizeof layout.dims) == 0))
            continue;
        changed = true;
        *known = layout;
        shape->output_bytes[i] = bytes;
    }
    return changed;
}

/* Asks the scout what the outputs will be. Under `learning`. */
static int ask_scout(fs_model *model, const lite_signature *sig, lite_shape *shape, fs_error *err)
{
    const lite_api *api = &model->runtime->api;
    const fs_signature *spec = sig->spec;
    for (uint32_t i = 0; i < spec->n_outputs; i++)
        shape->outputs[i].element_type = lite_element_type(spec->outputs[sig->fetches[i]].dtype);
    int status = lite_set_inputs(api, model->scout, sig, shape);
    if (status == LITERT_OK && spec->n_outputs > 0) {
        LiteRtLayout *layouts = calloc(spec->n_outputs, sizeof *layouts);
        if (layouts == NULL)
            return lite_fail_memory(err);
        status = api->GetCompiledModelOutputTensorLayouts(model->scout, sig->number, spec->n_outputs, layouts,
                                                          true);
        if (status == LITERT_OK)
            lite_shape_correct(sig, shape, layouts);
        free(layouts);
    }
    if (status != LITERT_OK)
        return lite_fail_compiled(api, model->scout, status, FS_INVALID_ARGUMENT,
                                  "the model does not take inputs of these shapes", err);
    for (uint32_t i = 0; i < spec->n_outputs; i++)
        if (shape->output_bytes[i] == 0)
            return fs_fail(err, FS_UNIMPLEMENTED, "output '%s' has a shape that no tensor has",
                           spec->outputs[sig->fetches[i]].alias);
    return 0;
}

bool lite_shape_holds(const lite_signature *sig, const lite_shape *shape, const LiteRtLayout *layouts)
{
    for (uint32_t i = 0; i < sig->spec->n_outputs; i++) {
        const LiteRtLayout *known = &shape->outputs[i].layout;
        if (known->rank != layouts[i].rank ||
            memcmp(known->dims, layouts[i].dims, known->rank * sizeof known->dims[0]) != 0)
            return false;
    }
    return true;
}

lite_shape *lite_shape_find(const lite_signature *sig, const fs_tensor *inputs)
{
    return find_shape(sig, hash_shapes(sig, inputs), inputs);
}

int lite_shape_new(fs_model *model, const lite_signature *sig, const fs_tensor *inputs, lite_shape **out,
                   fs_error *err)
{
    lite_shape *shape = NULL;
    int rc = shape_new(sig, hash_shapes(sig, inputs), inputs, &shape, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&model->learning);
    rc = ask_scout(model, sig, shape, err);
    pthread_mutex_unlock(&model->learning);
    if (rc != 0)
        free(shape);
    else
        *out = shape;
    return rc;
}

void lite_shape_keep(fs_model *model, lite_signature *sig, lite_shape *shape, const fs_tensor *inputs)
{
    pthread_mutex_lock(&model->learning);
    if (find_shape(sig, shape->hash, inputs) == NULL)
        keep_shape(sig, shape);
    pthread_mutex_unlock(&model->learning);
}
