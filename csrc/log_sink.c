/* log_sink: see log_sink.h. */
#include "log_sink.h"

#include <stdlib.h>
#include <string.h>

#include "log_files.h"
#include "random.h"
#include "wire.h"

enum { F_SAMPLING_CONFIG = 2, F_SAVED_MODEL_TAGS = 3, F_SAMPLING_RATE = 1 }; /* LogMetadata; SamplingConfig */

fs_log_settings *fs_log_settings_new(const fs_log_settings *settings, const fs_slice *tags, uint32_t n_tags)
{
    size_t rate_bytes = fs_wire_tag_size(F_SAMPLING_RATE) + sizeof(double);
    size_t len = fs_wire_bytes_size(F_SAMPLING_CONFIG, rate_bytes);
    for (uint32_t i = 0; i < n_tags; i++)
        len += fs_wire_bytes_size(F_SAVED_MODEL_TAGS, tags[i].len);
    fs_log_settings *made = malloc(sizeof *made + len);
    if (made == NULL)
        return NULL;
    *made = *settings;
    made->sampling_len = len;
    uint8_t *at = fs_wire_put_head(made->sampling, F_SAMPLING_CONFIG, rate_bytes);
    at = fs_wire_put_tag(at, F_SAMPLING_RATE, FS_WIRE_FIXED64);
    memcpy(at, &settings->sampling_rate, sizeof(double));
    at += sizeof(double);
    for (uint32_t i = 0; i < n_tags; i++)
        at = fs_wire_put_bytes(at, F_SAVED_MODEL_TAGS, tags[i]);
    return made;
}

static void count(atomic_uint_fast64_t *counter, uint64_t n)
{
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Notes how a write has ended. */
static void note(fs_log_sink *sink, int error, uint64_t lost, int64_t now_us)
{
    /* relaxed: as above. */
    atomic_store_explicit(&sink->tally.error, error, memory_order_relaxed);
    if (error == 0)
        return;
    count(&sink->tally.failed, lost);
    atomic_fetch_sub_explicit(&sink->tally.records, lost, memory_order_relaxed);
    sink->paused_us = now_us + FS_LOG_PAUSE_US;
    sink->flush_us = INT64_MAX;
}

static void share(fs_log_sink *sink, uint64_t value)
{
    /* relaxed: what a thread that samples does with it waits for nothing else. */
    atomic_store_explicit(&sink->share, value, memory_order_relaxed);
}

void fs_log_sink_init(fs_log_sink *sink)
{
    sink->file.fd = -1;
    sink->flush_us = INT64_MAX;
}

static void close_file(fs_log_sink *sink, int64_t now_us)
{
    uint64_t lost;
    if (sink->file.fd < 0)
        return;
    int error = fs_record_file_close(&sink->file, &lost);
    note(sink, error, lost, now_us);
    sink->flush_us = INT64_MAX;
    if (error == 0 && sink->file.records > 0)
        count(&sink->tally.files, 1);
    if (sink->settings != NULL && sink->settings->max_records == 0)
        fs_log_files_prune(sink->settings->path, sink->settings->keep_files);
}

/* A recording has all that it will get. */
static void finish(fs_log_sink *sink, int64_t now_us)
{
    share(sink, 0);
    close_file(sink, now_us);
    /* release: who sees it sees the file. */
    atomic_store_explicit(&sink->finished, true, memory_order_release);
}

static bool records_some(const fs_log_sink *sink)
{
    return sink->settings != NULL && sink->settings->max_records > 0;
}

void fs_log_sink_close(fs_log_sink *sink)
{
    if (records_some(sink))
        finish(sink, 0); /* it has one file and no other */
    else
        close_file(sink, 0);
}

void fs_log_sink_set(fs_log_sink *sink, fs_log_settings *settings)
{
    fs_log_settings *before = sink->settings;
    bool same = before != NULL && settings != NULL && before->max_records == 0 && settings->max_records == 0 &&
                strcmp(before->path, settings->path) == 0;
    if (!same) {
        close_file(sink, 0);
        sink->paused_us = 0;
        /* relaxed: who asks has waited for the order to be done. */
        atomic_store_explicit(&sink->finished, false, memory_order_relaxed);
        if (settings != NULL && settings->max_records == 0)
            fs_log_files_salvage(settings->path);
        if (settings != NULL && settings->max_records > 0) { /* counted from the first */
            atomic_store_explicit(&sink->tally.records, 0, memory_order_relaxed);
            atomic_store_explicit(&sink->tally.failed, 0, memory_order_relaxed);
            atomic_store_explicit(&sink->tally.error, 0, memory_order_relaxed);
        }
    }
    sink->settings = settings;
    share(sink, settings == NULL ? 0 : fs_random_share(settings->sampling_rate));
    free(before);
}

/* A file to write to. 0, or an errno. */
static int open_file(fs_log_sink *sink, int64_t now_us)
{
    const fs_log_settings *settings = sink->settings;
    char path[PATH_MAX];
    int error = 0;
    if (sink->file.fd >= 0)
        return 0;
    if (settings->max_records > 0)
        memcpy(path, settings->path, sizeof path);
    else
        error = fs_log_files_name(settings->path, path);
    if (error == 0)
        error = fs_record_file_open(&sink->file, path);
    sink->opened_us = now_us;
    return error;
}

void fs_log_sink_write(fs_log_sink *sink, const fs_crc32c *crc, const fs_slice *pieces, int n, int64_t now_us)
{
    uint64_t lost = 1;
    /* relaxed: this thread's own. */
    if (sink->settings == NULL || atomic_load_explicit(&sink->finished, memory_order_relaxed))
        return; /* chosen before that was so */
    if (now_us < sink->paused_us) {
        count(&sink->tally.failed, 1);
        return;
    }
    count(&sink->tally.records, 1);
    int error = open_file(sink, now_us);
    uint64_t before = error == 0 ? sink->file.bytes : 0;
    if (error == 0)
        error = fs_record_file_append(&sink->file, crc, pieces, n, &lost);
    note(sink, error, lost, now_us);
    if (error != 0)
        return;
    count(&sink->tally.bytes, sink->file.bytes - before);
    if (sink->file.buffered > 0 && sink->flush_us == INT64_MAX)
        sink->flush_us = now_us + FS_LOG_FLUSH_US;
    if (records_some(sink)) {
        if (sink->file.records >= sink->settings->max_records)
            finish(sink, now_us);
    } else if (sink->file.bytes >= sink->settings->max_file_bytes) {
        close_file(sink, now_us);
    }
}

/* When the file is too old. */
static int64_t ends_us(const fs_log_sink *sink)
{
    int64_t age_us = records_some(sink) ? INT64_MAX : sink->settings->max_file_age_us;
    return age_us > INT64_MAX - sink->opened_us ? INT64_MAX : sink->opened_us + age_us;
}

int64_t fs_log_sink_tick(fs_log_sink *sink, int64_t now_us)
{
    if (sink->file.fd < 0 || sink->settings == NULL)
        return INT64_MAX;
    if (ends_us(sink) <= now_us) {
        close_file(sink, now_us);
        return INT64_MAX;
    }
    if (sink->flush_us <= now_us) {
        uint64_t lost;
        int error = fs_record_file_flush(&sink->file, &lost);
        note(sink, error, lost, now_us);
        sink->flush_us = INT64_MAX;
    }
    int64_t end_us = ends_us(sink);
    return sink->flush_us < end_us ? sink->flush_us : end_us;
}
