/* tls_rig: what the tests of tls, sock and link share: the certificates of tests/certificates, and contexts made
 * from them. The programs run in the repository's root. */
#ifndef FS_TLS_RIG_H
#define FS_TLS_RIG_H

#include "check.h"
#include "tls.h"

/* A file of tests/certificates as a string; NULL for NULL. The caller's to free. */
static inline char *tls_file(const char *name)
{
    if (name == NULL)
        return NULL;
    char path[128];
    snprintf(path, sizeof path, "tests/certificates/%s", name);
    FILE *file = fopen(path, "r");
    REQUIRE(file != NULL);
    char *text = calloc(1, 8192);
    REQUIRE(text != NULL && fread(text, 1, 8191, file) > 0);
    fclose(file);
    return text;
}

/* A context from files' names, or NULL and err. */
static inline fs_tls_context *tls_context(bool server, const char *ca, const char *certificate,
                                          const char *key, bool verify_peer, fs_error *err)
{
    char *texts[] = {tls_file(ca), tls_file(certificate), tls_file(key)};
    const fs_tls_config config = {server, texts[0], texts[1], texts[2], verify_peer};
    fs_tls_context *context = fs_tls_context_new(&config, err);
    for (int i = 0; i < 3; i++)
        free(texts[i]);
    return context;
}

static inline fs_tls_context *tls_server(void)
{
    fs_error err = {0};
    fs_tls_context *context = tls_context(true, NULL, "server.pem", "server.key", false, &err);
    CHECK_STR(err.msg, "");
    REQUIRE(context != NULL);
    return context;
}

static inline fs_tls_context *tls_client(void)
{
    fs_error err = {0};
    fs_tls_context *context = tls_context(false, "ca.pem", NULL, NULL, true, &err);
    CHECK_STR(err.msg, "");
    REQUIRE(context != NULL);
    return context;
}

#endif
