/* trace: see trace.h. */
#include "trace.h"

#include <string.h>

#include "clock.h"
#include "engine.h"
#include "multi.h"
#include "random.h"

static void put_servable(fs_trace_event *event, const fs_servable *servable)
{
    event->version = servable->version;
    fs_trace_put_model(event, servable->model, strlen(servable->model));
}

static void put_queue(fs_trace_event *event, const fs_queue *queue)
{
    put_servable(event, queue->servable);
    fs_trace_put_signature(event, queue->signature->name, strlen(queue->signature->name));
}

/* ---- calls -------------------------------------------------------------------------------------- */

/* Whether the request is to have a span: as its caller says, or else by lots. */
static bool sampled(const fs_track *track, const fs_rpc *rpc, uint64_t *random)
{
    if (rpc->parent.state == FS_PARENT_THERE)
        return (rpc->parent.flags & FS_PARENT_SAMPLED) != 0;
    /* relaxed: a setting. */
    uint64_t share = atomic_load_explicit(&track->shared->share, memory_order_relaxed);
    return share > 0 && fs_random_next(random) < share;
}

static fs_trace_event call_event(const fs_rpc *rpc, uint8_t method, int code)
{
    fs_trace_event event = {.kind = FS_TRACE_CALL, .method = method, .code = (uint8_t)code,
                            .transport = rpc->transport, .begin_us = rpc->arrived_us, .end_us = fs_now_us()};
    if (rpc->parent.state == FS_PARENT_THERE) {
        event.flags = FS_TRACE_PARENT;
        memcpy(event.trace_id, rpc->parent.trace_id, sizeof event.trace_id);
        memcpy(event.parent_id, rpc->parent.parent_id, sizeof event.parent_id);
    }
    return event;
}

/* When the first rows of a call were taken for a batch; 0: none ever were, it was dropped. */
static int64_t taken_us_of(const fs_call *call)
{
    int64_t taken_us = call->taken_us;
    for (uint32_t i = 0; call->multi != NULL && i < call->multi->n && taken_us == 0; i++)
        taken_us = call->multi->tasks[i]->taken_us;
    return taken_us;
}

/* What is to be told of a call whose batch is over; *of_batch is the same for all of them. Of a call in several
 * batches it is the one that was over last. */
static fs_trace_event *new_span(const fs_call *call, const fs_trace_event *of_batch, fs_slab *slab)
{
    fs_trace_event *span = fs_slab_alloc(slab, sizeof *span);
    if (span == NULL)
        return NULL;
    *span = call_event(call->rpc, (uint8_t)call->kind, call->code);
    bool many = call->multi != NULL && call->multi->n > 0;
    const fs_call *one = many ? call->multi->tasks[0] : call; /* tasks are of one version, and of one input */
    span->rows = one->rows;
    if (many)
        put_servable(span, one->queue->servable);
    else
        put_queue(span, one->queue);
    int64_t taken_us = taken_us_of(call);
    if (taken_us > 0) {
        memcpy(span->at_us, of_batch->at_us, sizeof span->at_us);
        /* An executor looks at the clock before it takes what has come by then, and a little later; and the batch
         * that is over last need not be the one that was begun last. */
        taken_us = taken_us > span->begin_us ? taken_us : span->begin_us;
        span->at_us[0] = taken_us < span->at_us[1] ? taken_us : span->at_us[1];
        span->count = of_batch->count;
        span->run_rows = of_batch->run_rows;
    }
    return span;
}

/* Gives the sampled ones among the calls on their way home a span. */
static void add_spans(const fs_track *track, const fs_trace_event *of_batch, fs_homeward *homeward, fs_slab *slab,
                      uint64_t *random)
{
    for (int i = 0; i < homeward->n; i++) {
        fs_node *last = homeward->chain[i].last;
        for (fs_node *node = homeward->chain[i].first;; node = node->next) {
            fs_call *call = (fs_call *)node;
            if (call->done == NULL && sampled(track, call->rpc, random))
                call->span = new_span(call, of_batch, slab);
            if (node == last)
                break;
        }
    }
}

void fs_trace_call(const fs_call *call)
{
    call->span->end_us = fs_now_us();
    fs_track_write(call->owner->track, call->span);
}

