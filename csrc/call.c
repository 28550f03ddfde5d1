/* call: see call.h. What TF Serving checks before it runs anything is checked here and in call_predict.c,
 * call_infer.c and multi.c, with its codes and words. */
#include "call.h"

#include <string.h>

#include "call_check.h"
#include "clock.h"
#include "compress.h"
#include "engine.h"
#include "logger.h"
#include "multi.h"
#include "queue.h"
#include "shadow.h"
#include "trace.h"

enum { UNCOUNTED_BYTES = 4096 }; /* growth of a request that is not worth an entry in the budgets */

void fs_call_discard(fs_call *call)
{
    if (call->multi != NULL)
        fs_multi_discard(call->multi);
    if (call->examples != NULL)
        fs_slab_free(call->examples->room);
    fs_route_unref(call->route);
    fs_request_log_unref(call->log);
    fs_slab_free(call->span);
    fs_slab_free(call->inflated);
    fs_slab_free(call->text);
    fs_slab_free(call->reply);
    if (call->join != NULL)
        pthread_mutex_destroy(&call->join->mutex);
    fs_arena_clear(&call->arena);
    fs_slab_free(call);
}

_Static_assert((int)FS_CALL_MULTI_INFERENCE + 1 == FS_METRICS_SESSION_RUN, "kinds are methods");
_Static_assert((int)FS_METRICS_SESSION_RUN == FS_TRACE_SESSION_RUN, "of traces, too");
_Static_assert((int)FS_TRANSPORTS == FS_METRICS_TRANSPORTS, "and transports, transports");

/* Counts a call that no version got to see, or that asked for a signature that is not there. */
static void count_unresolved(const fs_call *call, int code)
{
    fs_metrics *metrics = call->owner->engine->metrics;
    if (FS_COUNTED(metrics))
        fs_metrics_unresolved(metrics, (int)call->kind, call->rpc->transport, code);
}

static void count_queueing(const fs_call *call)
{
    if (call->taken_us > 0)
        fs_meter_time(&call->meter->queue, &call->meter->queue_sum,
                      (call->taken_us - call->rpc->arrived_us) * 1000);
}

/* Counts a call that was queued and comes home. A MultiInference is one request, of its first task's signature; in its
 * tasks' signatures it has waited. */
static void count_finished(const fs_call *call)
{
    const fs_call *const *parts = &call;
    uint32_t n = 1;
    if (call->multi != NULL) {
        parts = (const fs_call *const *)call->multi->tasks;
        n = call->multi->n;
    }
    fs_meter *meter = parts[0]->meter;
    int method = (int)call->kind, transport = call->rpc->transport;
    fs_endings_add(&meter->requests, method, transport, call->code);
    bool ran = false;
    for (uint32_t i = 0; i < n; i++) {
        ran = ran || parts[i]->taken_us > 0;
        if (parts[i]->meter != NULL)
            count_queueing(parts[i]);
    }
    if (ran) {
        fs_meter_time(&meter->latency[method][transport], &meter->latency_sum[method][transport],
                      (call->owner->now_us - call->rpc->arrived_us) * 1000);
        fs_meter_request(meter, method, parts[0]->rows_sent);
    }
    for (uint32_t i = 0; i < n; i++) { /* from here on it may be another's */
        if (parts[i]->meter != NULL)
            fs_meter_finished(parts[i]->meter);
    }
}

/* One that was never queued came from the unpacker. */
static void count_home(const fs_call *call)
{
    const fs_call *first = call->multi != NULL ? call->multi->tasks[0] : call;
    if (!FS_COUNTED(call->owner->engine->metrics))
        return;
    if (first->meter != NULL)
        count_finished(call);
    else
        count_unresolved(call, call->code);
}

/* Back on the owner's thread: the reply becomes the session's. */
static void deliver(fs_mail *mail)
{
    fs_call *call = (fs_call *)mail;
    fs_owner *owner = call->owner;
    if (call->done != NULL) {
        call->done(call);
        return;
    }
    fs_rpc *rpc = call->rpc;
    if (rpc->h2 != NULL)
        owner->touch(owner->ctx, rpc->conn);
    count_home(call);
    fs_log_entry *entry = call->log != NULL && call->code == FS_OK ? fs_log_entry_of(call) : NULL;
    fs_shadow *shadow = call->shadowed && call->code == FS_OK ? fs_shadow_of(call) : NULL;
    if (call->span != NULL)
        fs_trace_call(call);
    void *reply = call->reply;
    call->reply = NULL;
    fs_rpc_finish(rpc, call->code, call->text, call->text_len, reply, call->reply_len);
    fs_call_discard(call);
    if (shadow != NULL)
        fs_shadows_post(owner->engine->shadows, shadow);
    if (entry != NULL)
        fs_logger_post(owner->engine->logger, entry);
}

