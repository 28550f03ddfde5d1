/* test_metering: what is counted of a call and where, from the client's bytes to the client's answer: by whom it was
 * refused, where it waited, in which batches it ran; and what is no traffic. The memory itself: test_metrics. */
#include "engine_rig.h"

#include "metrics_rig.h"
#include "text.h"

enum { GRPC = FS_TRANSPORT_GRPC, REST = FS_TRANSPORT_REST, PREDICT = FS_CALL_PREDICT };

static const float VALUES[32] = {1, 2, 3};

/* An engine that counts. */
typedef struct world {
    ledger ledger;
    rig *rig;
} world;

static world start(int threads)
{
    world w = {.ledger = ledger_open(200)};
    fs_engine_config config = rig_config(threads);
    config.metrics = w.ledger.metrics;
    w.rig = rig_start(&config);
    return w;
}

static void stop(world *w)
{
    rig_stop(w->rig);
    ledger_close(&w->ledger);
}

static const fs_meter *meter_of(world *w, int64_t version)
{
    const fs_meter *meter = ledger_find(&w->ledger, "m", version, "serving_default", false);
    REQUIRE(meter != NULL);
    return meter;
}

static uint64_t ended(const fs_meter *meter, int code)
{
    return ledger_requests(&meter->requests, PREDICT, GRPC, code);
}

/* Nothing of it is under way, and all that came has been counted once. */
static void check_at_rest(const fs_meter *meter)
{
    CHECK_EQ(fs_tick_read(&meter->pushed_calls), fs_tick_read(&meter->left_calls));
    CHECK_EQ(fs_tick_read(&meter->pushed_calls), fs_tick_read(&meter->finished_calls));
    CHECK_EQ(fs_tick_read(&meter->pushed_rows), fs_tick_read(&meter->left_rows));
}

static void what_runs_is_counted_on_its_way(void)
{
    enum { RUN_US = 2000 };
    world w = start(1);
    rig_model m = rig_model_make("m", 3, "run_us=2000");
    m.plans[RIG_HALF].compiled = true; /* so that 3 rows run as 4 */
    rig_serve(w.rig, &m);
    const fs_meter *meter = meter_of(&w, 3);
    CHECK_EQ(ledger_count(&w.ledger, &meter->compute), 0); /* warming up is no traffic */
    for (int64_t rows = 1; rows <= 3; rows++)
        CHECK_ANSWER(rig_call(w.rig, rig_floats("m", VALUES, rows)), FS_OK, "");
    w.rig->end.ctx.transport = REST;
    CHECK_ANSWER(rig_call(w.rig, rig_floats("m", VALUES, 2)), FS_OK, "");
    rig_check_idle(&m);

    REQUIRE(meter_of(&w, 3) == meter);
    CHECK_EQ(ended(meter, FS_OK), 3);
    CHECK_EQ(ledger_requests(&meter->requests, PREDICT, REST, FS_OK), 1);
    CHECK_EQ(ledger_sum(&meter->requests), 4);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][GRPC]), 3);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][REST]), 1);
    CHECK(fs_tick_read(&meter->latency_sum[PREDICT][GRPC]) >= 3 * RUN_US * INT64_C(1000));
    CHECK_EQ(ledger_count(&w.ledger, &meter->queue), 4);
    CHECK_EQ(ledger_count(&w.ledger, &meter->formation), 4);
    CHECK_EQ(ledger_count(&w.ledger, &meter->compute), 4);
    CHECK(fs_tick_read(&meter->compute_sum) >= 4 * RUN_US * INT64_C(1000));
    CHECK_EQ(ledger_count(&w.ledger, &meter->encode), 4);
    CHECK_EQ(ledger_count(&w.ledger, &meter->rows), 4);
    CHECK_EQ(fs_tick_read(&meter->rows_sum), 1 + 2 + 3 + 2);
    CHECK_EQ(ledger_count(&w.ledger, &meter->request_rows[PREDICT]), 4);
    CHECK_EQ(fs_tick_read(&meter->request_rows_sum[PREDICT]), 1 + 2 + 3 + 2);
    uint64_t batches = 0, padding = 0;
    for (uint32_t i = 0; i < FS_METRICS_SIZES; i++) {
        fs_padding place;
        if (!fs_metrics_view_padding(&w.ledger.view, meter, i, &place))
            continue;
        CHECK(fs_tick_read(&place.size) > 0); /* all of them ran at a size that was compiled */
        padding += fs_tick_read(&place.sum);
        for (int k = 0; k < FS_METRICS_DOUBLINGS + 2; k++)
            batches += fs_tick_read(&place.batches[k]);
    }
    CHECK_EQ(batches, 4);
    CHECK_EQ(padding, 1);
    uint64_t parts = fs_tick_read(&meter->queue_sum) + fs_tick_read(&meter->formation_sum) +
                     fs_tick_read(&meter->compute_sum);
    uint64_t all = fs_tick_read(&meter->latency_sum[PREDICT][GRPC]) +
                   fs_tick_read(&meter->latency_sum[PREDICT][REST]);
    CHECK(parts <= all + 4 * 3000); /* each to the microsecond */
    check_at_rest(meter);
    const fs_meter *other = ledger_find(&w.ledger, "m", 3, "pair", false);
    REQUIRE(other != NULL);
    CHECK_EQ(ledger_sum(&other->requests), 0);
    CHECK_EQ(ledger_sum(&fs_metrics_view_head(&w.ledger.view)->unresolved), 0);
    rig_unserve(w.rig, &m);
    stop(&w);
}

