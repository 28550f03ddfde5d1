/* test_example: columns' texts, and examples of known bytes; that columns which change are noticed. */
#include "example.h"

#include "check.h"
#include "text.h"

static void texts_of_code_points(void)
{
    const uint32_t points[] = {'a', 0, 0xe9, 0x20ac, 0x1f600, 0, 0};
    const uint8_t expected[] = {'a', 0, 0xc3, 0xa9, 0xe2, 0x82, 0xac, 0xf0, 0x9f, 0x98, 0x80};
    const uint8_t *at = (const uint8_t *)points;
    CHECK_EQ(fs_ucs4_bytes(at, 7), sizeof expected); /* the NUL in the middle stays */
    uint8_t out[28];
    CHECK(fs_ucs4_write(at, 7, out, out + sizeof out) == out + sizeof expected);
    CHECK_MEM(out, expected, sizeof expected);
    for (size_t room = 0; room < sizeof expected; room++) { /* never beyond the end */
        uint8_t *less = malloc(room + 1);
        REQUIRE(less != NULL);
        CHECK(fs_ucs4_write(at, 7, less, less + room) <= less + room);
        free(less);
    }
    const uint32_t wrong[] = {0xd800, 0xdfff, 0x110000, UINT32_MAX};
    for (int i = 0; i < 4; i++)
        CHECK_EQ(fs_ucs4_bytes((const uint8_t *)&wrong[i], 1), -1);

    uint32_t column[3] = {'x', 'y', 0xd900};
    fs_column c = {(const uint8_t *)column, 3, 1, 4, 0, 4, FS_COLUMN_UCS4};
    int64_t row = -1;
    CHECK(!fs_column_valid(&c, &row));
    CHECK_EQ(row, 2);
    c.rows = 2;
    CHECK(fs_column_valid(&c, &row));
}

static void fixed_text_loses_the_nuls_at_its_end(void)
{
    const char items[3][4] = {"abcd", "a\0b", ""};
    fs_column c = {(const uint8_t *)items, 3, 1, 4, 0, 4, FS_COLUMN_FIXED};
    const size_t lens[] = {4, 3, 0};
    for (int i = 0; i < 3; i++) {
        fs_slice text = fs_column_text(&c, fs_column_at(&c, i, 0), NULL);
        CHECK_EQ(text.len, lens[i]);
        CHECK(text.data == (const uint8_t *)items[i]);
    }
}

static void numbers_of_every_kind(void)
{
    const int8_t i8 = -5;
    const int16_t i16 = -300;
    const int32_t i32 = -70000;
    const int64_t i64 = INT64_MIN;
    const uint16_t u16 = 65535;
    const uint32_t u32 = UINT32_MAX;
    const uint64_t u64 = UINT64_MAX;
    const uint8_t u8 = 255, yes = 7;
    const float f32 = -1.5f;
    const double f64 = 0.1;
    CHECK_EQ(fs_column_int(FS_COLUMN_I8, (const uint8_t *)&i8), -5);
    CHECK_EQ(fs_column_int(FS_COLUMN_I16, (const uint8_t *)&i16), -300);
    CHECK_EQ(fs_column_int(FS_COLUMN_I32, (const uint8_t *)&i32), -70000);
    CHECK_EQ(fs_column_int(FS_COLUMN_I64, (const uint8_t *)&i64), INT64_MIN);
    CHECK_EQ(fs_column_int(FS_COLUMN_U8, &u8), 255);
    CHECK_EQ(fs_column_int(FS_COLUMN_U16, (const uint8_t *)&u16), 65535);
    CHECK_EQ(fs_column_int(FS_COLUMN_U32, (const uint8_t *)&u32), UINT32_MAX);
    CHECK_EQ(fs_column_int(FS_COLUMN_BOOL, &yes), 1);
    CHECK(fs_column_real(FS_COLUMN_U64, (const uint8_t *)&u64) == 0x1p64);
    CHECK(fs_column_real(FS_COLUMN_F32, (const uint8_t *)&f32) == -1.5);
    CHECK(fs_column_real(FS_COLUMN_F64, (const uint8_t *)&f64) == 0.1);
    CHECK(fs_column_real(FS_COLUMN_I8, (const uint8_t *)&i8) == -5);
}

static fs_feature feature(const char *name, const void *data, int64_t rows, int64_t width, int64_t size,
                          enum fs_column_kind kind)
{
    return (fs_feature){
        .name = fs_slice_of(name),
        .column = {data, rows, width, width * size, size, size, kind},
    };
}

/* Writes examples to memory of exactly their size. */
static size_t encode(const fs_feature *features, uint32_t n, int64_t rows, uint8_t **out)
{
    uint32_t sizes[16];
    size_t bytes = 0;
    CHECK_OK(fs_examples_measure(features, n, 0, rows, sizes, &bytes));
    *out = malloc(bytes > 0 ? bytes : 1);
    REQUIRE(*out != NULL);
    CHECK(fs_examples_write(features, n, 0, rows, sizes, *out) == *out + bytes);
    return bytes;
}

