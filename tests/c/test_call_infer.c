/* test_call_infer: Classify, Regress and MultiInference from the client's bytes to the client's answer: what they
 * are refused for, in TF Serving's codes and words, what they share a batch with, and what it costs in memory. */
#include "engine_rig.h"

#include "infer_reply.h"
#include "metrics_rig.h"
#include "text.h"

enum { CLASSIFY, REGRESS, LABELS, SCORES, OTHER_TENSOR, FLAT, NO_OUTPUTS, TWO_INPUTS, PLAIN, SIGNATURES };

#define METHOD_CLASSIFY "tensorflow/serving/classify"
#define METHOD_REGRESS "tensorflow/serving/regress"

static const fs_signature *signatures(void)
{
    static int64_t n[] = {-1}, n2[] = {-1, 2};
    static fs_port in[] = {{"inputs", "ex:0", FS_DT_STRING, 1, n}}, other[] = {{"inputs", "o:0", FS_DT_STRING, 1, n}};
    static fs_port two[] = {{"inputs", "ex:0", FS_DT_STRING, 1, n}, {"more", "m:0", FS_DT_STRING, 1, n}};
    static fs_port x[] = {{"x", "x:0", FS_DT_STRING, 1, n}};
    static fs_port both[] = {{"classes", "c:0", FS_DT_STRING, 2, n2}, {"scores", "s:0", FS_DT_FLOAT, 2, n2}};
    static fs_port labels[] = {{"classes", "c:0", FS_DT_STRING, 2, n2}};
    static fs_port scores[] = {{"scores", "s:0", FS_DT_FLOAT, 2, n2}};
    static fs_port flat[] = {{"scores", "v:0", FS_DT_FLOAT, 1, n}};
    static fs_port values[] = {{"outputs", "v:0", FS_DT_FLOAT, 1, n}};
    static fs_port neither[] = {{"y", "v:0", FS_DT_FLOAT, 1, n}};
    static const fs_signature all[SIGNATURES] = {
        [CLASSIFY] = {"classify", in, 1, both, 2, NULL},
        [REGRESS] = {"regress", in, 1, values, 1, NULL},
        [LABELS] = {"labels", in, 1, labels, 1, NULL},
        [SCORES] = {"scores", in, 1, scores, 1, NULL},
        [OTHER_TENSOR] = {"other", other, 1, values, 1, NULL},
        [FLAT] = {"flat", in, 1, flat, 1, NULL},
        [NO_OUTPUTS] = {"no_outputs", in, 1, neither, 1, NULL},
        [TWO_INPUTS] = {"two_inputs", two, 2, values, 1, NULL},
        [PLAIN] = {"serving_default", x, 1, neither, 1, NULL},
    };
    return all;
}

/* ---- a runtime of examples ----------------------------------------------------------------------- */

/* An example's value is its length; its classes are "long" or "short" with that score, and "never" with 0. An
 * example of FAILS bytes fails the run. */
enum { FAILS = 13, LONG = 6 };

static int labels_open(void *self, const fs_model_spec *spec, fs_model **out, fs_error *err)
{
    (void)self;
    (void)spec;
    (void)err;
    static int model;
    *out = (fs_model *)&model;
    return 0;
}

static void labels_close(fs_model *model)
{
    (void)model;
}

static void labels_release(fs_tensor *output)
{
    free(output->handle);
}

