/* request_log: see request_log.h. */
#include "request_log.h"

#include <stdlib.h>
#include <string.h>

fs_request_log *fs_request_log_new(fs_owner *home, void (*on_loss)(fs_mail *mail), void *user)
{
    fs_request_log *log = aligned_alloc(64, (sizeof *log + 63) & ~(size_t)63);
    if (log == NULL)
        return NULL;
    memset(log, 0, sizeof *log);
    log->mail.deliver = on_loss;
    log->home = home;
    log->user = user;
    atomic_init(&log->refs, 1);
    atomic_init(&log->max_buffer_bytes, FS_LOG_ROOM);
    for (int i = 0; i < FS_LOG_SINKS; i++)
        fs_log_sink_init(&log->sinks[i]);
    return log;
}

fs_request_log *fs_request_log_ref(fs_request_log *log)
{
    /* relaxed: the caller's own reference, or its bracket, keeps it. */
    atomic_fetch_add_explicit(&log->refs, 1, memory_order_relaxed);
    return log;
}

void fs_request_log_unref(fs_request_log *log)
{
    /* acq_rel: who frees it must see every other use as over. The logger has a reference while a sink is on, so
     * there is no file to close. */
    if (log != NULL && atomic_fetch_sub_explicit(&log->refs, 1, memory_order_acq_rel) == 1)
        free(log);
}

bool fs_request_log_take_room(fs_request_log *log, size_t bytes)
{
    /* relaxed: numbers, which guard no memory. */
    size_t most = atomic_load_explicit(&log->max_buffer_bytes, memory_order_relaxed);
    size_t had = atomic_fetch_add_explicit(&log->buffered_bytes, bytes, memory_order_relaxed);
    if (had <= most && bytes <= most - had)
        return true;
    fs_request_log_give_room(log, bytes);
    return false;
}

void fs_request_log_give_room(fs_request_log *log, size_t bytes)
{
    /* relaxed: as above. */
    atomic_fetch_sub_explicit(&log->buffered_bytes, bytes, memory_order_relaxed);
}

static uint64_t lost(const fs_request_log *log)
{
    /* relaxed: statistics order nothing. */
    uint64_t n = atomic_load_explicit(&log->dropped, memory_order_relaxed) +
                 atomic_load_explicit(&log->skipped, memory_order_relaxed);
    for (int i = 0; i < FS_LOG_SINKS; i++)
        n += atomic_load_explicit(&log->sinks[i].tally.failed, memory_order_relaxed);
    return n;
}

void fs_request_log_tell(fs_request_log *log)
{
    uint64_t n = lost(log);
    if (log->mail.deliver == NULL || n == 0 || n < 2 * log->told)
        return;
    /* acquire: pairs with the release in fs_request_log_heard, after which the node is the logger's again. */
    if (atomic_exchange_explicit(&log->away, true, memory_order_acquire))
        return;
    log->told = n;
    fs_request_log_ref(log); /* until it is heard */
    fs_owner_post(log->home, &log->mail);
}

void fs_request_log_heard(fs_request_log *log)
{
    /* release: see fs_request_log_tell. */
    atomic_store_explicit(&log->away, false, memory_order_release);
    fs_request_log_unref(log);
}
