/* example: see example.h.
 *
 * Example { Features features = 1 }, Features { map<string, Feature> feature = 1 }, a map's entry
 * { key = 1, value = 2 }, Feature { oneof: BytesList = 1, FloatList = 2, Int64List = 3 }, and each list
 * { repeated value = 1 }. All these numbers are below 16, so that every tag is one byte. */
#include "example.h"

#include "wire.h"

enum { ONE_TAG = 1 };

enum list { BYTES_LIST = 1, FLOAT_LIST = 2, INT64_LIST = 3 };

static enum list list_of(const fs_column *column)
{
    return fs_column_is_text(column) ? BYTES_LIST : fs_column_is_real(column) ? FLOAT_LIST : INT64_LIST;
}

/* The values of one example, as a run of items. */
typedef struct run {
    const uint8_t *at;
    int64_t n;
    int64_t stride;
} run;

static run run_of(const fs_feature *feature, int64_t row)
{
    const fs_column *column = &feature->column;
    if (feature->offsets == NULL)
        return (run){fs_column_at(column, row, 0), column->width, column->item_stride};
    int64_t first = feature->offsets[row];
    return (run){fs_column_at(column, first, 0), feature->offsets[row + 1] - first, column->row_stride};
}

static size_t field_size(size_t len)
{
    return ONE_TAG + fs_wire_varint_size(len) + len;
}

static size_t text_size(const fs_column *column, const uint8_t *at)
{
    if (column->kind == FS_COLUMN_UCS4) {
        int64_t bytes = fs_ucs4_bytes(at, column->item_bytes / 4);
        return bytes < 0 ? 0 : (size_t)bytes; /* it was valid when the column was made */
    }
    return fs_column_text(column, at, NULL).len;
}

/* The bytes of the list of values; for numbers, *packed gets those of the packed run within. */
static size_t list_size(const fs_column *column, run values, size_t *packed)
{
    size_t bytes = 0;
    switch (list_of(column)) {
    case BYTES_LIST:
        for (int64_t i = 0; i < values.n; i++)
            bytes += field_size(text_size(column, values.at + i * values.stride));
        return bytes;
    case FLOAT_LIST:
        bytes = (size_t)values.n * sizeof(float);
        break;
    case INT64_LIST:
        for (int64_t i = 0; i < values.n; i++) {
            int64_t value = fs_column_int(column->kind, values.at + i * values.stride);
            bytes += fs_wire_varint_size((uint64_t)value);
        }
        break;
    }
    *packed = bytes;
    return bytes > 0 ? field_size(bytes) : 0;
}

static bool has(const fs_feature *feature, int64_t row)
{
    return feature->present == NULL || feature->present[row] != 0;
}

static size_t entry_size(const fs_feature *feature, int64_t row)
{
    size_t packed;
    size_t list = list_size(&feature->column, run_of(feature, row), &packed);
    return field_size(feature->name.len) + field_size(field_size(list));
}

int fs_examples_measure(const fs_feature *features, uint32_t n_features, int64_t first, int64_t end,
                        uint32_t *sizes, size_t *bytes)
{
    size_t total = 0;
    for (int64_t row = first; row < end; row++) {
        size_t size = 0;
        for (uint32_t i = 0; i < n_features; i++)
            if (has(&features[i], row))
                size += field_size(entry_size(&features[i], row));
        if (size > FS_WIRE_MAX_BYTES)
            return -FS_RESOURCE_EXHAUSTED;
        sizes[row - first] = (uint32_t)size;
        total += field_size(field_size(size));
        if (total > FS_WIRE_MAX_BYTES)
            return -FS_RESOURCE_EXHAUSTED;
    }
    *bytes = total;
    return 0;
}

size_t fs_example_size(uint32_t size)
{
    return field_size(size);
}

