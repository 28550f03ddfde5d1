/* engine_rig: an engine with an owner, an HTTP/2 session and a client in one thread, for tests of the serving
 * path.
 *
 * Included by the tests of csrc's engine files and their stress program. The models are the null runtime's
 * behind a probe, which logs every run and can hold runs at a gate, so that a test decides what waits
 * while what runs. */
#ifndef FS_ENGINE_RIG_H
#define FS_ENGINE_RIG_H

#include <poll.h>
#include <pthread.h>

#include "call.h"
#include "check.h"
#include "clock.h"
#include "engine.h"
#include "failmalloc.h"
#include "front.h"
#include "h2_peer.h"
#include "queue.h"
#include "runtime_null.h"
#include "wire.h"

/* A wait that takes longer is a lost wake-up. */
enum { RIG_PATIENCE_MS = 20000 };

/* ---- protobuf, written by hand ------------------------------------------------------------------ */

typedef struct pb {
    uint8_t *data;
    size_t len, room;
} pb;

static inline void pb_raw(pb *p, const void *data, size_t len)
{
    if (p->len + len > p->room) {
        p->room = (p->len + len) * 2 + 64;
        p->data = realloc(p->data, p->room);
        REQUIRE(p->data != NULL);
    }
    if (len > 0)
        memcpy(p->data + p->len, data, len);
    p->len += len;
}

static inline void pb_varint(pb *p, uint64_t v)
{
    uint8_t bytes[10];
    size_t n = 0;
    do {
        bytes[n] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        v >>= 7;
        n++;
    } while (v > 0);
    pb_raw(p, bytes, n);
}

static inline void pb_number(pb *p, unsigned field, uint64_t v)
{
    pb_varint(p, field << 3);
    pb_varint(p, v);
}

static inline void pb_bytes(pb *p, unsigned field, const void *data, size_t len)
{
    pb_varint(p, field << 3 | 2);
    pb_varint(p, len);
    pb_raw(p, data, len);
}

static inline void pb_text(pb *p, unsigned field, const char *text)
{
    pb_bytes(p, field, text, strlen(text));
}

/* Puts `part` as a message and frees it. */
static inline void pb_message(pb *p, unsigned field, pb *part)
{
    pb_bytes(p, field, part->data, part->len);
    free(part->data);
    *part = (pb){0};
}

/* ---- requests ----------------------------------------------------------------------------------- */

/* One input. Its values: tensor_content of `bytes` bytes, or `strings`, or the whole TensorProto. */
typedef struct rig_input {
    const char *alias;
    int dtype;
    int ndim;
    int64_t dims[4];
    const void *content;
    size_t bytes;
    const char *const *strings;
    int n_strings;
    const pb *proto;
} rig_input;

typedef struct rig_request {
    const char *model; /* NULL: no ModelSpec */
    const char *signature, *label;
    bool has_version;
    int64_t version;
    const rig_input *inputs;
    int n_inputs;
    const char *filter[4];
    int n_filter;
} rig_request;

static inline pb rig_tensor(const rig_input *in)
{
    pb t = {0}, shape = {0};
    pb_number(&t, 1, (uint64_t)in->dtype);
    for (int d = 0; d < in->ndim; d++) {
        pb dim = {0};
        if (in->dims[d] != 0)
            pb_number(&dim, 1, (uint64_t)in->dims[d]);
        pb_message(&shape, 2, &dim);
    }
    pb_message(&t, 2, &shape);
    if (in->bytes > 0)
        pb_bytes(&t, 4, in->content, in->bytes);
    for (int i = 0; i < in->n_strings; i++)
        pb_text(&t, 8, in->strings[i]);
    return t;
}

