/* http1: the client's side of HTTP/1.1 as far as a load generator needs it, sans-I/O: a request's head to
 * bytes, and an answer's bytes to its status and length.
 *
 * Called by load_conn, on its thread. Knows no socket and allocates nothing. What comes from the server is
 * bounded and checked; a body's bytes are counted, not kept. */
#ifndef FS_HTTP1_H
#define FS_HTTP1_H

#include <stdbool.h>
#include <stdint.h>

#include "h2_client.h"
#include "status.h"

enum {
    FS_HTTP1_LINE_BYTES = 256,        /* kept of a line; of most headers nothing is asked */
    FS_HTTP1_HEAD_BYTES = 64 << 10,   /* of all lines of one answer that are not its body */
};

/* One answer at a time. */
typedef struct fs_http1 {
    /* The answer, once `done`. */
    int status;              /* 200 and so on; 1xx are passed over */
    bool keep_alive;         /* the connection may be used for the next request */
    bool done;
    uint64_t body_bytes;     /* without the framing of chunks */

    /* Its own. */
    uint8_t state;
    bool chunked, length_known, old;
    uint64_t left;           /* of the body or the chunk */
    size_t head_bytes, line_len;
    char line[FS_HTTP1_LINE_BYTES];
} fs_http1;

/* Ready for the next answer. */
void fs_http1_begin(fs_http1 *http);

/* Takes bytes from the server up to the end of the answer: says how many, sets `done` at the end. Negative
 * and err: this is no HTTP/1 answer, the connection is of no use any more. */
int64_t fs_http1_take(fs_http1 *http, const uint8_t *data, size_t len, fs_error *err);

/* The server has closed the connection: 0 when that is how this answer ends, which is `done` then; negative
 * and err when something is missing. */
int fs_http1_close(fs_http1 *http, fs_error *err);

/* Writes the head of a POST with a body of `body_bytes`; returns how long it is. When that is more than
 * `room`, what was written is of no use. A JSON content-type is written unless one of `headers` is one. */
size_t fs_http1_head_write(uint8_t *dst, size_t room, fs_slice path, fs_slice host, const fs_header *headers,
                           uint32_t n_headers, size_t body_bytes);

#endif
