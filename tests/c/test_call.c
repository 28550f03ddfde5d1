/* test_call: what a Predict is refused for, in TF Serving's codes and words, and what it is not refused
 * for. From the client's bytes to the client's answer. */
#include "engine_rig.h"

#include <zlib.h>

static const float ONE[] = {1}, TWO[] = {1, 2}, FOUR[] = {1, 2, 3, 4};

static rig_input floats_1d(const char *alias, const float *values, int64_t n)
{
    return (rig_input){.alias = alias, .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {n}, .content = values,
                       .bytes = (size_t)n * sizeof *values};
}

static rig_input floats_2d(const char *alias, const float *values, int64_t n, int64_t inner)
{
    return (rig_input){.alias = alias, .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {n, inner}, .content = values,
                       .bytes = (size_t)(n * inner) * sizeof *values};
}

static peer_call *ask(rig *r, const rig_request *request)
{
    return rig_call(r, rig_request_frame(request));
}

/* A call of model m's serving_default with these inputs. */
static peer_call *ask_inputs(rig *r, const char *signature, const rig_input *inputs, int n)
{
    return ask(r, &(rig_request){.model = "m", .signature = signature, .inputs = inputs, .n_inputs = n});
}

/* ---- which model, which signature -------------------------------------------------------------------- */

static void test_the_model_spec(rig *r)
{
    rig_input x = floats_1d("x", ONE, 1);
    rig_request q = {.inputs = &x, .n_inputs = 1};
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, "Missing ModelSpec");
    q.model = "";
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, "ModelSpec has no name specified.");
    q.model = "nope";
    CHECK_ANSWER(ask(r, &q), FS_NOT_FOUND, "Servable not found for request: Latest(nope)");
    q.model = "m";
    q.has_version = true;
    CHECK_ANSWER(ask(r, &q), FS_NOT_FOUND, "Servable not found for request: Specific(m, 0)");
    q.version = -1;
    CHECK_ANSWER(ask(r, &q), FS_NOT_FOUND, "Servable not found for request: Specific(m, -1)");
    q.version = 3;
    CHECK_ANSWER(ask(r, &q), FS_OK, "");
    q.has_version = false;
    q.label = "stable";
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, "Unrecognized servable version label: stable");
    q.label = NULL;
    q.signature = "zzz";
    CHECK_ANSWER(ask(r, &q), FS_FAILED_PRECONDITION, "Serving signature key \"zzz\" not found.");
    q.signature = "serving_default";
    CHECK_ANSWER(ask(r, &q), FS_OK, "");
}

static void test_a_reply_says_what_answered(rig *r)
{
    rig_input x = floats_1d("x", TWO, 2);
    peer_call *c = ask_inputs(r, NULL, &x, 1);
    CHECK_ANSWER(c, FS_OK, "");
    rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
    CHECK_STR(reply.model, "m");
    CHECK_STR(reply.signature, "serving_default");
    CHECK_EQ(reply.version, 3);
    CHECK_STR(reply.outputs[0].alias, "y");
    fs_arena_clear(&reply.arena);
    rig_check_halves(r->end.slab, c->body, c->body_len, TWO, 2);
}

/* ---- inputs and outputs ------------------------------------------------------------------------------ */

static void test_the_number_of_inputs(rig *r)
{
    CHECK_ANSWER(ask_inputs(r, NULL, NULL, 0), FS_INVALID_ARGUMENT,
                 "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
                 "Missing but required: {x}.");
    rig_input a = floats_2d("a", TWO, 1, 2);
    CHECK_ANSWER(ask_inputs(r, "pair", &a, 1), FS_INVALID_ARGUMENT,
                 "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
                 "Missing but required: {b}.");
    rig_input three[] = {floats_1d("q", ONE, 1), floats_1d("x", ONE, 1), floats_1d("c", ONE, 1)};
    CHECK_ANSWER(ask_inputs(r, NULL, three, 3), FS_INVALID_ARGUMENT,
                 "input size does not match signature: 3!=1 len({c,q,x}) != len({x}). Sent extra: {c,q}. "
                 "Missing but required: {}.");
}

