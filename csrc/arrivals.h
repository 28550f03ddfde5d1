/* arrivals: when the requests of an open loop are due: at equal gaps, at random ones, or as recorded.
 *
 * Used by load, on its thread. Knows no clock: times are nanoseconds from the begin of the run. */
#ifndef FS_ARRIVALS_H
#define FS_ARRIVALS_H

#include <stdint.h>

enum fs_arrivals_kind { FS_ARRIVALS_CONSTANT, FS_ARRIVALS_POISSON, FS_ARRIVALS_RECORDED };

typedef struct fs_arrivals {
    enum fs_arrivals_kind kind;
    double gap_ns;            /* between two, on average */
    const int64_t *times_us;  /* recorded: in rising order; the caller's, it outlives this */
    uint64_t n_times;
    uint64_t at;              /* how many have been given */
    double now_ns;            /* of the last one, exactly */
    uint64_t random[2];
} fs_arrivals;

/* `rate_per_s` > 0. The same seed gives the same times. */
void fs_arrivals_constant(fs_arrivals *arrivals, double rate_per_s);
void fs_arrivals_poisson(fs_arrivals *arrivals, double rate_per_s, uint64_t seed);
void fs_arrivals_recorded(fs_arrivals *arrivals, const int64_t *times_us, uint64_t n_times);

/* When the next one is due, never before the one before it; INT64_MAX: no more come. */
int64_t fs_arrivals_next(fs_arrivals *arrivals);

#endif
