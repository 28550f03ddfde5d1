/* h2_reply: from answers to frames. fs_rpc_finish and fs_rpc_send on the owner's thread; nghttp2 calls back
 * from inside fs_h2_send.
 *
 * A reply is: HEADERS, DATA, trailers; an error before any DATA is one HEADERS frame with everything in it.
 * DATA is written by fs_h2_on_send_data straight from the reply's block to the caller's buffer: one copy. */
#include <string.h>

#include "h2_call.h"

enum {
    MESSAGE_ROOM = 2048,   /* bytes of text that grpc-message is made from, at most */
    MAX_HEADERS = 5,
    DEFAULT_URGENCY = NGHTTP2_EXTPRI_DEFAULT_URGENCY,
};

/* Names and values that live as long as the program are not copied. */
#define FIXED (NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE)
#define BYTES(text) (uint8_t *)(uintptr_t)(text)
#define HEADER(name, value) \
    (nghttp2_nv) {BYTES(name), BYTES(value), sizeof(name) - 1, sizeof(value) - 1, FIXED}

static nghttp2_nv status_header(int code)
{
    static const char texts[17][3] = {"0", "1", "2",  "3",  "4",  "5",  "6",  "7", "8",
                                      "9", "10", "11", "12", "13", "14", "15", "16"};
    if (code < 0 || code > FS_UNAUTHENTICATED)
        code = FS_UNKNOWN;
    return (nghttp2_nv){BYTES("grpc-status"), BYTES(texts[code]), sizeof "grpc-status" - 1, code < 10 ? 1 : 2,
                        FIXED};
}

static nghttp2_nv message_header(const char *encoded, size_t len)
{
    /* Not for the HPACK table: no two are alike, and they would push out what is. */
    return (nghttp2_nv){BYTES("grpc-message"), BYTES(encoded), sizeof "grpc-message" - 1, len,
                        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_INDEX};
}

static void out_of_memory(fs_h2 *h2)
{
    fs_h2_session_fail(&h2->base, -FS_RESOURCE_EXHAUSTED, NGHTTP2_INTERNAL_ERROR);
}

/* ---- replies on their way -------------------------------------------------------------------- */

/* `one` is out of the queue: frees its bytes. */
static void drop_reply(call *call, reply *one)
{
    fs_slab_free(one->block);
    if (call->rpc.h2 != NULL)
        call->rpc.h2->reply_bytes -= one->len - one->sent;
    fs_call_discharge(call, one->len);
    if (one == &call->first)
        call->first_used = false;
    else
        fs_slab_free(one);
}

void fs_call_drop_replies(call *call)
{
    while (call->replies != NULL) {
        reply *one = call->replies;
        call->replies = one->next;
        drop_reply(call, one);
    }
    call->replies_end = &call->replies;
}

/* Queues a frame. 0, or -FS_RESOURCE_EXHAUSTED: still the caller's. */
static int queue_reply(call *call, void *block, size_t len)
{
    reply *one = &call->first;
    if (call->first_used) {
        one = fs_slab_alloc(call->rpc.h2->base.slab, sizeof *one);
        if (one == NULL)
            return -FS_RESOURCE_EXHAUSTED;
    } else {
        call->first_used = true;
    }
    *one = (reply){NULL, block, len, 0};
    *call->replies_end = one;
    call->replies_end = &one->next;
    fs_call_charge_reply(call, len);
    call->rpc.h2->reply_bytes += len;
    return 0;
}

/* The last DATA frame is on its way: the trailers follow it. */
static int submit_trailers(fs_h2 *h2, call *call)
{
    nghttp2_nv headers[2];
    size_t n = 0;
    headers[n++] = status_header(call->code);
    if (call->message_bytes > 0)
        headers[n++] = message_header(call->message, call->message_bytes);
    return nghttp2_submit_trailer(h2->base.session, call->stream_id, headers, n);
}

