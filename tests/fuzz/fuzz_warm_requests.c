/* fuzz_warm_requests: any bytes as a file of recorded requests, run on a model of the null runtime.
 *
 * Whatever the bytes are, the file is refused or its requests are run; what is refused has a reason. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime_null.h"
#include "warm.h"

enum { MOST_BYTES = 1 << 16, SIGNATURES = 3 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool cond)
{
    if (!cond)
        abort();
}

/* x[n, 2] float -> the same, batched and compiled; pairs of unknown shapes, of which b may have one row; a scalar. */
static fs_servable *opened(fs_runtime runtime)
{
    static int64_t n2[] = {-1, 2}, n[] = {-1};
    static fs_port x[] = {{"x", "x:0", FS_DT_FLOAT, 2, n2}}, s[] = {{"s", "s:0", FS_DT_INT64, 0, NULL}};
    static fs_port pair[] = {{"a", "a:0", FS_DT_STRING, -1, NULL}, {"b", "b:0", FS_DT_INT32, 1, n}};
    static const fs_signature signatures[SIGNATURES] = {
        {"serving_default", x, 1, x, 1, NULL}, {"pair", pair, 2, pair, 2, NULL}, {"one", s, 1, s, 1, NULL}};
    static const bool one_of_b[] = {false, true};
    static const fs_signature_plan plans[SIGNATURES] = {
        {.batched = true, .compiled = true, .n_buckets = 3, .buckets = {1, 4, 16}},
        {.batched = true, .broadcast = one_of_b},
        {0}};
    static const fs_model_spec spec = {.path = "m", .signatures = signatures, .n_signatures = SIGNATURES};
    static const fs_batching batching = {.max_batch_size = 16, .max_enqueued_batches = 1};
    fs_servable *servable;
    fs_error err;
    require(fs_servable_open(runtime, "m", 1, &spec, plans, &batching, &servable, &err) == 0);
    return servable;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char path[64];
    int fd = memfd_create("requests", MFD_CLOEXEC);
    require(fd >= 0);
    require(write(fd, data, len) == (ssize_t)len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);

    fs_runtime runtime;
    fs_error err = {0};
    require(fs_runtime_null(NULL, &runtime, &err) == 0);
    fs_servable *servable = opened(runtime);
    fs_warm warm = {.iterations = 1, .requests = path, .max_request_bytes = MOST_BYTES};
    int rc = fs_servable_warm(servable, &warm, &err);
    require(rc == 0 || (err.code == -rc && err.len > 0));
    require(rc != 0 || atomic_load(&warm.done) == atomic_load(&warm.total));
    fs_servable_close(servable);
    fs_runtime_null_free(&runtime);
    close(fd);
    return 0;
}
