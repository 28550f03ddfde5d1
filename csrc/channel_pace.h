/* channel_pace: how long calls have taken lately: one quantile, from counts that fade.
 *
 * Called by channel, under its lock: one for each endpoint and path. Recording is a few instructions; the
 * quantile is looked up anew every FS_PACE_EVERY values. No memory of its own. */
#ifndef FS_CHANNEL_PACE_H
#define FS_CHANNEL_PACE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    FS_PACE_STEPS = 8,                            /* slots to a doubling: values are known to an eighth */
    FS_PACE_SLOTS = (32 - 3 + 1) * FS_PACE_STEPS, /* up to 2^32 us */
    FS_PACE_EVERY = 16,
    FS_PACE_LEAST = 32,                           /* values before the quantile says anything */
    FS_PACE_FADE = 1024,                          /* values at which all counts are halved */
};

typedef struct fs_pace {
    uint32_t total, since; /* counted; since the quantile was last looked up */
    int64_t value_us;      /* 0: not known yet */
    uint16_t counts[FS_PACE_SLOTS];
} fs_pace;

/* Counts a value, in microseconds. Whether value_us is another now. */
bool fs_pace_record(fs_pace *pace, int64_t us, double quantile);

/* The lower median of what is known among `n` values (zeros are not known), which it sorts; 0 when none is.
 * Over endpoints it says how long a call takes on a server that is well, as long as half of them are. */
int64_t fs_pace_median(int64_t *values_us, uint32_t n);

#endif
