/* servable: one version of one model: its runtime handle, and a queue for each signature.
 *
 * Made, warmed and freed on loader threads; found by I/O threads through the catalog; pinned by every call
 * that resolved to it, so that it closes only when the last of them is answered. Knows no connection. */
#ifndef FS_SERVABLE_H
#define FS_SERVABLE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "metrics.h"
#include "policy.h"
#include "ring.h"
#include "runtime.h"
#include "tensor.h"

typedef struct fs_servable fs_servable;
typedef struct fs_call fs_call;

/* How one signature is to be served, as the trial found it. What it points to outlives the servable. */
typedef struct fs_signature_plan {
    bool batched;
    bool compiled;       /* batches of conforming shapes run the compiled variant, padded to a bucket */
    uint32_t n_buckets;  /* row counts; also the sizes that are warmed */
    int32_t buckets[FS_MAX_BUCKETS];
    float costs_us[FS_MAX_BUCKETS]; /* 0: not known */
    const char *method;       /* SignatureDef.method_name; NULL: not known */
    const fs_slice *defaults; /* one for each input: the TensorProto that stands for one that a request leaves out,
                                 or empty; NULL: there is none */
    const bool *broadcast;    /* one for each input: it may come with one row for all (broadcast.h); NULL: none may */
} fs_signature_plan;

typedef struct fs_batching {
    int64_t max_batch_size;       /* rows of one batch */
    int64_t timeout_us;           /* wait for more rows, however idle the executors are; 0: never */
    int64_t max_enqueued_batches;
    int64_t num_batch_threads;    /* batches of this version that may run at once; 0: any */
    bool split_large;             /* calls of more rows run in pieces */
    int64_t refuse_above;         /* refuse calls of more rows, and what cannot be batched, as TF Serving does
                                     with batching on; 0: never */
    bool pad_variable_length;     /* calls of unequal inner dims are padded to the largest of the batch */
    bool refuse_unknown_shapes;   /* with XLA: refuse shapes that were not compiled, do not run them plain */
    bool shed_predicted;          /* answer UNAVAILABLE at once when the deadline cannot be met */
    double weight;                /* share of the executors against other models */
    int32_t reserved_executors;   /* executors that serve no other model */
} fs_batching;

/* What is counted for each signature. Order and names: fs_counter_name in servable.c. */
enum fs_counter {
    FS_COUNT_OK,
    FS_COUNT_FAILED,     /* answered with an error, whatever the stage */
    FS_COUNT_REJECTED,   /* of these: the queue was full */
    FS_COUNT_EXPIRED,    /*   the deadline passed in the queue */
    FS_COUNT_CANCELLED,  /*   the caller had gone before it ran */
    FS_COUNT_SHED,       /*   the deadline could not have been met */
    FS_COUNT_BATCHES,
    FS_COUNT_ROWS,
    FS_COUNT_PADDED_ROWS,
    FS_COUNT_UNBATCHED,  /* batches that were one call run alone */
    FS_COUNT_COMPILED,   /* batches that ran under XLA */
    FS_COUNT_RERUNS,     /* calls run once more by themselves after their batch failed */
    FS_COUNT_RUN_US,
    FS_COUNTERS
};


/* The calls that wait for one signature. */
typedef struct fs_queue {
    fs_servable *servable;
    const fs_signature *signature;
    const fs_signature_plan *plan;
    uint32_t index;
    fs_meter *meter;   /* where its calls are counted; NULL: nowhere */
    bool static_inner; /* every inner dim of every input is known */

    _Alignas(64) atomic_llong rows_waiting; /* producers add, whoever takes or drops subtracts */
    atomic_llong calls_waiting;
    atomic_llong oldest_us;  /* arrival of the oldest waiting call, roughly */

    _Alignas(64) atomic_bool claimed; /* acquire/release: hands the consumer's role on */
    fs_ring *ring;
    fs_call *first, *last;            /* taken from the ring and not launched; the claimant's */

    _Atomic(float) cost_us[FS_MAX_BUCKETS]; /* kept current by executors */
    atomic_uint_fast64_t counters[FS_COUNTERS];
    atomic_uint_fast64_t batch_rows_log2[FS_MAX_BUCKETS]; /* [i]: batches of 2^(i-1) < rows <= 2^i */
} fs_queue;

struct fs_servable {
    char *model;
    int64_t version;
    fs_runtime runtime;
    fs_model *handle;
    const fs_model_spec *spec;         /* outlives the servable */
    const fs_signature_plan *plans;    /* likewise, one for each signature */
    fs_batching batching;
    int64_t queue_rows;                /* bound on rows waiting in one queue */

    fs_queue *queues;                  /* n_signatures */
    uint32_t n_queues;
    fs_metrics *metrics;               /* that the meters are of; NULL: there are none */
    fs_meter *named_meter;             /* of runs by name */

    atomic_ullong executors;           /* bit i: executor i may serve it */
    atomic_ullong reserved;            /* bit i: executor i serves only it */
    _Alignas(64) atomic_llong virtual_us; /* execution time it was given, divided by its weight */
    atomic_int running;                /* batches being run */
    atomic_bool background;            /* it only has copies of requests to run: others go first */

    _Alignas(64) atomic_long pins;     /* calls, plus one while it is published */
    void (*unpinned)(fs_servable *servable); /* called once, by whoever takes the last pin away */
    void *user;                        /* the loader's */
};

/* Opens the model and prepares its queues. spec and plans outlive the servable. Blocks. */
int fs_servable_open(fs_runtime runtime, const char *model, int64_t version, const fs_model_spec *spec,
                     const fs_signature_plan *plans, const fs_batching *batching, fs_servable **out,
                     fs_error *err);

/* From here on what becomes of its calls is counted, and of runs by name where they are served. Nobody but the caller
 * knows it yet. NULL: it is not. */
void fs_servable_meter(fs_servable *servable, fs_metrics *metrics, bool named_runs);

/* Frees it, and gives its meters back. No pins, no executor that still sees its queues. */
void fs_servable_close(fs_servable *servable);

/* Statistics, any thread. */
const char *fs_counter_name(int counter);
uint64_t fs_servable_count(const fs_servable *servable, uint32_t queue, int counter);
uint64_t fs_servable_batches_of(const fs_servable *servable, uint32_t queue, int log2_rows);

/* The queue of a signature; NULL when there is none of that name. */
fs_queue *fs_servable_find(fs_servable *servable, fs_slice signature);

static inline void fs_servable_pin(fs_servable *servable, long n)
{
    /* relaxed: the caller found it published inside an epoch bracket, or holds a pin. */
    atomic_fetch_add_explicit(&servable->pins, n, memory_order_relaxed);
}

/* A pin for who may have come too late: false when the last one is gone, and the servable with it. Inside
 * an epoch bracket in which the caller found it in the list that executors serve. */
static inline bool fs_servable_try_pin(fs_servable *servable)
{
    long pins = atomic_load_explicit(&servable->pins, memory_order_relaxed);
    while (pins > 0) {
        /* relaxed: as for fs_servable_pin. */
        if (atomic_compare_exchange_weak_explicit(&servable->pins, &pins, pins + 1, memory_order_relaxed,
                                                  memory_order_relaxed))
            return true;
    }
    return false;
}

static inline void fs_servable_unpin(fs_servable *servable, long n)
{
    /* acq_rel: whoever closes must see every call's use as finished. */
    if (atomic_fetch_sub_explicit(&servable->pins, n, memory_order_acq_rel) == n)
        servable->unpinned(servable);
}

#endif
