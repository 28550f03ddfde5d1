/* metrics_read: reading what a core counts (metrics.h), from another process and while it goes on.
 *
 * Whoever reads takes nothing on trust that stands in the memory: a core may have died in the middle of anything. Pages
 * that nobody has touched are not touched here either, for in a sparse file that alone would make them. A view belongs
 * to one thread at a time. */
#ifndef FS_METRICS_READ_H
#define FS_METRICS_READ_H

#include "metrics.h"

typedef struct fs_metrics_view {
    int fd; /* ours */
    const uint8_t *at;
    size_t bytes, page;
    uint32_t n; /* of blocks; 0: no core has begun to count */
    size_t data_from, data_to; /* pages that are there, the last that were looked for, and before them, */
    size_t hole_from;          /*   from here on, none */
} fs_metrics_view;

/* Who a block is, as copied: the slices point into it. */
typedef struct fs_meter_name {
    uint64_t serial;
    bool closed;
    int64_t version;
    uint32_t model_len, signature_len;
    char model[FS_METRICS_NAME], signature[FS_METRICS_NAME];
} fs_meter_name;

/* A slot that is not empty. */
typedef struct fs_tally_pair {
    uint32_t slot;
    uint64_t n;
} fs_tally_pair;

/* `fd` stays the caller's, and may be closed. 0, or -code: -FS_INVALID_ARGUMENT, not a file that is sealed against
 * shrinking, which could end who has it mapped; -FS_RESOURCE_EXHAUSTED. */
int fs_metrics_view_open(int fd, fs_metrics_view *view);
void fs_metrics_view_close(fs_metrics_view *view);

/* Begins to read anew. 0, with view->n set, or -FS_INVALID_ARGUMENT: what stands there is of another layout. */
int fs_metrics_view_begin(fs_metrics_view *view);

/* The next block from number `i` on that is in use, in rising order; NULL: there is none. *i is its number. */
const fs_meter *fs_metrics_view_next(fs_metrics_view *view, uint32_t *i, fs_meter_name *name);

/* Whether what was read of a block since is all of the one that was named. */
bool fs_metrics_view_same(const fs_meter *meter, const fs_meter_name *name);

/* The slots that are not empty, in rising order, to `pairs`, which has room for all; their number. Of one block, in the
 * order of its fields. */
uint32_t fs_metrics_view_tally(fs_metrics_view *view, const fs_tally *tally, fs_tally_pair *pairs);

/* Copies place `i` of a block's padding; false: nothing was counted there. After its tallies, in rising order. */
bool fs_metrics_view_padding(fs_metrics_view *view, const fs_meter *meter, uint32_t i, fs_padding *out);

static inline const fs_metrics_head *fs_metrics_view_head(const fs_metrics_view *view)
{
    return (const fs_metrics_head *)(const void *)view->at;
}

static inline uint64_t fs_tick_read(const fs_tick *tick)
{
    /* relaxed: statistics order nothing. */
    return atomic_load_explicit(tick, memory_order_relaxed);
}

#endif
