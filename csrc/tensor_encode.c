/* tensor_encode: a tensor, or some of its rows, as a TensorProto; see tensor.h.
 *
 * Runs on executors, which write straight from a runtime's output into each reply. The bytes are those that
 * protobuf's own serializer writes. */
#include <string.h>

#include "tensor.h"
#include "tensor_proto.h"
#include "wire.h"

/* The value of a dtype that has fewer bits than its byte. The others mean nothing: decoding keeps them, as
 * TensorFlow does. */
static uint8_t narrow(const fs_dtype_info *info, uint8_t byte)
{
    unsigned unused = 8u - info->bits;
    if (info->store == STORE_I8)
        return (uint8_t)((int8_t)(uint8_t)(byte << unused) >> unused);
    return (uint8_t)((uint8_t)(byte << unused) >> unused);
}

/* For one type in memory: how its values are measured and written as varints. As in protobuf, negative
 * numbers are extended to 64 bits. */
#define DEFINE_VARINTS(name, T)                                                                      \
    static size_t varints_size_##name(const T *src, size_t n)                                        \
    {                                                                                                \
        size_t size = 0;                                                                             \
        for (size_t i = 0; i < n; i++)                                                               \
            size += fs_wire_varint_size((uint64_t)src[i]);                                           \
        return size;                                                                                 \
    }                                                                                                \
    static uint8_t *write_varints_##name(const T *src, size_t n, uint8_t *dst)                       \
    {                                                                                                \
        for (size_t i = 0; i < n; i++)                                                               \
            dst = fs_wire_put_varint(dst, (uint64_t)src[i]);                                         \
        return dst;                                                                                  \
    }

DEFINE_VARINTS(i8, int8_t)
DEFINE_VARINTS(u8, uint8_t)
DEFINE_VARINTS(i16, int16_t)
DEFINE_VARINTS(u16, uint16_t)
DEFINE_VARINTS(i32, int32_t)
DEFINE_VARINTS(u32, uint32_t)
DEFINE_VARINTS(i64, int64_t)
DEFINE_VARINTS(u64, uint64_t)

/* The part of a tensor that goes into a TensorProto. */
typedef struct part {
    const fs_tensor *tensor;
    const fs_dtype_info *info;
    const uint8_t *data;
    size_t elements;
    int64_t rows; /* stands for dims[0]; negative: the tensor's own shape */
} part;

static part part_of(const fs_tensor *t, int64_t first_row, int64_t rows)
{
    part p = {.tensor = t, .info = fs_dtype_info_of(t->dtype), .data = t->data, .rows = -1};
    p.elements = (size_t)t->elements;
    if (rows >= 0 && t->ndim > 0) {
        size_t per_row = t->dims[0] > 0 ? (size_t)(t->elements / t->dims[0]) : 0;
        p.rows = rows;
        p.elements = (size_t)rows * per_row;
        if (p.elements > 0)
            p.data += (size_t)first_row * per_row * p.info->size;
    }
    if (p.info->store == STORE_NONE)
        p.elements = 0;
    return p;
}

static int64_t dim_of(const part *p, int32_t i)
{
    return i == 0 && p->rows >= 0 ? p->rows : p->tensor->dims[i];
}

/* A Dim's content: proto3 leaves a 0 out. */
static size_t dim_size(int64_t dim)
{
    return dim == 0 ? 0 : 1 + fs_wire_varint_size((uint64_t)dim);
}

static size_t shape_size(const part *p)
{
    size_t size = 0;
    for (int32_t i = 0; i < p->tensor->ndim; i++)
        size += 2 + dim_size(dim_of(p, i)); /* tag and length are a byte each */
    return size;
}

static size_t narrow_size(const part *p)
{
    size_t size = 0;
    for (size_t i = 0; i < p->elements; i++)
        size += fs_wire_varint_size((uint64_t)(int64_t)(int8_t)narrow(p->info, p->data[i]));
    return size;
}

static uint8_t *write_narrow(const part *p, uint8_t *dst)
{
    for (size_t i = 0; i < p->elements; i++)
        dst = fs_wire_put_varint(dst, (uint64_t)(int64_t)(int8_t)narrow(p->info, p->data[i]));
    return dst;
}

/* The bytes of the run of typed values; not for strings. */
static size_t run_size(const part *p)
{
    const void *data = p->data;
    if (p->info->bits != 0)
        return narrow_size(p);
    switch (p->info->store) {
    case STORE_I8: return varints_size_i8(data, p->elements);
    case STORE_U8: return varints_size_u8(data, p->elements);
    case STORE_I16: return varints_size_i16(data, p->elements);
    case STORE_U16: return varints_size_u16(data, p->elements);
    case STORE_I32: return varints_size_i32(data, p->elements);
    case STORE_U32: return varints_size_u32(data, p->elements);
    case STORE_I64: return varints_size_i64(data, p->elements);
    case STORE_U64: return varints_size_u64(data, p->elements);
    default: return p->elements * p->info->size; /* bools and numbers of fixed size */
    }
}

