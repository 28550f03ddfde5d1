/* load_conn: one connection of the load generator, whichever protocol it speaks: a link with its calls, or a
 * socket with HTTP/1.1's one request in flight.
 *
 * Called by load, on its thread. Knows link and http1; knows no schedule, no statistics and no epoll. */
#ifndef FS_LOAD_CONN_H
#define FS_LOAD_CONN_H

#include "http1.h"
#include "link.h"

typedef struct fs_load_conn fs_load_conn;

/* A request on its way. */
typedef struct fs_load_call {
    struct fs_load_call *prev, *next; /* load's lists */
    fs_load_conn *conn;
    int64_t since_ns; /* what its time runs from */
    uint32_t body;
    bool measured;
    fs_slice piece;
    fs_exchange exchange;
} fs_load_call;

/* How a request ended. */
typedef struct fs_load_end {
    int failure;      /* 0, enum fs_code or fs_load_failure */
    size_t reply_bytes;
    const uint8_t *reply; /* gRPC: the message, gone when on_end returns; NULL with HTTP */
    const fs_error *error; /* its text; may be NULL */
} fs_load_end;

/* What all connections of a run have in common. */
typedef struct fs_load_target {
    struct sockaddr_storage address;
    socklen_t address_len;
    bool http;
    fs_link_config link;      /* gRPC; its handler and limits are load_conn's to set, its ctx is `ctx` */
    fs_slice path;
    const fs_header *headers;
    uint32_t n_headers;
    int64_t timeout_us;       /* of a request; the server is told what is left of it. 0: it is not */
    const fs_slice *messages; /* by body; with HTTP, head and body in one */
    int64_t connect_timeout_us;
    int64_t stall_timeout_us;
    fs_slab *slab;
    /* A request is over; its memory is load's again. From inside any function here but start and cancel. */
    void (*on_end)(void *ctx, fs_load_call *call, const fs_load_end *end);
    void *ctx;
} fs_load_target;

enum fs_load_conn_state { FS_LOAD_DOWN, FS_LOAD_COMING, FS_LOAD_OPEN };

struct fs_load_conn {
    const fs_load_target *target;
    union {
        fs_link link;
        struct {
            fs_sock sock;
            fs_http1 parser;
            fs_load_call *call;
            enum fs_load_conn_state state;
            int64_t dialled_us;
            bool served; /* it has answered something */
            fs_error why;
        } http;
    };
    bool closed_in_peace; /* down, and may be dialled at once: nothing went wrong */

    /* Load's own. */
    fs_load_call *idle;   /* closed loop: requests to make, by `next` */
    struct fs_load_conn *next_touched, *next_more;
    int64_t retry_us, backoff_us;
    uint32_t events;      /* what epoll watches; 0: not registered */
    bool touched, more, tried;
};

/* The limits and handler of links. */
void fs_load_target_init(fs_load_target *target);

/* Begins to connect. The state tells: coming, open, or down again. */
void fs_load_conn_dial(fs_load_conn *conn, int64_t now_us);
enum fs_load_conn_state fs_load_conn_state_of(const fs_load_conn *conn);
const fs_error *fs_load_conn_why(const fs_load_conn *conn);

/* How many requests may be started now without waiting in the connection. */
uint32_t fs_load_conn_room(const fs_load_conn *conn);

/* Hands a request over. `call` has its body; the rest is filled here. Negative: not now; it stays the
 * caller's. With a link, a flush is due. */
int fs_load_conn_start(fs_load_conn *conn, fs_load_call *call, int64_t now_us, fs_sock_moved *moved);

/* Gives one up; on_end is not called. HTTP has to close the connection. */
void fs_load_conn_cancel(fs_load_conn *conn, fs_load_call *call);

/* As those of link. */
bool fs_load_conn_read(fs_load_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved);
void fs_load_conn_flush(fs_load_conn *conn, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved);
bool fs_load_conn_tick(fs_load_conn *conn, int64_t now_us); /* whether a flush is due */
void fs_load_conn_close(fs_load_conn *conn);
int fs_load_conn_fd(const fs_load_conn *conn);
bool fs_load_conn_wants_write(const fs_load_conn *conn);

#endif
