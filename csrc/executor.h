/* executor: the native threads that run batches. They never take the GIL and never touch a connection.
 *
 * An executor looks over the queues that it may serve, asks the policy for one, claims it for as long as
 * taking calls needs, runs the batch, and mails the calls home. With nothing to do it spins for spin_us
 * and then parks; a push on an empty queue wakes exactly one. */
#ifndef FS_EXECUTOR_H
#define FS_EXECUTOR_H

#include "epoch.h"
#include "policy.h"
#include "servable.h"
#include "trace_ring.h"

enum { FS_MAX_EXECUTORS = 64 };

typedef struct fs_executors fs_executors;

typedef struct fs_executors_config {
    int32_t threads;   /* 1 .. FS_MAX_EXECUTORS */
    int32_t spin_us;
    bool tensor_content;    /* replies carry tensor_content instead of typed fields */
    bool compress_replies;  /* in the request's own encoding, from FS_DEFLATE_FROM_BYTES on */
    bool no_spread;         /* for measurement: executors stay where the kernel has them, see spread.h */
    fs_trace *trace;        /* where the threads tell what they do; NULL: nowhere */
} fs_executors_config;

/* Starts the threads. NULL when out of memory or threads, or when that many are not possible. `policy` and
 * `epoch` outlive them. */
fs_executors *fs_executors_start(const fs_executors_config *config, const fs_policy *policy, fs_epoch *epoch);

/* Waits for running batches and ends the threads. No call is waiting any more. */
void fs_executors_stop(fs_executors *pool);

/* Has executors part that share a processor and need not: see spread.h. By who brings work, each time. */
void fs_executors_spread(fs_executors *pool, int64_t now_us);

/* Whether one of them waits for something in the middle of a batch, and has since the call before: see late.h. One
 * thread at a time. */
bool fs_executors_wait(fs_executors *pool, int64_t now_us);

/* A queue of this servable has just become non-empty: wakes a parked executor that may serve it, a
 * reserved one first. Any thread. */
void fs_executors_wake(fs_executors *pool, fs_servable *servable);

/* The servables whose queues are served from now on, replacing the list before; returns when no executor can
 * see the old one. Also deals out the reserved executors. Loader threads, one at a time. */
int fs_executors_serve(fs_executors *pool, fs_servable **servables, uint32_t n);

/* System allocations and CPU time of all executors' threads, for statistics. */
uint64_t fs_executors_system_allocs(const fs_executors *pool);
int64_t fs_executors_cpu_us(const fs_executors *pool);

#endif
