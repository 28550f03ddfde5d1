/* h2_client: the calling side against our own server session, and against frames that no server of ours would
 * send. On a clock that the test turns. */
#include "h2_client.h"

#include "failmalloc.h"
#include "h2.h"
#include "h2_raw_server.h"
#include "h2_session.h"
#include "text.h"

enum { HELD = 4096, MOST_PIECES = 64 };

/* A call of these tests. A block of its own, so that a sanitizer sees who reads it when it is over. */
typedef struct job {
    fs_exchange x; /* first */
    fs_slice pieces[MOST_PIECES];
    uint8_t *message;
    int ended;
    struct job *cancel; /* given up from inside on_end */
    int again;          /* started so many times more from inside on_end */
    int again_rc;
} job;

typedef struct world {
    fs_slab *slab;
    fs_h2_client_limits limits;
    fs_h2_client *client;
    int ended;
    uint64_t seed;

    /* One of the two. */
    raw *raw;
    fs_h2 *server;

    fs_h2_limits server_limits;
    fs_budget budget;
    fs_rpc *held[HELD];
    int n_held, served, cancelled;
    int64_t now_us;
    size_t room, step; /* as in raw, for both directions */
    int client_rc, server_rc;
} world;

/* ---- the server ------------------------------------------------------------------------------------ */

static char echo_method, hold_method, fail_method;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    *streaming = false;
    fs_slice name = {path, len};
    if (fs_slice_compare(name, fs_slice_of("/t/Echo")) == 0)
        return &echo_method;
    if (fs_slice_compare(name, fs_slice_of("/t/Hold")) == 0)
        return &hold_method;
    return fs_slice_compare(name, fs_slice_of("/t/Fail")) == 0 ? &fail_method : NULL;
}

static void serve_echo(world *w, fs_rpc *rpc)
{
    uint8_t *frame = fs_slab_alloc(w->slab, rpc->message_len + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL) {
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, "no memory", 9, NULL, 0);
        return;
    }
    fs_grpc_prefix_write(frame, rpc->encoding != FS_IDENTITY, (uint32_t)rpc->message_len);
    memcpy(frame + FS_GRPC_PREFIX_BYTES, rpc->message, rpc->message_len);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, rpc->message_len + FS_GRPC_PREFIX_BYTES);
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    w->served++;
    if (rpc->method == &echo_method) {
        serve_echo(w, rpc);
    } else if (rpc->method == &fail_method) {
        static const char text[] = " bad input: 100% \xc3\xbc\n";
        fs_rpc_finish(rpc, FS_INVALID_ARGUMENT, text, sizeof text - 1, NULL, 0);
    } else {
        REQUIRE(w->n_held < HELD);
        w->held[w->n_held++] = rpc;
    }
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    (void)rpc;
    ((world *)ctx)->cancelled++;
}

static const fs_h2_handler server_handler = {.lookup = on_lookup, .on_call = on_call, .on_cancel = on_cancel};

static const fs_h2_limits server_usual = {
    .max_concurrent_streams = 1000,
    .max_header_bytes = 16384,
    .max_message_bytes = 64 << 20,
    .max_conn_bytes = 256 << 20,
    .window_bytes = 1 << 20,
    .reset_burst = 5000,
    .chatter_burst = 5000,
};

/* ---- the client ------------------------------------------------------------------------------------ */

static void on_end(void *ctx, fs_exchange *x)
{
    world *w = ctx;
    job *j = (job *)x;
    w->ended++;
    j->ended++;
    CHECK(x->h2 == NULL);
    CHECK_EQ(x->code, x->error.code);
    CHECK_EQ(strlen(x->error.msg), x->error.len);
    if (x->code == FS_OK)
        CHECK(x->reply != NULL && x->answered && !x->unprocessed && x->error.len == 0);
    else
        CHECK(x->reply == NULL && x->reply_bytes == 0 && (x->answered || x->error.len > 0));
    CHECK(!x->unprocessed || !x->answered);
    if (j->cancel != NULL) {
        fs_h2_client_cancel(w->client, &j->cancel->x);
        j->cancel = NULL;
    }
    if (j->again > 0) {
        j->again--;
        fs_slab_free(x->reply);
        x->reply = NULL;
        j->again_rc = fs_h2_client_start(w->client, x);
    }
}

static const fs_h2_client_handler handler = {.on_end = on_end};

static const fs_h2_client_limits usual = {
    .max_reply_bytes = 64 << 20,
    .max_header_bytes = 16384,
    .window_bytes = 1 << 20,
};

static world *world_base(const fs_h2_client_limits *limits)
{
    world *w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->slab = fs_slab_new(64 << 20);
    REQUIRE(w->slab != NULL);
    w->limits = *limits;
    w->room = 1 << 16;
    w->client =
        fs_h2_client_new(&w->limits, &handler, w, fs_slice_of("host:1"), fs_slice_of("http"), w->slab, 0);
    REQUIRE(w->client != NULL);
    return w;
}

static world *world_new(const fs_h2_client_limits *limits, const fs_h2_limits *server_limits)
{
    world *w = world_base(limits);
    w->budget.limit = 1 << 30;
    w->server_limits = *server_limits;
    w->server = fs_h2_new(&w->server_limits, &server_handler, w, NULL, &w->budget, w->slab, 0);
    REQUIRE(w->server != NULL);
    return w;
}

/* With a raw server that has said its SETTINGS. */
static world *world_raw(const fs_h2_client_limits *limits)
{
    world *w = world_base(limits);
    w->raw = raw_new(w->client);
    raw_settings(w->raw, 0, 0);
    raw_feed(w->raw);
    raw_hear(w->raw);
    raw_forget(w->raw);
    CHECK(fs_h2_client_ready(w->client));
    return w;
}

static void world_free(world *w)
{
    fs_h2_client_free(w->client, NULL);
    if (w->raw != NULL)
        raw_free(w->raw);
    fs_h2_free(w->server);
    for (int i = 0; i < w->n_held; i++)
        fs_rpc_finish(w->held[i], FS_CANCELLED, NULL, 0, NULL, 0);
    CHECK_EQ(fs_budget_used(&w->budget), 0);
    fs_slab_release(w->slab);
    free(w);
}

static bool pump_up(world *w)
{
    static _Thread_local uint8_t buf[1 << 18];
    bool moved = false;
    size_t n;
    while ((n = fs_h2_client_send(w->client, buf, w->room, w->now_us)) > 0) {
        CHECK(n <= w->room);
        moved = true;
        for (size_t at = 0, k; at < n; at += k) {
            k = w->step > 0 && w->step < n - at ? w->step : n - at;
            int rc = fs_h2_recv(w->server, buf + at, k, w->now_us);
            w->server_rc = w->server_rc != 0 ? w->server_rc : rc;
        }
    }
    return moved;
}

static bool pump_down(world *w)
{
    static _Thread_local uint8_t buf[1 << 18];
    bool moved = false;
    size_t n;
    while ((n = fs_h2_send(w->server, buf, w->room, w->now_us)) > 0) {
        moved = true;
        for (size_t at = 0, k; at < n; at += k) {
            k = w->step > 0 && w->step < n - at ? w->step : n - at;
            uint8_t *copy = malloc(k); /* so that a sanitizer sees reads past it */
            REQUIRE(copy != NULL);
            memcpy(copy, buf + at, k);
            int rc = fs_h2_client_recv(w->client, copy, k, w->now_us);
            free(copy);
            w->client_rc = w->client_rc != 0 ? w->client_rc : rc;
        }
    }
    return moved;
}

static void pump(world *w)
{
    for (bool moved = true; moved;) {
        moved = pump_up(w);
        moved = pump_down(w) || moved;
    }
}

static uint32_t rnd(world *w)
{
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33);
}

/* A call with a message of `len` bytes in `n` pieces: equal ones, and two that are empty when there are more
 * than three. */
static job *job_new(const char *path, size_t len, uint32_t n)
{
    job *j = calloc(1, sizeof *j);
    REQUIRE(j != NULL && n <= MOST_PIECES);
    j->message = malloc(len + 1);
    REQUIRE(j->message != NULL);
    for (size_t i = 0; i < len; i++)
        j->message[i] = (uint8_t)(len + i * 31 + (i >> 8));
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        size_t k = i == n - 1 ? len - at : n > 3 && (i == 0 || i == 2) ? 0 : (len - at) / (n - i);
        j->pieces[i] = (fs_slice){k > 0 ? j->message + at : NULL, k};
        at += k;
    }
    j->x.path = fs_slice_of(path);
    j->x.pieces = j->pieces;
    j->x.n_pieces = n;
    j->x.message_bytes = len;
    return j;
}

static void job_free(job *j)
{
    fs_slab_free(j->x.reply);
    free(j->message);
    free(j);
}

static job *start(world *w, const char *path, size_t len)
{
    job *j = job_new(path, len, len > 0);
    CHECK_OK(fs_h2_client_start(w->client, &j->x));
    return j;
}

static void check_echo(const job *j)
{
    CHECK_EQ(j->ended, 1);
    CHECK_EQ(j->x.code, FS_OK);
    CHECK_EQ(j->x.reply_bytes, j->x.message_bytes);
    if (j->x.code == FS_OK && j->x.reply_bytes == j->x.message_bytes) {
        CHECK_MEM(j->x.reply, j->message, j->x.message_bytes);
        CHECK(j->x.reply_bytes < 1024 || (uintptr_t)j->x.reply % 64 == 0);
    }
}

#define CHECK_ENDED(j, status, text)                                                               \
    do {                                                                                           \
        CHECK_EQ((j)->ended, 1);                                                                   \
        CHECK_EQ((j)->x.code, status);                                                             \
        CHECK_STR((j)->x.error.msg, text);                                                         \
    } while (0)

/* ---- whole calls ----------------------------------------------------------------------------------- */

