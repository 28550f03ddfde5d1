/* plugin_open: see plugin_open.h. */
#include "plugin_open.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "slab.h"
#include "status.h"

#define TEXT(name) TEXT_(name)
#define TEXT_(name) #name

static const fs_host HOST = {
    .buf_ref = fs_buf_ref,
    .buf_unref = fs_buf_unref,
};

static const char *kind_name(uint32_t kind)
{
    return kind == FS_PLUGIN_RUNTIME ? "a runtime" : kind == FS_PLUGIN_BATCHER ? "a batcher" : "of no known kind";
}

/* What a runtime cannot do without; NULL when it is all there. */
static const char *missing(const fs_runtime_ops *ops)
{
    if (ops == NULL)
        return "functions";
    return ops->open == NULL      ? "function open"
           : ops->run == NULL     ? "function run"
           : ops->release == NULL ? "function release"
           : ops->close == NULL   ? "function close"
           : ops->name == NULL    ? "name in its functions"
                                  : NULL;
}

/* What the library says about itself. */
static int check(const char *path, const fs_plugin *plugin, enum fs_plugin_kind kind, fs_error *err)
{
    if (plugin == NULL)
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s: %s() returned nothing", path, TEXT(FS_PLUGIN_FUNCTION));
    if (plugin->abi != FS_PLUGIN_ABI)
        return fs_fail(err, FS_FAILED_PRECONDITION,
                       "%s is a plug-in for ABI %u, and this FastServe has ABI %d: build it again with the "
                       "headers of this version (fastserve.extensions.include_dir())",
                       path, plugin->abi, FS_PLUGIN_ABI);
    if (plugin->name == NULL)
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s: the plug-in has no name", path);
    if (plugin->kind != (uint32_t)kind)
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s: the plug-in '%s' is %s, and %s is needed here", path,
                       plugin->name, kind_name(plugin->kind), kind_name(kind));
    const char *lacks = kind == FS_PLUGIN_RUNTIME ? missing(plugin->runtime.ops) : NULL;
    if (lacks != NULL)
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s: the runtime '%s' has no %s", path, plugin->name, lacks);
    if (kind == FS_PLUGIN_BATCHER && plugin->batcher.pick == NULL && plugin->batcher.plan == NULL)
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s: the batcher '%s' has neither pick nor plan", path,
                       plugin->name);
    return 0;
}

int fs_plugin_open(const char *path, enum fs_plugin_kind kind, const fs_plugin **out, fs_error *err)
{
    if (path[0] != '/')
        return fs_fail(err, FS_INVALID_ARGUMENT, "'%s': expected the absolute path of a plug-in", path);
    if (access(path, R_OK) != 0) {
        int why = errno;
        return fs_fail(err, why == ENOENT || why == ENOTDIR ? FS_NOT_FOUND : FS_INVALID_ARGUMENT,
                       "%s: the plug-in cannot be read: %s", path, strerror(why));
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library == NULL) {
        const char *why = dlerror();
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s cannot be opened as a shared library: %s", path,
                       why != NULL ? why : "no reason given");
    }
    void *symbol = dlsym(library, TEXT(FS_PLUGIN_FUNCTION));
    if (symbol == NULL) {
        dlclose(library);
        return fs_fail(err, FS_INVALID_ARGUMENT, "%s is no plug-in of FastServe: it does not export %s()", path,
                       TEXT(FS_PLUGIN_FUNCTION));
    }
    const fs_plugin *(*function)(void);
    memcpy(&function, &symbol, sizeof function); /* C knows no cast from an object to a function */
    const fs_plugin *plugin = function();
    int rc = check(path, plugin, kind, err);
    if (rc != 0) {
        dlclose(library);
        return rc;
    }
    *out = plugin;
    return 0;
}

int fs_runtime_plugin(const char *path, const fs_plugin **plugin, fs_runtime *out, fs_error *err)
{
    const fs_plugin *opened;
    int rc = fs_plugin_open(path, FS_PLUGIN_RUNTIME, &opened, err);
    if (rc != 0)
        return rc;
    void *self = NULL;
    if (opened->runtime.create != NULL) {
        rc = opened->runtime.create(&HOST, &self, err);
        if (rc != 0)
            return rc;
    }
    *plugin = opened;
    *out = (fs_runtime){.ops = opened->runtime.ops, .self = self};
    return 0;
}

void fs_runtime_plugin_free(const fs_plugin *plugin, fs_runtime *runtime)
{
    if (plugin != NULL && plugin->runtime.destroy != NULL)
        plugin->runtime.destroy(runtime->self);
    *runtime = (fs_runtime){0};
}

int fs_policy_plugin(const char *path, fs_policy *policy, fs_error *err)
{
    const fs_plugin *plugin;
    int rc = fs_plugin_open(path, FS_PLUGIN_BATCHER, &plugin, err);
    if (rc != 0)
        return rc;
    if (plugin->batcher.pick != NULL)
        policy->pick = plugin->batcher.pick;
    if (plugin->batcher.plan != NULL)
        policy->plan = plugin->batcher.plan;
    return 0;
}