/* In the figures of the route that chose the call's version. */
static void count_routed(const fs_call *call, bool ran, int64_t now_us)
{
    fs_figures_count(&call->route->figures[call->side], call->code, ran, now_us - call->rpc->arrived_us);
}

void fs_call_fail(fs_call *call, fs_slab *slab, int code, const char *text, size_t len)
{
    call->code = code;
    call->text_len = 0;
    if (call->text == NULL && len > 0)
        call->text = fs_slab_alloc(slab, len);
    if (call->text != NULL && len <= fs_slab_usable(call->text)) {
        memcpy(call->text, text, len);
        call->text_len = len;
    }
}

void fs_homeward_add(fs_homeward *homeward, fs_call *call)
{
    call->mail.deliver = deliver;
    homeward->routed = homeward->routed || call->route != NULL;
    int i = 0;
    while (i < homeward->n && homeward->chain[i].owner != call->owner)
        i++;
    if (i == homeward->n) {
        if (i == FS_CHAINS) {
            if (call->route != NULL)
                count_routed(call, true, fs_now_us());
            fs_owner_post(call->owner, &call->mail);
            return;
        }
        homeward->n++;
        homeward->chain[i].owner = call->owner;
        homeward->chain[i].first = NULL;
        homeward->chain[i].last = &call->mail.node;
    }
    call->mail.node.next = homeward->chain[i].first;
    homeward->chain[i].first = &call->mail.node;
}

static void count_homeward(const fs_homeward *homeward)
{
    int64_t now_us = fs_now_us();
    for (int i = 0; i < homeward->n; i++) {
        const fs_node *last = homeward->chain[i].last;
        for (const fs_node *node = homeward->chain[i].first;; node = node->next) {
            const fs_call *call = (const fs_call *)node;
            if (call->route != NULL)
                count_routed(call, true, now_us);
            if (node == last)
                break;
        }
    }
}

void fs_homeward_post(fs_homeward *homeward)
{
    if (homeward->routed)
        count_homeward(homeward);
    for (int i = 0; i < homeward->n; i++) {
        fs_mailbox_post_chain(homeward->chain[i].owner->box, homeward->chain[i].first,
                              homeward->chain[i].last);
    }
    homeward->n = 0;
    homeward->routed = false;
}

/* ---- checking a request against its signature ------------------------------------------------- */

/* What TensorFlow would answer at the run, answered before the call can hurt a batch. And what the inputs
 * take once they are decoded, when that is more than the message. */
static int check_tensors(const fs_call *call, const fs_signature *sig, size_t limit_bytes, fs_error *err)
{
    size_t total = 0;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        const fs_tensor_view *view = &call->views[i];
        size_t size = fs_dtype_size(view->dtype);
        if (view->dtype != sig->inputs[i].dtype || size == 0) {
            return fs_fail(err, FS_INVALID_ARGUMENT, "Expects arg[%u] to be %s but %s is provided", i,
                           fs_dtype_name(sig->inputs[i].dtype), fs_dtype_name(view->dtype));
        }
        /* A few bytes can stand for a tensor of any size: the last value repeats. */
        size_t left = limit_bytes - total;
        uint64_t bytes = UINT64_MAX;
        if ((uint64_t)view->elements <= left / size) {
            bytes = (uint64_t)view->elements * size;
            if (view->dtype == FS_DT_STRING &&
                __builtin_add_overflow(bytes, fs_tensor_view_string_bytes(view), &bytes))
                bytes = UINT64_MAX;
        }
        if (bytes > left) {
            return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                           "inputs of more than %zu bytes once decoded (limits.max_message_bytes)",
                           limit_bytes);
        }
        total += (size_t)bytes;
    }
    if (call->done != NULL)
        return 0; /* in no session's budget */
    const fs_call *sent = call->whole != NULL ? call->whole : call;
    size_t have = sent->inflated != NULL ? sent->inflated_len : sent->rpc->message_len;
    return total > have + UNCOUNTED_BYTES ? fs_rpc_charge(call->rpc, total - have, err) : 0;
}

