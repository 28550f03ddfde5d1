/* json_tensors: see json_tensors.h. One pass over the text, by descent; nothing is looked at twice. */
#include "json_tensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_number.h"
#include "status.h"
#include "tensor.h"

enum {
    FIRST_ROOM = 4096,   /* bytes, for a start */
    LARGEST_ELEMENT = 8,
    ROW = 1,             /* the level of what one row has */
};

/* Whole numbers up to these are all exact in that type. */
#define FLOAT_WHOLE ((UINT64_C(1) << 24) - 1)
#define DOUBLE_WHOLE ((UINT64_C(1) << 53) - 1)

typedef struct reader {
    const uint8_t *at, *end;
    fs_slice signature;
    fs_json_tensor *tensors;
    uint32_t count;
    uint32_t first; /* which came first in the row before */
    int rc; /* why it stopped, when that is memory */
} reader;

bool fs_json_tensor_dtype(int32_t dtype)
{
    switch (dtype) {
    case FS_DT_FLOAT: case FS_DT_DOUBLE: case FS_DT_BOOL:
    case FS_DT_INT8: case FS_DT_INT16: case FS_DT_INT32: case FS_DT_INT64:
    case FS_DT_UINT8: case FS_DT_UINT16: case FS_DT_UINT32: case FS_DT_UINT64:
        return true;
    default:
        return false;
    }
}

/* ---- tokens ------------------------------------------------------------------------------------- */

static inline void skip_space(reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\n' || *r->at == '\r' || *r->at == '\t'))
        r->at++;
}

/* Whether `c` comes next, after space. */
static inline bool comes(reader *r, uint8_t c)
{
    skip_space(r);
    return r->at < r->end && *r->at == c;
}

/* Takes `c`, with the space before it, if it comes next. */
static inline bool take(reader *r, uint8_t c)
{
    bool there = comes(r, c);
    r->at += there;
    return there;
}

static bool take_word(reader *r, const char *word, size_t len)
{
    if ((size_t)(r->end - r->at) < len || memcmp(r->at, word, len) != 0)
        return false;
    r->at += len;
    return true;
}

/* A string of plain ASCII. */
static bool take_text(reader *r, fs_slice *text)
{
    if (!take(r, '"'))
        return false;
    text->data = r->at;
    while (r->at < r->end && *r->at >= 0x20 && *r->at < 0x7f && *r->at != '"' && *r->at != '\\')
        r->at++;
    text->len = (size_t)(r->at - text->data);
    return take_word(r, "\"", 1);
}

