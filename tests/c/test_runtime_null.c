/* test_runtime_null: what its options promise, and that it costs no memory in steady state. */
#include "runtime_null.h"
#include "slab.h"
#include "tensor.h"

#include "check.h"
#include "failmalloc.h"

#include <math.h>
#include <pthread.h>
#include <time.h>

static int64_t unknown[1] = {-1};
static fs_port ports[] = {{"a", "", FS_DT_FLOAT, 1, unknown}, {"b", "", FS_DT_STRING, 1, unknown},
                          {"c", "", FS_DT_STRING, 1, unknown}};
enum { ONE, TWO, MORE_OUT, NO_INPUT, SIGNATURES };
static const fs_signature signatures[SIGNATURES] = {
    [ONE] = {"one", ports, 1, ports, 1, NULL},
    [TWO] = {"two", ports, 2, ports, 2, NULL},
    [MORE_OUT] = {"more_out", ports, 2, ports, 3, NULL},
    [NO_INPUT] = {"no_input", NULL, 0, ports, 1, NULL},
};

static int open_with(fs_runtime *runtime, const char *path, fs_model **model, fs_error *err)
{
    fs_model_spec spec = {.path = path, .signatures = signatures, .n_signatures = SIGNATURES};
    return runtime->ops->open(runtime->self, &spec, model, err);
}

/* A runtime and a model with these options. */
static fs_model *start(fs_runtime *runtime, const char *options)
{
    fs_error err;
    fs_model *model;
    REQUIRE(fs_runtime_null(options, runtime, &err) == 0);
    REQUIRE(open_with(runtime, "/a/path", &model, &err) == 0);
    return model;
}

static void stop(fs_runtime *runtime, fs_model *model)
{
    runtime->ops->close(model);
    fs_runtime_null_free(runtime);
}

static int64_t three[] = {3};

static fs_tensor floats(float *values)
{
    return (fs_tensor){.dtype = FS_DT_FLOAT, .ndim = 1, .dims = three, .elements = 3, .data = values,
                       .bytes = 3 * sizeof(float)};
}

static fs_tensor strings(fs_slice *values)
{
    return (fs_tensor){.dtype = FS_DT_STRING, .ndim = 1, .dims = three, .elements = 3, .data = values,
                       .bytes = 3 * sizeof(fs_slice)};
}

static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void test_half_plus_two(void)
{
    fs_runtime runtime;
    fs_model *model = start(&runtime, NULL);
    float values[] = {0.0f, 1.0f, -4.0f};
    fs_tensor in = floats(values), out;
    CHECK_STR(runtime.ops->name, "null");
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, NULL));
    const float *got = out.data;
    CHECK(got[0] == 2.0f && got[1] == 2.5f && got[2] == 0.0f);
    CHECK_EQ(out.ndim, 1);
    CHECK_EQ(out.dims[0], 3);
    CHECK_EQ(out.bytes, 12);
    CHECK(out.data != in.data);
    runtime.ops->release(&out);
    runtime.ops->release(&out); /* once is enough, twice is fine */

    double wide[] = {0.0, 1.0, -4.0};
    in.dtype = FS_DT_DOUBLE;
    in.data = wide;
    in.bytes = sizeof wide;
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_COMPILED, &in, &out, NULL));
    CHECK(((double *)out.data)[1] == 2.5);
    runtime.ops->release(&out);

    int32_t ints[] = {7, 8, 9};
    in.dtype = FS_DT_INT32;
    in.data = ints;
    in.bytes = sizeof ints;
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK_MEM(out.data, ints, sizeof ints);
    runtime.ops->release(&out);
    stop(&runtime, model);
}

