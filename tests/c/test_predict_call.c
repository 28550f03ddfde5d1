/* predict_call: requests written as pieces, which must be what the server's parser reads, and replies read.
 * The bytes are compared with protobuf's own in tests/native/test_client_codec.py. */
#include "predict_call.h"

#include "check.h"
#include "failmalloc.h"
#include "text.h"

static fs_slab *slab;
static fs_arena arena;

static fs_tensor tensor_of(int dtype, int32_t ndim, const int64_t *dims, const void *data)
{
    fs_tensor t = {.dtype = dtype, .ndim = ndim, .dims = dims, .elements = 1};
    for (int32_t i = 0; i < ndim; i++)
        t.elements *= dims[i];
    t.data = (void *)(uintptr_t)data;
    t.bytes = (size_t)t.elements * fs_dtype_size(dtype);
    return t;
}

/* The pieces in one block of exactly their size. */
static uint8_t *join(const fs_slice *pieces, uint32_t n, size_t bytes)
{
    uint8_t *whole = malloc(bytes > 0 ? bytes : 1);
    REQUIRE(whole != NULL);
    size_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        CHECK(pieces[i].len > 0);
        REQUIRE(at + pieces[i].len <= bytes);
        memcpy(whole + at, pieces[i].data, pieces[i].len);
        at += pieces[i].len;
    }
    CHECK_EQ(at, bytes);
    return whole;
}

static uint8_t *write_whole(const fs_model_ref *model, const fs_call_input *inputs, uint32_t n,
                            const fs_slice *filter, uint32_t n_filter, size_t *bytes)
{
    fs_slice *pieces;
    uint32_t n_pieces;
    fs_arena_clear(&arena);
    int rc = fs_predict_call_write(&arena, model, inputs, n, filter, n_filter, &pieces, &n_pieces, bytes);
    CHECK_OK(rc);
    REQUIRE(rc == 0);
    return join(pieces, n_pieces, *bytes);
}

#define SLICE_IS(slice, text)                             \
    do {                                                  \
        CHECK_EQ((slice).len, sizeof(text) - 1);          \
        if ((slice).len == sizeof(text) - 1)              \
            CHECK_MEM((slice).data, text, (slice).len);   \
    } while (0)

static void test_request_bytes(void)
{
    const float x[] = {1, 2};
    const int64_t two_one[] = {2, 1};
    const fs_slice words[] = {fs_slice_of("a"), fs_slice_of("")};
    fs_tensor dense = tensor_of(FS_DT_FLOAT, 2, two_one, x);
    fs_tensor strings = tensor_of(FS_DT_STRING, 1, two_one, words);
    fs_call_input inputs[] = {{fs_slice_of("x"), &dense, 0, -1}, {fs_slice_of("s"), &strings, 0, -1}};
    fs_model_ref model = {.name = fs_slice_of("m"), .choice = FS_VERSION_NUMBER, .version = 300,
                          .signature = fs_slice_of("sig")};
    const fs_slice filter[] = {fs_slice_of("y")};
    static const char expected[] =
        "\x0a\x0d\x0a\x01m\x12\x03\x08\xac\x02\x1a\x03sig"
        "\x12\x1b\x0a\x01x\x12\x16\x08\x01\x12\x08\x12\x02\x08\x02\x12\x02\x08\x01"
        "\x22\x08\0\0\x80\x3f\0\0\0\x40"
        "\x12\x12\x0a\x01s\x12\x0d\x08\x07\x12\x04\x12\x02\x08\x02\x42\x01" "a\x42\x00"
        "\x1a\x01y";
    size_t bytes;
    uint8_t *whole = write_whole(&model, inputs, 2, filter, 1, &bytes);
    CHECK_EQ(bytes, sizeof expected - 1);
    CHECK_MEM(whole, expected, bytes < sizeof expected ? bytes : sizeof expected - 1);
    free(whole);

    /* What is chosen by default is not there; an empty label is. */
    whole = write_whole(&(fs_model_ref){.choice = FS_VERSION_LATEST}, NULL, 0, NULL, 0, &bytes);
    CHECK_EQ(bytes, 2);
    CHECK_MEM(whole, "\x0a\x00", bytes);
    free(whole);
    whole = write_whole(&(fs_model_ref){.choice = FS_VERSION_LABEL}, NULL, 0, NULL, 0, &bytes);
    CHECK_EQ(bytes, 4);
    CHECK_MEM(whole, "\x0a\x02\x22\x00", bytes);
    free(whole);
    whole = write_whole(&(fs_model_ref){.choice = FS_VERSION_NUMBER}, NULL, 0, NULL, 0, &bytes);
    CHECK_EQ(bytes, 4);
    CHECK_MEM(whole, "\x0a\x02\x12\x00", bytes);
    free(whole);
}

