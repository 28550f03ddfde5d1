/* test_broadcast: inputs that come with one row for all of their request's, from the view to the client's answer. The
 * oracle is the same request with that row sent as often as there are rows: the answers are the same bytes. */
#include "engine_rig.h"

#include "broadcast.h"

/* ---- views ------------------------------------------------------------------------------------------- */

enum { ROW = 5, MOST_ROWS = 7 };

enum payload { CONTENT, TYPED, UNPACKED, SHORT, NONE, PAYLOADS };

/* A TensorProto of int64 [rows, inner] with the first `n` of the values. */
static pb numbers_proto(enum payload payload, int64_t rows, int64_t inner, const int64_t *values, int64_t n)
{
    pb t = {0}, shape = {0}, list = {0};
    pb_number(&t, 1, FS_DT_INT64);
    for (int d = 0; d < 2; d++) {
        pb dim = {0};
        pb_number(&dim, 1, (uint64_t)(d == 0 ? rows : inner));
        pb_message(&shape, 2, &dim);
    }
    pb_message(&t, 2, &shape);
    if (payload == CONTENT)
        pb_bytes(&t, 4, values, (size_t)n * sizeof *values);
    for (int64_t i = 0; i < n && payload == UNPACKED; i++)
        pb_number(&t, 10, (uint64_t)values[i]);
    for (int64_t i = 0; i < n && (payload == TYPED || payload == SHORT); i++)
        pb_varint(&list, (uint64_t)values[i]);
    if (list.len > 0)
        pb_message(&t, 10, &list);
    return t;
}

/* Every range of every number of rows, against the payload's row taken element by element. */
static void test_any_range_of_a_row_that_repeats_is_decoded(void)
{
    static const int64_t values[ROW] = {7, 300, -1, 0, INT64_C(1) << 40};
    static const fs_port port = {"x", "x:0", FS_DT_INT64, -1, NULL};
    static const fs_port ports[2] = {port, port};
    static const fs_signature sig = {.inputs = (fs_port *)(uintptr_t)ports, .n_inputs = 2};
    static const bool broadcast[2] = {true, false};
    fs_slab *slab = fs_slab_new(1 << 20);
    REQUIRE(slab != NULL);
    for (int payload = 0; payload < PAYLOADS; payload++) {
        int64_t n = payload == SHORT ? 2 : payload == NONE ? 0 : ROW;
        pb one = numbers_proto((enum payload)payload, 1, ROW, values, n);
        for (int64_t rows = 0; rows <= MOST_ROWS; rows++) {
            fs_arena arena;
            fs_arena_init(&arena, slab);
            int64_t others[MOST_ROWS] = {0};
            pb rest = numbers_proto(CONTENT, rows, 1, others, rows);
            fs_tensor_view views[2];
            REQUIRE(fs_tensor_view_parse(&arena, one.data, one.len, &views[0]) == 0);
            REQUIRE(fs_tensor_view_parse(&arena, rest.data, rest.len, &views[1]) == 0);
            fs_broadcast(&sig, broadcast, views);
            CHECK_EQ(views[0].dims[0], rows);
            CHECK_EQ(views[0].elements, rows * ROW);
            CHECK_EQ(views[0].repeats, rows != 1);
            for (int64_t first = 0; first <= rows * ROW; first++) {
                for (int64_t count = 0; first + count <= rows * ROW; count++) {
                    int64_t *got = malloc((size_t)(count + 1) * sizeof *got); /* its end is guarded by ASan */
                    REQUIRE(got != NULL);
                    got[count] = 99;
                    CHECK_OK(fs_tensor_view_decode(&views[0], first, count, got));
                    long wrong = got[count] != 99;
                    for (int64_t e = 0; e < count; e++) {
                        int64_t at = (first + e) % ROW;
                        wrong += got[e] != (payload == NONE ? 0 : values[at < n ? at : n - 1]);
                    }
                    CHECK_EQ(wrong, 0);
                    free(got);
                }
            }
            fs_arena_clear(&arena);
            free(rest.data);
        }
        free(one.data);
    }
    fs_slab_release(slab);
}

