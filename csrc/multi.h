/* multi: a MultiInference as one call for each of its tasks, and their answers as one.
 *
 * The call that the client made, the whole, waits in no queue. Each task is a Classify or Regress with the same rpc
 * and the same version, batched in its signature's queue with whoever else is there. Whoever finishes the last of
 * them, which is an executor, ends the whole. Tasks are never mailed: they are the whole's, and freed with it. */
#ifndef FS_MULTI_H
#define FS_MULTI_H

#include "reply.h"

struct fs_multi {
    atomic_uint left; /* tasks that are not finished, acq_rel: the last sees the outcomes of all */
    uint32_t n;
    fs_call *tasks[];
};

/* Checks a whole that was parsed, and queues its tasks, for a version that is pinned for it. 0: it comes home. Else
 * *err says why it will not, the pin is gone and the call is the caller's. Inside a bracket, its owner's thread. */
int fs_multi_admit(fs_call *whole, fs_servable *servable, fs_error *err);

/* A task has its outcome, and is not the caller's any more. The whole, with its own outcome set, when this was the
 * last; else NULL. `slab` is the calling thread's. */
fs_call *fs_multi_finish(fs_call *task, const fs_reply_config *config, fs_slab *slab);

/* Frees the tasks: fs_call_discard's work. */
void fs_multi_discard(fs_multi *multi);

#endif
