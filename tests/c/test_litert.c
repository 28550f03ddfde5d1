/* test_litert: csrc/litert.c against the stub library beside this program. */
#include "litert.h"
#include "litert_api.h"
#include "slab.h"

#include "check.h"
#include "failmalloc.h"

#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX]; /* everything this test makes */
static char stub_dir[PATH_MAX + 16], other_dir[PATH_MAX + 16];
static char model_dir[PATH_MAX + 16], bad_dir[PATH_MAX + 16], unnamed_dir[PATH_MAX + 16];
static long (*live)(void);
static int (*fail_after)(long n);
static void (*be_old)(int is_old);
static long (*resizes)(void);
static long (*scouted)(void);

/* ---- directories that look like LiteRT's and a model's ------------------------------------- */

static void make_dir(char *path, const char *name)
{
    snprintf(path, PATH_MAX + 16, "%s/%s", root, name);
    REQUIRE(mkdir(path, 0700) == 0);
}

static void make_link(const char *dir, const char *library)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/libLiteRt.so", dir);
    REQUIRE(symlink(library, path) == 0);
}

static void make_model(const char *dir, const char *text)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/model.tflite", dir);
    FILE *file = fopen(path, "w");
    REQUIRE(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void set_up(void)
{
    char beside[PATH_MAX], stub[PATH_MAX + 32];
    ssize_t len = readlink("/proc/self/exe", beside, sizeof beside - 1);
    REQUIRE(len > 0);
    beside[len] = '\0';
    *strrchr(beside, '/') = '\0';
    strcpy(root, "/tmp/fastserve-test-litert-XXXXXX");
    REQUIRE(mkdtemp(root) != NULL);
    make_dir(stub_dir, "stub");
    make_dir(other_dir, "other");
    make_dir(model_dir, "model");
    make_dir(bad_dir, "bad");
    make_dir(unnamed_dir, "unnamed");
    snprintf(stub, sizeof stub, "%s/stub_litert.so", beside);
    make_link(stub_dir, stub);
    make_model(model_dir, "good");
    make_model(bad_dir, "bad");
    make_model(unnamed_dir, "unnamed");

    void *library = dlopen(stub, RTLD_NOW | RTLD_LOCAL);
    REQUIRE(library != NULL);
    void *symbols[] = {dlsym(library, "stub_litert_live"), dlsym(library, "stub_litert_fail_after"),
                       dlsym(library, "stub_litert_be_old"), dlsym(library, "stub_litert_resizes"),
                       dlsym(library, "stub_litert_scouted")};
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++)
        REQUIRE(symbols[i] != NULL);
    memcpy(&live, &symbols[0], sizeof live);
    memcpy(&fail_after, &symbols[1], sizeof fail_after);
    memcpy(&be_old, &symbols[2], sizeof be_old);
    memcpy(&resizes, &symbols[3], sizeof resizes);
    memcpy(&scouted, &symbols[4], sizeof scouted);

    Dl_info info;
    REQUIRE(dladdr(dlsym(RTLD_DEFAULT, "getenv"), &info) != 0);
    make_link(other_dir, info.dli_fname); /* a library, but not LiteRT's */
}

static void tear_down(void)
{
    char command[PATH_MAX + 32];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    REQUIRE(system(command) == 0);
}

/* ---- models ------------------------------------------------------------------------------ */

enum { WIDE = 20 };

static int64_t unknown[2] = {-1, -1};
static fs_port mix_in[] = {{"a", "a", FS_DT_FLOAT, 2, unknown}, {"b", "b", FS_DT_FLOAT, 2, unknown}};
static fs_port mix_out[] = {{"half", "half", FS_DT_FLOAT, 2, unknown}, {"sum", "sum", FS_DT_FLOAT, 2, unknown}};
static fs_port float_in[] = {{"x", "x", FS_DT_FLOAT, 1, unknown}};
static fs_port float_out[] = {{"y", "y", FS_DT_FLOAT, 1, unknown}};
static fs_port byte_in[] = {{"x", "x", FS_DT_UINT8, -1, NULL}};
static fs_port byte_out[] = {{"y", "y", FS_DT_UINT8, -1, NULL}};
static fs_port string_in[] = {{"x", "x", FS_DT_STRING, 1, unknown}};
static fs_port other_in[] = {{"z", "z", FS_DT_FLOAT, 1, unknown}};
static fs_port wide_in[WIDE], wide_out[WIDE];
static char wide_names[2][WIDE][16];

