/* test_named_run: SessionRun calls from their bytes to their answers. */
#include "engine_rig.h"

#include "failmalloc.h"
#include "metrics_rig.h"
#include "named_request.h"

#include <zlib.h>

#define SESSION_RUN "/tensorflow.serving.SessionService/SessionRun"

static const float ONE[] = {1}, TWO[] = {2, 3};

/* ---- a runtime with names: every fetch is the first feed, through the model's default signature ---- */

static struct {
    pthread_mutex_t mutex;
    char names[256]; /* of the last run: feeds>fetches/targets */
    int runs;
} said = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void say(const fs_slice *names, uint32_t n, const char *after)
{
    for (uint32_t i = 0; i < n; i++) {
        strncat(said.names, (const char *)names[i].data, names[i].len);
        strcat(said.names, i + 1 < n ? "," : "");
    }
    strcat(said.names, after);
}

static int run_named(fs_model *model, const fs_named_run *run, fs_tensor *outputs, fs_error *err)
{
    pthread_mutex_lock(&said.mutex);
    said.names[0] = '\0';
    said.runs++;
    say(run->feeds, run->n_feeds, ">");
    say(run->fetches, run->n_fetches, "/");
    say(run->targets, run->n_targets, "");
    pthread_mutex_unlock(&said.mutex);
    for (uint32_t i = 0; i < run->n_fetches; i++) {
        int rc = probe_run(model, RIG_HALF, FS_RUN_PLAIN, run->inputs, &outputs[i], err);
        for (; rc != 0 && i > 0; i--)
            probe_release(&outputs[i - 1]);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static rig *start_counting(int threads, fs_metrics *metrics)
{
    fs_engine_config config = rig_config(1);
    config.named_run_threads = threads;
    config.metrics = metrics;
    rig *r = rig_start(&config);
    REQUIRE(fs_front_add_named_run(&r->front, SESSION_RUN) == 0);
    r->probe.runtime.run_named = run_named;
    said.runs = 0;
    return r;
}

static rig *start(int threads)
{
    return start_counting(threads, NULL);
}

/* Threads first: one may not be done with the mailbox that it has posted to. */
static void stop(rig *r)
{
    fs_named_runs_stop(r->engine->named_runs);
    r->engine->named_runs = NULL;
    rig_stop(r);
}

/* ---- requests ----------------------------------------------------------------------------------- */

typedef struct wanted {
    const char *model, *signature, *label;
    int64_t version; /* 0: none */
    const rig_input *feeds;
    int n_feeds;
    const char *fetches[4], *targets[4];
    bool aliases;
} wanted;

static pb message_of(const wanted *want)
{
    pb m = rig_message(&(rig_request){.model = want->model, .signature = want->signature, .label = want->label,
                                      .has_version = want->version != 0, .version = want->version});
    for (int i = 0; i < want->n_feeds; i++) {
        pb feed = {0}, tensor = {0};
        pb_text(&feed, 1, want->feeds[i].alias);
        if (want->feeds[i].proto != NULL)
            pb_raw(&tensor, want->feeds[i].proto->data, want->feeds[i].proto->len);
        else
            tensor = rig_tensor(&want->feeds[i]);
        pb_message(&feed, 2, &tensor);
        pb_message(&m, 2, &feed);
    }
    for (int i = 0; i < 4 && want->fetches[i] != NULL; i++)
        pb_text(&m, 3, want->fetches[i]);
    for (int i = 0; i < 4 && want->targets[i] != NULL; i++)
        pb_text(&m, 4, want->targets[i]);
    if (want->aliases)
        pb_number(&m, 6, 1);
    return m;
}

static rig_input feed_of(const char *name, const float *values, int64_t rows)
{
    return (rig_input){.alias = name, .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {rows}, .content = values,
                       .bytes = (size_t)rows * sizeof *values};
}

static peer_call *send_frame(rig *r, const pb *frame, const char *timeout, const char *encoding)
{
    peer_call *c = peer_submit(r->end.peer,
                               (peer_request){.path = SESSION_RUN, .up = frame->data, .up_len = frame->len,
                                              .timeout = timeout, .encoding = encoding, .accept = encoding});
    r->end.peer->now_us = fs_now_us();
    peer_pump(r->end.peer);
    return c;
}

static peer_call *call(rig *r, const wanted *want)
{
    pb frame = rig_frame(message_of(want));
    peer_call *c = send_frame(r, &frame, NULL, NULL);
    rig_settle(&r->end);
    free(frame.data);
    return c;
}

/* ---- replies ------------------------------------------------------------------------------------- */

/* The answer has these names, each with 0.5 x + 2 of `values`, and this version. */
static void check_reply(rig *r, const uint8_t *frame, size_t len, const char *const *names, const float *values,
                        int64_t rows, int64_t version)
{
    REQUIRE(len >= FS_GRPC_PREFIX_BYTES && fs_grpc_prefix_len(frame) == len - FS_GRPC_PREFIX_BYTES);
    fs_arena arena;
    fs_arena_init(&arena, r->end.slab);
    fs_wire w = fs_wire_over(frame + FS_GRPC_PREFIX_BYTES, len - FS_GRPC_PREFIX_BYTES);
    int tensors = 0;
    rig_reply spec = {.version = -1};
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes, name = {0}, proto = {0};
        REQUIRE(fs_wire_read_tag(&w, &tag) && fs_wire_read_bytes(&w, &bytes));
        if (tag >> 3 == 3) {
            rig_read_spec(&spec, bytes);
            continue;
        }
        CHECK_EQ(tag >> 3, 1);
        fs_wire entry = fs_wire_over(bytes.data, bytes.len);
        REQUIRE(fs_wire_read_tag(&entry, &tag) && tag >> 3 == 1 && fs_wire_read_bytes(&entry, &name));
        REQUIRE(fs_wire_read_tag(&entry, &tag) && tag >> 3 == 2 && fs_wire_read_bytes(&entry, &proto));
        REQUIRE(names[tensors] != NULL);
        CHECK_EQ(name.len, strlen(names[tensors]));
        CHECK_MEM(name.data, names[tensors], name.len);
        fs_tensor_view view;
        REQUIRE(fs_tensor_view_parse(&arena, proto.data, proto.len, &view) == 0);
        REQUIRE(view.elements == rows && rows <= 8);
        float got[8];
        CHECK_OK(fs_tensor_view_decode(&view, 0, rows, got));
        for (int64_t i = 0; i < rows; i++)
            CHECK(got[i] == 0.5f * values[i] + 2.0f);
        tensors++;
    }
    CHECK(names[tensors] == NULL);
    CHECK_STR(spec.model, "m");
    CHECK_STR(spec.signature, "");
    CHECK_EQ(spec.version, version);
    fs_arena_clear(&arena);
}

/* ---- tests --------------------------------------------------------------------------------------- */

static void test_names_go_in_and_tensors_come_out(void)
{
    rig *r = start(2);
    rig_model old = rig_model_make("m", 3, NULL), fresh = rig_model_make("m", 7, NULL);
    rig_serve(r, &old);
    rig_serve(r, &fresh);
    rig_input feeds[] = {feed_of("in:0", TWO, 2), feed_of("other", ONE, 1)};
    wanted want = {.model = "m", .feeds = feeds, .n_feeds = 2, .fetches = {"a:0", "b"}, .targets = {"init", "t"}};
    peer_call *c = call(r, &want);
    CHECK_ANSWER(c, FS_OK, "");
    check_reply(r, c->body, c->body_len, (const char *const[]){"a:0", "b", NULL}, TWO, 2, 7);
    CHECK_STR(said.names, "in:0,other>a:0,b/init,t");

    want = (wanted){.model = "m", .version = 3, .targets = {"init"}};
    c = call(r, &want);
    CHECK_ANSWER(c, FS_OK, "");
    check_reply(r, c->body, c->body_len, (const char *const[]){NULL}, NULL, 0, 3);
    CHECK_STR(said.names, ">/init");
    rig_check_idle(&old);
    rig_check_idle(&fresh);
    rig_unserve(r, &old);
    rig_unserve(r, &fresh);
    stop(r);
}

static void test_aliases_are_a_signatures(void)
{
    rig *r = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    rig_input x = feed_of("x", ONE, 1), a = feed_of("a", TWO, 2);
    wanted want = {.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y"}, .targets = {"y"}, .aliases = true};
    peer_call *c = call(r, &want);
    CHECK_ANSWER(c, FS_OK, "");
    check_reply(r, c->body, c->body_len, (const char *const[]){"y", NULL}, ONE, 1, 1);
    CHECK_STR(said.names, "x:0>y:0/y");
    want = (wanted){.model = "m", .signature = "pair", .feeds = &a, .n_feeds = 1, .fetches = {"q", "p"},
                    .aliases = true};
    CHECK_ANSWER(call(r, &want), FS_OK, "");
    CHECK_STR(said.names, "a:0>q:0,p:0/");
    want.fetches[1] = "y";
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "tensor alias not found in signature: y");
    want.feeds = &x;
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "tensor alias not found in signature: x");
    want.signature = "none";
    CHECK_ANSWER(call(r, &want), FS_FAILED_PRECONDITION, "Serving signature key \"none\" not found.");
    CHECK_EQ(said.runs, 2);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    stop(r);
}

