/* load_check: see load_check.h. One walk over the reply finds the version and the output's TensorProto; a
 * second, over the TensorProto, compares its values where they lie. */
#include "load_check.h"

#include <math.h>

#include "tensor_proto.h"
#include "wire.h"

/* PredictResponse { map<string, TensorProto> outputs = 1; ModelSpec model_spec = 2 }, ModelSpec { Int64Value
 * version = 2 }, Int64Value { int64 value = 1 }. */
enum { OUTPUTS = 1, MODEL_SPEC = 2, KEY = 1, VALUE = 2, VERSION = 2, NUMBER = 1 };

/* The next field of a message. *bytes is empty but for length-delimited ones. */
static bool next_field(fs_wire *w, uint32_t *tag, fs_slice *bytes)
{
    *bytes = (fs_slice){NULL, 0};
    if (!fs_wire_read_tag(w, tag))
        return false;
    return (*tag & 7) == FS_WIRE_BYTES ? fs_wire_read_bytes(w, bytes)
                                       : fs_wire_skip(w, *tag, FS_WIRE_MAX_DEPTH);
}

static bool read_number(fs_slice message, int64_t *number)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    *number = 0;
    while (w.at < w.end) {
        uint32_t tag;
        uint64_t value;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(NUMBER, FS_WIRE_VARINT)) {
            if (!fs_wire_read_varint(&w, &value))
                return false;
            *number = (int64_t)value;
        } else if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH)) {
            return false;
        }
    }
    return true;
}

static bool read_spec(fs_slice spec, int64_t *version)
{
    fs_wire w = fs_wire_over(spec.data, spec.len);
    uint32_t tag;
    fs_slice bytes;
    while (w.at < w.end) {
        if (!next_field(&w, &tag, &bytes))
            return false;
        if (tag == FS_WIRE_TAG(VERSION, FS_WIRE_BYTES) && !read_number(bytes, version))
            return false;
    }
    return true;
}

/* *proto is set when the entry is the output's. */
static bool read_output(fs_slice entry, fs_slice name, fs_slice *proto)
{
    fs_wire w = fs_wire_over(entry.data, entry.len);
    fs_slice key = {NULL, 0}, value = {NULL, 0};
    uint32_t tag;
    fs_slice bytes;
    while (w.at < w.end) {
        if (!next_field(&w, &tag, &bytes))
            return false;
        if (tag == FS_WIRE_TAG(KEY, FS_WIRE_BYTES))
            key = bytes;
        else if (tag == FS_WIRE_TAG(VALUE, FS_WIRE_BYTES))
            value = bytes;
    }
    if (key.len == name.len && memcmp(key.data, name.data, name.len) == 0)
        *proto = value;
    return true;
}

static bool read_reply(fs_slice reply, fs_slice name, int64_t *version, fs_slice *proto)
{
    fs_wire w = fs_wire_over(reply.data, reply.len);
    uint32_t tag;
    fs_slice bytes;
    while (w.at < w.end) {
        if (!next_field(&w, &tag, &bytes))
            return false;
        if (tag == FS_WIRE_TAG(MODEL_SPEC, FS_WIRE_BYTES) && !read_spec(bytes, version))
            return false;
        if (tag == FS_WIRE_TAG(OUTPUTS, FS_WIRE_BYTES) && !read_output(bytes, name, proto))
            return false;
    }
    return true;
}

/* Values that have been compared so far. */
typedef struct comparison {
    const float *expected;
    uint64_t n_expected, n;
    float atol, rtol;
    bool equal;
} comparison;

static void compare(comparison *c, fs_slice run)
{
    for (size_t at = 0; at + 4 <= run.len; at += 4, c->n++) {
        if (c->n >= c->n_expected)
            continue;
        float value, expected = c->expected[c->n];
        memcpy(&value, run.data + at, 4);
        /* Not so for NaN either, which is never what was expected. */
        c->equal = c->equal && fabsf(value - expected) <= c->atol + c->rtol * fabsf(expected);
    }
}

/* False where the bytes are no TensorProto of floats. */
static bool compare_tensor(comparison *c, fs_slice proto)
{
    fs_wire w = fs_wire_over(proto.data, proto.len);
    uint64_t dtype = FS_DT_INVALID;
    while (w.at < w.end) {
        uint32_t tag, number;
        fs_slice run;
        if (!fs_wire_read_tag(&w, &tag))
            return false;
        if (tag == FS_WIRE_TAG(F_DTYPE, FS_WIRE_VARINT)) {
            if (!fs_wire_read_varint(&w, &dtype))
                return false;
        } else if (tag == FS_WIRE_TAG(F_CONTENT, FS_WIRE_BYTES)) {
            if (!fs_wire_read_bytes(&w, &run) || run.len % 4 != 0)
                return false;
            compare(c, run);
        } else {
            if (!fs_read_values(&w, tag, &number, &run))
                return false;
            if (number == F_FLOAT)
                compare(c, run);
        }
    }
    return dtype == FS_DT_FLOAT;
}

fs_load_answer fs_load_check_reply(const fs_load_check *check, fs_slice reply, uint32_t body)
{
    fs_load_answer answer = {.failure = FS_LOAD_BAD_REPLY, .version = -1};
    fs_slice proto = {NULL, 0};
    if (!read_reply(reply, check->output, &answer.version, &proto)) {
        answer.why = "the answer is not a PredictResponse";
        return answer;
    }
    if (answer.version <= 0) {
        answer.version = -1;
        answer.failure = FS_LOAD_MISVERSIONED;
        answer.why = "the answer names no version";
        return answer;
    }
    uint64_t first = check->first[body], each = check->first[check->n_bodies];
    uint64_t content = (uint64_t)answer.version % check->n_contents;
    comparison c = {.expected = check->expected + content * each + first,
                    .n_expected = check->first[body + 1] - first,
                    .atol = check->atol,
                    .rtol = check->rtol,
                    .equal = true};
    if (!compare_tensor(&c, proto) || c.n != c.n_expected) {
        answer.why = "the answer has not the output, or not so many floats in it";
        return answer;
    }
    answer.failure = c.equal ? 0 : FS_LOAD_MISVERSIONED;
    answer.why = "the values are not those of the version that the answer names";
    return answer;
}
