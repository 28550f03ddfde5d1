/* test_tf: csrc/tf.c against the stub library beside this program. */
#include "slab.h"
#include "text.h"
#include "tf.h"
#include "tf_lists.h"

#include "check.h"
#include "failmalloc.h"

#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <unistd.h>

static char beside[PATH_MAX]; /* the directory of this program */
static char stub_dir[PATH_MAX];
static char other_dir[PATH_MAX];
static long (*live)(void);
static long (*pool_loads)(void);
static long (*empty_sessions)(void);
static long (*target_runs)(void);
static long (*op_libraries)(void);

/* ---- a directory that looks like TensorFlow's --------------------------------------------- */

static void link_libraries(char *dir, const char *library)
{
    static const char *const names[] = {"libtensorflow_framework.so.2", "libtensorflow_cc.so.2"};
    strcpy(dir, "/tmp/fastserve-test-tf-XXXXXX");
    REQUIRE(mkdtemp(dir) != NULL);
    for (int i = 0; i < 2; i++) {
        char path[PATH_MAX + 64];
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        REQUIRE(symlink(library, path) == 0);
    }
}

static void unlink_libraries(const char *dir)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/libtensorflow_framework.so.2", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/libtensorflow_cc.so.2", dir);
    unlink(path);
    rmdir(dir);
}

static void set_up(void)
{
    ssize_t len = readlink("/proc/self/exe", beside, sizeof beside - 1);
    REQUIRE(len > 0);
    beside[len] = '\0';
    *strrchr(beside, '/') = '\0';
    char stub[PATH_MAX + 16];
    snprintf(stub, sizeof stub, "%s/stub_tf.so", beside);
    link_libraries(stub_dir, stub);
    void *library = dlopen(stub, RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library != NULL);
    void *symbols[] = {dlsym(library, "stub_tf_live"), dlsym(library, "stub_tf_pool_loads"),
                       dlsym(library, "stub_tf_empty_sessions"), dlsym(library, "stub_tf_target_runs"),
                       dlsym(library, "stub_tf_op_libraries")};
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++)
        REQUIRE(symbols[i] != NULL);
    memcpy(&live, &symbols[0], sizeof live);
    memcpy(&pool_loads, &symbols[1], sizeof pool_loads);
    memcpy(&empty_sessions, &symbols[2], sizeof empty_sessions);
    memcpy(&target_runs, &symbols[3], sizeof target_runs);
    memcpy(&op_libraries, &symbols[4], sizeof op_libraries);

    Dl_info info;
    REQUIRE(dladdr(dlsym(RTLD_DEFAULT, "getenv"), &info) != 0);
    link_libraries(other_dir, info.dli_fname); /* a library, but not TensorFlow's */
}

static void tear_down(void)
{
    unlink_libraries(stub_dir);
    unlink_libraries(other_dir);
}

/* ---- models ------------------------------------------------------------------------------ */

enum { WIDE = 40 };

static int64_t unknown[1] = {-1};
static fs_port one_in[] = {{"x", "x0:0", FS_DT_FLOAT, 1, unknown}};
static fs_port one_out[] = {{"y", "call:0", FS_DT_FLOAT, 1, unknown}};
static char *one_compiled[] = {"call__compiled:0"};
static fs_port two_in[] = {{"a", "x1", FS_DT_STRING, 1, unknown}, {"b", "x2:0", FS_DT_INT64, 1, unknown}};
static fs_port two_out[] = {{"p", "call", FS_DT_STRING, 1, unknown},
                            {"q", "call:1", FS_DT_INT64, 1, unknown}};
static fs_port noop_out[] = {{"init", "NoOp", 0, -1, NULL}};
static fs_port absent_out[] = {{"y", "absent:0", FS_DT_FLOAT, -1, NULL}};
static fs_port odd_out[] = {{"y", "call:many", FS_DT_FLOAT, -1, NULL}};
static fs_port keep_out[] = {{"y", "keep:0", FS_DT_FLOAT, -1, NULL}};
static fs_port half_out[] = {{"p", "call:0", FS_DT_FLOAT, -1, NULL},
                             {"q", "variant:0", FS_DT_VARIANT, -1, NULL},
                             {"r", "call:0", FS_DT_FLOAT, -1, NULL}};
static fs_port wide_in[WIDE];
static fs_port wide_out[WIDE];
static char wide_names[2][WIDE][24];

enum { ONE, TWO, NOOP, ABSENT, ODD, KEEP, HALF, WIDE_SIG, SIGNATURES };

static fs_signature signatures[SIGNATURES] = {
    [ONE] = {"one", one_in, 1, one_out, 1, one_compiled},
    [TWO] = {"two", two_in, 2, two_out, 2, NULL},
    [NOOP] = {"noop", NULL, 0, noop_out, 1, NULL},
    [ABSENT] = {"absent", one_in, 1, absent_out, 1, NULL},
    [ODD] = {"odd", one_in, 1, odd_out, 1, NULL},
    [KEEP] = {"keep", one_in, 1, keep_out, 1, NULL},
    [HALF] = {"half", one_in, 1, half_out, 3, NULL},
    [WIDE_SIG] = {"wide", wide_in, WIDE, wide_out, WIDE, NULL},
};

static const char *tags[] = {"serve"};

