/* test_logger: answered requests on their way into files: which, what of them, how much may wait, and that nobody
 * waits for it; settings that change under them, files that rotate, memory that is short. */
#include "logger.h"

#include <signal.h>
#include <sys/resource.h>

#include "compress.h"
#include "engine_rig.h"
#include "failmalloc.h"
#include "log_rig.h"
#include "text.h"

static const float ONE[] = {1};

typedef struct logged {
    rig *rig;
    rig_model model;
    folder folder;
    fs_request_log *log;
    records records;
    int losses; /* news of them */
} logged;

typedef struct order {
    fs_log_order order; /* first */
    bool done;
} order;

static void ordered(fs_mail *mail)
{
    ((order *)mail)->done = true;
}

static void on_loss(fs_mail *mail)
{
    fs_request_log *log = (fs_request_log *)mail;
    ((logged *)log->user)->losses++;
    fs_request_log_heard(log);
}

static void give(logged *l, fs_request_log *log, enum fs_log_sinks sink, fs_log_settings *settings, size_t room)
{
    order o = {.order = {.home = &l->rig->end.owner, .log = log, .sink = sink, .settings = settings,
                         .max_buffer_bytes = room, .deliver = ordered}};
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    fs_logger_order(l->rig->engine->logger, &o.order);
    while (!o.done) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&l->rig->end, 100);
    }
}

static void attach(logged *l, fs_request_log *log)
{
    rig_task t = {.task = {.kind = FS_TASK_LOG, .model = "m", .log = log}};
    rig_post(l->rig, &t);
    rig_await(l->rig, &t);
    CHECK_OK(t.task.rc);
}

static fs_log_settings settings_in(const logged *l, const char *name)
{
    fs_log_settings settings = {.sampling_rate = 1, .responses = true, .max_file_bytes = 1 << 30,
                                .max_file_age_us = INT64_MAX};
    snprintf(settings.path, sizeof settings.path, "%s/%s", l->folder.path, name);
    return settings;
}

static fs_log_settings *made(fs_log_settings settings)
{
    fs_slice tags[] = {fs_slice_of("serve")};
    fs_log_settings *copy = fs_log_settings_new(&settings, tags, 1);
    REQUIRE(copy != NULL);
    return copy;
}

static void set_up(logged *l, bool compress)
{
    *l = (logged){.folder = folder_make()};
    fs_engine_config config = rig_config(1);
    config.executors.compress_replies = compress;
    l->rig = rig_start(&config);
    l->model = rig_model_make("m", 7, NULL);
    rig_serve(l->rig, &l->model);
    l->log = fs_request_log_new(&l->rig->end.owner, on_loss, l);
    REQUIRE(l->log != NULL);
    attach(l, l->log);
}

static void close_all(logged *l)
{
    give(l, NULL, FS_LOG_STANDING, NULL, 0);
}

static void tear_down(logged *l)
{
    give(l, l->log, FS_LOG_STANDING, NULL, 0);
    give(l, l->log, FS_LOG_RECORDING, NULL, 0);
    attach(l, NULL);
    rig_unserve(l->rig, &l->model);
    rig_stop(l->rig);
    CHECK_EQ(atomic_load(&l->log->refs), 1);
    CHECK_EQ(atomic_load(&l->log->buffered_bytes), 0);
    fs_request_log_unref(l->log);
    CHECK_EQ(folder_count(&l->folder, FS_RECORD_PART), 0);
    records_free(&l->records);
    folder_remove(&l->folder);
}

static void await_news(logged *l)
{
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (l->losses == 0) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&l->rig->end, 1);
    }
}

static void read_back(logged *l)
{
    close_all(l);
    records_read(&l->records, &l->folder);
    CHECK_EQ(l->records.torn, 0);
}

/* The bytes of the first field of that number. */
static fs_slice field(fs_slice message, uint32_t number)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    fs_slice bytes = {0};
    uint32_t tag;
    while (w.at < w.end) {
        REQUIRE(fs_wire_read_tag(&w, &tag));
        if (tag == FS_WIRE_TAG(number, FS_WIRE_BYTES)) {
            REQUIRE(fs_wire_read_bytes(&w, &bytes));
            return bytes;
        }
        REQUIRE(fs_wire_skip(&w, tag, 10));
    }
    return (fs_slice){0};
}

static fs_slice record(const logged *l, int i)
{
    REQUIRE(i < l->records.n);
    return (fs_slice){l->records.data[i], l->records.len[i]};
}

