/* trace: what the threads of the engine tell of batches, calls and tasks: events for trace_ring, put together.
 *
 * Called where the work is done, each function by the thread whose track it gets; whoever calls has asked with
 * fs_track_wanted first where that matters, so that with nothing wanted none of this runs. Which calls have a span is
 * decided here, once their batch is over: by the flag of the caller's traceparent, or by lots. Knows calls, batches
 * and tasks; knows nothing of who reads. */
#ifndef FS_TRACE_H
#define FS_TRACE_H

#include "batch.h"
#include "loader.h"
#include "trace_ring.h"

/* What an executor did with `queue` since `taken_us`: a batch of `taking` that came to `result`, unless nothing was
 * taken. The calls that go home, in `homeward`, are still the executor's; those of them that are sampled get a
 * span: what will be told of them, since their version may be gone by then. */
void fs_trace_batch(fs_track *track, uint32_t wanted, const fs_queue *queue, const fs_taking *taking,
                    const fs_batch_result *result, int64_t taken_us, fs_homeward *homeward, fs_slab *slab,
                    uint64_t *random);

/* A call with a span is about to be answered. Its owner's thread. */
void fs_trace_call(const fs_call *call);

/* A call that never was in a queue is about to be answered: tells of it if it is sampled. Its owner's thread. */
void fs_trace_refused(const fs_call *call);

/* A SessionRun that was begun at `taken_us` is over and not answered yet. `servable` is NULL when there was none. */
void fs_trace_named(fs_track *track, uint32_t wanted, const fs_rpc *rpc, const fs_servable *servable, int code,
                    int64_t taken_us, uint64_t *random);

/* A task begins; what is to be told at its end. */
fs_trace_event fs_trace_task_begins(fs_track *track, const fs_task *task);
void fs_trace_task_ends(fs_track *track, fs_trace_event *event, int rc, int64_t opened_us);

/* A run of a warm-up since `began_us`; `queue` is NULL: a recorded request's. */
void fs_trace_warm_run(fs_track *track, const fs_servable *servable, const fs_queue *queue, bool compiled,
                       int64_t rows, int64_t began_us, int rc);

#endif
