/* prediction_log: a PredictionLog around the bytes of a request and its response, which it neither parses nor
 * copies.
 *
 * Called on the logger's thread. Knows TensorFlow Serving's messages; knows no call and no file. */
#ifndef FS_PREDICTION_LOG_H
#define FS_PREDICTION_LOG_H

#include <stdint.h>

#include "wire.h"

/* Which of PredictionLog's fields the call becomes. */
enum fs_log_kind {
    FS_LOG_PREDICT,
    FS_LOG_CLASSIFY,
    FS_LOG_REGRESS,
    FS_LOG_MULTI_INFERENCE,
};

enum { FS_PREDICTION_LOG_PIECES = 7, FS_PREDICTION_LOG_ROOM = 96 };

/* The message in pieces, to be written one after the other. They point into what was wrapped, and into `room`. */
typedef struct fs_prediction_log {
    fs_slice pieces[FS_PREDICTION_LOG_PIECES];
    int n_pieces;
    uint64_t bytes; /* of all of them */
    uint8_t room[FS_PREDICTION_LOG_ROOM];
} fs_prediction_log;

/* Wraps a request and, unless it is NULL, the response to it. LogMetadata gets the model spec in effect, which the
 * response names (the request's own where there is none), the time in seconds, and `sampling`: fields of
 * LogMetadata that are encoded already. 0; -FS_OUT_OF_RANGE when no protobuf parser would take what came of it. */
int fs_prediction_log_wrap(enum fs_log_kind kind, fs_slice sampling, int64_t seconds, fs_slice request,
                           const fs_slice *response, fs_prediction_log *out);

#endif
