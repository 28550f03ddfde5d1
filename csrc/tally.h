/* tally: a histogram that many threads add to without a lock, in memory that another process may read meanwhile.
 *
 * A value goes to a slot that is at most a sixty-fourth of it wide, so that the middle of the slot is off by less than
 * one part in a hundred. What is read together need not be of one moment. No memory of its own; all zeros is empty, and
 * slots that were never touched take no pages where the memory is sparse. How many there are is the sum of the slots;
 * the sum of the values is kept by whoever has a place for it. */
#ifndef FS_TALLY_H
#define FS_TALLY_H

#include <stdatomic.h>
#include <stdint.h>

/* Values below 2^FS_TALLY_BITS have a slot each; above, every doubling is cut into half as many. */
#define FS_TALLY_BITS 7
#define FS_TALLY_TOP 42 /* values from 2^42 on (73 minutes in ns) count as the largest */
#define FS_TALLY_SLOTS ((1u << FS_TALLY_BITS) + ((FS_TALLY_TOP - FS_TALLY_BITS) << (FS_TALLY_BITS - 1)))

typedef struct fs_tally {
    atomic_uint_fast64_t slots[FS_TALLY_SLOTS];
} fs_tally;

static inline uint32_t fs_tally_slot(uint64_t value)
{
    if (value >= UINT64_C(1) << FS_TALLY_TOP)
        value = (UINT64_C(1) << FS_TALLY_TOP) - 1;
    if (value < UINT64_C(1) << FS_TALLY_BITS)
        return (uint32_t)value;
    unsigned shift = 64 - FS_TALLY_BITS - (unsigned)__builtin_clzll(value);
    return (shift << (FS_TALLY_BITS - 1)) + (uint32_t)(value >> shift);
}

/* The least and the greatest value of a slot. */
static inline uint64_t fs_tally_low(uint32_t slot)
{
    unsigned shift = slot < 1u << FS_TALLY_BITS ? 0 : (slot >> (FS_TALLY_BITS - 1)) - 1;
    return (uint64_t)(slot - (shift << (FS_TALLY_BITS - 1))) << shift;
}

static inline uint64_t fs_tally_high(uint32_t slot)
{
    unsigned shift = slot < 1u << FS_TALLY_BITS ? 0 : (slot >> (FS_TALLY_BITS - 1)) - 1;
    return fs_tally_low(slot) + (UINT64_C(1) << shift) - 1;
}

/* Counts a value, and adds it to *sum. Any thread. */
static inline void fs_tally_add(fs_tally *tally, uint64_t value, atomic_uint_fast64_t *sum)
{
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(&tally->slots[fs_tally_slot(value)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(sum, value, memory_order_relaxed);
}

#endif
