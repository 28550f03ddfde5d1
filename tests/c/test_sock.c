/* Tests of sock: socket pairs and TCP, plain and TLS, with the other end written and read by hand. */
#include "sock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "failmalloc.h"
#include "tls_rig.h"

enum { BIG = 4 << 20 };

/* `there` does not block either. */
typedef struct rig {
    fs_slab *slab;
    fs_sock here, there;
    fs_sock_moved moved, there_moved;
} rig;

static void tcp_pair(int fds[2])
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof in;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(listener >= 0 && bind(listener, (struct sockaddr *)&in, sizeof in) == 0 &&
            listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&in, &len) == 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    REQUIRE(fds[0] >= 0 && connect(fds[0], (struct sockaddr *)&in, len) == 0);
    fds[1] = accept(listener, NULL, NULL);
    REQUIRE(fds[1] >= 0);
    close(listener);
}

static rig rig_new(bool tcp, bool tls)
{
    rig r = {.slab = fs_slab_new(16 << 20)};
    int fds[2];
    if (tcp)
        tcp_pair(fds);
    else
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    fs_tls *ends[2] = {NULL, NULL};
    if (tls) {
        fs_tls_context *client = tls_client(), *server = tls_server();
        ends[0] = fs_tls_new(client, fds[0], "localhost");
        ends[1] = fs_tls_new(server, fds[1], NULL);
        fs_tls_context_unref(client);
        fs_tls_context_unref(server);
        REQUIRE(ends[0] != NULL && ends[1] != NULL);
    }
    REQUIRE(r.slab != NULL);
    CHECK_OK(fs_sock_open(&r.here, fds[0], ends[0], r.slab));
    CHECK_OK(fs_sock_open(&r.there, fds[1], ends[1], r.slab));
    fs_error err;
    int here = tls ? FS_TLS_WANTS_READ : FS_TLS_DONE, there = here;
    for (int i = 0; i < 1000 && (here > 0 || there > 0); i++) {
        here = here > 0 ? fs_tls_handshake(r.here.tls, &err) : here;
        there = there > 0 ? fs_tls_handshake(r.there.tls, &err) : there;
    }
    REQUIRE(here == FS_TLS_DONE && there == FS_TLS_DONE);
    return r;
}

static void rig_free(rig *r)
{
    fs_sock_close(&r->here);
    fs_sock_close(&r->there);
    fs_slab_release(r->slab);
}

static uint8_t *pattern(size_t len)
{
    uint8_t *data = malloc(len);
    REQUIRE(data != NULL);
    for (size_t i = 0; i < len; i++)
        data[i] = (uint8_t)(i * 31 + (i >> 8) * 7);
    return data;
}

/* Waits until there is something to read, a second at most. */
static void wait_readable(const fs_sock *sock)
{
    struct pollfd fd = {.fd = sock->fd, .events = POLLIN};
    poll(&fd, 1, 1000);
}

static void test_how_it_opens(bool tcp)
{
    rig r = rig_new(tcp, false);
    CHECK((fcntl(r.here.fd, F_GETFL) & O_NONBLOCK) != 0);
    if (tcp) {
        int on = 0;
        socklen_t len = sizeof on;
        CHECK_OK(getsockopt(r.here.fd, IPPROTO_TCP, TCP_NODELAY, &on, &len));
        CHECK(on != 0);
    }
    CHECK(!fs_sock_wants_write(&r.here));
    rig_free(&r);
    fs_sock sock;
    CHECK_EQ(fs_sock_open(&sock, -1, NULL, NULL), -FS_RESOURCE_EXHAUSTED);
    CHECK_EQ(sock.fd, -1);
    fs_sock_close(&sock);
    fs_sock_close(&sock);
}

