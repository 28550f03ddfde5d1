/* metrics: see metrics.h. */
#include "metrics.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "status.h"

enum { SHARED = 0, FIRST = 1 }; /* the block that is shared, and the first of the others */

struct fs_metrics {
    fs_metrics_head *head; /* the mapping */
    size_t bytes;
    uint32_t n;            /* of blocks, */
    pthread_mutex_t mutex; /* of loaders, which give them out: no thread that serves takes it */
    uint64_t serial;
    uint64_t closings;     /* so far, */
    uint32_t n_closed;
    uint64_t closed_at[];  /*   and by block, at which of them it was closed; 0: it is not */
};

static fs_meter *meter_at(const fs_metrics *metrics, uint32_t i)
{
    return (fs_meter *)(void *)((uint8_t *)metrics->head + FS_METRICS_UNIT + (size_t)i * FS_METER_BYTES);
}

static void put_name(char *to, uint32_t *len, const char *name)
{
    size_t n = strlen(name);
    if (n > FS_METRICS_NAME) {
        n = FS_METRICS_NAME;
        while (n > 0 && ((unsigned char)name[n] & 0xc0) == 0x80) /* not inside a character of UTF-8 */
            n--;
    }
    memcpy(to, name, n);
    *len = (uint32_t)n;
}

/* Makes a block that is all zeros somebody's. */
static void open_meter(fs_metrics *metrics, fs_meter *meter, const char *model, int64_t version,
                       const char *signature)
{
    put_name(meter->model, &meter->model_len, model);
    put_name(meter->signature, &meter->signature_len, signature);
    meter->version = version;
    metrics->serial++;
    atomic_store_explicit(&meter->serial, metrics->serial, memory_order_relaxed);
    /* release: pairs with a reader's acquire, which sees the names. */
    atomic_store_explicit(&meter->state, FS_METER_OPEN, memory_order_release);
}

/* The place of batches of that size. Sizes take places as they come; where none is left, as in the block that versions
 * share, it is that of batches that ran as they were. */
static fs_padding *place_of(fs_meter *meter, uint64_t size)
{
    for (uint32_t i = 1; size > 0 && i < FS_METRICS_SIZES; i++) {
        fs_padding *place = &meter->padding[i];
        /* relaxed: a size is a number, and stays. */
        uint64_t there = atomic_load_explicit(&place->size, memory_order_relaxed);
        if (there == 0 && atomic_compare_exchange_strong_explicit(&place->size, &there, size, memory_order_relaxed,
                                                                  memory_order_relaxed))
            there = size;
        if (there == size)
            return place;
    }
    return &meter->padding[0];
}

void fs_meter_padding(fs_meter *meter, uint64_t size, uint64_t padding)
{
    fs_padding *place = place_of(meter, size);
    unsigned i = padding <= 1 ? (unsigned)padding : 65 - (unsigned)__builtin_clzll(padding - 1);
    fs_tick_add(&place->batches[i <= FS_METRICS_DOUBLINGS ? i : FS_METRICS_DOUBLINGS + 1], 1);
    fs_tick_add(&place->sum, padding);
}

int fs_metrics_open(int fd, fs_metrics **out)
{
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return -FS_INVALID_ARGUMENT;
    size_t bytes = (size_t)st.st_size;
    if (bytes < FS_METRICS_UNIT + 2 * FS_METER_BYTES || bytes / FS_METER_BYTES > UINT32_MAX / 2)
        return -FS_INVALID_ARGUMENT;
    uint32_t n = (uint32_t)((bytes - FS_METRICS_UNIT) / FS_METER_BYTES);
    fs_metrics *metrics = calloc(1, sizeof *metrics + n * sizeof metrics->closed_at[0]);
    if (metrics == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (at == MAP_FAILED) {
        free(metrics);
        return -FS_RESOURCE_EXHAUSTED;
    }
    metrics->head = at;
    metrics->bytes = bytes;
    metrics->n = n;
    pthread_mutex_init(&metrics->mutex, NULL);
    open_meter(metrics, meter_at(metrics, SHARED), "", 0, "");
    metrics->head->layout = FS_METRICS_LAYOUT;
    metrics->head->meter_bytes = FS_METER_BYTES;
    metrics->head->n_meters = n;
    /* release: as for a block's state. */
    atomic_store_explicit(&metrics->head->magic, FS_METRICS_MAGIC, memory_order_release);
    *out = metrics;
    return 0;
}

void fs_metrics_close(fs_metrics *metrics)
{
    if (metrics == NULL)
        return;
    munmap(metrics->head, metrics->bytes);
    pthread_mutex_destroy(&metrics->mutex);
    free(metrics);
}

/* Gives the longest closed block back whose calls are all finished, and its memory to the system. false: there is
 * none. */
static bool give_back_one(fs_metrics *metrics)
{
    uint32_t oldest = SHARED;
    for (uint32_t i = FIRST; i < metrics->n; i++) {
        if (metrics->closed_at[i] == 0 ||
            (oldest != SHARED && metrics->closed_at[i] > metrics->closed_at[oldest]))
            continue;
        fs_meter *meter = meter_at(metrics, i);
        /* acquire: pairs with fs_meter_finished, after which nobody touches it. Who pushed has counted that before
         * the version was closed. */
        if (atomic_load_explicit(&meter->finished_calls, memory_order_acquire) ==
            atomic_load_explicit(&meter->pushed_calls, memory_order_relaxed))
            oldest = i;
    }
    if (oldest == SHARED)
        return false;
    /* All zeros from one moment on: a reader that has begun sees another state or serial at its end. */
    if (madvise(meter_at(metrics, oldest), FS_METER_BYTES, MADV_REMOVE) != 0)
        return false; /* no memfd */
    metrics->closed_at[oldest] = 0;
    metrics->n_closed--;
    return true;
}

static bool is_free(const fs_metrics *metrics, uint32_t i)
{
    return atomic_load_explicit(&meter_at(metrics, i)->state, memory_order_relaxed) == FS_METER_FREE;
}

fs_meter *fs_metrics_give(fs_metrics *metrics, const char *model, int64_t version, const char *signature)
{
    pthread_mutex_lock(&metrics->mutex);
    uint32_t i = FIRST;
    while (i < metrics->n && !is_free(metrics, i))
        i++;
    if (i == metrics->n && give_back_one(metrics)) {
        i = FIRST;
        while (!is_free(metrics, i))
            i++;
    }
    fs_meter *meter = meter_at(metrics, i < metrics->n ? i : SHARED);
    if (i < metrics->n)
        open_meter(metrics, meter, model, version, signature);
    pthread_mutex_unlock(&metrics->mutex);
    return meter;
}

void fs_metrics_take_back(fs_metrics *metrics, fs_meter *meter)
{
    if (meter == meter_at(metrics, SHARED))
        return;
    pthread_mutex_lock(&metrics->mutex);
    uint32_t i = (uint32_t)((size_t)((uint8_t *)meter - (uint8_t *)meter_at(metrics, SHARED)) / FS_METER_BYTES);
    atomic_store_explicit(&meter->state, FS_METER_CLOSED, memory_order_release);
    metrics->closings++;
    metrics->closed_at[i] = metrics->closings;
    metrics->n_closed++;
    while (metrics->n_closed > FS_METRICS_KEPT && give_back_one(metrics))
        continue;
    pthread_mutex_unlock(&metrics->mutex);
}

void fs_metrics_unresolved(fs_metrics *metrics, int method, int transport, int code)
{
    fs_endings_add(&metrics->head->unresolved, method, transport, code);
}
