/* loader: see loader.h. */
#include "loader.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "breaks.h"
#include "clock.h"
#include "lane.h"
#include "priority.h"
#include "trace.h"

struct fs_loader {
    fs_loader_config config;
    fs_catalog *catalog;
    fs_executors *executors;
    fs_priority priority;
    fs_lane long_lane;  /* load, close: by `loaders` */
    fs_lane short_lane; /* the rest: by `switcher` */

    fs_servable **serving; /* what executors look at: published, or retired with calls left; the switcher's */
    uint32_t n_serving;

    int n_loaders;
    pthread_t loaders[FS_PRIORITY_THREADS];
    bool has_switcher;
    pthread_t switcher;
    bool has_watcher;
    pthread_t watcher;
    sem_t watches; /* one for each piece of work that gives way, and one at the end */
    atomic_bool ends;
    atomic_int numbers; /* handed out to loaders as they start */
};

static bool is_long(const fs_task *task)
{
    return task->kind == FS_TASK_LOAD || task->kind == FS_TASK_CLOSE;
}

/* Adds a servable to what executors look at, or takes it away. The switcher. */
static int change_serving(fs_loader *loader, fs_servable *servable, bool add)
{
    uint32_t n = 0;
    int rc = -FS_RESOURCE_EXHAUSTED;
    fs_servable **next = malloc((loader->n_serving + 1) * sizeof(fs_servable *));
    if (next != NULL) {
        for (uint32_t i = 0; i < loader->n_serving; i++) {
            if (loader->serving[i] != servable)
                next[n++] = loader->serving[i];
        }
        if (add)
            next[n++] = servable;
        rc = fs_executors_serve(loader->executors, next, n);
    }
    if (rc == 0) {
        free(loader->serving);
        loader->serving = next;
        loader->n_serving = n;
    } else {
        free(next);
    }
    return rc;
}

/* Takes a servable away from the executors. Nobody may close it before, so without memory for the shorter
 * list this is tried until there is some. */
