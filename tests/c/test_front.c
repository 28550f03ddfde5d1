/* front: control-plane calls as events on the loop's thread, and their answers back at the connection's. Both
 * owners are this thread here; what travels between them goes through their mailboxes all the same. */
#include "front.h"

#include "failmalloc.h"
#include "h2_peer.h"

enum { UNARY = 1, STREAM = 2, EVENTS = 64 };

typedef struct world {
    fs_mailbox loop_box, home_box;
    fs_owner loop, home; /* home owns the connection */
    fs_front front;
    fs_front_ctx ctx;
    fs_budget budget;
    fs_h2 *h2;
    peer *peer;
    int touched;
    fs_event *events[EVENTS]; /* what the loop was told; freed by world_free */
    int n_events;
} world;

static const fs_h2_limits limits = {
    .max_concurrent_streams = 100,
    .max_header_bytes = 16384,
    .max_message_bytes = 1 << 20,
    .max_conn_bytes = 1 << 20,
    .window_bytes = 1 << 20,
    .reset_burst = 100,
    .reset_per_s = 10,
    .chatter_burst = 100,
    .chatter_per_s = 10,
};

static void on_event(fs_mail *mail)
{
    fs_event *event = (fs_event *)mail;
    world *w = event->front->loop->ctx;
    REQUIRE(w->n_events < EVENTS);
    w->events[w->n_events++] = event;
}

static void touch(void *ctx, void *conn)
{
    world *w = ctx;
    CHECK(conn == w);
    w->touched++;
}

static world *world_new(void)
{
    world *w = aligned_alloc(64, (sizeof *w + 63) & ~(size_t)63);
    REQUIRE(w != NULL);
    memset(w, 0, sizeof *w);
    REQUIRE(fs_mailbox_open(&w->loop_box) == 0 && fs_mailbox_open(&w->home_box) == 0);
    /* Nothing is cached, so that each block is an allocation that can fail. */
    w->loop = (fs_owner){.box = &w->loop_box, .slab = fs_slab_new(0), .ctx = w};
    w->home = (fs_owner){.box = &w->home_box, .slab = fs_slab_new(0), .touch = touch, .ctx = w};
    REQUIRE(w->loop.slab != NULL && w->home.slab != NULL);
    w->front.loop = &w->loop;
    w->front.on_event = on_event;
    CHECK_OK(fs_front_add_engine(&w->front, "/t/Predict", FS_CALL_PREDICT));
    CHECK_OK(fs_front_add(&w->front, "/t/Unary", false));
    CHECK_OK(fs_front_add(&w->front, "/t/Stream", true));
    w->ctx = (fs_front_ctx){.front = &w->front, .owner = &w->home};
    w->budget.limit = 1 << 30;
    w->h2 = fs_h2_new(&limits, &fs_front_handler, &w->ctx, w, &w->budget, w->home.slab, 0);
    REQUIRE(w->h2 != NULL);
    w->peer = peer_new(w->h2, 1 << 20);
    return w;
}

static void deliver(world *w)
{
    fs_owner_deliver(&w->loop);
    fs_owner_deliver(&w->home);
    if (w->h2 != NULL)
        peer_pump(w->peer);
}

static void world_free(world *w)
{
    fs_h2_free(w->h2);
    w->h2 = NULL;
    deliver(w);
    CHECK_EQ(fs_budget_used(&w->budget), 0);
    for (int i = 0; i < w->n_events; i++) {
        fs_slab_free(w->events[i]->data);
        fs_slab_free(w->events[i]);
    }
    peer_free(w->peer);
    fs_mailbox_close(&w->loop_box);
    fs_mailbox_close(&w->home_box);
    fs_slab_release(w->loop.slab);
    fs_slab_release(w->home.slab);
    free(w);
}

