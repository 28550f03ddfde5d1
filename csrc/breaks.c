/* breaks: see breaks.h. When ticks come is found by watching the coarse clock move: what it shows then lags behind
 * by any part of a tick, and not by the same everywhere. */
#include "breaks.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid /* glibc has the field, older ones not its name */
#endif

#define NS_PER_S INT64_C(1000000000)

enum {
    /* Ticks come every 1 to 10 ms: of those that come often, some are left out. */
    EVERY_NS = 4000000,
    /* A thread that is asleep anyway is asked this much less often in the end: a pool that a load has made has more
     * threads than work, and each signal wakes one. */
    SELDOM = 8,
    IDLE_SHARE = 64, /* who has worked for less than one part in so many of the time has slept */
    FOR_GOOD = 32,   /* who was raised and is found so this often in a row is not lowered again */
    BEFORE_NS = 200000,
    AFTER_NS = 50000,
    /* A tick is well seen by one who was not away for longer, which a tick's own work may take; of so many one is. */
    AWAY_NS = 30000,
    WATCHED = 64,
    STACK_BYTES = 64 << 10, /* the handler's; the registers of AMX alone are 8 KiB */
};

static int64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = ns / NS_PER_S, .tv_nsec = ns % NS_PER_S};
}

/* Finds out when they come. */
static void watch_ticks(fs_breaks *breaks)
{
    struct timespec length = {0, 0};
    clock_getres(CLOCK_MONOTONIC_COARSE, &length);
    breaks->tick_ns = length.tv_sec == 0 && length.tv_nsec > 0 ? length.tv_nsec : EVERY_NS;
    int64_t coarse = now_ns(CLOCK_MONOTONIC_COARSE), looked = now_ns(CLOCK_MONOTONIC);
    int64_t end = looked + WATCHED * breaks->tick_ns, away_ns = INT64_MAX;
    breaks->a_tick_ns = looked;
    while (away_ns > AWAY_NS && looked < end) {
        int64_t shown = now_ns(CLOCK_MONOTONIC_COARSE), now = now_ns(CLOCK_MONOTONIC);
        if (shown != coarse && now - looked < away_ns) {
            away_ns = now - looked;
            breaks->a_tick_ns = looked;
        }
        coarse = shown;
        looked = now;
    }
}

/* Until the next one. */
static int64_t to_tick_ns(const fs_breaks *breaks, int64_t now)
{
    return breaks->tick_ns - (now - breaks->a_tick_ns) % breaks->tick_ns;
}

static int break_signal(void)
{
    return SIGRTMIN + 9;
}

/* From the tick after the next on: one that is closer may be over before the timer is set. */
static bool arm(const fs_breaks *breaks)
{
    int64_t now = now_ns(CLOCK_MONOTONIC), tick = breaks->tick_ns;
    const struct itimerspec when = {
        .it_interval = timespec_of(breaks->every_ns),
        .it_value = timespec_of(now + to_tick_ns(breaks, now) + tick - BEFORE_NS),
    };
    return timer_settime(breaks->timer, TIMER_ABSTIME, &when, NULL) == 0;
}

/* Half as often each time that the thread was found asleep, as often as usual once it has worked. */
static void pace(fs_breaks *breaks)
{
    int64_t spent_ns = now_ns(CLOCK_THREAD_CPUTIME_ID), every_ns = breaks->every_ns;
    bool slept = (spent_ns - breaks->spent_ns) * IDLE_SHARE < every_ns;
    breaks->spent_ns = spent_ns;
    if (slept && every_ns < SELDOM * breaks->usual_ns)
        breaks->every_ns = 2 * every_ns;
    else if (!slept)
        breaks->every_ns = breaks->usual_ns;
    if (breaks->every_ns != every_ns)
        arm(breaks);
}

