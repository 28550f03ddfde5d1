/* infer_request and examples: requests of Classify, Regress and MultiInference read, whole, merged, cut and
 * malformed; and their examples as strings. */
#include "infer_request.h"

#include "check.h"
#include "failmalloc.h"
#include "text.h"
#include "wire.h"

/* Bytes under construction; they grow. */
typedef struct text {
    uint8_t *data;
    size_t len, room;
} text;

static void put(text *t, const void *data, size_t len)
{
    if (t->len + len > t->room) {
        t->room = 2 * (t->len + len);
        t->data = realloc(t->data, t->room);
        REQUIRE(t->data != NULL);
    }
    if (len > 0)
        memcpy(t->data + t->len, data, len);
    t->len += len;
}

static void put_field(text *t, unsigned number, const void *data, size_t len)
{
    uint8_t head[FS_WIRE_MAX_VARINT + 5];
    uint8_t *end = fs_wire_put_head(head, number, len);
    put(t, head, (size_t)(end - head));
    put(t, data, len);
}

/* Puts a part as a field and frees it. */
static void put_part(text *t, unsigned number, text part)
{
    put_field(t, number, part.data, part.len);
    free(part.data);
}

/* An Example with one feature: `name` is one float. */
static text example(const char *name, float value)
{
    text list = {0}, feature = {0}, entry = {0}, features = {0}, out = {0};
    put_field(&list, 1, &value, sizeof value);
    put_part(&feature, 2, list);
    put_field(&entry, 1, name, strlen(name));
    put_part(&entry, 2, feature);
    put_part(&features, 1, entry);
    put_part(&out, 1, features);
    return out;
}

static text spec(const char *name, const char *signature)
{
    text out = {0};
    put_field(&out, 1, name, strlen(name));
    put_field(&out, 3, signature, strlen(signature));
    return out;
}

static fs_arena arena;

/* In memory of its own, so that a sanitizer sees every read beyond it; the caller frees *own. */
static int parse(const text *t, bool multi, fs_infer_request *out, uint8_t **own)
{
    *own = malloc(t->len > 0 ? t->len : 1);
    REQUIRE(*own != NULL);
    if (t->len > 0)
        memcpy(*own, t->data, t->len);
    return multi ? fs_multi_parse(&arena, *own, t->len, out) : fs_infer_parse(&arena, *own, t->len, out);
}

/* The examples of a request as decoded: they are `n`, and each has exactly those bytes. */
static void check_examples(const fs_infer_request *request, const text *expected, int64_t n)
{
    fs_examples examples = request->examples;
    CHECK_EQ(examples.count, n);
    if (examples.count != n)
        return;
    uint64_t bytes = 0;
    for (int64_t i = 0; i < n; i++)
        bytes += expected[i].len;
    CHECK_EQ(examples.bytes, bytes);
    CHECK(fs_examples_valid(&examples));
    if (examples.context.len > 0) {
        examples.room = malloc(bytes);
        REQUIRE(examples.room != NULL);
    }
    fs_slice all[16], some[16];
    REQUIRE(n <= 16);
    CHECK_OK(fs_examples_decode(&examples, 0, n, all));
    for (int64_t i = 0; i < n; i++) {
        CHECK_EQ(all[i].len, expected[i].len);
        if (all[i].len == expected[i].len)
            CHECK_MEM(all[i].data, expected[i].data, expected[i].len);
    }
    for (int64_t first = 0; first < n; first++) {
        CHECK_OK(fs_examples_decode(&examples, first, n - first, some));
        for (int64_t i = first; i < n; i++)
            CHECK(some[i - first].data == all[i].data && some[i - first].len == all[i].len);
    }
    CHECK_EQ(fs_examples_decode(&examples, 0, n + 1, all), -FS_INTERNAL);
    free(examples.room);
}

static void a_list_of_examples(void)
{
    text one = example("x", 1), two = example("y", 2), list = {0}, input = {0}, t = {0};
    put_part(&t, 1, spec("ranker", "score"));
    put_field(&list, 1, one.data, one.len);
    put_field(&list, 1, "", 0);
    put_field(&list, 1, two.data, two.len);
    put_field(&list, 2, "\xff", 1); /* a list without context has no such field */
    put_part(&input, 1, list);
    put_part(&t, 2, input);
    fs_infer_request request;
    uint8_t *own;
    CHECK_OK(parse(&t, false, &request, &own));
    CHECK(request.model.present);
    CHECK_EQ(fs_slice_compare(request.model.name, fs_slice_of("ranker")), 0);
    CHECK_EQ(fs_slice_compare(request.model.signature, fs_slice_of("score")), 0);
    CHECK_EQ(request.examples.context.len, 0);
    const text expected[] = {one, {0}, two};
    check_examples(&request, expected, 3);
    fs_slice strings[3];
    CHECK_OK(fs_examples_decode(&request.examples, 0, 3, strings));
    CHECK(strings[0].data > own && strings[2].data < own + t.len); /* nothing was copied */
    free(own);
    free(t.data);
    free(one.data);
    free(two.data);
}

