/* infer_encode: ClassificationResponse, RegressionResponse, and the results of a MultiInferenceResponse, written
 * straight from a run's outputs.
 *
 * Executors' threads. Knows the messages, and what TensorFlow Serving asks of the tensors behind them. */
#ifndef FS_INFER_ENCODE_H
#define FS_INFER_ENCODE_H

#include "predict.h"

/* One signature's answer: rows [first_row, first_row + rows) of its outputs. */
typedef struct fs_infer_result {
    bool regression;
    const fs_tensor *classes; /* of a classification: labels, strings [rows, n]; or NULL */
    const fs_tensor *scores;  /* of a classification: floats [rows, n], or NULL; of a regression its values,
                               * floats [rows] or [rows, 1] */
    int64_t first_row;
    int64_t rows;
    bool whole;               /* the outputs are of nobody else: they must have exactly `rows` rows */
} fs_infer_result;

/* Whether the outputs are what such an answer is made of. 0, or -FS_INVALID_ARGUMENT in TF Serving's words. */
int fs_infer_result_check(const fs_infer_result *result, fs_error *err);

/* The size of the reply, 0 when it would pass 2 GiB; then write it to exactly that much room. `task`: as one of the
 * results of a MultiInferenceResponse, all of which together, one behind the other, are that message. */
size_t fs_infer_reply_size(const fs_reply_model *model, const fs_infer_result *result, bool task);
void fs_infer_reply_write(const fs_reply_model *model, const fs_infer_result *result, bool task, uint8_t *dst);

#endif