static void check_equal(fs_slice slice, const void *data, size_t len)
{
    CHECK_EQ(slice.len, len);
    if (slice.len == len)
        CHECK_MEM(slice.data, data, len);
}

/* Record i is of the request in `frame` and the reply that the client got. */
static void check_record(const logged *l, int i, const pb *frame, const peer_call *c)
{
    static const uint8_t spec[] = "\x0a\x01m\x12\x02\x08\x07\x1a\x0fserving_default";
    fs_slice predict = field(record(l, i), 6), metadata = field(record(l, i), 1);
    check_equal(field(predict, 1), frame->data + FS_GRPC_PREFIX_BYTES, frame->len - FS_GRPC_PREFIX_BYTES);
    if (c != NULL)
        check_equal(field(predict, 2), c->body + FS_GRPC_PREFIX_BYTES, c->body_len - FS_GRPC_PREFIX_BYTES);
    check_equal(field(metadata, 1), spec, sizeof spec - 1);
    check_equal(field(metadata, 2), "\x09\0\0\0\0\0\0\xf0\x3f", 9);
    check_equal(field(metadata, 3), "serve", 5);
}

static void test_requests_and_answers_are_in_the_file(void)
{
    enum { N = 20 };
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    pb frames[N];
    const peer_call *calls[N];
    for (int i = 0; i < N; i++) {
        float values[] = {(float)i, (float)(2 * i)};
        frames[i] = rig_floats("m", values, 2);
        calls[i] = rig_send(&l.rig->end, &frames[i], NULL);
        rig_settle(&l.rig->end);
    }
    read_back(&l);
    CHECK_EQ(l.records.n, N);
    for (int i = 0; i < N && i < l.records.n; i++) {
        CHECK_ANSWER((peer_call *)(uintptr_t)calls[i], FS_OK, "");
        check_record(&l, i, &frames[i], calls[i]);
        free(frames[i].data);
    }
    CHECK_EQ(atomic_load(&l.log->sampled), N);
    CHECK_EQ(atomic_load(&l.log->sinks[FS_LOG_STANDING].tally.records), N);
    CHECK_EQ(atomic_load(&l.log->sinks[FS_LOG_STANDING].tally.files), 1);
    CHECK_EQ(l.losses, 0);
    tear_down(&l);
}

static void test_what_fails_is_not_logged(void)
{
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    rig_input z = {.alias = "z", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = ONE, .bytes = 4};
    CHECK_EQ(atoi(rig_call(l.rig, rig_request_frame(&(rig_request){.model = "m", .inputs = &z, .n_inputs = 1}))
                      ->grpc_status), FS_INVALID_ARGUMENT);
    CHECK_EQ(atomic_load(&l.log->sampled), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    read_back(&l);
    CHECK_EQ(l.records.n, 1);
    tear_down(&l);
}

static void test_a_share_of_the_requests(void)
{
    enum { N = 2000 };
    logged l;
    set_up(&l, false);
    fs_log_settings settings = settings_in(&l, "m");
    settings.sampling_rate = 0.25;
    settings.responses = false;
    give(&l, l.log, FS_LOG_STANDING, made(settings), 0);
    pb frame = rig_floats("m", ONE, 1);
    for (int i = 0; i < N; i++) {
        rig_send(&l.rig->end, &frame, NULL);
        if (i % 50 == 49) {
            rig_settle(&l.rig->end);
            peer_forget(l.rig->end.peer);
        }
    }
    read_back(&l);
    CHECK(l.records.n > N / 4 - 100 && l.records.n < N / 4 + 100); /* five standard deviations */
    CHECK_EQ(atomic_load(&l.log->sampled), l.records.n);
    CHECK_EQ(field(field(record(&l, 0), 6), 2).len, 0); /* no answers */
    check_equal(field(field(record(&l, 0), 6), 1), frame.data + FS_GRPC_PREFIX_BYTES,
                frame.len - FS_GRPC_PREFIX_BYTES);
    free(frame.data);
    tear_down(&l);
}

static void test_on_and_off_and_elsewhere(void)
{
    logged l;
    set_up(&l, false);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, ""); /* it has no settings yet */
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "a")), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "a")), 0); /* the file goes on */
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "b")), 0);
    CHECK_EQ(folder_count(&l.folder, ".tfrecord"), 1);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    give(&l, l.log, FS_LOG_STANDING, NULL, 0);
    CHECK_EQ(folder_count(&l.folder, ".tfrecord"), 2);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    CHECK_EQ(atomic_load(&l.log->sampled), 3);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "a")), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    read_back(&l);
    CHECK_EQ(l.records.n, 4);
    CHECK_EQ(folder_count(&l.folder, ".tfrecord"), 3);
    CHECK_EQ(folder_count(&l.folder, ""), 3);
    tear_down(&l);
}

