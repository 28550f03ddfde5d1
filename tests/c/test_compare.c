/* test_compare: which rows of two answers differ, for every kind of number and for what is none. */
#include "compare.h"

#include <math.h>

#include "check.h"
#include "failmalloc.h"
#include "text.h"

typedef struct output {
    const char *alias;
    int dtype;
    int ndim;
    int64_t dims[3];
    const void *data;
} output;

static fs_slab *slab;

/* A PredictResponse, freed by the caller. */
static fs_slice reply(const output *outputs, uint32_t n)
{
    fs_tensor tensors[4];
    fs_reply_output outs[4];
    for (uint32_t i = 0; i < n; i++) {
        int64_t elements = 1;
        for (int d = 0; d < outputs[i].ndim; d++)
            elements *= outputs[i].dims[d];
        tensors[i] = (fs_tensor){.dtype = outputs[i].dtype, .ndim = outputs[i].ndim, .dims = outputs[i].dims,
                                 .elements = elements, .data = (void *)(uintptr_t)outputs[i].data,
                                 .bytes = (size_t)elements * fs_dtype_size(outputs[i].dtype)};
        outs[i] = (fs_reply_output){.alias = fs_slice_of(outputs[i].alias), .tensor = &tensors[i], .rows = -1};
    }
    fs_reply_model model = {.name = fs_slice_of("m"), .version = 1, .signature = fs_slice_of("s")};
    size_t size = fs_predict_reply_size(&model, outs, n, false);
    uint8_t *bytes = malloc(size);
    REQUIRE(bytes != NULL);
    fs_predict_reply_write(&model, outs, n, false, bytes);
    return (fs_slice){bytes, size};
}

static fs_difference compared(const output *a, uint32_t n_a, const output *b, uint32_t n_b, double allowed)
{
    fs_slice x = reply(a, n_a), y = reply(b, n_b);
    fs_difference d;
    CHECK_OK(fs_compare_replies(slab, x, y, allowed, &d));
    free((void *)(uintptr_t)x.data);
    free((void *)(uintptr_t)y.data);
    return d;
}

#define CHECK_DIFFERENCE(d, n, different, missing, farthest)                                       \
    do {                                                                                           \
        fs_difference check_d = (d);                                                               \
        CHECK_EQ(check_d.rows, n);                                                                 \
        CHECK_EQ(check_d.different_rows, different);                                               \
        CHECK_EQ(check_d.missing_outputs, missing);                                                \
        CHECK(fabs(check_d.largest - (farthest)) <= 1e-6 * (farthest));                            \
    } while (0)

static output floats(const char *alias, int64_t rows, int64_t inner, const float *data)
{
    return (output){alias, FS_DT_FLOAT, 2, {rows, inner}, data};
}

static void test_rows_differ_by_their_worst_number(void)
{
    const float a[] = {1, 2, 100, 200, -4, 0}, b[] = {1, 2, 100.05f, 210, -4, 1e-7f};
    output x = floats("y", 3, 2, a), y = floats("y", 3, 2, b);
    CHECK_DIFFERENCE(compared(&x, 1, &x, 1, 0), 3, 0, 0, 0);
    CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 1e-3), 3, 2, 0, 0.1); /* 0 and 1e-7 are apart by 0.1 of the least */
    CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 0.2), 3, 0, 0, 0.1);
    CHECK_DIFFERENCE(compared(&y, 1, &x, 1, 0), 3, 2, 0, 0.1);
}

static void test_numbers_that_cannot_be_measured(void)
{
    const float a[] = {NAN, INFINITY, -INFINITY, NAN, 1, INFINITY}, b[] = {NAN, INFINITY, -INFINITY, 1, NAN, 1};
    output x = floats("y", 6, 1, a), y = floats("y", 6, 1, b);
    CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 1e9), 6, 3, 0, FS_COMPARE_FAR);
}

