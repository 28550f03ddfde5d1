/* queue: see queue.h. */
#include "queue.h"

#include "engine.h"

enum { LOOK_PAST = 256 }; /* calls of other shapes that a take looks past: bounds its time */

/* Since when a call waits, for batch_timeout_us: one that will share no batch has waited long enough. */
static int64_t waits_since_us(const fs_call *call)
{
    return call->rpc->arrived_us - (call->solo ? call->queue->servable->batching.timeout_us : 0);
}

int fs_queue_push(fs_queue *queue, fs_call *call, fs_error *err)
{
    fs_servable *servable = queue->servable;
    fs_engine *engine = call->owner->engine; /* the call may be gone as soon as it is in the ring */
    fs_meter *meter = call->done == NULL ? queue->meter : NULL; /* what is no session's is no traffic */
    call->meter = meter;
    long long weight = fs_call_weight(call);
    int64_t since_us = waits_since_us(call);
    int64_t max_rows = servable->batching.max_batch_size;
    long long waiting = atomic_load_explicit(&queue->rows_waiting, memory_order_relaxed);
    bool full;
    do { /* a call that is refused is never counted, or it would have others refused that fit */
        /* A call larger than the whole queue is let in when it would be alone. */
        full = waiting > 0 && waiting + weight > servable->queue_rows;
    } while (!full && !atomic_compare_exchange_weak_explicit(&queue->rows_waiting, &waiting, waiting + weight,
                                                             memory_order_relaxed, memory_order_relaxed));
    if (!full && !fs_ring_push(queue->ring, call)) {
        atomic_fetch_sub_explicit(&queue->rows_waiting, weight, memory_order_relaxed);
        full = true;
    }
    if (full) {
        call->meter = NULL;
        fs_count(queue, FS_COUNT_REJECTED, 1);
        return fs_fail(err, FS_UNAVAILABLE,
                       "The batch scheduling queue to which this task was submitted is full; currently %lld "
                       "batches enqueued and max_enqueued_batches is %lld",
                       (waiting + max_rows - 1) / max_rows,
                       (long long)servable->batching.max_enqueued_batches);
    }
    /* seq_cst: in one order with an executor's "I park" and its last look at this counter (executor.c), so
     * that either it sees the call or this thread sees it parked. */
    if (atomic_fetch_add_explicit(&queue->calls_waiting, 1, memory_order_seq_cst) == 0) {
        atomic_store_explicit(&queue->oldest_us, since_us, memory_order_relaxed);
        fs_executors_wake(engine->executors, servable);
    } else if (servable->batching.timeout_us > 0 && waiting < servable->batching.max_batch_size &&
               waiting + weight >= servable->batching.max_batch_size) {
        fs_executors_wake(engine->executors, servable); /* full before its time-out */
    }
    if (FS_COUNTED(meter)) /* the caller's bracket holds it */
        fs_meter_pushed(meter, (uint64_t)weight);
    fs_executors_spread(engine->executors, since_us);
    return 0;
}

int64_t fs_queue_bucket(const fs_queue *queue, int64_t rows, uint32_t *index)
{
    const fs_signature_plan *plan = queue->plan;
    for (uint32_t b = 0; b < plan->n_buckets; b++) {
        if (plan->buckets[b] >= rows) {
            *index = b;
            return plan->buckets[b];
        }
    }
    return 0;
}

/* Moves everything from the ring to the end of the list. */
static void drain(fs_queue *queue)
{
    fs_call *call;
    while ((call = fs_ring_pop(queue->ring)) != NULL) {
        call->next = NULL;
        if (queue->last == NULL)
            queue->first = call;
        else
            queue->last->next = call;
        queue->last = call;
    }
}

/* Of the calls that are counted, what has left the queue in one take. */
typedef struct gone {
    uint64_t calls, rows;
} gone;

static void count_gone(const fs_queue *queue, const gone *left)
{
    if (FS_COUNTED(queue->meter) && left->rows > 0)
        fs_meter_left(queue->meter, left->calls, left->rows);
}

static void unlink_after(fs_queue *queue, fs_call *before, fs_call *call, gone *left)
{
    left->calls += call->meter != NULL;
    if (before == NULL)
        queue->first = call->next;
    else
        before->next = call->next;
    if (queue->last == call)
        queue->last = before;
    call->next = NULL;
    atomic_fetch_sub_explicit(&queue->calls_waiting, 1, memory_order_seq_cst);
}

static void rows_gone(fs_queue *queue, const fs_call *call, int64_t rows, gone *left)
{
    if (call->meter != NULL)
        left->rows += (uint64_t)rows;
    atomic_fetch_sub_explicit(&queue->rows_waiting, rows, memory_order_relaxed);
}

/* Whether the call need not run any more; then its outcome is set. */
static bool unwanted(fs_queue *queue, fs_call *call, fs_slab *slab, int64_t now_us)
{
    static const char expired[] = "Deadline Exceeded";
    static const char shed[] = "the deadline would pass before the batch is done (shed_predicted)";

    if (call->taken > 0)
        return false; /* part of it has run or is running: the rest follows, and the join answers */
    /* relaxed: a hint; the owner drops the reply of a cancelled call anyway. */
    if (atomic_load_explicit(&call->rpc->cancelled, memory_order_relaxed)) {
        fs_count(queue, FS_COUNT_CANCELLED, 1);
        if (FS_COUNTED(call->meter))
            fs_tick_add(&call->meter->cancelled, 1);
        call->code = FS_CANCELLED;
        return true;
    }
    if (call->rpc->deadline_us <= now_us) {
        fs_count(queue, FS_COUNT_EXPIRED, 1);
        if (FS_COUNTED(call->meter))
            fs_tick_add(&call->meter->expired, 1);
        fs_call_fail(call, slab, FS_DEADLINE_EXCEEDED, expired, sizeof expired - 1);
        return true;
    }
    uint32_t b;
    if (queue->servable->batching.shed_predicted && fs_queue_bucket(queue, call->rows, &b) > 0) {
        float cost_us = atomic_load_explicit(&queue->cost_us[b], memory_order_relaxed);
        if (call->rpc->deadline_us - now_us < (int64_t)cost_us) {
            fs_count(queue, FS_COUNT_SHED, 1);
            if (FS_COUNTED(call->meter))
                fs_tick_add(&call->meter->shed, 1);
            fs_call_fail(call, slab, FS_UNAVAILABLE, shed, sizeof shed - 1);
            return true;
        }
    }
    return false;
}