static void test_files_are_rotated_and_the_oldest_removed(void)
{
    logged l;
    set_up(&l, false);
    fs_log_settings settings = settings_in(&l, "m");
    settings.max_file_bytes = 1; /* each record has its own */
    settings.keep_files = 3;
    give(&l, l.log, FS_LOG_STANDING, made(settings), 0);
    for (int i = 0; i < 10; i++)
        CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    read_back(&l);
    CHECK_EQ(l.records.n, 3);
    CHECK_EQ(folder_count(&l.folder, ""), 3);
    CHECK_EQ(atomic_load(&l.log->sinks[FS_LOG_STANDING].tally.files), 10);
    tear_down(&l);
}

static void test_an_old_file_is_closed_although_nothing_comes(void)
{
    logged l;
    set_up(&l, false);
    fs_log_settings settings = settings_in(&l, "m");
    settings.max_file_age_us = 20000;
    give(&l, l.log, FS_LOG_STANDING, made(settings), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&l.log->sinks[FS_LOG_STANDING].tally.files) == 0)
        REQUIRE(fs_now_us() < until_us);
    CHECK_EQ(folder_count(&l.folder, ".tfrecord"), 1);
    tear_down(&l);
}

static void test_what_is_buffered_is_written_before_long(void)
{
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    for (;;) {
        records_read(&l.records, &l.folder);
        if (l.records.n == 1)
            break;
        REQUIRE(fs_now_us() < until_us);
        usleep(10000);
    }
    CHECK_EQ(folder_count(&l.folder, FS_RECORD_PART), 1);
    tear_down(&l);
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

static void test_what_there_is_no_room_for_is_dropped_and_told(void)
{
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 4096);
    for (int i = 0; i < 5; i++)
        CHECK_ANSWER(rig_call(l.rig, wide(2000)), FS_OK, "");
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    read_back(&l);
    CHECK_EQ(l.records.n, 1);
    CHECK_EQ(atomic_load(&l.log->dropped), 5);
    CHECK_EQ(atomic_load(&l.log->sampled), 6);
    await_news(&l);
    CHECK(l.losses <= 3); /* at 1, 2 and 4 */
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 1 << 20);
    CHECK_ANSWER(rig_call(l.rig, wide(2000)), FS_OK, "");
    read_back(&l);
    CHECK_EQ(l.records.n, 2);
    tear_down(&l);
}

static void test_large_answers_are_skipped_and_large_requests_are_not(void)
{
    logged l;
    set_up(&l, false);
    fs_log_settings settings = settings_in(&l, "m");
    give(&l, l.log, FS_LOG_STANDING, made(settings), 0);
    int64_t floats = (int64_t)FS_LOG_LARGEST_REPLY / 4 + 1;
    CHECK_ANSWER(rig_call(l.rig, wide(floats)), FS_OK, "");
    CHECK_EQ(atomic_load(&l.log->skipped), 1);
    settings.responses = false;
    give(&l, l.log, FS_LOG_STANDING, made(settings), 0);
    CHECK_ANSWER(rig_call(l.rig, wide(floats)), FS_OK, "");
    CHECK_ANSWER(rig_call(l.rig, (rig_floats)("m", (float[9]){0}, 9)), FS_OK, ""); /* in pieces */
    read_back(&l);
    CHECK_EQ(l.records.n, 2);
    CHECK_EQ(atomic_load(&l.log->skipped), 1);
    tear_down(&l);
}

