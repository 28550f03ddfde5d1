/* tls: see tls.h.
 *
 * Nothing here is global: each context opens the library (which stays, once it is there) and looks its
 * functions up.
 *
 * OpenSSL does not touch the socket. It reads and writes one half of a BIO pair, and here bytes move between
 * the other half's memory and the socket. So no write raises SIGPIPE, the socket's errors are known for what
 * they are, and one system call may move two records.
 *
 * A record counts as written when the socket has taken all of it, however often that takes. So the caller has
 * a rest for as long as there is something to send, and need not know of the pair. */
#include "tls.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tls_api.h"

enum {
    RECORD_BYTES = 16384,              /* of plain text, at most */
    SEALED_BYTES = RECORD_BYTES + 256, /* of such a record as it travels */
    PAIR_BYTES = 2 * SEALED_BYTES,     /* each way; pages that are not needed are not touched */
    RECORD_ALERT = 21,                 /* the first byte of what a peer that speaks TLS may say first, */
    RECORD_HANDSHAKE = 22,             /*   or this */
};

struct fs_tls_context {
    atomic_int refs;
    bool server, verify, has_certificate;
    SSL_CTX *ctx;
    tls_api api;
};

struct fs_tls {
    fs_tls_context *context;
    SSL *ssl;
    BIO *inner;      /* OpenSSL's half of the pair, which frees it, */
    BIO *wire;       /*   and ours */
    int fd;
    int broken;      /* errno of the system call that failed */
    size_t sealed;   /* bytes of plain text in records that the socket has not taken wholly */
    bool shaken;     /* the handshake is done */
    bool over;       /* OpenSSL has given up, or read the peer's goodbye */
    bool first_seen;
    uint8_t first;   /* the peer's first byte shows whether it speaks TLS at all */
    char why[256];
    char name[];     /* what the certificate must be for */
};

static const unsigned char h2_alpn[] = {2, 'h', '2'};

/* ---- the library --------------------------------------------------------------------------- */

