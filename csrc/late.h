/* late: whether a thread that serves waits for something, in the middle of a piece of work that takes too long.
 *
 * Each says when it begins a piece of work and how long that should take. Another thread looks from time to time: who
 * is late, is asleep, and has not run since the look before, waits for somebody.
 *
 * Used by executors and by the loader's watching thread. Knows neither. */
#ifndef FS_LATE_H
#define FS_LATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

/* Zeroed, it is of no thread. */
typedef struct fs_late {
    _Alignas(64) _Atomic(int64_t) from_us; /* the piece of work is late from then on; 0: there is none */
    _Atomic(pid_t) thread;                 /* 0: nobody has joined */
    clockid_t clock;                       /* its processor time */
    /* Who looks: the late work that it has seen asleep, and the thread's processor time then. */
    int64_t seen_us;
    int64_t spent_ns;
} fs_late;

/* It is about the calling thread from now on. */
void fs_late_join(fs_late *late);

/* The thread begins a piece of work, and has done it. `now_us` is above 0. */
static inline void fs_late_begin(fs_late *late, int64_t now_us, int64_t expected_us)
{
    enum { AT_LEAST_US = 1000 };
    int64_t most_us = 2 * expected_us > AT_LEAST_US ? 2 * expected_us : AT_LEAST_US;
    atomic_store_explicit(&late->from_us, now_us + most_us, memory_order_relaxed);
}

static inline void fs_late_end(fs_late *late)
{
    atomic_store_explicit(&late->from_us, 0, memory_order_relaxed);
}

/* Whether the thread waits, and has waited since the look before. One thread at a time, and the one that it is about
 * has not ended. */
bool fs_late_look(fs_late *late, int64_t now_us);

#endif
