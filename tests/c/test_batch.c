/* test_batch: rows of several calls through one run, without threads: what is gathered, what each call
 * gets back. */
#include "engine_rig.h"

#include "batch.h"
#include "failmalloc.h"

#include <math.h>

enum { CALLS = 64 };

/* One model, opened and not served, and what a test batches. */
typedef struct bench {
    rig *rig;
    rig_model model;
    fs_servable *servable;
    fs_slab *slab; /* the executor's */
    fs_homeward homeward;
    fs_item items[CALLS];
    fs_taking taking;
} bench;

static bench *set_up(rig_model model)
{
    fs_engine_config config = rig_config(1);
    bench *b = calloc(1, sizeof *b);
    REQUIRE(b != NULL);
    b->rig = rig_start(&config);
    b->model = model;
    b->model.spec.path = b->model.path;
    fs_error err;
    REQUIRE(fs_servable_open(b->rig->probe.runtime, model.name, model.version, &b->model.spec, b->model.plans,
                             &b->model.batching, &b->servable, &err) == 0);
    REQUIRE((b->slab = fs_slab_new(1 << 20)) != NULL);
    b->taking = (fs_taking){.items = b->items, .room = CALLS};
    return b;
}

static void tear_down(bench *b)
{
    fs_slab_release(b->slab);
    fs_servable_close(b->servable);
    rig_stop(b->rig);
    free(b);
}

static fs_queue *queue_of(bench *b, int signature)
{
    return &b->servable->queues[signature];
}

static fs_call *half_call(bench *b, const float *values, int64_t rows)
{
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {rows}, .content = values,
                   .bytes = (size_t)rows * sizeof *values};
    return rig_fake_call(&b->rig->end.owner, queue_of(b, RIG_HALF), &x, rows);
}

static fs_call *ragged_call(bench *b, const float *values, int64_t rows, int64_t inner)
{
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {rows, inner}, .content = values,
                   .bytes = (size_t)(rows * inner) * sizeof *values};
    return rig_fake_call(&b->rig->end.owner, queue_of(b, RIG_RAGGED), &x, rows);
}

static void put(bench *b, fs_call *call, int64_t first, int64_t rows)
{
    b->items[b->taking.n++] = (fs_item){call, first, rows};
    b->taking.rows += rows;
}

static fs_batch_result run(bench *b, int signature)
{
    fs_reply_config config = {0};
    b->homeward.n = 0;
    fs_batch_result result = fs_batch_run(queue_of(b, signature), &b->taking, &config, b->slab, &b->homeward);
    b->taking = (fs_taking){.items = b->items, .room = CALLS};
    return result;
}

/* Whether the last run sent the call home. */
static bool is_home(const bench *b, const fs_call *call)
{
    for (int i = 0; i < b->homeward.n; i++) {
        for (const fs_node *n = b->homeward.chain[i].first; n != NULL; n = n->next) {
            if (n == &call->mail.node)
                return true;
            if (n == b->homeward.chain[i].last)
                break;
        }
    }
    return false;
}

static void check_halves(bench *b, fs_call *call, const float *values, int64_t rows)
{
    CHECK(is_home(b, call));
    CHECK_EQ(call->code, FS_OK);
    if (call->code == FS_OK)
        rig_check_halves(b->rig->end.slab, call->reply, call->reply_len, values, rows);
}

static void check_error(bench *b, fs_call *call, int code, const char *text)
{
    CHECK(is_home(b, call));
    CHECK_EQ(call->code, code);
    CHECK_EQ(call->text_len, strlen(text));
    if (call->text_len == strlen(text))
        CHECK_MEM(call->text, text, call->text_len);
}

static const float A[] = {1, 2, 3}, B[] = {4}, C[] = {5, 6};