/* OpenSSL registers functions that run at exit, so it must not go before. */
static void *open_file(const char *name)
{
    return dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

/* As the system's linker finds it, which covers what the process has loaded already; else beside the
 * interpreter: environments may bring an OpenSSL along. */
static void *open_named(const char *name)
{
    void *library = open_file(name);
    char path[PATH_MAX + 64];
    ssize_t n = library == NULL ? readlink("/proc/self/exe", path, PATH_MAX) : 0;
    if (n <= 0)
        return library;
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return NULL;
    snprintf(slash, 64, "/../lib/%s", name);
    return open_file(path);
}

static bool open_library(tls_api *api, fs_error *err)
{
    static const char *const names[] = {"libssl.so.3", "libssl.so.1.1"};
    void *ssl = NULL;
    for (size_t i = 0; ssl == NULL && i < sizeof names / sizeof *names; i++)
        ssl = open_named(names[i]);
    if (ssl == NULL) {
        fs_fail(err, FS_FAILED_PRECONDITION,
                "TLS needs OpenSSL 3 or 1.1, and neither libssl.so.3 nor libssl.so.1.1 can be opened: "
                "install libssl3");
        return false;
    }
    void *found; /* in libssl, or in libcrypto, which it brings along */
#define FIND(returns, name, arguments)                                                         \
    found = dlsym(ssl, #name);                                                                 \
    if (found == NULL) {                                                                       \
        fs_fail(err, FS_FAILED_PRECONDITION, "the OpenSSL that is installed has no %s", #name); \
        return false;                                                                          \
    }                                                                                          \
    memcpy(&api->name, &found, sizeof found);
    FS_TLS_FUNCTIONS(FIND)
#undef FIND
    return true;
}

/* OpenSSL's own words for the last thing that went wrong; "" when it has none. */
static const char *reason(const tls_api *api)
{
    const char *text = api->ERR_reason_error_string(api->ERR_peek_error());
    return text != NULL ? text : "";
}

/* ---- contexts ------------------------------------------------------------------------------ */

/* A key with a passphrase is refused: asking for it would be done on the terminal. */
static int no_password(char *buf, int size, int writing, void *arg)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)arg;
    return -1;
}

static int select_h2(SSL *ssl, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
                     unsigned in_len, void *arg)
{
    (void)ssl;
    (void)arg;
    for (unsigned at = 0; at < in_len && in[at] < in_len - at; at += in[at] + 1u) {
        if (in[at] == 2 && memcmp(in + at + 1, "h2", 2) == 0) {
            *out = in + at + 1;
            *out_len = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    }
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* Calls `each` with the certificates in `pem`, one after the other; it takes each over. How many there were,
 * or negative when `each` refused one, or what looks like one cannot be read. */
static int for_certificates(const fs_tls_context *context, const char *pem,
                            int (*each)(const fs_tls_context *context, X509 *certificate, int number))
{
    static const char begin[] = "-----BEGIN CERTIFICATE-----";
    const tls_api *api = &context->api;
    size_t len = strlen(pem);
    BIO *bio = len <= INT_MAX ? api->BIO_new_mem_buf(pem, (int)len) : NULL;
    if (bio == NULL)
        return -1;
    int n = 0, there = 0;
    for (const char *at = strstr(pem, begin); at != NULL; at = strstr(at + 1, begin))
        there++;
    X509 *certificate;
    while (n >= 0 && (certificate = api->PEM_read_bio_X509(bio, NULL, no_password, NULL)) != NULL)
        n = each(context, certificate, n) == 0 ? n + 1 : -1;
    api->BIO_free(bio);
    return n < there ? -1 : n;
}

static int trust(const fs_tls_context *context, X509 *certificate, int number)
{
    const tls_api *api = &context->api;
    (void)number;
    int ok = api->X509_STORE_add_cert(api->SSL_CTX_get_cert_store(context->ctx), certificate);
    if (ok == 1 && context->server)
        ok = api->SSL_CTX_add_client_CA(context->ctx, certificate); /* what clients are asked for */
    api->X509_free(certificate);
    return ok == 1 ? 0 : -1;
}

static int present(const fs_tls_context *context, X509 *certificate, int number)
{
    const tls_api *api = &context->api;
    if (number > 0 && api->SSL_CTX_ctrl(context->ctx, SSL_CTRL_EXTRA_CHAIN_CERT, 0, certificate) == 1)
        return 0; /* the context's now */
    int ok = number == 0 ? api->SSL_CTX_use_certificate(context->ctx, certificate) : 0;
    api->X509_free(certificate);
    return ok == 1 ? 0 : -1;
}

static int use_key(const fs_tls_context *context, const char *pem, fs_error *err)
{
    const tls_api *api = &context->api;
    size_t len = strlen(pem);
    BIO *bio = len <= INT_MAX ? api->BIO_new_mem_buf(pem, (int)len) : NULL;
    EVP_PKEY *key = bio != NULL ? api->PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
    if (bio != NULL)
        api->BIO_free(bio);
    if (key == NULL)
        return fs_fail(err, FS_INVALID_ARGUMENT,
                       "the private key cannot be read: it must be PEM, without a passphrase");
    int ok = api->SSL_CTX_use_PrivateKey(context->ctx, key);
    api->EVP_PKEY_free(key);
    if (ok != 1 || api->SSL_CTX_check_private_key(context->ctx) != 1)
        return fs_fail(err, FS_INVALID_ARGUMENT, "the private key does not belong to the certificate");
    return 0;
}

static int set_up(fs_tls_context *context, const fs_tls_config *config, fs_error *err)
{
    const tls_api *api = &context->api;
    SSL_CTX *ctx = context->ctx;
    if (api->SSL_CTX_ctrl(ctx, SSL_CTRL_SET_MIN_PROTO_VERSION, TLS1_2_VERSION, NULL) != 1)
        return fs_fail(err, FS_FAILED_PRECONDITION, "OpenSSL does not offer TLS 1.2: %s", reason(api));
    api->SSL_CTX_ctrl(ctx, SSL_CTRL_MODE,
                      SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                          SSL_MODE_RELEASE_BUFFERS,
                      NULL);
    /* HTTP/2 forbids renegotiation, which would let the peer make us write in order to read. */
    api->SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    api->SSL_CTX_ctrl(ctx, SSL_CTRL_SET_SESS_CACHE_MODE, SSL_SESS_CACHE_OFF, NULL);
    if (config->server && config->verify_peer && config->ca == NULL)
        return fs_fail(err, FS_INVALID_ARGUMENT,
                       "to demand clients' certificates, say which CA signs them: by the system's list "
                       "whoever has some certificate would be let in");
    if (config->ca != NULL && for_certificates(context, config->ca, trust) <= 0)
        return fs_fail(err, FS_INVALID_ARGUMENT,
                       "the CA certificates cannot be read: no PEM certificate, or a broken one among them");
    if (config->ca == NULL && config->verify_peer && api->SSL_CTX_set_default_verify_paths(ctx) != 1)
        return fs_fail(err, FS_FAILED_PRECONDITION, "the system's CA certificates cannot be read: %s",
                       reason(api));
    if ((config->certificate == NULL) != (config->key == NULL))
        return fs_fail(err, FS_INVALID_ARGUMENT, "a certificate needs its key, and a key its certificate");
    if (config->certificate != NULL) {
        if (for_certificates(context, config->certificate, present) <= 0)
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "the certificate cannot be read: no PEM certificate, a broken one in its chain, "
                           "or one that may not be used");
        int rc = use_key(context, config->key, err);
        if (rc != 0)
            return rc;
    } else if (config->server) {
        return fs_fail(err, FS_INVALID_ARGUMENT, "a server needs a certificate and its key");
    }
    int verify = config->verify_peer ? SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT : SSL_VERIFY_NONE;
    api->SSL_CTX_set_verify(ctx, verify, NULL);
    if (config->server) {
        api->SSL_CTX_set_alpn_select_cb(ctx, select_h2, NULL);
        /* Without one, a session that is resumed with a client's certificate is refused. */
        api->SSL_CTX_set_session_id_context(ctx, (const unsigned char *)"fastserve", 9);
    } else if (api->SSL_CTX_set_alpn_protos(ctx, h2_alpn, sizeof h2_alpn) != 0) {
        return fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
    }
    return 0;
}

fs_tls_context *fs_tls_context_new(const fs_tls_config *config, fs_error *err)
{
    fs_tls_context *context = calloc(1, sizeof *context);
    if (context == NULL) {
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "out of memory");
        return NULL;
    }
    atomic_init(&context->refs, 1);
    context->server = config->server;
    context->verify = config->verify_peer;
    context->has_certificate = config->certificate != NULL;
    if (!open_library(&context->api, err)) {
        free(context);
        return NULL;
    }
    const tls_api *api = &context->api;
    api->ERR_clear_error();
    context->ctx = api->SSL_CTX_new(config->server ? api->TLS_server_method() : api->TLS_client_method());
    if (context->ctx == NULL)
        fs_fail(err, FS_RESOURCE_EXHAUSTED, "OpenSSL cannot make a context: %s", reason(api));
    if (context->ctx == NULL || set_up(context, config, err) != 0) {
        api->ERR_clear_error();
        fs_tls_context_unref(context);
        return NULL;
    }
    api->ERR_clear_error();
    return context;
}

fs_tls_context *fs_tls_context_ref(fs_tls_context *context)
{
    atomic_fetch_add_explicit(&context->refs, 1, memory_order_relaxed); /* relaxed: the caller holds one */
    return context;
}

void fs_tls_context_unref(fs_tls_context *context)
{
    /* Acquire and release, with each other: whoever frees it sees what all others did with it. */
    if (context == NULL || atomic_fetch_sub_explicit(&context->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (context->ctx != NULL)
        context->api.SSL_CTX_free(context->ctx);
    free(context);
}

int fs_tls_context_validity(const fs_tls_context *context, int64_t *valid_for_s, int64_t *left_s)
{
    enum { DAY_S = 86400 };
    const tls_api *api = &context->api;
    X509 *certificate = context->has_certificate ? api->SSL_CTX_get0_certificate(context->ctx) : NULL;
    int since_days, since_s, left_days, rest_s;
    /* NULL is now. */
    if (certificate == NULL ||
        api->ASN1_TIME_diff(&since_days, &since_s, api->X509_get0_notBefore(certificate), NULL) != 1 ||
        api->ASN1_TIME_diff(&left_days, &rest_s, NULL, api->X509_get0_notAfter(certificate)) != 1) {
        api->ERR_clear_error();
        return -FS_NOT_FOUND;
    }
    *valid_for_s = (int64_t)since_days * DAY_S + since_s;
    *left_s = (int64_t)left_days * DAY_S + rest_s;
    return 0;
}

/* ---- connections --------------------------------------------------------------------------- */

static bool is_ip(const char *name)
{
    struct in6_addr room;
    return inet_pton(AF_INET, name, &room) == 1 || inet_pton(AF_INET6, name, &room) == 1;
}

/* Says whom the certificate must be for, and whom to ask for where one address serves several names. */
static bool expect(fs_tls *tls, const char *name)
{
    const tls_api *api = &tls->context->api;
    if (is_ip(name))
        return !tls->context->verify ||
               api->X509_VERIFY_PARAM_set1_ip_asc(api->SSL_get0_param(tls->ssl), name) == 1;
    api->SSL_set_hostflags(tls->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    /* The cast is in OpenSSL's own macro, too: it copies the name. */
    return api->SSL_ctrl(tls->ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, 0, (void *)(uintptr_t)name) == 1 &&
           (!tls->context->verify || api->SSL_set1_host(tls->ssl, name) == 1);
}

/* Keeps what goes wrong from here on in words; the first that did is what counts. */
#define SAY(tls, ...) ((tls)->why[0] == '\0' ? snprintf((tls)->why, sizeof(tls)->why, __VA_ARGS__) : 0)

fs_tls *fs_tls_new(fs_tls_context *context, int fd, const char *server_name)
{
    const tls_api *api = &context->api;
    const char *name = server_name != NULL && !context->server ? server_name : "";
    size_t name_bytes = strlen(name) + 1;
    fs_tls *tls = calloc(1, sizeof *tls + name_bytes);
    if (tls == NULL)
        return NULL;
    memcpy(tls->name, name, name_bytes);
    tls->context = fs_tls_context_ref(context);
    tls->fd = fd;
    api->ERR_clear_error();
    tls->ssl = api->SSL_new(context->ctx);
    if (tls->ssl == NULL || api->BIO_new_bio_pair(&tls->inner, PAIR_BYTES, &tls->wire, PAIR_BYTES) != 1) {
        api->ERR_clear_error();
        fs_tls_free(tls);
        return NULL;
    }
    api->SSL_set_bio(tls->ssl, tls->inner, tls->inner);
    if (context->server) {
        api->SSL_set_accept_state(tls->ssl);
        return tls;
    }
    api->SSL_set_connect_state(tls->ssl);
    if (name[0] == '\0' ? context->verify : !expect(tls, name)) {
        /* Without a name any certificate of a trusted CA would do. The handshake says it. */
        SAY(tls, "\"%.150s\" is no name that the server's certificate could be for", name);
        tls->over = true;
    }
    return tls;
}

void fs_tls_free(fs_tls *tls)
{
    if (tls == NULL)
        return;
    fs_tls_context *context = tls->context;
    if (tls->ssl != NULL)
        context->api.SSL_free(tls->ssl); /* and its half of the pair */
    if (tls->wire != NULL)
        context->api.BIO_free(tls->wire);
    fs_tls_context_unref(context);
    free(tls);
}

const char *fs_tls_why(const fs_tls *tls)
{
    return tls->why;
}

int fs_tls_errno(const fs_tls *tls)
{
    return tls->broken;
}

/* ---- the socket ---------------------------------------------------------------------------- */

enum drained { BROKEN = -1, FULL = 0, CLEAR = 1 };

/* Sends what OpenSSL has written. */
static enum drained drain(fs_tls *tls)
{
    const tls_api *api = &tls->context->api;
    char *data;
    int len;
    while ((len = api->BIO_nread0(tls->wire, &data)) > 0) {
        ssize_t n = send(tls->fd, data, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            api->BIO_nread(tls->wire, &data, (int)n);
        } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) {
            return FULL;
        } else if (n == 0 || errno != EINTR) {
            tls->broken = n == 0 ? EPIPE : errno;
            return BROKEN;
        }
    }
    return CLEAR;
}

/* Receives once, for OpenSSL to read. > 0: bytes, and *dry when the socket has no more; 0: nothing is there;
 * negative: the peer has hung up, or tls->broken says why not. */
static int64_t fill(fs_tls *tls, bool *dry)
{
    const tls_api *api = &tls->context->api;
    char *data;
    int room = api->BIO_nwrite0(tls->wire, &data);
    if (room <= 0)
        return 0; /* it asks for more only when it has taken all */
    ssize_t n;
    do {
        n = recv(tls->fd, data, (size_t)room, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n > 0) {
        if (!tls->first_seen)
            tls->first = (uint8_t)data[0];
        tls->first_seen = true;
        *dry = n < room;
        return api->BIO_nwrite(tls->wire, &data, (int)n);
    }
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    tls->broken = n < 0 ? errno : 0;
    return -FS_UNAVAILABLE;
}

/* ---- what goes wrong ----------------------------------------------------------------------- */

static const char *peer_of(const fs_tls *tls)
{
    return tls->context->server ? "client" : "server";
}

static bool speaks_tls(const fs_tls *tls)
{
    return !tls->first_seen || tls->first == RECORD_HANDSHAKE || tls->first == RECORD_ALERT;
}

static void explain_verdict(fs_tls *tls, long verdict)
{
    if (verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH)
        SAY(tls, "certificate verify failed: the server's certificate is not for \"%.150s\"", tls->name);
    else
        SAY(tls, "certificate verify failed: %s", tls->context->api.X509_verify_cert_error_string(verdict));
}

/* The words are OpenSSL's own, which tells alerts apart by them: "tlsv1 alert unknown ca". */
static void explain_alert(fs_tls *tls, const char *text)
{
    static const char *const about_certificates[] = {"certificate", "unknown ca"};
    bool ours = false;
    for (size_t i = 0; i < sizeof about_certificates / sizeof *about_certificates; i++)
        ours = ours || strstr(text, about_certificates[i]) != NULL;
    if (strstr(text, "no application protocol") != NULL)
        SAY(tls, "the %s does not offer HTTP/2 (ALPN h2)", peer_of(tls));
    else if (ours && !tls->context->has_certificate)
        SAY(tls, "the %s demands a certificate, and there is none to show: %s", peer_of(tls), text);
    else if (ours)
        SAY(tls, "the %s refused our certificate: %s", peer_of(tls), text);
    else
        SAY(tls, "the %s refused: %s", peer_of(tls), text);
}

/* OpenSSL has given up. What it has left to say is the alert that tells the peer why. */
static int given_up(fs_tls *tls)
{
    const char *text = reason(&tls->context->api);
    long verdict = tls->context->api.SSL_get_verify_result(tls->ssl);
    if (!speaks_tls(tls))
        SAY(tls, "the %s does not speak TLS", peer_of(tls));
    else if (tls->context->verify && verdict != X509_V_OK && !tls->shaken)
        explain_verdict(tls, verdict);
    else if (strstr(text, "alert") != NULL)
        explain_alert(tls, text);
    else if (strstr(text, "no application protocol") != NULL) /* what the server's side of it is called */
        SAY(tls, "the %s does not offer HTTP/2 (ALPN h2)", peer_of(tls));
    else if (strstr(text, "did not return a certificate") != NULL)
        SAY(tls, "the client shows no certificate: %s", text);
    else
        SAY(tls, "%s", text[0] != '\0' ? text : "OpenSSL does not say what went wrong");
    tls->context->api.ERR_clear_error();
    tls->over = true;
    drain(tls);
    return -FS_UNAVAILABLE;
}

/* After a call of OpenSSL that returned `rc`: gets for it what it asks for. FS_TLS_DONE: call it again; a
 * want: not before then; negative: the connection is over. *dry as in fill: nothing is received when set. */
static int serve(fs_tls *tls, int rc, bool *dry)
{
    int64_t n;
    switch (tls->context->api.SSL_get_error(tls->ssl, rc)) {
    case SSL_ERROR_WANT_READ: {
        /* What it has to say may be what the peer waits for. When that can be said no more, what the peer had
         * said before still counts. */
        enum drained out = drain(tls);
        n = *dry ? 0 : fill(tls, dry);
        if (n < 0 || (n == 0 && out == BROKEN))
            return -FS_UNAVAILABLE;
        return n > 0 ? FS_TLS_DONE : out == FULL ? FS_TLS_WANTS_WRITE : FS_TLS_WANTS_READ;
    }
    case SSL_ERROR_WANT_WRITE:
        switch (drain(tls)) {
        case BROKEN:
            return -FS_UNAVAILABLE;
        case FULL:
            return FS_TLS_WANTS_WRITE;
        default:
            return FS_TLS_DONE;
        }
    case SSL_ERROR_ZERO_RETURN:
        tls->over = true;
        return -FS_UNAVAILABLE;
    default:
        return given_up(tls);
    }
}

/* ---- handshake ------------------------------------------------------------------------------ */

static int handshake_failed(fs_tls *tls, fs_error *err)
{
    tls->over = true;
    if (!speaks_tls(tls))
        SAY(tls, "the %s does not speak TLS", peer_of(tls));
    char room[128];
    if (tls->broken != 0)
        SAY(tls, "the connection was lost during the handshake: %s",
            strerror_r(tls->broken, room, sizeof room)); /* GNU's, which returns the text */
    SAY(tls, "the %s closed the connection during the handshake", peer_of(tls));
    return fs_fail(err, FS_UNAVAILABLE, "%s", tls->why);
}

int fs_tls_handshake(fs_tls *tls, fs_error *err)
{
    const tls_api *api = &tls->context->api;
    bool dry = false;
    while (!tls->shaken) {
        if (tls->over)
            return handshake_failed(tls, err);
        api->ERR_clear_error();
        int rc = api->SSL_do_handshake(tls->ssl);
        tls->shaken = rc == 1;
        int want = rc == 1 ? FS_TLS_DONE : serve(tls, rc, &dry);
        if (want < 0)
            return handshake_failed(tls, err);
        if (want != FS_TLS_DONE)
            return want;
    }
    const unsigned char *chosen = NULL;
    unsigned len = 0;
    api->SSL_get0_alpn_selected(tls->ssl, &chosen, &len);
    if (len != 2 || memcmp(chosen, "h2", 2) != 0) {
        SAY(tls, "the %s does not offer HTTP/2 (ALPN h2)", peer_of(tls));
        return handshake_failed(tls, err);
    }
    /* The last thing said is ours. */
    switch (drain(tls)) {
    case BROKEN:
        return handshake_failed(tls, err);
    case FULL:
        return FS_TLS_WANTS_WRITE;
    default:
        return FS_TLS_DONE;
    }
}

bool fs_tls_heard(const fs_tls *tls)
{
    return tls->first_seen;
}

/* ---- bytes ---------------------------------------------------------------------------------- */

int64_t fs_tls_read(fs_tls *tls, uint8_t *buf, size_t room, enum fs_tls_want *want)
{
    const tls_api *api = &tls->context->api;
    size_t at = 0;
    bool dry = false;
    *want = FS_TLS_DONE;
    /* What is left in the pair does not show as readiness of the socket, hence all of it. */
    while (at < room) {
        if (tls->over)
            return at > 0 ? (int64_t)at : -FS_UNAVAILABLE;
        api->ERR_clear_error();
        int n = api->SSL_read(tls->ssl, buf + at, room - at < INT_MAX ? (int)(room - at) : INT_MAX);
        if (n > 0) {
            at += (size_t)n;
            continue;
        }
        int rc = serve(tls, n, &dry);
        if (rc < 0 && at == 0)
            return -FS_UNAVAILABLE;
        if (rc != FS_TLS_DONE) {
            *want = rc < 0 ? FS_TLS_DONE : (enum fs_tls_want)rc;
            break; /* a failure comes again when there is nothing before it */
        }
    }
    return (int64_t)at;
}

/* Seals as many records as the pair has room for. How many bytes of `data`; *rc as from serve, when OpenSSL
 * asks for something first. */
static size_t seal(fs_tls *tls, const uint8_t *data, size_t len, int *rc)
{
    const tls_api *api = &tls->context->api;
    size_t at = 0;
    bool dry = false;
    *rc = FS_TLS_DONE;
    while (at < len && *rc == FS_TLS_DONE && api->BIO_ctrl_get_write_guarantee(tls->inner) >= SEALED_BYTES) {
        api->ERR_clear_error();
        int n = api->SSL_write(tls->ssl, data + at, len - at < RECORD_BYTES ? (int)(len - at) : RECORD_BYTES);
        if (n > 0)
            at += (size_t)n;
        else
            *rc = serve(tls, n, &dry);
    }
    return at;
}

int64_t fs_tls_write(fs_tls *tls, const uint8_t *data, size_t len, enum fs_tls_want *want)
{
    size_t done = 0;
    *want = FS_TLS_DONE;
    while (done < len) {
        int rc = FS_TLS_DONE;
        if (tls->over)
            return -FS_UNAVAILABLE;
        if (tls->sealed == 0)
            tls->sealed = seal(tls, data + done, len - done, &rc);
        enum drained out = drain(tls);
        if (rc < 0 || out == BROKEN)
            return -FS_UNAVAILABLE;
        if (out == FULL) {
            *want = FS_TLS_WANTS_WRITE; /* and what is sealed comes first when they are given again */
            break;
        }
        done += tls->sealed;
        tls->sealed = 0;
        if (rc != FS_TLS_DONE) {
            *want = (enum fs_tls_want)rc;
            break;
        }
    }
    return (int64_t)done;
}

void fs_tls_bye(fs_tls *tls)
{
    const tls_api *api = &tls->context->api;
    if (!tls->shaken || tls->over || tls->broken != 0)
        return;
    api->ERR_clear_error();
    api->SSL_shutdown(tls->ssl);
    api->ERR_clear_error();
    drain(tls);
}
