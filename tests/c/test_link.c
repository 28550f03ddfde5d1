/* Tests of link: real sockets, servers in the same thread, and a clock that the test turns.
 *
 * The server that speaks the protocol is fs_h2 on an fs_sock, plain or TLS; those that misbehave are a
 * listener and what the test writes to the socket it accepts. */
#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "failmalloc.h"
#include "grpc.h"
#include "h2.h"
#include "tls_rig.h"

enum {
    PATIENCE_US = 20000000,
    ROOM = 64 << 10,
    BIG = 8 << 20,
    CONNECT_TIMEOUT_US = 1000000,
    STALL_TIMEOUT_US = 5000000,
    KEEPALIVE_US = 2000000,
    KEEPALIVE_TIMEOUT_US = 3000000,
};

/* ---- addresses ----------------------------------------------------------------------------------- */

enum place { TCP, UNIX };

typedef struct listener {
    int fd;
    struct sockaddr_storage address;
    socklen_t address_len;
} listener;

static listener listen_at(enum place place, int backlog)
{
    listener l = {.address_len = sizeof l.address};
    if (place == TCP) {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        l.fd = socket(AF_INET, SOCK_STREAM, 0);
        REQUIRE(l.fd >= 0 && bind(l.fd, (struct sockaddr *)&in, sizeof in) == 0);
    } else {
        /* With a length of only the family the kernel picks a free abstract name. */
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        l.fd = socket(AF_UNIX, SOCK_STREAM, 0);
        REQUIRE(l.fd >= 0 && bind(l.fd, (struct sockaddr *)&un, sizeof un.sun_family) == 0);
    }
    REQUIRE(listen(l.fd, backlog) == 0);
    REQUIRE(getsockname(l.fd, (struct sockaddr *)&l.address, &l.address_len) == 0);
    return l;
}

static void unlisten(listener *l)
{
    close(l->fd);
}

/* ---- a server that speaks the protocol ----------------------------------------------------------- */

static char echo_method, keep_method;

typedef struct server {
    fs_h2 *h2;
    fs_sock sock;
    fs_slab *slab;
    fs_h2_limits limits;
    fs_budget budget;
    bool shaken, gone;
    fs_rpc *kept[16];
    int n_kept;
} server;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    *streaming = false;
    return len != 7 ? NULL : memcmp(path, "/t/Echo", 7) == 0 ? &echo_method : &keep_method;
}

static void echo(server *s, fs_rpc *rpc)
{
    uint8_t *frame = fs_slab_alloc(s->slab, rpc->message_len + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL) {
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, NULL, 0, NULL, 0);
        return;
    }
    fs_grpc_prefix_write(frame, false, (uint32_t)rpc->message_len);
    if (rpc->message_len > 0)
        memcpy(frame + FS_GRPC_PREFIX_BYTES, rpc->message, rpc->message_len);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, rpc->message_len + FS_GRPC_PREFIX_BYTES);
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    server *s = ctx;
    if (rpc->method == &echo_method) {
        echo(s, rpc);
        return;
    }
    REQUIRE(s->n_kept < 16);
    s->kept[s->n_kept++] = rpc;
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    (void)ctx;
    (void)rpc;
}

static const fs_h2_handler server_handler = {.lookup = on_lookup, .on_call = on_call, .on_cancel = on_cancel};

static server *server_accept(listener *l, fs_tls_context *tls, fs_slab *slab, int64_t now_us)
{
    server *s = aligned_alloc(64, (sizeof *s + 63) & ~(size_t)63);
    REQUIRE(s != NULL);
    memset(s, 0, sizeof *s);
    s->slab = slab;
    s->budget.limit = 1 << 30;
    s->limits = (fs_h2_limits){.max_concurrent_streams = 100,
                               .max_header_bytes = 16384,
                               .max_message_bytes = 64 << 20,
                               .max_conn_bytes = 256 << 20,
                               .window_bytes = 1 << 20,
                               .reset_burst = 1000,
                               .reset_per_s = 100,
                               .chatter_burst = 1000,
                               .chatter_per_s = 100};
    int fd = accept(l->fd, NULL, NULL);
    REQUIRE(fd >= 0);
    fs_tls *session = tls != NULL ? fs_tls_new(tls, fd, NULL) : NULL;
    s->shaken = tls == NULL;
    s->h2 = fs_h2_new(&s->limits, &server_handler, s, s, &s->budget, slab, now_us);
    REQUIRE(s->h2 != NULL && (tls == NULL || session != NULL));
    REQUIRE(fs_sock_open(&s->sock, fd, session, slab) == 0);
    return s;
}