static void stop_serving(fs_loader *loader, fs_servable *servable)
{
    while (change_serving(loader, servable, false) != 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

typedef struct retirement {
    fs_loader *loader;
    fs_task *task; /* NULL until a retire asks for it */
    bool replaced; /* out of the catalog already */
} retirement;

/* The last pin is gone. Any thread, and most often an executor: hand over, and no more. */
static void unpinned(fs_servable *servable)
{
    retirement *r = servable->user;
    fs_lane_post(&r->loader->short_lane, &r->task->mail.node);
}

static void finish(fs_task *task)
{
    fs_owner_post(task->home, &task->mail);
}

static void enter(fs_task *task, enum fs_stage stage)
{
    /* relaxed: a number to show. */
    atomic_store_explicit(&task->stage, stage, memory_order_relaxed);
}

static int load(fs_loader *loader, fs_task *task)
{
    enter(task, FS_STAGE_OPEN);
    retirement *r = malloc(sizeof *r);
    if (r == NULL)
        return fs_fail(&task->err, FS_RESOURCE_EXHAUSTED, "out of memory");
    int rc = fs_servable_open(task->runtime, task->model, task->version, task->spec, task->plans,
                              &task->batching, &task->servable, &task->err);
    if (rc != 0) {
        free(r);
        return rc;
    }
    *r = (retirement){.loader = loader};
    task->servable->user = r;
    task->servable->unpinned = unpinned;
    enter(task, FS_STAGE_WARM);
    task->opened_us = fs_now_us();
    rc = fs_servable_warm(task->servable, &task->warm, &task->err);
    fs_priority_raise_children(&loader->priority);
    if (rc != 0) {
        fs_servable_close(task->servable);
        task->servable = NULL;
        free(r);
    } else {
        fs_servable_meter(task->servable, loader->config.metrics, loader->config.named_runs);
    }
    return rc;
}

static int publish(fs_loader *loader, fs_task *task)
{
    fs_servable *servable = task->servable;
    /* relaxed: nobody else sees it yet; the catalog's swap publishes. */
    atomic_store_explicit(&servable->pins, 1, memory_order_relaxed);
    int rc = change_serving(loader, servable, true);
    if (rc == 0) {
        rc = task->replaces != NULL ? fs_catalog_replace(loader->catalog, task->replaces, servable)
                                    : fs_catalog_publish(loader->catalog, servable);
        if (rc != 0)
            stop_serving(loader, servable);
    }
    if (rc == 0 && task->replaces != NULL)
        ((retirement *)task->replaces->user)->replaced = true;
    if (rc != 0)
        fs_fail(&task->err, (enum fs_code)-rc, rc == -FS_ALREADY_EXISTS ? "that version is published already"
                                               : rc == -FS_NOT_FOUND    ? "that version is not published"
                                                                        : "out of memory");
    return rc;
}

/* true: done (rc set); false: it goes on when the last call has let go. */
static bool retire(fs_loader *loader, fs_task *task)
{
    fs_servable *servable = task->servable;
    retirement *r = servable->user;
    if (r->task == task) { /* back from unpinned */
        stop_serving(loader, servable);
        r->task = NULL;
        return true;
    }
    task->rc = r->replaced ? 0 : fs_catalog_withdraw(loader->catalog, servable);
    if (task->rc != 0) {
        bool missing = task->rc == -FS_NOT_FOUND;
        fs_fail(&task->err, (enum fs_code)-task->rc,
                missing ? "that version is not published" : "out of memory");
        return true;
    }
    r->task = task;
    fs_servable_unpin(servable, 1);
    return false;
}

static void route(fs_loader *loader, fs_task *task)
{
    task->rc = fs_catalog_route(loader->catalog, task->model, task->route);
    if (task->rc == -FS_FAILED_PRECONDITION)
        fs_fail(&task->err, FS_FAILED_PRECONDITION,
                "rollouts at the same time can have %d different sticky headers in all", FS_STICKY_HEADERS);
    else if (task->rc != 0)
        fs_fail(&task->err, (enum fs_code)-task->rc, "out of memory");
}

/* true: done (rc set), and to be sent home; false: it goes on later, or is going on already. */
static bool perform(fs_loader *loader, fs_task *task)
{
    int64_t from_us = fs_now_us();
    task->rc = 0;
    switch (task->kind) {
    case FS_TASK_LOAD:
        task->rc = load(loader, task);
        break;
    case FS_TASK_PUBLISH:
        task->rc = publish(loader, task);
        break;
    case FS_TASK_RETIRE:
        if (!retire(loader, task))
            return false;
        break;
    case FS_TASK_CLOSE:
        free(task->servable->user);
        fs_servable_close(task->servable);
        task->servable = NULL;
        break;
    case FS_TASK_LABEL:
        task->rc = fs_catalog_label(loader->catalog, task->model, task->labels, task->n_labels);
        if (task->rc != 0)
            fs_fail(&task->err, (enum fs_code)-task->rc, "out of memory");
        break;
    case FS_TASK_CALL:
        task->rc = task->call(task->arg, &task->err);
        break;
    case FS_TASK_ROUTE:
        route(loader, task);
        break;
    case FS_TASK_LOG:
        task->rc = fs_catalog_log(loader->catalog, task->model, task->log);
        if (task->rc != 0)
            fs_fail(&task->err, (enum fs_code)-task->rc, "out of memory");
        break;
    }
    task->took_us = fs_now_us() - from_us;
    return true;
}

/* Performs it and tells of it. As perform. */
static bool perform_traced(fs_loader *loader, fs_track *track, fs_task *task)
{
    task->warm.track = track;
    fs_trace_event event = fs_trace_task_begins(track, task);
    bool done = perform(loader, task);
    /* One that is not done may be somebody else's already. */
    fs_trace_task_ends(track, &event, done ? task->rc : 0, done ? task->opened_us : 0);
    return done;
}

static void *run_loader(void *arg)
{
    fs_loader *loader = arg;
    int number = atomic_fetch_add_explicit(&loader->numbers, 1, memory_order_relaxed);
    fs_priority_join(&loader->priority, number);
    char name[24];
    snprintf(name, sizeof name, "fs-load-%d", number);
    pthread_setname_np(pthread_self(), name);
    fs_track *track = fs_trace_track(loader->config.trace, name);
    fs_node *node;
    while ((node = fs_lane_take(&loader->long_lane)) != NULL) {
        fs_task *task = (fs_task *)node;
        fs_breaks breaks = {.started = false};
        if (fs_priority_begin(&loader->priority)) {
            sem_post(&loader->watches);
            if (!loader->config.no_breaks)
                fs_breaks_start(&breaks, loader->priority.normal);
        }
        perform_traced(loader, track, task);
        fs_breaks_stop(&breaks);
        fs_priority_end(&loader->priority);
        finish(task);
    }
    return NULL;
}

static void *run_switcher(void *arg)
{
    fs_loader *loader = arg;
    fs_track *track = fs_trace_track(loader->config.trace, "fs-switch");
    fs_node *node;
    while ((node = fs_lane_take(&loader->short_lane)) != NULL) {
        if (perform_traced(loader, track, (fs_task *)node))
            finish((fs_task *)node);
    }
    return NULL;
}

/* Who gives way may be put aside with a lock in its hands: of malloc's, of TensorFlow's, or of the address space's, which
 * the kernel holds while it unmaps. An executor that wants it would wait until nobody wants the processors any more. */
static void *run_watcher(void *arg)
{
    enum { EVERY_NS = 1000000 };
    fs_loader *loader = arg;
    while (sem_wait(&loader->watches) != 0 || !atomic_load_explicit(&loader->ends, memory_order_relaxed)) {
        while (fs_priority_is_low(&loader->priority)) {
            if (fs_executors_wait(loader->executors, fs_now_us()))
                fs_priority_lend(&loader->priority);
            else
                fs_priority_take_back(&loader->priority);
            nanosleep(&(struct timespec){.tv_nsec = EVERY_NS}, NULL);
        }
        fs_priority_take_back(&loader->priority);
    }
    return NULL;
}

fs_loader *fs_loader_start(const fs_loader_config *config, fs_catalog *catalog, fs_executors *executors)
{
    fs_loader *loader = aligned_alloc(64, (sizeof *loader + 63) & ~(size_t)63);
    if (loader == NULL)
        return NULL;
    memset(loader, 0, sizeof *loader);
    loader->config = *config;
    loader->catalog = catalog;
    loader->executors = executors;
    fs_priority_init(&loader->priority, config->nice);
    fs_lane_init(&loader->long_lane);
    fs_lane_init(&loader->short_lane);
    sem_init(&loader->watches, 0, 0);
    atomic_init(&loader->ends, false);
    atomic_init(&loader->numbers, 0);
    if (pthread_create(&loader->switcher, NULL, run_switcher, loader) != 0) {
        fs_loader_stop(loader);
        return NULL;
    }
    loader->has_switcher = true;
    pthread_setname_np(loader->switcher, "fs-switch");
    if (!config->no_loans) {
        if (pthread_create(&loader->watcher, NULL, run_watcher, loader) != 0) {
            fs_loader_stop(loader);
            return NULL;
        }
        loader->has_watcher = true;
        pthread_setname_np(loader->watcher, "fs-watch");
    }
    for (int i = 0; i < config->threads && i < FS_PRIORITY_THREADS; i++) {
        if (pthread_create(&loader->loaders[i], NULL, run_loader, loader) != 0) {
            fs_loader_stop(loader);
            return NULL;
        }
        loader->n_loaders = i + 1;
    }
    return loader;
}

void fs_loader_stop(fs_loader *loader)
{
    if (loader == NULL)
        return;
    fs_lane_close(&loader->long_lane, loader->n_loaders);
    fs_lane_close(&loader->short_lane, loader->has_switcher);
    for (int i = 0; i < loader->n_loaders; i++)
        pthread_join(loader->loaders[i], NULL);
    if (loader->has_switcher)
        pthread_join(loader->switcher, NULL);
    atomic_store_explicit(&loader->ends, true, memory_order_relaxed);
    sem_post(&loader->watches);
    if (loader->has_watcher)
        pthread_join(loader->watcher, NULL);
    sem_destroy(&loader->watches);
    fs_lane_destroy(&loader->long_lane);
    fs_lane_destroy(&loader->short_lane);
    free(loader->serving);
    free(loader);
}

void fs_loader_post(fs_loader *loader, fs_task *task)
{
    if (task->kind == FS_TASK_CLOSE && loader->config.close_on_poster) {
        perform(loader, task);
        finish(task);
    } else if (is_long(task)) {
        fs_priority_expect(&loader->priority);
        fs_lane_post(&loader->long_lane, &task->mail.node);
    } else {
        fs_lane_post(&loader->short_lane, &task->mail.node);
    }
}

fs_progress fs_task_progress(const fs_task *task)
{
    /* relaxed: numbers to show. */
    return (fs_progress){
        .stage = (enum fs_stage)atomic_load_explicit(&task->stage, memory_order_relaxed),
        .done = atomic_load_explicit(&task->warm.done, memory_order_relaxed),
        .total = atomic_load_explicit(&task->warm.total, memory_order_relaxed),
    };
}

void fs_loader_give_way(fs_loader *loader)
{
    fs_priority_give_way(&loader->priority);
}

void fs_loader_hurry(fs_loader *loader)
{
    fs_priority_hurry(&loader->priority);
}

int fs_loader_nice(const fs_loader *loader)
{
    return loader->priority.low;
}

bool fs_loader_nice_limited(const fs_loader *loader)
{
    return loader->priority.limited;
}
