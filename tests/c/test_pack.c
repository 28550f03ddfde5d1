/* test_pack: the pool, vocabularies and the packing of columns, each also without memory. */
#include "pack.h"

#include <float.h>
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "failmalloc.h"
#include "hash.h"
#include "text.h"

/* ---- pool ------------------------------------------------------------------------------------- */

typedef struct tally {
    atomic_uint done[1000];
    atomic_uint in_slot[8];
    atomic_bool shared; /* a slot was used twice at once */
} tally;

static void count(void *arg, uint64_t index, uint32_t slot)
{
    tally *t = arg;
    if (atomic_fetch_add_explicit(&t->in_slot[slot], 1, memory_order_relaxed) != 0)
        atomic_store_explicit(&t->shared, true, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->done[index], 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&t->in_slot[slot], 1, memory_order_relaxed);
}

static void run_all(fs_pool *pool, uint64_t n)
{
    tally *t = calloc(1, sizeof *t);
    REQUIRE(t != NULL);
    fs_pool_run(pool, n, count, t);
    for (uint64_t i = 0; i < 1000; i++)
        CHECK_EQ(atomic_load_explicit(&t->done[i], memory_order_relaxed), i < n);
    CHECK(!atomic_load_explicit(&t->shared, memory_order_relaxed));
    free(t);
}

static void every_piece_is_run_once(void)
{
    for (uint32_t helpers = 0; helpers < 4; helpers++) {
        fs_pool *pool = fs_pool_new(helpers);
        REQUIRE(pool != NULL);
        CHECK_EQ(fs_pool_slots(pool), helpers + 1);
        for (uint64_t n = 0; n <= 1000; n = n * 3 + 1)
            run_all(pool, n);
        fs_pool_free(pool);
    }
    CHECK_EQ(fs_pool_slots(NULL), 1);
    run_all(NULL, 5);
    fs_pool_free(NULL);
}

static void a_forked_child_works_alone(void)
{
    fs_pool *pool = fs_pool_new(2);
    REQUIRE(pool != NULL);
    run_all(pool, 100);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        run_all(pool, 100); /* without its helpers this would wait for ever */
        fs_pool_free(pool);
        _exit(atomic_load_explicit(&check_failed, memory_order_relaxed) != 0);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    fs_pool_free(pool);
}

/* ---- vocabularies ----------------------------------------------------------------------------- */

static fs_column slices(const fs_slice *items, int64_t n)
{
    return (fs_column){(const uint8_t *)items, n, 1, sizeof *items, sizeof *items, 0, FS_COLUMN_SLICE};
}

static fs_column ints(const int64_t *items, int64_t n)
{
    return (fs_column){(const uint8_t *)items, n, 1, 8, 8, 8, FS_COLUMN_I64};
}

static int64_t find(const fs_vocab *vocab, const char *term)
{
    fs_slice text = fs_slice_of(term);
    return fs_vocab_find_text(vocab, text, fs_fingerprint(text));
}

static void terms_have_their_places(void)
{
    const fs_slice terms[] = {fs_slice_of("b"), fs_slice_of(""), fs_slice_of("a longer term")};
    fs_column column = slices(terms, 3);
    int64_t repeated;
    fs_vocab *vocab = fs_vocab_new(&column, &repeated);
    REQUIRE(vocab != NULL);
    CHECK_EQ(fs_vocab_terms(vocab), 3);
    CHECK_EQ(find(vocab, "b"), 0);
    CHECK_EQ(find(vocab, ""), 1);
    CHECK_EQ(find(vocab, "a longer term"), 2);
    CHECK_EQ(find(vocab, "a longer term "), -1);
    fs_vocab_free(vocab);

    int64_t *numbers = malloc(10000 * sizeof *numbers);
    REQUIRE(numbers != NULL);
    for (int64_t i = 0; i < 10000; i++)
        numbers[i] = i * (INT64_C(1) << 40) - 5;
    column = ints(numbers, 10000);
    vocab = fs_vocab_new(&column, &repeated);
    REQUIRE(vocab != NULL);
    int wrong = 0;
    for (int64_t i = 0; i < 10000; i++)
        wrong += fs_vocab_find_int(vocab, numbers[i]) != i || fs_vocab_find_int(vocab, numbers[i] + 1) != -1;
    CHECK_EQ(wrong, 0);
    CHECK(fs_vocab_bytes(vocab) < 10000 * 36);
    fs_vocab_free(vocab);
    numbers[9000] = numbers[17];
    CHECK(fs_vocab_new(&column, &repeated) == NULL);
    CHECK_EQ(repeated, 9000);
    free(numbers);
    fs_vocab_free(NULL);
}

