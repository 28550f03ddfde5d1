/* predict: see predict.h.
 *
 * A map is, on the wire, a list of entries in any order, in which a key may come again and then rules. A
 * small request (every one in practice) is kept in wire order on the stack, its keys found again by a hash
 * table that no choice of keys can make slow, as it is small. A large one is sorted now and then, which
 * nobody can make slow either, and which keeps repeated keys from taking memory. */
#include "predict.h"

#include <string.h>

#include "predict_proto.h"
#include "wire.h"

/* ---- what TF Serving parses and an open-source server does not use ---------------------------- */

static const fs_wire_message plain_message = {NULL, 0};

static const fs_wire_field split_fields[] = {{F_KEY, FS_WIRE_CHECK_UTF8, NULL}};
static const fs_wire_message split_message = {split_fields, 1};

static const fs_wire_field streamed_fields[] = {{2, FS_WIRE_CHECK_MESSAGE, &split_message}};
static const fs_wire_message streamed_message = {streamed_fields, 1};

static const fs_wire_field options_fields[] = {
    {4, FS_WIRE_CHECK_VARINTS, NULL},            /* return_stoptokens */
    {13, FS_WIRE_CHECK_MESSAGE, &plain_message}, /* handshake */
};
static const fs_wire_message options_message = {options_fields, 2};

/* ---- a map from names to tensors ------------------------------------------------------------------ */

enum { SMALL = FS_SORTED_ABOVE, SLOTS = FS_TENSOR_MAP_SLOTS };

static bool same_alias(const fs_named_view *a, const fs_named_view *b)
{
    return a->alias.len == b->alias.len && memcmp(a->alias.data, b->alias.data, a->alias.len) == 0;
}

static int compare_aliases(const fs_named_view *a, const fs_named_view *b)
{
    size_t shorter = a->alias.len < b->alias.len ? a->alias.len : b->alias.len;
    int order = memcmp(a->alias.data, b->alias.data, shorter);
    if (order != 0)
        return order;
    return a->alias.len < b->alias.len ? -1 : a->alias.len > b->alias.len;
}

/* Names often differ at their ends alone, hence the last eight bytes. */
static unsigned hash_alias(fs_slice alias)
{
    uint64_t word = 0;
    if (alias.len >= 8)
        memcpy(&word, alias.data + alias.len - 8, 8);
    else
        for (size_t i = 0; i < alias.len; i++)
            word = word << 8 | alias.data[i];
    return (unsigned)(((word ^ alias.len << 56) * UINT64_C(0x9e3779b97f4a7c15)) >> 56);
}

/* Sorts by alias, those with equal aliases staying in their order: a merge sort from the bottom up. */
static void sort_entries(fs_tensor_map *in)
{
    fs_named_view *from = in->large, *to = in->scratch;
    for (uint32_t width = 1; width < in->n; width *= 2) {
        for (uint32_t start = 0; start < in->n; start += 2 * width) {
            uint32_t a = start, a_end = start + width < in->n ? start + width : in->n;
            uint32_t b = a_end, b_end = a_end + width < in->n ? a_end + width : in->n;
            for (uint32_t i = start; i < b_end; i++) {
                if (b == b_end || (a < a_end && compare_aliases(&from[a], &from[b]) <= 0))
                    to[i] = from[a++];
                else
                    to[i] = from[b++];
            }
        }
        fs_named_view *swap = from;
        from = to;
        to = swap;
    }
    in->large = from;
    in->scratch = to;
}

/* Sorts what is in `large` and keeps the last of equal aliases. The tensors that are dropped must be valid,
 * as those that stay will have to be. 0 or -FS_INTERNAL. */
static int settle_entries(fs_tensor_map *in)
{
    sort_entries(in);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < in->n; i++) {
        if (i + 1 < in->n && same_alias(&in->large[i], &in->large[i + 1])) {
            if (!fs_tensor_proto_valid(in->large[i].proto, FS_TENSOR_DEPTH))
                return -FS_INTERNAL;
        } else {
            in->large[kept++] = in->large[i];
        }
    }
    in->n = in->sorted = kept;
    return 0;
}

