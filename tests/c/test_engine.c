/* test_engine: whole calls under load: deadlines, cancellation, full queues, failures, pieces, and what
 * all of it costs in memory. */
#include "engine_rig.h"

#include "failmalloc.h"

#include <math.h>
#include <zlib.h>

static const float ONE[] = {1}, TWO[] = {2, 3};

static void test_concurrent_calls_share_runs_and_get_their_own_answers(void)
{
    enum { CALLS = 300 };
    fs_engine_config config = rig_config(2);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    static float values[CALLS][3];
    pb frames[CALLS];
    probe_gate(&r->probe, true);
    for (int i = 0; i < CALLS; i++) {
        for (int k = 0; k < 3; k++)
            values[i][k] = (float)(i * 10 + k);
        frames[i] = rig_floats("m", values[i], 1 + i % 3);
        rig_send(&r->end, &frames[i], NULL);
    }
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    for (int i = 0; i < CALLS; i++) {
        peer_call *c = &r->end.peer->calls[i];
        CHECK_ANSWER(c, FS_OK, "");
        rig_check_halves(r->end.slab, c->body, c->body_len, values[i], 1 + i % 3);
        free(frames[i].data);
    }
    CHECK(r->probe.n_log <= CALLS / 2);
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_OK), CALLS);
    CHECK(r->end.touched >= CALLS);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    rig_stop(r);
}

static void test_a_deadline_that_passes_in_the_queue_is_not_run(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    pb frame = rig_floats("m", ONE, 1);
    probe_gate(&r->probe, true);
    peer_call *running = rig_send(&r->end, &frame, "200m"); /* it runs, so it is answered */
    probe_wait(&r->probe, 1);
    peer_call *late = rig_send(&r->end, &frame, "200m"), *patient = rig_send(&r->end, &frame, "60S");
    int64_t until_us = fs_now_us() + 210000;
    while (fs_now_us() < until_us)
        rig_turn(&r->end, 5);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    CHECK_ANSWER(running, FS_OK, "");
    CHECK_ANSWER(late, FS_DEADLINE_EXCEEDED, "Deadline Exceeded");
    CHECK_ANSWER(patient, FS_OK, "");
    CHECK_EQ(r->probe.n_log, 2);
    CHECK_EQ(r->probe.log[1].rows, 1);
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_EXPIRED), 1);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    rig_stop(r);
    free(frame.data);
}

static void test_a_cancelled_call_is_not_run(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    pb frame = rig_floats("m", ONE, 1);
    probe_gate(&r->probe, true);
    peer_call *calls[4];
    for (int i = 0; i < 4; i++) {
        calls[i] = rig_send(&r->end, &frame, NULL);
        if (i == 0)
            probe_wait(&r->probe, 1);
    }
    for (int i = 0; i < 3; i++) /* one that runs and two that wait */
        REQUIRE(nghttp2_submit_rst_stream(r->end.peer->client, 0, calls[i]->id, NGHTTP2_CANCEL) == 0);
    rig_turn(&r->end, 0);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    CHECK_ANSWER(calls[3], FS_OK, "");
    CHECK_EQ(r->probe.n_log, 2);
    CHECK_EQ(r->probe.log[1].rows, 1);
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_CANCELLED), 2);
    rig_unserve(r, &m);
    rig_stop(r);
    free(frame.data);
}

static void test_a_connection_that_is_lost_takes_its_calls_along(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    pb frame = rig_floats("m", ONE, 1);
    probe_gate(&r->probe, true);
    rig_send(&r->end, &frame, NULL);
    probe_wait(&r->probe, 1);
    for (int i = 0; i < 10; i++)
        rig_send(&r->end, &frame, NULL);
    fs_h2_free(r->end.h2);
    r->end.h2 = NULL;
    long touched = r->end.touched;
    probe_gate(&r->probe, false);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&m.servable->pins) > 1) {
        REQUIRE(fs_now_us() < until_us);
        struct pollfd p = {.fd = r->end.box.fd, .events = POLLIN};
        poll(&p, 1, 10);
        fs_owner_deliver(&r->end.owner);
    }
    fs_owner_deliver(&r->end.owner);
    CHECK_EQ(r->end.touched, touched); /* nothing to flush for a connection that is gone */
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    CHECK_EQ(r->probe.n_log, 1);
    rig_check_idle(&m);
    r->end.h2 = fs_h2_new(&r->limits, &fs_front_handler, &r->end.ctx, &r->end, &r->budget, r->end.slab,
                          fs_now_us());
    peer_free(r->end.peer);
    r->end.peer = peer_new(r->end.h2, 1 << 24);
    CHECK_ANSWER(rig_call(r, rig_floats("m", ONE, 1)), FS_OK, "");
    rig_unserve(r, &m);
    rig_stop(r);
    free(frame.data);
}

