/* load_run: the generator's thread: its loop, its connections, begin and end of a run. See load_own.h.
 *
 * Each turn of the loop: read from every connection that has something, let what is overdue fail, send what
 * is due, and write each connection that was touched by any of these once. */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "load_own.h"

enum {
    EVENTS = 256,
    FIRST_BACKOFF_US = 10000, /* of dialling again; doubled each time, up to */
    LAST_BACKOFF_US = 1000000,
    TICK_NS = 10000000,       /* how late a time-out may be noticed */
};

/* ---- connections ------------------------------------------------------------------------------------- */

void fs_load_touch(fs_load *load, fs_load_conn *conn)
{
    if (conn->touched)
        return;
    conn->touched = true;
    conn->next_touched = load->touched;
    load->touched = conn;
}

static void dial(fs_load *load, fs_load_conn *conn)
{
    conn->retry_us = INT64_MAX;
    fs_load_conn_dial(conn, fs_load_now_us(load));
    fs_load_touch(load, conn);
}

/* It has gone down: when may it be dialled again? */
static void schedule_dial(fs_load *load, fs_load_conn *conn)
{
    conn->events = 0; /* its socket is closed, which took it out of the epoll */
    if (load->phase == FS_PHASE_COMING) {
        fs_load_tally_note(&load->tally, FS_LOAD_LOST, fs_load_conn_why(conn));
        conn->retry_us = 0;
    } else if (conn->closed_in_peace) {
        dial(load, conn);
    } else if (conn->retry_us == INT64_MAX) {
        int64_t next_us = conn->backoff_us > 0 ? conn->backoff_us * 2 : FIRST_BACKOFF_US;
        conn->backoff_us = next_us < LAST_BACKOFF_US ? next_us : LAST_BACKOFF_US;
        conn->retry_us = fs_load_now_us(load) + conn->backoff_us;
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

void fs_load_flush_touched(fs_load *load)
{
    while (load->touched != NULL) {
        fs_load_conn *conn = load->touched;
        load->touched = conn->next_touched;
        conn->touched = false;
        bool was_open = fs_load_conn_state_of(conn) == FS_LOAD_OPEN;
        if (!fs_load_is_open(load))
            fs_load_refill(load, conn);
        fs_load_conn_flush(conn, load->out, FS_LOAD_BUFFER_BYTES, fs_load_now_us(load), &load->tally.moved);
        enum fs_load_conn_state state = fs_load_conn_state_of(conn);
        conn->tried = conn->tried || state != FS_LOAD_COMING;
        if (state == FS_LOAD_OPEN && !was_open) {
            conn->backoff_us = 0;
            fs_load_touch(load, conn); /* now it can be given something to do */
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
            if (load->phase == FS_PHASE_COMING || load->phase == FS_PHASE_OVER)
                continue;
            if (conn->retry_us == INT64_MAX) {
                fs_load_touch(load, conn);
            } else if (conn->retry_us <= fs_load_now_us(load)) {
                load->tally.result.reconnects++;
                dial(load, conn);
            }
        } else if (fs_load_conn_tick(conn, fs_load_now_us(load)) || conn->idle != NULL) {
            fs_load_touch(load, conn); /* with requests that could not be started, too */
        }
    }
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
        load->tally.result.no_connection = true;
        load->phase = FS_PHASE_OVER;
        return;
    }
    load->phase = FS_PHASE_RUNNING;
    load->begin_ns = fs_load_clock_ns();
    int64_t from_ns = load->begin_ns + load->config.warmup_ns;
    int64_t to_ns = load->config.duration_ns > 0 ? from_ns + load->config.duration_ns : INT64_MAX;
    fs_load_tally_begin(&load->tally, from_ns, to_ns);
    atomic_store_explicit(&load->shown_begin_ns, load->begin_ns, memory_order_relaxed);
    if (fs_load_is_open(load))
        fs_load_next_arrival(load);
    if (load->due_ns == INT64_MAX)
        load->phase = FS_PHASE_DRAINING;
    for (uint32_t i = 0; i < load->config.connections; i++)
        fs_load_touch(load, &load->conns[i]);
}

static void end_when_drained(fs_load *load)
{
    if (fs_load_outstanding(load) > 0)
        return;
    /* The window goes on to its end, unless that is made by the last answer. */
    bool by_time = load->config.duration_ns > 0 && load->due_ns != INT64_MAX;
    if (by_time && load->tally.window != FS_WINDOW_AFTER)
        return;
    load->phase = FS_PHASE_OVER;
}

/* How long to sleep. */
static int64_t patience_ns(const fs_load *load)
{
    if (load->more != NULL || load->touched != NULL)
        return 0;
    int64_t until_ns = load->ticked_ns + TICK_NS;
    int64_t wake_ns = load->due_ns - load->config.spin_ns;
    if (load->phase == FS_PHASE_RUNNING && fs_load_is_open(load) && wake_ns < until_ns)
        until_ns = wake_ns;
    if (load->tally.edge_ns < until_ns && load->phase != FS_PHASE_COMING)
        until_ns = load->tally.edge_ns;
    int64_t left_ns = until_ns - fs_load_clock_ns();
    return left_ns > 0 ? left_ns : 0;
}

/* An open loop is to wake in time, to the nanosecond: an epoll is itself something to poll. Nothing else that
 * a run waits for is so pressing. */
static int sleep_for_events(fs_load *load, struct epoll_event *events)
{
    int64_t left_ns = patience_ns(load);
    int left_ms = (int)((left_ns + 999999) / 1000000);
    if (fs_load_is_open(load) && left_ns > 0) {
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
    bool more = fs_load_conn_read(conn, load->in, FS_LOAD_BUFFER_BYTES, fs_load_now_us(load),
                                  &load->tally.moved);
    fs_load_touch(load, conn);
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
        if (conn == NULL) { /* fs_load_stop or fs_load_finish: their flags tell the rest */
            uint64_t rung;
            while (read(load->stop_fd, &rung, sizeof rung) < 0 && errno == EINTR) {
            }
            continue;
        }
        /* EPOLLERR and EPOLLHUP come unasked; reading tells what they are. */
        if ((events[i].events & ~(uint32_t)EPOLLOUT) != 0)
            read_conn(load, conn);
        else
            fs_load_touch(load, conn);
    }
}

static void heed_finish(fs_load *load)
{
    if (load->phase != FS_PHASE_RUNNING || !atomic_load_explicit(&load->finish, memory_order_relaxed))
        return;
    load->phase = FS_PHASE_DRAINING;
    load->due_ns = INT64_MAX; /* the last answer ends the window */
}

static void show(fs_load *load)
{
    atomic_store_explicit(&load->shown_sent, load->tally.sent, memory_order_relaxed);
    atomic_store_explicit(&load->shown_done, load->tally.done, memory_order_relaxed);
    atomic_store_explicit(&load->shown_failed, load->tally.failed, memory_order_relaxed);
    atomic_store_explicit(&load->shown_outstanding, fs_load_outstanding(load), memory_order_relaxed);
    atomic_store_explicit(&load->shown_measuring, load->tally.window == FS_WINDOW_INSIDE,
                          memory_order_relaxed);
}

static void turn(fs_load *load)
{
    struct epoll_event events[EVENTS];
    int n = sleep_for_events(load, events);
    load->now_ns = fs_load_clock_ns();
    load->stamp_ns = load->now_ns;
    load->stamped_in = load->tally.moved.in;
    fs_load_tally_advance(&load->tally, load->now_ns);
    read_all(load, events, n);
    fs_load_expire(load);
    if (load->now_ns - load->ticked_ns >= TICK_NS)
        tick(load);
    heed_finish(load);
    if (fs_load_is_open(load) && load->phase != FS_PHASE_COMING)
        fs_load_issue(load);
    else
        fs_load_flush_touched(load);
    fs_load_fail_the_hopeless(load);
    if (load->phase == FS_PHASE_COMING) {
        begin_when_connected(load);
    } else if (load->phase == FS_PHASE_RUNNING && load->now_ns >= load->tally.to_ns) {
        load->phase = FS_PHASE_DRAINING;
    }
    if (load->phase == FS_PHASE_DRAINING)
        end_when_drained(load);
    show(load);
}

void *fs_load_run(void *user)
{
    fs_load *load = user;
    /* The kernel may wake a sleeper 50 us late to save power, unless it is told that it matters. */
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    load->now_ns = fs_load_clock_ns();
    load->ticked_ns = load->now_ns;
    for (uint32_t i = 0; i < load->config.connections; i++)
        dial(load, &load->conns[i]);
    fs_load_flush_touched(load);
    while (load->phase != FS_PHASE_OVER && !atomic_load_explicit(&load->stop, memory_order_relaxed))
        turn(load);
    fs_load_tally_close(&load->tally, load->phase != FS_PHASE_OVER, fs_load_clock_ns());
    load->phase = FS_PHASE_OVER;
    load->closing = true;
    for (uint32_t i = 0; i < load->config.connections; i++)
        fs_load_conn_close(&load->conns[i]);
    for (; fs_load_has_waiting(load); load->queue_head++)
        load->tally.result.unanswered += load->queue[load->queue_head & load->queue_mask].measured;
    show(load);
    uint64_t one = 1;
    while (write(load->over_fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
    return NULL;
}
