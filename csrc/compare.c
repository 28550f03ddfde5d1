/* compare: see compare.h. */
#include "compare.h"

#include <math.h>
#include <string.h>

#include "predict_call.h"
#include "text.h"

/* One output of both replies. */
typedef struct pair {
    fs_slice alias;
    fs_tensor_view expected, got;
    bool present; /* in both */
} pair;

static double half(uint16_t bits)
{
    int exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    double value = exponent == 0    ? ldexp(fraction, -24)
                   : exponent == 31 ? (fraction == 0 ? (double)INFINITY : (double)NAN)
                                    : ldexp(fraction + 1024, exponent - 25);
    return (bits & 0x8000) != 0 ? -value : value;
}

static double bfloat16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return (double)value;
}

/* The numbers that an element consists of; 0: it is none. */
static int numbers_of(int32_t dtype)
{
    switch (dtype) {
    case FS_DT_COMPLEX64: case FS_DT_COMPLEX128:
        return 2;
    case FS_DT_FLOAT: case FS_DT_DOUBLE: case FS_DT_HALF: case FS_DT_BFLOAT16:
    case FS_DT_INT8: case FS_DT_INT16: case FS_DT_INT32: case FS_DT_INT64:
    case FS_DT_UINT8: case FS_DT_UINT16: case FS_DT_UINT32: case FS_DT_UINT64: case FS_DT_BOOL:
    case FS_DT_QINT8: case FS_DT_QUINT8: case FS_DT_QINT16: case FS_DT_QUINT16: case FS_DT_QINT32:
        return 1;
    default:
        return 0;
    }
}

static double number(int32_t dtype, const void *data, int64_t i)
{
    switch (dtype) {
    case FS_DT_FLOAT: case FS_DT_COMPLEX64: return (double)((const float *)data)[i];
    case FS_DT_DOUBLE: case FS_DT_COMPLEX128: return ((const double *)data)[i];
    case FS_DT_HALF: return half(((const uint16_t *)data)[i]);
    case FS_DT_BFLOAT16: return bfloat16(((const uint16_t *)data)[i]);
    case FS_DT_INT8: case FS_DT_QINT8: return ((const int8_t *)data)[i];
    case FS_DT_INT16: case FS_DT_QINT16: return ((const int16_t *)data)[i];
    case FS_DT_INT32: case FS_DT_QINT32: return ((const int32_t *)data)[i];
    case FS_DT_INT64: return (double)((const int64_t *)data)[i];
    case FS_DT_UINT16: case FS_DT_QUINT16: return ((const uint16_t *)data)[i];
    case FS_DT_UINT32: return ((const uint32_t *)data)[i];
    case FS_DT_UINT64: return (double)((const uint64_t *)data)[i];
    default: return ((const uint8_t *)data)[i];
    }
}

static double difference(double expected, double got)
{
    if (expected == got || (isnan(expected) && isnan(got)))
        return 0;
    double scale = fabs(expected) > FS_COMPARE_TINY ? fabs(expected) : FS_COMPARE_TINY;
    double relative = fabs(expected - got) / scale;
    return relative < FS_COMPARE_FAR ? relative : FS_COMPARE_FAR; /* a NaN is not less than anything */
}

static bool same_bytes(int32_t dtype, const void *a, const void *b, int64_t i)
{
    if (dtype == FS_DT_STRING)
        return fs_slice_compare(((const fs_slice *)a)[i], ((const fs_slice *)b)[i]) == 0;
    size_t size = fs_dtype_size(dtype);
    return memcmp((const uint8_t *)a + (size_t)i * size, (const uint8_t *)b + (size_t)i * size, size) == 0;
}

static bool same_kind(const fs_tensor_view *a, const fs_tensor_view *b)
{
    return a->dtype == b->dtype && a->ndim == b->ndim && fs_dtype_size(a->dtype) > 0 &&
           (a->ndim == 0 || memcmp(a->dims, b->dims, (size_t)a->ndim * sizeof *a->dims) == 0);
}

static int64_t rows_of(const fs_tensor_view *view)
{
    if (view->elements == 0)
        return 0; /* it may claim any number of rows */
    return view->ndim == 0 ? 1 : view->dims[0];
}

