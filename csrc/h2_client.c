/* h2_client: see h2_client.h.
 *
 * nghttp2 hears of a call only when it may be sent at once: until then it waits in a list of ours, where it
 * costs nothing to give up, and where it is plain that no server has seen it. Nothing that nghttp2 keeps
 * points to a call except its stream's user data, which is cleared the moment the call is over; so a call may
 * end, and its memory be used again, while frames of its stream are still on their way. */
#include "h2_client.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "h2_client_call.h"

enum {
    USUAL_HEADERS = 32,    /* with more of them the list does not fit the stack's array */
    FRAME_TYPE_AT = 3,     /* in a frame's head */
    LEAST_CALL_BYTES = 64, /* on the wire: what no call gets by with much less than */
};

/* Names and values that live as long as the session are not copied. */
#define FIXED (NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE)
#define BYTES(text) (uint8_t *)(uintptr_t)(text)
#define HEADER(name, value) \
    (nghttp2_nv) {BYTES(name), BYTES(value), sizeof(name) - 1, sizeof(value) - 1, FIXED}

enum { METHOD_AT, SCHEME_AT, PATH_AT, AUTHORITY_AT };

/* ---- lists --------------------------------------------------------------------------------------- */

static void append(exchange_list *list, fs_exchange *x)
{
    x->next = NULL;
    x->prev = list->tail;
    *(list->tail != NULL ? &list->tail->next : &list->head) = x;
    list->tail = x;
    list->n++;
}

static void take_out(exchange_list *list, fs_exchange *x)
{
    *(x->prev != NULL ? &x->prev->next : &list->head) = x->next;
    *(x->next != NULL ? &x->next->prev : &list->tail) = x->prev;
    list->n--;
}

/* ---- how calls end ------------------------------------------------------------------------------- */

void fs_h2_client_no_memory(fs_h2_client *h2)
{
    if (h2->why.code == FS_OK)
        fs_fail(&h2->why, FS_RESOURCE_EXHAUSTED, "Out of memory");
    fs_h2_session_fail(&h2->base, -FS_RESOURCE_EXHAUSTED, NGHTTP2_INTERNAL_ERROR);
}

/* Takes a call away from nghttp2 and from us. Its stream may live on, without it. */
static void let_go(fs_h2_client *h2, fs_exchange *x)
{
    if (x->stream_id != 0) {
        take_out(&h2->open, x);
        nghttp2_session_set_stream_user_data(h2->base.session, x->stream_id, NULL);
    } else {
        take_out(&h2->waiting, x);
    }
    if (h2->block.exchange == x)
        h2->block.exchange = NULL;
    x->h2 = NULL;
}

void fs_exchange_finish(fs_h2_client *h2, fs_exchange *x)
{
    let_go(h2, x);
    if (x->code != FS_OK) {
        fs_slab_free(x->reply);
        x->reply = NULL;
        x->reply_bytes = 0;
    }
    h2->handler->on_end(h2->ctx, x);
}

void fs_h2_client_reset(fs_h2_client *h2, int32_t stream_id, uint32_t http2_code)
{
    if (h2->base.failed != 0 || stream_id == h2->blocked_id)
        return; /* the blocked frame finds its call gone, and then nghttp2 resets the stream by itself */
    if (nghttp2_submit_rst_stream(h2->base.session, NGHTTP2_FLAG_NONE, stream_id, http2_code) != 0)
        fs_h2_client_no_memory(h2);
}

/* ---- how the session ends ------------------------------------------------------------------------ */

size_t fs_h2_client_show(char *dst, size_t room, const uint8_t *bytes, size_t len)
{
    size_t at = 0;
    for (size_t i = 0; i < len && bytes[i] != '\r' && bytes[i] != '\n' && room - at > 5; i++) {
        bool plain = bytes[i] >= 0x20 && bytes[i] <= 0x7e && bytes[i] != '"' && bytes[i] != '\\';
        at += (size_t)snprintf(dst + at, room - at, plain ? "%c" : "\\x%02x", bytes[i]);
    }
    dst[at] = '\0';
    return at;
}

static void fail_garbage(fs_h2_client *h2)
{
    char shown[4 * SHOWN_BYTES + 8];
    fs_h2_client_show(shown, sizeof shown, h2->first, h2->first_len);
    bool tls = h2->first_len > 1 && h2->first[0] >= 0x14 && h2->first[0] <= 0x17 && h2->first[1] == 3;
    fs_fail(&h2->why, FS_UNAVAILABLE, "The server does not speak HTTP/2: it answered \"%s\"%s", shown,
            tls ? ", which is TLS: connect with TLS" : "");
    fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_PROTOCOL_ERROR);
}

