/* reply: a call's outputs as the gRPC frame that answers it.
 *
 * Threads that run models. Knows the kinds of calls and the codecs of their replies, not how the outputs were run. */
#ifndef FS_REPLY_H
#define FS_REPLY_H

#include "call.h"

typedef struct fs_reply_config {
    bool tensor_content;   /* replies carry tensor_content instead of typed fields */
    bool compress_replies; /* in the request's own encoding */
} fs_reply_config;

/* Encodes rows [first, first + rows) of its signature's outputs (rows < 0: all) as the reply of a call, whose
 * outcome is FS_OK, or what is wrong with the outputs. A task's reply is its part of the whole's, without a frame.
 * `scratch` has room for as many as there are outputs; `slab` is the calling thread's. */
void fs_reply_encode(fs_call *call, const fs_tensor *outputs, int64_t first, int64_t rows,
                     const fs_reply_config *config, fs_reply_output *scratch, fs_slab *slab);

/* Finishes a frame whose message of `size` bytes stands behind room for the prefix: the frame, or a smaller one in its
 * place when the caller of `rpc` is to get it compressed. *len: with the prefix. */
uint8_t *fs_reply_frame(const fs_rpc *rpc, uint8_t *frame, size_t size, bool compress, fs_slab *slab, size_t *len);

/* Puts the replies of all its tasks, whose outcomes are FS_OK, together as that of a MultiInference. */
void fs_reply_join(fs_call *whole, const fs_reply_config *config, fs_slab *slab);

#endif