static int make_output(const fs_port *port, const fs_tensor *in, fs_tensor *out)
{
    int64_t rows = in->dims[0], columns = port->ndim == 2 ? 2 : 1;
    size_t size = port->dtype == FS_DT_STRING ? sizeof(fs_slice) : sizeof(float);
    int64_t *block = malloc(2 * sizeof *block + (size_t)(rows * columns) * size);
    if (block == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    block[0] = rows;
    block[1] = columns;
    *out = (fs_tensor){.dtype = port->dtype, .ndim = port->ndim, .dims = block, .elements = rows * columns,
                       .data = block + 2, .bytes = (size_t)(rows * columns) * size, .handle = block};
    for (int64_t r = 0; r < rows; r++) {
        size_t len = ((const fs_slice *)in->data)[r].len;
        for (int64_t c = 0; c < columns; c++) {
            const char *label = c == 1 ? "never" : len >= LONG ? "long" : "short";
            if (port->dtype == FS_DT_STRING)
                ((fs_slice *)out->data)[r * columns + c] = (fs_slice){(const uint8_t *)label, strlen(label)};
            else
                ((float *)out->data)[r * columns + c] = c == 0 ? (float)len : 0;
        }
    }
    return 0;
}

static int labels_run(fs_model *model, uint32_t sig, enum fs_run_variant variant, const fs_tensor *inputs,
                      fs_tensor *outputs, fs_error *err)
{
    (void)model;
    (void)variant;
    const fs_signature *signature = &signatures()[sig];
    for (int64_t r = 0; r < inputs[0].elements; r++) {
        if (((const fs_slice *)inputs[0].data)[r].len == FAILS)
            return fs_fail(err, FS_INVALID_ARGUMENT, "an example of %d bytes", FAILS);
    }
    for (uint32_t i = 0; i < signature->n_outputs; i++) {
        if (make_output(&signature->outputs[i], &inputs[0], &outputs[i]) != 0) {
            while (i-- > 0)
                labels_release(&outputs[i]);
            return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        }
    }
    return 0;
}

static const fs_runtime_ops LABELS_OPS = {
    .name = "labels", .open = labels_open, .run = labels_run, .release = labels_release, .close = labels_close};

static fs_runtime null_runtime; /* what the probe had before */

static rig *start(const fs_engine_config *config)
{
    rig *r = rig_start(config);
    null_runtime = r->probe.null;
    r->probe.null = (fs_runtime){.ops = &LABELS_OPS};
    probe_null_release = labels_release;
    return r;
}

static void stop(rig *r)
{
    r->probe.null = null_runtime;
    rig_stop(r);
}

static rig_model model(const char *name)
{
    rig_model m = rig_model_make(name, 3, NULL);
    m.spec = (fs_model_spec){.signatures = signatures(), .n_signatures = SIGNATURES};
    for (int i = 0; i < SIGNATURES; i++) {
        m.plans[i] = m.plans[RIG_HALF];
        m.plans[i].method = i == REGRESS || i == OTHER_TENSOR ? METHOD_REGRESS : METHOD_CLASSIFY;
    }
    m.plans[PLAIN].method = "tensorflow/serving/predict";
    m.plans[FLAT].batched = false;
    return m;
}

/* ---- requests ------------------------------------------------------------------------------------ */

/* An Example of `len` bytes, 0 or from 6 on: one feature whose name fills it. */
static pb example(size_t len)
{
    pb out = {0}, features = {0}, entry = {0};
    static const char name[] = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    if (len == 0)
        return out;
    REQUIRE(len >= 6 && len < sizeof name);
    pb_bytes(&entry, 1, name, len - 6);
    pb_message(&features, 1, &entry);
    pb_message(&out, 1, &features);
    REQUIRE(out.len == len);
    return out;
}

/* Examples of those lengths, -1 at the end; with a context of `context` bytes, or none when that is -1. */
static pb input_of(const int *lens, int context)
{
    pb list = {0}, input = {0};
    for (; *lens >= 0; lens++) {
        pb one = example((size_t)*lens);
        pb_message(&list, 1, &one);
    }
    if (context >= 0) {
        pb shared = example((size_t)context);
        pb_message(&list, 2, &shared);
    }
    pb_message(&input, context >= 0 ? 2 : 1, &list);
    return input;
}

static pb spec_of(const char *name, const char *signature, int64_t version)
{
    pb spec = {0};
    pb_text(&spec, 1, name);
    if (signature != NULL)
        pb_text(&spec, 3, signature);
    if (version >= 0) {
        pb number = {0};
        pb_number(&number, 1, (uint64_t)version);
        pb_message(&spec, 2, &number);
    }
    return spec;
}

static pb request_of(const char *signature, const int *lens, int context)
{
    pb message = {0}, spec = spec_of("m", signature, -1), input = input_of(lens, context);
    pb_message(&message, 1, &spec);
    pb_message(&message, 2, &input);
    return rig_frame(message);
}

#define LENS(...) ((const int[]){__VA_ARGS__, -1})
#define NO_EXAMPLES ((const int[]){-1})

static peer_call *classify(rig *r, const char *signature, const int *lens)
{
    return rig_call_to(r, RIG_CLASSIFY, request_of(signature, lens, -1));
}

static peer_call *regress(rig *r, const char *signature, const int *lens)
{
    return rig_call_to(r, RIG_REGRESS, request_of(signature, lens, -1));
}

typedef struct task {
    const char *model, *signature, *method;
    int64_t version; /* 0: none is named */
} task;

static pb multi_of(const task *tasks, int n, const int *lens, int context)
{
    pb message = {0}, input = input_of(lens, context);
    for (int i = 0; i < n; i++) {
        pb spec = spec_of(tasks[i].model, tasks[i].signature, tasks[i].version > 0 ? tasks[i].version : -1);
        pb one = {0};
        pb_message(&one, 1, &spec);
        pb_text(&one, 2, tasks[i].method);
        pb_message(&message, 1, &one);
    }
    pb_message(&message, 2, &input);
    return rig_frame(message);
}

#define MULTI(r, lens, ...)                                                                        \
    rig_call_to(r, RIG_MULTI_INFERENCE,                                                            \
                multi_of((const task[]){__VA_ARGS__}, sizeof((const task[]){__VA_ARGS__}) / sizeof(task), lens, -1))

static const task CLASSIFY_TASK = {"m", "classify", METHOD_CLASSIFY, 0};
static const task REGRESS_TASK = {"m", "regress", METHOD_REGRESS, 0};

/* ---- replies -------------------------------------------------------------------------------------- */

static fs_slice body_of(const peer_call *c)
{
    REQUIRE(c->body_len >= FS_GRPC_PREFIX_BYTES && c->body[0] == 0);
    return (fs_slice){c->body + FS_GRPC_PREFIX_BYTES, c->body_len - FS_GRPC_PREFIX_BYTES};
}

static void check_classes_in(fs_slice reply, const int *lens, bool labelled, bool scored)
{
    int64_t n_examples = -1, n_classes = -1, n = 0;
    static fs_class found[4096];
    static int64_t counts[2048];
    CHECK(fs_classes_count(reply, &n_examples, &n_classes));
    while (lens[n] >= 0)
        n++;
    CHECK_EQ(n_examples, n);
    CHECK_EQ(n_classes, 2 * n);
    if (n_examples != n || n_classes != 2 * n)
        return;
    fs_classes_read(reply, counts, found);
    for (int64_t i = 0; i < n; i++) {
        const char *label = !labelled ? "" : lens[i] >= LONG ? "long" : "short";
        CHECK_EQ(counts[i], 2);
        CHECK(fs_slice_compare(found[2 * i].label, fs_slice_of(label)) == 0);
        CHECK(fs_slice_compare(found[2 * i + 1].label, fs_slice_of(labelled ? "never" : "")) == 0);
        CHECK(found[2 * i].score == (scored ? (float)lens[i] : 0));
        CHECK(found[2 * i + 1].score == 0);
    }
}

static void check_values_in(fs_slice reply, const int *lens)
{
    int64_t n = 0;
    static float found[4096];
    while (lens[n] >= 0)
        n++;
    CHECK_EQ(fs_regressions_count(reply), n);
    if (fs_regressions_count(reply) != n)
        return;
    fs_regressions_read(reply, found);
    for (int64_t i = 0; i < n; i++)
        CHECK(found[i] == (float)lens[i]);
}

static void check_classes(peer_call *c, const int *lens)
{
    CHECK_ANSWER(c, FS_OK, "");
    if (c->body_len > 0)
        check_classes_in(body_of(c), lens, true, true);
}

static void check_values(peer_call *c, const int *lens)
{
    CHECK_ANSWER(c, FS_OK, "");
    if (c->body_len > 0)
        check_values_in(body_of(c), lens);
}

/* The answer to a MultiInference of CLASSIFY_TASK and REGRESS_TASK, in this order. */
static void check_both(peer_call *c, const int *lens)
{
    CHECK_ANSWER(c, FS_OK, "");
    fs_slice body = c->body_len > 0 ? body_of(c) : (fs_slice){NULL, 0};
    fs_wire w = fs_wire_over(body.data, body.len);
    int results = 0;
    while (w.at < w.end) {
        uint32_t tag;
        fs_slice result, part;
        REQUIRE(fs_wire_read_tag(&w, &tag) && tag == FS_WIRE_TAG(1, FS_WIRE_BYTES) &&
                fs_wire_read_bytes(&w, &result));
        results++;
        fs_wire inner = fs_wire_over(result.data, result.len);
        rig_reply spec = {.version = -1};
        REQUIRE(fs_wire_read_tag(&inner, &tag) && tag == FS_WIRE_TAG(1, FS_WIRE_BYTES) &&
                fs_wire_read_bytes(&inner, &part));
        rig_read_spec(&spec, part);
        CHECK_STR(spec.model, "m");
        CHECK_EQ(spec.version, 3);
        CHECK_STR(spec.signature, results == 1 ? "classify" : "regress");
        REQUIRE(fs_wire_read_tag(&inner, &tag) && fs_wire_read_bytes(&inner, &part));
        CHECK_EQ(tag >> 3, results == 1 ? 2 : 3);
        /* As field 1 of a response, it is that response's result. */
        pb response = {0};
        pb_bytes(&response, 1, part.data, part.len);
        if (results == 1)
            check_classes_in((fs_slice){response.data, response.len}, lens, true, true);
        else
            check_values_in((fs_slice){response.data, response.len}, lens);
        free(response.data);
    }
    CHECK_EQ(results, 2);
}

/* ---- Classify and Regress ------------------------------------------------------------------------- */

static void test_each_example_is_a_row(rig *r)
{
    peer_call *c = classify(r, "classify", LENS(0, 7, 20));
    check_classes(c, LENS(0, 7, 20));
    rig_reply spec = {.version = -1};
    fs_slice body = body_of(c);
    fs_wire w = fs_wire_over(body.data, body.len);
    uint32_t tag;
    fs_slice part;
    REQUIRE(fs_wire_read_tag(&w, &tag) && fs_wire_read_bytes(&w, &part)); /* the result */
    REQUIRE(fs_wire_read_tag(&w, &tag) && tag == FS_WIRE_TAG(2, FS_WIRE_BYTES) && fs_wire_read_bytes(&w, &part));
    rig_read_spec(&spec, part);
    CHECK_STR(spec.model, "m");
    CHECK_STR(spec.signature, "classify");
    CHECK_EQ(spec.version, 3);
    CHECK(w.at == w.end);
    check_values(regress(r, "regress", LENS(0, 7, 20)), LENS(0, 7, 20));
}

static void test_labels_alone_and_scores_alone(rig *r)
{
    peer_call *c = classify(r, "labels", LENS(0, 7));
    CHECK_ANSWER(c, FS_OK, "");
    check_classes_in(body_of(c), LENS(0, 7), true, false);
    c = classify(r, "scores", LENS(0, 7));
    CHECK_ANSWER(c, FS_OK, "");
    check_classes_in(body_of(c), LENS(0, 7), false, true);
}

static void test_a_context_is_part_of_every_example(rig *r)
{
    peer_call *c = rig_call_to(r, RIG_REGRESS, request_of("regress", LENS(0, 7, 20), 9));
    check_values(c, LENS(9, 16, 29));
    c = rig_call_to(r, RIG_CLASSIFY, request_of("classify", LENS(0), 7));
    check_classes(c, LENS(7));
    /* More rows than a batch takes: in pieces. */
    c = rig_call_to(r, RIG_REGRESS, request_of("regress", LENS(0, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17), 9));
    check_values(c, LENS(9, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26));
    /* A context that is there and empty is none. */
    c = rig_call_to(r, RIG_REGRESS, request_of("regress", LENS(7), 0));
    check_values(c, LENS(7));
}

static void test_what_is_refused(rig *r)
{
    CHECK_ANSWER(rig_call_to(r, RIG_CLASSIFY, rig_frame((pb){0})), FS_INVALID_ARGUMENT, "Missing ModelSpec");
    pb message = {0}, spec = spec_of("", NULL, -1);
    pb_message(&message, 1, &spec);
    CHECK_ANSWER(rig_call_to(r, RIG_REGRESS, rig_frame(message)), FS_INVALID_ARGUMENT,
                 "ModelSpec has no name specified.");
    message = (pb){0};
    spec = spec_of("nope", NULL, -1);
    pb_message(&message, 1, &spec);
    CHECK_ANSWER(rig_call_to(r, RIG_CLASSIFY, rig_frame(message)), FS_NOT_FOUND,
                 "Servable not found for request: Latest(nope)");
    CHECK_ANSWER(classify(r, "zzz", LENS(7)), FS_INVALID_ARGUMENT, "No signature was found with the name: zzz");
    CHECK_ANSWER(regress(r, "zzz", NO_EXAMPLES), FS_INVALID_ARGUMENT, "No signature was found with the name: zzz");
    CHECK_ANSWER(classify(r, "classify", NO_EXAMPLES), FS_INVALID_ARGUMENT, "Input is empty.");
    CHECK_ANSWER(rig_call_to(r, RIG_REGRESS, request_of("regress", NO_EXAMPLES, 7)), FS_INVALID_ARGUMENT,
                 "Input is empty.");
    /* What the signature must be comes before what the input must be. */
    CHECK_ANSWER(classify(r, NULL, NO_EXAMPLES), FS_INVALID_ARGUMENT,
                 "No classification inputs found in SignatureDef: serving_default");
    CHECK_ANSWER(regress(r, NULL, LENS(7)), FS_INVALID_ARGUMENT,
                 "No regression inputs found in SignatureDef: serving_default");
    CHECK_ANSWER(classify(r, "two_inputs", LENS(7)), FS_INVALID_ARGUMENT, "Expected one input Tensor.");
    CHECK_ANSWER(regress(r, "two_inputs", LENS(7)), FS_INVALID_ARGUMENT, "Expected one input Tensor.");
    CHECK_ANSWER(regress(r, "classify", LENS(7)), FS_INVALID_ARGUMENT, "Expected one output Tensor.");
    CHECK_ANSWER(regress(r, "scores", LENS(7)), FS_INVALID_ARGUMENT,
                 "No regression outputs found in SignatureDef: scores");
    CHECK_ANSWER(classify(r, "no_outputs", LENS(7)), FS_INVALID_ARGUMENT,
                 "Expected classification signature outputs to contain at least one of \"classes\" or \"scores\". "
                 "Signature was: no_outputs");
    CHECK_ANSWER(classify(r, "flat", LENS(7, 8)), FS_INVALID_ARGUMENT,
                 "Expected Tensor shape: [batch_size num_classes] but got [2]");
    CHECK_ANSWER(regress(r, "regress", LENS(7, FAILS)), FS_INVALID_ARGUMENT, "an example of 13 bytes");
}

/* Whatever else is wrong: gRPC parses before anybody looks. */
static void test_bytes_that_are_no_request(rig *r)
{
    for (int known = 0; known < 2; known++) {
        pb message = {0}, spec = spec_of("m", known ? "classify" : "zzz", -1), input = {0}, list = {0};
        pb_message(&message, 1, &spec);
        pb_bytes(&list, 1, "\x0a\x05", 2); /* an Example that ends too soon */
        pb_message(&input, 1, &list);
        pb_message(&message, 2, &input);
        CHECK_ANSWER(rig_call_to(r, RIG_CLASSIFY, rig_frame(message)), FS_INTERNAL, "");
    }
    pb message = {0};
    pb_bytes(&message, 2, "\x0a\x05", 2); /* a list that does */
    CHECK_ANSWER(rig_call_to(r, RIG_CLASSIFY, rig_frame(message)), FS_INTERNAL, "");
    message = (pb){0};
    pb_bytes(&message, 1, "\x0a\x05", 2);
    CHECK_ANSWER(rig_call_to(r, RIG_MULTI_INFERENCE, rig_frame(message)), FS_INTERNAL, "");
}

static void test_what_the_examples_take_is_bounded(rig *r)
{
    /* A context of 20 bytes before each of 300,000 examples: 6 MB, of a message of 0.6 MB. */
    pb message = {0}, spec = spec_of("m", "regress", -1), list = {0}, input = {0}, context = example(20);
    for (int i = 0; i < 300000; i++)
        pb_bytes(&list, 1, NULL, 0);
    pb_message(&list, 2, &context);
    pb_message(&input, 2, &list);
    pb_message(&message, 1, &spec);
    pb_message(&message, 2, &input);
    CHECK_ANSWER(rig_call_to(r, RIG_REGRESS, rig_frame(message)), FS_RESOURCE_EXHAUSTED,
                 "inputs of more than 4194304 bytes once decoded (limits.max_message_bytes)");
}

/* ---- together with others -------------------------------------------------------------------------- */

static void test_calls_of_all_kinds_share_a_run(rig *r, rig_model *m)
{
    probe_forget(&r->probe);
    probe_gate(&r->probe, true);
    pb first = request_of("classify", LENS(7), -1), second = request_of("classify", LENS(0, 20), -1);
    const char *word = "words";
    rig_input in = {.alias = "inputs", .dtype = FS_DT_STRING, .ndim = 1, .dims = {1}, .strings = &word,
                    .n_strings = 1};
    pb third = rig_request_frame(
        &(rig_request){.model = "m", .signature = "classify", .inputs = &in, .n_inputs = 1});
    pb fourth = multi_of((const task[]){CLASSIFY_TASK, REGRESS_TASK}, 2, LENS(8, 0), 9);
    peer_call *a = rig_send_to(&r->end, RIG_CLASSIFY, &first, NULL);
    probe_wait(&r->probe, 1);
    peer_call *b = rig_send_to(&r->end, RIG_CLASSIFY, &second, NULL);
    peer_call *c = rig_send(&r->end, &third, NULL);
    peer_call *d = rig_send_to(&r->end, RIG_MULTI_INFERENCE, &fourth, NULL);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    check_classes(a, LENS(7));
    check_classes(b, LENS(0, 20));
    CHECK_ANSWER(c, FS_OK, "");
    check_both(d, LENS(17, 9));
    rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
    CHECK_EQ(reply.n_outputs, 2);
    fs_arena_clear(&reply.arena);
    CHECK_EQ(r->probe.n_log, 3); /* one, and five rows of three calls, and the regression */
    long rows = 0;
    for (int i = 0; i < r->probe.n_log; i++)
        rows += r->probe.log[i].rows;
    CHECK_EQ(rows, 8);
    free(first.data);
    free(second.data);
    free(third.data);
    free(fourth.data);
    rig_check_idle(m);
}

static void test_one_bad_example_fails_its_own_call_alone(rig *r)
{
    probe_gate(&r->probe, true);
    pb first = request_of("classify", LENS(7), -1), bad = request_of("classify", LENS(8, FAILS), -1);
    pb junk = {0}, spec = spec_of("m", "classify", -1), input = {0}, list = {0};
    pb_message(&junk, 1, &spec);
    pb_bytes(&list, 1, "\x0a\x05", 2);
    pb_message(&input, 1, &list);
    pb_message(&junk, 2, &input);
    junk = rig_frame(junk);
    pb good = request_of("classify", LENS(9), -1);
    rig_send_to(&r->end, RIG_CLASSIFY, &first, NULL);
    probe_wait(&r->probe, 1);
    peer_call *a = rig_send_to(&r->end, RIG_CLASSIFY, &bad, NULL);
    peer_call *b = rig_send_to(&r->end, RIG_CLASSIFY, &junk, NULL);
    peer_call *c = rig_send_to(&r->end, RIG_CLASSIFY, &good, NULL);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    CHECK_ANSWER(a, FS_INVALID_ARGUMENT, "an example of 13 bytes");
    CHECK_ANSWER(b, FS_INTERNAL, "");
    check_classes(c, LENS(9));
    free(first.data);
    free(bad.data);
    free(junk.data);
    free(good.data);
}

static void test_a_bad_example_behind_pieces_that_are_good_fails_the_call(rig *r)
{
    pb frame = {0}, spec = spec_of("m", "classify", -1), input = {0}, list = {0};
    for (int i = 0; i < 10; i++)
        pb_bytes(&list, 1, "", 0);
    pb_bytes(&list, 1, "\x0a\x05", 2);
    pb_message(&frame, 1, &spec);
    pb_message(&input, 1, &list);
    pb_message(&frame, 2, &input);
    CHECK_ANSWER(rig_call_to(r, RIG_CLASSIFY, rig_frame(frame)), FS_INTERNAL, "");
    check_classes(classify(r, "classify", LENS(7)), LENS(7));
}

static void test_memory_for_a_context_is_in_the_budget(rig *r)
{
    size_t usual = r->budget.limit;
    const int *lens = LENS(20, 21, 22, 23, 24, 25, 26, 27, 28, 29); /* 245 bytes, and 10 x 30 of context */
    r->budget.limit = 1500; /* the message itself takes 1024 */
    check_values(regress(r, "regress", lens), lens);
    CHECK_ANSWER(rig_call_to(r, RIG_REGRESS, request_of("regress", lens, 30)), FS_RESOURCE_EXHAUSTED,
                 "Too many bytes in flight in the server (545 more vs. 1500)");
    r->budget.limit = usual;
    check_values(rig_call_to(r, RIG_REGRESS, request_of("regress", lens, 30)),
                 LENS(50, 51, 52, 53, 54, 55, 56, 57, 58, 59));
}

/* ---- MultiInference -------------------------------------------------------------------------------- */

static void test_several_tasks_on_one_input(rig *r)
{
    check_both(MULTI(r, LENS(0, 7, 20), CLASSIFY_TASK, REGRESS_TASK), LENS(0, 7, 20));
    check_both(rig_call_to(r, RIG_MULTI_INFERENCE,
                           multi_of((const task[]){CLASSIFY_TASK, REGRESS_TASK}, 2, LENS(0, 7), 8)),
               LENS(8, 15));
    /* In pieces. */
    const int *many = LENS(0, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17);
    check_both(MULTI(r, many, CLASSIFY_TASK, REGRESS_TASK), many);
    /* The first task says which version; what the others say of it is not asked. */
    task first = CLASSIFY_TASK, second = REGRESS_TASK;
    first.version = 3;
    second.version = 99;
    check_both(MULTI(r, LENS(7), first, second), LENS(7));
}

static void test_what_several_tasks_are_refused_for(rig *r)
{
    const task nameless = {"", "regress", METHOD_REGRESS, 0}, stranger = {"n", "regress", METHOD_REGRESS, 0};
    const task unknown = {"m", "zzz", METHOD_REGRESS, 0}, odd = {"m", "regress", "tensorflow/serving/predict", 0};
    const task plain = {"m", NULL, METHOD_CLASSIFY, 0}, other = {"m", "other", METHOD_REGRESS, 0};
    const task nope = {"nope", "regress", METHOD_REGRESS, 0}, two = {"m", "regress", METHOD_REGRESS, 2};
    static const char no_name[] = "ModelSpec has no name specified.";
    pb message = {0}, input = input_of(LENS(7), -1);
    pb_message(&message, 2, &input);
    CHECK_ANSWER(rig_call_to(r, RIG_MULTI_INFERENCE, rig_frame(message)), FS_INVALID_ARGUMENT, no_name);
    CHECK_ANSWER(MULTI(r, LENS(7), nameless), FS_INVALID_ARGUMENT, no_name);
    CHECK_ANSWER(MULTI(r, LENS(7), REGRESS_TASK, nameless), FS_INVALID_ARGUMENT,
                 "Found ModelSpec with an empty model name.");
    CHECK_ANSWER(MULTI(r, LENS(7), nope), FS_NOT_FOUND, "Servable not found for request: Latest(nope)");
    CHECK_ANSWER(MULTI(r, LENS(7), two), FS_NOT_FOUND, "Servable not found for request: Specific(m, 2)");
    CHECK_ANSWER(MULTI(r, LENS(7), REGRESS_TASK, stranger), FS_INVALID_ARGUMENT,
                 "All ModelSpecs in a MultiInferenceRequest must access the same model name.");
    CHECK_ANSWER(MULTI(r, LENS(7), REGRESS_TASK, CLASSIFY_TASK, REGRESS_TASK), FS_INVALID_ARGUMENT,
                 "Duplicate evaluation of signature: regress");
    CHECK_ANSWER(MULTI(r, LENS(7), unknown), FS_INVALID_ARGUMENT,
                 "Requested signature not found in model graph: zzz");
    CHECK_ANSWER(MULTI(r, LENS(7), odd), FS_UNIMPLEMENTED,
                 "Unsupported signature method_name: tensorflow/serving/predict");
    CHECK_ANSWER(MULTI(r, LENS(7), plain), FS_INVALID_ARGUMENT,
                 "No classification inputs found in SignatureDef: serving_default");
    CHECK_ANSWER(MULTI(r, LENS(7), REGRESS_TASK, other), FS_INVALID_ARGUMENT,
                 "Input tensor must be the same for all Signatures.");
    CHECK_ANSWER(MULTI(r, NO_EXAMPLES, CLASSIFY_TASK, REGRESS_TASK), FS_INVALID_ARGUMENT, "Input is empty.");
    CHECK_ANSWER(MULTI(r, LENS(FAILS), CLASSIFY_TASK, REGRESS_TASK), FS_INVALID_ARGUMENT,
                 "an example of 13 bytes");
    const task flat = {"m", "flat", METHOD_CLASSIFY, 0};
    CHECK_ANSWER(MULTI(r, LENS(7), REGRESS_TASK, flat), FS_INVALID_ARGUMENT,
                 "Expected Tensor shape: [batch_size num_classes] but got [1]");
}

static void test_a_full_queue_refuses_all_tasks(rig *r)
{
    rig_model m = model("m");
    m.version = 4;
    m.batching.max_batch_size = 2;
    m.batching.max_enqueued_batches = 1;
    rig_serve(r, &m);
    probe_gate(&r->probe, true);
    pb one = request_of("regress", LENS(7), -1), full = request_of("regress", LENS(8, 9), -1);
    peer_call *a = rig_send_to(&r->end, RIG_REGRESS, &one, NULL);
    probe_wait(&r->probe, 1);
    peer_call *b = rig_send_to(&r->end, RIG_REGRESS, &full, NULL);
    pb multi = multi_of((const task[]){CLASSIFY_TASK, REGRESS_TASK}, 2, LENS(7), -1);
    pb turned = multi_of((const task[]){REGRESS_TASK, CLASSIFY_TASK}, 2, LENS(7), -1);
    peer_call *c = rig_send_to(&r->end, RIG_MULTI_INFERENCE, &multi, NULL);
    peer_call *d = rig_send_to(&r->end, RIG_MULTI_INFERENCE, &turned, NULL);
    CHECK(!c->closed); /* its first task is under way */
    CHECK(d->closed);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    check_values(a, LENS(7));
    check_values(b, LENS(8, 9));
    static const char refused[] = "The batch scheduling queue to which this task was submitted is full; currently 1 "
                                  "batches enqueued and max_enqueued_batches is 1";
    CHECK_ANSWER(c, FS_UNAVAILABLE, refused);
    CHECK_ANSWER(d, FS_UNAVAILABLE, refused);
    rig_check_idle(&m);
    CHECK_EQ(fs_servable_count(m.servable, CLASSIFY, FS_COUNT_OK), 1);
    rig_unserve(r, &m);
    free(one.data);
    free(full.data);
    free(multi.data);
    free(turned.data);
}

static void test_tasks_that_expire_and_tasks_whose_caller_goes(rig *r, rig_model *m)
{
    probe_gate(&r->probe, true);
    pb one = request_of("regress", LENS(7), -1);
    pb multi = multi_of((const task[]){CLASSIFY_TASK, REGRESS_TASK}, 2, LENS(7), -1);
    peer_call *a = rig_send_to(&r->end, RIG_REGRESS, &one, NULL);
    probe_wait(&r->probe, 1);
    peer_call *b = rig_send_to(&r->end, RIG_MULTI_INFERENCE, &multi, "1m");
    peer_call *c = rig_send_to(&r->end, RIG_MULTI_INFERENCE, &multi, NULL);
    nghttp2_submit_rst_stream(r->end.peer->client, NGHTTP2_FLAG_NONE, c->id, NGHTTP2_CANCEL);
    peer_pump(r->end.peer);
    int64_t until_us = fs_now_us() + 3000;
    while (fs_now_us() < until_us)
        rig_turn(&r->end, 1);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    check_values(a, LENS(7));
    CHECK_ANSWER(b, FS_DEADLINE_EXCEEDED, "Deadline Exceeded");
    rig_check_idle(m);
    while (fs_h2_active_calls(r->end.h2) > 0)
        rig_turn(&r->end, 10);
    free(one.data);
    free(multi.data);
}

/* ---- counting -------------------------------------------------------------------------------------- */

/* One request, of the first task's signature; each task has waited and run in its own. */
static void test_several_tasks_are_counted_as_one_request(void)
{
    enum { MULTI = FS_CALL_MULTI_INFERENCE, GRPC = FS_TRANSPORT_GRPC };
    ledger l = ledger_open(60);
    fs_engine_config config = rig_config(1);
    config.metrics = l.metrics;
    rig *r = start(&config);
    rig_model m = model("m");
    m.batching.max_batch_size = 2;
    m.batching.max_enqueued_batches = 1;
    rig_serve(r, &m);
    const fs_meter *classified = ledger_find(&l, "m", m.version, "classify", false);
    const fs_meter *regressed = ledger_find(&l, "m", m.version, "regress", false);
    REQUIRE(classified != NULL && regressed != NULL);
    check_both(MULTI(r, LENS(7), CLASSIFY_TASK, REGRESS_TASK), LENS(7));
    check_classes(classify(r, "classify", LENS(7, 8)), LENS(7, 8));
    check_values(regress(r, "regress", LENS(7)), LENS(7));
    CHECK_EQ(ledger_requests(&classified->requests, MULTI, GRPC, FS_OK), 1);
    CHECK_EQ(ledger_requests(&classified->requests, FS_CALL_CLASSIFY, GRPC, FS_OK), 1);
    CHECK_EQ(ledger_requests(&regressed->requests, FS_CALL_REGRESS, GRPC, FS_OK), 1);
    CHECK_EQ(ledger_sum(&classified->requests), 2);
    CHECK_EQ(ledger_sum(&regressed->requests), 1);
    CHECK_EQ(ledger_count(&l, &classified->latency[MULTI][GRPC]), 1);
    CHECK_EQ(ledger_count(&l, &regressed->latency[MULTI][GRPC]), 0);
    CHECK_EQ(ledger_count(&l, &classified->queue), 2);
    CHECK_EQ(ledger_count(&l, &regressed->queue), 2);
    CHECK_EQ(fs_tick_read(&classified->rows_sum), 3);
    CHECK_EQ(fs_tick_read(&regressed->rows_sum), 2);

    /* Refused: for its second task, which comes home with the first; and for its first, at once. */
    probe_gate(&r->probe, true);
    pb one = request_of("regress", LENS(7), -1), full = request_of("regress", LENS(8, 9), -1);
    rig_send_to(&r->end, RIG_REGRESS, &one, NULL);
    probe_wait(&r->probe, 1);
    rig_send_to(&r->end, RIG_REGRESS, &full, NULL);
    pb multi = multi_of((const task[]){CLASSIFY_TASK, REGRESS_TASK}, 2, LENS(7), -1);
    pb turned = multi_of((const task[]){REGRESS_TASK, CLASSIFY_TASK}, 2, LENS(7), -1);
    rig_send_to(&r->end, RIG_MULTI_INFERENCE, &multi, NULL);
    rig_send_to(&r->end, RIG_MULTI_INFERENCE, &turned, NULL);
    CHECK_EQ(ledger_requests(&regressed->requests, MULTI, GRPC, FS_UNAVAILABLE), 1);
    CHECK_EQ(ledger_requests(&classified->requests, MULTI, GRPC, FS_UNAVAILABLE), 0);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    CHECK_EQ(ledger_requests(&classified->requests, MULTI, GRPC, FS_UNAVAILABLE), 1);
    task nope = CLASSIFY_TASK;
    nope.signature = "nope";
    CHECK_EQ(atoi(MULTI(r, LENS(7), nope)->grpc_status), FS_INVALID_ARGUMENT);
    CHECK_EQ(ledger_unresolved(&l, MULTI, GRPC, FS_INVALID_ARGUMENT), 1);
    CHECK_EQ(atoi(MULTI(r, LENS(7), REGRESS_TASK, nope)->grpc_status), FS_INVALID_ARGUMENT);
    CHECK_EQ(ledger_requests(&regressed->requests, MULTI, GRPC, FS_INVALID_ARGUMENT), 1);
    rig_check_idle(&m);
    const fs_meter *meters[] = {classified, regressed};
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(fs_tick_read(&meters[i]->pushed_calls), fs_tick_read(&meters[i]->finished_calls));
        CHECK_EQ(fs_tick_read(&meters[i]->pushed_rows), fs_tick_read(&meters[i]->left_rows));
    }
    rig_unserve(r, &m);
    stop(r);
    ledger_close(&l);
    free(one.data);
    free(full.data);
    free(multi.data);
    free(turned.data);
}