static void test_echo_shares_buffers_and_copies_the_rest(void)
{
    fs_runtime runtime;
    fs_model *model = start(&runtime, "op=echo");
    fs_slab *slab = fs_slab_new(0);
    char text[] = "words";
    fs_slice slices[] = {{NULL, 0}, {(uint8_t *)text, 5}, {(uint8_t *)text, 1}};
    float values[] = {1.0f, 2.0f, 3.0f};
    fs_buf *buf = fs_buf_new(slab, sizeof values);
    memcpy(buf->data, values, sizeof values);
    fs_tensor in[] = {floats((float *)(void *)buf->data), strings(slices)}, out[3];
    in[0].buf = buf;
    CHECK_OK(runtime.ops->run(model, MORE_OUT, FS_RUN_PLAIN, in, out, NULL));
    CHECK(out[0].data == buf->data);
    fs_buf_unref(buf);
    memset(text, '#', 5);
    CHECK_MEM(out[0].data, values, sizeof values);
    for (int i = 1; i < 3; i++) { /* the third output is the last input again */
        const fs_slice *got = out[i].data;
        CHECK_EQ(got[0].len, 0);
        CHECK_EQ(got[1].len, 5);
        CHECK_MEM(got[1].data, "words", 5);
        CHECK_MEM(got[2].data, "w", 1);
    }
    for (int i = 0; i < 3; i++)
        runtime.ops->release(&out[i]);
    fs_slab_release(slab);
    stop(&runtime, model);
}

static void test_failures_that_are_asked_for(void)
{
    fs_runtime runtime;
    fs_error err;
    fs_model *model = start(&runtime, "fail_nan=1,fail_every=3,compiled_rows=1:3:8");
    float values[] = {0.0f, NAN, 0.0f}, good[] = {0.0f, 0.0f, 0.0f};
    fs_tensor in = floats(values), out;
    CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "input 'a' has a NaN");
    in = floats(good);
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_COMPILED, &in, &out, &err));
    runtime.ops->release(&out);
    CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, &err), -FS_INTERNAL);
    CHECK_STR(err.msg, "run 3 failed as configured");
    int64_t two[] = {2};
    in.dims = two;
    in.elements = 2;
    CHECK_EQ(runtime.ops->run(model, ONE, FS_RUN_COMPILED, &in, &out, &err), -FS_INTERNAL);
    CHECK_STR(err.msg, "2 rows were not compiled");
    CHECK_EQ(runtime.ops->run(model, NO_INPUT, FS_RUN_PLAIN, NULL, &out, &err), -FS_UNIMPLEMENTED);
    runtime.ops->close(model);

    CHECK_EQ(open_with(&runtime, "null:fail_open=1", &model, &err), -FS_INTERNAL);
    CHECK_EQ(open_with(&runtime, "null:fail_twice=1", &model, &err), -FS_INVALID_ARGUMENT);
    CHECK_STR(err.msg, "the null runtime has no option 'fail_twice=1'");
    fs_runtime_null_free(&runtime);
    fs_runtime_null_free(&runtime);
}

static void test_options_that_are_wrong(void)
{
    static const char *const wrong[] = {
        "op=third", "op", "run_us=", "run_us=-1", "run_us=1e3", "run_us=1234567890123456", "=1", ",",
        "run_us=1,,busy=1", "compiled_rows=", "compiled_rows=1:", "compiled_rows=:1", "compiled_rows=a",
        "compiled_rows=1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1:1",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fs_runtime runtime;
        fs_error err;
        CHECK_EQ(fs_runtime_null(wrong[i], &runtime, &err), -FS_INVALID_ARGUMENT);
    }
    fs_runtime runtime;
    CHECK_OK(fs_runtime_null("run_us=1,row_us=2,busy=1,open_us=3,", &runtime, NULL));
    fs_runtime_null_free(&runtime);
}

