/* tensor_decode: elements out of a TensorProto that has been looked at; see tensor.h.
 *
 * Runs on executors, which copy each request's values straight into a batch. */
#include <string.h>

#include "examples.h"
#include "tensor.h"
#include "tensor_proto.h"
#include "wire.h"

enum { REPEAT_BYTES = 2 << 10 }; /* larger rows are copied as they are */

static uint64_t load64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* A varint of two bytes or more, at least ten bytes before the end of its buffer; NULL where it is too long.
 * Up to eight bytes are squeezed together at once. */
static inline const uint8_t *read_long_varint(const uint8_t *p, uint64_t *value)
{
    uint64_t word = load64(p);
    uint64_t stops = ~word & UINT64_C(0x8080808080808080);
    if (stops == 0) {
        fs_wire w = {p, p + FS_WIRE_MAX_VARINT};
        return fs_wire_read_varint(&w, value) ? w.at : NULL;
    }
    word &= stops ^ (stops - 1); /* the bytes up to the one that ends it */
    word &= UINT64_C(0x7f7f7f7f7f7f7f7f);
    word = (word & UINT64_C(0x007f007f007f007f)) | (word & UINT64_C(0x7f007f007f007f00)) >> 1;
    word = (word & UINT64_C(0x00003fff00003fff)) | (word & UINT64_C(0x3fff00003fff0000)) >> 2;
    word = (word & UINT64_C(0x000000000fffffff)) | (word & UINT64_C(0x0fffffff00000000)) >> 4;
    *value = word;
    return p + ((unsigned)__builtin_ctzll(stops) >> 3) + 1;
}

/* For one type in memory: varints to values. As in protobuf, a large number loses its upper bits. */
#define DEFINE_VARINTS(name, T)                                                                      \
    static const uint8_t *decode_##name(const uint8_t *p, const uint8_t *end, T *dst, uint64_t count, \
                                        uint64_t *taken)                                             \
    {                                                                                                \
        uint64_t i = 0, value;                                                                       \
        while (i < count && end - p >= FS_WIRE_MAX_VARINT) {                                         \
            value = *p;                                                                              \
            if (value < 0x80)                                                                        \
                p++;                                                                                 \
            else if ((p = read_long_varint(p, &value)) == NULL)                                      \
                return NULL;                                                                         \
            dst[i++] = (T)value;                                                                     \
        }                                                                                            \
        fs_wire w = {p, end};                                                                        \
        while (i < count && w.at < end) {                                                            \
            if (!fs_wire_read_varint(&w, &value))                                                    \
                return NULL;                                                                         \
            dst[i++] = (T)value;                                                                     \
        }                                                                                            \
        *taken = i;                                                                                  \
        return w.at;                                                                                 \
    }

DEFINE_VARINTS(i8, int8_t)
DEFINE_VARINTS(u8, uint8_t)
DEFINE_VARINTS(i16, int16_t)
DEFINE_VARINTS(u16, uint16_t)
DEFINE_VARINTS(i32, int32_t)
DEFINE_VARINTS(u32, uint32_t)
DEFINE_VARINTS(i64, int64_t)
DEFINE_VARINTS(u64, uint64_t)

static const uint8_t *decode_bool(const uint8_t *p, const uint8_t *end, uint8_t *dst, uint64_t count,
                                  uint64_t *taken)
{
    fs_wire w = {p, end};
    uint64_t i = 0;
    while (i < count && w.at < end) {
        uint64_t value;
        if (!fs_wire_read_varint(&w, &value))
            return NULL;
        dst[i++] = value != 0;
    }
    *taken = i;
    return w.at;
}

static const uint8_t *decode_varints(const fs_dtype_info *info, const uint8_t *p, const uint8_t *end,
                                     void *dst, uint64_t count, uint64_t *taken)
{
    switch (info->store) {
    case STORE_I8: return decode_i8(p, end, dst, count, taken);
    case STORE_U8: return decode_u8(p, end, dst, count, taken);
    case STORE_I16: return decode_i16(p, end, dst, count, taken);
    case STORE_U16: return decode_u16(p, end, dst, count, taken);
    case STORE_I32: return decode_i32(p, end, dst, count, taken);
    case STORE_U32: return decode_u32(p, end, dst, count, taken);
    case STORE_I64: return decode_i64(p, end, dst, count, taken);
    case STORE_U64: return decode_u64(p, end, dst, count, taken);
    case STORE_BOOL: return decode_bool(p, end, dst, count, taken);
    default: return NULL;
    }
}

