/* fuzz_h2_client: any bytes from a server.
 *
 * The first byte says how they come (after SETTINGS or raw, in which pieces) and how the session ends; the
 * second how many calls are open and how large they are; the third which are given up, and when; the fourth
 * what calls do that have ended. Whatever the server says, each call ends once or was given up, and sending
 * comes to an end. */
#include <stdlib.h>
#include <string.h>

#include "h2.h"
#include "h2_client.h"
#include "text.h"

enum { CALLS = 8, ROOM = 65536, MOST_ROUNDS = 4096, MOST_STARTS = 64 };

typedef struct call {
    fs_exchange x; /* first */
    fs_slice pieces[2];
    bool open;
} call;

typedef struct world {
    fs_slab *slab;
    fs_h2_client *client;
    call *calls[CALLS]; /* blocks of their own, so that ASan sees who reads one that is over */
    uint8_t *message;
    size_t message_len;
    uint8_t ends; /* what calls do that have ended */
    int started, over;
} world;

static void require(bool cond)
{
    if (!cond)
        abort();
}

static void start(world *w, int i)
{
    static const char path[] = "/tensorflow.serving.PredictionService/Predict";
    call *c = w->calls[i];
    if (w->started >= MOST_STARTS || c->open)
        return;
    c->pieces[0] = (fs_slice){w->message, w->message_len / 3};
    c->pieces[1] = (fs_slice){w->message + w->message_len / 3, w->message_len - w->message_len / 3};
    c->x.path = (fs_slice){(const uint8_t *)path, sizeof path - 1};
    c->x.pieces = c->pieces;
    c->x.n_pieces = 2;
    c->x.message_bytes = w->message_len;
    c->x.encoding = (uint8_t)(i % 3);
    c->x.timeout_us = i * 1000;
    bool accepts = fs_h2_client_accepts(w->client);
    int rc = fs_h2_client_start(w->client, &c->x);
    require(accepts ? rc == 0 : rc == -FS_UNAVAILABLE);
    if (rc == 0) {
        c->open = true;
        w->started++;
    }
}

/* The call's memory is used no more: a new block takes its place. */
static void renew(world *w, int i)
{
    free(w->calls[i]);
    w->calls[i] = calloc(1, sizeof *w->calls[i]);
    require(w->calls[i] != NULL);
}

static void give_up(world *w, int i)
{
    if (!w->calls[i]->open)
        return;
    fs_h2_client_cancel(w->client, &w->calls[i]->x);
    w->over++;
    renew(w, i);
}

static void on_end(void *ctx, fs_exchange *x)
{
    world *w = ctx;
    call *c = (call *)x;
    int i = 0;
    while (i < CALLS && w->calls[i] != c)
        i++;
    require(i < CALLS && c->open);
    c->open = false;
    w->over++;
    require(x->code >= FS_OK && x->code <= FS_UNAUTHENTICATED && x->error.code == x->code);
    require(x->error.len < sizeof x->error.msg && x->error.msg[x->error.len] == '\0');
    if (x->code == FS_OK) {
        require(x->reply != NULL && x->answered && !x->unprocessed);
        volatile uint8_t sum = 0; /* all of it is there */
        for (size_t k = 0; k < x->reply_bytes; k++)
            sum = (uint8_t)(sum + x->reply[k]);
        fs_slab_free(x->reply);
    } else {
        require(x->reply == NULL && (x->answered || x->error.len > 0));
    }
    renew(w, i);
    w->ends = (uint8_t)(w->ends >> 1 | w->ends << 7);
    if ((w->ends & 1) != 0)
        start(w, i);
    if ((w->ends & 2) != 0)
        give_up(w, (i + 1) % CALLS);
}

static const fs_h2_client_handler handler = {.on_end = on_end};

static void send_all(world *w, int64_t now_us, int at_most)
{
    static uint8_t out[ROOM];
    int rounds = 0;
    size_t n;
    while (rounds < at_most && (n = fs_h2_client_send(w->client, out, sizeof out, now_us)) > 0) {
        require(n <= sizeof out);
        require(++rounds < MOST_ROUNDS);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t settings[] = {0, 0, 0, 4, 0, 0, 0, 0, 0};
    static const size_t steps[] = {0, 1, 7, 1000};
    static const size_t lengths[] = {10, 0, 5000, 300000};
    if (size < 4)
        return 0;
    uint8_t mode = data[0], open = data[1], drop = data[2];
    world w = {.ends = data[3], .message_len = lengths[open >> 3 & 3]};
    data += 4;
    size -= 4;
    int64_t now_us = 1000000;

    const fs_h2_client_limits limits = {
        .max_reply_bytes = 1 << 20,
        .max_header_bytes = 4096,
        .window_bytes = 65536,
        .keepalive_us = 2000000,
        .keepalive_timeout_us = 1000000,
    };
    w.slab = fs_slab_new(0); /* every block is malloc's own, so that ASan sees what is done with it */
    w.message = calloc(1, w.message_len + 1);
    require(w.slab != NULL && w.message != NULL);
    for (int i = 0; i < CALLS; i++)
        renew(&w, i);
    w.client =
        fs_h2_client_new(&limits, &handler, &w, fs_slice_of("host:1"), fs_slice_of("http"), w.slab, now_us);
    require(w.client != NULL);
    for (int i = 0; i <= (open & 7); i++)
        start(&w, i);
    send_all(&w, now_us, (open & 32) != 0 ? 1 : MOST_ROUNDS);
    if ((mode & 1) == 0)
        require(fs_h2_client_recv(w.client, settings, sizeof settings, now_us) == 0);

    size_t step = steps[mode >> 1 & 3];
    int pieces = 0;
    while (size > 0) {
        size_t n = step == 0 || step > size ? size : step;
        if (fs_h2_client_recv(w.client, data, n, now_us) != 0)
            break;
        data += n;
        size -= n;
        if (++pieces % 4 == 0) {
            if (pieces / 4 % 8 == drop >> 5)
                give_up(&w, drop & 7);
            send_all(&w, now_us, (open & 64) != 0 ? 1 : MOST_ROUNDS);
            if (pieces / 4 % 8 == (drop >> 2 & 7))
                start(&w, drop & 7);
            now_us += drop * 1000;
            if (fs_h2_client_tick(w.client, now_us) < 0)
                break;
        }
    }
    if ((mode & 8) != 0)
        give_up(&w, drop & 7);
    if ((mode & 16) != 0)
        send_all(&w, now_us, MOST_ROUNDS);
    if ((mode & 32) != 0) {
        fs_h2_client_tick(w.client, now_us + 5000000);
        fs_h2_client_tick(w.client, now_us + 10000000);
        send_all(&w, now_us, MOST_ROUNDS);
    }
    uint32_t active = fs_h2_client_active(w.client);
    require(active == (uint32_t)(w.started - w.over));
    require(fs_h2_client_accepts(w.client) || fs_h2_client_room(w.client) == 0);
    fs_error why;
    fs_fail(&why, (mode & 64) != 0 ? FS_CANCELLED : FS_OK, "the end");
    fs_h2_client_free(w.client, &why);
    require(w.started == w.over);
    for (int i = 0; i < CALLS; i++)
        free(w.calls[i]);
    free(w.message);
    fs_slab_release(w.slab);
    return 0;
}