static void write_floats(const fs_column *column, run values, uint8_t *dst)
{
    if (column->kind == FS_COLUMN_F32 && values.stride == (int64_t)sizeof(float)) {
        memcpy(dst, values.at, (size_t)values.n * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < values.n; i++) {
        float value = (float)fs_column_real(column->kind, values.at + i * values.stride);
        memcpy(dst + (size_t)i * sizeof value, &value, sizeof value);
    }
}

static uint8_t *write_ints(const fs_column *column, run values, uint8_t *dst, const uint8_t *end)
{
    for (int64_t i = 0; i < values.n; i++) {
        uint64_t value = (uint64_t)fs_column_int(column->kind, values.at + i * values.stride);
        if (end - dst < FS_WIRE_MAX_VARINT && (size_t)(end - dst) < fs_wire_varint_size(value))
            return NULL;
        dst = fs_wire_put_varint(dst, value);
    }
    return dst;
}

static uint8_t *write_texts(const fs_column *column, run values, uint8_t *dst, const uint8_t *end)
{
    for (int64_t i = 0; i < values.n; i++) {
        const uint8_t *at = values.at + i * values.stride;
        fs_slice text = {NULL, 0};
        size_t size;
        if (column->kind == FS_COLUMN_UCS4) {
            size = text_size(column, at);
        } else {
            text = fs_column_text(column, at, NULL);
            size = text.len;
        }
        if (size > (size_t)(end - dst) || field_size(size) > (size_t)(end - dst))
            return NULL;
        if (column->kind != FS_COLUMN_UCS4) {
            dst = fs_wire_put_bytes(dst, 1, text);
            continue;
        }
        dst = fs_wire_put_head(dst, 1, size);
        const uint8_t *stop = dst + size;
        dst = fs_ucs4_write(at, column->item_bytes / 4, dst, stop);
        if (dst != stop)
            return NULL;
    }
    return dst;
}

/* The values of a list whose size has been taken just now; `end` is where they must end. */
static bool write_list(const fs_column *column, run values, size_t packed, uint8_t *dst, const uint8_t *end)
{
    if (list_of(column) == BYTES_LIST)
        return write_texts(column, values, dst, end) == end;
    if (packed == 0)
        return true;
    dst = fs_wire_put_head(dst, 1, packed);
    if (list_of(column) == INT64_LIST)
        return write_ints(column, values, dst, end) == end;
    write_floats(column, values, dst);
    return true;
}

/* The entry's end; NULL where it does not fit before `end`, or has changed meanwhile. */
static uint8_t *write_entry(const fs_feature *feature, int64_t row, uint8_t *dst, const uint8_t *end)
{
    const fs_column *column = &feature->column;
    run values = run_of(feature, row);
    size_t room = (size_t)(end - dst);
    size_t packed = 0;
    size_t list = list_size(column, values, &packed);
    size_t value = field_size(list);
    size_t entry = field_size(feature->name.len) + field_size(value);
    if (list > room || entry > room || field_size(entry) > room)
        return NULL;

    dst = fs_wire_put_head(dst, 1, entry);
    dst = fs_wire_put_bytes(dst, 1, feature->name);
    dst = fs_wire_put_head(dst, 2, value);
    dst = fs_wire_put_head(dst, list_of(column), list);
    return write_list(column, values, packed, dst, dst + list) ? dst + list : NULL;
}

uint8_t *fs_example_write(const fs_feature *features, uint32_t n_features, int64_t row, uint32_t size,
                          uint8_t *dst)
{
    dst = fs_wire_put_head(dst, 1, size);
    const uint8_t *end = dst + size;
    for (uint32_t i = 0; i < n_features; i++) {
        if (!has(&features[i], row))
            continue;
        dst = write_entry(&features[i], row, dst, end);
        if (dst == NULL)
            return NULL;
    }
    return dst == end ? dst : NULL;
}

uint8_t *fs_examples_write(const fs_feature *features, uint32_t n_features, int64_t first, int64_t end,
                           const uint32_t *sizes, uint8_t *dst)
{
    for (int64_t row = first; row < end; row++) {
        uint32_t size = sizes[row - first];
        dst = fs_wire_put_head(dst, 1, fs_example_size(size));
        dst = fs_example_write(features, n_features, row, size, dst);
        if (dst == NULL)
            return NULL;
    }
    return dst;
}