enum { MIX, BYTES, VALUES, LATE, WIDE_SIG, SOME, SIGNATURES };

static fs_signature signatures[SIGNATURES] = {
    [MIX] = {"mix", mix_in, 2, mix_out, 2, NULL},
    [BYTES] = {"bytes", byte_in, 1, byte_out, 1, NULL},
    [VALUES] = {"values", float_in, 1, float_out, 1, NULL},
    [LATE] = {"late", float_in, 1, float_out, 1, NULL},
    [SOME] = {"some", float_in, 1, float_out, 1, NULL},
    [WIDE_SIG] = {"wide", wide_in, WIDE, wide_out, WIDE, NULL},
};

static fs_model_spec spec_of(const char *path)
{
    /* The other way round than in the model's subgraph. */
    for (int i = 0; i < WIDE; i++) {
        snprintf(wide_names[0][i], sizeof wide_names[0][i], "in%d", WIDE - 1 - i);
        snprintf(wide_names[1][i], sizeof wide_names[1][i], "out%d", WIDE - 1 - i);
        wide_in[i] = (fs_port){wide_names[0][i], wide_names[0][i], FS_DT_FLOAT, 1, unknown};
        wide_out[i] = (fs_port){wide_names[1][i], wide_names[1][i], FS_DT_FLOAT, 1, unknown};
    }
    return (fs_model_spec){.path = path, .signatures = signatures, .n_signatures = SIGNATURES};
}

static fs_runtime open_runtime(int interpreters)
{
    fs_runtime runtime;
    fs_error err;
    int rc = fs_runtime_litert(stub_dir, &(fs_litert_options){1, interpreters}, &runtime, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.msg);
    REQUIRE(rc == 0);
    return runtime;
}

static fs_model *open_model(const fs_runtime *runtime)
{
    fs_model_spec spec = spec_of(model_dir);
    fs_model *model = NULL;
    fs_error err;
    int rc = runtime->ops->open(runtime->self, &spec, &model, &err);
    if (rc != 0)
        fprintf(stderr, "%s\n", err.msg);
    REQUIRE(rc == 0);
    return model;
}

/* A tensor of floats in a buffer of its own, i + `first` at i. */
static fs_tensor floats(fs_slab *slab, const int64_t *dims, int ndim, float first)
{
    fs_tensor t = {.dtype = FS_DT_FLOAT, .ndim = ndim, .dims = dims, .elements = 1};
    for (int i = 0; i < ndim; i++)
        t.elements *= dims[i];
    t.bytes = (size_t)t.elements * sizeof(float);
    t.buf = fs_buf_new(slab, t.bytes);
    REQUIRE(t.buf != NULL);
    t.data = t.buf->data;
    for (int64_t i = 0; i < t.elements; i++)
        ((float *)t.data)[i] = first + (float)i;
    return t;
}

/* ---- tests ------------------------------------------------------------------------------- */

static void test_library_that_is_not_there_or_not_right(void)
{
    fs_runtime runtime;
    fs_error err;
    fs_litert_options options = {1, 1};
    CHECK_EQ(fs_runtime_litert("/nowhere", &options, &runtime, &err), -FS_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "/nowhere/libLiteRt.so") != NULL);
    CHECK_EQ(fs_runtime_litert("/nowhere", &options, &runtime, NULL), -FS_FAILED_PRECONDITION);
    CHECK_EQ(fs_runtime_litert(other_dir, &options, &runtime, &err), -FS_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "has no LiteRtCreateEnvironment: LiteRT 2.3 or newer is needed") != NULL);
    be_old(1);
    CHECK_EQ(fs_runtime_litert(stub_dir, &options, &runtime, &err), -FS_FAILED_PRECONDITION);
    CHECK(strstr(err.msg, "is too old: LiteRT 2.3 or newer is needed") != NULL);
    be_old(0);
    runtime = open_runtime(1);
    CHECK_STR(runtime.ops->name, "litert");
    fs_runtime_litert_free(&runtime);
    fs_runtime_litert_free(&runtime); /* what was never opened, or is freed, is fine */
    CHECK_EQ(live(), 0);
}

