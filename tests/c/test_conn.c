/* conn: one connection without a loop, driven by hand: what TLS holds back, what ends in time, what fails. */
#include "conn.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "failmalloc.h"
#include "h2_peer.h"
#include "tls_rig.h"

enum { TIMEOUT_US = 1000000, ROOM = 1 << 17 };

static char echo_method;

typedef struct world {
    fs_slab *slab;
    fs_budget budget;
    fs_h2_limits limits;
    fs_conn_config config;
    fs_conn conn;
    fs_sock_moved moved;
    fs_tls_context *server;
    /* The client. */
    int fd;
    fs_tls *tls;
    peer *peer;
} world;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    (void)path;
    (void)len;
    *streaming = false;
    return &echo_method;
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    CHECK(rpc->conn == w);
    uint8_t *frame = fs_slab_alloc(w->slab, rpc->message_len + FS_GRPC_PREFIX_BYTES);
    REQUIRE(frame != NULL);
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

/* The server's end is opened by the test; it is returned. */
static int world_new(world *w, bool tls)
{
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    *w = (world){.slab = fs_slab_new(0),
                 .budget.limit = 1 << 30,
                 .limits = {.max_concurrent_streams = 100,
                            .max_header_bytes = 16384,
                            .max_message_bytes = 16 << 20,
                            .max_conn_bytes = 64 << 20,
                            .window_bytes = 4 << 20,
                            .reset_burst = 100,
                            .reset_per_s = 10,
                            .chatter_burst = 100,
                            .chatter_per_s = 10,
                            .request_timeout_us = 60000000},
                 .fd = fds[0],
                 .server = tls ? tls_server() : NULL};
    REQUIRE(w->slab != NULL);
    w->config = (fs_conn_config){&w->limits, &handler, &w->budget, w->slab, TIMEOUT_US};
    w->peer = peer_new(NULL, 4 << 20);
    if (tls) {
        fs_tls_context *client = tls_client();
        w->tls = fs_tls_new(client, w->fd, "localhost");
        fs_tls_context_unref(client);
        REQUIRE(w->tls != NULL);
    }
    return fds[1];
}

static void world_free(world *w)
{
    fs_conn_close(&w->conn);
    CHECK_EQ(fs_budget_used(&w->budget), 0);
    fs_tls_free(w->tls);
    close(w->fd);
    peer_free(w->peer);
    fs_tls_context_unref(w->server);
    fs_slab_release(w->slab);
}

static void open_conn(world *w, int fd)
{
    CHECK_OK(fs_conn_open(&w->conn, &w->config, fd, w->server, w, w, 0));
    CHECK_EQ(w->conn.state, w->server != NULL ? FS_CONN_SHAKING : FS_CONN_OPEN);
}

/* What the server reads at once is `room`. */
static void serve(world *w, size_t room)
{
    static uint8_t buf[ROOM];
    fs_conn_read(&w->conn, buf, room, 0, &w->moved);
    fs_conn_flush(&w->conn, buf, ROOM, 0, &w->moved);
}

static void shake(world *w)
{
    fs_error err;
    int client = FS_TLS_WANTS_READ;
    for (int i = 0; i < 100 && (client > 0 || w->conn.state == FS_CONN_SHAKING); i++) {
        if (client > 0)
            client = fs_tls_handshake(w->tls, &err);
        serve(w, ROOM);
    }
    CHECK_EQ(client, FS_TLS_DONE);
    CHECK_EQ(w->conn.state, FS_CONN_OPEN);
}

/* The client says what it can, and hears what there is. */
static void client_turn(world *w)
{
    static uint8_t left[8 << 20], buf[1 << 16];
    static size_t n_left;
    enum fs_tls_want want;
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(w->peer->client, &data)) > 0) {
        REQUIRE(n_left + (size_t)n <= sizeof left);
        memcpy(left + n_left, data, (size_t)n);
        n_left += (size_t)n;
    }
    int64_t took = n_left > 0 ? fs_tls_write(w->tls, left, n_left, &want) : 0;
    REQUIRE(took >= 0);
    n_left -= (size_t)took;
    memmove(left, left + took, n_left);
    int64_t got = fs_tls_read(w->tls, buf, sizeof buf, &want);
    REQUIRE(got >= 0);
    if (got > 0)
        CHECK_EQ(nghttp2_session_mem_recv(w->peer->client, buf, (size_t)got), got);
}

