/* metrics: what a core counts, in memory that it shares with whoever reads: the control process, and tools.
 *
 * Each signature of each version that is open has a block, its meter, in which threads that own connections and
 * executors count by relaxed additions. Reading (metrics_read.h) is another process's business and costs this one
 * nothing. The memory is a file of a fixed size whose pages exist once they are touched. A block is given to a
 * version when it is loaded and taken back after it has closed: not before every call that was queued for it is
 * finished, for the owner of a call counts it when the version may be gone already, and with the latest
 * FS_METRICS_KEPT of them left to be read. When all blocks are taken, versions share one.
 *
 * Knows neither calls nor versions. Compiled with FS_NO_METRICS nothing is counted, for comparison. */
#ifndef FS_METRICS_H
#define FS_METRICS_H

#include <stdbool.h>
#include <stddef.h>

#include "tally.h"

#define FS_METRICS_MAGIC UINT64_C(0x31636972746d7366) /* "fsmtric1" */
#define FS_METRICS_LAYOUT 2                           /* to be raised with every change below */

enum {
    FS_METRICS_METHODS = 5,    /* as fs_call_kind, then SessionRun */
    FS_METRICS_SESSION_RUN = 4,
    FS_METRICS_TRANSPORTS = 3, /* as fs_transport */
    FS_METRICS_CODES = 17,     /* gRPC's */
    FS_METRICS_NAME = 400,     /* of model and signature each: longer names are cut */
    FS_METRICS_SIZES = 33,     /* that batches are filled up to, and those that ran as they were */
    FS_METRICS_DOUBLINGS = 14, /* of padding: up to 1, 2, 4 .. 8192 rows */
    FS_METRICS_KEPT = 64,      /* closed blocks that stay to be read */
    FS_METRICS_UNIT = 1 << 16, /* blocks begin at multiples: of pages, whatever size these have */
};

typedef atomic_uint_fast64_t fs_tick;

/* Of a block. What was given back is all zeros, FS_METER_FREE included. */
enum fs_meter_state { FS_METER_FREE, FS_METER_OPEN, FS_METER_CLOSED };

/* How requests ended, by method, transport and gRPC code. */
typedef struct fs_endings {
    fs_tick count[FS_METRICS_METHODS][FS_METRICS_TRANSPORTS][FS_METRICS_CODES];
} fs_endings;

/* The padding of batches that were filled up to one size. In no more than one page. */
typedef struct fs_padding {
    _Alignas(256) fs_tick size; /* 0: no batch yet, or it is of those that ran as they were */
    fs_tick sum;
    fs_tick batches[2 + FS_METRICS_DOUBLINGS]; /* [0] without padding, [i] up to 2^(i-1) rows, the last more */
} fs_padding;

/* A block: one signature of one version. Times are nanoseconds. Lines and pages that one kind of thread writes are
 * apart from those that another does. */
typedef struct fs_meter {
    /* Who it is, written before it is open. The serial number is never used twice: with the same one before and after,
     * what was read in between is of one series. */
    _Alignas(64) fs_tick serial;
    atomic_uint state; /* enum fs_meter_state */
    uint32_t model_len, signature_len;
    int64_t version;
    char model[FS_METRICS_NAME], signature[FS_METRICS_NAME];

    /* By owners of connections. */
    _Alignas(64) fs_tick pushed_calls; /* that were queued, */
    fs_tick pushed_rows;
    fs_tick finished_calls;            /*   and of these that are over, release: see fs_meter_finished */
    fs_tick queue_sum;
    fs_endings requests;
    fs_tick latency_sum[FS_METRICS_METHODS][FS_METRICS_TRANSPORTS];
    fs_tick request_rows_sum[FS_METRICS_METHODS];

    /* By executors. */
    _Alignas(64) fs_tick left_calls; /* that wait in the queue no more */
    fs_tick left_rows;
    fs_tick formation_sum, compute_sum, encode_sum, rows_sum;
    _Alignas(64) fs_tick expired;    /* left it without having run: the deadline had passed, */
    fs_tick cancelled;               /*   the caller had gone, */
    fs_tick shed;                    /*   the deadline could not have been met */

    _Alignas(64) fs_tally latency[FS_METRICS_METHODS][FS_METRICS_TRANSPORTS]; /* owners, as are the next two */
    fs_tally queue;
    fs_tally request_rows[FS_METRICS_METHODS];
    _Alignas(64) fs_tally formation; /* executors, as are the rest */
    fs_tally compute, encode;
    fs_tally rows;                   /* of batches */
    fs_padding padding[FS_METRICS_SIZES];
} fs_meter;