static void what_is_refused_is_counted_where_it_was_bound_for(void)
{
    world w = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w.rig, &m);
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = VALUES, .bytes = 4};
    rig_input typo = x, wrong = x;
    typo.alias = "z";
    wrong.dtype = FS_DT_DOUBLE;
    wrong.bytes = 8;
    peer_call *c = rig_call(w.rig, rig_request_frame(&(rig_request){.model = "m", .inputs = &typo, .n_inputs = 1}));
    CHECK_EQ(atoi(c->grpc_status), FS_INVALID_ARGUMENT);
    c = rig_call(w.rig, rig_request_frame(&(rig_request){.model = "m", .inputs = &wrong, .n_inputs = 1}));
    CHECK_EQ(atoi(c->grpc_status), FS_INVALID_ARGUMENT);
    /* A payload that is none, found when the rest was refused already: what counts is what is said. */
    const pb bad = {(uint8_t *)(uintptr_t) "\xff\xff", 2, 2};
    rig_input broken[] = {{.alias = "z", .proto = &bad}};
    c = rig_call(w.rig, rig_request_frame(&(rig_request){.model = "m", .inputs = broken, .n_inputs = 1}));
    CHECK_EQ(atoi(c->grpc_status), FS_INTERNAL);
    const fs_meter *meter = meter_of(&w, 1);
    CHECK_EQ(ended(meter, FS_INVALID_ARGUMENT), 2);
    CHECK_EQ(ended(meter, FS_INTERNAL), 1);
    CHECK_EQ(ledger_sum(&meter->requests), 3);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][GRPC]), 0);
    CHECK_EQ(fs_tick_read(&meter->pushed_calls), 0);

    c = rig_call(w.rig, rig_request_frame(&(rig_request){.model = "unknown", .inputs = &x, .n_inputs = 1}));
    CHECK_EQ(atoi(c->grpc_status), FS_NOT_FOUND);
    c = rig_call(w.rig, rig_request_frame(&(rig_request){.model = "m", .signature = "none", .inputs = &x,
                                                         .n_inputs = 1}));
    CHECK_EQ(atoi(c->grpc_status), FS_FAILED_PRECONDITION);
    pb garbage = {0};
    pb_raw(&garbage, "\xff\xff\xff", 3);
    c = rig_call(w.rig, rig_frame(garbage));
    CHECK_EQ(atoi(c->grpc_status), FS_INTERNAL);
    CHECK_EQ(ledger_unresolved(&w.ledger, PREDICT, GRPC, FS_NOT_FOUND), 1);
    CHECK_EQ(ledger_unresolved(&w.ledger, PREDICT, GRPC, FS_FAILED_PRECONDITION), 1);
    CHECK_EQ(ledger_unresolved(&w.ledger, PREDICT, GRPC, FS_INTERNAL), 1);
    CHECK_EQ(ledger_sum(&fs_metrics_view_head(&w.ledger.view)->unresolved), 3);
    CHECK_EQ(ledger_sum(&meter->requests), 3);
    rig_unserve(w.rig, &m);
    stop(&w);
}