static void test_each_call_gets_its_own_rows(void)
{
    bench *b = set_up(rig_model_make("m", 1, NULL));
    fs_call *calls[] = {half_call(b, A, 3), half_call(b, B, 1), half_call(b, C, 2)};
    put(b, calls[0], 0, 3);
    put(b, calls[1], 0, 1);
    put(b, calls[2], 0, 2);
    fs_batch_result result = run(b, RIG_HALF);
    CHECK_EQ(result.finished, 3);
    CHECK_EQ(result.run_rows, 6);
    CHECK_EQ(b->rig->probe.n_log, 1);
    CHECK_EQ(b->rig->probe.log[0].rows, 6); /* not padded: nothing is compiled */
    CHECK_EQ(b->rig->probe.log[0].variant, FS_RUN_PLAIN);
    check_halves(b, calls[0], A, 3);
    check_halves(b, calls[1], B, 1);
    check_halves(b, calls[2], C, 2);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_OK), 3);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_ROWS), 6);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_BATCHES), 1);
    CHECK_EQ(fs_servable_batches_of(b->servable, RIG_HALF, 3), 1); /* 4 < 6 <= 8 */
    for (int i = 0; i < 3; i++)
        rig_fake_free(calls[i]);
    tear_down(b);
}

static void test_compiled_batches_are_padded_to_a_bucket(void)
{
    rig_model m = rig_model_make("m", 1, "compiled_rows=1:2:4:8");
    m.plans[RIG_HALF].compiled = true;
    bench *b = set_up(m);
    fs_call *calls[] = {half_call(b, A, 3), half_call(b, C, 2)};
    put(b, calls[0], 0, 3);
    put(b, calls[1], 0, 2);
    fs_batch_result result = run(b, RIG_HALF);
    CHECK_EQ(result.run_rows, 8);
    CHECK_EQ(b->rig->probe.n_log, 1);
    CHECK_EQ(b->rig->probe.log[0].rows, 8);
    CHECK_EQ(b->rig->probe.log[0].variant, FS_RUN_COMPILED);
    const float padded[] = {1, 2, 3, 5, 6, 5, 5, 5}; /* the last call's first row again */
    CHECK_MEM(b->rig->probe.seen, padded, sizeof padded);
    check_halves(b, calls[0], A, 3);
    check_halves(b, calls[1], C, 2);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_COMPILED), 1);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_PADDED_ROWS), 3);
    for (int i = 0; i < 2; i++)
        rig_fake_free(calls[i]);
    tear_down(b);
}

static void test_a_compiled_run_that_fails_is_run_plain(void)
{
    rig_model m = rig_model_make("m", 1, "compiled_rows=64"); /* so none of the buckets */
    m.plans[RIG_HALF].compiled = true;
    bench *b = set_up(m);
    fs_call *call = half_call(b, A, 3);
    put(b, call, 0, 3);
    run(b, RIG_HALF);
    CHECK_EQ(b->rig->probe.n_log, 2);
    CHECK_EQ(b->rig->probe.log[1].variant, FS_RUN_PLAIN);
    CHECK_EQ(b->rig->probe.log[1].rows, 3);
    check_halves(b, call, A, 3);
    rig_fake_free(call);
    tear_down(b);
}

static void test_one_bad_row_answers_for_itself(void)
{
    bench *b = set_up(rig_model_make("m", 1, "fail_nan=1"));
    const float bad[] = {NAN};
    fs_call *calls[] = {half_call(b, A, 3), half_call(b, bad, 1), half_call(b, C, 2)};
    put(b, calls[0], 0, 3);
    put(b, calls[1], 0, 1);
    put(b, calls[2], 0, 2);
    fs_batch_result result = run(b, RIG_HALF);
    CHECK_EQ(result.finished, 3);
    CHECK_EQ(b->rig->probe.n_log, 4); /* together, then each once */
    check_halves(b, calls[0], A, 3);
    check_error(b, calls[1], FS_INVALID_ARGUMENT, "input 'x' has a NaN");
    check_halves(b, calls[2], C, 2);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_RERUNS), 3);
    CHECK_EQ(fs_servable_count(b->servable, RIG_HALF, FS_COUNT_FAILED), 1);
    for (int i = 0; i < 3; i++)
        rig_fake_free(calls[i]);
    tear_down(b);
}

static void test_a_call_that_failed_alone_is_not_run_again(void)
{
    bench *b = set_up(rig_model_make("m", 1, "fail_nan=1"));
    const float bad[] = {NAN};
    fs_call *call = half_call(b, bad, 1);
    put(b, call, 0, 1);
    run(b, RIG_HALF);
    CHECK_EQ(b->rig->probe.n_log, 1);
    check_error(b, call, FS_INVALID_ARGUMENT, "input 'x' has a NaN");
    rig_fake_free(call);
    tear_down(b);
}

static int explained; /* how often, and with which rows */
static int64_t explained_rows;

