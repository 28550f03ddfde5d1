/* refusals: every one is counted, some are told, with the peer's name. */
#include "refusals.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "failmalloc.h"

enum { TOLD = 16 };

typedef struct world {
    fs_mailbox box;
    fs_owner loop;
    fs_slab *slab;
    fs_refusals refusals;
    uint64_t told[TOLD];
    int n_told;
    char peer[64], why[256]; /* the last */
} world;

static void tell(fs_mail *mail)
{
    fs_refusal *refusal = (fs_refusal *)mail;
    world *w = refusal->refusals->ctx;
    REQUIRE(w->n_told < TOLD);
    w->told[w->n_told++] = refusal->n;
    memcpy(w->peer, refusal->peer, sizeof w->peer);
    memcpy(w->why, refusal->why, sizeof w->why);
    fs_slab_free(refusal);
}

static world *world_new(void)
{
    world *w = aligned_alloc(64, (sizeof *w + 63) & ~(size_t)63);
    REQUIRE(w != NULL);
    memset(w, 0, sizeof *w);
    REQUIRE(fs_mailbox_open(&w->box) == 0);
    w->slab = fs_slab_new(0);
    REQUIRE(w->slab != NULL);
    w->loop = (fs_owner){.box = &w->box, .slab = w->slab};
    w->refusals.loop = &w->loop;
    w->refusals.tell = tell;
    w->refusals.ctx = w;
    return w;
}

static void world_free(world *w)
{
    fs_mailbox_close(&w->box);
    fs_slab_release(w->slab);
    free(w);
}

static void test_of_many_few_are_told(void)
{
    world *w = world_new();
    for (int i = 0; i < 100; i++)
        fs_refusals_add(&w->refusals, w->slab, -1, "no reason");
    fs_owner_deliver(&w->loop);
    CHECK_EQ(fs_refusals_read(&w->refusals), 100);
    CHECK_EQ(w->n_told, 7);
    for (int i = 0; i < w->n_told; i++)
        CHECK_EQ(w->told[i], 1 << i);
    CHECK_STR(w->peer, "unknown");
    CHECK_STR(w->why, "no reason");
    world_free(w);
}

/* Two ends over a socket of a family; the accepted one is returned, the other in *other. */
static int accepted(int family, int *other, uint16_t *port)
{
    struct sockaddr_storage at = {.ss_family = (sa_family_t)family};
    if (family == AF_INET)
        ((struct sockaddr_in *)&at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    else
        ((struct sockaddr_in6 *)&at)->sin6_addr = in6addr_loopback;
    socklen_t len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    int listener = socket(family, SOCK_STREAM, 0);
    REQUIRE(bind(listener, (struct sockaddr *)&at, len) == 0 && listen(listener, 1) == 0 &&
            getsockname(listener, (struct sockaddr *)&at, &len) == 0);
    *other = socket(family, SOCK_STREAM, 0);
    REQUIRE(connect(*other, (struct sockaddr *)&at, len) == 0);
    int fd = accept(listener, NULL, NULL);
    REQUIRE(fd >= 0 && getsockname(*other, (struct sockaddr *)&at, &len) == 0);
    *port = ntohs(family == AF_INET ? ((struct sockaddr_in *)&at)->sin_port
                                    : ((struct sockaddr_in6 *)&at)->sin6_port);
    close(listener);
    return fd;
}

static void test_peers_have_names(void)
{
    const int families[] = {AF_INET, AF_INET6};
    const char *const forms[] = {"127.0.0.1:%u", "[::1]:%u"};
    for (int i = 0; i < 2; i++) {
        world *w = world_new();
        int other;
        uint16_t port;
        char expected[64];
        int fd = accepted(families[i], &other, &port);
        fs_refusals_add(&w->refusals, w->slab, fd, "why");
        fs_owner_deliver(&w->loop);
        snprintf(expected, sizeof expected, forms[i], port);
        CHECK_STR(w->peer, expected);
        close(fd);
        close(other);
        world_free(w);
    }
    world *w = world_new();
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    fs_refusals_add(&w->refusals, w->slab, fds[0], "why");
    fs_owner_deliver(&w->loop);
    CHECK_STR(w->peer, "a unix socket");
    close(fds[0]);
    close(fds[1]);
    world_free(w);
}

static void test_a_long_reason_is_cut(void)
{
    world *w = world_new();
    char why[1000];
    memset(why, 'x', sizeof why - 1);
    why[sizeof why - 1] = '\0';
    fs_refusals_add(&w->refusals, w->slab, -1, why);
    fs_owner_deliver(&w->loop);
    CHECK_EQ(strlen(w->why), sizeof w->why - 1);
    world_free(w);
}

static void test_without_memory_it_is_counted(void)
{
    world *w = world_new();
    failmalloc_after(1);
    fs_refusals_add(&w->refusals, w->slab, -1, "no reason");
    failmalloc_after(-1);
    fs_owner_deliver(&w->loop);
    CHECK_EQ(fs_refusals_read(&w->refusals), 1);
    CHECK_EQ(w->n_told, 0);
    world_free(w);
}

int main(void)
{
    test_of_many_few_are_told();
    test_peers_have_names();
    test_a_long_reason_is_cut();
    test_without_memory_it_is_counted();
    return check_done();
}
