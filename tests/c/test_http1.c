/* Unit tests of csrc/http1.c: answers whole and in pieces of every size, and what is refused. */
#include "http1.h"

#include "check.h"

typedef struct wanted {
    const char *bytes;
    int status;
    uint64_t body_bytes;
    bool keep_alive;
    size_t left; /* bytes after the answer */
} wanted;

#define HEAD "HTTP/1.1 200 OK\r\n"

static const wanted good[] = {
    {HEAD "content-length: 5\r\n\r\nhello", 200, 5, true, 0},
    {HEAD "Content-Length:5  \r\n\r\nhellomore", 200, 5, true, 4},
    {HEAD "content-length: 0\r\n\r\n", 200, 0, true, 0},
    {HEAD "content-length: 5\r\ncontent-length: 5\r\n\r\nhello", 200, 5, true, 0},
    {"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", 200, 5, true, 0},
    {"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno", 503, 2, true, 0},
    {"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx", 200, 1, true, 0},
    {"HTTP/1.1 204 No Content\r\n\r\n", 204, 0, true, 0},
    {"HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n", 304, 0, true, 0},
    {"HTTP/1.1 100 Continue\r\ncontent-length: 9\r\n\r\n" HEAD "content-length: 2\r\n\r\nok", 200, 2, true,
     0},
    {"HTTP/1.1 101 Switching\r\n\r\nrest", 101, 0, false, 4},
    {HEAD "connection: close\r\ncontent-length: 2\r\n\r\nok", 200, 2, false, 0},
    {HEAD "connection: Upgrade , CLOSE\r\ncontent-length: 2\r\n\r\nok", 200, 2, false, 0},
    {HEAD "connection: closer\r\ncontent-length: 2\r\n\r\nok", 200, 2, true, 0},
    {"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, 2, false, 0},
    {"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", 200, 2, true, 0},
    {HEAD "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", 200, 11, true, 0},
    {HEAD "Transfer-Encoding: gzip, Chunked\r\n\r\nA \r\n0123456789\r\n00\r\nx-t: 1\r\n\r\nGET", 200, 10,
     true, 3},
    {HEAD "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n1\r\nx\r\n0\r\n\r\n", 200, 1, true, 0},
    {HEAD "x-content-length: 7\r\ncontent-lengthy: 7\r\ncontent-length: 1\r\n folded: 9\r\n\r\nx", 200, 1,
     true, 0},
};

/* Feeds `bytes` in pieces of `step`; how many were taken, or what was returned. */
static int64_t feed(fs_http1 *http, const char *bytes, size_t len, size_t step, fs_error *err)
{
    size_t at = 0;
    fs_http1_begin(http);
    while (at < len && !http->done) {
        size_t n = step < len - at ? step : len - at;
        uint8_t *copy = malloc(n); /* so that a sanitizer sees reads past it */
        REQUIRE(copy != NULL);
        memcpy(copy, bytes + at, n);
        int64_t taken = fs_http1_take(http, copy, n, err);
        free(copy);
        if (taken < 0)
            return taken;
        CHECK(taken <= (int64_t)n);
        CHECK(taken == (int64_t)n || http->done);
        at += (size_t)taken;
    }
    return (int64_t)at;
}

static void answers_are_read_in_pieces_of_any_size(void)
{
    fs_http1 http; /* one for all: each begins afresh */
    memset(&http, 0xa5, sizeof http);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        size_t len = strlen(good[i].bytes);
        for (size_t step = 1; step <= len; step++) {
            fs_error err = {0};
            int64_t taken = feed(&http, good[i].bytes, len, step, &err);
            const wanted *want = &good[i];
            bool right = taken == (int64_t)(len - want->left) && http.done && http.status == want->status &&
                         http.body_bytes == want->body_bytes && http.keep_alive == want->keep_alive;
            CHECK_REPORT(right, "answer %zu by %zu: took %" PRId64 " of %zu, done %d, %d, keep %d: %s", i, step,
                         taken, len, http.done, http.status, http.keep_alive, err.msg);
            CHECK_EQ(fs_http1_take(&http, (const uint8_t *)"x", 1, &err), 0); /* it is over */
        }
    }
}

static void an_answer_may_end_with_the_connection(void)
{
    static const char bytes[] = HEAD "x: y\r\n\r\nuntil the end";
    fs_http1 http;
    fs_error err = {0};
    CHECK_EQ(feed(&http, bytes, sizeof bytes - 1, 4, &err), sizeof bytes - 1);
    CHECK(!http.done);
    CHECK_OK(fs_http1_close(&http, &err));
    CHECK(http.done && !http.keep_alive);
    CHECK_EQ(http.body_bytes, 13);
}

static void an_answer_that_is_cut_off_is_no_answer(void)
{
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        size_t whole = strlen(good[i].bytes) - good[i].left;
        for (size_t len = 0; len < whole; len++) {
            fs_http1 http;
            fs_error err = {0};
            CHECK_EQ(feed(&http, good[i].bytes, len, len > 0 ? len : 1, &err), len);
            CHECK(!http.done);
            CHECK_EQ(fs_http1_close(&http, &err), -FS_UNAVAILABLE);
            CHECK(err.len > 0);
        }
    }
}

