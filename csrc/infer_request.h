/* infer_request: ClassificationRequest, RegressionRequest and MultiInferenceRequest in, as TensorFlow Serving's
 * protos lay them on the wire.
 *
 * Parsing runs on the thread that owns the connection. Knows the messages, not who serves them. */
#ifndef FS_INFER_REQUEST_H
#define FS_INFER_REQUEST_H

#include "examples.h"
#include "predict.h"

typedef struct fs_infer_task {
    fs_model_ref model;
    fs_slice method; /* "tensorflow/serving/classify", say */
} fs_infer_task;

#define FS_MAX_TASKS 1024 /* what a request may cost in memory has to end somewhere */

typedef struct fs_infer_request {
    fs_model_ref model;   /* of MultiInference the first task's, and present even if that has none */
    fs_examples examples; /* without room */
    fs_infer_task *tasks; /* of MultiInference */
    uint32_t n_tasks;     /* at most FS_MAX_TASKS */
    bool more_tasks;      /* there were others, which are not kept */
} fs_infer_request;

/* Of Classify and Regress, whose requests have the same fields; and of MultiInference. 0; -FS_INTERNAL where the
 * bytes are no such message, Examples aside, which fs_examples_valid looks at; -FS_RESOURCE_EXHAUSTED when out of
 * memory. Slices point into msg, or into the arena where the wire split one message into several that merge. */
int fs_infer_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_infer_request *out);
int fs_multi_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_infer_request *out);

#endif
