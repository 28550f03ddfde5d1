/* batch: see batch.h. Everything here comes from the executor's slab and goes back to it, so that a batch
 * costs no system allocation of ours in steady state. */
#include "batch.h"

#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "multi.h"

enum {
    PAD_TIMES = 16,       /* rows padded to more than so many times their elements run alone instead, */
    PAD_FREELY = 1 << 20, /*   unless a batch has no more elements than this */
};

typedef struct batch {
    fs_queue *queue;
    fs_servable *servable;
    const fs_signature *sig;
    const fs_reply_config *config;
    fs_slab *slab;
    fs_homeward *homeward;
    fs_arena arena;
    fs_tensor *in;
    fs_tensor *out;
    fs_reply_output *reply; /* scratch for one call's outputs */
    int64_t room;           /* rows that the input buffers have room for */
    int64_t explained_us;
    long finished;
} batch;

/* ---- gather ------------------------------------------------------------------------------- */

/* Elements of one row. */
static int64_t row_elements(const fs_tensor *t)
{
    int64_t n = 1;
    for (int32_t d = 1; d < t->ndim; d++)
        n *= t->dims[d];
    return n;
}

/* Lays out input i for `rows` rows of the first item's row shape, or of the largest of all items'. */
static int layout(batch *b, const fs_taking *taking, uint32_t i, int64_t rows)
{
    const fs_tensor_view *view = &taking->items[0].call->views[i];
    int64_t *dims = fs_arena_alloc(&b->arena, ((size_t)view->ndim + 1) * sizeof *dims);
    if (dims == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    memcpy(dims, view->dims, (size_t)view->ndim * sizeof *dims);
    if (!taking->solo) {
        dims[0] = rows;
        for (uint32_t k = 1; k < taking->n && b->servable->batching.pad_variable_length; k++) {
            const fs_tensor_view *other = &taking->items[k].call->views[i];
            for (int32_t d = 1; d < view->ndim; d++) {
                if (other->dims[d] > dims[d])
                    dims[d] = other->dims[d];
            }
        }
    }
    int64_t elements = 1;
    for (int32_t d = 0; d < view->ndim; d++) {
        if (__builtin_mul_overflow(elements, dims[d], &elements))
            return -FS_RESOURCE_EXHAUSTED;
    }
    size_t size = fs_dtype_size(view->dtype);
    if ((uint64_t)elements > SIZE_MAX / 4 / size)
        return -FS_RESOURCE_EXHAUSTED;
    if (taking->n > 1 && b->servable->batching.pad_variable_length) {
        /* A long thin tensor and a short wide one, each small, may need any amount of memory between them. */
        int64_t useful = 0;
        for (uint32_t k = 0; k < taking->n; k++)
            useful += taking->items[k].call->views[i].elements;
        if (elements > PAD_FREELY && elements / PAD_TIMES > useful)
            return -FS_RESOURCE_EXHAUSTED;
    }
    fs_tensor *t = &b->in[i];
    *t = (fs_tensor){.dtype = view->dtype, .ndim = view->ndim, .dims = dims, .elements = elements,
                     .bytes = (size_t)elements * size};
    t->buf = fs_buf_new(b->slab, t->bytes);
    if (t->buf == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    t->data = t->buf->data;
    return 0;
}

/* Copies one row, dense in `src` with the dims of `view`, to where it stands in a row of t's larger dims. */
static void spread_row(const fs_tensor *t, const fs_tensor_view *view, int32_t d, const uint8_t *src,
                       uint8_t *dst)
{
    size_t size = fs_dtype_size(t->dtype);
    if (d == t->ndim) {
        memcpy(dst, src, size);
        return;
    }
    size_t src_step = size, dst_step = size;
    for (int32_t k = d + 1; k < t->ndim; k++) {
        src_step *= (size_t)view->dims[k];
        dst_step *= (size_t)t->dims[k];
    }
    if (d == t->ndim - 1) {
        memcpy(dst, src, (size_t)view->dims[d] * size);
        return;
    }
    for (int64_t i = 0; i < view->dims[d]; i++)
        spread_row(t, view, d + 1, src + (size_t)i * src_step, dst + (size_t)i * dst_step);
}

/* Whether element n of a payload is found without a look at those before it. */
static bool finds_rows(const fs_tensor_view *view)
{
    if (view->dtype == FS_DT_STRING)
        return false;
    if (view->has_content || view->values.len == 0)
        return true;
    return !view->scattered && (view->dtype == FS_DT_FLOAT || view->dtype == FS_DT_DOUBLE ||
                                view->dtype == FS_DT_COMPLEX64 || view->dtype == FS_DT_COMPLEX128);
}

/* Decodes elements [first, first + count) of an item's input i. The pieces of a call would each walk over
 * what the ones before have read, so the first to come decodes all of it. */
static int decode(const fs_item *item, uint32_t i, int64_t first, int64_t count, void *dst)
{
    const fs_tensor_view *view = &item->call->views[i];
    fs_join *join = item->call->join;
    if (join == NULL || finds_rows(view))
        return fs_tensor_view_decode(view, first, count, dst);
    size_t size = fs_dtype_size(view->dtype);
    int rc = 0;
    pthread_mutex_lock(&join->mutex);
    if (item->call->code != FS_OK) {
        rc = -item->call->code; /* a piece before has found out: its outcome stands */
    } else if (join->inputs[i] == NULL) {
        /* The system's memory, as in join_begin. It is in the call's budget, and checked against a limit. */
        void *whole = malloc((size_t)view->elements * size);
        rc = whole == NULL ? -FS_RESOURCE_EXHAUSTED : fs_tensor_view_decode(view, 0, view->elements, whole);
        if (rc == 0)
            join->inputs[i] = whole;
        else
            free(whole);
    }
    pthread_mutex_unlock(&join->mutex);
    if (rc == 0)
        memcpy(dst, (const uint8_t *)join->inputs[i] + (size_t)first * size, (size_t)count * size);
    return rc;
}

/* Decodes one item's rows of input i to row `at` of the batch. */
static int gather_item(batch *b, const fs_item *item, uint32_t i, int64_t at)
{
    fs_tensor *t = &b->in[i];
    const fs_tensor_view *view = &item->call->views[i];
    size_t size = fs_dtype_size(t->dtype);
    int64_t per_row = 1;
    bool dense = true;
    for (int32_t d = 1; d < t->ndim; d++) {
        per_row *= view->dims[d];
        dense = dense && view->dims[d] == t->dims[d];
    }
    int64_t full_row = row_elements(t);
    uint8_t *dst = (uint8_t *)t->data + (size_t)(at * full_row) * size;
    if (dense)
        return decode(item, i, item->first_row * per_row, item->rows * per_row, dst);

    /* Padded with the tensor's own first element, as TF Serving does. */
    int rc = decode(item, i, 0, 1, dst);
    if (rc != 0)
        return rc;
    for (int64_t e = 1; e < item->rows * full_row; e++)
        memcpy(dst + (size_t)e * size, dst, size);
    size_t row_bytes = (size_t)per_row * size;
    uint8_t *rows = fs_slab_alloc(b->slab, (size_t)item->rows * row_bytes);
    if (rows == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    rc = decode(item, i, item->first_row * per_row, item->rows * per_row, rows);
    for (int64_t r = 0; r < item->rows && rc == 0; r++)
        spread_row(t, view, 1, rows + (size_t)r * row_bytes, dst + (size_t)(r * full_row) * size);
    fs_slab_free(rows);
    return rc;
}

static void fail_with(batch *b, fs_call *call, const fs_error *err)
{
    fs_call_fail(call, b->slab, err->code, err->msg, err->len);
}

/* The outcome of an item's call, whose other pieces may be with other executors. */
static void fail_item(batch *b, const fs_item *item, const fs_error *err)
{
    fs_call *call = item->call;
    if (call->join != NULL)
        pthread_mutex_lock(&call->join->mutex);
    if (call->code == FS_OK)
        fail_with(b, call, err);
    if (call->join != NULL)
        pthread_mutex_unlock(&call->join->mutex);
}

/* Decodes items [from, n) behind the `at` rows that are there. A call whose payload turns out malformed
 * gets zeros and its outcome at once: the others must not suffer. */
static void gather(batch *b, fs_taking *taking, uint32_t from, int64_t at)
{
    for (uint32_t k = from; k < taking->n; k++) {
        fs_item *item = &taking->items[k];
        for (uint32_t i = 0; i < b->sig->n_inputs; i++) {
            fs_tensor *t = &b->in[i];
            int rc;
            if (taking->solo)
                rc = fs_tensor_view_decode(&item->call->views[i], 0, t->elements, t->data);
            else
                rc = gather_item(b, item, i, at);
            if (rc != 0) {
                size_t row_bytes = (size_t)row_elements(t) * fs_dtype_size(t->dtype);
                if (taking->solo)
                    memset(t->data, 0, t->bytes);
                else
                    memset((uint8_t *)t->data + (size_t)at * row_bytes, 0, (size_t)item->rows * row_bytes);
                fs_error err;
                fs_fail(&err, (enum fs_code)-rc, "%s", rc == -FS_RESOURCE_EXHAUSTED ? "out of memory" : "");
                fail_item(b, item, &err);
            }
        }
        at += item->rows;
    }
}

/* Repeats the first row of the last item up to `rows`, and sets dim 0. */
static void pad(batch *b, const fs_taking *taking, int64_t rows)
{
    int64_t model_row = taking->rows - taking->items[taking->n - 1].rows;
    for (uint32_t i = 0; i < b->sig->n_inputs; i++) {
        fs_tensor *t = &b->in[i];
        int64_t per_row = row_elements(t);
        size_t row_bytes = (size_t)per_row * fs_dtype_size(t->dtype);
        uint8_t *data = t->data;
        for (int64_t r = taking->rows; r < rows; r++)
            memcpy(data + (size_t)r * row_bytes, data + (size_t)model_row * row_bytes, row_bytes);
        ((int64_t *)(uintptr_t)t->dims)[0] = rows;
        t->elements = rows * per_row;
        t->bytes = (size_t)rows * row_bytes;
    }
}

static void drop_inputs(batch *b)
{
    for (uint32_t i = 0; i < b->sig->n_inputs; i++) {
        fs_buf_unref(b->in[i].buf);
        b->in[i].buf = NULL;
    }
}

static void drop_outputs(batch *b)
{
    for (uint32_t i = 0; i < b->sig->n_outputs; i++)
        b->servable->runtime.ops->release(&b->out[i]);
}

/* ---- scatter ------------------------------------------------------------------------------ */

/* Encodes rows [first, first + rows) of the outputs (rows < 0: all) as the call's reply. */
static void encode(batch *b, fs_call *call, const fs_tensor *outputs, int64_t first, int64_t rows)
{
    fs_reply_encode(call, outputs, first, rows, b->config, b->reply, b->slab);
}

static void finish(batch *b, fs_call *call)
{
    fs_count(b->queue, call->code == FS_OK ? FS_COUNT_OK : FS_COUNT_FAILED, 1);
    b->finished++;
    if (call->whole != NULL)
        call = fs_multi_finish(call, b->config, b->slab);
    if (call != NULL)
        fs_homeward_add(b->homeward, call);
}

/* Room for all rows of a call's outputs, shaped after the first piece's. Under the join's mutex. */
static int join_begin(batch *b, fs_call *call, const fs_tensor *outputs)
{
    fs_join *join = call->join;
    uint32_t n = b->sig->n_outputs;
    /* The pieces may come from any executor, so this is the system's memory, freed by join_end. */
    join->outputs = calloc(n + 1, sizeof *join->outputs);
    if (join->outputs == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    for (uint32_t i = 0; i < n; i++) {
        fs_tensor *t = &join->outputs[i];
        const fs_tensor *piece = &outputs[i];
        int64_t per_row = row_elements(piece);
        int64_t *dims = malloc((size_t)piece->ndim * sizeof *dims);
        if (dims == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        memcpy(dims, piece->dims, (size_t)piece->ndim * sizeof *dims);
        dims[0] = call->rows;
        *t = (fs_tensor){.dtype = piece->dtype, .ndim = piece->ndim, .dims = dims,
                         .elements = call->rows * per_row};
        t->bytes = (size_t)t->elements * fs_dtype_size(t->dtype);
        t->data = calloc(t->bytes + 1, 1);
        if (t->data == NULL)
            return -FS_RESOURCE_EXHAUSTED;
    }
    return 0;
}

static void join_end(const batch *b, fs_join *join)
{
    for (uint32_t i = 0; i < b->sig->n_inputs; i++)
        free(join->inputs[i]);
    for (uint32_t i = 0; join->outputs != NULL && i < b->sig->n_outputs; i++) {
        fs_tensor *t = &join->outputs[i];
        if (t->dtype == FS_DT_STRING && t->data != NULL) {
            for (int64_t e = 0; e < t->elements; e++)
                free((void *)(uintptr_t)((fs_slice *)t->data)[e].data);
        }
        free(t->data);
        free((void *)(uintptr_t)t->dims);
    }
    free(join->outputs);
    join->outputs = NULL;
}

/* Whether rows of `piece` are of the kind that `whole` was made for. */
static bool same_rows(const fs_tensor *whole, const fs_tensor *piece)
{
    if (whole->dtype != piece->dtype || whole->ndim != piece->ndim)
        return false;
    for (int32_t d = 1; d < whole->ndim; d++) {
        if (whole->dims[d] != piece->dims[d])
            return false;
    }
    return true;
}

/* Copies a piece's rows of every output to where they belong in the whole. */
static int join_copy(const batch *b, fs_call *call, const fs_tensor *outputs, int64_t at, const fs_item *item)
{
    for (uint32_t i = 0; i < b->sig->n_outputs; i++) {
        fs_tensor *t = &call->join->outputs[i];
        if (!same_rows(t, &outputs[i]))
            return -FS_FAILED_PRECONDITION;
        int64_t per_row = row_elements(t);
        size_t size = fs_dtype_size(t->dtype);
        uint8_t *dst = (uint8_t *)t->data + (size_t)(item->first_row * per_row) * size;
        const uint8_t *src = (const uint8_t *)outputs[i].data + (size_t)(at * per_row) * size;
        if (t->dtype != FS_DT_STRING) {
            memcpy(dst, src, (size_t)(item->rows * per_row) * size);
            continue;
        }
        for (int64_t e = 0; e < item->rows * per_row; e++) {
            fs_slice s = ((const fs_slice *)src)[e];
            uint8_t *copy = malloc(s.len + 1);
            if (copy == NULL)
                return -FS_RESOURCE_EXHAUSTED;
            memcpy(copy, s.data, s.len);
            ((fs_slice *)dst)[e] = (fs_slice){copy, s.len};
        }
    }
    return 0;
}

/* One piece of a call is done (outputs: row `at` on) or has failed (outputs NULL, err says why). Finishes
 * the call when it was the last. */
static void join_piece(batch *b, const fs_item *item, const fs_tensor *outputs, int64_t at,
                       const fs_error *err)
{
    fs_call *call = item->call;
    fs_join *join = call->join;
    fs_error own;
    pthread_mutex_lock(&join->mutex);
    if (outputs != NULL && call->code == FS_OK) {
        int rc = join->outputs == NULL ? join_begin(b, call, outputs) : 0;
        if (rc == 0)
            rc = join_copy(b, call, outputs, at, item);
        if (rc != 0) {
            fs_fail(&own, (enum fs_code)-rc, "the answers of a request of %lld rows cannot be put together",
                    (long long)call->rows);
            err = &own;
        }
    }
    if (err != NULL && call->code == FS_OK)
        fail_with(b, call, err);
    join->rows_done += item->rows;
    bool last = join->rows_done == call->rows;
    pthread_mutex_unlock(&join->mutex);
    if (last) {
        if (call->code == FS_OK)
            encode(b, call, join->outputs, 0, -1);
        join_end(b, join);
        finish(b, call);
    }
}

/* Ends one item: with rows from `at` on of the outputs, or with *err when it is not NULL. */
static void finish_item(batch *b, const fs_item *item, int64_t at, int64_t rows, const fs_error *err)
{
    fs_call *call = item->call;
    if (call->join != NULL) {
        join_piece(b, item, err == NULL ? b->out : NULL, at, err);
        return;
    }
    if (call->code == FS_OK) { /* else its payload was malformed, and that is its answer */
        if (err == NULL)
            encode(b, call, b->out, at, rows);
        else
            fail_with(b, call, err);
    }
    finish(b, call);
}

/* ---- run ---------------------------------------------------------------------------------- */

static int run(batch *b, enum fs_run_variant variant, fs_error *err)
{
    return b->servable->runtime.ops->run(b->servable->handle, b->queue->index, variant, b->in, b->out, err);
}

/* Whether a client will read what an item's run fails with: nobody reads a shadow's, and of a call that has its
 * outcome already, from its payload or another piece, that is read. */
static bool is_read(const fs_item *item)
{
    fs_call *call = item->call;
    if (call->join == NULL)
        return call->done == NULL && call->code == FS_OK;
    pthread_mutex_lock(&call->join->mutex);
    bool open = call->code == FS_OK;
    pthread_mutex_unlock(&call->join->mutex);
    return call->done == NULL && open;
}

/* An item's own run has failed, with inputs that are still there. */
static void explain(batch *b, const fs_item *item, fs_error *err)
{
    if (!is_read(item))
        return;
    int64_t began_us = fs_now_us();
    fs_runtime_explain(&b->servable->runtime, b->servable->handle, b->queue->index, b->in, err);
    b->explained_us += fs_now_us() - began_us;
}

/* Whether every output has a row for every row of the batch. */
static int check_outputs(const batch *b, int64_t rows, fs_error *err)
{
    for (uint32_t i = 0; i < b->sig->n_outputs; i++) {
        if (b->out[i].ndim == 0)
            return fs_fail(err, FS_FAILED_PRECONDITION, "Batched output tensor has 0 dimensions");
        if (b->out[i].dims[0] != rows) {
            return fs_fail(err, FS_FAILED_PRECONDITION,
                           "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                           "dimension sizes of the input tensors");
        }
    }
    return 0;
}

/* Runs one item by itself on the plain variant and ends it. */
static void run_alone(batch *b, const fs_item *item)
{
    fs_item copy = *item;
    fs_taking one = {.items = &copy, .room = 1, .n = 1, .rows = item->rows};
    bool whole = item->call->join == NULL;
    fs_error err;
    int rc = 0;
    for (uint32_t i = 0; i < b->sig->n_inputs && rc == 0; i++)
        rc = layout(b, &one, i, item->rows);
    if (rc == 0) {
        gather(b, &one, 0, 0);
        rc = run(b, FS_RUN_PLAIN, &err);
        if (rc != 0)
            explain(b, item, &err);
        if (rc == 0 && (rc = check_outputs(b, item->rows, &err)) != 0)
            drop_outputs(b);
        if (rc == 0) {
            finish_item(b, item, 0, whole ? -1 : item->rows, NULL);
            drop_outputs(b);
        }
    } else {
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "out of memory");
    }
    drop_inputs(b);
    if (rc != 0)
        finish_item(b, item, 0, 0, &err);
}

static void count_batch(fs_queue *queue, const fs_taking *taking, enum fs_run_variant variant,
                        int64_t run_rows, int64_t run_us)
{
    fs_count(queue, FS_COUNT_BATCHES, 1);
    fs_count(queue, FS_COUNT_ROWS, (uint64_t)taking->rows);
    fs_count(queue, FS_COUNT_RUN_US, (uint64_t)run_us);
    if (taking->solo)
        fs_count(queue, FS_COUNT_UNBATCHED, 1);
    if (variant == FS_RUN_COMPILED)
        fs_count(queue, FS_COUNT_COMPILED, 1);
    if (run_rows > taking->rows)
        fs_count(queue, FS_COUNT_PADDED_ROWS, (uint64_t)(run_rows - taking->rows));
    unsigned log2 = taking->rows <= 1 ? 0 : 64 - (unsigned)__builtin_clzll((uint64_t)taking->rows - 1);
    if (log2 >= FS_MAX_BUCKETS)
        log2 = FS_MAX_BUCKETS - 1;
    atomic_fetch_add_explicit(&queue->batch_rows_log2[log2], 1, memory_order_relaxed);
}

/* Of its rows, those of calls that are counted; 0: it is no traffic. Before any of them goes home. */
static uint64_t counted_rows(const fs_queue *queue, const fs_taking *taking)
{
    uint64_t rows = 0;
    if (!FS_COUNTED(queue->meter))
        return 0;
    for (uint32_t k = 0; k < taking->n; k++) {
        if (taking->items[k].call->meter != NULL)
            rows += (uint64_t)taking->items[k].rows;
    }
    return rows;
}

/* When the batch ran, and when its replies were there. */
typedef struct moments {
    int64_t run_ns, ran_ns;
    int64_t encoded_ns; /* 0: there were none */
} moments;

/* `size`: what it was filled up to, or 0. */
static void meter_batch(fs_meter *meter, const fs_taking *taking, uint64_t rows, int64_t size, const moments *at)
{
    fs_meter_time(&meter->formation, &meter->formation_sum, at->run_ns - taking->taken_ns);
    fs_meter_time(&meter->compute, &meter->compute_sum, at->ran_ns - at->run_ns);
    if (at->encoded_ns > 0)
        fs_meter_time(&meter->encode, &meter->encode_sum, at->encoded_ns - at->ran_ns);
    fs_tally_add(&meter->rows, rows, &meter->rows_sum);
    fs_meter_padding(meter, (uint64_t)size, size > taking->rows ? (uint64_t)(size - taking->rows) : 0);
}

fs_batch_result fs_batch_run(fs_queue *queue, fs_taking *taking, const fs_reply_config *config, fs_slab *slab,
                             fs_homeward *homeward)
{
    fs_servable *servable = queue->servable;
    batch b = {.queue = queue, .servable = servable, .sig = queue->signature, .config = config, .slab = slab,
               .homeward = homeward};
    fs_arena_init(&b.arena, slab);
    b.in = fs_arena_alloc(&b.arena, (b.sig->n_inputs + 1) * sizeof *b.in);
    b.out = fs_arena_alloc(&b.arena, (b.sig->n_outputs + 1) * sizeof *b.out);
    b.reply = fs_arena_alloc(&b.arena, (b.sig->n_outputs + 1) * sizeof *b.reply);
    fs_error err;
    int rc = 0;
    if (b.in == NULL || b.out == NULL || b.reply == NULL) {
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "out of memory");
        for (uint32_t k = 0; k < taking->n; k++)
            finish_item(&b, &taking->items[k], 0, 0, &err);
        fs_arena_clear(&b.arena);
        return (fs_batch_result){.finished = b.finished};
    }

    uint32_t bucket;
    enum fs_run_variant variant = FS_RUN_PLAIN;
    int64_t run_rows = taking->rows;
    b.room = taking->rows;
    if (!taking->solo) {
        int64_t fits = fs_queue_bucket(queue, taking->rows, &bucket);
        if (fits > 0)
            b.room = fits;
        if (fits > 0 && queue->plan->compiled && taking->items[0].call->rows_only)
            variant = FS_RUN_COMPILED;
    }
    for (uint32_t i = 0; i < b.sig->n_inputs && rc == 0; i++)
        rc = layout(&b, taking, i, b.room);
    if (rc == 0) {
        gather(&b, taking, 0, 0);
        /* Late binding: what has arrived while the rows were copied still gets on board. */
        if (!taking->solo && taking->rows < b.room && !servable->batching.pad_variable_length &&
            fs_ring_count(queue->ring) > 0 && fs_queue_claim(queue)) {
            uint32_t from = taking->n;
            int64_t at = taking->rows;
            int64_t max_rows = servable->batching.max_batch_size;
            fs_queue_top_up(queue, slab, fs_now_us(), b.room < max_rows ? b.room : max_rows, taking);
            fs_queue_unclaim(queue);
            gather(&b, taking, from, at);
        }
        if (!taking->solo) {
            run_rows = variant == FS_RUN_COMPILED ? b.room : taking->rows;
            pad(&b, taking, run_rows);
        }
    } else {
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "out of memory");
    }

    moments at = {.run_ns = fs_now_ns()};
    int64_t run_us = 0;
    if (rc == 0) {
        rc = run(&b, variant, &err);
        at.ran_ns = fs_now_ns();
        run_us = at.ran_ns / 1000 - at.run_ns / 1000;
        if (rc != 0 && taking->n == 1 && variant == FS_RUN_PLAIN)
            explain(&b, &taking->items[0], &err);
        if (rc == 0 && !taking->solo && (rc = check_outputs(&b, run_rows, &err)) != 0)
            drop_outputs(&b);
    }
    drop_inputs(&b);
    count_batch(queue, taking, variant, run_rows, run_us);
    uint64_t counted = counted_rows(queue, taking);

    if (rc == 0) {
        int64_t row = 0;
        for (uint32_t k = 0; k < taking->n; k++) {
            const fs_item *item = &taking->items[k];
            int64_t rows = item->rows;
            finish_item(&b, item, row, taking->solo ? -1 : rows, NULL);
            row += rows;
        }
        drop_outputs(&b);
        if (counted > 0)
            at.encoded_ns = fs_now_ns();
    } else if (taking->n == 1 && variant == FS_RUN_PLAIN) {
        finish_item(&b, &taking->items[0], 0, 0, &err); /* it has been alone already */
    } else {
        fs_count(queue, FS_COUNT_RERUNS, taking->n);
        for (uint32_t k = 0; k < taking->n; k++)
            run_alone(&b, &taking->items[k]);
    }
    if (counted > 0 && at.ran_ns > 0)
        meter_batch(queue->meter, taking, counted, variant == FS_RUN_COMPILED ? run_rows : 0, &at);
    fs_arena_clear(&b.arena);
    return (fs_batch_result){.run_began_us = at.run_ns / 1000, .run_us = run_us, .explained_us = b.explained_us,
                             .run_rows = run_rows, .compiled = variant == FS_RUN_COMPILED, .finished = b.finished};
}
