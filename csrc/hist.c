/* hist: see hist.h. */
#include "hist.h"

#include <math.h>
#include <string.h>

void fs_hist_clear(fs_hist *hist)
{
    memset(hist, 0, sizeof *hist);
    hist->min = UINT64_MAX;
}

void fs_hist_reset(fs_hist *hist)
{
    if (hist->total > 0) {
        uint32_t first = fs_hist_slot(hist->min), last = fs_hist_slot(hist->max);
        memset(hist->counts + first, 0, (last - first + 1) * sizeof hist->counts[0]);
    }
    hist->total = 0;
    hist->min = UINT64_MAX;
    hist->max = 0;
    hist->sum = 0;
}

void fs_hist_merge(fs_hist *to, const fs_hist *from)
{
    if (from->total == 0)
        return;
    uint32_t last = fs_hist_slot(from->max);
    for (uint32_t slot = fs_hist_slot(from->min); slot <= last; slot++)
        to->counts[slot] += from->counts[slot];
    to->total += from->total;
    to->sum += from->sum;
    to->min = from->min < to->min ? from->min : to->min;
    to->max = from->max > to->max ? from->max : to->max;
}

/* By how much the slot's values are shifted. */
static unsigned shift_of(uint32_t slot)
{
    return slot < (UINT32_C(1) << FS_HIST_BITS) ? 0 : (slot >> (FS_HIST_BITS - 1)) - 1;
}

uint64_t fs_hist_low(uint32_t slot)
{
    unsigned shift = shift_of(slot);
    return (uint64_t)(slot - (shift << (FS_HIST_BITS - 1))) << shift;
}

uint64_t fs_hist_high(uint32_t slot)
{
    return fs_hist_low(slot) + (UINT64_C(1) << shift_of(slot)) - 1;
}

/* The smallest count of values that is at least the share `quantile` of all: 1 to total. */
static uint64_t rank_of(const fs_hist *hist, double quantile)
{
    /* A product such as 0.07 * 100 comes out a hair above 7, and must not count as 8. */
    double exact = quantile * (double)hist->total * (1 - 0x1p-50);
    if (!(exact > 1))
        return 1;
    uint64_t rank = (uint64_t)ceil(exact);
    return rank < hist->total ? rank : hist->total;
}

uint64_t fs_hist_value_at(const fs_hist *hist, double quantile)
{
    uint64_t value;
    fs_hist_values_at(hist, &quantile, &value, 1);
    return value;
}

void fs_hist_values_at(const fs_hist *hist, const double *quantiles, uint64_t *values, uint32_t n)
{
    if (hist->total == 0) {
        for (uint32_t i = 0; i < n; i++)
            values[i] = 0;
        return;
    }
    uint32_t slot = fs_hist_slot(hist->min), last = fs_hist_slot(hist->max);
    uint64_t seen = hist->counts[slot];
    for (uint32_t i = 0; i < n; i++) {
        uint64_t rank = rank_of(hist, quantiles[i]);
        while (seen < rank && slot < last)
            seen += hist->counts[++slot];
        /* The last slot also has what is beyond the scale: there, only the exact maximum is true. */
        uint64_t high = slot == last ? hist->max : fs_hist_high(slot);
        values[i] = high < hist->max ? high : hist->max;
    }
}
