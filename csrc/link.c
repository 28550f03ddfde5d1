/* link: see link.h. */
#include "link.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum { READ_ROUNDS = 16 };

#define TEXT(literal) ((fs_slice){(const uint8_t *)(literal), sizeof(literal) - 1})

/* ---- the end ------------------------------------------------------------------------------- */

void fs_link_close(fs_link *link, const fs_error *why)
{
    if (link->state == FS_LINK_CLOSED)
        return;
    fs_error told; /* a copy: the handler may dial again, from inside, over the same memory */
    if (why != NULL)
        told = *why;
    else
        fs_fail(&told, FS_UNAVAILABLE, "the connection was closed");
    fs_h2_client *h2 = link->h2;
    link->why = told;
    link->state = FS_LINK_CLOSED;
    link->h2 = NULL;
    link->due_us = INT64_MAX;
    if (link->sock.tls != NULL && link->sock.rest == NULL) /* what is cut off is no goodbye */
        fs_tls_bye(link->sock.tls);
    fs_sock_close(&link->sock);
    fs_h2_client_free(h2, &told);
}

/* Closes because of the session, which knows why when it is at fault. */
static void session_over(fs_link *link)
{
    const fs_error *why = fs_h2_client_why(link->h2);
    fs_error left;
    if (why->code == FS_OK) {
        fs_fail(&left, FS_UNAVAILABLE, "the server has closed the session");
        why = &left;
    }
    fs_link_close(link, why);
}

/* TLS's own reasons may come as late as here: a server's verdict on our certificate, for one. */
static void broken(fs_link *link)
{
    char room[128];
    fs_error why;
    const char *how = fs_sock_why(&link->sock, room, sizeof room);
    if (link->sock.tls != NULL && how == fs_tls_why(link->sock.tls))
        fs_fail(&why, FS_UNAVAILABLE, "TLS: %s", how);
    else if (link->state == FS_LINK_SETTLING && link->sock.broken == 0)
        fs_fail(&why, FS_UNAVAILABLE, "the server closed the connection before it spoke HTTP/2");
    else
        fs_fail(&why, FS_UNAVAILABLE, "the connection was lost: %s", how);
    fs_link_close(link, &why);
}

/* ---- the beginning ------------------------------------------------------------------------- */

int fs_link_dial(fs_link *link, const fs_link_config *config, const struct sockaddr *address,
                 socklen_t address_len, fs_slab *slab, int64_t now_us)
{
    *link = (fs_link){.config = config, .slab = slab, .dialled_us = now_us, .due_us = INT64_MAX};
    link->sock.fd = -1;
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fs_fail(&link->why, FS_RESOURCE_EXHAUSTED, "socket: %s", strerror(errno));
    int rc;
    do {
        rc = connect(fd, address, address_len);
    } while (rc != 0 && errno == EINTR);
    if (rc != 0 && errno == EAGAIN) {
        /* A unix socket's; TCP's would be under way. There is no telling when to try again. */
        rc = fs_fail(&link->why, FS_UNAVAILABLE, "connect: the server's queue of new connections is full");
    } else if (rc != 0 && errno != EINPROGRESS) {
        rc = fs_fail(&link->why, FS_UNAVAILABLE, "connect: %s", strerror(errno));
    } else {
        rc = fs_sock_open(&link->sock, fd, NULL, slab);
        if (rc != 0)
            fs_fail(&link->why, FS_RESOURCE_EXHAUSTED, "the socket cannot be prepared");
    }
    if (rc != 0) {
        close(fd);
        return rc;
    }
    link->state = FS_LINK_CONNECTING;
    link->due_us = now_us + config->connect_timeout_us;
    return 0;
}

static void start_session(fs_link *link, int64_t now_us)
{
    const fs_link_config *config = link->config;
    fs_slice scheme = config->tls != NULL ? TEXT("https") : TEXT("http");
    link->h2 = fs_h2_client_new(config->limits, config->handler, config->ctx, config->authority, scheme,
                                link->slab, now_us);
    if (link->h2 == NULL) {
        fs_error why;
        fs_fail(&why, FS_RESOURCE_EXHAUSTED, "out of memory for an HTTP/2 session");
        fs_link_close(link, &why);
        return;
    }
    link->state = FS_LINK_SETTLING;
}

static void shake_hands(fs_link *link, int64_t now_us)
{
    fs_error how, why;
    int rc = fs_tls_handshake(link->sock.tls, &how);
    link->sock.read_wants_write = rc == FS_TLS_WANTS_WRITE;
    if (rc < 0) {
        fs_fail(&why, FS_UNAVAILABLE, "TLS: %s", how.msg);
        fs_link_close(link, &why);
    } else if (rc == FS_TLS_DONE) {
        start_session(link, now_us);
    }
}

static void finish_connect(fs_link *link, int64_t now_us)
{
    fs_error why;
    int error = 0;
    socklen_t error_len = sizeof error;
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof peer;
    if (getsockopt(link->sock.fd, SOL_SOCKET, SO_ERROR, &error, &error_len) != 0)
        error = errno;
    if (error != 0) {
        fs_fail(&why, FS_UNAVAILABLE, "connect: %s", strerror(error));
        fs_link_close(link, &why);
        return;
    }
    if (getpeername(link->sock.fd, (struct sockaddr *)&peer, &peer_len) != 0)
        return; /* not yet */
    if (link->config->tls == NULL) {
        start_session(link, now_us);
        return;
    }
    link->sock.tls = fs_tls_new(link->config->tls, link->sock.fd, link->config->server_name);
    if (link->sock.tls == NULL) {
        fs_fail(&why, FS_RESOURCE_EXHAUSTED, "out of memory for TLS");
        fs_link_close(link, &why);
        return;
    }
    link->state = FS_LINK_SHAKING;
    shake_hands(link, now_us);
}

