/* sticky: the request headers by which routes tell callers apart, kept as hashes while a request comes in.
 *
 * A session keeps what routes want of a request's headers, before it is known which model the request is for; the
 * catalog, which has the routes, says what they want. Both only ever hold hashes, so that there is nothing to
 * allocate or free. Written by loader threads, read by threads that own connections. */
#ifndef FS_STICKY_H
#define FS_STICKY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "status.h"

enum { FS_STICKY_HEADERS = 4 }; /* different ones, over all routes */

/* What is wanted: hashed names, those in use first; 0: no more. */
typedef struct fs_sticky {
    _Atomic(uint32_t) wanted[FS_STICKY_HEADERS];
} fs_sticky;

/* What one request had of it; header 0: no more. All zeros to begin with. */
typedef struct fs_kept {
    struct {
        uint32_t header; /* as in fs_sticky.wanted */
        uint32_t value;  /* a hash */
    } of[FS_STICKY_HEADERS];
} fs_kept;

/* The hash of a header's name, in whatever case; never 0. */
uint32_t fs_sticky_header(fs_slice name);

/* The hash of a header's value. */
uint32_t fs_sticky_value(fs_slice value);

/* Replaces what is wanted. One thread at a time. */
void fs_sticky_want(fs_sticky *sticky, const uint32_t *headers, uint32_t n);

void fs_sticky_take(const fs_sticky *sticky, fs_slice name, fs_slice value, fs_kept *kept);

/* Keeps a header if it is wanted; the first of equal names stands, and an empty value is none. Any thread. */
static inline void fs_sticky_keep(const fs_sticky *sticky, fs_slice name, fs_slice value, fs_kept *kept)
{
    /* relaxed: what is wanted from a moment on may be kept a request sooner or later. */
    if (sticky != NULL && atomic_load_explicit(&sticky->wanted[0], memory_order_relaxed) != 0)
        fs_sticky_take(sticky, name, value, kept);
}

/* Whether the request had that header. */
bool fs_kept_find(const fs_kept *kept, uint32_t header, uint32_t *value);

#endif
