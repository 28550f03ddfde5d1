/* Threads against the whole engine: owners that send calls and now and then cancel them, while versions are
 * loaded, published, retired and closed under them, and divide the traffic or shadow each other; everything is
 * counted and traced. For ThreadSanitizer, and against lost wake-ups: every call must be answered, with the right
 * numbers, within the rig's patience.
 *
 * stress_engine [items]   a call for every 4 items */
#include "engine_rig.h"

#include <sys/mman.h>
#include <unistd.h>

#include "metrics_rig.h"
#include "trace.h"

enum { OWNERS = 3, EXECUTORS = 3, WINDOW = 24, LOADS = 2, TRACKS = 16 };

typedef struct sender {
    rig *rig;
    rig_end end;
    pthread_t thread;
    long calls;
    uint32_t seed;
    long answered, ok, missing, full, late, cancelled;
} sender;

static atomic_int senders_left;

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static const char *const MODELS[] = {"plain", "capped", "patient", "reserved"};

/* What one call of the window asks for. */
typedef struct asked {
    pb frame;
    float values[40];
    int64_t rows;
    bool cancelled;
} asked;

static void make(asked *a, uint32_t *seed)
{
    uint32_t size = next_random(seed) % 16;
    a->rows = size < 12 ? 1 + size % 4 : size < 15 ? 1 + next_random(seed) % 40 : 0; /* in pieces above 8 */
    for (int64_t i = 0; i < a->rows; i++)
        a->values[i] = (float)(next_random(seed) % 1000);
    a->frame = rig_floats(MODELS[next_random(seed) % 4], a->values, a->rows);
    a->cancelled = false;
}

static void judge(sender *s, const asked *a, peer_call *c)
{
    s->answered++;
    switch (c->grpc_status[0] == '\0' ? -1 : atoi(c->grpc_status)) {
    case FS_OK:
        s->ok++;
        rig_check_halves(s->end.slab, c->body, c->body_len, a->values, a->rows);
        break;
    case FS_NOT_FOUND:
        s->missing++;
        break;
    case FS_UNAVAILABLE:
        s->full++;
        break;
    case FS_DEADLINE_EXCEEDED:
        s->late++;
        break;
    default:
        s->cancelled++;
        CHECK(a->cancelled);
    }
}

/* Rounds of up to WINDOW calls at once, all answered before the next. */
static void *send_calls(void *arg)
{
    sender *s = arg;
    static _Thread_local asked window[WINDOW];
    for (long sent = 0; sent < s->calls;) {
        int n = 1 + (int)(next_random(&s->seed) % WINDOW);
        for (int i = 0; i < n; i++) {
            make(&window[i], &s->seed);
            peer_call *c = rig_send(&s->end, &window[i].frame, next_random(&s->seed) % 32 == 0 ? "1m" : NULL);
            if (next_random(&s->seed) % 16 == 0 && !c->closed) {
                window[i].cancelled = true;
                nghttp2_submit_rst_stream(s->end.peer->client, 0, c->id, NGHTTP2_CANCEL);
            }
            if (next_random(&s->seed) % 8 == 0)
                rig_turn(&s->end, 0);
        }
        rig_settle(&s->end);
        for (int i = 0; i < n; i++) {
            judge(s, &window[i], &s->end.peer->calls[i]);
            free(window[i].frame.data);
        }
        peer_forget(s->end.peer);
        sent += n;
        if (next_random(&s->seed) % 8 == 0) /* so that executors park at odd moments */
            nanosleep(&(struct timespec){.tv_nsec = next_random(&s->seed) % 300000}, NULL);
    }
    atomic_fetch_sub_explicit(&senders_left, 1, memory_order_release);
    return NULL;
}

/* On the heap: what is loaded points into it until it is closed. */
static rig_model *version_of(int model, int64_t version)
{
    static const char *const options[] = {NULL, "run_us=20", NULL, "run_us=50"};
    rig_model *m = malloc(sizeof *m);
    REQUIRE(m != NULL);
    *m = rig_model_make(MODELS[model], version, options[model]);
    if (model == 1)
        m->batching.num_batch_threads = 1;
    if (model == 2) {
        m->batching.timeout_us = 300;
        m->batching.max_enqueued_batches = 4;
    }
    if (model == 3)
        m->batching.reserved_executors = 1;
    return m;
}

static void unserve(rig *r, rig_model *m)
{
    rig_unserve(r, m);
    free(m);
}

/* Two versions of a model that are both there, and the route between them. */
typedef struct rollout {
    rig_model *fresh; /* NULL: there is none */
    fs_route *route;
} rollout;

static void roll_out(rig *r, rollout *o, const rig_model *stable, rig_model *fresh, uint32_t *seed)
{
    fs_route_settings settings = {
        .mode = next_random(seed) % 2 == 0 ? FS_ROUTE_CANARY : FS_ROUTE_SHADOW,
        .versions = {stable->version, fresh->version},
        .share = (double)(1 + next_random(seed) % 4) / 4,
        .sticky_header = {(const uint8_t *)"user-agent", next_random(seed) % 4 == 0 ? 10 : 0},
    };
    *o = (rollout){.fresh = fresh};
    o->route = fs_route_new((fs_slice){(const uint8_t *)stable->name, strlen(stable->name)}, &settings);
    REQUIRE(o->route != NULL);
    rig_route(r, stable->name, o->route);
    REQUIRE(rig_do(r, fresh, FS_TASK_PUBLISH) == 0);
}

