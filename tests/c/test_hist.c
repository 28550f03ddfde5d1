/* Unit tests of csrc/hist.c. The oracle is the values themselves, sorted. */
#include "hist.h"

#include <math.h>

#include "check.h"
#include "failmalloc.h"

static uint64_t state = 88172645463325252u;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static fs_hist *new_hist(void)
{
    fs_hist *hist = malloc(sizeof *hist);
    REQUIRE(hist != NULL);
    memset(hist, 0xa5, sizeof *hist); /* clear must not rely on what is there */
    fs_hist_clear(hist);
    return hist;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void slots_cover_all_values_without_gap_or_overlap(void)
{
    CHECK_EQ(fs_hist_low(0), 0);
    for (uint32_t slot = 0; slot < FS_HIST_SLOTS; slot++) {
        uint64_t low = fs_hist_low(slot), high = fs_hist_high(slot);
        if (slot > 0 && low != fs_hist_high(slot - 1) + 1)
            CHECK_EQ(low, fs_hist_high(slot - 1) + 1);
        if (fs_hist_slot(low) != slot || fs_hist_slot(high) != slot)
            CHECK_EQ(fs_hist_slot(low), slot);
        if ((high - low) * 1000 > low) /* one part in a thousand */
            CHECK_EQ(high - low, 0);
    }
    CHECK_EQ(fs_hist_high(FS_HIST_SLOTS - 1), (UINT64_C(1) << FS_HIST_TOP) - 1);
    CHECK_EQ(fs_hist_slot(UINT64_C(1) << FS_HIST_TOP), FS_HIST_SLOTS - 1);
    CHECK_EQ(fs_hist_slot(UINT64_MAX), FS_HIST_SLOTS - 1);
}

static void an_empty_one_gives_zeros(void)
{
    fs_hist *hist = new_hist();
    CHECK_EQ(fs_hist_value_at(hist, 0.0), 0);
    CHECK_EQ(fs_hist_value_at(hist, 0.99), 0);
    CHECK_EQ(fs_hist_value_at(hist, 1.0), 0);
    CHECK_EQ(hist->total, 0);
    CHECK(hist->min == UINT64_MAX);
    free(hist);
}

static void small_values_are_exact(void)
{
    fs_hist *hist = new_hist();
    for (uint64_t i = 1; i <= 100; i++)
        fs_hist_record(hist, i);
    CHECK_EQ(fs_hist_value_at(hist, 0.0), 1);
    CHECK_EQ(fs_hist_value_at(hist, 0.01), 1);
    CHECK_EQ(fs_hist_value_at(hist, 0.5), 50);
    CHECK_EQ(fs_hist_value_at(hist, 0.501), 51);
    CHECK_EQ(fs_hist_value_at(hist, 0.99), 99);
    CHECK_EQ(fs_hist_value_at(hist, 1.0), 100);
    for (int i = 1; i <= 100; i++) /* such as 0.07, whose product with 100 is above 7 */
        CHECK_EQ(fs_hist_value_at(hist, i / 100.0), i);
    CHECK_EQ(fs_hist_value_at(hist, -1.0), 1);
    CHECK_EQ(fs_hist_value_at(hist, NAN), 1);
    CHECK_EQ(fs_hist_value_at(hist, 2.0), 100);
    CHECK_EQ(hist->min, 1);
    CHECK_EQ(hist->max, 100);
    CHECK_EQ((int64_t)hist->sum, 5050);
    free(hist);
}

/* `n` values of one shape: quantiles against the sorted values. */
static void quantiles_of(const char *shape, uint64_t (*next)(void), size_t n)
{
    static const double quantiles[] = {0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0};
    enum { N = sizeof quantiles / sizeof quantiles[0] };
    uint64_t values[N];
    uint64_t *all = malloc(n * sizeof *all);
    fs_hist *hist = new_hist();
    REQUIRE(all != NULL);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        all[i] = next();
        sum += (double)all[i];
        fs_hist_record(hist, all[i]);
    }
    qsort(all, n, sizeof *all, by_value);
    fs_hist_values_at(hist, quantiles, values, N);
    for (size_t i = 0; i < N; i++) {
        size_t rank = (size_t)ceil(quantiles[i] * (double)n);
        uint64_t exact = all[rank > 0 ? rank - 1 : 0];
        CHECK_REPORT(values[i] >= exact && (double)(values[i] - exact) <= (double)exact / 1000.0,
                     "%s: quantile %g of %zu is %" PRIu64 ", not %" PRIu64, shape, quantiles[i], n, exact,
                     values[i]);
        CHECK(values[i] == fs_hist_value_at(hist, quantiles[i]));
    }
    CHECK(values[N - 1] == all[n - 1]);
    CHECK(hist->min == all[0] && hist->max == all[n - 1] && hist->total == n);
    CHECK(fabs(hist->sum - sum) <= sum * 1e-9);
    free(hist);
    free(all);
}

