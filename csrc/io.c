/* io: see io.h.
 *
 * Each turn of the loop: read from every socket that has something, deliver the mail, then write each
 * connection that was touched by either, once. Connections are closed in that last step only, so nothing
 * earlier in the turn can hold one that is gone. Level-triggered: a socket that has more is simply found
 * again. */
#include "io.h"

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "clock.h"
#include "conn.h"

enum {
    EVENTS = 128,
    BUFFER_BYTES = 256 << 10,
    TICK_MS = 250,         /* how late a time-out may be noticed */
    TRIM_US = 2000000,     /* how often memory is given back */
    KEEP_BYTES = 4 << 20,  /* of free blocks, which are kept whether they are needed or not */
};

typedef struct member {
    fs_conn conn; /* first: epoll, rpc->conn and the list of touched ones all point here */
    struct member *prev, *next;
    struct member *next_touched;
    bool touched;
    union {
        struct sockaddr any;
        struct sockaddr_in6 room; /* the largest that has a name */
    } peer;          /* with TLS; asked for at once, for who has gone is nobody any more */
    uint32_t events; /* what epoll watches */
    uint32_t calls;  /* how many of the thread's calls are counted as its own */
} member;

/* An order from another thread. malloc's, for the slab is the io thread's. */
typedef struct order {
    fs_node node; /* first */
    enum { ADOPT, DRAIN, STOP } kind;
    int value; /* descriptor or step */
    fs_tls_context *tls; /* ADOPT: a reference, or NULL */
    void *ctx;           /*   and the handler's */
} order;

struct fs_io {
    fs_io_config config;
    fs_conn_config conns;
    void *ctx;
    int epoll;
    fs_mailbox mail;
    fs_mailbox orders;
    fs_slab *slab;
    uint8_t *in, *out;
    member *members;
    member *touched;
    int64_t now_us;
    int64_t ticked_us, trimmed_us;
    int step; /* enum fs_io_drain_step, 0 before */
    bool stopping;
    bool unread; /* some connection has more to be read than epoll knows of */
    bool told_empty;
    bool started;
    order last_order; /* STOP: must not fail for want of memory */
    pthread_t thread;
    clockid_t cpu_clock;
    /* Written by the io thread, read by any; relaxed, since nothing hangs on them. */
    atomic_uint_fast64_t accepted, closed, calls, bytes_in, bytes_out, wakes;
    atomic_int_fast64_t final_cpu_us; /* once the thread is gone; -1 before */
};

static void add(atomic_uint_fast64_t *counter, uint64_t n)
{
    uint64_t now = atomic_load_explicit(counter, memory_order_relaxed) + n;
    atomic_store_explicit(counter, now, memory_order_relaxed);
}

static void add_closed(fs_io *io)
{
    /* release: pairs with the acquire in fs_io_read, so that nobody sees more closed than accepted. */
    atomic_store_explicit(&io->closed, atomic_load_explicit(&io->closed, memory_order_relaxed) + 1,
                          memory_order_release);
}

/* ---- connections ---------------------------------------------------------------------------- */

/* Notes that a connection is to be flushed at the end of this turn. */
static void touch(fs_io *io, member *m)
{
    if (m->touched)
        return;
    m->touched = true;
    m->next_touched = io->touched;
    io->touched = m;
}

void fs_io_touch(void *io, void *conn)
{
    member *m = conn;
    m->conn.due_us = 0; /* what it waits for may have changed: the next tick asks */
    touch(io, m);
}

static void drain_one(fs_io *io, member *m)
{
    switch (io->step) {
    case FS_IO_NOTICE:
        fs_h2_shutdown_notice(m->conn.h2);
        break;
    case FS_IO_SHUTDOWN:
        fs_h2_shutdown(m->conn.h2);
        if (m->conn.state == FS_CONN_SHAKING) /* there is no call that would be lost */
            m->conn.state = FS_CONN_CLOSED;
        break;
    case FS_IO_CLOSE:
        m->conn.state = FS_CONN_CLOSED;
        break;
    default:
        return;
    }
    fs_io_touch(io, m);
}

