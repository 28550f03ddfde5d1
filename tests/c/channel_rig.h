/* channel_rig: servers in the same process for the tests of channels: some that answer, and some that do not.
 *
 * Included by tests/c/test_channel.c and tests/stress/stress_channel.c, once in each. A rig_server is an
 * fs_io thread with a handler that echoes, late or never or with an error, and counts; a rig_raw is a
 * listener whose connections are treated badly on purpose. All waiting has a limit. */
#ifndef FS_CHANNEL_RIG_H
#define FS_CHANNEL_RIG_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <nghttp2/nghttp2.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "channel.h"
#include "check.h"
#include "clock.h"
#include "grpc.h"
#include "io.h"
#include "owner.h"

enum { RIG_PATIENCE_US = 20000000 };

/* Waits until `cond`, at most so long. */
#define RIG_WAIT(cond)                                                                             \
    do {                                                                                           \
        int64_t wait_until = fs_now_us() + RIG_PATIENCE_US;                                        \
        while (!(cond) && fs_now_us() < wait_until)                                                \
            poll(NULL, 0, 1);                                                                      \
        CHECK(cond);                                                                               \
    } while (0)

static inline void rig_pause(int64_t us)
{
    struct timespec t = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    while (nanosleep(&t, &t) != 0) {
    }
}

/* ---- a server that speaks the protocol ---------------------------------------------------------- */

typedef struct rig_server rig_server;

typedef struct rig_parcel {
    fs_mail mail; /* first */
    fs_rpc *rpc;
    rig_server *server;
    int64_t due_us;
    struct rig_parcel *next;
} rig_parcel;

struct rig_server {
    fs_io *io;
    fs_budget budget;
    fs_h2_limits limits;
    fs_io_config config;
    int listener, quit;
    uint16_t port; /* stays when the server is started again */
    pthread_t acceptor, clerk;
    bool runs;
    /* How it answers; may be changed at any time. */
    atomic_int fail_next;  /* so many are answered with fail_code, INT_MAX: all */
    atomic_int fail_code;
    atomic_int delay_us;   /* INT_MAX: never, until rig_release */
    atomic_bool frozen;    /* the thread stands still */
    /* What it saw. */
    atomic_long seen, cancelled, accepted;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    rig_parcel *kept;
    bool leaving;
};

static char rig_method;

static void *rig_lookup(void *ctx, const uint8_t *path, size_t len, bool *streaming)
{
    (void)ctx;
    *streaming = false;
    return len == 7 && memcmp(path, "/t/Echo", 7) == 0 ? &rig_method : NULL;
}

static void rig_echo(fs_rpc *rpc, fs_slab *slab)
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

static void rig_deliver(fs_mail *mail)
{
    rig_parcel *p = (rig_parcel *)mail;
    if (p->rpc->h2 != NULL)
        fs_io_touch(p->server->io, p->rpc->conn);
    rig_echo(p->rpc, fs_io_slab(p->server->io));
    free(p);
}