/* Ends it, one way or the other; the version that stays. */
static rig_model *settle_rollout(rig *r, rollout *o, rig_model *stable, uint32_t *seed, uint64_t *compared,
                                 uint64_t *divided)
{
    bool promote = next_random(seed) % 2 == 0;
    rig_model *stays = promote ? o->fresh : stable;
    if (promote && next_random(seed) % 2 == 0)
        rig_route(r, stays->name, NULL);
    unserve(r, promote ? stable : o->fresh);
    rig_route(r, stays->name, NULL);
    *compared += atomic_load(&o->route->shadow.compared);
    for (int side = 0; side < FS_SIDES; side++)
        *divided += fs_figures_read(&o->route->figures[side], FS_OUTCOME_OK);
    CHECK_EQ(atomic_load(&o->route->shadow.different_rows), 0); /* all versions compute the same */
    CHECK_EQ(atomic_load(&o->route->shadow.failed), 0);
    fs_route_unref(o->route);
    *o = (rollout){0};
    return stays;
}

/* Another process, as it were: reads what is counted and told, all the time. */
typedef struct watcher {
    ledger *ledger;
    fs_trace_view trace;
    uint64_t at[TRACKS];
    uint64_t lost;
    long batches, spans, tasks, begun;
    pthread_t thread;
    atomic_bool stop;
    long rounds, series, changed;
} watcher;

static void watch_trace(watcher *w)
{
    fs_trace_event event;
    for (uint32_t i = 0; fs_trace_track_name(&w->trace, i) != NULL; i++) {
        while (fs_trace_read(&w->trace, i, &w->at[i], &event, &w->lost)) {
            w->batches += event.kind == FS_TRACE_BATCH;
            w->spans += event.kind == FS_TRACE_CALL;
            w->tasks += event.kind == FS_TRACE_TASK;
            w->begun += event.kind == FS_TRACE_TASK_BEGUN;
            if (event.kind != FS_TRACE_BATCH && event.kind != FS_TRACE_CALL)
                continue;
            bool known = false;
            for (int m = 0; m < 4; m++)
                known = known || (strlen(MODELS[m]) == event.model_len &&
                                  memcmp(MODELS[m], event.model, event.model_len) == 0);
            CHECK(known);
            int64_t last_us = event.begin_us;
            for (int k = 0; k < 4 && event.at_us[k] != 0; k++) {
                CHECK(last_us <= event.at_us[k]);
                last_us = event.at_us[k];
            }
            CHECK(last_us <= event.end_us);
        }
    }
}

static void *watch(void *arg)
{
    watcher *w = arg;
    static fs_tally_pair pairs[FS_TALLY_SLOTS];
    fs_metrics_view *view = &w->ledger->view;
    while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
        fs_meter_name name;
        const fs_meter *meter;
        REQUIRE(fs_metrics_view_begin(view) == 0);
        for (uint32_t i = 0; (meter = fs_metrics_view_next(view, &i, &name)) != NULL; i++) {
            fs_metrics_view_tally(view, &meter->latency[FS_CALL_PREDICT][FS_TRANSPORT_GRPC], pairs);
            fs_metrics_view_tally(view, &meter->rows, pairs);
            if (fs_metrics_view_same(meter, &name))
                w->series++;
            else
                w->changed++;
        }
        watch_trace(w);
        w->rounds++;
    }
    return NULL;
}

/* Everything that was queued is over, and was taken off its queue. */
static void check_at_rest(ledger *l, long *requests, long *shared)
{
    fs_meter_name name;
    const fs_meter *meter;
    REQUIRE(fs_metrics_view_begin(&l->view) == 0);
    for (uint32_t i = 0; (meter = fs_metrics_view_next(&l->view, &i, &name)) != NULL; i++) {
        CHECK_EQ(fs_tick_read(&meter->pushed_calls), fs_tick_read(&meter->finished_calls));
        CHECK_EQ(fs_tick_read(&meter->pushed_calls), fs_tick_read(&meter->left_calls));
        CHECK_EQ(fs_tick_read(&meter->pushed_rows), fs_tick_read(&meter->left_rows));
        CHECK(i == 0 || name.closed);
        *(i == 0 ? shared : requests) += (long)ledger_sum(&meter->requests);
    }
}

