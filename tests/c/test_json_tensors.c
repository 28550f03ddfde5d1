/* json_tensors: requests that are read, requests that are left to others, and no memory. */
#include "json_tensors.h"

#include <stdlib.h>

#include "check.h"
#include "failmalloc.h"
#include "status.h"

static fs_slice slice(const char *text)
{
    return (fs_slice){(const uint8_t *)text, strlen(text)};
}

enum { MOST = 3 };

typedef struct request {
    fs_json_tensor tensors[MOST];
    uint32_t count;
    bool in_rows;
    uint8_t *text;
} request;

/* Reads `text`, in memory of just its size, for inputs "x" of the first type, "y" of the second and so on. */
static int read_request(request *q, const char *text, const char *signature, int count, const int32_t *dtypes)
{
    static const char *const names[MOST] = {"x", "y", "z"};
    size_t len = strlen(text);
    *q = (request){.count = (uint32_t)count, .text = malloc(len > 0 ? len : 1)};
    REQUIRE(q->text != NULL);
    memcpy(q->text, text, len);
    for (int i = 0; i < count; i++) {
        q->tensors[i].name = slice(names[i]);
        q->tensors[i].dtype = dtypes[i];
    }
    return fs_json_tensors_read((fs_slice){q->text, len}, slice(signature), q->tensors, q->count, &q->in_rows);
}

static void release(request *q)
{
    for (uint32_t i = 0; i < q->count; i++)
        free(q->tensors[i].data);
    free(q->text);
}

static int read_one(request *q, const char *text, int32_t dtype)
{
    return read_request(q, text, "", 1, &dtype);
}

static void test_columns_and_rows(void)
{
    static const int32_t types[] = {FS_DT_FLOAT, FS_DT_INT64};
    static const char *const texts[] = {
        "{\"inputs\":{\"x\":[[1.5,2],[3,-4.25]],\"y\":[7,-8]}}",
        "{\"inputs\":{\"y\":[7,-8],\"x\":[[1.5,2],[3,-4.25]]}}",
        " { \"signature_name\" : \"\" ,\n\t\"inputs\" : { \"x\" : [ [ 1.5 , 2e0 ] , [ 3 , -4.25 ] ] , \"y\" : [ 7 , -8 ] } }\r\n",
        "{\"instances\":[{\"x\":[1.5,2],\"y\":7},{\"x\":[3,-4.25],\"y\":-8}]}",
        "{\"instances\":[{\"y\":7,\"x\":[1.5,2]},{\"x\":[3,-4.25],\"y\":-8}]}",
        "{\"instances\":[{\"y\":7,\"x\":[1.5,2]},{\"y\":-8,\"x\":[3,-4.25]}]}",
    };
    const float x[] = {1.5f, 2, 3, -4.25f};
    const int64_t y[] = {7, -8};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        request q;
        CHECK_OK(read_request(&q, texts[i], "", 2, types));
        CHECK_EQ(q.in_rows, i >= 3);
        CHECK_EQ(q.tensors[0].ndim, 2);
        CHECK_EQ(q.tensors[0].dims[0], 2);
        CHECK_EQ(q.tensors[0].dims[1], 2);
        CHECK_EQ(q.tensors[0].bytes, sizeof x);
        CHECK_MEM(q.tensors[0].data, x, sizeof x);
        CHECK_EQ(q.tensors[1].ndim, 1);
        CHECK_EQ(q.tensors[1].dims[0], 2);
        CHECK_EQ(q.tensors[1].bytes, sizeof y);
        CHECK_MEM(q.tensors[1].data, y, sizeof y);
        release(&q);
    }
}

static void test_one_input_needs_no_name(void)
{
    static const char *const texts[] = {
        "{\"instances\":[[1],[2],[3]]}",
        "{\"instances\":[{\"x\":[1]},{\"x\":[2]},{\"x\":[3]}]}",
        "{\"inputs\":[[1],[2],[3]]}",
        "{\"inputs\":{\"x\":[[1],[2],[3]]}}",
    };
    const double want[] = {1, 2, 3};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        request q;
        CHECK_OK(read_one(&q, texts[i], FS_DT_DOUBLE));
        CHECK_EQ(q.tensors[0].ndim, 2);
        CHECK_EQ(q.tensors[0].dims[0], 3);
        CHECK_EQ(q.tensors[0].dims[1], 1);
        CHECK_MEM(q.tensors[0].data, want, sizeof want);
        release(&q);
    }
    request q;
    CHECK_OK(read_one(&q, "{\"inputs\":true}", FS_DT_BOOL));
    CHECK_EQ(q.tensors[0].ndim, 0);
    CHECK_EQ(q.tensors[0].bytes, 1);
    CHECK_EQ(q.tensors[0].data[0], 1);
    release(&q);
}