/* What is large goes as it lies, what is small with its head. */
static void test_pieces(void)
{
    enum { ROWS = 400 };
    static float large[ROWS * 3];
    static int64_t small[4];
    const int64_t large_dims[] = {ROWS, 3}, small_dims[] = {4};
    fs_tensor a = tensor_of(FS_DT_FLOAT, 2, large_dims, large);
    fs_tensor b = tensor_of(FS_DT_INT64, 1, small_dims, small);
    fs_call_input inputs[] = {
        {fs_slice_of("a"), &a, 0, -1}, {fs_slice_of("b"), &b, 0, -1}, {fs_slice_of("c"), &a, 100, 200},
    };
    fs_model_ref model = {.name = fs_slice_of("m")};
    fs_slice *pieces;
    uint32_t n;
    size_t bytes;
    fs_arena_clear(&arena);
    CHECK_OK(fs_predict_call_write(&arena, &model, inputs, 3, NULL, 0, &pieces, &n, &bytes));
    CHECK_EQ(n, 4); /* heads, a, heads and b, rows of c: and nothing behind those */
    CHECK(pieces[1].data == (const uint8_t *)large);
    CHECK_EQ(pieces[1].len, sizeof large);
    CHECK(pieces[3].data == (const uint8_t *)(large + 300));
    CHECK_EQ(pieces[3].len, 200 * 3 * sizeof(float));
    uint8_t *whole = join(pieces, n, bytes);
    fs_predict_request r;
    CHECK_OK(fs_predict_parse(&arena, whole, bytes, &r));
    CHECK_EQ(r.n_inputs, 3);
    fs_tensor_view view;
    CHECK_OK(fs_tensor_view_parse(&arena, r.inputs[2].proto.data, r.inputs[2].proto.len, &view));
    CHECK_EQ(view.ndim, 2);
    CHECK_EQ(view.dims[0], 200);
    CHECK_EQ(view.dims[1], 3);
    free(whole);
}

