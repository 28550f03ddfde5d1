/* column: a feature of many rows, as numpy has it in memory: numbers or strings, with strides.
 *
 * Called by the encoders of examples and by the packing of features, on any thread; nothing here is written
 * after it is made. Knows no Python: whoever fills a column keeps the memory behind it. */
#ifndef FS_COLUMN_H
#define FS_COLUMN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "status.h"

enum fs_column_kind {
    FS_COLUMN_I8, FS_COLUMN_I16, FS_COLUMN_I32, FS_COLUMN_I64,
    FS_COLUMN_U8, FS_COLUMN_U16, FS_COLUMN_U32, FS_COLUMN_U64,
    FS_COLUMN_BOOL, /* one byte, true unless it is 0 */
    FS_COLUMN_F32, FS_COLUMN_F64,
    FS_COLUMN_SLICE, /* an array of fs_slice */
    FS_COLUMN_FIXED, /* numpy's S: `item_bytes` bytes, of which the NULs at the end are none */
    FS_COLUMN_UCS4,  /* numpy's U: `item_bytes` / 4 code points, the same with NULs */
};

typedef struct fs_column {
    const uint8_t *data;
    int64_t rows;
    int64_t width;       /* items of a row */
    int64_t row_stride;  /* bytes, may be negative or nothing */
    int64_t item_stride; /* bytes, within a row */
    int64_t item_bytes;  /* of FIXED and UCS4 */
    enum fs_column_kind kind;
} fs_column;

static inline const uint8_t *fs_column_at(const fs_column *column, int64_t row, int64_t item)
{
    return column->data + row * column->row_stride + item * column->item_stride;
}

static inline bool fs_column_is_text(const fs_column *column)
{
    return column->kind >= FS_COLUMN_SLICE;
}

static inline bool fs_column_is_real(const fs_column *column)
{
    return column->kind == FS_COLUMN_F32 || column->kind == FS_COLUMN_F64;
}

/* The item at `at` of an integer or bool column; those of U64 above INT64_MAX wrap. */
static inline int64_t fs_column_int(enum fs_column_kind kind, const uint8_t *at)
{
    int16_t i16;
    int32_t i32;
    int64_t i64;
    uint16_t u16;
    uint32_t u32;
    switch (kind) { /* memcpy, because numpy's items may lie anywhere */
    case FS_COLUMN_I8:
        return (int8_t)*at;
    case FS_COLUMN_U8:
        return *at;
    case FS_COLUMN_BOOL:
        return *at != 0;
    case FS_COLUMN_I16:
        memcpy(&i16, at, sizeof i16);
        return i16;
    case FS_COLUMN_U16:
        memcpy(&u16, at, sizeof u16);
        return u16;
    case FS_COLUMN_I32:
        memcpy(&i32, at, sizeof i32);
        return i32;
    case FS_COLUMN_U32:
        memcpy(&u32, at, sizeof u32);
        return u32;
    default:
        memcpy(&i64, at, sizeof i64);
        return i64;
    }
}

/* The item at `at` of any numeric column. */
static inline double fs_column_real(enum fs_column_kind kind, const uint8_t *at)
{
    float f32;
    double f64;
    uint64_t u64;
    switch (kind) {
    case FS_COLUMN_F32:
        memcpy(&f32, at, sizeof f32);
        return (double)f32;
    case FS_COLUMN_F64:
        memcpy(&f64, at, sizeof f64);
        return f64;
    case FS_COLUMN_U64:
        memcpy(&u64, at, sizeof u64);
        return (double)u64;
    default:
        return (double)fs_column_int(kind, at);
    }
}

/* Bytes of the UTF-8 that the `n` code points at `at` make, without the NULs at their end; -1 where one is a
 * surrogate or beyond U+10FFFF. */
int64_t fs_ucs4_bytes(const uint8_t *at, int64_t n);

/* Writes that UTF-8, up to `end`, where it stops if the text has grown since it was measured; returns its
 * end. 4 * n bytes are always enough. */
uint8_t *fs_ucs4_write(const uint8_t *at, int64_t n, uint8_t *dst, const uint8_t *end);

/* Whether every item of a UCS4 column has UTF-8. *row is the first that has not. True for other kinds. */
bool fs_column_valid(const fs_column *column, int64_t *row);

/* Room that fs_column_text needs: 0 except for UCS4. */
static inline size_t fs_column_scratch(const fs_column *column)
{
    return column->kind == FS_COLUMN_UCS4 ? (size_t)column->item_bytes : 0;
}

/* The bytes of an item of a text column, which must be valid: where they lie, or in `scratch`. */
static inline fs_slice fs_column_text(const fs_column *column, const uint8_t *at, uint8_t *scratch)
{
    fs_slice text;
    if (column->kind == FS_COLUMN_SLICE) {
        memcpy(&text, at, sizeof text);
        return text;
    }
    if (column->kind == FS_COLUMN_FIXED) {
        size_t len = (size_t)column->item_bytes;
        while (len > 0 && at[len - 1] == 0)
            len--;
        return (fs_slice){at, len};
    }
    uint8_t *end = fs_ucs4_write(at, column->item_bytes / 4, scratch, scratch + column->item_bytes);
    return (fs_slice){scratch, (size_t)(end - scratch)};
}

#endif