static uint8_t *write_run(const part *p, uint8_t *dst)
{
    const void *data = p->data;
    if (p->info->bits != 0)
        return write_narrow(p, dst);
    switch (p->info->store) {
    case STORE_I8: return write_varints_i8(data, p->elements, dst);
    case STORE_U8: return write_varints_u8(data, p->elements, dst);
    case STORE_I16: return write_varints_i16(data, p->elements, dst);
    case STORE_U16: return write_varints_u16(data, p->elements, dst);
    case STORE_I32: return write_varints_i32(data, p->elements, dst);
    case STORE_U32: return write_varints_u32(data, p->elements, dst);
    case STORE_I64: return write_varints_i64(data, p->elements, dst);
    case STORE_U64: return write_varints_u64(data, p->elements, dst);
    case STORE_BOOL:
        for (size_t i = 0; i < p->elements; i++)
            *dst++ = p->data[i] != 0;
        return dst;
    default:
        memcpy(dst, data, p->elements * p->info->size);
        return dst + p->elements * p->info->size;
    }
}

static size_t strings_size(const part *p)
{
    const fs_slice *strings = (const void *)p->data;
    size_t size = 0;
    for (size_t i = 0; i < p->elements; i++)
        size += fs_wire_bytes_size(F_STRING, strings[i].len);
    return size;
}

static uint8_t *write_strings(const part *p, uint8_t *dst)
{
    const fs_slice *strings = (const void *)p->data;
    for (size_t i = 0; i < p->elements; i++)
        dst = fs_wire_put_bytes(dst, F_STRING, strings[i]);
    return dst;
}

size_t fs_tensor_proto_size(const fs_tensor *t, int64_t first_row, int64_t rows, bool as_content)
{
    part p = part_of(t, first_row, rows);
    size_t size = fs_wire_tag_size(F_DTYPE) + fs_wire_varint_size((uint64_t)t->dtype)
                  + fs_wire_bytes_size(F_SHAPE, shape_size(&p));
    if (p.elements == 0)
        return size;
    if (p.info->store == STORE_STRING)
        return size + strings_size(&p);
    if (as_content)
        return size + fs_wire_bytes_size(F_CONTENT, p.elements * p.info->size);
    return size + fs_wire_bytes_size(p.info->field, run_size(&p));
}

static uint8_t *write_dtype_and_shape(const part *p, uint8_t *dst)
{
    dst = fs_wire_put_tag(dst, F_DTYPE, FS_WIRE_VARINT);
    dst = fs_wire_put_varint(dst, (uint64_t)p->tensor->dtype);
    dst = fs_wire_put_head(dst, F_SHAPE, shape_size(p));
    for (int32_t i = 0; i < p->tensor->ndim; i++) {
        int64_t dim = dim_of(p, i);
        dst = fs_wire_put_head(dst, F_DIM, dim_size(dim));
        if (dim != 0) {
            dst = fs_wire_put_tag(dst, F_DIM_SIZE, FS_WIRE_VARINT);
            dst = fs_wire_put_varint(dst, (uint64_t)dim);
        }
    }
    return dst;
}

uint8_t *fs_tensor_proto_head(const fs_tensor *t, int64_t first_row, int64_t rows, uint8_t *dst,
                              fs_slice *payload)
{
    part p = part_of(t, first_row, rows);
    *payload = (fs_slice){p.data, p.elements * p.info->size};
    dst = write_dtype_and_shape(&p, dst);
    return p.elements == 0 ? dst : fs_wire_put_head(dst, F_CONTENT, payload->len);
}

uint8_t *fs_tensor_proto_write(const fs_tensor *t, int64_t first_row, int64_t rows, bool as_content,
                               uint8_t *dst)
{
    part p = part_of(t, first_row, rows);
    dst = write_dtype_and_shape(&p, dst);
    if (p.elements == 0)
        return dst;
    if (p.info->store == STORE_STRING)
        return write_strings(&p, dst);
    if (as_content) {
        fs_slice content = {p.data, p.elements * p.info->size};
        return fs_wire_put_bytes(dst, F_CONTENT, content);
    }
    dst = fs_wire_put_head(dst, p.info->field, run_size(&p));
    return write_run(&p, dst);
}