static void test_echo_of_many_sizes_and_pieces(void)
{
    static const size_t sizes[] = {0, 1, 4, 5, 16379, 16384, 16385, 65535, 65536, 300000, 3 << 20};
    static const uint32_t pieces[] = {1, 2, 3, 7, 64};
    static const size_t rooms[] = {1 << 16, (1 << 16) + 13, 1 << 18};
    for (size_t r = 0; r < 3; r++) {
        world *w = world_new(&usual, &server_usual);
        w->room = rooms[r];
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
                job *j = job_new("/t/Echo", sizes[i], sizes[i] == 0 && k == 0 ? 0 : pieces[k]);
                CHECK_OK(fs_h2_client_start(w->client, &j->x));
                CHECK_EQ(fs_h2_client_active(w->client), 1);
                pump(w);
                check_echo(j);
                CHECK_EQ(j->x.reply_encoding, FS_IDENTITY);
                CHECK_EQ(fs_h2_client_active(w->client), 0);
                job_free(j);
            }
        }
        world_free(w);
    }
}

static void test_byte_by_byte(void)
{
    static const size_t steps[] = {1, 2, 7, 1000};
    for (size_t s = 0; s < 4; s++) {
        world *w = world_new(&usual, &server_usual);
        w->step = steps[s];
        job *jobs[8];
        for (int i = 0; i < 8; i++) {
            jobs[i] = job_new("/t/Echo", (size_t)i * 5000, 3);
            jobs[i]->x.encoding = (uint8_t)(i % 3);
            CHECK_OK(fs_h2_client_start(w->client, &jobs[i]->x));
        }
        pump(w);
        for (int i = 0; i < 8; i++) {
            check_echo(jobs[i]);
            /* The server gives what comes compressed back as the best that we accept. */
            CHECK_EQ(jobs[i]->x.reply_encoding, i % 3 == 0 ? FS_IDENTITY : FS_GZIP);
            job_free(jobs[i]);
        }
        world_free(w);
    }
}

static void test_small_windows_and_large_messages(void)
{
    fs_h2_client_limits limits = usual;
    fs_h2_limits server_limits = server_usual;
    limits.window_bytes = server_limits.window_bytes = 65535;
    world *w = world_new(&limits, &server_limits);
    job *jobs[6];
    for (int i = 0; i < 6; i++) {
        jobs[i] = job_new("/t/Echo", i % 2 == 0 ? (size_t)(i + 2) << 20 : 100, 5);
        CHECK_OK(fs_h2_client_start(w->client, &jobs[i]->x));
    }
    /* What is small does not wait until what is large is through. */
    for (int i = 0; i < 4; i++) {
        pump_up(w);
        pump_down(w);
    }
    CHECK(jobs[1]->ended == 1 && jobs[3]->ended == 1 && jobs[5]->ended == 1);
    CHECK(jobs[0]->ended == 0);
    pump(w);
    for (int i = 0; i < 6; i++) {
        check_echo(jobs[i]);
        job_free(jobs[i]);
    }
    world_free(w);
}

static void test_a_small_call_leaves_in_one_send(void)
{
    world *w = world_raw(&usual);
    job *j = start(w, "/t/Echo", 1000);
    CHECK(raw_hear_once(w->raw) > 1000);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_HEADERS, 1), 1);
    const raw_frame *data = raw_find(w->raw, NGHTTP2_DATA, 1);
    REQUIRE(data != NULL);
    CHECK_EQ(data->len, 1005);
    CHECK_EQ(data->flags, NGHTTP2_FLAG_END_STREAM);
    CHECK_EQ(raw_hear_once(w->raw), 0);
    raw_answer(w->raw, 1, "fine");
    raw_feed(w->raw);
    CHECK_ENDED(j, FS_OK, "");
    CHECK_EQ(j->x.reply_bytes, 4);
    CHECK_MEM(j->x.reply, "fine", 4);
    raw_forget(w->raw);
    raw_hear(w->raw);
    CHECK_EQ(w->raw->n_frames, 0);
    job_free(j);
    world_free(w);
}

static void test_errors_of_the_server(void)
{
    world *w = world_new(&usual, &server_usual);
    job *fail = start(w, "/t/Fail", 10), *none = start(w, "/t/None", 10), *echo = start(w, "/t/Echo", 10);
    pump(w);
    CHECK_ENDED(fail, FS_INVALID_ARGUMENT, " bad input: 100% \xc3\xbc\n");
    CHECK(fail->x.answered && !fail->x.unprocessed);
    CHECK_ENDED(none, FS_UNIMPLEMENTED, "");
    CHECK(none->x.answered && !none->x.unprocessed);
    check_echo(echo);
    job_free(fail);
    job_free(none);
    job_free(echo);
    world_free(w);
}

static void test_a_steady_state_asks_the_system_for_nothing(void)
{
    world *w = world_new(&usual, &server_usual);
    job *jobs[16];
    uint64_t allocs = 0;
    for (int i = 0; i < 16; i++) {
        jobs[i] = job_new("/t/Echo", 1000, 2);
        jobs[i]->x.timeout_us = 1000000 + i;
    }
    for (int round = 0; round < 200; round++) {
        if (round == 20)
            allocs = fs_slab_read(w->slab).system_allocs;
        for (int i = 0; i < 16; i++)
            CHECK_OK(fs_h2_client_start(w->client, &jobs[i]->x));
        pump(w);
        for (int i = 0; i < 16; i++) {
            check_echo(jobs[i]);
            jobs[i]->ended = 0;
            fs_slab_free(jobs[i]->x.reply);
        }
    }
    CHECK_EQ(fs_slab_read(w->slab).system_allocs, allocs);
    CHECK_EQ(w->ended, 200 * 16);
    for (int i = 0; i < 16; i++) {
        jobs[i]->x.reply = NULL;
        job_free(jobs[i]);
    }
    world_free(w);
}

/* ---- what requests look like ----------------------------------------------------------------------- */

static const char *lines_of(const raw *r, int32_t stream)
{
    const raw_frame *f = raw_find(r, NGHTTP2_HEADERS, stream);
    return f != NULL ? r->lines + f->lines_at : "none";
}

static void test_request_headers(void)
{
    world *w = world_raw(&usual);
    job *j = job_new("/a.B/C", 3, 1);
    CHECK_OK(fs_h2_client_start(w->client, &j->x));
    raw_hear(w->raw);
    CHECK_STR(lines_of(w->raw, 1), ":method: POST\n:scheme: http\n:path: /a.B/C\n:authority: host:1\n"
                                   "te: trailers\ncontent-type: application/grpc\n"
                                   "user-agent: fastserve-client/1\n"
                                   "grpc-accept-encoding: identity,deflate,gzip\n");
    size_t first = raw_find(w->raw, NGHTTP2_HEADERS, 1)->len;

    static const fs_header more[] = {{{(const uint8_t *)"x-one", 5}, {(const uint8_t *)"1", 1}},
                                     {{(const uint8_t *)"x-two", 5}, {(const uint8_t *)"", 0}}};
    job *k = job_new("/a.B/C", 3, 1);
    k->x.headers = more;
    k->x.n_headers = 2;
    k->x.encoding = FS_GZIP;
    k->x.timeout_us = 250000;
    CHECK_OK(fs_h2_client_start(w->client, &k->x));
    raw_hear(w->raw);
    CHECK_STR(strstr(lines_of(w->raw, 3), "gzip\ngrpc"),
              "gzip\ngrpc-encoding: gzip\ngrpc-timeout: 250000u\nx-one: 1\nx-two: \n");
    size_t len;
    bool ended;
    uint8_t *body = raw_body(w->raw, 3, &len, &ended);
    CHECK_EQ(len, 8);
    CHECK_EQ(body[0], 1);
    free(body);

    /* A steady call: an index each, the path, and its timeout, which no table remembers. */
    job *steady[50];
    for (int i = 0; i < 50; i++) {
        steady[i] = job_new("/a.B/C", 3, 1);
        steady[i]->x.timeout_us = 123456 + i;
        CHECK_OK(fs_h2_client_start(w->client, &steady[i]->x));
    }
    raw_hear(w->raw);
    size_t one = raw_find(w->raw, NGHTTP2_HEADERS, 5)->len;
    CHECK(one < first / 2);
    for (int i = 0; i < 50; i++)
        CHECK_EQ(raw_find(w->raw, NGHTTP2_HEADERS, 5 + 2 * i)->len, one);
    CHECK(nghttp2_hd_inflate_get_num_table_entries(w->raw->inflater) <= 61 + 12);
    for (int i = 0; i < 50; i++) {
        fs_h2_client_cancel(w->client, &steady[i]->x);
        job_free(steady[i]);
    }
    fs_h2_client_cancel(w->client, &j->x);
    fs_h2_client_cancel(w->client, &k->x);
    job_free(j);
    job_free(k);
    world_free(w);
}

static void test_many_headers(void)
{
    world *w = world_raw(&usual);
    fs_header headers[100];
    char names[100][32];
    for (int i = 0; i < 100; i++) {
        snprintf(names[i], sizeof names[i], "x-header-%d", i);
        headers[i] = (fs_header){fs_slice_of(names[i]), fs_slice_of("value")};
    }
    job *j = job_new("/t/Echo", 3, 1);
    j->x.headers = headers;
    j->x.n_headers = 100;
    CHECK_OK(fs_h2_client_start(w->client, &j->x));
    raw_hear(w->raw);
    CHECK(strstr(lines_of(w->raw, 1), "x-header-0: value\n") != NULL);
    CHECK(strstr(lines_of(w->raw, 1), "x-header-99: value\n") != NULL);
    raw_answer(w->raw, 1, "x");
    raw_feed(w->raw);
    CHECK_ENDED(j, FS_OK, "");
    job_free(j);
    world_free(w);
}