static void what_is_not_http_is_refused(void)
{
    static const char *const bad[] = {
        "SSH-2.0-OpenSSH_9.2\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n",
        "HTTP/1.x 200 OK\r\n",
        "HTTP/1.1  200 OK\r\n",
        "HTTP/1.1 20 OK\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1 099 OK\r\n",
        HEAD "content-length: -1\r\n",
        HEAD "content-length: \r\n",
        HEAD "content-length: 5, 5\r\n",
        HEAD "content-length: 0x5\r\n",
        HEAD "content-length: 9999999999999999999\r\n",
        HEAD "content-length: 5\r\ncontent-length: 6\r\n",
        HEAD "transfer-encoding: gzip\r\n",
        HEAD "transfer-encoding: chunked, gzip\r\n",
        HEAD "transfer-encoding: xchunked\r\n",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n",
        HEAD "transfer-encoding: chunked\r\n\r\n\r\n",
        HEAD "transfer-encoding: chunked\r\n\r\nx\r\n",
        HEAD "transfer-encoding: chunked\r\n\r\n5x\r\n",
        HEAD "transfer-encoding: chunked\r\n\r\n-5\r\n",
        HEAD "transfer-encoding: chunked\r\n\r\n1000000000000000\r\n",
        HEAD "transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        for (size_t step = 1; step < 64; step += 7) {
            fs_http1 http;
            fs_error err = {0};
            int64_t rc = feed(&http, bad[i], strlen(bad[i]), step, &err);
            CHECK_REPORT(rc == -FS_INTERNAL && err.len > 0, "answer %zu by %zu: %" PRId64, i, step, rc);
        }
    }
}

static void a_header_that_matters_is_not_cut(void)
{
    char bytes[1024];
    fs_http1 http;
    fs_error err = {0};
    int len = snprintf(bytes, sizeof bytes, HEAD "transfer-encoding: %300s, chunked\r\n", "gzip");
    CHECK_EQ(feed(&http, bytes, (size_t)len, 1000, &err), -FS_INTERNAL);
    len = snprintf(bytes, sizeof bytes, HEAD "content-length: %300s\r\n", "5");
    CHECK_EQ(feed(&http, bytes, (size_t)len, 1000, &err), -FS_INTERNAL);
    /* Of a long list of tokens nothing can be said: the connection is not used again. */
    len = snprintf(bytes, sizeof bytes, HEAD "connection: %300s\r\ncontent-length: 0\r\n\r\n", "x");
    CHECK_EQ(feed(&http, bytes, (size_t)len, 1000, &err), len);
    CHECK(http.done && !http.keep_alive);
    len = snprintf(bytes, sizeof bytes, HEAD "x-long: %500s\r\ncontent-length: 1\r\n\r\nx", "x");
    CHECK_EQ(feed(&http, bytes, (size_t)len, 3, &err), len);
    CHECK(http.done && http.keep_alive && http.body_bytes == 1);
}

static void endless_heads_are_refused(void)
{
    static const char *const begins[] = {"", HEAD, HEAD "transfer-encoding: chunked\r\n\r\n0\r\n"};
    for (size_t i = 0; i < 3; i++) {
        for (int lines = 0; lines < 2; lines++) {
            fs_http1 http;
            fs_error err = {0};
            int64_t rc = feed(&http, begins[i], strlen(begins[i]), 1000, &err);
            CHECK_EQ(rc, strlen(begins[i]));
            size_t fed = 0;
            const char *more = lines == 0 ? "xxxxxxxxxxxxxxxxxx"
                               : i == 0   ? "HTTP/1.1 100 x\r\n\r\n"
                                          : "x-more: 12345678\r\n";
            while (rc >= 0 && !http.done && fed < (1 << 20)) {
                rc = fs_http1_take(&http, (const uint8_t *)more, 18, &err);
                fed += 18;
            }
            CHECK(rc == -FS_INTERNAL && fed < (64 << 10) + 200);
        }
    }
    /* Many chunks, on the other hand, are one body. */
    fs_http1 http;
    fs_error err = {0};
    CHECK(feed(&http, begins[2], strlen(begins[2]) - 3, 1000, &err) > 0);
    for (int i = 0; i < 100000; i++)
        CHECK_EQ(fs_http1_take(&http, (const uint8_t *)"1\r\nx\r\n", 6, &err), 6);
    CHECK_EQ(fs_http1_take(&http, (const uint8_t *)"0\r\n\r\n", 5, &err), 5);
    CHECK(http.done);
    CHECK_EQ(http.body_bytes, 100000);
}

static fs_slice text(const char *s)
{
    return (fs_slice){(const uint8_t *)s, strlen(s)};
}

static void heads_say_what_follows(void)
{
    uint8_t head[512];
    fs_slice path = text("/v1/models/m:predict");
    size_t len = fs_http1_head_write(head, sizeof head, path, text("h:1"), NULL, 0, 1234);
    head[len] = '\0';
    CHECK_STR((char *)head, "POST /v1/models/m:predict HTTP/1.1\r\nhost: h:1\r\n"
                            "content-type: application/json\r\ncontent-length: 1234\r\n\r\n");
    fs_header headers[2] = {{text("x-a"), text("1")}, {text("Content-Type"), text("application/x")}};
    len = fs_http1_head_write(head, sizeof head, text("/"), text("h"), headers, 2, 0);
    head[len] = '\0';
    CHECK_STR((char *)head, "POST / HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nContent-Type: application/x\r\n"
                            "content-length: 0\r\n\r\n");
    for (size_t room = 0; room < len; room++) {
        uint8_t *small = malloc(room + 1);
        REQUIRE(small != NULL);
        small[room] = 0x5a;
        CHECK_EQ(fs_http1_head_write(small, room, text("/"), text("h"), headers, 2, 0), len);
        CHECK_EQ(small[room], 0x5a);
        free(small);
    }
}

int main(void)
{
    answers_are_read_in_pieces_of_any_size();
    an_answer_may_end_with_the_connection();
    an_answer_that_is_cut_off_is_no_answer();
    what_is_not_http_is_refused();
    a_header_that_matters_is_not_cut();
    endless_heads_are_refused();
    heads_say_what_follows();
    return check_done();
}
