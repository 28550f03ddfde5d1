/* conn: see conn.h. */
#include "conn.h"

#include <sys/socket.h>

int fs_conn_open(fs_conn *conn, int fd, const fs_h2_limits *limits, const fs_h2_handler *handler, void *ctx,
                 void *owner, fs_budget *budget, fs_slab *slab, int64_t now_us)
{
    *conn = (fs_conn){.stall_timeout_us = limits->stall_timeout_us};
    conn->h2 = fs_h2_new(limits, handler, ctx, owner, budget, slab, now_us);
    if (conn->h2 == NULL || fs_sock_open(&conn->sock, fd, NULL, slab) != 0) {
        fs_h2_free(conn->h2);
        conn->h2 = NULL;
        return -FS_RESOURCE_EXHAUSTED;
    }
    return 0;
}

void fs_conn_close(fs_conn *conn)
{
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

void fs_conn_read(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (conn->state == FS_CONN_CLOSED)
        return;
    int64_t n = fs_sock_read(&conn->sock, buf, room, moved);
    if (n < 0)
        conn->state = FS_CONN_CLOSED;
    else if (n > 0 && conn->state == FS_CONN_OPEN && fs_h2_recv(conn->h2, buf, (size_t)n, now_us) != 0)
        session_over(conn);
    /* Otherwise it is thrown away: only the end is waited for. */
}

void fs_conn_flush(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (conn->state >= FS_CONN_LINGERING)
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
        shutdown(conn->sock.fd, SHUT_WR);
        conn->state = FS_CONN_LINGERING;
        conn->linger_us = now_us + FS_CONN_LINGER_US;
        conn->due_us = conn->linger_us;
    }
}

void fs_conn_tick(fs_conn *conn, int64_t now_us)
{
    conn->due_us = INT64_MAX;
    if (conn->state == FS_CONN_LINGERING) {
        conn->due_us = conn->linger_us;
        if (conn->linger_us <= now_us)
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