/* NULL when memory is short; `fd` is closed then. */
static member *open_member(fs_io *io, int fd, fs_tls_context *tls, void *ctx)
{
    member *m = fs_slab_alloc(io->slab, sizeof *m);
    if (m == NULL) {
        close(fd);
        return NULL;
    }
    memset(m, 0, sizeof *m);
    if (fs_conn_open(&m->conn, &io->conns, fd, tls, ctx != NULL ? ctx : io->ctx, m, io->now_us) != 0) {
        close(fd);
        fs_slab_free(m);
        return NULL;
    }
    socklen_t len = sizeof m->peer;
    if (tls != NULL && getpeername(fd, &m->peer.any, &len) != 0)
        m->peer.any.sa_family = AF_UNSPEC;
    m->events = EPOLLIN;
    struct epoll_event event = {.events = m->events, .data.ptr = m};
    if (epoll_ctl(io->epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        fs_conn_close(&m->conn);
        fs_slab_free(m);
        return NULL;
    }
    return m;
}

static void adopt(fs_io *io, const order *o)
{
    member *m = open_member(io, o->value, o->tls, o->ctx);
    fs_tls_context_unref(o->tls);
    add(&io->accepted, 1);
    if (m == NULL) {
        add_closed(io);
        return;
    }
    m->next = io->members;
    if (m->next != NULL)
        m->next->prev = m;
    io->members = m;
    drain_one(io, m);
    fs_io_touch(io, m); /* our SETTINGS */
}

static void drop(fs_io *io, member *m)
{
    *(m->prev != NULL ? &m->prev->next : &io->members) = m->next;
    if (m->next != NULL)
        m->next->prev = m->prev;
    m->touched = true; /* no more: a handler that is told of its cancelled calls may finish others of them */
    fs_conn_close(&m->conn); /* which takes it out of the epoll, too: nobody else has the descriptor */
    fs_slab_free(m);
    add_closed(io);
}

static void watch(fs_io *io, member *m)
{
    uint32_t events =
        (fs_conn_wants_read(&m->conn) ? EPOLLIN : 0) | (fs_conn_wants_write(&m->conn) ? EPOLLOUT : 0);
    if (events == m->events)
        return;
    m->events = events;
    struct epoll_event event = {.events = events, .data.ptr = m};
    if (epoll_ctl(io->epoll, EPOLL_CTL_MOD, m->conn.sock.fd, &event) != 0)
        m->conn.state = FS_CONN_CLOSED;
}

static void read_from(fs_io *io, member *m, fs_sock_moved *moved)
{
    fs_conn_read(&m->conn, io->in, BUFFER_BYTES, io->now_us, moved);
    fs_io_touch(io, m);
}

/* What epoll says nothing of. */
static void read_unread(fs_io *io, fs_sock_moved *moved)
{
    for (member *m = io->members; m != NULL; m = m->next) {
        if (m->conn.unread && fs_conn_wants_read(&m->conn))
            read_from(io, m, moved);
    }
    io->unread = false; /* flush_touched sees who has more yet */
}

static void tell_refused(fs_io *io, member *m)
{
    if (io->config.on_refused != NULL)
        io->config.on_refused(io->ctx, &m->peer.any, m->conn.refused);
    m->conn.refused = NULL;
}

static void flush_touched(fs_io *io)
{
    fs_sock_moved moved = {0};
    uint64_t calls = 0; /* as far as they changed; wraps */
    while (io->touched != NULL) {
        member *m = io->touched;
        io->touched = m->next_touched;
        m->touched = false;
        if (m->conn.refused != NULL)
            tell_refused(io, m);
        fs_conn_flush(&m->conn, io->out, BUFFER_BYTES, io->now_us, &moved);
        if (m->conn.state != FS_CONN_CLOSED)
            watch(io, m);
        if (m->conn.unread && m->conn.state != FS_CONN_CLOSED && fs_conn_wants_read(&m->conn))
            io->unread = true;
        uint32_t before = m->calls;
        m->calls = m->conn.state != FS_CONN_CLOSED ? fs_h2_active_calls(m->conn.h2) : 0;
        calls += (uint64_t)m->calls - before;
        if (m->conn.state == FS_CONN_CLOSED)
            drop(io, m);
    }
    add(&io->bytes_out, moved.out);
    add(&io->calls, calls);
}

static void tick(fs_io *io)
{
    io->ticked_us = io->now_us;
    if (io->now_us - io->trimmed_us >= TRIM_US) {
        io->trimmed_us = io->now_us;
        fs_slab_trim(io->slab, KEEP_BYTES);
    }
    for (member *m = io->members; m != NULL; m = m->next) {
        if (m->conn.due_us <= io->now_us) {
            fs_conn_tick(&m->conn, io->now_us);
            touch(io, m);
        }
    }
}

/* How long the next turn may wait. */
static int patience_ms(const fs_io *io)
{
    if (io->unread)
        return 0;
    return io->members != NULL || fs_slab_read(io->slab).cached_bytes > KEEP_BYTES ? TICK_MS : -1;
}

/* ---- the loop --------------------------------------------------------------------------------- */

static void obey(fs_io *io, order *o)
{
    switch (o->kind) {
    case ADOPT:
        adopt(io, o);
        break;
    case DRAIN:
        io->step = o->value > io->step ? o->value : io->step;
        for (member *m = io->members; m != NULL; m = m->next)
            drain_one(io, m);
        break;
    case STOP:
        io->step = FS_IO_CLOSE;
        for (member *m = io->members; m != NULL; m = m->next)
            drain_one(io, m);
        io->stopping = true;
        break;
    }
    if (o != &io->last_order)
        free(o);
}

static void take_orders(fs_io *io)
{
    fs_node *node = fs_mailbox_take(&io->orders);
    while (node != NULL) {
        fs_node *next = node->next;
        obey(io, (order *)node);
        node = next;
    }
}

static void *run(void *user)
{
    fs_io *io = user;
    struct epoll_event events[EVENTS];
    io->now_us = fs_now_us();
    io->ticked_us = io->now_us;
    io->trimmed_us = io->now_us;
    while (!io->stopping) {
        int n = epoll_wait(io->epoll, events, EVENTS, patience_ms(io));
        io->now_us = fs_now_us();
        add(&io->wakes, 1);
        bool mail = false, orders = false;
        fs_sock_moved moved = {0};
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == &io->mail) {
                mail = true;
            } else if (what == &io->orders) {
                orders = true;
            } else {
                member *m = what;
                /* EPOLLERR and EPOLLHUP come unasked; reading tells what they are. TLS may have been waiting to
                 * write before it can read on. */
                if ((events[i].events & ~(uint32_t)EPOLLOUT) != 0 || m->conn.sock.read_wants_write)
                    read_from(io, m, &moved);
                else
                    fs_io_touch(io, m);
            }
        }
        if (io->unread)
            read_unread(io, &moved);
        add(&io->bytes_in, moved.in);
        if (mail)
            io->config.on_mail(io->ctx);
        if (orders)
            take_orders(io);
        if (io->now_us - io->ticked_us >= TICK_MS * 1000)
            tick(io);
        flush_touched(io);
        if (n > 0)
            fs_track_turn(io->config.track, FS_TURN_EPOLL, io->now_us, n);
        if (io->step >= FS_IO_SHUTDOWN && io->members == NULL && !io->told_empty) {
            io->told_empty = true;
            if (io->config.on_empty != NULL)
                io->config.on_empty(io->ctx);
        }
    }
    struct timespec cpu;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
    atomic_store_explicit(&io->final_cpu_us, (int64_t)cpu.tv_sec * 1000000 + cpu.tv_nsec / 1000,
                          memory_order_relaxed);
    return NULL;
}

