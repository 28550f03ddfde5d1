/* trace: what an engine tells of its batches, calls and tasks, and that it tells nothing unasked. */
#include "trace.h"

#include <sys/mman.h>
#include <unistd.h>

#include "engine_rig.h"
#include "random.h"

#define TRACE "0af7651916cd43dd8448eb211c80319c"
#define SAMPLED "00-" TRACE "-b7ad6b7169203331-01"
#define NOT_SAMPLED "00-" TRACE "-b7ad6b7169203331-00"

enum { TRACKS = 16, EVENTS = 4096 };

static const float ONE[] = {1}, TWO[] = {1, 2};
static const uint8_t TRACE_ID[] = {0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd,
                                   0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c};
static const uint8_t PARENT_ID[] = {0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31};

/* A rig whose engine tells, and a reader. */
typedef struct world {
    int fd;
    fs_trace *trace;
    fs_trace_view view;
    rig *r;
    uint64_t at[TRACKS];
    uint64_t lost;
    struct {
        char track[FS_TRACE_NAME_BYTES];
        fs_trace_event event;
    } events[EVENTS];
    int n;
} world;

static world *world_new(fs_engine_config config)
{
    world *w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->fd = memfd_create("trace", MFD_CLOEXEC);
    REQUIRE(w->fd >= 0);
    REQUIRE(ftruncate(w->fd, (off_t)(sizeof(fs_trace_shared) + TRACKS * sizeof(fs_trace_ring))) == 0);
    REQUIRE((w->trace = fs_trace_open(w->fd, TRACKS)) != NULL && fs_trace_map(w->fd, &w->view) == 0);
    config.trace = w->trace;
    w->r = rig_start(&config);
    return w;
}

static void world_free(world *w)
{
    rig_stop(w->r);
    CHECK_EQ(w->lost, 0);
    fs_trace_unmap(&w->view);
    fs_trace_close(w->trace);
    close(w->fd);
    free(w);
}

static void want(const world *w, uint32_t wanted, double share)
{
    fs_trace_want(&w->view, wanted, fs_random_share(share));
}

/* Reads what is new; events before are forgotten. */
static void look(world *w)
{
    w->n = 0;
    const char *name;
    for (uint32_t i = 0; (name = fs_trace_track_name(&w->view, i)) != NULL; i++) {
        while (w->n < EVENTS && fs_trace_read(&w->view, i, &w->at[i], &w->events[w->n].event, &w->lost))
            snprintf(w->events[w->n++].track, FS_TRACE_NAME_BYTES, "%s", name);
    }
}

static int count(const world *w, enum fs_trace_kind kind)
{
    int n = 0;
    for (int i = 0; i < w->n; i++)
        n += w->events[i].event.kind == kind;
    return n;
}

/* The n-th event of that kind on a track whose name begins so. */
static const fs_trace_event *find(const world *w, enum fs_trace_kind kind, const char *track, int n)
{
    for (int i = 0; i < w->n; i++) {
        if (w->events[i].event.kind == kind && strncmp(w->events[i].track, track, strlen(track)) == 0 && n-- == 0)
            return &w->events[i].event;
    }
    fprintf(stderr, "no event of kind %d on %s\n", (int)kind, track);
    exit(1);
}

static bool named(const fs_trace_event *event, const char *model, const char *signature)
{
    return event->model_len == strlen(model) && memcmp(event->model, model, event->model_len) == 0 &&
           event->signature_len == strlen(signature) &&
           memcmp(event->signature, signature, event->signature_len) == 0;
}

static peer_call *call(world *w, const char *path, pb frame, const char *traceparent, const char *encoding)
{
    rig_end *end = &w->r->end;
    peer_call *c = peer_submit(end->peer, (peer_request){.path = path, .up = frame.data, .up_len = frame.len,
                                                         .traceparent = traceparent, .encoding = encoding});
    end->peer->now_us = fs_now_us();
    peer_pump(end->peer);
    rig_settle(end);
    free(frame.data);
    return c;
}

static peer_call *predict(world *w, const char *model, const char *traceparent)
{
    return call(w, RIG_PREDICT, rig_floats(model, TWO, 2), traceparent, NULL);
}

/* The executor tells of a batch after it has let go of the calls' replies: not much later. */
static void look_for(world *w, enum fs_trace_kind kind, int n)
{
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    uint64_t from[TRACKS];
    memcpy(from, w->at, sizeof from);
    do {
        REQUIRE(fs_now_us() < until_us);
        memcpy(w->at, from, sizeof from);
        look(w);
    } while (count(w, kind) < n);
}

