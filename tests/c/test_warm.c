/* test_warm: what a version runs before it is published: zeros at every size, and recorded requests. */
#include "engine_rig.h"

#include <unistd.h>

#include "failmalloc.h"
#include "warm.h"

static fs_servable *opened(probe *p, rig_model *m)
{
    fs_error err;
    m->spec.path = m->path;
    REQUIRE(fs_servable_open(p->runtime, m->name, m->version, &m->spec, m->plans, &m->batching, &m->servable,
                             &err) == 0);
    return m->servable;
}

/* Runs of one signature in the log. */
static int runs_of(const probe *p, uint32_t signature, int variant, int64_t rows)
{
    int n = 0;
    for (int i = 0; i < p->n_log; i++) {
        n += p->log[i].signature == signature && p->log[i].variant == variant &&
             (rows == 0 || p->log[i].rows == rows);
    }
    return n;
}

static void test_warming_runs_every_size_that_will_be_served(probe *p)
{
    rig_model m = rig_model_make("m", 1, NULL);
    m.plans[RIG_PAIR].compiled = true;
    fs_servable *s = opened(p, &m);
    fs_error err;
    for (int times = 0; times <= 3; times += 3) {
        fs_warm warm = {.iterations = times, .failures = 99};
        probe_forget(p);
        CHECK_OK(fs_servable_warm(s, &warm, &err));
        CHECK_EQ(warm.failures, 0);
        CHECK_EQ(atomic_load(&warm.total), 21 * times);
        CHECK_EQ(atomic_load(&warm.done), p->n_log);
        for (int b = 0; b < 4; b++) {
            CHECK_EQ(runs_of(p, RIG_HALF, FS_RUN_PLAIN, 1 << b), b == 0 ? 2 * times : times);
            CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_COMPILED, 1 << b), times);
            CHECK_EQ(runs_of(p, RIG_TEXT, FS_RUN_PLAIN, 1 << b), b == 0 ? 2 * times : times);
        }
        CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_PLAIN, 0), times); /* single rows of a failed batch run plain */
        CHECK_EQ(runs_of(p, RIG_HALF, FS_RUN_COMPILED, 0), 0);
        CHECK_EQ(runs_of(p, RIG_SCALAR, FS_RUN_PLAIN, -1), times);
        CHECK_EQ(runs_of(p, RIG_SCALAR, FS_RUN_PLAIN, 0), times);
    }
    for (uint32_t q = 0; q < s->n_queues; q++) {
        for (int c = 0; c < FS_COUNTERS; c++)
            CHECK_EQ(fs_servable_count(s, q, c), 0); /* nobody asked for these */
    }
    fs_servable_close(s);
}

static void test_plain_warm_runs_that_fail_are_counted(probe *p)
{
    rig_model m = rig_model_make("m", 1, "fail_every=7");
    fs_servable *s = opened(p, &m);
    fs_error err;
    fs_warm warm = {.iterations = 2};
    CHECK_OK(fs_servable_warm(s, &warm, &err));
    CHECK_EQ(warm.failures, 6); /* of 42 */
    CHECK_STR(err.msg, "run 42 failed as configured");
    fs_servable_close(s);
}

static void test_a_compiled_warm_run_that_fails_ends_it(probe *p)
{
    rig_model m = rig_model_make("m", 1, "compiled_rows=1:2:8");
    m.plans[RIG_HALF].compiled = true;
    fs_servable *s = opened(p, &m);
    fs_error err;
    fs_warm warm = {.iterations = 2};
    probe_forget(p);
    CHECK_EQ(fs_servable_warm(s, &warm, &err), -FS_INTERNAL);
    CHECK_STR(err.msg, "4 rows were not compiled");
    CHECK_EQ(p->n_log, 4);
    fs_servable_close(s);
}

static void test_a_signature_without_inputs_is_not_warmed(probe *p)
{
    static const fs_signature none = {.name = "init"};
    rig_model m = rig_model_make("m", 1, NULL);
    m.spec.signatures = &none;
    m.spec.n_signatures = 1;
    fs_servable *s = opened(p, &m);
    fs_error err;
    probe_forget(p);
    fs_warm warm = {.iterations = 1};
    CHECK_OK(fs_servable_warm(s, &warm, &err));
    CHECK_EQ(p->n_log, 0);
    fs_servable_close(s);
}