static inline pb rig_message(const rig_request *r)
{
    pb m = {0};
    if (r->model != NULL) {
        pb spec = {0};
        pb_text(&spec, 1, r->model);
        if (r->has_version) {
            pb version = {0};
            pb_number(&version, 1, (uint64_t)r->version);
            pb_message(&spec, 2, &version);
        }
        if (r->signature != NULL)
            pb_text(&spec, 3, r->signature);
        if (r->label != NULL)
            pb_text(&spec, 4, r->label);
        pb_message(&m, 1, &spec);
    }
    for (int i = 0; i < r->n_inputs; i++) {
        pb entry = {0}, tensor = {0};
        pb_text(&entry, 1, r->inputs[i].alias);
        if (r->inputs[i].proto != NULL)
            pb_raw(&tensor, r->inputs[i].proto->data, r->inputs[i].proto->len);
        else
            tensor = rig_tensor(&r->inputs[i]);
        pb_message(&entry, 2, &tensor);
        pb_message(&m, 2, &entry);
    }
    for (int i = 0; i < r->n_filter; i++)
        pb_text(&m, 3, r->filter[i]);
    return m;
}

/* A message behind gRPC's prefix; frees the message. */
static inline pb rig_frame(pb message)
{
    pb f = {0};
    uint8_t prefix[FS_GRPC_PREFIX_BYTES];
    fs_grpc_prefix_write(prefix, false, (uint32_t)message.len);
    pb_raw(&f, prefix, sizeof prefix);
    pb_raw(&f, message.data, message.len);
    free(message.data);
    return f;
}

static inline pb rig_request_frame(const rig_request *r)
{
    return rig_frame(rig_message(r));
}

/* Rows of one float each for input x of a model's serving_default. */
static inline pb rig_floats(const char *model, const float *values, int64_t rows)
{
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {rows}, .content = values,
                   .bytes = (size_t)rows * sizeof *values};
    return rig_request_frame(&(rig_request){.model = model, .inputs = &x, .n_inputs = 1});
}

/* ---- replies ------------------------------------------------------------------------------------ */

typedef struct rig_reply {
    fs_arena arena;
    int n_outputs;
    struct {
        char alias[16];
        fs_tensor_view view;
    } outputs[4];
    char model[32], signature[32];
    int64_t version;
} rig_reply;

static inline void rig_read_spec(rig_reply *reply, fs_slice bytes)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice s;
        REQUIRE(fs_wire_read_tag(&w, &tag) && (tag & 7) == FS_WIRE_BYTES && fs_wire_read_bytes(&w, &s));
        if (tag >> 3 == 1)
            peer_keep(reply->model, sizeof reply->model, s.data, s.len);
        if (tag >> 3 == 3)
            peer_keep(reply->signature, sizeof reply->signature, s.data, s.len);
        if (tag >> 3 == 2) {
            fs_wire v = fs_wire_over(s.data, s.len);
            uint64_t n;
            REQUIRE(fs_wire_read_tag(&v, &tag) && fs_wire_read_varint(&v, &n));
            reply->version = (int64_t)n;
        }
    }
}

/* Reads a gRPC frame with a PredictResponse. The caller clears the arena; views point into `frame`. */
static inline rig_reply rig_read(fs_slab *slab, const uint8_t *frame, size_t len)
{
    rig_reply reply = {.version = -1};
    fs_arena_init(&reply.arena, slab);
    REQUIRE(len >= FS_GRPC_PREFIX_BYTES && frame[0] == 0);
    REQUIRE(fs_grpc_prefix_len(frame) == len - FS_GRPC_PREFIX_BYTES);
    fs_wire w = fs_wire_over(frame + FS_GRPC_PREFIX_BYTES, len - FS_GRPC_PREFIX_BYTES);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes, alias = {0}, proto = {0};
        REQUIRE(fs_wire_read_tag(&w, &tag) && fs_wire_read_bytes(&w, &bytes));
        if (tag >> 3 == 2) {
            rig_read_spec(&reply, bytes);
            continue;
        }
        fs_wire entry = fs_wire_over(bytes.data, bytes.len);
        while (entry.at < entry.end) {
            fs_slice s;
            REQUIRE(fs_wire_read_tag(&entry, &tag) && fs_wire_read_bytes(&entry, &s));
            if (tag >> 3 == 1)
                alias = s;
            else
                proto = s;
        }
        REQUIRE(reply.n_outputs < 4);
        int i = reply.n_outputs++;
        peer_keep(reply.outputs[i].alias, sizeof reply.outputs[i].alias, alias.data, alias.len);
        REQUIRE(fs_tensor_view_parse(&reply.arena, proto.data, proto.len, &reply.outputs[i].view) == 0);
    }
    return reply;
}

