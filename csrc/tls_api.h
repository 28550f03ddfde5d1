/* tls_api: the functions of OpenSSL that tls.c uses, declared here so that the build needs no OpenSSL.
 *
 * Included by tls.c only. Numbers and signatures are those of OpenSSL's stable ABI, 1.1 and 3 alike; what are
 * macros there are control commands here. */
#ifndef FS_TLS_API_H
#define FS_TLS_API_H

#include <stdint.h>

typedef struct ssl_st SSL;
typedef struct ssl_ctx_st SSL_CTX;
typedef struct ssl_method_st SSL_METHOD;
typedef struct bio_st BIO;
typedef struct x509_st X509;
typedef struct x509_store_st X509_STORE;
typedef struct x509_store_ctx_st X509_STORE_CTX;
typedef struct x509_verify_param_st X509_VERIFY_PARAM;
typedef struct evp_pkey_st EVP_PKEY;
typedef struct asn1_string_st ASN1_TIME;

enum {
    SSL_ERROR_WANT_READ = 2, SSL_ERROR_WANT_WRITE = 3, SSL_ERROR_ZERO_RETURN = 6,
    SSL_VERIFY_NONE = 0, SSL_VERIFY_PEER = 1, SSL_VERIFY_FAIL_IF_NO_PEER_CERT = 2,
    SSL_CTRL_EXTRA_CHAIN_CERT = 14, SSL_CTRL_MODE = 33, SSL_CTRL_SET_SESS_CACHE_MODE = 44,
    SSL_CTRL_SET_TLSEXT_HOSTNAME = 55, SSL_CTRL_SET_MIN_PROTO_VERSION = 123,
    SSL_MODE_ENABLE_PARTIAL_WRITE = 1, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER = 2, SSL_MODE_RELEASE_BUFFERS = 16,
    TLS1_2_VERSION = 0x0303,
    SSL_TLSEXT_ERR_OK = 0, SSL_TLSEXT_ERR_ALERT_FATAL = 2,
    SSL_OP_NO_COMPRESSION = 1 << 17, SSL_OP_NO_RENEGOTIATION = 1 << 30,
    SSL_SESS_CACHE_OFF = 0,
    X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS = 4,
    X509_V_OK = 0, X509_V_ERR_HOSTNAME_MISMATCH = 62, X509_V_ERR_IP_ADDRESS_MISMATCH = 64,
};

typedef int tls_alpn_select(SSL *, const unsigned char **out, unsigned char *out_len, const unsigned char *in,
                            unsigned in_len, void *arg);
typedef int tls_password(char *buf, int size, int writing, void *arg);
typedef int tls_verify(int ok, X509_STORE_CTX *);