static void test_every_dtype(void)
{
    const double d[] = {1, 2, 3, 4}, d2[] = {1, 2, 3, 5};
    const int8_t i8[] = {1, 2, 3, -4}, i8b[] = {1, 2, 3, -5};
    const uint8_t u8[] = {1, 2, 3, 4}, u8b[] = {1, 2, 3, 5};
    const int16_t i16[] = {1, 2, 3, 4}, i16b[] = {1, 2, 3, 5};
    const uint16_t u16[] = {1, 2, 3, 4}, u16b[] = {1, 2, 3, 5};
    const int32_t i32[] = {1, 2, 3, 4}, i32b[] = {1, 2, 3, 5};
    const uint32_t u32[] = {1, 2, 3, 4}, u32b[] = {1, 2, 3, 5};
    const int64_t i64[] = {1, 2, 3, 4}, i64b[] = {1, 2, 3, 5};
    const uint64_t u64[] = {1, 2, 3, 4}, u64b[] = {1, 2, 3, 5};
    const uint16_t half[] = {0x3c00, 0x0001, 0xc000, 0x4400}, halfb[] = {0x3c00, 0x0001, 0xc000, 0x4500};
    const uint16_t bf16[] = {0x3f80, 0, 0xc000, 0x4080}, bf16b[] = {0x3f80, 0, 0xc000, 0x40a0};
    const float c64[] = {1, 1, 2, 2, 3, 3, 4, 4}, c64b[] = {1, 1, 2, 2, 3, 3, 4, 5};
    const double c128[] = {1, 1, 2, 2, 3, 3, 4, 4}, c128b[] = {1, 1, 2, 2, 3, 3, 5, 4};
    const struct {
        int dtype;
        const void *a, *b;
    } cases[] = {
        {FS_DT_DOUBLE, d, d2},         {FS_DT_INT8, i8, i8b},         {FS_DT_UINT8, u8, u8b},
        {FS_DT_INT16, i16, i16b},      {FS_DT_UINT16, u16, u16b},     {FS_DT_INT32, i32, i32b},
        {FS_DT_UINT32, u32, u32b},     {FS_DT_INT64, i64, i64b},      {FS_DT_UINT64, u64, u64b},
        {FS_DT_HALF, half, halfb},     {FS_DT_BFLOAT16, bf16, bf16b}, {FS_DT_COMPLEX64, c64, c64b},
        {FS_DT_COMPLEX128, c128, c128b}, {FS_DT_QINT32, i32, i32b},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        output x = {"y", cases[i].dtype, 1, {4}, cases[i].a}, y = {"y", cases[i].dtype, 1, {4}, cases[i].b};
        CHECK_DIFFERENCE(compared(&x, 1, &x, 1, 0), 4, 0, 0, 0);
        CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 1e-3), 4, 1, 0, 0.25);
        CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 0.3), 4, 0, 0, 0.25);
    }
    const bool t[] = {true, false}, f[] = {true, true};
    output x = {"y", FS_DT_BOOL, 1, {2}, t}, y = {"y", FS_DT_BOOL, 1, {2}, f};
    CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 1e-3), 2, 1, 0, 1e6);
}

static void test_strings_are_the_same_or_not(void)
{
    fs_slice a[] = {fs_slice_of("one"), fs_slice_of("two"), fs_slice_of("")}, b[3];
    memcpy(b, a, sizeof a);
    output x = {"y", FS_DT_STRING, 1, {3}, a}, y = {"y", FS_DT_STRING, 1, {3}, b};
    CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 0), 3, 0, 0, 0);
    b[1] = fs_slice_of("twice");
    CHECK_DIFFERENCE(compared(&x, 1, &y, 1, 1e9), 3, 1, 0, 0);
}

