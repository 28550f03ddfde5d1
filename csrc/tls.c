/* tls: see tls.h.
 *
 * Nothing here is global: each context opens the library (which stays, once it is there) and looks its
 * functions up. */
#include "tls.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "tls_api.h"

struct fs_tls_context {
    atomic_int refs;
    bool server, verify;
    SSL_CTX *ctx;
    tls_api api;
};

struct fs_tls {
    fs_tls_context *context;
    SSL *ssl;
    bool shaken; /* the handshake is done */
    bool failed; /* nothing may be said any more, not even goodbye */
    char why[256];
    char name[]; /* what the certificate must be for */
};

static const unsigned char h2_alpn[] = {2, 'h', '2'};

/* ---- the library --------------------------------------------------------------------------- */

static bool open_library(tls_api *api, fs_error *err)
{
    static const char *const pairs[][2] = {{"libssl.so.3", "libcrypto.so.3"},
                                           {"libssl.so.1.1", "libcrypto.so.1.1"}};
    void *ssl = NULL, *crypto = NULL;
    for (size_t i = 0; ssl == NULL && i < sizeof pairs / sizeof *pairs; i++) {
        /* OpenSSL registers functions that run at exit, so it must not go before. */
        crypto = dlopen(pairs[i][1], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
        if (crypto != NULL)
            ssl = dlopen(pairs[i][0], RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    if (ssl == NULL) {
        fs_fail(err, FS_FAILED_PRECONDITION,
                "TLS needs OpenSSL 3 or 1.1, and neither libssl.so.3 nor libssl.so.1.1 can be opened: "
                "install libssl3");
        return false;
    }
    void *found;
#define FIND(returns, name, arguments)                                                         \
    found = dlsym(ssl, #name);                                                                 \
    if (found == NULL && (found = dlsym(crypto, #name)) == NULL) {                             \
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
 * or negative when `each` refused one. */
static int for_certificates(const fs_tls_context *context, const char *pem,
                            int (*each)(const fs_tls_context *context, X509 *certificate, int number))
{
    const tls_api *api = &context->api;
    size_t len = strlen(pem);
    BIO *bio = len <= INT_MAX ? api->BIO_new_mem_buf(pem, (int)len) : NULL;
    if (bio == NULL)
        return -1;
    int n = 0;
    X509 *certificate;
    while (n >= 0 && (certificate = api->PEM_read_bio_X509(bio, NULL, no_password, NULL)) != NULL)
        n = each(context, certificate, n) == 0 ? n + 1 : -1;
    api->BIO_free(bio);
    return n;
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

static int use_key(const fs_tls_context *context, const char *pem)
{
    const tls_api *api = &context->api;
    size_t len = strlen(pem);
    BIO *bio = len <= INT_MAX ? api->BIO_new_mem_buf(pem, (int)len) : NULL;
    EVP_PKEY *key = bio != NULL ? api->PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL) : NULL;
    int ok = key != NULL ? api->SSL_CTX_use_PrivateKey(context->ctx, key) : 0;
    if (key != NULL)
        api->EVP_PKEY_free(key);
    if (bio != NULL)
        api->BIO_free(bio);
    return ok == 1 ? 0 : -1;
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
    api->SSL_CTX_ctrl(ctx, SSL_CTRL_SET_READ_AHEAD, 1, NULL);
    api->SSL_CTX_set_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
    if (config->ca != NULL && for_certificates(context, config->ca, trust) <= 0)
        return fs_fail(err, FS_INVALID_ARGUMENT,
                       "the CA certificates cannot be read: there is no PEM certificate in them");
    if (config->ca == NULL && config->verify_peer && api->SSL_CTX_set_default_verify_paths(ctx) != 1)
        return fs_fail(err, FS_FAILED_PRECONDITION, "the system's CA certificates cannot be read: %s",
                       reason(api));
    if ((config->certificate == NULL) != (config->key == NULL))
        return fs_fail(err, FS_INVALID_ARGUMENT, "a certificate needs its key, and a key its certificate");
    if (config->certificate != NULL) {
        if (for_certificates(context, config->certificate, present) <= 0)
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "the certificate cannot be read: no PEM certificate, or not one that may be used");
        if (use_key(context, config->key) != 0)
            return fs_fail(err, FS_INVALID_ARGUMENT,
                           "the private key cannot be read or does not belong to the certificate: it must be "
                           "PEM, without a passphrase");
        if (api->SSL_CTX_check_private_key(ctx) != 1)
            return fs_fail(err, FS_INVALID_ARGUMENT, "the private key does not belong to the certificate");
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

/* ---- connections --------------------------------------------------------------------------- */

static bool is_ip(const char *name)
{
    struct in6_addr room;
    return inet_pton(AF_INET, name, &room) == 1 || inet_pton(AF_INET6, name, &room) == 1;
}

static bool expect(fs_tls *tls, const char *name)
{
    const tls_api *api = &tls->context->api;
    if (is_ip(name))
        return !tls->context->verify ||
               api->X509_VERIFY_PARAM_set1_ip_asc(api->SSL_get0_param(tls->ssl), name) == 1;
    char room[256]; /* OpenSSL takes it as not constant */
    size_t len = strlen(name);
    if (len >= sizeof room)
        return false;
    memcpy(room, name, len + 1);
    return api->SSL_ctrl(tls->ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, 0, room) == 1 &&
           (!tls->context->verify || api->SSL_set1_host(tls->ssl, name) == 1);
}

fs_tls *fs_tls_new(fs_tls_context *context, int fd, const char *server_name)
{
    const tls_api *api = &context->api;
    const char *name = server_name != NULL ? server_name : "";
    size_t name_bytes = strlen(name) + 1;
    fs_tls *tls = calloc(1, sizeof *tls + name_bytes);
    if (tls == NULL)
        return NULL;
    memcpy(tls->name, name, name_bytes);
    tls->context = fs_tls_context_ref(context);
    api->ERR_clear_error();
    tls->ssl = api->SSL_new(context->ctx);
    if (tls->ssl == NULL || api->SSL_set_fd(tls->ssl, fd) != 1 || (name[0] != '\0' && !expect(tls, name))) {
        api->ERR_clear_error();
        fs_tls_free(tls);
        return NULL;
    }
    if (context->server)
        api->SSL_set_accept_state(tls->ssl);
    else
        api->SSL_set_connect_state(tls->ssl);
    return tls;
}

void fs_tls_free(fs_tls *tls)
{
    if (tls == NULL)
        return;
    fs_tls_context *context = tls->context;
    if (tls->ssl != NULL)
        context->api.SSL_free(tls->ssl); /* leaves the descriptor to its owner */
    fs_tls_context_unref(context);
    free(tls);
}

static void say(fs_tls *tls, const char *text)
{
    size_t len = strlen(text);
    len = len < sizeof tls->why - 1 ? len : sizeof tls->why - 1;
    memcpy(tls->why, text, len);
    tls->why[len] = '\0';
}

/* After a call that returned `rc` <= 0: what is wanted, or negative, and tls->why says why. */
static int outcome(fs_tls *tls, int rc, int socket_errno)
{
    const tls_api *api = &tls->context->api;
    char room[128];
    int error = api->SSL_get_error(tls->ssl, rc);
    if (error == SSL_ERROR_WANT_READ)
        return FS_TLS_WANTS_READ;
    if (error == SSL_ERROR_WANT_WRITE)
        return FS_TLS_WANTS_WRITE;
    tls->failed = tls->failed || error == SSL_ERROR_SSL || error == SSL_ERROR_SYSCALL;
    if (tls->why[0] == '\0') {
        if (error == SSL_ERROR_SSL)
            say(tls, reason(api));
        else if (error == SSL_ERROR_SYSCALL && socket_errno != 0)
            say(tls, strerror_r(socket_errno, room, sizeof room));
    }
    api->ERR_clear_error();
    return -FS_UNAVAILABLE;
}

/* Why a handshake failed, with the remedy where it is known. */
static int handshake_failed(fs_tls *tls, fs_error *err)
{
    const tls_api *api = &tls->context->api;
    const char *peer = tls->context->server ? "client" : "server";
    long verdict = api->SSL_get_verify_result(tls->ssl);
    const char *why = tls->why;
    if (strstr(why, "certificate verify failed") != NULL && verdict != X509_V_OK) {
        if (verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH)
            return fs_fail(err, FS_UNAVAILABLE,
                           "certificate verify failed: the server's certificate is not for \"%s\"",
                           tls->name);
        return fs_fail(err, FS_UNAVAILABLE, "certificate verify failed: %s",
                       api->X509_verify_cert_error_string(verdict));
    }
    if (strstr(why, "wrong version number") != NULL || strstr(why, "packet length too long") != NULL ||
        strstr(why, "http request") != NULL || strstr(why, "record layer failure") != NULL)
        return fs_fail(err, FS_UNAVAILABLE, "the %s does not speak TLS", peer);
    if (strstr(why, "no application protocol") != NULL)
        return fs_fail(err, FS_UNAVAILABLE, "the %s does not offer HTTP/2 (ALPN h2)", peer);
    if (strstr(why, "alert") != NULL)
        return fs_fail(err, FS_UNAVAILABLE, "the %s refused: %s", peer, why);
    if (why[0] == '\0')
        return fs_fail(err, FS_UNAVAILABLE, "the %s closed the connection during the handshake", peer);
    return fs_fail(err, FS_UNAVAILABLE, "%s", why);
}

int fs_tls_handshake(fs_tls *tls, fs_error *err)
{
    const tls_api *api = &tls->context->api;
    api->ERR_clear_error();
    errno = 0;
    int rc = api->SSL_do_handshake(tls->ssl);
    if (rc != 1) {
        int want = outcome(tls, rc, errno);
        return want >= 0 ? want : handshake_failed(tls, err);
    }
    const unsigned char *chosen = NULL;
    unsigned len = 0;
    api->SSL_get0_alpn_selected(tls->ssl, &chosen, &len);
    if (len != 2 || memcmp(chosen, "h2", 2) != 0)
        return fs_fail(err, FS_UNAVAILABLE, "the %s does not offer HTTP/2 (ALPN h2)",
                       tls->context->server ? "client" : "server");
    tls->shaken = true;
    return FS_TLS_DONE;
}

int64_t fs_tls_read(fs_tls *tls, uint8_t *buf, size_t room, enum fs_tls_want *want)
{
    const tls_api *api = &tls->context->api;
    size_t at = 0;
    *want = FS_TLS_DONE;
    api->ERR_clear_error();
    /* What is left in OpenSSL's buffers does not show as readiness of the socket, hence all of it. */
    while (at < room) {
        size_t ask = room - at < INT_MAX ? room - at : INT_MAX;
        errno = 0;
        int n = api->SSL_read(tls->ssl, buf + at, (int)ask);
        if (n <= 0) {
            int rc = outcome(tls, n, errno);
            if (rc < 0 && at == 0)
                return rc;
            if (rc >= 0)
                *want = (enum fs_tls_want)rc;
            break; /* a failure comes again when there is nothing before it */
        }
        at += (size_t)n;
    }
    return (int64_t)at;
}

int64_t fs_tls_write(fs_tls *tls, const uint8_t *data, size_t len, enum fs_tls_want *want)
{
    const tls_api *api = &tls->context->api;
    *want = FS_TLS_DONE;
    api->ERR_clear_error();
    errno = 0;
    int n = api->SSL_write(tls->ssl, data, len < INT_MAX ? (int)len : INT_MAX);
    if (n > 0)
        return n;
    int rc = outcome(tls, n, errno);
    if (rc < 0)
        return rc;
    *want = (enum fs_tls_want)rc;
    return 0;
}

const char *fs_tls_why(const fs_tls *tls)
{
    return tls->why;
}

void fs_tls_bye(fs_tls *tls)
{
    if (!tls->shaken || tls->failed)
        return;
    tls->context->api.ERR_clear_error();
    tls->context->api.SSL_shutdown(tls->ssl);
    tls->context->api.ERR_clear_error();
}
