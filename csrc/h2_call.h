/* h2_call: what the parts of h2 share: the session, its calls, and who does what to them.
 *
 * Included by h2.c (session, limits, time), h2_request.c (from bytes to calls) and h2_reply.c (from answers
 * to frames) only. All of it belongs to the thread that owns the connection. */
#ifndef FS_H2_CALL_H
#define FS_H2_CALL_H

#include "grpc.h"
#include "h2.h"
#include "h2_session.h"

enum {
    PATH_INLINE = 80,       /* longer paths get a block of their own */
    CALL_BYTES = 1024,      /* what a call is charged for besides its messages: itself and nghttp2's stream */
    SMALL_REPLY = 64 << 10, /* larger replies take turns with others on the same connection */
};

/* One reply frame on its way out. */
typedef struct reply {
    struct reply *next;
    uint8_t *block; /* ours, from a slab */
    size_t len;
    size_t sent;
} reply;

typedef struct call {
    fs_rpc rpc; /* first, so that one pointer is both */
    fs_budget *budget;
    struct call *prev, *next; /* in one of the session's three lists */
    struct call_list *list;
    int32_t stream_id;
    int64_t started_us; /* when HEADERS came */

    /* The message that is coming in: its prefix, then rpc.message_len bytes of which `filled` are here. */
    uint8_t prefix[FS_GRPC_PREFIX_BYTES];
    uint8_t prefix_have;
    uint8_t header_encoding; /* grpc-encoding, whatever the message's flag says */
    size_t filled;
    size_t request_bytes; /* charged for messages, not yet given back */

    bool streaming : 1;
    bool whole : 1;       /* unary: the one message is complete */
    bool half_closed : 1; /* the client has no more to say */
    bool held : 1;        /* the handler has it */
    bool stream_gone : 1;
    bool answered : 1;    /* the status is submitted, or waits behind replies */
    bool started : 1;     /* response headers are submitted */
    bool finishing : 1;   /* started, and the trailers follow the last reply */

    /* Trailers, for when the replies are through. */
    uint8_t code;
    char *message; /* percent-encoded, a slab block, or NULL */
    size_t message_bytes;

    reply *replies, **replies_end;
    reply first; /* unary needs no other */
    bool first_used;

    uint8_t path_room[PATH_INLINE];
} call;

typedef struct call_list {
    call *head, *tail;
} call_list;

/* Tokens that refill with time and with honest work. In millionths, so that time alone can refill slowly. */
typedef struct bucket {
    int64_t level;
    int64_t filled_us;
} bucket;

/* The header block that is being decoded; there is only one at a time. */
typedef struct header_block {
    call *call; /* NULL when it could not be made, or for trailers */
    size_t bytes;
    int64_t timeout_us; /* -1: none, -2: unreadable */
    int encoding;       /* -1: unknown, its name below */
    uint8_t accept;
    bool post, grpc, out_of_memory;
    char shown[64]; /* the content type or encoding that was refused */
    uint8_t shown_len;
} header_block;

struct fs_h2 {
    fs_h2_session base; /* first: nghttp2 hands it to the callbacks */
    const fs_h2_limits *limits;
    const fs_h2_handler *handler;
    void *ctx;
    void *conn;
    fs_budget *budget;

    int64_t now_us;
    int64_t heard_us;    /* when bytes last came */
    int64_t ping_us;     /* when our unanswered PING went, 0: none */
    int64_t progress_us; /* when replies last moved, INT64_MAX: none waits */
    size_t progress_bytes; /* since then */

    call_list receiving; /* unary requests that are not complete, oldest first: the head times out first */
    call_list serving;   /* the other open streams */
    call_list detached;  /* the stream is gone, the handler still holds it */
    uint32_t streams;
    size_t used_bytes;   /* charged to this connection */
    size_t reply_bytes;  /* replies not sent yet */

    bucket resets, chatter;
    bool shut;
    header_block block;
    fs_bearer_memory bearers;
};

/* ---- h2.c: lists, charges, limits ---------------------------------------------------------- */

void fs_call_move(call *call, call_list *to); /* to: NULL for none */

/* Charges `bytes` to the call: 0, or -FS_RESOURCE_EXHAUSTED with the text in err. */
int fs_call_charge(call *call, size_t bytes, fs_error *err);
void fs_call_charge_reply(call *call, size_t bytes); /* never refused: the work is done */
void fs_call_discharge(call *call, size_t bytes);

void fs_call_free(call *call);
void fs_call_drop_request(call *call); /* frees the message; its charge, too */

/* False when the peer has used up its tokens: the session ends. */
bool fs_h2_spend(fs_h2 *h2, bucket *bucket, uint32_t burst, uint32_t per_s);
void fs_h2_earn(bucket *bucket, uint32_t burst);

/* ---- h2_request.c ------------------------------------------------------------------------------ */

int fs_h2_on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *head, void *user);
int fs_h2_on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user);
int fs_h2_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                    size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags, void *user);
int fs_h2_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user);
int fs_h2_on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user);
int fs_h2_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t len,
                  void *user);
int fs_h2_on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user);

/* ---- h2_reply.c --------------------------------------------------------------------------------- */

/* Answers an open stream that has not been answered: a status without a message. */
void fs_call_answer(call *call, int code, const char *msg, size_t msg_len);
/* The same with HTTP's own status, for requests that are not gRPC. */
void fs_call_answer_http(call *call, const char *http_status, int code, const char *msg, size_t msg_len);
void fs_call_drop_replies(call *call);
int fs_h2_on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user);
int fs_h2_on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t len,
                       nghttp2_data_source *source, void *user);

#endif
