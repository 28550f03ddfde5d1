/* test_shadow: copies of requests, from the stable version's answer to the comparison with the new one's, while
 * versions come and go and memory is short; and that nobody waits for them. */
#include "shadow.h"

#include "compare.h"
#include "compress.h"
#include "engine_rig.h"
#include "failmalloc.h"
#include "text.h"

static const float ONE[] = {1};

/* Two versions of "m": the stable one halves and adds two, the new one is `options`. Its runs are those of "new"
 * to the probe, which can hold them back. */
typedef struct pair {
    rig *rig;
    rig_model stable, fresh;
    fs_route *route;
} pair;

static fs_route *route(enum fs_route_mode mode, double share)
{
    fs_route_settings settings = {.mode = mode, .versions = {1, 2}, .share = share, .max_difference = 1e-3,
                                  .sticky_header = fs_slice_of("x-big")};
    fs_route *made = fs_route_new(fs_slice_of("m"), &settings);
    REQUIRE(made != NULL);
    return made;
}

static void set_up(pair *p, int executors, bool compress, const char *options)
{
    fs_engine_config config = rig_config(executors);
    config.executors.compress_replies = compress;
    p->rig = rig_start(&config);
    p->stable = rig_model_make("m", 1, NULL);
    rig_serve(p->rig, &p->stable);
    p->fresh = rig_model_make("m", 2, NULL);
    snprintf(p->fresh.path, sizeof p->fresh.path, "new null:%s", options);
    rig_serve(p->rig, &p->fresh);
    p->route = route(FS_ROUTE_SHADOW, 1);
    rig_route(p->rig, "m", p->route);
}

static void tear_down(pair *p)
{
    if (p->stable.servable != NULL)
        rig_unserve(p->rig, &p->stable);
    if (p->fresh.servable != NULL)
        rig_unserve(p->rig, &p->fresh);
    rig_route(p->rig, "m", NULL);
    rig_stop(p->rig);
    CHECK_EQ(atomic_load(&p->route->refs), 1);
    CHECK_EQ(atomic_load(&p->route->shadow_bytes), 0);
    fs_route_unref(p->route);
}

/* Holds the new version's runs back, or lets them go. */
static void hold(pair *p, bool shut)
{
    pthread_mutex_lock(&p->rig->probe.mutex);
    strcpy(p->rig->probe.only, "new");
    pthread_mutex_unlock(&p->rig->probe.mutex);
    probe_gate(&p->rig->probe, shut);
}

static uint64_t ended(const fs_route *r)
{
    return atomic_load(&r->shadow.compared) + atomic_load(&r->shadow.failed) + atomic_load(&r->shadow.dropped) +
           atomic_load(&r->shadow.skipped);
}

/* Waits until that many shadows have come to an end. */
static void await(const pair *p, uint64_t n)
{
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (ended(p->route) < n) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&p->rig->end, 1);
    }
    CHECK_EQ(ended(p->route), n);
}

static void test_answers_are_the_stable_versions_and_rows_are_compared(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    const float values[] = {4, 6, 4}; /* of 4, both make 4; of 6, 5 and 6 */
    for (uint64_t i = 1; i <= 10; i++) {
        peer_call *c = rig_call(p.rig, rig_floats("m", values, 3));
        CHECK_ANSWER(c, FS_OK, "");
        rig_check_halves(p.rig->end.slab, c->body, c->body_len, values, 3);
        await(&p, i);
    }
    const fs_shadow_tally *t = &p.route->shadow;
    CHECK_EQ(atomic_load(&t->compared), 10);
    CHECK_EQ(atomic_load(&t->rows), 30);
    CHECK_EQ(atomic_load(&t->different_rows), 10);
    CHECK(atomic_load(&t->largest_difference) > 0.199 && atomic_load(&t->largest_difference) < 0.201);
    CHECK_EQ(atomic_load(&t->missing_outputs), 0);
    for (int side = 0; side < FS_SIDES; side++)
        CHECK_EQ(fs_figures_read(&p.route->figures[side], FS_OUTCOME_OK), 10);
    /* Who names a version is not shadowed. */
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = ONE, .bytes = 4};
    CHECK_ANSWER(rig_call(p.rig, rig_request_frame(&(rig_request){.model = "m", .has_version = true, .version = 1,
                                                                  .inputs = &x, .n_inputs = 1})), FS_OK, "");
    CHECK_EQ(fs_figures_read(&p.route->figures[FS_SIDE_STABLE], FS_OUTCOME_OK), 10);
    CHECK_EQ(ended(p.route), 10);
    tear_down(&p);
}