/* Submits a call whose body is `n` messages of `len` bytes. */
static peer_call *submit(world *w, const char *path, int n, size_t len, bool open)
{
    static uint8_t body[1 << 16];
    size_t frame_len;
    uint8_t *frame = peer_frame(len, 7, &frame_len);
    REQUIRE((size_t)n * frame_len <= sizeof body);
    for (int i = 0; i < n; i++)
        memcpy(body + (size_t)i * frame_len, frame, frame_len);
    free(frame);
    peer_call *c = peer_submit(
        w->peer, (peer_request){.path = path, .up = body, .up_len = (size_t)n * frame_len, .open = open});
    peer_pump(w->peer);
    return c;
}

static void *frame_of(world *w, const char *text, size_t *len)
{
    *len = strlen(text) + FS_GRPC_PREFIX_BYTES;
    uint8_t *frame = fs_slab_alloc(w->loop.slab, *len);
    REQUIRE(frame != NULL);
    fs_grpc_prefix_write(frame, false, (uint32_t)strlen(text));
    memcpy(frame + FS_GRPC_PREFIX_BYTES, text, strlen(text));
    return frame;
}

static void an_event_says_whether_it_came_to_the_admin_address(void)
{
    for (int admin = 0; admin < 2; admin++) {
        world *w = world_new();
        w->ctx.admin = admin != 0;
        submit(w, "/t/Unary", 1, 100, false);
        deliver(w);
        REQUIRE(w->n_events == 1);
        CHECK_EQ(w->events[0]->admin, admin);
        CHECK_OK(fs_front_answer(&w->loop, w->events[0]->owner, w->events[0]->rpc, NULL, 0, true, FS_UNKNOWN, "", 0));
        deliver(w);
        world_free(w);
    }
}

/* Unary and streaming. */
static void a_call_has_the_transport_of_its_listener(void)
{
    static const enum fs_transport transports[] = {FS_TRANSPORT_WEB, FS_TRANSPORT_GRPC, FS_TRANSPORT_REST};
    world *w = world_new();
    for (int i = 0; i < 3; i++) {
        w->ctx.transport = (uint8_t)transports[i];
        submit(w, i == 1 ? "/t/Stream" : "/t/Unary", 1, 100, false);
        deliver(w);
    }
    int calls = 0;
    for (int i = 0; i < w->n_events; i++) {
        fs_event *event = w->events[i];
        if (event->kind != FS_EVENT_CALL && event->kind != FS_EVENT_OPEN)
            continue;
        CHECK_EQ(event->rpc->transport, transports[calls]);
        calls++;
        CHECK_OK(fs_front_answer(&w->loop, event->owner, event->rpc, NULL, 0, true, FS_UNKNOWN, "", 0));
    }
    CHECK_EQ(calls, 3);
    deliver(w);
    world_free(w);
}

static void a_unary_call_goes_to_the_loop_and_its_answer_back(void)
{
    world *w = world_new();
    peer_call *c = submit(w, "/t/Unary", 1, 100, false);
    CHECK_EQ(w->n_events, 0); /* nothing happens on the connection's thread */
    deliver(w);
    CHECK_EQ(w->n_events, 1);
    fs_event *event = w->events[0];
    CHECK_EQ(event->kind, FS_EVENT_CALL);
    CHECK_EQ(event->method, UNARY);
    CHECK(event->owner == &w->home);
    CHECK_EQ(event->rpc->message_len, 100);
    size_t len;
    void *frame = frame_of(w, "hello", &len);
    CHECK_OK(fs_front_answer(&w->loop, event->owner, event->rpc, frame, len, true, FS_OK, "", 0));
    CHECK(!c->closed);
    deliver(w);
    CHECK_EQ(w->touched, 1);
    CHECK(c->closed);
    CHECK_STR(c->grpc_status, "0");
    CHECK_MEM(c->body + FS_GRPC_PREFIX_BYTES, "hello", 5);

    peer_call *refused = submit(w, "/t/Unary", 1, 100, false);
    deliver(w);
    CHECK_OK(fs_front_answer(&w->loop, &w->home, w->events[1]->rpc, NULL, 0, true, FS_NOT_FOUND, "no", 2));
    deliver(w);
    CHECK_STR(refused->grpc_status, "5");
    CHECK_STR(refused->grpc_message, "no");
    world_free(w);
}