/* Output 0 of a reply is `rows` floats, 0.5 x + 2 of `values`. */
static inline void rig_check_halves(fs_slab *slab, const uint8_t *frame, size_t len, const float *values,
                                    int64_t rows)
{
    rig_reply reply = rig_read(slab, frame, len);
    CHECK_EQ(reply.n_outputs, 1);
    CHECK_EQ(reply.outputs[0].view.dtype, FS_DT_FLOAT);
    CHECK_EQ(reply.outputs[0].view.elements, rows);
    if (reply.outputs[0].view.elements == rows) {
        float *got = malloc((size_t)rows * sizeof *got + 1);
        REQUIRE(got != NULL);
        CHECK_OK(fs_tensor_view_decode(&reply.outputs[0].view, 0, rows, got));
        long wrong = 0;
        for (int64_t i = 0; i < rows; i++)
            wrong += got[i] != 0.5f * values[i] + 2.0f;
        CHECK_EQ(wrong, 0);
        free(got);
    }
    fs_arena_clear(&reply.arena);
}

/* ---- the probe ---------------------------------------------------------------------------------- */

enum { PROBE_LOG = 8192 };

typedef struct probe {
    fs_runtime null;
    fs_runtime runtime; /* what models are opened with */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool shut;          /* runs wait at the gate */
    char only[16];      /* of the model with this name; empty: of all */
    int waiting;        /* at the gate */
    int running, most_running;
    int open_models;
    bool scalar_outputs; /* outputs lose their dims, as a signature's that is not row-wise */
    struct {
        char model[16];
        uint32_t signature;
        int variant;
        int64_t rows; /* dim 0 of input 0; -1: a scalar */
        int64_t inner; /* dim 1 of input 0; -1: none */
        pthread_t thread;
    } log[PROBE_LOG];
    int n_log;
    float seen[64]; /* the beginning of the last run's input 0, when those are floats */
    int64_t n_seen;
} probe;

typedef struct probe_model {
    probe *probe;
    fs_model *inner;
    char name[16];
} probe_model;

/* A model's path is "name" or "name null:options". */
static inline int probe_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    probe *p = self;
    probe_model *m = malloc(sizeof *m);
    if (m == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    fs_model_spec inner = *spec;
    size_t name = strcspn(spec->path, " ");
    inner.path = spec->path[name] == ' ' ? spec->path + name + 1 : "";
    *m = (probe_model){.probe = p};
    peer_keep(m->name, sizeof m->name, (const uint8_t *)spec->path, name);
    int rc = p->null.ops->open(p->null.self, &inner, &m->inner, err);
    if (rc != 0) {
        free(m);
        return rc;
    }
    pthread_mutex_lock(&p->mutex);
    p->open_models++;
    pthread_mutex_unlock(&p->mutex);
    *out = (fs_model *)m;
    return 0;
}

static inline void probe_close(fs_model *model)
{
    probe_model *m = (probe_model *)model;
    pthread_mutex_lock(&m->probe->mutex);
    m->probe->open_models--;
    pthread_mutex_unlock(&m->probe->mutex);
    m->probe->null.ops->close(m->inner);
    free(m);
}

static inline int probe_run(fs_model *model, uint32_t sig, enum fs_run_variant variant,
                            const fs_tensor *inputs, fs_tensor *outputs, fs_error *err)
{
    probe_model *m = (probe_model *)model;
    probe *p = m->probe;
    pthread_mutex_lock(&p->mutex);
    if (p->n_log < PROBE_LOG) {
        int i = p->n_log++;
        memcpy(p->log[i].model, m->name, sizeof m->name);
        p->log[i].signature = sig;
        p->log[i].variant = variant;
        p->log[i].rows = inputs[0].ndim > 0 ? inputs[0].dims[0] : -1;
        p->log[i].inner = inputs[0].ndim > 1 ? inputs[0].dims[1] : -1;
        p->log[i].thread = pthread_self();
    }
    if (inputs[0].dtype == FS_DT_FLOAT) {
        p->n_seen = inputs[0].elements;
        memcpy(p->seen, inputs[0].data, (size_t)(p->n_seen < 64 ? p->n_seen : 64) * sizeof(float));
    }
    p->running++;
    if (p->running > p->most_running)
        p->most_running = p->running;
    p->waiting++;
    pthread_cond_broadcast(&p->changed);
    while (p->shut && (p->only[0] == '\0' || strcmp(p->only, m->name) == 0))
        pthread_cond_wait(&p->changed, &p->mutex);
    p->waiting--;
    bool scalar = p->scalar_outputs;
    pthread_mutex_unlock(&p->mutex);
    int rc = p->null.ops->run(m->inner, sig, variant, inputs, outputs, err);
    if (rc == 0 && scalar) {
        outputs[0].ndim = 0;
        outputs[0].elements = 1;
    }
    pthread_mutex_lock(&p->mutex);
    p->running--;
    pthread_mutex_unlock(&p->mutex);
    return rc;
}

