/* policy: the questions that executors put to the batching scheduler.
 *
 * The answers are pure functions of what stands here, the scheduler's own (fastserve/_native/scheduler.pyx) or
 * a plug-in's (plugin.h). Executors call them several at once, without a lock and between any two batches: they
 * keep no state, and take no longer than a look at each queue. Queues, claims, parking and memory are the
 * callers'. */
#ifndef FS_POLICY_H
#define FS_POLICY_H

#include <stdint.h>

enum { FS_MAX_BUCKETS = 32 };

/* One queue with waiting calls, as an executor sees it when it looks for work. */
typedef struct fs_queue_view {
    int64_t oldest_us;   /* when its oldest waiting call arrived */
    int64_t ready_us;    /* not before this time (batch_timeout_us); <= now: ready */
    int64_t virtual_us;  /* execution time that its model was given so far, divided by its weight */
    double weight;       /* of its model, as configured */
} fs_queue_view;

/* What a queue could launch now. */
typedef struct fs_plan_view {
    int64_t rows;          /* waiting, counting those of one shape only */
    int64_t max_rows;      /* of one batch */
    uint32_t n_buckets;    /* 0: a batch is not padded, any size up to max_rows is as good */
    int32_t bucket_rows[FS_MAX_BUCKETS]; /* increasing */
    float cost_us[FS_MAX_BUCKETS];       /* of one run at that bucket; 0: not known */
} fs_plan_view;

typedef struct fs_policy {
    /* Which of n >= 1 queues to serve next: its index, or -1 for none yet; *wait_until_us is then the
     * earliest time at which that may change. */
    int (*pick)(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us);

    /* How many rows to take for the next batch: 1 .. max_rows. */
    int64_t (*plan)(const fs_plan_view *view);
} fs_policy;

#endif
