/* bearer: the token that a call shows ("authorization: Bearer TOKEN"), kept as its SHA-256.
 *
 * A session takes it from a request's headers, on the thread that owns the connection; access compares it. Tokens
 * themselves are kept nowhere but in the session's memory of the last one: whoever calls again with the same
 * one, as callers do, costs a comparison and no digest. No comparison ends early. */
#ifndef FS_BEARER_H
#define FS_BEARER_H

#include <stdbool.h>

#include "sha256.h"
#include "slab.h"

enum fs_bearer_kind {
    FS_BEARER_NONE,  /* no authorization */
    FS_BEARER_TOKEN,
    FS_BEARER_OTHER, /* another scheme, an empty token, or one longer than any is */
};

enum { FS_BEARER_MAX_BYTES = 4096, FS_BEARER_WORDS = FS_SHA256_BYTES / 8 };

/* All zeros: none. */
typedef struct fs_bearer {
    enum fs_bearer_kind kind;
    uint64_t digest[FS_BEARER_WORDS]; /* of a token */
} fs_bearer;

/* The last header that a session has seen. All zeros to begin with. */
typedef struct fs_bearer_memory {
    uint8_t *header; /* a slab block, or NULL */
    size_t len;
    fs_bearer bearer;
} fs_bearer_memory;

/* Reads an authorization header. Of several the first stands: does nothing when *bearer has one. Without memory
 * the header is read again next time. */
void fs_bearer_take(fs_bearer_memory *memory, fs_slab *slab, fs_slice header, fs_bearer *bearer);
void fs_bearer_forget(fs_bearer_memory *memory); /* frees it */

/* The words of a digest, as they are compared. */
void fs_bearer_words(const uint8_t digest[FS_SHA256_BYTES], uint64_t words[FS_BEARER_WORDS]);

static inline bool fs_bearer_same(const uint64_t a[FS_BEARER_WORDS], const uint64_t b[FS_BEARER_WORDS])
{
    uint64_t differ = 0;
    for (int i = 0; i < FS_BEARER_WORDS; i++)
        differ |= a[i] ^ b[i];
    return differ == 0;
}

#endif
