/* Tests of tls: both sides against each other over socket pairs. */
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "failmalloc.h"
#include "tls_rig.h"

typedef struct side {
    fs_tls_context *context;
    fs_tls *tls;
    int fd;
    int rc; /* of the handshake */
    fs_error err;
} side;

typedef struct pair {
    side client, server;
} pair;

/* Two ends of a socket that do not block, with what each context gives. Takes over the contexts. */
static pair join(fs_tls_context *client, fs_tls_context *server, const char *name)
{
    pair p = {.client.context = client, .server.context = server};
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    p.client.fd = fds[0];
    p.server.fd = fds[1];
    p.client.tls = fs_tls_new(client, fds[0], name);
    p.server.tls = fs_tls_new(server, fds[1], NULL);
    REQUIRE(p.client.tls != NULL && p.server.tls != NULL);
    p.client.rc = p.server.rc = FS_TLS_WANTS_READ;
    return p;
}

static void shake(pair *p)
{
    for (int round = 0; round < 20; round++) {
        if (p->client.rc > 0)
            p->client.rc = fs_tls_handshake(p->client.tls, &p->client.err);
        if (p->server.rc > 0)
            p->server.rc = fs_tls_handshake(p->server.tls, &p->server.err);
    }
}

static void part(pair *p)
{
    side *sides[] = {&p->client, &p->server};
    for (int i = 0; i < 2; i++) {
        fs_tls_free(sides[i]->tls);
        fs_tls_context_unref(sides[i]->context);
        close(sides[i]->fd);
    }
}

static void test_bytes_travel_both_ways(void)
{
    enum { TOTAL = 3 << 20 };
    pair p = join(tls_client(), tls_server(), "localhost");
    shake(&p);
    CHECK_EQ(p.client.rc, FS_TLS_DONE);
    CHECK_EQ(p.server.rc, FS_TLS_DONE);
    uint8_t *sent = malloc(TOTAL), *got = malloc(TOTAL);
    REQUIRE(sent != NULL && got != NULL);
    for (size_t i = 0; i < TOTAL; i++)
        sent[i] = (uint8_t)(i * 31 + i / 257);
    for (int way = 0; way < 2; way++) {
        side *from = way == 0 ? &p.client : &p.server, *to = way == 0 ? &p.server : &p.client;
        size_t out = 0, in = 0;
        int stalled = 0;
        while (in < TOTAL && stalled < 1000) {
            enum fs_tls_want want;
            int64_t n = out < TOTAL ? fs_tls_write(from->tls, sent + out, TOTAL - out, &want) : 0;
            CHECK(n >= 0);
            out += n > 0 ? (size_t)n : 0;
            size_t room = in % 3 == 0 && TOTAL - in > 7 ? 7 : TOTAL - in;
            int64_t m = fs_tls_read(to->tls, got + in, room, &want);
            CHECK(m >= 0);
            in += m > 0 ? (size_t)m : 0;
            stalled = n > 0 || m > 0 ? 0 : stalled + 1;
        }
        CHECK_EQ(in, TOTAL);
        CHECK_MEM(got, sent, TOTAL);
        memset(got, 0, TOTAL);
    }
    free(sent);
    free(got);
    part(&p);
}

static void test_goodbye_and_silence_both_read_as_the_end(void)
{
    for (int polite = 0; polite < 2; polite++) {
        pair p = join(tls_client(), tls_server(), "localhost");
        shake(&p);
        enum fs_tls_want want;
        uint8_t room[16];
        CHECK_EQ(fs_tls_write(p.server.tls, (const uint8_t *)"last", 4, &want), 4);
        if (polite)
            fs_tls_bye(p.server.tls);
        shutdown(p.server.fd, SHUT_RDWR);
        CHECK_EQ(fs_tls_read(p.client.tls, room, sizeof room, &want), 4);
        CHECK(fs_tls_read(p.client.tls, room, sizeof room, &want) < 0);
        CHECK_STR(fs_tls_why(p.client.tls), "");
        part(&p);
    }
}

