/* sha256: SHA-256 (FIPS 180-4) of bytes that are all there.
 *
 * Called by bearer, on any thread. A pure function; no secret decides a branch or an address in it. */
#ifndef FS_SHA256_H
#define FS_SHA256_H

#include "status.h"

enum { FS_SHA256_BYTES = 32 };

void fs_sha256(fs_slice data, uint8_t digest[FS_SHA256_BYTES]);

#endif
