/* h2: gRPC over HTTP/2 for one connection, sans-I/O: bytes in, calls out; replies in, bytes out.
 *
 * Called by a connection driver (uvloop's protocol or the epoll loop), always on the thread that owns the
 * connection. Knows HTTP/2 (by nghttp2) and gRPC's framing; knows no socket, no clock (time is passed
 * in) and no message's meaning. All memory comes from the owner's slab, nghttp2's too.
 *
 * Life of an fs_rpc: made at HEADERS; handed to the handler; from on_call (unary) or on_open
 * (stream) until fs_rpc_finish the handler holds it, on whatever thread, and may read it; the stream holds
 * it until it closes. It is freed when both have let go. */
#ifndef FS_H2_H
#define FS_H2_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bearer.h"
#include "slab.h"
#include "status.h"
#include "sticky.h"
#include "trace_ring.h"
#include "traceparent.h"

typedef struct fs_h2 fs_h2;

enum fs_encoding { FS_IDENTITY = 0, FS_GZIP = 1, FS_DEFLATE = 2 };

/* Through which of our doors a call came: a client's own, or for a client of the gateway's REST or of a route. */
enum fs_transport { FS_TRANSPORT_GRPC, FS_TRANSPORT_REST, FS_TRANSPORT_WEB, FS_TRANSPORTS };

/* Bytes in flight of many connections: requests being received or served, replies not yet sent. */
typedef struct fs_budget {
    _Alignas(64) atomic_size_t used;
    size_t limit;
} fs_budget;

/* Takes `bytes`, false when that would pass the limit. Any thread. */
bool fs_budget_take(fs_budget *budget, size_t bytes);
void fs_budget_give(fs_budget *budget, size_t bytes);
static inline size_t fs_budget_used(const fs_budget *budget)
{
    return atomic_load_explicit(&budget->used, memory_order_relaxed);
}

typedef struct fs_rpc {
    /* Constant once the handler has it. */
    fs_h2 *h2;              /* owner thread only; NULL once the connection is gone */
    void *conn;             /* what fs_h2_new was given as `conn`; owner thread only */
    void *method;           /* the cookie of its method */
    int64_t deadline_us;    /* on the clock of now_us; INT64_MAX: none */
    int64_t arrived_us;     /* when the request was complete */
    uint8_t *message;       /* unary: the request's bytes, without the 5-byte prefix; a slab block. Whoever
                             * finishes the call may take it, and leaves NULL */
    size_t message_len;
    uint8_t encoding;       /* enum fs_encoding of `message`: still compressed */
    uint8_t reply_encoding; /* the best that the caller accepts, FS_IDENTITY when in doubt */
    uint8_t transport;      /* enum fs_transport, of its listener; the handler's to set */
    fs_slice path;          /* "/package.Service/Method" */
    size_t charged_bytes;   /* what is taken from the budgets for it; owner thread only */
    fs_kept kept;           /* of its headers, what fs_h2_limits.sticky wanted, */
    fs_bearer bearer;       /*   and the token that it shows */
    fs_traceparent parent;  /*   and, while spans are wanted, the trace that it belongs to */

    atomic_bool cancelled;  /* set (relaxed) by the owner when the stream is gone; a hint to stop */

    /* The handler's own: link in a mailbox or list, state, and the reply on its way home. */
    void *user;
} fs_rpc;

/* Called from inside fs_h2_recv, on the owner's thread; on_cancel also from fs_h2_send and fs_h2_free. */
typedef struct fs_h2_handler {
    /* The method for a path, or NULL: the call is answered UNIMPLEMENTED without text. *streaming: its
     * messages are handed over one by one. */
    void *(*lookup)(void *ctx, const uint8_t *path, size_t len, bool *streaming);
    /* A unary request is complete. The handler must end it with fs_rpc_finish, now or later. */
    void (*on_call)(void *ctx, fs_rpc *rpc);
    /* A streaming call: opened; a message (slab block, the handler's to free; encoding as in
     * rpc->encoding when `compressed`); the client has no more to say. */
    void (*on_open)(void *ctx, fs_rpc *rpc);
    void (*on_message)(void *ctx, fs_rpc *rpc, uint8_t *message, size_t len, bool compressed);
    void (*on_half_close)(void *ctx, fs_rpc *rpc);
    /* The stream went away (RST_STREAM, connection lost) while the handler holds the call;
     * rpc->cancelled is set. fs_rpc_finish is still due. */
    void (*on_cancel)(void *ctx, fs_rpc *rpc);
    /* A unary request for a known method has been answered by the session and will not be handed over: too large, no
     * room, not in time, malformed. May be NULL; `rpc` is the session's. Also from fs_h2_tick. */
    void (*on_refused)(void *ctx, const fs_rpc *rpc, int code);
} fs_h2_handler;

