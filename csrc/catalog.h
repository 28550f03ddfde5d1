/* catalog: which version a request's model spec means. An immutable table behind one pointer.
 *
 * I/O threads look up inside an epoch bracket, without a lock. Loader threads change it by building the
 * next table and swapping the pointer (under the catalog's mutex, which no reader ever takes). */
#ifndef FS_CATALOG_H
#define FS_CATALOG_H

#include "epoch.h"
#include "predict.h"
#include "request_log.h"
#include "route.h"
#include "servable.h"

typedef struct fs_catalog fs_catalog;

fs_catalog *fs_catalog_new(fs_epoch *epoch);
void fs_catalog_free(fs_catalog *catalog); /* nothing is published any more */

/* A request for whatever version, where a route may decide. */
typedef struct fs_turn {
    const fs_kept *kept; /* in: of the request's headers; NULL: none */
    uint64_t *random;    /* in: the state of the calling thread's generator */
    fs_route *route;     /* out: the route that decided, a reference for the caller; or NULL */
    enum fs_side side;   /*   whose figures the request counts in */
    bool shadowed;       /*   the new version is to get a copy */
    fs_request_log *log; /* out: what wants the request when it is answered, a reference for the caller; or NULL */
    uint8_t log_sinks;   /*   and which of its sinks do */
} fs_turn;

/* The servable that a request means, pinned once; or NULL with *err as TF Serving words it. `turn` NULL: no
 * route is asked, and nothing is logged. Inside a bracket. */
fs_servable *fs_catalog_find(fs_catalog *catalog, const fs_model_ref *ref, fs_turn *turn, fs_error *err);

/* Makes a version visible, or invisible; returns when no reader can hold the table before. The
 * newest published version is what requests without a version get. Loader threads. */
int fs_catalog_publish(fs_catalog *catalog, fs_servable *servable);
/* The same version, opened with other settings, in the place of one that is published; at once. */
int fs_catalog_replace(fs_catalog *catalog, const fs_servable *before, fs_servable *servable);
int fs_catalog_withdraw(fs_catalog *catalog, fs_servable *servable);

/* Replaces a model's labels. Slices are copied. Loader threads. */
typedef struct fs_label {
    fs_slice name;
    int64_t version;
} fs_label;
int fs_catalog_label(fs_catalog *catalog, const char *model, const fs_label *labels, uint32_t n);

/* Sets the model's route, of which the catalog takes a reference, or takes it away (NULL). With one, requests
 * that name neither version nor label get what it says, not the newest; of its versions one that is not
 * published leaves everything to the other, and when neither is, the newest answers after all. 0,
 * -FS_RESOURCE_EXHAUSTED, or -FS_FAILED_PRECONDITION: routes want too many different headers. Loader threads. */
int fs_catalog_route(fs_catalog *catalog, const char *model, fs_route *route);

/* Sets the model's log, of which the catalog takes a reference, or takes it away (NULL). 0 or
 * -FS_RESOURCE_EXHAUSTED. Loader threads. */
int fs_catalog_log(fs_catalog *catalog, const char *model, fs_request_log *log);

/* The headers that routes want kept. Lives as long as the catalog. */
const fs_sticky *fs_catalog_sticky(const fs_catalog *catalog);

#endif