static void test_what_is_refused(void)
{
    rig *r = start(1);
    rig_model m = rig_model_make("m", 1, NULL), plain = rig_model_make("plain", 1, NULL);
    rig_serve(r, &m);
    r->probe.runtime.run_named = NULL;
    rig_serve(r, &plain);
    pb no_dtype = {0}, garbage = {0}, variant = {0}, huge = {0}, shape = {0}, dim = {0};
    pb_number(&variant, 1, FS_DT_VARIANT);
    pb_raw(&garbage, "\x0a", 1);
    pb_number(&huge, 1, FS_DT_INT64);
    pb_number(&dim, 1, (uint64_t)1 << 40);
    pb_message(&shape, 2, &dim);
    pb_message(&huge, 2, &shape);
    rig_input x = feed_of("x:0", ONE, 1), bad = {.alias = "bad:0", .proto = &no_dtype};
    rig_input odd = {.alias = "odd:0", .proto = &variant}, none = {.alias = "none", .proto = &garbage};
    rig_input large = {.alias = "large", .proto = &huge};

    wanted want = {.feeds = &x, .n_feeds = 1, .fetches = {"y:0"}};
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "Missing ModelSpec");
    want.model = "";
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "ModelSpec has no name specified.");
    want.model = "other";
    CHECK_ANSWER(call(r, &want), FS_NOT_FOUND, "Servable not found for request: Latest(other)");
    want.model = "m";
    want.version = 5;
    CHECK_ANSWER(call(r, &want), FS_NOT_FOUND, "Servable not found for request: Specific(m, 5)");
    want.version = 0;
    want.label = "new";
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "Unrecognized servable version label: new");
    want.label = NULL;
    want.model = "plain";
    CHECK_ANSWER(call(r, &want), FS_UNIMPLEMENTED,
                 "plain is run by its signatures only: its runtime, probe, has no graph with names; call Predict");
    want.model = "m";
    want.feeds = &bad;
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "tensor parsing error: bad:0");
    want.feeds = &odd;
    CHECK_ANSWER(call(r, &want), FS_INVALID_ARGUMENT, "tensor parsing error: odd:0");
    want.feeds = &none;
    CHECK_ANSWER(call(r, &want), FS_INTERNAL, "");
    want.model = "other"; /* what is no message is none, whatever else is wrong */
    CHECK_ANSWER(call(r, &want), FS_INTERNAL, "");
    want.model = "m";
    want.feeds = &large;
    CHECK_ANSWER(call(r, &want), FS_RESOURCE_EXHAUSTED,
                 "feeds of more than 4194304 bytes once decoded (limits.max_message_bytes)");
    CHECK_EQ(said.runs, 0);

    rig_model fails = rig_model_make("fails", 1, "fail_every=1");
    r->probe.runtime.run_named = run_named;
    rig_serve(r, &fails);
    want = (wanted){.model = "fails", .feeds = &x, .n_feeds = 1, .fetches = {"y", "z"}};
    peer_call *c = call(r, &want);
    CHECK_EQ(atoi(c->grpc_status), FS_INTERNAL);
    CHECK(strstr(rig_text(c), "failed as configured") != NULL);
    rig_check_idle(&m);
    rig_check_idle(&plain);
    rig_check_idle(&fails);
    rig_unserve(r, &m);
    rig_unserve(r, &plain);
    rig_unserve(r, &fails);
    stop(r);
    free(garbage.data);
    free(variant.data);
    free(huge.data);
}