/* ---- method names ---------------------------------------------------------------------------------- */

static void test_method_names_are_looked_at_when_asked(void)
{
    fs_engine_config config = rig_config(1);
    config.check_method_names = true;
    rig *r = start(&config);
    rig_model m = model("m");
    m.plans[OTHER_TENSOR].method = "odd";
    m.plans[LABELS].method = NULL;
    rig_serve(r, &m);
    check_classes(classify(r, "classify", LENS(7)), LENS(7));
    check_values(regress(r, "regress", LENS(7)), LENS(7));
    check_both(MULTI(r, LENS(7), CLASSIFY_TASK, REGRESS_TASK), LENS(7));
    CHECK_ANSWER(classify(r, "regress", LENS(7)), FS_INVALID_ARGUMENT,
                 "Expected classification signature method_name to be " METHOD_CLASSIFY ". Was: " METHOD_REGRESS);
    CHECK_ANSWER(regress(r, "classify", LENS(7)), FS_INVALID_ARGUMENT,
                 "Expected regression signature method_name to be " METHOD_REGRESS ". Was: " METHOD_CLASSIFY);
    const task crossed = {"m", "regress", METHOD_CLASSIFY, 0};
    CHECK_ANSWER(MULTI(r, LENS(7), crossed), FS_INVALID_ARGUMENT,
                 "Expected classification signature method_name to be " METHOD_CLASSIFY ". Was: " METHOD_REGRESS);
    const char *word = "words";
    rig_input in = {.alias = "inputs", .dtype = FS_DT_STRING, .ndim = 1, .dims = {1}, .strings = &word,
                    .n_strings = 1};
    rig_request q = {.model = "m", .signature = "classify", .inputs = &in, .n_inputs = 1};
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_OK, "");
#define ONE_OF                                                                                     \
    "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "         \
    "tensorflow/serving/classify, tensorflow/serving/regress}. Was: "
    q.signature = "other";
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_INTERNAL, ONE_OF "odd");
    q.signature = "labels";
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_INTERNAL, ONE_OF);
    rig_unserve(r, &m);
    stop(r);
}