static void test_a_full_queue_answers_at_once(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.max_enqueued_batches = 1;
    rig_serve(r, &m);
    pb frame = rig_floats("m", ONE, 1);
    probe_gate(&r->probe, true);
    rig_send(&r->end, &frame, NULL);
    probe_wait(&r->probe, 1);
    for (int i = 0; i < 8; i++)
        CHECK(!rig_send(&r->end, &frame, NULL)->closed);
    for (int i = 0; i < 3; i++) {
        CHECK_ANSWER(rig_send(&r->end, &frame, NULL), FS_UNAVAILABLE,
                     "The batch scheduling queue to which this task was submitted is full; currently 1 "
                     "batches enqueued and max_enqueued_batches is 1");
    }
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    int ok = 0;
    for (int i = 0; i < r->end.peer->n_calls; i++)
        ok += strcmp(r->end.peer->calls[i].grpc_status, "0") == 0;
    CHECK_EQ(ok, 9);
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_REJECTED), 3);
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_FAILED), 3);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    rig_stop(r);
    free(frame.data);
}

static void test_a_bad_row_among_many_callers(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, "fail_nan=1");
    rig_serve(r, &m);
    const float nan_row[] = {NAN};
    pb good = rig_floats("m", ONE, 1), bad = rig_floats("m", nan_row, 1);
    probe_gate(&r->probe, true);
    rig_send(&r->end, &good, NULL);
    probe_wait(&r->probe, 1);
    peer_call *calls[8];
    for (int i = 0; i < 8; i++)
        calls[i] = rig_send(&r->end, i == 5 ? &bad : &good, NULL);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    for (int i = 0; i < 8; i++) {
        if (i == 5)
            CHECK_ANSWER(calls[i], FS_INVALID_ARGUMENT, "input 'x' has a NaN");
        else
            CHECK_ANSWER(calls[i], FS_OK, "");
    }
    CHECK_EQ(r->probe.n_log, 1 + 1 + 8);
    rig_unserve(r, &m);
    rig_stop(r);
    free(good.data);
    free(bad.data);
}

static void test_a_model_that_always_fails_answers_everybody(void)
{
    fs_engine_config config = rig_config(2);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, "fail_every=1");
    rig_serve(r, &m);
    pb frame = rig_floats("m", TWO, 2);
    for (int i = 0; i < 50; i++)
        rig_send(&r->end, &frame, NULL);
    rig_settle(&r->end);
    for (int i = 0; i < 50; i++)
        CHECK_EQ(atoi(r->end.peer->calls[i].grpc_status), FS_INTERNAL);
    CHECK(strstr(rig_text(&r->end.peer->calls[0]), "failed as configured") != NULL);
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_FAILED), 50);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    rig_stop(r);
    free(frame.data);
}

static void test_large_calls_run_in_pieces_on_all_executors(void)
{
    enum { ROWS = 1003, CALLS = 6 };
    fs_engine_config config = rig_config(3);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    static float values[CALLS][ROWS];
    pb frames[CALLS], small = rig_floats("m", TWO, 2);
    probe_gate(&r->probe, true);
    for (int i = 0; i < CALLS; i++) {
        for (int k = 0; k < ROWS; k++)
            values[i][k] = (float)(i * 1000 + k);
        frames[i] = rig_floats("m", values[i], ROWS);
        rig_send(&r->end, &frames[i], NULL);
        rig_send(&r->end, &small, NULL);
    }
    probe_wait(&r->probe, 3); /* several pieces at once */
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    for (int i = 0; i < CALLS; i++) {
        peer_call *large = &r->end.peer->calls[2 * i], *with = large + 1;
        CHECK_ANSWER(large, FS_OK, "");
        rig_check_halves(r->end.slab, large->body, large->body_len, values[i], ROWS);
        CHECK_ANSWER(with, FS_OK, "");
        rig_check_halves(r->end.slab, with->body, with->body_len, TWO, 2);
        free(frames[i].data);
    }
    for (int i = 0; i < r->probe.n_log; i++)
        CHECK(r->probe.log[i].rows <= 8);
    rig_check_idle(&m);
    rig_unserve(r, &m);
    rig_stop(r);
    free(small.data);
}