/* What the shapes of a request's inputs become: three inputs, of which the first two may come with one row. */
static void test_which_inputs_get_the_rows_of_the_others(void)
{
    enum { SCALAR = -1 };
    static int64_t open[] = {-1}, fixed[] = {3};
    static const bool broadcast[] = {true, true, false};
    static const struct {
        int64_t fixed_third; /* the signature's third input has a first dim of 3 */
        int64_t sent[3], become[3];
    } cases[] = {
        {0, {1, 4, 4}, {4, 4, 4}},       {0, {1, 1, 4}, {4, 4, 4}},       {0, {4, 1, 4}, {4, 4, 4}},
        {0, {4, 4, 4}, {4, 4, 4}},       {0, {1, 1, 1}, {1, 1, 1}},       {0, {1, 1, 0}, {0, 0, 0}},
        {0, {1, 0, 0}, {0, 0, 0}},       {0, {4, 4, 1}, {4, 4, 1}}, /* the third may not */
        {0, {1, 4, 1}, {1, 4, 1}},       {0, {1, 4, 5}, {1, 4, 5}},       {0, {2, 1, 4}, {2, 1, 4}},
        {0, {1, 1, SCALAR}, {1, 1, SCALAR}}, /* nobody says how many */
        {0, {1, 4, SCALAR}, {4, 4, SCALAR}}, {0, {SCALAR, 1, 4}, {SCALAR, 4, 4}},
        {1, {1, 4, 3}, {4, 4, 3}},       {1, {1, 1, 3}, {1, 1, 3}},       {1, {3, 1, 3}, {3, 3, 3}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        fs_port ports[3];
        fs_tensor_view views[3];
        int64_t dims[3][2];
        for (int i = 0; i < 3; i++) {
            int64_t sent = cases[c].sent[i];
            ports[i] = (fs_port){.ndim = i == 1 ? -1 : 1, .dims = i == 2 && cases[c].fixed_third ? fixed : open};
            dims[i][0] = sent == SCALAR ? 0 : sent;
            dims[i][1] = 2;
            views[i] = (fs_tensor_view){.dtype = FS_DT_FLOAT, .ndim = sent == SCALAR ? 0 : 2, .dims = dims[i],
                                        .elements = sent == SCALAR ? 1 : sent * 2};
        }
        fs_signature sig = {.inputs = ports, .n_inputs = 3};
        fs_broadcast(&sig, broadcast, views);
        for (int i = 0; i < 3; i++) {
            int64_t become = cases[c].become[i];
            CHECK_EQ(views[i].repeats, become != cases[c].sent[i]);
            CHECK_EQ(views[i].elements, become == SCALAR ? 1 : become * 2);
            if (become != SCALAR)
                CHECK_EQ(dims[i][0], become);
            CHECK_EQ(dims[i][1], 2);
        }
    }
}

static void test_more_elements_than_can_be_counted_are_beyond_every_limit(void)
{
    static const bool broadcast[] = {true, false};
    int64_t user[] = {1, 16}, others[] = {INT64_C(1) << 60, 0};
    fs_port ports[2] = {{.ndim = -1}, {.ndim = -1}};
    fs_tensor_view views[] = {{.dtype = FS_DT_STRING, .ndim = 2, .dims = user, .elements = 16},
                              {.dtype = FS_DT_STRING, .ndim = 2, .dims = others}};
    fs_broadcast(&(fs_signature){.inputs = ports, .n_inputs = 2}, broadcast, views);
    CHECK_EQ(views[0].elements, INT64_MAX);
    CHECK_EQ(views[1].elements, 0);
}

static void test_strings_that_repeat_are_slices_of_one_and_count_for_each(void)
{
    static const char *const words[] = {"twelve bytes", ""};
    static const bool broadcast[] = {true, false};
    fs_port ports[2] = {{.ndim = -1}, {.ndim = -1}};
    float others[MOST_ROWS] = {0};
    rig_input in[] = {{.alias = "w", .dtype = FS_DT_STRING, .ndim = 2, .dims = {1, 2}, .strings = words,
                       .n_strings = 2},
                      {.alias = "x", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {3}, .content = others,
                       .bytes = 12}};
    static const uint8_t lengths[] = {12, 0};
    pb packed = {0};
    pb_raw(&packed, lengths, sizeof lengths);
    pb_raw(&packed, words[0], 12);
    fs_slab *slab = fs_slab_new(1 << 20);
    REQUIRE(slab != NULL);
    for (int content = 0; content < 2; content++) {
        if (content) {
            in[0].n_strings = 0;
            in[0].content = packed.data;
            in[0].bytes = packed.len;
        }
        fs_arena arena;
        fs_arena_init(&arena, slab);
        pb w = rig_tensor(&in[0]), x = rig_tensor(&in[1]);
        fs_tensor_view views[2];
        REQUIRE(fs_tensor_view_parse(&arena, w.data, w.len, &views[0]) == 0);
        REQUIRE(fs_tensor_view_parse(&arena, x.data, x.len, &views[1]) == 0);
        CHECK_EQ(fs_tensor_view_string_bytes(&views[0]), 12);
        fs_broadcast(&(fs_signature){.inputs = ports, .n_inputs = 2}, broadcast, views);
        CHECK_EQ(fs_tensor_view_string_bytes(&views[0]), 36);
        fs_slice got[6];
        CHECK_OK(fs_tensor_view_decode(&views[0], 0, 6, got));
        for (int i = 0; i < 6; i++) {
            CHECK_EQ(got[i].len, i % 2 == 0 ? 12 : 0);
            CHECK_MEM(got[i].data, words[0], got[i].len);
            CHECK(got[i].data == got[i % 2].data);
        }
        fs_arena_clear(&arena);
        free(w.data);
        free(x.data);
    }
    int64_t many[] = {INT64_MAX};
    fs_tensor_view huge = {.dtype = FS_DT_STRING, .ndim = 1, .dims = many, .elements = INT64_MAX, .repeats = true,
                           .has_content = true, .values = {NULL, 3}};
    CHECK(fs_tensor_view_string_bytes(&huge) == UINT64_MAX);
    free(packed.data);
    fs_slab_release(slab);
}

static void test_a_row_that_is_malformed_at_decoding_says_so(void)
{
    int64_t dims[] = {4, 2}, got[8];
    fs_tensor_view view = {.dtype = FS_DT_INT64, .ndim = 2, .dims = dims, .elements = 8, .scattered = true,
                           .repeats = true, .values = {(const uint8_t *)"\x52\x06zzzzzz", 8}};
    view.values.len = 4; /* bytes that changed after they were parsed */
    CHECK_EQ(fs_tensor_view_decode(&view, 0, 8, got), -FS_INTERNAL);
    CHECK_EQ(fs_tensor_view_decode(&view, 3, 4, got), -FS_INTERNAL);
}

/* ---- requests ---------------------------------------------------------------------------------------- */

/* rank: candidates with a float [2] each; of the user, ids int64 [any], floats [3] and a word. Outputs are the
 * inputs. bag: the same with rows of any length on both sides. whole: as rank, and not batched. fixed: as rank, and
 * all rows of known length. */
enum { RANK, BAG, WHOLE, FIXED, SIGNATURES };

static const fs_signature *signatures(void)
{
    static int64_t n[] = {-1}, n2[] = {-1, 2}, n3[] = {-1, 3}, n4[] = {-1, 4}, nn[] = {-1, -1};
    static fs_port rank[] = {{"cand", "c:0", FS_DT_FLOAT, 2, n2}, {"ids", "i:0", FS_DT_INT64, 2, nn},
                             {"user", "u:0", FS_DT_FLOAT, 2, n3}, {"word", "w:0", FS_DT_STRING, 1, n}};
    static fs_port bag[] = {{"cand", "c:0", FS_DT_FLOAT, 2, nn}, {"ids", "i:0", FS_DT_INT64, 2, nn},
                            {"user", "u:0", FS_DT_FLOAT, 2, nn}, {"word", "w:0", FS_DT_STRING, 1, n}};
    static fs_port fixed[] = {{"cand", "c:0", FS_DT_FLOAT, 2, n2}, {"ids", "i:0", FS_DT_INT64, 2, n4},
                              {"user", "u:0", FS_DT_FLOAT, 2, n3}, {"word", "w:0", FS_DT_STRING, 1, n}};
    static const fs_signature all[SIGNATURES] = {
        [RANK] = {"serving_default", rank, 4, rank, 4, NULL},
        [BAG] = {"bag", bag, 4, bag, 4, NULL},
        [WHOLE] = {"whole", rank, 4, rank, 4, NULL},
        [FIXED] = {"fixed", fixed, 4, fixed, 4, NULL},
    };
    return all;
}

static const bool USERS[] = {false, true, true, true};

static rig_model model(const char *name, const char *options)
{
    rig_model m = rig_model_make(name, 1, options);
    m.spec.signatures = signatures();
    m.spec.n_signatures = SIGNATURES;
    for (int i = 0; i < SIGNATURES; i++) {
        m.plans[i].batched = i != WHOLE;
        m.plans[i].broadcast = USERS;
    }
    return m;
}

enum { MOST = 40, IDS = 4 };

/* A request of `rows` candidates; `user`: the rows that the user's inputs have, 1 or all. Its values come from `seed`,
 * and the user's are in every row the same. */
static pb request(const char *name, const char *signature, int64_t rows, int64_t user, int seed, bool typed)
{
    static float cand[MOST * 2], floats[MOST * 3];
    static int64_t ids[MOST * IDS];
    static const char *words[MOST];
    static char word[32];
    snprintf(word, sizeof word, "%.*s", seed % 30, "a word that is longer than a slice");
    REQUIRE(rows <= MOST && user <= MOST);
    for (int64_t i = 0; i < rows * 2; i++)
        cand[i] = (float)(seed * 1000 + i);
    for (int64_t r = 0; r < user; r++) {
        for (int k = 0; k < 3; k++)
            floats[r * 3 + k] = (float)(seed * 10 + k) + 0.5f;
        for (int k = 0; k < IDS; k++)
            ids[r * IDS + k] = (int64_t)seed << (10 * k);
        words[r] = word;
    }
    pb proto = numbers_proto(typed ? TYPED : UNPACKED, user, IDS, ids, user * IDS);
    rig_input in[] = {{.alias = "word", .dtype = FS_DT_STRING, .ndim = 1, .dims = {user}, .strings = words,
                       .n_strings = (int)user},
                      {.alias = "user", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {user, 3}, .content = floats,
                       .bytes = (size_t)user * 12},
                      {.alias = "cand", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {rows, 2}, .content = cand,
                       .bytes = (size_t)rows * 8},
                      {.alias = "ids", .proto = &proto}};
    pb frame = rig_request_frame(&(rig_request){.model = name, .signature = signature, .inputs = in, .n_inputs = 4});
    free(proto.data);
    return frame;
}

static void check_same_answer(const peer_call *one, const peer_call *all)
{
    CHECK_STR(one->grpc_status, all->grpc_status);
    CHECK_STR(one->grpc_message, all->grpc_message);
    CHECK_EQ(one->body_len, all->body_len);
    if (one->body_len == all->body_len)
        CHECK_MEM(one->body, all->body, one->body_len);
}

/* Asks both ways, one after the other; how many runs each took must be the same, too. Gives the first answer. */
static peer_call *ask_both(rig *r, const char *name, const char *signature, int64_t rows, int seed, bool typed)
{
    probe_forget(&r->probe);
    peer_call *all = rig_call(r, request(name, signature, rows, rows, seed, typed));
    int runs = probe_runs(&r->probe);
    probe_forget(&r->probe);
    peer_call *one = rig_call(r, request(name, signature, rows, 1, seed, typed));
    CHECK_EQ(probe_runs(&r->probe), runs);
    check_same_answer(one, all);
    return one;
}

/* The answer is the request's rows: an oracle beside the other way of asking. */
static void check_rows(rig *r, const peer_call *c, int64_t rows, int seed)
{
    rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
    REQUIRE(reply.n_outputs == 4);
    for (int i = 0; i < 4; i++) {
        const fs_tensor_view *view = &reply.outputs[i].view;
        CHECK_EQ(view->dims[0], rows);
        if (strcmp(reply.outputs[i].alias, "user") == 0) {
            float got[MOST * 3];
            CHECK_OK(fs_tensor_view_decode(view, 0, rows * 3, got));
            for (int64_t e = 0; e < rows * 3; e++)
                CHECK(got[e] == (float)(seed * 10 + e % 3) + 0.5f);
        } else if (strcmp(reply.outputs[i].alias, "ids") == 0) {
            int64_t got[MOST * IDS];
            CHECK_OK(fs_tensor_view_decode(view, 0, rows * IDS, got));
            for (int64_t e = 0; e < rows * IDS; e++)
                CHECK(got[e] == (int64_t)seed << (10 * (e % IDS)));
        }
    }
    fs_arena_clear(&reply.arena);
}

static void test_answers_are_those_of_the_rows_sent_in_full(rig *r)
{
    rig_model m = model("m", "op=echo");
    rig_serve(r, &m);
    static const int64_t rows[] = {1, 2, 8, 9, 20, MOST}; /* up to 8 in a batch, then in pieces */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int typed = 0; typed < 2; typed++) {
            for (int s = 0; s < SIGNATURES; s++) {
                peer_call *c = ask_both(r, "m", signatures()[s].name, rows[i], (int)i * 7 + 3, typed);
                CHECK_ANSWER(c, FS_OK, "");
                check_rows(r, c, rows[i], (int)i * 7 + 3);
            }
        }
    }
    CHECK_EQ(fs_servable_count(m.servable, RANK, FS_COUNT_UNBATCHED), 0);
    CHECK_EQ(fs_servable_count(m.servable, WHOLE, FS_COUNT_UNBATCHED), 24);
    ask_both(r, "m", NULL, 0, 5, true);
    CHECK_EQ(fs_servable_count(m.servable, RANK, FS_COUNT_UNBATCHED), 2); /* nothing to batch, either way */
    rig_check_idle(&m);
    rig_unserve(r, &m);
}