static void test_nobody_waits_for_a_shadow(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    hold(&p, true);
    for (int i = 0; i < 5; i++) {
        CHECK_ANSWER(rig_call(p.rig, rig_floats("m", ONE, 1)), FS_OK, "");
        if (i == 0)
            probe_wait(&p.rig->probe, 1); /* the first is run by one executor, for as long as the gate is shut */
    }
    CHECK_EQ(ended(p.route), 0);
    hold(&p, false);
    await(&p, 5);
    CHECK_EQ(atomic_load(&p.route->shadow.compared), 5);
    tear_down(&p);
}

static void test_what_only_the_new_version_fails_is_counted(void)
{
    pair p;
    set_up(&p, 2, false, "fail_every=1");
    for (uint64_t i = 1; i <= 4; i++) {
        CHECK_ANSWER(rig_call(p.rig, rig_floats("m", ONE, 1)), FS_OK, "");
        await(&p, i);
    }
    CHECK_EQ(atomic_load(&p.route->shadow.failed), 4);
    CHECK_EQ(fs_figures_read(&p.route->figures[FS_SIDE_FRESH], FS_OUTCOME_FAILED), 4);
    CHECK_EQ(fs_figures_read(&p.route->figures[FS_SIDE_STABLE], FS_OUTCOME_OK), 4);
    /* What the stable version refuses has no shadow. */
    rig_input x = {.alias = "z", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = ONE, .bytes = 4};
    rig_call(p.rig, rig_request_frame(&(rig_request){.model = "m", .inputs = &x, .n_inputs = 1}));
    CHECK_EQ(fs_figures_read(&p.route->figures[FS_SIDE_STABLE], FS_OUTCOME_REFUSED), 1);
    CHECK_EQ(ended(p.route), 4);
    tear_down(&p);
}

static void test_a_signature_that_is_gone_is_a_failure(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    rig_unserve(p.rig, &p.fresh);
    p.fresh.spec.n_signatures = 1; /* serving_default alone */
    rig_serve(p.rig, &p.fresh);
    const float a[] = {1, 2};
    rig_input in[] = {{.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 2}, .content = a, .bytes = 8},
                      {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = a, .bytes = 4}};
    rig_request request = {.model = "m", .signature = "pair", .inputs = in, .n_inputs = 2};
    CHECK_ANSWER(rig_call(p.rig, rig_request_frame(&request)), FS_OK, "");
    await(&p, 1);
    CHECK_EQ(atomic_load(&p.route->shadow.failed), 1);
    tear_down(&p);
}

/* A request of one row of so many floats; its reply is as large. */
static pb wide(int64_t floats)
{
    float *values = calloc((size_t)floats, sizeof *values);
    REQUIRE(values != NULL);
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, floats}, .content = values,
                   .bytes = (size_t)floats * sizeof *values};
    pb frame = rig_request_frame(
        &(rig_request){.model = "m", .signature = "ragged", .inputs = &x, .n_inputs = 1});
    free(values);
    return frame;
}

