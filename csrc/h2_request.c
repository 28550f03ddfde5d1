/* h2_request: from HEADERS and DATA to calls for the handler. Called by nghttp2 from inside fs_h2_recv.
 *
 * A request that cannot be served is answered at the first byte that shows it, and what follows of it is
 * thrown away as it comes. The message buffer is allocated once, from the length prefix, and charged at that
 * moment: large blocks come from the system, which commits pages only as bytes really arrive. */
#include <stdio.h>
#include <string.h>

#include "h2_call.h"

enum {
    NO_TIMEOUT = -1,
    BAD_TIMEOUT = -2,
    HEADER_OVERHEAD = 32,       /* as RFC 9113 counts a header list */
    HOPELESS = 8,               /* a header list this many times too long is not even read to its end */
    EMPTY_MESSAGE_BYTES = 16,   /* so that an empty message has a block, too */
};

static call *call_of(nghttp2_session *session, int32_t stream_id)
{
    return nghttp2_session_get_stream_user_data(session, stream_id);
}

#define ANSWER(call, code, text) fs_call_answer(call, code, text, sizeof(text) - 1)

/* What the callbacks for input return: once the session has failed, the rest of the input is not read. */
static int verdict(const fs_h2 *h2)
{
    return h2->base.failed != 0 ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

/* Takes a token for a frame that costs us and gives nothing. */
static int spend_chatter(fs_h2 *h2)
{
    if (!fs_h2_spend(h2, &h2->chatter, h2->limits->chatter_burst, h2->limits->chatter_per_s))
        fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_ENHANCE_YOUR_CALM);
    return verdict(h2);
}

/* ---- headers ----------------------------------------------------------------------------------- */

int fs_h2_on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    fs_h2 *h2 = user;
    if (h2->base.failed != 0 || frame->hd.type != NGHTTP2_HEADERS)
        return verdict(h2);
    h2->block = (header_block){.timeout_us = NO_TIMEOUT};
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    call *call = fs_slab_alloc(h2->base.slab, sizeof *call);
    if (call == NULL)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    memset(call, 0, offsetof(struct call, path_room));
    call->rpc.h2 = h2;
    call->rpc.conn = h2->conn;
    call->rpc.deadline_us = INT64_MAX;
    call->rpc.path.data = call->path_room;
    call->budget = h2->budget;
    call->stream_id = frame->hd.stream_id;
    call->started_us = h2->now_us;
    call->replies_end = &call->replies;
    if (nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, call) != 0) {
        fs_slab_free(call);
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    fs_call_move(call, &h2->receiving);
    h2->streams++;
    h2->block.call = call;
    return 0;
}

static void keep_path(fs_h2 *h2, const uint8_t *value, size_t len)
{
    call *call = h2->block.call;
    uint8_t *room = call->path_room;
    if (len > sizeof call->path_room) {
        room = fs_slab_alloc(h2->base.slab, len);
        if (room == NULL) {
            h2->block.out_of_memory = true;
            return;
        }
    }
    memcpy(room, value, len);
    call->rpc.path = (fs_slice){room, len};
}

static void show(header_block *block, const uint8_t *value, size_t len)
{
    block->shown_len = (uint8_t)(len < sizeof block->shown ? len : sizeof block->shown);
    memcpy(block->shown, value, block->shown_len);
}

static bool is(const uint8_t *name, const char *word, size_t len)
{
    return memcmp(name, word, len) == 0;
}