/* Goes on with what comes before the session. */
static void advance(fs_link *link, int64_t now_us)
{
    if (link->state == FS_LINK_CONNECTING)
        finish_connect(link, now_us);
    else if (link->state == FS_LINK_SHAKING)
        shake_hands(link, now_us);
}

/* ---- bytes --------------------------------------------------------------------------------- */

/* Reads up to READ_ROUNDS times. -1: the peer is gone (broken is due), 0: nothing left, 1: maybe more. When
 * the session ends meanwhile, the link is closed. */
static int take(fs_link *link, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    for (int round = 0; round < READ_ROUNDS; round++) {
        int64_t n = fs_sock_read(&link->sock, buf, room, moved);
        if (n <= 0)
            return n < 0 ? -1 : 0;
        if (fs_h2_client_recv(link->h2, buf, (size_t)n, now_us) != 0) {
            session_over(link);
            return 0;
        }
        if (link->state == FS_LINK_SETTLING && fs_h2_client_ready(link->h2)) {
            link->state = FS_LINK_OPEN;
            link->due_us = 0;
        }
        if ((size_t)n < room)
            return 0;
    }
    return 1;
}

bool fs_link_read(fs_link *link, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (link->state < FS_LINK_SETTLING)
        advance(link, now_us);
    if (link->state < FS_LINK_SETTLING)
        return false;
    int rc = take(link, buf, room, now_us, moved);
    if (rc < 0)
        broken(link);
    else if (link->h2 != NULL && fs_h2_client_done(link->h2))
        session_over(link);
    return rc > 0 && link->h2 != NULL;
}

/* The socket takes no more for good. What the server had said before may still be there, answers among it. */
static void take_last(fs_link *link, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    int error = link->sock.broken;
    int rc;
    do {
        rc = take(link, buf, room, now_us, moved);
    } while (rc > 0);
    if (link->h2 == NULL)
        return;
    if (error != 0)
        link->sock.broken = error;
    broken(link);
}

void fs_link_flush(fs_link *link, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (link->state < FS_LINK_SETTLING)
        advance(link, now_us);
    if (link->state < FS_LINK_SETTLING)
        return;
    /* What TLS reads on with may have been waiting for the socket to take bytes. */
    bool more = link->sock.read_wants_write;
    while (more)
        more = fs_link_read(link, buf, room, now_us, moved);
    if (link->state == FS_LINK_CLOSED)
        return;
    int rc = fs_sock_flush(&link->sock, now_us, moved);
    size_t n;
    while (rc == 0 && link->sock.rest == NULL && (n = fs_h2_client_send(link->h2, buf, room, now_us)) > 0)
        rc = fs_sock_write(&link->sock, buf, n, now_us, moved);
    if (rc == -FS_UNAVAILABLE) {
        take_last(link, buf, room, now_us, moved);
    } else if (rc != 0) {
        fs_error why;
        fs_fail(&why, FS_RESOURCE_EXHAUSTED, "out of memory for what the socket does not take");
        fs_link_close(link, &why);
    } else if (link->sock.rest == NULL && fs_h2_client_done(link->h2)) {
        session_over(link);
    } else {
        bool keepalive = link->config->limits->keepalive_us > 0 && fs_h2_client_active(link->h2) > 0;
        if (keepalive && link->due_us == INT64_MAX)
            link->due_us = 0;
        int64_t stalled_us = link->sock.full_us + link->config->stall_timeout_us;
        if (link->sock.rest != NULL && link->config->stall_timeout_us > 0 && stalled_us < link->due_us)
            link->due_us = stalled_us;
    }
}

/* ---- time ---------------------------------------------------------------------------------- */

void fs_link_tick(fs_link *link, int64_t now_us)
{
    static const char *const waiting[] = {
        [FS_LINK_CONNECTING] = "connect",
        [FS_LINK_SHAKING] = "TLS handshake",
        [FS_LINK_SETTLING] = "the server's HTTP/2 settings",
    };
    const fs_link_config *config = link->config;
    fs_error why;
    if (link->state == FS_LINK_CLOSED)
        return;
    link->due_us = INT64_MAX;
    if (link->state < FS_LINK_OPEN) {
        link->due_us = link->dialled_us + config->connect_timeout_us;
        if (link->due_us <= now_us) {
            fs_fail(&why, FS_UNAVAILABLE, "%s: timed out after %lld ms", waiting[link->state],
                    (long long)(config->connect_timeout_us / 1000));
            fs_link_close(link, &why);
            return;
        }
    }
    if (link->sock.rest != NULL && config->stall_timeout_us > 0) {
        int64_t due = link->sock.full_us + config->stall_timeout_us;
        if (due <= now_us) {
            fs_fail(&why, FS_UNAVAILABLE, "the connection was lost: the server took nothing for %lld ms",
                    (long long)(config->stall_timeout_us / 1000));
            fs_link_close(link, &why);
            return;
        }
        link->due_us = due < link->due_us ? due : link->due_us;
    }
    if (link->h2 != NULL) {
        int64_t due = fs_h2_client_tick(link->h2, now_us);
        if (due < 0)
            session_over(link);
        else if (due < link->due_us)
            link->due_us = due;
    }
}
