/* test_spread: a thread that works on the processor of another one that does is moved when that was seen twice in a
 * row, to where neither of them nor who looks is; it may go anywhere afterwards that it might before. */
#include "spread.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"

enum { WORKERS = 2, EVERY_US = 1000, MEETINGS = 2, REST = 16 };

static cpu_set_t all;
static fs_spread spread;
static atomic_int joined;
static atomic_bool over;

/* What other threads are told, which the library's function of that name would not show: this one takes its place. */
static struct {
    pid_t thread;
    cpu_set_t cpus;
} sent[4];
static int n_sent = 4;

int sched_setaffinity(pid_t thread, size_t size, const cpu_set_t *cpus)
{
    if (thread != 0 && n_sent < 4) {
        sent[n_sent].thread = thread;
        sent[n_sent++].cpus = *cpus;
    }
    return (int)syscall(SYS_sched_setaffinity, thread, size, cpus);
}

static void *work(void *number)
{
    fs_spread_join(&spread, *(int *)number);
    fs_spread_work(&spread, *(int *)number);
    atomic_fetch_add(&joined, 1);
    while (!atomic_load(&over))
        usleep(1000);
    return NULL;
}

static pthread_t threads[WORKERS];
static int numbers[WORKERS];

static void begin(int first_number)
{
    memset(&spread, 0, sizeof spread);
    atomic_store(&joined, 0);
    atomic_store(&over, false);
    for (int i = 0; i < WORKERS; i++) {
        numbers[i] = first_number + i;
        REQUIRE(pthread_create(&threads[i], NULL, work, &numbers[i]) == 0);
    }
    while (atomic_load(&joined) < WORKERS)
        usleep(100);
    /* Who looks stays where it is until the end. */
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    REQUIRE(sched_setaffinity(0, sizeof here, &here) == 0);
}

static void end(void)
{
    atomic_store(&over, true);
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    REQUIRE(sched_setaffinity(0, sizeof all, &all) == 0);
}

static void both_were_on(int cpu)
{
    for (int i = 0; i < WORKERS; i++)
        atomic_store(&spread.cpus[numbers[i]], cpu);
}

static unsigned long long both(void)
{
    return 1ull << numbers[0] | 1ull << numbers[1];
}

/* At one time after the other, each time with both on the processor that this thread is on. */
static void look(int times, unsigned long long working)
{
    static int64_t now_us;
    for (int i = 0; i < times; i++) {
        both_were_on(sched_getcpu());
        fs_spread_look(&spread, working, now_us += EVERY_US);
    }
}

static int met(int i)
{
    return spread.places[numbers[i]].met;
}

static void check_may_be_on(int i, const cpu_set_t *cpus)
{
    cpu_set_t now;
    REQUIRE(sched_getaffinity(atomic_load(&spread.places[numbers[i]].thread), sizeof now, &now) == 0);
    CHECK(CPU_EQUAL(&now, cpus));
}

static void test_the_second_moves_and_rests(void)
{
    begin(0);
    look(MEETINGS - 1, both());
    CHECK_EQ(met(1), MEETINGS - 1);
    look(1, both());
    CHECK_EQ(met(0), 0); /* of two, one: they would change places for ever */
    CHECK_EQ(met(1), CPU_COUNT(&all) > 1 ? -REST : MEETINGS);
    check_may_be_on(1, &all);
    look(REST, both());
    CHECK(met(1) >= 0 || CPU_COUNT(&all) == 1);
    end();
}

/* First to there alone, so that it goes at once, and then back to where it might be. */
static void test_where_it_is_sent(void)
{
    if (CPU_COUNT(&all) == 1)
        return;
    begin(0);
    n_sent = 0;
    look(MEETINGS, both());
    REQUIRE(n_sent == 2);
    CHECK_EQ(sent[0].thread, atomic_load(&spread.places[1].thread));
    CHECK_EQ(sent[1].thread, sent[0].thread);
    CHECK_EQ(CPU_COUNT(&sent[0].cpus), 1);
    CHECK(!CPU_ISSET(atomic_load(&spread.cpus[0]), &sent[0].cpus));
    CHECK(CPU_EQUAL(&sent[1].cpus, &spread.places[1].home));
    end();
}

static void test_one_that_sleeps_is_met_by_nobody(void)
{
    begin(0);
    look(3 * MEETINGS, 1ull << numbers[1]);
    CHECK_EQ(met(1), 0);
    look(MEETINGS - 1, both());
    look(1, 1ull << numbers[1]);
    CHECK_EQ(met(1), 0);
    end();
}

static void test_once_a_millisecond(void)
{
    begin(0);
    both_were_on(sched_getcpu());
    for (int i = 0; i < 3 * MEETINGS; i++)
        fs_spread_look(&spread, both(), EVERY_US + i);
    CHECK_EQ(met(1), 1);
    end();
}

/* There is nowhere to go: who looks is on the only other processor. */
static void test_not_to_who_looks(void)
{
    if (CPU_COUNT(&all) != 2)
        return;
    begin(0);
    int other = 0;
    while (!CPU_ISSET(other, &all) || other == sched_getcpu())
        other++;
    both_were_on(other);
    for (int i = 1; i <= 3 * MEETINGS; i++)
        fs_spread_look(&spread, both(), i * (int64_t)EVERY_US);
    CHECK(met(1) >= MEETINGS);
    end();
}

static void test_numbers_that_nobody_has(void)
{
    begin(FS_SPREAD_THREADS - WORKERS);
    look(3 * MEETINGS, ~0ull);
    for (int i = 0; i < FS_SPREAD_THREADS - WORKERS; i++)
        CHECK_EQ(spread.places[i].met, 0);
    check_may_be_on(1, &all);
    end();
}

static void test_the_users_choice_is_kept(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    begin(0);
    look(3 * MEETINGS, both());
    check_may_be_on(0, &one);
    check_may_be_on(1, &one);
    end();
}

int main(void)
{
    REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
    test_the_second_moves_and_rests();
    test_where_it_is_sent();
    test_one_that_sleeps_is_met_by_nobody();
    test_once_a_millisecond();
    test_not_to_who_looks();
    test_numbers_that_nobody_has();
    test_the_users_choice_is_kept();
    return check_done();
}
