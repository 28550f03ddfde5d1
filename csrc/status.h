/* status: the one vocabulary for failure: gRPC's canonical codes and a message.
 *
 * Called by everything in csrc, on any thread. Knows nothing of the rest.
 *
 * Functions return 0 or a negative `-enum fs_code`; those that have more to say
 * fill an fs_error, which lives on the caller's stack or in the call it belongs to. */
#ifndef FS_STATUS_H
#define FS_STATUS_H

#include <stddef.h>

#include "outcome.h"

/* Fills *err (may be NULL) and returns -code, so that `return fs_fail(...)` reads well. */
int fs_fail(fs_error *err, enum fs_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends a message of `full` bytes, of which the first FS_MESSAGE_MAX at most stand in err->msg: cuts and
 * marks it when there are more. */
void fs_error_seal(fs_error *err, size_t full);

/* The same as fs_fail for a message that is already text of `len` bytes (from TensorFlow, say). */
int fs_fail_text(fs_error *err, enum fs_code code, const char *text, size_t len);

#endif