static void explain(fs_model *model, uint32_t sig, const fs_tensor *inputs, fs_error *err)
{
    (void)model;
    CHECK_EQ(sig, RIG_HALF);
    explained++;
    explained_rows = inputs[0].dims[0];
    fs_fail(err, (enum fs_code)err->code, "row %lld is bad", (long long)explained_rows);
}

/* What a runtime has to say beyond an error is asked for once, for the run whose error a client gets. */
static void test_the_last_run_of_a_failed_call_is_explained(void)
{
    bench *b = set_up(rig_model_make("m", 1, "fail_nan=1"));
    b->servable->runtime.explain = explain;
    explained = 0;
    const float bad[] = {NAN};
    fs_call *calls[] = {half_call(b, A, 3), half_call(b, bad, 1), half_call(b, bad, 1), half_call(b, C, 2)};
    for (int i = 0; i < 2; i++)
        put(b, calls[i], 0, calls[i]->rows);
    run(b, RIG_HALF);
    CHECK_EQ(explained, 1);
    CHECK_EQ(explained_rows, 1);
    check_halves(b, calls[0], A, 3);
    check_error(b, calls[1], FS_INVALID_ARGUMENT, "row 1 is bad");
    put(b, calls[2], 0, 1); /* alone from the beginning */
    run(b, RIG_HALF);
    CHECK_EQ(explained, 2);
    check_error(b, calls[2], FS_INVALID_ARGUMENT, "row 1 is bad");
    put(b, calls[3], 0, 2);
    run(b, RIG_HALF);
    CHECK_EQ(explained, 2);
    check_halves(b, calls[3], C, 2);
    for (int i = 0; i < 4; i++)
        rig_fake_free(calls[i]);
    tear_down(b);
}

static void nobody(fs_call *call)
{
    (void)call;
}

/* Nor for what nobody reads: a shadow, and a call that has its outcome from its payload or from another piece. */
static void test_what_nobody_reads_is_not_explained(void)
{
    bench *b = set_up(rig_model_make("m", 1, "fail_nan=1"));
    b->servable->runtime.explain = explain;
    explained = 0;
    float bad[20];
    for (int i = 0; i < 20; i++)
        bad[i] = NAN;
    fs_call *shadow = half_call(b, bad, 1), *large = half_call(b, bad, 20), *other = half_call(b, bad, 1);
    shadow->done = nobody;
    put(b, shadow, 0, 1);
    CHECK_EQ(run(b, RIG_HALF).explained_us, 0);
    CHECK_EQ(explained, 0);
    check_error(b, shadow, FS_INVALID_ARGUMENT, "input 'x' has a NaN");
    for (int64_t first = 0; first < 20; first += 5) {
        put(b, large, first, 5);
        run(b, RIG_HALF);
        CHECK_EQ(explained, 1);
        CHECK_EQ(explained_rows, 5);
    }
    check_error(b, large, FS_INVALID_ARGUMENT, "row 5 is bad");
    other->code = FS_INTERNAL; /* as gather leaves a call whose payload is malformed */
    put(b, other, 0, 1);
    run(b, RIG_HALF);
    CHECK_EQ(explained, 1);
    rig_fake_free(shadow);
    rig_fake_free(large);
    rig_fake_free(other);
    tear_down(b);
}

static void test_outputs_without_rows_are_refused_alone_and_together(void)
{
    static const char text[] = "Batched output tensor has 0 dimensions";
    bench *b = set_up(rig_model_make("m", 1, NULL));
    b->rig->probe.scalar_outputs = true;
    fs_call *calls[] = {half_call(b, A, 3), half_call(b, B, 1), half_call(b, C, 2)};
    put(b, calls[0], 0, 3);
    run(b, RIG_HALF);
    check_error(b, calls[0], FS_FAILED_PRECONDITION, text);
    put(b, calls[1], 0, 1);
    put(b, calls[2], 0, 2);
    run(b, RIG_HALF);
    check_error(b, calls[1], FS_FAILED_PRECONDITION, text);
    check_error(b, calls[2], FS_FAILED_PRECONDITION, text);
    for (int i = 0; i < 3; i++)
        rig_fake_free(calls[i]);
    tear_down(b);
}

