/* servable: see servable.h. */
#include "servable.h"

#include <stdlib.h>
#include <string.h>

enum { RING_CALLS = 1 << 15 };

/* Every inner dim of every input is known, so equal dtypes mean equal row shapes. */
static bool inner_dims_known(const fs_signature *sig)
{
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        if (sig->inputs[i].ndim < 1)
            return false;
        for (int32_t d = 1; d < sig->inputs[i].ndim; d++) {
            if (sig->inputs[i].dims[d] < 0)
                return false;
        }
    }
    return true;
}

static int queue_init(fs_servable *servable, uint32_t index)
{
    fs_queue *queue = &servable->queues[index];
    queue->servable = servable;
    queue->signature = &servable->spec->signatures[index];
    queue->plan = &servable->plans[index];
    queue->index = index;
    queue->static_inner = inner_dims_known(queue->signature);
    for (uint32_t b = 0; b < queue->plan->n_buckets; b++)
        atomic_init(&queue->cost_us[b], queue->plan->costs_us[b]);
    /* Every waiting call counts one row at least. What is in the ring are the calls since the last take,
     * so that a bound of millions of rows need not cost that much memory. */
    size_t calls = servable->queue_rows < RING_CALLS ? (size_t)servable->queue_rows + 1 : RING_CALLS;
    queue->ring = fs_ring_new(calls);
    return queue->ring == NULL ? -FS_RESOURCE_EXHAUSTED : 0;
}

int fs_servable_open(fs_runtime runtime, const char *model, int64_t version, const fs_model_spec *spec,
                     const fs_signature_plan *plans, const fs_batching *batching, fs_servable **out,
                     fs_error *err)
{
    fs_servable *servable = aligned_alloc(64, sizeof *servable);
    if (servable == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    memset(servable, 0, sizeof *servable);
    size_t name_len = strlen(model);
    servable->model = malloc(name_len + 1);
    size_t queue_bytes = (spec->n_signatures + 1) * sizeof *servable->queues;
    servable->queues = aligned_alloc(64, queue_bytes);
    if (servable->model == NULL || servable->queues == NULL) {
        fs_servable_close(servable);
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    }
    memcpy(servable->model, model, name_len + 1);
    memset(servable->queues, 0, queue_bytes);
    servable->version = version;
    servable->runtime = runtime;
    servable->spec = spec;
    servable->plans = plans;
    servable->batching = *batching;
    servable->queue_rows = batching->max_batch_size * batching->max_enqueued_batches;
    for (uint32_t i = 0; i < spec->n_signatures; i++) {
        servable->n_queues = i + 1;
        if (queue_init(servable, i) != 0) {
            fs_servable_close(servable);
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        }
    }
    int rc = runtime.ops->open(runtime.self, spec, &servable->handle, err);
    if (rc != 0) {
        servable->handle = NULL;
        fs_servable_close(servable);
        return rc;
    }
    *out = servable;
    return 0;
}

void fs_servable_meter(fs_servable *servable, fs_metrics *metrics, bool named_runs)
{
    if (!FS_COUNTED(metrics))
        return;
    servable->metrics = metrics;
    for (uint32_t i = 0; i < servable->n_queues; i++) {
        fs_queue *queue = &servable->queues[i];
        queue->meter = fs_metrics_give(metrics, servable->model, servable->version, queue->signature->name);
    }
    if (named_runs && servable->runtime.run_named != NULL)
        servable->named_meter = fs_metrics_give(metrics, servable->model, servable->version, "");
}

void fs_servable_close(fs_servable *servable)
{
    for (uint32_t i = 0; i < servable->n_queues && servable->metrics != NULL; i++)
        fs_metrics_take_back(servable->metrics, servable->queues[i].meter);
    if (servable->named_meter != NULL)
        fs_metrics_take_back(servable->metrics, servable->named_meter);
    if (servable->handle != NULL)
        servable->runtime.ops->close(servable->handle);
    for (uint32_t i = 0; i < servable->n_queues; i++)
        fs_ring_free(servable->queues[i].ring);
    free(servable->queues);
    free(servable->model);
    free(servable);
}

fs_queue *fs_servable_find(fs_servable *servable, fs_slice signature)
{
    for (uint32_t i = 0; i < servable->n_queues; i++) {
        const char *name = servable->queues[i].signature->name;
        if (strlen(name) == signature.len && memcmp(name, signature.data, signature.len) == 0)
            return &servable->queues[i];
    }
    return NULL;
}

const char *fs_counter_name(int counter)
{
    static const char *const names[FS_COUNTERS] = {
        "ok", "failed", "rejected", "expired", "cancelled", "shed", "batches", "rows", "padded_rows",
        "unbatched", "compiled", "reruns", "run_us",
    };
    return names[counter];
}

uint64_t fs_servable_count(const fs_servable *servable, uint32_t queue, int counter)
{
    return atomic_load_explicit(&servable->queues[queue].counters[counter], memory_order_relaxed);
}

uint64_t fs_servable_batches_of(const fs_servable *servable, uint32_t queue, int log2_rows)
{
    return atomic_load_explicit(&servable->queues[queue].batch_rows_log2[log2_rows], memory_order_relaxed);
}