/* Decides how the call can run: in batches, in pieces, or alone. */
static int check_shape(fs_call *call, const fs_queue *queue, fs_error *err)
{
    const fs_signature *sig = queue->signature;
    const fs_batching *batching = &queue->servable->batching;
    bool scalar = sig->n_inputs == 0;
    bool unequal = false, conforms = true, empty = true;
    call->rows_only = queue->static_inner;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        const fs_tensor_view *view = &call->views[i];
        const fs_port *port = &sig->inputs[i];
        empty = empty && view->elements == 0;
        if (view->ndim == 0) {
            scalar = true;
            continue;
        }
        if (call->views[0].ndim == 0 || view->dims[0] != call->views[0].dims[0])
            unequal = true;
        if (port->ndim >= 0 && view->ndim != port->ndim)
            conforms = false;
        for (int32_t d = 1; conforms && d < view->ndim && port->ndim >= 0; d++) {
            if (port->dims[d] >= 0 && port->dims[d] != view->dims[d])
                conforms = false;
        }
    }
    bool batchable = !scalar && !unequal && conforms && queue->plan->batched;
    int64_t rows = scalar || unequal ? 1 : call->views[0].dims[0];

    if (batching->refuse_above > 0) {
        if (sig->n_inputs == 0)
            return fs_fail(err, FS_INVALID_ARGUMENT, "Batching Run() must have at least one input tensor");
        if (scalar) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "Batching Run() input tensors must have at least one dimension");
        }
        if (unequal) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "Batching Run() input tensors must have equal 0th-dimension size");
        }
        if (rows > batching->refuse_above) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "Task size %lld is larger than maximum input batch size %lld", (long long)rows,
                           (long long)batching->refuse_above);
        }
    }
    if (!batchable || empty || (rows > batching->max_batch_size && !batching->split_large)) {
        if (queue->plan->compiled && batching->refuse_unknown_shapes) {
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "the inputs' shapes are none that were compiled for signature %s, and the model "
                           "is configured with unknown_shapes = \"refuse\"",
                           sig->name);
        }
        call->solo = true;
        if (empty)
            rows = 1; /* a shape without elements may claim any number of rows */
    }
    call->rows = rows;
    bool some = sig->n_inputs > 0 && !empty && call->views[0].ndim > 0;
    call->rows_sent = some ? call->views[0].dims[0] : !empty;
    if (!call->solo && rows > batching->max_batch_size) {
        size_t inputs_bytes = sig->n_inputs * sizeof *call->join->inputs;
        void **inputs = fs_arena_alloc(&call->arena, inputs_bytes);
        fs_join *join = inputs == NULL ? NULL : fs_arena_alloc(&call->arena, sizeof *join);
        if (join == NULL)
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        memset(inputs, 0, inputs_bytes);
        *join = (fs_join){.inputs = inputs};
        call->join = join;
        pthread_mutex_init(&call->join->mutex, NULL);
    }
    return 0;
}

int fs_call_fit(fs_call *call, fs_error *err)
{
    const fs_queue *queue = call->queue;
    int rc = check_tensors(call, queue->signature, call->owner->engine->config.max_message_bytes, err);
    fs_examples *examples = call->examples;
    if (rc == 0 && examples != NULL && examples->context.len > 0) {
        if (call->done == NULL && fs_rpc_charge(call->rpc, (size_t)examples->bytes, err) != 0)
            return -err->code;
        examples->room = fs_slab_alloc(call->owner->slab, (size_t)examples->bytes);
        if (examples->room == NULL)
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    }
    return rc == 0 ? check_shape(call, queue, err) : rc;
}

