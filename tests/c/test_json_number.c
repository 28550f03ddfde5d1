/* json_number: what is a number, and that it is read exactly. strtod is the judge. */
#include "json_number.h"

#include <stdlib.h>

#include "check.h"
#include "failmalloc.h"
#include "random.h"

static uint64_t random64(uint64_t *state)
{
    uint64_t high = fs_random_next(state);
    return high << 32 | fs_random_next(state);
}

/* In memory of just its size; *left: the characters behind the number. */
static bool read_number(const char *text, fs_json_number *number, size_t *left)
{
    size_t len = strlen(text);
    uint8_t *copy = malloc(len > 0 ? len : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, text, len);
    const uint8_t *at = copy;
    bool ok = fs_json_number_read(&at, copy + len, number);
    *left = len - (size_t)(at - copy);
    free(copy);
    return ok;
}

static void test_whole_numbers(void)
{
    const struct {
        const char *text;
        bool negative;
        uint64_t magnitude;
        size_t left;
    } cases[] = {
        {"0", false, 0, 0},
        {"7", false, 7, 0},
        {"-1", true, 1, 0},
        {"10,", false, 10, 1},
        {"9223372036854775807", false, INT64_MAX, 0},
        {"-9223372036854775808]", true, UINT64_C(1) << 63, 1},
        {"9999999999999999999", false, UINT64_C(9999999999999999999), 0},
        {"12x", false, 12, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_json_number n;
        size_t left;
        CHECK(read_number(cases[i].text, &n, &left));
        CHECK(!n.real);
        CHECK_EQ(n.negative, cases[i].negative);
        CHECK(n.magnitude == cases[i].magnitude);
        CHECK_EQ(left, cases[i].left);
    }
}

static void test_what_is_none_or_left_to_others(void)
{
    static const char *const texts[] = {
        "", "-", "+1", ".5", "1.", "1.e3", "1e", "1e+", "1E-", "01", "-01", "00", "00.5", "x", "NaN", "Infinity", "-x",
        "-0", "10000000000000000000", "18446744073709551616", "0.12345678901234567890123", "1e28", "1e-28",
        "1.5e-27", "1e00001",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        fs_json_number n;
        size_t left;
        CHECK_REPORT(!read_number(texts[i], &n, &left), "%s is taken", texts[i]);
        CHECK_EQ(left, strlen(texts[i]));
    }
}

/* Whether it is read, as strtod reads it. */
static bool same_as_strtod(const char *text)
{
    fs_json_number n;
    size_t left;
    if (!read_number(text, &n, &left))
        return false;
    double want = strtod(text, NULL);
    bool same = n.real && left == 0 && memcmp(&want, &n.value, sizeof want) == 0;
    CHECK_REPORT(same, "%s: %a and %a", text, want, n.value);
    return true;
}

static void test_real_numbers(void)
{
    static const char *const texts[] = {
        "0.0", "-0.0", "0e5", "1.0", "-1.5", "0.1", "0.30000000000000004", "1e22", "1e23", "9007199254740993.0",
        "9007199254740992.0", "9007199254740991.0", "9007199254740993e0", "9007199254740995e3", "1e-27", "1e27",
        "1.7976931348623157e27", "0.12345678955316544", "0.00012345678901234567", "123456789012345678e-27",
        "9999999999999999999e27", "9999999999999999999e-27", "1e0009", "0.000000000000000000000000001", "5E-1", "5e+1",
        "18014398509481985.0", "18014398509481983.0", "36028797018963970.0",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        CHECK_REPORT(same_as_strtod(texts[i]), "%s is not taken", texts[i]);
}

/* Those that programs write, and those beside the middle between two doubles. */
static void test_many_numbers(void)
{
    uint64_t state = 1;
    char text[64];
    long taken = 0;
    for (int i = 0; i < 200000; i++) {
        uint64_t random = random64(&state);
        int power = (int)(random64(&state) % 60) - 30;
        switch (i % 4) {
        case 0:
            snprintf(text, sizeof text, "%" PRIu64 "e%d", random >> random % 60, power);
            break;
        case 1:
            snprintf(text, sizeof text, "%.17g", (double)(int64_t)random * 1e-19);
            break;
        case 2:
            snprintf(text, sizeof text, "%.9g", (double)(float)((double)random * 1e-15));
            break;
        default: /* one bit more than a double has */
            snprintf(text, sizeof text, "%" PRIu64 ".%s", (random >> 10 | UINT64_C(1) << 53) | 1, i % 8 == 3 ? "0" : "1");
        }
        if (strpbrk(text, ".e") != NULL)
            taken += same_as_strtod(text);
    }
    CHECK(taken > 150000);
}

int main(void)
{
    failmalloc_after(-1);
    test_whole_numbers();
    test_what_is_none_or_left_to_others();
    test_real_numbers();
    test_many_numbers();
    return check_done();
}