/* ---- recorded requests --------------------------------------------------------------------------- */

enum { MOST_BYTES = 1000 };

static char path[] = "/tmp/fastserve-test-warm-XXXXXX";

static void record(pb *file, pb message)
{
    uint32_t len = (uint32_t)message.len;
    uint8_t bytes[4] = {(uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16), (uint8_t)(len >> 24)};
    pb_raw(file, bytes, sizeof bytes);
    pb_raw(file, message.data, message.len);
    free(message.data);
}

static void write_file(const pb *file)
{
    FILE *f = fopen(path, "w");
    REQUIRE(f != NULL);
    REQUIRE(fwrite(file->data, 1, file->len, f) == file->len);
    REQUIRE(fclose(f) == 0);
}

static const float VALUES[] = {1, 2, 3, 4, 5, 6};

static pb half(int dtype, int64_t rows)
{
    rig_input x = {.alias = "x", .dtype = dtype, .ndim = 1, .dims = {rows}, .content = VALUES,
                   .bytes = (size_t)rows * 4};
    return rig_message(&(rig_request){.model = "m", .inputs = &x, .n_inputs = 1});
}

static pb pair(int64_t rows_a, int64_t rows_b)
{
    rig_input in[] = {{.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {rows_b}, .content = VALUES,
                       .bytes = (size_t)rows_b * 4},
                      {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {rows_a, 2}, .content = VALUES,
                       .bytes = (size_t)rows_a * 8}};
    return rig_message(&(rig_request){.model = "m", .signature = "pair", .inputs = in, .n_inputs = 2});
}

static pb text(void)
{
    static const char *const words[] = {"recorded", ""};
    rig_input x = {.alias = "x", .dtype = FS_DT_STRING, .ndim = 1, .dims = {2}, .strings = words,
                   .n_strings = 2};
    return rig_message(&(rig_request){.model = "m", .signature = "text", .inputs = &x, .n_inputs = 1});
}

static void test_recorded_requests_run_as_they_are_and_compiled(probe *p)
{
    rig_model m = rig_model_make("m", 1, NULL);
    m.plans[RIG_PAIR].compiled = true;
    m.plans[RIG_PAIR].n_buckets = 2; /* 1 and 2 rows */
    fs_servable *s = opened(p, &m);
    pb file = {0};
    record(&file, half(FS_DT_FLOAT, 3));
    record(&file, pair(2, 2));
    record(&file, pair(3, 3)); /* more rows than any bucket */
    record(&file, text());
    write_file(&file);
    fs_error err;
    fs_warm warm = {.iterations = 2};
    CHECK_OK(fs_servable_warm(s, &warm, &err));
    int without = atomic_load(&warm.total);
    probe_forget(p);
    warm.requests = path;
    warm.max_request_bytes = MOST_BYTES;
    CHECK_OK(fs_servable_warm(s, &warm, &err));
    CHECK_EQ(warm.failures, 0);
    CHECK_EQ(atomic_load(&warm.total), without + 8);
    CHECK_EQ(atomic_load(&warm.done), without + 8);
    CHECK_EQ(runs_of(p, RIG_HALF, FS_RUN_PLAIN, 3), 2);
    CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_PLAIN, 2), 2);
    CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_COMPILED, 2), 2 + 2); /* zeros, and the recorded one */
    CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_PLAIN, 3), 2);
    CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_COMPILED, 3), 0);
    CHECK_EQ(runs_of(p, RIG_TEXT, FS_RUN_PLAIN, 2), 2 + 2);
    fs_servable_close(s);
    free(file.data);
}

