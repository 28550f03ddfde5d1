/* traceparent: see traceparent.h. */
#include "traceparent.h"

#include <string.h>

enum {
    VERSION_AT = 0,
    TRACE_AT = 3,
    PARENT_AT = 36,
    FLAGS_AT = 53,
    LENGTH = 55, /* of version 00; later ones may have more behind another dash */
};

/* The value of a lowercase hexadecimal digit; 16: it is none. */
static unsigned digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - (unsigned)'0';
    return c >= 'a' && c <= 'f' ? c - (unsigned)'a' + 10 : 16;
}

/* Reads `n` bytes in hexadecimal. */
static bool read_hex(const uint8_t *text, uint8_t *bytes, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high > 15 || low > 15)
            return false;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static bool all_zeros(const uint8_t *bytes, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any |= bytes[i];
    return any == 0;
}

bool fs_traceparent_parse(fs_slice value, fs_traceparent *parent)
{
    const uint8_t *text = value.data;
    uint8_t version;
    fs_traceparent read = {.state = FS_PARENT_THERE};
    if (value.len < LENGTH || !read_hex(text + VERSION_AT, &version, 1) || version == 0xff)
        return false;
    if (value.len > LENGTH && (version == 0 || text[LENGTH] != '-'))
        return false;
    if (text[TRACE_AT - 1] != '-' || text[PARENT_AT - 1] != '-' || text[FLAGS_AT - 1] != '-')
        return false;
    if (!read_hex(text + TRACE_AT, read.trace_id, FS_TRACE_ID_BYTES) ||
        !read_hex(text + PARENT_AT, read.parent_id, FS_SPAN_ID_BYTES) || !read_hex(text + FLAGS_AT, &read.flags, 1))
        return false;
    if (all_zeros(read.trace_id, FS_TRACE_ID_BYTES) || all_zeros(read.parent_id, FS_SPAN_ID_BYTES))
        return false;
    *parent = read;
    return true;
}

void fs_traceparent_take(fs_slice value, fs_traceparent *parent)
{
    if (parent->state != FS_PARENT_NONE || !fs_traceparent_parse(value, parent))
        *parent = (fs_traceparent){.state = FS_PARENT_IGNORED};
}
