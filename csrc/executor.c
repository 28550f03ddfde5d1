/* executor: see executor.h.
 *
 * Parking. `idle` has a bit for each parked executor. An executor sets its bit and then looks at the
 * queues once more; a producer counts its call and then looks at the bits. Both are seq_cst, so one of
 * them sees the other and no call is left waiting beside a sleeper. Whoever clears a bit has the duty to
 * wake that executor, so two pushes never wake the same one, and a wake is never lost: it is a token that
 * the sleeper consumes. */
#include "executor.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "batch.h"
#include "clock.h"
#include "late.h"
#include "multi.h"
#include "spread.h"
#include "trace.h"

_Static_assert((int)FS_MAX_EXECUTORS <= (int)FS_SPREAD_THREADS, "each executor has a place");

typedef struct serving {
    uint32_t n;
    fs_servable *servables[];
} serving;

typedef struct executor {
    fs_executors *pool;
    int index;
    pthread_t thread;
    fs_slab *slab;
    fs_epoch_reader *reader;
    fs_queue_view *views; /* scratch, room for `room` queues */
    fs_queue **queues;
    uint32_t room;
    fs_item *items;
    uint32_t items_room;
    fs_track *track;
    uint64_t random; /* for lots */
    _Alignas(64) _Atomic(uint32_t) token; /* 1: woken */
    fs_late late;
} executor;

struct fs_executors {
    fs_executors_config config;
    fs_reply_config replies;
    const fs_policy *policy;
    fs_epoch *epoch;
    _Atomic(serving *) serving;
    atomic_bool stop;
    int started;
    _Alignas(64) atomic_ullong idle; /* bit i: executor i is parked and nobody has taken it on to wake it */
    atomic_int spinner; /* who looks for work without sleeping, its index + 1; 0: nobody */
    _Alignas(64) atomic_llong clock_us; /* virtual time of the queue that was picked last */
    fs_spread spread;
    executor executors[];
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic(uint32_t) *word, uint32_t value, int64_t timeout_us)
{
    struct timespec t = {.tv_sec = timeout_us / 1000000, .tv_nsec = timeout_us % 1000000 * 1000};
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, timeout_us < 0 ? NULL : &t, NULL, 0);
}