static void a_stream_is_told_piece_by_piece(void)
{
    world *w = world_new();
    peer_call *c = submit(w, "/t/Stream", 3, 1000, false);
    deliver(w);
    CHECK_EQ(w->n_events, 5);
    static const enum fs_event_kind kinds[] = {FS_EVENT_OPEN, FS_EVENT_MESSAGE, FS_EVENT_MESSAGE,
                                               FS_EVENT_MESSAGE, FS_EVENT_HALF_CLOSE};
    for (int i = 0; i < 5 && i < w->n_events; i++) {
        CHECK_EQ(w->events[i]->kind, kinds[i]);
        CHECK_EQ(w->events[i]->method, STREAM);
        CHECK_EQ(w->events[i]->len, kinds[i] == FS_EVENT_MESSAGE ? 1000 : 0);
    }
    fs_rpc *rpc = w->events[0]->rpc;
    size_t len;
    for (int i = 0; i < 2; i++) {
        void *frame = frame_of(w, "part", &len);
        CHECK_OK(fs_front_answer(&w->loop, &w->home, rpc, frame, len, false, FS_OK, "", 0));
    }
    deliver(w);
    CHECK_EQ(c->body_len, 2 * len);
    CHECK(!c->closed);
    void *last = frame_of(w, "last", &len);
    CHECK_OK(fs_front_answer(&w->loop, &w->home, rpc, last, len, true, FS_ABORTED, "why", 3));
    deliver(w);
    CHECK_EQ(c->body_len, 3 * len);
    CHECK_STR(c->grpc_status, "10");
    CHECK_STR(c->grpc_message, "why");
    world_free(w);
}

static void what_is_consumed_no_longer_counts(void)
{
    world *w = world_new();
    submit(w, "/t/Stream", 4, 5000, true);
    deliver(w);
    CHECK_EQ(w->n_events, 5);
    fs_rpc *rpc = w->events[0]->rpc;
    size_t before = fs_h2_bytes_in_flight(w->h2);
    CHECK(before >= 4 * 5000);
    fs_front_consume(&w->loop, &w->home, rpc, 5000);
    CHECK_EQ(fs_h2_bytes_in_flight(w->h2), before); /* the owner has to hear of it */
    deliver(w);
    CHECK_EQ(fs_h2_bytes_in_flight(w->h2), before - 5000);
    CHECK_EQ(fs_budget_used(&w->budget), before - 5000);
    fs_front_consume(&w->loop, &w->home, rpc, 15000);
    CHECK_OK(fs_front_answer(&w->loop, &w->home, rpc, NULL, 0, true, FS_OK, "", 0));
    deliver(w);
    CHECK_EQ(fs_h2_bytes_in_flight(w->h2), 0);
    world_free(w);
}

static void a_caller_that_goes_is_told_and_still_answered(void)
{
    world *w = world_new();
    submit(w, "/t/Stream", 1, 100, true);
    submit(w, "/t/Unary", 1, 100, false);
    deliver(w);
    CHECK_EQ(w->n_events, 3);
    fs_rpc *stream = w->events[0]->rpc, *unary = w->events[2]->rpc;
    fs_h2_free(w->h2);
    w->h2 = NULL;
    deliver(w);
    CHECK_EQ(w->n_events, 5);
    CHECK_EQ(w->events[3]->kind, FS_EVENT_CANCEL);
    CHECK_EQ(w->events[4]->kind, FS_EVENT_CANCEL);
    size_t len;
    fs_front_consume(&w->loop, &w->home, stream, 100);
    void *frame = frame_of(w, "late", &len);
    CHECK_OK(fs_front_answer(&w->loop, &w->home, stream, frame, len, false, FS_OK, "", 0));
    CHECK_OK(fs_front_answer(&w->loop, &w->home, stream, NULL, 0, true, FS_OK, "", 0));
    frame = frame_of(w, "late", &len);
    CHECK_OK(fs_front_answer(&w->loop, &w->home, unary, frame, len, true, FS_OK, "", 0));
    CHECK(fs_budget_used(&w->budget) > 0); /* they are still there */
    deliver(w);
    CHECK_EQ(w->touched, 0); /* there is no connection to write to */
    world_free(w);           /* which finds the budget empty */
}

