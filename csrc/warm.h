/* warm: the runs that a version makes before it is published, so that no request is the first of anything.
 *
 * TensorFlow builds the executor of a list of feeds and fetches, and its kernels, at the first run; XLA compiles a
 * shape when it first sees it. Runs on a loader thread, over the runtime alone: nothing here is counted,
 * queued or batched. */
#ifndef FS_WARM_H
#define FS_WARM_H

#include <stdatomic.h>

#include "servable.h"
#include "trace_ring.h"

typedef struct fs_warm {
    int iterations;       /* times that everything is run; 0: not at all */
    const char *requests; /* a file of recorded requests (warm_requests.h), or NULL */
    size_t max_request_bytes; /* of the inputs of one of them, decoded */
    fs_track *track;      /* where the runs are told; NULL: nowhere */
    int failures;         /* out: plain runs that did not accept zeros */
    atomic_int done;      /* runs so far, and all there will be; any thread may look */
    atomic_int total;
} fs_warm;

/* Runs every signature at every size it will be served at with zeros, and then the recorded requests. A plain
 * run that fails is not the version's end (zeros may not be a legal input): warm->failures counts them, with
 * the last error in *err. A compiled one is: what was not compiled here must never be compiled inside a
 * request. So is a recorded request that fails. 0 or -code with *err. Blocks. */
int fs_servable_warm(fs_servable *servable, fs_warm *warm, fs_error *err);

#endif
