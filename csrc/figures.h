/* figures: what has become of the requests of one version, counted by many threads at once without a lock.
 *
 * Executors and threads that own connections count; the loop's thread reads. A count is a relaxed addition, so
 * what is read together need not be of one moment. Latencies go to slots of a thirty-second of their size:
 * fine enough to compare percentiles, small enough to stay in a cache. */
#ifndef FS_FIGURES_H
#define FS_FIGURES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What a request came to. */
enum fs_outcome {
    FS_OUTCOME_OK,
    FS_OUTCOME_FAILED,    /* the server or the model failed: also UNAVAILABLE, and a deadline that passed in the
                           * queue, for the version did not get to it */
    FS_OUTCOME_REFUSED,   /* it does not fit the version: INVALID_ARGUMENT and the like */
    FS_OUTCOME_CANCELLED, /* the caller went away first */
    FS_OUTCOMES
};

/* Values below 2^FS_FIGURE_BITS us have a slot each; above, every doubling has half as many. */
#define FS_FIGURE_BITS 6
#define FS_FIGURE_TOP 32 /* 2^32 us, 71 minutes, and more count as the largest */
#define FS_FIGURE_SLOTS ((1u << FS_FIGURE_BITS) + ((FS_FIGURE_TOP - FS_FIGURE_BITS) << (FS_FIGURE_BITS - 1)))

typedef struct fs_figures {
    _Alignas(64) atomic_uint_fast64_t outcomes[FS_OUTCOMES];
    atomic_uint_fast64_t slots[FS_FIGURE_SLOTS];
} fs_figures;

/* What a status code means for the version. `ran`: it came from a run and not from the checks before it. */
enum fs_outcome fs_outcome_of(int code, bool ran);

/* Counts a request that took `us` from complete to answered. Only what waited for an answer has a latency:
 * successes, and those that were cancelled or late, whose latency is at least that. Any thread. */
void fs_figures_count(fs_figures *figures, int code, bool ran, int64_t us);

static inline uint64_t fs_figures_read(const fs_figures *figures, enum fs_outcome outcome)
{
    return atomic_load_explicit(&figures->outcomes[outcome], memory_order_relaxed);
}

/* The latencies that the shares `quantiles` (rising, 0 to 1) are not above, in us, each up to a thirty-second
 * too large; 0 while there is none. Any thread. */
void fs_figures_latency(const fs_figures *figures, const double *quantiles, uint64_t *us, uint32_t n);

#endif
