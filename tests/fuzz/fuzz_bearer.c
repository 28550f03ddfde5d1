/* fuzz_bearer: any bytes as the authorization headers of a connection, one after the other.
 *
 * Headers are what lies between newlines. A second reading of each, which remembers nothing, says what must come of
 * it. */
#include <stdlib.h>
#include <string.h>

#include "bearer.h"

static void require(bool cond)
{
    if (!cond)
        abort();
}

/* By the definition: the scheme in any case, spaces, and a token that is neither empty nor too long. */
static fs_bearer expected(fs_slice header)
{
    static const char small[] = "bearer", large[] = "BEARER";
    fs_bearer bearer = {.kind = FS_BEARER_OTHER};
    size_t at = 0;
    while (at < 6 && at < header.len && (header.data[at] == small[at] || header.data[at] == large[at]))
        at++;
    if (at < 6 || at == header.len || header.data[at] != ' ')
        return bearer;
    while (at < header.len && header.data[at] == ' ')
        at++;
    if (at == header.len || header.len - at > FS_BEARER_MAX_BYTES)
        return bearer;
    uint8_t digest[FS_SHA256_BYTES];
    fs_sha256((fs_slice){header.data + at, header.len - at}, digest);
    fs_bearer_words(digest, bearer.digest);
    bearer.kind = FS_BEARER_TOKEN;
    return bearer;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fs_slab *slab = fs_slab_new(0);
    require(slab != NULL);
    fs_bearer_memory memory = {0};
    for (size_t at = 0; at <= size;) {
        const uint8_t *end = at < size ? memchr(data + at, '\n', size - at) : NULL;
        size_t len = end != NULL ? (size_t)(end - data) - at : size - at;
        uint8_t *copy = malloc(len + (len == 0)); /* so that a sanitizer sees reads past it */
        require(copy != NULL);
        if (len > 0)
            memcpy(copy, data + at, len);
        fs_slice header = {copy, len};
        fs_bearer want = expected(header), got = {0};
        fs_bearer_take(&memory, slab, header, &got);
        require(got.kind == want.kind && fs_bearer_same(got.digest, want.digest));
        free(copy);
        at += len + 1;
    }
    fs_bearer_forget(&memory);
    fs_slab_release(slab);
    return 0;
}
