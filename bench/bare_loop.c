/* bare_loop: one thread calling TF_SessionRun, the yardstick of bench/run.py. A program of its own.
 *
 * It opens TensorFlow's libraries by dlopen, as the daemon does, opens a SavedModel with the ConfigProto
 * that it is given, and either runs batches of a given size as fast as one thread can (`--seconds`), or
 * runs one batch, frees all that it holds, reports its memory and waits until its standard input ends
 * (`--idle`). The inputs are built beforehand from files of recorded rows, `--batches` different batches
 * in turn, so that a run costs what TensorFlow costs and no cache sees one row twice in a row. Ops run in
 * the calling thread (RunOptions.inter_op_thread_pool = -1). Prints one JSON object.
 *
 *   bare_loop --library-dir DIR --model DIR --config HEX --batch N --seconds S --batches K
 *             --feed NAME:INDEX DTYPE ROW_BYTES ROW_DIM FILE ... --fetch NAME:INDEX ...
 *
 * ROW_DIM is the second dimension of the feed, 0 for a vector. Knows nothing of FastServe. */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAX_PORTS 64

/* The part of TensorFlow's C API that is called here, as tensorflow/c/c_api.h declares it. */
typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_Graph TF_Graph;
typedef struct TF_Session TF_Session;
typedef struct TF_SessionOptions TF_SessionOptions;
typedef struct TF_Operation TF_Operation;
typedef struct TF_Output {
    TF_Operation *oper;
    int index;
} TF_Output;
typedef struct TF_Buffer {
    const void *data;
    size_t length;
    void (*data_deallocator)(void *data, size_t length);
} TF_Buffer;

typedef struct api {
    TF_Status *(*new_status)(void);
    int (*get_code)(const TF_Status *);
    const char *(*message)(const TF_Status *);
    TF_Graph *(*new_graph)(void);
    TF_SessionOptions *(*new_session_options)(void);
    void (*set_config)(TF_SessionOptions *, const void *, size_t, TF_Status *);
    TF_Session *(*load)(const TF_SessionOptions *, const TF_Buffer *, const char *, const char *const *, int,
                        TF_Graph *, TF_Buffer *, TF_Status *);
    TF_Operation *(*operation)(TF_Graph *, const char *);
    TF_Tensor *(*new_tensor)(int, const int64_t *, int, void *, size_t, void (*)(void *, size_t, void *),
                             void *);
    void (*delete_tensor)(TF_Tensor *);
    void (*session_run)(TF_Session *, const TF_Buffer *, const TF_Output *, TF_Tensor *const *, int,
                        const TF_Output *, TF_Tensor **, int, const TF_Operation *const *, int, TF_Buffer *,
                        TF_Status *);
} api;

typedef struct feed {
    const char *name;
    int dtype;
    size_t row_bytes;
    int64_t row_dim;
    const char *file;
    uint8_t *rows;
    size_t n_rows;
} feed;

typedef struct options {
    const char *tensorflow_dir;
    const char *model;
    const char *config_hex;
    long batch;
    long batches;
    double seconds;
    bool idle;
    feed feeds[MAX_PORTS];
    int n_feeds;
    const char *fetches[MAX_PORTS];
    int n_fetches;
} options;

static _Noreturn void die(const char *what, const char *detail)
{
    fprintf(stderr, "bare_loop: %s: %s\n", what, detail);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static long rss_bytes(void)
{
    long total, resident;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &total, &resident) != 2)
        die("/proc/self/statm", "unreadable");
    fclose(f);
    return resident * sysconf(_SC_PAGESIZE);
}

static void parse_options(int argc, char **argv, options *o)
{
    memset(o, 0, sizeof *o);
    o->config_hex = "";
    o->batch = 1;
    o->batches = 1;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        int left = argc - 1 - i;
        if (!strcmp(arg, "--idle")) {
            o->idle = true;
        } else if (!strcmp(arg, "--feed")) {
            if (left < 5 || o->n_feeds == MAX_PORTS)
                die(arg, "takes NAME:INDEX DTYPE ROW_BYTES ROW_DIM FILE");
            feed *f = &o->feeds[o->n_feeds++];
            f->name = argv[i + 1];
            f->dtype = atoi(argv[i + 2]);
            f->row_bytes = (size_t)atol(argv[i + 3]);
            f->row_dim = atol(argv[i + 4]);
            f->file = argv[i + 5];
            i += 5;
        } else if (left < 1) {
            die(arg, "takes a value");
        } else if (!strcmp(arg, "--library-dir")) {
            o->tensorflow_dir = argv[++i];
        } else if (!strcmp(arg, "--model")) {
            o->model = argv[++i];
        } else if (!strcmp(arg, "--config")) {
            o->config_hex = argv[++i];
        } else if (!strcmp(arg, "--batch")) {
            o->batch = atol(argv[++i]);
        } else if (!strcmp(arg, "--batches")) {
            o->batches = atol(argv[++i]);
        } else if (!strcmp(arg, "--seconds")) {
            o->seconds = atof(argv[++i]);
        } else if (!strcmp(arg, "--fetch")) {
            if (o->n_fetches == MAX_PORTS)
                die(arg, "too many");
            o->fetches[o->n_fetches++] = argv[++i];
        } else {
            die(arg, "unknown option");
        }
    }
    if (!o->tensorflow_dir || !o->model)
        die("--library-dir and --model", "missing");
    if (!o->idle && (o->n_feeds == 0 || o->n_fetches == 0 || o->batch < 1 || o->batches < 1))
        die("--feed, --fetch, --batch or --batches", "missing");
}

