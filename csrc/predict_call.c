/* predict_call: see predict_call.h. */
#include "predict_call.h"

#include <string.h>

#include "predict_proto.h"
#include "tensor_proto.h"
#include "wire.h"

/* ---- the request ---------------------------------------------------------------------------------- */

/* A payload up to this size is copied behind its head: a piece more costs about as much. */
enum { COPIED_BYTES = 512 };

static size_t version_size(const fs_model_ref *model)
{
    if (model->version == 0)
        return 0;
    return fs_wire_tag_size(F_INT64_VALUE) + fs_wire_varint_size((uint64_t)model->version);
}

static size_t model_size(const fs_model_ref *model)
{
    size_t size = 0;
    if (model->name.len > 0)
        size += fs_wire_bytes_size(F_NAME, model->name.len);
    if (model->choice == FS_VERSION_NUMBER)
        size += fs_wire_bytes_size(F_VERSION, version_size(model));
    if (model->signature.len > 0)
        size += fs_wire_bytes_size(F_SIGNATURE, model->signature.len);
    if (model->choice == FS_VERSION_LABEL)
        size += fs_wire_bytes_size(F_LABEL, model->label.len);
    return size;
}

static uint8_t *write_model(const fs_model_ref *model, uint8_t *dst)
{
    dst = fs_wire_put_head(dst, F_MODEL_SPEC, model_size(model));
    if (model->name.len > 0)
        dst = fs_wire_put_bytes(dst, F_NAME, model->name);
    if (model->choice == FS_VERSION_NUMBER) {
        dst = fs_wire_put_head(dst, F_VERSION, version_size(model));
        if (model->version != 0) {
            dst = fs_wire_put_tag(dst, F_INT64_VALUE, FS_WIRE_VARINT);
            dst = fs_wire_put_varint(dst, (uint64_t)model->version);
        }
    }
    if (model->signature.len > 0)
        dst = fs_wire_put_bytes(dst, F_SIGNATURE, model->signature);
    if (model->choice == FS_VERSION_LABEL)
        dst = fs_wire_put_bytes(dst, F_LABEL, model->label);
    return dst;
}

static size_t tensor_size(const fs_call_input *input)
{
    return fs_tensor_proto_size(input->tensor, input->first_row, input->rows, true);
}

/* A map's entry has both its fields, empty or not. */
static size_t entry_size(const fs_call_input *input, size_t tensor)
{
    return fs_wire_bytes_size(F_KEY, input->alias.len) + fs_wire_bytes_size(F_VALUE, tensor);
}

/* The payload's bytes, 0 for strings and whatever else is copied. */
static size_t lent_bytes(const fs_call_input *input)
{
    const fs_tensor *t = input->tensor;
    if (t->dtype == FS_DT_STRING)
        return 0;
    size_t elements = (size_t)t->elements;
    if (input->rows >= 0 && t->ndim > 0)
        elements = t->dims[0] > 0 ? elements / (size_t)t->dims[0] * (size_t)input->rows : 0;
    size_t bytes = elements * fs_dtype_size(t->dtype);
    return bytes > COPIED_BYTES ? bytes : 0;
}

int fs_predict_call_write(fs_arena *arena, const fs_model_ref *model, const fs_call_input *inputs,
                          uint32_t n_inputs, const fs_slice *filter, uint32_t n_filter, fs_slice **pieces,
                          uint32_t *n_pieces, size_t *bytes)
{
    size_t total = fs_wire_bytes_size(F_MODEL_SPEC, model_size(model)), lent = 0;
    uint32_t n_lent = 0;
    for (uint32_t i = 0; i < n_inputs; i++) {
        if (fs_dtype_size(inputs[i].tensor->dtype) == 0)
            return -FS_INVALID_ARGUMENT;
        total += fs_wire_bytes_size(F_INPUTS, entry_size(&inputs[i], tensor_size(&inputs[i])));
        size_t payload = lent_bytes(&inputs[i]);
        lent += payload;
        n_lent += payload > 0;
        if (total > FS_WIRE_MAX_BYTES)
            return -FS_RESOURCE_EXHAUSTED;
    }
    for (uint32_t i = 0; i < n_filter; i++) {
        total += fs_wire_bytes_size(F_OUTPUT_FILTER, filter[i].len);
        if (total > FS_WIRE_MAX_BYTES)
            return -FS_RESOURCE_EXHAUSTED;
    }

    /* All heads lie one behind the other, and a piece ends where a payload that is lent comes in between. */
    uint8_t *head = fs_arena_alloc(arena, total - lent);
    fs_slice *list = fs_arena_alloc(arena, (2 * (size_t)n_lent + 1) * sizeof *list);
    if (head == NULL || list == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    uint32_t n = 0;
    uint8_t *dst = write_model(model, head);
    for (uint32_t i = 0; i < n_inputs; i++) {
        const fs_call_input *input = &inputs[i];
        size_t tensor = tensor_size(input);
        dst = fs_wire_put_head(dst, F_INPUTS, entry_size(input, tensor));
        dst = fs_wire_put_bytes(dst, F_KEY, input->alias);
        dst = fs_wire_put_head(dst, F_VALUE, tensor);
        if (lent_bytes(input) > 0) {
            fs_slice payload;
            dst = fs_tensor_proto_head(input->tensor, input->first_row, input->rows, dst, &payload);
            list[n++] = (fs_slice){head, (size_t)(dst - head)};
            list[n++] = payload;
            head = dst;
        } else {
            dst = fs_tensor_proto_write(input->tensor, input->first_row, input->rows, true, dst);
        }
    }
    for (uint32_t i = 0; i < n_filter; i++)
        dst = fs_wire_put_bytes(dst, F_OUTPUT_FILTER, filter[i]);
    if (dst > head)
        list[n++] = (fs_slice){head, (size_t)(dst - head)};
    *pieces = list;
    *n_pieces = n;
    *bytes = total;
    return 0;
}

/* ---- the reply ------------------------------------------------------------------------------------ */

int fs_predict_reply_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_predict_reply *out)
{
    fs_tensor_map outputs;
    fs_tensor_map_begin(&outputs, arena);
    const fs_slice empty = {msg, 0};
    *out = (fs_predict_reply){.model = {.name = empty, .label = empty, .signature = empty}};

    fs_wire w = fs_wire_over(msg, len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        int rc = 0;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        switch (tag) {
        case FS_WIRE_TAG(F_OUTPUTS, FS_WIRE_BYTES):
            rc = fs_wire_read_bytes(&w, &bytes) ? fs_tensor_map_add(&outputs, bytes) : -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_REPLY_MODEL, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_model_ref_parse(bytes, &out->model))
                return -FS_INTERNAL;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return -FS_INTERNAL;
        }
        if (rc != 0)
            return rc;
    }
    return fs_tensor_map_end(&outputs, &out->outputs, &out->n_outputs);
}

const uint8_t *fs_tensor_view_in_place(const fs_tensor_view *view)
{
    const fs_dtype_info *info = fs_dtype_info_of(view->dtype);
    if (view->elements == 0 || info->store == STORE_STRING || info->store == STORE_NONE)
        return NULL;
    if (view->has_content)
        return view->content.data;
    if (info->store != STORE_FIXED32 && info->store != STORE_FIXED64 && info->store != STORE_BYTES)
        return NULL;
    if (view->scattered || view->values.len < (uint64_t)view->elements * info->size)
        return NULL;
    return view->values.data;
}
