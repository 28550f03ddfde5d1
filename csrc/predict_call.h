/* predict_call: PredictRequest out, PredictResponse in: the calling side of predict.h.
 *
 * Called by the client's bindings, on any thread. Knows the messages; knows no numpy and no connection.
 * Tensors go as tensor_content, so a request is a few heads between pieces of the caller's own memory;
 * strings are copied. */
#ifndef FS_PREDICT_CALL_H
#define FS_PREDICT_CALL_H

#include "predict.h"

/* One input: `tensor` as its rows [first_row, first_row + rows) (rows < 0: all); dtype, dims and data only
 * are read. */
typedef struct fs_call_input {
    fs_slice alias;
    const fs_tensor *tensor;
    int64_t first_row;
    int64_t rows;
} fs_call_input;

/* Writes a request as pieces: *pieces[*n_pieces] in the arena, heads in the arena, payloads where they lie.
 * Together they have *bytes. 0; -FS_RESOURCE_EXHAUSTED: out of memory, or 2 GiB and more;
 * -FS_INVALID_ARGUMENT: a dtype that cannot travel. */
int fs_predict_call_write(fs_arena *arena, const fs_model_ref *model, const fs_call_input *inputs,
                          uint32_t n_inputs, const fs_slice *filter, uint32_t n_filter, fs_slice **pieces,
                          uint32_t *n_pieces, size_t *bytes);

typedef struct fs_predict_reply {
    fs_model_ref model;
    fs_named_view *outputs; /* distinct; of equal ones the last stands */
    uint32_t n_outputs;
} fs_predict_reply;

/* 0; -FS_INTERNAL where the bytes are not a PredictResponse; -FS_RESOURCE_EXHAUSTED. Slices point into msg.
 * */
int fs_predict_reply_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_predict_reply *out);

/* Where a view's elements lie as they are in memory: NULL when they must be decoded (varints, strings, fewer
 * values than elements, scattered). May be unaligned. */
const uint8_t *fs_tensor_view_in_place(const fs_tensor_view *view);

#endif