/* The null runtime's; an output does not say which model it is of. */
static void (*probe_null_release)(fs_tensor *output);

static inline void probe_release(fs_tensor *output)
{
    probe_null_release(output);
}

static const fs_runtime_ops PROBE_OPS = {
    .name = "probe", .open = probe_open, .run = probe_run, .release = probe_release, .close = probe_close};

static inline void probe_start(probe *p)
{
    fs_error err;
    REQUIRE(fs_runtime_null(NULL, &p->null, &err) == 0);
    probe_null_release = p->null.ops->release;
    p->runtime = (fs_runtime){.ops = &PROBE_OPS, .self = p};
    REQUIRE(pthread_mutex_init(&p->mutex, NULL) == 0 && pthread_cond_init(&p->changed, NULL) == 0);
}

static inline void probe_stop(probe *p)
{
    CHECK_EQ(p->open_models, 0);
    fs_runtime_null_free(&p->null);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
}

static inline void probe_gate(probe *p, bool shut)
{
    pthread_mutex_lock(&p->mutex);
    p->shut = shut;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

/* Waits until `n` runs are at the gate. */
static inline void probe_wait(probe *p, int n)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += RIG_PATIENCE_MS / 1000;
    pthread_mutex_lock(&p->mutex);
    while (p->waiting < n)
        REQUIRE(pthread_cond_timedwait(&p->changed, &p->mutex, &until) == 0);
    pthread_mutex_unlock(&p->mutex);
}

static inline void probe_forget(probe *p)
{
    pthread_mutex_lock(&p->mutex);
    p->n_log = 0;
    p->most_running = 0;
    pthread_mutex_unlock(&p->mutex);
}

static inline int probe_runs(probe *p)
{
    pthread_mutex_lock(&p->mutex);
    int n = p->n_log;
    pthread_mutex_unlock(&p->mutex);
    return n;
}

/* ---- models ------------------------------------------------------------------------------------- */

enum { RIG_HALF, RIG_PAIR, RIG_RAGGED, RIG_TEXT, RIG_SCALAR, RIG_SIGNATURES, RIG_MAX_SIGNATURES = 16 };

/* What the models of the tests have: serving_default is x[n] -> y[n]; pair has two inputs of known row
 * shapes; ragged rows of unknown length; text strings; scalar is not batched. */
static inline const fs_signature *rig_signatures(void)
{
    static int64_t n[] = {-1}, n2[] = {-1, 2}, nn[] = {-1, -1};
    static fs_port x[] = {{"x", "x:0", FS_DT_FLOAT, 1, n}}, y[] = {{"y", "y:0", FS_DT_FLOAT, 1, n}};
    static fs_port ab[] = {{"a", "a:0", FS_DT_FLOAT, 2, n2}, {"b", "b:0", FS_DT_FLOAT, 1, n}};
    static fs_port pq[] = {{"p", "p:0", FS_DT_FLOAT, 2, n2}, {"q", "q:0", FS_DT_FLOAT, 1, n}};
    static fs_port r[] = {{"x", "r:0", FS_DT_FLOAT, 2, nn}}, s[] = {{"x", "s:0", FS_DT_STRING, 1, n}};
    static fs_port c[] = {{"x", "c:0", FS_DT_FLOAT, 0, NULL}};
    static const fs_signature signatures[RIG_SIGNATURES] = {
        [RIG_HALF] = {"serving_default", x, 1, y, 1, NULL}, [RIG_PAIR] = {"pair", ab, 2, pq, 2, NULL},
        [RIG_RAGGED] = {"ragged", r, 1, r, 1, NULL},        [RIG_TEXT] = {"text", s, 1, s, 1, NULL},
        [RIG_SCALAR] = {"scalar", c, 1, c, 1, NULL},
    };
    return signatures;
}

