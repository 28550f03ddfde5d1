/* grpc: header values, percent-encoding, frame prefixes. */
#include "grpc.h"

#include "check.h"
#include "h2.h"

static int64_t timeout(const char *text)
{
    return fs_grpc_timeout_us((const uint8_t *)text, strlen(text));
}

static void test_timeouts(void)
{
    CHECK_EQ(timeout("1H"), INT64_C(3600000000));
    CHECK_EQ(timeout("2M"), 120000000);
    CHECK_EQ(timeout("3S"), 3000000);
    CHECK_EQ(timeout("100m"), 100000);
    CHECK_EQ(timeout("7u"), 7);
    CHECK_EQ(timeout("1n"), 1); /* rounded up: it has not passed yet */
    CHECK_EQ(timeout("1000n"), 1);
    CHECK_EQ(timeout("1001n"), 2);
    CHECK_EQ(timeout("99999999H"), INT64_C(99999999) * 3600 * 1000000);
    CHECK_EQ(timeout("0S"), 0);
    CHECK_EQ(timeout("-5S"), 0);
    CHECK_EQ(timeout("-1m"), 0);
    CHECK_EQ(timeout(""), -1);
    CHECK_EQ(timeout("S"), -1);
    CHECK_EQ(timeout("-S"), -1);
    CHECK_EQ(timeout("-"), -1);
    CHECK_EQ(timeout("5"), -1);
    CHECK_EQ(timeout("5s"), -1);
    CHECK_EQ(timeout("5 S"), -1);
    CHECK_EQ(timeout("123456789S"), -1); /* nine digits */
    CHECK_EQ(timeout("+5S"), -1);
    CHECK_EQ(timeout("--5S"), -1);
}

static const char *written(int64_t us)
{
    static _Thread_local char text[FS_GRPC_TIMEOUT_ROOM + 1];
    text[fs_grpc_timeout_write(us, text)] = '\0';
    return text;
}

static void test_timeouts_written(void)
{
    CHECK_STR(written(1), "1u");
    CHECK_STR(written(250000), "250000u");
    CHECK_STR(written(99999999), "99999999u");
    CHECK_STR(written(100000000), "100000m");
    CHECK_STR(written(100000001), "100001m"); /* rounded up: never less than was asked for */
    CHECK_STR(written(INT64_C(99999999000)), "99999999m");
    CHECK_STR(written(INT64_C(99999999001)), "100000S");
    CHECK_STR(written(INT64_C(99999999000000)), "99999999S");
    CHECK_STR(written(INT64_C(99999999000001)), "1666667M");
    CHECK_STR(written(INT64_C(99999999) * 60 * 1000000 + 1), "1666667H");
    CHECK_STR(written(INT64_MAX), "99999999H");
    for (int64_t us = 1; us < INT64_C(99999999) * 3600 * 1000000 / 7; us = us * 7 + 3) {
        int64_t read = timeout(written(us));
        CHECK(read >= us && read - us < (us >> 16) + 1000);
    }
}