static bool same_row_shape(const fs_call *a, const fs_call *b, bool any_length)
{
    if (a->rows_only && b->rows_only)
        return true;
    /* Pieces of one call must have outputs that fit together, so the shape of their rows is not for others to
     * change. */
    any_length = any_length && a->join == NULL && b->join == NULL;
    for (uint32_t i = 0; i < a->queue->signature->n_inputs; i++) {
        const fs_tensor_view *x = &a->views[i], *y = &b->views[i];
        if (x->ndim != y->ndim)
            return false;
        /* What has no element has none to pad with. */
        bool exact = !any_length || x->elements == 0 || y->elements == 0;
        for (int32_t d = 1; d < x->ndim && exact; d++) {
            if (x->dims[d] != y->dims[d])
                return false;
        }
    }
    return true;
}

/* Adds calls like `like` from the list until `rows` are there. */
static void collect(fs_queue *queue, const fs_call *like, fs_slab *slab, int64_t now_us, int64_t rows,
                    fs_taking *out, gone *left)
{
    const fs_batching *batching = &queue->servable->batching;
    fs_call *before = NULL;
    int passed = 0;
    for (fs_call *call = queue->first; call != NULL && out->n < out->room && passed < LOOK_PAST;) {
        fs_call *next = call->next;
        if (unwanted(queue, call, slab, now_us)) {
            unlink_after(queue, before, call, left);
            rows_gone(queue, call, fs_call_weight(call), left);
            call->next = out->dropped;
            out->dropped = call;
            call = next;
            continue;
        }
        if (call->solo || !same_row_shape(like, call, batching->pad_variable_length)) {
            before = call;
            passed++;
            call = next;
            continue;
        }
        int64_t rest = call->rows - call->taken;
        int64_t room = rows - out->rows;
        if (rest > room && call->rows <= batching->max_batch_size)
            break; /* does not fit whole, and what comes later must not overtake it */
        int64_t take = rest < room ? rest : room;
        if (take == 0)
            break;
        out->items[out->n++] = (fs_item){.call = call, .first_row = call->taken, .rows = take};
        out->rows += take;
        if (call->taken == 0)
            call->taken_us = now_us;
        call->taken += take;
        rows_gone(queue, call, take, left);
        if (take < rest)
            break; /* the rest of it stays at the head */
        unlink_after(queue, before, call, left);
        call = next;
    }
}

void fs_queue_take(fs_queue *queue, const fs_policy *policy, fs_slab *slab, int64_t now_us, fs_taking *out)
{
    const fs_batching *batching = &queue->servable->batching;
    out->n = 0;
    out->rows = 0;
    out->solo = false;
    out->dropped = NULL;
    gone left = {0};
    drain(queue);
    while (queue->first != NULL && unwanted(queue, queue->first, slab, now_us)) {
        fs_call *call = queue->first;
        unlink_after(queue, NULL, call, &left);
        rows_gone(queue, call, fs_call_weight(call), &left);
        call->next = out->dropped;
        out->dropped = call;
    }
    fs_call *head = queue->first;
    if (head != NULL && head->solo) {
        unlink_after(queue, NULL, head, &left);
        rows_gone(queue, head, fs_call_weight(head), &left);
        head->taken_us = now_us;
        out->items[0] = (fs_item){.call = head, .first_row = 0, .rows = head->rows};
        out->n = 1;
        out->rows = head->rows;
        out->solo = true;
    } else if (head != NULL) {
        fs_plan_view view = {
            .rows = atomic_load_explicit(&queue->rows_waiting, memory_order_relaxed),
            .max_rows = batching->max_batch_size,
            .n_buckets = queue->plan->compiled ? queue->plan->n_buckets : 0,
        };
        for (uint32_t b = 0; b < view.n_buckets; b++) {
            view.bucket_rows[b] = queue->plan->buckets[b];
            view.cost_us[b] = atomic_load_explicit(&queue->cost_us[b], memory_order_relaxed);
        }
        int64_t rows = policy->plan(&view);
        /* The head always fits, whatever the policy says, or nothing would ever run. */
        int64_t need = head->rows - head->taken;
        if (need > batching->max_batch_size)
            need = batching->max_batch_size;
        if (rows < need)
            rows = need;
        if (rows > batching->max_batch_size)
            rows = batching->max_batch_size;
        collect(queue, head, slab, now_us, rows, out, &left);
    }
    count_gone(queue, &left);
    /* What has come since the drain found others waiting and left this as it was. */
    atomic_store_explicit(&queue->oldest_us, queue->first != NULL ? waits_since_us(queue->first) : now_us,
                          memory_order_relaxed);
}

void fs_queue_top_up(fs_queue *queue, fs_slab *slab, int64_t now_us, int64_t rows, fs_taking *out)
{
    gone left = {0};
    drain(queue);
    collect(queue, out->items[0].call, slab, now_us, rows, out, &left);
    count_gone(queue, &left);
}
