/* h2_client_reply: from HEADERS, DATA and RST_STREAM to answers. Called by nghttp2 from inside
 * fs_h2_client_recv, at a stream's close also from inside fs_h2_client_send.
 *
 * A reply's block is allocated once, from the length prefix: large blocks come from the system, which commits
 * pages only as bytes really arrive. What shows that the answer will not do ends the call at once. */
#include <stdio.h>
#include <string.h>

#include "h2_client_call.h"

enum {
    HEADER_OVERHEAD = 32,     /* as RFC 9113 counts a header list */
    EMPTY_MESSAGE_BYTES = 16, /* so that an empty message has a block, too */
};

/* ---- what an answer amounts to ------------------------------------------------------------------- */

static bool all_sent(const fs_exchange *x)
{
    return x->sent == x->message_bytes + FS_GRPC_PREFIX_BYTES;
}

/* An open call fails for what we found in its answer, in a frame with these flags: x->code and error are set.
 * */
static void give_up(fs_h2_client *h2, fs_exchange *x, uint8_t flags)
{
    if ((flags & NGHTTP2_FLAG_END_STREAM) == 0 || !all_sent(x)) /* otherwise the stream is closing anyway */
        fs_h2_client_reset(h2, x->stream_id, NGHTTP2_CANCEL);
    fs_exchange_finish(h2, x);
}

/* Everything has come that was to come: what it amounts to. */
static void conclude(fs_exchange *x)
{
    if (x->grpc_status == BAD_STATUS) {
        SAY(x, FS_UNKNOWN, "The server gave a grpc-status that is not a number from 0 to 16");
    } else if (x->grpc_status == NO_STATUS) {
        SAY(x, FS_UNKNOWN, "The reply ended without a grpc-status");
    } else if (x->grpc_status != FS_OK) {
        x->code = x->error.code = x->grpc_status; /* error holds the server's words, if there were any */
        x->answered = true;
    } else if (!x->message_whole) {
        SAY(x, FS_INTERNAL, "%s",
            x->prefix_have > 0 ? "The reply ended inside its message"
                               : "The reply has status OK and no message");
    } else {
        x->code = FS_OK;
        x->error.code = FS_OK;
        x->error.len = 0;
        x->error.msg[0] = '\0';
        x->answered = true;
    }
}

/* END_STREAM has come. */
static void end_reply(fs_h2_client *h2, fs_exchange *x)
{
    if (all_sent(x)) {
        x->ended = true; /* the stream closes now, and gives its place back first */
        return;
    }
    /* Answered before all was sent: the server wants no more of it. */
    fs_h2_client_reset(h2, x->stream_id, NGHTTP2_NO_ERROR);
    conclude(x);
    fs_exchange_finish(h2, x);
}

static int status_of_http(int http_status)
{
    switch (http_status) {
    case 400:
        return FS_INTERNAL;
    case 401:
        return FS_UNAUTHENTICATED;
    case 403:
        return FS_PERMISSION_DENIED;
    case 404:
        return FS_UNIMPLEMENTED;
    case 429:
    case 502:
    case 503:
    case 504:
        return FS_UNAVAILABLE;
    default:
        return FS_UNKNOWN;
    }
}

static int status_of_reset(uint32_t http2_code)
{
    switch (http2_code) {
    case NGHTTP2_REFUSED_STREAM:
        return FS_UNAVAILABLE;
    case NGHTTP2_CANCEL:
        return FS_CANCELLED;
    case NGHTTP2_ENHANCE_YOUR_CALM:
        return FS_RESOURCE_EXHAUSTED;
    case NGHTTP2_INADEQUATE_SECURITY:
        return FS_PERMISSION_DENIED;
    default:
        return FS_INTERNAL;
    }
}

/* ---- headers that come in ------------------------------------------------------------------------ */

int fs_h2_client_on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    fs_h2_client *h2 = user;
    h2->block.exchange = NULL;
    if (frame->hd.type == NGHTTP2_HEADERS)
        h2->block.exchange = exchange_of(h2, frame->hd.stream_id);
    h2->block.bytes = 0;
    h2->block.http_status = NO_STATUS;
    h2->block.grpc = false;
    h2->block.shown_len = 0;
    return verdict(h2);
}

static bool is(const uint8_t *name, const char *word, size_t len)
{
    return memcmp(name, word, len) == 0;
}

/* A number of up to three digits, BAD_STATUS if it is something else. */
static int number(const uint8_t *text, size_t len)
{
    int value = 0;
    if (len == 0 || len > 3)
        return BAD_STATUS;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return BAD_STATUS;
        value = value * 10 + (text[i] - '0');
    }
    return value;
}