static void test_without_splitting_a_large_call_runs_alone(void)
{
    enum { ROWS = 100 };
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.split_large = false;
    rig_serve(r, &m);
    float values[ROWS];
    for (int i = 0; i < ROWS; i++)
        values[i] = (float)i;
    peer_call *c = rig_call(r, rig_floats("m", values, ROWS));
    CHECK_ANSWER(c, FS_OK, "");
    rig_check_halves(r->end.slab, c->body, c->body_len, values, ROWS);
    CHECK_EQ(r->probe.n_log, 1);
    CHECK_EQ(r->probe.log[0].rows, ROWS);
    rig_unserve(r, &m);
    rig_stop(r);
}

static void test_compiled_models_see_only_the_sizes_they_were_compiled_for(void)
{
    fs_engine_config config = rig_config(2);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, "compiled_rows=1:2:4:8");
    m.plans[RIG_HALF].compiled = true;
    rig_serve(r, &m);
    pb frames[10];
    static float values[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    probe_gate(&r->probe, true);
    for (int i = 0; i < 10; i++) {
        frames[i] = rig_floats("m", values, i + 1);
        rig_send(&r->end, &frames[i], NULL);
    }
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    for (int i = 0; i < 10; i++) {
        peer_call *c = &r->end.peer->calls[i];
        CHECK_ANSWER(c, FS_OK, "");
        rig_check_halves(r->end.slab, c->body, c->body_len, values, i + 1);
        free(frames[i].data);
    }
    for (int i = 0; i < r->probe.n_log; i++) {
        int64_t rows = r->probe.log[i].rows;
        CHECK_EQ(r->probe.log[i].variant, FS_RUN_COMPILED);
        CHECK(rows == 1 || rows == 2 || rows == 4 || rows == 8);
    }
    CHECK_EQ(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_RERUNS), 0);
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .content = ONE, .bytes = 4}; /* a scalar is none */
    rig_request q = {.model = "m", .inputs = &x, .n_inputs = 1};
    probe_forget(&r->probe);
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_OK, "");
    CHECK_EQ(r->probe.log[0].variant, FS_RUN_PLAIN);
    rig_unserve(r, &m);
    rig_stop(r);
}

/* ---- replies ------------------------------------------------------------------------------------------ */

