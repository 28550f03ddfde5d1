/* h2: the session against nghttp2's own client, in one process and on a clock that the test turns. */
#include "h2.h"

#include "failmalloc.h"
#include "h2_peer.h"

enum { HELD = 4096 };

/* What the handler of these tests saw, and how it behaves. */
typedef struct world {
    fs_slab *slab;
    fs_budget budget;
    fs_h2_limits limits;
    fs_h2 *h2;
    peer *peer;
    fs_rpc *held[HELD];
    int n_held;
    int calls, opened, messages, half_closed, cancelled;
    bool consume;
    fs_rpc last; /* a copy of the last unary call */
} world;

static char echo_method, hold_method, fail_method, stream_method, stream_hold_method;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    static const struct {
        const char *path;
        char *method;
        bool streaming;
    } table[] = {
        {"/t/Echo", &echo_method, false},
        {"/t/Hold", &hold_method, false},
        {"/t/Fail", &fail_method, false},
        {"/t/Stream", &stream_method, true},
        {"/t/StreamHold", &stream_hold_method, true},
        {"/long/path/that/does/not/fit/where/short/ones/are/kept/long/path/that/does/not/fit/where/short/"
         "ones/are/kept",
         &echo_method, false},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (len == strlen(table[i].path) && memcmp(path, table[i].path, len) == 0) {
            *streaming = table[i].streaming;
            return table[i].method;
        }
    }
    return NULL;
}

/* A whole frame around the message, or NULL without memory. */
static uint8_t *reply_to(world *w, const uint8_t *message, size_t len, bool compressed)
{
    uint8_t *frame = fs_slab_alloc(w->slab, len + FS_GRPC_PREFIX_BYTES);
    if (frame != NULL) {
        fs_grpc_prefix_write(frame, compressed, (uint32_t)len);
        memcpy(frame + FS_GRPC_PREFIX_BYTES, message, len);
    }
    return frame;
}

static void answer_echo(world *w, fs_rpc *rpc)
{
    uint8_t *frame = reply_to(w, rpc->message, rpc->message_len, rpc->encoding != FS_IDENTITY);
    if (frame == NULL)
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, "no memory", 9, NULL, 0);
    else
        fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, rpc->message_len + FS_GRPC_PREFIX_BYTES);
}

static void hold(world *w, fs_rpc *rpc)
{
    REQUIRE(w->n_held < HELD);
    w->held[w->n_held++] = rpc;
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    w->calls++;
    memcpy(&w->last, rpc, sizeof w->last);
    CHECK(rpc->message != NULL);
    if (rpc->method == &echo_method) {
        answer_echo(w, rpc);
    } else if (rpc->method == &fail_method) {
        static const char text[] = "bad input: 100% \xc3\xbc\n";
        fs_rpc_finish(rpc, FS_INVALID_ARGUMENT, text, sizeof text - 1, NULL, 0);
    } else {
        hold(w, rpc);
    }
}

static void on_open(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    w->opened++;
    if (rpc->method == &stream_hold_method)
        hold(w, rpc);
}

static void on_message(void *ctx, fs_rpc *rpc, uint8_t *message, size_t len, bool compressed)
{
    world *w = ctx;
    w->messages++;
    if (rpc->method == &stream_method) {
        uint8_t *frame = reply_to(w, message, len, compressed);
        if (frame != NULL && fs_rpc_send(rpc, frame, len + FS_GRPC_PREFIX_BYTES) != 0)
            fs_slab_free(frame);
    }
    fs_slab_free(message);
    if (w->consume)
        fs_rpc_consume(rpc, len);
}

static void on_half_close(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    w->half_closed++;
    if (rpc->method == &stream_method)
        fs_rpc_finish(rpc, FS_OK, NULL, 0, NULL, 0);
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    w->cancelled++;
    CHECK(atomic_load_explicit(&rpc->cancelled, memory_order_relaxed));
    if (rpc->method == &stream_method)
        fs_rpc_finish(rpc, FS_CANCELLED, NULL, 0, NULL, 0);
}

static const fs_h2_handler handler = {
    .lookup = on_lookup,
    .on_call = on_call,
    .on_open = on_open,
    .on_message = on_message,
    .on_half_close = on_half_close,
    .on_cancel = on_cancel,
};

static const fs_h2_limits usual = {
    .max_concurrent_streams = 1000,
    .max_header_bytes = 16384,
    .max_message_bytes = 64 << 20,
    .max_conn_bytes = 256 << 20,
    .window_bytes = 1 << 20,
    .reset_burst = 2000,
    .reset_per_s = 200,
    .chatter_burst = 1000,
    .chatter_per_s = 100,
    .request_timeout_us = 10000000,
    .stall_timeout_us = 20000000,
};

static world *world_new(const fs_h2_limits *limits)
{
    world *w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->slab = fs_slab_new(64 << 20);
    REQUIRE(w->slab != NULL);
    w->budget.limit = 1 << 30;
    w->limits = *limits;
    w->h2 = fs_h2_new(&w->limits, &handler, w, NULL, &w->budget, w->slab, 0);
    REQUIRE(w->h2 != NULL);
    w->peer = peer_new(w->h2, 1 << 20);
    return w;
}

static size_t used(const world *w)
{
    return atomic_load_explicit(&w->budget.used, memory_order_relaxed);
}

/* Ends everything; both budgets must be whole again. */
static void world_free(world *w)
{
    fs_h2_free(w->h2);
    for (int i = 0; i < w->n_held; i++) {
        CHECK(w->held[i]->h2 == NULL);
        fs_rpc_finish(w->held[i], FS_CANCELLED, NULL, 0, NULL, 0);
    }
    CHECK_EQ(used(w), 0);
    peer_free(w->peer);
    fs_slab_release(w->slab);
    free(w);
}

static fs_rpc *unhold(world *w)
{
    REQUIRE(w->n_held > 0);
    return w->held[--w->n_held];
}

#define CHECK_STATUS(c, status, message)                                                           \
    do {                                                                                           \
        CHECK((c)->closed);                                                                        \
        CHECK_STR((c)->grpc_status, status);                                                       \
        CHECK_STR((c)->grpc_message, message);                                                     \
    } while (0)

/* ---- calls that work ------------------------------------------------------------------------- */

