/* bearer: see bearer.h. */
#include "bearer.h"

#include <string.h>

static const char scheme[] = "bearer";

void fs_bearer_words(const uint8_t digest[FS_SHA256_BYTES], uint64_t words[FS_BEARER_WORDS])
{
    memcpy(words, digest, FS_SHA256_BYTES);
}

/* The token in "Bearer TOKEN", whose scheme may be in whatever case; empty: there is none. */
static fs_slice token_of(fs_slice header)
{
    size_t at = sizeof scheme - 1;
    if (header.len <= at || header.data[at] != ' ')
        return (fs_slice){header.data, 0};
    for (size_t i = 0; i < at; i++) {
        if ((header.data[i] | 0x20) != scheme[i])
            return (fs_slice){header.data, 0};
    }
    while (at < header.len && header.data[at] == ' ')
        at++;
    return (fs_slice){header.data + at, header.len - at};
}

static fs_bearer read_header(fs_slice header)
{
    fs_slice token = token_of(header);
    fs_bearer bearer = {.kind = FS_BEARER_OTHER};
    if (token.len > 0 && token.len <= FS_BEARER_MAX_BYTES) {
        uint8_t digest[FS_SHA256_BYTES];
        fs_sha256(token, digest);
        fs_bearer_words(digest, bearer.digest);
        bearer.kind = FS_BEARER_TOKEN;
    }
    return bearer;
}

/* Looks at every byte: behind a proxy, one connection carries callers who must not learn each other's token. */
static bool remembered(const fs_bearer_memory *memory, fs_slice header)
{
    if (memory->header == NULL || memory->len != header.len)
        return false;
    uint8_t differ = 0;
    for (size_t i = 0; i < header.len; i++)
        differ |= memory->header[i] ^ header.data[i];
    return differ == 0;
}

static void remember(fs_bearer_memory *memory, fs_slab *slab, fs_slice header, const fs_bearer *bearer)
{
    if (header.len == 0 || header.len > FS_BEARER_MAX_BYTES)
        return;
    if (memory->header == NULL || fs_slab_usable(memory->header) < header.len) {
        fs_bearer_forget(memory);
        memory->header = fs_slab_alloc(slab, header.len);
        if (memory->header == NULL)
            return;
    }
    memcpy(memory->header, header.data, header.len);
    memory->len = header.len;
    memory->bearer = *bearer;
}

void fs_bearer_take(fs_bearer_memory *memory, fs_slab *slab, fs_slice header, fs_bearer *bearer)
{
    if (bearer->kind != FS_BEARER_NONE)
        return;
    if (remembered(memory, header)) {
        *bearer = memory->bearer;
        return;
    }
    *bearer = read_header(header);
    remember(memory, slab, header, bearer);
}

void fs_bearer_forget(fs_bearer_memory *memory)
{
    fs_slab_free(memory->header);
    memory->header = NULL;
    memory->len = 0;
}
