/* lookup: a runtime whose model is a table from int64 keys to vectors, mapped into memory. No TensorFlow graph.
 *
 * A servable of its own: keys int64 [n] -> vectors float [n, dims]. A key that the table does not have gets the
 * table's default row. Models, and versions, that name the same file share one mapping of it, whatever path
 * they name it by; the last to close takes it away.
 *
 * The file, written by table.py, little-endian:
 *
 *     64 bytes   "fslookup", uint64 rows, uint32 dims, zeros
 *     rows       int64: the keys, increasing
 *     rows + 1   float[dims]: their vectors, and last the default row
 *
 * It must not be changed in place while it is served: write another and rename it. */
#include <fastserve/plugin.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEADER_BYTES = 64 };
static const char MAGIC[8] = "fslookup";

typedef struct table {
    struct table *next;
    dev_t device; /* which file it is */
    ino_t inode;
    struct timespec written;
    int models; /* that have it open; guarded by the runtime's mutex */
    void *map;
    size_t bytes;
    uint64_t rows;
    uint32_t dims;
    const int64_t *keys;
    const float *vectors;
} table;

/* What all models of a process share. */
typedef struct lookup_runtime {
    pthread_mutex_t mutex; /* guards the list */
    table *tables;
} lookup_runtime;

struct fs_model {
    lookup_runtime *runtime;
    table *table;
};

/* ---- tables ------------------------------------------------------------------------------- */

/* Looks at what is mapped; false when it is no table of this size. */
static bool read_header(table *t)
{
    const uint8_t *at = t->map;
    if (t->bytes < HEADER_BYTES || memcmp(at, MAGIC, sizeof MAGIC) != 0)
        return false;
    memcpy(&t->rows, at + 8, sizeof t->rows);
    memcpy(&t->dims, at + 16, sizeof t->dims);
    size_t row = (size_t)t->dims * sizeof(float);
    size_t room = t->bytes - HEADER_BYTES;
    if (t->dims == 0 || room < row || (room - row) % (sizeof(int64_t) + row) != 0 ||
        (room - row) / (sizeof(int64_t) + row) != t->rows)
        return false;
    t->keys = (const int64_t *)(const void *)(at + HEADER_BYTES);
    t->vectors = (const float *)(const void *)(t->keys + t->rows);
    return true;
}