static void test_ports_go_by_name_whatever_their_order(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    const int64_t dims[] = {3, 2};
    fs_tensor in[2] = {floats(slab, dims, 2, 10.0f), floats(slab, dims, 2, 200.0f)}, out[2];
    CHECK_OK(runtime.ops->run(model, MIX, FS_RUN_PLAIN, in, out, NULL));
    for (int k = 0; k < 2; k++) {
        CHECK_EQ(out[k].dtype, FS_DT_FLOAT);
        CHECK_EQ(out[k].ndim, 2);
        CHECK_EQ(out[k].dims[0], 3);
        CHECK_EQ(out[k].dims[1], 2);
        CHECK_EQ(out[k].elements, 6);
        CHECK_EQ(out[k].bytes, 24);
    }
    for (int i = 0; i < 6; i++) {
        CHECK(((float *)out[0].data)[i] == 0.5f * (10.0f + (float)i) + 2.0f);
        CHECK(((float *)out[1].data)[i] == 210.0f + 2.0f * (float)i);
    }
    fs_tensor wide[WIDE], passed[WIDE];
    for (int i = 0; i < WIDE; i++)
        wide[i] = floats(slab, dims, 1, (float)(100 * i));
    CHECK_OK(runtime.ops->run(model, WIDE_SIG, FS_RUN_COMPILED, wide, passed, NULL));
    for (int i = 0; i < WIDE; i++) {
        CHECK_EQ(passed[i].elements, 3);
        CHECK(((float *)passed[i].data)[2] == (float)(100 * i) + 2.0f);
        fs_buf_unref(wide[i].buf);
        runtime.ops->release(&passed[i]);
    }
    for (int k = 0; k < 2; k++) {
        runtime.ops->release(&out[k]);
        CHECK(out[k].handle == NULL);
        CHECK_EQ(atomic_load(&in[k].buf->refs), 1);
        fs_buf_unref(in[k].buf);
    }
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

/* Each shape is asked for once, and an interpreter is set to one when it had another. */
static void test_shapes_change_from_run_to_run(void)
{
    fs_runtime runtime = open_runtime(2);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    long asked = scouted(), before = resizes();
    for (int round = 0; round < 3; round++) {
        for (int64_t rows = 1; rows <= 64; rows *= 2) {
            int64_t dims[] = {rows};
            fs_tensor in[WIDE], out[WIDE];
            for (int i = 0; i < WIDE; i++)
                in[i] = floats(slab, dims, 1, (float)(rows + round));
            CHECK_OK(runtime.ops->run(model, WIDE_SIG, FS_RUN_PLAIN, in, out, NULL));
            for (int i = 0; i < WIDE; i++) {
                CHECK_EQ(out[i].dims[0], rows);
                CHECK(((float *)out[i].data)[rows - 1] == (float)(rows + round) + (float)rows - 1.0f);
                runtime.ops->release(&out[i]);
                fs_buf_unref(in[i].buf);
            }
        }
        CHECK_EQ(scouted() - asked, 7);
    }
    CHECK_EQ(resizes() - before, WIDE * (7 + 3 * 7));
    /* Two shapes that come by turns find an interpreter each. */
    before = resizes();
    for (int round = 0; round < 10; round++) {
        int64_t dims[] = {round % 2 + 1};
        fs_tensor in = {.dtype = FS_DT_UINT8, .ndim = 1, .dims = dims, .elements = dims[0], .data = "ab",
                        .bytes = (size_t)dims[0]},
                  out;
        CHECK_OK(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, &in, &out, NULL));
        CHECK_MEM(out.data, "ab", dims[0]);
        runtime.ops->release(&out);
    }
    CHECK(resizes() - before <= 2 + 10);
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

/* More shapes than are kept; those that are not are found out each time. */
static void test_any_number_of_shapes(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_model *model = open_model(&runtime);
    static uint8_t bytes[2000];
    for (int round = 0; round < 2; round++)
        for (int64_t n = 1; n <= 1000; n++) {
            int64_t dims[] = {1, n};
            bytes[n - 1] = (uint8_t)n;
            fs_tensor in = {.dtype = FS_DT_UINT8, .ndim = 2, .dims = dims, .elements = n, .data = bytes,
                            .bytes = (size_t)n},
                      out;
            CHECK_OK(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, &in, &out, NULL));
            CHECK_EQ(out.bytes, n);
            CHECK_MEM(out.data, bytes, n);
            runtime.ops->release(&out);
        }
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    CHECK_EQ(live(), 0);
}