static void test_a_large_request_that_is_not_split_runs_alone(rig *r)
{
    rig_model m = model("m", "op=echo");
    m.batching.split_large = false;
    rig_serve(r, &m);
    peer_call *c = ask_both(r, "m", NULL, 20, 11, true);
    CHECK_ANSWER(c, FS_OK, "");
    check_rows(r, c, 20, 11);
    CHECK_EQ(fs_servable_count(m.servable, RANK, FS_COUNT_UNBATCHED), 2);
    rig_unserve(r, &m);
}

static void test_compiled_batches_are_padded_to_a_bucket(rig *r)
{
    rig_model m = model("m", "op=echo,compiled_rows=1:2:4:8");
    m.plans[FIXED].compiled = true;
    rig_serve(r, &m);
    for (int64_t rows = 1; rows <= 20; rows += 2) {
        peer_call *c = ask_both(r, "m", "fixed", rows, 9, false);
        CHECK_ANSWER(c, FS_OK, "");
        check_rows(r, c, rows, 9);
    }
    CHECK(fs_servable_count(m.servable, FIXED, FS_COUNT_COMPILED) >= 20);
    CHECK(fs_servable_count(m.servable, FIXED, FS_COUNT_PADDED_ROWS) > 0);
    rig_unserve(r, &m);
}