static void test_time_that_is_asked_for(void)
{
    fs_runtime runtime;
    fs_model *model = start(&runtime, "run_us=2000,row_us=1000,busy=1");
    fs_model *own, *waits;
    CHECK_OK(open_with(&runtime, "null:run_us=0,row_us=4000,busy=0", &own, NULL));
    float values[] = {0.0f, 0.0f, 0.0f};
    fs_tensor in = floats(values), out;
    int64_t begin = now_us();
    CHECK_OK(runtime.ops->run(model, ONE, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK(now_us() - begin >= 5000);
    runtime.ops->release(&out);
    begin = now_us();
    CHECK_OK(runtime.ops->run(own, ONE, FS_RUN_PLAIN, &in, &out, NULL));
    CHECK(now_us() - begin >= 12000);
    runtime.ops->release(&out);
    begin = now_us();
    CHECK_OK(open_with(&runtime, "null:open_us=3000", &waits, NULL));
    CHECK(now_us() - begin >= 3000);
    runtime.ops->close(waits);
    runtime.ops->close(own);
    stop(&runtime, model);
}

static void test_steady_state_allocates_nothing(void)
{
    fs_runtime runtime;
    fs_model *model = start(&runtime, NULL);
    fs_slice slices[3] = {{(const uint8_t *)"a", 1}};
    float values[3] = {0};
    fs_tensor in[] = {floats(values), strings(slices)}, out[2];
    long before = 0;
    for (int round = 0; round < 100; round++) {
        if (round == 2)
            before = failmalloc_count();
        CHECK_OK(runtime.ops->run(model, TWO, FS_RUN_PLAIN, in, out, NULL));
        runtime.ops->release(&out[0]);
        runtime.ops->release(&out[1]);
    }
    CHECK_EQ(failmalloc_count() - before, 0);
    stop(&runtime, model);
}

static int whole_life(void)
{
    fs_runtime runtime = {0};
    fs_model *model;
    int rc = fs_runtime_null("op=half_plus_two", &runtime, NULL);
    if (rc != 0)
        return rc;
    rc = open_with(&runtime, "null:", &model, NULL);
    if (rc == 0) {
        fs_slice slices[3] = {{(const uint8_t *)"a", 1}};
        float values[3] = {0};
        fs_tensor in[] = {floats(values), strings(slices)}, out[3];
        rc = runtime.ops->run(model, MORE_OUT, FS_RUN_PLAIN, in, out, NULL);
        for (int i = 0; rc == 0 && i < 3; i++)
            runtime.ops->release(&out[i]);
        runtime.ops->close(model);
    }
    fs_runtime_null_free(&runtime);
    return rc;
}

static void test_out_of_memory_anywhere(void)
{
    for (long n = 1;; n++) {
        failmalloc_after(n);
        int rc = whole_life();
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            CHECK(n > 8);
            break;
        }
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
    }
}

enum { THREADS = 4, ROUNDS = 500 };

typedef struct worker {
    const fs_runtime *runtime;
    fs_model *model;
    fs_tensor last[2];
    int failed;
} worker;

static void *work(void *arg)
{
    worker *self = arg;
    fs_slice slices[3] = {{(const uint8_t *)"a", 1}};
    float values[3] = {0};
    fs_tensor in[] = {floats(values), strings(slices)}, out[2];
    for (int round = 0; round < ROUNDS; round++) {
        if (self->runtime->ops->run(self->model, TWO, FS_RUN_PLAIN, in, out, NULL) != 0) {
            self->failed++;
            continue;
        }
        for (int i = 0; i < 2; i++) {
            if (self->last[i].handle != NULL)
                self->runtime->ops->release(&self->last[i]);
            self->last[i] = out[i];
        }
    }
    return NULL;
}

static void test_threads_share_a_model(void)
{
    fs_runtime runtime;
    fs_model *model = start(&runtime, "fail_every=7");
    pthread_t threads[THREADS];
    worker workers[THREADS];
    int failed = 0;
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){.runtime = &runtime, .model = model};
        REQUIRE(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        for (int k = 0; k < 2; k++)
            runtime.ops->release(&workers[i].last[k]); /* made by a thread that is gone */
        failed += workers[i].failed;
    }
    CHECK_EQ(failed, THREADS * ROUNDS / 7);
    stop(&runtime, model);
}

int main(void)
{
    test_half_plus_two();
    test_echo_shares_buffers_and_copies_the_rest();
    test_failures_that_are_asked_for();
    test_options_that_are_wrong();
    test_time_that_is_asked_for();
    test_steady_state_allocates_nothing();
    test_out_of_memory_anywhere();
    test_threads_share_a_model();
    return check_done();
}
