/* named_request: see named_request.h. */
#include "named_request.h"

#include <string.h>

#include "predict_proto.h"
#include "wire.h"

enum {
    F_FEED = 2, F_FETCH = 3, F_TARGET = 4, F_OPTIONS = 5, F_ALIASES = 6, /* SessionRunRequest; 1: F_MODEL_SPEC */
    F_TENSOR_NAME = 1, F_TENSOR = 2,                                     /* NamedTensorProto */
    F_TENSORS = 1, F_ANSWERED = 3,                                       /* SessionRunResponse */
    FEW = 8,
};

/* RunOptions are ignored, but what is no message at all is no request. */
static const fs_wire_message options_message = {NULL, 0};

/* A list of slices that grows by doubling. */
typedef struct names {
    fs_slice *slices;
    uint32_t n;
    uint32_t room;
} names;

static int add(fs_arena *arena, names *list, fs_slice slice)
{
    if (list->n == list->room) {
        if (list->room >= FS_NAMED_MAX)
            return -FS_INVALID_ARGUMENT;
        uint32_t room = list->room == 0 ? FEW : 2 * list->room;
        fs_slice *grown = fs_arena_alloc(arena, room * sizeof *grown);
        if (grown == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        if (list->n > 0)
            memcpy(grown, list->slices, list->n * sizeof *grown);
        list->slices = grown;
        list->room = room;
    }
    list->slices[list->n++] = slice;
    return 0;
}

/* A NamedTensorProto has on the wire what a map's entry has. */
static int add_feed(fs_arena *arena, fs_slice bytes, names *feeds, names *protos)
{
    fs_named_view feed;
    int rc = fs_named_view_parse(arena, bytes, &feed);
    if (rc == 0)
        rc = add(arena, feeds, feed.alias);
    return rc == 0 ? add(arena, protos, feed.proto) : rc;
}

int fs_named_request_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_named_request *out)
{
    names feeds = {0}, protos = {0}, fetches = {0}, targets = {0};
    const fs_slice empty = {msg, 0};
    *out = (fs_named_request){.model = {.name = empty, .label = empty, .signature = empty}};

    fs_wire w = fs_wire_over(msg, len);
    while (w.at < w.end) {
        uint32_t tag;
        uint64_t number;
        fs_slice bytes;
        int rc = 0;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        switch (tag) {
        case FS_WIRE_TAG(F_MODEL_SPEC, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_model_ref_parse(bytes, &out->model))
                return -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_FEED, FS_WIRE_BYTES):
            rc = fs_wire_read_bytes(&w, &bytes) ? add_feed(arena, bytes, &feeds, &protos) : -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_FETCH, FS_WIRE_BYTES):
        case FS_WIRE_TAG(F_TARGET, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_wire_utf8_valid(bytes))
                return -FS_INTERNAL;
            rc = add(arena, tag >> 3 == F_FETCH ? &fetches : &targets, bytes);
            break;
        case FS_WIRE_TAG(F_OPTIONS, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes)
                || !fs_wire_message_valid(&options_message, bytes, FS_WIRE_MAX_DEPTH - 1))
                return -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_ALIASES, FS_WIRE_VARINT):
            if (!fs_wire_read_varint(&w, &number))
                return -FS_INTERNAL;
            out->aliases = number != 0;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return -FS_INTERNAL;
        }
        if (rc != 0)
            return rc;
    }
    out->feeds = feeds.slices;
    out->protos = protos.slices;
    out->n_feeds = feeds.n;
    out->fetches = fetches.slices;
    out->n_fetches = fetches.n;
    out->targets = targets.slices;
    out->n_targets = targets.n;
    return 0;
}

/* ---- the reply ------------------------------------------------------------------------------------ */

static size_t version_size(const fs_named_reply *reply)
{
    return reply->version == 0 ? 0
                               : fs_wire_tag_size(F_INT64_VALUE) + fs_wire_varint_size((uint64_t)reply->version);
}

static size_t answered_size(const fs_named_reply *reply)
{
    return fs_wire_bytes_size(F_NAME, reply->model.len) + fs_wire_bytes_size(F_VERSION, version_size(reply));
}

static size_t tensor_size(const fs_named_reply *reply, uint32_t i)
{
    return fs_tensor_proto_size(&reply->outputs[i], 0, -1, reply->as_content);
}

static size_t named_size(const fs_named_reply *reply, uint32_t i, size_t tensor)
{
    return fs_wire_bytes_size(F_TENSOR_NAME, reply->names[i].len) + fs_wire_bytes_size(F_TENSOR, tensor);
}

size_t fs_named_reply_size(const fs_named_reply *reply)
{
    size_t size = fs_wire_bytes_size(F_ANSWERED, answered_size(reply));
    for (uint32_t i = 0; i < reply->n; i++)
        size += fs_wire_bytes_size(F_TENSORS, named_size(reply, i, tensor_size(reply, i)));
    return size > FS_WIRE_MAX_BYTES ? 0 : size;
}

void fs_named_reply_write(const fs_named_reply *reply, uint8_t *dst)
{
    for (uint32_t i = 0; i < reply->n; i++) {
        size_t tensor = tensor_size(reply, i);
        dst = fs_wire_put_head(dst, F_TENSORS, named_size(reply, i, tensor));
        dst = fs_wire_put_bytes(dst, F_TENSOR_NAME, reply->names[i]);
        dst = fs_wire_put_head(dst, F_TENSOR, tensor);
        dst = fs_tensor_proto_write(&reply->outputs[i], 0, -1, reply->as_content, dst);
    }
    dst = fs_wire_put_head(dst, F_ANSWERED, answered_size(reply));
    dst = fs_wire_put_bytes(dst, F_NAME, reply->model);
    dst = fs_wire_put_head(dst, F_VERSION, version_size(reply));
    if (reply->version != 0) {
        dst = fs_wire_put_tag(dst, F_INT64_VALUE, FS_WIRE_VARINT);
        fs_wire_put_varint(dst, (uint64_t)reply->version);
    }
}