static void test_many_inputs_are_named_until_the_message_is_full(rig *r)
{
    enum { MANY = 2000 };
    static rig_input inputs[MANY];
    static char names[MANY][16];
    for (int i = 0; i < MANY; i++) {
        snprintf(names[i], sizeof names[i], "n%04d", MANY - 1 - i);
        inputs[i] = floats_1d(names[i], ONE, 1);
    }
    peer_call *c = ask_inputs(r, NULL, inputs, MANY);
    CHECK_EQ(atoi(c->grpc_status), FS_INVALID_ARGUMENT);
    static const char start[] = "input size does not match signature: 2000!=1 len({n0000,n0001,n0002,";
    CHECK(strncmp(c->grpc_message, start, sizeof start - 1) == 0);
    size_t len = strlen(c->grpc_message);
    CHECK_EQ(len, FS_MESSAGE_MAX + sizeof FS_MESSAGE_MARK - 1);
    CHECK_STR(c->grpc_message + len - 12, "...TRUNCATED");
}

static void test_aliases(rig *r)
{
    rig_input q = floats_1d("q", ONE, 1);
    CHECK_ANSWER(ask_inputs(r, NULL, &q, 1), FS_INVALID_ARGUMENT,
                 "Signature input alias: x(feed name: x:0) not found in request and no default value "
                 "provided. Inputs expected to be in the request {q}, or default input alias set: ");
    rig_input two[] = {floats_2d("a", TWO, 1, 2), floats_1d("c", ONE, 1)};
    CHECK_ANSWER(ask_inputs(r, "pair", two, 2), FS_INVALID_ARGUMENT,
                 "Signature input alias: b(feed name: b:0) not found in request and no default value "
                 "provided. Inputs expected to be in the request {a,c}, or default input alias set: ");
}

static void test_the_output_filter(rig *r)
{
    rig_input in[] = {floats_2d("a", FOUR, 2, 2), floats_1d("b", TWO, 2)};
    rig_request q = {
        .model = "m", .signature = "pair", .inputs = in, .n_inputs = 2, .filter = {"q"}, .n_filter = 1};
    peer_call *c = ask(r, &q);
    CHECK_ANSWER(c, FS_OK, "");
    rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
    CHECK_EQ(reply.n_outputs, 1);
    CHECK_STR(reply.outputs[0].alias, "q");
    fs_arena_clear(&reply.arena);
    q.filter[1] = "p";
    q.n_filter = 2;
    c = ask(r, &q);
    reply = rig_read(r->end.slab, c->body, c->body_len);
    CHECK_EQ(reply.n_outputs, 2);
    fs_arena_clear(&reply.arena);
    q.filter[1] = "nope";
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "output tensor alias not found in signature: nope Outputs expected to be in the set {p,q}.");
    q.filter[1] = "q";
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, "duplicate output tensor alias: q");
    q.filter[1] = "p";
    q.filter[2] = "p";
    q.filter[3] = "p";
    q.n_filter = 4;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, "duplicate output tensor alias: p");
}

static void test_inputs_that_are_left_out_have_their_defaults(rig *r)
{
    static const float seven[] = {7};
    rig_input b = floats_1d("b", seven, 1);
    pb tensor = rig_tensor(&b);
    fs_slice defaults[] = {{0}, {tensor.data, tensor.len}}; /* of a and b */
    rig_model m = rig_model_make("d", 1, NULL);
    m.plans[RIG_PAIR].defaults = defaults;
    rig_serve(r, &m);
    rig_input in[] = {floats_2d("a", FOUR, 1, 2), floats_1d("b", ONE, 1), floats_1d("z", ONE, 1)};
    rig_request q = {.model = "d", .signature = "pair", .inputs = in, .n_inputs = 1};
    for (int given = 1; given <= 2; given++) {
        q.n_inputs = given;
        peer_call *c = ask(r, &q);
        CHECK_ANSWER(c, FS_OK, "");
        rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
        float got = 0;
        REQUIRE(reply.n_outputs == 2);
        CHECK_OK(fs_tensor_view_decode(&reply.outputs[1].view, 0, 1, &got));
        CHECK(got == (given == 1 ? 5.5f : 2.5f));
        fs_arena_clear(&reply.arena);
    }
    q.n_inputs = 3;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "input size does not match signature: 3!=2 len({a,b,z}) != len({a,b}). Sent extra: {z}. "
                 "Missing but required: {}.");
    in[1] = in[2];
    q.n_inputs = 2;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "Inputs contains invalid name. Used request inputs: a, request input: a,z");
    q.inputs = &in[1];
    q.n_inputs = 1;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "Signature input alias: a(feed name: a:0) not found in request and no default value provided. "
                 "Inputs expected to be in the request {z}, or default input alias set: b");
    q.n_inputs = 0;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "Signature input alias: a(feed name: a:0) not found in request and no default value provided. "
                 "Inputs expected to be in the request {}, or default input alias set: b");
    q.signature = NULL; /* of this one no input has a default */
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
                 "Missing but required: {x}.");
    rig_unserve(r, &m);
    free(tensor.data);
}