typedef struct rig_model {
    const char *name;
    int64_t version;
    char path[64];
    fs_model_spec spec;
    fs_signature_plan plans[RIG_MAX_SIGNATURES];
    fs_batching batching;
    fs_servable *servable; /* loaded */
} rig_model;

/* A model of that name with batches of up to 8 rows; the caller changes what it likes before loading it. */
static inline rig_model rig_model_make(const char *name, int64_t version, const char *options)
{
    rig_model m = {.name = name, .version = version};
    snprintf(m.path, sizeof m.path, options == NULL ? "%s" : "%s null:%s", name, options);
    m.spec = (fs_model_spec){.signatures = rig_signatures(), .n_signatures = RIG_SIGNATURES};
    for (int i = 0; i < RIG_SIGNATURES; i++) {
        m.plans[i] = (fs_signature_plan){.batched = i != RIG_SCALAR, .n_buckets = 4, .buckets = {1, 2, 4, 8}};
    }
    m.batching = (fs_batching){
        .max_batch_size = 8, .max_enqueued_batches = 1000, .split_large = true, .weight = 1};
    return m;
}

/* ---- the policy --------------------------------------------------------------------------------- */

/* The ripe queue that was given the least. */
static inline int rig_pick(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us)
{
    int best = -1;
    *wait_until_us = INT64_MAX;
    for (int i = 0; i < n; i++) {
        if (queues[i].ready_us > now_us) {
            if (queues[i].ready_us < *wait_until_us)
                *wait_until_us = queues[i].ready_us;
        } else if (best < 0 || queues[i].virtual_us < queues[best].virtual_us) {
            best = i;
        }
    }
    return best;
}

/* All that wait. */
static inline int64_t rig_plan(const fs_plan_view *view)
{
    return view->rows < view->max_rows ? view->rows : view->max_rows;
}

static const fs_policy RIG_POLICY = {rig_pick, rig_plan};

/* ---- the rig ------------------------------------------------------------------------------------ */

#define RIG_PREDICT "/tensorflow.serving.PredictionService/Predict"
#define RIG_CLASSIFY "/tensorflow.serving.PredictionService/Classify"
#define RIG_REGRESS "/tensorflow.serving.PredictionService/Regress"
#define RIG_MULTI_INFERENCE "/tensorflow.serving.PredictionService/MultiInference"

/* One owner thread's things: a connection and the client at its other end. */
typedef struct rig_end {
    fs_mailbox box;
    fs_slab *slab;
    fs_owner owner;
    fs_front_ctx ctx;
    fs_h2 *h2;
    peer *peer;
    long touched;
} rig_end;

typedef struct rig {
    probe probe;
    fs_engine *engine;
    fs_front front;
    fs_budget budget;
    fs_h2_limits limits;
    rig_end end;
} rig;

static inline fs_engine_config rig_config(int threads)
{
    return (fs_engine_config){.executors = {.threads = threads}, .loader.threads = 1,
                              .max_message_bytes = 4 << 20, .max_compressed_bytes = 1 << 20};
}

static inline void rig_touch(void *ctx, void *conn)
{
    rig_end *end = ctx;
    CHECK(conn == end);
    end->touched++;
}

static inline void rig_end_open(rig *r, rig_end *end)
{
    REQUIRE(fs_mailbox_open(&end->box) == 0);
    REQUIRE((end->slab = fs_slab_new(16 << 20)) != NULL);
    REQUIRE(fs_engine_join(r->engine, &end->owner, &end->box, end->slab, rig_touch, end) == 0);
    end->owner.track = fs_trace_track(r->engine->config.trace, "loop");
    end->ctx = (fs_front_ctx){.front = &r->front, .owner = &end->owner};
    end->h2 = fs_h2_new(&r->limits, &fs_front_handler, &end->ctx, end, &r->budget, end->slab, fs_now_us());
    REQUIRE(end->h2 != NULL);
    end->peer = peer_new(end->h2, 1 << 24);
}

