/* h2_peer: a gRPC client on an nghttp2 client session, joined to an fs_h2 in the same process by two buffers.
 *
 * Included by the tests, the fuzz corpus's generator and nothing else. The client side is nghttp2's own, so
 * that both ends do not share a mistake. */
#ifndef FS_H2_PEER_H
#define FS_H2_PEER_H

#include <nghttp2/nghttp2.h>

#include "check.h"
#include "grpc.h"
#include "h2.h"

enum { PEER_CALLS = 4096, PEER_ROOM = 1 << 18 };

typedef struct peer_call {
    int32_t id;
    char http_status[4], grpc_status[8], grpc_message[4096], grpc_encoding[16], grpc_accept[64];
    uint8_t *body; /* what came in DATA frames */
    size_t body_len, body_room;
    const uint8_t *up; /* what goes in DATA frames */
    size_t up_len, up_at;
    bool up_open; /* do not end the stream after `up` */
    bool trailers; /* end with trailers */
    bool closed;
    uint32_t error_code;
    int header_blocks;
} peer_call;

typedef struct peer {
    nghttp2_session *client;
    fs_h2 *h2;
    int64_t now_us;
    int recv_rc;     /* the first that was not 0 */
    size_t step;     /* bytes given to fs_h2_recv at once; 0: all */
    size_t room;     /* given to fs_h2_send */
    bool deaf;       /* what the server sends is lost */
    int goaways;
    int32_t last_stream_id; /* of the last GOAWAY */
    uint32_t goaway_code;
    int resets;      /* RST_STREAM frames received */
    uint32_t reset_code;
    int pings;
    size_t sent_bytes;     /* by the server */
    FILE *record;    /* what the client says is written here, too */
    peer_call calls[PEER_CALLS];
    int n_calls;
} peer;

static inline peer_call *peer_find(peer *p, int32_t id)
{
    for (int i = p->n_calls - 1; i >= 0; i--) {
        if (p->calls[i].id == id)
            return &p->calls[i];
    }
    return NULL;
}

static inline void peer_keep(char *dst, size_t room, const uint8_t *value, size_t len)
{
    len = len < room - 1 ? len : room - 1;
    memcpy(dst, value, len);
    dst[len] = '\0';
}

static inline int peer_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                                 size_t name_len, const uint8_t *value, size_t len, uint8_t flags, void *user)
{
    (void)session;
    (void)name_len;
    (void)flags;
    peer_call *c = peer_find(user, frame->hd.stream_id);
    if (c == NULL)
        return 0;
    if (strcmp((const char *)name, ":status") == 0)
        peer_keep(c->http_status, sizeof c->http_status, value, len);
    if (strcmp((const char *)name, "grpc-status") == 0)
        peer_keep(c->grpc_status, sizeof c->grpc_status, value, len);
    if (strcmp((const char *)name, "grpc-message") == 0)
        peer_keep(c->grpc_message, sizeof c->grpc_message, value, len);
    if (strcmp((const char *)name, "grpc-encoding") == 0)
        peer_keep(c->grpc_encoding, sizeof c->grpc_encoding, value, len);
    if (strcmp((const char *)name, "grpc-accept-encoding") == 0)
        peer_keep(c->grpc_accept, sizeof c->grpc_accept, value, len);
    return 0;
}

static inline int peer_on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data,
                               size_t len, void *user)
{
    (void)session;
    (void)flags;
    peer_call *c = peer_find(user, id);
    if (c == NULL)
        return 0;
    if (c->body_len + len > c->body_room) {
        c->body_room = (c->body_len + len) * 2;
        c->body = realloc(c->body, c->body_room);
        REQUIRE(c->body != NULL);
    }
    memcpy(c->body + c->body_len, data, len);
    c->body_len += len;
    return 0;
}

static inline int peer_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    peer *p = user;
    peer_call *c;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        c = peer_find(p, frame->hd.stream_id);
        if (c != NULL)
            c->header_blocks++;
        break;
    case NGHTTP2_GOAWAY:
        p->goaways++;
        p->last_stream_id = frame->goaway.last_stream_id;
        p->goaway_code = frame->goaway.error_code;
        break;
    case NGHTTP2_RST_STREAM:
        p->resets++;
        p->reset_code = frame->rst_stream.error_code;
        break;
    case NGHTTP2_PING:
        if ((frame->hd.flags & NGHTTP2_FLAG_ACK) == 0)
            p->pings++;
        break;
    default:
        break;
    }
    return 0;
}

static inline int peer_on_close(nghttp2_session *session, int32_t id, uint32_t error_code, void *user)
{
    (void)session;
    peer_call *c = peer_find(user, id);
    if (c != NULL) {
        c->closed = true;
        c->error_code = error_code;
    }
    return 0;
}

static inline ssize_t peer_read(nghttp2_session *session, int32_t id, uint8_t *buf, size_t room,
                                uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)source;
    peer_call *c = peer_find(user, id);
    size_t n = c->up_len - c->up_at;
    n = n < room ? n : room;
    if (n == 0 && c->up_open)
        return NGHTTP2_ERR_DEFERRED;
    if (n > 0)
        memcpy(buf, c->up + c->up_at, n);
    c->up_at += n;
    if (c->up_at == c->up_len && !c->up_open) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (c->trailers) {
            nghttp2_nv nv = {(uint8_t *)"x-last", (uint8_t *)"1", 6, 1, 0};
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            nghttp2_submit_trailer(session, id, &nv, 1);
        }
    }
    return (ssize_t)n;
}