static void test_unasked_nothing_is_told_but_tasks(void)
{
    world *w = world_new(rig_config(2));
    rig_model m = rig_model_make("m", 3, NULL);
    rig_serve(w->r, &m);
    CHECK_ANSWER(predict(w, "m", SAMPLED), FS_OK, "");
    rig_check_idle(&m);
    rig_unserve(w->r, &m);
    look(w);
    CHECK_EQ(count(w, FS_TRACE_TASK_BEGUN), count(w, FS_TRACE_TASK));
    CHECK_EQ(count(w, FS_TRACE_TASK) + count(w, FS_TRACE_TASK_BEGUN), w->n);
    const fs_trace_event *load = find(w, FS_TRACE_TASK, "fs-load-0", 0);
    CHECK_EQ(load->detail, FS_TASK_LOAD);
    CHECK(named(load, "m", ""));
    CHECK_EQ(load->version, 3);
    CHECK_EQ(load->code, FS_OK);
    CHECK(load->begin_us <= load->at_us[0] && load->at_us[0] <= load->end_us && load->at_us[0] > 0);
    CHECK_EQ(find(w, FS_TRACE_TASK_BEGUN, "fs-load-0", 0)->begin_us, load->begin_us);
    CHECK_EQ(find(w, FS_TRACE_TASK_BEGUN, "fs-load-0", 0)->end_us, 0);
    CHECK_EQ(find(w, FS_TRACE_TASK, "fs-load-0", 1)->detail, FS_TASK_CLOSE);
    CHECK(named(find(w, FS_TRACE_TASK, "fs-load-0", 1), "m", ""));
    const fs_trace_event *publish = find(w, FS_TRACE_TASK, "fs-switch", 0);
    CHECK_EQ(publish->detail, FS_TASK_PUBLISH);
    CHECK_EQ(find(w, FS_TRACE_TASK, "fs-switch", 1)->detail, FS_TASK_RETIRE);
    world_free(w);
}

static void test_a_load_that_fails_says_so(void)
{
    world *w = world_new(rig_config(1));
    rig_model m = rig_model_make("m", 1, "no_such_option=1");
    CHECK(rig_do(w->r, &m, FS_TASK_LOAD) != 0);
    look(w);
    CHECK(find(w, FS_TRACE_TASK, "fs-load-0", 0)->code != FS_OK);
    world_free(w);
}

static void test_a_recording_has_batches_and_warm_up_runs(void)
{
    world *w = world_new(rig_config(1));
    want(w, FS_TRACE_RECORDING, 0);
    rig_model m = rig_model_make("m", 1, "compiled_rows=1:2:4:8");
    m.plans[RIG_HALF].compiled = true;
    rig_serve(w->r, &m);
    look(w);
    CHECK(count(w, FS_TRACE_WARM_RUN) >= 5 * RIG_SIGNATURES - 4);
    const fs_trace_event *warm = find(w, FS_TRACE_WARM_RUN, "fs-load-0", 1);
    CHECK(named(warm, "m", "serving_default"));
    CHECK_EQ(warm->flags, FS_TRACE_COMPILED);
    CHECK_EQ(warm->rows, 1);
    const fs_trace_event *load = find(w, FS_TRACE_TASK, "fs-load-0", 0);
    CHECK(load->at_us[0] <= warm->begin_us && warm->begin_us <= warm->end_us && warm->end_us <= load->end_us);

    float three[] = {1, 2, 3};
    int64_t before_us = fs_now_us();
    CHECK_ANSWER(call(w, RIG_PREDICT, rig_floats("m", three, 3), NULL, NULL), FS_OK, "");
    look_for(w, FS_TRACE_BATCH, 1);
    const fs_trace_event *batch = find(w, FS_TRACE_BATCH, "fs-exec-0", 0);
    CHECK(named(batch, "m", "serving_default"));
    CHECK_EQ(batch->rows, 3);
    CHECK_EQ(batch->run_rows, 4);
    CHECK_EQ(batch->count, 1);
    CHECK_EQ(batch->flags, FS_TRACE_COMPILED);
    CHECK(before_us <= batch->begin_us && batch->begin_us <= batch->at_us[0] && batch->at_us[0] <= batch->at_us[1] &&
          batch->at_us[1] <= batch->end_us);
    CHECK_EQ(count(w, FS_TRACE_CALL), 0);

    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .content = ONE, .bytes = 4};
    rig_request q = {.model = "m", .signature = "scalar", .inputs = &x, .n_inputs = 1};
    CHECK_ANSWER(call(w, RIG_PREDICT, rig_request_frame(&q), NULL, NULL), FS_OK, "");
    look_for(w, FS_TRACE_BATCH, 1);
    CHECK_EQ(find(w, FS_TRACE_BATCH, "fs-exec-0", 0)->flags, FS_TRACE_SOLO);
    want(w, 0, 0);
    predict(w, "m", NULL);
    rig_check_idle(&m);
    look(w);
    CHECK_EQ(w->n, 0);
    rig_unserve(w->r, &m);
    world_free(w);
}

