/* reply: see reply.h. */
#include "reply.h"

#include <string.h>

#include "compress.h"
#include "grpc.h"
#include "infer_encode.h"
#include "multi.h"
#include "text.h"

static void fail(fs_call *call, fs_slab *slab, const fs_error *err)
{
    fs_call_fail(call, slab, err->code, err->msg, err->len);
}

static void fail_size(fs_call *call, fs_slab *slab, size_t size)
{
    fs_error err;
    fs_fail(&err, FS_RESOURCE_EXHAUSTED,
            size == 0 ? "the reply is larger than 2 GiB" : "no memory for a reply of %zu bytes", size);
    fail(call, slab, &err);
}

uint8_t *fs_reply_frame(const fs_rpc *rpc, uint8_t *frame, size_t size, bool compress, fs_slab *slab, size_t *len)
{
    fs_grpc_prefix_write(frame, false, (uint32_t)size);
    *len = size + FS_GRPC_PREFIX_BYTES;
    if (!compress || rpc->encoding == FS_IDENTITY || rpc->reply_encoding == FS_IDENTITY ||
        size < FS_DEFLATE_FROM_BYTES)
        return frame;
    uint8_t *smaller;
    size_t smaller_len;
    if (fs_deflate(slab, rpc->reply_encoding, frame + FS_GRPC_PREFIX_BYTES, size, FS_GRPC_PREFIX_BYTES, &smaller,
                   &smaller_len) != 0)
        return frame;
    fs_grpc_prefix_write(smaller, true, (uint32_t)(smaller_len - FS_GRPC_PREFIX_BYTES));
    fs_slab_free(frame);
    *len = smaller_len;
    return smaller;
}

static void keep(fs_call *call, uint8_t *frame, size_t size, const fs_reply_config *config, fs_slab *slab)
{
    call->reply = fs_reply_frame(call->rpc, frame, size, config->compress_replies, slab, &call->reply_len);
    call->code = FS_OK;
}

static fs_reply_model model_of(const fs_call *call)
{
    const fs_servable *servable = call->queue->servable;
    return (fs_reply_model){
        .name = fs_slice_of(servable->model),
        .version = servable->version,
        .signature = fs_slice_of(call->queue->signature->name),
    };
}

/* Classify, Regress, and the tasks of a MultiInference. */
static void encode_inference(fs_call *call, const fs_tensor *outputs, int64_t first, int64_t rows,
                             const fs_reply_config *config, fs_slab *slab)
{
    fs_reply_model model = model_of(call);
    uint32_t classes = call->outputs[FS_OUTPUT_CLASSES], scores = call->outputs[FS_OUTPUT_SCORES];
    fs_infer_result result = {
        .regression = call->kind == FS_CALL_REGRESS,
        .classes = classes == FS_NO_OUTPUT ? NULL : &outputs[classes],
        .scores = scores == FS_NO_OUTPUT ? NULL : &outputs[scores],
        .first_row = first,
        .rows = call->rows,
        .whole = rows < 0,
    };
    bool task = call->whole != NULL;
    fs_error err;
    if (fs_infer_result_check(&result, &err) != 0) {
        fail(call, slab, &err);
        return;
    }
    size_t size = fs_infer_reply_size(&model, &result, task);
    size_t before = task ? 0 : FS_GRPC_PREFIX_BYTES;
    uint8_t *block = size == 0 ? NULL : fs_slab_alloc(slab, before + size);
    if (block == NULL) {
        fail_size(call, slab, size);
        return;
    }
    fs_infer_reply_write(&model, &result, task, block + before);
    if (task) {
        call->reply = block;
        call->reply_len = size;
    } else {
        keep(call, block, size, config, slab);
    }
}

void fs_reply_encode(fs_call *call, const fs_tensor *outputs, int64_t first, int64_t rows,
                     const fs_reply_config *config, fs_reply_output *outs, fs_slab *slab)
{
    if (call->kind != FS_CALL_PREDICT) {
        encode_inference(call, outputs, first, rows, config, slab);
        return;
    }
    const fs_signature *sig = call->queue->signature;
    fs_reply_model model = model_of(call);
    for (uint32_t k = 0; k < call->n_outputs; k++) {
        outs[k] = (fs_reply_output){
            .alias = fs_slice_of(sig->outputs[call->outputs[k]].alias),
            .tensor = &outputs[call->outputs[k]],
            .first_row = first,
            .rows = rows,
        };
    }
    bool content = config->tensor_content;
    size_t size = fs_predict_reply_size(&model, outs, call->n_outputs, content);
    uint8_t *frame = size == 0 ? NULL : fs_slab_alloc(slab, size + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL) {
        fail_size(call, slab, size);
        return;
    }
    fs_predict_reply_write(&model, outs, call->n_outputs, content, frame + FS_GRPC_PREFIX_BYTES);
    keep(call, frame, size, config, slab);
}

void fs_reply_join(fs_call *whole, const fs_reply_config *config, fs_slab *slab)
{
    const fs_multi *multi = whole->multi;
    size_t size = 0;
    for (uint32_t i = 0; i < multi->n; i++)
        size += multi->tasks[i]->reply_len;
    if (size > INT32_MAX)
        size = 0;
    uint8_t *frame = size == 0 ? NULL : fs_slab_alloc(slab, size + FS_GRPC_PREFIX_BYTES);
    if (frame == NULL) {
        fail_size(whole, slab, size);
        return;
    }
    uint8_t *at = frame + FS_GRPC_PREFIX_BYTES;
    for (uint32_t i = 0; i < multi->n; i++) {
        memcpy(at, multi->tasks[i]->reply, multi->tasks[i]->reply_len);
        at += multi->tasks[i]->reply_len;
    }
    keep(whole, frame, size, config, slab);
}
