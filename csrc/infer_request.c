/* infer_request: see infer_request.h. */
#include "infer_request.h"

#include <string.h>

#include "predict_proto.h"
#include "wire.h"

enum {
    F_TASKS = 1, F_INPUT = FS_INPUT_FIELD, /* MultiInferenceRequest; F_MODEL_SPEC and F_INPUT of the others */
    F_TASK_MODEL = 1, F_METHOD_NAME = 2,   /* InferenceTask */
};

static fs_model_ref no_model(const uint8_t *msg)
{
    const fs_slice empty = {msg, 0};
    return (fs_model_ref){.name = empty, .label = empty, .signature = empty};
}

int fs_infer_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_infer_request *out)
{
    fs_input input = {0};
    *out = (fs_infer_request){.model = no_model(msg)};
    fs_wire w = fs_wire_over(msg, len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        switch (tag) {
        case FS_WIRE_TAG(F_MODEL_SPEC, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_model_ref_parse(bytes, &out->model))
                return -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_INPUT, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_input_add(&input, bytes))
                return -FS_INTERNAL;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return -FS_INTERNAL;
        }
    }
    return fs_input_end(&input, arena, (fs_slice){msg, len}, &out->examples);
}

static bool parse_task(fs_slice task, fs_infer_task *out)
{
    fs_wire w = fs_wire_over(task.data, task.len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        switch (tag) {
        case FS_WIRE_TAG(F_TASK_MODEL, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_model_ref_parse(bytes, &out->model))
                return false;
            break;
        case FS_WIRE_TAG(F_METHOD_NAME, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &out->method) || !fs_wire_utf8_valid(out->method))
                return false;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 1))
                return false;
        }
    }
    return true;
}

/* The tasks grow by doubling; `room` is what there is. */
static int add_task(fs_arena *arena, fs_infer_request *out, uint32_t *room, const fs_infer_task *task)
{
    if (out->n_tasks == FS_MAX_TASKS) {
        out->more_tasks = true;
        return 0;
    }
    if (out->n_tasks == *room) {
        uint32_t more = *room == 0 ? 4 : 2 * *room;
        fs_infer_task *grown = fs_arena_alloc(arena, more * sizeof *grown);
        if (grown == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        if (*room > 0)
            memcpy(grown, out->tasks, *room * sizeof *grown);
        out->tasks = grown;
        *room = more;
    }
    out->tasks[out->n_tasks++] = *task;
    return 0;
}

int fs_multi_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_infer_request *out)
{
    fs_input input = {0};
    uint32_t room = 0;
    *out = (fs_infer_request){.model = no_model(msg)};
    fs_wire w = fs_wire_over(msg, len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        switch (tag) {
        case FS_WIRE_TAG(F_TASKS, FS_WIRE_BYTES): {
            fs_infer_task task = {.model = no_model(msg), .method = {msg, 0}};
            if (!fs_wire_read_bytes(&w, &bytes) || !parse_task(bytes, &task))
                return -FS_INTERNAL;
            int rc = add_task(arena, out, &room, &task);
            if (rc != 0)
                return rc;
            break;
        }
        case FS_WIRE_TAG(F_INPUT, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_input_add(&input, bytes))
                return -FS_INTERNAL;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return -FS_INTERNAL;
        }
    }
    if (out->n_tasks > 0)
        out->model = out->tasks[0].model;
    out->model.present = true;
    return fs_input_end(&input, arena, (fs_slice){msg, len}, &out->examples);
}
