/* spread: threads that work at once part when they find each other on one processor.
 *
 * The kernel places a thread when it wakes and moves one that waits when it finds a processor idle. Threads that are
 * too busy to sleep, beside one that runs something of no priority inside the kernel (a read of 300 MB, say),
 * may share a processor for a tenth of a second. One of them sees that and moves itself.
 *
 * Used by executors, each with a place of its own. Knows no work and no queues. */
#ifndef FS_SPREAD_H
#define FS_SPREAD_H

#include <stdatomic.h>

typedef struct fs_place {
    _Alignas(64) _Atomic(int) cpu; /* where its thread was seen last; -1: it sleeps */
    int met;                       /* how often in a row another was there; the thread's own */
} fs_place;

/* The thread of places[own] begins a piece of work; n places in all. Where it has met a thread with a lower number
 * several times in a row it goes to the next processor that it may use and that nobody works on. */
void fs_spread_work(fs_place *places, int n, int own);

/* The thread is about to sleep. */
void fs_spread_sleep(fs_place *place);

#endif