static void test_headers_too_long_to_send(void)
{
    world *w = world_raw(&usual);
    char *value = malloc(1 << 20);
    REQUIRE(value != NULL);
    memset(value, 'v', 1 << 20);
    fs_header header = {fs_slice_of("x-long"), {(const uint8_t *)value, 1 << 20}};
    job *j = job_new("/t/Echo", 3, 1), *other = job_new("/t/Echo", 3, 1);
    j->x.headers = &header;
    j->x.n_headers = 1;
    CHECK_OK(fs_h2_client_start(w->client, &j->x));
    CHECK_OK(fs_h2_client_start(w->client, &other->x));
    raw_hear(w->raw);
    CHECK_EQ(j->ended, 1);
    CHECK_EQ(j->x.code, FS_RESOURCE_EXHAUSTED);
    CHECK(strstr(j->x.error.msg, "headers cannot be sent") != NULL);
    CHECK(!j->x.unprocessed && !j->x.answered);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_HEADERS, 1), 0);
    raw_answer(w->raw, 3, "x");
    raw_feed(w->raw);
    CHECK_ENDED(other, FS_OK, "");
    CHECK_EQ(fs_h2_client_active(w->client), 0);
    job_free(j);
    job_free(other);
    free(value);
    world_free(w);
}

/* ---- answers --------------------------------------------------------------------------------------- */

typedef struct answer {
    const char *head;    /* lines */
    const char *body;    /* of DATA */
    size_t body_len;
    const char *trailers; /* NULL: the stream ends with what is before */
    int code;
    const char *text;
    bool answered;
    int64_t reset; /* -1: none */
} answer;

#define BODY(text) text, sizeof(text) - 1
#define HI BODY("\0\0\0\0\2hi")

static const answer answers[] = {
    {RAW_HEAD, HI, RAW_OK, FS_OK, "", true, -1},
    {RAW_HEAD, HI, RAW_OK "grpc-message: all is well\n", FS_OK, "", true, -1},
    {RAW_HEAD "x-more: 1\n", HI, "x-more: 2\n" RAW_OK, FS_OK, "", true, -1},
    {":status: 200\ncontent-type: application/grpc+proto\n", HI, RAW_OK, FS_OK, "", true, -1},
    {":status: 200\ncontent-type: application/grpc;charset=utf-8\n", HI, RAW_OK, FS_OK, "", true, -1},

    /* Errors in the server's own words. */
    {RAW_HEAD "grpc-status: 5\ngrpc-message: no such model\n", NULL, 0, NULL, FS_NOT_FOUND,
     "no such model", true, -1},
    {RAW_HEAD, NULL, 0, "grpc-status: 14\ngrpc-message: busy\n", FS_UNAVAILABLE, "busy", true, -1},
    {RAW_HEAD, HI, "grpc-status: 13\ngrpc-message: late\n", FS_INTERNAL, "late", true, -1},
    {RAW_HEAD, BODY("\0\0\0\0\2h"), "grpc-status: 13\n", FS_INTERNAL, "", true, -1},
    {RAW_HEAD, NULL, 0, "grpc-status: 16\ngrpc-message: %48%c3%BC%0A%\n", FS_UNAUTHENTICATED,
     "H\xc3\xbc\n%", true, -1},
    {RAW_HEAD, NULL, 0, "grpc-status: 3\ngrpc-message: 100%, %zz %4 %4g %e\n", FS_INVALID_ARGUMENT,
     "100%, %zz %4 %4g %e", true, -1},
    {RAW_HEAD "grpc-status: 9\n", NULL, 0, "grpc-status: 10\n", FS_ABORTED, "", true, -1},
    {":status: 415\ncontent-type: text/html\ngrpc-status: 3\ngrpc-message: what\n", NULL, 0, NULL,
     FS_INVALID_ARGUMENT, "what", true, -1},
    {":status: 415\ngrpc-status: 3\ngrpc-message: what\n", BODY("<html>"), NULL, FS_INVALID_ARGUMENT,
     "what", true, NGHTTP2_CANCEL},

    /* No status that counts. */
    {RAW_HEAD, HI, NULL, FS_UNKNOWN, "The reply ended without a grpc-status", false, -1},
    {RAW_HEAD, HI, "x: y\n", FS_UNKNOWN, "The reply ended without a grpc-status", false, -1},
    {RAW_HEAD, NULL, 0, NULL, FS_UNKNOWN, "The reply ended without a grpc-status", false, -1},
    {RAW_HEAD, HI, "grpc-status: 17\n", FS_UNKNOWN,
     "The server gave a grpc-status that is not a number from 0 to 16", false, -1},
    {RAW_HEAD, HI, "grpc-status: \n", FS_UNKNOWN,
     "The server gave a grpc-status that is not a number from 0 to 16", false, -1},
    {RAW_HEAD, HI, "grpc-status: -1\n", FS_UNKNOWN,
     "The server gave a grpc-status that is not a number from 0 to 16", false, -1},
    {RAW_HEAD, HI, "grpc-status: 00000000000000000000000000000000\n", FS_UNKNOWN,
     "The server gave a grpc-status that is not a number from 0 to 16", false, -1},

    /* HTTP without gRPC. */
    {":status: 400\n", NULL, 0, NULL, FS_INTERNAL, "The server answered with HTTP status 400", false, -1},
    {":status: 401\n", NULL, 0, NULL, FS_UNAUTHENTICATED, "The server answered with HTTP status 401",
     false, -1},
    {":status: 403\n", NULL, 0, NULL, FS_PERMISSION_DENIED, "The server answered with HTTP status 403",
     false, -1},
    {":status: 404\ncontent-type: text/html\n", BODY("<html>"), NULL, FS_UNIMPLEMENTED,
     "The server answered with HTTP status 404 (text/html)", false, NGHTTP2_CANCEL},
    {":status: 429\n", NULL, 0, NULL, FS_UNAVAILABLE, "The server answered with HTTP status 429", false,
     -1},
    {":status: 502\n", NULL, 0, NULL, FS_UNAVAILABLE, "The server answered with HTTP status 502", false,
     -1},
    {":status: 503\n", BODY("no"), NULL, FS_UNAVAILABLE, "The server answered with HTTP status 503",
     false, NGHTTP2_CANCEL},
    {":status: 504\n", NULL, 0, NULL, FS_UNAVAILABLE, "The server answered with HTTP status 504", false,
     -1},
    {":status: 500\n", NULL, 0, NULL, FS_UNKNOWN, "The server answered with HTTP status 500", false, -1},
    {":status: 302\n", NULL, 0, NULL, FS_UNKNOWN, "The server answered with HTTP status 302", false, -1},
    {":status: 503\ngrpc-status: 0\n", NULL, 0, NULL, FS_UNAVAILABLE,
     "The server answered with HTTP status 503", false, -1},
    {":status: 200\ncontent-type: text/\"plain\n", BODY("hi"), NULL, FS_UNKNOWN,
     "The server's answer is not gRPC: its content-type is \"text/\\x22plain\"", false, NGHTTP2_CANCEL},
    {":status: 200\n", HI, RAW_OK, FS_UNKNOWN,
     "The server's answer is not gRPC: its content-type is \"\"", false, NGHTTP2_CANCEL},

    /* Status OK, and not one whole message. */
    {RAW_HEAD, NULL, 0, RAW_OK, FS_INTERNAL, "The reply has status OK and no message", false, -1},
    {RAW_HEAD RAW_OK, NULL, 0, NULL, FS_INTERNAL, "The reply has status OK and no message", false, -1},
    {RAW_HEAD, BODY("\0\0\0\0\2h"), RAW_OK, FS_INTERNAL, "The reply ended inside its message", false, -1},
    {RAW_HEAD, BODY("\0\0"), RAW_OK, FS_INTERNAL, "The reply ended inside its message", false, -1},
    {RAW_HEAD, BODY("\0\0\0\0\2hi\0"), RAW_OK, FS_INTERNAL, "The reply has more than one message", false,
     NGHTTP2_CANCEL},
    {RAW_HEAD, BODY("\0\0\0\0\0\0\0\0\0\0"), RAW_OK, FS_INTERNAL, "The reply has more than one message",
     false, NGHTTP2_CANCEL},
    {RAW_HEAD, BODY("\2\0\0\0\2hi"), RAW_OK, FS_INTERNAL,
     "The reply has invalid flags in a gRPC frame (2)", false, NGHTTP2_CANCEL},
    {RAW_HEAD, BODY("\1\0\0\0\2hi"), RAW_OK, FS_INTERNAL,
     "The reply has the compressed flag set without grpc-encoding", false, NGHTTP2_CANCEL},
    {RAW_HEAD "grpc-encoding: br\n", BODY("\1\0\0\0\2hi"), RAW_OK, FS_INTERNAL,
     "The reply is compressed in a way that is not known here", false, NGHTTP2_CANCEL},
    {RAW_HEAD "grpc-encoding: br\n", HI, RAW_OK, FS_OK, "", true, -1},
    {RAW_HEAD, BODY("\0\1\0\0\1"), RAW_OK, FS_RESOURCE_EXHAUSTED,
     "Received message larger than max (16777217 vs. 16777216)", false, NGHTTP2_CANCEL},
};

static void test_answers(void)
{
    static const size_t steps[] = {0, 1, 10};
    fs_h2_client_limits limits = usual;
    limits.max_reply_bytes = 16 << 20;
    for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
        world *w = world_raw(&limits);
        w->raw->step = steps[s];
        int32_t id = 1;
        for (size_t i = 0; i < sizeof answers / sizeof *answers; i++, id += 2) {
            const answer *a = &answers[i];
            job *j = start(w, "/t/Echo", 10);
            raw_hear(w->raw);
            raw_forget(w->raw);
            raw_headers(w->raw, id, a->body == NULL && a->trailers == NULL, a->head);
            if (a->body != NULL)
                raw_data(w->raw, id, a->trailers == NULL, a->body, a->body_len);
            if (a->trailers != NULL)
                raw_headers(w->raw, id, true, a->trailers);
            raw_feed(w->raw);
            raw_hear(w->raw);
            CHECK_ENDED(j, a->code, a->text);
            CHECK_EQ(j->x.answered, a->answered);
            CHECK(!j->x.unprocessed);
            CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, id), a->reset);
            if (a->code == FS_OK)
                CHECK_MEM(j->x.reply, "hi", 2);
            CHECK_EQ(fs_h2_client_active(w->client), 0);
            job_free(j);
        }
        CHECK_EQ(w->raw->recv_rc, 0);
        CHECK(fs_h2_client_accepts(w->client));
        world_free(w);
    }
}

