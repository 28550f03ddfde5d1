/* load: a real generator's thread against a real server thread (io) in the same process. Each wait has a
 * limit; what the generator counts is compared with what the server saw. */
#include "load.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/un.h>
#include <unistd.h>

#include "arrivals.h"
#include "clock.h"
#include "failmalloc.h"
#include "grpc.h"
#include "h2.h"
#include "io.h"

#include "check.h"

enum { PATIENCE_MS = 30000, SEEN = 1 << 16 };

typedef struct server {
    fs_io *io;
    fs_budget budget;
    fs_h2_limits limits;
    fs_io_config config;
    int listener;
    struct sockaddr_in address;
    pthread_t acceptor;
    atomic_bool closing;
    atomic_int accepted;
    atomic_int fail_with;      /* enum fs_code that calls are answered with */
    atomic_bool silent;        /* they are not answered */
    fs_rpc *kept[SEEN];        /* the io thread's */
    int n_kept;
    uint8_t seen[SEEN];        /* the first byte of each message, by arrival */
    atomic_int n_seen;
    bool deadlines;            /* all calls had one */
} server;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    *streaming = false;
    return len == 7 && memcmp(path, "/t/Echo", 7) == 0 ? ctx : NULL;
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    server *s = ctx;
    int n = atomic_load_explicit(&s->n_seen, memory_order_relaxed);
    s->seen[n % SEEN] = rpc->message_len > 0 ? rpc->message[0] : 0;
    s->deadlines = s->deadlines && rpc->deadline_us != INT64_MAX;
    /* release: pairs with the test's acquire, after which it reads `seen`. */
    atomic_store_explicit(&s->n_seen, n + 1, memory_order_release);
    if (atomic_load_explicit(&s->silent, memory_order_relaxed) && s->n_kept < SEEN) {
        s->kept[s->n_kept++] = rpc;
        return;
    }
    int code = atomic_load_explicit(&s->fail_with, memory_order_relaxed);
    size_t len = rpc->message_len + FS_GRPC_PREFIX_BYTES;
    uint8_t *frame = code == FS_OK ? fs_slab_alloc(fs_io_slab(s->io), len) : NULL;
    if (frame == NULL) {
        fs_rpc_finish(rpc, code != FS_OK ? code : FS_RESOURCE_EXHAUSTED, "no", 2, NULL, 0);
        return;
    }
    fs_grpc_prefix_write(frame, false, (uint32_t)rpc->message_len);
    memcpy(frame + FS_GRPC_PREFIX_BYTES, rpc->message, rpc->message_len);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, len);
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    server *s = ctx;
    for (int i = 0; i < s->n_kept; i++) {
        if (s->kept[i] == rpc) {
            s->kept[i] = s->kept[--s->n_kept];
            fs_rpc_finish(rpc, FS_CANCELLED, NULL, 0, NULL, 0);
            return;
        }
    }
}

static void on_mail(void *ctx)
{
    (void)ctx;
}

static const fs_h2_handler handler = {.lookup = on_lookup, .on_call = on_call, .on_cancel = on_cancel};

static void *accept_all(void *user)
{
    server *s = user;
    for (;;) {
        int fd = accept(s->listener, NULL, NULL);
        if (atomic_load_explicit(&s->closing, memory_order_relaxed)) {
            if (fd >= 0)
                close(fd);
            return NULL;
        }
        atomic_fetch_add_explicit(&s->accepted, 1, memory_order_relaxed);
        if (fd >= 0 && fs_io_adopt(s->io, fd, NULL, NULL) != 0)
            close(fd);
    }
}

static int listen_anywhere(struct sockaddr_in *address)
{
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    REQUIRE(fd >= 0 && bind(fd, (struct sockaddr *)address, len) == 0 && listen(fd, 128) == 0 &&
            getsockname(fd, (struct sockaddr *)address, &len) == 0);
    return fd;
}

