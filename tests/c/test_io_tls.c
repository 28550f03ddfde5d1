/* io and conn with TLS: handshakes that come about and those that do not, against OpenSSL's client and nghttp2's. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "failmalloc.h"
#include "h2_peer.h"
#include "io.h"
#include "tls_rig.h"

enum { PATIENCE_US = 20000000, SHORT_US = 200000 };

static char echo_method;

/* What a handler's calls come with. */
typedef struct place {
    struct world *world;
    atomic_int calls;
} place;

typedef struct world {
    fs_io *io;
    fs_budget budget;
    fs_h2_limits limits;
    fs_io_config config;
    fs_tls_context *tls;
    place usual, admin;
    atomic_int refused, emptied;
    pthread_mutex_t lock;
    char why[256]; /* of the last that was refused */
} world;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    *streaming = false;
    return len == 7 && memcmp(path, "/t/Echo", 7) == 0 ? &echo_method : NULL;
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    place *at = ctx;
    atomic_fetch_add_explicit(&at->calls, 1, memory_order_relaxed);
    uint8_t *frame = fs_slab_alloc(fs_io_slab(at->world->io), rpc->message_len + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL) {
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, NULL, 0, NULL, 0);
        return;
    }
    fs_grpc_prefix_write(frame, false, (uint32_t)rpc->message_len);
    memcpy(frame + FS_GRPC_PREFIX_BYTES, rpc->message, rpc->message_len);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, rpc->message_len + FS_GRPC_PREFIX_BYTES);
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    (void)ctx;
    (void)rpc;
}

static const fs_h2_handler handler = {.lookup = on_lookup, .on_call = on_call, .on_cancel = on_cancel};

static void on_mail(void *ctx)
{
    world *w = ((place *)ctx)->world;
    CHECK(fs_mailbox_take(fs_io_mailbox(w->io)) == NULL); /* nobody writes any */
}

static void on_empty(void *ctx)
{
    atomic_fetch_add_explicit(&((place *)ctx)->world->emptied, 1, memory_order_relaxed);
}

static void on_refused(void *ctx, const struct sockaddr *peer, const char *why)
{
    world *w = ((place *)ctx)->world;
    CHECK_EQ(peer->sa_family, AF_UNIX);
    pthread_mutex_lock(&w->lock);
    snprintf(w->why, sizeof w->why, "%s", why);
    pthread_mutex_unlock(&w->lock);
    /* release: pairs with the acquire in wait_refused. */
    atomic_fetch_add_explicit(&w->refused, 1, memory_order_release);
}

static world *world_new(int64_t handshake_timeout_us, fs_tls_context *tls)
{
    world *w = aligned_alloc(64, (sizeof *w + 63) & ~(size_t)63);
    REQUIRE(w != NULL);
    memset(w, 0, sizeof *w);
    w->budget.limit = 1 << 30;
    w->limits = (fs_h2_limits){.max_concurrent_streams = 1000,
                               .max_header_bytes = 16384,
                               .max_message_bytes = 64 << 20,
                               .max_conn_bytes = 256 << 20,
                               .window_bytes = 1 << 20,
                               .reset_burst = 1000,
                               .reset_per_s = 100,
                               .chatter_burst = 1000,
                               .chatter_per_s = 100,
                               .request_timeout_us = 60000000,
                               .stall_timeout_us = 60000000};
    w->config = (fs_io_config){.limits = &w->limits,
                               .handler = &handler,
                               .budget = &w->budget,
                               .on_mail = on_mail,
                               .on_empty = on_empty,
                               .on_refused = on_refused,
                               .handshake_timeout_us = handshake_timeout_us,
                               .slab_cache_bytes = 16 << 20,
                               .name = "test-io"};
    w->tls = tls;
    w->usual.world = w->admin.world = w;
    REQUIRE(pthread_mutex_init(&w->lock, NULL) == 0);
    w->io = fs_io_new(&w->config);
    REQUIRE(w->io != NULL && fs_io_start(w->io, &w->usual) == 0);
    return w;
}