static void test_a_call_that_runs_alone_keeps_its_shape(void)
{
    bench *b = set_up(rig_model_make("m", 1, NULL));
    fs_call *call = half_call(b, B, 1);
    rig_fake_free(call);
    rig_input x = {.alias = "x", .dtype = FS_DT_FLOAT, .content = B, .bytes = sizeof B};
    call = rig_fake_call(&b->rig->end.owner, queue_of(b, RIG_SCALAR), &x, 1);
    call->solo = true;
    put(b, call, 0, 1);
    b->taking.solo = true;
    run(b, RIG_SCALAR);
    CHECK_EQ(b->rig->probe.log[0].rows, -1);
    CHECK(is_home(b, call));
    rig_reply reply = rig_read(b->rig->end.slab, call->reply, call->reply_len);
    CHECK_EQ(reply.outputs[0].view.ndim, 0);
    fs_arena_clear(&reply.arena);
    CHECK_EQ(fs_servable_count(b->servable, RIG_SCALAR, FS_COUNT_UNBATCHED), 1);
    rig_fake_free(call);
    tear_down(b);
}

/* ---- calls in pieces -------------------------------------------------------------------------------- */

static void test_pieces_are_put_together_in_any_order(void)
{
    bench *b = set_up(rig_model_make("m", 1, NULL));
    float twenty[20];
    for (int i = 0; i < 20; i++)
        twenty[i] = (float)(i * i);
    fs_call *large = half_call(b, twenty, 20), *small = half_call(b, A, 3);
    put(b, large, 16, 4);
    put(b, small, 0, 3);
    CHECK_EQ(run(b, RIG_HALF).finished, 1);
    check_halves(b, small, A, 3);
    CHECK(!is_home(b, large));
    put(b, large, 0, 8);
    CHECK_EQ(run(b, RIG_HALF).finished, 0);
    put(b, large, 8, 8);
    CHECK_EQ(run(b, RIG_HALF).finished, 1);
    check_halves(b, large, twenty, 20);
    rig_fake_free(small);
    rig_fake_free(large);
    tear_down(b);
}

static void test_pieces_of_strings(void)
{
    enum { ROWS = 10 };
    static char words[ROWS][16];
    const char *strings[ROWS];
    for (int i = 0; i < ROWS; i++) {
        snprintf(words[i], sizeof words[i], "%.*s", i % 7, "abcdefg");
        strings[i] = words[i];
    }
    bench *b = set_up(rig_model_make("m", 1, NULL));
    rig_input x = {.alias = "x", .dtype = FS_DT_STRING, .ndim = 1, .dims = {ROWS}, .strings = strings,
                   .n_strings = ROWS};
    fs_call *call = rig_fake_call(&b->rig->end.owner, queue_of(b, RIG_TEXT), &x, ROWS);
    put(b, call, 0, 8);
    run(b, RIG_TEXT);
    put(b, call, 8, 2);
    run(b, RIG_TEXT);
    CHECK(is_home(b, call));
    CHECK_EQ(call->code, FS_OK);
    rig_reply reply = rig_read(b->rig->end.slab, call->reply, call->reply_len);
    fs_slice got[ROWS];
    CHECK_EQ(reply.outputs[0].view.elements, ROWS);
    CHECK_OK(fs_tensor_view_decode(&reply.outputs[0].view, 0, ROWS, got));
    for (int i = 0; i < ROWS; i++) {
        CHECK_EQ(got[i].len, strlen(strings[i]));
        CHECK_MEM(got[i].data, strings[i], got[i].len);
    }
    fs_arena_clear(&reply.arena);
    rig_fake_free(call);
    tear_down(b);
}

static void test_a_piece_that_fails_fails_its_call_once_all_are_back(void)
{
    bench *b = set_up(rig_model_make("m", 1, "fail_nan=1"));
    float twenty[20] = {0};
    twenty[9] = NAN;
    fs_call *large = half_call(b, twenty, 20), *small = half_call(b, A, 3);
    put(b, large, 0, 8);
    run(b, RIG_HALF);
    put(b, large, 8, 5);
    put(b, small, 0, 3);
    CHECK_EQ(run(b, RIG_HALF).finished, 1);
    CHECK(!is_home(b, large));
    check_halves(b, small, A, 3);
    put(b, large, 13, 7);
    CHECK_EQ(run(b, RIG_HALF).finished, 1);
    check_error(b, large, FS_INVALID_ARGUMENT, "input 'x' has a NaN");
    rig_fake_free(small);
    rig_fake_free(large);
    tear_down(b);
}