static server *server_new(void)
{
    server *s = calloc(1, sizeof *s);
    REQUIRE(s != NULL);
    s->deadlines = true;
    s->budget.limit = SIZE_MAX;
    s->limits = (fs_h2_limits){.max_concurrent_streams = 64,
                               .max_header_bytes = 16384,
                               .max_message_bytes = 1 << 20,
                               .max_conn_bytes = SIZE_MAX,
                               .window_bytes = 1 << 20,
                               .reset_burst = 1000000,
                               .reset_per_s = 1000000,
                               .chatter_burst = 1000000,
                               .chatter_per_s = 1000000};
    s->config = (fs_io_config){.limits = &s->limits,
                               .handler = &handler,
                               .budget = &s->budget,
                               .on_mail = on_mail,
                               .slab_cache_bytes = 1 << 24,
                               .name = "server"};
    s->io = fs_io_new(&s->config);
    REQUIRE(s->io != NULL && fs_io_start(s->io, s) == 0);
    s->listener = listen_anywhere(&s->address);
    REQUIRE(pthread_create(&s->acceptor, NULL, accept_all, s) == 0);
    return s;
}

static void server_free(server *s)
{
    atomic_store_explicit(&s->closing, true, memory_order_relaxed);
    shutdown(s->listener, SHUT_RDWR);
    pthread_join(s->acceptor, NULL);
    close(s->listener);
    fs_io_stop(s->io);
    CHECK_EQ(s->n_kept, 0);
    fs_io_free(s->io);
    free(s);
}

static const uint8_t first_body[] = {0, 1, 2}, second_body[] = {1, 1, 2, 3, 4}, third_body[] = {2};
static const fs_slice bodies[] = {{first_body, 3}, {second_body, 5}, {third_body, 1}};
static const int64_t sizes[] = {3, 5, -1};

static fs_slice text(const char *s)
{
    return (fs_slice){(const uint8_t *)s, strlen(s)};
}

static fs_load_config config_for(const struct sockaddr_in *address)
{
    fs_load_config config = {.address_len = sizeof *address,
                             .path = text("/t/Echo"),
                             .authority = text("here"),
                             .bodies = bodies,
                             .n_bodies = 3,
                             .reply_bytes = sizes,
                             .connections = 1,
                             .in_flight = 1,
                             .interval_ns = 10000000,
                             .timeout_us = 10000000,
                             .connect_timeout_us = 5000000,
                             .max_outstanding = 1000,
                             .processor = -1};
    memcpy(&config.address, address, sizeof *address);
    return config;
}

static fs_load *started(const fs_load_config *config)
{
    fs_error err = {0};
    fs_load *load = fs_load_new(config, &err);
    REQUIRE(load != NULL);
    REQUIRE(fs_load_start(load, &err) == 0);
    return load;
}

/* Runs it to its end. */
static fs_load *finished(const fs_load_config *config)
{
    fs_load *load = started(config);
    CHECK(fs_load_wait(load, PATIENCE_MS));
    fs_load_join(load);
    return load;
}

static uint64_t failures(const fs_load_result *result)
{
    uint64_t n = 0;
    for (int i = 0; i < FS_LOAD_FAILURES; i++)
        n += result->failed[i];
    return n;
}

/* What must hold of any result. */
static void check_sums(const fs_load_result *r, uint32_t n_bodies)
{
    uint64_t by_body = 0, done = 0;
    for (uint32_t i = 0; i < n_bodies; i++)
        by_body += r->done_by_body[i];
    CHECK_EQ(r->done + failures(r) + r->unanswered, r->sent);
    CHECK_EQ(by_body, r->done);
    CHECK_EQ(r->latency.total, r->done);
    for (uint32_t i = 0; i < r->n_intervals; i++) {
        done += r->intervals[i].done;
        CHECK(r->intervals[i].start_ns < r->window_ns);
        CHECK(r->intervals[i].p50_ns <= r->intervals[i].p90_ns);
        CHECK(r->intervals[i].p90_ns <= r->intervals[i].p99_ns);
        CHECK(r->intervals[i].p99_ns <= r->intervals[i].max_ns);
    }
    if (r->n_intervals > 0)
        CHECK_EQ(done, r->arrived);
}

/* ---- what is sent -------------------------------------------------------------------------------- */