/* Compressed bytes that are none, on either thread that inflates. */
static void what_cannot_be_inflated_is_nobodys(void)
{
    world w = start(1);
    pb message = {0};
    static uint8_t noise[FS_INFLATE_INLINE_FROM + 1000];
    memset(noise, 0xa5, sizeof noise);
    for (int i = 0; i < 2; i++) {
        message = (pb){0};
        pb_raw(&message, noise, i == 0 ? 100 : sizeof noise);
        pb frame = rig_frame(message);
        frame.data[0] = 1; /* compressed */
        peer_call *c = peer_submit(w.rig->end.peer, (peer_request){.path = RIG_PREDICT, .up = frame.data,
                                                                   .up_len = frame.len, .encoding = "gzip"});
        peer_pump(w.rig->end.peer);
        rig_settle(&w.rig->end);
        CHECK_EQ(atoi(c->grpc_status), FS_INTERNAL);
        free(frame.data);
    }
    REQUIRE(fs_metrics_view_begin(&w.ledger.view) == 0);
    CHECK_EQ(ledger_unresolved(&w.ledger, PREDICT, GRPC, FS_INTERNAL), 2);
    stop(&w);
}

/* Refused by the session, before anybody has looked at it. */
static void what_is_too_large_is_counted_too(void)
{
    world w = start(1);
    w.rig->limits.max_message_bytes = 100;
    w.rig->end.ctx.transport = REST;
    CHECK_EQ(atoi(rig_call(w.rig, rig_floats("m", VALUES, 32))->grpc_status), FS_RESOURCE_EXHAUSTED);
    CHECK_EQ(atoi(rig_call_to(w.rig, RIG_REGRESS, rig_floats("m", VALUES, 32))->grpc_status), FS_RESOURCE_EXHAUSTED);
    REQUIRE(fs_metrics_view_begin(&w.ledger.view) == 0);
    CHECK_EQ(ledger_unresolved(&w.ledger, PREDICT, REST, FS_RESOURCE_EXHAUSTED), 1);
    CHECK_EQ(ledger_unresolved(&w.ledger, FS_CALL_REGRESS, REST, FS_RESOURCE_EXHAUSTED), 1);
    CHECK_EQ(atoi(rig_call(w.rig, rig_floats("m", VALUES, 1))->grpc_status), FS_NOT_FOUND);
    CHECK_EQ(ledger_sum(&fs_metrics_view_head(&w.ledger.view)->unresolved), 3); /* each once */
    stop(&w);
}

static void what_waits_is_seen_and_a_full_queue_refuses(void)
{
    world w = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.max_enqueued_batches = 1;
    rig_serve(w.rig, &m);
    const fs_meter *meter = meter_of(&w, 1);
    pb one = rig_floats("m", VALUES, 1), more = rig_floats("m", VALUES, 4);
    probe_gate(&w.rig->probe, true);
    rig_send(&w.rig->end, &one, NULL);
    probe_wait(&w.rig->probe, 1);
    rig_send(&w.rig->end, &more, NULL);
    rig_send(&w.rig->end, &more, NULL);
    peer_call *refused = rig_send(&w.rig->end, &one, NULL);
    CHECK_EQ(atoi(refused->grpc_status), FS_UNAVAILABLE);
    CHECK_EQ(fs_tick_read(&meter->pushed_calls) - fs_tick_read(&meter->left_calls), 2);
    CHECK_EQ(fs_tick_read(&meter->pushed_rows) - fs_tick_read(&meter->left_rows), 8);
    CHECK_EQ(ended(meter, FS_UNAVAILABLE), 1);
    CHECK_EQ(ended(meter, FS_OK), 0);
    probe_gate(&w.rig->probe, false);
    rig_settle(&w.rig->end);
    rig_check_idle(&m);
    CHECK_EQ(ended(meter, FS_OK), 3);
    CHECK_EQ(ledger_count(&w.ledger, &meter->rows), 2);
    check_at_rest(meter);
    rig_unserve(w.rig, &m);
    stop(&w);
    free(one.data);
    free(more.data);
}