static void test_unary_echo(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(100, 7, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    w->peer->now_us = 1234;
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK_STR(c->http_status, "200");
    CHECK_EQ(c->header_blocks, 2); /* headers, trailers */
    CHECK_EQ(c->body_len, len);
    CHECK_MEM(c->body, frame, len);
    CHECK_EQ(c->error_code, 0);
    CHECK_EQ(w->last.message_len, 100);
    CHECK_EQ(w->last.deadline_us, INT64_MAX);
    CHECK_EQ(w->last.arrived_us, 1234);
    CHECK_EQ(w->last.path.len, 7);
    CHECK_EQ(w->peer->resets, 0);
    CHECK_EQ(fs_h2_active_calls(w->h2), 0);
    CHECK_EQ(fs_h2_bytes_in_flight(w->h2), 0);
    CHECK_EQ(used(w), 0);
    CHECK(!fs_h2_done(w->h2));
    free(frame);
    world_free(w);
}

static void test_input_in_any_pieces(void)
{
    for (size_t step = 1; step < 40; step += 3) {
        world *w = world_new(&usual);
        w->peer->step = step;
        size_t len;
        uint8_t *frame = peer_frame(300, (uint8_t)step, &len);
        peer_call *a = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
        peer_call *b = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len,
                                                           .trailers = true});
        peer_pump(w->peer);
        CHECK_STATUS(a, "0", "");
        CHECK_STATUS(b, "0", "");
        CHECK_EQ(b->body_len, len);
        CHECK_MEM(b->body, frame, len);
        free(frame);
        world_free(w);
    }
}

static void test_empty_message(void)
{
    world *w = world_new(&usual);
    peer_call *c = peer_submit(
        w->peer, (peer_request){.path = "/t/Echo", .up = (const uint8_t *)"\0\0\0\0\0", .up_len = 5});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK_EQ(c->body_len, 5);
    CHECK_EQ(w->calls, 1);
    world_free(w);
}

static void test_long_path(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    peer_call *c = peer_submit(
        w->peer,
        (peer_request){
            .path = "/long/path/that/does/not/fit/where/short/ones/are/kept/long/path/that/does/not/fit/"
                    "where/short/ones/are/kept",
            .up = frame,
            .up_len = len});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    free(frame);
    world_free(w);
}

/* Several callers on one connection, each with a token of its own or with none. */
static void test_tokens_are_kept_with_their_calls(void)
{
    static const struct {
        const char *header, *token;
        int kind;
    } cases[] = {{NULL, NULL, FS_BEARER_NONE},       {"Bearer one", "one", FS_BEARER_TOKEN},
                 {"Bearer one", "one", FS_BEARER_TOKEN}, {"bearer two", "two", FS_BEARER_TOKEN},
                 {NULL, NULL, FS_BEARER_NONE},       {"Basic b25lOnR3bw==", NULL, FS_BEARER_OTHER},
                 {"Bearer two", "two", FS_BEARER_TOKEN}, {"Bearer one", "one", FS_BEARER_TOKEN}};
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    for (size_t i = 0; i < 3 * sizeof cases / sizeof *cases; i++) {
        size_t k = i % (sizeof cases / sizeof *cases);
        peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len,
                                                           .authorization = cases[k].header});
        peer_pump(w->peer);
        CHECK_STATUS(c, "0", "");
        CHECK_EQ(w->last.bearer.kind, cases[k].kind);
        if (cases[k].token != NULL) {
            uint8_t digest[FS_SHA256_BYTES];
            fs_sha256((fs_slice){(const uint8_t *)cases[k].token, strlen(cases[k].token)}, digest);
            CHECK_MEM(w->last.bearer.digest, digest, sizeof digest);
        }
    }
    free(frame);
    world_free(w);
}

static void test_big_message_both_ways(void)
{
    /* The reply leaves through a small client window and a small buffer, the request comes through the
     * server's. */
    world *w = world_new(&usual);
    w->peer->room = 65536;
    size_t len, small_len;
    uint8_t *frame = peer_frame(30 << 20, 3, &len), *small = peer_frame(10, 1, &small_len);
    peer_call *big = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    peer_call *little =
        peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = small, .up_len = small_len});
    peer_pump(w->peer);
    CHECK_STATUS(big, "0", "");
    CHECK_STATUS(little, "0", "");
    CHECK_EQ(big->body_len, len);
    CHECK_MEM(big->body, frame, len);
    CHECK_EQ(used(w), 0);
    free(frame);
    free(small);
    world_free(w);
}

static void test_small_reply_overtakes_a_large_one(void)
{
    world *w = world_new(&usual);
    size_t len, small_len;
    uint8_t *frame = peer_frame(8 << 20, 3, &len), *small = peer_frame(10, 1, &small_len);
    peer_call *big = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    answer_echo(w, unhold(w));
    peer_round(w->peer); /* the large one fills the window */
    CHECK(!big->closed);
    peer_call *little =
        peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = small, .up_len = small_len});
    int rounds = 0;
    while (!little->closed && rounds < 100) {
        peer_round(w->peer);
        rounds++;
    }
    CHECK(little->closed);
    CHECK(!big->closed);
    peer_pump(w->peer);
    CHECK_STATUS(big, "0", "");
    free(frame);
    free(small);
    world_free(w);
}

static void test_many_calls_at_once(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(2000, 3, &len);
    for (int i = 0; i < 500; i++)
        peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK_EQ(w->n_held, 500);
    CHECK_EQ(fs_h2_active_calls(w->h2), 500);
    CHECK(fs_h2_bytes_in_flight(w->h2) >= (size_t)500 * 2000);
    CHECK_EQ(fs_h2_bytes_in_flight(w->h2), used(w));
    while (w->n_held > 0)
        answer_echo(w, unhold(w));
    peer_pump(w->peer);
    for (int i = 0; i < 500; i++) {
        CHECK_STATUS(&w->peer->calls[i], "0", "");
        CHECK_MEM(w->peer->calls[i].body, frame, len);
    }
    CHECK_EQ(used(w), 0);
    free(frame);
    world_free(w);
}

static void test_output_in_any_pieces(void)
{
    /* What nghttp2 gives at once may not fit: the rest must follow, unharmed. The contract says 64 KiB of
     * room at least; HEADERS frames are cut anywhere, DATA frames wait for room. */
    for (size_t room = 16384 + 9; room < 16384 + 200; room += 7) {
        world *w = world_new(&usual);
        w->peer->room = room;
        size_t len;
        uint8_t *frame = peer_frame(40000, 3, &len);
        for (int i = 0; i < 20; i++)
            peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
        peer_pump(w->peer);
        for (int i = 0; i < 20; i++) {
            CHECK_STATUS(&w->peer->calls[i], "0", "");
            CHECK_MEM(w->peer->calls[i].body, frame, len);
        }
        free(frame);
        world_free(w);
    }
}

