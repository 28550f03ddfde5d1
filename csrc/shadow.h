/* shadow: copies of answered requests, run by the new version and compared with what the stable one said.
 *
 * A thread that owns connections makes one from a call whose answer it is about to hand to the session: it takes
 * the request's message and copies the reply. All the rest, from parsing to comparing, is done on a thread of its
 * own, fs-shadow, and on executors, where a version that only runs shadows gives way to others.
 * Nobody waits for a shadow: what memory or time do not suffice for is dropped and counted in the route. */
#ifndef FS_SHADOW_H
#define FS_SHADOW_H

#include "call.h"

/* Larger requests and replies are skipped. A reply is copied by a thread that has answers to send: 25 us. */
#define FS_SHADOW_LARGEST ((size_t)1 << 20)
#define FS_SHADOW_LARGEST_REPLY ((size_t)256 << 10)
#define FS_SHADOW_BUDGET ((size_t)32 << 20) /* of one route's shadows on their way */

typedef struct fs_shadow fs_shadow;
typedef struct fs_shadows fs_shadows;

/* Starts the thread. NULL when out of memory, threads or descriptors. The engine's executors and catalog are
 * there before. */
fs_shadows *fs_shadows_start(fs_engine *engine);

/* Drops what waits, and waits for what runs. Nobody posts any more; the executors are still at work. */
void fs_shadows_stop(fs_shadows *shadows);

/* A shadow of a call that a route marked, answered with FS_OK: takes its message, leaves its reply. NULL: it is
 * too large, or there is no room, and the route has counted that. The call's owner's thread, before
 * fs_rpc_finish. */
fs_shadow *fs_shadow_of(fs_call *call);

/* Any thread. The shadow is the thread's from here on. */
void fs_shadows_post(fs_shadows *shadows, fs_shadow *shadow);

#endif