static void what_never_ran_has_no_times(void)
{
    world w = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w.rig, &m);
    pb one = rig_floats("m", VALUES, 1);
    rig_end *end = &w.rig->end;
    probe_gate(&w.rig->probe, true);
    rig_send(end, &one, NULL);
    probe_wait(&w.rig->probe, 1);
    rig_send(end, &one, "1m");
    peer_call *gone = rig_send(end, &one, NULL);
    nghttp2_submit_rst_stream(end->peer->client, NGHTTP2_FLAG_NONE, gone->id, NGHTTP2_CANCEL);
    peer_pump(end->peer);
    int64_t until_us = fs_now_us() + 3000;
    while (fs_now_us() < until_us)
        rig_turn(end, 1);
    probe_gate(&w.rig->probe, false);
    rig_settle(end);
    rig_check_idle(&m);
    rig_turn(end, 0);
    const fs_meter *meter = meter_of(&w, 1);
    CHECK_EQ(ended(meter, FS_OK), 1);
    CHECK_EQ(ended(meter, FS_DEADLINE_EXCEEDED), 1);
    CHECK_EQ(ended(meter, FS_CANCELLED), 1);
    CHECK_EQ(fs_tick_read(&meter->expired), 1);
    CHECK_EQ(fs_tick_read(&meter->cancelled), 1);
    CHECK_EQ(fs_tick_read(&meter->shed), 0);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][GRPC]), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->queue), 1);
    check_at_rest(meter);
    rig_unserve(w.rig, &m);
    stop(&w);
    free(one.data);
}

static void pieces_are_one_request_in_several_batches(void)
{
    world w = start(2);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w.rig, &m);
    CHECK_ANSWER(rig_call(w.rig, rig_floats("m", VALUES, 20)), FS_OK, "");
    rig_check_idle(&m);
    const fs_meter *meter = meter_of(&w, 1);
    CHECK_EQ(ledger_sum(&meter->requests), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->queue), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][GRPC]), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->rows), 3);
    CHECK_EQ(fs_tick_read(&meter->rows_sum), 20);
    CHECK_EQ(fs_tick_read(&meter->pushed_rows), 20);
    check_at_rest(meter);
    rig_unserve(w.rig, &m);
    stop(&w);
}

/* A run that fails has taken its time, too; there is nothing to encode. */
static void failures_that_ran_have_times(void)
{
    world w = start(1);
    rig_model m = rig_model_make("m", 1, "fail_every=1");
    m.spec.path = m.path;
    rig_task t = rig_task_of(&m, FS_TASK_LOAD);
    t.task.warm.iterations = 0;
    t.task.runtime = w.rig->probe.runtime;
    rig_post(w.rig, &t);
    rig_await(w.rig, &t);
    REQUIRE(t.task.rc == 0);
    m.servable = t.task.servable;
    REQUIRE(rig_do(w.rig, &m, FS_TASK_PUBLISH) == 0);
    peer_call *c = rig_call(w.rig, rig_floats("m", VALUES, 1));
    int code = atoi(c->grpc_status);
    CHECK(code != FS_OK);
    rig_check_idle(&m);
    const fs_meter *meter = meter_of(&w, 1);
    CHECK_EQ(ended(meter, code), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][GRPC]), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->compute), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->encode), 0);
    check_at_rest(meter);
    rig_unserve(w.rig, &m);
    stop(&w);
}

static void shadows_are_no_traffic(void)
{
    world w = start(2);
    rig_model stable = rig_model_make("m", 1, NULL), fresh = rig_model_make("m", 2, NULL);
    rig_serve(w.rig, &stable);
    rig_serve(w.rig, &fresh);
    fs_route_settings settings = {.mode = FS_ROUTE_SHADOW, .versions = {1, 2}, .share = 1};
    fs_route *route = fs_route_new(fs_slice_of("m"), &settings);
    REQUIRE(route != NULL);
    rig_route(w.rig, "m", route);
    for (int i = 0; i < 5; i++)
        CHECK_ANSWER(rig_call(w.rig, rig_floats("m", VALUES, 2)), FS_OK, "");
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&route->shadow.compared) < 5) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&w.rig->end, 1);
    }
    rig_check_idle(&stable);
    rig_check_idle(&fresh);
    CHECK_EQ(ended(meter_of(&w, 1), FS_OK), 5);
    const fs_meter *meter = meter_of(&w, 2);
    CHECK_EQ(ledger_sum(&meter->requests), 0);
    CHECK_EQ(fs_tick_read(&meter->pushed_calls), 0);
    CHECK_EQ(fs_tick_read(&meter->left_rows), 0);
    CHECK_EQ(ledger_count(&w.ledger, &meter->compute), 0);
    CHECK_EQ(ledger_count(&w.ledger, &meter->rows), 0);
    rig_route(w.rig, "m", NULL);
    fs_route_unref(route);
    rig_unserve(w.rig, &stable);
    rig_unserve(w.rig, &fresh);
    stop(&w);
}

