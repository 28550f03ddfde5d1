/* broadcast: inputs that came with one row, for all rows of their request ([models.batching] broadcast).
 *
 * Called for a request whose inputs have been looked at, before anything is made of their shapes: by I/O threads for
 * calls, by loaders for recorded requests. Knows signatures and views, neither calls nor batches. From here on such an
 * input is what it would have been, had it come with its row as often as the request has rows: only
 * tensor_decode.c knows that the payload has it once. */
#ifndef FS_BROADCAST_H
#define FS_BROADCAST_H

#include "runtime.h"
#include "tensor.h"

/* Gives `views`, the inputs of `sig` in its order, the request's rows where they have one row and broadcast[i].
 * The other inputs say how many rows that is, those aside whose first dim the signature fixes. Where they do not agree
 * nothing is changed, for the request is wrong. A view of more elements than can be counted has INT64_MAX, which is
 * beyond every limit. */
void fs_broadcast(const fs_signature *sig, const bool *broadcast, fs_tensor_view *views);

#endif