static void test_compressed_requests_and_replies_are_logged_plain(void)
{
    enum { ROWS = 2000 };
    static float values[ROWS];
    logged l;
    set_up(&l, true);
    rig_unserve(l.rig, &l.model);
    l.model.batching.max_batch_size = ROWS;
    rig_serve(l.rig, &l.model);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    pb frame = rig_floats("m", values, ROWS), small = {0};
    uint8_t *block;
    size_t len;
    REQUIRE(fs_deflate(l.rig->end.slab, FS_DEFLATE, frame.data + FS_GRPC_PREFIX_BYTES,
                       frame.len - FS_GRPC_PREFIX_BYTES, FS_GRPC_PREFIX_BYTES, &block, &len) == 0);
    fs_grpc_prefix_write(block, true, (uint32_t)(len - FS_GRPC_PREFIX_BYTES));
    pb_raw(&small, block, len);
    fs_slab_free(block);
    peer_call *c = peer_submit(l.rig->end.peer,
                               (peer_request){.path = RIG_PREDICT, .up = small.data, .up_len = small.len,
                                              .encoding = "deflate", .accept = "deflate"});
    rig_settle(&l.rig->end);
    CHECK_ANSWER(c, FS_OK, "");
    CHECK_EQ(c->body[0], 1);
    read_back(&l);
    CHECK_EQ(l.records.n, 1);
    check_record(&l, 0, &frame, NULL);
    CHECK(field(field(record(&l, 0), 6), 2).len > ROWS * 4);
    free(frame.data);
    free(small.data);
    tear_down(&l);
}

static void test_a_recording_of_so_many(void)
{
    logged l;
    set_up(&l, false);
    fs_log_settings standing = settings_in(&l, "m"), recording = settings_in(&l, "taken");
    recording.max_records = 3;
    give(&l, l.log, FS_LOG_STANDING, made(standing), 0);
    give(&l, l.log, FS_LOG_RECORDING, made(recording), 0);
    pb frame = rig_floats("m", ONE, 1);
    for (int i = 0; i < 5; i++) {
        rig_send(&l.rig->end, &frame, NULL);
        rig_settle(&l.rig->end);
    }
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (!atomic_load(&l.log->sinks[FS_LOG_RECORDING].finished))
        REQUIRE(fs_now_us() < until_us);
    CHECK_EQ(atomic_load(&l.log->sinks[FS_LOG_RECORDING].tally.records), 3);
    CHECK_EQ(folder_count(&l.folder, "taken"), 1);
    read_back(&l);
    CHECK_EQ(l.records.n, 8); /* 5 of m-..., then 3 of "taken" */
    CHECK_EQ(field(field(record(&l, 4), 6), 2).len > 0, 1);
    fs_slice predict = field(record(&l, 7), 6);
    check_equal(field(predict, 1), frame.data + FS_GRPC_PREFIX_BYTES, frame.len - FS_GRPC_PREFIX_BYTES);
    CHECK_EQ(field(predict, 2).len, 0); /* without answers */
    free(frame.data);
    /* Another one, which is ended before it has all. */
    snprintf(recording.path, sizeof recording.path, "%s/again", l.folder.path);
    give(&l, l.log, FS_LOG_RECORDING, made(recording), 0);
    CHECK_EQ(atomic_load(&l.log->sinks[FS_LOG_RECORDING].finished), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    give(&l, l.log, FS_LOG_RECORDING, NULL, 0);
    CHECK_EQ(folder_count(&l.folder, "again"), 1);
    CHECK_EQ(atomic_load(&l.log->sinks[FS_LOG_RECORDING].tally.records), 1);
    tear_down(&l);
}

static void test_a_shadowed_request_is_logged_too(void)
{
    logged l;
    set_up(&l, false);
    rig_model fresh = rig_model_make("m", 8, NULL);
    rig_serve(l.rig, &fresh);
    fs_route_settings route_settings = {.mode = FS_ROUTE_SHADOW, .versions = {7, 8}, .share = 1};
    fs_route *route = fs_route_new(fs_slice_of("m"), &route_settings);
    REQUIRE(route != NULL);
    rig_route(l.rig, "m", route);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    pb frame = rig_floats("m", ONE, 1);
    peer_call *c = rig_send(&l.rig->end, &frame, NULL);
    rig_settle(&l.rig->end);
    CHECK_ANSWER(c, FS_OK, "");
    CHECK_ANSWER(rig_call(l.rig, wide((int64_t)FS_SHADOW_LARGEST / 8)), FS_OK, "");
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&route->shadow.compared) + atomic_load(&route->shadow.skipped) < 2) {
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&l.rig->end, 1);
    }
    read_back(&l);
    CHECK_EQ(l.records.n, 2);
    check_record(&l, 0, &frame, c);
    free(frame.data);
    rig_route(l.rig, "m", NULL);
    rig_unserve(l.rig, &fresh);
    tear_down(&l);
    fs_route_unref(route);
}