/* The session has failed: says why, if that is not known yet. */
static void explain(fs_h2_client *h2)
{
    if (h2->why.code != FS_OK)
        return;
    if (h2->base.failed == -FS_RESOURCE_EXHAUSTED)
        fs_fail(&h2->why, FS_RESOURCE_EXHAUSTED, "Out of memory");
    else if (!h2->settled && h2->first_len > 0)
        fail_garbage(h2);
    else
        fs_fail(&h2->why, FS_UNAVAILABLE, "The server broke the rules of HTTP/2%s%s",
                h2->rule[0] != '\0' ? ": " : "", h2->rule);
}

/* The first frame of a server is SETTINGS, and no frame is 64 KiB long: anything else is some other protocol,
 * which the first bytes show. nghttp2 would wait for nine of them. */
static bool speaks_http2(fs_h2_client *h2, const uint8_t *data, size_t len)
{
    size_t n = sizeof h2->first - h2->first_len;
    n = n < len ? n : len;
    memcpy(h2->first + h2->first_len, data, n);
    h2->first_len += n;
    return h2->first[0] == 0 &&
           (h2->first_len <= FRAME_TYPE_AT || h2->first[FRAME_TYPE_AT] == NGHTTP2_SETTINGS);
}

static void end_waiting(fs_h2_client *h2)
{
    fs_exchange *x;
    while ((x = h2->waiting.head) != NULL) {
        SAY(x, FS_UNAVAILABLE, "The server takes no new calls on this connection: %s", h2->goaway);
        x->unprocessed = true;
        fs_exchange_finish(h2, x);
    }
}

/* ---- sending ------------------------------------------------------------------------------------- */

static ssize_t on_read(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t room,
                       uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)buf;
    (void)source;
    const fs_exchange *x = exchange_of(user, stream_id);
    if (x == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* given up, without memory to say so */
    size_t n = x->message_bytes + FS_GRPC_PREFIX_BYTES - x->sent;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (n <= room)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    else
        n = room;
    return (ssize_t)n;
}

/* The next `len` bytes of the prefix and the pieces. */
static void copy_out(fs_exchange *x, uint8_t *dst, size_t len)
{
    x->sent += len;
    size_t before = x->sent - len;
    if (before < FS_GRPC_PREFIX_BYTES) {
        uint8_t prefix[FS_GRPC_PREFIX_BYTES];
        fs_grpc_prefix_write(prefix, x->encoding != FS_IDENTITY, (uint32_t)x->message_bytes);
        size_t n = FS_GRPC_PREFIX_BYTES - before;
        n = n < len ? n : len;
        memcpy(dst, prefix + before, n);
        dst += n;
        len -= n;
    }
    while (len > 0) {
        assert(x->piece < x->n_pieces);
        const fs_slice *piece = &x->pieces[x->piece];
        size_t n = piece->len - x->piece_at;
        n = n < len ? n : len;
        if (n > 0)
            memcpy(dst, piece->data + x->piece_at, n);
        dst += n;
        len -= n;
        x->piece_at += n;
        if (x->piece_at == piece->len) {
            x->piece++;
            x->piece_at = 0;
        }
    }
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t len,
                        nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)source;
    fs_h2_client *h2 = user;
    fs_exchange *x = exchange_of(h2, frame->hd.stream_id);
    h2->blocked_id = 0;
    if (x == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* given up while it was blocked: nghttp2 resets it */
    uint8_t *at = fs_h2_session_put_data(&h2->base, head, len);
    if (at == NULL) {
        h2->blocked_id = frame->hd.stream_id;
        return NGHTTP2_ERR_WOULDBLOCK;
    }
    copy_out(x, at, len);
    return 0;
}

static int on_frame_not_sent(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user)
{
    (void)session;
    fs_h2_client *h2 = user;
    if (frame->hd.type == NGHTTP2_HEADERS) {
        h2->unsent_id = frame->hd.stream_id;
        h2->unsent_error = error;
    }
    return 0;
}

