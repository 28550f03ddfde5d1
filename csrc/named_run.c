/* named_run: see named_run.h. What is decoded is in no budget: there are as many of it at once as there are threads,
 * each up to the limit of one message. */
#include "named_run.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "compress.h"
#include "engine.h"
#include "grpc.h"
#include "lane.h"
#include "named_request.h"
#include "reply.h"
#include "text.h"
#include "trace.h"

enum { SLAB_CACHE_BYTES = 8 << 20 };

typedef struct worker {
    fs_named_runs *runs;
    pthread_t thread;
    fs_slab *slab;
    fs_epoch_reader *reader;
    uint64_t random;
    fs_track *track;
    fs_servable *pinned; /* by the run at hand, until its answer is posted; or NULL */
} worker;

struct fs_named_runs {
    fs_lane lane;
    fs_engine *engine;
    atomic_int waiting; /* handed over and not begun */
    int n_workers;
    int n_threads;
    worker workers[];
};

/* A request between its owner and a worker, and back. */
typedef struct named_call {
    fs_mail mail; /* first */
    fs_rpc *rpc;
    fs_owner *owner;
    fs_meter *meter; /* where it is counted, NULL until its version is found */
    int64_t begun_us;
    int code;
    char *text; /* a slab block, or NULL */
    size_t text_len;
    void *reply; /* a whole gRPC frame; a slab block, or NULL */
    size_t reply_len;
} named_call;

/* What one run works with. */
typedef struct running {
    worker *w;
    const fs_rpc *rpc;
    fs_arena arena;
    fs_named_request request;
    fs_servable *servable;
    fs_tensor_view *views; /* n_feeds */
    fs_tensor *inputs;     /* n_feeds */
    fs_tensor *outputs;    /* n_fetches */
} running;

static int out_of_memory(fs_error *err)
{
    return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
}

/* ---- checking ------------------------------------------------------------------------------------- */

/* Bytes that are no TensorProto are no request, whatever else is wrong; what TensorFlow would not take is told only
 * once there is a model: then *refused is the first such feed, otherwise n_feeds. */
static int look(running *r, uint32_t *refused, fs_error *err)
{
    const fs_named_request *request = &r->request;
    r->views = fs_arena_alloc(&r->arena, (request->n_feeds + 1) * sizeof *r->views);
    if (r->views == NULL)
        return out_of_memory(err);
    *refused = request->n_feeds;
    for (uint32_t i = 0; i < request->n_feeds; i++) {
        int rc = fs_tensor_view_parse(&r->arena, request->protos[i].data, request->protos[i].len, &r->views[i]);
        if (rc == -FS_RESOURCE_EXHAUSTED)
            return out_of_memory(err);
        if (rc == -FS_INTERNAL)
            return fs_fail(err, FS_INTERNAL, "%s", "");
        if ((rc != 0 || fs_dtype_size(r->views[i].dtype) == 0) && i < *refused)
            *refused = i;
    }
    return 0;
}

static int no_alias(fs_slice alias, fs_error *err)
{
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    fs_text_put(&text, "tensor alias not found in signature: ");
    fs_text_put_slice(&text, alias);
    return fs_text_end(&text);
}

/* The graph's names for aliases of `ports`; of the operation alone when `operations`. NULL with *err. */
static fs_slice *from_aliases(running *r, const fs_slice *aliases, uint32_t n, const fs_port *ports,
                              uint32_t n_ports, bool operations, fs_error *err)
{
    fs_slice *names = fs_arena_alloc(&r->arena, (n + 1) * sizeof *names);
    if (names == NULL) {
        out_of_memory(err);
        return NULL;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = 0;
        while (k < n_ports && fs_slice_compare(aliases[i], fs_slice_of(ports[k].alias)) != 0)
            k++;
        if (k == n_ports) {
            no_alias(aliases[i], err);
            return NULL;
        }
        names[i] = fs_slice_of(ports[k].tensor);
        const char *colon = operations ? strrchr(ports[k].tensor, ':') : NULL;
        if (colon != NULL)
            names[i].len = (size_t)(colon - ports[k].tensor);
    }
    return names;
}

