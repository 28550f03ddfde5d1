/* io and conn: a real thread on real sockets, against nghttp2's client. Each wait has a limit. */
#include "io.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "failmalloc.h"
#include "h2_peer.h"
#include "owner.h"

enum { PATIENCE_US = 20000000 };

static char echo_method, away_method, keep_method;

/* A call on its way to the other thread and back. */
typedef struct parcel {
    fs_mail mail; /* first */
    fs_rpc *rpc;
    struct world *world;
} parcel;

typedef struct world {
    fs_io *io;
    fs_budget budget;
    fs_h2_limits limits;
    fs_io_config config;
    fs_mailbox away;    /* to the executor */
    atomic_bool quit;
    pthread_t executor;
    _Atomic(fs_rpc *) kept[64]; /* calls of "/t/Keep": the test mails them back */
    atomic_int n_kept, cancelled, emptied;
} world;

static void *on_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    *streaming = false;
    if (len != 7)
        return NULL;
    return memcmp(path, "/t/Echo", 7) == 0   ? &echo_method
           : memcmp(path, "/t/Away", 7) == 0 ? &away_method
           : memcmp(path, "/t/Keep", 7) == 0 ? &keep_method
                                             : NULL;
}

static void echo(fs_rpc *rpc, fs_slab *slab)
{
    uint8_t *frame = fs_slab_alloc(slab, rpc->message_len + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL) {
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, NULL, 0, NULL, 0);
        return;
    }
    fs_grpc_prefix_write(frame, false, (uint32_t)rpc->message_len);
    memcpy(frame + FS_GRPC_PREFIX_BYTES, rpc->message, rpc->message_len);
    fs_rpc_finish(rpc, FS_OK, NULL, 0, frame, rpc->message_len + FS_GRPC_PREFIX_BYTES);
}

/* Back on the io thread. */
static void deliver(fs_mail *mail)
{
    parcel *p = (parcel *)mail;
    if (p->rpc->h2 != NULL)
        fs_io_touch(p->world->io, p->rpc->conn);
    echo(p->rpc, fs_io_slab(p->world->io));
    free(p);
}

static void send_home(world *w, fs_rpc *rpc)
{
    parcel *p = malloc(sizeof *p);
    REQUIRE(p != NULL);
    *p = (parcel){.mail.deliver = deliver, .rpc = rpc, .world = w};
    fs_mailbox_post(fs_io_mailbox(w->io), &p->mail.node);
}

static void on_call(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    if (rpc->method == &echo_method) {
        echo(rpc, fs_io_slab(w->io));
    } else if (rpc->method == &away_method) {
        parcel *p = malloc(sizeof *p);
        REQUIRE(p != NULL);
        *p = (parcel){.mail.deliver = deliver, .rpc = rpc, .world = w};
        fs_mailbox_post(&w->away, &p->mail.node);
    } else {
        int n = atomic_load_explicit(&w->n_kept, memory_order_relaxed);
        REQUIRE(n < 64);
        atomic_store_explicit(&w->kept[n], rpc, memory_order_relaxed);
        /* release: pairs with the test's acquire in wait_kept. */
        atomic_store_explicit(&w->n_kept, n + 1, memory_order_release);
    }
}

static void on_cancel(void *ctx, fs_rpc *rpc)
{
    world *w = ctx;
    (void)rpc;
    atomic_fetch_add_explicit(&w->cancelled, 1, memory_order_relaxed);
}

static const fs_h2_handler handler = {.lookup = on_lookup, .on_call = on_call, .on_cancel = on_cancel};

static void on_mail(void *ctx)
{
    world *w = ctx;
    fs_node *node = fs_mailbox_take(fs_io_mailbox(w->io));
    while (node != NULL) {
        fs_node *next = node->next;
        ((fs_mail *)node)->deliver((fs_mail *)node);
        node = next;
    }
}

static void on_empty(void *ctx)
{
    world *w = ctx;
    atomic_fetch_add_explicit(&w->emptied, 1, memory_order_relaxed);
}

/* Stands for the executors: takes calls and mails them home. */
static void *executor(void *user)
{
    world *w = user;
    struct pollfd poll_fd = {.fd = w->away.fd, .events = POLLIN};
    while (!atomic_load_explicit(&w->quit, memory_order_relaxed)) {
        poll(&poll_fd, 1, 1000);
        fs_node *node = fs_mailbox_take(&w->away);
        while (node != NULL) {
            fs_node *next = node->next;
            fs_mailbox_post(fs_io_mailbox(w->io), node);
            node = next;
        }
    }
    return NULL;
}

