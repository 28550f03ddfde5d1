/* link: one connection to a server, without a loop: dials, shakes hands, then drives a client session.
 *
 * Called by channel and by load, by one thread at a time. Knows sock, tls and h2_client; knows no epoll, no
 * other connection and no call's meaning. Buffers for reading and writing are the caller's. */
#ifndef FS_LINK_H
#define FS_LINK_H

#include <sys/socket.h>

#include "h2_client.h"
#include "sock.h"

enum fs_link_state {
    FS_LINK_CLOSED,     /* nothing to drive; `why` says how it came */
    FS_LINK_CONNECTING, /* connect(2) under way */
    FS_LINK_SHAKING,    /* TLS handshake */
    FS_LINK_SETTLING,   /* HTTP/2 preface is out, the server's SETTINGS are not here: calls may be started */
    FS_LINK_OPEN,
};

typedef struct fs_link_config {
    const fs_h2_client_limits *limits;
    const fs_h2_client_handler *handler;
    void *ctx;                 /* the handler's */
    fs_tls_context *tls;       /* NULL: plain */
    const char *server_name;   /* for TLS */
    fs_slice authority;
    int64_t connect_timeout_us; /* from dialling to FS_LINK_OPEN */
    int64_t stall_timeout_us;  /* bytes to send and the socket taking none for so long: closed */
} fs_link_config;

typedef struct fs_link {
    const fs_link_config *config;
    fs_h2_client *h2;          /* from FS_LINK_SETTLING on */
    fs_sock sock;
    fs_slab *slab;
    enum fs_link_state state;
    int64_t dialled_us;
    int64_t due_us;            /* when fs_link_tick has something to do; 0: it should look; INT64_MAX: not */
    fs_error why;              /* why it closed: "connect: Connection refused", "TLS: ..." */
} fs_link;

/* Begins to connect. 0; negative: closed already (link->why says it). */
int fs_link_dial(fs_link *link, const fs_link_config *config, const struct sockaddr *address,
                 socklen_t address_len, fs_slab *slab, int64_t now_us);

/* The socket is readable or writable, or something was started: reads or writes what there is to. Each may
 * change the state; FS_LINK_CLOSED has freed the session and ended its calls. Readable: reads until there is
 * nothing or 16 rounds are through, returns true when there may be more. */
bool fs_link_read(fs_link *link, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved);
void fs_link_flush(fs_link *link, uint8_t *buf, size_t room, int64_t now_us, fs_sock_moved *moved);
void fs_link_tick(fs_link *link, int64_t now_us); /* a flush is due afterwards */

/* Ends its calls with UNAVAILABLE (or `why`) and closes. */
void fs_link_close(fs_link *link, const fs_error *why);

/* Whether to wait until the socket takes more. It is always worth reading. */
static inline bool fs_link_wants_write(const fs_link *link)
{
    return link->state == FS_LINK_CONNECTING || fs_sock_wants_write(&link->sock);
}

/* New calls may be started on it. */
static inline bool fs_link_accepts(const fs_link *link)
{
    return link->state >= FS_LINK_SETTLING && fs_h2_client_accepts(link->h2);
}

#endif
