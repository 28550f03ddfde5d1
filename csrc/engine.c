/* engine: see engine.h. */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

fs_engine *fs_engine_start(const fs_engine_config *config, const fs_policy *policy)
{
    fs_engine *engine = aligned_alloc(64, (sizeof *engine + 63) & ~(size_t)63);
    if (engine == NULL)
        return NULL;
    memset(engine, 0, sizeof *engine);
    engine->config = *config;
    engine->policy = *policy;
    engine->config.executors.trace = config->trace;
    engine->metrics = config->metrics;
    fs_epoch_init(&engine->epoch);
    fs_access_init(&engine->access, &engine->epoch);
    engine->catalog = fs_catalog_new(&engine->epoch);
    engine->unpacker = fs_unpacker_start();
    engine->logger = fs_logger_start();
    if (engine->catalog != NULL && engine->unpacker != NULL && engine->logger != NULL)
        engine->executors = fs_executors_start(&engine->config.executors, &engine->policy, &engine->epoch);
    if (engine->executors != NULL)
        engine->shadows = fs_shadows_start(engine);
    bool named = config->named_run_threads > 0;
    fs_loader_config loader = config->loader;
    loader.metrics = config->metrics;
    loader.trace = config->trace;
    loader.named_runs = named;
    if (engine->shadows != NULL && named)
        engine->named_runs = fs_named_runs_start(engine, config->named_run_threads);
    if (engine->shadows != NULL && (engine->named_runs != NULL || !named))
        engine->loader = fs_loader_start(&loader, engine->catalog, engine->executors);
    if (engine->loader == NULL) {
        fs_engine_stop(engine);
        return NULL;
    }
    return engine;
}

void fs_engine_stop(fs_engine *engine)
{
    if (engine == NULL)
        return;
    fs_unpacker_stop(engine->unpacker);
    fs_named_runs_stop(engine->named_runs);
    fs_shadows_stop(engine->shadows); /* its calls need executors to end */
    fs_loader_stop(engine->loader);
    fs_executors_stop(engine->executors);
    fs_catalog_free(engine->catalog);
    fs_access_clear(&engine->access);
    fs_logger_stop(engine->logger);
    free(engine);
}

int fs_engine_join(fs_engine *engine, fs_owner *owner, fs_mailbox *box, fs_slab *slab,
                   void (*touch)(void *ctx, void *conn), void *ctx)
{
    *owner = (fs_owner){.engine = engine, .box = box, .slab = slab, .touch = touch, .ctx = ctx};
    owner->reader = fs_epoch_join(&engine->epoch);
    if (owner->reader == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    owner->random = (uint64_t)(owner->reader - engine->epoch.readers) << 32; /* each a sequence of its own */
    return 0;
}