/* Calls that wait while another runs share the next batch, each with its own user. */
static void test_calls_that_share_a_batch_keep_their_users(rig *r)
{
    enum { CALLS = 5 };
    for (int pad = 0; pad < 2; pad++) {
        rig_model m = model("m", "op=echo");
        m.batching.max_batch_size = 64;
        m.batching.pad_variable_length = pad;
        rig_serve(r, &m);
        probe_gate(&r->probe, true);
        pb first = request("m", NULL, 1, 1, 1, true), frames[CALLS];
        peer_call *ahead = rig_send(&r->end, &first, NULL), *calls[CALLS];
        probe_wait(&r->probe, 1);
        for (int i = 0; i < CALLS; i++) {
            /* with all rows, with one, and with one candidate */
            frames[i] = request("m", NULL, i == 4 ? 1 : i + 2, i % 2 == 0 ? 1 : i + 2, 20 + i, i % 2);
            calls[i] = rig_send(&r->end, &frames[i], NULL);
        }
        probe_gate(&r->probe, false);
        rig_settle(&r->end);
        CHECK_ANSWER(ahead, FS_OK, "");
        CHECK_EQ(r->probe.n_log, 2);
        CHECK_EQ(r->probe.log[1].rows, 2 + 3 + 4 + 5 + 1);
        for (int i = 0; i < CALLS; i++) {
            CHECK_ANSWER(calls[i], FS_OK, "");
            check_rows(r, calls[i], i == 4 ? 1 : i + 2, 20 + i);
            free(frames[i].data);
        }
        free(first.data);
        rig_unserve(r, &m);
    }
}

