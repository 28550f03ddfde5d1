/* named_run: SessionService.SessionRun: one run of a model's graph by the names of its tensors, from the request to
 * its reply.
 *
 * Any such run may take as long as it likes and shares nothing with others, so it is neither batched nor given to an
 * executor: threads of its own do all of it, decompressing and decoding included, and owners of connections only hand
 * it over. There are none unless the configuration asks for them. */
#ifndef FS_NAMED_RUN_H
#define FS_NAMED_RUN_H

#include "h2.h"
#include "owner.h"

#define FS_NAMED_RUNS_WAITING 1024 /* more are UNAVAILABLE at once */

typedef struct fs_named_runs fs_named_runs;

/* Threads for runs by name: `fs-named-N`. NULL when out of memory or threads. */
fs_named_runs *fs_named_runs_start(fs_engine *engine, int threads);
void fs_named_runs_stop(fs_named_runs *runs); /* what was posted is done first; NULL is fine */

/* A unary request for SessionRun is complete: fs_h2_handler.on_call's work. Owner's thread; the engine has threads for
 * it. */
void fs_named_run_start(fs_owner *owner, fs_rpc *rpc);

#endif
