/* route: how a model's traffic is divided while a new version proves itself, and what has come of it.
 *
 * Made by the control channel's side, put into the catalog by a loader, held by every call that it decided
 * on. Settings never change; another share is another route, with figures of its own. Knows no catalog and
 * no call. */
#ifndef FS_ROUTE_H
#define FS_ROUTE_H

#include "figures.h"
#include "sticky.h"

enum fs_route_mode {
    FS_ROUTE_CANARY, /* the share is answered by the new version */
    FS_ROUTE_SHADOW, /* all are answered by the stable one; the new one gets copies of the share */
};

enum fs_side { FS_SIDE_STABLE, FS_SIDE_FRESH, FS_SIDES };

typedef struct fs_route_settings {
    enum fs_route_mode mode;
    int64_t versions[FS_SIDES];
    double share;           /* 0 to 1 */
    fs_slice sticky_header; /* equal values of this header are on one side; empty: every request by chance */
    double max_difference;  /* of outputs, relative, before a row counts as different */
} fs_route_settings;

/* What shadows have shown. Written by the shadows' thread, `dropped` and `skipped` by any. */
typedef struct fs_shadow_tally {
    atomic_uint_fast64_t compared;        /* requests that both versions answered */
    atomic_uint_fast64_t rows;            /* of these, */
    atomic_uint_fast64_t different_rows;  /*   and of those */
    atomic_uint_fast64_t missing_outputs; /* that only one of the versions has, over all requests */
    atomic_uint_fast64_t failed;          /* requests that only the stable version answered */
    atomic_uint_fast64_t dropped;         /* not copied, or not run, for want of memory or of time */
    atomic_uint_fast64_t skipped;         /* too large to be copied */
    _Atomic(double) largest_difference;
} fs_shadow_tally;

typedef struct fs_route {
    enum fs_route_mode mode;
    int64_t versions[FS_SIDES];
    uint64_t share;  /* of 2^32 */
    uint32_t header; /* fs_sticky_header; 0: none */
    uint32_t salt;   /* so that another rollout is tried on other callers */
    double max_difference;
    _Alignas(64) atomic_long refs;
    atomic_size_t shadow_bytes; /* of copies on their way */
    fs_shadow_tally shadow;
    fs_figures figures[FS_SIDES];
} fs_route;

/* With one reference; NULL when out of memory. */
fs_route *fs_route_new(fs_slice model, const fs_route_settings *settings);
fs_route *fs_route_ref(fs_route *route); /* any thread that holds a reference, or is inside a bracket */
void fs_route_unref(fs_route *route);    /* any thread; NULL is fine */

/* Whether a request is one of the share. Who is in the share stays in it when it grows. `random` is the state
 * of the caller's generator, for requests without the header; `kept` may be NULL. */
bool fs_route_takes(const fs_route *route, const fs_kept *kept, uint64_t *random);

#endif
