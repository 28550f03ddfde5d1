/* lane: tasks that wait for one of a few threads, first come, first served.
 *
 * Posting takes no lock and never allocates: the loop and executors post, and the threads that take may have a
 * low priority, so that a lock they held could keep a request waiting for as long as they wait for a processor.
 * The lock inside is theirs alone. Knows nodes, not what they are part of. */
#ifndef FS_LANE_H
#define FS_LANE_H

#include <pthread.h>
#include <semaphore.h>

#include "mailbox.h"

typedef struct fs_lane {
    _Alignas(64) _Atomic(fs_node *) posted; /* newest first */
    sem_t tokens;                           /* one for each task, and one for each thread when it is closed */
    pthread_mutex_t mutex;                  /* between the threads that take */
    fs_node *first, *last;                  /* oldest first */
} fs_lane;

void fs_lane_init(fs_lane *lane);
void fs_lane_destroy(fs_lane *lane);

/* The node is the lane's until it is taken. Any thread. */
void fs_lane_post(fs_lane *lane, fs_node *node);

/* Waits for the next node; NULL, once to each of `threads`, when the lane is closed and empty. */
fs_node *fs_lane_take(fs_lane *lane);
void fs_lane_close(fs_lane *lane, int threads);

#endif