static text joined(const text *context, const text *example_bytes)
{
    text out = {0};
    put(&out, context->data, context->len);
    put(&out, example_bytes->data, example_bytes->len);
    return out;
}

static void a_context_comes_before_each_example(void)
{
    text context = example("c", 7), one = example("x", 1), none = {0}, list = {0}, input = {0}, t = {0};
    put_field(&list, 1, one.data, one.len);
    put_field(&list, 2, context.data, context.len);
    put_field(&list, 1, "", 0);
    put_part(&input, 2, list);
    put_part(&t, 2, input);
    fs_infer_request request;
    uint8_t *own;
    CHECK_OK(parse(&t, false, &request, &own));
    CHECK(!request.model.present);
    text expected[] = {joined(&context, &one), joined(&context, &none)};
    check_examples(&request, expected, 2);
    free(own);
    free(t.data);
    free(expected[0].data);
    free(expected[1].data);
    free(context.data);
    free(one.data);
}

/* What comes twice merges, and of two kinds the last rules: as protobuf says it of messages and oneofs. */
static void inputs_in_pieces_merge(void)
{
    text one = example("x", 1), two = example("y", 2), c = example("c", 3), d = example("d", 4);
    text list[4] = {0}, t = {0}, first = {0}, second = {0};
    put_field(&list[0], 1, one.data, one.len); /* a list that will not count */
    put_field(&list[1], 1, two.data, two.len);
    put_field(&list[1], 2, c.data, c.len);
    put_field(&list[2], 1, one.data, one.len);
    put_field(&list[3], 2, d.data, d.len);
    put_part(&first, 1, list[0]);
    put_part(&first, 2, list[1]);
    put_part(&second, 2, list[2]);
    put_part(&second, 2, list[3]);
    put_part(&t, 2, first);
    put_field(&t, 9, "?", 1);
    put_part(&t, 2, second);
    text context = joined(&c, &d);
    text expected[] = {joined(&context, &two), joined(&context, &one)};
    for (int multi = 0; multi < 2; multi++) {
        fs_infer_request request;
        uint8_t *own;
        CHECK_OK(parse(&t, multi, &request, &own));
        check_examples(&request, expected, 2);
        free(own);
    }
    const text *parts[] = {&t, &one, &two, &c, &d, &context, &expected[0], &expected[1]};
    for (int i = 0; i < 8; i++)
        free(parts[i]->data);
}

static void no_input_is_no_examples(void)
{
    const char *const messages[] = {"", "\x12\x00", "\x12\x02\x0a\x00", "\x12\x02\x12\x00", "\x12\x04\x12\x02\x12\x00"};
    const size_t lens[] = {0, 2, 4, 4, 6};
    for (int i = 0; i < 5; i++) {
        text t = {(uint8_t *)(uintptr_t)messages[i], lens[i], 0};
        fs_infer_request request;
        uint8_t *own;
        CHECK_OK(parse(&t, false, &request, &own));
        check_examples(&request, NULL, 0);
        free(own);
    }
}

/* ---- MultiInference ---------------------------------------------------------------------------- */

static void tasks(void)
{
    text t = {0}, task = {0}, input = {0}, list = {0}, one = example("x", 1);
    put_part(&task, 1, spec("m", "a"));
    put_field(&task, 2, "tensorflow/serving/classify", 27);
    put_part(&t, 1, task);
    task = (text){0};
    put_field(&task, 2, "second", 6);
    put_part(&t, 1, task);
    put_field(&list, 1, one.data, one.len);
    put_part(&input, 1, list);
    put_part(&t, 2, input);
    fs_infer_request request;
    uint8_t *own;
    CHECK_OK(parse(&t, true, &request, &own));
    CHECK_EQ(request.n_tasks, 2);
    CHECK(!request.more_tasks);
    CHECK_EQ(fs_slice_compare(request.model.name, fs_slice_of("m")), 0);
    CHECK_EQ(fs_slice_compare(request.tasks[0].model.signature, fs_slice_of("a")), 0);
    CHECK_EQ(fs_slice_compare(request.tasks[0].method, fs_slice_of("tensorflow/serving/classify")), 0);
    CHECK(!request.tasks[1].model.present);
    CHECK_EQ(request.tasks[1].model.name.len, 0);
    CHECK_EQ(fs_slice_compare(request.tasks[1].method, fs_slice_of("second")), 0);
    check_examples(&request, &one, 1);
    free(own);
    free(t.data);
    free(one.data);
}

