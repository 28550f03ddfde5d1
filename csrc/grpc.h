/* grpc: the words of gRPC's wire format that are not HTTP/2's: headers, the status line, the frame prefix.
 *
 * Called by h2 and by those who make reply frames, on any thread. Pure functions over bytes; knows no
 * session and allocates nothing. Whatever it reads comes from the network. */
#ifndef FS_GRPC_H
#define FS_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FS_GRPC_PREFIX_BYTES 5

/* The largest timeout that eight digits can say, 99999999 hours, fits an int64_t of microseconds. */

/* grpc-timeout ("100m", "3S") in microseconds, rounded up. 0 when it is zero or negative: it has passed. -1
 * when it cannot be read: no digits, more than eight, or no such unit. */
int64_t fs_grpc_timeout_us(const uint8_t *text, size_t len);

/* Writes a grpc-timeout of `us` microseconds (positive) in the finest unit that eight digits can say, rounded
 * up. Returns the bytes written; no NUL. */
#define FS_GRPC_TIMEOUT_ROOM 9
size_t fs_grpc_timeout_write(int64_t us, char dst[FS_GRPC_TIMEOUT_ROOM]);

/* The enum fs_encoding of a grpc-encoding value, -1 for one that is not known here. */
int fs_grpc_encoding(const uint8_t *text, size_t len);

/* The best enum fs_encoding in a grpc-accept-encoding list: gzip, deflate, identity, in this order. */
int fs_grpc_accept(const uint8_t *text, size_t len);

/* Whether a content-type is gRPC's: application/grpc, alone or followed by '+' or ';'. */
bool fs_grpc_content_type(const uint8_t *text, size_t len);

/* Writes grpc-message for `len` bytes of text: everything but printable ASCII, and '%', becomes %XX; so does a
 * space at either end, where a header's value may have none and strict peers drop it. Stops before the first
 * byte whose code does not fit `room`; three times `len` is always enough. Returns the bytes written; no NUL. */
size_t fs_grpc_percent_encode(const char *text, size_t len, char *dst, size_t room);

/* Reads grpc-message: %XX becomes a byte; a '%' that two hex digits do not follow is kept as it is. Writes the
 * first `room` bytes, no NUL, and returns how many there are in all. */
size_t fs_grpc_percent_decode(const uint8_t *text, size_t len, char *dst, size_t room);

/* The five bytes before a message: whether it is compressed, and its length. */
void fs_grpc_prefix_write(uint8_t dst[FS_GRPC_PREFIX_BYTES], bool compressed, uint32_t len);
static inline uint32_t fs_grpc_prefix_len(const uint8_t prefix[FS_GRPC_PREFIX_BYTES])
{
    return (uint32_t)prefix[1] << 24 | (uint32_t)prefix[2] << 16 | (uint32_t)prefix[3] << 8 | prefix[4];
}

#endif
