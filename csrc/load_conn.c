/* load_conn: see load_conn.h. */
#include "load_conn.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "load.h"

enum { READ_ROUNDS = 16 };

/* Replies are taken and dropped, so nothing but their own size bounds them. */
static const fs_h2_client_limits link_limits = {
    .max_reply_bytes = (size_t)1 << 30,
    .max_header_bytes = 64 << 10,
    .window_bytes = 16 << 20,
};

static void on_link_end(void *ctx, fs_exchange *exchange)
{
    const fs_load_target *target = ctx;
    fs_load_call *call = exchange->user;
    fs_load_end end = {.failure = exchange->code, .error = &exchange->error};
    uint8_t *reply = NULL;
    if (exchange->code == FS_OK) {
        reply = exchange->reply;
        end.reply = reply;
        end.reply_bytes = exchange->reply_bytes;
        exchange->reply = NULL;
    } else if (exchange->code == FS_UNAVAILABLE && !exchange->answered) {
        end.failure = FS_LOAD_LOST;
    }
    target->on_end(target->ctx, call, &end); /* which may start the exchange again */
    fs_slab_free(reply);
}

static const fs_h2_client_handler link_handler = {.on_end = on_link_end};

void fs_load_target_init(fs_load_target *target)
{
    target->link.limits = &link_limits;
    target->link.handler = &link_handler;
    target->link.ctx = target;
    target->link.connect_timeout_us = target->connect_timeout_us;
    target->link.stall_timeout_us = target->stall_timeout_us;
}

/* ---- HTTP/1.1 ------------------------------------------------------------------------------------ */

static void end_http_call(fs_load_conn *conn, int failure, const fs_error *error)
{
    fs_load_call *call = conn->http.call;
    if (call == NULL)
        return;
    conn->http.call = NULL;
    fs_load_end end = {.failure = failure, .reply_bytes = conn->http.parser.body_bytes, .error = error};
    conn->target->on_end(conn->target->ctx, call, &end);
}

/* `why` has the reason already, unless nothing went wrong. */
static void http_down(fs_load_conn *conn, bool in_peace, int failure)
{
    conn->closed_in_peace = in_peace;
    conn->http.state = FS_LOAD_DOWN;
    fs_sock_close(&conn->http.sock);
    end_http_call(conn, failure, &conn->http.why);
}

static void http_failed(fs_load_conn *conn, const char *what, int error)
{
    fs_fail(&conn->http.why, FS_UNAVAILABLE, "%s: %s", what, strerror(error));
    http_down(conn, false, FS_LOAD_LOST);
}

static void http_dial(fs_load_conn *conn, int64_t now_us)
{
    const fs_load_target *target = conn->target;
    memset(&conn->http, 0, sizeof conn->http);
    conn->http.sock.fd = -1;
    conn->http.dialled_us = now_us;
    int fd = socket(target->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        http_failed(conn, "socket", errno);
        return;
    }
    int rc = connect(fd, (const struct sockaddr *)&target->address, target->address_len);
    int error = errno;
    if (fs_sock_open(&conn->http.sock, fd, NULL, target->slab) != 0) {
        close(fd);
        http_failed(conn, "socket", ENOMEM);
        return;
    }
    if (rc != 0 && error != EINPROGRESS) {
        http_failed(conn, "connect", error);
        return;
    }
    conn->http.state = rc == 0 ? FS_LOAD_OPEN : FS_LOAD_COMING;
}

