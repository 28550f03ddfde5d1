/* runtime_null: see runtime_null.h. */
#include "runtime_null.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "status.h"
#include "tensor.h"

enum {
    COMPILED_ROWS_MAX = 32,
    THREAD_CACHE_BYTES = 4 << 20, /* free blocks that a thread keeps for outputs */
};

typedef struct null_options {
    bool echo;
    int64_t run_us;
    int64_t row_us;
    int64_t busy;
    int64_t open_us;
    int64_t fail_open;
    int64_t fail_nan;
    int64_t fail_every;
    int64_t compiled_rows[COMPILED_ROWS_MAX];
    int n_compiled_rows;
} null_options;

typedef struct null_runtime {
    null_options options;
    pthread_key_t slab; /* each thread's fs_slab */
} null_runtime;

struct fs_model {
    null_runtime *runtime;
    const fs_signature *signatures;
    null_options options;
    atomic_long runs;
};

/* An output's fs_tensor.handle; dims, then (for strings) the slices and their bytes follow. */
typedef struct null_output {
    fs_buf *buf; /* memory shared with an input, or memory of its own */
    int64_t dims[];
} null_output;

/* ---- options ----------------------------------------------------------------------------- */

/* Reads a decimal number of `len` characters. */
static bool read_number(const char *text, size_t len, int64_t *out)
{
    if (len == 0 || len > 15)
        return false;
    int64_t value = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        value = value * 10 + (text[i] - '0');
    }
    *out = value;
    return true;
}

static bool read_rows(const char *text, size_t len, null_options *options)
{
    options->n_compiled_rows = 0;
    while (options->n_compiled_rows < COMPILED_ROWS_MAX) {
        const char *colon = memchr(text, ':', len);
        size_t part = colon != NULL ? (size_t)(colon - text) : len;
        if (!read_number(text, part, &options->compiled_rows[options->n_compiled_rows++]))
            return false;
        if (colon == NULL)
            return true;
        text += part + 1;
        len -= part + 1;
    }
    return false;
}

static bool text_is(const char *text, size_t len, const char *word)
{
    return strlen(word) == len && memcmp(text, word, len) == 0;
}

static bool read_option(const char *key, size_t key_len, const char *value, size_t value_len,
                        null_options *options)
{
    if (text_is(key, key_len, "op")) {
        options->echo = text_is(value, value_len, "echo");
        return options->echo || text_is(value, value_len, "half_plus_two");
    }
    if (text_is(key, key_len, "compiled_rows"))
        return read_rows(value, value_len, options);
    struct {
        const char *key;
        int64_t *value;
    } numbers[] = {
        {"run_us", &options->run_us},     {"row_us", &options->row_us},
        {"busy", &options->busy},         {"open_us", &options->open_us},
        {"fail_open", &options->fail_open}, {"fail_nan", &options->fail_nan},
        {"fail_every", &options->fail_every},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (text_is(key, key_len, numbers[i].key))
            return read_number(value, value_len, numbers[i].value);
    return false;
}

static int read_options(const char *text, null_options *options, fs_error *err)
{
    while (text != NULL && *text != '\0') {
        size_t len = strcspn(text, ",");
        const char *equals = memchr(text, '=', len);
        size_t key_len = equals != NULL ? (size_t)(equals - text) : len;
        if (equals == NULL || !read_option(text, key_len, equals + 1, len - key_len - 1, options))
            return fs_fail(err, FS_INVALID_ARGUMENT, "the null runtime has no option '%.*s'",
                           len > 200 ? 200 : (int)len, text);
        text += len + (text[len] == ',');
    }
    return 0;
}

/* ---- time -------------------------------------------------------------------------------- */

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void spend(int64_t us, bool busy)
{
    if (us <= 0)
        return;
    int64_t until = now_us() + us;
    if (busy) {
        while (now_us() < until) {
        }
        return;
    }
    struct timespec deadline = {.tv_sec = until / 1000000, .tv_nsec = until % 1000000 * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, NULL) == EINTR) {
    }
}