static int grow_entries(fs_tensor_map *in, uint32_t room)
{
    fs_named_view *large = fs_arena_alloc(in->arena, room * sizeof *large);
    fs_named_view *scratch = fs_arena_alloc(in->arena, room * sizeof *scratch);
    if (large == NULL || scratch == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    memcpy(large, in->large == NULL ? in->small : in->large, in->n * sizeof *large);
    in->large = large;
    in->scratch = scratch;
    in->room = room;
    return 0;
}

static int add_entry(fs_tensor_map *in, const fs_named_view *input)
{
    int rc;
    if (in->large == NULL) {
        unsigned slot = hash_alias(input->alias);
        for (; in->slots[slot] != 0; slot = (slot + 1) % SLOTS) {
            fs_named_view *other = &in->small[in->slots[slot] - 1];
            if (same_alias(other, input)) {
                if (!fs_tensor_proto_valid(other->proto, FS_TENSOR_DEPTH))
                    return -FS_INTERNAL;
                *other = *input;
                return 0;
            }
        }
        if (in->n < SMALL) {
            in->small[in->n++] = *input;
            in->slots[slot] = (uint8_t)in->n;
            return 0;
        }
        if ((rc = grow_entries(in, 4 * SMALL)) != 0)
            return rc;
    }
    if (in->n == in->room) {
        if ((rc = settle_entries(in)) != 0)
            return rc;
        if (in->n > FS_MAX_INPUTS)
            return -FS_RESOURCE_EXHAUSTED;
        if (in->n > in->room / 2 && (rc = grow_entries(in, 2 * in->room)) != 0)
            return rc;
    }
    in->large[in->n++] = *input;
    return 0;
}

int fs_tensor_map_end(fs_tensor_map *in, fs_named_view **entries, uint32_t *n)
{
    *entries = NULL;
    if (in->large != NULL) {
        int rc = settle_entries(in);
        if (rc != 0)
            return rc;
        if (in->n > FS_MAX_INPUTS)
            return -FS_RESOURCE_EXHAUSTED;
        *entries = in->large;
    } else if (in->n > 0) {
        *entries = fs_arena_alloc(in->arena, in->n * sizeof **entries);
        if (*entries == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        memcpy(*entries, in->small, in->n * sizeof **entries);
    }
    *n = in->n;
    return 0;
}

/* An entry with its value in several pieces: they merge, which their bytes one after the other do as well,
 * once each is known to be whole. */
static int join_values(fs_arena *arena, fs_slice entry, fs_slice *value)
{
    uint8_t *joined = NULL;
    for (int pass = 0; pass < 2; pass++) { /* measure, then copy */
        fs_wire w = fs_wire_over(entry.data, entry.len);
        size_t total = 0;
        while (w.at < w.end) {
            uint32_t tag;
            fs_slice piece;
            if (!fs_wire_read_tag(&w, &tag))
                return -FS_INTERNAL;
            if (tag != FS_WIRE_TAG(F_VALUE, FS_WIRE_BYTES)) {
                if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 1))
                    return -FS_INTERNAL;
                continue;
            }
            if (!fs_wire_read_bytes(&w, &piece) || !fs_tensor_proto_valid(piece, FS_TENSOR_DEPTH))
                return -FS_INTERNAL;
            if (joined != NULL)
                memcpy(joined + total, piece.data, piece.len);
            total += piece.len;
        }
        if (joined == NULL && (joined = fs_arena_alloc(arena, total)) == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        *value = (fs_slice){joined, total};
    }
    return 0;
}

void fs_tensor_map_begin(fs_tensor_map *in, fs_arena *arena)
{
    in->arena = arena;
    in->n = in->sorted = in->room = 0;
    in->large = in->scratch = NULL;
    memset(in->slots, 0, sizeof in->slots); /* `small` is left as it is: 2 KiB that need not be touched */
}

int fs_named_view_parse(fs_arena *arena, fs_slice entry, fs_named_view *out)
{
    uint32_t values = 0;
    *out = (fs_named_view){.alias = {entry.data, 0}, .proto = {entry.data, 0}};
    fs_wire w = fs_wire_over(entry.data, entry.len);
    while (w.at < w.end) {
        uint32_t tag;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        switch (tag) {
        case FS_WIRE_TAG(F_KEY, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &out->alias) || !fs_wire_utf8_valid(out->alias))
                return -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_VALUE, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &out->proto))
                return -FS_INTERNAL;
            values++;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 1))
                return -FS_INTERNAL;
        }
    }
    return values > 1 ? join_values(arena, entry, &out->proto) : 0;
}

