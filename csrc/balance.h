/* balance: which of a set of servers gets the next call, and which are better left alone for a while.
 *
 * Pure functions over a table of peers: channel keeps the table and acts on the answers, tests call them with
 * tables of their own. Knows no connection; time is passed in. */
#ifndef FS_BALANCE_H
#define FS_BALANCE_H

#include <stdbool.h>
#include <stdint.h>

enum fs_balance { FS_ROUND_ROBIN = 0, FS_LEAST_OUTSTANDING = 1 };

enum fs_standing {
    FS_PEER_IDLE,     /* no connection; one may be dialled from rest_until_us on */
    FS_PEER_DIALLING, /* a connection is on its way, or the server has not said a word on it yet */
    FS_PEER_READY,
};

typedef struct fs_peer {
    uint64_t id;          /* not 0 */
    enum fs_standing standing;
    int64_t rest_until_us;
    uint32_t outstanding; /* attempts under way */
    /* Ejection. */
    uint32_t failures;    /* in a row */
    bool out;             /* ejected: gets no calls, until out_until_us; */
    bool probing;         /*   from then on one, which is under way */
    uint8_t doublings;    /* of the time out */
    int64_t out_until_us;
    int64_t back_us;      /* when it last came back, 0: never */
} fs_peer;

typedef struct fs_choice {
    fs_peer *peer; /* who gets the attempt, NULL: nobody now */
    fs_peer *dial; /* who should be dialled: its turn had come, or it may be ready for the next */
    bool wait;     /* nobody now, but somebody is being dialled, or will be (dial) */
} fs_choice;

/* Whose turn it is. The next in turn, or the one with the least outstanding, among those that are not ejected
 * and do not rest. If that one has no connection, it is dialled and another that has one gets the attempt.
 * `avoid` (an id, 0: none) only if there is no other. When nobody else can be had, ejected ones are taken:
 * a bad server is better than none. All resting: no peer, no dial, no wait. `turn` is the caller's counter,
 * for ties too. */
fs_choice fs_balance_choose(fs_peer *const *peers, uint32_t n, enum fs_balance balance, uint32_t *turn,
                            uint64_t avoid, int64_t now_us);

typedef struct fs_eject_rule {
    uint32_t failures; /* in a row; 0: never */
    int64_t out_us;    /* for so long, doubled up to 16-fold */
    double at_most;    /* share of the peers */
} fs_eject_rule;

/* An attempt begins and ends. It ended with an answer, with a failure that is the server's or the
 * connection's, or (given up by the caller) with neither. `probe`: what begin returned. */
bool fs_balance_begin(fs_peer *peer, int64_t now_us);
void fs_balance_end(fs_peer *peer, bool probe);
void fs_balance_answered(fs_peer *peer, bool probe, int64_t now_us);
/* Whether the peer is ejected by this: never if it were more than the rule's share, or the last. */
bool fs_balance_failed(fs_peer *const *peers, uint32_t n, fs_peer *peer, bool probe,
                       const fs_eject_rule *rule, int64_t now_us);

#endif