static void without_memory_calls_fail_and_nothing_leaks(void)
{
    world *w = world_new();
    peer_call *good = submit(w, "/t/Stream", 0, 0, true);
    deliver(w);
    fs_rpc *rpc = w->events[0]->rpc;
    const fs_h2_handler *handler = &fs_front_handler;

    /* A message for which there is no event ends the stream early, without a hole. */
    uint8_t *messages[3];
    for (int i = 0; i < 3; i++) {
        messages[i] = fs_slab_alloc(w->home.slab, 100);
        REQUIRE(messages[i] != NULL);
    }
    handler->on_message(&w->ctx, rpc, messages[0], 100, false);
    failmalloc_after(1);
    handler->on_message(&w->ctx, rpc, messages[1], 100, false);
    CHECK(failmalloc_fired());
    failmalloc_after(-1);
    handler->on_message(&w->ctx, rpc, messages[2], 100, false);
    handler->on_half_close(&w->ctx, rpc);
    deliver(w);
    CHECK_EQ(w->n_events, 3);
    CHECK_EQ(w->events[1]->kind, FS_EVENT_MESSAGE);
    CHECK_EQ(w->events[2]->kind, FS_EVENT_HALF_CLOSE);

    /* An answer for which there is none is still the caller's. */
    size_t len;
    void *frame = frame_of(w, "part", &len);
    failmalloc_after(1);
    CHECK_EQ(fs_front_answer(&w->loop, &w->home, rpc, frame, len, false, FS_OK, "", 0),
             -FS_RESOURCE_EXHAUSTED);
    failmalloc_after(1);
    fs_front_consume(&w->loop, &w->home, rpc, 0);
    CHECK(failmalloc_fired());
    failmalloc_after(-1);
    CHECK_OK(fs_front_answer(&w->loop, &w->home, rpc, frame, len, true, FS_OK, "", 0));
    deliver(w);
    CHECK_STR(good->grpc_status, "0");
    CHECK_EQ(good->body_len, len);
    world_free(w);
}

static void there_is_room_for_so_many_methods(void)
{
    fs_front front = {0};
    for (int i = 0; i < FS_MAX_METHODS; i++)
        CHECK_OK(fs_front_add(&front, "/t/Any", false));
    CHECK_EQ(fs_front_add(&front, "/t/More", false), -FS_RESOURCE_EXHAUSTED);
    CHECK_EQ(fs_front_add_engine(&front, "/t/More", FS_CALL_CLASSIFY), -FS_RESOURCE_EXHAUSTED);

    world *w = world_new();
    peer_call *c = submit(w, "/t/Unar", 1, 10, false); /* a prefix is no match */
    deliver(w);
    CHECK_STR(c->grpc_status, "12");
    world_free(w);
}

int main(void)
{
    an_event_says_whether_it_came_to_the_admin_address();
    a_call_has_the_transport_of_its_listener();
    a_unary_call_goes_to_the_loop_and_its_answer_back();
    a_stream_is_told_piece_by_piece();
    what_is_consumed_no_longer_counts();
    a_caller_that_goes_is_told_and_still_answered();
    without_memory_calls_fail_and_nothing_leaks();
    there_is_room_for_so_many_methods();
    return check_done();
}