static void test_a_directory_that_cannot_be_written_and_then_can(void)
{
    logged l;
    set_up(&l, false);
    /* A file where the directory should be: not even the superuser gets past that. */
    fs_log_settings settings = settings_in(&l, "d/m");
    char obstacle[80];
    snprintf(obstacle, sizeof obstacle, "%s/d", l.folder.path);
    FILE *file = fopen(obstacle, "w");
    REQUIRE(file != NULL);
    fclose(file);
    give(&l, l.log, FS_LOG_STANDING, made(settings), 0);
    const fs_log_tally *tally = &l.log->sinks[FS_LOG_STANDING].tally;
    for (int i = 0; i < 3; i++)
        CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    close_all(&l);
    await_news(&l);
    CHECK_EQ(atomic_load(&tally->failed), 3);
    CHECK_EQ(atomic_load(&tally->records), 0);
    CHECK(atomic_load(&tally->error) == ENOTDIR || atomic_load(&tally->error) == EEXIST);
    unlink(obstacle);
    usleep((unsigned)FS_LOG_PAUSE_US + 1000);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    close_all(&l);
    CHECK_EQ(atomic_load(&tally->failed), 3);
    CHECK_EQ(atomic_load(&tally->records), 1);
    CHECK_EQ(atomic_load(&tally->error), 0);
    records_free(&l.records);
    folder d = {{0}};
    snprintf(d.path, sizeof d.path, "%.50s/d", l.folder.path);
    records_read(&l.records, &d);
    CHECK_EQ(l.records.n, 1);
    folder_remove(&d);
    tear_down(&l);
}

static void test_a_full_disk_and_then_room(void)
{
    logged l;
    struct rlimit before, limit;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    close_all(&l);
    limit = (struct rlimit){.rlim_cur = 10, .rlim_max = before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    for (int i = 0; i < 3; i++)
        CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    close_all(&l);
    const fs_log_tally *tally = &l.log->sinks[FS_LOG_STANDING].tally;
    CHECK_EQ(atomic_load(&tally->failed), 3);
    CHECK_EQ(atomic_load(&tally->error), EFBIG);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    usleep((unsigned)FS_LOG_PAUSE_US + 1000);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    read_back(&l);
    CHECK_EQ(l.records.n, 2);
    CHECK_EQ(atomic_load(&tally->records), 2);
    tear_down(&l);
}

static void test_a_caller_that_goes_away_is_logged_or_not(void)
{
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    probe_gate(&l.rig->probe, true);
    pb frame = rig_floats("m", ONE, 1);
    peer_call *c = rig_send(&l.rig->end, &frame, NULL);
    probe_wait(&l.rig->probe, 1);
    REQUIRE(nghttp2_submit_rst_stream(l.rig->end.peer->client, 0, c->id, NGHTTP2_CANCEL) == 0);
    peer_pump(l.rig->end.peer);
    probe_gate(&l.rig->probe, false);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&l.log->sampled) == 0) { /* it had been run */
        REQUIRE(fs_now_us() < until_us);
        rig_turn(&l.rig->end, 1);
    }
    read_back(&l);
    CHECK_EQ(l.records.n, 1);
    free(frame.data);
    tear_down(&l);
}

/* A call as its owner has it back, with a compressed reply, handed over and written while the n-th allocation fails:
 * it is in the file, or counted as lost. */
