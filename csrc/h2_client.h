/* h2_client: unary gRPC calls over HTTP/2, the calling side of one connection, sans-I/O: calls in, bytes out;
 * bytes in, replies out.
 *
 * Called by a link, or by a test, always by one thread at a time: that which drives the connection. Knows
 * HTTP/2 (by nghttp2) and gRPC's framing; knows no socket, no clock (time is passed in) and no message's
 * meaning. nghttp2's memory and replies come from the owner's slab; a call itself is the caller's memory. */
#ifndef FS_H2_CLIENT_H
#define FS_H2_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "slab.h"
#include "status.h"

typedef struct fs_h2_client fs_h2_client;

typedef struct fs_header {
    fs_slice name; /* lower case, not a pseudo header and none of gRPC's own */
    fs_slice value;
} fs_header;

/* One unary call on one connection. Embedded in something of the caller's; the session's from
 * fs_h2_client_start until on_end or fs_h2_client_cancel. */
typedef struct fs_exchange {
    /* The caller's, constant meanwhile, as is what they point to. */
    fs_slice path;            /* "/package.Service/Method" */
    const fs_slice *pieces;   /* one after the other they are the message: copied once, into what is sent */
    uint32_t n_pieces;
    size_t message_bytes;     /* of all pieces; below 4 GiB */
    uint8_t encoding;         /* enum fs_encoding that the message is compressed with already */
    int64_t timeout_us;       /* goes out as grpc-timeout; 0: none */
    const fs_header *headers; /* further ones */
    uint32_t n_headers;
    void *user;

    /* The answer, at on_end. */
    int code;                 /* enum fs_code. Where the server gave none: as gRPC's specification maps HTTP
                                 statuses, RST_STREAM codes and lost connections */
    fs_error error;           /* its text when code is not FS_OK: the server's (percent-decoded), or ours */
    uint8_t *reply;           /* FS_OK: the message, without its prefix; a slab block, the caller's to free.
                                 It begins at an address that is 64-byte aligned when 1 KiB or more */
    size_t reply_bytes;
    uint8_t reply_encoding;   /* still compressed with this */
    bool unprocessed;         /* no server has looked at it: it may be made again as if never before */
    bool answered;            /* the status is the server's own word, not our reading of a failure */

    /* The session's own. */
    struct fs_exchange *prev, *next;
    fs_h2_client *h2;         /* NULL: not started, or over */
    int32_t stream_id;        /* 0: waits for its turn, nghttp2 has not heard of it */
    uint32_t piece;           /* the next byte to send: pieces[piece][piece_at] */
    size_t piece_at, sent;    /* sent: of the prefix, too */
    uint8_t prefix[5], prefix_have; /* of the reply */
    uint8_t header_encoding;  /* the reply's grpc-encoding */
    int16_t grpc_status;      /* -1: not seen */
    bool message_whole, headers_seen, ended;
    size_t filled;
} fs_exchange;

typedef struct fs_h2_client_handler {
    /* The call is over; its memory is the caller's again, and may be started again from inside. From inside
     * fs_h2_client_recv, _send, _tick or _free. */
    void (*on_end)(void *ctx, fs_exchange *exchange);
} fs_h2_client_handler;

typedef struct fs_h2_client_limits {
    size_t max_reply_bytes;       /* of one message as it travels: longer is RESOURCE_EXHAUSTED */
    uint32_t max_header_bytes;    /* of one header list */
    uint32_t window_bytes;        /* HTTP/2 receive window, per stream and per connection */
    int64_t keepalive_us;         /* PING after so long without a byte while calls are open; 0: never */
    int64_t keepalive_timeout_us; /*   and the session is over when no byte answers it */
} fs_h2_client_limits;

/* A session that has said its preface. `authority` and `scheme` ("http", "https") go into every call; both,
 * as limits, handler and slab, outlive it. NULL when out of memory. */
fs_h2_client *fs_h2_client_new(const fs_h2_client_limits *limits, const fs_h2_client_handler *handler,
                               void *ctx, fs_slice authority, fs_slice scheme, fs_slab *slab, int64_t now_us);

/* Ends every call and frees the session. What the calls are told: why the session failed, if it has; else
 * `why`, if not NULL and with a code; else UNAVAILABLE. */
void fs_h2_client_free(fs_h2_client *h2, const fs_error *why);

/* Starts a call. 0; -FS_UNAVAILABLE: no new calls on this session (GOAWAY, failed, stream numbers used up);
 * -FS_RESOURCE_EXHAUSTED: out of memory. When not 0 the call stays the caller's, untouched. A call beyond
 * what the server allows at once waits in the session. */
int fs_h2_client_start(fs_h2_client *h2, fs_exchange *exchange);

/* Gives a call up: RST_STREAM(CANCEL) if it was sent. on_end is not called. */
void fs_h2_client_cancel(fs_h2_client *h2, fs_exchange *exchange);

/* As those of h2: negative means that the session is over: calls that can still be answered from what was
 * received have been, free it (which ends the others). */
int fs_h2_client_recv(fs_h2_client *h2, const uint8_t *data, size_t len, int64_t now_us);
size_t fs_h2_client_send(fs_h2_client *h2, uint8_t *dst, size_t room, int64_t now_us);
int64_t fs_h2_client_tick(fs_h2_client *h2, int64_t now_us);

/* Why the session failed; code FS_OK: it has not. */
const fs_error *fs_h2_client_why(const fs_h2_client *h2);

bool fs_h2_client_ready(const fs_h2_client *h2);       /* the server's SETTINGS have come */
bool fs_h2_client_accepts(const fs_h2_client *h2);     /* new calls may be started */
bool fs_h2_client_done(const fs_h2_client *h2);        /* GOAWAY and idle, or failed: nothing more comes */
uint32_t fs_h2_client_active(const fs_h2_client *h2);  /* calls that are not over */
uint32_t fs_h2_client_room(const fs_h2_client *h2);    /* calls that may start now without waiting */

#endif