/* Rows of every shape and type read back as these rows. */
static void test_rows(void)
{
    enum { ROWS = 9 };
    static const int dtypes[] = {FS_DT_FLOAT, FS_DT_DOUBLE, FS_DT_INT32, FS_DT_UINT8, FS_DT_BOOL,
                                 FS_DT_COMPLEX128, FS_DT_HALF, FS_DT_INT4, FS_DT_FLOAT8_E5M2, FS_DT_STRING};
    static uint8_t data[ROWS * 100 * 16];
    static char text[ROWS * 2][8];
    fs_slice strings[ROWS * 2];
    const fs_model_ref model = {.name = fs_slice_of("m")};
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7 % 2);
    for (int i = 0; i < ROWS * 2; i++) {
        int len = snprintf(text[i], sizeof text[i], "%.*s", i % 7, "abcdefg");
        strings[i] = (fs_slice){(const uint8_t *)text[i], (size_t)len};
    }
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        for (int width = 0; width < 3; width++) {
            const int64_t inner = width == 2 && dtypes[d] != FS_DT_STRING ? 100 : width;
            const int64_t dims[] = {ROWS, inner};
            const void *at = dtypes[d] == FS_DT_STRING ? (const void *)strings : data;
            fs_tensor t = tensor_of(dtypes[d], 2, dims, at);
            size_t row = (size_t)inner * fs_dtype_size(dtypes[d]);
            for (int64_t first = 0; first <= ROWS; first += 2) {
                for (int64_t rows = 0; rows <= ROWS - first; rows += 3) {
                    fs_call_input input = {fs_slice_of("x"), &t, first, rows};
                    size_t bytes;
                    uint8_t *whole = write_whole(&model, &input, 1, NULL, 0, &bytes);
                    fs_predict_request r;
                    fs_tensor_view view;
                    CHECK_OK(fs_predict_parse(&arena, whole, bytes, &r));
                    REQUIRE(r.n_inputs == 1);
                    fs_slice proto = r.inputs[0].proto;
                    CHECK_OK(fs_tensor_view_parse(&arena, proto.data, proto.len, &view));
                    CHECK_EQ(view.dtype, dtypes[d]);
                    CHECK_EQ(view.dims[0], rows);
                    CHECK_EQ(view.dims[1], inner);
                    uint8_t back[sizeof data];
                    CHECK_OK(fs_tensor_view_decode(&view, 0, view.elements, back));
                    const uint8_t *want = (const uint8_t *)at + (size_t)first * row;
                    if (dtypes[d] != FS_DT_STRING) {
                        CHECK_MEM(back, want, (size_t)rows * row);
                    } else {
                        const fs_slice *got = (const void *)back;
                        for (int64_t i = 0; i < rows * inner; i++)
                            CHECK_EQ(fs_slice_compare(got[i], strings[first * inner + i]), 0);
                    }
                    free(whole);
                }
            }
        }
    }

    /* A scalar has no rows: it goes whole. */
    fs_tensor scalar = tensor_of(FS_DT_DOUBLE, 0, NULL, data);
    fs_call_input input = {fs_slice_of("x"), &scalar, 2, 3};
    size_t bytes;
    uint8_t *whole = write_whole(&(fs_model_ref){.name = fs_slice_of("m")}, &input, 1, NULL, 0, &bytes);
    fs_predict_request r;
    fs_tensor_view view;
    CHECK_OK(fs_predict_parse(&arena, whole, bytes, &r));
    CHECK_OK(fs_tensor_view_parse(&arena, r.inputs[0].proto.data, r.inputs[0].proto.len, &view));
    CHECK_EQ(view.ndim, 0);
    CHECK_EQ(view.content.len, 8);
    free(whole);
}

static void test_refused(void)
{
    const int64_t huge[] = {INT64_C(1) << 29}, most[] = {(INT64_C(1) << 29) - 64}, one[] = {1};
    const float x[1] = {0}; /* nothing of what is claimed is touched */
    fs_model_ref model = {.name = fs_slice_of("m")};
    fs_slice *pieces;
    uint32_t n;
    size_t bytes;
    fs_tensor t = tensor_of(FS_DT_FLOAT, 1, huge, x);
    fs_call_input input = {fs_slice_of("x"), &t, 0, -1};
    fs_arena_clear(&arena);
    CHECK_EQ(fs_predict_call_write(&arena, &model, &input, 1, NULL, 0, &pieces, &n, &bytes),
             -FS_RESOURCE_EXHAUSTED);
    t = tensor_of(FS_DT_FLOAT, 1, most, x);
    CHECK_OK(fs_predict_call_write(&arena, &model, &input, 1, NULL, 0, &pieces, &n, &bytes));
    fs_call_input twice[] = {input, input};
    CHECK_EQ(fs_predict_call_write(&arena, &model, twice, 2, NULL, 0, &pieces, &n, &bytes),
             -FS_RESOURCE_EXHAUSTED);
    const fs_slice long_name = {(const uint8_t *)x, 400};
    CHECK_EQ(fs_predict_call_write(&arena, &model, &input, 1, &long_name, 1, &pieces, &n, &bytes),
             -FS_RESOURCE_EXHAUSTED);
    t = tensor_of(FS_DT_VARIANT, 1, one, x);
    CHECK_EQ(fs_predict_call_write(&arena, &model, &input, 1, NULL, 0, &pieces, &n, &bytes),
             -FS_INVALID_ARGUMENT);
}

static uint8_t *copied; /* exactly as long as the message, so that a sanitizer sees a read past its end */