/* The names of the run in the graph. */
static int name_ports(running *r, fs_named_run *run, fs_error *err)
{
    const fs_named_request *request = &r->request;
    *run = (fs_named_run){.feeds = request->feeds, .n_feeds = request->n_feeds, .fetches = request->fetches,
                          .n_fetches = request->n_fetches, .targets = request->targets,
                          .n_targets = request->n_targets};
    if (!request->aliases)
        return 0;
    fs_slice key = request->model.signature;
    const fs_queue *queue = fs_servable_find(r->servable, key.len > 0 ? key : fs_slice_of("serving_default"));
    if (queue == NULL) {
        fs_text text = fs_text_begin(err, FS_FAILED_PRECONDITION);
        fs_text_put(&text, "Serving signature key \"");
        fs_text_put_slice(&text, key.len > 0 ? key : fs_slice_of("serving_default"));
        fs_text_put(&text, "\" not found.");
        return fs_text_end(&text);
    }
    const fs_signature *sig = queue->signature;
    run->feeds = from_aliases(r, request->feeds, run->n_feeds, sig->inputs, sig->n_inputs, false, err);
    if (run->feeds != NULL)
        run->fetches = from_aliases(r, request->fetches, run->n_fetches, sig->outputs, sig->n_outputs, false, err);
    if (run->feeds != NULL && run->fetches != NULL)
        run->targets = from_aliases(r, request->targets, run->n_targets, sig->outputs, sig->n_outputs, true, err);
    return run->feeds == NULL || run->fetches == NULL || run->targets == NULL ? -err->code : 0;
}

/* ---- running -------------------------------------------------------------------------------------- */

/* What a feed takes once it is decoded; UINT64_MAX: more than can be said. */
static uint64_t decoded_bytes(const fs_tensor_view *view)
{
    uint64_t bytes;
    if (__builtin_mul_overflow((uint64_t)view->elements, fs_dtype_size(view->dtype), &bytes))
        return UINT64_MAX;
    if (view->dtype == FS_DT_STRING &&
        __builtin_add_overflow(bytes, fs_tensor_view_string_bytes(view), &bytes))
        return UINT64_MAX;
    return bytes;
}

static int decode(running *r, fs_error *err)
{
    const fs_named_request *request = &r->request;
    size_t limit = r->w->runs->engine->config.max_message_bytes;
    uint64_t left = limit;
    for (uint32_t i = 0; i < request->n_feeds; i++) {
        const fs_tensor_view *view = &r->views[i];
        uint64_t bytes = decoded_bytes(view);
        if (bytes > left) {
            return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                           "feeds of more than %zu bytes once decoded (limits.max_message_bytes)", limit);
        }
        left -= bytes;
        fs_tensor *t = &r->inputs[i];
        *t = (fs_tensor){.dtype = view->dtype, .ndim = view->ndim, .dims = view->dims, .elements = view->elements,
                         .bytes = (size_t)view->elements * fs_dtype_size(view->dtype)};
        t->buf = fs_buf_new(r->w->slab, t->bytes);
        if (t->buf == NULL)
            return out_of_memory(err);
        t->data = t->buf->data;
        if (fs_tensor_view_decode(view, 0, view->elements, t->data) != 0)
            return fs_fail(err, FS_INTERNAL, "%s", "");
    }
    return 0;
}

static int encode(const running *r, named_call *call, fs_error *err)
{
    const fs_executors_config *config = &r->w->runs->engine->config.executors;
    fs_slab *slab = r->w->slab;
    const fs_named_reply reply = {
        .model = fs_slice_of(r->servable->model),
        .version = r->servable->version,
        .names = r->request.fetches,
        .outputs = r->outputs,
        .n = r->request.n_fetches,
        .as_content = config->tensor_content,
    };
    size_t size = fs_named_reply_size(&reply);
    if (size == 0)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "the reply is larger than 2 GiB");
    uint8_t *frame = fs_slab_alloc(slab, size + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "no memory for a reply of %zu bytes", size);
    fs_named_reply_write(&reply, frame + FS_GRPC_PREFIX_BYTES);
    call->reply = fs_reply_frame(r->rpc, frame, size, config->compress_replies, slab, &call->reply_len);
    return 0;
}

/* On the version that was found, which is pinned. */
static int run(running *r, named_call *call, fs_error *err)
{
    const fs_runtime *runtime = &r->servable->runtime;
    if (runtime->run_named == NULL) {
        return fs_fail(err, FS_UNIMPLEMENTED,
                       "%s is run by its signatures only: its runtime, %s, has no graph with names; call Predict",
                       r->servable->model, runtime->ops->name);
    }
    fs_named_run named;
    int rc = name_ports(r, &named, err);
    if (rc != 0)
        return rc;
    r->inputs = fs_arena_alloc(&r->arena, (named.n_feeds + 1) * sizeof *r->inputs);
    r->outputs = fs_arena_alloc(&r->arena, (named.n_fetches + 1) * sizeof *r->outputs);
    if (r->inputs == NULL || r->outputs == NULL)
        return out_of_memory(err);
    rc = decode(r, err);
    if (rc == 0) {
        named.inputs = r->inputs;
        int64_t run_ns = fs_now_ns();
        rc = runtime->run_named(r->servable->handle, &named, r->outputs, err);
        if (FS_COUNTED(call->meter))
            fs_meter_time(&call->meter->compute, &call->meter->compute_sum, fs_now_ns() - run_ns);
        if (rc == 0) {
            rc = encode(r, call, err);
            for (uint32_t i = 0; i < named.n_fetches; i++)
                runtime->ops->release(&r->outputs[i]);
        }
    }
    for (uint32_t i = 0; i < named.n_feeds; i++)
        fs_buf_unref(r->inputs[i].buf); /* zeros where there is none */
    return rc;
}