static inline void rig_end_close(rig_end *end)
{
    if (end->h2 != NULL)
        fs_h2_free(end->h2);
    peer_free(end->peer);
    fs_mailbox_close(&end->box);
    fs_slab_release(end->slab);
}

static inline rig *rig_start(const fs_engine_config *config)
{
    rig *r = calloc(1, sizeof *r);
    REQUIRE(r != NULL);
    probe_start(&r->probe);
    REQUIRE((r->engine = fs_engine_start(config, &RIG_POLICY)) != NULL);
    r->budget.limit = 256 << 20;
    r->limits = (fs_h2_limits){.max_concurrent_streams = 4000, .max_header_bytes = 16384,
                               .max_message_bytes = 64 << 20, .max_conn_bytes = 256 << 20,
                               .window_bytes = 1 << 24, .reset_burst = 10000, .reset_per_s = 10000,
                               .chatter_burst = 100000, .chatter_per_s = 100000,
                               .request_timeout_us = 60000000, .stall_timeout_us = 60000000};
    REQUIRE(fs_front_add_engine(&r->front, RIG_PREDICT, FS_CALL_PREDICT) == 0);
    REQUIRE(fs_front_add_engine(&r->front, RIG_CLASSIFY, FS_CALL_CLASSIFY) == 0);
    REQUIRE(fs_front_add_engine(&r->front, RIG_REGRESS, FS_CALL_REGRESS) == 0);
    REQUIRE(fs_front_add_engine(&r->front, RIG_MULTI_INFERENCE, FS_CALL_MULTI_INFERENCE) == 0);
    r->limits.sticky = fs_catalog_sticky(r->engine->catalog);
    r->limits.trace = config->trace;
    r->front.loop = &r->end.owner;
    rig_end_open(r, &r->end);
    return r;
}

/* Every call is answered and every model unloaded. */
static inline void rig_stop(rig *r)
{
    CHECK_EQ(fs_h2_active_calls(r->end.h2), 0);
    rig_end_close(&r->end);
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    fs_engine_stop(r->engine);
    probe_stop(&r->probe);
    free(r);
}

/* Delivers the mail there is, after at most `ms` milliseconds; what is to be said goes out. */
static inline void rig_turn(rig_end *end, int ms)
{
    struct pollfd p = {.fd = end->box.fd, .events = POLLIN};
    poll(&p, 1, ms);
    fs_owner_deliver(&end->owner);
    end->peer->now_us = fs_now_us();
    peer_pump(end->peer);
}

/* ---- tasks -------------------------------------------------------------------------------------- */

typedef struct rig_task {
    fs_task task; /* first */
    bool done;
} rig_task;

static inline void rig_task_done(fs_mail *mail)
{
    ((rig_task *)mail)->done = true;
}

static inline void rig_post(rig *r, rig_task *t)
{
    t->task.mail.deliver = rig_task_done;
    t->task.home = &r->end.owner;
    t->done = false;
    fs_loader_post(r->engine->loader, &t->task);
}

static inline void rig_await(rig *r, const rig_task *t)
{
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (!t->done) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&r->end, 100);
    }
}

static inline rig_task rig_task_of(rig_model *m, enum fs_task_kind kind)
{
    m->spec.path = m->path;
    return (rig_task){.task = {.kind = kind, .model = m->name, .version = m->version, .spec = &m->spec,
                               .plans = m->plans, .batching = m->batching, .warm.iterations = 1,
                               .servable = m->servable}};
}

/* Posts a task about a model and waits for its end; its rc. */
static inline int rig_do(rig *r, rig_model *m, enum fs_task_kind kind)
{
    rig_task t = rig_task_of(m, kind);
    t.task.runtime = r->probe.runtime;
    rig_post(r, &t);
    rig_await(r, &t);
    if (kind == FS_TASK_LOAD && t.task.rc == 0)
        m->servable = t.task.servable;
    return t.task.rc;
}