static void test_several_outputs_share_their_rows(void)
{
    const float a[] = {1, 2, 3, 4}, b[] = {1, 2, 3, 9}, c[] = {7, 2, 3, 4};
    output x[] = {floats("p", 4, 1, a), floats("q", 4, 1, a)}, y[] = {floats("q", 4, 1, c), floats("p", 4, 1, b)};
    CHECK_DIFFERENCE(compared(x, 2, y, 2, 1e-3), 4, 2, 0, 6);
    output scalar[] = {{"s", FS_DT_FLOAT, 0, {0}, a}, floats("q", 4, 1, a)};
    output other[] = {{"s", FS_DT_FLOAT, 0, {0}, c}, floats("q", 4, 1, a)};
    CHECK_DIFFERENCE(compared(scalar, 2, other, 2, 1e-3), 4, 1, 0, 6);
    CHECK_DIFFERENCE(compared(scalar, 1, other, 1, 1e-3), 1, 1, 0, 6);
}

static void test_what_is_missing_or_of_another_kind_makes_every_row_different(void)
{
    const float a[] = {1, 2, 3, 4, 5, 6};
    const double d[] = {1, 2, 3};
    output x[] = {floats("p", 3, 1, a), floats("q", 3, 2, a)};
    CHECK_DIFFERENCE(compared(x, 2, x, 1, 1), 3, 3, 1, 0);
    CHECK_DIFFERENCE(compared(x, 1, x, 2, 1), 3, 3, 1, 0);
    CHECK_DIFFERENCE(compared(x, 1, x + 1, 1, 1), 3, 3, 2, 0);
    CHECK_DIFFERENCE(compared(x, 0, x, 0, 1), 1, 0, 0, 0);
    output wider = floats("p", 3, 2, a), shorter = floats("p", 2, 1, a), twice = {"p", FS_DT_DOUBLE, 2, {3, 1}, d};
    CHECK_DIFFERENCE(compared(x, 1, &wider, 1, 1), 3, 3, 0, 0);
    CHECK_DIFFERENCE(compared(x, 1, &shorter, 1, 1), 3, 3, 0, 0);
    CHECK_DIFFERENCE(compared(x, 1, &twice, 1, 1), 3, 3, 0, 0);
    /* A shape without elements may claim any number of rows. */
    output empty = floats("p", INT64_C(1) << 40, 0, a);
    CHECK_DIFFERENCE(compared(&empty, 1, &empty, 1, 1), 0, 0, 0, 0);
}

static void test_bytes_that_are_no_reply(void)
{
    const float a[] = {1};
    output x = floats("p", 1, 1, a);
    fs_slice good = reply(&x, 1);
    fs_slice junk = {(const uint8_t *)"\xff\xff\xff", 3};
    fs_difference d;
    CHECK_EQ(fs_compare_replies(slab, good, junk, 0, &d), -FS_INTERNAL);
    CHECK_EQ(fs_compare_replies(slab, junk, good, 0, &d), -FS_INTERNAL);
    free((void *)(uintptr_t)good.data);
}

static void test_without_memory(void)
{
    static float a[600000];
    output x = floats("p", 300000, 2, a);
    fs_slice r = reply(&x, 1);
    fs_difference d;
    long failed = 0;
    for (long n = 1;; n++) {
        fs_slab *own = fs_slab_new(0);
        REQUIRE(own != NULL);
        failmalloc_after(n);
        int rc = fs_compare_replies(own, r, r, 0, &d);
        failmalloc_after(-1);
        fs_slab_release(own);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            break;
        }
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
        failed++;
    }
    CHECK(failed >= 4);
    free((void *)(uintptr_t)r.data);
}

int main(void)
{
    REQUIRE((slab = fs_slab_new(1 << 20)) != NULL);
    test_rows_differ_by_their_worst_number();
    test_numbers_that_cannot_be_measured();
    test_every_dtype();
    test_strings_are_the_same_or_not();
    test_several_outputs_share_their_rows();
    test_what_is_missing_or_of_another_kind_makes_every_row_different();
    test_bytes_that_are_no_reply();
    test_without_memory();
    fs_slab_release(slab);
    return check_done();
}