static void test_shapes_that_cannot_be(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    fs_error err;
    const int64_t none[] = {0}, deep[] = {1, 1, 1, 1, 1, 1, 1, 1, 1}, two[] = {2}, three[] = {3};
    fs_tensor in[2] = {{.dtype = FS_DT_UINT8, .ndim = 1, .dims = none}}, out[2];
    CHECK_EQ(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "input 'x' has a dimension of size 0, and TFLite needs 1 or more");
    in[0] = (fs_tensor){.dtype = FS_DT_UINT8, .ndim = 9, .dims = deep, .elements = 1, .data = "a", .bytes = 1};
    CHECK_EQ(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "input 'x' has 9 dimensions, which the model does not take");
    in[0].ndim = 0; /* of no known rank: it could not be resized to a scalar again */
    CHECK_EQ(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "input 'x' has 0 dimensions, which the model does not take");
    in[0].ndim = 8;
    CHECK_OK(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, in, out, &err));
    CHECK_EQ(out[0].ndim, 8);
    runtime.ops->release(out);

    in[0] = floats(slab, two, 1, 0.0f);
    in[1] = floats(slab, three, 1, 0.0f);
    CHECK_EQ(runtime.ops->run(model, MIX, FS_RUN_PLAIN, in, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "the model does not take inputs of these shapes: a and b have unequal shapes");
    fs_tensor scalar = in[0];
    scalar.ndim = 0;
    CHECK_EQ(runtime.ops->run(model, VALUES, FS_RUN_PLAIN, &scalar, out, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "input 'x' has 0 dimensions, which the model does not take");
    fs_buf_unref(in[0].buf);
    fs_buf_unref(in[1].buf);
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_memory_that_is_not_aligned_is_copied(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    const int64_t two[] = {2}, three[] = {3};
    fs_tensor whole[2] = {floats(slab, three, 1, 4.0f), floats(slab, three, 1, 8.0f)}, out[2];
    fs_tensor rest[2];
    for (int k = 0; k < 2; k++) {
        rest[k] = whole[k]; /* from the second row on */
        rest[k].dims = two;
        rest[k].elements = 2;
        rest[k].bytes = 8;
        rest[k].data = (float *)whole[k].data + 1;
    }
    CHECK_OK(runtime.ops->run(model, MIX, FS_RUN_PLAIN, rest, out, NULL));
    CHECK(((float *)out[1].data)[0] == 14.0f);
    CHECK(((float *)out[1].data)[1] == 16.0f);
    for (int k = 0; k < 2; k++) {
        runtime.ops->release(&out[k]);
        fs_buf_unref(whole[k].buf);
    }
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

/* Whatever a later run does, an output is the caller's until it is given back. */
static void test_outputs_outlive_later_runs(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_model *model = open_model(&runtime);
    int64_t dims[] = {5};
    char words[][6] = {"first", "other", "third"};
    fs_tensor out[3];
    for (int i = 0; i < 3; i++) {
        fs_tensor in = {
            .dtype = FS_DT_UINT8, .ndim = 1, .dims = dims, .elements = 5, .data = words[i], .bytes = 5};
        CHECK_OK(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, &in, &out[i], NULL));
    }
    for (int i = 2; i >= 0; i--) {
        CHECK_MEM(out[i].data, words[i], 5);
        runtime.ops->release(&out[i]);
    }
    /* What looks like the pattern is an answer, too. */
    uint8_t same[5];
    memset(same, 0xa5, sizeof same);
    dims[0] = 4;
    fs_tensor in = {.dtype = FS_DT_UINT8, .ndim = 1, .dims = dims, .elements = 4, .data = same, .bytes = 4};
    CHECK_OK(runtime.ops->run(model, BYTES, FS_RUN_PLAIN, &in, out, NULL));
    CHECK_MEM(out[0].data, same, 4);
    runtime.ops->release(out);
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    CHECK_EQ(live(), 0);
}

/* An output with one shape now and another then is never trusted again. */
static void test_shapes_that_depend_on_values(void)
{
    fs_runtime runtime = open_runtime(2);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    const int64_t dims[] = {8};
    static const int above[] = {5, 5, 6, 5};
    for (int round = 0; round < 4; round++) {
        fs_error err;
        fs_tensor in = floats(slab, dims, 1, (float)(above[round] - 8) + 0.5f), out;
        int rc = runtime.ops->run(model, SOME, FS_RUN_PLAIN, &in, &out, &err);
        CHECK_EQ(rc, round < 2 ? 0 : -FS_UNIMPLEMENTED);
        if (rc == 0) {
            CHECK_EQ(out.dims[0], 5);
            for (int i = 0; i < 5; i++)
                CHECK(((float *)out.data)[i] == (float)i + 0.5f);
            runtime.ops->release(&out);
        }
        fs_buf_unref(in.buf);
    }
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_what_cannot_be_served_says_why(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    fs_error err;
    const int64_t dims[] = {2};
    fs_tensor in[2] = {floats(slab, dims, 1, 0.0f), floats(slab, dims, 1, 0.0f)}, out[2];
    for (int again = 0; again < 2; again++) {
        CHECK_EQ(runtime.ops->run(model, VALUES, FS_RUN_PLAIN, in, out, &err), -FS_UNIMPLEMENTED);
        CHECK_STR(err.msg,
                  "output 'y' has a shape that depends on values, and LiteRT's C API gives no access to it");
    }
    CHECK_OK(runtime.ops->run(model, LATE, FS_RUN_PLAIN, in, out, &err)); /* the guess is corrected */
    CHECK_EQ(out[0].elements, 2);
    CHECK(((float *)out[0].data)[1] == 1.0f);
    runtime.ops->release(out);

    ((float *)in[0].data)[1] = NAN;
    CHECK_EQ(runtime.ops->run(model, MIX, FS_RUN_PLAIN, in, out, &err), -FS_INTERNAL);
    CHECK_STR(err.msg, "Failed to invoke TfLite interpreter: a has a NaN");
    CHECK_EQ(runtime.ops->run(model, MIX, FS_RUN_PLAIN, in, out, NULL), -FS_INTERNAL);
    ((float *)in[0].data)[1] = 1.0f;
    CHECK_OK(runtime.ops->run(model, MIX, FS_RUN_PLAIN, in, out, &err)); /* a failure does not stick */
    runtime.ops->release(&out[0]);
    runtime.ops->release(&out[1]);
    runtime.ops->close(model);

    fs_signature strings = {"bytes", string_in, 1, byte_out, 1, NULL};
    fs_signature renamed = {"values", other_in, 1, float_out, 1, NULL};
    fs_signature absent = {"absent", float_in, 1, float_out, 1, NULL};
    fs_signature fewer = {"mix", mix_in, 1, mix_out, 2, NULL};
    fs_signature *odd[] = {&strings, &renamed, &fewer};
    const char *why[] = {"'x' is a tensor of type string, which LiteRT's C API gives no access to",
                         "signature 'values' does not name each input of its subgraph once",
                         "signature 'mix' does not name each input of its subgraph once"};
    for (int i = 0; i < 3; i++) {
        fs_model_spec spec = {.path = model_dir, .signatures = odd[i], .n_signatures = 1};
        CHECK_OK(runtime.ops->open(runtime.self, &spec, &model, &err));
        CHECK_EQ(runtime.ops->run(model, 0, FS_RUN_PLAIN, in, out, &err), -FS_UNIMPLEMENTED);
        CHECK_STR(err.msg, why[i]);
        runtime.ops->close(model);
    }
    fs_model_spec spec = {.path = model_dir, .signatures = &absent, .n_signatures = 1};
    CHECK_EQ(runtime.ops->open(runtime.self, &spec, &model, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "the model has no signature 'absent'");
    spec = spec_of("/nowhere");
    CHECK_EQ(runtime.ops->open(runtime.self, &spec, &model, &err), -FS_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "/nowhere/model.tflite is not there, or no TFLite model") == err.msg);
    spec = spec_of(bad_dir);
    CHECK_EQ(runtime.ops->open(runtime.self, &spec, &model, &err), -FS_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, "LiteRT cannot make an interpreter of it") == err.msg);
    for (int k = 0; k < 2; k++)
        fs_buf_unref(in[k].buf);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

static void test_a_model_without_signatures_has_one(void)
{
    fs_runtime runtime = open_runtime(1);
    fs_signature only = {"serving_default", byte_in, 1, byte_out, 1, NULL};
    fs_model_spec spec = {.path = unnamed_dir, .signatures = &only, .n_signatures = 1};
    fs_model *model;
    REQUIRE(runtime.ops->open(runtime.self, &spec, &model, NULL) == 0);
    const int64_t dims[] = {3};
    fs_tensor in = {.dtype = FS_DT_UINT8, .ndim = 1, .dims = dims, .elements = 3, .data = "abc", .bytes = 3}, out;
    CHECK_OK(runtime.ops->run(model, 0, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK_MEM(out.data, "abc", 3);
    runtime.ops->release(&out);
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    CHECK_EQ(live(), 0);
}

static void test_steady_state_allocates_nothing_of_ours(void)
{
    fs_runtime runtime = open_runtime(2);
    fs_model *model = open_model(&runtime);
    fs_slab *slab = fs_slab_new(1 << 20);
    const int64_t dims[] = {4};
    fs_tensor in[WIDE], out[WIDE];
    for (int i = 0; i < WIDE; i++)
        in[i] = floats(slab, dims, 1, (float)i);
    long before = 0;
    for (int round = 0; round < 100; round++) {
        if (round == 3)
            before = failmalloc_count();
        CHECK_OK(runtime.ops->run(model, MIX, FS_RUN_PLAIN, in, out, NULL));
        runtime.ops->release(&out[0]);
        runtime.ops->release(&out[1]);
        CHECK_OK(runtime.ops->run(model, WIDE_SIG, FS_RUN_PLAIN, in, out, NULL));
        for (int i = 0; i < WIDE; i++)
            runtime.ops->release(&out[i]);
    }
    CHECK_EQ(failmalloc_count() - before, 0);
    for (int i = 0; i < WIDE; i++)
        fs_buf_unref(in[i].buf);
    runtime.ops->close(model);
    fs_runtime_litert_free(&runtime);
    fs_slab_release(slab);
    CHECK_EQ(live(), 0);
}

/* From opening the library to answers for two shapes, one of them in memory that has to be copied. */
static int whole_life(fs_slab *slab)
{
    fs_runtime runtime = {0};
    fs_error err;
    int rc = fs_runtime_litert(stub_dir, &(fs_litert_options){1, 2}, &runtime, &err);
    if (rc != 0)
        return rc;
    fs_model_spec spec = spec_of(model_dir);
    fs_model *model;
    rc = runtime.ops->open(runtime.self, &spec, &model, &err);
    if (rc == 0) {
        static const int64_t dims[] = {3};
        fs_tensor in = {.dtype = FS_DT_FLOAT, .ndim = 1, .dims = dims, .elements = 3, .bytes = 12};
        static float elsewhere[] = {1.0f, 2.0f, 3.0f};
        fs_tensor wide[WIDE], out[WIDE];
        in.buf = fs_buf_new(slab, 12);
        if (in.buf == NULL) {
            rc = -FS_RESOURCE_EXHAUSTED;
        } else {
            memset(in.buf->data, 0, 12);
            in.data = in.buf->data;
            for (int i = 0; i < WIDE; i++)
                wide[i] = in;
            rc = runtime.ops->run(model, WIDE_SIG, FS_RUN_PLAIN, wide, out, &err);
            for (int i = 0; rc == 0 && i < WIDE; i++)
                runtime.ops->release(&out[i]);
            fs_tensor loose = in;
            loose.buf = NULL;
            loose.data = elsewhere;
            fs_tensor mix[2] = {in, loose};
            if (rc == 0)
                rc = runtime.ops->run(model, MIX, FS_RUN_PLAIN, mix, out, &err);
            for (int i = 0; rc == 0 && i < 2; i++)
                runtime.ops->release(&out[i]);
            CHECK_EQ(atomic_load(&in.buf->refs), 1);
        }
        fs_buf_unref(in.buf);
        runtime.ops->close(model);
    }
    fs_runtime_litert_free(&runtime);
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

static void test_litert_fails_anywhere(void)
{
    for (long n = 1;; n++) {
        fs_slab *slab = fs_slab_new(1 << 20);
        fail_after(n);
        int rc = whole_life(slab);
        bool failed = fail_after(0) != 0;
        fs_slab_release(slab);
        CHECK_EQ(live(), 0);
        if (!failed) {
            CHECK_OK(rc);
            CHECK(n > 40);
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
    for (int round = 0; round < ROUNDS; round++) {
        int64_t dims[] = {1 + (round * (self->number + 1)) % 7, 2};
        fs_tensor in[2] = {floats(slab, dims, 2, (float)self->number), floats(slab, dims, 2, (float)round)};
        fs_tensor out[2];
        CHECK_OK(self->runtime->ops->run(self->model, MIX, FS_RUN_PLAIN, in, out, NULL));
        CHECK_EQ(out[0].dims[0], dims[0]);
        CHECK(((float *)out[0].data)[0] == 0.5f * (float)self->number + 2.0f);
        CHECK(((float *)out[1].data)[1] == (float)(self->number + round + 2));
        for (int i = 0; i < 2; i++) {
            fs_buf_unref(in[i].buf);
            if (round == ROUNDS - 1)
                self->last[i] = out[i];
            else
                self->runtime->ops->release(&out[i]);
        }
    }
    fs_slab_release(slab);
    return NULL;
}

/* With fewer interpreters than threads some wait. */
static void test_threads_share_a_model(void)
{
    for (int interpreters = 1; interpreters <= THREADS; interpreters++) {
        fs_runtime runtime = open_runtime(interpreters);
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
        fs_runtime_litert_free(&runtime);
        CHECK_EQ(live(), 0);
    }
}

int main(void)
{
    set_up();
    test_library_that_is_not_there_or_not_right();
    test_ports_go_by_name_whatever_their_order();
    test_shapes_change_from_run_to_run();
    test_any_number_of_shapes();
    test_shapes_that_cannot_be();
    test_memory_that_is_not_aligned_is_copied();
    test_outputs_outlive_later_runs();
    test_shapes_that_depend_on_values();
    test_what_cannot_be_served_says_why();
    test_a_model_without_signatures_has_one();
    test_steady_state_allocates_nothing_of_ours();
    test_out_of_memory_anywhere();
    test_litert_fails_anywhere();
    test_threads_share_a_model();
    tear_down();
    return check_done();
}