static void server_turn(server *s, int64_t now_us)
{
    static uint8_t buf[ROOM];
    fs_sock_moved moved = {0};
    fs_error err;
    if (!s->gone && !s->shaken) {
        int rc = fs_tls_handshake(s->sock.tls, &err);
        s->shaken = rc == FS_TLS_DONE;
        s->gone = rc < 0;
    }
    if (s->gone || !s->shaken)
        return;
    int64_t n;
    while ((n = fs_sock_read(&s->sock, buf, ROOM, &moved)) > 0)
        fs_h2_recv(s->h2, buf, (size_t)n, now_us);
    int rc = n < 0 ? (int)n : fs_sock_flush(&s->sock, now_us, &moved);
    size_t out;
    while (rc == 0 && s->sock.rest == NULL && (out = fs_h2_send(s->h2, buf, ROOM, now_us)) > 0)
        rc = fs_sock_write(&s->sock, buf, out, now_us, &moved);
    s->gone = rc != 0 || (s->sock.rest == NULL && fs_h2_done(s->h2));
    if (s->gone)
        fs_sock_close(&s->sock);
}

static void server_free(server *s)
{
    fs_h2_free(s->h2);
    for (int i = 0; i < s->n_kept; i++) {
        if (s->kept[i] != NULL)
            fs_rpc_finish(s->kept[i], FS_CANCELLED, NULL, 0, NULL, 0);
    }
    fs_sock_close(&s->sock);
    free(s);
}

/* ---- calls --------------------------------------------------------------------------------------- */

typedef struct call {
    fs_exchange exchange; /* first */
    fs_slice piece;
    int ended;
} call;

typedef struct world {
    fs_slab *slab;
    fs_h2_client_limits limits;
    fs_link_config config;
    fs_link link;
    int64_t now_us;
    listener at;
    server *server; /* NULL: nobody has accepted, or a test of its own has */
    fs_tls_context *server_tls;
    bool seen[FS_LINK_OPEN + 1]; /* states that the link was in */
    void (*on_end)(struct world *w, call *c);
} world;

static void on_end(void *ctx, fs_exchange *exchange)
{
    world *w = ctx;
    call *c = (call *)exchange;
    c->ended++;
    if (w->on_end != NULL)
        w->on_end(w, c);
}

static const fs_h2_client_handler client_handler = {.on_end = on_end};

static call *call_new(const char *path, size_t message_bytes)
{
    call *c = calloc(1, sizeof *c);
    uint8_t *message = malloc(message_bytes + 1);
    REQUIRE(c != NULL && message != NULL);
    for (size_t i = 0; i < message_bytes; i++)
        message[i] = (uint8_t)(i * 31 + (i >> 9));
    c->piece = (fs_slice){message, message_bytes};
    c->exchange = (fs_exchange){.path = {(const uint8_t *)path, strlen(path)},
                                .pieces = &c->piece,
                                .n_pieces = 1,
                                .message_bytes = message_bytes};
    return c;
}

static void call_free(call *c)
{
    fs_slab_free(c->exchange.reply);
    free((void *)(uintptr_t)c->piece.data);
    free(c);
}

static void check_echoed(call *c)
{
    CHECK_EQ(c->ended, 1);
    CHECK_EQ(c->exchange.code, FS_OK);
    CHECK_EQ(c->exchange.reply_bytes, c->piece.len);
    if (c->exchange.code == FS_OK && c->exchange.reply_bytes == c->piece.len)
        CHECK_MEM(c->exchange.reply, c->piece.data, c->piece.len);
}

static void check_unavailable(call *c, const char *why)
{
    CHECK_EQ(c->ended, 1);
    CHECK_EQ(c->exchange.code, FS_UNAVAILABLE);
    CHECK_STR(c->exchange.error.msg, why);
}

/* ---- the world ----------------------------------------------------------------------------------- */

static world *world_new(enum place place, fs_tls_context *client_tls, fs_tls_context *server_tls,
                        const char *name)
{
    world *w = calloc(1, sizeof *w);
    REQUIRE(w != NULL);
    w->slab = fs_slab_new(16 << 20);
    REQUIRE(w->slab != NULL);
    w->now_us = 1000000000;
    w->limits = (fs_h2_client_limits){.max_reply_bytes = 64 << 20,
                                      .max_header_bytes = 16384,
                                      .window_bytes = 1 << 20,
                                      .keepalive_us = KEEPALIVE_US,
                                      .keepalive_timeout_us = KEEPALIVE_TIMEOUT_US};
    w->config = (fs_link_config){.limits = &w->limits,
                                 .handler = &client_handler,
                                 .ctx = w,
                                 .tls = client_tls,
                                 .server_name = name,
                                 .authority = {(const uint8_t *)"localhost", 9},
                                 .connect_timeout_us = CONNECT_TIMEOUT_US,
                                 .stall_timeout_us = STALL_TIMEOUT_US};
    w->server_tls = server_tls;
    w->at = listen_at(place, 16);
    return w;
}