static void test_compressed_replies(void)
{
    static const char *names[] = {"gzip", "deflate"};
    static const uint8_t encodings[] = {FS_GZIP, FS_DEFLATE};
    world *w = world_raw(&usual);
    for (int i = 0; i < 2; i++) {
        char head[128];
        snprintf(head, sizeof head, RAW_HEAD "grpc-encoding: %s\n", names[i]);
        for (uint8_t flag = 0; flag < 2; flag++) {
            job *j = start(w, "/t/Echo", 10);
            int32_t id = 1 + 4 * i + 2 * flag;
            raw_hear(w->raw);
            raw_headers(w->raw, id, false, head);
            raw_data(w->raw, id, false, (uint8_t[]){flag, 0, 0, 0, 1, 'x'}, 6);
            raw_headers(w->raw, id, true, RAW_OK);
            raw_feed(w->raw);
            CHECK_ENDED(j, FS_OK, "");
            CHECK_EQ(j->x.reply_encoding, flag != 0 ? encodings[i] : FS_IDENTITY);
            job_free(j);
        }
    }
    world_free(w);
}

static void test_a_long_message_of_the_servers_is_cut(void)
{
    world *w = world_raw(&usual);
    job *j = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    char lines[4096];
    int n = snprintf(lines, sizeof lines, "grpc-status: 2\ngrpc-message: ");
    for (int i = 0; i < 900; i++)
        n += snprintf(lines + n, sizeof lines - (size_t)n, "a%%20");
    snprintf(lines + n, sizeof lines - (size_t)n, "\n");
    raw_headers(w->raw, 1, false, RAW_HEAD);
    raw_headers(w->raw, 1, true, lines);
    raw_feed(w->raw);
    CHECK_EQ(j->x.code, FS_UNKNOWN);
    CHECK_EQ(j->x.error.len, FS_MESSAGE_MAX + strlen(FS_MESSAGE_MARK));
    CHECK_MEM(j->x.error.msg, "a a a", 5);
    job_free(j);
    world_free(w);
}

static void test_header_lists_too_long(void)
{
    fs_h2_client_limits limits = usual;
    limits.max_header_bytes = 1000;
    world *w = world_raw(&limits);
    char lines[8192];
    int n = snprintf(lines, sizeof lines, "grpc-status: 0\n");
    for (int i = 0; i < 30; i++)
        n += snprintf(lines + n, sizeof lines - (size_t)n, "x-header-%d: value\n", i);
    job *head = start(w, "/t/Echo", 10), *tail = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    char both[8192 + 100];
    snprintf(both, sizeof both, RAW_HEAD "%s", lines);
    raw_headers(w->raw, 1, false, both);
    raw_headers(w->raw, 3, false, RAW_HEAD);
    raw_message(w->raw, 3, false, "hi");
    raw_headers(w->raw, 3, true, lines);
    raw_feed(w->raw);
    static const char text[] = "Received reply headers larger than max (more than 1000 bytes)";
    CHECK_ENDED(head, FS_RESOURCE_EXHAUSTED, text);
    CHECK_ENDED(tail, FS_RESOURCE_EXHAUSTED, text);
    raw_hear(w->raw);
    CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, 1), NGHTTP2_CANCEL);
    CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, 3), -1);
    CHECK(fs_h2_client_accepts(w->client));
    job_free(head);
    job_free(tail);
    world_free(w);
}

static void test_1xx_is_skipped(void)
{
    world *w = world_raw(&usual);
    job *j = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    raw_headers(w->raw, 1, false, ":status: 100\n");
    raw_headers(w->raw, 1, false, ":status: 103\nlink: x\ngrpc-status: 7\n");
    raw_headers(w->raw, 1, false, RAW_HEAD);
    raw_message(w->raw, 1, false, "hi");
    raw_headers(w->raw, 1, true, RAW_OK);
    raw_feed(w->raw);
    CHECK_ENDED(j, FS_OK, "");
    job_free(j);
    world_free(w);
}

static void test_resets(void)
{
    static const struct {
        uint32_t code;
        int status;
        const char *text;
    } table[] = {
        {NGHTTP2_NO_ERROR, FS_INTERNAL, "The server reset the call: RST_STREAM, NO_ERROR"},
        {NGHTTP2_PROTOCOL_ERROR, FS_INTERNAL, "The server reset the call: RST_STREAM, PROTOCOL_ERROR"},
        {NGHTTP2_INTERNAL_ERROR, FS_INTERNAL, "The server reset the call: RST_STREAM, INTERNAL_ERROR"},
        {NGHTTP2_REFUSED_STREAM, FS_UNAVAILABLE, "The server reset the call: RST_STREAM, REFUSED_STREAM"},
        {NGHTTP2_CANCEL, FS_CANCELLED, "The server reset the call: RST_STREAM, CANCEL"},
        {NGHTTP2_ENHANCE_YOUR_CALM, FS_RESOURCE_EXHAUSTED,
         "The server reset the call: RST_STREAM, ENHANCE_YOUR_CALM"},
        {NGHTTP2_INADEQUATE_SECURITY, FS_PERMISSION_DENIED,
         "The server reset the call: RST_STREAM, INADEQUATE_SECURITY"},
        {NGHTTP2_HTTP_1_1_REQUIRED, FS_INTERNAL, "The server reset the call: RST_STREAM, HTTP_1_1_REQUIRED"},
        {0xbadbad, FS_INTERNAL, "The server reset the call: RST_STREAM, unknown"},
    };
    world *w = world_raw(&usual);
    int32_t id = 1;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (int stage = 0; stage < 4; stage++, id += 2) {
            job *j = start(w, "/t/Echo", 10);
            raw_hear(w->raw);
            raw_forget(w->raw);
            if (stage > 0)
                raw_headers(w->raw, id, false, RAW_HEAD);
            if (stage > 1)
                raw_message(w->raw, id, false, "hi");
            if (stage > 2)
                raw_headers(w->raw, id, true, RAW_OK);
            raw_reset(w->raw, id, table[i].code);
            raw_feed(w->raw);
            if (stage > 2)
                CHECK_ENDED(j, FS_OK, "");
            else
                CHECK_ENDED(j, table[i].status, table[i].text);
            CHECK_EQ(j->x.unprocessed, table[i].code == NGHTTP2_REFUSED_STREAM && stage == 0);
            raw_hear(w->raw);
            CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, id), -1);
            job_free(j);
        }
    }
    CHECK_EQ(w->raw->recv_rc, 0);
    world_free(w);
}

static void test_an_answer_before_all_is_sent(void)
{
    for (int how = 0; how < 4; how++) {
        world *w = world_raw(&usual);
        job *j = start(w, "/t/Echo", 1 << 20); /* the window holds 64 KiB of it */
        raw_hear(w->raw);
        raw_forget(w->raw);
        if (how == 0) {
            raw_headers(w->raw, 1, true, RAW_HEAD "grpc-status: 8\ngrpc-message: too large\n");
        } else if (how == 1) {
            raw_answer(w->raw, 1, "hi");
        } else if (how == 2) {
            raw_headers(w->raw, 1, false, RAW_HEAD);
            raw_message(w->raw, 1, true, "hi");
        } else {
            raw_headers(w->raw, 1, true, ":status: 413\n");
        }
        if (how % 2 == 1)
            raw_reset(w->raw, 1, NGHTTP2_NO_ERROR);
        raw_window(w->raw, 0, 1 << 20);
        raw_feed(w->raw);
        if (how == 0)
            CHECK_ENDED(j, FS_RESOURCE_EXHAUSTED, "too large");
        else if (how == 1)
            CHECK_ENDED(j, FS_OK, "");
        else if (how == 2)
            CHECK_ENDED(j, FS_UNKNOWN, "The reply ended without a grpc-status");
        else
            CHECK_ENDED(j, FS_UNKNOWN, "The server answered with HTTP status 413");
        CHECK(!j->x.unprocessed);
        job_free(j);
        raw_hear(w->raw);
        CHECK_EQ(raw_count(w->raw, NGHTTP2_DATA, 1), 0);
        CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, 1), how == 3 ? NGHTTP2_CANCEL : NGHTTP2_NO_ERROR);
        job *k = start(w, "/t/Echo", 10);
        raw_hear(w->raw);
        raw_answer(w->raw, 3, "hi");
        raw_feed(w->raw);
        CHECK_ENDED(k, FS_OK, "");
        job_free(k);
        world_free(w);
    }
}

/* Answers that break HTTP's rules cost the call, not the connection. */
static void test_malformed_answers(void)
{
    world *w = world_raw(&usual);
    int32_t id = 1;
    for (int how = 0; how < 5; how++, id += 2) {
        job *j = start(w, "/t/Echo", 10);
        raw_hear(w->raw);
        raw_forget(w->raw);
        switch (how) {
        case 0:
            raw_headers(w->raw, id, false, "content-type: application/grpc\n");
            break;
        case 1:
            raw_headers(w->raw, id, false, RAW_HEAD "Upper: case\n");
            break;
        case 2:
            raw_headers(w->raw, id, false, RAW_HEAD "content-length: 5\n");
            raw_message(w->raw, id, true, "hi");
            break;
        case 3:
            raw_headers(w->raw, id, false, RAW_HEAD);
            raw_headers(w->raw, id, true, ":status: 200\n");
            break;
        default:
            raw_headers(w->raw, id, true, ":status: 100\n");
            break;
        }
        raw_feed(w->raw);
        raw_hear(w->raw);
        CHECK_EQ(j->ended, 1);
        CHECK_EQ(j->x.code, FS_INTERNAL);
        CHECK(strstr(j->x.error.msg, "The server's answer broke the rules of HTTP/2: ") == j->x.error.msg);
        CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, id), NGHTTP2_PROTOCOL_ERROR);
        job_free(j);
    }
    CHECK(fs_h2_client_accepts(w->client));
    CHECK_EQ(fs_h2_client_why(w->client)->code, FS_OK);
    world_free(w);
}

