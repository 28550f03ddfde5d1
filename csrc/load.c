/* load: see load.h.
 *
 * Each turn of the loop: read from every connection that has something, let what is overdue fail, send what
 * is due, and write each connection that was touched by any of these once. The clock is read once for what
 * one recv(2) brought, once before a batch of requests is handed over and once before it is written, so that
 * reading it costs next to nothing and no time is flattered. */
#include "load.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "arrivals.h"
#include "load_conn.h"

enum {
    EVENTS = 256,
    BUFFER_BYTES = 256 << 10,
    BATCH = 512,              /* requests handed over before they are written */
    BATCHES = 16,             /* and so many batches before answers are read */
    FIRST_BACKOFF_US = 10000, /* of dialling again; doubled each time, up to */
    LAST_BACKOFF_US = 1000000,
    STALL_US = 60000000,
};

static const int64_t TICK_NS = 10000000; /* how late a time-out may be noticed */
static const size_t SLAB_CACHE_BYTES = (size_t)256 << 20;

enum phase { COMING, RUNNING, DRAINING, OVER };
enum window { BEFORE, INSIDE, AFTER };

/* A request for which no connection has room yet. */
typedef struct waiting {
    int64_t since_ns;
    uint32_t body;
    bool measured;
} waiting;

struct fs_load {
    fs_load_config config;
    fs_load_target target;
    fs_slab *slab;
    uint8_t *in, *out;
    int epoll, stop_fd, over_fd;
    fs_slice *requests;     /* HTTP: heads with bodies */
    uint8_t *request_bytes;

    fs_load_conn *conns;
    fs_load_conn *touched, *more;
    uint32_t turn;          /* whose turn it is */
    fs_load_call *calls;    /* closed loop: all there are */
    fs_load_call *spare;    /* open loop: those at rest */
    fs_load_call *first, *last; /* in flight, by the time that theirs runs from */
    uint64_t in_flight;
    waiting *queue;         /* a ring */
    uint64_t queue_mask, queue_head, queue_tail;

    enum phase phase;
    enum window window;
    bool closing;
    int64_t now_ns;         /* of this turn */
    int64_t stamp_ns;       /* when the bytes were read that are being looked at, */
    size_t stamped_in;      /*   and how many there had been */
    int64_t begin_ns, from_ns, to_ns; /* of the run; of the window */
    int64_t edge_ns;        /* when the window or an interval begins or ends next */
    int64_t last_answer_ns;
    int64_t ticked_ns;
    fs_arrivals arrivals;
    int64_t due_ns;         /* open loop: the next request; INT64_MAX: none */
    uint64_t issued;
    fs_sock_moved moved;
    fs_sock_moved moved_before;
    int64_t cpu_before_ns;

    fs_load_interval interval;
    fs_hist interval_hist;
    uint32_t interval_room;
    fs_load_result result;
    fs_error wrong_size;

    uint64_t sent, done, failed;
    /* Written by the thread, read by any; relaxed, since nothing hangs on them. */
    atomic_uint_fast64_t shown_sent, shown_done, shown_failed, shown_outstanding;
    atomic_int_fast64_t shown_begin_ns;
    atomic_bool shown_measuring;
    atomic_bool stop; /* relaxed: it carries nothing else */
    bool started, joined;
    pthread_t thread;
};

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t now_us(const fs_load *load)
{
    return load->now_ns / 1000;
}

static bool is_open_loop(const fs_load *load)
{
    return load->config.kind != FS_LOAD_CLOSED;
}

static uint64_t outstanding(const fs_load *load)
{
    return load->in_flight + (load->queue_tail - load->queue_head);
}

/* ---- the window -------------------------------------------------------------------------------- */

static void end_interval(fs_load *load, int64_t at_ns)
{
    static const double quantiles[] = {0.5, 0.9, 0.99};
    fs_load_interval *interval = &load->interval;
    fs_load_result *result = &load->result;
    if (result->n_intervals == load->interval_room) {
        uint32_t room = load->interval_room > 0 ? load->interval_room * 2 : 1024;
        fs_load_interval *grown = realloc(result->intervals, room * sizeof *grown);
        if (grown != NULL) {
            result->intervals = grown;
            load->interval_room = room;
        }
    }
    if (result->n_intervals < load->interval_room) {
        uint64_t values[3];
        fs_hist_values_at(&load->interval_hist, quantiles, values, 3);
        interval->p50_ns = values[0];
        interval->p90_ns = values[1];
        interval->p99_ns = values[2];
        interval->max_ns = load->interval_hist.max;
        result->intervals[result->n_intervals++] = *interval;
    }
    fs_hist_reset(&load->interval_hist);
    *interval = (fs_load_interval){.start_ns = at_ns - load->from_ns};
}

