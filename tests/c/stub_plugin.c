/* stub_plugin: a plug-in as test_plugin_open wants it: STUB_PLUGIN in the environment says what is wrong with it.
 *
 *   runtime   nothing: it answers with its input's memory, which it keeps by the host's count, and takes note of
 *             what has been made and destroyed in stub_plugin_live
 *   refuses   a runtime that cannot be made
 *   bare      a runtime with nothing to make
 *   batcher   nothing: pick is 41, plan FastServe's own
 *   old, null, nameless, strange, no_ops, no_run, no_release, idle   as the names say */
#include "plugin.h"

#include <stdlib.h>
#include <string.h>

static const fs_host *host;
static int made;

/* For the test. */
int stub_plugin_live(void);
int stub_plugin_live(void)
{
    return made;
}

static int create(const fs_host *given, void **self, fs_error *err)
{
    if (strcmp(getenv("STUB_PLUGIN"), "refuses") == 0)
        return fs_plugin_fail(err, FS_UNAVAILABLE, "%.*s", FS_MESSAGE_MAX + 50,
                              "no licence for this machine, as was to be expected of a stub that refuses");
    host = given;
    made++;
    *self = &made;
    return 0;
}

static void destroy(void *self)
{
    --*(int *)self;
}

static int stub_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    (void)spec;
    (void)err;
    *out = self != NULL ? self : (void *)&host;
    return 0;
}

static int run(fs_model *model, uint32_t sig, enum fs_run_variant variant, const fs_tensor *inputs,
               fs_tensor *outputs, fs_error *err)
{
    (void)model;
    (void)sig;
    (void)variant;
    (void)err;
    outputs[0] = inputs[0];
    outputs[0].handle = host->buf_ref(inputs[0].buf);
    return 0;
}

static void release(fs_tensor *output)
{
    host->buf_unref(output->handle);
}

static void stub_close(fs_model *model)
{
    (void)model;
}

static int pick(const fs_queue_view *queues, int n, int64_t now_us, int64_t *wait_until_us)
{
    (void)queues;
    (void)n;
    (void)now_us;
    (void)wait_until_us;
    return 41;
}

static const fs_runtime_ops OPS = {"stub", stub_open, run, release, stub_close};
static const fs_runtime_ops NO_RUN = {.name = "stub", .open = stub_open, .release = release, .close = stub_close};
static const fs_runtime_ops NO_RELEASE = {.name = "stub", .open = stub_open, .run = run, .close = stub_close};

#define RUNTIME(...) {.abi = FS_PLUGIN_ABI, .kind = FS_PLUGIN_RUNTIME, .name = "stub", .runtime = {__VA_ARGS__}}

const fs_plugin *fastserve_plugin(void)
{
    static const struct {
        const char *name;
        fs_plugin plugin;
    } ALL[] = {
        {"runtime", RUNTIME(&OPS, create, destroy)},
        {"refuses", RUNTIME(&OPS, create, destroy)},
        {"bare", RUNTIME(&OPS, NULL, NULL)},
        {"batcher", {.abi = FS_PLUGIN_ABI, .kind = FS_PLUGIN_BATCHER, .name = "stub", .batcher = {.pick = pick}}},
        {"old", {.abi = FS_PLUGIN_ABI + 1, .kind = FS_PLUGIN_RUNTIME, .name = "stub"}},
        {"nameless", {.abi = FS_PLUGIN_ABI, .kind = FS_PLUGIN_RUNTIME}},
        {"strange", {.abi = FS_PLUGIN_ABI, .kind = 77, .name = "stub"}},
        {"no_ops", RUNTIME(NULL, create, destroy)},
        {"no_run", RUNTIME(&NO_RUN, create, destroy)},
        {"no_release", RUNTIME(&NO_RELEASE, create, destroy)},
        {"idle", {.abi = FS_PLUGIN_ABI, .kind = FS_PLUGIN_BATCHER, .name = "stub"}},
    };
    const char *which = getenv("STUB_PLUGIN");
    for (size_t i = 0; which != NULL && i < sizeof ALL / sizeof *ALL; i++)
        if (strcmp(which, ALL[i].name) == 0)
            return &ALL[i].plugin;
    return NULL;
}
