/* breaks: a thread that gives way is off its processor whenever the kernel's tick comes.
 *
 * Linux moves a thread that waits behind others when a tick finds it waiting and another processor idle. One
 * that runs a load never is, whatever the load's priority, and where two threads wait on one processor and a load runs
 * on the other, that is even enough to be left alone: all that serve can share one processor for a tenth of a
 * second, beside a load that has the other for itself. A load that sleeps through the ticks leaves it idle.
 *
 * Used by the loader's threads, by trials and by what trials are forked from; started and stopped by the thread
 * itself, and where csrc/preload is by those that it makes meanwhile. Knows nothing of what the thread does: it may
 * stop anywhere, with locks held, as one that gives way may always. */
#ifndef FS_BREAKS_H
#define FS_BREAKS_H

#include "visibility.h"

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

typedef struct fs_breaks {
    timer_t timer;
    int64_t tick_ns;   /* from one to the next */
    int64_t a_tick_ns; /* on the monotonic clock; ticks keep their distance to it as long as the machine is up */
    int64_t usual_ns;  /* from one break to the next, where the thread is at work */
    int64_t every_ns;  /* the same now */
    int64_t spent_ns;  /* its processor time when it was last asked */
    int normal;
    int raised; /* so often in a row it did not give way when it was asked */
    bool started;
    bool inherited;
    void *stack; /* the handler's; NULL: the thread had one */
} fs_breaks;

/* Shared: where csrc/preload is, whoever calls these calls the ones there, and the signal has one handler. */

/* Told of each start (`breaks`) and stop (NULL) on the thread that it is of, where something preloaded has it. */
FS_SHARED void fs_breaks_note(const fs_breaks *breaks) __attribute__((weak));

/* From now on the calling thread takes breaks while its nice value is above `normal`: a few hundred
 * microseconds every 4 ms or so, seldom while it sleeps. First it watches for a tick, some milliseconds. A timer's
 * signal interrupts it for that; system calls go on afterwards where they can. Without a timer, or where the signal is
 * somebody else's already, there are none. */
FS_SHARED void fs_breaks_start(fs_breaks *breaks, int normal);

/* The same for a thread that one with `parents` has made, until it is raised and stays so: it may be there for
 * longer than what its parent does. */
FS_SHARED void fs_breaks_inherit(fs_breaks *breaks, const fs_breaks *parents);

/* By the thread that has started them; does nothing when they are not. */
FS_SHARED void fs_breaks_stop(fs_breaks *breaks);

#endif
