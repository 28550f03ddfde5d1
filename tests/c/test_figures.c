/* test_figures: what a status means for a version, and latencies close to what was counted. */
#include "figures.h"

#include "check.h"
#include "status.h"

static fs_figures *fresh(void)
{
    fs_figures *f = aligned_alloc(64, sizeof *f);
    REQUIRE(f != NULL);
    memset(f, 0, sizeof *f);
    return f;
}

static void test_what_a_status_says_of_the_version(void)
{
    static const struct {
        int code;
        bool ran;
        enum fs_outcome outcome;
    } cases[] = {
        {FS_OK, true, FS_OUTCOME_OK},
        {FS_CANCELLED, true, FS_OUTCOME_CANCELLED},
        {FS_DEADLINE_EXCEEDED, true, FS_OUTCOME_FAILED},
        {FS_UNAVAILABLE, false, FS_OUTCOME_FAILED},        /* the queue is full */
        {FS_RESOURCE_EXHAUSTED, false, FS_OUTCOME_FAILED},
        {FS_INTERNAL, true, FS_OUTCOME_FAILED},
        {FS_INTERNAL, false, FS_OUTCOME_REFUSED},          /* bytes that are no tensor */
        {FS_FAILED_PRECONDITION, true, FS_OUTCOME_FAILED}, /* a table that was not initialised */
        {FS_FAILED_PRECONDITION, false, FS_OUTCOME_REFUSED}, /* no such signature */
        {FS_INVALID_ARGUMENT, false, FS_OUTCOME_REFUSED},
        {FS_INVALID_ARGUMENT, true, FS_OUTCOME_REFUSED},
        {FS_OUT_OF_RANGE, true, FS_OUTCOME_REFUSED},
        {FS_UNKNOWN, true, FS_OUTCOME_FAILED},
    };
    fs_figures *f = fresh();
    uint64_t expected[FS_OUTCOMES] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_EQ(fs_outcome_of(cases[i].code, cases[i].ran), cases[i].outcome);
        fs_figures_count(f, cases[i].code, cases[i].ran, 1);
        expected[cases[i].outcome]++;
    }
    for (int k = 0; k < FS_OUTCOMES; k++)
        CHECK_EQ(fs_figures_read(f, k), expected[k]);
    free(f);
}

static void test_percentiles(void)
{
    static const double quantiles[] = {0, 0.5, 0.9, 0.99, 1};
    uint64_t us[5];
    fs_figures *f = fresh();
    fs_figures_latency(f, quantiles, us, 5);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(us[i], 0);
    for (int64_t v = 1; v <= 100000; v++)
        fs_figures_count(f, FS_OK, true, v);
    fs_figures_latency(f, quantiles, us, 5);
    static const uint64_t exact[] = {1, 50000, 90000, 99000, 100000};
    for (int i = 0; i < 5; i++)
        CHECK(us[i] >= exact[i] && us[i] <= exact[i] + exact[i] / 32);
    free(f);
}

static void test_every_size_of_a_latency_has_its_place(void)
{
    static const double all[] = {1};
    uint64_t us;
    for (int bit = 0; bit < 32; bit++) {
        for (int64_t off = -1; off <= 1; off++) {
            int64_t v = (INT64_C(1) << bit) + off;
            fs_figures *f = fresh();
            fs_figures_count(f, FS_OK, true, v);
            fs_figures_latency(f, all, &us, 1);
            CHECK(us >= (uint64_t)v && us <= (uint64_t)(v + v / 32));
            free(f);
        }
    }
    fs_figures *f = fresh();
    fs_figures_count(f, FS_OK, true, -5); /* a clock that another thread read first */
    fs_figures_latency(f, all, &us, 1);
    CHECK_EQ(us, 0);
    fs_figures_count(f, FS_OK, true, INT64_MAX);
    fs_figures_latency(f, all, &us, 1);
    CHECK_EQ(us, (UINT64_C(1) << FS_FIGURE_TOP) - 1);
    free(f);
}

static void test_only_what_waited_for_an_answer_has_a_latency(void)
{
    static const double all[] = {1};
    uint64_t us;
    fs_figures *f = fresh();
    fs_figures_count(f, FS_INTERNAL, true, 500);
    fs_figures_count(f, FS_INVALID_ARGUMENT, false, 600);
    fs_figures_count(f, FS_UNAVAILABLE, false, 700);
    fs_figures_latency(f, all, &us, 1);
    CHECK_EQ(us, 0);
    fs_figures_count(f, FS_OK, true, 10);
    fs_figures_count(f, FS_CANCELLED, true, 20); /* it would have taken that long at least */
    fs_figures_count(f, FS_DEADLINE_EXCEEDED, true, 30);
    static const double thirds[] = {0.33, 0.66, 1};
    uint64_t each[3];
    fs_figures_latency(f, thirds, each, 3);
    CHECK(each[0] == 10 && each[1] == 20 && each[2] == 30);
    free(f);
}

int main(void)
{
    test_what_a_status_says_of_the_version();
    test_percentiles();
    test_every_size_of_a_latency_has_its_place();
    test_only_what_waited_for_an_answer_has_a_latency();
    return check_done();
}
