/* sock: see sock.h. */
#include "sock.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int fs_sock_open(fs_sock *sock, int fd, fs_tls *tls, fs_slab *slab)
{
    *sock = (fs_sock){.fd = -1, .slab = slab};
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
        return -FS_RESOURCE_EXHAUSTED;
    int one = 1;
    /* A unix socket has no such thing, nor needs it. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    sock->fd = fd;
    sock->tls = tls;
    return 0;
}

static void drop_rest(fs_sock *sock)
{
    fs_slab_free(sock->rest);
    sock->rest = NULL;
    sock->rest_len = 0;
    sock->rest_at = 0;
    sock->write_wants_read = false;
}

void fs_sock_close(fs_sock *sock)
{
    drop_rest(sock);
    sock->read_wants_write = false;
    fs_tls_free(sock->tls);
    sock->tls = NULL;
    if (sock->fd >= 0)
        close(sock->fd);
    sock->fd = -1;
}

/* ---- bytes, plain or not -------------------------------------------------------------------------- */

/* As fs_sock_read and put want it: > 0: bytes; 0: not now; negative: broken, and sock->broken says how. */
static int64_t plain_read(fs_sock *sock, uint8_t *buf, size_t room)
{
    ssize_t n;
    do {
        n = recv(sock->fd, buf, room, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0)
        return n;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    sock->broken = n == 0 ? 0 : errno;
    return -FS_UNAVAILABLE;
}

static int64_t plain_write(fs_sock *sock, const uint8_t *data, size_t len)
{
    ssize_t n;
    do {
        n = send(sock->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (n < 0 && errno == EINTR);
    if (n > 0)
        return n;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS))
        return 0;
    sock->broken = n == 0 ? 0 : errno;
    return -FS_UNAVAILABLE;
}

static int64_t tls_read(fs_sock *sock, uint8_t *buf, size_t room)
{
    enum fs_tls_want want = FS_TLS_DONE;
    int64_t n = fs_tls_read(sock->tls, buf, room, &want);
    /* With a rest, that waits for the socket to take more, and takes along what is sealed. */
    sock->read_wants_write = want == FS_TLS_WANTS_WRITE && sock->rest == NULL;
    if (n < 0)
        sock->broken = fs_tls_errno(sock->tls);
    return n;
}

static int64_t tls_write(fs_sock *sock, const uint8_t *data, size_t len)
{
    enum fs_tls_want want = FS_TLS_DONE;
    int64_t n = fs_tls_write(sock->tls, data, len, &want);
    sock->write_wants_read = want == FS_TLS_WANTS_READ;
    if (n < 0)
        sock->broken = fs_tls_errno(sock->tls);
    return n;
}

int64_t fs_sock_read(fs_sock *sock, uint8_t *buf, size_t room, fs_sock_moved *moved)
{
    int64_t n = sock->tls == NULL ? plain_read(sock, buf, room) : tls_read(sock, buf, room);
    if (n > 0)
        moved->in += (size_t)n;
    return n < 0 ? -FS_UNAVAILABLE : n;
}

int64_t fs_sock_discard(fs_sock *sock, uint8_t *buf, size_t room, fs_sock_moved *moved)
{
    int64_t n = plain_read(sock, buf, room);
    if (n > 0)
        moved->in += (size_t)n;
    return n < 0 ? -FS_UNAVAILABLE : n;
}

/* How much of `data` was taken, less than `len` when the socket is full; negative: broken. */
static int64_t put(fs_sock *sock, const uint8_t *data, size_t len, fs_sock_moved *moved)
{
    size_t at = 0;
    while (at < len) {
        int64_t n = sock->tls == NULL ? plain_write(sock, data + at, len - at)
                                      : tls_write(sock, data + at, len - at);
        if (n < 0)
            return -FS_UNAVAILABLE;
        if (n == 0)
            break;
        at += (size_t)n;
        moved->out += (size_t)n;
    }
    return (int64_t)at;
}

int fs_sock_write(fs_sock *sock, const uint8_t *data, size_t len, int64_t now_us, fs_sock_moved *moved)
{
    int64_t n = put(sock, data, len, moved);
    if (n < 0)
        return -FS_UNAVAILABLE;
    if ((size_t)n == len)
        return 0;
    size_t left = len - (size_t)n;
    sock->rest = fs_slab_alloc(sock->slab, left);
    if (sock->rest == NULL)
        return -FS_RESOURCE_EXHAUSTED;
    memcpy(sock->rest, data + n, left);
    sock->rest_len = left;
    sock->rest_at = 0;
    sock->full_us = now_us;
    return 0;
}

int fs_sock_flush(fs_sock *sock, int64_t now_us, fs_sock_moved *moved)
{
    if (sock->rest == NULL)
        return 0;
    int64_t n = put(sock, sock->rest + sock->rest_at, sock->rest_len - sock->rest_at, moved);
    if (n < 0)
        return -FS_UNAVAILABLE;
    if (n > 0)
        sock->full_us = now_us;
    sock->rest_at += (size_t)n;
    if (sock->rest_at == sock->rest_len)
        drop_rest(sock);
    return 0;
}

const char *fs_sock_why(const fs_sock *sock, char *buf, size_t room)
{
    const char *tls = sock->tls != NULL ? fs_tls_why(sock->tls) : "";
    if (tls[0] != '\0')
        return tls;
    if (sock->broken != 0)
        return strerror_r(sock->broken, buf, room); /* GNU's, which returns the text */
    return "the peer closed it";
}
