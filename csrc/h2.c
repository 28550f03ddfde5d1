/* h2: see h2.h. The session itself: its life, its limits, its clock, and the way out for bytes.
 *
 * nghttp2 does HTTP/2 and calls back into h2_request.c with what came, and into h2_reply.c for what goes.
 * What it does not do is here: token buckets against peers that reset or chatter, time-outs, byte budgets,
 * and a send that fills the caller's buffer so that a reply is copied exactly once. */
#include "h2.h"

#include <string.h>

#include "h2_call.h"

/* A later fix of 1.52 brought this, and distributions carry it back; weak, so that a libnghttp2 without it
 * still loads. */
__attribute__((weak)) void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *option, uint64_t burst,
                                                                       uint64_t rate);

enum {
    TOKEN = 1000000,           /* one token of a bucket */
    STALL_STEP_BYTES = 4096,   /* who takes less than this in stall_timeout_us is stalled all the same */
    PAST_HELP_US = 1000000000, /* refilling for longer than this changes nothing; keeps products small */
};

/* ---- budgets ----------------------------------------------------------------------------- */

bool fs_budget_take(fs_budget *budget, size_t bytes)
{
    /* Relaxed: only the sum matters, nothing is published by it. */
    size_t before = atomic_fetch_add_explicit(&budget->used, bytes, memory_order_relaxed);
    if (before <= budget->limit && bytes <= budget->limit - before)
        return true;
    atomic_fetch_sub_explicit(&budget->used, bytes, memory_order_relaxed);
    return false;
}

void fs_budget_give(fs_budget *budget, size_t bytes)
{
    atomic_fetch_sub_explicit(&budget->used, bytes, memory_order_relaxed); /* relaxed: as above */
}

int fs_call_charge(call *call, size_t bytes, fs_error *err)
{
    fs_h2 *h2 = call->rpc.h2;
    size_t limit = h2->limits->max_conn_bytes;
    if (h2->used_bytes > limit || bytes > limit - h2->used_bytes)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                       "Too many bytes in flight on this connection (%zu + %zu vs. %zu)", h2->used_bytes,
                       bytes, limit);
    if (!fs_budget_take(call->budget, bytes))
        return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                       "Too many bytes in flight in the server (%zu more vs. %zu)", bytes,
                       call->budget->limit);
    h2->used_bytes += bytes;
    call->rpc.charged_bytes += bytes;
    return 0;
}

int fs_rpc_charge(fs_rpc *rpc, size_t bytes, fs_error *err)
{
    call *call = (struct call *)rpc;
    if (rpc->h2 == NULL)
        return 0; /* nobody waits for it any more: it will be dropped before it runs */
    int rc = fs_call_charge(call, bytes, err);
    if (rc == 0)
        call->request_bytes += bytes;
    return rc;
}

void fs_call_charge_reply(call *call, size_t bytes)
{
    /* Relaxed: as in fs_budget_take. */
    atomic_fetch_add_explicit(&call->budget->used, bytes, memory_order_relaxed);
    call->rpc.h2->used_bytes += bytes;
    call->rpc.charged_bytes += bytes;
}

void fs_call_discharge(call *call, size_t bytes)
{
    if (call->rpc.h2 != NULL)
        call->rpc.h2->used_bytes -= bytes;
    call->rpc.charged_bytes -= bytes;
    fs_budget_give(call->budget, bytes);
}

/* ---- calls ------------------------------------------------------------------------------- */

void fs_call_move(call *call, call_list *to)
{
    call_list *from = call->list;
    if (from != NULL) {
        *(call->prev != NULL ? &call->prev->next : &from->head) = call->next;
        *(call->next != NULL ? &call->next->prev : &from->tail) = call->prev;
    }
    call->list = to;
    call->next = NULL;
    call->prev = NULL;
    if (to != NULL) {
        call->prev = to->tail;
        *(to->tail != NULL ? &to->tail->next : &to->head) = call;
        to->tail = call;
    }
}

void fs_call_drop_request(call *call)
{
    fs_slab_free(call->rpc.message);
    call->rpc.message = NULL;
    fs_call_discharge(call, call->request_bytes);
    call->request_bytes = 0;
}

void fs_call_free(call *call)
{
    fs_call_move(call, NULL);
    fs_call_drop_request(call);
    fs_call_drop_replies(call);
    fs_slab_free(call->message);
    if (call->rpc.path.data != call->path_room)
        fs_slab_free((void *)(uintptr_t)call->rpc.path.data);
    fs_call_discharge(call, call->rpc.charged_bytes);
    fs_slab_free(call);
}

/* ---- token buckets ----------------------------------------------------------------------- */