static void test_status_text(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(1, 1, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Fail", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK_STATUS(c, "3", "bad input: 100%25 %C3%BC%0A");
    CHECK_EQ(c->header_blocks, 1); /* trailers only */
    CHECK_EQ(c->body_len, 0);
    CHECK_STR(c->http_status, "200");
    free(frame);
    world_free(w);
}

static void test_finish_codes(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(1, 1, &len);
    for (int code = 1; code <= 16; code++) {
        char text[16];
        snprintf(text, sizeof text, "%d", code);
        peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
        peer_pump(w->peer);
        fs_rpc_finish(unhold(w), code, NULL, 0, NULL, 0);
        peer_pump(w->peer);
        CHECK_STATUS(c, text, "");
    }
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    fs_rpc_finish(unhold(w), FS_OK, NULL, 0, NULL, 0); /* a unary call needs a reply */
    peer_pump(w->peer);
    CHECK_STATUS(c, "13", "The method gave no reply");
    c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    fs_rpc_finish(unhold(w), 99, "what", 4, NULL, 0);
    peer_pump(w->peer);
    CHECK_STATUS(c, "2", "what");
    free(frame);
    world_free(w);
}

static void test_long_status_text_is_cut(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(1, 1, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    char *text = malloc(1 << 20);
    REQUIRE(text != NULL);
    memset(text, 'x', 1 << 20);
    fs_rpc_finish(unhold(w), FS_INTERNAL, text, 1 << 20, NULL, 0);
    free(text);
    peer_pump(w->peer);
    CHECK(c->closed);
    CHECK_STR(c->grpc_status, "13");
    CHECK_EQ(strlen(c->grpc_message), 2048);
    free(frame);
    world_free(w);
}

static void test_deadlines(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(1, 1, &len);
    w->peer->now_us = 5000000;
    peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .timeout = "250m"});
    peer_pump(w->peer);
    CHECK_EQ(w->last.deadline_us, 5250000);
    peer_submit(w->peer,
                (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .timeout = "99999999H"});
    peer_pump(w->peer);
    CHECK_EQ(w->last.deadline_us, INT64_C(5000000) + INT64_C(99999999) * 3600 * 1000000);
    CHECK_EQ(w->calls, 2);
    peer_call *zero =
        peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .timeout = "0S"});
    peer_call *past =
        peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .timeout = "-3m"});
    peer_call *bad = peer_submit(
        w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .timeout = "soon"});
    peer_pump(w->peer);
    CHECK_STATUS(zero, "4", "Deadline Exceeded");
    CHECK_STATUS(past, "4", "Deadline Exceeded");
    CHECK_STATUS(bad, "13", "Malformed grpc-timeout");
    CHECK_EQ(w->calls, 2);
    free(frame);
    world_free(w);
}

static void test_encodings(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    frame[0] = 1; /* h2 carries compressed messages and does not look into them */
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Echo",
                                                       .up = frame,
                                                       .up_len = len,
                                                       .encoding = "gzip",
                                                       .accept = "identity,deflate,gzip"});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK_EQ(w->last.encoding, FS_GZIP);
    CHECK_EQ(w->last.reply_encoding, FS_GZIP);
    CHECK_STR(c->grpc_encoding, "gzip");
    CHECK_MEM(c->body, frame, len);

    c = peer_submit(
        w->peer,
        (peer_request){
            .path = "/t/Echo", .up = frame, .up_len = len, .encoding = "deflate", .accept = "deflate"});
    peer_pump(w->peer);
    CHECK_EQ(w->last.encoding, FS_DEFLATE);
    CHECK_STR(c->grpc_encoding, "deflate");

    frame[0] = 0; /* this message is not compressed, though others may be */
    c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .encoding = "gzip",
                                            .accept = "identity"});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK_EQ(w->last.encoding, FS_IDENTITY);
    CHECK_EQ(w->last.reply_encoding, FS_IDENTITY);
    CHECK_STR(c->grpc_encoding, "");

    c = peer_submit(w->peer,
                    (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .encoding = "snappy"});
    peer_pump(w->peer);
    CHECK_STATUS(c, "12", "Unknown grpc-encoding \"snappy\"");
    CHECK_STR(c->grpc_accept, "identity,deflate,gzip");
    free(frame);
    world_free(w);
}

/* ---- requests that are wrong -------------------------------------------------------------------- */

typedef struct bad_case {
    peer_request request;
    const char *http_status, *grpc_status, *message;
} bad_case;

static void test_bad_requests(void)
{
    static const uint8_t two[] = "\0\0\0\0\1a\0\0\0\0\1b", cut[] = "\0\0\0\0\5ab", half_prefix[] = "\0\0\0",
                         flag[] = "\1\0\0\0\1a", bad_flag[] = "\2\0\0\0\1a", extra[] = "\0\0\0\0\1ab",
                         huge[] = "\0\xff\xff\xff\xffzz", over[] = "\0\4\0\0\1";
#define UP(bytes) .up = bytes, .up_len = sizeof bytes - 1
    const bad_case cases[] = {
        {{.path = "/t/None", UP(two)}, "200", "12", ""},
        {{.path = "/", UP(two)}, "200", "12", ""},
        {{.path = "/t/Echo", UP(two)}, "200", "13", "More than one message in a unary request"},
        {{.path = "/t/Echo", UP(extra)}, "200", "13", "More than one message in a unary request"},
        {{.path = "/t/Echo"}, "200", "13", "No message in a unary request"},
        {{.path = "/t/Echo", .trailers = true}, "200", "13", "No message in a unary request"},
        {{.path = "/t/Echo", UP(cut)}, "200", "13", "The request ends inside a gRPC frame"},
        {{.path = "/t/Echo", UP(half_prefix)}, "200", "13", "The request ends inside a gRPC frame"},
        {{.path = "/t/Stream", UP(cut)}, "200", "13", "The request ends inside a gRPC frame"},
        {{.path = "/t/Echo", UP(flag)}, "200", "13", "Compressed flag set without grpc-encoding"},
        {{.path = "/t/Echo", UP(bad_flag)}, "200", "13", "Invalid flags in a gRPC frame"},
        {{.path = "/t/Stream", UP(bad_flag)}, "200", "13", "Invalid flags in a gRPC frame"},
        {{.path = "/t/Echo", UP(huge)},
         "200",
         "8",
         "Received message larger than max (4294967295 vs. 67108864)"},
        {{.path = "/t/Echo", UP(over)},
         "200",
         "8",
         "Received message larger than max (67108865 vs. 67108864)"},
        {{.path = "/t/Echo", .method = "GET", UP(cut)}, "405", "13", "gRPC requests are POST"},
        {{.path = "/t/Echo", .content_type = "text/html", UP(cut)},
         "415",
         "3",
         "Invalid gRPC request content-type \"text/html\""},
        {{.path = "/t/Echo", .content_type = "", UP(cut)},
         "415",
         "3",
         "Invalid gRPC request content-type \"\""},
        {{.path = "/t/Echo", .content_type = "application/grpc-web", UP(cut)},
         "415",
         "3",
         "Invalid gRPC request content-type \"application/grpc-web\""},
    };
#undef UP
    size_t len;
    uint8_t *frame = peer_frame(50, 9, &len);
    for (int open = 0; open < 2; open++) {
        world *w = world_new(&usual);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            peer_request r = cases[i].request;
            /* What is wrong before the end is answered before the end. */
            bool at_end = strstr(cases[i].message, "ends inside") || strstr(cases[i].message, "No message");
            if (open && at_end)
                continue;
            r.open = open;
            peer_call *c = peer_submit(w->peer, r);
            peer_call *good =
                peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
            peer_pump(w->peer);
            CHECK_STATUS(c, cases[i].grpc_status, cases[i].message);
            CHECK_STR(c->http_status, cases[i].http_status);
            CHECK_EQ(c->error_code, NGHTTP2_NO_ERROR);
            CHECK_STATUS(good, "0", ""); /* its neighbour does not notice */
        }
        if (open)
            CHECK(w->peer->resets > 0 && w->peer->reset_code == NGHTTP2_NO_ERROR);
        CHECK_EQ(w->peer->recv_rc, 0);
        CHECK_EQ(used(w), 0);
        world_free(w);
    }
    free(frame);
}