/* The socket is empty long before TLS is: conn says so itself. */
static void test_what_tls_holds_back_is_not_forgotten(void)
{
    world w;
    open_conn(&w, world_new(&w, true));
    shake(&w);
    size_t len;
    uint8_t *frame = peer_frame(2 << 20, 7, &len);
    peer_call *call = peer_submit(w.peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    int unread = 0, unread_alone = 0;
    for (int i = 0; i < 100000 && !call->closed; i++) {
        client_turn(&w);
        serve(&w, 1000);
        while (w.conn.unread) {
            char byte;
            unread++;
            unread_alone += recv(w.conn.sock.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
            serve(&w, 1000);
        }
    }
    CHECK(call->closed);
    CHECK_STR(call->grpc_status, "0");
    CHECK_EQ(call->body_len, len);
    CHECK_MEM(call->body, frame, len);
    CHECK(unread > 10 && unread_alone > 10);
    free(frame);
    world_free(&w);
}

static void test_a_handshake_has_its_time(void)
{
    world w;
    open_conn(&w, world_new(&w, true));
    serve(&w, ROOM);
    fs_conn_tick(&w.conn, TIMEOUT_US - 1);
    CHECK_EQ(w.conn.state, FS_CONN_SHAKING);
    CHECK_EQ(w.conn.due_us, TIMEOUT_US);
    CHECK(w.conn.refused == NULL);
    CHECK(fs_conn_wants_read(&w.conn) && !fs_conn_wants_write(&w.conn));
    fs_conn_tick(&w.conn, TIMEOUT_US);
    CHECK_EQ(w.conn.state, FS_CONN_CLOSED);
    CHECK_STR(w.conn.refused, "the client took too long over the handshake");
    world_free(&w);
}

/* The alert is read, whatever the client has said behind its back; then it has a second to hang up. */
static void test_a_refused_peer_has_time_to_hear_of_it(void)
{
    world w;
    open_conn(&w, world_new(&w, true));
    CHECK_EQ(send(w.fd, "\x16\x03\x01\x00\x05hello", 10, 0), 10); /* a record that is no handshake */
    serve(&w, ROOM);
    CHECK_EQ(w.conn.state, FS_CONN_LINGERING);
    CHECK(w.conn.refused != NULL && w.conn.refused[0] != '\0');
    CHECK_EQ(send(w.fd, "and more of it", 14, MSG_NOSIGNAL), 14);
    serve(&w, ROOM);
    CHECK_EQ(w.conn.state, FS_CONN_LINGERING);
    uint8_t alert[64] = {0};
    CHECK(recv(w.fd, alert, sizeof alert, 0) >= 7);
    CHECK_EQ(alert[0], 21); /* TLS's record of that kind */
    CHECK_EQ(recv(w.fd, alert, sizeof alert, 0), 0);
    fs_conn_tick(&w.conn, FS_CONN_LINGER_US - 1);
    CHECK_EQ(w.conn.state, FS_CONN_LINGERING);
    shutdown(w.fd, SHUT_WR);
    serve(&w, ROOM);
    CHECK_EQ(w.conn.state, FS_CONN_CLOSED);
    world_free(&w);
}

static void test_opening_without_memory(void)
{
    for (int tls = 0; tls < 2; tls++) {
        world w;
        int fd = world_new(&w, tls != 0);
        long n = 1;
        for (;; n++) {
            failmalloc_after(n);
            int rc = fs_conn_open(&w.conn, &w.config, fd, w.server, &w, &w, 0);
            failmalloc_after(-1);
            if (!failmalloc_fired()) {
                CHECK_OK(rc);
                break;
            }
            CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
            CHECK(fcntl(fd, F_GETFD) >= 0); /* still ours */
        }
        CHECK(n > 2);
        world_free(&w);
    }
}

int main(void)
{
    test_what_tls_holds_back_is_not_forgotten();
    test_a_handshake_has_its_time();
    test_a_refused_peer_has_time_to_hear_of_it();
    test_opening_without_memory();
    return check_done();
}