static const fs_h2_limits usual = {
    .max_concurrent_streams = 1000,
    .max_header_bytes = 16384,
    .max_message_bytes = 64 << 20,
    .max_conn_bytes = 256 << 20,
    .window_bytes = 1 << 20,
    .reset_burst = 1000,
    .reset_per_s = 100,
    .chatter_burst = 1000,
    .chatter_per_s = 100,
    .request_timeout_us = 60000000,
    .stall_timeout_us = 60000000,
};

static world *world_new(const fs_h2_limits *limits)
{
    world *w = aligned_alloc(64, (sizeof *w + 63) & ~(size_t)63);
    REQUIRE(w != NULL);
    memset(w, 0, sizeof *w);
    w->budget.limit = 1 << 30;
    w->limits = *limits;
    w->config = (fs_io_config){.limits = &w->limits,
                               .handler = &handler,
                               .budget = &w->budget,
                               .on_mail = on_mail,
                               .on_empty = on_empty,
                               .slab_cache_bytes = 16 << 20,
                               .name = "test-io"};
    REQUIRE(fs_mailbox_open(&w->away) == 0);
    w->io = fs_io_new(&w->config);
    REQUIRE(w->io != NULL);
    REQUIRE(pthread_create(&w->executor, NULL, executor, w) == 0);
    REQUIRE(fs_io_start(w->io, w) == 0);
    return w;
}

static size_t used(world *w)
{
    return atomic_load_explicit(&w->budget.used, memory_order_relaxed);
}

/* Waits until `cond`, at most PATIENCE_US. */
#define WAIT(cond)                                                                                 \
    do {                                                                                           \
        int64_t wait_until = fs_now_us() + PATIENCE_US;                                            \
        while (!(cond) && fs_now_us() < wait_until)                                                \
            poll(NULL, 0, 1);                                                                      \
        CHECK(cond);                                                                               \
    } while (0)

static void world_free(world *w)
{
    fs_io_stop(w->io);
    atomic_store_explicit(&w->quit, true, memory_order_relaxed);
    uint64_t one = 1;
    REQUIRE(write(w->away.fd, &one, sizeof one) == sizeof one);
    pthread_join(w->executor, NULL);
    on_mail(w); /* what came after the thread's last turn */
    fs_io_stats stats = fs_io_read(w->io);
    CHECK_EQ(stats.connections, 0);
    CHECK_EQ(stats.closed, stats.accepted);
    CHECK_EQ(stats.calls, 0);
    CHECK(stats.cpu_us >= 0);
    CHECK_EQ(w->emptied, 1); /* once, whether it was drained before or not */
    CHECK_EQ(used(w), 0);
    fs_io_free(w->io);
    fs_mailbox_close(&w->away);
    free(w);
}

/* ---- a client on a socket ---------------------------------------------------------------------- */

typedef struct client {
    peer *peer;
    int fd;
    bool eof;
} client;

static client client_new(world *w, bool tcp)
{
    int fds[2];
    if (tcp) {
        struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t len = sizeof addr;
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        REQUIRE(listener >= 0 && bind(listener, (struct sockaddr *)&addr, sizeof addr) == 0 &&
                listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&addr, &len) == 0);
        fds[0] = socket(AF_INET, SOCK_STREAM, 0);
        REQUIRE(fds[0] >= 0 && connect(fds[0], (struct sockaddr *)&addr, len) == 0);
        fds[1] = accept(listener, NULL, NULL);
        REQUIRE(fds[1] >= 0);
        close(listener);
    } else {
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    }
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    CHECK_OK(fs_io_adopt(w->io, fds[1], NULL, NULL));
    return (client){.peer = peer_new(NULL, 1 << 20), .fd = fds[0]};
}

static void client_free(client *c)
{
    if (c->fd >= 0)
        close(c->fd);
    peer_free(c->peer);
}