bool fs_h2_spend(fs_h2 *h2, bucket *bucket, uint32_t burst, uint32_t per_s)
{
    int64_t full = (int64_t)burst * TOKEN;
    int64_t since = h2->now_us - bucket->filled_us;
    if (since > 0) {
        bucket->level += (since < PAST_HELP_US ? since : PAST_HELP_US) * per_s;
        bucket->level = bucket->level < full ? bucket->level : full;
        bucket->filled_us = h2->now_us;
    }
    if (bucket->level < TOKEN)
        return false;
    bucket->level -= TOKEN;
    return true;
}

void fs_h2_earn(bucket *bucket, uint32_t burst)
{
    int64_t full = (int64_t)burst * TOKEN;
    if (bucket->level <= full - TOKEN)
        bucket->level += TOKEN;
}

/* ---- life -------------------------------------------------------------------------------- */

static void session_del(fs_h2 *h2)
{
    fs_h2_session_clear(&h2->base);
    fs_bearer_forget(&h2->bearers);
    fs_slab_free(h2);
}

static int make_session(fs_h2 *h2)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = fs_h2_session_options();
    int rc = -FS_RESOURCE_EXHAUSTED;
    if (option == NULL || nghttp2_session_callbacks_new(&callbacks) != 0)
        goto out;
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, fs_h2_on_begin_frame);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, fs_h2_on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, fs_h2_on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, fs_h2_on_frame);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, fs_h2_on_invalid_frame);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, fs_h2_on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, fs_h2_on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, fs_h2_on_frame_sent);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, fs_h2_on_send_data);

    /* Its own limit on resets cannot tell an honest caller's cancellations from an attack: ours earns tokens
     * back by finished calls. */
    if (nghttp2_option_set_stream_reset_rate_limit != NULL)
        nghttp2_option_set_stream_reset_rate_limit(option, (uint64_t)1 << 40, (uint64_t)1 << 40);

    if (nghttp2_session_server_new3(&h2->base.session, callbacks, h2, option, &h2->base.mem) != 0)
        goto out;
    const fs_h2_limits *limits = h2->limits;
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits->max_concurrent_streams},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, limits->window_bytes},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, limits->max_header_bytes},
        /* RFC 9218's flat queues in place of RFC 7540's tree, which peers could shape as they liked. */
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
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

fs_h2 *fs_h2_new(const fs_h2_limits *limits, const fs_h2_handler *handler, void *ctx, void *conn,
                 fs_budget *budget, fs_slab *slab, int64_t now_us)
{
    fs_h2 *h2 = fs_slab_alloc(slab, sizeof *h2);
    if (h2 == NULL)
        return NULL;
    memset(h2, 0, sizeof *h2);
    fs_h2_session_init(&h2->base, slab);
    h2->limits = limits;
    h2->handler = handler;
    h2->ctx = ctx;
    h2->conn = conn;
    h2->budget = budget;
    h2->now_us = now_us;
    h2->heard_us = now_us;
    h2->progress_us = INT64_MAX;
    h2->resets = (bucket){(int64_t)limits->reset_burst * TOKEN, now_us};
    h2->chatter = (bucket){(int64_t)limits->chatter_burst * TOKEN, now_us};
    if (make_session(h2) != 0) {
        session_del(h2);
        return NULL;
    }
    return h2;
}

/* The connection is going: takes one call off its list and lets go of it. */
static void abandon(fs_h2 *h2, call *call)
{
    bool told = call->stream_gone;
    fs_call_move(call, NULL);
    call->stream_gone = true;
    fs_call_drop_replies(call); /* while h2 still counts them */
    h2->used_bytes -= call->rpc.charged_bytes;
    call->rpc.h2 = NULL;
    if (!call->held) {
        fs_call_free(call);
    } else if (!told) {
        /* Relaxed: a hint; the handler's own queues order everything else. */
        atomic_store_explicit(&call->rpc.cancelled, true, memory_order_relaxed);
        h2->handler->on_cancel(h2->ctx, &call->rpc); /* may finish, and so free, this call or another */
    }
}

void fs_h2_free(fs_h2 *h2)
{
    if (h2 == NULL)
        return;
    /* Detached first: from here on on_cancel may finish them, too, and they must know that h2 is gone. */
    while (h2->detached.head != NULL)
        abandon(h2, h2->detached.head);
    while (h2->serving.head != NULL)
        abandon(h2, h2->serving.head);
    while (h2->receiving.head != NULL)
        abandon(h2, h2->receiving.head);
    session_del(h2);
}

/* ---- bytes in, bytes out ------------------------------------------------------------------- */

