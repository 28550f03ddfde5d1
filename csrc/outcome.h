/* outcome: gRPC's canonical codes, a message with one, and bytes that lie elsewhere.
 *
 * What status.h and everything above it speaks, and all of it that a plug-in knows (plugin.h). */
#ifndef FS_OUTCOME_H
#define FS_OUTCOME_H

#include <stddef.h>
#include <stdint.h>

enum fs_code {
    FS_OK = 0,
    FS_CANCELLED = 1,
    FS_UNKNOWN = 2,
    FS_INVALID_ARGUMENT = 3,
    FS_DEADLINE_EXCEEDED = 4,
    FS_NOT_FOUND = 5,
    FS_ALREADY_EXISTS = 6,
    FS_PERMISSION_DENIED = 7,
    FS_RESOURCE_EXHAUSTED = 8,
    FS_FAILED_PRECONDITION = 9,
    FS_ABORTED = 10,
    FS_OUT_OF_RANGE = 11,
    FS_UNIMPLEMENTED = 12,
    FS_INTERNAL = 13,
    FS_UNAVAILABLE = 14,
    FS_DATA_LOSS = 15,
    FS_UNAUTHENTICATED = 16,
};

/* A message longer than FS_MESSAGE_MAX bytes is cut there and marked, as TF Serving does. */
#define FS_MESSAGE_MAX 1024
#define FS_MESSAGE_MARK "...TRUNCATED"

typedef struct fs_error {
    int code;      /* enum fs_code */
    uint32_t len;  /* bytes of msg before its NUL */
    char msg[FS_MESSAGE_MAX + sizeof FS_MESSAGE_MARK];
} fs_error;

/* Bytes somewhere else; never owns them, need not end in NUL. */
typedef struct fs_slice {
    const uint8_t *data;
    size_t len;
} fs_slice;

#endif