static void test_a_request_between_two_buckets_is_padded_with_its_first_row(probe *p)
{
    rig_model m = rig_model_make("m", 1, "fail_nan=1");
    m.plans[RIG_HALF].compiled = true;
    fs_servable *s = opened(p, &m);
    pb file = {0};
    record(&file, half(FS_DT_FLOAT, 3));
    write_file(&file);
    fs_error err;
    fs_warm warm = {.iterations = 1, .requests = path, .max_request_bytes = MOST_BYTES};
    probe_forget(p);
    CHECK_OK(fs_servable_warm(s, &warm, &err)); /* nothing in the four rows is what memory had there */
    CHECK_EQ(runs_of(p, RIG_HALF, FS_RUN_COMPILED, 4), 2);
    CHECK_EQ(runs_of(p, RIG_HALF, FS_RUN_PLAIN, 3), 1);
    fs_servable_close(s);
    free(file.data);
}

/* A row that stands for three is in all of them, plain and compiled. */
static void test_a_recorded_request_with_one_row_for_all(probe *p)
{
    static const bool broadcast[] = {true, false};
    rig_model m = rig_model_make("m", 1, "fail_nan=1");
    m.plans[RIG_PAIR].compiled = true;
    m.plans[RIG_PAIR].broadcast = broadcast;
    fs_servable *s = opened(p, &m);
    pb file = {0};
    record(&file, pair(1, 3));
    write_file(&file);
    fs_error err;
    fs_warm warm = {.iterations = 1, .requests = path, .max_request_bytes = MOST_BYTES};
    probe_forget(p);
    CHECK_OK(fs_servable_warm(s, &warm, &err));
    CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_PLAIN, 3), 1);
    CHECK_EQ(runs_of(p, RIG_PAIR, FS_RUN_COMPILED, 4), 2); /* zeros, and this one */
    CHECK_EQ(p->n_seen, 8);
    CHECK_MEM(p->seen, ((const float[]){1, 2, 1, 2, 1, 2, 1, 2}), 32);
    warm.max_request_bytes = 3 * 8 + 3 * 4 - 1;
    CHECK_EQ(fs_servable_warm(s, &warm, &err), -FS_RESOURCE_EXHAUSTED);
    fs_servable_close(s);
    free(file.data);
}

/* What the load says when the file has these bytes; always a failure. */
static const char *refusal(probe *p, const pb *file, int code)
{
    static fs_error err;
    rig_model m = rig_model_make("m", 1, "fail_nan=1");
    fs_servable *s = opened(p, &m);
    write_file(file);
    fs_warm warm = {.iterations = 1, .requests = path, .max_request_bytes = MOST_BYTES};
    CHECK_EQ(fs_servable_warm(s, &warm, &err), -code);
    fs_servable_close(s);
    return strstr(err.msg, " in /tmp/") == NULL ? err.msg : strchr(strstr(err.msg, " in /tmp/") + 4, ':');
}

static pb file_of(pb message)
{
    pb file = {0};
    record(&file, half(FS_DT_FLOAT, 1));
    record(&file, message);
    return file;
}

static void test_a_damaged_file_ends_the_load(probe *p)
{
    pb whole = file_of(text());
    for (size_t len = 1; len < whole.len; len++) {
        size_t first = 4 + whole.data[0];
        if (len == first)
            continue; /* one request less */
        pb cut = {.data = whole.data, .len = len};
        rig_model m = rig_model_make("m", 1, NULL);
        fs_servable *s = opened(p, &m);
        write_file(&cut);
        fs_error err;
        fs_warm warm = {.iterations = 1, .requests = path, .max_request_bytes = MOST_BYTES};
        CHECK_EQ(fs_servable_warm(s, &warm, &err), -FS_DATA_LOSS);
        char words[200];
        snprintf(words, sizeof words,
                 "the warm-up requests in %s are damaged: no request of that length at byte %zu of %zu", path,
                 len < first ? (size_t)0 : first, len);
        CHECK_STR(err.msg, words);
        fs_servable_close(s);
    }
    free(whole.data);
}

static void test_a_file_that_is_not_there(probe *p)
{
    rig_model m = rig_model_make("m", 1, NULL);
    fs_servable *s = opened(p, &m);
    fs_error err;
    fs_warm warm = {.iterations = 1, .requests = "/tmp/fastserve/no/such"};
    CHECK_EQ(fs_servable_warm(s, &warm, &err), -FS_NOT_FOUND);
    CHECK_STR(err.msg, "the warm-up requests in /tmp/fastserve/no/such cannot be read: "
                       "No such file or directory");
    fs_servable_close(s);
}