static world *plain_world(void)
{
    return world_new(TCP, NULL, NULL, NULL);
}

static void world_free(world *w)
{
    fs_link_close(&w->link, NULL);
    CHECK_EQ(w->link.state, FS_LINK_CLOSED);
    CHECK(w->link.h2 == NULL);
    CHECK_EQ(w->link.sock.fd, -1);
    if (w->server != NULL)
        server_free(w->server);
    unlisten(&w->at);
    fs_tls_context_unref(w->config.tls);
    fs_tls_context_unref(w->server_tls);
    fs_slab_release(w->slab);
    free(w);
}

static int dial(world *w)
{
    return fs_link_dial(&w->link, &w->config, (struct sockaddr *)&w->at.address, w->at.address_len, w->slab,
                        w->now_us);
}

/* What a loop does with a link: waits a moment, reads, ticks when it is due, flushes. */
static void link_turn(world *w)
{
    static uint8_t buf[ROOM];
    fs_sock_moved moved = {0};
    fs_link *link = &w->link;
    if (link->state == FS_LINK_CLOSED)
        return;
    struct pollfd fd = {.fd = link->sock.fd, .events = POLLIN};
    fd.events = (short)(fd.events | (fs_link_wants_write(link) ? POLLOUT : 0));
    poll(&fd, 1, 1);
    w->seen[link->state] = true;
    if ((fd.revents & ~POLLOUT) != 0) {
        while (fs_link_read(link, buf, ROOM, w->now_us, &moved)) {
        }
    }
    w->seen[link->state] = true;
    if (link->state != FS_LINK_CLOSED && link->due_us <= w->now_us)
        fs_link_tick(link, w->now_us);
    if (link->state != FS_LINK_CLOSED)
        fs_link_flush(link, buf, ROOM, w->now_us, &moved);
    w->seen[link->state] = true;
}

static void turn(world *w)
{
    link_turn(w);
    if (w->server != NULL)
        server_turn(w->server, w->now_us);
}

#define WAIT(w, cond)                                                                              \
    do {                                                                                           \
        int64_t wait_until = fs_now_us() + PATIENCE_US;                                            \
        while (!(cond) && fs_now_us() < wait_until)                                                \
            turn(w);                                                                               \
        CHECK(cond);                                                                               \
    } while (0)

#define WAIT_LINK(w, cond)                                                                         \
    do {                                                                                           \
        int64_t wait_until = fs_now_us() + PATIENCE_US;                                            \
        while (!(cond) && fs_now_us() < wait_until)                                                \
            link_turn(w);                                                                          \
        CHECK(cond);                                                                               \
    } while (0)

static bool closed(const world *w)
{
    return w->link.state == FS_LINK_CLOSED;
}

/* Dialled, accepted, and the session open. */
static void open_link(world *w)
{
    CHECK_OK(dial(w));
    w->server = server_accept(&w->at, w->server_tls, w->slab, w->now_us);
    WAIT(w, w->link.state == FS_LINK_OPEN || closed(w));
    if (closed(w))
        fprintf(stderr, "the link has closed: %s\n", w->link.why.msg);
    REQUIRE(w->link.state == FS_LINK_OPEN);
}

static void start(world *w, call *c)
{
    REQUIRE(fs_link_accepts(&w->link));
    CHECK_OK(fs_h2_client_start(w->link.h2, &c->exchange));
}

/* ---- tests: it works ----------------------------------------------------------------------------- */

static void test_calls_travel(enum place place, bool tls, const char *name)
{
    world *w = world_new(place, tls ? tls_client() : NULL, tls ? tls_server() : NULL, name);
    open_link(w);
    CHECK(w->seen[FS_LINK_CONNECTING] || place == UNIX);
    CHECK_EQ(w->seen[FS_LINK_SHAKING], tls);
    CHECK(w->seen[FS_LINK_SETTLING]);
    static const size_t sizes[] = {0, 1, 100, 16384, 70000, BIG};
    call *calls[6];
    for (int i = 0; i < 6; i++) {
        calls[i] = call_new("/t/Echo", sizes[i]);
        start(w, calls[i]);
    }
    CHECK_EQ(fs_h2_client_active(w->link.h2), 6);
    WAIT(w, closed(w) || fs_h2_client_active(w->link.h2) == 0);
    for (int i = 0; i < 6; i++) {
        check_echoed(calls[i]);
        call_free(calls[i]);
    }
    /* Idle: nothing to wait for but what the server says. */
    turn(w);
    fs_link_tick(&w->link, w->now_us);
    CHECK_EQ(w->link.due_us, INT64_MAX);
    CHECK(!fs_link_wants_write(&w->link));
    world_free(w);
}

