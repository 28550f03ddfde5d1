/* fuzz_traceparent: any bytes as the traceparent headers of a request, one after the other.
 *
 * Headers are what lies between newlines. A second reading of each, by the letters of the standard, says what must come
 * of it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "traceparent.h"

static void require(bool cond)
{
    if (!cond)
        abort();
}

static bool only(const char *text, size_t n, const char *letters)
{
    return strspn(text, letters) >= n;
}

/* By the definition, on text that ends in a NUL. */
static bool expected(const char *text, size_t len, fs_traceparent *parent)
{
    static const char hex[] = "0123456789abcdef";
    if (len < 55)
        return false;
    if (!only(text, 2, hex) || text[2] != '-' || !only(text + 3, 32, hex) || text[35] != '-' ||
        !only(text + 36, 16, hex) || text[52] != '-' || !only(text + 53, 2, hex))
        return false;
    if (memcmp(text, "ff", 2) == 0 || only(text + 3, 32, "0") || only(text + 36, 16, "0"))
        return false;
    if (len > 55 && (memcmp(text, "00", 2) == 0 || text[55] != '-'))
        return false;
    *parent = (fs_traceparent){.state = FS_PARENT_THERE};
    unsigned byte = 0;
    for (int i = 0; i < FS_TRACE_ID_BYTES; i++) {
        require(sscanf(text + 3 + 2 * i, "%2x", &byte) == 1);
        parent->trace_id[i] = (uint8_t)byte;
    }
    for (int i = 0; i < FS_SPAN_ID_BYTES; i++) {
        require(sscanf(text + 36 + 2 * i, "%2x", &byte) == 1);
        parent->parent_id[i] = (uint8_t)byte;
    }
    require(sscanf(text + 53, "%2x", &byte) == 1);
    parent->flags = (uint8_t)byte;
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fs_traceparent got = {0}, want = {0};
    for (size_t at = 0; at <= size;) {
        const uint8_t *end = at < size ? memchr(data + at, '\n', size - at) : NULL;
        size_t len = end != NULL ? (size_t)(end - data) - at : size - at;
        uint8_t *copy = malloc(len + (len == 0)); /* so that a sanitizer sees reads past it */
        char *text = malloc(len + 1);
        require(copy != NULL && text != NULL);
        if (len > 0) {
            memcpy(copy, data + at, len);
            memcpy(text, data + at, len);
        }
        text[len] = '\0';
        fs_traceparent one = {0}, again = {0};
        bool is = expected(text, len, &one);
        require(fs_traceparent_parse((fs_slice){copy, len}, &again) == is);
        require(memcmp(&one, &again, sizeof one) == 0);
        fs_traceparent_take((fs_slice){copy, len}, &got);
        if (want.state == FS_PARENT_NONE && is)
            want = one;
        else
            want = (fs_traceparent){.state = FS_PARENT_IGNORED};
        require(memcmp(&got, &want, sizeof got) == 0);
        free(copy);
        free(text);
        at += len + 1;
    }
    return 0;
}
