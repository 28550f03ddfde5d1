/* spread: threads that work at once part when they find each other on one processor.
 *
 * The kernel places a thread when it wakes, and moves one that waits when a tick finds a processor idle. Threads
 * that are too busy to sleep may share one for a tenth of a second, beside another that is kept by something of no
 * priority inside the kernel (page faults of a load, say). One of them sees that and moves itself.
 *
 * Used by executors. Knows no work and no queues. */
#ifndef FS_SPREAD_H
#define FS_SPREAD_H

#include <sched.h>
#include <stdatomic.h>

enum { FS_SPREAD_THREADS = 64 };

/* Written by a thread only when it has come to another processor, so that who looks finds all of it in its
 * cache. Zeros are as good as any other numbers: hints. */
typedef struct fs_spread {
    _Alignas(64) _Atomic(int) cpus[FS_SPREAD_THREADS]; /* where each was seen last */
} fs_spread;

/* A thread's own. */
typedef struct fs_place {
    int number;
    int met;        /* how often in a row another was there */
    cpu_set_t home; /* where it may be otherwise */
} fs_place;

/* The calling thread is that number, below FS_SPREAD_THREADS, from now on. */
void fs_spread_join(fs_place *place, int number);

/* The calling thread begins a piece of work; `working` has a bit for each thread that does, this one or not.
 * Where it has met one with a lower number several times in a row it goes to the next processor that it may use
 * and that none of them is on. */
void fs_spread_work(fs_spread *spread, fs_place *place, unsigned long long working);

#endif
