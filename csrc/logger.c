/* logger: see logger.h. */
#include "logger.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "compress.h"
#include "grpc.h"
#include "prediction_log.h"
#include "shadow.h"

struct fs_log_entry {
    fs_mail mail; /* first */
    fs_logger *logger;
    fs_request_log *log; /* a reference */
    size_t bytes;        /* of its room */
    uint8_t sinks;
    uint8_t kind;        /* an fs_log_kind */
    uint8_t encoding;    /* of the reply, if its prefix says so */
    bool owns_message;   /* else it lies behind the reply */
    uint8_t *message;
    size_t message_len;
    size_t reply_len;    /* 0: the reply is not wanted */
    uint8_t reply[];     /* a frame */
};

struct fs_logger {
    fs_mailbox box;
    pthread_t thread;
    fs_slab *slab;
    fs_crc32c crc;
    fs_request_log *logs; /* those with a sink that is on, each a reference */
    fs_mail farewell;
    bool stop;
};

static void count(atomic_uint_fast64_t *counter)
{
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* ---- on the logger's thread: entries ------------------------------------------------------------- */

static void entry_free(fs_log_entry *entry)
{
    fs_request_log_give_room(entry->log, entry->bytes);
    fs_request_log_unref(entry->log);
    if (entry->owns_message)
        fs_slab_free(entry->message);
    fs_slab_free(entry);
}

/* The reply's message; *block is to be freed, if it is not NULL. */
static int reply_message(const fs_log_entry *entry, fs_slab *slab, fs_slice *message, uint8_t **block)
{
    *block = NULL;
    *message = (fs_slice){entry->reply + FS_GRPC_PREFIX_BYTES, entry->reply_len - FS_GRPC_PREFIX_BYTES};
    if (entry->reply[0] == 0)
        return 0;
    size_t len;
    int rc = fs_inflate(slab, entry->encoding, message->data, message->len, INT32_MAX, block, &len, NULL);
    if (rc == 0)
        *message = (fs_slice){*block, len};
    return rc;
}

static void write_to(fs_logger *logger, fs_log_entry *entry, enum fs_log_sinks which, const fs_slice *reply)
{
    fs_log_sink *sink = &entry->log->sinks[which];
    fs_prediction_log message;
    fs_slice request = {entry->message, entry->message_len}, sampling = {0};
    if (sink->settings != NULL)
        sampling = (fs_slice){sink->settings->sampling, sink->settings->sampling_len};
    if (fs_prediction_log_wrap(entry->kind, sampling, (int64_t)time(NULL), request, reply, &message) != 0)
        count(&entry->log->skipped);
    else
        fs_log_sink_write(sink, &logger->crc, message.pieces, message.n_pieces, fs_now_us());
}

static void write_entry(fs_mail *mail)
{
    fs_log_entry *entry = (fs_log_entry *)mail;
    fs_logger *logger = entry->logger;
    fs_slice reply;
    uint8_t *block = NULL;
    bool has_reply = entry->reply_len > 0;
    if (has_reply && reply_message(entry, logger->slab, &reply, &block) != 0) {
        count(&entry->log->dropped); /* out of memory */
    } else {
        if (entry->sinks & 1 << FS_LOG_STANDING)
            write_to(logger, entry, FS_LOG_STANDING, has_reply ? &reply : NULL);
        if (entry->sinks & 1 << FS_LOG_RECORDING) /* to be sent again, not to be looked at: without replies */
            write_to(logger, entry, FS_LOG_RECORDING, NULL);
    }
    fs_slab_free(block);
    entry_free(entry);
}

/* ---- on the logger's thread: orders -------------------------------------------------------------- */

static bool is_on(const fs_request_log *log)
{
    for (int i = 0; i < FS_LOG_SINKS; i++) {
        if (log->sinks[i].settings != NULL)
            return true;
    }
    return false;
}

static void list(fs_logger *logger, fs_request_log *log)
{
    if (log->listed)
        return;
    log->listed = true;
    log->next = logger->logs;
    logger->logs = fs_request_log_ref(log);
}

/* Lets go of logs that are off. */
static void tidy(fs_logger *logger)
{
    fs_request_log **at = &logger->logs;
    while (*at != NULL) {
        fs_request_log *log = *at;
        if (is_on(log)) {
            at = &log->next;
            continue;
        }
        *at = log->next;
        log->listed = false;
        fs_request_log_unref(log);
    }
}

static void close_files(fs_logger *logger)
{
    for (fs_request_log *log = logger->logs; log != NULL; log = log->next) {
        for (int i = 0; i < FS_LOG_SINKS; i++)
            fs_log_sink_close(&log->sinks[i]);
    }
}

static void obey(fs_mail *mail)
{
    fs_log_order *order = (fs_log_order *)mail;
    fs_request_log *log = order->log;
    if (log == NULL) {
        close_files(order->logger);
    } else {
        /* relaxed: numbers, which guard no memory. */
        if (order->max_buffer_bytes > 0)
            atomic_store_explicit(&log->max_buffer_bytes, order->max_buffer_bytes, memory_order_relaxed);
        if (order->sink == FS_LOG_STANDING)
            atomic_store_explicit(&log->responses, order->settings != NULL && order->settings->responses,
                                  memory_order_relaxed);
        list(order->logger, log);
        fs_log_sink_set(&log->sinks[order->sink], order->settings);
        tidy(order->logger);
    }
    order->mail.deliver = order->deliver;
    fs_owner_post(order->home, &order->mail);
}

static void farewell(fs_mail *mail)
{
    fs_logger *logger = (fs_logger *)(void *)((uint8_t *)mail - offsetof(fs_logger, farewell));
    logger->stop = true;
}

/* ---- the thread ---------------------------------------------------------------------------------- */

static void deliver(fs_logger *logger)
{
    fs_node *node = fs_mailbox_take(&logger->box);
    while (node != NULL) {
        fs_node *next = node->next;
        fs_mail *mail = (fs_mail *)node;
        mail->deliver(mail);
        node = next;
    }
}

/* Writes and closes what is due, and tells of losses; how long nothing will be, in milliseconds, -1: for ever. While
 * there are logs that is a second at most: requests that are dropped wake nobody. */
static int tick(fs_logger *logger)
{
    if (logger->logs == NULL)
        return -1;
    int64_t now_us = fs_now_us(), next_us = now_us + FS_LOG_FLUSH_US;
    for (fs_request_log *log = logger->logs; log != NULL; log = log->next) {
        for (int i = 0; i < FS_LOG_SINKS; i++) {
            int64_t at_us = fs_log_sink_tick(&log->sinks[i], now_us);
            next_us = at_us < next_us ? at_us : next_us;
        }
        fs_request_log_tell(log);
    }
    return next_us <= now_us ? 0 : (int)((next_us - now_us) / 1000 + 1);
}

static void *run(void *arg)
{
    fs_logger *logger = arg;
    pthread_setname_np(pthread_self(), "fs-log");
    while (!logger->stop) {
        struct pollfd p = {.fd = logger->box.fd, .events = POLLIN};
        poll(&p, 1, tick(logger));
        deliver(logger);
    }
    for (fs_request_log *log = logger->logs; log != NULL; log = log->next) {
        for (int i = 0; i < FS_LOG_SINKS; i++)
            fs_log_sink_set(&log->sinks[i], NULL);
    }
    tidy(logger);
    return NULL;
}

fs_logger *fs_logger_start(void)
{
    fs_logger *logger = aligned_alloc(64, (sizeof *logger + 63) & ~(size_t)63);
    if (logger == NULL)
        return NULL;
    memset(logger, 0, sizeof *logger);
    fs_crc32c_init(&logger->crc);
    logger->farewell.deliver = farewell;
    logger->slab = fs_slab_new(8 << 20);
    if (logger->slab != NULL && fs_mailbox_open(&logger->box) == 0) {
        if (pthread_create(&logger->thread, NULL, run, logger) == 0)
            return logger;
        fs_mailbox_close(&logger->box);
    }
    fs_slab_release(logger->slab);
    free(logger);
    return NULL;
}

void fs_logger_stop(fs_logger *logger)
{
    if (logger == NULL)
        return;
    fs_mailbox_post(&logger->box, &logger->farewell.node);
    pthread_join(logger->thread, NULL);
    fs_mailbox_close(&logger->box);
    fs_slab_release(logger->slab);
    free(logger);
}

void fs_logger_order(fs_logger *logger, fs_log_order *order)
{
    order->logger = logger;
    order->mail.deliver = obey;
    fs_mailbox_post(&logger->box, &order->mail.node);
}

/* ---- on the thread that answers ------------------------------------------------------------------ */

/* Which sinks get the call after all, and whether its reply. */
static uint8_t wanted(const fs_call *call, bool *reply)
{
    uint8_t sinks = call->log_sinks;
    /* relaxed: as long as the logger has not changed its mind for good, either will do. */
    *reply = (sinks & 1 << FS_LOG_STANDING) != 0 &&
             atomic_load_explicit(&call->log->responses, memory_order_relaxed);
    if (*reply && call->reply_len > FS_LOG_LARGEST_REPLY) {
        count(&call->log->skipped);
        *reply = false;
        sinks &= (uint8_t) ~(1 << FS_LOG_STANDING);
    }
    return sinks;
}

fs_log_entry *fs_log_entry_of(fs_call *call)
{
    fs_request_log *log = call->log;
    fs_rpc *rpc = call->rpc;
    bool inflated = call->inflated != NULL, reply;
    uint8_t *message = inflated ? call->inflated : rpc->message;
    size_t message_len = inflated ? call->inflated_len : rpc->message_len;
    bool copied = call->shadowed && message_len <= FS_SHADOW_LARGEST;
    count(&log->sampled);
    uint8_t sinks = wanted(call, &reply);
    if (sinks == 0)
        return NULL;
    size_t reply_len = reply ? call->reply_len : 0;
    size_t bytes = sizeof(fs_log_entry) + message_len + reply_len;
    bool room = fs_request_log_take_room(log, bytes);
    size_t block = bytes - (copied ? 0 : message_len);
    fs_log_entry *entry = room ? fs_slab_alloc(call->owner->slab, block) : NULL;
    if (entry == NULL) {
        if (room)
            fs_request_log_give_room(log, bytes);
        count(&log->dropped);
        return NULL;
    }
    *entry = (fs_log_entry){
        .log = log,
        .bytes = bytes,
        .sinks = sinks,
        .kind = FS_LOG_PREDICT,
        .encoding = rpc->reply_encoding,
        .owns_message = !copied,
        .message = copied ? entry->reply + reply_len : message,
        .message_len = message_len,
        .reply_len = reply_len,
    };
    memcpy(entry->reply, call->reply, reply_len);
    if (copied)
        memcpy(entry->message, message, message_len);
    else if (inflated)
        call->inflated = NULL;
    else
        rpc->message = NULL;
    call->log = NULL;
    return entry;
}

void fs_logger_post(fs_logger *logger, fs_log_entry *entry)
{
    entry->logger = logger;
    entry->mail.deliver = write_entry;
    fs_mailbox_post(&logger->box, &entry->mail.node);
}
