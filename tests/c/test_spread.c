/* test_spread: who meets another on its processor several times in a row moves, may go anywhere afterwards, and
 * stays where there is nowhere to go. */
#include "spread.h"

#include "check.h"

#include <sched.h>

enum { MEETINGS = 4, TRIES = 1000 };

static cpu_set_t all;

static void stay_on(const cpu_set_t *cpus)
{
    REQUIRE(sched_setaffinity(0, sizeof *cpus, cpus) == 0);
}

/* Work beside a thread that is wherever this one is. true: this one has moved. The kernel may move it, too, so the
 * other one goes along before each. */
static bool meet(fs_place places[2], int times)
{
    int cpu = -1;
    for (int i = 0; i < times; i++) {
        cpu = sched_getcpu();
        atomic_store(&places[0].cpu, cpu);
        fs_spread_work(places, 2, 1);
    }
    return sched_getcpu() != cpu && places[1].met < 0;
}

static void start(fs_place places[2])
{
    for (int i = 0; i < 2; i++) {
        atomic_init(&places[i].cpu, -1);
        places[i].met = 0;
    }
}

static void test_it_moves(void)
{
    fs_place places[2];
    bool moved = false;
    for (int i = 0; i < TRIES && !moved; i++) {
        start(places);
        moved = meet(places, MEETINGS);
    }
    CHECK(moved || CPU_COUNT(&all) == 1);
    cpu_set_t now;
    REQUIRE(sched_getaffinity(0, sizeof now, &now) == 0);
    CHECK(CPU_EQUAL(&now, &all));
    CHECK_EQ(places[1].met, -32);
}

static void test_a_few_meetings_are_chance(void)
{
    fs_place places[2];
    start(places);
    meet(places, MEETINGS - 1);
    CHECK(places[1].met >= 0 && places[1].met < MEETINGS);
    fs_spread_sleep(&places[0]);
    fs_spread_work(places, 2, 1);
    CHECK_EQ(places[1].met, 0);
    CHECK(atomic_load(&places[1].cpu) >= 0);
    fs_spread_sleep(&places[1]);
    CHECK_EQ(atomic_load(&places[1].cpu), -1);
}

/* Of two, one: they would change places for ever. */
static void test_the_lower_number_stays(void)
{
    fs_place places[2];
    start(places);
    for (int i = 0; i < 3 * MEETINGS; i++) {
        atomic_store(&places[1].cpu, sched_getcpu());
        fs_spread_work(places, 2, 0);
    }
    CHECK_EQ(places[0].met, 0);
}

static void test_with_one_processor_it_stays(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    stay_on(&one);
    fs_place places[2];
    start(places);
    int before = sched_getcpu();
    meet(places, 3 * MEETINGS);
    CHECK_EQ(sched_getcpu(), before);
    cpu_set_t now;
    REQUIRE(sched_getaffinity(0, sizeof now, &now) == 0);
    CHECK(CPU_EQUAL(&now, &one));
    stay_on(&all);
}

int main(void)
{
    REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
    test_it_moves();
    test_a_few_meetings_are_chance();
    test_the_lower_number_stays();
    test_with_one_processor_it_stays();
    return check_done();
}