static void test_memory_for_shadows_is_bounded(void)
{
    enum { FLOATS = 65000, CALLS = 80 };
    pair p;
    set_up(&p, 2, false, "");
    hold(&p, true);
    pb frame = wide(FLOATS);
    for (int i = 0; i < CALLS; i++)
        CHECK_ANSWER(rig_call(p.rig, wide(FLOATS)), FS_OK, "");
    uint64_t dropped = atomic_load(&p.route->shadow.dropped);
    size_t fit = FS_SHADOW_BUDGET / (2 * frame.len);
    CHECK(dropped >= CALLS - fit && dropped <= CALLS - fit + 1);
    CHECK(atomic_load(&p.route->shadow_bytes) <= FS_SHADOW_BUDGET);
    hold(&p, false);
    await(&p, CALLS);
    CHECK_EQ(atomic_load(&p.route->shadow.compared), CALLS - dropped);
    CHECK_EQ(atomic_load(&p.route->shadow.different_rows), 0);
    CHECK_ANSWER(rig_call(p.rig, wide(FLOATS)), FS_OK, ""); /* there is room again */
    await(&p, CALLS + 1);
    CHECK_EQ(atomic_load(&p.route->shadow.dropped), dropped);
    free(frame.data);
    tear_down(&p);
}

static void test_what_is_large_or_in_pieces_is_skipped(void)
{
    const float values[9] = {0}; /* a batch takes 8 rows */
    pair p;
    set_up(&p, 2, false, "op=echo");
    CHECK_ANSWER(rig_call(p.rig, rig_floats("m", values, 9)), FS_OK, "");
    CHECK_EQ(atomic_load(&p.route->shadow.skipped), 1);
    CHECK_ANSWER(rig_call(p.rig, wide((int64_t)FS_SHADOW_LARGEST / 4 + 1)), FS_OK, "");
    CHECK_ANSWER(rig_call(p.rig, wide((int64_t)FS_SHADOW_LARGEST_REPLY / 4 + 1)), FS_OK, "");
    CHECK_EQ(atomic_load(&p.route->shadow.skipped), 3);
    /* Alone is no obstacle. */
    const float scalar[] = {3};
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 0, .content = scalar, .bytes = 4};
    CHECK_ANSWER(rig_call(p.rig, rig_request_frame(&(rig_request){.model = "m", .signature = "scalar",
                                                                  .inputs = &x, .n_inputs = 1})), FS_OK, "");
    await(&p, 4);
    CHECK_EQ(atomic_load(&p.route->shadow.rows), 1);
    CHECK_EQ(atomic_load(&p.route->shadow.different_rows), 1); /* 3.5 and 3 */
    tear_down(&p);
}

static void test_compressed_requests_and_replies(void)
{
    enum { ROWS = 2000 };
    static float values[ROWS];
    pair p;
    set_up(&p, 2, true, "op=echo");
    rig_unserve(p.rig, &p.stable);
    rig_unserve(p.rig, &p.fresh);
    p.stable.batching.max_batch_size = p.fresh.batching.max_batch_size = ROWS;
    rig_serve(p.rig, &p.stable);
    rig_serve(p.rig, &p.fresh);
    for (int i = 0; i < ROWS; i++)
        values[i] = i % 2 == 0 ? 4 : 8;
    pb frame = rig_floats("m", values, ROWS), small = {0};
    uint8_t *block;
    size_t len;
    REQUIRE(fs_deflate(p.rig->end.slab, FS_DEFLATE, frame.data + FS_GRPC_PREFIX_BYTES,
                       frame.len - FS_GRPC_PREFIX_BYTES, FS_GRPC_PREFIX_BYTES, &block, &len) == 0);
    fs_grpc_prefix_write(block, true, (uint32_t)(len - FS_GRPC_PREFIX_BYTES));
    pb_raw(&small, block, len);
    fs_slab_free(block);
    peer_call *c = peer_submit(p.rig->end.peer,
                               (peer_request){.path = RIG_PREDICT, .up = small.data, .up_len = small.len,
                                              .encoding = "deflate", .accept = "deflate"});
    rig_settle(&p.rig->end);
    CHECK_ANSWER(c, FS_OK, "");
    CHECK_EQ(c->body[0], 1); /* the reply is compressed */
    await(&p, 1);
    CHECK_EQ(atomic_load(&p.route->shadow.rows), ROWS);
    CHECK_EQ(atomic_load(&p.route->shadow.different_rows), ROWS / 2); /* of 8, 6 and 8 */
    free(frame.data);
    free(small.data);
    tear_down(&p);
}

