/* traceparent: the header by which a caller says what trace a request belongs to, as W3C's Trace Context has it.
 *
 * A session takes it from a request's headers, on the thread that owns the connection, and only while spans are
 * wanted; whoever writes the call's span reads it. Pure: bytes in, ids out. */
#ifndef FS_TRACEPARENT_H
#define FS_TRACEPARENT_H

#include <stdbool.h>

#include "status.h"

enum { FS_TRACE_ID_BYTES = 16, FS_SPAN_ID_BYTES = 8 };

enum fs_parent_state {
    FS_PARENT_NONE,    /* no such header */
    FS_PARENT_THERE,
    FS_PARENT_IGNORED, /* malformed, or there twice: as if there were none, as the standard asks */
};

enum { FS_PARENT_SAMPLED = 1 }; /* of its flags; the others say nothing to us */

/* All zeros: none. */
typedef struct fs_traceparent {
    uint8_t state; /* enum fs_parent_state */
    uint8_t flags;
    uint8_t trace_id[FS_TRACE_ID_BYTES];
    uint8_t parent_id[FS_SPAN_ID_BYTES]; /* the caller's span */
} fs_traceparent;

/* Whether `value` is a traceparent: then *parent has it. Strict: lowercase hexadecimal, no id of zeros, no version
 * ff, exactly 55 characters in version 00; of later versions what version 00 would read. */
bool fs_traceparent_parse(fs_slice value, fs_traceparent *parent);

/* Takes one more traceparent header of a request whose *parent is so far. */
void fs_traceparent_take(fs_slice value, fs_traceparent *parent);

#endif