static void test_a_request_that_cannot_be_run_ends_the_load(probe *p)
{
    pb garbage = {0};
    pb_raw(&garbage, "\xff\xff\xff", 3);
    rig_input x = {.alias = "y", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = VALUES, .bytes = 4};
    float nan = __builtin_nanf("");
    rig_input bad = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {1}, .content = &nan, .bytes = 4};
    rig_input huge = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {251}};
    rig_input torn = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {2}, .content = VALUES,
                      .bytes = 7};
    struct {
        pb message;
        int code;
        const char *words;
    } cases[] = {
        {garbage, FS_INVALID_ARGUMENT, ": not a PredictRequest"},
        {half(FS_DT_INT32, 1), FS_INVALID_ARGUMENT, ": its input x is of type int32, not float"},
        {rig_message(&(rig_request){.model = "m", .signature = "none"}), FS_FAILED_PRECONDITION,
         ": Serving signature key \"none\" not found."},
        {rig_message(&(rig_request){.model = "m"}), FS_INVALID_ARGUMENT,
         ": it has 0 inputs, and signature serving_default 1"},
        {rig_message(&(rig_request){.model = "m", .inputs = &x, .n_inputs = 1}), FS_INVALID_ARGUMENT,
         ": it has no input x"},
        {rig_message(&(rig_request){.model = "m", .inputs = &huge, .n_inputs = 1}), FS_RESOURCE_EXHAUSTED,
         ": inputs of more than 1000 bytes once decoded (limits.max_message_bytes)"},
        {rig_message(&(rig_request){.model = "m", .inputs = &torn, .n_inputs = 1}), FS_INVALID_ARGUMENT,
         ": its input x is not a tensor that can be served"},
        {rig_message(&(rig_request){.model = "m", .inputs = &bad, .n_inputs = 1}), FS_INVALID_ARGUMENT,
         ": input 'x' has a NaN"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pb file = file_of(cases[i].message);
        CHECK_STR(refusal(p, &file, cases[i].code), cases[i].words);
        free(file.data);
    }
}

static void test_warming_without_memory(probe *p)
{
    rig_model m = rig_model_make("m", 1, NULL);
    m.plans[RIG_PAIR].compiled = true;
    fs_servable *s = opened(p, &m);
    pb file = file_of(pair(2, 2));
    record(&file, text());
    write_file(&file);
    fs_error err;
    long failed = 0;
    for (long n = 1;; n++) {
        fs_warm warm = {.iterations = 1, .requests = path, .max_request_bytes = MOST_BYTES};
        failmalloc_after(n);
        int rc = fs_servable_warm(s, &warm, &err);
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            CHECK_EQ(warm.failures, 0);
            break;
        }
        failed++;
        CHECK(rc == -FS_RESOURCE_EXHAUSTED || (rc == 0 && warm.failures == 1));
    }
    CHECK(failed >= 2);
    fs_servable_close(s);
    free(file.data);
}

int main(void)
{
    probe *p = calloc(1, sizeof *p);
    REQUIRE(p != NULL);
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    close(fd);
    probe_start(p);
    test_warming_runs_every_size_that_will_be_served(p);
    test_plain_warm_runs_that_fail_are_counted(p);
    test_a_compiled_warm_run_that_fails_ends_it(p);
    test_a_signature_without_inputs_is_not_warmed(p);
    test_recorded_requests_run_as_they_are_and_compiled(p);
    test_a_recorded_request_with_one_row_for_all(p);
    test_a_request_between_two_buckets_is_padded_with_its_first_row(p);
    test_a_damaged_file_ends_the_load(p);
    test_a_file_that_is_not_there(p);
    test_a_request_that_cannot_be_run_ends_the_load(p);
    test_warming_without_memory(p);
    probe_stop(p);
    unlink(path);
    free(p);
    return check_done();
}
