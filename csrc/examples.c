/* examples: see examples.h.
 *
 * A context is merged into an example by writing its bytes before the example's: that is how protobuf merges
 * messages, and of a feature that both have the example's counts, as it comes last. */
#include "examples.h"

#include <string.h>

#include "wire.h"

enum {
    F_LIST = 1, F_LIST_WITH_CONTEXT = 2, /* Input */
    F_EXAMPLES = 1, F_CONTEXT = 2,       /* ExampleList, ExampleListWithContext */
    LIST_DEPTH = FS_WIRE_MAX_DEPTH - 2,  /* the levels left below them, in a request's Input */
    EXAMPLE_DEPTH = FS_WIRE_MAX_DEPTH - 3,
};

/* ---- tensorflow.Example ------------------------------------------------------------------------ */

static const fs_wire_message bytes_list = {NULL, 0};

static const fs_wire_field float_list_fields[] = {{1, FS_WIRE_CHECK_FIXED32, NULL}};
static const fs_wire_message float_list = {float_list_fields, 1};

static const fs_wire_field int64_list_fields[] = {{1, FS_WIRE_CHECK_VARINTS, NULL}};
static const fs_wire_message int64_list = {int64_list_fields, 1};

static const fs_wire_field feature_fields[] = {
    {1, FS_WIRE_CHECK_MESSAGE, &bytes_list},
    {2, FS_WIRE_CHECK_MESSAGE, &float_list},
    {3, FS_WIRE_CHECK_MESSAGE, &int64_list},
};
static const fs_wire_message feature = {feature_fields, 3};

static const fs_wire_field entry_fields[] = {
    {1, FS_WIRE_CHECK_UTF8, NULL},
    {2, FS_WIRE_CHECK_MESSAGE, &feature},
};
static const fs_wire_message entry = {entry_fields, 2};

static const fs_wire_field features_fields[] = {{1, FS_WIRE_CHECK_MESSAGE, &entry}};
static const fs_wire_message features = {features_fields, 1};

static const fs_wire_field example_fields[] = {{1, FS_WIRE_CHECK_MESSAGE, &features}};
static const fs_wire_message example = {example_fields, 1};

/* The tables above say what is valid. Examples come by the hundred with a dozen features each, nearly all of them
 * written alike, so what looks as usual is walked by hand, and anything else is left to the tables. */
enum {
    TAG_1 = FS_WIRE_TAG(1, FS_WIRE_BYTES),
    TAG_2 = FS_WIRE_TAG(2, FS_WIRE_BYTES),
    TAG_3 = FS_WIRE_TAG(3, FS_WIRE_BYTES),
};

/* Whether all of a name's bytes are ASCII, a word at a time. */
static bool is_ascii(fs_slice name)
{
    uint64_t all = 0, word;
    if (name.len >= sizeof word) {
        for (size_t i = 0; i + sizeof word <= name.len; i += sizeof word) {
            memcpy(&word, name.data + i, sizeof word);
            all |= word;
        }
        memcpy(&word, name.data + name.len - sizeof word, sizeof word);
        return ((all | word) & UINT64_C(0x8080808080808080)) == 0;
    }
    for (size_t i = 0; i < name.len; i++)
        all |= name.data[i];
    return all < 0x80;
}

/* One list of values, whose fields are all packed runs, or strings. */
static bool feature_valid(fs_slice bytes)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    fs_slice list, run;
    uint8_t kind = w.at < w.end ? *w.at++ : 0;
    if ((kind != TAG_1 && kind != TAG_2 && kind != TAG_3) || !fs_wire_read_bytes(&w, &list) || w.at < w.end)
        return fs_wire_message_valid(&feature, bytes, EXAMPLE_DEPTH - 3);
    w = fs_wire_over(list.data, list.len);
    while (w.at < w.end) {
        if (*w.at++ != TAG_1 || !fs_wire_read_bytes(&w, &run))
            return fs_wire_message_valid(&feature, bytes, EXAMPLE_DEPTH - 3);
        if (kind == TAG_2 ? run.len % 4 != 0 : kind == TAG_3 && !fs_wire_varints_valid(run))
            return false;
    }
    return true;
}

