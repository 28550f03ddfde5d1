/* warm_requests: see warm_requests.h. */
#include "warm_requests.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broadcast.h"
#include "predict.h"
#include "text.h"

enum { LENGTH_BYTES = 4 };

/* ---- the file ------------------------------------------------------------------------------ */

/* Reads exactly `len` bytes. */
static bool read_at(int fd, uint64_t at, void *to, size_t len)
{
    uint8_t *next = to;
    while (len > 0) {
        ssize_t n = pread(fd, next, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        next += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return true;
}

/* The length that stands at `at`, when the file has that many bytes behind it. */
static bool read_length(const fs_warm_requests *file, uint64_t at, uint32_t *len)
{
    uint8_t bytes[LENGTH_BYTES];
    if (file->size - at < LENGTH_BYTES || !read_at(file->fd, at, bytes, LENGTH_BYTES))
        return false;
    *len = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    return *len <= file->size - at - LENGTH_BYTES;
}

int fs_warm_requests_open(fs_warm_requests *file, const char *path, size_t max_request_bytes, fs_error *err)
{
    *file = (fs_warm_requests){
        .path = path, .max_request_bytes = max_request_bytes, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    struct stat about;
    if (file->fd < 0 || fstat(file->fd, &about) != 0) {
        int why = errno;
        fs_warm_requests_close(file);
        char text[128];
        return fs_fail(err, FS_NOT_FOUND, "the warm-up requests in %s cannot be read: %s", path,
                       strerror_r(why, text, sizeof text));
    }
    file->size = (uint64_t)about.st_size;
    for (uint64_t at = 0; at < file->size; file->count++) {
        uint32_t len;
        if (!read_length(file, at, &len)) {
            int rc = fs_fail(err, FS_DATA_LOSS, "the warm-up requests in %s are damaged: no request of that "
                                                "length at byte %llu of %llu",
                             path, (unsigned long long)at, (unsigned long long)file->size);
            fs_warm_requests_close(file);
            return rc;
        }
        at += LENGTH_BYTES + len;
    }
    return 0;
}

void fs_warm_requests_close(fs_warm_requests *file)
{
    if (file->fd >= 0)
        close(file->fd);
    file->fd = -1;
}

/* ---- one request --------------------------------------------------------------------------- */

typedef struct request {
    fs_arena arena;
    fs_slab *slab;
    uint8_t *message;
    size_t len;
    uint32_t index; /* of the signature */
    const fs_signature *sig;
    const fs_signature_plan *plan;
    fs_tensor *in;
    fs_tensor *out;
    int64_t rows;   /* of every input, when all agree and conform; else 0 */
    int64_t bucket; /* rows of the compiled run; 0: there is none */
} request;

static int fail_memory(fs_error *err)
{
    return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
}

static const fs_named_view *find_input(const fs_predict_request *asked, const char *alias)
{
    for (uint32_t i = 0; i < asked->n_inputs; i++) {
        if (fs_slice_compare(asked->inputs[i].alias, fs_slice_of(alias)) == 0)
            return &asked->inputs[i];
    }
    return NULL;
}

/* Finds the signature and looks at every input, in the signature's order. */
static int check(request *r, fs_servable *servable, size_t max_bytes, fs_tensor_view **views, fs_error *err)
{
    fs_predict_request asked;
    int rc = fs_predict_parse(&r->arena, r->message, r->len, &asked);
    if (rc == -FS_RESOURCE_EXHAUSTED)
        return fail_memory(err);
    if (rc != 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "not a PredictRequest");
    fs_slice name = asked.model.signature.len > 0 ? asked.model.signature : fs_slice_of("serving_default");
    const fs_queue *queue = fs_servable_find(servable, name);
    if (queue == NULL)
        return fs_fail(err, FS_FAILED_PRECONDITION, "Serving signature key \"%.*s\" not found.",
                       (int)(name.len < 200 ? name.len : 200), (const char *)name.data);
    r->index = queue->index;
    r->sig = queue->signature;
    r->plan = queue->plan;
    *views = fs_arena_alloc(&r->arena, (r->sig->n_inputs + 1) * sizeof **views);
    if (*views == NULL)
        return fail_memory(err);
    if (asked.n_inputs != r->sig->n_inputs)
        return fs_fail(err, FS_INVALID_ARGUMENT, "it has %u inputs, and signature %s %u", asked.n_inputs,
                       r->sig->name, r->sig->n_inputs);
    for (uint32_t i = 0; i < r->sig->n_inputs; i++) {
        const fs_port *port = &r->sig->inputs[i];
        const fs_named_view *input = find_input(&asked, port->alias);
        if (input == NULL)
            return fs_fail(err, FS_INVALID_ARGUMENT, "it has no input %s", port->alias);
        fs_tensor_view *view = &(*views)[i];
        rc = fs_tensor_view_parse(&r->arena, input->proto.data, input->proto.len, view);
        if (rc == -FS_RESOURCE_EXHAUSTED)
            return fail_memory(err);
        if (rc != 0 || fs_dtype_size(view->dtype) == 0)
            return fs_fail(err, FS_INVALID_ARGUMENT, "its input %s is not a tensor that can be served",
                           port->alias);
        if (view->dtype != port->dtype)
            return fs_fail(err, FS_INVALID_ARGUMENT, "its input %s is of type %s, not %s", port->alias,
                           fs_dtype_name(view->dtype), fs_dtype_name(port->dtype));
    }
    if (r->plan->broadcast != NULL)
        fs_broadcast(r->sig, r->plan->broadcast, *views);
    size_t left = max_bytes;
    for (uint32_t i = 0; i < r->sig->n_inputs; i++) {
        const fs_tensor_view *view = &(*views)[i];
        size_t size = fs_dtype_size(view->dtype);
        if ((uint64_t)view->elements > left / size)
            return fs_fail(err, FS_RESOURCE_EXHAUSTED,
                           "inputs of more than %zu bytes once decoded (limits.max_message_bytes)",
                           max_bytes);
        left -= (size_t)view->elements * size;
    }
    return 0;
}

/* The rows of the request, when it could share a batch: what check_shape in call.c asks, less the words. */
static int64_t rows_of(const request *r, const fs_tensor_view *views)
{
    if (r->sig->n_inputs == 0 || views[0].ndim == 0)
        return 0;
    int64_t rows = views[0].dims[0];
    for (uint32_t i = 0; i < r->sig->n_inputs; i++) {
        const fs_port *port = &r->sig->inputs[i];
        if (port->ndim < 1 || views[i].ndim != port->ndim || views[i].dims[0] != rows)
            return 0;
        for (int32_t d = 1; d < port->ndim; d++) {
            if (port->dims[d] != views[i].dims[d])
                return 0;
        }
    }
    return rows;
}

static int64_t bucket_of(const request *r)
{
    for (uint32_t b = 0; r->plan->compiled && r->plan->batched && r->rows > 0 && b < r->plan->n_buckets; b++) {
        if (r->plan->buckets[b] >= r->rows)
            return r->plan->buckets[b];
    }
    return 0;
}

/* Decodes input i, with room for the rows of the bucket. */
static int decode(request *r, const fs_tensor_view *view, uint32_t i, fs_error *err)
{
    fs_tensor *t = &r->in[i];
    int64_t *dims = fs_arena_alloc(&r->arena, ((size_t)view->ndim + 1) * sizeof *dims);
    if (dims == NULL)
        return fail_memory(err);
    memcpy(dims, view->dims, (size_t)view->ndim * sizeof *dims);
    size_t size = fs_dtype_size(view->dtype);
    *t = (fs_tensor){.dtype = view->dtype, .ndim = view->ndim, .dims = dims, .elements = view->elements,
                     .bytes = (size_t)view->elements * size};
    size_t row_bytes = r->bucket > 0 ? t->bytes / (size_t)r->rows : 0;
    t->buf = fs_buf_new(r->slab, r->bucket > 0 ? row_bytes * (size_t)r->bucket : t->bytes);
    if (t->buf == NULL)
        return fail_memory(err);
    t->data = t->buf->data;
    if (fs_tensor_view_decode(view, 0, view->elements, t->data) != 0)
        return fs_fail(err, FS_INVALID_ARGUMENT, "its input %s is malformed", r->sig->inputs[i].alias);
    for (int64_t row = r->rows; row < r->bucket; row++)
        memcpy((uint8_t *)t->data + (size_t)row * row_bytes, t->data, row_bytes);
    return 0;
}

/* Sets every input to so many of its rows. */
static void show_rows(request *r, int64_t rows)
{
    for (uint32_t i = 0; i < r->sig->n_inputs; i++) {
        fs_tensor *t = &r->in[i];
        int64_t per_row = t->elements / t->dims[0];
        ((int64_t *)(uintptr_t)t->dims)[0] = rows;
        t->elements = rows * per_row;
        t->bytes = (size_t)t->elements * fs_dtype_size(t->dtype);
    }
}

static int run(request *r, fs_servable *servable, enum fs_run_variant variant, fs_error *err)
{
    int rc = servable->runtime.ops->run(servable->handle, r->index, variant, r->in, r->out, err);
    if (rc != 0 && variant == FS_RUN_PLAIN)
        fs_runtime_explain(&servable->runtime, servable->handle, r->index, r->in, err);
    for (uint32_t i = 0; rc == 0 && i < r->sig->n_outputs; i++)
        servable->runtime.ops->release(&r->out[i]);
    return rc;
}

static int run_all(request *r, fs_servable *servable, size_t max_bytes, int iterations, atomic_int *done,
                   fs_error *err)
{
    fs_tensor_view *views = NULL;
    int rc = check(r, servable, max_bytes, &views, err);
    if (rc != 0)
        return rc;
    r->rows = rows_of(r, views);
    r->bucket = bucket_of(r);
    r->in = fs_arena_alloc(&r->arena, (r->sig->n_inputs + 1) * sizeof *r->in);
    r->out = fs_arena_alloc(&r->arena, (r->sig->n_outputs + 1) * sizeof *r->out);
    if (r->in == NULL || r->out == NULL)
        return fail_memory(err);
    for (uint32_t i = 0; i < r->sig->n_inputs && rc == 0; i++)
        rc = decode(r, &views[i], i, err);
    for (int k = 0; k < iterations && rc == 0; k++) {
        rc = run(r, servable, FS_RUN_PLAIN, err);
        if (rc == 0 && r->bucket > 0) {
            show_rows(r, r->bucket);
            rc = run(r, servable, FS_RUN_COMPILED, err);
            show_rows(r, r->rows);
        }
        atomic_fetch_add_explicit(done, 1, memory_order_relaxed);
    }
    for (uint32_t i = 0; i < r->sig->n_inputs; i++)
        fs_buf_unref(r->in[i].buf);
    return rc;
}

int fs_warm_requests_run_next(fs_warm_requests *file, fs_servable *servable, fs_slab *slab, int iterations,
                              atomic_int *done, fs_error *err)
{
    uint32_t len;
    request r = {.slab = slab};
    fs_error why;
    int rc = 0;
    file->number++;
    if (!read_length(file, file->at, &len))
        rc = fs_fail(&why, FS_DATA_LOSS, "the file was changed while it was read");
    if (rc == 0 && (r.message = fs_slab_alloc(slab, (size_t)len + 1)) == NULL)
        rc = fail_memory(&why);
    if (rc == 0 && !read_at(file->fd, file->at + LENGTH_BYTES, r.message, len))
        rc = fs_fail(&why, FS_DATA_LOSS, "the file was changed while it was read");
    if (rc == 0) {
        r.len = len;
        file->at += LENGTH_BYTES + (uint64_t)len;
        fs_arena_init(&r.arena, slab);
        rc = run_all(&r, servable, file->max_request_bytes, iterations, done, &why);
        fs_arena_clear(&r.arena);
    }
    fs_slab_free(r.message);
    if (rc == 0)
        return 0;
    /* Memory is about this process, not about the request. */
    if (rc == -FS_RESOURCE_EXHAUSTED && strcmp(why.msg, "out of memory") == 0)
        return fail_memory(err);
    return fs_fail(err, (enum fs_code)-rc, "warm-up request %u of %u in %s: %s", file->number, file->count,
                   file->path, why.msg);
}
