/* spread: see spread.h. The numbers are hints, and all of them relaxed: who moves for a wrong one has lost some
 * microseconds. */
#include "spread.h"

#include <sched.h>
#include <stdbool.h>

enum {
    MEETINGS = 4, /* one by chance is over when either of them sleeps */
    REST = 32,    /* pieces of work from one move to the next, at least */
};

static bool is_used(fs_place *places, int n, int cpu)
{
    for (int i = 0; i < n; i++) {
        if (atomic_load_explicit(&places[i].cpu, memory_order_relaxed) == cpu)
            return true;
    }
    return false;
}

/* To the next one that is free, seen from `cpu`: those beside each other share caches. May go anywhere again
 * afterwards, so that the kernel can correct this. */
static void move_on(fs_place *places, int n, int cpu)
{
    cpu_set_t allowed, there;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return;
    for (int step = 1; step < CPU_SETSIZE; step++) {
        int next = (cpu + step) % CPU_SETSIZE;
        if (!CPU_ISSET(next, &allowed) || is_used(places, n, next))
            continue;
        CPU_ZERO(&there);
        CPU_SET(next, &there);
        if (sched_setaffinity(0, sizeof there, &there) == 0)
            sched_setaffinity(0, sizeof allowed, &allowed);
        return;
    }
}

void fs_spread_work(fs_place *places, int n, int own)
{
    fs_place *place = &places[own];
    int cpu = sched_getcpu();
    atomic_store_explicit(&place->cpu, cpu, memory_order_relaxed);
    if (!is_used(places, own, cpu)) {
        place->met = place->met < 0 ? place->met + 1 : 0;
    } else if (++place->met >= MEETINGS) {
        move_on(places, n, cpu);
        place->met = -REST;
    }
}

void fs_spread_sleep(fs_place *place)
{
    atomic_store_explicit(&place->cpu, -1, memory_order_relaxed);
}
