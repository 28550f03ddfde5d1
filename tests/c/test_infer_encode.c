/* infer_encode: replies of Classify, Regress and MultiInference against their bytes, and what outputs are refused
 * for. tests/integration/test_inference.py asks TensorFlow's own classes to read them. */
#include "infer_encode.h"

#include "check.h"
#include "infer_reply.h"
#include "text.h"

static const fs_reply_model MODEL = {{(const uint8_t *)"m", 1}, 3, {(const uint8_t *)"s", 1}};
#define MODEL_BYTES "\x0a\x01m\x12\x02\x08\x03\x1a\x01s"

/* Two rows of two classes. */
static const int64_t TWO_BY_TWO[] = {2, 2}, TWO[] = {2}, TWO_BY_ONE[] = {2, 1};
static float scores_data[] = {0.5f, 0, -0.0f, 2};
static fs_slice labels_data[] = {{(const uint8_t *)"a", 1}, {(const uint8_t *)"", 0}, {(const uint8_t *)"bc", 2},
                                 {(const uint8_t *)"d", 1}};
static const fs_tensor scores = {
    .dtype = FS_DT_FLOAT, .ndim = 2, .dims = TWO_BY_TWO, .elements = 4, .data = scores_data};
static const fs_tensor labels = {
    .dtype = FS_DT_STRING, .ndim = 2, .dims = TWO_BY_TWO, .elements = 4, .data = labels_data};
static const fs_tensor values = {
    .dtype = FS_DT_FLOAT, .ndim = 1, .dims = TWO, .elements = 2, .data = scores_data};

static void check_reply(const fs_infer_result *result, bool task, const char *expected, size_t len)
{
    fs_error err;
    CHECK_OK(fs_infer_result_check(result, &err));
    size_t size = fs_infer_reply_size(&MODEL, result, task);
    CHECK_EQ(size, len);
    if (size != len)
        return;
    uint8_t *got = malloc(size); /* exactly, so that a sanitizer sees what is written beyond */
    REQUIRE(got != NULL);
    fs_infer_reply_write(&MODEL, result, task, got);
    CHECK_MEM(got, expected, len);
    free(got);
}

#define CHECK_REPLY(result, task, bytes) check_reply(&(result), task, bytes, sizeof(bytes) - 1)

static void replies_are_the_bytes_that_protobuf_writes(void)
{
    fs_infer_result both = {.classes = &labels, .scores = &scores, .rows = 2, .whole = true};
#define ROW_1 "\x0a\x0c\x0a\x08\x0a\x01\x61\x15\0\0\0\x3f\x0a\x00"
#define ROW_2 "\x0a\x15\x0a\x09\x0a\x02\x62\x63\x15\0\0\0\x80\x0a\x08\x0a\x01\x64\x15\0\0\0\x40"
    CHECK_REPLY(both, false, "\x0a\x25" ROW_1 ROW_2 "\x12\x0a" MODEL_BYTES);
    CHECK_REPLY(both, true, "\x0a\x33\x0a\x0a" MODEL_BYTES "\x12\x25" ROW_1 ROW_2);

    fs_infer_result second = {.classes = &labels, .scores = &scores, .first_row = 1, .rows = 1};
    CHECK_REPLY(second, false, "\x0a\x17" ROW_2 "\x12\x0a" MODEL_BYTES);

    fs_infer_result only_labels = {.classes = &labels, .rows = 1};
    CHECK_REPLY(only_labels, false, "\x0a\x09\x0a\x07\x0a\x03\x0a\x01\x61\x0a\x00\x12\x0a" MODEL_BYTES);

    fs_infer_result only_scores = {.scores = &scores, .rows = 1};
    CHECK_REPLY(only_scores, false, "\x0a\x0b\x0a\x09\x0a\x05\x15\0\0\0\x3f\x0a\x00\x12\x0a" MODEL_BYTES);

    fs_infer_result numbers = {.regression = true, .scores = &values, .rows = 2, .whole = true};
    CHECK_REPLY(numbers, false, "\x0a\x09\x0a\x05\x0d\0\0\0\x3f\x0a\x00\x12\x0a" MODEL_BYTES);
    CHECK_REPLY(numbers, true, "\x0a\x17\x0a\x0a" MODEL_BYTES "\x1a\x09\x0a\x05\x0d\0\0\0\x3f\x0a\x00");

    fs_tensor column = values;
    column.ndim = 2;
    column.dims = TWO_BY_ONE;
    fs_infer_result last = {.regression = true, .scores = &column, .first_row = 1, .rows = 1};
    CHECK_REPLY(last, false, "\x0a\x02\x0a\x00\x12\x0a" MODEL_BYTES);
}

static void rows_without_classes(void)
{
    const int64_t dims[] = {2, 0};
    fs_tensor none = {.dtype = FS_DT_FLOAT, .ndim = 2, .dims = dims};
    fs_infer_result result = {.scores = &none, .rows = 2, .whole = true};
    CHECK_REPLY(result, false, "\x0a\x04\x0a\x00\x0a\x00\x12\x0a" MODEL_BYTES);
}