/* The beginning of the memory. Blocks follow at FS_METRICS_UNIT, each FS_METER_BYTES long; the first is the one that
 * is shared when there are no more. */
typedef struct fs_metrics_head {
    uint64_t layout;
    uint64_t meter_bytes;
    uint64_t n_meters;
    fs_tick magic; /* written last, release: the rest is there */
    _Alignas(64) fs_endings unresolved; /* of requests that no block stands for */
} fs_metrics_head;

#define FS_METER_BYTES ((sizeof(fs_meter) + FS_METRICS_UNIT - 1) / FS_METRICS_UNIT * FS_METRICS_UNIT)

/* Counted or not. In a build that counts nothing the compiler sees what it guards as dead. */
#ifdef FS_NO_METRICS
#define FS_COUNTED(meter) ((void)(meter), false)
#else
#define FS_COUNTED(meter) ((meter) != NULL)
#endif

static inline void fs_tick_add(fs_tick *tick, uint64_t n)
{
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(tick, n, memory_order_relaxed);
}

static inline void fs_endings_add(fs_endings *endings, int method, int transport, int code)
{
    enum { UNKNOWN = 2 };
    bool known = code >= 0 && code < FS_METRICS_CODES;
    fs_tick_add(&endings->count[method][transport][known ? code : UNKNOWN], 1);
}

static inline void fs_meter_time(fs_tally *tally, fs_tick *sum, int64_t ns)
{
    fs_tally_add(tally, ns > 0 ? (uint64_t)ns : 0, sum);
}

/* A request of so many rows, as its caller sent them, was run. */
static inline void fs_meter_request(fs_meter *meter, int method, int64_t rows)
{
    fs_tally_add(&meter->request_rows[method], rows > 0 ? (uint64_t)rows : 0, &meter->request_rows_sum[method]);
}

/* A batch ran with so much padding, up to `size`; 0: as it was, whatever its size. */
void fs_meter_padding(fs_meter *meter, uint64_t size, uint64_t padding);

/* A call of so many rows is in the queue. Its owner, while the version cannot be closed. */
static inline void fs_meter_pushed(fs_meter *meter, uint64_t rows)
{
    fs_tick_add(&meter->pushed_calls, 1);
    fs_tick_add(&meter->pushed_rows, rows);
}

/* Calls and rows have left it. The version is pinned. */
static inline void fs_meter_left(fs_meter *meter, uint64_t calls, uint64_t rows)
{
    fs_tick_add(&meter->left_calls, calls);
    fs_tick_add(&meter->left_rows, rows);
}

/* The last that is done to a meter on behalf of a call that was pushed: it may be another's from here on. */
static inline void fs_meter_finished(fs_meter *meter)
{
    /* release: pairs with the acquire of who takes the block back. */
    atomic_fetch_add_explicit(&meter->finished_calls, 1, memory_order_release);
}

/* ---- the memory ------------------------------------------------------------------------------------ */

typedef struct fs_metrics fs_metrics;

/* Maps a shared file of a fixed size, all zeros, and begins to count there. `fd` stays the caller's, and may be closed.
 * 0, or -code: -FS_INVALID_ARGUMENT, it is too small or is no file to be mapped; -FS_RESOURCE_EXHAUSTED. */
int fs_metrics_open(int fd, fs_metrics **out);

/* Nobody counts any more. NULL is fine. */
void fs_metrics_close(fs_metrics *metrics);

/* A block for a signature of a version. Never fails: when there are none, the one that all others share. Loaders. */
fs_meter *fs_metrics_give(fs_metrics *metrics, const char *model, int64_t version, const char *signature);

/* The version has closed: no call of it is in a queue or a batch. Calls of it may be on their way home. Loaders. */
void fs_metrics_take_back(fs_metrics *metrics, fs_meter *meter);

/* A request that no block stands for has ended. Any thread. */
void fs_metrics_unresolved(fs_metrics *metrics, int method, int transport, int code);

#endif