static ssize_t on_read(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t room,
                       uint32_t *flags, nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)stream_id;
    (void)buf;
    call *call = source->ptr;
    reply *one = call->replies;
    size_t n = 0;
    if (one == NULL) {
        if (!call->finishing)
            return NGHTTP2_ERR_DEFERRED;
    } else {
        n = one->len - one->sent;
        n = n < room ? n : room;
    }
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (call->finishing && (one == NULL || (one->next == NULL && n == one->len - one->sent))) {
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        if (submit_trailers(user, call) != 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    return (ssize_t)n;
}

int fs_h2_on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t len,
                       nghttp2_data_source *source, void *user)
{
    (void)session;
    (void)frame; /* never padded: no padding callback is set */
    fs_h2 *h2 = user;
    call *call = source->ptr;
    reply *one = call->replies;
    if (one == NULL || len > one->len - one->sent)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* dropped since it was read: the stream is going */
    uint8_t *at = fs_h2_session_put_data(&h2->base, head, len);
    if (at == NULL)
        return NGHTTP2_ERR_WOULDBLOCK;
    memcpy(at, one->block + one->sent, len);
    one->sent += len;
    h2->reply_bytes -= len;
    if (one->sent == one->len) {
        call->replies = one->next;
        if (call->replies == NULL)
            call->replies_end = &call->replies;
        drop_reply(call, one);
    }
    return 0;
}

int fs_h2_on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    fs_h2 *h2 = user;
    if (frame->hd.type != NGHTTP2_HEADERS || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0)
        return 0;
    call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (call == NULL || call->half_closed)
        return 0;
    /* Answered before the client was through: NO_ERROR asks it to stop sending. */
    if (nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR) != 0)
        out_of_memory(h2);
    return 0;
}

/* ---- answers --------------------------------------------------------------------------------- */

/* Response headers, with the queued replies to follow. */
static int submit_start(call *call)
{
    fs_h2 *h2 = call->rpc.h2;
    nghttp2_nv headers[MAX_HEADERS];
    size_t n = 0;
    headers[n++] = HEADER(":status", "200");
    headers[n++] = HEADER("content-type", "application/grpc");
    bool compressed = call->streaming || (call->replies != NULL && call->replies->block[0] != 0);
    if (compressed && call->rpc.reply_encoding == FS_GZIP)
        headers[n++] = HEADER("grpc-encoding", "gzip");
    else if (compressed && call->rpc.reply_encoding == FS_DEFLATE)
        headers[n++] = HEADER("grpc-encoding", "deflate");
    nghttp2_data_provider provider = {.source = {.ptr = call}, .read_callback = on_read};
    call->started = true;
    int rc = nghttp2_submit_response(h2->base.session, call->stream_id, headers, n, &provider);
    if (rc == 0 && call->replies != NULL && call->replies->len > SMALL_REPLY) {
        const nghttp2_extpri turns = {.urgency = DEFAULT_URGENCY, .inc = 1};
        rc = nghttp2_session_change_extpri_stream_priority(h2->base.session, call->stream_id, &turns, 1);
    }
    return rc;
}

