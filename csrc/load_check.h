/* load_check: whether a PredictResponse is what the version that it names would have answered.
 *
 * Called by load, on its thread, for every reply when it is asked to. Knows the wire format of the reply and
 * the numbers that are expected; knows no connection and allocates nothing. */
#ifndef FS_LOAD_CHECK_H
#define FS_LOAD_CHECK_H

#include <stdbool.h>

#include "load.h"

/* What a reply says of itself. */
typedef struct fs_load_answer {
    int failure;     /* 0, FS_LOAD_BAD_REPLY or FS_LOAD_MISVERSIONED */
    int64_t version; /* that model_spec names; -1: none */
    const char *why; /* of a failure; static */
} fs_load_answer;

/* Looks at the reply to `body`. A reply is misversioned when it names no version, or when its values are not
 * those of the version that it names. */
fs_load_answer fs_load_check_reply(const fs_load_check *check, fs_slice reply, uint32_t body);

#endif