/* Writes all that the client has to say; reads while the server is slow to take it. */
static void client_read(client *c, int wait_ms)
{
    static uint8_t buf[1 << 16];
    struct pollfd poll_fd = {.fd = c->fd, .events = POLLIN};
    poll(&poll_fd, 1, wait_ms);
    ssize_t n = recv(c->fd, buf, sizeof buf, MSG_DONTWAIT);
    if (n > 0)
        CHECK_EQ(nghttp2_session_mem_recv(c->peer->client, buf, (size_t)n), n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        c->eof = true;
}

static void client_write(client *c)
{
    const uint8_t *data;
    ssize_t n;
    while (!c->eof && (n = nghttp2_session_mem_send(c->peer->client, &data)) > 0) {
        for (ssize_t at = 0; at < n && !c->eof;) {
            ssize_t took = send(c->fd, data + at, (size_t)(n - at), MSG_NOSIGNAL | MSG_DONTWAIT);
            if (took > 0)
                at += took;
            else if (took < 0 && errno == EAGAIN)
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

static bool all_closed(const client *c)
{
    for (int i = 0; i < c->peer->n_calls; i++) {
        if (!c->peer->calls[i].closed)
            return false;
    }
    return true;
}

/* acquire: pairs with on_call's release. */
#define WAIT_KEPT(w, n) WAIT(atomic_load_explicit(&(w)->n_kept, memory_order_acquire) == (n))

/* ---- tests ---------------------------------------------------------------------------------------- */

static void test_echo(bool tcp)
{
    world *w = world_new(&usual);
    client clients[8];
    size_t len;
    uint8_t *frame = peer_frame(5000, 3, &len);
    for (int i = 0; i < 8; i++)
        clients[i] = client_new(w, tcp);
    for (int i = 0; i < 8; i++) {
        for (int j = 0; j < 50; j++)
            peer_submit(
                clients[i].peer,
                (peer_request){.path = j % 2 == 0 ? "/t/Away" : "/t/Echo", .up = frame, .up_len = len});
        client_write(&clients[i]);
    }
    for (int i = 0; i < 8; i++) {
        CLIENT_WAIT(&clients[i], all_closed(&clients[i]));
        for (int j = 0; j < 50; j++) {
            peer_call *c = &clients[i].peer->calls[j];
            CHECK_STR(c->grpc_status, "0");
            CHECK_EQ(c->body_len, len);
            CHECK_MEM(c->body, frame, len);
        }
    }
    /* What was written in a turn is counted at its end, when the client may have it already. */
    WAIT(fs_io_read(w->io).bytes_out > 8 * 50 * len);
    fs_io_stats stats = fs_io_read(w->io);
    CHECK_EQ(stats.accepted, 8);
    CHECK_EQ(stats.connections, 8);
    CHECK(stats.bytes_in > 8 * 50 * len);
    CHECK(stats.cpu_us > 0);
    for (int i = 0; i < 8; i++)
        client_free(&clients[i]);
    WAIT(fs_io_read(w->io).connections == 0);
    free(frame);
    world_free(w);
}

static void test_large_message_to_a_slow_reader(void)
{
    world *w = world_new(&usual);
    client c = client_new(w, false), other = client_new(w, false);
    size_t len, small_len;
    uint8_t *frame = peer_frame(20 << 20, 3, &len), *small = peer_frame(100, 3, &small_len);
    /* A window larger than the socket's buffer, so that the socket fills before the window does. */
    nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 64 << 20};
    nghttp2_submit_settings(c.peer->client, 0, &window, 1);
    nghttp2_session_set_local_window_size(c.peer->client, 0, 0, 64 << 20);
    peer_call *big = peer_submit(c.peer, (peer_request){.path = "/t/Away", .up = frame, .up_len = len});
    int64_t until = fs_now_us() + PATIENCE_US;
    while (big->up_at < len && fs_now_us() < until) {
        client_write(&c);
        if (big->up_at < len)
            client_read(&c, 10);
    }
    CHECK_EQ(big->up_at, len);
    /* The other one does not notice that nobody reads here. */
    peer_call *little =
        peer_submit(other.peer, (peer_request){.path = "/t/Away", .up = small, .up_len = small_len});
    CLIENT_WAIT(&other, little->closed);
    CHECK_STR(little->grpc_status, "0");
    CLIENT_WAIT(&c, big->closed);
    CHECK_STR(big->grpc_status, "0");
    CHECK_EQ(big->body_len, len);
    CHECK_MEM(big->body, frame, len);
    client_free(&c);
    client_free(&other);
    free(frame);
    free(small);
    world_free(w);
}

static void test_drain(void)
{
    world *w = world_new(&usual);
    client busy = client_new(w, false), idle = client_new(w, true);
    size_t len;
    uint8_t *frame = peer_frame(100, 3, &len);
    peer_call *kept = peer_submit(busy.peer, (peer_request){.path = "/t/Keep", .up = frame, .up_len = len});
    client_write(&busy);
    WAIT_KEPT(w, 1);
    CHECK_OK(fs_io_drain(w->io, FS_IO_NOTICE));
    CLIENT_WAIT(&busy, busy.peer->goaways == 1);
    CLIENT_WAIT(&idle, idle.peer->goaways == 1);
    CHECK_EQ(busy.peer->last_stream_id, INT32_MAX);
    /* nghttp2's client opens no stream after a GOAWAY, whatever it says; the call that is there goes on. */
    client late = client_new(w, false); /* a connection made in the meantime learns of it, too */
    CLIENT_WAIT(&late, late.peer->goaways == 1);
    CHECK_OK(fs_io_drain(w->io, FS_IO_SHUTDOWN));
    CLIENT_WAIT(&idle, idle.eof);
    CLIENT_WAIT(&late, late.eof);
    CLIENT_WAIT(&busy, busy.peer->goaways == 2);
    CHECK_EQ(busy.peer->last_stream_id, kept->id);
    CHECK(!kept->closed);
    WAIT(fs_io_read(w->io).connections == 1);
    CHECK_EQ(fs_io_read(w->io).calls, 1);
    CHECK_EQ(w->emptied, 0);
    send_home(w, w->kept[0]);
    CLIENT_WAIT(&busy, busy.eof);
    CHECK(kept->closed);
    CHECK_STR(kept->grpc_status, "0");
    CHECK_EQ(kept->body_len, len);
    client_free(&busy);
    client_free(&idle);
    client_free(&late);
    WAIT(w->emptied == 1);
    CHECK_EQ(fs_io_read(w->io).connections, 0);
    free(frame);
    world_free(w);
}

static void test_client_vanishes(void)
{
    world *w = world_new(&usual);
    client c = client_new(w, true), other = client_new(w, true);
    size_t len;
    uint8_t *frame = peer_frame(100, 3, &len);
    for (int i = 0; i < 10; i++)
        peer_submit(c.peer, (peer_request){.path = "/t/Keep", .up = frame, .up_len = len});
    client_write(&c);
    WAIT_KEPT(w, 10);
    client_free(&c);
    WAIT(atomic_load_explicit(&w->cancelled, memory_order_relaxed) == 10);
    WAIT(fs_io_read(w->io).connections == 1);
    CHECK(used(w) > 0); /* the calls are still out */
    for (int i = 0; i < 10; i++)
        send_home(w, w->kept[i]);
    WAIT(used(w) == 0);
    peer_call *good = peer_submit(other.peer, (peer_request){.path = "/t/Echo", .up = frame, .up_len = len});
    CLIENT_WAIT(&other, good->closed);
    CHECK_STR(good->grpc_status, "0");
    client_free(&other);
    free(frame);
    world_free(w);
}

static void test_garbage(void)
{
    world *w = world_new(&usual);
    client c = client_new(w, true);
    static const char garbage[] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    CHECK_EQ(send(c.fd, garbage, sizeof garbage - 1, 0), sizeof garbage - 1);
    /* nghttp2's client has sent nothing, so it takes SETTINGS and GOAWAY as they come. */
    int64_t until = fs_now_us() + PATIENCE_US;
    while (!c.eof && fs_now_us() < until)
        client_read(&c, 10);
    CHECK(c.eof);
    CHECK_EQ(c.peer->goaways, 1);
    CHECK_EQ(c.peer->goaway_code, NGHTTP2_PROTOCOL_ERROR);
    client_free(&c);
    WAIT(fs_io_read(w->io).connections == 0);
    world_free(w);
}

static void test_peer_that_does_not_hang_up_is_closed(void)
{
    world *w = world_new(&usual);
    client c = client_new(w, true);
    CHECK_EQ(send(c.fd, "garbage garbage garbage garbage", 31, 0), 31);
    WAIT(fs_io_read(w->io).connections == 0); /* after FS_CONN_LINGER_US */
    client_free(&c);
    world_free(w);
}

static void test_request_timeout(void)
{
    fs_h2_limits limits = usual;
    limits.request_timeout_us = 100000;
    world *w = world_new(&limits);
    client c = client_new(w, false);
    peer_call *slow = peer_submit(c.peer, (peer_request){.path = "/t/Echo", .open = true});
    CLIENT_WAIT(&c, slow->closed);
    CHECK_STR(slow->grpc_status, "4");
    client_free(&c);
    world_free(w);
}

static void test_reader_that_stalls_is_cut_off(bool socket_full)
{
    fs_h2_limits limits = usual;
    limits.stall_timeout_us = 300000;
    world *w = world_new(&limits);
    client c = client_new(w, false);
    size_t len;
    uint8_t *frame = peer_frame(8 << 20, 3, &len);
    if (socket_full) {
        nghttp2_settings_entry window = {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 64 << 20};
        nghttp2_submit_settings(c.peer->client, 0, &window, 1);
        nghttp2_session_set_local_window_size(c.peer->client, 0, 0, 64 << 20);
    }
    peer_call *big = peer_submit(c.peer, (peer_request){.path = "/t/Keep", .up = frame, .up_len = len});
    CLIENT_WAIT(&c, big->up_at == len);
    WAIT_KEPT(w, 1);
    send_home(w, w->kept[0]);
    WAIT(fs_io_read(w->io).connections == 0); /* nobody reads */
    WAIT(used(w) == 0);
    client_free(&c);
    free(frame);
    world_free(w);
}

static void test_stop_with_calls_out(void)
{
    world *w = world_new(&usual);
    client c = client_new(w, false);
    size_t len;
    uint8_t *frame = peer_frame(100, 3, &len);
    for (int i = 0; i < 5; i++)
        peer_submit(c.peer, (peer_request){.path = "/t/Keep", .up = frame, .up_len = len});
    client_write(&c);
    WAIT_KEPT(w, 5);
    fs_io_stop(w->io);
    CHECK_EQ(w->cancelled, 5);
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK_OK(fs_io_adopt(w->io, fds[1], NULL, NULL)); /* too late: fs_io_free closes it */
    for (int i = 0; i < 5; i++)
        send_home(w, w->kept[i]);
    CLIENT_WAIT(&c, c.eof);
    client_free(&c);
    free(frame);
    world_free(w);
    char byte;
    CHECK_EQ(read(fds[0], &byte, 1), 0);
    close(fds[0]);
}

static void test_many_connections_come_and_go(void)
{
    world *w = world_new(&usual);
    size_t len;
    uint8_t *frame = peer_frame(100, 3, &len);
    for (int i = 0; i < 300; i++) {
        client c = client_new(w, i % 2 == 0);
        peer_call *call = peer_submit(c.peer, (peer_request){.path = "/t/Away", .up = frame, .up_len = len});
        if (i % 3 != 0)
            CLIENT_WAIT(&c, call->closed);
        else
            client_write(&c);
        client_free(&c);
    }
    WAIT(fs_io_read(w->io).connections == 0);
    CHECK_EQ(fs_io_read(w->io).accepted, 300);
    free(frame);
    world_free(w);
}

static void test_out_of_memory(void)
{
    world *w = world_new(&usual);
    for (long n = 0;; n++) {
        failmalloc_after(n);
        fs_io *io = fs_io_new(&w->config);
        failmalloc_after(-1);
        if (io != NULL)
            fs_io_free(io);
        if (!failmalloc_fired())
            break;
        CHECK(n == 0 || io == NULL);
    }
    int fd = open("/dev/null", O_RDONLY);
    failmalloc_after(1);
    CHECK_EQ(fs_io_adopt(w->io, fd, NULL, NULL), -FS_RESOURCE_EXHAUSTED);
    failmalloc_after(1);
    CHECK_EQ(fs_io_drain(w->io, FS_IO_NOTICE), -FS_RESOURCE_EXHAUSTED);
    failmalloc_after(-1);
    CHECK(close(fd) == 0); /* still ours */
    world_free(w);
}

int main(void)
{
    test_echo(false);
    test_echo(true);
    test_large_message_to_a_slow_reader();
    test_drain();
    test_client_vanishes();
    test_garbage();
    test_peer_that_does_not_hang_up_is_closed();
    test_request_timeout();
    test_reader_that_stalls_is_cut_off(false);
    test_reader_that_stalls_is_cut_off(true);
    test_stop_with_calls_out();
    test_many_connections_come_and_go();
    test_out_of_memory();
    return check_done();
}