/* The request of any kind but Predict. */
static int parse_inference(fs_call *call, const uint8_t *message, size_t len)
{
    call->infer = fs_arena_alloc(&call->arena, sizeof *call->infer);
    if (call->infer == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    int rc = call->kind == FS_CALL_MULTI_INFERENCE ? fs_multi_parse(&call->arena, message, len, call->infer)
                                                   : fs_infer_parse(&call->arena, message, len, call->infer);
    call->request.model = call->infer->model;
    return rc;
}

/* Of examples that came in several parts and were put together, what that took. */
static size_t joined_bytes(const fs_examples *examples, const uint8_t *message, size_t len)
{
    size_t bytes = 0;
    const fs_slice parts[] = {examples->list, examples->context};
    for (int i = 0; i < 2; i++) {
        uintptr_t at = (uintptr_t)parts[i].data, begin = (uintptr_t)message;
        if (parts[i].len > 0 && (at < begin || at >= begin + len))
            bytes += parts[i].len;
    }
    return bytes;
}

static int parse(fs_call *call, fs_error *err)
{
    const uint8_t *message = call->inflated != NULL ? call->inflated : call->rpc->message;
    size_t len = call->inflated != NULL ? call->inflated_len : call->rpc->message_len;

    int rc = call->kind == FS_CALL_PREDICT ? fs_predict_parse(&call->arena, message, len, &call->request)
                                           : parse_inference(call, message, len);
    if (rc == -FS_RESOURCE_EXHAUSTED)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    if (rc != 0)
        return fs_fail(err, FS_INTERNAL, "%s", "");
    size_t joined = call->infer != NULL ? joined_bytes(&call->infer->examples, message, len) : 0;
    return joined > UNCOUNTED_BYTES ? fs_rpc_charge(call->rpc, joined, err) : 0;
}

/* Bytes that are no such request are answered so whatever else is wrong, as gRPC parses before anybody looks at
 * the message. Of a call that is served every tensor and every example has been looked at; of a call that was
 * parsed, every tensor if it has got as far as its outputs. */
static bool payload_valid(const fs_call *call)
{
    if (call->kind != FS_CALL_PREDICT)
        return call->infer == NULL || fs_examples_valid(&call->infer->examples);
    for (uint32_t i = 0; call->outputs == NULL && i < call->request.n_inputs; i++) {
        if (!fs_tensor_proto_valid(call->request.inputs[i].proto, FS_TENSOR_DEPTH))
            return false;
    }
    return true;
}

void fs_call_refused(fs_call *call, const fs_queue *queue, fs_error *err)
{
    if (call->done != NULL)
        return; /* a copy, which is no traffic */
    if (!payload_valid(call))
        fs_fail(err, FS_INTERNAL, "%s", "");
    if (queue != NULL && FS_COUNTED(queue->meter))
        fs_endings_add(&queue->meter->requests, (int)call->kind, call->rpc->transport, (int)err->code);
    else
        count_unresolved(call, (int)err->code);
}

/* Checks and queues a call for a version that is pinned for it. On failure *err says why, the pin is gone and
 * the call is still the caller's. Inside a bracket: once the call is in the ring its pin may be gone, and with it
 * the queue that the push is not done with. */
static int admit(fs_call *call, fs_servable *servable, fs_error *err)
{
    if (call->kind == FS_CALL_MULTI_INFERENCE)
        return fs_multi_admit(call, servable, err);
    int rc = call->kind == FS_CALL_PREDICT ? fs_predict_check(call, servable, err)
                                           : fs_infer_check(call, servable, err);
    fs_queue *queue = call->queue;
    if (rc == 0)
        rc = fs_queue_push(queue, call, err); /* the call is the queue's when this is 0 */
    if (rc != 0) {
        if (queue != NULL)
            fs_count(queue, FS_COUNT_FAILED, 1);
        fs_call_refused(call, queue, err);
        fs_servable_unpin(servable, 1);
    }
    return rc;
}

/* Resolves, checks and queues. On failure *err says why and the call is still the caller's. Inside a bracket. */
static int dispatch(fs_call *call, fs_error *err)
{
    fs_owner *owner = call->owner;
    int rc = parse(call, err);
    if (rc == 0)
        rc = fs_access_check(&owner->engine->access, call->request.model.name, &call->rpc->bearer, err);
    fs_turn turn = {.kept = &call->rpc->kept, .random = &owner->random};
    fs_servable *servable = NULL;
    if (rc == 0)
        servable = fs_catalog_find(owner->engine->catalog, &call->request.model, &turn, err);
    if (servable == NULL) {
        fs_call_refused(call, NULL, err);
        return -err->code;
    }
    call->route = turn.route;
    call->side = turn.side;
    call->shadowed = turn.shadowed && call->kind == FS_CALL_PREDICT; /* other replies are not compared */
    call->log = turn.log;
    call->log_sinks = turn.log_sinks;
    return admit(call, servable, err);
}

/* A call that was never queued is about to be answered. */
static void trace_refused(const fs_call *call)
{
    if (fs_track_wants(call->owner->track, FS_TRACE_SPANS))
        fs_trace_refused(call);
}

/* Answers a call that never left the owner's thread, and has been counted. */
static void refuse(fs_call *call, const fs_error *err)
{
    call->code = err->code;
    trace_refused(call);
    if (call->route != NULL)
        count_routed(call, false, fs_now_us());
    fs_rpc_finish(call->rpc, err->code, err->msg, err->len, NULL, 0);
    fs_call_discard(call);
}

static void refuse_unresolved(fs_call *call, const fs_error *err)
{
    count_unresolved(call, (int)err->code);
    refuse(call, err);
}

static void dispatch_or_refuse(fs_call *call)
{
    fs_owner *owner = call->owner;
    fs_error err;
    fs_epoch_enter(&owner->engine->epoch, owner->reader);
    int rc = dispatch(call, &err);
    fs_epoch_leave(owner->reader);
    if (rc != 0)
        refuse(call, &err);
}

/* ---- compressed requests --------------------------------------------------------------------- */

/* Mail from the unpacker: the message is inflated, or code and text say why not. */
static void deliver_inflated(fs_mail *mail)
{
    fs_call *call = (fs_call *)mail;
    fs_owner *owner = call->owner;
    if (call->rpc->h2 != NULL)
        owner->touch(owner->ctx, call->rpc->conn);
    fs_error err;
    if (call->code != FS_OK) {
        trace_refused(call);
        deliver(mail);
    } else if (fs_rpc_charge(call->rpc, call->inflated_len, &err) != 0) {
        refuse_unresolved(call, &err);
    } else {
        dispatch_or_refuse(call);
    }
}

bool fs_call_inflate(fs_call *call, fs_slab *slab, size_t limit)
{
    fs_error err;
    fs_rpc *rpc = call->rpc;
    size_t max = call->owner->engine->config.max_message_bytes;
    call->code = FS_OK;
    call->mail.deliver = deliver_inflated;
    int rc = fs_inflate(slab, rpc->encoding, rpc->message, rpc->message_len, limit < max ? limit : max,
                        &call->inflated, &call->inflated_len, &err);
    if (rc == -FS_RESOURCE_EXHAUSTED && limit < max)
        return false;
    if (rc != 0)
        fs_call_fail(call, slab, err.code, err.msg, err.len);
    return true;
}

fs_call *fs_call_new(fs_owner *owner, fs_rpc *rpc)
{
    fs_call *call = fs_slab_alloc(owner->slab, sizeof *call);
    if (call == NULL)
        return NULL;
    memset(call, 0, sizeof *call);
    call->rpc = rpc;
    call->owner = owner;
    fs_arena_init(&call->arena, owner->slab);
    return call;
}

int fs_call_run(fs_owner *owner, fs_rpc *rpc, int64_t version, fs_route *route, void (*done)(fs_call *call),
                fs_error *err)
{
    fs_call *call = fs_call_new(owner, rpc);
    if (call == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    call->route = fs_route_ref(route);
    call->side = FS_SIDE_FRESH;
    call->done = done;
    fs_epoch_enter(&owner->engine->epoch, owner->reader);
    int rc = parse(call, err);
    if (rc == 0) {
        call->request.model.choice = FS_VERSION_NUMBER;
        call->request.model.version = version;
        fs_servable *servable = fs_catalog_find(owner->engine->catalog, &call->request.model, NULL, err);
        rc = servable == NULL ? -err->code : admit(call, servable, err);
    }
    fs_epoch_leave(owner->reader);
    if (rc != 0)
        fs_call_discard(call);
    return rc;
}

void fs_call_start(fs_owner *owner, fs_rpc *rpc, enum fs_call_kind kind)
{
    fs_call *call = fs_call_new(owner, rpc);
    if (call == NULL) {
        if (FS_COUNTED(owner->engine->metrics))
            fs_metrics_unresolved(owner->engine->metrics, (int)kind, rpc->transport, FS_RESOURCE_EXHAUSTED);
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, "out of memory", 13, NULL, 0);
        return;
    }
    call->kind = kind;
    rpc->user = call;
    if (rpc->encoding == FS_IDENTITY) {
        dispatch_or_refuse(call);
    } else if (rpc->message_len > owner->engine->config.max_compressed_bytes) {
        fs_error err;
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "compressed message larger than max (%zu vs. %zu)",
                rpc->message_len, owner->engine->config.max_compressed_bytes);
        refuse_unresolved(call, &err);
    } else if (rpc->message_len <= FS_INFLATE_INLINE_FROM &&
               fs_call_inflate(call, owner->slab, FS_INFLATE_INLINE_TO)) {
        call->mail.deliver(&call->mail);
    } else {
        fs_unpacker_post(owner->engine->unpacker, call);
    }
}
