/* test_breaks: a thread that gives way stops again and again, one that does not never, and what was the
 * thread's before is so afterwards. */
#include "breaks.h"

#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* What others have done to a signal's handler, this test's own one included, stays. */
static int break_signal(void)
{
    return SIGRTMIN + 9;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000) + now.tv_nsec / 1000000;
}

/* How often the calling thread has left its processor of its own accord. */
static long stops(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

/* Works without a stop of its own until there were so many, or for so long. */
static long work(long wanted, int64_t ms)
{
    long before = stops();
    int64_t end = now_ms() + ms;
    while (stops() - before < wanted && now_ms() < end)
        ;
    return stops() - before;
}

static int nice_now(void)
{
    return getpriority(PRIO_PROCESS, 0);
}

/* What it was. */
static int lower(void)
{
    int normal = nice_now();
    REQUIRE(setpriority(PRIO_PROCESS, (id_t)gettid(), normal + 3) == 0);
    return normal;
}

static bool has_stack(void)
{
    stack_t there;
    REQUIRE(sigaltstack(NULL, &there) == 0);
    return (there.ss_flags & SS_DISABLE) == 0;
}

static void leave_stack(void)
{
    REQUIRE(sigaltstack(&(stack_t){.ss_flags = SS_DISABLE}, NULL) == 0);
}

/* Each in a thread of its own, since a nice value goes up only. */
static void in_thread(void *(*body)(void *))
{
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, body, NULL) == 0);
    pthread_join(thread, NULL);
}

static void *give_way(void *arg)
{
    (void)arg;
    leave_stack(); /* a sanitizer's */
    int normal = lower();
    fs_breaks breaks;
    fs_breaks_start(&breaks, normal);
    CHECK(breaks.started);
    CHECK(has_stack());
    errno = 77;
    CHECK(work(5, 60000) >= 5);
    CHECK_EQ(errno, 77);
    fs_breaks_stop(&breaks);
    CHECK(!breaks.started);
    CHECK(!has_stack());
    CHECK_EQ(work(1, 50), 0);
    fs_breaks_stop(&breaks);
    /* Again. */
    fs_breaks_start(&breaks, normal);
    CHECK(work(1, 60000) >= 1);
    fs_breaks_stop(&breaks);
    return NULL;
}

static int64_t coarse_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* The coarse clock moves when a tick comes. */
static void *be_away_when_ticks_come(void *arg)
{
    (void)arg;
    int normal = lower();
    fs_breaks breaks;
    fs_breaks_start(&breaks, normal);
    int taken = 0, at_ticks = 0;
    int64_t end = now_ms() + 60000;
    while (taken < 40 && now_ms() < end) {
        int64_t before, earlier; /* the later one may have been seen after the break, on the way out of stops() */
        long stopped = stops();
        before = earlier = coarse_ns();
        while (stops() == stopped && now_ms() < end) {
            earlier = before;
            before = coarse_ns();
        }
        taken++;
        at_ticks += coarse_ns() != earlier;
    }
    fs_breaks_stop(&breaks);
    CHECK(taken == 40);
    CHECK(at_ticks > taken / 4); /* by chance it would be a sixteenth; a host may hold its guests up at any of them */
    return NULL;
}

static int64_t every_ns(const volatile fs_breaks *breaks)
{
    return breaks->every_ns;
}

/* Sleeps for so long, whoever wakes it. */
static void be_asleep(int64_t ms)
{
    for (int64_t end = now_ms() + ms, left; (left = end - now_ms()) > 0;)
        nanosleep(&(struct timespec){.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000}, NULL);
}

/* Who sleeps is woken ever more seldom; who works again takes breaks as before. */
static void *sleep_and_work(void *arg)
{
    (void)arg;
    int normal = lower();
    fs_breaks breaks;
    fs_breaks_start(&breaks, normal);
    int64_t usual_ns = every_ns(&breaks);
    CHECK(usual_ns > 0);
    int64_t end = now_ms() + 60000;
    while (every_ns(&breaks) < 8 * usual_ns && now_ms() < end)
        be_asleep(50);
    CHECK_EQ(every_ns(&breaks), 8 * usual_ns);
    CHECK(work(1, 60000) >= 1);
    while (every_ns(&breaks) > usual_ns && now_ms() < end)
        ;
    CHECK_EQ(every_ns(&breaks), usual_ns);
    fs_breaks_stop(&breaks);
    return NULL;
}

static void *do_not_give_way(void *arg)
{
    (void)arg;
    fs_breaks breaks;
    fs_breaks_start(&breaks, nice_now());
    CHECK(breaks.started);
    CHECK_EQ(work(1, 50), 0);
    fs_breaks_stop(&breaks);
    return NULL;
}

static _Thread_local const fs_breaks *noted;

void fs_breaks_note(const fs_breaks *breaks)
{
    noted = breaks;
}

/* Whoever has inherited them is left alone for good once it was raised for long enough; not yet, when that is soon taken
 * back. */
static void *inherit(void *arg)
{
    (void)arg;
    int normal = lower();
    fs_breaks parents, breaks;
    fs_breaks_start(&parents, normal);
    CHECK(noted == &parents);
    fs_breaks given = parents;
    fs_breaks_stop(&parents);
    CHECK(noted == NULL);

    fs_breaks_inherit(&breaks, &given);
    CHECK(breaks.started);
    CHECK(work(5, 60000) >= 5);
    if (setpriority(PRIO_PROCESS, (id_t)gettid(), normal) == 0) { /* not everybody may */
        work(INT32_MAX, 20);
        REQUIRE(setpriority(PRIO_PROCESS, (id_t)gettid(), normal + 3) == 0);
        CHECK(work(1, 60000) >= 1);
        REQUIRE(setpriority(PRIO_PROCESS, (id_t)gettid(), normal) == 0);
        work(INT32_MAX, 1000);
        REQUIRE(setpriority(PRIO_PROCESS, (id_t)gettid(), normal + 3) == 0);
        CHECK_EQ(work(1, 50), 0);
    }
    fs_breaks_stop(&breaks);
    return NULL;
}

static void *have_a_stack(void *arg)
{
    (void)arg;
    static char own[64 << 10];
    const stack_t ours = {.ss_sp = own, .ss_size = sizeof own};
    leave_stack();
    REQUIRE(sigaltstack(&ours, NULL) == 0);
    int normal = lower();
    fs_breaks breaks;
    fs_breaks_start(&breaks, normal);
    CHECK(work(1, 60000) >= 1);
    fs_breaks_stop(&breaks);
    stack_t there;
    REQUIRE(sigaltstack(NULL, &there) == 0);
    CHECK(there.ss_sp == (void *)own);
    leave_stack();
    return NULL;
}

static void *find_the_signal_taken(void *arg)
{
    (void)arg;
    struct sigaction before, after;
    struct sigaction other = {.sa_handler = SIG_IGN};
    REQUIRE(sigaction(break_signal(), &other, &before) == 0);
    fs_breaks breaks;
    fs_breaks_start(&breaks, nice_now() - 1);
    CHECK(!breaks.started);
    fs_breaks_stop(&breaks);
    REQUIRE(sigaction(break_signal(), &before, &after) == 0);
    CHECK(after.sa_handler == SIG_IGN);
    return NULL;
}

int main(void)
{
    in_thread(give_way);
    in_thread(be_away_when_ticks_come);
    in_thread(sleep_and_work);
    in_thread(do_not_give_way);
    in_thread(inherit);
    in_thread(have_a_stack);
    in_thread(find_the_signal_taken);
    return check_done();
}