/* Finds the version, as a Predict with these headers would, and runs it there. */
static int serve(running *r, named_call *call, fs_error *err)
{
    worker *w = r->w;
    fs_engine *engine = w->runs->engine;
    uint32_t refused = 0;
    int rc = look(r, &refused, err);
    if (rc != 0)
        return rc;
    fs_turn turn = {.kept = &r->rpc->kept, .random = &w->random, .unlogged = true};
    fs_epoch_enter(&engine->epoch, w->reader);
    if (fs_access_check(&engine->access, r->request.model.name, &r->rpc->bearer, err) == 0)
        r->servable = fs_catalog_find(engine->catalog, &r->request.model, &turn, err);
    fs_epoch_leave(w->reader);
    fs_route_unref(turn.route); /* its figures are of Predict */
    if (r->servable == NULL)
        return -err->code;
    w->pinned = r->servable;
    call->meter = r->servable->named_meter;
    if (FS_COUNTED(call->meter)) { /* it waits no more */
        fs_meter_pushed(call->meter, 1);
        fs_meter_left(call->meter, 1, 1);
    }
    if (refused < r->request.n_feeds) {
        fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
        fs_text_put(&text, "tensor parsing error: ");
        fs_text_put_slice(&text, r->request.feeds[refused]);
        rc = fs_text_end(&text);
    } else {
        rc = run(r, call, err);
    }
    return rc;
}

static int parse(running *r, fs_slice message, fs_error *err)
{
    switch (-fs_named_request_parse(&r->arena, message.data, message.len, &r->request)) {
    case FS_OK: return 0;
    case FS_INVALID_ARGUMENT:
        return fs_fail(err, FS_INVALID_ARGUMENT, "a run has at most %d feeds, fetches and targets each",
                       FS_NAMED_MAX);
    case FS_RESOURCE_EXHAUSTED: return out_of_memory(err);
    default: return fs_fail(err, FS_INTERNAL, "%s", ""); /* gRPC's own answer to what is no such message */
    }
}

static int perform(worker *w, named_call *call, fs_error *err)
{
    const fs_rpc *rpc = call->rpc;
    /* relaxed: a hint; the owner drops the reply of a cancelled call anyway. */
    if (atomic_load_explicit(&rpc->cancelled, memory_order_relaxed))
        return fs_fail(err, FS_CANCELLED, "%s", "");
    if (rpc->deadline_us <= call->begun_us)
        return fs_fail(err, FS_DEADLINE_EXCEEDED, "Deadline Exceeded");
    fs_slice message = {rpc->message, rpc->message_len};
    uint8_t *inflated = NULL;
    if (rpc->encoding != FS_IDENTITY) {
        int rc = fs_inflate(w->slab, rpc->encoding, rpc->message, rpc->message_len,
                            w->runs->engine->config.max_message_bytes, &inflated, &message.len, err);
        if (rc != 0)
            return rc;
        message.data = inflated;
    }
    running r = {.w = w, .rpc = rpc};
    fs_arena_init(&r.arena, w->slab);
    int rc = parse(&r, message, err);
    if (rc == 0)
        rc = serve(&r, call, err);
    fs_arena_clear(&r.arena);
    fs_slab_free(inflated);
    return rc;
}

/* ---- threads -------------------------------------------------------------------------------------- */

static void count_unresolved(const fs_owner *owner, const fs_rpc *rpc, int code)
{
    if (FS_COUNTED(owner->engine->metrics))
        fs_metrics_unresolved(owner->engine->metrics, FS_METRICS_SESSION_RUN, rpc->transport, code);
}

static void count_finished(const named_call *call)
{
    fs_meter *meter = call->meter;
    const fs_rpc *rpc = call->rpc;
    enum { METHOD = FS_METRICS_SESSION_RUN };
    fs_endings_add(&meter->requests, METHOD, rpc->transport, call->code);
    fs_meter_time(&meter->queue, &meter->queue_sum, (call->begun_us - rpc->arrived_us) * 1000);
    fs_meter_time(&meter->latency[METHOD][rpc->transport], &meter->latency_sum[METHOD][rpc->transport],
                  (call->owner->now_us - rpc->arrived_us) * 1000);
    fs_meter_finished(meter);
}

