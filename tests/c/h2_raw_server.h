/* h2_raw_server: a server made of frames that a test writes one by one, joined to an fs_h2_client in the same
 * process; and what the client says to it, taken apart into frames.
 *
 * Included by the client session's tests. Says what no HTTP/2 library would; keeps no state of a connection
 * but the client's HPACK table. */
#ifndef FS_H2_RAW_SERVER_H
#define FS_H2_RAW_SERVER_H

#include <nghttp2/nghttp2.h>

#include "check.h"
#include "grpc.h"
#include "h2_client.h"

enum { RAW_ROOM = 1 << 21, RAW_FRAMES = 512, RAW_HEADERS = 4096, RAW_PREFACE_BYTES = 24 };

/* A frame that the client has sent. HEADERS are decoded to "name: value\n" lines. */
typedef struct raw_frame {
    uint8_t type, flags;
    int32_t stream;
    size_t len, at; /* payload: in raw->heard */
    size_t lines_at;
} raw_frame;

typedef struct raw {
    fs_h2_client *client;
    int64_t now_us;
    int recv_rc;  /* the first that was not 0 */
    size_t step;  /* bytes given to fs_h2_client_recv at once; 0: all */
    size_t room;  /* given to fs_h2_client_send */

    uint8_t said[RAW_ROOM]; /* not yet given to the client */
    size_t n_said;
    uint8_t heard[RAW_ROOM];
    size_t n_heard, parsed;
    raw_frame frames[RAW_FRAMES];
    int n_frames;
    char lines[1 << 18];
    size_t n_lines;
    nghttp2_hd_inflater *inflater;
} raw;

static inline raw *raw_new(fs_h2_client *client)
{
    raw *r = calloc(1, sizeof *r);
    REQUIRE(r != NULL);
    r->client = client;
    r->room = 1 << 16;
    REQUIRE(nghttp2_hd_inflate_new(&r->inflater) == 0);
    return r;
}

static inline void raw_free(raw *r)
{
    nghttp2_hd_inflate_del(r->inflater);
    free(r);
}

/* ---- speaking ------------------------------------------------------------------------------------- */

static inline void raw_bytes(raw *r, const void *bytes, size_t len)
{
    REQUIRE(r->n_said + len <= sizeof r->said);
    if (len > 0)
        memcpy(r->said + r->n_said, bytes, len);
    r->n_said += len;
}