/* A range of a list of values that is being read. `size` is that of a value here: half an element's, for
 * complex ones. */
typedef struct taking {
    const fs_dtype_info *info;
    size_t size;
    uint64_t skip; /* values still to pass over */
    uint64_t want; /* values still to take */
    uint8_t *dst;
    uint64_t taken;
    uint64_t seen; /* values passed over or taken; when want is left over, all that the list has */
} taking;

static bool take_run(taking *t, fs_slice run)
{
    switch (t->info->store) {
    case STORE_FIXED32:
    case STORE_FIXED64:
    case STORE_BYTES: {
        uint64_t there = run.len / t->size;
        uint64_t skipped = t->skip < there ? t->skip : there;
        uint64_t n = there - skipped < t->want ? there - skipped : t->want;
        if (n > 0)
            memcpy(t->dst, run.data + skipped * t->size, n * t->size);
        t->skip -= skipped;
        t->seen += skipped;
        t->dst += n * t->size;
        t->want -= n;
        t->taken += n;
        t->seen += n;
        return true;
    }
    case STORE_STRING:
        t->seen++;
        if (t->skip > 0) {
            t->skip--;
            return true;
        }
        memcpy(t->dst, &run, sizeof run);
        t->dst += sizeof run;
        t->want--;
        t->taken++;
        return true;
    default: {
        const uint8_t *at = run.data, *end = run.data + run.len;
        uint64_t n, skipped = fs_wire_varints_skip(&at, end, t->skip);
        t->skip -= skipped;
        t->seen += skipped;
        if (decode_varints(t->info, at, end, t->dst, t->want, &n) == NULL)
            return false;
        t->dst += n * t->size;
        t->want -= n;
        t->taken += n;
        t->seen += n;
        return true;
    }
    }
}

/* Takes what is there of values [first, first + count). */
static bool take(const fs_tensor_view *view, const fs_dtype_info *info, uint64_t first, uint64_t count,
                 void *dst, taking *t)
{
    *t = (taking){.info = info, .size = info->size / info->units, .skip = first, .want = count, .dst = dst};
    if (view->values.len == 0)
        return true;
    if (!view->scattered)
        return take_run(t, view->values);

    fs_wire w = fs_wire_over(view->values.data, view->values.len);
    while (w.at < w.end && t->want > 0) {
        uint32_t tag, number;
        fs_slice run;
        if (info->store == STORE_STRING && *w.at == FS_WIRE_TAG(F_STRING, FS_WIRE_BYTES)) {
            w.at++; /* nearly always so, hence apart */
            if (!fs_wire_read_bytes(&w, &run))
                return false;
        } else {
            if (!fs_wire_read_tag(&w, &tag) || !fs_read_values(&w, tag, &number, &run))
                return false;
            if (number != info->field)
                continue;
        }
        if (!take_run(t, run))
            return false;
    }
    return true;
}

/* Fills dst[step, bytes) by repeating its first `step` bytes. */
static void repeat(uint8_t *dst, size_t step, size_t bytes)
{
    uint8_t *at = dst + step;
    size_t left = bytes - step;
    while (left > 0) { /* a copy doubles what the next one copies, as long as that is little */
        size_t n = step < left ? step : left;
        memcpy(at, dst, n);
        at += n;
        left -= n;
        if (step < REPEAT_BYTES)
            step += n;
    }
}

/* Fills elements [from, count) with what element from - 1 holds. */
static void repeat_last(uint8_t *dst, size_t size, uint64_t from, uint64_t count)
{
    repeat(dst + (from - 1) * size, size, (size_t)(count - from + 1) * size);
}

static int decode_string_content(const fs_tensor_view *view, int64_t first, int64_t count, fs_slice *dst)
{
    fs_wire lens = fs_wire_over(view->content.data, view->content.len - view->values.len);
    const uint8_t *at = view->values.data;
    const uint8_t *end = at + view->values.len;
    for (int64_t i = 0; i < first + count; i++) {
        uint32_t len;
        if (!fs_read_string_len(&lens, &len) || len > (size_t)(end - at))
            return -FS_INTERNAL;
        if (i >= first)
            dst[i - first] = (fs_slice){at, len};
        at += len;
    }
    return 0;
}

