/* prediction_log: see prediction_log.h. */
#include "prediction_log.h"

enum {
    F_LOG_METADATA = 1,                                    /* PredictionLog */
    F_LOG_MODEL_SPEC = 1, F_TIMESTAMP = 4,                 /* LogMetadata */
    F_LOG_REQUEST = 1, F_LOG_RESPONSE = 2,                 /* PredictLog and its like */
    F_REQUEST_SPEC = 1, F_RESPONSE_SPEC = 2, F_TASKS = 1,  /* where they have a ModelSpec; MultiInference's tasks */
};

/* PredictionLog's field for each kind. */
static const uint32_t KIND_FIELD[] = {
    [FS_LOG_PREDICT] = 6,
    [FS_LOG_CLASSIFY] = 2,
    [FS_LOG_REGRESS] = 3,
    [FS_LOG_MULTI_INFERENCE] = 4,
};

/* The first field of that number, which holds a message; an empty slice when there is none. */
static fs_slice find(fs_slice message, uint32_t number)
{
    fs_wire w = fs_wire_over(message.data, message.len);
    uint32_t tag;
    fs_slice found;
    while (w.at < w.end && fs_wire_read_tag(&w, &tag)) {
        if (tag == FS_WIRE_TAG(number, FS_WIRE_BYTES))
            return fs_wire_read_bytes(&w, &found) ? found : (fs_slice){0};
        if (!fs_wire_skip(&w, tag, FS_WIRE_MAX_DEPTH))
            break;
    }
    return (fs_slice){0};
}

/* The model spec in effect. */
static fs_slice spec_of(enum fs_log_kind kind, fs_slice request, const fs_slice *response)
{
    fs_slice spec = {0};
    if (kind == FS_LOG_MULTI_INFERENCE) /* a task has its spec where a request has it */
        return find(find(request, F_TASKS), F_REQUEST_SPEC);
    if (response != NULL)
        spec = find(*response, F_RESPONSE_SPEC);
    return spec.len > 0 ? spec : find(request, F_REQUEST_SPEC);
}

static void put(fs_prediction_log *out, fs_slice piece)
{
    out->pieces[out->n_pieces++] = piece;
    out->bytes += piece.len;
}

static void put_head(fs_prediction_log *out, const uint8_t *from, const uint8_t *to)
{
    put(out, (fs_slice){from, (size_t)(to - from)});
}

int fs_prediction_log_wrap(enum fs_log_kind kind, fs_slice sampling, int64_t seconds, fs_slice request,
                           const fs_slice *response, fs_prediction_log *out)
{
    fs_slice spec = spec_of(kind, request, response);
    size_t metadata = fs_wire_bytes_size(F_LOG_MODEL_SPEC, spec.len) + sampling.len +
                      fs_wire_tag_size(F_TIMESTAMP) + fs_wire_varint_size((uint64_t)seconds);
    uint64_t log = fs_wire_bytes_size(F_LOG_REQUEST, request.len) +
                   (response == NULL ? 0 : fs_wire_bytes_size(F_LOG_RESPONSE, response->len));
    uint64_t whole = fs_wire_bytes_size(F_LOG_METADATA, metadata) + fs_wire_bytes_size(KIND_FIELD[kind], log);
    out->n_pieces = 0;
    out->bytes = 0;
    if (whole > FS_WIRE_MAX_BYTES)
        return -FS_OUT_OF_RANGE;

    uint8_t *at = out->room, *from = at;
    at = fs_wire_put_head(at, F_LOG_METADATA, metadata);
    at = fs_wire_put_head(at, F_LOG_MODEL_SPEC, spec.len);
    put_head(out, from, at);
    put(out, spec);
    put(out, sampling);
    from = at;
    at = fs_wire_put_varint(fs_wire_put_tag(at, F_TIMESTAMP, FS_WIRE_VARINT), (uint64_t)seconds);
    at = fs_wire_put_head(at, KIND_FIELD[kind], (size_t)log);
    at = fs_wire_put_head(at, F_LOG_REQUEST, request.len);
    put_head(out, from, at);
    put(out, request);
    if (response != NULL) {
        from = at;
        at = fs_wire_put_head(at, F_LOG_RESPONSE, response->len);
        put_head(out, from, at);
        put(out, *response);
    }
    return 0;
}