/* However long a payload of one row is: the pieces must not each walk over it. */
static void test_pieces_read_a_row_for_all_of_them_once(void)
{
    bench *b = set_up(rig_model_make("m", 1, NULL));
    float twenty[20];
    for (int i = 0; i < 20; i++)
        twenty[i] = 3;
    fs_call *call = half_call(b, twenty, 20);
    fs_tensor_view *view = &call->views[0];
    view->has_content = false;
    view->scattered = view->repeats = true;
    view->values = (fs_slice){(const uint8_t *)"\x2a\0\x2a\0\x2a\0\x2d\0\0\x40\x40", 11}; /* empty runs, then 3 */
    put(b, call, 0, 8);
    run(b, RIG_HALF);
    CHECK(call->join->inputs[0] != NULL);
    view->values.data = (const uint8_t *)"\x2a\0\x2a\0\x2a\0\x2d\0\0\xa0\x40"; /* 5, were it read again */
    put(b, call, 8, 8);
    run(b, RIG_HALF);
    put(b, call, 16, 4);
    run(b, RIG_HALF);
    check_halves(b, call, twenty, 20);
    rig_fake_free(call);
    tear_down(b);
}

static void test_pieces_whose_outputs_differ_cannot_be_put_together(void)
{
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.pad_variable_length = true;
    bench *b = set_up(m);
    float twenty[20] = {0};
    fs_call *large = ragged_call(b, twenty, 10, 2), *longer = ragged_call(b, twenty, 1, 3);
    put(b, large, 0, 5);
    run(b, RIG_RAGGED);
    put(b, large, 5, 5);
    put(b, longer, 0, 1);
    run(b, RIG_RAGGED);
    check_error(b, large, FS_FAILED_PRECONDITION,
                "the answers of a request of 10 rows cannot be put together");
    CHECK(is_home(b, longer));
    CHECK_EQ(longer->code, FS_OK);
    rig_fake_free(large);
    rig_fake_free(longer);
    tear_down(b);
}

/* ---- padding to one length -------------------------------------------------------------------------- */

static void test_ragged_rows_are_padded_with_their_tensors_first_element(void)
{
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.pad_variable_length = true;
    bench *b = set_up(m);
    const float two_by_two[] = {7, 8, 9, 10}, one_by_three[] = {1, 2, 3}, one_by_one[] = {5};
    fs_call *calls[] = {ragged_call(b, two_by_two, 2, 2), ragged_call(b, one_by_three, 1, 3),
                        ragged_call(b, one_by_one, 1, 1)};
    put(b, calls[0], 0, 2);
    put(b, calls[1], 0, 1);
    put(b, calls[2], 0, 1);
    run(b, RIG_RAGGED);
    CHECK_EQ(b->rig->probe.n_log, 1);
    CHECK_EQ(b->rig->probe.log[0].rows, 4);
    CHECK_EQ(b->rig->probe.log[0].inner, 3);
    const float padded[] = {7, 8, 7, 9, 10, 7, 1, 2, 3, 5, 5, 5};
    CHECK_EQ(b->rig->probe.n_seen, 12);
    CHECK_MEM(b->rig->probe.seen, padded, sizeof padded);
    for (int i = 0; i < 3; i++) {
        CHECK(is_home(b, calls[i]));
        CHECK_EQ(calls[i]->code, FS_OK);
        rig_fake_free(calls[i]);
    }
    tear_down(b);
}

static void test_padding_does_not_multiply_memory(void)
{
    enum { LONG = 1 << 15, ROWS = 64 };
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.pad_variable_length = true;
    m.batching.max_batch_size = ROWS;
    bench *b = set_up(m);
    float *values = calloc(LONG, sizeof *values);
    fs_call *calls[ROWS];
    REQUIRE(values != NULL);
    for (int i = 0; i < ROWS; i++) {
        calls[i] = ragged_call(b, values, 1, i == 5 ? LONG : 1);
        put(b, calls[i], 0, 1);
    }
    CHECK_EQ(run(b, RIG_RAGGED).finished, ROWS);
    CHECK_EQ(b->rig->probe.n_log, ROWS); /* each alone, and nobody padded */
    for (int i = 0; i < ROWS; i++) {
        CHECK_EQ(b->rig->probe.log[i].inner, i == 5 ? LONG : 1);
        CHECK_EQ(calls[i]->code, FS_OK);
        rig_fake_free(calls[i]);
    }
    free(values);
    tear_down(b);
}