static void begin_window(fs_load *load)
{
    load->window = INSIDE;
    load->cpu_before_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    load->moved_before = load->moved;
    load->last_answer_ns = load->from_ns;
}

static void end_window(fs_load *load, int64_t at_ns)
{
    int64_t start_ns = load->from_ns + load->interval.start_ns;
    if (load->config.interval_ns > 0 && at_ns > start_ns)
        end_interval(load, at_ns);
    load->window = AFTER;
    load->result.window_ns = at_ns - load->from_ns;
    load->result.cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - load->cpu_before_ns;
    load->result.bytes_in = load->moved.in - load->moved_before.in;
    load->result.bytes_out = load->moved.out - load->moved_before.out;
    load->edge_ns = INT64_MAX;
}

static void next_edge(fs_load *load)
{
    load->edge_ns = load->to_ns;
    if (load->config.interval_ns > 0) {
        int64_t end_ns = load->from_ns + load->interval.start_ns + load->config.interval_ns;
        load->edge_ns = end_ns < load->edge_ns ? end_ns : load->edge_ns;
    }
}

/* The time is `at_ns`: begins and ends what that makes due. */
static void advance(fs_load *load, int64_t at_ns)
{
    while (at_ns >= load->edge_ns) {
        if (load->window == BEFORE) {
            begin_window(load);
            next_edge(load);
        } else if (load->edge_ns == load->to_ns) {
            end_window(load, load->to_ns);
        } else {
            end_interval(load, load->edge_ns);
            next_edge(load);
        }
    }
}

/* ---- what became of requests ------------------------------------------------------------------- */

/* When the bytes were read that are being looked at. */
static int64_t stamp(fs_load *load)
{
    if (load->moved.in != load->stamped_in) {
        load->stamped_in = load->moved.in;
        load->stamp_ns = clock_ns(CLOCK_MONOTONIC);
    }
    return load->stamp_ns;
}

static void count_sent(fs_load *load, bool measured)
{
    load->sent++;
    if (measured)
        load->result.sent++;
    if (load->window == INSIDE)
        load->interval.sent++;
}

static void note_error(fs_load *load, int failure, const fs_error *error)
{
    fs_error *first = &load->result.first_error;
    if (first->code != 0)
        return;
    *first = error != NULL ? *error : (fs_error){0};
    first->code = failure;
}

static void count_end(fs_load *load, int64_t since_ns, uint32_t body, bool measured, int failure,
                      const fs_error *error, int64_t at_ns)
{
    fs_load_result *result = &load->result;
    uint64_t took_ns = at_ns > since_ns ? (uint64_t)(at_ns - since_ns) : 0;
    if (at_ns >= load->edge_ns)
        advance(load, at_ns);
    bool inside = load->window == INSIDE;
    if (inside)
        load->last_answer_ns = at_ns;
    if (failure != 0) {
        load->failed++;
        note_error(load, failure, error);
        if (inside)
            load->interval.failed++;
        if (measured)
            result->failed[failure]++;
        return;
    }
    load->done++;
    if (inside) {
        result->arrived++;
        load->interval.done++;
        fs_hist_record(&load->interval_hist, took_ns);
    }
    if (measured) {
        result->done++;
        result->done_by_body[body]++;
        fs_hist_record(&result->latency, took_ns);
    }
}

/* ---- calls --------------------------------------------------------------------------------------- */

static void touch(fs_load *load, fs_load_conn *conn)
{
    if (conn->touched)
        return;
    conn->touched = true;
    conn->next_touched = load->touched;
    load->touched = conn;
}

static void link_call(fs_load *load, fs_load_call *call)
{
    call->next = NULL;
    call->prev = load->last;
    *(load->last != NULL ? &load->last->next : &load->first) = call;
    load->last = call;
    load->in_flight++;
}

static void unlink_call(fs_load *load, fs_load_call *call)
{
    *(call->prev != NULL ? &call->prev->next : &load->first) = call->next;
    *(call->next != NULL ? &call->next->prev : &load->last) = call->prev;
    load->in_flight--;
}