/* Gives a call to nghttp2. 0 or its error. */
static int submit(fs_h2_client *h2, fs_exchange *x)
{
    nghttp2_nv usual[USUAL_HEADERS], *headers = usual;
    char timeout[FS_GRPC_TIMEOUT_ROOM];
    size_t n = FIXED_HEADERS;
    if (x->n_headers > USUAL_HEADERS - FIXED_HEADERS - 2) {
        headers = fs_slab_alloc(h2->base.slab, (x->n_headers + FIXED_HEADERS + 2) * sizeof *headers);
        if (headers == NULL)
            return NGHTTP2_ERR_NOMEM;
    }
    memcpy(headers, h2->head, sizeof h2->head);
    headers[PATH_AT].value = BYTES(x->path.data);
    headers[PATH_AT].valuelen = x->path.len;
    if (x->encoding == FS_GZIP)
        headers[n++] = HEADER("grpc-encoding", "gzip");
    else if (x->encoding == FS_DEFLATE)
        headers[n++] = HEADER("grpc-encoding", "deflate");
    if (x->timeout_us > 0) {
        /* Not for the HPACK table: no two are alike, and they would push out what is. */
        headers[n++] = (nghttp2_nv){BYTES("grpc-timeout"), BYTES(timeout), sizeof "grpc-timeout" - 1,
                                    fs_grpc_timeout_write(x->timeout_us, timeout),
                                    NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_INDEX};
    }
    for (uint32_t i = 0; i < x->n_headers; i++) {
        const fs_header *header = &x->headers[i];
        headers[n++] = (nghttp2_nv){BYTES(header->name.data), BYTES(header->value.data), header->name.len,
                                    header->value.len, NGHTTP2_NV_FLAG_NONE};
    }
    const nghttp2_data_provider provider = {.read_callback = on_read};
    int32_t id = nghttp2_submit_request(h2->base.session, NULL, headers, n, &provider, x);
    if (headers != usual)
        fs_slab_free(headers);
    if (id < 0)
        return id;
    take_out(&h2->waiting, x);
    x->stream_id = id;
    append(&h2->open, x);
    h2->streams++;
    return 0;
}

/* How many streams the server allows, before it has said so as many as nghttp2 dares. */
static uint32_t allowed(const fs_h2_client *h2)
{
    return nghttp2_session_get_remote_settings(h2->base.session, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

static bool may_submit(const fs_h2_client *h2)
{
    return h2->waiting.head != NULL && h2->base.failed == 0 && !h2->going && h2->streams < allowed(h2);
}

/* No more than there is room for, so that what waits, waits here. */
static void submit_waiting(fs_h2_client *h2)
{
    for (size_t most = (h2->base.out_room - h2->base.out_len) / LEAST_CALL_BYTES + 1; most > 0; most--) {
        if (!may_submit(h2))
            break;
        fs_exchange *x = h2->waiting.head;
        int rc = submit(h2, x);
        if (rc == 0)
            continue;
        x->unprocessed = true;
        if (rc == NGHTTP2_ERR_NOMEM)
            SAY(x, FS_RESOURCE_EXHAUSTED, "Out of memory");
        else
            SAY(x, FS_UNAVAILABLE, "The connection takes no new calls: %s", nghttp2_strerror(rc));
        fs_exchange_finish(h2, x);
    }
}

/* ---- life ---------------------------------------------------------------------------------------- */

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user)
{
    (void)session;
    (void)frame;
    fs_h2_client *h2 = user;
    if (h2->rule[0] == '\0')
        snprintf(h2->rule, sizeof h2->rule, "%s", nghttp2_strerror(error));
    return verdict(h2);
}

/* nghttp2 has words for some errors. */
static int on_error(nghttp2_session *session, int error, const char *text, size_t len, void *user)
{
    (void)session;
    (void)error;
    fs_h2_client *h2 = user;
    fs_h2_client_show(h2->rule, sizeof h2->rule, (const uint8_t *)text, len);
    return 0;
}

static int make_session(fs_h2_client *h2)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = fs_h2_session_options();
    int rc = -FS_RESOURCE_EXHAUSTED;
    if (option == NULL || nghttp2_session_callbacks_new(&callbacks) != 0)
        goto out;
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, fs_h2_client_on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, fs_h2_client_on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, fs_h2_client_on_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, fs_h2_client_on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, fs_h2_client_on_stream_close);
    nghttp2_session_callbacks_set_on_frame_not_send_callback(callbacks, on_frame_not_sent);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, on_send_data);
    nghttp2_session_callbacks_set_error_callback2(callbacks, on_error);
    if (nghttp2_session_client_new3(&h2->base.session, callbacks, h2, option, &h2->base.mem) != 0)
        goto out;
    const fs_h2_client_limits *limits = h2->limits;
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, limits->window_bytes},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, limits->max_header_bytes},
    };
    if (nghttp2_submit_settings(h2->base.session, NGHTTP2_FLAG_NONE, settings,
                                sizeof settings / sizeof *settings) != 0 ||
        nghttp2_session_set_local_window_size(h2->base.session, NGHTTP2_FLAG_NONE, 0,
                                              (int32_t)limits->window_bytes) != 0)
        goto out;
    rc = 0;