/* The copy is of what was sent, and the new version gives the row to all as the stable one does. */
static void test_one_row_for_all_is_one_in_the_copy(void)
{
    enum { ROWS = 6 };
    static const bool broadcast[] = {true, false};
    static const float values[ROWS] = {4, 4, 4, 4, 4, 4}; /* of 4, both versions make 4 */
    pair p;
    set_up(&p, 2, false, "op=echo");
    rig_unserve(p.rig, &p.stable);
    rig_unserve(p.rig, &p.fresh);
    p.stable.plans[RIG_PAIR].broadcast = p.fresh.plans[RIG_PAIR].broadcast = broadcast;
    rig_serve(p.rig, &p.stable);
    rig_serve(p.rig, &p.fresh);
    rig_input in[] = {
        {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 2}, .content = values, .bytes = 8},
        {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {ROWS}, .content = values, .bytes = ROWS * 4}};
    CHECK_ANSWER(rig_call(p.rig, rig_request_frame(&(rig_request){.model = "m", .signature = "pair", .inputs = in,
                                                                  .n_inputs = 2})), FS_OK, "");
    await(&p, 1);
    CHECK_EQ(atomic_load(&p.route->shadow.compared), 1);
    CHECK_EQ(atomic_load(&p.route->shadow.rows), ROWS);
    CHECK_EQ(atomic_load(&p.route->shadow.different_rows), 0);
    CHECK_EQ(fs_servable_count(p.fresh.servable, RIG_PAIR, FS_COUNT_ROWS), ROWS);
    tear_down(&p);
}

static void test_the_new_version_closes_when_its_shadows_have_ended(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    hold(&p, true);
    for (int i = 0; i < 3; i++)
        CHECK_ANSWER(rig_call(p.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    probe_wait(&p.rig->probe, 1);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&p.fresh.servable->pins) < 5) /* published, an executor's, and a shadow each */
        REQUIRE(fs_now_us() < until_us);
    rig_task t = rig_task_of(&p.fresh, FS_TASK_RETIRE);
    rig_post(p.rig, &t);
    /* The stable version goes meanwhile: nothing of it is needed any more. */
    rig_unserve(p.rig, &p.stable);
    CHECK(!t.done);
    hold(&p, false);
    rig_await(p.rig, &t);
    CHECK_OK(t.task.rc);
    await(&p, 3);
    CHECK_EQ(atomic_load(&p.route->shadow.compared), 3);
    CHECK_OK(rig_do(p.rig, &p.fresh, FS_TASK_CLOSE));
    p.fresh.servable = p.stable.servable = NULL;
    tear_down(&p);
}