static fs_model_spec spec_of(const char *path)
{
    for (int i = 0; i < WIDE; i++) {
        snprintf(wide_names[0][i], sizeof wide_names[0][i], "x%d:0", i);
        snprintf(wide_names[1][i], sizeof wide_names[1][i], "call:%d", i);
        wide_in[i] = (fs_port){"x", wide_names[0][i], FS_DT_FLOAT, 1, unknown};
        wide_out[i] = (fs_port){"y", wide_names[1][i], FS_DT_FLOAT, 1, unknown};
    }
    return (fs_model_spec){
        .path = path, .tags = tags, .n_tags = 1, .signatures = signatures, .n_signatures = SIGNATURES};
}

static fs_runtime open_runtime(void)
{
    fs_runtime runtime;
    fs_error err;
    int rc = fs_runtime_tensorflow(stub_dir, &runtime, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.msg);
    REQUIRE(rc == 0);
    return runtime;
}

static fs_model *open_model(const fs_runtime *runtime)
{
    fs_model_spec spec = spec_of("/models/m/1");
    fs_model *model = NULL;
    REQUIRE(runtime->ops->open(runtime->self, &spec, &model, NULL) == 0);
    return model;
}

/* A tensor of `n` floats in a buffer of its own, i + `first` at i. */
static fs_tensor floats(fs_slab *slab, int64_t *dims, float first)
{
    fs_tensor t = {.dtype = FS_DT_FLOAT, .ndim = 1, .dims = dims, .elements = dims[0]};
    t.bytes = (size_t)dims[0] * sizeof(float);
    t.buf = fs_buf_new(slab, t.bytes);
    REQUIRE(t.buf != NULL);
    t.data = t.buf->data;
    for (int64_t i = 0; i < dims[0]; i++)
        ((float *)t.data)[i] = first + (float)i;
    return t;
}

/* ---- tests ------------------------------------------------------------------------------- */

static void test_library_that_is_not_there(void)
{
    fs_runtime runtime;
    fs_error err;
    CHECK_EQ(fs_runtime_tensorflow("/nowhere", &runtime, &err), -FS_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "/nowhere/libtensorflow_framework.so.2") != NULL);
    CHECK_EQ(fs_runtime_tensorflow(other_dir, &runtime, &err), -FS_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "have no TF_Version") != NULL);
    CHECK_EQ(fs_runtime_tensorflow("/nowhere", &runtime, NULL), -FS_FAILED_PRECONDITION);
}

static void test_version_and_name(void)
{
    fs_runtime runtime = open_runtime();
    CHECK_STR(fs_runtime_tensorflow_version(&runtime), "0.0.stub");
    CHECK_STR(runtime.ops->name, "tensorflow");
    fs_runtime_tensorflow_free(&runtime);
    fs_runtime_tensorflow_free(&runtime); /* what was never opened, or is freed, is fine */
    CHECK_EQ(live(), 0);
}