/* A name, then its feature. */
static bool entry_valid(fs_slice bytes)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    fs_slice name, value;
    if (w.at < w.end && *w.at++ == TAG_1 && fs_wire_read_bytes(&w, &name) && is_ascii(name) &&
        w.at < w.end && *w.at++ == TAG_2 && fs_wire_read_bytes(&w, &value) && w.at == w.end)
        return feature_valid(value);
    return fs_wire_message_valid(&entry, bytes, EXAMPLE_DEPTH - 2);
}

/* Features in one piece, with nothing but entries. */
static bool example_valid(fs_slice bytes)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    fs_slice whole, one;
    if (bytes.len == 0)
        return true;
    if (*w.at++ != TAG_1 || !fs_wire_read_bytes(&w, &whole) || w.at < w.end)
        return fs_wire_message_valid(&example, bytes, EXAMPLE_DEPTH);
    w = fs_wire_over(whole.data, whole.len);
    while (w.at < w.end) {
        if (*w.at++ != TAG_1 || !fs_wire_read_bytes(&w, &one))
            return fs_wire_message_valid(&example, bytes, EXAMPLE_DEPTH);
        if (!entry_valid(one))
            return false;
    }
    return true;
}

/* ---- lists of them ------------------------------------------------------------------------------ */

/* Moves on to the next example or context; its tag says which. False at the end, and, with w->at before it,
 * where the list is malformed. A list without context may have a field of that number that means nothing. */
static bool next_item(fs_wire *w, bool with_context, uint32_t *tag, fs_slice *bytes)
{
    while (w->at < w->end) {
        fs_wire ahead = *w;
        if (!fs_wire_read_tag(&ahead, tag))
            return false;
        if (*tag == FS_WIRE_TAG(F_EXAMPLES, FS_WIRE_BYTES) ||
            (with_context && *tag == FS_WIRE_TAG(F_CONTEXT, FS_WIRE_BYTES))) {
            if (!fs_wire_read_bytes(&ahead, bytes))
                return false;
            *w = ahead;
            return true;
        }
        if (!fs_wire_skip(&ahead, *tag, LIST_DEPTH))
            return false;
        *w = ahead;
    }
    return false;
}

static bool is_context(uint32_t tag)
{
    return tag == FS_WIRE_TAG(F_CONTEXT, FS_WIRE_BYTES);
}

static bool list_valid(fs_slice list, bool with_context)
{
    fs_wire w = fs_wire_over(list.data, list.len);
    uint32_t tag;
    fs_slice bytes;
    while (next_item(&w, with_context, &tag, &bytes)) {
        if (!example_valid(bytes))
            return false;
    }
    return w.at == w.end;
}

/* A context in several pieces: they merge, once each is known to be whole. */
static int join_contexts(fs_arena *arena, fs_slice list, size_t total, fs_slice *context)
{
    uint8_t *joined = fs_arena_alloc(arena, total);
    if (joined == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    *context = (fs_slice){joined, total};
    fs_wire w = fs_wire_over(list.data, list.len);
    uint32_t tag;
    fs_slice bytes;
    while (next_item(&w, true, &tag, &bytes)) {
        if (!is_context(tag))
            continue;
        if (!example_valid(bytes))
            return -FS_INTERNAL;
        memcpy(joined, bytes.data, bytes.len);
        joined += bytes.len;
    }
    return 0;
}

/* Counts what is in a list. */
static int look_at_list(fs_arena *arena, fs_slice list, bool with_context, fs_examples *out)
{
    fs_wire w = fs_wire_over(list.data, list.len);
    uint32_t tag, contexts = 0;
    size_t context_bytes = 0;
    fs_slice bytes;
    out->list = list;
    while (next_item(&w, with_context, &tag, &bytes)) {
        if (is_context(tag)) {
            contexts++;
            context_bytes += bytes.len;
            out->context = bytes;
        } else {
            out->count++;
            out->bytes += bytes.len;
        }
    }
    if (w.at != w.end)
        return -FS_INTERNAL;
    if (contexts > 1) {
        int rc = join_contexts(arena, list, context_bytes, &out->context);
        if (rc != 0)
            return rc;
    }
    out->bytes += (uint64_t)out->count * out->context.len; /* both below 2^31 */
    return 0;
}

/* ---- Inputs ------------------------------------------------------------------------------------- */

/* As next_item: moves on to an Input's next list, which is of the kind *tag >> 3. */
static bool next_list(fs_wire *w, uint32_t *tag, fs_slice *bytes)
{
    while (w->at < w->end) {
        fs_wire ahead = *w;
        if (!fs_wire_read_tag(&ahead, tag))
            return false;
        bool is_list = *tag == FS_WIRE_TAG(F_LIST, FS_WIRE_BYTES) ||
                       *tag == FS_WIRE_TAG(F_LIST_WITH_CONTEXT, FS_WIRE_BYTES);
        if (is_list ? !fs_wire_read_bytes(&ahead, bytes) : !fs_wire_skip(&ahead, *tag, FS_WIRE_MAX_DEPTH - 1))
            return false;
        *w = ahead;
        if (is_list)
            return true;
    }
    return false;
}

bool fs_input_add(fs_input *input, fs_slice bytes)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    uint32_t tag;
    fs_slice list;
    while (next_list(&w, &tag, &list)) {
        if (input->kind != tag >> 3) {
            input->kind = tag >> 3;
            input->first = input->lists;
            input->bytes = 0;
        }
        input->lists++;
        input->bytes += list.len;
        input->last = list;
    }
    return w.at == w.end;
}

