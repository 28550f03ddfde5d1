/* tensor: dtypes, dense tensors and the TensorProto they travel in.
 *
 * Called by the request codec (I/O threads), by batch assembly (executors) and by runtimes. Knows
 * TensorFlow's DataType numbers and TensorProto's wire format, not TensorFlow.
 *
 * An fs_tensor is memory that a runtime takes or gives. An fs_tensor_view is a TensorProto that has
 * been looked at but not copied: dtype and shape are known, the payload still lies in the request. It can also
 * be a list of tf.Examples, which are strings that no TensorProto holds. */
#ifndef FS_TENSOR_H
#define FS_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dense.h"
#include "slab.h"
#include "status.h"

/* TensorFlow's name ("float", "int32", "string", "float_ref"); "unknown" for a number it does not define. */
const char *fs_dtype_name(int dtype);

/* Bytes of one element in memory; sizeof(fs_slice) for DT_STRING; 0 for what cannot be served. */
size_t fs_dtype_size(int dtype);

typedef struct fs_tensor_view {
    int32_t dtype;
    int32_t ndim;
    const int64_t *dims; /* in the call's arena */
    int64_t elements;
    fs_slice content;    /* tensor_content; has_content says whether it rules */
    bool has_content;
    bool scattered;      /* the typed values are not one packed run: decode walks the fields in `values` */
    bool repeats;        /* the payload has one row, which stands for each of dims[0] (broadcast.h) */
    fs_slice values;     /* the one packed run of typed values (empty: no values at all), or the stretch of
                          * the TensorProto that has them; for content of strings: their bytes */
    fs_slice proto;      /* the whole TensorProto */
    const struct fs_examples *examples; /* these are the elements (examples.h); NULL: a TensorProto has them */
} fs_tensor_view;

/* Looks at a TensorProto of `len` bytes. 0; -FS_INVALID_ARGUMENT where TensorFlow's
 * Tensor::FromProto would refuse it (dtype missing, reference or not servable, negative or overflowing
 * shape, tensor_content of the wrong size or that the dtype has no such values for); -FS_INTERNAL where the
 * bytes are not a TensorProto, values included; -FS_RESOURCE_EXHAUSTED when out of memory. Unknown rank is
 * ignored, as TensorFlow does, so that with no dims, or no shape at all, it means a scalar. A dtype that has
 * no memory form here (resource, variant) parses when it has no payload, so that the caller can name it.
 *
 * Takes time for the bytes that are there and memory for the dims alone, whatever the shape claims: a short
 * list of values may declare up to INT64_MAX bytes of elements, and it is for the caller to set a limit. */
int fs_tensor_view_parse(fs_arena *arena, const uint8_t *proto, size_t len, fs_tensor_view *view);

/* Decodes elements [first, first + count) to `dst` (count * fs_dtype_size bytes), with TensorFlow's
 * rules for short value lists: fewer repeat the last one, none are zeros, more are cut. For DT_STRING
 * `dst` is fs_slice[count], pointing into the request. The caller sees to it that the range lies within
 * view->elements and that the dtype has a size. 0, or -FS_INTERNAL when the values are malformed, which
 * parse has ruled out unless the bytes were changed since. Takes time for what lies before `first`, too,
 * unless the values are of a fixed size and not scattered. */
int fs_tensor_view_decode(const fs_tensor_view *view, int64_t first, int64_t count, void *dst);

/* What the elements of a DT_STRING view hold in all, besides their fs_slices: a short list of values may stand
 * for any number of long strings. Saturates. Takes time for the values that are there. */
uint64_t fs_tensor_view_string_bytes(const fs_tensor_view *view);

/* Whether the bytes are a TensorProto at all, with `depth` levels of messages allowed below it; what
 * fs_tensor_view_parse answers with -FS_INTERNAL, for tensors that nobody will look at otherwise. */
bool fs_tensor_proto_valid(fs_slice proto, int depth);

/* The levels left below a TensorProto that is a map's value in a request, as all of these are. */
#define FS_TENSOR_DEPTH 98

/* ---- encoding: elements [first, first + count) of `t` as a TensorProto of shape
 * [count, t->dims[1..]] (the tensor's own shape when it has none or all is asked for). Typed fields,
 * or tensor_content when `as_content` (never for strings). */
size_t fs_tensor_proto_size(const fs_tensor *t, int64_t first_row, int64_t rows, bool as_content);
uint8_t *fs_tensor_proto_write(const fs_tensor *t, int64_t first_row, int64_t rows, bool as_content,
                               uint8_t *dst); /* returns the end */

/* As fs_tensor_proto_write with as_content, but for the payload, which is not copied: *payload says what
 * comes after what is written. Not for strings. */
uint8_t *fs_tensor_proto_head(const fs_tensor *t, int64_t first_row, int64_t rows, uint8_t *dst,
                              fs_slice *payload);

#endif