static void test_what_a_type_holds(void)
{
    const struct {
        int32_t dtype;
        const char *value;
        bool fits;
    } cases[] = {
        {FS_DT_INT8, "127", true},      {FS_DT_INT8, "128", false},      {FS_DT_INT8, "-128", true},
        {FS_DT_INT8, "-129", false},    {FS_DT_UINT8, "255", true},      {FS_DT_UINT8, "256", false},
        {FS_DT_UINT8, "-1", false},     {FS_DT_INT16, "-32768", true},   {FS_DT_INT16, "32768", false},
        {FS_DT_UINT16, "65535", true},  {FS_DT_UINT16, "65536", false},  {FS_DT_INT32, "-2147483648", true},
        {FS_DT_INT32, "2147483648", false},                              {FS_DT_UINT32, "4294967295", true},
        {FS_DT_UINT32, "4294967296", false},                             {FS_DT_INT64, "9223372036854775807", true},
        {FS_DT_INT64, "9223372036854775808", false},                     {FS_DT_INT64, "-9223372036854775808", true},
        {FS_DT_INT64, "-9223372036854775809", false},                    {FS_DT_UINT64, "9999999999999999999", true},
        {FS_DT_INT32, "1.0", false},    {FS_DT_INT32, "1e3", false},     {FS_DT_INT32, "true", false},
        {FS_DT_BOOL, "true", true},     {FS_DT_BOOL, "false", true},     {FS_DT_BOOL, "1", false},
        {FS_DT_BOOL, "tru", false},     {FS_DT_FLOAT, "16777215", true}, {FS_DT_FLOAT, "16777216", false},
        {FS_DT_FLOAT, "-16777215", true},                                {FS_DT_FLOAT, "16777217.0", true},
        {FS_DT_FLOAT, "3.4028234e27", true},                             {FS_DT_FLOAT, "9999999999999999999e20", false},
        {FS_DT_DOUBLE, "9007199254740991", true},                        {FS_DT_DOUBLE, "9007199254740992", false},
        {FS_DT_DOUBLE, "9999999999999999999e20", true},                  {FS_DT_FLOAT, "null", false},
        {FS_DT_FLOAT, "\"1\"", false},  {FS_DT_FLOAT, "NaN", false},     {FS_DT_FLOAT, "{\"b64\":\"AA\"}", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[128];
        request q;
        snprintf(text, sizeof text, "{\"instances\":[%s]}", cases[i].value);
        int rc = read_one(&q, text, cases[i].dtype);
        CHECK_REPORT(rc == (cases[i].fits ? 0 : -FS_INVALID_ARGUMENT), "%s of type %d: %d", text, cases[i].dtype, rc);
        release(&q);
    }
    CHECK(fs_json_tensor_dtype(FS_DT_UINT64));
    CHECK(!fs_json_tensor_dtype(FS_DT_STRING));
    CHECK(!fs_json_tensor_dtype(FS_DT_HALF));
}

static void test_what_is_left_to_others(void)
{
    static const char *const texts[] = {
        "", "{", "{}", "[]", "null", "{\"inputs\"", "{\"inputs\":", "{\"inputs\":[", "{\"inputs\":[1", "{\"inputs\":[1,",
        "{\"inputs\":[1]", "{\"inputs\":[1]}}", "{\"inputs\":[1]} x", "{\"inputs\":[1],}", "{\"inputs\":[1,]}",
        "{\"inputs\":[]}", "{\"inputs\":[[]]}", "{\"inputs\":{}}", "{\"inputs\":{\"x\":[1]", "{\"inputs\":{\"x\":[1],}}",
        "{\"inputs\":{\"x\":[1],\"x\":[1]}}", "{\"inputs\":{\"y\":[1]}}", "{\"inputs\":{\"x\":[1],\"y\":[1]}}",
        "{\"inputs\":{\"\\u0078\":[1]}}", "{\"inputs\":{'x':[1]}}", "{\"inputs\":[[1],[2,3]]}", "{\"inputs\":[[1],2]}",
        "{\"inputs\":[1,[2]]}", "{\"inputs\":[1 2]}", "{\"instances\":[]}", "{\"instances\":{}}", "{\"instances\":1}",
        "{\"instances\":[{\"x\":1},2]}", "{\"instances\":[1,{\"x\":2}]}", "{\"instances\":[{\"x\":1},{}]}",
        "{\"instances\":[{\"x\":1},{\"x\":[1]}]}", "{\"instances\":[1],\"inputs\":[1]}", "{\"instances\":[1],\"more\":1}",
        "{\"signature_name\":\"other\",\"instances\":[1]}", "{\"signature_name\":1,\"instances\":[1]}",
        "{\"instances\":[1],\"signature_name\":\"other\"}", "{\"signature_name\":\"\",\"signature_name\":\"\",\"instances\":[1]}",
        "{\"inputs\":[[[[[[[[[1]]]]]]]]]}", "\xef\xbb\xbf{\"inputs\":[1]}", "{\"inputs\":[1]}\v",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        request q;
        int rc = read_one(&q, texts[i], FS_DT_FLOAT);
        CHECK_REPORT(rc == -FS_INVALID_ARGUMENT, "%s: %d", texts[i], rc);
        release(&q);
    }
    request q;
    CHECK_OK(read_one(&q, "{\"inputs\":[[[[[[[[1]]]]]]]]}", FS_DT_FLOAT));
    CHECK_EQ(q.tensors[0].ndim, FS_JSON_MAX_DIMS);
    release(&q);
    static const int32_t types[] = {FS_DT_FLOAT, FS_DT_FLOAT};
    CHECK_EQ(read_request(&q, "{\"inputs\":[1]}", "", 2, types), -FS_INVALID_ARGUMENT);
    release(&q);
    CHECK_EQ(read_request(&q, "{\"instances\":[{\"x\":1},{\"y\":1}]}", "", 2, types), -FS_INVALID_ARGUMENT);
    release(&q);
}

static void test_signatures(void)
{
    static const int32_t type = FS_DT_FLOAT;
    const char *text = "{\"signature_name\":\"scores\",\"inputs\":[1]}";
    fs_slice name = fs_json_signature(slice(text));
    CHECK_EQ(name.len, 6);
    CHECK_MEM(name.data, "scores", 6);
    name = fs_json_signature(slice("{\"inputs\":[1],\n\"signature_name\" : \"last\" } \n"));
    CHECK_EQ(name.len, 4);
    CHECK_MEM(name.data, "last", 4);
    CHECK_EQ(fs_json_signature(slice("{\"inputs\":{\"x\":1,\"signature_name\":\"x\"}}")).len, 0);
    CHECK_EQ(fs_json_signature(slice("\"x\"}")).len, 0);
    CHECK_EQ(fs_json_signature(slice("x\"}")).len, 0);
    CHECK_EQ(fs_json_signature(slice("{\"inputs\":[1]}")).len, 0);
    CHECK_EQ(fs_json_signature(slice("{\"signature_name\":\"scores")).len, 0);
    CHECK_EQ(fs_json_signature(slice("")).len, 0);
    request q;
    CHECK_OK(read_request(&q, text, "scores", 1, &type));
    release(&q);
    CHECK_OK(read_request(&q, "{\"inputs\":[1],\"signature_name\":\"last\"}", "last", 1, &type));
    release(&q);
    CHECK_EQ(read_request(&q, text, "score", 1, &type), -FS_INVALID_ARGUMENT);
    release(&q);
    CHECK_EQ(read_request(&q, "{\"inputs\":[1]}", "scores", 1, &type), -FS_INVALID_ARGUMENT);
    release(&q);
}

/* Many elements, and whichever allocation fails. */
static void test_out_of_memory(void)
{
    enum { ELEMENTS = 5000 };
    char *text = malloc(16 + 2 * ELEMENTS);
    REQUIRE(text != NULL);
    size_t at = (size_t)sprintf(text, "{\"inputs\":[");
    for (int i = 0; i < ELEMENTS; i++)
        at += (size_t)sprintf(text + at, i > 0 ? ",%d" : "%d", i % 10);
    sprintf(text + at, "]}");
    fs_json_tensor tensor = {.name = slice("x"), .dtype = FS_DT_INT64};
    bool in_rows;
    for (long n = 1;; n++) {
        failmalloc_after(n);
        int rc = fs_json_tensors_read(slice(text), slice(""), &tensor, 1, &in_rows);
        failmalloc_after(-1);
        if (!failmalloc_fired()) {
            CHECK_OK(rc);
            CHECK(n > 3);
            CHECK_EQ(tensor.dims[0], ELEMENTS);
            for (int64_t i = 0; i < ELEMENTS; i++)
                CHECK_EQ(((int64_t *)tensor.data)[i], i % 10);
            free(tensor.data);
            break;
        }
        CHECK_EQ(rc, -FS_RESOURCE_EXHAUSTED);
        free(tensor.data);
    }
    free(text);
}

int main(void)
{
    test_columns_and_rows();
    test_one_input_needs_no_name();
    test_what_a_type_holds();
    test_what_is_left_to_others();
    test_signatures();
    test_out_of_memory();
    return check_done();
}