static void check_span(const fs_trace_event *span, bool parent)
{
    CHECK_EQ(span->flags & FS_TRACE_PARENT, parent ? FS_TRACE_PARENT : 0);
    if (parent) {
        CHECK_MEM(span->trace_id, TRACE_ID, sizeof TRACE_ID);
        CHECK_MEM(span->parent_id, PARENT_ID, sizeof PARENT_ID);
    }
    CHECK(span->begin_us > 0 && span->begin_us <= span->at_us[0]);
    for (int i = 1; i < 4; i++)
        CHECK(span->at_us[i - 1] <= span->at_us[i]);
    CHECK(span->at_us[3] <= span->end_us && span->end_us <= fs_now_us());
}

static void test_a_call_has_a_span_if_its_caller_says_so(void)
{
    world *w = world_new(rig_config(1));
    rig_model m = rig_model_make("m", 7, NULL);
    rig_serve(w->r, &m);
    look(w);
    want(w, FS_TRACE_SPANS, 0);
    static const char *const without[] = {NULL, NOT_SAMPLED, "nonsense", "00-" TRACE "-0000000000000000-01"};
    for (int i = 0; i < 4; i++)
        CHECK_ANSWER(predict(w, "m", without[i]), FS_OK, "");
    CHECK_ANSWER(predict(w, "m", SAMPLED), FS_OK, "");
    look(w);
    CHECK_EQ(w->n, 1);
    const fs_trace_event *span = find(w, FS_TRACE_CALL, "loop", 0);
    check_span(span, true);
    CHECK(named(span, "m", "serving_default"));
    CHECK_EQ(span->version, 7);
    CHECK_EQ(span->rows, 2);
    CHECK_EQ(span->count, 2);
    CHECK_EQ(span->run_rows, 2);
    CHECK_EQ(span->method, FS_CALL_PREDICT);
    CHECK_EQ(span->code, FS_OK);
    rig_unserve(w->r, &m);
    world_free(w);
}

static void test_lots_decide_where_no_caller_does(void)
{
    world *w = world_new(rig_config(2));
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w->r, &m);
    look(w);
    want(w, FS_TRACE_SPANS, 1);
    predict(w, "m", NULL);
    predict(w, "m", NOT_SAMPLED); /* it does */
    predict(w, "m", "nonsense");
    look(w);
    CHECK_EQ(w->n, 2);
    for (int i = 0; i < w->n; i++)
        check_span(&w->events[i].event, false);
    want(w, FS_TRACE_SPANS, 0.25);
    for (int i = 0; i < 400; i++) {
        predict(w, "m", NULL);
        peer_forget(w->r->end.peer);
    }
    look(w);
    CHECK(w->n > 50 && w->n < 150);
    rig_unserve(w->r, &m);
    world_free(w);
}

static void test_what_never_ran_is_told_too(void)
{
    world *w = world_new(rig_config(1));
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w->r, &m);
    look(w);
    want(w, FS_TRACE_SPANS, 1);
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = ONE, .bytes = 4};
    rig_request q = {.model = "nobody", .signature = "s", .has_version = true, .version = 9, .inputs = &x,
                     .n_inputs = 1};
    CHECK_EQ(atoi(call(w, RIG_PREDICT, rig_request_frame(&q), SAMPLED, NULL)->grpc_status), FS_NOT_FOUND);
    look(w);
    CHECK_EQ(w->n, 1);
    const fs_trace_event *span = find(w, FS_TRACE_CALL, "loop", 0);
    CHECK_EQ(span->code, FS_NOT_FOUND);
    CHECK(named(span, "nobody", "s"));
    CHECK_EQ(span->version, 9);
    CHECK_EQ(span->at_us[0], 0);
    CHECK(span->begin_us > 0 && span->end_us >= span->begin_us);
    CHECK_EQ(atoi(call(w, RIG_PREDICT, rig_request_frame(&q), NOT_SAMPLED, NULL)->grpc_status), FS_NOT_FOUND);
    look(w);
    CHECK_EQ(w->n, 0);

    /* Not gzip. */
    pb broken = {0};
    pb_raw(&broken, "\1\0\0\0\4abcd", 9);
    CHECK(atoi(call(w, RIG_PREDICT, broken, SAMPLED, "gzip")->grpc_status) != FS_OK);
    look(w);
    CHECK_EQ(w->n, 1);
    CHECK_EQ(find(w, FS_TRACE_CALL, "loop", 0)->model_len, 0);

    /* Its deadline passes while another runs. */
    probe_gate(&w->r->probe, true);
    pb frame = rig_floats("m", ONE, 1);
    rig_send(&w->r->end, &frame, NULL);
    probe_wait(&w->r->probe, 1);
    rig_send(&w->r->end, &frame, "1m");
    usleep(2000);
    probe_gate(&w->r->probe, false);
    rig_settle(&w->r->end);
    look(w);
    CHECK_EQ(w->n, 2);
    span = find(w, FS_TRACE_CALL, "loop", 0);
    if (span->code == FS_OK)
        span = find(w, FS_TRACE_CALL, "loop", 1);
    CHECK_EQ(span->code, FS_DEADLINE_EXCEEDED);
    CHECK(named(span, "m", "serving_default"));
    CHECK_EQ(span->at_us[0], 0);
    free(frame.data);
    rig_unserve(w->r, &m);
    world_free(w);
}

