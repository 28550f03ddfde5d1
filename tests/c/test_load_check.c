/* test_load_check: replies of Predict that are what they should be, and every way in which they are not. */
#include "load_check.h"

#include <math.h>

#include "predict.h"
#include "text.h"

#include "check.h"

enum { BODIES = 2, CONTENTS = 2 };

/* The first body has two rows, the second one; versions 1, 3, 5, ... have content 1. */
static const uint64_t FIRST[] = {0, 2, 3};
static const float EXPECTED[] = {0.1f, 0.2f, 0.3f, 0.6f, 0.7f, 0.8f};

static fs_load_check check_of(void)
{
    return (fs_load_check){.output = fs_slice_of("score"),
                           .n_contents = CONTENTS,
                           .n_bodies = BODIES,
                           .first = FIRST,
                           .expected = EXPECTED,
                           .atol = 1e-3f};
}

typedef struct reply {
    int64_t version; /* < 0: no model_spec */
    const char *alias;
    int dtype;
    int64_t rows;
    float values[4];
    bool as_content;
} reply;

/* In memory of its own, so that a sanitizer sees every read beyond it. */
static fs_slice encode(const reply *r)
{
    int64_t dims[] = {r->rows, 1};
    fs_tensor other = {.dtype = FS_DT_FLOAT, .ndim = 2, .dims = dims, .elements = r->rows, .bytes = 16};
    float zeros[4] = {0};
    other.data = zeros;
    fs_tensor tensor = other;
    tensor.dtype = r->dtype;
    tensor.data = (void *)r->values;
    tensor.bytes = (size_t)r->rows * 4;
    fs_reply_output outs[] = {{fs_slice_of("mark"), &other, 0, -1}, {fs_slice_of(r->alias), &tensor, 0, -1}};
    fs_reply_model model = {fs_slice_of("m"), r->version, fs_slice_of("serving_default")};
    size_t len = fs_predict_reply_size(&model, outs, 2, r->as_content);
    uint8_t *bytes = malloc(len);
    REQUIRE(len > 0 && bytes != NULL);
    fs_predict_reply_write(&model, outs, 2, r->as_content, bytes);
    return (fs_slice){bytes, len};
}

static fs_load_answer looked_at(const reply *r, uint32_t body)
{
    fs_load_check check = check_of();
    fs_slice bytes = encode(r);
    fs_load_answer answer = fs_load_check_reply(&check, bytes, body);
    free((void *)bytes.data);
    return answer;
}

static void the_values_of_the_version_that_is_named_are_good(void)
{
    for (int as_content = 0; as_content < 2; as_content++) {
        reply odd = {7, "score", FS_DT_FLOAT, 2, {0.6f, 0.7005f}, as_content != 0};
        fs_load_answer answer = looked_at(&odd, 0);
        CHECK_EQ(answer.failure, 0);
        CHECK_EQ(answer.version, 7);
        reply even = {1000000, "score", FS_DT_FLOAT, 1, {0.3f}, as_content != 0};
        answer = looked_at(&even, 1);
        CHECK_EQ(answer.failure, 0);
        CHECK_EQ(answer.version, 1000000);
    }
}

static void values_of_another_version_are_misversioned(void)
{
    reply other = {8, "score", FS_DT_FLOAT, 2, {0.6f, 0.7f}, false}; /* of an odd one */
    reply half = {7, "score", FS_DT_FLOAT, 2, {0.6f, 0.2f}, false};
    reply nothing = {7, "score", FS_DT_FLOAT, 2, {0.6f, NAN}, true};
    const reply *all[] = {&other, &half, &nothing};
    for (int i = 0; i < 3; i++) {
        fs_load_answer answer = looked_at(all[i], 0);
        CHECK_EQ(answer.failure, FS_LOAD_MISVERSIONED);
        CHECK_EQ(answer.version, all[i]->version);
        CHECK(answer.why != NULL);
    }
}

static void an_answer_without_a_version_is_misversioned(void)
{
    reply zero = {0, "score", FS_DT_FLOAT, 2, {0.1f, 0.2f}, false};
    CHECK_EQ(looked_at(&zero, 0).failure, FS_LOAD_MISVERSIONED);
    CHECK_EQ(looked_at(&zero, 0).version, -1);
    fs_load_check check = check_of();
    fs_load_answer answer = fs_load_check_reply(&check, (fs_slice){NULL, 0}, 0);
    CHECK_EQ(answer.failure, FS_LOAD_MISVERSIONED);
    CHECK_EQ(answer.version, -1);
}

static void an_answer_without_the_output_is_bad(void)
{
    reply missing = {7, "other", FS_DT_FLOAT, 2, {0.6f, 0.7f}, false};
    reply whole = {7, "score", FS_DT_INT32, 2, {0.6f, 0.7f}, true};
    reply shorter = {7, "score", FS_DT_FLOAT, 1, {0.6f}, false};
    reply longer = {7, "score", FS_DT_FLOAT, 3, {0.6f, 0.7f, 0.7f}, true};
    const reply *all[] = {&missing, &whole, &shorter, &longer};
    for (int i = 0; i < 4; i++)
        CHECK_EQ(looked_at(all[i], 0).failure, FS_LOAD_BAD_REPLY);
}

static void a_relative_tolerance_grows_with_the_value(void)
{
    static const uint64_t first[] = {0, 1};
    static const float expected[] = {1000.0f};
    fs_load_check check = {fs_slice_of("score"), 1, 1, first, expected, 0, 1e-3f};
    reply near = {1, "score", FS_DT_FLOAT, 1, {1000.9f}, false};
    reply far = {1, "score", FS_DT_FLOAT, 1, {1001.1f}, false};
    fs_slice bytes = encode(&near);
    CHECK_EQ(fs_load_check_reply(&check, bytes, 0).failure, 0);
    free((void *)bytes.data);
    bytes = encode(&far);
    CHECK_EQ(fs_load_check_reply(&check, bytes, 0).failure, FS_LOAD_MISVERSIONED);
    free((void *)bytes.data);
}

/* Cut anywhere, or with any byte changed, a reply is judged without reading beyond it, and a cut is seen. */
static void what_is_cut_or_changed_is_read_within_its_bounds(void)
{
    fs_load_check check = check_of();
    reply r = {7, "score", FS_DT_FLOAT, 2, {0.6f, 0.7f}, false};
    fs_slice whole = encode(&r);
    for (size_t len = 0; len < whole.len; len++) {
        uint8_t *cut = malloc(len > 0 ? len : 1);
        REQUIRE(cut != NULL);
        memcpy(cut, whole.data, len);
        CHECK(fs_load_check_reply(&check, (fs_slice){cut, len}, 0).failure != 0);
        free(cut);
    }
    for (size_t at = 0; at < whole.len; at++) {
        for (int bit = 0; bit < 8; bit++) {
            uint8_t *bytes = (uint8_t *)whole.data;
            bytes[at] ^= (uint8_t)(1 << bit);
            int failure = fs_load_check_reply(&check, whole, 0).failure;
            CHECK(failure == 0 || failure == FS_LOAD_BAD_REPLY || failure == FS_LOAD_MISVERSIONED);
            bytes[at] ^= (uint8_t)(1 << bit);
        }
    }
    free((void *)whole.data);
}

int main(void)
{
    the_values_of_the_version_that_is_named_are_good();
    values_of_another_version_are_misversioned();
    an_answer_without_a_version_is_misversioned();
    an_answer_without_the_output_is_bad();
    a_relative_tolerance_grows_with_the_value();
    what_is_cut_or_changed_is_read_within_its_bounds();
    return check_done();
}