/* ---- values that parsing did not see ---------------------------------------------------------------- */

static void test_values_malformed_at_decoding_fail_their_own_call(void)
{
    bench *b = set_up(rig_model_make("m", 1, NULL));
    fs_call *calls[] = {half_call(b, A, 3), half_call(b, B, 1), half_call(b, C, 2)};
    /* Bytes that change after they were parsed: what decode promises to survive. */
    calls[1]->views[0].has_content = false;
    calls[1]->views[0].scattered = true;
    calls[1]->views[0].values = (fs_slice){(const uint8_t *)"\x2a\x06zzzzzz", 8};
    for (int i = 0; i < 3; i++)
        put(b, calls[i], 0, calls[i]->rows);
    run(b, RIG_HALF);
    CHECK_EQ(b->rig->probe.n_log, 1);
    check_halves(b, calls[0], A, 3);
    check_error(b, calls[1], FS_INTERNAL, "");
    check_halves(b, calls[2], C, 2);
    for (int i = 0; i < 3; i++)
        rig_fake_free(calls[i]);
    tear_down(b);
}

/* ---- memory ------------------------------------------------------------------------------------------- */

static void check_swept(bench *b, fs_call *call, const float *values, int64_t rows)
{
    if (call->code != FS_OK)
        CHECK_EQ(call->code, FS_RESOURCE_EXHAUSTED);
    else
        rig_check_halves(b->rig->end.slab, call->reply, call->reply_len, values, rows);
}

static void test_every_call_is_answered_whichever_allocation_fails(void)
{
    rig_model m = rig_model_make("m", 1, NULL);
    bench *b = set_up(m);
    float twenty[20];
    for (int i = 0; i < 20; i++)
        twenty[i] = (float)i;
    long sweeps = 0, failures = 0;
    for (long n = 1;; n++) {
        fs_call *calls[] = {half_call(b, A, 3), half_call(b, B, 1), half_call(b, twenty, 20)};
        fs_slab_release(b->slab);
        REQUIRE((b->slab = fs_slab_new(1 << 20)) != NULL); /* an empty one, so that it has to ask */
        failmalloc_after(n);
        put(b, calls[2], 0, 4);
        put(b, calls[0], 0, 3);
        put(b, calls[1], 0, 1);
        CHECK_EQ(run(b, RIG_HALF).finished, 2);
        CHECK(is_home(b, calls[0]) && is_home(b, calls[1]) && !is_home(b, calls[2]));
        for (int64_t at = 4; at < 20; at += 8) {
            put(b, calls[2], at, 8);
            CHECK_EQ(run(b, RIG_HALF).finished, at == 12);
        }
        failmalloc_after(-1);
        CHECK(is_home(b, calls[2]));
        check_swept(b, calls[0], A, 3);
        check_swept(b, calls[1], B, 1);
        check_swept(b, calls[2], twenty, 20);
        bool fired = failmalloc_fired();
        for (int i = 0; i < 3; i++) {
            failures += calls[i]->code != FS_OK;
            rig_fake_free(calls[i]);
        }
        if (!fired)
            break;
        sweeps++;
    }
    CHECK(sweeps >= 8);
    CHECK(failures > 0);
    tear_down(b);
}

int main(void)
{
    test_each_call_gets_its_own_rows();
    test_compiled_batches_are_padded_to_a_bucket();
    test_a_compiled_run_that_fails_is_run_plain();
    test_one_bad_row_answers_for_itself();
    test_a_call_that_failed_alone_is_not_run_again();
    test_the_last_run_of_a_failed_call_is_explained();
    test_what_nobody_reads_is_not_explained();
    test_outputs_without_rows_are_refused_alone_and_together();
    test_a_call_that_runs_alone_keeps_its_shape();
    test_pieces_are_put_together_in_any_order();
    test_pieces_of_strings();
    test_a_piece_that_fails_fails_its_call_once_all_are_back();
    test_pieces_read_a_row_for_all_of_them_once();
    test_pieces_whose_outputs_differ_cannot_be_put_together();
    test_ragged_rows_are_padded_with_their_tensors_first_element();
    test_padding_does_not_multiply_memory();
    test_values_malformed_at_decoding_fail_their_own_call();
    test_every_call_is_answered_whichever_allocation_fails();
    return check_done();
}
