/* balance: see balance.h. */
#include "balance.h"

#include <stddef.h>

enum { DOUBLINGS_MOST = 4 }; /* 16-fold */

/* Ejection leaves it alone, or a call is to find out whether it is well again. */
static bool is_in(const fs_peer *peer, int64_t now_us)
{
    return !peer->out || (peer->out_until_us <= now_us && !peer->probing);
}

static bool rests(const fs_peer *peer, int64_t now_us)
{
    return peer->standing == FS_PEER_IDLE && peer->rest_until_us > now_us;
}

/* Who may be chosen in one pass. */
typedef struct sieve {
    bool in;         /* those that are not ejected, or those that are */
    int standing;    /* enum fs_standing, or -1: any that does not rest */
    uint64_t avoid;  /* 0: nobody */
    int64_t now_us;
} sieve;

static bool passes(const sieve *s, const fs_peer *peer)
{
    return is_in(peer, s->now_us) == s->in && peer->id != s->avoid &&
           (s->standing < 0 ? !rests(peer, s->now_us) : (int)peer->standing == s->standing);
}

static fs_peer *pick(fs_peer *const *peers, uint32_t n, enum fs_balance balance, uint32_t turn,
                     const sieve *s)
{
    uint32_t found = 0, least = UINT32_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (!passes(s, peers[i]))
            continue;
        if (balance == FS_LEAST_OUTSTANDING && peers[i]->outstanding < least) {
            least = peers[i]->outstanding;
            found = 0;
        }
        found += balance != FS_LEAST_OUTSTANDING || peers[i]->outstanding == least;
    }
    if (found == 0)
        return NULL;
    uint32_t skip = turn % found;
    for (uint32_t i = 0; i < n; i++) {
        if (passes(s, peers[i]) && (balance != FS_LEAST_OUTSTANDING || peers[i]->outstanding == least) &&
            skip-- == 0)
            return peers[i];
    }
    return NULL;
}

fs_choice fs_balance_choose(fs_peer *const *peers, uint32_t n, enum fs_balance balance, uint32_t *turn,
                            uint64_t avoid, int64_t now_us)
{
    uint32_t now_turn = (*turn)++;
    fs_choice choice = {0};
    for (int ejected = 0; ejected <= 1; ejected++) {
        sieve s = {.in = !ejected, .standing = -1, .avoid = avoid, .now_us = now_us};
        fs_peer *want = pick(peers, n, balance, now_turn, &s);
        if (want == NULL && avoid != 0) {
            s.avoid = 0;
            want = pick(peers, n, balance, now_turn, &s);
        }
        if (want == NULL)
            continue;
        if (want->standing == FS_PEER_IDLE)
            choice.dial = want;
        choice.peer = want->standing == FS_PEER_READY ? want : NULL;
        s.standing = FS_PEER_READY;
        for (int again = 0; again < 2 && choice.peer == NULL; again++) {
            s.avoid = again ? 0 : avoid;
            choice.peer = pick(peers, n, balance, now_turn, &s);
        }
        choice.wait = choice.peer == NULL; /* `want` does not rest, so it is dialled or is to be */
        return choice;
    }
    return choice;
}

bool fs_balance_begin(fs_peer *peer, int64_t now_us)
{
    peer->outstanding++;
    if (!peer->out || peer->probing || peer->out_until_us > now_us)
        return false;
    peer->probing = true;
    return true;
}

void fs_balance_end(fs_peer *peer, bool probe)
{
    peer->outstanding--;
    if (probe)
        peer->probing = false;
}

void fs_balance_answered(fs_peer *peer, bool probe, int64_t now_us)
{
    peer->failures = 0;
    if (probe && peer->out) {
        peer->out = false;
        peer->back_us = now_us;
    }
}

/* One more may be out. */
static bool may_eject(fs_peer *const *peers, uint32_t n, const fs_eject_rule *rule)
{
    uint32_t out = 1;
    for (uint32_t i = 0; i < n; i++)
        out += peers[i]->out;
    return out < n && out <= rule->at_most * n + 1e-9;
}

bool fs_balance_failed(fs_peer *const *peers, uint32_t n, fs_peer *peer, bool probe,
                       const fs_eject_rule *rule, int64_t now_us)
{
    peer->failures += peer->failures < UINT32_MAX;
    if (peer->out && !probe)
        return false; /* from before it was ejected */
    if (!peer->out && (rule->failures == 0 || peer->failures < rule->failures || !may_eject(peers, n, rule)))
        return false;
    int64_t longest_us = rule->out_us << DOUBLINGS_MOST;
    bool again = peer->out || (peer->back_us != 0 && now_us - peer->back_us < longest_us);
    if (!again)
        peer->doublings = 0;
    else if (peer->doublings < DOUBLINGS_MOST)
        peer->doublings++;
    peer->out = true;
    peer->out_until_us = now_us + (rule->out_us << peer->doublings);
    return true;
}
