/* figures: see figures.h. */
#include "figures.h"

#include "status.h"

static uint32_t slot_of(int64_t us)
{
    uint64_t value = us < 0 ? 0 : (uint64_t)us;
    if (value >= UINT64_C(1) << FS_FIGURE_TOP)
        value = (UINT64_C(1) << FS_FIGURE_TOP) - 1;
    if (value < UINT64_C(1) << FS_FIGURE_BITS)
        return (uint32_t)value;
    unsigned shift = 64 - FS_FIGURE_BITS - (unsigned)__builtin_clzll(value);
    return (shift << (FS_FIGURE_BITS - 1)) + (uint32_t)(value >> shift);
}

/* The greatest value of a slot. */
static uint64_t slot_high(uint32_t slot)
{
    unsigned shift = slot < 1u << FS_FIGURE_BITS ? 0 : (slot >> (FS_FIGURE_BITS - 1)) - 1;
    return ((uint64_t)(slot - (shift << (FS_FIGURE_BITS - 1)) + 1) << shift) - 1;
}

enum fs_outcome fs_outcome_of(int code, bool ran)
{
    switch (code) {
    case FS_OK:
        return FS_OUTCOME_OK;
    case FS_CANCELLED:
        return FS_OUTCOME_CANCELLED;
    case FS_INVALID_ARGUMENT:
    case FS_OUT_OF_RANGE:
        return FS_OUTCOME_REFUSED;
    case FS_RESOURCE_EXHAUSTED:
    case FS_UNAVAILABLE:
        return FS_OUTCOME_FAILED;
    default: /* before it ran: an unknown signature, bytes that are no request */
        return ran ? FS_OUTCOME_FAILED : FS_OUTCOME_REFUSED;
    }
}

void fs_figures_count(fs_figures *figures, int code, bool ran, int64_t us)
{
    enum fs_outcome outcome = fs_outcome_of(code, ran);
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(&figures->outcomes[outcome], 1, memory_order_relaxed);
    if (outcome == FS_OUTCOME_OK || outcome == FS_OUTCOME_CANCELLED || code == FS_DEADLINE_EXCEEDED)
        atomic_fetch_add_explicit(&figures->slots[slot_of(us)], 1, memory_order_relaxed);
}

void fs_figures_latency(const fs_figures *figures, const double *quantiles, uint64_t *us, uint32_t n)
{
    uint64_t counts[FS_FIGURE_SLOTS];
    uint64_t total = 0;
    for (uint32_t i = 0; i < FS_FIGURE_SLOTS; i++) {
        counts[i] = atomic_load_explicit(&figures->slots[i], memory_order_relaxed);
        total += counts[i];
    }
    uint32_t slot = 0;
    uint64_t seen = counts[0];
    for (uint32_t i = 0; i < n; i++) {
        /* The least count that is that share at least: 1 to total. A product such as 0.07 * 100 comes out a hair
         * above 7, and must not count as 8. */
        double exact = quantiles[i] * (double)total * (1 - 0x1p-50);
        uint64_t rank = (uint64_t)exact;
        rank += (double)rank < exact || rank == 0;
        while (seen < rank && slot + 1 < FS_FIGURE_SLOTS)
            seen += counts[++slot];
        us[i] = total == 0 ? 0 : slot_high(slot);
    }
}