int fs_h2_recv(fs_h2 *h2, const uint8_t *data, size_t len, int64_t now_us)
{
    h2->now_us = now_us;
    if (h2->base.failed != 0)
        return h2->base.failed;
    h2->heard_us = now_us;
    h2->ping_us = 0;
    return fs_h2_session_recv(&h2->base, data, len);
}

size_t fs_h2_send(fs_h2 *h2, uint8_t *dst, size_t room, int64_t now_us)
{
    h2->now_us = now_us;
    size_t replies_before = h2->reply_bytes;
    fs_h2_session_begin(&h2->base, dst, room);
    fs_h2_session_fill(&h2->base);

    if (h2->reply_bytes == 0) {
        h2->progress_us = INT64_MAX;
    } else if (h2->progress_us == INT64_MAX) {
        h2->progress_us = now_us;
        h2->progress_bytes = 0;
    } else {
        h2->progress_bytes += replies_before - h2->reply_bytes;
        if (h2->progress_bytes >= STALL_STEP_BYTES) {
            h2->progress_us = now_us;
            h2->progress_bytes = 0;
        }
    }
    return h2->base.out_len;
}

/* ---- time ---------------------------------------------------------------------------------- */

static int64_t sooner(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t fs_h2_tick(fs_h2 *h2, int64_t now_us)
{
    const fs_h2_limits *limits = h2->limits;
    h2->now_us = now_us;
    if (h2->base.failed != 0)
        return h2->base.failed;
    int64_t due = INT64_MAX;

    if (limits->request_timeout_us > 0) {
        call *call;
        while ((call = h2->receiving.head) != NULL) {
            int64_t until = call->started_us + limits->request_timeout_us;
            if (until > now_us) {
                due = sooner(due, until);
                break;
            }
            static const char late[] = "The request did not arrive in time";
            fs_call_answer(call, FS_DEADLINE_EXCEEDED, late, sizeof late - 1);
        }
    }

    if (limits->stall_timeout_us > 0 && h2->reply_bytes > 0) {
        if (h2->progress_us == INT64_MAX) {
            h2->progress_us = now_us;
            h2->progress_bytes = 0;
        }
        int64_t until = h2->progress_us + limits->stall_timeout_us;
        if (until <= now_us) {
            fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_ENHANCE_YOUR_CALM);
            return h2->base.failed;
        }
        due = sooner(due, until);
    }

    if (limits->keepalive_us > 0) {
        if (h2->ping_us == 0 && h2->heard_us + limits->keepalive_us <= now_us) {
            if (nghttp2_submit_ping(h2->base.session, NGHTTP2_FLAG_NONE, NULL) != 0)
                fs_h2_session_fail(&h2->base, -FS_RESOURCE_EXHAUSTED, NGHTTP2_INTERNAL_ERROR);
            h2->ping_us = now_us;
        }
        int64_t until = h2->ping_us != 0 ? h2->ping_us + limits->keepalive_timeout_us
                                         : h2->heard_us + limits->keepalive_us;
        if (until <= now_us)
            fs_h2_session_fail(&h2->base, -FS_UNAVAILABLE, NGHTTP2_NO_ERROR);
        due = sooner(due, until);
    }
    return h2->base.failed != 0 ? h2->base.failed : due;
}

/* ---- the end --------------------------------------------------------------------------------- */

void fs_h2_shutdown_notice(fs_h2 *h2)
{
    if (h2->base.failed == 0 && !h2->shut && nghttp2_submit_shutdown_notice(h2->base.session) != 0)
        fs_h2_session_fail(&h2->base, -FS_RESOURCE_EXHAUSTED, NGHTTP2_INTERNAL_ERROR);
}

void fs_h2_shutdown(fs_h2 *h2)
{
    if (h2->base.failed != 0 || h2->shut)
        return;
    h2->shut = true;
    int32_t last = nghttp2_session_get_last_proc_stream_id(h2->base.session);
    if (nghttp2_submit_goaway(h2->base.session, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL, 0) != 0)
        fs_h2_session_fail(&h2->base, -FS_RESOURCE_EXHAUSTED, NGHTTP2_INTERNAL_ERROR);
}

bool fs_h2_done(const fs_h2 *h2)
{
    return fs_h2_session_done(&h2->base);
}

uint32_t fs_h2_active_calls(const fs_h2 *h2)
{
    return h2->streams;
}

size_t fs_h2_bytes_in_flight(const fs_h2 *h2)
{
    return h2->used_bytes;
}

size_t fs_h2_unsent_bytes(const fs_h2 *h2)
{
    return h2->reply_bytes;
}