/* Marks the rows of one output, decoded twice, that differ. */
static void mark(const fs_tensor_view *view, const void *expected, const void *got, double allowed,
                 uint8_t *marks, double *largest)
{
    int64_t rows = rows_of(view);
    int64_t per_row = rows > 0 ? view->elements / rows : 0;
    int numbers = numbers_of(view->dtype);
    for (int64_t e = 0; e < view->elements; e++) {
        bool differs = numbers == 0 && !same_bytes(view->dtype, expected, got, e);
        for (int k = 0; k < numbers; k++) {
            double d = difference(number(view->dtype, expected, e * numbers + k),
                                  number(view->dtype, got, e * numbers + k));
            differs = differs || d > allowed;
            *largest = d > *largest ? d : *largest;
        }
        if (differs)
            marks[e / per_row] = 1;
    }
}

static int compare_pair(fs_slab *slab, const pair *p, double allowed, uint8_t *marks, double *largest)
{
    const fs_tensor_view *view = &p->expected;
    size_t bytes = (size_t)view->elements * fs_dtype_size(view->dtype);
    uint8_t *expected = fs_slab_alloc(slab, bytes + 1);
    uint8_t *got = fs_slab_alloc(slab, bytes + 1);
    int rc = expected == NULL || got == NULL ? -FS_RESOURCE_EXHAUSTED : 0;
    if (rc == 0)
        rc = fs_tensor_view_decode(view, 0, view->elements, expected);
    if (rc == 0)
        rc = fs_tensor_view_decode(&p->got, 0, view->elements, got);
    if (rc == 0)
        mark(view, expected, got, allowed, marks, largest);
    fs_slab_free(expected);
    fs_slab_free(got);
    return rc;
}

static const fs_named_view *find(const fs_predict_reply *reply, fs_slice alias)
{
    for (uint32_t i = 0; i < reply->n_outputs; i++) {
        if (fs_slice_compare(reply->outputs[i].alias, alias) == 0)
            return &reply->outputs[i];
    }
    return NULL;
}

/* Looks at the outputs of both. */
static int pair_up(fs_arena *arena, const fs_predict_reply *expected, const fs_predict_reply *got, pair *pairs,
                   fs_difference *out)
{
    uint32_t both = 0;
    out->rows = 1;
    for (uint32_t i = 0; i < expected->n_outputs; i++) {
        const fs_named_view *output = &expected->outputs[i], *other = find(got, output->alias);
        pair *p = &pairs[i];
        int rc = fs_tensor_view_parse(arena, output->proto.data, output->proto.len, &p->expected);
        if (rc == 0 && other != NULL)
            rc = fs_tensor_view_parse(arena, other->proto.data, other->proto.len, &p->got);
        if (rc != 0)
            return rc;
        p->present = other != NULL;
        both += other != NULL;
        if (i == 0 || rows_of(&p->expected) > out->rows)
            out->rows = rows_of(&p->expected);
    }
    out->missing_outputs = expected->n_outputs + got->n_outputs - 2 * both;
    return 0;
}

static int compare_pairs(fs_slab *slab, fs_arena *arena, const pair *pairs, uint32_t n, double allowed,
                         fs_difference *out)
{
    bool all = out->missing_outputs > 0;
    for (uint32_t i = 0; i < n && !all; i++)
        all = !same_kind(&pairs[i].expected, &pairs[i].got);
    uint8_t *marks = fs_arena_alloc(arena, (size_t)out->rows + 1);
    if (marks == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    memset(marks, all ? 1 : 0, (size_t)out->rows);
    for (uint32_t i = 0; i < n; i++) {
        if (!pairs[i].present || !same_kind(&pairs[i].expected, &pairs[i].got))
            continue;
        int rc = compare_pair(slab, &pairs[i], allowed, marks, &out->largest);
        if (rc != 0)
            return rc;
    }
    for (int64_t r = 0; r < out->rows; r++)
        out->different_rows += marks[r];
    return 0;
}

int fs_compare_replies(fs_slab *slab, fs_slice expected, fs_slice got, double allowed, fs_difference *out)
{
    fs_predict_reply a, b;
    fs_arena arena;
    fs_arena_init(&arena, slab);
    *out = (fs_difference){.rows = 1};
    int rc = fs_predict_reply_parse(&arena, expected.data, expected.len, &a);
    if (rc == 0)
        rc = fs_predict_reply_parse(&arena, got.data, got.len, &b);
    pair *pairs = rc == 0 ? fs_arena_alloc(&arena, (a.n_outputs + 1) * sizeof *pairs) : NULL;
    if (rc == 0 && pairs == NULL)
        rc = -FS_RESOURCE_EXHAUSTED;
    if (rc == 0)
        rc = pair_up(&arena, &a, &b, pairs, out);
    if (rc == 0)
        rc = compare_pairs(slab, &arena, pairs, a.n_outputs, allowed, out);
    fs_arena_clear(&arena);
    return rc;
}