static void test_too_many_names_are_refused(void)
{
    rig *r = start(1);
    pb m = message_of(&(wanted){.model = "m"});
    for (int i = 0; i <= FS_NAMED_MAX; i++)
        pb_text(&m, 3, "y");
    pb frame = rig_frame(m);
    peer_call *c = send_frame(r, &frame, NULL, NULL);
    rig_settle(&r->end);
    CHECK_ANSWER(c, FS_INVALID_ARGUMENT, "a run has at most 4096 feeds, fetches and targets each");
    free(frame.data);
    stop(r);
}

static void test_a_compressed_request_gets_a_compressed_reply(void)
{
    enum { ROWS = 1000 };
    fs_engine_config config = rig_config(1);
    config.named_run_threads = 1;
    config.executors.compress_replies = true;
    config.executors.tensor_content = true;
    rig *r = rig_start(&config);
    REQUIRE(fs_front_add_named_run(&r->front, SESSION_RUN) == 0);
    r->probe.runtime.run_named = run_named;
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    static float values[ROWS];
    rig_input x = feed_of("x:0", values, ROWS);
    pb plain = message_of(&(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}});
    uLongf len = compressBound(plain.len);
    pb frame = {.data = malloc(len + FS_GRPC_PREFIX_BYTES)};
    REQUIRE(frame.data != NULL);
    REQUIRE(compress(frame.data + FS_GRPC_PREFIX_BYTES, &len, plain.data, plain.len) == Z_OK);
    fs_grpc_prefix_write(frame.data, true, (uint32_t)len);
    frame.len = len + FS_GRPC_PREFIX_BYTES;
    peer_call *c = send_frame(r, &frame, NULL, "deflate");
    rig_settle(&r->end);
    CHECK_ANSWER(c, FS_OK, "");
    CHECK_EQ(c->body[0], 1);
    uLongf reply_len = 2 * sizeof values;
    uint8_t *reply = malloc(reply_len);
    REQUIRE(reply != NULL);
    REQUIRE(uncompress(reply, &reply_len, c->body + FS_GRPC_PREFIX_BYTES, c->body_len - FS_GRPC_PREFIX_BYTES) ==
            Z_OK);
    CHECK(reply_len > sizeof values);

    frame.data[FS_GRPC_PREFIX_BYTES + 5] ^= 0xff; /* damaged */
    c = send_frame(r, &frame, NULL, "deflate");
    rig_settle(&r->end);
    CHECK_EQ(atoi(c->grpc_status), FS_INTERNAL);
    free(reply);
    free(plain.data);
    free(frame.data);
    rig_unserve(r, &m);
    stop(r);
}

