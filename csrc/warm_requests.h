/* warm_requests: recorded requests for warming a version up, as a file and as runs.
 *
 * The file is made by a trial: one PredictRequest after another, each behind its length in four bytes, little
 * endian. It may be damaged all the same, so everything is checked, and no more than one request is in memory.
 * Used by warm.c on a loader thread. */
#ifndef FS_WARM_REQUESTS_H
#define FS_WARM_REQUESTS_H

#include "servable.h"
#include "slab.h"

typedef struct fs_warm_requests {
    const char *path; /* the caller's */
    size_t max_request_bytes;
    int fd;
    uint64_t size;
    uint64_t at;     /* of the next length */
    uint32_t count;  /* requests in the file */
    uint32_t number; /* of the request that was read last, from 1 */
} fs_warm_requests;

/* Opens the file and sees that its lengths add up. A request whose inputs take more than `max_request_bytes` once
 * they are decoded will not be run: a few bytes can stand for a tensor of any size. 0 or -code with *err. */
int fs_warm_requests_open(fs_warm_requests *file, const char *path, size_t max_request_bytes, fs_error *err);
void fs_warm_requests_close(fs_warm_requests *file);

/* Reads the next of `count` requests and runs it `iterations` times, as it is, and, where requests of its kind run
 * compiled, padded to a bucket and compiled too. *done counts iterations. 0 or -code with *err, which names file
 * and request. */
int fs_warm_requests_run_next(fs_warm_requests *file, fs_servable *servable, fs_slab *slab, int iterations,
                              atomic_int *done, fs_error *err);

#endif