static void a_closed_loop_sends_so_many_and_waits_for_all(void)
{
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.connections = 3;
    config.in_flight = 100; /* more than the server allows at once */
    config.requests = 3000;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->sent, 3000);
    CHECK_EQ(r->done, 3000);
    CHECK_EQ(r->arrived, 3000);
    CHECK_EQ(r->first_error.code, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(r->done_by_body[i], 1000);
    CHECK_EQ(atomic_load_explicit(&s->n_seen, memory_order_acquire), 3000);
    CHECK_EQ(atomic_load_explicit(&s->accepted, memory_order_relaxed), 3);
    CHECK(r->window_ns > 0 && r->cpu_ns > 0 && r->bytes_in > 3000 * 3 && r->bytes_out > 3000 * 3);
    CHECK(r->latency.max <= (uint64_t)r->window_ns);
    CHECK(!s->deadlines);
    fs_load_progress shown = fs_load_read(load);
    CHECK(shown.sent == 3000 && shown.done == 3000 && shown.failed == 0 && shown.outstanding == 0);
    fs_load_free(load);
    server_free(s);
}

static void an_open_loop_sends_exactly_what_is_due(void)
{
    static const enum fs_load_kind kinds[] = {FS_LOAD_CONSTANT, FS_LOAD_POISSON};
    server *s = server_new();
    for (int i = 0; i < 2; i++) {
        fs_load_config config = config_for(&s->address);
        config.kind = kinds[i];
        config.rate = 4000;
        config.seed = 11;
        config.connections = 2;
        config.warmup_ns = 50000000;
        config.duration_ns = 200000000;
        config.send_deadline = true;
        int before = atomic_load_explicit(&s->n_seen, memory_order_relaxed);
        s->deadlines = true;
        fs_load *load = finished(&config);
        const fs_load_result *r = fs_load_join(load);
        uint64_t warm = 0, due = 0;
        fs_arrivals arrivals;
        if (kinds[i] == FS_LOAD_CONSTANT)
            fs_arrivals_constant(&arrivals, 4000);
        else
            fs_arrivals_poisson(&arrivals, 4000, 11);
        for (int64_t at; (at = fs_arrivals_next(&arrivals)) < 250000000;)
            *(at < 50000000 ? &warm : &due) += 1;
        check_sums(r, 3);
        CHECK_EQ(r->sent, due);
        CHECK_EQ(r->done, due);
        CHECK_EQ(r->behind.total, due);
        CHECK_EQ(r->window_ns, 200000000);
        CHECK_EQ(r->n_intervals, 20);
        CHECK_EQ(atomic_load_explicit(&s->n_seen, memory_order_acquire) - before, (int)(warm + due));
        CHECK(s->deadlines);
        fs_load_free(load);
    }
    server_free(s);
}

static void a_replay_keeps_order_and_times(void)
{
    enum { N = 200 };
    static int64_t times[N];
    static uint32_t order[N];
    for (int i = 0; i < N; i++) {
        times[i] = i / 3 * 1500; /* three at once */
        order[i] = (uint32_t)(i * 7 % 3 == 1 ? 2 : i % 2);
    }
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.kind = FS_LOAD_REPLAY;
    config.times_us = times;
    config.n_times = N;
    config.order = order;
    config.n_order = N;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->sent, N);
    CHECK_EQ(r->done, N);
    CHECK_EQ(atomic_load_explicit(&s->n_seen, memory_order_acquire), N);
    for (int i = 0; i < N; i++)
        CHECK_EQ(s->seen[i], order[i]);
    CHECK(r->window_ns >= times[N - 1] * 1000);
    fs_load_free(load);

    /* A window that ends before the log does, and one that would end long after it. */
    config.warmup_ns = 30000000;
    config.duration_ns = 30000000;
    load = finished(&config);
    r = fs_load_join(load);
    CHECK_EQ(r->sent, 60); /* those from 30 ms up to 60 ms */
    CHECK_EQ(r->window_ns, 30000000);
    check_sums(r, 3);
    fs_load_free(load);
    config.duration_ns = INT64_C(3600) * 1000000000;
    load = finished(&config);
    r = fs_load_join(load);
    CHECK_EQ(r->sent, N - 60);
    CHECK(r->window_ns >= 69000000 && r->window_ns < 30 * INT64_C(1000000000));
    check_sums(r, 3);
    fs_load_free(load);
    server_free(s);
}