/* ---- from outside ----------------------------------------------------------------------------- */

static int watch_box(fs_io *io, fs_mailbox *box)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = box};
    return epoll_ctl(io->epoll, EPOLL_CTL_ADD, box->fd, &event);
}

fs_io *fs_io_new(const fs_io_config *config)
{
    fs_io *io = aligned_alloc(_Alignof(fs_io), sizeof *io);
    if (io == NULL)
        return NULL;
    memset(io, 0, sizeof *io);
    io->config = *config;
    io->mail.fd = -1;
    io->orders.fd = -1;
    atomic_init(&io->final_cpu_us, -1);
    io->slab = fs_slab_new(config->slab_cache_bytes);
    io->in = malloc(BUFFER_BYTES);
    io->out = malloc(BUFFER_BYTES);
    io->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (io->slab == NULL || io->in == NULL || io->out == NULL || io->epoll < 0 ||
        fs_mailbox_open(&io->mail) != 0 || fs_mailbox_open(&io->orders) != 0 ||
        watch_box(io, &io->mail) != 0 || watch_box(io, &io->orders) != 0) {
        fs_io_free(io);
        return NULL;
    }
    io->conns = (fs_conn_config){.limits = config->limits,
                                 .handler = config->handler,
                                 .budget = config->budget,
                                 .slab = io->slab,
                                 .handshake_timeout_us = config->handshake_timeout_us};
    return io;
}