int fs_h2_on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                    size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags, void *user)
{
    (void)session;
    (void)flags;
    fs_h2 *h2 = user;
    header_block *block = &h2->block;
    if (frame->hd.type != NGHTTP2_HEADERS)
        return 0;
    block->bytes += name_len + value_len + HEADER_OVERHEAD;
    if (block->bytes > h2->limits->max_header_bytes)
        return block->bytes > (size_t)h2->limits->max_header_bytes * HOPELESS
                   ? NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
                   : 0;
    if (block->call == NULL)
        return 0;
    fs_sticky_keep(h2->limits->sticky, (fs_slice){name, name_len}, (fs_slice){value, value_len},
                   &block->call->rpc.kept);
    switch (name_len) {
    case 5:
        if (is(name, ":path", 5) && block->call->rpc.path.len == 0)
            keep_path(h2, value, value_len);
        break;
    case 7:
        if (is(name, ":method", 7))
            block->post = value_len == 4 && is(value, "POST", 4);
        break;
    case 11:
        if (is(name, "traceparent", 11) && (fs_trace_wanted(h2->limits->trace) & FS_TRACE_SPANS) != 0)
            fs_traceparent_take((fs_slice){value, value_len}, &block->call->rpc.parent);
        break;
    case 12:
        if (is(name, "content-type", 12)) {
            block->grpc = fs_grpc_content_type(value, value_len);
            if (!block->grpc)
                show(block, value, value_len);
        } else if (is(name, "grpc-timeout", 12)) {
            block->timeout_us = fs_grpc_timeout_us(value, value_len);
            if (block->timeout_us < 0)
                block->timeout_us = BAD_TIMEOUT;
        }
        break;
    case 13:
        if (is(name, "grpc-encoding", 13)) {
            block->encoding = fs_grpc_encoding(value, value_len);
            if (block->encoding < 0)
                show(block, value, value_len);
        } else if (is(name, "authorization", 13)) {
            fs_bearer_take(&h2->bearers, h2->base.slab, (fs_slice){value, value_len},
                           &block->call->rpc.bearer);
        }
        break;
    case 20:
        if (is(name, "grpc-accept-encoding", 20))
            block->accept = (uint8_t)fs_grpc_accept(value, value_len);
        break;
    default:
        break;
    }
    return 0;
}

/* The head of a request is complete: answers what cannot be served, hands streaming calls over. */
static void open_call(fs_h2 *h2, call *call)
{
    header_block *block = &h2->block;
    char text[160];
    fs_error err;

    if (block->bytes > h2->limits->max_header_bytes) {
        int n = snprintf(text, sizeof text, "Received request headers larger than max (%zu vs. %u)",
                         block->bytes, h2->limits->max_header_bytes);
        fs_call_answer(call, FS_RESOURCE_EXHAUSTED, text, (size_t)n);
        return;
    }
    if (!block->post) {
        static const char why[] = "gRPC requests are POST";
        fs_call_answer_http(call, "405", FS_INTERNAL, why, sizeof why - 1);
        return;
    }
    if (!block->grpc) {
        int n = snprintf(text, sizeof text, "Invalid gRPC request content-type \"%.*s\"", block->shown_len,
                         block->shown);
        fs_call_answer_http(call, "415", FS_INVALID_ARGUMENT, text, (size_t)n);
        return;
    }
    if (block->out_of_memory) {
        ANSWER(call, FS_RESOURCE_EXHAUSTED, "Out of memory");
        return;
    }
    if (fs_call_charge(call, CALL_BYTES, &err) != 0) {
        fs_call_answer(call, err.code, err.msg, err.len);
        return;
    }
    if (block->encoding < 0) {
        int n = snprintf(text, sizeof text, "Unknown grpc-encoding \"%.*s\"", block->shown_len, block->shown);
        call->header_encoding = UINT8_MAX; /* the answer lists those that are known */
        fs_call_answer(call, FS_UNIMPLEMENTED, text, (size_t)n);
        return;
    }
    if (block->timeout_us == BAD_TIMEOUT) {
        ANSWER(call, FS_INTERNAL, "Malformed grpc-timeout");
        return;
    }
    if (block->timeout_us == 0) {
        ANSWER(call, FS_DEADLINE_EXCEEDED, "Deadline Exceeded");
        return;
    }
    if (block->timeout_us > 0)
        call->rpc.deadline_us = h2->now_us + block->timeout_us;
    call->header_encoding = (uint8_t)block->encoding;
    call->rpc.reply_encoding = block->accept;

    bool streaming = false;
    call->rpc.method = h2->handler->lookup(h2->ctx, call->rpc.path.data, call->rpc.path.len, &streaming);
    if (call->rpc.method == NULL) {
        fs_call_answer(call, FS_UNIMPLEMENTED, NULL, 0);
        return;
    }
    call->streaming = streaming;
    if (streaming) {
        call->rpc.encoding = call->header_encoding;
        call->rpc.arrived_us = h2->now_us;
        call->held = true;
        fs_call_move(call, &h2->serving);
        h2->handler->on_open(h2->ctx, &call->rpc);
    }
}