static void test_calls_start_before_the_servers_settings(bool tls)
{
    world *w = world_new(TCP, tls ? tls_client() : NULL, tls ? tls_server() : NULL, "localhost");
    CHECK_OK(dial(w));
    CHECK(!fs_link_accepts(&w->link));
    w->server = server_accept(&w->at, w->server_tls, w->slab, w->now_us);
    WAIT(w, w->link.state >= FS_LINK_SETTLING || closed(w));
    REQUIRE(w->link.state == FS_LINK_SETTLING);
    call *c = call_new("/t/Echo", 500);
    start(w, c);
    WAIT(w, c->ended > 0);
    check_echoed(c);
    CHECK_EQ(w->link.state, FS_LINK_OPEN);
    call_free(c);
    world_free(w);
}

static void test_a_farewell_when_idle_closes(void)
{
    world *w = plain_world();
    open_link(w);
    call *kept = call_new("/t/Keep", 100);
    start(w, kept);
    WAIT(w, w->server->n_kept == 1);
    fs_h2_shutdown(w->server->h2);
    WAIT(w, !fs_link_accepts(&w->link));
    CHECK_EQ(w->link.state, FS_LINK_OPEN); /* for the call that is there */
    CHECK_EQ(kept->ended, 0);
    echo(w->server, w->server->kept[0]);
    w->server->kept[0] = NULL;
    WAIT(w, closed(w));
    check_echoed(kept);
    CHECK_EQ(w->link.why.code, FS_UNAVAILABLE);
    CHECK(w->link.why.msg[0] != '\0');
    call_free(kept);
    world_free(w);
}

/* ---- tests: no connection ------------------------------------------------------------------------ */

static void test_refused(void)
{
    world *w = plain_world();
    unlisten(&w->at);
    if (dial(w) == 0)
        WAIT(w, closed(w));
    CHECK(closed(w));
    CHECK_STR(w->link.why.msg, "connect: Connection refused");
    CHECK_EQ(w->link.why.code, FS_UNAVAILABLE);
    w->at = listen_at(UNIX, 1);
    unlisten(&w->at);
    CHECK_EQ(dial(w), -FS_UNAVAILABLE);
    CHECK(closed(w));
    CHECK_STR(w->link.why.msg, "connect: Connection refused");
    struct sockaddr_un nowhere = {.sun_family = AF_UNIX, .sun_path = "/nowhere/at/all"};
    CHECK_EQ(fs_link_dial(&w->link, &w->config, (struct sockaddr *)&nowhere, sizeof nowhere, w->slab,
                          w->now_us),
             -FS_UNAVAILABLE);
    CHECK_STR(w->link.why.msg, "connect: No such file or directory");
    w->at.fd = -1;
    world_free(w);
}

