/* dense: a tensor in memory as runtimes take and give it, with TensorFlow's DataType numbers.
 *
 * The half of tensor.h that a plug-in knows (plugin.h). No functions, and nothing of how tensors travel. */
#ifndef FS_DENSE_H
#define FS_DENSE_H

#include <stddef.h>
#include <stdint.h>

#include "outcome.h"

#define FS_MAX_DIMS 254 /* TensorFlow's own limit */

/* tensorflow.DataType's numbers. */
enum fs_dtype {
    FS_DT_INVALID = 0, FS_DT_FLOAT = 1, FS_DT_DOUBLE = 2, FS_DT_INT32 = 3, FS_DT_UINT8 = 4,
    FS_DT_INT16 = 5, FS_DT_INT8 = 6, FS_DT_STRING = 7, FS_DT_COMPLEX64 = 8, FS_DT_INT64 = 9,
    FS_DT_BOOL = 10, FS_DT_QINT8 = 11, FS_DT_QUINT8 = 12, FS_DT_QINT32 = 13, FS_DT_BFLOAT16 = 14,
    FS_DT_QINT16 = 15, FS_DT_QUINT16 = 16, FS_DT_UINT16 = 17, FS_DT_COMPLEX128 = 18, FS_DT_HALF = 19,
    FS_DT_RESOURCE = 20, FS_DT_VARIANT = 21, FS_DT_UINT32 = 22, FS_DT_UINT64 = 23,
    FS_DT_FLOAT8_E5M2 = 24, FS_DT_FLOAT8_E4M3FN = 25, FS_DT_FLOAT8_E4M3FNUZ = 26,
    FS_DT_FLOAT8_E4M3B11FNUZ = 27, FS_DT_FLOAT8_E5M2FNUZ = 28, FS_DT_INT4 = 29, FS_DT_UINT4 = 30,
    FS_DT_INT2 = 31, FS_DT_UINT2 = 32, FS_DT_FLOAT4_E2M1FN = 33, /* those below a byte take a whole one */
};

/* Counted memory behind an input; slab.h says what it is. */
typedef struct fs_buf fs_buf;

/* A dense tensor. For DT_STRING `data` is an array of fs_slice, one an element. */
typedef struct fs_tensor {
    int32_t dtype;
    int32_t ndim;
    const int64_t *dims;
    int64_t elements;
    void *data;
    size_t bytes;  /* elements * fs_dtype_size(dtype) */
    fs_buf *buf;   /* inputs: the memory behind data; a runtime that keeps it takes a reference */
    void *handle;  /* outputs: the runtime's own, given back through ops->release */
} fs_tensor;

#endif
