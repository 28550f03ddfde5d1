/* tf_lists: what a model has been run with by name: its lists of feeds, fetches and targets.
 *
 * TensorFlow builds an executor for each list, in each order, and keeps it as long as the session, so whoever may send
 * any list could fill the memory. Used by tf.c, on any thread, under a mutex that no run by signature takes. */
#ifndef FS_TF_LISTS_H
#define FS_TF_LISTS_H

#include <pthread.h>

#include "status.h"
#include "tf_api.h"

#define FS_TF_LISTS_MAX 64

typedef struct fs_tf_list {
    const TF_Output *feeds;
    uint32_t n_feeds;
    const TF_Output *fetches;
    uint32_t n_fetches;
    const TF_Operation *const *targets;
    uint32_t n_targets;
} fs_tf_list;

typedef struct fs_tf_lists {
    pthread_mutex_t mutex;
    struct fs_tf_seen *first;
    uint32_t n;
} fs_tf_lists;

void fs_tf_lists_init(fs_tf_lists *lists);
void fs_tf_lists_destroy(fs_tf_lists *lists);

/* 0 when this list was there before or is one of the first FS_TF_LISTS_MAX; otherwise -FS_RESOURCE_EXHAUSTED with
 * *err, which is also for want of memory. */
int fs_tf_lists_admit(fs_tf_lists *lists, const fs_tf_list *list, fs_error *err);

#endif