/* ---- many at once ---------------------------------------------------------------------------------- */

/* Tasks of one call end on several executors, in any order. */
static void test_many_calls_on_several_executors(void)
{
    enum { CALLS = 300 };
    fs_engine_config config = rig_config(4);
    rig *r = start(&config);
    rig_model m = model("m");
    m.batching.max_enqueued_batches = 10000;
    rig_serve(r, &m);
    const int *many = LENS(0, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17), *few = LENS(7, 20), *bad = LENS(7, FAILS);
    const task tasks[] = {CLASSIFY_TASK, REGRESS_TASK};
    pb frames[] = {multi_of(tasks, 2, many, -1), multi_of(tasks, 2, few, 9), multi_of(tasks, 2, bad, -1),
                   request_of("classify", few, -1)};
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < CALLS; i++)
            rig_send_to(&r->end, i % 4 == 3 ? RIG_CLASSIFY : RIG_MULTI_INFERENCE, &frames[i % 4], NULL);
        rig_settle(&r->end);
        for (int i = 0; i < CALLS; i++) {
            peer_call *c = &r->end.peer->calls[i];
            if (i % 4 == 0)
                check_both(c, many);
            else if (i % 4 == 1)
                check_both(c, LENS(16, 29));
            else if (i % 4 == 2)
                CHECK_ANSWER(c, FS_INVALID_ARGUMENT, "an example of 13 bytes");
            else
                check_classes(c, few);
        }
        peer_forget(r->end.peer);
    }
    rig_check_idle(&m);
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    rig_unserve(r, &m);
    stop(r);
    for (int i = 0; i < 4; i++)
        free(frames[i].data);
}

