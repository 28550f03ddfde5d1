/* warm: see warm.h. */
#include "warm.h"

#include <string.h>

#include "clock.h"
#include "trace.h"
#include "warm_requests.h"

/* A zeroed input of `rows` rows; unknown inner dims are 1. The dims live in the arena. */
static int zeros(fs_arena *arena, fs_slab *slab, const fs_port *port, int64_t rows, fs_tensor *t)
{
    int32_t ndim = port->ndim < 0 ? (rows > 0 ? 1 : 0) : port->ndim;
    int64_t *dims = fs_arena_alloc(arena, (size_t)(ndim + 1) * sizeof *dims);
    if (dims == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    int64_t elements = 1;
    for (int32_t d = 0; d < ndim; d++) {
        int64_t known = port->ndim < 0 ? -1 : port->dims[d];
        dims[d] = d == 0 && rows > 0 && known < 0 ? rows : known < 0 ? 1 : known;
        if (dims[d] != 0 && elements > INT32_MAX / dims[d])
            return -FS_RESOURCE_EXHAUSTED;
        elements *= dims[d];
    }
    size_t size = fs_dtype_size(port->dtype);
    if (size == 0)
        return -FS_UNIMPLEMENTED;
    *t = (fs_tensor){.dtype = port->dtype, .ndim = ndim, .dims = dims, .elements = elements,
                     .bytes = (size_t)elements * size};
    t->buf = fs_buf_new(slab, t->bytes);
    if (t->buf == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    t->data = t->buf->data;
    memset(t->data, 0, t->bytes);
    return 0;
}

/* One run at `rows` rows (0: as the signature says). */
static int warm_run(fs_servable *servable, uint32_t index, enum fs_run_variant variant, int64_t rows,
                    fs_slab *slab, fs_track *track, fs_error *err)
{
    int64_t began_us = fs_now_us();
    const fs_signature *sig = &servable->spec->signatures[index];
    fs_arena arena;
    fs_arena_init(&arena, slab);
    fs_tensor *in = fs_arena_alloc(&arena, (sig->n_inputs + 1) * sizeof *in);
    fs_tensor *out = fs_arena_alloc(&arena, (sig->n_outputs + 1) * sizeof *out);
    int rc = in == NULL || out == NULL ? -FS_RESOURCE_EXHAUSTED : 0;
    for (uint32_t i = 0; i < sig->n_inputs && rc == 0; i++)
        rc = zeros(&arena, slab, &sig->inputs[i], rows, &in[i]);
    if (rc == 0) {
        rc = servable->runtime.ops->run(servable->handle, index, variant, in, out, err);
        if (rc != 0 && variant == FS_RUN_PLAIN)
            fs_runtime_explain(&servable->runtime, servable->handle, index, in, err);
        if (rc == 0) {
            for (uint32_t i = 0; i < sig->n_outputs; i++)
                servable->runtime.ops->release(&out[i]);
        }
    } else {
        fs_fail(err, (enum fs_code)-rc, "signature %s cannot be warmed with zeros", sig->name);
    }
    for (uint32_t i = 0; in != NULL && i < sig->n_inputs; i++)
        fs_buf_unref(in[i].buf);
    fs_arena_clear(&arena);
    if (fs_track_wants(track, FS_TRACE_RECORDING))
        fs_trace_warm_run(track, servable, &servable->queues[index], variant == FS_RUN_COMPILED, rows, began_us, rc);
    return rc;
}

/* How many runs zeros are good for. */
static int count_zero_runs(const fs_servable *servable, int iterations)
{
    int runs = 0;
    for (uint32_t i = 0; i < servable->n_queues; i++) {
        const fs_signature_plan *plan = &servable->plans[i];
        if (servable->spec->signatures[i].n_inputs > 0)
            runs += 1 + (plan->batched ? (int)plan->n_buckets : 0);
    }
    return runs * iterations;
}

static int warm_with_zeros(fs_servable *servable, fs_warm *warm, fs_slab *slab, fs_error *err)
{
    int rc = 0;
    for (uint32_t i = 0; i < servable->n_queues && rc == 0; i++) {
        const fs_signature_plan *plan = &servable->plans[i];
        if (servable->spec->signatures[i].n_inputs == 0)
            continue; /* an initialiser, say: running it is not ours to do */
        for (int k = 0; k < warm->iterations && rc == 0; k++) {
            warm->failures += warm_run(servable, i, FS_RUN_PLAIN, 1, slab, warm->track, err) != 0;
            atomic_fetch_add_explicit(&warm->done, 1, memory_order_relaxed);
            for (uint32_t b = 0; plan->batched && b < plan->n_buckets && rc == 0; b++) {
                if (plan->compiled)
                    rc = warm_run(servable, i, FS_RUN_COMPILED, plan->buckets[b], slab, warm->track, err);
                else
                    warm->failures +=
                        warm_run(servable, i, FS_RUN_PLAIN, plan->buckets[b], slab, warm->track, err) != 0;
                atomic_fetch_add_explicit(&warm->done, 1, memory_order_relaxed);
            }
        }
    }
    return rc;
}

int fs_servable_warm(fs_servable *servable, fs_warm *warm, fs_error *err)
{
    warm->failures = 0;
    atomic_store_explicit(&warm->done, 0, memory_order_relaxed);
    atomic_store_explicit(&warm->total, 0, memory_order_relaxed);
    if (warm->iterations <= 0)
        return 0;
    int runs = count_zero_runs(servable, warm->iterations);
    fs_warm_requests file = {.fd = -1};
    int rc = 0;
    if (warm->requests != NULL)
        rc = fs_warm_requests_open(&file, warm->requests, warm->max_request_bytes, err);
    if (rc != 0)
        return rc;
    fs_slab *slab = fs_slab_new(0);
    if (slab != NULL) {
        atomic_store_explicit(&warm->total, runs + (int)file.count * warm->iterations, memory_order_relaxed);
        rc = warm_with_zeros(servable, warm, slab, err);
        for (uint32_t n = 0; n < file.count && rc == 0; n++) {
            int64_t began_us = fs_now_us();
            rc = fs_warm_requests_run_next(&file, servable, slab, warm->iterations, &warm->done, err);
            if (fs_track_wants(warm->track, FS_TRACE_RECORDING))
                fs_trace_warm_run(warm->track, servable, NULL, false, 0, began_us, rc);
        }
        fs_slab_release(slab);
    } else {
        rc = fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    }
    fs_warm_requests_close(&file);
    return rc;
}