/* Its memory waits for the next request. */
static void rest_call(fs_load *load, fs_load_call *call)
{
    fs_load_call **rest = is_open_loop(load) ? &load->spare : &call->conn->idle;
    touch(load, call->conn);
    call->next = *rest;
    *rest = call;
}

static void on_end(void *ctx, fs_load_call *call, const fs_load_end *end)
{
    fs_load *load = ctx;
    int failure = end->failure;
    unlink_call(load, call);
    if (load->closing) {
        load->result.unanswered += call->measured;
    } else {
        const int64_t *sizes = load->config.reply_bytes;
        if (failure == 0 && sizes != NULL && sizes[call->body] >= 0 &&
            (size_t)sizes[call->body] != end->reply_bytes) {
            failure = FS_LOAD_REPLY_SIZE;
            fs_fail(&load->wrong_size, FS_INTERNAL, "body %u was answered with %zu bytes, expected are %lld",
                    call->body, end->reply_bytes, (long long)sizes[call->body]);
        }
        count_end(load, call->since_ns, call->body, call->measured, failure,
                  failure == FS_LOAD_REPLY_SIZE ? &load->wrong_size : end->error, stamp(load));
    }
    rest_call(load, call);
}

/* Hands a request to a connection; false: that was not possible. */
static bool start_call(fs_load *load, fs_load_conn *conn, fs_load_call *call)
{
    if (fs_load_conn_start(conn, call, now_us(load), &load->moved) != 0)
        return false;
    link_call(load, call);
    touch(load, conn);
    return true;
}

static uint32_t next_body(fs_load *load)
{
    uint64_t i = load->issued++;
    const fs_load_config *config = &load->config;
    return config->order != NULL ? config->order[i % config->n_order] : (uint32_t)(i % config->n_bodies);
}

/* Whether a request whose time runs from `since_ns` is one of the window's. */
static bool is_measured(const fs_load *load, int64_t since_ns)
{
    return since_ns >= load->from_ns && since_ns < load->to_ns;
}

static void stop_sending_when_all_are_sent(fs_load *load)
{
    if (load->config.requests > 0 && load->result.sent >= load->config.requests)
        load->phase = DRAINING;
}

/* ---- closed loop ----------------------------------------------------------------------------------- */

/* Sends the requests that a connection has to make. */
static void refill(fs_load *load, fs_load_conn *conn)
{
    if (conn->idle == NULL || load->phase != RUNNING || fs_load_conn_state_of(conn) != FS_LOAD_OPEN)
        return;
    int64_t since_ns = clock_ns(CLOCK_MONOTONIC);
    if (since_ns >= load->edge_ns)
        advance(load, since_ns);
    while (conn->idle != NULL && load->phase == RUNNING) {
        fs_load_call *call = conn->idle;
        if (since_ns >= load->to_ns) {
            load->phase = DRAINING;
            break;
        }
        call->since_ns = since_ns;
        call->measured = is_measured(load, since_ns);
        fs_load_call *rest = call->next;
        call->body = next_body(load);
        if (!start_call(load, conn, call)) {
            load->issued--;
            break;
        }
        conn->idle = rest;
        count_sent(load, call->measured);
        stop_sending_when_all_are_sent(load);
    }
}

/* ---- open loop ------------------------------------------------------------------------------------- */

/* The next connection in turn that has room, NULL: none has. */
static fs_load_conn *choose(fs_load *load)
{
    uint32_t n = load->config.connections;
    for (uint32_t i = 0; i < n; i++) {
        fs_load_conn *conn = &load->conns[(load->turn + i) % n];
        if (fs_load_conn_room(conn) > 0) {
            load->turn = (load->turn + i + 1) % n;
            return conn;
        }
    }
    return NULL;
}

/* Hands waiting requests over, as far as there is room. */
static void serve_queue(fs_load *load)
{
    while (load->queue_head != load->queue_tail) {
        fs_load_conn *conn = choose(load);
        if (conn == NULL)
            return;
        fs_load_call *call = load->spare;
        if (call != NULL)
            load->spare = call->next;
        else
            call = fs_slab_alloc(load->slab, sizeof *call);
        if (call == NULL)
            return; /* the next that ends leaves its memory */
        const waiting *next = &load->queue[load->queue_head & load->queue_mask];
        call->since_ns = next->since_ns;
        call->body = next->body;
        call->measured = next->measured;
        if (!start_call(load, conn, call)) {
            call->next = load->spare;
            load->spare = call;
            touch(load, conn); /* it may be down: then it will be dialled again */
            if (fs_load_conn_room(conn) > 0)
                return; /* for want of memory: later */
            continue;
        }
        load->queue_head++;
    }
}