/* ---- tensors ----------------------------------------------------------------------------------------- */

static void test_dtypes(rig *r)
{
    int32_t one = 1;
    rig_input x = {.alias = "x", .dtype = FS_DT_INT32, .ndim = 1, .dims = {1}, .content = &one, .bytes = 4};
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT,
                 "Expects arg[0] to be float but int32 is provided");
    const char *text = "a";
    x = (rig_input){.alias = "x", .dtype = FS_DT_STRING, .ndim = 1, .dims = {1}, .strings = &text};
    x.n_strings = 1;
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT,
                 "Expects arg[0] to be float but string is provided");
    x = (rig_input){.alias = "x", .dtype = FS_DT_VARIANT, .ndim = 1, .dims = {1}};
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT,
                 "Expects arg[0] to be float but variant is provided");
    double two[] = {1, 2};
    rig_input in[] = {
        floats_2d("a", FOUR, 2, 2),
        {.alias = "b", .dtype = FS_DT_DOUBLE, .ndim = 1, .dims = {2}, .content = two, .bytes = sizeof two}};
    CHECK_ANSWER(ask_inputs(r, "pair", in, 2), FS_INVALID_ARGUMENT,
                 "Expects arg[1] to be float but double is provided");
}

static void test_tensors_that_tensorflow_would_not_make(rig *r)
{
    rig_input x = floats_1d("x", TWO, 2);
    x.dtype = 0;
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT, "tensor parsing error: x");
    x = floats_1d("x", TWO, 2);
    x.dims[0] = -2;
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT, "tensor parsing error: x");
    x = floats_1d("x", TWO, 2);
    x.bytes = 7;
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT, "tensor parsing error: x");
    x = floats_1d("x", TWO, 2);
    x.dims[0] = 3;
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INVALID_ARGUMENT, "tensor parsing error: x");
}

/* Whatever else is wrong: gRPC parses before anybody looks. */
static void test_bytes_that_are_no_request(rig *r)
{
    uint8_t junk[] = {0x08, 0xff};
    pb bad = {.data = junk, .len = sizeof junk};
    rig_input x = floats_1d("x", ONE, 1);
    x.proto = &bad;
    rig_request q = {.model = "m", .inputs = &x, .n_inputs = 1};
    CHECK_ANSWER(ask(r, &q), FS_INTERNAL, "");
    q.model = "nope";
    CHECK_ANSWER(ask(r, &q), FS_INTERNAL, "");
    q.model = "m";
    q.signature = "zzz";
    CHECK_ANSWER(ask(r, &q), FS_INTERNAL, "");
    rig_input in[] = {floats_1d("q", ONE, 1), x};
    CHECK_ANSWER(ask_inputs(r, NULL, in, 2), FS_INTERNAL, "");
    /* float_val, packed, of six bytes; int_val ends inside a varint */
    uint8_t six[] = {0x08, 0x01, 0x2a, 0x06, 0, 0, 0, 0, 0, 0}, cut[] = {0x08, 0x03, 0x3a, 0x01, 0x80};
    bad = (pb){.data = six, .len = sizeof six};
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INTERNAL, "");
    bad = (pb){.data = cut, .len = sizeof cut};
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_INTERNAL, "");
    pb message = rig_message(&(rig_request){.model = "m", .inputs = (rig_input[]){floats_1d("x", ONE, 1)},
                                            .n_inputs = 1});
    message.len--;
    CHECK_ANSWER(rig_call(r, rig_frame(message)), FS_INTERNAL, "");
}