static void a_term_that_is_there_twice_is_named(void)
{
    const fs_slice terms[] = {fs_slice_of("b"), fs_slice_of("c"), fs_slice_of("b")};
    fs_column column = slices(terms, 3);
    int64_t repeated = -1;
    CHECK(fs_vocab_new(&column, &repeated) == NULL);
    CHECK_EQ(repeated, 2);
    column.rows = FS_VOCAB_MAX_TERMS + 1;
    CHECK(fs_vocab_new(&column, &repeated) == NULL);
    CHECK_EQ(repeated, -1);
}

/* ---- steps ------------------------------------------------------------------------------------ */

static fs_pack_step step_of(enum fs_pack_op op, const fs_column *columns, uint32_t n, int64_t *out)
{
    return (fs_pack_step){
        .op = op,
        .columns = columns,
        .n_columns = n,
        .rows = columns[0].rows,
        .out = {(uint8_t *)out, 8, 8, FS_OUT_I64},
    };
}

static void hashing_with_a_mask(void)
{
    const fs_slice texts[] = {fs_slice_of("a"), fs_slice_of("mask"), fs_slice_of("")};
    fs_column column = slices(texts, 3);
    int64_t out[3];
    fs_pack_step step = step_of(FS_PACK_HASH, &column, 1, out);
    step.hasher.buckets = 10;
    step.has_mask = true;
    step.mask = fs_slice_of("mask");
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    CHECK_EQ(out[0], (int64_t)(fs_fingerprint(texts[0]) % 10) + 1);
    CHECK_EQ(out[1], 0);
    CHECK_EQ(out[2], (int64_t)(fs_fingerprint(texts[2]) % 10) + 1);
    CHECK_EQ(step.refused_row, -1);
}

static void integers_are_hashed_as_text(void)
{
    const int64_t numbers[] = {0, -1, 10, INT64_MIN, INT64_MAX};
    const char *texts[] = {"0", "-1", "10", "-9223372036854775808", "9223372036854775807"};
    fs_column column = ints(numbers, 5);
    int64_t out[5];
    fs_pack_step step = step_of(FS_PACK_FINGERPRINT, &column, 1, out);
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    for (int i = 0; i < 5; i++)
        CHECK_EQ(out[i], (int64_t)fs_fingerprint(fs_slice_of(texts[i])));
    column.kind = FS_COLUMN_U64;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    CHECK_EQ(out[1], (int64_t)fs_fingerprint(fs_slice_of("18446744073709551615")));
    const uint8_t bools[] = {0, 1};
    column = (fs_column){bools, 2, 1, 1, 1, 1, FS_COLUMN_BOOL};
    step.rows = 2;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    CHECK_EQ(out[0], (int64_t)fs_fingerprint(fs_slice_of("false")));
    CHECK_EQ(out[1], (int64_t)fs_fingerprint(fs_slice_of("true")));
}

static void values_on_boundaries(void)
{
    const double values[] = {-1, 0, 0.5, 1, 2, NAN, INFINITY, -INFINITY};
    const int64_t expected[] = {0, 1, 1, 3, 3, 3, 3, 0};
    const float boundaries[] = {0, 1, 1};
    fs_column column = {(const uint8_t *)values, 8, 1, 8, 8, 8, FS_COLUMN_F64};
    int64_t out[8];
    fs_pack_step step = step_of(FS_PACK_BUCKETIZE, &column, 1, out);
    step.boundaries = boundaries;
    step.n_boundaries = 3;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    for (int i = 0; i < 8; i++)
        CHECK_EQ(out[i], expected[i]);
    step.n_boundaries = 0;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    for (int i = 0; i < 8; i++)
        CHECK_EQ(out[i], 0);
}

