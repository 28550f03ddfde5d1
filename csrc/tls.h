/* tls: TLS over a non-blocking socket, by the OpenSSL that is installed.
 *
 * Used by sock, on the thread that owns the connection; a context may be shared by connections of several
 * threads. The only file that knows OpenSSL, which it opens at run time (libssl.so.3, else libssl.so.1.1):
 * the build needs none, and security fixes come with the system. At least TLS 1.2; ALPN "h2" is demanded. */
#ifndef FS_TLS_H
#define FS_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "status.h"

typedef struct fs_tls_context fs_tls_context;
typedef struct fs_tls fs_tls;

/* PEM, not files: who reads them can say which file is wrong. NULL members are not there. */
typedef struct fs_tls_config {
    bool server;
    const char *ca;          /* whom to trust; a client's default is the system's list */
    const char *certificate; /* our own chain, leaf first, */
    const char *key;         /*   and its key; both or neither, a server needs them */
    bool verify_peer;        /* a server: demand a client's certificate, which needs `ca`. A client that does
                                not verify is open to whoever sits between */
} fs_tls_config;

/* A counted context. NULL and err: no OpenSSL to open, PEM that cannot be read, a key that does not fit. */
fs_tls_context *fs_tls_context_new(const fs_tls_config *config, fs_error *err);
fs_tls_context *fs_tls_context_ref(fs_tls_context *context); /* any thread that holds a reference */
void fs_tls_context_unref(fs_tls_context *context);          /* any thread; NULL is fine */

/* How long our own certificate has been valid, and how long it will be, in seconds; negative: not yet, or not
 * any more. 0, or -FS_NOT_FOUND: there is none, or it does not say. */
int fs_tls_context_validity(const fs_tls_context *context, int64_t *valid_for_s, int64_t *left_s);

/* One connection's TLS; keeps a reference to its context. `server_name`: for clients, what the certificate
 * must be for (a DNS name, or an IP address as text); NULL for servers. NULL when out of memory. A client
 * that verifies, and has no such name, fails at the handshake. */
fs_tls *fs_tls_new(fs_tls_context *context, int fd, const char *server_name);
void fs_tls_free(fs_tls *tls);

enum fs_tls_want { FS_TLS_DONE = 0, FS_TLS_WANTS_READ = 1, FS_TLS_WANTS_WRITE = 2 };

/* Goes on with the handshake. An fs_tls_want, or -FS_UNAVAILABLE and in err the reason in words that name the
 * remedy where there is one ("certificate verify failed: unable to get local issuer certificate"). */
int fs_tls_handshake(fs_tls *tls, fs_error *err);

/* Whether the peer has said anything yet. */
bool fs_tls_heard(const fs_tls *tls);

/* As recv(2) and send(2): > 0: bytes; 0: *want says what for; negative: closed or broken, fs_tls_why says
 * how. Read fills `buf` as far as there is something. What was to be written when it wanted something must
 * come first when it is called again, at whatever address. */
int64_t fs_tls_read(fs_tls *tls, uint8_t *buf, size_t room, enum fs_tls_want *want);
int64_t fs_tls_write(fs_tls *tls, const uint8_t *data, size_t len, enum fs_tls_want *want);

/* Why reading or writing has failed: OpenSSL's reason in words, "" when it has none; then the errno of the
 * socket's call, 0 when the peer has closed. The words live until fs_tls_free. */
const char *fs_tls_why(const fs_tls *tls);
int fs_tls_errno(const fs_tls *tls);

/* Says close_notify, if it can be said at once. */
void fs_tls_bye(fs_tls *tls);

#endif
