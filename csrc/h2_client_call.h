/* h2_client_call: what the parts of h2_client share: the session, and how its calls end.
 *
 * Included by h2_client.c (session, calls going out, time) and h2_client_reply.c (what comes back) only. All
 * of it belongs to the thread that drives the connection. */
#ifndef FS_H2_CLIENT_CALL_H
#define FS_H2_CLIENT_CALL_H

#include "grpc.h"
#include "h2.h"
#include "h2_client.h"
#include "h2_session.h"

enum {
    FIXED_HEADERS = 8,
    SHOWN_BYTES = 64, /* of what the server said, in messages */
    NO_STATUS = -1,
    BAD_STATUS = -2,
};

typedef struct exchange_list {
    fs_exchange *head, *tail;
    uint32_t n;
} exchange_list;

/* The header block that is being decoded; there is only one at a time. */
typedef struct header_block {
    fs_exchange *exchange; /* NULL: nobody waits for it */
    size_t bytes;
    int http_status;       /* NO_STATUS: trailers */
    bool grpc;             /* by its content-type */
    char shown[SHOWN_BYTES]; /* the content type, if it is not gRPC's */
    uint8_t shown_len;
} header_block;

struct fs_h2_client {
    fs_h2_session base; /* first: nghttp2 hands it to the callbacks */
    const fs_h2_client_limits *limits;
    const fs_h2_client_handler *handler;
    void *ctx;

    int64_t heard_us; /* when bytes last came, or calls began after there were none */
    int64_t ping_us;  /* when our unanswered PING went, 0: none */
    bool begun;       /* calls have begun, at a time that the next to tell the time will tell */

    exchange_list waiting; /* not yet nghttp2's */
    exchange_list open;
    uint32_t streams;      /* nghttp2's: of open calls, and of those given up whose RST_STREAM is not out */
    int32_t blocked_id;    /* whose DATA frame waits in nghttp2 for room, 0: none */
    int32_t unsent_id;     /* whose HEADERS nghttp2 refused to send, and why */
    int unsent_error;

    bool settled;          /* the server's SETTINGS have come */
    bool going;            /* the server has said GOAWAY */
    bool ending;           /* inside fs_h2_client_free */
    fs_error why;          /* code FS_OK: not failed */
    char goaway[SHOWN_BYTES + 40]; /* its code and text */
    char rule[160];        /* the last of HTTP/2's rules that the server broke, in nghttp2's words */
    uint8_t first[SHOWN_BYTES];    /* what the server said first */
    size_t first_len;

    header_block block;
    nghttp2_nv head[FIXED_HEADERS]; /* of every call; its path and more are filled in */
};

/* fs_fail with a code that the compiler does not know, for a call. */
#define SAY(x, status, ...) ((x)->code = -fs_fail(&(x)->error, (enum fs_code)(status), __VA_ARGS__))

static inline fs_exchange *exchange_of(fs_h2_client *h2, int32_t stream_id)
{
    return nghttp2_session_get_stream_user_data(h2->base.session, stream_id);
}

/* What the callbacks for input return: once the session has failed, the rest of the input is not read. */
static inline int verdict(const fs_h2_client *h2)
{
    return h2->base.failed != 0 ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

/* ---- h2_client.c --------------------------------------------------------------------------------- */

/* The call is over, as x->code says. It is the caller's on return, and may have been started again. */
void fs_exchange_finish(fs_h2_client *h2, fs_exchange *x);

/* RST_STREAM, unless there is nobody left to hear it. */
void fs_h2_client_reset(fs_h2_client *h2, int32_t stream_id, uint32_t http2_code);
void fs_h2_client_no_memory(fs_h2_client *h2); /* ends the session */

/* Bytes for a message: what is not printable as \xNN, up to the end of the first line. Ends in NUL; returns
 * the bytes before it. `room` is at least 1. */
size_t fs_h2_client_show(char *dst, size_t room, const uint8_t *bytes, size_t len);

/* ---- h2_client_reply.c --------------------------------------------------------------------------- */

int fs_h2_client_on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user);
int fs_h2_client_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                           size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                           void *user);
int fs_h2_client_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
                         size_t len, void *user);
int fs_h2_client_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user);
int fs_h2_client_on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                                 void *user);

#endif
