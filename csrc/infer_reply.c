/* infer_reply: see infer_reply.h. One walk serves both passes: where there is no room yet, it only counts. */
#include "infer_reply.h"

#include "wire.h"

/* Both replies hold { Result result = 1; ModelSpec model_spec = 2 }, and a result one repeated field, 1. */
typedef bool item_fn(void *walk, fs_slice item);

static const fs_wire_message version_message = {NULL, 0}; /* Int64Value: a varint */
static const fs_wire_field spec_fields[] = {
    {1, FS_WIRE_CHECK_UTF8, NULL},
    {2, FS_WIRE_CHECK_MESSAGE, &version_message},
    {3, FS_WIRE_CHECK_UTF8, NULL},
    {4, FS_WIRE_CHECK_UTF8, NULL},
};
static const fs_wire_message spec_message = {spec_fields, 4};

static bool each_item(fs_slice message, int depth, item_fn *item, void *walk)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(1, FS_WIRE_BYTES)) {
            if (!fs_wire_read_bytes(&w, &bytes) || !item(walk, bytes))
                return false;
        } else if (!fs_wire_skip(&w, tag, depth)) {
            return false;
        }
    }
    return true;
}

static bool each_result(fs_slice reply, item_fn *item, void *walk)
{
    fs_wire w = fs_wire_over(reply.data, reply.len);
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice bytes;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(1, FS_WIRE_BYTES)) {
            if (!fs_wire_read_bytes(&w, &bytes) || !each_item(bytes, FS_WIRE_MAX_DEPTH - 1, item, walk))
                return false;
        } else if (tag == FS_WIRE_TAG(2, FS_WIRE_BYTES)) {
            if (!fs_wire_read_bytes(&w, &bytes) ||
                !fs_wire_message_valid(&spec_message, bytes, FS_WIRE_MAX_DEPTH - 1))
                return false;
        } else if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH)) {
            return false;
        }
    }
    return true;
}

static bool read_float(fs_wire *w, float *value)
{
    if (w->end - w->at < 4)
        return false;
    memcpy(value, w->at, 4);
    w->at += 4;
    return true;
}

typedef struct regression_walk {
    float *values; /* NULL: only count */
    int64_t n;
} regression_walk;

static bool on_regression(void *user, fs_slice item)
{
    regression_walk *walk = user;
    fs_wire w = fs_wire_over(item.data, item.len);
    float value = 0;
    while (w.at < w.end) {
        uint32_t tag;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(1, FS_WIRE_FIXED32) ? !read_float(&w, &value)
                                                   : !fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 2))
            return false;
    }
    if (walk->values != NULL)
        walk->values[walk->n] = value;
    walk->n++;
    return true;
}

int64_t fs_regressions_count(fs_slice reply)
{
    regression_walk walk = {NULL, 0};
    return each_result(reply, on_regression, &walk) ? walk.n : -1;
}

void fs_regressions_read(fs_slice reply, float *values)
{
    regression_walk walk = {values, 0};
    each_result(reply, on_regression, &walk);
}

typedef struct class_walk {
    int64_t *counts; /* NULL: only count */
    fs_class *classes;
    int64_t n_examples;
    int64_t n_classes;
} class_walk;

static bool on_class(void *user, fs_slice item)
{
    class_walk *walk = user;
    fs_wire w = fs_wire_over(item.data, item.len);
    fs_class class = {{NULL, 0}, 0};
    while (w.at < w.end) {
        uint32_t tag;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(1, FS_WIRE_BYTES)) {
            if (!fs_wire_read_bytes(&w, &class.label) || !fs_wire_utf8_valid(class.label))
                return false;
        } else if (tag == FS_WIRE_TAG(2, FS_WIRE_FIXED32)) {
            if (!read_float(&w, &class.score))
                return false;
        } else if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH - 3)) {
            return false;
        }
    }
    if (walk->classes != NULL)
        walk->classes[walk->n_classes] = class;
    walk->n_classes++;
    return true;
}

static bool on_classifications(void *user, fs_slice item)
{
    class_walk *walk = user;
    int64_t before = walk->n_classes;
    if (!each_item(item, FS_WIRE_MAX_DEPTH - 2, on_class, walk))
        return false;
    if (walk->counts != NULL)
        walk->counts[walk->n_examples] = walk->n_classes - before;
    walk->n_examples++;
    return true;
}

bool fs_classes_count(fs_slice reply, int64_t *examples, int64_t *classes)
{
    class_walk walk = {NULL, NULL, 0, 0};
    bool good = each_result(reply, on_classifications, &walk);
    *examples = walk.n_examples;
    *classes = walk.n_classes;
    return good;
}

void fs_classes_read(fs_slice reply, int64_t *counts, fs_class *classes)
{
    class_walk walk = {counts, classes, 0, 0};
    each_result(reply, on_classifications, &walk);
}
