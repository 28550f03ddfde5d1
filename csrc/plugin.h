/* plugin: what a native plug-in is: a shared library with one function that says what it offers.
 *
 * For those who write one. This header and those that it includes are all there is to know: a plug-in is built
 * against them alone and linked with nothing of FastServe. `fastserve.extensions.include_dir()` says where they
 * lie:
 *
 *     gcc -shared -fPIC -O2 -I"$(python -c 'from fastserve.extensions import include_dir as i; print(i())')" \
 *         lookup.c -o lookup.so
 *
 * with #include <fastserve/plugin.h>. The library is opened, once, by every process that runs models: the core
 * and each trial. It stays open as long as the process, so threads and destructors of its own are safe. Nothing
 * in it may assume Python, or that its process ends in any other way than at once.
 *
 * Numbers in FS_PLUGIN_ABI stand for the layout and meaning of everything in these headers. A library of any
 * other number is refused when it is opened. */
#ifndef FS_PLUGIN_H
#define FS_PLUGIN_H

#include <stdarg.h>
#include <stdio.h>

#include "outcome.h"
#include "policy.h"
#include "runtime.h"

#define FS_PLUGIN_ABI 1

enum fs_plugin_kind {
    FS_PLUGIN_RUNTIME = 1,
    FS_PLUGIN_BATCHER = 2,
};

/* What FastServe does for a runtime; valid as long as the process. */
typedef struct fs_host {
    /* Keeps the memory behind an input (fs_tensor.buf, where that is not NULL) beyond `run`, and lets it go.
     * Any thread. */
    fs_buf *(*buf_ref)(fs_buf *buf);
    void (*buf_unref)(fs_buf *buf);
} fs_host;

typedef struct fs_plugin {
    uint32_t abi;     /* FS_PLUGIN_ABI */
    uint32_t kind;    /* enum fs_plugin_kind: which of the two below counts */
    const char *name; /* for messages and logs; one word */

    /* A runtime. runtime.h says what each function of `ops` owes. */
    struct {
        const fs_runtime_ops *ops;
        /* Makes what `open` gets as `self`, before anything else; the core does so once. May block. 0, or -code with
         * *err filled. NULL: there is nothing to make, and self is NULL. */
        int (*create)(const fs_host *host, void **self, fs_error *err);
        /* After the last model is closed. NULL: nothing to do. */
        void (*destroy)(void *self);
    } runtime;

    /* A batcher: policy.h says what is asked. A function that is NULL is FastServe's own. */
    fs_policy batcher;
} fs_plugin;

/* The one symbol that a plug-in exports. What it returns is constant and stays valid. */
#define FS_PLUGIN_FUNCTION fastserve_plugin
__attribute__((visibility("default"))) const fs_plugin *fastserve_plugin(void);

/* Fills *err (may be NULL) and returns -code, so that `return fs_plugin_fail(...)` reads well. */
__attribute__((format(printf, 3, 4), unused)) static int fs_plugin_fail(fs_error *err, enum fs_code code,
                                                                        const char *fmt, ...)
{
    if (err != NULL) {
        va_list args;
        va_start(args, fmt);
        int full = vsnprintf(err->msg, FS_MESSAGE_MAX + 1, fmt, args);
        va_end(args);
        err->code = (int)code;
        err->len = full < 0 ? 0 : full > FS_MESSAGE_MAX ? FS_MESSAGE_MAX : (uint32_t)full;
        err->msg[err->len] = '\0';
    }
    return -(int)code;
}

#endif