/* One thread for runs by name, and it stands still: what does not need it goes on. */
static void test_a_run_that_takes_long_is_in_nobodys_way(void)
{
    rig *r = start(1);
    rig_model m = rig_model_make("m", 1, NULL), other = rig_model_make("other", 1, NULL);
    rig_serve(r, &m);
    rig_serve(r, &other);
    rig_input x = feed_of("x:0", ONE, 1);
    pb frame = rig_frame(message_of(&(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}));
    strcpy(r->probe.only, "m");
    probe_gate(&r->probe, true);
    peer_call *running = send_frame(r, &frame, "200m", NULL); /* it runs, so it is answered */
    probe_wait(&r->probe, 1);
    peer_call *late = send_frame(r, &frame, "200m", NULL), *patient = send_frame(r, &frame, "60S", NULL);
    peer_call *cancelled = send_frame(r, &frame, NULL, NULL);
    REQUIRE(nghttp2_submit_rst_stream(r->end.peer->client, 0, cancelled->id, NGHTTP2_CANCEL) == 0);
    rig_turn(&r->end, 0);

    pb predict = rig_floats("other", TWO, 2);
    peer_call *c = rig_send(&r->end, &predict, NULL);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (!c->closed) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&r->end, 10);
    }
    CHECK_ANSWER(c, FS_OK, "");
    rig_check_halves(r->end.slab, c->body, c->body_len, TWO, 2);

    rig_task retire = rig_task_of(&m, FS_TASK_RETIRE);
    rig_post(r, &retire); /* waits for the run */
    until_us = fs_now_us() + 210000;
    while (fs_now_us() < until_us)
        rig_turn(&r->end, 5);
    CHECK(!retire.done);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    rig_await(r, &retire);
    CHECK_ANSWER(running, FS_OK, "");
    CHECK_ANSWER(late, FS_DEADLINE_EXCEEDED, "Deadline Exceeded");
    CHECK_ANSWER(patient, FS_NOT_FOUND, "Servable not found for request: Latest(m)");
    CHECK_EQ(said.runs, 1);
    CHECK_OK(rig_do(r, &m, FS_TASK_CLOSE));
    rig_unserve(r, &other);
    stop(r);
    free(frame.data);
    free(predict.data);
}

