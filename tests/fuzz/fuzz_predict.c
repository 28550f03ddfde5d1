/* fuzz_predict: any bytes as a PredictRequest.
 *
 * What parses is decoded, a bounded number of elements in several ranges that must agree with each other,
 * and written again in both encodings, which must read back as the same elements. Then all inputs that have one row
 * get the rows of the others, each of which must be that row. */
#include <stdlib.h>
#include <string.h>

#include "broadcast.h"
#include "predict.h"
#include "wire.h"

enum { MOST_ELEMENTS = 512, MOST_BYTES = MOST_ELEMENTS * 16, MOST_INPUTS = 16 };

static void require(bool cond)
{
    if (!cond)
        abort();
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

/* Written and read again, `t` is the same. */
static void write_and_read(fs_arena *arena, const fs_tensor *t, bool as_content)
{
    size_t len = fs_tensor_proto_size(t, 0, -1, as_content);
    uint8_t *proto = malloc(len);
    void *back = malloc(MOST_BYTES);
    if (proto != NULL && back != NULL) {
        fs_slice whole = {proto, len};
        fs_tensor_view view;
        require(fs_tensor_proto_write(t, 0, -1, as_content, proto) == proto + len);
        require(fs_tensor_proto_valid(whole, FS_TENSOR_DEPTH));
        require(fs_tensor_view_parse(arena, proto, len, &view) == 0);
        require(view.dtype == t->dtype && view.ndim == t->ndim && view.elements == t->elements);
        require(memcmp(view.dims, t->dims, (size_t)t->ndim * sizeof *t->dims) == 0);
        require(fs_tensor_view_decode(&view, 0, view.elements, back) == 0);
        require(same_elements(t->dtype, back, t->data, t->elements));
    }
    free(proto);
    free(back);
}

/* Types narrower than their bytes come through tensor_content as they are, and through values normalised. */
static bool is_narrow(int dtype)
{
    return dtype >= FS_DT_INT4 && dtype <= FS_DT_UINT2;
}

static void use_view(fs_arena *arena, const fs_tensor_view *view)
{
    size_t size = fs_dtype_size(view->dtype);
    if (size == 0)
        return;
    int64_t n = view->elements < MOST_ELEMENTS ? view->elements : MOST_ELEMENTS;
    uint8_t *all = malloc(MOST_BYTES), *part = malloc(MOST_BYTES);
    if (all != NULL && part != NULL) {
        require(fs_tensor_view_decode(view, 0, n, all) == 0);
        for (int64_t step = 1; step <= n; step = step * 3 + 1) {
            for (int64_t first = 0; first < n; first += step * 7) {
                int64_t count = n - first < step ? n - first : step;
                require(fs_tensor_view_decode(view, first, count, part) == 0);
                require(same_elements(view->dtype, part, all + (size_t)first * size, count));
            }
        }
        /* The last elements of what may be a huge shape, though its values are few; what content or
         * values there are is walked once more, so not for the large ones among the inputs. */
        require(fs_tensor_view_decode(view, view->elements - n, n, part) == 0);

        int64_t dims[1] = {n};
        fs_tensor whole = {.dtype = view->dtype, .ndim = view->ndim, .dims = view->dims,
                           .elements = view->elements, .data = all};
        fs_tensor flat = {.dtype = view->dtype, .ndim = 1, .dims = dims, .elements = n, .data = all};
        const fs_tensor *t = n == view->elements ? &whole : &flat;
        write_and_read(arena, t, true);
        if (!is_narrow(view->dtype))
            write_and_read(arena, t, false);

        fs_reply_model model = {{NULL, 0}, n, {NULL, 0}};
        fs_reply_output out = {{NULL, 0}, &flat, n / 3, n - n / 3};
        size_t len = fs_predict_reply_size(&model, &out, 1, false);
        require(len > 0);
        uint8_t *reply = malloc(len);
        if (reply != NULL)
            fs_predict_reply_write(&model, &out, 1, false, reply);
        free(reply);
    }
    free(all);
    free(part);
}

/* `view` had one row of `row` elements and has been given others' rows. */
static void use_repeated(const fs_tensor_view *view, int64_t row)
{
    size_t size = fs_dtype_size(view->dtype);
    int64_t rows = view->dims[0];
    require(rows != 1);
    require(view->elements == INT64_MAX || (rows == 0 ? view->elements == 0 : view->elements / rows == row));
    if (view->elements == INT64_MAX || size == 0)
        return;
    if (view->dtype == FS_DT_STRING)
        fs_tensor_view_string_bytes(view);
    fs_tensor_view once = *view;
    int64_t n = view->elements < MOST_ELEMENTS ? view->elements : MOST_ELEMENTS;
    uint8_t *want = malloc(MOST_BYTES), *got = malloc(MOST_BYTES);
    once.repeats = false;
    if (want != NULL && got != NULL && row <= MOST_ELEMENTS) {
        require(fs_tensor_view_decode(&once, 0, row, want) == 0);
        for (int64_t first = 0; first < n; first = first * 2 + 1) {
            require(fs_tensor_view_decode(view, first, n - first, got) == 0);
            for (int64_t e = first; e < n; e++)
                require(same_elements(view->dtype, got + (size_t)(e - first) * size,
                                      want + (size_t)(e % row) * size, 1));
        }
    }
    free(want);
    free(got);
}

static void use_broadcast(fs_tensor_view *views, uint32_t n)
{
    fs_port ports[MOST_INPUTS];
    bool broadcast[MOST_INPUTS];
    int64_t rows[MOST_INPUTS];
    for (uint32_t i = 0; i < n; i++) {
        ports[i] = (fs_port){.ndim = -1};
        broadcast[i] = true;
        rows[i] = views[i].elements;
    }
    fs_broadcast(&(fs_signature){.inputs = ports, .n_inputs = n}, broadcast, views);
    for (uint32_t i = 0; i < n; i++) {
        if (views[i].repeats)
            use_repeated(&views[i], rows[i]);
        else
            require(views[i].elements == rows[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fs_slab *slab = fs_slab_new((size_t)1 << 20);
    if (slab == NULL)
        return 0;
    fs_arena arena;
    fs_arena_init(&arena, slab);
    fs_predict_request request;
    fs_tensor_view views[MOST_INPUTS];
    uint32_t n = 0;
    if (fs_predict_parse(&arena, data, size, &request) == 0) {
        for (uint32_t i = 0; i < request.n_inputs; i++) {
            fs_slice proto = request.inputs[i].proto;
            fs_tensor_view view;
            int rc = fs_tensor_view_parse(&arena, proto.data, proto.len, &view);
            require((rc != -FS_INTERNAL) == fs_tensor_proto_valid(proto, FS_TENSOR_DEPTH));
            for (uint32_t k = i + 1; k < request.n_inputs && k < i + 8; k++)
                require(request.inputs[i].alias.len != request.inputs[k].alias.len
                        || memcmp(request.inputs[i].alias.data, request.inputs[k].alias.data,
                                  request.inputs[i].alias.len) != 0);
            if (rc == 0)
                use_view(&arena, &view);
            if (rc == 0 && n < MOST_INPUTS)
                views[n++] = view;
        }
        use_broadcast(views, n);
    }
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return 0;
}