static void wake(executor *e)
{
    /* release: pairs with the acquire in park. */
    atomic_store_explicit(&e->token, 1, memory_order_release);
    syscall(SYS_futex, &e->token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* A bit for each that is not parked. */
static unsigned long long working(fs_executors *pool)
{
    unsigned long long all = ~0ull >> (FS_MAX_EXECUTORS - pool->config.threads);
    return all & ~atomic_load_explicit(&pool->idle, memory_order_relaxed);
}

void fs_executors_spread(fs_executors *pool, int64_t now_us)
{
    if (!pool->config.no_spread && fs_spread_due(&pool->spread, now_us))
        fs_spread_look(&pool->spread, working(pool), now_us);
}

bool fs_executors_wait(fs_executors *pool, int64_t now_us)
{
    bool wait = false;
    for (int i = 0; i < pool->config.threads; i++)
        wait |= fs_late_look(&pool->executors[i].late, now_us);
    return wait;
}

void fs_executors_wake(fs_executors *pool, fs_servable *servable)
{
    unsigned long long may = atomic_load_explicit(&servable->executors, memory_order_relaxed);
    unsigned long long mine = atomic_load_explicit(&servable->reserved, memory_order_relaxed);
    /* seq_cst: in one order with the caller's counting of its call before, and with the spinner's stepping
     * down and its last look after. */
    int spinner = atomic_load_explicit(&pool->spinner, memory_order_seq_cst);
    if (spinner > 0 && (may >> (spinner - 1) & 1) != 0)
        return;
    for (;;) {
        unsigned long long idle = atomic_load_explicit(&pool->idle, memory_order_seq_cst) & may;
        if (idle == 0)
            return; /* everyone who may is busy, and looks again before parking */
        if ((idle & mine) != 0)
            idle &= mine;
        unsigned long long bit = idle & -idle;
        if (atomic_fetch_and_explicit(&pool->idle, ~bit, memory_order_seq_cst) & bit) {
            wake(&pool->executors[__builtin_ctzll(bit)]);
            return;
        }
    }
}

/* ---- looking for work ---------------------------------------------------------------------- */

static bool may_serve(const executor *e, fs_servable *servable)
{
    return atomic_load_explicit(&servable->executors, memory_order_relaxed) >> e->index & 1;
}

/* How many batches of it may run at once; 0: any. One that only has shadows to run never takes more than an
 * executor from those that answer. */
static int64_t cap_of(fs_servable *servable)
{
    bool background = atomic_load_explicit(&servable->background, memory_order_relaxed);
    return background ? 1 : servable->batching.num_batch_threads;
}

/* Room in the scratch for `n` queues. */
static bool reserve(executor *e, uint32_t n)
{
    if (n <= e->room)
        return true;
    fs_queue_view *views = realloc(e->views, n * sizeof *views);
    if (views != NULL)
        e->views = views;
    fs_queue **queues = realloc(e->queues, n * sizeof(fs_queue *));
    if (queues != NULL)
        e->queues = queues;
    if (views == NULL || queues == NULL)
        return false;
    e->room = n;
    return true;
}

/* Collects the queues with waiting calls that this executor may serve. Inside an epoch bracket. */
static int look(executor *e, int64_t clock_us)
{
    const serving *s = atomic_load_explicit(&e->pool->serving, memory_order_seq_cst);
    int n = 0;
    for (uint32_t i = 0; s != NULL && i < s->n; i++) {
        fs_servable *servable = s->servables[i];
        if (!may_serve(e, servable))
            continue;
        int64_t cap = cap_of(servable);
        /* seq_cst: as for calls_waiting below. Who frees a place looks at the queues next, and takes or
         * hands on what waits for it. */
        if (cap > 0 && atomic_load_explicit(&servable->running, memory_order_seq_cst) >= cap)
            continue;
        for (uint32_t q = 0; q < servable->n_queues; q++) {
            fs_queue *queue = &servable->queues[q];
            /* seq_cst: see the head of this file. */
            if (atomic_load_explicit(&queue->calls_waiting, memory_order_seq_cst) <= 0)
                continue;
            if (!reserve(e, (uint32_t)n + 1))
                return n;
            int64_t oldest_us = atomic_load_explicit(&queue->oldest_us, memory_order_relaxed);
            bool full = atomic_load_explicit(&queue->rows_waiting, memory_order_relaxed) >=
                        servable->batching.max_batch_size;
            int64_t virtual_us = atomic_load_explicit(&servable->virtual_us, memory_order_relaxed);
            e->queues[n] = queue;
            e->views[n] = (fs_queue_view){
                .oldest_us = oldest_us,
                .ready_us = full || !queue->plan->batched ? 0 : oldest_us + servable->batching.timeout_us,
                /* Who was idle does not save up its share. */
                .virtual_us = virtual_us > clock_us ? virtual_us : clock_us,
                .weight = servable->batching.weight,
            };
            n++;
        }
    }
    return n;
}

/* ---- running ------------------------------------------------------------------------------- */

enum { BACKGROUND = 16 }; /* a version that runs in the background gets so many times less than its weight */

static void charge(fs_servable *servable, int64_t from_us, int64_t cost_us)
{
    double weight = servable->batching.weight > 0 ? servable->batching.weight : 1;
    if (atomic_load_explicit(&servable->background, memory_order_relaxed))
        weight /= BACKGROUND;
    long long before = atomic_load_explicit(&servable->virtual_us, memory_order_relaxed);
    long long after;
    do {
        after = (before > from_us ? before : from_us) + (long long)((double)cost_us / weight);
    } while (!atomic_compare_exchange_weak_explicit(&servable->virtual_us, &before, after,
                                                    memory_order_relaxed, memory_order_relaxed));
}

static void learn_cost(fs_queue *queue, int64_t rows, int64_t run_us)
{
    uint32_t b;
    if (fs_queue_bucket(queue, rows, &b) == 0)
        return;
    float before = atomic_load_explicit(&queue->cost_us[b], memory_order_relaxed);
    float after = before > 0 ? before + ((float)run_us - before) / 8 : (float)run_us;
    /* A lost update between two executors is one sample less. */
    atomic_store_explicit(&queue->cost_us[b], after, memory_order_relaxed);
}

/* What the next batch of this queue will probably take. */
static int64_t expected_us(const fs_queue *queue)
{
    int64_t rows = atomic_load_explicit(&queue->rows_waiting, memory_order_relaxed);
    if (rows > queue->servable->batching.max_batch_size)
        rows = queue->servable->batching.max_batch_size;
    uint32_t b;
    if (fs_queue_bucket(queue, rows, &b) == 0)
        return 0;
    return (int64_t)atomic_load_explicit(&queue->cost_us[b], memory_order_relaxed);
}

/* Sends home what was dropped; the number of calls. */
static long send_dropped(executor *e, fs_queue *queue, fs_taking *taking, fs_homeward *homeward)
{
    long n = 0;
    while (taking->dropped != NULL) {
        fs_call *call = taking->dropped;
        taking->dropped = call->next;
        if (call->whole != NULL)
            call = fs_multi_finish(call, &e->pool->replies, e->slab);
        if (call != NULL)
            fs_homeward_add(homeward, call);
        n++;
    }
    if (n > 0)
        fs_count(queue, FS_COUNT_FAILED, (uint64_t)n);
    return n;
}

/* Forms and runs one batch of a queue that was claimed and whose servable is pinned. Ends the claim and
 * the pin. */
static void serve(executor *e, fs_queue *queue, int64_t clock_us)
{
    fs_executors *pool = e->pool;
    fs_servable *servable = queue->servable;
    fs_taking taking = {.items = e->items, .room = e->items_room, .taken_ns = fs_now_ns()};
    int64_t guess_us = expected_us(queue);
    int64_t taken_us = taking.taken_ns / 1000;
    fs_late_begin(&e->late, taken_us, guess_us);
    fs_queue_take(queue, pool->policy, e->slab, taken_us, &taking);
    fs_queue_unclaim(queue);
    fs_epoch_leave(e->reader);

    /* More is waiting than this batch takes: another executor may start on it now. */
    if (atomic_load_explicit(&queue->calls_waiting, memory_order_seq_cst) > 0)
        fs_executors_wake(pool, servable);

    fs_homeward homeward = {.n = 0};
    long unpin = 1;
    fs_batch_result result = {0};
    if (taking.n > 0) {
        charge(servable, clock_us, guess_us); /* before the run, so that others see it as spent */
        result = fs_batch_run(queue, &taking, &pool->replies, e->slab, &homeward);
        if (!taking.solo)
            learn_cost(queue, result.run_rows, result.run_us);
        charge(servable, INT64_MIN / 2, result.run_us + result.explained_us - guess_us);
        unpin += result.finished;
    }
    unpin += send_dropped(e, queue, &taking, &homeward);
    uint32_t wanted = fs_track_wanted(e->track);
    if (wanted != 0)
        fs_trace_batch(e->track, wanted, queue, &taking, &result, taken_us, &homeward, e->slab, &e->random);
    /* Before the unpin: a version is retired when its calls are answered. */
    fs_homeward_post(&homeward);
    atomic_fetch_sub_explicit(&servable->running, 1, memory_order_seq_cst);
    /* Not this executor's any more, so that it will not see what waits for the place. */
    if (!may_serve(e, servable))
        fs_executors_wake(pool, servable);
    fs_servable_unpin(servable, unpin);
    fs_late_end(&e->late);
}

/* This executor goes off with queue `taken`, and what it was woken for may have been another: calls that
 * wait in the others, or wait to be ripe, need somebody who is not about to be away for a whole run.
 * Inside the bracket. */
static void hand_on(executor *e, int taken, int n)
{
    for (int i = 0; i < n; i++) {
        if (i != taken)
            fs_executors_wake(e->pool, e->queues[i]->servable);
    }
}

/* The claimed queue to serve, its servable pinned and counted as running, still inside the bracket; or NULL:
 * outside, and *wait_until_us says until when there is nothing to do. */
static fs_queue *find_work(executor *e, int64_t *clock_us, int64_t *wait_until_us)
{
    fs_executors *pool = e->pool;
    *wait_until_us = INT64_MAX;
    *clock_us = atomic_load_explicit(&pool->clock_us, memory_order_relaxed);
    fs_epoch_enter(pool->epoch, e->reader);
    int n = look(e, *clock_us);
    while (n > 0) {
        int i = pool->policy->pick(e->views, n, fs_now_us(), wait_until_us);
        if (i < 0 || i >= n)
            break;
        fs_queue *queue = e->queues[i];
        fs_servable *servable = queue->servable;
        if (fs_queue_claim(queue)) {
            int64_t cap = cap_of(servable);
            int running = atomic_fetch_add_explicit(&servable->running, 1, memory_order_seq_cst);
            /* No pin can be had when others have answered its last call meanwhile and it is being closed. */
            if ((cap <= 0 || running < cap) && fs_servable_try_pin(servable)) {
                *clock_us = e->views[i].virtual_us;
                atomic_store_explicit(&pool->clock_us, *clock_us, memory_order_relaxed);
                hand_on(e, i, n);
                return queue;
            }
            atomic_fetch_sub_explicit(&servable->running, 1, memory_order_seq_cst);
            fs_queue_unclaim(queue);
        } else {
            *wait_until_us = 0; /* its claimant is done in a moment: look again rather than park */
        }
        e->queues[i] = e->queues[n - 1];
        e->views[i] = e->views[n - 1];
        n--;
    }
    fs_epoch_leave(e->reader);
    return NULL;
}

/* When the first of the queues with calls that this executor could serve is ripe; INT64_MAX: none waits. */
static int64_t first_ripe_us(executor *e)
{
    fs_epoch_enter(e->pool->epoch, e->reader);
    int n = look(e, 0);
    fs_epoch_leave(e->reader);
    int64_t first_us = INT64_MAX;
    for (int i = 0; i < n; i++) {
        if (e->views[i].ready_us < first_us)
            first_us = e->views[i].ready_us;
    }
    return first_us;
}

/* Looks for work for spin_us, if no other executor is doing so: one is enough, and processors are for running
 * models. true: there is some. While one spins, pushes wake nobody else. */
static bool spin(executor *e)
{
    fs_executors *pool = e->pool;
    int nobody = 0;
    if (!atomic_compare_exchange_strong_explicit(&pool->spinner, &nobody, e->index + 1, memory_order_seq_cst,
                                                 memory_order_relaxed))
        return false;
    int64_t now_us = fs_now_us();
    int64_t until_us = now_us + pool->config.spin_us;
    bool found = false;
    while (!found && now_us < until_us && !atomic_load_explicit(&pool->stop, memory_order_relaxed)) {
        for (int i = 0; i < 8; i++)
            relax();
        now_us = fs_now_us();
        found = first_ripe_us(e) <= now_us;
    }
    /* Stepping down comes before the next look (find_work's, or park's), so a push that woke nobody
     * because of this spinner is seen there. */
    atomic_store_explicit(&pool->spinner, 0, memory_order_seq_cst);
    return found;
}

/* Sleeps until woken, or until a time. */
static void park(executor *e, int64_t until_us)
{
    fs_executors *pool = e->pool;
    unsigned long long bit = 1ull << e->index;
    atomic_fetch_or_explicit(&pool->idle, bit, memory_order_seq_cst);
    /* Calls that came since the last look, before the bit was there to be seen: they may be ripe, or start
     * a timer. */
    int64_t ripe_us = first_ripe_us(e);
    if (ripe_us < until_us)
        until_us = ripe_us;
    bool timed = until_us != INT64_MAX;
    bool stay_up = atomic_load_explicit(&pool->stop, memory_order_seq_cst);
    while (!stay_up && atomic_load_explicit(&e->token, memory_order_acquire) == 0) {
        int64_t left_us = timed ? until_us - fs_now_us() : -1;
        if (timed && left_us <= 0)
            break;
        futex_wait(&e->token, 0, left_us);
    }
    if (!(atomic_fetch_and_explicit(&pool->idle, ~bit, memory_order_seq_cst) & bit)) {
        /* Somebody cleared the bit, so the token is there or about to come. */
        while (atomic_load_explicit(&e->token, memory_order_acquire) == 0)
            relax();
    }
    atomic_store_explicit(&e->token, 0, memory_order_relaxed);
}

static void *run_executor(void *arg)
{
    executor *e = arg;
    fs_executors *pool = e->pool;
    fs_late_join(&e->late);
    if (!pool->config.no_spread)
        fs_spread_join(&pool->spread, e->index);
    /* acquire: pairs with stop's store, only to be seen in time. */
    while (!atomic_load_explicit(&pool->stop, memory_order_acquire)) {
        int64_t clock_us, until_us;
        fs_queue *queue = find_work(e, &clock_us, &until_us);
        if (queue != NULL) {
            if (!pool->config.no_spread)
                fs_spread_work(&pool->spread, e->index);
            serve(e, queue, clock_us);
            continue;
        }
        if (until_us == 0) {
            sched_yield();
            continue;
        }
        if (pool->config.spin_us > 0 && spin(e))
            continue;
        park(e, until_us);
    }
    return NULL;
}

/* ---- the pool ------------------------------------------------------------------------------ */

static void free_pool(fs_executors *pool)
{
    for (int i = 0; i < pool->config.threads; i++) {
        executor *e = &pool->executors[i];
        fs_slab_release(e->slab);
        free(e->views);
        free(e->queues);
        free(e->items);
    }
    free(atomic_load_explicit(&pool->serving, memory_order_acquire));
    free(pool);
}

fs_executors *fs_executors_start(const fs_executors_config *config, const fs_policy *policy, fs_epoch *epoch)
{
    enum { SLAB_CACHE_BYTES = 64 << 20, ITEMS = 4096 };
    if (config->threads < 1 || config->threads > FS_MAX_EXECUTORS)
        return NULL; /* an executor is a bit of a word */
    size_t size = sizeof(fs_executors) + (size_t)config->threads * sizeof(executor);
    fs_executors *pool = aligned_alloc(64, (size + 63) & ~(size_t)63);
    if (pool == NULL)
        return NULL;
    memset(pool, 0, size);
    pool->config = *config;
    pool->replies = (fs_reply_config){config->tensor_content, config->compress_replies};
    pool->policy = policy;
    pool->epoch = epoch;
    for (int i = 0; i < config->threads; i++) {
        executor *e = &pool->executors[i];
        e->pool = pool;
        e->index = i;
        e->slab = fs_slab_new(SLAB_CACHE_BYTES);
        e->items = malloc(ITEMS * sizeof *e->items);
        e->items_room = ITEMS;
        e->reader = fs_epoch_join(epoch);
        e->random = (uint64_t)i << 32; /* each a sequence of its own */
        if (e->slab == NULL || e->items == NULL || e->reader == NULL) {
            fs_executors_stop(pool);
            return NULL;
        }
    }
    for (int i = 0; i < config->threads; i++) {
        executor *e = &pool->executors[i];
        char name[24];
        snprintf(name, sizeof name, "fs-exec-%d", i);
        e->track = fs_trace_track(config->trace, name);
        if (pthread_create(&e->thread, NULL, run_executor, e) != 0) {
            fs_executors_stop(pool);
            return NULL;
        }
        pool->started = i + 1;
        pthread_setname_np(e->thread, name);
    }
    return pool;
}

void fs_executors_stop(fs_executors *pool)
{
    if (pool == NULL)
        return;
    /* seq_cst: in one order with the bit that park sets before it looks at this. */
    atomic_store_explicit(&pool->stop, true, memory_order_seq_cst);
    for (int i = 0; i < pool->started; i++) {
        unsigned long long bit = 1ull << i;
        if (atomic_fetch_and_explicit(&pool->idle, ~bit, memory_order_seq_cst) & bit)
            wake(&pool->executors[i]);
        pthread_join(pool->executors[i].thread, NULL);
    }
    free_pool(pool);
}

/* Deals executors to the models that reserve some, from the last on; one at least stays for everybody. */
static void deal(const fs_executors *pool, const serving *s)
{
    unsigned long long all = pool->config.threads == 64 ? ~0ull : (1ull << pool->config.threads) - 1;
    unsigned long long shared = all;
    for (uint32_t i = 0; i < s->n; i++) {
        fs_servable *servable = s->servables[i];
        unsigned long long mine = 0;
        for (uint32_t k = 0; k < i && mine == 0; k++) { /* versions of one model share what is theirs */
            if (strcmp(s->servables[k]->model, servable->model) == 0)
                mine = atomic_load_explicit(&s->servables[k]->reserved, memory_order_relaxed);
        }
        int32_t due = mine == 0 ? servable->batching.reserved_executors : 0;
        for (; due > 0 && (shared & (shared - 1)) != 0; due--) {
            unsigned long long top = 1ull << (63 - __builtin_clzll(shared));
            shared &= ~top;
            mine |= top;
        }
        atomic_store_explicit(&servable->reserved, mine, memory_order_relaxed);
    }
    for (uint32_t i = 0; i < s->n; i++) {
        unsigned long long mine = atomic_load_explicit(&s->servables[i]->reserved, memory_order_relaxed);
        atomic_store_explicit(&s->servables[i]->executors, shared | mine, memory_order_relaxed);
    }
}

int fs_executors_serve(fs_executors *pool, fs_servable **servables, uint32_t n)
{
    serving *next = malloc(sizeof *next + n * sizeof(fs_servable *));
    if (next == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    next->n = n;
    memcpy(next->servables, servables, n * sizeof(fs_servable *));
    deal(pool, next);
    /* seq_cst: as fs_epoch_wait asks for. */
    serving *before = atomic_exchange_explicit(&pool->serving, next, memory_order_seq_cst);
    fs_epoch_wait(pool->epoch);
    free(before);
    /* Who may serve what has changed: those who sleep look again. */
    for (uint32_t i = 0; i < (uint32_t)pool->config.threads; i++) {
        unsigned long long bit = 1ull << i;
        if (atomic_fetch_and_explicit(&pool->idle, ~bit, memory_order_seq_cst) & bit)
            wake(&pool->executors[i]);
    }
    return 0;
}

uint64_t fs_executors_system_allocs(const fs_executors *pool)
{
    uint64_t n = 0;
    for (int i = 0; i < pool->started; i++)
        n += fs_slab_read(pool->executors[i].slab).system_allocs;
    return n;
}

int64_t fs_executors_cpu_us(const fs_executors *pool)
{
    int64_t us = 0;
    for (int i = 0; i < pool->started; i++) {
        clockid_t clock;
        struct timespec t;
        if (pthread_getcpuclockid(pool->executors[i].thread, &clock) == 0 && clock_gettime(clock, &t) == 0)
            us += (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
    return us;
}