/* Loads and publishes; the warm-up's runs are forgotten. */
static inline void rig_serve(rig *r, rig_model *m)
{
    REQUIRE(rig_do(r, m, FS_TASK_LOAD) == 0);
    REQUIRE(rig_do(r, m, FS_TASK_PUBLISH) == 0);
    probe_forget(&r->probe);
}

static inline void rig_unserve(rig *r, rig_model *m)
{
    CHECK_OK(rig_do(r, m, FS_TASK_RETIRE));
    CHECK_OK(rig_do(r, m, FS_TASK_CLOSE));
}

/* Sets model `name`'s route, or takes it away (NULL). */
static inline void rig_route(rig *r, const char *name, fs_route *route)
{
    rig_task t = {.task = {.kind = FS_TASK_ROUTE, .model = name, .route = route}};
    rig_post(r, &t);
    rig_await(r, &t);
    CHECK_OK(t.task.rc);
}

/* ---- calls -------------------------------------------------------------------------------------- */

/* Sends a request whose frame outlives the call. */
static inline peer_call *rig_send_to(rig_end *end, const char *path, const pb *frame, const char *timeout)
{
    peer_call *c = peer_submit(end->peer, (peer_request){.path = path, .up = frame->data,
                                                         .up_len = frame->len, .timeout = timeout});
    end->peer->now_us = fs_now_us();
    peer_pump(end->peer);
    return c;
}

static inline peer_call *rig_send(rig_end *end, const pb *frame, const char *timeout)
{
    return rig_send_to(end, RIG_PREDICT, frame, timeout);
}

/* Waits until every call of the client is answered. */
static inline void rig_settle(rig_end *end)
{
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    for (int i = 0; i < end->peer->n_calls; i++) {
        while (!end->peer->calls[i].closed) {
            REQUIRE(fs_now_us() < until_us);
            rig_turn(end, 100);
        }
    }
}

/* One request from its bytes to its answer; frees the frame. */
static inline peer_call *rig_call_to(rig *r, const char *path, pb frame)
{
    peer_call *c = rig_send_to(&r->end, path, &frame, NULL);
    rig_settle(&r->end);
    free(frame.data);
    return c;
}

static inline peer_call *rig_call(rig *r, pb frame)
{
    return rig_call_to(r, RIG_PREDICT, frame);
}

/* No call holds the model, now or in a moment: an executor lets go of it after it has answered. */
static inline void rig_check_idle(const rig_model *m)
{
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&m->servable->pins) != 1)
        REQUIRE(fs_now_us() < until_us);
    for (uint32_t q = 0; q < m->servable->n_queues; q++) {
        CHECK_EQ(atomic_load(&m->servable->queues[q].calls_waiting), 0);
        CHECK_EQ(atomic_load(&m->servable->queues[q].rows_waiting), 0);
    }
}

/* A call's grpc-message, percent-decoded in place. */
static inline const char *rig_text(peer_call *c)
{
    char *to = c->grpc_message;
    for (const char *from = c->grpc_message; *from != '\0'; to++) {
        unsigned byte;
        if (*from == '%' && sscanf(from + 1, "%2x", &byte) == 1) {
            *to = (char)byte;
            from += 3;
        } else {
            *to = *from++;
        }
    }
    *to = '\0';
    return c->grpc_message;
}

/* The call was answered with this code and text. */
#define CHECK_ANSWER(call, code, text)                                                             \
    do {                                                                                           \
        peer_call *check_call = (call);                                                            \
        CHECK(check_call->closed);                                                                 \
        CHECK_EQ(atoi(check_call->grpc_status), code);                                             \
        CHECK_STR(rig_text(check_call), text);                                                     \
    } while (0)

/* ---- calls without memory ------------------------------------------------------------------------ */

/* All that a client says for one call before it hears a word of the server. */
static inline pb rig_opening_bytes(const char *path, const pb *frame)
{
    peer *p = peer_new(NULL, 1 << 24);
    peer_submit(p, (peer_request){.path = path, .up = frame->data, .up_len = frame->len});
    pb bytes = {0};
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(p->client, &data)) > 0)
        pb_raw(&bytes, data, (size_t)n);
    peer_free(p);
    return bytes;
}