int main(int argc, char **argv)
{
    /* So few blocks that closed ones are needed again, and sometimes there are none. */
    ledger ledger = ledger_open(30);
    long items = argc > 1 ? strtol(argv[1], NULL, 10) : 100000;
    fs_engine_config config = rig_config(EXECUTORS);
    config.loader.threads = LOADS;
    config.metrics = ledger.metrics;
    int memory = memfd_create("trace", MFD_CLOEXEC);
    REQUIRE(memory >= 0);
    REQUIRE(ftruncate(memory, (off_t)(sizeof(fs_trace_shared) + TRACKS * sizeof(fs_trace_ring))) == 0);
    config.trace = fs_trace_open(memory, TRACKS);
    watcher watcher = {.ledger = &ledger};
    REQUIRE(config.trace != NULL && fs_trace_map(memory, &watcher.trace) == 0);
    fs_trace_want(&watcher.trace, FS_TRACE_RECORDING | FS_TRACE_SPANS, UINT64_C(1) << 32);
    rig *r = rig_start(&config);
    rig_model *served[4];
    for (int i = 0; i < 4; i++) {
        served[i] = version_of(i, 1);
        rig_serve(r, served[i]);
    }
    static sender senders[OWNERS];
    atomic_init(&senders_left, OWNERS);
    for (int i = 0; i < OWNERS; i++) {
        senders[i] = (sender){.rig = r, .calls = items / 4 / OWNERS + 1, .seed = 1000u + (uint32_t)i};
        rig_end_open(r, &senders[i].end);
        REQUIRE(pthread_create(&senders[i].thread, NULL, send_calls, &senders[i]) == 0);
    }
    REQUIRE(pthread_create(&watcher.thread, NULL, watch, &watcher) == 0);
    /* This thread is the control plane: one version after another takes over, some with a gap. */
    rollout rollouts[4] = {0};
    long switches = 0;
    uint64_t compared = 0, divided = 0;
    int64_t version = 2;
    uint32_t seed = 77;
    fs_label label = {.name = {(const uint8_t *)"stable", 6}};
    while (atomic_load_explicit(&senders_left, memory_order_acquire) > 0) {
        int i = (int)(switches++ % 4);
        if (rollouts[i].fresh != NULL)
            served[i] = settle_rollout(r, &rollouts[i], served[i], &seed, &compared, &divided);
        rig_model *next = version_of(i, version++);
        bool gap = next_random(&seed) % 3 == 0;
        REQUIRE(rig_do(r, next, FS_TASK_LOAD) == 0);
        if (next_random(&seed) % 2 == 0) {
            roll_out(r, &rollouts[i], served[i], next, &seed);
            continue;
        }
        if (gap)
            unserve(r, served[i]);
        REQUIRE(rig_do(r, next, FS_TASK_PUBLISH) == 0);
        if (!gap)
            unserve(r, served[i]);
        label.version = next->version;
        rig_task t = rig_task_of(next, FS_TASK_LABEL);
        t.task.labels = &label;
        t.task.n_labels = 1;
        rig_post(r, &t);
        rig_await(r, &t);
        served[i] = next;
    }
    long answered = 0, ok = 0, missing = 0, full = 0, late = 0, cancelled = 0;
    for (int i = 0; i < OWNERS; i++) {
        sender *s = &senders[i];
        REQUIRE(pthread_join(s->thread, NULL) == 0);
        answered += s->answered;
        ok += s->ok;
        missing += s->missing;
        full += s->full;
        late += s->late;
        cancelled += s->cancelled;
    }
    for (int i = 0; i < 4; i++) {
        if (rollouts[i].fresh != NULL)
            served[i] = settle_rollout(r, &rollouts[i], served[i], &seed, &compared, &divided);
        rig_check_idle(served[i]);
        unserve(r, served[i]);
    }
    for (int i = 0; i < OWNERS; i++) {
        CHECK_EQ(fs_h2_active_calls(senders[i].end.h2), 0);
        fs_owner_deliver(&senders[i].end.owner); /* of cancelled calls, what was on its way */
        rig_end_close(&senders[i].end);
    }
    atomic_store_explicit(&watcher.stop, true, memory_order_relaxed);
    REQUIRE(pthread_join(watcher.thread, NULL) == 0);
    watch_trace(&watcher);
    printf("%ld batches, %ld spans, %ld tasks told, %" PRIu64 " events lost\n", watcher.batches, watcher.spans,
           watcher.tasks, watcher.lost);
    CHECK(watcher.batches > 0 && watcher.spans + (long)watcher.lost >= ok);
    CHECK(watcher.tasks > 2 * switches && (watcher.tasks == watcher.begun || watcher.lost > 0));
    long counted = 0, shared = 0;
    check_at_rest(&ledger, &counted, &shared);
    printf("%ld readings of %ld series, %ld changed hands meanwhile; of the last ones %ld requests, %ld found no block\n",
           watcher.rounds, watcher.series, watcher.changed, counted, shared);
    CHECK(watcher.rounds > 0 && counted > 0);
    printf("%ld calls: %ld ok, %ld while no version was there, %ld refused, %ld late, %ld cancelled; "
           "%ld switches, %d batches logged; %llu calls divided by routes, %llu shadows compared\n",
           answered, ok, missing, full, late, cancelled, switches, r->probe.n_log, (unsigned long long)divided,
           (unsigned long long)compared);
    CHECK(ok > answered / 2);
    CHECK(switches > 0);
    CHECK(divided > 0 && compared > 0);
    rig_stop(r);
    fs_trace_unmap(&watcher.trace);
    fs_trace_close(config.trace);
    close(memory);
    ledger_close(&ledger);
    return check_done();
}