static void test_bytes_and_the_end(bool tcp, bool tls)
{
    rig r = rig_new(tcp, tls);
    uint8_t buf[64];
    CHECK_EQ(fs_sock_read(&r.here, buf, sizeof buf, &r.moved), 0);
    CHECK(!r.here.read_wants_write);
    CHECK_OK(fs_sock_write(&r.there, (const uint8_t *)"hello, peer", 11, 1, &r.there_moved));
    CHECK_EQ(r.there_moved.out, 11);
    CHECK(r.there.rest == NULL);
    wait_readable(&r.here);
    CHECK_EQ(fs_sock_read(&r.here, buf, 5, &r.moved), 5); /* as much as there is room: */
    CHECK_EQ(fs_sock_read(&r.here, buf + 5, sizeof buf - 5, &r.moved), 6); /* the rest is still there */
    CHECK_MEM(buf, "hello, peer", 11);
    CHECK_EQ(r.moved.in, 11);
    CHECK_EQ(r.moved.out, 0);
    CHECK_OK(fs_sock_flush(&r.here, 1, &r.moved)); /* nothing to do */
    CHECK_OK(fs_sock_write(&r.there, (const uint8_t *)"bye", 3, 1, &r.there_moved));
    fs_sock_close(&r.there);
    CHECK_EQ(r.there.fd, -1);
    wait_readable(&r.here);
    CHECK_EQ(fs_sock_read(&r.here, buf, sizeof buf, &r.moved), 3);
    CHECK_EQ(fs_sock_read(&r.here, buf, sizeof buf, &r.moved), -FS_UNAVAILABLE);
    CHECK_EQ(fs_sock_read(&r.here, buf, sizeof buf, &r.moved), -FS_UNAVAILABLE);
    char room[128];
    CHECK_STR(fs_sock_why(&r.here, room, sizeof room), "the peer closed it");
    rig_free(&r);
}