/* ---- giving calls up ------------------------------------------------------------------------------- */

static void test_cancel_before_anything_is_sent(void)
{
    world *w = world_raw(&usual);
    job *a = start(w, "/t/Echo", 10), *b = start(w, "/t/Echo", 10), *c = start(w, "/t/Echo", 10);
    fs_h2_client_cancel(w->client, &b->x);
    fs_h2_client_cancel(w->client, &b->x);
    CHECK_EQ(b->ended, 0);
    job_free(b);
    CHECK_EQ(fs_h2_client_active(w->client), 2);
    raw_hear(w->raw);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_HEADERS, -1), 2);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_RST_STREAM, -1), 0);
    raw_answer(w->raw, 1, "hi");
    raw_answer(w->raw, 3, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(a, FS_OK, "");
    CHECK_ENDED(c, FS_OK, "");
    fs_h2_client_cancel(w->client, &a->x); /* over already */
    job_free(a);
    job_free(c);
    world_free(w);
}

/* Whatever of a call is where, its memory is the caller's at once. */
static void test_cancel_at_any_moment(void)
{
    for (int at = 0; at < 40; at++) {
        world *w = world_raw(&usual);
        raw_settings(w->raw, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20);
        raw_window(w->raw, 0, 1 << 20);
        raw_feed(w->raw);
        job *jobs[4];
        for (int i = 0; i < 4; i++)
            jobs[i] = start(w, "/t/Echo", 50000 + (size_t)at * 1000);
        /* Room for a part: some are not begun, some in the middle, one is stuck inside nghttp2. */
        w->raw->room = 65536 + (size_t)at * 777;
        for (int i = 0; i < at % 4; i++)
            raw_hear_once(w->raw);
        int victim = at / 4 % 4;
        fs_h2_client_cancel(w->client, &jobs[victim]->x);
        CHECK_EQ(jobs[victim]->ended, 0);
        job_free(jobs[victim]);
        raw_hear(w->raw);
        CHECK_EQ(fs_h2_client_active(w->client), 3);
        bool began = raw_count(w->raw, NGHTTP2_HEADERS, 1 + 2 * victim) > 0 && at % 4 > 0;
        int64_t code = raw_code(w->raw, NGHTTP2_RST_STREAM, 1 + 2 * victim);
        if (began)
            CHECK(code == NGHTTP2_CANCEL || code == NGHTTP2_INTERNAL_ERROR);
        for (int i = 0; i < 4; i++) {
            if (i == victim)
                continue;
            /* Stream numbers close up when the victim never had one. */
            int32_t id = at % 4 == 0 && i > victim ? 2 * i - 1 : 1 + 2 * i;
            size_t len;
            bool ended;
            uint8_t *body = raw_body(w->raw, id, &len, &ended);
            CHECK(ended);
            CHECK_EQ(len, jobs[i]->x.message_bytes + FS_GRPC_PREFIX_BYTES);
            CHECK_MEM(body + FS_GRPC_PREFIX_BYTES, jobs[i]->message, jobs[i]->x.message_bytes);
            free(body);
            raw_answer(w->raw, id, "hi");
        }
        raw_feed(w->raw);
        for (int i = 0; i < 4; i++) {
            if (i == victim)
                continue;
            CHECK_ENDED(jobs[i], FS_OK, "");
            job_free(jobs[i]);
        }
        CHECK_EQ(w->raw->recv_rc, 0);
        world_free(w);
    }
}

/* Sent to nghttp2, and no room for its HEADERS yet. */
static void test_cancel_with_headers_not_out(void)
{
    world *w = world_raw(&usual);
    raw_settings(w->raw, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 1000);
    raw_feed(w->raw);
    raw_hear(w->raw);
    raw_forget(w->raw);
    char value[2000];
    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = '\0';
    fs_header header = {fs_slice_of("authorization"), fs_slice_of(value)};
    job *jobs[100];
    for (int i = 0; i < 100; i++) {
        jobs[i] = job_new("/t/Echo", 10, 1);
        value[0] = (char)('a' + i % 26);
        value[1] = (char)('a' + i / 26);
        char *own = malloc(sizeof value + sizeof header);
        REQUIRE(own != NULL);
        memcpy(own + sizeof header, value, sizeof value);
        header.value = fs_slice_of(own + sizeof header);
        memcpy(own, &header, sizeof header);
        jobs[i]->x.headers = (const fs_header *)(const void *)own;
        jobs[i]->x.n_headers = 1;
        CHECK_OK(fs_h2_client_start(w->client, &jobs[i]->x));
    }
    raw_hear_once(w->raw);
    int out = raw_count(w->raw, NGHTTP2_HEADERS, -1);
    CHECK(out > 0 && out < 99);
    for (int i = 0; i < 100; i++) {
        fs_h2_client_cancel(w->client, &jobs[i]->x);
        free((void *)(uintptr_t)jobs[i]->x.headers);
        job_free(jobs[i]);
    }
    CHECK_EQ(fs_h2_client_active(w->client), 0);
    raw_hear(w->raw);
    CHECK(raw_count(w->raw, NGHTTP2_HEADERS, -1) <= out + 1); /* one was half out */
    CHECK_EQ(raw_count(w->raw, NGHTTP2_DATA, -1), 0);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_RST_STREAM, -1), raw_count(w->raw, NGHTTP2_HEADERS, -1));
    CHECK_EQ(fs_h2_client_room(w->client), 1000);
    world_free(w);
}

static void test_answers_to_calls_that_were_given_up(void)
{
    world *w = world_raw(&usual);
    job *a = start(w, "/t/Echo", 10), *b = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    raw_headers(w->raw, 1, false, RAW_HEAD);
    raw_data(w->raw, 1, false, "\0\0\0\0\4h", 6);
    raw_feed(w->raw);
    fs_h2_client_cancel(w->client, &a->x);
    fs_h2_client_cancel(w->client, &b->x);
    CHECK(a->x.reply == NULL);
    job_free(a);
    job_free(b);
    raw_data(w->raw, 1, false, "ell", 3);
    raw_headers(w->raw, 1, true, RAW_OK);
    raw_answer(w->raw, 3, "hi");
    raw_feed(w->raw);
    raw_hear(w->raw);
    raw_reset(w->raw, 3, NGHTTP2_CANCEL);
    raw_feed(w->raw);
    CHECK_EQ(w->ended, 0);
    CHECK_EQ(w->raw->recv_rc, 0);
    CHECK_EQ(fs_h2_client_room(w->client), UINT32_MAX);
    world_free(w);
}

static void test_the_server_hears_of_cancellation(void)
{
    world *w = world_new(&usual, &server_usual);
    job *j = start(w, "/t/Hold", 10);
    pump(w);
    CHECK_EQ(w->n_held, 1);
    fs_h2_client_cancel(w->client, &j->x);
    job_free(j);
    pump(w);
    CHECK_EQ(w->cancelled, 1);
    CHECK_EQ(w->ended, 0);
    world_free(w);
}

/* ---- from inside on_end ---------------------------------------------------------------------------- */

static void test_calls_started_and_cancelled_from_inside(void)
{
    world *w = world_new(&usual, &server_usual);
    job *again = start(w, "/t/Echo", 5000);
    job *hold = start(w, "/t/Hold", 10), *fail = start(w, "/t/Fail", 10), *later = start(w, "/t/Echo", 70000);
    again->again = 20;
    fail->again = 3;
    fail->cancel = hold;
    pump(w);
    CHECK_EQ(again->ended, 21);
    CHECK_EQ(fail->ended, 4);
    CHECK_EQ(hold->ended, 0);
    CHECK_EQ(w->cancelled, 1);
    check_echo(later);
    CHECK_EQ(again->x.reply_bytes, 5000);
    job_free(again);
    job_free(hold);
    job_free(fail);
    job_free(later);
    world_free(w);
}

static void test_neighbours_cancelled_from_inside(void)
{
    /* The next call is in the same batch of bytes. */
    world *w = world_raw(&usual);
    job *a = start(w, "/t/Echo", 10), *b = start(w, "/t/Echo", 10), *c = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    a->cancel = b;
    raw_answer(w->raw, 1, "a");
    raw_answer(w->raw, 3, "b");
    raw_answer(w->raw, 5, "c");
    raw_feed(w->raw);
    CHECK_ENDED(a, FS_OK, "");
    CHECK_EQ(b->ended, 0);
    CHECK_ENDED(c, FS_OK, "");
    job_free(a);
    job_free(b);
    job_free(c);

    /* All are ending: GOAWAY, and the end of the session. */
    for (int how = 0; how < 2; how++) {
        job *jobs[6];
        for (int i = 0; i < 6; i++)
            jobs[i] = start(w, "/t/Echo", 10);
        raw_hear(w->raw);
        for (int i = 0; i < 6; i += 2) {
            jobs[i]->cancel = jobs[i + 1];
            jobs[i]->again = 1;
        }
        int before = w->ended;
        if (how == 0) {
            for (int i = 0; i < 6; i++)
                raw_reset(w->raw, 7 + 2 * i, NGHTTP2_REFUSED_STREAM);
            raw_feed(w->raw);
            CHECK_EQ(w->ended - before, 3);
            CHECK_EQ(fs_h2_client_active(w->client), 3);
            for (int i = 0; i < 6; i += 2)
                fs_h2_client_cancel(w->client, &jobs[i]->x);
        } else {
            fs_h2_client_free(w->client, NULL);
            w->client = NULL;
            CHECK_EQ(w->ended - before, 3);
            for (int i = 0; i < 6; i += 2)
                CHECK_EQ(jobs[i]->again_rc, -FS_UNAVAILABLE);
        }
        for (int i = 0; i < 6; i++)
            job_free(jobs[i]);
    }
    world_free(w);
}

