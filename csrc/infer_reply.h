/* infer_reply: ClassificationResponse and RegressionResponse, read in two passes: count, then fill.
 *
 * Called by the client's bindings, on any thread. Reads as protobuf does: results and values that come twice
 * are merged, unknown fields are skipped. */
#ifndef FS_INFER_REPLY_H
#define FS_INFER_REPLY_H

#include <stdbool.h>

#include "status.h"

/* How many regressions a reply has; -1 where the bytes are not a RegressionResponse. */
int64_t fs_regressions_count(fs_slice reply);

/* Their values, for a reply that has been counted. */
void fs_regressions_read(fs_slice reply, float *values);

typedef struct fs_class {
    fs_slice label; /* valid UTF-8, within the reply */
    float score;
} fs_class;

/* How many examples a reply has results for, and how many classes these have in all. False where the bytes
 * are not a ClassificationResponse. */
bool fs_classes_count(fs_slice reply, int64_t *examples, int64_t *classes);

/* For a reply that has been counted: its classes, and for each example how many of them are its own. */
void fs_classes_read(fs_slice reply, int64_t *counts, fs_class *classes);

#endif