static void test_reset(bool tls)
{
    rig r = rig_new(true, tls);
    struct linger now = {.l_onoff = 1};
    setsockopt(r.there.fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(r.there.fd);
    r.there.fd = -1;
    uint8_t buf[64];
    int64_t n = 0;
    for (int i = 0; i < 10 && n == 0; i++) { /* TLS has its tickets to read before */
        wait_readable(&r.here);
        n = fs_sock_read(&r.here, buf, sizeof buf, &r.moved);
    }
    CHECK_EQ(n, -FS_UNAVAILABLE);
    CHECK_EQ(r.here.broken, ECONNRESET);
    char room[128];
    CHECK_STR(fs_sock_why(&r.here, room, sizeof room), "Connection reset by peer");
    /* Without SIGPIPE. */
    CHECK_EQ(fs_sock_write(&r.here, buf, sizeof buf, 1, &r.moved), -FS_UNAVAILABLE);
    CHECK_EQ(r.here.broken, EPIPE);
    CHECK_STR(fs_sock_why(&r.here, room, sizeof room), "Broken pipe");
    rig_free(&r);
}

/* More than the socket takes: the rest is kept, goes on, and arrives whole. */
static void test_a_full_socket(bool tcp, bool tls)
{
    rig r = rig_new(tcp, tls);
    uint8_t *data = pattern(BIG), *got = malloc(BIG);
    REQUIRE(got != NULL);
    CHECK_OK(fs_sock_write(&r.here, data, BIG, 1000, &r.moved));
    REQUIRE(r.here.rest != NULL);
    CHECK(fs_sock_wants_write(&r.here));
    CHECK(r.here.rest_len < BIG);
    CHECK_EQ(r.here.rest_len + r.moved.out, BIG);
    CHECK_EQ(r.here.full_us, 1000);
    int64_t now_us = 2000;
    CHECK_OK(fs_sock_flush(&r.here, now_us, &r.moved));
    int64_t full_us = r.here.full_us; /* 2000 if the kernel had made some room meanwhile */
    CHECK(full_us == 1000 || full_us == 2000);
    size_t in = 0;
    for (int idle = 0; in < BIG && idle < 5000;) {
        size_t out_before = r.moved.out;
        /* Small and odd reads, and whole ones. */
        size_t room = in % 5 == 0 && BIG - in > 9999 ? 9999 : BIG - in;
        int64_t n = fs_sock_read(&r.there, got + in, room, &r.there_moved);
        REQUIRE(n >= 0);
        in += (size_t)n;
        now_us++;
        CHECK_OK(fs_sock_flush(&r.here, now_us, &r.moved));
        if (r.here.rest != NULL && r.moved.out > out_before)
            CHECK_EQ(r.here.full_us, now_us);
        if (n == 0 && r.moved.out == out_before) {
            idle++;
            poll(NULL, 0, 1);
        }
    }
    CHECK_EQ(in, BIG);
    CHECK_MEM(got, data, BIG);
    CHECK(r.here.rest == NULL);
    CHECK(!fs_sock_wants_write(&r.here));
    CHECK_EQ(r.moved.out, BIG);
    CHECK_EQ(r.there_moved.in, BIG);
    free(data);
    free(got);
    rig_free(&r);
}

/* Both send what neither can take at once, and read in between. */
static void test_both_ways_at_once(bool tls)
{
    rig r = rig_new(false, tls);
    uint8_t *data = pattern(BIG), *got[2] = {malloc(BIG), malloc(BIG)};
    REQUIRE(got[0] != NULL && got[1] != NULL);
    fs_sock *socks[2] = {&r.here, &r.there};
    size_t in[2] = {0, 0};
    for (int i = 0; i < 2; i++)
        CHECK_OK(fs_sock_write(socks[i], data, BIG, 1, &r.moved));
    for (int round = 0; (in[0] < BIG || in[1] < BIG) && round < 100000; round++) {
        for (int i = 0; i < 2; i++) {
            CHECK_OK(fs_sock_flush(socks[i], 1, &r.moved));
            int64_t n = in[i] < BIG ? fs_sock_read(socks[i], got[i] + in[i], BIG - in[i], &r.moved) : 0;
            REQUIRE(n >= 0);
            in[i] += (size_t)n;
        }
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(in[i], BIG);
        CHECK_MEM(got[i], data, BIG);
        CHECK(socks[i]->rest == NULL);
        free(got[i]);
    }
    free(data);
    rig_free(&r);
}

static void test_no_memory_for_the_rest(void)
{
    rig r = rig_new(false, false);
    uint8_t *data = pattern(BIG);
    failmalloc_after(1);
    CHECK_EQ(fs_sock_write(&r.here, data, BIG, 1, &r.moved), -FS_RESOURCE_EXHAUSTED);
    failmalloc_after(-1);
    CHECK(r.here.rest == NULL);
    fs_sock_close(&r.here);
    free(data);
    rig_free(&r);
}

/* Closed with a rest: it is freed, and TLS does not claim that all has been said. */
static void test_closed_in_the_middle(bool tls)
{
    rig r = rig_new(false, tls);
    uint8_t *data = pattern(BIG);
    CHECK_OK(fs_sock_write(&r.here, data, BIG, 1, &r.moved));
    REQUIRE(r.here.rest != NULL);
    fs_sock_close(&r.here);
    CHECK(r.here.rest == NULL);
    CHECK(!fs_sock_wants_write(&r.here));
    int64_t n;
    size_t in = 0;
    while ((n = fs_sock_read(&r.there, data, BIG, &r.there_moved)) > 0)
        in += (size_t)n;
    CHECK_EQ(n, -FS_UNAVAILABLE);
    CHECK(in > 0 && in < BIG);
    free(data);
    rig_free(&r);
}

/* Whatever it is, TLS or not, it is not looked at. */
static void test_thrown_away(bool tls)
{
    rig r = rig_new(false, tls);
    uint8_t room[256];
    while (fs_sock_discard(&r.here, room, sizeof room, &r.moved) > 0) { /* what is left of the handshake */
    }
    size_t in = r.moved.in;
    CHECK_EQ(fs_sock_discard(&r.here, room, sizeof room, &r.moved), 0);
    CHECK_EQ(send(r.there.fd, "no TLS at all", 13, 0), 13);
    CHECK_EQ(fs_sock_discard(&r.here, room, sizeof room, &r.moved), 13);
    CHECK_EQ(r.moved.in, in + 13);
    shutdown(r.there.fd, SHUT_RDWR);
    CHECK_EQ(fs_sock_discard(&r.here, room, sizeof room, &r.moved), -FS_UNAVAILABLE);
    rig_free(&r);
}

static void test_what_it_waits_for(void)
{
    uint8_t byte = 0;
    fs_sock sock = {.fd = -1, .rest = &byte};
    CHECK(fs_sock_wants_write(&sock));
    sock.write_wants_read = true; /* writing helps only after reading */
    CHECK(!fs_sock_wants_write(&sock));
    sock.read_wants_write = true;
    CHECK(fs_sock_wants_write(&sock));
    sock = (fs_sock){.fd = -1, .read_wants_write = true};
    CHECK(fs_sock_wants_write(&sock));
}

int main(void)
{
    test_how_it_opens(false);
    test_how_it_opens(true);
    for (int tls = 0; tls < 2; tls++) {
        test_bytes_and_the_end(false, tls != 0);
        test_bytes_and_the_end(true, tls != 0);
        test_reset(tls != 0);
        test_a_full_socket(false, tls != 0);
        test_a_full_socket(true, tls != 0);
        test_both_ways_at_once(tls != 0);
        test_closed_in_the_middle(tls != 0);
        test_thrown_away(tls != 0);
    }
    test_no_memory_for_the_rest();
    test_what_it_waits_for();
    return check_done();
}