/* One handshake, and what each side says of it. NULL: it is content. */
static void expect(fs_tls_context *client, fs_tls_context *server, const char *name, const char *client_says,
                   const char *server_says)
{
    pair p = join(client, server, name);
    shake(&p);
    if (client_says != NULL && p.client.rc == FS_TLS_DONE) {
        /* TLS 1.3: the server's verdict on the client comes after the client is through. */
        enum fs_tls_want want;
        uint8_t room[16];
        CHECK(fs_tls_read(p.client.tls, room, sizeof room, &want) < 0);
        CHECK(strstr(fs_tls_why(p.client.tls), client_says) != NULL);
    } else {
        CHECK_EQ(p.client.rc, client_says == NULL ? FS_TLS_DONE : -FS_UNAVAILABLE);
        if (client_says != NULL)
            CHECK_STR(p.client.err.msg, client_says);
    }
    CHECK_EQ(p.server.rc, server_says == NULL ? FS_TLS_DONE : -FS_UNAVAILABLE);
    if (server_says != NULL)
        CHECK(strstr(p.server.err.msg, server_says) != NULL);
    part(&p);
}

static fs_tls_context *server_with(const char *certificate, const char *key)
{
    fs_error err;
    return tls_context(true, NULL, certificate, key, false, &err);
}

static fs_tls_context *demanding_server(void)
{
    fs_error err;
    return tls_context(true, "ca.pem", "server.pem", "server.key", true, &err);
}

static fs_tls_context *client_with(const char *certificate, const char *key)
{
    fs_error err;
    return tls_context(false, "ca.pem", certificate, key, true, &err);
}

static void test_certificates(void)
{
    expect(tls_client(), tls_server(), "localhost", NULL, NULL);
    expect(tls_client(), tls_server(), "127.0.0.1", NULL, NULL);
    expect(tls_client(), tls_server(), "::1", NULL, NULL);
    expect(tls_client(), tls_server(), "elsewhere.example",
           "certificate verify failed: the server's certificate is not for \"elsewhere.example\"", "alert");
    expect(tls_client(), tls_server(), "10.0.0.1",
           "certificate verify failed: the server's certificate is not for \"10.0.0.1\"", "alert");
    expect(tls_client(), server_with("elsewhere.pem", "elsewhere.key"), "localhost",
           "certificate verify failed: the server's certificate is not for \"localhost\"", "alert");
    expect(tls_client(), server_with("expired.pem", "expired.key"), "localhost",
           "certificate verify failed: certificate has expired", "alert");
    fs_error err;
    expect(tls_client(), server_with("stranger.pem", "stranger.key"), "localhost",
           "certificate verify failed: self-signed certificate", "alert");
    expect(tls_context(false, NULL, NULL, NULL, true, &err), tls_server(), "localhost",
           "certificate verify failed: unable to get local issuer certificate", "alert");
    expect(tls_context(false, NULL, NULL, NULL, false, &err), server_with("stranger.pem", "stranger.key"),
           "elsewhere.example", NULL, NULL);
}

static void test_client_certificates(void)
{
    expect(client_with("client.pem", "client.key"), demanding_server(), "localhost", NULL, NULL);
    expect(client_with(NULL, NULL), demanding_server(), "localhost", "alert certificate required",
           "the client shows no certificate: peer did not return a certificate");
    expect(client_with("stranger.pem", "stranger.key"), demanding_server(), "localhost", "alert unknown ca",
           "certificate verify failed: self-signed certificate");
}

static void test_a_peer_that_does_not_speak_tls(void)
{
    pair p = join(tls_client(), tls_server(), "localhost");
    CHECK(fs_tls_handshake(p.client.tls, &p.client.err) > 0);
    CHECK_EQ(write(p.server.fd, "HTTP/1.1 400 Bad Request\r\n\r\n", 28), 28);
    CHECK_EQ(fs_tls_handshake(p.client.tls, &p.client.err), -FS_UNAVAILABLE);
    CHECK_STR(p.client.err.msg, "the server does not speak TLS");
    part(&p);

    p = join(tls_client(), tls_server(), "localhost");
    CHECK_EQ(write(p.client.fd, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24), 24);
    CHECK_EQ(fs_tls_handshake(p.server.tls, &p.server.err), -FS_UNAVAILABLE);
    CHECK_STR(p.server.err.msg, "the client does not speak TLS");
    part(&p);

    p = join(tls_client(), tls_server(), "localhost");
    CHECK(fs_tls_handshake(p.client.tls, &p.client.err) > 0);
    shutdown(p.server.fd, SHUT_RDWR);
    CHECK_EQ(fs_tls_handshake(p.client.tls, &p.client.err), -FS_UNAVAILABLE);
    CHECK_STR(p.client.err.msg, "the server closed the connection during the handshake");
    part(&p);
}

