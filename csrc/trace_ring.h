/* trace_ring: what the core's threads leave for a reader in another process: events of one size, in a ring for each
 * thread, in memory that both have mapped.
 *
 * The core makes a trace of a descriptor (a memfd, which the control process passes to it); each thread that has
 * something to tell takes a track of it and alone writes there, without a lock and without ever waiting. The reader
 * says in the same memory what is wanted, and looks whenever it likes: an event that was overwritten before it came
 * by is counted as lost, never seen half. With nothing wanted a thread pays one relaxed load where it asks.
 * Knows events, and neither calls nor who reads. */
#ifndef FS_TRACE_RING_H
#define FS_TRACE_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a reader may want, bits. */
enum {
    FS_TRACE_RECORDING = 1, /* what each thread does: batches, turns of the loop, warm-up runs */
    FS_TRACE_SPANS = 2,     /* the calls that are sampled */
};

/* Tasks are told whether they are wanted or not: they are few, and may begin before anybody looks. */
enum fs_trace_kind {
    FS_TRACE_BATCH = 1,  /* at_us: the run began, ended; then replies were encoded; count: calls */
    FS_TRACE_CALL,       /* at_us: taken from the queue, run began, ended, replies encoded; 0: it did not come to that */
    FS_TRACE_TASK_BEGUN, /* of a loader or the switcher; detail: enum fs_task_kind; end_us is 0 */
    FS_TRACE_TASK,       /* at_us: of a load, when it was open */
    FS_TRACE_WARM_RUN,
    FS_TRACE_TURN,       /* of a loop; detail: enum fs_trace_turn; count: bytes or events */
};

enum fs_trace_turn {
    FS_TURN_READ,    /* the loop took `count` bytes from a connection, and wrote to it what there was to say */
    FS_TURN_DELIVER, /* it delivered finished calls and wrote their connections */
    FS_TURN_EPOLL,   /* an I/O thread did all of this for `count` descriptors */
};

/* Flags of an event. */
enum {
    FS_TRACE_COMPILED = 1,
    FS_TRACE_SOLO = 2,   /* one call, run alone */
    FS_TRACE_PARENT = 4, /* trace_id and parent_id are a caller's */
};

enum { FS_TRACE_MODEL_BYTES = 88, FS_TRACE_SIGNATURE_BYTES = 48 };

/* What is told. Times are fs_now_us's; names are cut to what fits, and end where their lengths say. */
typedef struct fs_trace_event {
    uint8_t kind;      /* enum fs_trace_kind */
    uint8_t detail;
    uint8_t flags;
    uint8_t code;      /* a gRPC status */
    uint8_t method;    /* enum fs_call_kind, or FS_TRACE_SESSION_RUN */
    uint8_t transport; /* enum fs_transport */
    uint8_t model_len;
    uint8_t signature_len;
    int64_t begin_us;
    int64_t end_us;
    int64_t at_us[4];
    int64_t version;
    int64_t rows;      /* of a call, or of a batch without its padding */
    int64_t run_rows;  /* that went through the run, padding included */
    int64_t count;
    uint8_t trace_id[16];
    uint8_t parent_id[8];
    char model[FS_TRACE_MODEL_BYTES];
    char signature[FS_TRACE_SIGNATURE_BYTES];
} fs_trace_event;

enum { FS_TRACE_SESSION_RUN = 4 }; /* the method that is no kind of call */

/* ---- the memory --------------------------------------------------------------------------------- */

#define FS_TRACE_MAGIC UINT64_C(0x3165636172747366) /* "fstrace1" */
enum {
    FS_TRACE_SLOTS = 4096, /* events of a thread that a reader may be behind */
    FS_TRACE_NAME_BYTES = 32,
    FS_TRACE_MAX_TRACKS = 1024,
    FS_TRACE_WORDS = sizeof(fs_trace_event) / sizeof(uint64_t),
};

typedef struct fs_trace_slot {
    _Atomic(uint64_t) turn; /* 0: being written; else the number of the event that is there, from 1 */
    _Atomic(uint64_t) words[FS_TRACE_WORDS];
} fs_trace_slot;

typedef struct fs_trace_ring {
    _Alignas(64) _Atomic(uint64_t) written; /* events so far */
    _Atomic(uint32_t) taken;                /* release, when the name is there */
    char name[FS_TRACE_NAME_BYTES];         /* the thread's */
    _Alignas(64) fs_trace_slot slots[FS_TRACE_SLOTS];
} fs_trace_ring;