/* ---- run --------------------------------------------------------------------------------- */

static bool has_nan(const fs_tensor *t)
{
    for (int64_t i = 0; i < t->elements; i++)
        if ((t->dtype == FS_DT_FLOAT && isnan(((const float *)t->data)[i])) ||
            (t->dtype == FS_DT_DOUBLE && isnan(((const double *)t->data)[i])))
            return true;
    return false;
}

static void half_plus_two(const fs_tensor *in, void *to)
{
    if (in->dtype == FS_DT_FLOAT)
        for (int64_t i = 0; i < in->elements; i++)
            ((float *)to)[i] = 0.5f * ((const float *)in->data)[i] + 2.0f;
    else
        for (int64_t i = 0; i < in->elements; i++)
            ((double *)to)[i] = 0.5 * ((const double *)in->data)[i] + 2.0;
}

/* An array of slices with the bytes they point to behind it: the input's strings may be gone before the
 * output is. */
static fs_buf *copy_strings(fs_slab *slab, const fs_tensor *in)
{
    const fs_slice *from = in->data;
    size_t total = in->bytes;
    for (int64_t i = 0; i < in->elements; i++)
        total += from[i].len;
    fs_buf *buf = fs_buf_new(slab, total);
    if (buf == NULL)
        return NULL;
    fs_slice *to = (fs_slice *)(void *)buf->data;
    uint8_t *bytes = buf->data + in->bytes;
    for (int64_t i = 0; i < in->elements; i++) {
        to[i] = (fs_slice){.data = bytes, .len = from[i].len};
        if (from[i].len > 0)
            memcpy(bytes, from[i].data, from[i].len);
        bytes += from[i].len;
    }
    return buf;
}