static void test_run_plain_and_compiled(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {3};
    fs_tensor in = floats(slab, dims, 10.0f), out = {0};
    for (int compiled = 0; compiled < 2; compiled++) {
        fs_error err;
        CHECK_OK(runtime.ops->run(model, ONE, compiled ? FS_RUN_COMPILED : FS_RUN_PLAIN, &in, &out, &err));
        CHECK_EQ(out.dtype, FS_DT_FLOAT);
        CHECK_EQ(out.ndim, 1);
        CHECK_EQ(out.dims[0], 3);
        CHECK_EQ(out.elements, 3);
        CHECK_EQ(out.bytes, 12);
        for (int i = 0; i < 3; i++)
            CHECK(((float *)out.data)[i] == 0.5f * (10.0f + (float)i) + 2.0f + (compiled ? 1000.0f : 0.0f));
        runtime.ops->release(&out);
        CHECK(out.handle == NULL);
    }
    CHECK_EQ(atomic_load(&in.buf->refs), 1);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_second_session_serves_plain_runs(void)
{
    fs_runtime runtime = open_runtime();
    fs_slab *slab = fs_slab_new(1 << 20);
    fs_model_spec spec = spec_of("/models/m/1");
    uint8_t clustered = 16, plain = 32;
    spec.session_config = (fs_slice){&clustered, 1};
    spec.plain_config = (fs_slice){&plain, 1};
    spec.second_session_plain = true;
    fs_model *model;
    REQUIRE(runtime.ops->open(runtime.self, &spec, &model, NULL) == 0);
    int64_t dims[] = {1};
    fs_tensor in = floats(slab, dims, 0.0f), out;
    CHECK_OK(runtime.ops->run(model, KEEP, FS_RUN_PLAIN, &in, &out, NULL));
    runtime.ops->release(&out);
    signatures[ONE].compiled_outputs = NULL; /* cluster mode: the same fetches in either session */
    fs_model *clustered_model;
    REQUIRE(runtime.ops->open(runtime.self, &spec, &clustered_model, NULL) == 0);
    signatures[ONE].compiled_outputs = one_compiled;
    CHECK_OK(runtime.ops->run(clustered_model, ONE, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK(*(float *)out.data == 2.0f + 32.0f);
    runtime.ops->release(&out);
    CHECK_OK(runtime.ops->run(clustered_model, ONE, FS_RUN_COMPILED, &in, &out, NULL));
    CHECK(*(float *)out.data == 2.0f + 16.0f);
    runtime.ops->release(&out);
    runtime.ops->close(model);
    runtime.ops->close(clustered_model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

/* ConfigProto{experimental{executor_type, and what follows}}. */
#define SINGLE "\x82\x01\x1a\x1a\x18SINGLE_THREADED_EXECUTOR"

/* With the executor for one thread an error gets its node from a second run, where the graph can be added to. */
static void test_errors_name_their_node(void)
{
    static const char named[] = "{{function_node g}} not a number\n\t [[{{function_node f}}{{node Sum}}]]";
    static const struct {
        const char *config;
        size_t len;
        const char *path;
        bool explained;
    } cases[] = {
        {SINGLE, sizeof SINGLE - 1, "/models/m/1", true},
        {"\x10\x05" SINGLE, sizeof SINGLE + 1, "/models/m/1", true},
        {"SINGLE_THREADED_EXECUTOR", 24, "/models/m/1", false},
        {"\x82\x01\x1c\x1a\x18SINGLE_THREADED_EXECUTOR\x60\x01", 31, "/models/m/1", false}, /* a static graph */
        {"\x82\x01\x1c\x1a\x18SINGLE_THREADED_EXECUTOR\x60\x00", 31, "/models/m/1", true},
        {SINGLE "\xff", sizeof SINGLE, "/models/m/1", true},       /* TensorFlow would not have opened that */
        {"\x82\x01\x1b\x1a\x18SINGLE_THREADED_EXECUTOR", 29, "/models/m/1", false}, /* cut short */
        {"\x82\x01\x02\x1a\x05", 5, "/models/m/1", false},
        {SINGLE, sizeof SINGLE - 1, "/models/picky/1", false},
        {SINGLE, sizeof SINGLE - 1, "/models/ordered/1", false},
    };
    fs_runtime runtime = open_runtime();
    fs_slab *slab = fs_slab_new(1 << 20);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        fs_model_spec spec = spec_of(cases[c].path);
        spec.session_config = (fs_slice){(const uint8_t *)cases[c].config, cases[c].len};
        fs_model *model;
        REQUIRE(runtime.ops->open(runtime.self, &spec, &model, NULL) == 0);
        int64_t dims[] = {1};
        fs_tensor in = floats(slab, dims, NAN), out[WIDE];
        fs_error err, more;
        for (int round = 0; round < 2; round++) {
            CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, out, &err), -FS_INVALID_ARGUMENT);
            CHECK(strstr(err.msg, "nnnn") != NULL); /* cut, and so as it is */
            runtime.explain(model, ONE, &in, &err);
            CHECK(strstr(err.msg, "nnnn") != NULL);
            fs_fail(&err, FS_INVALID_ARGUMENT, "not a number");
            runtime.explain(model, ONE, &in, &err);
            CHECK_EQ(err.code, FS_INVALID_ARGUMENT);
            CHECK_STR(err.msg, cases[c].explained ? named : "not a number");
        }
        more = err; /* what names its node has no more to say, */
        runtime.explain(model, ONE, &in, &err);
        CHECK_STR(err.msg, more.msg);
        fs_fail(&err, FS_RESOURCE_EXHAUSTED, "out of memory"); /*   nor what comes from elsewhere, */
        runtime.explain(model, ONE, &in, &err);
        CHECK_STR(err.msg, "out of memory");
        fs_fail(&err, FS_INTERNAL, "another"); /*   nor what is not what it was; */
        runtime.explain(model, ONE, &in, &err);
        CHECK_STR(err.msg, "another");
        fs_fail(&err, FS_INVALID_ARGUMENT, "of two"); /*   outputs of several operations have no twin */
        runtime.explain(model, HALF, &in, &err);
        CHECK_STR(err.msg, "of two");
        /* What has failed stays failed, whatever becomes of the second run. */
        *(float *)in.data = INFINITY;
        CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, out, &err), -FS_INVALID_ARGUMENT);
        runtime.explain(model, ONE, &in, &err);
        CHECK_EQ(err.code, FS_INVALID_ARGUMENT);
        CHECK_STR(err.msg, "only once");
        *(float *)in.data = 1.0f;
        CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, out, &err));
        runtime.ops->release(out);
        CHECK_EQ(atomic_load(&in.buf->refs), 1);
        runtime.ops->close(model);
        fs_buf_unref(in.buf);
    }
    fs_slab_release(slab);
    fs_runtime_tensorflow_free(&runtime);
    CHECK_EQ(live(), 0);
}

