/* predict_proto: what both sides of the Predict codec share: the messages' fields, and what a request and a
 * reply have in common: a ModelSpec and a map from names to tensors.
 *
 * Included by predict.c, where these functions are, by predict_call.c, and for the ModelSpec by infer_request.c,
 * infer_encode.c, named_request.c and resolve.c; by nobody else. */
#ifndef FS_PREDICT_PROTO_H
#define FS_PREDICT_PROTO_H

#include "predict.h"

/* PredictRequest's fields, and those of the messages in it. */
enum {
    F_MODEL_SPEC = 1, F_INPUTS = 2, F_OUTPUT_FILTER = 3, F_STREAMED_OPTIONS = 5, F_REQUEST_OPTIONS = 7,
    F_NAME = 1, F_VERSION = 2, F_SIGNATURE = 3, F_LABEL = 4, /* ModelSpec */
    F_INT64_VALUE = 1,                                       /* google.protobuf.Int64Value */
    F_KEY = 1, F_VALUE = 2,                                  /* a map's entry */
    F_OUTPUTS = 1, F_REPLY_MODEL = 2,                        /* PredictResponse */
};

/* Merges a ModelSpec into *model: what it does not set stays, and of version and label the last one set
 * rules. A version set again merges too, so that an empty one keeps the number. False: malformed. */
bool fs_model_ref_parse(fs_slice bytes, fs_model_ref *model);

/* The ModelSpec of a reply: its size, and its bytes, of which the end is returned. */
size_t fs_reply_model_size(const fs_reply_model *model);
uint8_t *fs_reply_model_write(const fs_reply_model *model, uint8_t *dst);

/* A name and a tensor: an entry of a map, and NamedTensorProto, which are the same on the wire. 0; -FS_INTERNAL where
 * the bytes are neither; -FS_RESOURCE_EXHAUSTED. */
int fs_named_view_parse(fs_arena *arena, fs_slice entry, fs_named_view *out);

enum { FS_TENSOR_MAP_SLOTS = 256 };

/* The entries seen so far. Up to FS_SORTED_ABOVE of them are distinct and in wire order, in `small`. Beyond,
 * `large` has room for `room`, the first `sorted` distinct and in order, those after them as they came. */
typedef struct fs_tensor_map {
    fs_arena *arena;
    uint32_t n;
    uint32_t sorted;
    uint32_t room;
    fs_named_view *large;
    fs_named_view *scratch; /* as large as `large` */
    fs_named_view small[FS_SORTED_ABOVE];
    uint8_t slots[FS_TENSOR_MAP_SLOTS]; /* hash to index in small plus one; 0: free */
} fs_tensor_map;

/* Begins, adds the bytes of one entry, and gives the distinct entries. 0; -FS_INTERNAL where the bytes are
 * no such entry, or a tensor that a later one replaces is none; -FS_RESOURCE_EXHAUSTED when out of memory or
 * past FS_MAX_INPUTS. */
void fs_tensor_map_begin(fs_tensor_map *map, fs_arena *arena);
int fs_tensor_map_add(fs_tensor_map *map, fs_slice entry);
int fs_tensor_map_end(fs_tensor_map *map, fs_named_view **entries, uint32_t *n);

#endif
