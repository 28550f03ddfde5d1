/* test_infer_reply: replies of Classify and Regress, whole, merged, cut and changed. */
#include "infer_reply.h"

#include "check.h"
#include "text.h"

static const uint8_t REGRESSIONS[] = {
    0x0a, 0x10,                                     /* result */
    0x0a, 0x05, 0x0d, 0, 0, 0x80, 0x3f,             /* 1.0 */
    0x0a, 0x00,                                     /* 0 */
    0x0a, 0x05, 0x0d, 0, 0, 0, 0xc0,                /* -2.0 */
    0x12, 0x07, 0x0a, 1, 'm', 0x12, 0x02, 0x08, 3,  /* model_spec */
};

static const uint8_t CLASSES[] = {
    0x0a, 0x14,                                                       /* result */
    0x0a, 0x10,                                                       /* an example */
    0x0a, 0x08, 0x0a, 1, 'a', 0x15, 0, 0, 0x80, 0x3f,                 /* "a", 1.0 */
    0x0a, 0x04, 0x0a, 2, 0xc3, 0xa9,                                  /* "é", 0 */
    0x0a, 0x00,                                                       /* an example without classes */
};

/* In memory of its own, so that a sanitizer sees every read beyond it. */
static fs_slice own(const uint8_t *data, size_t len)
{
    uint8_t *copy = malloc(len > 0 ? len : 1);
    REQUIRE(copy != NULL);
    memcpy(copy, data, len);
    return (fs_slice){copy, len};
}

static void regressions(void)
{
    fs_slice reply = own(REGRESSIONS, sizeof REGRESSIONS);
    REQUIRE(fs_regressions_count(reply) == 3);
    float values[3];
    fs_regressions_read(reply, values);
    CHECK(values[0] == 1 && values[1] == 0 && values[2] == -2);
    CHECK_EQ(fs_regressions_count((fs_slice){NULL, 0}), 0);
    free((void *)reply.data);
}

static void classes(void)
{
    fs_slice reply = own(CLASSES, sizeof CLASSES);
    int64_t n_examples = 0, n_classes = 0;
    REQUIRE(fs_classes_count(reply, &n_examples, &n_classes));
    REQUIRE(n_examples == 2 && n_classes == 2);
    int64_t counts[2];
    fs_class found[2];
    fs_classes_read(reply, counts, found);
    CHECK_EQ(counts[0], 2);
    CHECK_EQ(counts[1], 0);
    CHECK_EQ(fs_slice_compare(found[0].label, fs_slice_of("a")), 0);
    CHECK(found[0].score == 1 && found[1].score == 0);
    CHECK_EQ(found[1].label.len, 2);
    free((void *)reply.data);
}

static void results_that_come_twice_are_merged(void)
{
    uint8_t twice[2 * sizeof REGRESSIONS];
    memcpy(twice, REGRESSIONS, sizeof REGRESSIONS);
    memcpy(twice + sizeof REGRESSIONS, REGRESSIONS, sizeof REGRESSIONS);
    CHECK_EQ(fs_regressions_count((fs_slice){twice, sizeof twice}), 6);
}

static void unknown_fields_are_skipped(void)
{
    const uint8_t reply[] = {0x18, 5, 0x08, 1, 0x0a, 0x09, 0x10, 7, 0x0a, 0x05, 0x08, 1, 0x1d, 0, 0};
    fs_slice whole = {reply, sizeof reply};
    CHECK_EQ(fs_regressions_count(whole), -1); /* a float cut short */
    const uint8_t good[] = {0x18, 5, 0x08, 1, 0x0a, 0x0b, 0x10, 7, 0x0a, 0x07, 0x08, 1, 0x1d, 0, 0, 0, 0};
    whole = (fs_slice){good, sizeof good};
    CHECK_EQ(fs_regressions_count(whole), 1);
    float value = 9;
    fs_regressions_read(whole, &value);
    CHECK(value == 0);
}

/* Every prefix, and every byte changed: read or refused, and never beyond the bytes. */
static void no_bytes_are_read_beyond(const uint8_t *data, size_t len)
{
    unsigned refused = 0;
    for (size_t cut = 0; cut < len; cut++)
        for (unsigned byte = 0; byte < 256; byte++) {
            fs_slice reply = own(data, cut + 1);
            ((uint8_t *)reply.data)[cut] = (uint8_t)byte;
            int64_t n = fs_regressions_count(reply), n_examples = 0, n_classes = 0;
            refused += n < 0;
            float values[64];
            if (n > 0 && n <= 64)
                fs_regressions_read(reply, values);
            int64_t counts[64];
            fs_class found[64];
            if (fs_classes_count(reply, &n_examples, &n_classes) && n_examples <= 64 && n_classes <= 64)
                fs_classes_read(reply, counts, found);
            free((void *)reply.data);
        }
    CHECK(refused > 0);
}

int main(void)
{
    regressions();
    classes();
    results_that_come_twice_are_merged();
    unknown_fields_are_skipped();
    no_bytes_are_read_beyond(REGRESSIONS, sizeof REGRESSIONS);
    no_bytes_are_read_beyond(CLASSES, sizeof CLASSES);
    return check_done();
}