/* ---- memory ---------------------------------------------------------------------------------------- */

static void test_calls_survive_any_allocation_failing(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = start(&config);
    rig_model m = model("m");
    rig_serve(r, &m);
    const int *many = LENS(0, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17); /* in pieces */
    pb frames[] = {request_of("classify", many, 20), request_of("regress", LENS(7), -1),
                   multi_of((const task[]){CLASSIFY_TASK, REGRESS_TASK}, 2, many, 20)};
    const char *const paths[] = {RIG_CLASSIFY, RIG_REGRESS, RIG_MULTI_INFERENCE};
    for (int i = 0; i < 3; i++) {
        pb bytes = rig_opening_bytes(paths[i], &frames[i]);
        long sweeps = 0;
        while (rig_call_without_memory(r, &m, &bytes, sweeps + 1))
            sweeps++;
        CHECK(sweeps >= 3);
        rig_check_idle(&m);
        free(bytes.data);
        free(frames[i].data);
    }
    check_classes(classify(r, "classify", LENS(7)), LENS(7));
    rig_unserve(r, &m);
    stop(r);
}

int main(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = start(&config);
    rig_model m = model("m");
    rig_serve(r, &m);
    test_each_example_is_a_row(r);
    test_labels_alone_and_scores_alone(r);
    test_a_context_is_part_of_every_example(r);
    test_what_is_refused(r);
    test_bytes_that_are_no_request(r);
    test_what_the_examples_take_is_bounded(r);
    test_calls_of_all_kinds_share_a_run(r, &m);
    test_one_bad_example_fails_its_own_call_alone(r);
    test_a_bad_example_behind_pieces_that_are_good_fails_the_call(r);
    test_memory_for_a_context_is_in_the_budget(r);
    test_several_tasks_on_one_input(r);
    test_what_several_tasks_are_refused_for(r);
    test_a_full_queue_refuses_all_tasks(r);
    test_tasks_that_expire_and_tasks_whose_caller_goes(r, &m);
    rig_check_idle(&m);
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    rig_unserve(r, &m);
    stop(r);
    test_several_tasks_are_counted_as_one_request();
    test_method_names_are_looked_at_when_asked();
    test_many_calls_on_several_executors();
    test_calls_survive_any_allocation_failing();
    return check_done();
}