static bool same(fs_slice a, fs_slice b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

static bool is(fs_slice text, const char *word)
{
    return same(text, (fs_slice){(const uint8_t *)word, strlen(word)});
}

/* ---- values ------------------------------------------------------------------------------------- */

/* Room for one more element. */
static bool make_room(reader *r, fs_json_tensor *t)
{
    if (t->room - t->bytes >= LARGEST_ELEMENT)
        return true;
    size_t room = t->room == 0 ? FIRST_ROOM : t->room * 2;
    uint8_t *data = realloc(t->data, room);
    if (data == NULL) {
        r->rc = -FS_RESOURCE_EXHAUSTED;
        return false;
    }
    t->data = data;
    t->room = room;
    return true;
}

static inline void append(fs_json_tensor *t, const void *element, size_t size)
{
    memcpy(t->data + t->bytes, element, size);
    t->bytes += size;
}

static bool put_bool(reader *r, fs_json_tensor *t)
{
    uint8_t value = r->at < r->end && *r->at == 't';
    append(t, &value, sizeof value);
    return value != 0 ? take_word(r, "true", 4) : take_word(r, "false", 5);
}

/* A whole number of `size` bytes, the lowest first as this machine has them, whose magnitude may be `most`, or `least`
 * where it is negative. */
static inline bool put_whole(fs_json_tensor *t, const fs_json_number *n, size_t size, uint64_t most, uint64_t least)
{
    if (n->real || n->magnitude > (n->negative ? least : most))
        return false;
    uint64_t value = n->negative ? 0 - n->magnitude : n->magnitude;
    append(t, &value, size);
    return true;
}

static inline bool put_signed(fs_json_tensor *t, const fs_json_number *n, size_t size)
{
    uint64_t least = UINT64_C(1) << (8 * size - 1);
    return put_whole(t, n, size, least - 1, least);
}

static inline bool put_unsigned(fs_json_tensor *t, const fs_json_number *n, size_t size)
{
    return put_whole(t, n, size, UINT64_MAX >> (64 - 8 * size), 0);
}

/* The number as a double. False: a whole one beyond `most`. */
static inline bool real_of(const fs_json_number *n, uint64_t most, double *value)
{
    if (n->real) {
        *value = n->value;
        return true;
    }
    *value = n->negative ? -(double)n->magnitude : (double)n->magnitude;
    return n->magnitude <= most;
}

static inline bool put(reader *r, fs_json_tensor *t)
{
    fs_json_number n;
    double value;
    float single;
    if (!make_room(r, t))
        return false;
    if (t->dtype == FS_DT_BOOL)
        return put_bool(r, t);
    if (!fs_json_number_read(&r->at, r->end, &n))
        return false;
    switch (t->dtype) {
    case FS_DT_FLOAT:
        if (!real_of(&n, FLOAT_WHOLE, &value))
            return false;
        single = (float)value;
        append(t, &single, sizeof single);
        return isfinite(single);
    case FS_DT_DOUBLE:
        if (!real_of(&n, DOUBLE_WHOLE, &value))
            return false;
        append(t, &value, sizeof value);
        return true;
    case FS_DT_INT64: return put_signed(t, &n, 8);
    case FS_DT_INT32: return put_signed(t, &n, 4);
    case FS_DT_INT16: return put_signed(t, &n, 2);
    case FS_DT_INT8: return put_signed(t, &n, 1);
    case FS_DT_UINT64: return put_unsigned(t, &n, 8);
    case FS_DT_UINT32: return put_unsigned(t, &n, 4);
    case FS_DT_UINT16: return put_unsigned(t, &n, 2);
    default: return put_unsigned(t, &n, 1);
    }
}

/* What stands at `level` of the tensor: a list, or an element where the lists end. The first one says how deep and how
 * long they are, and the others must be like it. */
static bool read_value(reader *r, fs_json_tensor *t, int level)
{
    if (!take(r, '[')) {
        if (t->ndim < 0)
            t->ndim = level;
        return level == t->ndim && put(r, t);
    }
    if (level == FS_JSON_MAX_DIMS || level == t->ndim)
        return false;
    int64_t count = 0;
    do {
        if (!read_value(r, t, level + 1))
            return false;
        count++;
    } while (take(r, ','));
    if (t->dims[level] == 0)
        t->dims[level] = count;
    return t->dims[level] == count && take(r, ']');
}

/* ---- requests ----------------------------------------------------------------------------------- */

/* The input of that name, most likely the one that came after `previous` in the row before. */
static fs_json_tensor *find(reader *r, fs_slice name, fs_json_tensor *previous)
{
    uint32_t *likely = previous != NULL ? &previous->next : &r->first;
    for (uint32_t i = 0; i < r->count; i++) {
        uint32_t at = (*likely + i) % r->count;
        if (same(r->tensors[at].name, name)) {
            *likely = at;
            return &r->tensors[at];
        }
    }
    return NULL;
}

/* {"name": value, ...}, with each input once and nothing else. */
static bool read_named(reader *r, int level)
{
    for (uint32_t i = 0; i < r->count; i++)
        r->tensors[i].there = false;
    uint32_t found = 0;
    fs_json_tensor *t = NULL;
    fs_slice name;
    if (!take(r, '{'))
        return false;
    do {
        if (!take_text(r, &name) || !take(r, ':'))
            return false;
        t = find(r, name, t);
        if (t == NULL || t->there || !read_value(r, t, level))
            return false;
        t->there = true;
        found++;
    } while (take(r, ','));
    return found == r->count && take(r, '}');
}

/* One row, or all columns: by name, or without where there is one input. */
static bool read_inputs(reader *r, int level)
{
    if (comes(r, '{'))
        return read_named(r, level);
    return r->count == 1 && read_value(r, &r->tensors[0], level);
}

static bool read_rows(reader *r)
{
    int64_t rows = 0;
    if (!take(r, '['))
        return false;
    bool named = comes(r, '{');
    do {
        if (comes(r, '{') != named || !read_inputs(r, ROW))
            return false;
        rows++;
    } while (take(r, ','));
    for (uint32_t i = 0; i < r->count; i++)
        r->tensors[i].dims[0] = rows;
    return take(r, ']');
}

static bool read_request(reader *r, bool *in_rows)
{
    bool values = false, named = false;
    fs_slice key, signature = {0};
    if (!take(r, '{'))
        return false;
    do {
        if (!take_text(r, &key) || !take(r, ':'))
            return false;
        if (is(key, "signature_name")) {
            if (named || !take_text(r, &signature))
                return false;
            named = true;
        } else if (values) {
            return false;
        } else if (is(key, "instances") || is(key, "inputs")) {
            values = true;
            *in_rows = is(key, "instances");
            if (*in_rows ? !read_rows(r) : !read_inputs(r, 0))
                return false;
        } else {
            return false;
        }
    } while (take(r, ','));
    if (!take(r, '}') || !values || !same(signature, r->signature))
        return false;
    skip_space(r);
    return r->at == r->end;
}

/* Takes the space at the end of a text and `c` before it. */
static bool take_last(fs_slice *text, uint8_t c)
{
    while (text->len > 0 && memchr(" \n\r\t", text->data[text->len - 1], 4) != NULL)
        text->len--;
    if (text->len == 0 || text->data[text->len - 1] != c)
        return false;
    text->len--;
    return true;
}

/* The same with a string without quotation marks in it. */
static bool take_last_text(fs_slice *text, fs_slice *found)
{
    if (!take_last(text, '"'))
        return false;
    size_t end = text->len;
    while (text->len > 0 && text->data[text->len - 1] != '"')
        text->len--;
    *found = (fs_slice){text->data + text->len, end - text->len};
    return take_last(text, '"');
}

fs_slice fs_json_signature(fs_slice text)
{
    reader r = {.at = text.data, .end = text.data + text.len};
    fs_slice key, name;
    if (take(&r, '{') && take_text(&r, &key) && is(key, "signature_name") && take(&r, ':') && take_text(&r, &name))
        return name;
    if (take_last(&text, '}') && take_last_text(&text, &name) && take_last(&text, ':') && take_last_text(&text, &key) &&
        is(key, "signature_name"))
        return name;
    return (fs_slice){0};
}

int fs_json_tensors_read(fs_slice text, fs_slice signature, fs_json_tensor *tensors, uint32_t count, bool *in_rows)
{
    reader r = {.at = text.data, .end = text.data + text.len, .signature = signature, .tensors = tensors,
                .count = count, .rc = -FS_INVALID_ARGUMENT};
    for (uint32_t i = 0; i < count; i++)
        tensors[i] = (fs_json_tensor){.name = tensors[i].name, .dtype = tensors[i].dtype, .ndim = -1, .next = i + 1};
    return read_request(&r, in_rows) ? 0 : r.rc;
}