static void test_early_answer_stops_the_client(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(60 << 20, 9, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/None", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK_STATUS(c, "12", "");
    CHECK(c->up_at < len); /* it was told to stop */
    CHECK_EQ(w->peer->reset_code, NGHTTP2_NO_ERROR);
    free(frame);
    world_free(w);
}

static void test_header_list_limit(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(50, 9, &len);
    char *big = malloc(60001);
    REQUIRE(big != NULL);
    memset(big, 'h', 60000);
    big[60000] = '\0';
    big[17000] = '\0';
    peer_call *c =
        peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .big = big});
    peer_pump(w->peer);
    CHECK(c->closed);
    CHECK_STR(c->grpc_status, "8");
    CHECK(strstr(c->grpc_message, "Received request headers larger than max (17") != NULL);
    CHECK(strstr(c->grpc_message, "vs. 16384)") != NULL);
    big[17000] = 'h';
    big[16000] = '\0'; /* fits */
    c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .big = big});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK_EQ(w->peer->recv_rc, 0);
    free(big);
    free(frame);
    world_free(w);
}

static void test_budgets(void)
{
    fs_h2_limits limits = usual;
    limits.max_conn_bytes = 1 << 20;
    world *w = world_new(&limits);
    size_t len;
    uint8_t *frame = peer_frame(600 << 10, 9, &len);
    peer_call *a = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_call *b = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK_EQ(w->n_held, 1); /* they arrive interleaved: which of the two is refused is the client's choice */
    peer_call *refused = a->closed ? a : b;
    CHECK_STR(refused->grpc_status, "8");
    CHECK(strstr(refused->grpc_message, "Too many bytes in flight on this connection (") != NULL);
    answer_echo(w, unhold(w));
    peer_pump(w->peer);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");

    w->budget.limit = 100 << 10;
    c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK(c->closed);
    CHECK_STR(c->grpc_status, "8");
    CHECK(strstr(c->grpc_message, "Too many bytes in flight in the server (") != NULL);
    CHECK_EQ(used(w), 0);
    w->budget.limit = 10; /* not even room for a call */
    c = peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    peer_pump(w->peer);
    CHECK_STR(c->grpc_status, "8");
    CHECK_EQ(used(w), 0);
    free(frame);
    world_free(w);
}

static void test_budget_counts_what_is_declared(void)
{
    /* 60 MB are promised and 10 bytes come: the budget counts the promise, memory only what came. */
    world *w = world_new(&usual);
    uint8_t head[15] = {0};
    fs_grpc_prefix_write(head, false, 60 << 20);
    peer_call *c =
        peer_submit(w->peer, (peer_request){.path = "/t/Echo", .up = head, .up_len = 15, .open = true});
    peer_pump(w->peer);
    CHECK(used(w) >= (size_t)60 << 20);
    nghttp2_submit_rst_stream(w->peer->client, 0, c->id, NGHTTP2_CANCEL);
    peer_pump(w->peer);
    CHECK_EQ(used(w), 0);
    CHECK_EQ(w->cancelled, 0); /* the handler never had it */
    world_free(w);
}

/* ---- calls that end otherwise ------------------------------------------------------------------- */

static void test_cancel(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(500, 9, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    nghttp2_submit_rst_stream(w->peer->client, 0, c->id, NGHTTP2_CANCEL);
    peer_pump(w->peer);
    CHECK_EQ(w->cancelled, 1);
    CHECK_EQ(fs_h2_active_calls(w->h2), 0);
    CHECK(used(w) > 500); /* the handler may still read it */
    fs_rpc *rpc = unhold(w);
    CHECK(rpc->h2 == w->h2);
    CHECK_EQ(rpc->message[0], 9);
    answer_echo(w, rpc); /* dropped */
    CHECK_EQ(used(w), 0);
    peer_pump(w->peer);
    CHECK_EQ(c->body_len, 0);
    free(frame);
    world_free(w);
}

static void test_cancel_while_the_reply_is_on_its_way(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(8 << 20, 9, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    answer_echo(w, unhold(w));
    peer_round(w->peer);
    peer_round(w->peer);
    CHECK(c->body_len > 0 && c->body_len < len);
    nghttp2_submit_rst_stream(w->peer->client, 0, c->id, NGHTTP2_CANCEL);
    peer_pump(w->peer);
    CHECK_EQ(w->cancelled, 0); /* it was finished */
    CHECK_EQ(used(w), 0);
    CHECK_EQ(fs_h2_bytes_in_flight(w->h2), 0);
    free(frame);
    world_free(w);
}

static void test_connection_lost(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(500, 9, &len);
    uint8_t *big = peer_frame(8 << 20, 9, &len);
    peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = big, .up_len = len});
    peer_pump(w->peer);
    answer_echo(w, unhold(w)); /* never sent */
    for (int i = 0; i < 10; i++)
        peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = 505});
    peer_submit(w->peer, (peer_request){.path = "/t/StreamHold", .up = frame, .up_len = 505, .open = true});
    peer_submit(w->peer, (peer_request){.path = "/t/Stream", .up = frame, .up_len = 505, .open = true});
    peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = 100, .open = true});
    peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = 3, .open = true});
    peer_pump(w->peer);
    CHECK_EQ(w->n_held, 11);
    peer_call *c = &w->peer->calls[1];
    nghttp2_submit_rst_stream(w->peer->client, 0, c->id, NGHTTP2_CANCEL);
    peer_pump(w->peer);
    CHECK_EQ(w->cancelled, 1);
    fs_h2_free(w->h2);
    w->h2 = NULL;
    CHECK_EQ(w->cancelled, 12); /* each one once */
    CHECK(used(w) >= (size_t)10 * 500); /* theirs still, until the handler lets go: world_free */
    free(frame);
    free(big);
    world_free(w);
}

