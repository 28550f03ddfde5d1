/* sock: one stream socket that does not block, plain or TLS, and what it did not take yet.
 *
 * Used by connections of both sides (conn for servers, link for clients), on the thread that owns the
 * connection. Knows system calls and tls; knows no HTTP/2 and no loop. */
#ifndef FS_SOCK_H
#define FS_SOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "slab.h"
#include "status.h"
#include "tls.h"

typedef struct fs_sock {
    int fd;              /* -1: closed */
    fs_tls *tls;         /* NULL: plain */
    fs_slab *slab;
    uint8_t *rest;       /* what the socket did not take; a slab block, NULL for none */
    size_t rest_len, rest_at;
    int64_t full_us;     /* since when it has taken nothing, while there is a rest */
    bool read_wants_write; /* TLS: to read on, the socket must take bytes first; */
    bool write_wants_read; /*   to write on, it must have some */
    int broken;          /* errno of the call that failed; 0: none, or the peer hung up */
} fs_sock;

/* Bytes moved, for the owner's counters. */
typedef struct fs_sock_moved {
    size_t in, out;
} fs_sock_moved;

/* Takes `fd` over and makes it non-blocking, with TCP_NODELAY where there is such a thing. 0, or
 * -FS_RESOURCE_EXHAUSTED: `fd` is still the caller's. `tls` is the sock's from then on, NULL for none. */
int fs_sock_open(fs_sock *sock, int fd, fs_tls *tls, fs_slab *slab);
void fs_sock_close(fs_sock *sock); /* once is enough, more often does no harm */

/* Reads once. > 0: so many bytes are in buf. 0: nothing there now. -FS_UNAVAILABLE: the peer is gone, or TLS
 * found the bytes wrong. Fewer than `room`: if there is more, the socket's readiness shows it. With TLS and
 * exactly `room` it may not: read again. */
int64_t fs_sock_read(fs_sock *sock, uint8_t *buf, size_t room, fs_sock_moved *moved);

/* Reads once, and nobody wants to know what: the peer of a side that is shut may still have things to say, TLS or
 * not. As fs_sock_read; `buf` is room to throw it away in. */
int64_t fs_sock_discard(fs_sock *sock, uint8_t *buf, size_t room, fs_sock_moved *moved);

/* Writes `len` bytes, keeping what the socket does not take; only when there is no rest. 0; -FS_UNAVAILABLE:
 * the peer is gone; -FS_RESOURCE_EXHAUSTED: the rest could not be kept, and the stream has a hole. */
int fs_sock_write(fs_sock *sock, const uint8_t *data, size_t len, int64_t now_us, fs_sock_moved *moved);

/* Goes on with the rest. 0: all is out, or the socket is full again (sock->rest tells); negative as above. */
int fs_sock_flush(fs_sock *sock, int64_t now_us, fs_sock_moved *moved);

/* After -FS_UNAVAILABLE: what it was, in words ("Connection reset by peer", "the peer closed it", TLS's own).
 * In `buf`, constant, or the tls's. */
const char *fs_sock_why(const fs_sock *sock, char *buf, size_t room);

/* What to wait for, besides what the owner itself wants. */
static inline bool fs_sock_wants_write(const fs_sock *sock)
{
    return (sock->rest != NULL && !sock->write_wants_read) || sock->read_wants_write;
}

#endif
