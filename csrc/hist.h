/* hist: an HDR histogram: counts of values over eleven decades, each known to one part in a thousand.
 *
 * One thread records; others may read a copy. No memory of its own. Values are nanoseconds where this program
 * uses it, but it does not care. */
#ifndef FS_HIST_H
#define FS_HIST_H

#include <stdint.h>

/* Values below 2^FS_HIST_BITS have a slot each; above, every doubling is cut into 2^(FS_HIST_BITS - 1) slots.
 * */
#define FS_HIST_BITS 11
#define FS_HIST_TOP 42 /* values from 2^42 on (73 minutes in ns) count as the largest */
#define FS_HIST_SLOTS ((1u << FS_HIST_BITS) + ((FS_HIST_TOP - FS_HIST_BITS) << (FS_HIST_BITS - 1)))

typedef struct fs_hist {
    uint64_t total;
    uint64_t min, max; /* exact; min is UINT64_MAX while there is none */
    double sum;
    uint64_t counts[FS_HIST_SLOTS];
} fs_hist;

static inline uint32_t fs_hist_slot(uint64_t value)
{
    if (value >= (UINT64_C(1) << FS_HIST_TOP))
        value = (UINT64_C(1) << FS_HIST_TOP) - 1;
    if (value < (UINT64_C(1) << FS_HIST_BITS))
        return (uint32_t)value;
    unsigned shift = 64 - FS_HIST_BITS - (unsigned)__builtin_clzll(value);
    return (shift << (FS_HIST_BITS - 1)) + (uint32_t)(value >> shift);
}

static inline void fs_hist_record(fs_hist *hist, uint64_t value)
{
    hist->counts[fs_hist_slot(value)]++;
    hist->total++;
    hist->sum += (double)value;
    hist->min = value < hist->min ? value : hist->min;
    hist->max = value > hist->max ? value : hist->max;
}

void fs_hist_clear(fs_hist *hist);

/* The same for one that was cleared before: looks only at what has been recorded since, so that it may be
 * done often. */
void fs_hist_reset(fs_hist *hist);

/* Adds the counts of `from`. */
void fs_hist_merge(fs_hist *to, const fs_hist *from);

/* The least and the greatest value of a slot. */
uint64_t fs_hist_low(uint32_t slot);
uint64_t fs_hist_high(uint32_t slot);

/* The value that the share `quantile` (0 to 1) of all is not above: the upper end of its slot, at most max; 0
 * when empty. `values` for several quantiles in rising order in one pass. */
uint64_t fs_hist_value_at(const fs_hist *hist, double quantile);
void fs_hist_values_at(const fs_hist *hist, const double *quantiles, uint64_t *values, uint32_t n);

#endif