static void test_without_the_new_version_shadows_are_not_made(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    rig_unserve(p.rig, &p.fresh);
    p.fresh.servable = NULL;
    CHECK_ANSWER(rig_call(p.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    CHECK_EQ(ended(p.route), 0);
    tear_down(&p);
}

/* The queue of a version that is behind takes no more: its shadows are dropped, and nobody else's calls. */
static void test_a_full_queue_drops_shadows(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    rig_unserve(p.rig, &p.fresh);
    p.fresh.batching.max_batch_size = 4;
    p.fresh.batching.max_enqueued_batches = 1;
    rig_serve(p.rig, &p.fresh);
    hold(&p, true);
    for (uint64_t i = 0; i < 10; i++) {
        CHECK_ANSWER(rig_call(p.rig, rig_floats("m", ONE, 1)), FS_OK, "");
        if (i == 0)
            probe_wait(&p.rig->probe, 1);
    }
    await(&p, 5); /* one runs, four wait */
    CHECK_EQ(atomic_load(&p.route->shadow.dropped), 5);
    hold(&p, false);
    await(&p, 10);
    CHECK_EQ(atomic_load(&p.route->shadow.compared), 5);
    tear_down(&p);
}

static void test_a_version_that_runs_shadows_gets_less_than_its_weight(void)
{
    pair p;
    set_up(&p, 1, false, "busy=1,run_us=2000");
    rig_model other = rig_model_make("other", 1, "busy=1,run_us=2000");
    rig_serve(p.rig, &other);
    for (uint64_t i = 1; i <= 5; i++) {
        CHECK_ANSWER(rig_call(p.rig, rig_floats("m", ONE, 1)), FS_OK, "");
        await(&p, i);
    }
    rig_check_idle(&p.fresh);
    long long shadows_us = atomic_load(&p.fresh.servable->virtual_us);
    CHECK(shadows_us >= 5 * 2000 * 16);
    for (int i = 0; i < 5; i++)
        CHECK_ANSWER(rig_call(p.rig, rig_floats("other", ONE, 1)), FS_OK, "");
    rig_check_idle(&other);
    /* It starts at the present, and is charged for what it was given and no more. */
    CHECK(atomic_load(&other.servable->virtual_us) < shadows_us + 5 * 2000 * 8);
    rig_unserve(p.rig, &other);
    tear_down(&p);
}

static void test_a_caller_that_goes_away_leaves_its_shadow_or_none(void)
{
    pair p;
    set_up(&p, 2, false, "op=echo");
    probe_gate(&p.rig->probe, true);
    pb frame = rig_floats("m", ONE, 1);
    peer_call *c = rig_send(&p.rig->end, &frame, NULL);
    probe_wait(&p.rig->probe, 1);
    REQUIRE(nghttp2_submit_rst_stream(p.rig->end.peer->client, 0, c->id, NGHTTP2_CANCEL) == 0);
    peer_pump(p.rig->end.peer);
    probe_gate(&p.rig->probe, false);
    await(&p, 1); /* it had been run */
    CHECK_EQ(atomic_load(&p.route->shadow.compared), 1);
    free(frame.data);
    tear_down(&p);
}

static void test_a_header_says_who_is_shadowed(void)
{
    enum { USERS = 20, EACH = 3 };
    pair p;
    set_up(&p, 2, false, "op=echo");
    fs_route *some = route(FS_ROUTE_SHADOW, 0.5);
    rig_route(p.rig, "m", some);
    fs_route_unref(p.route);
    p.route = some;
    pb frame = rig_floats("m", ONE, 1);
    uint64_t due = 0;
    for (int i = 0; i < USERS; i++) {
        char user[32];
        snprintf(user, sizeof user, "user-%d", i);
        fs_kept kept = {0};
        fs_sticky_keep(p.rig->limits.sticky, fs_slice_of("x-big"), fs_slice_of(user), &kept);
        uint64_t random = 0;
        bool taken = fs_route_takes(some, &kept, &random);
        CHECK_EQ(random, 0); /* the header was there */
        for (int k = 0; k < EACH; k++) {
            peer_submit(p.rig->end.peer, (peer_request){.path = RIG_PREDICT, .up = frame.data,
                                                        .up_len = frame.len, .big = user});
            peer_pump(p.rig->end.peer);
            rig_settle(&p.rig->end);
        }
        due += taken ? EACH : 0;
        await(&p, due);
    }
    CHECK(due >= 3 * EACH && due <= (USERS - 3) * EACH);
    free(frame.data);
    tear_down(&p);
}

/* A call as its owner has it back, answered with `reply`. */
static fs_call *answered(pair *p, fs_slab *slab, fs_rpc *rpc, const peer_call *reply)
{
    pb frame = rig_floats("m", ONE, 1);
    fs_call *call = calloc(1, sizeof *call);
    REQUIRE(call != NULL);
    *rpc = (fs_rpc){.message_len = frame.len - FS_GRPC_PREFIX_BYTES};
    rpc->message = fs_slab_alloc(slab, rpc->message_len);
    call->reply = fs_slab_alloc(slab, reply->body_len);
    call->reply_len = reply->body_len;
    REQUIRE(rpc->message != NULL && call->reply != NULL);
    memcpy(rpc->message, frame.data + FS_GRPC_PREFIX_BYTES, rpc->message_len);
    memcpy(call->reply, reply->body, reply->body_len);
    call->rpc = rpc;
    call->owner = &p->rig->end.owner;
    call->route = p->route;
    free(frame.data);
    return call;
}

/* The one shadow that is on its way ends, whatever allocation fails meanwhile. */
static bool shadow_without_memory(long n)
{
    pair p;
    set_up(&p, 1, false, "op=echo");
    rig_route(p.rig, "m", NULL); /* so that the shadows' slab is empty */
    peer_call *reply = rig_call(p.rig, rig_floats("m", ONE, 1));
    rig_route(p.rig, "m", p.route);
    fs_rpc rpc;
    fs_call *call = answered(&p, p.rig->end.slab, &rpc, reply);
    fs_shadow *shadow = fs_shadow_of(call);
    REQUIRE(shadow != NULL);
    CHECK(rpc.message == NULL && call->reply != NULL);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    failmalloc_after(n);
    fs_shadows_post(p.rig->engine->shadows, shadow);
    while (ended(p.route) < 1)
        REQUIRE(fs_now_us() < until_us);
    failmalloc_after(-1);
    bool fired = failmalloc_fired();
    CHECK(fired || atomic_load(&p.route->shadow.compared) == 1);
    fs_slab_free(call->reply);
    free(call);
    rig_check_idle(&p.fresh);
    until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&p.route->shadow_bytes) != 0 || atomic_load(&p.route->refs) > 2)
        REQUIRE(fs_now_us() < until_us);
    tear_down(&p);
    return fired;
}

