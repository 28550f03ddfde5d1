/* test_lane: what is posted comes out once and in order, and every thread that takes is let go at the end. */
#include "lane.h"

#include "check.h"

enum { TAKERS = 3, POSTERS = 4, EACH = 5000 };

typedef struct item {
    fs_node node; /* first */
    int poster, number;
} item;

static void test_first_come_first_served(void)
{
    fs_lane lane;
    fs_lane_init(&lane);
    item items[6];
    for (int i = 0; i < 4; i++)
        fs_lane_post(&lane, &items[i].node);
    CHECK(fs_lane_take(&lane) == &items[0].node);
    CHECK(fs_lane_take(&lane) == &items[1].node);
    fs_lane_post(&lane, &items[4].node);
    fs_lane_post(&lane, &items[0].node); /* back again */
    CHECK(fs_lane_take(&lane) == &items[2].node);
    CHECK(fs_lane_take(&lane) == &items[3].node);
    CHECK(fs_lane_take(&lane) == &items[4].node);
    CHECK(fs_lane_take(&lane) == &items[0].node);
    fs_lane_destroy(&lane);
}

static void test_closing_comes_after_what_is_there(void)
{
    fs_lane lane;
    fs_lane_init(&lane);
    item items[2];
    fs_lane_post(&lane, &items[0].node);
    fs_lane_close(&lane, 2);
    fs_lane_post(&lane, &items[1].node);
    CHECK(fs_lane_take(&lane) == &items[0].node);
    CHECK(fs_lane_take(&lane) == &items[1].node);
    CHECK(fs_lane_take(&lane) == NULL);
    CHECK(fs_lane_take(&lane) == NULL);
    fs_lane_destroy(&lane);
}

typedef struct shared {
    fs_lane lane;
    item items[POSTERS][EACH];
    atomic_int taken[POSTERS][EACH];
} shared;

typedef struct poster {
    shared *all;
    int number;
} poster;

static void *post(void *arg)
{
    poster *self = arg;
    for (int i = 0; i < EACH; i++) {
        self->all->items[self->number][i] = (item){.poster = self->number, .number = i};
        fs_lane_post(&self->all->lane, &self->all->items[self->number][i].node);
    }
    return NULL;
}

static void *take(void *arg)
{
    shared *all = arg;
    int last[POSTERS] = {-1, -1, -1, -1};
    fs_node *node;
    while ((node = fs_lane_take(&all->lane)) != NULL) {
        const item *got = (const item *)node;
        CHECK(got->number > last[got->poster]);
        last[got->poster] = got->number;
        atomic_fetch_add_explicit(&all->taken[got->poster][got->number], 1, memory_order_relaxed);
    }
    return NULL;
}

static void test_threads(void)
{
    static shared all;
    fs_lane_init(&all.lane);
    pthread_t takers[TAKERS], posters[POSTERS];
    poster who[POSTERS];
    for (int i = 0; i < TAKERS; i++)
        REQUIRE(pthread_create(&takers[i], NULL, take, &all) == 0);
    for (int i = 0; i < POSTERS; i++) {
        who[i] = (poster){&all, i};
        REQUIRE(pthread_create(&posters[i], NULL, post, &who[i]) == 0);
    }
    for (int i = 0; i < POSTERS; i++)
        pthread_join(posters[i], NULL);
    fs_lane_close(&all.lane, TAKERS);
    for (int i = 0; i < TAKERS; i++)
        pthread_join(takers[i], NULL);
    int once = 0;
    for (int i = 0; i < POSTERS; i++) {
        for (int k = 0; k < EACH; k++)
            once += atomic_load(&all.taken[i][k]) == 1;
    }
    CHECK_EQ(once, POSTERS * EACH);
    fs_lane_destroy(&all.lane);
}

int main(void)
{
    test_first_come_first_served();
    test_closing_comes_after_what_is_there();
    test_threads();
    return check_done();
}