static void test_request_timeout(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(500, 9, &len);
    p->now_us = 1000000;
    peer_call *slow =
        peer_submit(p, (peer_request){.path = "/t/Echo", .up = frame, .up_len = 100, .open = true});
    peer_call *held = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_call *stream = peer_submit(p, (peer_request){.path = "/t/StreamHold", .open = true});
    peer_pump(p);
    CHECK_EQ(fs_h2_tick(w->h2, 1000000), 11000000);
    p->now_us = 5000000;
    peer_call *later =
        peer_submit(p, (peer_request){.path = "/t/Echo", .up = frame, .up_len = 100, .open = true});
    peer_pump(p);
    CHECK_EQ(fs_h2_tick(w->h2, 10999999), 11000000);
    peer_pump(p);
    CHECK(!slow->closed);
    CHECK_EQ(fs_h2_tick(w->h2, 11000000), 15000000); /* the next one's turn */
    peer_pump(p);
    CHECK_STATUS(slow, "4", "The request did not arrive in time");
    CHECK_EQ(p->reset_code, NGHTTP2_NO_ERROR);
    CHECK(!later->closed && !held->closed && !stream->closed);
    CHECK_EQ(fs_h2_tick(w->h2, 15000000), INT64_MAX);
    peer_pump(p);
    CHECK_STATUS(later, "4", "The request did not arrive in time");
    CHECK_EQ(w->cancelled, 0);
    free(frame);
    world_free(w);
}

static void test_stalled_reader(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(8 << 20, 9, &len);
    p->now_us = 1000000;
    peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(p);
    /* A long run of the model is no stall. */
    CHECK_EQ(fs_h2_tick(w->h2, 500000000), INT64_MAX);
    p->now_us = 500000000;
    answer_echo(w, unhold(w));
    CHECK_EQ(fs_h2_tick(w->h2, 500000000), 520000000);
    p->deaf = true; /* no WINDOW_UPDATE comes back */
    peer_pump(p);
    CHECK_EQ(fs_h2_tick(w->h2, 519999999), 520000000);
    CHECK(fs_h2_tick(w->h2, 520000000) < 0);
    p->deaf = false;
    CHECK(fs_h2_recv(w->h2, NULL, 0, 520000001) < 0);
    /* The client missed a part, so its session cannot read on; the GOAWAY is the last thing sent. */
    uint8_t out[65536];
    size_t n = fs_h2_send(w->h2, out, sizeof out, 520000001);
    REQUIRE(n >= 17);
    CHECK_EQ(out[n - 17 + 3], NGHTTP2_GOAWAY);
    CHECK_EQ(out[n - 1], NGHTTP2_ENHANCE_YOUR_CALM);
    CHECK(fs_h2_done(w->h2));
    free(frame);
    world_free(w);
}

static void test_slow_reader_that_moves_is_kept(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(8 << 20, 9, &len);
    peer_call *c = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(p);
    answer_echo(w, unhold(w));
    int rounds = 0;
    while (!c->closed && rounds++ < 1000) {
        peer_round(p);
        p->now_us += 19000000;
        CHECK(fs_h2_tick(w->h2, p->now_us) > 0);
    }
    CHECK_STATUS(c, "0", "");
    free(frame);
    world_free(w);
}

static void test_keepalive(void)
{
    fs_h2_limits limits = usual;
    limits.keepalive_us = 30000000;
    limits.keepalive_timeout_us = 5000000;
    world *w = world_new(&limits);
    peer *p = w->peer;
    peer_pump(p);
    CHECK_EQ(fs_h2_tick(w->h2, 0), 30000000);
    CHECK_EQ(fs_h2_tick(w->h2, 30000000), 35000000);
    p->now_us = 30000001;
    peer_pump(p);
    CHECK_EQ(p->pings, 1);
    CHECK_EQ(fs_h2_tick(w->h2, 30000002), 60000001); /* answered */
    CHECK_EQ(fs_h2_tick(w->h2, 60000001), 65000001);
    p->deaf = true;
    peer_pump(p);
    CHECK_EQ(fs_h2_tick(w->h2, 65000000), 65000001);
    CHECK(fs_h2_tick(w->h2, 65000001) < 0);
    world_free(w);
}

/* ---- drain --------------------------------------------------------------------------------------- */

static void test_two_step_drain(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(500, 9, &len);
    peer_call *a = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(p);
    /* A call is on its way when the notice goes out. */
    peer_call *b = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    fs_h2_shutdown_notice(w->h2);
    peer_pump(p);
    CHECK_EQ(p->goaways, 1);
    CHECK_EQ(p->last_stream_id, INT32_MAX);
    CHECK_EQ(w->n_held, 2);
    fs_h2_shutdown(w->h2);
    fs_h2_shutdown(w->h2);
    peer_pump(p);
    CHECK_EQ(p->goaways, 2);
    CHECK_EQ(p->last_stream_id, b->id);
    CHECK_EQ(p->goaway_code, NGHTTP2_NO_ERROR);
    CHECK(!fs_h2_done(w->h2));
    answer_echo(w, unhold(w));
    answer_echo(w, unhold(w));
    peer_pump(p);
    CHECK_STATUS(a, "0", "");
    CHECK_STATUS(b, "0", "");
    CHECK(fs_h2_done(w->h2));
    CHECK(fs_h2_recv(w->h2, NULL, 0, 1) < 0);
    free(frame);
    world_free(w);
}

static void test_drain_of_an_idle_connection(void)
{
    world *w = world_new(&usual);
    peer_pump(w->peer);
    fs_h2_shutdown(w->h2);
    peer_pump(w->peer);
    CHECK_EQ(w->peer->goaways, 1);
    CHECK(fs_h2_done(w->h2));
    world_free(w);
}

static void test_client_goaway(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(500, 9, &len);
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(w->peer);
    nghttp2_submit_goaway(w->peer->client, 0, 0, NGHTTP2_NO_ERROR, NULL, 0);
    peer_pump(w->peer);
    CHECK(!fs_h2_done(w->h2));
    answer_echo(w, unhold(w));
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK(fs_h2_done(w->h2));
    free(frame);
    world_free(w);
}

/* ---- streaming ------------------------------------------------------------------------------------- */

static void test_streaming_echo(void)
{
    world *w = world_new(&usual);
    w->consume = true;
    uint8_t *up = NULL;
    size_t total = 0;
    for (int i = 0; i < 50; i++) {
        size_t len;
        uint8_t *frame = peer_frame((size_t)i * 700, (uint8_t)i, &len);
        up = realloc(up, total + len);
        REQUIRE(up != NULL);
        memcpy(up + total, frame, len);
        total += len;
        free(frame);
    }
    for (size_t step = 0; step < 3000; step += 1499) {
        w->peer->step = step;
        peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Stream", .up = up, .up_len = total});
        peer_pump(w->peer);
        CHECK_STATUS(c, "0", "");
        CHECK_EQ(c->body_len, total);
        CHECK_MEM(c->body, up, total);
        CHECK_EQ(used(w), 0);
    }
    CHECK_EQ(w->messages, 50 * 3);
    CHECK_EQ(w->half_closed, 3);
    /* None at all: the status comes alone. */
    peer_call *c = peer_submit(w->peer, (peer_request){.path = "/t/Stream"});
    peer_pump(w->peer);
    CHECK_STATUS(c, "0", "");
    CHECK_EQ(c->header_blocks, 1);
    free(up);
    world_free(w);
}