static void refused(bool server, const char *ca, const char *certificate, const char *key, const char *why)
{
    fs_error err = {0};
    CHECK(tls_context(server, ca, certificate, key, false, &err) == NULL);
    CHECK_EQ(err.code, FS_INVALID_ARGUMENT);
    CHECK(strstr(err.msg, why) != NULL);
    CHECK(strstr(err.msg, "PRIVATE") == NULL);
}

static void test_what_a_context_refuses(void)
{
    refused(true, NULL, NULL, NULL, "a server needs a certificate");
    refused(true, NULL, "server.pem", NULL, "needs its key");
    refused(false, NULL, NULL, "client.key", "needs its key");
    refused(false, "client.key", NULL, NULL, "CA certificates cannot be read");
    refused(true, NULL, "server.key", "server.key", "certificate cannot be read");
    refused(true, NULL, "server.pem", "client.key", "does not belong");
    refused(true, NULL, "server.pem", "server.pem", "private key cannot be read");
}

static void test_how_long_a_certificate_is_valid(void)
{
    enum { YEAR_S = 365 * 86400 };
    int64_t valid_for_s = 0, left_s = 0;
    fs_tls_context *context = server_with("server.pem", "server.key");
    CHECK_OK(fs_tls_context_validity(context, &valid_for_s, &left_s));
    CHECK(valid_for_s > 0 && left_s > 50 * (int64_t)YEAR_S);
    CHECK_EQ((valid_for_s + left_s + 60) / 86400, 36500);
    fs_tls_context_unref(context);
    context = server_with("expired.pem", "expired.key"); /* in January 2021, after a year */
    CHECK_OK(fs_tls_context_validity(context, &valid_for_s, &left_s));
    CHECK(left_s < -4 * (int64_t)YEAR_S && valid_for_s > -left_s);
    CHECK_EQ(valid_for_s + left_s, 366 * 86400);
    fs_tls_context_unref(context);
    context = tls_client();
    CHECK_EQ(fs_tls_context_validity(context, &valid_for_s, &left_s), -FS_NOT_FOUND);
    fs_tls_context_unref(context);
}

static void test_whether_a_peer_has_said_anything(void)
{
    pair p = join(tls_client(), tls_server(), "localhost");
    CHECK(fs_tls_handshake(p.server.tls, &p.server.err) > 0);
    CHECK(!fs_tls_heard(p.server.tls));
    CHECK(fs_tls_handshake(p.client.tls, &p.client.err) > 0);
    CHECK(fs_tls_handshake(p.server.tls, &p.server.err) > 0);
    CHECK(fs_tls_heard(p.server.tls));
    part(&p);
}

/* A text made of files, one after the other; the last is cut in the middle. */
static fs_tls_context *with_broken_end(bool server, const char *whole, const char *cut, fs_error *err)
{
    char *first = tls_file(whole), *second = tls_file(cut), *key = tls_file("server.key");
    size_t len = strlen(first), half = strlen(second) / 2;
    char *text = calloc(1, len + half + 1);
    REQUIRE(text != NULL);
    memcpy(text, first, len);
    memcpy(text + len, second, half);
    const fs_tls_config config = server ? (fs_tls_config){.server = true, .certificate = text, .key = key}
                                        : (fs_tls_config){.ca = text, .verify_peer = true};
    fs_tls_context *context = fs_tls_context_new(&config, err);
    free(first);
    free(second);
    free(key);
    free(text);
    return context;
}

static void test_a_broken_certificate_among_others(void)
{
    fs_error err = {0};
    CHECK(with_broken_end(false, "ca.pem", "stranger.pem", &err) == NULL);
    CHECK(strstr(err.msg, "CA certificates cannot be read") != NULL);
    CHECK(with_broken_end(true, "server.pem", "ca.pem", &err) == NULL);
    CHECK(strstr(err.msg, "certificate cannot be read") != NULL);
    CHECK(tls_context(true, NULL, "server.pem", "server.key", true, &err) == NULL);
    CHECK(strstr(err.msg, "say which CA signs them") != NULL);
}

