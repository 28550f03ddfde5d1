/* io: one thread on epoll that drives connections, for hosts where uvloop's one thread is not enough.
 *
 * The loop's thread accepts and hands sockets over; the sessions, their handler and the mail of finished
 * calls then run here and never see the GIL. There are N of these, each with a slab, a mailbox, one receive
 * buffer and one send buffer. Connections with TLS are always here. Knows sockets and sessions; knows no
 * engine, no Python and no listener.
 *
 *     fs_io_new -> (fs_engine_join with its mailbox, slab and fs_io_touch) -> fs_io_start -> fs_io_adopt ...
 *               -> fs_io_drain -> fs_io_stop -> (deliver the last mail) -> fs_io_free */
#ifndef FS_IO_H
#define FS_IO_H

#include <sys/socket.h>

#include "h2.h"
#include "mailbox.h"
#include "tls.h"
#include "trace_ring.h"

typedef struct fs_io fs_io;

/* What it points to outlives the fs_io. */
typedef struct fs_io_config {
    const fs_h2_limits *limits;
    const fs_h2_handler *handler;
    fs_budget *budget;
    /* There is mail: takes it all from the box and delivers it. On the io thread, with the ctx of
     * fs_io_start. */
    void (*on_mail)(void *ctx);
    /* FS_IO_SHUTDOWN or FS_IO_CLOSE was ordered and no connection is left. Once, on the io thread, with the
     * same ctx; NULL: nobody asks. */
    void (*on_empty)(void *ctx);
    /* The handshake with `peer` (AF_UNSPEC: not known) has failed, and why. Likewise; NULL: nobody asks. */
    void (*on_refused)(void *ctx, const struct sockaddr *peer, const char *why);
    int64_t handshake_timeout_us;
    size_t slab_cache_bytes;
    char name[16]; /* of the thread */
    fs_track *track; /* where it tells of its turns; NULL: nowhere */
} fs_io_config;

typedef struct fs_io_stats {
    uint64_t accepted;    /* sockets taken over, in all */
    uint64_t closed;      /* of these */
    uint64_t connections; /* the others: open now, those that linger included */
    uint64_t calls;       /* streams that are open now */
    uint64_t bytes_in, bytes_out;
    uint64_t wakes;       /* times that epoll_wait returned */
    int64_t cpu_us;       /* of the thread */
} fs_io_stats;

enum fs_io_drain_step {
    FS_IO_NOTICE = 1,   /* GOAWAY that still lets new calls in; connections that come later get it at once */
    FS_IO_SHUTDOWN = 2, /* no new calls; each connection closes when it is idle */
    FS_IO_CLOSE = 3,    /* closes all connections now */
};

/* NULL when out of memory or descriptors. No thread runs yet. */
fs_io *fs_io_new(const fs_io_config *config);

/* Starts the thread; `ctx` is what the handler and on_mail get. 0, or -FS_RESOURCE_EXHAUSTED. */
int fs_io_start(fs_io *io, void *ctx);

/* Where executors send what is finished. */
fs_mailbox *fs_io_mailbox(fs_io *io);
fs_slab *fs_io_slab(fs_io *io);

/* Something was submitted for a connection (rpc->conn) outside of its handler's callbacks: it is flushed when
 * this round of mail is delivered. On the io thread, from on_mail; `io` is void so that it fits
 * fs_owner.touch. */
void fs_io_touch(void *io, void *conn);

/* Hands a connected socket over. It speaks TLS when `tls` is not NULL, of which the connection has a reference of
 * its own; its handler gets `ctx`, NULL for that of fs_io_start. 0, or -FS_RESOURCE_EXHAUSTED: `fd` is still the
 * caller's. Any thread, until fs_io_stop, as the two that follow. */
int fs_io_adopt(fs_io *io, int fd, fs_tls_context *tls, void *ctx);
int fs_io_drain(fs_io *io, enum fs_io_drain_step step);
fs_io_stats fs_io_read(const fs_io *io);

/* Closes every connection (which cancels their calls) and joins the thread. From here on the caller's thread
 * owns the box and the slab: it delivers what still comes, until every call is finished. */
void fs_io_stop(fs_io *io);
void fs_io_free(fs_io *io);

#endif