static void take_break(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    fs_breaks *breaks = info->si_value.sival_ptr;
    int saved = errno;
    int64_t left_ns = to_tick_ns(breaks, now_ns(CLOCK_MONOTONIC));
    /* On Linux the value is a thread's. One that was raised meanwhile is in a hurry. */
    bool gives_way = getpriority(PRIO_PROCESS, 0) > breaks->normal;
    breaks->raised = gives_way ? 0 : breaks->raised + 1;
    if (breaks->inherited && breaks->raised == FOR_GOOD)
        timer_settime(breaks->timer, 0, &(struct itimerspec){.it_value = {0, 0}}, NULL);
    else
        pace(breaks);
    /* Whoever comes late, for it was not running, has missed it. */
    if (gives_way && left_ns <= BEFORE_NS) {
        struct timespec length = timespec_of(left_ns + AFTER_NS);
        nanosleep(&length, NULL);
    }
    errno = saved;
}

static bool take_signal(void)
{
    struct sigaction before;
    if (sigaction(break_signal(), NULL, &before) != 0)
        return false;
    if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction == take_break)
        return true;
    if (before.sa_handler != SIG_DFL)
        return false;
    struct sigaction ours = {.sa_sigaction = take_break, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    return sigaction(break_signal(), &ours, NULL) == 0;
}

/* The handler needs a stack of its own: oneDNN's matrix kernels keep numbers below the stack pointer, further than
 * the ABI lets them, where the kernel would put the handler's frame. false: there is none. */
static bool take_stack(fs_breaks *breaks)
{
    stack_t there;
    breaks->stack = NULL;
    if (sigaltstack(NULL, &there) != 0)
        return false;
    if ((there.ss_flags & SS_DISABLE) == 0)
        return true;
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED)
        return false;
    breaks->stack = stack;
    const stack_t ours = {.ss_sp = breaks->stack, .ss_size = STACK_BYTES};
    if (sigaltstack(&ours, NULL) == 0)
        return true;
    munmap(stack, STACK_BYTES);
    return false;
}

static void leave_stack(fs_breaks *breaks)
{
    if (breaks->stack != NULL && sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL) == 0)
        munmap(breaks->stack, STACK_BYTES);
}

/* Of the calling thread, until it is deleted: after that no signal of it comes. */
static bool start_timer(fs_breaks *breaks)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = break_signal()};
    event.sigev_value.sival_ptr = breaks;
    event.sigev_notify_thread_id = gettid();
    if (timer_create(CLOCK_MONOTONIC, &event, &breaks->timer) != 0)
        return false;
    int64_t tick = breaks->tick_ns;
    breaks->usual_ns = (EVERY_NS + tick - 1) / tick * tick;
    breaks->every_ns = breaks->usual_ns;
    breaks->spent_ns = now_ns(CLOCK_THREAD_CPUTIME_ID);
    if (arm(breaks))
        return true;
    timer_delete(breaks->timer);
    return false;
}

static void note(const fs_breaks *breaks)
{
    if (fs_breaks_note != NULL)
        fs_breaks_note(breaks);
}

/* Its ticks are known. */
static void start(fs_breaks *breaks)
{
    if (!take_signal() || !take_stack(breaks))
        return;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, break_signal());
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    breaks->started = start_timer(breaks);
    if (breaks->started)
        note(breaks);
    else
        leave_stack(breaks);
}

void fs_breaks_start(fs_breaks *breaks, int normal)
{
    *breaks = (fs_breaks){.normal = normal};
    watch_ticks(breaks);
    start(breaks);
}

void fs_breaks_inherit(fs_breaks *breaks, const fs_breaks *parents)
{
    *breaks = (fs_breaks){
        .tick_ns = parents->tick_ns,
        .a_tick_ns = parents->a_tick_ns,
        .normal = parents->normal,
        .inherited = true,
    };
    start(breaks);
}

void fs_breaks_stop(fs_breaks *breaks)
{
    if (!breaks->started)
        return;
    timer_delete(breaks->timer);
    note(NULL);
    leave_stack(breaks);
    breaks->started = false;
}