static void fail_waiting(fs_load *load, int failure, const fs_error *error, int64_t at_ns)
{
    const waiting *next = &load->queue[load->queue_head++ & load->queue_mask];
    count_end(load, next->since_ns, next->body, next->measured, failure, error, at_ns);
}

/* A request is due. */
static void arrive(fs_load *load, int64_t due_ns, bool measured)
{
    uint32_t body = next_body(load);
    count_sent(load, measured);
    if (outstanding(load) >= load->config.max_outstanding) {
        count_end(load, due_ns, body, measured, FS_LOAD_FULL, NULL, load->now_ns);
        return;
    }
    load->queue[load->queue_tail++ & load->queue_mask] =
        (waiting){.since_ns = due_ns, .body = body, .measured = measured};
}

static void next_arrival(fs_load *load)
{
    int64_t at_ns = fs_arrivals_next(&load->arrivals);
    load->due_ns = at_ns < INT64_MAX - load->begin_ns ? load->begin_ns + at_ns : INT64_MAX;
}

static void flush_touched(fs_load *load);

/* Sends what is due by now, in batches. */
static void issue(fs_load *load)
{
    int64_t due[BATCH];
    int n = BATCH;
    for (int batch = 0; n == BATCH && batch < BATCHES; batch++) {
        load->now_ns = clock_ns(CLOCK_MONOTONIC);
        if (load->now_ns >= load->edge_ns)
            advance(load, load->now_ns);
        n = 0;
        int taken = 0;
        while (load->phase == RUNNING && load->due_ns <= load->now_ns && taken < BATCH) {
            if (load->due_ns >= load->to_ns) {
                load->phase = DRAINING;
                break;
            }
            bool measured = is_measured(load, load->due_ns);
            arrive(load, load->due_ns, measured);
            if (measured)
                due[n++] = load->due_ns;
            taken++;
            next_arrival(load);
            if (load->due_ns == INT64_MAX)
                load->phase = DRAINING;
            stop_sending_when_all_are_sent(load);
        }
        serve_queue(load);
        if (n > 0) {
            int64_t at_ns = clock_ns(CLOCK_MONOTONIC);
            for (int i = 0; i < n; i++)
                fs_hist_record(&load->result.behind, (uint64_t)(at_ns - due[i]));
        }
        flush_touched(load);
        n = taken;
    }
}

/* ---- connections ------------------------------------------------------------------------------------- */

static void dial(fs_load *load, fs_load_conn *conn)
{
    conn->retry_us = INT64_MAX;
    fs_load_conn_dial(conn, now_us(load));
    touch(load, conn);
}

/* It has gone down: when may it be dialled again? */
static void schedule_dial(fs_load *load, fs_load_conn *conn)
{
    conn->events = 0; /* its socket is closed, which took it out of the epoll */
    if (load->phase == COMING) {
        note_error(load, FS_LOAD_LOST, fs_load_conn_why(conn));
        conn->retry_us = 0;
    } else if (conn->closed_in_peace) {
        dial(load, conn);
    } else if (conn->retry_us == INT64_MAX) {
        int64_t next_us = conn->backoff_us > 0 ? conn->backoff_us * 2 : FIRST_BACKOFF_US;
        conn->backoff_us = next_us < LAST_BACKOFF_US ? next_us : LAST_BACKOFF_US;
        conn->retry_us = now_us(load) + conn->backoff_us;
    }
}

static void watch(fs_load *load, fs_load_conn *conn)
{
    uint32_t events = EPOLLIN | (fs_load_conn_wants_write(conn) ? EPOLLOUT : 0);
    if (events == conn->events)
        return;
    struct epoll_event event = {.events = events, .data.ptr = conn};
    int op = conn->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    if (epoll_ctl(load->epoll, op, fs_load_conn_fd(conn), &event) != 0)
        fs_load_conn_close(conn); /* touches it if it had calls; the next tick finds it otherwise */
    else
        conn->events = events;
}