static void http_connected(fs_load_conn *conn)
{
    int error = 0;
    socklen_t len = sizeof error;
    struct sockaddr_storage peer;
    socklen_t peer_len = sizeof peer;
    if (getsockopt(conn->http.sock.fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || error != 0)
        http_failed(conn, "connect", error != 0 ? error : errno);
    else if (getpeername(conn->http.sock.fd, (struct sockaddr *)&peer, &peer_len) == 0)
        conn->http.state = FS_LOAD_OPEN;
}

/* The answer is whole, `extra`: and more has come. */
static void http_answered(fs_load_conn *conn, bool extra)
{
    const fs_http1 *parser = &conn->http.parser;
    fs_error *why = &conn->http.why;
    bool closes = !parser->keep_alive || extra || conn->http.sock.rest != NULL;
    conn->http.served = true;
    if (parser->status / 100 == 2) {
        end_http_call(conn, 0, NULL);
    } else {
        fs_fail(why, FS_UNKNOWN, "HTTP %d", parser->status);
        end_http_call(conn, FS_LOAD_HTTP + parser->status, why);
    }
    if (closes)
        http_down(conn, true, FS_LOAD_LOST);
}

static void http_ended_by_peer(fs_load_conn *conn)
{
    fs_error *why = &conn->http.why;
    if (conn->http.call == NULL) {
        fs_fail(why, FS_UNAVAILABLE, "the server closed the connection");
        http_down(conn, conn->http.served, FS_LOAD_LOST);
    } else if (fs_http1_close(&conn->http.parser, why) == 0) {
        http_answered(conn, false);
    } else {
        http_down(conn, false, FS_LOAD_LOST);
    }
}

static bool http_read(fs_load_conn *conn, uint8_t *buf, size_t room, fs_sock_moved *moved)
{
    for (int round = 0; round < READ_ROUNDS; round++) {
        int64_t n = fs_sock_read(&conn->http.sock, buf, room, moved);
        if (n == 0)
            return false;
        if (n < 0) {
            http_ended_by_peer(conn);
            return false;
        }
        if (conn->http.call == NULL) {
            fs_fail(&conn->http.why, FS_INTERNAL, "the server answers what was not asked");
            http_down(conn, false, FS_LOAD_BAD_HTTP);
            return false;
        }
        int64_t taken = fs_http1_take(&conn->http.parser, buf, (size_t)n, &conn->http.why);
        if (taken < 0) {
            http_down(conn, false, FS_LOAD_BAD_HTTP);
            return false;
        }
        if (conn->http.parser.done) {
            http_answered(conn, taken < n);
            return false;
        }
    }
    return true;
}

static void http_flush(fs_load_conn *conn, int64_t now_us, fs_sock_moved *moved)
{
    if (conn->http.state == FS_LOAD_COMING)
        http_connected(conn);
    if (conn->http.state == FS_LOAD_OPEN && conn->http.sock.rest != NULL &&
        fs_sock_flush(&conn->http.sock, now_us, moved) != 0) {
        fs_fail(&conn->http.why, FS_UNAVAILABLE, "the server closed the connection");
        http_down(conn, false, FS_LOAD_LOST);
    }
}

static bool http_tick(fs_load_conn *conn, int64_t now_us)
{
    const fs_load_target *target = conn->target;
    if (conn->http.state == FS_LOAD_COMING && now_us - conn->http.dialled_us >= target->connect_timeout_us)
        http_failed(conn, "connect", ETIMEDOUT);
    else if (conn->http.state == FS_LOAD_OPEN && conn->http.sock.rest != NULL &&
             now_us - conn->http.sock.full_us >= target->stall_timeout_us)
        http_failed(conn, "send", ETIMEDOUT);
    return conn->http.state == FS_LOAD_DOWN;
}

static int http_start(fs_load_conn *conn, fs_load_call *call, int64_t now_us, fs_sock_moved *moved)
{
    fs_slice request = conn->target->messages[call->body];
    fs_http1_begin(&conn->http.parser);
    int rc = fs_sock_write(&conn->http.sock, request.data, request.len, now_us, moved);
    if (rc != 0) {
        fs_fail(&conn->http.why, FS_UNAVAILABLE, "the server closed the connection");
        http_down(conn, conn->http.served, FS_LOAD_LOST);
        return rc;
    }
    conn->http.call = call;
    return 0;
}

/* ---- either ---------------------------------------------------------------------------------------- */

void fs_load_conn_dial(fs_load_conn *conn, int64_t now_us)
{
    const fs_load_target *target = conn->target;
    conn->closed_in_peace = false;
    if (target->http)
        http_dial(conn, now_us);
    else
        fs_link_dial(&conn->link, &target->link, (const struct sockaddr *)&target->address,
                     target->address_len, target->slab, now_us); /* its state says how it went */
}

enum fs_load_conn_state fs_load_conn_state_of(const fs_load_conn *conn)
{
    if (conn->target->http)
        return conn->http.state;
    if (conn->link.state == FS_LINK_CLOSED)
        return FS_LOAD_DOWN;
    return conn->link.state == FS_LINK_OPEN ? FS_LOAD_OPEN : FS_LOAD_COMING;
}

const fs_error *fs_load_conn_why(const fs_load_conn *conn)
{
    return conn->target->http ? &conn->http.why : &conn->link.why;
}

uint32_t fs_load_conn_room(const fs_load_conn *conn)
{
    if (fs_load_conn_state_of(conn) != FS_LOAD_OPEN)
        return 0;
    if (conn->target->http)
        return conn->http.call == NULL ? 1 : 0;
    return fs_link_accepts(&conn->link) ? fs_h2_client_room(conn->link.h2) : 0;
}

/* What is left of a request's time, for the server to know; 0: it need not. */
static int64_t time_left_us(const fs_load_target *target, const fs_load_call *call, int64_t now_us)
{
    if (target->timeout_us == 0)
        return 0;
    int64_t waited_us = now_us - call->since_ns / 1000;
    int64_t left_us = target->timeout_us - (waited_us > 0 ? waited_us : 0);
    return left_us > 0 ? left_us : 1;
}

int fs_load_conn_start(fs_load_conn *conn, fs_load_call *call, int64_t now_us, fs_sock_moved *moved)
{
    const fs_load_target *target = conn->target;
    int rc = -FS_UNAVAILABLE;
    if (target->http) {
        if (fs_load_conn_room(conn) > 0)
            rc = http_start(conn, call, now_us, moved);
    } else if (fs_link_accepts(&conn->link)) {
        fs_exchange *exchange = &call->exchange;
        call->piece = target->messages[call->body];
        exchange->path = target->path;
        exchange->pieces = &call->piece;
        exchange->n_pieces = 1;
        exchange->message_bytes = call->piece.len;
        exchange->encoding = 0; /* FS_IDENTITY */
        exchange->timeout_us = time_left_us(target, call, now_us);
        exchange->headers = target->headers;
        exchange->n_headers = target->n_headers;
        exchange->user = call;
        rc = fs_h2_client_start(conn->link.h2, exchange);
    }
    if (rc == 0)
        call->conn = conn;
    return rc;
}

void fs_load_conn_cancel(fs_load_conn *conn, fs_load_call *call)
{
    if (!conn->target->http) {
        fs_h2_client_cancel(conn->link.h2, &call->exchange);
        return;
    }
    conn->http.call = NULL;
    http_down(conn, true, FS_LOAD_TIMEOUT);
}

bool fs_load_conn_read(fs_load_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (!conn->target->http)
        return fs_link_read(&conn->link, buf, room, now_us, moved);
    return conn->http.state == FS_LOAD_OPEN && http_read(conn, buf, room, moved);
}

void fs_load_conn_flush(fs_load_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved)
{
    if (conn->target->http)
        http_flush(conn, now_us, moved);
    else
        fs_link_flush(&conn->link, buf, room, now_us, moved);
}

bool fs_load_conn_tick(fs_load_conn *conn, int64_t now_us)
{
    if (conn->target->http)
        return http_tick(conn, now_us);
    if (conn->link.due_us > now_us)
        return false;
    fs_link_tick(&conn->link, now_us);
    return true;
}

void fs_load_conn_close(fs_load_conn *conn)
{
    if (!conn->target->http) {
        fs_link_close(&conn->link, NULL);
    } else if (conn->http.state != FS_LOAD_DOWN) {
        fs_fail(&conn->http.why, FS_CANCELLED, "the run has ended");
        http_down(conn, true, FS_LOAD_LOST);
    }
}

int fs_load_conn_fd(const fs_load_conn *conn)
{
    return conn->target->http ? conn->http.sock.fd : conn->link.sock.fd;
}

bool fs_load_conn_wants_write(const fs_load_conn *conn)
{
    if (!conn->target->http)
        return fs_link_wants_write(&conn->link);
    return conn->http.state == FS_LOAD_COMING || fs_sock_wants_write(&conn->http.sock);
}