static void the_order_begins_again_at_its_end(void)
{
    static const uint32_t order[] = {2, 0, 0, 1};
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.requests = 9;
    config.order = order;
    config.n_order = 4;
    fs_load *load = finished(&config);
    for (int i = 0; i < 9; i++)
        CHECK_EQ(s->seen[i], order[i % 4]);
    fs_load_free(load);
    server_free(s);
}

/* ---- what fails ------------------------------------------------------------------------------------ */

static void what_the_server_refuses_is_counted_by_its_code(void)
{
    server *s = server_new();
    atomic_store_explicit(&s->fail_with, FS_RESOURCE_EXHAUSTED, memory_order_relaxed);
    fs_load_config config = config_for(&s->address);
    config.requests = 100;
    config.in_flight = 4;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->failed[FS_RESOURCE_EXHAUSTED], 100);
    CHECK_EQ(r->done, 0);
    CHECK_EQ(r->first_error.code, FS_RESOURCE_EXHAUSTED);
    CHECK_STR(r->first_error.msg, "no");
    fs_load_free(load);
    server_free(s);
}

static void replies_of_the_wrong_size_are_no_successes(void)
{
    static const int64_t wrong[] = {3, 6, -1};
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.requests = 300;
    config.reply_bytes = wrong;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->failed[FS_LOAD_REPLY_SIZE], 100);
    CHECK_EQ(r->done, 200);
    CHECK_EQ(r->done_by_body[1], 0);
    CHECK_STR(r->first_error.msg, "body 1 was answered with 5 bytes, expected are 6");
    fs_load_free(load);
    server_free(s);
}

static void what_is_not_answered_in_time_fails(void)
{
    server *s = server_new();
    atomic_store_explicit(&s->silent, true, memory_order_relaxed);
    for (int open = 0; open < 2; open++) {
        fs_load_config config = config_for(&s->address);
        config.timeout_us = 100000;
        config.duration_ns = 250000000;
        config.kind = open != 0 ? FS_LOAD_CONSTANT : FS_LOAD_CLOSED;
        config.in_flight = 2;
        config.rate = 1000; /* 100 at once, of which the server allows 64 */
        int64_t begin_us = fs_now_us();
        fs_load *load = finished(&config);
        const fs_load_result *r = fs_load_join(load);
        CHECK(fs_now_us() - begin_us >= 250000);
        check_sums(r, 3);
        CHECK_EQ(r->done, 0);
        CHECK_EQ(r->failed[FS_LOAD_TIMEOUT], r->sent);
        if (open != 0)
            CHECK_EQ(r->sent, 250);
        else
            CHECK(r->sent >= 4 && r->sent <= 6);
        CHECK_STR(r->first_error.msg, "no answer in time");
        fs_load_free(load);
    }
    server_free(s);
}

static void more_than_may_be_outstanding_fails_at_once(void)
{
    server *s = server_new();
    atomic_store_explicit(&s->silent, true, memory_order_relaxed);
    fs_load_config config = config_for(&s->address);
    config.kind = FS_LOAD_CONSTANT;
    config.rate = 2000;
    config.duration_ns = 100000000;
    config.timeout_us = 300000;
    config.max_outstanding = 70;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->sent, 200);
    CHECK_EQ(r->failed[FS_LOAD_FULL], 130);
    CHECK_EQ(r->failed[FS_LOAD_TIMEOUT], 70);
    fs_load_free(load);
    server_free(s);
}

static void without_a_server_there_is_no_run(void)
{
    struct sockaddr_in address;
    close(listen_anywhere(&address)); /* nobody listens there any more */
    for (int http = 0; http < 2; http++) {
        fs_load_config config = config_for(&address);
        config.http = http != 0;
        config.requests = 10;
        fs_load *load = finished(&config);
        const fs_load_result *r = fs_load_join(load);
        CHECK(r->no_connection);
        CHECK_EQ(r->sent, 0);
        CHECK(strstr(r->first_error.msg, "refused") != NULL);
        fs_load_free(load);
    }
    struct sockaddr_un nowhere = {.sun_family = AF_UNIX, .sun_path = "/nonexistent/socket"};
    fs_load_config config = config_for(&address);
    memcpy(&config.address, &nowhere, sizeof nowhere);
    config.address_len = sizeof nowhere;
    config.requests = 10;
    fs_load *load = finished(&config);
    CHECK(fs_load_join(load)->no_connection);
    fs_load_free(load);
}

