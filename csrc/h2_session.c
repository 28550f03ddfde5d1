/* h2_session: see h2_session.h. */
#include "h2_session.h"

#include "status.h"

/* A later fix of 1.52 brought this, and distributions carry it back; weak, so that a libnghttp2 without it
 * still loads. */
__attribute__((weak)) void nghttp2_option_set_max_continuations(nghttp2_option *option, size_t val);

enum { MAX_CONTINUATIONS = 16 };

/* ---- memory ------------------------------------------------------------------------------ */

static void *mem_malloc(size_t size, void *user)
{
    fs_h2_session *s = user;
    return fs_slab_alloc(s->slab, size);
}

static void *mem_calloc(size_t count, size_t size, void *user)
{
    size_t total;
    if (__builtin_mul_overflow(count, size, &total))
        return NULL;
    void *block = mem_malloc(total, user);
    if (block != NULL)
        memset(block, 0, total);
    return block;
}

/* nghttp2 (seen in 1.52) frees a DATA item twice when the queue that the item should join cannot grow: at
 * once, and with the stream, which still points to it. So when memory runs out in a realloc, which is how
 * queues grow, the session is over, and the next block to be freed is put aside, whole, until nghttp2 is
 * through. */
static void *mem_realloc(void *block, size_t size, void *user)
{
    fs_h2_session *s = user;
    void *bigger = fs_slab_realloc(s->slab, block, size);
    if (bigger == NULL && size > 0) {
        s->cannot_send = true;
        if (s->failed == 0)
            s->failed = -FS_RESOURCE_EXHAUSTED;
        s->put_aside_next = s->put_aside == NULL;
    }
    return bigger;
}

static void mem_free(void *block, void *user)
{
    fs_h2_session *s = user;
    if (block == NULL || block == s->put_aside)
        return;
    if (s->put_aside_next) {
        s->put_aside = block;
        s->put_aside_next = false;
        return;
    }
    fs_slab_free(block);
}

/* ---- life -------------------------------------------------------------------------------- */

void fs_h2_session_init(fs_h2_session *s, fs_slab *slab)
{
    *s = (fs_h2_session){.slab = slab, .mem = {s, mem_malloc, mem_free, mem_calloc, mem_realloc}};
}

void fs_h2_session_clear(fs_h2_session *s)
{
    nghttp2_session_del(s->session);
    fs_slab_free(s->put_aside);
}

nghttp2_option *fs_h2_session_options(void)
{
    nghttp2_option *option = NULL;
    if (nghttp2_option_new(&option) != 0)
        return NULL;
    nghttp2_option_set_no_closed_streams(option, 1);
    if (nghttp2_option_set_max_continuations != NULL)
        nghttp2_option_set_max_continuations(option, MAX_CONTINUATIONS);
    return option;
}

void fs_h2_session_fail(fs_h2_session *s, int status, uint32_t http2_code)
{
    if (s->failed == 0)
        s->failed = status;
    if (!s->cannot_send && nghttp2_session_terminate_session(s->session, http2_code) != 0)
        s->cannot_send = true;
}

bool fs_h2_session_done(const fs_h2_session *s)
{
    if (s->rest_len > 0)
        return false;
    return s->cannot_send ||
           (!nghttp2_session_want_read(s->session) && !nghttp2_session_want_write(s->session));
}

/* ---- bytes in, bytes out ------------------------------------------------------------------- */

int fs_h2_session_recv(fs_h2_session *s, const uint8_t *data, size_t len)
{
    ssize_t rc = nghttp2_session_mem_recv(s->session, data, len);
    if (s->failed != 0)
        return s->failed;
    if (rc == NGHTTP2_ERR_NOMEM) {
        fs_h2_session_fail(s, -FS_RESOURCE_EXHAUSTED, NGHTTP2_INTERNAL_ERROR);
    } else if (rc < 0) {
        fs_h2_session_fail(s, -FS_UNAVAILABLE,
                           rc == NGHTTP2_ERR_FLOODED ? NGHTTP2_ENHANCE_YOUR_CALM : NGHTTP2_PROTOCOL_ERROR);
    } else if (!nghttp2_session_want_read(s->session)) {
        return -FS_UNAVAILABLE; /* either side said GOAWAY and the last stream is closed */
    }
    return s->failed;
}

void fs_h2_session_fill(fs_h2_session *s)
{
    for (;;) {
        if (s->rest_len > 0) {
            size_t n = s->out_room - s->out_len;
            n = n < s->rest_len ? n : s->rest_len;
            memcpy(s->out + s->out_len, s->rest, n);
            s->out_len += n;
            s->rest += n;
            s->rest_len -= n;
            if (s->rest_len > 0)
                break;
        }
        if (s->cannot_send)
            break;
        ssize_t n = nghttp2_session_mem_send(s->session, &s->rest);
        if (n < 0) {
            s->cannot_send = true;
            if (s->failed == 0)
                s->failed = n == NGHTTP2_ERR_NOMEM ? -FS_RESOURCE_EXHAUSTED : -FS_INTERNAL;
            break;
        }
        if (n == 0)
            break; /* nothing to say, or a DATA frame found no room: it waits in nghttp2 */
        s->rest_len = (size_t)n;
    }
}
