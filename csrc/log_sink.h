/* log_sink: where a model's logged requests go: files that follow one another, or one file of so many records.
 *
 * A request_log has two. Everything here happens on the logger's thread, save that anybody may read the share and
 * the figures. Knows files; knows no call and no message. */
#ifndef FS_LOG_SINK_H
#define FS_LOG_SINK_H

#include <stdatomic.h>
#include <stdint.h>

#include "record_file.h"

/* How long a record may wait in memory, and the pause after a failure: a full disk is not asked for every record. */
#define FS_LOG_FLUSH_US ((int64_t)1000000)
#define FS_LOG_PAUSE_US ((int64_t)100000)

/* Made by the control channel's side, the sink's once an order has brought it there. */
typedef struct fs_log_settings {
    double sampling_rate;    /* 0 to 1 */
    bool responses;          /* log them, too */
    uint64_t max_file_bytes; /* another file after so many, */
    int64_t max_file_age_us; /*   or after so long; INT64_MAX: never */
    uint32_t keep_files;     /* the newest so many stay; 0: all */
    uint64_t max_records;    /* above 0: a recording: so many, in one file whose name is `path` and no prefix */
    char path[PATH_MAX];     /* the prefix of the files' names */
    size_t sampling_len;
    uint8_t sampling[];      /* what LogMetadata says of them: see fs_prediction_log_wrap */
} fs_log_settings;

/* The settings' copy on the heap: of `settings` all but `sampling`, which is made of its rate and these tags. NULL
 * when out of memory. */
fs_log_settings *fs_log_settings_new(const fs_log_settings *settings, const fs_slice *tags, uint32_t n_tags);

/* Written by the logger's thread. */
typedef struct fs_log_tally {
    atomic_uint_fast64_t records; /* written, or buffered to be */
    atomic_uint_fast64_t bytes;   /*   and what they took in files */
    atomic_uint_fast64_t files;   /* closed */
    atomic_uint_fast64_t failed;  /* records that could not be written */
    atomic_int error;             /* errno of the last failure; 0: the last write succeeded */
} fs_log_tally;

typedef struct fs_log_sink {
    _Alignas(64) atomic_uint_fast64_t share; /* of 2^32: which requests it gets */
    _Alignas(64) fs_log_tally tally;
    atomic_bool finished;       /* it has its max_records, and the file its name, unless there is an error */

    fs_log_settings *settings;  /* NULL: it is off */
    fs_record_file file;
    int64_t opened_us;          /* of the file */
    int64_t flush_us;           /* when what is buffered is to be written; INT64_MAX: nothing is */
    int64_t paused_us;          /* not before, after a failure */
} fs_log_sink;

void fs_log_sink_init(fs_log_sink *sink);

/* Goes on with other settings, which it owns from here on, or is off (NULL). A file goes on when its prefix does. */
void fs_log_sink_set(fs_log_sink *sink, fs_log_settings *settings);

/* One record; counted as failed when it, or one before it, cannot be written. */
void fs_log_sink_write(fs_log_sink *sink, const fs_crc32c *crc, const fs_slice *pieces, int n, int64_t now_us);

/* Writes and closes what is due; returns when it wants to be called again, INT64_MAX: it does not. */
int64_t fs_log_sink_tick(fs_log_sink *sink, int64_t now_us);

/* Closes the file; the next record begins another, save that a recording is over. */
void fs_log_sink_close(fs_log_sink *sink);

#endif
