/* named_request: SessionRunRequest in, SessionRunResponse out, as TensorFlow Serving's protos lay them on the wire.
 *
 * Runs on the threads of named_run. Knows the messages, not who serves them. */
#ifndef FS_NAMED_REQUEST_H
#define FS_NAMED_REQUEST_H

#include "predict.h"

/* Names of each kind; what a request may cost has to end somewhere. */
#define FS_NAMED_MAX 4096

typedef struct fs_named_request {
    fs_model_ref model;
    fs_slice *feeds; /* their names */
    fs_slice *protos; /* and what is fed: n_feeds TensorProtos, to be looked at yet */
    uint32_t n_feeds;
    fs_slice *fetches;
    uint32_t n_fetches;
    fs_slice *targets;
    uint32_t n_targets;
    bool aliases; /* the names are those of a signature's inputs and outputs */
} fs_named_request;

/* 0; -FS_INTERNAL where the bytes are not a SessionRunRequest; -FS_INVALID_ARGUMENT past FS_NAMED_MAX;
 * -FS_RESOURCE_EXHAUSTED when out of memory. Slices point into msg, or into the arena where the wire split one message into several that merge. */
int fs_named_request_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_named_request *out);

/* The size of the SessionRunResponse, 0 when it would pass 2 GiB; then write it to exactly that much room. `names`
 * and `outputs` are of the fetches. */
typedef struct fs_named_reply {
    fs_slice model;
    int64_t version;
    const fs_slice *names;
    const fs_tensor *outputs;
    uint32_t n;
    bool as_content;
} fs_named_reply;
size_t fs_named_reply_size(const fs_named_reply *reply);
void fs_named_reply_write(const fs_named_reply *reply, uint8_t *dst);

#endif
