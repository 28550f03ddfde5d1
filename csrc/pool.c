/* pool: see pool.h.
 *
 * A loop is on the pool's list as long as it has pieces that nobody has taken. Pieces are taken by counting
 * up, without the lock; who comes on or off a loop holds it. The caller leaves when no helper is on its loop,
 * so that the loop can live on its stack. */
#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct loop {
    fs_pool_fn *fn;
    void *arg;
    uint64_t n;
    _Atomic uint64_t next; /* the first piece that nobody has taken */
    uint32_t helpers;      /* on it now; under the lock */
    struct loop *after;    /* on the list; under the lock */
} loop;

typedef struct helper {
    fs_pool *pool;
    pthread_t thread;
    uint32_t slot;
} helper;

struct fs_pool {
    pthread_mutex_t lock;
    pthread_cond_t waiting; /* a loop has come, or the end */
    pthread_cond_t left;    /* the last helper of some loop has left it */
    loop *loops;
    bool ending;
    pid_t pid; /* of the process that has the threads */
    uint32_t n_helpers;
    helper helpers[];
};

static void work(loop *l, uint32_t slot)
{
    for (;;) {
        /* Relaxed: it only hands out numbers. What pieces write goes over with the lock, as helpers leave. */
        uint64_t index = atomic_fetch_add_explicit(&l->next, 1, memory_order_relaxed);
        if (index >= l->n)
            return;
        l->fn(l->arg, index, slot);
    }
}

/* Nobody else is to come to it. Under the lock. */
static void unlist(fs_pool *pool, const loop *l)
{
    for (loop **at = &pool->loops; *at != NULL; at = &(*at)->after)
        if (*at == l) {
            *at = l->after;
            return;
        }
}

static void *help(void *arg)
{
    helper *self = arg;
    fs_pool *pool = self->pool;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (pool->loops == NULL && !pool->ending)
            pthread_cond_wait(&pool->waiting, &pool->lock);
        if (pool->ending)
            break;
        loop *l = pool->loops;
        l->helpers++;
        pthread_mutex_unlock(&pool->lock);
        work(l, self->slot);
        pthread_mutex_lock(&pool->lock);
        unlist(pool, l);
        if (--l->helpers == 0)
            pthread_cond_broadcast(&pool->left);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

fs_pool *fs_pool_new(uint32_t helpers)
{
    fs_pool *pool = calloc(1, sizeof *pool + helpers * sizeof(helper));
    if (pool == NULL)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->waiting, NULL);
    pthread_cond_init(&pool->left, NULL);
    pool->pid = getpid();

    /* Signals are for the threads that the program knows of. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t i = 0; i < helpers; i++) {
        helper *h = &pool->helpers[i];
        h->pool = pool;
        h->slot = i + 1;
        if (pthread_create(&h->thread, NULL, help, h) != 0)
            break;
        pthread_setname_np(h->thread, "fs-pack");
        pool->n_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pool;
}

void fs_pool_free(fs_pool *pool)
{
    if (pool == NULL)
        return;
    if (pool->pid == getpid()) { /* a forked child has neither the threads nor any use for their lock */
        pthread_mutex_lock(&pool->lock);
        pool->ending = true;
        pthread_cond_broadcast(&pool->waiting);
        pthread_mutex_unlock(&pool->lock);
        for (uint32_t i = 0; i < pool->n_helpers; i++)
            pthread_join(pool->helpers[i].thread, NULL);
        pthread_cond_destroy(&pool->waiting);
        pthread_cond_destroy(&pool->left);
        pthread_mutex_destroy(&pool->lock);
    }
    free(pool);
}

uint32_t fs_pool_slots(const fs_pool *pool)
{
    return pool == NULL ? 1 : pool->n_helpers + 1;
}

void fs_pool_run(fs_pool *pool, uint64_t n, fs_pool_fn *fn, void *arg)
{
    loop l = {.fn = fn, .arg = arg, .n = n};
    atomic_init(&l.next, 0);
    if (n <= 1 || pool == NULL || pool->n_helpers == 0 || pool->pid != getpid()) {
        work(&l, 0);
        return;
    }
    pthread_mutex_lock(&pool->lock);
    l.after = pool->loops;
    pool->loops = &l;
    if (n - 1 >= pool->n_helpers)
        pthread_cond_broadcast(&pool->waiting);
    else
        for (uint64_t i = 1; i < n; i++)
            pthread_cond_signal(&pool->waiting);
    pthread_mutex_unlock(&pool->lock);

    work(&l, 0);

    pthread_mutex_lock(&pool->lock);
    unlist(pool, &l);
    while (l.helpers > 0)
        pthread_cond_wait(&pool->left, &pool->lock);
    pthread_mutex_unlock(&pool->lock);
}