static void test_a_client_that_verifies_needs_a_name(void)
{
    char longer[400];
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    const char *names[] = {NULL, "", longer};
    for (int i = 0; i < 3; i++) {
        pair p = join(tls_client(), tls_server(), names[i]);
        shake(&p);
        CHECK_EQ(p.client.rc, -FS_UNAVAILABLE);
        CHECK(strstr(p.client.err.msg, "is no name that the server's certificate could be for") != NULL);
        part(&p);
    }
    fs_error err;
    expect(tls_context(false, NULL, NULL, NULL, false, &err), tls_server(), NULL, NULL, NULL);
}

/* The process is not ended by SIGPIPE, which nobody ignores here. */
static void test_writing_to_who_has_gone(void)
{
    pair p = join(tls_client(), tls_server(), "localhost");
    shake(&p);
    CHECK_EQ(p.client.rc, FS_TLS_DONE);
    enum fs_tls_want want;
    uint8_t room[64];
    CHECK_EQ(fs_tls_write(p.server.tls, (const uint8_t *)"last words", 10, &want), 10);
    shutdown(p.server.fd, SHUT_RDWR);
    CHECK_EQ(fs_tls_write(p.client.tls, room, sizeof room, &want), -FS_UNAVAILABLE);
    CHECK_EQ(fs_tls_errno(p.client.tls), EPIPE);
    CHECK_STR(fs_tls_why(p.client.tls), "");
    CHECK_EQ(fs_tls_read(p.client.tls, room, sizeof room, &want), 10);
    CHECK_MEM(room, "last words", 10);
    CHECK_EQ(fs_tls_read(p.client.tls, room, sizeof room, &want), -FS_UNAVAILABLE);
    CHECK_EQ(fs_tls_errno(p.client.tls), 0);
    fs_tls_bye(p.client.tls);
    part(&p);
}

/* Bytes that are not a record, and a record that somebody has changed. */
static void test_bytes_that_are_wrong(void)
{
    for (int i = 0; i < 2; i++) {
        pair p = join(tls_client(), tls_server(), "localhost");
        shake(&p);
        enum fs_tls_want want;
        uint8_t room[4096];
        while (fs_tls_read(p.client.tls, room, sizeof room, &want) > 0) {
        }
        if (i == 0) {
            CHECK_EQ(write(p.server.fd, "PRI * HTTP/2.0\r\n\r\n", 18), 18);
        } else {
            CHECK_EQ(fs_tls_write(p.server.tls, (const uint8_t *)"a few words", 11, &want), 11);
            ssize_t n = recv(p.client.fd, room, sizeof room, 0); /* all that is there, tickets among it */
            REQUIRE(n > 0);
            room[n - 1] ^= 1;
            CHECK_EQ(write(p.server.fd, room, (size_t)n), n);
        }
        CHECK_EQ(fs_tls_read(p.client.tls, room, sizeof room, &want), -FS_UNAVAILABLE);
        CHECK(fs_tls_why(p.client.tls)[0] != '\0');
        CHECK_EQ(fs_tls_read(p.client.tls, room, sizeof room, &want), -FS_UNAVAILABLE);
        CHECK_EQ(fs_tls_write(p.client.tls, room, 10, &want), -FS_UNAVAILABLE);
        part(&p);
    }
}

static void test_memory_that_runs_out(void)
{
    fs_error err;
    failmalloc_after(1);
    fs_tls_context *context = tls_context(false, NULL, NULL, NULL, false, &err);
    failmalloc_after(-1);
    CHECK(context == NULL);
    CHECK_EQ(err.code, FS_RESOURCE_EXHAUSTED);

    context = tls_client();
    failmalloc_after(1);
    CHECK(fs_tls_new(context, 0, "localhost") == NULL);
    failmalloc_after(-1);
    fs_tls_context *other = fs_tls_context_ref(context);
    fs_tls_context_unref(context);
    fs_tls_context_unref(other);
    fs_tls_context_unref(NULL);
}

int main(void)
{
    test_bytes_travel_both_ways();
    test_goodbye_and_silence_both_read_as_the_end();
    test_certificates();
    test_client_certificates();
    test_a_peer_that_does_not_speak_tls();
    test_what_a_context_refuses();
    test_how_long_a_certificate_is_valid();
    test_whether_a_peer_has_said_anything();
    test_a_broken_certificate_among_others();
    test_a_client_that_verifies_needs_a_name();
    test_writing_to_who_has_gone();
    test_bytes_that_are_wrong();
    test_memory_that_runs_out();
    return check_done();
}