static void flush_touched(fs_load *load)
{
    while (load->touched != NULL) {
        fs_load_conn *conn = load->touched;
        load->touched = conn->next_touched;
        conn->touched = false;
        bool was_open = fs_load_conn_state_of(conn) == FS_LOAD_OPEN;
        if (!is_open_loop(load))
            refill(load, conn);
        fs_load_conn_flush(conn, load->out, BUFFER_BYTES, now_us(load), &load->moved);
        enum fs_load_conn_state state = fs_load_conn_state_of(conn);
        conn->tried = conn->tried || state != FS_LOAD_COMING;
        if (state == FS_LOAD_OPEN && !was_open) {
            conn->backoff_us = 0;
            touch(load, conn); /* now it can be given something to do */
        }
        if (state == FS_LOAD_DOWN)
            schedule_dial(load, conn);
        else
            watch(load, conn);
    }
}

static void tick(fs_load *load)
{
    load->ticked_ns = load->now_ns;
    for (uint32_t i = 0; i < load->config.connections; i++) {
        fs_load_conn *conn = &load->conns[i];
        if (fs_load_conn_state_of(conn) == FS_LOAD_DOWN) {
            if (load->phase == COMING || load->phase == OVER)
                continue;
            if (conn->retry_us == INT64_MAX) {
                touch(load, conn);
            } else if (conn->retry_us <= now_us(load)) {
                load->result.reconnects++;
                dial(load, conn);
            }
        } else if (fs_load_conn_tick(conn, now_us(load)) || conn->idle != NULL) {
            touch(load, conn); /* with requests that could not be started, too */
        }
    }
}

/* Requests that have waited too long fail. */
static void expire(fs_load *load)
{
    int64_t since_ns = load->now_ns - load->config.timeout_us * 1000;
    static const fs_error late = {.code = FS_LOAD_TIMEOUT, .len = 20, .msg = "no answer in time"};
    while (load->first != NULL && load->first->since_ns <= since_ns) {
        fs_load_call *call = load->first;
        fs_load_conn_cancel(call->conn, call);
        unlink_call(load, call);
        count_end(load, call->since_ns, call->body, call->measured, FS_LOAD_TIMEOUT, &late, load->now_ns);
        rest_call(load, call);
    }
    while (load->queue_head != load->queue_tail &&
           load->queue[load->queue_head & load->queue_mask].since_ns <= since_ns)
        fail_waiting(load, FS_LOAD_TIMEOUT, &late, load->now_ns);
}

/* With no connection up or coming up, what waits would wait for nothing. */
static void fail_the_hopeless(fs_load *load)
{
    if (load->queue_head == load->queue_tail)
        return;
    const fs_error *why = NULL;
    for (uint32_t i = 0; i < load->config.connections; i++) {
        if (fs_load_conn_state_of(&load->conns[i]) != FS_LOAD_DOWN)
            return;
        why = fs_load_conn_why(&load->conns[i]);
    }
    while (load->queue_head != load->queue_tail)
        fail_waiting(load, FS_LOAD_LOST, why, load->now_ns);
}

/* ---- the run ------------------------------------------------------------------------------------------ */

/* Begins when every connection is open or has failed once. */
static void begin_when_connected(fs_load *load)
{
    bool open = false;
    for (uint32_t i = 0; i < load->config.connections; i++) {
        if (!load->conns[i].tried)
            return;
        open = open || fs_load_conn_state_of(&load->conns[i]) == FS_LOAD_OPEN;
    }
    if (!open) {
        load->result.no_connection = true;
        load->phase = OVER;
        return;
    }
    load->phase = RUNNING;
    load->begin_ns = clock_ns(CLOCK_MONOTONIC);
    load->from_ns = load->begin_ns + load->config.warmup_ns;
    load->to_ns = load->config.duration_ns > 0 ? load->from_ns + load->config.duration_ns : INT64_MAX;
    load->edge_ns = load->from_ns;
    atomic_store_explicit(&load->shown_begin_ns, load->begin_ns, memory_order_relaxed);
    if (is_open_loop(load))
        next_arrival(load);
    if (load->due_ns == INT64_MAX)
        load->phase = DRAINING;
    for (uint32_t i = 0; i < load->config.connections; i++)
        touch(load, &load->conns[i]);
}

