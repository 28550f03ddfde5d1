/* refusals: every one is counted, some are told, with the peer's name. */
#include "refusals.h"

#include <arpa/inet.h>

#include "check.h"
#include "failmalloc.h"

enum { TOLD = 16 };

static const struct sockaddr nobody = {.sa_family = AF_UNSPEC};

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
        fs_refusals_add(&w->refusals, w->slab, &nobody, "no reason");
    fs_owner_deliver(&w->loop);
    CHECK_EQ(fs_refusals_read(&w->refusals), 100);
    CHECK_EQ(w->n_told, 7);
    for (int i = 0; i < w->n_told; i++)
        CHECK_EQ(w->told[i], 1 << i);
    CHECK_STR(w->peer, "unknown");
    CHECK_STR(w->why, "no reason");
    world_free(w);
}

static void test_peers_have_names(void)
{
    const struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = htons(4711), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(65535), .sin6_addr = in6addr_loopback};
    const struct sockaddr local = {.sa_family = AF_UNIX};
    const struct {
        const void *peer;
        const char *name;
    } cases[] = {{&v4, "127.0.0.1:4711"}, {&v6, "[::1]:65535"}, {&local, "a unix socket"}, {&nobody, "unknown"}};
    for (int i = 0; i < 4; i++) {
        world *w = world_new();
        fs_refusals_add(&w->refusals, w->slab, cases[i].peer, "why");
        fs_owner_deliver(&w->loop);
        CHECK_STR(w->peer, cases[i].name);
        world_free(w);
    }
}

static void test_a_long_reason_is_cut(void)
{
    world *w = world_new();
    char why[1000];
    memset(why, 'x', sizeof why - 1);
    why[sizeof why - 1] = '\0';
    fs_refusals_add(&w->refusals, w->slab, &nobody, why);
    fs_owner_deliver(&w->loop);
    CHECK_EQ(strlen(w->why), sizeof w->why - 1);
    world_free(w);
}

static void test_without_memory_it_is_counted(void)
{
    world *w = world_new();
    failmalloc_after(1);
    fs_refusals_add(&w->refusals, w->slab, &nobody, "no reason");
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
