/* channel_timers: what is to be done when, as a binary heap of timers that others embed.
 *
 * Called by channel, under its lock. Knows no clock and nothing of what its timers are for. Setting one never
 * fails, because each was promised its place when what embeds it was made. */
#ifndef FS_CHANNEL_TIMERS_H
#define FS_CHANNEL_TIMERS_H

#include <stdint.h>

typedef struct fs_timer {
    int64_t due_us;
    uint32_t at;   /* its place in the heap, counted from 1; 0: not set */
    uint8_t kind;  /* the owner's: what embeds it */
} fs_timer;

typedef struct fs_timers {
    struct fs_timer_place {
        int64_t due_us; /* here too, so that sifting does not touch the timers themselves */
        fs_timer *timer;
    } *heap; /* heap[1] is the first */
    uint32_t n, room, promised;
} fs_timers;

/* Makes sure that there is a place for one timer more. 0, or -FS_RESOURCE_EXHAUSTED. */
int fs_timers_promise(fs_timers *timers);
/* Takes a timer away for good, and its place with it. */
void fs_timers_forget(fs_timers *timers, fs_timer *timer);
void fs_timers_free(fs_timers *timers);

/* Sets, moves or (INT64_MAX) unsets a timer. */
void fs_timers_set(fs_timers *timers, fs_timer *timer, int64_t due_us);

/* When the first is due, INT64_MAX when none is set. */
static inline int64_t fs_timers_due(const fs_timers *timers)
{
    return timers->n > 0 ? timers->heap[1].due_us : INT64_MAX;
}

/* Takes the first out of the heap if it is due, else NULL. */
fs_timer *fs_timers_take(fs_timers *timers, int64_t now_us);

#endif