static void keep_encoding(fs_exchange *x, const uint8_t *value, size_t len)
{
    int encoding = fs_grpc_encoding(value, len);
    x->header_encoding = encoding < 0 ? UINT8_MAX : (uint8_t)encoding;
}

int fs_h2_client_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                           size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
                           void *user)
{
    (void)session;
    (void)flags; /* HPACK's */
    fs_h2_client *h2 = user;
    header_block *block = &h2->block;
    fs_exchange *x = block->exchange;
    if (x == NULL)
        return 0;
    block->bytes += name_len + value_len + HEADER_OVERHEAD;
    if (block->bytes > h2->limits->max_header_bytes) {
        SAY(x, FS_RESOURCE_EXHAUSTED, "Received reply headers larger than max (more than %u bytes)",
            h2->limits->max_header_bytes);
        give_up(h2, x, frame->hd.flags);
        return verdict(h2);
    }
    switch (name_len) {
    case 7:
        if (is(name, ":status", 7))
            block->http_status = number(value, value_len);
        break;
    case 11:
        if (is(name, "grpc-status", 11)) {
            int status = number(value, value_len);
            x->grpc_status = (int16_t)(status <= FS_UNAUTHENTICATED ? status : BAD_STATUS);
        }
        break;
    case 12:
        if (is(name, "grpc-message", 12)) {
            fs_error_seal(&x->error, fs_grpc_percent_decode(value, value_len, x->error.msg, FS_MESSAGE_MAX));
        } else if (is(name, "content-type", 12)) {
            block->grpc = fs_grpc_content_type(value, value_len);
            if (!block->grpc)
                block->shown_len =
                    (uint8_t)fs_h2_client_show(block->shown, sizeof block->shown, value, value_len);
        }
        break;
    case 13:
        if (is(name, "grpc-encoding", 13))
            keep_encoding(x, value, value_len);
        break;
    default:
        break;
    }
    return 0;
}

/* A header block is complete. */
static void end_headers(fs_h2_client *h2, fs_exchange *x, uint8_t flags)
{
    const header_block *block = &h2->block;
    if (block->http_status == NO_STATUS)
        return;
    if (block->http_status < 200) {
        x->grpc_status = NO_STATUS; /* nothing that is said in between counts */
        return;
    }
    x->headers_seen = true;
    if (block->http_status == 200 && block->grpc)
        return;
    if (x->grpc_status > FS_OK) {
        conclude(x); /* the server's own word, whatever HTTP says */
    } else if (block->http_status != 200) {
        SAY(x, status_of_http(block->http_status), "The server answered with HTTP status %d%s%.*s%s",
            block->http_status, block->shown_len > 0 ? " (" : "", block->shown_len, block->shown,
            block->shown_len > 0 ? ")" : "");
    } else {
        SAY(x, FS_UNKNOWN, "The server's answer is not gRPC: its content-type is \"%.*s\"", block->shown_len,
            block->shown);
    }
    give_up(h2, x, flags);
}

/* ---- messages that come in ----------------------------------------------------------------------- */

/* A prefix is complete: makes room for its message. False when the call has ended over it. */
static bool start_message(fs_h2_client *h2, fs_exchange *x, uint8_t flags)
{
    size_t len = fs_grpc_prefix_len(x->prefix);
    if (x->prefix[0] > 1) {
        SAY(x, FS_INTERNAL, "The reply has invalid flags in a gRPC frame (%u)", x->prefix[0]);
    } else if (x->prefix[0] == 1 && x->header_encoding == FS_IDENTITY) {
        SAY(x, FS_INTERNAL, "The reply has the compressed flag set without grpc-encoding");
    } else if (x->prefix[0] == 1 && x->header_encoding == UINT8_MAX) {
        SAY(x, FS_INTERNAL, "The reply is compressed in a way that is not known here");
    } else if (len > h2->limits->max_reply_bytes) {
        SAY(x, FS_RESOURCE_EXHAUSTED, "Received message larger than max (%zu vs. %zu)", len,
            h2->limits->max_reply_bytes);
    } else {
        x->reply = fs_slab_alloc(h2->base.slab, len > 0 ? len : EMPTY_MESSAGE_BYTES);
        if (x->reply != NULL) {
            x->reply_bytes = len;
            return true;
        }
        SAY(x, FS_RESOURCE_EXHAUSTED, "Out of memory for a reply of %zu bytes", len);
    }
    give_up(h2, x, flags);
    return false;
}