static inline peer *peer_new(fs_h2 *h2, uint32_t window_bytes)
{
    peer *p = calloc(1, sizeof *p);
    REQUIRE(p != NULL);
    p->h2 = h2;
    p->room = PEER_ROOM;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    REQUIRE(nghttp2_session_callbacks_new(&callbacks) == 0 && nghttp2_option_new(&option) == 0);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, peer_on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, peer_on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, peer_on_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, peer_on_close);
    nghttp2_option_set_peer_max_concurrent_streams(option, 1000);
    nghttp2_option_set_no_closed_streams(option, 1);
    REQUIRE(nghttp2_session_client_new2(&p->client, callbacks, p, option) == 0);
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                         {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window_bytes}};
    nghttp2_submit_settings(p->client, 0, settings, 2);
    nghttp2_session_set_local_window_size(p->client, 0, 0, (int32_t)window_bytes);
    return p;
}

static inline void peer_free(peer *p)
{
    for (int i = 0; i < p->n_calls; i++)
        free(p->calls[i].body);
    nghttp2_session_del(p->client);
    free(p);
}

/* Bytes to the server, as the peer's `step` says. */
static inline void peer_feed(peer *p, const uint8_t *data, size_t len)
{
    if (p->record != NULL)
        fwrite(data, 1, len, p->record);
    while (len > 0) {
        size_t n = p->step > 0 && p->step < len ? p->step : len;
        uint8_t *copy = malloc(n); /* so that a sanitizer sees reads past it */
        REQUIRE(copy != NULL);
        memcpy(copy, data, n);
        int rc = fs_h2_recv(p->h2, copy, n, p->now_us);
        free(copy);
        if (rc != 0 && p->recv_rc == 0)
            p->recv_rc = rc;
        data += n;
        len -= n;
    }
}

/* One round: all that the client says, then all that the server says. True when something moved. */
static inline bool peer_round(peer *p)
{
    static _Thread_local uint8_t out[PEER_ROOM];
    bool moved = false;
    const uint8_t *data;
    ssize_t n;
    while ((n = nghttp2_session_mem_send(p->client, &data)) > 0) {
        peer_feed(p, data, (size_t)n);
        moved = true;
    }
    size_t got;
    while ((got = fs_h2_send(p->h2, out, p->room, p->now_us)) > 0) {
        CHECK(got <= p->room);
        p->sent_bytes += got;
        if (!p->deaf)
            CHECK_EQ(nghttp2_session_mem_recv(p->client, out, got), got);
        moved = true;
    }
    return moved;
}

static inline void peer_pump(peer *p)
{
    while (peer_round(p)) {
    }
}

typedef struct peer_request {
    const char *path, *method, *content_type, *timeout, *encoding, *accept, *big,
        *authorization, *traceparent; /* NULL: the usual, or none */
    const uint8_t *up;
    size_t up_len;
    bool open, trailers;
} peer_request;

static inline nghttp2_nv peer_nv(const char *name, const char *value)
{
    return (nghttp2_nv){(uint8_t *)(uintptr_t)name, (uint8_t *)(uintptr_t)value, strlen(name), strlen(value),
                        0};
}

/* Submits a request; peer_pump sends it. */
static inline peer_call *peer_submit(peer *p, peer_request r)
{
    REQUIRE(p->n_calls < PEER_CALLS);
    nghttp2_nv nv[16];
    size_t n = 0;
    nv[n++] = peer_nv(":method", r.method ? r.method : "POST");
    nv[n++] = peer_nv(":scheme", "http");
    nv[n++] = peer_nv(":path", r.path);
    nv[n++] = peer_nv(":authority", "localhost");
    nv[n++] = peer_nv("te", "trailers");
    if (r.content_type == NULL || r.content_type[0] != '\0')
        nv[n++] = peer_nv("content-type", r.content_type ? r.content_type : "application/grpc");
    nv[n++] = peer_nv("user-agent", "peer/1.0");
    if (r.timeout != NULL)
        nv[n++] = peer_nv("grpc-timeout", r.timeout);
    if (r.encoding != NULL)
        nv[n++] = peer_nv("grpc-encoding", r.encoding);
    if (r.accept != NULL)
        nv[n++] = peer_nv("grpc-accept-encoding", r.accept);
    if (r.big != NULL)
        nv[n++] = peer_nv("x-big", r.big);
    if (r.authorization != NULL)
        nv[n++] = peer_nv("authorization", r.authorization);
    if (r.traceparent != NULL)
        nv[n++] = peer_nv("traceparent", r.traceparent);
    peer_call *c = &p->calls[p->n_calls++];
    *c = (peer_call){.up = r.up, .up_len = r.up_len, .up_open = r.open, .trailers = r.trailers};
    nghttp2_data_provider provider = {.read_callback = peer_read};
    c->id = nghttp2_submit_request(p->client, NULL, nv, n, &provider, NULL);
    REQUIRE(c->id > 0);
    return c;
}

/* Forgets calls that are closed, so that a long test fits. */
static inline void peer_forget(peer *p)
{
    for (int i = 0; i < p->n_calls; i++) {
        CHECK(p->calls[i].closed);
        free(p->calls[i].body);
    }
    p->n_calls = 0;
}

/* A gRPC frame around `len` bytes that count up from `seed`. Freed by the caller. */
static inline uint8_t *peer_frame(size_t len, uint8_t seed, size_t *frame_len)
{
    uint8_t *frame = malloc(len + FS_GRPC_PREFIX_BYTES);
    REQUIRE(frame != NULL);
    fs_grpc_prefix_write(frame, false, (uint32_t)len);
    for (size_t i = 0; i < len; i++)
        frame[FS_GRPC_PREFIX_BYTES + i] = (uint8_t)(seed + i * 31 + (i >> 8));
    *frame_len = len + FS_GRPC_PREFIX_BYTES;
    return frame;
}

#endif
