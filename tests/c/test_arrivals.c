/* Unit tests of csrc/arrivals.c: the gaps against what their distribution says. */
#include "arrivals.h"

#include <math.h>

#include "check.h"

static void equal_gaps_do_not_drift(void)
{
    fs_arrivals arrivals;
    fs_arrivals_constant(&arrivals, 30000); /* a gap of 33333.3 ns */
    for (int64_t i = 0; i <= 30000 * 60; i++) {
        int64_t due = fs_arrivals_next(&arrivals);
        int64_t exact = (int64_t)((double)i * 1e9 / 30000);
        if (due - exact > 1 || exact - due > 1)
            CHECK_EQ(due, exact);
        if (i == 30000 * 60)
            CHECK_EQ(due, INT64_C(60000000000));
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Mean, variance, Kolmogorov-Smirnov against the exponential distribution, no memory of the gap before. */
static void random_gaps_are_exponential_and_independent(void)
{
    enum { N = 200000 };
    static double gaps[N];
    const double rate = 100000, mean_ns = 1e9 / rate;
    fs_arrivals arrivals;
    fs_arrivals_poisson(&arrivals, rate, 7);
    int64_t before = 0;
    double sum = 0, squares = 0, products = 0;
    for (int i = 0; i < N; i++) {
        int64_t due = fs_arrivals_next(&arrivals);
        REQUIRE(due >= before);
        gaps[i] = (double)(due - before);
        before = due;
        sum += gaps[i];
        squares += gaps[i] * gaps[i];
        if (i > 0)
            products += (gaps[i] - mean_ns) * (gaps[i - 1] - mean_ns);
    }
    double mean = sum / N, variance = squares / N - mean * mean;
    double deviation = 1 / sqrt(N); /* of the mean, relative to it */
    CHECK(fabs(mean / mean_ns - 1) < 4 * deviation);
    CHECK(fabs(variance / (mean_ns * mean_ns) - 1) < 4 * sqrt(8) * deviation);
    CHECK(fabs(products / N / (mean_ns * mean_ns)) < 4 * deviation);
    qsort(gaps, N, sizeof gaps[0], by_value);
    double worst = 0;
    for (int i = 0; i < N; i++) {
        double expected = 1 - exp(-gaps[i] / mean_ns);
        worst = fmax(worst, fabs((i + 0.5) / N - expected));
    }
    CHECK(worst < 1.95 * deviation); /* passed by 999 of 1000 samples that are right */
}

static void the_seed_decides(void)
{
    fs_arrivals a, b, c;
    fs_arrivals_poisson(&a, 1000, 42);
    fs_arrivals_poisson(&b, 1000, 42);
    fs_arrivals_poisson(&c, 1000, 43);
    int differ = 0;
    for (int i = 0; i < 1000; i++) {
        int64_t due = fs_arrivals_next(&a);
        CHECK_EQ(due, fs_arrivals_next(&b));
        differ += due != fs_arrivals_next(&c);
    }
    CHECK(differ > 990);
    for (uint64_t seed = 0; seed < 100; seed++) { /* 0 as well is a seed */
        fs_arrivals_poisson(&a, 1e6, seed);
        int64_t last = 0;
        for (int i = 0; i < 1000; i++)
            last = fs_arrivals_next(&a);
        CHECK(last > 800000 && last < 1200000);
    }
}

static void recorded_times_are_given_as_they_are(void)
{
    static const int64_t times[] = {0, 0, 7, 1000000, INT64_C(100000000000000)};
    fs_arrivals arrivals;
    fs_arrivals_recorded(&arrivals, times, 5);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(fs_arrivals_next(&arrivals), times[i] * 1000);
    CHECK(fs_arrivals_next(&arrivals) == INT64_MAX);
    CHECK(fs_arrivals_next(&arrivals) == INT64_MAX);
    fs_arrivals_recorded(&arrivals, NULL, 0);
    CHECK(fs_arrivals_next(&arrivals) == INT64_MAX);
}

static void a_gap_beyond_all_time_is_never(void)
{
    fs_arrivals arrivals;
    fs_arrivals_constant(&arrivals, 1e-10);
    CHECK_EQ(fs_arrivals_next(&arrivals), 0);
    CHECK(fs_arrivals_next(&arrivals) == INT64_MAX);
}

int main(void)
{
    equal_gaps_do_not_drift();
    random_gaps_are_exponential_and_independent();
    the_seed_decides();
    recorded_times_are_given_as_they_are();
    a_gap_beyond_all_time_is_never();
    return check_done();
}