static void rig_on_call(void *ctx, fs_rpc *rpc)
{
    rig_server *s = ctx;
    atomic_fetch_add_explicit(&s->seen, 1, memory_order_relaxed);
    while (atomic_load_explicit(&s->frozen, memory_order_relaxed))
        rig_pause(1000);
    int fail_next = atomic_load_explicit(&s->fail_next, memory_order_relaxed);
    if (fail_next > 0) {
        if (fail_next != INT32_MAX)
            atomic_store_explicit(&s->fail_next, fail_next - 1, memory_order_relaxed);
        fs_rpc_finish(rpc, atomic_load_explicit(&s->fail_code, memory_order_relaxed), "told to", 7, NULL, 0);
        return;
    }
    int delay_us = atomic_load_explicit(&s->delay_us, memory_order_relaxed);
    if (delay_us == 0) {
        rig_echo(rpc, fs_io_slab(s->io));
        return;
    }
    rig_parcel *p = malloc(sizeof *p);
    if (p == NULL) {
        fs_rpc_finish(rpc, FS_RESOURCE_EXHAUSTED, NULL, 0, NULL, 0);
        return;
    }
    *p = (rig_parcel){.mail.deliver = rig_deliver, .rpc = rpc, .server = s};
    p->due_us = delay_us == INT32_MAX ? INT64_MAX : fs_now_us() + delay_us;
    pthread_mutex_lock(&s->lock);
    p->next = s->kept;
    s->kept = p;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void rig_on_cancel(void *ctx, fs_rpc *rpc)
{
    rig_server *s = ctx;
    (void)rpc;
    atomic_fetch_add_explicit(&s->cancelled, 1, memory_order_relaxed);
}

static const fs_h2_handler rig_handler = {
    .lookup = rig_lookup, .on_call = rig_on_call, .on_cancel = rig_on_cancel};

static void rig_on_mail(void *ctx)
{
    rig_server *s = ctx;
    fs_node *node = fs_mailbox_take(fs_io_mailbox(s->io));
    while (node != NULL) {
        fs_node *next = node->next;
        ((fs_mail *)node)->deliver((fs_mail *)node);
        node = next;
    }
}

/* Sends home what is due by `now_us`. With the lock. */
static void rig_send_due(rig_server *s, int64_t now_us)
{
    for (rig_parcel **at = &s->kept; *at != NULL;) {
        rig_parcel *p = *at;
        if (p->due_us > now_us) {
            at = &p->next;
            continue;
        }
        *at = p->next;
        fs_mailbox_post(fs_io_mailbox(s->io), &p->mail.node);
    }
}

/* Answers what was kept for ever, too. */
static inline void rig_release(rig_server *s)
{
    pthread_mutex_lock(&s->lock);
    rig_send_due(s, INT64_MAX);
    pthread_mutex_unlock(&s->lock);
}

static inline long rig_kept(rig_server *s)
{
    long n = 0;
    pthread_mutex_lock(&s->lock);
    for (rig_parcel *p = s->kept; p != NULL; p = p->next)
        n++;
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void *rig_clerk(void *user)
{
    rig_server *s = user;
    pthread_mutex_lock(&s->lock);
    while (!s->leaving) {
        rig_send_due(s, fs_now_us());
        bool soon = false;
        for (rig_parcel *p = s->kept; p != NULL; p = p->next)
            soon |= p->due_us != INT64_MAX;
        if (soon) {
            pthread_mutex_unlock(&s->lock);
            rig_pause(200);
            pthread_mutex_lock(&s->lock);
        } else {
            pthread_cond_wait(&s->changed, &s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void *rig_acceptor(void *user)
{
    rig_server *s = user;
    struct pollfd fds[2] = {{.fd = s->listener, .events = POLLIN}, {.fd = s->quit, .events = POLLIN}};
    while (poll(fds, 2, -1) >= 0 && fds[1].revents == 0) {
        int fd = fds[0].revents != 0 ? accept4(s->listener, NULL, NULL, SOCK_CLOEXEC) : -1;
        if (fd < 0)
            continue;
        atomic_fetch_add_explicit(&s->accepted, 1, memory_order_relaxed);
        if (fs_io_adopt(s->io, fd, NULL, NULL) != 0)
            close(fd);
    }
    return NULL;
}

/* A socket that listens on `port`, any when 0. */
static int rig_listen(uint16_t *port)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons(*port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof addr;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    REQUIRE(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    int64_t until_us = fs_now_us() + RIG_PATIENCE_US;
    while (bind(fd, (struct sockaddr *)&addr, sizeof addr) != 0) {
        REQUIRE(fs_now_us() < until_us); /* a connection of before may hold the port for a moment */
        rig_pause(1000);
    }
    REQUIRE(listen(fd, 64) == 0 && getsockname(fd, (struct sockaddr *)&addr, &len) == 0);
    *port = ntohs(addr.sin_port);
    return fd;
}

static void rig_start(rig_server *s)
{
    s->listener = rig_listen(&s->port);
    s->quit = eventfd(0, EFD_CLOEXEC);
    s->leaving = false;
    s->io = fs_io_new(&s->config);
    REQUIRE(s->io != NULL && s->quit >= 0);
    REQUIRE(fs_io_start(s->io, s) == 0);
    REQUIRE(pthread_create(&s->clerk, NULL, rig_clerk, s) == 0);
    REQUIRE(pthread_create(&s->acceptor, NULL, rig_acceptor, s) == 0);
    s->runs = true;
}

/* Dies: connections are cut, the port refuses. */
static void rig_stop(rig_server *s)
{
    if (!s->runs)
        return;
    s->runs = false;
    uint64_t one = 1;
    REQUIRE(write(s->quit, &one, sizeof one) == sizeof one);
    pthread_join(s->acceptor, NULL);
    close(s->listener);
    pthread_mutex_lock(&s->lock);
    s->leaving = true;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->clerk, NULL);
    fs_io_stop(s->io);
    rig_release(s);
    rig_on_mail(s); /* calls that are cancelled still have to be finished */
    fs_io_free(s->io);
    close(s->quit);
    CHECK_EQ(fs_budget_used(&s->budget), 0);
}

static rig_server *rig_new(void)
{
    rig_server *s = aligned_alloc(64, (sizeof *s + 63) & ~(size_t)63);
    REQUIRE(s != NULL);
    memset(s, 0, sizeof *s);
    s->budget.limit = (size_t)1 << 30;
    s->limits = (fs_h2_limits){
        .max_concurrent_streams = 1000,
        .max_header_bytes = 16384,
        .max_message_bytes = 64 << 20,
        .max_conn_bytes = 256 << 20,
        .window_bytes = 1 << 20,
        .reset_burst = 1000000,
        .reset_per_s = 1000000,
        .chatter_burst = 1000000,
        .chatter_per_s = 1000000,
        .request_timeout_us = 60000000,
        .stall_timeout_us = 60000000,
    };
    s->config = (fs_io_config){.limits = &s->limits,
                               .handler = &rig_handler,
                               .budget = &s->budget,
                               .on_mail = rig_on_mail,
                               .slab_cache_bytes = 16 << 20,
                               .name = "rig-io"};
    atomic_init(&s->fail_code, FS_UNAVAILABLE);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    rig_start(s);
    return s;
}

static void rig_free(rig_server *s)
{
    rig_stop(s);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

#define RIG_SET(server, member, value) atomic_store_explicit(&(server)->member, value, memory_order_relaxed)
#define RIG_GET(server, member) atomic_load_explicit(&(server)->member, memory_order_relaxed)

/* ---- servers that are not what they seem ---------------------------------------------------------- */

enum rig_manner {
    RIG_SILENT,  /* takes connections and says nothing */
    RIG_HANG_UP, /* closes them at once */
    RIG_GARBAGE, /* speaks another protocol */
    RIG_REFUSE,  /* HTTP/2, and REFUSED_STREAM for every call */
};

typedef struct rig_raw {
    enum rig_manner manner;
    int listener, quit;
    uint16_t port;
    pthread_t thread;
    atomic_long accepted, seen;
    int fds[64];
    nghttp2_session *sessions[64];
    int n;
} rig_raw;

static int rig_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    rig_raw *r = user;
    if (frame->hd.type == NGHTTP2_HEADERS) {
        atomic_fetch_add_explicit(&r->seen, 1, memory_order_relaxed);
        nghttp2_submit_rst_stream(session, 0, frame->hd.stream_id, NGHTTP2_REFUSED_STREAM);
    }
    return 0;
}

static void rig_raw_drop(rig_raw *r, int i)
{
    close(r->fds[i]);
    nghttp2_session_del(r->sessions[i]);
    r->n--;
    r->fds[i] = r->fds[r->n];
    r->sessions[i] = r->sessions[r->n];
}

static void rig_raw_accept(rig_raw *r)
{
    int fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return;
    atomic_fetch_add_explicit(&r->accepted, 1, memory_order_relaxed);
    REQUIRE(r->n < 64);
    r->fds[r->n] = fd;
    r->sessions[r->n] = NULL;
    if (r->manner == RIG_REFUSE) {
        nghttp2_session_callbacks *callbacks;
        REQUIRE(nghttp2_session_callbacks_new(&callbacks) == 0);
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, rig_on_frame);
        REQUIRE(nghttp2_session_server_new(&r->sessions[r->n], callbacks, r) == 0);
        nghttp2_session_callbacks_del(callbacks);
        nghttp2_submit_settings(r->sessions[r->n], NGHTTP2_FLAG_NONE, NULL, 0);
    } else if (r->manner == RIG_GARBAGE) {
        static const char words[] = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
        if (write(fd, words, sizeof words - 1) < 0) {
            /* It has gone already. */
        }
    }
    r->n++;
    if (r->manner == RIG_HANG_UP)
        rig_raw_drop(r, r->n - 1);
}

static void rig_raw_read(rig_raw *r, int i)
{
    static _Thread_local uint8_t buf[1 << 16];
    ssize_t n = recv(r->fds[i], buf, sizeof buf, MSG_DONTWAIT);
    nghttp2_session *session = r->sessions[i];
    if (n == 0 || (n > 0 && session != NULL && nghttp2_session_mem_recv(session, buf, (size_t)n) < 0)) {
        rig_raw_drop(r, i);
        return;
    }
    const uint8_t *data;
    ssize_t len;
    while (session != NULL && (len = nghttp2_session_mem_send(session, &data)) > 0) {
        if (send(r->fds[i], data, (size_t)len, MSG_NOSIGNAL) < 0)
            break;
    }
}

static void *rig_raw_run(void *user)
{
    rig_raw *r = user;
    for (;;) {
        struct pollfd fds[66] = {{.fd = r->quit, .events = POLLIN}, {.fd = r->listener, .events = POLLIN}};
        int n = r->n;
        for (int i = 0; i < n; i++)
            fds[2 + i] = (struct pollfd){.fd = r->fds[i], .events = POLLIN};
        poll(fds, (nfds_t)(2 + n), -1);
        if (fds[0].revents != 0)
            break;
        for (int i = n - 1; i >= 0; i--) {
            if (fds[2 + i].revents != 0)
                rig_raw_read(r, i);
        }
        if (fds[1].revents != 0)
            rig_raw_accept(r);
    }
    while (r->n > 0)
        rig_raw_drop(r, 0);
    close(r->listener);
    return NULL;
}

static inline rig_raw *rig_raw_new(enum rig_manner manner)
{
    rig_raw *r = calloc(1, sizeof *r);
    REQUIRE(r != NULL);
    r->manner = manner;
    r->listener = rig_listen(&r->port);
    r->quit = eventfd(0, EFD_CLOEXEC);
    REQUIRE(r->quit >= 0);
    REQUIRE(pthread_create(&r->thread, NULL, rig_raw_run, r) == 0);
    return r;
}

static inline void rig_raw_free(rig_raw *r)
{
    uint64_t one = 1;
    REQUIRE(write(r->quit, &one, sizeof one) == sizeof one);
    pthread_join(r->thread, NULL);
    close(r->quit);
    free(r);
}

/* A port that nobody listens on. */
static inline uint16_t rig_no_port(void)
{
    uint16_t port = 0;
    close(rig_listen(&port));
    return port;
}

/* ---- the channel's side --------------------------------------------------------------------------- */

static fs_endpoint rig_endpoint(uint16_t port)
{
    fs_endpoint e = {.address_len = sizeof(struct sockaddr_in)};
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    memcpy(&e.address, &addr, sizeof addr);
    snprintf(e.name, sizeof e.name, "127.0.0.1:%u", (unsigned)port);
    return e;
}

static fs_channel_config rig_config(void)
{
    return (fs_channel_config){
        .connections = 1,
        .balance = FS_ROUND_ROBIN,
        .max_reply_bytes = 64 << 20,
        .connect_timeout_us = 5000000,
        .stall_timeout_us = 10000000,
        .keepalive_timeout_us = 10000000,
        .reconnect_first_us = 10000,
        .reconnect_max_us = 50000,
        .max_attempts = 1,
        .retry_codes = 1u << FS_UNAVAILABLE,
        .backoff_first_us = 1000,
        .backoff_max_us = 10000,
        .retry_ratio = 0.1,
        .retry_burst = 10,
        .hedge_ratio = 0.1,
        .hedge_burst = 10,
        .eject_us = 100000,
        .eject_at_most = 0.5,
    };
}

static fs_channel *rig_channel(fs_channel_config config, const uint16_t *ports, uint32_t n)
{
    fs_endpoint endpoints[16];
    REQUIRE(n <= 16);
    for (uint32_t i = 0; i < n; i++)
        endpoints[i] = rig_endpoint(ports[i]);
    config.endpoints = endpoints;
    config.n_endpoints = n;
    fs_error err;
    fs_channel *channel = fs_channel_new(&config, &err);
    REQUIRE(channel != NULL);
    return channel;
}

/* A call with a message of its own. */
typedef struct rig_call {
    fs_channel_call call; /* first */
    fs_slice pieces[2];
    uint8_t body[16];
    uint8_t *large;
    _Atomic int done;     /* how often on_done was called */
} rig_call;

static void rig_on_done(fs_channel_call *call)
{
    /* release: pairs with the acquire of who looks at the result. */
    atomic_fetch_add_explicit(&((rig_call *)call)->done, 1, memory_order_release);
}

/* `timeout_us` 0: no deadline. */
static void rig_call_set(rig_call *c, uint64_t number, int64_t timeout_us)
{
    memset(c, 0, sizeof *c);
    memcpy(c->body, &number, sizeof number);
    memcpy(c->body + 8, "abcdefgh", 8);
    c->pieces[0] = (fs_slice){c->body, 5};
    c->pieces[1] = (fs_slice){c->body + 5, 11};
    c->call.path = (fs_slice){(const uint8_t *)"/t/Echo", 7};
    c->call.pieces = c->pieces;
    c->call.n_pieces = 2;
    c->call.message_bytes = 16;
    c->call.deadline_us = timeout_us == 0 ? INT64_MAX : fs_now_us() + timeout_us;
    c->call.on_done = rig_on_done;
}

static bool rig_echoed(const rig_call *c)
{
    return c->call.code == FS_OK && c->call.reply_bytes == 16 && memcmp(c->call.reply, c->body, 16) == 0;
}

static inline int rig_end(rig_call *c)
{
    CHECK_EQ(atomic_load_explicit(&c->done, memory_order_acquire), 1);
    if (c->call.code == FS_OK)
        CHECK(rig_echoed(c));
    else
        CHECK(c->call.reply == NULL && c->call.error.len > 0 && c->call.error.code == c->call.code);
    fs_slab_free(c->call.reply);
    c->call.reply = NULL;
    return c->call.code;
}

/* Makes a call and waits for it. Its code. */
static inline int rig_make(fs_channel *channel, rig_call *c, int64_t timeout_us)
{
    static atomic_ulong numbers;
    rig_call_set(c, atomic_fetch_add_explicit(&numbers, 1, memory_order_relaxed), timeout_us);
    fs_channel_start(channel, &c->call);
    if (!fs_channel_wait(channel, &c->call, fs_now_us() + RIG_PATIENCE_US)) {
        CHECK(!"the call ends");
        fs_channel_cancel(channel, &c->call);
        return -1;
    }
    return rig_end(c);
}

static inline bool rig_says(const rig_call *c, const char *text)
{
    bool says = strstr(c->call.error.msg, text) != NULL;
    if (!says)
        fprintf(stderr, "  it says: %s\n", c->call.error.msg);
    return says;
}

#endif