static void test_priming_opens_and_closes_an_empty_session(void)
{
    fs_runtime runtime = open_runtime();
    fs_error err;
    uint8_t config[] = {16}, garbage[] = {0xff}, no_devices[] = {0xfe};
    long before = empty_sessions();
    CHECK_OK(fs_runtime_tensorflow_prime(&runtime, (fs_slice){config, 1}, &err));
    CHECK_OK(fs_runtime_tensorflow_prime(&runtime, (fs_slice){0}, &err));
    CHECK_EQ(empty_sessions() - before, 2);
    CHECK_EQ(fs_runtime_tensorflow_prime(&runtime, (fs_slice){garbage, 1}, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "Unparseable ConfigProto");
    CHECK_EQ(fs_runtime_tensorflow_prime(&runtime, (fs_slice){no_devices, 1}, &err), -FS_INTERNAL);
    CHECK_STR(err.msg, "no devices");
    fs_model *model = open_model(&runtime); /* a failure does not stick */
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    CHECK_EQ(live(), 0);
}

static void test_op_libraries_are_loaded_or_named(void)
{
    fs_runtime runtime = open_runtime();
    fs_error err;
    CHECK_OK(fs_runtime_tensorflow_op_library(&runtime, "/ops/mine.so", &err));
    CHECK_EQ(op_libraries(), 1);
    CHECK_EQ(fs_runtime_tensorflow_op_library(&runtime, "/ops/missing.so", &err), -FS_NOT_FOUND);
    CHECK_STR(err.msg, "the op library /ops/missing.so cannot be loaded: /ops/missing.so: cannot open shared "
                       "object file: No such file or directory");
    CHECK_EQ(fs_runtime_tensorflow_op_library(&runtime, "/ops/missing.so", NULL), -FS_NOT_FOUND);
    CHECK_OK(fs_runtime_tensorflow_op_library(&runtime, "/ops/other.so", &err)); /* a failure does not stick */
    fs_runtime_tensorflow_free(&runtime);
    CHECK_EQ(live(), 0);
}

static void test_values_can_be_restored_in_the_pool(void)
{
    for (int in_pool = 0; in_pool < 2; in_pool++) {
        fs_runtime runtime = open_runtime();
        if (in_pool)
            fs_runtime_tensorflow_restore_in_pool(&runtime);
        long before = pool_loads();
        fs_model *model = open_model(&runtime);
        CHECK_EQ(pool_loads() - before, in_pool);
        runtime.ops->close(model);
        fs_runtime_tensorflow_free(&runtime);
    }
    CHECK_EQ(live(), 0);
}

/* Empty strings, with and without an address, short ones, and one that is long. */
static void test_strings_are_copied(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    char text[] = "abc", large[5000];
    memset(large, 'l', sizeof large);
    int64_t dims[] = {4};
    fs_slice slices[4] = {
        {NULL, 0}, {(uint8_t *)text, 0}, {(uint8_t *)text, 3}, {(uint8_t *)large, sizeof large}};
    int64_t numbers[4] = {1, 2, 3, INT64_MIN};
    fs_tensor in[2] = {{.dtype = FS_DT_STRING, .ndim = 1, .dims = dims, .elements = 4, .data = slices,
                        .bytes = sizeof slices},
                       {.dtype = FS_DT_INT64, .ndim = 1, .dims = dims, .elements = 4, .data = numbers,
                        .bytes = sizeof numbers}};
    fs_tensor out[2];
    CHECK_OK(runtime.ops->run(model, TWO, FS_RUN_COMPILED, in, out, NULL)); /* no twin: the plain fetches */
    memset(text, '#', 3);
    memset(large, '#', sizeof large);
    CHECK_EQ(out[0].dtype, FS_DT_STRING);
    CHECK_EQ(out[0].bytes, 4 * sizeof(fs_slice));
    const fs_slice *got = out[0].data;
    CHECK_EQ(got[0].len, 0);
    CHECK_EQ(got[1].len, 0);
    CHECK_EQ(got[2].len, 3);
    CHECK_MEM(got[2].data, "abc", 3);
    CHECK_EQ(got[3].len, sizeof large);
    CHECK(got[3].data[0] == 'l' && got[3].data[sizeof large - 1] == 'l');
    CHECK_MEM(out[1].data, numbers, sizeof numbers); /* given without a buffer: copied */
    for (int i = 0; i < 2; i++)
        runtime.ops->release(&out[i]);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_shapes_of_all_sizes(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    fs_tensor out;

    int64_t none[] = {0};
    fs_tensor empty = floats(slab, none, 0.0f);
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &empty, &out, NULL));
    CHECK_EQ(out.elements, 0);
    CHECK_EQ(out.bytes, 0);
    runtime.ops->release(&out);
    fs_buf_unref(empty.buf);
    empty = (fs_tensor){.dtype = FS_DT_FLOAT, .ndim = 1, .dims = none}; /* no memory at all */
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &empty, &out, NULL));
    runtime.ops->release(&out);
    fs_tensor no_strings[2] = {{.dtype = FS_DT_STRING, .ndim = 1, .dims = none},
                               {.dtype = FS_DT_INT64, .ndim = 1, .dims = none}};
    fs_tensor two[2];
    CHECK_OK(runtime.ops->run(model, TWO, FS_RUN_PLAIN, no_strings, two, NULL));
    CHECK_EQ(two[0].elements, 0);
    runtime.ops->release(&two[0]);
    runtime.ops->release(&two[1]);

    int64_t one[] = {1};
    fs_tensor scalar = floats(slab, one, 4.0f);
    scalar.ndim = 0;
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &scalar, &out, NULL));
    CHECK_EQ(out.ndim, 0);
    CHECK_EQ(out.elements, 1);
    CHECK(*(float *)out.data == 4.0f);
    runtime.ops->release(&out);
    fs_buf_unref(scalar.buf);

    int64_t many[FS_MAX_DIMS];
    for (int i = 0; i < FS_MAX_DIMS; i++)
        many[i] = 1;
    fs_tensor deep = floats(slab, one, 4.0f);
    deep.ndim = FS_MAX_DIMS;
    deep.dims = many;
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &deep, &out, NULL));
    CHECK_EQ(out.ndim, FS_MAX_DIMS);
    runtime.ops->release(&out);
    fs_buf_unref(deep.buf);

    int64_t three[] = {3}, two_rows[] = {2};
    fs_tensor whole = floats(slab, three, 4.0f);
    fs_tensor rest = whole; /* from the second row on: misaligned, so TensorFlow copies */
    rest.dims = two_rows;
    rest.elements = 2;
    rest.bytes = 8;
    rest.data = (float *)whole.data + 1;
    CHECK_OK(runtime.ops->run(model, KEEP, FS_RUN_PLAIN, &rest, &out, NULL));
    CHECK_EQ(atomic_load(&whole.buf->refs), 1);
    CHECK(((float *)out.data)[0] == 5.0f);
    runtime.ops->release(&out);
    fs_buf_unref(whole.buf);

    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_input_memory_lives_as_long_as_tensorflow_holds_it(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {5};
    fs_tensor in = floats(slab, dims, 1.0f), out;
    CHECK_OK(runtime.ops->run(model, KEEP, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK(out.data == in.data);
    CHECK_EQ(atomic_load(&in.buf->refs), 2);
    fs_buf_unref(in.buf); /* as the caller does once it has its outputs */
    CHECK(((float *)out.data)[4] == 5.0f);
    runtime.ops->release(&out);
    runtime.ops->close(model); /* the session holds the last reference */
    fs_runtime_tensorflow_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_failures_leave_nothing_behind(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {2};
    fs_tensor in = floats(slab, dims, 0.0f), out[3];
    fs_error err;

    CHECK_EQ(runtime.ops->run(model, NOOP, FS_RUN_PLAIN, NULL, out, &err), -FS_OUT_OF_RANGE);
    CHECK_STR(err.msg, "Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0");
    CHECK_EQ(runtime.ops->run(model, ABSENT, FS_RUN_PLAIN, &in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "Tensor absent:0, specified in either feed_devices or fetch_devices") == err.msg);
    CHECK_EQ(runtime.ops->run(model, ODD, FS_RUN_PLAIN, &in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_EQ(runtime.ops->run(model, HALF, FS_RUN_PLAIN, &in, out, &err), -FS_UNIMPLEMENTED);
    CHECK_STR(err.msg, "output 'q' is a tensor of type variant, which cannot be served");

    ((float *)in.data)[1] = NAN;
    CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_EQ(err.len, FS_MESSAGE_MAX + strlen(FS_MESSAGE_MARK));
    CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, out, NULL), -FS_INVALID_ARGUMENT);
    ((float *)in.data)[1] = 1.0f;
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, out, &err)); /* a failure does not stick */
    runtime.ops->release(out);
    CHECK_EQ(atomic_load(&in.buf->refs), 1);
    runtime.ops->close(model);

    fs_model_spec spec = spec_of("/models/missing/1");
    CHECK_EQ(runtime.ops->open(runtime.self, &spec, &model, &err), -FS_NOT_FOUND);
    CHECK(strstr(err.msg, "Could not find SavedModel") == err.msg);
    spec = spec_of("/models/m/1");
    uint8_t garbage = 0xff;
    spec.session_config = (fs_slice){&garbage, 1};
    CHECK_EQ(runtime.ops->open(runtime.self, &spec, &model, &err), -FS_INVALID_ARGUMENT);
    spec.session_config = (fs_slice){0};
    spec.second_session_plain = true;
    spec.plain_config = (fs_slice){&garbage, 1};
    CHECK_EQ(runtime.ops->open(runtime.self, &spec, &model, &err), -FS_INVALID_ARGUMENT);
    spec = spec_of("/models/m/1");
    CHECK_OK(runtime.ops->open(runtime.self, &spec, &model, &err)); /* nor does one of opening */
    runtime.ops->close(model);

    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static fs_named_run named(const fs_slice *feed, const fs_tensor *input, const fs_slice *fetches, uint32_t n)
{
    return (fs_named_run){.feeds = feed, .inputs = input, .n_feeds = 1, .fetches = fetches, .n_fetches = n};
}

static void test_runs_by_name(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {2};
    fs_tensor in = floats(slab, dims, 1.0f), out[2];
    fs_error err;
    fs_slice feed = fs_slice_of("x7"), fetches[] = {fs_slice_of("call__compiled:0"), fs_slice_of("call")};
    fs_slice target = fs_slice_of("NoOp");
    fs_named_run run = named(&feed, &in, fetches, 2);
    long before = target_runs();
    CHECK_OK(runtime.run_named(model, &run, out, &err));
    CHECK(((float *)out[0].data)[1] == 0.5f * 2.0f + 2.0f + 1000.0f);
    CHECK(((float *)out[1].data)[1] == 0.5f * 2.0f + 2.0f);
    runtime.ops->release(&out[0]);
    runtime.ops->release(&out[1]);
    CHECK_EQ(target_runs() - before, 0);
    run.targets = &target;
    run.n_targets = 1;
    CHECK_OK(runtime.run_named(model, &run, out, &err));
    runtime.ops->release(&out[0]);
    runtime.ops->release(&out[1]);
    run.n_fetches = 0;
    CHECK_OK(runtime.run_named(model, &run, out, &err));
    CHECK_EQ(target_runs() - before, 2);
    CHECK_EQ(atomic_load(&in.buf->refs), 1);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_runs_by_name_are_plain(void)
{
    fs_runtime runtime = open_runtime();
    fs_slab *slab = fs_slab_new(1 << 20);
    fs_model_spec spec = spec_of("/models/m/1");
    uint8_t clustered = 16, plain = 32;
    spec.session_config = (fs_slice){&clustered, 1};
    spec.plain_config = (fs_slice){&plain, 1};
    spec.second_session_plain = true;
    fs_model *model;
    REQUIRE(runtime.ops->open(runtime.self, &spec, &model, NULL) == 0);
    int64_t dims[] = {1};
    fs_tensor in = floats(slab, dims, 0.0f), out;
    fs_error err;
    fs_slice feed = fs_slice_of("x0:0"), fetch = fs_slice_of("call:0");
    fs_named_run run = named(&feed, &in, &fetch, 1);
    CHECK_OK(runtime.run_named(model, &run, &out, &err));
    CHECK(*(float *)out.data == 2.0f + 32.0f);
    runtime.ops->release(&out);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_names_that_are_not_there(void)
{
#define ABSENT_TEXT(name) "Tensor " name ", specified in either feed_devices or fetch_devices was not found in the Graph"
    static const struct {
        const char *feed, *fetch, *target;
        int code;
        const char *text;
    } cases[] = {
        {"absent:0", "call:0", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT("absent:0")},
        {"x0:0", "absent", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT("absent")},
        {"x0:0", "", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT("")},
        {"x0:0", ":0", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT(":0")},
        {"x0:0", "call:", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT("call:")},
        {"x0:0", "call:-1", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT("call:-1")},
        {"x0:0", "call:99999999999", NULL, FS_INVALID_ARGUMENT, ABSENT_TEXT("call:99999999999")},
        {"x0:1", "call:0", NULL, FS_OUT_OF_RANGE,
         "Node 'x0' (type: 'x0', num of outputs: 1) does not have output 1"},
        {"x0:0", "call:0", "nowhere", FS_NOT_FOUND, "PruneForTargets: Some target nodes not found: nowhere"},
        {"x0:0", "call:0", "", FS_NOT_FOUND, "PruneForTargets: Some target nodes not found: "},
        {"x0:0", "variant:0", NULL, FS_UNIMPLEMENTED,
         "output 'variant:0' is a tensor of type variant, which cannot be served"},
    };
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {1};
    fs_tensor in = floats(slab, dims, 0.0f), out;
    fs_error err;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        fs_slice feed = fs_slice_of(cases[i].feed), fetch = fs_slice_of(cases[i].fetch);
        fs_slice target = fs_slice_of(cases[i].target != NULL ? cases[i].target : "");
        fs_named_run run = named(&feed, &in, &fetch, 1);
        run.targets = &target;
        run.n_targets = cases[i].target != NULL;
        CHECK_EQ(runtime.run_named(model, &run, &out, &err), -cases[i].code);
        CHECK_STR(err.msg, cases[i].text);
    }
    fs_slice feed = {(const uint8_t *)"x0\0:0", 5}, fetch = fs_slice_of("call:0"); /* a NUL within */
    fs_named_run run = named(&feed, &in, &fetch, 1);
    CHECK_EQ(runtime.run_named(model, &run, &out, &err), -FS_INVALID_ARGUMENT);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_runs_by_name_may_have_so_many_lists(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {1};
    fs_tensor in = floats(slab, dims, 0.0f), out;
    fs_error err;
    fs_slice feed = fs_slice_of("x0:0"), nothing = fs_slice_of("absent:0");
    fs_named_run absent = named(&feed, &in, &nothing, 1);
    for (int round = 0; round < 2; round++) { /* those of the first are known in the second */
        for (int i = 0; i < FS_TF_LISTS_MAX + 3; i++) {
            char name[32];
            snprintf(name, sizeof name, "call:%d", i);
            fs_slice fetch = fs_slice_of(name);
            fs_named_run run = named(&feed, &in, &fetch, 1);
            bool fits = i < FS_TF_LISTS_MAX;
            CHECK_EQ(runtime.run_named(model, &run, &out, &err), fits ? 0 : -FS_RESOURCE_EXHAUSTED);
            if (fits)
                runtime.ops->release(&out);
            else
                CHECK(strstr(err.msg, "64 different lists of feeds, fetches and targets") != NULL);
            /* What is not there takes no room. */
            CHECK_EQ(runtime.run_named(model, &absent, &out, &err), -FS_INVALID_ARGUMENT);
        }
    }
    /* Signatures are not concerned, nor is another version. */
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, &err));
    runtime.ops->release(&out);
    fs_model *other = open_model(&runtime);
    fs_slice fetch = fs_slice_of("call:99");
    fs_named_run run = named(&feed, &in, &fetch, 1);
    CHECK_OK(runtime.run_named(other, &run, &out, &err));
    runtime.ops->release(&out);
    runtime.ops->close(other);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_a_traced_run_answers_as_others_do_and_tells(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {2};
    fs_tensor in = floats(slab, dims, 4.0f), out;
    fs_error err;
    static const struct {
        unsigned what;
        uint8_t level, graphs;
    } cases[] = {
        {0, 1, 0},
        {FS_TF_TRACE_GRAPHS, 1, 1},
        {FS_TF_TRACE_DEVICES, 3, 0},
        {FS_TF_TRACE_DEVICES | FS_TF_TRACE_GRAPHS, 3, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int compiled = 0; compiled < 2; compiled++) {
            fs_tf_metadata told;
            CHECK_OK(fs_runtime_tensorflow_run_traced(model, ONE, compiled ? FS_RUN_COMPILED : FS_RUN_PLAIN,
                                                      cases[i].what, &in, &out, &told, &err));
            CHECK(((float *)out.data)[1] == 0.5f * 5.0f + 2.0f + (compiled ? 1000.0f : 0.0f));
            const uint8_t expected[] = {0x08, cases[i].level, 0x18, 255, 255, 255, 255,  255,
                                        255,  255,            255,  255, 1,   0x28, cases[i].graphs};
            CHECK_EQ(told.bytes.len, sizeof expected);
            CHECK(memcmp(told.bytes.data, expected, sizeof expected) == 0);
            runtime.ops->release(&out);
            fs_runtime_tensorflow_metadata_free(model, &told);
            CHECK(told.handle == NULL);
            fs_runtime_tensorflow_metadata_free(model, &told); /* nothing is left to be given back */
        }
    }
    /* A run that fails tells nothing, and the next one is as ever. */
    fs_tf_metadata untouched = {.handle = &in};
    *(float *)in.data = NAN;
    CHECK_EQ(fs_runtime_tensorflow_run_traced(model, ONE, FS_RUN_PLAIN, 0, &in, &out, &untouched, &err),
             -FS_INVALID_ARGUMENT);
    CHECK(untouched.handle == &in);
    CHECK_EQ(fs_runtime_tensorflow_run_traced(model, ABSENT, FS_RUN_PLAIN, 0, &in, &out, &untouched, &err),
             -FS_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "absent:0") != NULL);
    fs_tensor halves[3];
    *(float *)in.data = 1.0f;
    CHECK_EQ(fs_runtime_tensorflow_run_traced(model, HALF, FS_RUN_PLAIN, 0, &in, halves, &untouched, &err),
             -FS_UNIMPLEMENTED);
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, &err));
    runtime.ops->release(&out);
    CHECK_EQ(atomic_load(&in.buf->refs), 1);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_buf_unref(in.buf);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_more_ports_than_fit_on_the_stack(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {1};
    fs_tensor in[WIDE], out[WIDE];
    for (int i = 0; i < WIDE; i++)
        in[i] = floats(slab, dims, (float)i);
    CHECK_OK(runtime.ops->run(model, WIDE_SIG, FS_RUN_PLAIN, in, out, NULL));
    for (int i = 0; i < WIDE; i++) {
        CHECK(*(float *)out[i].data == 0.5f * (float)i + 2.0f);
        runtime.ops->release(&out[i]);
        fs_buf_unref(in[i].buf);
    }
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_steady_state_allocates_nothing(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {4};
    fs_slice slices[4] = {{NULL, 0}, {(const uint8_t *)"a", 1}, {(const uint8_t *)"b", 1}, {NULL, 0}};
    fs_tensor two[2] = {{.dtype = FS_DT_STRING, .ndim = 1, .dims = dims, .elements = 4, .data = slices,
                         .bytes = sizeof slices},
                        floats(slab, dims, 0.0f)};
    fs_tensor in[WIDE], out[WIDE];
    for (int i = 0; i < WIDE; i++)
        in[i] = floats(slab, dims, (float)i);
    long before = 0;
    for (int round = 0; round < 100; round++) {
        if (round == 3)
            before = failmalloc_count();
        CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, in, out, NULL));
        runtime.ops->release(out);
        CHECK_OK(runtime.ops->run(model, TWO, FS_RUN_PLAIN, two, out, NULL));
        runtime.ops->release(&out[0]);
        runtime.ops->release(&out[1]);
        CHECK_OK(runtime.ops->run(model, WIDE_SIG, FS_RUN_PLAIN, in, out, NULL));
        for (int i = 0; i < WIDE; i++)
            runtime.ops->release(&out[i]);
    }
    CHECK_EQ(failmalloc_count() - before, 0);
    for (int i = 0; i < WIDE; i++)
        fs_buf_unref(in[i].buf);
    fs_buf_unref(two[1].buf);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

/* Every allocation of ours fails once, from opening the library to the first answers. */
static int whole_life(fs_slab *slab)
{
    fs_runtime runtime = {0};
    fs_error err;
    int rc = fs_runtime_tensorflow(stub_dir, &runtime, &err);
    if (rc != 0)
        return rc;
    fs_model_spec spec = spec_of("/models/m/1");
    spec.session_config = spec.plain_config = (fs_slice){(const uint8_t *)SINGLE, sizeof SINGLE - 1};
    spec.second_session_plain = true;
    fs_model *model;
    rc = fs_runtime_tensorflow_op_library(&runtime, "/ops/mine.so", &err);
    if (rc == 0)
        rc = fs_runtime_tensorflow_prime(&runtime, spec.session_config, &err);
    if (rc != 0) {
        fs_runtime_tensorflow_free(&runtime);
        return rc;
    }
    rc = runtime.ops->open(runtime.self, &spec, &model, &err);
    if (rc == 0) {
        static int64_t dims[] = {2};
        fs_slice slices[2] = {{(const uint8_t *)"a", 1}, {NULL, 0}};
        fs_tensor in = {.dtype = FS_DT_FLOAT, .ndim = 1, .dims = dims, .elements = 2, .bytes = 8};
        in.buf = fs_buf_new(slab, 8);
        fs_tensor two[2] = {{.dtype = FS_DT_STRING, .ndim = 1, .dims = dims, .elements = 2, .data = slices,
                             .bytes = sizeof slices},
                            in};
        fs_tensor wide[WIDE], out[WIDE];
        if (in.buf == NULL) {
            rc = -FS_RESOURCE_EXHAUSTED;
        } else {
            memset(in.buf->data, 0, 8);
            in.data = two[1].data = in.buf->data;
            for (int i = 0; i < WIDE; i++)
                wide[i] = in;
            rc = runtime.ops->run(model, TWO, FS_RUN_PLAIN, two, out, &err);
            for (int i = 0; rc == 0 && i < 2; i++)
                runtime.ops->release(&out[i]);
            if (rc == 0)
                rc = runtime.ops->run(model, WIDE_SIG, FS_RUN_PLAIN, wide, out, &err);
            for (int i = 0; rc == 0 && i < WIDE; i++)
                runtime.ops->release(&out[i]);
            fs_tf_metadata told;
            if (rc == 0)
                rc = fs_runtime_tensorflow_run_traced(model, WIDE_SIG, FS_RUN_PLAIN, FS_TF_TRACE_GRAPHS, wide, out,
                                                      &told, &err);
            for (int i = 0; rc == 0 && i < WIDE; i++)
                runtime.ops->release(&out[i]);
            if (rc == 0)
                fs_runtime_tensorflow_metadata_free(model, &told);
            fs_slice feed = fs_slice_of("x0:0"), fetch = fs_slice_of("call:0");
            fs_named_run run = named(&feed, &in, &fetch, 1);
            if (rc == 0)
                rc = runtime.run_named(model, &run, out, &err);
            if (rc == 0)
                runtime.ops->release(out);
            CHECK_EQ(atomic_load(&in.buf->refs), 1);
        }
        fs_buf_unref(in.buf);
        runtime.ops->close(model);
    }
    fs_runtime_tensorflow_free(&runtime);
    return rc;
}

static void test_out_of_memory_anywhere(void)
{
    for (long n = 1;; n++) {
        fs_slab *slab = fs_slab_new(0);
        failmalloc_after(n);
        int rc = whole_life(slab);
        failmalloc_after(-1);
        fs_slab_release(slab);
        CHECK_EQ(live(), 0);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            CHECK(n > 20);
            break;
        }
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
    }
}

