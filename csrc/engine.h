/* engine: everything between a complete request and its reply, put together: catalog, executors, loader,
 * unpacker, shadows, runs by name, logger. The core's composition root makes one. Knows no connection and no Python. */
#ifndef FS_ENGINE_H
#define FS_ENGINE_H

#include "access.h"
#include "catalog.h"
#include "executor.h"
#include "loader.h"
#include "logger.h"
#include "metrics.h"
#include "named_run.h"
#include "owner.h"
#include "shadow.h"
#include "unpacker.h"

typedef struct fs_engine_config {
    fs_executors_config executors;
    fs_loader_config loader;
    size_t max_message_bytes;    /* of one request, decompressed and decoded */
    size_t max_compressed_bytes; /* of one that comes compressed, as it travels */
    int32_t named_run_threads;   /* for SessionRun; 0: it is not served */
    fs_trace *trace;             /* where threads tell what they do, outlives the engine; NULL: nowhere */
    bool check_method_names;     /* answer only what a signature's method_name says, as TF Serving can */
    fs_metrics *metrics;         /* where calls are counted, and which outlives the engine; NULL: nowhere */
} fs_engine_config;

struct fs_engine {
    fs_engine_config config;
    fs_policy policy;
    fs_epoch epoch;
    fs_catalog *catalog;
    fs_access access;
    fs_executors *executors;
    fs_loader *loader;
    fs_unpacker *unpacker;
    fs_shadows *shadows;
    fs_named_runs *named_runs; /* NULL: SessionRun is not served */
    fs_logger *logger;
    fs_metrics *metrics; /* NULL: nothing is counted */
};

/* NULL when out of memory, threads or descriptors. */
fs_engine *fs_engine_start(const fs_engine_config *config, const fs_policy *policy);

/* Every call is answered and every version closed before. */
void fs_engine_stop(fs_engine *engine);

/* Makes a thread an owner of connections. 0, or -FS_RESOURCE_EXHAUSTED when there are too many. */
int fs_engine_join(fs_engine *engine, fs_owner *owner, fs_mailbox *box, fs_slab *slab,
                   void (*touch)(void *ctx, void *conn), void *ctx);

#endif