static bool logged_without_memory(long n)
{
    enum { LEN = 5000 };
    static uint8_t request[LEN], reply[LEN];
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    fs_slab *slab = fs_slab_new(1 << 20), *theirs = fs_slab_new(1 << 20);
    REQUIRE(slab != NULL && theirs != NULL);
    fs_owner owner = l.rig->end.owner;
    owner.slab = slab; /* which is empty */
    fs_rpc rpc = {.message = fs_slab_alloc(theirs, LEN), .message_len = LEN, .reply_encoding = FS_DEFLATE};
    fs_call call = {.rpc = &rpc, .owner = &owner, .log = fs_request_log_ref(l.log),
                    .log_sinks = 1 << FS_LOG_STANDING};
    uint8_t *block;
    REQUIRE(rpc.message != NULL);
    memcpy(rpc.message, request, LEN);
    REQUIRE(fs_deflate(theirs, FS_DEFLATE, reply, LEN, FS_GRPC_PREFIX_BYTES, &block, &call.reply_len) == 0);
    fs_grpc_prefix_write(block, true, (uint32_t)(call.reply_len - FS_GRPC_PREFIX_BYTES));
    call.reply = block;

    failmalloc_after(n);
    fs_log_entry *entry = fs_log_entry_of(&call);
    CHECK_EQ(entry == NULL, rpc.message != NULL);
    if (entry != NULL)
        fs_logger_post(l.rig->engine->logger, entry);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_MS * 1000;
    while (atomic_load(&l.log->buffered_bytes) > 0) /* until the logger is done with it */
        REQUIRE(fs_now_us() < until_us);
    bool fired = failmalloc_fired();
    failmalloc_after(-1);

    const fs_log_tally *tally = &l.log->sinks[FS_LOG_STANDING].tally;
    CHECK_EQ(atomic_load(&l.log->dropped) + atomic_load(&tally->failed), fired ? 1 : 0);
    CHECK_EQ(atomic_load(&tally->records), fired ? 0 : 1);
    read_back(&l);
    CHECK_EQ(l.records.n, fired ? 0 : 1);
    if (!fired)
        check_equal(field(field(record(&l, 0), 6), 2), reply, LEN);
    fs_slab_free(rpc.message);
    fs_slab_free(call.reply);
    fs_request_log_unref(call.log);
    fs_slab_release(theirs);
    fs_slab_release(slab);
    tear_down(&l);
    return fired;
}

static void test_any_allocation_may_fail(void)
{
    long n = 1;
    while (logged_without_memory(n))
        n++;
    CHECK(n > 3);
}

static void test_settings_and_logs_without_memory(void)
{
    logged l;
    set_up(&l, false);
    fs_log_settings settings = settings_in(&l, "m");
    failmalloc_after(1);
    CHECK(fs_log_settings_new(&settings, NULL, 0) == NULL);
    failmalloc_after(1);
    CHECK(fs_request_log_new(NULL, NULL, NULL) == NULL);
    for (long n = 1;; n++) {
        rig_task t = {.task = {.kind = FS_TASK_LOG, .model = "m", .log = l.log}};
        failmalloc_after(n);
        rig_post(l.rig, &t);
        rig_await(l.rig, &t);
        bool fired = failmalloc_fired();
        failmalloc_after(-1);
        CHECK_EQ(t.task.rc, fired ? -FS_RESOURCE_EXHAUSTED : 0);
        if (!fired)
            break;
    }
    for (long n = 1;; n++) {
        failmalloc_after(n);
        fs_logger *logger = fs_logger_start();
        bool fired = failmalloc_fired();
        failmalloc_after(-1);
        CHECK_EQ(logger == NULL, fired);
        fs_logger_stop(logger);
        if (!fired)
            break;
    }
    tear_down(&l);
}

static void test_the_end_closes_files(void)
{
    logged l;
    set_up(&l, false);
    give(&l, l.log, FS_LOG_STANDING, made(settings_in(&l, "m")), 0);
    CHECK_ANSWER(rig_call(l.rig, rig_floats("m", ONE, 1)), FS_OK, "");
    rig_unserve(l.rig, &l.model);
    rig_stop(l.rig);
    CHECK_EQ(atomic_load(&l.log->refs), 1);
    fs_request_log_unref(l.log);
    records_read(&l.records, &l.folder);
    CHECK_EQ(l.records.n, 1);
    CHECK_EQ(folder_count(&l.folder, ".tfrecord"), 1);
    records_free(&l.records);
    folder_remove(&l.folder);
}

int main(void)
{
    signal(SIGXFSZ, SIG_IGN); /* as Python has it */
    test_requests_and_answers_are_in_the_file();
    test_what_fails_is_not_logged();
    test_a_share_of_the_requests();
    test_on_and_off_and_elsewhere();
    test_files_are_rotated_and_the_oldest_removed();
    test_an_old_file_is_closed_although_nothing_comes();
    test_what_is_buffered_is_written_before_long();
    test_what_there_is_no_room_for_is_dropped_and_told();
    test_large_answers_are_skipped_and_large_requests_are_not();
    test_compressed_requests_and_replies_are_logged_plain();
    test_a_recording_of_so_many();
    test_a_shadowed_request_is_logged_too();
    test_a_directory_that_cannot_be_written_and_then_can();
    test_a_full_disk_and_then_room();
    test_a_caller_that_goes_away_is_logged_or_not();
    test_any_allocation_may_fail();
    test_settings_and_logs_without_memory();
    test_the_end_closes_files();
    return check_done();
}