static void end_when_drained(fs_load *load)
{
    if (outstanding(load) > 0)
        return;
    /* The window goes on to its end, unless that is made by the last answer. */
    bool by_time = load->config.duration_ns > 0 && load->due_ns != INT64_MAX;
    if (by_time && load->window != AFTER)
        return;
    load->phase = OVER;
}

/* How long to sleep. */
static int64_t patience_ns(const fs_load *load)
{
    if (load->more != NULL || load->touched != NULL)
        return 0;
    int64_t until_ns = load->ticked_ns + TICK_NS;
    if (load->phase == RUNNING && is_open_loop(load) && load->due_ns - load->config.spin_ns < until_ns)
        until_ns = load->due_ns - load->config.spin_ns;
    if (load->edge_ns < until_ns && load->phase != COMING)
        until_ns = load->edge_ns;
    int64_t left_ns = until_ns - clock_ns(CLOCK_MONOTONIC);
    return left_ns > 0 ? left_ns : 0;
}

/* An open loop is to wake in time, to the nanosecond: an epoll is itself something to poll. Nothing else that a
 * run waits for is so pressing. */
static int sleep_for_events(fs_load *load, struct epoll_event *events)
{
    int64_t left_ns = patience_ns(load);
    int left_ms = (int)((left_ns + 999999) / 1000000);
    if (is_open_loop(load) && left_ns > 0) {
        struct pollfd poll_fd = {.fd = load->epoll, .events = POLLIN};
        struct timespec timeout = {.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
        if (ppoll(&poll_fd, 1, &timeout, NULL) <= 0)
            return 0;
        left_ms = 0;
    }
    int n = epoll_wait(load->epoll, events, EVENTS, left_ms);
    return n > 0 ? n : 0;
}

static void read_conn(fs_load *load, fs_load_conn *conn)
{
    bool more = fs_load_conn_read(conn, load->in, BUFFER_BYTES, now_us(load), &load->moved);
    touch(load, conn);
    if (more && !conn->more) {
        conn->more = true;
        conn->next_more = load->more;
        load->more = conn;
    }
}

static void read_all(fs_load *load, const struct epoll_event *events, int n)
{
    fs_load_conn *more = load->more;
    load->more = NULL;
    while (more != NULL) {
        fs_load_conn *conn = more;
        more = conn->next_more;
        conn->more = false;
        read_conn(load, conn);
    }
    for (int i = 0; i < n; i++) {
        fs_load_conn *conn = events[i].data.ptr;
        if (conn == NULL)
            continue; /* fs_load_stop */
        /* EPOLLERR and EPOLLHUP come unasked; reading tells what they are. */
        if ((events[i].events & ~(uint32_t)EPOLLOUT) != 0)
            read_conn(load, conn);
        else
            touch(load, conn);
    }
}

static void show(fs_load *load)
{
    atomic_store_explicit(&load->shown_sent, load->sent, memory_order_relaxed);
    atomic_store_explicit(&load->shown_done, load->done, memory_order_relaxed);
    atomic_store_explicit(&load->shown_failed, load->failed, memory_order_relaxed);
    atomic_store_explicit(&load->shown_outstanding, outstanding(load), memory_order_relaxed);
    atomic_store_explicit(&load->shown_measuring, load->window == INSIDE, memory_order_relaxed);
}

static void turn(fs_load *load)
{
    struct epoll_event events[EVENTS];
    int n = sleep_for_events(load, events);
    load->now_ns = clock_ns(CLOCK_MONOTONIC);
    load->stamp_ns = load->now_ns;
    load->stamped_in = load->moved.in;
    if (load->now_ns >= load->edge_ns)
        advance(load, load->now_ns);
    read_all(load, events, n);
    expire(load);
    if (load->now_ns - load->ticked_ns >= TICK_NS)
        tick(load);
    if (is_open_loop(load) && load->phase != COMING)
        issue(load);
    else
        flush_touched(load);
    fail_the_hopeless(load);
    if (load->phase == COMING) {
        begin_when_connected(load);
    } else if (load->phase == RUNNING && load->now_ns >= load->to_ns) {
        load->phase = DRAINING;
    }
    if (load->phase == DRAINING)
        end_when_drained(load);
    show(load);
}

static void *run(void *user)
{
    fs_load *load = user;
    /* The kernel may wake a sleeper 50 us late to save power, unless it is told that it matters. */
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    load->now_ns = clock_ns(CLOCK_MONOTONIC);
    load->ticked_ns = load->now_ns;
    for (uint32_t i = 0; i < load->config.connections; i++)
        dial(load, &load->conns[i]);
    flush_touched(load);
    while (load->phase != OVER && !atomic_load_explicit(&load->stop, memory_order_relaxed))
        turn(load);
    if (load->window == INSIDE)
        end_window(load, load->phase == OVER ? load->last_answer_ns : clock_ns(CLOCK_MONOTONIC));
    load->phase = OVER;
    load->closing = true;
    for (uint32_t i = 0; i < load->config.connections; i++)
        fs_load_conn_close(&load->conns[i]);
    for (; load->queue_head != load->queue_tail; load->queue_head++)
        load->result.unanswered += load->queue[load->queue_head & load->queue_mask].measured;
    show(load);
    uint64_t one = 1;
    while (write(load->over_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    return NULL;
}

/* ---- from outside -------------------------------------------------------------------------------------- */

static size_t http_head(const fs_load_config *config, uint32_t body, uint8_t *dst, size_t room)
{
    return fs_http1_head_write(dst, room, config->path, config->authority, config->headers,
                               config->n_headers, config->bodies[body].len);
}

/* Heads and bodies in one, so that a request is one write. */
static bool make_requests(fs_load *load)
{
    const fs_load_config *config = &load->config;
    size_t bytes = 0;
    for (uint32_t i = 0; i < config->n_bodies; i++)
        bytes += http_head(config, i, NULL, 0) + config->bodies[i].len;
    load->requests = calloc(config->n_bodies, sizeof *load->requests);
    load->request_bytes = malloc(bytes);
    if (load->requests == NULL || load->request_bytes == NULL)
        return false;
    uint8_t *at = load->request_bytes;
    for (uint32_t i = 0; i < config->n_bodies; i++) {
        fs_slice body = config->bodies[i];
        load->requests[i].data = at;
        at += http_head(config, i, at, bytes);
        if (body.len > 0)
            memcpy(at, body.data, body.len);
        at += body.len;
        load->requests[i].len = (size_t)(at - load->requests[i].data);
    }
    return true;
}

static void fill_target(fs_load *load)
{
    const fs_load_config *config = &load->config;
    load->target = (fs_load_target){
        .address = config->address,
        .address_len = config->address_len,
        .http = config->http,
        .link = {.tls = config->tls, .server_name = config->server_name, .authority = config->authority},
        .path = config->path,
        .headers = config->headers,
        .n_headers = config->n_headers,
        .timeout_us = config->send_deadline ? config->timeout_us : 0,
        .messages = config->http ? load->requests : config->bodies,
        .connect_timeout_us = config->connect_timeout_us,
        .stall_timeout_us = STALL_US,
        .slab = load->slab,
        .on_end = on_end,
        .ctx = load,
    };
    fs_load_target_init(&load->target);
}

static bool make_conns(fs_load *load)
{
    const fs_load_config *config = &load->config;
    uint32_t each = config->http ? 1 : config->in_flight;
    load->conns = calloc(config->connections, sizeof *load->conns);
    if (load->conns == NULL)
        return false;
    for (uint32_t i = 0; i < config->connections; i++)
        load->conns[i].target = &load->target;
    if (is_open_loop(load)) {
        uint64_t room = 16;
        while (room < config->max_outstanding)
            room *= 2;
        load->queue_mask = room - 1;
        load->queue = malloc(room * sizeof *load->queue);
        return load->queue != NULL;
    }
    load->calls = calloc((size_t)config->connections * each, sizeof *load->calls);
    if (load->calls == NULL)
        return false;
    for (uint32_t i = 0; i < config->connections * each; i++) {
        fs_load_call *call = &load->calls[i];
        call->next = load->conns[i / each].idle;
        load->conns[i / each].idle = call;
    }
    return true;
}

static bool make_fds(fs_load *load)
{
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    load->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    load->over_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    return load->epoll >= 0 && load->stop_fd >= 0 && load->over_fd >= 0 &&
           epoll_ctl(load->epoll, EPOLL_CTL_ADD, load->stop_fd, &event) == 0;
}

fs_load *fs_load_new(const fs_load_config *config, fs_error *err)
{
    fs_load *load = calloc(1, sizeof *load);
    if (load == NULL) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "no memory for a load generator");
        return NULL;
    }
    load->config = *config;
    load->epoll = load->stop_fd = load->over_fd = -1;
    load->edge_ns = INT64_MAX;
    load->to_ns = INT64_MAX;
    fs_hist_clear(&load->result.latency);
    fs_hist_clear(&load->result.behind);
    fs_hist_clear(&load->interval_hist);
    if (config->kind == FS_LOAD_CONSTANT)
        fs_arrivals_constant(&load->arrivals, config->rate);
    else if (config->kind == FS_LOAD_POISSON)
        fs_arrivals_poisson(&load->arrivals, config->rate, config->seed);
    else if (config->kind == FS_LOAD_REPLAY)
        fs_arrivals_recorded(&load->arrivals, config->times_us, config->n_times);
    if (!make_fds(load)) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "no descriptors for a load generator: %s", strerror(errno));
        fs_load_free(load);
        return NULL;
    }
    load->slab = fs_slab_new(SLAB_CACHE_BYTES);
    load->in = malloc(BUFFER_BYTES);
    load->out = malloc(BUFFER_BYTES);
    load->result.done_by_body = calloc(config->n_bodies, sizeof *load->result.done_by_body);
    if (load->slab == NULL || load->in == NULL || load->out == NULL || load->result.done_by_body == NULL ||
        (config->http && !make_requests(load)) || !make_conns(load)) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "no memory for %u connections and %u bodies", config->connections,
                config->n_bodies);
        fs_load_free(load);
        return NULL;
    }
    fill_target(load);
    return load;
}

