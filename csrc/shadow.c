/* shadow: see shadow.h. */
#include "shadow.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "compare.h"
#include "compress.h"
#include "engine.h"
#include "grpc.h"

struct fs_shadow {
    fs_mail mail; /* first */
    fs_shadows *shadows;
    fs_route *route; /* a reference */
    fs_rpc rpc;      /* of the call on the new version; its message is ours */
    size_t bytes;    /* of the route's budget */
    uint8_t encoding; /* of the reply, if its prefix says so */
    size_t reply_len;
    uint8_t reply[]; /* the stable version's frame */
};

struct fs_shadows {
    fs_mailbox box;
    fs_owner owner;
    fs_slab *slab;
    pthread_t thread;
    fs_mail farewell;
    bool stop;
    long running; /* calls on their way */
};

static void count(atomic_uint_fast64_t *counter, uint64_t n)
{
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static bool take_room(fs_route *route, size_t bytes)
{
    /* relaxed: a number, which guards no memory. */
    if (atomic_fetch_add_explicit(&route->shadow_bytes, bytes, memory_order_relaxed) + bytes <=
        FS_SHADOW_BUDGET)
        return true;
    atomic_fetch_sub_explicit(&route->shadow_bytes, bytes, memory_order_relaxed);
    return false;
}

static void shadow_free(fs_shadow *shadow)
{
    atomic_fetch_sub_explicit(&shadow->route->shadow_bytes, shadow->bytes, memory_order_relaxed);
    fs_route_unref(shadow->route);
    fs_slab_free(shadow->rpc.message);
    fs_slab_free(shadow);
}

/* ---- comparing ----------------------------------------------------------------------------- */

/* The message of the stable version's reply; *block is to be freed, if it is not NULL. */
static int stable_message(fs_shadow *shadow, fs_slab *slab, fs_slice *message, uint8_t **block)
{
    *block = NULL;
    *message = (fs_slice){shadow->reply + FS_GRPC_PREFIX_BYTES, shadow->reply_len - FS_GRPC_PREFIX_BYTES};
    if (shadow->reply[0] == 0)
        return 0;
    size_t len;
    int rc = fs_inflate(slab, shadow->encoding, message->data, message->len, INT32_MAX, block, &len, NULL);
    if (rc == 0)
        *message = (fs_slice){*block, len};
    return rc;
}

static void compare(fs_shadow *shadow, const fs_call *call)
{
    fs_shadow_tally *tally = &shadow->route->shadow;
    fs_slice stable, fresh = {(const uint8_t *)call->reply + FS_GRPC_PREFIX_BYTES,
                              call->reply_len - FS_GRPC_PREFIX_BYTES};
    fs_slab *slab = shadow->shadows->slab;
    fs_difference difference;
    uint8_t *block;
    int rc = stable_message(shadow, slab, &stable, &block);
    if (rc == 0)
        rc = fs_compare_replies(slab, stable, fresh, shadow->route->max_difference, &difference);
    fs_slab_free(block);
    if (rc != 0) {
        count(&tally->dropped, 1);
        return;
    }
    count(&tally->compared, 1);
    count(&tally->rows, (uint64_t)difference.rows);
    count(&tally->different_rows, (uint64_t)difference.different_rows);
    count(&tally->missing_outputs, difference.missing_outputs);
    /* relaxed: only this thread writes it. */
    if (difference.largest > atomic_load_explicit(&tally->largest_difference, memory_order_relaxed))
        atomic_store_explicit(&tally->largest_difference, difference.largest, memory_order_relaxed);
}

/* ---- on the shadows' thread ------------------------------------------------------------------- */

/* The new version is done with it. */
static void finish(fs_call *call)
{
    fs_shadow *shadow = call->rpc->user;
    shadow->shadows->running--;
    if (call->code == FS_OK)
        compare(shadow, call);
    else
        count(&shadow->route->shadow.failed, 1);
    fs_call_discard(call);
    shadow_free(shadow);
}

static void begin(fs_mail *mail)
{
    fs_shadow *shadow = (fs_shadow *)mail;
    fs_shadows *shadows = shadow->shadows;
    fs_shadow_tally *tally = &shadow->route->shadow;
    fs_error err;
    shadow->rpc.arrived_us = fs_now_us();
    int rc = shadows->stop ? -FS_UNAVAILABLE
                           : fs_call_run(&shadows->owner, &shadow->rpc,
                                         shadow->route->versions[FS_SIDE_FRESH], shadow->route, finish, &err);
    if (rc == 0) {
        shadows->running++;
        return;
    }
    /* The version is not there any more, its queue is full, memory is short: it never saw the request. */
    bool dropped = rc == -FS_NOT_FOUND || rc == -FS_UNAVAILABLE || rc == -FS_RESOURCE_EXHAUSTED;
    count(dropped ? &tally->dropped : &tally->failed, 1);
    shadow_free(shadow);
}

static void farewell(fs_mail *mail)
{
    fs_shadows *shadows = (fs_shadows *)(void *)((uint8_t *)mail - offsetof(fs_shadows, farewell));
    shadows->stop = true;
}

static void *run(void *arg)
{
    fs_shadows *shadows = arg;
    pthread_setname_np(pthread_self(), "fs-shadow");
    /* At normal priority: it wakes executors, and one that was stopped half-way through that would leave an
     * executor asleep with calls waiting. */
    while (!shadows->stop || shadows->running > 0) {
        struct pollfd p = {.fd = shadows->box.fd, .events = POLLIN};
        poll(&p, 1, -1);
        fs_owner_deliver(&shadows->owner);
    }
    return NULL;
}

fs_shadows *fs_shadows_start(fs_engine *engine)
{
    fs_shadows *shadows = aligned_alloc(64, (sizeof *shadows + 63) & ~(size_t)63);
    if (shadows == NULL)
        return NULL;
    memset(shadows, 0, sizeof *shadows);
    shadows->farewell.deliver = farewell;
    shadows->slab = fs_slab_new(8 << 20);
    if (shadows->slab != NULL && fs_mailbox_open(&shadows->box) == 0) {
        if (fs_engine_join(engine, &shadows->owner, &shadows->box, shadows->slab, NULL, NULL) == 0 &&
            pthread_create(&shadows->thread, NULL, run, shadows) == 0)
            return shadows;
        fs_mailbox_close(&shadows->box);
    }
    if (shadows->slab != NULL)
        fs_slab_release(shadows->slab);
    free(shadows);
    return NULL;
}

void fs_shadows_stop(fs_shadows *shadows)
{
    if (shadows == NULL)
        return;
    fs_mailbox_post(&shadows->box, &shadows->farewell.node);
    pthread_join(shadows->thread, NULL);
    fs_mailbox_close(&shadows->box);
    fs_slab_release(shadows->slab);
    free(shadows);
}

/* ---- on the thread that answers --------------------------------------------------------------- */

fs_shadow *fs_shadow_of(fs_call *call)
{
    fs_route *route = call->route;
    fs_rpc *rpc = call->rpc;
    bool inflated = call->inflated != NULL;
    size_t message_len = inflated ? call->inflated_len : rpc->message_len;
    size_t bytes = sizeof(fs_shadow) + message_len + call->reply_len;
    if (call->join != NULL || message_len > FS_SHADOW_LARGEST || call->reply_len > FS_SHADOW_LARGEST_REPLY) {
        count(&route->shadow.skipped, 1);
        return NULL;
    }
    bool room = take_room(route, bytes);
    fs_shadow *shadow = room ? fs_slab_alloc(call->owner->slab, sizeof *shadow + call->reply_len) : NULL;
    if (shadow == NULL) {
        if (room)
            atomic_fetch_sub_explicit(&route->shadow_bytes, bytes, memory_order_relaxed);
        count(&route->shadow.dropped, 1);
        return NULL;
    }
    memset(shadow, 0, sizeof *shadow);
    shadow->route = fs_route_ref(route);
    shadow->rpc.deadline_us = INT64_MAX;
    shadow->rpc.user = shadow;
    shadow->rpc.message = inflated ? call->inflated : rpc->message;
    shadow->rpc.message_len = message_len;
    if (inflated)
        call->inflated = NULL;
    else
        rpc->message = NULL;
    shadow->bytes = bytes;
    shadow->encoding = rpc->reply_encoding;
    shadow->reply_len = call->reply_len;
    memcpy(shadow->reply, call->reply, call->reply_len);
    return shadow;
}

void fs_shadows_post(fs_shadows *shadows, fs_shadow *shadow)
{
    shadow->shadows = shadows;
    shadow->mail.deliver = begin;
    fs_owner_post(&shadows->owner, &shadow->mail);
}