static void answer(call *call, const char *http_status, int code, const char *msg, size_t msg_len)
{
    fs_h2 *h2 = call->rpc.h2;
    call->answered = true;
    if (!call->held) {
        fs_call_drop_request(call);
        fs_call_move(call, &h2->serving); /* it times out no more */
    }
    if (h2->base.failed != 0)
        return;
    char encoded[3 * MESSAGE_ROOM];
    size_t len = msg == NULL ? 0 : msg_len < MESSAGE_ROOM ? msg_len : MESSAGE_ROOM;
    len = len > 0 ? fs_grpc_percent_encode(msg, len, encoded, sizeof encoded) : 0;

    if (call->started) {
        if (len > 0) {
            call->message = fs_slab_alloc(h2->base.slab, len);
            if (call->message != NULL) {
                memcpy(call->message, encoded, len);
                call->message_bytes = len;
            }
        }
        call->code = (uint8_t)code;
        call->finishing = true;
        /* An error when nothing is deferred: the reader will find `finishing` by itself. */
        int rc = nghttp2_session_resume_data(h2->base.session, call->stream_id);
        if (rc == NGHTTP2_ERR_NOMEM)
            out_of_memory(h2);
        return;
    }
    nghttp2_nv headers[MAX_HEADERS];
    size_t n = 0;
    headers[n] = HEADER(":status", "200");
    headers[n++].value = BYTES(http_status);
    headers[n++] = HEADER("content-type", "application/grpc");
    headers[n++] = status_header(code);
    if (len > 0)
        headers[n++] = message_header(encoded, len);
    if (call->header_encoding == UINT8_MAX)
        headers[n++] = HEADER("grpc-accept-encoding", "identity,deflate,gzip");
    call->started = true;
    int rc = nghttp2_submit_response(h2->base.session, call->stream_id, headers, n, NULL);
    if (rc != 0 && nghttp2_is_fatal(rc))
        out_of_memory(h2);
}

void fs_call_answer_http(call *call, const char *http_status, int code, const char *msg, size_t msg_len)
{
    const fs_h2_handler *handler = call->rpc.h2->handler;
    if (call->answered || call->stream_gone)
        return;
    if (!call->held && call->rpc.method != NULL && handler->on_refused != NULL)
        handler->on_refused(call->rpc.h2->ctx, &call->rpc, code);
    answer(call, http_status, code, msg, msg_len);
}

void fs_call_answer(call *call, int code, const char *msg, size_t msg_len)
{
    fs_call_answer_http(call, "200", code, msg, msg_len);
}

void fs_rpc_finish(fs_rpc *rpc, int code, const char *msg, size_t msg_len, void *block, size_t len)
{
    call *call = (struct call *)rpc;
    call->held = false;
    if (call->stream_gone) {
        fs_slab_free(block);
        fs_call_free(call);
        return;
    }
    if (call->answered || rpc->h2->base.failed != 0) {
        /* By us, over a frame that broke the rules; or nobody will hear it. The stream is not closed yet. */
        fs_call_drop_request(call);
        fs_slab_free(block);
        return;
    }
    if (code == FS_OK && block == NULL && !call->streaming) {
        static const char none[] = "The method gave no reply";
        answer(call, "200", FS_INTERNAL, none, sizeof none - 1);
        return;
    }
    if (code != FS_OK || block == NULL) {
        fs_slab_free(block);
        answer(call, "200", code, msg, msg_len);
        return;
    }
    fs_call_drop_request(call);
    if (queue_reply(call, block, len) != 0) {
        fs_slab_free(block);
        out_of_memory(rpc->h2);
        return;
    }
    call->answered = true;
    call->finishing = true;
    call->code = FS_OK;
    int rc = call->started ? nghttp2_session_resume_data(rpc->h2->base.session, call->stream_id)
                           : submit_start(call);
    if (nghttp2_is_fatal(rc))
        out_of_memory(rpc->h2);
}

int fs_rpc_send(fs_rpc *rpc, void *block, size_t len)
{
    call *call = (struct call *)rpc;
    if (call->stream_gone || call->answered || rpc->h2->base.failed != 0)
        return -FS_CANCELLED;
    if (queue_reply(call, block, len) != 0)
        return -FS_CANCELLED;
    int rc = call->started ? nghttp2_session_resume_data(rpc->h2->base.session, call->stream_id)
                           : submit_start(call);
    if (nghttp2_is_fatal(rc))
        out_of_memory(rpc->h2); /* the session ends; the queue frees the frame */
    return 0;
}

void fs_rpc_consume(fs_rpc *rpc, size_t len)
{
    call *call = (struct call *)rpc;
    len = len < call->request_bytes ? len : call->request_bytes;
    call->request_bytes -= len;
    fs_call_discharge(call, len);
}