static uint64_t uniform(void)
{
    return draw() % 50000000;
}

static uint64_t of_any_magnitude(void)
{
    return draw() >> (22 + draw() % 42);
}

static uint64_t two_peaks(void)
{
    return draw() % 10 == 0 ? 200000000 + draw() % 1000000 : 80000 + draw() % 3000;
}

static uint64_t all_the_same(void)
{
    return 123456789;
}

static void merged_ones_are_as_if_recorded_in_one(void)
{
    fs_hist *all = new_hist(), *a = new_hist(), *b = new_hist();
    for (int i = 0; i < 5000; i++) {
        uint64_t value = of_any_magnitude();
        fs_hist_record(all, value);
        fs_hist_record(i % 3 == 0 ? a : b, value);
    }
    fs_hist_merge(a, b);
    CHECK_MEM(a->counts, all->counts, sizeof all->counts);
    CHECK(a->total == all->total && a->min == all->min && a->max == all->max);
    CHECK(fabs(a->sum - all->sum) < all->sum * 1e-9);
    fs_hist_clear(b);
    fs_hist_merge(a, b); /* nothing */
    CHECK(a->total == all->total && a->min == all->min && a->max == all->max);
    fs_hist_merge(b, a); /* into nothing */
    CHECK_MEM(b, a, sizeof *a);
    free(all);
    free(a);
    free(b);
}

static void values_beyond_the_scale_count_as_the_largest(void)
{
    fs_hist *hist = new_hist();
    fs_hist_record(hist, 5);
    fs_hist_record(hist, UINT64_C(1) << 50);
    CHECK_EQ(hist->max, INT64_C(1) << 50);
    CHECK_EQ(fs_hist_value_at(hist, 0.5), 5);
    CHECK_EQ(fs_hist_value_at(hist, 1.0), INT64_C(1) << 50);
    free(hist);
}

static void reset_leaves_nothing(void)
{
    fs_hist *hist = new_hist(), *fresh = new_hist();
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 100 * round; i++)
            fs_hist_record(hist, of_any_magnitude() + (round == 2 ? UINT64_C(1) << 45 : 0));
        fs_hist_reset(hist);
        CHECK_MEM(hist, fresh, sizeof *hist);
    }
    free(hist);
    free(fresh);
}

static void recording_allocates_nothing(void)
{
    fs_hist *hist = new_hist();
    long before = failmalloc_count();
    for (int i = 0; i < 1000; i++)
        fs_hist_record(hist, draw());
    CHECK(fs_hist_value_at(hist, 0.9) > 0);
    CHECK_EQ(failmalloc_count(), before);
    free(hist);
}

int main(void)
{
    slots_cover_all_values_without_gap_or_overlap();
    an_empty_one_gives_zeros();
    small_values_are_exact();
    static const size_t sizes[] = {1, 2, 3, 10, 999, 20000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        quantiles_of("uniform", uniform, sizes[i]);
        quantiles_of("of any magnitude", of_any_magnitude, sizes[i]);
        quantiles_of("two peaks", two_peaks, sizes[i]);
        quantiles_of("all the same", all_the_same, sizes[i]);
    }
    merged_ones_are_as_if_recorded_in_one();
    values_beyond_the_scale_count_as_the_largest();
    reset_leaves_nothing();
    recording_allocates_nothing();
    return check_done();
}