static void test_so_many_wait_and_no_more(void)
{
    rig *r = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    rig_input x = feed_of("x:0", ONE, 1);
    pb frame = rig_frame(message_of(&(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}));
    probe_gate(&r->probe, true);
    peer_call *first = send_frame(r, &frame, NULL, NULL);
    probe_wait(&r->probe, 1);
    for (int i = 0; i < FS_NAMED_RUNS_WAITING; i++)
        send_frame(r, &frame, NULL, NULL);
    peer_call *last = send_frame(r, &frame, NULL, NULL);
    rig_turn(&r->end, 0);
    CHECK_ANSWER(last, FS_UNAVAILABLE, "too many runs by name are waiting already");
    CHECK(!first->closed);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    CHECK_ANSWER(first, FS_OK, "");
    CHECK_EQ(said.runs, 1 + FS_NAMED_RUNS_WAITING);
    CHECK_ANSWER(call(r, &(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}), FS_OK, "");
    rig_unserve(r, &m);
    stop(r);
    free(frame.data);
}

/* In a series of their own, or with those that found no version. */
static void test_runs_are_counted(void)
{
    enum { METHOD = FS_METRICS_SESSION_RUN, GRPC = FS_TRANSPORT_GRPC };
    ledger l = ledger_open(20);
    rig *r = start_counting(1, l.metrics);
    rig_model m = rig_model_make("m", 1, "run_us=2000");
    rig_serve(r, &m);
    const fs_meter *meter = ledger_find(&l, "m", 1, "", false);
    REQUIRE(meter != NULL);
    rig_input x = feed_of("x:0", ONE, 1);
    wanted want = {.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}};
    CHECK_ANSWER(call(r, &want), FS_OK, "");
    CHECK_ANSWER(call(r, &want), FS_OK, "");
    want.aliases = true;
    want.signature = "none";
    CHECK_EQ(atoi(call(r, &want)->grpc_status), FS_FAILED_PRECONDITION);
    want.model = "unknown";
    CHECK_EQ(atoi(call(r, &want)->grpc_status), FS_NOT_FOUND);
    CHECK_EQ(ledger_requests(&meter->requests, METHOD, GRPC, FS_OK), 2);
    CHECK_EQ(ledger_requests(&meter->requests, METHOD, GRPC, FS_FAILED_PRECONDITION), 1);
    CHECK_EQ(ledger_sum(&meter->requests), 3);
    CHECK_EQ(ledger_unresolved(&l, METHOD, GRPC, FS_NOT_FOUND), 1);
    CHECK_EQ(ledger_count(&l, &meter->latency[METHOD][GRPC]), 3);
    CHECK_EQ(ledger_count(&l, &meter->queue), 3);
    CHECK_EQ(ledger_count(&l, &meter->compute), 2);
    CHECK(fs_tick_read(&meter->compute_sum) >= 4000000);
    CHECK_EQ(ledger_count(&l, &meter->rows), 0); /* they are no batches */
    CHECK_EQ(fs_tick_read(&meter->pushed_calls), 3);
    CHECK_EQ(fs_tick_read(&meter->left_calls), 3);
    CHECK_EQ(fs_tick_read(&meter->finished_calls), 3);
    rig_unserve(r, &m);
    CHECK(ledger_find(&l, "m", 1, "", true) == meter);
    stop(r);
    ledger_close(&l);
}