/* Rows of unequal length, of which the user's one is the short one or the long one. */
static void test_rows_that_are_padded_to_one_length(rig *r)
{
    rig_model m = rig_model_make("m", 1, "op=echo");
    static const bool broadcast[] = {true, false};
    static int64_t n[] = {-1}, nn[] = {-1, -1};
    static fs_port ports[] = {{"a", "a:0", FS_DT_FLOAT, 2, nn}, {"b", "b:0", FS_DT_FLOAT, 1, n}};
    static const fs_signature sig = {"serving_default", ports, 2, ports, 2, NULL};
    m.spec.signatures = &sig;
    m.spec.n_signatures = 1;
    m.plans[0].broadcast = broadcast;
    m.batching.pad_variable_length = true;
    rig_serve(r, &m);
    static const float values[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const float padded[] = {1, 2, 3, 1, 2, 3, 4, 4, 4}; /* [1 2 3] for two rows, then [4] */
    rig_input long_user[] = {
        {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 3}, .content = values, .bytes = 12},
        {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {2}, .content = values, .bytes = 8}};
    rig_input short_user[] = {
        {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 1}, .content = values + 3, .bytes = 4},
        {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {4}, .content = values, .bytes = 16}};
    pb ahead = rig_request_frame(&(rig_request){.model = "m", .inputs = long_user, .n_inputs = 2});
    pb one = rig_request_frame(&(rig_request){.model = "m", .inputs = long_user, .n_inputs = 2});
    pb other = rig_request_frame(&(rig_request){.model = "m", .inputs = short_user, .n_inputs = 2});
    probe_gate(&r->probe, true);
    rig_send(&r->end, &ahead, NULL);
    probe_wait(&r->probe, 1);
    peer_call *a = rig_send(&r->end, &one, NULL), *b = rig_send(&r->end, &other, NULL);
    probe_gate(&r->probe, false);
    rig_settle(&r->end);
    CHECK_ANSWER(a, FS_OK, "");
    CHECK_ANSWER(b, FS_OK, "");
    CHECK_EQ(r->probe.n_log, 2);
    CHECK_EQ(r->probe.log[1].rows, 6);
    CHECK_EQ(r->probe.log[1].inner, 3);
    CHECK_MEM(r->probe.seen, padded, sizeof padded);
    CHECK_EQ(r->probe.n_seen, 18);
    free(ahead.data);
    free(one.data);
    free(other.data);
    rig_unserve(r, &m);
}

