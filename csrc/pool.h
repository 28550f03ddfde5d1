/* pool: a few threads that help whoever has a loop of independent pieces.
 *
 * Called by the packing of features, from any number of threads at once; each works on its own loop itself,
 * and the pool's threads join whichever is waiting. They sleep when there is none, and never call Python.
 * Knows nothing of what the pieces are. */
#ifndef FS_POOL_H
#define FS_POOL_H

#include <stdint.h>

typedef struct fs_pool fs_pool;

/* Piece `index` of a loop. `slot` is the number of the thread, below fs_pool_slots: no two pieces of one loop
 * run with the same slot at the same time. */
typedef void fs_pool_fn(void *arg, uint64_t index, uint32_t slot);

/* A pool of `helpers` threads; fewer, or none, where the system gives no more. NULL when out of memory. */
fs_pool *fs_pool_new(uint32_t helpers);

/* Ends the threads. No loop may be running. */
void fs_pool_free(fs_pool *pool);

/* How many threads a loop may run on: the helpers and the caller, whose slot is 0. */
uint32_t fs_pool_slots(const fs_pool *pool);

/* Runs pieces [0, n) and returns when all are done; what they wrote is then visible to the caller. With NULL
 * in the calling thread, and so in a child forked off a process with a pool: it has no such threads. */
void fs_pool_run(fs_pool *pool, uint64_t n, fs_pool_fn *fn, void *arg);

#endif