static void a_processor_that_is_not_there_is_an_error(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    fs_load_config config = config_for(&address);
    fs_error err = {0};
    config.requests = 1;
    config.processor = 4000;
    fs_load *load = fs_load_new(&config, &err);
    REQUIRE(load != NULL);
    CHECK_EQ(fs_load_start(load, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "there is no processor 4000 to run on");
    fs_load_free(load);
}

/* ---- from outside ----------------------------------------------------------------------------------- */

static void *stop_soon(void *user)
{
    usleep(50000);
    fs_load_stop(user);
    return NULL;
}

static void progress_may_be_read_and_the_run_stopped_at_any_time(void)
{
    server *s = server_new();
    for (int silent = 0; silent < 2; silent++) {
        atomic_store_explicit(&s->silent, silent != 0, memory_order_relaxed);
        fs_load_config config = config_for(&s->address);
        config.in_flight = 8;
        config.duration_ns = INT64_C(3600) * 1000000000;
        fs_load *load = started(&config);
        pthread_t stopper;
        REQUIRE(pthread_create(&stopper, NULL, stop_soon, load) == 0);
        uint64_t before = 0;
        while (!fs_load_wait(load, 1)) {
            fs_load_progress shown = fs_load_read(load);
            CHECK(shown.sent >= before && shown.outstanding <= 8);
            before = shown.sent;
        }
        pthread_join(stopper, NULL);
        const fs_load_result *r = fs_load_join(load);
        check_sums(r, 3);
        CHECK_EQ(r->unanswered, 8);
        CHECK(silent != 0 ? r->sent == 8 : r->done > 8);
        CHECK_EQ(failures(r), 0);
        CHECK(r->window_ns > 0);
        fs_load_free(load);
    }
    /* And freed while it runs. */
    fs_load_config config = config_for(&s->address);
    config.duration_ns = INT64_C(3600) * 1000000000;
    fs_load *load = started(&config);
    usleep(10000);
    fs_load_free(load);
    server_free(s);
}

static void *finish_soon(void *user)
{
    for (int ms = 0; ms < PATIENCE_MS && fs_load_read(user).done <= 8; ms++)
        usleep(1000);
    fs_load_finish(user);
    return NULL;
}

static void a_run_that_is_finished_waits_for_its_answers(void)
{
    static const enum fs_load_kind kinds[] = {FS_LOAD_CLOSED, FS_LOAD_POISSON};
    server *s = server_new();
    for (int i = 0; i < 2; i++) {
        fs_load_config config = config_for(&s->address);
        config.kind = kinds[i];
        config.rate = 5000;
        config.in_flight = 8;
        config.duration_ns = INT64_C(3600) * 1000000000;
        fs_load *load = started(&config);
        pthread_t finisher;
        REQUIRE(pthread_create(&finisher, NULL, finish_soon, load) == 0);
        CHECK(fs_load_wait(load, PATIENCE_MS));
        pthread_join(finisher, NULL);
        const fs_load_result *r = fs_load_join(load);
        check_sums(r, 3);
        CHECK_EQ(r->unanswered, 0);
        CHECK(r->done == r->sent && r->done > 8);
        CHECK(r->window_ns > 0 && r->window_ns < INT64_C(3600) * 1000000000);
        fs_load_free(load);
    }
    server_free(s);
}

static void every_request_of_the_window_is_recorded(void)
{
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.kind = FS_LOAD_CONSTANT;
    config.rate = 4000;
    config.warmup_ns = 50000000;
    config.duration_ns = 200000000;
    config.max_records = 1000;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    CHECK_EQ(r->n_records, 800);
    CHECK_EQ(r->unrecorded, 0);
    uint64_t longest = 0;
    int64_t first_ns = INT64_MAX, last_ns = 0;
    for (uint64_t i = 0; i < r->n_records; i++) {
        const fs_load_record *record = &r->records[i];
        CHECK(record->failure == 0 && record->version == -1);
        longest = (uint64_t)record->took_ns > longest ? (uint64_t)record->took_ns : longest;
        first_ns = record->due_ns < first_ns ? record->due_ns : first_ns;
        last_ns = record->due_ns > last_ns ? record->due_ns : last_ns;
    }
    CHECK_EQ(longest, r->latency.max);
    CHECK_EQ(last_ns - first_ns, INT64_C(799) * 250000);
    fs_load_free(load);

    config.max_records = 300;
    load = finished(&config);
    r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->n_records, 300);
    CHECK_EQ(r->unrecorded, 500);
    fs_load_free(load);

    atomic_store_explicit(&s->fail_with, FS_UNAVAILABLE, memory_order_relaxed);
    load = finished(&config);
    r = fs_load_join(load);
    for (uint64_t i = 0; i < r->n_records; i++)
        CHECK_EQ(r->records[i].failure, FS_UNAVAILABLE);
    fs_load_free(load);
    server_free(s);
}

