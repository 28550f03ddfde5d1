/* load_tally: what a load generator counts: which requests belong to the window, what became of them, and
 * what happened in each interval.
 *
 * Used by load, on its thread; once that has ended, by who has joined it. Knows no connection and no
 * schedule. Times are passed in and go back by no more than a turn of load's loop. */
#ifndef FS_LOAD_TALLY_H
#define FS_LOAD_TALLY_H

#include <stdbool.h>

#include "load.h"
#include "sock.h"

enum fs_load_window { FS_WINDOW_BEFORE, FS_WINDOW_INSIDE, FS_WINDOW_AFTER };

typedef struct fs_load_tally {
    fs_load_result result;
    uint64_t sent, done, failed; /* of all requests, inside the window or not */
    fs_sock_moved moved;         /* bytes, since the begin */
    enum fs_load_window window;
    int64_t from_ns, to_ns;      /* the window; to_ns INT64_MAX: until it is closed */
    int64_t edge_ns;             /* when fs_load_tally_advance has something to do */

    /* Its own. */
    int64_t interval_ns;
    int64_t last_answer_ns;
    fs_load_interval interval;
    fs_hist interval_hist;
    uint32_t interval_room;
    fs_sock_moved moved_before;
    int64_t cpu_before_ns;
    fs_load_record *records;
    uint64_t max_records;
} fs_load_tally;

/* 0, or -FS_RESOURCE_EXHAUSTED. The window is still to be set. */
int fs_load_tally_open(fs_load_tally *tally, uint32_t n_bodies, int64_t interval_ns, uint64_t max_records);
void fs_load_tally_free(fs_load_tally *tally);

/* The run begins: the window is [from_ns, to_ns). */
void fs_load_tally_begin(fs_load_tally *tally, int64_t from_ns, int64_t to_ns);

/* The time is `at_ns`: the window or an interval may begin or end. */
void fs_load_tally_pass(fs_load_tally *tally, int64_t at_ns);
static inline void fs_load_tally_advance(fs_load_tally *tally, int64_t at_ns)
{
    if (at_ns >= tally->edge_ns)
        fs_load_tally_pass(tally, at_ns);
}

/* Whether a request whose time runs from `since_ns` is one of the window's. */
static inline bool fs_load_tally_measures(const fs_load_tally *tally, int64_t since_ns)
{
    return since_ns >= tally->from_ns && since_ns < tally->to_ns;
}

/* How a request ended. */
typedef struct fs_load_outcome {
    int64_t since_ns;      /* what its time runs from */
    int64_t at_ns;
    uint32_t body;
    bool measured;
    int failure;           /* 0, enum fs_code or fs_load_failure */
    int64_t version;       /* that the answer names; -1: none is known */
    const fs_error *error; /* may be NULL */
} fs_load_outcome;

/* A request was sent; it has ended. */
void fs_load_tally_sent(fs_load_tally *tally, bool measured);
void fs_load_tally_ended(fs_load_tally *tally, const fs_load_outcome *outcome);

/* Keeps the run's first error. */
void fs_load_tally_note(fs_load_tally *tally, int failure, const fs_error *error);

/* The run is over: ends the window where it is not, with its last answer, or at `at_ns` when it was cut
 * short. */
void fs_load_tally_close(fs_load_tally *tally, bool cut_short, int64_t at_ns);

#endif