/* Maps the open file `fd`. */
static int map_table(int fd, const struct stat *file, const char *path, table **out, fs_error *err)
{
    table *t = calloc(1, sizeof *t);
    if (t == NULL)
        return fs_plugin_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    t->device = file->st_dev;
    t->inode = file->st_ino;
    t->written = file->st_mtim;
    t->bytes = (size_t)file->st_size;
    t->map = t->bytes > 0 ? mmap(NULL, t->bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (t->map == MAP_FAILED) {
        int rc = fs_plugin_fail(err, FS_INVALID_ARGUMENT, "%s cannot be mapped: %s", path,
                                t->bytes > 0 ? strerror(errno) : "it is empty");
        free(t);
        return rc;
    }
    if (!read_header(t)) {
        munmap(t->map, t->bytes);
        free(t);
        return fs_plugin_fail(err, FS_INVALID_ARGUMENT, "%s is no lookup table, or not all of one", path);
    }
    *out = t;
    return 0;
}

static bool is_file(const table *t, const struct stat *file)
{
    return t->device == file->st_dev && t->inode == file->st_ino && t->bytes == (size_t)file->st_size &&
           t->written.tv_sec == file->st_mtim.tv_sec && t->written.tv_nsec == file->st_mtim.tv_nsec;
}

/* The table in `path`, with one more model on it: an open one, or mapped now. Mapping happens under the mutex, so
 * that two models that come together do not map it twice; runs never take it. */
static int acquire(lookup_runtime *runtime, const char *path, table **out, fs_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat file;
    if (fd < 0 || fstat(fd, &file) != 0) {
        int why = errno;
        if (fd >= 0)
            close(fd);
        return fs_plugin_fail(err, FS_NOT_FOUND, "%s cannot be opened: %s", path, strerror(why));
    }
    int rc = 0;
    pthread_mutex_lock(&runtime->mutex);
    table *t = runtime->tables;
    while (t != NULL && !is_file(t, &file))
        t = t->next;
    if (t == NULL) {
        rc = map_table(fd, &file, path, &t, err);
        if (rc == 0) {
            t->next = runtime->tables;
            runtime->tables = t;
        }
    }
    if (rc == 0)
        t->models++;
    pthread_mutex_unlock(&runtime->mutex);
    close(fd);
    *out = t;
    return rc;
}

static void give_back(lookup_runtime *runtime, table *t)
{
    pthread_mutex_lock(&runtime->mutex);
    bool last = --t->models == 0;
    if (last) {
        table **at = &runtime->tables;
        while (*at != t)
            at = &(*at)->next;
        *at = t->next;
    }
    pthread_mutex_unlock(&runtime->mutex);
    if (last) {
        munmap(t->map, t->bytes);
        free(t);
    }
}

/* The vector of `key`, or the default row. */
static const float *find(const table *t, int64_t key)
{
    uint64_t low = 0, high = t->rows;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (t->keys[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    uint64_t row = low < t->rows && t->keys[low] == key ? low : t->rows;
    return t->vectors + row * t->dims;
}

/* ---- the runtime -------------------------------------------------------------------------- */

/* Whether the signatures are the one that this answers: keys in, vectors out. */
static int check_signatures(const fs_model_spec *spec, const table *t, fs_error *err)
{
    if (spec->n_signatures == 1) {
        const fs_signature *s = &spec->signatures[0];
        if (s->n_inputs == 1 && s->inputs[0].dtype == FS_DT_INT64 && s->inputs[0].ndim == 1 &&
            s->n_outputs == 1 && s->outputs[0].dtype == FS_DT_FLOAT && s->outputs[0].ndim == 2 &&
            s->outputs[0].dims[1] == t->dims)
            return 0;
    }
    return fs_plugin_fail(err, FS_FAILED_PRECONDITION,
                          "a lookup table of %u dims has one signature: an int64 input [?] and a float output "
                          "[?, %u]",
                          t->dims, t->dims);
}

static int lookup_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    fs_model *model = malloc(sizeof *model);
    if (model == NULL)
        return fs_plugin_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    model->runtime = self;
    int rc = acquire(self, spec->path, &model->table, err);
    if (rc != 0) {
        free(model);
        return rc;
    }
    rc = check_signatures(spec, model->table, err);
    if (rc != 0) {
        give_back(model->runtime, model->table);
        free(model);
        return rc;
    }
    *out = model;
    return 0;
}

/* One block for an output: its dims and then its vectors. */
typedef struct answer {
    int64_t dims[2];
    float vectors[];
} answer;

static int lookup_run(fs_model *model, uint32_t sig, enum fs_run_variant variant, const fs_tensor *inputs,
                      fs_tensor *outputs, fs_error *err)
{
    (void)sig;     /* there is only one, */
    (void)variant; /* and nothing is compiled */
    const table *t = model->table;
    if (inputs[0].ndim != 1)
        return fs_plugin_fail(err, FS_INVALID_ARGUMENT, "keys have one dimension, not %d", inputs[0].ndim);
    size_t keys = (size_t)inputs[0].elements;
    size_t bytes;
    if (__builtin_mul_overflow(keys, (size_t)t->dims * sizeof(float), &bytes) ||
        bytes > PTRDIFF_MAX - sizeof(answer))
        return fs_plugin_fail(err, FS_RESOURCE_EXHAUSTED, "%zu keys are too many", keys);
    answer *a = malloc(sizeof *a + bytes);
    if (a == NULL)
        return fs_plugin_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    const int64_t *key = inputs[0].data;
    for (size_t i = 0; i < keys; i++)
        memcpy(a->vectors + i * t->dims, find(t, key[i]), t->dims * sizeof(float));
    a->dims[0] = (int64_t)keys;
    a->dims[1] = t->dims;
    outputs[0] = (fs_tensor){
        .dtype = FS_DT_FLOAT,
        .ndim = 2,
        .dims = a->dims,
        .elements = (int64_t)(keys * t->dims),
        .data = a->vectors,
        .bytes = bytes,
        .handle = a,
    };
    return 0;
}

static void lookup_release(fs_tensor *output)
{
    free(output->handle);
    output->handle = NULL;
}

static void lookup_close(fs_model *model)
{
    give_back(model->runtime, model->table);
    free(model);
}

static int create(const fs_host *host, void **self, fs_error *err)
{
    (void)host; /* keys are not kept beyond a run */
    lookup_runtime *runtime = calloc(1, sizeof *runtime);
    if (runtime == NULL)
        return fs_plugin_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    pthread_mutex_init(&runtime->mutex, NULL);
    *self = runtime;
    return 0;
}

static void destroy(void *self)
{
    lookup_runtime *runtime = self;
    pthread_mutex_destroy(&runtime->mutex);
    free(runtime);
}

static const fs_runtime_ops OPS = {
    .name = "lookup",
    .open = lookup_open,
    .run = lookup_run,
    .release = lookup_release,
    .close = lookup_close,
};

const fs_plugin *fastserve_plugin(void)
{
    static const fs_plugin plugin = {
        .abi = FS_PLUGIN_ABI,
        .kind = FS_PLUGIN_RUNTIME,
        .name = "lookup",
        .runtime = {.ops = &OPS, .create = create, .destroy = destroy},
    };
    return &plugin;
}