int fs_io_start(fs_io *io, void *ctx)
{
    io->ctx = ctx;
    /* Signals are for the loop's thread. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&io->thread, NULL, run, io);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return -FS_RESOURCE_EXHAUSTED;
    io->started = true;
    pthread_setname_np(io->thread, io->config.name);
    if (pthread_getcpuclockid(io->thread, &io->cpu_clock) != 0)
        io->cpu_clock = CLOCK_PROCESS_CPUTIME_ID;
    return 0;
}

fs_mailbox *fs_io_mailbox(fs_io *io)
{
    return &io->mail;
}

fs_slab *fs_io_slab(fs_io *io)
{
    return io->slab;
}

static int give_order(fs_io *io, order given)
{
    order *o = malloc(sizeof *o);
    if (o == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    *o = given;
    fs_mailbox_post(&io->orders, &o->node);
    return 0;
}

int fs_io_adopt(fs_io *io, int fd, fs_tls_context *tls, void *ctx)
{
    fs_tls_context *held = tls == NULL ? NULL : fs_tls_context_ref(tls);
    int rc = give_order(io, (order){.kind = ADOPT, .value = fd, .tls = held, .ctx = ctx});
    if (rc != 0)
        fs_tls_context_unref(held);
    return rc;
}

int fs_io_drain(fs_io *io, enum fs_io_drain_step step)
{
    return give_order(io, (order){.kind = DRAIN, .value = (int)step});
}

fs_io_stats fs_io_read(const fs_io *io)
{
    fs_io_stats stats = {
        .closed = atomic_load_explicit(&io->closed, memory_order_acquire), /* pairs with add_closed; first */
        .calls = atomic_load_explicit(&io->calls, memory_order_relaxed),
        .bytes_in = atomic_load_explicit(&io->bytes_in, memory_order_relaxed),
        .bytes_out = atomic_load_explicit(&io->bytes_out, memory_order_relaxed),
        .wakes = atomic_load_explicit(&io->wakes, memory_order_relaxed),
        .cpu_us = atomic_load_explicit(&io->final_cpu_us, memory_order_relaxed),
    };
    stats.accepted = atomic_load_explicit(&io->accepted, memory_order_relaxed);
    stats.connections = stats.accepted - stats.closed;
    struct timespec cpu;
    if (stats.cpu_us < 0)
        stats.cpu_us = io->started && clock_gettime(io->cpu_clock, &cpu) == 0
                           ? (int64_t)cpu.tv_sec * 1000000 + cpu.tv_nsec / 1000
                           : 0;
    return stats;
}

void fs_io_stop(fs_io *io)
{
    if (!io->started)
        return;
    io->last_order.kind = STOP;
    fs_mailbox_post(&io->orders, &io->last_order.node);
    pthread_join(io->thread, NULL);
    io->started = false;
}

void fs_io_free(fs_io *io)
{
    if (io == NULL)
        return;
    /* Sockets that came too late. */
    if (io->orders.fd >= 0) {
        fs_node *node = fs_mailbox_take(&io->orders);
        while (node != NULL) {
            order *o = (order *)node;
            node = node->next;
            if (o->kind == ADOPT)
                close(o->value);
            fs_tls_context_unref(o->tls);
            free(o);
        }
    }
    fs_mailbox_close(&io->orders);
    fs_mailbox_close(&io->mail);
    if (io->epoll >= 0)
        close(io->epoll);
    free(io->in);
    free(io->out);
    fs_slab_release(io->slab);
    free(io);
}
