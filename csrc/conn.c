/* conn: see conn.h. */
#include "conn.h"

#include <sys/socket.h>

enum { READ_ROUNDS = 16 };

int fs_conn_open(fs_conn *conn, const fs_conn_config *config, int fd, fs_tls_context *tls, void *ctx,
                 void *owner, int64_t now_us)
{
    *conn = (fs_conn){.state = tls == NULL ? FS_CONN_OPEN : FS_CONN_SHAKING,
                      .until_us = now_us + config->handshake_timeout_us,
                      .stall_timeout_us = config->limits->stall_timeout_us};
    fs_tls *shaking = tls == NULL ? NULL : fs_tls_new(tls, fd, NULL);
    if (tls == NULL || shaking != NULL)
        conn->h2 = fs_h2_new(config->limits, config->handler, ctx, owner, config->budget, config->slab, now_us);
    if (conn->h2 == NULL || fs_sock_open(&conn->sock, fd, shaking, config->slab) != 0) {
        fs_h2_free(conn->h2);
        fs_tls_free(shaking);
        conn->h2 = NULL;
        return -FS_RESOURCE_EXHAUSTED;
    }
    return 0;
}

void fs_conn_close(fs_conn *conn)
{
    if (conn->sock.tls != NULL && conn->sock.rest == NULL) /* what is cut off is no goodbye */
        fs_tls_bye(conn->sock.tls);
    fs_h2_free(conn->h2);
    conn->h2 = NULL;
    fs_sock_close(&conn->sock);
    conn->state = FS_CONN_CLOSED;
}

static void session_over(fs_conn *conn)
{
    if (conn->state == FS_CONN_OPEN)
        conn->state = FS_CONN_ENDING;
    conn->due_us = 0;
}

/* Nothing more will be sent: the peer is to hang up. */
static void linger(fs_conn *conn, int64_t now_us)
{
    shutdown(conn->sock.fd, SHUT_WR);
    conn->state = FS_CONN_LINGERING;
    conn->sock.read_wants_write = false; /* there is nothing more to write: it would never wait for that */
    conn->until_us = now_us + FS_CONN_LINGER_US;
    conn->due_us = conn->until_us;
}

static void shake_hands(fs_conn *conn, int64_t now_us)
{
    fs_error err;
    int rc = fs_tls_handshake(conn->sock.tls, &err);
    conn->sock.read_wants_write = rc == FS_TLS_WANTS_WRITE;
    if (rc == FS_TLS_DONE) {
        conn->state = FS_CONN_OPEN;
        conn->due_us = 0;
    } else if (rc < 0) {
        /* Who connects and leaves without a word only wanted to know whether anybody is there. */
        if (fs_tls_heard(conn->sock.tls))
            conn->refused = fs_tls_why(conn->sock.tls);
        linger(conn, now_us); /* for the alert that says why */
    }
}

/* Takes up what is there, once. false: that was all. */
static bool take(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    int64_t n = conn->state == FS_CONN_LINGERING ? fs_sock_discard(&conn->sock, buf, room, moved)
                                                 : fs_sock_read(&conn->sock, buf, room, moved);
    if (n < 0)
        conn->state = FS_CONN_CLOSED;
    else if (n > 0 && conn->state == FS_CONN_OPEN && fs_h2_recv(conn->h2, buf, (size_t)n, now_us) != 0)
        session_over(conn);
    /* Otherwise it is thrown away: only the end is waited for. */
    return n == (int64_t)room;
}

void fs_conn_read(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    conn->unread = false;
    if (conn->state == FS_CONN_SHAKING)
        shake_hands(conn, now_us);
    if (conn->state == FS_CONN_SHAKING || conn->state == FS_CONN_CLOSED)
        return;
    if (conn->sock.tls == NULL) {
        take(conn, buf, room, now_us, moved);
        return;
    }
    /* What TLS holds back does not show as readiness of the socket, hence all of it. */
    conn->unread = true;
    for (int round = 0; round < READ_ROUNDS && conn->unread; round++)
        conn->unread = take(conn, buf, room, now_us, moved);
}

void fs_conn_flush(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (conn->state == FS_CONN_SHAKING || conn->state >= FS_CONN_LINGERING)
        return;
    int rc = fs_sock_flush(&conn->sock, now_us, moved);
    size_t n;
    while (rc == 0 && conn->sock.rest == NULL && (n = fs_h2_send(conn->h2, buf, room, now_us)) > 0)
        rc = fs_sock_write(&conn->sock, buf, n, now_us, moved);
    if (rc != 0) {
        conn->state = FS_CONN_CLOSED; /* lost, or with a hole that cannot be mended */
        return;
    }
    if (conn->sock.rest != NULL) {
        conn->due_us = 0;
        return;
    }
    if (fs_h2_done(conn->h2))
        session_over(conn);
    if (conn->state == FS_CONN_ENDING) {
        if (conn->sock.tls != NULL)
            fs_tls_bye(conn->sock.tls);
        linger(conn, now_us);
    }
}

void fs_conn_tick(fs_conn *conn, int64_t now_us)
{
    conn->due_us = INT64_MAX;
    if (conn->state == FS_CONN_LINGERING || conn->state == FS_CONN_SHAKING) {
        conn->due_us = conn->until_us;
        if (conn->until_us > now_us)
            return;
        if (conn->state == FS_CONN_SHAKING)
            conn->refused = "the client took too long over the handshake";
        conn->state = FS_CONN_CLOSED;
        return;
    }
    if (conn->sock.rest != NULL) {
        /* The session does not see a full socket when all that it had is here. */
        int64_t patience = conn->state == FS_CONN_ENDING ? FS_CONN_LINGER_US : conn->stall_timeout_us;
        if (patience > 0) {
            conn->due_us = conn->sock.full_us + patience;
            if (conn->due_us <= now_us) {
                conn->state = FS_CONN_CLOSED;
                return;
            }
        }
    }
    if (conn->state == FS_CONN_OPEN) {
        int64_t due = fs_h2_tick(conn->h2, now_us);
        if (due < 0)
            session_over(conn);
        else if (due < conn->due_us)
            conn->due_us = due;
    }
}