static void read_rows(feed *f)
{
    FILE *file = fopen(f->file, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0)
        die(f->file, "cannot be read");
    long size = ftell(file);
    rewind(file);
    if (size <= 0 || f->row_bytes == 0 || (size_t)size % f->row_bytes != 0)
        die(f->file, "is not a whole number of rows");
    f->rows = malloc((size_t)size);
    if (!f->rows || fread(f->rows, 1, (size_t)size, file) != (size_t)size)
        die(f->file, "cannot be read");
    f->n_rows = (size_t)size / f->row_bytes;
    fclose(file);
}

static void *find(void *cc, void *framework, const char *name)
{
    void *symbol = dlsym(cc, name);
    if (!symbol)
        symbol = dlsym(framework, name);
    if (!symbol)
        die(name, "not in TensorFlow's libraries");
    return symbol;
}

static void open_api(const char *dir, api *tf)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/libtensorflow_framework.so.2", dir);
    void *framework = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!framework)
        die("dlopen", dlerror());
    snprintf(path, sizeof path, "%s/libtensorflow_cc.so.2", dir);
    void *cc = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!cc)
        die("dlopen", dlerror());
    /* POSIX lets an object pointer from dlsym be stored in a function pointer; ISO C has no cast for it. */
    *(void **)&tf->new_status = find(cc, framework, "TF_NewStatus");
    *(void **)&tf->get_code = find(cc, framework, "TF_GetCode");
    *(void **)&tf->message = find(cc, framework, "TF_Message");
    *(void **)&tf->new_graph = find(cc, framework, "TF_NewGraph");
    *(void **)&tf->new_session_options = find(cc, framework, "TF_NewSessionOptions");
    *(void **)&tf->set_config = find(cc, framework, "TF_SetConfig");
    *(void **)&tf->load = find(cc, framework, "TF_LoadSessionFromSavedModel");
    *(void **)&tf->operation = find(cc, framework, "TF_GraphOperationByName");
    *(void **)&tf->new_tensor = find(cc, framework, "TF_NewTensor");
    *(void **)&tf->delete_tensor = find(cc, framework, "TF_DeleteTensor");
    *(void **)&tf->session_run = find(cc, framework, "TF_SessionRun");
}

static size_t unhex(const char *hex, uint8_t *out, size_t room)
{
    size_t n = strlen(hex) / 2;
    if (n > room)
        die("--config", "too long");
    for (size_t i = 0; i < n; i++) {
        unsigned value;
        if (sscanf(hex + 2 * i, "%2x", &value) != 1)
            die("--config", "not hexadecimal");
        out[i] = (uint8_t)value;
    }
    return n;
}

static TF_Output resolve(const api *tf, TF_Graph *graph, const char *name)
{
    char op[512];
    TF_Output out = {NULL, 0};
    const char *colon = strrchr(name, ':');
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    if (length >= sizeof op)
        die(name, "name too long");
    memcpy(op, name, length);
    op[length] = 0;
    out.index = colon ? atoi(colon + 1) : 0;
    out.oper = tf->operation(graph, op);
    if (!out.oper)
        die(name, "not in the graph");
    return out;
}

static void free_batch(void *data, size_t length, void *arg)
{
    (void)length;
    (void)arg;
    free(data);
}

/* Batch number `k` of one feed: rows k * batch and on, from the file, round and round. The memory is ours and
 * lent, as the daemon's is: TensorFlow's allocator would keep what it once had. */