static void unknown_integers(void)
{
    const int64_t terms[] = {7, 9};
    const int64_t numbers[] = {9, 7, -1, 4, 0};
    fs_column column = ints(terms, 2), values = ints(numbers, 5);
    int64_t repeated, out[5];
    fs_vocab *vocab = fs_vocab_new(&column, &repeated);
    REQUIRE(vocab != NULL);
    fs_pack_step step = step_of(FS_PACK_LOOKUP, &values, 1, out);
    step.vocab = vocab;
    step.has_mask = true;
    step.mask = fs_slice_of("0");
    step.first_unknown = 1;
    step.first_id = 4;
    step.hasher.buckets = 3;
    step.unknown_mod = true;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    const int64_t expected[] = {5, 4, 1 + 2, 1 + 1, 0};
    for (int i = 0; i < 5; i++)
        CHECK_EQ(out[i], expected[i]);
    step.unknown_mod = false;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    CHECK_EQ(out[2], 1 + (int64_t)(fs_fingerprint(fs_slice_of("-1")) % 3));
    step.refuse_unknown = true;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    CHECK_EQ(step.refused_row, 2);
    fs_vocab_free(vocab);
}

static void results_go_where_strides_say(void)
{
    const float floats[2][2] = {{1, NAN}, {3, 4}};
    const int64_t numbers[] = {5, 6};
    fs_column columns[] = {
        {(const uint8_t *)floats, 2, 2, 8, 4, 4, FS_COLUMN_F32},
        ints(numbers, 2),
    };
    float out[2][5];
    memset(out, 0, sizeof out);
    const fs_dense dense[] = {{0, 0, 1, false}, {9, 1, 2, false}, {0, 0, 1, true}};
    fs_pack_step step = {
        .op = FS_PACK_DENSE,
        .columns = columns,
        .n_columns = 2,
        .rows = 2,
        .out = {(uint8_t *)&out[1][3], -(int64_t)sizeof out[0], -(int64_t)sizeof(float), FS_OUT_F32},
        .dense = dense,
    };
    CHECK_OK(fs_pack_run(NULL, &step, 1)); /* upside down, from right to left */
    const float expected[2][5] = {{0, (float)log1p(6), 6, 3, 0}, {0, (float)log1p(5), 16, 1, 0}};
    CHECK_MEM(out, expected, sizeof out);
}

/* As libm has it, but for the last bit; and the same where there are no digits to compare. */
static void logarithms_are_those_of_libm(void)
{
    enum { SPECIAL = 15, ALL = 5001 };
    double values[ALL] = {0, -0.0, -1, -2, INFINITY, -INFINITY, 1e-300, -1e-300, 1e300, 1e-4, -1e-4,
                          -0.9999999, -1 + 0x1p-53, 0x1p-149, DBL_MAX};
    for (int i = SPECIAL; i < ALL; i++) {
        double x = ldexp((i * 7919) % 10007 / 10007.0, i % 120 - 60);
        values[i] = x < 1 && i % 3 == 0 ? -x : x;
    }
    fs_column column = {(const uint8_t *)values, ALL, 1, 8, 8, 8, FS_COLUMN_F64};
    float *out = malloc(ALL * sizeof *out);
    REQUIRE(out != NULL);
    const fs_dense dense = {0, 0, 1, true};
    fs_pack_step step = step_of(FS_PACK_DENSE, &column, 1, NULL);
    step.out = (fs_out){(uint8_t *)out, 4, 4, FS_OUT_F32};
    step.dense = &dense;
    CHECK_OK(fs_pack_run(NULL, &step, 1));
    int wrong = 0;
    for (int i = 0; i < ALL; i++) {
        float exact = (float)log1p(values[i]);
        bool same = isnan(exact) ? isnan(out[i]) : out[i] == exact && signbit(out[i]) == signbit(exact);
        if (!same && nextafterf(exact, out[i]) != out[i])
            wrong++;
    }
    CHECK_EQ(wrong, 0);
    free(out);
}

