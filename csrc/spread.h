/* spread: threads that work at once part when they are on one processor and another has none of those that serve.
 *
 * The kernel places a thread when it wakes, and moves one that waits when a tick finds a processor idle. Threads
 * that are too busy to sleep may share one for a tenth of a second, beside another that runs a load, which gives way
 * but is not idle. They see it late: sharing is what keeps them from the next piece of work. Who brings the work
 * comes by all the time, sees it within some milliseconds and moves one of them.
 *
 * Used by executors, which say where they are, and by event loops, which look. Knows no work and no queues. */
#ifndef FS_SPREAD_H
#define FS_SPREAD_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { FS_SPREAD_THREADS = 64 };

typedef struct fs_spread_place {
    _Atomic(pid_t) thread; /* 0: nobody has joined */
    cpu_set_t home;        /* where it may be when it is not being moved */
    int met;               /* who looks: so often in a row another was there; below 0: it has moved, and rests */
} fs_spread_place;

/* Zeroed, it has no threads. */
typedef struct fs_spread {
    /* Written by a thread only when it has come to another processor, so that who looks finds all of it in its
     * cache. Hints: who is moved for a wrong one has lost some microseconds. */
    _Alignas(64) _Atomic(int) cpus[FS_SPREAD_THREADS];
    _Alignas(64) _Atomic(int64_t) next_us; /* when somebody may look; INT64_MAX: somebody does */
    fs_spread_place places[FS_SPREAD_THREADS];
} fs_spread;

/* The calling thread is that number, below FS_SPREAD_THREADS, from now on. */
void fs_spread_join(fs_spread *spread, int number);

/* The thread of that number begins a piece of work. */
static inline void fs_spread_work(fs_spread *spread, int number)
{
    int cpu = sched_getcpu();
    if (atomic_load_explicit(&spread->cpus[number], memory_order_relaxed) != cpu)
        atomic_store_explicit(&spread->cpus[number], cpu, memory_order_relaxed);
}

/* Whether `look` would do anything: each time that there is work, this is all that it costs. */
static inline bool fs_spread_due(const fs_spread *spread, int64_t now_us)
{
    return now_us >= atomic_load_explicit(&spread->next_us, memory_order_relaxed);
}

/* Looks once a millisecond, in one thread at a time. `working` has a bit for each thread that is at work. Of those
 * that were twice in a row on one processor, all but the first go to others that they may use and that neither one of
 * them nor the calling thread is on, while there are any. They may be moved anywhere again afterwards. */
void fs_spread_look(fs_spread *spread, unsigned long long working, int64_t now_us);

#endif