/* Waits until `cond`, at most PATIENCE_US. */
#define WAIT(cond)                                                                                 \
    do {                                                                                           \
        int64_t wait_until = fs_now_us() + PATIENCE_US;                                            \
        while (!(cond) && fs_now_us() < wait_until)                                                \
            poll(NULL, 0, 1);                                                                      \
        CHECK(cond);                                                                               \
    } while (0)

static void wait_refused(world *w, int n, const char *why)
{
    WAIT(atomic_load_explicit(&w->refused, memory_order_acquire) >= n); /* pairs with on_refused */
    CHECK_EQ(w->refused, n);
    pthread_mutex_lock(&w->lock);
    CHECK_REPORT(strstr(w->why, why) != NULL, "\"%s\" in \"%s\"", why, w->why);
    pthread_mutex_unlock(&w->lock);
}

static void world_free(world *w)
{
    fs_io_stop(w->io);
    fs_io_stats stats = fs_io_read(w->io);
    CHECK_EQ(stats.connections, 0);
    CHECK_EQ(stats.calls, 0);
    CHECK_EQ(w->emptied, 1);
    CHECK_EQ(fs_budget_used(&w->budget), 0);
    fs_io_free(w->io);
    fs_tls_context_unref(w->tls);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

/* ---- a client on a socket ---------------------------------------------------------------------- */

typedef struct client {
    peer *peer;
    fs_tls *tls; /* NULL: plain */
    int fd;
    bool eof;
    fs_error err; /* of its handshake */
} client;

/* A socket whose other end is the world's, which speaks TLS if `tls`. */
static int joined(world *w, fs_tls_context *tls, place *at)
{
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    CHECK_OK(fs_io_adopt(w->io, fds[1], tls, at));
    return fds[0];
}

/* Does not say anything yet. `context` is taken over; NULL: plain. */
static client client_new(world *w, fs_tls_context *context)
{
    client c = {.peer = peer_new(NULL, 1 << 20), .fd = joined(w, context != NULL ? w->tls : NULL, NULL)};
    if (context != NULL) {
        c.tls = fs_tls_new(context, c.fd, "localhost");
        REQUIRE(c.tls != NULL);
    }
    fs_tls_context_unref(context);
    return c;
}

static void client_wait(client *c, short events, int ms)
{
    struct pollfd poll_fd = {.fd = c->fd, .events = events};
    poll(&poll_fd, 1, ms);
}

/* 0, or what went wrong is in c->err. */
static int client_shake(client *c)
{
    int64_t until = fs_now_us() + PATIENCE_US;
    int rc;
    while ((rc = fs_tls_handshake(c->tls, &c->err)) > 0) {
        REQUIRE(fs_now_us() < until);
        client_wait(c, rc == FS_TLS_WANTS_WRITE ? POLLOUT : POLLIN, 10);
    }
    return rc;
}

static void client_free(client *c)
{
    if (c->tls != NULL && !c->eof)
        fs_tls_bye(c->tls);
    fs_tls_free(c->tls);
    close(c->fd);
    peer_free(c->peer);
}

static void client_read(client *c, int wait_ms)
{
    static uint8_t buf[1 << 16];
    enum fs_tls_want want;
    int64_t n = 0;
    for (int i = 0; i < 2 && n == 0; i++) {
        if (i > 0)
            client_wait(c, POLLIN, wait_ms);
        n = c->tls != NULL ? fs_tls_read(c->tls, buf, sizeof buf, &want)
                           : recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
        if (c->tls == NULL && n < 0 && errno == EAGAIN)
            n = 0;
        else if (c->tls == NULL && n == 0)
            n = -1;
    }
    if (n > 0)
        CHECK_EQ(nghttp2_session_mem_recv(c->peer->client, buf, (size_t)n), n);
    else if (n < 0)
        c->eof = true;
}

static void client_write(client *c)
{
    const uint8_t *data;
    ssize_t n;
    while (!c->eof && (n = nghttp2_session_mem_send(c->peer->client, &data)) > 0) {
        for (int64_t at = 0; at < n && !c->eof;) {
            enum fs_tls_want want;
            int64_t took = c->tls != NULL ? fs_tls_write(c->tls, data + at, (size_t)(n - at), &want)
                                          : send(c->fd, data + at, (size_t)(n - at), MSG_NOSIGNAL);
            if (c->tls == NULL && took < 0 && errno == EAGAIN)
                took = 0;
            if (took > 0)
                at += took;
            else if (took == 0)
                client_read(c, 1);
            else
                c->eof = true;
        }
    }
}

#define CLIENT_WAIT(c, cond)                                                                       \
    do {                                                                                           \
        int64_t wait_until = fs_now_us() + PATIENCE_US;                                            \
        client_write(c);                                                                           \
        while (!(cond) && !(c)->eof && fs_now_us() < wait_until) {                                 \
            client_read(c, 10);                                                                    \
            client_write(c);                                                                       \
        }                                                                                          \
        CHECK(cond);                                                                               \
    } while (0)

/* One call that must be answered. */
static void call(client *c, size_t size)
{
    size_t len;
    uint8_t *frame = peer_frame(size, 3, &len);
    peer_call *call = peer_submit(c->peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    CLIENT_WAIT(c, call->closed);
    CHECK_STR(call->grpc_status, "0");
    CHECK_EQ(call->body_len, len);
    if (call->body_len == len)
        CHECK_MEM(call->body, frame, len);
    free(frame);
}

/* A new one, with which all is well. */
static void check_serves(world *w)
{
    client c = client_new(w, tls_client());
    CHECK_OK(client_shake(&c));
    call(&c, 100);
    client_free(&c);
}

/* ---- tests ---------------------------------------------------------------------------------------- */

static void test_calls_over_tls_and_plain_beside(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    client clients[6];
    for (int i = 0; i < 6; i++) {
        clients[i] = client_new(w, i < 4 ? tls_client() : NULL);
        if (i < 4)
            CHECK_OK(client_shake(&clients[i]));
    }
    const size_t sizes[] = {0, 1, 100, 5000, 16384, 40000, 3 << 20};
    for (int round = 0; round < 7; round++) {
        for (int i = 0; i < 6; i++)
            call(&clients[i], sizes[round]);
    }
    CHECK_EQ(w->refused, 0);
    CHECK_EQ(fs_io_read(w->io).connections, 6);
    for (int i = 0; i < 6; i++)
        client_free(&clients[i]);
    WAIT(fs_io_read(w->io).connections == 0);
    world_free(w);
}

/* More than one turn's worth is on its way at once, in both directions, and nobody reads for a while. */
static void test_a_lot_at_once(void)
{
    enum { CALLS = 8, BYTES = 4 << 20 };
    world *w = world_new(PATIENCE_US, tls_server());
    client c = client_new(w, tls_client());
    CHECK_OK(client_shake(&c));
    nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 64 << 20};
    nghttp2_submit_settings(c.peer->client, 0, &window, 1);
    nghttp2_session_set_local_window_size(c.peer->client, 0, 0, 64 << 20);
    size_t len;
    uint8_t *frame = peer_frame(BYTES, 3, &len);
    peer_call *calls[CALLS];
    for (int i = 0; i < CALLS; i++)
        calls[i] = peer_submit(c.peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    for (int i = 0; i < CALLS; i++)
        CLIENT_WAIT(&c, calls[i]->closed);
    for (int i = 0; i < CALLS; i++) {
        CHECK_STR(calls[i]->grpc_status, "0");
        REQUIRE(calls[i]->body_len == len);
        CHECK_MEM(calls[i]->body, frame, len);
    }
    free(frame);
    client_free(&c);
    world_free(w);
}

static void test_who_does_not_speak_tls(void)
{
    static const char *const words[] = {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\n\r\n",
                                        "\x16\x03\x01 and then something else altogether, to the end",
                                        "\x80\x2e\x01"};
    world *w = world_new(SHORT_US, tls_server());
    for (int i = 0; i < 4; i++) {
        int fd = joined(w, w->tls, NULL);
        CHECK_EQ(send(fd, words[i], strlen(words[i]), MSG_NOSIGNAL), strlen(words[i]));
        wait_refused(w, i + 1, i < 2 ? "the client does not speak TLS" : "");
        WAIT(fs_io_read(w->io).connections == 0); /* whether it hangs up or not */
        close(fd);
    }
    check_serves(w);
    world_free(w);
}

static void test_half_a_handshake_ends_in_time_and_disturbs_nobody(void)
{
    world *w = world_new(SHORT_US, tls_server());
    int fds[20];
    for (int i = 0; i < 20; i++) {
        fds[i] = joined(w, w->tls, NULL);
        CHECK_EQ(send(fds[i], "\x16\x03\x01\x02", 4, MSG_NOSIGNAL), 4);
    }
    check_serves(w); /* meanwhile */
    wait_refused(w, 20, "the client took too long over the handshake");
    WAIT(fs_io_read(w->io).connections == 0);
    check_serves(w);
    for (int i = 0; i < 20; i++)
        close(fds[i]);
    world_free(w);
}

static void test_who_only_knocks_is_not_counted(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    for (int i = 0; i < 5; i++)
        close(joined(w, w->tls, NULL));
    WAIT(fs_io_read(w->io).closed == 5);
    CHECK_EQ(w->refused, 0);
    int fd = joined(w, w->tls, NULL);
    CHECK_EQ(send(fd, "\x16\x03", 2, MSG_NOSIGNAL), 2);
    close(fd);
    wait_refused(w, 1, "the client closed the connection during the handshake");
    world_free(w);
}

static void test_clients_that_must_show_a_certificate(void)
{
    fs_error err;
    world *w = world_new(PATIENCE_US, tls_context(true, "ca.pem", "server.pem", "server.key", true, &err));
    const struct {
        const char *certificate, *key, *why;
    } cases[] = {
        {NULL, NULL, "peer did not return a certificate"},
        {"stranger.pem", "stranger.key", "certificate verify failed"},
    };
    for (int i = 0; i < 2; i++) {
        client c = client_new(w, tls_context(false, "ca.pem", cases[i].certificate, cases[i].key, true, &err));
        client_shake(&c); /* TLS 1.3: it is content, for now */
        int64_t until = fs_now_us() + PATIENCE_US;
        while (!c.eof && fs_now_us() < until)
            client_read(&c, 10);
        CHECK(c.eof);
        CHECK(strstr(fs_tls_why(c.tls), "certificate") != NULL); /* the alert has reached it */
        wait_refused(w, i + 1, cases[i].why);
        client_free(&c);
    }
    client c = client_new(w, tls_context(false, "ca.pem", "client.pem", "client.key", true, &err));
    CHECK_OK(client_shake(&c));
    call(&c, 100);
    client_free(&c);
    world_free(w);
}

/* Connections keep the context that they began with; new ones get another. */
static void test_another_certificate_for_new_connections(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    client before = client_new(w, tls_client());
    CHECK_OK(client_shake(&before));
    client waiting = client_new(w, tls_client()); /* adopted with the old one, its handshake is later */
    fs_error err;
    fs_tls_context *old = w->tls;
    w->tls = tls_context(true, NULL, "elsewhere.pem", "elsewhere.key", false, &err);
    REQUIRE(w->tls != NULL);
    fs_tls_context_unref(old); /* nobody but connections has it */
    client after = client_new(w, tls_client());
    CHECK(client_shake(&after) < 0);
    CHECK(strstr(after.err.msg, "localhost") != NULL); /* the certificate is another host's */
    CHECK_OK(client_shake(&waiting));
    call(&before, 100);
    call(&waiting, 100);
    client_free(&before);
    client_free(&waiting);
    client_free(&after);
    world_free(w);
}

static void test_calls_come_with_their_connections_ctx(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    client c = {.peer = peer_new(NULL, 1 << 20), .fd = joined(w, NULL, &w->admin)};
    call(&c, 100);
    CHECK_EQ(w->admin.calls, 1);
    CHECK_EQ(w->usual.calls, 0);
    check_serves(w);
    CHECK_EQ(w->admin.calls, 1);
    CHECK_EQ(w->usual.calls, 1);
    client_free(&c);
    world_free(w);
}

static void test_a_drain_does_not_wait_for_handshakes(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    int fd = joined(w, w->tls, NULL);
    client c = client_new(w, tls_client());
    CHECK_OK(client_shake(&c));
    call(&c, 100);
    CHECK_OK(fs_io_drain(w->io, FS_IO_NOTICE));
    CLIENT_WAIT(&c, c.peer->goaways == 1);
    client late = client_new(w, tls_client());
    CHECK_OK(client_shake(&late));
    CLIENT_WAIT(&late, late.peer->goaways == 1);
    CHECK_OK(fs_io_drain(w->io, FS_IO_SHUTDOWN));
    CLIENT_WAIT(&c, c.eof);
    CHECK_STR(fs_tls_why(c.tls), ""); /* it said goodbye */
    CLIENT_WAIT(&late, late.eof);
    char byte;
    WAIT(recv(fd, &byte, 1, MSG_DONTWAIT) == 0);
    WAIT(w->emptied == 1);
    close(fd);
    client_free(&c);
    client_free(&late);
    world_free(w);
}

static void test_stopped_in_the_middle(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    int fd = joined(w, w->tls, NULL);
    CHECK_EQ(send(fd, "\x16\x03\x01\x02", 4, MSG_NOSIGNAL), 4);
    WAIT(fs_io_read(w->io).connections == 1);
    fs_io_stop(w->io);
    int too_late = joined(w, w->tls, NULL); /* fs_io_free closes it, and lets go of the context */
    world_free(w);
    char byte;
    CHECK_EQ(recv(fd, &byte, 1, 0), 0);
    CHECK_EQ(recv(too_late, &byte, 1, 0), 0);
    close(fd);
    close(too_late);
}

/* Whatever allocation fails, in whichever thread: that connection ends, and others are served. */
static void test_out_of_memory(void)
{
    world *w = world_new(PATIENCE_US, tls_server());
    bool fired = true;
    for (long n = 1; fired; n++) {
        int fds[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        uint64_t accepted = fs_io_read(w->io).accepted;
        failmalloc_after(n);
        int rc = fs_io_adopt(w->io, fds[1], w->tls, NULL);
        if (rc == 0) {
            send(fds[0], "PRI * HTTP/2.0", 14, MSG_NOSIGNAL); /* it may be closed already */
            WAIT(fs_io_read(w->io).accepted == accepted + 1);
        }
        close(fds[0]);
        if (rc != 0)
            close(fds[1]);
        WAIT(fs_io_read(w->io).connections == 0);
        fired = failmalloc_fired();
        failmalloc_after(-1);
        CHECK(n > 1 || rc == -FS_RESOURCE_EXHAUSTED);
    }
    check_serves(w);
    world_free(w);
}

int main(void)
{
    test_calls_over_tls_and_plain_beside();
    test_a_lot_at_once();
    test_who_does_not_speak_tls();
    test_half_a_handshake_ends_in_time_and_disturbs_nobody();
    test_who_only_knocks_is_not_counted();
    test_clients_that_must_show_a_certificate();
    test_another_certificate_for_new_connections();
    test_calls_come_with_their_connections_ctx();
    test_a_drain_does_not_wait_for_handshakes();
    test_stopped_in_the_middle();
    test_out_of_memory();
    return check_done();
}
