/* fuzz_http1: any bytes from an HTTP server.
 *
 * The first byte says in which pieces they come. Whatever comes, the reading must not depend on the pieces,
 * and what was counted must be no more than what was there. */
#include <stdlib.h>
#include <string.h>

#include "http1.h"

typedef struct reading {
    int answers, rc;
    uint64_t body_bytes;
    int status_sum;
    size_t at;
} reading;

static void require(bool cond)
{
    if (!cond)
        abort();
}

/* Reads answer after answer, to the end or to the first that is none. */
static reading read_all(const uint8_t *data, size_t size, size_t step)
{
    reading r = {0};
    fs_http1 http;
    fs_error err = {0};
    memset(&http, 0x5a, sizeof http);
    fs_http1_begin(&http);
    while (r.at < size && r.rc == 0) {
        size_t n = step < size - r.at ? step : size - r.at;
        uint8_t *copy = malloc(n); /* so that a sanitizer sees reads past it */
        require(copy != NULL);
        memcpy(copy, data + r.at, n);
        int64_t taken = fs_http1_take(&http, copy, n, &err);
        free(copy);
        if (taken < 0) {
            require(err.code != 0 && err.len > 0);
            r.rc = (int)taken;
            break;
        }
        require((size_t)taken <= n && ((size_t)taken == n || http.done));
        r.at += (size_t)taken;
        if (http.done || (r.at == size && fs_http1_close(&http, &err) == 0)) {
            require(http.status >= 100 && http.status <= 999 && http.body_bytes <= size);
            r.answers++;
            r.status_sum += http.status;
            r.body_bytes += http.body_bytes;
            require(taken > 0);
            fs_http1_begin(&http);
        }
    }
    require(r.body_bytes <= size);
    return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t steps[] = {1, 2, 3, 7, 64, 250, 1000, 65536};
    if (size == 0)
        return 0;
    size_t step = steps[data[0] % 8];
    reading whole = read_all(data + 1, size - 1, SIZE_MAX), pieces = read_all(data + 1, size - 1, step);
    require(whole.answers == pieces.answers && whole.rc == pieces.rc);
    require(whole.status_sum == pieces.status_sum && whole.body_bytes == pieces.body_bytes);
    return 0;
}