static int parse(const void *data, size_t len, fs_predict_reply *out)
{
    fs_arena_clear(&arena);
    free(copied);
    copied = malloc(len > 0 ? len : 1);
    REQUIRE(copied != NULL);
    if (len > 0)
        memcpy(copied, data, len);
    return fs_predict_reply_parse(&arena, copied, len, out);
}
#define PARSE(text, out) parse(text, sizeof(text) - 1, out)

static void test_reply(void)
{
    fs_predict_reply r;
    CHECK_OK(PARSE("\x0a\x17\x0a\x01p\x12\x12\x08\x01\x12\x08\x12\x02\x08\x01\x12\x02\x08\x01"
                   "\x2a\x04\0\0\0\x40"
                   "\x0a\x05\x0a\x01q\x12\x00"
                   "\x12\x0b\x0a\x01m\x12\x03\x08\xac\x02\x1a\x01s",
                   &r));
    CHECK(r.model.present);
    SLICE_IS(r.model.name, "m");
    SLICE_IS(r.model.signature, "s");
    CHECK_EQ(r.model.choice, FS_VERSION_NUMBER);
    CHECK_EQ(r.model.version, 300);
    CHECK_EQ(r.n_outputs, 2);
    SLICE_IS(r.outputs[0].alias, "p");
    SLICE_IS(r.outputs[1].alias, "q");
    SLICE_IS(r.outputs[1].proto, "");

    /* Of equal names the last stands, and the other must be a tensor, too; specs merge. */
    CHECK_OK(PARSE("\x0a\x07\x0a\x01p\x12\x02\x08\x01\x0a\x07\x0a\x01p\x12\x02\x08\x02"
                   "\x12\x03\x0a\x01m\x12\x03\x1a\x01s", &r));
    CHECK_EQ(r.n_outputs, 1);
    SLICE_IS(r.outputs[0].proto, "\x08\x02");
    SLICE_IS(r.model.name, "m");
    SLICE_IS(r.model.signature, "s");
    CHECK_EQ(PARSE("\x0a\x06\x0a\x01p\x12\x01\x08\x0a\x07\x0a\x01p\x12\x02\x08\x02", &r), -FS_INTERNAL);

    /* Not a message, cut short, not UTF-8. */
    static const struct { const char *bytes; size_t len; } refused[] = {
#define BYTES(text) {text, sizeof(text) - 1}
        BYTES("\x00"), BYTES("\x0a"), BYTES("\x0a\x02\x0a"), BYTES("\x0a\x03\x0a\x01\xff"), BYTES("\x0c"),
        BYTES("\x12\x01\x0c"), BYTES("\x12\x03\x0a\x01\xff"), BYTES("<html>\r\n"),
        BYTES("\x0a\x05\x0a\x01p\x12"),
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        CHECK_EQ(parse(refused[i].bytes, refused[i].len, &r), -FS_INTERNAL);
    CHECK_OK(PARSE("\x58\x01\x45" "abcd", &r)); /* fields of a later version */
    CHECK_EQ(r.n_outputs, 0);
    CHECK(!r.model.present);
    CHECK_OK(PARSE("", &r));
    CHECK_EQ(r.n_outputs, 0);
}

static void in_place(const void *proto, size_t len, int64_t at)
{
    fs_tensor_view view;
    uint8_t *copied = malloc(len);
    REQUIRE(copied != NULL);
    memcpy(copied, proto, len);
    fs_arena_clear(&arena);
    CHECK_OK(fs_tensor_view_parse(&arena, copied, len, &view));
    const uint8_t *found = fs_tensor_view_in_place(&view);
    CHECK_EQ(found == NULL ? -1 : found - copied, at);
    if (found != NULL) {
        uint8_t back[64];
        CHECK_OK(fs_tensor_view_decode(&view, 0, view.elements, back));
        CHECK_MEM(found, back, (size_t)view.elements * fs_dtype_size(view.dtype));
    }
    free(copied);
}
#define IN_PLACE(text, at) in_place(text, sizeof(text) - 1, at)

static void test_in_place(void)
{
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x02\x2a\x08" "abcdefgh", 10);          /* packed floats */
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x01\x2a\x08" "abcdefgh", 10);          /* more than there are */
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x03\x2a\x08" "abcdefgh", -1);          /* fewer */
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x02\x22\x08" "abcdefgh", 10);          /* content */
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x02\x2a\x04" "abcd\x2a\x04" "efgh", -1); /* scattered */
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x01\x2d" "abcd", 9);                   /* one, not packed */
    IN_PLACE("\x08\x09\x12\x04\x12\x02\x08\x02\x52\x02\x01\x02", -1);             /* varints */
    IN_PLACE("\x08\x09\x12\x04\x12\x02\x08\x01\x22\x08" "abcdefgh", 10);          /* content of such a type */
    IN_PLACE("\x08\x08\x12\x04\x12\x02\x08\x01\x4a\x08" "abcdefgh", 10);          /* complex: two each */
    IN_PLACE("\x08\x08\x12\x04\x12\x02\x08\x02\x4a\x08" "abcdefgh", -1);
    IN_PLACE("\x08\x0a\x12\x04\x12\x02\x08\x01\x5a\x01\x01", -1);
    IN_PLACE("\x08\x18\x12\x04\x12\x02\x08\x02\x92\x01\x02\x01\x02", 11);         /* float8_val */
    IN_PLACE("\x08\x07\x12\x04\x12\x02\x08\x01\x42\x01" "a", -1);                 /* strings */
    IN_PLACE("\x08\x07\x12\x04\x12\x02\x08\x01\x22\x02\x01" "a", -1);
    IN_PLACE("\x08\x01\x12\x04\x12\x02\x08\x00", -1);                             /* nothing at all */
    IN_PLACE("\x08\x15\x12\x04\x12\x02\x08\x01", -1);                             /* no form in memory */
}

static void test_out_of_memory(void)
{
    static float data[3][600];
    const int64_t dims[] = {600};
    fs_tensor t[3];
    fs_call_input inputs[3];
    for (int i = 0; i < 3; i++) {
        t[i] = tensor_of(FS_DT_FLOAT, 1, dims, data[i]);
        inputs[i] = (fs_call_input){fs_slice_of(&"a\0b\0c"[2 * i]), &t[i], 0, -1};
    }
    const uint8_t name[4000] = {'m'};
    fs_model_ref model = {.name = {name, sizeof name}};
    uint8_t *reply = malloc(300 * 8);
    REQUIRE(reply != NULL);
    for (int i = 0; i < 300; i++) { /* more outputs than a small reply has: the map grows */
        const uint8_t one[] = {0x0a, 6, 0x0a, 2, (uint8_t)('a' + i / 26), (uint8_t)('a' + i % 26), 0x12, 0};
        memcpy(reply + 8 * i, one, sizeof one);
    }
    int most = 0;
    for (long n = 1;; n++) {
        fs_slab *own = fs_slab_new(0);
        REQUIRE(own != NULL);
        fs_arena small;
        fs_arena_init(&small, own);
        fs_slice *pieces;
        uint32_t n_pieces;
        size_t bytes;
        fs_predict_reply r;
        failmalloc_after(n);
        int rc = fs_predict_call_write(&small, &model, inputs, 3, NULL, 0, &pieces, &n_pieces, &bytes);
        if (rc == 0)
            rc = fs_predict_reply_parse(&small, reply, 300 * 8, &r);
        failmalloc_after(-1);
        bool fired = failmalloc_fired();
        CHECK_EQ(rc, fired ? -FS_RESOURCE_EXHAUSTED : 0);
        if (!fired)
            CHECK_EQ(r.n_outputs, 300);
        fs_arena_clear(&small);
        fs_slab_release(own);
        if (!fired)
            break;
        most++;
    }
    CHECK(most >= 4);
    free(reply);
}

int main(void)
{
    slab = fs_slab_new(1 << 20);
    REQUIRE(slab != NULL);
    fs_arena_init(&arena, slab);
    test_request_bytes();
    test_pieces();
    test_rows();
    test_refused();
    test_reply();
    test_in_place();
    test_out_of_memory();
    free(copied);
    fs_arena_clear(&arena);
    fs_slab_release(slab);
    return check_done();
}
