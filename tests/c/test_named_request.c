/* named_request: SessionRunRequests read, SessionRunResponses written. */
#include "named_request.h"

#include "check.h"
#include "failmalloc.h"
#include "wire.h"

static fs_slab *slab;
static fs_arena arena;
static uint8_t *copied; /* exactly as long as the message, so that a sanitizer sees a read past its end */

static int parse(const void *data, size_t len, fs_named_request *out)
{
    fs_arena_clear(&arena);
    free(copied);
    copied = malloc(len > 0 ? len : 1);
    REQUIRE(copied != NULL);
    if (len > 0)
        memcpy(copied, data, len);
    return fs_named_request_parse(&arena, copied, len, out);
}
#define PARSE(text, out) parse(text, sizeof(text) - 1, out)

#define SLICE_IS(slice, text)                             \
    do {                                                  \
        CHECK_EQ((slice).len, sizeof(text) - 1);          \
        if ((slice).len == sizeof(text) - 1)              \
            CHECK_MEM((slice).data, text, (slice).len);   \
    } while (0)

static void test_request(void)
{
    fs_named_request r;
    CHECK_OK(PARSE("", &r));
    CHECK(!r.model.present);
    CHECK_EQ(r.n_feeds, 0);
    CHECK_EQ(r.n_fetches, 0);
    CHECK_EQ(r.n_targets, 0);
    CHECK(!r.aliases);
}

static void test_all_of_a_request(void)
{
    fs_named_request r;
    CHECK_OK(PARSE("\x0a\x09\x0a\x01m\x12\x02\x08\x07\x1a\x00"
                   "\x12\x09\x0a\x03x:0\x12\x02\x08\x01"
                   "\x12\x05\x0a\x01y\x12\x00"
                   "\x1a\x03p:0\x1a\x01q\x22\x04init\x30\x01\x2a\x02\x10\x05",
                   &r));
    CHECK(r.model.present);
    SLICE_IS(r.model.name, "m");
    CHECK_EQ(r.model.choice, FS_VERSION_NUMBER);
    CHECK_EQ(r.model.version, 7);
    CHECK_EQ(r.n_feeds, 2);
    SLICE_IS(r.feeds[0], "x:0");
    SLICE_IS(r.protos[0], "\x08\x01");
    SLICE_IS(r.feeds[1], "y");
    SLICE_IS(r.protos[1], "");
    CHECK_EQ(r.n_fetches, 2);
    SLICE_IS(r.fetches[0], "p:0");
    SLICE_IS(r.fetches[1], "q");
    CHECK_EQ(r.n_targets, 1);
    SLICE_IS(r.targets[0], "init");
    CHECK(r.aliases);
}

static void test_what_protobuf_merges(void)
{
    fs_named_request r;
    /* A model spec in two parts, a feed's tensor in three with its name between, the last name stands. */
    CHECK_OK(PARSE("\x0a\x03\x0a\x01m\x0a\x04\x12\x02\x08\x02"
                   "\x12\x13\x12\x02\x08\x01\x0a\x01x\x12\x03\x28\x80\x01\x0a\x01y\x12\x02\x18\x05",
                   &r));
    SLICE_IS(r.model.name, "m");
    CHECK_EQ(r.model.version, 2);
    CHECK_EQ(r.n_feeds, 1);
    SLICE_IS(r.feeds[0], "y");
    SLICE_IS(r.protos[0], "\x08\x01\x28\x80\x01\x18\x05");
    /* Of equal names each is a feed: TensorFlow says what it thinks of that. */
    CHECK_OK(PARSE("\x12\x03\x0a\x01x\x12\x03\x0a\x01x", &r));
    CHECK_EQ(r.n_feeds, 2);
    /* Unknown fields, and known ones of another type. */
    CHECK_OK(PARSE("\x3a\x01z\x10\x01\x45zzzz\x0b\x08\x01\x0c\x32\x00\x30\x02\x30\x00", &r));
    CHECK_EQ(r.n_feeds, 0);
    CHECK(!r.aliases);
}

static void test_malformed(void)
{
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
#define CASE(text) {text, sizeof(text) - 1}
        CASE("\x0a"),                         /* cut after a tag */
        CASE("\x0a\x05\x0a"),                 /* cut in the spec */
        CASE("\x0a\x03\x0a\x01\xff"),         /* a model's name that is not UTF-8 */
        CASE("\x12\x03\x0a\x01\xff"),         /* a feed's */
        CASE("\x12\x02\x12\x05"),             /* a tensor beyond the end */
        CASE("\x12\x05\x12\x01\x08\x12\x00"), /* the first of two parts is no TensorProto */
        CASE("\x12\x05\x12\x00\x12\x01\x08"), /* the second */
        CASE("\x1a\x01\xff"),                 /* a fetch that is not UTF-8 */
        CASE("\x22\x01\xff"),                 /* a target */
        CASE("\x2a\x01\x08"),                 /* options that are no message */
        CASE("\x30"),                         /* a number that is not there */
        CASE("\x00\x01"),                     /* field 0 */
        CASE("\x0c"),                         /* a group's end */
#undef CASE
    };
    fs_named_request r;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_EQ(parse(cases[i].bytes, cases[i].len, &r), -FS_INTERNAL);
}