/* ---- how many at once ------------------------------------------------------------------------------ */

static void test_calls_wait_for_the_servers_limit(void)
{
    fs_h2_limits server_limits = server_usual;
    server_limits.max_concurrent_streams = 2;
    world *w = world_new(&usual, &server_limits);
    pump(w);
    CHECK_EQ(fs_h2_client_room(w->client), 2);
    job *jobs[7];
    for (int i = 0; i < 7; i++) {
        jobs[i] = start(w, i < 2 ? "/t/Hold" : "/t/Echo", 1000);
        CHECK_EQ(fs_h2_client_room(w->client), i < 2 ? 1 - i : 0);
    }
    pump(w);
    CHECK_EQ(w->served, 2);
    CHECK_EQ(fs_h2_client_active(w->client), 7);
    fs_h2_client_cancel(w->client, &jobs[4]->x);
    serve_echo(w, w->held[--w->n_held]);
    pump(w);
    CHECK_EQ(w->served, 6);
    CHECK_EQ(fs_h2_client_active(w->client), 1);
    for (int i = 1; i < 7; i++) {
        if (i != 4)
            check_echo(jobs[i]);
    }
    CHECK_EQ(fs_h2_client_room(w->client), 1);

    /* Those that still wait when the session ends were seen by nobody. */
    job *more[3];
    for (int i = 0; i < 3; i++)
        more[i] = start(w, "/t/Hold", 10);
    pump(w);
    fs_error why;
    fs_fail(&why, FS_DEADLINE_EXCEEDED, "enough");
    fs_h2_client_free(w->client, &why);
    w->client = NULL;
    CHECK_ENDED(jobs[0], FS_DEADLINE_EXCEEDED, "enough");
    CHECK(!jobs[0]->x.unprocessed);
    CHECK_ENDED(more[0], FS_DEADLINE_EXCEEDED, "enough");
    CHECK(!more[0]->x.unprocessed);
    for (int i = 1; i < 3; i++) {
        CHECK_ENDED(more[i], FS_DEADLINE_EXCEEDED, "enough");
        CHECK(more[i]->x.unprocessed);
    }
    for (int i = 0; i < 7; i++)
        job_free(jobs[i]);
    for (int i = 0; i < 3; i++)
        job_free(more[i]);
    world_free(w);
}

static void test_before_settings_and_with_none(void)
{
    world *w = world_base(&usual);
    w->raw = raw_new(w->client);
    CHECK(!fs_h2_client_ready(w->client));
    CHECK(fs_h2_client_accepts(w->client));
    CHECK_EQ(fs_h2_client_room(w->client), 100);
    job *a = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_HEADERS, 1), 1); /* at once, behind the preface */
    const raw_frame *settings = raw_find(w->raw, NGHTTP2_SETTINGS, 0);
    REQUIRE(settings != NULL);
    CHECK_EQ(settings->len, 18);
    CHECK_MEM(w->raw->heard + settings->at, "\0\2\0\0\0\0\0\4\0\x10\0\0\0\6\0\0\x40\0", 18);

    raw_settings(w->raw, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0);
    raw_feed(w->raw);
    CHECK(fs_h2_client_ready(w->client));
    CHECK_EQ(fs_h2_client_room(w->client), 0);
    job *b = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_HEADERS, 3), 0);
    raw_answer(w->raw, 1, "hi");
    raw_settings(w->raw, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 5);
    raw_feed(w->raw);
    CHECK_ENDED(a, FS_OK, "");
    raw_hear(w->raw);
    CHECK_EQ(raw_count(w->raw, NGHTTP2_HEADERS, 3), 1);
    CHECK_EQ(fs_h2_client_room(w->client), 4);
    raw_answer(w->raw, 3, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(b, FS_OK, "");
    job_free(a);
    job_free(b);
    world_free(w);
}

static void test_thousands_started_at_once(void)
{
    enum { MANY = 3000 };
    fs_h2_limits server_limits = server_usual;
    server_limits.max_concurrent_streams = 100000;
    world *w = world_new(&usual, &server_limits);
    pump(w);
    job *jobs[MANY];
    uint64_t before = fs_slab_read(w->slab).system_allocs;
    for (int i = 0; i < MANY; i++)
        jobs[i] = start(w, "/t/Echo", 50);
    CHECK_EQ(fs_slab_read(w->slab).system_allocs, before); /* a call that waits costs nothing */
    CHECK_EQ(fs_h2_client_room(w->client), 100000 - MANY);
    for (int i = 0; i < MANY; i += 3)
        fs_h2_client_cancel(w->client, &jobs[i]->x);
    pump(w);
    CHECK_EQ(w->served, MANY - MANY / 3);
    for (int i = 0; i < MANY; i++) {
        if (i % 3 == 0)
            CHECK_EQ(jobs[i]->ended, 0);
        else
            check_echo(jobs[i]);
        job_free(jobs[i]);
    }
    world_free(w);
}

