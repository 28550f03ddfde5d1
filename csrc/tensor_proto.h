/* tensor_proto: what the parts of the tensor codec share: TensorProto's fields, and how each dtype's values
 * lie in them.
 *
 * Included by tensor.c (looking), tensor_decode.c, tensor_encode.c and predict_call.c (values that are used
 * where they lie), and by nobody else. */
#ifndef FS_TENSOR_PROTO_H
#define FS_TENSOR_PROTO_H

#include "tensor.h"
#include "wire.h"

/* TensorProto's fields. */
enum {
    F_DTYPE = 1, F_SHAPE = 2, F_CONTENT = 4, F_FLOAT = 5, F_DOUBLE = 6, F_INT = 7, F_STRING = 8,
    F_SCOMPLEX = 9, F_INT64 = 10, F_BOOL = 11, F_DCOMPLEX = 12, F_HALF = 13, F_RESOURCE = 14,
    F_VARIANT = 15, F_UINT32 = 16, F_UINT64 = 17, F_FLOAT8 = 18, F_END = 19,
    F_DIM = 2, F_DIM_SIZE = 1, F_DIM_NAME = 2, /* TensorShapeProto and its Dim */
};

/* How a dtype's values lie in its field. Varints are told apart by what they become in memory. */
enum store {
    STORE_NONE, /* not served */
    STORE_FIXED32, STORE_FIXED64, STORE_STRING, STORE_BYTES,
    STORE_I8, STORE_U8, STORE_I16, STORE_U16, STORE_I32, STORE_U32, STORE_I64, STORE_U64, STORE_BOOL,
};

typedef struct fs_dtype_info {
    const char *name;
    const char *ref_name;
    uint8_t size;  /* of an element in memory */
    uint8_t field; /* of TensorProto, for typed values */
    uint8_t store; /* enum store */
    uint8_t units; /* numbers on the wire to an element */
    uint8_t bits;  /* significant ones, where these are fewer than a byte has; else 0 */
} fs_dtype_info;

enum { FS_N_DTYPES = FS_DT_FLOAT4_E2M1FN + 1 };

/* By number; FS_DT_INVALID's entry stands for all that cannot be served. */
extern const fs_dtype_info fs_dtypes[FS_N_DTYPES];

static inline const fs_dtype_info *fs_dtype_info_of(int dtype)
{
    return &fs_dtypes[dtype > FS_DT_INVALID && dtype < FS_N_DTYPES ? dtype : FS_DT_INVALID];
}

/* How the typed fields lie on the wire; 0 for what is none. */
enum value_kind { VALUE_NONE, VALUE_VARINT, VALUE_FIXED32, VALUE_FIXED64, VALUE_BYTES };

static const uint8_t value_kinds[F_END] = {
    [F_FLOAT] = VALUE_FIXED32, [F_DOUBLE] = VALUE_FIXED64, [F_INT] = VALUE_VARINT, [F_STRING] = VALUE_BYTES,
    [F_SCOMPLEX] = VALUE_FIXED32, [F_INT64] = VALUE_VARINT, [F_BOOL] = VALUE_VARINT,
    [F_DCOMPLEX] = VALUE_FIXED64, [F_HALF] = VALUE_VARINT, [F_UINT32] = VALUE_VARINT,
    [F_UINT64] = VALUE_VARINT, [F_FLOAT8] = VALUE_BYTES,
};

/* Reads the field of typed values whose tag has been read, as a run: a packed one, or a single value, or the
 * bytes. Any other field is skipped, and *number is then 0. */
static inline bool fs_read_values(fs_wire *w, uint32_t tag, uint32_t *number, fs_slice *run)
{
    static const uint8_t single_types[] = {
        [VALUE_VARINT] = FS_WIRE_VARINT, [VALUE_FIXED32] = FS_WIRE_FIXED32, [VALUE_FIXED64] = FS_WIRE_FIXED64,
        [VALUE_BYTES] = FS_WIRE_BYTES,
    };
    uint32_t field = tag >> 3, type = tag & 7;
    uint8_t kind = field < F_END ? value_kinds[field] : VALUE_NONE;

    *number = 0;
    if (kind == VALUE_NONE)
        return fs_wire_skip(w, tag, FS_TENSOR_DEPTH);
    if (type == FS_WIRE_BYTES) {
        if (!fs_wire_read_bytes(w, run))
            return false;
        *number = field;
        switch (kind) {
        case VALUE_VARINT: return fs_wire_varints_valid(*run);
        case VALUE_FIXED32: return run->len % 4 == 0;
        case VALUE_FIXED64: return run->len % 8 == 0;
        default: return true;
        }
    }
    const uint8_t *start = w->at;
    if (!fs_wire_skip(w, tag, FS_TENSOR_DEPTH))
        return false;
    if (type == single_types[kind]) {
        *number = field;
        *run = (fs_slice){start, (size_t)(w->at - start)};
    }
    return true;
}

/* One string's length in tensor_content: at most five bytes, of which 32 bits count. */
static inline bool fs_read_string_len(fs_wire *w, uint32_t *len)
{
    uint32_t result = 0;
    for (unsigned shift = 0; shift <= 28; shift += 7) {
        if (w->at == w->end)
            return false;
        uint32_t byte = *w->at++;
        result |= (byte & 0x7f) << shift;
        if (byte < 0x80) {
            *len = result;
            return true;
        }
    }
    return false;
}

#endif
