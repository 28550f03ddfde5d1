/* balance: tables of peers and what is chosen from them. No clock but the numbers that the tests pass. */
#include "balance.h"

#include "check.h"

enum { N = 4 };

typedef struct table {
    fs_peer peer[N];
    fs_peer *peers[N];
    uint32_t n, turn;
} table;

static table *fresh(uint32_t n, enum fs_standing standing)
{
    static table t;
    memset(&t, 0, sizeof t);
    t.n = n;
    for (uint32_t i = 0; i < N; i++) {
        t.peer[i].id = i + 1;
        t.peer[i].standing = standing;
        t.peers[i] = &t.peer[i];
    }
    return &t;
}

static fs_choice choose(table *t, enum fs_balance balance, uint64_t avoid, int64_t now_us)
{
    return fs_balance_choose(t->peers, t->n, balance, &t->turn, avoid, now_us);
}

/* The index of a peer, -1 for none. */
static int at(const table *t, const fs_peer *peer)
{
    return peer == NULL ? -1 : (int)(peer - t->peer);
}

static void test_turns(void)
{
    table *t = fresh(3, FS_PEER_READY);
    int got[3] = {0};
    for (int i = 0; i < 30; i++)
        got[at(t, choose(t, FS_ROUND_ROBIN, 0, 0).peer)]++;
    for (int i = 0; i < 3; i++)
        CHECK_EQ(got[i], 10);
    t->turn = UINT32_MAX; /* it wraps */
    CHECK(choose(t, FS_ROUND_ROBIN, 0, 0).peer != NULL);
    CHECK(choose(t, FS_ROUND_ROBIN, 0, 0).peer != NULL);
}

static void test_least_outstanding(void)
{
    table *t = fresh(3, FS_PEER_READY);
    t->peer[0].outstanding = 2;
    t->peer[1].outstanding = 1;
    t->peer[2].outstanding = 3;
    for (int i = 0; i < 5; i++)
        CHECK_EQ(at(t, choose(t, FS_LEAST_OUTSTANDING, 0, 0).peer), 1);
    t->peer[2].outstanding = 1; /* a tie is shared by turns */
    int got[3] = {0};
    for (int i = 0; i < 10; i++)
        got[at(t, choose(t, FS_LEAST_OUTSTANDING, 0, 0).peer)]++;
    CHECK_EQ(got[0], 0);
    CHECK_EQ(got[1], 5);
    CHECK_EQ(got[2], 5);
}

static void test_who_is_not_ready_is_dialled_and_another_takes_the_call(void)
{
    table *t = fresh(3, FS_PEER_IDLE);
    fs_choice c = choose(t, FS_ROUND_ROBIN, 0, 0);
    CHECK_EQ(at(t, c.peer), -1);
    CHECK_EQ(at(t, c.dial), 0);
    CHECK(c.wait);

    t->peer[0].standing = FS_PEER_DIALLING;
    t->peer[1].standing = FS_PEER_READY;
    t->turn = 0;
    c = choose(t, FS_ROUND_ROBIN, 0, 0);
    CHECK_EQ(at(t, c.peer), 1); /* the first is on its way already */
    CHECK_EQ(at(t, c.dial), -1);
    t->turn = 2;
    c = choose(t, FS_ROUND_ROBIN, 0, 0);
    CHECK_EQ(at(t, c.peer), 1);
    CHECK_EQ(at(t, c.dial), 2);
}

static void test_who_refused_rests(void)
{
    table *t = fresh(2, FS_PEER_IDLE);
    t->peer[0].rest_until_us = 100;
    for (int i = 0; i < 4; i++)
        CHECK_EQ(at(t, choose(t, FS_ROUND_ROBIN, 0, 99).dial), 1);
    t->peer[1].rest_until_us = 100;
    fs_choice c = choose(t, FS_ROUND_ROBIN, 0, 99);
    CHECK(c.peer == NULL && c.dial == NULL && !c.wait);
    c = choose(t, FS_ROUND_ROBIN, 0, 100);
    CHECK(c.peer == NULL && c.dial != NULL && c.wait);
    t->n = 0;
    c = choose(t, FS_ROUND_ROBIN, 0, 100);
    CHECK(c.peer == NULL && c.dial == NULL && !c.wait);
}

static void test_avoid(void)
{
    table *t = fresh(3, FS_PEER_READY);
    for (int i = 0; i < 6; i++)
        CHECK(at(t, choose(t, FS_ROUND_ROBIN, 2, 0).peer) != 1);
    t->peer[0].standing = FS_PEER_IDLE;
    for (int i = 0; i < 6; i++)
        CHECK_EQ(at(t, choose(t, FS_ROUND_ROBIN, 2, 0).peer), 2);
    t->peer[2].standing = FS_PEER_DIALLING;
    CHECK_EQ(at(t, choose(t, FS_ROUND_ROBIN, 2, 0).peer), 1); /* there is no other */
    t->n = 2;
    t->peer[0].rest_until_us = 10;
    CHECK_EQ(at(t, choose(t, FS_ROUND_ROBIN, 2, 0).peer), 1);
}

static const fs_eject_rule RULE = {.failures = 3, .out_us = 1000, .at_most = 0.5};

static bool fail(table *t, int i, bool probe, int64_t now_us)
{
    return fs_balance_failed(t->peers, t->n, &t->peer[i], probe, &RULE, now_us);
}