enum { MANY = 50000 };

/* What a pool makes of many rows and steps is what one thread makes of them. */
static void helpers_change_nothing(void)
{
    int64_t *numbers = malloc(MANY * sizeof *numbers);
    uint32_t(*points)[8] = calloc(MANY, sizeof *points);
    int64_t(*out)[3] = calloc(MANY, sizeof *out), (*alone)[3] = calloc(MANY, sizeof *out);
    REQUIRE(numbers != NULL && points != NULL && out != NULL && alone != NULL);
    for (int64_t i = 0; i < MANY; i++) {
        numbers[i] = i * i;
        points[i][0] = (uint32_t)(i % 3000) + 1;
        points[i][1] = 'a' + (uint32_t)i % 26;
    }
    fs_column columns[] = {
        ints(numbers, MANY),
        {(const uint8_t *)points, MANY, 1, sizeof *points, 4, sizeof *points, FS_COLUMN_UCS4},
    };
    fs_pool *pool = fs_pool_new(3);
    REQUIRE(pool != NULL);
    for (int round = 0; round < 2; round++) {
        int64_t(*to)[3] = round == 0 ? alone : out;
        fs_pack_step steps[3] = {
            step_of(FS_PACK_HASH, &columns[0], 1, &to[0][0]),
            step_of(FS_PACK_HASH, &columns[1], 1, &to[0][1]),
            step_of(FS_PACK_CROSS, columns, 2, &to[0][2]),
        };
        for (int i = 0; i < 3; i++) {
            steps[i].out.row_stride = sizeof *to;
            steps[i].hasher.buckets = 1000003;
        }
        CHECK_OK(fs_pack_run(round == 0 ? NULL : pool, steps, 3));
    }
    CHECK_MEM(out, alone, MANY * sizeof *out);
    fs_pool_free(pool);
    free(alone);
    free(out);
    free(points);
    free(numbers);
}

static void out_of_memory(void)
{
    const fs_slice terms[] = {fs_slice_of("b"), fs_slice_of("c")};
    const uint32_t points[2][10] = {{'b'}, {'x'}};
    const int64_t numbers[] = {1, 2};
    fs_column texts = slices(terms, 2), integers = ints(numbers, 2);
    fs_column wide = {(const uint8_t *)points, 2, 1, sizeof *points, 0, sizeof *points, FS_COLUMN_UCS4};
    for (long n = 1;; n++) {
        int64_t repeated = 5, out[2];
        failmalloc_after(n);
        fs_pool *pool = fs_pool_new(0);
        fs_vocab *vocab = fs_vocab_new(&texts, &repeated);
        fs_vocab *counted = fs_vocab_new(&integers, &repeated);
        fs_pack_step step = step_of(FS_PACK_HASH, &wide, 1, out);
        step.hasher.buckets = 5;
        int rc = fs_pack_run(NULL, &step, 1);
        failmalloc_after(-1);
        bool fired = failmalloc_fired();
        CHECK_EQ((pool == NULL) + (vocab == NULL) + (counted == NULL) + (rc != 0), fired);
        CHECK(rc == 0 || rc == -FS_RESOURCE_EXHAUSTED);
        CHECK(vocab != NULL && counted != NULL ? true : repeated == -1);
        fs_pool_free(pool);
        fs_vocab_free(vocab);
        fs_vocab_free(counted);
        if (!fired)
            break;
    }
}

int main(void)
{
    a_forked_child_works_alone();
    every_piece_is_run_once();
    terms_have_their_places();
    a_term_that_is_there_twice_is_named();
    hashing_with_a_mask();
    integers_are_hashed_as_text();
    values_on_boundaries();
    unknown_integers();
    results_go_where_strides_say();
    logarithms_are_those_of_libm();
    helpers_change_nothing();
    out_of_memory();
    return check_done();
}