static int make_output(const fs_model *model, fs_slab *slab, const fs_tensor *in, fs_tensor *out)
{
    null_output *handle = fs_slab_alloc(slab, sizeof *handle + (size_t)in->ndim * sizeof(int64_t));
    if (handle == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    bool computes = !model->options.echo && (in->dtype == FS_DT_FLOAT || in->dtype == FS_DT_DOUBLE);
    void *data;
    if (in->dtype == FS_DT_STRING) {
        handle->buf = copy_strings(slab, in);
        data = handle->buf != NULL ? handle->buf->data : NULL;
    } else if (computes || in->buf == NULL) {
        handle->buf = fs_buf_new(slab, in->bytes);
        data = handle->buf != NULL ? handle->buf->data : NULL;
        if (data != NULL && computes)
            half_plus_two(in, data);
        else if (data != NULL && in->bytes > 0)
            memcpy(data, in->data, in->bytes);
    } else {
        handle->buf = fs_buf_ref(in->buf); /* as TensorFlow answers an identity */
        data = in->data;
    }
    if (handle->buf == NULL) {
        fs_slab_free(handle);
        return -FS_RESOURCE_EXHAUSTED;
    }
    for (int i = 0; i < in->ndim; i++)
        handle->dims[i] = in->dims[i];
    *out = (fs_tensor){
        .dtype = in->dtype,
        .ndim = in->ndim,
        .dims = handle->dims,
        .elements = in->elements,
        .data = data,
        .bytes = in->bytes,
        .handle = handle,
    };
    return 0;
}

static void null_release(fs_tensor *output)
{
    null_output *handle = output->handle;
    if (handle == NULL)
        return;
    fs_buf_unref(handle->buf);
    fs_slab_free(handle);
    output->handle = NULL;
}

/* What the options let fail. */
static int fail_as_asked(fs_model *model, const fs_signature *sig, enum fs_run_variant variant, int64_t rows,
                         const fs_tensor *inputs, fs_error *err)
{
    const null_options *options = &model->options;
    /* relaxed: only the count matters. */
    long run = atomic_fetch_add_explicit(&model->runs, 1, memory_order_relaxed) + 1;
    if (options->fail_every > 0 && run % options->fail_every == 0)
        return fs_fail(err, FS_INTERNAL, "run %ld failed as configured", run);
    if (options->fail_nan != 0)
        for (uint32_t i = 0; i < sig->n_inputs; i++)
            if (has_nan(&inputs[i]))
                return fs_fail(err, FS_INVALID_ARGUMENT, "input '%s' has a NaN", sig->inputs[i].alias);
    if (variant == FS_RUN_COMPILED && options->n_compiled_rows > 0) {
        for (int i = 0; i < options->n_compiled_rows; i++)
            if (options->compiled_rows[i] == rows)
                return 0;
        return fs_fail(err, FS_INTERNAL, "%lld rows were not compiled", (long long)rows);
    }
    return 0;
}

static int null_run(fs_model *model, uint32_t sig, enum fs_run_variant variant, const fs_tensor *inputs,
                    fs_tensor *outputs, fs_error *err)
{
    const fs_signature *signature = &model->signatures[sig];
    fs_slab *slab = fs_slab_of_thread(model->runtime->slab, THREAD_CACHE_BYTES);
    if (slab == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    if (signature->n_inputs == 0)
        return fs_fail(err, FS_UNIMPLEMENTED, "the null runtime answers only from inputs");
    int64_t rows = inputs[0].ndim > 0 ? inputs[0].dims[0] : 1;
    spend(model->options.run_us + rows * model->options.row_us, model->options.busy != 0);
    int rc = fail_as_asked(model, signature, variant, rows, inputs, err);
    if (rc != 0)
        return rc;
    for (uint32_t i = 0; i < signature->n_outputs; i++) {
        uint32_t from = i < signature->n_inputs ? i : signature->n_inputs - 1;
        if (make_output(model, slab, &inputs[from], &outputs[i]) != 0) {
            while (i-- > 0)
                null_release(&outputs[i]);
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        }
    }
    return 0;
}

/* ---- open -------------------------------------------------------------------------------- */

static int null_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    static const char prefix[] = "null:";
    null_runtime *runtime = self;
    null_options options = runtime->options;
    if (strncmp(spec->path, prefix, sizeof prefix - 1) == 0) {
        int rc = read_options(spec->path + sizeof prefix - 1, &options, err);
        if (rc != 0)
            return rc;
    }
    spend(options.open_us, false);
    if (options.fail_open != 0)
        return fs_fail(err, FS_INTERNAL, "opening failed as configured");
    fs_model *model = malloc(sizeof *model);
    if (model == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    *model = (fs_model){.runtime = runtime, .signatures = spec->signatures, .options = options};
    atomic_init(&model->runs, 0);
    *out = model;
    return 0;
}

static void null_close(fs_model *model)
{
    free(model);
}

static const fs_runtime_ops NULL_OPS = {
    .name = "null",
    .open = null_open,
    .run = null_run,
    .release = null_release,
    .close = null_close,
};

int fs_runtime_null(const char *options, fs_runtime *out, fs_error *err)
{
    null_runtime *runtime = calloc(1, sizeof *runtime);
    if (runtime == NULL)
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    int rc = read_options(options, &runtime->options, err);
    if (rc == 0 && fs_slab_key(&runtime->slab) != 0)
        rc = fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of thread-specific keys");
    if (rc != 0) {
        free(runtime);
        return rc;
    }
    *out = (fs_runtime){.ops = &NULL_OPS, .self = runtime};
    return 0;
}

void fs_runtime_null_free(fs_runtime *runtime)
{
    null_runtime *self = runtime->self;
    if (self == NULL)
        return;
    /* Other threads' slabs went with them; this thread may live on. */
    fs_slab_release(pthread_getspecific(self->slab));
    pthread_key_delete(self->slab);
    free(self);
    *runtime = (fs_runtime){0};
}