/* One value stands for as many as the shape says. */
static void test_a_few_bytes_cannot_ask_for_all_memory(rig *r)
{
    float one = 1;
    pb tensor = {0}, shape = {0}, dim = {0};
    pb_number(&tensor, 1, FS_DT_FLOAT);
    pb_number(&dim, 1, 1 << 20);
    pb_message(&shape, 2, &dim);
    pb_message(&tensor, 2, &shape);
    pb_bytes(&tensor, 5, &one, 4);
    rig_input x = {.alias = "x", .proto = &tensor};
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_OK, "");
    free(tensor.data);

    tensor = shape = dim = (pb){0};
    pb_number(&tensor, 1, FS_DT_FLOAT);
    pb_number(&dim, 1, (1 << 20) + 1);
    pb_message(&shape, 2, &dim);
    pb_message(&tensor, 2, &shape);
    pb_bytes(&tensor, 5, &one, 4);
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_RESOURCE_EXHAUSTED,
                 "inputs of more than 4194304 bytes once decoded (limits.max_message_bytes)");
    free(tensor.data);
}

/* ---- shapes ------------------------------------------------------------------------------------------ */

static void check_last_run(rig *r, int runs, int64_t rows)
{
    CHECK_EQ(r->probe.n_log, runs);
    if (r->probe.n_log > 0)
        CHECK_EQ(r->probe.log[r->probe.n_log - 1].rows, rows);
}

static void test_what_cannot_be_batched_runs_alone(rig *r, rig_model *m)
{
    uint64_t alone = fs_servable_count(m->servable, RIG_HALF, FS_COUNT_UNBATCHED);
    probe_forget(&r->probe);
    rig_input x = floats_1d("x", ONE, 1);
    x.ndim = 0; /* a scalar where rows are expected */
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_OK, "");
    check_last_run(r, 1, -1);
    x = floats_2d("x", FOUR, 2, 2); /* another rank */
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_OK, "");
    check_last_run(r, 2, 2);
    x = floats_1d("x", ONE, 0); /* no rows */
    CHECK_ANSWER(ask_inputs(r, NULL, &x, 1), FS_OK, "");
    check_last_run(r, 3, 0);
    CHECK_EQ(fs_servable_count(m->servable, RIG_HALF, FS_COUNT_UNBATCHED) - alone, 3);

    alone = fs_servable_count(m->servable, RIG_PAIR, FS_COUNT_UNBATCHED);
    rig_input unequal[] = {floats_2d("a", FOUR, 2, 2), floats_1d("b", ONE, 1)};
    CHECK_ANSWER(ask_inputs(r, "pair", unequal, 2), FS_OK, "");
    rig_input scalars[] = {floats_2d("a", FOUR, 2, 2), floats_1d("b", ONE, 1)};
    scalars[0].ndim = 0;
    scalars[0].bytes = 4;
    CHECK_ANSWER(ask_inputs(r, "pair", scalars, 2), FS_OK, "");
    scalars[0] = floats_2d("a", FOUR, 2, 2);
    scalars[1].ndim = 0;
    CHECK_ANSWER(ask_inputs(r, "pair", scalars, 2), FS_OK, "");
    rig_input wide[] = {floats_2d("a", FOUR, 1, 4), floats_1d("b", ONE, 1)};
    CHECK_ANSWER(ask_inputs(r, "pair", wide, 2), FS_OK, "");
    CHECK_EQ(fs_servable_count(m->servable, RIG_PAIR, FS_COUNT_UNBATCHED) - alone, 4);
}

static void test_a_shape_without_elements_is_one_run_however_many_rows_it_claims(rig *r)
{
    probe_forget(&r->probe);
    rig_input x = floats_2d("x", NULL, INT64_C(1) << 60, 0);
    peer_call *c = ask_inputs(r, "ragged", &x, 1);
    CHECK_ANSWER(c, FS_OK, "");
    CHECK_EQ(r->probe.n_log, 1);
    rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
    CHECK_EQ(reply.outputs[0].view.dims[0], INT64_C(1) << 60);
    fs_arena_clear(&reply.arena);
}

static void test_a_signature_that_is_not_batched(rig *r)
{
    probe_forget(&r->probe);
    rig_input x = floats_1d("x", ONE, 1);
    x.ndim = 0;
    peer_call *c = ask_inputs(r, "scalar", &x, 1);
    CHECK_ANSWER(c, FS_OK, "");
    rig_check_halves(r->end.slab, c->body, c->body_len, ONE, 1);
    check_last_run(r, 1, -1);
}