static void test_any_allocation_may_fail(void)
{
    long failed = 0;
    for (long n = 1; shadow_without_memory(n); n++)
        failed++;
    CHECK(failed >= 1);
}

static void test_without_memory_for_it_there_is_no_shadow(void)
{
    pair p;
    set_up(&p, 1, false, "op=echo");
    peer_call *reply = rig_call(p.rig, rig_floats("m", ONE, 1));
    await(&p, 1);
    fs_slab *slab = fs_slab_new(0), *used = p.rig->end.owner.slab;
    REQUIRE(slab != NULL);
    fs_rpc rpc;
    fs_call *call = answered(&p, slab, &rpc, reply);
    p.rig->end.owner.slab = slab;
    failmalloc_after(1);
    CHECK(fs_shadow_of(call) == NULL);
    failmalloc_after(-1);
    p.rig->end.owner.slab = used;
    CHECK(failmalloc_fired());
    CHECK(rpc.message != NULL && call->reply != NULL);
    CHECK_EQ(atomic_load(&p.route->shadow.dropped), 1);
    fs_slab_free(rpc.message);
    fs_slab_free(call->reply);
    free(call);
    fs_slab_release(slab);
    tear_down(&p);
}

int main(void)
{
    test_answers_are_the_stable_versions_and_rows_are_compared();
    test_nobody_waits_for_a_shadow();
    test_what_only_the_new_version_fails_is_counted();
    test_a_signature_that_is_gone_is_a_failure();
    test_memory_for_shadows_is_bounded();
    test_what_is_large_or_in_pieces_is_skipped();
    test_compressed_requests_and_replies();
    test_one_row_for_all_is_one_in_the_copy();
    test_the_new_version_closes_when_its_shadows_have_ended();
    test_without_the_new_version_shadows_are_not_made();
    test_a_full_queue_drops_shadows();
    test_a_version_that_runs_shadows_gets_less_than_its_weight();
    test_a_caller_that_goes_away_leaves_its_shadow_or_none();
    test_a_header_says_who_is_shadowed();
    test_any_allocation_may_fail();
    test_without_memory_for_it_there_is_no_shadow();
    return check_done();
}
