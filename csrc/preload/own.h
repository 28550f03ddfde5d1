/* own: what csrc/preload knows of the calling thread. Written by threads.c, read by all of it. */
#ifndef FS_OWN_H
#define FS_OWN_H

#include "../breaks.h"

/* Of a thread that gives way; NULL: it does not. At a place that the dynamic linker knows from the start, for it is read
 * wherever something is freed. */
extern _Thread_local const fs_breaks *fs_own_breaks __attribute__((tls_model("initial-exec")));

#endif