static void only_so_many_tasks_are_kept(void)
{
    text t = {0};
    for (int i = 0; i <= FS_MAX_TASKS; i++) {
        char name[16];
        text task = {0}, model = spec("m", (snprintf(name, sizeof name, "s%d", i), name));
        put_part(&task, 1, model);
        put_part(&t, 1, task);
    }
    fs_infer_request request;
    uint8_t *own;
    CHECK_OK(parse(&t, true, &request, &own));
    CHECK_EQ(request.n_tasks, FS_MAX_TASKS);
    CHECK(request.more_tasks);
    CHECK_EQ(fs_slice_compare(request.tasks[FS_MAX_TASKS - 1].model.signature, fs_slice_of("s1023")), 0);
    free(own);
    free(t.data);
}

static void without_tasks_the_model_has_no_name(void)
{
    text t = {0};
    fs_infer_request request;
    uint8_t *own;
    CHECK_OK(parse(&t, true, &request, &own));
    CHECK(request.model.present); /* so that it is the name that is missed */
    CHECK_EQ(request.model.name.len, 0);
    free(own);
}

/* ---- malformed --------------------------------------------------------------------------------- */

static int code_of(const void *bytes, size_t len, bool multi)
{
    text t = {(uint8_t *)(uintptr_t)bytes, len, 0};
    fs_infer_request request;
    uint8_t *own;
    int rc = parse(&t, multi, &request, &own);
    free(own);
    return rc;
}

#define BAD(bytes, multi) CHECK_EQ(code_of(bytes, sizeof(bytes) - 1, multi), -FS_INTERNAL)

static void bytes_that_are_no_request(void)
{
    BAD("\x0a\x03\x0a\x01\xff", false);          /* a name that is no UTF-8 */
    BAD("\x0a\x05", false);
    BAD("\x12\x05\x0a", false);                  /* an Input that ends too soon, */
    BAD("\x12\x02\x0a\x05", false);              /*   a list, */
    BAD("\x12\x04\x0a\x02\x0a\x05", false);      /*   an example, */
    BAD("\x12\x04\x12\x02\x12\x05", false);      /*   a context */
    BAD("\x12\x01\x07", false);                  /* no such wire type, */
    BAD("\x12\x03\x0a\x01\x07", false);          /*   in a list, */
    BAD("\x1f", false);                          /*   in the request */
    BAD("\x0a\x03\x0a\x01\x07", true);           /*   in a task's model, */
    BAD("\x0a\x01\x07", true);                   /*   in a task */
    BAD("\x0a\x03\x12\x01\xff", true);           /* a method that is no UTF-8 */
    BAD("\x0a\x05", true);
    /* Of several lists, one that does not count is looked at, too; and so is each of several contexts. */
    BAD("\x12\x08\x0a\x04\x0a\x02\x0a\x05\x12\x00", false);
    BAD("\x12\x0a\x12\x08\x12\x02\x0a\x05\x12\x02\x0a\x00", false);
}