static void test_failures_in_a_row_eject(void)
{
    table *t = fresh(4, FS_PEER_READY);
    CHECK(!fail(t, 0, false, 0));
    CHECK(!fail(t, 0, false, 0));
    fs_balance_answered(&t->peer[0], false, 0); /* not in a row */
    CHECK(!fail(t, 0, false, 0));
    CHECK(!fail(t, 0, false, 0));
    CHECK(fail(t, 0, false, 10));
    CHECK(t->peer[0].out);
    CHECK_EQ(t->peer[0].out_until_us, 1010);
    for (int i = 0; i < 9; i++)
        CHECK(at(t, choose(t, FS_ROUND_ROBIN, 0, 1009).peer) != 0);

    /* Half of four may be out. */
    for (int i = 0; i < 3; i++)
        CHECK_EQ(fail(t, 1, false, 20), i == 2);
    for (int i = 0; i < 9; i++)
        CHECK(!fail(t, 2, false, 30));

    /* None, when the rule says never. */
    fs_eject_rule never = {.failures = 0, .out_us = 1000, .at_most = 1};
    CHECK(!fs_balance_failed(t->peers, t->n, &t->peer[3], false, &never, 0));
}

static void test_the_last_is_never_ejected(void)
{
    fs_eject_rule all = {.failures = 1, .out_us = 1000, .at_most = 1};
    table *t = fresh(2, FS_PEER_READY);
    CHECK(fs_balance_failed(t->peers, 2, &t->peer[0], false, &all, 0));
    CHECK(!fs_balance_failed(t->peers, 2, &t->peer[1], false, &all, 0));
    t = fresh(1, FS_PEER_READY);
    CHECK(!fs_balance_failed(t->peers, 1, &t->peer[0], false, &all, 0));
}

static void test_one_call_tries_and_brings_it_back(void)
{
    table *t = fresh(4, FS_PEER_READY);
    for (int i = 0; i < 3; i++)
        fail(t, 0, false, 0);
    /* Once its time is over it is chosen again, by one call. */
    int tries = 0;
    for (int i = 0; i < 12; i++) {
        fs_peer *peer = choose(t, FS_ROUND_ROBIN, 0, 1000).peer;
        if (at(t, peer) == 0) {
            tries++;
            CHECK(fs_balance_begin(peer, 1000));
        }
    }
    CHECK_EQ(tries, 1);
    /* What was begun before does not decide. */
    fs_balance_answered(&t->peer[0], false, 1001);
    CHECK(t->peer[0].out);
    CHECK(!fail(t, 0, false, 1001));
    /* The probe fails: out for twice as long, and again up to 16-fold. */
    int64_t now_us = 1002;
    for (int i = 1; i <= 6; i++) {
        CHECK(fail(t, 0, true, now_us));
        fs_balance_end(&t->peer[0], true);
        CHECK_EQ(t->peer[0].out_until_us - now_us, 1000 << (i < 4 ? i : 4));
        now_us = t->peer[0].out_until_us;
        CHECK(fs_balance_begin(&t->peer[0], now_us));
    }
    /* It is given up without a verdict: another may try. */
    fs_balance_end(&t->peer[0], true);
    CHECK(t->peer[0].out);
    CHECK(fs_balance_begin(&t->peer[0], now_us));
    fs_balance_answered(&t->peer[0], true, now_us);
    fs_balance_end(&t->peer[0], true);
    CHECK(!t->peer[0].out);
    CHECK_EQ(t->peer[0].outstanding, 0);

    /* Soon out again it is out for longer still; after a good while it begins anew. */
    for (int i = 0; i < 3; i++)
        fail(t, 0, false, now_us + 10);
    CHECK_EQ(t->peer[0].out_until_us - now_us - 10, 16000);
    CHECK(fs_balance_begin(&t->peer[0], t->peer[0].out_until_us));
    fs_balance_answered(&t->peer[0], true, now_us = t->peer[0].out_until_us);
    fs_balance_end(&t->peer[0], true);
    for (int i = 0; i < 3; i++)
        fail(t, 0, false, now_us + 16000);
    CHECK_EQ(t->peer[0].out_until_us - now_us - 16000, 1000);
}

static void test_ejected_ones_are_better_than_none(void)
{
    table *t = fresh(2, FS_PEER_READY);
    for (int i = 0; i < 3; i++)
        fail(t, 0, false, 0);
    CHECK(t->peer[0].out);
    t->peer[1].standing = FS_PEER_DIALLING;
    fs_choice c = choose(t, FS_ROUND_ROBIN, 0, 1);
    CHECK(c.peer == NULL && c.wait); /* the other is on its way */
    t->peer[1].standing = FS_PEER_IDLE;
    t->peer[1].rest_until_us = 100;
    c = choose(t, FS_ROUND_ROBIN, 0, 1);
    CHECK_EQ(at(t, c.peer), 0);
    CHECK(!fs_balance_begin(c.peer, 1)); /* no probe: its time is not over */
    fs_balance_end(c.peer, false);
    t->peer[0].standing = FS_PEER_IDLE;
    c = choose(t, FS_ROUND_ROBIN, 0, 1);
    CHECK_EQ(at(t, c.dial), 0);
    CHECK(c.wait);
}

int main(void)
{
    test_turns();
    test_least_outstanding();
    test_who_is_not_ready_is_dialled_and_another_takes_the_call();
    test_who_refused_rests();
    test_avoid();
    test_failures_in_a_row_eject();
    test_the_last_is_never_ejected();
    test_one_call_tries_and_brings_it_back();
    test_ejected_ones_are_better_than_none();
    return check_done();
}