static void test_a_call_that_is_dropped_beside_a_batch_has_not_run(void)
{
    world *w = world_new(rig_config(1));
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w->r, &m);
    look(w);
    want(w, FS_TRACE_SPANS, 1);
    pb frame = rig_floats("m", ONE, 1);
    probe_gate(&w->r->probe, true);
    rig_send(&w->r->end, &frame, NULL);
    probe_wait(&w->r->probe, 1);
    rig_send(&w->r->end, &frame, "1m"); /* taken together, when it is too late for the first */
    rig_send(&w->r->end, &frame, NULL);
    usleep(2000);
    probe_gate(&w->r->probe, false);
    rig_settle(&w->r->end);
    look(w);
    CHECK_EQ(w->n, 3);
    int late = 0;
    for (int i = 0; i < w->n; i++) {
        const fs_trace_event *span = &w->events[i].event;
        if (span->code == FS_DEADLINE_EXCEEDED) {
            late++;
            CHECK_EQ(span->at_us[0], 0);
            CHECK_EQ(span->count, 0);
        } else {
            check_span(span, false);
            CHECK_EQ(span->count, 1);
        }
    }
    CHECK_EQ(late, 1);
    free(frame.data);
    rig_unserve(w->r, &m);
    world_free(w);
}

static void test_a_call_in_pieces_has_one_span(void)
{
    world *w = world_new(rig_config(2));
    rig_model m = rig_model_make("m", 1, NULL);
    rig_serve(w->r, &m);
    look(w);
    want(w, FS_TRACE_SPANS, 0);
    float many[100] = {0};
    CHECK_ANSWER(call(w, RIG_PREDICT, rig_floats("m", many, 100), SAMPLED, NULL), FS_OK, "");
    look(w);
    CHECK_EQ(w->n, 1);
    const fs_trace_event *span = find(w, FS_TRACE_CALL, "loop", 0);
    check_span(span, true);
    CHECK_EQ(span->rows, 100);
    CHECK(span->count <= 8);
    rig_unserve(w->r, &m);
    world_free(w);
}

static void test_without_memory_for_a_span_the_call_is_served(void)
{
    world *w = world_new(rig_config(1));
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.max_batch_size = 1 << 20;
    rig_serve(w->r, &m);
    want(w, FS_TRACE_SPANS | FS_TRACE_RECORDING, 1);
    pb frame = rig_floats("m", ONE, 1);
    pb bytes = rig_opening_bytes(RIG_PREDICT, &frame);
    bool fired = true;
    for (long n = 1; fired; n++)
        fired = rig_call_without_memory(w->r, &m, &bytes, n);
    CHECK_ANSWER(predict(w, "m", SAMPLED), FS_OK, "");
    look(w);
    CHECK(count(w, FS_TRACE_CALL) >= 1);
    rig_check_idle(&m);
    rig_unserve(w->r, &m);
    free(frame.data);
    free(bytes.data);
    world_free(w);
}

int main(void)
{
    test_unasked_nothing_is_told_but_tasks();
    test_a_load_that_fails_says_so();
    test_a_recording_has_batches_and_warm_up_runs();
    test_a_call_has_a_span_if_its_caller_says_so();
    test_lots_decide_where_no_caller_does();
    test_what_never_ran_is_told_too();
    test_a_call_that_is_dropped_beside_a_batch_has_not_run();
    test_a_call_in_pieces_has_one_span();
    test_without_memory_for_a_span_the_call_is_served();
    return check_done();
}
