/* channel_timers: see channel_timers.h. */
#include "channel_timers.h"

#include <stddef.h>
#include <stdlib.h>

#include "status.h"

int fs_timers_promise(fs_timers *timers)
{
    if (timers->promised == timers->room) {
        uint32_t room = timers->room == 0 ? 32 : timers->room * 2;
        struct fs_timer_place *heap = realloc(timers->heap, ((size_t)room + 1) * sizeof *heap);
        if (heap == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        timers->heap = heap;
        timers->room = room;
    }
    timers->promised++;
    return 0;
}

void fs_timers_forget(fs_timers *timers, fs_timer *timer)
{
    fs_timers_set(timers, timer, INT64_MAX);
    timers->promised--;
}

void fs_timers_free(fs_timers *timers)
{
    free(timers->heap);
    *timers = (fs_timers){0};
}

static void put(fs_timers *timers, uint32_t at, struct fs_timer_place place)
{
    timers->heap[at] = place;
    place.timer->at = at;
}

static void rise(fs_timers *timers, uint32_t at, struct fs_timer_place place)
{
    while (at > 1 && timers->heap[at / 2].due_us > place.due_us) {
        put(timers, at, timers->heap[at / 2]);
        at /= 2;
    }
    put(timers, at, place);
}

static void sink(fs_timers *timers, uint32_t at, struct fs_timer_place place)
{
    for (uint32_t below; (below = at * 2) <= timers->n; at = below) {
        if (below < timers->n && timers->heap[below + 1].due_us < timers->heap[below].due_us)
            below++;
        if (timers->heap[below].due_us >= place.due_us)
            break;
        put(timers, at, timers->heap[below]);
    }
    put(timers, at, place);
}

/* Puts `place` at `at` or wherever it belongs from there. */
static void settle(fs_timers *timers, uint32_t at, struct fs_timer_place place)
{
    if (at > 1 && timers->heap[at / 2].due_us > place.due_us)
        rise(timers, at, place);
    else
        sink(timers, at, place);
}

void fs_timers_set(fs_timers *timers, fs_timer *timer, int64_t due_us)
{
    if (due_us == INT64_MAX) {
        uint32_t at = timer->at;
        if (at == 0)
            return;
        timer->at = 0;
        struct fs_timer_place last = timers->heap[timers->n--];
        if (last.timer != timer)
            settle(timers, at, last);
        return;
    }
    if (timer->at != 0 && timer->due_us == due_us)
        return;
    timer->due_us = due_us;
    struct fs_timer_place place = {due_us, timer};
    if (timer->at == 0)
        rise(timers, ++timers->n, place);
    else
        settle(timers, timer->at, place);
}

fs_timer *fs_timers_take(fs_timers *timers, int64_t now_us)
{
    if (fs_timers_due(timers) > now_us)
        return NULL;
    fs_timer *first = timers->heap[1].timer;
    fs_timers_set(timers, first, INT64_MAX);
    return first;
}