/* The server echoes: a body that is a PredictResponse is its own answer. */
static void replies_are_checked_against_the_version_that_they_name(void)
{
    static const uint8_t spec_only[] = {0x12, 0x04, 0x12, 0x02, 0x08, 5};
    /* outputs { "s": float [1] { 1.0 } }, model_spec { version 5 } */
    static const uint8_t one[] = {0x0a, 0x0d, 0x0a, 1,    's', 0x12, 0x08, 0x08, 1,    0x2a,
                                  0x04, 0,    0,    0x80, 0x3f, 0x12, 0x04, 0x12, 0x02, 0x08, 5};
    static const uint8_t two[] = {0x0a, 0x0d, 0x0a, 1,    's', 0x12, 0x08, 0x08, 1,    0x2a,
                                  0x04, 0,    0,    0,    0x40, 0x12, 0x04, 0x12, 0x02, 0x08, 5};
    const fs_slice answers[] = {{one, sizeof one}, {two, sizeof two}, {spec_only, sizeof spec_only}};
    static const uint64_t first[] = {0, 1, 2, 3};
    static const float expected[] = {9, 9, 9, 1, 1, 1}; /* of even versions, of odd ones */
    const fs_load_check check = {.output = text("s"),
                                 .n_contents = 2,
                                 .n_bodies = 3,
                                 .first = first,
                                 .expected = expected,
                                 .atol = 1e-6f};
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.bodies = answers;
    config.reply_bytes = NULL;
    config.check = &check;
    config.requests = 300;
    config.max_records = 300;
    fs_load *load = finished(&config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->done, 100);
    CHECK_EQ(r->failed[FS_LOAD_MISVERSIONED], 100);
    CHECK_EQ(r->failed[FS_LOAD_BAD_REPLY], 100);
    CHECK_STR(r->first_error.msg,
              "body 1, version 5: the values are not those of the version that the answer names");
    for (uint64_t i = 0; i < r->n_records; i++)
        CHECK_EQ(r->records[i].version, 5);
    fs_load_free(load);
    server_free(s);
}

/* ---- HTTP/1.1 ----------------------------------------------------------------------------------------- */

/* Answers each request on a connection as the script says: what to send, whether to close then. */
typedef struct http_server {
    int listener;
    struct sockaddr_in address;
    pthread_t thread;
    const char *answer;
    bool close;
    int requests, connections; /* the thread's, until it has ended */
    int stop_after;            /* requests */
    char last[4096];
} http_server;

static size_t whole_request(const char *bytes, size_t len)
{
    const char *head = memmem(bytes, len, "\r\n\r\n", 4);
    const char *length = memmem(bytes, len, "content-length: ", 16);
    if (head == NULL || length == NULL)
        return 0;
    size_t whole = (size_t)(head - bytes) + 4 + (size_t)atoi(length + 16);
    return whole <= len ? whole : 0;
}