out:
    nghttp2_option_del(option);
    nghttp2_session_callbacks_del(callbacks);
    return rc;
}

fs_h2_client *fs_h2_client_new(const fs_h2_client_limits *limits, const fs_h2_client_handler *handler,
                               void *ctx, fs_slice authority, fs_slice scheme, fs_slab *slab, int64_t now_us)
{
    fs_h2_client *h2 = fs_slab_alloc(slab, sizeof *h2);
    if (h2 == NULL)
        return NULL;
    memset(h2, 0, sizeof *h2);
    fs_h2_session_init(&h2->base, slab);
    h2->limits = limits;
    h2->handler = handler;
    h2->ctx = ctx;
    h2->heard_us = now_us;
    size_t n = 0;
    h2->head[n++] = HEADER(":method", "POST");
    h2->head[n++] = HEADER(":scheme", "");
    h2->head[n++] = HEADER(":path", "");
    h2->head[n++] = HEADER(":authority", "");
    h2->head[n++] = HEADER("te", "trailers");
    h2->head[n++] = HEADER("content-type", "application/grpc");
    h2->head[n++] = HEADER("user-agent", "fastserve-client/1");
    h2->head[n++] = HEADER("grpc-accept-encoding", "identity,deflate,gzip");
    h2->head[SCHEME_AT].value = BYTES(scheme.data);
    h2->head[SCHEME_AT].valuelen = scheme.len;
    h2->head[PATH_AT].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME; /* the caller's, perhaps gone before it is sent */
    h2->head[AUTHORITY_AT].value = BYTES(authority.data);
    h2->head[AUTHORITY_AT].valuelen = authority.len;
    if (make_session(h2) != 0) {
        fs_h2_session_clear(&h2->base);
        fs_slab_free(h2);
        return NULL;
    }
    return h2;
}

void fs_h2_client_free(fs_h2_client *h2, const fs_error *why)
{
    if (h2 == NULL)
        return;
    static const char closed[] = "The connection was closed";
    h2->ending = true;
    if (h2->base.failed != 0)
        explain(h2);
    const fs_error *told = h2->why.code != FS_OK ? &h2->why : why != NULL && why->code != FS_OK ? why : NULL;
    for (;;) {
        fs_exchange *x = h2->open.head != NULL ? h2->open.head : h2->waiting.head;
        if (x == NULL)
            break;
        if (told != NULL)
            x->code = -fs_fail_text(&x->error, (enum fs_code)told->code, told->msg, told->len);
        else
            x->code = -fs_fail_text(&x->error, FS_UNAVAILABLE, closed, sizeof closed - 1);
        x->unprocessed = x->stream_id == 0;
        fs_exchange_finish(h2, x);
    }
    fs_h2_session_clear(&h2->base);
    fs_slab_free(h2);
}

/* ---- calls --------------------------------------------------------------------------------------- */

int fs_h2_client_start(fs_h2_client *h2, fs_exchange *x)
{
    if (!fs_h2_client_accepts(h2))
        return -FS_UNAVAILABLE;
    x->code = FS_OK;
    x->error.code = FS_OK;
    x->error.len = 0;
    x->error.msg[0] = '\0';
    x->reply = NULL;
    x->reply_bytes = 0;
    x->reply_encoding = FS_IDENTITY;
    x->unprocessed = false;
    x->answered = false;
    x->h2 = h2;
    x->stream_id = 0;
    x->piece = 0;
    x->piece_at = 0;
    x->sent = 0;
    x->prefix_have = 0;
    x->header_encoding = FS_IDENTITY;
    x->grpc_status = NO_STATUS;
    x->message_whole = false;
    x->headers_seen = false;
    x->ended = false;
    x->filled = 0;
    h2->begun = h2->begun || fs_h2_client_active(h2) == 0;
    append(&h2->waiting, x);
    return 0;
}

void fs_h2_client_cancel(fs_h2_client *h2, fs_exchange *x)
{
    if (x->h2 != h2)
        return; /* over already */
    int32_t id = x->stream_id;
    let_go(h2, x);
    fs_slab_free(x->reply);
    x->reply = NULL;
    x->reply_bytes = 0;
    if (id != 0 && !h2->ending)
        fs_h2_client_reset(h2, id, NGHTTP2_CANCEL);
}

