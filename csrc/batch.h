/* batch: rows of several calls through one run: gather, run, scatter.
 *
 * Executors' threads. Knows tensors, calls and the runtime, not how calls were chosen. */
#ifndef FS_BATCH_H
#define FS_BATCH_H

#include "queue.h"
#include "reply.h"

typedef struct fs_batch_result {
    int64_t run_began_us;
    int64_t run_us;   /* of the first run */
    int64_t explained_us; /* and what was spent on saying why runs failed */
    int64_t run_rows; /* it had, padding included */
    bool compiled;
    long finished;    /* calls that are finished, each with a pin on the servable to take away */
} fs_batch_result;

/* Runs what was taken from `queue` and sets each call's outcome; finished calls go to `homeward`, of tasks the
 * whole when it was the last. A batch
 * that fails is run again call by call, plain, so that each answers for itself. On return the items' calls
 * are not the executor's any more. The caller pins the servable meanwhile. */
fs_batch_result fs_batch_run(fs_queue *queue, fs_taking *taking, const fs_reply_config *config, fs_slab *slab,
                             fs_homeward *homeward);

#endif