static void test_so_many_names(void)
{
    uint8_t *bytes = malloc(3 * (FS_NAMED_MAX + 1));
    REQUIRE(bytes != NULL);
    static const uint8_t tags[] = {0x12, 0x1a, 0x22};
    for (int kind = 0; kind < 3; kind++) {
        size_t each = kind == 0 ? 2 : 3; /* a feed without anything, a name */
        for (size_t i = 0; i <= FS_NAMED_MAX; i++)
            memcpy(bytes + each * i, (uint8_t[]){tags[kind], kind == 0 ? 0 : 1, 'x'}, each);
        fs_named_request r;
        CHECK_OK(parse(bytes, each * FS_NAMED_MAX, &r));
        CHECK_EQ(r.n_feeds + r.n_fetches + r.n_targets, FS_NAMED_MAX);
        CHECK_EQ(parse(bytes, each * (FS_NAMED_MAX + 1), &r), -FS_INVALID_ARGUMENT);
    }
    free(bytes);
}

static void test_reply(void)
{
    int64_t dims[] = {2};
    float values[] = {1.5f, -2.0f};
    fs_tensor outputs[] = {{.dtype = FS_DT_FLOAT, .ndim = 1, .dims = dims, .elements = 2, .data = values, .bytes = 8},
                           {.dtype = FS_DT_FLOAT, .ndim = 0, .dims = dims, .elements = 1, .data = values, .bytes = 4}};
    fs_slice names[] = {{(const uint8_t *)"y:0", 3}, {(const uint8_t *)"z", 1}};
    fs_named_reply reply = {.model = {(const uint8_t *)"m", 1}, .version = 300, .names = names, .outputs = outputs,
                            .n = 2};
    static const uint8_t expected[] = "\x0a\x19\x0a\x03y:0\x12\x12\x08\x01\x12\x04\x12\x02\x08\x02\x2a\x08"
                                      "\x00\x00\xc0\x3f\x00\x00\x00\xc0"
                                      "\x0a\x0f\x0a\x01z\x12\x0a\x08\x01\x12\x00\x2a\x04\x00\x00\xc0\x3f"
                                      "\x1a\x08\x0a\x01m\x12\x03\x08\xac\x02";
    uint8_t written[sizeof expected];
    REQUIRE(fs_named_reply_size(&reply) == sizeof expected - 1);
    fs_named_reply_write(&reply, written);
    CHECK_MEM(written, expected, sizeof expected - 1);

    reply.n = 0; /* a run of targets alone, of version 0 */
    reply.version = 0;
    REQUIRE(fs_named_reply_size(&reply) == 7);
    fs_named_reply_write(&reply, written);
    CHECK_MEM(written, "\x1a\x05\x0a\x01m\x12\x00", 7);

    outputs[0].elements = (int64_t)1 << 29; /* 2 GiB of floats */
    dims[0] = outputs[0].elements;
    reply.n = 1;
    CHECK_EQ(fs_named_reply_size(&reply), 0);
}

static void test_out_of_memory(void)
{
    uint8_t bytes[1000];
    size_t len = 0;
    for (int i = 0; i < 100; i++) {
        memcpy(bytes + len, "\x1a\x01q\x22\x01t", 6);
        len += 6;
    }
    memcpy(bytes + len, "\x12\x0b\x0a\x01x\x12\x02\x08\x01\x12\x02\x18\x05", 13);
    len += 13;
    long n = 1;
    for (;; n++) {
        fs_slab *own = fs_slab_new(0);
        REQUIRE(own != NULL);
        fs_arena small;
        fs_arena_init(&small, own);
        fs_named_request r;
        failmalloc_after(n);
        int rc = fs_named_request_parse(&small, bytes, len, &r);
        failmalloc_after(-1);
        bool fired = failmalloc_fired();
        CHECK_EQ(rc, fired ? -FS_RESOURCE_EXHAUSTED : 0);
        fs_arena_clear(&small);
        fs_slab_release(own);
        if (!fired)
            break;
    }
    CHECK(n > 1);
}

int main(void)
{
    slab = fs_slab_new(1 << 20);
    REQUIRE(slab != NULL);
    fs_arena_init(&arena, slab);
    test_request();
    test_all_of_a_request();
    test_what_protobuf_merges();
    test_malformed();
    test_so_many_names();
    test_reply();
    test_out_of_memory();
    free(copied);
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return check_done();
}