static void fill_default(const fs_dtype_info *info, const fs_tensor_view *view, void *dst, int64_t count)
{
    if (info->store == STORE_STRING) {
        fs_slice *strings = dst;
        for (int64_t i = 0; i < count; i++)
            strings[i] = (fs_slice){view->proto.data, 0};
    } else {
        memset(dst, 0, (size_t)count * info->size);
    }
}

/* A view of the one row that the payload of a view that repeats has. */
static fs_tensor_view row_of(const fs_tensor_view *view)
{
    fs_tensor_view row = *view;
    row.repeats = false;
    row.elements = view->elements > 0 ? view->elements / view->dims[0] : 0;
    return row;
}

/* The same of a row that repeats: it is decoded once, from where `first` lies in it, and then copied. */
static int decode_repeated(const fs_tensor_view *view, int64_t first, int64_t count, uint8_t *dst)
{
    fs_tensor_view row = row_of(view);
    size_t size = fs_dtype_size(view->dtype);
    int64_t begin = first % row.elements;
    int64_t head = row.elements - begin < count ? row.elements - begin : count; /* to the row's end, */
    int64_t rest = begin < count - head ? begin : count - head; /* and what lies before `first` in the next */
    int rc = fs_tensor_view_decode(&row, begin, head, dst);
    if (rc == 0 && rest > 0)
        rc = fs_tensor_view_decode(&row, 0, rest, dst + (size_t)head * size);
    if (rc == 0)
        repeat(dst, (size_t)(head + rest) * size, (size_t)count * size);
    return rc;
}

int fs_tensor_view_decode(const fs_tensor_view *view, int64_t first, int64_t count, void *dst)
{
    const fs_dtype_info *info = fs_dtype_info_of(view->dtype);
    if (count == 0 || info->store == STORE_NONE)
        return 0;
    if (view->repeats)
        return decode_repeated(view, first, count, dst);
    if (view->has_content) {
        if (info->store == STORE_STRING)
            return decode_string_content(view, first, count, dst);
        memcpy(dst, view->content.data + (size_t)first * info->size, (size_t)count * info->size);
        return 0;
    }
    if (view->examples != NULL)
        return fs_examples_decode(view->examples, first, count, dst);

    taking t;
    uint64_t units = info->units, wanted = (uint64_t)count;
    if (!take(view, info, (uint64_t)first * units, wanted * units, dst, &t))
        return -FS_INTERNAL;
    uint64_t taken = t.taken / units; /* half a complex number is none */
    if (taken == wanted)
        return 0;
    if (taken == 0) {
        uint64_t total = t.seen / units;
        if (total == 0) {
            fill_default(info, view, dst, count);
            return 0;
        }
        if (!take(view, info, (total - 1) * units, units, dst, &t) || t.taken != units)
            return -FS_INTERNAL;
        taken = 1;
    }
    repeat_last(dst, info->size, taken, wanted);
    return 0;
}

uint64_t fs_tensor_view_string_bytes(const fs_tensor_view *view)
{
    uint64_t elements = (uint64_t)view->elements, n = 0, total = 0, last = 0;
    if (elements == 0)
        return 0;
    if (view->repeats) {
        fs_tensor_view row = row_of(view);
        return __builtin_mul_overflow(fs_tensor_view_string_bytes(&row), (uint64_t)view->dims[0], &total)
                   ? UINT64_MAX
                   : total;
    }
    if (view->has_content)
        return view->values.len; /* each once */
    if (view->examples != NULL)
        return view->examples->bytes;
    fs_wire w = fs_wire_over(view->values.data, view->values.len);
    if (!view->scattered && view->values.len > 0) {
        n = 1;
        total = last = view->values.len;
        w.at = w.end;
    }
    while (w.at < w.end && n < elements) {
        uint32_t tag, number;
        fs_slice run;
        if (!fs_wire_read_tag(&w, &tag) || !fs_read_values(&w, tag, &number, &run))
            break; /* malformed: decoding says so */
        if (number != F_STRING)
            continue;
        n++;
        last = run.len;
        total += last;
    }
    uint64_t repeated;
    if (__builtin_mul_overflow(elements - n, last, &repeated) ||
        __builtin_add_overflow(total, repeated, &total))
        return UINT64_MAX;
    return total;
}