static void test_refuse_larger_refuses_what_tf_serving_cannot_batch(rig *r)
{
    rig_model m = rig_model_make("strict", 1, NULL);
    m.batching.refuse_above = 8;
    rig_serve(r, &m);
    rig_input x = floats_1d("x", ONE, 1);
    rig_request q = {.model = "strict", .inputs = &x, .n_inputs = 1};
    CHECK_ANSWER(ask(r, &q), FS_OK, "");
    x.ndim = 0;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "Batching Run() input tensors must have at least one dimension");
    float nine[9] = {0};
    x = floats_1d("x", nine, 9);
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, "Task size 9 is larger than maximum input batch size 8");
    x = floats_1d("x", nine, 8);
    CHECK_ANSWER(ask(r, &q), FS_OK, "");
    rig_input unequal[] = {floats_2d("a", FOUR, 2, 2), floats_1d("b", ONE, 1)};
    q.signature = "pair";
    q.inputs = unequal;
    q.n_inputs = 2;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "Batching Run() input tensors must have equal 0th-dimension size");
    rig_input scalar = floats_1d("x", ONE, 1);
    scalar.ndim = 0;
    q.signature = "scalar"; /* batching there takes every signature */
    q.inputs = &scalar;
    q.n_inputs = 1;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT,
                 "Batching Run() input tensors must have at least one dimension");
    rig_unserve(r, &m);
}

static void test_shapes_that_were_not_compiled_are_refused_when_asked(rig *r)
{
    rig_model m = rig_model_make("xla", 1, NULL);
    m.plans[RIG_HALF].compiled = true;
    m.batching.refuse_unknown_shapes = true;
    m.batching.split_large = false;
    rig_serve(r, &m);
    static const char refused[] =
        "the inputs' shapes are none that were compiled for signature serving_default, and the model is "
        "configured with unknown_shapes = \"refuse\"";
    rig_input x = floats_1d("x", ONE, 1);
    rig_request q = {.model = "xla", .inputs = &x, .n_inputs = 1};
    CHECK_ANSWER(ask(r, &q), FS_OK, "");
    x.ndim = 0;
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, refused);
    float nine[9] = {0};
    x = floats_1d("x", nine, 9);
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, refused);
    x = floats_1d("x", nine, 0);
    CHECK_ANSWER(ask(r, &q), FS_INVALID_ARGUMENT, refused);
    q.signature = "text"; /* plain, so nothing is refused */
    const char *word = "word";
    x = (rig_input){.alias = "x", .dtype = FS_DT_STRING, .ndim = 0, .strings = &word, .n_strings = 1};
    CHECK_ANSWER(ask(r, &q), FS_OK, "");
    rig_unserve(r, &m);
}

/* ---- compressed requests ------------------------------------------------------------------------------ */

static pb deflated(pb message)
{
    uLongf room = compressBound(message.len);
    uint8_t *out = malloc(room);
    REQUIRE(out != NULL && compress(out, &room, message.data, message.len) == Z_OK);
    free(message.data);
    pb f = {0};
    uint8_t prefix[FS_GRPC_PREFIX_BYTES];
    fs_grpc_prefix_write(prefix, true, (uint32_t)room);
    pb_raw(&f, prefix, sizeof prefix);
    pb_raw(&f, out, room);
    free(out);
    return f;
}

static peer_call *ask_deflated(rig *r, pb frame)
{
    peer_call *c = peer_submit(r->end.peer, (peer_request){.path = RIG_PREDICT, .up = frame.data,
                                                           .up_len = frame.len, .encoding = "deflate"});
    rig_settle(&r->end);
    free(frame.data);
    return c;
}

static pb noise(int64_t rows, float *values)
{
    uint32_t x = 12345;
    for (int64_t i = 0; i < rows; i++) {
        x = x * 1664525 + 1013904223;
        values[i] = (float)(x >> 8);
    }
    rig_input in = floats_1d("x", values, rows);
    return rig_message(&(rig_request){.model = "m", .inputs = &in, .n_inputs = 1});
}

