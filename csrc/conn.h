/* conn: one socket and its session, without a loop: shakes hands where there is TLS, reads when told to, writes
 * until the socket is full.
 *
 * Called by io on the thread that owns the connection. Knows sock, tls and h2; knows no epoll and no
 * other connection. Buffers for reading and writing are the caller's, one per thread; a connection has memory
 * of its own only while its socket is full. */
#ifndef FS_CONN_H
#define FS_CONN_H

#include "h2.h"
#include "sock.h"

enum fs_conn_state {
    FS_CONN_SHAKING,   /* TLS handshake; the session waits for its end */
    FS_CONN_OPEN,
    FS_CONN_ENDING,    /* the session is over; what it still says is being sent */
    FS_CONN_LINGERING, /* all is said and our side is shut: closing now could make the kernel throw away, by a
                          RST, what the peer has not read yet, so first it has time to hang up itself */
    FS_CONN_CLOSED,    /* nothing more to do but fs_conn_close */
};

/* How long a peer has to hang up after us. */
#define FS_CONN_LINGER_US INT64_C(1000000)

/* With the socket full and this much more to send, no more requests are read. */
#define FS_CONN_PAUSE_BYTES ((size_t)1 << 20)

/* What the connections of one thread have in common. Outlives them. */
typedef struct fs_conn_config {
    const fs_h2_limits *limits;
    const fs_h2_handler *handler;
    fs_budget *budget;
    fs_slab *slab;
    int64_t handshake_timeout_us; /* for TLS, from fs_conn_open on */
} fs_conn_config;

typedef struct fs_conn {
    fs_h2 *h2;
    fs_sock sock;
    enum fs_conn_state state;
    bool unread;          /* fs_conn_read is due, whatever the socket's readiness says */
    const char *refused;  /* why the handshake has failed, for the owner to tell and to clear; NULL: it has not */
    int64_t until_us;     /* how long the handshake, or the peer's hanging up, may take */
    int64_t due_us;       /* when fs_conn_tick has something to do; 0: it should look */
    int64_t stall_timeout_us;
} fs_conn;

/* Takes over `fd`, a connected stream socket; speaks TLS when `tls` is not NULL. 0, or -FS_RESOURCE_EXHAUSTED:
 * `fd` is still the caller's. `ctx` is the handler's; its rpcs carry `owner` as rpc->conn. */
int fs_conn_open(fs_conn *conn, const fs_conn_config *config, int fd, fs_tls_context *tls, void *ctx,
                 void *owner, int64_t now_us);

/* Closes the socket, cancels what is in flight. */
void fs_conn_close(fs_conn *conn);

/* Each of these sets conn->state; when it is FS_CONN_CLOSED, fs_conn_close is due.
 *
 * Reads, up to `room` bytes at a time through `buf`, and hands it to the session: once, with TLS until nothing
 * is left or 16 rounds are through (conn->unread). */
void fs_conn_read(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved);

/* Writes, through `buf`, until there is nothing to say or the socket is full; then goes on to the next state
 * when the session is over. */
void fs_conn_flush(fs_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved);

/* Time-outs; a flush is due afterwards. */
void fs_conn_tick(fs_conn *conn, int64_t now_us);

/* Whether the owner should wait for the socket to take more, and for it to have more. */
static inline bool fs_conn_wants_write(const fs_conn *conn)
{
    return fs_sock_wants_write(&conn->sock);
}
static inline bool fs_conn_wants_read(const fs_conn *conn)
{
    if (conn->sock.read_wants_write)
        return false;
    return conn->sock.rest == NULL || conn->sock.write_wants_read ||
           fs_h2_unsent_bytes(conn->h2) < FS_CONN_PAUSE_BYTES;
}

#endif