/* The client's own reader finds in it what was put in. */
static void a_large_reply_is_read_back(void)
{
    enum { ROWS = 1000, CLASSES = 7 };
    static float many[ROWS * CLASSES];
    static fs_slice names[ROWS * CLASSES];
    const int64_t dims[] = {ROWS, CLASSES};
    for (int i = 0; i < ROWS * CLASSES; i++) {
        many[i] = (float)(i % 13) - 3;
        names[i] = (fs_slice){(const uint8_t *)"abcdefghijklmnop", (size_t)(i % 16)};
    }
    fs_tensor t = {.dtype = FS_DT_FLOAT, .ndim = 2, .dims = dims, .elements = ROWS * CLASSES, .data = many};
    fs_tensor n = {.dtype = FS_DT_STRING, .ndim = 2, .dims = dims, .elements = ROWS * CLASSES, .data = names};
    fs_infer_result result = {.classes = &n, .scores = &t, .rows = ROWS, .whole = true};
    size_t size = fs_infer_reply_size(&MODEL, &result, false);
    uint8_t *reply = malloc(size);
    static fs_class found[ROWS * CLASSES];
    static int64_t counts[ROWS];
    REQUIRE(reply != NULL);
    fs_infer_reply_write(&MODEL, &result, false, reply);
    int64_t n_examples = 0, n_classes = 0;
    CHECK(fs_classes_count((fs_slice){reply, size}, &n_examples, &n_classes));
    CHECK_EQ(n_examples, ROWS);
    CHECK_EQ(n_classes, ROWS * CLASSES);
    fs_classes_read((fs_slice){reply, size}, counts, found);
    long wrong = 0;
    for (int i = 0; i < ROWS * CLASSES; i++)
        wrong += found[i].score != many[i] || fs_slice_compare(found[i].label, names[i]) != 0;
    CHECK_EQ(wrong, 0);
    free(reply);
}

/* ---- what is refused ----------------------------------------------------------------------------- */

static void refused(const fs_infer_result *result, const char *text)
{
    fs_error err = {0};
    CHECK_EQ(fs_infer_result_check(result, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, text);
}

static void outputs_that_are_no_classes(void)
{
    const int64_t three[] = {2, 2, 3}, wide[] = {2, 3};
    fs_tensor odd = {.dtype = FS_DT_FLOAT, .dims = three};
    fs_infer_result result = {.scores = &odd, .rows = 2, .whole = true};
    refused(&result, "Expected Tensor shape: [batch_size num_classes] but got []");
    odd.ndim = 1;
    refused(&result, "Expected Tensor shape: [batch_size num_classes] but got [2]");
    odd.ndim = 3;
    refused(&result, "Expected Tensor shape: [batch_size num_classes] but got [2,2,3]");
    result.whole = false; /* the rows of others are nobody's business */
    result.rows = 1;
    refused(&result, "Expected Tensor shape: [batch_size num_classes] but got [1,2,3]");
    odd.ndim = 2;
    odd.dtype = FS_DT_DOUBLE;
    refused(&result, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE");
    result = (fs_infer_result){.classes = &odd, .scores = &scores, .rows = 2, .whole = true};
    odd.dtype = FS_DT_FLOAT8_E5M2;
    refused(&result, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT8_E5M2");
    odd.dtype = FS_DT_STRING;
    odd.dims = wide;
    refused(&result, "Tensors class and score should match in dim_size(1). Got 3 vs. 2");
    result.rows = 5;
    refused(&result, "Expected classes output batch size of 5. Got: 2");
    result.classes = NULL;
    refused(&result, "Expected scores output batch size of 5. Got: 2");
}

static void outputs_that_are_no_values(void)
{
    const int64_t dims[] = {2, 1, 1};
    fs_tensor odd = {.dtype = FS_DT_FLOAT, .dims = dims};
    fs_infer_result result = {.regression = true, .scores = &odd, .rows = 2, .whole = true};
    refused(&result, "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got []");
    odd.ndim = 3;
    refused(&result, "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,1,1]");
    odd.ndim = 2;
    odd.dims = TWO_BY_TWO;
    refused(&result, "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]");
    odd.dims = TWO_BY_ONE;
    result.rows = 3;
    refused(&result, "Input batch size did not match output batch size: 3 vs. 2");
    result.rows = 2;
    odd.dtype = FS_DT_INT64;
    refused(&result, "Expected output Tensor of DT_FLOAT.  Got: DT_INT64");
}

int main(void)
{
    replies_are_the_bytes_that_protobuf_writes();
    rows_without_classes();
    a_large_reply_is_read_back();
    outputs_that_are_no_classes();
    outputs_that_are_no_values();
    return check_done();
}
