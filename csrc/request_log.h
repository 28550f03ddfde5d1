/* request_log: that requests of a model are logged: which of them, how much of them may wait, and what has come of
 * it.
 *
 * One for each such model, made by the control channel's side and put into the catalog by a loader. Threads that
 * own connections draw lots and take room; the logger's thread does the rest. Of its two sinks one is what the
 * configuration wants, the other what somebody records for a while. Knows no catalog and no call. */
#ifndef FS_REQUEST_LOG_H
#define FS_REQUEST_LOG_H

#include "log_sink.h"
#include "owner.h"
#include "random.h"

enum fs_log_sinks { FS_LOG_STANDING, FS_LOG_RECORDING, FS_LOG_SINKS };

#define FS_LOG_ROOM ((size_t)16 << 20) /* unless the settings say otherwise */

typedef struct fs_request_log {
    fs_mail mail; /* first: the news that something was lost, to who made it */
    fs_owner *home;
    atomic_bool away; /* the mail is */
    void *user;       /* the maker's */

    _Alignas(64) atomic_long refs;
    atomic_size_t buffered_bytes;       /* of requests on their way */
    atomic_size_t max_buffer_bytes;
    atomic_bool responses;              /* the standing log has them */
    atomic_uint_fast64_t sampled;       /* answered requests that were to be logged, */
    atomic_uint_fast64_t dropped;       /*   of these: for want of room, memory or time, */
    atomic_uint_fast64_t skipped;       /*   and those that are too large */
    fs_log_sink sinks[FS_LOG_SINKS];

    /* The logger's. */
    struct fs_request_log *next;
    bool listed;
    uint64_t told;  /* of what was lost */
} fs_request_log;

/* With one reference; NULL when out of memory. `on_loss` is run at `home`, at the most once for each doubling of
 * what was lost, and ends with fs_request_log_heard; NULL: nobody wants to know. */
fs_request_log *fs_request_log_new(fs_owner *home, void (*on_loss)(fs_mail *mail), void *user);
fs_request_log *fs_request_log_ref(fs_request_log *log); /* any thread that holds one, or is inside a bracket */
void fs_request_log_unref(fs_request_log *log);          /* any thread; NULL is fine */

/* Of one more request: the sinks that want it, a bit for each. `random` is the state of the thread's generator. */
static inline uint8_t fs_request_log_draw(const fs_request_log *log, uint64_t *random)
{
    uint8_t sinks = 0;
    for (int i = 0; i < FS_LOG_SINKS; i++) {
        /* relaxed: a number. */
        uint64_t share = atomic_load_explicit(&log->sinks[i].share, memory_order_relaxed);
        if (share > 0 && fs_random_next(random) < share)
            sinks |= (uint8_t)(1 << i);
    }
    return sinks;
}

/* Room for so many bytes on their way; false: there is none. Any thread. */
bool fs_request_log_take_room(fs_request_log *log, size_t bytes);
void fs_request_log_give_room(fs_request_log *log, size_t bytes);

/* The logger's: sends word home when twice as much is lost as the last time. */
void fs_request_log_tell(fs_request_log *log);
void fs_request_log_heard(fs_request_log *log); /* on_loss's last word */

#endif