static void test_a_connection_that_is_lost(void)
{
    rig *r = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    rig_input x = feed_of("x:0", ONE, 1);
    pb frame = rig_frame(message_of(&(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}));
    probe_gate(&r->probe, true);
    send_frame(r, &frame, NULL, NULL);
    probe_wait(&r->probe, 1);
    send_frame(r, &frame, NULL, NULL);
    fs_h2_free(r->end.h2);
    r->end.h2 = NULL;
    long touched = r->end.touched;
    probe_gate(&r->probe, false);
    r->end.h2 = fs_h2_new(&r->limits, &fs_front_handler, &r->end.ctx, &r->end, &r->budget, r->end.slab, fs_now_us());
    REQUIRE(r->end.h2 != NULL);
    peer_free(r->end.peer);
    r->end.peer = peer_new(r->end.h2, 1 << 24);
    /* One thread, first come, first served: what was there before has come home, too. */
    CHECK_ANSWER(call(r, &(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}), FS_OK, "");
    CHECK_EQ(r->end.touched, touched + 1);
    CHECK_EQ(said.runs, 2);
    rig_unserve(r, &m);
    stop(r);
    free(frame.data);
}

/* All that a client says for one call before it hears a word of the server. */
static pb opening_bytes(const pb *frame)
{
    peer *p = peer_new(NULL, 1 << 24);
    peer_submit(p, (peer_request){.path = SESSION_RUN, .up = frame->data, .up_len = frame->len});
    pb bytes = {0};
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(p->client, &data)) > 0)
        pb_raw(&bytes, data, (size_t)n);
    peer_free(p);
    return bytes;
}

/* One call on a connection and a slab of its own while the n-th allocation fails. */
static bool call_without_memory(rig *r, const pb *bytes, long n)
{
    rig_end *end = &r->end;
    fs_slab *slab = end->slab;
    REQUIRE((end->slab = end->owner.slab = fs_slab_new(1 << 20)) != NULL);
    failmalloc_after(n);
    fs_h2 *h2 = fs_h2_new(&r->limits, &fs_front_handler, &end->ctx, end, &r->budget, end->slab, fs_now_us());
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    if (h2 != NULL) {
        static uint8_t out[PEER_ROOM];
        int rc = fs_h2_recv(h2, bytes->data, bytes->len, fs_now_us());
        while (rc == 0 && fs_h2_active_calls(h2) > 0 && !fs_h2_done(h2)) {
            REQUIRE(fs_now_us() < until_us);
            struct pollfd p = {.fd = end->box.fd, .events = POLLIN};
            poll(&p, 1, 10);
            fs_owner_deliver(&end->owner);
            while (fs_h2_send(h2, out, sizeof out, fs_now_us()) > 0) {
            }
        }
        fs_h2_free(h2);
    }
    failmalloc_after(-1);
    bool fired = failmalloc_fired();
    fs_slab *used = end->slab;
    end->slab = end->owner.slab = slab;
    rig_input x = feed_of("x:0", ONE, 1); /* and what is still away comes home before this one */
    CHECK_ANSWER(call(r, &(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}), FS_OK, "");
    fs_slab_release(used);
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    return fired;
}

static void test_any_allocation_may_fail(void)
{
    rig *r = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    /* One value that stands for many: inputs, outputs and the reply are blocks that no slab keeps. */
    pb tensor = {0}, shape = {0}, dim = {0};
    float one = 1;
    pb_number(&tensor, 1, FS_DT_FLOAT);
    pb_number(&dim, 1, 400000);
    pb_message(&shape, 2, &dim);
    pb_message(&tensor, 2, &shape);
    pb_bytes(&tensor, 5, &one, 4);
    rig_input x = {.alias = "x:0", .proto = &tensor};
    pb frame = rig_frame(message_of(&(wanted){.model = "m", .feeds = &x, .n_feeds = 1, .fetches = {"y:0"}}));
    pb bytes = opening_bytes(&frame);
    long sweeps = 1;
    while (call_without_memory(r, &bytes, sweeps))
        sweeps++;
    CHECK(sweeps >= 8);
    CHECK(said.runs > sweeps); /* one after each, and those that found memory for all */
    CHECK(said.runs < 2 * sweeps);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    stop(r);
    free(tensor.data);
    free(frame.data);
    free(bytes.data);
}

int main(void)
{
    test_names_go_in_and_tensors_come_out();
    test_aliases_are_a_signatures();
    test_what_is_refused();
    test_too_many_names_are_refused();
    test_a_compressed_request_gets_a_compressed_reply();
    test_a_run_that_takes_long_is_in_nobodys_way();
    test_so_many_wait_and_no_more();
    test_runs_are_counted();
    test_a_connection_that_is_lost();
    test_any_allocation_may_fail();
    return check_done();
}