typedef struct fs_h2_limits {
    uint32_t max_concurrent_streams;
    uint32_t max_header_bytes;   /* of one request's header list, as HTTP/2 counts it */
    size_t max_message_bytes;    /* of one message as it travels: longer is RESOURCE_EXHAUSTED */
    size_t max_conn_bytes;       /* in flight on one connection: more is RESOURCE_EXHAUSTED */
    uint32_t window_bytes;       /* HTTP/2 receive window, per stream and per connection */
    uint32_t reset_burst;        /* resets by the peer: more at once, */
    uint32_t reset_per_s;        /*   and sustained, closes with ENHANCE_YOUR_CALM */
    uint32_t chatter_burst;      /* the same for frames that carry nothing (PING, SETTINGS, PRIORITY, */
    uint32_t chatter_per_s;      /*   empty DATA). A call that is answered gives back a token of both */
    int64_t request_timeout_us; /* from HEADERS to the request's end; then RST_STREAM and DEADLINE_EXCEEDED */
    int64_t stall_timeout_us;    /* replies waiting and the peer taking nothing for so long: closed */
    int64_t keepalive_us;        /* PING after so long without a byte received; 0: never */
    int64_t keepalive_timeout_us; /* and closed when no byte answers it */
    const fs_sticky *sticky;     /* headers of requests to keep; NULL: none */
    const fs_trace *trace;       /* says whether spans are wanted; NULL: never */
} fs_h2_limits;

/* A server session. `limits`, `handler`, `budget` and `slab` outlive it. NULL when out of memory. */
fs_h2 *fs_h2_new(const fs_h2_limits *limits, const fs_h2_handler *handler, void *ctx, void *conn,
                 fs_budget *budget, fs_slab *slab, int64_t now_us);

/* Ends every stream (on_cancel for calls that the handler holds) and frees the session. */
void fs_h2_free(fs_h2 *h2);

/* Takes `len` bytes from the peer. 0, or negative: the session is over; send what fs_h2_send still gives
 * (a GOAWAY), then close. */
int fs_h2_recv(fs_h2 *h2, const uint8_t *data, size_t len, int64_t now_us);

/* Writes up to `room` bytes (at least 64 KiB of room) for the peer to `dst`; 0: nothing to send now.
 * Call until 0 after recv, finish or tick, and whenever the socket takes bytes again. */
size_t fs_h2_send(fs_h2 *h2, uint8_t *dst, size_t room, int64_t now_us);

/* Time-outs. Returns when to call again (a time, INT64_MAX: not needed), or negative: as for fs_h2_recv. */
int64_t fs_h2_tick(fs_h2 *h2, int64_t now_us);

/* First step of a drain: GOAWAY that still lets calls on their way in; second: no new calls. */
void fs_h2_shutdown_notice(fs_h2 *h2);
void fs_h2_shutdown(fs_h2 *h2);

/* True once shut down and idle, or failed: nothing more will come of it. */
bool fs_h2_done(const fs_h2 *h2);
uint32_t fs_h2_active_calls(const fs_h2 *h2); /* streams that are not closed yet */
size_t fs_h2_bytes_in_flight(const fs_h2 *h2);
size_t fs_h2_unsent_bytes(const fs_h2 *h2);   /* of replies that are finished */

/* Ends a call. Owner's thread. code FS_OK needs `reply` for unary calls: a slab block whose `len` bytes are a
 * whole gRPC frame (5-byte prefix included), the session's from here on. Otherwise reply is NULL and msg (any
 * bytes, NULL for none) becomes grpc-message, percent-encoded. When the stream is gone, the reply is dropped.
 * The rpc must not be touched afterwards. */
void fs_rpc_finish(fs_rpc *rpc, int code, const char *msg, size_t msg_len, void *reply, size_t len);

/* Counts `bytes` more as in flight until the call is finished: what its request has grown to, decompressed or
 * decoded. 0, or -FS_RESOURCE_EXHAUSTED and why: the budgets have no room, and nothing is counted. Owner's thread. */
int fs_rpc_charge(fs_rpc *rpc, size_t bytes, fs_error *err);

/* Streaming calls: one more reply frame (as above). 0, or -FS_CANCELLED when the stream is gone (then `reply`
 * is still the caller's). */
int fs_rpc_send(fs_rpc *rpc, void *reply, size_t len);

/* Streaming calls: the handler is done with `len` bytes of messages. Until it says so (or finishes) they
 * count as in flight, so that a client cannot send faster than the handler works for ever. Owner's thread. */
void fs_rpc_consume(fs_rpc *rpc, size_t len);

#endif