/* ---- what is refused, and what is not touched --------------------------------------------------------- */

static pb pair_request(int64_t rows_a, int64_t rows_b)
{
    static const float values[MOST] = {1, 2, 3, 4, 5, 6};
    rig_input in[] = {{.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {rows_a, 2}, .content = values,
                       .bytes = (size_t)rows_a * 8},
                      {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {rows_b}, .content = values,
                       .bytes = (size_t)rows_b * 4}};
    return rig_request_frame(&(rig_request){.model = "m", .signature = "pair", .inputs = in, .n_inputs = 2});
}

static void test_other_inputs_are_refused_as_before(rig *r)
{
    static const char unequal[] = "Batching Run() input tensors must have equal 0th-dimension size";
    static const bool broadcast[] = {true, false};
    rig_model m = rig_model_make("m", 1, NULL);
    m.batching.refuse_above = 8;
    m.plans[RIG_PAIR].broadcast = broadcast;
    rig_serve(r, &m);
    CHECK_ANSWER(rig_call(r, pair_request(1, 5)), FS_OK, "");
    CHECK_ANSWER(rig_call(r, pair_request(5, 1)), FS_INVALID_ARGUMENT, unequal); /* b may not */
    CHECK_ANSWER(rig_call(r, pair_request(2, 5)), FS_INVALID_ARGUMENT, unequal); /* 2 are not 1 */
    CHECK_ANSWER(rig_call(r, pair_request(1, 9)), FS_INVALID_ARGUMENT,
                 "Task size 9 is larger than maximum input batch size 8");
    rig_unserve(r, &m);
    m.plans[RIG_PAIR].broadcast = NULL;
    rig_serve(r, &m);
    CHECK_ANSWER(rig_call(r, pair_request(1, 5)), FS_INVALID_ARGUMENT, unequal);
    rig_unserve(r, &m);
}