/* Examples are looked at when they are decoded. */
static void bytes_that_are_no_example(void)
{
    static const struct {
        const char *bytes;
        size_t len;
    } bad[] = {
        {"\x0a\x05", 2},                                     /* Features that end too soon */
        {"\x0a\x02\x0a\x05", 4},                             /* an entry */
        {"\x0a\x05\x0a\x03\x0a\x01\xff", 7},                 /* a name that is no UTF-8 */
        {"\x0a\x06\x0a\x04\x12\x02\x0a\x05", 8},             /* a list of bytes */
        {"\x0a\x0b\x0a\x09\x12\x07\x12\x05\x0a\x03\0\0\0", 13}, /* three quarters of a float */
        {"\x0a\x09\x0a\x07\x12\x05\x1a\x03\x0a\x01\x80", 11}, /* half a varint */
        {"\x07", 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        for (int with_context = 0; with_context < 2; with_context++) {
            text list = {0}, input = {0}, t = {0};
            if (with_context)
                put_field(&list, 2, bad[i].bytes, bad[i].len);
            put_field(&list, 1, "", 0);
            if (!with_context)
                put_field(&list, 1, bad[i].bytes, bad[i].len);
            put_part(&input, with_context ? 2 : 1, list);
            put_part(&t, 2, input);
            fs_infer_request request;
            uint8_t *own, room[32];
            CHECK_OK(parse(&t, false, &request, &own));
            request.examples.room = room;
            fs_slice strings[2];
            CHECK(!fs_examples_valid(&request.examples));
            CHECK_EQ(fs_examples_decode(&request.examples, 0, request.examples.count, strings), -FS_INTERNAL);
            free(own);
            free(t.data);
        }
    }
}

/* What no encoder writes and protobuf reads all the same. */
static void examples_that_are_written_oddly(void)
{
    static const struct {
        const char *bytes;
        size_t len;
    } good[] = {
        {"\x0a\x00\x0a\x00", 4},                                        /* Features in two pieces */
        {"\x10\x01", 2},                                                /* a field that is not known, */
        {"\x0a\x02\x10\x01", 4},                                        /*   in Features, */
        {"\x0a\x04\x0a\x02\x18\x01", 6},                                /*   in an entry, */
        {"\x0a\x06\x0a\x04\x12\x02\x20\x01", 8},                        /*   in a feature, */
        {"\x0a\x08\x0a\x06\x12\x04\x12\x02\x10\x01", 10},               /*   in a list */
        {"\x0a\x07\x0a\x05\x12\x00\x0a\x01x", 9},                       /* the value before the name */
        {"\x0a\x05\x0a\x03\x0a\x01x", 7},                               /* a name without a value */
        {"\x0a\x06\x0a\x04\x0a\x02\xc3\xa9", 8},                        /* a name beyond ASCII, short */
        {"\x0a\x0e\x0a\x0c\x0a\x0a" "12345678\xc3\xa9", 16},             /*   and long */
        {"\x0a\x0a\x0a\x08\x12\x06\x1a\x04\x08\x01\x08\x02", 12},       /* numbers that are not packed */
        {"\x0a\x0b\x0a\x09\x12\x07\x12\x05\x0d\0\0\x80\x3f", 13},
        {"\x0a\x0a\x0a\x08\x12\x06\x12\x00\x1a\x02\x0a\x00", 12},       /* two lists */
        {"\x0a\x85\x00\x0a\x03\x0a\x01x", 8},                            /* a length of two bytes */
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        text list = {0}, input = {0}, t = {0};
        put_field(&list, 1, good[i].bytes, good[i].len);
        put_part(&input, 1, list);
        put_part(&t, 2, input);
        fs_infer_request request;
        uint8_t *own;
        fs_slice string;
        CHECK_OK(parse(&t, false, &request, &own));
        CHECK(fs_examples_valid(&request.examples));
        CHECK_OK(fs_examples_decode(&request.examples, 0, 1, &string));
        free(own);
        free(t.data);
    }
}

/* Cut anywhere, a request is refused or has fewer examples. */
static void requests_that_are_cut(void)
{
    text one = example("x", 1), list = {0}, input = {0}, t = {0};
    put_field(&list, 1, one.data, one.len);
    put_field(&list, 2, one.data, one.len);
    put_part(&input, 2, list);
    put_part(&t, 1, spec("m", "s"));
    put_part(&t, 2, input);
    size_t whole = t.len;
    int good = 0;
    for (t.len = 0; t.len < whole; t.len++) {
        fs_infer_request request;
        uint8_t *own;
        good += parse(&t, false, &request, &own) == 0;
        free(own);
    }
    CHECK_EQ(good, 2); /* nothing, and the model alone */
    free(t.data);
    free(one.data);
}

static void test_out_of_memory(void)
{
    text t = {0}, one = example("x", 1);
    for (int i = 0; i < 20; i++) {
        text task = {0}, list = {0}, input = {0};
        put_part(&task, 1, spec("m", "s"));
        put_part(&t, 1, task);
        put_field(&list, 1, one.data, one.len);
        put_field(&list, 2, one.data, one.len);
        put_part(&input, 2, list);
        put_part(&t, 2, input);
    }
    fs_arena kept = arena;
    long n = 1;
    for (;; n++) {
        fs_slab *own = fs_slab_new(0);
        REQUIRE(own != NULL);
        fs_arena_init(&arena, own);
        fs_infer_request request;
        failmalloc_after(n);
        int rc = fs_multi_parse(&arena, t.data, t.len, &request);
        failmalloc_after(-1);
        bool fired = failmalloc_fired();
        CHECK_EQ(rc, fired ? -FS_RESOURCE_EXHAUSTED : 0);
        fs_arena_clear(&arena);
        fs_slab_release(own);
        if (!fired)
            break;
    }
    CHECK(n > 3);
    arena = kept;
    free(t.data);
    free(one.data);
}

int main(void)
{
    fs_slab *slab = fs_slab_new(1 << 20);
    REQUIRE(slab != NULL);
    fs_arena_init(&arena, slab);
    a_list_of_examples();
    a_context_comes_before_each_example();
    inputs_in_pieces_merge();
    no_input_is_no_examples();
    tasks();
    only_so_many_tasks_are_kept();
    without_tasks_the_model_has_no_name();
    bytes_that_are_no_request();
    bytes_that_are_no_example();
    examples_that_are_written_oddly();
    requests_that_are_cut();
    test_out_of_memory();
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return check_done();
}