typedef struct fs_trace_shared {
    _Atomic(uint64_t) magic; /* release, last of all */
    uint32_t slot_bytes, slots, tracks;
    _Alignas(64) _Atomic(uint32_t) wanted; /* the reader's to write */
    _Atomic(uint64_t) share;               /*   and so is this: lots below it, of 2^32, are sampled */
    _Alignas(4096) fs_trace_ring rings[];
} fs_trace_shared;

/* ---- writing ------------------------------------------------------------------------------------ */

/* One thread's ring, and how far it is. The thread's own. */
typedef struct fs_track {
    _Alignas(64) fs_trace_shared *shared;
    fs_trace_ring *ring;
    uint64_t written;
} fs_track;

typedef struct fs_trace {
    fs_trace_shared *shared;
    size_t bytes;
    atomic_uint taken;
    uint32_t room;
    fs_track tracks[];
} fs_trace;

/* Makes a trace of `tracks` tracks, or of as many as fit, in `fd`: a memfd of zeros, whose size stays as it is, and
 * which stays the caller's. NULL without memory, or when `fd` is too small or no such thing. */
fs_trace *fs_trace_open(int fd, uint32_t tracks);

/* No thread writes any more. NULL is fine. */
void fs_trace_close(fs_trace *trace);

/* A track for the thread that is called `name`. NULL, which everything that takes a track takes: there is no trace,
 * or no room. Any thread; the track lives as long as the trace. */
fs_track *fs_trace_track(fs_trace *trace, const char *name);

/* What is wanted now, by whoever reads. relaxed: it may be seen a little later. */
static inline uint32_t fs_trace_wanted(const fs_trace *trace)
{
    return trace == NULL ? 0 : atomic_load_explicit(&trace->shared->wanted, memory_order_relaxed);
}

static inline uint32_t fs_track_wanted(const fs_track *track)
{
    return track == NULL ? 0 : atomic_load_explicit(&track->shared->wanted, memory_order_relaxed);
}

static inline bool fs_track_wants(const fs_track *track, uint32_t what)
{
    return (fs_track_wanted(track) & what) != 0;
}

/* Tells an event. The track's thread. */
void fs_track_write(fs_track *track, const fs_trace_event *event);

/* Tells of a turn of a loop, from `begin_us` until now: always, and if recordings are wanted. The track's thread. */
void fs_track_write_turn(fs_track *track, enum fs_trace_turn what, int64_t begin_us, int64_t count);
static inline void fs_track_turn(fs_track *track, enum fs_trace_turn what, int64_t begin_us, int64_t count)
{
    if (fs_track_wants(track, FS_TRACE_RECORDING))
        fs_track_write_turn(track, what, begin_us, count);
}

/* Puts a name of an event. */
void fs_trace_put_model(fs_trace_event *event, const void *name, size_t len);
void fs_trace_put_signature(fs_trace_event *event, const void *name, size_t len);

/* ---- reading, in any process -------------------------------------------------------------------- */

typedef struct fs_trace_view {
    fs_trace_shared *shared;
    size_t bytes;
    uint32_t tracks;
} fs_trace_view;

/* Maps what another process has made in `fd`. 0, -FS_UNAVAILABLE: there is nothing yet, -FS_FAILED_PRECONDITION:
 * another layout than ours, -FS_RESOURCE_EXHAUSTED: it cannot be mapped. */
int fs_trace_map(int fd, fs_trace_view *view);
void fs_trace_unmap(fs_trace_view *view);

/* What is wanted from now on, and which share of the calls without a parent is sampled. */
void fs_trace_want(const fs_trace_view *view, uint32_t wanted, uint64_t share);

/* The thread's name of track `i`; NULL: nobody has taken it. */
const char *fs_trace_track_name(const fs_trace_view *view, uint32_t i);

/* How many events track `i` has had. */
uint64_t fs_trace_written(const fs_trace_view *view, uint32_t i);

/* Takes the event of track `i` that comes next after *at, which begins with 0 or any number of events had. False:
 * there is none. What was overwritten is added to *lost. One thread for each *at. */
bool fs_trace_read(const fs_trace_view *view, uint32_t i, uint64_t *at, fs_trace_event *event, uint64_t *lost);

#endif