static void test_defaults_are_rows_too(rig *r)
{
    static const float two[] = {7, 8};
    static const bool broadcast[] = {true, false};
    rig_input a = {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 2}, .content = two, .bytes = 8};
    rig_input b = {.alias = "b", .dtype = FS_DT_FLOAT, .ndim = 1, .dims = {2}, .content = two, .bytes = 8};
    pb tensor = rig_tensor(&a);
    fs_slice defaults[] = {{tensor.data, tensor.len}, {0}};
    rig_model m = rig_model_make("m", 1, "op=echo");
    m.plans[RIG_PAIR].defaults = defaults;
    m.plans[RIG_PAIR].broadcast = broadcast;
    rig_serve(r, &m);
    peer_call *c =
        rig_call(r, rig_request_frame(&(rig_request){.model = "m", .signature = "pair", .inputs = &b, .n_inputs = 1}));
    CHECK_ANSWER(c, FS_OK, "");
    rig_reply reply = rig_read(r->end.slab, c->body, c->body_len);
    float got[4] = {0};
    REQUIRE(reply.n_outputs == 2 && reply.outputs[0].view.elements == 4);
    CHECK_OK(fs_tensor_view_decode(&reply.outputs[0].view, 0, 4, got));
    CHECK_MEM(got, ((const float[]){7, 8, 7, 8}), sizeof got);
    fs_arena_clear(&reply.arena);
    CHECK_EQ(fs_servable_count(m.servable, RIG_PAIR, FS_COUNT_UNBATCHED), 0);
    rig_unserve(r, &m);
    free(tensor.data);
}

/* What it stands for is within limits.max_message_bytes and the budgets, not only what was sent. */
static void test_rows_that_were_not_sent_are_in_the_limits(rig *r)
{
    static const bool broadcast[] = {true, false};
    static int64_t n[] = {-1}, nn[] = {-1, -1};
    static fs_port ports[] = {{"a", "a:0", FS_DT_FLOAT, 2, nn}, {"b", "b:0", FS_DT_UINT8, 1, n}};
    static const fs_signature sig = {"serving_default", ports, 2, ports, 2, NULL};
    rig_model m = rig_model_make("m", 1, "op=echo");
    m.spec.signatures = &sig;
    m.spec.n_signatures = 1;
    m.plans[0].broadcast = broadcast;
    m.batching.max_batch_size = 4096;
    rig_serve(r, &m);
    float *row = calloc(1024, sizeof *row);
    uint8_t *others = calloc(1024, 1);
    REQUIRE(row != NULL && others != NULL);
    rig_input in[] = {
        {.alias = "a", .dtype = FS_DT_FLOAT, .ndim = 2, .dims = {1, 1024}, .content = row, .bytes = 4096},
        {.alias = "b", .dtype = FS_DT_UINT8, .ndim = 1, .dims = {1023}, .content = others, .bytes = 1023}};
    rig_request q = {.model = "m", .inputs = in, .n_inputs = 2};
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_OK, ""); /* 4 MiB less a little */
    in[1].dims[0] = 1024;
    in[1].bytes = 1024;
    CHECK_ANSWER(rig_call(r, rig_request_frame(&q)), FS_RESOURCE_EXHAUSTED,
                 "inputs of more than 4194304 bytes once decoded (limits.max_message_bytes)");
    int64_t limit = r->budget.limit;
    r->budget.limit = 1 << 20; /* enough for what comes, and not for what it becomes */
    in[1].dims[0] = 1023;
    in[1].bytes = 1023;
    CHECK_EQ(atoi(rig_call(r, rig_request_frame(&q))->grpc_status), FS_RESOURCE_EXHAUSTED);
    r->budget.limit = limit;
    CHECK_EQ(fs_budget_used(&r->budget), 0);
    rig_unserve(r, &m);
    free(row);
    free(others);
}