int fs_tensor_map_add(fs_tensor_map *in, fs_slice entry)
{
    fs_named_view input;
    int rc = fs_named_view_parse(in->arena, entry, &input);
    return rc == 0 ? add_entry(in, &input) : rc;
}

/* ---- model spec and filter ---------------------------------------------------------------------- */

static bool parse_int64_value(fs_slice bytes, int64_t *value)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    while (w.at < w.end) {
        uint32_t tag;
        uint64_t number;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(F_INT64_VALUE, FS_WIRE_VARINT)) {
            if (!fs_wire_read_varint(&w, &number))
                return false;
            *value = (int64_t)number;
        } else if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 2)) {
            return false;
        }
    }
    return true;
}

static bool read_text(fs_wire *w, fs_slice *text)
{
    return fs_wire_read_bytes(w, text) && fs_wire_utf8_valid(*text);
}

bool fs_model_ref_parse(fs_slice bytes, fs_model_ref *model)
{
    fs_wire w = fs_wire_over(bytes.data, bytes.len);
    fs_slice version;
    model->present = true;
    while (w.at < w.end) {
        uint32_t tag;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        switch (tag) {
        case FS_WIRE_TAG(F_NAME, FS_WIRE_BYTES):
            if (!read_text(&w, &model->name))
                return false;
            break;
        case FS_WIRE_TAG(F_VERSION, FS_WIRE_BYTES):
            if (model->choice != FS_VERSION_NUMBER)
                model->version = 0;
            model->choice = FS_VERSION_NUMBER;
            model->label.len = 0;
            if (!fs_wire_read_bytes(&w, &version) || !parse_int64_value(version, &model->version))
                return false;
            break;
        case FS_WIRE_TAG(F_SIGNATURE, FS_WIRE_BYTES):
            if (!read_text(&w, &model->signature))
                return false;
            break;
        case FS_WIRE_TAG(F_LABEL, FS_WIRE_BYTES):
            model->choice = FS_VERSION_LABEL;
            model->version = 0;
            if (!read_text(&w, &model->label))
                return false;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 1))
                return false;
        }
    }
    return true;
}

/* The filter grows by doubling; `room` is what it has. */
static int add_filter(fs_arena *arena, fs_predict_request *out, uint32_t *room, fs_slice name)
{
    if (out->n_filter == FS_MAX_FILTER)
        return 0;
    if (out->n_filter == *room) {
        uint32_t more = *room == 0 ? 8 : 2 * *room;
        fs_slice *grown = fs_arena_alloc(arena, more * sizeof *grown);
        if (grown == NULL)
            return -FS_RESOURCE_EXHAUSTED;
        if (*room > 0)
            memcpy(grown, out->output_filter, *room * sizeof *grown);
        out->output_filter = grown;
        *room = more;
    }
    out->output_filter[out->n_filter++] = name;
    return 0;
}

/* ---- the request ---------------------------------------------------------------------------------- */