void fs_trace_refused(const fs_call *call)
{
    if (call->done != NULL || !sampled(call->owner->track, call->rpc, &call->owner->random))
        return;
    const fs_model_ref *asked = &call->request.model;
    fs_trace_event event = call_event(call->rpc, (uint8_t)call->kind, call->code);
    event.version = asked->choice == FS_VERSION_NUMBER ? asked->version : 0;
    fs_trace_put_model(&event, asked->name.data, asked->name.len);
    fs_trace_put_signature(&event, asked->signature.data, asked->signature.len);
    fs_track_write(call->owner->track, &event);
}

/* ---- batches ------------------------------------------------------------------------------------ */

void fs_trace_batch(fs_track *track, uint32_t wanted, const fs_queue *queue, const fs_taking *taking,
                    const fs_batch_result *result, int64_t taken_us, fs_homeward *homeward, fs_slab *slab,
                    uint64_t *random)
{
    int64_t ended_us = fs_now_us();
    fs_trace_event event = {.kind = FS_TRACE_BATCH, .begin_us = taken_us, .end_us = ended_us,
                            .at_us = {result->run_began_us, result->run_began_us + result->run_us},
                            .rows = taking->rows, .run_rows = result->run_rows, .count = taking->n};
    if (taking->n > 0 && (wanted & FS_TRACE_RECORDING) != 0) {
        event.flags = (uint8_t)((result->compiled ? FS_TRACE_COMPILED : 0) | (taking->solo ? FS_TRACE_SOLO : 0));
        put_queue(&event, queue);
        fs_track_write(track, &event);
    }
    if ((wanted & FS_TRACE_SPANS) != 0) {
        const fs_trace_event of_batch = {.at_us = {taken_us, event.at_us[0], event.at_us[1], ended_us},
                                         .count = taking->rows, .run_rows = result->run_rows};
        add_spans(track, &of_batch, homeward, slab, random);
    }
}

void fs_trace_named(fs_track *track, uint32_t wanted, const fs_rpc *rpc, const fs_servable *servable, int code,
                    int64_t taken_us, uint64_t *random)
{
    fs_trace_event event = call_event(rpc, FS_TRACE_SESSION_RUN, code);
    event.at_us[0] = taken_us;
    if (servable != NULL)
        put_servable(&event, servable);
    if ((wanted & FS_TRACE_RECORDING) != 0) {
        fs_trace_event run = event;
        run.kind = FS_TRACE_BATCH;
        run.begin_us = taken_us;
        run.at_us[0] = 0;
        fs_track_write(track, &run);
    }
    if ((wanted & FS_TRACE_SPANS) != 0 && sampled(track, rpc, random))
        fs_track_write(track, &event);
}

/* ---- loaders and the switcher ------------------------------------------------------------------- */

fs_trace_event fs_trace_task_begins(fs_track *track, const fs_task *task)
{
    fs_trace_event event = {.kind = FS_TRACE_TASK_BEGUN, .detail = (uint8_t)task->kind, .begin_us = fs_now_us()};
    if (track == NULL)
        return event;
    if (task->servable != NULL) {
        put_servable(&event, task->servable);
    } else if (task->model != NULL) {
        event.version = task->version;
        fs_trace_put_model(&event, task->model, strlen(task->model));
    }
    fs_track_write(track, &event);
    return event;
}

void fs_trace_task_ends(fs_track *track, fs_trace_event *event, int rc, int64_t opened_us)
{
    event->kind = FS_TRACE_TASK;
    event->end_us = fs_now_us();
    event->code = (uint8_t)-rc;
    event->at_us[0] = opened_us;
    fs_track_write(track, event);
}

void fs_trace_warm_run(fs_track *track, const fs_servable *servable, const fs_queue *queue, bool compiled,
                       int64_t rows, int64_t began_us, int rc)
{
    fs_trace_event event = {.kind = FS_TRACE_WARM_RUN, .flags = compiled ? FS_TRACE_COMPILED : 0,
                            .code = (uint8_t)-rc, .begin_us = began_us, .end_us = fs_now_us(), .rows = rows};
    if (queue != NULL)
        put_queue(&event, queue);
    else
        put_servable(&event, servable);
    fs_track_write(track, &event);
}