static TF_Tensor *make_batch(const api *tf, const feed *f, long batch, long k)
{
    int64_t dims[2] = {batch, f->row_dim};
    int ndim = f->row_dim > 0 ? 2 : 1;
    size_t bytes = (size_t)batch * f->row_bytes;
    uint8_t *data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (!data)
        die(f->name, "out of memory");
    for (long row = 0; row < batch; row++) {
        size_t from = (size_t)(k * batch + row) % f->n_rows;
        memcpy(data + (size_t)row * f->row_bytes, f->rows + from * f->row_bytes, f->row_bytes);
    }
    TF_Tensor *t = tf->new_tensor(f->dtype, dims, ndim, data, bytes, free_batch, NULL);
    if (!t)
        die(f->name, "not a tensor");
    return t;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void wait_idle(void)
{
    printf("{\"rss_bytes\": %ld}\n", rss_bytes());
    fflush(stdout);
    while (getchar() != EOF)
        ;
}

int main(int argc, char **argv)
{
    /* RunOptions{inter_op_thread_pool: -1}: field 3, the varint of -1. */
    static const uint8_t run_options[] = {0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01};
    TF_Buffer in_caller = {run_options, sizeof run_options, NULL};
    static options o;
    static api tf;
    uint8_t config[2048];
    const char *tags[] = {"serve"};
    TF_Output feeds[MAX_PORTS], fetches[MAX_PORTS];
    TF_Tensor *outputs[MAX_PORTS];

    parse_options(argc, argv, &o);
    setenv("TF_CPP_MIN_LOG_LEVEL", "3", 0);
    open_api(o.tensorflow_dir, &tf);

    TF_Status *status = tf.new_status();
    TF_SessionOptions *session_options = tf.new_session_options();
    tf.set_config(session_options, config, unhex(o.config_hex, config, sizeof config), status);
    if (tf.get_code(status) != 0)
        die("--config", tf.message(status));
    TF_Graph *graph = tf.new_graph();
    TF_Session *session =
        tf.load(session_options, &in_caller, o.model, tags, 1, graph, NULL, status);
    if (tf.get_code(status) != 0)
        die(o.model, tf.message(status));

    if (o.idle && o.n_feeds == 0) {
        wait_idle();
        return 0;
    }

    TF_Tensor **inputs = calloc((size_t)(o.batches * o.n_feeds), sizeof *inputs);
    if (!inputs)
        die("inputs", "out of memory");
    for (int i = 0; i < o.n_feeds; i++) {
        read_rows(&o.feeds[i]);
        feeds[i] = resolve(&tf, graph, o.feeds[i].name);
        for (long k = 0; k < o.batches; k++)
            inputs[k * o.n_feeds + i] = make_batch(&tf, &o.feeds[i], o.batch, k);
    }
    for (int i = 0; i < o.n_fetches; i++)
        fetches[i] = resolve(&tf, graph, o.fetches[i]);

    size_t room = 1 << 20, runs = 0;
    double *took = malloc(room * sizeof *took);
    double warm_until = now_s() + (o.idle ? 0.0 : 0.3), started = 0.0, cpu_started = 0.0, end;
    if (!took)
        die("times", "out of memory");
    for (long k = 0;; k = (k + 1) % o.batches) {
        double before = now_s();
        memset(outputs, 0, sizeof outputs);
        tf.session_run(session, &in_caller, feeds, inputs + k * o.n_feeds, o.n_feeds, fetches, outputs,
                       o.n_fetches, NULL, 0, NULL, status);
        if (tf.get_code(status) != 0)
            die("TF_SessionRun", tf.message(status));
        for (int i = 0; i < o.n_fetches; i++)
            tf.delete_tensor(outputs[i]);
        end = now_s();
        if (started == 0.0) {
            if (end >= warm_until) {
                started = end;
                cpu_started = cpu_s();
                if (o.idle)
                    break;
            }
            continue;
        }
        if (runs < room)
            took[runs] = end - before;
        runs++;
        if (end - started >= o.seconds)
            break;
    }
    if (o.idle) {
        for (long k = 0; k < o.batches * o.n_feeds; k++)
            tf.delete_tensor(inputs[k]);
        for (int i = 0; i < o.n_feeds; i++)
            free(o.feeds[i].rows);
        wait_idle();
        return 0;
    }
    double wall = end - started;
    size_t kept = runs < room ? runs : room;
    qsort(took, kept, sizeof *took, compare_doubles);
    printf("{\"batch\": %ld, \"runs\": %zu, \"seconds\": %.6f, \"rows_per_s\": %.1f, \"run_us_mean\": %.2f, "
           "\"run_us_min\": %.2f, \"run_us_median\": %.2f, \"cpu_s\": %.6f, \"rss_bytes\": %ld}\n",
           o.batch, runs, wall, (double)runs * (double)o.batch / wall, wall * 1e6 / (double)runs,
           took[0] * 1e6, took[kept / 2] * 1e6, cpu_s() - cpu_started, rss_bytes());
    free(took);
    return 0;
}
