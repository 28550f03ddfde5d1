/* fuzz_predict_call: any bytes as a PredictResponse, as a client takes it.
 *
 * What parses is used where it lies where it can be, which must be what decoding gives, and decoded
 * otherwise, up to a bound on what it claims. What was decoded is then sent: written as a request, whole and
 * by rows, whose pieces must be a request with the same elements. */
#include <stdlib.h>
#include <string.h>

#include "predict_call.h"

enum { MOST_BYTES = 16384 };

static void require(bool cond)
{
    if (!cond)
        abort();
}

static uint8_t *join(const fs_slice *pieces, uint32_t n, size_t bytes)
{
    uint8_t *whole = malloc(bytes > 0 ? bytes : 1);
    size_t at = 0;
    for (uint32_t i = 0; whole != NULL && i < n; i++) {
        require(at + pieces[i].len <= bytes);
        memcpy(whole + at, pieces[i].data, pieces[i].len);
        at += pieces[i].len;
    }
    require(whole == NULL || at == bytes);
    return whole;
}

static bool same_elements(int dtype, const void *a, const void *b, int64_t count)
{
    if (dtype != FS_DT_STRING)
        return memcmp(a, b, (size_t)count * fs_dtype_size(dtype)) == 0;
    const fs_slice *x = a, *y = b;
    for (int64_t i = 0; i < count; i++)
        if (x[i].len != y[i].len || memcmp(x[i].data, y[i].data, x[i].len) != 0)
            return false;
    return true;
}

/* Sends rows [first, first + rows) of `t`, which must arrive as they are. */
static void send(fs_slab *slab, const fs_model_ref *model, fs_slice alias, const fs_tensor *t, int64_t first,
                 int64_t rows)
{
    fs_arena arena;
    fs_arena_init(&arena, slab);
    fs_call_input input = {alias, t, first, rows};
    fs_slice *pieces;
    uint32_t n;
    size_t bytes;
    int rc = fs_predict_call_write(&arena, model, &input, 1, &alias, 1, &pieces, &n, &bytes);
    require(rc == 0 || rc == -FS_RESOURCE_EXHAUSTED);
    uint8_t *whole = rc == 0 ? join(pieces, n, bytes) : NULL;
    uint8_t *back = malloc(MOST_BYTES);
    if (whole != NULL && back != NULL) {
        fs_predict_request request;
        fs_tensor_view view;
        require(fs_predict_parse(&arena, whole, bytes, &request) == 0 && request.n_inputs == 1);
        require(request.model.choice == model->choice && request.model.version == model->version);
        require(request.n_filter == 1);
        fs_slice proto = request.inputs[0].proto;
        require(fs_tensor_view_parse(&arena, proto.data, proto.len, &view) == 0);
        require(view.dtype == t->dtype && view.ndim == t->ndim);
        int64_t per_row = t->ndim > 0 && t->dims[0] > 0 ? t->elements / t->dims[0] : 0;
        bool cut = rows >= 0 && t->ndim > 0;
        require(view.elements == (cut ? rows * per_row : t->elements));
        require(fs_tensor_view_decode(&view, 0, view.elements, back) == 0);
        const uint8_t *want = t->data;
        if (cut)
            want += (size_t)(first * per_row) * fs_dtype_size(t->dtype);
        require(same_elements(t->dtype, back, want, view.elements));
    }
    free(back);
    free(whole);
    fs_arena_clear(&arena);
}

static void use_view(fs_slab *slab, const fs_model_ref *model, fs_slice alias, const fs_tensor_view *view)
{
    size_t element = fs_dtype_size(view->dtype);
    const uint8_t *lies = fs_tensor_view_in_place(view);
    uint64_t bytes = (uint64_t)view->elements * element; /* parse has seen to it that this is no overflow */
    if (lies != NULL)
        require(view->proto.data <= lies && lies + bytes <= view->proto.data + view->proto.len);
    if (element == 0 || bytes > MOST_BYTES
        || (view->dtype == FS_DT_STRING && fs_tensor_view_string_bytes(view) > MOST_BYTES))
        return; /* a client refuses it, with its own limit */
    uint8_t *data = malloc(bytes > 0 ? bytes : 1);
    if (data == NULL)
        return;
    require(fs_tensor_view_decode(view, 0, view->elements, data) == 0);
    require(lies == NULL || memcmp(lies, data, bytes) == 0);
    fs_tensor t = {.dtype = view->dtype, .ndim = view->ndim, .dims = view->dims, .elements = view->elements,
                   .data = data, .bytes = bytes};
    send(slab, model, alias, &t, 0, -1);
    int64_t rows = view->ndim > 0 ? view->dims[0] : 0;
    send(slab, model, alias, &t, rows / 3, rows - rows / 3);
    free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fs_slab *slab = fs_slab_new((size_t)1 << 20);
    if (slab == NULL)
        return 0;
    fs_arena arena;
    fs_arena_init(&arena, slab);
    fs_predict_reply reply;
    int rc = fs_predict_reply_parse(&arena, data, size, &reply);
    require(rc == 0 || rc == -FS_INTERNAL || rc == -FS_RESOURCE_EXHAUSTED);
    if (rc == 0) {
        for (uint32_t i = 0; i < reply.n_outputs; i++) {
            fs_slice proto = reply.outputs[i].proto;
            fs_tensor_view view;
            rc = fs_tensor_view_parse(&arena, proto.data, proto.len, &view);
            require((rc != -FS_INTERNAL) == fs_tensor_proto_valid(proto, FS_TENSOR_DEPTH));
            if (rc == 0)
                use_view(slab, &reply.model, reply.outputs[i].alias, &view);
        }
    }
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return 0;
}