/* ---- messages ---------------------------------------------------------------------------------- */

/* A prefix is complete: makes room for its message. False when the call was answered with why not. */
static bool start_message(fs_h2 *h2, call *call)
{
    fs_error err;
    size_t len = fs_grpc_prefix_len(call->prefix);
    if (call->prefix[0] > 1) {
        ANSWER(call, FS_INTERNAL, "Invalid flags in a gRPC frame");
        return false;
    }
    if (call->prefix[0] == 1 && call->header_encoding == FS_IDENTITY) {
        ANSWER(call, FS_INTERNAL, "Compressed flag set without grpc-encoding");
        return false;
    }
    if (len > h2->limits->max_message_bytes) {
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "Received message larger than max (%zu vs. %zu)", len,
                h2->limits->max_message_bytes);
        fs_call_answer(call, err.code, err.msg, err.len);
        return false;
    }
    if (fs_call_charge(call, len, &err) != 0) {
        fs_call_answer(call, err.code, err.msg, err.len);
        return false;
    }
    call->rpc.message = fs_slab_alloc(h2->base.slab, len > 0 ? len : EMPTY_MESSAGE_BYTES);
    if (call->rpc.message == NULL) {
        fs_call_discharge(call, len);
        ANSWER(call, FS_RESOURCE_EXHAUSTED, "Out of memory");
        return false;
    }
    call->rpc.message_len = len;
    call->request_bytes += len;
    call->filled = 0;
    return true;
}

/* A message is complete. */
static void end_message(fs_h2 *h2, call *call)
{
    if (!call->streaming) {
        call->whole = true;
        call->rpc.encoding = call->prefix[0] != 0 ? call->header_encoding : FS_IDENTITY;
        return;
    }
    uint8_t *message = call->rpc.message;
    call->rpc.message = NULL;
    call->prefix_have = 0;
    h2->handler->on_message(h2->ctx, &call->rpc, message, call->rpc.message_len, call->prefix[0] != 0);
}

static void take_bytes(fs_h2 *h2, call *call, const uint8_t *data, size_t len)
{
    while (len > 0 && !call->answered) {
        if (call->whole) {
            ANSWER(call, FS_INTERNAL, "More than one message in a unary request");
            return;
        }
        if (call->prefix_have < FS_GRPC_PREFIX_BYTES) {
            size_t n = FS_GRPC_PREFIX_BYTES - (size_t)call->prefix_have;
            n = n < len ? n : len;
            memcpy(call->prefix + call->prefix_have, data, n);
            call->prefix_have = (uint8_t)(call->prefix_have + n);
            data += n;
            len -= n;
            if (call->prefix_have < FS_GRPC_PREFIX_BYTES || !start_message(h2, call))
                return;
        }
        size_t n = call->rpc.message_len - call->filled;
        n = n < len ? n : len;
        memcpy(call->rpc.message + call->filled, data, n);
        call->filled += n;
        data += n;
        len -= n;
        if (call->filled == call->rpc.message_len)
            end_message(h2, call);
    }
}

