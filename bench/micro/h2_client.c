/* What the calling side costs: CPU nanoseconds per unary call, without sockets.
 *
 *     make -C tests/c V=plain bench && build/c/plain/bench/micro/h2_client [calls]
 *
 * The calls are made once against an fs_h2 that echoes, and what it said is recorded; then new sessions make
 * the same calls and are given the recording, so only the client is timed. */
#include <time.h>

#include "check.h"
#include "grpc.h"
#include "h2.h"
#include "h2_client.h"
#include "text.h"

enum { ROOM = 1 << 18, ROUNDS = 5 };

typedef struct world {
    fs_slab *slab;
    uint32_t ended;
} world;

/* ---- the server, for the recording ----------------------------------------------------------- */

static void *lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)path;
    (void)len;
    *streaming = false;
    return ctx;
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    size_t len = rpc->message_len + FS_GRPC_PREFIX_BYTES;
    uint8_t *frame = fs_slab_alloc(((world *)ctx)->slab, len);
    REQUIRE(frame != NULL);
    fs_grpc_prefix_write(frame, false, (uint32_t)rpc->message_len);
    memcpy(frame + FS_GRPC_PREFIX_BYTES, rpc->message, rpc->message_len);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, len);
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    (void)ctx;
    (void)rpc;
}

static const fs_h2_handler server_handler = {.lookup = lookup, .on_call = on_call, .on_cancel = on_cancel};

static const fs_h2_limits server_limits = {
    .max_concurrent_streams = 1000,
    .max_header_bytes = 16384,
    .max_message_bytes = 64 << 20,
    .max_conn_bytes = 256 << 20,
    .window_bytes = 1 << 20,
    .reset_burst = 1000,
    .chatter_burst = 1000,
};

/* ---- the client -------------------------------------------------------------------------------- */

static void on_end(void *ctx, fs_exchange *x)
{
    world *w = ctx;
    REQUIRE(x->code == FS_OK);
    fs_slab_free(x->reply);
    w->ended++;
}

static const fs_h2_client_handler handler = {.on_end = on_end};

static const fs_h2_client_limits limits = {
    .max_reply_bytes = 64 << 20,
    .max_header_bytes = 16384,
    .window_bytes = 16 << 20,
};

static double cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static fs_h2_client *client_new(world *w)
{
    fs_h2_client *client =
        fs_h2_client_new(&limits, &handler, w, fs_slice_of("host:8500"), fs_slice_of("http"), w->slab, 0);
    REQUIRE(client != NULL);
    return client;
}

static void start(fs_h2_client *client, fs_exchange *calls, int n, const fs_slice *message)
{
    for (int i = 0; i < n; i++) {
        fs_exchange *x = &calls[i];
        x->path = fs_slice_of("/tensorflow.serving.PredictionService/Predict");
        x->pieces = message;
        x->n_pieces = 1;
        x->message_bytes = message->len;
        x->timeout_us = 999000 + i;
        REQUIRE(fs_h2_client_start(client, x) == 0);
    }
}

/* One recording, made of as many pieces as there were turns; the first is the server's preface. */
typedef struct recording {
    char *bytes;
    size_t len, *ends;
} recording;

static recording record(world *w, fs_exchange *calls, int turns, int at_once, const fs_slice *message,
                        size_t *sent)
{
    static uint8_t up[ROOM], down[ROOM];
    recording r = {.ends = calloc((size_t)turns + 1, sizeof *r.ends)};
    FILE *file = open_memstream(&r.bytes, &r.len);
    fs_budget budget = {.limit = 1 << 30};
    fs_h2 *server = fs_h2_new(&server_limits, &server_handler, w, NULL, &budget, w->slab, 0);
    fs_h2_client *client = client_new(w);
    REQUIRE(r.ends != NULL && file != NULL && server != NULL);
    for (int i = 0; i <= turns; i++) {
        if (i > 0)
            start(client, calls, at_once, message);
        for (bool moved = true; moved;) {
            moved = false;
            size_t n;
            while ((n = fs_h2_client_send(client, up, sizeof up, i)) > 0) {
                REQUIRE(fs_h2_recv(server, up, n, i) == 0);
                *sent += n;
                moved = true;
            }
            while ((n = fs_h2_send(server, down, sizeof down, i)) > 0) {
                fwrite(down, 1, n, file);
                REQUIRE(fs_h2_client_recv(client, down, n, i) == 0);
                moved = true;
            }
        }
        fflush(file);
        r.ends[i] = r.len;
    }
    REQUIRE(fs_h2_client_active(client) == 0);
    fs_h2_client_free(client, NULL);
    fs_h2_free(server);
    fclose(file);
    return r;
}

static void measure(size_t message_bytes, int at_once, int calls)
{
    static uint8_t out[ROOM];
    world w = {.slab = fs_slab_new(64 << 20)};
    uint8_t *bytes = calloc(1, message_bytes);
    fs_exchange *exchanges = calloc((size_t)at_once, sizeof *exchanges);
    REQUIRE(w.slab != NULL && bytes != NULL && exchanges != NULL);
    fs_slice message = {bytes, message_bytes};
    int turns = calls / at_once;
    size_t sent = 0;
    recording r = record(&w, exchanges, turns, at_once, &message, &sent);

    double best = 0;
    uint64_t allocs = 0;
    for (int round = 0; round < ROUNDS; round++) {
        fs_h2_client *client = client_new(&w);
        const uint8_t *input = (const uint8_t *)r.bytes;
        while (fs_h2_client_send(client, out, sizeof out, 0) > 0) {
        }
        REQUIRE(fs_h2_client_recv(client, input, r.ends[0], 0) == 0);
        uint64_t allocs_before = fs_slab_read(w.slab).system_allocs;
        double from = cpu_ns();
        for (int i = 1; i <= turns; i++) {
            start(client, exchanges, at_once, &message);
            while (fs_h2_client_send(client, out, sizeof out, i) > 0) {
            }
            REQUIRE(fs_h2_client_recv(client, input + r.ends[i - 1], r.ends[i] - r.ends[i - 1], i) == 0);
        }
        double took = (cpu_ns() - from) / (turns * at_once);
        best = round == 0 || took < best ? took : best;
        allocs = fs_slab_read(w.slab).system_allocs - allocs_before;
        REQUIRE(fs_h2_client_active(client) == 0);
        fs_h2_client_free(client, NULL);
    }
    printf("%6zu bytes, %3d at once: %7.0f ns per call, %5.1f bytes more than the message, "
           "%" PRIu64 " allocations in %d calls\n",
           message_bytes, at_once, best, (double)sent / (turns * at_once) - (double)message_bytes, allocs,
           turns * at_once);
    free(r.bytes);
    free(r.ends);
    free(bytes);
    free(exchanges);
    fs_slab_release(w.slab);
}

int main(int argc, char **argv)
{
    int calls = argc > 1 ? atoi(argv[1]) : 50000;
    REQUIRE(calls >= 128);
    measure(100, 1, calls);
    measure(100, 16, calls);
    measure(1000, 128, calls);
    measure(100000, 8, calls / 20);
    return 0;
}