int fs_predict_parse(fs_arena *arena, const uint8_t *msg, size_t len, fs_predict_request *out)
{
    fs_tensor_map in;
    fs_tensor_map_begin(&in, arena);
    uint32_t filter_room = 0;
    const fs_slice empty = {msg, 0};
    *out = (fs_predict_request){.model = {.name = empty, .label = empty, .signature = empty}};

    fs_wire w = fs_wire_over(msg, len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        int rc = 0;
        if (!fs_wire_read_tag(&w, &tag))
            return -FS_INTERNAL;
        switch (tag) {
        case FS_WIRE_TAG(F_MODEL_SPEC, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes) || !fs_model_ref_parse(bytes, &out->model))
                return -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_INPUTS, FS_WIRE_BYTES):
            rc = fs_wire_read_bytes(&w, &bytes) ? fs_tensor_map_add(&in, bytes) : -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_OUTPUT_FILTER, FS_WIRE_BYTES):
            rc = read_text(&w, &bytes) ? add_filter(arena, out, &filter_room, bytes) : -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_STREAMED_OPTIONS, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes)
                || !fs_wire_message_valid(&streamed_message, bytes, FS_WIRE_MAX_DEPTH - 1))
                return -FS_INTERNAL;
            break;
        case FS_WIRE_TAG(F_REQUEST_OPTIONS, FS_WIRE_BYTES):
            if (!fs_wire_read_bytes(&w, &bytes)
                || !fs_wire_message_valid(&options_message, bytes, FS_WIRE_MAX_DEPTH - 1))
                return -FS_INTERNAL;
            break;
        default:
            if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
                return -FS_INTERNAL;
        }
        if (rc != 0)
            return rc;
    }
    return fs_tensor_map_end(&in, &out->inputs, &out->n_inputs);
}

/* ---- the reply ------------------------------------------------------------------------------------ */

static size_t version_size(int64_t version)
{
    return version == 0 ? 0 : fs_wire_tag_size(F_INT64_VALUE) + fs_wire_varint_size((uint64_t)version);
}

size_t fs_reply_model_size(const fs_reply_model *model)
{
    size_t size = fs_wire_bytes_size(F_VERSION, version_size(model->version));
    if (model->name.len > 0)
        size += fs_wire_bytes_size(F_NAME, model->name.len);
    if (model->signature.len > 0)
        size += fs_wire_bytes_size(F_SIGNATURE, model->signature.len);
    return size;
}

uint8_t *fs_reply_model_write(const fs_reply_model *model, uint8_t *dst)
{
    if (model->name.len > 0)
        dst = fs_wire_put_bytes(dst, F_NAME, model->name);
    dst = fs_wire_put_head(dst, F_VERSION, version_size(model->version));
    if (model->version != 0) {
        dst = fs_wire_put_tag(dst, F_INT64_VALUE, FS_WIRE_VARINT);
        dst = fs_wire_put_varint(dst, (uint64_t)model->version);
    }
    if (model->signature.len > 0)
        dst = fs_wire_put_bytes(dst, F_SIGNATURE, model->signature);
    return dst;
}

/* A map's entry has both its fields, empty or not. */
static size_t entry_size(const fs_reply_output *out, size_t tensor_size)
{
    return fs_wire_bytes_size(F_KEY, out->alias.len) + fs_wire_bytes_size(F_VALUE, tensor_size);
}

size_t fs_predict_reply_size(const fs_reply_model *model, const fs_reply_output *outs, uint32_t n,
                             bool as_content)
{
    size_t size = fs_wire_bytes_size(F_REPLY_MODEL, fs_reply_model_size(model));
    for (uint32_t i = 0; i < n; i++) {
        size_t tensor = fs_tensor_proto_size(outs[i].tensor, outs[i].first_row, outs[i].rows, as_content);
        size += fs_wire_bytes_size(F_OUTPUTS, entry_size(&outs[i], tensor));
    }
    return size > FS_WIRE_MAX_BYTES ? 0 : size;
}

void fs_predict_reply_write(const fs_reply_model *model, const fs_reply_output *outs, uint32_t n,
                            bool as_content, uint8_t *dst)
{
    for (uint32_t i = 0; i < n; i++) {
        const fs_reply_output *out = &outs[i];
        size_t tensor = fs_tensor_proto_size(out->tensor, out->first_row, out->rows, as_content);
        dst = fs_wire_put_head(dst, F_OUTPUTS, entry_size(out, tensor));
        dst = fs_wire_put_bytes(dst, F_KEY, out->alias);
        dst = fs_wire_put_head(dst, F_VALUE, tensor);
        dst = fs_tensor_proto_write(out->tensor, out->first_row, out->rows, as_content, dst);
    }
    dst = fs_wire_put_head(dst, F_REPLY_MODEL, fs_reply_model_size(model));
    fs_reply_model_write(model, dst);
}
