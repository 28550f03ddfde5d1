/* loader: native threads that open, publish, retire and close versions, so that nothing of it happens on a
 * thread that serves.
 *
 * What takes long (load, close) is done by threads that give way to requests once there are any; what readers
 * see (publish, retire, label) by one thread at normal priority, so that neither a long load nor a busy machine
 * delays it, and so that no lock of ours and no half of a hand-over is ever with a thread that may not run for a while. A
 * third kind watches, while something gives way, whether an executor waits for it.
 * Tasks are posted by the control channel's side (the loop's thread) and come back to it by mail when done. Of
 * one version, one task at a time. */
#ifndef FS_LOADER_H
#define FS_LOADER_H

#include "catalog.h"
#include "executor.h"
#include "owner.h"
#include "servable.h"
#include "warm.h"

enum fs_task_kind {
    FS_TASK_LOAD,    /* open and warm; out: servable, warm.failures */
    FS_TASK_PUBLISH, /* visible from then on; with `replaces`, in its place */
    FS_TASK_RETIRE,  /* invisible; done when its last call is answered */
    FS_TASK_CLOSE,   /* freed; not published, no calls */
    FS_TASK_LABEL,
    FS_TASK_CALL,    /* something else that must not happen on the loop, at normal priority */
    FS_TASK_ROUTE,   /* of a model, or none any more */
    FS_TASK_LOG,     /* likewise */
};

enum fs_stage {
    FS_STAGE_QUEUED, /* for a thread */
    FS_STAGE_OPEN,
    FS_STAGE_WARM,
};

/* How far a load has come: the stage, and in the last one the runs so far and all there will be. */
typedef struct fs_progress {
    enum fs_stage stage;
    int done;
    int total;
} fs_progress;

typedef struct fs_task {
    fs_mail mail; /* first; deliver is the poster's, run on its thread when the task is done */
    fs_owner *home;
    enum fs_task_kind kind;
    fs_servable *servable;

    /* FS_TASK_LOAD */
    fs_runtime runtime;
    const char *model;
    int64_t version;
    const fs_model_spec *spec;
    const fs_signature_plan *plans;
    fs_batching batching;
    fs_warm warm;
    int64_t opened_us; /* out: when warming began */
    atomic_int stage; /* an fs_stage; see fs_task_progress */

    /* FS_TASK_PUBLISH: NULL, or the same version as it is published, which is to be retired next */
    fs_servable *replaces;

    /* FS_TASK_LABEL: model and these */
    const fs_label *labels;
    uint32_t n_labels;

    /* FS_TASK_CALL */
    int (*call)(void *arg, fs_error *err);
    void *arg;
    /* FS_TASK_ROUTE: model and this; the catalog takes a reference of its own. NULL: none any more */
    fs_route *route;
    /* FS_TASK_LOG: likewise */
    fs_request_log *log;

    int rc;        /* 0 or -code with err */
    fs_error err;
    int64_t took_us;
} fs_task;

typedef struct fs_loader fs_loader;

typedef struct fs_loader_config {
    int32_t threads;      /* 1 .. FS_PRIORITY_THREADS, for loads and closes */
    int32_t nice;         /* how far these give way, see fs_priority_init */
    fs_trace *trace;      /* where the threads tell what they do; NULL: nowhere */
    bool no_breaks;       /* for measurement: loads and closes take none, see breaks.h */
    bool no_loans;        /* for measurement: executors wait for threads that give way, as long as it takes */
    bool close_on_poster; /* for measurement: closes happen inside fs_loader_post */
    fs_metrics *metrics;  /* where calls of what is loaded are counted; NULL: nowhere */
    bool named_runs;      /* SessionRun is served */
} fs_loader_config;

fs_loader *fs_loader_start(const fs_loader_config *config, fs_catalog *catalog, fs_executors *executors);
void fs_loader_stop(fs_loader *loader); /* finishes what is queued */

/* Any thread. Takes no lock. The task and what it points to stay the poster's, untouched until deliver. */
void fs_loader_post(fs_loader *loader, fs_task *task);

/* How far a load is. Any thread, between posting and deliver. */
fs_progress fs_task_progress(const fs_task *task);

/* Requests are served from now on: loads and closes give way to them. Any thread. */
void fs_loader_give_way(fs_loader *loader);

/* What is being loaded and closed, or waits for it, is done at normal priority from now on. Any thread. */
void fs_loader_hurry(fs_loader *loader);

/* The nice value that threads give way with, and whether it is less than was asked for; see priority.h. */
int fs_loader_nice(const fs_loader *loader);
bool fs_loader_nice_limited(const fs_loader *loader);

#endif
