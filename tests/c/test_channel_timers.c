/* channel_timers and channel_pace: the heap against a sorted list, the quantile against sorted values. */
#include "channel_timers.h"

#include "channel_pace.h"
#include "check.h"
#include "failmalloc.h"
#include "status.h"

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void test_timers_come_in_order_whatever_was_done_to_them(void)
{
    enum { N = 200 };
    static fs_timer timers[N];
    static int64_t due_us[N]; /* INT64_MAX: not set */
    fs_timers heap = {0};
    uint32_t seed = 1;
    for (int i = 0; i < N; i++) {
        CHECK_OK(fs_timers_promise(&heap));
        due_us[i] = INT64_MAX;
    }
    CHECK_EQ(fs_timers_due(&heap), INT64_MAX);
    for (int step = 0; step < 20000; step++) {
        uint32_t i = next_random(&seed) % N;
        due_us[i] = next_random(&seed) % 4 == 0 ? INT64_MAX : next_random(&seed) % 1000;
        fs_timers_set(&heap, &timers[i], due_us[i]);
        int64_t least_us = INT64_MAX;
        for (int j = 0; j < N; j++)
            least_us = due_us[j] < least_us ? due_us[j] : least_us;
        if (fs_timers_due(&heap) != least_us) {
            CHECK_EQ(fs_timers_due(&heap), least_us);
            break;
        }
        if (step % 100 == 0 && least_us != INT64_MAX) {
            CHECK(fs_timers_take(&heap, least_us - 1) == NULL);
            fs_timer *first = fs_timers_take(&heap, least_us);
            REQUIRE(first != NULL);
            CHECK_EQ(due_us[first - timers], least_us);
            CHECK_EQ(first->at, 0);
            due_us[first - timers] = INT64_MAX;
        }
    }
    int64_t before_us = 0;
    fs_timer *timer;
    while ((timer = fs_timers_take(&heap, INT64_MAX - 1)) != NULL) {
        CHECK(timer->due_us >= before_us);
        before_us = timer->due_us;
        due_us[timer - timers] = INT64_MAX;
    }
    for (int i = 0; i < N; i++)
        CHECK_EQ(due_us[i], INT64_MAX);
    fs_timers_set(&heap, &timers[0], 5);
    fs_timers_forget(&heap, &timers[0]);
    CHECK_EQ(fs_timers_due(&heap), INT64_MAX);
    fs_timers_free(&heap);
}

static void test_a_promise_may_be_refused(void)
{
    fs_timers heap = {0};
    failmalloc_after(1);
    CHECK_EQ(fs_timers_promise(&heap), -FS_RESOURCE_EXHAUSTED);
    failmalloc_after(-1);
    fs_timer timer = {0};
    CHECK_OK(fs_timers_promise(&heap));
    fs_timers_set(&heap, &timer, 1);
    CHECK_EQ(fs_timers_due(&heap), 1);
    fs_timers_free(&heap);
}

static void test_the_quantile_is_known_to_one_part_in_eight(void)
{
    static const double quantiles[] = {0.5, 0.9, 0.95, 0.99};
    for (int q = 0; q < 4; q++) {
        for (int scale = 0; scale < 24; scale += 3) {
            fs_pace pace = {0};
            uint32_t seed = 7;
            for (int i = 0; i < 800; i++)
                fs_pace_record(&pace, (int64_t)(1000 + next_random(&seed) % 9000) << scale >> 6,
                               quantiles[q]);
            double exact = (1000 + 9000 * quantiles[q]) * (double)(1 << scale) / 64;
            double top = (double)(UINT64_C(1) << 32) - 1;
            exact = exact < top ? exact : top;
            CHECK_REPORT((double)pace.value_us > exact * 0.9 - 1 && (double)pace.value_us < exact * 1.2 + 1,
                         "quantile %g: %g is said to be %lld", quantiles[q], exact, (long long)pace.value_us);
        }
    }
}

static void test_it_says_nothing_before_it_knows_and_forgets(void)
{
    fs_pace pace = {0};
    for (int i = 0; i < FS_PACE_LEAST - 1; i++)
        CHECK(!fs_pace_record(&pace, 100, 0.95));
    CHECK_EQ(pace.value_us, 0);
    CHECK(fs_pace_record(&pace, 100, 0.95));
    CHECK(pace.value_us >= 100 && pace.value_us < 114);
    for (int i = 0; i < 20000; i++)
        fs_pace_record(&pace, 5000, 0.95);
    CHECK(pace.value_us >= 5000 && pace.value_us < 5700);
    for (int i = 0; i < 5 * FS_PACE_FADE; i++)
        fs_pace_record(&pace, 100, 0.95);
    CHECK(pace.value_us >= 100 && pace.value_us < 114);
    fs_pace_record(&pace, -1, 0.95);
    fs_pace_record(&pace, INT64_MAX, 0.95);
}

static void test_the_median_is_of_those_that_are_well(void)
{
    CHECK_EQ(fs_pace_median((int64_t[]){0, 0}, 2), 0);
    CHECK_EQ(fs_pace_median((int64_t[]){0, 7}, 2), 7);
    CHECK_EQ(fs_pace_median((int64_t[]){9000, 7}, 2), 7);
    CHECK_EQ(fs_pace_median((int64_t[]){8, 9000, 7}, 3), 8);
    CHECK_EQ(fs_pace_median(NULL, 0), 0);
}

int main(void)
{
    test_timers_come_in_order_whatever_was_done_to_them();
    test_a_promise_may_be_refused();
    test_the_quantile_is_known_to_one_part_in_eight();
    test_it_says_nothing_before_it_knows_and_forgets();
    test_the_median_is_of_those_that_are_well();
    return check_done();
}