/* ---- threads ----------------------------------------------------------------------------- */

enum { THREADS = 4, ROUNDS = 300 };

typedef struct worker {
    const fs_runtime *runtime;
    fs_model *model;
    int number;
    fs_tensor last[2]; /* released by the main thread, after this one has ended */
} worker;

static void *work(void *arg)
{
    worker *self = arg;
    fs_slab *slab = fs_slab_new(1 << 20);
    int64_t dims[] = {8};
    fs_slice slices[8] = {{(const uint8_t *)"abcdefghijklmnopqrstuvwxyz", 26}};
    fs_slice feed = fs_slice_of("x0:0");
    for (int round = 0; round < ROUNDS; round++) {
        fs_tensor in = floats(slab, dims, (float)self->number);
        fs_tensor two[2] = {{.dtype = FS_DT_STRING, .ndim = 1, .dims = dims, .elements = 8, .data = slices,
                             .bytes = sizeof slices},
                            in};
        fs_tensor out[2];
        CHECK_OK(self->runtime->ops->run(self->model, TWO, FS_RUN_PLAIN, two, out, NULL));
        CHECK(((float *)out[1].data)[0] == 0.5f * (float)self->number + 2.0f);
        CHECK_EQ(((fs_slice *)out[0].data)[0].len, 26);
        char name[32];
        snprintf(name, sizeof name, "call:%d", round % 16);
        fs_slice fetch = fs_slice_of(name);
        fs_named_run run = named(&feed, &in, &fetch, 1);
        fs_tensor by_name;
        fs_error err;
        CHECK_OK(self->runtime->run_named(self->model, &run, &by_name, &err));
        CHECK(((float *)by_name.data)[0] == 0.5f * (float)self->number + 2.0f);
        self->runtime->ops->release(&by_name);
        CHECK_OK(self->runtime->ops->run(self->model, KEEP, FS_RUN_PLAIN, &in, &two[1], NULL));
        self->runtime->ops->release(&two[1]);
        fs_buf_unref(in.buf);
        for (int i = 0; i < 2; i++) {
            if (round == ROUNDS - 1)
                self->last[i] = out[i];
            else
                self->runtime->ops->release(&out[i]);
        }
    }
    fs_slab_release(slab);
    return NULL;
}