int fs_load_start(fs_load *load, fs_error *err)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    int rc = 0;
    if (load->config.processor >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        if (load->config.processor < CPU_SETSIZE)
            CPU_SET((unsigned)load->config.processor, &set);
        rc = pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
    }
    /* Signals are for the caller's threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (rc == 0)
        rc = pthread_create(&load->thread, &attributes, run, load);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (rc == EINVAL && load->config.processor >= 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "there is no processor %d to run on", load->config.processor);
    if (rc != 0)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "cannot start a thread: %s", strerror(rc));
    load->started = true;
    pthread_setname_np(load->thread, "fs-load-gen");
    return 0;
}

bool fs_load_wait(fs_load *load, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = load->over_fd, .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms) > 0;
}

fs_load_progress fs_load_read(const fs_load *load)
{
    int64_t begin_ns = atomic_load_explicit(&load->shown_begin_ns, memory_order_relaxed);
    return (fs_load_progress){
        .elapsed_ns = begin_ns > 0 ? clock_ns(CLOCK_MONOTONIC) - begin_ns : 0,
        .measuring = atomic_load_explicit(&load->shown_measuring, memory_order_relaxed),
        .sent = atomic_load_explicit(&load->shown_sent, memory_order_relaxed),
        .done = atomic_load_explicit(&load->shown_done, memory_order_relaxed),
        .failed = atomic_load_explicit(&load->shown_failed, memory_order_relaxed),
        .outstanding = atomic_load_explicit(&load->shown_outstanding, memory_order_relaxed),
    };
}

void fs_load_stop(fs_load *load)
{
    uint64_t one = 1;
    atomic_store_explicit(&load->stop, true, memory_order_relaxed);
    while (write(load->stop_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

const fs_load_result *fs_load_join(fs_load *load)
{
    if (load->started && !load->joined)
        pthread_join(load->thread, NULL);
    load->joined = true;
    return &load->result;
}

void fs_load_free(fs_load *load)
{
    if (load == NULL)
        return;
    if (load->started && !load->joined) {
        fs_load_stop(load);
        fs_load_join(load);
    }
    while (load->spare != NULL) {
        fs_load_call *call = load->spare;
        load->spare = call->next;
        fs_slab_free(call);
    }
    if (load->epoll >= 0)
        close(load->epoll);
    if (load->stop_fd >= 0)
        close(load->stop_fd);
    if (load->over_fd >= 0)
        close(load->over_fd);
    free(load->result.intervals);
    free(load->result.done_by_body);
    free(load->queue);
    free(load->calls);
    free(load->conns);
    free(load->requests);
    free(load->request_bytes);
    free(load->in);
    free(load->out);
    if (load->slab != NULL)
        fs_slab_release(load->slab);
    free(load);
}