static void test_encodings(void)
{
    CHECK_EQ(fs_grpc_encoding((const uint8_t *)"gzip", 4), FS_GZIP);
    CHECK_EQ(fs_grpc_encoding((const uint8_t *)"deflate", 7), FS_DEFLATE);
    CHECK_EQ(fs_grpc_encoding((const uint8_t *)"identity", 8), FS_IDENTITY);
    CHECK_EQ(fs_grpc_encoding((const uint8_t *)"gzi", 3), -1);
    CHECK_EQ(fs_grpc_encoding((const uint8_t *)"snappy", 6), -1);
    CHECK_EQ(fs_grpc_encoding((const uint8_t *)"", 0), -1);

    static const struct {
        const char *text;
        int best;
    } cases[] = {
        {"identity", FS_IDENTITY},
        {"identity,deflate,gzip", FS_GZIP},
        {"identity, deflate", FS_DEFLATE},
        {"deflate ,identity", FS_DEFLATE},
        {"gzip;q=1.0, deflate", FS_GZIP},
        {"snappy,zstd", FS_IDENTITY},
        {"gzipped", FS_IDENTITY},
        {"", FS_IDENTITY},
        {",,, ,", FS_IDENTITY},
        {";gzip", FS_IDENTITY},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_EQ(fs_grpc_accept((const uint8_t *)cases[i].text, strlen(cases[i].text)), cases[i].best);
}

static bool content_type(const char *text)
{
    return fs_grpc_content_type((const uint8_t *)text, strlen(text));
}

static void test_content_types(void)
{
    CHECK(content_type("application/grpc"));
    CHECK(content_type("application/grpc+proto"));
    CHECK(content_type("application/grpc;charset=utf-8"));
    CHECK(!content_type("application/grpc-web"));
    CHECK(!content_type("application/grp"));
    CHECK(!content_type("application/json"));
    CHECK(!content_type(""));
}

static void test_percent_encoding(void)
{
    char out[64];
    size_t n = fs_grpc_percent_encode("a b%c\n\x7f\xc3\xa9~", 10, out, sizeof out);
    out[n] = '\0';
    CHECK_STR(out, "a b%25c%0A%7F%C3%A9~");
    CHECK_EQ(fs_grpc_percent_encode("", 0, out, sizeof out), 0);
    n = fs_grpc_percent_encode(" a b: ", 6, out, sizeof out);
    out[n] = '\0';
    CHECK_STR(out, "%20a b:%20");
    /* Never half a code. */
    CHECK_EQ(fs_grpc_percent_encode("ab\n", 3, out, 4), 2);
    CHECK_EQ(fs_grpc_percent_encode("ab\n", 3, out, 5), 5);
    CHECK_EQ(fs_grpc_percent_encode("ab", 2, out, 0), 0);
}

static size_t decode(const char *text, char *out, size_t room)
{
    return fs_grpc_percent_decode((const uint8_t *)text, strlen(text), out, room);
}

static void test_percent_decoding(void)
{
    char out[64];
    CHECK_EQ(decode("%20a%c3%A9%0a%%", out, sizeof out), 7);
    CHECK_MEM(out, " a\xc3\xa9\n%%", 7);
    CHECK_EQ(decode("%", out, sizeof out), 1);
    CHECK_EQ(decode("%4", out, sizeof out), 2);
    CHECK_EQ(decode("%4g%zz", out, sizeof out), 6);
    CHECK_MEM(out, "%4g%zz", 6);
    CHECK_EQ(decode("%%41", out, sizeof out), 2);
    CHECK_MEM(out, "%A", 2);
    CHECK_EQ(decode("", out, sizeof out), 0);
    memset(out, 'x', sizeof out);
    CHECK_EQ(decode("ab%41c", out, 2), 4); /* all are counted, what fits is written */
    CHECK_MEM(out, "abx", 3);

    /* What is encoded comes back. */
    char text[256], encoded[3 * sizeof text], back[sizeof text];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = (char)i;
    size_t n = fs_grpc_percent_encode(text, sizeof text, encoded, sizeof encoded);
    CHECK_EQ(fs_grpc_percent_decode((const uint8_t *)encoded, n, back, sizeof back), sizeof text);
    CHECK_MEM(back, text, sizeof text);
}

static void test_prefixes(void)
{
    uint8_t prefix[FS_GRPC_PREFIX_BYTES];
    fs_grpc_prefix_write(prefix, true, 0x01020304);
    CHECK_MEM(prefix, "\1\1\2\3\4", 5);
    CHECK_EQ(fs_grpc_prefix_len(prefix), 0x01020304);
    fs_grpc_prefix_write(prefix, false, UINT32_MAX);
    CHECK_EQ(prefix[0], 0);
    CHECK_EQ(fs_grpc_prefix_len(prefix), UINT32_MAX);
}

int main(void)
{
    test_timeouts();
    test_timeouts_written();
    test_encodings();
    test_content_types();
    test_percent_encoding();
    test_percent_decoding();
    test_prefixes();
    return check_done();
}
