/* queue: the calls that wait for one signature, from the push on an I/O thread to the take for a batch.
 *
 * Any thread pushes. Taking needs the claim, which one executor at a time holds; between claims the list of
 * taken-off-the-ring calls rests in the queue. Knows calls and batches' limits, not tensors' bytes. */
#ifndef FS_QUEUE_H
#define FS_QUEUE_H

#include "call.h"
#include "policy.h"

static inline void fs_count(fs_queue *queue, enum fs_counter counter, uint64_t n)
{
    /* relaxed: statistics order nothing. */
    atomic_fetch_add_explicit(&queue->counters[counter], n, memory_order_relaxed);
}

/* Some rows of a call that go into a batch together. */
typedef struct fs_item {
    fs_call *call;
    int64_t first_row;
    int64_t rows;
} fs_item;

/* What one take brought. */
typedef struct fs_taking {
    fs_item *items;    /* the caller's array of `room` */
    uint32_t room;
    uint32_t n;
    int64_t rows;
    bool solo;         /* one call that runs alone */
    fs_call *dropped;  /* cancelled, expired or shed: outcome set, linked by next */
    int64_t taken_ns;  /* when; the caller's */
} fs_taking;

/* Queues a call whose servable the caller has pinned; wakes an executor when it was the first to wait. On
 * failure (UNAVAILABLE, the queue is full) the call is still the caller's. A session's call has its meter from here
 * on, which it must be counted in when it is finished (fs_meter_finished). Any thread, inside a bracket. */
int fs_queue_push(fs_queue *queue, fs_call *call, fs_error *err);

/* The consumer's role, for a moment. */
static inline bool fs_queue_claim(fs_queue *queue)
{
    /* acquire: pairs with unclaim's release, so the list is as the last claimant left it. */
    return !atomic_load_explicit(&queue->claimed, memory_order_relaxed) &&
           !atomic_exchange_explicit(&queue->claimed, true, memory_order_acquire);
}

static inline void fs_queue_unclaim(fs_queue *queue)
{
    atomic_store_explicit(&queue->claimed, false, memory_order_release);
}

/* Takes calls for the next batch: as many rows as the policy says, of calls whose rows have one shape.
 * Nothing when none is left that is still wanted. The claimant. */
void fs_queue_take(fs_queue *queue, const fs_policy *policy, fs_slab *slab, int64_t now_us, fs_taking *out);

/* Adds what has come meanwhile, up to `rows` in all, to a taking that is not launched yet. The claimant. */
void fs_queue_top_up(fs_queue *queue, fs_slab *slab, int64_t now_us, int64_t rows, fs_taking *out);

/* The smallest bucket of at least `rows`; 0 when there is none. *index is its number. */
int64_t fs_queue_bucket(const fs_queue *queue, int64_t rows, uint32_t *index);

#endif