/* Its answer is in the mailbox of an owner that is busy, and its version is closed meanwhile. */
static void an_answer_that_comes_home_after_its_version_has_closed(void)
{
    world w = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w.rig, &m);
    rig_end busy = {0};
    rig_end_open(w.rig, &busy);
    pb one = rig_floats("m", VALUES, 1);
    peer_call *c = rig_send(&busy, &one, NULL);
    rig_check_idle(&m);
    rig_unserve(w.rig, &m);
    const fs_meter *meter = ledger_find(&w.ledger, "m", 1, "serving_default", true);
    REQUIRE(meter != NULL);
    CHECK_EQ(ledger_sum(&meter->requests), 0);
    CHECK_EQ(fs_tick_read(&meter->pushed_calls), 1);
    CHECK_EQ(fs_tick_read(&meter->finished_calls), 0);
    rig_settle(&busy);
    CHECK_ANSWER(c, FS_OK, "");
    CHECK_EQ(ended(meter, FS_OK), 1);
    CHECK_EQ(ledger_count(&w.ledger, &meter->latency[PREDICT][GRPC]), 1);
    check_at_rest(meter);
    rig_end_close(&busy);
    stop(&w);
    free(one.data);
}

/* A version that is loaded and never served gives its blocks back as well. */
static void every_version_gives_back_what_it_had(void)
{
    world w = start(1);
    for (int64_t version = 1; version <= 100; version++) { /* more blocks in all than there are */
        rig_model m = rig_model_make("m", version, NULL);
        if (version % 3 == 0) {
            REQUIRE(rig_do(w.rig, &m, FS_TASK_LOAD) == 0);
            CHECK_OK(rig_do(w.rig, &m, FS_TASK_CLOSE));
            continue;
        }
        rig_serve(w.rig, &m);
        CHECK_ANSWER(rig_call(w.rig, rig_floats("m", VALUES, 1)), FS_OK, "");
        CHECK_EQ(ended(meter_of(&w, version), FS_OK), 1);
        rig_unserve(w.rig, &m);
        peer_forget(w.rig->end.peer);
    }
    const fs_meter *shared = ledger_find(&w.ledger, "", 0, "", false);
    REQUIRE(shared != NULL);
    CHECK_EQ(fs_tick_read(&shared->pushed_calls), 0);
    stop(&w);
}

/* Whatever fails for want of memory, a call is counted at most once, and nothing is left as if it waited. */
static void without_memory_nothing_is_counted_twice(void)
{
    world w = start(1);
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w.rig, &m);
    const fs_meter *meter = meter_of(&w, 1);
    const int64_t rows[] = {1, 20};
    for (int i = 0; i < 2; i++) {
        pb frame = rig_floats("m", VALUES, rows[i]);
        pb bytes = rig_opening_bytes(RIG_PREDICT, &frame);
        uint64_t before = ledger_sum(&meter->requests);
        uint64_t refused_before = ledger_sum(&fs_metrics_view_head(&w.ledger.view)->unresolved);
        long sweeps = 0;
        while (rig_call_without_memory(w.rig, &m, &bytes, sweeps + 1))
            sweeps++;
        CHECK(sweeps >= 3);
        uint64_t counted = ledger_sum(&meter->requests) - before;
        uint64_t refused = ledger_sum(&fs_metrics_view_head(&w.ledger.view)->unresolved) - refused_before;
        CHECK(counted > 0 && counted + refused <= (uint64_t)sweeps + 1);
        check_at_rest(meter);
        free(bytes.data);
        free(frame.data);
    }
    rig_unserve(w.rig, &m);
    stop(&w);
}

int main(void)
{
    what_runs_is_counted_on_its_way();
    what_is_refused_is_counted_where_it_was_bound_for();
    what_cannot_be_inflated_is_nobodys();
    what_is_too_large_is_counted_too();
    what_waits_is_seen_and_a_full_queue_refuses();
    what_never_ran_has_no_times();
    pieces_are_one_request_in_several_batches();
    failures_that_ran_have_times();
    shadows_are_no_traffic();
    an_answer_that_comes_home_after_its_version_has_closed();
    every_version_gives_back_what_it_had();
    without_memory_nothing_is_counted_twice();
    return check_done();
}