static void take_bytes(fs_h2_client *h2, fs_exchange *x, uint8_t flags, const uint8_t *data, size_t len)
{
    while (len > 0) {
        if (x->message_whole) {
            SAY(x, FS_INTERNAL, "The reply has more than one message");
            give_up(h2, x, flags);
            return;
        }
        if (x->prefix_have < FS_GRPC_PREFIX_BYTES) {
            size_t n = FS_GRPC_PREFIX_BYTES - (size_t)x->prefix_have;
            n = n < len ? n : len;
            memcpy(x->prefix + x->prefix_have, data, n);
            x->prefix_have = (uint8_t)(x->prefix_have + n);
            data += n;
            len -= n;
            if (x->prefix_have < FS_GRPC_PREFIX_BYTES || !start_message(h2, x, flags))
                return;
        }
        size_t n = x->reply_bytes - x->filled;
        n = n < len ? n : len;
        memcpy(x->reply + x->filled, data, n);
        x->filled += n;
        data += n;
        len -= n;
        if (x->filled == x->reply_bytes) {
            x->message_whole = true;
            x->reply_encoding = x->prefix[0] != 0 ? x->header_encoding : FS_IDENTITY;
        }
    }
}

/* ---- nghttp2's callbacks ------------------------------------------------------------------------- */

int fs_h2_client_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
                         size_t len, void *user)
{
    (void)session;
    fs_h2_client *h2 = user;
    fs_exchange *x = exchange_of(h2, stream_id);
    if (x != NULL)
        take_bytes(h2, x, flags, data, len);
    return verdict(h2);
}

static void on_goaway(fs_h2_client *h2, const nghttp2_goaway *frame)
{
    char text[SHOWN_BYTES];
    h2->going = true;
    size_t n = fs_h2_client_show(text, sizeof text, frame->opaque_data, frame->opaque_data_len);
    snprintf(h2->goaway, sizeof h2->goaway, "GOAWAY, %.30s%s%s", nghttp2_http2_strerror(frame->error_code),
             n > 0 ? ", " : "", text);
}

int fs_h2_client_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    (void)session;
    fs_h2_client *h2 = user;
    fs_exchange *x;
    switch (frame->hd.type) {
    case NGHTTP2_HEADERS:
        x = h2->block.exchange;
        if (x != NULL)
            end_headers(h2, x, frame->hd.flags);
        x = h2->block.exchange; /* unless it is over by now */
        h2->block.exchange = NULL;
        if (x != NULL && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
            end_reply(h2, x);
        break;
    case NGHTTP2_DATA:
        x = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0 ? exchange_of(h2, frame->hd.stream_id) : NULL;
        if (x != NULL)
            end_reply(h2, x);
        break;
    case NGHTTP2_RST_STREAM:
        x = exchange_of(h2, frame->hd.stream_id);
        if (x != NULL) {
            uint32_t code = frame->rst_stream.error_code;
            SAY(x, status_of_reset(code), "The server reset the call: RST_STREAM, %s",
                nghttp2_http2_strerror(code));
            x->unprocessed = code == NGHTTP2_REFUSED_STREAM && !x->headers_seen;
            fs_exchange_finish(h2, x);
        }
        break;
    case NGHTTP2_SETTINGS:
        h2->settled = true;
        break;
    case NGHTTP2_GOAWAY:
        on_goaway(h2, &frame->goaway);
        break;
    default:
        break;
    }
    return verdict(h2);
}

int fs_h2_client_on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code,
                                 void *user)
{
    (void)session;
    fs_h2_client *h2 = user;
    h2->streams--;
    fs_exchange *x = exchange_of(h2, stream_id);
    if (x == NULL)
        return 0;
    if (x->ended && error_code == NGHTTP2_NO_ERROR) {
        conclude(x);
    } else if (h2->going && !x->headers_seen &&
               (error_code == NGHTTP2_REFUSED_STREAM || stream_id == h2->unsent_id)) {
        SAY(x, FS_UNAVAILABLE, "The server takes no new calls on this connection: %s", h2->goaway);
        x->unprocessed = true;
    } else if (stream_id == h2->unsent_id) {
        SAY(x, FS_RESOURCE_EXHAUSTED, "The call's headers cannot be sent: %s",
            nghttp2_strerror(h2->unsent_error));
    } else if (error_code == NGHTTP2_REFUSED_STREAM && !x->headers_seen) {
        /* A server's own is an RST_STREAM frame: this is what nghttp2 says of headers that it had no memory
         * to send. */
        SAY(x, FS_RESOURCE_EXHAUSTED, "Out of memory");
        x->unprocessed = true;
    } else {
        SAY(x, FS_INTERNAL, "The server's answer broke the rules of HTTP/2: %s",
            h2->rule[0] != '\0' ? h2->rule : nghttp2_http2_strerror(error_code));
        h2->rule[0] = '\0';
    }
    fs_exchange_finish(h2, x);
    return 0;
}