static void test_replies_as_tensor_content_and_compressed(void)
{
    enum { ROWS = 1000 };
    static const char *const encodings[] = {"gzip", "deflate"};
    fs_engine_config config = rig_config(1);
    config.executors.tensor_content = true;
    config.executors.compress_replies = true;
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.max_batch_size = ROWS;
    rig_serve(r, &m);
    static float values[ROWS];
    for (int plain = 0; plain < 2; plain++) {
        rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {ROWS}, .content = values,
                       .bytes = sizeof values};
        pb message = rig_message(&(rig_request){.model = "m", .inputs = &x, .n_inputs = 1});
        pb frame = {0};
        uint8_t prefix[FS_GRPC_PREFIX_BYTES];
        if (plain) {
            frame = rig_frame(message);
        } else {
            uLongf room = compressBound(message.len);
            uint8_t *small = malloc(room);
            REQUIRE(small != NULL && compress(small, &room, message.data, message.len) == Z_OK);
            fs_grpc_prefix_write(prefix, true, (uint32_t)room);
            pb_raw(&frame, prefix, sizeof prefix);
            pb_raw(&frame, small, room);
            free(small);
            free(message.data);
        }
        for (int e = 0; e < 2; e++) {
            peer_call *c = peer_submit(r->end.peer, (peer_request){
                .path = RIG_PREDICT, .up = frame.data, .up_len = frame.len,
                .encoding = plain ? NULL : "deflate", .accept = encodings[e]});
            rig_settle(&r->end);
            CHECK_ANSWER(c, FS_OK, "");
            if (plain) { /* not asked in that way, so not answered so */
                CHECK_STR(c->grpc_encoding, "");
                rig_check_halves(r->end.slab, c->body, c->body_len, values, ROWS);
                rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
                CHECK(reply.outputs[0].view.has_content);
                fs_arena_clear(&reply.arena);
                continue;
            }
            CHECK_STR(c->grpc_encoding, encodings[e]);
            CHECK_EQ(c->body[0], 1);
            CHECK(c->body_len < ROWS);
            z_stream z = {.next_in = c->body + FS_GRPC_PREFIX_BYTES, .avail_in = (uInt)c->body_len - 5};
            static uint8_t whole[8 * ROWS];
            REQUIRE(inflateInit2(&z, 15 + 32) == Z_OK);
            z.next_out = whole + FS_GRPC_PREFIX_BYTES;
            z.avail_out = sizeof whole - FS_GRPC_PREFIX_BYTES;
            CHECK_EQ(inflate(&z, Z_FINISH), Z_STREAM_END);
            fs_grpc_prefix_write(whole, false, (uint32_t)z.total_out);
            rig_check_halves(r->end.slab, whole, z.total_out + FS_GRPC_PREFIX_BYTES, values, ROWS);
            inflateEnd(&z);
        }
        free(frame.data);
    }
    rig_unserve(r, &m);
    rig_stop(r);
}

/* ---- memory ------------------------------------------------------------------------------------------- */

static uint64_t system_allocs(const rig *r)
{
    return fs_slab_read(r->end.slab).system_allocs + fs_executors_system_allocs(r->engine->executors);
}

static void many_calls(rig *r, const pb *frames, int n, int calls)
{
    for (int done = 0; done < calls; done += 50) {
        for (int i = 0; i < 50; i++)
            rig_send(&r->end, &frames[i % n], NULL);
        rig_settle(&r->end);
        peer_forget(r->end.peer);
    }
}

static void test_steady_state_asks_the_system_for_no_memory(void)
{
    fs_engine_config config = rig_config(2);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(r, &m);
    static float many[2000];
    rig_input pair[] = {
        {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {3, 2}, .content = many, .bytes = 24},
        {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {3}, .content = many, .bytes = 12}};
    const char *const words[] = {"some", "words", ""};
    rig_input text = {
        .alias = "x", .dtype = FS_DT_STRING, .ndim = 1, .dims = {3}, .strings = words, .n_strings = 3};
    rig_input ragged = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 2000}, .content = many,
                        .bytes = sizeof many};
    pb frames[] = {
        rig_floats("m", ONE, 1),
        rig_request_frame(&(rig_request){.model = "m", .signature = "pair", .inputs = pair, .n_inputs = 2}),
        rig_request_frame(&(rig_request){.model = "m", .signature = "text", .inputs = &text, .n_inputs = 1}),
        rig_request_frame(
            &(rig_request){.model = "m", .signature = "ragged", .inputs = &ragged, .n_inputs = 1}),
        rig_floats("nobody", ONE, 1),
    };
    /* How many calls are in how many stages at once is up to the machine, so it may take a while until every
     * slab has what it ever needs. What is needed anew for each call, or each thousand, never ends. */
    uint64_t more = 1;
    for (int round = 0; more > 0 && round < 8; round++) {
        uint64_t before = system_allocs(r);
        many_calls(r, frames, 5, 10000);
        more = system_allocs(r) - before;
        printf("%" PRIu64 " allocations in 10,000 calls\n", more);
    }
    CHECK_EQ(more, 0);
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    rig_unserve(r, &m);
    rig_stop(r);
    for (int i = 0; i < 5; i++)
        free(frames[i].data);
}

/* All that a client says for one call before it hears a word of the server. */
static pb opening_bytes(const pb *frame)
{
    peer *p = peer_new(NULL, 1 << 24);
    peer_submit(p, (peer_request){.path = RIG_PREDICT, .up = frame->data, .up_len = frame->len});
    pb bytes = {0};
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(p->client, &data)) > 0)
        pb_raw(&bytes, data, (size_t)n);
    peer_free(p);
    return bytes;
}

