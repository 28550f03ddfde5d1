/* logger: writes answered requests to files, on a thread of its own, fs-log.
 *
 * A thread that owns connections makes an entry from a call whose answer it is about to hand to the session: it
 * takes the request's message and copies the reply. All the rest, from inflating to the disk, is done on fs-log.
 * Nobody waits for it: what there is no room for is dropped and counted in the request_log. */
#ifndef FS_LOGGER_H
#define FS_LOGGER_H

#include "call.h"
#include "request_log.h"

/* Larger replies are skipped: they are copied by a thread that has answers to send, 100 us for so many bytes. */
#define FS_LOG_LARGEST_REPLY ((size_t)1 << 20)

typedef struct fs_log_entry fs_log_entry;
typedef struct fs_logger fs_logger;

fs_logger *fs_logger_start(void); /* NULL when out of memory, threads or descriptors */

/* Writes what was posted, closes all files and ends. Nobody posts any more. */
void fs_logger_stop(fs_logger *logger);

/* An entry of a call that its model's log wants, answered with FS_OK: takes its message, or copies it when a
 * shadow needs it, too; leaves its reply; takes the call's reference to its log. NULL: it is too large, or there
 * is no room, and the log has counted that. The call's owner's thread, before fs_rpc_finish. */
fs_log_entry *fs_log_entry_of(fs_call *call);

/* Any thread. The entry is the logger's from here on. */
void fs_logger_post(fs_logger *logger, fs_log_entry *entry);

/* Something to be done on the logger's thread, between what was posted before and after it. */
typedef struct fs_log_order {
    fs_mail mail; /* first; deliver is the poster's, run on its thread when it is done */
    fs_owner *home;
    fs_logger *logger; /* fs_logger_order's */
    fs_request_log *log; /* NULL: every file is closed, so that it has its name; a log goes on with another */
    enum fs_log_sinks sink;
    fs_log_settings *settings; /* the sink's from here on; NULL: it is off */
    size_t max_buffer_bytes;   /* of the log; 0: as it is */
    void (*deliver)(fs_mail *mail);
} fs_log_order;

/* Any thread that holds a reference to order->log, and keeps it until deliver. */
void fs_logger_order(fs_logger *logger, fs_log_order *order);

#endif
