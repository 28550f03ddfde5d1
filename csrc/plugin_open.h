/* plugin_open: opens plug-ins, and says in words what is wrong with one that cannot be.
 *
 * Called by the bindings, when a runtime or the engine is made. Knows what plugin.h promises to plug-ins, and
 * nothing of what they do. */
#ifndef FS_PLUGIN_OPEN_H
#define FS_PLUGIN_OPEN_H

#include "plugin.h"

/* Opens the library at `path`, absolute, as a plug-in of that kind. Opened again it is the same one; it stays
 * open as long as the process. Blocks. 0; -FS_NOT_FOUND: there is no such file; -FS_INVALID_ARGUMENT: it is no
 * such plug-in; -FS_FAILED_PRECONDITION: it is one for another FS_PLUGIN_ABI. *err says which file and why. */
int fs_plugin_open(const char *path, enum fs_plugin_kind kind, const fs_plugin **out, fs_error *err);

/* Opens a runtime. What *out holds is the caller's until fs_runtime_plugin_free. As fs_plugin_open, or with the
 * plug-in's own failure. */
int fs_runtime_plugin(const char *path, const fs_plugin **plugin, fs_runtime *out, fs_error *err);

/* After the last model is closed. All zeros is fine. */
void fs_runtime_plugin_free(const fs_plugin *plugin, fs_runtime *runtime);

/* Puts the functions of the batcher at `path` in the place of those in *policy. On failure *policy is as before. */
int fs_policy_plugin(const char *path, fs_policy *policy, fs_error *err);

#endif