/* One call on a connection and a slab of its own while the n-th allocation fails. Whatever happens, the
 * call is the engine's no more afterwards. */
static void call_without_memory(rig *r, rig_model *m, const pb *bytes, long n, bool *fired)
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
    *fired = failmalloc_fired();
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    fs_slab_release(end->slab);
    end->slab = end->owner.slab = slab;
}

static void test_a_call_survives_any_allocation_failing(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.max_batch_size = 1 << 20;
    rig_serve(r, &m);
    /* One value that stands for many: batch, output and reply are blocks that no slab keeps. */
    pb tensor = {0}, shape = {0}, dim = {0};
    float one = 1;
    pb_number(&tensor, 1, FS_DT_FLOAT);
    pb_number(&dim, 1, 400000);
    pb_message(&shape, 2, &dim);
    pb_message(&tensor, 2, &shape);
    pb_bytes(&tensor, 5, &one, 4);
    rig_input x = {.alias = "x", .proto = &tensor};
    pb frame = rig_request_frame(&(rig_request){.model = "m", .inputs = &x, .n_inputs = 1});
    pb bytes = opening_bytes(&frame);
    long sweeps = 0;
    bool fired = true;
    for (long n = 1; fired; n++) {
        call_without_memory(r, &m, &bytes, n, &fired);
        sweeps += fired;
    }
    CHECK(sweeps >= 8);
    uint64_t ok = fs_servable_count(m.servable, RIG_HALF, FS_COUNT_OK);
    CHECK(ok >= 1);
    CHECK(fs_servable_count(m.servable, RIG_HALF, FS_COUNT_FAILED) >= 2);
    rig_check_idle(&m);
    CHECK_ANSWER(rig_call(r, rig_floats("m", ONE, 1)), FS_OK, "");
    rig_unserve(r, &m);
    rig_stop(r);
    free(tensor.data);
    free(frame.data);
    free(bytes.data);
}

static void test_an_engine_that_cannot_start(void)
{
    fs_engine_config config = rig_config(2);
    config.named_run_threads = 2;
    long failed = 0;
    for (long n = 1;; n++) {
        failmalloc_after(n);
        fs_engine *engine = fs_engine_start(&config, &RIG_POLICY);
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK(engine != NULL);
            fs_engine_stop(engine);
            break;
        }
        failed++;
        CHECK(engine == NULL);
        fs_engine_stop(engine);
    }
    CHECK(failed >= 9);
}

static void test_there_is_room_for_so_many_owners(void)
{
    fs_engine_config config = rig_config(2);
    fs_engine *engine = fs_engine_start(&config, &RIG_POLICY);
    REQUIRE(engine != NULL);
    fs_owner owner;
    for (int i = 3; i < FS_EPOCH_READERS; i++) /* executors and the shadows' thread have theirs */
        CHECK_OK(fs_engine_join(engine, &owner, NULL, NULL, NULL, NULL));
    CHECK_EQ(fs_engine_join(engine, &owner, NULL, NULL, NULL, NULL), -FS_RESOURCE_EXHAUSTED);
    CHECK_EQ(fs_engine_join(engine, &owner, NULL, NULL, NULL, NULL), -FS_RESOURCE_EXHAUSTED);
    fs_engine_stop(engine);
}

int main(void)
{
    test_concurrent_calls_share_runs_and_get_their_own_answers();
    test_a_deadline_that_passes_in_the_queue_is_not_run();
    test_a_cancelled_call_is_not_run();
    test_a_connection_that_is_lost_takes_its_calls_along();
    test_a_full_queue_answers_at_once();
    test_a_bad_row_among_many_callers();
    test_a_model_that_always_fails_answers_everybody();
    test_large_calls_run_in_pieces_on_all_executors();
    test_without_splitting_a_large_call_runs_alone();
    test_compiled_models_see_only_the_sizes_they_were_compiled_for();
    test_replies_as_tensor_content_and_compressed();
    test_steady_state_asks_the_system_for_no_memory();
    test_a_call_survives_any_allocation_failing();
    test_an_engine_that_cannot_start();
    test_there_is_room_for_so_many_owners();
    return check_done();
}
