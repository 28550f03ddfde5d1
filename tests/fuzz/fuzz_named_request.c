/* fuzz_named_request: any bytes as a SessionRunRequest.
 *
 * What parses is looked at once more: names lie within the message or the arena and are UTF-8, feeds are decoded a
 * bounded number of elements each, and a reply that names and holds them is as large as was said. */
#include <stdlib.h>
#include <string.h>

#include "named_request.h"
#include "wire.h"

enum { MOST_ELEMENTS = 256, MOST_BYTES = MOST_ELEMENTS * 16, MOST_FEEDS = 64 };

static void require(bool cond)
{
    if (!cond)
        abort();
}

static void check_names(const fs_slice *names, uint32_t n)
{
    require(n <= FS_NAMED_MAX);
    for (uint32_t i = 0; i < n; i++)
        require(fs_wire_utf8_valid(names[i])); /* reads every byte */
}

/* A reply of one tensor, under every fetch's name. */
static void answer(const fs_named_request *request, const fs_tensor *tensor)
{
    for (uint32_t i = 0; i < request->n_fetches && i < 4; i++) {
        fs_named_reply reply = {.model = request->model.name, .version = request->model.version,
                                .names = &request->fetches[i], .outputs = tensor, .n = 1, .as_content = i % 2 != 0};
        size_t size = fs_named_reply_size(&reply);
        require(size > 0);
        uint8_t *bytes = malloc(size);
        if (bytes == NULL)
            return;
        fs_named_reply_write(&reply, bytes);
        fs_wire w = fs_wire_over(bytes, size);
        uint32_t tag;
        fs_slice part;
        require(fs_wire_read_tag(&w, &tag) && tag == FS_WIRE_TAG(1, FS_WIRE_BYTES) && fs_wire_read_bytes(&w, &part));
        require(fs_wire_read_tag(&w, &tag) && tag == FS_WIRE_TAG(3, FS_WIRE_BYTES) && fs_wire_read_bytes(&w, &part));
        require(w.at == w.end);
        free(bytes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fs_slab *slab = fs_slab_new((size_t)1 << 20);
    if (slab == NULL)
        return 0;
    fs_arena arena;
    fs_arena_init(&arena, slab);
    fs_named_request request;
    if (fs_named_request_parse(&arena, data, size, &request) == 0) {
        check_names(request.feeds, request.n_feeds);
        check_names(request.fetches, request.n_fetches);
        check_names(request.targets, request.n_targets);
        void *elements = malloc(MOST_BYTES);
        for (uint32_t i = 0; elements != NULL && i < request.n_feeds && i < MOST_FEEDS; i++) {
            fs_slice proto = request.protos[i];
            fs_tensor_view view;
            int rc = fs_tensor_view_parse(&arena, proto.data, proto.len, &view);
            require((rc != -FS_INTERNAL) == fs_tensor_proto_valid(proto, FS_TENSOR_DEPTH));
            if (rc != 0 || fs_dtype_size(view.dtype) == 0)
                continue;
            int64_t dims[] = {view.elements < MOST_ELEMENTS ? view.elements : MOST_ELEMENTS};
            require(fs_tensor_view_decode(&view, 0, dims[0], elements) == 0);
            answer(&request, &(fs_tensor){.dtype = view.dtype, .ndim = 1, .dims = dims, .elements = dims[0],
                                          .data = elements});
        }
        free(elements);
    }
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return 0;
}
