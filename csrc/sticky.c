/* sticky: see sticky.h. */
#include "sticky.h"

#include "hash.h"

uint32_t fs_sticky_header(fs_slice name)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < name.len; i++) {
        uint8_t c = name.data[i];
        h = (h ^ (c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c)) * 16777619u;
    }
    return h == 0 ? 1 : h;
}

uint32_t fs_sticky_value(fs_slice value)
{
    return (uint32_t)(fs_fingerprint(value) >> 32);
}

void fs_sticky_want(fs_sticky *sticky, const uint32_t *headers, uint32_t n)
{
    for (uint32_t i = 0; i < FS_STICKY_HEADERS; i++)
        atomic_store_explicit(&sticky->wanted[i], i < n ? headers[i] : 0, memory_order_relaxed);
}

void fs_sticky_take(const fs_sticky *sticky, fs_slice name, fs_slice value, fs_kept *kept)
{
    uint32_t header = fs_sticky_header(name);
    bool wanted = false;
    for (int i = 0; i < FS_STICKY_HEADERS && !wanted; i++)
        wanted = atomic_load_explicit(&sticky->wanted[i], memory_order_relaxed) == header;
    if (!wanted || value.len == 0)
        return;
    for (int i = 0; i < FS_STICKY_HEADERS; i++) {
        if (kept->of[i].header == header)
            return;
        if (kept->of[i].header == 0) {
            kept->of[i].header = header;
            kept->of[i].value = fs_sticky_value(value);
            return;
        }
    }
}

bool fs_kept_find(const fs_kept *kept, uint32_t header, uint32_t *value)
{
    for (int i = 0; i < FS_STICKY_HEADERS; i++) {
        if (kept->of[i].header == header) {
            *value = kept->of[i].value;
            return true;
        }
    }
    return false;
}
