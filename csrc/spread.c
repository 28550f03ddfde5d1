/* spread: see spread.h. The numbers are relaxed: who moves for a wrong one has lost some microseconds. */
#include "spread.h"

#include <stdbool.h>
#include <string.h>

enum {
    MEETINGS = 4, /* one by chance is over when either of them sleeps */
    REST = 32,    /* pieces of work from one move to the next, at least */
};

static void set_all(cpu_set_t *cpus)
{
    memset(cpus, 0xff, sizeof *cpus);
}

/* What the kernel is told to allow is kept apart from what the container allows, which may change: only the user's
 * own choice is to be given back. Where all that may be had is had, there is none. */
void fs_spread_join(fs_place *place, int number)
{
    cpu_set_t now, all, most;
    place->number = number;
    place->met = 0;
    set_all(&all);
    place->home = all;
    if (sched_getaffinity(0, sizeof now, &now) != 0 || sched_setaffinity(0, sizeof all, &all) != 0)
        return;
    if (sched_getaffinity(0, sizeof most, &most) == 0 && !CPU_EQUAL(&now, &most)) {
        place->home = now;
        sched_setaffinity(0, sizeof now, &now);
    }
}

static bool is_used(fs_spread *spread, unsigned long long by, int cpu)
{
    for (; by != 0; by &= by - 1) {
        if (atomic_load_explicit(&spread->cpus[__builtin_ctzll(by)], memory_order_relaxed) == cpu)
            return true;
    }
    return false;
}

/* To the next one that is free, seen from `cpu`: those beside each other share caches. May go anywhere again
 * afterwards, so that the kernel can correct this. */
static void move_on(fs_spread *spread, const fs_place *place, unsigned long long working, int cpu)
{
    cpu_set_t allowed, there;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    for (int step = 1; step < CPU_SETSIZE; step++) {
        int next = (cpu + step) % CPU_SETSIZE;
        if (!CPU_ISSET(next, &allowed) || is_used(spread, working, next))
            continue;
        CPU_ZERO(&there);
        CPU_SET(next, &there);
        /* Of the user's choice the container may have left nothing. */
        if (sched_setaffinity(0, sizeof there, &there) == 0 &&
            sched_setaffinity(0, sizeof place->home, &place->home) != 0)
            sched_setaffinity(0, sizeof allowed, &allowed);
        return;
    }
}

void fs_spread_work(fs_spread *spread, fs_place *place, unsigned long long working)
{
    _Atomic(int) *own = &spread->cpus[place->number];
    int cpu = sched_getcpu();
    if (atomic_load_explicit(own, memory_order_relaxed) != cpu)
        atomic_store_explicit(own, cpu, memory_order_relaxed);
    if (place->met < 0) {
        place->met++;
    } else if (!is_used(spread, working & ((1ull << place->number) - 1), cpu)) {
        place->met = 0;
    } else if (++place->met == MEETINGS) {
        move_on(spread, place, working, cpu);
        place->met = -REST;
    }
}