/* Lists in several pieces: those that count merge, and none may be malformed. */
static int join_lists(const fs_input *input, fs_arena *arena, fs_slice request, fs_slice *joined)
{
    uint8_t *to = fs_arena_alloc(arena, input->bytes);
    if (to == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    *joined = (fs_slice){to, input->bytes};
    uint32_t seen = 0;
    fs_wire w = fs_wire_over(request.data, request.len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes, list;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        if (tag != FS_WIRE_TAG(FS_INPUT_FIELD, FS_WIRE_BYTES)) {
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return -FS_INTERNAL;
            continue;
        }
        if (!fs_wire_read_bytes(&w, &bytes))
            return -FS_INTERNAL;
        fs_wire inner = fs_wire_over(bytes.data, bytes.len);
        while (next_list(&inner, &tag, &list)) {
            if (!list_valid(list, tag >> 3 == F_LIST_WITH_CONTEXT))
                return -FS_INTERNAL;
            if (seen++ < input->first)
                continue;
            memcpy(to, list.data, list.len);
            to += list.len;
        }
    }
    return 0;
}

int fs_input_end(const fs_input *input, fs_arena *arena, fs_slice request, fs_examples *out)
{
    *out = (fs_examples){.list = {request.data, 0}, .context = {request.data, 0}};
    fs_slice list = input->last;
    if (input->lists == 0)
        return 0;
    if (input->lists > 1) {
        int rc = join_lists(input, arena, request, &list);
        if (rc != 0)
            return rc;
    }
    return look_at_list(arena, list, input->kind == F_LIST_WITH_CONTEXT, out);
}

/* ---- the examples -------------------------------------------------------------------------------- */

bool fs_examples_valid(const fs_examples *examples)
{
    return example_valid(examples->context) && list_valid(examples->list, false);
}

int fs_examples_decode(const fs_examples *examples, int64_t first, int64_t count, fs_slice *dst)
{
    fs_slice context = examples->context;
    if (!example_valid(context))
        return -FS_INTERNAL;
    uint8_t *room = examples->room;
    fs_wire w = fs_wire_over(examples->list.data, examples->list.len);
    uint32_t tag;
    fs_slice bytes;
    for (int64_t i = 0; i < first + count; i++) {
        if (!next_item(&w, false, &tag, &bytes))
            return -FS_INTERNAL;
        if (i >= first && !example_valid(bytes))
            return -FS_INTERNAL;
        if (context.len == 0) {
            if (i >= first)
                dst[i - first] = bytes;
            continue;
        }
        size_t whole = context.len + bytes.len;
        if (i >= first) {
            memcpy(room, context.data, context.len);
            if (bytes.len > 0)
                memcpy(room + context.len, bytes.data, bytes.len);
            dst[i - first] = (fs_slice){room, whole};
        }
        room += whole;
    }
    return 0;
}