static void test_threads_share_a_model(void)
{
    fs_runtime runtime = open_runtime();
    fs_model *model = open_model(&runtime);
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.runtime = &runtime, .model = model, .number = i};
        REQUIRE(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < THREADS; i++)
        for (int k = 0; k < 2; k++)
            runtime.ops->release(&workers[i].last[k]);
    runtime.ops->close(model);
    fs_runtime_tensorflow_free(&runtime);
    CHECK_EQ(live(), 0);
}

int main(void)
{
    set_up();
    test_library_that_is_not_there();
    test_version_and_name();
    test_run_plain_and_compiled();
    test_second_session_serves_plain_runs();
    test_errors_name_their_node();
    test_priming_opens_and_closes_an_empty_session();
    test_op_libraries_are_loaded_or_named();
    test_values_can_be_restored_in_the_pool();
    test_strings_are_copied();
    test_shapes_of_all_sizes();
    test_input_memory_lives_as_long_as_tensorflow_holds_it();
    test_failures_leave_nothing_behind();
    test_runs_by_name();
    test_runs_by_name_are_plain();
    test_names_that_are_not_there();
    test_runs_by_name_may_have_so_many_lists();
    test_a_traced_run_answers_as_others_do_and_tells();
    test_more_ports_than_fit_on_the_stack();
    test_steady_state_allocates_nothing();
    test_out_of_memory_anywhere();
    test_threads_share_a_model();
    tear_down();
    return check_done();
}