static void test_stream_numbers_used_up(void)
{
    world *w = world_raw(&usual);
    nghttp2_session *session = ((fs_h2_session *)(void *)w->client)->session;
    CHECK_OK(nghttp2_session_set_next_stream_id(session, INT32_MAX - 2));
    job *a = start(w, "/t/Echo", 10), *b = start(w, "/t/Echo", 10);
    CHECK(!fs_h2_client_accepts(w->client));
    CHECK_EQ(fs_h2_client_room(w->client), 0);
    job *c = job_new("/t/Echo", 10, 1);
    CHECK_EQ(fs_h2_client_start(w->client, &c->x), -FS_UNAVAILABLE);
    raw_hear(w->raw);
    CHECK(!fs_h2_client_accepts(w->client));
    raw_answer(w->raw, INT32_MAX - 2, "hi");
    raw_feed(w->raw);
    raw_answer(w->raw, INT32_MAX, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(a, FS_OK, "");
    CHECK_ENDED(b, FS_OK, "");
    CHECK_EQ(w->raw->recv_rc, 0);
    CHECK(!fs_h2_client_accepts(w->client));
    job_free(a);
    job_free(b);
    job_free(c);
    world_free(w);
}

/* ---- how sessions end ------------------------------------------------------------------------------ */

static void test_goaway(void)
{
    world *w = world_raw(&usual);
    raw_settings(w->raw, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 3);
    raw_feed(w->raw);
    job *jobs[5];
    for (int i = 0; i < 5; i++)
        jobs[i] = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    jobs[4]->again = 1;
    raw_goaway(w->raw, 3, NGHTTP2_ENHANCE_YOUR_CALM, "too many \"pings\"");
    raw_feed(w->raw);
    CHECK_EQ(jobs[0]->ended + jobs[1]->ended, 0);
    static const char text[] = "The server takes no new calls on this connection: "
                               "GOAWAY, ENHANCE_YOUR_CALM, too many \\x22pings\\x22";
    for (int i = 2; i < 5; i++) {
        CHECK_ENDED(jobs[i], FS_UNAVAILABLE, text);
        CHECK(jobs[i]->x.unprocessed);
    }
    CHECK_EQ(jobs[4]->again_rc, -FS_UNAVAILABLE);
    CHECK(!fs_h2_client_accepts(w->client));
    CHECK_EQ(fs_h2_client_room(w->client), 0);
    CHECK(!fs_h2_client_done(w->client));
    CHECK_EQ(fs_h2_client_active(w->client), 2);
    raw_answer(w->raw, 3, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(jobs[1], FS_OK, "");
    CHECK_EQ(w->raw->recv_rc, 0);
    raw_answer(w->raw, 1, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(jobs[0], FS_OK, "");
    CHECK_EQ(w->raw->recv_rc, -FS_UNAVAILABLE);
    raw_hear(w->raw);
    CHECK(fs_h2_client_done(w->client));
    CHECK_EQ(fs_h2_client_why(w->client)->code, FS_OK);
    for (int i = 0; i < 5; i++)
        job_free(jobs[i]);
    world_free(w);
}

static void test_goaway_with_headers_not_out(void)
{
    world *w = world_raw(&usual);
    raw_settings(w->raw, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 1 << 20);
    raw_window(w->raw, 0, 1 << 20);
    raw_feed(w->raw);
    raw_hear(w->raw);
    job *large = start(w, "/t/Echo", 200000);
    raw_hear_once(w->raw); /* a DATA frame is stuck inside nghttp2 */
    job *next = start(w, "/t/Echo", 10);
    raw_hear_once(w->raw);
    raw_goaway(w->raw, 1, NGHTTP2_NO_ERROR, "");
    raw_feed(w->raw);
    raw_hear(w->raw);
    CHECK_ENDED(next, FS_UNAVAILABLE, "The server takes no new calls on this connection: GOAWAY, NO_ERROR");
    CHECK(next->x.unprocessed);
    raw_answer(w->raw, 1, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(large, FS_OK, "");
    job_free(large);
    job_free(next);
    world_free(w);
}

static void test_the_servers_drain(void)
{
    world *w = world_new(&usual, &server_usual);
    job *hold = start(w, "/t/Hold", 10);
    pump(w);
    fs_h2_shutdown_notice(w->server);
    pump(w);
    CHECK(!fs_h2_client_accepts(w->client));
    CHECK_EQ(hold->ended, 0);
    fs_h2_shutdown(w->server);
    pump(w);
    CHECK(!fs_h2_client_done(w->client));
    serve_echo(w, w->held[--w->n_held]);
    pump(w);
    check_echo(hold);
    CHECK(fs_h2_client_done(w->client));
    CHECK(fs_h2_done(w->server));
    job_free(hold);
    world_free(w);
}

static void test_a_peer_that_speaks_something_else(void)
{
    static const struct {
        const char *bytes;
        size_t len;
        const char *text;
    } table[] = {
        {BODY("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"),
         "The server does not speak HTTP/2: it answered \"HTTP/1.1 400 Bad Request\""},
        {BODY("H"), "The server does not speak HTTP/2: it answered \"H\""},
        {BODY("\x15\3\1\0\2\2\x46"),
         "The server does not speak HTTP/2: it answered \"\\x15\\x03\\x01\\x00\\x02\\x02F\", "
         "which is TLS: connect with TLS"},
        {BODY("SSH-2.0-OpenSSH_9.2\r\n"),
         "The server does not speak HTTP/2: it answered \"SSH-2.0-OpenSSH_9.2\""},
        {BODY("\0\0\0\0\0\0\0\0\0"),
         "The server does not speak HTTP/2: it answered \"\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\""},
        {BODY("\0\0\x8\6\0\0\0\0\0"
              "12345678"), /* a PING comes first */
         "The server does not speak HTTP/2: it answered "
         "\"\\x00\\x00\\x08\\x06\\x00\\x00\\x00\\x00\\x0012345678\""},
        {BODY("\0\0\0\4\1\0\0\0\0"), /* an ACK comes first */
         "The server does not speak HTTP/2: it answered \"\\x00\\x00\\x00\\x04\\x01\\x00\\x00\\x00\\x00\""},
        {BODY("\0\0\1\4\0\0\0\0\0x"), /* SETTINGS of an odd size */
         "The server does not speak HTTP/2: it answered \"\\x00\\x00\\x01\\x04\\x00\\x00\\x00\\x00\\x00x\""},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        for (int sent = 0; sent < 2; sent++) {
            world *w = world_base(&usual);
            w->raw = raw_new(w->client);
            job *j = start(w, "/t/Echo", 10);
            if (sent)
                raw_hear(w->raw);
            raw_bytes(w->raw, table[i].bytes, table[i].len);
            raw_feed(w->raw);
            CHECK_EQ(w->raw->recv_rc, -FS_UNAVAILABLE);
            CHECK(!fs_h2_client_accepts(w->client));
            CHECK_EQ(fs_h2_client_tick(w->client, 1), -FS_UNAVAILABLE);
            CHECK_EQ(j->ended, 0);
            CHECK_EQ(fs_h2_client_why(w->client)->code, FS_UNAVAILABLE);
            CHECK_STR(fs_h2_client_why(w->client)->msg, table[i].text);
            raw_hear(w->raw);
            CHECK(fs_h2_client_done(w->client));
            fs_error why;
            fs_fail(&why, FS_UNAVAILABLE, "less precise");
            fs_h2_client_free(w->client, &why);
            w->client = NULL;
            CHECK_ENDED(j, FS_UNAVAILABLE, table[i].text);
            CHECK_EQ(j->x.unprocessed, !sent);
            job_free(j);
            world_free(w);
        }
    }
}

/* Errors of the connection, not of a call. */
static void test_a_peer_that_breaks_the_rules(void)
{
    for (int how = 0; how < 10; how++) {
        for (int going = 0; going < 2; going++) {
            world *w = world_raw(&usual);
            job *j = start(w, "/t/Echo", 10);
            raw_hear(w->raw);
            if (going)
                raw_goaway(w->raw, 1, NGHTTP2_NO_ERROR, "");
            raw_feed(w->raw);
            static const uint8_t promise[] = {0, 0, 0, 2, 0x82, 0x86, 0x84, 0x41, 1, 'h'};
            switch (how) {
            case 0:
                raw_say(w->raw, NGHTTP2_DATA, 0, 7, "x", 1); /* an idle stream */
                break;
            case 1:
                raw_say(w->raw, NGHTTP2_HEADERS, NGHTTP2_FLAG_END_HEADERS, 1, "\xff\xff\xff\xff\x0f", 5);
                break;
            case 2:
                raw_say(w->raw, NGHTTP2_PING, 0, 0, "short", 5);
                break;
            case 3:
                raw_window(w->raw, 0, INT32_MAX);
                break;
            case 4:
                raw_bytes(w->raw, "\xff\xff\xff\0\0\0\0\0\1", 9); /* longer than any frame may be */
                break;
            case 5:
                raw_settings(w->raw, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, UINT32_MAX);
                break;
            case 6:
                raw_say(w->raw, NGHTTP2_HEADERS, 0, 1, "\x88", 1);
                raw_say(w->raw, NGHTTP2_PING, 0, 0, "12345678", 8); /* inside a header block */
                break;
            case 7:
                raw_headers(w->raw, 2, false, RAW_HEAD); /* a stream of the server's */
                break;
            case 8:
                raw_message(w->raw, 1, false, "hi"); /* before its HEADERS */
                break;
            default:
                raw_say(w->raw, NGHTTP2_SETTINGS, NGHTTP2_FLAG_ACK, 0, NULL, 0);
                raw_say(w->raw, NGHTTP2_PUSH_PROMISE, NGHTTP2_FLAG_END_HEADERS, 1, promise, sizeof promise);
                break;
            }
            raw_feed(w->raw);
            raw_hear(w->raw);
            CHECK(fs_h2_client_done(w->client));
            CHECK(!fs_h2_client_accepts(w->client));
            CHECK_EQ(fs_h2_client_why(w->client)->code, FS_UNAVAILABLE);
            CHECK_EQ(raw_count(w->raw, NGHTTP2_GOAWAY, 0), 1);
            CHECK(raw_code(w->raw, NGHTTP2_GOAWAY, 0) > 0);
            fs_h2_client_free(w->client, NULL);
            w->client = NULL;
            CHECK_EQ(j->ended, 1);
            CHECK_EQ(j->x.code, FS_UNAVAILABLE);
            CHECK(strstr(j->x.error.msg, "The server broke the rules of HTTP/2") == j->x.error.msg);
            CHECK(!j->x.unprocessed);
            job_free(j);
            world_free(w);
        }
    }
}

static void test_a_flood_that_wants_answers(void)
{
    world *w = world_raw(&usual);
    job *j = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    for (int i = 0; i < 5000; i++)
        raw_say(w->raw, NGHTTP2_PING, 0, 0, "12345678", 8);
    raw_feed(w->raw);
    CHECK_EQ(w->raw->recv_rc, -FS_UNAVAILABLE);
    CHECK(strstr(fs_h2_client_why(w->client)->msg, "The server broke the rules of HTTP/2") != NULL);
    fs_h2_client_free(w->client, NULL);
    w->client = NULL;
    CHECK_EQ(j->ended, 1);
    CHECK_EQ(j->x.code, FS_UNAVAILABLE);
    job_free(j);
    world_free(w);
}

static void test_pushes_are_refused(void)
{
    world *w = world_raw(&usual);
    job *j = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    raw_forget(w->raw);
    static const uint8_t promise[] = {0, 0, 0, 2, 0x82, 0x86, 0x84, 0x41, 1, 'h'};
    raw_say(w->raw, NGHTTP2_PUSH_PROMISE, NGHTTP2_FLAG_END_HEADERS, 1, promise, sizeof promise);
    raw_feed(w->raw);
    raw_hear(w->raw);
    CHECK_EQ(raw_code(w->raw, NGHTTP2_RST_STREAM, 2), NGHTTP2_CANCEL);
    raw_headers(w->raw, 2, false, ":status: 200\n");
    raw_data(w->raw, 2, true, "pushed", 6);
    raw_answer(w->raw, 1, "hi");
    raw_feed(w->raw);
    CHECK_ENDED(j, FS_OK, "");
    CHECK_EQ(fs_h2_client_active(w->client), 0);
    CHECK_EQ(fs_h2_client_room(w->client), UINT32_MAX);
    CHECK_EQ(w->raw->recv_rc, 0);
    job_free(j);
    world_free(w);
}

static void test_the_connection_is_lost(void)
{
    world *w = world_new(&usual, &server_usual);
    job *hold = start(w, "/t/Hold", 10), *part = start(w, "/t/Hold", 10 << 20), *unsent;
    pump(w);
    unsent = start(w, "/t/Echo", 10);
    fs_h2_client_free(w->client, NULL);
    w->client = NULL;
    CHECK_ENDED(hold, FS_UNAVAILABLE, "The connection was closed");
    CHECK(!hold->x.unprocessed && !hold->x.answered);
    CHECK_ENDED(part, FS_UNAVAILABLE, "The connection was closed");
    CHECK(!part->x.unprocessed);
    CHECK_ENDED(unsent, FS_UNAVAILABLE, "The connection was closed");
    CHECK(unsent->x.unprocessed);
    job_free(hold);
    job_free(part);
    job_free(unsent);
    world_free(w);
}

static void test_keepalive(void)
{
    fs_h2_client_limits limits = usual;
    limits.keepalive_us = 1000000;
    limits.keepalive_timeout_us = 500000;
    world *w = world_raw(&limits);
    raw *r = w->raw;
    /* Idle: never. */
    CHECK_EQ(fs_h2_client_tick(w->client, 50000000), INT64_MAX);
    r->now_us = 60000000;
    job *j = start(w, "/t/Echo", 10);
    raw_hear(r);
    raw_forget(r);
    /* The first call counts from when it was made, not from when bytes last came. */
    CHECK_EQ(fs_h2_client_tick(w->client, 60001000), 61000000);
    CHECK_EQ(fs_h2_client_tick(w->client, 61000000), 61500000);
    CHECK_EQ(fs_h2_client_tick(w->client, 61001000), 61500000);
    raw_hear(r);
    CHECK_EQ(raw_count(r, NGHTTP2_PING, 0), 1);
    r->now_us = 61400000;
    raw_say(r, NGHTTP2_PING, NGHTTP2_FLAG_ACK, 0, "\0\0\0\0\0\0\0\0", 8);
    raw_feed(r);
    CHECK_EQ(fs_h2_client_tick(w->client, 61400000), 62400000);
    CHECK_EQ(fs_h2_client_tick(w->client, 62400000), 62900000);
    raw_hear(r);
    CHECK_EQ(raw_count(r, NGHTTP2_PING, 0), 2);
    raw_hear(r);
    CHECK_EQ(fs_h2_client_tick(w->client, 62900000), -FS_UNAVAILABLE);
    CHECK_STR(fs_h2_client_why(w->client)->msg, "The server has not answered a PING for 500 ms");
    CHECK(!fs_h2_client_accepts(w->client));
    raw_hear(r);
    CHECK_EQ(raw_code(r, NGHTTP2_GOAWAY, 0), NGHTTP2_NO_ERROR);
    CHECK(fs_h2_client_done(w->client));
    fs_h2_client_free(w->client, NULL);
    w->client = NULL;
    CHECK_ENDED(j, FS_UNAVAILABLE, "The server has not answered a PING for 500 ms");
    job_free(j);
    world_free(w);
}

static void test_a_ping_that_nobody_needs_any_more(void)
{
    fs_h2_client_limits limits = usual;
    limits.keepalive_us = 1000;
    limits.keepalive_timeout_us = 500;
    world *w = world_raw(&limits);
    job *j = start(w, "/t/Echo", 10);
    raw_hear(w->raw);
    CHECK_EQ(fs_h2_client_tick(w->client, 1000), 1500);
    fs_h2_client_cancel(w->client, &j->x);
    CHECK_EQ(fs_h2_client_tick(w->client, 5000), INT64_MAX);
    CHECK_OK(fs_h2_client_start(w->client, &j->x));
    CHECK_EQ(fs_h2_client_tick(w->client, 6000), 7000);
    fs_h2_client_cancel(w->client, &j->x);
    job_free(j);
    world_free(w);
}

/* ---- all together ---------------------------------------------------------------------------------- */

/* Calls of all sizes come, are answered, are given up, and end; whatever happens, each ends once. */
static void test_any_order(void)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        fs_h2_client_limits limits = usual;
        fs_h2_limits server_limits = server_usual;
        if (seed % 2 == 0)
            limits.window_bytes = server_limits.window_bytes = 65535;
        if (seed % 3 == 0)
            server_limits.max_concurrent_streams = 5;
        world *w = world_new(&limits, &server_limits);
        w->seed = seed;
        enum { JOBS = 40 };
        job *jobs[JOBS] = {0};
        int started = 0, given_up = 0;
        for (int turn = 0; turn < 600; turn++) {
            int i = (int)(rnd(w) % JOBS);
            if (jobs[i] == NULL) {
                static const char *paths[] = {"/t/Echo", "/t/Echo", "/t/Hold", "/t/Fail", "/t/None"};
                size_t len = rnd(w) % 8 == 0 ? rnd(w) % 200000 : rnd(w) % 2000;
                jobs[i] = job_new(paths[rnd(w) % 5], len, 1 + rnd(w) % 6);
                CHECK_OK(fs_h2_client_start(w->client, &jobs[i]->x));
                started++;
            } else if (jobs[i]->ended > 0) {
                job_free(jobs[i]);
                jobs[i] = NULL;
            } else if (rnd(w) % 3 == 0) {
                fs_h2_client_cancel(w->client, &jobs[i]->x);
                job_free(jobs[i]);
                jobs[i] = NULL;
                given_up++;
            }
            w->room = 65536 + rnd(w) % 65536;
            if (rnd(w) % 2 == 0)
                pump_up(w);
            if (rnd(w) % 2 == 0)
                pump_down(w);
            while (w->n_held > 20 || (w->n_held > 0 && rnd(w) % 4 == 0))
                serve_echo(w, w->held[--w->n_held]);
        }
        CHECK_EQ(w->client_rc, 0);
        CHECK_EQ(w->server_rc, 0);
        for (int round = 0; round < 100; round++) {
            pump(w);
            while (w->n_held > 0)
                serve_echo(w, w->held[--w->n_held]);
        }
        pump(w);
        CHECK_EQ(fs_h2_client_active(w->client), 0);
        CHECK_EQ(w->ended + given_up, started);
        for (int i = 0; i < JOBS; i++) {
            if (jobs[i] == NULL)
                continue;
            CHECK_EQ(jobs[i]->ended, 1);
            if (jobs[i]->x.code == FS_OK)
                check_echo(jobs[i]);
            job_free(jobs[i]);
        }
        world_free(w);
    }
}

/* Allocations fail only while the client works, counted over all such times. */
typedef struct sweep {
    long left, before;
} sweep;

static void sweep_on(sweep *s)
{
    s->before = failmalloc_count();
    if (s->left > 0)
        failmalloc_after(s->left);
}

static void sweep_off(sweep *s)
{
    failmalloc_after(-1);
    s->left -= failmalloc_count() - s->before;
}

/* One whole life, in which the n-th allocation fails. False when there were fewer. */
static bool live_without_memory(long n)
{
    world *w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->slab = fs_slab_new(0); /* every block is malloc's own */
    REQUIRE(w->slab != NULL);
    w->limits = usual;
    w->limits.keepalive_us = 1000;
    w->limits.keepalive_timeout_us = 100000;
    enum { JOBS = 10, FAILS = 3, LARGE = 5, GIVEN_UP = 7 };
    fs_header headers[40];
    for (int i = 0; i < 40; i++)
        headers[i] = (fs_header){fs_slice_of("x-header"), fs_slice_of("value")};
    job *jobs[JOBS];
    bool started[JOBS] = {false}, given_up[JOBS] = {false};
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = job_new(i == FAILS ? "/t/Fail" : "/t/Echo", i == LARGE ? 200000 : 100, 3);
        jobs[i]->x.timeout_us = 1000;
        jobs[i]->x.headers = headers;
        jobs[i]->x.n_headers = i == 2 ? 40 : 1;
    }
    sweep s = {.left = n};
    sweep_on(&s);
    w->client =
        fs_h2_client_new(&w->limits, &handler, w, fs_slice_of("host:1"), fs_slice_of("http"), w->slab, 0);
    sweep_off(&s);
    CHECK(w->client != NULL || s.left <= 0);
    if (w->client != NULL) {
        w->budget.limit = 1 << 30;
        w->server_limits = server_usual;
        w->server_limits.max_concurrent_streams = 6;
        w->server = fs_h2_new(&w->server_limits, &server_handler, w, NULL, &w->budget, w->slab, 0);
        REQUIRE(w->server != NULL);
        static uint8_t up[1 << 16], down[1 << 18];
        for (int turn = 0; turn < 30; turn++) {
            w->now_us = turn;
            sweep_on(&s);
            for (int i = 0; i < JOBS; i++) {
                if (turn == i / 3)
                    started[i] = fs_h2_client_start(w->client, &jobs[i]->x) == 0;
            }
            size_t sent = fs_h2_client_send(w->client, up, sizeof up, turn);
            if (turn == 2 && started[GIVEN_UP] && jobs[GIVEN_UP]->ended == 0) {
                fs_h2_client_cancel(w->client, &jobs[GIVEN_UP]->x);
                given_up[GIVEN_UP] = true;
            }
            if (turn == 1)
                fs_h2_client_tick(w->client, 5000);
            sweep_off(&s);
            if (sent > 0)
                fs_h2_recv(w->server, up, sent, turn);
            size_t got = fs_h2_send(w->server, down, sizeof down, turn);
            sweep_on(&s);
            if (got > 0)
                fs_h2_client_recv(w->client, down, got, turn);
            sweep_off(&s);
        }
        bool failed = fs_h2_client_why(w->client)->code != FS_OK;
        fs_h2_client_free(w->client, NULL);
        for (int i = 0; i < JOBS; i++) {
            CHECK_EQ(jobs[i]->ended, started[i] && !given_up[i]);
            if (s.left > 0 && jobs[i]->ended == 1 && i != FAILS)
                check_echo(jobs[i]);
            if (jobs[i]->ended == 1 && jobs[i]->x.code != FS_OK && i != FAILS)
                CHECK(jobs[i]->x.code == FS_RESOURCE_EXHAUSTED);
        }
        CHECK(!failed || s.left <= 0);
        fs_h2_free(w->server);
        CHECK_EQ(fs_budget_used(&w->budget), 0);
    }
    for (int i = 0; i < JOBS; i++)
        job_free(jobs[i]);
    fs_slab_release(w->slab);
    free(w);
    return s.left <= 0;
}

int main(void)
{
    test_echo_of_many_sizes_and_pieces();
    test_byte_by_byte();
    test_small_windows_and_large_messages();
    test_a_small_call_leaves_in_one_send();
    test_errors_of_the_server();
    test_a_steady_state_asks_the_system_for_nothing();
    test_request_headers();
    test_many_headers();
    test_headers_too_long_to_send();
    test_answers();
    test_compressed_replies();
    test_a_long_message_of_the_servers_is_cut();
    test_header_lists_too_long();
    test_1xx_is_skipped();
    test_resets();
    test_an_answer_before_all_is_sent();
    test_malformed_answers();
    test_cancel_before_anything_is_sent();
    test_cancel_at_any_moment();
    test_cancel_with_headers_not_out();
    test_answers_to_calls_that_were_given_up();
    test_the_server_hears_of_cancellation();
    test_calls_started_and_cancelled_from_inside();
    test_neighbours_cancelled_from_inside();
    test_calls_wait_for_the_servers_limit();
    test_before_settings_and_with_none();
    test_thousands_started_at_once();
    test_stream_numbers_used_up();
    test_goaway();
    test_goaway_with_headers_not_out();
    test_the_servers_drain();
    test_a_peer_that_speaks_something_else();
    test_a_peer_that_breaks_the_rules();
    test_a_flood_that_wants_answers();
    test_pushes_are_refused();
    test_the_connection_is_lost();
    test_keepalive();
    test_a_ping_that_nobody_needs_any_more();
    test_any_order();
    long n = 1;
    while (live_without_memory(n))
        n++;
    CHECK(n > 50);
    return check_done();
}