/* ---- memory and threads -------------------------------------------------------------------------------- */

static void test_calls_survive_any_allocation_failing(rig *r)
{
    rig_model m = model("m", "op=echo");
    rig_serve(r, &m);
    static const int64_t rows[] = {5, 20};
    for (size_t i = 0; i < 2; i++) {
        pb frame = request("m", NULL, rows[i], 1, 17, true);
        pb bytes = rig_opening_bytes(RIG_PREDICT, &frame);
        long sweeps = 0;
        while (rig_call_without_memory(r, &m, &bytes, sweeps + 1))
            sweeps++;
        CHECK(sweeps >= 3);
        rig_check_idle(&m);
        free(bytes.data);
        free(frame.data);
    }
    check_rows(r, rig_call(r, request("m", NULL, 5, 1, 17, true)), 5, 17);
    rig_unserve(r, &m);
}

static void test_many_calls_on_several_executors(void)
{
    enum { CALLS = 400 };
    fs_engine_config config = rig_config(4);
    rig *r = rig_start(&config);
    rig_model m = model("m", "op=echo,row_us=3");
    rig_serve(r, &m);
    static pb frames[CALLS];
    static peer_call *calls[CALLS];
    for (int i = 0; i < CALLS; i++) {
        int64_t rows = 1 + i * 7 % (MOST - 1);
        frames[i] = request("m", i % 5 == 0 ? "whole" : NULL, rows, i % 3 == 0 ? rows : 1, i, i % 2);
        calls[i] = rig_send(&r->end, &frames[i], NULL);
    }
    rig_settle(&r->end);
    for (int i = 0; i < CALLS; i++) {
        CHECK_ANSWER(calls[i], FS_OK, "");
        check_rows(r, calls[i], 1 + i * 7 % (MOST - 1), i);
        free(frames[i].data);
    }
    rig_check_idle(&m);
    rig_unserve(r, &m);
    rig_stop(r);
}

int main(void)
{
    test_any_range_of_a_row_that_repeats_is_decoded();
    test_which_inputs_get_the_rows_of_the_others();
    test_more_elements_than_can_be_counted_are_beyond_every_limit();
    test_strings_that_repeat_are_slices_of_one_and_count_for_each();
    test_a_row_that_is_malformed_at_decoding_says_so();
    fs_engine_config config = rig_config(1);
    rig *r = rig_start(&config);
    test_answers_are_those_of_the_rows_sent_in_full(r);
    test_a_large_request_that_is_not_split_runs_alone(r);
    test_compiled_batches_are_padded_to_a_bucket(r);
    test_calls_that_share_a_batch_keep_their_users(r);
    test_rows_that_are_padded_to_one_length(r);
    test_other_inputs_are_refused_as_before(r);
    test_defaults_are_rows_too(r);
    test_rows_that_were_not_sent_are_in_the_limits(r);
    test_calls_survive_any_allocation_failing(r);
    rig_stop(r);
    test_many_calls_on_several_executors();
    return check_done();
}
