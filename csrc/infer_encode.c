/* infer_encode: see infer_encode.h. The bytes are those that protobuf's own serializer writes. */
#include "infer_encode.h"

#include <ctype.h>
#include <string.h>

#include "predict_proto.h"
#include "text.h"
#include "wire.h"

enum {
    F_RESULT = 1, F_RESULT_MODEL = 2,                                 /* of the responses */
    F_RESULTS = 1,                                                    /* MultiInferenceResponse */
    F_TASK_MODEL = 1, F_TASK_CLASSES = 2, F_TASK_VALUES = 3,          /* InferenceResult */
    F_CLASSIFICATIONS = 1, F_CLASSES = 1, F_CLASS_LABEL = 1, F_CLASS_SCORE = 2,   /* ClassificationResult and below */
    F_REGRESSIONS = 1, F_REGRESSION_VALUE = 1,                        /* RegressionResult and below */
    FLOAT_BYTES = 5,                                                  /* a float with its tag */
};

/* ---- what the outputs must be -------------------------------------------------------------------- */

/* "[2,3]", with the rows that are the call's own where it shares the tensor with others. */
static void put_shape(fs_text *text, const fs_infer_result *result, const fs_tensor *t)
{
    fs_text_put(text, "[");
    for (int32_t d = 0; d < t->ndim; d++) {
        int64_t dim = d == 0 && !result->whole ? result->rows : t->dims[d];
        fs_text_putf(text, d == 0 ? "%lld" : ",%lld", (long long)dim);
    }
    fs_text_put(text, "]");
}

/* "DT_FLOAT". */
static void put_dtype(fs_text *text, int dtype)
{
    char name[32];
    size_t i = 0;
    for (const char *from = fs_dtype_name(dtype); *from != '\0' && i < sizeof name - 1; from++)
        name[i++] = (char)toupper((unsigned char)*from);
    name[i] = '\0';
    fs_text_putf(text, "DT_%s", name);
}

static int check_class_output(const fs_infer_result *result, const fs_tensor *t, const char *name, int dtype,
                              fs_error *err)
{
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    if (t->ndim != 2) {
        fs_text_put(&text, "Expected Tensor shape: [batch_size num_classes] but got ");
        put_shape(&text, result, t);
        return fs_text_end(&text);
    }
    if (t->dtype != dtype) {
        fs_text_putf(&text, "Expected %s Tensor of ", name);
        put_dtype(&text, dtype);
        fs_text_put(&text, ". Got: ");
        put_dtype(&text, t->dtype);
        return fs_text_end(&text);
    }
    if (result->whole && t->dims[0] != result->rows) {
        fs_text_putf(&text, "Expected %s output batch size of %lld. Got: %lld", name,
                     (long long)result->rows, (long long)t->dims[0]);
        return fs_text_end(&text);
    }
    return 0;
}

static int check_values(const fs_infer_result *result, fs_error *err)
{
    const fs_tensor *t = result->scores;
    fs_text text = fs_text_begin(err, FS_INVALID_ARGUMENT);
    if (t->ndim != 1 && (t->ndim != 2 || t->dims[1] != 1)) {
        fs_text_put(&text, "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got ");
        put_shape(&text, result, t);
        return fs_text_end(&text);
    }
    if (result->whole && t->dims[0] != result->rows) {
        fs_text_putf(&text, "Input batch size did not match output batch size: %lld vs. %lld",
                     (long long)result->rows, (long long)t->dims[0]);
        return fs_text_end(&text);
    }
    if (t->dtype != FS_DT_FLOAT) {
        fs_text_put(&text, "Expected output Tensor of DT_FLOAT.  Got: ");
        put_dtype(&text, t->dtype);
        return fs_text_end(&text);
    }
    return 0;
}

int fs_infer_result_check(const fs_infer_result *result, fs_error *err)
{
    if (result->regression)
        return check_values(result, err);
    const fs_tensor *classes = result->classes, *scores = result->scores;
    int rc = classes == NULL ? 0 : check_class_output(result, classes, "classes", FS_DT_STRING, err);
    if (rc == 0 && scores != NULL)
        rc = check_class_output(result, scores, "scores", FS_DT_FLOAT, err);
    if (rc == 0 && classes != NULL && scores != NULL && classes->dims[1] != scores->dims[1])
        rc = fs_fail(err, FS_INVALID_ARGUMENT,
                     "Tensors class and score should match in dim_size(1). Got %lld vs. %lld",
                     (long long)classes->dims[1], (long long)scores->dims[1]);
    return rc;
}

/* ---- messages ------------------------------------------------------------------------------------ */

/* A float is left out where all its bits are 0, as proto3 does. */
static bool is_zero(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits == 0;
}

static size_t float_size(float value)
{
    return is_zero(value) ? 0 : FLOAT_BYTES;
}

