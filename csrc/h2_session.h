/* h2_session: what both sides of a connection share around an nghttp2 session: its memory, how it fails, and
 * the way out for bytes.
 *
 * The first member of fs_h2 and of fs_h2_client, and given to nghttp2 as its user pointer, so that a callback
 * may take it for either. Always used by the thread that owns the connection. Knows neither side's calls. */
#ifndef FS_H2_SESSION_H
#define FS_H2_SESSION_H

#include <stdbool.h>
#include <string.h>

#include <nghttp2/nghttp2.h>

#include "slab.h"

enum { FS_H2_FRAME_HEAD_BYTES = 9 };

typedef struct fs_h2_session {
    nghttp2_session *session;
    fs_slab *slab;
    nghttp2_mem mem;
    int failed;          /* 0 or a negative status: the peer broke the rules, or memory ran out */
    bool cannot_send;    /* nghttp2 cannot go on */
    bool put_aside_next; /* see mem_realloc */
    void *put_aside;

    /* Where fs_h2_session_send writes. */
    uint8_t *out;
    size_t out_room, out_len;
    const uint8_t *rest; /* nghttp2's: valid until it is asked for more */
    size_t rest_len;
} fs_h2_session;

/* Everything but `session` itself, which the caller makes with `mem`. */
void fs_h2_session_init(fs_h2_session *s, fs_slab *slab);
void fs_h2_session_clear(fs_h2_session *s);

/* Options that both sides want; NULL when out of memory. nghttp2_option_del frees them. */
nghttp2_option *fs_h2_session_options(void);

/* Ends the session with a GOAWAY that carries an HTTP/2 error code. The first failure is kept. */
void fs_h2_session_fail(fs_h2_session *s, int status, uint32_t http2_code);

/* Hands nghttp2 what came. 0, or negative: the session is over. */
int fs_h2_session_recv(fs_h2_session *s, const uint8_t *data, size_t len);

/* Begins to fill `room` bytes at `dst`; then fills as much as there is to say, as often as the caller has
 * more. out_len counts the bytes. */
static inline void fs_h2_session_begin(fs_h2_session *s, uint8_t *dst, size_t room)
{
    s->out = dst;
    s->out_room = room;
    s->out_len = 0;
}
void fs_h2_session_fill(fs_h2_session *s);

/* For the callback that sends DATA: writes the frame's head, and returns where its `len` bytes go; NULL when
 * there is no room for both. */
static inline uint8_t *fs_h2_session_put_data(fs_h2_session *s, const uint8_t *head, size_t len)
{
    if (s->out_room - s->out_len < FS_H2_FRAME_HEAD_BYTES + len)
        return NULL;
    uint8_t *at = s->out + s->out_len;
    memcpy(at, head, FS_H2_FRAME_HEAD_BYTES);
    s->out_len += FS_H2_FRAME_HEAD_BYTES + len;
    return at + FS_H2_FRAME_HEAD_BYTES;
}

/* Nothing more will come of it: it has failed, or said and heard all that it will. */
bool fs_h2_session_done(const fs_h2_session *s);

#endif