/* END_STREAM: the request is complete, or it never will be. */
static void end_request(fs_h2 *h2, call *call)
{
    call->half_closed = true;
    if (call->answered)
        return;
    if (!call->whole && call->prefix_have > 0) {
        ANSWER(call, FS_INTERNAL, "The request ends inside a gRPC frame");
        return;
    }
    if (call->streaming) {
        h2->handler->on_half_close(h2->ctx, &call->rpc);
        return;
    }
    if (!call->whole) {
        ANSWER(call, FS_INTERNAL, "No message in a unary request");
        return;
    }
    call->rpc.arrived_us = h2->now_us;
    call->held = true;
    fs_call_move(call, &h2->serving);
    h2->handler->on_call(h2->ctx, &call->rpc);
}

/* ---- nghttp2's callbacks --------------------------------------------------------------------------- */

int fs_h2_on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *head, void *user)
{
    (void)session;
    fs_h2 *h2 = user;
    switch (head->type) {
    case NGHTTP2_DATA:
    case NGHTTP2_HEADERS:
    case NGHTTP2_RST_STREAM:
    case NGHTTP2_GOAWAY:
    case NGHTTP2_WINDOW_UPDATE:
    case NGHTTP2_CONTINUATION:
        return verdict(h2);
    case NGHTTP2_PING:
    case NGHTTP2_SETTINGS:
        return (head->flags & NGHTTP2_FLAG_ACK) != 0 ? verdict(h2) : spend_chatter(h2);
    default: /* PRIORITY, and what is not even known here */
        return spend_chatter(h2);
    }
}

int fs_h2_on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data, size_t len,
                  void *user)
{
    (void)flags;
    fs_h2 *h2 = user;
    call *call = call_of(session, stream_id);
    if (call != NULL)
        take_bytes(h2, call, data, len);
    return verdict(h2);
}

int fs_h2_on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    fs_h2 *h2 = user;
    call *call;
    switch (frame->hd.type) {
    case NGHTTP2_DATA:
        if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
            call = call_of(session, frame->hd.stream_id);
            if (call != NULL)
                end_request(h2, call);
        } else if (frame->hd.length <= frame->data.padlen) {
            return spend_chatter(h2);
        }
        break;
    case NGHTTP2_HEADERS:
        if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
            call = h2->block.call;
            h2->block.call = NULL;
            if (call != NULL)
                open_call(h2, call);
        } else {
            call = call_of(session, frame->hd.stream_id);
        }
        if (call != NULL && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
            end_request(h2, call);
        break;
    default:
        break;
    }
    return verdict(h2);
}

int fs_h2_on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *user)
{
    (void)session;
    (void)frame;
    (void)error;
    return spend_chatter(user);
}

int fs_h2_on_stream_close(nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *user)
{
    fs_h2 *h2 = user;
    call *call = call_of(session, stream_id);
    if (call == NULL)
        return 0;
    if (h2->block.call == call)
        h2->block.call = NULL;
    h2->streams--;

    bool served = call->answered && error_code == NGHTTP2_NO_ERROR;
    call->stream_gone = true;
    fs_call_drop_replies(call);
    if (call->held) {
        fs_call_move(call, &h2->detached);
        /* Relaxed: a hint; the handler's own queues order everything else. */
        atomic_store_explicit(&call->rpc.cancelled, true, memory_order_relaxed);
        h2->handler->on_cancel(h2->ctx, &call->rpc); /* may finish the call, which frees it */
    } else {
        fs_call_free(call);
    }
    if (served) {
        fs_h2_earn(&h2->resets, h2->limits->reset_burst);
        fs_h2_earn(&h2->chatter, h2->limits->chatter_burst);
        return 0;
    }
    /* Whoever sent the RST_STREAM: a peer can make us reset as well as it can itself. Not an error to
     * nghttp2, which may be sending: the next frame that comes finds the session failed. */
    if (!fs_h2_spend(h2, &h2->resets, h2->limits->reset_burst, h2->limits->reset_per_s))
        fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_ENHANCE_YOUR_CALM);
    return 0;
}