/* A listener whose queue is full answers nothing: the kernel drops the SYN. */
static void test_black_hole(void)
{
    world *w = plain_world();
    unlisten(&w->at);
    w->at = listen_at(TCP, 0);
    int fillers[8];
    for (int i = 0; i < 8; i++) {
        fillers[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        REQUIRE(fillers[i] >= 0);
        connect(fillers[i], (struct sockaddr *)&w->at.address, w->at.address_len);
    }
    CHECK_OK(dial(w));
    for (int i = 0; i < 20; i++)
        turn(w);
    CHECK_EQ(w->link.state, FS_LINK_CONNECTING);
    CHECK_EQ(w->link.due_us, w->now_us + CONNECT_TIMEOUT_US);
    CHECK(!fs_link_accepts(&w->link));
    w->now_us += CONNECT_TIMEOUT_US - 1;
    turn(w);
    CHECK_EQ(w->link.state, FS_LINK_CONNECTING);
    w->now_us++;
    turn(w);
    CHECK(closed(w));
    CHECK_STR(w->link.why.msg, "connect: timed out after 1000 ms");
    for (int i = 0; i < 8; i++)
        close(fillers[i]);
    world_free(w);
}

/* Accepts, and says nothing. */
static void test_silence(bool tls, const char *why)
{
    world *w = world_new(TCP, tls ? tls_client() : NULL, NULL, "localhost");
    CHECK_OK(dial(w));
    WAIT(w, w->link.state == (tls ? FS_LINK_SHAKING : FS_LINK_SETTLING));
    call *c = NULL;
    if (!tls) {
        c = call_new("/t/Echo", 10);
        start(w, c);
    }
    turn(w);
    w->now_us += CONNECT_TIMEOUT_US;
    turn(w);
    CHECK(closed(w));
    CHECK_STR(w->link.why.msg, why);
    if (c != NULL) {
        check_unavailable(c, why);
        call_free(c);
    }
    world_free(w);
}

/* ---- tests: the wrong server --------------------------------------------------------------------- */

/* Accepts, says `answer`, and closes. */
static void wrong_server(fs_tls_context *tls, const char *answer, size_t len, bool reset, const char *why)
{
    world *w = world_new(TCP, tls, NULL, "localhost");
    CHECK_OK(dial(w));
    WAIT(w, w->link.state >= FS_LINK_SHAKING);
    turn(w);
    int fd = accept(w->at.fd, NULL, NULL);
    REQUIRE(fd >= 0);
    if (reset) {
        struct linger now = {.l_onoff = 1};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    } else {
        char room[4096]; /* what is unread makes the kernel reset */
        CHECK(read(fd, room, sizeof room) > 0);
    }
    if (len > 0)
        CHECK_EQ(write(fd, answer, len), len);
    close(fd);
    WAIT(w, closed(w));
    CHECK_EQ(w->link.why.code, FS_UNAVAILABLE);
    CHECK_REPORT(strstr(w->link.why.msg, why) != NULL, "%s is not in: %s", why, w->link.why.msg);
    world_free(w);
}

static void test_wrong_servers(void)
{
    static const char http1[] = "HTTP/1.1 400 Bad Request\r\n\r\n";
    static const char alert[] = {21, 3, 1, 0, 2, 2, 70};
    wrong_server(NULL, "", 0, false, "the server closed the connection before it spoke HTTP/2");
    wrong_server(NULL, "", 0, true, "Connection reset by peer");
    wrong_server(NULL, http1, sizeof http1 - 1, false, "does not speak HTTP/2: it answered \"HTTP/1.1 400");
    wrong_server(NULL, alert, sizeof alert, false, "which is TLS");
    wrong_server(tls_client(), "", 0, false, "TLS: the server closed the connection during the handshake");
    wrong_server(tls_client(), "", 0, true, "TLS: ");
    wrong_server(tls_client(), http1, sizeof http1 - 1, false, "TLS: the server does not speak TLS");
    static const char settings[] = {0, 0, 0, 4, 0, 0, 0, 0, 0};
    wrong_server(tls_client(), settings, sizeof settings, false, "TLS: the server does not speak TLS");
}

static void refused_handshake(fs_tls_context *client, fs_tls_context *server, const char *name,
                              const char *why)
{
    world *w = world_new(TCP, client, server, name);
    CHECK_OK(dial(w));
    w->server = server_accept(&w->at, w->server_tls, w->slab, w->now_us);
    call *c = NULL;
    int64_t until = fs_now_us() + PATIENCE_US;
    while (!closed(w) && fs_now_us() < until) {
        turn(w);
        if (c == NULL && w->link.state == FS_LINK_SETTLING) {
            c = call_new("/t/Echo", 10);
            start(w, c);
        }
    }
    CHECK(closed(w));
    CHECK_STR(w->link.why.msg, why);
    CHECK_EQ(w->link.why.code, FS_UNAVAILABLE);
    if (c != NULL) {
        check_unavailable(c, why);
        call_free(c);
    }
    world_free(w);
}

static void test_certificates(void)
{
    fs_error err;
    refused_handshake(tls_context(false, NULL, NULL, NULL, true, &err), tls_server(), "localhost",
                      "TLS: certificate verify failed: unable to get local issuer certificate");
    refused_handshake(tls_client(), tls_context(true, NULL, "stranger.pem", "stranger.key", false, &err),
                      "localhost", "TLS: certificate verify failed: self-signed certificate");
    refused_handshake(tls_client(), tls_context(true, NULL, "expired.pem", "expired.key", false, &err),
                      "localhost", "TLS: certificate verify failed: certificate has expired");
    refused_handshake(tls_client(), tls_server(), NULL,
                      "TLS: \"\" is no name that the server's certificate could be for");
    /* TLS 1.3 has let us in by then, and calls may have started. */
    refused_handshake(tls_client(), tls_context(true, "ca.pem", "server.pem", "server.key", true, &err),
                      "localhost",
                      "TLS: the server demands a certificate, and there is none to show: "
                      "tlsv13 alert certificate required");
    refused_handshake(tls_context(false, "ca.pem", "stranger.pem", "stranger.key", true, &err),
                      tls_context(true, "ca.pem", "server.pem", "server.key", true, &err), "localhost",
                      "TLS: the server refused our certificate: tlsv1 alert unknown ca");
}

/* ---- tests: lost on the way ---------------------------------------------------------------------- */

static void test_lost(bool reset, const char *why)
{
    world *w = plain_world();
    open_link(w);
    call *kept[2] = {call_new("/t/Keep", 100), call_new("/t/Keep", 0)};
    start(w, kept[0]);
    start(w, kept[1]);
    WAIT(w, w->server->n_kept == 2);
    if (reset) {
        struct linger now = {.l_onoff = 1};
        setsockopt(w->server->sock.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    }
    fs_sock_close(&w->server->sock);
    w->server->gone = true;
    WAIT(w, closed(w));
    CHECK_STR(w->link.why.msg, why);
    for (int i = 0; i < 2; i++) {
        check_unavailable(kept[i], why);
        call_free(kept[i]);
    }
    world_free(w);
}

/* The server has answered and gone; the client learns that it has gone by writing, before it has read. */
static void test_an_answer_that_came_counts(bool tls)
{
    world *w = world_new(TCP, tls ? tls_client() : NULL, tls ? tls_server() : NULL, "localhost");
    open_link(w);
    call *kept = call_new("/t/Keep", 300), *other = call_new("/t/Keep", 100);
    call *late = call_new("/t/Echo", 100);
    start(w, kept);
    start(w, other);
    WAIT(w, w->server->n_kept == 2);
    echo(w->server, w->server->kept[0]);
    w->server->kept[0] = NULL;
    server_turn(w->server, w->now_us);
    /* Closed with something unread: the kernel resets. */
    start(w, late);
    static uint8_t buf[ROOM];
    fs_sock_moved moved = {0};
    fs_link_flush(&w->link, buf, ROOM, w->now_us, &moved);
    CHECK(moved.out > 0);
    close(w->server->sock.fd);
    w->server->sock.fd = -1;
    w->server->gone = true;
    struct pollfd fd = {.fd = w->link.sock.fd, .events = POLLIN};
    int64_t until = fs_now_us() + PATIENCE_US;
    while ((fd.revents & (POLLERR | POLLHUP)) == 0 && fs_now_us() < until)
        poll(&fd, 1, 100);
    CHECK((fd.revents & (POLLERR | POLLHUP)) != 0);
    call *last = call_new("/t/Echo", 100);
    start(w, last);
    fs_link_flush(&w->link, buf, ROOM, w->now_us, &moved);
    CHECK(closed(w));
    check_echoed(kept);
    check_unavailable(other, w->link.why.msg);
    check_unavailable(late, w->link.why.msg);
    check_unavailable(last, w->link.why.msg);
    CHECK(strncmp(w->link.why.msg, "the connection was lost: ", 25) == 0);
    call *calls[] = {kept, other, late, last};
    for (int i = 0; i < 4; i++)
        call_free(calls[i]);
    world_free(w);
}

static void test_half_open_is_found_by_ping(void)
{
    world *w = plain_world();
    open_link(w);
    call *kept = call_new("/t/Keep", 100);
    start(w, kept);
    WAIT(w, w->server->n_kept == 1);
    for (int i = 0; i < 5; i++)
        turn(w);
    /* The PING is answered once, */
    w->now_us += KEEPALIVE_US;
    for (int i = 0; i < 20; i++)
        turn(w);
    CHECK(!closed(w));
    /* and from now on by nobody. The tick that was due for the first answer decides when the next is sent. */
    int64_t silent_us = w->now_us;
    while (!closed(w) && w->now_us < silent_us + 20 * (int64_t)KEEPALIVE_US) {
        CHECK(w->link.due_us > w->now_us && w->link.due_us < INT64_MAX);
        w->now_us += 100000;
        link_turn(w);
    }
    CHECK(w->now_us >= silent_us + KEEPALIVE_US + KEEPALIVE_TIMEOUT_US);
    CHECK(w->now_us <= silent_us + KEEPALIVE_US + 2 * KEEPALIVE_TIMEOUT_US);
    CHECK(strstr(w->link.why.msg, "has not answered a PING for 3000 ms") != NULL);
    check_unavailable(kept, w->link.why.msg);
    call_free(kept);
    world_free(w);
}

/* Takes nothing: noticed by the socket, when the PING that would show it is far away. */
static void test_a_server_that_takes_nothing(bool tls)
{
    world *w = world_new(TCP, tls ? tls_client() : NULL, tls ? tls_server() : NULL, "localhost");
    w->limits.keepalive_us = 100 * (int64_t)STALL_TIMEOUT_US;
    open_link(w);
    /* A window beyond what the socket takes. */
    call *first = call_new("/t/Echo", 10);
    start(w, first);
    WAIT(w, first->ended == 1);
    call *kept = call_new("/t/Keep", 10);
    start(w, kept);
    WAIT(w, w->server->n_kept == 1);
    for (int i = 0; i < 5; i++)
        turn(w);
    CHECK(w->link.due_us > w->now_us + STALL_TIMEOUT_US); /* which is the PING's time */
    call *many[12];
    for (int i = 0; i < 12; i++) {
        many[i] = call_new("/t/Echo", BIG);
        start(w, many[i]);
    }
    int small = 4096;
    setsockopt(w->link.sock.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    setsockopt(w->server->sock.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    for (int i = 0; i < 20; i++)
        link_turn(w);
    REQUIRE(!closed(w));
    CHECK(w->link.sock.rest != NULL);
    CHECK(fs_link_wants_write(&w->link));
    CHECK(w->link.due_us <= w->now_us + STALL_TIMEOUT_US);
    w->now_us += STALL_TIMEOUT_US - 1;
    link_turn(w);
    CHECK(!closed(w));
    w->now_us += 1;
    link_turn(w);
    CHECK(closed(w));
    CHECK_STR(w->link.why.msg, "the connection was lost: the server took nothing for 5000 ms");
    check_echoed(first);
    call_free(first);
    check_unavailable(kept, w->link.why.msg);
    call_free(kept);
    for (int i = 0; i < 12; i++) {
        check_unavailable(many[i], w->link.why.msg);
        call_free(many[i]);
    }
    world_free(w);
}

/* Takes a little now and then: is waited for. */
static void test_a_slow_server(bool tls)
{
    world *w = world_new(TCP, tls ? tls_client() : NULL, tls ? tls_server() : NULL, "localhost");
    w->limits.keepalive_us = 0;
    open_link(w);
    int small = 4096;
    setsockopt(w->link.sock.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    call *c = call_new("/t/Echo", 2 << 20);
    start(w, c);
    int64_t until = fs_now_us() + PATIENCE_US;
    int64_t began_us = w->now_us;
    while (c->ended == 0 && fs_now_us() < until) {
        /* The kernel has timers of its own before it sends on: only what moves makes the clock go on. */
        link_turn(w);
        if (w->link.sock.rest != NULL && w->link.sock.full_us == w->now_us)
            w->now_us += STALL_TIMEOUT_US / 2;
        server_turn(w->server, w->now_us);
    }
    CHECK_STR(w->link.why.msg, "");
    check_echoed(c);
    CHECK(w->now_us - began_us > 2 * (int64_t)STALL_TIMEOUT_US);
    call_free(c);
    world_free(w);
}

/* What is to be read may have had to wait for the socket to take bytes: then it is the flush that reads. */
static void test_a_flush_reads_when_reading_waited_to_write(void)
{
    world *w = plain_world();
    open_link(w);
    call *c = call_new("/t/Echo", 100);
    start(w, c);
    static uint8_t buf[ROOM];
    fs_sock_moved moved = {0};
    fs_link_flush(&w->link, buf, ROOM, w->now_us, &moved);
    server_turn(w->server, w->now_us);
    fs_link_flush(&w->link, buf, ROOM, w->now_us, &moved);
    CHECK_EQ(c->ended, 0);
    w->link.sock.read_wants_write = true;
    CHECK(fs_link_wants_write(&w->link));
    fs_link_flush(&w->link, buf, ROOM, w->now_us, &moved);
    check_echoed(c);
    call_free(c);
    world_free(w);
}

/* ---- tests: closing ------------------------------------------------------------------------------ */

static void test_close_tells_the_calls(void)
{
    world *w = plain_world();
    open_link(w);
    call *c = call_new("/t/Keep", 100);
    start(w, c);
    turn(w);
    fs_error why;
    fs_fail(&why, FS_CANCELLED, "enough");
    fs_link_close(&w->link, &why);
    CHECK(closed(w));
    CHECK_EQ(c->ended, 1);
    CHECK_EQ(c->exchange.code, FS_CANCELLED);
    CHECK_STR(c->exchange.error.msg, "enough");
    CHECK_STR(w->link.why.msg, "enough");
    fs_link_close(&w->link, NULL);
    CHECK_STR(w->link.why.msg, "enough");
    CHECK(!fs_link_accepts(&w->link));
    call_free(c);

    CHECK_OK(dial(w));
    c = call_new("/t/Keep", 100);
    WAIT(w, w->link.state == FS_LINK_SETTLING);
    start(w, c);
    fs_link_close(&w->link, NULL);
    check_unavailable(c, "the connection was closed");
    call_free(c);
    world_free(w);
}

static void dial_again(world *w, call *c)
{
    (void)c;
    CHECK(closed(w));
    CHECK(!fs_link_accepts(&w->link));
    w->on_end = NULL;
    CHECK_OK(dial(w));
}

/* From inside on_end the same fs_link may be dialled again. */
static void test_dialling_from_inside(void)
{
    world *w = plain_world();
    open_link(w);
    call *c = call_new("/t/Keep", 100), *again = call_new("/t/Echo", 100);
    start(w, c);
    WAIT(w, w->server->n_kept == 1);
    w->on_end = dial_again;
    fs_sock_close(&w->server->sock);
    w->server->gone = true;
    WAIT(w, c->ended == 1);
    check_unavailable(c, "the connection was lost: the peer closed it");
    server_free(w->server);
    w->server = server_accept(&w->at, NULL, w->slab, w->now_us);
    WAIT(w, w->link.state == FS_LINK_OPEN);
    start(w, again);
    WAIT(w, again->ended == 1);
    check_echoed(again);
    call_free(c);
    call_free(again);
    world_free(w);
}

/* ---- tests: memory ------------------------------------------------------------------------------- */

/* Every allocation of a link's life fails in turn, the server's among them; OpenSSL's own do not. */
static void test_out_of_memory(bool tls)
{
    bool swept = false;
    for (long n = 1; !swept && n < 400; n++) {
        world *w = world_new(TCP, tls ? tls_client() : NULL, tls ? tls_server() : NULL, "localhost");
        w->config.connect_timeout_us = INT64_C(1000000000000);
        call *c = call_new("/t/Echo", 3000000);
        CHECK_OK(dial(w));
        w->server = server_accept(&w->at, w->server_tls, w->slab, w->now_us);
        failmalloc_after(n);
        bool started = false;
        int64_t until = fs_now_us() + PATIENCE_US;
        while (!closed(w) && c->ended == 0 && fs_now_us() < until) {
            turn(w);
            if (!started && fs_link_accepts(&w->link))
                started = fs_h2_client_start(w->link.h2, &c->exchange) == 0;
        }
        failmalloc_after(-1);
        swept = !failmalloc_fired();
        CHECK(closed(w) || c->ended == 1);
        if (c->ended == 1 && c->exchange.code == FS_OK)
            check_echoed(c);
        if (closed(w))
            CHECK(w->link.why.code == FS_RESOURCE_EXHAUSTED || w->link.why.code == FS_UNAVAILABLE);
        CHECK_EQ(c->ended, started ? 1 : 0);
        world_free(w);
        call_free(c);
    }
    CHECK(swept);
}

int main(void)
{
    test_calls_travel(TCP, false, NULL);
    test_calls_travel(UNIX, false, NULL);
    test_calls_travel(TCP, true, "localhost");
    test_calls_travel(UNIX, true, "127.0.0.1");
    test_calls_start_before_the_servers_settings(false);
    test_calls_start_before_the_servers_settings(true);
    test_a_farewell_when_idle_closes();
    test_refused();
    test_black_hole();
    test_silence(false, "the server's HTTP/2 settings: timed out after 1000 ms");
    test_silence(true, "TLS handshake: timed out after 1000 ms");
    test_wrong_servers();
    test_certificates();
    test_lost(false, "the connection was lost: the peer closed it");
    test_lost(true, "the connection was lost: Connection reset by peer");
    test_an_answer_that_came_counts(false);
    test_an_answer_that_came_counts(true);
    test_half_open_is_found_by_ping();
    test_a_server_that_takes_nothing(false);
    test_a_server_that_takes_nothing(true);
    test_a_slow_server(false);
    test_a_slow_server(true);
    test_a_flush_reads_when_reading_waited_to_write();
    test_close_tells_the_calls();
    test_dialling_from_inside();
    test_out_of_memory(false);
    test_out_of_memory(true);
    return check_done();
}