/* X(return type, name, arguments): one line for each. */
#define FS_TLS_FUNCTIONS(X)                                                                         \
    X(const SSL_METHOD *, TLS_client_method, (void))                                                \
    X(const SSL_METHOD *, TLS_server_method, (void))                                                \
    X(SSL_CTX *, SSL_CTX_new, (const SSL_METHOD *))                                                 \
    X(void, SSL_CTX_free, (SSL_CTX *))                                                              \
    X(long, SSL_CTX_ctrl, (SSL_CTX *, int, long, void *))                                           \
    X(uint64_t, SSL_CTX_set_options, (SSL_CTX *, uint64_t))                                         \
    X(void, SSL_CTX_set_verify, (SSL_CTX *, int, tls_verify *))                                     \
    X(int, SSL_CTX_set_default_verify_paths, (SSL_CTX *))                                           \
    X(X509_STORE *, SSL_CTX_get_cert_store, (const SSL_CTX *))                                      \
    X(int, SSL_CTX_use_certificate, (SSL_CTX *, X509 *))                                            \
    X(int, SSL_CTX_use_PrivateKey, (SSL_CTX *, EVP_PKEY *))                                         \
    X(int, SSL_CTX_check_private_key, (const SSL_CTX *))                                            \
    X(X509 *, SSL_CTX_get0_certificate, (const SSL_CTX *))                                          \
    X(int, SSL_CTX_add_client_CA, (SSL_CTX *, X509 *))                                              \
    X(int, SSL_CTX_set_session_id_context, (SSL_CTX *, const unsigned char *, unsigned))            \
    X(int, SSL_CTX_set_alpn_protos, (SSL_CTX *, const unsigned char *, unsigned))                   \
    X(void, SSL_CTX_set_alpn_select_cb, (SSL_CTX *, tls_alpn_select *, void *))                     \
    X(SSL *, SSL_new, (SSL_CTX *))                                                                  \
    X(void, SSL_set_bio, (SSL *, BIO *, BIO *))                                                     \
    X(void, SSL_free, (SSL *))                                                                      \
    X(void, SSL_set_connect_state, (SSL *))                                                         \
    X(void, SSL_set_accept_state, (SSL *))                                                          \
    X(int, SSL_do_handshake, (SSL *))                                                               \
    X(int, SSL_read, (SSL *, void *, int))                                                          \
    X(int, SSL_write, (SSL *, const void *, int))                                                   \
    X(int, SSL_get_error, (const SSL *, int))                                                       \
    X(int, SSL_shutdown, (SSL *))                                                                   \
    X(long, SSL_ctrl, (SSL *, int, long, void *))                                                   \
    X(int, SSL_set1_host, (SSL *, const char *))                                                    \
    X(void, SSL_set_hostflags, (SSL *, unsigned))                                                   \
    X(X509_VERIFY_PARAM *, SSL_get0_param, (SSL *))                                                 \
    X(long, SSL_get_verify_result, (const SSL *))                                                   \
    X(void, SSL_get0_alpn_selected, (const SSL *, const unsigned char **, unsigned *))              \
    X(BIO *, BIO_new_mem_buf, (const void *, int))                                                  \
    X(int, BIO_free, (BIO *))                                                                       \
    X(int, BIO_new_bio_pair, (BIO **, size_t, BIO **, size_t))                                      \
    X(size_t, BIO_ctrl_get_write_guarantee, (BIO *))                                                \
    X(int, BIO_nread0, (BIO *, char **))                                                            \
    X(int, BIO_nread, (BIO *, char **, int))                                                        \
    X(int, BIO_nwrite0, (BIO *, char **))                                                           \
    X(int, BIO_nwrite, (BIO *, char **, int))                                                       \
    X(X509 *, PEM_read_bio_X509, (BIO *, X509 **, tls_password *, void *))                          \
    X(EVP_PKEY *, PEM_read_bio_PrivateKey, (BIO *, EVP_PKEY **, tls_password *, void *))            \
    X(void, X509_free, (X509 *))                                                                    \
    X(const ASN1_TIME *, X509_get0_notBefore, (const X509 *))                                       \
    X(const ASN1_TIME *, X509_get0_notAfter, (const X509 *))                                        \
    X(int, ASN1_TIME_diff, (int *days, int *seconds, const ASN1_TIME *from, const ASN1_TIME *to))   \
    X(void, EVP_PKEY_free, (EVP_PKEY *))                                                            \
    X(int, X509_STORE_add_cert, (X509_STORE *, X509 *))                                             \
    X(int, X509_VERIFY_PARAM_set1_ip_asc, (X509_VERIFY_PARAM *, const char *))                      \
    X(const char *, X509_verify_cert_error_string, (long))                                          \
    X(unsigned long, ERR_peek_error, (void))                                                        \
    X(const char *, ERR_reason_error_string, (unsigned long))                                       \
    X(void, ERR_clear_error, (void))

typedef struct tls_api {
#define FS_TLS_MEMBER(returns, name, arguments) returns(*name) arguments;
    FS_TLS_FUNCTIONS(FS_TLS_MEMBER)
#undef FS_TLS_MEMBER
} tls_api;

#endif