static inline void raw_say(raw *r, uint8_t type, uint8_t flags, int32_t stream, const void *payload,
                           size_t len)
{
    const uint8_t head[9] = {(uint8_t)(len >> 16),    (uint8_t)(len >> 8),     (uint8_t)len,
                             type,                    flags,                   (uint8_t)(stream >> 24),
                             (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};
    raw_bytes(r, head, sizeof head);
    raw_bytes(r, payload, len);
}

static inline void raw_u32(uint8_t *dst, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        dst[i] = (uint8_t)(value >> (24 - 8 * i));
}

static inline uint32_t raw_read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* id 0: an empty one. */
static inline void raw_settings(raw *r, uint16_t id, uint32_t value)
{
    uint8_t entry[6] = {(uint8_t)(id >> 8), (uint8_t)id};
    raw_u32(entry + 2, value);
    raw_say(r, NGHTTP2_SETTINGS, 0, 0, entry, id != 0 ? sizeof entry : 0);
}

static inline void raw_reset(raw *r, int32_t stream, uint32_t code)
{
    uint8_t payload[4];
    raw_u32(payload, code);
    raw_say(r, NGHTTP2_RST_STREAM, 0, stream, payload, sizeof payload);
}

static inline void raw_goaway(raw *r, int32_t last, uint32_t code, const char *text)
{
    uint8_t payload[256];
    raw_u32(payload, (uint32_t)last);
    raw_u32(payload + 4, code);
    memcpy(payload + 8, text, strlen(text));
    raw_say(r, NGHTTP2_GOAWAY, 0, 0, payload, 8 + strlen(text));
}

static inline void raw_window(raw *r, int32_t stream, uint32_t bytes)
{
    uint8_t payload[4];
    raw_u32(payload, bytes);
    raw_say(r, NGHTTP2_WINDOW_UPDATE, 0, stream, payload, sizeof payload);
}

static inline size_t raw_string(uint8_t *dst, const char *s, size_t len)
{
    size_t at = 0;
    if (len < 127) {
        dst[at++] = (uint8_t)len;
    } else {
        size_t more = len - 127;
        for (dst[at++] = 127; more > 127; more >>= 7)
            dst[at++] = (uint8_t)(more | 128);
        dst[at++] = (uint8_t)more;
    }
    memcpy(dst + at, s, len);
    return at + len;
}

/* A header block of "name: value\n" lines, as HPACK literals that no table remembers. */
static inline size_t raw_block(uint8_t *dst, size_t room, const char *lines)
{
    size_t at = 0;
    while (*lines != '\0') {
        const char *end = strchr(lines, '\n'), *colon = strchr(lines + 1, ':');
        REQUIRE(end != NULL && colon != NULL && colon < end && at + (size_t)(end - lines) + 16 < room);
        dst[at++] = 0;
        at += raw_string(dst + at, lines, (size_t)(colon - lines));
        at += raw_string(dst + at, colon + 2, (size_t)(end - colon - 2));
        lines = end + 1;
    }
    return at;
}

static inline void raw_headers(raw *r, int32_t stream, bool end, const char *lines)
{
    uint8_t block[1 << 14];
    size_t len = raw_block(block, sizeof block, lines);
    uint8_t flags = NGHTTP2_FLAG_END_HEADERS | (end ? NGHTTP2_FLAG_END_STREAM : 0);
    raw_say(r, NGHTTP2_HEADERS, flags, stream, block, len);
}

#define RAW_HEAD ":status: 200\ncontent-type: application/grpc\n"
#define RAW_OK "grpc-status: 0\n"

static inline void raw_data(raw *r, int32_t stream, bool end, const void *bytes, size_t len)
{
    size_t at = 0;
    do {
        size_t n = len - at < 16384 ? len - at : 16384;
        bool last = at + n == len;
        uint8_t flags = end && last ? NGHTTP2_FLAG_END_STREAM : 0;
        raw_say(r, NGHTTP2_DATA, flags, stream, (const uint8_t *)bytes + at, n);
        at += n;
    } while (at < len);
}

/* A gRPC frame in DATA. */
static inline void raw_message(raw *r, int32_t stream, bool end, const char *text)
{
    uint8_t frame[4096];
    size_t len = strlen(text);
    REQUIRE(len + FS_GRPC_PREFIX_BYTES <= sizeof frame);
    fs_grpc_prefix_write(frame, false, (uint32_t)len);
    memcpy(frame + FS_GRPC_PREFIX_BYTES, text, len);
    raw_data(r, stream, end, frame, len + FS_GRPC_PREFIX_BYTES);
}

/* A whole good answer. */
static inline void raw_answer(raw *r, int32_t stream, const char *text)
{
    raw_headers(r, stream, false, RAW_HEAD);
    raw_message(r, stream, false, text);
    raw_headers(r, stream, true, RAW_OK);
}

/* Gives the client what was said. */
static inline void raw_feed(raw *r)
{
    size_t at = 0;
    while (at < r->n_said) {
        size_t n = r->step > 0 && r->step < r->n_said - at ? r->step : r->n_said - at;
        uint8_t *copy = malloc(n); /* so that a sanitizer sees reads past it */
        REQUIRE(copy != NULL);
        memcpy(copy, r->said + at, n);
        int rc = fs_h2_client_recv(r->client, copy, n, r->now_us);
        free(copy);
        if (rc != 0 && r->recv_rc == 0)
            r->recv_rc = rc;
        at += n;
    }
    r->n_said = 0;
}

/* ---- listening --------------------------------------------------------------------------------------- */

static inline void raw_decode(raw *r, const uint8_t *block, size_t len)
{
    for (;;) {
        nghttp2_nv nv;
        int flags = 0;
        ssize_t n = nghttp2_hd_inflate_hd2(r->inflater, &nv, &flags, block, len, 1);
        REQUIRE(n >= 0);
        block += n;
        len -= (size_t)n;
        if ((flags & NGHTTP2_HD_INFLATE_EMIT) != 0) {
            REQUIRE(r->n_lines + nv.namelen + nv.valuelen + 4 < sizeof r->lines);
            r->n_lines += (size_t)sprintf(r->lines + r->n_lines, "%.*s: %.*s\n", (int)nv.namelen, nv.name,
                                          (int)nv.valuelen, nv.value);
        }
        if ((flags & NGHTTP2_HD_INFLATE_FINAL) != 0)
            break;
    }
    nghttp2_hd_inflate_end_headers(r->inflater);
    r->lines[r->n_lines++] = '\0';
}

static inline void raw_parse(raw *r)
{
    if (r->parsed == 0) {
        if (r->n_heard < RAW_PREFACE_BYTES)
            return;
        CHECK_MEM(r->heard, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", RAW_PREFACE_BYTES);
        r->parsed = RAW_PREFACE_BYTES;
    }
    while (r->n_heard - r->parsed >= 9) {
        const uint8_t *head = r->heard + r->parsed;
        size_t len = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
        if (r->n_heard - r->parsed - 9 < len)
            break;
        REQUIRE(r->n_frames < RAW_FRAMES);
        raw_frame *f = &r->frames[r->n_frames++];
        *f = (raw_frame){head[3], head[4], (int32_t)raw_read_u32(head + 5), len, r->parsed + 9, r->n_lines};
        if (f->type == NGHTTP2_HEADERS) {
            CHECK((f->flags & NGHTTP2_FLAG_END_HEADERS) != 0);
            size_t skip = (f->flags & NGHTTP2_FLAG_PRIORITY) != 0 ? 5 : 0;
            raw_decode(r, r->heard + f->at + skip, len - skip);
        }
        r->parsed += 9 + len;
    }
}

/* One call of fs_h2_client_send; what it gave is parsed as far as frames are complete. */
static inline size_t raw_hear_once(raw *r)
{
    REQUIRE(r->n_heard + r->room <= sizeof r->heard);
    size_t n = fs_h2_client_send(r->client, r->heard + r->n_heard, r->room, r->now_us);
    CHECK(n <= r->room);
    r->n_heard += n;
    raw_parse(r);
    return n;
}

static inline void raw_hear(raw *r)
{
    while (raw_hear_once(r) > 0) {
    }
    CHECK_EQ(r->parsed, r->n_heard);
}

/* Forgets what was heard. */
static inline void raw_forget(raw *r)
{
    REQUIRE(r->parsed == r->n_heard && r->parsed >= RAW_PREFACE_BYTES);
    r->n_heard = r->parsed = RAW_PREFACE_BYTES;
    r->n_frames = 0;
    r->n_lines = 0;
}

static inline int raw_count(const raw *r, uint8_t type, int32_t stream)
{
    int n = 0;
    for (int i = 0; i < r->n_frames; i++)
        n += r->frames[i].type == type && (stream < 0 || r->frames[i].stream == stream);
    return n;
}

static inline const raw_frame *raw_find(const raw *r, uint8_t type, int32_t stream)
{
    for (int i = 0; i < r->n_frames; i++) {
        if (r->frames[i].type == type && (stream < 0 || r->frames[i].stream == stream))
            return &r->frames[i];
    }
    return NULL;
}

/* The error code of the one RST_STREAM (or GOAWAY) for a stream, -1 when there is none, -2 when there are
 * more. */
static inline int64_t raw_code(const raw *r, uint8_t type, int32_t stream)
{
    int n = raw_count(r, type, stream);
    if (n != 1)
        return n == 0 ? -1 : -2;
    const raw_frame *f = raw_find(r, type, stream);
    return raw_read_u32(r->heard + f->at + (type == NGHTTP2_GOAWAY ? 4 : 0));
}

/* All DATA of a stream, and whether it was ended. Freed by the caller. */
static inline uint8_t *raw_body(const raw *r, int32_t stream, size_t *len, bool *ended)
{
    uint8_t *body = malloc(RAW_ROOM);
    REQUIRE(body != NULL);
    *len = 0;
    *ended = false;
    for (int i = 0; i < r->n_frames; i++) {
        const raw_frame *f = &r->frames[i];
        if (f->type != NGHTTP2_DATA || f->stream != stream)
            continue;
        memcpy(body + *len, r->heard + f->at, f->len);
        *len += f->len;
        *ended = *ended || (f->flags & NGHTTP2_FLAG_END_STREAM) != 0;
    }
    return body;
}

#endif