static void *serve_http(void *user)
{
    http_server *h = user;
    while (h->requests < h->stop_after) {
        int fd = accept(h->listener, NULL, NULL);
        REQUIRE(fd >= 0);
        h->connections++;
        char bytes[4096];
        size_t len = 0, whole;
        bool open = true;
        while (open) {
            ssize_t n = recv(fd, bytes + len, sizeof bytes - len, 0);
            if (n <= 0)
                break;
            len += (size_t)n;
            while (open && (whole = whole_request(bytes, len)) > 0) {
                memcpy(h->last, bytes, whole);
                h->last[whole] = '\0';
                memmove(bytes, bytes + whole, len - whole);
                len -= whole;
                h->requests++;
                REQUIRE(send(fd, h->answer, strlen(h->answer), MSG_NOSIGNAL) >= 0);
                open = !h->close;
            }
        }
        close(fd);
    }
    return NULL;
}

static fs_load *run_http(http_server *h, fs_load_config config)
{
    h->listener = listen_anywhere(&h->address);
    h->stop_after = (int)config.requests;
    REQUIRE(pthread_create(&h->thread, NULL, serve_http, h) == 0);
    memcpy(&config.address, &h->address, sizeof h->address);
    config.http = true;
    fs_load *load = finished(&config);
    pthread_join(h->thread, NULL);
    close(h->listener);
    return load;
}

static void http_is_spoken_one_request_at_a_time(void)
{
    http_server h = {.answer = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"};
    fs_load_config config = config_for(&h.address);
    fs_header header = {text("x-a"), text("b")};
    config.requests = 300;
    config.path = text("/v1/x:predict");
    config.headers = &header;
    config.n_headers = 1;
    config.reply_bytes = NULL;
    fs_load *load = run_http(&h, config);
    const fs_load_result *r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->done, 300);
    CHECK_EQ(h.requests, 300);
    CHECK_EQ(h.connections, 1);
    CHECK_EQ(r->reconnects, 0);
    CHECK(strncmp(h.last, "POST /v1/x:predict HTTP/1.1\r\nhost: here\r\nx-a: b\r\n", 49) == 0);
    fs_load_free(load);

    /* Open loop: they queue up for the only connection. */
    http_server again = {.answer = h.answer};
    config.kind = FS_LOAD_CONSTANT;
    config.rate = 3000;
    load = run_http(&again, config);
    r = fs_load_join(load);
    check_sums(r, 3);
    CHECK_EQ(r->done, 300);
    fs_load_free(load);
}

