/* test_spread: who meets another on its processor several times in a row moves, may go anywhere afterwards that
 * it might before, and stays where there is nowhere to go. */
#include "spread.h"

#include "check.h"

enum { MEETINGS = 4, TRIES = 1000 };

static cpu_set_t all;

static void may_be_on(const cpu_set_t *cpus)
{
    REQUIRE(sched_setaffinity(0, sizeof *cpus, cpus) == 0);
}

static void check_may_be_on(const cpu_set_t *cpus)
{
    cpu_set_t now;
    REQUIRE(sched_getaffinity(0, sizeof now, &now) == 0);
    CHECK(CPU_EQUAL(&now, cpus));
}

/* Works beside a thread, number 0, that is wherever this one is. true: this one has moved. The kernel may move it,
 * too, so the other one goes along before each. */
static bool meet(fs_spread *spread, fs_place *place, int times)
{
    int cpu = -1;
    for (int i = 0; i < times; i++) {
        cpu = sched_getcpu();
        atomic_store(&spread->cpus[0], cpu);
        fs_spread_work(spread, place, 1);
    }
    return sched_getcpu() != cpu && place->met < 0;
}

static void test_it_moves(void)
{
    fs_spread spread;
    fs_place place;
    bool moved = false;
    for (int i = 0; i < TRIES && !moved; i++) {
        memset(&spread, 0, sizeof spread);
        fs_spread_join(&place, 1);
        moved = meet(&spread, &place, MEETINGS);
    }
    CHECK(moved || CPU_COUNT(&all) == 1);
    CHECK_EQ(place.met, -32);
    check_may_be_on(&all);
    /* And rests before it does so again. */
    meet(&spread, &place, 32);
    CHECK_EQ(place.met, 0);
}

static void test_a_few_meetings_are_chance(void)
{
    fs_spread spread = {0};
    fs_place place;
    fs_spread_join(&place, 1);
    meet(&spread, &place, MEETINGS - 1);
    CHECK(place.met >= 0 && place.met < MEETINGS);
    fs_spread_work(&spread, &place, 2); /* the other one sleeps */
    CHECK_EQ(place.met, 0);
}

/* Of two, one: they would change places for ever. */
static void test_the_lower_number_stays(void)
{
    fs_spread spread = {0};
    fs_place place;
    fs_spread_join(&place, 0);
    for (int i = 0; i < 3 * MEETINGS; i++) {
        atomic_store(&spread.cpus[1], sched_getcpu());
        fs_spread_work(&spread, &place, 3);
    }
    CHECK_EQ(place.met, 0);
}

static void test_the_last_number_there_is(void)
{
    fs_spread spread = {0};
    fs_place place;
    fs_spread_join(&place, FS_SPREAD_THREADS - 1);
    meet(&spread, &place, 3 * MEETINGS);
    check_may_be_on(&all);
}

static void test_the_users_choice_is_kept(void)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    may_be_on(&one);
    fs_spread spread = {0};
    fs_place place;
    fs_spread_join(&place, 1);
    check_may_be_on(&one);
    meet(&spread, &place, MEETINGS);
    CHECK_EQ(place.met, -32);
    check_may_be_on(&one);
    may_be_on(&all);
}

int main(void)
{
    REQUIRE(sched_getaffinity(0, sizeof all, &all) == 0);
    test_it_moves();
    test_a_few_meetings_are_chance();
    test_the_lower_number_stays();
    test_the_last_number_there_is();
    test_the_users_choice_is_kept();
    return check_done();
}
