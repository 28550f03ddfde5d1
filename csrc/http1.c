/* http1: see http1.h.
 *
 * Lines are gathered to their end, cut to what is worth keeping, and looked at; a body is only counted. A
 * header that matters and does not fit is an error, so that nothing is misread for being long. */
#include "http1.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum {
    STATUS_LINE,
    HEADERS,
    BODY,          /* `left` bytes */
    BODY_TO_CLOSE, /* until the server closes */
    CHUNK_SIZE,
    CHUNK,         /* `left` bytes */
    CHUNK_END,     /* the empty line after it */
    TRAILERS,
    DONE,
};

void fs_http1_begin(fs_http1 *http)
{
    http->status = 0;
    http->keep_alive = true;
    http->done = false;
    http->body_bytes = 0;
    http->state = STATUS_LINE;
    http->chunked = http->length_known = http->old = false;
    http->left = 0;
    http->head_bytes = http->line_len = 0;
}

static int bad(fs_error *err, const char *what)
{
    return fs_fail(err, FS_INTERNAL, "not an HTTP/1.1 answer: %s", what);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static int status_line(fs_http1 *http, fs_error *err)
{
    const char *line = http->line;
    size_t kept = http->line_len < FS_HTTP1_LINE_BYTES ? http->line_len : FS_HTTP1_LINE_BYTES;
    if (kept < 12 || memcmp(line, "HTTP/1.", 7) != 0 || !is_digit(line[7]) || line[8] != ' ')
        return bad(err, "its first line is no status line");
    if (!is_digit(line[9]) || !is_digit(line[10]) || !is_digit(line[11]) || (kept > 12 && line[12] != ' '))
        return bad(err, "its status is no number");
    http->status = (line[9] - '0') * 100 + (line[10] - '0') * 10 + (line[11] - '0');
    if (http->status < 100)
        return bad(err, "its status is below 100");
    http->old = line[7] == '0';
    http->keep_alive = !http->old;
    http->chunked = http->length_known = false;
    http->state = HEADERS;
    return 0;
}

/* A header's name and value within the line; spaces around the value do not count. */
static bool named(const fs_http1 *http, const char *name, const char **value, size_t *len)
{
    size_t n = strlen(name);
    if (http->line_len <= n || http->line[n] != ':' || strncasecmp(http->line, name, n) != 0)
        return false;
    size_t from = n + 1;
    size_t to = http->line_len < FS_HTTP1_LINE_BYTES ? http->line_len : FS_HTTP1_LINE_BYTES;
    while (from < to && (http->line[from] == ' ' || http->line[from] == '\t'))
        from++;
    while (to > from && (http->line[to - 1] == ' ' || http->line[to - 1] == '\t'))
        to--;
    *value = http->line + from;
    *len = to - from;
    return true;
}

/* Whether a comma-separated list has this token; `last`: as its last. */
static bool lists(const char *value, size_t len, const char *token, bool last)
{
    size_t n = strlen(token), at = 0;
    bool found = false;
    while (at < len) {
        while (at < len && (value[at] == ' ' || value[at] == '\t' || value[at] == ','))
            at++;
        size_t from = at;
        while (at < len && value[at] != ',')
            at++;
        size_t to = at;
        while (to > from && (value[to - 1] == ' ' || value[to - 1] == '\t'))
            to--;
        if (to > from)
            found = (found && !last) || (to - from == n && strncasecmp(value + from, token, n) == 0);
    }
    return found;
}

static int header(fs_http1 *http, fs_error *err)
{
    const char *value;
    size_t len;
    bool cut = http->line_len > FS_HTTP1_LINE_BYTES;
    if (named(http, "content-length", &value, &len)) {
        uint64_t length = 0;
        if (cut || len == 0 || len > 18)
            return bad(err, "its content-length is no length");
        for (size_t i = 0; i < len; i++) {
            if (!is_digit(value[i]))
                return bad(err, "its content-length is no length");
            length = length * 10 + (uint64_t)(value[i] - '0');
        }
        if (http->length_known && length != http->left)
            return bad(err, "it has two content-lengths");
        http->length_known = true;
        http->left = length;
    } else if (named(http, "transfer-encoding", &value, &len)) {
        if (cut || http->old)
            return bad(err, "its transfer-encoding cannot be used");
        http->chunked = lists(value, len, "chunked", true);
        if (!http->chunked)
            return bad(err, "its transfer-encoding does not end with chunked");
    } else if (named(http, "connection", &value, &len)) {
        if (cut || lists(value, len, "close", false))
            http->keep_alive = false;
        else if (http->old && lists(value, len, "keep-alive", false))
            http->keep_alive = true;
    }
    return 0;
}

static void end(fs_http1 *http)
{
    http->state = DONE;
    http->done = true;
}

/* The empty line after the headers: what follows? */
static void head_is_whole(fs_http1 *http)
{
    if (http->status < 200 && http->status != 101) {
        http->length_known = http->chunked = false;
        http->state = STATUS_LINE; /* "100 Continue" and the like: the answer is still to come */
    } else if (http->status == 101) {
        http->keep_alive = false; /* another protocol, which nobody asked for */
        end(http);
    } else if (http->status == 204 || http->status == 304) {
        end(http);
    } else if (http->chunked) {
        http->state = CHUNK_SIZE;
    } else if (http->length_known) {
        http->state = BODY;
        if (http->left == 0)
            end(http);
    } else {
        http->keep_alive = false;
        http->state = BODY_TO_CLOSE;
    }
}

static int chunk_size(fs_http1 *http, fs_error *err)
{
    size_t kept = http->line_len < FS_HTTP1_LINE_BYTES ? http->line_len : FS_HTTP1_LINE_BYTES;
    uint64_t size = 0;
    size_t at = 0;
    for (; at < kept; at++) {
        char c = http->line[at];
        unsigned digit = is_digit(c)               ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                         : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10
                                                : 16;
        if (digit == 16)
            break;
        if (at == 15)
            return bad(err, "a chunk of more than 2^60 bytes");
        size = size << 4 | digit;
    }
    if (at == 0 || (at < kept && http->line[at] != ';' && http->line[at] != ' ' && http->line[at] != '\t'))
        return bad(err, "a chunk without a size");
    http->left = size;
    http->state = size > 0 ? CHUNK : TRAILERS;
    return 0;
}

/* A line is whole, without its end. */
static int line(fs_http1 *http, fs_error *err)
{
    switch (http->state) {
    case STATUS_LINE:
        return status_line(http, err);
    case HEADERS:
        if (http->line_len > 0)
            return header(http, err);
        head_is_whole(http);
        return 0;
    case CHUNK_SIZE:
        http->head_bytes = 0; /* many chunks are no long head */
        return chunk_size(http, err);
    case CHUNK_END:
        if (http->line_len > 0)
            return bad(err, "a chunk longer than its size");
        http->state = CHUNK_SIZE;
        return 0;
    default: /* TRAILERS */
        if (http->line_len == 0)
            end(http);
        return 0;
    }
}

/* Takes bytes up to the end of a line, at most. */
static int64_t take_line(fs_http1 *http, const uint8_t *data, size_t len, fs_error *err)
{
    const uint8_t *newline = memchr(data, '\n', len);
    size_t n = newline != NULL ? (size_t)(newline - data) : len;
    http->head_bytes += n + (newline != NULL);
    if (http->head_bytes > FS_HTTP1_HEAD_BYTES)
        return bad(err, "its headers are longer than 64 KiB");
    if (http->line_len < FS_HTTP1_LINE_BYTES) {
        size_t room = FS_HTTP1_LINE_BYTES - http->line_len;
        memcpy(http->line + http->line_len, data, n < room ? n : room);
    }
    http->line_len += n;
    if (newline == NULL)
        return (int64_t)n;
    if (http->line_len > 0 && http->line_len <= FS_HTTP1_LINE_BYTES && http->line[http->line_len - 1] == '\r')
        http->line_len--;
    int rc = line(http, err);
    http->line_len = 0;
    return rc != 0 ? rc : (int64_t)n + 1;
}

static size_t take_body(fs_http1 *http, size_t len)
{
    size_t n = http->state != BODY_TO_CLOSE && http->left < len ? (size_t)http->left : len;
    http->body_bytes += n;
    if (http->state == BODY_TO_CLOSE)
        return n;
    http->left -= n;
    if (http->left == 0) {
        if (http->state == BODY)
            end(http);
        else
            http->state = CHUNK_END;
    }
    return n;
}

int64_t fs_http1_take(fs_http1 *http, const uint8_t *data, size_t len, fs_error *err)
{
    size_t at = 0;
    while (at < len && !http->done) {
        if (http->state == BODY || http->state == BODY_TO_CLOSE || http->state == CHUNK) {
            at += take_body(http, len - at);
        } else {
            int64_t n = take_line(http, data + at, len - at, err);
            if (n < 0)
                return n;
            at += (size_t)n;
        }
    }
    return (int64_t)at;
}

int fs_http1_close(fs_http1 *http, fs_error *err)
{
    if (http->state == BODY_TO_CLOSE)
        end(http);
    if (!http->done)
        return fs_fail(err, FS_UNAVAILABLE, "the server closed the connection before it had answered");
    http->keep_alive = false;
    return 0;
}

/* ---- the request's head ----------------------------------------------------------------------- */

typedef struct writer {
    uint8_t *dst;
    size_t room, len;
} writer;

static void put(writer *w, const void *data, size_t len)
{
    if (len > 0 && w->len + len <= w->room)
        memcpy(w->dst + w->len, data, len);
    w->len += len;
}

static void put_text(writer *w, const char *text)
{
    put(w, text, strlen(text));
}

size_t fs_http1_head_write(uint8_t *dst, size_t room, fs_slice path, fs_slice host, const fs_header *headers,
                           uint32_t n_headers, size_t body_bytes)
{
    writer w = {dst, room, 0};
    bool typed = false;
    char length[32];
    put_text(&w, "POST ");
    put(&w, path.data, path.len);
    put_text(&w, " HTTP/1.1\r\nhost: ");
    put(&w, host.data, host.len);
    for (uint32_t i = 0; i < n_headers; i++) {
        typed = typed || (headers[i].name.len == strlen("content-type") &&
                          strncasecmp((const char *)headers[i].name.data, "content-type", 12) == 0);
        put_text(&w, "\r\n");
        put(&w, headers[i].name.data, headers[i].name.len);
        put_text(&w, ": ");
        put(&w, headers[i].value.data, headers[i].value.len);
    }
    if (!typed)
        put_text(&w, "\r\ncontent-type: application/json");
    int n = snprintf(length, sizeof length, "\r\ncontent-length: %zu\r\n\r\n", body_bytes);
    put(&w, length, (size_t)n);
    return w.len;
}
