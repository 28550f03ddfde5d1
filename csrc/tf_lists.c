/* tf_lists: see tf_lists.h. A list is remembered as numbers: how many of each kind, then operations' addresses and
 * outputs' indices, which mean the same as long as the graph. */
#include "tf_lists.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

typedef struct fs_tf_seen {
    struct fs_tf_seen *next;
    size_t len; /* of numbers, in bytes */
    uintptr_t numbers[];
} fs_tf_seen;

void fs_tf_lists_init(fs_tf_lists *lists)
{
    *lists = (fs_tf_lists){.first = NULL};
    pthread_mutex_init(&lists->mutex, NULL);
}

void fs_tf_lists_destroy(fs_tf_lists *lists)
{
    while (lists->first != NULL) {
        fs_tf_seen *seen = lists->first;
        lists->first = seen->next;
        free(seen);
    }
    pthread_mutex_destroy(&lists->mutex);
}

static uintptr_t *put_outputs(uintptr_t *at, const TF_Output *outputs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        *at++ = (uintptr_t)outputs[i].oper;
        *at++ = (uintptr_t)outputs[i].index;
    }
    return at;
}

/* NULL: out of memory. */
static fs_tf_seen *remember(const fs_tf_list *list)
{
    size_t len = (3 + 2 * (size_t)list->n_feeds + 2 * (size_t)list->n_fetches + list->n_targets) *
                 sizeof(uintptr_t);
    fs_tf_seen *seen = malloc(sizeof *seen + len);
    if (seen == NULL)
        return NULL;
    *seen = (fs_tf_seen){.len = len};
    uintptr_t *at = seen->numbers;
    *at++ = list->n_feeds;
    *at++ = list->n_fetches;
    *at++ = list->n_targets;
    at = put_outputs(at, list->feeds, list->n_feeds);
    at = put_outputs(at, list->fetches, list->n_fetches);
    for (uint32_t i = 0; i < list->n_targets; i++)
        *at++ = (uintptr_t)list->targets[i];
    return seen;
}

static bool known(const fs_tf_lists *lists, const fs_tf_seen *wanted)
{
    for (const fs_tf_seen *seen = lists->first; seen != NULL; seen = seen->next) {
        if (seen->len == wanted->len && memcmp(seen->numbers, wanted->numbers, seen->len) == 0)
            return true;
    }
    return false;
}

int fs_tf_lists_admit(fs_tf_lists *lists, const fs_tf_list *list, fs_error *err)
{
    fs_tf_seen *wanted = remember(list);
    if (wanted == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    pthread_mutex_lock(&lists->mutex);
    bool here = known(lists, wanted);
    bool room = lists->n < FS_TF_LISTS_MAX;
    if (!here && room) {
        wanted->next = lists->first;
        lists->first = wanted;
        lists->n++;
        wanted = NULL;
    }
    pthread_mutex_unlock(&lists->mutex);
    free(wanted);
    if (here || room)
        return 0;
    return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                   "this version has been run with %d different lists of feeds, fetches and targets already, and "
                   "TensorFlow keeps each of them: use those lists, in their order, or a signature",
                   FS_TF_LISTS_MAX);
}