static void test_streaming_at_leisure(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    peer_call *c = peer_submit(p, (peer_request){.path = "/t/StreamHold", .open = true, .accept = "gzip"});
    peer_pump(p);
    CHECK_EQ(w->opened, 1);
    fs_rpc *rpc = unhold(w);
    for (int i = 0; i < 3; i++) {
        uint8_t *frame = reply_to(w, (const uint8_t *)"hello", 5, false);
        CHECK_OK(fs_rpc_send(rpc, frame, 10));
        peer_pump(p);
        CHECK_EQ(c->body_len, (i + 1) * 10);
    }
    CHECK_STR(c->grpc_encoding, "gzip"); /* any of its messages may be compressed */
    CHECK(!c->closed);
    uint8_t *frame = reply_to(w, (const uint8_t *)"again", 5, false);
    CHECK_OK(fs_rpc_send(rpc, frame, 10));
    fs_rpc_finish(rpc, FS_ABORTED, "enough", 6, NULL, 0);
    peer_pump(p);
    CHECK_STATUS(c, "10", "enough");
    CHECK_EQ(c->body_len, 40);
    CHECK_EQ(p->reset_code, NGHTTP2_NO_ERROR); /* the client was still open */

    /* Finished when nothing is queued and the stream is asleep. */
    c = peer_submit(p, (peer_request){.path = "/t/StreamHold", .open = true});
    peer_pump(p);
    rpc = unhold(w);
    CHECK_OK(fs_rpc_send(rpc, reply_to(w, (const uint8_t *)"hello", 5, false), 10));
    peer_pump(p);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, NULL, 0);
    peer_pump(p);
    CHECK_STATUS(c, "0", "");

    /* Finished with a last reply. */
    c = peer_submit(p, (peer_request){.path = "/t/StreamHold", .open = true});
    peer_pump(p);
    fs_rpc_finish(unhold(w), FS_OK, NULL, 0, reply_to(w, (const uint8_t *)"hello", 5, false), 10);
    peer_pump(p);
    CHECK_STATUS(c, "0", "");
    CHECK_EQ(c->body_len, 10);

    /* Gone: send says so. */
    c = peer_submit(p, (peer_request){.path = "/t/StreamHold", .open = true});
    peer_pump(p);
    rpc = unhold(w);
    nghttp2_submit_rst_stream(p->client, 0, c->id, NGHTTP2_CANCEL);
    peer_pump(p);
    frame = reply_to(w, (const uint8_t *)"hello", 5, false);
    CHECK_EQ(fs_rpc_send(rpc, frame, 10), -FS_CANCELLED);
    fs_slab_free(frame);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, NULL, 0);
    CHECK_EQ(used(w), 0);
    world_free(w);
}

static void test_streaming_is_bounded(void)
{
    /* A handler that never says that it is done with messages holds the client to the connection's budget. */
    for (int consume = 0; consume < 2; consume++) {
        fs_h2_limits limits = usual;
        limits.max_conn_bytes = 1 << 20;
        world *w = world_new(&limits);
        w->consume = consume;
        size_t len;
        uint8_t *frame = peer_frame(100 << 10, 1, &len);
        uint8_t *up = malloc(len * 20);
        REQUIRE(up != NULL);
        for (int i = 0; i < 20; i++)
            memcpy(up + len * (size_t)i, frame, len);
        peer_call *c =
            peer_submit(w->peer, (peer_request){.path = "/t/StreamHold", .up = up, .up_len = len * 20});
        peer_pump(w->peer);
        if (consume) {
            CHECK_EQ(w->messages, 20);
            CHECK_EQ(w->half_closed, 1);
            fs_rpc_finish(unhold(w), FS_OK, NULL, 0, NULL, 0);
            peer_pump(w->peer);
            CHECK_STATUS(c, "0", "");
        } else {
            CHECK_EQ(w->messages, 10);
            CHECK_STR(c->grpc_status, "8");
            CHECK_EQ(w->cancelled, 1); /* answered over the handler's head */
            fs_rpc_finish(unhold(w), FS_OK, NULL, 0, NULL, 0);
        }
        CHECK_EQ(used(w), 0);
        free(frame);
        free(up);
        world_free(w);
    }
}

/* ---- abuse ------------------------------------------------------------------------------------------- */

static void test_rapid_reset(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    int cut_at = -1;
    for (int i = 0; i < 3000 && cut_at < 0; i++) {
        peer_call *c = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
        peer_round(p);
        nghttp2_submit_rst_stream(p->client, 0, c->id, NGHTTP2_CANCEL);
        peer_round(p);
        while (w->n_held > 0)
            fs_rpc_finish(unhold(w), FS_CANCELLED, NULL, 0, NULL, 0);
        if (p->recv_rc != 0)
            cut_at = i;
    }
    CHECK_EQ(cut_at, 2000); /* reset_burst */
    peer_pump(p);
    CHECK_EQ(p->goaway_code, NGHTTP2_ENHANCE_YOUR_CALM);
    CHECK(fs_h2_done(w->h2));
    free(frame);
    world_free(w);
}

