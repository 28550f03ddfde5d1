/* spread: see spread.h. */
#include "spread.h"

#include <string.h>
#include <unistd.h>

enum {
    EVERY_US = 1000,
    MEETINGS = 2, /* one by chance is over when either of them sleeps */
    REST = 16,    /* looks from one move to the next, at least */
};

static void set_all(cpu_set_t *cpus)
{
    memset(cpus, 0xff, sizeof *cpus);
}

/* What the kernel is told to allow is kept apart from what the container allows, which may change: only the user's
 * own choice is to be given back. Where all that may be had is had, there is none. */
void fs_spread_join(fs_spread *spread, int number)
{
    cpu_set_t now, all, most;
    fs_spread_place *place = &spread->places[number];
    set_all(&all);
    place->home = all;
    if (sched_getaffinity(0, sizeof now, &now) == 0 && sched_setaffinity(0, sizeof all, &all) == 0 &&
        sched_getaffinity(0, sizeof most, &most) == 0 && !CPU_EQUAL(&now, &most)) {
        place->home = now;
        sched_setaffinity(0, sizeof now, &now);
    }
    /* release: its home, for who looks. */
    atomic_store_explicit(&place->thread, gettid(), memory_order_release);
}

static int cpu_of(const fs_spread *spread, int number)
{
    return atomic_load_explicit(&spread->cpus[number], memory_order_relaxed);
}

/* To the next one that is free, seen from `cpu`: those beside each other share caches. May go anywhere again
 * afterwards, so that the kernel can correct this. The one that it goes to; -1: there is none. */
static int move_on(const fs_spread_place *place, pid_t thread, int cpu, const cpu_set_t *used)
{
    cpu_set_t allowed, there;
    if (sched_getaffinity(thread, sizeof allowed, &allowed) != 0)
        return -1;
    for (int step = 1; step < CPU_SETSIZE; step++) {
        int next = (cpu + step) % CPU_SETSIZE;
        if (!CPU_ISSET(next, &allowed) || CPU_ISSET(next, used))
            continue;
        CPU_ZERO(&there);
        CPU_SET(next, &there);
        /* Of the user's choice the container may have left nothing. */
        if (sched_setaffinity(thread, sizeof there, &there) == 0 &&
            sched_setaffinity(thread, sizeof place->home, &place->home) != 0)
            sched_setaffinity(thread, sizeof allowed, &allowed);
        return next;
    }
    return -1;
}

/* `others`: where those before it are. `used`: where any of them is, and who looks. */
static void look_at(fs_spread_place *place, int cpu, const cpu_set_t *others, cpu_set_t *used)
{
    pid_t thread = atomic_load_explicit(&place->thread, memory_order_acquire);
    if (thread == 0)
        return;
    if (place->met < 0) {
        place->met++;
    } else if (!CPU_ISSET(cpu, others)) {
        place->met = 0;
    } else if (++place->met >= MEETINGS) {
        int there = move_on(place, thread, cpu, used);
        if (there >= 0) {
            CPU_SET(there, used);
            place->met = -REST;
        }
    }
}

static void look(fs_spread *spread, unsigned long long working)
{
    cpu_set_t others, used;
    CPU_ZERO(&others);
    CPU_ZERO(&used);
    CPU_SET(sched_getcpu(), &used);
    for (unsigned long long left = working; left != 0; left &= left - 1)
        CPU_SET(cpu_of(spread, __builtin_ctzll(left)), &used);
    for (; working != 0; working &= working - 1) {
        int number = __builtin_ctzll(working);
        int cpu = cpu_of(spread, number);
        look_at(&spread->places[number], cpu, &others, &used);
        CPU_SET(cpu, &others);
    }
}

void fs_spread_look(fs_spread *spread, unsigned long long working, int64_t now_us)
{
    int64_t next_us = atomic_load_explicit(&spread->next_us, memory_order_relaxed);
    /* acquire and release: what the one before has noted. */
    if (now_us < next_us || !atomic_compare_exchange_strong_explicit(&spread->next_us, &next_us, INT64_MAX,
                                                                     memory_order_acquire, memory_order_relaxed))
        return;
    look(spread, working);
    atomic_store_explicit(&spread->next_us, now_us + EVERY_US, memory_order_release);
}
