/* channel_pace: see channel_pace.h. */
#include "channel_pace.h"

#include <stdlib.h>

/* Values below FS_PACE_STEPS have a slot each; above, every doubling is cut into FS_PACE_STEPS slots. */
static uint32_t slot_of(int64_t us)
{
    uint64_t v = us < 0 ? 0 : us >= INT64_C(1) << 32 ? (UINT64_C(1) << 32) - 1 : (uint64_t)us;
    if (v < FS_PACE_STEPS)
        return (uint32_t)v;
    unsigned shift = 60 - (unsigned)__builtin_clzll(v); /* so that v >> shift is from 8 to 15 */
    return shift * FS_PACE_STEPS + (uint32_t)(v >> shift);
}

/* The greatest value of a slot. */
static int64_t top_of(uint32_t slot)
{
    if (slot < 2 * FS_PACE_STEPS)
        return slot;
    unsigned shift = slot / FS_PACE_STEPS - 1;
    int64_t from = (int64_t)(slot - shift * FS_PACE_STEPS) << shift;
    return from + (INT64_C(1) << shift) - 1;
}

static void fade(fs_pace *pace)
{
    pace->total = 0;
    for (uint32_t i = 0; i < FS_PACE_SLOTS; i++) {
        pace->counts[i] /= 2;
        pace->total += pace->counts[i];
    }
}

static int64_t look_up(const fs_pace *pace, double quantile)
{
    double rank = quantile * pace->total;
    uint32_t below = 0;
    for (uint32_t i = 0; i < FS_PACE_SLOTS; i++) {
        below += pace->counts[i];
        if (below >= rank && below > 0)
            return top_of(i) + (top_of(i) == 0);
    }
    return top_of(FS_PACE_SLOTS - 1);
}

bool fs_pace_record(fs_pace *pace, int64_t us, double quantile)
{
    if (pace->total >= FS_PACE_FADE)
        fade(pace);
    pace->counts[slot_of(us)]++;
    pace->total++;
    if (++pace->since < FS_PACE_EVERY || pace->total < FS_PACE_LEAST)
        return false;
    pace->since = 0;
    int64_t before = pace->value_us;
    pace->value_us = look_up(pace, quantile);
    return pace->value_us != before;
}

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t fs_pace_median(int64_t *values_us, uint32_t n)
{
    uint32_t known = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (values_us[i] > 0)
            values_us[known++] = values_us[i];
    }
    if (known == 0)
        return 0;
    if (known > 1)
        qsort(values_us, known, sizeof *values_us, compare);
    return values_us[(known - 1) / 2];
}