static void test_honest_cancellations(void)
{
    /* 2,000 calls cancelled at once, and again when time or finished calls have earned it back. */
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    for (int turn = 0; turn < 4; turn++) {
        for (int i = 0; i < 2000; i++) {
            peer_call *c = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
            if (i % 500 == 499) {
                peer_pump(p);
                for (int j = 0; j < 500; j++)
                    nghttp2_submit_rst_stream(p->client, 0, c->id - 2 * j, NGHTTP2_CANCEL);
                peer_pump(p);
            }
        }
        while (w->n_held > 0)
            fs_rpc_finish(unhold(w), FS_CANCELLED, NULL, 0, NULL, 0);
        peer_forget(p);
        if (turn % 2 == 0) {
            p->now_us += 10000000; /* 2,000 / 200 per second */
        } else {
            for (int i = 0; i < 2000; i++) {
                peer_submit(p, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
                if (i % 100 == 99)
                    peer_pump(p);
            }
            peer_forget(p);
        }
    }
    CHECK_EQ(p->recv_rc, 0);
    CHECK_EQ(w->cancelled, 8000);
    free(frame);
    world_free(w);
}

static void test_resets_that_we_are_made_to_send(void)
{
    /* The peer breaks the rules of each stream just so that we reset it, which must cost it the same. */
    world *w = world_new(&usual);
    peer *p = w->peer;
    p->deaf = true;
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    int sent = 0;
    for (; sent < 3000 && p->recv_rc == 0; sent++) {
        peer_call *c = peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
        peer_round(p);
        /* WINDOW_UPDATE past 2^31 - 1 on the stream. */
        uint8_t update[13] = {0,    0,    4,    8,   0, 0, 0, (uint8_t)(c->id >> 8), (uint8_t)c->id,
                              0x7f, 0xff, 0xff, 0xff};
        peer_feed(p, update, sizeof update);
        peer_round(p);
        nghttp2_session_set_stream_user_data(p->client, c->id, NULL);
        nghttp2_submit_rst_stream(p->client, 0, c->id, NGHTTP2_CANCEL);
        while (w->n_held > 0)
            fs_rpc_finish(unhold(w), FS_CANCELLED, NULL, 0, NULL, 0);
    }
    CHECK(sent > 500 && sent < 2100);
    CHECK(p->recv_rc < 0);
    free(frame);
    world_free(w);
}

/* Sends the preface and SETTINGS, then `frame` again and again. How many the server took. */
static int flood(const uint8_t *frame, size_t len, int most)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    peer_pump(p);
    p->deaf = true;
    int n = 0;
    while (n < most && p->recv_rc == 0) {
        peer_feed(p, frame, len);
        n++;
        if (n % 100 == 0)
            peer_round(p);
    }
    if (p->recv_rc != 0) {
        peer_pump(p);
        CHECK(fs_h2_done(w->h2));
    }
    CHECK_EQ(used(w), 0);
    world_free(w);
    return n;
}

static void test_floods(void)
{
    static const uint8_t ping[] = {0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8},
                         settings[] = {0, 0, 0, 4, 0, 0, 0, 0, 0},
                         window[] = {0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0},
                         priority[] = {0, 0, 5, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 16},
                         unknown[] = {0, 0, 1, 0x42, 0, 0, 0, 0, 5, 0},
                         pong[] = {0, 0, 8, 6, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8};
    CHECK_EQ(flood(ping, sizeof ping, 5000), 1000); /* the client's own SETTINGS took the first token */
    CHECK_EQ(flood(settings, sizeof settings, 5000), 1000);
    CHECK_EQ(flood(window, sizeof window, 5000), 1000);
    CHECK_EQ(flood(priority, sizeof priority, 5000), 1000);
    CHECK_EQ(flood(unknown, sizeof unknown, 5000), 5000); /* neither does what HTTP/2 does not know */
    CHECK_EQ(flood(pong, sizeof pong, 5000), 5000);       /* costs nothing */
}

static void test_empty_data_flood(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    peer_call *c = peer_submit(p, (peer_request){.path = "/t/Echo", .open = true});
    peer_pump(p);
    const uint8_t empty[] = {0, 0, 0, 0, 0, 0, 0, 0, (uint8_t)c->id},
                  padded[] = {0, 0, 3, 0, 8, 0, 0, 0, (uint8_t)c->id, 2, 0, 0};
    int n = 0;
    for (; n < 5000 && p->recv_rc == 0; n++)
        peer_feed(p, n % 2 == 0 ? empty : padded, n % 2 == 0 ? sizeof empty : sizeof padded);
    CHECK_EQ(n, 1000);
    world_free(w);
}

static void test_endless_continuation(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    peer_pump(p);
    p->deaf = true;
    /* HEADERS without END_HEADERS: one literal header, then CONTINUATION for ever. */
    static const uint8_t headers[] = {0, 0, 4, 1, 0, 0, 0, 0, 1, 0x00, 1, 'x', 0};
    uint8_t more[9 + 1024] = {0, 4, 0, 9, 0, 0, 0, 0, 1};
    for (size_t i = 9; i < sizeof more; i += 4)
        memcpy(more + i, "\x00\x01x\x00", 4);
    peer_feed(p, headers, sizeof headers);
    int n = 0;
    for (; n < 1000 && p->recv_rc == 0; n++) {
        peer_feed(p, more, sizeof more);
        peer_round(p);
    }
    CHECK(n < 30);
    CHECK_EQ(w->calls, 0);
    world_free(w);
}

static void test_header_bomb(void)
{
    /* One large header in the HPACK table, named 15,000 times by one byte each. */
    world *w = world_new(&usual);
    peer *p = w->peer;
    peer_pump(p);
    p->deaf = true;
    uint8_t frame[9 + 16384];
    size_t n = 9;
    memcpy(frame + n, "\x83\x86\x84\x41\x01h", 6); /* POST, http, /, :authority h */
    n += 6;
    memcpy(frame + n, "\x40\x01x\x7f\x81\x1f", 6); /* x: 4,000 bytes, indexed */
    n += 6;
    n--; /* the length takes three bytes: 127 + 0x01 + (0x1f << 7) */
    frame[n - 1] = 0x81;
    frame[n++] = 0x1e;
    size_t value = 127 + 0x01 + (0x1e << 7);
    memset(frame + n, 'v', value);
    n += value;
    memset(frame + n, 0xbe, sizeof frame - n); /* index 62 */
    uint8_t head[9] = {0x00, 0x40, 0x00, 1, 4, 0, 0, 0, 1};
    memcpy(frame, head, 9);
    peer_feed(p, frame, sizeof frame);
    CHECK_EQ(w->calls, 0);
    CHECK(used(w) <= 2048);
    peer_pump(p);
    CHECK_EQ(fs_h2_active_calls(w->h2), 0); /* reset, or answered */
    world_free(w);
}

static void test_not_http2(void)
{
    static const char *const inputs[] = {
        "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    };
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        world *w = world_new(&usual);
        uint8_t out[65536];
        fs_h2_recv(w->h2, (const uint8_t *)inputs[i], strlen(inputs[i]), 1);
        size_t n, total = 0;
        while ((n = fs_h2_send(w->h2, out, sizeof out, 1)) > 0)
            total += n;
        CHECK(total > 0); /* SETTINGS and a GOAWAY */
        CHECK(fs_h2_done(w->h2));
        CHECK(fs_h2_recv(w->h2, (const uint8_t *)"x", 1, 2) < 0);
        CHECK_EQ(fs_h2_send(w->h2, out, sizeof out, 2), 0);
        world_free(w);
    }
}