static void http_servers_that_close_are_dialled_again(void)
{
    static const char *const answers[] = {
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc",
        "HTTP/1.0 200 OK\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    };
    for (int i = 0; i < 3; i++) {
        static const int64_t three[] = {3, 3, 3};
        http_server h = {.answer = answers[i], .close = true};
        fs_load_config config = config_for(&h.address);
        config.requests = 50;
        config.reply_bytes = three;
        fs_load *load = run_http(&h, config);
        const fs_load_result *r = fs_load_join(load);
        check_sums(r, 3);
        CHECK_EQ(r->done, 50);
        CHECK_EQ(h.connections, 50);
        CHECK_EQ(r->reconnects, 0); /* nothing was lost */
        fs_load_free(load);
    }
}

static void http_failures_are_told_apart(void)
{
    static const struct {
        const char *answer;
        int failure;
    } cases[] = {
        {"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", FS_LOAD_HTTP + 503},
        {"HTTP/1.1 404 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", FS_LOAD_HTTP + 404},
        {"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd", FS_LOAD_REPLY_SIZE},
        {"SSH-2.0-OpenSSH\r\n", FS_LOAD_BAD_HTTP},
        {"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", FS_LOAD_LOST},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        static const int64_t three[] = {3, 3, 3};
        http_server h = {.answer = cases[i].answer, .close = cases[i].failure >= FS_LOAD_BAD_HTTP
                                                                 ? cases[i].failure == FS_LOAD_BAD_HTTP
                                                                 : cases[i].failure == FS_LOAD_LOST};
        fs_load_config config = config_for(&h.address);
        config.requests = 3;
        config.reply_bytes = three;
        fs_load *load = run_http(&h, config);
        const fs_load_result *r = fs_load_join(load);
        check_sums(r, 3);
        CHECK_EQ(r->failed[cases[i].failure], 3);
        CHECK_EQ(r->first_error.code, cases[i].failure);
        CHECK(r->first_error.len > 0);
        fs_load_free(load);
    }
}

/* ---- memory ----------------------------------------------------------------------------------- */

static void out_of_memory_before_the_start_is_an_error(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    for (int way = 0; way < 3; way++) {
        fs_load_config config = config_for(&address);
        config.requests = 1;
        config.max_records = 10;
        config.http = way == 1;
        config.kind = way == 2 ? FS_LOAD_POISSON : FS_LOAD_CLOSED;
        config.rate = 1;
        for (long n = 1;; n++) {
            fs_error err = {0};
            failmalloc_after(n);
            fs_load *load = fs_load_new(&config, &err);
            failmalloc_after(-1);
            if (!failmalloc_fired()) {
                CHECK(load != NULL && n > 4);
                fs_load_free(load);
                break;
            }
            CHECK(load == NULL);
            CHECK_EQ(err.code, FS_RESOURCE_EXHAUSTED);
        }
    }
}

/* One allocation fails on the way, here or in the server: calls may fail, but the run goes on to its end. */
static void out_of_memory_on_the_way_costs_calls_at_most(void)
{
    for (long n = 1;; n += 1 + n / 16) {
        server *s = server_new();
        fs_load_config config = config_for(&s->address);
        config.kind = n % 2 == 0 ? FS_LOAD_CLOSED : FS_LOAD_CONSTANT;
        config.rate = 20000;
        config.in_flight = 4;
        config.requests = 30;
        config.timeout_us = 200000;
        fs_load *load = started(&config);
        failmalloc_after(n);
        CHECK(fs_load_wait(load, PATIENCE_MS));
        failmalloc_after(-1);
        bool fired = failmalloc_fired();
        const fs_load_result *r = fs_load_join(load);
        if (!r->no_connection) {
            check_sums(r, 3);
            CHECK_EQ(r->sent, 30);
            CHECK(fired || r->done == 30);
        } else {
            CHECK(fired);
        }
        fs_load_free(load);
        server_free(s);
        if (!fired)
            break;
    }
}

/* Of an open loop it can be said only between bursts, and a test cannot know when those come. */
static void steady_state_allocates_nothing(void)
{
    server *s = server_new();
    fs_load_config config = config_for(&s->address);
    config.in_flight = 8;
    config.duration_ns = INT64_C(3600) * 1000000000;
    config.interval_ns = 0;
    config.max_records = 2000; /* and none for those that find no room */
    fs_load *load = started(&config);
    while (fs_load_read(load).done < 1000)
        REQUIRE(!fs_load_wait(load, 1));
    long before = failmalloc_count();
    while (fs_load_read(load).done < 3000)
        REQUIRE(!fs_load_wait(load, 1));
    CHECK(failmalloc_count() - before < 20); /* for 2000 calls, of which the server may need a block more */
    fs_load_free(load);
    server_free(s);
}

int main(void)
{
    a_closed_loop_sends_so_many_and_waits_for_all();
    an_open_loop_sends_exactly_what_is_due();
    a_replay_keeps_order_and_times();
    the_order_begins_again_at_its_end();
    what_the_server_refuses_is_counted_by_its_code();
    replies_of_the_wrong_size_are_no_successes();
    what_is_not_answered_in_time_fails();
    more_than_may_be_outstanding_fails_at_once();
    without_a_server_there_is_no_run();
    a_processor_that_is_not_there_is_an_error();
    progress_may_be_read_and_the_run_stopped_at_any_time();
    a_run_that_is_finished_waits_for_its_answers();
    every_request_of_the_window_is_recorded();
    replies_are_checked_against_the_version_that_they_name();
    http_is_spoken_one_request_at_a_time();
    http_servers_that_close_are_dialled_again();
    http_failures_are_told_apart();
    out_of_memory_before_the_start_is_an_error();
    out_of_memory_on_the_way_costs_calls_at_most();
    steady_state_allocates_nothing();
    return check_done();
}