/* Back on the owner's thread: the reply becomes the session's. */
static void deliver(fs_mail *mail)
{
    named_call *call = (named_call *)mail;
    fs_owner *owner = call->owner;
    if (call->rpc->h2 != NULL)
        owner->touch(owner->ctx, call->rpc->conn);
    if (FS_COUNTED(call->meter))
        count_finished(call);
    else
        count_unresolved(owner, call->rpc, call->code);
    fs_rpc_finish(call->rpc, call->code, call->text, call->text_len, call->reply, call->reply_len);
    fs_slab_free(call->text);
    fs_slab_free(call);
}

static void *work(void *arg)
{
    worker *w = arg;
    fs_named_runs *runs = w->runs;
    fs_node *node;
    while ((node = fs_lane_take(&runs->lane)) != NULL) {
        named_call *call = (named_call *)node;
        /* relaxed: a number, which guards no memory. */
        atomic_fetch_sub_explicit(&runs->waiting, 1, memory_order_relaxed);
        fs_error err;
        call->begun_us = fs_now_us();
        if (perform(w, call, &err) != 0) {
            call->code = err.code;
            call->text = err.len > 0 ? fs_slab_alloc(w->slab, err.len) : NULL;
            if (call->text != NULL) {
                memcpy(call->text, err.msg, err.len);
                call->text_len = err.len;
            }
        }
        uint32_t wanted = fs_track_wanted(w->track);
        if (wanted != 0)
            fs_trace_named(w->track, wanted, call->rpc, w->pinned, call->code, call->begun_us, &w->random);
        fs_owner_post(call->owner, &call->mail);
        if (w->pinned != NULL)
            fs_servable_unpin(w->pinned, 1);
        w->pinned = NULL;
    }
    return NULL;
}

fs_named_runs *fs_named_runs_start(fs_engine *engine, int threads)
{
    size_t size = sizeof(fs_named_runs) + (size_t)threads * sizeof(worker);
    fs_named_runs *runs = aligned_alloc(64, (size + 63) & ~(size_t)63);
    if (runs == NULL)
        return NULL;
    memset(runs, 0, size);
    runs->engine = engine;
    fs_lane_init(&runs->lane);
    for (; runs->n_workers < threads; runs->n_workers++) {
        worker *w = &runs->workers[runs->n_workers];
        w->runs = runs;
        w->reader = fs_epoch_join(&engine->epoch);
        w->slab = w->reader != NULL ? fs_slab_new(SLAB_CACHE_BYTES) : NULL;
        if (w->slab == NULL) {
            fs_named_runs_stop(runs);
            return NULL;
        }
        w->random = (uint64_t)(w->reader - engine->epoch.readers) << 32; /* each a sequence of its own */
    }
    for (; runs->n_threads < threads; runs->n_threads++) {
        worker *w = &runs->workers[runs->n_threads];
        char name[24];
        snprintf(name, sizeof name, "fs-named-%d", runs->n_threads);
        w->track = fs_trace_track(engine->config.trace, name);
        if (pthread_create(&w->thread, NULL, work, w) != 0) {
            fs_named_runs_stop(runs);
            return NULL;
        }
        pthread_setname_np(w->thread, name);
    }
    return runs;
}

void fs_named_runs_stop(fs_named_runs *runs)
{
    if (runs == NULL)
        return;
    fs_lane_close(&runs->lane, runs->n_threads);
    for (int i = 0; i < runs->n_threads; i++)
        pthread_join(runs->workers[i].thread, NULL);
    for (int i = 0; i < runs->n_workers; i++)
        fs_slab_release(runs->workers[i].slab);
    fs_lane_destroy(&runs->lane);
    free(runs);
}

void fs_named_run_start(fs_owner *owner, fs_rpc *rpc)
{
    static const char memory[] = "out of memory", full[] = "too many runs by name are waiting already";
    fs_named_runs *runs = owner->engine->named_runs;
    /* relaxed: as above. */
    if (atomic_load_explicit(&runs->waiting, memory_order_relaxed) >= FS_NAMED_RUNS_WAITING) {
        count_unresolved(owner, rpc, FS_UNAVAILABLE);
        fs_rpc_finish(rpc, FS_UNAVAILABLE, full, sizeof full - 1, NULL, 0);
        return;
    }
    named_call *call = fs_slab_alloc(owner->slab, sizeof *call);
    if (call == NULL) {
        count_unresolved(owner, rpc, FS_RESOURCE_EXHAUSTED);
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, memory, sizeof memory - 1, NULL, 0);
        return;
    }
    *call = (named_call){.mail.deliver = deliver, .rpc = rpc, .owner = owner};
    atomic_fetch_add_explicit(&runs->waiting, 1, memory_order_relaxed);
    fs_lane_post(&runs->lane, &call->mail.node);
}