static void test_small_and_large_compressed_requests(rig *r)
{
    enum { LARGE = 20000 };
    static float values[LARGE];
    peer_call *c = ask_deflated(r, deflated(noise(3, values)));
    CHECK_ANSWER(c, FS_OK, "");
    rig_check_halves(r->end.slab, c->body, c->body_len, values, 3);
    pb frame = deflated(noise(LARGE, values));
    CHECK(frame.len > FS_INFLATE_INLINE_FROM); /* so the unpacker's */
    c = ask_deflated(r, frame);
    CHECK_ANSWER(c, FS_OK, "");
    rig_check_halves(r->end.slab, c->body, c->body_len, values, LARGE);
    enum { SAME = 100000 };
    static const float same[SAME];
    rig_input x = floats_1d("x", same, SAME);
    frame = deflated(rig_message(&(rig_request){.model = "m", .inputs = &x, .n_inputs = 1}));
    CHECK(frame.len <= FS_INFLATE_INLINE_FROM); /* and yet much in the end */
    CHECK(sizeof same > FS_INFLATE_INLINE_TO);
    c = ask_deflated(r, frame);
    CHECK_ANSWER(c, FS_OK, "");
    rig_check_halves(r->end.slab, c->body, c->body_len, same, SAME);
}

static void test_compressed_requests_that_are_too_much(rig *r)
{
    enum { MUCH = 5 << 20 };
    pb zeros = {.data = calloc(1, MUCH), .len = MUCH, .room = MUCH};
    REQUIRE(zeros.data != NULL);
    peer_call *c = ask_deflated(r, deflated(zeros));
    CHECK_EQ(atoi(c->grpc_status), FS_RESOURCE_EXHAUSTED);

    enum { ROWS = 400000 };
    float *values = malloc(ROWS * sizeof *values);
    REQUIRE(values != NULL);
    pb frame = deflated(noise(ROWS, values));
    free(values);
    CHECK(frame.len > 1 << 20);
    char expected[96];
    snprintf(expected, sizeof expected, "compressed message larger than max (%zu vs. %d)",
             frame.len - FS_GRPC_PREFIX_BYTES, 1 << 20);
    CHECK_ANSWER(ask_deflated(r, frame), FS_RESOURCE_EXHAUSTED, expected);
}

static void test_compressed_junk(rig *r)
{
    pb small = {0}, large = {0};
    uint8_t prefix[FS_GRPC_PREFIX_BYTES];
    fs_grpc_prefix_write(prefix, true, 100);
    pb_raw(&small, prefix, sizeof prefix);
    fs_grpc_prefix_write(prefix, true, 100000);
    pb_raw(&large, prefix, sizeof prefix);
    for (int i = 0; i < 100000; i++) {
        uint8_t byte = (uint8_t)(i * 7);
        if (i < 100)
            pb_raw(&small, &byte, 1);
        pb_raw(&large, &byte, 1);
    }
    CHECK_EQ(atoi(ask_deflated(r, small)->grpc_status), FS_INTERNAL);
    CHECK_EQ(atoi(ask_deflated(r, large)->grpc_status), FS_INTERNAL);
}

/* ---- memory ------------------------------------------------------------------------------------------- */

static void test_refused_calls_leave_nothing(rig *r, rig_model *m)
{
    rig_check_idle(m);
    CHECK_EQ(fs_h2_active_calls(r->end.h2), 0);
    CHECK_EQ(fs_budget_used(&r->budget), 0);
}

int main(void)
{
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    rig_model m = rig_model_make("m", 3, NULL);
    rig_serve(r, &m);
    test_the_model_spec(r);
    test_a_reply_says_what_answered(r);
    test_the_number_of_inputs(r);
    test_many_inputs_are_named_until_the_message_is_full(r);
    test_aliases(r);
    test_inputs_that_are_left_out_have_their_defaults(r);
    test_the_output_filter(r);
    test_dtypes(r);
    test_tensors_that_tensorflow_would_not_make(r);
    test_bytes_that_are_no_request(r);
    test_a_few_bytes_cannot_ask_for_all_memory(r);
    test_what_cannot_be_batched_runs_alone(r, &m);
    test_a_shape_without_elements_is_one_run_however_many_rows_it_claims(r);
    test_a_signature_that_is_not_batched(r);
    test_refuse_larger_refuses_what_tf_serving_cannot_batch(r);
    test_shapes_that_were_not_compiled_are_refused_when_asked(r);
    test_small_and_large_compressed_requests(r);
    test_compressed_requests_that_are_too_much(r);
    test_compressed_junk(r);
    test_refused_calls_leave_nothing(r, &m);
    rig_unserve(r, &m);
    rig_stop(r);
    return check_done();
}
