/* load_own: what the files of load share: the generator's state, and what they call of each other.
 *
 * Included by load.c (from outside), load_run.c (the thread's loop and its connections) and load_calls.c
 * (requests on their way). All but the outside runs on the generator's thread. */
#ifndef FS_LOAD_OWN_H
#define FS_LOAD_OWN_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "arrivals.h"
#include "load_conn.h"
#include "load_tally.h"

enum { FS_LOAD_BUFFER_BYTES = 256 << 10 };

enum fs_load_phase { FS_PHASE_COMING, FS_PHASE_RUNNING, FS_PHASE_DRAINING, FS_PHASE_OVER };

/* A request for which no connection has room yet. */
typedef struct fs_load_waiting {
    int64_t since_ns;
    uint32_t body;
    bool measured;
} fs_load_waiting;

struct fs_load {
    fs_load_config config;
    fs_load_target target;
    fs_load_tally tally;
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
    fs_load_waiting *queue; /* a ring */
    uint64_t queue_mask, queue_head, queue_tail;

    enum fs_load_phase phase;
    bool closing;
    int64_t now_ns;         /* of this turn */
    int64_t stamp_ns;       /* when the bytes were read that are being looked at, */
    size_t stamped_in;      /*   and how many there had been */
    int64_t begin_ns;       /* of the run */
    int64_t ticked_ns;
    fs_arrivals arrivals;
    int64_t due_ns;         /* open loop: the next request; INT64_MAX: none */
    uint64_t issued;
    fs_error wrong;         /* what is wrong with the answer that is being looked at */

    /* Written by the thread, read by any; relaxed, since nothing hangs on them. */
    atomic_uint_fast64_t shown_sent, shown_done, shown_failed, shown_outstanding;
    atomic_int_fast64_t shown_begin_ns;
    atomic_bool shown_measuring;
    atomic_bool stop, finish; /* relaxed: they carry nothing else */
    bool started, joined;
    pthread_t thread;
};

static inline int64_t fs_load_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int64_t fs_load_now_us(const fs_load *load)
{
    return load->now_ns / 1000;
}

static inline bool fs_load_is_open(const fs_load *load)
{
    return load->config.kind != FS_LOAD_CLOSED;
}

static inline bool fs_load_has_waiting(const fs_load *load)
{
    return load->queue_head != load->queue_tail;
}

static inline uint64_t fs_load_outstanding(const fs_load *load)
{
    return load->in_flight + (load->queue_tail - load->queue_head);
}

/* The thread's function; `user` is the fs_load. */
void *fs_load_run(void *user);

/* The connection is written at the end of this turn. */
void fs_load_touch(fs_load *load, fs_load_conn *conn);
void fs_load_flush_touched(fs_load *load);

/* The target's on_end. */
void fs_load_on_end(void *ctx, fs_load_call *call, const fs_load_end *end);

/* Closed loop: sends the requests that a connection has to make. */
void fs_load_refill(fs_load *load, fs_load_conn *conn);

/* Open loop: sends what is due by now, in batches, and writes it; sets when the next one is due. */
void fs_load_issue(fs_load *load);
void fs_load_next_arrival(fs_load *load);

/* Requests that have waited too long fail; those that wait while no connection is up or coming up, too. */
void fs_load_expire(fs_load *load);
void fs_load_fail_the_hopeless(fs_load *load);

#endif