/* One call on a connection and a slab of its own while the n-th allocation fails. Whatever happens, the
 * call is the engine's no more afterwards. Whether there was such an allocation. */
static inline bool rig_call_without_memory(rig *r, rig_model *m, const pb *bytes, long n)
{
    rig_end *end = &r->end;
    fs_slab *slab = end->slab;
    REQUIRE((end->slab = end->owner.slab = fs_slab_new(1 << 20)) != NULL);
    failmalloc_after(n);
    fs_h2 *h2 = fs_h2_new(&r->limits, &fs_front_handler, &end->ctx, end, &r->budget, end->slab, fs_now_us());
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    if (h2 != NULL) {
        fs_h2_recv(h2, bytes->data, bytes->len, fs_now_us());
        static uint8_t out[PEER_ROOM];
        /* The last of its pins goes after its mail is posted. */
        do {
            REQUIRE(fs_now_us() < until_us);
            bool unpinned = atomic_load(&m->servable->pins) == 1;
            struct pollfd p = {.fd = end->box.fd, .events = POLLIN};
            poll(&p, 1, unpinned ? 0 : 20);
            fs_owner_deliver(&end->owner);
            while (fs_h2_send(h2, out, sizeof out, fs_now_us()) > 0) {
            }
            if (unpinned)
                break;
        } while (true);
        fs_h2_free(h2);
    }
    failmalloc_after(-1);
    bool fired = failmalloc_fired();
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    fs_slab_release(end->slab);
    end->slab = end->owner.slab = slab;
    return fired;
}

/* ---- calls without a connection ----------------------------------------------------------------- */

/* A call of a queue as fs_call_start leaves it, of an rpc that is nobody's. */
static inline fs_call *rig_fake_call(fs_owner *owner, fs_queue *queue, const rig_input *inputs, int64_t rows)
{
    fs_call *call = fs_slab_alloc(owner->slab, sizeof *call);
    fs_rpc *rpc = calloc(1, sizeof *rpc);
    REQUIRE(call != NULL && rpc != NULL);
    memset(call, 0, sizeof *call);
    rpc->deadline_us = INT64_MAX;
    rpc->arrived_us = fs_now_us();
    call->rpc = rpc;
    call->owner = owner;
    call->queue = queue;
    call->rows = rows;
    fs_arena_init(&call->arena, owner->slab);
    const fs_signature *sig = queue->signature;
    call->views = fs_arena_alloc(&call->arena, sig->n_inputs * sizeof *call->views);
    call->outputs = fs_arena_alloc(&call->arena, sig->n_outputs * sizeof *call->outputs);
    REQUIRE(call->views != NULL && call->outputs != NULL);
    call->rows_only = queue->static_inner;
    for (uint32_t i = 0; i < sig->n_inputs; i++) {
        pb t = rig_tensor(&inputs[i]);
        uint8_t *bytes = fs_arena_alloc(&call->arena, t.len);
        REQUIRE(bytes != NULL);
        memcpy(bytes, t.data, t.len);
        REQUIRE(fs_tensor_view_parse(&call->arena, bytes, t.len, &call->views[i]) == 0);
        free(t.data);
    }
    for (uint32_t i = 0; i < sig->n_outputs; i++)
        call->outputs[call->n_outputs++] = i;
    if (rows > queue->servable->batching.max_batch_size) {
        call->join = fs_arena_alloc(&call->arena, sizeof *call->join);
        REQUIRE(call->join != NULL && pthread_mutex_init(&call->join->mutex, NULL) == 0);
        size_t inputs_bytes = queue->signature->n_inputs * sizeof *call->join->inputs;
        call->join->inputs = fs_arena_alloc(&call->arena, inputs_bytes);
        REQUIRE(call->join->inputs != NULL);
        memset(call->join->inputs, 0, inputs_bytes);
    }
    return call;
}

static inline void rig_fake_free(fs_call *call)
{
    if (call->join != NULL)
        pthread_mutex_destroy(&call->join->mutex);
    free(call->rpc);
    fs_slab_free(call->text);
    fs_slab_free(call->reply);
    fs_arena_clear(&call->arena);
    fs_slab_free(call);
}

#endif