static void an_example_of_known_bytes(void)
{
    const int64_t ints[] = {1, -1};
    const float floats[] = {1.0f};
    const char text[1][3] = {"xyz"};
    const fs_feature features[] = {
        feature("i", ints, 1, 2, 8, FS_COLUMN_I64),
        feature("f", floats, 1, 1, 4, FS_COLUMN_F32),
        feature("b", text, 1, 1, 3, FS_COLUMN_FIXED),
    };
    const uint8_t expected[] = {
        0x0a, 0x35, 0x0a, 0x33, /* examples, features */
        0x0a, 0x14, 0x0a, 1, 'i', 0x12, 0x0f, 0x1a, 0x0d, 0x0a, 0x0b, /* an entry, its key, an Int64List */
        1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        0x0a, 0x0d, 0x0a, 1, 'f', 0x12, 0x08, 0x12, 0x06, 0x0a, 0x04, 0, 0, 0x80, 0x3f,
        0x0a, 0x0c, 0x0a, 1, 'b', 0x12, 0x07, 0x0a, 0x05, 0x0a, 0x03, 'x', 'y', 'z',
    };
    uint8_t *out;
    size_t bytes = encode(features, 3, 1, &out);
    CHECK_EQ(bytes, sizeof expected);
    if (bytes == sizeof expected)
        CHECK_MEM(out, expected, sizeof expected);
    free(out);
}

static void absent_and_ragged_features(void)
{
    const int32_t ints[] = {1, 2, 3};
    const int64_t offsets[] = {0, 0, 2, 3};
    const uint8_t present[] = {1, 1, 0};
    fs_feature ragged = feature("r", ints, 3, 1, 4, FS_COLUMN_I32);
    ragged.offsets = offsets;
    ragged.present = present;
    const uint8_t expected[] = {
        0x0a, 0x0b, 0x0a, 0x09, 0x0a, 0x07, 0x0a, 1, 'r', 0x12, 0x02, 0x1a, 0x00, /* an empty Int64List */
        0x0a, 0x0f, 0x0a, 0x0d, 0x0a, 0x0b, 0x0a, 1, 'r', 0x12, 0x06, 0x1a, 0x04, 0x0a, 0x02, 1, 2,
        0x0a, 0x02, 0x0a, 0x00, /* no feature */
    };
    uint8_t *out;
    size_t bytes = encode(&ragged, 1, 3, &out);
    CHECK_EQ(bytes, sizeof expected);
    if (bytes == sizeof expected)
        CHECK_MEM(out, expected, sizeof expected);
    free(out);
}

/* Measures, changes the column, writes: into memory of the measured size, so that a sanitizer looks on. */
static void change_between(fs_feature f, void *data, const void *then, size_t size)
{
    uint32_t sizes[1];
    size_t bytes;
    CHECK_OK(fs_examples_measure(&f, 1, 0, 1, sizes, &bytes));
    uint8_t *out = malloc(bytes);
    REQUIRE(out != NULL);
    memcpy(data, then, size);
    CHECK(fs_examples_write(&f, 1, 0, 1, sizes, out) == NULL);
    free(out);
}

static void columns_that_change_are_noticed(void)
{
    int64_t ints[3] = {1, 2, 3};
    const int64_t larger[3] = {1, INT64_MAX, -1}, smaller[3] = {1, 2, 3};
    change_between(feature("i", ints, 1, 3, 8, FS_COLUMN_I64), ints, larger, sizeof ints);
    change_between(feature("i", ints, 1, 3, 8, FS_COLUMN_I64), ints, smaller, sizeof ints);
    char text[2][8] = {"a", "b"};
    const char longer[2][8] = {"aaaaaaa", "bbbbbbbb"}, shorter[2][8] = {"", "b"};
    change_between(feature("t", text, 1, 2, 8, FS_COLUMN_FIXED), text, longer, sizeof text);
    change_between(feature("t", text, 1, 2, 8, FS_COLUMN_FIXED), text, shorter, sizeof text);
    uint32_t points[4] = {'a', 0, 'b', 0};
    const uint32_t more[4] = {0x20ac, 0x20ac, 'b', 0}, wrong[4] = {0xd800, 0, 'b', 0};
    change_between(feature("u", points, 1, 2, 8, FS_COLUMN_UCS4), points, more, sizeof points);
    change_between(feature("u", points, 1, 2, 8, FS_COLUMN_UCS4), points, wrong, sizeof points);
}

static void what_passes_2_gib_is_refused(void)
{
    const uint8_t byte = 'x';
    fs_slice huge = {&byte, (size_t)1 << 30}; /* only measured */
    fs_feature f = feature("t", &huge, 3, 1, 0, FS_COLUMN_SLICE);
    uint32_t sizes[3];
    size_t bytes;
    CHECK_OK(fs_examples_measure(&f, 1, 0, 1, sizes, &bytes));
    CHECK_EQ(fs_examples_measure(&f, 1, 0, 3, sizes, &bytes), -FS_RESOURCE_EXHAUSTED);
    f.column.width = 3;
    CHECK_EQ(fs_examples_measure(&f, 1, 0, 1, sizes, &bytes), -FS_RESOURCE_EXHAUSTED);
}

int main(void)
{
    texts_of_code_points();
    fixed_text_loses_the_nuls_at_its_end();
    numbers_of_every_kind();
    an_example_of_known_bytes();
    absent_and_ragged_features();
    columns_that_change_are_noticed();
    what_passes_2_gib_is_refused();
    return check_done();
}