static uint8_t *put_float(uint8_t *dst, uint32_t number, float value)
{
    if (is_zero(value))
        return dst;
    *dst++ = (uint8_t)FS_WIRE_TAG(number, FS_WIRE_FIXED32);
    memcpy(dst, &value, sizeof value);
    return dst + sizeof value;
}

/* The labels and scores of one row. */
typedef struct class_row {
    const fs_slice *labels; /* or NULL */
    const float *scores;    /* or NULL */
    size_t n;
} class_row;

static class_row class_row_of(const fs_infer_result *result, int64_t row)
{
    const fs_tensor *any = result->classes != NULL ? result->classes : result->scores;
    class_row r = {.n = (size_t)any->dims[1]};
    if (r.n == 0)
        return r; /* there may be no data */
    size_t at = (size_t)(result->first_row + row) * r.n;
    if (result->classes != NULL)
        r.labels = (const fs_slice *)result->classes->data + at;
    if (result->scores != NULL)
        r.scores = (const float *)result->scores->data + at;
    return r;
}

static size_t class_size(const class_row *row, size_t i)
{
    size_t size = row->scores == NULL ? 0 : float_size(row->scores[i]);
    if (row->labels != NULL && row->labels[i].len > 0)
        size += fs_wire_bytes_size(F_CLASS_LABEL, row->labels[i].len);
    return size;
}

static size_t classes_size(const class_row *row)
{
    size_t size = 0;
    for (size_t i = 0; i < row->n; i++)
        size += fs_wire_bytes_size(F_CLASSES, class_size(row, i));
    return size;
}

static uint8_t *write_classes(const class_row *row, uint8_t *dst)
{
    for (size_t i = 0; i < row->n; i++) {
        dst = fs_wire_put_head(dst, F_CLASSES, class_size(row, i));
        if (row->labels != NULL && row->labels[i].len > 0)
            dst = fs_wire_put_bytes(dst, F_CLASS_LABEL, row->labels[i]);
        if (row->scores != NULL)
            dst = put_float(dst, F_CLASS_SCORE, row->scores[i]);
    }
    return dst;
}

static const float *values_of(const fs_infer_result *result)
{
    return (const float *)result->scores->data + result->first_row;
}

/* A ClassificationResult or a RegressionResult. */
static size_t result_size(const fs_infer_result *result)
{
    size_t size = 0;
    for (int64_t i = 0; i < result->rows; i++) {
        if (result->regression) {
            size += fs_wire_bytes_size(F_REGRESSIONS, float_size(values_of(result)[i]));
        } else {
            class_row row = class_row_of(result, i);
            size += fs_wire_bytes_size(F_CLASSIFICATIONS, classes_size(&row));
        }
    }
    return size;
}

static uint8_t *write_result(const fs_infer_result *result, uint8_t *dst)
{
    for (int64_t i = 0; i < result->rows; i++) {
        if (result->regression) {
            float value = values_of(result)[i];
            dst = fs_wire_put_head(dst, F_REGRESSIONS, float_size(value));
            dst = put_float(dst, F_REGRESSION_VALUE, value);
        } else {
            class_row row = class_row_of(result, i);
            dst = fs_wire_put_head(dst, F_CLASSIFICATIONS, classes_size(&row));
            dst = write_classes(&row, dst);
        }
    }
    return dst;
}

/* All three messages have one field for the ModelSpec and one for the result, with numbers of one byte. */
static size_t body_size(const fs_reply_model *model, size_t result)
{
    return fs_wire_bytes_size(F_RESULT, result) + fs_wire_bytes_size(F_RESULT_MODEL, fs_reply_model_size(model));
}

size_t fs_infer_reply_size(const fs_reply_model *model, const fs_infer_result *result, bool task)
{
    size_t size = body_size(model, result_size(result));
    if (task)
        size = fs_wire_bytes_size(F_RESULTS, size);
    return size > FS_WIRE_MAX_BYTES ? 0 : size;
}

void fs_infer_reply_write(const fs_reply_model *model, const fs_infer_result *result, bool task, uint8_t *dst)
{
    size_t size = result_size(result), model_size = fs_reply_model_size(model);
    if (task) {
        dst = fs_wire_put_head(dst, F_RESULTS, body_size(model, size));
        dst = fs_wire_put_head(dst, F_TASK_MODEL, model_size);
        dst = fs_reply_model_write(model, dst);
        dst = fs_wire_put_head(dst, result->regression ? F_TASK_VALUES : F_TASK_CLASSES, size);
        write_result(result, dst);
        return;
    }
    dst = fs_wire_put_head(dst, F_RESULT, size);
    dst = write_result(result, dst);
    dst = fs_wire_put_head(dst, F_RESULT_MODEL, model_size);
    fs_reply_model_write(model, dst);
}