/* ---- bytes in, bytes out, time ------------------------------------------------------------------- */

static void tell_time(fs_h2_client *h2, int64_t now_us)
{
    if (h2->begun) {
        h2->begun = false;
        h2->heard_us = now_us;
    }
}

int fs_h2_client_recv(fs_h2_client *h2, const uint8_t *data, size_t len, int64_t now_us)
{
    if (h2->base.failed != 0)
        return h2->base.failed;
    h2->heard_us = now_us;
    h2->ping_us = 0;
    if (!h2->settled && len > 0 && !speaks_http2(h2, data, len)) {
        fail_garbage(h2);
        return h2->base.failed;
    }
    int rc = fs_h2_session_recv(&h2->base, data, len);
    /* nghttp2 ends the session by itself over many errors; then it allows no more requests. */
    if (h2->base.failed == 0 && !h2->going && !nghttp2_session_check_request_allowed(h2->base.session) &&
        nghttp2_session_get_next_stream_id(h2->base.session) <= INT32_MAX) {
        fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_PROTOCOL_ERROR);
        rc = h2->base.failed;
    }
    if (h2->base.failed != 0)
        explain(h2);
    else if (h2->going)
        end_waiting(h2);
    return rc;
}

size_t fs_h2_client_send(fs_h2_client *h2, uint8_t *dst, size_t room, int64_t now_us)
{
    tell_time(h2, now_us);
    fs_h2_session_begin(&h2->base, dst, room);
    do {
        submit_waiting(h2);
        fs_h2_session_fill(&h2->base);
    } while (may_submit(h2) && h2->base.out_len < room && h2->blocked_id == 0);
    /* After a GOAWAY of the server's, only this shows that nghttp2 has ended the session by itself. */
    if (h2->base.failed == 0 && h2->open.n > 0 && fs_h2_session_done(&h2->base))
        h2->base.failed = -FS_UNAVAILABLE;
    if (h2->base.failed != 0)
        explain(h2);
    return h2->base.out_len;
}

int64_t fs_h2_client_tick(fs_h2_client *h2, int64_t now_us)
{
    const fs_h2_client_limits *limits = h2->limits;
    tell_time(h2, now_us);
    if (h2->base.failed != 0)
        return h2->base.failed;
    if (limits->keepalive_us <= 0 || fs_h2_client_active(h2) == 0) {
        h2->ping_us = 0;
        return INT64_MAX;
    }
    if (h2->ping_us == 0 && h2->heard_us + limits->keepalive_us <= now_us) {
        if (nghttp2_submit_ping(h2->base.session, NGHTTP2_FLAG_NONE, NULL) != 0)
            fs_h2_client_no_memory(h2);
        h2->ping_us = now_us;
    }
    int64_t until = h2->ping_us != 0 ? h2->ping_us + limits->keepalive_timeout_us
                                     : h2->heard_us + limits->keepalive_us;
    if (until <= now_us) {
        fs_fail(&h2->why, FS_UNAVAILABLE, "The server has not answered a PING for %" PRId64 " ms",
                (now_us - h2->ping_us) / 1000);
        fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_NO_ERROR);
    }
    return h2->base.failed != 0 ? h2->base.failed : until;
}

/* ---- questions ----------------------------------------------------------------------------------- */

const fs_error *fs_h2_client_why(const fs_h2_client *h2)
{
    return &h2->why;
}

bool fs_h2_client_ready(const fs_h2_client *h2)
{
    return h2->settled;
}

bool fs_h2_client_accepts(const fs_h2_client *h2)
{
    /* A stream number for this one and each that waits. */
    return h2->base.failed == 0 && !h2->going && !h2->ending &&
           nghttp2_session_get_next_stream_id(h2->base.session) + 2 * (uint64_t)h2->waiting.n <= INT32_MAX;
}

bool fs_h2_client_done(const fs_h2_client *h2)
{
    return fs_h2_session_done(&h2->base);
}

uint32_t fs_h2_client_active(const fs_h2_client *h2)
{
    return h2->open.n + h2->waiting.n;
}

uint32_t fs_h2_client_room(const fs_h2_client *h2)
{
    uint64_t taken = (uint64_t)h2->streams + h2->waiting.n;
    uint32_t most = allowed(h2);
    return fs_h2_client_accepts(h2) && most > taken ? (uint32_t)(most - taken) : 0;
}