static void test_too_many_streams(void)
{
    fs_h2_limits limits = usual;
    limits.max_concurrent_streams = 10;
    world *w = world_new(&limits);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(10, 1, &len);
    for (int i = 0; i < 50; i++) /* before it knows the limit */
        peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
    peer_pump(p);
    CHECK(fs_h2_active_calls(w->h2) <= 10);
    int refused = 0;
    for (int turn = 0; turn < 5; turn++) {
        while (w->n_held > 0)
            answer_echo(w, unhold(w));
        peer_pump(p);
    }
    for (int i = 0; i < 50; i++) {
        CHECK(p->calls[i].closed);
        refused += p->calls[i].error_code == NGHTTP2_REFUSED_STREAM;
    }
    CHECK(refused > 0);
    CHECK_EQ(p->recv_rc, 0);
    free(frame);
    world_free(w);
}

/* ---- memory ------------------------------------------------------------------------------------ */

static void test_steady_state_does_not_allocate(void)
{
    world *w = world_new(&usual);
    peer *p = w->peer;
    size_t len;
    uint8_t *frame = peer_frame(600, 1, &len);
    uint64_t before = 0;
    for (int i = 0; i < 12000; i++) {
        peer_submit(p, (peer_request){.path = i % 16 == 0 ? "/t/Fail" : "/t/Echo", .up = frame, .up_len = len,
                                      .timeout = "1S"});
        if (i % 16 == 15) {
            peer_pump(p);
            peer_forget(p);
        }
        if (i == 1999)
            before = fs_slab_read(w->slab).system_allocs;
    }
    CHECK_EQ(w->calls, 12000);
    CHECK_EQ(fs_slab_read(w->slab).system_allocs, before);
    CHECK_EQ(used(w), 0);
    free(frame);
    world_free(w);
}

/* A little of everything, with whatever memory there is. */
static void exercise(long fail_at)
{
    world *w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->budget.limit = 1 << 30;
    w->limits = usual;
    w->consume = true;
    w->slab = fs_slab_new(0);
    REQUIRE(w->slab != NULL);
    size_t len;
    uint8_t *frame = peer_frame(3000, 1, &len);
    failmalloc_after(fail_at);
    w->h2 = fs_h2_new(&w->limits, &handler, w, NULL, &w->budget, w->slab, 0);
    if (w->h2 != NULL) {
        failmalloc_after(-1);
        w->peer = peer_new(w->h2, 1 << 20);
        peer *p = w->peer;
        p->deaf = true; /* what the server sends after it ran out of memory need not make sense to a client */
        peer_submit(p, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len, .accept = "gzip"});
        peer_submit(p, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len,
                                      .authorization = "Bearer token"});
        peer_submit(p, (peer_request){.path = "/t/Stream", .up = frame, .up_len = len});
        peer_submit(p, (peer_request){.path = "/t/Fail", .up = frame, .up_len = len});
        peer_submit(p, (peer_request){.path = "/t/None", .up = frame, .up_len = len});
        peer_submit(
            p,
            (peer_request){
                .path = "/long/path/that/does/not/fit/where/short/ones/are/kept/long/path/that/does/not/fit/"
                        "where/short/ones/are/kept",
                .up = frame,
                .up_len = len});
        peer_submit(p, (peer_request){.path = "/t/Hold", .up = frame, .up_len = len});
        peer_call *held = peer_submit(p, (peer_request){.path = "/t/StreamHold", .up = frame, .up_len = len,
                                                        .open = true});
        /* The client's bytes are made beforehand, so that only the server's allocations fail. */
        static uint8_t input[1 << 20];
        size_t n_input = 0;
        const uint8_t *data;
        ssize_t n;
        while ((n = nghttp2_session_mem_send(p->client, &data)) > 0) {
            REQUIRE(n_input + (size_t)n <= sizeof input);
            memcpy(input + n_input, data, (size_t)n);
            n_input += (size_t)n;
        }
        nghttp2_submit_rst_stream(p->client, 0, held->id, NGHTTP2_CANCEL);
        static uint8_t out[PEER_ROOM];
        failmalloc_after(fail_at < 0 ? -1 : fail_at);
        fs_h2_recv(w->h2, input, n_input, 1);
        while (fs_h2_send(w->h2, out, sizeof out, 1) > 0) {
        }
        if (w->n_held > 0) {
            fs_rpc *rpc = unhold(w);
            if (rpc->method == &stream_hold_method) {
                uint8_t *reply = reply_to(w, (const uint8_t *)"hello", 5, false);
                if (reply != NULL && fs_rpc_send(rpc, reply, 10) != 0)
                    fs_slab_free(reply);
                reply = reply_to(w, (const uint8_t *)"hello", 5, false);
                if (reply != NULL && fs_rpc_send(rpc, reply, 10) != 0)
                    fs_slab_free(reply);
            }
            fs_rpc_finish(rpc, FS_ABORTED, "why not", 7, NULL, 0);
        }
        fs_h2_tick(w->h2, 30000000);
        fs_h2_shutdown_notice(w->h2);
        fs_h2_shutdown(w->h2);
        while (fs_h2_send(w->h2, out, sizeof out, 1) > 0) {
        }
        failmalloc_after(-1);
        fs_h2_free(w->h2);
        while (w->n_held > 0)
            fs_rpc_finish(unhold(w), FS_CANCELLED, NULL, 0, NULL, 0);
        peer_free(p);
    }
    failmalloc_after(-1);
    CHECK_EQ(used(w), 0);
    fs_slab_release(w->slab); /* ASan reports what was not given back */
    free(frame);
    free(w);
}

static void test_out_of_memory(void)
{
    exercise(-1);
    long before = failmalloc_count();
    exercise(-1);
    long allocations = failmalloc_count() - before;
    CHECK(allocations > 50);
    for (long n = 1; n <= allocations; n++)
        exercise(n);
}

int main(void)
{
    test_unary_echo();
    test_input_in_any_pieces();
    test_empty_message();
    test_long_path();
    test_tokens_are_kept_with_their_calls();
    test_big_message_both_ways();
    test_small_reply_overtakes_a_large_one();
    test_many_calls_at_once();
    test_output_in_any_pieces();
    test_status_text();
    test_finish_codes();
    test_long_status_text_is_cut();
    test_deadlines();
    test_encodings();
    test_bad_requests();
    test_early_answer_stops_the_client();
    test_header_list_limit();
    test_budgets();
    test_budget_counts_what_is_declared();
    test_cancel();
    test_cancel_while_the_reply_is_on_its_way();
    test_connection_lost();
    test_request_timeout();
    test_stalled_reader();
    test_slow_reader_that_moves_is_kept();
    test_keepalive();
    test_two_step_drain();
    test_drain_of_an_idle_connection();
    test_client_goaway();
    test_streaming_echo();
    test_streaming_at_leisure();
    test_streaming_is_bounded();
    test_rapid_reset();
    test_honest_cancellations();
    test_resets_that_we_are_made_to_send();
    test_floods();
    test_empty_data_flood();
    test_endless_continuation();
    test_header_bomb();
    test_not_http2();
    test_too_many_streams();
    test_steady_state_does_not_allocate();
    test_out_of_memory();
    return check_done();
}
